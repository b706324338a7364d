"""Several stores with replicas of one range: membership, lease moves, crashes, partitions."""

import random

import pytest
import trio
from store_cluster import Cluster, simulate

from dsdb.kv.errors import AmbiguousResult, KvError, NotLeaseholder, Unavailable
from dsdb.kv.ids import RangeId, StoreId
from dsdb.kv.requests import (
    ChangeReplicasRequest,
    CommitRequest,
    DescribeRequest,
    ReadRequest,
    SplitRequest,
    TransferLeaseRequest,
    Write,
)
from dsdb.raft.config import RaftConfig
from dsdb.storage import mvcc
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import MAX_TIMESTAMP
from dsdb.storage.versions import View
from dsdb.store import StoreConfig

TABLES = RangeId(2)


def key(number: int) -> bytes:
    return b"\x10%08d" % number


def test_replicas_are_added_by_snapshot_and_follow_the_log() -> None:
    async def body(cluster: Cluster) -> None:
        for number in range(50):
            await cluster.put(key(number), b"before")
        await cluster.replicate(TABLES, [2, 3])
        for number in range(50, 60):
            await cluster.put(key(number), b"after")
        leader = cluster.store(1)
        applied = leader.range_status(TABLES).applied
        await cluster.eventually(lambda: all(cluster.store(n).range_status(TABLES).applied >= applied for n in (2, 3)))
        assert cluster.wires[StoreId(1)].snapshots == 2
        assert [r.store_id for r in cluster.store(3).descriptors()[0].voters] == [1, 2, 3]
        assert cluster.store(2).statistics()["keys"] > 60

    simulate(3, body)


def test_a_killed_leader_is_replaced_within_about_a_second() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        for number in range(20):
            await cluster.put(key(number), b"%d" % number)
        cluster.kill(StoreId(1))
        begin = trio.current_time()
        await cluster.wait_leaseholder(TABLES)
        assert trio.current_time() - begin < 1.3
        for number in range(20):
            assert await cluster.get(key(number)) == b"%d" % number
        await cluster.put(key(1), b"new")
        await cluster.restart(StoreId(1))
        await cluster.eventually(
            lambda: cluster.store(1).range_status(TABLES).applied == cluster.leaseholder(TABLES).range_status(TABLES).applied
        )

    simulate(3, body)


def test_a_partitioned_leader_stops_serving_before_the_next_one_starts() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        await cluster.put(key(1), b"old")
        old = cluster.store(1)
        cluster.network.isolate(StoreId(1), cluster.ids)
        ended = started = None
        while started is None:
            await trio.sleep(0.005)
            if ended is None and not old.holds_lease(TABLES):
                ended = trio.current_time()
            if any(cluster.store(n).holds_lease(TABLES) for n in (2, 3)):
                started = trio.current_time()
        assert ended is not None
        assert ended < started
        with pytest.raises(KvError) as caught:
            old.try_serve(ReadRequest(TABLES, (key(1),), cluster.oracle.issue()))
        assert isinstance(caught.value.detail, NotLeaseholder)
        await cluster.put(key(1), b"new")
        cluster.network.heal()
        assert await cluster.get(key(1)) == b"new"

    # Without the core's own check of its quorum in time: the lease alone must do.
    simulate(3, body, config=StoreConfig(raft=RaftConfig(election_ticks=200)))


def test_without_a_quorum_requests_fail_in_bounded_time() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        await cluster.put(key(1), b"there")
        store = cluster.store(1)
        cluster.kill(StoreId(2))
        cluster.kill(StoreId(3))
        begin = trio.current_time()
        request = CommitRequest(TABLES, cluster.new_attempt(), cluster.oracle.issue(), None, (Write(key(2), b"x"),))
        with pytest.raises(KvError) as caught:
            await store.serve(request)
        assert isinstance(caught.value.detail, AmbiguousResult)
        assert trio.current_time() - begin < 6
        with pytest.raises(KvError) as caught:
            await store.serve(ReadRequest(TABLES, (key(1),), None))
        assert isinstance(caught.value.detail, NotLeaseholder | Unavailable)
        await cluster.restart(StoreId(2))
        assert await cluster.get(key(1)) == b"there"

    simulate(3, body)


