"""Casts between types, on datums: which exist, in which context, and what each does to a value.

    implicit     ⊂ assignment      ⊂ explicit
    f(int) for a   INSERT, UPDATE     CAST, ::
    bigint arg

Invariants:
- `cast_function(s, t)` exists iff `cast_context(s, t)` is not None.
- NULL is never passed to a cast.

Not here: UNKNOWN literals, which the binder reads as text of the wanted type.
"""

import enum
import math
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from dsdb.sql.civil import check_date, check_timestamp
from dsdb.sql.errors import NumericOutOfRangeError
from dsdb.sql.text import EXACT, INTEGER_BOUNDS, fit_decimal, fit_string, format_text, parse_text, round_real
from dsdb.sql.types import TEXT, SqlType, TypeName
from dsdb.storage.datum import DAY_MICROSECONDS, MONTH_DAYS


class CastContext(enum.IntEnum):
    """Where a cast may happen by itself; each includes the ones above it."""

    IMPLICIT = 1
    ASSIGNMENT = 2
    EXPLICIT = 3


_NUMERIC_ORDER = (TypeName.SMALLINT, TypeName.INT, TypeName.BIGINT, TypeName.DECIMAL, TypeName.REAL, TypeName.DOUBLE)
_TEXTS = (TypeName.TEXT, TypeName.VARCHAR, TypeName.CHAR)
_OTHERS = {
    (TypeName.DATE, TypeName.TIMESTAMP): CastContext.IMPLICIT,
    (TypeName.DATE, TypeName.TIMESTAMPTZ): CastContext.IMPLICIT,
    (TypeName.TIMESTAMP, TypeName.TIMESTAMPTZ): CastContext.IMPLICIT,
    (TypeName.TIMESTAMP, TypeName.DATE): CastContext.ASSIGNMENT,
    (TypeName.TIMESTAMP, TypeName.TIME): CastContext.ASSIGNMENT,
    (TypeName.TIMESTAMPTZ, TypeName.DATE): CastContext.ASSIGNMENT,
    (TypeName.TIMESTAMPTZ, TypeName.TIME): CastContext.ASSIGNMENT,
    (TypeName.TIMESTAMPTZ, TypeName.TIMESTAMP): CastContext.ASSIGNMENT,
    (TypeName.TIME, TypeName.INTERVAL): CastContext.IMPLICIT,
    (TypeName.INTERVAL, TypeName.TIME): CastContext.ASSIGNMENT,
    (TypeName.BOOL, TypeName.INT): CastContext.EXPLICIT,
    (TypeName.INT, TypeName.BOOL): CastContext.EXPLICIT,
}


def cast_context(source: SqlType, target: SqlType) -> CastContext | None:
    """Give the weakest context in which a cast happens by itself, or None if there is none at all."""
    from_name, to_name = source.name, target.name
    if from_name is to_name:
        return CastContext.IMPLICIT
    if source.is_numeric and target.is_numeric:
        widens = _NUMERIC_ORDER.index(from_name) < _NUMERIC_ORDER.index(to_name)
        return CastContext.IMPLICIT if widens else CastContext.ASSIGNMENT
    if from_name in _TEXTS:
        return CastContext.IMPLICIT if to_name in _TEXTS else CastContext.EXPLICIT
    if to_name in _TEXTS:
        return CastContext.ASSIGNMENT
    return _OTHERS.get((from_name, to_name))


def cast_function(source: SqlType, target: SqlType, *, explicit: bool = True) -> Callable[[Any], Any] | None:
    """Give the function that casts a value, or None if a value of `source` is one of `target` as it is.

    The cast must exist: see `cast_context`.
    """
    if source == target:
        return None
    if source.is_text:
        return _from_text(source, target, explicit)
    if target.is_text:
        return lambda value: fit_string(text_of(value, source), target, explicit=explicit)
    if target.name is TypeName.DECIMAL:
        return _to_decimal(source, target)
    if target.is_integer:
        return _to_integer(source, target)
    if target.is_float:
        return _to_float(source, target)
    if source.name is target.name:
        return None
    return _TIME_CASTS[source.name, target.name]


def text_of(value: Any, source: SqlType) -> str:
    """Give what a cast to TEXT gives: the printed form, but true and false in full and CHAR without its padding."""
    if source.name is TypeName.BOOL:
        return "true" if value else "false"
    if source.name is TypeName.CHAR:
        return str(value).rstrip(" ")
    return format_text(value, source)


