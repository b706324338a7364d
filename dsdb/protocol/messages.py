"""The messages of the native protocol.

    client                                       node
    Hello            ──────────────────▶
                     ◀──────────────────   Welcome | ErrorMessage (then it closes)
    Execute 1        ──────────────────▶
                     ◀──────────────────   Notice* Rows 1                              a small result
    Execute 2        ──────────────────▶
                     ◀──────────────────   Notice* Schema 2, Batch 2 …, Complete 2     a large one
    Credit 2         ──────────────────▶   … more batches, never beyond the credit
    Cancel 2         ──────────────────▶
                     ◀──────────────────   ErrorMessage 2
    Execute 3        ──────────────────▶                                              one that is given tables
    TableBatch 3 …   ──────────────────▶                                              never beyond INPUT_BYTES and what is allowed
                     ◀──────────────────   TableCredit 3 …
    TableEnd 3       ──────────────────▶
                     ◀──────────────────   Rows 3
    Bye              ──────────────────▶

Statements of a session run one after another, in the order of their Execute; more of them may be sent before the first is answered.  A
text of several statements gives several results on its stream; all but the last say `more`.  Stream 0 is the session itself: an
ErrorMessage there is the last thing a node says.  `Execute.chained` statements of a pipeline do not run after one of it has failed.  Each
result, and each error of a statement, says how the session stands to transactions after it.

Invariants:
- Every Execute is answered by exactly one ErrorMessage or result without `more`, in order.
- Behind an Execute with tables come their batches, table by table, each with its TableEnd, before any other statement; also if the
  statement has failed meanwhile: what comes then is dropped.
- Messages are arrays that begin with their tag; fields are added at the end only, with defaults; tags are never reused.
"""

from typing import Any, TypeAlias

import msgspec

from dsdb.protocol.errors import ProtocolError
from dsdb.protocol.frames import LENGTH_BYTES, REQUEST_BYTES_MAX, frame
from dsdb.sql.transaction_status import Begin, TransactionStatus
from dsdb.sql.types import SqlType

SESSION_STREAM = 0


class Column(msgspec.Struct, frozen=True, array_like=True):
    """A column of a result."""

    name: str
    type: SqlType


INPUT_BYTES = 1 << 20
"""Of a statement's tables that may come unasked: small ones need no round trip."""


