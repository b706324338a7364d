"""Conditions that follow from an OR: on one table alone, or in all its branches; they act earlier than the OR, which stays.

    (a.k = b.k AND b.x = 1 AND a.y < 5) OR (a.k = b.k AND b.x = 2)   ─▶   a.k = b.k,  b.x = 1 OR b.x = 2
"""

from collections.abc import Iterator, Sequence

from sqlglot import exp

from dsdb.sql.bind.bound import balanced, conjunction
from dsdb.sql.bind.conjuncts import conjuncts_of
from dsdb.sql.bind.query_group import is_same
from dsdb.sql.bind.query_scope import BaseSource

BRANCHES_MAX = 64
"""Of an OR; longer ones are left as they are."""


def implied(condition: exp.Expr, sources: Sequence[BaseSource]) -> Iterator[exp.Expr]:
    """Give what follows from a bound condition, beside itself.  sources: on which conditions may act early."""
    branches = _branches(condition)
    if not 2 <= len(branches) <= BRANCHES_MAX:
        return
    parts = [conjuncts_of(branch) for branch in branches]
    common = [part for part in parts[0] if _is_plain(part) and all(any(is_same(part, other) for other in rest) for rest in parts[1:])]
    yield from (part.copy() for part in common)
    for source in sources:
        own = [[part for part in branch if _is_plain(part) and _is_of(part, source)] for branch in parts]
        if all(own) and not all(any(part is known for known in common) for part in own[0]):
            sides = [conjunction([part.copy() for part in branch]) for branch in own]
            yield balanced(exp.Or, [side for side in sides if side is not None])


def _branches(condition: exp.Expr) -> list[exp.Expr]:
    found, waiting = [], [condition]
    while waiting:
        node = waiting.pop()
        while isinstance(node, exp.Paren):
            node = node.this
        if isinstance(node, exp.Or):
            waiting += (node.expression, node.this)
        else:
            found.append(node)
    return found


def _is_plain(part: exp.Expr) -> bool:
    return part.find(exp.Query) is None and part.find(exp.Column) is not None


def _is_of(part: exp.Expr, source: BaseSource) -> bool:
    return all(node.name in source.positions for node in part.find_all(exp.Column))
