"""A connection: one session at one node at a time, opened again at another when it broke between statements.

    execute ─▶ settle what still streams ─▶ a usable wire (else reconnect) ─▶ send ─▶ first message of the answer
                                                                              │
              broken before the whole statement left, or refused unrun ◀──────┤  sent once more, elsewhere
              broken after it left: 08006 for a read, 40003 for a write ◀─────┤  never again by itself
              broken in a transaction: 08006, but 40003 for its COMMIT ◀──────┘  the next statement begins another, elsewhere

Invariants:
- A statement that may have run is never sent twice.
- A statement that is larger than the node takes is refused here (54000), and nothing of it is sent.
- After a reconnect the session has the settings that its SET statements made.
- The lock is held for whole exchanges; `cancel` alone goes past it, so that another thread may call it.
- What the node said last of the transaction is what the connection believes (`Wire.transaction`); nothing is asked for it.

Without autocommit a statement that finds no transaction open begins one, in the same message (`Execute.begin`).
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

import msgspec

from dsdb.driver import errors, results
from dsdb.driver.adapt import dump_parameters
from dsdb.driver.blocks import TransactionBlock
from dsdb.driver.cursor import Cursor
from dsdb.driver.embedded import open_node
from dsdb.driver.errors import InterfaceError, OperationalError, SerializationFailure, error_of
from dsdb.driver.giving import Given, dump_given, first_answer
from dsdb.driver.hosts import open_wire
from dsdb.driver.naming import with_files
from dsdb.driver.outcomes import LOST, UNDONE, encode_execute, error_of_message, lost_alone, lost_in_transaction
from dsdb.driver.results import INLINE_ROWS_MAX, Answer, Streamed
from dsdb.driver.target import Target, parse_target
from dsdb.driver.text import is_setting
from dsdb.driver.wire import NoticeText, Wire, WireClosedError
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
)
from dsdb.sql.transaction_status import Begin, TransactionStatus

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
        # Those of the open transaction, which go if it is rolled back.
        self._new_settings: dict[str, tuple[bytes, list[Any]]] = {}
        self._autocommit = target.autocommit
        # `with transaction()` blocks that are open; whether the outermost is the transaction, and whether that was lost.
        self._blocks = 0
        self._is_block_transaction = False
        self._is_block_lost = False
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
        """Commit the open transaction; without one do nothing.

        Raises SerializationFailure (run it again), UnknownOutcome; ProgrammingError (25P02) if a statement had failed: it is rolled back.
        """
        self._refuse_in_block("commit")
        self.end_transaction(commit=True)

    def rollback(self) -> None:
        """Roll the open transaction back; without one do nothing."""
        self._refuse_in_block("rollback")
        self.end_transaction(commit=False)

    # Beyond PEP 249

    @property
    def autocommit(self) -> bool:
        """Whether every statement commits by itself; else the first one begins a transaction.  It cannot be changed in a transaction."""
        return self._autocommit

    @autocommit.setter
    def autocommit(self, value: bool) -> None:
        if self.in_transaction or self._blocks:
            raise error_of("25001", "autocommit cannot be changed in a transaction", hint="Commit or roll back first.")
        self._autocommit = bool(value)

    @property
    def transaction_status(self) -> TransactionStatus:
        """Say whether a transaction is open (ACTIVE), has FAILED and waits for its rollback, or neither (NONE)."""
        return self._wire.transaction

    @property
    def in_transaction(self) -> bool:
        """Say whether a transaction is open."""
        return self._wire.transaction is not TransactionStatus.NONE

    def transaction(self) -> TransactionBlock:
        """Give a block: `with connection.transaction():` commits at its end, and rolls back on an exception; one inside is a savepoint."""
        return TransactionBlock(self)

    @property
    def closed(self) -> bool:
        """Say whether `close` was called."""
        return self._is_closed

    @property
    def notices(self) -> list[NoticeText]:
        """The last notices of this session, strings with a `sqlstate` and a `severity`; the caller may clear the list."""
        return self._wire.notices

    @property
    def is_embedded(self) -> bool:
        """Say whether the node is in this process."""
        return self._node is not None

    @property
    def database(self) -> str:
        """The database that the session is in."""
        return self._target.database

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
        """Call `work(connection)` in a transaction and commit it; again, after a random pause, whenever that fails with SQLSTATE 40001.

        `work` may so be called several times: what it does besides the database must bear that.
        """
        if self.in_transaction:
            raise error_of("25001", "run() begins a transaction of its own, and one is open", hint="Commit or roll back first.")
        pause = _BACKOFF_FIRST_SECONDS
        for attempt in range(1, attempts_max + 1):
            try:
                with self.transaction():
                    result = work(self)
            except SerializationFailure:
                if attempt == attempts_max:
                    raise
                time.sleep(random.uniform(0, pause))
                pause = min(pause * 2, _BACKOFF_MAX_SECONDS)
            else:
                return result
        raise ValueError(f"attempts_max is {attempts_max}")

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        """Commit, or on an exception roll back; then close."""
        try:
            if not self._is_closed and kind is None:
                self.end_transaction(commit=True)
        finally:
            # The node rolls back what is open.
            self.close()

    def __del__(self) -> None:
        # Not politely: a finalizer must not wait.
        if not getattr(self, "_is_closed", True) and hasattr(self, "_wire"):
            self._wire.close()
            if self._node is not None:
                self._node.close()

    # What cursors call.

    def run_statement(self, sql: str, parameters: Sequence[Any], given: Sequence[Given] = ()) -> Answer:
        """Send a statement, and what it is given besides its parameters, and read its answer up to what streams."""
        sql, files = with_files(sql)
        types, values, tables = dump_given(parameters) if parameters else (b"", [], [])
        with self._lock:
            self._check_open()
            if self._streaming is not None:
                self._settle()
            stream, first = self._exchange(sql, types, values, (*tables, *files, *given))
            self._current_stream = stream
            assert type(first) is Rows or type(first) is Schema, first
            if self._new_settings and type(first) is Rows and first.tag in ("COMMIT", "ROLLBACK"):
                self._note_end(first.tag)
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
            begin = self._begins()
            executes = [
                Execute(stream=stream, sql=sql, types=types, values=values, chained=at > 0, begin=begin)
                for at, (stream, (types, values)) in enumerate(zip(streams, dumped))
            ]
            try:
                data = b"".join([encode_execute(wire, execute) for execute in executes])
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
                raise self._lost(sql, error, begin) from None
            return self._pipeline_answers(sql, streams, begin)

    def _pipeline_answers(self, sql: str, streams: list[int], begin: Begin) -> int:
        row_count, failure = 0, None
        for stream in streams:
            self._current_stream = stream
            try:
                message = self._receive(stream)
                assert type(message) is Rows, message
                row_count += message.row_count or 0
            except WireClosedError as error:
                raise self._lost(sql, error, begin) from None
            except errors.DatabaseError as error:
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
                return self._receive(stream)
            except WireClosedError as error:
                raise OperationalError(
                    f"the connection broke while the result was read: {error}",
                    sqlstate="08006",
                    hint=LOST if self.in_transaction else None,
                ) from None

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

    def _exchange(self, sql: str, types: bytes, values: list[Any], tables: Sequence[Given] = ()) -> tuple[int, ServerMessage]:
        """Send a statement and read the first message of its answer; once more elsewhere if it surely has not run."""
        last_chance = False
        begin = self._begins()
        while True:
            wire = self._usable_wire()
            stream = wire.side.open_stream()
            try:
                data = encode_execute(
                    wire,
                    Execute(
                        stream=stream,
                        sql=sql,
                        types=types,
                        values=values,
                        inline_rows_max=INLINE_ROWS_MAX,
                        credit_bytes=results.CREDIT_BYTES,
                        begin=begin,
                        tables=tuple([table.announced() for table in tables]),
                    ),
                )
            except errors.DatabaseError:
                wire.side.abandon_stream(stream)
                raise
            self._current_stream = stream
            has_left = False

            def sent() -> None:
                nonlocal has_left
                has_left = True

            try:
                wire.send(data)
                message = first_answer(wire, stream, tables, sent)
            except WireClosedError as error:
                self._current_stream = 0
                # A node that says its last word before any answer has not begun the statement, nor will it.
                was_begun = has_left and error.last_word is None
                if wire.transaction:
                    raise self._lost(sql if was_begun else "", error, begin) from None
                if not was_begun and any(table.is_spent for table in tables):
                    raise OperationalError(f"the connection broke while rows were sent: {error}", sqlstate="08006", hint=UNDONE) from None
                if last_chance or was_begun:
                    raise self._lost(sql, error, begin) from None
                last_chance = True
                continue
            except BaseException:
                # A table could not be given: the statement has been ended, or the wire is closed.
                self._current_stream = 0
                raise
            if type(message) is ErrorMessage:
                self._current_stream = 0
                raise error_of_message(message)
            if type(message) is Schema and begin and not wire.transaction:
                # Said for sure by the result's end, which may be long in coming.
                wire.transaction = TransactionStatus.ACTIVE
            return stream, message

    def _receive(self, stream: int) -> ServerMessage:
        try:
            message = self._wire.receive()
        except WireClosedError:
            self._end_statement(stream)
            raise
        if type(message) is ErrorMessage:
            self._end_statement(stream)
            raise error_of_message(message)
        if (type(message) is Complete or type(message) is Rows) and not message.more:
            self._end_statement(stream)
        return message

    def _usable_wire(self) -> Wire:
        """Give a connection that stands: another one, if it broke; but first say so, if a transaction was lost with it."""
        self._check_open()
        wire = self._wire
        if wire.is_usable():
            return wire
        if wire.transaction:
            why = wire.last_word.message if wire.last_word is not None else "the connection broke"
            raise self._lost("", WireClosedError(why), Begin.NO)
        return self._reconnect()

    def _reconnect(self) -> Wire:
        self._wire.close()
        notices = self._wire.notices
        wire = self._wire = open_wire(self._target)
        wire.notices = notices
        for sql, (types, values) in self._settings.items():
            wire.send(encode_execute(wire, Execute(stream=wire.side.open_stream(), sql=sql, types=types, values=values)))
            message = wire.receive()
            if type(message) is ErrorMessage:
                raise error_of_message(message)
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
        kept = self._new_settings if self.in_transaction else self._settings
        if is_setting(sql) and len(kept) < _SETTINGS_KEPT_MAX:
            kept.pop(sql, None)
            kept[sql] = (types, values)

    # Transactions.

    def enter_block(self) -> str | None:
        """Begin a `transaction()` block; give the name of its savepoint, None for one that is the transaction."""
        with self._lock:
            self._check_open()
            name = None
            if self._blocks or self.in_transaction:
                name = f"_dsdb_{self._blocks + 1}"
                self.run_statement(f"SAVEPOINT {name}", ())
            else:
                self._is_block_transaction = True
            self._blocks += 1
            return name

    def leave_block(self) -> None:
        """End a `transaction()` block, before its transaction or savepoint is ended."""
        self._blocks -= 1
        if not self._blocks:
            self._is_block_transaction = False

    def end_transaction(self, *, commit: bool) -> None:
        """Commit or roll back what is open."""
        with self._lock:
            self._check_open()
            self._settle()
            is_lost, self._is_block_lost = self._is_block_lost, False
            if is_lost and commit:
                raise OperationalError("the transaction was lost with its connection", sqlstate="08006")
            if not self.in_transaction:
                return
            if not commit and not self._wire.is_usable():
                self._lose_transaction()
                self._is_block_lost = False
                return
            _, answer = self._exchange("COMMIT" if commit else "ROLLBACK", b"", [])
            assert type(answer) is Rows, answer
            self._current_stream = 0
            self._note_end(answer.tag)
            if commit and answer.tag != "COMMIT":
                raise error_of("25P02", "a statement of the transaction had failed: it was rolled back", hint="Call rollback().")

    def _refuse_in_block(self, what: str) -> None:
        if self._blocks:
            raise error_of("25001", f"{what}() is not possible in a transaction() block", hint="Leave the block; raise to roll back.")

    def _begins(self) -> Begin:
        """Say what a statement begins if no transaction is open.  Raises OperationalError in a block whose transaction was lost."""
        if self._is_block_transaction:
            if self._is_block_lost:
                raise OperationalError("the transaction of this block was lost with its connection", sqlstate="08006")
            return Begin.BLOCK
        return Begin.NO if self._autocommit else Begin.IMPLICIT

    def _note_end(self, tag: str) -> None:
        """Keep the settings of a transaction that was committed."""
        if tag == "COMMIT":
            self._settings.update(self._new_settings)
        if not self.in_transaction:
            self._new_settings.clear()

    def _lose_transaction(self) -> bool:
        """Note that the connection broke; say whether a transaction was open."""
        wire, self._new_settings = self._wire, {}
        was_open = self.in_transaction
        wire.transaction = TransactionStatus.NONE
        self._is_block_lost = self._is_block_transaction
        return was_open

    def _lost(self, sql: str, error: WireClosedError, begin: Begin) -> errors.DatabaseError:
        """Say what a broken connection means for a statement (empty: the node has not begun it) and its transaction."""
        if not self._lose_transaction() and begin is Begin.NO:
            return lost_alone(sql, error)
        return lost_in_transaction(sql, error)


def connect(target: str | os.PathLike[str] | None = None, *, autocommit: bool | None = None) -> Connection:
    """Connect to a cluster (a dsdb:// URL), to an embedded node over a directory (a path), or to one in memory (None).

    autocommit: every statement commits by itself; else (as PEP 249 has it) the first one begins a transaction, which `commit` or
    `rollback` ends; None for what the URL says.
    """
    parsed = parse_target(target)
    return connect_to(parsed if autocommit is None else msgspec.structs.replace(parsed, autocommit=autocommit))


def connect_to(target: Target) -> Connection:
    """Connect to what a target says."""
    if not target.is_embedded:
        return Connection(target)
    node, address = open_node(target.directory)
    try:
        return Connection(msgspec.structs.replace(target, hosts=(address,), directory=None), node)
    except BaseException:
        node.close()
        raise
