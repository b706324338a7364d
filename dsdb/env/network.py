"""The network: addresses, listening and connecting, as a Protocol and over TCP."""

import socket
from typing import NamedTuple, Protocol

import trio


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


class Network(Protocol):
    """Streams between nodes."""

    async def listen(self, address: Address) -> trio.abc.Listener[trio.abc.Stream]:
        """Listen at an address (port 0: any free one).  Raises OSError."""

    async def connect(self, address: Address) -> trio.abc.Stream:
        """Connect to an address.  Raises OSError."""


class TcpNetwork:
    """TCP with Nagle's algorithm off: without that a small round costs 45 ms."""

    async def listen(self, address: Address) -> trio.abc.Listener[trio.abc.Stream]:
        """Listen at an address."""
        listeners = await trio.open_tcp_listeners(address.port, host=address.host)
        for extra in listeners[1:]:
            await extra.aclose()
        return listeners[0]

    async def connect(self, address: Address) -> trio.abc.Stream:
        """Connect to an address."""
        stream = await trio.open_tcp_stream(address.host, address.port)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return stream