class TableInput(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A table that a statement is given: as a parameter (number, from 1), by a name that no table has, or (neither) as what COPY reads.

    columns: any types, UNKNOWN is text whose context decides; batches have the Arrow types that belong to them (`dsdb.sql.types`).
    """

    columns: tuple[Column, ...]
    number: int = 0
    name: str = ""


class Hello(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=1):
    """Open a session.  options: settings as SET would give them."""

    user: str
    database: str
    options: dict[str, str] = {}


class Execute(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=2):
    """Run a text of statements.

    types: one TypeName a parameter, as a byte; values: their values (`datums`); inline_rows_max: larger results come as batches;
    timeout_ms: 0 for the session's own; credit_bytes: of batches that may come unasked; begin: what is begun if no transaction is open;
    tables: what it is given besides; a parameter that is a table has type UNKNOWN and no value.
    """

    stream: int
    sql: str
    types: bytes = b""
    values: list[Any] = []
    inline_rows_max: int = 256
    timeout_ms: int = 0
    credit_bytes: int = 4 << 20
    chained: bool = False
    begin: Begin = Begin.NO
    tables: tuple[TableInput, ...] = ()


class Credit(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=3):
    """Allow more bytes of batches."""

    stream: int
    credit_bytes: int


class Cancel(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=4):
    """Cancel a statement; without effect if it is answered already.  It overtakes statements that wait."""

    stream: int


class Ping(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=5):
    """Ask for a Pong; answered in order, after the statements before it."""

    token: int = 0


class Bye(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=6):
    """End the session."""


class TableBatch(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=7):
    """Rows of a statement's table, as an Arrow IPC message of a record batch.  table: its place in `Execute.tables`."""

    stream: int
    table: int
    arrow: memoryview


class TableEnd(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=8):
    """The end of a statement's table.

    failure: why the client cannot give the rest of it; rows: how many it has given.  If there is a failure, or another number of rows has
    come, the statement fails.
    """

    stream: int
    table: int
    failure: str = ""
    rows: int = 0


class Welcome(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=64):
    """The session is open.

    sessions: how many the node serves, this one included; request_bytes_max: of a message that the node takes, larger ones end the session.
    """

    session_id: int
    node_id: int
    server_version: str
    sessions: int = 1
    request_bytes_max: int = REQUEST_BYTES_MAX


class Rows(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=65):
    """A complete result.  columns: encoded (`encode_columns`), so that a client may recognise them by their bytes; rows: `datums`."""

    stream: int
    columns: msgspec.Raw
    rows: list[tuple[Any, ...]]
    tag: str
    row_count: int | None = None
    more: bool = False
    transaction: TransactionStatus = TransactionStatus.NONE


class Schema(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=66):
    """The begin of a result in batches.  arrow: its schema as an Arrow IPC message."""

    stream: int
    columns: msgspec.Raw
    arrow: memoryview


class Batch(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=67):
    """A record batch as an Arrow IPC message."""

    stream: int
    arrow: memoryview


class Complete(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=68):
    """The end of a result in batches."""

    stream: int
    tag: str
    row_count: int | None = None
    more: bool = False
    transaction: TransactionStatus = TransactionStatus.NONE


class ErrorMessage(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=69):
    """A statement, or on stream 0 the session, ended with an error.  position: 1-based, in characters of the text."""

    stream: int
    sqlstate: str
    message: str
    detail: str | None = None
    hint: str | None = None
    position: int | None = None
    transaction: TransactionStatus = TransactionStatus.NONE


class Notice(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=70):
    """A sentence for the user that is no error; severity: NOTICE or WARNING."""

    stream: int
    message: str
    sqlstate: str = "00000"
    severity: str = "NOTICE"


class Pong(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=71):
    """The answer to a Ping."""

    token: int = 0


class TableCredit(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=72):
    """Allow more bytes of a statement's tables."""

    stream: int
    credit_bytes: int


ClientMessage: TypeAlias = Hello | Execute | Credit | Cancel | Ping | Bye | TableBatch | TableEnd
ServerMessage: TypeAlias = Welcome | Rows | Schema | Batch | Complete | ErrorMessage | Notice | Pong | TableCredit

_ENCODER = msgspec.msgpack.Encoder()
_CLIENT_DECODER = msgspec.msgpack.Decoder(ClientMessage)
_SERVER_DECODER = msgspec.msgpack.Decoder(ServerMessage)
_COLUMNS_DECODER = msgspec.msgpack.Decoder(tuple[Column, ...])

# Beside its own errors the decoder raises RecursionError for arrays within arrays …, and ValueError's for text that is not UTF-8.
_DECODE_ERRORS = (msgspec.DecodeError, RecursionError, ValueError)


def encode_message(message: ClientMessage | ServerMessage) -> bytes:
    """Give a message as a frame.  Raises UnicodeEncodeError for text with lone surrogates."""
    return frame(_ENCODER.encode(message))


def encode_request(message: ClientMessage, *, bytes_max: int) -> bytes | None:
    """Give a message as a frame, None if it is larger than a node takes.  Raises UnicodeEncodeError as `encode_message` does."""
    try:
        data = encode_message(message)
    except (msgspec.EncodeError, OverflowError):
        # A text or value of 4 GiB, which msgpack cannot say, or a frame of 4 GiB, whose length its prefix cannot.
        return None
    return data if len(data) - LENGTH_BYTES <= bytes_max else None


def decode_client_message(data: memoryview | bytes) -> ClientMessage:
    """Read what a client says.  Raises ProtocolError."""
    try:
        message: ClientMessage = _CLIENT_DECODER.decode(data)
    except _DECODE_ERRORS as error:
        raise ProtocolError(f"not a message of a client: {error}") from None
    return message


def decode_server_message(data: memoryview | bytes) -> ServerMessage:
    """Read what a node says.  Raises ProtocolError."""
    try:
        message: ServerMessage = _SERVER_DECODER.decode(data)
    except _DECODE_ERRORS as error:
        raise ProtocolError(f"not a message of a node: {error}") from None
    return message


def encode_columns(columns: object) -> msgspec.Raw:
    """Encode columns: Column's, or Structs of the same shape."""
    return msgspec.Raw(_ENCODER.encode(columns))


def decode_columns(encoded: bytes) -> tuple[Column, ...]:
    """Read encoded columns.  Raises ProtocolError."""
    try:
        return _COLUMNS_DECODER.decode(encoded)
    except _DECODE_ERRORS as error:
        raise ProtocolError(f"not the columns of a result: {error}") from None
