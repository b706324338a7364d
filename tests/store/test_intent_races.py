"""Requests of commits over many ranges that come late, twice, out of order, or while leases move and ranges change."""

import pytest
import trio
from store_cluster import Cluster, simulate
from txn_desk import ABORTED, BORDER, COMMITTED, GONE, LEFT, PUSHED, STAGING, A, B, C, TxnDesk, X, Y, on_two_ranges

from dsdb.kv.errors import AmbiguousResult, Conflict, IntentInTheWay, KvError, RangeKeyMismatch, Unavailable
from dsdb.kv.ids import StoreId
from dsdb.kv.intents import EndTxnRequest, PrewriteRequest, Pusher, RecordReply, TxnMeta
from dsdb.kv.requests import (
    BumpReply,
    CollectGarbageRequest,
    CommitReply,
    CommitRequest,
    RefreshRequest,
    RefuseRequest,
    ScanReply,
    ScanRequest,
    SplitRequest,
    TransferLeaseRequest,
    Write,
)
from dsdb.storage import mvcc
from dsdb.storage.keys import Span, point_span
from dsdb.storage.mvcc import IntentsFoundError
from dsdb.storage.timestamp import Timestamp, after
from dsdb.store import StoreConfig
from dsdb.store.evaluate import IntentsMet
from dsdb.store.records import TxnRecord
from dsdb.store.settling import Settled


async def committed(desk: TxnDesk, *, value: bytes = b"1", removes: bool = True) -> tuple[TxnMeta, Timestamp]:
    """Commit a transaction in both ranges, to its end."""
    txn = desk.meta()
    ts = txn.first_ts
    assert await desk.lay(txn, ts, {A: value, X: value}) == ts
    assert await desk.stage(txn, ts, A, X) == RecordReply(STAGING, ts)
    assert await desk.end(txn, ts, A, expected=ts) == RecordReply(COMMITTED, ts)
    await desk.resolve(txn, ts, X)
    if removes:
        await desk.remove(txn)
    return txn, ts


async def move_lease(desk: TxnDesk, range_id: object, to: int) -> None:
    with trio.fail_after(10):
        while (store := await desk.store(range_id)).identity.store_id != to:  # type: ignore[arg-type]
            # A replica that is behind does not take over: ask again.
            await store.serve(TransferLeaseRequest(range_id, StoreId(to)))  # type: ignore[arg-type]
            await trio.sleep(0.5)


@pytest.mark.parametrize("moves_lease", [False, True])
def test_a_late_prewrite_leaves_an_orphan_that_comes_to_nothing(moves_lease: bool) -> None:
    async def body(desk: TxnDesk) -> None:
        txn, ts = await committed(desk)
        assert await desk.prewrite(txn, ts, {X: b"1"}) == after(ts)
        if moves_lease:
            # The tombstone is lost: all that is known is that the intent is a late copy, or of nobody.
            await move_lease(desk, LEFT, 2)
        assert await desk.read(X) == b"1"
        assert desk.cluster.settler.asked == [(txn.attempt, False)]
        assert await desk.read(X) == b"1"
        await desk.write(X, b"2")
        assert await desk.read(X) == b"2"
        assert (await desk.push(txn, desk.now())).status is (ABORTED if moves_lease else COMMITTED)

    on_two_ranges(body, stores=3 if moves_lease else 1)


def test_recovery_prevents_a_promised_write_that_is_late() -> None:
    async def body(desk: TxnDesk) -> None:
        txn = desk.meta()
        ts = txn.first_ts
        await desk.prewrite(txn, ts, {A: b"1"})
        await desk.stage(txn, ts, A, X)
        assert await desk.read(A) is None
        assert await desk.prewrite(txn, ts, {X: b"1"}) == after(ts)
        assert await desk.stage(txn, desk.now(), A, X) == RecordReply(ABORTED)
        assert [await desk.read(A), await desk.read(X)] == [None, None]
        assert [desk.intent(A), desk.intent(X)] == [None, None]

    on_two_ranges(body)


