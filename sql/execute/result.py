"""What a statement gives: columns and rows (few: datums; many: Arrow record batches), a tag and a row count.

    small results   rows     one tuple of datums a row, by the point path and by RETURNING
    large results   batches  record batches of exactly `arrow_schema(columns)`, streamed

Invariants:
- A result with columns has exactly one of `rows` and `batches`; one without columns has neither.
- Batches are consumed, or closed, before the session's next statement runs.
"""

from collections.abc import AsyncIterator, Sequence

import msgspec
import pyarrow as pa

from dsdb.sql.rows import Row, layout_column
from dsdb.sql.types import SqlType
from dsdb.storage import rowarrow
from dsdb.storage.datum import Datum


class ResultColumn(msgspec.Struct, frozen=True, array_like=True):
    """A column of a result: its name as Postgres gives it, and its type."""

    name: str
    type: SqlType


class Parameter(msgspec.Struct, frozen=True, array_like=True):
    """A parameter's value.  A Python str arrives as UNKNOWN: its context decides."""

    type: SqlType
    value: Datum


class Notice(msgspec.Struct, frozen=True, array_like=True):
    """A sentence for the user that is no error, with its SQLSTATE and severity (NOTICE or WARNING) as in Postgres."""

    message: str
    sqlstate: str = "00000"
    severity: str = "NOTICE"

    def __str__(self) -> str:
        return self.message


class Result:
    """What one statement gave.

    tag: the command tag as Postgres spells it (`SELECT 2`, `INSERT 0 3`, `CREATE TABLE`); of streamed rows without their number.
    row_count: rows given or touched; None if not known yet (streamed) or without meaning (DDL).
    notices: what the user is told that is no error (`table "t" does not exist, skipping`).
    """

    __slots__ = ("batches", "columns", "notices", "row_count", "rows", "tag")

    def __init__(
        self,
        tag: str,
        *,
        columns: tuple[ResultColumn, ...] = (),
        rows: list[Row] | None = None,
        batches: AsyncIterator[pa.RecordBatch] | None = None,
        row_count: int | None = None,
        notices: tuple[Notice, ...] = (),
    ) -> None:
        self.tag = tag
        self.columns = columns
        self.rows = rows
        self.batches = batches
        self.row_count = row_count
        self.notices = notices


def arrow_type(sql_type: SqlType) -> pa.DataType:
    """Give the Arrow type of a SQL type; a DECIMAL without precision is text in its plain spelling."""
    return rowarrow.arrow_type(layout_column(0, sql_type))


def arrow_schema(columns: Sequence[ResultColumn]) -> pa.Schema:
    """Give the schema of a result's batches."""
    return pa.schema([pa.field(column.name, arrow_type(column.type)) for column in columns])


def batch_of_rows(rows: Sequence[Row], columns: Sequence[ResultColumn]) -> pa.RecordBatch:
    """Turn rows of datums into one record batch of `arrow_schema(columns)`.

    Raises ValueRangeError on a value that its column cannot hold.
    """
    by_column: Sequence[Sequence[Datum]] = list(zip(*rows)) if rows else [()] * len(columns)
    arrays = [rowarrow.datums_to_arrow(layout_column(0, column.type), values) for column, values in zip(columns, by_column)]
    return rowarrow.batch_of(arrays, [column.name for column in columns], len(rows))


def rows_of_batch(batch: pa.RecordBatch, columns: Sequence[ResultColumn]) -> list[Row]:
    """Turn a record batch of `arrow_schema(columns)` into rows of datums."""
    if not columns:
        return [()] * batch.num_rows
    return list(zip(*(rowarrow.array_to_datums(column.type.kind, array) for array, column in zip(batch.columns, columns))))
