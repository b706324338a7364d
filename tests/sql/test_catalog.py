"""The catalogue's rows, and the leases under which versions of it are used."""

from collections.abc import Callable

import pytest
import trio
import trio.testing

from dsdb.sql import catalog as catalog_module
from dsdb.sql.catalog import CatalogEditor, load_catalog
from dsdb.sql.catalog_lease import CatalogLeases
from dsdb.sql.errors import CannotConnectNowError
from dsdb.sql.ports import AmbiguousCommitError, TransactionRetryError
from dsdb.sql.schema import DatabaseDescriptor
from tests.sql.local_txn import LocalStore, LocalTransaction


def leases_on(store: LocalStore, node_id: int, others: list[CatalogLeases] | None = None, **options: int) -> CatalogLeases:
    async def notify(version: int) -> None:
        for other in others or ():
            await other.renew_to(version)

    return CatalogLeases(node_id=node_id, transactions=store.begin, fresh_timestamp=store.fresh_timestamp, notify=notify, **options)


def adding(name: str) -> Callable[[CatalogEditor], object]:
    async def edit(editor: CatalogEditor) -> int:
        database_id = await editor.new_id()
        editor.add_database(DatabaseDescriptor(database_id=database_id, name=name))
        return database_id

    return edit


def nothing() -> None:
    """Nobody asks when the change is made."""


async def founded() -> tuple[LocalStore, CatalogLeases]:
    store = LocalStore()
    leases = leases_on(store, 1)
    await leases.found()
    return store, leases


def test_a_change_is_stored_and_grows_the_version() -> None:
    async def scenario() -> None:
        store, leases = await founded()
        first = await leases.change(adding("one"), committed=nothing)
        second = await leases.change(adding("two"), committed=nothing)
        loaded = await load_catalog(store.begin())
        assert [database.name for database in loaded.databases()] == ["defaultdb", "one", "two"]
        assert (loaded.version, second) == (3, first + 1)
        await leases.found()
        assert (await load_catalog(store.begin())).version == 3

    trio.run(scenario)


def test_a_statement_after_the_change_sees_it() -> None:
    async def scenario() -> None:
        _, leases = await founded()
        before = await leases.acquire()
        leases.release(before)
        await leases.change(adding("one"), committed=nothing)
        after = await leases.acquire()
        assert after.database("one") is not None
        assert before.database("one") is None
        assert after.version == before.version + 1

    trio.run(scenario)


def test_a_change_waits_for_statements_of_the_version_before_the_last_on_another_node() -> None:
    async def scenario() -> None:
        store, leases = await founded()
        other = leases_on(store, 2)
        leases._notify = other.renew_to  # type: ignore[assignment]
        old = await other.acquire()
        done: list[str] = []

        async def change(name: str) -> None:
            await leases.change(adding(name), committed=nothing)
            done.append(name)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(change, "one")
            while (await load_catalog(store.begin())).version == old.version:  # noqa: ASYNC110 (the catalogue has no event)
                await trio.sleep(0.001)
            # The new version is out, and used by new statements there; the change is not done while the old one is in use.
            new = await other.acquire()
            while new.version == old.version:
                other.release(new)
                await trio.sleep(0.001)
                new = await other.acquire()
            assert done == []
            other.release(new)
            other.release(old)
        assert done == ["one"]

    trio.run(scenario)


def test_a_dead_nodes_lease_runs_out() -> None:
    async def scenario() -> None:
        store, leases = await founded()
        dead = leases_on(store, 2, duration_ms=30)
        held = await dead.acquire()

        async def tick() -> None:
            while True:
                store.clock = type(store.clock)(store.clock + (1 << 18))
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tick)
            await leases.change(adding("one"), committed=nothing)
            assert store.timestamp() > held.lease_expiration
            nursery.cancel_scope.cancel()

    trio.run(scenario)


def test_a_conflicting_change_is_run_again() -> None:
    async def scenario() -> None:
        store, leases = await founded()
        refusals = [TransactionRetryError("conflict")]

        def refuse(txn: LocalTransaction) -> None:
            if catalog_module.VERSION_KEY in txn.writes and refusals:
                raise refusals.pop()

        store.before_commit = refuse
        await leases.change(adding("one"), committed=nothing)
        assert refusals == []
        assert (await load_catalog(store.begin())).database("one") is not None

    trio.run(scenario)


def test_a_renewal_whose_outcome_is_unknown_fails_for_all_who_waited_for_it_and_leaves_no_doubt_about_their_statements() -> None:
    async def scenario() -> None:
        store, leases = await founded()
        commits, errors = [], []

        def lose(txn: LocalTransaction) -> None:
            commits.append(txn)
            raise AmbiguousCommitError("no answer")

        async def renew() -> None:
            with pytest.raises(CannotConnectNowError) as caught:
                await leases.renew()
            errors.append(str(caught.value))

        store.before_commit = lose
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(renew)
        # Each would wait for as long as a commit is tried, one after the other.
        assert (len(commits), len(errors)) == (1, 3)

    trio.run(scenario)


@pytest.mark.parametrize("is_used", [True, False])
def test_only_a_used_lease_is_kept_fresh(is_used: bool) -> None:
    async def scenario() -> None:
        _, leases = await founded()
        async with trio.open_nursery() as nursery:
            await nursery.start(leases.run)
            first = await leases.acquire()
            leases.release(first)
            before = first.lease_expiration
            leases._is_used = is_used
            await trio.sleep(10)
            assert (first.lease_expiration > before) is is_used
            nursery.cancel_scope.cancel()

    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))
