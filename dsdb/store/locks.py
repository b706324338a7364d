"""The lock table of one range: which attempt holds which keys, and who waits for them.

    ask ─▶ its keys in ascending order, one after the other
             free, or its own                          ─▶ taken
             the holder was silent for too long        ─▶ taken from it
             the holder is younger, and we hold locks  ─▶ it is *wounded*: the key goes to the first in the queue
             else   wait: queue  ·  nowait: refused  ·  skip: left out
    release(attempt) ─▶ each of its keys to the first in its queue

A queue stands in the order in which its *transactions* began (start_ts, then attempt), whatever came first: a transaction that is run
again, or asks again after a while, keeps its place, and nobody starves as long as everybody ends.

Invariants:
- A key has one holder at most, and a queue only while it has a holder.
- No deadlock: who waits while it holds locks waits for an older transaction only (a younger holder would be wounded), and who holds
  none is waited for by nobody.  "Older" is a total order, so such waits cannot run in a circle, over any number of ranges.
- Locks are advice.  Nothing here may be relied on for correctness: a holder is not even told that it was wounded.
- Bounded: of too many locks the oldest are dropped; those who wait are counted, and turned away by the caller (`waiting`).

Not here: reads under the locks, deadlines, the lease (`locking`).  Time is an argument.
"""

from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from dsdb.kv.ids import AttemptId
from dsdb.kv.locks import LockWait
from dsdb.storage.timestamp import Timestamp


class AskState(Enum):
    """Where a request for locks stands; only WAITING ever changes."""

    WAITING = "waiting"
    GRANTED = "granted"
    REFUSED = "refused"
    """A key is locked by another (`Ask.refused`)."""
    DROPPED = "dropped"
    """The lease has ended, the range was split, or the attempt gave up: look again."""


class LockEntry(NamedTuple):
    """A lock, for people."""

    key: bytes
    attempt: AttemptId
    since: float
    """When it was taken, by the store's clock."""
    waiters: int


class _Held:
    """A lock that is held."""

    __slots__ = ("attempt", "rank", "taken_at")

    def __init__(self, rank: tuple[Timestamp, AttemptId], attempt: AttemptId, taken_at: float) -> None:
        self.rank = rank
        self.attempt = attempt
        self.taken_at = taken_at


class Ask:
    """A request for locks: what it has, and what it still waits for."""

    __slots__ = ("at", "attempt", "holds_locks", "keys", "locked", "on_settled", "rank", "refused", "state", "taken", "wait")

    def __init__(self, attempt: AttemptId, start_ts: Timestamp, keys: Sequence[bytes], wait: LockWait, holds_locks: bool) -> None:
        self.attempt = attempt
        self.rank = (start_ts, attempt)
        """Its place among all transactions: the lower is the older."""
        self.keys = keys
        self.wait = wait
        self.holds_locks = holds_locks
        """Somewhere, this range included."""
        self.at = 0
        """The key that it is about to take, or waits for."""
        self.locked: list[bool] = []
        """Of each key up to there, whether it is locked now."""
        self.taken: list[bytes] = []
        """Those that it did not hold before."""
        self.state = AskState.WAITING
        self.refused: bytes | None = None
        self.on_settled: Callable[[], None] | None = None
        """Called when it is no longer WAITING."""

    def __lt__(self, other: "Ask") -> bool:
        return self.rank < other.rank


