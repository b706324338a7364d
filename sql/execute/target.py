"""The table that a statement writes: its columns as names, and its rules (NOT NULL, CHECK, DEFAULT) as compiled functions.

    engine names   c1, c2, …   columns of the row             positions 0 … n−1 of what compiled functions are given
                   e1, e2, …   `excluded` (ON CONFLICT)        positions n … 2n−1

Invariants:
- A row that passed `check` has no NULL where none may be, and no CHECK is false for it.
- Stored expressions are bound when the plan is made, so that a broken one fails before any row is written.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

from sqlglot import exp

from dsdb.sql.bind.query_names import output_name
from dsdb.sql.bind.query_scope import QueryScope, Relation, RelationColumn
from dsdb.sql.errors import (
    CheckViolationError,
    DatatypeMismatchError,
    DuplicateColumnError,
    FeatureNotSupportedError,
    NotNullViolationError,
    UndefinedColumnError,
    UniqueViolationError,
)
from dsdb.sql.execute.binding import StatementBinder
from dsdb.sql.execute.result import ResultColumn
from dsdb.sql.parse import parse_expression, position_of
from dsdb.sql.rows import Row, TableRows, rows_of
from dsdb.sql.schema import ColumnDescriptor, TableDescriptor
from dsdb.sql.text import format_text
from dsdb.storage.datum import Datum

Compiled: TypeAlias = Callable[[Sequence[Datum], Sequence[Datum]], Datum]
"""(row, parameters) → datum."""

EXCLUDED = "excluded"


class Target:
    """A table that is written under a name.

    relation, scope: its columns as names; columns: the position in a row of each engine name.
    """

    def __init__(self, table: TableDescriptor, database: str, *, alias: str | None = None) -> None:
        self.table = table
        self.rows: TableRows = rows_of(table)
        self.relation = _relation(table, alias or table.name, "c", () if alias else (database, "public"))
        self.scope = QueryScope((self.relation,), self.relation.columns)
        self.columns: Mapping[str, int] = {column.engine_name: column.ordinal for column in self.relation.columns}

    def with_excluded(self) -> tuple[QueryScope, Mapping[str, int]]:
        """Give the scope of ON CONFLICT DO UPDATE: the row that is there, and `excluded`, the row that was to be inserted."""
        excluded = _relation(self.table, EXCLUDED, "e", ())
        width = len(self.table.columns)
        columns = {**self.columns, **{column.engine_name: width + column.ordinal for column in excluded.columns}}
        return QueryScope((self.relation, excluded), self.relation.columns + excluded.columns), columns

    def position(self, name: str, *, node: exp.Expr | None = None) -> int:
        """Give the position of a column by name.  Raises UndefinedColumnError, DatatypeMismatchError (a field of a column)."""
        if isinstance(node, exp.Column) and len(node.parts) > 1:
            first = node.parts[0].name
            if any(column.name == first for column in self.table.columns):
                raise DatatypeMismatchError(
                    f'cannot assign to field "{name}" of column "{first}" because its type is not a composite type',
                    position=position_of(node),
                )
            name = first
        for position, column in enumerate(self.table.columns):
            if column.name == name and not column.hidden:
                return position
        raise UndefinedColumnError(f'column "{name}" of relation "{self.table.name}" does not exist', position=position_of(node))

    def positions(self, names: Sequence[exp.Expr]) -> list[int]:
        """Give the positions of a column list.  Raises UndefinedColumnError, DuplicateColumnError."""
        found: list[int] = []
        for node in names:
            position = self.position(node.name, node=node)
            if position in found:
                raise DuplicateColumnError(f'column "{node.name}" specified more than once', position=position_of(node))
            found.append(position)
        return found

    def visible_positions(self) -> list[int]:
        """Give the positions of all columns that `*` names."""
        return [position for position, column in enumerate(self.table.columns) if not column.hidden]


def _relation(table: TableDescriptor, alias: str, prefix: str, qualifier: tuple[str, ...]) -> Relation:
    columns = tuple(
        RelationColumn(
            name=column.name,
            engine_name=f"{prefix}{position + 1}",
            type=column.type,
            nullable=column.nullable,
            ordinal=position,
            hidden=column.hidden,
        )
        for position, column in enumerate(table.columns)
    )
    return Relation(alias=alias, columns=columns, qualifier=qualifier)


class RowRules:
    """NOT NULL and CHECK of a table, compiled."""

    def __init__(self, target: Target, binder: StatementBinder) -> None:
        self._table = target.table
        self._required = tuple(position for position, column in enumerate(target.table.columns) if not column.nullable)
        self._checks = tuple(
            (check.name, binder.compiled(binder.condition(parse_expression(check.expression), target.scope, "CHECK"), target.columns))
            for check in target.table.checks
        )

    def check(self, row: Sequence[Datum], parameters: Sequence[Datum]) -> None:
        """Refuse a row that breaks a rule.  Raises NotNullViolationError, CheckViolationError."""
        for position in self._required:
            if row[position] is None:
                column = self._table.columns[position]
                raise NotNullViolationError(
                    f'null value in column "{column.name}" of relation "{self._table.name}" violates not-null constraint',
                    detail=f"Failing row contains {self._spelled(row)}.",
                )
        for name, holds in self._checks:
            if holds(row, parameters) is False:
                raise CheckViolationError(
                    f'new row for relation "{self._table.name}" violates check constraint "{name}"',
                    detail=f"Failing row contains {self._spelled(row)}.",
                )

    def _spelled(self, row: Sequence[Datum]) -> str:
        shown = [
            "null" if value is None else format_text(value, column.type)
            for value, column in zip(row, self._table.columns)
            if not column.hidden
        ]
        return f"({', '.join(shown)})"


def compile_default(target: Target, column: ColumnDescriptor, binder: StatementBinder) -> Compiled | None:
    """Compile a column's DEFAULT; None if it has none (NULL)."""
    if column.default is None:
        return None
    bound = binder.assigned(parse_expression(column.default), QueryScope((), ()), column, "DEFAULT")
    return binder.compiled(bound, {})


