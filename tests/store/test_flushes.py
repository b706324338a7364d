"""Transactions that flush intents before their commit, request by request (rules 27 to 29)."""

from collections.abc import Mapping

import pytest
import trio
from txn_desk import ABORTED, BORDER, COMMITTED, GONE, LEFT, PUSHED, A, B, C, TxnDesk, X, Y, on_two_ranges

from dsdb.kv.errors import Conflict, InvalidRequest, KeyExists, KvError
from dsdb.kv.intents import (
    BeginTxnRequest,
    PrewriteReply,
    PrewriteRequest,
    Pusher,
    PushRequest,
    RecordReply,
    ResolveSpansRequest,
    RollBackRequest,
    SpansReply,
    StageRequest,
    TxnMeta,
    TxnStatus,
)
from dsdb.kv.locks import KeepLocksRequest
from dsdb.kv.requests import BumpReply, ReadRequest, ScanRequest, SplitRequest, TransferLeaseRequest
from dsdb.storage.keys import Span, key_after, point_span
from dsdb.storage.timestamp import Timestamp
from dsdb.store.clearing import READ_THROUGH_MIN

PENDING = TxnStatus.PENDING
LEFT_SPAN, RIGHT_SPAN = Span(A, BORDER), Span(BORDER, key_after(Y))


async def begin(desk: TxnDesk, meta: TxnMeta, *spans: Span) -> RecordReply:
    reply = await desk.call(meta.anchor, lambda range_id: BeginTxnRequest(range_id, meta, spans or (LEFT_SPAN,)))
    assert isinstance(reply, RecordReply)
    return reply


async def lay(
    desk: TxnDesk,
    meta: TxnMeta,
    ts: Timestamp,
    writes: Mapping[bytes, bytes | None],
    sequence: int = 1,
    *marks: int,
    absent: bool = False,
) -> Timestamp:
    keys = tuple(sorted(writes))
    values = tuple(writes[key] for key in keys)
    flags = b"\x01" * len(keys) if absent else b""
    reply = await desk.call(
        keys[0], lambda range_id: PrewriteRequest(range_id, meta, ts, keys, values, sequence, marks, flags, ts if absent else None)
    )
    assert isinstance(reply, PrewriteReply)
    return reply.ts


async def roll_back(desk: TxnDesk, meta: TxnMeta, to: int, sequence: int, span: Span = LEFT_SPAN) -> Timestamp:
    reply = await desk.call(span.start, lambda range_id: RollBackRequest(range_id, meta, (span,), to, sequence))
    assert isinstance(reply, SpansReply)
    assert not reply.rest
    return reply.ts


async def commit(desk: TxnDesk, meta: TxnMeta, ts: Timestamp, *spans: Span) -> RecordReply | BumpReply:
    reply = await desk.call(meta.anchor, lambda range_id: StageRequest(range_id, meta, ts, (), is_final=True, spans=spans or (LEFT_SPAN,)))
    assert isinstance(reply, RecordReply | BumpReply)
    return reply


async def resolve(desk: TxnDesk, meta: TxnMeta, commit_ts: Timestamp | None, span: Span = LEFT_SPAN) -> None:
    reply = await desk.call(span.start, lambda range_id: ResolveSpansRequest(range_id, meta.attempt, (span,), commit_ts))
    assert isinstance(reply, SpansReply)
    assert not reply.rest


async def own(desk: TxnDesk, meta: TxnMeta, key: bytes, ts: Timestamp) -> bytes | None:
    reply = await desk.call(key, lambda range_id: ReadRequest(range_id, (key,), ts, meta.attempt))
    return reply.values[0]  # type: ignore[no-any-return]  # the desk's replies are of any kind


async def push(desk: TxnDesk, meta: TxnMeta, ts: Timestamp, pusher: Pusher, *, abort: bool = True) -> RecordReply:
    reply = await desk.call(meta.anchor, lambda range_id: PushRequest(range_id, meta, ts, abort, pusher))
    assert isinstance(reply, RecordReply)
    return reply


