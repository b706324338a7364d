"""Binds FROM: base tables, sub-queries, common table expressions, functions, and the joins between them.

    FROM a JOIN b ON …, c LEFT JOIN d USING (id)
         └── item 1 ──┘  └───── item 2 ───────┘        items are joined crosswise, left to right

Invariants:
- Each conjunct of an ON is consumed once: it becomes a filter of one source, or stays in the join.
- A condition goes into a source only where a row that fails it could not show, not even NULL-extended.

Not here: WHERE (`query_select`), what a leaf stage does with filters (`dsdb.sql.plan`).
"""

from collections.abc import Sequence

import msgspec
from sqlglot import exp

from dsdb.sql.bind.bound import conjunction
from dsdb.sql.bind.conjuncts import conjuncts_of
from dsdb.sql.bind.query_functions import bind_function
from dsdb.sql.bind.query_rows import EXACT_COLUMNS
from dsdb.sql.bind.query_scope import BaseSource, FromItem, QueryScope, Relation, RelationColumn, check_aliases
from dsdb.sql.bind.query_state import Clause, Environment, QueryState, refuse_clauses
from dsdb.sql.errors import (
    AmbiguousColumnError,
    DuplicateColumnError,
    FeatureNotSupportedError,
    InvalidColumnReferenceError,
    SqlSyntaxError,
    UndefinedColumnError,
)
from dsdb.sql.given_tables import is_given
from dsdb.sql.parse import position_of
from dsdb.sql.system_tables import SYSTEM_SCHEMA, is_virtual

NOTHING = FromItem(tree=None, joins=[], relations=(), visible=(), filterable=())
"""A query without FROM."""


def bind_from(state: QueryState, first: exp.Expr | None, joins: Sequence[exp.Join], environment: Environment) -> FromItem:
    """Bind a FROM list and its joins.

    Raises: UndefinedTableError, DuplicateAliasError, FeatureNotSupportedError, and what conditions raise.
    """
    if first is None:
        return NOTHING
    item = _bind_item(state, first, NOTHING, environment)
    done: FromItem = NOTHING
    for join in joins:
        if _is_comma(join):
            done, item = _cross(state, done, item), _bind_item(state, join.this, _cross(state, done, item), environment)
        else:
            item = _join(state, done, item, join, environment)
    result = _cross(state, done, item)
    check_aliases(result.relations)
    return result


def _is_comma(join: exp.Join) -> bool:
    return not any(join.args.get(name) for name in ("side", "kind", "method", "on", "using"))


def scope_of(item: FromItem, environment: Environment) -> QueryScope:
    """Give the scope in which the names of an item, then those around it, are looked for."""
    return QueryScope(item.relations, item.visible, environment.parent, environment.ctes)


def _cross(state: QueryState, left: FromItem, right: FromItem) -> FromItem:
    if left.tree is None:
        return right
    return FromItem(
        tree=left.tree,
        joins=[*left.joins, exp.Join(this=_operand(state, right), kind="CROSS")],
        relations=left.relations + right.relations,
        visible=left.visible + right.visible,
        filterable=left.filterable + right.filterable,
    )


def _operand(state: QueryState, item: FromItem) -> exp.Expr:
    """Give an item as one operand of a join: names are unique, so that a nested join can be a sub-query."""
    assert item.tree is not None, "an operand of a join is something"
    if not item.joins:
        return item.tree
    inner = exp.Select(expressions=[exp.Star()], from_=exp.From(this=item.tree), joins=item.joins)
    return inner.subquery(state.query_name(), copy=False)


def _bind_item(state: QueryState, node: exp.Expr, before: FromItem, environment: Environment) -> FromItem:
    """Bind one operand of FROM; `before` is what LATERAL and functions may refer to."""
    nested = node.args.get("joins") or []
    match node:
        case exp.Lateral():
            refuse_clauses(node, "this", "alias", "ordinality", "view", "outer", "cross_apply")
            lateral = environment.inside(scope_of(before, environment))
            inner = node.this
            if isinstance(inner, exp.Subquery):
                return _named(_bind_derived(state, inner, lateral), node)
            return bind_function(state, node, lateral)
        case exp.Unnest():
            raise FeatureNotSupportedError("unnest is not supported: there are no arrays", position=position_of(node))
        case exp.Table() if isinstance(node.this, exp.Func):
            return bind_function(state, node, environment.inside(scope_of(before, environment)))
        case exp.Table():
            item = _bind_table(state, node, environment)
        case exp.Subquery() if isinstance(node.this, exp.Table):
            refuse_clauses(node, "this", "alias", "joins")
            item = _named(bind_from(state, node.this, [], environment), node)
        case exp.Subquery():
            item = _bind_derived(state, node, environment)
        case exp.Values():
            item = _derived(state, node, environment)
        case _:
            raise FeatureNotSupportedError(f"{node.key} in FROM is not supported", position=position_of(node))
    for join in nested:
        item = _join(state, NOTHING, item, join, environment)
    return item


