"""Calls between two nodes over real loopback connections."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
import trio.testing

from dsdb.env import Address, SystemClock, TcpListener, TcpNetwork
from dsdb.kv.errors import KvError, KvErrorDetail, Unavailable
from dsdb.kv.ids import NodeId
from dsdb.rpc import CallFailed, Method, MethodKind, NotSent, Peers, Registry, ReplyLost, RpcServer
from dsdb.rpc.frames import FRAME_BYTES_MAX, RPC_MAGIC, FrameKind, FrameReader, encode_frame
from dsdb.rpc.server import Hello
from tests.sim.network import SimNetwork, SimStream


class Ask(msgspec.Struct, frozen=True, array_like=True):
    text: str


class Answer(msgspec.Struct, frozen=True, array_like=True):
    text: str


ECHO = Method[Ask, Answer](1, "echo", MethodKind.CALL, Ask, Answer, error_type=KvErrorDetail, error_exception=KvError)
SLOW = Method[Ask, Answer](2, "slow", MethodKind.CALL, Ask, Answer)
TELL = Method[Ask, None](3, "tell", MethodKind.ONEWAY, Ask, None)
COUNT = Method[Ask, None](4, "count", MethodKind.DOWNLOAD, Ask, None)
SUM = Method[Ask, Answer](5, "sum", MethodKind.UPLOAD, Ask, Answer)
UNSERVED = Method[Ask, Answer](99, "unserved", MethodKind.CALL, Ask, Answer)


class Server:
    def __init__(self) -> None:
        self.registry = Registry()
        self.told: list[tuple[int, str]] = []
        self.cancelled = trio.Event()
        self.chunks_closed = trio.Event()
        self.registry.serve_calls(ECHO, self.echo, self.echo_fast)
        self.registry.serve_calls(SLOW, self.slow)
        self.registry.serve_oneway(TELL, lambda sender, message: self.told.append((sender, message.text)))
        self.registry.serve_downloads(COUNT, self.count)
        self.registry.serve_uploads(SUM, self.sum)

    def echo_fast(self, request: Ask) -> Answer | None:
        if request.text == "no":
            raise KvError(Unavailable("asked to"))
        return Answer(request.text) if request.text != "wait" else None

    async def echo(self, request: Ask) -> Answer:
        await trio.lowlevel.checkpoint()
        return Answer("slowly " + request.text)

    async def slow(self, request: Ask) -> Answer:
        if request.text == "bug":
            raise RuntimeError("a bug")
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.set()
        raise AssertionError

    async def count(self, request: Ask) -> AsyncIterator[bytes]:
        try:
            if request.text == "stuck":
                yield b"x"
                await trio.sleep_forever()
            for number in range(int(request.text)):
                yield number.to_bytes(4, "big") * 10_000
            if request.text == "3":
                raise RuntimeError("after three")
        finally:
            self.chunks_closed.set()

    async def sum(self, request: Ask, chunks: AsyncIterator[bytes]) -> Answer:
        total = 0
        async for chunk in chunks:
            total += len(chunk)
        return Answer(f"{request.text} {total}")


@asynccontextmanager
async def connected(server: Server, *, cluster_id: str = "") -> AsyncIterator[tuple[Peers, TcpListener, Callable[[], None]]]:
    network = TcpNetwork()
    listener = await network.listen(Address("127.0.0.1", 0))
    rpc_server = RpcServer(server.registry)
    rpc_server.cluster_id = cluster_id
    scopes: list[trio.CancelScope] = []

    async def accept(nursery: trio.Nursery) -> None:
        while True:
            stream = await listener.accept()
            nursery.start_soon(serve, stream)

    async def serve(stream: object) -> None:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            magic = await stream.receive_some(len(RPC_MAGIC))  # type: ignore[attr-defined]
            assert magic == RPC_MAGIC
            await rpc_server.serve(stream)  # type: ignore[arg-type]

    def cut() -> None:
        for scope in scopes:
            scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept, nursery)
        peers = Peers(network, SystemClock(), address_of=lambda node: listener.address if node == 2 else None)
        peers.hello = Hello("c1", NodeId(1))
        await nursery.start(peers.run)
        yield peers, listener, cut
        nursery.cancel_scope.cancel()
    await listener.aclose()


def run(body: Callable[[Server, Peers, Callable[[], None]], object], **options: str) -> None:
    async def main() -> None:
        server = Server()
        with trio.fail_after(20):
            async with connected(server, **options) as (peers, _, cut):
                await body(server, peers, cut)  # type: ignore[misc]

    trio.run(main)


def test_a_call_is_answered_in_the_reader_or_in_a_task() -> None:
    async def body(server: Server, peers: Peers, cut: Callable[[], None]) -> None:
        assert await peers.call(NodeId(2), ECHO, Ask("a")) == Answer("a")
        assert await peers.call(NodeId(2), ECHO, Ask("wait")) == Answer("slowly wait")
        big = "x" * 5_000_000
        assert await peers.call(NodeId(2), ECHO, Ask(big)) == Answer(big)

    run(body)


def test_errors_arrive_typed_and_bugs_as_a_sentence(caplog: pytest.LogCaptureFixture) -> None:
    async def body(server: Server, peers: Peers, cut: Callable[[], None]) -> None:
        with pytest.raises(KvError) as caught:
            await peers.call(NodeId(2), ECHO, Ask("no"))
        assert caught.value.detail == Unavailable("asked to")
        with pytest.raises(CallFailed, match="slow failed: a bug"):
            await peers.call(NodeId(2), SLOW, Ask("bug"))
        with pytest.raises(CallFailed, match="no method 99"):
            await peers.call(NodeId(2), UNSERVED, Ask("x"))

    run(body)


def test_an_unknown_node_and_a_broken_connection_are_told_apart() -> None:
    async def body(server: Server, peers: Peers, cut: Callable[[], None]) -> None:
        with pytest.raises(NotSent, match="not known"):
            await peers.call(NodeId(3), ECHO, Ask("a"))
        await peers.call(NodeId(2), ECHO, Ask("a"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_lost, peers)
            await trio.testing.wait_all_tasks_blocked(0.01)
            cut()
        # and the next call makes a new connection
        await trio.sleep(0.15)
        assert await peers.call(NodeId(2), ECHO, Ask("again")) == Answer("again")

    async def expect_lost(peers: Peers) -> None:
        with pytest.raises(ReplyLost, match="broke before slow"):
            await peers.call(NodeId(2), SLOW, Ask("a"))

    run(body)


def test_a_late_call_is_swept_and_a_cancelled_one_is_told_to_the_other_side() -> None:
    async def body(server: Server, peers: Peers, cut: Callable[[], None]) -> None:
        with pytest.raises(ReplyLost, match="in time"):
            await peers.call(NodeId(2), SLOW, Ask("a"), timeout_s=0.01)
        await server.cancelled.wait()
        server.cancelled = trio.Event()
        with trio.move_on_after(0.05):
            await peers.call(NodeId(2), SLOW, Ask("a"))
        await server.cancelled.wait()

    run(body)


def test_one_way_messages_keep_their_order() -> None:
    async def body(server: Server, peers: Peers, cut: Callable[[], None]) -> None:
        assert not peers.send(NodeId(2), TELL, Ask("dropped: nobody is connected yet"))
        await peers.call(NodeId(2), ECHO, Ask("a"))
        assert all(peers.send(NodeId(2), TELL, Ask(str(number))) for number in range(100))
        await peers.call(NodeId(2), ECHO, Ask("a"))
        assert server.told == [(1, str(number)) for number in range(100)]

    run(body)


def test_streams_both_ways_and_early_ends() -> None:
    async def body(server: Server, peers: Peers, cut: Callable[[], None]) -> None:
        for _ in range(2):
            chunks = [chunk async for chunk in peers.download(NodeId(2), COUNT, Ask("50"))]
            assert [int.from_bytes(chunk[:4], "big") for chunk in chunks] == list(range(50))
        with pytest.raises(CallFailed, match="after three"):
            async for _chunk in peers.download(NodeId(2), COUNT, Ask("3")):
                pass

        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(30):
                yield b"y" * 100_000

        assert await peers.upload(NodeId(2), SUM, Ask("sum"), pieces()) == Answer("sum 3000000")
        server.chunks_closed = trio.Event()
        early = peers.download(NodeId(2), COUNT, Ask("100000"))
        async for _chunk in early:
            break
        await early.aclose()  # type: ignore[attr-defined]
        await server.chunks_closed.wait()

    run(body)


def test_a_node_of_another_cluster_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    async def body(server: Server, peers: Peers, cut: Callable[[], None]) -> None:
        with pytest.raises(CallFailed, match="belongs to cluster c1, this node to other"):
            await peers.call(NodeId(2), ECHO, Ask("a"))
        assert "belongs to cluster c1, this node to other" in caplog.text

    run(body, cluster_id="other")


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        (encode_frame(FrameKind.REQUEST, SLOW.number, 5, SLOW.encode(Ask("a"))) * 2, "call 5 is used again while it runs"),
        (encode_frame(FrameKind.REQUEST, ECHO.number, 1, b"\x91" * 10_000 + b"\xc0"), "not a request of"),
        (encode_frame(FrameKind.REQUEST, ECHO.number, 1, b"\x91\xa3\xff\xfe\xfd"), "not a request of"),
        (encode_frame(FrameKind.HELLO, 0, 0, b"\x92\xa2\xff\xfe\x01"), "not a Hello"),
        (encode_frame(FrameKind.ONEWAY, TELL.number, 0, TELL.encode(Ask("a"))), "who is not of this cluster"),
    ],
)
def test_bad_frames_end_their_connection_and_nothing_else(frames: bytes, said: str, caplog: pytest.LogCaptureFixture) -> None:
    async def body(server: Server, peers: Peers, cut: Callable[[], None]) -> None:
        address = peers._address_of(NodeId(2))
        assert address is not None
        stream = await TcpNetwork().connect(address)
        async with stream:
            await stream.send_all(RPC_MAGIC + frames)
            while await stream.receive_some():
                pass
        assert said in caplog.text
        assert await peers.call(NodeId(2), ECHO, Ask("a")) == Answer("a")

    run(body)


def test_frames_in_any_pieces_and_garbage() -> None:
    frames = b"".join(encode_frame(FrameKind.REQUEST, number, number, bytes(number)) for number in range(20))
    for step in (1, 3, 7, 100, len(frames)):
        reader = FrameReader()
        found = [frame for start in range(0, len(frames), step) for frame in reader.feed(frames[start : start + step])]
        assert [(frame.method_id, len(frame.payload)) for frame in found] == [(number, number) for number in range(20)]
    from dsdb.rpc.errors import FrameError

    for garbage in (b"\xff" * 20, (FRAME_BYTES_MAX + 1).to_bytes(4, "little") + b"\x02" * 16, b"\x07\0\0\0\x63" + b"\0" * 10):
        with pytest.raises(FrameError):
            list(FrameReader().feed(garbage))


class TrioClock:
    def now(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return 0


def test_a_peer_that_falls_silent_is_given_up() -> None:
    """Its host lost its power: TCP says nothing for minutes."""

    async def body() -> None:
        network = SimNetwork(random.Random(1))
        there = Address("10.0.0.2", 1)
        listener = await network.host("there").listen(there)
        server = Server()
        peers = Peers(network.host("here"), TrioClock(), address_of=lambda _: there)
        async with trio.open_nursery() as nursery:

            async def serve(stream: SimStream) -> None:
                await stream.receive_some(len(RPC_MAGIC))
                await RpcServer(server.registry).serve(stream)

            async def accept() -> None:
                for _ in range(2):
                    nursery.start_soon(serve, await listener.accept())

            nursery.start_soon(accept)
            await nursery.start(peers.run)
            with pytest.raises(ReplyLost):  # slow, but there: it answers that it is
                await peers.call(NodeId(2), SLOW, Ask(""), timeout_s=20)
            assert trio.current_time() > 20
            assert (await peers.call(NodeId(2), ECHO, Ask("a"))).text == "a"
            chunks = peers.download(NodeId(2), COUNT, Ask("stuck"))
            await anext(chunks)
            network.silence("there")
            began = trio.current_time()
            with pytest.raises(ReplyLost):
                async for _ in chunks:
                    pass
            assert 2 <= trio.current_time() - began <= 3
            with pytest.raises(NotSent):  # the first one waits until it is known that nobody is there
                await peers.call(NodeId(2), ECHO, Ask(""))
            began = trio.current_time()
            with pytest.raises(NotSent):
                await peers.call(NodeId(2), ECHO, Ask(""))
            assert trio.current_time() == began
            nursery.cancel_scope.cancel()

    trio.run(body, clock=trio.testing.MockClock(autojump_threshold=0))
