"""Makes a query smaller as long as it still differs: parts of its tree are left out, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

TRIES_MAX = 300
_CLAUSES = ("where", "having", "order", "limit", "offset", "distinct")


def shrunk(text: str, differs: Callable[[str], bool]) -> str:
    """Give a smaller text for which `differs` still holds; the text itself if there is none.  Tables are named plainly in both."""
    tries = 0
    best = text
    found = True
    while found:
        found = False
        for candidate in sorted(set(_smaller(best)), key=len):
            tries += 1
            if tries > TRIES_MAX:
                return best
            if len(candidate) < len(best) and differs(candidate):
                best, found = candidate, True
                break
    return best


def _smaller(text: str) -> Iterator[str]:
    try:
        count = len(list(sqlglot.parse_one(text, dialect="postgres").walk()))
        for number in range(count):
            yield from _changed(text, number)
    except SqlglotError:
        return


def _changed(text: str, number: int) -> Iterator[str]:
    """Give the texts with the number-th node of the tree made smaller in each way."""

    def fresh() -> tuple[exp.Expr, exp.Expr]:
        tree = sqlglot.parse_one(text, dialect="postgres")
        return tree, list(tree.walk())[number]

    tree, node = fresh()
    if isinstance(node, exp.Select):
        for clause in _CLAUSES:
            tree, node = fresh()
            if node.args.get(clause):
                node.set(clause, None)
                yield tree.sql(dialect="postgres")
        for name in ("expressions", "joins"):
            for place in range(len(node.args.get(name) or ())):
                tree, node = fresh()
                listed = list(node.args[name])
                if name == "joins" or len(listed) > 1:
                    del listed[place]
                    node.set(name, listed)
                    yield tree.sql(dialect="postgres")
        return
    sides: tuple[str, ...] = ()
    if isinstance(node, exp.And | exp.Or | exp.SetOperation | exp.Coalesce | exp.Add):
        sides = ("this", "expression")
    elif isinstance(node, exp.Paren | exp.Not | exp.Filter | exp.Is | exp.Subquery):
        sides = ("this",)
    for side in sides:
        tree, node = fresh()
        kept = node.args.get(side)
        if node.parent is not None and isinstance(kept, exp.Expr):
            node.replace(kept.copy())
            yield tree.sql(dialect="postgres")
