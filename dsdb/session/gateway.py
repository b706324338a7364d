"""One session: a client's connection, served by one task that reads, runs and answers in turn.

A small statement costs no more than its read, its run and its send: no task, no scope, no hand-over.  While it runs nobody reads the
connection.  Only when it is still running at the server's next sweep, or streams its result, does a watcher begin to read beside it, so
that a Cancel, a Credit or the client's end is heard:

    session   ─ read ─ run 1 ─ send ─ read ─ run 2 ─────────────────────────── send ─ (waits for the watcher's message) ─ run 3 …
    sweeper                                  ┊ still running, or given tables: watch
    watcher                                  └─ read ─ Cancel 2 ▸ interrupt ─ read ─ Execute 3 ▸ hand over, end

Invariants:
- At any time one task at most reads the connection, and only the session's own task writes to it.
- Every Execute gets one answer; a frame is sent whole or the connection ends.
- `_scope` is cancelled only by `interrupt`; a statement that ended all the same keeps its answer.
- A statement that is answered with 57014 has had no effect; one that was cut after a commit of its own (a change of the catalogue that
  waits for the other nodes, rows of RETURNING on their way) is answered with 40003.
- A statement that ends without success leaves an open transaction failed; the session's end rolls it back.
- Held for a client at most: one read, `waiting_statements_max` messages, one answer (or one message of a stream), and what it gives
  one statement (`inputs`).

Not here: who may connect (`dsdb.node`); timeouts are noticed by the server's sweep (`server`).
"""

import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Protocol

import pyarrow as pa
import trio

from dsdb.protocol.datums import parameter_datums, parameter_types
from dsdb.protocol.errors import ProtocolError
from dsdb.protocol.frames import FrameReader
from dsdb.protocol.messages import (
    SESSION_STREAM,
    Batch,
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
    ServerMessage,
    TableBatch,
    TableCredit,
    TableEnd,
    decode_client_message,
    encode_message,
)
from dsdb.protocol.states import NodeSide
from dsdb.session.answer import bug_message, error_message, pieces, rows_message, schema_message
from dsdb.session.inputs import GivenRows
from dsdb.session.limits import SessionLimits
from dsdb.session.link import Link
from dsdb.session.port import StatementPort
from dsdb.sql.errors import (
    FeatureNotSupportedError,
    IdleInTransactionError,
    ProgramLimitError,
    ProtocolViolationError,
    QueryCanceledError,
    ShutdownError,
    SqlError,
    StatementTooComplexError,
    UnknownOutcomeError,
)
from dsdb.sql.execute.inputs import NO_INPUTS
from dsdb.sql.execute.result import Parameter, Result, batch_of_rows, rows_of_batch
from dsdb.sql.execute.session import SessionState
from dsdb.sql.ports import OpenTransactionInfo
from dsdb.sql.rows import Row
from dsdb.sql.transaction_status import TransactionStatus

NEVER = float("inf")


class RunningStatements(Protocol):
    """Where a session says that it runs a statement, so that the sweep looks at it."""

    def statement_began(self, session: "GatewaySession") -> None:
        """A statement runs from now on."""

    def statement_ended(self, session: "GatewaySession") -> None:
        """No statement runs."""


class _ClientGoneError(Exception):
    """The client hung up, or takes nothing any more."""


