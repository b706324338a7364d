"""The tables that a client gives a statement, as they come: read, checked and counted.

    TableBatch ─▶ waiting messages ─▶ read, validated ─▶ whole tables, before the statement is planned
        ▲                          └▶ a stream that COPY reads, batch by batch
        └── TableCredit: what was taken may be sent again

Invariants:
- No more than `input_window_bytes` of messages wait; of whole tables no more than `given_bytes_max` are kept.
- A batch that is given out has the Arrow types of its columns, and was validated in full: what a client sends is not trusted.
- Rows are given in the order in which they came, each once; a table ends with its TableEnd, which says how many rows were sent, or with
  an error.
"""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import pyarrow as pa
import trio

from dsdb.protocol.messages import INPUT_BYTES, TableBatch, TableEnd, TableInput
from dsdb.session.limits import SessionLimits
from dsdb.sql.arrow_intake import checked
from dsdb.sql.errors import FeatureNotSupportedError, ProgramLimitError, ProtocolViolationError, QueryCanceledError
from dsdb.sql.execute.inputs import StatementInputs, inputs_of
from dsdb.sql.execute.result import ResultColumn, arrow_schema
from dsdb.sql.given_tables import Columns, GivenTable
from dsdb.sql.types import NUMERIC, TypeName
from dsdb.storage.errors import ValueRangeError


class GivenRows:
    """The tables of the statement that runs.  allow: lets the client send so many bytes more."""

    def __init__(self, tables: Sequence[TableInput], limits: SessionLimits, allow: Callable[[int], Awaitable[None]]) -> None:
        self._tables = tables
        self._limits = limits
        self._allow = allow
        self._waiting: deque[TableBatch | TableEnd] = deque()
        self._has_come = trio.Event()
        # Bytes that were taken and that the client was not told of yet.  At first it may send less than the window.
        self._taken_bytes = limits.input_window_bytes - INPUT_BYTES
        self._ended = 0

    def put(self, message: TableBatch | TableEnd) -> None:
        """Take what has come."""
        self._waiting.append(message)
        self._has_come.set()

    async def inputs(self) -> StatementInputs:
        """Read the whole tables, and begin the stream if one is left.  Raises SqlError."""
        tables: list[GivenTable] = []
        kept_bytes = 0
        for place, table in enumerate(self._tables):
            columns = _columns_of(table)
            if not table.number and not table.name:
                if place != len(self._tables) - 1:
                    raise ProtocolViolationError("what COPY reads comes after all other tables")
                return inputs_of(tuple(tables), RowStream(self, place, columns))
            if any(sql_type == NUMERIC for _, sql_type in columns):
                raise FeatureNotSupportedError("a given table has a column of numeric without precision", hint="Give it one.")
            schema = _schema_of(columns)
            batches: list[pa.RecordBatch] = []
            async for batch in self.batches(place, columns):
                kept_bytes += batch.nbytes
                if kept_bytes > self._limits.given_bytes_max:
                    raise ProgramLimitError(
                        f"the tables given with the statement have more than {self._limits.given_bytes_max >> 20} MiB",
                        hint="Put them into a table first (cursor.adbc_ingest, COPY), which has no such limit.",
                    )
                batches.append(batch)
            whole = pa.Table.from_batches(batches, schema)
            tables.append(GivenTable(number=table.number, name=table.name, columns=columns, table=whole))
        return inputs_of(tuple(tables), None)

    async def batches(self, place: int, columns: Columns) -> AsyncIterator[pa.RecordBatch]:
        """Give the batches of a table.  Raises SqlError."""
        schema = _schema_of(columns)
        rows = 0
        while True:
            while not self._waiting:
                self._has_come = trio.Event()
                await self._has_come.wait()
            message = self._waiting.popleft()
            assert message.table == place, "tables come in order"
            if isinstance(message, TableEnd):
                self._ended += 1
                if message.failure:
                    raise QueryCanceledError(f"the client could not give the rest of its rows: {message.failure}")
                if message.rows != rows:
                    raise ProtocolViolationError(f"{rows} rows of a given table have come, and {message.rows} were sent")
                return
            batch = _read(message, columns, schema, self._limits)
            rows += batch.num_rows
            yield batch
            await self._note_taken(len(message.arrow))

    async def _note_taken(self, size: int) -> None:
        self._taken_bytes += size
        is_at_end = bool(self._waiting) and isinstance(self._waiting[-1], TableEnd) and self._waiting[-1].table == len(self._tables) - 1
        if self._taken_bytes >= self._limits.input_window_bytes // 4 and not is_at_end:
            taken, self._taken_bytes = self._taken_bytes, 0
            await self._allow(taken)


class RowStream:
    """What COPY reads (`dsdb.sql.execute.inputs.InputStream`)."""

    def __init__(self, rows: GivenRows, place: int, columns: Columns) -> None:
        self.columns = columns
        self.is_begun = False
        self._rows = rows
        self._place = place

    def batches(self) -> AsyncIterator[pa.RecordBatch]:
        """Give the rows, once."""
        assert not self.is_begun, "a stream is read once"
        self.is_begun = True
        return self._rows.batches(self._place, self.columns)


def _columns_of(table: TableInput) -> Columns:
    if not table.columns:
        raise ProtocolViolationError("a given table has no columns")
    return tuple([(column.name, column.type) for column in table.columns])


def _schema_of(columns: Columns) -> pa.Schema:
    try:
        return arrow_schema([ResultColumn(name, sql_type) for name, sql_type in columns])
    except (ValueRangeError, pa.ArrowException, ValueError) as error:
        raise ProtocolViolationError(f"a given table has a column of no type: {error}") from None


def _read(message: TableBatch, columns: Columns, schema: pa.Schema, limits: SessionLimits) -> pa.RecordBatch:
    try:
        batch = pa.ipc.read_record_batch(pa.py_buffer(message.arrow), schema)
        for (_, sql_type), array in zip(columns, batch.columns):
            # In full: offsets and texts could point anywhere.  (Arrow refuses the time 24:00, which is one of ours.)
            array.validate(full=sql_type.name is not TypeName.TIME)
            checked(array, sql_type)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise ProtocolViolationError(f"rows of a given table cannot be read: {str(error).splitlines()[0][:200]}") from None
    if batch.nbytes > limits.given_bytes_max:
        raise ProgramLimitError(f"a batch of {batch.nbytes} bytes: at most {limits.given_bytes_max} are taken at once")
    return batch