def test_a_push_waits_for_a_stage_that_is_proposed() -> None:
    async def body(desk: TxnDesk) -> None:
        txn = desk.meta()
        ts, told = desk.now(), []
        disk = desk.cluster.disks[StoreId(1)]
        disk.hold()

        async def push() -> None:
            told.append(await desk.push(txn, Timestamp(ts - 1)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.stage, txn, ts, A, X)
            await trio.sleep(0.01)
            nursery.start_soon(push)
            await trio.sleep(0.01)
            assert told == []
            disk.let_go()
        assert told == [RecordReply(PUSHED)]
        store = await desk.store()
        assert store._replicas[LEFT].verdicts.pushed(txn.attempt) == 0

    on_two_ranges(body)


def test_nothing_is_written_in_a_lease_whose_low_water_is_not_known_yet() -> None:
    async def body(desk: TxnDesk) -> None:
        store = await desk.store()
        replica = store._replicas[LEFT]
        await desk.write(A, b"0")
        oracle, known = desk.cluster.oracle, replica.low_term

        class Slow:
            """Answers when the lease was lost and won again."""

            latest = oracle.latest

            def hear(self, ts: Timestamp) -> None:
                pass

            def fresh_nowait(self) -> Timestamp | None:
                return None

            def newest_nowait(self) -> Timestamp | None:
                return None

            async def fresh(self) -> Timestamp:
                await trio.sleep(0.01)
                replica.low_term = 0
                return oracle.issue()

        txn = desk.meta()
        store._context.timestamps = Slow()
        request = CommitRequest(LEFT, desk.cluster.new_attempt(), desk.now(), None, (Write(A, b"1"),))
        with pytest.raises(KvError) as caught:
            await store.serve(request)
        assert isinstance(caught.value.detail, Unavailable)
        # What is about intents and records waits for it, as long as it may.
        for make in (PrewriteRequest(LEFT, txn, txn.first_ts, (A,), (b"1",)), EndTxnRequest(LEFT, txn, None)):
            began = trio.current_time()
            with pytest.raises(KvError) as caught:
                await store.serve(make)
            assert isinstance(caught.value.detail, Unavailable)
            assert trio.current_time() - began > desk.cluster.config.low_water_wait_s - 0.1
        replica.low_term = known
        store._context.timestamps = oracle
        await store.serve(request)

    on_two_ranges(body)


def test_a_reader_gives_a_staging_a_moment_to_come() -> None:
    async def body(desk: TxnDesk) -> None:
        txn = desk.meta()
        ts = txn.first_ts
        await desk.lay(txn, ts, {A: b"1", X: b"1"})
        told = []

        async def read() -> None:
            told.append(await desk.read(X))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.sleep(0.005)
            assert await desk.stage(txn, ts, A, X) == RecordReply(STAGING, ts)
            await trio.sleep(0.005)
            assert told == []
            assert await desk.end(txn, ts, expected=ts) == RecordReply(COMMITTED, ts)
        assert told == [b"1"]

    on_two_ranges(body)


def test_a_raft_snapshot_tells_what_became_of_a_record() -> None:
    async def body(desk: TxnDesk) -> None:
        done, unknown = desk.meta(), desk.meta()
        replica = (await desk.store())._replicas[LEFT]
        disk = desk.cluster.disks[StoreId(1)]
        disk.hold()
        told: list[object] = []

        async def stage(txn: TxnMeta) -> None:
            try:
                told.append(await desk.stage(txn, txn.first_ts, A))
            except KvError as error:
                told.append(type(error.detail))

        async with trio.open_nursery() as nursery:
            for txn in (done, unknown):
                nursery.start_soon(stage, txn)
                await trio.sleep(0.01)
            replica.machine.records[done.attempt] = TxnRecord(COMMITTED, done.first_ts, done.first_ts, A, (A,))
            replica.settle_by_snapshot(max(replica.pending))
            await trio.sleep(0.01)
            disk.let_go()
        # Both are woken in one moment, in any order.
        assert len(told) == 2
        assert RecordReply(COMMITTED, done.first_ts) in told
        assert AmbiguousResult in told

    on_two_ranges(body)


def test_a_reader_waits_for_a_prewrite_that_is_proposed_and_then_asks() -> None:
    async def body(desk: TxnDesk) -> None:
        txn = desk.meta()
        disk = desk.cluster.disks[StoreId(1)]
        disk.hold()
        told = []

        async def read(ts: Timestamp) -> None:
            told.append(await desk.read(A, ts))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.prewrite, txn, txn.first_ts, {A: b"1"})
            await trio.sleep(0.01)
            nursery.start_soon(read, desk.now())
            await trio.sleep(0.01)
            assert told == []
            await read(Timestamp(txn.first_ts - 1))
            assert told == [None]
            disk.let_go()
        assert told == [None, None]
        assert desk.cluster.settler.asked == [(txn.attempt, False)]

    on_two_ranges(body)


