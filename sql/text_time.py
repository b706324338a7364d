"""Postgres's text input and output of dates, times and intervals (DateStyle ISO, MDY; IntervalStyle postgres; time zone UTC).

Invariants:
- `parse_*(format_*(x)) == x`.

Not here: values relative to the clock ('now', 'today'), which are refused; infinities, too.
"""

import re
from decimal import ROUND_HALF_UP, Decimal

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
from dsdb.sql.errors import DatetimeOverflowError, FeatureNotSupportedError, InvalidDatetimeError, SqlError
from dsdb.storage.datum import DAY_MICROSECONDS, MONTH_DAYS, Interval

MONTH_NAMES: tuple[str, ...] = ("january", "february", "march", "april", "may", "june")
MONTH_NAMES += ("july", "august", "september", "october", "november", "december")
DAY_NAMES = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
_MONTHS = {name: index + 1 for index, name in enumerate(MONTH_NAMES)}
_MONTHS |= {name[:3]: index + 1 for index, name in enumerate(MONTH_NAMES)} | {"sept": 9}
_WEEKDAY = rf"(?:(?:{'|'.join(DAY_NAMES)}|{'|'.join(name[:3] for name in DAY_NAMES)})\.?,?\s+)?"
_DATE = re.compile(
    _WEEKDAY
    + r"(?:(?P<y>\d{4,7})-(?P<m>\d{1,2})-(?P<d>\d{1,2})|(?P<y2>\d{4})/(?P<m2>\d{1,2})/(?P<d2>\d{1,2})|(?P<y3>\d{4})(?P<m3>\d\d)(?P<d3>\d\d)"
    r"|(?P<m4>\d{1,2})/(?P<d4>\d{1,2})/(?P<y4>\d{4})|(?P<n5>[a-z]{3,9})\.?\s+(?P<d5>\d{1,2}),?\s+(?P<y5>\d{4,7})"
    r"|(?P<d6>\d{1,2})[\s-]+(?P<n6>[a-z]{3,9})\.?[\s-]+(?P<y6>\d{4,7})|(?P<y7>\d{4})-(?P<n7>[a-z]{3,9})-(?P<d7>\d{1,2}))"
)
_TIME = re.compile(r"(\d{1,2}):(\d{1,2})(?::(\d{1,2})(\.\d*)?)?(?:\s*([ap])\.?m\.?)?(?=[\s+\-z]|utc|gmt|$)")
_ZONE = re.compile(r"(?:z|utc|gmt|zulu)?(?:([+-])(\d{1,2})(?::?(\d{2}))?(?::?(\d{2}))?)?$")
_RELATIVE = frozenset({"now", "today", "tomorrow", "yesterday", "allballs"})
_INFINITE = frozenset({"infinity", "-infinity", "+infinity", "inf", "-inf"})


def _invalid(type_name: str, text: str) -> InvalidDatetimeError:
    return InvalidDatetimeError(f'invalid input syntax for type {type_name}: "{text}"')


def _refuse_special(type_name: str, word: str) -> None:
    if word in _RELATIVE:
        raise FeatureNotSupportedError(f'the {type_name} "{word}" is not supported as text', hint="use now() or current_date")
    if word in _INFINITE:
        raise FeatureNotSupportedError(f'the {type_name} "{word}" is not supported')


def _take_date(word: str, text: str, type_name: str) -> tuple[int, str]:
    """Read a date at the start; give its days and what follows."""
    match = _DATE.match(word)
    if match is None:
        raise _invalid(type_name, text)
    fields = {key[0]: value for key, value in match.groupdict().items() if value is not None}
    if "n" in fields and fields["n"] not in _MONTHS:
        raise _invalid(type_name, text)
    year, day = int(fields["y"]), int(fields["d"])
    month = _MONTHS[fields["n"]] if "n" in fields else int(fields["m"])
    rest = word[match.end() :]
    if rest.rstrip().endswith(" bc") or rest.strip() == "bc":
        rest = rest.rstrip()[:-2]
        year = 1 - year
    if not 1 <= month <= 12 or not 1 <= day <= month_length(year, month):
        raise DatetimeOverflowError(f'date/time field value out of range: "{text}"')
    return days_from_civil(year, month, day), rest


