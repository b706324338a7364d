"""Folding: versions at or below the resolved timestamp leave the delta for blocks, some at a time.

    DELTA:  k5│ts 90   k5│ts 40   k5│ts 20   k7│ts 30 deleted          resolved 50, threshold 25
    block:  k5│ts 10   k7│ts 15
      ──▶ DELTA: k5│ts 90     block: k5│ts 40     history: k5│ts 20, k7│ts 30 deleted, k7│ts 15

Of each key the newest folded version becomes the current row; what it supersedes goes to the history, as far as readers at or above the
threshold may see it.  The blocks whose keys changed are written anew, in the same write batch that removes the versions from the delta.

Invariants:
- No answer at or above the threshold changes, whenever a crash comes: all is in one batch.
- Intents and versions above the resolved timestamp stay; so a key's versions in the delta are all newer than its block's.
- A key of which a version is of an unknown layout, or that has very many, stays in the delta with all of them.
- Blocks stay within the span given: that of a range and an index.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec
import numpy as np

from dsdb.storage import mvcc
from dsdb.storage.columnar.block import INDEX, Blocks, History
from dsdb.storage.columnar.content import (
    BLOCK_ROWS_MAX,
    EMPTY,
    Content,
    FreshRow,
    read_content,
    remove_block,
    with_rows,
    write_contents,
)
from dsdb.storage.columnar.entry import BlockEntry, decode_entry
from dsdb.storage.engine.port import WriteBatch
from dsdb.storage.errors import CorruptionError
from dsdb.storage.keys import Span
from dsdb.storage.rowbatch import LAYOUT_ID_BYTES
from dsdb.storage.rowcodec import RowLayout
from dsdb.storage.timestamp import Timestamp
from dsdb.storage.versions import DELTA, INTENT, SUFFIX_BYTES, TOMBSTONE, VALUE, suffix_ts, version_suffix

FOLD_VERSIONS_MAX = 16_384
FOLD_BYTES_MAX = 4 << 20
"""Of row values: what one block takes from the delta at once, but for the versions of its last key."""
KEY_VERSIONS_MAX = 256
"""A key with more versions below the resolved timestamp waits in the delta until garbage collection has taken some."""
_SCAN_ROWS = 256
_HEAD_BYTES = 1 + LAYOUT_ID_BYTES


class Folded(msgspec.Struct, frozen=True, kw_only=True):
    """What a call of `fold` did."""

    versions: int
    """Taken from the delta."""
    kept_back: int
    """Keys that stay in the delta although they could be folded by their timestamps."""
    blocks_removed: int
    blocks_written: int
    grown_bytes: int
    """By how much what is stored grows: mostly below 0."""
    resume: bytes | None
    """The key to go on from, once the batch is written; None at the span's end."""


class _KeyVersions(NamedTuple):
    """What of a key can be folded: at least one version."""

    key: bytes
    engine_keys: list[bytes]
    """The newest first."""
    stored: list[bytes]