def test_a_lease_that_moves_forgets_what_was_said_and_refuses_who_it_was_said_of() -> None:
    async def body(desk: TxnDesk) -> None:
        pushed, buried, silent, staged = desk.meta(), desk.meta(), desk.meta(), desk.meta()
        ts = desk.now()
        await desk.push(pushed, ts)
        await desk.push(buried, ts, abort=True)
        await desk.prewrite(staged, staged.first_ts, {A: b"1"})
        await desk.stage(staged, staged.first_ts, A)
        await move_lease(desk, LEFT, 2)
        for txn in (pushed, buried, silent):
            assert await desk.stage(txn, desk.now(), A) == RecordReply(GONE)
            assert await desk.end(txn, None) == RecordReply(GONE)
            assert await desk.push(txn, desk.now()) == RecordReply(ABORTED)
            assert await desk.push(txn, desk.now(), abort=True) == RecordReply(ABORTED)
        # A record is not forgotten.
        assert await desk.read(A) == b"1"
        fresh = desk.meta()
        assert (await desk.stage(fresh, fresh.first_ts, A)) == RecordReply(STAGING, fresh.first_ts)

    on_two_ranges(body, stores=3)


def test_a_split_hands_records_and_intents_to_the_side_of_their_keys() -> None:
    async def body(desk: TxnDesk) -> None:
        left_keys, right_keys = (b"\x10a1", b"\x10a2"), (b"\x10c1", b"\x10c2")
        left, right, said = desk.meta(left_keys[0]), desk.meta(right_keys[0]), desk.meta(C)
        both = ((left, left_keys), (right, right_keys))
        ts = desk.now()
        for txn, keys in both:
            await desk.prewrite(txn, ts, dict.fromkeys(keys, b"1"))
            await desk.stage(txn, ts, *keys)
        await desk.push(said, desk.now(), abort=True)
        await desk.cluster.call(lambda range_id: SplitRequest(range_id, B, 9), left_keys[0])  # type: ignore[arg-type]
        await desk.store(9)  # type: ignore[arg-type]
        store = await desk.store()
        assert list(store._replicas[LEFT].machine.records) == [left.attempt]
        assert list(store._replicas[9].machine.records) == [right.attempt]  # type: ignore[index]
        with pytest.raises(KvError) as caught:
            await store.serve(EndTxnRequest(LEFT, right, ts, ts))
        assert isinstance(caught.value.detail, RangeKeyMismatch)
        # What the left side said holds on the right, whose low water is above.
        assert await desk.stage(said, desk.now(), C) == RecordReply(GONE)
        for txn, keys in both:
            assert await desk.read(keys[0]) == b"1"
            assert await desk.push(txn, ts) == RecordReply(COMMITTED, ts)
        desk.cluster.kill(StoreId(1))
        await desk.cluster.restart(StoreId(1))
        assert [await desk.read(keys[1]) for _, keys in both] == [b"1", b"1"]
        assert [await desk.push(txn, ts) for txn in (left, right)] == [RecordReply(COMMITTED, ts)] * 2

    on_two_ranges(body)


def test_a_split_waits_for_the_records_and_they_wait_for_it() -> None:
    async def body(desk: TxnDesk) -> None:
        staged, pushed = desk.meta(C), desk.meta(C)
        disk = desk.cluster.disks[StoreId(1)]
        disk.hold()
        told: list[object] = []

        async def split() -> None:
            await desk.cluster.call(lambda range_id: SplitRequest(range_id, B, 9), A)  # type: ignore[arg-type]
            told.append("split")

        async def push() -> None:
            told.append(await desk.push(pushed, desk.now(), abort=True))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.stage, staged, staged.first_ts, C)
            await trio.sleep(0.01)
            nursery.start_soon(split)
            await trio.sleep(0.01)
            nursery.start_soon(push)
            await trio.sleep(0.1)
            assert told == []
            disk.let_go()
        assert told == ["split", RecordReply(ABORTED)]
        # The push was answered by the right side.
        assert await desk.push(staged, staged.first_ts, abort=True) == RecordReply(STAGING, staged.first_ts, (C,))
        assert (await desk.store(9))._replicas[LEFT].verdicts.outcome(pushed.attempt) is None  # type: ignore[arg-type]

    on_two_ranges(body)


