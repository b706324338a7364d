"""Block intents, request by request (rule 33): what is laid as one columnar block before its commit is known."""

from collections.abc import Sequence

import pyarrow as pa
import pytest
import trio
from test_flushes import LEFT_SPAN, begin, commit, lay, own, resolve, roll_back
from txn_desk import ABORTED, BORDER, COMMITTED, LEFT, A, TxnDesk, X, on_two_ranges

from dsdb.kv.errors import Conflict, InvalidRequest, KeyExists, KvError
from dsdb.kv.intents import (
    LayBlockReply,
    LayBlockRequest,
    RecordReply,
    SpansReply,
    TxnMeta,
    UnpackBlocksRequest,
)
from dsdb.kv.requests import BumpReply, ClearSpanRequest, RefreshReply, RefreshRequest, ScanRequest, SplitRequest, TransferLeaseRequest
from dsdb.storage.columnar.block import Blocks
from dsdb.storage.columnar.entry import decode_entry
from dsdb.storage.columnar.provisional import encode_rows, put_chunks, put_entry
from dsdb.storage.columnar.upkeep import verify
from dsdb.storage.datum import Kind
from dsdb.storage.engine.port import Family
from dsdb.storage.keys import Span, key_after
from dsdb.storage.rowcodec import LayoutColumn, RowLayout, codec_for
from dsdb.storage.timestamp import Timestamp

LAYOUT = RowLayout(layout_id=7, columns=(LayoutColumn(column_id=1, kind=Kind.INT, width=8),))
KEYS = (b"\x10b", b"\x10d", b"\x10f")
FIRST, LAST = KEYS[0], KEYS[-1]
BETWEEN, BELOW, ABOVE = b"\x10c", b"\x10a", b"\x10g"


def value(number: int) -> bytes:
    return codec_for(LAYOUT).encode([number])


def block_of(keys: Sequence[bytes]) -> tuple[bytes, tuple[bytes, ...]]:
    return encode_rows(keys, LAYOUT, [pa.array(range(len(keys)), pa.int64())])


async def lay_block(desk: TxnDesk, meta: TxnMeta, ts: Timestamp, keys: Sequence[bytes] = KEYS, sequence: int = 1) -> Timestamp | None:
    entry, chunks = block_of(keys)
    reply = await desk.call(keys[0], lambda range_id: LayBlockRequest(range_id, meta, ts, sequence, keys[0], keys[-1], entry, chunks))
    assert isinstance(reply, LayBlockReply)
    return reply.ts


async def laid(desk: TxnDesk) -> tuple[TxnMeta, Timestamp]:
    meta = desk.meta()
    await begin(desk, meta)
    ts = await lay_block(desk, meta, desk.now())
    assert ts is not None
    return meta, ts


def engine_of(desk: TxnDesk, store_id: int = 1):  # type: ignore[no-untyped-def]  # of the memory engine
    return desk.cluster.engines[desk.cluster.ids[store_id - 1]]


def folded(desk: TxnDesk, store_id: int = 1) -> list[tuple[bytes, int]]:
    """Give first keys and timestamps of a store's blocks, all of whose bytes are right."""
    blocks = Blocks(engine_of(desk, store_id))
    verify(blocks, Span(b"\x10", b"\x11"))
    return [(entry.first_key, entry.max_ts) for entry in blocks.entries(Span(b"\x10", b"\x11"))]


def chunks_left(desk: TxnDesk, store_id: int = 1) -> int:
    return sum(len(keys) for keys, _ in engine_of(desk, store_id).scan(Family.BLOCK, b"", b"\xff"))


def open_blocks(desk: TxnDesk, store_id: int = 1) -> int:
    return len(desk.cluster.store(store_id)._replicas[LEFT].machine.provisional)


async def unpack(desk: TxnDesk, meta: TxnMeta, span: Span = LEFT_SPAN) -> None:
    reply = await desk.call(span.start, lambda range_id: UnpackBlocksRequest(range_id, meta, (span,)))
    assert reply == SpansReply()