class Returning:
    """RETURNING, compiled: the columns it gives, and their values of a row."""

    def __init__(self, node: exp.Returning, target: Target, binder: StatementBinder) -> None:
        columns: list[ResultColumn] = []
        values: list[Compiled] = []
        for item in node.expressions:
            if isinstance(item, exp.Star) or (isinstance(item, exp.Column) and isinstance(item.this, exp.Star)):
                qualifiers = () if isinstance(item, exp.Star) else tuple(part.name for part in item.parts[:-1])
                for column in target.scope.expand_star(qualifiers, position_of(item)):
                    columns.append(ResultColumn(column.name, column.type))
                    values.append(_picker(column.ordinal))
                continue
            bound = binder.scalar(item.this if isinstance(item, exp.Alias) else item, target.scope, "RETURNING")
            if not binder.is_evaluable(bound):
                raise FeatureNotSupportedError("RETURNING takes expressions without sub-queries", position=position_of(item))
            columns.append(ResultColumn(output_name(item, binder.type_of(bound).name), binder.type_of(bound)))
            values.append(binder.compiled(bound, target.columns))
        self.columns = tuple(columns)
        self._values = tuple(values)

    def row(self, row: Row, parameters: Sequence[Datum]) -> Row:
        """Give what is returned of a row."""
        return tuple([value(row, parameters) for value in self._values])


def _picker(position: int) -> Compiled:
    return lambda row, parameters: row[position]


def unique_violation(rows: TableRows, key_values: Sequence[Datum]) -> UniqueViolationError:
    """Say, as Postgres does, which key is already there."""
    table = rows.table
    named = [(column, value) for column, value in zip(rows.key_columns(), key_values) if not column.hidden]
    names = ", ".join(column.name for column, _ in named)
    values = ", ".join("null" if value is None else format_text(value, column.type) for column, value in named)
    return UniqueViolationError(
        f'duplicate key value violates unique constraint "{table.primary.name}"', detail=f"Key ({names})=({values}) already exists."
    )
