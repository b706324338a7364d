"""The rows of a block in memory: read, changed, and written again as one block or several.

    entry ─▶ read_content ─▶ Content ─▶ with_rows (fold), pieces (cut) ─▶ write_contents ─▶ entries and chunks in a write batch

Rows of several layouts stand in one block: it has a column for each distinct stored column of any of them, NULL where a row's layout has
none, and for each row which layout it has; so every row's value can be had again, byte by byte.

Invariants:
- Current rows ascend by key, each key once; the history ascends as in DELTA; all versions of a key are in one block.
- A block that was written reads as the content it was written from.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dsdb.storage.columnar.block import BLOCK, INDEX, Blocks, History, encode_history
from dsdb.storage.columnar.chunk import Encoding, encode_chunk, encode_numbers
from dsdb.storage.columnar.entry import (
    FIRST_COLUMN_SLOT,
    HISTORY_SLOT,
    KEYS_SLOT,
    LAYOUTS_SLOT,
    VERSIONS_SLOT,
    BlockEntry,
    Zone,
    chunk_key,
    encode_entry,
    mark_of,
    rows_crc_of,
    zone_of,
)
from dsdb.storage.columnar.keyrun import encode_keys
from dsdb.storage.engine.port import WriteBatch
from dsdb.storage.rowarrow import LayoutColumn, arrow_type
from dsdb.storage.rowbatch import LAYOUT_ID_BYTES
from dsdb.storage.rowcodec import RowLayout, decode_batches
from dsdb.storage.timestamp import Timestamp
from dsdb.storage.versions import SUFFIX_BYTES, suffix_of, suffix_ts, user_key_of

BLOCK_ROWS_MAX = 16_384
BLOCK_BYTES_MAX = 8 << 20
"""Of Arrow data: what is written and read at once stays far below what may hold the GIL for 20 ms."""

Places = npt.NDArray[np.int64]


class Content(NamedTuple):
    """What a block holds."""

    keys: list[bytes]
    versions: npt.NDArray[np.uint64]
    layouts: tuple[RowLayout, ...]
    layout_places: npt.NDArray[np.uint64]
    """For each row, the place of its layout in `layouts`."""
    columns: Mapping[LayoutColumn, pa.Array]
    history: History


class FreshRow(NamedTuple):
    """A row that is to become current."""

    key: bytes
    ts: Timestamp
    value: bytes


EMPTY = Content([], np.zeros(0, np.uint64), (), np.zeros(0, np.uint64), {}, ([], []))


def read_content(blocks: Blocks, entry: BlockEntry) -> Content:
    """Read a whole block."""
    history = blocks.history(entry)
    if not entry.rows:
        return EMPTY._replace(history=history)
    chunks = blocks.chunks(entry, [zone.slot for zone in entry.zones])
    columns = {zone.column: chunks[zone.slot].array() for zone in entry.zones}
    return Content(blocks.keys(entry).keys(), blocks.versions(entry), entry.layouts, blocks.layout_places(entry), columns, history)


def layout_id_of(value: bytes) -> int:
    """Give the layout id with which a row value begins; −1 for what is none."""
    return int.from_bytes(value[:LAYOUT_ID_BYTES], "little") if len(value) >= LAYOUT_ID_BYTES else -1


# ---- Changing -----------------------------------------------------------------------------------------------------------------------


def with_rows(
    content: Content, kept: Places, fresh: Sequence[FreshRow], places: Places, layouts: Mapping[int, RowLayout], history: History
) -> Content:
    """Give the content with only the rows `kept`, ascending, and fresh ones, of each of which `places` says how many old rows are below."""
    order = np.argsort(np.concatenate([kept * 2 + 1, places * 2]), kind="stable")
    keys = [content.keys[row] for row in kept.tolist()] + [row.key for row in fresh]
    versions = np.concatenate([content.versions[kept], np.fromiter([row.ts for row in fresh], np.uint64, len(fresh))])
    ids = [layout_id_of(row.value) for row in fresh]
    all_layouts, used = _used_layouts(content, kept, [layouts[layout_id] for layout_id in dict.fromkeys(ids)])
    by_id = {layout.layout_id: place for place, layout in enumerate(all_layouts)}
    old_places = np.array([by_id.get(layout.layout_id, 0) for layout in content.layouts] or [0], np.uint64)[
        content.layout_places[kept].astype(np.int64)
    ]
    layout_places = np.concatenate([old_places, np.fromiter([by_id[layout_id] for layout_id in ids], np.uint64, len(ids))])
    chosen, kept_array = pa.array(order), pa.array(kept)
    is_all = len(kept) == len(content.keys)
    decoded = _decoded(fresh, ids, layouts)
    columns = {}
    for column in used:
        old = content.columns.get(column)
        parts = [pa.nulls(len(kept), arrow_type(column)) if old is None else old if is_all else old.take(kept_array)]
        parts.append(decoded[column] if column in decoded else pa.nulls(len(fresh), arrow_type(column)))
        columns[column] = pa.concat_arrays(parts).take(chosen) if len(fresh) else parts[0]
    order_list = order.tolist()
    return Content([keys[at] for at in order_list], versions[order], all_layouts, layout_places[order], columns, history)


def _used_layouts(content: Content, kept: Places, fresh: Sequence[RowLayout]) -> tuple[tuple[RowLayout, ...], list[LayoutColumn]]:
    """Give the layouts that rows still have, by id, and their distinct columns."""
    present = np.unique(content.layout_places[kept]).astype(np.int64).tolist()
    layouts = {layout.layout_id: layout for layout in [*(content.layouts[place] for place in present), *fresh]}
    ordered = tuple(layouts[layout_id] for layout_id in sorted(layouts))
    distinct = dict.fromkeys(column for layout in ordered for column in layout.columns)
    return ordered, sorted(distinct, key=lambda column: column.column_id)


def _decoded(fresh: Sequence[FreshRow], ids: Sequence[int], layouts: Mapping[int, RowLayout]) -> dict[LayoutColumn, pa.Array]:
    """Decode rows, each by its own layout, to the distinct columns of all of them."""
    if not fresh:
        return {}
    of_ids = np.array(ids, np.int64)
    parts: dict[LayoutColumn, list[pa.Array]] = {}
    groups = [(layout_id, np.flatnonzero(of_ids == layout_id)) for layout_id in dict.fromkeys(ids)]
    distinct = dict.fromkeys(column for layout_id, _ in groups for column in layouts[layout_id].columns)
    for layout_id, rows in groups:
        layout = layouts[layout_id]
        batch = decode_batches([fresh[row].value for row in rows.tolist()], {layout_id: layout}, layout.columns)
        own = dict(zip(layout.columns, batch.columns))
        for column in distinct:
            parts.setdefault(column, []).append(own[column] if column in own else pa.nulls(len(rows), arrow_type(column)))
    if len(groups) == 1:
        return {column: arrays[0] for column, arrays in parts.items()}
    back = pa.array(np.argsort(np.concatenate([rows for _, rows in groups])))
    return {column: pa.concat_arrays(arrays).take(back) for column, arrays in parts.items()}


def part_of(content: Content, start: int, end: int, history: History) -> Content:
    """Give some of the rows, with some of the history."""
    return Content(
        content.keys[start:end],
        content.versions[start:end],
        content.layouts,
        content.layout_places[start:end],
        {column: array.slice(start, end - start) for column, array in content.columns.items()},
        history,
    )


def cut_content(content: Content, bound: bytes) -> tuple[Content, Content]:
    """Give what is below a key, and the rest."""
    row = bisect_left(content.keys, bound)
    keys, values = content.history
    at = bisect_left(keys, bound, key=user_key_of)
    return (
        part_of(content, 0, row, (keys[:at], values[:at])),
        part_of(content, row, len(content.keys), (keys[at:], values[at:])),
    )


# ---- Writing ------------------------------------------------------------------------------------------------------------------------


def write_contents(batch: WriteBatch, content: Content, generation: int, *, rows_max: int = BLOCK_ROWS_MAX) -> list[BlockEntry]:
    """Write a content as blocks of about equal size; none if it is empty.  Gives their entries."""
    rows = len(content.keys)
    size = sum(array.nbytes for array in content.columns.values())
    count = max(min(max(-(-rows // rows_max), -(-size // BLOCK_BYTES_MAX)), rows), 1)
    entries, done = [], 0
    keys, values = content.history
    for number in range(count):
        start, end = number * rows // count, (number + 1) * rows // count
        # History between two pieces goes with the latter; what is behind all rows, with the last.
        at = len(keys) if number == count - 1 else bisect_right(keys, content.keys[end - 1], key=user_key_of)
        piece = part_of(content, start, end, (keys[done:at], values[done:at]))
        done = at
        if piece.keys or piece.history[0]:
            entries.append(_write_block(batch, piece, generation))
    return entries


def encode_block(content: Content, generation: int) -> tuple[BlockEntry, dict[int, bytes]]:
    """Give a content's entry and chunks, by slot."""
    history_keys = content.history[0]
    bounds = [*content.keys[:1], *content.keys[-1:], *(key[:-SUFFIX_BYTES] for key in (*history_keys[:1], *history_keys[-1:]))]
    chunks: dict[int, bytes] = {}
    zones: list[Zone] = []
    rows = len(content.keys)
    if rows:
        chunks[KEYS_SLOT] = encode_keys(content.keys)
        chunks[VERSIONS_SLOT] = encode_numbers(content.versions)
        if len(content.layouts) > 1:
            chunks[LAYOUTS_SLOT] = encode_numbers(content.layout_places)
        for slot, (column, array) in enumerate(content.columns.items(), FIRST_COLUMN_SLOT):
            chunks[slot] = encode_chunk(array)
            zones.append(zone_of(column, slot, array, is_dictionary=chunks[slot][0] == Encoding.DICTIONARY))
    if history_keys:
        chunks[HISTORY_SLOT] = encode_history(content.history)
    marks = {slot: mark_of(chunks[slot]) for slot in sorted(chunks)}
    slots = {zone.column: zone.slot for zone in zones}
    entry = BlockEntry(
        generation=generation,
        first_key=min(bounds),
        last_key=max(bounds),
        rows=rows,
        history_rows=len(history_keys),
        max_ts=newest_of(content),
        min_ts=Timestamp(int(content.versions.min())) if rows else Timestamp(0),
        layouts=content.layouts if rows else (),
        layout_slots=tuple(tuple(slots[column] for column in layout.columns) for layout in content.layouts) if rows else (),
        zones=tuple(zones),
        rows_crc=rows_crc_of(marks),
        chunks=marks,
    )
    return entry, chunks


def _write_block(batch: WriteBatch, content: Content, generation: int) -> BlockEntry:
    entry, chunks = encode_block(content, generation)
    for slot in sorted(chunks):
        batch.put(BLOCK, chunk_key(entry.last_key, slot), chunks[slot])
    batch.put(INDEX, entry.last_key, encode_entry(entry))
    return entry


def newest_of(content: Content) -> Timestamp:
    """Give the newest timestamp of all versions."""
    newest = int(content.versions.max()) if len(content.versions) else 0
    return Timestamp(max([newest, *(suffix_ts(suffix) for suffix in (min(map(suffix_of, content.history[0]), default=b"\xff" * 8),))]))


def remove_block(batch: WriteBatch, entry: BlockEntry) -> None:
    """Remove a block's entry and chunks; do so before its replacement is written into the same batch."""
    batch.delete(INDEX, entry.last_key)
    for slot in sorted(entry.chunks):
        batch.delete(BLOCK, chunk_key(entry.last_key, slot))