def test_rule_27_a_flushed_transaction_commits_in_two_rounds_and_is_resolved_by_spans() -> None:
    async def body(desk: TxnDesk) -> None:
        await desk.write(B, b"old")
        meta = desk.meta()
        ts = desk.now()
        assert await begin(desk, meta, LEFT_SPAN, RIGHT_SPAN) == RecordReply(PENDING)
        assert await lay(desk, meta, ts, {A: b"1", B: None}) == ts
        assert await lay(desk, meta, ts, {X: b"3"}, 2) == ts
        assert [await own(desk, meta, key, ts) for key in (A, B, X)] == [b"1", None, b"3"]
        assert await commit(desk, meta, ts, LEFT_SPAN, RIGHT_SPAN) == RecordReply(COMMITTED, ts)
        # A reader that comes before the intents are resolved finds the record.
        assert await desk.read(A) == b"1"
        for span in (LEFT_SPAN, RIGHT_SPAN):
            await resolve(desk, meta, ts, span)
        assert [await desk.read(key) for key in (A, B, X)] == [b"1", None, b"3"]
        assert all(desk.intent(key) is None for key in (A, B, X))
        await desk.remove(meta)
        assert not (await desk.store()).has_records()

    on_two_ranges(body)


def test_readers_see_very_many_intents_of_a_committed_transaction_without_resolving_them() -> None:
    async def body(desk: TxnDesk) -> None:
        keys = [b"\x10b%04d" % number for number in range(2 * READ_THROUGH_MIN)]
        before = desk.now()
        meta = desk.meta()
        ts = desk.now()
        await begin(desk, meta)
        await lay(desk, meta, ts, dict.fromkeys(keys, b"1"))
        await commit(desk, meta, ts)
        store = await desk.store()

        async def scan(at: Timestamp) -> int:
            reply = await desk.call(A, lambda range_id: ScanRequest(range_id, LEFT_SPAN, at, 10_000, 1 << 20))
            return len(reply.keys)

        assert [await scan(desk.now()), await scan(before)] == [len(keys), 0]
        with await store.scan_snapshot(LEFT, LEFT_SPAN, desk.now()) as frozen:
            assert sum(len(found) for found, _ in frozen.chunks()) == len(keys)
        assert await desk.read(keys[7]) == b"1"
        assert all(desk.intent(key) is not None for key in keys)
        # A writer resolves what it meets, and is seen before it.
        await desk.write(keys[7], b"2")
        assert [await desk.read(key) for key in keys[6:9]] == [b"1", b"2", b"1"]
        await resolve(desk, meta, ts)
        assert [await desk.read(key) for key in keys[6:9]] == [b"1", b"2", b"1"]
        assert await scan(desk.now()) == len(keys)

    on_two_ranges(body)


def test_rule_27_a_late_copy_of_an_earlier_flush_changes_nothing() -> None:
    async def body(desk: TxnDesk) -> None:
        meta, ts = desk.meta(), desk.now()
        await begin(desk, meta)
        first = await lay(desk, meta, ts, {A: b"1", B: b"1"}, 1)
        second = await lay(desk, meta, ts, {A: b"2"}, 2)
        assert await lay(desk, meta, ts, {A: b"1", B: b"1"}, 1) == max(first, second)
        assert [await own(desk, meta, key, ts) for key in (A, B)] == [b"2", b"1"]

    on_two_ranges(body)


def test_rule_27_an_intent_that_is_replaced_never_goes_lower() -> None:
    async def body(desk: TxnDesk) -> None:
        meta, ts = desk.meta(), desk.now()
        await begin(desk, meta)
        await desk.read(A)
        bumped = await lay(desk, meta, ts, {A: b"1"}, 1)
        assert bumped > ts
        assert await lay(desk, meta, ts, {A: b"2"}, 2) >= bumped

    on_two_ranges(body)


def test_rule_27_keys_that_must_be_absent_are_looked_at_when_they_are_laid() -> None:
    async def body(desk: TxnDesk) -> None:
        await desk.write(A, b"there")
        meta = desk.meta()
        ts = desk.now()
        await begin(desk, meta)
        with pytest.raises(KvError) as caught:
            await lay(desk, meta, ts, {A: b"1", B: b"1"}, absent=True)
        assert caught.value.detail == KeyExists(A)
        assert desk.intent(B) is None
        later = await desk.write(C, b"came later")
        with pytest.raises(KvError) as caught:
            await lay(desk, meta, ts, {C: b"1"}, absent=True)
        assert caught.value.detail == Conflict(C, later)
        # What the transaction itself has removed is absent, what it has written is there.
        await lay(desk, meta, desk.now(), {A: None, B: b"1"}, 2)
        await lay(desk, meta, desk.now(), {A: b"2"}, 3, absent=True)
        with pytest.raises(KvError) as caught:
            await lay(desk, meta, desk.now(), {B: b"2"}, 3, absent=True)
        assert caught.value.detail == KeyExists(B)
        # A copy of the same write is no second one.
        await lay(desk, meta, desk.now(), {A: b"2"}, 3, absent=True)

    on_two_ranges(body)


