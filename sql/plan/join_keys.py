"""Equalities between columns of two tables, by which the rows read of one are known before the other is: semi-join filters.

    … FROM part, lineitem WHERE p_partkey = l_partkey AND p_brand = 'Brand#23'

        leaf part       gives some hundred keys          ─▶ leaf lineitem    … AND l_partkey IN (these keys)

Also between a query and one inside it: rows of the inner one that equal none of the outer's are looked for by nobody.

Invariants:
- A row that is left out would have met a condition that is false, or NULL, for every row of the other table that is read: only
  conjuncts of WHERE count, and of ON where all joins of the block are inner ones.
- The target is a table of the very block in which the condition stands.
"""

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from sqlglot import exp

from dsdb.sql.bind.bound import type_of
from dsdb.sql.bind.conjuncts import conjuncts_of
from dsdb.sql.bind.query_scope import BaseSource
from dsdb.sql.types import SqlType, TypeName

_KEY_TYPES = (TypeName.SMALLINT, TypeName.INT, TypeName.BIGINT, TypeName.TEXT, TypeName.DATE)


class KeyEdge(msgspec.Struct, frozen=True, kw_only=True):
    """Rows of a target are wanted only if a column of them is among the values of a source's column.  Inputs' and engine names."""

    source: str
    source_column: str
    target: str
    target_column: str


def key_edges(tree: exp.Query, sources: Sequence[BaseSource]) -> tuple[KeyEdge, ...]:
    """Find the equalities of a bound query, each in the directions in which it may be used."""
    owners = {name: source.input_name for source in sources for name in source.positions}
    edges: list[KeyEdge] = []
    for block in tree.find_all(exp.Select):
        direct = {operand.name for operand in _operands(block) if isinstance(operand, exp.Table)}
        for conjunct in _conditions(block):
            edges += _edges(conjunct, owners, direct)
    return tuple(dict.fromkeys(edges))


def _operands(block: exp.Select) -> Iterator[exp.Expr]:
    from_ = block.args.get("from_")
    if from_ is not None:
        yield from_.this
    yield from (join.this for join in block.args.get("joins") or ())


def _conditions(block: exp.Select) -> Iterator[exp.Expr]:
    where, joins = block.args.get("where"), block.args.get("joins") or []
    if where is not None:
        yield from conjuncts_of(where.this)
    if all(not join.side and join.kind in ("", "INNER", "CROSS") for join in joins):
        for join in joins:
            if join.args.get("on") is not None:
                yield from conjuncts_of(join.args["on"])


def _edges(conjunct: exp.Expr, owners: Mapping[str, str], direct: set[str]) -> Iterator[KeyEdge]:
    left, right = conjunct.this, conjunct.args.get("expression")
    if not (isinstance(conjunct, exp.EQ) and isinstance(left, exp.Column) and isinstance(right, exp.Column)):
        return
    if not _is_key(type_of(left)) or type_of(left).name is not type_of(right).name:
        return
    for source, target in ((left, right), (right, left)):
        from_, to = owners.get(source.name), owners.get(target.name)
        if from_ is not None and to is not None and from_ != to and to in direct:
            yield KeyEdge(source=from_, source_column=source.name, target=to, target_column=target.name)


def _is_key(type_: SqlType) -> bool:
    return type_.name in _KEY_TYPES
