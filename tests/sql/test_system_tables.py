"""Virtual tables: what their rows say, what is missing, and that they need neither the oracle nor a lease."""

from collections.abc import Awaitable, Callable

import pytest
import trio

from dsdb.sql.errors import CannotConnectNowError, FeatureNotSupportedError
from dsdb.sql.execute.result import Parameter
from dsdb.sql.execute.session import SessionState
from dsdb.sql.ports import EventInfo, LockInfo, OpenTransactionInfo, RangeUnavailableError
from dsdb.sql.ports_steering import JobInfo
from dsdb.sql.rows import Row, primary_key
from dsdb.sql.schema import FIRST_DATABASE_ID
from dsdb.sql.system_tables import SYSTEM_TABLES
from dsdb.sql.types import BIGINT
from dsdb.storage.keys import point_span
from dsdb.storage.timestamp import MIN_TIMESTAMP, from_milliseconds
from tests.sql.conformance import LocalDatabase
from tests.sql.local_steering import LocalSteering
from tests.sql.local_txn import LocalCluster, LocalTransaction

HOLDER = bytes.fromhex("00000300000000000000000000000009")


async def rows(database: LocalDatabase, sql: str, *parameters: Parameter) -> list[Row]:
    [(_, found)] = await database.run(SessionState(), sql, parameters)
    return found


def run(scenario: Callable[[LocalDatabase, LocalCluster], Awaitable[None]]) -> None:
    async def main() -> None:
        database = LocalDatabase()
        await database.found()
        cluster = database.services.cluster
        assert isinstance(cluster, LocalCluster)
        try:
            await scenario(database, cluster)
        finally:
            database.close()

    trio.run(main)


def lock(key: bytes, *, range_id: int = 2, waiters: int = 0) -> LockInfo:
    return LockInfo(range_id=range_id, key=key, holder=HOLDER, holder_node=3, since_us=1_700_000_000_000_000, waiters=waiters)


def test_locks_name_the_rows() -> None:
    async def scenario(database: LocalDatabase, cluster: LocalCluster) -> None:
        await database.run(SessionState(), "CREATE TABLE one (id INT PRIMARY KEY)")
        await database.run(SessionState(), "CREATE TABLE two (a TEXT, b INT, PRIMARY KEY (b, a))")
        session = SessionState()
        await database.run(session, "CREATE DATABASE elsewhere")
        session.database = "elsewhere"
        await database.run(session, "CREATE TABLE one (id BIGINT PRIMARY KEY)")
        catalog = database.catalogs.acquire_nowait()
        assert catalog is not None
        tables = [
            catalog.table(FIRST_DATABASE_ID, "one"),
            catalog.table(FIRST_DATABASE_ID, "two"),
            catalog.table(catalog.database("elsewhere").database_id, "one"),  # type: ignore[union-attr]
        ]
        catalog_keys = [primary_key(table, values) for table, values in zip(tables, ([42], [7, "x y"], [-1])) if table is not None]
        cluster.held_locks = [*map(lock, catalog_keys), lock(b"\x03odd", range_id=1, waiters=4)]
        database.catalogs.release(catalog)
        columns = "range_id, database_name, table_name, key, waiters"
        assert await rows(database, f"SELECT {columns} FROM system.locks ORDER BY waiters, 2, 3") == [
            (2, "defaultdb", "one", "(42)", 0),
            (2, "defaultdb", "two", "(7, x y)", 0),
            (2, "elsewhere", "one", "(-1)", 0),
            (1, None, None, "036f6464", 4),
        ]
        [first, *_] = await rows(database, "SELECT holder, holder_node, held_since FROM system.locks")
        assert first == (HOLDER.hex(), 3, 1_700_000_000_000_000)

    run(scenario)


def test_events_by_number() -> None:
    async def scenario(database: LocalDatabase, cluster: LocalCluster) -> None:
        moved = EventInfo(event_id=7, at_us=1_700_000_000_000_001, kind="replicas", range_id=2, what="range 2: add 4", is_done=True)
        wished = EventInfo(
            event_id=8, at_us=1_700_000_000_000_002, kind="node", range_id=None, what="node 3 is to be draining", is_done=False
        )
        cluster.happened = [moved, wished]
        assert await rows(database, "SELECT * FROM system.events ORDER BY event_id DESC") == [
            (8, 1_700_000_000_000_002, "node", None, "node 3 is to be draining", False),
            (7, 1_700_000_000_000_001, "replicas", 2, "range 2: add 4", True),
        ]

    run(scenario)


