import math
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsdb.sql.civil import add_interval, civil_from_days, days_from_civil
from dsdb.sql.errors import (
    DatetimeOverflowError,
    FeatureNotSupportedError,
    InvalidDatetimeError,
    InvalidTextError,
    NumericOutOfRangeError,
    SqlError,
    StringTruncationError,
)
from dsdb.sql.text import format_text, parse_text, round_real
from dsdb.sql.types import (
    BIGINT,
    BOOL,
    BYTEA,
    DATE,
    DOUBLE,
    INT,
    INTERVAL,
    NUMERIC,
    REAL,
    SMALLINT,
    TEXT,
    TIME,
    TIMESTAMP,
    TIMESTAMPTZ,
    UUID,
    SqlType,
    TypeName,
)

SPELLINGS = [
    (BOOL, "yes", "t"),
    (INT, " -7 ", "-7"),
    (DOUBLE, "1e15", "1e+15"),
    (DOUBLE, "123456789012345", "123456789012345"),
    (DOUBLE, "0.0001", "0.0001"),
    (DOUBLE, "1e-5", "1e-05"),
    (DOUBLE, "-Infinity", "-Infinity"),
    (REAL, "1e6", "1e+06"),
    (REAL, "0.1", "0.1"),
    (REAL, "3.4028235e38", "3.4028235e+38"),
    (NUMERIC, "1.50", "1.50"),
    (NUMERIC, "1e3", "1000"),
    (NUMERIC, "nan", "NaN"),
    (SqlType(TypeName.DECIMAL, 5, 2), "1.005", "1.01"),
    (SqlType(TypeName.DECIMAL, 5, 2), "-0.001", "0.00"),
    (SqlType(TypeName.CHAR, length=4), "ab", "ab  "),
    (SqlType(TypeName.VARCHAR, length=2), "ab   ", "ab"),
    (BYTEA, "a\\\\\\001b", "\\x615c0162"),
    (BYTEA, "\\xDEADbeef", "\\xdeadbeef"),
    (DATE, "Jan 5, 2020", "2020-01-05"),
    (DATE, "20200105", "2020-01-05"),
    (DATE, "0044-03-15 BC", "0044-03-15 BC"),
    (TIME, "04:05:06.5 PM", "16:05:06.5"),
    (TIME, "24:00", "24:00:00"),
    (TIMESTAMP, "2020-01-01T10:00:00.000001Z", "2020-01-01 10:00:00.000001"),
    (TIMESTAMPTZ, "2020-01-01 00:30+02", "2019-12-31 22:30:00+00"),
    (TIMESTAMPTZ, "2020-01-01", "2020-01-01 00:00:00+00"),
    (INTERVAL, "1 mon 2 days 03:04:05", "1 mon 2 days 03:04:05"),
    (INTERVAL, "-1 day 2 hours", "-1 days +02:00:00"),
    (INTERVAL, "1.5 months", "1 mon 15 days"),
    (INTERVAL, "P1Y2M3DT4H5M6.5S", "1 year 2 mons 3 days 04:05:06.5"),
    (INTERVAL, "1-2", "1 year 2 mons"),
    (INTERVAL, "3 weeks ago", "-21 days"),
    (INTERVAL, "-00:00:01", "-00:00:01"),
    (INTERVAL, "0", "00:00:00"),
    (UUID, "{A0EEBC999C0B4EF8BB6D6BB9BD380A11}", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
]


@pytest.mark.parametrize(("type_", "text", "shown"), SPELLINGS, ids=lambda value: str(value))
def test_text_is_read_and_spelled_as_postgres_does(type_: SqlType, text: str, shown: str) -> None:
    assert format_text(parse_text(text, type_), type_) == shown


@pytest.mark.parametrize(
    ("type_", "text", "error"),
    [
        (INT, "abc", InvalidTextError),
        (INT, "1.5", InvalidTextError),
        (INT, "", InvalidTextError),
        (INT, "1_000", InvalidTextError),
        (INT, "2147483648", NumericOutOfRangeError),
        (SMALLINT, "-32769", NumericOutOfRangeError),
        (BIGINT, "9" * 100_000, NumericOutOfRangeError),
        (DOUBLE, "1e999", NumericOutOfRangeError),
        (REAL, "1e39", NumericOutOfRangeError),
        (DOUBLE, "x", InvalidTextError),
        (NUMERIC, "1e", InvalidTextError),
        (NUMERIC, "1e999999", NumericOutOfRangeError),
        (SqlType(TypeName.DECIMAL, 5, 2), "999.995", NumericOutOfRangeError),
        (SqlType(TypeName.VARCHAR, length=2), "abc", StringTruncationError),
        (TEXT, "a\x00", InvalidTextError),
        (BOOL, "maybe", InvalidTextError),
        (BYTEA, "\\xabc", InvalidTextError),
        (BYTEA, "\\9", InvalidTextError),
        (UUID, "123", InvalidTextError),
        (DATE, "2020-02-30", DatetimeOverflowError),
        (DATE, "2020-13-01", DatetimeOverflowError),
        (DATE, "yesterday", FeatureNotSupportedError),
        (DATE, "x", InvalidDatetimeError),
        (TIME, "25:00", DatetimeOverflowError),
        (TIMESTAMP, "2020-01-01 99:00", DatetimeOverflowError),
        (TIMESTAMP, "infinity", FeatureNotSupportedError),
        (INTERVAL, "1 parsec", InvalidDatetimeError),
        (INTERVAL, "", InvalidDatetimeError),
        (INTERVAL, "999999999999 years", DatetimeOverflowError),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_text_is_refused(type_: SqlType, text: str, error: type[SqlError]) -> None:
    with pytest.raises(error):
        parse_text(text, type_)


_INTERVALS = st.tuples(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63) + 1, 2**63 - 1))
_VALUES: list[tuple[SqlType, st.SearchStrategy[Any]]] = [
    (BOOL, st.booleans()),
    (BIGINT, st.integers(-(2**63), 2**63 - 1)),
    (DOUBLE, st.floats(allow_nan=False)),
    (REAL, st.floats(allow_nan=False, width=32).filter(lambda value: math.isinf(value) or round_real(value) == value)),
    (NUMERIC, st.decimals(allow_nan=False, allow_infinity=False, places=7)),
    (BYTEA, st.binary()),
    (DATE, st.integers(-2_440_588, 2_145_031_948)),
    (TIME, st.integers(0, 86_400_000_000)),
    (TIMESTAMP, st.integers(-2_440_588 * 86_400_000_000, 2**63 - 1)),
    (TIMESTAMPTZ, st.integers(-2_440_588 * 86_400_000_000, 2**63 - 1)),
    (INTERVAL, _INTERVALS),
    (UUID, st.binary(min_size=16, max_size=16)),
]


@pytest.mark.parametrize(("type_", "values"), _VALUES, ids=[str(type_) for type_, _ in _VALUES])
def test_what_is_spelled_is_read_back(type_: SqlType, values: st.SearchStrategy[Any]) -> None:
    @given(values)
    def reads_back(value: Any) -> None:
        again = parse_text(format_text(value, type_), type_)
        assert again == value
        if isinstance(value, Decimal) and value:
            assert format(again, "f") == format(value, "f")

    reads_back()


@given(st.integers(-2_440_588, 2_145_031_948))
def test_the_calendar_goes_there_and_back(days: int) -> None:
    assert days_from_civil(*civil_from_days(days)) == days


def test_months_are_added_before_days() -> None:
    january = parse_text("2020-01-31", TIMESTAMP)
    assert isinstance(january, int)
    assert format_text(add_interval(january, (1, 1, 0)), TIMESTAMP) == "2020-03-01 00:00:00"
