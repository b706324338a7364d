"""Ranges in memory behind a network that a test directs, and one gateway that commits to them."""

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing

from dsdb.kv.errors import AmbiguousResult, KvError
from dsdb.kv.requests import Reply, Request
from dsdb.txn import KvTransaction
from tests.txn.fake_ranges import FakeCluster, Gateway, Link

A, B, C, D = b"\x10a", b"\x10b", b"\x10c", b"\x10d"
SPLITS = [b"\x10b", b"\x10d"]  # a | b c | d
MESSAGE_S = 0.001

Interceptor = Callable[[Request, Callable[[Request], Awaitable[Reply]]], Awaitable[Reply]]


class DirectedLink(Link):
    """A calm network, but for what a test does to a message."""

    def __init__(self, cluster: FakeCluster) -> None:
        super().__init__(cluster, random.Random(0), is_calm=True)
        self.intercept: Interceptor | None = None

    async def serve(self, request: Request) -> Reply:
        if self.intercept is None:
            return await super().serve(request)
        return await self.intercept(request, super().serve)

    def count(self) -> Counter[str]:
        return Counter(type(request).__name__ for request in self.sent)


class World:
    """A cluster of three ranges, and one gateway."""

    def __init__(self) -> None:
        self.cluster = FakeCluster(random.Random(1), SPLITS)
        self.link = DirectedLink(self.cluster)
        self.gateway = Gateway(self.cluster, self.link, 1)
        self.cluster.oracle.fresh_nowait = lambda: None  # type: ignore[method-assign]  # far away

    def begin(self, **keywords: Any) -> KvTransaction:
        return self.gateway.transactions.begin(**keywords)

    async def write(self, **rows: bytes) -> int:
        txn = self.begin()
        for name, value in rows.items():
            txn.put(b"\x10" + name.encode(), value)
        ts = await txn.commit()
        await self.gateway.finisher.drain(1)
        self.link.sent.clear()
        return ts

    async def read(self, *keys: bytes) -> list[bytes | None]:
        return await self.begin().get(keys)

    def left(self) -> list[object]:
        return [what for one in self.cluster.ranges.values() for what in (*one.intents.values(), *one.records.values())]


def run(test: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        world = World()
        async with trio.open_nursery() as nursery:
            await nursery.start(world.gateway.finisher.run)
            await test(world)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def lose_reply(kind: type, times: int = 1) -> Interceptor:
    """Execute requests of a kind, and lose the first replies."""
    left = times

    async def intercept(request: Request, serve: Callable[[Request], Awaitable[Reply]]) -> Reply:
        nonlocal left
        reply = await serve(request)
        if isinstance(request, kind) and left:
            left -= 1
            raise KvError(AmbiguousResult("the reply was lost"))
        return reply

    return intercept