def _bind_table(state: QueryState, node: exp.Table, environment: Environment) -> FromItem:
    refuse_clauses(node, "this", "db", "catalog", "alias", "joins", "only")
    # A parameter has no name of its own.
    name, alias = "" if isinstance(node.this, exp.Parameter) else node.name, node.args.get("alias")
    cte = environment.ctes.get(name) if not node.args.get("db") else None
    if cte is not None:
        columns = tuple(msgspec.structs.replace(column, engine_name=state.engine_name()) for column in cte.columns)
        renamed = exp.TableAlias(
            this=exp.to_identifier(state.query_name()), columns=[exp.to_identifier(column.engine_name) for column in columns]
        )
        tree = exp.Table(this=exp.to_identifier(cte.engine_name), alias=renamed)
        relation = Relation(alias=alias.name if alias else name, columns=_renamed(columns, alias, name))
        return FromItem(tree=tree, joins=[], relations=(relation,), visible=relation.columns, filterable=())
    table = state.table(node)
    positions = {state.engine_name(): position for position in range(len(table.columns))}
    columns = tuple(
        RelationColumn(
            name=column.name,
            engine_name=engine_name,
            type=column.type,
            nullable=column.nullable,
            ordinal=position,
            hidden=column.hidden,
        )
        for (engine_name, position), column in zip(positions.items(), table.columns)
    )
    source = BaseSource(state.input_name(), table, positions)
    state.sources.append(source)
    relation = Relation(
        alias=alias.name if alias else name,
        columns=_renamed(columns, alias, name),
        qualifier=() if alias or is_given(table) else (state.database, SYSTEM_SCHEMA if is_virtual(table) else "public"),
    )
    tree = exp.Table(this=exp.to_identifier(source.input_name))
    # All rows of a virtual or given table are at the gateway: nobody below its query would apply a condition.
    filterable = () if is_virtual(table) or is_given(table) else (source,)
    return FromItem(tree=tree, joins=[], relations=(relation,), visible=relation.columns, filterable=filterable)


def _bind_derived(state: QueryState, node: exp.Subquery, environment: Environment) -> FromItem:
    refuse_clauses(node, "this", "alias", "joins", "with_", "order", "limit", "offset")
    return _derived(state, node, environment)


def _derived(state: QueryState, node: exp.Expr, environment: Environment) -> FromItem:
    alias = node.args.get("alias")
    query = node.copy()
    query.set("alias", None)
    query.set("joins", None)
    bound = state.bind_query(query, environment)
    name = alias.name if alias else ""
    relation = Relation(alias=name, columns=_renamed(bound.columns, alias, name))
    tree = bound.tree.subquery(state.query_name(), copy=False)
    return FromItem(tree=tree, joins=[], relations=(relation,), visible=relation.columns, filterable=())


def _named(item: FromItem, node: exp.Expr) -> FromItem:
    """Apply the alias of a parenthesised join or of LATERAL: it hides the names inside."""
    alias = node.args.get("alias")
    if alias is None:
        return item
    relation = Relation(alias=alias.name, columns=_renamed(item.visible, alias, alias.name))
    return msgspec.structs.replace(item, relations=(relation,), visible=relation.columns)


def _renamed(columns: Sequence[RelationColumn], alias: exp.TableAlias | None, name: str) -> tuple[RelationColumn, ...]:
    names = [column.name for column in alias.columns] if alias is not None else []
    shown = [column for column in columns if not column.hidden]
    if alias is not None and alias.meta.get(EXACT_COLUMNS) and len(names) != len(shown):
        raise SqlSyntaxError(f"subquery has too {'few' if len(names) > len(shown) else 'many'} columns")
    if len(names) > len(shown):
        raise InvalidColumnReferenceError(
            f'table "{name}" has {len(shown)} columns available but {len(names)} columns specified', position=position_of(alias)
        )
    new_names = dict(zip((column.engine_name for column in shown), names))
    return tuple(msgspec.structs.replace(column, name=new_names.get(column.engine_name, column.name)) for column in columns)


_SIDES = ("", "LEFT", "RIGHT", "FULL")


