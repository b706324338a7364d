"""Commits over many ranges at their leaseholders: rules 13 to 22 of docs/transactions.md, a test each."""

import pytest
import trio
from txn_desk import ABORTED, COMMITTED, GONE, LEFT, PUSHED, STAGING, A, B, TxnDesk, X, on_two_ranges

from dsdb.kv.errors import InvalidRequest, KvError
from dsdb.kv.intents import STAGED_KEYS_MAX, STAGED_VALUES_MAX, RecordReply
from dsdb.kv.requests import BumpReply, CommitRequest, Write
from dsdb.storage.keys import point_span
from dsdb.storage.timestamp import Timestamp, after


def test_a_parallel_commit_is_seen_whole() -> None:
    async def body(desk: TxnDesk) -> None:
        await desk.write(A, b"old")
        before = desk.now()
        txn = desk.meta()
        ts = txn.first_ts
        assert await desk.lay(txn, ts, {A: b"1", X: b"1"}) == ts
        assert await desk.stage(txn, ts, A, X) == RecordReply(STAGING, ts)
        assert await desk.end(txn, ts, A, expected=ts) == RecordReply(COMMITTED, ts)
        assert desk.intent(A) is None
        await desk.resolve(txn, ts, X)
        await desk.remove(txn)
        assert [await desk.read(A), await desk.read(X)] == [b"1", b"1"]
        assert [await desk.read(A, before), await desk.read(X, before)] == [b"old", None]
        assert desk.cluster.settler.asked == []

    on_two_ranges(body)


def test_rule_4_a_read_meets_an_intent_and_settles_it_before_it_reads_again() -> None:
    async def body(desk: TxnDesk) -> None:
        await desk.write(X, b"old")
        txn = desk.meta()
        await desk.lay(txn, txn.first_ts, {A: b"1", X: b"1"})
        # Below the intent nobody is asked.
        assert await desk.read(X, Timestamp(txn.first_ts - 1)) == b"old"
        assert desk.cluster.settler.asked == []
        at = desk.now()
        assert await desk.read(X, at) == b"old"
        assert desk.cluster.settler.asked == [(txn.attempt, False)]
        # It is passable now: up to there for ever, without a question.
        assert await desk.read(X, at) == b"old"
        assert len(desk.cluster.settler.asked) == 1
        assert isinstance(await desk.stage(txn, at, A, X), BumpReply)
        later = desk.now()
        assert await desk.stage(txn, later, A, X) == RecordReply(STAGING, later)
        # All that it promised is there: the next reader finds that it is committed, and makes it so.
        assert await desk.read(X) == b"1"
        assert await desk.push(txn, desk.now()) == RecordReply(COMMITTED, later)
        assert await desk.read(X, at) == b"old"

    on_two_ranges(body)


def test_rule_8_a_commit_in_one_range_aborts_an_intent_on_its_keys_and_pushes_one_in_its_reads() -> None:
    async def body(desk: TxnDesk) -> None:
        txn, other = desk.meta(), desk.meta(B)
        await desk.prewrite(txn, txn.first_ts, {A: b"1"})
        await desk.prewrite(other, other.first_ts, {B: b"1"})
        read_ts = Timestamp(txn.first_ts - 1)
        await desk.write(A, b"2")
        assert desk.cluster.settler.asked == [(txn.attempt, True)]
        assert await desk.push(txn, desk.now()) == RecordReply(ABORTED)

        attempt, first_ts = desk.cluster.new_attempt(), desk.now()
        reply = await desk.call(
            B,
            lambda range_id: CommitRequest(
                range_id, attempt, first_ts, None, (Write(b"\x10d", b"1"),), read_ts=read_ts, reads=(point_span(B),)
            ),
        )
        assert desk.cluster.settler.asked[1:] == [(other.attempt, False)]
        assert desk.intent(B) is not None
        bumped = await desk.stage(other, reply.ts, B)
        assert bumped == BumpReply(reply.ts)

    on_two_ranges(body)


