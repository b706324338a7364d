"""Very many ranges lose their leader at once: they elect others a few at a time, and one that is asked for goes first."""

import pytest
import trio
from store_cluster import Cluster, simulate

from dsdb.flow.leaders import Leaders, LeadersReply, LeadersRequest
from dsdb.kv.errors import KvError
from dsdb.kv.ids import FIRST_TABLE_RANGE, NodeId, RangeId, StoreId
from dsdb.kv.requests import ReadRequest, SplitRequest, TransferLeaseRequest
from dsdb.ranges import CachedRange
from dsdb.rpc import NotSent
from dsdb.store.config import StoreConfig

RANGES = 120
WAKES_PER_S = 20.0


def key(number: int) -> bytes:
    return b"t%04d" % number


async def split(cluster: Cluster, count: int = RANGES) -> list[RangeId]:
    """Make many ranges on three stores, all led by the first."""
    await cluster.replicate(FIRST_TABLE_RANGE, [2, 3])
    await trio.sleep(1.5)
    range_ids = [RangeId(100 + number) for number in range(count)]
    for number, made in enumerate(range_ids):
        await cluster.call(lambda rid, made=made, number=number: SplitRequest(rid, key(number), made), key(number))
    await cluster.eventually(lambda: all(len(cluster.store(number).descriptors()) == count + 1 for number in (2, 3)))
    await trio.sleep(3)
    return range_ids


def led(cluster: Cluster, range_ids: list[RangeId]) -> int:
    return sum(cluster.leaseholder(range_id) is not None for range_id in range_ids)


@pytest.mark.parametrize("restarts", [False, True])
def test_very_many_ranges_elect_leaders_a_few_at_a_time(restarts: bool) -> None:
    async def body(cluster: Cluster) -> None:
        range_ids = await split(cluster)
        lost = [StoreId(1), StoreId(2), StoreId(3)] if restarts else [StoreId(1)]
        for store_id in lost:
            cluster.kill(store_id)
        if restarts:
            for store_id in lost:
                await cluster.restart(store_id)
        # Until the promises have passed, and a second of elections.
        await trio.sleep(cluster.config.support_duration_s * 1.1 + 1.0)
        assert 0 < led(cluster, range_ids) < RANGES * 3 / 4
        assert all(store.statistics()["groups_awake"] < RANGES / 2 for store in cluster.network.stores.values())

        # The one that is asked for does not wait for its turn.
        waiting = [number for number, range_id in enumerate(range_ids) if cluster.leaseholder(range_id) is None][-10:]
        begin = trio.current_time()
        for number in waiting:
            for store in cluster.network.stores.values():
                with pytest.raises(KvError):
                    await store.serve(ReadRequest(range_ids[number], (key(number),), None))
        for number in waiting:
            await cluster.get(key(number))
        assert trio.current_time() - begin < 1.0

        await cluster.eventually(lambda: led(cluster, range_ids) == RANGES, timeout_s=RANGES / WAKES_PER_S + 2)
        await trio.sleep(3)
        assert all(store.statistics()["groups_awake"] == 0 for store in cluster.network.stores.values())

    simulate(3, body, config=StoreConfig(wakes_per_s=WAKES_PER_S))


def test_leases_of_very_many_ranges_come_back_with_a_store() -> None:
    async def body(cluster: Cluster) -> None:
        range_ids = await split(cluster)
        for store_id in (StoreId(2), StoreId(3)):
            cluster.network.isolate(store_id, cluster.ids)
        await trio.sleep(1.0)
        assert led(cluster, range_ids) == 0
        cluster.network.heal()
        await trio.sleep(1.0)
        for number in range(0, RANGES, 10):
            begin = trio.current_time()
            await cluster.get(key(number))
            assert trio.current_time() - begin < 1.0
        await cluster.eventually(lambda: led(cluster, range_ids) == RANGES, timeout_s=2 * RANGES / WAKES_PER_S + 4)

    simulate(3, body, config=StoreConfig(wakes_per_s=WAKES_PER_S))


def test_who_asks_for_all_of_very_many_ranges_gets_them_a_few_at_a_time() -> None:
    async def body(cluster: Cluster) -> None:
        range_ids = await split(cluster)
        cluster.kill(StoreId(1))
        await trio.sleep(cluster.config.support_duration_s * 1.1)
        for number, range_id in enumerate(range_ids):
            for store in cluster.network.stores.values():
                if cluster.leaseholder(range_id) is None:
                    with pytest.raises(KvError):
                        await store.serve(ReadRequest(range_id, (key(number),), None))
        await trio.sleep(1.0)
        assert 0 < led(cluster, range_ids) < RANGES * 3 / 4
        await cluster.eventually(lambda: led(cluster, range_ids) == RANGES, timeout_s=RANGES / WAKES_PER_S + 2)

    simulate(3, body, config=StoreConfig(wakes_per_s=WAKES_PER_S, wakes_wanted_per_s=WAKES_PER_S))


