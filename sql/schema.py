"""Descriptors: the frozen description of databases, tables and sequences, as stored in the catalogue.

Invariants:
- Ids of databases, tables, columns and indexes are never reused; a new primary index (TRUNCATE) takes a new index id.
- Everything stored about a table follows from its descriptor: key prefix, key codec, row layout.
- Stored descriptors grow only by optional fields at the end.
"""

import msgspec

from dsdb.sql.types import SqlType

DEFAULT_DATABASE = "defaultdb"
FIRST_DATABASE_ID = 1


class IdentityKind(msgspec.Struct, frozen=True, array_like=True):
    """How a column takes values from its sequence.  always: GENERATED ALWAYS, else BY DEFAULT (SERIAL too)."""

    sequence_id: int
    always: bool = False


class ColumnDescriptor(msgspec.Struct, frozen=True, kw_only=True):
    """A column of a table.  default: SQL text of its DEFAULT expression, or None."""

    column_id: int
    name: str
    type: SqlType
    nullable: bool = True
    default: str | None = None
    identity: IdentityKind | None = None
    hidden: bool = False
    """The row id that stands in for a missing primary key: not in `*`, not to be named."""


class IndexColumn(msgspec.Struct, frozen=True, array_like=True):
    """A column of an index key."""

    column_id: int
    descending: bool = False


class IndexDescriptor(msgspec.Struct, frozen=True, kw_only=True):
    """An index; the primary one holds the rows themselves."""

    index_id: int
    name: str
    columns: tuple[IndexColumn, ...]
    unique: bool = True


class CheckDescriptor(msgspec.Struct, frozen=True, kw_only=True):
    """A CHECK constraint.  expression: SQL text over the table's column names."""

    name: str
    expression: str


class TableDescriptor(msgspec.Struct, frozen=True, kw_only=True):
    """A table.  version grows by one with each change; layout_id names the columns and their order in stored rows."""

    table_id: int
    database_id: int
    name: str
    version: int
    columns: tuple[ColumnDescriptor, ...]
    primary: IndexDescriptor
    checks: tuple[CheckDescriptor, ...] = ()
    layout_id: int = 1
    next_column_id: int
    next_index_id: int
    estimated_rows: int = 0

    def column(self, name: str) -> ColumnDescriptor | None:
        """Give a column by its exact name, or None."""
        return next((column for column in self.columns if column.name == name), None)

    def column_by_id(self, column_id: int) -> ColumnDescriptor:
        """Give a column by id; KeyError if there is none."""
        for column in self.columns:
            if column.column_id == column_id:
                return column
        raise KeyError(column_id)


class SequenceDescriptor(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence; its next value is stored beside the catalogue, and nodes take values in blocks of `cache`."""

    sequence_id: int
    database_id: int
    name: str
    increment: int = 1
    start: int = 1
    minimum: int = 1
    maximum: int = 2**63 - 1
    cache: int = 1
    owner_table_id: int | None = None


class DatabaseDescriptor(msgspec.Struct, frozen=True, kw_only=True):
    """A database: a name space of tables."""

    database_id: int
    name: str
