"""Where versions could be folded: a span's delta, counted by the block into which folding would put it.

    INDEX         │ … block to k40 │      │ … block to k99 │
    DELTA      · ·  ·      · ·       ·  · ·    ·              ·
               └──── region 1 ────┘└────── region 2 ────┘└── the rest: joins the last block, or makes new ones

Invariants:
- Regions do not overlap, ascend, and hold all versions of the span that could be folded by their timestamps.
"""

from bisect import bisect_left
from typing import NamedTuple

from dsdb.storage import mvcc
from dsdb.storage.columnar.block import INDEX, Blocks
from dsdb.storage.columnar.entry import decode_entry
from dsdb.storage.engine.port import SCAN_CHUNK_ROWS
from dsdb.storage.keys import Span, key_after
from dsdb.storage.timestamp import Timestamp
from dsdb.storage.versions import SUFFIXES_END, suffix_of, version_suffix


class FoldRegion(NamedTuple):
    """A stretch of keys whose versions would go into one block."""

    start: bytes
    end: bytes
    rows: int
    """Of that block; 0: of none so far."""
    versions: int
    """At or below the resolved timestamp, in the delta."""


def foldable(blocks: Blocks, span: Span, resolved: Timestamp) -> tuple[list[FoldRegion], int]:
    """Count the versions at or below `resolved` in the delta of an index's part of a range, by region; and what else is there.

    Raises CorruptionError.
    """
    newest = version_suffix(resolved)
    entries = ((entry.last_key, entry.rows) for entry in blocks.entries(span))
    regions: list[FoldRegion] = []
    start, versions, total = span.start, 0, 0
    last, rows = next(entries, (None, 0))
    for keys, _ in mvcc.entries(blocks.reader, span, reverse=False, chunk_rows=SCAN_CHUNK_ROWS):
        at = 0
        total += len(keys)
        while at < len(keys):
            end = len(keys) if last is None else bisect_left(keys, last + SUFFIXES_END, at)
            # An intent's suffix is below every version's.
            versions += sum(map(newest.__le__, map(suffix_of, keys[at:end])))
            at = end
            if at < len(keys):
                assert last is not None
                if versions:
                    regions.append(FoldRegion(start, key_after(last), rows, versions))
                start, versions = key_after(last), 0
                last, rows = next(entries, (None, 0))
    if versions:
        if last is None:
            behind = blocks.reader.last(INDEX, span.start, span.end)
            rows = 0 if behind is None else decode_entry(*behind).rows
        regions.append(FoldRegion(start, span.end if last is None else key_after(last), rows, versions))
    return regions, total - sum(region.versions for region in regions)