class LockTable:
    """The locks of one range at its leaseholder."""

    def __init__(self, *, silence_max_s: float, locks_max: int) -> None:
        self._silence_max_s = silence_max_s
        self._locks_max = locks_max
        self._held: dict[bytes, _Held] = {}
        """In the order in which they were taken."""
        self._queues: dict[bytes, list[Ask]] = {}
        """Key → who waits for it, the oldest transaction first; never empty lists."""
        self._asks_of: dict[AttemptId, list[Ask]] = {}
        """What each attempt waits for."""
        self._keys_of: dict[AttemptId, dict[bytes, None]] = {}
        """What each attempt holds, in the order of taking."""
        self._heard_at: dict[AttemptId, float] = {}
        """When each attempt that holds something was last heard of."""
        self._sweep_at = 0.0
        """When to look next for attempts that have fallen silent, also where nobody waits."""
        self._free: deque[bytes] = deque()
        """Keys whose queues are to be looked at."""
        self._is_settling = False
        self.waiting = 0
        """Asks that wait."""
        self.wounds = 0
        """Locks taken from younger holders so far."""
        self.abandoned = 0
        """Locks taken from silent holders so far."""

    def __len__(self) -> int:
        return len(self._held)

    # ---- Asking ----

    def ask(self, attempt: AttemptId, start_ts: Timestamp, keys: Sequence[bytes], wait: LockWait, *, holds_locks: bool, now: float) -> Ask:
        """Ask for keys (ascending); look at `state`, and set `on_settled` to hear of it later."""
        ask = Ask(attempt, start_ts, keys, wait, holds_locks or attempt in self._keys_of)
        self.waiting += 1
        self.touch(attempt, now)
        if now >= self._sweep_at:
            self._sweep_at = now + self._silence_max_s
            self._sweep(now)
        self._go_on(ask, now)
        self._settle(now)
        return ask

    def _go_on(self, ask: Ask, now: float) -> None:
        """Take the next keys of an ask, as far as it goes."""
        keys = ask.keys
        while ask.at < len(keys):
            key = keys[ask.at]
            held = self._held.get(key)
            if held is not None and held.attempt != ask.attempt and self._is_silent(held, now):
                self._let_go_of_silent(key)
                held = None
            if (held is None and key not in self._queues) or (held is not None and held.attempt == ask.attempt):
                self._take(key, ask, now)
            elif ask.wait is LockWait.WAIT:
                self._queue(key, ask)
                if held is not None and ask.holds_locks and ask.rank < held.rank:
                    self.wounds += 1
                    self._let_go(key)
                return
            elif ask.wait is LockWait.NOWAIT:
                ask.refused = key
                self._end(ask, AskState.REFUSED)
                self._give_back(ask)
                return
            else:
                ask.locked.append(False)
                ask.at += 1
        self._end(ask, AskState.GRANTED)

    def _is_silent(self, held: _Held, now: float) -> bool:
        return now - self._heard_at[held.attempt] >= self._silence_max_s

    def _take(self, key: bytes, ask: Ask, now: float) -> None:
        """Give a key that is free, or its own already, to an ask."""
        if key not in self._held:
            if len(self._held) >= self._locks_max:
                self._let_go(next(iter(self._held)))
            attempt = ask.attempt
            self._held[key] = _Held(ask.rank, attempt, now)
            self._keys_of.setdefault(attempt, {})[key] = None
            self._heard_at[attempt] = now
            ask.taken.append(key)
        ask.holds_locks = True
        ask.locked.append(True)
        ask.at += 1

    def _queue(self, key: bytes, ask: Ask) -> None:
        insort(self._queues.setdefault(key, []), ask)
        self._asks_of.setdefault(ask.attempt, []).append(ask)

    def _end(self, ask: Ask, state: AskState) -> None:
        assert ask.state is AskState.WAITING, f"an ask of {ask.attempt.hex()} that is {ask.state}"
        ask.state = state
        self.waiting -= 1
        if ask.on_settled is not None:
            ask.on_settled()

    def _give_back(self, ask: Ask) -> None:
        """Release what an ask took that came to nothing: its statement has failed."""
        for key in ask.taken:
            held = self._held.get(key)
            if held is not None and held.attempt == ask.attempt:
                self._let_go(key)

    def is_free_for(self, attempt: AttemptId, keys: Sequence[bytes]) -> bool:
        """Say whether an attempt would get all these keys at once."""
        held = self._held
        for key in keys:
            found = held.get(key)
            if found is not None and found.attempt != attempt:
                return False
        return True

    def held_by_older(self, attempt: AttemptId, start_ts: Timestamp, keys: Iterable[bytes]) -> list[bytes]:
        """Give those of some keys, ascending, that transactions hold which began before `start_ts`."""
        held, rank = self._held, (start_ts, attempt)
        return sorted([key for key in keys if (found := held.get(key)) is not None and found.attempt != attempt and found.rank < rank])

    # ---- Handing on ----

    def _forget(self, key: bytes) -> None:
        held = self._held.pop(key)
        keys = self._keys_of[held.attempt]
        del keys[key]
        if not keys:
            del self._keys_of[held.attempt]
            del self._heard_at[held.attempt]

    def _let_go(self, key: bytes) -> None:
        """Take a key from its holder; `_settle` gives it to the next."""
        self._forget(key)
        if key in self._queues:
            self._free.append(key)

    def _settle(self, now: float) -> None:
        """Give every free key to the first in its queue, until none is free that somebody waits for."""
        if self._is_settling:
            return
        self._is_settling = True
        try:
            while self._free:
                key = self._free.popleft()
                queue = self._queues.get(key)
                if queue is None or key in self._held:
                    continue
                ask = queue.pop(0)
                if not queue:
                    del self._queues[key]
                self._forget_ask(ask)
                self._take(key, ask, now)
                self._go_on(ask, now)
        finally:
            self._is_settling = False

    def release(self, attempt: AttemptId, now: float) -> None:
        """Give back everything that an attempt holds, and its places in queues: it has ended."""
        keys = self._keys_of.get(attempt)
        if keys is not None:
            for key in list(keys):
                self._let_go(key)
        for ask in list(self._asks_of.get(attempt, ())):
            self._leave_queue(ask)
            self._end(ask, AskState.DROPPED)
        self._settle(now)

    def withdraw(self, ask: Ask, now: float) -> None:
        """Take back an ask that waits no longer, with what it took on the way."""
        if ask.state is AskState.WAITING:
            self._leave_queue(ask)
            ask.on_settled = None
            self._end(ask, AskState.DROPPED)
        self._give_back(ask)
        self._settle(now)

    def _leave_queue(self, ask: Ask) -> None:
        key = ask.keys[ask.at]
        queue = self._queues[key]
        queue.remove(ask)
        if not queue:
            del self._queues[key]
        self._forget_ask(ask)

    def _forget_ask(self, ask: Ask) -> None:
        asks = self._asks_of[ask.attempt]
        asks.remove(ask)
        if not asks:
            del self._asks_of[ask.attempt]

    # ---- Time, lease, splits ----

    def touch(self, attempt: AttemptId, now: float) -> None:
        """Note that an attempt was heard of."""
        if attempt in self._heard_at:
            self._heard_at[attempt] = now

    def expire(self, now: float) -> None:
        """Take the keys that somebody waits for from holders that were silent for too long."""
        for key in list(self._queues):
            held = self._held.get(key)
            if held is not None and self._is_silent(held, now):
                self._let_go_of_silent(key)
        self._settle(now)

    def _sweep(self, now: float) -> None:
        for attempt in [attempt for attempt, heard_at in self._heard_at.items() if now - heard_at >= self._silence_max_s]:
            for key in list(self._keys_of[attempt]):
                self._let_go_of_silent(key)

    def _let_go_of_silent(self, key: bytes) -> None:
        self.abandoned += 1
        self._let_go(key)

    def clear(self) -> None:
        """Forget everything: the lease has ended."""
        self._held.clear()
        self._keys_of.clear()
        self._heard_at.clear()
        self._free.clear()
        self._asks_of.clear()
        queues, self._queues = self._queues, {}
        for queue in queues.values():
            for ask in queue:
                self._end(ask, AskState.DROPPED)

    def clip(self, end: bytes, now: float) -> None:
        """Forget keys at and above `end`: they belong to another range now."""
        for ask in [ask for queue in self._queues.values() for ask in queue if ask.keys[-1] >= end]:
            self._leave_queue(ask)
            self._end(ask, AskState.DROPPED)
        for key in [key for key in self._held if key >= end]:
            self._let_go(key)
        self._settle(now)

    # ---- Views ----

    def holder(self, key: bytes) -> AttemptId | None:
        """Give the attempt that holds a key."""
        held = self._held.get(key)
        return None if held is None else held.attempt

    def entries(self) -> list[LockEntry]:
        """Give all locks, in key order."""
        return [
            LockEntry(key, self._held[key].attempt, self._held[key].taken_at, len(self._queues.get(key, ()))) for key in sorted(self._held)
        ]
