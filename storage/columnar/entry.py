"""What is known of a block without reading it: its entry in the directory (family INDEX), by the last of its keys.

    INDEX   last key               ▸ entry
    BLOCK   last key │ slot, u16   ▸ chunk: 0 keys, 1 versions, 2 history, 3 which layout each row has, 4 … the columns

The block that can hold a key is the one with the least last key at or above it: one seek.

Invariants:
- Both stored keys begin with a key of the block, so whatever moves, clears or ships a span of keys does so with its blocks.
- A block's entry names every chunk, with its size and checksum; a chunk that is not there, or another one, is a CorruptionError.
- Bounds of a zone hold for every current row: no value lies outside of them.

Not here: the bytes of chunks (`chunk`, `keyrun`), and reading them (`block`).
"""

import zlib
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dsdb.storage.columnar.chunk import is_text
from dsdb.storage.datum import INT64_MAX, INT64_MIN, Datum, Kind
from dsdb.storage.errors import CorruptionError
from dsdb.storage.keys import prefix_end
from dsdb.storage.rowarrow import EXACT, LayoutColumn
from dsdb.storage.rowcodec import RowLayout
from dsdb.storage.timestamp import Timestamp

FORMAT = 1
SLOT_BYTES = 2
KEYS_SLOT, VERSIONS_SLOT, HISTORY_SLOT, LAYOUTS_SLOT, FIRST_COLUMN_SLOT = 0, 1, 2, 3, 4
ZONE_TEXT_BYTES_MAX = 24
"""Of a bound of text or bytes; longer ones are cut, outwards."""

ZoneBound: TypeAlias = int | float | bytes | None
"""Of a column: its values in the order of SQL, or of bytes; decimals as unscaled integers, if those have 64 bits.  None: unknown."""


class ChunkMark(msgspec.Struct, frozen=True, array_like=True):
    """A chunk as its entry names it."""

    size: int
    crc: int


class Zone(msgspec.Struct, frozen=True, array_like=True):
    """A column of a block: which one, where, and within which bounds its values lie."""

    column: LayoutColumn
    slot: int
    null_count: int
    """Also of rows whose layout does not have the column."""
    least: ZoneBound = None
    most: ZoneBound = None
    is_dictionary: bool = False


