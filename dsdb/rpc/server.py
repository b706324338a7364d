"""The serving side of node RPC: one reader per connection, replies without a task where the handler can.

    reader ── try_fast ──▶ reply in the same turn
           └─ else: a task in the connection's nursery ──▶ reply when it is done, CANCEL ends it

Invariants:
- One-way messages of a connection are received in the order in which they were sent.
- A connection from another cluster, or with another version, gets an error frame and is closed.
- Whatever comes in ends its connection at most; only members of the cluster may send one-way messages and uploads.
"""

import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import trio

from dsdb.env import NodeStream
from dsdb.kv.ids import NodeId
from dsdb.rpc.errors import FrameError
from dsdb.rpc.frames import Frame, FrameKind, FrameReader, encode_frame, encode_header
from dsdb.rpc.method import Handler, MethodKind, Registry
from dsdb.rpc.outbox import Outbox

log = logging.getLogger("dsdb.rpc")

OUTBOX_BYTES_MAX = 64 * 1024 * 1024
"""Replies that a peer has not read yet; above it the connection is closed, because such a peer is not reading at all."""

CHUNKS_IN_FLIGHT_MAX = 8
"""Chunks of an upload read ahead of its consumer."""


class Hello(msgspec.Struct, frozen=True, array_like=True):
    """First frame of a connection: who connects.  cluster_id is empty while the node has not joined yet."""

    cluster_id: str
    node_id: NodeId


class ErrorReply(msgspec.Struct, frozen=True, array_like=True):
    """An ERROR frame that is not of the method's own error type: a refusal or a bug, as a sentence."""

    message: str


_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE_HELLO = msgspec.msgpack.Decoder(Hello).decode
# Beside its own errors the decoder raises RecursionError for arrays within arrays …, and ValueError's for text that is not UTF-8.
_DECODE_ERRORS = (msgspec.DecodeError, RecursionError, ValueError)
UNTYPED_ERROR = 1
"""In the method field of an ERROR frame: the payload is an ErrorReply; 0: of the method's error type."""


