"""The virtual tables of schema `system`: what the cluster says of itself, as tables that every SELECT can read.

    SELECT … FROM system.locks JOIN t ON …
                  └ descriptor from here ▸ rows gathered before the engine runs (`execute.system_rows`)

Invariants:
- They are in no catalogue: every database has them, no lease covers them, nobody can change them.
- A column keeps its name, type and place for ever; new ones come at the end.

Not here: who answers for the rows (`ports.ClusterView`).
"""

import difflib

from dsdb.sql.errors import InsufficientPrivilegeError, SqlError, UndefinedTableError, WrongObjectTypeError
from dsdb.sql.schema import ColumnDescriptor, IndexDescriptor, TableDescriptor
from dsdb.sql.types import BIGINT, BOOL, DOUBLE, TEXT, TIMESTAMPTZ, SqlType

SYSTEM_SCHEMA = "system"
_DATABASE_ID = 0
"""Of no database: real ones begin at 1."""

_COLUMNS: dict[str, tuple[tuple[str, SqlType], ...]] = {
    "events": (
        ("event_id", BIGINT),
        ("happened_at", TIMESTAMPTZ),
        ("kind", TEXT),
        ("range_id", BIGINT),
        ("what", TEXT),
        ("is_done", BOOL),
    ),
    "jobs": (
        ("kind", TEXT),
        ("range_id", BIGINT),
        ("node_id", BIGINT),
        ("what", TEXT),
        ("started_at", TIMESTAMPTZ),
        ("left_to_do", BIGINT),
        ("unit", TEXT),
        ("job_id", BIGINT),
        ("state", TEXT),
        ("done", BIGINT),
        ("why", TEXT),
        ("ended_at", TIMESTAMPTZ),
    ),
    "leases": (
        ("range_id", BIGINT),
        ("database_name", TEXT),
        ("table_name", TEXT),
        ("node_id", BIGINT),
        ("start_key", TEXT),
        ("end_key", TEXT),
        ("requests_per_s", DOUBLE),
    ),
    "locks": (
        ("range_id", BIGINT),
        ("database_name", TEXT),
        ("table_name", TEXT),
        ("key", TEXT),
        ("holder", TEXT),
        ("holder_node", BIGINT),
        ("held_since", TIMESTAMPTZ),
        ("waiters", BIGINT),
    ),
    "nodes": (
        ("node_id", BIGINT),
        ("address", TEXT),
        ("is_live", BOOL),
        ("ranges", BIGINT),
        ("leases", BIGINT),
        ("locality", TEXT),
        ("state", TEXT),
    ),
    "ranges": (
        ("range_id", BIGINT),
        ("database_name", TEXT),
        ("table_name", TEXT),
        ("start_key", TEXT),
        ("end_key", TEXT),
        ("leaseholder", BIGINT),
        ("replicas", TEXT),
        ("quarantined", TEXT),
        ("bytes", BIGINT),
        ("requests_per_s", DOUBLE),
        ("blocks", BIGINT),
    ),
    "range_settings": (
        ("database_name", TEXT),
        ("table_name", TEXT),
        ("max_bytes", BIGINT),
        ("load_requests", BIGINT),
        ("load_bytes", BIGINT),
        ("replicas", BIGINT),
        ("constraints", TEXT),
        ("lease_preference", TEXT),
    ),
    "settings": (("name", TEXT), ("value", TEXT), ("description", TEXT), ("scope", TEXT), ("default_value", TEXT)),
    "stores": (
        ("store_id", BIGINT),
        ("node_id", BIGINT),
        ("liveness", TEXT),
        ("silence_s", DOUBLE),
        ("replicas", BIGINT),
        ("leases", BIGINT),
        ("used_bytes", BIGINT),
        ("capacity_bytes", BIGINT),
        ("requests_per_s", DOUBLE),
    ),
    "transactions": (
        ("node_id", BIGINT),
        ("session_id", BIGINT),
        ("attempt", TEXT),
        ("started_at", TIMESTAMPTZ),
        ("state", TEXT),
        ("statement", TEXT),
        ("read_timestamp", TIMESTAMPTZ),
        ("writes", BIGINT),
        ("bytes", BIGINT),
    ),
}


def _described(table_id: int, name: str) -> TableDescriptor:
    columns = tuple(ColumnDescriptor(column_id=at, name=column, type=type_) for at, (column, type_) in enumerate(_COLUMNS[name], start=1))
    return TableDescriptor(
        table_id=table_id,
        database_id=_DATABASE_ID,
        name=name,
        version=1,
        columns=columns,
        primary=IndexDescriptor(index_id=1, name=f"{name}_pkey", columns=()),
        next_column_id=len(columns) + 1,
        next_index_id=2,
    )


SYSTEM_TABLES = {name: _described(number, name) for number, name in enumerate(sorted(_COLUMNS), start=1)}
"""By name."""


def is_virtual(table: TableDescriptor) -> bool:
    """Say whether a table is one of these."""
    return table.database_id == _DATABASE_ID


def system_table(name: str, *, position: int | None = None) -> TableDescriptor:
    """Give a table of the schema.  Raises UndefinedTableError."""
    found = SYSTEM_TABLES.get(name)
    if found is None:
        close = difflib.get_close_matches(name, SYSTEM_TABLES, 1)
        hint = f'did you mean "{SYSTEM_SCHEMA}.{close[0]}"?' if close else f"The tables there are {', '.join(SYSTEM_TABLES)}."
        raise UndefinedTableError(f'relation "{SYSTEM_SCHEMA}.{name}" does not exist', hint=hint, position=position)
    return found


def only_readable(name: str) -> SqlError:
    """Give the error for a statement that wants more of a table of the schema, or of the schema itself, than to read it."""
    if name in SYSTEM_TABLES:
        return WrongObjectTypeError(f'"{SYSTEM_SCHEMA}.{name}" is a virtual table: it can only be read')
    message = f'schema "{SYSTEM_SCHEMA}" has virtual tables only: nothing can be made or changed in it'
    return InsufficientPrivilegeError(message, hint='Use schema "public".')
