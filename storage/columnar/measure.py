"""How much of a span lies in blocks, and which keys are there: by the directory, and the keys of blocks that are not wholly in the span.

Invariants:
- No columns are read.
- A block that a span cuts counts for its part of the rows.
"""

from collections.abc import Iterator

import numpy as np

from dsdb.storage.columnar.block import Blocks
from dsdb.storage.columnar.entry import BlockEntry
from dsdb.storage.columnar.points import block_version
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import MAX_TIMESTAMP, Timestamp

WEIGHTS_MAX = 32
"""Keys that one block gives to a sample, at most."""


def sizes(blocks: Blocks, span: Span) -> Iterator[int]:
    """Give the stored bytes of each block of a span."""
    for entry in blocks.entries(span):
        yield _part_of(blocks, entry, span)


def weights(blocks: Blocks, span: Span, step: int) -> Iterator[list[tuple[bytes, int]]]:
    """Give for each block keys of it, ascending, and the bytes from each to the next: about `step`."""
    for entry in blocks.entries(span):
        size = _part_of(blocks, entry, span)
        low, high = _rows_in(blocks, entry, span)
        count = min(max(size // step, 1), WEIGHTS_MAX, high - low)
        if count <= 0:
            yield [(max(entry.first_key, span.start), size)]
            continue
        places = np.linspace(low, high, count, endpoint=False).astype(np.int64)
        keys = blocks.keys(entry).keys(places)
        yield [(key, size * (number + 1) // count - size * number // count) for number, key in enumerate(keys)]


def row_counts(blocks: Blocks, span: Span) -> Iterator[int]:
    """Give how many rows of each block lie in a span."""
    for entry in blocks.entries(span):
        low, high = _rows_in(blocks, entry, span)
        yield high - low


def first_key(blocks: Blocks, span: Span) -> bytes | None:
    """Give the first key of a span that a block has a version of, as far as current rows go; None if there is none."""
    for entry in blocks.entries(span):
        if entry.first_key >= span.start:
            return entry.first_key
        low, high = _rows_in(blocks, entry, span)
        if low < high:
            return blocks.keys(entry).key(low)
    return None


def key_behind(blocks: Blocks, span: Span, rows_max: int) -> bytes | None:
    """Give a key before which about `rows_max` versions of a span's blocks lie, at most; None if there are not so many."""
    passed = 0
    for entry in blocks.entries(span):
        low, high = _rows_in(blocks, entry, span)
        passed += entry.history_rows
        if passed + high - low > rows_max and low < high:
            at = min(low + max(rows_max - passed, 1), high - 1)
            key = blocks.keys(entry).key(at)
            if key > span.start:
                return key
        passed += high - low
    return None


def stored_within(blocks: Blocks, key: bytes) -> bytes | None:
    """Give the key with a version in a block that goes on as `key`, if there is one (`mvcc.stored_within`)."""
    for length in range(1, len(key)):
        if block_version(blocks, key[:length], Timestamp(MAX_TIMESTAMP)) is not None:
            return key[:length]
    return None


def _rows_in(blocks: Blocks, entry: BlockEntry, span: Span) -> tuple[int, int]:
    """Give the first row of a block that lies in a span, and the first behind it."""
    if not entry.rows or (span.start <= entry.first_key and entry.last_key < span.end):
        return 0, entry.rows
    run = blocks.keys(entry)
    return run.lower(span.start), run.lower(span.end)


def _part_of(blocks: Blocks, entry: BlockEntry, span: Span) -> int:
    low, high = _rows_in(blocks, entry, span)
    if not entry.rows:
        return entry.stored_bytes if span.contains(entry.last_key) else 0
    return entry.stored_bytes * (high - low) // entry.rows
