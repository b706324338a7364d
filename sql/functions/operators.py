"""Arithmetic and other symbol operators (comparisons, AND, OR and their like are syntax of the binder).

Invariants:
- Integer results are checked against their type (22003); division truncates toward zero; the remainder has the dividend's sign.
- A float result that overflows is an error; one that underflows is 0.  In the engine `bind.render` adds the check, where it can.
"""

import math
import operator
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from dsdb.sql.civil import add_interval, check_date, check_interval, check_timestamp
from dsdb.sql.errors import DivisionByZeroError, NumericOutOfRangeError
from dsdb.sql.functions import decimals
from dsdb.sql.functions.registry import define
from dsdb.sql.text import EXACT, round_real
from dsdb.sql.types import SqlType
from dsdb.storage.datum import DAY_MICROSECONDS, MONTH_DAYS, Interval

_BITS = {"int2": 16, "int4": 32, "int8": 64}
_INTEGER_NAMES = {"int2": "smallint", "int4": "integer", "int8": "bigint"}
_ENGINE_INTEGERS = {"int2": "SMALLINT", "int4": "INTEGER", "int8": "BIGINT"}


def checked(code: str, function: Callable[..., int]) -> Callable[..., int]:
    """Wrap a function on integers so that its result is checked against a type."""
    bound = 1 << (_BITS[code] - 1)
    message = f"{_INTEGER_NAMES[code]} out of range"

    def evaluate(*values: int) -> int:
        result = function(*values)
        if -bound <= result < bound:
            return result
        raise NumericOutOfRangeError(message)

    return evaluate


def _divide(left: int, right: int) -> int:
    if not right:
        raise DivisionByZeroError("division by zero")
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


def integer_remainder(left: int, right: int) -> int:
    """Give what an integer division leaves, with the dividend's sign."""
    if not right:
        raise DivisionByZeroError("division by zero")
    return int(math.fmod(left, right)) if abs(left) < 2**53 and abs(right) < 2**53 else left - right * _divide(left, right)


def finite(function: Callable[..., float], *, single: bool = False) -> Callable[..., float]:
    """Wrap a function on floats so that infinity out of finite arguments is an error."""

    def evaluate(*values: float) -> float:
        try:
            result = function(*values)
        except OverflowError:
            raise NumericOutOfRangeError("value out of range: overflow") from None
        if math.isinf(result) and not any(math.isinf(value) for value in values):
            raise NumericOutOfRangeError("value out of range: overflow")
        return round_real(result) if single else result

    return evaluate


def _float_divide(left: float, right: float) -> float:
    if right == 0 and not math.isnan(left):
        raise DivisionByZeroError("division by zero")
    return left / right if not math.isnan(left) else left


def _define_integers() -> None:
    for code in _BITS:
        pair = f"({code}, {code}) -> {code}"
        define(f"+{pair}", engine="({0} + {1})", evaluate=checked(code, operator.add))
        define(f"-{pair}", engine="({0} - {1})", evaluate=checked(code, operator.sub))
        define(f"*{pair}", engine="({0} * {1})", evaluate=checked(code, operator.mul))
        define(f"/{pair}", engine="({0} // {1})", evaluate=checked(code, _divide))
        for name in ("%", "mod"):
            define(f"{name}{pair}", engine="({0} % {1})", evaluate=integer_remainder)
        define(f"&{pair}", engine="({0} & {1})", evaluate=operator.and_)
        define(f"|{pair}", engine="({0} | {1})", evaluate=operator.or_)
        define(f"#{pair}", engine="xor({0}, {1})", evaluate=operator.xor)
        define(f"<<({code}, int4) -> {code}", engine=_engine_shift_left(code), evaluate=_shift_left(_BITS[code]))
        define(f">>({code}, int4) -> {code}", engine=_engine_shift_right(code), evaluate=_shift_right(_BITS[code]))
        define(f"~({code}) -> {code}", engine="(~{0})", evaluate=operator.invert)
        # The engine's own negation of the least value silently takes a wider type.
        define(f"neg({code}) -> {code}", engine=f"(CAST(0 AS {_ENGINE_INTEGERS[code]}) - {{0}})", evaluate=checked(code, operator.neg))
        define(f"pos({code}) -> {code}", engine="{0}", evaluate=operator.pos)


def _engine_count(code: str) -> str:
    wrap = max(_BITS[code], 32)
    return f"CAST((({{1}} % {wrap} + {wrap}) % {wrap}) AS {_ENGINE_INTEGERS[code]})"


def _engine_shift_right(code: str) -> str:
    if code == "int2":
        return f"CAST((CAST({{0}} AS INTEGER) >> {_engine_count('int4')}) AS SMALLINT)"
    return f"({{0}} >> {_engine_count(code)})"


