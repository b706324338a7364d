"""What the executor does with conflicts, leases, parameters and caches; and that point statements need no engine."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from dsdb.sql.catalog import load_catalog
from dsdb.sql.errors import (
    CannotConnectNowError,
    FeatureNotSupportedError,
    InvalidTextError,
    SerializationError,
    SqlError,
    UndefinedParameterError,
    UndefinedTableError,
    UniqueViolationError,
    UnknownOutcomeError,
)
from dsdb.sql.execute.result import Parameter
from dsdb.sql.execute.session import SessionState
from dsdb.sql.execute.statement import ATTEMPTS_MAX
from dsdb.sql.ports import (
    AmbiguousCommitError,
    DeadlineExceededError,
    MultiRangeWriteError,
    PortError,
    RangeUnavailableError,
    TransactionRetryError,
)
from dsdb.sql.rows import Row, rows_of
from dsdb.sql.schema import FIRST_DATABASE_ID
from dsdb.sql.types import BIGINT, UNKNOWN
from dsdb.storage import mvcc
from tests.sql.conformance import LocalDatabase
from tests.sql.local_txn import LocalTransaction

Scenario = Callable[[LocalDatabase, SessionState], Awaitable[None]]


def with_table(scenario: Scenario, *, create: str = "CREATE TABLE t (id INT PRIMARY KEY, n INT)") -> None:
    async def main() -> None:
        database, session = LocalDatabase(), SessionState()
        await database.found()
        await database.run(session, create)
        try:
            await scenario(database, session)
        finally:
            database.close()

    trio.run(main)


async def rows(database: LocalDatabase, session: SessionState, sql: str, *parameters: Parameter) -> list[Row]:
    [(_, found)] = await database.run(session, sql, parameters)
    return found


def refusing(database: LocalDatabase, errors: list[PortError]) -> None:
    def refuse(txn: LocalTransaction) -> None:
        if errors:
            raise errors.pop()

    database.store.before_commit = refuse


def test_a_conflict_runs_the_statement_again() -> None:
    async def scenario(database: LocalDatabase, session: SessionState) -> None:
        await database.run(session, "INSERT INTO t VALUES (1, 1)")
        refusing(database, [TransactionRetryError("conflict")] * 3)
        [(result, _)] = await database.run(session, "UPDATE t SET n = n + 1 WHERE id = 1")
        assert result.row_count == 1
        assert await rows(database, session, "SELECT n FROM t WHERE id = 1") == [(2,)]

    with_table(scenario)


def test_a_row_changed_between_read_and_commit_is_read_again() -> None:
    async def scenario(database: LocalDatabase, session: SessionState) -> None:
        await database.run(session, "INSERT INTO t VALUES (1, 1)")
        table = (await database.catalogs.acquire()).table(FIRST_DATABASE_ID, "t")
        assert table is not None
        others = [rows_of(table).value((1, 100))]

        def interlope(txn: LocalTransaction) -> None:
            if others:
                batch = database.store.engine.new_batch()
                mvcc.put(batch, next(iter(txn.writes)), database.store.timestamp(), others.pop())
                database.store.engine.write(batch)

        database.store.before_commit = interlope
        await database.run(session, "UPDATE t SET n = n + 1 WHERE id = 1")
        assert await rows(database, session, "SELECT n FROM t WHERE id = 1") == [(101,)]

    with_table(scenario)


@pytest.mark.parametrize(
    ("below", "above"),
    [
        (AmbiguousCommitError("?"), UnknownOutcomeError),
        (MultiRangeWriteError("2 ranges"), FeatureNotSupportedError),
        (RangeUnavailableError("r7"), CannotConnectNowError),
    ],
)
def test_errors_from_below_are_said_in_sql(below: PortError, above: type[SqlError]) -> None:
    async def scenario(database: LocalDatabase, session: SessionState) -> None:
        refusing(database, [below])
        with pytest.raises(above):
            await database.run(session, "INSERT INTO t VALUES (1, 1)")
        # An ambiguous commit is never run again by itself.
        assert await rows(database, session, "SELECT * FROM t") == []

    with_table(scenario)


def test_endless_conflicts_become_the_clients() -> None:
    async def scenario(database: LocalDatabase, session: SessionState) -> None:
        refusing(database, [TransactionRetryError("conflict")] * (ATTEMPTS_MAX + 1))
        with pytest.raises(SerializationError, match='rows of "t"'):
            await database.run(session, "INSERT INTO t VALUES (1, 1)")

    with_table(scenario)


def test_a_lease_that_ran_out_is_renewed() -> None:
    async def scenario(database: LocalDatabase, session: SessionState) -> None:
        await database.run(session, "INSERT INTO t VALUES (1, 1)")
        store = database.store
        store.clock = type(store.clock)(store.clock + (4_000_000 << 18))
        await database.run(session, "INSERT INTO t VALUES (2, 2)")
        store.clock = type(store.clock)(store.clock + (4_000_000 << 18))
        assert await rows(database, session, "SELECT n FROM t WHERE id = 2") == [(2,)]
        refusing(database, [DeadlineExceededError("late")])
        await database.run(session, "INSERT INTO t VALUES (3, 3)")

    with_table(scenario)


def test_a_cached_plan_ends_with_its_catalogue() -> None:
    async def scenario(database: LocalDatabase, session: SessionState) -> None:
        select = "SELECT * FROM t WHERE id = 1"
        await database.run(session, "INSERT INTO t VALUES (1, 1)")
        assert await rows(database, session, select) == [(1, 1)]
        await database.run(session, "TRUNCATE t")
        assert await rows(database, session, select) == []
        await database.run(session, "DROP TABLE t")
        with pytest.raises(UndefinedTableError):
            await database.run(session, select)
        await database.run(session, "CREATE TABLE t (id TEXT PRIMARY KEY)")
        with pytest.raises(SqlError):
            await database.run(session, select)

    with_table(scenario)


def test_parameters_take_the_type_that_their_context_has() -> None:
    async def scenario(database: LocalDatabase, session: SessionState) -> None:
        text = "INSERT INTO t VALUES ($1, $2)"
        await database.run(session, text, [Parameter(BIGINT, 1), Parameter(UNKNOWN, "7")])
        await database.run(session, text, [Parameter(BIGINT, 2), Parameter(UNKNOWN, None)])
        assert await rows(database, session, "SELECT n FROM t WHERE id = $1", Parameter(UNKNOWN, "1")) == [(7,)]
        assert await rows(database, session, "SELECT n FROM t WHERE id = ?", Parameter(BIGINT, 2)) == [(None,)]
        with pytest.raises(InvalidTextError):
            await database.run(session, text, [Parameter(BIGINT, 3), Parameter(UNKNOWN, "x")])
        with pytest.raises(UndefinedParameterError):
            await database.run(session, text, [Parameter(BIGINT, 3)])
        with pytest.raises(UniqueViolationError, match="t_pkey") as caught:
            await database.run(session, text, [Parameter(BIGINT, 1), Parameter(BIGINT, 1)])
        assert caught.value.detail == "Key (id)=(1) already exists."

    with_table(scenario)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT n + 1 FROM t WHERE id = 1",
        "SELECT * FROM t AS x WHERE x.id IN (1, 2) AND x.n > 0",
        "INSERT INTO t VALUES (5, 5) RETURNING id",
        "INSERT INTO t VALUES (1, 1) ON CONFLICT (id) DO UPDATE SET n = excluded.n",
        "UPDATE t SET n = n * 2 WHERE id = 1",
        "DELETE FROM t WHERE id = 1",
    ],
)
def test_statements_by_key_run_no_stage(sql: str) -> None:
    async def scenario(database: LocalDatabase, session: SessionState) -> None:
        await database.run(session, "INSERT INTO t VALUES (1, 1), (2, 2)")
        await database.run(session, sql)
        assert database.runner.stages == []
        await database.run(session, "SELECT * FROM t")
        assert len(database.runner.stages) == 1

    with_table(scenario)


def test_a_change_of_the_catalogue_while_others_run() -> None:
    async def scenario(database: LocalDatabase, session: SessionState) -> None:
        async def insert(base: int) -> None:
            for number in range(20):
                await database.run(SessionState(), f"INSERT INTO t VALUES ({base + number}, 0)")
                await trio.lowlevel.checkpoint()

        async def change() -> None:
            for number in range(3):
                await database.run(SessionState(), f"CREATE TABLE t{number} (a INT)")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(insert, 0)
            nursery.start_soon(insert, 100)
            nursery.start_soon(change)
        assert await rows(database, session, "SELECT count(*) FROM t") == [(40,)]

    with_table(scenario)


def test_a_cancelled_statement_either_leaves_no_trace_or_ends_or_says_that_it_committed() -> None:
    async def scenario(database: LocalDatabase, session: SessionState) -> None:
        async def cancelled(sql: str, *, refused: bool) -> bool:
            """Run a statement that is cancelled during its commit; say whether it ended all the same."""
            session.has_committed = False
            with trio.CancelScope() as scope:

                def cancel(txn: LocalTransaction) -> None:
                    database.store.before_commit = None
                    scope.cancel()
                    if refused:
                        raise TransactionRetryError("conflict")

                database.store.before_commit = cancel
                await database.run(session, sql)
                return True
            return False

        assert not await cancelled("INSERT INTO t VALUES (1, 1)", refused=True)
        assert not session.has_committed
        assert await rows(database, session, "SELECT count(*) FROM t") == [(0,)]
        assert await cancelled("INSERT INTO t VALUES (1, 1)", refused=False)
        assert session.has_committed
        assert await rows(database, session, "SELECT count(*) FROM t") == [(1,)]

        assert not await cancelled("CREATE TABLE u (a INT)", refused=True)
        assert not session.has_committed
        assert (await load_catalog(database.store.begin())).table(FIRST_DATABASE_ID, "u") is None
        # It is cut while it waits for the other nodes.
        assert not await cancelled("CREATE TABLE u (a INT)", refused=False)
        assert session.has_committed
        assert (await load_catalog(database.store.begin())).table(FIRST_DATABASE_ID, "u") is not None

    with_table(scenario)


_OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["insert", "upsert", "update", "move", "delete"]), st.integers(0, 5), st.integers(0, 5)), max_size=25
)


@settings(max_examples=25, deadline=None)
@given(_OPERATIONS)
def test_the_rows_are_those_of_a_dictionary(operations: list[tuple[str, int, int]]) -> None:
    async def scenario(database: LocalDatabase, session: SessionState) -> None:
        model: dict[int, int] = {}
        for verb, key, value in operations:
            statement, wanted = _modelled(verb, key, value, model)
            try:
                [(result, _)] = await database.run(session, statement)
                assert (result.row_count, wanted is None) == (wanted, False), statement
            except UniqueViolationError:
                assert wanted is None, statement
        assert await rows(database, session, "SELECT id, n FROM t ORDER BY id") == sorted(model.items())

    with_table(scenario)


def _modelled(verb: str, key: int, value: int, model: dict[int, int]) -> tuple[str, int | None]:
    """Give a statement and the rows it touches in the model (None: a key twice), and change the model."""
    if verb == "insert":
        if key in model:
            return f"INSERT INTO t VALUES ({key}, {value})", None
        model[key] = value
        return f"INSERT INTO t VALUES ({key}, {value})", 1
    if verb == "upsert":
        model[key] = model[key] + value if key in model else value
        return f"INSERT INTO t VALUES ({key}, {value}) ON CONFLICT (id) DO UPDATE SET n = t.n + excluded.n", 1
    if verb == "update":
        touched = [each for each in model if each >= key]
        model.update({each: model[each] + value for each in touched})
        return f"UPDATE t SET n = n + {value} WHERE id >= {key}", len(touched)
    if verb == "move":
        moved = {each: each + value if each >= key else each for each in model}
        if len(set(moved.values())) < len(moved):
            return f"UPDATE t SET id = id + {value} WHERE id >= {key}", None
        count = sum(each >= key for each in model)
        changed = {moved[each]: n for each, n in model.items()}
        model.clear()
        model.update(changed)
        return f"UPDATE t SET id = id + {value} WHERE id >= {key}", count
    touched = [each for each in model if each == key]
    for each in touched:
        del model[each]
    return f"DELETE FROM t WHERE id = {key}", len(touched)
