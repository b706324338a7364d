"""Transactions at one timestamp, and reads that bring none: the order of what is read and written holds all the same."""

import pytest
import trio
from store_cluster import StoreId
from txn_desk import STAGING, A, B, TxnDesk, X, on_two_ranges

from dsdb.kv.errors import Conflict, KvError, Unavailable
from dsdb.kv.ids import AttemptId
from dsdb.kv.intents import RecordReply
from dsdb.kv.requests import BumpReply, CommitReply, CommitRequest, ReadReply, ReadRequest, RefreshRequest, Write
from dsdb.storage.keys import point_span
from dsdb.storage.timestamp import Timestamp


async def commit(desk: TxnDesk, attempt: AttemptId, read: bytes, written: bytes, at: Timestamp, ts: Timestamp | None) -> object:
    """Commit what was decided by one read."""

    def request(range_id: object) -> CommitRequest:
        return CommitRequest(range_id, attempt, at, ts, (Write(written, b"1"),), at, (point_span(read),), ts is not None)  # type: ignore[arg-type]

    return await desk.call(written, request)


def test_two_that_read_at_one_timestamp_what_the_other_writes_do_not_both_commit() -> None:
    """B1: transactions with equal timestamps commit over each other's reads."""

    async def body(desk: TxnDesk) -> None:
        one, two, at = desk.cluster.new_attempt(), desk.cluster.new_attempt(), desk.now()
        for attempt, key in ((one, B), (two, A)):
            reply = await desk.call(key, lambda range_id, a=attempt, k=key: ReadRequest(range_id, (k,), at, a))  # type: ignore[misc]
            assert reply == ReadReply(at, (None,))
        # Each would write, at that very timestamp, what the other one has read.
        assert await commit(desk, one, B, A, at, at) == BumpReply(at)
        assert await commit(desk, two, A, B, at, at) == BumpReply(at)
        assert isinstance(await commit(desk, one, B, A, at, None), CommitReply)
        with pytest.raises(KvError) as caught:
            await commit(desk, two, A, B, at, None)
        assert isinstance(caught.value.detail, Conflict)
        assert [await desk.read(A), await desk.read(B)] == [b"1", None]

    on_two_ranges(body)


def test_two_of_many_ranges_that_read_at_one_timestamp_what_the_other_writes_do_not_both_commit() -> None:
    """B1: the same, by way of intents."""

    async def body(desk: TxnDesk) -> None:
        one, two = desk.meta(A), desk.meta(X)
        at = desk.now()
        for txn, key in ((one, X), (two, A)):
            await desk.call(key, lambda range_id, t=txn, k=key: ReadRequest(range_id, (k,), at, t.attempt))  # type: ignore[misc]
        assert await desk.prewrite(one, at, {A: b"1"}) > at
        assert await desk.prewrite(two, at, {X: b"1"}) > at

        async def refreshed(txn: object, key: bytes, ts: Timestamp) -> None:
            await desk.call(key, lambda range_id: RefreshRequest(range_id, txn.attempt, (point_span(key),), at, ts))  # type: ignore[attr-defined]

        ts = desk.now()
        await refreshed(one, X, ts)
        assert await desk.stage(one, ts, A) == RecordReply(STAGING, ts)
        # What the other one has read was changed now, though nobody has said so yet.
        with pytest.raises(KvError) as caught:
            await refreshed(two, A, desk.now())
        assert caught.value.detail == Conflict(A, ts)
        # And at its old timestamp it may not commit any more, as it was pushed above the first one.
        assert await desk.stage(two, ts, X) == BumpReply(ts)

    on_two_ranges(body)


def test_a_read_that_brings_no_timestamp_gets_one_that_was_issued_after_it_came() -> None:
    """B20: reads of one key that take no timestamp from the oracle miss what was acknowledged before."""

    async def body(desk: TxnDesk) -> None:
        store, latest = await desk.store(), desk.now()
        request = ReadRequest((await desk.store()).descriptor_for(A).range_id, (A,), None)  # type: ignore[union-attr]
        for reply in (store.try_serve(request), await store.serve(request)):
            assert isinstance(reply, ReadReply)
            assert reply.ts > latest
            latest = reply.ts
        # It has its place in the order: nothing is written below it afterwards.
        assert await commit(desk, desk.cluster.new_attempt(), B, A, Timestamp(latest - 1), Timestamp(latest - 1)) == BumpReply(latest)
        # A write that has been issued its timestamp before is waited for.
        disk = desk.cluster.disks[StoreId(1)]
        disk.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.write, A, b"new")
            await trio.sleep(0.01)
            assert store.try_serve(request) is None
            disk.let_go()
        assert await desk.read(A) == b"new"
        # Without the oracle there is no such read.
        desk.cluster.oracle.is_down = True
        assert store.try_serve(request) is None
        with pytest.raises(KvError) as caught:
            await store.serve(request)
        assert isinstance(caught.value.detail, Unavailable)

    on_two_ranges(body)
