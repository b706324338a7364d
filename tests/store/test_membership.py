"""Changes of replicas outlive whoever asked, leave a quorum and no remains; and reports tell what has changed, and nothing else."""

import contextlib

import pytest
import trio
from store_cluster import NEVER, Cluster, simulate

from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor
from dsdb.kv.errors import InvalidRequest, KvError
from dsdb.kv.ids import SYSTEM_RANGE, NodeId, RangeId, StoreId
from dsdb.kv.requests import ChangeReplicasRequest
from dsdb.raft.messages import ReplicaId
from dsdb.store import Store

TABLES = RangeId(2)


def on(store: int, *, node: int | None = None) -> ReplicaDescriptor:
    return ReplicaDescriptor(ReplicaId(0), NodeId(node or store), StoreId(store))


def described(store: Store) -> RangeDescriptor:
    status = store.range_status(TABLES)
    assert status is not None
    return status.descriptor


def has(store: Store) -> bool:
    return any(desc.range_id == TABLES for desc in store.descriptors())


async def refusal(store: Store, request: ChangeReplicasRequest) -> str:
    with pytest.raises(KvError) as caught:
        await store.serve(request)
    assert isinstance(caught.value.detail, InvalidRequest), caught.value
    return caught.value.detail.reason


def test_a_change_goes_on_when_whoever_asked_for_it_is_gone() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.put(b"\x10a", b"1")
        leader = await cluster.wait_leaseholder(TABLES)
        request = ChangeReplicasRequest(TABLES, described(leader).generation, add=(on(2), on(3)))
        with trio.move_on_after(0.002) as asking:
            await leader.serve(request)
        assert asking.cancelled_caught
        await cluster.eventually(lambda: len(described(leader).voters) == 3 and all(has(cluster.store(n)) for n in (1, 2, 3)))

    simulate(3, body)


def test_a_replaced_replica_leaves_nothing_behind_on_a_quiet_range() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.put(b"\x10a", b"1")
        await cluster.replicate(TABLES, [2, 3])
        leader = await cluster.wait_leaseholder(TABLES)
        assert leader.identity.store_id == 1
        await leader.serve(ChangeReplicasRequest(TABLES, described(leader).generation, add=(on(4),), remove=(StoreId(3),)))
        await cluster.eventually(lambda: not has(cluster.store(3)))
        assert {member.store_id for member in described(leader).voters} == {1, 2, 4}

    simulate(4, body)


def test_a_replica_that_was_removed_while_its_store_was_away_asks_when_it_hears_of_the_range() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.put(b"\x10a", b"1")
        await cluster.replicate(TABLES, [2, 3])
        leader = await cluster.wait_leaseholder(TABLES)
        cluster.network.isolate(StoreId(3), cluster.ids)
        await leader.serve(ChangeReplicasRequest(TABLES, described(leader).generation, add=(on(4),), remove=(StoreId(3),)))
        assert has(cluster.store(3))
        cluster.network.heal()
        cluster.store(3).hear_of_range(described(leader))
        await cluster.eventually(lambda: not has(cluster.store(3)), timeout_s=1.0)

    simulate(4, body)


def test_what_would_leave_a_range_worse_off_is_refused() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.put(b"\x10a", b"1")
        await cluster.replicate(TABLES, [2, 3])
        leader = await cluster.wait_leaseholder(TABLES)
        generation = described(leader).generation
        twice = await refusal(leader, ChangeReplicasRequest(TABLES, generation, add=(on(4, node=3),)))
        assert "two replicas on one node" in twice
        cluster.network.isolate(StoreId(3), cluster.ids)
        await trio.sleep(2.0)
        alone = await refusal(leader, ChangeReplicasRequest(TABLES, generation, remove=(StoreId(2),)))
        assert "no quorum" in alone
        assert described(leader).generation == generation

    simulate(4, body)


def test_a_report_tells_what_has_changed_and_an_idle_store_has_nothing_to_tell() -> None:
    async def body(cluster: Cluster) -> None:
        store = cluster.store(1)
        await cluster.put(b"\x10a", b"1")
        first = store.reports.report(0, 0, 1)
        assert first.has_more
        rest = store.reports.report(first.life, first.up_to, 100)
        assert len(first.replicas) + len(rest.replicas) == 2
        assert all(replica.lease_term for replica in (*first.replicas, *rest.replicas))
        await trio.sleep(60)
        told = store.reports.report(first.life, rest.up_to, 100)
        for _ in range(20):
            await trio.sleep(30)
            told = store.reports.report(first.life, told.up_to, 100)
        assert not told.replicas, "a range without requests is no news"
        await cluster.replicate(TABLES, [2])
        news = store.reports.report(first.life, told.up_to, 100)
        assert [len(replica.descriptor.voters) for replica in news.replicas if replica.descriptor.range_id == TABLES] == [2]
        other = cluster.store(2).reports.report(0, 0, 100)
        assert [replica.lease_term for replica in other.replicas] == [0]
        await store.serve(ChangeReplicasRequest(TABLES, described(store).generation, remove=(StoreId(2),)))
        await cluster.eventually(lambda: not has(cluster.store(2)))
        assert cluster.store(2).reports.report(other.life, other.up_to, 100).gone == (TABLES,)
        anew = store.reports.report(12345, 99, 100)
        assert len(anew.replicas) == 2, "of another life everything is told"

    simulate(3, body)


