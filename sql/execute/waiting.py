"""Which leaves of a query wait for others, to read only the rows that these join with.

    nation (1 of 25 rows) ─▶ supplier (400 of 10,000) ─▶ lineitem (240,000 of 6,000,000)

A leaf waits for smaller ones that something narrows; how many rows they have is known from earlier stages over the same spans, so
that a query over tables that nobody has read yet runs all leaves at once.

Invariants:
- Waiting makes no circle: leaves wait for those before them by (rows, place in the query) only.
"""

from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from dsdb.sql.plan.join_keys import KeyEdge
from dsdb.sql.plan.select import LeafPlan, SelectPlan

WAITING_ROWS_MIN = 50_000
"""Of a query whose largest leaf has fewer rows, all are read at once."""
KEYS_MAX = 250_000
"""More keys are not worth sending."""


def waiting_leaves(plan: SelectPlan, rows: Mapping[str, int | None]) -> dict[str, list[KeyEdge]]:
    """Say by which edges each leaf that waits does.  rows: of each leaf's spans, None if that is not known."""
    leaves = {leaf.input_name: leaf for leaf in plan.leaves}
    ranks = {name: (known, place) for place, name in enumerate(leaves) if (known := rows[name]) is not None}
    if not ranks or max(ranks.values())[0] < WAITING_ROWS_MIN:
        return {}
    waits: dict[str, list[KeyEdge]] = {}
    for name in sorted(ranks, key=lambda name: ranks[name]):
        if leaves[name].tail is not None or leaves[name].partial is not None:
            continue
        found = [
            edge
            for edge in plan.edges
            if edge.target == name
            and edge.source in ranks
            and ranks[edge.source] < ranks[name]
            and (_is_narrowed(leaves[edge.source]) or edge.source in waits)
        ]
        if found:
            waits[name] = found
    return waits


def _is_narrowed(leaf: LeafPlan) -> bool:
    access = leaf.access
    return bool(access.residual or access.equal or access.lower or access.upper)


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
