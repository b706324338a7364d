"""How large a range is, and where its middle lies: counted by reading it, in slices.

    every apply ─▶ size_bytes, by each replica (`state_machine`)      split ─▶ the left side is counted just before it (`split`)

The size of a range is that of all its versions and intents, keys and values as they are stored, and of its blocks.  Each replica keeps its
own: commits add to it, collected and cleared versions leave it, and so does what folding saves; so replicas that are folded alike have the
same, and nothing replicated depends on it.  Only a split cannot know the parts without reading; so the leaseholder counts before it takes
the latch, and each replica divides its own size in that proportion.

Invariants:
- No slice takes longer than some milliseconds, however wide rows are.
- What is found is a key that is stored, or the start of a table: the boundary of a row in any case.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from operator import add

import msgspec
import trio

from dsdb.storage.columnar import measure
from dsdb.storage.columnar.block import Blocks
from dsdb.storage.engine.port import Family, Reader
from dsdb.storage.errors import KeyFormatError
from dsdb.storage.keys import Span, decode_index_prefix, table_prefix

VERSION_SUFFIX_BYTES = 8
"""Behind the user key of every entry in DELTA."""
SLICE_ROWS = 256
"""Two milliseconds where rows have 8 KiB; more would save small ones 3 %."""
PROBE_ROWS, PROBE_BYTES = 8_000, 4 << 20
"""Versions that are looked at to see whether a span has some rows, in one piece."""
SAMPLES = 512
"""Keys of a range that are looked at for its middle."""
SAMPLE_BYTES_MIN = 256
OFF_MIDDLE = 0.25
"""A table that begins within this part of the middle is where a range of several tables is cut."""


class Middle(msgspec.Struct, frozen=True, kw_only=True):
    """Where to cut a range."""

    key: bytes
    left_bytes: int
    total_bytes: int


async def count_bytes(reader: Reader, span: Span, *, is_over: Callable[[], bool]) -> int | None:
    """Count the bytes of a span; None if it was over before the end.  Checkpoints after every slice."""
    total = 0
    for size in _sizes(reader, span):
        total += size
        await trio.lowlevel.checkpoint()
        if is_over():
            return None
    return total


def _sizes(reader: Reader, span: Span) -> Iterator[int]:
    yield from measure.sizes(Blocks(reader), span)
    for keys, values in reader.scan(Family.DELTA, span.start, span.end, chunk_rows=SLICE_ROWS):
        yield sum(map(len, keys)) + sum(map(len, values))


async def find_middle(reader: Reader, span: Span, *, size_bytes: int, laid: Sequence[tuple[Span, int]] = ()) -> Middle | None:
    """Find the key that cuts a span into halves; None if there is none above its first one.  Checkpoints after every slice.

    size_bytes: about how large it is; laid: its block intents, which are not to be cut, ascending, and their bytes.
    """
    step = max(size_bytes // SAMPLES, SAMPLE_BYTES_MIN)
    weights = [(held.start, size) for held, size in laid]
    last = max([key for key, _ in weights], default=b"")
    for found in measure.weights(Blocks(reader), span, step):
        weights += found
        await trio.lowlevel.checkpoint()
    last = max([last, *[key for key, _ in weights[-1:]]])
    for some, behind in _delta_weights(reader, span, step):
        weights += some
        last = max(last, behind)
        await trio.lowlevel.checkpoint()
    weights.sort()
    offsets = list(accumulate([weight for _, weight in weights], initial=0))
    total = offsets[-1]
    samples = [*zip(offsets, [key for key, _ in weights]), (total, last)]
    if laid:
        samples = [sample for sample in samples if not _is_inside(laid, sample[1])]
    first = weights[0][0] if weights else last
    above = [(offset, key) for offset, key in samples if key > max(first, span.start)]
    if not above:
        return None
    half = total / 2
    offset, key = min(_table_starts(samples, span, total) or above, key=lambda sample: abs(sample[0] - half))
    return Middle(key=key, left_bytes=offset, total_bytes=total)


def _is_inside(laid: Sequence[tuple[Span, int]], key: bytes) -> bool:
    place = bisect_left(laid, key, key=lambda held: held[0].end)
    return place < len(laid) and laid[place][0].start < key < laid[place][0].end


def _delta_weights(reader: Reader, span: Span, step: int) -> Iterator[tuple[list[tuple[bytes, int]], bytes]]:
    """Give after each slice keys at which about `step` bytes begin, and how many; and the last key that was read."""
    key, weight = b"", 0
    for keys, values in reader.scan(Family.DELTA, span.start, span.end, chunk_rows=SLICE_ROWS):
        found: list[tuple[bytes, int]] = []
        for engine_key, size in zip(keys, map(add, map(len, keys), map(len, values))):
            user_key = engine_key[:-VERSION_SUFFIX_BYTES]
            if weight >= step and user_key != key:
                found.append((key, weight))
                key, weight = user_key, 0
            key = key or user_key
            weight += size
        yield found, keys[-1][:-VERSION_SUFFIX_BYTES]
    if weight:
        yield [(key, weight)], key


def _table_starts(samples: list[tuple[int, bytes]], span: Span, total: int) -> list[tuple[int, bytes]]:
    """Give where tables begin, not far from the middle."""
    found = []
    before: tuple[int, int] | None = None
    for offset, key in samples:
        try:
            table = decode_index_prefix(key)[:2]
        except KeyFormatError:
            before = None
            continue
        start = table_prefix(*table)
        if before is not None and table != before and start > span.start and abs(offset - total / 2) <= OFF_MIDDLE * total:
            found.append((offset, start))
        before = table
    return found


def has_rows(reader: Reader, span: Span, count: int) -> bool:
    """Say whether a span has so many rows, as far as some slices tell."""
    for in_block in measure.row_counts(Blocks(reader), span):
        count -= in_block
        if count <= 0:
            return True
    seen: set[bytes] = set()
    rows = size = 0
    for keys, values in reader.scan(Family.DELTA, span.start, span.end, chunk_rows=SLICE_ROWS):
        seen.update([key[:-VERSION_SUFFIX_BYTES] for key in keys])
        rows, size = rows + len(keys), size + sum(map(len, values))
        if len(seen) >= count or rows >= PROBE_ROWS or size >= PROBE_BYTES:
            break
    return len(seen) >= count


def stored_key_from(reader: Reader, span: Span) -> bytes | None:
    """Give the first stored key of a span."""
    found = reader.first(Family.DELTA, span.start, span.end)
    keys = [] if found is None else [found[0][:-VERSION_SUFFIX_BYTES]]
    in_block = measure.first_key(Blocks(reader), span)
    return min([*keys, *([] if in_block is None else [in_block])], default=None)
