"""Arrow data of any kind as SQL's columns: which type is taken as which, and batches of exactly the Arrow types of those.

    Arrow                                              SQL
    bool                                               BOOL
    int8 int16 uint8 │ int32 uint16 │ int64 uint32     SMALLINT │ INT │ BIGINT
    uint64                                             DECIMAL(20,0)
    halffloat float │ double                           REAL │ DOUBLE PRECISION
    decimal32 decimal64 decimal128 decimal256 (p, s)   DECIMAL(p,s), up to 38 digits
    string large_string string_view, arrow.json        TEXT
    binary large_binary binary_view, fixed size        BYTEA; of 16 bytes, as `arrow.uuid`: UUID
    date32 date64 │ time32 time64                      DATE │ TIME
    timestamp, with a zone                             TIMESTAMP, TIMESTAMPTZ
    duration, month_day_nano_interval                  INTERVAL
    dictionary                                         what its values are
    null                                               UNKNOWN: what its context wants

Invariants:
- No value changes on its way in: what a SQL type cannot hold (nanoseconds, NUL characters) is refused, with the name of its column.
- Names of columns are kept as they are; two of one name are refused.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dsdb.sql.errors import DuplicateColumnError, FeatureNotSupportedError, InvalidDataError
from dsdb.sql.given_tables import Columns
from dsdb.sql.types import (
    BIGINT,
    BOOL,
    BYTEA,
    DATE,
    DOUBLE,
    INT,
    INTERVAL,
    REAL,
    SMALLINT,
    TEXT,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    UNKNOWN,
    UUID,
    SqlType,
    TypeName,
)
from dsdb.storage.datum import DAY_MICROSECONDS
from dsdb.storage.rowarrow import has_nul

COLUMNS_MAX = 1_600
"""As many as a table has."""
DECIMAL_DIGITS_MAX = 38

_PLAIN: tuple[tuple[Callable[[pa.DataType], bool], SqlType], ...] = (
    (pa.types.is_boolean, BOOL),
    (lambda found: found in (pa.int8(), pa.int16(), pa.uint8()), SMALLINT),
    (lambda found: found in (pa.int32(), pa.uint16()), INT),
    (lambda found: found in (pa.int64(), pa.uint32()), BIGINT),
    (pa.types.is_uint64, SqlType(TypeName.DECIMAL, 20, 0)),
    (lambda found: found in (pa.float16(), pa.float32()), REAL),
    (pa.types.is_float64, DOUBLE),
    (lambda found: pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found), TEXT),
    (lambda found: found == pa.binary(16), UUID),
    (lambda found: pa.types.is_binary(found) or pa.types.is_large_binary(found) or pa.types.is_binary_view(found), BYTEA),
    (pa.types.is_fixed_size_binary, BYTEA),
    (pa.types.is_date, DATE),
    (pa.types.is_time, TIME),
    (pa.types.is_duration, INTERVAL),
    (pa.types.is_interval, INTERVAL),
    (pa.types.is_null, UNKNOWN),
)


def type_of_arrow(found: pa.DataType) -> SqlType | None:
    """Give the SQL type that an Arrow type is taken as, None if there is none."""
    if pa.types.is_dictionary(found):
        return type_of_arrow(found.value_type)
    if isinstance(found, pa.BaseExtensionType):
        return type_of_arrow(found.storage_type) if found.extension_name in ("arrow.uuid", "arrow.json") else None
    if pa.types.is_decimal(found):
        fits = 0 <= found.scale <= found.precision <= DECIMAL_DIGITS_MAX
        return SqlType(TypeName.DECIMAL, found.precision, found.scale) if fits else None
    if pa.types.is_timestamp(found):
        return TIMESTAMP if found.tz is None else TIMESTAMPTZ
    return next((sql_type for is_it, sql_type in _PLAIN if is_it(found)), None)


def columns_of(schema: pa.Schema, *, what: str = "the table") -> Columns:
    """Give the columns of Arrow data.  what: for messages.

    Raises FeatureNotSupportedError, which names the column; DuplicateColumnError.
    """
    columns = []
    seen: set[str] = set()
    if not 1 <= len(schema) <= COLUMNS_MAX:
        raise FeatureNotSupportedError(f"{what} has {len(schema)} columns: 1 to {COLUMNS_MAX} are possible")
    for field in schema:
        sql_type = type_of_arrow(field.type)
        if sql_type is None:
            raise FeatureNotSupportedError(
                f'column "{field.name}" of {what} has the Arrow type {field.type}, which has no SQL type', hint=_hint(field.type)
            )
        if not field.name or "\0" in field.name:
            raise FeatureNotSupportedError(f"a column of {what} has no name, or one with a NUL character")
        if field.name in seen:
            raise DuplicateColumnError(f'{what} has more than one column "{field.name}"', hint="Rename one of them.")
        seen.add(field.name)
        columns.append((field.name, sql_type))
    return tuple(columns)


def _hint(found: pa.DataType) -> str:
    if pa.types.is_nested(found):
        return "Unnest or flatten it, or turn it into JSON text, or leave it out."
    if pa.types.is_decimal(found):
        return f"At most {DECIMAL_DIGITS_MAX} digits, and none before the point that the scale leaves out: cast it."
    return "Cast it to a type that has one, or leave it out."


def taken(batch: pa.RecordBatch, columns: Columns, schema: pa.Schema, *, first_row: int, what: str = "the table") -> pa.RecordBatch:
    """Give a batch with the Arrow types that belong to its columns.  schema: of these; first_row: its number, from 1, for messages.

    Raises InvalidDataError, which names row and column.
    """
    arrays = []
    for (name, sql_type), array, field in zip(columns, batch.columns, schema):
        try:
            arrays.append(_converted(array, wanted=field.type, sql_type=sql_type))
        except (pa.ArrowException, ValueError) as error:
            row = _first_bad(array, partial(_converted, wanted=field.type, sql_type=sql_type))
            raise InvalidDataError(
                f'row {first_row + row}, column "{name}" of {what}: {_said(error)}', detail=f"The value cannot be one of {sql_type}."
            ) from None
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _converted(array: pa.Array, *, wanted: pa.DataType, sql_type: SqlType) -> pa.Array:
    return checked(_plain(array, wanted), sql_type)


def _said(error: Exception) -> str:
    return str(error).splitlines()[0][:200]


def _plain(array: pa.Array, wanted: pa.DataType) -> pa.Array:
    found = array.type
    if isinstance(found, pa.BaseExtensionType):
        return _plain(array.storage, wanted)
    if pa.types.is_dictionary(found):
        return _plain(array.dictionary_decode(), wanted)
    if found == wanted:
        return array
    if pa.types.is_duration(found):
        return _intervals(array)
    if pa.types.is_float16(found):
        array = array.cast(pa.float32())
    return array.cast(wanted)


def _intervals(array: pa.Array) -> pa.Array:
    microseconds = array.cast(pa.duration("us")).cast(pa.int64()).to_pylist()
    values: list[pa.MonthDayNano | None] = []
    for value in microseconds:
        if value is None:
            values.append(None)
            continue
        # Towards zero: −1 hour is no day and −1 hour.
        days = -(-value // DAY_MICROSECONDS) if value < 0 else value // DAY_MICROSECONDS
        values.append(pa.MonthDayNano((0, days, (value - days * DAY_MICROSECONDS) * 1000)))
    return pa.array(values, pa.month_day_nano_interval())


def checked(array: pa.Array, sql_type: SqlType) -> pa.Array:
    """Give the array, of the Arrow type that belongs to a SQL type, if the SQL type holds all its values.  Raises ValueError."""
    if sql_type.is_text or sql_type.name is TypeName.UNKNOWN:
        if has_nul(array):
            raise ValueError("text with a NUL character")
    elif sql_type.name is TypeName.TIME and len(array) > array.null_count:
        least, most = (value.as_py() for value in pc.min_max(array.view(pa.int64())).values())
        if least < 0 or most > DAY_MICROSECONDS:
            raise ValueError("no time of day")
    elif sql_type.name is TypeName.INTERVAL and any(value is not None and value.nanoseconds % 1000 for value in array.to_pylist()):
        raise ValueError("an interval with nanoseconds")
    return array


def _first_bad(array: pa.Array, check: Callable[[pa.Array], Any]) -> int:
    """Give the place of the first value that `check` refuses, found by halves."""
    begin, end = 0, len(array)
    while end - begin > 1:
        middle = (begin + end) // 2
        try:
            check(array.slice(begin, middle - begin))
        except (pa.ArrowException, ValueError):
            end = middle
        else:
            begin = middle
    return begin
