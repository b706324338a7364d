"""Closed and resolved timestamps: what a replica may answer without the lease, and that nothing is ever written below (rule 23)."""

from collections.abc import Mapping

import pytest
import trio
from store_cluster import Cluster, simulate
from txn_desk import BORDER, COMMITTED, LEFT, RIGHT, A, B, TxnDesk, X, on_two_ranges

from dsdb.kv.errors import BelowThreshold, KvError, NotLeaseholder, RangeKeyMismatch
from dsdb.kv.ids import RangeId, StoreId
from dsdb.kv.requests import (
    BumpReply,
    CollectGarbageRequest,
    CommitRequest,
    ReadReply,
    ReadRequest,
    ScanReply,
    ScanRequest,
    SplitRequest,
    TransferLeaseRequest,
    Write,
)
from dsdb.raft.config import RaftConfig
from dsdb.storage.engine.port import WriteBatch
from dsdb.storage.errors import WriteStallError
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp
from dsdb.store import Store, StoreConfig
from dsdb.store.closed import IssuedLine, Promises, Telling
from dsdb.store.closing import INTERVALS
from dsdb.store.command import CommitCommand
from dsdb.store.frame import ClosedUpdate

LAG_S = StoreConfig().closed_lag_s + INTERVALS * StoreConfig().closed_interval_s + 0.2
"""After so long what was issued is closed everywhere."""
HASTY = StoreConfig(closed_lag_s=0.01, closed_interval_s=0.1, raft=RaftConfig(announces_commit=False, election_ticks=200))
"""Closes nearly up to the present, and leaders are slow to step down."""
TABLES = LEFT


async def read_here(store: Store, key: bytes, ts: Timestamp, range_id: RangeId = TABLES) -> bytes | None:
    """Read the past on one store, whoever leads.  Raises KvError."""
    reply = await store.serve(ReadRequest(range_id, (key,), ts, any_replica=True))
    assert isinstance(reply, ReadReply)
    return reply.values[0]


async def three(cluster: Cluster) -> tuple[Store, list[Store]]:
    """Bring the tables onto three stores; give the leaseholder and the others."""
    await cluster.wait_leaseholder(TABLES)
    await cluster.replicate(TABLES, [2, 3])
    leader = await cluster.wait_leaseholder(TABLES)
    return leader, [store for store in cluster.network.stores.values() if store is not leader]


# ---- The parts ----


def test_the_target_is_what_was_known_a_lag_ago() -> None:
    line = IssuedLine(3.0)
    ten, twenty = Timestamp(10), Timestamp(20)
    assert [line.target(now, ten) for now in (1.0, 1.5)] == [MIN_TIMESTAMP, MIN_TIMESTAMP]
    assert [line.target(now, twenty) for now in (2.0, 3.9, 4.0)] == [MIN_TIMESTAMP, MIN_TIMESTAMP, 10]
    # Nothing new: it comes up to the newest, and stays.
    assert [line.target(now, twenty) for now in (4.9, 5.0, 100.0)] == [10, 20, 20]


class Ear:
    """A store that hears promises of one other, with the logs of its replicas."""

    def __init__(self) -> None:
        self.applied: dict[RangeId, int] = {}
        self.kept: dict[RangeId, Timestamp] = {}
        self.promises = Promises(self.keep)

    def keep(self, range_id: RangeId) -> None:
        found = self.promises.closed(range_id, self.applied.get(range_id, 0))
        self.kept[range_id] = max(self.kept.get(range_id, MIN_TIMESTAMP), found)

    def closed(self, number: int) -> Timestamp:
        self.keep(RangeId(number))
        return self.kept[RangeId(number)]

    def take(self, update: ClosedUpdate) -> bool:
        return self.promises.take(StoreId(1), update)


def ranges(**indexes: int) -> Mapping[RangeId, int]:
    return {RangeId(int(name[1:])): index for name, index in indexes.items()}


