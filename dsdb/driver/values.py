"""The wire's values as Python's, by column.

    BOOL INT FLOAT TEXT BYTEA  as they come │ DECIMAL Decimal │ DATE date │ TIME time │ TIMESTAMP naive datetime
    TIMESTAMPTZ datetime in UTC │ INTERVAL timedelta, a month as 30 days (Arrow has it exact) │ UUID uuid.UUID

What Python's types cannot hold (years beyond 9999, 24:00) is a DataError, never another value.
"""

import datetime
import decimal
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from dsdb.driver.errors import DataError
from dsdb.protocol.messages import Column, decode_columns
from dsdb.sql.types import TypeName
from dsdb.storage.datum import MONTH_DAYS

Loader: TypeAlias = Callable[[Any], Any]
Description: TypeAlias = tuple[tuple[str, TypeName, None, int | None, int | None, int | None, None], ...]

_EPOCH_ORDINAL = datetime.date(1970, 1, 1).toordinal()
_EPOCH = datetime.datetime(1970, 1, 1)
_EPOCH_UTC = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_SHAPES_CACHED_MAX = 1_024


def _load_date(value: int) -> datetime.date:
    try:
        return datetime.date.fromordinal(value + _EPOCH_ORDINAL)
    except (ValueError, OverflowError):
        raise _out_of_range("date", f"{value} days since 1970-01-01") from None


def _load_time(value: int) -> datetime.time:
    seconds, microsecond = divmod(value, 1_000_000)
    minutes, second = divmod(seconds, 60)
    try:
        return datetime.time(minutes // 60, minutes % 60, second, microsecond)
    except ValueError:
        raise _out_of_range("time", "24:00:00") from None


def _load_timestamp(value: int) -> datetime.datetime:
    try:
        return _EPOCH + datetime.timedelta(microseconds=value)
    except OverflowError:
        raise _out_of_range("timestamp", f"{value} microseconds since 1970-01-01") from None


def _load_timestamptz(value: int) -> datetime.datetime:
    try:
        return _EPOCH_UTC + datetime.timedelta(microseconds=value)
    except OverflowError:
        raise _out_of_range("timestamp with time zone", f"{value} microseconds since 1970-01-01") from None


def _load_interval(value: Sequence[int]) -> datetime.timedelta:
    months, days, microseconds = value
    try:
        return datetime.timedelta(days=months * MONTH_DAYS + days, microseconds=microseconds)
    except OverflowError:
        raise _out_of_range("interval", f"{months} months {days} days {microseconds} microseconds") from None


def _load_uuid(value: bytes) -> uuid.UUID:
    return uuid.UUID(bytes=value)


def _out_of_range(what: str, value: str) -> DataError:
    return DataError(
        f"the {what} {value} is outside what Python's type holds", sqlstate="22008", hint="Cast it to text, or fetch it as Arrow."
    )


_LOADERS: dict[TypeName, Loader] = {
    TypeName.DECIMAL: decimal.Decimal,
    TypeName.DATE: _load_date,
    TypeName.TIME: _load_time,
    TypeName.TIMESTAMP: _load_timestamp,
    TypeName.TIMESTAMPTZ: _load_timestamptz,
    TypeName.INTERVAL: _load_interval,
    TypeName.UUID: _load_uuid,
}


class Shape:
    """The columns of a result, and what follows from them.

    description: as PEP 249 wants it, with the TypeName as type code, a length as internal size, a DECIMAL's precision and scale.
    """

    __slots__ = ("columns", "description", "loaders")

    def __init__(self, columns: tuple[Column, ...]) -> None:
        self.columns = columns
        self.description: Description = tuple(
            (column.name, column.type.name, None, column.type.length, column.type.precision, column.type.scale, None) for column in columns
        )
        loaders = [_LOADERS.get(column.type.name) for column in columns]
        # None if every value is what it is on the wire.
        self.loaders: list[Loader | None] | None = loaders if any(loaders) else None

    def load(self, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Turn rows of the wire into rows of Python values.  Raises DataError."""
        loaders = self.loaders
        if loaders is None:
            return rows
        return [tuple([value if value is None or loader is None else loader(value) for loader, value in zip(loaders, row)]) for row in rows]


_shapes: dict[bytes, Shape] = {}


def shape_of(encoded: bytes) -> Shape:
    """Give the shape of encoded columns; the same bytes give the same shape.  Raises ProtocolError."""
    shape = _shapes.get(encoded)
    if shape is None:
        if len(_shapes) >= _SHAPES_CACHED_MAX:
            _shapes.clear()
        shape = _shapes[encoded] = Shape(decode_columns(encoded))
    return shape