def _engine_shift_left(code: str) -> str:
    # In a type that has room, cut to the width, with the sign put back: the engine's own shift is an error where bits fall off.
    bits, wide = _BITS[code], "HUGEINT" if code == "int8" else "BIGINT"
    ones = f"CAST({(1 << bits) - 1} AS {wide})"
    value = f"(CAST({{0}} AS {wide}) & {ones})"
    cut = f"(({value} << CAST({_engine_count('int4' if code == 'int2' else code)} AS {wide})) & {ones})"
    sign = f"(CASE WHEN {cut} > {(1 << (bits - 1)) - 1} THEN CAST({1 << bits} AS {wide}) ELSE 0 END)"
    return f"CAST({cut} - {sign} AS {_ENGINE_INTEGERS[code]})"


def _shift_left(bits: int) -> Callable[[int, int], int]:
    # As the C of Postgres: the count wraps at the width (32 for smallint, which then is cut to 16 bits).
    def evaluate(value: int, count: int) -> int:
        result = value << (count % max(bits, 32))
        result &= (1 << bits) - 1
        return result - (1 << bits) if result >> (bits - 1) else result

    return evaluate


def _shift_right(bits: int) -> Callable[[int, int], int]:
    return lambda value, count: value >> (count % max(bits, 32))


def _wide(symbol: str) -> Callable[[Sequence[str], Sequence[SqlType], SqlType], str]:
    return lambda arguments, types, result: decimals.engine_wide(arguments, types, result, symbol)


def _define_decimals() -> None:
    for name, symbol, operation, rule in (
        ("+", "+", EXACT.add, decimals.sum_type),
        ("-", "-", EXACT.subtract, decimals.sum_type),
        ("*", "*", EXACT.multiply, decimals.product_type),
        ("%", "%", decimals.remainder, decimals.remainder_type),
        ("mod", "%", decimals.remainder, decimals.remainder_type),
    ):
        define(
            f"{name}(numeric, numeric) -> numeric",
            engine=_wide(symbol),
            evaluate=decimals.arithmetic(operation),
            typed=True,
            result_rule=rule,
        )
    define(
        "/(numeric, numeric) -> numeric",
        engine=decimals.engine_quotient,
        evaluate=decimals.quotient,
        typed=True,
        result_rule=decimals.quotient_type,
    )
    define("neg(numeric) -> numeric", engine="(-{0})", evaluate=_negate_decimal, result_rule=decimals.same_type)
    define("pos(numeric) -> numeric", engine="{0}", evaluate=lambda value: value, result_rule=decimals.same_type)


def _negate_decimal(value: Decimal) -> Decimal:
    return value.copy_negate() if value else value


def _define_floats() -> None:
    pairs = (("float4", "float4", "float4"), ("float4", "float8", "float8"), ("float8", "float4", "float8"), ("float8", "float8", "float8"))
    for left, right, result in pairs:
        signature, single = f"({left}, {right}) -> {result}", result == "float4"
        define(f"+{signature}", engine="({0} + {1})", evaluate=finite(operator.add, single=single))
        define(f"-{signature}", engine="({0} - {1})", evaluate=finite(operator.sub, single=single))
        define(f"*{signature}", engine="({0} * {1})", evaluate=finite(operator.mul, single=single))
        define(f"/{signature}", engine="({0} / {1})", evaluate=finite(_float_divide, single=single))
    for code in ("float4", "float8"):
        define(f"neg({code}) -> {code}", engine="(-{0})", evaluate=operator.neg)
        define(f"pos({code}) -> {code}", engine="{0}", evaluate=operator.pos)


def scale_interval(value: Interval, factor: float) -> Interval:
    """Multiply an interval by a number; fractions of months fall to days of a 30-day month, and of days to microseconds.

    Raises: DatetimeOverflowError.
    """
    months, days = value[0] * factor, value[1] * factor
    whole_months = math.trunc(months)
    month_days = round((months - whole_months) * MONTH_DAYS, 6)
    whole_days = math.trunc(days) + math.trunc(month_days)
    rest = round((days - math.trunc(days)) + (month_days - math.trunc(month_days)), 6)
    if abs(rest) >= 1:
        whole_days += math.trunc(rest)
        rest -= math.trunc(rest)
    return check_interval((whole_months, whole_days, round(value[2] * factor + rest * DAY_MICROSECONDS)))


def _divide_interval(value: Interval, divisor: float) -> Interval:
    if divisor == 0:
        raise DivisionByZeroError("division by zero")
    return scale_interval(value, 1 / divisor) if divisor not in (1.0, -1.0) else scale_interval(value, divisor)


def _timestamp_difference(left: int, right: int) -> Interval:
    # Truncated toward zero, so that days and time have one sign.
    difference = left - right
    days = abs(difference) // DAY_MICROSECONDS * (1 if difference >= 0 else -1)
    return 0, days, difference - days * DAY_MICROSECONDS


