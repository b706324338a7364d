"""Functions of dates, times and intervals.

Invariants:
- The session's time zone is UTC; another zone is refused.
- extract gives a DECIMAL with the digits that its field has; date_part the same as a double.
"""

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from dsdb.sql.civil import (
    HOUR_MICROSECONDS,
    MINUTE_MICROSECONDS,
    SECOND_MICROSECONDS,
    check_date,
    check_interval,
    check_timestamp,
    civil_from_days,
    days_from_civil,
    month_length,
)
from dsdb.sql.errors import DatetimeOverflowError, FeatureNotSupportedError, InvalidParameterError
from dsdb.sql.functions.decimals import decimal_of
from dsdb.sql.functions.registry import define
from dsdb.sql.types import DOUBLE, SqlType, TypeName
from dsdb.storage.datum import DAY_MICROSECONDS, MONTH_DAYS, Interval

_UTC = frozenset({"utc", "gmt", "z", "zulu", "+00", "+00:00", "etc/utc"})
_FRACTIONS = {"second": 6, "milliseconds": 3, "epoch": 6}
"""Digits behind the point of the fields that have any."""
_ALIASES = {
    "seconds": "second",
    "microsecond": "microseconds",
    "millisecond": "milliseconds",
    "years": "year",
    "months": "month",
    "days": "day",
}


def _field(name: str) -> str:
    return _ALIASES.get(name.lower(), name.lower())


def _iso_week(days: int) -> tuple[int, int]:
    """Give (year, week) of ISO 8601."""
    thursday = days - (days + 3) % 7 + 3
    year = civil_from_days(thursday)[0]
    return year, (thursday - days_from_civil(year, 1, 1)) // 7 + 1


def _century(year: int, span: int) -> int:
    return (year + span - 1) // span if year > 0 else -((span - year) // span)


def _date_field(field: str, days: int) -> int | None:
    year, month, day = civil_from_days(days)
    shown = year if year > 0 else year - 1
    values: dict[str, Callable[[], int]] = {
        "year": lambda: shown,
        "month": lambda: month,
        "day": lambda: day,
        "decade": lambda: year // 10,
        "century": lambda: _century(year, 100),
        "millennium": lambda: _century(year, 1000),
        "quarter": lambda: (month + 2) // 3,
        "dow": lambda: (days + 4) % 7,
        "isodow": lambda: (days + 3) % 7 + 1,
        "doy": lambda: days - days_from_civil(year, 1, 1) + 1,
        "week": lambda: _iso_week(days)[1],
        "isoyear": lambda: _iso_week(days)[0] - (_iso_week(days)[0] <= 0),
    }
    value = values.get(field)
    return None if value is None else value()


