"""Reads of single keys, and the questions of writers, over the delta and the blocks: what `mvcc` answers of rows alone.

Invariants:
- Every function answers what its namesake in `mvcc` answers of a plain list of all versions.
- The delta is asked first, and a version found there is the answer: of one key, the blocks' are all older.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

import numpy as np

from dsdb.storage import mvcc
from dsdb.storage.columnar.block import Blocks
from dsdb.storage.columnar.entry import BlockEntry
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp
from dsdb.storage.versions import (
    SUFFIX_BYTES,
    VALUE,
    Intent,
    IntentsFoundError,
    Standing,
    Version,
    View,
    decode_version,
    suffix_of,
    suffix_ts,
    version_suffix,
)


def block_version(blocks: Blocks, key: bytes, ts: Timestamp) -> Version | None:
    """Read the newest version of a key at or below `ts` that a block has."""
    entry = blocks.entry_at(key)
    if entry is None or key < entry.first_key or (not entry.history_rows and ts < entry.min_ts):
        return None
    if entry.rows:
        row = blocks.keys(entry).row_of(key)
        if row is not None:
            version_ts = Timestamp(int(blocks.versions(entry)[row]))
            if version_ts <= ts:
                return Version(version_ts, blocks.row_value(entry, row))
    older = _older(blocks, entry, key, ts)
    return None if older is None else decode_version(*older)


def _older(blocks: Blocks, entry: BlockEntry, key: bytes, ts: Timestamp) -> tuple[bytes, bytes] | None:
    """Give the newest version of a key at or below `ts` in a block's history, as it is stored."""
    if not entry.history_rows:
        return None
    engine_keys, stored = blocks.history(entry)
    at = bisect_left(engine_keys, key + version_suffix(ts))
    return None if at == len(engine_keys) or engine_keys[at][:-SUFFIX_BYTES] != key else (engine_keys[at], stored[at])


def get(blocks: Blocks, key: bytes, view: View) -> Version | None:
    """Read the newest version of a key that is seen, or the intent of the reader's own attempt (`mvcc.get`)."""
    found = mvcc.get(blocks.reader, key, view)
    return block_version(blocks, key, view.ts) if found is None else found


def get_many(blocks: Blocks, keys: Sequence[bytes], view: View) -> list[bytes | None]:
    """Read the values of keys, in the order asked; None where there is none or a tombstone (`mvcc.get_many`)."""
    values: list[bytes | None] = []
    in_the_way: list[tuple[bytes, Intent]] = []
    for key in keys:
        try:
            version = get(blocks, key, view)
        except IntentsFoundError as error:
            in_the_way += error.intents
            continue
        values.append(None if version is None else version.value)
    if in_the_way:
        raise IntentsFoundError(in_the_way)
    return values


def newest_and_intent(blocks: Blocks, key: bytes) -> tuple[Version | None, Intent | None]:
    """Read the newest version of a key and its intent (`mvcc.newest_and_intent`)."""
    version, intent = mvcc.newest_and_intent(blocks.reader, key)
    return (block_version(blocks, key, MAX_TIMESTAMP) if version is None else version), intent


# ---- Questions of writers ----


def standing(blocks: Blocks, key: bytes) -> Standing:
    """Read what a writer must know of a key (`mvcc.standing`)."""
    return _over_blocks(blocks, [key], [mvcc.standing(blocks.reader, key)])[0]


def standing_of(blocks: Blocks, keys: Sequence[bytes]) -> list[Standing]:
    """Do what `standing` does for keys (ascending), those of a block together (`mvcc.standing_of`)."""
    return _over_blocks(blocks, keys, mvcc.standing_of(blocks.reader, keys))


def _over_blocks(blocks: Blocks, keys: Sequence[bytes], found: list[Standing]) -> list[Standing]:
    """Fill in what blocks have of the keys of which the delta has no version."""
    at = 0
    while at < len(keys):
        if found[at].ts > MIN_TIMESTAMP:
            at += 1
            continue
        entry = blocks.entry_at(keys[at])
        if entry is None:
            break
        end = bisect_right(keys, entry.last_key, at)
        wanted = [place for place in range(at, end) if found[place].ts == MIN_TIMESTAMP and keys[place] >= entry.first_key]
        for place, (ts, is_there) in zip(wanted, _heads(blocks, entry, [keys[place] for place in wanted])):
            found[place] = Standing(ts, is_there, found[place].intent)
        at = end
    return found


def _heads(blocks: Blocks, entry: BlockEntry, keys: Sequence[bytes]) -> list[tuple[Timestamp, bool]]:
    """Give the timestamp of the newest version that a block has of each key, and whether it is a value."""
    heads = [(MIN_TIMESTAMP, False)] * len(keys)
    missing: Sequence[int] = range(len(keys))
    if entry.rows and keys:
        rows, is_current = blocks.keys(entry).find(keys)
        current = np.flatnonzero(is_current)
        for place, ts in zip(current.tolist(), blocks.versions(entry)[rows[current]].tolist()):
            heads[place] = Timestamp(ts), True
        missing = np.flatnonzero(~is_current).tolist()
    if entry.history_rows:
        for place in missing:
            older = _older(blocks, entry, keys[place], MAX_TIMESTAMP)
            if older is not None:
                heads[place] = suffix_ts(older[0][-SUFFIX_BYTES:]), older[1][:1] == VALUE
    return heads


def changes(blocks: Blocks, span: Span, low: Timestamp, view: View) -> Iterator[tuple[bytes, Timestamp] | None]:
    """Find a version with low < ts ≤ `view.ts` in a span, in steps: None after each in which there is nothing (`mvcc.changes`).

    The blocks must stay as they are until it is through: give an engine snapshot's, where others have their turns between steps.
    """
    for found in mvcc.changes(blocks.reader, span, low, view):
        yield found
        if found is not None:
            return
    if low >= view.ts:
        return
    for entry in blocks.entries(span):
        if entry.max_ts > low:
            found = _change_in(blocks, entry, span, low, view.ts)
            yield found
            if found is not None:
                return


def changed(blocks: Blocks, span: Span, low: Timestamp, view: View) -> tuple[bytes, Timestamp] | None:
    """Find a version with low < ts ≤ `view.ts` in a span; None if there is none (`mvcc.changed`)."""
    return next((found for found in changes(blocks, span, low, view) if found is not None), None)


def _change_in(blocks: Blocks, entry: BlockEntry, span: Span, low: Timestamp, high: Timestamp) -> tuple[bytes, Timestamp] | None:
    if entry.rows and entry.min_ts <= high:
        versions = blocks.versions(entry)
        rows = np.flatnonzero((versions > np.uint64(low)) & (versions <= np.uint64(high)))
        if len(rows):
            run = blocks.keys(entry)
            rows = rows[(rows >= run.lower(span.start)) & (rows < run.lower(span.end))]
            if len(rows):
                return run.key(int(rows[0])), Timestamp(int(versions[rows[0]]))
    newest, oldest = version_suffix(high), version_suffix(low)
    for engine_key, suffix in ((key, suffix_of(key)) for key in blocks.history(entry)[0]):
        if newest <= suffix < oldest and span.contains(engine_key[:-SUFFIX_BYTES]):
            return engine_key[:-SUFFIX_BYTES], suffix_ts(suffix)
    return None
