"""The driver against sessions on a real socket."""

import gc
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from scripted import Node

import dsdb
from dsdb.driver import results
from dsdb.driver.connection import Connection
from dsdb.driver.hosts import ordered
from dsdb.driver.target import Target
from dsdb.protocol.messages import Execute, encode_message
from dsdb.session import SessionLimits
from tests.driver.breaking_proxy import BreakingProxy


@pytest.fixture
def node() -> Iterator[Node]:
    with Node() as running:
        yield running


@pytest.fixture
def connection(node: Node) -> Iterator[Connection]:
    with dsdb.connect(node.url, autocommit=True) as opened:
        yield opened


def test_pep_249_globals() -> None:
    assert (dsdb.apilevel, dsdb.threadsafety, dsdb.paramstyle) == ("2.0", 2, "qmark")
    assert issubclass(dsdb.Warning, Exception)
    assert issubclass(dsdb.InterfaceError, dsdb.Error)
    for kind in (
        dsdb.DataError,
        dsdb.OperationalError,
        dsdb.IntegrityError,
        dsdb.InternalError,
        dsdb.ProgrammingError,
        dsdb.NotSupportedError,
    ):
        assert issubclass(kind, dsdb.DatabaseError)
        assert getattr(Connection, kind.__name__) is kind


def test_importing_dsdb_is_light() -> None:
    script = (
        "import sys, time; start = time.process_time(); import dsdb; seconds = time.process_time() - start\n"
        "heavy = {'pyarrow', 'trio', 'msgspec', 'sqlglot', 'duckdb', 'dsdb.node', 'dsdb.session'} & set(sys.modules)\n"
        "assert not heavy, heavy; assert seconds < 0.3, seconds\n"
        "import dsdb.driver.connection\n"
        "heavy = {'pyarrow', 'trio', 'sqlglot', 'duckdb', 'dsdb.node', 'dsdb.session'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)


def test_execute_and_fetch(connection: Connection) -> None:
    cursor = connection.cursor()
    assert cursor.execute("rows 5") is cursor
    assert (cursor.rowcount, cursor.statusmessage) == (5, "SELECT 5")
    assert cursor.fetchone() == (0,)
    assert cursor.fetchmany() == [(1,)]
    cursor.arraysize = 2
    assert cursor.fetchmany() == [(2,), (3,)]
    assert cursor.fetchall() == [(4,)]
    assert cursor.fetchone() is None
    assert cursor.fetchmany(3) == []
    assert list(cursor.execute("rows 3")) == [(0,), (1,), (2,)]


@pytest.mark.parametrize("rows", [0, 5, 256, 257, 1000])
def test_results_read_the_same_inline_or_streamed(connection: Connection, rows: int) -> None:
    wanted = [(n,) for n in range(rows)]
    assert connection.execute(f"rows {rows}").fetchall() == wanted
    assert list(connection.execute(f"rows {rows}")) == wanted
    assert connection.execute(f"rows {rows}").fetch_arrow_table().column(0).to_pylist() == [n for (n,) in wanted]


def test_a_large_result_streams(node: Node, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "CREDIT_BYTES", 100_000)
    cursor = connection.execute("batches 30 10000")
    assert cursor.rowcount == -1
    assert cursor.fetchone() == (0,)
    given = node.executor.batches_given
    assert given < 10
    assert sum(row[0] for row in cursor) == sum(range(300_000))
    assert cursor.rowcount == 300_000


def test_description_has_exact_types(connection: Connection) -> None:
    cursor = connection.execute("echo ?, ?, ?", (1, "a", b"b"))
    assert cursor.description is not None
    assert [column[0] for column in cursor.description] == ["c0", "c1", "c2"]
    codes = [column[1] for column in cursor.description]
    assert codes[0] == dsdb.NUMBER
    assert codes[1] == dsdb.STRING
    assert codes[2] == dsdb.BINARY
    assert codes[0] != dsdb.STRING
    connection.cursor().execute("insert VALUES (?)", (1,))
    assert connection.execute("insert VALUES (?)", (1,)).description is None


def test_no_result_to_fetch(connection: Connection) -> None:
    cursor = connection.cursor()
    with pytest.raises(dsdb.ProgrammingError):
        cursor.fetchone()
    cursor.execute("insert VALUES (?)", (1,))
    for fetch in (cursor.fetchone, cursor.fetchall, cursor.fetchmany, cursor.fetch_arrow_table):
        with pytest.raises(dsdb.ProgrammingError):
            fetch()


def test_closed_cursors_and_connections(connection: Connection) -> None:
    cursor = connection.cursor()
    cursor.close()
    with pytest.raises(dsdb.InterfaceError):
        cursor.execute("rows 1")
    open_cursor = connection.cursor()
    connection.close()
    connection.close()
    with pytest.raises(dsdb.InterfaceError):
        open_cursor.execute("rows 1")
    with pytest.raises(dsdb.InterfaceError):
        connection.cursor()


def test_with_autocommit_every_statement_commits_by_itself(connection: Connection) -> None:
    assert connection.autocommit
    connection.execute("rows 1")
    assert not connection.in_transaction
    connection.commit()
    connection.rollback()


def test_errors_carry_all_that_the_node_said(connection: Connection) -> None:
    with pytest.raises(dsdb.IntegrityError) as caught:
        connection.execute("fail 23505")
    error = caught.value
    assert (error.sqlstate, error.message, error.detail, error.hint, error.position) == ("23505", "it failed", "detail", "hint", 3)
    assert str(error) == "it failed\nDETAIL: detail\nHINT: hint"


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("22012", dsdb.DataError),
        ("23502", dsdb.IntegrityError),
        ("0A000", dsdb.NotSupportedError),
        ("42P01", dsdb.ProgrammingError),
        ("3B001", dsdb.ProgrammingError),
        ("25P02", dsdb.ProgrammingError),
        ("40001", dsdb.SerializationFailure),
        ("40003", dsdb.UnknownOutcome),
        ("53200", dsdb.OperationalError),
        ("57014", dsdb.OperationalError),
        ("XX001", dsdb.InternalError),
    ],
)
def test_the_class_of_an_error(connection: Connection, sqlstate: str, kind: type[dsdb.Error]) -> None:
    with pytest.raises(kind) as caught:
        connection.execute(f"fail {sqlstate}")
    assert caught.value.sqlstate == sqlstate
    assert connection.execute("rows 1").fetchall() == [(0,)]


