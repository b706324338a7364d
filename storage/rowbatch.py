"""Row values in bulk: lists of row values to Arrow record batches and back, as strided views of one buffer.

    values ──▶ heads: matrix of bytes, rows × head ──▶ a strided view a fixed column, and a bit of the bitmap a column
           └─▶ tails: one run of bytes, cut at every end offset ──▶ take(variable column) ──▶ string, binary

Invariants:
- Decoding gives what `RowCodec.decode` gives row by row, and encoding what `RowCodec.encode` gives, byte by byte.
- All end offsets are checked against the length of their value before anything is read through them.

Not here: the layout itself, and rows one by one (`rowcodec`).
"""

import itertools
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dsdb.storage.datum import DAY_MICROSECONDS, Datum, Kind
from dsdb.storage.errors import CorruptionError, ValueRangeError
from dsdb.storage.rowarrow import (
    LayoutColumn,
    array_to_datums,
    arrow_type,
    batch_of,
    cast_array,
    datums_to_arrow,
    field_name,
    has_nul,
    parts_of,
    repeated,
)

Matrix = npt.NDArray[np.uint8]
LAYOUT_ID_BYTES = 4
_END_BYTES = 4


class HeadShape:
    """Where the columns of a layout lie in the head of its row values."""

    def __init__(self, layout_id: int, columns: Sequence[LayoutColumn]) -> None:
        self.layout_id = layout_id
        self.columns = tuple(columns)
        self.bitmap_bytes = (len(self.columns) + 7) // 8
        self.letters = [_struct_letters(column) for column in self.columns]
        """The struct format of each fixed column; empty for a variable one."""
        self.variable = [position for position, letters in enumerate(self.letters) if not letters]
        self.struct = struct.Struct(f"<I{self.bitmap_bytes}s{''.join(self.letters)}{'I' * len(self.variable)}")
        self.head_bytes = self.struct.size
        self.offsets: list[int] = []
        """Where each fixed column begins in the head (of no meaning for a variable one)."""
        offset = LAYOUT_ID_BYTES + self.bitmap_bytes
        for letters in self.letters:
            self.offsets.append(offset)
            offset += struct.calcsize("<" + letters)
        self.ends_offset = offset
        """Where the end offsets begin in the head."""

    def is_fixed(self, position: int) -> bool:
        """Say whether the column at a position lies in the head."""
        return bool(self.letters[position])


def _struct_letters(column: LayoutColumn) -> str:
    arrow_type(column)  # refuses what is no column
    match column.kind:
        case Kind.BOOL:
            return "B"
        case Kind.INT:
            return {2: "h", 4: "i", 8: "q"}[column.width]
        case Kind.FLOAT:
            return {4: "f", 8: "d"}[column.width]
        case Kind.DECIMAL:
            return "" if column.is_unbounded else "q" if (column.precision or 0) <= 18 else "16s"
        case Kind.DATE:
            return "i"
        case Kind.TIME | Kind.TIMESTAMP:
            return "q"
        case Kind.INTERVAL:
            return "iiq"
        case Kind.UUID:
            return "16s"
        case _:
            return ""


# ---- Decoding -----------------------------------------------------------------------------------------------------------------------


def decode_batches(
    values: Sequence[bytes], shapes: Mapping[int, HeadShape], target: Sequence[LayoutColumn], defaults: Mapping[int, Datum]
) -> pa.RecordBatch:
    """Decode values of one or several layouts to the columns of `target`.  See `rowcodec.decode_batches`."""
    names = [field_name(column.column_id) for column in target]
    stored = pa.array(values, pa.large_binary())
    layout_ids = _layout_ids(stored)
    present = np.unique(layout_ids)
    for layout_id in present.tolist():
        if layout_id not in shapes:
            raise CorruptionError(f"a row of the unknown layout {layout_id}")
    if len(present) == 0:
        return batch_of([pa.array([], arrow_type(column)) for column in target], names, 0)
    if len(present) == 1:
        return batch_of(_decode_rows(stored, shapes[int(present[0])], target, defaults), names, len(stored))
    # Rows of each layout are decoded together, and put back in their places.
    groups = [np.flatnonzero(layout_ids == layout_id) for layout_id in present]
    parts = [
        batch_of(_decode_rows(stored.take(pa.array(rows)), shapes[int(layout_id)], target, defaults), names, len(rows))
        for layout_id, rows in zip(present, groups)
    ]
    if not target:
        return batch_of([], names, len(stored))
    return pa.concat_batches(parts).take(pa.array(np.argsort(np.concatenate(groups))))


