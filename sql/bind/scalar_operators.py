"""Rules for operators: logic, comparison, arithmetic, pattern matching.

Invariants:
- Both operands of a comparison are of types that the evaluator and the engine compare alike without a cast: see `comparable`.
- A column that is compared with a constant of its own kind stays bare, so that the planner sees the key in it.
"""

import re
from decimal import Decimal

from sqlglot import exp

from dsdb.sql.bind.binder import Binder, rule
from dsdb.sql.bind.bound import balanced, conjunction, constant, constant_of, integer_type, is_constant, mark, nullable_of, type_of
from dsdb.sql.bind.choose import make_call
from dsdb.sql.bind.coerce import coerce, is_unknown, unify
from dsdb.sql.errors import DatatypeMismatchError, FeatureNotSupportedError, InvalidParameterError, SqlSyntaxError, UndefinedFunctionError
from dsdb.sql.functions.casts import CastContext
from dsdb.sql.parse import position_of
from dsdb.sql.text import fit_string
from dsdb.sql.types import BOOL, DOUBLE, NUMERIC, TEXT, SqlType, TypeName

_ASSIGNMENT = CastContext.ASSIGNMENT


@rule(exp.And, exp.Or)
def _bind_connector(node: exp.Expr, binder: Binder) -> exp.Expr:
    connector = exp.And if isinstance(node, exp.And) else exp.Or
    operands = []
    # A long chain leans to the left: it is taken apart by a loop, not by recursion.
    pending = [node]
    while pending:
        operand = pending.pop()
        if type(operand) is type(node):
            pending += [operand.args["expression"], operand.this]
        else:
            operands.append(binder.bind_condition(operand, connector.__name__.upper()))
    return balanced(connector, operands)


@rule(exp.Not)
def _bind_not(node: exp.Expr, binder: Binder) -> exp.Expr:
    return negated(binder.bind_condition(node.this, "NOT"))


def negated(operand: exp.Expr) -> exp.Expr:
    """Give NOT of a bound condition."""
    return mark(exp.Not(this=operand), BOOL, nullable=nullable_of(operand))


def comparable(left: exp.Expr, right: exp.Expr, position: int | None = None, symbol: str = "=") -> tuple[exp.Expr, exp.Expr]:
    """Give two bound operands in types that compare.

    Raises: UndefinedFunctionError, and what reading a literal as the other operand's type raises.
    """
    if is_unknown(left) and is_unknown(right):
        return coerce(left, TEXT), coerce(right, TEXT)
    if is_unknown(left):
        right, left = comparable(right, left, position, symbol)
        return left, right
    one = type_of(left)
    if is_unknown(right):
        return left, _like_operand(right, one)
    other = type_of(right)
    if one == other or _compare_alike(one, other):
        return left, right
    if TypeName.CHAR in (one.name, other.name) and one.is_text and other.is_text:
        return _compare_char(left, right)
    if one.is_numeric and other.is_numeric:
        return coerce(left, DOUBLE), coerce(right, DOUBLE)
    try:
        nodes, _ = unify([left, right], symbol)
    except DatatypeMismatchError:
        raise UndefinedFunctionError(
            f"operator does not exist: {one} {symbol} {other}", hint="cast one of the operands", position=position
        ) from None
    return nodes[0], nodes[1]


def _compare_alike(one: SqlType, other: SqlType) -> bool:
    exact = (TypeName.SMALLINT, TypeName.INT, TypeName.BIGINT, TypeName.DECIMAL)
    if one.name in exact and other.name in exact:
        return True
    if one.is_float and other.is_float:
        return True
    plain = (TypeName.TEXT, TypeName.VARCHAR)
    return one.name in plain and other.name in plain


def _like_operand(node: exp.Expr, type_: SqlType) -> exp.Expr:
    """Decide an UNKNOWN operand by the other operand's type."""
    if type_.name is TypeName.DECIMAL:
        return coerce(node, NUMERIC)
    if type_.name is TypeName.CHAR:
        decided = coerce(node, TEXT)
        value = constant_of(decided) if is_constant(decided) else None
        # CHAR(n) is stored with its blanks, so a literal is compared with them too; a longer one equals none.
        if isinstance(value, str) and type_.length is not None and len(value.rstrip(" ")) <= type_.length:
            return constant(fit_string(value.rstrip(" "), type_), type_)
        return decided if "parameter" not in decided.meta else coerce(decided, SqlType(TypeName.CHAR, length=type_.length))
    return coerce(node, TEXT if type_.is_text else type_)


