"""What a range's leaseholder knows: replicated state, volatile state, and what every request looks at.

Invariants:
- Only a Command changes replicated state, and only when it is applied; it is latched from its evaluation until then.
- Volatile state is lost when the lease moves; the new lease's low water stands for all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tests.model.world import World

TIMEOUT, WAIT, MISMATCH = "timeout", "wait", ("mismatch",)
"""No reply came in time; a latch is held, deliver the request again later; the range has not all of the request's keys (any more)."""

AttemptId = tuple[Any, int]
"""A client transaction, and the number of its run."""


class Intent(NamedTuple):
    """A provisional value."""

    attempt: AttemptId
    ts: int
    value: Any
    anchor: str
    """The key beside which the attempt's record lives."""
    first_ts: int
    seq: int = 0
    """Which of the attempt's writes it is."""


NOTHING = "nothing"
"""The value of an intent in the place of one that was rolled back: resolving it leaves no version."""


class Record(NamedTuple):
    """A transaction record, replicated."""

    status: str
    """PENDING, STAGING, COMMITTED or ABORTED."""
    ts: int
    keys: tuple[str, ...]
    """What was promised to be written at or below ts."""
    anchor: str


class Command:
    """A Raft command: evaluated, in the log, not applied yet.  Its keys are latched until it is."""

    __slots__ = ("apply", "args", "closed", "home", "is_split", "keys", "task")

    def __init__(self, keys: Iterable[Any], apply: Callable[..., tuple], *args: Any, home: tuple[str, ...] | None = None) -> None:
        self.keys, self.apply, self.args = tuple(keys), apply, args
        self.home: tuple[Any, ...] = self.keys if home is None else home
        """Keys that must still be in the range when it is applied."""
        self.is_split = False
        """It latches the whole range."""
        self.task: Any = None
        """Who waits for the reply that `apply` returns."""
        self.closed = 0
        """The closed timestamp that travels with it."""


