"""The sending half of a connection: a lone frame goes out at once, what follows it in the same turn of the event loop goes together.

    send a ─▶ kernel                       the first of a turn leaves in the task that made it: no switch, no wait
    send b, send c ─▶ buffer ─▶ writer ─▶ kernel     the rest, in one call: a send over the loopback costs as much as ten switches

Invariants:
- Bytes leave in the order of `send`.
- The buffer is bounded: above the limit `is_full` says so, and a one-way message is dropped by its sender.
"""

import trio

from dsdb.env import NodeStream
from dsdb.env.turns import turns_of_run


class Outbox:
    """Bytes on their way out of one connection."""

    def __init__(self, stream: NodeStream, *, buffer_bytes_max: int) -> None:
        self._stream = stream
        self._buffer_bytes_max = buffer_bytes_max
        self._buffer = bytearray()
        self._turns = turns_of_run()
        self._sent_in = 0  # the turn of the last send that went out at once: what comes later in it is buffered
        self._is_writing = False  # the writer is in the middle of a send: what comes now is buffered
        self._is_broken = False
        self._writer: trio.lowlevel.Task | None = None  # parked

    @property
    def is_full(self) -> bool:
        """Say whether the peer reads slower than we write by more than the limit."""
        return len(self._buffer) > self._buffer_bytes_max

    def send(self, data: bytes) -> None:
        """Send bytes: now, or by the writer.  Nothing happens on a broken connection: its reader will notice."""
        if self._is_broken:
            return
        turn = self._turns.count
        if self._is_writing or self._buffer or self._sent_in == turn:
            self._buffer += data
        else:
            self._sent_in = turn
            try:
                sent = self._stream.send_nowait(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._is_broken = True
                return
            if sent == len(data):
                return
            self._buffer += memoryview(data)[sent:]
        task, self._writer = self._writer, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    async def run(self) -> None:
        """Send what was not sent at once, for ever.  Ends quietly when the connection breaks."""
        while True:
            while self._buffer:
                data, self._buffer = self._buffer, bytearray()
                self._is_writing = True
                try:
                    await self._stream.send_all(data)
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    self._is_broken = True
                    return
                self._is_writing = False
            await self._park()

    async def _park(self) -> None:
        self._writer = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
