"""Plans with values in the place of parameters: leaf stages and the gateway's query as the engine's SQL.

    SELECT c1, c2 FROM (SELECT c1, CAST(c2 AS DECIMAL(38,12)) AS c2 FROM input) AS input WHERE c1 > 5

Invariants:
- What a leaf gives has the engine's types, except of a streaming plan, whose bare columns are given as they are stored.
- LIMIT and OFFSET reach the engine as numbers ≥ 0, or not at all.
- A LIMIT reaches a leaf only where every row that the leaf gives is a row of the result.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa
from sqlglot import exp

from dsdb.sql.bind.bound import conjunction, type_of
from dsdb.sql.bind.render import engine_input, engine_output, engine_tree, engine_type, render, substitute_parameters
from dsdb.sql.errors import InvalidLimitError, InvalidOffsetError
from dsdb.sql.evaluate import compile_scalar
from dsdb.sql.execute.result import arrow_type
from dsdb.sql.functions.decimals import ENGINE_SCALE, PRECISION_MAX
from dsdb.sql.plan.partial import LeafTail, PartialQuery
from dsdb.sql.plan.select import RAW_SUFFIX, LeafPlan, SelectPlan
from dsdb.sql.ports import KeySet, LeafStage, TableScan
from dsdb.sql.rows import rows_of
from dsdb.sql.types import NUMERIC
from dsdb.storage.datum import Datum

INPUT = "input"
"""What a leaf's query calls its scan."""
NO_KEYS: Mapping[str, pa.Array] = {}


def leaf_stage(
    leaf: LeafPlan, parameters: Sequence[Datum], *, limit: int | None = None, keys: Mapping[str, pa.Array] = NO_KEYS
) -> LeafStage:
    """Give the stage of a leaf for these parameters.

    limit: rows of its result that are enough; keys: by engine name of a column, the values that it must have, of a leaf without a tail.

    Raises SqlError's about a parameter's value.
    """
    query = leaf_query(leaf, parameters, is_bare_wanted=bool(keys))
    for column_name in keys:
        assert query is not None, "as wanted"
        chosen = exp.Select(expressions=[exp.column("k")], from_=exp.From(this=exp.Table(this=exp.to_identifier(_keys_name(column_name)))))
        query.where(exp.In(this=exp.column(column_name), query=chosen.subquery(copy=False)), copy=False)
    scan_limit = None
    if limit is not None and not leaf.filters:
        scan_limit = limit
    elif limit is not None and query is not None:
        query.set("limit", exp.Limit(expression=exp.Literal.number(limit)))
    layout = rows_of(leaf.table).layout
    scan = TableScan(
        spans=leaf.access.spans(parameters),
        layouts=(layout,),
        columns=tuple(layout.columns[position] for _, position in leaf.columns),
        names=tuple(name for name, _ in leaf.columns),
        limit=scan_limit,
        bounds=leaf.access.bounds(parameters),
    )
    sets = tuple(KeySet(_keys_name(column_name), _streamed(values)) for column_name, values in keys.items())
    return LeafStage(scan=scan, sql=None if query is None else query.sql(dialect="duckdb"), is_partial=leaf.partial is not None, keys=sets)


def _keys_name(column_name: str) -> str:
    return f"keys_{column_name}"


def _streamed(values: pa.Array) -> bytes:
    table = pa.table({"k": values})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def leaf_query(leaf: LeafPlan, parameters: Sequence[Datum], *, is_bare_wanted: bool = False) -> exp.Select | None:
    """Give the query of a leaf, or None if its scan is its result, unless that is wanted as a query too."""
    numerics = [name for name, position in leaf.columns if leaf.is_numeric(position)]
    if leaf.partial is not None:
        return _partial_query(leaf, leaf.partial, numerics, parameters)
    outputs: list[exp.Expr]
    if leaf.outputs is None:
        outputs = [exp.column(name) for name in leaf.shipped]
        if not leaf.filters and not numerics and leaf.tail is None and not is_bare_wanted:
            return None
    else:
        if not leaf.filters and all(isinstance(output.this, exp.Column) for output in leaf.outputs):
            return None
        outputs = [_output(output, numerics, parameters) for output in leaf.outputs]
    query = exp.Select(expressions=outputs, from_=exp.From(this=_scan(leaf, numerics)))
    where = conjunction(leaf.filters)
    if where is not None:
        query.set("where", exp.Where(this=_engine(where, parameters)))
    if leaf.tail is not None:
        _set_tail(query, leaf.tail, parameters)
    return query


def _partial_query(leaf: LeafPlan, partial: PartialQuery, numerics: Sequence[str], parameters: Sequence[Datum]) -> exp.Select:
    outputs: list[exp.Expr] = []
    for output, (name, type_) in zip(partial.query.expressions, partial.columns):
        printed = render(substitute_parameters(output.this, parameters))
        outputs.append(exp.alias_(exp.Var(this=f"CAST({printed} AS {engine_type(type_)})"), name))
    query = _engine(partial.query, parameters)
    query.set("expressions", outputs)
    rows = exp.Select(expressions=[exp.Star()], from_=exp.From(this=_scan(leaf, numerics)))
    where = conjunction(leaf.filters)
    if where is not None:
        rows.set("where", exp.Where(this=_engine(where, parameters)))
    for table in list(query.find_all(exp.Table)):
        if table.name == leaf.input_name:
            table.replace(rows.subquery(leaf.input_name, copy=False))
    assert isinstance(query, exp.Select), "a partial query is a SELECT"
    return query