def test_ranges_at_rest_are_not_named_again_and_stay_closed() -> None:
    telling, ear = Telling(7), Ear()
    ear.applied = {RangeId(2): 5, RangeId(3): 9}
    assert ear.take(telling.update(StoreId(2), Timestamp(100), ranges(r2=5, r3=9)))
    update = telling.update(StoreId(2), Timestamp(200), ranges(r2=5, r3=10))
    assert update.changed == ((3, 10),)
    assert ear.take(update)
    # The log of range 3 is not applied up to where the new promise was made.
    assert (ear.closed(2), ear.closed(3)) == (200, 100)
    ear.applied[RangeId(3)] = 10
    assert ear.closed(3) == 200
    update = telling.update(StoreId(2), Timestamp(300), ranges(r3=10))
    assert (update.changed, update.dropped) == ((), (2,))
    assert ear.take(update)
    assert (ear.closed(2), ear.closed(3)) == (200, 300)


def test_of_a_range_that_alone_has_changed_only_it_is_told_and_a_repetition_names_none() -> None:
    telling, ear = Telling(7), Ear()
    ear.applied = {RangeId(number): 9 for number in (2, 3, 4)}
    peer, ts = StoreId(2), Timestamp(100)
    assert telling.amend(peer, ts, {}, [RangeId(2)]) is None, "a peer without replicas is told nothing"
    assert ear.take(telling.update(peer, ts, ranges(r2=5, r3=9)))
    assert telling.amend(peer, ts, ranges(r2=5), [RangeId(2)]) is None
    for indexes, looked_at, told in (
        (ranges(r4=7), [RangeId(4)], (((4, 7),), ())),
        (ranges(r2=6), [RangeId(2), RangeId(3)], (((2, 6),), (3,))),
        ({}, [], ((), ())),
    ):
        update = telling.amend(peer, ts, indexes, looked_at)
        assert update is not None
        assert (update.changed, update.dropped) == told
        assert ear.take(update)
    # What was dropped stays closed as it was; to what was named, and not dropped, the next timestamp applies.
    assert ear.take(telling.update(peer, Timestamp(200), ranges(r2=6, r4=7)))
    assert [ear.closed(number) for number in (2, 3, 4)] == [200, 100, 200]
    telling.amend(peer, ts, ranges(r4=8), [RangeId(4)])  # lost
    update = telling.amend(peer, ts, {}, [])
    assert update is not None
    assert not ear.take(update), "a repetition shows that something was missed"
    update = telling.amend(peer, ts, {}, [RangeId(2), RangeId(4)])
    assert update is not None
    assert telling.amend(peer, ts, {}, []) is None, "who believes nothing hears nothing"


def test_a_promise_for_a_later_index_does_not_count_with_an_earlier_one() -> None:
    telling, ear = Telling(7), Ear()
    ear.applied = {RangeId(2): 4}
    ear.take(telling.update(StoreId(2), Timestamp(100), ranges(r2=5)))
    ear.take(telling.update(StoreId(2), Timestamp(200), ranges(r2=6)))
    ear.applied[RangeId(2)] = 5
    assert ear.closed(2) == MIN_TIMESTAMP


def test_a_missed_update_is_noticed_and_all_is_told_anew() -> None:
    telling, ear = Telling(7), Ear()
    ear.applied = {RangeId(2): 5, RangeId(3): 5}
    ear.take(telling.update(StoreId(2), Timestamp(100), ranges(r2=5, r3=5)))
    telling.update(StoreId(2), Timestamp(200), ranges(r2=5, r3=6))  # lost
    assert not ear.take(telling.update(StoreId(2), Timestamp(300), ranges(r2=5, r3=6)))
    assert (ear.closed(2), ear.closed(3)) == (100, 100)
    assert not ear.take(telling.update(StoreId(2), Timestamp(400), ranges(r2=5, r3=6)))
    telling.begin_again(StoreId(2))
    assert ear.take(telling.update(StoreId(2), Timestamp(500), ranges(r2=5, r3=6)))
    assert (ear.closed(2), ear.closed(3)) == (500, 100)


def test_the_first_update_of_an_old_session_is_not_followed_by_those_of_a_new_one() -> None:
    telling, ear = Telling(7), Ear()
    ear.applied = {RangeId(2): 5}
    old = telling.update(StoreId(2), Timestamp(100), ranges(r2=5))
    telling.begin_again(StoreId(2))
    assert ear.take(telling.update(StoreId(2), Timestamp(200), ranges(r2=6)))
    assert ear.take(old)  # on a connection that was thought to be dead
    assert not ear.take(telling.update(StoreId(2), Timestamp(300), ranges(r2=6)))
    assert ear.closed(2) == 100


# ---- Reads without the lease ----


