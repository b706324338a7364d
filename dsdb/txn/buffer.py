"""What a transaction has written and not committed: its writes by key, with a journal for going back to a savepoint.

    put, insert, delete ──▶ key → Write        in the order of the first write of each key
                       └──▶ journal            what each of them replaced, and its *sequence*
    merged(rows, span)  ◀── reads see them over what the ranges hold
    layers ──▶ what is to be flushed, cut at the savepoints

Sequences rise with savepoints and flushes: all writes between two of these have the same one.

Invariants:
- One write for each key; the first key that was written is the *anchor* of a commit over many ranges.
- A key that must be absent stays so however often it is written again: only the commit can tell whether it is.
- What is given out is a copy: an iterator that runs sees nothing that is buffered later.
- A write behind a savepoint, or behind a flush, has a higher sequence than all before it.

Sans-I/O.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence

import msgspec

from dsdb.kv.requests import Write
from dsdb.sql.errors import ProgramLimitError
from dsdb.storage.keys import Span

BUFFER_BYTES_MAX = 16 * 1024 * 1024
"""Keys and values, with what they replaced, of a buffer that nobody flushes; a single row must be smaller, too."""


class Overlay(msgspec.Struct, frozen=True, array_like=True):
    """Buffered writes of some spans: keys ascending; a value None hides the key."""

    keys: tuple[bytes, ...] = ()
    values: tuple[bytes | None, ...] = ()

    def clipped(self, spans: Sequence[Span]) -> "Overlay":
        """Give the writes that lie in disjoint, ascending spans."""
        if not self.keys:
            return self
        keys: list[bytes] = []
        values: list[bytes | None] = []
        for span in spans:
            begin, end = bisect_left(self.keys, span.start), bisect_left(self.keys, span.end)
            keys += self.keys[begin:end]
            values += self.values[begin:end]
        return Overlay(tuple(keys), tuple(values))

    def merged(self, rows: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Put the writes over rows of the same span, all in key order."""
        if not self.keys:
            return list(rows)
        found: dict[bytes, bytes | None] = dict(rows)
        found.update(zip(self.keys, self.values))
        return [(key, value) for key in sorted(found) if (value := found[key]) is not None]


class Layer(msgspec.Struct, frozen=True):
    """The writes between two savepoints, the last one of each key, and their sequence."""

    sequence: int
    writes: dict[bytes, Write]


class WriteBuffer:
    """The buffered writes of one transaction."""

    def __init__(self) -> None:
        self._writes: dict[bytes, Write] = {}
        self._journal: list[tuple[bytes, Write | None, int]] = []
        """Key, what the write replaced, and its sequence, oldest first."""
        self._sorted: list[bytes] | None = None
        """The keys in order, once somebody wanted them so."""
        self._bytes = 0
        """Keys and values of everything that was written, replaced or not."""
        self._sequence = 1
        """Of the next write."""

    def __len__(self) -> int:
        return len(self._writes)

    @property
    def size_bytes(self) -> int:
        """Give what counts against `BUFFER_BYTES_MAX`."""
        return self._bytes

    def get(self, key: bytes) -> Write | None:
        """Give the write of a key."""
        return self._writes.get(key)

    def writes(self) -> tuple[Write, ...]:
        """Give all writes, in the order in which their keys were first written."""
        return tuple(self._writes.values())

    def put(self, key: bytes, value: bytes | None, *, must_be_absent: bool = False) -> None:
        """Buffer a write (None removes); must_be_absent counts for a key that is not in the buffer.  Raises ProgramLimitError."""
        previous = self._writes.get(key)
        size = _size(key, value)
        if self._bytes + size > BUFFER_BYTES_MAX:
            raise ProgramLimitError(
                f"a row, or what is written at once, is larger than {BUFFER_BYTES_MAX // 2**20} MiB",
                hint="Write smaller rows, or fewer of them at a time.",
            )
        if previous is not None:
            must_be_absent = previous.must_be_absent
        elif self._sorted is not None:
            insort(self._sorted, key)
        self._journal.append((key, previous, self._sequence))
        self._writes[key] = Write(key, value, must_be_absent)
        self._bytes += size

    def overlay(self, spans: Sequence[Span]) -> Overlay:
        """Give the writes in disjoint, ascending spans, as they are now."""
        if not self._writes:
            return Overlay()
        if self._sorted is None:
            self._sorted = sorted(self._writes)
        keys: list[bytes] = []
        for span in spans:
            keys += self._sorted[bisect_left(self._sorted, span.start) : bisect_left(self._sorted, span.end)]
        return Overlay(tuple(keys), tuple([self._writes[key].value for key in keys]))

    # ---- Savepoints and flushes ----

    def savepoint(self) -> int:
        """Mark this place: give the sequence up to which writes stand there."""
        self._sequence += 1
        return self._sequence - 1

    def rollback_to(self, savepoint: int) -> None:
        """Forget what was written behind a mark."""
        while self._journal and self._journal[-1][2] > savepoint:
            key, replaced, _ = self._journal.pop()
            self._bytes -= _size(key, self._writes[key].value)
            if replaced is None:
                del self._writes[key]
                self._sorted = None
            else:
                self._writes[key] = replaced

    def layers(self, marks: Sequence[int]) -> list[Layer]:
        """Give what is to be flushed: all writes, cut at the marks (ascending) to which there may be a way back."""
        first = self._journal[0][2] if self._journal else self._sequence
        ends = [mark for mark in marks if first <= mark < self._sequence]
        layers = [Layer(self._sequence, dict(self._writes))]
        if not ends:
            return layers
        # Backwards through the journal: what stood at each mark.
        present = layers[0].writes
        changed: dict[bytes, Write] = {}
        layers = []
        values = dict(present)
        end = self._sequence
        for key, replaced, sequence in reversed(self._journal):
            while ends and sequence <= ends[-1]:
                if changed:
                    layers.append(Layer(end, changed))
                changed, end = {}, ends.pop()
            changed.setdefault(key, values[key])
            if replaced is None:
                del values[key]
            else:
                values[key] = replaced
        if changed:
            layers.append(Layer(end, changed))
        return layers[::-1]

    def clear(self) -> int:
        """Forget everything, as it was flushed or given up; give the highest sequence of it."""
        self._writes.clear()
        self._journal.clear()
        self._sorted = None
        self._bytes = 0
        return self.savepoint()


def _size(key: bytes, value: bytes | None) -> int:
    return len(key) + len(value or b"")
