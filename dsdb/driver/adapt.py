"""Python's values as parameters.

    bool BOOL │ int INT, BIGINT or NUMERIC by its size, as a literal │ float DOUBLE │ Decimal NUMERIC │ str UNKNOWN: its context decides
    bytes BYTEA │ date DATE │ time TIME │ naive datetime TIMESTAMP │ aware datetime TIMESTAMPTZ │ timedelta INTERVAL │ uuid.UUID UUID
    None UNKNOWN │ tables (`dsdb.driver.tables`) go by themselves, behind the statement

Subclasses count as their base; NumPy's scalars as the Python value that they hold.
"""

import datetime
import decimal
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from dsdb.driver.errors import DataError, ProgrammingError
from dsdb.driver.tables import is_table
from dsdb.sql.types import TypeName
from dsdb.storage.datum import DAY_MICROSECONDS, INT64_MAX, INT64_MIN

Dumper: TypeAlias = Callable[[Any], tuple[int, Any]]

_BOOL, _INT, _BIGINT, _DOUBLE, _NUMERIC = map(int, (TypeName.BOOL, TypeName.INT, TypeName.BIGINT, TypeName.DOUBLE, TypeName.DECIMAL))
_UNKNOWN, _BYTEA, _DATE, _TIME = map(int, (TypeName.UNKNOWN, TypeName.BYTEA, TypeName.DATE, TypeName.TIME))
_TIMESTAMP, _TIMESTAMPTZ = map(int, (TypeName.TIMESTAMP, TypeName.TIMESTAMPTZ))
_INTERVAL, _UUID = map(int, (TypeName.INTERVAL, TypeName.UUID))

_INT32_MIN, _INT32_MAX = -(2**31), 2**31 - 1
_EPOCH_ORDINAL = datetime.date(1970, 1, 1).toordinal()
_EPOCH = datetime.datetime(1970, 1, 1)
_EPOCH_UTC = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MICROSECOND = datetime.timedelta(microseconds=1)


class TableParameterError(ProgrammingError):
    """A parameter is a table, where only values can be."""


def dump_parameters(parameters: Sequence[Any]) -> tuple[bytes, list[Any]]:
    """Give the types and the wire values of parameters.  Raises DataError, ProgrammingError, TableParameterError."""
    if not isinstance(parameters, list | tuple):
        raise ProgrammingError(
            f"parameters are given as {type(parameters).__name__}", hint="Give a list or tuple, one value for each `?` or `$1`."
        )
    types = bytearray()
    values = []
    for value in parameters:
        dumper = _DUMPERS.get(type(value))
        number, wire_value = dumper(value) if dumper is not None else _dump_other(value)
        types.append(number)
        values.append(wire_value)
    return bytes(types), values


def _dump_int(value: int) -> tuple[int, Any]:
    if _INT32_MIN <= value <= _INT32_MAX:
        return _INT, value
    if INT64_MIN <= value <= INT64_MAX:
        return _BIGINT, value
    return _NUMERIC, str(decimal.Decimal(value))


def _dump_text(value: str) -> tuple[int, Any]:
    if "\0" in value:
        raise DataError("a text cannot hold NUL characters", sqlstate="22021", hint="Use BYTEA and bytes for binary data.")
    return _UNKNOWN, value


def _dump_decimal(value: decimal.Decimal) -> tuple[int, Any]:
    if value.is_infinite() or value.is_snan():
        raise DataError(f"the decimal {value} has no NUMERIC", sqlstate="22003")
    return _NUMERIC, str(value)


def _dump_time(value: datetime.time) -> tuple[int, Any]:
    if value.tzinfo is not None:
        raise DataError(f"a time with a time zone ({value}) has no type in dsdb", hint="Give a time without a time zone, or a datetime.")
    return _TIME, ((value.hour * 60 + value.minute) * 60 + value.second) * 1_000_000 + value.microsecond


def _dump_datetime(value: datetime.datetime) -> tuple[int, Any]:
    if value.tzinfo is None:
        return _TIMESTAMP, (value - _EPOCH) // _MICROSECOND
    return _TIMESTAMPTZ, (value - _EPOCH_UTC) // _MICROSECOND


def _dump_timedelta(value: datetime.timedelta) -> tuple[int, Any]:
    days, microseconds = value.days, value.seconds * 1_000_000 + value.microseconds
    # Python's −1 hour is −1 day + 23 hours; SQL prints what it is given.
    if days < 0 and microseconds:
        days, microseconds = days + 1, microseconds - DAY_MICROSECONDS
    return _INTERVAL, (0, days, microseconds)


_DUMPERS: dict[type, Dumper] = {
    type(None): lambda value: (_UNKNOWN, None),
    bool: lambda value: (_BOOL, value),
    int: _dump_int,
    float: lambda value: (_DOUBLE, value),
    str: _dump_text,
    bytes: lambda value: (_BYTEA, value),
    bytearray: lambda value: (_BYTEA, bytes(value)),
    memoryview: lambda value: (_BYTEA, bytes(value)),
    decimal.Decimal: _dump_decimal,
    datetime.datetime: _dump_datetime,
    datetime.date: lambda value: (_DATE, value.toordinal() - _EPOCH_ORDINAL),
    datetime.time: _dump_time,
    datetime.timedelta: _dump_timedelta,
    uuid.UUID: lambda value: (_UUID, value.bytes),
}

_BASES: tuple[tuple[type, Callable[[Any], Any]], ...] = (
    (int, int),
    (float, float),
    (str, str.__str__),
    (bytes, bytes),
    (decimal.Decimal, decimal.Decimal),
    # Before date, of which it is a subclass; copied, for the sub-class may compute otherwise (pandas).
    (
        datetime.datetime,
        lambda value: datetime.datetime(
            value.year, value.month, value.day, value.hour, value.minute, value.second, value.microsecond, value.tzinfo, fold=value.fold
        ),
    ),
    (datetime.date, lambda value: datetime.date(value.year, value.month, value.day)),
    (datetime.time, lambda value: value),
    (datetime.timedelta, lambda value: datetime.timedelta(value.days, value.seconds, value.microseconds)),
    (uuid.UUID, lambda value: value),
)


def _dump_other(value: Any) -> tuple[int, Any]:
    for base, to_base in _BASES:
        if isinstance(value, base):
            # pandas' NaT is a datetime unequal to itself.
            if value != value and base is datetime.datetime:
                return _UNKNOWN, None
            return _DUMPERS[base](to_base(value))
    if type(value).__module__ == "numpy" and hasattr(value, "item"):
        plain = value.item()
        if type(plain) in _DUMPERS:
            return _DUMPERS[type(plain)](plain)
    if is_table(value):
        raise TableParameterError(
            f"a table ({type(value).__module__}.{type(value).__qualname__}) cannot be a parameter here", hint="Use execute or adbc_ingest."
        )
    raise ProgrammingError(
        f"a value of type {type(value).__module__}.{type(value).__qualname__} cannot be a parameter",
        hint="Give None, bool, int, float, Decimal, str, bytes, date, time, datetime, timedelta, UUID, or a table for FROM.",
    )