@pytest.mark.parametrize("is_joint", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_leader_that_is_removed_leaves_a_range_that_others_lead_soon(seed: int, is_joint: bool) -> None:
    """Its store lives, and the others have promised it their support: they do not wait for it for as long as it does."""

    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        # It goes on to lead another range, for which they support it.
        await cluster.replicate(SYSTEM_RANGE, [2, 3])
        await trio.sleep(1)
        store = await cluster.wait_leaseholder(TABLES)
        own = store.identity.store_id
        await cluster.put(b"\x10a", b"x")
        desc = described(store)
        # Messages are lost, and what was said once may not have been heard.
        cluster.network.drop = 0.15
        added = (on(4),) if is_joint else ()
        with contextlib.suppress(KvError):
            await store.serve(ChangeReplicasRequest(TABLES, desc.generation, add=added, remove=(own,)))
        await cluster.eventually(lambda: cluster.leaseholder(TABLES) not in (None, store))
        cluster.network.drop = 0.0
        assert await cluster.get(b"\x10a") == b"x"
        await cluster.put(b"\x10a", b"y")
        await cluster.eventually(lambda: store.range_status(TABLES) is None)

    simulate(4, body, seed=seed)


def test_a_leader_that_is_removed_and_dies_at_once_is_still_asked_for_its_vote() -> None:
    """Of two voters one is removed, and only it knows: the other one cannot lead without its vote."""

    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2])
        await trio.sleep(1)
        store = await cluster.wait_leaseholder(TABLES)
        own = store.identity.store_id
        other = next(store_id for store_id in cluster.ids if store_id != own)
        await cluster.put(b"\x10a", b"x")
        desc = described(store)

        async def remove() -> None:
            with contextlib.suppress(KvError):
                await store.serve(ChangeReplicasRequest(TABLES, desc.generation, remove=(own,)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(remove)
            with trio.fail_after(5):
                while described(store).replica_on(own) is not None:  # noqa: ASYNC110  # what is waited for has no event
                    await trio.sleep(0.0001)
            cluster.network.isolate(own, cluster.ids)
            await trio.sleep(0.05)
            assert described(cluster.store(other)).replica_on(own) is not None
            cluster.engines[own].sync()
            cluster.kill(own)
            nursery.cancel_scope.cancel()
        cluster.network.heal()
        await cluster.restart(own)
        await cluster.eventually(lambda: cluster.leaseholder(TABLES) is cluster.store(other))
        assert await cluster.get(b"\x10a") == b"x"
        await cluster.eventually(lambda: cluster.store(own).range_status(TABLES) is None)

    simulate(2, body)


@pytest.mark.parametrize("is_joint", [False, True])
def test_a_voter_that_was_removed_votes_until_a_quorum_of_the_others_knows(is_joint: bool) -> None:
    """The leader dies for good when only it, and whom it removed, know of that: the others have no quorum without the removed one."""

    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3] if is_joint else [2, 3, 4])
        await cluster.put(b"\x10a", b"x")
        leader = await cluster.wait_leaseholder(TABLES)
        assert leader.identity.store_id == 1
        change = ChangeReplicasRequest(TABLES, described(leader).generation, add=(on(4),) if is_joint else (), remove=(StoreId(3),))

        async def replace() -> None:
            with contextlib.suppress(KvError):
                await leader.serve(change)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(replace)
            with trio.fail_after(5):
                while described(leader).replica_on(StoreId(3)) is not None:  # noqa: ASYNC110  # what is waited for has no event
                    await trio.sleep(0.0001)
            cluster.network.isolate(StoreId(1), [StoreId(2), StoreId(4)])
            await trio.sleep(0.05)
            nursery.cancel_scope.cancel()
        assert all(described(cluster.store(n)).replica_on(StoreId(3)) is not None for n in (2, 4)), "they know already"
        cluster.kill(StoreId(1))
        await cluster.eventually(lambda: cluster.leaseholder(TABLES) is not None)
        assert await cluster.get(b"\x10a") == b"x"
        await cluster.put(b"\x10a", b"y")
        await cluster.eventually(lambda: not has(cluster.store(3)))

    simulate(4, body)


@pytest.mark.parametrize("is_catching_up", [False, True])
def test_a_change_ends_soon_after_the_store_of_its_learner_died_for_good(is_catching_up: bool) -> None:
    """Before the Raft snapshot is there, or before what follows it in the log is; and nothing is left of it."""

    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        await cluster.put(b"\x10a", b"x")
        leader = await cluster.wait_leaseholder(TABLES)
        before = {member.store_id for member in described(leader).voters}
        told: list[str] = []

        async def add() -> None:
            try:
                await leader.serve(ChangeReplicasRequest(TABLES, described(leader).generation, add=(on(4),), remove=(StoreId(3),)))
            except KvError as error:
                told.append(str(error))

        cluster.disks[StoreId(4)].hold()
        cluster.wires[leader.identity.store_id].chunks_max = NEVER if is_catching_up else 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(add)
            await cluster.eventually(lambda: described(leader).replica_on(StoreId(4)) is not None)
            await trio.sleep(0.5)
            assert has(cluster.store(4)) == is_catching_up
            cluster.kill(StoreId(4))
            died = trio.current_time()
        assert told
        assert trio.current_time() - died < 3.0
        assert {member.store_id for member in described(leader).replicas} == before
        await cluster.put(b"\x10a", b"y")

    simulate(4, body)
