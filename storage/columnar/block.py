"""Reading blocks: the directory's entries, and of a block the chunks that are wanted, decompressed at most once while a cache keeps them.

Invariants:
- An entry that is not what was written, a chunk that is missing or of another size, and with `checks_sums` one of other bytes, is a
  CorruptionError, found before anything of it is used.
- What a cache gives is what the reader's state holds: entries are looked up by their bytes, chunks by place, generation and checksum.

Give an engine snapshot as the reader, or write nothing while a read goes on: a block's entry and its chunks must be of one state.
"""

import struct
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, cast

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dsdb.storage.columnar.chunk import Chunk, Patch, decode_numbers
from dsdb.storage.columnar.entry import (
    HISTORY_SLOT,
    KEYS_SLOT,
    LAYOUTS_SLOT,
    VERSIONS_SLOT,
    BlockEntry,
    check_chunk,
    chunk_key,
    decode_entry,
    mark_at,
)
from dsdb.storage.columnar.keyrun import KeyRun
from dsdb.storage.columnar.stretches import Stretches
from dsdb.storage.datum import Datum
from dsdb.storage.engine.port import Family, Reader
from dsdb.storage.errors import CorruptionError
from dsdb.storage.keys import KEY_MAX, Span
from dsdb.storage.rowarrow import LayoutColumn, arrow_type, as_narrow_type, batch_of, cast_array, field_name, repeated
from dsdb.storage.rowbatch import HeadShape
from dsdb.storage.rowcodec import codec_for

INDEX, BLOCK = Family.INDEX, Family.BLOCK
CACHE_BYTES_DEFAULT = 64 << 20
_ENTRY_FACTOR = 8
"""Bytes of memory of a decoded entry for each stored one, about."""
_HISTORY_ROW_BYTES = 100
"""Memory that a version of a history takes beside its bytes."""
_ROWS_ONE_BY_ONE_MAX = 64
"""Rows up to which taking each value by itself is cheaper than encoding whole columns."""
_SCANNED_SHARE = 2
"""A scan of all chunks is cheaper than a read of each, where at least one of so many is wanted."""

History = tuple[list[bytes], list[bytes]]
"""Keys with inverted timestamps, and stored versions, as in DELTA and in its order."""

T = TypeVar("T")


class _Sized(Generic[T]):
    """Values by key, the least recently used of which go when they are too many bytes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._values: OrderedDict[Any, tuple[T, int]] = OrderedDict()
        self.size_bytes = 0

    def get(self, key: Any) -> T | None:
        found = self._values.get(key)
        if found is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def put(self, key: Any, value: T, size_bytes: int) -> None:
        old = self._values.pop(key, None)
        self.size_bytes += size_bytes - (0 if old is None else old[1])
        self._values[key] = (value, size_bytes)
        while self.size_bytes > self._bytes_max and self._values:
            _, (_, size_bytes) = self._values.popitem(last=False)
            self.size_bytes -= size_bytes


class BlockCache:
    """Decoded entries, keys and column chunks of one store's blocks, up to a number of bytes.  For one thread."""

    def __init__(self, bytes_max: int = CACHE_BYTES_DEFAULT) -> None:
        self._parts: _Sized[Any] = _Sized(bytes_max)

    @property
    def size_bytes(self) -> int:
        """Give about how much memory it holds."""
        return self._parts.size_bytes

    def entry(self, key: bytes, stored: bytes) -> BlockEntry:
        """Decode an entry, or find it decoded."""
        entry: BlockEntry | None = self._parts.get(stored)
        if entry is None:
            entry = decode_entry(key, stored)
            self._parts.put(stored, entry, len(stored) * _ENTRY_FACTOR)
        return entry

    def chunk(self, entry: BlockEntry, slot: int) -> Any:
        """Give a chunk if it is here."""
        return self._parts.get((entry.last_key, entry.generation, slot, mark_at(entry, slot).crc))

    def plan(self, identity: tuple[Any, ...]) -> Any:
        """Give what was kept for the rows of a block."""
        return self._parts.get(identity)

    def keep_plan(self, identity: tuple[Any, ...], plan: Any, size_bytes: int) -> None:
        """Keep what is needed for the rows of a block."""
        self._parts.put(identity, plan, size_bytes)

    def keep(self, entry: BlockEntry, slot: int, chunk: Any, size_bytes: int) -> None:
        """Keep a chunk."""
        self._parts.put((entry.last_key, entry.generation, slot, mark_at(entry, slot).crc), chunk, size_bytes)


