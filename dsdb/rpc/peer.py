"""The calling side of node RPC: one control connection per peer, opened when first needed, and a few bulk ones.

    call ──▶ frame ──▶ … ──▶ reader ──▶ wakes the caller's task
    send (one-way) ──▶ frame, or nothing if there is no connection

Invariants:
- A call ends with its reply, NotSent (it had no effect), ReplyLost (unknown), or CallFailed: never twice, never not at all. A sweeper
  ends calls whose deadline passed, so that no call needs a timer of its own.
- After a connection breaks, a new one is tried on demand, at most every RECONNECT_PAUSE_S; while a peer cannot be reached, calls fail
  at once.
- A connection whose peer is gone without a word is closed after SILENCE_MAX_S, and its calls end; so do the bulk ones with it.
"""

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import outcome
import trio

from dsdb.env import Address, Clock, Network, NodeStream, TlsNetwork, UntrustedError
from dsdb.kv.ids import NodeId
from dsdb.rpc.errors import CallFailed, FrameError, NotSent, NotTrusted, Refused, ReplyLost, RpcError
from dsdb.rpc.frames import RPC_MAGIC, Frame, FrameKind, FrameReader, encode_frame, encode_header
from dsdb.rpc.method import Method, ReplyT, RequestT
from dsdb.rpc.outbox import Outbox
from dsdb.rpc.server import UNTYPED_ERROR, ErrorReply, Hello

log = logging.getLogger("dsdb.rpc")

CONNECT_TIMEOUT_S = 1.0
"""After this long a peer that does not answer counts as unreachable."""
HANDSHAKE_TIMEOUT_S = 2.0
"""How much longer TLS may take: the peer's kernel alone accepts a connection, but its event loop must have turns for a handshake."""
RECONNECT_PAUSE_S = 0.1
"""Least time between two attempts to connect to a peer."""
SWEEP_INTERVAL_S = 0.25
"""How often calls past their deadline are ended; deadlines are kept to within this."""
PING_AFTER_S = 0.5
"""A peer that owes answers and has said nothing for this long is asked whether it is there."""
SILENCE_MAX_S = 2.0
"""A peer that owes answers, was asked, and has said nothing for this long is gone: TCP itself would wait for minutes."""
CALL_TIMEOUT_S = 10.0
"""Deadline of a call that names none."""
OUTBOX_BYTES_MAX = 32 * 1024 * 1024
"""One-way messages are dropped while more than this waits to leave: Raft sends them again."""
IDLE_BULK_CONNECTIONS_MAX = 4
"""Idle bulk connections kept per peer."""

_DECODE_ERROR = msgspec.msgpack.Decoder(ErrorReply).decode
_ENCODE = msgspec.msgpack.Encoder().encode


class _Call:
    __slots__ = ("deadline", "method", "task")

    def __init__(self, method: Method[Any, Any], task: trio.lowlevel.Task, deadline: float) -> None:
        self.method, self.task, self.deadline = method, task, deadline