def _take_time(word: str, text: str, type_name: str) -> tuple[int, str]:
    """Read a time of day at the start; give its microseconds and what follows."""
    match = _TIME.match(word)
    if match is None:
        raise _invalid(type_name, text)
    hour, minute, second = int(match[1]), int(match[2]), int(match[3] or 0)
    if match[5]:
        if not 1 <= hour <= 12:
            raise DatetimeOverflowError(f'date/time field value out of range: "{text}"')
        hour = hour % 12 + (12 if match[5] == "p" else 0)
    fraction = int((Decimal("0" + (match[4] if match[4] and match[4] != "." else ".0")) * 1_000_000).to_integral_value())
    total = hour * HOUR_MICROSECONDS + minute * MINUTE_MICROSECONDS + second * SECOND_MICROSECONDS + fraction
    if minute > 59 or second > 60 or total > DAY_MICROSECONDS:
        raise DatetimeOverflowError(f'date/time field value out of range: "{text}"')
    return total, word[match.end() :]


def _zone_offset(word: str, text: str, type_name: str) -> int | None:
    """Read a zone; give its microseconds east of UTC, or None if there is none."""
    word = word.strip()
    if not word:
        return None
    match = _ZONE.match(word)
    if match is None:
        if re.fullmatch(r"[a-z_]+(/[a-z_]+)*", word):
            raise FeatureNotSupportedError(f'time zone "{word}" is not supported in text', hint="give an offset such as +02:00")
        raise _invalid(type_name, text)
    if match[1] is None:
        return 0
    hours, minutes, seconds = int(match[2]), int(match[3] or 0), int(match[4] or 0)
    if hours > 15 or minutes > 59 or seconds > 59:
        raise DatetimeOverflowError(f'time zone displacement out of range: "{text}"')
    offset = hours * HOUR_MICROSECONDS + minutes * MINUTE_MICROSECONDS + seconds * SECOND_MICROSECONDS
    return -offset if match[1] == "-" else offset


def parse_date(text: str) -> int:
    """Read a DATE; a time of day behind it is dropped, as Postgres does."""
    word = text.strip().lower()
    if word == "epoch":
        return 0
    _refuse_special("date", word)
    days, rest = _take_date(word, text, "date")
    rest = rest.removeprefix("t").strip()
    if rest:
        _, rest = _take_time(rest, text, "date")
        _zone_offset(rest, text, "date")
    return check_date(days)


def parse_time(text: str) -> int:
    """Read a TIME."""
    word = text.strip().lower()
    _refuse_special("time", word)
    if word[:4].isdigit() and "-" in word and " " in word:
        word = word.split(" ", 1)[1].strip()
    time, rest = _take_time(word, text, "time")
    _zone_offset(rest, text, "time")
    return time


def parse_timestamp(text: str, *, with_zone: bool) -> int:
    """Read a TIMESTAMP (a zone in it is ignored) or a TIMESTAMPTZ (none means UTC)."""
    type_name = "timestamp with time zone" if with_zone else "timestamp"
    word = text.strip().lower()
    if word == "epoch":
        return 0
    _refuse_special(type_name, word)
    days, rest = _take_date(word, text, type_name)
    rest = rest[1:] if rest.startswith("t") else rest
    rest = rest.strip()
    time = 0
    if rest and rest[0].isdigit():
        time, rest = _take_time(rest, text, type_name)
    offset = _zone_offset(rest, text, type_name)
    return check_timestamp(days * DAY_MICROSECONDS + time - (offset or 0 if with_zone else 0))


