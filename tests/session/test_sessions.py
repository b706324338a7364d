"""Sessions over in-memory streams and real sockets, under trio."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from scripted import ScriptedExecutor

from dsdb.protocol.frames import SQL_MAGIC, FrameReader
from dsdb.protocol.messages import (
    Batch,
    Bye,
    Cancel,
    ClientMessage,
    Complete,
    Credit,
    ErrorMessage,
    Execute,
    Hello,
    Notice,
    Ping,
    Pong,
    Rows,
    Schema,
    ServerMessage,
    Welcome,
    decode_server_message,
    encode_message,
)
from dsdb.session import SessionLimits, SessionServer

HELLO = Hello(user="u", database="d")
PATIENCE_S = 60.0
"""Longer than any test takes, on a machine with much else to do."""


class Client:
    """The other end of a session."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._reader = FrameReader(frame_bytes_max=1 << 30)
        self._waiting: list[ServerMessage] = []

    async def say(self, *messages: ClientMessage) -> None:
        await self.stream.send_all(b"".join(map(encode_message, messages)))

    async def hear(self) -> Any:
        while not self._waiting:
            data = await self.stream.receive_some(65536)
            if not data:
                return None
            self._waiting += [decode_server_message(frame) for frame in self._reader.receive(bytes(data))]
        return self._waiting.pop(0)

    async def open(self) -> Welcome:
        await self.stream.send_all(SQL_MAGIC)
        await self.say(HELLO)
        welcome = await self.hear()
        assert isinstance(welcome, Welcome), welcome
        return welcome


class Gateway:
    """A server and what a test needs to connect to it."""

    def __init__(self, nursery: trio.Nursery, limits: SessionLimits) -> None:
        self.executor = ScriptedExecutor()
        self.server = SessionServer(self.executor, node_id=7, limits=limits)
        self._nursery = nursery
        self.clients: list[Client] = []

    def connect(self) -> Client:
        near, far = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self.server.serve, far)
        self.clients.append(Client(near))
        return self.clients[-1]

    async def wait_for_sessions(self, count: int) -> None:
        while self.server.statistics().sessions > count:  # noqa: ASYNC110
            await trio.sleep(0.01)

    async def connect_tcp(self) -> Client:
        listeners = await self._nursery.start(trio.serve_tcp, self.server.serve, 0)
        self.clients.append(Client(await trio.open_tcp_stream(*listeners[0].socket.getsockname()[:2])))
        return self.clients[-1]


def run_with(test: Callable[[Gateway], Awaitable[None]], **limits: Any) -> None:
    async def main() -> None:
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                gateway = Gateway(nursery, SessionLimits(**limits))
                await nursery.start(gateway.server.run)
                await test(gateway)
                for client in gateway.clients:
                    await trio.aclose_forcefully(client.stream)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_session_from_hello_to_bye() -> None:
    async def test(gateway: Gateway) -> None:
        client = gateway.connect()
        welcome = await client.open()
        assert (welcome.node_id, welcome.sessions) == (7, 1)
        await client.say(Execute(stream=1, sql="point $1", types=b"\x03", values=[5]), Ping(token=4))
        rows = await client.hear()
        assert isinstance(rows, Rows)
        assert (rows.stream, rows.rows, rows.tag, rows.row_count, rows.more) == (1, [(5,)], "SELECT 1", 1, False)
        assert await client.hear() == Pong(token=4)
        await client.say(Bye())
        assert await client.hear() is None
        assert gateway.server.statistics().sessions == 0

    run_with(test)


