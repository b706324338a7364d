"""The two databases that are compared, each as: run a text, get names, types, and values as text, or an SQLSTATE.

Values are compared as Postgres prints them, so that a decimal's zeros and an interval's parts count too.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Protocol

import msgspec
import psycopg
from psycopg.pq import ExecStatus

import dsdb
from dsdb.driver.results import Streamed
from dsdb.sql.execute.result import ResultColumn, rows_of_batch
from dsdb.sql.text import format_text
from dsdb.sql.types import SqlType, TypeName

Values = tuple[str | None, ...]

_OIDS = {
    16: TypeName.BOOL, 17: TypeName.BYTEA, 20: TypeName.BIGINT, 21: TypeName.SMALLINT, 23: TypeName.INT, 25: TypeName.TEXT,
    700: TypeName.REAL, 701: TypeName.DOUBLE, 1042: TypeName.CHAR, 1043: TypeName.VARCHAR, 1082: TypeName.DATE, 1083: TypeName.TIME,
    1114: TypeName.TIMESTAMP, 1184: TypeName.TIMESTAMPTZ, 1186: TypeName.INTERVAL, 1700: TypeName.DECIMAL, 2950: TypeName.UUID,
    19: TypeName.TEXT, 2206: TypeName.TEXT, 705: TypeName.TEXT,
}  # fmt: skip
"""PostgreSQL's types by their oid; `name`, `regtype` and `unknown` are text in dsdb."""


class Outcome(msgspec.Struct, frozen=True):
    """What a query gave: names, types and rows, or the SQLSTATE (and sentence) of its error."""

    names: tuple[str, ...] = ()
    types: tuple[TypeName, ...] = ()
    rows: tuple[Values, ...] = ()
    sqlstate: str = ""
    message: str = ""


class Peer(Protocol):
    """A database."""

    def run(self, sql: str) -> Outcome:
        """Run a statement."""


class Postgres:
    """PostgreSQL, values in its text format."""

    def __init__(self, target: str) -> None:
        self.connection = psycopg.connect(target, autocommit=True)

    def run(self, sql: str) -> Outcome:
        result = self.connection.pgconn.exec_(sql.encode())
        if result.status not in (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK):
            state = result.error_field(psycopg.pq.DiagnosticField.SQLSTATE) or b"?????"
            return Outcome(sqlstate=state.decode(), message=result.error_message.decode().strip())
        width = range(result.nfields)
        rows = [tuple(_text(result.get_value(row, column)) for column in width) for row in range(result.ntuples)]
        names = tuple((result.fname(column) or b"").decode() for column in width)
        return Outcome(names, tuple(_OIDS[result.ftype(column)] for column in width), tuple(rows))

    def close(self) -> None:
        self.connection.close()


class Dsdb:
    """dsdb: an embedded node in memory, or what a URL or a directory names."""

    def __init__(self, target: str | None = None) -> None:
        self.connection = dsdb.connect(autocommit=True) if target is None else dsdb.connect(target, autocommit=True)

    def run(self, sql: str) -> Outcome:
        try:
            answer = self.connection.run_statement(sql, ())
            result = answer.next_result()
            if result is None:
                return Outcome()
            shape = result.shape
            if isinstance(result, Streamed):
                columns = [ResultColumn(column.name, column.type) for column in shape.columns]
                rows = []
                while (batch := result.next_batch()) is not None:
                    rows += rows_of_batch(batch, columns)
            else:
                rows = list(result.rows)
        except dsdb.Error as error:
            return Outcome(sqlstate=str(getattr(error, "sqlstate", "")), message=str(error))
        types = [column.type for column in shape.columns]
        texts = tuple(tuple(_spelled(value, type_) for value, type_ in zip(row, types)) for row in rows)
        names = tuple(TypeName.TEXT if type_.name is TypeName.UNKNOWN else type_.name for type_ in types)
        return Outcome(tuple(column.name for column in shape.columns), names, texts)

    def close(self) -> None:
        self.connection.close()


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _spelled(value: object, type_: SqlType) -> str | None:
    """Spell a value of the wire, where decimals are text and intervals lists."""
    if value is None:
        return None
    if type_.name is TypeName.DECIMAL:
        value = Decimal(str(value))
    return format_text(tuple(value) if isinstance(value, list) else value, type_)  # type: ignore[arg-type]
