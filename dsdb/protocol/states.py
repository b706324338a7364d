"""Which message may come when, as two tables: one of the session, one of each statement's stream.

    session   OPENING ─ Hello ▸ Welcome ─▶ READY ─ Bye, or ErrorMessage on stream 0 ─▶ CLOSED
              READY ─ Execute with tables ─▶ GIVING ─ TableBatch*, the last TableEnd ─▶ READY        (at the node)
    stream    RUNNING ─ Rows ─▶ ENDED
              RUNNING ─ Schema ─▶ STREAMING ─ Batch* ─ Complete ─▶ ENDED        with `more`: back to RUNNING
              RUNNING, STREAMING ─ ErrorMessage ─▶ ENDED

Invariants:
- A message that is in neither table for its state is a ProtocolError; nothing is ignored but a Cancel or Credit that came too late.
- Stream ids rise with every Execute.
- Tables come in order, and no statement comes between them.
"""

import enum

from dsdb.protocol.errors import ProtocolError
from dsdb.protocol.messages import (
    SESSION_STREAM,
    Batch,
    Bye,
    Cancel,
    ClientMessage,
    Complete,
    Credit,
    ErrorMessage,
    Execute,
    Hello,
    Notice,
    Ping,
    Pong,
    Rows,
    Schema,
    ServerMessage,
    TableBatch,
    TableCredit,
    TableEnd,
    Welcome,
)


class SessionPhase(enum.Enum):
    """Where a session stands."""

    OPENING = "opening"
    READY = "ready"
    GIVING = "giving a statement its tables"
    CLOSED = "closed"


class StreamPhase(enum.Enum):
    """Where a statement's answer stands."""

    RUNNING = "running"
    STREAMING = "streaming"
    ENDED = "ended"


_OPENING, _READY, _CLOSED = SessionPhase.OPENING, SessionPhase.READY, SessionPhase.CLOSED
_GIVING = SessionPhase.GIVING
_RUNNING, _STREAMING, _ENDED = StreamPhase.RUNNING, StreamPhase.STREAMING, StreamPhase.ENDED

CLIENT_MOVES: dict[tuple[SessionPhase, type], SessionPhase] = {
    (_OPENING, Hello): _READY,
    (_READY, Execute): _READY,
    (_READY, Credit): _READY,
    (_READY, Cancel): _READY,
    (_READY, Ping): _READY,
    (_READY, Bye): _CLOSED,
    (_GIVING, TableBatch): _GIVING,
    (_GIVING, TableEnd): _GIVING,
    (_GIVING, Credit): _GIVING,
    (_GIVING, Cancel): _GIVING,
    (_GIVING, Bye): _CLOSED,
}
"""What a node may hear, and what follows: but for an Execute with tables, and the last TableEnd."""

NODE_MOVES: dict[tuple[SessionPhase, type], SessionPhase] = {
    (_OPENING, Welcome): _READY,
    (_OPENING, ErrorMessage): _CLOSED,
    (_READY, ErrorMessage): _CLOSED,
    (_READY, Pong): _READY,
    (_READY, Notice): _READY,
}
"""What a client may hear on stream 0."""

STREAM_MOVES: dict[tuple[StreamPhase, type], StreamPhase] = {
    (_RUNNING, Notice): _RUNNING,
    (_RUNNING, TableCredit): _RUNNING,
    (_RUNNING, Rows): _ENDED,
    (_RUNNING, Schema): _STREAMING,
    (_RUNNING, ErrorMessage): _ENDED,
    (_STREAMING, Batch): _STREAMING,
    (_STREAMING, Complete): _ENDED,
    (_STREAMING, ErrorMessage): _ENDED,
}
"""What a client may hear on a statement's stream."""


class NodeSide:
    """What a node has heard in a session."""

    __slots__ = ("_table", "_tables", "last_stream", "phase")

    def __init__(self) -> None:
        self.phase = SessionPhase.OPENING
        self.last_stream = SESSION_STREAM
        # Of the last Execute: how many tables it is given, and which of them comes now.
        self._tables = 0
        self._table = 0

    @property
    def is_open(self) -> bool:
        """Say whether the client may say more."""
        return self.phase is not SessionPhase.CLOSED

    def heard(self, message: ClientMessage) -> None:
        """Take note of a client's message.  Raises ProtocolError if it may not come now."""
        kind = type(message)
        phase = CLIENT_MOVES.get((self.phase, kind))
        if phase is None:
            raise ProtocolError(f"{kind.__name__} may not come in a session that is {self.phase.value}")
        self.phase = phase
        if kind is Execute:
            stream = message.stream  # type: ignore[union-attr]
            if stream <= self.last_stream:
                raise ProtocolError(f"stream {stream} is not above stream {self.last_stream}, the one before it")
            self.last_stream = stream
            self._tables, self._table = len(message.tables), 0  # type: ignore[union-attr]
            if self._tables:
                self.phase = SessionPhase.GIVING
        elif kind is TableBatch or kind is TableEnd:
            stream, table = message.stream, message.table  # type: ignore[union-attr]
            if stream != self.last_stream or table != self._table:
                raise ProtocolError(f"table {table} of stream {stream} may not come where table {self._table} of {self.last_stream} is due")
            if kind is TableEnd:
                self._table += 1
                if self._table == self._tables:
                    self.phase = SessionPhase.READY


class ClientSide:
    """What a client has said and heard in a session."""

    __slots__ = ("_next_stream", "_streams", "phase")

    def __init__(self) -> None:
        self.phase = SessionPhase.OPENING
        self._next_stream = SESSION_STREAM + 1
        # Statements that are not answered completely, in order.
        self._streams: dict[int, StreamPhase] = {}

    @property
    def unanswered(self) -> int:
        """Count the statements that are not answered completely."""
        return len(self._streams)

    def open_stream(self) -> int:
        """Give the stream of the next Execute."""
        stream = self._next_stream
        self._next_stream += 1
        self._streams[stream] = StreamPhase.RUNNING
        return stream

    def abandon_stream(self, stream: int) -> None:
        """Forget a stream whose Execute was never sent."""
        del self._streams[stream]

    def heard(self, message: ServerMessage) -> None:
        """Take note of a node's message.  Raises ProtocolError if it may not come now."""
        kind = type(message)
        stream: int = getattr(message, "stream", SESSION_STREAM)
        if stream == SESSION_STREAM:
            phase = NODE_MOVES.get((self.phase, kind))
            if phase is None:
                raise ProtocolError(f"{kind.__name__} may not come in a session that is {self.phase.value}")
            self.phase = phase
            return
        before = self._streams.get(stream)
        after = None if before is None else STREAM_MOVES.get((before, kind))
        if after is None:
            raise ProtocolError(f"{kind.__name__} may not come on stream {stream}, which is {before.value if before else 'not open'}")
        if after is not StreamPhase.ENDED:
            self._streams[stream] = after
        elif getattr(message, "more", False):
            self._streams[stream] = StreamPhase.RUNNING
        else:
            del self._streams[stream]