@pytest.mark.parametrize(
    ("first", "sentence"),
    [
        (b"GET / HTTP/1.1\r\n", "not a client of dsdb"),
        (b"DSDBSQL\x09", "version 9"),
        (SQL_MAGIC + b"\xff\xff\xff\xff", "frame of 4294967295 bytes"),
        (SQL_MAGIC + b"\x03\x00\x00\x00abc", "not a message"),
        (SQL_MAGIC + encode_message(Ping()), "Ping may not come"),
    ],
)
def test_what_is_no_hello_is_told_and_closed(first: bytes, sentence: str) -> None:
    async def test(gateway: Gateway) -> None:
        client = gateway.connect()
        await client.stream.send_all(first)
        error = await client.hear()
        assert (error.stream, error.sqlstate) == (0, "08P01")
        assert sentence in error.message
        await client.stream.aclose()

    run_with(test)


def test_garbage_in_the_middle_ends_the_session_and_its_statement() -> None:
    async def test(gateway: Gateway) -> None:
        client = gateway.connect()
        await client.open()
        await client.say(Execute(stream=1, sql="sleep 60"))
        await trio.sleep(0.1)
        await client.stream.send_all(b"\x01\x00\x00\x00\xc1")
        error = await client.hear()
        assert (error.stream, error.sqlstate) == (0, "08P01")
        assert gateway.executor.cancelled == ["sleep 60"]

    run_with(test, linger_seconds=0.1)


def test_a_magic_that_comes_in_pieces() -> None:
    async def test(gateway: Gateway) -> None:
        near, far = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(gateway.server.serve, far, SQL_MAGIC[:3])
            client = Client(near)
            await near.send_all(SQL_MAGIC[3:5])
            await trio.testing.wait_all_tasks_blocked()
            await near.send_all(SQL_MAGIC[5:])
            await client.say(HELLO)
            assert isinstance(await client.hear(), Welcome)
            await near.aclose()

    run_with(test)


def test_a_silent_client_is_closed() -> None:
    async def test(gateway: Gateway) -> None:
        assert await gateway.connect().hear() is None

    run_with(test, handshake_seconds=0.05)


def test_cancel_overtakes_and_the_session_goes_on() -> None:
    async def test(gateway: Gateway) -> None:
        client = gateway.connect()
        await client.open()
        await client.say(Execute(stream=1, sql="sleep 60"), Execute(stream=2, sql="point $1", types=b"\x03", values=[1]))
        await trio.testing.wait_all_tasks_blocked()
        await client.say(Cancel(stream=1))
        error = await client.hear()
        assert (error.stream, error.sqlstate) == (1, "57014")
        assert (await client.hear()).stream == 2
        assert gateway.executor.cancelled == ["sleep 60"]

    run_with(test)


def test_a_write_that_is_cancelled_before_its_commit_had_no_effect() -> None:
    async def test(gateway: Gateway) -> None:
        client = gateway.connect()
        await client.open()
        # What an earlier statement committed, also of the same text, does not count.
        await client.say(Execute(stream=1, sql="update 0; update 60"), Execute(stream=2, sql="update 60", timeout_ms=50))
        await trio.testing.wait_all_tasks_blocked()
        await client.say(Cancel(stream=1))
        assert (await client.hear()).message == "slept"
        assert (await client.hear()).more
        assert [(await client.hear()).sqlstate for _ in range(2)] == ["57014", "57014"]

    run_with(test)


def test_what_is_cut_after_its_commit_says_so() -> None:
    async def test(gateway: Gateway) -> None:
        client = gateway.connect()
        await client.open()
        await client.say(Execute(stream=1, sql="create 60"), Execute(stream=2, sql="sleep 60"))
        await trio.testing.wait_all_tasks_blocked()
        await client.say(Cancel(stream=1), Cancel(stream=2))
        assert [(await client.hear()).sqlstate for _ in range(2)] == ["40003", "57014"]
        await client.say(Execute(stream=3, sql="returning 300000", credit_bytes=1))
        assert isinstance(await client.hear(), Schema)
        assert isinstance(await client.hear(), Batch)
        await client.say(Cancel(stream=3))
        error = await client.hear()
        assert (error.sqlstate, error.message) == ("40003", "canceling statement due to user request, after it had committed")

    run_with(test)


