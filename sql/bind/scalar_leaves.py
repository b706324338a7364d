"""Rules for names, literals, parameters and queries."""

from decimal import Decimal

from sqlglot import exp

from dsdb.sql.bind.binder import Binder, parameter_node, rule
from dsdb.sql.bind.bound import column, constant, decimal_type, integer_type
from dsdb.sql.errors import DatatypeMismatchError, FeatureNotSupportedError, UndefinedParameterError
from dsdb.sql.parse import position_of
from dsdb.sql.text import EXACT
from dsdb.sql.types import BOOL, UNKNOWN


@rule(exp.Column)
def _bind_column(node: exp.Expr, binder: Binder) -> exp.Expr:
    assert isinstance(node, exp.Column)
    if isinstance(node.this, exp.Star):
        raise FeatureNotSupportedError("a row of a table as a value is not supported", position=position_of(node))
    parts = tuple(part.name for part in node.parts)
    position = position_of(node)
    found = binder.scope.resolve(parts, position)
    return column(found.engine_name, found.type, nullable=found.nullable, ordinal=found.ordinal, position=position)


@rule(exp.Literal)
def _bind_literal(node: exp.Expr, _: Binder) -> exp.Expr:
    assert isinstance(node, exp.Literal)
    text: str = node.this
    position = position_of(node)
    if node.is_string:
        return constant(text, UNKNOWN, position=position)
    if text.isascii() and text.isdigit():
        value = int(text)
        type_ = integer_type(value)
        return constant(value if type_.is_integer else Decimal(value), type_, position=position)
    number = Decimal(text.replace("_", ""))
    exponent = number.as_tuple().exponent
    number = EXACT.quantize(number, Decimal(1)) if isinstance(exponent, int) and exponent > 0 else number
    return constant(number, decimal_type(number), position=position)


@rule(exp.Boolean)
def _bind_boolean(node: exp.Expr, _: Binder) -> exp.Expr:
    return constant(bool(node.this), BOOL)


@rule(exp.Null)
def _bind_null(_: exp.Expr, __: Binder) -> exp.Expr:
    return constant(None, UNKNOWN)


@rule(exp.ByteString, exp.RawString, exp.National, exp.UnicodeString)
def _bind_escaped(node: exp.Expr, _: Binder) -> exp.Expr:
    if isinstance(node, exp.UnicodeString):
        raise FeatureNotSupportedError(
            "strings U&'…' are not supported", hint="write the characters themselves", position=position_of(node)
        )
    return constant(str(node.this), UNKNOWN, position=position_of(node))


@rule(exp.Parameter)
def _bind_parameter(node: exp.Expr, binder: Binder) -> exp.Expr:
    number = int(node.this.this)
    context = binder.context
    if number > context.parameter_count:
        raise UndefinedParameterError(f"there is no parameter ${number}", position=position_of(node))
    if number in context.given:
        raise DatatypeMismatchError(
            f"parameter ${number} is a table, not a value", hint="A table stands in FROM.", position=position_of(node)
        )
    return parameter_node(number, context.parameters.get(number), context.parameters)


@rule(exp.Paren)
def _bind_paren(node: exp.Expr, binder: Binder) -> exp.Expr:
    return binder.bind(node.this)


@rule(exp.Subquery, exp.Select, exp.Union, exp.Intersect, exp.Except, exp.Exists)
def _bind_query(node: exp.Expr, binder: Binder) -> exp.Expr:
    return binder.bind_subquery(node)
