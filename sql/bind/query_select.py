"""Binds one SELECT: its clauses in the order in which they take effect.

    FROM ▸ WHERE ▸ GROUP BY ▸ HAVING ▸ SELECT list ▸ DISTINCT ▸ ORDER BY ▸ LIMIT

Invariants:
- Each output column has a new engine name, and each clause behind the SELECT list that means an output column says that name.
- WHERE's conjuncts are consumed once: as filters of a source, or in the query; what follows from them may act early beside them.

Not here: set operations, VALUES, WITH (`query`).
"""

from collections.abc import Sequence

import msgspec
from sqlglot import exp

from dsdb.sql.bind.bound import column, conjunction, is_constant, nullable_of, type_of
from dsdb.sql.bind.conjuncts import conjuncts_of
from dsdb.sql.bind.query_from import bind_from, push_down, scope_of
from dsdb.sql.bind.query_functions import take_series
from dsdb.sql.bind.query_group import Grouper, Grouping, grouped_column, is_same
from dsdb.sql.bind.query_implied import implied
from dsdb.sql.bind.query_names import output_name
from dsdb.sql.bind.query_scope import BoundQuery, FromItem, QueryScope, RelationColumn
from dsdb.sql.bind.query_state import Clause, Environment, QueryState, refuse_clauses
from dsdb.sql.bind.query_tail import ordered, set_limits
from dsdb.sql.bind.scalar import contains_aggregate
from dsdb.sql.errors import (
    AmbiguousColumnError,
    FeatureNotSupportedError,
    InvalidColumnReferenceError,
    SqlSyntaxError,
    UndefinedObjectError,
)
from dsdb.sql.parse import position_of

_CLAUSES = (
    *("with_", "expressions", "from_", "joins", "where", "group", "having", "windows", "distinct", "order", "limit", "offset"),
    *("kind", "operation_modifiers"),
)


class _Item(msgspec.Struct, kw_only=True):
    """An element of the SELECT list: what it was in the text (None from a star), what it is, and its column."""

    raw: exp.Expr | None
    bound: exp.Expr
    column: RelationColumn


def bind_select(state: QueryState, select: exp.Select, environment: Environment) -> BoundQuery:
    """Bind a SELECT; columns that nothing decides stay UNKNOWN.  Raises what is wrong with it."""
    refuse_clauses(select, *_CLAUSES)
    if select.args.get("kind") or select.args.get("operation_modifiers"):
        raise FeatureNotSupportedError("SELECT AS and its modifiers are not supported", position=position_of(select))
    select = _with_windows(select)
    from_ = select.args.get("from_")
    item = bind_from(state, from_.this if from_ else None, select.args.get("joins") or [], environment)
    scope = scope_of(item, environment)
    where = select.args.get("where")
    conditions = conjuncts_of(state.condition(where.this, scope, Clause.WHERE)) if where else []
    conditions += [more for condition in conditions for more in implied(condition, item.filterable)]
    conditions = push_down(conditions, item.filterable)
    select, scope, series = take_series(state, select, scope)
    items = _items(state, select, scope)
    orders = _orders(state, select, scope, items)
    distinct_on = _distinct_on(state, select, scope, items, orders)
    having = select.args.get("having")
    having_bound = state.condition(having.this, scope, Clause.HAVING) if having else None
    body = exp.Select()
    if series:
        item, conditions = _with_series(state, item, conditions, series), []
    _set_source(body, item, conditions)
    expressions = [found.bound for found in items] + [order.this for order in orders] + distinct_on
    expressions += [having_bound] if having_bound is not None else []
    if select.args.get("group") or having_bound is not None or any(map(contains_aggregate, expressions)):
        if series:
            raise FeatureNotSupportedError("a function that gives rows beside GROUP BY or aggregates is not supported")
        grouping = _grouping(state, select, scope, items)
        if grouping.computed:
            inner = exp.Select(expressions=[exp.Star(), *grouping.computed])
            _set_source(inner, item, conditions)
            body = exp.Select(from_=exp.From(this=inner.subquery(state.query_name(), copy=False)))
        grouper = Grouper(grouping, scope, item.filterable)
        for found in items:
            found.bound = grouper.rewrite(found.bound)
        for order in orders:
            order.set("this", grouper.rewrite(order.this) if not _is_output(order.this, items) else order.this)
        distinct_on = [part if _is_output(part, items) else grouper.rewrite(part) for part in distinct_on]
        if having_bound is not None:
            body.set("having", exp.Having(this=grouper.rewrite(having_bound)))
        if grouping.elements:
            body.set("group", exp.Group(expressions=grouping.elements))
    _set_outputs(state, body, select, items, orders, distinct_on)
    set_limits(state, body, select, environment)
    return BoundQuery(tree=body, columns=tuple(found.column for found in items))


