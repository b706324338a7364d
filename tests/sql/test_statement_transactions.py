"""Transactions of several statements over the executor: what conflicts, what is undone, and which catalogue they use."""

from collections.abc import Awaitable, Callable

import pytest
import trio

from dsdb.sql.errors import ActiveTransactionError, SqlError
from dsdb.sql.execute.session import SessionState
from dsdb.sql.execute.transactions import RENEW_AFTER_SECONDS
from dsdb.sql.ports import AmbiguousCommitError, DeadlineExceededError, PortError, RangeUnavailableError, TransactionRetryError
from dsdb.sql.rows import Row
from dsdb.sql.transaction_status import Begin, TransactionStatus
from dsdb.storage.timestamp import Timestamp, from_milliseconds
from tests.sql.conformance import LocalDatabase
from tests.sql.local_txn import LocalTransaction


class Client:
    """A session."""

    def __init__(self, database: LocalDatabase) -> None:
        self.database = database
        self.state = SessionState()

    async def run(self, text: str) -> list[Row]:
        """Run a text, and give the rows of its last statement."""
        return (await self.database.run(self.state, text))[-1][1]

    async def fail(self, text: str) -> SqlError:
        """Run a text that must fail, and give its error."""
        with pytest.raises(SqlError) as caught:
            await self.run(text)
        return caught.value


def scenario(test: Callable[[Client, Client], Awaitable[None]]) -> Callable[[], None]:
    """Run a test with two sessions of a database with a table `t` of two rows."""

    def run() -> None:
        async def main() -> None:
            database = LocalDatabase()
            await database.found()
            one, two = Client(database), Client(database)
            await one.run("CREATE TABLE t (id INT PRIMARY KEY, n INT); INSERT INTO t VALUES (1, 10), (2, 20)")
            try:
                await test(one, two)
            finally:
                database.close()

        trio.run(main)

    return run


async def _stale_read(one: Client, two: Client) -> None:
    # B18: a transaction that lost is run again by the system, with the writes that it had.
    await one.run("BEGIN; SELECT n FROM t WHERE id = 1")
    await two.run("UPDATE t SET n = 11 WHERE id = 1")
    assert await one.run("SELECT n FROM t WHERE id = 1") == [(10,)]
    await one.run("INSERT INTO t VALUES (3, 30)")
    error = await one.fail("COMMIT")
    assert error.sqlstate == "40001"
    assert error.message == 'could not serialize access: row (1) of "t" was changed by another transaction'
    assert one.state.transaction is None
    assert await one.run("SELECT * FROM t ORDER BY id") == [(1, 11), (2, 20)]


test_what_was_read_may_not_have_changed = scenario(_stale_read)


async def _write_skew(one: Client, two: Client) -> None:
    for client, other in ((one, 2), (two, 1)):
        await client.run(f"BEGIN; SELECT sum(n) FROM t; UPDATE t SET n = n - 15 WHERE id = {3 - other}")
    await one.run("COMMIT")
    assert (await two.fail("COMMIT")).sqlstate == "40001"


test_write_skew_is_refused = scenario(_write_skew)


async def _age(one: Client, two: Client) -> None:
    async def begun() -> tuple[object, object]:
        await one.run("BEGIN; SELECT n FROM t WHERE id = 1")
        txn = one.state.transaction.txn  # type: ignore[union-attr]
        return txn.start_ts, await txn.read_timestamp()

    first_age, first_read = await begun()
    assert first_age == first_read
    for _ in range(2):
        await two.run("UPDATE t SET n = n + 1 WHERE id = 1")
        await one.run("UPDATE t SET n = 0 WHERE id = 2")
        assert (await one.fail("COMMIT")).sqlstate == "40001"
        age, read = await begun()
        assert (age, read != first_read) == (first_age, True)
    await one.run("COMMIT")
    age, read = await begun()
    assert age == read


test_a_transaction_that_is_run_again_keeps_its_age = scenario(_age)


