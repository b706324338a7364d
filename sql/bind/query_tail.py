"""What may follow any query: ORDER BY, LIMIT, OFFSET, FETCH.

Not here: the values of LIMIT and OFFSET, which are known when the query runs (`dsdb.sql.plan.stages`).
"""

from sqlglot import exp

from dsdb.sql.bind.query_scope import QueryScope
from dsdb.sql.bind.query_state import Clause, Environment, QueryState, refuse_clauses
from dsdb.sql.bind.scalar import CastContext, coerce
from dsdb.sql.errors import FeatureNotSupportedError, InvalidColumnReferenceError, UndefinedColumnError, UndefinedTableError
from dsdb.sql.parse import position_of
from dsdb.sql.types import BIGINT

_NO_LIMIT = ("ALL", "all")


def ordered(element: exp.Expr, node: exp.Expr) -> exp.Ordered:
    """Give a bound element of ORDER BY in the place of an unbound one."""
    if not isinstance(element, exp.Ordered):
        return exp.Ordered(this=node, desc=False, nulls_first=False)
    refuse_clauses(element, "this", "desc", "nulls_first")
    return exp.Ordered(this=node, desc=bool(element.args.get("desc")), nulls_first=bool(element.args.get("nulls_first")))


def set_limits(state: QueryState, body: exp.Select, query: exp.Expr, environment: Environment) -> None:
    """Bind LIMIT (or FETCH) and OFFSET of `query` into `body`."""
    scope = QueryScope((), (), None, environment.ctes)
    limit, offset = query.args.get("limit"), query.args.get("offset")
    count: exp.Expr | None = None
    if isinstance(limit, exp.Fetch):
        options = limit.args.get("limit_options")
        if options is not None and (options.args.get("with_ties") or options.args.get("percent")):
            raise FeatureNotSupportedError("FETCH … WITH TIES and PERCENT are not supported", position=position_of(query))
        count = limit.args.get("count") or exp.Literal.number(1)
    elif limit is not None:
        refuse_clauses(limit, "expression")
        count = limit.expression
    if count is not None and not isinstance(count, exp.Null) and not (isinstance(count, exp.Var) and count.name in _NO_LIMIT):
        body.set("limit", exp.Limit(expression=_count(state, count, scope, "LIMIT")))
    if offset is not None:
        refuse_clauses(offset, "expression")
        if not isinstance(offset.expression, exp.Null):
            body.set("offset", exp.Offset(expression=_count(state, offset.expression, scope, "OFFSET")))


def _count(state: QueryState, raw: exp.Expr, scope: QueryScope, clause: str) -> exp.Expr:
    try:
        bound = state.scalar(raw, scope, Clause.LIMIT)
    except (UndefinedColumnError, UndefinedTableError) as error:
        if any(isinstance(node, exp.Column) for node in raw.walk(prune=lambda node: isinstance(node, exp.Query))):
            raise InvalidColumnReferenceError(f"argument of {clause} must not contain variables", position=error.position) from error
        raise
    return coerce(bound, BIGINT, CastContext.ASSIGNMENT)