def test_rule_26_a_commit_in_one_range_that_a_split_parts_goes_on_in_many() -> None:
    async def body(desk: TxnDesk) -> None:
        done, refused = desk.meta(A), desk.meta(C)
        writes = (Write(A, b"1"), Write(C, b"1"))
        made = await desk.call(A, lambda range_id: CommitRequest(range_id, done.attempt, done.first_ts, None, writes))
        await desk.call(A, lambda range_id: RefuseRequest(range_id, refused.attempt, refused.first_ts))
        await desk.cluster.call(lambda range_id: SplitRequest(range_id, B, 9), A)  # type: ignore[arg-type]
        for _ in range(2):
            assert await desk.stage(done, desk.now(), A, C) == RecordReply(COMMITTED, made.ts)
            assert await desk.end(done, None) == RecordReply(COMMITTED, made.ts)
            assert await desk.stage(refused, desk.now(), C, A) == RecordReply(ABORTED)
            assert await desk.end(refused, None) == RecordReply(ABORTED)
        # Intents of an attempt that had committed lie above its versions, and are dropped.
        assert await desk.prewrite(done, done.first_ts, {A: b"1"}) > made.ts
        await desk.resolve(done, made.ts, A)
        assert await desk.read(A) == b"1"

    on_two_ranges(body)


def test_an_end_that_names_keys_of_another_range_does_nothing() -> None:
    async def body(desk: TxnDesk) -> None:
        txn = desk.meta()
        ts = txn.first_ts
        await desk.lay(txn, ts, {A: b"1", X: b"1"})
        await desk.stage(txn, ts, A, X)
        with pytest.raises(KvError) as caught:
            await (await desk.store()).serve(EndTxnRequest(LEFT, txn, ts, ts, (A, X)))
        assert isinstance(caught.value.detail, RangeKeyMismatch)
        assert desk.intent(A) is not None

    on_two_ranges(body)


def test_records_and_intents_survive_a_restart_and_come_with_a_raft_snapshot() -> None:
    async def body(cluster: Cluster) -> None:
        desk = TxnDesk(cluster)
        # After this the low water of the first lease is known.
        await desk.write(B, b"0")
        txn, final = desk.meta(), desk.meta(B)
        ts = txn.first_ts
        await desk.prewrite(txn, ts, {A: b"1", C: b"1"})
        await desk.stage(txn, ts, A, C)
        await desk.stage(final, final.first_ts, is_final=True)
        cluster.kill(StoreId(1))
        await cluster.restart(StoreId(1))
        await cluster.replicate(LEFT, [2, 3])
        await move_lease(desk, LEFT, 3)
        records = cluster.store(3)._replicas[LEFT].machine.records
        assert sorted(records) == [txn.attempt, final.attempt]
        assert await desk.push(final, desk.now()) == RecordReply(COMMITTED, final.first_ts)
        assert await desk.end(final, None) == RecordReply(COMMITTED, final.first_ts)
        assert await desk.read(C) == b"1"
        assert await desk.push(txn, ts) == RecordReply(COMMITTED, ts)

    simulate(3, body)


def test_every_request_may_come_twice() -> None:
    async def body(desk: TxnDesk) -> None:
        txn = desk.meta()
        ts = txn.first_ts
        for _ in range(2):
            assert await desk.prewrite(txn, ts, {A: b"1", B: None}) == ts
        for _ in range(2):
            assert await desk.stage(txn, ts, A, B) == RecordReply(STAGING, ts)
        for _ in range(2):
            assert await desk.query(txn, ts, A, B)
        for _ in range(2):
            assert await desk.end(txn, ts, A, expected=ts) == RecordReply(COMMITTED, ts)
        for _ in range(2):
            await desk.resolve(txn, ts, A, B)
        for _ in range(2):
            await desk.remove(txn)
        assert await desk.end(txn, ts, A, expected=ts) == RecordReply(COMMITTED, ts)
        assert await desk.stage(txn, ts, A, B) == RecordReply(COMMITTED, ts)
        assert [await desk.read(A), await desk.read(B)] == [b"1", None]

    on_two_ranges(body)


