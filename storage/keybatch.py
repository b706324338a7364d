"""Many keys at once: Arrow columns to key bytes, and back, vectorised for the kinds of fixed width.

Encoding: columns of fixed width without NULLs that stand side by side become one matrix of bytes, a row a key; every other column becomes
a list of bytes; the parts of a row are joined last.  Decoding: a cursor a key walks over the columns, all cursors at once.

Invariants:
- The same bytes as `KeyCodec.encode` gives row by row, the same values as `decode`, the same refusals.

Not here: the form of a value (`keypart`) and of a tuple (`keycodec`).
"""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dsdb.storage import keypart
from dsdb.storage.datum import Kind
from dsdb.storage.errors import KeyFormatError, ValueRangeError
from dsdb.storage.rowarrow import LayoutColumn, array_to_datums, arrow_type, check_type, parts_of

Matrix = npt.NDArray[np.uint8]


class ColumnShape(NamedTuple):
    """What a column of a key looks like."""

    kind: Kind
    descending: bool
    present: bytes
    null: bytes


def encode_batch(shapes: Sequence[ColumnShape], columns: Sequence[pa.Array], prefix: bytes) -> list[bytes]:
    """Encode one key a row of the columns.  Raises ValueRangeError."""
    rows = len(columns[0]) if columns else 0
    if any(len(column) != rows for column in columns):
        raise ValueRangeError("columns of a key batch differ in length")
    parts: list[list[bytes]] = []
    fixed: list[Matrix] = [_repeated(prefix, rows)]
    for position, (shape, column) in enumerate(zip(shapes, columns)):
        check_type(shape.kind, column)
        matrix = _fixed_bytes(shape, column, position)
        if matrix is not None and column.null_count == 0:
            fixed += [_repeated(shape.present, rows), matrix]
            continue
        if fixed:
            parts.append(_rows_of(fixed))
            fixed = []
        parts.append(_listed(shape, column, position) if matrix is None else _with_nulls(shape, column, matrix))
    if fixed:
        parts.append(_rows_of(fixed))
    return parts[0] if len(parts) == 1 else list(map(b"".join, zip(*parts)))


def _repeated(part: bytes, rows: int) -> Matrix:
    return np.broadcast_to(np.frombuffer(part, np.uint8), (rows, len(part)))


def _rows_of(matrices: list[Matrix]) -> list[bytes]:
    """Give the rows of matrices that stand side by side."""
    joined = np.concatenate(matrices, axis=1)
    if joined.shape[1] == 0:
        return [b""] * len(joined)
    return [row for (row,) in struct.iter_unpack(f"{joined.shape[1]}s", joined.tobytes())]


def _with_nulls(shape: ColumnShape, column: pa.Array, matrix: Matrix) -> list[bytes]:
    rows = _rows_of([_repeated(shape.present, len(matrix)), matrix])
    for row in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)):
        rows[row] = shape.null
    return rows


def _listed(shape: ColumnShape, column: pa.Array, position: int) -> list[bytes]:
    """Encode a column value by value."""
    encode = keypart.ENCODERS[shape.kind]
    rows = []
    for value in array_to_datums(shape.kind, column):
        if value is None:
            rows.append(shape.null)
            continue
        try:
            body = encode(value)
        except keypart.REFUSALS as error:
            raise ValueRangeError(f"key column {position + 1} cannot hold {value!r} as {shape.kind.name}") from error
        rows.append(shape.present + (body.translate(keypart.COMPLEMENT) if shape.descending else body))
    return rows


def _fixed_bytes(shape: ColumnShape, column: pa.Array, position: int) -> Matrix | None:
    """Give the bytes of a column's values, a row a value, whatever stands for NULLs; None for a kind of variable width."""
    unsigned: npt.NDArray[Any]
    if shape.kind is Kind.FLOAT:
        unsigned = _float_bits(column)
    elif shape.kind in keypart.INTEGER_BOUNDS:
        unsigned = _biased(shape.kind, column, position)
    else:
        return None
    if shape.descending:
        unsigned = ~unsigned
    width = unsigned.dtype.itemsize
    return unsigned.astype(unsigned.dtype.newbyteorder(">")).view(np.uint8).reshape(len(column), width)


def _float_bits(column: pa.Array) -> npt.NDArray[np.uint64]:
    numbers = column.cast(pa.float64()).fill_null(0.0).to_numpy() + 0.0
    bits = numbers.view(np.uint64)
    sign = np.uint64(1 << 63)
    ordered = np.where(bits & sign, ~bits, bits | sign)
    return np.where(np.isnan(numbers), np.uint64(keypart.float_bits(float("nan"))), ordered)


def _biased(kind: Kind, column: pa.Array, position: int) -> npt.NDArray[Any]:
    """Give the values of an integer kind less the kind's least value, unsigned."""
    width, low, high = keypart.INTEGER_BOUNDS[kind]
    signed = np.dtype(f"i{width}")
    if kind is Kind.BOOL:
        flags: Matrix = column.fill_null(False).to_numpy(zero_copy_only=False).astype(np.uint8)
        return flags
    integers = column if pa.types.is_integer(column.type) else column.view(pa.from_numpy_dtype(signed))
    numbers: npt.NDArray[Any] = integers.fill_null(0).to_numpy().astype(signed)
    if kind is Kind.TIME and len(numbers) and not (numbers.min() >= low and numbers.max() <= high):
        raise ValueRangeError(f"key column {position + 1} cannot hold a TIME outside of {low} … {high}")
    # Subtracting the least value of a signed integer flips its first bit.
    unsigned: npt.NDArray[Any] = numbers.view(f"u{width}")
    return unsigned ^ unsigned.dtype.type(1 << (8 * width - 1)) if low < 0 else unsigned


