"""Mathematical functions.

Roots, powers, logarithms and trigonometry are computed in double precision, also of DECIMALs (where Postgres has a numeric form of its
own, an argument is cast).

Invariants:
- Rounding of a DECIMAL is half away from zero; of a double to an integer half to even, as Postgres.
"""

import math
from collections.abc import Callable, Sequence
from decimal import ROUND_CEILING, ROUND_DOWN, ROUND_FLOOR, ROUND_HALF_UP, Decimal
from typing import Any

from dsdb.sql.errors import InvalidParameterError, LogarithmError, NumericOutOfRangeError, PowerError, SqlError
from dsdb.sql.functions import decimals
from dsdb.sql.functions.operators import checked, finite, integer_remainder
from dsdb.sql.functions.registry import NOT_CONSTANT, define
from dsdb.sql.text import EXACT
from dsdb.sql.types import SqlType, TypeName

_DIGITS_MAX = 30


def _define_integers() -> None:
    for code in ("int2", "int4", "int8"):
        define(f"abs({code}) -> {code}", engine="abs({0})", evaluate=checked(code, abs))
    for code, name in (("int4", "INTEGER"), ("int8", "BIGINT")):
        define(f"gcd({code}, {code}) -> {code}", engine=f"CAST(gcd({{0}}, {{1}}) AS {name})", evaluate=checked(code, math.gcd))
        define(f"lcm({code}, {code}) -> {code}", engine=f"CAST(lcm({{0}}, {{1}}) AS {name})", evaluate=checked(code, math.lcm))
        define(f"div({code}, {code}) -> {code}", engine="({0} // {1})", evaluate=checked(code, _quotient))
    define("factorial(int8) -> numeric", evaluate=_factorial, result_rule=lambda types, values: SqlType(TypeName.DECIMAL))
    define("bit_count(int8) -> int8", engine=None, evaluate=lambda value: (value & (2**64 - 1)).bit_count())
    define(
        "to_hex(int4) -> text", engine="lower(to_hex(CAST({0} AS BIGINT) & 4294967295))", evaluate=lambda value: f"{value & 0xFFFFFFFF:x}"
    )
    define("to_hex(int8) -> text", engine="lower(to_hex({0}))", evaluate=lambda value: f"{value & (2**64 - 1):x}")
    define(
        "width_bucket(float8, float8, float8, int4) -> int4",
        evaluate=_width_bucket,
    )


def _quotient(left: int, right: int) -> int:
    # The remainder is checked for a zero divisor.
    return (left - integer_remainder(left, right)) // right


def _factorial(value: int) -> Decimal:
    if value < 0:
        raise NumericOutOfRangeError("factorial of a negative number is undefined")
    if value > 450:
        raise NumericOutOfRangeError("value overflows numeric format")
    return Decimal(math.factorial(value))


def _width_bucket(value: float, low: float, high: float, count: int) -> int:
    if count <= 0:
        raise InvalidParameterError("count must be greater than zero")
    if low == high:
        raise InvalidParameterError("lower bound cannot equal upper bound")
    if low > high:
        return count + 1 if value <= high else 0 if value > low else int((low - value) / (low - high) * count) + 1
    return count + 1 if value >= high else 0 if value < low else int((value - low) / (high - low) * count) + 1


def _rounder(mode: str) -> Callable[[Decimal], Decimal]:
    return lambda value: value if value.is_nan() else _plain(value.to_integral_value(mode, EXACT))


def _plain(value: Decimal) -> Decimal:
    return value.quantize(Decimal(1), context=EXACT) if value else Decimal(0)


def _scale_rule(types: Sequence[SqlType], values: Sequence[Any]) -> SqlType:
    precision, scale = decimals.width(types[0])
    digits = values[1]
    if digits is None or digits is NOT_CONSTANT:
        return decimals.decimal_of(precision + 1, scale)
    wanted = min(max(int(digits), 0), _DIGITS_MAX)
    return decimals.decimal_of(precision - scale + wanted + 1, wanted)