async def _locked(one: Client, two: Client) -> None:
    await one.run("BEGIN; SELECT * FROM t WHERE id = 1 FOR UPDATE")
    error = await two.fail("SELECT * FROM t WHERE id IN (1, 2) FOR UPDATE NOWAIT")
    assert (error.sqlstate, error.message) == ("55P03", 'could not obtain lock on row in relation "t"')
    assert error.detail == 'Another transaction has locked row (1) of "t".'
    error = await two.fail("UPDATE t SET n = 1 WHERE id = 1")
    assert (error.sqlstate, error.message) == ("55P03", "canceling statement due to lock timeout")
    assert await two.run("SELECT id FROM t ORDER BY id FOR UPDATE SKIP LOCKED") == [(2,)]
    assert await two.run("SELECT n FROM t WHERE id = 1") == [(10,)]
    assert await two.run("UPDATE t SET n = 21 WHERE id = 2 RETURNING n") == [(21,)]
    await one.run("ROLLBACK")
    assert await two.run("SELECT id FROM t WHERE id = 1 FOR UPDATE NOWAIT") == [(1,)]
    assert not one.database.store.locks, "a statement by itself locks for its own time"


test_who_meets_a_lock = scenario(_locked)


async def _catalogue_behind_a_lock(one: Client, two: Client) -> None:
    await one.run("BEGIN; SELECT 1 FROM t WHERE id = 2")
    await two.run("CREATE TABLE u (id INT PRIMARY KEY); UPDATE t SET n = 11 WHERE id = 1")
    one.database.store.clock = Timestamp(one.database.store.clock + from_milliseconds(3_600_000))
    assert await one.run("SELECT n FROM t WHERE id = 1 FOR UPDATE") == [(11,)]
    # Where it reads now, the newer catalogue is in force.
    assert await one.run("SELECT * FROM u") == []
    await two.run("CREATE TABLE v (id INT PRIMARY KEY); TRUNCATE t; INSERT INTO t VALUES (2, 20)")
    one.database.store.clock = Timestamp(one.database.store.clock + from_milliseconds(3_600_000))
    error = await one.fail("SELECT * FROM t WHERE id = 2 FOR UPDATE")
    assert error.message == 'could not serialize access: table "t" was changed by another transaction'


test_a_lock_moves_a_transaction_on_while_the_tables_that_it_used_are_the_same = scenario(_catalogue_behind_a_lock)


async def _joined(one: Client, two: Client) -> None:
    await one.run("CREATE TABLE u (id INT PRIMARY KEY, t INT); INSERT INTO u VALUES (7, 1), (8, 2)")
    await one.run("BEGIN; SELECT * FROM t JOIN u ON u.t = t.id WHERE t.n = 10 FOR UPDATE")
    for row in ("t WHERE id = 1", "u WHERE id = 7"):
        assert (await two.fail(f"SELECT * FROM {row} FOR UPDATE NOWAIT")).sqlstate == "55P03"
    await two.run("SELECT * FROM t JOIN u ON u.t = t.id WHERE t.id = 2 FOR UPDATE NOWAIT")
    await one.run("ROLLBACK; BEGIN; SELECT * FROM t JOIN u ON u.t = t.id WHERE t.n = 10 FOR UPDATE OF u")
    await two.run("SELECT * FROM t WHERE id = 1 FOR UPDATE NOWAIT")
    assert (await two.fail("SELECT * FROM u WHERE id = 7 FOR UPDATE NOWAIT")).sqlstate == "55P03"


test_rows_of_joined_tables_are_locked = scenario(_joined)


async def _phantom(one: Client, two: Client) -> None:
    await one.run("BEGIN; SELECT count(*) FROM t WHERE id > 5; INSERT INTO t VALUES (3, 30)")
    await two.run("INSERT INTO t VALUES (7, 70)")
    assert (await one.fail("COMMIT")).message == 'could not serialize access: row (7) of "t" was changed by another transaction'


test_a_phantom_is_refused = scenario(_phantom)


async def _reader(one: Client, two: Client) -> None:
    await one.run("BEGIN; SELECT * FROM t")
    await two.run("UPDATE t SET n = 0")
    assert await one.run("SELECT sum(n) FROM t") == [(30,)]
    await one.run("COMMIT")


test_one_that_only_reads_sees_one_state_and_commits = scenario(_reader)


async def _insert(one: Client, two: Client) -> None:
    await one.run("BEGIN; INSERT INTO t VALUES (3, 30)")
    await two.run("INSERT INTO t VALUES (3, 31)")
    assert (await one.fail("COMMIT")).sqlstate == "40001"
    assert (await one.fail("BEGIN; INSERT INTO t VALUES (3, 30)")).sqlstate == "23505"
    assert one.state.status is TransactionStatus.FAILED


test_two_that_insert_one_key = scenario(_insert)


