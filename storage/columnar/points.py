"""Reads of single keys, and the questions of writers, over the delta and the blocks: what `mvcc` answers of rows alone.

Invariants:
- Every function answers what its namesake in `mvcc` answers of a plain list of all versions.
- The delta is asked first, and a version found there is the answer: of one key, the blocks' are all older.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dsdb.storage import mvcc
from dsdb.storage.columnar.block import Blocks
from dsdb.storage.columnar.entry import BlockEntry
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import MAX_TIMESTAMP, Timestamp
from dsdb.storage.versions import (
    NONE_COMMITTED,
    NONE_PASSABLE,
    SUFFIX_BYTES,
    Intent,
    IntentsFoundError,
    Version,
    decode_version,
    suffix_of,
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
    return _older_version(blocks, entry, key, ts)


def _older_version(blocks: Blocks, entry: BlockEntry, key: bytes, ts: Timestamp) -> Version | None:
    if not entry.history_rows:
        return None
    engine_keys, stored = blocks.history(entry)
    at = bisect_left(engine_keys, key + version_suffix(ts))
    if at == len(engine_keys) or engine_keys[at][:-SUFFIX_BYTES] != key:
        return None
    return decode_version(engine_keys[at], stored[at])


def get(
    blocks: Blocks,
    key: bytes,
    ts: Timestamp,
    *,
    own: bytes | None = None,
    passable: Mapping[bytes, Timestamp] = NONE_PASSABLE,
    committed: Mapping[bytes, Timestamp] = NONE_COMMITTED,
) -> Version | None:
    """Read the newest version of a key at or below `ts`, or the intent of attempt `own` (`mvcc.get`)."""
    found = mvcc.get(blocks.reader, key, ts, own=own, passable=passable, committed=committed)
    return block_version(blocks, key, ts) if found is None else found


def get_many(
    blocks: Blocks,
    keys: Sequence[bytes],
    ts: Timestamp,
    *,
    own: bytes | None = None,
    passable: Mapping[bytes, Timestamp] = NONE_PASSABLE,
    committed: Mapping[bytes, Timestamp] = NONE_COMMITTED,
) -> list[bytes | None]:
    """Read the values of keys at `ts`, in the order asked; None where there is none or a tombstone (`mvcc.get_many`)."""
    values: list[bytes | None] = []
    in_the_way: list[tuple[bytes, Intent]] = []
    for key in keys:
        try:
            version = get(blocks, key, ts, own=own, passable=passable, committed=committed)
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


def changes(
    blocks: Blocks,
    span: Span,
    low: Timestamp,
    high: Timestamp,
    *,
    own: bytes | None = None,
    passable: Mapping[bytes, Timestamp] = NONE_PASSABLE,
) -> Iterator[tuple[bytes, Timestamp] | None]:
    """Find a version with low < ts ≤ high in a span, in steps: None after each in which there is nothing (`mvcc.changes`)."""
    for found in mvcc.changes(blocks.reader, span, low, high, own=own, passable=passable):
        yield found
        if found is not None:
            return
    if low >= high:
        return
    for entry in blocks.entries(span):
        if entry.max_ts > low:
            found = _change_in(blocks, entry, span, low, high)
            yield found
            if found is not None:
                return


def changed(
    blocks: Blocks,
    span: Span,
    low: Timestamp,
    high: Timestamp,
    *,
    own: bytes | None = None,
    passable: Mapping[bytes, Timestamp] = NONE_PASSABLE,
) -> tuple[bytes, Timestamp] | None:
    """Find a version with low < ts ≤ high in a span; None if there is none (`mvcc.changed`)."""
    return next((found for found in changes(blocks, span, low, high, own=own, passable=passable) if found is not None), None)


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
            return engine_key[:-SUFFIX_BYTES], Timestamp(MAX_TIMESTAMP - int.from_bytes(suffix, "big"))
    return None