def test_very_many_idle_ranges_cost_what_one_costs() -> None:
    """B25: an idle cluster burns CPU.  Stores speak to each other; ranges, of which nobody wants anything, do nothing at all."""
    costs: list[list[float]] = []

    def of_idle(cluster: Cluster) -> list[float]:
        told = [store.statistics() for store in cluster.network.stores.values()]
        return [cluster.network.frames, sum(one["turns"] for one in told), sum(one["syncs"] for one in told)]

    async def idle(cluster: Cluster) -> None:
        await trio.sleep(30)
        before = of_idle(cluster)
        await trio.sleep(120)
        assert all(store.statistics()["groups_awake"] == 0 for store in cluster.network.stores.values())
        costs.append([after - then for then, after in zip(before, of_idle(cluster))])

    async def one(cluster: Cluster) -> None:
        await cluster.replicate(FIRST_TABLE_RANGE, [2, 3])
        await idle(cluster)

    async def many(cluster: Cluster) -> None:
        await split(cluster)
        await idle(cluster)

    simulate(3, one)
    simulate(3, many)
    assert all(of_many <= of_one * 1.05 for of_one, of_many in zip(*costs)), costs


def test_stores_that_support_each_other_exchange_two_frames_in_an_interval() -> None:
    """A grant goes with the next request the other way; it is sent alone to whom it would come late."""

    async def body(cluster: Cluster) -> None:
        range_ids = await split(cluster, 3)
        for number in range(len(range_ids)):
            if number % 3:
                await cluster.call(lambda rid, number=number: TransferLeaseRequest(rid, StoreId(1 + number % 3)), key(number))
        await cluster.eventually(lambda: all(cluster.leaseholder(range_id) is not None for range_id in range_ids))
        await trio.sleep(10)
        before = cluster.network.frames
        config = cluster.config
        for _ in range(120):
            await trio.sleep(0.25)
            assert led(cluster, range_ids) == len(range_ids)
            for store_id, store in cluster.network.stores.items():
                left_s = [store._context.liveness.supported_until(to) - store._context.clock.now() for to in cluster.ids if to != store_id]
                assert min(left_s) > config.support_duration_s - 3 * config.support_interval_s
        assert cluster.network.frames - before <= 30 / config.support_interval_s * 3 * 2 * 1.1

    simulate(3, body)


def test_who_leads_very_many_ranges_is_found_out_together_after_a_restart_of_all() -> None:
    """A scan of everything waits until all have leaders; a single range that is wanted meanwhile does not."""

    async def body(cluster: Cluster) -> None:
        range_ids = await split(cluster)
        for store_id in cluster.ids:
            cluster.kill(store_id)
        for store_id in cluster.ids[:2]:
            await cluster.restart(store_id)
        await trio.sleep(cluster.config.support_duration_s * 1.1)
        nodes: dict[NodeId, Leaders] = {}

        async def ask(node_id: NodeId, request: LeadersRequest) -> LeadersReply:
            if node_id not in nodes:
                raise NotSent(f"node {node_id} is away")
            return await nodes[node_id].serve(request)

        for number in (1, 2):
            clock = cluster.store(number)._context.clock
            nodes[NodeId(number)] = Leaders(node_id=NodeId(number), store=cluster.store(number), clock=clock, ask=ask)
        entries = [CachedRange(desc, None) for desc in cluster.store(1).descriptors()]
        begin = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nodes[NodeId(1)].find, entries)
            await trio.sleep(0.1)
            await cluster.get(key(RANGES // 2))
            assert trio.current_time() - begin < RANGES / WAKES_PER_S / 2
        assert trio.current_time() - begin < 3 * RANGES / WAKES_PER_S
        unknown = [entry for entry in entries if entry.leaseholder not in (StoreId(1), StoreId(2))]
        assert len(unknown) <= 8, "a few are left to who asks the ranges themselves"
        assert led(cluster, range_ids) > RANGES * 0.9

    simulate(3, body, config=StoreConfig(wakes_per_s=0.1, wakes_wanted_per_s=WAKES_PER_S))