def _layout_ids(stored: pa.Array) -> npt.NDArray[np.uint32]:
    bounds, data = parts_of(stored)
    starts = bounds[:-1]
    if len(starts) and int(np.diff(bounds).min()) < LAYOUT_ID_BYTES:
        raise CorruptionError("a row value of less than 4 bytes")
    ids = np.zeros(len(starts), np.uint32)
    for byte in range(LAYOUT_ID_BYTES):
        ids |= data[starts + byte].astype(np.uint32) << np.uint32(8 * byte)
    return ids


def _decode_rows(stored: pa.Array, shape: HeadShape, target: Sequence[LayoutColumn], defaults: Mapping[int, Datum]) -> list[pa.Array]:
    rows = len(stored)
    heads = _heads(stored, shape)
    positions = {column.column_id: position for position, column in enumerate(shape.columns)}
    wanted = {positions[column.column_id] for column in target if column.column_id in positions}
    tails = _Tails(stored, heads, shape) if shape.variable else None
    bits = heads[:, LAYOUT_ID_BYTES : LAYOUT_ID_BYTES + shape.bitmap_bytes]
    has_nulls = bool(bits.any())
    arrays: dict[int, pa.Array] = {}
    for position in sorted(wanted):
        valid = _validity(bits[:, position >> 3], position & 7) if has_nulls else None
        if shape.is_fixed(position):
            arrays[position] = _fixed_array(shape, position, heads, valid)
        else:
            assert tails is not None
            arrays[position] = tails.array(position, valid)
    out = []
    for column in target:
        found = positions.get(column.column_id)
        if found is None:
            out.append(repeated(column, defaults.get(column.column_id), rows))
        else:
            out.append(cast_array(arrays[found], shape.columns[found], column))
    return out


def _heads(stored: pa.Array, shape: HeadShape) -> Matrix:
    """Give the heads of all values as a matrix.  Raises CorruptionError on a value of a wrong length."""
    bounds, data = parts_of(stored)
    lengths = np.diff(bounds)
    if int(lengths.min()) < shape.head_bytes or (not shape.variable and int(lengths.max()) != shape.head_bytes):
        raise CorruptionError(f"a row value of layout {shape.layout_id} has not its {shape.head_bytes} bytes")
    if not shape.variable:
        return data[bounds[0] : bounds[-1]].reshape(len(stored), shape.head_bytes)
    sliced = pc.binary_slice(stored, 0, shape.head_bytes)
    bounds, data = parts_of(sliced)
    return data[bounds[0] : bounds[-1]].reshape(len(stored), shape.head_bytes)


def _validity(column_bits: npt.NDArray[np.uint8], bit: int) -> npt.NDArray[np.bool_] | None:
    nulls = column_bits & np.uint8(1 << bit)
    return nulls == 0 if nulls.any() else None


def _validity_buffer(valid: npt.NDArray[np.bool_] | None) -> pa.Buffer | None:
    return None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))


def _strided(heads: Matrix, offset: int, dtype: str) -> npt.NDArray[Any]:
    """Copy out one fixed column of all heads."""
    view: npt.NDArray[Any] = np.ndarray((len(heads),), np.dtype(dtype), heads, offset, (heads.strides[0],))
    return view.copy()