def test_a_cancel_read_together_with_its_statement_is_not_lost() -> None:
    async def test(gateway: Gateway) -> None:
        client = gateway.connect()
        await client.open()
        await client.say(Execute(stream=1, sql="sleep 60"), Execute(stream=2, sql="sleep 60"), Cancel(stream=2), Cancel(stream=1))
        assert [(await client.hear()).sqlstate for _ in range(2)] == ["57014", "57014"]

    run_with(test)


def test_a_late_cancel_does_nothing() -> None:
    async def test(gateway: Gateway) -> None:
        client = gateway.connect()
        await client.open()
        await client.say(Execute(stream=1, sql="point $1", types=b"\x03", values=[1]))
        assert isinstance(await client.hear(), Rows)
        await client.say(Cancel(stream=1), Execute(stream=2, sql="point $1", types=b"\x03", values=[1]))
        assert isinstance(await client.hear(), Rows)

    run_with(test)


def test_statement_timeout() -> None:
    async def test(gateway: Gateway) -> None:
        client = gateway.connect()
        await client.open()
        await client.say(Execute(stream=1, sql="sleep 60", timeout_ms=50), Execute(stream=2, sql="set statement_timeout 60"))
        error = await client.hear()
        assert (error.stream, error.sqlstate) == (1, "57014")
        assert (await client.hear()).tag == "SET"
        await client.say(Execute(stream=3, sql="sleep 60"))
        assert (await client.hear()).sqlstate == "57014"

    run_with(test)


def test_answers_say_how_the_session_stands_to_transactions() -> None:
    async def test(gateway: Gateway) -> None:
        client = gateway.connect()
        await client.open()
        await client.say(*[Execute(stream=at, sql=sql) for at, sql in enumerate(("rows 1", "begin", "rows 1", "fail 22012", "rows 1"), 1)])
        found = [(await client.hear()).transaction for _ in range(5)]
        assert found == [0, 1, 1, 2, 2]

    run_with(test)


def test_a_cancelled_statement_fails_its_transaction() -> None:
    async def test(gateway: Gateway) -> None:
        client = gateway.connect()
        await client.open()
        await client.say(Execute(stream=1, sql="begin"), Execute(stream=2, sql="sleep 60", timeout_ms=50))
        assert (await client.hear()).transaction == 1
        error = await client.hear()
        assert (error.sqlstate, error.transaction) == ("57014", 2)

    run_with(test)


def test_a_transaction_left_idle_ends_the_session() -> None:
    async def test(gateway: Gateway) -> None:
        client, patient = gateway.connect(), gateway.connect()
        for each in (client, patient):
            await each.open()
        await client.say(Execute(stream=1, sql="set idle_in_transaction_session_timeout 60"), Execute(stream=2, sql="rows 1"))
        assert [(await client.hear()).transaction for _ in range(2)] == [0, 0]
        await trio.sleep(0.15)
        await patient.say(Execute(stream=1, sql="begin"))
        await patient.hear()
        await client.say(Execute(stream=3, sql="begin"), Execute(stream=4, sql="sleep 0.15"))
        assert (await client.hear()).transaction == 1
        assert isinstance(await client.hear(), Notice)
        assert (await client.hear()).transaction == 1
        last = await client.hear()
        assert (last.stream, last.sqlstate) == (0, "25P03")
        await gateway.wait_for_sessions(1)
        assert gateway.executor.ended == [True]

    run_with(test)


def test_the_end_of_a_session_rolls_its_transaction_back() -> None:
    async def test(gateway: Gateway) -> None:
        for goodbye in (True, False):
            client = gateway.connect()
            await client.open()
            await client.say(Execute(stream=1, sql="begin"))
            await client.hear()
            if goodbye:
                await client.say(Bye())
            else:
                await client.stream.aclose()
            await gateway.wait_for_sessions(0)
        assert gateway.executor.ended == [True, True]

    run_with(test)


