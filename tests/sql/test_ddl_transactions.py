"""Changes of the catalogue in transactions, from two nodes: who sees what when, what conflicts, and fences."""

from collections.abc import Awaitable, Callable

import pytest
import trio

from dsdb.sql.catalog import CatalogEditor, Fence, load_catalog
from dsdb.sql.catalog_lease import FENCE_MS, CatalogLeases
from dsdb.sql.errors import SqlError
from dsdb.sql.execute.session import SessionState
from dsdb.sql.rows import Row
from dsdb.storage.keys import prefix_span, system_key
from dsdb.storage.timestamp import Timestamp, from_milliseconds
from tests.sql.conformance import LocalDatabase
from tests.sql.local_txn import LocalTransaction


class Client:
    """A session on a node."""

    def __init__(self, database: LocalDatabase) -> None:
        self.database = database
        self.state = SessionState()

    async def run(self, text: str) -> list[Row]:
        return (await self.database.run(self.state, text))[-1][1]

    async def fail(self, text: str) -> SqlError:
        with pytest.raises(SqlError) as caught:
            await self.run(text)
        return caught.value


def node_beside(first: LocalDatabase) -> LocalDatabase:
    """Give a second node over the same store; each tells the other of changes."""
    second = LocalDatabase()
    second.store, store = first.store, first.store
    leases = CatalogLeases(
        node_id=2,
        transactions=store.begin,
        fresh_timestamp=store.fresh_timestamp,
        notify=first.catalogs.renew_to,
        duration_ms=3_600_000,
    )
    first.catalogs._notify = leases.renew_to  # type: ignore[assignment]
    second.catalogs = second.services.catalogs = leases
    second.services.begin = second.services.sequences._begin = store.begin
    return second


def scenario(test: Callable[[Client, Client], Awaitable[None]]) -> Callable[[], None]:
    """Run a test with a session on each of two nodes, and a table `t` of two rows."""

    def run() -> None:
        async def main() -> None:
            database = LocalDatabase()
            await database.found()
            beside = node_beside(database)
            one, two = Client(database), Client(beside)
            await one.run("CREATE TABLE t (id INT PRIMARY KEY, n INT); INSERT INTO t VALUES (1, 10), (2, 20)")
            await two.run("SELECT 1")
            try:
                await test(one, two)
            finally:
                database.close()
                beside.close()

        trio.run(main)

    return run


async def _hidden(one: Client, two: Client) -> None:
    await one.run("BEGIN; CREATE TABLE u (id INT PRIMARY KEY); INSERT INTO u VALUES (1); INSERT INTO t VALUES (3, 30); TRUNCATE t")
    assert (await two.fail("SELECT * FROM u")).sqlstate == "42P01"
    assert await two.run("SELECT count(*) FROM t") == [(2,)]
    assert ("u",) not in [row[1:] for row in await two.run("SHOW TABLES")]
    await one.run("COMMIT")
    assert await two.run("SELECT * FROM u") == [(1,)]
    assert await two.run("SELECT count(*) FROM t") == [(0,)]


test_others_see_nothing_before_the_commit_and_all_after_it = scenario(_hidden)


async def _rolled_back(one: Client, two: Client) -> None:
    store = one.database.store
    before = await store.begin().scan(prefix_span(b""))
    await one.run("BEGIN; CREATE TABLE u (id SERIAL PRIMARY KEY); INSERT INTO u VALUES (DEFAULT); DROP TABLE t; ROLLBACK")
    after = dict(await store.begin().scan(prefix_span(b"")))
    changed = {key for key, value in before if after.pop(key, None) != value} | set(after)
    assert changed == {system_key("next_id", "descriptor")}
    # Nobody gets the ids that were given to what is gone.
    await one.run("CREATE TABLE u (id INT PRIMARY KEY)")
    first = (await load_catalog(store.begin())).tables(1)[-1].table_id
    await one.run("BEGIN; DROP TABLE u; CREATE TABLE u (id INT PRIMARY KEY); COMMIT")
    assert (await load_catalog(store.begin())).tables(1)[-1].table_id == first + 1
    assert first == 5


test_a_rollback_leaves_nothing_but_used_ids = scenario(_rolled_back)


@pytest.mark.parametrize(
    ("mine", "theirs", "sqlstate", "message"),
    [
        ("CREATE TABLE u (id INT)", "CREATE TABLE u (id INT)", "40001", '"u" was created by another transaction'),
        ("CREATE SEQUENCE u", "CREATE TABLE u (id INT)", "40001", '"u" was created by another transaction'),
        ("DROP TABLE t", "DROP TABLE t", "40001", 'table "t" was dropped by another transaction'),
        ("DROP TABLE t", "TRUNCATE t", "40001", 'table "t" was changed by another transaction'),
        ("CREATE TABLE u AS SELECT * FROM t", "TRUNCATE t", "40001", 'table "t" was changed by another transaction'),
        ("CREATE TABLE u (id INT)", "CREATE TABLE v (id INT)", None, ""),
        ("TRUNCATE t", "CREATE TABLE v (id INT); DROP TABLE v", None, ""),
        ("CREATE TABLE u AS SELECT * FROM t", "UPDATE t SET n = 11 WHERE id = 1", "40001", 'row (1) of "t" was changed by another'),
        ("SELECT * FROM t; TRUNCATE t", "UPDATE t SET n = 11 WHERE id = 1", "40001", 'row (1) of "t" was changed by another'),
        ("INSERT INTO t VALUES (3, 30); TRUNCATE t", "INSERT INTO t VALUES (4, 40)", None, ""),
    ],
)
def test_what_conflicts(mine: str, theirs: str, sqlstate: str | None, message: str) -> None:
    async def test(one: Client, two: Client) -> None:
        await one.run(f"BEGIN; {mine}")
        await two.run(theirs)
        if sqlstate is None:
            await one.run("COMMIT")
        else:
            error = await one.fail("COMMIT")
            assert error.sqlstate == sqlstate
            assert message in error.message
        assert one.state.transaction is None
        assert one.database.store.locks == {}
        assert (await load_catalog(one.database.store.begin())).fences == {}
        await two.run("SELECT count(*) FROM t") if "DROP TABLE t" not in mine + theirs else None

    scenario(test)()