class Peers:
    """All other nodes, as this one can call them."""

    def __init__(self, network: Network, clock: Clock, *, address_of: Callable[[NodeId], Address | None]) -> None:
        self._network = network
        self._clock = clock
        self._address_of = address_of
        self._peers: dict[NodeId, _Peer] = {}
        self._nursery: trio.Nursery | None = None
        self._called: trio.Event | None = None
        """What wakes the sweeper, while nobody is owed an answer."""
        self.hello = Hello("", NodeId(0))
        """What this node says of itself when it connects; set once its identity is known."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the connections, and end calls whose deadline passed."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                while True:
                    await trio.sleep(SWEEP_INTERVAL_S)
                    now = self._clock.now()
                    for peer in self._peers.values():
                        peer.sweep(now)
                    if not any(peer.needs_sweep for peer in self._peers.values()):
                        self._called = trio.Event()
                        await self._called.wait()
            finally:
                self._nursery = None
                with trio.CancelScope(shield=True):
                    for peer in self._peers.values():
                        await peer.close_idle()

    async def call(
        self, node_id: NodeId, method: Method[RequestT, ReplyT], request: RequestT, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> ReplyT:
        """Call a method of a node.  Raises NotSent, ReplyLost, CallFailed, or the method's own exception.

        Cancellation tells the other side, and does not wait for it: what the call did is then unknown.
        """
        connection = await self._peer(node_id).connected()
        self._wake_sweeper()
        return await connection.call(method, request, self._clock.now() + timeout_s)

    def send(self, node_id: NodeId, method: Method[RequestT, None], message: RequestT) -> bool:
        """Send a one-way message if there is a connection (else start to make one); give whether it left."""
        return self._peer(node_id).send(method, message)

    def is_connected(self, node_id: NodeId) -> bool:
        """Say whether there is a control connection now."""
        peer = self._peers.get(node_id)
        return peer is not None and peer.connection is not None

    def forget_address(self, node_id: NodeId) -> None:
        """Close the control connection to a node whose address has changed."""
        if peer := self._peers.get(node_id):
            peer.drop()

    async def download(self, node_id: NodeId, method: Method[RequestT, None], request: RequestT) -> AsyncIterator[bytes]:
        """Call a DOWNLOAD and give its chunks; closing the iterator early ends it on the other side.  Raises as `call`."""
        peer = self._peer(node_id)
        stream, frames = await peer.bulk()
        self._wake_sweeper()
        is_clean = False
        try:
            try:
                await stream.send_all(encode_frame(FrameKind.REQUEST, method.number, 1, method.encode(request)))
                while data := await stream.receive_some():
                    for frame in frames.feed(data):
                        if frame.kind == FrameKind.END:
                            is_clean = True
                            return
                        if frame.kind == FrameKind.ERROR:
                            is_clean = True
                            raise _error_of(method, frame)
                        yield bytes(frame.payload)
            except (trio.BrokenResourceError, trio.ClosedResourceError, FrameError) as error:
                raise ReplyLost(f"the stream from node {node_id} broke: {error}") from error
            raise ReplyLost(f"the stream from node {node_id} ended early")
        finally:
            with trio.CancelScope(shield=True):
                await peer.give_back(stream, frames, is_clean=is_clean)

    async def upload(self, node_id: NodeId, method: Method[RequestT, ReplyT], request: RequestT, chunks: AsyncIterator[bytes]) -> ReplyT:
        """Call an UPLOAD with chunks and give its reply.  Raises as `call`."""
        peer = self._peer(node_id)
        stream, frames = await peer.bulk()
        self._wake_sweeper()
        try:
            await stream.send_all(encode_frame(FrameKind.REQUEST, method.number, 1, method.encode(request)))
            async for chunk in chunks:
                await stream.send_all(encode_header(FrameKind.CHUNK, method.number, 1, len(chunk)))
                await stream.send_all(chunk)
            await stream.send_all(encode_frame(FrameKind.END, method.number, 1, b""))
            while data := await stream.receive_some():
                for frame in frames.feed(data):
                    if frame.kind == FrameKind.ERROR:
                        raise _error_of(method, frame)
                    return method.decode_reply(bytes(frame.payload))
        except (trio.BrokenResourceError, trio.ClosedResourceError, FrameError) as error:
            raise ReplyLost(f"the stream to node {node_id} broke: {error}") from error
        finally:
            with trio.CancelScope(shield=True):
                await peer.give_back(stream, frames, is_clean=False)
        raise ReplyLost(f"node {node_id} closed the stream without a reply")

    def _wake_sweeper(self) -> None:
        if self._called is not None:
            self._called.set()
            self._called = None

    def _peer(self, node_id: NodeId) -> "_Peer":
        peer = self._peers.get(node_id)
        if peer is None:
            if self._nursery is None:
                raise NotSent("this node is not connected to others yet")
            peer = self._peers[node_id] = _Peer(self, node_id, self._network, self._clock, self._nursery)
        return peer

    @property
    def is_running(self) -> bool:
        """Say whether `run` holds the connections."""
        return self._nursery is not None

    def resolve(self, node_id: NodeId) -> Address:
        """Give the address of a node.  Raises NotSent if it is not known."""
        address = self._address_of(node_id)
        if address is None:
            raise NotSent(f"the address of node {node_id} is not known")
        return address


class _Peer:
    """One other node: its control connection, if there is one, and idle bulk ones."""

    def __init__(self, peers: Peers, node_id: NodeId, network: Network, clock: Clock, nursery: trio.Nursery) -> None:
        self._peers, self._node_id, self._network, self._clock, self._nursery = peers, node_id, network, clock, nursery
        self.connection: _Connection | None = None
        self._connecting: trio.Event | None = None
        self._error = "not tried yet"
        self._is_untrusted = False
        """The last try failed by certificates: `_error` says how."""
        self.refusal = ""
        """What was logged last of a refusal, by either side: it is logged again only when it changes."""
        self._is_unreachable = False
        """The last try to connect failed: nobody waits for the next one."""
        self._retry_at = 0.0
        self._idle_bulk: list[tuple[NodeStream, FrameReader]] = []
        self._busy_bulk: list[NodeStream] = []

    async def connected(self) -> "_Connection":
        if self.connection is not None:
            return self.connection
        self._start_connecting()
        if self._connecting is not None and not self._is_unreachable:
            await self._connecting.wait()
        connection: _Connection | None = self.connection  # it was set while we waited, or was not
        if connection is None:
            kind = NotTrusted if self._is_untrusted else NotSent
            raise kind(f"node {self._node_id} cannot be reached: {self._error}")
        return connection

    def log_refusal(self, message: str) -> None:
        """Log that the two nodes do not talk to each other, once for each reason."""
        if message != self.refusal:
            self.refusal = message
            log.error("node %d and this node do not talk to each other: %s", self._node_id, message)

    def send(self, method: Method[Any, None], message: Any) -> bool:
        if self.connection is None:
            self._start_connecting()
            return False
        return self.connection.send_oneway(method, message)

    def drop(self) -> None:
        if self.connection is not None:
            self._nursery.start_soon(self.connection.stream.aclose)

    def sweep(self, now: float) -> None:
        if self.connection is not None:
            self.connection.sweep(now)
            if self.connection.is_silent(now, owes_bulk=bool(self._busy_bulk)):
                log.info("node %d says nothing: its connection is closed", self._node_id)
                self.drop()

    @property
    def needs_sweep(self) -> bool:
        """Say whether it owes an answer, or is under suspicion because it owed one."""
        return bool(self._busy_bulk) or (self.connection is not None and self.connection.needs_sweep)

    async def bulk(self) -> tuple[NodeStream, FrameReader]:
        if self.connection is None:
            self._start_connecting()  # it is the control connection that shows whether the peer is there
        if self._idle_bulk:
            stream, frames = self._idle_bulk.pop()
        else:
            try:
                stream, frames = await self._open(), FrameReader()
            except (OSError, trio.TooSlowError, trio.BrokenResourceError) as error:
                raise NotSent(f"node {self._node_id} cannot be reached: {error}") from error
        self._busy_bulk.append(stream)
        return stream, frames

    async def give_back(self, stream: NodeStream, frames: FrameReader, *, is_clean: bool) -> None:
        self._busy_bulk.remove(stream)
        if is_clean and len(self._idle_bulk) < IDLE_BULK_CONNECTIONS_MAX:
            self._idle_bulk.append((stream, frames))
        else:
            await stream.aclose()

    def _start_connecting(self) -> None:
        if self._connecting is None and self._clock.now() >= self._retry_at:
            if not self._peers.is_running:
                self._error = "this node is stopping"
                return
            self._connecting = trio.Event()
            self._nursery.start_soon(self._run)

    async def _open(self) -> NodeStream:
        with trio.fail_after(CONNECT_TIMEOUT_S + (HANDSHAKE_TIMEOUT_S if isinstance(self._network, TlsNetwork) else 0.0)):
            stream = await self._network.connect(self._peers.resolve(self._node_id))
            await stream.send_all(RPC_MAGIC + encode_frame(FrameKind.HELLO, 0, 0, _ENCODE(self._peers.hello)))
        return stream

    async def _run(self) -> None:
        """Connect, then read until the connection ends."""
        assert self._connecting is not None
        stream: NodeStream | None = None
        try:
            stream = await self._open()
        except (OSError, trio.TooSlowError, trio.BrokenResourceError, NotSent) as error:
            self._error = (error.strerror if isinstance(error, OSError) else str(error)) or "it does not answer"
            self._is_unreachable = True
            self._is_untrusted = isinstance(error, UntrustedError)
            if self._is_untrusted:
                self.log_refusal(self._error)
            self._retry_at = self._clock.now() + RECONNECT_PAUSE_S
            await self._close_bulk()
            return
        finally:
            # Also when cancelled: whoever waits for the connection must hear that there is none.
            if self.connection is None and stream is None:
                self._done_connecting()
        self.connection = connection = _Connection(self._node_id, stream, self.log_refusal)
        self._is_unreachable = False
        self._done_connecting()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connection.outbox.run)
                await connection.read()
                nursery.cancel_scope.cancel()
        finally:
            self.connection = None
            self._retry_at = self._clock.now() + RECONNECT_PAUSE_S
            connection.fail_all()
            with trio.CancelScope(shield=True):
                await stream.aclose()
                await self._close_bulk()

    async def _close_bulk(self) -> None:
        """Close all bulk connections: those who use them hear of it, and give them back."""
        for stream in list(self._busy_bulk):
            await stream.aclose()
        await self.close_idle()

    async def close_idle(self) -> None:
        idle, self._idle_bulk = self._idle_bulk, []
        for stream, _ in idle:
            await stream.aclose()

    def _done_connecting(self) -> None:
        if self._connecting is not None:
            self._connecting.set()
        self._connecting = None


class _Connection:
    """A control connection that is up."""

    def __init__(self, node_id: NodeId, stream: NodeStream, log_refusal: Callable[[str], None]) -> None:
        self._node_id = node_id
        self._log_refusal = log_refusal
        self.stream = stream
        self.outbox = Outbox(stream, buffer_bytes_max=OUTBOX_BYTES_MAX)
        self._calls: dict[int, _Call] = {}
        self._next_call_id = 1
        self._is_closed = False
        self._was_heard = True  # since the last sweep
        self._silent_since: float | None = None  # on our clock, while it owes answers
        self._refusal: str | None = None  # why the other side will not talk to us, if it said so

    async def call(self, method: Method[RequestT, ReplyT], request: RequestT, deadline: float) -> ReplyT:
        if self._is_closed:
            raise NotSent(f"the connection to node {self._node_id} has just closed")
        call_id = self._next_call_id
        self._next_call_id = (call_id + 1) & 0xFFFFFFFF
        frame = encode_frame(FrameKind.REQUEST, method.number, call_id, method.encode(request))
        self._calls[call_id] = _Call(method, trio.lowlevel.current_task(), deadline)
        self.outbox.send(frame)

        def abort(_: Any) -> trio.lowlevel.Abort:
            # The slot must go before the task wakes: rescheduling a task twice ends the whole run.
            del self._calls[call_id]
            self.outbox.send(encode_frame(FrameKind.CANCEL, method.number, call_id, b""))
            return trio.lowlevel.Abort.SUCCEEDED

        reply: ReplyT = await trio.lowlevel.wait_task_rescheduled(abort)
        return reply

    def send_oneway(self, method: Method[Any, None], message: Any) -> bool:
        if self._is_closed or self.outbox.is_full:
            return False
        self.outbox.send(encode_frame(FrameKind.ONEWAY, method.number, 0, method.encode(message)))
        return True

    async def read(self) -> None:
        """Take replies until the connection ends."""
        frames = FrameReader()
        try:
            while data := await self.stream.receive_some():
                self._was_heard = True
                for frame in frames.feed(data):
                    self._take(frame)
        except UntrustedError as error:
            # With TLS 1.3 the one that connects may send before the other has looked at its certificate.
            self._refused(str(error))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except (FrameError, msgspec.DecodeError, msgspec.ValidationError) as error:
            log.warning("closing the connection to node %d: %s", self._node_id, error)

    def sweep(self, now: float) -> None:
        late = [call_id for call_id, call in self._calls.items() if call.deadline < now]
        for call_id in late:
            call = self._calls.pop(call_id)
            error = ReplyLost(f"node {self._node_id} did not answer {call.method.name} in time")
            trio.lowlevel.reschedule(call.task, outcome.Error(error))
            self.outbox.send(encode_frame(FrameKind.CANCEL, call.method.number, call_id, b""))

    @property
    def needs_sweep(self) -> bool:
        return bool(self._calls) or self._silent_since is not None

    def is_silent(self, now: float, *, owes_bulk: bool) -> bool:
        """Say whether the peer must be given up; ask it whether it is there before.  Called by each sweep."""
        if self._was_heard:
            self._was_heard, self._silent_since = False, None
        elif self._silent_since is None:
            self._silent_since = now if self._calls or owes_bulk else None
        elif now - self._silent_since >= SILENCE_MAX_S:
            return True
        elif now - self._silent_since >= PING_AFTER_S:
            self.outbox.send(encode_frame(FrameKind.PING, 0, 0, b""))
        return False

    def fail_all(self) -> None:
        self._is_closed = True
        calls, self._calls = self._calls, {}
        for call in calls.values():
            error: RpcError = ReplyLost(f"the connection to node {self._node_id} broke before {call.method.name} was answered")
            if self._refusal is not None:
                error = Refused(self._refusal)
            trio.lowlevel.reschedule(call.task, outcome.Error(error))

    def _refused(self, reason: str) -> None:
        self._refusal = reason
        self._log_refusal(reason)

    def _take(self, frame: Frame) -> None:
        if frame.call_id == 0 and frame.kind == FrameKind.ERROR:
            self._refused(_DECODE_ERROR(bytes(frame.payload)).message)
            return
        call = self._calls.pop(frame.call_id, None)
        if call is None:
            return  # cancelled or swept before the reply came
        result: outcome.Outcome[Any]
        if frame.kind == FrameKind.REPLY:
            result = outcome.capture(call.method.decode_reply, bytes(frame.payload))
        else:
            result = outcome.Error(_error_of(call.method, frame))
        trio.lowlevel.reschedule(call.task, result)


def _error_of(method: Method[Any, Any], frame: Frame) -> Exception:
    if frame.method_id == UNTYPED_ERROR or method.decode_error is None:
        return CallFailed(_DECODE_ERROR(bytes(frame.payload)).message)
    detail = method.decode_error(bytes(frame.payload))
    return CallFailed(detail) if method.error_exception is None else method.error_exception(detail)


__all__ = ["Peers", "RpcError"]