def fold(
    blocks: Blocks,
    batch: WriteBatch,
    span: Span,
    resolved: Timestamp,
    threshold: Timestamp,
    layouts: Mapping[int, RowLayout],
    *,
    start: bytes | None = None,
    blocks_max: int = 1,
    rows_max: int = BLOCK_ROWS_MAX,
    versions_max: int = FOLD_VERSIONS_MAX,
) -> Folded:
    """Fold from `start` on what goes into up to `blocks_max` blocks of a span, which is the part of one index that lies in one range.

    A block takes up to `versions_max` versions at once, but for those of its last key, and is written as blocks of up to `rows_max` rows.

    Nobody may write versions at or below `resolved` any more.  The batch must be written before the next call.  Raises CorruptionError.
    """
    assert threshold <= resolved, (threshold, resolved)
    rest = Span(span.start if start is None else max(start, span.start), span.end)
    candidates = _Candidates(_keys_of(blocks, rest, resolved), layouts)
    removed = written = versions = count = grown = 0
    while count < blocks_max and (first := candidates.peek()) is not None:
        entry, group = _next_group(blocks, span, candidates, first.key, rows_max, versions_max)
        content = _folded(blocks.checked(), entry, group, threshold, layouts)
        if entry is not None:
            remove_block(batch, entry)
            removed += 1
            grown -= entry.stored_bytes
        made = write_contents(batch, content, 0 if entry is None else entry.generation + 1, rows_max=rows_max)
        written += len(made)
        grown += sum(block.stored_bytes for block in made)
        for item in group:
            for engine_key in item.engine_keys:
                batch.delete(DELTA, engine_key)
            versions += len(item.engine_keys)
            grown -= sum(map(len, item.engine_keys)) + sum(map(len, item.stored))
        count += 1
        following = candidates.peek()
        if entry is None or group[-1].key > entry.last_key or (following is not None and following.key <= entry.last_key):
            # The next group would go into a block that is only in the batch so far.
            break
    following = candidates.peek()
    return Folded(
        versions=versions,
        kept_back=candidates.kept_back,
        blocks_removed=removed,
        blocks_written=written,
        grown_bytes=grown,
        resume=None if following is None else following.key,
    )


class _Candidates:
    """Keys that can be folded, one by one, with a look at the next."""

    def __init__(self, found: Iterator[_KeyVersions], layouts: Mapping[int, RowLayout]) -> None:
        self._found = found
        self._heads = {TOMBSTONE, *(VALUE + layout_id.to_bytes(LAYOUT_ID_BYTES, "little") for layout_id in layouts)}
        """What stored versions begin with that can be folded."""
        self._next: _KeyVersions | None = None
        self.kept_back = 0
        """Keys that were passed over."""

    def peek(self) -> _KeyVersions | None:
        """Give the next key, which stays the next; None at the end."""
        while self._next is None:
            item = next(self._found, None)
            if item is None:
                return None
            if len(item.stored) > KEY_VERSIONS_MAX or not self._is_known(item):
                self.kept_back += 1
            else:
                self._next = item
        return self._next

    def _is_known(self, item: _KeyVersions) -> bool:
        return all(stored[:_HEAD_BYTES] in self._heads for stored in item.stored)

    def take(self, last_key: bytes | None, versions_max: int) -> list[_KeyVersions]:
        """Take keys up to `last_key`, at least one, as far as the limits of one block go."""
        taken: list[_KeyVersions] = []
        versions = size = 0
        while (item := self.peek()) is not None and (last_key is None or item.key <= last_key):
            if versions >= versions_max or size >= FOLD_BYTES_MAX:
                break
            taken.append(item)
            self._next = None
            count = len(item.stored)
            versions += count
            size += len(item.stored[0]) if count == 1 else sum(map(len, item.stored))
        return taken


def _keys_of(blocks: Blocks, span: Span, resolved: Timestamp) -> Iterator[_KeyVersions]:
    """Give the keys of a span that have versions at or below a timestamp, with these."""
    newest = version_suffix(resolved)
    current: _KeyVersions | None = None
    for engine_keys, stored in mvcc.entries(blocks.reader, span, reverse=False, chunk_rows=_SCAN_ROWS):
        for engine_key, entry in zip(engine_keys, stored):
            if engine_key[-SUFFIX_BYTES:] < newest or entry[:1] == INTENT:
                continue
            key = engine_key[:-SUFFIX_BYTES]
            if current is not None and current.key != key:
                yield current
                current = None
            if current is None:
                current = _KeyVersions(key, [], [])
            if len(current.stored) <= KEY_VERSIONS_MAX:
                current.engine_keys.append(engine_key)
                current.stored.append(entry)
    if current is not None:
        yield current