async def _late_writer(one: Client, two: Client) -> None:
    # A writer under the version before may commit after the one that empties the table: what it wrote would be in neither.
    store, leases = one.database.store, two.database.catalogs
    await one.run("CREATE TABLE kept (id INT PRIMARY KEY, n INT)")
    await one.run("BEGIN; INSERT INTO kept SELECT * FROM t; TRUNCATE t")
    catalog = await leases.acquire()
    table = catalog.table(1, "t")
    assert table is not None
    outcome: list[str] = []

    async def commit() -> None:
        outcome.append((await one.fail("COMMIT")).message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(commit)
        for _ in range(50):
            await trio.sleep(0.001)
        late = store.begin()
        late.put(_row_key(one, 3), b"late")
        await late.commit(deadline=catalog.lease_expiration)
        leases.release(catalog)
    assert outcome == ['could not serialize access: row (3) of "t" was changed by another transaction']
    assert (await load_catalog(store.begin())).fences == {}


def _row_key(client: Client, number: int) -> bytes:
    from dsdb.sql.rows import primary_key

    catalog = client.database.catalogs._current
    assert catalog is not None
    table = catalog.table(1, "t")
    assert table is not None
    return primary_key(table, [number])


test_who_empties_a_table_sees_all_that_was_written_to_it = scenario(_late_writer)


async def _waits(one: Client, two: Client) -> None:
    results: list[object] = []
    store = one.database.store
    gate = trio.Event()
    plain = LocalTransaction.commit

    async def slow(self: LocalTransaction, **options: Timestamp | None) -> Timestamp:
        if any(key.startswith(system_key("garbage")) for key in self.writes):
            gate.set()
            for _ in range(100):
                await trio.sleep(0.001)
            assert results == [], "a fence stands"
        return await plain(self, **options)

    LocalTransaction.commit = slow  # type: ignore[method-assign]

    async def statement(client: Client, text: str) -> None:
        await gate.wait()
        results.append(await client.run(text))

    others = [Client(two.database), Client(two.database)]
    await others[1].run("BEGIN; INSERT INTO t VALUES (7, 70)")
    try:
        async with trio.open_nursery() as nursery:
            await one.run("BEGIN; UPDATE t SET n = 0; TRUNCATE t; INSERT INTO t VALUES (9, 90)")
            nursery.start_soon(one.run, "COMMIT")
            nursery.start_soon(statement, two, "SELECT id FROM t")
            nursery.start_soon(statement, others[0], "BEGIN; UPDATE t SET n = 91; COMMIT")
            await gate.wait()
            assert (await others[1].fail("COMMIT")).sqlstate == "40001"
    finally:
        LocalTransaction.commit = plain  # type: ignore[method-assign]
    assert results[0] == [(9,)] or results[1] == [(9,)]
    assert (await load_catalog(store.begin())).fences == {}
    assert await two.run("SELECT * FROM t") == [(9, 91)]


test_statements_wait_for_who_empties_their_table = scenario(_waits)


async def _left_fence(one: Client, two: Client) -> None:
    store = one.database.store

    async def edit(editor: CatalogEditor) -> None:
        table = editor.catalog.table(1, "t")
        assert table is not None
        editor.set_fence(Fence(table.table_id, b"dead", Timestamp(store.timestamp() + from_milliseconds(FENCE_MS))))

    await one.database.catalogs.change(edit, committed=lambda: None)
    await two.run("CREATE TABLE u (id INT PRIMARY KEY); INSERT INTO u VALUES (1)")
    await two.run("BEGIN; INSERT INTO u VALUES (2)")
    assert (await two.fail("SELECT * FROM t")).message == (
        'could not serialize access: table "t" is being changed by another transaction'
    )
    await two.run("ROLLBACK; BEGIN; SELECT * FROM u; TRUNCATE u")
    await two.run("COMMIT")
    with trio.move_on_after(0.1) as scope:
        await two.run("SELECT * FROM t")
    assert scope.cancelled_caught
    store.clock = Timestamp(store.clock + from_milliseconds(FENCE_MS + 1))
    assert await two.run("SELECT count(*) FROM t") == [(2,)]
    assert (await load_catalog(store.begin())).fences == {}


test_a_fence_that_was_left_is_taken_down_when_its_time_is_over = scenario(_left_fence)


async def _cancelled(one: Client, two: Client) -> None:
    held = await two.database.catalogs.acquire()
    await one.run("BEGIN; SELECT * FROM t; DROP TABLE t")

    async def let_go() -> None:
        await trio.sleep(0.2)
        two.database.catalogs.release(held)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(let_go)
        with trio.move_on_after(0.1) as scope:
            await one.run("COMMIT")
    assert scope.cancelled_caught
    assert (await load_catalog(one.database.store.begin())).fences == {}
    await one.database.executor.end(one.state)
    await two.run("UPDATE t SET n = 0 WHERE id = 1")
    assert await one.run("SELECT sum(n) FROM t") == [(20,)]


test_a_cancelled_commit_takes_its_fences_down = scenario(_cancelled)
