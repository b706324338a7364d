"""Every node's way to the oracle: fresh timestamps, in rounds.

    requests   a  b          c d e             f
    rounds     └──── round 1: a ──┘            round 3 …
                        └─ round 2: b c d e ─┘

Invariants (rule 1):
- A request is served only by a round that was sent after the request was made; nobody caches timestamps.
- Each request gets a timestamp of its own.
- A request fails at its own deadline, whoever's rounds it waited for (B22).
"""

import msgspec
import outcome
import trio

from dsdb.env import Clock
from dsdb.kv.errors import KvError, KvErrorDetail, NotLeaseholder, RangeNotFound, Unavailable
from dsdb.kv.ids import SYSTEM_RANGE, NodeId
from dsdb.oracle.issuer import Issuer
from dsdb.ranges import RangeCache
from dsdb.rpc import CallFailed, Method, MethodKind, NotSent, Peers, ReplyLost
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp

TIMEOUT_S = 8.0
"""A request that found no oracle for this long fails."""
CALL_TIMEOUT_S = 1.5
"""One try of one round."""
ROUNDS_IN_FLIGHT_MAX = 2
"""A second round may leave while the first is out: it halves the wait of requests that just missed one."""
PAUSE_S = 0.01
"""Pause before asking again when nobody leads the system range."""


class IssueRequest(msgspec.Struct, frozen=True, array_like=True):
    """Ask for `count` consecutive timestamps."""

    count: int


class IssueReply(msgspec.Struct, frozen=True, array_like=True):
    """The first of them."""

    first: Timestamp


ISSUE: Method[IssueRequest, IssueReply] = Method(
    20, "issue", MethodKind.CALL, IssueRequest, IssueReply, error_type=KvErrorDetail, error_exception=KvError
)


class OracleClient:
    """Fresh timestamps for this node; a TimestampSource."""

    def __init__(self, *, node_id: NodeId, issuer: Issuer, cache: RangeCache, peers: Peers, clock: Clock) -> None:
        self._node_id = node_id
        self._issuer = issuer
        self._cache = cache
        self._peers = peers
        self._clock = clock
        self._waiting: list[_Seat] = []
        self._rounds_in_flight = 0
        self._turn = 0
        self._latest = MIN_TIMESTAMP
        """The highest timestamp that came here, or was heard of."""

    @property
    def latest(self) -> Timestamp:
        """Give the highest timestamp that is known here to be issued: a lower bound of every one to come, nothing more."""
        return max(self._latest, self._issuer.latest)

    def note(self, ts: Timestamp) -> None:
        """Learn of a timestamp that was issued, to whomever."""
        self._latest = max(self._latest, ts)

    def hear(self, ts: Timestamp) -> None:
        """Note a timestamp that was issued, of which another node knows."""
        if ts > self._latest:
            self._latest = ts

    def fresh_nowait(self) -> Timestamp | None:
        """Give a fresh timestamp if this node is the oracle, else None."""
        return self._issuer.issue_nowait()

    def newest_nowait(self) -> Timestamp | None:
        """Give a timestamp at which all is seen that was acknowledged before, if this node is the oracle, else None."""
        return self._issuer.newest_nowait()

    async def fresh(self, *, timeout_s: float = TIMEOUT_S) -> Timestamp:
        """Give a fresh timestamp.  Raises KvError Unavailable."""
        ts = self.fresh_nowait()
        if ts is not None:
            return ts
        deadline = self._clock.now() + timeout_s
        if self._rounds_in_flight >= ROUNDS_IN_FLIGHT_MAX:
            ready: Timestamp | None = await self._wait_for_round(deadline)
            if ready is not None:
                return ready
        return await self._round(deadline)

    async def _wait_for_round(self, deadline: float) -> Timestamp | None:
        """Wait until a round brings a timestamp (given), or until it is this task's turn to send one (None)."""
        seat = _Seat(trio.lowlevel.current_task(), deadline)
        self._waiting.append(seat)

        def abort(_: object) -> trio.lowlevel.Abort:
            seat.task = None  # whoever comes to wake it finds nobody
            return trio.lowlevel.Abort.SUCCEEDED

        result: Timestamp | None = await trio.lowlevel.wait_task_rescheduled(abort)
        return result

    async def _round(self, deadline: float) -> Timestamp:
        """Send a round for this task and for all that wait now, until this task's deadline."""
        self._rounds_in_flight += 1
        riders, self._waiting = self._waiting, []
        has_come = False
        try:
            first = await self._ask(1 + len(riders), deadline, riders)
            has_come = True
            self._latest = max(self._latest, Timestamp(first + len(riders)))
            for number, seat in enumerate(riders, 1):
                seat.wake(outcome.Value(Timestamp(first + number)))
            return first
        finally:
            if not has_come:
                # Whatever ended it: those with time left wait on, and the first of them sends a round.
                self._waiting[:0] = riders
            self._rounds_in_flight -= 1
            self._start_next()

    def _start_next(self) -> None:
        """Wake one of those who wait, to send the next round."""
        while self._waiting:
            if self._waiting.pop(0).wake(outcome.Value(None)):
                return

    async def _ask(self, count: int, deadline: float, riders: "list[_Seat]") -> Timestamp:
        reason = "the system range is not known"
        while True:
            target = self._target()
            timeout_s = min(CALL_TIMEOUT_S, max(deadline - self._clock.now(), 0.0))
            try:
                if target == self._node_id:
                    return await self._issuer.issue(count, timeout_s=timeout_s)
                if target is not None:
                    return (await self._peers.call(target, ISSUE, IssueRequest(count), timeout_s=timeout_s)).first
            except KvError as error:
                self._learn(error)
                reason = str(error)
            except (NotSent, ReplyLost, CallFailed) as error:
                reason = str(error)
                self._forget_leaseholder()
            now = self._clock.now()
            for seat in (*riders, *self._waiting):
                if seat.deadline <= now:
                    seat.wake(outcome.Error(KvError(Unavailable(f"no timestamp: {reason}"))))
            if now >= deadline:
                raise KvError(Unavailable(f"no timestamp: {reason}"))
            await trio.sleep(PAUSE_S)

    def _target(self) -> NodeId | None:
        entry = self._cache.by_id(SYSTEM_RANGE)
        if entry is None:
            return None
        replica = entry.desc.replica_on(entry.leaseholder) if entry.leaseholder is not None else None
        if replica is None:
            voters = entry.desc.voters
            replica = voters[self._turn % len(voters)]
            self._turn += 1
        return replica.node_id

    def _learn(self, error: KvError) -> None:
        entry = self._cache.by_id(SYSTEM_RANGE)
        if entry is None:
            return
        match error.detail:
            case NotLeaseholder(_, leaseholder, desc):
                if desc is not None:
                    entry = self._cache.update(desc)
                entry.leaseholder = leaseholder if leaseholder != entry.leaseholder else None
            case RangeNotFound():
                entry.leaseholder = None

    def _forget_leaseholder(self) -> None:
        if entry := self._cache.by_id(SYSTEM_RANGE):
            entry.leaseholder = None


class _Seat:
    """A task that waits for a round until its deadline; empty once it was woken or cancelled."""

    __slots__ = ("deadline", "task")

    def __init__(self, task: trio.lowlevel.Task, deadline: float) -> None:
        self.task: trio.lowlevel.Task | None = task
        self.deadline = deadline

    def wake(self, result: "outcome.Outcome[Timestamp | None]") -> bool:
        """Wake the task with a result; False if there is nobody any more."""
        task, self.task = self.task, None
        if task is None:
            return False
        trio.lowlevel.reschedule(task, result)
        return True
