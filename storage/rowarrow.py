"""Datums and Arrow: the exact Arrow type of a stored column, and conversions between datums and Arrow arrays.

    kind        Arrow type
    BOOL        bool
    INT         int16, int32 or int64, by width
    FLOAT       float32 or float64, by width
    DECIMAL     decimal128(precision, scale); unbounded: string, holding the plain spelling (`1234.50`, `NaN`, `Infinity`)
    TEXT        string
    BYTES       binary
    DATE        date32
    TIME        time64[us]; 24:00 is stored like any other, though Arrow's own full validation refuses it
    TIMESTAMP   timestamp[us], or timestamp[us, UTC]
    INTERVAL    month_day_nano_interval
    UUID        fixed_size_binary[16]

Invariants:
- Conversions are exact, NULLs, NaN, infinities and dates beyond Python's calendar included; what a type cannot hold is a ValueRangeError.
- Rounding happens in one place only: a FLOAT of width 4 holds singles.

Not here: bytes of rows (`rowcodec`).
"""

import decimal
from collections.abc import Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from dsdb.storage.datum import DAY_MICROSECONDS, Datum, Kind
from dsdb.storage.errors import ValueRangeError

DECIMAL_PRECISION_MAX = 38
"""Digits of the widest decimal of fixed scale; above it a column is unbounded."""
DECIMAL_UNITS = [decimal.Decimal(f"1E-{scale}") for scale in range(DECIMAL_PRECISION_MAX + 1)]
"""1, 0.1, 0.01 …: the unit of each scale."""
EXACT = decimal.Context(prec=80, Emax=200, Emin=-200, traps=[decimal.InvalidOperation, decimal.Inexact])
"""Scales decimals of up to 38 digits, and refuses to round; its bounds keep a 1E+999999999 from becoming an integer."""
PLAIN_DIGITS_MAX = 131_072
PLAIN_SCALE_MAX = 16_383
"""Digits before and behind the point of an unbounded decimal: PostgreSQL's limits."""
INTERVAL_MICROSECONDS_MAX = (2**63 - 1) // 1000
"""The microseconds of an interval are stored as 64-bit nanoseconds: some 292 years (months and days come on top)."""


class LayoutColumn(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A stored column: its id, which is never reused, and all that decides its bytes and its Arrow type."""

    column_id: int
    kind: Kind
    width: int = 8
    """Bytes of an INT (2, 4, 8) or FLOAT (4, 8); of no meaning for others."""
    precision: int | None = None
    """Digits of a DECIMAL; None, or above 38, is unbounded."""
    scale: int = 0
    """Digits behind the point of a DECIMAL that has a precision: 0 … precision."""
    utc: bool = False
    """Whether a TIMESTAMP is a point in time (TIMESTAMPTZ)."""

    @property
    def is_unbounded(self) -> bool:
        """Say whether this is a DECIMAL without fixed scale, which is stored as text."""
        return self.kind is Kind.DECIMAL and (self.precision is None or self.precision > DECIMAL_PRECISION_MAX)


def field_name(column_id: int) -> str:
    """Give the name a column has in a record batch of storage."""
    return f"c{column_id}"


NARROW_PRECISION_MAX = 18
"""Digits of a decimal of 64 bits."""
_INTS = {2: pa.int16(), 4: pa.int32(), 8: pa.int64()}
_FLOATS = {4: pa.float32(), 8: pa.float64()}
_PLAIN_TYPES = {
    Kind.BOOL: pa.bool_(),
    Kind.TEXT: pa.string(),
    Kind.BYTES: pa.binary(),
    Kind.DATE: pa.date32(),
    Kind.TIME: pa.time64("us"),
    Kind.INTERVAL: pa.month_day_nano_interval(),
    Kind.UUID: pa.binary(16),
}


def arrow_type(column: LayoutColumn) -> pa.DataType:
    """Give the Arrow type of a column.  Raises ValueRangeError on a width or scale that does not exist."""
    match column.kind:
        case Kind.INT if column.width in _INTS:
            return _INTS[column.width]
        case Kind.FLOAT if column.width in _FLOATS:
            return _FLOATS[column.width]
        case Kind.DECIMAL:
            if column.precision is None or column.is_unbounded:
                return pa.string()
            if column.precision >= 1 and 0 <= column.scale <= column.precision:
                return pa.decimal128(column.precision, column.scale)
        case Kind.TIMESTAMP:
            return pa.timestamp("us", tz="UTC" if column.utc else None)
        case kind if kind in _PLAIN_TYPES:
            return _PLAIN_TYPES[kind]
    raise ValueRangeError(f"no such column: {column}")


def narrow_type(data_type: pa.DataType) -> pa.DataType:
    """Give the type of 64 bits for decimals that fit it, and any other type as it is."""
    if pa.types.is_decimal128(data_type) and data_type.precision <= NARROW_PRECISION_MAX:
        return pa.decimal64(data_type.precision, data_type.scale)
    return data_type


def as_narrow_type(array: pa.Array) -> pa.Array:
    """Give an array of the type that `narrow_type` gives."""
    wanted = narrow_type(array.type)
    return array if wanted == array.type else array.cast(wanted)


def plain_spelling(value: decimal.Decimal) -> str:
    """Spell a number of an unbounded column, without exponent.  Raises ValueError beyond PostgreSQL's limits."""
    if not value.is_finite():
        return "NaN" if value.is_nan() else "-Infinity" if value < 0 else "Infinity"
    _, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int) or len(digits) + exponent > PLAIN_DIGITS_MAX or exponent < -PLAIN_SCALE_MAX:
        raise ValueError("more digits than numeric has")
    return format(value if value else value.copy_abs(), "f")


