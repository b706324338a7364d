"""Binds queries to the catalogue: SELECT, VALUES, set operations, WITH, and queries inside expressions.

    unbound sqlglot tree  ──▶  tree over unique engine names, base tables as inputs t1, t2, …   + the columns it gives
                                                                                               + the sources to read (`BaseSource`)

Invariants:
- The types of the columns are decided here; both sides of a set operation are cast to one type.
- A query that a table expression, a sub-query or the client reads has no UNKNOWN column: what nothing decided is TEXT.

Not here: one SELECT's clauses (`query_select`), FROM (`query_from`), stages (`dsdb.sql.plan`).
"""

from collections.abc import Sequence

import msgspec
from sqlglot import exp

from dsdb.sql.bind.bound import column, nullable_of, type_of
from dsdb.sql.bind.query_scope import BoundQuery, QueryScope, Relation, RelationColumn
from dsdb.sql.bind.query_select import bind_select
from dsdb.sql.bind.query_state import Clause, Cte, Environment, QueryState, refuse_clauses
from dsdb.sql.bind.query_tail import ordered, set_limits
from dsdb.sql.bind.scalar import CastContext, coerce, common_type, unify
from dsdb.sql.errors import (
    DatatypeMismatchError,
    DuplicateAliasError,
    FeatureNotSupportedError,
    InvalidColumnReferenceError,
    SqlSyntaxError,
)
from dsdb.sql.parse import position_of
from dsdb.sql.types import TEXT, UNKNOWN, SqlType


def bind_query(state: QueryState, node: exp.Expr, environment: Environment) -> BoundQuery:
    """Bind a query.  Raises what is wrong with it."""
    return _settled(state, _bind_open(state, node, environment))


def _bind_open(state: QueryState, node: exp.Expr, environment: Environment) -> BoundQuery:
    """Bind a query whose columns may stay UNKNOWN, for whoever decides their types."""
    with_ = node.args.get("with_")
    ctes: list[exp.CTE] = []
    if with_ is not None:
        ctes, environment = _bind_with(state, with_, environment)
    match node:
        case exp.Subquery():
            refuse_clauses(node, "this", "with_", "order", "limit", "offset", "alias")
            bound = _with_tail(state, node, _bind_open(state, node.this, environment), environment)
        case exp.Select():
            bound = bind_select(state, node, environment)
        case exp.Union() | exp.Except() | exp.Intersect():
            refuse_clauses(node, "this", "expression", "distinct", "with_", "order", "limit", "offset")
            bound = _with_tail(state, node, _bind_set_operation(state, node, environment), environment)
        case exp.Values():
            refuse_clauses(node, "expressions", "with_", "order", "limit", "offset", "alias")
            bound = _with_tail(state, node, _bind_values(state, node, environment), environment)
        case exp.Insert() | exp.Update() | exp.Delete():
            raise FeatureNotSupportedError("a statement that changes data inside a query is not supported", position=position_of(node))
        case _:
            raise SqlSyntaxError(f"{node.key} is not a query", position=position_of(node))
    if ctes:
        bound = _wrapped(state, bound) if bound.tree.args.get("with_") else bound
        bound.tree.set("with_", exp.With(expressions=ctes, recursive=bool(with_ is not None and with_.args.get("recursive"))))
    return bound


def _settled(state: QueryState, bound: BoundQuery) -> BoundQuery:
    if all(found.type != UNKNOWN for found in bound.columns):
        return bound
    return cast_query(state, bound, [TEXT if found.type == UNKNOWN else found.type for found in bound.columns])


def cast_query(state: QueryState, bound: BoundQuery, types: Sequence[SqlType]) -> BoundQuery:
    """Cast the columns of a query to these types, implicitly.  Raises DatatypeMismatchError, CannotCoerceError."""
    if all(found.type == wanted for found, wanted in zip(bound.columns, types)):
        return bound
    if not _is_plain(bound):
        bound = _wrapped(state, bound)
    assert isinstance(bound.tree, exp.Select), "a wrapped query is a SELECT"
    columns = []
    for alias, found, wanted in zip(bound.tree.expressions, bound.columns, types):
        alias.set("this", coerce(alias.this, wanted, CastContext.ASSIGNMENT))
        columns.append(msgspec.structs.replace(found, type=wanted))
    return BoundQuery(tree=bound.tree, columns=tuple(columns))


def _is_plain(bound: BoundQuery) -> bool:
    """Say whether casts may be put on the SELECT list itself: for a literal of type UNKNOWN this decides how it is read."""
    return isinstance(bound.tree, exp.Select) and not bound.tree.args.get("distinct")