def test_a_frozen_span_meets_an_intent_midway_and_goes_on_behind_it() -> None:
    async def body(desk: TxnDesk) -> None:
        rows = {b"\x10a%03d" % number: b"%d" % number for number in range(100)}
        keys = sorted(rows)
        writer, staged = desk.meta(keys[0]), desk.meta(keys[60])
        await desk.prewrite(writer, writer.first_ts, rows)
        await desk.stage(writer, writer.first_ts, *keys, is_final=True)
        await desk.resolve(writer, writer.first_ts, *keys)
        await desk.prewrite(staged, staged.first_ts, {keys[60]: b"new"})
        await desk.stage(staged, staged.first_ts, keys[60])
        open_txn = desk.meta()
        await desk.prewrite(open_txn, open_txn.first_ts, {keys[70]: b"never"})
        store, ts = await desk.store(), desk.now()
        found: dict[bytes, bytes] = {}
        span, rounds = Span(b"\x10a", b"\x10b"), 0
        while span is not None:
            rounds += 1
            with await store.scan_snapshot(LEFT, span, ts) as frozen:
                try:
                    for chunk_keys, values in frozen.chunks(chunk_rows=10):
                        found.update(zip(chunk_keys, values, strict=True))
                        span = Span(chunk_keys[-1] + b"\x00", span.end)
                    break
                except IntentsFoundError as error:
                    met = error.intents
            await store.settle_intents(LEFT, met, ts)
        assert rounds == 3
        assert found == {**rows, keys[60]: b"new"}

    on_two_ranges(body)


def test_a_refresh_gets_intents_out_of_its_way_also_below_its_start() -> None:
    """B3: a refresh passes by an intent whose transaction commits below it."""

    async def body(desk: TxnDesk) -> None:
        live, done = desk.meta(A), desk.meta(B)
        reader = desk.cluster.new_attempt()
        await desk.prewrite(live, live.first_ts, {A: b"1"})
        await desk.prewrite(done, done.first_ts, {B: b"1"})
        low = desk.now()
        assert await desk.read(A, low) is None
        assert await desk.read(B, low) is None
        high = desk.now()
        spans = (point_span(A), Span(B, BORDER))
        await desk.call(A, lambda range_id: RefreshRequest(range_id, reader, spans, low, high))
        asked = [attempt for attempt, abort in desk.cluster.settler.asked if not abort]
        assert asked == [live.attempt, done.attempt] * 2
        # Both were pushed above, so what they commit later changes nothing; a third refresh asks for the newer time alone.
        assert await desk.stage(live, high, A) == BumpReply(high)
        later = desk.now()
        await desk.stage(live, later, A)
        with pytest.raises(KvError) as caught:
            await desk.call(A, lambda range_id: RefreshRequest(range_id, reader, spans, low, desk.now()))
        assert caught.value.detail == Conflict(A, later)

    on_two_ranges(body)


@pytest.mark.parametrize("ts_is_given", [False, True])
def test_a_large_commit_gets_intents_out_of_its_way(ts_is_given: bool) -> None:
    async def body(desk: TxnDesk) -> None:
        keys = [b"\x10b%04d" % number for number in range(1500)]
        await desk.write(keys[0], b"0")
        read_ts = desk.now()
        on_key, in_reads, below = desk.meta(), desk.meta(), desk.meta()
        await desk.prewrite(below, Timestamp(read_ts - 1), {b"\x10a1": b"1"})
        await desk.prewrite(on_key, on_key.first_ts, {keys[700]: b"other"})
        await desk.prewrite(in_reads, in_reads.first_ts, {b"\x10a5": b"1"})
        attempt, first_ts = desk.cluster.new_attempt(), desk.now()
        ts = desk.now() if ts_is_given else None
        writes = tuple([Write(key, b"mine") for key in keys])
        reads = (Span(b"\x10a", b"\x10a9"), point_span(keys[3]))
        reply = await desk.call(A, lambda range_id: CommitRequest(range_id, attempt, first_ts, ts, writes, read_ts, reads))
        assert isinstance(reply, CommitReply)
        asked = dict(desk.cluster.settler.asked)
        assert asked == {below.attempt: False, on_key.attempt: True, in_reads.attempt: False}
        assert await desk.stage(in_reads, reply.ts, b"\x10a5") == BumpReply(reply.ts)
        assert await desk.stage(on_key, desk.now(), keys[700]) == RecordReply(ABORTED)
        assert desk.versions(keys[700]) == b"mine"

    on_two_ranges(body)


def test_an_intent_that_nobody_can_settle_is_told_of_in_time() -> None:
    class Silent:
        async def settle(self, meta: TxnMeta, ts: Timestamp, *, abort: bool, pusher: Pusher) -> Settled:
            await trio.sleep_forever()
            raise AssertionError

    async def body(desk: TxnDesk) -> None:
        txn, other = desk.meta(), desk.meta()
        await desk.prewrite(txn, txn.first_ts, {A: b"1"})
        store = await desk.store()
        store.use_settler(Silent())
        for work in (desk.read(A), desk.write(A, b"2"), desk.prewrite(other, other.first_ts, {A: b"2"})):
            began = trio.current_time()
            with pytest.raises(KvError) as caught:
                await work
            assert caught.value.detail == IntentInTheWay(A)
            assert trio.current_time() - began < desk.cluster.config.intent_wait_s + 0.1
        store.use_settler(desk.cluster.settler)
        assert await desk.read(A) is None

    on_two_ranges(body)


