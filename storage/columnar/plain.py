"""All versions and intents of a span as a plain list: what DELTA would hold, had nothing been folded.

    DELTA          k5│intent  k5│ts 90                 k8│ts 70
    current rows                          k7│ts 15               ──▶  k5│intent  k5│ts 90  k5│ts 40  k7│ts 30  k7│ts 15  k8│ts 70
    histories                k5│ts 40  k7│ts 30

Invariants:
- Engine keys ascend, and none stands twice.
- The list does not depend on what was folded when, but for what no read at or above the collection threshold sees.
- Between two chunks no more than `ROWS_AT_ONCE` rows of a block are put together, so that nobody waits long for one.
"""

from collections.abc import Iterator
from heapq import merge
from itertools import islice

import numpy as np

from dsdb.storage import mvcc
from dsdb.storage.columnar.block import Blocks
from dsdb.storage.errors import CorruptionError
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import Timestamp
from dsdb.storage.versions import SUFFIX_BYTES, VALUE, version_suffix

ROWS_AT_ONCE = 1024
"""Of a block: 2 to 4 ms where there are 16 columns."""

_Entry = tuple[bytes, bytes]


def plain_entries(blocks: Blocks, span: Span, *, chunk_rows: int) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Give engine keys and stored values of a span in order, in chunks.  Raises CorruptionError."""
    if next(blocks.entries(span), None) is None:
        yield from mvcc.entries(blocks.reader, span, reverse=False, chunk_rows=chunk_rows)
        return
    merged = merge(_rows_of_delta(blocks, span, chunk_rows), _current_rows(blocks, span), _older_versions(blocks, span))
    last = b""
    while chunk := list(islice(merged, chunk_rows)):
        keys = [key for key, _ in chunk]
        for key in keys:
            if key == last:
                raise CorruptionError(f"a version is in the delta and in a block, or twice in blocks: {key.hex()}")
            last = key
        yield keys, [stored for _, stored in chunk]


def _rows_of_delta(blocks: Blocks, span: Span, chunk_rows: int) -> Iterator[_Entry]:
    for keys, stored in mvcc.entries(blocks.reader, span, reverse=False, chunk_rows=chunk_rows):
        yield from zip(keys, stored)


def _current_rows(blocks: Blocks, span: Span) -> Iterator[_Entry]:
    for entry in blocks.entries(span):
        if not entry.rows:
            continue
        run, versions = blocks.keys(entry), blocks.versions(entry)
        low, high = run.lower(span.start), run.lower(span.end)
        for start in range(low, high, ROWS_AT_ONCE):
            rows = np.arange(start, min(start + ROWS_AT_ONCE, high), dtype=np.int64)
            for key, ts, value in zip(run.keys(rows), versions[rows].tolist(), blocks.row_values(entry, rows)):
                yield key + version_suffix(Timestamp(ts)), VALUE + value


def _older_versions(blocks: Blocks, span: Span) -> Iterator[_Entry]:
    for entry in blocks.entries(span):
        for engine_key, stored in zip(*blocks.history(entry)):
            if span.contains(engine_key[:-SUFFIX_BYTES]):
                yield engine_key, stored
