"""Plans a query: one leaf stage for each use of a base table, and one query over what they give at the gateway.

    SELECT name, count(*) FROM users JOIN orders ON … WHERE users.id > 5 GROUP BY name

        leaf t1 (where users lie)   SELECT c1, c2 FROM input          spans: id > 5
        leaf t2 (where orders lie)  SELECT c7 FROM input WHERE …
        gateway                     SELECT … FROM t1 JOIN t2 ON … GROUP BY …

A query of one table that neither sorts, groups nor combines rows has no query at the gateway: its leaf computes the outputs, and
batches stream through.

A virtual table's rows come from the cluster, those of a given one with the statement, not from ranges: each is one more input of the
gateway's query (`VirtualInput`, `GivenInput`).

Invariants:
- Each condition of the text stands in exactly one place: a leaf's spans, a leaf's query, or the gateway's query.
- A plan holds no value of a parameter: the same plan serves every execution of its text.

Not here: binding (`dsdb.sql.bind.query`), values and running (`dsdb.sql.execute.select`).
"""

from collections.abc import Iterable, Sequence

import msgspec
from sqlglot import exp

from dsdb.sql.bind.bound import column, nullable_of
from dsdb.sql.bind.query import bind_query
from dsdb.sql.bind.query_scope import BaseSource, BoundQuery
from dsdb.sql.bind.query_state import Environment, QueryState
from dsdb.sql.bind.scalar import BindContext, contains_aggregate
from dsdb.sql.execute.result import ResultColumn
from dsdb.sql.given_tables import is_given
from dsdb.sql.plan.join_keys import KeyEdge, key_edges
from dsdb.sql.plan.partial import LeafTail, PartialQuery, SplitQuery, split
from dsdb.sql.plan.spans import KeyAccess, key_access
from dsdb.sql.ports import CatalogSnapshot
from dsdb.sql.schema import TableDescriptor
from dsdb.sql.system_tables import is_virtual
from dsdb.sql.types import NUMERIC
from dsdb.storage.datum import Kind

RAW_SUFFIX = "r"
"""Behind the engine name of a DECIMAL without precision: the same column as its stored text, spelling and all."""


class LeafPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is read of one use of a base table.

    columns: engine name and position in the table of each column read; filters: bound conditions that its query applies; outputs: of
    a streaming plan, the bound outputs that it computes, each an Alias; shipped: else, the names of the columns that it gives; partial:
    what it gives in their place; tail: what it leaves out of them.
    """

    input_name: str
    table: TableDescriptor
    access: KeyAccess
    columns: tuple[tuple[str, int], ...]
    filters: tuple[exp.Expr, ...]
    outputs: tuple[exp.Expr, ...] | None = None
    shipped: tuple[str, ...] = ()
    partial: PartialQuery | None = None
    tail: LeafTail | None = None

    def is_numeric(self, position: int) -> bool:
        """Say whether a column is a DECIMAL without precision, which is stored as text."""
        return self.table.columns[position].type == NUMERIC


class VirtualInput(msgspec.Struct, frozen=True, kw_only=True):
    """One use of a virtual table.  columns: engine name and position in the table of each column that the gateway's query uses."""

    input_name: str
    table: TableDescriptor
    columns: tuple[tuple[str, int], ...]


class GivenInput(msgspec.Struct, frozen=True, kw_only=True):
    """One use of a given table.  place: among the statement's given tables; name: for people; columns: as of a `VirtualInput`."""

    input_name: str
    place: int
    name: str
    columns: tuple[tuple[str, int], ...]


class SelectPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A planned query.

    columns: of the result; leaves: in the order of their input names; gateway: the bound query over them, or None if the only leaf
    streams; virtual, given: what else that query reads; edges: by which leaves may wait for others' keys; limit, offset: bound, of a
    streaming plan (the gateway's query has its own inside).
    """

    columns: tuple[ResultColumn, ...]
    leaves: tuple[LeafPlan, ...]
    gateway: exp.Query | None
    virtual: tuple[VirtualInput, ...] = ()
    given: tuple[GivenInput, ...] = ()
    edges: tuple[KeyEdge, ...] = ()
    limit: exp.Expr | None = None
    offset: exp.Expr | None = None


def plan_select(
    tree: exp.Expr,
    catalog: CatalogSnapshot,
    database_id: int,
    context: BindContext,
    *,
    database: str = "",
) -> SelectPlan:
    """Bind and plan a query.  database: the current database's name, for qualified names.

    Raises SqlError's about the query.
    """
    state = query_state(catalog, database_id, context, database=database)
    return plan_bound(state, bind_query(state, tree, Environment()))


def query_state(catalog: CatalogSnapshot, database_id: int, context: BindContext, *, database: str = "") -> QueryState:
    """Make the state for binding one statement's queries; sub-queries in its scalars are bound by it too."""
    name = database or next((found.name for found in catalog.databases() if found.database_id == database_id), "")
    return QueryState(catalog, database_id, name, context, bind_query)


def plan_bound(state: QueryState, bound: BoundQuery) -> SelectPlan:
    """Plan a bound query."""
    columns = tuple(ResultColumn(found.name, found.type) for found in bound.columns)
    streaming = _streaming(state.sources, bound)
    if streaming is not None:
        tree, source = streaming
        leaf = _leaf(source, _column_names(tree.expressions), tuple(tree.expressions))
        limit, offset = tree.args.get("limit"), tree.args.get("offset")
        return SelectPlan(
            columns=columns,
            leaves=(leaf,),
            gateway=None,
            limit=limit.expression if limit is not None else None,
            offset=offset.expression if offset is not None else None,
        )
    _keep_spellings(bound.tree, state.sources)
    at_leaves = [source for source in state.sources if not _is_at_gateway(source)]
    parts = split(bound.tree, at_leaves)
    used = _column_names([bound.tree])
    leaves = tuple(_gathered_leaf(source, used, parts) for source in at_leaves)
    virtual = tuple(_virtual_input(source, used) for source in state.sources if is_virtual(source.table))
    given = tuple(_given_input(source, used) for source in state.sources if is_given(source.table))
    edges = key_edges(bound.tree, at_leaves)
    return SelectPlan(columns=columns, leaves=leaves, gateway=bound.tree, virtual=virtual, given=given, edges=edges)


def _is_at_gateway(source: BaseSource) -> bool:
    return is_virtual(source.table) or is_given(source.table)


def _streaming(sources: Sequence[BaseSource], bound: BoundQuery) -> tuple[exp.Select, BaseSource] | None:
    """Give the SELECT and its source if rows of the one table become rows of the result one by one."""
    tree = bound.tree
    if len(sources) != 1 or _is_at_gateway(sources[0]) or not isinstance(tree, exp.Select):
        return None
    if any(tree.args.get(name) for name in ("with_", "joins", "where", "group", "having", "distinct", "order")):
        return None
    from_ = tree.args.get("from_")
    if from_ is None or not isinstance(from_.this, exp.Table) or from_.this.name != sources[0].input_name:
        return None
    if any(tree.args[name].find(exp.Query) is not None for name in ("limit", "offset") if tree.args.get(name)):
        return None
    if any(part.find(exp.Query, exp.Window) is not None or contains_aggregate(part) for part in tree.expressions):
        return None
    return tree, sources[0]


def _keep_spellings(tree: exp.Query, sources: Sequence[BaseSource]) -> None:
    """Let outputs that are stored DECIMALs without precision pass through as their text: in place, where nothing is computed of them.

    What the rows are ordered by stays the number.
    """
    if not isinstance(tree, exp.Select) or any(tree.args.get(name) for name in ("group", "having", "distinct")):
        return
    if any(contains_aggregate(output) for output in tree.expressions):
        return
    near = {node.name for node in _near_tables(tree)}
    names = {
        name
        for source in sources
        for name, position in source.positions.items()
        if source.input_name in near and source.table.columns[position].type == NUMERIC
    }
    kept: dict[str, exp.Expr] = {}
    for output in tree.expressions:
        if isinstance(output, exp.Alias) and isinstance(output.this, exp.Column) and output.this.name in names:
            kept[output.alias] = output.this
            output.set("this", column(output.this.name + RAW_SUFFIX, NUMERIC, nullable=nullable_of(output.this), ordinal=0))
    for element in tree.args["order"].expressions if tree.args.get("order") else ():
        if isinstance(element.this, exp.Column) and element.this.name in kept:
            element.set("this", kept[element.this.name].copy())


def _near_tables(tree: exp.Select) -> Iterable[exp.Table]:
    """Give the tables that a SELECT joins itself."""
    from_ = tree.args.get("from_")
    operands = ([from_.this] if from_ is not None else []) + [join.this for join in tree.args.get("joins") or ()]
    return [operand for operand in operands if isinstance(operand, exp.Table)]


def _column_names(nodes: Iterable[exp.Expr]) -> set[str]:
    return {found.name for node in nodes for found in node.find_all(exp.Column)}


def _leaf(source: BaseSource, used: set[str], outputs: tuple[exp.Expr, ...] | None = None) -> LeafPlan:
    """Plan a leaf.  used: names of the columns that are needed of it, besides those of its filters."""
    access = key_access(source.table, source.filters, source.positions)
    read = used | _column_names(access.residual)
    columns = tuple((name, at) for name, at in source.positions.items() if name in read or name + RAW_SUFFIX in read)
    shipped = tuple(form for name, _ in columns for form in (name, name + RAW_SUFFIX) if form in used)
    if not shipped:
        # Rows are counted by some column.
        name, position = _cheapest(source) if not columns else columns[0]
        shipped, columns = (name,), columns or ((name, position),)
    return LeafPlan(
        input_name=source.input_name,
        table=source.table,
        access=access,
        columns=columns,
        filters=access.residual,
        outputs=outputs,
        shipped=shipped if outputs is None else (),
    )


def _gathered_leaf(source: BaseSource, used: set[str], parts: SplitQuery) -> LeafPlan:
    partial = parts.partials.get(source.input_name)
    if partial is not None:
        leaf = _leaf(source, _column_names([partial.query]))
        return msgspec.structs.replace(leaf, partial=partial, shipped=())
    return msgspec.structs.replace(_leaf(source, used), tail=parts.tails.get(source.input_name))


def _virtual_input(source: BaseSource, used: set[str]) -> VirtualInput:
    return VirtualInput(input_name=source.input_name, table=source.table, columns=_used_columns(source, used))


def _given_input(source: BaseSource, used: set[str]) -> GivenInput:
    table = source.table
    return GivenInput(input_name=source.input_name, place=table.table_id, name=table.name, columns=_used_columns(source, used))


def _used_columns(source: BaseSource, used: set[str]) -> tuple[tuple[str, int], ...]:
    # Rows are counted by some column.
    return tuple((name, at) for name, at in source.positions.items() if name in used) or (_cheapest(source),)


def _cheapest(source: BaseSource) -> tuple[str, int]:
    """Give a column to count rows by: numbers are narrower than text."""
    kinds = {name: source.table.columns[position].type.kind for name, position in source.positions.items()}
    name = min(kinds, key=lambda name: (kinds[name] in (Kind.TEXT, Kind.BYTES, Kind.DECIMAL), source.positions[name]))
    return name, source.positions[name]
