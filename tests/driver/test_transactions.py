"""Transactions as a client has them: the driver, the session and the executor over a local store."""

import time
from collections.abc import Callable, Iterator

import pytest
import trio
from scripted import Node

import dsdb
from dsdb.driver.connection import Connection
from dsdb.sql.transaction_status import TransactionStatus
from tests.driver.breaking_proxy import BreakingProxy
from tests.sql.conformance import LocalDatabase


@pytest.fixture(scope="module")
def database() -> Iterator[LocalDatabase]:
    opened = LocalDatabase()
    trio.run(opened.found)
    yield opened
    opened.close()


@pytest.fixture
def node(database: LocalDatabase) -> Iterator[Node]:
    with Node(executor=database.executor) as running:
        with dsdb.connect(running.url, autocommit=True) as connection:
            connection.execute("DROP TABLE IF EXISTS t")
            connection.execute("DROP TABLE IF EXISTS u")
            connection.execute("CREATE TABLE t (id INT PRIMARY KEY, n INT)")
            connection.execute("INSERT INTO t VALUES (1, 10), (2, 20)")
        yield running


@pytest.fixture
def connection(node: Node) -> Iterator[Connection]:
    opened = dsdb.connect(node.url)
    yield opened
    opened.close()


@pytest.fixture
def other(node: Node) -> Iterator[Connection]:
    with dsdb.connect(node.url, autocommit=True) as opened:
        yield opened


def table(connection: Connection) -> list[tuple[int, int]]:
    return connection.execute("SELECT id, n FROM t ORDER BY id").fetchall()


def state_of(call: Callable[[], object]) -> str | None:
    with pytest.raises(dsdb.Error) as caught:
        call()
    return caught.value.sqlstate


def test_the_first_statement_begins_a_transaction(connection: Connection, other: Connection) -> None:
    assert not connection.in_transaction
    connection.execute("UPDATE t SET n = 11 WHERE id = 1")
    assert connection.transaction_status is TransactionStatus.ACTIVE
    assert connection.execute("SELECT n FROM t WHERE id = 1").fetchone() == (11,)
    assert table(other) == [(1, 10), (2, 20)]
    connection.commit()
    assert not connection.in_transaction
    assert table(other) == [(1, 11), (2, 20)]
    connection.execute("DELETE FROM t")
    connection.rollback()
    assert table(connection) == [(1, 11), (2, 20)]
    connection.commit()


def test_leaving_the_connection_commits_or_rolls_back(node: Node, other: Connection) -> None:
    with dsdb.connect(node.url) as connection:
        connection.execute("DELETE FROM t WHERE id = 1")
    assert connection.closed
    assert table(other) == [(2, 20)]

    def leave_by_an_error() -> None:
        with dsdb.connect(node.url) as failing:
            failing.execute("DELETE FROM t")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        leave_by_an_error()
    closed = dsdb.connect(node.url)
    closed.execute("DELETE FROM t")
    closed.close()
    assert table(other) == [(2, 20)]


def test_a_change_of_the_catalogue_is_part_of_the_transaction(connection: Connection, other: Connection) -> None:
    connection.execute("CREATE TABLE u (id INT PRIMARY KEY)")
    assert connection.in_transaction
    connection.execute("INSERT INTO u VALUES (1)")
    assert state_of(lambda: other.execute("SELECT count(*) FROM u")) == "42P01"
    connection.rollback()
    assert state_of(lambda: connection.execute("SELECT * FROM u")) == "42P01"
    connection.rollback()
    with connection.transaction():
        connection.execute("CREATE TABLE u (id INT PRIMARY KEY)")
        connection.execute("INSERT INTO u VALUES (1)")
    assert other.execute("SELECT * FROM u").fetchall() == [(1,)]
    connection.execute("DROP TABLE u")
    connection.execute("CREATE TABLE u AS SELECT 2 AS id")
    connection.commit()
    assert other.execute("SELECT * FROM u").fetchall() == [(2,)]
    connection.execute("DROP TABLE u")
    connection.commit()


def test_what_cannot_be_part_of_a_transaction(connection: Connection) -> None:
    connection.execute("SELECT 1")
    connection.execute("CREATE DATABASE d")
    assert not connection.in_transaction
    connection.execute("UPDATE t SET n = 0")
    assert state_of(lambda: connection.execute("DROP DATABASE d")) == "25001"
    connection.rollback()
    connection.execute("BEGIN")
    assert state_of(lambda: connection.execute("DROP DATABASE d")) == "25001"
    connection.rollback()
    connection.execute("DROP DATABASE d")


