"""Generated SQL expressions mean in the engine what they mean in the evaluator; casts and aggregates too."""

import contextlib
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import duckdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dsdb.sql.bind.bound import type_of
from dsdb.sql.bind.render import engine_sql, render_constant
from dsdb.sql.bind.scalar import BindContext, ScopeColumn, bind_scalar
from dsdb.sql.errors import FeatureNotSupportedError, SqlError
from dsdb.sql.evaluate import compile_scalar, is_evaluable
from dsdb.sql.parse import parse_statements
from dsdb.sql.types import BIGINT, BOOL, DATE, DOUBLE, INT, NUMERIC, TEXT, TIMESTAMP, SqlType, TypeName
from tests.sql.test_evaluate_engine import FENCE, VALUES, normal

COLUMNS = {"a": INT, "b": BIGINT, "d": SqlType(TypeName.DECIMAL, 8, 3), "f": DOUBLE, "t": TEXT, "dt": DATE, "ts": TIMESTAMP, "p": BOOL}
CODES = {"a": "int4", "b": "int8", "d": "numeric", "f": "float8", "t": "text", "dt": "date", "ts": "timestamp", "p": "bool"}


class Columns:
    def resolve(self, parts: tuple[str, ...], position: int | None) -> ScopeColumn:
        return ScopeColumn(engine_name=parts[-1], type=COLUMNS[parts[-1]], nullable=True, ordinal=list(COLUMNS).index(parts[-1]))


@pytest.fixture(scope="module")
def engine() -> Iterator[duckdb.DuckDBPyConnection]:
    connection = duckdb.connect(":memory:")
    for statement in FENCE:
        connection.execute(statement)
    yield connection
    connection.close()


def bind(text: str, **fields: Any) -> Any:
    (statement,) = parse_statements(f"SELECT {text}")
    tree: Any = statement.tree
    return bind_scalar(tree.expressions[0], Columns(), BindContext(**fields))


def numbers(depth: int) -> st.SearchStrategy[str]:
    leaves = st.sampled_from(["a", "b", "d", "1", "2.5", "-3", "0", "length(t)", "NULL::int", "dt - date '2000-01-01'"])
    if depth == 0:
        return leaves
    inner = numbers(depth - 1)
    pairs = st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "%"]), inner).map(lambda parts: f"({' '.join(parts)})")
    calls = st.tuples(st.sampled_from(["abs", "-", "round", "floor", "ceil", "sign"]), inner).map(lambda parts: f"{parts[0]}({parts[1]})")
    chosen = st.tuples(conditions(depth - 1), inner, inner).map(lambda parts: f"CASE WHEN {parts[0]} THEN {parts[1]} ELSE {parts[2]} END")
    merged = st.tuples(st.sampled_from(["coalesce", "greatest", "least", "nullif"]), inner, inner).map(
        lambda parts: f"{parts[0]}({parts[1]}, {parts[2]})"
    )
    return st.one_of(leaves, pairs, pairs, calls, chosen, merged)


def conditions(depth: int) -> st.SearchStrategy[str]:
    leaves = st.sampled_from(
        ["p", "t LIKE '%a%'", "a IS NULL", "t > 'b'", "dt < '2020-01-01'", "ts = dt", "f > 1", "NULL", "true", "t IN ('a', '')"]
    )
    if depth == 0:
        return leaves
    inner, number = conditions(depth - 1), numbers(depth - 1)
    return st.one_of(
        leaves,
        st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(lambda parts: f"({' '.join(parts)})"),
        inner.map(lambda text: f"NOT ({text})"),
        st.tuples(number, st.sampled_from(["=", "<>", "<", ">=", "IS DISTINCT FROM"]), number).map(" ".join),
        st.tuples(number, number, number).map(lambda parts: f"({parts[0]} BETWEEN {parts[1]} AND {parts[2]})"),
        st.tuples(number, number, number).map(lambda parts: f"({parts[0]} NOT IN ({parts[1]}, {parts[2]}))"),
        inner.map(lambda text: f"({text}) IS NOT TRUE"),
    )


ROWS = st.tuples(*(st.one_of(VALUES[code], VALUES[code], VALUES[code], st.none()) for code in CODES.values()))


def compare(engine: duckdb.DuckDBPyConnection, text: str, row: tuple[Any, ...]) -> None:
    try:
        bound = bind(text)
    except SqlError:
        return
    assert is_evaluable(bound)
    source = ", ".join(f"{render_constant(value, type_)} AS {name}" for value, (name, type_) in zip(row, COLUMNS.items()))
    statement = f"SELECT {engine_sql(bound)} FROM (SELECT {source} UNION ALL SELECT {source}) LIMIT 1"
    try:
        expected: Any = compile_scalar(bound, {name: index for index, name in enumerate(COLUMNS)})(row, ())
    except SqlError:
        # The engine may be spared the failing part where the result does not need it, never the other way round.
        return
    try:
        (got,) = engine.execute(statement).fetchone() or (None,)
    except duckdb.OutOfRangeException:
        return  # beyond 38 digits the engine stops, as documented
    except duckdb.ConversionException:
        return
    if type_of(bound) == NUMERIC and expected is not None:
        assert got == expected, (text, row, statement)  # by value: the engine has 12 digits behind the point
        return
    assert normal(got, type_of(bound)) == normal(expected, type_of(bound)), (text, row, statement)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
@given(st.one_of(numbers(2), conditions(3)), ROWS)
def test_expressions_agree(engine: duckdb.DuckDBPyConnection, text: str, row: tuple[Any, ...]) -> None:
    compare(engine, text, row)