def test_verdicts_that_are_forgotten_raise_the_low_water() -> None:
    async def body(desk: TxnDesk) -> None:
        txns = [desk.meta() for _ in range(12)]
        for txn in txns:
            await desk.push(txn, desk.now(), abort=True)
        pushed = [desk.meta() for _ in range(12)]
        ts = desk.now()
        for txn in pushed:
            await desk.push(txn, ts)
        told = [await desk.stage(txn, ts, A) for txn in txns]
        assert set(told) <= {RecordReply(ABORTED), RecordReply(GONE)}
        assert RecordReply(GONE) in told
        told_pushed = [await desk.stage(txn, ts, A) for txn in pushed]
        assert set(told_pushed) == {RecordReply(GONE), BumpReply(ts)}
        assert told_pushed[-1] == BumpReply(ts)

    on_two_ranges(body, config=StoreConfig(verdicts_max=8))


def test_many_attempts_in_the_way_are_settled_in_one_request() -> None:
    async def body(desk: TxnDesk) -> None:
        txns = [(desk.meta(Y), b"\x10a%03d" % number) for number in range(100)]
        for txn, key in txns:
            await desk.prewrite(txn, txn.first_ts, {key: b"1"})
        for txn, _ in txns[::2]:
            await desk.stage(txn, txn.first_ts, is_final=True)
        store = await desk.store()
        reader = desk.now()
        values = [await desk.read(key, reader) for _, key in txns[:4]]
        assert values == [b"1", None, b"1", None]
        reply = await store.serve(ScanRequest(LEFT, Span(b"\x10a", b"\x10b"), reader, 1000, 1 << 20))
        assert isinstance(reply, ScanReply)
        assert reply.keys == tuple(key for _, key in txns[::2])

    on_two_ranges(body)


def test_a_prewrite_must_lie_in_its_range() -> None:
    async def body(desk: TxnDesk) -> None:
        txn = desk.meta()
        store = await desk.store()
        with pytest.raises(KvError) as caught:
            await store.serve(PrewriteRequest(LEFT, txn, txn.first_ts, (A, X), (b"1", b"1")))
        assert isinstance(caught.value.detail, RangeKeyMismatch)
        assert desk.intent(A) is None

    on_two_ranges(body)


def test_collecting_versions_waits_for_writes_that_are_evaluated_and_not_applied() -> None:
    """Rule 31: such a write may stand at or below the threshold; applied behind it, it could bring back what was collected."""

    async def body(desk: TxnDesk) -> None:
        txn = desk.meta()
        store = await desk.store()
        followers = [store_id for store_id in desk.cluster.ids if store_id != store.identity.store_id]
        for store_id in followers:
            desk.cluster.disks[store_id].hold()
        replica = store._replicas[LEFT]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.prewrite, txn, txn.first_ts, {A: b"1"})
            await trio.sleep(0.2)
            assert len(replica.pending) == 1
            nursery.start_soon(store.serve, CollectGarbageRequest(LEFT, desk.now()))
            await trio.sleep(0.2)
            assert len(replica.pending) == 1, "the command that collects is not in the log before the write is applied"
            for store_id in followers:
                desk.cluster.disks[store_id].let_go()
        assert replica.machine.state.threshold > txn.first_ts
        assert desk.intent(A) is not None

    on_two_ranges(body, stores=3)


def test_whose_time_is_over_when_it_meets_an_intent_again_is_told_of_the_intent() -> None:
    """A request may have waited for latches longer than for intents: the time that is left for these is below nothing then."""

    async def body(desk: TxnDesk) -> None:
        txn = desk.meta()
        await desk.prewrite(txn, txn.first_ts, {A: b"1"})
        store = await desk.store(LEFT)
        clearing, replica = store._serving._clearing, store._replicas[LEFT]
        intent = mvcc.get_intent(store._context.engine, A)
        assert intent is not None
        met = IntentsMet([(A, intent)], desk.now(), is_write=True)
        with pytest.raises(KvError) as caught:
            await clearing.clear(replica, met, Pusher(desk.now()), store._context.clock.now() - 1)
        assert caught.value.detail == IntentInTheWay(A)

    on_two_ranges(body)
