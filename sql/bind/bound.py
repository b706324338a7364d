"""What a bound scalar tree looks like: sqlglot nodes whose meta carries the types.

    node                              meta beyond `type` and `nullable`
    Column (bare engine name)         ordinal
    Cast(Literal) or Null             constant: True, datum     (every constant, with its exact value)
    Parameter(n)                      parameter: n
    And Or Not EQ NEQ LT LTE GT GTE Is(Null) In Between Case Cast Coalesce: as they are, over operands of one type
    Add, …, Anonymous(name)           call: the key of the overload in `dsdb.sql.functions`
    Subquery, Exists                  made by the query binder, which sets their types
    Var                               engine: True          (the engine's own text, made while planning)

Invariants:
- Every scalar node of a bound tree has a type; UNKNOWN only for a NULL or quoted literal nothing has decided yet.
- A bound tree has no Paren: the engine text is printed with its own.
- meta survives `copy()`.

Not here: how a tree is printed for the engine (`dsdb.sql.bind.render`) or run (`dsdb.sql.evaluate`).
"""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sqlglot import exp

from dsdb.sql.text import format_text
from dsdb.sql.types import BIGINT, BOOL, INT, UNKNOWN, SqlType, TypeName
from dsdb.storage.datum import INT64_MAX, INT64_MIN, Datum


def type_of(node: exp.Expr) -> SqlType:
    """Give the type of a bound node."""
    type_: SqlType = node.meta["type"]
    return type_


def nullable_of(node: exp.Expr) -> bool:
    """Say whether a bound node may be NULL."""
    return bool(node.meta.get("nullable", True))


def is_constant(node: exp.Expr) -> bool:
    """Say whether a bound node is a constant."""
    return "constant" in node.meta


def constant_of(node: exp.Expr) -> Datum:
    """Give the value of a constant node, in the form of its type's kind (text if its type is UNKNOWN)."""
    datum: Datum = node.meta["datum"]
    return datum


def call_of(node: exp.Expr) -> str | None:
    """Give the overload key of a function or operator node, or None."""
    key: str | None = node.meta.get("call") if node._meta else None
    return key


def mark(node: exp.Expr, type_: SqlType, *, nullable: bool = True, **meta: Any) -> exp.Expr:
    """Set the type of a node, in place, and give it."""
    node.meta["type"] = type_
    node.meta["nullable"] = nullable
    node.meta.update(meta)
    return node


def constant(value: Datum, type_: SqlType, *, position: int | None = None) -> exp.Expr:
    """Make a constant node."""
    if value is None:
        node: exp.Expr = exp.Null()
    elif isinstance(value, bool):
        node = exp.Boolean(this=value)
    elif isinstance(value, int) and type_.is_integer:
        node = exp.Literal.number(value)
    else:
        node = exp.Literal.string(format_text(value, type_))
    mark(node, type_, nullable=value is None, constant=True, datum=value)
    if position is not None:
        node.meta["start"] = position - 1
    return node


def column(engine_name: str, type_: SqlType, *, nullable: bool, ordinal: int, position: int | None = None) -> exp.Expr:
    """Make a column node: a bare engine name."""
    node = exp.column(exp.to_identifier(engine_name))
    mark(node, type_, nullable=nullable, ordinal=ordinal)
    if position is not None:
        node.meta["start"] = position - 1
    return node


def call(node: exp.Expr, key: str, type_: SqlType, *, nullable: bool, **meta: Any) -> exp.Expr:
    """Mark a node as a call of an overload."""
    return mark(node, type_, nullable=nullable, call=key, **meta)


def engine_text(text: str, type_: SqlType) -> exp.Expr:
    """Make a node that is printed for the engine as it stands."""
    return mark(exp.Var(this=text), type_, engine=True)


def conjunction(conditions: Sequence[exp.Expr]) -> exp.Expr | None:
    """Join conditions by AND, as a balanced tree; None if there are none."""
    return balanced(exp.And, conditions) if conditions else None


def balanced(connector: type[exp.And] | type[exp.Or], operands: Sequence[exp.Expr]) -> exp.Expr:
    """Join operands by AND or OR in their order, as a tree of logarithmic depth."""
    if len(operands) == 1:
        return operands[0]
    middle = len(operands) // 2
    left, right = balanced(connector, operands[:middle]), balanced(connector, operands[middle:])
    node = connector(this=left, expression=right)
    return mark(node, BOOL, nullable=nullable_of(left) or nullable_of(right))


def integer_type(value: int) -> SqlType:
    """Give the type of an integer literal as Postgres reads it: INT, BIGINT, else DECIMAL."""
    if -(2**31) <= value < 2**31:
        return INT
    return BIGINT if INT64_MIN <= value <= INT64_MAX else decimal_type(Decimal(value))


def decimal_type(value: Decimal) -> SqlType:
    """Give the narrowest DECIMAL(p,s) that holds a value as it is spelled; unconstrained beyond 38 digits."""
    _, digits, exponent = value.as_tuple()
    if not isinstance(exponent, int):
        return SqlType(TypeName.DECIMAL)
    scale = max(-exponent, 0)
    precision = max(len(digits) + max(exponent, 0), scale, 1)
    if precision > 38:
        return SqlType(TypeName.DECIMAL)
    return SqlType(TypeName.DECIMAL, precision, scale)


def datum_type(value: Datum) -> SqlType:
    """Give the type of a literal that the bulk VALUES reader gave: a str or None is UNKNOWN."""
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, int):
        return integer_type(value)
    if isinstance(value, Decimal):
        return decimal_type(value)
    return UNKNOWN