def _round_to(mode: str) -> Callable[[Sequence[SqlType], SqlType], Callable[[Decimal, int], Decimal]]:
    def make(_: Sequence[SqlType], result: SqlType) -> Callable[[Decimal, int], Decimal]:
        def evaluate(value: Decimal, digits: int) -> Decimal:
            if value.is_nan():
                return value
            digits = max(min(digits, _DIGITS_MAX), -_DIGITS_MAX)
            rounded = value.quantize(Decimal((0, (1,), -digits)), mode, EXACT)
            unit = Decimal((0, (1,), -(result.scale or 0)))
            return decimals.check_digits(rounded.quantize(unit, context=EXACT), result)

        return evaluate

    return make


def _engine_round(function: str) -> Callable[[Sequence[str], Sequence[SqlType], SqlType], str]:
    def printed(arguments: Sequence[str], types: Sequence[SqlType], result: SqlType) -> str:
        # The engine takes only a constant number of digits; with another the result's scale is the argument's.
        digits = f"least({arguments[1]}, {decimals.width(types[0])[1]})"
        scale = result.scale or 0
        if function == "round" and scale >= decimals.width(types[0])[1]:
            return f"CAST({function}({arguments[0]}, {digits}) AS {decimals.engine_name(result)})"
        return f"CAST({function}({arguments[0]}, {digits}) AS {decimals.engine_name(result)})"

    return printed


def _sign(value: Any) -> Any:
    return value if value != value else (value > 0) - (value < 0)


def _define_decimals() -> None:
    define("abs(numeric) -> numeric", engine="abs({0})", evaluate=Decimal.copy_abs, result_rule=decimals.same_type)
    for name, mode, engine in (
        ("ceil", ROUND_CEILING, "ceil"),
        ("ceiling", ROUND_CEILING, "ceil"),
        ("floor", ROUND_FLOOR, "floor"),
        ("round", ROUND_HALF_UP, "round"),
        ("trunc", ROUND_DOWN, "trunc"),
    ):
        define(
            f"{name}(numeric) -> numeric",
            engine=_engine_integral(engine),
            evaluate=_rounder(mode),
            result_rule=decimals.integer_decimal,
        )
    for name, mode in (("round", ROUND_HALF_UP), ("trunc", ROUND_DOWN)):
        define(
            f"{name}(numeric, int4) -> numeric",
            engine=_engine_round(name),
            evaluate=_round_to(mode),
            typed=True,
            result_rule=_scale_rule,
        )
    define(
        "sign(numeric) -> numeric",
        engine="CAST(sign({0}) AS DECIMAL(1,0))",
        evaluate=lambda value: Decimal(_sign(value)),
        result_rule=lambda types, values: decimals.decimal_of(1, 0),
    )
    define(
        "div(numeric, numeric) -> numeric",
        evaluate=lambda left, right: _plain(decimals.divide(left, right, Decimal("1E-1")).to_integral_value(ROUND_DOWN, EXACT)),
        result_rule=lambda types, values: decimals.decimal_of(38, 0),
    )


def _engine_integral(function: str) -> Callable[[Sequence[str], Sequence[SqlType], SqlType], str]:
    def printed(arguments: Sequence[str], types: Sequence[SqlType], result: SqlType) -> str:
        precision, scale = decimals.width(types[0])
        # One digit more in front, or 9.5 of DECIMAL(2,1) would not fit when it is rounded up.
        wide = min(precision + 1, decimals.PRECISION_MAX)
        return f"CAST({function}(CAST({arguments[0]} AS DECIMAL({wide},{scale}))) AS {decimals.engine_name(result)})"

    return printed


def _domain(function: Callable[..., float], message: str, error_class: type[SqlError] = NumericOutOfRangeError) -> Callable[..., float]:
    def evaluate(*values: float) -> float:
        try:
            return function(*values)
        except ValueError:
            raise error_class(message) from None
        except OverflowError:
            raise NumericOutOfRangeError("value out of range: overflow") from None

    return evaluate


def _power(base: float, exponent: float) -> float:
    if base == 0 and exponent < 0:
        raise PowerError("zero raised to a negative power is undefined")
    if base < 0 and math.isfinite(exponent) and exponent != math.floor(exponent):
        raise PowerError("a negative number raised to a non-integer power yields a complex result")
    return math.pow(base, exponent)


def _log(value: float) -> float:
    if value == 0:
        raise LogarithmError("cannot take logarithm of zero")
    if value < 0:
        raise LogarithmError("cannot take logarithm of a negative number")
    return math.log(value)