def _from_text(source: SqlType, target: SqlType, explicit: bool) -> Callable[[Any], Any] | None:
    if not target.is_text:
        return lambda value: parse_text(value, target)
    if source.name is TypeName.CHAR and target.name is not TypeName.CHAR:
        return lambda value: fit_string(value.rstrip(" "), target, explicit=explicit)
    if target.length is None:
        return None
    return lambda value: fit_string(value, target, explicit=explicit)


def _to_decimal(source: SqlType, target: SqlType) -> Callable[[Any], Any]:
    if source.name is TypeName.DECIMAL:
        return (lambda value: fit_decimal(value, target)) if target.precision is not None else (lambda value: value)
    if source.is_integer:
        return lambda value: fit_decimal(Decimal(value), target)
    digits = 6 if source.name is TypeName.REAL else 15

    def from_float(value: float) -> Decimal:
        if math.isinf(value):
            raise NumericOutOfRangeError("cannot convert infinity to numeric")
        return fit_decimal(Decimal(f"{value:.{digits}g}"), target)

    return from_float


def _to_integer(source: SqlType, target: SqlType) -> Callable[[Any], Any] | None:
    bound = INTEGER_BOUNDS[target.name]

    def check(value: int) -> int:
        if not -bound <= value < bound:
            raise NumericOutOfRangeError(f"{SqlType(target.name)} out of range")
        return value

    def from_float(value: float) -> int:
        if not math.isfinite(value):
            raise NumericOutOfRangeError(f"{SqlType(target.name)} out of range")
        return check(round(value))

    def from_decimal(value: Decimal) -> int:
        if value.is_nan():
            raise NumericOutOfRangeError(f"cannot convert NaN to {SqlType(target.name)}")
        return check(int(value.to_integral_value(ROUND_HALF_UP, EXACT)))

    if source.is_float:
        return from_float
    if source.name is TypeName.DECIMAL:
        return from_decimal
    if source.name is TypeName.BOOL:
        return int
    return check if INTEGER_BOUNDS[source.name] > bound else None


def _to_float(source: SqlType, target: SqlType) -> Callable[[Any], Any] | None:
    if source.name is TypeName.REAL:
        return None

    def to_double(value: Any) -> float:
        try:
            result = float(value)
        except OverflowError:
            raise NumericOutOfRangeError("value out of range: overflow") from None
        if math.isinf(result) and not (isinstance(value, float) and math.isinf(value)):
            raise NumericOutOfRangeError("value out of range: overflow")
        return result

    if target.name is TypeName.REAL:
        return lambda value: round_real(to_double(value))
    return to_double


def _interval_to_time(value: tuple[int, int, int]) -> int:
    return value[2] % DAY_MICROSECONDS


def _day_of(value: int) -> int:
    return check_date(value // DAY_MICROSECONDS)


def _time_of(value: int) -> int:
    return value % DAY_MICROSECONDS


def _midnight(value: int) -> int:
    return check_timestamp(value * DAY_MICROSECONDS)


_TIME_CASTS: dict[tuple[TypeName, TypeName], Callable[[Any], Any] | None] = {
    (TypeName.DATE, TypeName.TIMESTAMP): _midnight,
    (TypeName.DATE, TypeName.TIMESTAMPTZ): _midnight,
    (TypeName.TIMESTAMP, TypeName.TIMESTAMPTZ): None,
    (TypeName.TIMESTAMPTZ, TypeName.TIMESTAMP): None,
    (TypeName.TIMESTAMP, TypeName.DATE): _day_of,
    (TypeName.TIMESTAMPTZ, TypeName.DATE): _day_of,
    (TypeName.TIMESTAMP, TypeName.TIME): _time_of,
    (TypeName.TIMESTAMPTZ, TypeName.TIME): _time_of,
    (TypeName.TIME, TypeName.INTERVAL): lambda value: (0, 0, value),
    (TypeName.INTERVAL, TypeName.TIME): _interval_to_time,
    (TypeName.INT, TypeName.BOOL): bool,
}


def interval_span(value: tuple[int, int, int]) -> int:
    """Give an interval's length in microseconds, by which intervals compare."""
    return (value[0] * MONTH_DAYS + value[1]) * DAY_MICROSECONDS + value[2]


def to_text(value: Any, source: SqlType) -> str:
    """Cast a value to TEXT."""
    cast = cast_function(source, TEXT)
    return str(cast(value)) if cast is not None else str(value)