def test_notices_have_a_class(other: Connection) -> None:
    del other.notices[:]
    other.execute("BEGIN")
    other.execute("BEGIN")
    other.execute("COMMIT")
    other.execute("DROP TABLE IF EXISTS nothing")
    assert [(notice.severity, notice.sqlstate) for notice in other.notices] == [("WARNING", "25001"), ("NOTICE", "00000")]


def test_a_failed_transaction_is_not_committed(connection: Connection, other: Connection) -> None:
    connection.execute("UPDATE t SET n = 0")
    assert state_of(lambda: connection.execute("SELECT nope FROM t")) == "42703"
    assert connection.transaction_status is TransactionStatus.FAILED
    assert state_of(lambda: connection.execute("SELECT 1")) == "25P02"
    assert state_of(connection.commit) == "25P02"
    assert not connection.in_transaction
    assert table(other) == [(1, 10), (2, 20)]
    assert state_of(lambda: connection.execute("SELEKT")) == "42601"
    assert not connection.in_transaction
    connection.execute("SELECT 1")
    assert state_of(lambda: connection.execute("SELEKT")) == "42601"
    assert connection.transaction_status is TransactionStatus.FAILED


def test_autocommit_is_not_changed_in_a_transaction(connection: Connection) -> None:
    connection.execute("SELECT 1")
    with pytest.raises(dsdb.ProgrammingError, match="in a transaction"):
        connection.autocommit = True
    connection.commit()
    connection.autocommit = True
    connection.execute("SELECT 1")
    assert not connection.in_transaction
    connection.execute("BEGIN")
    assert connection.in_transaction
    connection.rollback()


def in_block(connection: Connection, *statements: str) -> None:
    with connection.transaction():
        for statement in statements:
            connection.execute(statement)


@pytest.mark.parametrize("autocommit", [True, False])
def test_blocks(node: Node, other: Connection, autocommit: bool) -> None:
    with dsdb.connect(node.url, autocommit=autocommit) as connection:
        with connection.transaction():
            connection.execute("UPDATE t SET n = 1 WHERE id = 1")
            with pytest.raises(dsdb.IntegrityError):
                in_block(connection, "UPDATE t SET n = 2 WHERE id = 1", "INSERT INTO t VALUES (2, 2)")
            in_block(connection, "INSERT INTO t VALUES (3, 3)")
            assert state_of(connection.commit) == "25001"
            assert state_of(lambda: connection.run(table)) == "25001"
        assert table(other) == [(1, 1), (2, 20), (3, 3)]
        with pytest.raises(dsdb.DataError):
            in_block(connection, "DELETE FROM t", "SELECT 1 / 0")
        in_block(connection)
        with connection.transaction(), connection.transaction():
            connection.execute("DELETE FROM t WHERE id = 3")
        assert not connection.in_transaction
        assert table(other) == [(1, 1), (2, 20)]


@pytest.mark.parametrize("autocommit", [True, False])
def test_run_repeats_what_conflicts(node: Node, other: Connection, autocommit: bool) -> None:
    seen = []

    def work(connection: Connection) -> int:
        [(n,)] = connection.execute("SELECT n FROM t WHERE id = 1").fetchall()
        seen.append(n)
        if len(seen) < 3:
            other.execute("UPDATE t SET n = n + 1 WHERE id = 1")
        connection.execute("UPDATE t SET n = ? WHERE id = 2", (n,))
        return int(n)

    with dsdb.connect(node.url, autocommit=autocommit) as connection:
        assert connection.run(work) == 12
        assert seen == [10, 11, 12]
        seen.clear()
        with pytest.raises(dsdb.SerializationFailure, match=r'row \(1\) of "t" was changed by another transaction'):
            connection.run(work, attempts_max=2)
    assert table(other) == [(1, 14), (2, 12)]


def test_many_rows_are_of_one_transaction(connection: Connection, other: Connection) -> None:
    cursor = connection.cursor()
    cursor.executemany("INSERT INTO t VALUES (?, ?)", [(n, n) for n in range(3, 200)])
    cursor.executemany("UPDATE t SET n = n + ? WHERE id = ?", [(1, n) for n in range(1, 200)])
    assert len(table(other)) == 2
    connection.commit()
    assert len(table(other)) == 199
    with pytest.raises(dsdb.IntegrityError):
        cursor.executemany("INSERT INTO t VALUES (?, ?)", [(200, 0), (201, 0), (1, 0), (202, 0)])
    assert state_of(connection.commit) == "25P02"
    assert len(table(other)) == 199


def test_a_result_that_streams_is_of_its_transaction(connection: Connection, other: Connection) -> None:
    cursor = connection.cursor()
    cursor.executemany("INSERT INTO t VALUES (?, ?)", [(n, n) for n in range(3, 2_000)])
    connection.commit()
    reading = connection.execute("SELECT * FROM t")
    assert connection.in_transaction
    other.execute("DELETE FROM t WHERE id > 2")
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (1_999,)
    assert len(reading.fetchall()) == 1_999
    connection.commit()
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (2,)