_MICROSECOND_UNITS = {
    "microsecond": 1, "us": 1, "usec": 1, "millisecond": 1_000, "ms": 1_000, "msec": 1_000,
    "second": SECOND_MICROSECONDS, "sec": SECOND_MICROSECONDS, "s": SECOND_MICROSECONDS,
    "minute": MINUTE_MICROSECONDS, "min": MINUTE_MICROSECONDS, "m": MINUTE_MICROSECONDS,
    "hour": HOUR_MICROSECONDS, "hr": HOUR_MICROSECONDS, "h": HOUR_MICROSECONDS,
}  # fmt: skip
_DAY_UNITS = {"day": 1, "d": 1, "week": 7, "w": 7}
_MONTH_UNITS = {
    "month": 1, "mon": 1, "year": 12, "yr": 12, "y": 12, "decade": 120, "dec": 120, "century": 1_200, "centurie": 1_200, "cent": 1_200,
    "c": 1_200, "millennium": 12_000, "millennia": 12_000, "mil": 12_000,
}  # fmt: skip
_INTERVAL_PART = re.compile(
    r"\s*(?:(?P<sign>[+-])?(?P<h>\d+):(?P<min>\d{1,2})(?::(?P<s>\d{1,2}(?:\.\d*)?)|(?P<fraction>\.\d*))?(?![\d:])|(?P<ysign>[+-])?(?P<year>\d+)-(?P<month>\d+)(?![\d-])"
    r"|(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*(?P<unit>[a-z]+)?)"
)
_ISO_PART = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))([ymwdhs])")


def _add_unit(parts: list[Decimal], number: Decimal, unit: str) -> bool:
    """Add so many of a unit to [months, days, microseconds]; say whether the unit is known."""
    name = unit if unit in _MICROSECOND_UNITS or unit in _MONTH_UNITS else unit.removesuffix("s")
    if name in _MICROSECOND_UNITS:
        parts[2] += number * _MICROSECOND_UNITS[name]
    elif name in _DAY_UNITS:
        number *= _DAY_UNITS[name]
        whole = Decimal(int(number))
        parts[1] += whole
        parts[2] += (number - whole) * DAY_MICROSECONDS
    elif name in _MONTH_UNITS:
        number *= _MONTH_UNITS[name]
        whole = Decimal(int(number))
        parts[0] += whole
        # A fraction of a month is days of a 30-day month; one of a longer unit Postgres rounds to whole months.
        if _MONTH_UNITS[name] == 1:
            _add_unit(parts, (number - whole) * MONTH_DAYS, "day")
        else:
            parts[0] += (number - whole).to_integral_value()
    else:
        return False
    return True


def parse_interval(text: str, default_unit: str = "second", *, is_minutes: bool = False) -> Interval:
    """Read an INTERVAL.  default_unit: that of a bare number; is_minutes: 1:02 is minutes and seconds."""
    word = text.strip().lower()
    parts = [Decimal(0), Decimal(0), Decimal(0)]
    if word.startswith(("p", "-p")):
        _parse_iso_interval(word, text, parts)
    else:
        ago = word.endswith(" ago")
        word = word.removesuffix(" ago").removeprefix("@").strip()
        if not word:
            raise _invalid("interval", text)
        _parse_interval_parts(word, text, parts, default_unit, is_minutes)
        if ago:
            parts = [-part for part in parts]
    return check_interval((int(parts[0]), int(parts[1]), int(parts[2].to_integral_value())))


def parse_interval_of(text: str, first: str | None, last: str | None, digits: int | None) -> Interval:
    """Read what stands in INTERVAL '…' FIRST TO LAST(digits): bare numbers are of the last field, and what is finer than it is cut."""
    months, days, microseconds = parse_interval(text, last or "second", is_minutes=(first, last) == ("minute", "second"))
    if first != last:
        if last == "month":
            days, microseconds = 0, 0
        elif last in ("hour", "minute"):
            unit = HOUR_MICROSECONDS if last == "hour" else MINUTE_MICROSECONDS
            microseconds = int(Decimal(microseconds) / unit) * unit
    if digits is not None and digits < 6:
        unit = 10 ** (6 - digits)
        microseconds = int((Decimal(microseconds) / unit).to_integral_value(ROUND_HALF_UP)) * unit
    return check_interval((months, days, microseconds))


