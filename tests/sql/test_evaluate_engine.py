"""Every evaluable overload gives in the engine what the evaluator gives, on generated rows; and the engine's types are the bound ones."""

import datetime
import decimal
import math
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsdb.sql.bind.bound import column, constant, type_of
from dsdb.sql.bind.choose import make_call
from dsdb.sql.bind.render import render, render_constant
from dsdb.sql.errors import DatetimeOverflowError, FeatureNotSupportedError, InvalidParameterError, SqlError
from dsdb.sql.evaluate import compile_scalar, is_evaluable
from dsdb.sql.functions import OVERLOADS, FunctionKind, Overload, Volatility
from dsdb.sql.types import TEXT, SqlType, TypeName
from dsdb.storage.datum import DAY_MICROSECONDS

FENCE = (
    "SET integer_division = true",
    "SET ieee_floating_point_ops = false",
    "SET default_null_order = 'nulls_last_on_asc_first_on_desc'",
    "SET TimeZone = 'UTC'",
    "SET enable_external_access = false",
    "SET threads = 1",
    "SET lock_configuration = true",
)


@pytest.fixture(scope="module")
def engine() -> Iterator[duckdb.DuckDBPyConnection]:
    connection = duckdb.connect(":memory:")
    for statement in FENCE:
        connection.execute(statement)
    yield connection
    connection.close()


_TEXTS = st.one_of(st.sampled_from(["", "a", "abc", "b", "Hello World", "a,b,,c", "xxabxx", "12", "é"]), st.text("abcxyz ,%_", max_size=6))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "int2": st.one_of(st.integers(-20, 20), st.sampled_from([-(2**15), 2**15 - 1])),
    "int4": st.one_of(st.integers(-20, 20), st.integers(-(2**31), 2**31 - 1)),
    "int8": st.one_of(st.integers(-20, 20), st.integers(-(2**63), 2**63 - 1)),
    "float4": st.one_of(st.integers(-100, 100).map(float), st.sampled_from([0.5, -2.25, 1024.125])),
    "float8": st.one_of(st.integers(-100, 100).map(float), st.floats(-1e6, 1e6).map(lambda value: value + 0.0)),
    "numeric": st.decimals(-99999, 99999, places=3),
    "text": _TEXTS,
    "bytea": st.binary(max_size=5),
    "date": st.integers(-20_000, 40_000),
    "time": st.integers(0, DAY_MICROSECONDS - 1),
    "timestamp": st.integers(-20_000 * DAY_MICROSECONDS, 40_000 * DAY_MICROSECONDS),
    "timestamptz": st.integers(-20_000 * DAY_MICROSECONDS, 40_000 * DAY_MICROSECONDS),
    "interval": st.tuples(st.integers(-30, 30), st.integers(-40, 40), st.integers(-(10**11), 10**11)),
    "uuid": st.binary(min_size=16, max_size=16),
}
TYPES = {
    code: SqlType(TypeName[name], *((8, 3) if code == "numeric" else ()))
    for code, name in (
        ("bool", "BOOL"), ("int2", "SMALLINT"), ("int4", "INT"), ("int8", "BIGINT"), ("float4", "REAL"), ("float8", "DOUBLE"),
        ("numeric", "DECIMAL"), ("text", "TEXT"), ("bytea", "BYTEA"), ("date", "DATE"), ("time", "TIME"), ("timestamp", "TIMESTAMP"),
        ("timestamptz", "TIMESTAMPTZ"), ("interval", "INTERVAL"), ("uuid", "UUID"),
    )
}  # fmt: skip
"""One column type for each code."""