def _log10(value: float) -> float:
    _log(value)
    return math.log10(value)


def _round_half_even(value: float) -> float:
    return float(round(value)) if math.isfinite(value) else value


_ENGINE_POWER = (
    "(CASE WHEN {0} < 0 AND {1} <> floor({1}) "
    "THEN error('[2201F] a negative number raised to a non-integer power yields a complex result') "
    "WHEN {0} = 0 AND {1} < 0 THEN error('[2201F] zero raised to a negative power is undefined') ELSE pow({0}, {1}) END)"
)
_ENGINE_ACOSH = "(CASE WHEN {0} < 1 THEN error('[22003] input is out of range') ELSE acosh({0}) END)"


def _atanh(value: float) -> float:
    return math.copysign(math.inf, value) if abs(value) == 1 else math.atanh(value)


def _or_infinity(function: Callable[[float], float]) -> Callable[[float], float]:
    """Wrap a function so that what is too large is infinity, as Postgres has it of the hyperbolic ones alone."""

    def evaluate(value: float) -> float:
        try:
            return function(value)
        except OverflowError:
            return math.copysign(math.inf, function(math.copysign(1, value)))

    return evaluate


def _integral(function: Callable[[float], int]) -> Callable[[float], float]:
    return lambda value: float(function(value)) if math.isfinite(value) else value


def _define_floats() -> None:
    for code in ("float4", "float8"):
        define(f"abs({code}) -> {code}", engine="abs({0})", evaluate=abs)
    for name, engine, function in (
        ("ceil", "ceil({0})", _integral(math.ceil)),
        ("ceiling", "ceil({0})", _integral(math.ceil)),
        ("floor", "floor({0})", _integral(math.floor)),
        ("trunc", "trunc({0})", _integral(math.trunc)),
        ("round", "round_even({0}, 0)", _round_half_even),
        ("sign", "CAST(sign({0}) AS DOUBLE)", lambda value: float(_sign(value))),
        ("sqrt", "sqrt({0})", _domain(math.sqrt, "cannot take square root of a negative number", PowerError)),
        ("cbrt", "cbrt({0})", lambda value: math.cbrt(value)),
        ("exp", "exp({0})", finite(math.exp)),
        ("ln", "ln({0})", _log),
        ("log", "log10({0})", _log10),
        ("log10", "log10({0})", _log10),
        ("degrees", "degrees({0})", math.degrees),
        ("radians", "radians({0})", math.radians),
        ("sin", "sin({0})", _domain(math.sin, "input is out of range")),
        ("cos", "cos({0})", _domain(math.cos, "input is out of range")),
        ("tan", "tan({0})", _domain(math.tan, "input is out of range")),
        (
            "cot",
            "(CASE WHEN {0} = 0 THEN CAST('Infinity' AS DOUBLE) ELSE cot({0}) END)",
            _domain(lambda value: 1 / math.tan(value) if value else math.inf, "input is out of range"),
        ),
        ("asin", "asin({0})", _domain(math.asin, "input is out of range")),
        ("acos", "acos({0})", _domain(math.acos, "input is out of range")),
        ("atan", "atan({0})", math.atan),
        ("sinh", "sinh({0})", _or_infinity(math.sinh)),
        ("cosh", "cosh({0})", _or_infinity(math.cosh)),
        ("tanh", "tanh({0})", math.tanh),
        ("asinh", "asinh({0})", math.asinh),
        ("acosh", _ENGINE_ACOSH, _domain(math.acosh, "input is out of range")),
        ("atanh", "atanh({0})", _domain(_atanh, "input is out of range")),
    ):
        define(f"{name}(float8) -> float8", engine=engine, evaluate=function)
    for name in ("power", "pow", "^"):
        define(f"{name}(float8, float8) -> float8", engine=_ENGINE_POWER, evaluate=finite(_power))
    define("atan2(float8, float8) -> float8", engine="atan2({0}, {1})", evaluate=math.atan2)
    define(
        "log(float8, float8) -> float8",
        engine="(CASE WHEN {0} IS NOT NULL AND {1} IS NOT NULL THEN ln({1}) / ln({0}) END)",
        evaluate=lambda base, value: _log(value) / _log(base),
    )


_define_integers()
_define_decimals()
_define_floats()
