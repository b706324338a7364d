"""What the driver says when statements are cancelled, late, or lose their node: an error each time, and the right one."""

import threading
import time
from collections.abc import Iterator

import pytest

import dsdb
from dsdb.cli.processes import NodeProcess

LONG = "SELECT count(*) FROM generate_series(1, 200000) AS a(x), generate_series(1, 200000) AS b(y) WHERE a.x + b.y = 3"
"""A statement that goes on for minutes, and that the engine can interrupt."""
PATIENCE_S = 15.0


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    node = NodeProcess(tmp_path_factory.mktemp("lasting") / "store").start()
    yield node
    node.kill()


@pytest.fixture
def node(lasting: NodeProcess) -> Iterator[NodeProcess]:
    """A node that may be ended; the next test finds it running."""
    yield lasting
    if not lasting.is_running:
        lasting.start()


def test_a_statement_is_cancelled_from_another_thread_and_the_connection_goes_on(node: NodeProcess) -> None:
    with dsdb.connect(f"dsdb://{node.address}", autocommit=True) as connection:
        timer = threading.Timer(0.3, connection.cancel)
        timer.start()
        began = time.monotonic()
        with pytest.raises(dsdb.OperationalError) as caught:
            connection.execute(LONG)
        timer.join()
        assert (caught.value.sqlstate, time.monotonic() - began < PATIENCE_S) == ("57014", True)
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_a_write_that_is_cancelled_before_its_commit_is_known_to_have_had_no_effect(node: NodeProcess) -> None:
    with dsdb.connect(f"dsdb://{node.address}", autocommit=True) as connection:
        connection.execute("CREATE TABLE cancelled (n BIGINT)")
        connection.execute("SET statement_timeout = '300ms'")
        with pytest.raises(dsdb.OperationalError, match="statement timeout") as caught:
            connection.execute(f"INSERT INTO cancelled {LONG}")
        assert caught.value.sqlstate == "57014"
        assert connection.execute("SELECT count(*) FROM cancelled").fetchall() == [(0,)]


def test_statement_timeout_ends_a_statement_and_not_its_session(node: NodeProcess) -> None:
    with dsdb.connect(f"dsdb://{node.address}?statement_timeout=300ms", autocommit=True) as connection:
        began = time.monotonic()
        with pytest.raises(dsdb.OperationalError, match="statement timeout") as caught:
            connection.execute(LONG)
        assert (caught.value.sqlstate, time.monotonic() - began < PATIENCE_S) == ("57014", True)
        assert connection.execute("SELECT 1").fetchall() == [(1,)]


def test_a_result_whose_node_dies_while_it_streams_ends_with_an_error_and_is_never_short(node: NodeProcess) -> None:
    with dsdb.connect(f"dsdb://{node.address}", autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT * FROM generate_series(1, 5000000)")
        rows = len(cursor.fetchmany(1_000))
        node.kill()

        def read_on() -> None:
            nonlocal rows
            while got := cursor.fetchmany(10_000):
                rows += len(got)

        with pytest.raises(dsdb.OperationalError) as caught:
            read_on()
        assert caught.value.sqlstate == "08006"
        assert rows < 5_000_000


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_an_insert_whose_node_ends_is_never_silently_lost_or_done_twice(node: NodeProcess, end: str) -> None:
    """B21: an ambiguous commit is reported as failed, or sent again."""
    told: dict[int, str] = {}
    with dsdb.connect(f"dsdb://{node.address}", autocommit=True) as connection:
        connection.execute(f"CREATE TABLE t_{end} (n INT PRIMARY KEY)")
    is_over = threading.Event()

    def write(first: int) -> None:
        with dsdb.connect(f"dsdb://{node.address}", autocommit=True) as connection:
            for number in range(first, first + 1_000_000):
                try:
                    connection.execute(f"INSERT INTO t_{end} VALUES (?)", (number,))
                    told[number] = "done"
                except dsdb.UnknownOutcome:
                    told[number] = "unknown"
                except dsdb.OperationalError:
                    told[number] = "refused"
                if is_over.is_set() or told[number] != "done":
                    return

    writers = [threading.Thread(target=write, args=(number * 1_000_000,)) for number in range(1, 5)]
    for writer in writers:
        writer.start()
    threading.Event().wait(0.5)
    getattr(node, end)()
    is_over.set()
    for writer in writers:
        writer.join(PATIENCE_S)
        assert not writer.is_alive()
    node.start()
    with dsdb.connect(f"dsdb://{node.address}", autocommit=True) as connection:
        found = {n for (n,) in connection.execute(f"SELECT n FROM t_{end}").fetchall()}
    for number, said in told.items():
        assert said == "unknown" or (number in found) == (said == "done"), (number, said)
    assert found <= set(told)
    assert any(said == "done" for said in told.values())
    if end == "terminate":
        assert "unknown" not in told.values()
