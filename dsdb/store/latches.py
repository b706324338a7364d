"""Latches: short mutual exclusion of requests on keys of one range, held by writes from evaluation until their command is applied.

    acquire ─▶ granted? ── no ─▶ wait ─▶ granted ─▶ evaluated(ts) ─▶ release ─▶ those that waited for it and for nothing else
                  └─ yes ─────────────────▶ ┘

Reads at a timestamp hold nothing: they are evaluated at once, unless a write that was *evaluated* at or below their timestamp is not
applied yet (`blocking`).  A write that holds latches but was not evaluated will find what the read left in the timestamp cache.

Invariants:
- First come, first served: a latch waits for every earlier latch that it conflicts with, granted or not; so there is no deadlock.
- Two granted latches never conflict.  Write conflicts with write and read, read with write.

Sans-I/O: who waits, and how, is the caller's business (`on_granted`).
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence

from dsdb.storage.keys import Span
from dsdb.storage.timestamp import Timestamp


class Latch:
    """A request's place in the queues of its keys."""

    __slots__ = ("blocks", "evaluated_ts", "is_released", "keys", "on_granted", "read_spans", "waiters", "waits_for", "write_spans")

    def __init__(self, keys: Sequence[bytes], write_spans: Sequence[Span], read_spans: Sequence[Span]) -> None:
        self.keys = keys
        """Keys written, ascending."""
        self.write_spans = write_spans
        self.read_spans = read_spans
        self.waits_for = 0
        """Earlier latches that conflict and are not released."""
        self.blocks: list[Latch] = []
        """Later latches that wait for this one."""
        self.evaluated_ts: Timestamp | None = None
        """Set when the write was evaluated: reads at or above it wait until it is applied."""
        self.waiters: list[Callable[[], None]] = []
        """Reads to be woken at release."""
        self.on_granted: Callable[[], None] | None = None
        self.is_released = False

    @property
    def is_granted(self) -> bool:
        """Say whether it waits for nothing."""
        return self.waits_for == 0

    def writes_in(self, span: Span) -> bool:
        """Say whether it writes some key of a span."""
        keys = self.keys
        if keys and keys[0] < span.end and keys[-1] >= span.start:
            at = bisect_left(keys, span.start)
            if at < len(keys) and keys[at] < span.end:
                return True
        return any(own.overlaps(span) for own in self.write_spans)