def _next_group(
    blocks: Blocks, span: Span, candidates: _Candidates, key: bytes, rows_max: int, versions_max: int
) -> tuple[BlockEntry | None, list[_KeyVersions]]:
    """Take the keys that go into one block, and say which: the one that can hold them, or the first one behind; behind all, the last one
    while it has room, else a new one."""
    entry = blocks.entry_at(key)
    if entry is not None and entry.last_key < span.end:
        group = candidates.take(entry.last_key, versions_max)
        return entry, group
    if entry is not None and entry.first_key < span.end:
        raise CorruptionError(f"the block at key {entry.last_key.hex()} goes beyond the span of its range or index")
    found = blocks.reader.last(INDEX, span.start, span.end)
    last = None if found is None else decode_entry(*found)
    return (last if last is not None and last.rows < rows_max else None), candidates.take(None, versions_max)


def _folded(
    blocks: Blocks, entry: BlockEntry | None, group: list[_KeyVersions], threshold: Timestamp, layouts: Mapping[int, RowLayout]
) -> Content:
    """Give a block's content after versions of some keys came to it."""
    content = EMPTY if entry is None else read_content(blocks, entry)
    keys = [item.key for item in group]
    rows = len(content.keys)
    if rows:
        assert entry is not None
        places, found = blocks.keys(entry).find(keys)
    else:
        places, found = np.zeros(len(keys), np.int64), np.zeros(len(keys), np.bool_)
    superseded = places[found]
    history = dict(zip(*content.history))
    if entry is not None and rows:
        old = zip(superseded.tolist(), blocks.row_values(entry, superseded))
        for item, (row, value) in zip((item for item, is_found in zip(group, found) if is_found), old):
            version_ts = Timestamp(int(content.versions[row]))
            if suffix_ts(item.engine_keys[-1][-SUFFIX_BYTES:]) <= version_ts:
                raise CorruptionError(f"key {item.key.hex()} has a version in the delta not newer than its block's, {version_ts}")
            history[item.key + version_suffix(version_ts)] = VALUE + value
    fresh, fresh_places = [], []
    for item, place in zip(group, places.tolist()):
        is_live = item.stored[0] != TOMBSTONE
        if is_live:
            fresh.append(FreshRow(item.key, suffix_ts(item.engine_keys[0][-SUFFIX_BYTES:]), item.stored[0][1:]))
            fresh_places.append(place)
        if len(item.stored) > is_live:
            history.update(zip(item.engine_keys[is_live:], item.stored[is_live:]))
    is_kept = np.ones(rows, np.bool_)
    is_kept[superseded] = False
    kept = np.flatnonzero(is_kept)
    merged = with_rows(content, kept, fresh, np.array(fresh_places, np.int64), layouts, ([], []))
    return merged._replace(history=retained(merged, history, threshold))


def retained(content: Content, history: Mapping[bytes, bytes], threshold: Timestamp) -> History:
    """Give what of a history a reader at or above the threshold may see, in order.

    That is what is newer than the threshold, and of each key whose current row is too, the newest version at or below it, unless that is a
    tombstone: as `mvcc.collect_garbage` keeps of a plain list.
    """
    engine_keys = sorted(history)
    if not engine_keys:
        return [], []
    distinct = list(dict.fromkeys(key[:-SUFFIX_BYTES] for key in engine_keys))
    settled: set[bytes] = set()
    """Keys of which a version at or below the threshold was met."""
    for key in distinct:
        row = bisect_left(content.keys, key)
        if row < len(content.keys) and content.keys[row] == key and int(content.versions[row]) <= threshold:
            settled.add(key)
    highest_old = version_suffix(threshold)
    kept = []
    for engine_key in engine_keys:
        if engine_key[-SUFFIX_BYTES:] >= highest_old:
            key = engine_key[:-SUFFIX_BYTES]
            if key in settled:
                continue
            settled.add(key)
            if history[engine_key] == TOMBSTONE:
                continue
        kept.append(engine_key)
    return kept, [history[key] for key in kept]