def _wrapped(state: QueryState, bound: BoundQuery) -> BoundQuery:
    """Give `SELECT … FROM (query)` with new names."""
    projections: list[exp.Expr] = []
    columns = []
    for found in bound.columns:
        renamed = msgspec.structs.replace(found, engine_name=state.engine_name())
        node = column(found.engine_name, found.type, nullable=found.nullable, ordinal=found.ordinal)
        projections.append(exp.alias_(node, renamed.engine_name, copy=False))
        columns.append(renamed)
    inner = bound.tree.subquery(state.query_name(), copy=False)
    return BoundQuery(tree=exp.Select(expressions=projections, from_=exp.From(this=inner)), columns=tuple(columns))


def _with_tail(state: QueryState, node: exp.Expr, bound: BoundQuery, environment: Environment) -> BoundQuery:
    """Add the ORDER BY and LIMIT that stand behind a set operation, VALUES or a parenthesis: they see output columns only."""
    order = node.args.get("order")
    if order is None and not node.args.get("limit") and not node.args.get("offset"):
        return bound
    inner = _settled(state, bound)
    result = _wrapped(state, inner)
    assert isinstance(result.tree, exp.Select), "a wrapped query is a SELECT"
    scope = QueryScope((Relation(alias="", columns=inner.columns),), inner.columns, environment.parent, environment.ctes)
    elements = []
    for element in order.expressions if order is not None else ():
        elements.append(ordered(element, _order_key(state, element.this, result, scope)))
    if elements:
        result.tree.set("order", exp.Order(expressions=elements))
    set_limits(state, result.tree, node, environment)
    return result


def _order_key(state: QueryState, raw: exp.Expr, result: BoundQuery, scope: QueryScope) -> exp.Expr:
    if isinstance(raw, exp.Literal) and raw.is_int:
        number = int(raw.this)
        if not 1 <= number <= len(result.columns):
            raise InvalidColumnReferenceError(f"ORDER BY position {number} is not in select list", position=position_of(raw))
        found = result.columns[number - 1]
        return column(found.engine_name, found.type, nullable=found.nullable, ordinal=0)
    if not isinstance(raw, exp.Column):
        raise FeatureNotSupportedError(
            "an expression in ORDER BY behind a set operation or VALUES is not supported",
            hint="put the query into a sub-query, or order by a column's name or position",
            position=position_of(raw),
        )
    return state.scalar(raw, scope, Clause.ORDER_BY)


def _bind_set_operation(state: QueryState, node: exp.SetOperation, environment: Environment) -> BoundQuery:
    left, right = (_bind_open(state, side, environment) for side in (node.this, node.expression))
    return _combined(state, node, left, right)


def _combined(state: QueryState, node: exp.SetOperation, left: BoundQuery, right: BoundQuery) -> BoundQuery:
    word = node.key.upper()
    if len(left.columns) != len(right.columns):
        raise SqlSyntaxError(f"each {word} query must have the same number of columns", position=position_of(node.expression))
    types = []
    for ours, theirs in zip(left.columns, right.columns):
        types.append(common_type([ours.type, theirs.type], word))
    left, right = cast_query(state, left, types), cast_query(state, right, types)
    tree = type(node)(this=_operand(left.tree), expression=_operand(right.tree), distinct=node.args.get("distinct"))
    columns = tuple(
        msgspec.structs.replace(ours, nullable=ours.nullable or theirs.nullable) for ours, theirs in zip(left.columns, right.columns)
    )
    return BoundQuery(tree=tree, columns=columns)


def _operand(tree: exp.Query) -> exp.Expr:
    return exp.Subquery(this=tree)


def _bind_values(state: QueryState, node: exp.Values, environment: Environment) -> BoundQuery:
    scope = environment.parent or QueryScope((), (), None, environment.ctes)
    rows = [
        [state.scalar(value, scope, Clause.VALUES) for value in (row.expressions if isinstance(row, exp.Tuple) else [row])]
        for row in node.expressions
    ]
    if any(len(row) != len(rows[0]) for row in rows):
        raise SqlSyntaxError("VALUES lists must all be the same length", position=position_of(node))
    columns = []
    for index in range(len(rows[0])):
        if len(rows) > 1:
            values, found = unify([row[index] for row in rows], "VALUES")
            for row, value in zip(rows, values):
                row[index] = value
        else:
            found = type_of(rows[0][index])
        is_nullable = any(nullable_of(row[index]) for row in rows)
        columns.append(
            RelationColumn(name=f"column{index + 1}", engine_name=state.engine_name(), type=found, nullable=is_nullable, ordinal=index)
        )
    return BoundQuery(tree=_values_tree(state, rows, columns), columns=tuple(columns))