def _set_tail(query: exp.Select, tail: LeafTail, parameters: Sequence[Datum]) -> None:
    if tail.is_distinct:
        query.set("distinct", exp.Distinct())
        return
    limit = row_count(tail.limit, parameters, "LIMIT")
    if limit is None:
        return
    offset = row_count(tail.offset, parameters, "OFFSET") or 0
    if tail.order:
        query.set("order", exp.Order(expressions=[_engine(element, parameters) for element in tail.order]))
    query.set("limit", exp.Limit(expression=exp.Literal.number(limit + offset)))


def _scan(leaf: LeafPlan, numerics: Sequence[str]) -> exp.Expr:
    scan = exp.Table(this=exp.to_identifier(INPUT))
    if not numerics:
        return scan
    projections: list[exp.Expr] = []
    for name, _ in leaf.columns:
        if name in numerics:
            projections += (exp.alias_(exp.Var(this=engine_input(name, NUMERIC)), name), exp.alias_(exp.column(name), name + RAW_SUFFIX))
        else:
            projections.append(exp.column(name))
    return exp.Select(expressions=projections, from_=exp.From(this=scan)).subquery(INPUT, copy=False)


def _output(output: exp.Expr, numerics: Sequence[str], parameters: Sequence[Datum]) -> exp.Expr:
    """Give an output in the type of its column; a stored DECIMAL that is an output itself as its text."""
    node = output.this
    if isinstance(node, exp.Column) and node.name in numerics:
        return exp.alias_(exp.column(node.name + RAW_SUFFIX), output.alias)
    if isinstance(node, exp.Column):
        return exp.alias_(exp.column(node.name), output.alias)
    return exp.alias_(exp.Var(this=engine_output(render(substitute_parameters(node, parameters)), type_of(node))), output.alias)


def gateway_sql(plan: SelectPlan, parameters: Sequence[Datum]) -> str:
    """Give the gateway's query for these parameters.  Raises SqlError's about a parameter's value."""
    assert plan.gateway is not None, "a streaming plan has no query at the gateway"
    tree: exp.Expr = plan.gateway.copy()
    for name, node_class in (("limit", exp.Limit), ("offset", exp.Offset)):
        for node in list(tree.find_all(node_class)):
            if node.expression.find(exp.Query) is not None:
                # A query's to tell; the engine refuses a negative count itself.
                continue
            count = row_count(node.expression, parameters, name.upper())
            if count is None:
                node.pop()
            else:
                node.set("expression", exp.Literal.number(count))
    tree = _engine(tree, parameters)
    if isinstance(plan.gateway, exp.Select) and all(isinstance(output, exp.Alias) for output in plan.gateway.expressions):
        for output, bound in zip(tree.expressions, plan.gateway.expressions):
            # An output may be what rows are ordered by: plain decimals become text only behind the engine.
            if type_of(bound.this) != NUMERIC:
                output.set("this", exp.Var(this=engine_output(output.this.sql(dialect="duckdb"), type_of(bound.this))))
    return tree.sql(dialect="duckdb")


def row_count(node: exp.Expr | None, parameters: Sequence[Datum], clause: str) -> int | None:
    """Compute a LIMIT or OFFSET; None if there is none.  Raises InvalidLimitError, InvalidOffsetError if it is negative."""
    if node is None:
        return None
    if isinstance(node, exp.Literal) and "type" not in node.meta:
        return int(node.this)
    value = compile_scalar(node, {})((), parameters)
    if value is None:
        return None
    assert isinstance(value, int), "bound as a BIGINT"
    if value < 0:
        raise (InvalidLimitError if clause == "LIMIT" else InvalidOffsetError)(f"{clause} must not be negative")
    return value


def leaf_schema(leaf: LeafPlan) -> pa.Schema:
    """Give the schema of what a gathered leaf gives."""
    if leaf.partial is not None:
        types = ((name, _ENGINE_NUMERIC if type_ == NUMERIC else arrow_type(type_)) for name, type_ in leaf.partial.columns)
        return pa.schema([pa.field(name, type_) for name, type_ in types])
    positions = dict(leaf.columns)
    fields = []
    for name in leaf.shipped:
        is_raw = name.endswith(RAW_SUFFIX)
        position = positions[name.removesuffix(RAW_SUFFIX)]
        number = leaf.is_numeric(position) and not is_raw
        fields.append(pa.field(name, _ENGINE_NUMERIC if number else arrow_type(leaf.table.columns[position].type)))
    return pa.schema(fields)


_ENGINE_NUMERIC = pa.decimal128(PRECISION_MAX, ENGINE_SCALE)


def _engine(tree: exp.Expr, parameters: Sequence[Datum]) -> exp.Expr:
    return engine_tree(substitute_parameters(tree, parameters))