def _clock_field(field: str, microseconds: int) -> Decimal | None:
    minute_part = microseconds % MINUTE_MICROSECONDS
    if field == "hour":
        return Decimal(microseconds // HOUR_MICROSECONDS)
    if field == "minute":
        return Decimal(microseconds // MINUTE_MICROSECONDS % 60)
    if field == "second":
        return Decimal(minute_part).scaleb(-6)
    if field == "milliseconds":
        return Decimal(minute_part).scaleb(-3)
    if field == "microseconds":
        return Decimal(minute_part)
    return None


def _unknown_field(field: str, type_name: str) -> InvalidParameterError:
    return InvalidParameterError(f'unit "{field}" not recognized for type {type_name}')


def _extract_timestamp(name: str, value: int) -> Decimal:
    field = _field(name)
    if field == "epoch":
        return Decimal(value).scaleb(-6)
    found = _date_field(field, value // DAY_MICROSECONDS)
    clock = Decimal(found) if found is not None else _clock_field(field, value % DAY_MICROSECONDS)
    if clock is None:
        raise _unknown_field(name, "timestamp")
    return clock


def _extract_date(name: str, value: int) -> Decimal:
    field = _field(name)
    found = value * 86_400 if field == "epoch" else _date_field(field, value)
    if found is None:
        raise _unknown_field(name, "date")
    return Decimal(found)


def _extract_time(name: str, value: int) -> Decimal:
    field = _field(name)
    found = Decimal(value).scaleb(-6) if field == "epoch" else _clock_field(field, value)
    if found is None:
        raise _unknown_field(name, "time")
    return found


def _truncated(value: int, by: int) -> int:
    return abs(value) // by * (1 if value >= 0 else -1)


def _extract_interval(name: str, value: Interval) -> Decimal:
    months, days, microseconds = value
    field = _field(name)
    years = _truncated(months, 12)
    if field == "epoch":
        seconds = years * Decimal("31557600") + (months - years * 12) * 2_592_000 + days * 86_400
        return seconds + Decimal(microseconds).scaleb(-6)
    simple = {
        "year": years,
        "month": months - years * 12,
        "quarter": (months - years * 12) // 3 + 1,
        "decade": _truncated(years, 10),
        "century": _truncated(years, 100),
        "millennium": _truncated(years, 1000),
        "day": days,
    }
    if field in simple:
        return Decimal(simple[field])
    sign = -1 if microseconds < 0 else 1
    clock = _clock_field(field, abs(microseconds))
    if clock is None:
        raise _unknown_field(name, "interval")
    return clock * sign


_CLOCK_FIELDS = frozenset({"hour", "minute", "second", "milliseconds", "microseconds", "epoch"})
_DAY_FIELDS = frozenset({"year", "month", "day", "decade", "century", "millennium", "quarter", "dow", "isodow", "doy", "week", "isoyear"})
_SPAN_FIELDS = frozenset({"year", "month", "day", "decade", "century", "millennium", "quarter"}) | _CLOCK_FIELDS
_FIELDS = {
    TypeName.DATE: _DAY_FIELDS | {"epoch"},
    TypeName.TIME: _CLOCK_FIELDS,
    TypeName.INTERVAL: _SPAN_FIELDS,
    TypeName.TIMESTAMP: _DAY_FIELDS | _CLOCK_FIELDS,
    TypeName.TIMESTAMPTZ: _DAY_FIELDS | _CLOCK_FIELDS,
}


def _check_field(name: object, type_: SqlType) -> str:
    """Give a field's proper name if its type has it.

    Raises: InvalidParameterError, FeatureNotSupportedError (a field that is not a literal).
    """
    if not isinstance(name, str):
        raise FeatureNotSupportedError("the field must be a literal")
    field = _field(name)
    if field not in _FIELDS[type_.name]:
        raise _unknown_field(name, str(SqlType(type_.name)))
    return field


def _extract_type(types: Sequence[SqlType], values: Sequence[Any]) -> SqlType:
    field = _check_field(values[0], types[1])
    scale = 0 if field == "epoch" and types[1].name is TypeName.DATE else _FRACTIONS.get(field, 0)
    return decimal_of(20, scale)


def _part_type(types: Sequence[SqlType], values: Sequence[Any]) -> SqlType:
    _check_field(values[0], types[1])
    return DOUBLE


def _fitted(function: Callable[[str, Any], Decimal]) -> Callable[[Sequence[SqlType], SqlType], Callable[[str, Any], Decimal]]:
    def make(_: Sequence[SqlType], result: SqlType) -> Callable[[str, Any], Decimal]:
        unit = Decimal((0, (1,), -(result.scale or 0)))
        return lambda field, value: function(field, value).quantize(unit)

    return make


def _engine_span(value: str) -> str:
    """Print the microseconds of an interval, with a year as 365.25 days and a month as 30."""
    units = (("year", 31_557_600), ("month", 2_592_000), ("day", 86_400), ("hour", 3_600), ("minute", 60))
    terms = [f"CAST(datepart('{unit}', {value}) AS HUGEINT) * {seconds * SECOND_MICROSECONDS}" for unit, seconds in units]
    return f"({' + '.join(terms)} + datepart('microseconds', {value}))"


def _engine_extract(arguments: Sequence[str], types: Sequence[SqlType], result: SqlType) -> str:
    field = _field(arguments[0].strip("'"))
    value = arguments[1]
    name = types[1].name
    if name is TypeName.TIMESTAMPTZ:
        value = f"CAST({value} AS TIMESTAMP)"
    if field == "epoch":
        if name is TypeName.DATE:
            value = f"CAST({value} AS TIMESTAMP)"
        micros, digits = _engine_span(value) if name is TypeName.INTERVAL else f"epoch_us({value})", 6
    elif field in ("second", "milliseconds", "microseconds"):
        micros, digits = f"datepart('microseconds', {value})", {"second": 6, "milliseconds": 3, "microseconds": 0}[field]
    else:
        micros, digits = f"datepart('{field}', {value})", 0
        if field in ("year", "isoyear") and name is not TypeName.INTERVAL:
            # There is no year zero.
            micros = f"({micros} - (CASE WHEN {micros} <= 0 THEN 1 ELSE 0 END))"
    exact = f"CAST({micros} AS DECIMAL(19,0))"
    if digits:
        exact = f"({exact} * CAST('0.{'1'.rjust(digits, '0')}' AS DECIMAL({digits},{digits})))"
    if result.name is TypeName.DOUBLE:
        return f"CAST({exact} AS DOUBLE)"
    return f"CAST({exact} AS DECIMAL({result.precision},{result.scale}))"


def _define_fields() -> None:
    for code, function in (
        ("date", _extract_date),
        ("timestamp", _extract_timestamp),
        ("timestamptz", _extract_timestamp),
        ("time", _extract_time),
        ("interval", _extract_interval),
    ):
        define(
            f"extract(text, {code}) -> numeric", engine=_engine_extract, evaluate=_fitted(function), typed=True, result_rule=_extract_type
        )
        define(
            f"date_part(text, {code}) -> float8",
            engine=_engine_extract,
            evaluate=lambda field, value, function=function: float(function(field, value)),
            result_rule=_part_type,
        )


_TRUNCATIONS = {"microseconds": 1, "milliseconds": 1_000, "second": SECOND_MICROSECONDS, "minute": MINUTE_MICROSECONDS}
_TRUNCATIONS |= {"hour": HOUR_MICROSECONDS, "day": DAY_MICROSECONDS}


def _truncate(name: str, value: int) -> int:
    field = _field(name)
    if field in _TRUNCATIONS:
        return value // _TRUNCATIONS[field] * _TRUNCATIONS[field]
    days = value // DAY_MICROSECONDS
    year, month, _ = civil_from_days(days)
    starts: dict[str, Callable[[], int]] = {
        "week": lambda: days - (days + 3) % 7,
        "month": lambda: days_from_civil(year, month, 1),
        "quarter": lambda: days_from_civil(year, (month - 1) // 3 * 3 + 1, 1),
        "year": lambda: days_from_civil(year, 1, 1),
        "decade": lambda: days_from_civil(year // 10 * 10, 1, 1),
        "century": lambda: days_from_civil((_century(year, 100) - 1) * 100 + 1, 1, 1),
        "millennium": lambda: days_from_civil((_century(year, 1000) - 1) * 1000 + 1, 1, 1),
    }
    if field not in starts:
        raise _unknown_field(name, "timestamp")
    return starts[field]() * DAY_MICROSECONDS


def _engine_truncate(arguments: Sequence[str], _: Sequence[SqlType], result: SqlType) -> str:
    field = _field(arguments[0].strip("'"))
    if field in ("century", "millennium"):
        raise FeatureNotSupportedError(f"date_trunc('{field}', …) is not supported over the rows of a query")
    truncated = f"CAST(date_trunc({arguments[0]}, CAST({arguments[1]} AS TIMESTAMP)) AS TIMESTAMP)"
    return f"CAST({truncated} AS TIMESTAMPTZ)" if result.name is TypeName.TIMESTAMPTZ else truncated


def age(later: int, earlier: int) -> Interval:
    """Give the years, months, days and time between two timestamps, counted field by field as Postgres does."""
    if later < earlier:
        months, days, microseconds = age(earlier, later)
        return -months, -days, -microseconds
    (late_day, late_time), (early_day, early_time) = divmod(later, DAY_MICROSECONDS), divmod(earlier, DAY_MICROSECONDS)
    y1, m1, d1 = civil_from_days(late_day)
    y2, m2, d2 = civil_from_days(early_day)
    microseconds, days, months = late_time - early_time, d1 - d2, (y1 - y2) * 12 + m1 - m2
    if microseconds < 0:
        microseconds += DAY_MICROSECONDS
        days -= 1
    if days < 0:
        # The length of the earlier one's month is lent, as Postgres.
        days += month_length(y2, m2)
        months -= 1
    return months, days, microseconds


def _make_date(year: int, month: int, day: int) -> int:
    actual = year + 1 if year < 0 else year
    if year == 0 or not 1 <= month <= 12 or not 1 <= day <= month_length(actual, month):
        raise DatetimeOverflowError(f"date field value out of range: {year}-{month:02d}-{day:02d}")
    return check_date(days_from_civil(actual, month, day))


def _make_time(hour: int, minute: int, second: float) -> int:
    microseconds = hour * HOUR_MICROSECONDS + minute * MINUTE_MICROSECONDS + round(second * SECOND_MICROSECONDS)
    if not (0 <= hour <= 24 and 0 <= minute <= 59 and 0 <= second <= 60 and microseconds <= DAY_MICROSECONDS):
        raise DatetimeOverflowError(f"time field value out of range: {hour}:{minute:02d}:{second:02g}")
    return microseconds


def _make_timestamp(year: int, month: int, day: int, hour: int, minute: int, second: float) -> int:
    return check_timestamp(_make_date(year, month, day) * DAY_MICROSECONDS + _make_time(hour, minute, second))


def _make_interval(years: int, months: int, weeks: int, days: int, hours: int, minutes: int, seconds: float) -> Interval:
    clock = hours * HOUR_MICROSECONDS + minutes * MINUTE_MICROSECONDS + round(seconds * SECOND_MICROSECONDS)
    return check_interval((years * 12 + months, weeks * 7 + days, clock))


def _at_zone(zone: str, value: int) -> int:
    if zone.lower() not in _UTC:
        raise FeatureNotSupportedError(f'time zone "{zone}" is not supported', hint="the time zone is UTC")
    return value


def _engine_zone(arguments: Sequence[str], _: Sequence[SqlType], result: SqlType) -> str:
    _at_zone(arguments[0].strip("'"), 0)
    return f"CAST({arguments[1]} AS {'TIMESTAMPTZ' if result.name is TypeName.TIMESTAMPTZ else 'TIMESTAMP'})"


def _justify_hours(value: Interval) -> Interval:
    months, days, microseconds = value
    whole = _truncated(microseconds, DAY_MICROSECONDS)
    days, microseconds = days + whole, microseconds - whole * DAY_MICROSECONDS
    if days > 0 > microseconds:
        days, microseconds = days - 1, microseconds + DAY_MICROSECONDS
    elif days < 0 < microseconds:
        days, microseconds = days + 1, microseconds - DAY_MICROSECONDS
    return check_interval((months, days, microseconds))


def _justify_days(value: Interval) -> Interval:
    months, days, microseconds = value
    whole = _truncated(days, MONTH_DAYS)
    months, days = months + whole, days - whole * MONTH_DAYS
    if months > 0 > days:
        months, days = months - 1, days + MONTH_DAYS
    elif months < 0 < days:
        months, days = months + 1, days - MONTH_DAYS
    return check_interval((months, days, microseconds))


def _justify_interval(value: Interval) -> Interval:
    """Give the parts one sign, hours below a day and days below a month."""
    months, days, microseconds = value
    total = days * DAY_MICROSECONDS + microseconds
    days = _truncated(total, DAY_MICROSECONDS)
    microseconds = total - days * DAY_MICROSECONDS
    whole = _truncated(days, MONTH_DAYS)
    months, days = months + whole, days - whole * MONTH_DAYS
    if months > 0 and (days < 0 or (days == 0 and microseconds < 0)):
        months, days = months - 1, days + MONTH_DAYS
    elif months < 0 and (days > 0 or (days == 0 and microseconds > 0)):
        months, days = months + 1, days - MONTH_DAYS
    if days > 0 > microseconds:
        days, microseconds = days - 1, microseconds + DAY_MICROSECONDS
    elif days < 0 < microseconds:
        days, microseconds = days + 1, microseconds - DAY_MICROSECONDS
    return check_interval((months, days, microseconds))


def _define_makers() -> None:
    define("make_date(int4, int4, int4) -> date", engine="make_date({0}, {1}, {2})", evaluate=_make_date)
    define("make_time(int4, int4, float8) -> time", engine="make_time({0}, {1}, {2})", evaluate=_make_time)
    define(
        "make_timestamp(int4, int4, int4, int4, int4, float8) -> timestamp",
        engine="make_timestamp({0}, {1}, {2}, {3}, {4}, {5})",
        evaluate=_make_timestamp,
    )
    define("make_interval(int4, int4, int4, int4, int4, int4, float8) -> interval", evaluate=_make_interval)
    define(
        "to_timestamp(float8) -> timestamptz",
        engine="CAST(make_timestamp(CAST(round_even({0} * 1000000, 0) AS BIGINT)) AS TIMESTAMPTZ)",
        evaluate=lambda seconds: check_timestamp(round(seconds * SECOND_MICROSECONDS)),
    )
    define("justify_hours(interval) -> interval", evaluate=_justify_hours)
    define("justify_days(interval) -> interval", evaluate=_justify_days)
    define("justify_interval(interval) -> interval", evaluate=_justify_interval)


def _define_changes() -> None:
    for code in ("timestamptz", "timestamp"):
        define(f"date_trunc(text, {code}) -> {code}", engine=_engine_truncate, evaluate=_truncate)
        define(f"age({code}, {code}) -> interval", engine=_ENGINE_AGE, evaluate=age)
    define("timezone(text, timestamp) -> timestamptz", engine=_engine_zone, evaluate=_at_zone)
    define("timezone(text, timestamptz) -> timestamp", engine=_engine_zone, evaluate=_at_zone)


_ENGINE_AGE = "age(CAST({0} AS TIMESTAMP), CAST({1} AS TIMESTAMP))"

_define_fields()
_define_makers()
_define_changes()