def test_rule_28_a_pending_record_survives_its_lease_and_then_commits_above_its_low_water() -> None:
    async def body(desk: TxnDesk) -> None:
        meta, ts = desk.meta(), desk.now()
        await begin(desk, meta)
        await lay(desk, meta, ts, {A: b"1"})
        assert await push(desk, meta, desk.now(), Pusher(desk.now()), abort=False) == RecordReply(PUSHED)
        store = await desk.store()
        other = 2 if store.identity.store_id == 1 else 1
        await desk.call(A, lambda range_id: TransferLeaseRequest(range_id, other))  # type: ignore[arg-type]
        await trio.sleep(1)
        assert (await desk.store()).identity.store_id == other
        reply = await commit(desk, meta, ts)
        assert isinstance(reply, BumpReply)
        assert reply.bound >= ts
        later = desk.now()
        assert await commit(desk, meta, later) == RecordReply(COMMITTED, later)

    on_two_ranges(body, stores=3)


def test_rule_28_a_record_is_not_begun_after_an_abort_nor_below_the_low_water() -> None:
    async def body(desk: TxnDesk) -> None:
        aborted = desk.meta()
        assert await push(desk, aborted, desk.now(), Pusher(Timestamp(1), wounds=True)) == RecordReply(ABORTED)
        assert await begin(desk, aborted) == RecordReply(ABORTED)
        old = desk.meta(B)
        await desk.cluster.call(lambda range_id: SplitRequest(range_id, B, 9), A)  # type: ignore[arg-type]
        assert await begin(desk, old, point_span(B)) == RecordReply(GONE)

    on_two_ranges(body)


def test_rule_28_readers_push_a_pending_attempt_above_them() -> None:
    async def body(desk: TxnDesk) -> None:
        await desk.write(A, b"old")
        meta, ts = desk.meta(), desk.now()
        await begin(desk, meta)
        await lay(desk, meta, ts, {A: b"1"})
        assert await desk.read(A) == b"old"
        reply = await commit(desk, meta, ts)
        assert isinstance(reply, BumpReply)
        later = desk.now()
        assert await commit(desk, meta, later) == RecordReply(COMMITTED, later)
        await resolve(desk, meta, later)
        assert await desk.read(A) == b"1"

    on_two_ranges(body)


def test_readers_wait_for_a_large_transaction_that_they_have_pushed_at_its_commit() -> None:
    async def body(desk: TxnDesk) -> None:
        meta, ts = desk.meta(), desk.now()
        await begin(desk, meta)
        await lay(desk, meta, ts, {A: b"1"})
        assert await desk.read(A) is None
        assert isinstance(await commit(desk, meta, ts), BumpReply)
        later = desk.now()
        replies: list[RecordReply] = []

        async def read() -> None:
            replies.append(await push(desk, meta, desk.now(), Pusher(desk.now()), abort=False))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await trio.sleep(1)
            assert await commit(desk, meta, later) == RecordReply(COMMITTED, later)
        assert replies == [RecordReply(COMMITTED, later)]
        # But not for ever.
        other = desk.meta()
        await begin(desk, other)
        await push(desk, other, desk.now(), Pusher(desk.now()), abort=False)
        assert isinstance(await commit(desk, other, other.first_ts), BumpReply)
        began = trio.current_time()
        assert await push(desk, other, desk.now(), Pusher(desk.now()), abort=False) == RecordReply(PUSHED)
        assert 1.5 < trio.current_time() - began < 2.5

    on_two_ranges(body)


def test_rule_28_a_pending_attempt_is_aborted_by_an_older_writer_or_when_its_gateway_is_silent() -> None:
    async def body(desk: TxnDesk) -> None:
        older = Pusher(Timestamp(1), wounds=True)
        meta = desk.meta()
        younger = Pusher(desk.now(), wounds=True)
        await begin(desk, meta)
        assert await push(desk, meta, desk.now(), younger) == RecordReply(PENDING)
        assert await push(desk, meta, desk.now(), Pusher(Timestamp(1))) == RecordReply(PENDING)
        assert await push(desk, meta, desk.now(), older) == RecordReply(ABORTED)
        assert await commit(desk, meta, desk.now()) == RecordReply(ABORTED)
        assert await begin(desk, meta) == RecordReply(ABORTED)
        silent = desk.meta()
        younger = Pusher(desk.now(), wounds=True)
        await begin(desk, silent)
        for _ in range(4):
            await trio.sleep(3)
            await desk.call(A, lambda range_id: KeepLocksRequest(range_id, (silent.attempt,)))
            assert await push(desk, silent, desk.now(), younger) == RecordReply(PENDING)
        await trio.sleep(6)
        assert await push(desk, silent, desk.now(), younger) == RecordReply(ABORTED)

    on_two_ranges(body)


