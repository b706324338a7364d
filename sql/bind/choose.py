"""Chooses the overload of a call and moves its arguments to the overload's types.

Invariants:
- The arguments of a bound call have exactly the types that its overload names (a DECIMAL of any precision for numeric).
"""

import difflib
from collections.abc import Sequence

from sqlglot import exp

from dsdb.sql.bind.bound import call, constant_of, is_constant, nullable_of, type_of
from dsdb.sql.bind.coerce import coerce, common_type, is_unknown, unify
from dsdb.sql.errors import FeatureNotSupportedError, UndefinedFunctionError
from dsdb.sql.functions import BY_NAME, NOT_CONSTANT, POSTGRES_FUNCTIONS, TYPE_CODES, Overload, choose
from dsdb.sql.functions.casts import CastContext
from dsdb.sql.types import NUMERIC, TEXT, SqlType, TypeName


def choose_overload(name: str, arguments: Sequence[exp.Expr], position: int | None) -> Overload:
    """Find the overload for bound arguments.

    Raises: UndefinedFunctionError, FeatureNotSupportedError (functions that only Postgres has).
    """
    types = [type_of(argument) for argument in arguments]
    overload = choose(name, types)
    if overload is not None:
        return overload
    shown = ", ".join(str(type_) for type_ in types)
    if not (name[0].isalpha() or name[0] == "_"):
        operands = f"{types[0]} {name} {types[1]}" if len(types) == 2 else f"{name} {shown}"
        raise UndefinedFunctionError(
            f"operator does not exist: {operands}", hint="cast the operands to types that the operator takes", position=position
        )
    if name in BY_NAME:
        takes = ", ".join(f"{name}({', '.join(overload.arguments)})" for overload in BY_NAME[name][:4])
        raise UndefinedFunctionError(f"function {name}({shown}) does not exist", hint=f"there is {takes}", position=position)
    if name in POSTGRES_FUNCTIONS:
        raise FeatureNotSupportedError(f"the function {name} is not supported", position=position)
    close = difflib.get_close_matches(name, [known for known in BY_NAME if known[0].isalpha()], n=1)
    hint = f'did you mean "{close[0]}"?' if close else None
    raise UndefinedFunctionError(f"function {name}({shown}) does not exist", hint=hint, position=position)


def fit_arguments(overload: Overload, arguments: Sequence[exp.Expr]) -> tuple[list[exp.Expr], SqlType | None]:
    """Cast bound arguments to what the overload takes; give them and the type that `any` stands for."""
    fitted = list(arguments)
    shared = [index for index in range(len(fitted)) if overload.argument(index) == "any"]
    common: SqlType | None = None
    if shared:
        nodes, common = unify([fitted[index] for index in shared], overload.name.upper())
        for index, node in zip(shared, nodes):
            fitted[index] = node
    for index, node in enumerate(fitted):
        code = overload.argument(index)
        if code == "each":
            fitted[index] = coerce(node, TEXT) if is_unknown(node) else node
        elif code != "any":
            name = TYPE_CODES[code]
            # CHAR's blanks are not part of its text, so a function of text sees it without them.
            context = CastContext.ASSIGNMENT if type_of(node).name is TypeName.CHAR else CastContext.IMPLICIT
            fitted[index] = node if type_of(node).name is name else coerce(node, NUMERIC if code == "numeric" else SqlType(name), context)
    return fitted, common


def result_type(overload: Overload, arguments: Sequence[exp.Expr], common: SqlType | None) -> SqlType:
    """Give the type of a call of fitted arguments."""
    types = [type_of(argument) for argument in arguments]
    if overload.result_rule is not None:
        values = [constant_of(argument) if is_constant(argument) else NOT_CONSTANT for argument in arguments]
        return overload.result_rule(types, values)
    if overload.result == "any":
        assert common is not None, overload.key
        return TEXT if common.name is TypeName.VARCHAR else common
    return SqlType(TYPE_CODES[overload.result])


def make_call(name: str, arguments: Sequence[exp.Expr], position: int | None, *, node: exp.Expr | None = None) -> exp.Expr:
    """Give a call of bound arguments.  node: an operator node to fill (`this`, `expression`) in place of a function call.

    Raises: UndefinedFunctionError, FeatureNotSupportedError, DatatypeMismatchError.
    """
    overload = choose_overload(name, arguments, position)
    fitted, common = fit_arguments(overload, arguments)
    if node is None:
        node = exp.Anonymous(this=name, expressions=fitted)
    else:
        node.set("this", fitted[0])
        if len(fitted) > 1:
            node.set("expression", fitted[1])
    nullable = not overload.never_null and (not overload.strict or any(nullable_of(argument) for argument in fitted))
    result = call(node, overload.key, result_type(overload, fitted, common), nullable=nullable)
    if position is not None:
        result.meta["start"] = position - 1
    return result


def arguments_of(node: exp.Expr) -> list[exp.Expr]:
    """Give the bound arguments of a call node, in order."""
    if isinstance(node, exp.Anonymous):
        return list(node.expressions)
    operands = [node.this, node.args.get("expression")]
    return [operand for operand in operands if isinstance(operand, exp.Expr)]


__all__ = ["arguments_of", "choose_overload", "common_type", "fit_arguments", "make_call", "result_type"]
