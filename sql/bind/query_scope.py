"""What names mean inside a query: the relations of a FROM, their columns, and the queries around it.

    SELECT … FROM a JOIN b USING (id), c      relations  a(id, x) b(id, y) c(id, z)
                                              visible    id x y id z            what `*` gives; a USING column stands once

Invariants:
- Every column of every relation has an engine name that is unique in the statement, so that bound columns need no qualifier and
  a reference to an outer query means itself.
- A name is looked for from the inside out; the first query that has it decides.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from sqlglot import exp

from dsdb.sql.bind.scalar import ScopeColumn
from dsdb.sql.errors import AmbiguousColumnError, DuplicateAliasError, FeatureNotSupportedError, UndefinedColumnError, UndefinedTableError
from dsdb.sql.schema import TableDescriptor
from dsdb.sql.types import SqlType


class RelationColumn(msgspec.Struct, frozen=True, kw_only=True):
    """A column of a relation.  ordinal: its position in the relation; hidden: neither in `*` nor to be named."""

    name: str
    engine_name: str
    type: SqlType
    nullable: bool = True
    ordinal: int = 0
    hidden: bool = False

    def scope_column(self) -> ScopeColumn:
        """Give it as scalars see it."""
        return ScopeColumn(engine_name=self.engine_name, type=self.type, nullable=self.nullable, ordinal=self.ordinal)


class Relation(msgspec.Struct, frozen=True, kw_only=True):
    """A table, sub-query or function in FROM.  qualifier: database and schema by which its columns may be named too, or nothing."""

    alias: str
    columns: tuple[RelationColumn, ...]
    qualifier: tuple[str, ...] = ()

    def answers_to(self, qualifiers: Sequence[str]) -> bool:
        """Say whether `[[database.]schema.]table` names it."""
        if not qualifiers or qualifiers[-1] != self.alias:
            return False
        prefix = tuple(qualifiers[:-1])
        return not prefix or (bool(self.qualifier) and prefix == self.qualifier[len(self.qualifier) - len(prefix) :])


class BaseSource:
    """One use of a base table: what a leaf stage will read.

    input_name: what the gateway's query calls it; positions: of each engine name, in `table.columns`; filters: conjuncts on its
    columns alone that it applies itself; they stand nowhere else.
    """

    def __init__(self, input_name: str, table: TableDescriptor, positions: dict[str, int]) -> None:
        self.input_name = input_name
        self.table = table
        self.positions = positions
        self.filters: list[exp.Expr] = []


class BoundQuery(msgspec.Struct, kw_only=True):
    """A bound query: its tree, whose output columns are called by their engine names, and these columns."""

    tree: exp.Query
    columns: tuple[RelationColumn, ...]


class FromItem(msgspec.Struct, kw_only=True):
    """A part of FROM: its tree, its relations, the columns that `*` gives, and the sources on which conditions may act early.

    filterable: sources whose rows, if they fail a condition on them alone, cannot show in the part's rows (not NULL-extended).
    """

    tree: exp.Expr | None
    joins: list[exp.Join]
    relations: tuple[Relation, ...]
    visible: tuple[RelationColumn, ...]
    filterable: tuple[BaseSource, ...]


class QueryScope:
    """Resolves the names of one query; `parent` resolves those it does not have."""

    def __init__(
        self,
        relations: Sequence[Relation],
        visible: Sequence[RelationColumn],
        parent: "QueryScope | None" = None,
        ctes: Mapping[str, Any] | None = None,
    ) -> None:
        self.relations = tuple(relations)
        self.visible = tuple(visible)
        self.parent = parent
        self.ctes = ctes or {}
        """Common table expressions in reach of its sub-queries (`query_state.Cte`)."""
        self.engine_names = {column.engine_name for relation in relations for column in relation.columns}
        self.engine_names.update(column.engine_name for column in visible)
        self.aggregates: list[exp.Expr] = []
        """Aggregate nodes bound in this query so far."""

    def resolve(self, parts: tuple[str, ...], position: int | None) -> ScopeColumn:
        """Find a column.  Raises UndefinedColumnError, UndefinedTableError, AmbiguousColumnError."""
        scope: QueryScope | None = self
        while scope is not None:
            found = scope._find(parts, position)
            if found is not None:
                return found.scope_column()
            scope = scope.parent
        raise self._missing(parts, position)

    def has(self, name: str) -> bool:
        """Say whether this query itself has a column of that name."""
        return any(column.name == name and not column.hidden for column in self.visible)

    def _find(self, parts: tuple[str, ...], position: int | None) -> RelationColumn | None:
        *qualifiers, name = parts
        if not qualifiers:
            return _only([column for column in self.visible if column.name == name and not column.hidden], name, position)
        relations = [relation for relation in self.relations if relation.answers_to(qualifiers)]
        if len(relations) > 1:
            raise AmbiguousColumnError(f'table reference "{qualifiers[-1]}" is ambiguous', position=position)
        if not relations:
            return None
        found = _only([column for column in relations[0].columns if column.name == name and not column.hidden], name, position)
        if found is None:
            known = [column.name for column in relations[0].columns if not column.hidden]
            raise UndefinedColumnError(f"column {'.'.join(parts)} does not exist", hint=_suggestion(name, known), position=position)
        return found

    def _missing(self, parts: tuple[str, ...], position: int | None) -> Exception:
        *qualifiers, name = parts
        if qualifiers:
            return UndefinedTableError(f'missing FROM-clause entry for table "{qualifiers[-1]}"', position=position)
        scopes: list[QueryScope] = []
        scope: QueryScope | None = self
        while scope is not None:
            scopes.append(scope)
            scope = scope.parent
        if any(relation.alias == name for scope in scopes for relation in scope.relations):
            return FeatureNotSupportedError(f'"{name}" names a table: a whole row as a value is not supported', position=position)
        known = [column.name for scope in scopes for column in scope.visible if not column.hidden]
        return UndefinedColumnError(f'column "{name}" does not exist', hint=_suggestion(name, known), position=position)

    def expand_star(self, qualifiers: tuple[str, ...], position: int | None) -> tuple[RelationColumn, ...]:
        """Give the columns of `*` or `table.*`.  Raises UndefinedTableError."""
        if not qualifiers:
            return tuple(column for column in self.visible if not column.hidden)
        for relation in self.relations:
            if relation.answers_to(qualifiers):
                return tuple(column for column in relation.columns if not column.hidden)
        raise UndefinedTableError(f'missing FROM-clause entry for table "{qualifiers[-1]}"', position=position)


def check_aliases(relations: Iterable[Relation]) -> None:
    """Raise DuplicateAliasError if two relations of one FROM have the same name."""
    seen: dict[str, Relation] = {}
    for relation in relations:
        other = seen.get(relation.alias)
        if relation.alias and other is not None and (not relation.qualifier or relation.qualifier == other.qualifier):
            raise DuplicateAliasError(f'table name "{relation.alias}" specified more than once')
        seen[relation.alias] = relation


def _only(found: list[RelationColumn], name: str, position: int | None) -> RelationColumn | None:
    if len(found) > 1:
        raise AmbiguousColumnError(f'column reference "{name}" is ambiguous', position=position)
    return found[0] if found else None


def _suggestion(name: str, known: Sequence[str]) -> str | None:
    close = difflib.get_close_matches(name, known, 1)
    return f'did you mean "{close[0]}"?' if close else None