def _with_series(state: QueryState, item: FromItem, conditions: Sequence[exp.Expr], series: Sequence[exp.Expr]) -> FromItem:
    """Give an item whose rows are repeated for the elements of the SELECT list's series."""
    inner = exp.Select(expressions=[*([exp.Star()] if item.tree is not None else []), *series])
    _set_source(inner, item, conditions)
    return msgspec.structs.replace(item, tree=inner.subquery(state.query_name(), copy=False), joins=[])


def _set_source(body: exp.Select, item: FromItem, conditions: Sequence[exp.Expr]) -> None:
    if item.tree is not None:
        body.set("from_", exp.From(this=item.tree))
        body.set("joins", item.joins)
    where = conjunction(conditions)
    if where is not None:
        body.set("where", exp.Where(this=where))


def _items(state: QueryState, select: exp.Select, scope: QueryScope) -> list[_Item]:
    if not select.expressions:
        raise FeatureNotSupportedError("a SELECT without columns is not supported")
    items: list[_Item] = []
    for raw in select.expressions:
        star = _star(raw)
        if star is not None:
            if not scope.relations:
                raise SqlSyntaxError("SELECT * with no tables specified is not valid", position=position_of(raw))
            for found in scope.expand_star(star, position_of(raw)):
                node = column(found.engine_name, found.type, nullable=found.nullable, ordinal=found.ordinal, position=position_of(raw))
                items.append(_item(state, None, node, found.name))
            continue
        bound = state.scalar(raw.this if isinstance(raw, exp.Alias) else raw, scope, Clause.SELECT)
        items.append(_item(state, raw, bound, output_name(raw, type_of(bound).name)))
    return items


def _item(state: QueryState, raw: exp.Expr | None, bound: exp.Expr, name: str) -> _Item:
    output = RelationColumn(name=name, engine_name=state.engine_name(), type=type_of(bound), nullable=nullable_of(bound))
    return _Item(raw=raw, bound=bound, column=output)


def _star(raw: exp.Expr) -> tuple[str, ...] | None:
    """Give the qualifiers of `*` or `t.*`, or None."""
    star = raw if isinstance(raw, exp.Star) else raw.this if isinstance(raw, exp.Column) else None
    if not isinstance(star, exp.Star):
        return None
    refuse_clauses(star)
    return tuple(part.name for part in raw.parts[:-1]) if isinstance(raw, exp.Column) else ()


def _with_windows(select: exp.Select) -> exp.Select:
    """Write named windows out where they are used."""
    defined = {window.this.name: window for window in select.args.get("windows") or ()}
    uses = [
        window
        for part in (*select.expressions, *([select.args["order"]] if select.args.get("order") else ()))
        for window in part.find_all(exp.Window)
        if window.args.get("alias")
    ]
    if not uses:
        return select
    for window in uses:
        name = window.args["alias"].name
        if name not in defined:
            raise UndefinedObjectError(f'window "{name}" does not exist', position=position_of(window))
        for part in ("partition_by", "order", "spec"):
            value = defined[name].args.get(part)
            if value and not window.args.get(part):
                window.set(part, [node.copy() for node in value] if isinstance(value, list) else value.copy())
        window.set("alias", None)
    return select


def _reference(raw: exp.Expr, items: Sequence[_Item], clause: Clause) -> _Item | None:
    """Give the output column that a whole ORDER BY, GROUP BY or DISTINCT ON element means by position, or None."""
    if not isinstance(raw, exp.Literal) or raw.is_string:
        if isinstance(raw, exp.Literal) and raw.is_string:
            raise SqlSyntaxError(f"non-integer constant in {clause.value}", position=position_of(raw))
        return None
    if not raw.is_int:
        raise SqlSyntaxError(f"non-integer constant in {clause.value}", position=position_of(raw))
    number = int(raw.this)
    if not 1 <= number <= len(items):
        raise InvalidColumnReferenceError(f"{clause.value} position {number} is not in select list", position=position_of(raw))
    return items[number - 1]


def _named_output(raw: exp.Expr, items: Sequence[_Item], clause: Clause) -> _Item | None:
    """Give the output column that a bare name means, or None.  Raises AmbiguousColumnError."""
    if not isinstance(raw, exp.Column) or len(raw.parts) > 1:
        return None
    found = [item for item in items if item.column.name == raw.name]
    if any(not is_same(item.bound, found[0].bound) for item in found[1:]):
        raise AmbiguousColumnError(f'{clause.value} "{raw.name}" is ambiguous', position=position_of(raw))
    return found[0] if found else None


