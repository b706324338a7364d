"""Collecting old versions: what no read at or above the threshold can see goes, range by range.

    every INTERVAL_S, at each node: ranges that it leads and that were written ─▶ CollectGarbage up to AGE_S ago,
                                    or up to where the oldest open transaction of any node reads

Invariants:
- Versions are kept for AGE_S at least: statements, transactions and AS OF SYSTEM TIME may read back so far.
- What an open transaction reads is kept for PROTECTED_S, if its node can be asked; then, or if it cannot, a read there is refused.
- A range that nobody writes costs nothing.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn, Protocol

import trio

from dsdb.env import Clock
from dsdb.kv.errors import KvError
from dsdb.kv.ids import RangeId
from dsdb.kv.requests import CollectGarbageReply, CollectGarbageRequest, Reply, Request
from dsdb.oracle import OracleClient
from dsdb.storage.timestamp import Timestamp, from_milliseconds

log = logging.getLogger("dsdb.jobs")

AGE_S = 600.0
"""How long an old version is kept at least, by the oracle's timestamps."""
PROTECTED_S = 3600.0
"""How long open transactions keep what they read: one that was forgotten must not let garbage pile up for ever."""
INTERVAL_S = 60.0
"""Between two looks for ranges that were written."""
WRITES_MIN = 1_000
"""A range with fewer writes since the last time is left alone: a look reads all of it."""


class CollectableStore(Protocol):
    """What is asked of this node's store."""

    def write_counts(self) -> dict[RangeId, int]:
        """Give, for each range led here, how many writes it has applied."""

    async def serve(self, request: Request) -> Reply:
        """Serve a request.  Raises KvError."""


class _Progress:
    """How far a range was collected."""

    __slots__ = ("collected", "marked", "marked_at")

    def __init__(self, writes: int, now: float) -> None:
        self.collected = 0
        """Writes whose garbage is gone."""
        self.marked = writes
        """Writes at a past moment, and …"""
        self.marked_at = now
        """… when that was: what they made garbage is old enough AGE_S later."""


class VersionCollector:
    """Runs on every node, for the ranges that it leads."""

    def __init__(
        self,
        *,
        store: CollectableStore,
        oracle: OracleClient,
        clock: Clock,
        oldest_read: Callable[[], Awaitable[Timestamp]],
        age_s: float = AGE_S,
        protected_s: float = PROTECTED_S,
        interval_s: float = INTERVAL_S,
        writes_min: int = WRITES_MIN,
    ) -> None:
        """oldest_read: gives the lowest timestamp at which an open transaction reads, as far as its node answers; else MAX_TIMESTAMP."""
        self._store = store
        self._oldest_read = oldest_read
        self._protected_s = protected_s
        self._oracle = oracle
        self._clock = clock
        self._default_age_s = self._age_s = age_s
        self._interval_s = interval_s
        self._writes_min = writes_min
        self._progress: dict[RangeId, _Progress] = {}

    def use_age(self, age_s: float | None) -> None:
        """Keep old versions for so long at least, from the next look on; None: as it was made."""
        self._age_s = self._default_age_s if age_s is None else age_s

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> NoReturn:
        """Look and collect, for ever."""
        task_status.started()
        while True:
            await trio.sleep(self._interval_s)
            counts = self._store.write_counts()
            now = self._clock.now()
            self._progress = {range_id: self._progress.get(range_id) or _Progress(writes, now) for range_id, writes in counts.items()}
            for range_id, progress in self._progress.items():
                if now - progress.marked_at < self._age_s:
                    continue
                if progress.marked - progress.collected >= self._writes_min:
                    try:
                        await self._collect(range_id)
                    except KvError as error:
                        log.info("range %d: old versions are not collected yet: %s", range_id, error)
                        continue
                    progress.collected = progress.marked
                progress.marked, progress.marked_at = counts[range_id], now

    async def _collect(self, range_id: RangeId) -> None:
        now = await self._oracle.fresh()
        ages_s = (self._age_s, max(self._age_s, self._protected_s))
        old, too_old = (Timestamp(max(now - from_milliseconds(int(age_s * 1000)), 1)) for age_s in ages_s)
        # Who begins to read below it from here on is refused, or has read above.
        threshold = min(old, max(await self._oldest_read(), too_old))
        reply = await self._store.serve(CollectGarbageRequest(range_id, threshold))
        assert isinstance(reply, CollectGarbageReply)
        log.info("range %d: %d old versions were removed", range_id, reply.removed)