def test_two_cursors_of_one_connection(node: Node, connection: Connection) -> None:
    first = connection.execute("batches 30 10000")
    assert first.fetchone() == (0,)
    second = connection.execute("batches 5 1000")
    assert connection.execute("rows 2").fetchall() == [(0,), (1,)]
    assert len(first.fetchall()) == 299_999
    assert len(second.fetchall()) == 5_000


def test_a_stream_that_nobody_wants_is_cancelled(node: Node, connection: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "CREDIT_BYTES", 100_000)
    cursor = connection.execute("batches 1000 10000")
    assert cursor.fetchone() == (0,)
    cursor.close()
    gc.collect()
    assert connection.execute("rows 1").fetchall() == [(0,)]
    assert node.executor.batches_given < 50
    assert node.executor.streams_closed == 1


def test_a_reader_outlives_its_cursor(connection: Connection) -> None:
    reader = connection.execute("batches 20 10000").fetch_record_batch()
    gc.collect()
    assert connection.execute("rows 1").fetchall() == [(0,)]
    assert reader.read_all().num_rows == 200_000


def test_arrow(connection: Connection) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("polars")
    reader = connection.execute("batches 20 1000").fetch_record_batch()
    assert isinstance(reader, pa.RecordBatchReader)
    assert [batch.num_rows for batch in reader] == [1000] * 20
    assert connection.execute("batches 20 1000").fetch_arrow_table().schema == pa.schema([("n", pa.int64())])
    assert connection.execute("batches 2 1000").fetch_df()["n"].sum() == sum(range(2000))
    assert connection.execute("rows 10").fetch_polars()["n"].to_list() == list(range(10))
    cursor = connection.execute("rows 10")
    cursor.fetchmany(4)
    assert cursor.fetch_arrow_table().column(0).to_pylist() == [4, 5, 6, 7, 8, 9]


