"""What a leaseholder answers to each request: rules of reads and commits on one store."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from store_cluster import Cluster, simulate

from dsdb.kv.errors import (
    BelowThreshold,
    Conflict,
    DeadlinePassed,
    Gone,
    InvalidRequest,
    KeyExists,
    KvError,
    KvErrorDetail,
    RangeKeyMismatch,
    RangeNotFound,
    Refused,
)
from dsdb.kv.ids import SYSTEM_RANGE, AttemptId, RangeId
from dsdb.kv.requests import (
    BumpReply,
    ClearSpanRequest,
    CollectGarbageRequest,
    CommitReply,
    CommitRequest,
    OutcomeReply,
    RaiseMarkReply,
    RaiseMarkRequest,
    ReadReply,
    ReadRequest,
    RefreshReply,
    RefreshRequest,
    RefuseRequest,
    Request,
    ScanRequest,
    SplitRequest,
    Write,
)
from dsdb.storage.keys import SYSTEM_END, Span, meta_key, point_span
from dsdb.storage.timestamp import COUNTER_BITS, Timestamp
from dsdb.store import Store, StoreConfig
from dsdb.store.state import decode_descriptor

TABLES = RangeId(2)
A, B, C = b"\x10a", b"\x10b", b"\x10c"


class Desk:
    """A store of one node, and requests written short."""

    def __init__(self, cluster: Cluster, store: Store) -> None:
        self.cluster = cluster
        self.store = store

    def now(self) -> Timestamp:
        return self.cluster.oracle.issue()

    def commit(self, *writes: Write, attempt: AttemptId | None = None, **more: object) -> CommitRequest:
        more.setdefault("first_ts", self.now())
        more.setdefault("ts", None)
        return CommitRequest(range_id=TABLES, attempt=attempt or self.cluster.new_attempt(), writes=writes, **more)  # type: ignore[arg-type]

    async def refusal(self, request: Request) -> KvErrorDetail:
        with pytest.raises(KvError) as caught:
            await self.store.serve(request)
        return caught.value.detail


def on_one_store(body: Callable[[Desk], Awaitable[None]], config: StoreConfig | None = None) -> None:
    async def run(cluster: Cluster) -> None:
        await body(Desk(cluster, await cluster.wait_leaseholder(TABLES)))

    simulate(1, run, config=config)


def test_a_commit_is_answered_alike_however_often_it_comes() -> None:
    """B2: a commit that is sent again is applied again."""

    async def body(desk: Desk) -> None:
        request = desk.commit(Write(A, b"1", must_be_absent=True))
        reply = await desk.store.serve(request)
        assert await desk.store.serve(request) == reply
        refuse = RefuseRequest(TABLES, request.attempt, request.first_ts)
        assert await desk.store.serve(refuse) == OutcomeReply(reply.ts)  # type: ignore[union-attr]
        other = desk.cluster.new_attempt()
        first_ts = desk.now()
        assert await desk.store.serve(RefuseRequest(TABLES, other, first_ts)) == OutcomeReply(None)
        assert await desk.refusal(desk.commit(Write(B, b"1"), attempt=other, first_ts=first_ts)) == Refused()

    on_one_store(body)


def test_a_write_is_bumped_above_what_was_read_and_written() -> None:
    async def body(desk: Desk) -> None:
        old = desk.now()
        read_ts = desk.now()
        mine = desk.cluster.new_attempt()
        assert desk.store.try_serve(ReadRequest(TABLES, (A,), read_ts, mine)) == ReadReply(read_ts, (None,))
        reply = await desk.store.serve(desk.commit(Write(A, b"1"), ts=old, has_other_reads=True))
        assert reply == BumpReply(read_ts)
        # At the very timestamp only the reader may write.
        assert await desk.store.serve(desk.commit(Write(A, b"1"), ts=read_ts, has_other_reads=True)) == BumpReply(read_ts)
        assert await desk.store.serve(desk.commit(Write(A, b"1"), attempt=mine, ts=read_ts)) == CommitReply(read_ts)
        # A version is a bound too; without other reads the leaseholder takes a timestamp itself.
        assert await desk.store.serve(desk.commit(Write(A, b"2"), ts=read_ts, has_other_reads=True)) == BumpReply(read_ts)
        reply = await desk.store.serve(desk.commit(Write(A, b"2"), ts=read_ts))
        assert isinstance(reply, CommitReply)
        assert reply.ts > read_ts

    on_one_store(body)


def test_reads_of_a_commit_are_refreshed_as_spans() -> None:
    async def body(desk: Desk) -> None:
        read_ts = desk.now()
        span = Span(A, C)
        committed = await desk.store.serve(desk.commit(Write(B, b"phantom")))
        detail = await desk.refusal(desk.commit(Write(C, b"1"), read_ts=read_ts, reads=(span,)))
        assert detail == Conflict(B, committed.ts)  # type: ignore[union-attr]
        refresh = RefreshRequest(TABLES, desk.cluster.new_attempt(), (span,), read_ts, desk.now())
        assert await desk.refusal(refresh) == Conflict(B, committed.ts)  # type: ignore[union-attr]
        low, high = desk.now(), desk.now()
        assert await desk.store.serve(RefreshRequest(TABLES, refresh.attempt, (span,), low, high)) == RefreshReply()
        assert await desk.store.serve(desk.commit(Write(A, b"1"), ts=low, has_other_reads=True)) == BumpReply(high)

    on_one_store(body)


def test_conditions_of_a_commit_refuse_it_whole() -> None:
    async def body(desk: Desk) -> None:
        await desk.store.serve(desk.commit(Write(A, b"1")))
        assert await desk.refusal(desk.commit(Write(B, b"2"), Write(A, b"2", must_be_absent=True))) == KeyExists(A)
        assert isinstance(await desk.refusal(desk.commit(Write(B, b"2"), deadline=desk.now())), DeadlinePassed)
        assert isinstance(await desk.refusal(desk.commit(Write(B, b"2"), Write(B, b"3"))), InvalidRequest)
        assert isinstance(await desk.refusal(desk.commit(Write(b"\x03x", b"2"))), RangeKeyMismatch)
        assert desk.store.try_serve(ReadRequest(TABLES, (B,), None)).values == (None,)  # type: ignore[union-attr]
        await desk.store.serve(desk.commit(Write(A, None)))
        await desk.store.serve(desk.commit(Write(A, b"3", must_be_absent=True)))
        assert desk.store.try_serve(ReadRequest(TABLES, (A,), None)).values == (b"3",)  # type: ignore[union-attr]
        assert await desk.refusal(ReadRequest(RangeId(77), (A,), None)) == RangeNotFound(RangeId(77))

    on_one_store(body)


def test_outcomes_are_forgotten_below_a_floor_only() -> None:
    async def body(desk: Desk) -> None:
        request = desk.commit(Write(A, b"1"))
        await desk.store.serve(request)
        await trio.sleep(120)
        await desk.store.serve(desk.commit(Write(B, b"1")))
        assert await desk.refusal(request) == Gone()

    on_one_store(body)


def test_a_read_waits_for_an_evaluated_write_at_or_below_it() -> None:
    async def body(desk: Desk) -> None:
        disk = desk.cluster.disks[desk.store.identity.store_id]
        disk.hold()
        before = desk.now()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.store.serve, desk.commit(Write(A, b"new")))
            await trio.sleep(0.01)
            after = desk.now()
            assert desk.store.try_serve(ReadRequest(TABLES, (A,), after)) is None
            assert desk.store.try_serve(ScanRequest(TABLES, Span(A, C), after, 10, 10**6)) is None
            assert desk.store.try_serve(ReadRequest(TABLES, (A,), before)) == ReadReply(before, (None,))
            assert desk.store.try_serve(ReadRequest(TABLES, (B,), after)) == ReadReply(after, (None,))
            found: list[object] = []

            async def read() -> None:
                found.append(await desk.store.serve(ReadRequest(TABLES, (A,), after)))

            nursery.start_soon(read)
            await trio.sleep(0.1)
            assert not found
            disk.let_go()
        assert found == [ReadReply(after, (b"new",))]

    on_one_store(body)


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_goes_on_where_it_stopped(reverse: bool) -> None:
    async def body(desk: Desk) -> None:
        keys = [b"\x10%02d" % number for number in range(25)]
        await desk.store.serve(desk.commit(*(Write(key, b"v" * 10) for key in keys)))
        ts, span = desk.now(), Span(b"\x10", b"\x11")
        found: list[bytes] = []
        steps = 0
        rest: Span | None = span
        while rest is not None:
            reply = await desk.store.serve(ScanRequest(TABLES, rest, ts, 7, 10**6 if steps % 2 else 30, reverse))
            found += reply.keys  # type: ignore[union-attr]
            rest = reply.resume  # type: ignore[union-attr]
            steps += 1
        assert found == (keys[::-1] if reverse else keys)
        assert steps > 3
        # All of it counts as read, also where nothing was.
        bumped = await desk.store.serve(desk.commit(Write(b"\x10055", b"x"), ts=Timestamp(ts - 1), has_other_reads=True))
        assert bumped == BumpReply(ts)

    on_one_store(body)


def test_a_frozen_span_shows_its_timestamp_whatever_comes_after() -> None:
    async def body(desk: Desk) -> None:
        await desk.store.serve(desk.commit(Write(A, b"1"), Write(B, b"2")))
        ts = desk.now()
        with await desk.store.scan_snapshot(TABLES, Span(A, C), ts) as frozen:
            await desk.store.serve(desk.commit(Write(A, None), Write(B, b"3")))
            assert list(frozen.chunks()) == [([A, B], [b"1", b"2"])]
        old = await desk.store.serve(desk.commit(Write(A, b"4"), ts=Timestamp(ts - 1), has_other_reads=True))
        assert isinstance(old, BumpReply)

    on_one_store(body)


def test_garbage_is_collected_and_reads_below_are_refused() -> None:
    async def body(desk: Desk) -> None:
        for number in range(40):
            await desk.store.serve(desk.commit(Write(A, b"%d" % number), Write(b"\x10x%d" % number, b"1")))
        await desk.store.serve(desk.commit(Write(B, None)))
        early, threshold = Timestamp(1000), desk.now()
        reply = await desk.store.serve(CollectGarbageRequest(TABLES, threshold))
        assert reply.removed == 40  # type: ignore[union-attr]
        assert await desk.refusal(ReadRequest(TABLES, (A,), early)) == BelowThreshold(threshold)
        assert desk.store.try_serve(ReadRequest(TABLES, (A,), threshold)).values == (b"39",)  # type: ignore[union-attr]
        await desk.store.serve(ClearSpanRequest(TABLES, Span(A, C)))
        assert desk.store.try_serve(ReadRequest(TABLES, (A,), None)).values == (None,)  # type: ignore[union-attr]

    on_one_store(body, StoreConfig(garbage_chunk_rows=16))


def test_a_new_cluster_finds_its_ranges_and_its_mark() -> None:
    async def body(desk: Desk) -> None:
        store = desk.store
        reply = await store.serve(ReadRequest(SYSTEM_RANGE, (meta_key(SYSTEM_END),), None))
        assert decode_descriptor(reply.values[0]) == store.descriptor_for(b"\x03abc")  # type: ignore[union-attr,arg-type]
        assert store.lease_started(SYSTEM_RANGE) == 6
        mark = Timestamp(5 << COUNTER_BITS)
        assert await store.serve(RaiseMarkRequest(SYSTEM_RANGE, mark)) == RaiseMarkReply(mark)
        assert store.oracle_mark() == mark
        assert isinstance(await desk.refusal(RaiseMarkRequest(TABLES, mark)), InvalidRequest)

    on_one_store(body)


def test_hooks_tell_of_descriptors_and_leases() -> None:
    async def body(desk: Desk) -> None:
        told: list[object] = []
        desk.store.on_descriptor_applied(lambda desc, leads: told.append((desc.range_id, desc.generation, leads)))
        desk.store.on_lease_changed(lambda range_id, held: told.append((range_id, held)))
        await desk.store.serve(SplitRequest(TABLES, B, RangeId(8)))
        await desk.cluster.wait_leaseholder(RangeId(8))
        assert told == [(8, 2, False), (2, 2, True), (8, True)]
        assert desk.store.descriptor_for(B).range_id == 8  # type: ignore[union-attr]
        assert desk.store.descriptor_for(A).range_id == 2  # type: ignore[union-attr]
        assert await desk.refusal(ReadRequest(TABLES, (B,), None)) == RangeKeyMismatch((desk.store.descriptor_for(A),))  # type: ignore[arg-type]

    on_one_store(body)


def test_an_own_read_and_write_of_one_key_need_no_second_timestamp() -> None:
    async def body(desk: Desk) -> None:
        await desk.store.serve(desk.commit(Write(A, b"1")))
        mine, ts = desk.cluster.new_attempt(), desk.now()
        desk.store.try_serve(ReadRequest(TABLES, (A,), ts, mine))
        request = desk.commit(Write(A, b"2"), attempt=mine, ts=ts, read_ts=ts, reads=(point_span(A),))
        assert await desk.store.serve(request) == CommitReply(ts)

    on_one_store(body)


def large(*, skip: int = -1, start: int = 0, must_be_absent: bool = False) -> list[Write]:
    return [Write(b"\x10%05d" % number, b"v", must_be_absent=must_be_absent) for number in range(start, 3000) if number != skip]


def test_a_large_commit_keeps_the_rules_of_a_small_one() -> None:
    async def body(desk: Desk) -> None:
        old, read_ts, reader = desk.now(), desk.now(), desk.cluster.new_attempt()
        key = b"\x1002000"
        assert await desk.store.serve(ReadRequest(TABLES, (key,), read_ts, reader)) == ReadReply(read_ts, (None,))
        assert await desk.store.serve(desk.commit(*large(), ts=old, has_other_reads=True)) == BumpReply(read_ts)
        reply = await desk.store.serve(desk.commit(*large(skip=2000, must_be_absent=True)))
        assert isinstance(reply, CommitReply)
        assert await desk.store.serve(desk.commit(*large(), ts=read_ts, has_other_reads=True)) == BumpReply(reply.ts)
        assert await desk.refusal(desk.commit(*large(start=1999, must_be_absent=True))) == KeyExists(b"\x1001999")
        span = Span(b"\x1000000", b"\x1009999")
        assert await desk.refusal(desk.commit(Write(C, b"1"), read_ts=read_ts, reads=(span,))) == Conflict(b"\x1000000", reply.ts)
        assert isinstance(await desk.store.serve(desk.commit(Write(C, b"1"), read_ts=desk.now(), reads=(span,))), CommitReply)
        # The span counts as read where the commit stands.
        assert isinstance(await desk.store.serve(desk.commit(Write(key, b"1"), ts=reply.ts, has_other_reads=True)), BumpReply)

    on_one_store(body)


def test_others_see_a_large_commit_whole_or_not_at_all() -> None:
    async def body(desk: Desk) -> None:
        seen: set[int] = set()

        async def look() -> None:
            while 3000 not in seen:
                reply = await desk.store.serve(ScanRequest(TABLES, Span(b"\x1000000", b"\x1009999"), None, 5000, 1 << 20))
                seen.add(len(reply.keys))  # type: ignore[union-attr]
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            await desk.store.serve(desk.commit(*large()))
        assert seen == {0, 3000}

    on_one_store(body)
