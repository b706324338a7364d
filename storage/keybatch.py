"""Many keys at once: Arrow columns to key bytes, vectorised for the kinds of fixed width.

Columns of fixed width without NULLs that stand side by side become one matrix of bytes, a row a key; every other column becomes a list of
bytes; the parts of a row are joined last.

Invariants:
- The same bytes as `KeyCodec.encode` gives row by row, the same refusals.

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
from dsdb.storage.errors import ValueRangeError
from dsdb.storage.rowarrow import array_to_datums, check_type

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