def test_a_follower_answers_what_is_resolved_and_sends_on_what_is_not() -> None:
    async def body(cluster: Cluster) -> None:
        _, followers = await three(cluster)
        old = await cluster.put(A, b"1")
        await trio.sleep(LAG_S)
        young = await cluster.put(A, b"2")
        await trio.sleep(0.1)
        for number, store in enumerate(followers, 1):
            assert old <= store.resolved_ts(TABLES) < young
            assert await read_here(store, A, old) == b"1"
            reply = await store.serve(ScanRequest(TABLES, Span(A, X), old, 10, 1000, any_replica=True))
            assert isinstance(reply, ScanReply)
            assert (reply.keys, reply.values) == ((A,), (b"1",))
            with await store.scan_snapshot(TABLES, Span(A, X), old, any_replica=True) as frozen:
                assert list(frozen.chunks()) == [([A], [b"1"])]
            assert store.statistics()["follower_reads"] == 3, number
            with pytest.raises(KvError) as caught:
                await read_here(store, A, young)
            assert isinstance(caught.value.detail, NotLeaseholder)
            with pytest.raises(KvError) as caught:
                await store.serve(ReadRequest(TABLES, (A,), old))
            assert isinstance(caught.value.detail, NotLeaseholder)
            with pytest.raises(KvError) as caught:
                await read_here(store, b"\x01", old)
            assert isinstance(caught.value.detail, RangeKeyMismatch)

    simulate(3, body)


def test_what_is_called_closed_everywhere_is() -> None:
    async def body(cluster: Cluster) -> None:
        leader, followers = await three(cluster)
        first = await cluster.put(A, b"0")
        for number in range(30):
            await cluster.put(A, b"%d" % number)
            await trio.sleep(0.37)
            for store in (leader, *followers):
                assert store.closing._everywhere <= store.resolved_ts(TABLES)
                assert store.closing._everywhere >= store.follower_read_ts()
        assert min(store.follower_read_ts() for store in (leader, *followers)) > first

    simulate(3, body)


def test_nothing_is_written_at_or_below_what_is_closed() -> None:
    async def body(cluster: Cluster) -> None:
        leader, followers = await three(cluster)
        ts = await cluster.put(A, b"1")
        slow, first_ts = cluster.oracle.issue(), cluster.oracle.issue()
        await trio.sleep(LAG_S)
        await cluster.put(X, b"x")
        closed = leader.resolved_ts(TABLES)
        assert closed >= slow > ts
        request = CommitRequest(TABLES, cluster.new_attempt(), first_ts, slow, (Write(B, b"late"),), ts, (), has_other_reads=True)
        reply = await leader.serve(request)
        assert isinstance(reply, BumpReply)
        assert reply.bound >= closed
        assert await read_here(followers[0], B, slow) is None

    simulate(3, body)


def test_intents_below_what_is_closed_hold_back_what_is_resolved() -> None:
    async def body(desk: TxnDesk) -> None:
        cluster = desk.cluster
        leader = await desk.store()
        followers = [store for store in cluster.network.stores.values() if store is not leader]
        meta = desk.meta()
        c = desk.now()
        p = await desk.prewrite(meta, c, {A: b"late", B: b"late"})
        assert await desk.stage(meta, c, A, B)
        await trio.sleep(2 * LAG_S)
        await desk.write(X, b"x")
        await trio.sleep(2 * LAG_S)
        later = desk.now()
        await trio.sleep(LAG_S)
        for store in (leader, *followers):
            # Not resolved as the intent stands, though closed: it may be of a commit at any timestamp above.
            assert store._replicas[LEFT].keep_closed() >= later
            assert store.resolved_ts(LEFT) == p - 1
        assert (await desk.end(meta, c, A, B)).status is COMMITTED
        await trio.sleep(1.0)
        for store in followers:
            assert store.resolved_ts(LEFT) >= later
            assert [await read_here(store, A, ts, LEFT) for ts in (Timestamp(c - 1), c, later)] == [None, b"late", b"late"]

    on_two_ranges(body, stores=3)