def test_settings_of_a_transaction_that_is_rolled_back(node: Node, database: LocalDatabase) -> None:
    with Node(node_id=2, executor=database.executor) as second:
        connection = dsdb.connect(f"dsdb://127.0.0.1:{node.port},127.0.0.1:{second.port}/defaultdb")
        connection.execute("SET application_name = 'kept'")
        connection.commit()
        connection.execute("SET application_name = 'gone'")
        connection.rollback()
        node.stop()
        assert connection.execute("SHOW application_name").fetchall() == [("kept",)]
        connection.close()


def test_a_transaction_is_lost_with_its_connection(node: Node, database: LocalDatabase, other: Connection) -> None:
    with Node(node_id=2, executor=database.executor) as second:
        connection = dsdb.connect(f"dsdb://127.0.0.1:{node.port},127.0.0.1:{second.port}/defaultdb")
        connection.execute("UPDATE t SET n = 0")
        other.close()
        node.stop()
        with pytest.raises(dsdb.OperationalError, match="transaction is lost") as caught:
            connection.execute("SELECT 1")
        assert caught.value.sqlstate == "08006"
        assert table(connection) == [(1, 10), (2, 20)]
        assert connection.node_id == 2
        connection.close()


@pytest.fixture
def proxy(node: Node) -> Iterator[BreakingProxy]:
    opened = BreakingProxy(node.port)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("begin", "sql", "sqlstate"),
    [
        (True, "UPDATE t SET n = 5 /* here */", "08006"),
        (False, "UPDATE t SET n = 5 /* here */", "08006"),
        (True, "COMMIT /* here */", "40003"),
        (True, "SELECT 1; COMMIT /* here */", "40003"),
        (False, "CREATE TABLE u (id INT) /* here */", "08006"),
        (False, "CREATE DATABASE d /* here */", "40003"),
    ],
)
def test_a_connection_that_breaks_in_a_transaction(proxy: BreakingProxy, begin: bool, sql: str, sqlstate: str) -> None:
    connection = dsdb.connect(f"dsdb://127.0.0.1:{proxy.port}/defaultdb")
    if begin:
        connection.execute("UPDATE t SET n = 4")
    else:
        connection.ping()
    proxy.breaks_after = b"here"
    assert state_of(lambda: connection.execute(sql)) == sqlstate
    proxy.heal()
    assert not connection.in_transaction
    connection.execute("SELECT 1")
    connection.close()


def test_commit_that_is_not_answered(proxy: BreakingProxy, other: Connection) -> None:
    connection = dsdb.connect(f"dsdb://127.0.0.1:{proxy.port}/defaultdb")
    connection.execute("UPDATE t SET n = 4 WHERE id = 1")
    proxy.breaks_after = b"COMMIT"
    with pytest.raises(dsdb.UnknownOutcome):
        connection.commit()
    proxy.heal()
    assert table(connection) == table(other)
    connection.close()


def test_a_block_that_lost_its_transaction_goes_no_further(proxy: BreakingProxy, other: Connection) -> None:
    connection = dsdb.connect(f"dsdb://127.0.0.1:{proxy.port}/defaultdb")

    def lose_it() -> None:
        with connection.transaction():
            connection.execute("UPDATE t SET n = 4 WHERE id = 1")
            proxy.breaks_after = b"here"
            assert state_of(lambda: connection.execute("SELECT 1 /* here */")) == "08006"
            proxy.heal()
            assert state_of(lambda: connection.execute("UPDATE t SET n = 4 WHERE id = 2")) == "08006"

    assert state_of(lose_it) == "08006"
    assert table(connection) == table(other) == [(1, 10), (2, 20)]
    connection.close()


def test_a_transaction_left_idle(connection: Connection) -> None:
    connection.execute("SET idle_in_transaction_session_timeout = '50ms'")
    connection.commit()
    connection.execute("UPDATE t SET n = 4")
    time.sleep(0.3)
    with pytest.raises(dsdb.OperationalError, match="idle-in-transaction timeout"):
        connection.execute("SELECT 1")
    assert table(connection) == [(1, 10), (2, 20)]


def test_cancelled_in_a_transaction(connection: Connection) -> None:
    connection.execute("UPDATE t SET n = 4")
    connection.execute("SET statement_timeout = 50")
    sleeping = "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b WHERE a.a + b.b = 7"
    assert state_of(lambda: connection.execute(sleeping)) == "57014"
    assert connection.transaction_status is TransactionStatus.FAILED
    connection.rollback()
    assert table(connection) == [(1, 10), (2, 20)]