def _values_tree(state: QueryState, rows: Sequence[Sequence[exp.Expr]], columns: Sequence[RelationColumn]) -> exp.Select:
    if len(rows) == 1:
        named = [exp.alias_(value, found.engine_name, copy=False) for value, found in zip(rows[0], columns)]
        return exp.Select(expressions=named)
    names = [exp.to_identifier(found.engine_name) for found in columns]
    alias = exp.TableAlias(this=exp.to_identifier(state.query_name()), columns=names)
    values = exp.Values(expressions=[exp.Tuple(expressions=list(row)) for row in rows], alias=alias)
    return exp.Select(expressions=[exp.Star()], from_=exp.From(this=values))


def _bind_with(state: QueryState, with_: exp.With, environment: Environment) -> tuple[list[exp.CTE], Environment]:
    refuse_clauses(with_, "expressions", "recursive")
    trees: list[exp.CTE] = []
    own: set[str] = set()
    for node in with_.expressions:
        refuse_clauses(node, "this", "alias", "materialized")
        name = node.args["alias"].name
        if name in own:
            raise DuplicateAliasError(f'WITH query name "{name}" specified more than once', position=position_of(node))
        own.add(name)
        engine_name = state.query_name()
        if with_.args.get("recursive") and _refers_to(node.this, name):
            bound = _bind_recursive(state, node, engine_name, environment)
        else:
            bound = bind_query(state, node.this, environment)
        columns = _named_columns(node, bound.columns)
        names = [exp.to_identifier(found.engine_name) for found in columns]
        alias = exp.TableAlias(this=exp.to_identifier(engine_name), columns=names)
        trees.append(exp.CTE(this=bound.tree, alias=alias, materialized=node.args.get("materialized")))
        environment = environment.with_ctes({name: Cte(engine_name=engine_name, columns=columns)})
    return trees, environment


def _refers_to(query: exp.Expr, name: str) -> bool:
    return any(table.name == name and not table.db for table in query.find_all(exp.Table))


def _named_columns(node: exp.CTE, columns: Sequence[RelationColumn]) -> tuple[RelationColumn, ...]:
    alias = node.args["alias"]
    names = [identifier.name for identifier in alias.columns]
    if len(names) > len(columns):
        raise InvalidColumnReferenceError(
            f'WITH query "{alias.name}" has {len(columns)} columns available but {len(names)} columns specified', position=position_of(node)
        )
    names += [found.name for found in columns[len(names) :]]
    return tuple(msgspec.structs.replace(found, name=name) for found, name in zip(columns, names))


def _bind_recursive(state: QueryState, node: exp.CTE, engine_name: str, environment: Environment) -> BoundQuery:
    """Bind `start UNION [ALL] step`: the start decides the columns' types, which the step sees by the query's name."""
    query, name = node.this, node.args["alias"].name
    if not isinstance(query, exp.Union) or any(query.args.get(part) for part in ("order", "limit", "offset", "with_")):
        raise FeatureNotSupportedError(
            f'recursive query "{name}" does not have the form non-recursive-term UNION [ALL] recursive-term', position=position_of(node)
        )
    refuse_clauses(query, "this", "expression", "distinct")
    if _refers_to(query.this, name):
        raise FeatureNotSupportedError(f'recursive reference to query "{name}" must not appear within its non-recursive term')
    start = bind_query(state, query.this, environment)
    columns = _named_columns(node, start.columns)
    inside = environment.with_ctes({name: Cte(engine_name=engine_name, columns=columns)})
    step = bind_query(state, query.expression, inside)
    if len(step.columns) != len(columns):
        raise SqlSyntaxError("each UNION query must have the same number of columns", position=position_of(query.expression))
    for index, (ours, theirs) in enumerate(zip(columns, step.columns)):
        if common_type([ours.type, theirs.type]) != ours.type:
            raise DatatypeMismatchError(
                f'recursive query "{name}" column {index + 1} has type {ours.type} in non-recursive term but type {theirs.type} overall',
                hint="cast the output of the non-recursive term to the correct type",
            )
    step = cast_query(state, step, [found.type for found in columns])
    tree = exp.Union(this=_operand(start.tree), expression=_operand(step.tree), distinct=query.args.get("distinct"))
    return BoundQuery(tree=tree, columns=start.columns)
