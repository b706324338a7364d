"""The sending half of a connection: frames go out at once while the kernel takes them, else through a buffer and a writer task.

Invariants:
- Bytes leave in the order of `send`.
- The buffer is bounded: above the limit `send` says no, and a one-way message is dropped by its sender.
"""

import trio

from dsdb.env import NodeStream


class Outbox:
    """Bytes on their way out of one connection."""

    def __init__(self, stream: NodeStream, *, buffer_bytes_max: int) -> None:
        self._stream = stream
        self._buffer_bytes_max = buffer_bytes_max
        self._buffer = bytearray()
        self._is_sending = False
        self._is_broken = False
        self._wakeup = trio.Event()

    @property
    def is_full(self) -> bool:
        """Say whether the peer reads slower than we write by more than the limit."""
        return len(self._buffer) > self._buffer_bytes_max

    def send(self, data: bytes) -> None:
        """Send bytes: now, or by the writer.  Nothing happens on a broken connection: its reader will notice."""
        if self._is_broken:
            return
        if self._is_sending or self._buffer:
            self._buffer += data
            return
        try:
            sent = self._stream.send_nowait(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._is_broken = True
            return
        if sent < len(data):
            self._buffer += memoryview(data)[sent:]
            self._wakeup.set()

    async def run(self) -> None:
        """Send what the kernel did not take at once, for ever.  Ends quietly when the connection breaks."""
        while True:
            await self._wakeup.wait()
            self._wakeup = trio.Event()
            while self._buffer:
                data, self._buffer = self._buffer, bytearray()
                self._is_sending = True
                try:
                    await self._stream.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._is_broken = True
                    return
                finally:
                    self._is_sending = False