def _fixed_array(shape: HeadShape, position: int, heads: Matrix, valid: npt.NDArray[np.bool_] | None) -> pa.Array:
    column, offset = shape.columns[position], shape.offsets[position]
    match column.kind:
        case Kind.BOOL:
            data = np.packbits(heads[:, offset] != 0, bitorder="little")
        case Kind.DECIMAL if shape.letters[position] == "q":
            low = _strided(heads, offset, "<i8")
            data = np.empty((len(heads), 2), "<i8")
            data[:, 0] = low
            data[:, 1] = low >> 63
        case Kind.DECIMAL | Kind.INTERVAL | Kind.UUID:
            data = _strided(heads, offset, "V16")
        case _:
            data = _strided(heads, offset, "<" + {"h": "i2", "i": "i4", "q": "i8", "f": "f4", "d": "f8"}[shape.letters[position]])
    return pa.Array.from_buffers(arrow_type(column), len(heads), [_validity_buffer(valid), pa.py_buffer(data.reshape(-1).view(np.uint8))])


class _Tails:
    """The variable columns of values of one layout: their bytes, cut into value 1 head, value 1 column 1, …, value 2 head, …"""

    def __init__(self, stored: pa.Array, heads: Matrix, shape: HeadShape) -> None:
        self._shape = shape
        bounds, self._data = parts_of(stored)
        cuts = np.empty((len(heads), len(shape.variable) + 1), np.int64)
        cuts[:, 0] = shape.head_bytes
        for index in range(len(shape.variable)):
            cuts[:, index + 1] = _strided(heads, shape.ends_offset + _END_BYTES * index, "<u4")
            cuts[:, index + 1] += shape.head_bytes
        if not np.array_equal(cuts[:, -1], np.diff(bounds)) or bool((cuts[:, 1:] < cuts[:, :-1]).any()):
            raise CorruptionError(f"end offsets of a row value of layout {shape.layout_id} do not fit its length")
        cuts += bounds[:-1, None]
        self._cuts = np.concatenate([bounds[:1], cuts.reshape(-1)])

    def array(self, position: int, valid: npt.NDArray[np.bool_] | None) -> pa.Array:
        """Give one variable column.  Raises CorruptionError on text that is not UTF-8, ValueRangeError above 2 GiB."""
        count = len(self._shape.variable) + 1
        pieces = pa.Array.from_buffers(
            pa.large_binary(), len(self._cuts) - 1, [None, pa.py_buffer(self._cuts), pa.py_buffer(self._data)]
        ).take(pa.array(np.arange(self._shape.variable.index(position) + 1, len(self._cuts) - 1, count)))
        _, offsets, data = pieces.buffers()
        if data is not None and data.size >= 2**31:
            raise ValueRangeError(f"{data.size} bytes in one column of a record batch: decode fewer rows at once")
        if valid is not None:
            pieces = pa.Array.from_buffers(pa.large_binary(), len(valid), [_validity_buffer(valid), offsets, data])
        try:
            return pieces.cast(arrow_type(self._shape.columns[position]))
        except pa.ArrowInvalid as error:
            raise CorruptionError(f"a row value of layout {self._shape.layout_id}: {error}") from error


# ---- Encoding -----------------------------------------------------------------------------------------------------------------------