def test_a_write_that_is_long_in_the_log_is_above_what_is_closed() -> None:
    async def body(cluster: Cluster) -> None:
        leader, followers = await three(cluster)
        await cluster.put(A, b"1")
        await trio.sleep(1.0)
        # Nothing becomes durable, and all go on supporting each other.
        for disk in cluster.disks.values():
            disk.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cluster.put, A, b"2")
            await trio.sleep(0.1)
            (proposal,) = leader._replicas[TABLES].pending.values()
            assert isinstance(proposal.command, CommitCommand)
            await trio.sleep(1.0)
            assert leader.holds_lease(TABLES)
            assert leader._replicas[TABLES].promised >= proposal.command.ts
            for store in followers:
                assert store.resolved_ts(TABLES) < proposal.command.ts
            for disk in cluster.disks.values():
                disk.let_go()
        await trio.sleep(1.0)
        for store in followers:
            assert await read_here(store, A, proposal.command.ts) == b"2"

    simulate(3, body, config=HASTY)


def test_intents_that_nobody_ends_are_settled_when_they_are_old() -> None:
    async def body(desk: TxnDesk) -> None:
        store = await desk.store()
        meta = desk.meta()
        p = await desk.lay(meta, desk.now(), {A: b"1", B: b"2", X: b"3"})
        assert store.has_intents()
        await trio.sleep(2 * LAG_S)
        assert store.resolved_ts(LEFT) < p
        assert await store.settle_oldest_intents(p) == 0
        later = desk.now()
        await trio.sleep(LAG_S)
        assert await store.settle_oldest_intents(later) == 3
        assert not store.has_intents()
        assert min(store.resolved_ts(LEFT), store.resolved_ts(RIGHT)) >= later
        assert desk.versions(A) is None
        # Of one that is committed they become versions.
        meta, c = desk.meta(), desk.now()
        await desk.lay(meta, c, {A: b"1", X: b"3"})
        await desk.stage(meta, c, A, X)
        assert await store.settle_oldest_intents(desk.now()) == 2
        assert (desk.versions(A), desk.versions(X)) == (b"1", b"3")

    on_two_ranges(body)


def test_a_range_at_rest_is_closed_without_waking() -> None:
    async def body(cluster: Cluster) -> None:
        leader, followers = await three(cluster)
        await cluster.put(A, b"1")
        await trio.sleep(2 * LAG_S)
        index = leader._replicas[TABLES].raft.log.last_index
        for _ in range(30):
            ts = cluster.oracle.issue()  # as others would, who write elsewhere
            await trio.sleep(0.3)
            assert not any(store._loop.awake for store in cluster.network.stores.values())
        await trio.sleep(LAG_S)
        assert leader._replicas[TABLES].raft.log.last_index == index
        for store in followers:
            assert store.resolved_ts(TABLES) >= ts
            assert await read_here(store, A, ts) == b"1"

    simulate(3, body)


def test_nothing_is_sent_where_nothing_is_issued() -> None:
    async def body(cluster: Cluster) -> None:
        _, followers = await three(cluster)
        ts = await cluster.put(A, b"1")
        updates: list[ClosedUpdate] = []
        receive = followers[0].receive

        def watched(frame: object) -> None:
            update = frame.closed  # type: ignore[attr-defined]
            if update is not None:
                updates.append(update)
            receive(frame)  # type: ignore[arg-type]

        followers[0].receive = watched  # type: ignore[method-assign]
        await trio.sleep(2 * LAG_S)
        updates.clear()
        await trio.sleep(20.0)
        assert followers[0].resolved_ts(TABLES) >= ts
        assert 0 < len(updates) <= 2 * 4  # a repetition now and then, of two leaseholders at most
        assert all(not update.changed and not update.dropped for update in updates)

    simulate(3, body)


def test_lost_frames_are_made_good() -> None:
    async def body(cluster: Cluster) -> None:
        leader, followers = await three(cluster)
        await cluster.put(A, b"1")
        await trio.sleep(LAG_S)
        cluster.network.drop = 0.3
        seen: list[Timestamp] = []
        for number in range(40):
            await cluster.put(A, b"%d" % number)
            await trio.sleep(0.2)
            seen.append(followers[0].resolved_ts(TABLES))
        cluster.network.drop = 0.0
        assert seen == sorted(seen)
        ts = cluster.oracle.issue()
        await trio.sleep(LAG_S + 3 * StoreConfig().closed_repeat_s)
        assert all(store.resolved_ts(TABLES) >= ts for store in (leader, *followers))

    simulate(3, body)


# ---- What happens to ranges ----