class RangeState:
    """A range's state, and the parts that its requests have in common."""

    def __init__(self, world: World, keys: str) -> None:
        self.world, self.off, self.keys = world, world.off, keys
        # Replicated.
        self.versions: dict[str, list[tuple]] = {k: [] for k in keys}
        """key → (ts, value, attempt), ascending by ts."""
        self.intents: dict[str, Intent] = {}
        self.records: dict[AttemptId, Record] = {}
        self.outcomes: dict[AttemptId, tuple] = {}
        """("committed", ts) or ("refused",), of one-range commits."""
        self.closed = 0
        self.threshold = 0
        """Versions that no read at or above this sees may be gone."""
        self.floor = 0
        """Outcomes of attempts whose first_ts is not above it are forgotten."""
        self.log: list[Command] = []
        """Proposed, not applied."""
        self.old: Stale | None = None
        """A deposed leaseholder that still serves (lease_fence off)."""
        self.lease_ts = 0
        self.told: tuple[int, Command | None] = (0, None)
        """What was promised closed beside the log, and the command behind which it counts."""
        self.inherited: Volatile | None = None
        """What the first lease began with, if not with a fresh low water: after a split."""
        self.reset(0)

    def reset(self, low: int) -> None:
        """Begin a lease: nothing volatile is left of the one before."""
        self.cache: dict[str, tuple[int, AttemptId | None]] = {}
        """The timestamp cache: key → (ts, who read there, None for several or nobody)."""
        self.low = low
        """Every key counts as read here, by nobody."""
        self.record_low = low
        """The same for pushes and tombstones: attempts whose first_ts is not above it may have had some, or a record."""
        self.push_low = low
        """Any attempt may have been pushed up to here."""
        self.pushes: dict[AttemptId, int] = {}
        """attempt → its record may not be staged at or below this."""
        self.tombs: dict[AttemptId, tuple] = {}
        """attempt → outcome: its record may not be created any more."""
        self.locks: dict[str, AttemptId] = {}
        """Unreplicated locks."""
        self.closing = self.closed
        """What the next command says is closed."""

    def forget_half(self) -> None:
        """Forget the older half of what is volatile, as if there were too much of it."""
        off = self.off
        for k in sorted(self.cache, key=lambda k: self.cache[k][0])[: (len(self.cache) + 1) // 2]:
            ts, _ = self.cache.pop(k)
            if "full_cache" not in off:
                self.low = max(self.low, ts)
        first_ts = {attempt: self.world.attempts[attempt].first_ts for attempt in (*self.pushes, *self.tombs)}
        old = sorted(first_ts, key=lambda attempt: first_ts[attempt])[: (len(first_ts) + 1) // 2]
        for attempt in old:
            if "full_verdicts" not in off:
                self.record_low = max(self.record_low, first_ts[attempt])
            if "full_pushes" not in off:
                self.push_low = max(self.push_low, self.pushes.get(attempt, 0))
            self.pushes.pop(attempt, None)
            self.tombs.pop(attempt, None)
        self.world.seen["forgotten verdicts"] += len(old)

    def latched(self, keys: Iterable[Any]) -> bool:
        """Say whether a command on any of these keys is evaluated and not applied."""
        if self.log and "read_latch" not in self.off:
            for command in self.log:
                if command.is_split and "split_latch" not in self.off:
                    return True
                for k in command.keys:
                    if k in keys:
                        return True
        return False

    def lacks(self, keys: Iterable[str]) -> bool:
        """Say whether some key is not in the range."""
        return any(k not in self.versions for k in keys)

    def note(self, key: str, ts: int, owner: AttemptId | None) -> None:
        """Record a read in the timestamp cache."""
        entry = self.cache.get(key)
        if entry is None or ts > entry[0]:
            self.cache[key] = (ts, owner)
        elif ts == entry[0] and owner != entry[1]:
            self.cache[key] = (ts, None)

    def bump(self, key: str, ts: int, attempt: AttemptId) -> int:
        """Give the timestamp that a write of this key must be above, or 0 if it may be at ts."""
        bound = max(self.low, self.threshold) if "gc_bumps" not in self.off else self.low
        if "closed_bumps" not in self.off and self.closing > bound:
            bound = self.closing
        versions = self.versions[key]
        if versions and versions[-1][0] > bound and "write_newer" not in self.off:
            bound = versions[-1][0]
        if bound < ts:
            bound = 0
        entry = self.cache.get(key)
        # At an equal timestamp only the owner may write.
        is_foreign = entry and entry[1] != attempt and "read_cache_owner" not in self.off
        if entry and entry[0] > bound and (entry[0] > ts or (entry[0] == ts and is_foreign)):
            bound = entry[0]
        return bound

    def visible(self, key: str, ts: int) -> Any:
        """Give a key's value at ts, intents aside."""
        found = None
        for version in self.versions[key]:
            if version[0] > ts:
                break
            found = version
        return found[1] if found else None

    def put(self, key: str, ts: int, value: Any, attempt: AttemptId) -> None:
        """Write a committed version, at its place."""
        if key not in self.versions:
            return  # split_latch and split_fits_at_apply off: it goes nowhere
        self.world.applied.append((key, ts, value, attempt))
        versions = self.versions[key]
        versions.append((ts, value, attempt))
        if len(versions) > 1 and versions[-2][0] > ts:
            versions.sort(key=lambda version: version[0])


class Volatile(NamedTuple):
    """What a leaseholder knows and a lease move loses, apart from locks."""

    cache: dict[str, tuple[int, AttemptId | None]]
    low: int
    record_low: int
    push_low: int
    pushes: dict[AttemptId, int]
    tombs: dict[AttemptId, tuple]

    def give(self, state: RangeState) -> None:
        """Let a lease begin with this."""
        state.reset(self.low)
        state.cache, state.pushes, state.tombs = dict(self.cache), dict(self.pushes), dict(self.tombs)
        state.record_low, state.push_low = self.record_low, self.push_low


class Stale:
    """What a deposed leaseholder still sees (lease_fence off)."""

    visible = RangeState.visible

    def __init__(self, state: RangeState) -> None:
        self.versions = {k: list(v) for k, v in state.versions.items()}
        self.intents = dict(state.intents)
