"""A transaction's way to ranges and to the oracle, within its patience.

Invariants:
- One transaction waits for what does not answer only so long, all in all, however many calls it makes (B22): what a call takes beyond
  what is usual is taken from the patience of the next ones.  Calls of one round are waited for together, and count once.
- Time that passes between calls gives patience back: a transaction of many statements bears many slow ones.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.errors import Conflict, KvError, RangeKeyMismatch, Unavailable
from dsdb.kv.requests import Reply, Request
from dsdb.oracle import OracleClient
from dsdb.ranges import CachedRange, Copies, Router
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp

T = TypeVar("T")
P = TypeVar("P", bytes, Span)
PATIENCE_S = 10.0
"""How long a transaction waits, all in all, for ranges and the oracle that do not answer."""
PATIENCE_LEAST_S = 1.0
"""What each call may take besides: work, not waiting."""
CUTS_MAX = 10
"""Times that one request is cut anew because ranges were split."""


class Sender:
    """One for each transaction, and for each piece of work that nobody's transaction is."""

    def __init__(self, router: Router, oracle: OracleClient, *, patience_s: float = PATIENCE_S) -> None:
        self.router = router
        self.oracle = oracle
        self._patience_s = self._patience_most_s = patience_s
        self._called_at = self.now()
        """When the last call ended."""
        self._rounds = 0
        """Rounds that run now: they, not their calls, count."""

    def now(self) -> float:
        """Give the clock's time, in seconds."""
        return self.router.clock.now()

    async def send(self, key: bytes, make: Callable[[RangeDescriptor], Request], copies: Copies | None = None) -> Reply:
        """Get an answer from the range that holds `key`; see `Router.send`.  Raises KvError."""
        began = self._begin()
        try:
            return await self.router.send(key, make, deadline_s=self._patience_s, copies=copies)
        finally:
            self._lose_patience(began)

    async def fresh(self, above: Timestamp = MIN_TIMESTAMP) -> Timestamp:
        """Take a timestamp from the oracle, above a bound that some range has seen.  Raises KvError."""
        began = self._begin()
        try:
            while True:
                ts = await self.oracle.fresh(timeout_s=self._patience_s)
                if ts > above:
                    return ts
        finally:
            self._lose_patience(began)

    async def lookup(self, key: bytes) -> CachedRange:
        """Give the range that holds a key.  Raises KvError."""
        return self.router.cache.lookup(key) or await self.router.lookup(key)

    async def round(self, asks: Sequence[Callable[[], Awaitable[T]]]) -> list[T | KvError]:
        """Ask side by side; give each one's answer, or its KvError, in their order."""
        began = self._begin()
        self._rounds += 1
        try:
            return await ask_all(asks)
        finally:
            self._rounds -= 1
            self._lose_patience(began)

    async def round_over(
        self,
        items: Sequence[P],
        cut: Callable[[Sequence[P]], Awaitable[list[tuple[CachedRange, tuple[P, ...]]]]],
        ask: Callable[[RangeDescriptor, tuple[P, ...]], Request],
        *,
        items_max: int,
        is_reading: bool = False,
    ) -> list[tuple[tuple[P, ...], Reply]]:
        """Ask the ranges of items (keys or spans, ascending) side by side, cutting anew where ranges were split.

        Groups of `items_max` in one range go one after the other; is_reading: in all ranges that this node leads, as side by side they
        would keep its loop busy in one piece.
        Gives each group of items with its reply.  Raises KvError: the first one, a conflict before others, once all have answered.
        """
        found: list[tuple[tuple[P, ...], Reply]] = []
        rest = list(items)
        for _ in range(CUTS_MAX):
            lanes: dict[int, list[tuple[CachedRange, tuple[P, ...]]]] = {}
            for entry, group in await cut(rest):
                lane = lanes.setdefault(0 if is_reading and self._is_here(entry) else entry.desc.range_id, [])
                lane += [(entry, group[at : at + items_max]) for at in range(0, len(group), items_max)]
            rest, failed = [], list[KvError]()
            for lane_result in await self.round([self._asking(lane, ask) for lane in lanes.values()]):
                assert not isinstance(lane_result, KvError), "a lane catches them"
                for group, result in lane_result:
                    if not isinstance(result, KvError):
                        found.append((group, result))
                    elif isinstance(result.detail, RangeKeyMismatch):
                        rest += group
                    else:
                        failed.append(result)
            if failed:
                raise next((error for error in failed if isinstance(error.detail, Conflict)), failed[0])
            if not rest:
                return found
            rest.sort()
        raise KvError(Unavailable("ranges were split too often"))

    def _is_here(self, entry: CachedRange) -> bool:
        replica = None if entry.leaseholder is None else entry.desc.replica_on(entry.leaseholder)
        return replica is not None and replica.node_id == self.router.node_id

    def _asking(
        self, lane: Sequence[tuple[CachedRange, tuple[P, ...]]], ask: Callable[[RangeDescriptor, tuple[P, ...]], Request]
    ) -> Callable[[], Awaitable[list[tuple[tuple[P, ...], Reply | KvError]]]]:
        async def run() -> list[tuple[tuple[P, ...], Reply | KvError]]:
            found: list[tuple[tuple[P, ...], Reply | KvError]] = []
            for number, (entry, group) in enumerate(lane):
                if number:
                    await trio.lowlevel.checkpoint()
                found.append((group, await _caught(self._ask(entry, group, ask))))
            return found

        return run

    def _ask(
        self, entry: CachedRange, group: tuple[P, ...], ask: Callable[[RangeDescriptor, tuple[P, ...]], Request]
    ) -> Callable[[], Awaitable[Reply]]:
        def make(desc: RangeDescriptor) -> Request:
            if not desc.span.covers(entry.desc.span):
                raise KvError(RangeKeyMismatch((desc,)))  # it was split meanwhile: no need to hear it from the range
            return ask(desc, group)

        first = group[0]
        key = first if isinstance(first, bytes) else first.start
        return lambda: self.send(key, make)

    def _begin(self) -> float:
        """Give the time at which a call begins."""
        began = self.now()
        if not self._rounds:
            self._patience_s = min(self._patience_s + began - self._called_at, self._patience_most_s)
        return began

    def _lose_patience(self, began: float) -> None:
        if self._rounds:
            return
        self._called_at = self.now()
        slow_s = self._called_at - began - PATIENCE_LEAST_S
        if slow_s > 0:
            self._patience_s = max(self._patience_s - slow_s, PATIENCE_LEAST_S)


async def ask_all(asks: Sequence[Callable[[], Awaitable[T]]]) -> list[T | KvError]:
    """Ask side by side; give each one's answer, or its KvError, in their order."""
    if len(asks) == 1:
        return [await _caught(asks[0])]
    found: dict[int, T | KvError] = {}

    async def run(number: int, ask: Callable[[], Awaitable[T]]) -> None:
        found[number] = await _caught(ask)

    async with trio.open_nursery() as nursery:
        for number, ask in enumerate(asks):
            nursery.start_soon(run, number, ask)
    return [found[number] for number in range(len(asks))]


async def _caught(ask: Callable[[], Awaitable[T]]) -> T | KvError:
    try:
        return await ask()
    except KvError as error:
        return error
