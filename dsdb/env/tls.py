"""TLS on the network: a stream that encrypts, and a Network whose connections do.

    data ─▶ channel ─▶ waiting ─▶ what the kernel takes at once          send_nowait, as without TLS
                          └─────▶ the rest, when it takes more           send_all

Invariants:
- `send_nowait` counts a byte as sent when all of its record has left, so whoever sends the rest again keeps the connection going; what
  is encrypted and not counted yet is skipped then.  So the bytes that are sent again must be the same ones: a send that was cut short
  breaks the stream.
- A stream that `connect` gives is to a node with a certificate of the cluster's authority that names the host asked for.

Not here: which role may do what (`dsdb.node.greeting`), and how long a handshake may take (whoever calls).
"""

import trio

from dsdb.env.network import RECEIVE_BYTES_MORE, Address, Network, NodeStream, TcpListener, TcpNetwork, TcpStream
from dsdb.tls.channel import TlsChannel
from dsdb.tls.credentials import NodeCredentials
from dsdb.tls.errors import HandshakeError
from dsdb.tls.identity import Identity

ENCRYPT_BYTES = 256 * 1024
"""Most bytes encrypted before the kernel is asked whether it takes them: 0.2 ms of the event loop."""
TCP_CONNECT_S = 1.0
"""How long a machine may take to answer at all: whoever connects has time for the handshake beside."""
LINGER_S = 1.0
"""How long the other side may take to read why it is refused."""


class UntrustedError(trio.BrokenResourceError):
    """The two ends of a connection do not trust each other, or one of them does not speak TLS; the message is a sentence."""


class TlsStream(NodeStream, trio.abc.HalfCloseableStream):
    """An encrypted connection whose handshake is done."""

    def __init__(self, transport: TcpStream, channel: TlsChannel) -> None:
        self._transport = transport
        self._channel = channel
        self._identity = channel.identity()
        self._waiting = b""  # encrypted, and not taken by the kernel yet
        self._uncounted = 0  # bytes of the caller's that are in `_waiting` and were not counted as sent
        self._is_cut = False  # a send was cancelled in its middle
        self._may_have_more = not channel.is_drained

    @property
    def identity(self) -> Identity:
        """Say whom the peer's certificate names."""
        return self._identity

    @property
    def peer(self) -> str:
        """Give the other end, for log lines."""
        return self._transport.peer

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive at least one byte, or b"" at the end."""
        bytes_max = max_bytes or RECEIVE_BYTES_MORE
        while True:
            if self._may_have_more:
                try:
                    data = self._channel.read(bytes_max)
                except HandshakeError as error:
                    raise UntrustedError(str(error)) from None
                self._may_have_more = not self._channel.is_drained
                if data is not None:
                    return data
            self._channel.feed(await self._transport.receive_some())
            self._may_have_more = True

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Encrypt, and send what the kernel takes now."""
        if self._is_cut:
            raise trio.BrokenResourceError("a message to this connection was cut short")
        if self._waiting and not self._flush():
            return 0
        done, self._uncounted = self._uncounted, 0
        with memoryview(data) as view:
            while done < len(view):
                piece = view[done : done + ENCRYPT_BYTES]
                try:
                    self._channel.write(piece)
                except HandshakeError as error:
                    raise UntrustedError(str(error)) from None
                self._waiting = self._channel.outgoing()
                if not self._flush():
                    self._uncounted = len(piece)
                    return done
                done += len(piece)
        return done

    def _flush(self) -> bool:
        """Send what is encrypted; give whether all of it left."""
        sent = self._transport.send_nowait(self._waiting)
        self._waiting = self._waiting[sent:]
        return not self._waiting

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send everything."""
        with memoryview(data) as view:
            sent = self.send_nowait(view)
            try:
                while sent < len(view):
                    await self._transport.wait_send_all_might_not_block()
                    sent += self.send_nowait(view[sent:])
            except BaseException:
                self._is_cut = True
                raise

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the kernel takes something."""
        await self._transport.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Say that nothing more will be sent; the peer's bytes still come."""
        self._say_end()
        await self._transport.send_eof()

    async def aclose(self) -> None:
        """Say so, if that can be done at once, and close it."""
        try:
            self._say_end()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer has gone before us
        await self._transport.aclose()

    def _say_end(self) -> None:
        # What waits comes first; if there is such, the end of the connection itself must do.
        if not self._waiting:
            self._is_cut = True
            self._channel.close()
            self._transport.send_nowait(self._channel.outgoing())


class TlsNetwork:
    """TCP with TLS.  What it accepts is still plain: `accept_tls` goes on when its first bytes say that they are TLS."""

    def __init__(self, credentials: NodeCredentials) -> None:
        self.credentials = credentials
        self._tcp = TcpNetwork()

    async def listen(self, address: Address) -> TcpListener:
        """Listen at an address."""
        return await self._tcp.listen(address)

    async def connect(self, address: Address) -> TlsStream:
        """Connect to the node at an address.  Raises OSError, TooSlowError, UntrustedError."""
        with trio.fail_after(TCP_CONNECT_S):
            transport = await self._tcp.connect(address)
        try:
            channel = TlsChannel(self.credentials.client(), is_server=False, host=address.host)
            await _shake_hands(transport, channel)
            if not channel.identity().is_node:
                raise UntrustedError("the other side's certificate is no node's")
        except BaseException:
            with trio.CancelScope(shield=True):
                await transport.aclose()
            raise
        return TlsStream(transport, channel)


async def accept_tls(transport: TcpStream, credentials: NodeCredentials, first_bytes: bytes) -> TlsStream:
    """Shake hands with who connected and said so much; the caller closes the transport.  Raises UntrustedError, BrokenResourceError."""
    channel = TlsChannel(credentials.server(), is_server=True)
    channel.feed(first_bytes)
    try:
        await _shake_hands(transport, channel)
    except UntrustedError:
        await linger(transport)
        raise
    return TlsStream(transport, channel)


async def linger(stream: NodeStream) -> None:
    """Send nothing more, and wait a moment for the peer to hang up: closing on unread bytes could destroy what it was told."""
    with trio.move_on_after(LINGER_S):
        try:
            if isinstance(stream, trio.abc.HalfCloseableStream):
                await stream.send_eof()
            while await stream.receive_some():
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass


async def _shake_hands(transport: TcpStream, channel: TlsChannel) -> None:
    while True:
        try:
            is_done = channel.shake_hands()
        except HandshakeError as error:
            try:
                transport.send_nowait(channel.outgoing())  # the alert that tells the peer why
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # it has gone
            raise UntrustedError(str(error)) from None
        if data := channel.outgoing():
            await transport.send_all(data)
        if is_done:
            return
        channel.feed(await transport.receive_some())


__all__ = ["Network", "TlsNetwork", "TlsStream", "UntrustedError", "accept_tls", "linger"]