def test_both_sides_of_a_split_stay_closed() -> None:
    async def body(cluster: Cluster) -> None:
        leader, followers = await three(cluster)
        await cluster.put(A, b"a")
        await cluster.put(X, b"x")
        ts = cluster.oracle.issue()
        await trio.sleep(2 * LAG_S)
        before = {store.identity.store_id: store.resolved_ts(TABLES) for store in (leader, *followers)}
        assert min(before.values()) >= ts
        await cluster.call(lambda range_id: SplitRequest(range_id, BORDER, RIGHT), A)
        await cluster.eventually(lambda: all(RIGHT in store._replicas for store in (leader, *followers)))
        for store in (leader, *followers):
            for range_id in (LEFT, RIGHT):
                assert store.resolved_ts(range_id) >= before[store.identity.store_id], (store.identity, range_id)
        assert await read_here(followers[0], X, ts, RIGHT) == b"x"
        later = await cluster.put(X, b"y")
        await trio.sleep(2 * LAG_S)
        assert await read_here(followers[0], X, later, RIGHT) == b"y"

    simulate(3, body)


def test_an_intent_goes_with_its_side_of_a_split() -> None:
    async def body(desk: TxnDesk) -> None:
        cluster = desk.cluster
        meta = desk.meta(anchor=X)
        p = await desk.prewrite(meta, desk.now(), {X: b"late"})
        await trio.sleep(2 * LAG_S)
        middle, third = b"\x10p", RangeId(4)
        await cluster.call(lambda range_id: SplitRequest(range_id, middle, third), X)
        await cluster.wait_leaseholder(third)
        await trio.sleep(2 * LAG_S)
        for store in cluster.network.stores.values():
            assert store.resolved_ts(third) == p - 1
            assert store.resolved_ts(RIGHT) > p

    on_two_ranges(body, stores=3)


def test_a_new_leaseholder_writes_above_what_the_one_before_has_closed() -> None:
    async def body(cluster: Cluster) -> None:
        leader, followers = await three(cluster)
        seen = MIN_TIMESTAMP
        for number in range(6):
            ts = await cluster.put(A, b"%d" % number)
            assert ts > max(store.resolved_ts(TABLES) for store in (leader, *followers)) >= seen
            seen = min(store.resolved_ts(TABLES) for store in (leader, *followers))
            await trio.sleep(LAG_S)
            leader = await cluster.wait_leaseholder(TABLES)
            others = [store_id for store_id in cluster.ids if store_id != leader.identity.store_id]
            await leader.serve(TransferLeaseRequest(TABLES, others[number % 2]))
            leader = await cluster.wait_leaseholder(TABLES, but=leader.identity.store_id)
        assert seen > MIN_TIMESTAMP

    simulate(3, body)


def test_a_leaseholder_that_was_cut_off_closes_nothing_more() -> None:
    async def body(cluster: Cluster) -> None:
        leader, followers = await three(cluster)
        await cluster.put(A, b"1")
        await trio.sleep(LAG_S)
        cluster.network.isolate(leader.identity.store_id, cluster.ids)
        # It still hears the oracle, and nobody hears it.
        await cluster.wait_leaseholder(TABLES, but=leader.identity.store_id)
        await trio.sleep(2 * LAG_S)
        ts = await cluster.put(A, b"2")
        await trio.sleep(2 * LAG_S)
        assert leader.resolved_ts(TABLES) < ts
        assert await read_here(followers[0], A, ts) == b"2"
        with pytest.raises(KvError):
            await read_here(leader, A, ts)
        cluster.network.heal()
        await trio.sleep(LAG_S + 1)
        assert await read_here(leader, A, ts) == b"2"

    simulate(3, body)


def test_who_leads_and_holds_no_lease_closes_nothing() -> None:
    async def body(cluster: Cluster) -> None:
        leader, _ = await three(cluster)
        await cluster.put(A, b"1")
        await trio.sleep(1.0)
        cluster.network.isolate(leader.identity.store_id, cluster.ids)
        successor = await cluster.wait_leaseholder(TABLES, but=leader.identity.store_id)
        ts = await cluster.put(A, b"2")
        for _ in range(40):
            cluster.oracle.issue()
            await trio.sleep(0.05)
            assert leader.resolved_ts(TABLES) < ts
        assert successor.resolved_ts(TABLES) > ts

    simulate(3, body, config=HASTY)