def test_transactions_with_and_without_an_attempt() -> None:
    async def scenario(database: LocalDatabase, cluster: LocalCluster) -> None:
        written = OpenTransactionInfo(
            node_id=1,
            session_id=5,
            attempt=HOLDER,
            started_us=1_700_000_000_000_001,
            state="idle",
            statement="INSERT …",
            read_timestamp=from_milliseconds(1_700_000_000_002),
            writes=3,
            bytes=99,
        )
        begun = OpenTransactionInfo(
            node_id=2, session_id=1, attempt=None, started_us=5, state="running", statement="", read_timestamp=None, writes=0, bytes=0
        )
        cluster.open_transactions = [written, begun]
        assert await rows(database, "SELECT * FROM system.transactions ORDER BY node_id") == [
            (1, 5, HOLDER.hex(), 1_700_000_000_000_001, "idle", "INSERT …", 1_700_000_000_002_000, 3, 99),
            (2, 1, None, 5, "running", "", None, 0, 0),
        ]
        query = "SELECT count(*) FROM system.transactions t LEFT JOIN system.locks l ON l.holder = t.attempt WHERE bytes > $1"
        assert await rows(database, query, Parameter(BIGINT, 50)) == [(1,)]

    run(scenario)


def test_what_is_missing_is_a_notice() -> None:
    async def scenario(database: LocalDatabase, cluster: LocalCluster) -> None:
        cluster.missing = ["node 2 did not answer: its rows are missing"]
        [(result, _)] = await database.run(SessionState(), "SELECT count(*) FROM system.locks a, system.locks b")
        assert [str(notice) for notice in result.notices] == ["node 2 did not answer: its rows are missing"]
        session = SessionState()
        await database.run(session, "BEGIN")
        [(result, _)] = await database.run(session, "SELECT * FROM system.transactions")
        assert [str(notice) for notice in result.notices] == ["node 2 did not answer: its rows are missing"]
        [(result, _)] = await database.run(session, "SELECT * FROM system.nodes")
        assert result.notices == ()

    run(scenario)


def test_neither_the_oracle_nor_a_lease_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unreachable(txn: LocalTransaction) -> None:
        raise RangeUnavailableError("no quorum")

    async def scenario(database: LocalDatabase, cluster: LocalCluster) -> None:
        await database.run(SessionState(), "CREATE TABLE t (id INT PRIMARY KEY)")
        catalog = database.catalogs.acquire_nowait()
        assert catalog is not None
        database.catalogs.release(catalog)
        catalog.lease_expiration = MIN_TIMESTAMP
        monkeypatch.setattr(LocalTransaction, "read_timestamp", unreachable)
        for name in SYSTEM_TABLES:
            await rows(database, f"SELECT * FROM system.{name}")
            await rows(database, f"SELECT count(*), max(now()) FROM system.{name} WHERE $1 > 0", Parameter(BIGINT, 1))
            await rows(database, f"SHOW COLUMNS FROM system.{name}")
        with pytest.raises(CannotConnectNowError):
            await rows(database, "SELECT * FROM t, system.nodes")

    run(scenario)


def test_they_have_no_past() -> None:
    async def scenario(database: LocalDatabase, cluster: LocalCluster) -> None:
        with pytest.raises(FeatureNotSupportedError, match="no past"):
            await rows(database, "SELECT * FROM system.nodes AS OF SYSTEM TIME '-1s'")

    run(scenario)


def test_the_columns_are_what_the_rows_have() -> None:
    async def scenario(database: LocalDatabase, cluster: LocalCluster) -> None:
        cluster.held_locks = [lock(point_span(b"\x10").start)]
        cluster.open_transactions = [
            OpenTransactionInfo(
                node_id=1, session_id=1, attempt=None, started_us=0, state="idle", statement="", read_timestamp=None, writes=0, bytes=0
            )
        ]
        cluster.happened = [EventInfo(event_id=1, at_us=0, kind="lease", range_id=2, what="", is_done=True)]
        steering = database.services.steering
        assert isinstance(steering, LocalSteering)
        steering.doing = [JobInfo(kind="drain", range_id=None, node_id=1, what="", started_us=None, left=3, unit="leases")]
        for name, table in SYSTEM_TABLES.items():
            [(result, found)] = await database.run(SessionState(), f"SELECT * FROM system.{name}")
            assert [(column.name, column.type) for column in result.columns] == [(column.name, column.type) for column in table.columns]
            assert found

    run(scenario)
