"""Moves work to the leaves that may be done over any cut of a table's rows: partial aggregates, top-N, DISTINCT.

    SELECT c2, avg(c3) FROM t1 GROUP BY c2 HAVING count(*) > 5

        leaf t1     SELECT c2, sum(c3) AS p1, count(c3) AS p2, count(*) AS p3 FROM input AS t1 GROUP BY c2      (of each cut)
        gateway     SELECT c2, sum(p1) / sum(p2) FROM t1 GROUP BY c2 HAVING sum(p3) > 5

    SELECT c2 FROM t1 ORDER BY c3 LIMIT 5

        leaf t1     SELECT c2, c3 FROM input ORDER BY c3 LIMIT 5                                                (of each cut)
        gateway     as it was

What each cut gives is put together by the gateway's query, which is right for any number of cuts of any size, none included.  An
aggregate over DISTINCT values has these values among the leaf's groups; grouping sets are made of the finest groups.

Invariants:
- A block of the query is split as a whole or stays as it was: each condition, aggregate and group stands in one place.
- The split query gives what the whole one gives, rows that tie at a LIMIT aside, and the last digits of floating-point sums.

Not here: aggregates that cannot be put together from parts (string_agg, percentiles, deviations): their rows are gathered.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from sqlglot import exp

from dsdb.sql.bind.bound import call_of, column, engine_text, mark, type_of
from dsdb.sql.bind.choose import arguments_of, make_call
from dsdb.sql.bind.coerce import coerce
from dsdb.sql.bind.query_group import is_windowed
from dsdb.sql.bind.query_scope import BaseSource
from dsdb.sql.bind.render import engine_type, render
from dsdb.sql.bind.scalar import contains_aggregate, is_aggregate
from dsdb.sql.functions import OVERLOADS, decimals
from dsdb.sql.types import DOUBLE, SqlType, TypeName

_SAME_AGAIN = {
    **{name: name for name in ("min", "max", "any_value", "bool_and", "bool_or", "bit_and", "bit_or", "bit_xor")},
    "every": "bool_and",
}
"""Aggregates that put their own results together, and what the engine calls them."""


class PartialQuery(msgspec.Struct, frozen=True, kw_only=True):
    """An aggregation that a leaf does for each cut of its rows.  query: bound, over the leaf's input name; columns: what it gives."""

    query: exp.Select
    columns: tuple[tuple[str, SqlType], ...]


class LeafTail(msgspec.Struct, frozen=True, kw_only=True):
    """What a leaf leaves out of each cut of its rows: all but the first `limit` + `offset` by `order`, or what is there twice."""

    order: tuple[exp.Ordered, ...] = ()
    limit: exp.Expr | None = None
    offset: exp.Expr | None = None
    is_distinct: bool = False


class SplitQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What leaves do beyond filtering, by their input names."""

    partials: Mapping[str, PartialQuery]
    tails: Mapping[str, LeafTail]


def split(tree: exp.Query, sources: Sequence[BaseSource]) -> SplitQuery:
    """Split the blocks of a bound query that can be, in place.  sources: the tables that leaves read, each used once in the tree."""
    by_name = {source.input_name: source for source in sources}
    partials: dict[str, PartialQuery] = {}
    tails: dict[str, LeafTail] = {}
    numbers = iter(range(1, 1_000_000))
    # From the inside out: a block that is split copies the queries in its expressions.
    for block in reversed(list(tree.find_all(exp.Select))):
        found = _only_source(block, by_name)
        if found is None or found[0].input_name in partials:
            # A block around one that was split has no rows of the table before it, but groups.
            continue
        source, columns = found
        if _is_aggregating(block):
            partial = _Splitter(block, source, columns, numbers).split()
            if partial is not None:
                partials[source.input_name] = partial
            continue
        tail = _tail(block)
        if tail is not None:
            tails[source.input_name] = tail
    return SplitQuery(partials=partials, tails=tails)


def _only_source(block: exp.Select, by_name: Mapping[str, BaseSource]) -> tuple[BaseSource, set[str]] | None:
    """Give the one table of which all rows of a block's FROM and WHERE are made, each of one row of it, and the columns of these rows.

    None also if the block refers to a query around it there, or in what it groups and sorts by.
    """
    from_ = block.args.get("from_")
    if from_ is None or block.args.get("joins") or _has_query(block.args.get("where")):
        return None
    operand, computed = from_.this, set[str]()
    while isinstance(operand, exp.Subquery):
        inner = operand.this
        if not isinstance(inner, exp.Select) or not _is_row_by_row(inner):
            return None
        computed |= {output.alias for output in inner.expressions}
        operand = inner.args["from_"].this
    source = by_name.get(operand.name) if isinstance(operand, exp.Table) else None
    if source is None:
        return None
    parts = [part for name in ("from_", "where", "group", "order") if (part := block.args.get(name)) is not None]
    columns = source.positions.keys() | computed
    known = columns | {output.alias for output in block.expressions}
    is_alone = all(node.name in known for part in parts for node in part.find_all(exp.Column))
    return (source, columns) if is_alone else None


def _is_row_by_row(inner: exp.Select) -> bool:
    """Say whether a sub-query in FROM only filters and computes: the group expressions of a block are computed by one such."""
    if inner.args.get("from_") is None or any(inner.args.get(name) for name in ("with_", "joins", "group", "having", "distinct", "order")):
        return False
    if inner.args.get("limit") or inner.args.get("offset") or _has_query(inner.args.get("where")):
        return False
    return not any(part.find(exp.Query, exp.Window) or contains_aggregate(part) for part in inner.expressions)


def _has_query(node: exp.Expr | None) -> bool:
    return node is not None and node.find(exp.Query) is not None


def _is_aggregating(block: exp.Select) -> bool:
    return bool(block.args.get("group")) or any(map(contains_aggregate, _parts(block)))


def _parts(block: exp.Select) -> Iterator[exp.Expr]:
    """Give what a block computes behind its rows."""
    yield from block.expressions
    for name in ("having", "order"):
        if block.args.get(name):
            yield block.args[name]
    distinct = block.args.get("distinct")
    if distinct is not None and distinct.args.get("on"):
        yield distinct.args["on"]


def _tail(block: exp.Select) -> LeafTail | None:
    """Give what a leaf may leave out of a block that does not aggregate, or None."""
    if not isinstance(block.args["from_"].this, exp.Table) or block.args.get("where"):
        return None
    if any(part.find(exp.Query, exp.Window) for part in _parts(block)):
        return None
    distinct = block.args.get("distinct")
    if distinct is not None:
        return LeafTail(is_distinct=True) if distinct.args.get("on") is None else None
    limit, offset, order = (block.args.get(name) for name in ("limit", "offset", "order"))
    if limit is None or _has_query(limit) or _has_query(offset):
        return None
    outputs = {output.alias: output.this for output in block.expressions if isinstance(output, exp.Alias)}
    keys = tuple(element.copy() for element in order.expressions) if order is not None else ()
    for key in keys:
        key.set("this", _written_out(key.this, outputs))
    return LeafTail(order=keys, limit=limit.expression, offset=offset.expression if offset is not None else None)


def _written_out(node: exp.Expr, outputs: Mapping[str, exp.Expr]) -> exp.Expr:
    """Give an expression with the output columns in it replaced by what they are."""

    def replace(current: exp.Expr) -> exp.Expr:
        return outputs[current.name].copy() if isinstance(current, exp.Column) and current.name in outputs else current

    return node.copy().transform(replace, copy=False)


class _UnsplittableError(Exception):
    """A block holds what cannot be made of parts."""


class _Splitter:
    """Splits one aggregating block."""

    def __init__(self, block: exp.Select, source: BaseSource, columns: set[str], numbers: Iterator[int]) -> None:
        self._block = block
        self._source = source
        self._columns = columns
        self._numbers = numbers
        self._known: dict[str, str] = {}
        """Names of partial aggregates and distinct values, by their text."""
        self._outputs: list[tuple[exp.Expr, SqlType]] = []
        self._distinct: exp.Expr | None = None

    def split(self) -> PartialQuery | None:
        """Rewrite the block, and give what its leaf does; None, and nothing is changed, if that cannot be."""
        block = self._block
        group = block.args.get("group")
        groups = {node.name: node for node in group.find_all(exp.Column)} if group is not None else {}
        try:
            changed = {name: self._final(part) for name in ("having", "order") if (part := block.args.get(name)) is not None}
            expressions = [self._final(output) for output in block.expressions]
            distinct = block.args.get("distinct")
            if distinct is not None and distinct.args.get("on"):
                raise _UnsplittableError
            self._check(groups, [*changed.values(), *expressions])
        except _UnsplittableError:
            return None
        leaf = self._leaf_query(list(groups.values()))
        for name, part in changed.items():
            block.set(name, part)
        block.set("expressions", expressions)
        block.set("where", None)
        block.set("from_", exp.From(this=exp.Table(this=exp.to_identifier(self._source.input_name))))
        columns = [(node.name, type_of(node)) for node in groups.values()]
        return PartialQuery(query=leaf, columns=(*columns, *((output.alias, type_) for output, type_ in self._outputs)))

    def _leaf_query(self, groups: list[exp.Expr]) -> exp.Select:
        outputs = [exp.alias_(node.copy(), node.name, copy=False) for node in groups] + [output for output, _ in self._outputs]
        leaf = exp.Select(expressions=outputs, from_=self._block.args["from_"], where=self._block.args.get("where"))
        keys = [node.copy() for node in groups]
        if self._distinct is not None:
            keys.append(self._distinct.copy())
        if keys:
            leaf.set("group", exp.Group(expressions=keys))
        return leaf

    def _check(self, groups: Mapping[str, exp.Expr], parts: Sequence[exp.Expr]) -> None:
        """See that only groups are left of the leaf's columns, that it needs no others, and that it gives no intervals, which it cannot."""
        given = {output.alias for output, _ in self._outputs}
        own = {output.alias for output in self._block.expressions}
        for node in (node for part in parts for node in part.find_all(exp.Column)):
            if node.name in self._columns and node.name not in groups:
                raise _UnsplittableError
            if not node.find_ancestor(exp.Query) and node.name not in groups and node.name not in given | own:
                raise _UnsplittableError
        if any(node.name not in self._columns for output, _ in self._outputs for node in output.find_all(exp.Column)):
            raise _UnsplittableError
        types = [type_of(node) for node in groups.values()] + [type_ for _, type_ in self._outputs]
        if any(type_.name is TypeName.INTERVAL for type_ in types):
            raise _UnsplittableError

    def _final(self, node: exp.Expr) -> exp.Expr:
        """Copy an expression with its aggregates replaced by what puts their parts together."""
        if isinstance(node, exp.Query):
            return node.copy()
        called = node
        while isinstance(called, exp.Filter | exp.WithinGroup):
            called = called.this
        if is_aggregate(called) and not is_windowed(called):
            return self._put_together(node, called)
        copied = type(node)()
        if node._meta:
            copied.meta.update(node.meta)
        for key, value in node.args.items():
            if isinstance(value, exp.Expr):
                copied.set(key, self._final(value))
            elif isinstance(value, list):
                copied.set(key, [self._final(item) if isinstance(item, exp.Expr) else item for item in value])
            else:
                copied.set(key, value)
        return copied

    def _put_together(self, node: exp.Expr, called: exp.Expr) -> exp.Expr:
        key = call_of(called)
        assert key is not None, "an aggregate is a call"
        name, arguments, result = OVERLOADS[key].name, arguments_of(called), type_of(called)
        if _has_query(node) or called.args.get("order") or (node is not called and not isinstance(node, exp.Filter)):
            raise _UnsplittableError
        if called.meta.get("distinct") and name not in ("min", "max", "bool_and", "bool_or", "every"):
            return self._of_distinct(node, called, arguments)
        condition = node.args["expression"] if isinstance(node, exp.Filter) else None
        if name in _SAME_AGAIN:
            part = self._part(called, condition)
            return engine_text(f"CAST({_SAME_AGAIN[name]}({part}) AS {engine_type(result)})", result)
        if name == "count":
            return engine_text(f"CAST(coalesce(sum({self._part(called, condition)}), 0) AS BIGINT)", result)
        if name in ("sum", "avg"):
            return self._of_sum(name, arguments[0], condition, result)
        raise _UnsplittableError

    def _of_sum(self, name: str, argument: exp.Expr, condition: exp.Expr | None, result: SqlType) -> exp.Expr:
        type_ = type_of(argument)
        if type_.name is TypeName.INTERVAL:
            raise _UnsplittableError
        if type_.is_float:
            argument = coerce(argument.copy(), DOUBLE)
        total = self._part(make_call("sum", [argument.copy()], None), condition)
        if name == "sum":
            return engine_text(f"CAST(sum({total}) AS {engine_type(result)})", result)
        count = self._part(make_call("count", [argument.copy()], None), condition)
        if type_.is_float:
            return engine_text(f"(sum({total}) / CAST(nullif(sum({count}), 0) AS DOUBLE))", result)
        total_type = decimals.total_type([type_], ())
        sums = f"CAST(sum({total}) AS {decimals.engine_name(total_type)})"
        counts = f"CAST(nullif(sum({count}), 0) AS DECIMAL(19,0))"
        return engine_text(decimals.engine_quotient([sums, counts], [total_type, decimals.decimal_of(19, 0)], result), result)

    def _part(self, called: exp.Expr, condition: exp.Expr | None) -> str:
        """Give the name of a leaf's aggregate, the same for the same one."""
        node = called.copy()
        if condition is not None:
            node = mark(exp.Filter(this=node, expression=condition.copy()), type_of(called))
        text = render(node)
        if text not in self._known:
            self._known[text] = self._named(node)
        return self._known[text]

    def _of_distinct(self, node: exp.Expr, called: exp.Expr, arguments: Sequence[exp.Expr]) -> exp.Expr:
        """Give an aggregate over distinct values, which are among the leaf's groups; of one expression only."""
        if node is not called or len(arguments) != 1:
            raise _UnsplittableError
        text = f"DISTINCT {render(arguments[0])}"
        if text not in self._known:
            if self._distinct is not None:
                raise _UnsplittableError
            self._known[text] = self._named(arguments[0].copy())
            self._distinct = arguments[0].copy()
        copied = called.copy()
        value = column(self._known[text], type_of(arguments[0]), nullable=True, ordinal=0)
        if isinstance(copied, exp.Anonymous):
            copied.set("expressions", [value])
        else:
            copied.set("this", value)
        return copied

    def _named(self, node: exp.Expr) -> str:
        name = f"p{next(self._numbers)}"
        self._outputs.append((exp.alias_(node, name, copy=False), type_of(node)))
        return name
