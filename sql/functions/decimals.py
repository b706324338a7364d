"""How DECIMALs of the select path are computed: every numeric expression has a precision and a scale, known while binding.

Postgres computes numeric with any number of digits and a scale that depends on the values; the engine's decimals end at 38 digits and
their scale is part of the type.  So the binder gives each numeric expression the type DECIMAL(p, s) that holds it:

    a + b, a − b       s = max(s₁, s₂)              p = max(p₁ − s₁, p₂ − s₂) + s + 1
    a · b              s = s₁ + s₂                  p = p₁ + p₂
    a / b, avg         s = max(16, s₁, s₂)          p = 38
    sum                s = s₁                       p = 38

each p at most 38, each s at most 30.  Values agree with Postgres's; a quotient has 16 digits behind the point where Postgres would
show 12 to 20.  What does not fit 38 digits is an error (22003), never rounded.  A column of plain DECIMAL (no precision) counts as
DECIMAL(38, 12) in the engine; a stored value with more digits behind the point is refused there.  The evaluator computes the same
types on exact decimals, so that both paths give the same value.

Invariants:
- The engine's own type of a printed expression has the scale of the bound type.
"""

import decimal
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from dsdb.sql.errors import DivisionByZeroError, NumericOutOfRangeError
from dsdb.sql.text import EXACT
from dsdb.sql.types import SqlType, TypeName

PRECISION_MAX = 38
SCALE_MAX = 30
ENGINE_SCALE = 12
"""Of an unconstrained DECIMAL in the engine."""
QUOTIENT_SCALE_MIN = 16
_INT64_PRECISION = 18
"""Up to this width the engine computes decimals in 64 bits, and fails where a sum or product would need more."""


def decimal_of(precision: int, scale: int) -> SqlType:
    """Give DECIMAL(p, s), cut to the bounds."""
    scale = min(scale, SCALE_MAX)
    return SqlType(TypeName.DECIMAL, max(min(precision, PRECISION_MAX), scale, 1), scale)


def width(type_: SqlType) -> tuple[int, int]:
    """Give (precision, scale) as the engine has it, of a DECIMAL or an integer type."""
    if type_.name is TypeName.SMALLINT:
        return 5, 0
    if type_.name is TypeName.INT:
        return 10, 0
    if type_.name is TypeName.BIGINT:
        return 19, 0
    return (type_.precision, type_.scale or 0) if type_.precision is not None else (PRECISION_MAX, ENGINE_SCALE)


def sum_type(types: Sequence[SqlType], _: Sequence[Any]) -> SqlType:
    """Type a + b and a - b."""
    (p1, s1), (p2, s2) = width(types[0]), width(types[1])
    scale = max(s1, s2)
    return decimal_of(max(p1 - s1, p2 - s2) + scale + 1, scale)


def product_type(types: Sequence[SqlType], _: Sequence[Any]) -> SqlType:
    """Type a * b."""
    (p1, s1), (p2, s2) = width(types[0]), width(types[1])
    return decimal_of(p1 + p2, s1 + s2)


def quotient_type(types: Sequence[SqlType], _: Sequence[Any]) -> SqlType:
    """Type a / b."""
    scale = max(QUOTIENT_SCALE_MIN, *(width(type_)[1] for type_ in types))
    return decimal_of(PRECISION_MAX, scale)


def remainder_type(types: Sequence[SqlType], _: Sequence[Any]) -> SqlType:
    """Type a % b."""
    (p1, s1), (p2, s2) = width(types[0]), width(types[1])
    scale = max(s1, s2)
    return decimal_of(max(p1 - s1, p2 - s2) + scale, scale)


def same_type(types: Sequence[SqlType], _: Sequence[Any]) -> SqlType:
    """Type what keeps its argument's type."""
    return decimal_of(*width(types[0]))


def total_type(types: Sequence[SqlType], _: Sequence[Any]) -> SqlType:
    """Type sum()."""
    return decimal_of(PRECISION_MAX, width(types[0])[1])


def integer_decimal(types: Sequence[SqlType], _: Sequence[Any]) -> SqlType:
    """Type a decimal without digits behind the point."""
    precision, scale = width(types[0])
    return decimal_of(precision - scale + 1, 0)


def engine_name(type_: SqlType) -> str:
    """Give a DECIMAL's name in the engine."""
    precision, scale = width(type_)
    return f"DECIMAL({precision},{scale})"


