"""A PEP 249-shaped connection over the executor and a local store, for scripts that speak to any driver.

    python slt.py --factory tests.sql.conformance:connect FILE_OR_DIR...
"""

from __future__ import annotations

import datetime as dt
import decimal
import time
import uuid
from collections.abc import Sequence
from typing import Any

import trio

from dsdb.sql.catalog_lease import CatalogLeases
from dsdb.sql.errors import SqlError
from dsdb.sql.execute.engine import QueryEngine
from dsdb.sql.execute.result import Parameter, Result, ResultColumn, rows_of_batch
from dsdb.sql.execute.services import Services
from dsdb.sql.execute.session import SessionState
from dsdb.sql.execute.statement import StatementExecutor
from dsdb.sql.rows import Row
from dsdb.sql.text import format_text
from dsdb.sql.types import BIGINT, BOOL, BYTEA, DOUBLE, NUMERIC, UNKNOWN, SqlType, TypeName
from tests.sql.local_steering import LocalSteering
from tests.sql.local_txn import LocalCluster, LocalRunner, LocalStore

ENGINE = "dsdb"
_EPOCH = dt.datetime(1970, 1, 1)


class LocalDatabase:
    """One node's worth of SQL over a local store."""

    def __init__(self) -> None:
        self.store = LocalStore()
        self.runner = LocalRunner()
        self.engine = QueryEngine()
        self.catalogs = CatalogLeases(
            node_id=1,
            transactions=self.store.begin,
            fresh_timestamp=self.store.fresh_timestamp,
            notify=_notify_nobody,
            duration_ms=3_600_000,
        )
        self.services = Services(
            catalogs=self.catalogs,
            begin=self.store.begin,
            runner=self.runner,
            engine=self.engine,
            cluster=LocalCluster(self.store),
            steering=LocalSteering(),
            now=lambda: time.time_ns() // 1000,
        )
        self.executor = StatementExecutor(self.services)

    async def found(self) -> None:
        await self.catalogs.found()

    def close(self) -> None:
        self.engine.close()
        self.runner.connection.close()

    async def run(self, session: SessionState, text: str, parameters: Sequence[Parameter] = ()) -> list[tuple[Result, list[Row]]]:
        """Run a text, and gather each result's rows."""
        gathered: list[tuple[Result, list[Row]]] = []
        async for result in self.executor.execute(session, text, parameters):
            rows = list(result.rows or [])
            if result.batches is not None:
                async for batch in result.batches:
                    rows += rows_of_batch(batch, result.columns)
            gathered.append((result, rows))
        return gathered


async def _notify_nobody(version: int) -> None:
    return


class Connection:
    autocommit = True

    def __init__(self, database: LocalDatabase) -> None:
        self.database = database
        self.session = SessionState()

    def cursor(self) -> Cursor:
        return Cursor(self)

    def commit(self) -> None:
        return

    def rollback(self) -> None:
        return

    def close(self) -> None:
        return


class Cursor:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.description: list[tuple[Any, ...]] | None = None
        self.rowcount = -1
        self._rows: list[tuple[Any, ...]] = []

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Cursor:
        connection = self._connection
        given = [_parameter(value) for value in parameters]
        results = trio.run(connection.database.run, connection.session, sql, given)
        self.description, self._rows, self.rowcount = None, [], -1
        if results:
            result, rows = results[-1]
            known = len(rows) if result.columns else -1
            self.rowcount = known if result.row_count is None else result.row_count
            if result.columns:
                self.description = [(column.name, column.type, None, None, None, None, None) for column in result.columns]
                self._rows = [tuple(_python(value, column) for value, column in zip(row, result.columns)) for row in rows]
        return self

    def fetchall(self) -> list[tuple[Any, ...]]:
        rows, self._rows = self._rows, []
        return rows

    def close(self) -> None:
        return


def _parameter(value: Any) -> Parameter:
    types: dict[type, SqlType] = {bool: BOOL, int: BIGINT, float: DOUBLE, decimal.Decimal: NUMERIC, bytes: BYTEA}
    return Parameter(types.get(type(value), UNKNOWN), value)


def _python(value: Any, column: ResultColumn) -> Any:
    if value is None:
        return None
    match column.type.name:
        case TypeName.DATE if -719_162 <= value <= 2_932_896:
            return (_EPOCH + dt.timedelta(days=value)).date()
        case TypeName.TIMESTAMP if -62_135_596_800_000_000 <= value < 253_402_300_800_000_000:
            return _EPOCH + dt.timedelta(microseconds=value)
        case TypeName.TIMESTAMPTZ if -62_135_596_800_000_000 <= value < 253_402_300_800_000_000:
            return (_EPOCH + dt.timedelta(microseconds=value)).replace(tzinfo=dt.UTC)
        case TypeName.TIME if value < 86_400_000_000:
            return (_EPOCH + dt.timedelta(microseconds=value)).time()
        case TypeName.UUID:
            return uuid.UUID(bytes=value)
        case TypeName.INTERVAL | TypeName.DATE | TypeName.TIMESTAMP | TypeName.TIMESTAMPTZ | TypeName.TIME:
            return format_text(value, column.type)
    return value


_database: LocalDatabase | None = None


def fresh(path: str) -> None:
    """Begin a script with an empty database."""
    global _database
    _database = LocalDatabase()
    trio.run(_database.found)


def connect() -> Connection:
    """Connect to the script's database."""
    if _database is None:
        fresh("")
    assert _database is not None
    return Connection(_database)


__all__ = ["Connection", "Cursor", "LocalDatabase", "SqlError", "connect", "fresh"]
