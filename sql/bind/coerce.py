"""Moving bound nodes to other types: casts by context, common types, parameters and literals whose type the context decides.

Invariants:
- A node given back by `coerce` has the wanted type, or is a DECIMAL where any DECIMAL is wanted.
- A constant is converted at once, exactly; its text is never left for the engine to read.
"""

from collections.abc import Sequence

from sqlglot import exp

from dsdb.sql.bind.bound import constant, constant_of, datum_type, decimal_type, is_constant, mark, nullable_of, type_of
from dsdb.sql.errors import CannotCoerceError, DatatypeMismatchError, SqlError
from dsdb.sql.functions.casts import CastContext, cast_context, cast_function
from dsdb.sql.functions.decimals import decimal_of, width
from dsdb.sql.text import parse_text
from dsdb.sql.types import BOOL, NUMERIC, TEXT, UNKNOWN, SqlType, TypeName


class ParameterTypes:
    """The types of a statement's parameters, declared by the client or decided by the first context that needs one."""

    def __init__(self, declared: Sequence[SqlType] = ()) -> None:
        self._types = dict(enumerate(declared, start=1))

    def get(self, number: int) -> SqlType:
        """Give the type of a parameter, UNKNOWN if nothing has decided it."""
        return self._types.get(number, UNKNOWN)

    def decide(self, number: int, type_: SqlType) -> None:
        """Record the type of a parameter."""
        self._types[number] = type_

    def types(self, count: int) -> tuple[SqlType, ...]:
        """Give the types of parameters 1 … count."""
        return tuple(self.get(number) for number in range(1, count + 1))

    def __deepcopy__(self, memo: object) -> "ParameterTypes":
        return self  # nodes are copied; what they decide stays the statement's


def is_unknown(node: exp.Expr) -> bool:
    """Say whether a node's type is still open."""
    return type_of(node).name is TypeName.UNKNOWN


def coerce(node: exp.Expr, target: SqlType, context: CastContext = CastContext.IMPLICIT) -> exp.Expr:
    """Give the node as a value of `target`.

    Raises: DatatypeMismatchError, CannotCoerceError, and what reading a literal as its type raises.
    """
    source = type_of(node)
    if source == target:
        return node
    if source.name is TypeName.UNKNOWN:
        return _decide(node, target)
    if target == NUMERIC and (source.name is TypeName.DECIMAL or source.is_integer):
        return _as_decimal(node, source)
    if _is_same_value(source, target):
        return mark(node, target, nullable=nullable_of(node)) if is_constant(node) else node
    needed = cast_context(source, target)
    if needed is None or needed > context:
        position = node.meta.get("start")
        place = None if position is None else position + 1
        if context is CastContext.EXPLICIT:
            raise CannotCoerceError(f"cannot cast type {source} to {target}", position=place)
        raise DatatypeMismatchError(
            f"expression is of type {source}, but {target} is needed", hint=f"write CAST(… AS {target})" if needed else None, position=place
        )
    return cast(node, target, explicit=context is CastContext.EXPLICIT)


def cast(node: exp.Expr, target: SqlType, *, explicit: bool) -> exp.Expr:
    """Cast a node whose type is known, by a cast that exists; constants at once."""
    source = type_of(node)
    if is_constant(node):
        value = constant_of(node)
        if value is None:
            return constant(None, target)
        function = cast_function(source, target, explicit=explicit)
        try:
            value = value if function is None else function(value)
        except SqlError as error:
            raise _placed(error, node) from None
        return constant(value, target)
    cast_node = exp.Cast(this=node, to=exp.DataType(this=exp.DataType.Type.UNKNOWN))
    return mark(cast_node, target, nullable=nullable_of(node), explicit=explicit)


def _is_same_value(source: SqlType, target: SqlType) -> bool:
    """Say whether each value of `source` is one of `target` as it is."""
    if target.name is TypeName.TEXT:
        return source.name is TypeName.VARCHAR
    if source.name is TypeName.VARCHAR and target.name is TypeName.VARCHAR:
        return target.length is None or (source.length is not None and source.length <= target.length)
    return target.name is TypeName.VARCHAR and target.length is None and source.name is TypeName.TEXT


