"""A session's connection: plain sockets by the shortest way, every other stream as trio has it.

For a small statement trio's own send costs a turn of its scheduler, and its receive a system call that finds nothing.  A plain socket
is therefore written to directly, and trio is asked only when it is full; and it is waited for before it is read.

Invariants:
- Bytes go out in order: a send hands to trio what the socket did not take, and ends after it.
- `receive` always lets other tasks run; `send` does only when the socket is full.
"""

import os

import trio

_HAS_SOCKET_FILES = os.name == "posix"


class Link:
    """The bytes of a connection."""

    def __init__(self, stream: trio.abc.Stream, *, read_bytes: int) -> None:
        self.stream = stream
        self._read_bytes = read_bytes
        # The socket's file, or −1 if the stream is more than a plain socket (TLS, memory).
        self._file = stream.socket.fileno() if _HAS_SOCKET_FILES and isinstance(stream, trio.SocketStream) else -1

    async def receive(self) -> bytes:
        """Give what has come, empty at the end, however it came to its end."""
        try:
            if self._file < 0:
                return bytes(await self.stream.receive_some(self._read_bytes))
            while True:
                await trio.lowlevel.wait_readable(self._file)
                try:
                    return os.read(self._file, self._read_bytes)
                except BlockingIOError:
                    continue
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            return b""

    async def send(self, data: bytes) -> None:
        """Send all of it.  Raises BrokenResourceError, ClosedResourceError."""
        sent = 0
        if self._file >= 0:
            try:
                sent = os.write(self._file, data)
            except BlockingIOError:
                pass
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error
        if sent < len(data):
            await self.stream.send_all(memoryview(data)[sent:])