class Latches:
    """The latches of one range."""

    def __init__(self) -> None:
        self._last_writer: dict[bytes, Latch] = {}
        """Key → the newest latch that writes it; the one before is waited for by it already."""
        self._with_spans: dict[int, Latch] = {}
        """Latches that write or read spans, in the order of their coming."""
        self._all: dict[int, Latch] = {}
        """Every latch not released, in the order of their coming; by `id`, which decides no order."""
        self.waiting = 0
        """Latches that are not granted."""

    def __len__(self) -> int:
        return len(self._all)

    def acquire(self, keys: Sequence[bytes], write_spans: Sequence[Span] = (), read_spans: Sequence[Span] = ()) -> Latch:
        """Queue for keys (ascending, distinct) and spans; look at `is_granted`, and set `on_granted` to hear of it later."""
        latch = Latch(keys, write_spans, read_spans)
        if self._all:
            for earlier in self._conflicts(latch):
                earlier.blocks.append(latch)
                latch.waits_for += 1
            if latch.waits_for:
                self.waiting += 1
        for key in keys:
            self._last_writer[key] = latch
        if write_spans or read_spans:
            self._with_spans[id(latch)] = latch
        self._all[id(latch)] = latch
        return latch

    def _conflicts(self, latch: Latch) -> list[Latch]:
        found: dict[int, Latch] = {}
        for key in latch.keys:
            earlier = self._last_writer.get(key)
            if earlier is not None:
                found[id(earlier)] = earlier
        for earlier in self._with_spans.values():
            for span in (*earlier.write_spans, *earlier.read_spans):
                if latch.writes_in(span):
                    found[id(earlier)] = earlier
                    break
        for span in (*latch.write_spans, *latch.read_spans):
            for earlier in self._all.values():
                if earlier.writes_in(span):
                    found[id(earlier)] = earlier
        return list(found.values())

    def end_reads(self, latch: Latch) -> None:
        """Give up the read spans of a latch: its reads are in the timestamp cache now."""
        if not latch.read_spans:
            return
        spans, latch.read_spans = latch.read_spans, ()
        if not latch.write_spans:
            self._with_spans.pop(id(latch), None)
        still_blocked = []
        granted = []
        for later in latch.blocks:
            if any(later.writes_in(span) for span in spans) and not _conflict(latch, later):
                later.waits_for -= 1
                if later.waits_for == 0:
                    granted.append(later)
            else:
                still_blocked.append(later)
        latch.blocks = still_blocked
        self._grant(granted)

    def release(self, latch: Latch) -> None:
        """Give a latch back (also one that still waits) and grant those that waited for it alone."""
        if latch.is_released:
            return
        latch.is_released = True
        del self._all[id(latch)]
        self._with_spans.pop(id(latch), None)
        if latch.waits_for:
            self._withdraw(latch)
            return
        last_writer = self._last_writer
        for key in latch.keys:
            if last_writer.get(key) is latch:
                del last_writer[key]
        granted = []
        for later in latch.blocks:
            if not later.is_released:
                later.waits_for -= 1
                if later.waits_for == 0:
                    granted.append(later)
        waiters, latch.waiters = latch.waiters, []
        for wake in waiters:
            wake()
        self._grant(granted)

    def _withdraw(self, latch: Latch) -> None:
        """Take a waiting latch out of the queues; those behind it go on waiting for whom it waited for."""
        self.waiting -= 1
        ahead = [earlier for earlier in self._all.values() if latch in earlier.blocks]
        for later in latch.blocks:
            if later.is_released:
                continue
            for earlier in ahead:
                if later not in earlier.blocks and _conflict(earlier, later):
                    earlier.blocks.append(later)
                    later.waits_for += 1
            later.waits_for -= 1
            if later.waits_for == 0:
                self._grant([later])
        for earlier in ahead:
            earlier.blocks.remove(latch)
        for key in latch.keys:
            if self._last_writer.get(key) is latch:
                before = [earlier for earlier in ahead if key in earlier.keys]
                if before:
                    self._last_writer[key] = before[-1]
                else:
                    del self._last_writer[key]

    def _grant(self, latches: list[Latch]) -> None:
        for latch in latches:
            if latch.is_released:
                continue
            self.waiting -= 1
            if latch.on_granted is not None:
                latch.on_granted()

    # ---- Reads ----

    def blocking_key(self, key: bytes, ts: Timestamp) -> Latch | None:
        """Give a write of a key, evaluated at or below `ts` and not applied; None if a read may go on."""
        if not self._all:
            return None
        latch = self._last_writer.get(key)
        if latch is not None and latch.waits_for:
            # The granted writer of this key stands before the newest in the queue.
            return self._blocking_span(Span(key, key + b"\x00"), ts)
        if latch is not None and latch.evaluated_ts is not None and latch.evaluated_ts <= ts:
            return latch
        for other in self._with_spans.values():
            if other.evaluated_ts is not None and other.evaluated_ts <= ts and any(span.contains(key) for span in other.write_spans):
                return other
        return None

    def blocking_span(self, span: Span, ts: Timestamp) -> Latch | None:
        """Give a write in a span, evaluated at or below `ts` and not applied; None if a read may go on."""
        return self._blocking_span(span, ts) if self._all else None

    def _blocking_span(self, span: Span, ts: Timestamp) -> Latch | None:
        for latch in self._all.values():
            if latch.evaluated_ts is not None and latch.evaluated_ts <= ts and latch.writes_in(span):
                return latch
        return None

    def waiting_latches(self) -> list[Latch]:
        """Give the latches that are not granted, in the order of their coming."""
        return [latch for latch in self._all.values() if latch.waits_for]


def _conflict(one: Latch, other: Latch) -> bool:
    """Say whether one of two latches writes what the other reads or writes."""
    if not set(one.keys).isdisjoint(other.keys):
        return True
    if any(other.writes_in(span) for span in (*one.write_spans, *one.read_spans)):
        return True
    return any(one.writes_in(span) for span in (*other.write_spans, *other.read_spans))
