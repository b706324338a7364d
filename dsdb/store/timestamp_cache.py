"""The timestamp cache of a range: up to which timestamp, and by whom, its keys were read.

    low ────────┬── points: key → (ts, attempt), in two generations
                └── spans:  disjoint segments, each (ts, attempt)

A write must lie above the newest read of its key; at an equal timestamp only the attempt that read may write (rules 3 and 6).

Invariants:
- Nothing is forgotten: what is dropped raises the low water to its timestamp.
- Two owners at one timestamp become none.
- Its size is bounded: of points the older of two generations is dropped whole, of spans the older half.

Sans-I/O: plain values in and out.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import TypeAlias

from dsdb.kv.ids import AttemptId
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp

Reading: TypeAlias = tuple[Timestamp, AttemptId | None]
"""A timestamp at which something was read, and the attempt that alone may still write there; None: nobody."""


class TimestampCache:
    """What was read, at most at which timestamp."""

    def __init__(self, *, points_max: int, spans_max: int) -> None:
        self._points_max = points_max
        self._spans_max = spans_max
        self.low: Timestamp = MIN_TIMESTAMP
        """Every key counts as read here, by nobody."""
        self._points: dict[bytes, Reading] = {}
        self._points_ts = MIN_TIMESTAMP
        """The highest timestamp in `_points`."""
        self._older: dict[bytes, Reading] = {}
        self._older_ts = MIN_TIMESTAMP
        """The highest timestamp in `_older`."""
        self._starts: list[bytes] = []
        """Starts of the segments, ascending; a segment ends where the next one starts."""
        self._readings: list[Reading | None] = []
        """What was read in each segment; None: nothing above the low water."""

    def raise_low(self, ts: Timestamp) -> None:
        """Count every key as read at `ts`."""
        if ts > self.low:
            self.low = ts

    def note_key(self, key: bytes, ts: Timestamp, attempt: AttemptId | None) -> None:
        """Record the read of a key."""
        points = self._points
        current = points.get(key)
        if current is None or ts > current[0]:
            points[key] = (ts, attempt)
            if ts > self._points_ts:
                self._points_ts = ts
            if len(points) > self._points_max:
                self._turn_generation()
        elif ts == current[0] and attempt != current[1]:
            points[key] = (ts, None)

    def _turn_generation(self) -> None:
        self.raise_low(self._older_ts)
        self._older, self._older_ts = self._points, self._points_ts
        self._points, self._points_ts = {}, MIN_TIMESTAMP

    def note_span(self, span: Span, ts: Timestamp, attempt: AttemptId | None) -> None:
        """Record the read of a span."""
        if span.is_empty or ts <= self.low:
            return
        if span.end == span.start + b"\x00":
            self.note_key(span.start, ts, attempt)
            return
        starts, readings = self._starts, self._readings
        first = self._cut(span.start)
        last = self._cut(span.end)
        new_starts: list[bytes] = []
        new_readings: list[Reading | None] = []
        for index in range(first, last):
            merged = _newest(readings[index], (ts, attempt))
            if not new_readings or new_readings[-1] != merged:
                new_starts.append(starts[index])
                new_readings.append(merged)
        starts[first:last] = new_starts
        readings[first:last] = new_readings
        if len(starts) > self._spans_max:
            self._shrink_spans()

    def _cut(self, key: bytes) -> int:
        """Make `key` the start of a segment, and give its index."""
        index = bisect_left(self._starts, key)
        if index == len(self._starts) or self._starts[index] != key:
            self._starts.insert(index, key)
            self._readings.insert(index, self._readings[index - 1] if index else None)
        return index

    def _shrink_spans(self) -> None:
        """Forget the older half of the segments into the low water."""
        stamps = sorted(reading[0] for reading in self._readings if reading is not None)
        self.raise_low(stamps[len(stamps) // 2])
        starts, readings = self._starts, self._readings
        self._starts, self._readings = [], []
        for start, reading in zip(starts, readings):
            kept = reading if reading is not None and reading[0] > self.low else None
            if self._readings[-1:] != [kept]:
                self._starts.append(start)
                self._readings.append(kept)
        if len(self._starts) > self._spans_max:
            # All at nearly one timestamp: nothing to choose from.
            self.raise_low(stamps[-1])
            self._starts, self._readings = [], []

    def reading(self, key: bytes) -> Reading:
        """Give the newest read of a key."""
        newest: Reading | None = (self.low, None)
        point = self._points.get(key)
        if point is not None:
            newest = _newest(newest, point)
        point = self._older.get(key)
        if point is not None:
            newest = _newest(newest, point)
        if self._starts:
            index = bisect_right(self._starts, key) - 1
            if index >= 0:
                newest = _newest(newest, self._readings[index])
        assert newest is not None
        return newest

    def bound(self, key: bytes, ts: Timestamp, attempt: AttemptId) -> Timestamp:
        """Give the timestamp that a write of a key must be above, or 0 if `attempt` may write at `ts`."""
        read_ts, owner = self.reading(key)
        if read_ts > ts or (read_ts == ts and owner != attempt):
            return read_ts
        return MIN_TIMESTAMP

    def bound_of_all(self, keys: Sequence[bytes], ts: Timestamp, attempt: AttemptId) -> Timestamp:
        """Give the highest `bound` of keys (ascending): sources that were not read at `ts` or later are not looked at."""

        def bounds(reading: Reading | None) -> bool:
            return reading is not None and (reading[0] > ts or (reading[0] == ts and reading[1] != attempt))

        found = self.low if self.low >= ts else MIN_TIMESTAMP
        for points, newest in ((self._points, self._points_ts), (self._older, self._older_ts)):
            if newest >= ts:
                readings = [points[key] for key in points.keys() & keys]
                found = max([found, *[reading[0] for reading in readings if bounds(reading)]])
        starts = self._starts
        first = max(bisect_right(starts, keys[0]) - 1, 0)
        for index in range(first, bisect_right(starts, keys[-1])):
            reading = self._readings[index]
            if reading is not None and reading[0] > found and bounds(reading):
                at = bisect_left(keys, starts[index])
                if at < len(keys) and (index + 1 == len(starts) or keys[at] < starts[index + 1]):
                    found = reading[0]
        return found

    def bound_of_span(self, span: Span, ts: Timestamp, attempt: AttemptId) -> Timestamp:
        """Give the highest `bound` of all keys of a span."""

        def bounds(reading: Reading | None) -> bool:
            return reading is not None and (reading[0] > ts or (reading[0] == ts and reading[1] != attempt))

        found = self.low if self.low >= ts else MIN_TIMESTAMP
        for points, newest in ((self._points, self._points_ts), (self._older, self._older_ts)):
            if newest >= ts:
                found = max([found, *[reading[0] for key, reading in points.items() if bounds(reading) and span.contains(key)]])
        starts = self._starts
        for index in range(max(bisect_right(starts, span.start) - 1, 0), bisect_left(starts, span.end)):
            reading = self._readings[index]
            if reading is not None and bounds(reading):
                found = max(found, reading[0])
        return found

    def __len__(self) -> int:
        return len(self._points) + len(self._older) + len(self._starts)


def _newest(one: Reading | None, other: Reading | None) -> Reading | None:
    if one is None or other is None:
        return other if one is None else one
    if one[0] != other[0]:
        return one if one[0] > other[0] else other
    return one if one[1] == other[1] else (one[0], None)
