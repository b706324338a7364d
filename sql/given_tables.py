"""Given tables: rows that come with a statement, as a parameter (`FROM $1`) or by a name that no table has (`FROM df`).

    client: Arrow ─▶ columns of SQL types, batches of exactly their Arrow types ─▶ node: bound like a table, gathered like one

Invariants:
- What a name means is looked for in the catalogue first: a table hides a given one.
- A statement's given tables are there, whole, before it is planned.

Not here: which Arrow type is which (`arrow_intake`), how batches come (`dsdb.session`).
"""

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import msgspec
import pyarrow as pa

from dsdb.sql.errors import DuplicateAliasError
from dsdb.sql.schema import ColumnDescriptor, IndexDescriptor, TableDescriptor
from dsdb.sql.types import TEXT, SqlType, TypeName

_DATABASE_ID = -1
"""Of their descriptors; no database has it."""

Columns: TypeAlias = tuple[tuple[str, SqlType], ...]
"""Names and types, in order."""
GivenTables: TypeAlias = Mapping[int | str, tuple[int, Columns]]
"""By the number of the parameter or by name: the place among the statement's given tables, and the columns."""

NO_TABLES: GivenTables = {}


def given_descriptor(place: int, name: str, columns: Columns) -> TableDescriptor:
    """Describe a given table as the binder wants tables.  place: among the statement's."""
    described = [
        ColumnDescriptor(column_id=at, name=column, type=TEXT if sql_type.name is TypeName.UNKNOWN else sql_type)
        for at, (column, sql_type) in enumerate(columns, start=1)
    ]
    return TableDescriptor(
        table_id=place,
        database_id=_DATABASE_ID,
        name=name,
        version=1,
        columns=tuple(described),
        primary=IndexDescriptor(index_id=1, name=f"{name}_pkey", columns=()),
        next_column_id=len(columns) + 1,
        next_index_id=2,
    )


def is_given(table: TableDescriptor) -> bool:
    """Say whether a table is one of these."""
    return table.database_id == _DATABASE_ID


class GivenTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table that a statement is given, whole.  number: of its parameter, or 0; name: by which it is called, if it is no parameter."""

    number: int
    name: str
    columns: Columns
    table: pa.Table

    @property
    def key(self) -> int | str:
        """Give what the statement calls it."""
        return self.number or self.name


def by_key(tables: Sequence[GivenTable]) -> GivenTables:
    """Give what the binder needs to know of tables.  Raises DuplicateAliasError."""
    found: dict[int | str, tuple[int, Columns]] = {}
    for place, table in enumerate(tables):
        if table.key in found:
            raise DuplicateAliasError(f"two tables are given as {table.key}")
        found[table.key] = (place, table.columns)
    return found
