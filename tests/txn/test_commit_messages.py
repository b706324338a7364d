"""What a commit sends, in how many rounds, and what it makes of each answer: over ranges in memory and a network that a test directs."""

from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
import trio

from dsdb.kv.intents import STAGED_KEYS_MAX, EndTxnRequest, PrewriteRequest, StageRequest
from dsdb.kv.requests import CommitRequest, ReadRequest, Reply, Request
from dsdb.sql.errors import InvalidParameterError, InvalidTransactionStateError
from dsdb.sql.ports import DeadlineExceededError, KeyExistsError, TransactionRetryError
from dsdb.storage.keys import Span
from dsdb.txn import KvTransaction
from dsdb.txn import finish as finish_module
from tests.txn.directed import MESSAGE_S, A, B, C, D, World, run


def test_one_range_is_one_request() -> None:
    async def test(world: World) -> None:
        txn = world.begin()
        txn.put(B, b"1")
        txn.put(C, b"2")
        await world.begin().read_timestamp()  # so that the gateway knows some timestamp
        began = trio.current_time()
        await txn.commit()
        assert trio.current_time() - began == pytest.approx(MESSAGE_S)
        assert world.link.count() == {"CommitRequest": 1}
        assert await world.read(B, C) == [b"1", b"2"]

    run(test)


def test_two_ranges_are_one_round_until_the_client_is_told() -> None:
    async def test(world: World) -> None:
        txn = world.begin()
        await txn.read_timestamp()
        txn.put(D, b"2")
        txn.put(A, b"1")
        began = trio.current_time()
        await txn.commit()
        assert trio.current_time() - began == pytest.approx(MESSAGE_S)
        assert world.link.count() == {"StageRequest": 1, "PrewriteRequest": 1}
        (stage,) = [request for request in world.link.sent if isinstance(request, StageRequest)]
        assert stage.keys == (D, A), "the anchor, the first key written, goes first"
        assert stage.laid == (D,), "the record's range lays its intents with it"
        assert len(world.left()) == 3
        assert await world.read(A, D) == [b"1", b"2"], "readable at once"
        await world.gateway.finisher.drain(1)
        assert world.left() == []
        finishing = world.link.count() - Counter(StageRequest=1, PrewriteRequest=1)
        assert (finishing["EndTxnRequest"], finishing["ResolveRequest"], finishing["RemoveRecordsRequest"]) == (1, 1, 1)

    run(test)


def test_what_was_read_is_not_asked_for_again() -> None:
    async def test(world: World) -> None:
        await world.write(b=b"0", d=b"0")
        txn = world.begin()
        assert await txn.get([B, D]) == [b"0", b"0"]
        assert txn.has_read([B, D])
        assert not txn.has_read([B, C])
        asked = world.link.count()["ReadRequest"]
        txn.put(B, b"1")
        assert await txn.get([D, B]) == [b"0", b"1"]
        assert await txn.get([B]) == [b"1"]
        assert world.link.count()["ReadRequest"] == asked
        await world.write(d=b"2")
        assert await txn.get([D]) == [b"0"], "as of its timestamp"
        await world.read(B)  # so that the commit must be later than that
        with pytest.raises(TransactionRetryError):
            await txn.commit()
        with (other := world.begin()).unrecorded():
            await other.get([D])
        assert not other.has_read([D]), "what does not count as read may be stale"

    run(test)


def test_records_are_removed_together() -> None:
    async def test(world: World) -> None:
        for number in range(5):
            await trio.sleep(0.002)
            txn = world.begin()
            await txn.read_timestamp()
            txn.put(A, b"%d" % number)
            txn.put(D, b"%d" % number)
            await txn.commit()
            await trio.sleep(0.005)
        await world.gateway.finisher.drain(1)
        assert world.link.count()["RemoveRecordsRequest"] == 1
        assert world.left() == []

    run(test)


