"""Commits whose answers are lost, late, or given by somebody else: what they find out, and what they may say."""

from collections.abc import Awaitable, Callable

import pytest
import trio

from dsdb.kv.errors import AmbiguousResult, KvError
from dsdb.kv.intents import EndTxnRequest, PrewriteRequest, Pusher, RecordReply, StageRequest, TxnStatus
from dsdb.kv.requests import CommitRequest, RefuseRequest, Reply, Request
from dsdb.sql.ports import AmbiguousCommitError, KeyExistsError, RangeUnavailableError, TransactionRetryError
from tests.txn.directed import A, B, C, D, World, lose_reply, run


def test_a_lost_reply_to_the_staging_is_asked_for_again() -> None:
    async def test(world: World) -> None:
        txn = world.begin()
        txn.put(A, b"1")
        txn.put(D, b"1")
        world.link.intercept = lose_reply(StageRequest, 3)
        await txn.commit()
        assert world.link.count()["StageRequest"] == 4
        assert await world.read(A, D) == [b"1", b"1"]

    run(test)


@pytest.mark.parametrize("was_staged", [True, False])
def test_gone_is_unknown_only_if_it_may_have_been_staged(was_staged: bool) -> None:
    """Its record was found complete, resolved and removed by others, and the lease of its range has moved since; or it never arrived."""

    async def test(world: World) -> None:
        staged = False

        async def intercept(request: Request, serve: Callable[[Request], Awaitable[Reply]]) -> Reply:
            nonlocal staged
            if isinstance(request, StageRequest) and not staged:
                staged = True
                anchor = next(one for one in world.cluster.ranges.values() if one.desc.start_key <= A < one.desc.end_key)
                if was_staged:
                    await serve(request)
                    await trio.sleep(0.01)
                    await world.cluster.settlement.settle(request.meta, request.ts, abort=True, pusher=Pusher(request.ts))
                    assert anchor.records.pop(request.meta.attempt)[1].status is TxnStatus.COMMITTED
                    anchor.move_lease()
                    raise KvError(AmbiguousResult("the reply was lost"))
                anchor.move_lease()
            return await serve(request)

        txn = world.begin()
        await txn.read_timestamp()
        txn.put(A, b"1")
        txn.put(D, b"1")
        world.link.intercept = intercept
        with pytest.raises(AmbiguousCommitError if was_staged else TransactionRetryError):
            await txn.commit()
        assert world.gateway.counters.unknown_outcomes == was_staged

    run(test)


def test_a_commit_that_was_recovered_says_so() -> None:
    """Somebody took the gateway for dead, and found the commit complete, before its abort came."""

    async def test(world: World) -> None:
        staged: list[StageRequest] = []

        async def intercept(request: Request, serve: Callable[[Request], Awaitable[Reply]]) -> Reply:
            if isinstance(request, StageRequest):
                staged.append(request)
            if isinstance(request, PrewriteRequest) and D in request.keys:
                await serve(request)
                await trio.sleep(0.01)
                (stage,) = staged
                await world.cluster.settlement.settle(stage.meta, stage.ts, abort=True, pusher=Pusher(stage.ts))
                await trio.sleep_forever()
            return await serve(request)

        txn = world.begin()
        await txn.read_timestamp()
        txn.put(A, b"1")
        txn.put(D, b"1")
        world.link.intercept = intercept
        ts = await txn.commit()
        assert ts == staged[0].ts
        assert world.gateway.counters.recovered_commits == 1
        world.link.intercept = None
        assert await world.read(A, D) == [b"1", b"1"]

    run(test)


def test_an_abort_that_nobody_answers_is_unknown() -> None:
    async def test(world: World) -> None:
        async def intercept(request: Request, serve: Callable[[Request], Awaitable[Reply]]) -> Reply:
            if isinstance(request, StageRequest | EndTxnRequest):
                await trio.sleep_forever()
            return await serve(request)

        txn = world.begin()
        txn.put(A, b"1")
        txn.put(D, b"1")
        world.link.intercept = intercept
        began = trio.current_time()
        with pytest.raises(AmbiguousCommitError):
            await txn.commit()
        assert trio.current_time() - began < 15

    run(test)