class Blocks:
    """The blocks of a reader's state."""

    def __init__(
        self,
        reader: Reader,
        cache: BlockCache | None = None,
        *,
        checks_sums: bool = False,
        stretches: Stretches | None = None,
        number: int = 0,
    ) -> None:
        """stretches: what is known of the rows over blocks; number: it had before the reader's state was frozen."""
        self.reader = reader
        self.stretches = stretches
        self.number = number
        self._cache = cache
        self._checks_sums = checks_sums
        """Whether chunks are compared with their checksums: a sixth of a scan.  Whoever rewrites blocks does; readers trust the engine's
        own checksums, as they do for rows."""

    def checked(self) -> "Blocks":
        """Give these blocks read anew, with all checksums compared; what was read is kept for as long as they are."""
        return Blocks(self.reader, BlockCache(), checks_sums=True)

    # ---- The directory ----

    def entry_at(self, key: bytes) -> BlockEntry | None:
        """Give the block with the least last key at or above a key: it alone can hold the key, but it may begin behind it."""
        found = self.reader.first(INDEX, key, KEY_MAX)
        return None if found is None else self._decoded(*found)

    def entries(self, span: Span, *, reverse: bool = False) -> Iterator[BlockEntry]:
        """Give the blocks that may hold keys of a span, in order or from the highest down."""
        if span.is_empty:
            return
        straddling = self.entry_at(span.end)
        behind = [straddling] if straddling is not None and straddling.first_key < span.end else []
        if reverse:
            yield from behind
        for keys, stored in self.reader.scan(INDEX, span.start, span.end, reverse=reverse, chunk_rows=64):
            yield from map(self._decoded, keys, stored)
        if not reverse:
            yield from behind

    def _decoded(self, key: bytes, stored: bytes) -> BlockEntry:
        return decode_entry(key, stored) if self._cache is None else self._cache.entry(key, stored)

    # ---- Chunks ----

    def keys(self, entry: BlockEntry) -> KeyRun:
        """Give the keys of the current rows, of which there must be some."""
        run: KeyRun | None = None if self._cache is None else self._cache.chunk(entry, KEYS_SLOT)
        if run is None:
            run = KeyRun(self._stored(entry, KEYS_SLOT))
            _require_rows(entry, run.rows)
            if self._cache is not None:
                self._cache.keep(entry, KEYS_SLOT, run, run.size_bytes)
        return run

    def versions(self, entry: BlockEntry) -> npt.NDArray[np.uint64]:
        """Give the timestamps of the current rows."""
        return self._numbers(entry, VERSIONS_SLOT)

    def layout_places(self, entry: BlockEntry) -> npt.NDArray[np.uint64]:
        """Give for each current row the place of its layout in the entry."""
        return self._numbers(entry, LAYOUTS_SLOT) if len(entry.layouts) > 1 else np.zeros(entry.rows, np.uint64)

    def _numbers(self, entry: BlockEntry, slot: int) -> npt.NDArray[np.uint64]:
        numbers: npt.NDArray[np.uint64] | None = None if self._cache is None else self._cache.chunk(entry, slot)
        if numbers is None:
            numbers = decode_numbers(self._stored(entry, slot))
            _require_rows(entry, len(numbers))
            if self._cache is not None:
                self._cache.keep(entry, slot, numbers, int(numbers.nbytes))
        return numbers

    def history(self, entry: BlockEntry) -> History:
        """Give the older versions of the block's keys."""
        if not entry.history_rows:
            return [], []
        found: History | None = None if self._cache is None else self._cache.chunk(entry, HISTORY_SLOT)
        if found is None:
            found = decode_history(self._stored(entry, HISTORY_SLOT))
            if self._cache is not None:
                size_bytes = sum(map(len, found[0])) + sum(map(len, found[1])) + len(found[0]) * _HISTORY_ROW_BYTES
                self._cache.keep(entry, HISTORY_SLOT, found, size_bytes)
        return found

    def chunks(self, entry: BlockEntry, slots: Sequence[int]) -> dict[int, Chunk]:
        """Give the chunks of columns, by slot."""
        found: dict[int, Chunk] = {}
        if self._cache is not None:
            for slot in slots:
                chunk = self._cache.chunk(entry, slot)
                if chunk is not None:
                    found[slot] = chunk
        if len(found) < len(slots):
            missing = sorted(set(slots).difference(found))
            types = {zone.slot: arrow_type(zone.column) for zone in entry.zones}
            for slot, stored in zip(missing, self._read(entry, missing)):
                chunk = found[slot] = Chunk(check_chunk(entry, slot, stored, self._checks_sums), types[slot])
                _require_rows(entry, chunk.rows)
                if self._cache is not None:
                    self._cache.keep(entry, slot, chunk, chunk.size_bytes)
        return found

    def _read(self, entry: BlockEntry, slots: Sequence[int]) -> Sequence[bytes | None]:
        if len(slots) * _SCANNED_SHARE < len(entry.chunks):
            return self.reader.multi_get(BLOCK, [chunk_key(entry.last_key, slot) for slot in slots])
        start, end = chunk_key(entry.last_key, slots[0]), chunk_key(entry.last_key, slots[-1] + 1)
        found: dict[bytes, bytes] = {}
        for keys, values in self.reader.scan(BLOCK, start, end):
            found.update(zip(keys, values))
        return [found.get(chunk_key(entry.last_key, slot)) for slot in slots]

    def _stored(self, entry: BlockEntry, slot: int) -> bytes:
        return check_chunk(entry, slot, self.reader.get(BLOCK, chunk_key(entry.last_key, slot)), self._checks_sums)

    # ---- Columns ----

    def columns(
        self,
        entry: BlockEntry,
        target: Sequence[LayoutColumn],
        defaults: Mapping[int, Datum],
        patch: tuple[npt.NDArray[np.int64], Sequence[pa.Array]] | None = None,
        dictionaries: frozenset[int] = frozenset(),
        *,
        as_narrow: bool = False,
    ) -> list[pa.Array]:
        """Give columns of the current rows, of exactly the target's types; with some rows replaced, by one array a column.

        A column that a row's layout does not have is its default, or NULL.  dictionaries: ids of those to give as dictionaries, which
        must be stored so; as_narrow: decimals by `narrow_type`.
        """
        zones = [_zones_of(entry, column.column_id) for column in target]
        chunks = self.chunks(entry, [zone.slot for found in zones for zone in found])
        places = self.layout_places(entry) if len(entry.layouts) > 1 else None
        arrays = []
        for index, (column, found) in enumerate(zip(target, zones)):
            values = None if patch is None else Patch(patch[0], patch[1][index])
            if len(found) == 1 and found[0].column == column and all(column in layout.columns for layout in entry.layouts):
                arrays.append(chunks[found[0].slot].array(values, as_dictionary=column.column_id in dictionaries, as_narrow=as_narrow))
            else:
                by_column = {zone.column: chunks[zone.slot].array() for zone in found}
                array = _of_layouts(entry, places, column, by_column, defaults.get(column.column_id))
                if as_narrow:
                    array = as_narrow_type(array)
                arrays.append(array if values is None else replaced(array, values))
        return arrays

    def row_value(self, entry: BlockEntry, row: int) -> bytes:
        """Give the stored value of one current row."""
        place = int(self.layout_places(entry)[row]) if len(entry.layouts) > 1 else 0
        shape, chunks = self._row_plan(entry, place)
        return _joined_row(shape, [chunk.stored_value(row) for chunk in chunks])

    def _row_plan(self, entry: BlockEntry, place: int) -> tuple[HeadShape, list[Chunk]]:
        """Give what is needed of a block for the values of rows of one of its layouts."""
        identity = (entry.last_key, entry.generation, entry.rows_crc, "row", place)
        plan: tuple[HeadShape, list[Chunk]] | None = None if self._cache is None else self._cache.plan(identity)
        if plan is None:
            slots = entry.layout_slots[place]
            chunks = self.chunks(entry, slots)
            plan = codec_for(entry.layouts[place]).shape, [chunks[slot] for slot in slots]
            if self._cache is not None:
                # Chunks that are cached by themselves too count twice: the limit holds all the same.
                self._cache.keep_plan(identity, plan, sum(chunk.size_bytes for chunk in plan[1]) + 512)
        return plan

    def row_values(self, entry: BlockEntry, rows: npt.NDArray[np.int64]) -> list[bytes]:
        """Give the stored values of current rows."""
        if len(rows) <= _ROWS_ONE_BY_ONE_MAX:
            return [self.row_value(entry, row) for row in rows.tolist()]
        chunks = self.chunks(entry, [zone.slot for zone in entry.zones])
        layouts = self.layout_places(entry)[rows]
        values = np.empty(len(rows), object)
        for place, layout in enumerate(entry.layouts):
            own = np.flatnonzero(layouts == place)
            if len(own):
                chosen = pa.array(rows[own])
                arrays = [chunks[slot].array().take(chosen) for slot in entry.layout_slots[place]]
                batch = batch_of(arrays, [field_name(column.column_id) for column in layout.columns], len(own))
                values[own] = codec_for(layout).encode_batch(batch)
        return cast(list[bytes], values.tolist())