def test_too_many_keys_for_a_record_are_two_rounds() -> None:
    async def test(world: World) -> None:
        txn = world.begin()
        await txn.read_timestamp()
        for number in range(STAGED_KEYS_MAX + 1):
            txn.put(A + b"%05d" % number, b"v")
        txn.put(D, b"v")
        began = trio.current_time()
        await txn.commit()
        assert trio.current_time() - began == pytest.approx(2 * MESSAGE_S)
        (stage,) = [request for request in world.link.sent if isinstance(request, StageRequest)]
        assert stage.is_final
        assert await world.read(A + b"00000", D) == [b"v", b"v"]
        await world.gateway.finisher.drain(1)
        assert world.left() == []

    run(test)


def test_a_bump_stages_again_and_leaves_the_intents() -> None:
    async def test(world: World) -> None:
        await world.write(b=b"0")
        txn = world.begin()
        assert await txn.get([B]) == [b"0"]
        assert await world.read(D) == [None]  # somebody else reads above
        txn.put(A, b"1")
        txn.put(D, b"1")
        await txn.commit()
        assert world.link.count()["StageRequest"] == 2
        assert world.link.count()["PrewriteRequest"] == 1
        assert world.link.count()["RefreshRequest"] == 1
        assert world.gateway.counters.bumps == 1
        metas = {request.meta for request in world.link.sent if isinstance(request, PrewriteRequest | StageRequest)}
        assert len(metas) == 1, "first_ts is fixed, however often it is staged"

    run(test)


def test_a_split_beside_the_record_parts_the_stage_from_its_intents() -> None:
    async def test(world: World) -> None:
        txn = world.begin()
        await txn.read_timestamp()
        far = A + b"z"
        for key in (A, far, D):
            txn.put(key, b"1")
        world.cluster.split(far)  # the gateway's cache does not know
        await txn.commit()
        stages = [request for request in world.link.sent if isinstance(request, StageRequest)]
        # The right side's low water bumps what it lays, so the record is staged once more.
        assert [stage.laid for stage in stages] == [(A, far), (A,), ()]
        assert await world.read(A, far, D) == [b"1"] * 3
        await world.gateway.finisher.drain(1)
        assert world.left() == []

    run(test)


def test_what_was_read_and_has_changed_ends_the_commit_and_says_where() -> None:
    async def test(world: World) -> None:
        await world.write(b=b"0")
        txn = world.begin()
        assert await txn.get([B]) == [b"0"]
        await world.write(b=b"1", d=b"1")
        txn.put(A, b"2")
        txn.put(D, b"2")
        with pytest.raises(TransactionRetryError) as caught:
            await txn.commit()
        assert caught.value.key == B
        await world.gateway.finisher.drain(1)
        assert world.left() == []
        assert await world.read(A, D) == [None, b"1"]

    run(test)


def test_keys_that_must_be_absent_are_read_over_many_ranges() -> None:
    async def test(world: World) -> None:
        await world.write(d=b"there")
        txn = world.begin()
        txn.insert(A, b"1")
        txn.insert(D, b"1")
        txn.delete(D)  # inserted and deleted: still it must have been absent
        with pytest.raises(KeyExistsError) as caught:
            await txn.commit()
        assert caught.value.key == D
        assert world.link.count()["PrewriteRequest"] == 0
        txn = world.begin()
        txn.insert(A, b"1")
        txn.insert(C, b"1")
        await txn.commit()
        assert await world.read(A, C, D) == [b"1", b"1", b"there"]

    run(test)


def test_a_split_turns_a_commit_of_one_range_into_one_of_many() -> None:
    async def test(world: World) -> None:
        async def intercept(request: Request, serve: Callable[[Request], Awaitable[Reply]]) -> Reply:
            if isinstance(request, CommitRequest):
                world.link.intercept = None
                world.cluster.split(C)
            return await serve(request)

        txn = world.begin()
        txn.put(B, b"1")
        txn.put(C, b"1")
        world.link.intercept = intercept
        await txn.commit()
        assert world.gateway.counters.became_many == 1
        assert await world.read(B, C) == [b"1", b"1"]

    run(test)


