"""Runs bound scalar expressions on single rows, without the engine: keys, DEFAULTs, CHECKs, the point path.

A bound tree is compiled once to nested closures (row, parameters) → datum; `row` is any sequence of datums, `columns` says where in it
each engine name stands.

Invariants:
- Results are Postgres's: three-valued logic, checked integers, exact decimals; errors are SqlError's.
- AND, OR, CASE and COALESCE evaluate from left to right and stop when the result is known.
- What `is_evaluable` accepts, `compile_scalar` compiles.

Not here: aggregates, windows, sub-queries, functions that only the engine has.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, TypeAlias

from sqlglot import exp

from dsdb.sql.bind.bound import call_of, constant_of, is_constant, type_of
from dsdb.sql.bind.choose import arguments_of
from dsdb.sql.functions import OVERLOADS, FunctionKind
from dsdb.sql.functions.casts import cast_function, interval_span
from dsdb.sql.types import SqlType, TypeName
from dsdb.storage.datum import Datum

Evaluator: TypeAlias = Callable[[Sequence[Any], Sequence[Any]], Any]
"""(row, parameters) → datum."""


def compile_scalar(bound: exp.Expr, columns: Mapping[str, int]) -> Callable[[Sequence[Datum], Sequence[Datum]], Datum]:
    """Compile a bound expression; columns: the place of each engine name in the row.

    The parameters of a call are the statement's own, then STATEMENT_VALUES.

    Raises: KeyError for a column that `columns` lacks.
    """
    return _compile(bound, columns)


def is_evaluable(bound: exp.Expr) -> bool:
    """Say whether `compile_scalar` can compile an expression."""
    for node in bound.walk():
        if isinstance(node, exp.Query | exp.Subquery | exp.Exists | exp.Window | exp.Filter | exp.Any | exp.All):
            return False
        key = call_of(node)
        if key is not None and (OVERLOADS[key].kind is not FunctionKind.SCALAR or OVERLOADS[key].evaluate is None):
            return False
    return True


def comparison_key(type_: SqlType) -> Callable[[Any], Any] | None:
    """Give what values of a type are compared by, or None if by themselves: intervals by length, floats and decimals with NaN last."""
    if type_.name is TypeName.INTERVAL:
        return interval_span
    if type_.is_float:
        return _float_key
    if type_.name is TypeName.DECIMAL:
        return _decimal_key
    return None


def _float_key(value: float) -> tuple[bool, float]:
    return (True, 0.0) if value != value else (False, value)


def _decimal_key(value: Any) -> tuple[bool, Any]:
    return (True, 0) if isinstance(value, Decimal) and value.is_nan() else (False, value)


def _compile(node: exp.Expr, columns: Mapping[str, int]) -> Evaluator:
    if is_constant(node):
        value = constant_of(node)
        return lambda row, parameters: value
    if call_of(node) is not None:
        return _compile_call(node, columns)
    return _COMPILERS[type(node)](node, columns)


def _compile_column(node: exp.Expr, columns: Mapping[str, int]) -> Evaluator:
    index = columns[node.name]
    return lambda row, parameters: row[index]


def _compile_parameter(node: exp.Expr, _: Mapping[str, int]) -> Evaluator:
    index = node.meta["parameter"] - 1
    return lambda row, parameters: parameters[index]


def _compile_call(node: exp.Expr, columns: Mapping[str, int]) -> Evaluator:
    key = call_of(node)
    assert key is not None
    overload = OVERLOADS[key]
    arguments = arguments_of(node)
    assert overload.evaluate is not None, key
    function: Callable[..., Any] = overload.evaluate
    if overload.typed:
        function = function([type_of(argument) for argument in arguments], type_of(node))
    evaluators = [_compile(argument, columns) for argument in arguments]
    if not overload.strict:
        return lambda row, parameters: function(*[evaluate(row, parameters) for evaluate in evaluators])
    if len(evaluators) == 1:
        return _strict_one(function, evaluators[0])
    if len(evaluators) == 2:
        return _strict_two(function, evaluators[0], evaluators[1])

    def strict(row: Sequence[Any], parameters: Sequence[Any]) -> Any:
        values = [evaluate(row, parameters) for evaluate in evaluators]
        return None if None in values else function(*values)

    return strict


def _strict_one(function: Callable[[Any], Any], operand: Evaluator) -> Evaluator:
    def evaluate(row: Sequence[Any], parameters: Sequence[Any]) -> Any:
        value = operand(row, parameters)
        return None if value is None else function(value)

    return evaluate


def _strict_two(function: Callable[[Any, Any], Any], left: Evaluator, right: Evaluator) -> Evaluator:
    def evaluate(row: Sequence[Any], parameters: Sequence[Any]) -> Any:
        one, other = left(row, parameters), right(row, parameters)
        return None if one is None or other is None else function(one, other)

    return evaluate


def _compile_connector(node: exp.Expr, columns: Mapping[str, int]) -> Evaluator:
    decisive = isinstance(node, exp.Or)
    operands = [_compile(operand, columns) for operand in node.flatten()]

    def evaluate(row: Sequence[Any], parameters: Sequence[Any]) -> Any:
        result: bool | None = not decisive
        for operand in operands:
            value = operand(row, parameters)
            if value is decisive:
                return decisive
            if value is None:
                result = None
        return result

    return evaluate


def _compile_not(node: exp.Expr, columns: Mapping[str, int]) -> Evaluator:
    return _strict_one(operator.not_, _compile(node.this, columns))


_OPERATORS: dict[type[exp.Expr], Callable[[Any, Any], bool]] = {
    exp.EQ: operator.eq,
    exp.NEQ: operator.ne,
    exp.LT: operator.lt,
    exp.LTE: operator.le,
    exp.GT: operator.gt,
    exp.GTE: operator.ge,
}


def _keyed(node: exp.Expr, columns: Mapping[str, int], key: Callable[[Any], Any] | None) -> Evaluator:
    evaluate = _compile(node, columns)
    return evaluate if key is None else _strict_one(key, evaluate)


def _pair_key(left: exp.Expr, right: exp.Expr) -> Callable[[Any], Any] | None:
    return comparison_key(type_of(left)) or comparison_key(type_of(right))


def _compile_comparison(node: exp.Expr, columns: Mapping[str, int]) -> Evaluator:
    left, right = node.this, node.args["expression"]
    key = _pair_key(left, right)
    return _strict_two(_OPERATORS[type(node)], _keyed(left, columns, key), _keyed(right, columns, key))


def _compile_null_safe(node: exp.Expr, columns: Mapping[str, int]) -> Evaluator:
    left, right = node.this, node.args["expression"]
    key = _pair_key(left, right)
    one, other = _keyed(left, columns, key), _keyed(right, columns, key)
    equal = isinstance(node, exp.NullSafeEQ)

    def evaluate(row: Sequence[Any], parameters: Sequence[Any]) -> bool:
        first, second = one(row, parameters), other(row, parameters)
        same = first is second if first is None or second is None else first == second
        return same is equal

    return evaluate


def _compile_is_null(node: exp.Expr, columns: Mapping[str, int]) -> Evaluator:
    operand = _compile(node.this, columns)
    return lambda row, parameters: operand(row, parameters) is None


def _compile_in(node: exp.Expr, columns: Mapping[str, int]) -> Evaluator:
    key = comparison_key(type_of(node.this))
    for item in node.expressions:
        key = key or comparison_key(type_of(item))
    operand = _keyed(node.this, columns, key)
    if all(is_constant(item) for item in node.expressions):
        values = [constant_of(item) for item in node.expressions]
        known = frozenset(value if key is None else key(value) for value in values if value is not None)
        missing = None if None in values else False

        def in_constants(row: Sequence[Any], parameters: Sequence[Any]) -> bool | None:
            value = operand(row, parameters)
            return None if value is None else True if value in known else missing

        return in_constants
    items = [_keyed(item, columns, key) for item in node.expressions]

    def evaluate(row: Sequence[Any], parameters: Sequence[Any]) -> bool | None:
        value = operand(row, parameters)
        if value is None:
            return None
        result: bool | None = False
        for item in items:
            other = item(row, parameters)
            if other is None:
                result = None
            elif other == value:
                return True
        return result

    return evaluate


def _compile_case(node: exp.Expr, columns: Mapping[str, int]) -> Evaluator:
    branches = [(_compile(branch.this, columns), _compile(branch.args["true"], columns)) for branch in node.args["ifs"]]
    default = _compile(node.args["default"], columns)

    def evaluate(row: Sequence[Any], parameters: Sequence[Any]) -> Any:
        for condition, value in branches:
            if condition(row, parameters):
                return value(row, parameters)
        return default(row, parameters)

    return evaluate


def _compile_coalesce(node: exp.Expr, columns: Mapping[str, int]) -> Evaluator:
    operands = [_compile(operand, columns) for operand in [node.this, *node.expressions]]

    def evaluate(row: Sequence[Any], parameters: Sequence[Any]) -> Any:
        for operand in operands:
            value = operand(row, parameters)
            if value is not None:
                return value
        return None

    return evaluate


def _compile_cast(node: exp.Expr, columns: Mapping[str, int]) -> Evaluator:
    operand = _compile(node.this, columns)
    function = cast_function(type_of(node.this), type_of(node), explicit=bool(node.meta.get("explicit")))
    return operand if function is None else _strict_one(function, operand)


_COMPILERS: dict[type[exp.Expr], Callable[[exp.Expr, Mapping[str, int]], Evaluator]] = {
    exp.Column: _compile_column,
    exp.Parameter: _compile_parameter,
    exp.And: _compile_connector,
    exp.Or: _compile_connector,
    exp.Not: _compile_not,
    **dict.fromkeys(_OPERATORS, _compile_comparison),
    exp.NullSafeEQ: _compile_null_safe,
    exp.NullSafeNEQ: _compile_null_safe,
    exp.Is: _compile_is_null,
    exp.In: _compile_in,
    exp.Case: _compile_case,
    exp.Coalesce: _compile_coalesce,
    exp.Cast: _compile_cast,
    exp.Paren: lambda node, columns: _compile(node.this, columns),
}