_interval = struct.Struct("<iiq")
_NUMBER_OF_BYTES = {"f": struct.Struct("<f"), "d": struct.Struct("<d")}


def _joined_row(shape: HeadShape, stored: Sequence[int | bytes | None]) -> bytes:
    """Put a row value together of its columns' stored values: what `RowCodec.encode` gives of their datums."""
    bits = end = 0
    items: list[Any] = []
    ends: list[int] = []
    tails: list[bytes] = []
    for position, (letters, value) in enumerate(zip(shape.letters, stored)):
        if value is None:
            bits |= 1 << position
        if not letters:
            tail = b"" if value is None else value
            assert isinstance(tail, bytes)
            tails.append(tail)
            end += len(tail)
            ends.append(end)
        elif letters == "iiq":
            items += (0, 0, 0) if value is None else _interval.unpack(value)  # type: ignore[arg-type]
        elif letters == "16s":
            items.append(value.to_bytes(16, "little", signed=True) if isinstance(value, int) else value or b"")
        elif isinstance(value, bytes):
            items += _NUMBER_OF_BYTES[letters].unpack(value)
        else:
            items.append(value or 0)
    nulls = bits.to_bytes(shape.bitmap_bytes, "little")
    return b"".join((shape.struct.pack(shape.layout_id, nulls, *items, *ends), *tails))


