"""GROUP BY: which expressions are grouped, and whether the rest of a query keeps to them.

    SELECT a + 1, sum(b) … GROUP BY a + 1   ─▶   SELECT c9, sum(c2) FROM (SELECT *, c1 + 1 AS c9 FROM …) GROUP BY c9

Invariants:
- Behind the grouping stand only grouped expressions, aggregates, outer columns, and columns that a grouped primary key decides.
"""

from collections.abc import Sequence

import msgspec
from sqlglot import exp

from dsdb.sql.bind.bound import column, nullable_of, type_of
from dsdb.sql.bind.query_scope import BaseSource, QueryScope
from dsdb.sql.bind.scalar import is_aggregate
from dsdb.sql.errors import GroupingError


def is_same(left: exp.Expr, right: exp.Expr) -> bool:
    """Say whether two bound expressions are the same, in what their nodes alone do not tell too: types, overloads and DISTINCT."""
    return left == right and [_identity(node) for node in left.walk()] == [_identity(node) for node in right.walk()]


def _identity(node: exp.Expr) -> tuple[object, ...]:
    meta = node.meta if node._meta else {}
    return meta.get("type"), meta.get("call"), bool(meta.get("distinct"))


class Grouping(msgspec.Struct, kw_only=True):
    """A GROUP BY: the tree of its elements, and for each grouped expression the column that stands for it behind the grouping.

    computed: projections to be added below the grouping; is_plain: no grouping sets, so that more columns may be grouped.
    """

    elements: list[exp.Expr]
    names: dict[exp.Expr, exp.Expr]
    computed: list[exp.Expr]
    is_plain: bool


class Grouper:
    """Checks and rewrites the expressions of one grouped query."""

    def __init__(self, grouping: Grouping, scope: QueryScope, sources: Sequence[BaseSource]) -> None:
        self._grouping = grouping
        self._scope = scope
        self._grouped = {node.name for node in grouping.names.values()}
        self._decided = self._decided_columns(sources) if grouping.is_plain else set[str]()
        """Columns of tables whose whole primary key is grouped."""

    def _decided_columns(self, sources: Sequence[BaseSource]) -> set[str]:
        decided: set[str] = set()
        for source in sources:
            key = {source.table.column_by_id(part.column_id).name for part in source.table.primary.columns}
            grouped = {source.table.columns[position].name for name, position in source.positions.items() if name in self._grouped}
            if key <= grouped:
                decided |= source.positions.keys()
        return decided

    def rewrite(self, node: exp.Expr) -> exp.Expr:
        """Give an expression as it is behind the grouping.  Raises GroupingError."""
        names = self._grouping.names
        rewritten = _substitute(node, names)
        self._check(rewritten)
        return rewritten

    def _check(self, node: exp.Expr) -> None:
        waiting = [node]
        while waiting:
            current = waiting.pop()
            if is_aggregate(_called(current)) and not is_windowed(current):
                continue
            if isinstance(current, exp.Column) and current.name in self._scope.engine_names and current.name not in self._grouped:
                self._take_decided(current)
            waiting += current.iter_expressions()

    def _take_decided(self, node: exp.Column) -> None:
        if node.name in self._decided:
            self._grouped.add(node.name)
            self._grouping.elements.append(node.copy())
            return
        start = node.meta.get("start")
        raise GroupingError(
            f'column "{self._spelled(node.name)}" must appear in the GROUP BY clause or be used in an aggregate function',
            position=None if start is None else int(start) + 1,
        )

    def _spelled(self, engine_name: str) -> str:
        for relation in self._scope.relations:
            for found in relation.columns:
                if found.engine_name == engine_name:
                    return f"{relation.alias}.{found.name}" if relation.alias else found.name
        return next((found.name for found in self._scope.visible if found.engine_name == engine_name), engine_name)


def _substitute(node: exp.Expr, names: dict[exp.Expr, exp.Expr]) -> exp.Expr:
    def replace(current: exp.Expr) -> exp.Expr:
        found = names.get(current)
        return found.copy() if found is not None and type_of(found) == type_of(current) else current

    return node.transform(replace) if names else node


def grouped_column(engine_name: str, node: exp.Expr) -> exp.Expr:
    """Make the column that stands for a grouped expression."""
    start = node.meta.get("start")
    return column(engine_name, type_of(node), nullable=nullable_of(node), ordinal=0, position=None if start is None else int(start) + 1)


def _called(node: exp.Expr) -> exp.Expr:
    """Give the call that FILTER and its like stand behind."""
    while isinstance(node, exp.Filter | exp.WithinGroup):
        node = node.this
    return node


def is_windowed(node: exp.Expr) -> bool:
    """Say whether a call stands before OVER: then its arguments are computed behind the grouping."""
    parent = node.parent
    while isinstance(parent, exp.Filter | exp.WithinGroup | exp.IgnoreNulls | exp.RespectNulls):
        parent = parent.parent
    return isinstance(parent, exp.Window)