async def _statement_is_undone(one: Client, two: Client) -> None:
    await one.run("BEGIN; UPDATE t SET n = 1 WHERE id = 1; SAVEPOINT a")
    open_now = one.state.transaction
    assert open_now is not None
    before = dict(open_now.txn.writes)  # type: ignore[attr-defined]
    assert (await one.fail("INSERT INTO t SELECT id + 5, n FROM t UNION ALL SELECT 1, 1")).sqlstate == "23505"
    assert open_now.txn.writes == before  # type: ignore[attr-defined]
    await one.run("ROLLBACK TO a; COMMIT")
    assert await one.run("SELECT * FROM t ORDER BY id") == [(1, 1), (2, 20)]


test_what_a_failed_statement_wrote_is_undone = scenario(_statement_is_undone)


async def _catalogue_changed(one: Client, two: Client) -> None:
    await one.run("BEGIN; UPDATE t SET n = 1 WHERE id = 1")
    await two.run("CREATE TABLE u (id INT PRIMARY KEY)")
    assert (await one.fail("SELECT * FROM u")).sqlstate == "42P01"
    await one.run("ROLLBACK; BEGIN; UPDATE t SET n = 1 WHERE id = 1")
    await two.run("DROP TABLE u; CREATE TABLE v (id INT PRIMARY KEY)")
    await one.run("COMMIT")
    await one.run("BEGIN; INSERT INTO v SELECT id FROM t")
    await two.run("TRUNCATE t")
    error = await one.fail("COMMIT")
    assert (error.sqlstate, error.message) == ("40001", 'could not serialize access: table "t" was changed by another transaction')
    assert one.state.transaction is None
    await one.run("INSERT INTO t VALUES (1, 1), (2, 2); BEGIN; INSERT INTO v VALUES (1)")
    await two.run("DROP TABLE v")
    assert (await one.fail("COMMIT")).message == 'could not serialize access: table "v" was dropped by another transaction'
    await one.run("BEGIN; SELECT * FROM t")
    await two.run("DROP TABLE t")
    assert await one.run("SELECT count(*) FROM t") == [(2,)]
    await one.run("COMMIT")


test_a_transaction_keeps_no_change_waiting_and_fails_for_its_own_tables_only = scenario(_catalogue_changed)


async def _first_is_repeated(one: Client, two: Client) -> None:
    leases = one.database.catalogs
    assert leases._current is not None
    leases._current.lease_expiration = from_milliseconds(1)
    await one.run("BEGIN; SELECT * FROM t; COMMIT")


test_an_idle_nodes_lease_is_renewed_for_the_first_statement = scenario(_first_is_repeated)


async def _first_that_reads_is_repeated(one: Client, two: Client) -> None:
    leases = one.database.catalogs
    await one.run("BEGIN; DROP TABLE IF EXISTS nothing")
    assert leases._current is not None
    leases._current.lease_expiration = from_milliseconds(1)
    await one.run("SELECT * FROM t; COMMIT")


test_a_lease_is_renewed_for_the_first_statement_that_uses_rows = scenario(_first_that_reads_is_repeated)


async def _commit_late(one: Client, two: Client) -> None:
    leases = one.database.catalogs
    await one.run("BEGIN; UPDATE t SET n = 5 WHERE id = 1")
    assert leases._current is not None
    leases._current.lease_expiration = from_milliseconds(1)
    transaction = one.state.transaction
    assert transaction is not None
    transaction.last_used -= 2 * RENEW_AFTER_SECONDS
    await one.run("COMMIT")
    assert await one.run("SELECT n FROM t WHERE id = 1") == [(5,)]


test_commit_after_a_pause_renews_the_lease = scenario(_commit_late)


async def _commit_of_much(one: Client, two: Client) -> None:
    # One statement that ran for longer than a lease, and no other to renew it.
    leases = one.database.catalogs
    await one.run("BEGIN; UPDATE t SET n = 6 WHERE id = 1")
    assert leases._current is not None
    assert one.state.transaction is not None
    leases._current.lease_expiration = from_milliseconds(1)
    one.state.transaction.txn.has_flushed = True  # the local one never flushes
    await one.run("COMMIT")
    assert await one.run("SELECT n FROM t WHERE id = 1") == [(6,)]


test_commit_of_what_was_flushed_renews_the_lease = scenario(_commit_of_much)


