from typing import Any

import pytest

from dsdb.sql.bind.bound import is_constant
from dsdb.sql.bind.scalar import BindContext, ParameterTypes, ScopeColumn, bind_scalar, engine_sql, substitute_parameters, type_of
from dsdb.sql.errors import (
    CannotCoerceError,
    DatatypeMismatchError,
    DivisionByZeroError,
    FeatureNotSupportedError,
    GroupingError,
    InvalidTextError,
    NumericOutOfRangeError,
    SqlError,
    UndefinedColumnError,
    UndefinedFunctionError,
    UndefinedParameterError,
    WrongObjectTypeError,
)
from dsdb.sql.evaluate import compile_scalar, is_evaluable
from dsdb.sql.parse import parse_statements
from dsdb.sql.text import format_text
from dsdb.sql.types import BIGINT, BOOL, DATE, DOUBLE, INT, INTERVAL, NUMERIC, REAL, SMALLINT, TEXT, TIMESTAMP, SqlType, TypeName

COLUMNS = {
    "s": SMALLINT,
    "a": INT,
    "b": BIGINT,
    "r": REAL,
    "f": DOUBLE,
    "d": SqlType(TypeName.DECIMAL, 10, 2),
    "n": NUMERIC,
    "t": TEXT,
    "v": SqlType(TypeName.VARCHAR, length=3),
    "c": SqlType(TypeName.CHAR, length=3),
    "dt": DATE,
    "ts": TIMESTAMP,
    "iv": INTERVAL,
    "p": BOOL,
}


class Columns:
    def resolve(self, parts: tuple[str, ...], position: int | None) -> ScopeColumn:
        name = parts[-1]
        if name not in COLUMNS:
            raise UndefinedColumnError(f'column "{name}" does not exist', position=position)
        return ScopeColumn(engine_name=name, type=COLUMNS[name], nullable=True, ordinal=list(COLUMNS).index(name))


def bind(text: str, parameters: ParameterTypes | None = None, **fields: Any) -> Any:
    (statement,) = parse_statements(f"SELECT {text}")
    context = BindContext(parameters=parameters, parameter_count=statement.parameters, **fields)
    tree: Any = statement.tree
    return bind_scalar(tree.expressions[0], Columns(), context)


@pytest.mark.parametrize(
    ("text", "type_name"),
    [
        ("s + s", "smallint"),
        ("s + a", "integer"),
        ("a / 2", "integer"),
        ("a + b", "bigint"),
        ("9999999999", "bigint"),
        ("a + 1.5", "numeric(12,1)"),
        ("d * d", "numeric(20,4)"),
        ("d / 3", "numeric(38,16)"),
        ("r + r", "real"),
        ("r + a", "double precision"),
        ("d + f", "double precision"),
        ("2 ^ 3", "double precision"),
        ("t || 1", "text"),
        ("dt + 1", "date"),
        ("dt - dt", "integer"),
        ("dt + interval '1 day'", "timestamp without time zone"),
        ("ts - ts", "interval"),
        ("count(*)", "bigint"),
        ("sum(a)", "bigint"),
        ("sum(b)", "numeric(38,0)"),
        ("sum(d)", "numeric(38,2)"),
        ("avg(a)", "numeric(38,16)"),
        ("avg(r)", "double precision"),
        ("min(v)", "text"),
        ("round(d, 1)", "numeric(10,1)"),
        ("round(f)", "double precision"),
        ("extract(year from ts)", "numeric(20,0)"),
        ("extract(second from ts)", "numeric(20,6)"),
        ("length(t)", "integer"),
        ("case when p then 1 else 2.5 end", "numeric(11,1)"),
        ("coalesce(s, b)", "bigint"),
        ("nullif(a, 1)", "integer"),
        ("now()", "timestamp with time zone"),
        ("current_date", "date"),
        ("row_number() over (order by a)", "bigint"),
        ("lag(d) over (order by a)", "numeric(10,2)"),
        ("percentile_cont(0.5) within group (order by a)", "double precision"),
        ("a::varchar(2)", "character varying(2)"),
        ("'x'", "unknown"),
    ],
)
def test_result_types(text: str, type_name: str) -> None:
    assert str(type_of(bind(text, allow_aggregates=True, allow_windows=True))) == type_name


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("nope", UndefinedColumnError, "nope"),
        ("lenght(t)", UndefinedFunctionError, "lenght"),
        ("array_agg(a)", FeatureNotSupportedError, "array_agg"),
        ("t = 5", UndefinedFunctionError, "operator does not exist: text = integer"),
        ("p + 1", UndefinedFunctionError, "boolean + integer"),
        ("case when a then 1 end", DatatypeMismatchError, "CASE/WHEN"),
        ("case when p then 1 else t end", DatatypeMismatchError, "CASE types"),
        ("a = 'x'", InvalidTextError, "integer"),
        ("p::date", CannotCoerceError, "boolean to date"),
        ("99999::smallint", NumericOutOfRangeError, "smallint out of range"),
        ("sum(a)", GroupingError, "not allowed"),
        ("rank()", WrongObjectTypeError, "OVER"),
        ("(select 1)", FeatureNotSupportedError, "sub-query"),
        ("a[1]", FeatureNotSupportedError, ""),
    ],
)
def test_errors(text: str, error: type[SqlError], message: str) -> None:
    with pytest.raises(error) as caught:
        bind(text)
    assert message in caught.value.message