@pytest.mark.parametrize("has_arrived", [True, False])
def test_a_split_after_a_copy_was_lost_has_the_attempt_refused_first(has_arrived: bool) -> None:
    async def test(world: World) -> None:
        async def intercept(request: Request, serve: Callable[[Request], Awaitable[Reply]]) -> Reply:
            if isinstance(request, CommitRequest):
                world.link.intercept = None
                if has_arrived:
                    await serve(request)
                world.cluster.split(C)
                raise KvError(AmbiguousResult("the reply was lost"))
            return await serve(request)

        txn = world.begin()
        txn.put(B, b"1")
        txn.put(C, b"1")
        world.link.intercept = intercept
        if has_arrived:
            await txn.commit()
        else:
            with pytest.raises(TransactionRetryError):
                await txn.commit()
            assert world.link.count()["RefuseRequest"] == 1
        assert await world.read(B, C) == ([b"1", b"1"] if has_arrived else [None, None])
        assert world.gateway.counters.became_many == 0

    run(test)


def test_a_change_elsewhere_after_a_copy_was_lost_has_the_attempt_refused_first() -> None:
    """The lost copy may still arrive: were the transaction run again without a refusal, it could take effect twice."""

    async def test(world: World) -> None:
        await world.write(d=b"0")
        txn = world.begin()
        await txn.get([D])
        await world.read(A)  # above: so the commit is bumped
        txn.put(A, b"1")
        late: list[CommitRequest] = []

        async def intercept(request: Request, serve: Callable[[Request], Awaitable[Reply]]) -> Reply:
            if isinstance(request, CommitRequest) and not late:
                late.append(request)
                raise KvError(AmbiguousResult("late"))
            if isinstance(request, CommitRequest):
                world.link.intercept = None
                other = world.begin()
                other.put(D, b"1")
                await other.commit()
            return await serve(request)

        world.link.intercept = intercept
        with pytest.raises(TransactionRetryError) as caught:
            await txn.commit()
        assert caught.value.key == D
        assert [type(request) for request in world.link.sent].count(RefuseRequest) == 1
        with pytest.raises(KvError):
            await world.cluster.execute(late[0])
        assert await world.read(A) == [None]

    run(test)


def test_a_record_reply_of_a_recovery_is_taken_from_the_record() -> None:
    """A recovery whose examined staging was raised meanwhile examines the new one."""

    async def test(world: World) -> None:
        txn = world.begin()
        ts = await txn.read_timestamp()
        await world.read(D)
        txn.put(A, b"1")
        txn.put(D, b"1")
        replies: list[RecordReply] = []

        async def intercept(request: Request, serve: Callable[[Request], Awaitable[Reply]]) -> Reply:
            if isinstance(request, StageRequest) and request.ts > ts:
                reply = await serve(request)
                await trio.sleep(0.5)
                return reply
            return await serve(request)

        async def pass_by() -> None:
            await trio.sleep(0.02)
            replies.append(await world.read(D))  # type: ignore[arg-type]

        world.link.intercept = intercept
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pass_by)
            await txn.commit()
        assert replies == [[b"1"]]
        assert world.cluster.settlement._counters.recoveries_committed == 1

    run(test)


@pytest.mark.parametrize("has_arrived", [True, False])
def test_a_commit_that_is_not_answered_in_time_is_refused_before_the_client_is_told(has_arrived: bool) -> None:
    """B21: a commit without an answer is reported as failed, and takes effect."""

    async def test(world: World) -> None:
        lost: list[CommitRequest] = []

        async def intercept(request: Request, serve: Callable[[Request], Awaitable[Reply]]) -> Reply:
            if isinstance(request, CommitRequest):
                lost.append(request)
                if has_arrived:
                    await serve(request)
                raise KvError(AmbiguousResult("lost"))
            return await serve(request)

        txn = world.begin()
        await txn.read_timestamp()
        txn.put(A, b"1")
        world.link.intercept = intercept
        if has_arrived:
            await txn.commit()
        else:
            with pytest.raises(RangeUnavailableError):
                await txn.commit()
            with pytest.raises(KvError):
                await world.cluster.execute(lost[0])
        world.link.intercept = None
        assert await world.read(A) == [b"1" if has_arrived else None]

    run(test)


def test_that_a_key_exists_is_told_once_no_copy_can_insert_it() -> None:
    async def test(world: World) -> None:
        await world.write(a=b"0")
        txn = world.begin()
        txn.insert(A, b"1")
        lost: list[CommitRequest] = []

        async def intercept(request: Request, serve: Callable[[Request], Awaitable[Reply]]) -> Reply:
            if isinstance(request, CommitRequest) and not lost:
                lost.append(request)
                raise KvError(AmbiguousResult("late"))
            return await serve(request)

        world.link.intercept = intercept
        with pytest.raises(KeyExistsError):
            await txn.commit()
        remover = world.begin()
        remover.delete(A)
        await remover.commit()
        with pytest.raises(KvError):
            await world.cluster.execute(lost[0])
        assert await world.read(A) == [None]

    run(test)