@pytest.mark.parametrize(
    ("error", "sqlstate"),
    [
        (TransactionRetryError("a split"), "40001"),
        (DeadlineExceededError("late"), "40001"),
        (AmbiguousCommitError("lost"), "40003"),
        (RangeUnavailableError("gone"), "57P03"),
    ],
)
def test_a_commit_that_fails_ends_the_transaction(error: PortError, sqlstate: str) -> None:
    async def test(one: Client, two: Client) -> None:
        def refuse(txn: LocalTransaction) -> None:
            raise error

        await one.run("SET application_name = 'before'")
        await one.run("BEGIN; SET application_name = 'within'; UPDATE t SET n = 5 WHERE id = 1")
        one.database.store.before_commit = refuse
        found = await one.fail("COMMIT")
        one.database.store.before_commit = None
        assert found.sqlstate == sqlstate
        if isinstance(error, TransactionRetryError):
            assert found.message == 'could not serialize access: rows of "t" were changed by another transaction'
        assert one.state.transaction is None
        assert await one.run("SHOW application_name") == [("before",)]
        assert await one.run("SELECT n FROM t WHERE id = 1") == [(10,)]

    scenario(test)()


async def _as_of(one: Client, two: Client) -> None:
    then = one.database.store.clock
    await one.run("UPDATE t SET n = 11 WHERE id = 1")
    assert await one.run(f"SELECT n FROM t AS OF SYSTEM TIME {then} WHERE id = 1") == [(10,)]
    assert await one.run(f"SELECT sum(a.n + b.n) FROM t a, t b AS OF SYSTEM TIME '{then}' WHERE a.id = b.id") == [(60,)]
    await one.run(f"BEGIN AS OF SYSTEM TIME {then}")
    assert await one.run("SELECT sum(n) FROM t") == [(30,)]
    assert (await one.fail("DELETE FROM t")).sqlstate == "25006"
    await one.run("ROLLBACK")
    assert (await one.fail("SELECT 1 AS OF SYSTEM TIME '1h'")).sqlstate == "22023"
    assert (await one.fail("SELECT 1 AS OF SYSTEM TIME '+1h'")).sqlstate == "22023"
    await one.run("BEGIN; SELECT 1")
    assert (await one.fail("SET TRANSACTION AS OF SYSTEM TIME '-1s'")).sqlstate == "25001"


test_reads_of_the_past = scenario(_as_of)


async def _implicit(one: Client, two: Client) -> None:
    executor, session = one.database.executor, one.state

    async def run(text: str, begin: Begin = Begin.IMPLICIT) -> None:
        [statement] = executor.prepare(text)
        result = await executor.run(session, statement, (), begin=begin)
        if result.batches is not None:
            async for _ in result.batches:
                pass

    await run("CREATE TABLE u (id INT PRIMARY KEY)")
    assert session.status is TransactionStatus.ACTIVE
    await run("INSERT INTO u VALUES (0)")
    await run("ROLLBACK")
    await run("CREATE DATABASE d")
    assert session.transaction is None
    await run("SELECT count(*) FROM t")
    await run("DROP DATABASE d")
    await run("CREATE TABLE u (id INT PRIMARY KEY)")
    with pytest.raises(ActiveTransactionError):
        await run("CREATE DATABASE d")
    await run("ROLLBACK")
    await run("CREATE TABLE u (id INT PRIMARY KEY)")
    await run("COMMIT")
    await run("SELECT 1 AS OF SYSTEM TIME '-1s'")
    assert session.transaction is None
    await run("SAVEPOINT a")
    assert session.status is TransactionStatus.ACTIVE
    await run("ROLLBACK")
    await run("INSERT INTO u VALUES (1)")
    assert await two.run("SELECT * FROM u") == []
    await run("COMMIT")
    assert await two.run("SELECT * FROM u") == [(1,)]
    with pytest.raises(SqlError):
        await run("CREATE DATABASE d", Begin.BLOCK)
    assert session.status is TransactionStatus.FAILED


test_what_begins_a_transaction_by_itself = scenario(_implicit)


async def _cancelled(one: Client, two: Client) -> None:
    await one.run("BEGIN; UPDATE t SET n = 5 WHERE id = 1")
    with trio.CancelScope() as scope:
        scope.cancel()
        await one.run("SELECT count(*) FROM generate_series(1, 1000) a")
    assert scope.cancelled_caught
    assert one.state.status is TransactionStatus.FAILED
    rolled_back = one.database.store.rolled_back
    await one.database.executor.end(one.state)
    assert one.database.store.rolled_back == rolled_back + 1
    assert await two.run("SELECT n FROM t WHERE id = 1") == [(10,)]


test_a_cancelled_statement_fails_the_transaction_and_the_end_rolls_back = scenario(_cancelled)