class GatewaySession:
    """One client's session, from after its Hello."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        executor: StatementPort,
        running: RunningStatements,
        limits: SessionLimits,
        *,
        session_id: int,
        reader: FrameReader,
        side: NodeSide,
        inbox: deque[ClientMessage],
        hello: Hello,
    ) -> None:
        self.session_id = session_id
        self._link = Link(stream, read_bytes=limits.read_bytes)
        self._executor = executor
        self._running_statements = running
        self._limits = limits
        self._reader = reader
        self._side = side
        self.state = SessionState(database=hello.database, user=hello.user)
        # Messages that were read and wait for their turn.
        self._inbox = inbox
        # Frames that wait to be sent.
        self._outbox: list[bytes] = []
        self._outbox_bytes = 0
        # Whether a send has begun and not ended: if that was cancelled, the client cannot be told anything any more.
        self._is_sending = False
        # The stream whose statement runs, 0 for none; when it began and must end, in trio's time.
        self._running_stream = 0
        self._began = 0.0
        # The text of the statement that runs, or ran last, cut for those who look on.
        self._statement = ""
        self._deadline = NEVER
        # Since when an open transaction waits for its next statement.
        self._idle_since = 0.0
        # Streams in the inbox whose Cancel came before their turn.
        self._cancelled: set[int] = set()
        # Why `_scope` was cancelled; None with a cancelled scope means the client is gone.
        self._interruption: SqlError | None = None
        self._scope = trio.CancelScope()
        # Bytes of batches that the client still takes, and what wakes a stream that waits for more.
        self._credit_bytes = 0
        self._credit_given = trio.Event()
        # What the statement that runs is given.
        self._given: GivenRows | None = None
        self._nursery: trio.Nursery | None = None
        self._is_watching = False
        self._watcher_ended = trio.Event()
        self._is_at_end = False
        self._fault: ProtocolError | None = None
        # Whether a statement of the pipeline that is being read has failed.
        self._is_chain_broken = False
        # No further statement is begun; the session ends with this error.
        self._ending: SqlError | None = None

    # What the server calls.

    def interrupt(self, reason: SqlError | None) -> None:
        """Stop what the session does: a running statement ends with the reason, or (None) the client is gone."""
        self._interruption = reason
        self._scope.cancel()

    def shut_down(self, *, at_once: bool) -> None:
        """End the session with 57P01: when its statement is done, or at once."""
        self._ending = ShutdownError("the node is stopping", hint="Connect to another node of the cluster.")
        if at_once or not self._running_stream:
            self.interrupt(self._ending)

    def sweep(self, now: float) -> None:
        """Stop the running statement if its time is over; listen to the client if it has run for some time."""
        if now >= self._deadline:
            self._deadline = NEVER
            self.interrupt(QueryCanceledError("canceling statement due to statement timeout"))
        elif now - self._began >= self._limits.sweep_seconds:
            self._watch()

    @property
    def idle_deadline(self) -> float:
        """Give when an open transaction has waited for its next statement for too long, `NEVER` if none does."""
        timeout_ms = self.state.idle_in_transaction_timeout_ms
        if not timeout_ms or self.state.transaction is None or self._running_stream:
            return NEVER
        return self._idle_since + timeout_ms / 1000

    def end_idle(self) -> None:
        """End the session with 25P03: its open transaction has waited for too long."""
        self._ending = IdleInTransactionError(
            "terminating connection due to idle-in-transaction timeout", detail="The open transaction was rolled back."
        )
        self.interrupt(self._ending)

    def describe(self, node_id: int, now_us: int) -> OpenTransactionInfo | None:
        """Describe the open transaction, or the statement that runs outside one; None if there is neither.  now_us: the wall clock."""
        transaction, is_running = self.state.transaction, bool(self._running_stream)
        if transaction is None and not is_running:
            return None
        txn = self.state.statement_txn if transaction is None else transaction.txn
        done = None if txn is None else txn.describe()
        if is_running:
            state = "committing" if done is not None and done.is_committing else "running"
        else:
            state = "failed" if self.state.status is TransactionStatus.FAILED else "idle"
        running_us = int((trio.current_time() - self._began) * 1_000_000)
        return OpenTransactionInfo(
            node_id=node_id,
            session_id=self.session_id,
            attempt=None if done is None else done.attempt,
            started_us=now_us - running_us if transaction is None else transaction.now,
            state=state,
            statement=self._statement,
            read_timestamp=None if done is None else done.read_timestamp,
            writes=0 if done is None else done.writes,
            bytes=0 if done is None else done.bytes,
        )

    async def run(self) -> None:
        """Serve the session until either side ends it.  Cancellation: ends it without a word."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    while await self._serve_until_interrupted():
                        pass
                except (_ClientGoneError, trio.BrokenResourceError, trio.ClosedResourceError):
                    pass
                nursery.cancel_scope.cancel()
        finally:
            if self.state.transaction is not None:
                await self._executor.end(self.state)
        if self._fault is not None:
            self._ending = ProtocolViolationError(str(self._fault))
        if self._ending is not None and not self._is_sending and not self._is_at_end:
            await say_last_word(self._link.stream, self._ending, self._limits)

    # The session's own task.

    async def _serve_until_interrupted(self) -> bool:
        """Serve until the session ends (False), or an interruption has been told to the client (True)."""
        with trio.CancelScope() as self._scope:
            await self._serve()
        if not self._scope.cancel_called:
            return False
        reason, self._interruption = self._interruption, None
        if self._running_stream:
            stream = self._end_statement()
            self.state.fail_transaction()
            if reason is not None:
                self._is_chain_broken = True
                self._queue(self._error(stream, _after_commit(reason) if self.state.has_committed else reason))
        if reason is None or self._is_sending:
            return False
        await self._flush()
        return self._ending is None

    async def _serve(self) -> None:
        while self._side.is_open or self._inbox:
            if self._inbox:
                # Statements of a pipeline may all run without waiting for anything: let the others have their turns.
                await trio.lowlevel.checkpoint()
                message: ClientMessage | None = self._inbox.popleft()
            else:
                message = await self._read_message()
            if message is None:
                return
            if type(message) is Execute:
                await self._execute(message)
                # A cancellation that came too late for the statement must not cut its answer: leave it to the next round.
                if self._scope.cancel_called or self._ending is not None:
                    if self._ending is not None and not self._scope.cancel_called:
                        self.interrupt(self._ending)
                    return
            elif type(message) is Ping:
                self._queue(Pong(token=message.token))
            if not self._inbox or self._outbox_bytes > self._limits.output_bytes:
                await self._flush()

    async def _execute(self, message: Execute) -> None:
        if message.chained and self._is_chain_broken:
            self._queue(self._error(message.stream, FeatureNotSupportedError("not run: a statement before it in the pipeline has failed")))
            return
        if message.stream in self._cancelled:
            self._cancelled.discard(message.stream)
            self._is_chain_broken = True
            self.state.fail_transaction()
            self._queue(self._error(message.stream, QueryCanceledError("canceling statement due to user request")))
            return
        self._is_chain_broken = True
        self._begin_statement(message)
        try:
            await self._run_text(message)
            self._is_chain_broken = False
        except _ClientGoneError:
            raise
        except SqlError as error:
            self._fail(message, error)
        except ProtocolError as error:
            self._fail(message, ProtocolViolationError(str(error)))
        except RecursionError:
            self._fail(message, StatementTooComplexError("the statement is nested too deeply"))
        except Exception as error:
            # The root of a statement: a bug ends the statement, not the session, and never shows its inside to the user.
            self.state.fail_transaction()
            texts = [message.sql]
            self._queue(bug_message(message.stream, error, session_id=self.session_id, texts=texts, transaction=self.state.status))
        self._end_statement()

    async def _run_text(self, message: Execute) -> None:
        types = parameter_types(message.types)
        datums = parameter_datums(types, message.values)
        parameters = [Parameter(sql_type, value) for sql_type, value in zip(types, datums)]
        statements = await self._executor.prepared(message.sql)
        if self._given is not None:
            if len(statements) > 1:
                raise FeatureNotSupportedError(
                    "tables cannot be given to several statements at once", hint="Send each statement on its own."
                )
            self.state.inputs = await self._given.inputs()
        if not statements:
            self._queue(rows_message(message.stream, (), [], tag="", row_count=None, more=False, transaction=self.state.status))
        elif len(statements) > 1 and parameters:
            raise FeatureNotSupportedError(
                "parameters cannot be given to several statements at once", hint="Send each statement on its own."
            )
        last = len(statements) - 1
        for at, statement in enumerate(statements):
            self.state.has_committed = False
            result = await self._executor.run(self.state, statement, parameters, begin=message.begin)
            await self._answer(message, result, more=at < last)

    def _fail(self, message: Execute, error: SqlError) -> None:
        self.state.fail_transaction()
        self._queue(self._error(message.stream, error))

    def _error(self, stream: int, error: SqlError) -> ErrorMessage:
        return error_message(stream, error, self.state.status)

    def _begin_statement(self, message: Execute) -> None:
        self.state.has_committed = False
        self._running_stream = message.stream
        self._statement = message.sql[: self._limits.shown_statement_chars_max]
        self._began = trio.current_time()
        timeout_ms = message.timeout_ms or self.state.statement_timeout_ms
        self._deadline = self._began + timeout_ms / 1000 if timeout_ms else NEVER
        self._credit_bytes = message.credit_bytes
        self._running_statements.statement_began(self)
        if message.tables:
            self._begin_giving(message)

    def _end_statement(self) -> int:
        stream, self._running_stream = self._running_stream, 0
        self.state.statement_txn = None
        self._given, self.state.inputs = None, NO_INPUTS
        if self.state.transaction is not None:
            self._idle_since = trio.current_time()
        self._running_statements.statement_ended(self)
        return stream

    # Tables that come with a statement.

    def _begin_giving(self, message: Execute) -> None:
        """Expect a statement's tables: what has come of them, then what a watcher reads."""
        stream = message.stream

        async def allow(credit_bytes: int) -> None:
            self._queue(TableCredit(stream=stream, credit_bytes=credit_bytes))
            await self._flush_whole()

        self._given = GivenRows(message.tables, self._limits, allow)
        while self._inbox and isinstance(self._inbox[0], TableBatch | TableEnd):
            self._given.put(self._inbox.popleft())  # type: ignore[arg-type]
        self._watch()

    def _take_given(self, message: TableBatch | TableEnd) -> None:
        """Keep rows for the statement that they are for; if it has ended already, nobody wants them."""
        if message.stream == self._running_stream and self._given is not None:
            self._given.put(message)
        elif any(type(waiting) is Execute and waiting.stream == message.stream for waiting in reversed(self._inbox)):
            self._inbox.append(message)

    # Answers.

    async def _answer(self, message: Execute, result: Result, *, more: bool) -> None:
        stream = message.stream
        for notice in result.notices:
            self._queue(Notice(stream=stream, message=notice.message, sqlstate=notice.sqlstate, severity=notice.severity))
        if result.batches is not None:
            await self._answer_batches(message, result, more=more)
        elif result.rows is not None and len(result.rows) > message.inline_rows_max and result.columns:
            await self._answer_stream(message, result, _once(batch_of_rows(result.rows, result.columns)), more=more)
        else:
            self._queue(
                rows_message(
                    stream,
                    result.columns,
                    result.rows or [],
                    tag=result.tag,
                    row_count=result.row_count,
                    more=more,
                    transaction=self.state.status,
                )
            )

    async def _answer_batches(self, message: Execute, result: Result, *, more: bool) -> None:
        """Send batches as they come; a result that turns out small goes as rows, so that its client need not speak Arrow."""
        assert result.batches is not None
        first: list[pa.RecordBatch] = []
        held = held_bytes = 0
        async with _closing(result.batches) as batches:
            async for batch in batches:
                first.append(batch)
                held += batch.num_rows
                held_bytes += batch.nbytes
                if held > message.inline_rows_max or held_bytes > self._limits.inline_bytes_max:
                    await self._answer_stream(message, result, _chain(first, batches), more=more)
                    return
        rows: list[Row] = []
        for batch in first:
            rows += rows_of_batch(batch, result.columns)
        tag = f"{result.tag} {held}"
        status = self.state.status
        self._queue(rows_message(message.stream, result.columns, rows, tag=tag, row_count=held, more=more, transaction=status))

    async def _answer_stream(self, message: Execute, result: Result, batches: AsyncIterator[pa.RecordBatch], *, more: bool) -> None:
        stream, rows = message.stream, 0
        self._queue(schema_message(stream, result.columns))
        self._watch()
        async with _closing(batches):
            async for batch in batches:
                rows += batch.num_rows
                for piece in pieces(batch, bytes_max=self._limits.batch_bytes):
                    await self._send_piece(stream, piece)
        tag = result.tag if result.row_count is not None else f"{result.tag} {rows}"
        self._queue(Complete(stream=stream, tag=tag, row_count=rows, more=more, transaction=self.state.status))

    async def _send_piece(self, stream: int, piece: memoryview) -> None:
        while self._credit_bytes <= 0:
            self._credit_given = trio.Event()
            await self._credit_given.wait()
        if len(piece) > self._limits.response_bytes_max:
            raise ProgramLimitError(
                f"a row of the result has {len(piece)} bytes: at most {self._limits.response_bytes_max} can be sent",
                hint="Select a part of its values.",
            )
        self._credit_bytes -= len(piece)
        self._queue(Batch(stream=stream, arrow=piece))
        await self._flush_whole()

    def _queue(self, message: ServerMessage) -> None:
        data = encode_message(message)
        self._outbox.append(data)
        self._outbox_bytes += len(data)

    async def _flush(self) -> None:
        """Send what is queued.  Between statements only: nothing but the end of the session cancels it there."""
        if self._outbox:
            data = self._outbox[0] if len(self._outbox) == 1 else b"".join(self._outbox)
            self._outbox.clear()
            self._outbox_bytes = 0
            self._is_sending = True
            await self._link.send(data)
            self._is_sending = False

    async def _flush_whole(self) -> None:
        """Send what is queued while a statement runs: cancelling it must not cut a frame, and a stuck client must not hold it for ever."""
        with trio.CancelScope(shield=True, deadline=trio.current_time() + self._limits.send_seconds) as scope:
            try:
                await self._flush()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise _ClientGoneError from None
        if scope.cancelled_caught:
            raise _ClientGoneError
        await trio.lowlevel.checkpoint_if_cancelled()

    # Reading.

    async def _read_message(self) -> ClientMessage | None:
        """Give the next message, None at the end of the session."""
        while not self._inbox:
            if self._fault is not None or self._is_at_end:
                return None
            if self._is_watching:
                # The watcher is in the middle of a read; it hands over what it gets, and ends.
                await self._watcher_ended.wait()
            else:
                await self._receive()
        return self._inbox.popleft()

    async def _receive(self) -> None:
        """Read once.  What only matters while a statement runs is acted on; the rest waits in the inbox."""
        data = await self._link.receive()
        if not data:
            self._is_at_end = True
            return
        try:
            for frame in self._reader.receive(data):
                message = decode_client_message(frame)
                self._side.heard(message)
                if type(message) is Credit:
                    self._add_credit(message)
                elif type(message) is Cancel:
                    self._cancel(message.stream)
                elif type(message) is TableBatch or type(message) is TableEnd:
                    self._take_given(message)
                else:
                    self._inbox.append(message)
        except ProtocolError as error:
            self._fault = error

    def _cancel(self, stream: int) -> None:
        if stream == self._running_stream:
            self.interrupt(QueryCanceledError("canceling statement due to user request"))
        elif any(type(waiting) is Execute and waiting.stream == stream for waiting in self._inbox):
            self._cancelled.add(stream)

    def _add_credit(self, message: Credit) -> None:
        if message.stream == self._running_stream and message.credit_bytes > 0:
            self._credit_bytes += message.credit_bytes
            self._credit_given.set()

    def _watch(self) -> None:
        if self._is_watching or self._is_at_end or self._fault is not None or self._nursery is None:
            return
        if len(self._inbox) >= self._limits.waiting_statements_max:
            return
        self._is_watching = True
        self._watcher_ended = trio.Event()
        self._nursery.start_soon(self._read_beside_statement)

    async def _read_beside_statement(self) -> None:
        try:
            while True:
                await self._receive()
                if self._is_at_end or self._fault is not None:
                    if self._running_stream:
                        self.interrupt(None)
                    return
                if not self._running_stream or len(self._inbox) >= self._limits.waiting_statements_max:
                    return
        finally:
            self._is_watching = False
            self._watcher_ended.set()