# ---- Decoding -----------------------------------------------------------------------------------------------------------------------

DECODED_AT_ONCE = frozenset({*keypart.INTEGER_BOUNDS, Kind.FLOAT, Kind.TEXT, Kind.UUID})
"""The kinds of which `decode_batch` knows the end without reading value by value."""


def decode_batch(shapes: Sequence[ColumnShape], keys: Sequence[bytes], offset: int, columns: Sequence[LayoutColumn]) -> list[pa.Array]:
    """Decode keys whose columns, all of kinds in `DECODED_AT_ONCE`, begin at `offset` and end with the key.  Raises KeyFormatError."""
    bounds, data = parts_of(pa.array(keys, pa.large_binary()))
    cursors = _Cursors(data, bounds[:-1] + offset, bounds[1:])
    try:
        arrays = [cursors.read(shape, arrow_type(column)) for shape, column in zip(shapes, columns)]
    except pa.ArrowInvalid as error:
        raise KeyFormatError(f"a key's value is none of its column: {error}") from error
    if not np.array_equal(cursors.at, cursors.limits):
        raise KeyFormatError("bytes too many in a key")
    return arrays


class _Cursors:
    """One position in each of many keys."""

    def __init__(self, data: Matrix, at: npt.NDArray[np.int64], limits: npt.NDArray[np.int64]) -> None:
        self._data = data
        self.at = at
        self.limits = limits

    def read(self, shape: ColumnShape, to_type: pa.DataType) -> pa.Array:
        """Read a column from all keys and step behind it."""
        self._require(self.at + 1)
        tags = self._data[self.at]
        valid = tags == shape.present[0]
        if not (valid | (tags == shape.null[0])).all():
            raise KeyFormatError("no column where one should be in a key")
        self.at = self.at + 1
        if shape.kind is Kind.TEXT:
            return self._read_text(shape, valid).cast(to_type)
        width = 16 if shape.kind is Kind.UUID else 8 if shape.kind is Kind.FLOAT else keypart.INTEGER_BOUNDS[shape.kind][0]
        self._require(self.at + width * valid)
        raw = np.zeros((len(valid), width), np.uint8)
        raw[valid] = self._data[self.at[valid, None] + np.arange(width)]
        if shape.descending:
            raw[valid] = ~raw[valid]
        self.at = self.at + width * valid
        return _typed(shape.kind, raw, valid, to_type)

    def _require(self, ends: npt.NDArray[np.int64]) -> None:
        if (ends > self.limits).any():
            raise KeyFormatError("a key ends within a column")

    def _read_text(self, shape: ColumnShape, valid: npt.NDArray[np.bool_]) -> pa.Array:
        data = ~self._data if shape.descending else self._data
        closes = np.append(np.flatnonzero(data == 0), len(data))
        ends = np.where(valid, closes[np.searchsorted(closes, self.at)], self.at)
        self._require(ends + valid)
        # Keys lie one behind the other: start and end of each text, in turn, cut the bytes into texts and what is between them.
        cuts = np.stack([self.at, ends], axis=1).reshape(-1)
        pieces = pa.Array.from_buffers(pa.large_binary(), max(len(cuts) - 1, 0), [None, pa.py_buffer(cuts), pa.py_buffer(data)])
        self.at = ends + valid
        return pieces.take(pa.array(np.arange(0, len(cuts), 2), mask=~valid))


def _typed(kind: Kind, raw: Matrix, valid: npt.NDArray[np.bool_], to_type: pa.DataType) -> pa.Array:
    """Give the array of a column's ascending bytes, a row a value."""
    rows, width = raw.shape
    if kind is Kind.UUID:
        values = pa.Array.from_buffers(to_type, rows, [None, pa.py_buffer(raw.reshape(-1))])
        return values.take(pa.array(np.arange(rows), mask=~valid))
    unsigned = raw.view(f">u{width}").reshape(-1).astype(f"u{width}")
    if kind is Kind.FLOAT:
        return pa.array(_floats(unsigned, valid), mask=~valid, from_pandas=False).cast(to_type)
    _, low, high = keypart.INTEGER_BOUNDS[kind]
    if low == 0 and (unsigned > np.uint64(high)).any():
        raise KeyFormatError(f"a key holds what is no {kind.name}")
    if kind is Kind.BOOL:
        return pa.array(unsigned == 1, mask=~valid)
    signed = (unsigned ^ unsigned.dtype.type(1 << (8 * width - 1)) if low < 0 else unsigned).view(f"i{width}")
    numbers = pa.array(np.where(valid, signed, 0), mask=~valid)
    return numbers.cast(to_type) if kind is Kind.INT else numbers.view(to_type)


def _floats(unsigned: npt.NDArray[np.uint64], valid: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    sign = np.uint64(1 << 63)
    numbers: npt.NDArray[np.float64] = np.where(unsigned & sign, unsigned ^ sign, ~unsigned).view(np.float64)
    strange = np.isnan(numbers) & (unsigned != np.uint64(keypart.float_bits(float("nan"))))
    if (valid & (strange | (unsigned == ~sign))).any():
        raise KeyFormatError("a key holds a float that is not canonical")
    return numbers