def test_a_parameter_that_nobody_gives() -> None:
    (statement,) = parse_statements("SELECT $1")
    tree: Any = statement.tree
    with pytest.raises(UndefinedParameterError, match=r"\$1"):
        bind_scalar(tree.expressions[0], Columns(), BindContext())


def test_parameters_take_their_type_from_the_context() -> None:
    types = ParameterTypes()
    bound = bind("a = $1 AND d > $2 AND t LIKE $3 AND ts < $4 AND v = $5", types)
    assert [str(type_) for type_ in types.types(5)] == ["integer", "numeric", "text", "timestamp without time zone", "text"]
    replaced = substitute_parameters(bound, [1, None, "x", 0, "y"])
    assert "$" not in engine_sql(replaced)
    assert "$1" in engine_sql(bound)


def test_now_is_a_parameter_behind_the_others() -> None:
    bound = bind("ts < now() - $1::interval")
    assert compile_scalar(bound, {name: index for index, name in enumerate(COLUMNS)})([0] * len(COLUMNS), [(0, 1, 0), 10**15]) is True


def test_a_column_compared_with_a_constant_stays_bare() -> None:
    for text in ("s = 5", "b = 5", "d = 5", "v = 'x'", "c = 'x'", "dt = '2020-01-01'", "a = 5000000000"):
        bound = bind(text)
        assert bound.this.name == text.split(" ")[0]
        assert is_constant(bound.expression)