def test_the_past_is_read_where_nobody_leads() -> None:
    async def body(cluster: Cluster) -> None:
        leader, followers = await three(cluster)
        ts = await cluster.put(A, b"1")
        await trio.sleep(LAG_S)
        # The other two are alone, each for itself: no quorum, no lease.
        for store_id in cluster.ids:
            cluster.network.isolate(store_id, cluster.ids)
        await trio.sleep(2.0)
        for store in (leader, *followers):
            assert not store.holds_lease(TABLES)
            assert await read_here(store, A, ts) == b"1"

    simulate(3, body)


def test_what_came_with_commands_outlives_a_crash_and_intents_are_found_again() -> None:
    async def body(desk: TxnDesk) -> None:
        cluster = desk.cluster
        ts = await desk.write(A, b"1")
        await trio.sleep(2 * LAG_S)
        meta = desk.meta()
        p = await desk.prewrite(meta, desk.now(), {A: b"late"})
        await desk.write(B, b"2")
        await trio.sleep(1.0)
        victim = next(store for _, store in sorted(cluster.network.stores.items()) if not store.holds_lease(LEFT))
        store_id = victim.identity.store_id
        # Nobody tells it anything when it is back.
        cluster.network.isolate(store_id, cluster.ids)
        cluster.kill(store_id)
        store = await cluster.restart(store_id)
        assert store.resolved_ts(LEFT) == MIN_TIMESTAMP
        await trio.sleep(0.1)
        assert ts <= store.resolved_ts(LEFT) < p
        assert await read_here(store, A, ts, LEFT) == b"1"
        cluster.network.heal()
        await trio.sleep(2 * LAG_S)
        assert store.resolved_ts(LEFT) == p - 1
        assert (await desk.end(meta, None, A)).status is not COMMITTED
        await desk.resolve(meta, None, A)
        await trio.sleep(LAG_S)
        assert store.resolved_ts(LEFT) > p

    on_two_ranges(body, stores=3)


def test_a_raft_snapshot_brings_what_is_closed() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.wait_leaseholder(TABLES)
        ts = await cluster.put(A, b"1")
        await trio.sleep(2 * LAG_S)
        await cluster.put(A, b"2")
        await cluster.replicate(TABLES, [2])
        cluster.network.isolate(StoreId(2), cluster.ids)
        assert cluster.store(2).resolved_ts(TABLES) >= ts
        assert await read_here(cluster.store(2), A, ts) == b"1"

    simulate(2, body)


def test_a_follower_refuses_what_was_collected() -> None:
    async def body(cluster: Cluster) -> None:
        leader, followers = await three(cluster)
        old = await cluster.put(A, b"1")
        await cluster.put(A, b"2")
        threshold = cluster.oracle.issue()
        await leader.serve(CollectGarbageRequest(TABLES, threshold))
        await trio.sleep(LAG_S)
        for make in (
            ReadRequest(TABLES, (A,), old, any_replica=True),
            ScanRequest(TABLES, Span(A, X), old, 10, 1000, any_replica=True),
        ):
            with pytest.raises(KvError) as caught:
                await followers[0].serve(make)
            assert isinstance(caught.value.detail, BelowThreshold)
        with pytest.raises(KvError) as caught:
            await followers[0].scan_snapshot(TABLES, Span(A, X), old, any_replica=True)
        assert isinstance(caught.value.detail, BelowThreshold)

    simulate(3, body)


def test_a_disk_that_refuses_writes_answers_no_read_of_what_it_has_not_written() -> None:
    """What was applied and not written is not there to be read."""

    async def body(cluster: Cluster) -> None:
        _, followers = await three(cluster)
        await cluster.put(A, b"1")
        await trio.sleep(LAG_S)
        store = followers[0]
        engine = cluster.engines[store.identity.store_id]
        replica, write = store._replicas[TABLES], engine.write

        def refuse(batch: WriteBatch) -> None:
            if replica.machine.applied.index > replica.raft.log.applied:
                raise WriteStallError("busy")
            write(batch)

        engine.write = refuse  # type: ignore[method-assign]
        ts = await cluster.put(A, b"2")
        await trio.sleep(2 * LAG_S)
        assert store.resolved_ts(TABLES) < ts
        assert not replica.is_written
        engine.write = write  # type: ignore[method-assign]
        await trio.sleep(2 * LAG_S)
        assert await read_here(store, A, ts) == b"2"

    simulate(3, body)