def test_rule_28_forgotten_pushes_bump_a_pending_record() -> None:
    async def body(desk: TxnDesk) -> None:
        meta, ts = desk.meta(), desk.now()
        await begin(desk, meta)
        replica = (await desk.store())._replicas[LEFT]
        for _ in range(replica.verdicts._max + 1):
            replica.verdicts.push(desk.cluster.new_attempt(), meta.first_ts, ts)
        assert replica.verdicts.pushed(meta.attempt) == 0
        assert isinstance(await commit(desk, meta, ts), BumpReply)
        later = desk.now()
        assert await commit(desk, meta, later) == RecordReply(COMMITTED, later)

    on_two_ranges(body)


def test_rule_29_rolled_back_writes_are_overwritten_by_what_stood_there_or_by_nothing() -> None:
    async def body(desk: TxnDesk) -> None:
        for key in (A, B, C):
            await desk.write(key, b"old")
        meta, ts = desk.meta(), desk.now()
        await begin(desk, meta)
        await lay(desk, meta, ts, {A: b"a1", B: None}, 1)
        # Savepoints at 1 and 3.
        await lay(desk, meta, ts, {A: b"a3", C: b"c3"}, 3, 1)
        await lay(desk, meta, ts, {A: b"a5", B: b"b5", C: None}, 5, 1, 3)
        await roll_back(desk, meta, 3, 6)
        assert [await own(desk, meta, key, ts) for key in (A, B, C)] == [b"a3", None, b"c3"]
        # Back to the same one again, and from there to the one before.
        await lay(desk, meta, ts, {A: b"a7"}, 7, 1, 3)
        await roll_back(desk, meta, 3, 8)
        assert await own(desk, meta, A, ts) == b"a3"
        await roll_back(desk, meta, 1, 9)
        assert [await own(desk, meta, key, ts) for key in (A, B, C)] == [b"a1", None, b"old"]
        # Late copies of what was rolled back.
        await lay(desk, meta, ts, {A: b"a5", B: b"b5", C: None}, 5, 1, 3)
        assert [await own(desk, meta, key, ts) for key in (A, B, C)] == [b"a1", None, b"old"]
        c = desk.now()
        assert await commit(desk, meta, c) == RecordReply(COMMITTED, c)
        await resolve(desk, meta, c)
        assert [await desk.read(key) for key in (A, B, C)] == [b"a1", None, b"old"]

    on_two_ranges(body)


def test_rule_29_resolving_an_intent_of_nothing_bumps_late_copies() -> None:
    async def body(desk: TxnDesk) -> None:
        meta, ts = desk.meta(), desk.now()
        await begin(desk, meta)
        await lay(desk, meta, ts, {A: b"1"}, 1)
        await roll_back(desk, meta, 0, 2)
        c = desk.now()
        assert await commit(desk, meta, c) == RecordReply(COMMITTED, c)
        await resolve(desk, meta, c)
        assert await lay(desk, meta, ts, {A: b"1"}, 1) > c
        assert await desk.read(A) is None

    on_two_ranges(body)


def test_a_record_that_is_pending_is_not_staged() -> None:
    async def body(desk: TxnDesk) -> None:
        meta = desk.meta()
        await begin(desk, meta)
        with pytest.raises(KvError) as caught:
            await desk.stage(meta, desk.now(), A, X)
        assert isinstance(caught.value.detail, InvalidRequest)
        assert await desk.end(meta, None) == RecordReply(ABORTED)

    on_two_ranges(body)


def test_spans_are_worked_off_in_parts_and_over_splits() -> None:
    async def body(desk: TxnDesk) -> None:
        meta, ts = desk.meta(), desk.now()
        keys = [b"\x10n%04d" % number for number in range(1500)]
        span = Span(BORDER, b"\x10o")
        await begin(desk, meta, span)
        await lay(desk, meta, ts, dict.fromkeys(keys, b"1"))
        await desk.write(b"\x10n2000", b"another's")
        await roll_back(desk, meta, 0, 2, span)
        await lay(desk, meta, ts, dict.fromkeys(keys[::2], b"3"), 3)
        c = desk.now()
        assert await commit(desk, meta, c, span) == RecordReply(COMMITTED, c)
        await resolve(desk, meta, c, span)
        assert [await desk.read(key) for key in keys[:4]] == [b"3", None, b"3", None]
        assert all(desk.intent(key) is None for key in keys)

    on_two_ranges(body)