def _compare_char(left: exp.Expr, right: exp.Expr) -> tuple[exp.Expr, exp.Expr]:
    if type_of(left).name is TypeName.CHAR and is_constant(right):
        value = constant_of(right)
        length = type_of(left).length
        if isinstance(value, str) and length is not None and len(value.rstrip(" ")) <= length:
            return left, constant(fit_string(value.rstrip(" "), type_of(left)), type_of(left))
    return coerce(left, TEXT, _ASSIGNMENT), coerce(right, TEXT, _ASSIGNMENT)


_COMPARISONS: dict[type[exp.Expr], str] = {
    exp.EQ: "=",
    exp.NEQ: "<>",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
    exp.NullSafeEQ: "IS NOT DISTINCT FROM",
    exp.NullSafeNEQ: "IS DISTINCT FROM",
}


@rule(*_COMPARISONS)
def _bind_comparison(node: exp.Expr, binder: Binder) -> exp.Expr:
    left, right = node.this, node.args["expression"]
    if isinstance(right, exp.Any | exp.All):
        return _bind_quantified(node, binder)
    if _row_of(left) is not None or _row_of(right) is not None:
        return _bind_row_comparison(node, binder)
    return compare(type(node), binder.bind(left), binder.bind(right), position_of(node))


def compare(class_: type[exp.Expr], left: exp.Expr, right: exp.Expr, position: int | None = None) -> exp.Expr:
    """Compare two bound operands."""
    left, right = comparable(left, right, position, _COMPARISONS[class_])
    null_safe = class_ in (exp.NullSafeEQ, exp.NullSafeNEQ)
    nullable = not null_safe and (nullable_of(left) or nullable_of(right))
    return mark(class_(this=left, expression=right), BOOL, nullable=nullable)


def _row_of(node: exp.Expr) -> list[exp.Expr] | None:
    if isinstance(node, exp.Tuple):
        return list(node.expressions)
    if isinstance(node, exp.Anonymous) and node.this == "row":
        return list(node.expressions)
    return None


def _bind_row_comparison(node: exp.Expr, binder: Binder) -> exp.Expr:
    left, right = _row_of(node.this), _row_of(node.args["expression"])
    position = position_of(node)
    if left is None or right is None:
        raise FeatureNotSupportedError("a row can only be compared with a row", position=position)
    if len(left) != len(right):
        raise SqlSyntaxError("unequal number of entries in row expressions", position=position)
    pairs = [(binder.bind(one), binder.bind(other)) for one, other in zip(left, right)]
    if isinstance(node, exp.EQ | exp.NEQ):
        equal = conjunction([compare(exp.EQ, one, other, position) for one, other in pairs])
        assert equal is not None
        return equal if isinstance(node, exp.EQ) else negated(equal)
    if not isinstance(node, exp.LT | exp.LTE | exp.GT | exp.GTE):
        raise FeatureNotSupportedError("IS DISTINCT FROM between rows is not supported", position=position)
    strict = exp.LT if isinstance(node, exp.LT | exp.LTE) else exp.GT
    # (a, b) < (c, d) is a < c OR (a = c AND b < d), from the last pair outwards.
    result = compare(type(node), *pairs[-1], position)
    for one, other in reversed(pairs[:-1]):
        equal = compare(exp.EQ, one.copy(), other.copy(), position)
        result = balanced(exp.Or, [compare(strict, one, other, position), balanced(exp.And, [equal, result])])
    return result


def _bind_quantified(node: exp.Expr, binder: Binder) -> exp.Expr:
    quantifier = node.args["expression"]
    inner = quantifier.this
    while isinstance(inner, exp.Paren):
        inner = inner.this
    left = binder.bind(node.this)
    every = isinstance(quantifier, exp.All)
    if isinstance(inner, exp.Array):
        compared = [compare(type(node), left.copy(), binder.bind(item), position_of(node)) for item in inner.expressions]
        if not compared:
            return constant(every, BOOL)
        return balanced(exp.And if every else exp.Or, compared)
    if not isinstance(inner, exp.Query | exp.Subquery):
        raise FeatureNotSupportedError("ANY and ALL take a sub-query or ARRAY[…]", position=position_of(node))
    query = binder.bind_subquery(inner)
    if is_unknown(left):
        left = coerce(left, type_of(query))
    bound = mark(type(quantifier)(this=query), type_of(query))
    return mark(type(node)(this=left, expression=bound), BOOL)