class RpcServer:
    """Serves the registry's methods on the streams it is given."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self.cluster_id = ""
        """Of this node; empty until it is known, and then every Hello must name it or be empty (a joining node's)."""

    async def serve(self, stream: NodeStream) -> None:
        """Serve one connection, whose magic has been read already, until it ends."""
        try:
            await _Connection(self, self._registry, stream).run()
        finally:
            with trio.CancelScope(shield=True):
                await stream.aclose()

    async def refuse(self, stream: NodeStream, message: str) -> None:
        """Say why a connection, whose magic has been read, is not served; the caller closes it.  Raises BrokenResourceError."""
        await stream.send_all(encode_frame(FrameKind.ERROR, UNTYPED_ERROR, 0, _ENCODE(ErrorReply(message))))


class _Connection:
    def __init__(self, server: RpcServer, registry: Registry, stream: NodeStream) -> None:
        self._server = server
        self._registry = registry
        self._stream = stream
        self._outbox = Outbox(stream, buffer_bytes_max=OUTBOX_BYTES_MAX)
        self._calls: dict[int, trio.CancelScope] = {}
        self._upload: trio.MemorySendChannel[bytes] | None = None
        self._sender = NodeId(0)
        self._is_member = False
        """Whether its Hello named this cluster."""

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._outbox.run)
            try:
                await self._read(nursery)
            except FrameError as error:
                log.warning("closing a connection between nodes: %s", error)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the peer is gone, and so is whoever waits for our replies
            nursery.cancel_scope.cancel()

    async def _read(self, nursery: trio.Nursery) -> None:
        frames = FrameReader()
        while data := await self._stream.receive_some():
            for frame in frames.feed(data):
                if frame.kind == FrameKind.CHUNK:
                    await self._take_chunk(frame)
                else:
                    self._take(frame, nursery)
            if self._outbox.is_full:
                raise FrameError("the peer does not read its replies")

    def _take(self, frame: Frame, nursery: trio.Nursery) -> None:
        if frame.kind == FrameKind.HELLO:
            self._take_hello(frame)
            return
        if frame.kind == FrameKind.PING:
            self._outbox.send(encode_frame(FrameKind.PONG, 0, 0, b""))
            return
        if frame.kind == FrameKind.CANCEL:
            if scope := self._calls.get(frame.call_id):
                scope.cancel()
            return
        if frame.kind == FrameKind.END:
            if self._upload is not None:
                self._upload.close()
                self._upload = None
            return
        handler = self._registry.get(frame.method_id)
        if handler is None:
            self._refuse(frame.call_id, f"this node has no method {frame.method_id}: is it of an older version?")
            return
        request = _decoded(handler, frame)
        if handler.method.kind in (MethodKind.ONEWAY, MethodKind.UPLOAD) and not self._is_member:
            raise FrameError(f"{handler.method.name} from somebody who is not of this cluster")
        if frame.kind == FrameKind.ONEWAY and handler.oneway is not None:
            handler.oneway(self._sender, request)
        elif handler.method.kind is MethodKind.CALL:
            self._call(handler, request, frame.call_id, nursery)
        elif handler.method.kind is MethodKind.DOWNLOAD:
            nursery.start_soon(self._serve_download, handler, request, frame.call_id)
        elif handler.method.kind is MethodKind.UPLOAD:
            self._upload, chunks = trio.open_memory_channel[bytes](CHUNKS_IN_FLIGHT_MAX)
            nursery.start_soon(self._serve_upload, handler, request, chunks, frame.call_id)
        else:
            raise FrameError(f"method {handler.method.name} does not take a frame of kind {frame.kind}")

    def _take_hello(self, frame: Frame) -> None:
        try:
            hello = _DECODE_HELLO(bytes(frame.payload))
        except _DECODE_ERRORS as error:
            raise FrameError(f"not a Hello: {error}") from None
        own = self._server.cluster_id
        if hello.cluster_id and own and hello.cluster_id != own:
            self._refuse(0, f"node {hello.node_id} belongs to cluster {hello.cluster_id}, this node to {own}")
            raise FrameError(f"node {hello.node_id} of another cluster ({hello.cluster_id})")
        self._sender = hello.node_id
        self._is_member = bool(hello.cluster_id)

    def _call(self, handler: Handler, request: Any, call_id: int, nursery: trio.Nursery) -> None:
        if call_id in self._calls:
            raise FrameError(f"call {call_id} is used again while it runs")
        if handler.try_fast is not None:
            try:
                reply = handler.try_fast(request)
            except Exception as error:  # a task's root: whatever a handler raises is answered, and logged if it is a bug
                self._answer_error(handler, error, call_id)
                return
            if reply is not None:
                self._reply(handler, reply, call_id)
                return
        scope = self._calls[call_id] = trio.CancelScope()
        nursery.start_soon(self._serve_call, handler, request, call_id, scope)

    async def _serve_call(self, handler: Handler, request: Any, call_id: int, scope: trio.CancelScope) -> None:
        assert handler.handle is not None
        with scope:
            try:
                reply = await handler.handle(request)
            except Exception as error:  # a task's root, as above
                self._answer_error(handler, error, call_id)
            else:
                self._reply(handler, reply, call_id)
            finally:
                del self._calls[call_id]

    async def _serve_download(self, handler: Handler, request: Any, call_id: int) -> None:
        assert handler.download is not None
        chunks = handler.download(request)
        try:
            async for chunk in chunks:
                await self._stream.send_all(encode_header(FrameKind.CHUNK, 0, call_id, len(chunk)))
                await self._stream.send_all(chunk)
            await self._stream.send_all(encode_frame(FrameKind.END, 0, call_id, b""))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the caller went away; the reader ends the connection
        except Exception as error:  # a task's root, as above
            self._answer_error(handler, error, call_id)
        finally:
            with trio.CancelScope(shield=True):
                await chunks.aclose()  # type: ignore[attr-defined]  # an async generator, always

    async def _serve_upload(self, handler: Handler, request: Any, chunks: AsyncIterator[bytes], call_id: int) -> None:
        assert handler.upload is not None
        try:
            reply = await handler.upload(request, chunks)
        except Exception as error:  # a task's root, as above
            self._answer_error(handler, error, call_id)
        else:
            self._reply(handler, reply, call_id)

    async def _take_chunk(self, frame: Frame) -> None:
        if self._upload is None:
            return  # its consumer has failed already and the error is on its way
        try:
            await self._upload.send(bytes(frame.payload))
        except trio.BrokenResourceError:
            self._upload = None

    def _reply(self, handler: Handler, reply: Any, call_id: int) -> None:
        self._outbox.send(encode_frame(FrameKind.REPLY, 0, call_id, handler.method.encode(reply)))

    def _answer_error(self, handler: Handler, error: Exception, call_id: int) -> None:
        detail = getattr(error, "detail", None)
        if handler.method.decode_error is not None and isinstance(detail, msgspec.Struct):
            self._outbox.send(encode_frame(FrameKind.ERROR, 0, call_id, handler.method.encode(detail)))
            return
        log.error("method %s failed", handler.method.name, exc_info=error)
        self._refuse(call_id, f"{handler.method.name} failed: {error}")

    def _refuse(self, call_id: int, message: str) -> None:
        self._outbox.send(encode_frame(FrameKind.ERROR, UNTYPED_ERROR, call_id, _ENCODE(ErrorReply(message))))


def _decoded(handler: Handler, frame: Frame) -> Any:
    try:
        return handler.method.decode_request(bytes(frame.payload))
    except _DECODE_ERRORS as error:
        raise FrameError(f"not a request of {handler.method.name}: {error}") from None
