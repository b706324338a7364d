"""Aggregates and window functions: the engine runs them, here are their types and how they are printed.

`{d}` stands for DISTINCT, `{o}` for an ORDER BY inside the call, `{c}` for FILTER and OVER behind it, `{t}` for the engine's type of the
result.

Invariants:
- sum of integers widens (int → bigint, bigint → numeric) and is checked; avg of integers and decimals is an exact quotient.
- Deviations and regressions are double precision, also of DECIMALs.
"""

from collections.abc import Sequence

from dsdb.sql.functions import decimals
from dsdb.sql.functions.registry import FunctionKind, define
from dsdb.sql.types import SqlType


def _aggregate(signature: str, engine: object, **fields: object) -> None:
    define(signature, engine=engine, kind=FunctionKind.AGGREGATE, strict=False, **fields)


def _window(signature: str, engine: str, **fields: object) -> None:
    define(signature, engine=engine, kind=FunctionKind.WINDOW, strict=False, **fields)


def _average(_: Sequence[str], types: Sequence[SqlType], result: SqlType) -> str:
    total = decimals.total_type(types, ())
    sums = f"CAST(sum({{d}}{{0}}){{c}} AS {decimals.engine_name(total)})"
    counts = "CAST(nullif(count({d}{0}){c}, 0) AS DECIMAL(19,0))"
    return decimals.engine_quotient([sums, counts], [total, decimals.decimal_of(19, 0)], result)


_MONTHS = "(datepart('year', {0}) * 12 + datepart('month', {0}))"
_CLOCK = "(datepart('hour', {0}) * 3600000000 + datepart('minute', {0}) * 60000000 + datepart('microseconds', {0}))"
_INTERVAL_SUM = (
    f"(to_months(CAST(sum({{d}}{_MONTHS}){{c}} AS INTEGER)) + to_days(CAST(sum({{d}}datepart('day', {{0}})){{c}} AS INTEGER)) "
    f"+ to_microseconds(CAST(sum({{d}}{_CLOCK}){{c}} AS BIGINT)))"
)


def _define_sums() -> None:
    _aggregate("count() -> int8", "count(*){c}", never_null=True)
    _aggregate("count(each) -> int8", "count({d}{0}){c}", never_null=True)
    for code in ("int2", "int4"):
        _aggregate(f"sum({code}) -> int8", "CAST(sum({d}{0}){c} AS BIGINT)")
    _aggregate("sum(int8) -> numeric", "CAST(sum({d}{0}){c} AS DECIMAL(38,0))", result_rule=decimals.total_type)
    _aggregate("sum(numeric) -> numeric", "CAST(sum({d}{0}){c} AS {t})", result_rule=decimals.total_type)
    _aggregate("sum(float4) -> float4", "CAST(sum({d}{0}){c} AS FLOAT)")
    _aggregate("sum(float8) -> float8", "sum({d}{0}){c}")
    _aggregate("sum(interval) -> interval", _INTERVAL_SUM)
    for code in ("int2", "int4", "int8", "numeric"):
        _aggregate(f"avg({code}) -> numeric", _average, result_rule=decimals.quotient_type)
    for code in ("float4", "float8"):
        _aggregate(f"avg({code}) -> float8", "avg({d}{0}){c}")
    for name in ("min", "max", "any_value"):
        _aggregate(f"{name}(any) -> any", f"{name}({{0}}){{c}}")
    for name, engine in (("bool_and", "bool_and"), ("every", "bool_and"), ("bool_or", "bool_or")):
        _aggregate(f"{name}(bool) -> bool", f"{engine}({{0}}){{c}}")
    for code in ("int2", "int4", "int8"):
        for name in ("bit_and", "bit_or", "bit_xor"):
            _aggregate(f"{name}({code}) -> {code}", f"{name}({{d}}{{0}}){{c}}")
    _aggregate("string_agg(text, text) -> text", "string_agg({d}{0}, {1}{o}){c}")


def _define_statistics() -> None:
    for name, engine in (
        ("stddev", "stddev_samp"),
        ("stddev_samp", "stddev_samp"),
        ("stddev_pop", "stddev_pop"),
        ("variance", "var_samp"),
        ("var_samp", "var_samp"),
        ("var_pop", "var_pop"),
    ):
        _aggregate(f"{name}(float8) -> float8", f"{engine}({{d}}{{0}}){{c}}")
    for name in (
        "corr",
        "covar_pop",
        "covar_samp",
        "regr_avgx",
        "regr_avgy",
        "regr_intercept",
        "regr_r2",
        "regr_slope",
        "regr_sxx",
        "regr_sxy",
        "regr_syy",
    ):
        _aggregate(f"{name}(float8, float8) -> float8", f"{name}({{d}}{{0}}, {{1}}){{c}}")
    _aggregate("regr_count(float8, float8) -> int8", "CAST(regr_count({0}, {1}){c} AS BIGINT)", never_null=True)
    # The ordered expression is the last argument while the overload is chosen; then it is the ORDER BY.
    _aggregate("percentile_cont(float8, float8) -> float8", "percentile_cont({0}) WITHIN GROUP ({o}){c}")
    _aggregate("percentile_disc(float8, any) -> any", "percentile_disc({0}) WITHIN GROUP ({o}){c}")


def _define_windows() -> None:
    for name in ("row_number", "rank", "dense_rank"):
        _window(f"{name}() -> int8", f"{name}(){{c}}", never_null=True)
    for name in ("percent_rank", "cume_dist"):
        _window(f"{name}() -> float8", f"{name}(){{c}}", never_null=True)
    _window("ntile(int4) -> int4", "CAST(ntile({0}){c} AS INTEGER)")
    for name in ("lag", "lead"):
        _window(f"{name}(any) -> any", f"{name}({{0}}){{c}}")
        _window(f"{name}(any, int4) -> any", f"{name}({{0}}, {{1}}){{c}}")
        _window(f"{name}(any, int4, any) -> any", f"{name}({{0}}, {{1}}, {{2}}){{c}}")
    for name in ("first_value", "last_value"):
        _window(f"{name}(any) -> any", f"{name}({{0}}){{c}}")
    _window("nth_value(any, int4) -> any", "nth_value({0}, {1}){c}")


_define_sums()
_define_statistics()
_define_windows()