def test_several_results(connection: Connection) -> None:
    cursor = connection.execute("rows 1; batches 3 1000; insert VALUES (1); rows 2")
    assert cursor.fetchall() == [(0,)]
    assert cursor.nextset()
    assert len(cursor.fetchall()) == 3000
    assert cursor.nextset()
    assert cursor.statusmessage == "INSERT 0 0"
    assert cursor.nextset()
    assert cursor.fetchall() == [(0,), (1,)]
    assert cursor.nextset() is None
    with pytest.raises(dsdb.ProgrammingError, match="nonsense"):
        connection.execute("rows 1; nonsense")


def test_notices(connection: Connection) -> None:
    connection.execute("sleep 0")
    assert connection.notices == ["slept"]


def test_cancel_from_another_thread(node: Node, connection: Connection) -> None:
    timer = threading.Timer(0.1, connection.cancel)
    timer.start()
    with pytest.raises(dsdb.OperationalError) as caught:
        connection.execute("sleep 60")
    timer.join()
    assert caught.value.sqlstate == "57014"
    assert node.executor.cancelled == ["sleep 60"]
    connection.cancel()
    assert connection.execute("rows 1").fetchall() == [(0,)]


def test_run_retries_serialization_failures(connection: Connection) -> None:
    calls = []

    def work(given: Connection) -> Any:
        calls.append(given)
        return given.execute("fail 40001" if len(calls) < 4 else "rows 1").fetchall()

    assert connection.run(work) == [(0,)]
    assert len(calls) == 4
    with pytest.raises(dsdb.SerializationFailure):
        connection.run(lambda given: given.execute("fail 40001"), attempts_max=2)
    with pytest.raises(dsdb.IntegrityError):
        connection.run(lambda given: given.execute("fail 23505"))


def test_what_is_larger_than_the_node_takes_is_not_sent(node: Node, connection: Connection) -> None:
    large = 100 << 20
    for sql, parameters in (("echo " + "x" * large, []), ("echo ?", ["x" * large]), ("echo ?, ?", [1, bytes(large)])):
        with pytest.raises(dsdb.OperationalError, match="at most 67108864 bytes") as caught:
            connection.execute(sql, parameters)
        assert caught.value.sqlstate == "54000"
        assert connection.execute("rows 1").fetchall() == [(0,)]
    with pytest.raises(dsdb.OperationalError) as caught:
        connection.cursor().executemany("update 0", [["x"], ["x" * large]])
    assert caught.value.sqlstate == "54000"
    assert connection.execute("rows 1").fetchall() == [(0,)]
    assert node.server.statistics().sessions == 1


def test_executemany_of_rows_that_are_too_large_as_one_statement() -> None:
    with Node(SessionLimits(request_bytes_max=10_000)) as small, dsdb.connect(small.url, autocommit=True) as connection:
        rows = [(n, "x" * 1_000) for n in range(64)]
        assert connection.cursor().executemany("INSERT INTO t VALUES (?, ?)", rows).rowcount == 64
        assert small.executor.inserted == rows


def test_few_rows_that_are_large_are_streamed_and_one_that_is_too_large_is_an_error() -> None:
    with (
        Node(SessionLimits(inline_bytes_max=10_000, batch_bytes=2_000, response_bytes_max=5_000)) as small,
        dsdb.connect(small.url, autocommit=True) as connection,
    ):
        assert connection.execute("large 20 1000").fetchall() == [("x" * 1_000,)] * 20
        for sql in ("large 1 10001", "large 3 6000"):
            with pytest.raises(dsdb.OperationalError, match="a row of the result has") as caught:
                connection.execute(sql).fetchall()
            assert caught.value.sqlstate == "54000"
        assert connection.execute("rows 1").fetchall() == [(0,)]


def test_the_node_says_how_much_it_takes() -> None:
    with Node(SessionLimits(request_bytes_max=1_000)) as small, dsdb.connect(small.url, autocommit=True) as connection:
        # Up to the last byte, and not beyond: the node would have ended the session.
        overhead = len(encode_message(Execute(stream=1, sql="echo ?", types=b"\x0b", values=[b"x" * 900], credit_bytes=4 << 20))) - 904
        connection.execute("echo ?", [b"x" * (1_000 - overhead)])
        with pytest.raises(dsdb.OperationalError) as caught:
            connection.execute("echo ?", [b"x" * (1_001 - overhead)])
        assert caught.value.sqlstate == "54000"
        assert small.server.statistics().sessions == 1