def datums_to_arrow(column: LayoutColumn, values: Sequence[Datum]) -> pa.Array:
    """Make an array of a column.  Raises ValueRangeError on a value that the column cannot hold."""
    kind, to_type = column.kind, arrow_type(column)
    # Arrow would take 1.5 for an integer and bytes for a string.
    if not _PYTHON_TYPES[kind].issuperset(map(type, values)):
        raise ValueRangeError(f"a column of {to_type} holds {kind.name}s only: {sorted({type(value).__name__ for value in values})}")
    try:
        match kind:
            case Kind.DATE | Kind.TIME | Kind.TIMESTAMP:
                array = pa.array(values, pa.int32() if kind is Kind.DATE else pa.int64())
                if kind is Kind.TIME:
                    _check_times(values)
                return array.view(to_type)
            case Kind.INTERVAL:
                return pa.array([None if value is None else _to_month_day_nano(value) for value in values], to_type)
            case Kind.DECIMAL:
                return pa.array([_to_decimal(column, value) for value in values], to_type)
            case Kind.TEXT if any(value is not None and "\x00" in value for value in values):  # type: ignore[operator]
                raise ValueError("text with a NUL character")
            case Kind.FLOAT if column.width == 4:
                return _to_singles(values)
            case _:
                return pa.array(values, to_type, from_pandas=False)
    except (pa.ArrowException, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ValueRangeError(f"a column of {to_type} cannot hold one of its values: {error}") from error


_NULL = type(None)
_PYTHON_TYPES: Final[dict[Kind, frozenset[type]]] = {
    Kind.BOOL: frozenset({bool, _NULL}),
    Kind.FLOAT: frozenset({float, int, _NULL}),
    Kind.DECIMAL: frozenset({decimal.Decimal, _NULL}),
    Kind.TEXT: frozenset({str, _NULL}),
    Kind.BYTES: frozenset({bytes, _NULL}),
    Kind.INTERVAL: frozenset({tuple, _NULL}),
    Kind.UUID: frozenset({bytes, _NULL}),
    **dict.fromkeys((Kind.INT, Kind.DATE, Kind.TIME, Kind.TIMESTAMP), frozenset({int, _NULL})),
}


def _to_singles(values: Sequence[Datum]) -> pa.Array:
    doubles = pa.array(values, pa.float64(), from_pandas=False)
    singles = doubles.cast(pa.float32(), safe=False)
    if not pc.is_inf(singles).equals(pc.is_inf(doubles)):
        raise ValueError("too large for a single")
    return singles


def _check_times(values: Sequence[Any]) -> None:
    for value in values:
        if value is not None and not 0 <= value <= DAY_MICROSECONDS:
            raise ValueError(f"no time of day: {value} µs")


def _to_month_day_nano(value: Any) -> pa.MonthDayNano:
    months, days, microseconds = value
    return pa.MonthDayNano((months, days, microseconds * 1000))


def _to_decimal(column: LayoutColumn, value: Any) -> Any:
    if value is None:
        return None
    if column.is_unbounded:
        return plain_spelling(value)
    if not value.is_finite():
        raise ValueError(f"{value} in a DECIMAL of fixed scale")
    # Brought to the scale here: Arrow crashes on an exponent far outside of its own.
    return EXACT.quantize(value, DECIMAL_UNITS[column.scale])


def check_type(kind: Kind, array: pa.Array) -> None:
    """Raise ValueRangeError unless columns of the kind have the array's Arrow type."""
    found = array.type
    match kind:
        case Kind.INT:
            fits = found in _INTS.values()
        case Kind.FLOAT:
            fits = found in _FLOATS.values()
        case Kind.DECIMAL:
            fits = found == pa.string() or pa.types.is_decimal128(found)
        case Kind.TIMESTAMP:
            fits = found in (pa.timestamp("us"), pa.timestamp("us", tz="UTC"))
        case _:
            fits = found == _PLAIN_TYPES[kind]
    if not fits:
        raise ValueRangeError(f"an array of {found} for a column of kind {kind.name}")


def array_to_datums(kind: Kind, array: pa.Array) -> list[Datum]:
    """Give the values of an array of any Arrow type that columns of the kind have.  Raises ValueRangeError on what is no datum."""
    check_type(kind, array)
    match kind:
        case Kind.DATE:
            array = array.view(pa.int32())
        case Kind.TIME | Kind.TIMESTAMP:
            array = array.view(pa.int64())
        case Kind.INTERVAL:
            return [None if value is None else _from_month_day_nano(value) for value in array.to_pylist()]
        case Kind.DECIMAL if not pa.types.is_decimal(array.type):
            return _spelled_decimals(array)
        case _:
            pass
    values: list[Datum] = array.to_pylist()
    return values


def _from_month_day_nano(value: pa.MonthDayNano) -> Datum:
    months, days, nanoseconds = value
    microseconds, rest = divmod(nanoseconds, 1000)
    if rest:
        raise ValueRangeError(f"an interval of {nanoseconds} ns: the finest unit is the microsecond")
    return months, days, microseconds


def _spelled_decimals(array: pa.Array) -> list[Datum]:
    try:
        return [None if text is None else decimal.Decimal(text) for text in array.to_pylist()]
    except decimal.DecimalException as error:
        raise ValueRangeError(f"not all are numbers: {error}") from error


def arrow_to_datums(column: LayoutColumn, array: pa.Array) -> list[Datum]:
    """Give the values of an array of exactly the column's Arrow type.  Raises ValueRangeError on another type."""
    if array.type != arrow_type(column):
        raise ValueRangeError(f"an array of {array.type} for a column of {arrow_type(column)}")
    return array_to_datums(column.kind, array)


def rows_to_batch(columns: Sequence[LayoutColumn], names: Sequence[str], rows: Sequence[Sequence[Datum]]) -> pa.RecordBatch:
    """Make a record batch of rows of datums.  Raises ValueRangeError on a value that its column cannot hold."""
    by_column: Sequence[Sequence[Datum]] = list(zip(*rows)) if rows else [()] * len(columns)
    if len(by_column) != len(columns):
        raise ValueRangeError(f"rows of {len(by_column)} values for {len(columns)} columns")
    return batch_of([datums_to_arrow(column, values) for column, values in zip(columns, by_column)], names, len(rows))


def batch_of(arrays: Sequence[pa.Array], names: Sequence[str], rows: int) -> pa.RecordBatch:
    """Make a record batch of arrays; also one without columns keeps its number of rows."""
    if arrays:
        return pa.record_batch(list(arrays), names=list(names))
    empty = pa.record_batch([pa.nulls(rows)], names=[""])
    return empty.select([])


def cast_array(array: pa.Array, source: LayoutColumn, target: LayoutColumn) -> pa.Array:
    """Convert an array of one column to the Arrow type of another of the same kind (a column that was widened).

    Raises ValueRangeError if a value does not fit or the kinds differ.
    """
    to_type = arrow_type(target)
    if array.type == to_type and source.kind is target.kind:
        return array
    check_kinds(source, target)
    if source.kind in (Kind.INT, Kind.FLOAT):
        try:
            return array.cast(to_type)
        except pa.ArrowInvalid as error:
            raise ValueRangeError(f"column {target.column_id} does not fit {to_type}: {error}") from error
    return datums_to_arrow(target, array_to_datums(source.kind, array))


def parts_of(stored: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Give the bounds of all values of a large_binary array (one more than there are values), and the bytes they cut."""
    _, offsets, data = stored.buffers()
    bounds = np.frombuffer(offsets, np.int64)[stored.offset : stored.offset + len(stored) + 1]
    return bounds, np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)


def has_nul(texts: pa.Array) -> bool:
    """Say whether a text, of UTF-8 with valid offsets, has a NUL character: then, and only then, a byte of it is 0."""
    if not len(texts):
        return False
    width = {pa.string(): np.int32, pa.large_string(): np.int64}.get(texts.type)
    if width is not None:
        _, offsets, data = texts.buffers()
        bounds = np.frombuffer(offsets, width)
        used = np.frombuffer(data or b"", np.uint8)[bounds[texts.offset] : bounds[texts.offset + len(texts)]]
        # A fiftieth of the time of looking value by value.  What lies under a NULL may be anything.
        if not len(used) or used.min() != 0:
            return False
    return bool(pc.any(pc.match_substring(texts, "\0")).as_py())


def check_kinds(source: LayoutColumn, target: LayoutColumn) -> None:
    """Raise ValueRangeError if a stored column and the one asked for are not of one kind."""
    if source.kind is not target.kind:
        raise ValueRangeError(f"column {target.column_id} is {source.kind.name} in this row, not {target.kind.name}")


def repeated(column: LayoutColumn, value: Datum, rows: int) -> pa.Array:
    """Make an array that holds one value in every row."""
    return datums_to_arrow(column, [value]).take(np.zeros(rows, np.int64))