def encode_batch(shape: HeadShape, batch: pa.RecordBatch) -> list[bytes]:
    """Encode the rows of a batch.  See `RowCodec.encode_batch`."""
    rows = batch.num_rows
    if batch.num_columns != len(shape.columns):
        raise ValueRangeError(f"{batch.num_columns} arrays for a row of {len(shape.columns)} columns")
    heads = np.zeros((rows, shape.head_bytes), np.uint8)
    heads[:, :LAYOUT_ID_BYTES] = np.frombuffer(shape.layout_id.to_bytes(LAYOUT_ID_BYTES, "little"), np.uint8)
    tails: list[pa.Array] = []
    ends = np.zeros(rows, np.int64)
    for position, column in enumerate(shape.columns):
        array = checked(column, batch.column(position), position)
        if array.null_count:
            nulls = array.is_null().to_numpy(zero_copy_only=False)
            heads[:, LAYOUT_ID_BYTES + (position >> 3)] |= nulls.astype(np.uint8) << np.uint8(position & 7)
        if shape.is_fixed(position):
            data = _fixed_bytes(shape, position, array)
            heads[:, shape.offsets[position] : shape.offsets[position] + data.shape[1]] = data
        else:
            tail = array.cast(pa.large_binary()).fill_null(b"")
            ends = ends + np.diff(parts_of(tail)[0])
            end_offset = shape.ends_offset + _END_BYTES * len(tails)
            heads[:, end_offset : end_offset + _END_BYTES] = ends.astype("<u4").view(np.uint8).reshape(rows, _END_BYTES)
            tails.append(tail)
    if rows and int(ends.max()) >= 2**32:
        raise ValueRangeError("a row above 4 GiB")
    if not tails:
        return [row for (row,) in struct.iter_unpack(f"{shape.head_bytes}s", heads.tobytes())]
    return _joined(heads, tails)


def _joined(heads: Matrix, tails: list[pa.Array]) -> list[bytes]:
    bounds = np.arange(len(heads) + 1, dtype=np.int64) * heads.shape[1]
    head_array = pa.Array.from_buffers(pa.large_binary(), len(heads), [None, pa.py_buffer(bounds), pa.py_buffer(heads.reshape(-1))])
    whole = pc.binary_join_element_wise(head_array, *tails, pa.scalar(b"", pa.large_binary()))
    bounds, data = parts_of(whole)
    raw, cuts = data.tobytes(), bounds.tolist()
    return [raw[start:end] for start, end in itertools.pairwise(cuts)]


def checked(column: LayoutColumn, array: pa.Array, position: int) -> pa.Array:
    """Give a column's array after checking that every value is one `RowCodec.encode` takes; spellings become the stored ones."""
    where = f"column {position + 1}"
    if array.type != arrow_type(column):
        raise ValueRangeError(f"{where} is {array.type}, not {arrow_type(column)}")
    try:
        # In full where Arrow knows more than we check: digits of decimals, UTF-8.  (It refuses the time 24:00.)
        array.validate(full=column.kind in (Kind.DECIMAL, Kind.TEXT))
    except pa.ArrowInvalid as error:
        raise ValueRangeError(f"{where}: {error}") from error
    if column.kind is Kind.TIME and len(array) > array.null_count:
        least, most = pc.min_max(array.view(pa.int64())).values()
        if least.as_py() < 0 or most.as_py() > DAY_MICROSECONDS:
            raise ValueRangeError(f"{where} holds a time outside of a day: {least} … {most} µs")
    if column.kind is Kind.TEXT and has_nul(array):
        raise ValueRangeError(f"{where} holds text with a NUL character")
    if column.kind is Kind.INTERVAL or column.is_unbounded:
        return datums_to_arrow(column, array_to_datums(column.kind, array))
    return array


def _fixed_bytes(shape: HeadShape, position: int, array: pa.Array) -> Matrix:
    """Give the fixed form of a column's values, a row a value; zeros for NULLs."""
    column, rows = shape.columns[position], len(array)
    if column.kind is Kind.BOOL:
        flags: Matrix = array.fill_null(False).to_numpy(zero_copy_only=False).astype(np.uint8)
        return flags.reshape(rows, 1)
    stored_width = struct.calcsize("<" + shape.letters[position])
    arrow_width = 16 if column.kind is Kind.DECIMAL else stored_width
    buffer = array.buffers()[1]
    raw = np.frombuffer(buffer, np.uint8) if buffer is not None else np.zeros(0, np.uint8)
    matrix = raw[array.offset * arrow_width : (array.offset + rows) * arrow_width].reshape(rows, arrow_width)[:, :stored_width]
    if array.null_count:
        matrix = matrix * array.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8)[:, None]
    return matrix