def test_a_stream_stays_within_its_credit() -> None:
    async def test(gateway: Gateway) -> None:
        client = await gateway.connect_tcp()
        await client.open()
        await client.say(Execute(stream=1, sql="batches 30 10000", credit_bytes=200_000))
        assert isinstance(await client.hear(), Schema)
        await trio.sleep(0.2)
        assert gateway.executor.batches_given < 8
        rows = 0
        while isinstance(message := await client.hear(), Batch):
            rows += 10_000
            await client.say(Credit(stream=1, credit_bytes=len(message.arrow)))
        assert isinstance(message, Complete)
        assert (rows, message.row_count, message.tag) == (300_000, 300_000, "SELECT 300000")
        assert gateway.executor.streams_closed == 1

    run_with(test)


def test_a_client_that_stops_reading_holds_up_nobody() -> None:
    async def test(gateway: Gateway) -> None:
        stuck, other = await gateway.connect_tcp(), gateway.connect()
        await stuck.open()
        await other.open()
        await stuck.say(Execute(stream=1, sql="batches 100000 10000", credit_bytes=1 << 40))
        await other.say(Execute(stream=1, sql="point $1", types=b"\x03", values=[1]))
        assert isinstance(await other.hear(), Rows)
        # After send_seconds the stuck client counts as gone.
        await gateway.wait_for_sessions(1)
        assert gateway.executor.batches_given < 1000
        assert gateway.executor.streams_closed == 1

    run_with(test, send_seconds=0.3)


def test_hanging_up_cancels_the_statement() -> None:
    async def test(gateway: Gateway) -> None:
        client = await gateway.connect_tcp()
        await client.open()
        await client.say(Execute(stream=1, sql="sleep 60"))
        await client.stream.aclose()
        await gateway.wait_for_sessions(0)
        assert gateway.executor.cancelled == ["sleep 60"]

    run_with(test)


def test_cancel_in_the_middle_of_a_stream() -> None:
    async def test(gateway: Gateway) -> None:
        client = gateway.connect()
        await client.open()
        await client.say(Execute(stream=1, sql="batches 1000 10000", credit_bytes=100_000))
        assert isinstance(await client.hear(), Schema)
        await client.say(Cancel(stream=1))
        while isinstance(message := await client.hear(), Batch):
            pass
        assert (message.stream, message.sqlstate) == (1, "57014")
        assert gateway.executor.streams_closed == 1
        await client.say(Ping(token=1))
        assert await client.hear() == Pong(token=1)

    run_with(test)


def test_errors_are_told_and_bugs_are_hidden(caplog: pytest.LogCaptureFixture) -> None:
    async def test(gateway: Gateway) -> None:
        client = gateway.connect()
        await client.open()
        await client.say(Execute(stream=1, sql="fail 23505"), Execute(stream=2, sql="bug"))
        assert await client.hear() == ErrorMessage(
            stream=1, sqlstate="23505", message="it failed", detail="detail", hint="hint", position=3
        )
        error = await client.hear()
        assert (error.sqlstate, error.message) == ("XX000", "internal error")
        assert "secret" not in str(error)

    with caplog.at_level(logging.ERROR):
        run_with(test)
    assert "secret detail" in caplog.text


def test_several_statements_give_several_results() -> None:
    async def test(gateway: Gateway) -> None:
        client = gateway.connect()
        await client.open()
        await client.say(Execute(stream=1, sql="rows 1; sleep 0; batches 2 1000; rows 2; nonsense; rows 3", inline_rows_max=100))
        heard = []
        while not isinstance(message := await client.hear(), ErrorMessage):
            heard.append(message)
        assert [type(message) for message in heard] == [Rows, Notice, Rows, Schema, Batch, Batch, Complete, Rows]
        assert all(message.more for message in heard if isinstance(message, Rows | Complete))
        await client.say(Execute(stream=2, sql=" ; "), Execute(stream=3, sql="rows 1; rows 1", types=b"\x03", values=[1]))
        empty = await client.hear()
        assert (empty.tag, empty.rows) == ("", [])
        assert (await client.hear()).sqlstate == "0A000"

    run_with(test)