def test_a_commit_waits_until_it_is_durable_on_a_quorum() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        cluster.disks[StoreId(2)].hold()
        cluster.disks[StoreId(3)].hold()
        store = cluster.store(1)

        def commit(number: int) -> CommitRequest:
            return CommitRequest(TABLES, cluster.new_attempt(), cluster.oracle.issue(), None, (Write(key(number), b"x"),))

        with pytest.raises(KvError) as caught:
            await store.serve(commit(1))
        assert isinstance(caught.value.detail, AmbiguousResult)
        cluster.disks[StoreId(2)].let_go()
        assert await cluster.get(key(1)) == b"x"
        # Two durable copies are a quorum, also without the leader's own.
        cluster.disks[StoreId(3)].let_go()
        await cluster.put(key(2), b"y")
        store = await cluster.wait_leaseholder(TABLES)
        cluster.disks[store.identity.store_id].hold()
        await store.serve(commit(2))
        assert await cluster.get(key(2)) == b"x"
        cluster.disks[store.identity.store_id].let_go()

    simulate(3, body)


def test_a_store_keeps_the_promises_of_its_earlier_life() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        await trio.sleep(1)
        one, two, three = cluster.ids
        # The promise of store 3 is half over, that of store 2 fresh, when store 2 restarts and store 1 is alone.
        cluster.network.cut |= {(one, three)}
        await trio.sleep(0.6)
        cluster.kill(two)
        await cluster.restart(two)
        cluster.network.isolate(one, cluster.ids)
        both = 0
        for _ in range(600):
            await trio.sleep(0.005)
            both += sum(store.holds_lease(TABLES) for store in cluster.network.stores.values()) > 1
        assert both == 0
        assert cluster.store(2).holds_lease(TABLES) or cluster.store(3).holds_lease(TABLES)

    for seed in range(4):
        simulate(3, body, seed=seed, config=StoreConfig(raft=RaftConfig(election_ticks=200)))


def test_an_idle_cluster_does_nothing_but_promise_support() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        # Until promises of an earlier life, had there been one, are over.
        await trio.sleep(1.5)
        begin = trio.current_time()
        for number in range(20):
            await cluster.call(lambda rid, number=number: SplitRequest(rid, key(number), RangeId(100 + number)), key(number))
        # The right sides are led by the store that split them, at once.
        await cluster.put(key(19), b"there")
        assert trio.current_time() - begin < 1
        assert all(cluster.store(1).holds_lease(RangeId(100 + number)) for number in range(20))
        await trio.sleep(5)
        turns = [cluster.store(number).statistics()["turns"] for number in (1, 2, 3)]
        frames = cluster.network.frames
        await trio.sleep(10)
        assert [cluster.store(number).statistics()["turns"] for number in (1, 2, 3)] == turns
        assert [cluster.store(number).statistics()["groups_awake"] for number in (1, 2, 3)] == [0, 0, 0]
        # A request and a grant for each follower's store in each interval.
        assert cluster.network.frames - frames <= 2 * 2 * (10 / cluster.config.support_interval_s + 1)
        assert await cluster.put(key(5), b"awake")

    simulate(3, body)


def test_one_deaf_follower_does_not_depose_the_leader() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        await cluster.put(key(1), b"a")
        # The new leader's store is promised support before its leadership is heard of: the promise must protect it all the same.
        await cluster.store(1).serve(TransferLeaseRequest(TABLES, StoreId(2)))
        await cluster.eventually(lambda: cluster.store(2).holds_lease(TABLES))
        term = cluster.store(2).lease_started(TABLES)
        cluster.network.cut |= {(StoreId(2), StoreId(1))}
        # Nothing is written, so that the deaf one is not refused for its log.
        await trio.sleep(5)
        assert cluster.store(2).lease_started(TABLES) == term

    simulate(3, body)


def test_a_lease_is_transferred() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        ts = await cluster.put(key(1), b"a")
        await cluster.store(1).serve(TransferLeaseRequest(TABLES, StoreId(2)))
        assert not cluster.store(1).holds_lease(TABLES)
        begin = trio.current_time()
        await cluster.eventually(lambda: cluster.store(2).holds_lease(TABLES))
        assert trio.current_time() - begin < 0.2
        assert await cluster.put(key(1), b"b") > ts

    simulate(3, body)


def test_a_replica_is_moved_and_the_old_one_is_gone() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        for number in range(30):
            await cluster.put(key(number), b"x" * 100)
        leader = await cluster.wait_leaseholder(TABLES)
        desc = (await leader.serve(DescribeRequest(TABLES))).descriptor
        added = desc.replicas[0].__class__(0, 4, StoreId(4))
        reply = await leader.serve(ChangeReplicasRequest(TABLES, desc.generation, add=(added,), remove=(StoreId(3),)))
        assert sorted(r.store_id for r in reply.descriptor.replicas) == [1, 2, 4]
        await cluster.eventually(lambda: not cluster.store(3).descriptors())
        applied = leader.range_status(TABLES).applied
        await cluster.eventually(lambda: cluster.store(4).range_status(TABLES).applied >= applied)
        # What was removed comes back only as a new replica.
        desc = reply.descriptor
        again = desc.replicas[0].__class__(0, 3, StoreId(3))
        reply = await leader.serve(ChangeReplicasRequest(TABLES, desc.generation, add=(again,)))
        assert reply.descriptor.replica_on(StoreId(3)).replica_id > 3
        assert await cluster.get(key(7)) == b"x" * 100

    simulate(4, body)


