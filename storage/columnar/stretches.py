"""What lies over blocks, settled once and kept for as long as nothing is written there: most of a large table's delta stands still.

    engine ── begin(batch) ─▶ which stretches it changes ── end ─▶ number + 1
    scan   ── find(stretch) ─▶ its regions, or None: then it settles them itself, and keeps them

A stretch is the keys from behind one block up to the end of the next.  Writes are numbered; of each known stretch the number of the last
write that changed it is noted, before the write can be seen.  A reader takes the number before it freezes the engine.

Invariants:
- A reader is given what it would settle itself: regions are given if no write that it may see, and none that it may not, changed the
  stretch since they were settled; if no intent stood there; and if no version there is newer than the reader.
- What is noted is noted before the write is visible; what a reader settled counts as of a number that it had before it froze the engine.

`begin` and `end` may be called by any thread that writes, one batch at a time; the rest is for the event loop alone.
"""

import threading
from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple

from dsdb.storage.columnar.entry import BlockEntry
from dsdb.storage.engine.batch import Change, RecordedBatch
from dsdb.storage.engine.port import Family
from dsdb.storage.timestamp import Timestamp
from dsdb.storage.versions import SUFFIX_BYTES, user_key_of

KEPT_BYTES_DEFAULT = 128 << 20
STRETCHES_MAX = 1 << 16
"""Known at a time; beyond that all are forgotten."""
_ROW_BYTES = 300
"""Memory that a kept row takes beside its key and value, once some columns of it are decoded."""


class Settled(NamedTuple):
    """What a reader found in a stretch."""

    newest: Timestamp
    """Of all versions; whoever reads at or above it sees the same."""
    regions: Sequence[Any]
    """The scan's (`merge.Region`)."""
    size_bytes: int


class Stretch:
    """A known stretch [start, end) that ends with a block."""

    def __init__(self, start: bytes, end: bytes, entry: BlockEntry, touched: int) -> None:
        self.start = start
        self.end = end
        self.entry = entry
        self.touched = touched
        """The number of the last write that changed it, or perhaps did."""
        self.as_of = -1
        """The number of the reader that settled what is kept."""
        self.settled: Settled | None = None

    def is_of(self, start: bytes, entry: BlockEntry) -> bool:
        """Say whether it is this stretch, with this very block."""
        own = self.entry
        return self.start == start and (own is entry or (own.generation, own.rows_crc) == (entry.generation, entry.rows_crc))


class Stretches:
    """The known stretches of a store, and what is kept of them, up to a number of bytes."""

    def __init__(self, bytes_max: int = KEPT_BYTES_DEFAULT) -> None:
        self._bytes_max = bytes_max
        self._size_bytes = 0
        self._lock = threading.Lock()
        self._ends: list[bytes] = []
        self._stretches: dict[bytes, Stretch] = {}
        """By their ends; they do not overlap."""
        self._kept: OrderedDict[bytes, Stretch] = OrderedDict()
        """Those of which something is kept, the least recently used first."""
        self.number = 0
        """Of the last write that is over."""
        self._begun = 0
        """Of the last write that was begun."""

    # ---- Writers ----

    def noting(self, batch: RecordedBatch) -> "Stretches":
        """Implement `port.Journal`."""
        self.begin(batch)
        return self

    def __enter__(self) -> "Stretches":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.end()

    def begin(self, batch: RecordedBatch) -> None:
        """Note what a batch changes, before it can be seen."""
        with self._lock:
            number = self._begun = self.number + 1
            if not self._ends:
                return
            stretch: Stretch | None = None
            for change, family, key, value in batch.changes:
                if family is not Family.DELTA:
                    continue
                if change is Change.DELETE_RANGE:
                    self._touch_between(key, value, number)
                    continue
                user_key = user_key_of(key)
                if stretch is None or not stretch.start <= user_key < stretch.end:
                    at = bisect_right(self._ends, user_key)
                    stretch = self._stretches[self._ends[at]] if at < len(self._ends) else None
                    if stretch is None or user_key < stretch.start:
                        continue
                stretch.touched = number

    def _touch_between(self, start: bytes, end: bytes, number: int) -> None:
        # The bounds are of stored keys, perhaps with a timestamp behind: without it they are lower, which touches rather more.
        for at in range(bisect_left(self._ends, start[:-SUFFIX_BYTES]), len(self._ends)):
            stretch = self._stretches[self._ends[at]]
            if stretch.start > end:
                break
            stretch.touched = number

    def end(self) -> None:
        """Count the batch that was begun: it can be seen, or failed."""
        with self._lock:
            self.number = self._begun

    # ---- Readers ----

    def stretch(self, start: bytes, end: bytes, entry: BlockEntry) -> Stretch:
        """Give a stretch; from now on it is known what is written there."""
        known = self._stretches.get(end)
        if known is not None and known.is_of(start, entry):
            return known
        with self._lock:
            if len(self._ends) >= STRETCHES_MAX:
                self._ends.clear()
                self._stretches.clear()
                self._kept.clear()
                self._size_bytes = 0
            at = bisect_right(self._ends, start)
            while at < len(self._ends) and self._stretches[self._ends[at]].start < end:
                self._drop(self._stretches.pop(self._ends.pop(at)))
            made = self._stretches[end] = Stretch(start, end, entry, self._begun)
            insort(self._ends, end)
        return made

    def find(self, stretch: Stretch, number: int, ts: Timestamp) -> Sequence[Any] | None:
        """Give what is kept of a stretch, if a reader at `ts` that froze the engine after taking `number` would settle the same."""
        settled = stretch.settled
        if settled is None or stretch.touched > min(number, stretch.as_of) or ts < max(settled.newest, stretch.entry.max_ts):
            return None
        self._kept.move_to_end(stretch.end)
        return settled.regions

    def keep(self, stretch: Stretch, number: int, settled: Settled) -> None:
        """Keep what a reader with this number settled."""
        if stretch.touched > number or self._stretches.get(stretch.end) is not stretch:
            return
        self._drop(stretch)
        stretch.settled, stretch.as_of = settled, number
        self._kept[stretch.end] = stretch
        self._size_bytes += settled.size_bytes
        while self._size_bytes > self._bytes_max:
            self._drop(next(iter(self._kept.values())))

    def _drop(self, stretch: Stretch) -> None:
        if stretch.settled is not None:
            self._size_bytes -= stretch.settled.size_bytes
            stretch.settled = None
            del self._kept[stretch.end]


def size_of(keys: Sequence[bytes], values: Sequence[bytes | None]) -> int:
    """Give about how much memory kept rows take, in bytes."""
    return sum(map(len, keys)) + sum(len(value) for value in values if value is not None) + len(keys) * _ROW_BYTES
