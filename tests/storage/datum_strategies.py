"""Hypothesis strategies of datums, of stored columns, and SQL's order and sameness of datums, written down a second time."""

import decimal
import math
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from dsdb.storage.datum import DAY_MICROSECONDS, Datum, Interval, Kind
from dsdb.storage.rowarrow import LayoutColumn

D = decimal.Decimal
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For the slow first draw of text and decimals, and for busy machines."""
INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1), st.sampled_from([-(2**63), 2**63 - 1]))
TEXT = st.text(
    st.one_of(st.sampled_from("ab\x01\x7f\x80\uffff\U0010ffff"), st.characters(exclude_characters="\x00", codec="utf-8")), max_size=6
)
BYTES = st.binary(max_size=4) | st.lists(st.sampled_from([0, 1, 2, 254, 255]), max_size=5).map(bytes)
SMALL_DECIMALS = st.builds(lambda number, exponent: D(number).scaleb(exponent), st.integers(-1200, 1200), st.integers(-4, 4))
FINITE_DECIMALS = SMALL_DECIMALS | st.decimals(allow_nan=False, allow_infinity=False)
DECIMALS = FINITE_DECIMALS | st.sampled_from(
    [
        D("NaN"),
        D("Infinity"),
        D("-Infinity"),
        D("-0"),
        D("0.00"),
        D("1E+100000"),
        D("-1E-100000"),
        D("1E+99"),
        D("1E+100"),
        D("1E-101"),
        D("9" * 60),
    ]
)

KEY_DATUMS: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.BOOL: st.booleans(),
    Kind.INT: INT64,
    Kind.FLOAT: st.floats() | st.sampled_from([0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan, -math.nan, 5e-324]),
    Kind.DECIMAL: DECIMALS,
    Kind.TEXT: TEXT,
    Kind.BYTES: BYTES,
    Kind.DATE: st.integers(-3, 3) | INT32,
    Kind.TIME: st.integers(0, DAY_MICROSECONDS) | st.sampled_from([0, DAY_MICROSECONDS]),
    Kind.TIMESTAMP: INT64,
    Kind.INTERVAL: st.tuples(st.integers(-2, 2), st.integers(-60, 60), st.sampled_from([0, 1, -1, DAY_MICROSECONDS, -DAY_MICROSECONDS]))
    | st.tuples(INT32 | st.sampled_from([-(2**31), 2**31 - 1]), INT32, INT64),
    Kind.UUID: st.binary(min_size=16, max_size=16),
}


def order(kind: Kind, value: Any) -> Any:
    """Give what orders as SQL orders values that are not NULL."""
    if kind in (Kind.FLOAT, Kind.DECIMAL):
        return (1, 0) if value != value else (0, value)
    if kind is Kind.INTERVAL:
        return interval_seconds(value)
    return value


def interval_seconds(value: Interval) -> D:
    return D(value[0]) * 30 * 86400 + D(value[1]) * 86400 + D(value[2]).scaleb(-6)


def same(left: Datum, right: Datum) -> bool:
    """Say whether two datums are the same, sign of zero and NaN included, spelling of decimals not."""
    if type(left) is not type(right):
        return False
    if isinstance(left, float) and isinstance(right, float):
        return (math.isnan(left) and math.isnan(right)) or (left == right and math.copysign(1, left) == math.copysign(1, right))
    if isinstance(left, D) and isinstance(right, D) and left.is_nan():
        return right.is_nan()
    return left == right


def same_rows(left: Any, right: Any) -> bool:
    """Say whether two rows, or lists of datums, are the same."""
    return len(left) == len(right) and all(same(one, other) for one, other in zip(left, right))


COLUMN_SHAPES = st.one_of(
    st.fixed_dictionaries({"kind": st.just(Kind.INT), "width": st.sampled_from([2, 4, 8])}),
    st.fixed_dictionaries({"kind": st.just(Kind.FLOAT), "width": st.sampled_from([4, 8])}),
    st.integers(1, 38).flatmap(
        lambda precision: st.fixed_dictionaries(
            {"kind": st.just(Kind.DECIMAL), "precision": st.just(precision), "scale": st.integers(0, precision)}
        )
    ),
    st.fixed_dictionaries({"kind": st.just(Kind.TIMESTAMP), "utc": st.booleans()}),
    st.fixed_dictionaries({"kind": st.sampled_from([kind for kind in Kind if kind not in (Kind.INT, Kind.FLOAT, Kind.TIMESTAMP)])}),
)
"""The fields of a LayoutColumn but its id."""

PLAIN_DECIMALS = st.one_of(
    SMALL_DECIMALS, st.sampled_from([D("NaN"), D("Infinity"), D("-Infinity"), D("1E+20"), D("1.500"), D("1E-30"), D("9" * 50), D("-0.0")])
)


def column_datums(column: LayoutColumn) -> st.SearchStrategy[Any]:
    """Give the values that a stored column can hold, NULL among them."""
    match column.kind:
        case Kind.INT:
            bound = 2 ** (8 * column.width - 1)
            values: st.SearchStrategy[Any] = st.integers(-bound, bound - 1)
        case Kind.FLOAT:
            values = st.floats(width=32 if column.width == 4 else 64)
        case Kind.DECIMAL if column.precision is None:
            values = PLAIN_DECIMALS
        case Kind.DECIMAL:
            most = 10**column.precision - 1
            scale = column.scale
            values = st.integers(-most, most).map(lambda number: D(f"{number}E-{scale}"))
        case Kind.INTERVAL:
            values = st.tuples(INT32, INT32, st.integers(-(2**63) // 1000 + 1, (2**63 - 1) // 1000))
        case kind:
            values = KEY_DATUMS[kind]
    return st.none() | values
