"""The intents of a range that are not resolved, as of its applied log: below the oldest of them a replica's state is final (rule 23).

Their number goes with the applied index.  If there are none, as nearly always when a store starts, nothing has to be looked for; else a
scan of the range finds them again (`closing`), while commands go on being applied, and until then nothing is said.

Invariants:
- Complete: it holds every intent that stands, at the timestamp at which it stands.
- Not complete: it holds those that were laid, or found by the scan, and have not been resolved since.

Sans-I/O.
"""

import heapq

from dsdb.storage.keys import Span
from dsdb.storage.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp, after

UNKNOWN = -1
"""In place of the number of intents: some may stand that are not known."""
POPS_AT_DROP = 2
"""Resolved intents that leave the heap with each one that is resolved: more than come in.  What is below the top waits."""
HEAP_SLACK = 64
"""Resolved intents that may stay in the heap, beside as many as there are open ones."""


class OpenIntents:
    """The intents of one range."""

    def __init__(self, *, is_complete: bool) -> None:
        self.is_complete = is_complete
        self._at: dict[bytes, Timestamp] = {}
        """Key → where its intent stands."""
        self._by_ts: list[tuple[Timestamp, bytes]] = []
        """A heap of what `_at` holds, and of what it held before."""

    @property
    def count(self) -> int:
        """Give how many there are, or UNKNOWN."""
        return len(self._at) if self.is_complete else UNKNOWN

    def lay(self, key: bytes, ts: Timestamp) -> None:
        """Note an intent that was laid, or found; it replaces the one that stood there."""
        if self._at.get(key) != ts:
            self._at[key] = ts
            heapq.heappush(self._by_ts, (ts, key))
            if len(self._by_ts) > 2 * len(self._at) + HEAP_SLACK:
                self._by_ts = sorted([(at, of) for of, at in self._at.items()])

    def drop(self, key: bytes) -> None:
        """Note that an intent was resolved."""
        if self._at.pop(key, None) is None:
            return
        if not self._at:
            self._by_ts.clear()
        # A few at a time, so that nobody finds a hundred thousand of them on top of the heap.
        for _ in range(POPS_AT_DROP):
            if self._is_top_stale():
                heapq.heappop(self._by_ts)

    def _is_top_stale(self) -> bool:
        heap = self._by_ts
        return bool(heap) and self._at.get(heap[0][1]) != heap[0][0]

    def oldest_ts(self) -> Timestamp:
        """Give the lowest timestamp at which an intent may stand; MAX_TIMESTAMP if there is none."""
        if not self.is_complete:
            return after(MIN_TIMESTAMP)
        oldest = self.oldest()
        return MAX_TIMESTAMP if oldest is None else oldest[0]

    def oldest(self) -> tuple[Timestamp, bytes] | None:
        """Give the timestamp and key of the oldest intent that is known."""
        while self._is_top_stale():
            heapq.heappop(self._by_ts)
        return self._by_ts[0] if self._by_ts else None

    def clear(self, span: Span) -> None:
        """Note that a span was cleared of everything."""
        for key in [key for key in self._at if span.contains(key)]:
            self.drop(key)

    def hand_over(self, start: bytes) -> "OpenIntents":
        """Give up the intents at or above a key: they are the right side's of a split."""
        moved = OpenIntents(is_complete=self.is_complete)
        for key, ts in [(key, ts) for key, ts in self._at.items() if key >= start]:
            moved.lay(key, ts)
            self.drop(key)
        return moved
