"""A connection: one session at one node at a time, opened again at another when it broke between statements.

    execute ─▶ settle what still streams ─▶ a usable wire (else reconnect) ─▶ send ─▶ first message of the answer
                                                                              │
              broken before the whole statement left, or refused unrun ◀──────┤  sent once more, elsewhere
              broken after it left: 08006 for a read, 40003 for a write ◀─────┘  never again by itself

Invariants:
- A statement that may have run is never sent twice.
- A statement that is larger than the node takes is refused here (54000), and nothing of it is sent.
- After a reconnect the session has the settings that its SET statements made.
- The lock is held for whole exchanges; `cancel` alone goes past it, so that another thread may call it.

Every statement commits by itself: autocommit is always on.
"""

import contextlib
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Protocol, TypeVar

from dsdb.driver import errors, results
from dsdb.driver.adapt import dump_parameters
from dsdb.driver.cursor import Cursor
from dsdb.driver.embedded import open_node
from dsdb.driver.errors import DataError, InterfaceError, NotSupportedError, OperationalError, SerializationFailure, error_of
from dsdb.driver.hosts import open_wire
from dsdb.driver.results import INLINE_ROWS_MAX, Answer, Streamed
from dsdb.driver.target import Target, parse_target
from dsdb.driver.text import is_read_only, is_setting
from dsdb.driver.wire import Wire, WireClosedError
from dsdb.protocol.messages import (
    Cancel,
    Complete,
    Credit,
    ErrorMessage,
    Execute,
    Ping,
    Pong,
    Rows,
    Schema,
    ServerMessage,
    encode_message,
    encode_request,
)

T = TypeVar("T")

RUN_ATTEMPTS_MAX = 20
_BACKOFF_FIRST_SECONDS = 0.005
_BACKOFF_MAX_SECONDS = 1.0
_SETTINGS_KEPT_MAX = 100


class EmbeddedNode(Protocol):
    """A node in this process; `close` gives this connection's share of it back."""

    address: tuple[str, int]

    def close(self) -> None:
        """Give it back."""


