"""Keys and bounds of ranges, spelled for people by what the catalogue knows of the tables."""

from bisect import bisect_left, bisect_right

from dsdb.sql.catalog import Catalog
from dsdb.sql.rows import rows_of
from dsdb.sql.schema import DatabaseDescriptor, TableDescriptor
from dsdb.sql.text import format_text
from dsdb.storage.errors import KeyFormatError
from dsdb.storage.keys import KEY_MAX, KEY_MIN, META_PREFIX, SYSTEM_PREFIX, TABLE_PREFIX, Span, decode_id, decode_index_prefix


def bound_text(key: bytes, catalog: Catalog) -> str:
    """Spell a range's bound: `/table/t/1/42` where the catalogue knows the table, else its bytes."""
    if key == KEY_MIN:
        return "/min"
    if key >= KEY_MAX:
        return "/max"
    if key in (META_PREFIX, SYSTEM_PREFIX, TABLE_PREFIX):
        return {META_PREFIX: "/meta", SYSTEM_PREFIX: "/system", TABLE_PREFIX: "/table"}[key]
    try:
        database_id, table_id, index_id, offset = decode_index_prefix(key)
    except KeyFormatError:
        return _table_bound_text(key, catalog)
    tables = [table for table in catalog.tables(database_id) if table.table_id == table_id]
    if not tables:
        return f"/table/{database_id}/{table_id}/{index_id}/{key[offset:].hex()}".rstrip("/")
    text = f"/table/{tables[0].name}/{index_id}"
    try:
        values = _spelled(tables[0], key, offset) if len(key) > offset else []
    except KeyFormatError:
        return f"{text}/{key[offset:].hex()}"
    return "/".join([text, *values])


def _table_bound_text(key: bytes, catalog: Catalog) -> str:
    """Spell the bound of a table, which has no index: `/table/t`, else its bytes."""
    try:
        database_id, offset = decode_id(key, len(TABLE_PREFIX))
        table_id, offset = decode_id(key, offset)
    except KeyFormatError:
        return f"/{key.hex()}"
    if offset < len(key) or not key.startswith(TABLE_PREFIX):
        return f"/{key.hex()}"
    names = [table.name for table in catalog.tables(database_id) if table.table_id == table_id]
    return f"/table/{names[0]}" if names else f"/table/{database_id}/{table_id}"


def _spelled(table: TableDescriptor, key: bytes, offset: int) -> list[str]:
    """Spell the columns of a row's key.  Raises KeyFormatError."""
    rows = rows_of(table)
    values = rows.key_codec.decode(key, offset)
    return ["null" if value is None else format_text(value, column.type) for value, column in zip(values, rows.key_columns())]


class TableNames:
    """Which table a key, or all rows of a span, belong to."""

    def __init__(self, catalog: Catalog) -> None:
        described = [(database, table) for database in catalog.databases() for table in catalog.tables(database.database_id)]
        described.sort(key=lambda pair: rows_of(pair[1]).span)
        self._described: list[tuple[DatabaseDescriptor, TableDescriptor]] = described
        self._starts = [rows_of(table).span.start for _, table in described]
        self._ends = [rows_of(table).span.end for _, table in described]

    def only_one(self, span: Span) -> tuple[str | None, str | None]:
        """Give the database and the name of the one table that has keys in a span; (None, None) if none has, or several have."""
        begin, end = bisect_right(self._ends, span.start), bisect_left(self._starts, span.end)
        if end - begin != 1:
            return None, None
        database, table = self._described[begin]
        return database.name, table.name

    def of_row(self, key: bytes) -> tuple[str | None, str | None, str]:
        """Give the database and the table of a row's key, and its columns like `(42)`; (None, None, its bytes) if it is no row's."""
        at = bisect_right(self._starts, key) - 1
        if at < 0 or key >= self._ends[at]:
            return None, None, key.hex()
        database, table = self._described[at]
        try:
            text = f"({', '.join(_spelled(table, key, len(rows_of(table).prefix)))})"
        except KeyFormatError:
            text = key.hex()
        return database.name, table.name, text