def test_rule_13_a_prewrite_finds_its_own_intent_and_is_laid_above_what_stands_in_its_way() -> None:
    async def body(desk: TxnDesk) -> None:
        txn = desk.meta()
        ts = txn.first_ts
        assert await desk.prewrite(txn, ts, {A: b"1"}) == ts
        assert await desk.prewrite(txn, desk.now(), {A: b"other"}) == ts
        read_ts = desk.now()
        assert await desk.read(B, read_ts) is None
        assert await desk.prewrite(txn, ts, {A: b"1", B: b"1"}) == after(read_ts)
        intent = desk.intent(B)
        assert intent is not None
        assert (intent.ts, intent.anchor, intent.first_ts) == (after(read_ts), A, ts)
        written = await desk.write(b"\x10d", b"1")
        assert await desk.prewrite(txn, ts, {b"\x10d": b"2"}) == after(written)
        # A foreign one is pushed out of the way, as by a writer.
        other = desk.meta()
        assert await desk.prewrite(other, other.first_ts, {A: b"2"}) > other.first_ts - 1
        assert desk.cluster.settler.asked == [(txn.attempt, True)]
        assert (await desk.push(txn, ts)).status is ABORTED

    on_two_ranges(body)


def test_rule_14_nothing_is_staged_again_lower() -> None:
    async def body(desk: TxnDesk) -> None:
        txn = desk.meta()
        low, high, higher = txn.first_ts, desk.now(), desk.now()
        assert await desk.stage(txn, high, A, X) == RecordReply(STAGING, high)
        assert await desk.stage(txn, low, A, X) == RecordReply(STAGING, high)
        assert await desk.stage(txn, higher, A, X) == RecordReply(STAGING, higher)
        assert await desk.push(txn, higher, abort=True) == RecordReply(STAGING, higher, (A, X))

    on_two_ranges(body)


def test_rule_15_a_stage_without_a_record_asks_tombstone_low_water_and_push_in_this_order() -> None:
    async def body(desk: TxnDesk) -> None:
        buried, old, pushed = desk.meta(), desk.meta(), desk.meta()
        assert await desk.push(buried, desk.now(), abort=True) == RecordReply(ABORTED)
        assert await desk.stage(buried, desk.now(), A) == RecordReply(ABORTED)
        read_ts = desk.now()
        assert await desk.push(pushed, read_ts) == RecordReply(PUSHED)
        assert await desk.stage(pushed, pushed.first_ts, A) == BumpReply(read_ts)
        assert await desk.stage(pushed, after(read_ts), A) == RecordReply(STAGING, after(read_ts))
        # first_ts decides, not the timestamp of the staging.
        store = await desk.store()
        store._replicas[LEFT].verdicts.low = old.first_ts
        assert await desk.stage(old, desk.now(), A) == RecordReply(GONE)
        with pytest.raises(KvError) as caught:
            await desk.stage(desk.meta(), desk.now(), *[b"\x10a%d" % number for number in range(STAGED_KEYS_MAX + 1)])
        assert isinstance(caught.value.detail, InvalidRequest)

    on_two_ranges(body)


def test_a_stage_lays_intents_beside_the_record_in_one_command() -> None:
    async def body(desk: TxnDesk) -> None:
        txn = desk.meta()
        ts = txn.first_ts
        other = desk.meta()
        await desk.prewrite(other, other.first_ts, {A: b"foreign"})
        assert await desk.stage(txn, ts, A, B, laid={A: b"1"}) == RecordReply(STAGING, ts)
        assert desk.cluster.settler.asked == [(other.attempt, True)], "a foreign intent is pushed out of the way, as by a writer"
        intent = desk.intent(A)
        assert intent is not None
        assert (intent.attempt_id, intent.ts, intent.value) == (txn.attempt, ts, b"1")
        assert await desk.stage(txn, ts, A, B, laid={A: b"1"}) == RecordReply(STAGING, ts), "a second copy finds both"

    on_two_ranges(body)