CASTS = [
    "a::text",
    "b::text",
    "d::text",
    "f::text",
    "p::text",
    "dt::text",
    "ts::text",
    "a::smallint",
    "b::int",
    "d::int",
    "f::bigint",
    "a::numeric",
    "d::decimal(5,1)",
    "f::decimal(20,5)",
    "a::float8",
    "d::float8",
    "dt::timestamp",
    "ts::date",
    "ts::time",
    "ts::timestamptz::text",
    "t::varchar(2)",
    "t::char(4)",
    "t::char(4)::text",
    "a::char(3)",
    "a::bool",
    "p::int",
    "t::bytea::text",
    "a::text::int",
    "d::text::numeric",
    "dt::text::date",
    "p::text::bool",
    "f::text::float8",
    "f::real",
    "a || t",
    "concat(a, p, t, d)",
    "lower(t)::varchar(1)",
]


@pytest.mark.parametrize("text", CASTS)
def test_casts_agree(engine: duckdb.DuckDBPyConnection, text: str) -> None:
    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(ROWS)
    def agrees(row: tuple[Any, ...]) -> None:
        with contextlib.suppress(FeatureNotSupportedError):
            compare(engine, text, row)

    agrees()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("count(*)", 4),
        ("count(a)", 3),
        ("count(DISTINCT a)", 2),
        ("sum(a)", 5),
        ("sum(b)", "9223372036854775809"),
        ("sum(d)", "4.500"),
        ("avg(a)", "1.6666666666666667"),
        ("avg(d)", "1.5000000000000000"),
        ("avg(f)", 2.0),
        ("min(t)", "x"),
        ("max(dt)", 10),
        ("sum(a) FILTER (WHERE p)", 3),
        ("avg(a) FILTER (WHERE t = 'none')", None),
        ("string_agg(t, '-' ORDER BY a DESC, t)", "y-z-x"),
        ("string_agg(DISTINCT t, ',')", "x,y,z"),
        ("bool_and(p)", False),
        ("bool_or(p)", True),
        ("every(p)", False),
        ("stddev_pop(a)", 0.47140452079),
        ("corr(a, f)", 0.86602540378),
        ("percentile_cont(0.5) WITHIN GROUP (ORDER BY a)", 2.0),
        ("percentile_cont(0.25) WITHIN GROUP (ORDER BY f DESC)", 2.5),
        ("percentile_disc(0.5) WITHIN GROUP (ORDER BY t)", "y"),
        ("bit_or(a)", 3),
    ],
)
def test_aggregates_run_in_the_engine(engine: duckdb.DuckDBPyConnection, text: str, expected: Any) -> None:
    bound = bind(text, allow_aggregates=True)
    assert not is_evaluable(bound)
    rows = [
        (1, 2**63 - 1, "1.500", 1.0, "x", 1, True),
        (2, 1, "2.000", 3.0, "y", 10, True),
        (2, 1, "1.000", 2.0, "z", 5, False),
        (None,) * 7,
    ]
    names = ["a", "b", "d", "f", "t", "dt", "p"]

    def spelled(value: Any, name: str) -> str:
        return render_constant(Decimal(value) if name == "d" and value is not None else value, COLUMNS[name])

    source = " UNION ALL ".join(
        "SELECT " + ", ".join(f"{spelled(value, name)} AS {name}" for value, name in zip(row, names)) for row in rows
    )
    (got,) = engine.execute(f"SELECT {engine_sql(bound)} FROM ({source})").fetchone() or (None,)
    assert normal(got, type_of(bound)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("row_number() OVER (ORDER BY a)", [1, 2, 3, 4]),
        ("rank() OVER (ORDER BY a)", [1, 2, 2, 4]),
        ("dense_rank() OVER (ORDER BY a DESC)", [3, 2, 2, 1]),
        ("percent_rank() OVER (ORDER BY a)", [0.0, 1 / 3, 1 / 3, 1.0]),
        ("cume_dist() OVER (ORDER BY a)", [0.25, 0.75, 0.75, 1.0]),
        ("ntile(2) OVER (ORDER BY a)", [1, 1, 2, 2]),
        ("lag(a, 1, 0) OVER (ORDER BY a)", [0, 1, 2, 2]),
        ("lead(a) OVER (ORDER BY a)", [2, 2, 3, None]),
        ("first_value(a) OVER (ORDER BY a)", [1, 1, 1, 1]),
        ("last_value(a) OVER (ORDER BY a ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)", [3, 3, 3, 3]),
        ("nth_value(a, 2) OVER (ORDER BY a ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)", [2, 2, 2, 2]),
        ("sum(a) OVER (ORDER BY a)", [1, 5, 5, 8]),
        ("sum(a) OVER (ORDER BY a ROWS 1 PRECEDING)", [1, 3, 4, 5]),
        ("count(*) FILTER (WHERE a > 1) OVER (PARTITION BY a % 2)", [1, 2, 2, 1]),
        ("max(a) OVER (ORDER BY a RANGE BETWEEN 1 PRECEDING AND 1 FOLLOWING)", [2, 3, 3, 3]),
    ],
)
def test_windows_run_in_the_engine(engine: duckdb.DuckDBPyConnection, text: str, expected: list[Any]) -> None:
    bound = bind(text, allow_windows=True)
    rows = engine.execute(f"SELECT {engine_sql(bound)} FROM (VALUES (1), (2), (2), (3)) v(a) ORDER BY a").fetchall()
    assert [row[0] for row in rows] == pytest.approx(expected)