def test_executemany_in_chunks(node: Node, connection: Connection) -> None:
    rows = [(n, f"v{n}") for n in range(1000)]
    assert connection.cursor().executemany("INSERT INTO t (a, b) VALUES (?, ?)", iter(rows)).rowcount == 1000
    assert node.executor.inserted == rows
    # 15 of 64 rows, then 32 and 8.
    assert node.server.statistics().statements == 17


def test_executemany_in_a_pipeline(node: Node, connection: Connection) -> None:
    mixed = [(1, "a"), ("2", "b"), (None, "c")]
    assert connection.cursor().executemany("INSERT INTO t VALUES (?, ?)", mixed).rowcount == 3
    several = [(n, n) for n in range(300)]
    assert connection.cursor().executemany('INSERT INTO "several ranges" VALUES (?, ?)', several).rowcount == 300
    upsert = "INSERT INTO t VALUES (?, ?) ON CONFLICT (a) DO UPDATE SET b = 1"
    assert connection.cursor().executemany(upsert, several).rowcount == 300
    assert node.executor.inserted == mixed + several + several


def test_executemany_stops_at_the_first_failure(node: Node, connection: Connection) -> None:
    rows = [(n,) for n in range(10)] + [(-1,)] + [(n,) for n in range(10)]
    with pytest.raises(dsdb.IntegrityError):
        connection.cursor().executemany("INSERT INTO t VALUES (?) ON CONFLICT (a) DO UPDATE SET a = 1", rows)
    assert node.executor.inserted == rows[:10]
    with pytest.raises(dsdb.ProgrammingError, match="2 values"):
        connection.cursor().executemany("INSERT INTO t VALUES (?)", [(1, 2)])
    with pytest.raises(dsdb.ProgrammingError, match="no rows"):
        connection.cursor().executemany("echo ?", [(1,)])


