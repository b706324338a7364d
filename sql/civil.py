"""The proleptic Gregorian calendar on plain integers: days and microseconds since 1970, and back.

Python's datetime ends at years 1 and 9999; the types here do not.  Algorithms: Howard Hinnant, "chrono-compatible low-level date
algorithms" (days_from_civil, civil_from_days).

Invariants:
- Years are astronomical: year 0 is 1 BC.
"""

from dsdb.sql.errors import DatetimeOverflowError
from dsdb.storage.datum import DAY_MICROSECONDS, Interval

HOUR_MICROSECONDS = 3_600_000_000
MINUTE_MICROSECONDS = 60_000_000
SECOND_MICROSECONDS = 1_000_000
DATE_MIN, DATE_MAX = -2_440_588, 2_145_031_948
"""4714-11-24 BC … 5874897-12-31, as Postgres."""
TIMESTAMP_MIN, TIMESTAMP_MAX = DATE_MIN * DAY_MICROSECONDS, 9_224_318_015_999_999_999
"""4714-11-24 BC … 294276-12-31 would pass 64 bits by a little: see `check_timestamp`."""


def days_from_civil(year: int, month: int, day: int) -> int:
    """Give the days from 1970-01-01 to a date; month and day must be valid."""
    year -= month <= 2
    era = year // 400
    year_of_era = year - era * 400
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * 146_097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468


def civil_from_days(days: int) -> tuple[int, int, int]:
    """Give (year, month, day)."""
    days += 719_468
    era = days // 146_097
    day_of_era = days - era * 146_097
    year_of_era = (day_of_era - day_of_era // 1_460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    month_index = (5 * day_of_year + 2) // 153
    month = month_index + (3 if month_index < 10 else -9)
    return year_of_era + era * 400 + (month <= 2), month, day_of_year - (153 * month_index + 2) // 5 + 1


def is_leap(year: int) -> bool:
    """Say whether a year has 366 days."""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def month_length(year: int, month: int) -> int:
    """Give the days of a month."""
    if month == 2:
        return 29 if is_leap(year) else 28
    return 30 if month in (4, 6, 9, 11) else 31


def check_date(days: int) -> int:
    """Give `days` back if a DATE can hold it.

    Raises: DatetimeOverflowError.
    """
    if not DATE_MIN <= days <= DATE_MAX:
        raise DatetimeOverflowError("date out of range")
    return days


def check_timestamp(microseconds: int) -> int:
    """Give `microseconds` back if a TIMESTAMP can hold it; the last value is what 64 bits hold.

    Raises: DatetimeOverflowError.
    """
    if not TIMESTAMP_MIN <= microseconds < 2**63:
        raise DatetimeOverflowError("timestamp out of range")
    return microseconds


def check_interval(value: Interval) -> Interval:
    """Give an interval back if its fields fit 32, 32 and 64 bits.

    Raises: DatetimeOverflowError.
    """
    months, days, microseconds = value
    if not (-(2**31) <= months < 2**31 and -(2**31) <= days < 2**31 and -(2**63) <= microseconds < 2**63):
        raise DatetimeOverflowError("interval out of range")
    return value


def add_months(days: int, months: int) -> int:
    """Move a date by months; a day past the end of its new month becomes that month's last."""
    year, month, day = civil_from_days(days)
    index = year * 12 + month - 1 + months
    year, month = index // 12, index % 12 + 1
    return days_from_civil(year, month, min(day, month_length(year, month)))


def add_interval(timestamp: int, interval: Interval) -> int:
    """Add an interval to a timestamp: months first, then days, then microseconds.

    Raises: DatetimeOverflowError.
    """
    months, days, microseconds = interval
    date, time = divmod(timestamp, DAY_MICROSECONDS)
    if months:
        date = add_months(date, months)
    return check_timestamp((date + days) * DAY_MICROSECONDS + time + microseconds)