class Connection:
    """A PEP 249 connection.  Threads may share it: statements wait for each other."""

    Warning = errors.Warning
    Error = errors.Error
    InterfaceError = errors.InterfaceError
    DatabaseError = errors.DatabaseError
    DataError = errors.DataError
    OperationalError = errors.OperationalError
    IntegrityError = errors.IntegrityError
    InternalError = errors.InternalError
    ProgrammingError = errors.ProgrammingError
    NotSupportedError = errors.NotSupportedError

    def __init__(self, target: Target, node: EmbeddedNode | None = None) -> None:
        self._target = target
        self._node = node
        self._is_closed = False
        self._lock = threading.RLock()
        # The statement whose answer is awaited or streams, for `cancel`.
        self._current_stream = 0
        # The answer that still streams, and its result that does.  Weak: if both are gone, nobody wants the rest.
        self._answer: weakref.ref[Answer] | None = None
        self._streaming: weakref.ref[Streamed] | None = None
        # SET statements that were run, by their text, to run again after a reconnect.
        self._settings: dict[str, tuple[bytes, list[Any]]] = {}
        self._wire: Wire = open_wire(target)

    # PEP 249

    def cursor(self) -> Cursor:
        """Give a new cursor."""
        self._check_open()
        return Cursor(self)

    def close(self) -> None:
        """End the session; cursors cannot be used any more.  Closing twice is allowed."""
        if self._is_closed:
            return
        self._is_closed = True
        self._wire.close(politely=True)
        if self._node is not None:
            self._node.close()

    def commit(self) -> None:
        """Do nothing: every statement has committed by itself."""
        self._check_open()

    def rollback(self) -> None:
        """Refuse: every statement has committed by itself.  Raises NotSupportedError."""
        self._check_open()
        raise NotSupportedError("there is no transaction to roll back: every statement commits by itself in this version", sqlstate="0A000")

    # Beyond PEP 249

    @property
    def autocommit(self) -> bool:
        """True: every statement commits by itself.  Setting it to False raises NotSupportedError."""
        return True

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        if not value:
            raise NotSupportedError("autocommit cannot be turned off: every statement commits by itself in this version", sqlstate="0A000")

    @property
    def closed(self) -> bool:
        """Say whether `close` was called."""
        return self._is_closed

    @property
    def notices(self) -> list[str]:
        """The last notices of this session; the caller may clear the list."""
        return self._wire.notices

    @property
    def node_id(self) -> int:
        """The node that the session is at."""
        return self._wire.welcome.node_id

    @property
    def server_version(self) -> str:
        """What the node calls itself."""
        return self._wire.welcome.server_version

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Cursor:
        """Run a statement on a new cursor, and give the cursor."""
        return self.cursor().execute(sql, parameters)

    def cancel(self) -> None:
        """Ask the node to stop the statement that runs, from any thread; it then ends with SQLSTATE 57014.  Else do nothing."""
        stream = self._current_stream
        if stream and not self._wire.is_closed:
            with contextlib.suppress(WireClosedError):
                self._wire.send(encode_message(Cancel(stream=stream)))

    def ping(self) -> None:
        """Ask the node for a sign of life.  Raises OperationalError."""
        with self._lock:
            self._settle()
            wire = self._usable_wire()
            try:
                wire.send(encode_message(Ping()))
                answer = wire.receive()
            except WireClosedError as error:
                raise OperationalError(str(error), sqlstate="08006") from None
            assert type(answer) is Pong, answer

    def run(self, work: Callable[["Connection"], T], *, attempts_max: int = RUN_ATTEMPTS_MAX) -> T:
        """Call `work(connection)`, again whenever it fails with SQLSTATE 40001, with a growing, random pause between.

        Every statement commits by itself: what `work` did before the statement that failed stays, and is done again.  So give it one
        statement that writes, after any that read.
        """
        pause = _BACKOFF_FIRST_SECONDS
        for _ in range(attempts_max - 1):
            try:
                return work(self)
            except SerializationFailure:
                time.sleep(random.uniform(0, pause))
                pause = min(pause * 2, _BACKOFF_MAX_SECONDS)
        return work(self)

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        # Not politely: a finalizer must not wait.
        if not getattr(self, "_is_closed", True) and hasattr(self, "_wire"):
            self._wire.close()
            if self._node is not None:
                self._node.close()

    # What cursors call.

    def run_statement(self, sql: str, parameters: Sequence[Any]) -> Answer:
        """Send a statement and read its answer up to what streams."""
        types, values = dump_parameters(parameters) if parameters else (b"", [])
        with self._lock:
            self._check_open()
            if self._streaming is not None:
                self._settle()
            stream, first = self._exchange(sql, types, values)
            self._current_stream = stream
            assert type(first) is Rows or type(first) is Schema, first
            answer = Answer(self, stream, first)
            if answer.streaming is not None:
                self._answer, self._streaming = weakref.ref(answer), weakref.ref(answer.streaming)
            else:
                self._current_stream = 0
            if type(first) is Rows and first.tag == "SET":
                self._keep_setting(sql, types, values)
            return answer

    def run_pipeline(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """Run one statement with many lists of parameters, sent together; give the rows touched.

        Statements after one that fails are not run.
        """
        dumped = [dump_parameters(row) for row in rows]
        with self._lock:
            self._check_open()
            self._settle()
            wire = self._usable_wire()
            streams = [wire.side.open_stream() for _ in dumped]
            executes = [
                Execute(stream=stream, sql=sql, types=types, values=values, chained=at > 0)
                for at, (stream, (types, values)) in enumerate(zip(streams, dumped))
            ]
            try:
                data = b"".join([_encode_execute(wire, execute) for execute in executes])
            except errors.DatabaseError:
                for stream in streams:
                    wire.side.abandon_stream(stream)
                raise
            self._current_stream = streams[0]
            try:
                wire.send(data)
            except WireClosedError as error:
                # All but the last may have arrived.
                self._current_stream = 0
                raise _lost(sql, error) from None
            return self._pipeline_answers(sql, streams)

    def _pipeline_answers(self, sql: str, streams: list[int]) -> int:
        row_count, failure = 0, None
        for stream in streams:
            self._current_stream = stream
            try:
                message = self.next_message(stream)
                assert type(message) is Rows, message
                row_count += message.row_count or 0
            except errors.DatabaseError as error:
                if self._wire.is_closed:
                    raise _lost(sql, WireClosedError(error.message)) from None
                failure = failure or error
        self._current_stream = 0
        if failure is not None:
            raise failure
        return row_count

    # What answers call.

    def next_message(self, stream: int) -> ServerMessage:
        """Give the next message of a statement.  Raises its error, or OperationalError if the connection broke."""
        with self._lock:
            try:
                message = self._wire.receive()
            except WireClosedError as error:
                self._end_statement(stream)
                raise OperationalError(f"the connection broke while the result was read: {error}", sqlstate="08006") from None
            if type(message) is ErrorMessage:
                self._end_statement(stream)
                raise _error_of(message)
            if (type(message) is Complete or type(message) is Rows) and not message.more:
                self._end_statement(stream)
            return message

    def give_credit(self, stream: int, credit_bytes: int) -> None:
        """Allow more batches."""
        with self._lock, contextlib.suppress(WireClosedError):
            self._wire.send(encode_message(Credit(stream=stream, credit_bytes=credit_bytes)))

    def cancel_stream(self, stream: int) -> None:
        """Ask the node to stop a statement."""
        with self._lock, contextlib.suppress(WireClosedError):
            self._wire.send(encode_message(Cancel(stream=stream)))

    # Within.

    def _check_open(self) -> None:
        if self._is_closed:
            raise InterfaceError("the connection is closed")

    def _exchange(self, sql: str, types: bytes, values: list[Any]) -> tuple[int, ServerMessage]:
        """Send a statement and read the first message of its answer; once more elsewhere if it surely has not run."""
        last_chance = False
        while True:
            wire = self._wire if self._wire.is_usable() else self._reconnect()
            stream = wire.side.open_stream()
            try:
                data = _encode_execute(
                    wire,
                    Execute(
                        stream=stream,
                        sql=sql,
                        types=types,
                        values=values,
                        inline_rows_max=INLINE_ROWS_MAX,
                        credit_bytes=results.CREDIT_BYTES,
                    ),
                )
            except errors.DatabaseError:
                wire.side.abandon_stream(stream)
                raise
            self._current_stream = stream
            has_left = False
            try:
                wire.send(data)
                has_left = True
                message = wire.receive()
            except WireClosedError as error:
                self._current_stream = 0
                # A node that says its last word before any answer has not begun the statement, nor will it.
                if last_chance or (has_left and error.last_word is None):
                    raise _lost(sql, error) from None
                last_chance = True
                continue
            if type(message) is ErrorMessage:
                self._current_stream = 0
                raise _error_of(message)
            return stream, message

    def _usable_wire(self) -> Wire:
        self._check_open()
        return self._wire if self._wire.is_usable() else self._reconnect()

    def _reconnect(self) -> Wire:
        self._wire.close()
        notices = self._wire.notices
        wire = self._wire = open_wire(self._target)
        wire.notices = notices
        for sql, (types, values) in self._settings.items():
            wire.send(_encode_execute(wire, Execute(stream=wire.side.open_stream(), sql=sql, types=types, values=values)))
            message = wire.receive()
            if type(message) is ErrorMessage:
                raise _error_of(message)
        return wire

    def _settle(self) -> None:
        """Take off the connection what an earlier statement still streams."""
        answer = self._answer() if self._answer is not None else None
        streamed = self._streaming() if self._streaming is not None else None
        if answer is not None:
            answer.settle(keep=True)
        elif streamed is not None:
            # The cursor is gone, but not the reader of its batches.
            streamed.settle(keep=True)
        stream = self._current_stream
        if stream and not self._wire.is_closed:
            self.cancel_stream(stream)
            with contextlib.suppress(errors.DatabaseError):
                while self._current_stream:
                    self.next_message(stream)
        self._current_stream = 0
        self._answer = self._streaming = None

    def _end_statement(self, stream: int) -> None:
        if self._current_stream == stream:
            self._current_stream = 0
            self._answer = self._streaming = None

    def _keep_setting(self, sql: str, types: bytes, values: list[Any]) -> None:
        if is_setting(sql) and len(self._settings) < _SETTINGS_KEPT_MAX:
            self._settings.pop(sql, None)
            self._settings[sql] = (types, values)


def _encode_execute(wire: Wire, message: Execute) -> bytes:
    bytes_max = wire.welcome.request_bytes_max
    try:
        data = encode_request(message, bytes_max=bytes_max)
    except UnicodeEncodeError as error:
        raise DataError(f"text with lone surrogates has no UTF-8: {error.object[:40]!r}", sqlstate="22021") from None
    if data is None:
        # The node would hang up on it.
        raise error_of(
            "54000",
            f"the statement is too large: a node takes at most {bytes_max} bytes of text and parameters at once",
            hint="Send the rows in several statements, or a large value in parts.",
        )
    return data


def _error_of(message: ErrorMessage) -> errors.DatabaseError:
    return error_of(message.sqlstate, message.message, detail=message.detail, hint=message.hint, position=message.position)


def _lost(sql: str, error: WireClosedError) -> errors.DatabaseError:
    if is_read_only(sql):
        return error_of("08006", f"the connection broke before the answer came: {error}", hint="The statement may be run again.")
    return error_of(
        "40003",
        f"the connection broke before the answer came: {error}",
        detail="Whether the statement took effect is not known.",
        hint="Look before you run it again.",
    )


def connect(target: str | os.PathLike[str] | None = None) -> Connection:
    """Connect to a cluster (a dsdb:// URL), to an embedded node over a directory (a path), or to one in memory (None)."""
    return connect_to(parse_target(target))


def connect_to(target: Target) -> Connection:
    """Connect to what a target says."""
    if not target.is_embedded:
        return Connection(target)
    node, address = open_node(target.directory)
    try:
        return Connection(Target(hosts=(address,), user=target.user, database=target.database, options=target.options), node)
    except BaseException:
        node.close()
        raise
