"""What can be called on a node: methods, each with its number, its types and its handler.

Invariants:
- A method's number and types are the same on all nodes of a version; numbers are never reused.
- `try_fast` runs inside the connection's reader: it must not wait, and must take less than a millisecond.
"""

import enum
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

import msgspec

from dsdb.kv.ids import NodeId

RequestT = TypeVar("RequestT")
ReplyT = TypeVar("ReplyT")


class MethodKind(enum.Enum):
    """How a method talks."""

    CALL = 1
    """One request, one reply, on the control connection."""
    ONEWAY = 2
    """One message, no reply, in order, on the control connection."""
    DOWNLOAD = 3
    """One request, chunks of bytes back, on a bulk connection."""
    UPLOAD = 4
    """One request and chunks of bytes, then one reply, on a bulk connection."""


class Method(Generic[RequestT, ReplyT]):
    """A method's number, name and types.

    error_type: the type of the details that its handler may answer with by raising `error_exception(detail)`, or None.
    """

    def __init__(
        self,
        number: int,
        name: str,
        kind: MethodKind,
        request_type: Any,
        reply_type: Any,
        *,
        error_type: Any = None,
        error_exception: Callable[[Any], Exception] | None = None,
    ) -> None:
        self.number = number
        self.name = name
        self.kind = kind
        self.encode = msgspec.msgpack.Encoder().encode
        self.decode_request: Callable[[bytes], RequestT] = msgspec.msgpack.Decoder(request_type).decode
        self.decode_reply: Callable[[bytes], ReplyT] = msgspec.msgpack.Decoder(reply_type).decode
        self.decode_error: Callable[[bytes], Any] | None = None if error_type is None else msgspec.msgpack.Decoder(error_type).decode
        self.error_exception = error_exception


class Handler:
    """What serves a method; which of the fields is used depends on its kind."""

    __slots__ = ("download", "handle", "method", "oneway", "try_fast", "upload")

    def __init__(self, method: Method[Any, Any]) -> None:
        self.method = method
        self.try_fast: Callable[[Any], Any] | None = None
        self.handle: Callable[[Any], Awaitable[Any]] | None = None
        self.oneway: Callable[[NodeId, Any], None] | None = None
        self.download: Callable[[Any], AsyncIterator[Any]] | None = None
        self.upload: Callable[[Any, AsyncIterator[bytes]], Awaitable[Any]] | None = None


class Registry:
    """The methods that this node serves."""

    def __init__(self) -> None:
        self._handlers: dict[int, Handler] = {}

    def get(self, number: int) -> Handler | None:
        """Give the handler of a method."""
        return self._handlers.get(number)

    def serve_calls(
        self,
        method: Method[RequestT, ReplyT],
        handle: Callable[[RequestT], Awaitable[ReplyT]],
        try_fast: Callable[[RequestT], ReplyT | None] | None = None,
    ) -> None:
        """Serve a CALL: `try_fast` first where there is one, `handle` in a task of its own when that gives None."""
        handler = self._add(method, MethodKind.CALL)
        handler.handle, handler.try_fast = handle, try_fast

    def serve_oneway(self, method: Method[RequestT, None], receive: Callable[[NodeId, RequestT], None]) -> None:
        """Serve a ONEWAY: `receive(sender, message)`, in order."""
        self._add(method, MethodKind.ONEWAY).oneway = receive

    def serve_downloads(self, method: Method[RequestT, None], produce: Callable[[RequestT], AsyncIterator[Any]]) -> None:
        """Serve a DOWNLOAD: `produce` gives chunks (bytes-like); it is closed when the caller goes."""
        self._add(method, MethodKind.DOWNLOAD).download = produce

    def serve_uploads(
        self, method: Method[RequestT, ReplyT], consume: Callable[[RequestT, AsyncIterator[bytes]], Awaitable[ReplyT]]
    ) -> None:
        """Serve an UPLOAD: `consume(request, chunks)` gives the reply."""
        self._add(method, MethodKind.UPLOAD).upload = consume

    def _add(self, method: Method[Any, Any], kind: MethodKind) -> Handler:
        if method.kind is not kind or method.number in self._handlers:
            raise ValueError(f"method {method.name} ({method.number}) is of kind {method.kind} or served already")
        handler = self._handlers[method.number] = Handler(method)
        return handler
