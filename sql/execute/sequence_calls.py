"""nextval, currval, lastval and setval in statements: computed at the gateway before the rest is bound, once for each call written.

    SELECT nextval('s'), 1      ─▶  SELECT 7 AS nextval, 1
    INSERT … VALUES (nextval('s'), 'x'), (nextval('s'), 'y')

Invariants:
- Calls are made in the order of the text, and stand only where each is made exactly once: the SELECT list of a query without FROM,
  and VALUES.
"""

from collections.abc import Sequence

import msgspec
from sqlglot import exp

from dsdb.sql.errors import (
    FeatureNotSupportedError,
    InvalidParameterError,
    ObjectInUseError,
    UndefinedFunctionError,
    UndefinedParameterError,
)
from dsdb.sql.execute.binding import StatementBinder, name_parts
from dsdb.sql.execute.services import Execution
from dsdb.sql.parse import ParsedStatement, position_of
from dsdb.sql.schema import SequenceDescriptor
from dsdb.storage.datum import Datum

_CALLS = frozenset({"nextval", "currval", "lastval", "setval"})


class SequenceStateError(ObjectInUseError):
    """currval or lastval before the session's first nextval."""

    sqlstate = "55000"


def has_sequence_calls(node: exp.Expr) -> bool:
    """Say whether a statement calls a sequence function."""
    return any(call.name in _CALLS for call in node.find_all(exp.Anonymous))


async def with_calls_made(statement: ParsedStatement, binder: StatementBinder, execution: Execution) -> ParsedStatement:
    """Make all calls, and give the statement with their values in their places."""
    assert isinstance(statement.tree, exp.Expr), statement
    tree = statement.tree.copy()
    _refuse_places(tree)
    if isinstance(tree, exp.Select):
        for item in list(tree.expressions):
            if isinstance(item, exp.Anonymous) and item.name in _CALLS:
                item.replace(exp.alias_(item.copy(), item.name, quoted=True))
    # A walk goes by depth; the text's order is that of the tokens.
    calls = [call for call in tree.find_all(exp.Anonymous) if call.name in _CALLS]
    for call in sorted(calls, key=lambda each: position_of(each) or 0):
        value = await _call(call, binder, execution)
        literal = exp.Literal.number(abs(value))
        call.replace(exp.cast(exp.Neg(this=literal) if value < 0 else literal, exp.DType.BIGINT))
    return msgspec.structs.replace(statement, tree=tree)


def _refuse_places(tree: exp.Expr) -> None:
    for call in tree.find_all(exp.Anonymous):
        if call.name not in _CALLS:
            continue
        query = call.find_ancestor(exp.Select, exp.Values, exp.Insert, exp.Update, exp.Delete, exp.Create)
        once = isinstance(query, exp.Values) and isinstance(query.parent, exp.Insert)
        once = once or (isinstance(query, exp.Select) and query is tree and not query.args.get("from_") and not query.args.get("where"))
        if not once or call.find_ancestor(exp.Case, exp.Coalesce):
            raise FeatureNotSupportedError(
                f"{call.name}() is only supported in VALUES, in DEFAULT, and in a SELECT without FROM", position=position_of(call)
            )


async def _call(call: exp.Anonymous, binder: StatementBinder, execution: Execution) -> int:
    session, arguments = execution.session, call.expressions
    wanted = {"nextval": (1,), "currval": (1,), "lastval": (0,), "setval": (2, 3)}[call.name]
    if len(arguments) not in wanted:
        raise UndefinedFunctionError(f"function {call.name} does not take {len(arguments)} arguments", position=position_of(call))
    if call.name == "lastval":
        if session.last_sequence is None:
            raise SequenceStateError("lastval is not yet defined in this session")
        return session.sequence_values[session.last_sequence]
    sequence = _sequence(arguments[0], binder, execution.parameters)
    number = sequence.sequence_id
    if call.name == "nextval":
        [value] = await execution.next_values(sequence, 1)
        session.sequence_values[number] = value
        session.last_sequence = number
        return value
    if call.name == "currval":
        if number not in session.sequence_values:
            raise SequenceStateError(f'currval of sequence "{sequence.name}" is not yet defined in this session')
        return session.sequence_values[number]
    value = _integer(arguments[1], execution.parameters)
    is_called = len(arguments) < 3 or _constant(arguments[2], execution.parameters) is True
    await execution.set_sequence(sequence, value, is_called=is_called)
    if is_called:
        session.sequence_values[number] = value
    return value


def _sequence(node: exp.Expr, binder: StatementBinder, parameters: Sequence[Datum]) -> SequenceDescriptor:
    name = _constant(node.this if isinstance(node, exp.Cast) else node, parameters)
    if not isinstance(name, str):
        raise InvalidParameterError("a sequence is named by text", position=position_of(node))
    return binder.sequence_named(name_parts(name))


def _integer(node: exp.Expr, parameters: Sequence[Datum]) -> int:
    value = _constant(node, parameters)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidParameterError("setval takes an integer", position=position_of(node))
    return value


def _constant(node: exp.Expr, parameters: Sequence[Datum]) -> Datum:
    match node:
        case exp.Literal() if node.is_string:
            return str(node.this)
        case exp.Literal() if node.this.isdigit():
            return int(node.this)
        case exp.Neg():
            value = _constant(node.this, parameters)
            if isinstance(value, int):
                return -value
        case exp.Boolean():
            return bool(node.this)
        case exp.Parameter():
            number = int(node.this.this)
            if number > len(parameters):
                raise UndefinedParameterError(f"there is no parameter ${number}")
            return parameters[number - 1]
        case exp.Paren() | exp.Cast():
            return _constant(node.this, parameters)
    raise FeatureNotSupportedError("sequence functions take constants", position=position_of(node))