def test_a_small_stream_goes_inline_and_many_rows_go_as_batches() -> None:
    async def test(gateway: Gateway) -> None:
        client = gateway.connect()
        await client.open()
        await client.say(Execute(stream=1, sql="batches 2 3"), Execute(stream=2, sql="rows 300"), Execute(stream=3, sql="batches 0 0"))
        small = await client.hear()
        assert (small.rows, small.tag, small.row_count) == ([(n,) for n in range(6)], "SELECT 6", 6)
        assert [type(await client.hear()) for _ in range(3)] == [Schema, Batch, Complete]
        assert (await client.hear()).rows == []

    run_with(test)


def test_a_pipeline_stops_at_its_first_failure() -> None:
    async def test(gateway: Gateway) -> None:
        client = gateway.connect()
        await client.open()
        texts = [("rows 1", False), ("fail 23505", True), ("rows 1", True), ("rows 1", True), ("rows 1", False), ("rows 1", True)]
        await client.say(*(Execute(stream=at + 1, sql=sql, chained=chained) for at, (sql, chained) in enumerate(texts)))
        heard = [await client.hear() for _ in texts]
        assert [getattr(message, "sqlstate", "rows") for message in heard] == ["rows", "23505", "0A000", "0A000", "rows", "rows"]

    run_with(test)


def test_one_session_too_many() -> None:
    async def test(gateway: Gateway) -> None:
        clients = [gateway.connect() for _ in range(2)]
        for client in clients:
            await client.open()
        late = gateway.connect()
        await late.stream.send_all(SQL_MAGIC)
        await late.say(HELLO)
        assert (await late.hear()).sqlstate == "53300"
        await late.stream.aclose()
        await clients[0].stream.aclose()
        await gateway.wait_for_sessions(1)
        await gateway.connect().open()

    run_with(test, sessions_max=2)


def test_drain_lets_statements_finish() -> None:
    async def test(gateway: Gateway) -> None:
        idle, busy, endless = (gateway.connect() for _ in range(3))
        for client in (idle, busy, endless):
            await client.open()
        await busy.say(Execute(stream=1, sql="sleep 0.1"), Execute(stream=2, sql="rows 1"))
        await endless.say(Execute(stream=1, sql="sleep 60"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        async with trio.open_nursery() as nursery:

            async def drain() -> None:
                await gateway.server.drain(grace_seconds=0.3)

            nursery.start_soon(drain)
            assert (await idle.hear()).sqlstate == "57P01"
            assert isinstance(await busy.hear(), Notice)
            assert isinstance(await busy.hear(), Rows)
            last = await busy.hear()
            assert (last.stream, last.sqlstate) == (0, "57P01")
            stopped = await endless.hear()
            assert (stopped.stream, stopped.sqlstate) == (1, "57P01")
            assert (await endless.hear()).stream == 0
            for client in (idle, busy, endless):
                await client.stream.aclose()
            late = gateway.connect()
            await late.stream.send_all(SQL_MAGIC)
            await late.say(HELLO)
            assert (await late.hear()).sqlstate == "57P01"
            await late.stream.aclose()
        assert gateway.server.statistics().sessions == 0

    run_with(test)


def test_too_many_waiting_statements_are_left_in_the_socket() -> None:
    async def test(gateway: Gateway) -> None:
        client = await gateway.connect_tcp()
        await client.open()
        await client.say(Execute(stream=1, sql="sleep 0.3"))
        filler = "rows 1 " + "x" * 100_000

        async def flood() -> None:
            for stream in range(2, 302):
                await client.say(Execute(stream=stream, sql=filler))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            heard = [await client.hear() for _ in range(302)]
        assert [message.stream for message in heard if isinstance(message, Rows)] == list(range(1, 302))

    run_with(test, waiting_statements_max=4)