def test_fail_over_at_connect(node: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        dead = unused.getsockname()[1]
    with dsdb.connect(f"dsdb://127.0.0.1:{dead},127.0.0.1:{node.port}/d", autocommit=True) as connection:
        assert connection.node_id == 1
    with pytest.raises(dsdb.OperationalError, match="none of the 2 hosts"):
        dsdb.connect(f"dsdb://127.0.0.1:{dead},127.0.0.1:{dead}/d?load_balance=random", autocommit=True)


def test_load_balances(node: Node) -> None:
    with Node(node_id=2) as second:
        hosts = f"dsdb://127.0.0.1:{node.port},127.0.0.1:{second.port}/d"
        turns = [dsdb.connect(f"{hosts}?load_balance=round_robin", autocommit=True) for _ in range(4)]
        assert sorted(connection.node_id for connection in turns) == [1, 1, 2, 2]
        held = [dsdb.connect(node.url, autocommit=True) for _ in range(3)]
        least = [dsdb.connect(f"{hosts}?load_balance=least_loaded", autocommit=True) for _ in range(2)]
        assert [connection.node_id for connection in least] == [2, 2]
        for connection in turns + held + least:
            connection.close()


def test_weights_are_obeyed(node: Node) -> None:
    hosts = tuple((f"h{number}", 1) for number in range(4))
    target = Target(hosts=hosts, load_balance="weighted", weights=(3.0, 1.0, 0.0, 0.0))
    random.seed(7)
    orders = [ordered(target) for _ in range(2_000)]
    assert all(sorted(order) == sorted(hosts) and set(order[2:]) == set(hosts[2:]) for order in orders)
    assert 0.70 < sum(order[0] == hosts[0] for order in orders) / len(orders) < 0.80
    assert 0.4 < sum(order[2] == hosts[2] for order in orders) / len(orders) < 0.6
    with socket.create_server(("127.0.0.1", 0)) as unused:
        dead = unused.getsockname()[1]
    # Of weight 0, and the only one that is there.
    with dsdb.connect(f"dsdb://127.0.0.1:{dead},127.0.0.1:{node.port}/d?load_balance=weighted&weights=1,0") as connection:
        assert connection.node_id == 1


def test_a_full_node_passes_the_client_on() -> None:
    # Two sessions, so that one who was refused and still lingers at the door leaves room for the next one to be refused.
    with Node(SessionLimits(sessions_max=2)) as full, Node(node_id=2) as other:
        held = [dsdb.connect(full.url, autocommit=True) for _ in range(2)]
        with dsdb.connect(f"dsdb://127.0.0.1:{full.port},127.0.0.1:{other.port}/d", autocommit=True) as connection:
            assert connection.node_id == 2
        with pytest.raises(dsdb.OperationalError) as caught:
            dsdb.connect(full.url, autocommit=True)
        assert caught.value.sqlstate == "53300"
        for each in held:
            each.close()


def test_reconnect_between_statements(node: Node) -> None:
    with Node(node_id=2) as second:
        connection = dsdb.connect(f"dsdb://127.0.0.1:{node.port},127.0.0.1:{second.port}/d", autocommit=True)
        connection.execute("set application_name mine")
        node.stop()
        assert connection.execute("show application_name").fetchall() == [("mine",)]
        assert connection.node_id == 2
        connection.close()


def test_a_drained_node_passes_its_clients_on(node: Node) -> None:
    with Node(node_id=2) as second, dsdb.connect(f"dsdb://127.0.0.1:{node.port},127.0.0.1:{second.port}/d", autocommit=True) as connection:
        node.call(lambda: node.server.drain(grace_seconds=1))
        assert connection.execute("rows 1").fetchall() == [(0,)]
        assert connection.node_id == 2


@pytest.mark.parametrize(
    ("sql", "sqlstate"),
    [
        ("select 0.2", "08006"),
        ("update 0.2", "40003"),
        ("select 0; update 0.2", "40003"),
        ("/* a */ -- b\n (select 0.2", "08006"),
        ("sleep 0.2", "40003"),
    ],
)
def test_a_connection_that_breaks_inside_a_statement(node: Node, sql: str, sqlstate: str) -> None:
    proxy = BreakingProxy(node.port)
    connection = dsdb.connect(f"dsdb://127.0.0.1:{proxy.port}/d", autocommit=True)
    connection.execute("rows 1")
    before = node.server.statistics().statements
    proxy.breaks_after = b"0.2"
    with pytest.raises(dsdb.OperationalError) as caught:
        connection.execute(sql)
    assert caught.value.sqlstate == sqlstate
    proxy.heal()
    assert connection.execute("rows 1").fetchall() == [(0,)]
    # Never a silent retry: at most once, and the statement after it.
    assert node.server.statistics().statements <= before + 2
    connection.close()
    proxy.close()


def test_a_peer_that_is_no_node() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            accepted, _ = listener.accept()
            with accepted:
                accepted.recv(100)
                accepted.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(dsdb.OperationalError, match="does not speak"):
            dsdb.connect(f"dsdb://127.0.0.1:{listener.getsockname()[1]}/d", autocommit=True)
        thread.join()


def test_connect_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        began = time.monotonic()
        with pytest.raises(dsdb.OperationalError, match="timed out"):
            dsdb.connect(f"dsdb://127.0.0.1:{listener.getsockname()[1]}/d?connect_timeout=0.1", autocommit=True)
        assert time.monotonic() - began < 15


def test_a_reset_while_streaming(node: Node) -> None:
    connection = dsdb.connect(node.url, autocommit=True)
    cursor = connection.execute("batches 1000 10000")
    assert cursor.fetchone() == (0,)
    sock = connection._wire._socket
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    node.stop()
    with pytest.raises(dsdb.OperationalError) as caught:
        cursor.fetchall()
    assert caught.value.sqlstate == "08006"
    connection.close()


def test_ping(connection: Connection) -> None:
    connection.execute("batches 3 1000")
    connection.ping()


def test_threads_share_a_connection(connection: Connection) -> None:
    wrong = []

    def work(number: int) -> None:
        for at in range(50):
            if connection.execute("point ?", (number * 1000 + at,)).fetchone() != (number * 1000 + at,):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