def _negate_interval(value: Interval) -> Interval:
    return check_interval((-value[0], -value[1], -value[2]))


def _add_intervals(left: Interval, right: Interval) -> Interval:
    return check_interval((left[0] + right[0], left[1] + right[1], left[2] + right[2]))


def _define_times() -> None:
    _commuting("date, int4", "date", "({0} + {1})", lambda day, count: check_date(day + count))
    define("-(date, int4) -> date", engine="({0} - {1})", evaluate=lambda day, count: check_date(day - count))
    define("-(date, date) -> int4", engine="CAST(({0} - {1}) AS INTEGER)", evaluate=operator.sub)
    _commuting("date, time", "timestamp", "({0} + {1})", lambda day, time: check_timestamp(day * DAY_MICROSECONDS + time))
    for code in ("timestamp", "timestamptz"):
        _commuting(f"{code}, interval", code, "({0} + {1})", add_interval)
        define(f"-({code}, interval) -> {code}", engine="({0} - {1})", evaluate=lambda ts, span: add_interval(ts, _negate_interval(span)))
        define(f"-({code}, {code}) -> interval", engine="({0} - {1})", evaluate=_timestamp_difference)
    _commuting(
        "date, interval", "timestamp", "(CAST({0} AS TIMESTAMP) + {1})", lambda day, span: add_interval(day * DAY_MICROSECONDS, span)
    )
    define(
        "-(date, interval) -> timestamp",
        engine="(CAST({0} AS TIMESTAMP) - {1})",
        evaluate=lambda day, span: add_interval(day * DAY_MICROSECONDS, _negate_interval(span)),
    )
    _commuting("time, interval", "time", "({0} + {1})", lambda time, span: (time + span[2]) % DAY_MICROSECONDS)
    define("-(time, interval) -> time", engine="({0} - {1})", evaluate=lambda time, span: (time - span[2]) % DAY_MICROSECONDS)
    define(
        "-(time, time) -> interval",
        engine="to_microseconds(epoch_us({0}) - epoch_us({1}))",
        evaluate=lambda left, right: (0, 0, left - right),
    )
    define("+(interval, interval) -> interval", engine="({0} + {1})", evaluate=_add_intervals)
    define(
        "-(interval, interval) -> interval",
        engine="({0} - {1})",
        evaluate=lambda left, right: _add_intervals(left, _negate_interval(right)),
    )
    define("neg(interval) -> interval", engine="(-{0})", evaluate=_negate_interval)
    define("*(interval, float8) -> interval", engine=_engine_scaled("{0}", "{1}"), evaluate=scale_interval)
    define("*(float8, interval) -> interval", engine=_engine_scaled("{1}", "{0}"), evaluate=lambda by, span: scale_interval(span, by))
    define(
        "/(interval, float8) -> interval",
        engine=_engine_scaled("{0}", "(CASE WHEN {0} IS NOT NULL THEN 1.0::DOUBLE / {1} END)"),
        evaluate=_divide_interval,
    )


def _engine_scaled(interval: str, factor: str) -> str:
    # Months, days and microseconds by themselves, because the engine's own product rounds each away.
    months = f"(datepart('year', {interval}) * 12 + datepart('month', {interval})) * {factor}"
    days = f"datepart('day', {interval}) * {factor}"
    month_days = f"round((({months}) - trunc({months})) * 30, 6)"
    rest = f"round({days} - trunc({days}) + {month_days} - trunc({month_days}), 6)"
    whole = f"CAST(trunc({days}) + trunc({month_days}) + trunc({rest}) AS INTEGER)"
    clock = f"(datepart('hour', {interval}) * 3600000000 + datepart('minute', {interval}) * 60000000 + datepart('microsecond', {interval}))"
    micros = f"round_even({clock} * {factor} + ({rest} - trunc({rest})) * 86400000000, 0)"
    return f"(to_months(CAST(trunc({months}) AS INTEGER)) + to_days({whole}) + to_microseconds(CAST({micros} AS BIGINT)))"


def _commuting(pair: str, result: str, engine: str, evaluate: Callable[[Any, Any], Any]) -> None:
    """Define an addition for both orders of its operands."""
    left, right = pair.split(", ")
    define(f"+({pair}) -> {result}", engine=engine, evaluate=evaluate)
    swapped = engine.replace("{0}", "{x}").replace("{1}", "{0}").replace("{x}", "{1}")
    define(f"+({right}, {left}) -> {result}", engine=swapped, evaluate=lambda a, b: evaluate(b, a))


def _define_strings() -> None:
    # `any || text` and `text || any` take whatever prints; bytea joins bytes.
    define("||(text, text) -> text", engine="({0} || {1})", evaluate=operator.add)
    define("||(bytea, bytea) -> bytea", engine="({0} || {1})", evaluate=operator.add)


_define_integers()
_define_decimals()
_define_floats()
_define_times()
_define_strings()