def test_a_block_intent_becomes_a_block_at_the_commit() -> None:
    async def body(desk: TxnDesk) -> None:
        before = desk.now()
        meta, ts = await laid(desk)
        assert folded(desk) == []
        # Below it nothing has happened.
        assert await desk.read(FIRST, before) is None
        assert await commit(desk, meta, ts) == RecordReply(COMMITTED, ts)
        await resolve(desk, meta, ts)
        assert folded(desk) == [(FIRST, ts)]
        assert open_blocks(desk) == 0
        assert desk.cluster.store(1)._replicas[LEFT].has_blocks
        await resolve(desk, meta, ts)
        assert folded(desk) == [(FIRST, ts)]
        assert [await desk.read(key) for key in (*KEYS, BETWEEN)] == [value(0), value(1), value(2), None]
        await desk.remove(meta)

    on_two_ranges(body)


def test_an_aborted_one_leaves_nothing() -> None:
    async def body(desk: TxnDesk) -> None:
        meta, _ = await laid(desk)
        assert chunks_left(desk) > 0
        await desk.end(meta, None)
        await resolve(desk, meta, None)
        assert chunks_left(desk) == open_blocks(desk) == 0
        assert [await desk.read(key) for key in KEYS] == [None, None, None]
        # A late copy is laid, as any prewrite's would be; who meets it hears that it was aborted.
        assert await lay_block(desk, meta, desk.now()) is not None
        await desk.write(KEYS[1], b"w")
        assert chunks_left(desk) == open_blocks(desk) == 0

    on_two_ranges(body)


def test_readers_meet_it_in_all_of_its_span() -> None:
    async def body(desk: TxnDesk) -> None:
        meta, ts = await laid(desk)
        assert await desk.read(BELOW) is None
        assert await desk.read(ABOVE) is None
        assert isinstance(await commit(desk, meta, ts), RecordReply)  # nobody has pushed it
        meta, ts = await second(desk)
        # Between two of its keys there is none, but there might have been.
        assert await desk.read(b"\x10i") is None
        assert isinstance(await commit(desk, meta, ts), BumpReply)

    async def second(desk: TxnDesk) -> tuple[TxnMeta, Timestamp]:
        meta = desk.meta()
        await begin(desk, meta)
        ts = await lay_block(desk, meta, desk.now(), (b"\x10h", b"\x10j"))
        assert ts is not None
        return meta, ts

    on_two_ranges(body)


def test_scans_and_refreshes_meet_it() -> None:
    async def body(desk: TxnDesk) -> None:
        meta, ts = await laid(desk)
        span = Span(BETWEEN, b"\x10e")
        reply = await desk.call(BETWEEN, lambda range_id: ScanRequest(range_id, span, desk.now(), 10, 1000))
        assert reply.keys == ()
        assert isinstance(await commit(desk, meta, ts), BumpReply)
        low, high = desk.now(), desk.now()
        other = desk.meta()
        reply = await desk.call(BETWEEN, lambda range_id: RefreshRequest(range_id, other.attempt, (span,), low, high))
        assert reply == RefreshReply()
        bumped = await commit(desk, meta, high)
        assert bumped == BumpReply(high)
        c = desk.now()
        assert await commit(desk, meta, c) == RecordReply(COMMITTED, c)
        # Committed above a reader: it passes by; at or above c the reader has it resolved.
        reply = await desk.call(BETWEEN, lambda range_id: RefreshRequest(range_id, other.attempt, (span,), low, high))
        assert reply == RefreshReply()
        assert open_blocks(desk) == 1
        with pytest.raises(KvError) as caught:
            await desk.call(FIRST, lambda range_id: RefreshRequest(range_id, other.attempt, (LEFT_SPAN,), high, desk.now()))
        assert caught.value.detail == Conflict(FIRST, c)
        assert folded(desk) == [(FIRST, c)]

    on_two_ranges(body)