def test_a_removed_replica_that_missed_it_is_told() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        leader = await cluster.wait_leaseholder(TABLES)
        cluster.network.isolate(StoreId(3), cluster.ids)
        desc = (await leader.serve(DescribeRequest(TABLES))).descriptor
        await leader.serve(ChangeReplicasRequest(TABLES, desc.generation, remove=(StoreId(3),)))
        await trio.sleep(3)
        assert cluster.store(3).descriptors()
        cluster.network.heal()
        await cluster.eventually(lambda: not cluster.store(3).descriptors())

    simulate(3, body)


def test_a_split_under_traffic_loses_nothing() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        written: dict[bytes, bytes] = {}

        async def writer(seed: int) -> None:
            chance = random.Random(seed)
            for count in range(40):
                which = key(chance.randrange(100) * 10 + seed)
                await cluster.put(which, b"%d.%d" % (seed, count))
                written[which] = b"%d.%d" % (seed, count)

        async with trio.open_nursery() as nursery:
            for seed in range(5):
                nursery.start_soon(writer, seed)
            for number, at in ((10, 500), (11, 250), (12, 750)):
                await trio.sleep(0.02)
                await cluster.call(lambda rid, number=number, at=at: SplitRequest(rid, key(at), RangeId(number)), key(at))
        for which, value in sorted(written.items()):
            assert await cluster.get(which) == value
        assert [d.range_id for d in cluster.store(1).descriptors()] == [1, 2, 10, 11, 12]
        await cluster.eventually(lambda: all(len(cluster.store(n).descriptors()) == 4 for n in (2, 3)))

    simulate(3, body)


def test_a_follower_far_behind_takes_a_snapshot_also_across_a_split() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        leader = await cluster.wait_leaseholder(TABLES)
        cluster.network.isolate(StoreId(3), cluster.ids)
        await cluster.put(key(0), b"unseen")
        await trio.sleep(3)
        for number in range(60):
            await cluster.put(key(number), b"y" * 50)
        await leader.serve(SplitRequest(TABLES, key(30), RangeId(7)))
        for number in range(60):
            await cluster.put(key(number), b"z" * 50)
        cluster.network.heal()
        for range_id in (TABLES, RangeId(7)):
            await cluster.eventually(
                lambda range_id=range_id: (
                    cluster.store(3).range_status(range_id) is not None
                    and cluster.store(3).range_status(range_id).applied >= leader.range_status(range_id).applied
                )
            )
        assert cluster.wires[StoreId(1)].snapshots >= 3

    simulate(3, body, config=StoreConfig(log_keep_entries=10))


def test_a_crash_between_the_parts_of_a_large_commit_loses_none_and_doubles_none() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.wait_leaseholder(TABLES)
        await cluster.replicate(TABLES, [2, 3])
        ended: list[int] = []

        async def write(first: int) -> None:
            attempt, first_ts = cluster.new_attempt(), cluster.oracle.issue()
            writes = tuple(Write(b"\x10%05d" % number, b"%d" % first) for number in range(first, first + 2500))
            while True:
                try:
                    await cluster.call(lambda range_id: CommitRequest(range_id, attempt, first_ts, None, writes), writes[0].key)
                except KvError as error:
                    if not isinstance(error.detail, AmbiguousResult):
                        raise
                else:
                    ended.append(first)
                    return

        async with trio.open_nursery() as nursery:
            for first in (0, 2000, 6000):
                nursery.start_soon(write, first)
            for victim in (2, 1, 3):
                # Some turns into the commits: the number of parts that were put differs.
                for _ in range(12 + 5 * victim):
                    await trio.lowlevel.checkpoint()
                cluster.kill(StoreId(victim))
                await cluster.restart(StoreId(victim))
        assert sorted(ended) == [0, 2000, 6000]
        stores = [cluster.store(number) for number in (1, 2, 3)]
        await cluster.eventually(lambda: len({store.range_status(TABLES).applied for store in stores}) == 1)
        rows = [list(mvcc.scan(cluster.engines[store_id], Span(b"\x10", b"\x11"), View(MAX_TIMESTAMP))) for store_id in cluster.ids]
        assert rows[0] == rows[1] == rows[2]
        assert sum(len(keys) for keys, _ in rows[0]) == 4500 + 2500

    simulate(3, body)
