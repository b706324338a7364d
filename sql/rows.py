"""A table's rows as keys and values: what a descriptor says about stored bytes, compiled once a version.

    row (one datum a column, in descriptor order)  ──▶  key:   index prefix | primary key columns   (`storage.keycodec`)
                                                   ──▶  value: all columns                           (`storage.rowcodec`)

The key's columns are in the value too: a scan then reads values alone, and the spelling (1.50, `30 days`), which a key does not keep,
is there.

Invariants:
- A row that was written is read back equal, its spelling included.
- Codecs follow from the descriptor alone: the same (table, version, index) gives the same bytes on every node.
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import pyarrow as pa

from dsdb.sql.errors import NumericOutOfRangeError, ProgramLimitError
from dsdb.sql.schema import ColumnDescriptor, TableDescriptor
from dsdb.sql.types import SqlType, TypeName
from dsdb.storage.datum import Datum
from dsdb.storage.errors import ValueRangeError
from dsdb.storage.keycodec import KeyColumn, key_codec
from dsdb.storage.keys import Span, index_prefix, prefix_span
from dsdb.storage.rowcodec import LayoutColumn, RowLayout, codec_for

Row: TypeAlias = tuple[Datum, ...]

KEY_BYTES_MAX = 8 * 1024
"""Bytes of one primary key: keys are in every index block and range descriptor."""

_WIDTHS = {TypeName.SMALLINT: 2, TypeName.INT: 4, TypeName.BIGINT: 8, TypeName.REAL: 4, TypeName.DOUBLE: 8}


def layout_column(column_id: int, sql_type: SqlType) -> LayoutColumn:
    """Give how a column of a type is stored."""
    return LayoutColumn(
        column_id=column_id,
        kind=sql_type.kind,
        width=_WIDTHS.get(sql_type.name, 8),
        precision=sql_type.precision,
        scale=sql_type.scale or 0,
        utc=sql_type.name is TypeName.TIMESTAMPTZ,
    )


class TableRows:
    """Encodes and decodes the rows of one version of a table.

    prefix, span: of all keys of the primary index; key_positions: where the key's columns stand in a row, in key order; layout: of the
    row values; decode: value → row, raises CorruptionError; encode_batch: record batch of the layout → values, raises ValueRangeError.
    """

    def __init__(self, table: TableDescriptor) -> None:
        self.table = table
        self.prefix = index_prefix(table.database_id, table.table_id, table.primary.index_id)
        self.span: Span = prefix_span(self.prefix)
        positions = {column.column_id: position for position, column in enumerate(table.columns)}
        self.key_positions = tuple(positions[part.column_id] for part in table.primary.columns)
        self.key_codec = key_codec(
            tuple(KeyColumn(kind=table.columns[positions[p.column_id]].type.kind, descending=p.descending) for p in table.primary.columns)
        )
        self._char_positions = frozenset(
            index for index, position in enumerate(self.key_positions) if table.columns[position].type.name is TypeName.CHAR
        )
        self.layout = row_layout(table)
        self._codec = codec_for(self.layout)
        self.decode: Callable[[bytes], Row] = self._codec.decode
        self.encode_batch: Callable[[pa.RecordBatch], list[bytes]] = self._codec.encode_batch

    @property
    def has_padded_key(self) -> bool:
        """Say whether a column of the key is a CHAR, which compares without its padding: only `key_of` knows how."""
        return bool(self._char_positions)

    def key(self, row: Sequence[Datum]) -> bytes:
        """Give the key of a row.  Raises ProgramLimitError on a key that is too long."""
        return self.key_of([row[position] for position in self.key_positions])

    def key_of(self, values: Sequence[Datum]) -> bytes:
        """Give the key of the values of the primary key's columns, in key order."""
        if self._char_positions:
            # CHAR compares without the blanks that pad it.
            values = [v.rstrip(" ") if i in self._char_positions and isinstance(v, str) else v for i, v in enumerate(values)]
        try:
            key = self.key_codec.encode(values, self.prefix)
        except ValueRangeError as error:
            raise NumericOutOfRangeError(f'a value of the primary key of table "{self.table.name}" is out of range: {error}') from error
        if len(key) > KEY_BYTES_MAX:
            raise ProgramLimitError(f'a primary key of {len(key)} bytes in table "{self.table.name}": at most {KEY_BYTES_MAX} are possible')
        return key

    def value(self, row: Sequence[Datum]) -> bytes:
        """Give the row value of a row.  Raises NumericOutOfRangeError on a datum that its column cannot store."""
        try:
            return self._codec.encode(row)
        except ValueRangeError as error:
            raise NumericOutOfRangeError(f'a value of table "{self.table.name}" is out of range: {error}') from error

    def key_columns(self) -> tuple[ColumnDescriptor, ...]:
        """Give the primary key's columns in key order."""
        return tuple(self.table.columns[position] for position in self.key_positions)


def row_layout(table: TableDescriptor) -> RowLayout:
    """Give the layout of a table's row values: all its columns in descriptor order."""
    return RowLayout(layout_id=table.layout_id, columns=tuple(layout_column(column.column_id, column.type) for column in table.columns))


_ROWS_MAX = 4096
"""Table versions that are kept compiled."""
_compiled: dict[tuple[int, int, int], TableRows] = {}


def rows_of(table: TableDescriptor) -> TableRows:
    """Give the compiled rows of a table."""
    identity = (table.table_id, table.version, table.primary.index_id)
    rows = _compiled.get(identity)
    # Two catalogues of one process (tests, embedded nodes) may use the same ids for different tables.
    if rows is None or (rows.table is not table and rows.table != table):
        if len(_compiled) >= _ROWS_MAX:
            _compiled.clear()
        rows = _compiled[identity] = TableRows(table)
    return rows


def primary_key(table: TableDescriptor, values: Sequence[Datum]) -> bytes:
    """Give the key of the values of the primary key's columns, in key order."""
    return rows_of(table).key_of(values)


def row_value(table: TableDescriptor, row: Sequence[Datum]) -> bytes:
    """Give the row value of a row."""
    return rows_of(table).value(row)