def _parse_interval_parts(word: str, text: str, parts: list[Decimal], default_unit: str, is_minutes: bool) -> None:
    matches = []
    position = 0
    while word[position:].strip():
        match = _INTERVAL_PART.match(word, position)
        if match is None:
            raise _invalid("interval", text)
        position = match.end()
        is_apart = not word[position:] or word[position].isspace() or word[position - 1].isspace()
        if not is_apart and match["unit"] is None and match["h"] is None:
            raise _invalid("interval", text)
        matches.append(match)
    seen = set()
    # From the end: a bare number before a time or an hour counts days.
    for match in reversed(matches):
        unit = match["unit"] or default_unit
        if match["h"] is not None:
            unit = "clock"
            parts[2] += _clock_microseconds(match, text, is_minutes)
        elif match["year"] is not None:
            unit = "year-month"
            months = int(match["year"]) * 12 + int(match["month"])
            parts[0] += -months if match["ysign"] == "-" else months
        elif not _add_unit(parts, Decimal(match["number"]), unit):
            raise _invalid("interval", text)
        name = unit if unit in _MICROSECOND_UNITS or unit in _MONTH_UNITS else unit.removesuffix("s")
        if name in seen:
            raise _invalid("interval", text)
        seen.add(name)
        if unit in ("clock", "hour"):
            default_unit = "day"


def _clock_microseconds(match: re.Match[str], text: str, is_minutes: bool) -> Decimal:
    hour, minute, second = int(match["h"]), int(match["min"]), Decimal((match["s"] or "0").rstrip(".") or "0")
    if match["fraction"] is not None or (is_minutes and match["s"] is None):
        hour, minute, second = 0, hour, minute + Decimal(f"0{(match['fraction'] or '').rstrip('.') or '.0'}")
    if minute > 59 or second >= 60:
        raise DatetimeOverflowError(f'interval field value out of range: "{text}"')
    clock = hour * HOUR_MICROSECONDS + minute * MINUTE_MICROSECONDS + second * SECOND_MICROSECONDS
    return -clock if match["sign"] == "-" else clock


def _parse_iso_interval(word: str, text: str, parts: list[Decimal]) -> None:
    negative = word.startswith("-")
    date, _, time = word.removeprefix("-")[1:].partition("t")
    units = {"y": "year", "m": "month", "w": "week", "d": "day"}, {"h": "hour", "m": "minute", "s": "second"}
    found = False
    for half, names in zip((date, time), units):
        rest = half
        while rest:
            match = _ISO_PART.match(rest)
            if match is None or match[2] not in names:
                raise _invalid("interval", text)
            number = -Decimal(match[1]) if negative else Decimal(match[1])
            _add_unit(parts, number, names[match[2]])
            rest, found = rest[match.end() :], True
    if not found:
        raise _invalid("interval", text)


def _format_year(days: int) -> tuple[str, str]:
    year, month, day = civil_from_days(days)
    if year > 0:
        return f"{year:04d}-{month:02d}-{day:02d}", ""
    return f"{1 - year:04d}-{month:02d}-{day:02d}", " BC"


def format_date(days: int) -> str:
    """Spell a DATE: 2020-01-31."""
    date, era = _format_year(days)
    return date + era


def format_time(microseconds: int) -> str:
    """Spell a TIME: 03:04:05.678."""
    seconds, fraction = divmod(microseconds, SECOND_MICROSECONDS)
    text = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    return f"{text}.{fraction:06d}".rstrip("0") if fraction else text


def format_timestamp(microseconds: int, *, with_zone: bool) -> str:
    """Spell a TIMESTAMP: 2020-01-31 03:04:05.678, a TIMESTAMPTZ with "+00"."""
    days, time = divmod(microseconds, DAY_MICROSECONDS)
    date, era = _format_year(days)
    return f"{date} {format_time(time)}{'+00' if with_zone else ''}{era}"


def format_interval(value: Interval) -> str:
    """Spell an INTERVAL as Postgres does: 1 year 2 mons -3 days +04:05:06."""
    months, days, microseconds = value
    years = int(months / 12) if abs(months) < 2**50 else months // 12
    words: list[str] = []
    before = False
    for number, unit in ((years, "year"), (months - years * 12, "mon"), (days, "day")):
        if number:
            words.append(f"{'+' if before and number > 0 else ''}{number} {unit}{'' if number == 1 else 's'}")
            before = number < 0
    if microseconds or not words:
        sign = "-" if microseconds < 0 else "+" if before else ""
        words.append(sign + format_time(abs(microseconds)))
    return " ".join(words)


def try_parse_interval(text: str) -> Interval | None:
    """Read an INTERVAL, or give None."""
    try:
        return parse_interval(text)
    except SqlError:
        return None