class BlockEntry(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A block's place in the directory."""

    format: int = FORMAT
    generation: int
    """One more than those of the blocks that it replaced: with the checksums it tells chunks of one place apart in caches."""
    first_key: bytes
    """The least key of a current row or of the history."""
    last_key: bytes
    rows: int
    """Current ones; 0 for a block of history alone."""
    history_rows: int
    max_ts: Timestamp
    """Of all versions, the history's included: reads at or above it need neither versions nor history."""
    min_ts: Timestamp
    """Of the current rows; of no meaning without any."""
    layouts: tuple[RowLayout, ...]
    """Of the current rows; with more than one, the chunk of `LAYOUTS_SLOT` says which each has, by its place here."""
    zones: tuple[Zone, ...]
    """One for each distinct column of the layouts."""
    layout_slots: tuple[tuple[int, ...], ...]
    """Of each layout, the slots of its columns."""
    rows_crc: int
    """Of the checksums of all chunks but the history's: what caches know the current rows by, with place and generation."""
    chunks: dict[int, ChunkMark]
    """By slot."""

    @property
    def stored_bytes(self) -> int:
        """Give the bytes of all chunks."""
        return sum(mark.size for mark in self.chunks.values())


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(BlockEntry)
_CRC_BYTES = 4


def encode_entry(entry: BlockEntry) -> bytes:
    """Give the stored form of an entry: its checksum, and it."""
    body = _encoder.encode(entry)
    return zlib.crc32(body).to_bytes(_CRC_BYTES, "big") + body


def decode_entry(key: bytes, stored: bytes) -> BlockEntry:
    """Read an entry.  Raises CorruptionError."""
    body = memoryview(stored)[_CRC_BYTES:]
    if zlib.crc32(body) != int.from_bytes(stored[:_CRC_BYTES], "big"):
        raise CorruptionError(f"the entry of a block at key {key.hex()} has a wrong checksum")
    try:
        entry = _decoder.decode(body)
    except msgspec.DecodeError as error:
        raise CorruptionError(f"the entry of a block at key {key.hex()} cannot be read: {error}") from None
    if entry.format != FORMAT or entry.last_key != key or entry.first_key > key:
        raise CorruptionError(f"the entry of a block at key {key.hex()} is of another place or format")
    return entry


def chunk_key(last_key: bytes, slot: int) -> bytes:
    """Give the key of a chunk in BLOCK."""
    return last_key + slot.to_bytes(SLOT_BYTES, "big")


def mark_at(entry: BlockEntry, slot: int) -> ChunkMark:
    """Give what an entry says of the chunk in a slot.  Raises CorruptionError if it has none there."""
    mark = entry.chunks.get(slot)
    if mark is None:
        raise CorruptionError(f"the entry of the block at key {entry.last_key.hex()} names no chunk {slot}")
    return mark


def mark_of(stored: bytes) -> ChunkMark:
    """Give what an entry says of a chunk."""
    return ChunkMark(len(stored), zlib.crc32(stored))


def rows_crc_of(marks: Mapping[int, ChunkMark]) -> int:
    """Give the checksum of checksums by which a block's current rows are known."""
    return zlib.crc32(b"".join(marks[slot].crc.to_bytes(4, "big") for slot in sorted(marks) if slot != HISTORY_SLOT))


def check_chunk(entry: BlockEntry, slot: int, stored: bytes | None, checks_sum: bool) -> bytes:
    """Give a chunk if it is the one that the entry names.  Raises CorruptionError."""
    mark = mark_at(entry, slot)
    if stored is None or len(stored) != mark.size or (checks_sum and zlib.crc32(stored) != mark.crc):
        what = "is not there" if stored is None else f"has not its {mark.size} bytes or its checksum"
        raise CorruptionError(f"chunk {slot} of the block at key {entry.last_key.hex()} {what}")
    return stored


# ---- Zones --------------------------------------------------------------------------------------------------------------------------


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What a reader wants of a column: rows whose value lies within; blocks that cannot have any are not read."""

    column_id: int
    low: Datum = None
    """None: no bound."""
    high: Datum = None


def zone_of(column: LayoutColumn, slot: int, array: pa.Array, *, is_dictionary: bool) -> Zone:
    """Give the zone of a column's values in a block."""
    least, most = _least_and_most(column, array)
    return Zone(column, slot, array.null_count, least, most, is_dictionary)


def _least_and_most(column: LayoutColumn, array: pa.Array) -> tuple[ZoneBound, ZoneBound]:
    if array.null_count == len(array) or column.kind in (Kind.INTERVAL, Kind.UUID) or column.is_unbounded:
        return None, None
    if column.kind is Kind.FLOAT:
        numbers = array.drop_null().to_numpy()
        # NaN is above all: with one, there is no greatest number.
        known = numbers[~np.isnan(numbers)]
        return (None, None) if len(known) == 0 else (float(known.min()), None if len(known) < len(numbers) else float(known.max()))
    if is_text(array.type):
        found = pc.min_max(array.cast(pa.binary()))
        least, most = found["min"].as_py(), found["max"].as_py()
        return least[:ZONE_TEXT_BYTES_MAX], most if len(most) <= ZONE_TEXT_BYTES_MAX else _above(most[:ZONE_TEXT_BYTES_MAX])
    least, most = pc.min_max(array).values()
    return _ordinal(column, least), _ordinal(column, most)


def _above(beginning: bytes) -> bytes | None:
    """Give bytes above all that begin so; None if there are none."""
    return prefix_end(beginning) if beginning.strip(b"\xff") else None


def _ordinal(column: LayoutColumn, scalar: Any) -> int | None:
    if column.kind is Kind.DECIMAL:
        unscaled = int(EXACT.scaleb(scalar.as_py(), column.scale))
        return unscaled if INT64_MIN <= unscaled <= INT64_MAX else None
    if column.kind in (Kind.BOOL, Kind.INT):
        return int(scalar.as_py())
    return int(scalar.value)


def _comparable(column: LayoutColumn, bound: ZoneBound) -> Any:
    """Give a bound of a zone as what values asked for compare with."""
    return EXACT.scaleb(Decimal(bound), -column.scale) if column.kind is Kind.DECIMAL and isinstance(bound, int) else bound


def _asked(value: Datum) -> Any:
    """Give a value asked for as what bounds compare with; None, which is no bound, for what has no place in their order."""
    if isinstance(value, (float, Decimal)) and value != value:
        return None
    return value.encode() if isinstance(value, str) else value


def may_match(entry: BlockEntry, bounds: Sequence[Bounds]) -> bool:
    """Say whether a current row of the block may lie within all bounds; a NULL lies within none.

    Nothing is concluded of a column of which rows of some layout have a default in its place, or another type.
    """
    for bound in bounds:
        zones = [zone for zone in entry.zones if zone.column.column_id == bound.column_id]
        if len(zones) != 1 or not all(zones[0].column in layout.columns for layout in entry.layouts):
            continue
        zone = zones[0]
        if zone.null_count == entry.rows:
            return False
        least, most = _comparable(zone.column, zone.least), _comparable(zone.column, zone.most)
        low, high = _asked(bound.low), _asked(bound.high)
        if (low is not None and most is not None and most < low) or (high is not None and least is not None and high < least):
            return False
    return True
