"""What one Execute gives: results, inline or streamed, as they come.

    Answer      all results of a text, in order; small ones are read ahead, so that their errors show at `execute`
    Inline      rows that came in one message
    Streamed    Arrow record batches, read when they are fetched, with credit given back for what was consumed

Invariants:
- A Streamed that is not read to its end holds its connection's next statement up until it is settled: kept in memory if somebody may
  still want it, cancelled if not.
"""

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from dsdb.driver.errors import DatabaseError
from dsdb.driver.values import Shape, shape_of
from dsdb.protocol.messages import Batch, Complete, Rows, Schema, ServerMessage

if TYPE_CHECKING:
    import pyarrow as pa

INLINE_ROWS_MAX = 256
CREDIT_BYTES = 4 << 20
"""Of batches on their way; a quarter consumed is given back at once."""


class Source(Protocol):
    """The connection, as an answer sees it."""

    def next_message(self, stream: int) -> ServerMessage:
        """Give the next message of a stream.  Raises the error that ended it, or OperationalError if the connection broke."""

    def give_credit(self, stream: int, credit_bytes: int) -> None:
        """Allow more batches."""

    def cancel_stream(self, stream: int) -> None:
        """Ask the node to stop a statement."""


class Inline:
    """A complete small result."""

    __slots__ = ("row_count", "rows", "shape", "tag")

    def __init__(self, message: Rows) -> None:
        self.shape = shape_of(bytes(message.columns))
        # As they came: `Shape.load` makes Python values of them.
        self.rows = message.rows
        self.tag = message.tag
        self.row_count = message.row_count


class Streamed:
    """A result in batches."""

    def __init__(self, source: Source, message: Schema) -> None:
        import pyarrow as pa  # noqa: PLC0415, RUF100 - costs 0.2 s, and small results do without

        self.shape: Shape = shape_of(bytes(message.columns))
        self.schema: pa.Schema = pa.ipc.read_schema(pa.py_buffer(message.arrow))
        self.tag = ""
        self.row_count: int | None = None
        self.is_ended = False
        self.has_more_results = False
        self._source = source
        self._stream = message.stream
        self._kept: deque[Batch] = deque()
        self._error: DatabaseError | None = None
        self._consumed_bytes = 0

    def next_batch(self) -> "pa.RecordBatch | None":
        """Give the next batch, None at the end.  Raises the error that ended the result."""
        if self._kept:
            return self._read(self._kept.popleft())
        if self._error is not None:
            raise self._error
        message = None if self.is_ended else self._receive()
        if message is None:
            return None
        self._consumed_bytes += len(message.arrow)
        if self._consumed_bytes >= CREDIT_BYTES // 4:
            self._source.give_credit(self._stream, self._consumed_bytes)
            self._consumed_bytes = 0
        return self._read(message)

    def settle(self, *, keep: bool) -> None:
        """Take the rest off the connection: into memory, or (cancelled) into nothing."""
        if self.is_ended:
            return
        if not keep:
            self._source.cancel_stream(self._stream)
        try:
            while (message := self._receive()) is not None:
                if keep:
                    self._kept.append(message)
                self._source.give_credit(self._stream, len(message.arrow))
        except DatabaseError as error:
            # Told to whoever fetches on, not to the statement that comes next.
            self._error = error

    def _read(self, message: Batch) -> "pa.RecordBatch":
        import pyarrow as pa  # noqa: PLC0415, RUF100

        return pa.ipc.read_record_batch(pa.py_buffer(message.arrow), self.schema)

    def _receive(self) -> Batch | None:
        try:
            message = self._source.next_message(self._stream)
        except BaseException:
            self.is_ended = True
            raise
        if isinstance(message, Batch):
            return message
        assert isinstance(message, Complete), message
        self.is_ended = True
        self.tag, self.row_count, self.has_more_results = message.tag, message.row_count, message.more
        return None


class Answer:
    """The results of one Execute."""

    __slots__ = ("__weakref__", "_results", "_source", "_stream", "streaming")

    def __init__(self, source: Source, stream: int, first: Rows | Schema) -> None:
        self._source = source
        self._stream = stream
        # The result whose batches are still on their way, if any.
        self.streaming: Streamed | None = None
        self._results: deque[Inline | Streamed] = deque()
        self._read_ahead(first)

    def _read_ahead(self, message: ServerMessage) -> None:
        """Take results until the last one, or one that streams."""
        while True:
            if type(message) is Rows:
                self._results.append(Inline(message))
                if not message.more:
                    return
            else:
                assert type(message) is Schema, message
                self.streaming = Streamed(self._source, message)
                self._results.append(self.streaming)
                return
            message = self._source.next_message(self._stream)

    def next_result(self) -> Inline | Streamed | None:
        """Give the next result, None after the last."""
        if not self._results and self.streaming is not None:
            self.streaming.settle(keep=False)
            more, self.streaming = self.streaming.has_more_results, None
            if more:
                self._read_ahead(self._source.next_message(self._stream))
        return self._results.popleft() if self._results else None

    def settle(self, *, keep: bool) -> None:
        """Take everything off the connection."""
        while self.streaming is not None:
            self.streaming.settle(keep=keep)
            more, self.streaming = self.streaming.has_more_results, None
            if more:
                self._read_ahead(self._source.next_message(self._stream))


def loaded_rows(shape: Shape, batch: "pa.RecordBatch") -> list[tuple[Any, ...]]:
    """Give a batch's rows as Python values."""
    from dsdb.sql.execute.result import ResultColumn, rows_of_batch  # noqa: PLC0415, RUF100

    columns = [ResultColumn(column.name, column.type) for column in shape.columns]
    return shape.load(rows_of_batch(batch, columns))


def inline_batch(result: Inline, start: int = 0) -> "pa.RecordBatch":
    """Give the rows of a small result, from one on, as a batch."""
    from dsdb.protocol.datums import row_datums  # noqa: PLC0415, RUF100
    from dsdb.sql.execute.result import ResultColumn, batch_of_rows  # noqa: PLC0415, RUF100

    columns = [ResultColumn(column.name, column.type) for column in result.shape.columns]
    return batch_of_rows(row_datums(result.shape.columns, result.rows[start:]), columns)