@rule(exp.Is)
def _bind_is(node: exp.Expr, binder: Binder) -> exp.Expr:
    operand = binder.bind(node.this)
    what = node.args["expression"]
    if isinstance(what, exp.Null):
        if is_unknown(operand):
            operand = coerce(operand, TEXT)
        result = mark(exp.Is(this=operand, expression=exp.Null()), BOOL, nullable=False)
    elif isinstance(what, exp.Boolean):
        operand = binder.bind_condition(node.this, "IS TRUE" if what.this else "IS FALSE")
        result = compare(exp.NullSafeEQ, operand, constant(bool(what.this), BOOL))
    elif isinstance(what, exp.Column | exp.Var) and what.name.lower() == "unknown":
        operand = binder.bind_condition(node.this, "IS UNKNOWN")
        result = mark(exp.Is(this=operand, expression=exp.Null()), BOOL, nullable=False)
    else:
        raise FeatureNotSupportedError(f"IS {what.sql(dialect='postgres')} is not supported", position=position_of(node))
    return negated(result) if node.args.get("negate") else result


@rule(exp.In)
def _bind_in(node: exp.Expr, binder: Binder) -> exp.Expr:
    query = node.args.get("query")
    if query is not None:
        if _row_of(node.this) is not None:
            raise FeatureNotSupportedError(
                "(…, …) IN (sub-query) is not supported", hint="use EXISTS with a condition for each column", position=position_of(node)
            )
        operand = binder.bind(node.this)
        bound = binder.bind_subquery(query)
        if is_unknown(operand):
            operand = coerce(operand, type_of(bound))
        return mark(exp.In(this=operand, query=bound), BOOL)
    if node.args.get("unnest") is not None or node.args.get("field") is not None:
        raise FeatureNotSupportedError("IN takes a list or a sub-query", position=position_of(node))
    if _row_of(node.this) is not None:
        rows = [compare_rows(node.this, item, binder) for item in node.expressions]
        return balanced(exp.Or, rows)
    operand = binder.bind(node.this)
    items = [binder.bind(item) for item in node.expressions]
    return make_in(operand, items, position_of(node))


def compare_rows(left: exp.Expr, right: exp.Expr, binder: Binder) -> exp.Expr:
    """Bind the equality of two row expressions."""
    return _bind_row_comparison(exp.EQ(this=left.copy(), expression=right.copy()), binder)


def make_in(operand: exp.Expr, items: list[exp.Expr], position: int | None) -> exp.Expr:
    """Give `operand IN (items)` of bound nodes."""
    if is_unknown(operand):
        nodes, _ = unify([operand, *items], "IN")
        operand, items = nodes[0], nodes[1:]
    pairs = [comparable(operand, item, position) for item in items]
    if any(left is not operand for left, _ in pairs):
        nodes, _ = unify([operand, *items], "IN")
        operand, items = nodes[0], nodes[1:]
    else:
        items = [item for _, item in pairs]
    nullable = nullable_of(operand) or any(nullable_of(item) for item in items)
    return mark(exp.In(this=operand, expressions=items), BOOL, nullable=nullable)


@rule(exp.Between)
def _bind_between(node: exp.Expr, binder: Binder) -> exp.Expr:
    position = position_of(node)
    operand = binder.bind(node.this)
    low, high = binder.bind(node.args["low"]), binder.bind(node.args["high"])
    if is_unknown(operand):
        nodes, _ = unify([operand, low, high], "BETWEEN")
        operand, low, high = nodes
    above = compare(exp.GTE, operand, low, position)
    below = compare(exp.LTE, operand.copy(), high, position)
    if node.args.get("symmetric"):
        swapped = [compare(exp.GTE, operand.copy(), high.copy(), position), compare(exp.LTE, operand.copy(), low.copy(), position)]
        return balanced(exp.Or, [balanced(exp.And, [above, below]), balanced(exp.And, swapped)])
    return balanced(exp.And, [above, below])


_ARITHMETIC: dict[type[exp.Expr], str] = {
    exp.Add: "+",
    exp.Sub: "-",
    exp.Mul: "*",
    exp.Div: "/",
    exp.Mod: "%",
    exp.BitwiseAnd: "&",
    exp.BitwiseOr: "|",
    exp.BitwiseXor: "#",
    exp.BitwiseLeftShift: "<<",
    exp.BitwiseRightShift: ">>",
    exp.Pow: "^",
    exp.DPipe: "||",
}


@rule(*_ARITHMETIC)
def _bind_arithmetic(node: exp.Expr, binder: Binder) -> exp.Expr:
    left, right = binder.bind(node.this), binder.bind(node.args["expression"])
    symbol = _ARITHMETIC[type(node)]
    if symbol == "||":
        left, right = _texts(left, right)
    return make_call(symbol, [left, right], position_of(node), node=type(node)())