def test_a_writer_in_its_span_waits_for_its_end() -> None:
    async def body(desk: TxnDesk) -> None:
        meta, ts = await laid(desk)
        ended_at: list[float] = []

        async def write() -> None:
            await desk.write(BETWEEN, b"w")
            assert ended_at

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            for _ in range(5):
                await trio.sleep(0.2)
            ended_at.append(trio.current_time())
            assert await commit(desk, meta, ts) == RecordReply(COMMITTED, ts)
        assert await desk.read(BETWEEN) == b"w"
        assert folded(desk) == [(FIRST, ts)]

    on_two_ranges(body)


def test_an_older_writer_aborts_it() -> None:
    async def body(desk: TxnDesk) -> None:
        older = desk.meta()
        meta, ts = await laid(desk)
        await begin(desk, older)
        await lay(desk, older, desk.now(), {BETWEEN: b"w"})
        assert await commit(desk, meta, ts) == RecordReply(ABORTED)
        assert chunks_left(desk) == open_blocks(desk) == 0

    on_two_ranges(body)


@pytest.mark.parametrize("what", ["version", "tombstone", "intent", "own intent", "block intent", "own block intent", "block"])
def test_it_is_laid_in_a_void_span_only(what: str) -> None:
    async def body(desk: TxnDesk) -> None:
        meta = desk.meta()
        await begin(desk, meta)
        other = desk.meta()
        match what:
            case "version":
                await desk.write(BETWEEN, b"w")
            case "tombstone":
                await desk.write(BETWEEN, b"w")
                await desk.write(BETWEEN, None)
            case "intent" | "own intent":
                await lay(desk, other if what == "intent" else meta, desk.now(), {BETWEEN: b"w"})
            case "block intent" | "own block intent":
                await lay_block(desk, other if what == "block intent" else meta, desk.now(), (BELOW, BETWEEN), 2)
            case _:
                other, ts = await laid(desk)
                await commit(desk, other, ts)
                await resolve(desk, other, ts)
        assert await lay_block(desk, meta, desk.now(), (BETWEEN, b"\x10e"), 3) is None
        # Beside it there is room.
        assert await lay_block(desk, meta, desk.now(), (b"\x10k", b"\x10l"), 3) is not None

    on_two_ranges(body)


def test_it_lies_above_what_was_read_in_its_span() -> None:
    async def body(desk: TxnDesk) -> None:
        meta, ts = desk.meta(), desk.now()
        await begin(desk, meta)
        read_at = desk.now()
        assert await desk.read(BETWEEN, read_at) is None
        laid_at = await lay_block(desk, meta, ts)
        assert laid_at is not None
        assert laid_at > read_at
        other = desk.meta()
        ts = desk.now()
        scanned_at = desk.now()
        await desk.call(b"\x10i", lambda range_id: ScanRequest(range_id, Span(b"\x10i", b"\x10k"), scanned_at, 10, 1000))
        laid_at = await lay_block(desk, other, ts, (b"\x10h", b"\x10l"))
        assert laid_at is not None
        assert laid_at > scanned_at

    on_two_ranges(body)


def test_a_request_that_comes_twice_is_answered_alike() -> None:
    async def body(desk: TxnDesk) -> None:
        meta, ts = await laid(desk)
        assert await lay_block(desk, meta, desk.now()) == ts
        assert open_blocks(desk) == 1
        await commit(desk, meta, ts)
        await resolve(desk, meta, ts)
        # Too late: what it would lay is there.
        assert await lay_block(desk, meta, desk.now()) is None

    on_two_ranges(body)


def test_bytes_that_are_not_as_they_were_sent_are_refused() -> None:
    async def body(desk: TxnDesk) -> None:
        meta = desk.meta()
        entry, chunks = block_of(KEYS)
        wrong = (*chunks[:-1], chunks[-1][:-1] + b"\xfe")
        for case in ((entry, wrong), (entry, chunks[:-1]), (entry[:-1], chunks)):
            with pytest.raises(KvError) as caught:
                await desk.call(
                    FIRST,
                    lambda range_id, case=case: LayBlockRequest(range_id, meta, desk.now(), 1, FIRST, LAST, *case),  # type: ignore[misc]
                )
            assert isinstance(caught.value.detail, InvalidRequest)

    on_two_ranges(body)


