"""The network: addresses, listening and connecting, as a Protocol and over TCP.

A stream here is trio's, with one addition: `send_nowait` writes what the kernel takes at once, so that a small reply leaves in the
task that made it, without a switch to a writer (that switch costs more than the send).
"""

import abc
import errno
import os
import socket
from typing import NamedTuple, Protocol

import trio

from dsdb.tls.identity import Identity

RECEIVE_BYTES = 64 * 1024
"""Most bytes taken from a socket in one call.  Above 128 KiB the allocator asks the kernel for pages, and gives them back, in each call:
that costs five times as much as the call."""
RECEIVE_BYTES_MORE = 256 * 1024
"""The same where the call before was filled, so that more is on its way."""
PROBE_AFTER_S, PROBE_EVERY_S, PROBES = 10, 5, 3
"""A connection on which nothing comes is probed by the kernel after so long, and breaks after so many probes that nothing answers."""


class Address(NamedTuple):
    """Where a node listens."""

    host: str
    port: int

    def __str__(self) -> str:
        """Give host:port, an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, *, default_port: int) -> Address:
    """Read host, host:port or [v6]:port.  Raises ValueError with a sentence."""
    host, separator, port_text = text.rpartition(":")
    if not separator or text.endswith("]"):
        host, port_text = text, str(default_port)
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port_text.isdigit() or int(port_text) > 65535:
        raise ValueError(f"{text!r} is not an address: expected HOST:PORT with a port from 0 to 65535")
    return Address(host, int(port_text))


class NodeStream(trio.abc.Stream):
    """A byte stream to a peer: trio's Stream, and a send that does not wait."""

    @property
    def identity(self) -> Identity | None:
        """Say whom the peer's certificate names; None without TLS."""
        return None

    @abc.abstractmethod
    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Send what can leave at once; give how many bytes did (0 if none).  Raises trio.BrokenResourceError."""


class NodeListener(Protocol):
    """Accepts streams."""

    @property
    def address(self) -> Address:
        """Give where it listens, with the real port."""

    async def accept(self) -> NodeStream:
        """Wait for the next stream.  Raises OSError, trio.ClosedResourceError."""

    async def aclose(self) -> None:
        """Stop listening."""


class Network(Protocol):
    """Streams between nodes."""

    async def listen(self, address: Address) -> NodeListener:
        """Listen at an address (port 0: any free one).  Raises OSError."""

    async def connect(self, address: Address) -> NodeStream:
        """Connect to an address.  Raises OSError."""


class TcpStream(NodeStream, trio.abc.HalfCloseableStream):
    """A TCP connection with Nagle's algorithm off: without that a small round costs 45 ms.

    It breaks when the other end is gone without a word: else the session of a client whose power failed would keep its locks for ever.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, PROBE_AFTER_S)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, PROBE_EVERY_S)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
        self._sock = sock
        self._is_drained = True  # the last receive took all there was: asking the kernel again at once would only be told so

    @property
    def peer(self) -> str:
        """Give the other end, for log lines."""
        try:
            name = self._sock.getpeername()
        except OSError:
            return "somebody who is gone already"
        return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "local socket"

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte, or b"" at the end."""
        bytes_max = max_bytes or (RECEIVE_BYTES if self._is_drained else RECEIVE_BYTES_MORE)
        while True:
            if self._is_drained:
                await self._wait(trio.lowlevel.wait_readable)
            try:
                data = self._sock.recv(bytes_max)
            except (BlockingIOError, InterruptedError):
                self._is_drained = True
            except OSError as error:
                raise self._broken(error) from error
            else:
                self._is_drained = len(data) < bytes_max
                return data

    async def receive_into(self, buffer: memoryview) -> int:
        """Receive into a buffer; give the number of bytes, 0 at the end."""
        while True:
            try:
                return self._sock.recv_into(buffer)
            except (BlockingIOError, InterruptedError):
                await self._wait(trio.lowlevel.wait_readable)
            except OSError as error:
                raise self._broken(error) from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything."""
        with memoryview(data) as view:
            sent = self.send_nowait(view)
            while sent < len(view):
                await self._wait(trio.lowlevel.wait_writable)
                sent += self.send_nowait(view[sent:])

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Send what the kernel takes now."""
        try:
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise self._broken(error) from error

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel takes something."""
        await self._wait(trio.lowlevel.wait_writable)

    async def send_eof(self) -> None:
        """Say that nothing more will be sent; the peer's bytes still come."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            raise self._broken(error) from error
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close it; tasks that wait on it get ClosedResourceError."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close it at once."""
        if self._sock.fileno() != -1:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    async def _wait(self, wait: "_Wait") -> None:
        if self._sock.fileno() == -1:
            raise trio.ClosedResourceError("this connection was already closed")
        await wait(self._sock)

    def _broken(self, error: OSError) -> Exception:
        if error.errno == errno.EBADF or self._sock.fileno() == -1:
            return trio.ClosedResourceError("this connection was already closed")
        return trio.BrokenResourceError(f"connection broken: {os.strerror(error.errno or 0)}")


class _Wait(Protocol):
    async def __call__(self, sock: socket.socket, /) -> None: ...


class TcpListener:
    """A listening TCP socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @property
    def address(self) -> Address:
        """Give where it listens."""
        host, port = self._sock.getsockname()[:2]
        return Address(host, port)

    async def accept(self) -> TcpStream:
        """Wait for the next connection."""
        while True:
            try:
                return TcpStream(self._sock.accept()[0])
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                await trio.lowlevel.wait_readable(self._sock)

    async def aclose(self) -> None:
        """Stop listening."""
        if self._sock.fileno() != -1:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()
        await trio.lowlevel.checkpoint()


class TcpNetwork:
    """TCP between machines, or over the loopback."""

    async def listen(self, address: Address) -> TcpListener:
        """Listen at an address."""
        found = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, _, _, _, name = found[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(name)
            sock.listen(1024)
            sock.setblocking(False)
        except OSError:
            sock.close()
            raise
        return TcpListener(sock)

    async def connect(self, address: Address) -> TcpStream:
        """Connect to an address, trying each of its families in turn."""
        error: OSError = ConnectionRefusedError(f"no address for {address}")
        for family, _, _, _, name in await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                await _connect(sock, name)
            except BaseException as caught:
                sock.close()
                if not isinstance(caught, OSError):
                    raise
                error = caught
            else:
                return TcpStream(sock)
        raise error


async def _connect(sock: socket.socket, name: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]) -> None:
    code = sock.connect_ex(name)
    if code in (errno.EINPROGRESS, errno.EWOULDBLOCK):
        await trio.lowlevel.wait_writable(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, os.strerror(code))
