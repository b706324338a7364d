"""Verdicts: what a leaseholder has said of attempts that have no txn record here, so that it goes on saying it.

    push by a reader at t ─▶ pushed: its record will not be staged at or below t
    push by a writer, abort, removal ─▶ tombstone: its record will never be created (again); with the outcome

    KeepLocks ─▶ heard: the gateway of a PENDING record lives

They are volatile.  Whatever is lost of them is covered by `low`: no record is created for an attempt whose first_ts is not above it, so
what was said of it stays true (rules 15, 16 and 18).  For a PENDING record, which is made already, `push_low` covers the pushes (rule 28).
A new lease starts with nothing, its own low water, and the belief that every gateway lives.

Invariants:
- Nothing is forgotten without `low` being raised to the attempt's first_ts, and `push_low` to a push.
- A tombstone is final.  A push only grows.

Sans-I/O: whoever waits for news of an attempt leaves a function to be called.
"""

from collections.abc import Callable

from dsdb.kv.ids import AttemptId
from dsdb.kv.intents import RecordReply
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp


class Verdicts:
    """The verdicts of one range's leaseholder."""

    def __init__(self, *, verdicts_max: int) -> None:
        self._max = verdicts_max
        """Pushes, and tombstones, kept."""
        self.low: Timestamp = MIN_TIMESTAMP
        """Attempts with first_ts at or below it may have had a record or a verdict here."""
        self.push_low: Timestamp = MIN_TIMESTAMP
        """Any attempt may have been pushed up to here."""
        self._pushes: dict[AttemptId, tuple[Timestamp, Timestamp]] = {}
        """Attempt → first_ts, highest push."""
        self._tombstones: dict[AttemptId, tuple[Timestamp, RecordReply]] = {}
        """Attempt → first_ts, outcome."""
        self._heard_at: dict[AttemptId, float] = {}
        """When the gateways of attempts with PENDING or large records were last heard of."""
        self._committing: dict[AttemptId, float] = {}
        """When attempts with PENDING records were first told to commit above a push."""
        self._listeners: dict[AttemptId, list[Callable[[], None]]] = {}
        self.listening = 0
        """Functions that wait to be called."""

    def begin(self, low: Timestamp) -> None:
        """Begin a lease whose low water is `low`."""
        self._pushes.clear()
        self._tombstones.clear()
        self._heard_at.clear()
        self._committing.clear()
        self.low = max(self.low, low)
        self.push_low = max(self.push_low, low)

    def outcome(self, attempt: AttemptId) -> RecordReply | None:
        """Give the outcome on an attempt's tombstone."""
        found = self._tombstones.get(attempt)
        return None if found is None else found[1]

    def pushed(self, attempt: AttemptId) -> Timestamp:
        """Give the timestamp above which an attempt must be staged; 0 if nobody pushed it."""
        found = self._pushes.get(attempt)
        return MIN_TIMESTAMP if found is None else found[1]

    def push(self, attempt: AttemptId, first_ts: Timestamp, ts: Timestamp) -> None:
        """Remember that an attempt will not be staged at or below `ts`."""
        self._pushes[attempt] = first_ts, max(ts, self.pushed(attempt))
        if len(self._pushes) > self._max:
            self._forget(self._pushes)

    def bury(self, attempt: AttemptId, first_ts: Timestamp, outcome: RecordReply) -> None:
        """Leave a tombstone, unless one is there, and tell those who wait for news."""
        self._tombstones.setdefault(attempt, (first_ts, outcome))
        if len(self._tombstones) > self._max:
            self._forget(self._tombstones)
        self.tell(attempt)

    def _forget(self, kept: dict[AttemptId, tuple[Timestamp, Timestamp]] | dict[AttemptId, tuple[Timestamp, RecordReply]]) -> None:
        """Forget the older half, under the low water."""
        ages = sorted(entry[0] for entry in kept.values())
        self.low = max(self.low, ages[len(ages) // 2])
        for attempt in [attempt for attempt, entry in kept.items() if entry[0] <= self.low]:
            self.push_low = max(self.push_low, self.pushed(attempt))
            del kept[attempt]

    # ---- Signs of life ----

    def hear(self, attempt: AttemptId, now: float) -> None:
        """Note that the gateway of an attempt with a record lives."""
        self._heard_at[attempt] = now

    def is_silent(self, attempt: AttemptId, now: float, silence_max_s: float) -> bool:
        """Say whether a gateway was not heard of for too long; one that was never asked for is believed to live."""
        return now - self._heard_at.setdefault(attempt, now) >= silence_max_s

    def note_commit(self, attempt: AttemptId, now: float) -> None:
        """Note that a commit was pushed above a reader: it will come again."""
        self._committing.setdefault(attempt, now)

    def is_committing(self, attempt: AttemptId, now: float, duration_s: float) -> bool:
        """Say whether a commit was pushed not long ago, so that readers had better wait for it than push it again and again."""
        began = self._committing.get(attempt)
        return began is not None and now - began < duration_s

    def forget_gateway(self, attempt: AttemptId) -> None:
        """Forget when a gateway was heard of: its record is gone."""
        self._heard_at.pop(attempt, None)
        self._committing.pop(attempt, None)

    # ---- News ----

    def listen(self, attempt: AttemptId, call: Callable[[], None]) -> None:
        """Have a function called once when something becomes of an attempt, or the lease ends; `unlisten` after."""
        self._listeners.setdefault(attempt, []).append(call)
        self.listening += 1

    def unlisten(self, attempt: AttemptId, call: Callable[[], None]) -> None:
        """Take a function back, whether it was called or not."""
        calls = self._listeners.get(attempt)
        if calls is not None and call in calls:
            calls.remove(call)
            self.listening -= 1
            if not calls:
                del self._listeners[attempt]

    def tell(self, attempt: AttemptId) -> None:
        """Call those who wait for news of an attempt."""
        if self._listeners:
            calls = self._listeners.pop(attempt, [])
            self.listening -= len(calls)
            for call in calls:
                call()

    def tell_all(self) -> None:
        """Call everyone: the lease is over."""
        for attempt in list(self._listeners):
            self.tell(attempt)