def _require_rows(entry: BlockEntry, rows: int) -> None:
    if rows != entry.rows:
        raise CorruptionError(f"a chunk of {rows} rows in the block of {entry.rows} at key {entry.last_key.hex()}")


def _zones_of(entry: BlockEntry, column_id: int) -> list[Any]:
    return [zone for zone in entry.zones if zone.column.column_id == column_id]


def _of_layouts(
    entry: BlockEntry,
    places: npt.NDArray[np.uint64] | None,
    column: LayoutColumn,
    by_column: Mapping[LayoutColumn, pa.Array],
    default: Datum,
) -> pa.Array:
    """Put a column together of what the layouts of a block's rows have of it."""
    out: pa.Array | None = None
    for place, layout in enumerate(entry.layouts):
        source = next((own for own in layout.columns if own.column_id == column.column_id), None)
        if places is None:
            return repeated(column, default, entry.rows) if source is None else cast_array(by_column[source], source, column)
        rows = places == place
        if source is None:
            part = repeated(column, default, entry.rows)
        else:
            # Only this layout's rows: another's may not fit a narrower type.
            part = cast_array(pc.if_else(rows, by_column[source], pa.scalar(None, by_column[source].type)), source, column)
        out = part if out is None else pc.if_else(rows, part, out)
    assert out is not None
    return out


def replaced(array: pa.Array, patch: Patch) -> pa.Array:
    """Replace some values of any array."""
    chosen = np.arange(len(array), dtype=np.int64)
    chosen[patch.places] = len(array) + np.arange(len(patch.places))
    return pa.concat_arrays([array, patch.values]).take(pa.array(chosen))


# ---- History ------------------------------------------------------------------------------------------------------------------------

_codec = pa.Codec("lz4_raw")
_size = struct.Struct("<Q")
_history_encoder = msgspec.msgpack.Encoder()
_history_decoder = msgspec.msgpack.Decoder(tuple[list[bytes], list[bytes]])


def encode_history(history: History) -> bytes:
    """Give the stored form of older versions."""
    plain = _history_encoder.encode(history)
    return _size.pack(len(plain)) + bytes(_codec.compress(plain, asbytes=True))


def decode_history(stored: bytes) -> History:
    """Read older versions.  Raises CorruptionError."""
    try:
        (size,) = _size.unpack_from(stored)
        keys, values = _history_decoder.decode(_codec.decompress(memoryview(stored)[_size.size :], size))
    except (struct.error, pa.ArrowException, OSError, msgspec.DecodeError) as error:
        raise CorruptionError(f"the history of a block cannot be read: {error}") from error
    if len(keys) != len(values):
        raise CorruptionError("the history of a block has not one version a key")
    return keys, values
