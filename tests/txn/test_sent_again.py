"""What is sent again, run again, or cleaned up after late: each write takes effect once, and everybody sees it."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from dsdb.kv.errors import AmbiguousResult, KvError, Unavailable
from dsdb.kv.intents import PrewriteRequest, ResolveRequest, StageRequest
from dsdb.kv.requests import CommitRequest, Reply, Request
from dsdb.sql.ports import TransactionRetryError
from dsdb.storage.keys import Span
from dsdb.txn import KvTransaction
from tests.txn.directed import A, B, C, D, World, lose_reply, run
from tests.txn.fake_ranges import Gateway, Link

SPAN = Span(A, b"\x10z")


def versions(world: World, key: bytes) -> list[bytes | None]:
    return [value for one in world.cluster.ranges.values() for _, value in one.versions.get(key, ())]


def attempts(world: World) -> set[bytes]:
    """Give the attempts that have sent writes."""
    commits = {request.attempt for request in world.link.sent if isinstance(request, CommitRequest)}
    return commits | {request.meta.attempt for request in world.link.sent if isinstance(request, StageRequest | PrewriteRequest)}


async def appended(txn: KvTransaction, key: bytes, element: bytes) -> None:
    (value,) = await txn.get([key])
    txn.put(key, (value or b"") + element)


async def copies_arrive(world: World, requests: list[Request]) -> None:
    """Let requests arrive once more, whoever has their answers."""
    for request in requests:
        try:
            await world.cluster.execute(request)
        except KvError:
            pass  # nobody waits for it


@pytest.mark.parametrize("keys", [(A,), (A, D)], ids=["one range", "two ranges"])
def test_a_retry_by_the_gateway_applies_a_write_once(keys: tuple[bytes, ...]) -> None:
    """B2: a commit whose reply was lost is sent again, and its writes are applied twice."""

    async def test(world: World) -> None:
        await world.write(a=b"0", d=b"0")
        txn = world.begin()
        for key in keys:
            await appended(txn, key, b"1")
        kind = CommitRequest if len(keys) == 1 else StageRequest
        world.link.intercept = lose_reply(kind, 3)
        await txn.commit()
        assert world.link.count()[kind.__name__] == 4
        sent = [request for request in world.link.sent if isinstance(request, CommitRequest | StageRequest | PrewriteRequest)]
        assert len(attempts(world)) == 1
        await copies_arrive(world, sent)
        await world.gateway.finisher.drain(1)
        await copies_arrive(world, sent)
        assert await world.read(*keys) == [b"01"] * len(keys)
        assert [versions(world, key) for key in keys] == [[b"0", b"01"]] * len(keys)

    run(test)


@pytest.mark.parametrize("keys", [(A,), (A, D)], ids=["one range", "two ranges"])
def test_a_transaction_that_lost_a_race_is_not_run_again_with_the_writes_it_has(keys: tuple[bytes, ...]) -> None:
    """B18: the system retries a transaction by applying its writes again, decided by what is not there any more."""

    async def test(world: World) -> None:
        one, two = world.begin(), world.begin()
        for key in keys:
            await appended(one, key, b"1")
            await appended(two, key, b"2")
        await one.commit()
        world.link.sent.clear()
        with pytest.raises(TransactionRetryError):
            await two.commit()
        assert len(attempts(world)) <= 1
        assert await world.read(*keys) == [b"1"] * len(keys)
        await trio.sleep(10)
        assert await world.read(*keys) == [b"1"] * len(keys), "nor later"

    run(test)


def test_what_an_earlier_attempt_laid_is_neither_seen_nor_in_the_way_of_the_next_one() -> None:
    """B5: an intent of an older epoch hides a value, or shows its own."""

    async def test(world: World) -> None:
        await world.write(a=b"0", b=b"0", c=b"0", d=b"0")
        prewrites: list[Request] = []

        async def intercept(request: Request, serve: Callable[[Request], Awaitable[Reply]]) -> Reply:
            if isinstance(request, ResolveRequest):
                raise KvError(Unavailable("not now"))  # what was laid stays there
            reply = await serve(request)
            if isinstance(request, PrewriteRequest | StageRequest):
                prewrites.append(request)
                if len(prewrites) == 2:
                    other = Gateway(world.cluster, Link(world.cluster, world.cluster.chance, is_calm=True), 2).transactions.begin()
                    other.put(A, b"changed")
                    await other.commit()
            return reply

        first = world.begin()
        assert await first.get([A]) == [b"0"]
        await world.read(B, C, D)  # above: its intents are bumped, and it must refresh
        for key in (C, D):
            first.put(key, b"first")
        world.link.intercept = intercept
        with pytest.raises(TransactionRetryError):
            await first.commit()
        laid = [key for one in world.cluster.ranges.values() for key in one.intents]
        assert sorted(laid) == [C, D], "both are still there"

        world.link.intercept = None
        second = world.begin()
        assert [key for key, _ in await second.scan(SPAN)] == [A, B, C, D]
        assert await second.get([A, B, C, D]) == [b"changed", b"0", b"0", b"0"]
        second.put(D, b"second")
        second.put(A, b"second")
        await second.commit()
        await copies_arrive(world, prewrites)
        reader = world.begin()
        assert await reader.scan(SPAN) == [(A, b"second"), (B, b"0"), (C, b"0"), (D, b"second")]

    run(test)


@pytest.mark.parametrize("is_bumped", [False, True])
def test_what_was_acknowledged_is_read_and_refreshed_against_before_its_intents_are_resolved(is_bumped: bool) -> None:
    """B3: intents that are resolved later than their transaction is answered let a read, or a refresh, pass by."""

    async def test(world: World) -> None:
        await world.write(a=b"0", d=b"0")
        # A gateway that cleans up after nothing.
        writer = Gateway(world.cluster, Link(world.cluster, world.cluster.chance, is_calm=True), 2).transactions
        refresher = world.begin()
        assert await refresher.get([A]) == [b"0"]
        txn = writer.begin()
        await txn.read_timestamp()
        if is_bumped:
            assert await world.read(D) == [b"0"]
        between = world.begin()
        await between.read_timestamp()
        for key in (A, D):
            txn.put(key, b"1")
        ts = await txn.commit()
        (intent, _) = [one.intents[key] for one in world.cluster.ranges.values() for key in one.intents]
        assert intent.ts <= ts

        assert await world.read(D, A) == [b"1", b"1"], "both registers, by the next who asks"
        if await between.read_timestamp() < ts:
            assert await between.get([D, A]) == [b"0", b"0"], "neither, where it was not committed yet"
        assert await world.read(A) == [b"1"], "that one read passed by lets no other one pass"
        await world.read(B)
        refresher.put(B, b"1")
        with pytest.raises(TransactionRetryError) as caught:
            await refresher.commit()
        assert caught.value.key == A

    run(test)


@pytest.mark.parametrize("detail", [Unavailable("the lease is over"), AmbiguousResult("the reply was lost")])
def test_a_record_stays_until_it_is_told_that_all_is_resolved(detail: Any) -> None:
    """B6: a record is removed whose intents are still there, so that they come to nothing."""

    async def test(world: World) -> None:
        async def intercept(request: Request, serve: Callable[[Request], Awaitable[Reply]]) -> Reply:
            if isinstance(request, ResolveRequest):
                raise KvError(detail)
            return await serve(request)

        world.link.intercept = intercept
        txn = world.begin()
        for key in (A, D):
            txn.put(key, b"1")
        await txn.commit()
        await trio.sleep(60)
        assert world.gateway.counters.finishes_failed == 1
        assert world.link.count()["RemoveRecordsRequest"] == 0
        assert world.link.count()["EndTxnRequest"] == 1
        # Leases move, and everything volatile is lost.
        for one in world.cluster.ranges.values():
            one.move_lease()
        assert await world.read(A, D) == [b"1", b"1"]

    run(test)
