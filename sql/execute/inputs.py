"""What comes with a statement besides its text and values: whole tables for its queries, or a stream of rows for COPY.

Invariants:
- A stream is read once: a statement that has begun to read it is never run again by itself.
"""

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec
import pyarrow as pa

from dsdb.sql.given_tables import Columns, GivenTable


class InputStream(Protocol):
    """Rows on their way from the client.

    columns: their names and types; is_begun: whether somebody has begun to read them.
    """

    columns: Columns
    is_begun: bool

    def batches(self) -> AsyncIterator[pa.RecordBatch]:
        """Give the rows, in batches of the Arrow types of the columns; the client is held up while nobody asks.

        Raises SqlError: the client cannot go on, or has sent what is no such batch.
        """


class StatementInputs(msgspec.Struct, frozen=True, kw_only=True):
    """What comes with one statement.  shape: equal for statements that one plan can serve."""

    tables: tuple[GivenTable, ...] = ()
    stream: InputStream | None = None
    shape: tuple[object, ...] = ()


NO_INPUTS = StatementInputs()


def inputs_of(tables: tuple[GivenTable, ...], stream: InputStream | None) -> StatementInputs:
    """Put together what comes with a statement."""
    shape = tuple((table.key, table.columns) for table in tables)
    return StatementInputs(tables=tables, stream=stream, shape=shape if stream is None else (*shape, stream.columns))