FIELDS = [
    "year",
    "month",
    "day",
    "hour",
    "minute",
    "second",
    "milliseconds",
    "microseconds",
    "quarter",
    "week",
    "dow",
    "isodow",
    "doy",
    "epoch",
]
SPECIAL: dict[tuple[str, int], st.SearchStrategy[Any]] = {
    ("extract", 0): st.sampled_from(FIELDS),
    ("date_part", 0): st.sampled_from(FIELDS),
    ("date_trunc", 0): st.sampled_from(["second", "minute", "hour", "day", "week", "month", "quarter", "year", "decade"]),
    ("timezone", 0): st.just("UTC"),
    ("encode", 1): st.sampled_from(["hex", "base64"]),
    ("decode", 0): st.sampled_from(["00ff", "", "abcd"]),
    ("decode", 1): st.just("hex"),
    ("~", 1): st.sampled_from(["a", "^a", "b$", "[xyz]+", "a.c", "(a|b)c", ""]),
    ("~*", 1): st.sampled_from(["A", "^a", "HELLO", "[xyz]+"]),
    ("regexp_like", 1): st.sampled_from(["a", "^a", "b$"]),
    ("regexp_replace", 1): st.sampled_from(["(a)", "^(a)", "(x)(x)", "([xyz]+)"]),
    ("regexp_replace", 2): st.sampled_from(["", "Q", "<\\1>", "\\&\\&"]),
    ("regexp_replace", 3): st.sampled_from(["", "g", "i", "gi"]),
    ("~~", 2): st.just("!"),
    ("~~*", 2): st.just("!"),
    ("chr", 0): st.integers(32, 126),
    ("repeat", 1): st.integers(-1, 4),
    ("lpad", 1): st.integers(-1, 9),
    ("rpad", 1): st.integers(-1, 9),
    ("split_part", 1): st.sampled_from([",", "", "ab"]),
    ("split_part", 2): st.integers(-3, 3),
    ("substring", 1): st.integers(-3, 7),
    ("substring", 2): st.integers(-1, 7),
    ("substr", 1): st.integers(-3, 7),
    ("substr", 2): st.integers(-1, 7),
    ("left", 1): st.integers(-5, 5),
    ("right", 1): st.integers(-5, 5),
    ("round", 1): st.integers(-2, 5),
    ("trunc", 1): st.integers(-2, 5),
    ("make_date", 0): st.integers(1, 3000),
    ("make_date", 1): st.integers(1, 13),
    ("make_date", 2): st.integers(1, 31),
    ("make_time", 0): st.integers(0, 23),
    ("make_time", 1): st.integers(0, 59),
    ("make_time", 2): st.integers(0, 59).map(float),
    ("make_timestamp", 0): st.integers(1, 3000),
    ("make_timestamp", 1): st.integers(1, 12),
    ("make_timestamp", 2): st.integers(1, 28),
    ("make_timestamp", 3): st.integers(0, 23),
    ("make_timestamp", 4): st.integers(0, 59),
    ("make_timestamp", 5): st.integers(0, 59).map(float),
}
CONSTANT = {("regexp_replace", 3), ("extract", 0), ("date_part", 0), ("date_trunc", 0), ("timezone", 0), ("round", 1), ("trunc", 1)}
"""Arguments that must be literals, or whose value decides the type."""

EVALUABLE = sorted(
    key
    for key, overload in OVERLOADS.items()
    if overload.kind is FunctionKind.SCALAR
    and overload.evaluate is not None
    and overload.engine is not None
    and overload.volatility is Volatility.IMMUTABLE
)


def normal(value: Any, type_: SqlType) -> Any:
    """Give what the engine's client hands out as a datum, and floats to 12 digits."""
    if isinstance(value, datetime.datetime):
        naive = value.replace(tzinfo=None) if value.tzinfo is None else value.astimezone(datetime.UTC).replace(tzinfo=None)
        return (naive - datetime.datetime(1970, 1, 1)) // datetime.timedelta(microseconds=1)
    if isinstance(value, datetime.date):
        return (value - datetime.date(1970, 1, 1)).days
    if isinstance(value, datetime.time):
        return ((value.hour * 60 + value.minute) * 60 + value.second) * 1_000_000 + value.microsecond
    if isinstance(value, uuid.UUID):
        return value.bytes
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, float):
        return "nan" if math.isnan(value) else float(f"{value:.5g}" if type_.name is TypeName.REAL else f"{value:.11g}") + 0.0
    return value


