"""The issuer of timestamps, at the leaseholder of the system range.

         mark, committed by Raft ───────────────────────────────┐
    ─────┼──────────────── issued ──────────▶ next              │ limit
       start of this lease                                      (raised well before it is reached)

Invariants (rule 1):
- Every timestamp issued is below a mark that a quorum has committed; a new holder of the lease starts at the mark, so nothing is
  issued twice or out of order across holders.
- The lease is checked after the request arrived.
- The physical part advances with elapsed time, follows the wall clock in bounded steps, and never goes back: a wall clock that
  jumps by an hour moves the line by no more than STEP_FACTOR times the time that passes (B24).
"""

import logging
from typing import Protocol

import trio

from dsdb.env import Clock
from dsdb.kv.errors import KvError, NotLeaseholder, Unavailable
from dsdb.kv.ids import SYSTEM_RANGE, StoreId
from dsdb.kv.requests import RaiseMarkReply, RaiseMarkRequest
from dsdb.storage.timestamp import COUNTER_BITS, MIN_TIMESTAMP, Timestamp, from_milliseconds, to_milliseconds

log = logging.getLogger("dsdb.oracle")

MARK_AHEAD_MS = 4_000
"""How far the mark is raised above the timestamps in use: one Raft command per this much time, under load."""
MARK_LOW_MS = 2_000
"""What may be left below the mark before it is raised again."""
STEP_FACTOR = 10
"""Physical milliseconds that may pass per elapsed one while the line catches up with the wall clock."""
FIRST_MS = 1_600_000_000_000
"""Milliseconds since the epoch before dsdb existed: a mark below it was never raised."""
RETRY_S = 0.05
"""Pause after a mark that could not be raised."""


class SystemRange(Protocol):
    """What the issuer needs of the store that may hold the system range's lease."""

    def lease_started(self, range_id: int) -> int | None:
        """Give the Raft term of the lease in force here, None without one."""

    def leaseholder_hint(self, range_id: int) -> StoreId | None:
        """Give the store that probably holds the lease."""

    def oracle_mark(self) -> Timestamp:
        """Give the mark as applied here."""

    async def raise_mark(self, request: RaiseMarkRequest) -> RaiseMarkReply:
        """Raise the mark through Raft.  Raises KvError."""


class Issuer:
    """Issues timestamps while this node's store holds the system range's lease."""

    def __init__(self, system_range: SystemRange, clock: Clock) -> None:
        self._system_range = system_range
        self._clock = clock
        self._term: int | None = None  # the lease for which `_next` and `_limit` hold
        self._next = 0  # the least timestamp not issued yet
        self.latest = MIN_TIMESTAMP  # the highest that was issued here
        self._limit = 0  # the committed mark: everything issued is below it
        self._physical_ms = 0.0  # the line's own idea of the time of day
        self._physical_at = clock.now()  # when that was brought up to date
        self._wanted = trio.Event()  # set when the mark should be raised

    def newest_nowait(self) -> Timestamp | None:
        """Give the highest timestamp that any oracle can have issued until now; None if this node cannot issue at once.

        Whatever was acknowledged has committed at or below it.  It is not issued for this, so that reading alone raises no mark.
        """
        term = self._system_range.lease_started(SYSTEM_RANGE)
        if term is None or term != self._term:
            if term is not None:
                self._wanted.set()
            return None
        return Timestamp(self._next - 1)

    def issue_nowait(self, count: int = 1) -> Timestamp | None:
        """Issue `count` consecutive timestamps and give the first, or None if this node cannot at once."""
        term = self._system_range.lease_started(SYSTEM_RANGE)
        if term is None or term != self._term:
            if term is not None:
                self._wanted.set()
            return None
        now_ms = self._advance()
        # Idle time does not raise the mark: after it, timestamps go on just below the old mark until the new one is committed.
        first = max(self._next, min(now_ms << COUNTER_BITS, self._limit - (1 << COUNTER_BITS)))
        if first + count > self._limit:
            self._wanted.set()
            return None
        self._next = first + count
        self.latest = Timestamp(self._next - 1)
        if to_milliseconds(Timestamp(self._limit)) - now_ms < MARK_LOW_MS:
            self._wanted.set()
        return Timestamp(first)

    async def issue(self, count: int, *, timeout_s: float) -> Timestamp:
        """Issue, waiting for the lease's first mark if need be.  Raises KvError NotLeaseholder, Unavailable."""
        deadline = self._clock.now() + timeout_s
        while (first := self.issue_nowait(count)) is None:
            if self._system_range.lease_started(SYSTEM_RANGE) is None:
                raise KvError(NotLeaseholder(SYSTEM_RANGE, self._system_range.leaseholder_hint(SYSTEM_RANGE)))
            if self._clock.now() > deadline:
                raise KvError(Unavailable("the oracle's mark cannot be raised: the system range has no quorum"))
            await trio.sleep(0.002)
        return first

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Raise the mark whenever it is wanted, for ever."""
        task_status.started()
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            try:
                await self._raise_mark()
            except KvError as error:
                log.debug("the mark was not raised: %s", error)
                await trio.sleep(RETRY_S)

    async def _raise_mark(self) -> None:
        term = self._system_range.lease_started(SYSTEM_RANGE)
        if term is None:
            return
        floor = self._next
        if term != self._term:
            # A new lease: start at the mark that the log before it left.
            floor = max(floor, self._system_range.oracle_mark())
            self._physical_ms = max(self._physical_ms, float(to_milliseconds(Timestamp(floor))))
            if to_milliseconds(Timestamp(floor)) < FIRST_MS:
                self._physical_ms = float(self._clock.wall_ms())  # the first start of a cluster
            self._physical_at = self._clock.now()
        ahead_ms = max(self._advance(), to_milliseconds(Timestamp(floor)) + 1) + MARK_AHEAD_MS
        reply = await self._system_range.raise_mark(RaiseMarkRequest(SYSTEM_RANGE, from_milliseconds(ahead_ms)))
        if self._system_range.lease_started(SYSTEM_RANGE) != term:
            return
        if term != self._term:
            log.info("issuing timestamps above %d, term %d", floor, term)
            self._term, self._next = term, max(floor, self._next)
        self._limit = max(self._limit, reply.mark)

    def _advance(self) -> int:
        """Bring the physical part up to date, and give it in milliseconds."""
        now = self._clock.now()
        elapsed_ms = max(now - self._physical_at, 0.0) * 1000
        self._physical_at = now
        gap_ms = self._clock.wall_ms() - self._physical_ms
        # Behind the wall clock the line runs faster, ahead of it at half speed, so that the two meet without a jump.
        self._physical_ms += min(max(gap_ms, elapsed_ms / 2), elapsed_ms * STEP_FACTOR)
        return int(self._physical_ms)