ROW = [7, 2, 10, 1.5, -2.5, "x", "n", "héllo", "abc", "x  ", 18_262, 18_262 * 86_400_000_000, (1, 2, 3_600_000_000), True]
"""s, a, b, r, f, d, n, t, v, c, dt, ts, iv, p; the decimals are set below."""


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("-7 / 2", "-3"),
        ("-7 % 2", "-1"),
        ("7 / 2.0", "3.5000000000000000"),
        ("1 / 3.0", "0.3333333333333333"),
        ("0.1 + 0.2", "0.3"),
        ("1.10 * 2.0", "2.200"),
        ("round(2.5)", "3"),
        ("round(-2.5)", "-3"),
        ("round(2.5::float8)", "2"),
        ("2.5::int", "3"),
        ("2.5::float8::int", "2"),
        ("NULL AND false", "f"),
        ("NULL OR true", "t"),
        ("NULL AND true", None),
        ("NOT NULL::bool", None),
        ("1 IN (2, NULL)", None),
        ("1 IN (1, NULL)", "t"),
        ("1 NOT IN (2, NULL)", None),
        ("NULL IS NOT DISTINCT FROM NULL", "t"),
        ("a IS DISTINCT FROM 2", "f"),
        ("p IS NOT TRUE", "f"),
        ("(1, 2) < (1, 3)", "t"),
        ("3 BETWEEN SYMMETRIC 5 AND 1", "t"),
        ("a = ANY (ARRAY[1, 2])", "t"),
        ("c = 'x'", "t"),
        ("c || '!'", "x!"),
        ("length(c)", "1"),
        ("t LIKE 'h_l%'", "t"),
        (r"'a_c' LIKE 'a\_c'", "t"),
        ("'abc' LIKE 'a!%c' ESCAPE '!'", "f"),
        ("t ~ '^h.*o$'", "t"),
        ("upper(t)", "HÉLLO"),
        ("initcap('hello wORLD')", "Hello World"),
        ("substring('hello' from 2 for 3)", "ell"),
        ("substr('hello', -1, 3)", "h"),
        ("trim(both 'x' from 'xxaxx')", "a"),
        ("overlay('Txxxxas' placing 'hom' from 2 for 4)", "Thomas"),
        ("position('l' in t)", "3"),
        ("split_part('a,b,c', ',', -1)", "c"),
        ("concat('a', NULL, 1)", "a1"),
        ("1 || 'a'", "1a"),
        ("true || 'a'", "truea"),
        ("'\\xff'::bytea || '\\x00'::bytea", "\\xff00"),
        ("encode('\\x00ff'::bytea, 'hex')", "00ff"),
        ("date '2020-01-31' + interval '1 month'", "2020-02-29 00:00:00"),
        ("dt - 1", "2019-12-31"),
        ("age(timestamp '2020-03-01', timestamp '2019-01-31')", "1 year 1 mon 1 day"),
        ("date_trunc('week', timestamp '2020-01-01')", "2019-12-30 00:00:00"),
        ("extract(epoch from timestamp '1970-01-02')", "86400.000000"),
        ("extract(dow from dt)", "3"),
        ("interval '1 day' * 1.5", "1 day 12:00:00"),
        ("interval '1 month' / 2", "15 days"),
        ("iv::text", "1 mon 2 days 01:00:00"),
        ("greatest(1, NULL, 3)", "3"),
        ("CASE a WHEN 2 THEN 'two' END", "two"),
        ("pg_typeof(a)", "integer"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("'abcdef'::varchar(3)", "abc"),
        ("make_date(2020, 2, 29)", "2020-02-29"),
        ("E'a\\tb'", "a\tb"),
    ],
)
def test_values(text: str, shown: str | None) -> None:
    bound = bind(text)
    assert is_evaluable(bound)
    value = compile_scalar(bound, {name: index for index, name in enumerate(COLUMNS)})(ROW, [])
    assert (None if value is None else format_text(value, type_of(bound))) == shown


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a / 0", DivisionByZeroError),
        ("a % 0", DivisionByZeroError),
        ("1.5 / 0", DivisionByZeroError),
        ("f / 0", DivisionByZeroError),
        ("a + 2147483647", NumericOutOfRangeError),
        ("b * 9223372036854775807", NumericOutOfRangeError),
        ("b::text::smallint * 30000::smallint", NumericOutOfRangeError),
        ("exp(f * -1000)", NumericOutOfRangeError),
    ],
)
def test_values_that_fail(text: str, error: type[SqlError]) -> None:
    bound = bind(text)
    with pytest.raises(error):
        compile_scalar(bound, {name: index for index, name in enumerate(COLUMNS)})(ROW, [])


def test_evaluation_stops_when_the_result_is_known() -> None:
    columns = {name: index for index, name in enumerate(COLUMNS)}
    for text in ("a = 2 OR 1 / (a - 2) = 1", "CASE WHEN p THEN true ELSE 1 / (a - 2) = 1 END", "coalesce(a, 1 / (a - 2)) = 2"):
        assert compile_scalar(bind(text), columns)(ROW, []) is True


def test_a_long_chain_is_balanced() -> None:
    bound = bind(" OR ".join(f"a = {number}" for number in range(1_900)))
    assert compile_scalar(bound, {"a": 0})([1_899], []) is True
    assert len(engine_sql(bound)) > 1_900