def _texts(left: exp.Expr, right: exp.Expr) -> tuple[exp.Expr, exp.Expr]:
    """Let `||` take any value beside a text, as its text."""
    if type_of(left).is_text and not is_unknown(right) and type_of(right).name is not TypeName.BYTEA:
        return coerce(left, TEXT, _ASSIGNMENT), coerce(right, TEXT, _ASSIGNMENT)
    if type_of(right).is_text and not is_unknown(left) and type_of(left).name is not TypeName.BYTEA:
        return coerce(left, TEXT, _ASSIGNMENT), coerce(right, TEXT, _ASSIGNMENT)
    if is_unknown(left) != is_unknown(right):
        known = right if is_unknown(left) else left
        if type_of(known).name is not TypeName.BYTEA:
            return coerce(left, TEXT, _ASSIGNMENT), coerce(right, TEXT, _ASSIGNMENT)
    return left, right


_PREFIX: dict[type[exp.Expr], str] = {exp.Neg: "neg", exp.BitwiseNot: "~", exp.Sqrt: "sqrt", exp.Cbrt: "cbrt", exp.Abs: "abs"}


@rule(*_PREFIX)
def _bind_prefix(node: exp.Expr, binder: Binder) -> exp.Expr:
    if isinstance(node, exp.Neg) and isinstance(node.this, exp.Literal) and not node.this.is_string:
        # -9223372036854775808 is a BIGINT although its digits alone are not.
        least = _negative_literal(node.this.this)
        if least is not None:
            return least
    operand = binder.bind(node.this)
    if isinstance(node, exp.Neg) and is_constant(operand) and type_of(operand).name is TypeName.DECIMAL:
        value = constant_of(operand)
        if isinstance(value, Decimal):
            return constant(value.copy_negate() if value else value, type_of(operand))
    name = _PREFIX[type(node)]
    return make_call(name, [operand], position_of(node), node=type(node)() if name in ("neg", "~") else None)


def _negative_literal(text: str) -> exp.Expr | None:
    if not text.isdigit():
        return None
    value = -int(text)
    type_ = integer_type(value)
    return constant(value, type_) if type_.is_integer else None


_PATTERNS: dict[type[exp.Expr], str] = {
    exp.Like: "~~",
    exp.ILike: "~~*",
    exp.SimilarTo: "~",
    exp.RegexpLike: "~",
    exp.RegexpILike: "~*",
}


@rule(*_PATTERNS)
def _bind_pattern(node: exp.Expr, binder: Binder) -> exp.Expr:
    return _pattern(node, binder, None)


def _pattern(node: exp.Expr, binder: Binder, escape: str | None) -> exp.Expr:
    pattern = node.args["expression"]
    position = position_of(node)
    if isinstance(pattern, exp.Any | exp.All):
        raise FeatureNotSupportedError("LIKE ANY and LIKE ALL are not supported", position=position)
    operands = [binder.bind(node.this), binder.bind(pattern)]
    if isinstance(node, exp.SimilarTo):
        operands[1] = _similar_pattern(operands[1], position)
    if escape is not None:
        operands.append(constant(escape, TEXT))
    result = make_call(_PATTERNS[type(node)], operands, position)
    return negated(result) if node.args.get("negate") else result


def _similar_pattern(node: exp.Expr, position: int | None) -> exp.Expr:
    """Write SQL's regular expression as one of `~`.  Raises FeatureNotSupportedError unless it is a constant."""
    if not is_constant(node):
        raise FeatureNotSupportedError("SIMILAR TO takes a constant pattern", position=position)
    pattern = constant_of(node)
    if pattern is None:
        return constant(None, TEXT)
    parts: list[str] = []
    in_set = False
    characters = iter(str(pattern))
    for character in characters:
        if character == "\\":
            parts.append(re.escape(next(characters, "\\")))
        elif in_set:
            in_set = character != "]"
            parts.append(character)
        else:
            in_set = character == "["
            parts.append({"%": ".*", "_": ".", ".": "\\.", "^": "\\^", "$": "\\$"}.get(character, character))
    return constant(f"^(?:{''.join(parts)})$", TEXT)


@rule(exp.Escape)
def _bind_escape(node: exp.Expr, binder: Binder) -> exp.Expr:
    escape = node.args["expression"]
    if not isinstance(escape, exp.Literal) or not escape.is_string:
        raise FeatureNotSupportedError("ESCAPE takes one quoted character", position=position_of(node))
    if len(escape.this) > 1:
        raise InvalidParameterError("invalid escape string", hint="an escape is empty or one character", position=position_of(node))
    inner = node.this
    if isinstance(inner, exp.Not):
        return negated(_pattern(inner.this, binder, escape.this))
    if not isinstance(inner, exp.Like | exp.ILike):
        raise FeatureNotSupportedError("ESCAPE is only supported with LIKE and ILIKE", position=position_of(node))
    return _pattern(inner, binder, escape.this)