async def say_last_word(stream: trio.abc.Stream, error: SqlError, limits: SessionLimits) -> None:
    """Tell a client why its session ends, and wait a moment for it to hang up: closing on unread bytes could destroy the message."""
    with trio.move_on_after(limits.linger_seconds):
        try:
            await stream.send_all(encode_message(error_message(SESSION_STREAM, error)))
            if isinstance(stream, trio.abc.HalfCloseableStream):
                await stream.send_eof()
            while await stream.receive_some(limits.read_bytes):
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


def _after_commit(reason: SqlError) -> SqlError:
    return UnknownOutcomeError(
        f"{reason.message}, after it had committed",
        detail="What the statement committed stays; it was not carried to its end.",
        hint="Look at what is there before you run it again.",
    )


async def _once(batch: pa.RecordBatch) -> AsyncIterator[pa.RecordBatch]:
    yield batch


async def _chain(first: list[pa.RecordBatch], rest: AsyncIterator[pa.RecordBatch]) -> AsyncIterator[pa.RecordBatch]:
    while first:
        yield first.pop(0)
    async for batch in rest:
        yield batch


@contextlib.asynccontextmanager
async def _closing(batches: AsyncIterator[pa.RecordBatch]) -> AsyncIterator[AsyncIterator[pa.RecordBatch]]:
    """Close an iterator that can be closed: a stage must stop on every node when its reader does."""
    try:
        yield batches
    finally:
        close = getattr(batches, "aclose", None)
        if close is not None:
            await close()