def run_engine(engine: duckdb.DuckDBPyConnection, text: str, values: list[Any], types: list[SqlType], result: SqlType) -> Any:
    columns = ", ".join(f"{render_constant(value, type_)} AS c{index}" for index, (value, type_) in enumerate(zip(values, types)))
    shown = text
    if result.name is TypeName.DATE:
        shown = f"({text} - DATE '1970-01-01')"
    if result.name is TypeName.TIMESTAMPTZ:
        shown = f"CAST({text} AS TIMESTAMP)"
    if result.name is TypeName.INTERVAL:
        shown = (
            f"[datepart('year', {text}) * 12 + datepart('month', {text}), datepart('day', {text}), "
            f"datepart('hour', {text}) * 3600000000 + datepart('minute', {text}) * 60000000 + datepart('microsecond', {text})]"
        )
    # A second row keeps the engine from folding the expression before it runs.
    source = f"(SELECT {columns or '1 AS unused'} UNION ALL SELECT {columns or '1 AS unused'})"
    (value,) = engine.execute(f"SELECT {shown} FROM {source} LIMIT 1").fetchone() or (None,)
    if result.name is TypeName.INTERVAL:
        return None if value is None or value[0] is None else tuple(value)
    return normal(value, result)


def check(engine: duckdb.DuckDBPyConnection, overload: Overload, values: list[Any], types: list[SqlType]) -> None:
    nodes = [
        constant(value, type_) if (overload.name, index) in CONSTANT else column(f"c{index}", type_, nullable=True, ordinal=index)
        for index, (value, type_) in enumerate(zip(values, types))
    ]
    try:
        bound = make_call(overload.name, nodes, None)
        text = render(bound)
    except (FeatureNotSupportedError, InvalidParameterError):
        return
    assert is_evaluable(bound)
    result = type_of(bound)
    try:
        expected: Any = compile_scalar(bound, {f"c{index}": index for index in range(len(values))})(values, [])
    except SqlError as error:
        expected = error
    if isinstance(expected, SqlError):
        try:
            got = run_engine(engine, text, values, types, result)
        except duckdb.Error:
            return
        # The engine's dates reach further.
        if isinstance(expected, DatetimeOverflowError) and "range" in expected.message:
            return
        # Where a double overflows, the engine goes on with infinity, which is documented.
        assert result.is_float, (overload.key, values, text, expected)
        assert "overflow" in expected.message, (overload.key, values, text)
        assert abs(got) == math.inf
        return
    if isinstance(expected, Decimal) and result.scale is not None:
        exponent = expected.as_tuple().exponent
        assert exponent == -result.scale, (overload.key, expected, result)
    wanted = tuple(expected) if isinstance(expected, tuple) else normal(expected, result)
    assert run_engine(engine, text, values, types, result) == wanted, (overload.key, values, text)


@pytest.mark.parametrize("key", EVALUABLE)
def test_engine_and_evaluator_agree(engine: duckdb.DuckDBPyConnection, key: str) -> None:
    overload = OVERLOADS[key]
    codes = [*overload.arguments] + ([overload.arguments[-1]] if overload.variadic else [])

    def strategy(index: int, code: str) -> st.SearchStrategy[Any]:
        special = SPECIAL.get((overload.name, index))
        values = VALUES["int4" if code in ("any", "each") else code] if special is None else special
        return values if (overload.name, index) in CONSTANT else st.one_of(values, values, values, values, st.none())

    types = [TYPES["int4" if code in ("any", "each") else code] for code in codes]

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(st.tuples(*(strategy(index, code) for index, code in enumerate(codes))))
    def agrees(values: tuple[Any, ...]) -> None:
        check(engine, overload, list(values), types)

    agrees()


def test_most_of_the_table_is_covered() -> None:
    assert len(EVALUABLE) > 150
    assert TEXT in TYPES.values()
