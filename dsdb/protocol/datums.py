"""How values travel: by their type, in msgpack's own forms, so that the usual ones cost nothing.

    kind                                   on the wire
    BOOL INT FLOAT TEXT BYTES UUID         as they are
    DATE TIME TIMESTAMP                    int, the datum itself
    DECIMAL                                text: exact, with its spelling
    INTERVAL                               array of months, days, microseconds
    any                                    nil is NULL

The types stand beside the values (a result's columns, a parameter's byte), so no value carries its own.  Encoding needs no code: the
encoder writes a Decimal as text and a tuple as an array.
"""

import decimal
import functools
from collections.abc import Callable, Sequence
from typing import Any

from dsdb.protocol.errors import ProtocolError
from dsdb.protocol.messages import Column
from dsdb.sql.types import SqlType, TypeName
from dsdb.storage.datum import DAY_MICROSECONDS, INT64_MAX, INT64_MIN, Datum, Kind

DECIMAL_DIGITS_MAX = 20_000
"""Digits of a decimal before and after its point together, exponents counted."""
_INT32_MAX = 2**31 - 1

_SQL_TYPES: dict[int, SqlType] = {int(name): SqlType(name) for name in TypeName}


@functools.lru_cache(maxsize=1_024)
def parameter_types(types: bytes) -> tuple[SqlType, ...]:
    """Read the types of parameters.  Raises ProtocolError."""
    try:
        return tuple(_SQL_TYPES[number] for number in types)
    except KeyError as error:
        raise ProtocolError(f"{error.args[0]} is not the number of a type") from None


def parameter_datums(types: Sequence[SqlType], values: Sequence[Any]) -> list[Datum]:
    """Check the values of parameters, and give them as datums.  Raises ProtocolError."""
    if len(types) != len(values):
        raise ProtocolError(f"{len(values)} values for {len(types)} parameters")
    return [None if value is None else _PARAMETER_FORMS[sql_type.name](value) for sql_type, value in zip(types, values)]


def row_datums(columns: Sequence[Column], rows: list[tuple[Any, ...]]) -> list[tuple[Datum, ...]]:
    """Turn the rows of a message into datums."""
    readers = {at: _ROW_FORMS[column.type.kind] for at, column in enumerate(columns) if column.type.kind in _ROW_FORMS}
    if not readers:
        return rows
    return [tuple(readers[at](value) if at in readers and value is not None else value for at, value in enumerate(row)) for row in rows]


def _exactly(wanted: type[bool] | type[float] | type[bytes]) -> Callable[[Any], Datum]:
    def check(value: Any) -> Datum:
        if type(value) is wanted:
            return value
        raise ProtocolError(f"a parameter holds {type(value).__name__} where {wanted.__name__} is expected")

    return check


def _between(low: int, high: int) -> Callable[[Any], Datum]:
    def check(value: Any) -> Datum:
        if type(value) is not int or not low <= value <= high:
            raise ProtocolError(f"a parameter holds {value!r:.40} where an integer from {low} to {high} is expected")
        return value

    return check


def _text(value: Any) -> Datum:
    if type(value) is not str or "\0" in value:
        raise ProtocolError("a parameter holds no text, or text with a NUL character")
    return value


def _decimal(value: Any) -> Datum:
    try:
        number = decimal.Decimal(value) if type(value) is str else None
    except decimal.InvalidOperation:
        number = None
    if number is None or number.is_infinite() or number.is_snan() or abs(number.adjusted()) + len(value) > DECIMAL_DIGITS_MAX:
        raise ProtocolError(f"a parameter holds {value!r:.40} where a decimal is expected")
    return number


def _interval(value: Any) -> Datum:
    if type(value) is not list or len(value) != 3:
        raise ProtocolError("a parameter holds no interval of three parts")
    months, days, microseconds = value
    for part, limit in ((months, _INT32_MAX), (days, _INT32_MAX), (microseconds, INT64_MAX)):
        if type(part) is not int or abs(part) > limit:
            raise ProtocolError(f"a parameter holds an interval with {part!r:.40} in it")
    return (months, days, microseconds)


def _uuid(value: Any) -> Datum:
    if type(value) is not bytes or len(value) != 16:
        raise ProtocolError("a parameter holds no UUID of 16 bytes")
    return value


_PARAMETER_KINDS: dict[Kind, Callable[[Any], Datum]] = {
    Kind.BOOL: _exactly(bool),
    Kind.INT: _between(INT64_MIN, INT64_MAX),
    Kind.FLOAT: _exactly(float),
    Kind.DECIMAL: _decimal,
    Kind.TEXT: _text,
    Kind.BYTES: _exactly(bytes),
    Kind.DATE: _between(-_INT32_MAX, _INT32_MAX),
    Kind.TIME: _between(0, DAY_MICROSECONDS),
    Kind.TIMESTAMP: _between(INT64_MIN, INT64_MAX),
    Kind.INTERVAL: _interval,
    Kind.UUID: _uuid,
}
_PARAMETER_FORMS: dict[TypeName, Callable[[Any], Datum]] = {name: _PARAMETER_KINDS[SqlType(name).kind] for name in TypeName}

_ROW_FORMS: dict[Kind, Callable[[Any], Datum]] = {Kind.DECIMAL: decimal.Decimal, Kind.INTERVAL: tuple}
