"""Which leaves of a query wait for others, to read only the rows that these join with.

    nation (1 of 25 rows) ─▶ supplier (400 of 10,000) ─▶ lineitem (240,000 of 6,000,000)

The leaf that is expected to give the fewest rows is read first; a leaf that joins with it then gives fewer by as much as the first one
was narrowed, and so on.  How many rows a leaf reads is known from earlier stages over the same spans, so that a query over tables that
nobody has read yet runs all leaves at once; which share of them pass its conditions is guessed by their kinds [Selinger et al., "Access
path selection in a relational database management system", 1979].

Invariants:
- Waiting makes no circle: leaves wait only for those that were placed before them.
"""

import math
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
from sqlglot import exp

from dsdb.sql.plan.join_keys import KeyEdge
from dsdb.sql.plan.select import SelectPlan

WAITING_ROWS_MIN = 50_000
"""Of a query whose largest leaf has fewer rows, all are read at once."""
KEYS_MAX = 500_000
"""More keys are not worth sending."""
NARROWED_SHARE = 0.7
"""A leaf that is expected to give more of its rows than this tells others too little to be waited for."""

_SHARE_OF_EQUAL = 0.1
_SHARE_OF_OTHERS = 1 / 3


def waiting_leaves(plan: SelectPlan, rows: Mapping[str, int | None]) -> dict[str, list[KeyEdge]]:
    """Say by which edges each leaf that waits does.  rows: of each leaf's spans, None if that is not known."""
    leaves = {leaf.input_name: leaf for leaf in plan.leaves if rows[leaf.input_name] is not None}
    read = {name: max(rows[name] or 0, 1) for name in leaves}
    if max(read.values(), default=0) < WAITING_ROWS_MIN:
        return {}
    own = {name: read[name] * passing_share(leaf.filters) for name, leaf in leaves.items()}
    expected = dict(own)
    waits: dict[str, list[KeyEdge]] = {}
    left = list(leaves)
    while left:
        name = min(left, key=lambda name: expected[name])
        left.remove(name)
        share = expected[name] / read[name]
        if share > NARROWED_SHARE or expected[name] > 2 * KEYS_MAX:
            continue
        for edge in plan.edges:
            if edge.source == name and edge.target in left and leaves[edge.target].tail is None and leaves[edge.target].partial is None:
                waits.setdefault(edge.target, []).append(edge)
                expected[edge.target] = min(expected[edge.target], own[edge.target] * share)
    return waits


def passing_share(conditions: Sequence[exp.Expr]) -> float:
    """Guess which share of rows pass all of some bound conditions."""
    return math.prod(map(_share, conditions))


def _share(node: exp.Expr) -> float:
    match node:
        case exp.Paren():
            return _share(node.this)
        case exp.And():
            return _share(node.this) * _share(node.expression)
        case exp.Or():
            return min(_share(node.this) + _share(node.expression), 1.0)
        case exp.Not():
            return 1 - _share(node.this)
        case exp.NEQ():
            return 1 - _SHARE_OF_EQUAL
        case exp.EQ():
            return _SHARE_OF_EQUAL
        case exp.In() if not node.args.get("query"):
            return min(_SHARE_OF_EQUAL * max(len(node.expressions), 1), 0.5)
    return _SHARE_OF_OTHERS


def join_keys(edges: Sequence[KeyEdge], gathered: Mapping[str, pa.Table]) -> dict[str, pa.Array]:
    """Give, by column of the leaf, the values that it must have; nothing of sources that have too many."""
    keys: dict[str, pa.Array] = {}
    for edge in edges:
        table = gathered[edge.source]
        if edge.source_column not in table.column_names:
            continue
        values = pc.drop_null(pc.unique(table.column(edge.source_column)))
        best = keys.get(edge.target_column)
        if len(values) <= KEYS_MAX and (best is None or len(values) < len(best)):
            keys[edge.target_column] = values
    return keys