def engine_wide(arguments: Sequence[str], types: Sequence[SqlType], result: SqlType, operator: str) -> str:
    """Print a + b, a - b or a * b so that the engine computes it in the width of the result."""
    widths = [width(type_) for type_ in types]
    left, right = arguments[0], arguments[1]
    if operator == "*":
        left, right = _narrowed(left, widths[0], right, widths[1])
    if width(result)[0] > _INT64_PRECISION and max(widths[0][0], widths[1][0]) <= _INT64_PRECISION:
        left = f"CAST({left} AS DECIMAL({_INT64_PRECISION + 1},{widths[0][1]}))"
    text = f"({left} {operator} {right})"
    if operator != "*" and width(result)[0] == PRECISION_MAX:
        return f"CAST({text} AS {engine_name(result)})"
    return text


def _narrowed(left: str, left_width: tuple[int, int], right: str, right_width: tuple[int, int]) -> tuple[str, str]:
    """Cut the factor with more digits behind the point, so that the product has SCALE_MAX of them."""
    excess = left_width[1] + right_width[1] - SCALE_MAX
    if excess <= 0:
        return left, right
    if left_width[1] >= right_width[1]:
        return f"CAST({left} AS DECIMAL(38,{left_width[1] - excess}))", right
    return left, f"CAST({right} AS DECIMAL(38,{right_width[1] - excess}))"


def engine_quotient(arguments: Sequence[str], types: Sequence[SqlType], result: SqlType) -> str:
    """Print an exact division: on the digits as 128-bit integers, one digit more than wanted, then rounded half away from zero."""
    (_, s1), (_, s2) = width(types[0]), width(types[1])
    scale = result.scale or 0
    shift = scale + 1 + s2 - s1
    dividend = f"{_digits(arguments[0])} * CAST('1{'0' * shift}' AS HUGEINT)"
    quotient = f"CAST(({dividend}) // {_digits(arguments[1])} AS DECIMAL(38,0))"
    unit = f"CAST('0.{'0' * scale}1' AS DECIMAL({scale + 1},{scale + 1}))"
    return f"CAST(({quotient} * {unit}) AS DECIMAL(38,{scale}))"


def _digits(argument: str) -> str:
    return f"CAST(replace(CAST({argument} AS VARCHAR), '.', '') AS HUGEINT)"


def check_digits(value: Decimal, type_: SqlType) -> Decimal:
    """Give a result back if it has the digits that its type holds.

    Raises: NumericOutOfRangeError.
    """
    if not value:
        return value.copy_abs()  # there is no negative zero
    if type_.precision is not None and value.is_finite() and value.adjusted() >= type_.precision - (type_.scale or 0):
        raise NumericOutOfRangeError(f"value out of range: more than {type_.precision} digits")
    return value


def arithmetic(operation: Callable[[Decimal, Decimal], Decimal]) -> Callable[[Sequence[SqlType], SqlType], Callable[..., Decimal]]:
    """Make the evaluator of an exact operation: rounded to the result's scale only where that was cut."""

    def make(types: Sequence[SqlType], result: SqlType) -> Callable[[Decimal, Decimal], Decimal]:
        unit = Decimal((0, (1,), -(result.scale or 0)))

        def evaluate(left: Decimal, right: Decimal) -> Decimal:
            value = operation(left, right)
            return check_digits(value.quantize(unit, context=EXACT) if value.is_finite() else value, result)

        return evaluate

    return make


def divide(left: Decimal, right: Decimal, unit: Decimal) -> Decimal:
    """Divide, rounded half away from zero to the unit's scale.

    Raises: DivisionByZeroError.
    """
    if left.is_nan() or right.is_nan():
        return Decimal("NaN")
    if not right:
        raise DivisionByZeroError("division by zero")
    # One digit more, cut off, decides the rounding exactly.
    digits = unit.as_tuple().exponent
    assert isinstance(digits, int)
    truncated = EXACT.divide_int(left.scaleb(1 - digits, EXACT), right)
    return truncated.scaleb(digits - 1, EXACT).quantize(unit, context=EXACT)


def quotient(types: Sequence[SqlType], result: SqlType) -> Callable[[Decimal, Decimal], Decimal]:
    """Make the evaluator of a / b."""
    unit = Decimal((0, (1,), -(result.scale or 0)))
    return lambda left, right: check_digits(divide(left, right, unit), result)


def remainder(left: Decimal, right: Decimal) -> Decimal:
    """Give what a division leaves, with the dividend's sign.

    Raises: DivisionByZeroError.
    """
    if left.is_nan() or right.is_nan():
        return Decimal("NaN")
    if not right:
        raise DivisionByZeroError("division by zero")
    try:
        return EXACT.remainder(left, right)
    except decimal.InvalidOperation:
        raise NumericOutOfRangeError("value out of range") from None
