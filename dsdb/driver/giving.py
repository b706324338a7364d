"""Sending a statement's tables behind it: never more than the node allows, and not one row more once it has answered.

Invariants:
- Each table that was announced is ended, so that the connection can be used whatever happened; if rows are missing, the end says so,
  and the statement fails at the node.
- Until the last end is sent the statement cannot have taken effect.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dsdb.driver.adapt import TableParameterError, dump_parameters
from dsdb.driver.errors import error_of
from dsdb.driver.tables import TableSource, is_table
from dsdb.driver.wire import Wire
from dsdb.protocol.messages import (
    INPUT_BYTES,
    Column,
    ServerMessage,
    TableBatch,
    TableCredit,
    TableEnd,
    TableInput,
    encode_message,
    encode_request,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from dsdb.sql.given_tables import Columns


class Source(Protocol):
    """Rows to be sent.  columns: names and SQL types; rows_sent: of the pieces given so far; is_whole: it can be read again."""

    columns: "Columns"
    rows_sent: int
    what: str

    @property
    def is_whole(self) -> bool:
        """Whether it can be read again."""

    def pieces(self) -> "Iterator[pa.RecordBatch]":
        """Give the rows, of the Arrow types that belong to the columns, in batches that a message can hold."""


class Given:
    """A table for a statement.  number: of the parameter, or 0; name: by which the statement calls it, if it is no parameter."""

    def __init__(self, source: Source, *, number: int = 0, name: str = "", progress: Callable[[int], None] | None = None) -> None:
        self.source = source
        self.number = number
        self.name = name
        self.progress = progress
        # Whether rows were taken of it, and how many are in messages.
        self.is_begun = False
        self.rows = 0

    def announced(self) -> TableInput:
        """Give what the node is told of it first."""
        columns = tuple(Column(name, sql_type) for name, sql_type in self.source.columns)
        return TableInput(columns=columns, number=self.number, name=self.name)

    @property
    def is_spent(self) -> bool:
        """Say whether it cannot be sent (again)."""
        return self.is_begun and not self.source.is_whole


def dump_given(parameters: Sequence[Any]) -> tuple[bytes, list[Any], list[Given]]:
    """Give types and wire values of parameters, and the tables among them.  Raises DatabaseError, ProgrammingError."""
    try:
        return *dump_parameters(parameters), []
    except TableParameterError:
        tables = [
            Given(TableSource(value, what=f"parameter ${number}"), number=number)
            for number, value in enumerate(parameters, start=1)
            if is_table(value)
        ]
        return *dump_parameters([None if is_table(value) else value for value in parameters]), tables


def give(wire: Wire, stream: int, tables: Sequence[Given]) -> ServerMessage | None:
    """Send the tables of a statement that was sent.  Gives the node's answer if that came before the end, else None.

    Raises WireClosedError; what a source raises, after the statement was ended.
    """
    allowed = INPUT_BYTES
    for place, table in enumerate(tables):
        pieces = _messages(wire, stream, place, table)
        while True:
            try:
                data = next(pieces, None)
            except BaseException as error:
                _give_up(wire, stream, place, len(tables), str(error) or type(error).__name__)
                _answer(wire)
                raise
            if data is None:
                break
            while allowed <= 0:
                message = wire.receive()
                if type(message) is not TableCredit:
                    _give_up(wire, stream, place, len(tables), "it was answered before")
                    return message
                allowed += message.credit_bytes
            wire.send(data)
            allowed -= len(data)
            if table.progress is not None:
                table.progress(table.source.rows_sent)
        wire.send(encode_message(TableEnd(stream=stream, table=place, rows=table.rows)))
    return None


def first_answer(wire: Wire, stream: int, tables: Sequence[Given], sent: Callable[[], None]) -> ServerMessage:
    """Send the tables, then read the first message of the answer.  sent: called when the statement may take effect."""
    message = give(wire, stream, tables)
    if message is None:
        sent()
        return _answer(wire)
    return message


def _answer(wire: Wire) -> ServerMessage:
    while type(message := wire.receive()) is TableCredit:
        pass
    return message


def _give_up(wire: Wire, stream: int, first: int, tables: int, why: str) -> None:
    wire.send(b"".join([encode_message(TableEnd(stream=stream, table=place, failure=why[:500])) for place in range(first, tables)]))


def _messages(wire: Wire, stream: int, place: int, table: Given) -> Iterator[bytes]:
    table.is_begun = True
    table.rows = 0
    for piece in table.source.pieces():
        table.rows += piece.num_rows
        batch = TableBatch(stream=stream, table=place, arrow=memoryview(piece.serialize()))
        data = encode_request(batch, bytes_max=wire.welcome.request_bytes_max)
        if data is None:
            raise error_of(
                "54000", f"row {table.source.rows_sent + 1} of {table.source.what} is too large: {piece.nbytes} bytes", hint="Leave it out."
            )
        yield data
