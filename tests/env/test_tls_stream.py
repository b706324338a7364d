"""An encrypted stream: the same bytes in the same order, whatever the kernel takes at once, and sends that do not wait."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from dsdb.env import Address, TcpListener, TcpNetwork, TlsNetwork, TlsStream, UntrustedError
from dsdb.env.tls import accept_tls
from dsdb.rpc.outbox import Outbox
from dsdb.tls.authority import Authority, Validity
from dsdb.tls.credentials import NodeCredentials

YEAR = Validity(365)


@pytest.fixture(scope="module")
def credentials(tmp_path_factory: pytest.TempPathFactory) -> NodeCredentials:
    directory = tmp_path_factory.mktemp("certs")
    Authority.create(directory / "ca", YEAR).create_node(directory / "node", ["127.0.0.1"], YEAR)
    return NodeCredentials(directory / "node")


@asynccontextmanager
async def pair(credentials: NodeCredentials, *, buffer_bytes: int | None = None) -> AsyncIterator[tuple[TlsStream, TlsStream]]:
    """Give both ends of a connection; buffer_bytes: what the kernel holds of what was sent."""
    listener = await TcpNetwork().listen(Address("127.0.0.1", 0))
    accepted: list[TlsStream] = []

    async def accept() -> None:
        raw = await listener.accept()
        if buffer_bytes is not None:
            raw._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        accepted.append(await accept_tls(raw, credentials, await raw.receive_some(8)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        ours = await TlsNetwork(credentials).connect(listener.address)
    if buffer_bytes is not None:
        ours._transport._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
    try:
        yield ours, accepted[0]
    finally:
        with trio.CancelScope(shield=True):
            await ours.aclose()
            await accepted[0].aclose()
            await listener.aclose()


def run(body: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        with trio.fail_after(20):
            await body()

    trio.run(bounded)


def test_both_ends_know_each_other_and_small_sends_leave_at_once(credentials: NodeCredentials) -> None:
    async def body() -> None:
        async with pair(credentials) as (ours, theirs):
            assert ours.identity.is_node
            assert theirs.identity.is_node
            for number in range(100):
                data = b"x" * number + b"."
                assert ours.send_nowait(data) == len(data)
                assert await theirs.receive_some() == data
                assert theirs.send_nowait(data) == len(data)
                assert await ours.receive_some() == data
            await ours.send_all(b"abcdef")
            assert [await theirs.receive_some(2) for _ in range(3)] == [b"ab", b"cd", b"ef"]
            await ours.aclose()
            assert await theirs.receive_some() == b""
            assert await theirs.receive_some() == b""

    run(body)


@pytest.mark.parametrize("frame_bytes", [1, 100, 16 * 1024, 100_000, 1_000_000])
def test_an_outbox_delivers_everything_in_order_to_a_slow_reader(credentials: NodeCredentials, frame_bytes: int) -> None:
    frames = [bytes([number % 251]) * frame_bytes for number in range(min(300, max(4, 1_000_000 // frame_bytes)))]

    async def body() -> None:
        async with pair(credentials, buffer_bytes=64 * 1024) as (ours, theirs), trio.open_nursery() as nursery:
            outbox = Outbox(ours, buffer_bytes_max=1 << 30)
            nursery.start_soon(outbox.run)
            received, is_complete = bytearray(), trio.Event()

            async def read() -> None:
                while len(received) < sum(map(len, frames)):
                    received.extend(await theirs.receive_some(10_000))
                is_complete.set()

            nursery.start_soon(read)
            for number, frame in enumerate(frames):
                outbox.send(frame)
                if number % 3 == 0:
                    await trio.lowlevel.checkpoint()
            await is_complete.wait()
            assert bytes(received) == b"".join(frames)
            nursery.cancel_scope.cancel()

    run(body)


def test_what_the_kernel_does_not_take_is_not_counted_and_goes_on_where_it_stopped(credentials: NodeCredentials) -> None:
    async def body() -> None:
        data = bytes(range(256)) * 8_000
        async with pair(credentials, buffer_bytes=32 * 1024) as (ours, theirs):
            sent = ours.send_nowait(data)
            assert sent < len(data)
            assert ours.send_nowait(data[sent:]) == 0  # still full: nothing more is encrypted
            received = bytearray()

            async def read() -> None:
                while len(received) < len(data):
                    received.extend(await theirs.receive_some())

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await ours.send_all(memoryview(data)[sent:])
            assert bytes(received) == data

    run(body)


def test_a_send_that_was_cut_breaks_the_stream(credentials: NodeCredentials) -> None:
    async def body() -> None:
        async with pair(credentials, buffer_bytes=32 * 1024) as (ours, _):
            with trio.move_on_after(0.05):
                await ours.send_all(bytes(10_000_000))
            with pytest.raises(trio.BrokenResourceError):
                ours.send_nowait(b"other bytes")

    run(body)


def test_changed_bytes_are_noticed(credentials: NodeCredentials) -> None:
    async def body() -> None:
        async with pair(credentials) as (ours, theirs):
            ours._channel.write(b"hello")
            record = bytearray(ours._channel.outgoing())
            record[-1] ^= 1
            ours._transport.send_nowait(bytes(record))
            with pytest.raises(UntrustedError, match="changed on their way"):
                await theirs.receive_some()

    run(body)


def test_who_does_not_trust_the_other_says_so_on_both_sides(credentials: NodeCredentials, tmp_path: Path) -> None:
    Authority.create(tmp_path / "ca", YEAR).create_node(tmp_path / "node", ["127.0.0.1"], YEAR)
    foreign = NodeCredentials(tmp_path / "node")

    async def body() -> None:
        listener: TcpListener = await TcpNetwork().listen(Address("127.0.0.1", 0))
        said: list[str] = []

        async def accept() -> None:
            raw = await listener.accept()
            async with raw:
                with pytest.raises(UntrustedError) as caught:
                    await accept_tls(raw, credentials, await raw.receive_some(8))
                said.append(str(caught.value))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept)
            with pytest.raises(UntrustedError, match=r"is of another authority than ca\.crt has"):
                await TlsNetwork(foreign).connect(listener.address)
        assert said == ["the other side refuses our certificate: it is of an authority that it does not know"]
        await listener.aclose()

    run(body)
