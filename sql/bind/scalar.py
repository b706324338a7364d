"""Binds scalar expressions: each name to a column, each call to an overload, each node to a type.

    parsed tree ─▶ bind_scalar ─▶ bound tree ─▶ engine_sql (`dsdb.sql.bind.render`)
                                            └─▶ compile_scalar (`dsdb.sql.evaluate`)

The parsed tree is left as it was.  Calls to now() and its like become parameters behind the statement's own: a plan can be kept, and
every part of one execution sees the same moment.  The order of these is STATEMENT_VALUES.

Invariants:
- A syntax node that is not known here is refused (0A000), never passed on.

Not here: queries (the context's `bind_subquery` binds those), lists of columns (`*`).
"""

from sqlglot import exp

from dsdb.sql.bind import scalar_calls, scalar_leaves, scalar_operators, scalar_syntax
from dsdb.sql.bind.binder import STATEMENT_VALUES, BindContext, Binder, Scope, ScopeColumn, SubqueryBinder
from dsdb.sql.bind.bound import call_of, nullable_of, type_of
from dsdb.sql.bind.coerce import ParameterTypes, coerce, coerce_condition, common_type, unify
from dsdb.sql.bind.render import engine_sql, engine_tree, substitute_parameters
from dsdb.sql.bind.scalar_calls import bind_order, contains_aggregate, contains_window, is_aggregate
from dsdb.sql.functions.casts import CastContext
from dsdb.sql.types import SqlType

__all__ = [
    "STATEMENT_VALUES",
    "BindContext",
    "CastContext",
    "ParameterTypes",
    "Scope",
    "ScopeColumn",
    "SubqueryBinder",
    "bind_order",
    "bind_scalar",
    "call_of",
    "coerce",
    "coerce_condition",
    "common_type",
    "contains_aggregate",
    "contains_window",
    "engine_sql",
    "engine_tree",
    "is_aggregate",
    "nullable_of",
    "substitute_parameters",
    "type_of",
    "unify",
]

RULE_FILES = (scalar_leaves, scalar_operators, scalar_syntax, scalar_calls)
"""Imported for the rules that they register."""


def bind_scalar(expr: exp.Expr, scope: Scope, context: BindContext, *, expected: SqlType | None = None) -> exp.Expr:
    """Bind one expression; the result's type may be UNKNOWN if it is a NULL, quoted literal or parameter and nothing is expected.

    expected: the type to which the result is implicitly cast.

    Raises: SqlError's of the statement.
    """
    bound = Binder(scope, context).bind(expr)
    return bound if expected is None else coerce(bound, expected)