def _orders(state: QueryState, select: exp.Select, scope: QueryScope, items: Sequence[_Item]) -> list[exp.Ordered]:
    order = select.args.get("order")
    if order is None:
        return []
    bound: list[exp.Ordered] = []
    for element in order.expressions:
        raw = element.this
        item = _reference(raw, items, Clause.ORDER_BY) or _named_output(raw, items, Clause.ORDER_BY)
        node = _output(item) if item is not None else _matched(state.scalar(raw, scope, Clause.ORDER_BY), items)
        bound.append(ordered(element, node))
    return bound


def _output(item: _Item) -> exp.Expr:
    found = item.column
    return column(found.engine_name, found.type, nullable=found.nullable, ordinal=0)


def _matched(node: exp.Expr, items: Sequence[_Item]) -> exp.Expr:
    """Give the output column whose expression equals this one, or the expression."""
    item = next((item for item in items if is_same(item.bound, node)), None)
    return _output(item) if item is not None else node


def _is_output(node: exp.Expr, items: Sequence[_Item]) -> bool:
    return isinstance(node, exp.Column) and any(item.column.engine_name == node.name for item in items)


def _distinct_on(
    state: QueryState, select: exp.Select, scope: QueryScope, items: Sequence[_Item], orders: Sequence[exp.Ordered]
) -> list[exp.Expr]:
    distinct = select.args.get("distinct")
    if distinct is None:
        return []
    if distinct.args.get("on") is None:
        for order in orders:
            if not _is_output(order.this, items) and not is_constant(order.this):
                raise InvalidColumnReferenceError("for SELECT DISTINCT, ORDER BY expressions must appear in select list")
        return []
    on = distinct.args["on"]
    nodes: list[exp.Expr] = []
    for raw in on.expressions if isinstance(on, exp.Tuple) else [on.this if isinstance(on, exp.Paren) else on]:
        item = _reference(raw, items, Clause.ORDER_BY) or _named_output(raw, items, Clause.ORDER_BY)
        nodes.append(_output(item) if item is not None else _matched(state.scalar(raw, scope, Clause.SELECT), items))
    for index, order in enumerate(orders):
        if order.this not in nodes and any(node not in [o.this for o in orders[:index]] for node in nodes):
            raise InvalidColumnReferenceError("SELECT DISTINCT ON expressions must match initial ORDER BY expressions")
    return nodes


def _grouping(state: QueryState, select: exp.Select, scope: QueryScope, items: Sequence[_Item]) -> Grouping:
    grouping = Grouping(elements=[], names={}, computed=[], is_plain=True)
    group = select.args.get("group")
    if group is None:
        return grouping
    refuse_clauses(group, "expressions")

    def element(raw: exp.Expr) -> exp.Expr:
        if isinstance(raw, exp.GroupingSets | exp.Rollup | exp.Cube):
            grouping.is_plain = False
            return type(raw)(expressions=[element(part) for part in raw.expressions])
        if isinstance(raw, exp.Tuple):
            return exp.Tuple(expressions=[element(part) for part in raw.expressions])
        if isinstance(raw, exp.Paren):
            return element(raw.this)
        item = _reference(raw, items, Clause.GROUP_BY)
        if item is None and isinstance(raw, exp.Column) and len(raw.parts) == 1 and not scope.has(raw.name):
            item = _named_output(raw, items, Clause.GROUP_BY)
        if item is not None and contains_aggregate(item.bound):
            state.scalar(item.raw.this if isinstance(item.raw, exp.Alias) else item.raw or raw, scope, Clause.GROUP_BY)
        bound = item.bound if item is not None else state.scalar(raw, scope, Clause.GROUP_BY)
        return _grouped(state, grouping, bound)

    grouping.elements = [element(raw) for raw in group.expressions]
    return grouping


def _grouped(state: QueryState, grouping: Grouping, bound: exp.Expr) -> exp.Expr:
    known = grouping.names.get(bound)
    if known is None:
        if isinstance(bound, exp.Column):
            known = bound
        else:
            known = grouped_column(state.engine_name(), bound)
            grouping.computed.append(exp.alias_(bound.copy(), known.name, copy=False))
        grouping.names[bound.copy()] = known
    return known.copy()


def _set_outputs(
    state: QueryState,
    body: exp.Select,
    select: exp.Select,
    items: Sequence[_Item],
    orders: Sequence[exp.Ordered],
    distinct_on: Sequence[exp.Expr],
) -> None:
    body.set("expressions", [exp.alias_(item.bound, item.column.engine_name, copy=False) for item in items])
    distinct = select.args.get("distinct")
    if distinct is not None:
        on = exp.Tuple(expressions=list(distinct_on)) if distinct_on else None
        body.set("distinct", exp.Distinct(on=on))
    # A constant orders nothing, and the engine would take a number for a position.
    kept = [order for order in orders if not is_constant(order.this)]
    if kept:
        body.set("order", exp.Order(expressions=kept))