def test_rows_between_its_rows_may_be_laid_by_their_own_transaction_and_no_key_twice() -> None:
    async def body(desk: TxnDesk) -> None:
        meta, ts = await laid(desk)
        ts = max(ts, await lay(desk, meta, ts, {BETWEEN: b"w"}, 2, absent=True))
        with pytest.raises(KvError) as caught:
            await lay(desk, meta, ts, {KEYS[1]: b"w"}, 3, absent=True)
        assert caught.value.detail == KeyExists(KEYS[1])
        with pytest.raises(KvError) as caught:
            await lay(desk, meta, ts, {KEYS[1]: b"w"}, 3)
        assert isinstance(caught.value.detail, InvalidRequest)
        with pytest.raises(KvError) as caught:
            await own(desk, meta, KEYS[1], ts)
        assert isinstance(caught.value.detail, InvalidRequest)
        await commit(desk, meta, ts)
        await resolve(desk, meta, ts)
        assert desk.versions(BETWEEN) == b"w"
        assert folded(desk) == [(FIRST, ts)]

    on_two_ranges(body)


def test_unpacked_it_is_an_intent_for_each_row() -> None:
    async def body(desk: TxnDesk) -> None:
        meta, ts = await laid(desk)
        await lay(desk, meta, ts, {BETWEEN: b"w"}, 2, absent=True)
        await unpack(desk, meta)
        await unpack(desk, meta)
        assert chunks_left(desk) == open_blocks(desk) == 0
        assert [await own(desk, meta, key, ts) for key in KEYS] == [value(0), value(1), value(2)]
        assert await lay(desk, meta, ts, {KEYS[0]: b"other"}, 3) == ts
        await roll_back(desk, meta, 0, 4, Span(KEYS[1], key_after(KEYS[1])))
        assert await commit(desk, meta, ts) == RecordReply(COMMITTED, ts)
        await resolve(desk, meta, ts)
        assert [await desk.read(key) for key in (*KEYS, BETWEEN)] == [b"other", None, value(2), b"w"]

    on_two_ranges(body)


def test_the_janitor_settles_what_a_dead_gateway_has_left() -> None:
    async def body(desk: TxnDesk) -> None:
        await laid(desk)
        store = await desk.store()
        assert store.has_intents()
        await trio.sleep(30)
        assert await store.settle_oldest_intents(desk.now()) == 1
        assert chunks_left(desk) == open_blocks(desk) == 0
        assert not store.has_intents()

    on_two_ranges(body)


def test_it_holds_back_what_is_resolved() -> None:
    async def body(desk: TxnDesk) -> None:
        meta, ts = await laid(desk)
        await trio.sleep(5)
        await desk.write(X, b"w")
        store = await desk.store()
        resolved = store.resolved_ts(LEFT)
        assert resolved is None or resolved < ts
        await commit(desk, meta, ts)
        await resolve(desk, meta, ts)
        await trio.sleep(5)
        await desk.write(b"\x10k", b"w")
        await trio.sleep(1)
        resolved = store.resolved_ts(LEFT)
        assert resolved is not None
        assert resolved >= ts

    on_two_ranges(body)


def test_it_outlives_crashes_and_leases() -> None:
    async def body(desk: TxnDesk) -> None:
        cluster = desk.cluster
        meta, _ts = await laid(desk)
        store = await desk.store()
        holder = store.identity.store_id
        target = next(store_id for store_id in cluster.ids if store_id != holder)
        await desk.call(A, lambda range_id: TransferLeaseRequest(range_id, target))
        await cluster.wait_leaseholder(LEFT, but=holder)
        cluster.kill(holder)
        assert isinstance(await desk.push(meta, desk.now()), RecordReply)
        store = await cluster.restart(holder)
        assert len(store._replicas[LEFT].machine.provisional) == 1
        c = desk.now()
        assert await commit(desk, meta, c) == RecordReply(COMMITTED, c)
        await resolve(desk, meta, c)
        await cluster.eventually(lambda: all(folded(desk, number) == [(FIRST, c)] for number in (1, 2, 3)))

    on_two_ranges(body, stores=3)


