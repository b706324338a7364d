"""The sending half of a connection: a lone send at once and without the writer, those of one turn together."""

from collections.abc import Awaitable, Callable

import trio
import trio.testing

from dsdb.env import NodeStream
from dsdb.rpc.outbox import Outbox


class Recorder(NodeStream):
    """Notes each send; takes `room` bytes at once."""

    def __init__(self) -> None:
        self.sends: list[bytes] = []
        self.room = 1_000_000

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        taken = bytes(data[: self.room])
        if taken:
            self.sends.append(taken)
        return len(taken)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.sends.append(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.sleep_forever()
        return b""

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


def run(body: Callable[[Recorder, Outbox], Awaitable[None]]) -> None:
    async def main() -> None:
        stream = Recorder()
        outbox = Outbox(stream, buffer_bytes_max=1000)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.run)
            await trio.testing.wait_all_tasks_blocked()
            await body(stream, outbox)
            nursery.cancel_scope.cancel()

    trio.run(main)


class Steps(trio.abc.Instrument):
    """Counts the steps of the writer."""

    def __init__(self) -> None:
        self.count = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.count += "Outbox" in task.name


def test_a_lone_send_leaves_at_once_and_wakes_nobody() -> None:
    async def body(stream: Recorder, outbox: Outbox) -> None:
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        for number in range(5):
            outbox.send(b"%d" % number)
            assert stream.sends[-1] == b"%d" % number
            await trio.testing.wait_all_tasks_blocked()
        assert len(stream.sends) == 5
        assert steps.count == 0

    run(body)


def test_what_follows_in_the_same_turn_goes_together_and_in_order() -> None:
    async def body(stream: Recorder, outbox: Outbox) -> None:
        for letter in (b"a", b"b", b"c"):
            outbox.send(letter)
        await trio.testing.wait_all_tasks_blocked()
        assert stream.sends == [b"a", b"bc"]

    run(body)


def test_what_the_kernel_does_not_take_is_sent_before_what_comes_later() -> None:
    async def body(stream: Recorder, outbox: Outbox) -> None:
        stream.room = 2
        outbox.send(b"first")
        assert stream.sends == [b"fi"]
        outbox.send(b"second")
        await trio.lowlevel.checkpoint()
        outbox.send(b"third")
        await trio.testing.wait_all_tasks_blocked()
        assert b"".join(stream.sends) == b"firstsecondthird"
        assert not outbox.is_full

    run(body)
