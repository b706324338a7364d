"""What blocks need besides folding: garbage collection of their history, the cut at a split, and the check of all that must hold.

Invariants:
- Collecting and cutting change no answer at or above the threshold, each in one write batch.
- After a cut, no block has keys on both sides.
- `verify` reads every byte: what it passes is complete, in order, and as it was written.
"""

from itertools import pairwise

import msgspec
import numpy as np
import pyarrow as pa

from dsdb.storage import mvcc
from dsdb.storage.columnar.block import BLOCK, INDEX, Blocks, encode_history
from dsdb.storage.columnar.content import Content, cut_content, newest_of, read_content, remove_block, write_contents
from dsdb.storage.columnar.entry import HISTORY_SLOT, BlockEntry, chunk_key, encode_entry, mark_of, zone_of
from dsdb.storage.columnar.fold import retained
from dsdb.storage.engine.port import WriteBatch
from dsdb.storage.errors import CorruptionError
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import Timestamp
from dsdb.storage.versions import SUFFIX_BYTES


def collect_garbage(
    blocks: Blocks, batch: WriteBatch, span: Span, threshold: Timestamp, *, start: bytes | None = None, blocks_max: int
) -> tuple[int, int, bytes | None]:
    """Remove from the history of a span's blocks what no read at or above `threshold` sees; current rows stay.

    Gives how many versions were removed, their stored bytes, and, when `blocks_max` histories were looked at, the key to go on from once
    the batch is written.
    """
    removed = removed_bytes = looked_at = 0
    for entry in blocks.entries(Span(span.start if start is None else start, span.end)):
        if not entry.history_rows:
            continue
        if looked_at == blocks_max:
            return removed, removed_bytes, entry.first_key
        looked_at += 1
        count, size = _collect_of(blocks, batch, entry, threshold)
        removed, removed_bytes = removed + count, removed_bytes + size
    return removed, removed_bytes, None


def _collect_of(blocks: Blocks, batch: WriteBatch, entry: BlockEntry, threshold: Timestamp) -> tuple[int, int]:
    blocks = blocks.checked()
    keys, values = blocks.history(entry)
    known = Content(
        blocks.keys(entry).keys() if entry.rows else [],
        blocks.versions(entry) if entry.rows else np.zeros(0, np.uint64),
        (),
        np.zeros(0, np.uint64),
        {},
        ([], []),
    )
    kept = retained(known, dict(zip(keys, values)), threshold)
    if len(kept[0]) == len(keys):
        return 0, 0
    if not kept[0] and not entry.rows:
        remove_block(batch, entry)
        return len(keys), entry.stored_bytes
    marks = {slot: mark for slot, mark in entry.chunks.items() if slot != HISTORY_SLOT}
    if kept[0]:
        stored = encode_history(kept)
        batch.put(BLOCK, chunk_key(entry.last_key, HISTORY_SLOT), stored)
        marks[HISTORY_SLOT] = mark_of(stored)
    else:
        batch.delete(BLOCK, chunk_key(entry.last_key, HISTORY_SLOT))
    changed = msgspec.structs.replace(
        entry,
        # Its other chunks are the same: the generation stays, and what caches have of them holds.
        history_rows=len(kept[0]),
        max_ts=newest_of(known._replace(history=kept)),
        chunks={slot: marks[slot] for slot in sorted(marks)},
    )
    batch.put(INDEX, entry.last_key, encode_entry(changed))
    return len(keys) - len(kept[0]), entry.stored_bytes - changed.stored_bytes


def may_hold(blocks: Blocks, key: bytes) -> bool:
    """Say whether a block may have versions of a key: then a tombstone over it must not go."""
    entry = blocks.entry_at(key)
    return entry is not None and entry.first_key <= key


def collect_delta_garbage(
    blocks: Blocks, batch: WriteBatch, span: Span, threshold: Timestamp, *, versions_max: int
) -> tuple[int, int, bytes | None]:
    """Do what `mvcc.collect_garbage` does, but leave the tombstones that hide rows of blocks: folding takes them."""
    return mvcc.collect_garbage(
        blocks.reader, batch, span, threshold, versions_max=versions_max, hides_older=lambda key: may_hold(blocks, key)
    )


def cut(blocks: Blocks, batch: WriteBatch, bound: bytes) -> bool:
    """Make two of the block that has keys below a bound and others at or above it; say whether there was one."""
    entry = blocks.entry_at(bound)
    if entry is None or entry.first_key >= bound:
        return False
    left, right = cut_content(read_content(blocks.checked(), entry), bound)
    remove_block(batch, entry)
    for side in (left, right):
        write_contents(batch, side, entry.generation + 1)
    return True


def clear(batch: WriteBatch, span: Span) -> None:
    """Remove all blocks of a span at whose ends no block straddles (`cut`)."""
    batch.delete_range(BLOCK, span.start, span.end)
    batch.delete_range(INDEX, span.start, span.end)


def verify(blocks: Blocks, span: Span) -> int:
    """Check every block of a span, bytes and meaning; give how many there are.  Raises CorruptionError."""
    behind, count = span.start, 0
    for entry in blocks.entries(span):
        if entry.first_key < behind or entry.last_key >= span.end:
            raise CorruptionError(f"the block at key {entry.last_key.hex()} goes beyond the one before it, or the span")
        behind = entry.last_key + b"\x00"
        _verify_block(blocks, entry)
        count += 1
    return count


def _verify_block(blocks: Blocks, entry: BlockEntry) -> None:
    where = f"the block at key {entry.last_key.hex()}"
    content = read_content(blocks.checked(), entry)
    keys, history_keys = content.keys, content.history[0]
    users = [key[:-SUFFIX_BYTES] for key in history_keys]
    if any(left >= right for left, right in pairwise(keys)) or any(a >= b for a, b in pairwise(history_keys)):
        raise CorruptionError(f"keys of {where} do not ascend")
    if not all(entry.first_key <= key <= entry.last_key for key in (*keys, *users)):
        raise CorruptionError(f"keys of {where} lie outside of its bounds")
    if len(history_keys) != entry.history_rows or newest_of(content) != entry.max_ts:
        raise CorruptionError(f"{where} has not the versions that its entry tells of")
    current = dict(zip(keys, content.versions.tolist()))
    for engine_key, user in zip(history_keys, users):
        if user in current and (2**64 - 1) - int.from_bytes(engine_key[-SUFFIX_BYTES:], "big") >= current[user]:
            raise CorruptionError(f"{where} has a version in its history that is newer than the current row of key {user.hex()}")
    for zone in entry.zones:
        array: pa.Array = content.columns[zone.column]
        try:
            array.validate(full=True)
        except pa.ArrowInvalid as error:
            if not pa.types.is_time(array.type):  # Arrow refuses the time 24:00
                raise CorruptionError(f"column {zone.column.column_id} of {where}: {error}") from error
        if zone_of(zone.column, zone.slot, array, is_dictionary=zone.is_dictionary) != zone:
            raise CorruptionError(f"column {zone.column.column_id} of {where} lies outside of its zone")