def test_a_split_goes_beside_it() -> None:
    async def body(desk: TxnDesk) -> None:
        meta, ts = await laid(desk)
        second = await lay_block(desk, meta, ts, (b"\x10h", b"\x10j"), 2)
        assert second is not None
        with pytest.raises(KvError) as caught:
            await desk.call(A, lambda range_id: SplitRequest(range_id, BETWEEN, 9))  # type: ignore[arg-type]  # a range id
        assert isinstance(caught.value.detail, InvalidRequest)
        assert "block" in caught.value.detail.reason
        await desk.call(A, lambda range_id: SplitRequest(range_id, b"\x10h", 9))  # type: ignore[arg-type]  # a range id
        await desk.cluster.wait_leaseholder(9)  # type: ignore[arg-type]  # a range id
        assert open_blocks(desk) == 1
        c = desk.now()
        assert await commit(desk, meta, c) == RecordReply(COMMITTED, c)
        for span in (Span(A, b"\x10h"), Span(b"\x10h", BORDER)):
            await resolve(desk, meta, c, span)
        assert folded(desk) == [(FIRST, c), (b"\x10h", c)]

    on_two_ranges(body)


def test_a_raft_snapshot_carries_it() -> None:
    async def body(desk: TxnDesk) -> None:
        meta, _ts = await laid(desk)
        await desk.cluster.replicate(LEFT, [2])
        await desk.cluster.eventually(lambda: open_blocks(desk, 2) == 1)
        c = desk.now()
        assert await commit(desk, meta, c) == RecordReply(COMMITTED, c)
        await resolve(desk, meta, c)
        await desk.cluster.eventually(lambda: folded(desk, 2) == [(FIRST, c)])

    async def run(desk: TxnDesk) -> None:
        await body(desk)

    from store_cluster import Cluster, simulate

    async def alone(cluster: Cluster) -> None:
        await cluster.wait_leaseholder(LEFT)
        await run(TxnDesk(cluster))

    simulate(2, alone)


def test_what_another_replica_has_not_collected_yet_makes_room() -> None:
    async def body(desk: TxnDesk) -> None:
        # The leaseholder has collected what was removed below the threshold, and folded nothing.
        store = await desk.store()
        other = next(number for number in (1, 2, 3) if desk.cluster.ids[number - 1] != store.identity.store_id)
        engine = engine_of(desk, other)
        for keys in ((BELOW, KEYS[0]), (KEYS[1], LAST), (ABOVE, b"\x10h")):
            batch = engine.new_batch()
            stored, chunks = block_of(keys)
            entry = decode_entry(keys[-1], stored)
            put_chunks(batch, entry, chunks)
            put_entry(batch, entry, Timestamp(1))
            engine.write(batch)
        before = chunks_left(desk, other)
        meta, _ = await laid(desk)
        await desk.cluster.eventually(lambda: open_blocks(desk, other) == 1)
        assert folded(desk, other) == [(BELOW, 1), (ABOVE, 1)]
        await desk.end(meta, None)
        await resolve(desk, meta, None)
        await desk.cluster.eventually(lambda: open_blocks(desk, other) == 0)
        assert folded(desk, other) == [(BELOW, 1), (ABOVE, 1)]
        assert chunks_left(desk, other) == before * 2 // 3
        meta, ts = await laid(desk)
        await commit(desk, meta, ts)
        await resolve(desk, meta, ts)
        await desk.cluster.eventually(lambda: folded(desk, other) == [(BELOW, 1), (FIRST, ts), (ABOVE, 1)])

    on_two_ranges(body, stores=3)


def test_clearing_a_span_clears_it() -> None:
    async def body(desk: TxnDesk) -> None:
        await laid(desk)
        span = Span(A, BORDER)
        await desk.call(A, lambda range_id: ClearSpanRequest(range_id, span))
        assert chunks_left(desk) == open_blocks(desk) == 0

    on_two_ranges(body)