def test_a_stage_whose_intents_are_bumped_lays_them_and_stages_nothing() -> None:
    async def body(desk: TxnDesk) -> None:
        txn = desk.meta()
        ts = txn.first_ts
        read_ts = desk.now()
        assert await desk.read(A, read_ts) is None
        assert await desk.stage(txn, ts, A, B, laid={A: b"1"}) == BumpReply(after(read_ts))
        intent = desk.intent(A)
        assert intent is not None
        assert intent.ts == after(read_ts)
        # Still above: the answer of a second copy.
        assert await desk.stage(txn, ts, A, B, laid={A: b"1"}) == BumpReply(after(read_ts))
        later = desk.now()
        assert await desk.stage(txn, later, A, B, laid={A: b"1"}) == RecordReply(STAGING, later)
        with pytest.raises(KvError) as caught:
            await desk.stage(desk.meta(), desk.now(), A, laid={b"\x10a%d" % number: None for number in range(STAGED_VALUES_MAX + 1)})
        assert isinstance(caught.value.detail, InvalidRequest)

    on_two_ranges(body)


def test_rule_16_a_push_without_a_record() -> None:
    async def body(desk: TxnDesk) -> None:
        reader, writer, old = desk.meta(), desk.meta(), desk.meta()
        at = desk.now()
        began = trio.current_time()
        assert await desk.push(reader, at) == RecordReply(PUSHED)
        assert trio.current_time() - began < 0.1
        began = trio.current_time()
        # The older of two writers waits a moment only, the younger one longer; both abort it in the end.
        assert await desk.push(writer, at, abort=True, pusher_ts=1) == RecordReply(ABORTED)
        assert trio.current_time() - began < 0.1
        began = trio.current_time()
        assert await desk.push(reader, at, abort=True, pusher_ts=at) == RecordReply(ABORTED)
        assert 0.9 < trio.current_time() - began < 1.1
        store = await desk.store()
        verdicts = store._replicas[LEFT].verdicts
        verdicts.low = old.first_ts
        assert await desk.push(old, at, abort=True) == RecordReply(ABORTED)
        assert verdicts.outcome(old.attempt) is None

    on_two_ranges(body)


def test_rule_16_a_push_of_a_staging_record() -> None:
    async def body(desk: TxnDesk) -> None:
        txn = desk.meta()
        below, ts = desk.now(), desk.now()
        await desk.stage(txn, ts, A, X)
        assert await desk.push(txn, below) == RecordReply(PUSHED)
        began = trio.current_time()
        assert await desk.push(txn, ts) == RecordReply(STAGING, ts, (A, X))
        assert 0.05 < trio.current_time() - began < 0.2
        # Whoever waits hears of the end at once.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.end, txn, None)
            began = trio.current_time()
            assert await desk.push(txn, ts) == RecordReply(ABORTED)
            assert trio.current_time() - began < 0.05

    on_two_ranges(body)


def test_rule_17_an_abort_goes_through_the_record() -> None:
    async def body(desk: TxnDesk) -> None:
        one, two = desk.meta(), desk.meta()
        ts = desk.now()
        await desk.stage(one, ts, A)
        assert await desk.end(one, None) == RecordReply(ABORTED)
        assert await desk.end(one, ts) == RecordReply(ABORTED)
        await desk.stage(two, ts, A)
        assert await desk.end(two, ts, expected=ts) == RecordReply(COMMITTED, ts)
        assert await desk.end(two, None) == RecordReply(COMMITTED, ts)

    on_two_ranges(body)


def test_rule_18_an_abort_without_a_record_leaves_a_tombstone() -> None:
    async def body(desk: TxnDesk) -> None:
        txn, old = desk.meta(), desk.meta()
        await desk.prewrite(txn, txn.first_ts, {A: b"1"})
        assert await desk.end(txn, None, A) == RecordReply(ABORTED)
        assert desk.intent(A) is None
        assert await desk.stage(txn, desk.now(), A) == RecordReply(ABORTED)
        (await desk.store())._replicas[LEFT].verdicts.low = old.first_ts
        assert await desk.end(old, None) == RecordReply(GONE)

    on_two_ranges(body)