def test_a_deadline_ends_the_commit_without_a_trace() -> None:
    async def test(world: World) -> None:
        txn = world.begin()
        ts = await txn.read_timestamp()
        txn.put(A, b"1")
        txn.put(D, b"1")
        with pytest.raises(DeadlineExceededError):
            await txn.commit(deadline=ts)
        assert world.link.count() == {}
        await world.read(A)
        txn.put(A, b"1")
        with pytest.raises(DeadlineExceededError):
            await txn.commit(deadline=ts + 1)  # type: ignore[arg-type]  # a Timestamp; the first c is below it, the next is not
        await world.gateway.finisher.drain(1)
        assert world.left() == []
        assert await world.read(A, D) == [None, None]

    run(test)


def test_with_too_many_to_clean_up_after_a_commit_waits_for_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finish_module, "FINISHING_MAX", 1)

    async def test(world: World) -> None:
        async def intercept(request: Request, serve: Callable[[Request], Awaitable[Reply]]) -> Reply:
            if isinstance(request, EndTxnRequest):
                await trio.sleep(0.5)
            return await serve(request)

        world.link.intercept = intercept
        for number, least_s in enumerate((0.0, 0.5)):
            txn = world.begin()
            txn.put(A + b"%d" % number, b"1")
            txn.put(D + b"%d" % number, b"1")
            began = trio.current_time()
            await txn.commit()
            assert least_s <= trio.current_time() - began < least_s + 0.4
        assert world.gateway.counters.finishes_waited == 1

    run(test)


def test_the_past_is_read_by_nobody_and_never_written() -> None:
    async def test(world: World) -> None:
        before = await world.begin().read_timestamp()
        await world.write(a=b"1", d=b"1")
        txn = world.begin(read_ts=before)
        assert await txn.get([A, D]) == [None, None]
        assert await txn.get([A]) == [None]
        assert await txn.scan(Span(A, D + b"\xff")) == []
        assert {request.attempt for request in world.link.sent if isinstance(request, ReadRequest)} == {None}
        with pytest.raises(InvalidTransactionStateError):
            txn.put(A, b"2")
        assert await txn.commit() == before
        future = world.begin(read_ts=world.cluster.oracle.issue() + (1 << 40))
        with pytest.raises(InvalidParameterError, match="future"):
            await future.get([A])

    run(test)


def test_a_push_of_a_reader_passes_and_one_of_a_writer_ends_it() -> None:
    async def test(world: World) -> None:
        txn = world.begin()
        ts = await txn.read_timestamp()
        txn.put(A, b"1")
        txn.put(D, b"1")

        async def intercept(request: Request, serve: Callable[[Request], Awaitable[Reply]]) -> Reply:
            if isinstance(request, StageRequest) and request.ts == ts:
                await trio.sleep(0.1)
                assert await world.read(D) == [None]
            return await serve(request)

        world.link.intercept = intercept
        assert await txn.commit() > ts
        assert world.gateway.counters.bumps == 1

        loser = world.begin()
        await loser.read_timestamp()
        loser.put(A, b"2")
        loser.put(D, b"2")

        async def never(request: Request, serve: Callable[[Request], Awaitable[Reply]]) -> Reply:
            if isinstance(request, StageRequest):
                await trio.sleep(3)
                world.link.intercept = None
            return await serve(request)

        async with trio.open_nursery() as nursery:
            world.link.intercept = never
            nursery.start_soon(_fails, loser)
            await trio.sleep(0.1)
            await world.write(d=b"3")
        assert await world.read(A, D) == [b"1", b"3"]

    run(test)


async def _fails(txn: KvTransaction) -> None:
    with pytest.raises(TransactionRetryError):
        await txn.commit()