def _join(state: QueryState, before: FromItem, left: FromItem, join: exp.Join, environment: Environment) -> FromItem:
    refuse_clauses(join, "this", "on", "side", "kind", "method", "using")
    side, kind, method = (str(join.args.get(name) or "") for name in ("side", "kind", "method"))
    if side not in _SIDES or kind not in ("", "INNER", "OUTER", "CROSS") or method not in ("", "NATURAL"):
        raise FeatureNotSupportedError(f"a {' '.join(word for word in (method, side, kind) if word)} JOIN is not supported")
    visible_to_lateral = left if side in ("", "LEFT") else NOTHING
    right = _bind_item(state, join.this, _cross(state, before, visible_to_lateral), environment)
    names = _using_names(join, left, right, method)
    if len(set(names)) < len(names):
        raise DuplicateColumnError("a column name appears more than once in USING clause", position=position_of(join))
    pairs = [(_using_column(left, name, "left"), _using_column(right, name, "right")) for name in names]
    if not names and not join.args.get("on") and kind != "CROSS" and method != "NATURAL":
        raise SqlSyntaxError("a JOIN needs ON or USING", position=position_of(join))
    conditions = [state.equality(a, b) for a, b in pairs]
    if join.args.get("on") is not None:
        check_aliases(left.relations + right.relations)
        both = FromItem(
            tree=None, joins=[], relations=left.relations + right.relations, visible=left.visible + right.visible, filterable=()
        )
        conditions += conjuncts_of(state.condition(join.args["on"], scope_of(both, environment), Clause.JOIN))
    left_filterable, right_filterable = _filterable(side, left, right)
    conditions = push_down(conditions, (*left_filterable[0], *right_filterable[0]))
    engine_join = exp.Join(this=_operand(state, right), side=side or None, on=conjunction(conditions))
    if not conditions:
        engine_join.set("on", exp.true() if side else None)
        engine_join.set("kind", None if side else "CROSS")
    relations = (*_extended(left.relations, side in ("RIGHT", "FULL")), *_extended(right.relations, side in ("LEFT", "FULL")))
    item = FromItem(
        tree=left.tree,
        joins=[*left.joins, engine_join],
        relations=relations,
        visible=(),
        filterable=(*left_filterable[1], *right_filterable[1]),
    )
    return _with_visible(state, item, left, right, side, pairs)


def _filterable(side: str, left: FromItem, right: FromItem) -> tuple[tuple[tuple[BaseSource, ...], ...], ...]:
    """Give, for each side, the sources that the join's own condition may filter, and those that conditions above it may."""
    match side:
        case "LEFT":
            return ((), left.filterable), (right.filterable, ())
        case "RIGHT":
            return (left.filterable, ()), ((), right.filterable)
        case "FULL":
            return ((), ()), ((), ())
        case _:
            return (left.filterable, left.filterable), (right.filterable, right.filterable)


def push_down(conditions: Sequence[exp.Expr], sources: Sequence[BaseSource]) -> list[exp.Expr]:
    """Hand each condition that concerns one of the sources alone to that source; give the others."""
    kept = []
    for condition in conditions:
        names = {column.name for column in condition.find_all(exp.Column)}
        holder = next((source for source in sources if names and names <= source.positions.keys()), None)
        if holder is None or condition.find(exp.Query) is not None:
            kept.append(condition)
        else:
            holder.filters.append(condition)
    return kept


def _extended(relations: Sequence[Relation], is_null_extended: bool) -> tuple[Relation, ...]:
    if not is_null_extended:
        return tuple(relations)
    return tuple(msgspec.structs.replace(relation, columns=_nullable(relation.columns)) for relation in relations)


def _nullable(columns: Sequence[RelationColumn]) -> tuple[RelationColumn, ...]:
    return tuple(msgspec.structs.replace(column, nullable=True) for column in columns)


def _using_names(join: exp.Join, left: FromItem, right: FromItem, method: str) -> list[str]:
    if method == "NATURAL":
        others = {column.name for column in right.visible if not column.hidden}
        return [column.name for column in left.visible if column.name in others and not column.hidden]
    return [identifier.name for identifier in join.args.get("using") or ()]


def _using_column(item: FromItem, name: str, side: str) -> RelationColumn:
    found = [column for column in item.visible if column.name == name and not column.hidden]
    if not found:
        raise UndefinedColumnError(f'column "{name}" specified in USING clause does not exist in {side} table')
    if len(found) > 1:
        raise AmbiguousColumnError(f'common column name "{name}" appears more than once in {side} table')
    return found[0]


def _with_visible(
    state: QueryState, item: FromItem, left: FromItem, right: FromItem, side: str, pairs: Sequence[tuple[RelationColumn, RelationColumn]]
) -> FromItem:
    """Give a join what `*` gives: the columns of USING once, then the others from left to right."""
    left_visible = _nullable(left.visible) if side in ("RIGHT", "FULL") else left.visible
    right_visible = _nullable(right.visible) if side in ("LEFT", "FULL") else right.visible
    gone = {column.engine_name for pair in pairs for column in pair}
    rest = tuple(column for column in (*left_visible, *right_visible) if column.engine_name not in gone)
    if not pairs:
        return msgspec.structs.replace(item, visible=rest)
    if side != "FULL":
        chosen = [pair[1] if side == "RIGHT" else pair[0] for pair in pairs]
        return msgspec.structs.replace(item, visible=(*chosen, *rest))
    merged = []
    projections: list[exp.Expr] = [exp.Star()]
    for pair in pairs:
        value = state.coalesce(*pair)
        column = RelationColumn(name=pair[0].name, engine_name=state.engine_name(), type=state.type_of(value))
        merged.append(column)
        projections.append(exp.alias_(value, column.engine_name, copy=False))
    assert item.tree is not None, "a join has a left operand"
    inner = exp.Select(expressions=projections, from_=exp.From(this=item.tree), joins=item.joins)
    tree = inner.subquery(state.query_name(), copy=False)
    return FromItem(tree=tree, joins=[], relations=item.relations, visible=(*merged, *rest), filterable=item.filterable)