def test_rule_19_recovery_finds_or_prevents() -> None:
    async def body(desk: TxnDesk) -> None:
        txn = desk.meta()
        ts = txn.first_ts
        await desk.prewrite(txn, ts, {A: b"1"})
        await desk.stage(txn, ts, A, X)
        assert await desk.query(txn, ts, A)
        assert not await desk.query(txn, ts, X)
        # Prevented for ever, even for its own attempt at that very timestamp.
        assert await desk.prewrite(txn, ts, {X: b"1"}) == after(ts)
        assert not await desk.query(txn, ts, X)
        # Meanwhile it was staged again: what was found out says nothing any more.
        higher = desk.now()
        assert await desk.stage(txn, higher, A, X) == RecordReply(STAGING, higher)
        assert await desk.end(txn, None, expected=ts) == RecordReply(STAGING, higher, (A, X))
        assert await desk.query(txn, higher, A)
        assert await desk.query(txn, higher, X)
        assert await desk.end(txn, higher, expected=higher) == RecordReply(COMMITTED, higher)
        await desk.remove(txn)
        assert await desk.end(desk.meta(), None, expected=ts) == RecordReply(GONE)

    on_two_ranges(body)


def test_rule_20_a_committed_record_resolves_what_was_left_to_it() -> None:
    async def body(desk: TxnDesk) -> None:
        txn = desk.meta()
        ts = txn.first_ts
        keys = [b"\x10a%03d" % number for number in range(600)]
        await desk.prewrite(txn, ts, dict.fromkeys(keys, b"1"))
        assert await desk.stage(txn, ts, *keys, is_final=True) == RecordReply(COMMITTED, ts)
        # Somebody else has ended it; its intents are resolved by whoever asks, as it ended as asked.
        assert await desk.end(txn, ts, *keys, expected=ts) == RecordReply(COMMITTED, ts)
        assert [key for key in keys if desk.intent(key) is not None] == []
        assert desk.versions(keys[-1]) == b"1"
        staged = desk.meta()
        await desk.prewrite(staged, staged.first_ts, dict.fromkeys(keys, b"2"))
        await desk.stage(staged, staged.first_ts, *keys)
        # It is not resolved unless it ends as asked.
        assert (await desk.end(staged, staged.first_ts, *keys, expected=ts)).status is STAGING
        assert desk.intent(keys[0]) is not None
        await desk.end(staged, staged.first_ts, *keys, expected=staged.first_ts)
        assert [key for key in keys if desk.intent(key) is not None] == []

    on_two_ranges(body)


def test_rule_21_an_intent_above_the_commit_was_never_promised() -> None:
    async def body(desk: TxnDesk) -> None:
        txn = desk.meta()
        ts = txn.first_ts
        await desk.prewrite(txn, ts, {A: b"1"})
        await desk.read(B)
        assert await desk.prewrite(txn, ts, {B: b"1"}) > ts
        await desk.resolve(txn, ts, A, B)
        assert [desk.intent(A), desk.intent(B)] == [None, None]
        assert [await desk.read(A), await desk.read(B)] == [b"1", None]
        # Somebody else's intent is left alone.
        other = desk.meta()
        await desk.prewrite(other, other.first_ts, {B: b"2"})
        await desk.resolve(txn, ts, A, B)
        assert desk.intent(B) is not None

    on_two_ranges(body)


def test_rule_22_a_removed_record_leaves_a_tombstone_with_its_outcome() -> None:
    async def body(desk: TxnDesk) -> None:
        txn, staged = desk.meta(), desk.meta()
        ts = txn.first_ts
        await desk.stage(txn, ts, A)
        await desk.end(txn, ts, expected=ts)
        await desk.remove(txn)
        await desk.remove(txn)
        for _ in range(2):
            assert await desk.stage(txn, desk.now(), A) == RecordReply(COMMITTED, ts)
            assert await desk.push(txn, desk.now(), abort=True) == RecordReply(COMMITTED, ts)
            assert await desk.end(txn, None) == RecordReply(COMMITTED, ts)
        await desk.stage(staged, staged.first_ts, A)
        await desk.remove(staged)
        assert (await desk.push(staged, desk.now(), abort=True)).status is STAGING

    on_two_ranges(body)