def _decide(node: exp.Expr, target: SqlType) -> exp.Expr:
    if "parameter" in node.meta:
        # A length or precision belongs to the column, not to what is sent for it: the cast to it comes on top.
        plain = SqlType(target.name) if target.length is None else TEXT
        node.meta["parameters"].decide(node.meta["parameter"], plain)
        mark(node, plain)
        return coerce(node, target, CastContext.ASSIGNMENT)
    if is_constant(node):
        value = constant_of(node)
        if value is None:
            return constant(None, target)
        assert isinstance(value, str), node
        try:
            datum = parse_text(value, target)
        except SqlError as error:
            raise _placed(error, node) from None
        decided = datum_type(datum) if target == NUMERIC else target
        return constant(datum, decided, position=_position(node))
    mark(node, target, nullable=nullable_of(node))
    return node


def _as_decimal(node: exp.Expr, source: SqlType) -> exp.Expr:
    """Give a DECIMAL or an integer as a DECIMAL of its own width."""
    if source.name is TypeName.DECIMAL:
        return node
    if is_constant(node):
        value = constant_of(node)
        function = cast_function(source, NUMERIC)
        datum = None if value is None or function is None else function(value)
        return constant(datum, decimal_of(*width(source)) if datum is None else decimal_type(datum))
    return cast(node, decimal_of(*width(source)), explicit=False)


def _position(node: exp.Expr) -> int | None:
    start = node.meta.get("start")
    return None if start is None else int(start) + 1


def _placed(error: SqlError, node: exp.Expr) -> SqlError:
    if error.position is None:
        error.position = _position(node)
    return error


def common_type(types: Sequence[SqlType], what: str = "UNION") -> SqlType:
    """Give the type that all of these become where they meet; TEXT if nothing decides.

    what: the construct, for the message.

    Raises: DatatypeMismatchError.
    """
    known = [type_ for type_ in types if type_.name is not TypeName.UNKNOWN]
    if not known:
        return TEXT
    result = known[0]
    for type_ in known[1:]:
        result = _common_pair(result, type_, what)
    return result


def _common_pair(left: SqlType, right: SqlType, what: str) -> SqlType:
    if left == right:
        return left
    exact = left.is_numeric and right.is_numeric and not (left.is_float or right.is_float)
    if exact and TypeName.DECIMAL in (left.name, right.name):
        return _common_decimal(left, right)
    if left.is_text and right.is_text:
        return SqlType(TypeName.VARCHAR) if left.name is right.name is TypeName.VARCHAR else TEXT
    if cast_context(right, left) is CastContext.IMPLICIT:
        return left
    if cast_context(left, right) is CastContext.IMPLICIT:
        return right
    raise DatatypeMismatchError(f"{what} types {left} and {right} cannot be matched")


def _common_decimal(left: SqlType, right: SqlType) -> SqlType:
    if NUMERIC in (left, right):
        return NUMERIC
    (p1, s1), (p2, s2) = width(left), width(right)
    return decimal_of(max(p1 - s1, p2 - s2) + max(s1, s2), max(s1, s2))


def unify(nodes: Sequence[exp.Expr], what: str) -> tuple[list[exp.Expr], SqlType]:
    """Coerce nodes to their common type.

    Raises: DatatypeMismatchError, and what reading a literal as that type raises.
    """
    type_ = common_type([type_of(node) for node in nodes], what)
    if type_.name is TypeName.DECIMAL and any(is_constant(node) and is_unknown(node) for node in nodes):
        # A quoted number brings its own digits.
        nodes = [coerce(node, NUMERIC) if is_constant(node) and is_unknown(node) else node for node in nodes]
        type_ = common_type([type_of(node) for node in nodes], what)
    if type_ == NUMERIC:
        return [cast(node, NUMERIC, explicit=False) if type_of(node).is_integer else coerce(node, NUMERIC) for node in nodes], type_
    return [coerce(node, type_, CastContext.ASSIGNMENT) for node in nodes], type_


def coerce_condition(node: exp.Expr, clause: str) -> exp.Expr:
    """Give a node as a BOOL, for WHERE, CHECK, CASE WHEN and their like.

    Raises: DatatypeMismatchError.
    """
    if is_unknown(node) or type_of(node) == BOOL:
        return coerce(node, BOOL)
    raise DatatypeMismatchError(f"argument of {clause} must be type boolean, not type {type_of(node)}", position=_position(node))
