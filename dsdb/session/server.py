"""All sessions of a node: admission, the sweep over running statements, and the drain.

    run      one task: while statements run, look at them every `sweep_seconds` (timeouts; who must be listened to); else sleep, until
             an open transaction has been idle for too long
    serve    one task a connection: magic ▸ Hello ▸ Welcome ▸ GatewaySession.run
    drain    idle sessions end at once with 57P01, the others after their statement or when the time is over

Invariants:
- At most `sessions_max` sessions; one more hears 53300, after its Hello, and is closed.
- A statement that ends within one sweep has cost the server two dictionary operations.
"""

import logging
from collections import deque
from typing import Any

import msgspec
import trio

from dsdb.protocol.errors import ProtocolError
from dsdb.protocol.frames import MAGIC_BYTES, SQL_MAGIC, SQL_MAGIC_PREFIX, FrameReader
from dsdb.protocol.messages import ClientMessage, Hello, Welcome, decode_client_message, encode_message
from dsdb.protocol.states import NodeSide
from dsdb.session.gateway import NEVER, GatewaySession, say_last_word
from dsdb.session.limits import SessionLimits
from dsdb.session.port import StatementPort
from dsdb.sql.errors import InvalidAuthorizationError, ProtocolViolationError, ShutdownError, SqlError, TooManyConnectionsError
from dsdb.sql.ports import OpenTransactionInfo

_LOG = logging.getLogger(__name__)


class SessionStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot: sessions open, statements that run now, statements since the start."""

    sessions: int
    running: int
    statements: int


class SessionServer:
    """The sessions of one node."""

    def __init__(
        self, executor: StatementPort, *, node_id: int, server_version: str = "dsdb 0.1.0", limits: SessionLimits | None = None
    ) -> None:
        self._executor = executor
        self._node_id = node_id
        self._server_version = server_version
        self._limits = limits or SessionLimits()
        # In the order of their begin.
        self._sessions: dict[GatewaySession, None] = {}
        self._running: dict[GatewaySession, None] = {}
        # Those whose transaction is open and may wait only so long for its next statement.
        self._idle: dict[GatewaySession, None] = {}
        self._next_session_id = 1
        self._statements = 0
        # Connections admitted, those included that have not said Hello.
        self._admitted = 0
        self._is_draining = False
        # Why no new session is taken, though the node goes on.
        self._refusal: str | None = None
        # Set while the sweep sleeps because nothing runs.
        self._sweep_asleep: trio.Event | None = None
        self._session_ended = trio.Event()

    def statistics(self) -> SessionStatistics:
        """Give what the server does now."""
        return SessionStatistics(sessions=len(self._sessions), running=len(self._running), statements=self._statements)

    def open_transactions(self, now_us: int) -> list[OpenTransactionInfo]:
        """Describe open transactions, and the statements that run outside one, by session.  now_us: the wall clock."""
        found = [session.describe(self._node_id, now_us) for session in self._sessions]
        return [info for info in found if info is not None]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sweep over running statements, until cancelled."""
        task_status.started()
        while True:
            if not self._running:
                self._sweep_asleep = trio.Event()
                with trio.move_on_at(min((session.idle_deadline for session in self._idle), default=NEVER)):
                    await self._sweep_asleep.wait()
            await trio.sleep(self._limits.sweep_seconds)
            now = trio.current_time()
            for session in list(self._running):
                session.sweep(now)
            for session in [session for session in self._idle if now >= session.idle_deadline]:
                del self._idle[session]
                session.end_idle()

    def statement_began(self, session: GatewaySession) -> None:
        """Note that a session runs a statement."""
        self._statements += 1
        self._running[session] = None
        self._idle.pop(session, None)
        self._wake_sweep()

    def _wake_sweep(self) -> None:
        if self._sweep_asleep is not None:
            self._sweep_asleep.set()
            self._sweep_asleep = None

    def statement_ended(self, session: GatewaySession) -> None:
        """Note that a session runs none."""
        self._running.pop(session, None)
        if session.state.transaction is not None and session.idle_deadline < NEVER:
            self._idle[session] = None
            self._wake_sweep()

    async def serve(self, stream: trio.abc.Stream, first_bytes: bytes = b"", *, user: str | None = None) -> None:
        """Serve one connection to its end, and close it.

        first_bytes: what was read of it already; the magic is read to its end here.  user: the only one whose session it may open, as
        its certificate says; None if there is no certificate and anybody may.
        """
        async with stream:
            # Twice the sessions may be at the door; beyond that even the refusal is too much.
            if self._admitted >= 2 * self._limits.sessions_max:
                return
            self._admitted += 1
            try:
                await self._serve_admitted(stream, first_bytes, user)
            finally:
                self._admitted -= 1

    async def refuse(self, stream: trio.abc.Stream, error: SqlError) -> None:
        """Tell a client, whose magic has been read, why it gets no session; the caller closes the connection."""
        await say_last_word(stream, error, self._limits)

    async def _serve_admitted(self, stream: trio.abc.Stream, first_bytes: bytes, user: str | None) -> None:
        try:
            session = await self._open(stream, first_bytes, user)
        except ProtocolError as error:
            await say_last_word(stream, ProtocolViolationError(str(error)), self._limits)
            return
        except SqlError as error:
            await say_last_word(stream, error, self._limits)
            return
        if session is None:
            return
        try:
            await session.run()
        except Exception:
            # The root of a session: a bug ends this one, not the node.
            _LOG.exception("session %d ended by an internal error", session.session_id)
        finally:
            self._sessions.pop(session, None)
            self._running.pop(session, None)
            self._idle.pop(session, None)
            self._session_ended.set()

    async def _open(self, stream: trio.abc.Stream, first_bytes: bytes, user: str | None) -> GatewaySession | None:
        """Shake hands; None if the client went, or says nothing in time."""
        reader = FrameReader(frame_bytes_max=self._limits.request_bytes_max)
        side = NodeSide()
        inbox: deque[ClientMessage] = deque()
        with trio.move_on_after(self._limits.handshake_seconds):
            data = bytes(first_bytes)
            while len(data) < MAGIC_BYTES:
                more = await self._read_more(stream)
                if not more:
                    return None
                data += more
            _check_magic(data)
            inbox.extend(_heard(side, frame) for frame in reader.receive(data[MAGIC_BYTES:]))
            while not inbox:
                more = await self._read_more(stream)
                if not more:
                    return None
                inbox.extend(_heard(side, frame) for frame in reader.receive(more))
            hello = inbox.popleft()
            assert type(hello) is Hello, hello
            if user is not None and hello.user != user:
                raise InvalidAuthorizationError(
                    f"the certificate is of user {user}, and the session asks for user {hello.user}",
                    hint="Name the user in the URL: dsdb://USER@host:7432/database.",
                )
            return await self._admit(stream, hello, reader=reader, side=side, inbox=inbox)
        return None

    async def _read_more(self, stream: trio.abc.Stream) -> bytes:
        try:
            return bytes(await stream.receive_some(self._limits.read_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    async def _admit(self, stream: trio.abc.Stream, hello: Hello, **connection: Any) -> GatewaySession | None:
        if self._is_draining:
            raise ShutdownError("the node is stopping", hint="Connect to another node of the cluster.")
        if self._refusal is not None:
            raise ShutdownError(self._refusal, hint="Connect to another node of the cluster.")
        if len(self._sessions) >= self._limits.sessions_max:
            raise TooManyConnectionsError(
                f"the node serves {len(self._sessions)} sessions, as many as it may", hint="Close sessions, or connect to another node."
            )
        session = GatewaySession(stream, self._executor, self, self._limits, session_id=self._next_session_id, hello=hello, **connection)
        for name, value in hello.options.items():
            session.state.change_setting(name, value)
        self._next_session_id += 1
        self._sessions[session] = None
        welcome = Welcome(
            session_id=session.session_id,
            node_id=self._node_id,
            server_version=self._server_version,
            sessions=len(self._sessions),
            request_bytes_max=self._limits.request_bytes_max,
        )
        try:
            await stream.send_all(encode_message(welcome))
        except BaseException as error:
            del self._sessions[session]
            if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError):
                return None
            raise
        return session

    def refuse_new(self, reason: str | None) -> None:
        """Take no new sessions, and say why; None: take them again.  Those that are there go on."""
        self._refusal = reason

    async def drain(self, *, grace_seconds: float) -> None:
        """Take no new sessions; end the idle ones now, the others after their statement; after the grace, all."""
        self._is_draining = True
        for session in list(self._sessions):
            session.shut_down(at_once=False)
        with trio.move_on_after(grace_seconds):
            await self._wait_for_no_session()
        for session in list(self._sessions):
            session.shut_down(at_once=True)
        with trio.move_on_after(self._limits.linger_seconds * 2):
            await self._wait_for_no_session()

    async def _wait_for_no_session(self) -> None:
        while self._sessions:
            self._session_ended = trio.Event()
            await self._session_ended.wait()


def _check_magic(data: bytes) -> None:
    if not data.startswith(SQL_MAGIC_PREFIX):
        raise ProtocolError("this is not a client of dsdb: its first bytes are others")
    if not data.startswith(SQL_MAGIC):
        raise ProtocolError(f"the client speaks version {data[MAGIC_BYTES - 1]} of the protocol, the node version {SQL_MAGIC[-1]}")


def _heard(side: NodeSide, frame: memoryview) -> ClientMessage:
    message = decode_client_message(frame)
    side.heard(message)
    return message
