"""The tables of schema `system` over real nodes: one embedded, and three processes of which some do not answer."""

import datetime as dt
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dsdb
from dsdb.cli.processes import ProcessCluster
from dsdb.driver.connection import Connection
from tests.cluster.cut_cluster import wait_until
from tests.cluster.test_driver_faults import LONG


def rows(connection: Connection, sql: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def test_an_embedded_node_shows_its_transactions(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with dsdb.connect(path, autocommit=True) as writer, dsdb.connect(path, autocommit=True) as looker:
        before = dt.datetime.now(dt.UTC) - dt.timedelta(seconds=1)
        writer.execute("CREATE TABLE t (id INT PRIMARY KEY, v TEXT)")
        shown = "state, statement, writes, bytes > 20, started_at > $1, read_timestamp > $1, length(attempt)"
        others = f"SELECT {shown} FROM system.transactions WHERE statement NOT LIKE '%system.%'"

        def seen() -> list[tuple[Any, ...]]:
            with looker.cursor() as cursor:
                cursor.execute(others, (before,))
                return cursor.fetchall()

        assert seen() == []
        writer.execute("BEGIN")
        writer.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b')")
        assert seen() == [("idle", "INSERT INTO t VALUES (1, 'a'), (2, 'b')", 2, True, True, True, 32)]
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(rows, writer, LONG)
            wait_until(lambda: [row[:2] for row in seen()] == [("running", LONG[:1000])])
            writer.cancel()
            assert running.exception(timeout=10) is not None
        assert [row[0] for row in seen()] == ["failed"]
        writer.execute("ROLLBACK")
        assert seen() == []
        # A statement by itself, the one that looks.
        assert rows(looker, "SELECT node_id, state FROM system.transactions") == [(1, "running")]


def test_who_waits_for_whose_lock(tmp_path: Path) -> None:
    blocked = """
        SELECT l.table_name, l.key, l.waiters, l.holder_node, l.held_since > t.started_at - INTERVAL '1 second',
            t.session_id, t.state, t.statement
        FROM system.locks l JOIN system.transactions t ON t.attempt = l.holder"""
    path = tmp_path / "store"
    with dsdb.connect(path, autocommit=True) as first, dsdb.connect(path, autocommit=True) as second, dsdb.connect(path) as looker:
        first.execute("CREATE TABLE t (a TEXT, b INT, PRIMARY KEY (a, b))")
        first.execute("INSERT INTO t VALUES ('x', 42)")
        take = "SELECT * FROM t WHERE a = 'x' AND b = 42 FOR UPDATE"
        first.execute("BEGIN")
        first.execute(take)
        assert rows(looker, blocked) == [("t", "(x, 42)", 0, 1, True, 1, "idle", take)]
        second.execute("BEGIN")
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(rows, second, take)
            wait_until(lambda: rows(looker, "SELECT waiters FROM system.locks") == [(1,)])
            first.execute("COMMIT")
            assert waiting.result(timeout=10) == [("x", 42)]
        wait_until(lambda: rows(looker, blocked) == [("t", "(x, 42)", 0, 1, True, 2, "idle", take)])
        second.execute("ROLLBACK")
        wait_until(lambda: rows(looker, "SELECT * FROM system.locks") == [])


def test_three_nodes_answer_and_who_does_not_is_left_out(cluster: ProcessCluster) -> None:
    urls = [f"dsdb://{node.address}" for node in cluster.nodes]
    connections = [dsdb.connect(url, autocommit=True) for url in (*urls, urls[0])]
    first, second, third, writer = connections
    try:
        first.execute("CREATE TABLE shown (id INT PRIMARY KEY)")
        for number, connection in enumerate((second, third)):
            connection.execute("BEGIN")
            connection.execute(f"INSERT INTO shown VALUES ({number})")
        query = "SELECT node_id FROM system.transactions WHERE state = 'idle' ORDER BY node_id"
        assert rows(first, query) == [(cluster.nodes[1].node_id,), (cluster.nodes[2].node_id,)]
        assert first.notices == []
        assert len(rows(first, "SELECT * FROM system.nodes WHERE is_live")) == 3
        assert rows(first, "SELECT count(*) FROM system.locks") == [(0,)]
        assert rows(third, "SELECT DISTINCT replicas FROM system.ranges") == [("{1,2,3}",)]
        # One that hangs costs a second, and a notice.
        os.kill(cluster.nodes[2].pid, signal.SIGSTOP)
        try:
            assert rows(first, query) == [(cluster.nodes[1].node_id,)]
            assert [str(notice) for notice in first.notices] == [f"node {cluster.nodes[2].node_id} did not answer: its rows are missing"]
        finally:
            os.kill(cluster.nodes[2].pid, signal.SIGCONT)
        # Without a quorum there is no oracle; these tables are there.
        writer.execute("BEGIN")
        writer.execute("INSERT INTO shown VALUES (9)")
        for node in cluster.nodes[1:]:
            node.kill()
        with ThreadPoolExecutor(1) as pool:
            ending = pool.submit(writer.execute, "COMMIT")
            wait_until(lambda: rows(first, "SELECT statement FROM system.transactions WHERE state = 'committing'") == [("COMMIT",)])
            writer.cancel()
            assert isinstance(ending.exception(timeout=30), dsdb.Error)
        del first.notices[:]
        assert rows(first, query) == []
        assert len(first.notices) == 2
        assert rows(first, "SELECT value FROM system.settings WHERE name = 'timezone'") == [("UTC",)]
        assert rows(first, "SELECT count(*) FROM system.locks") == [(0,)]
    finally:
        for connection in connections:
            connection.close()
        for node in cluster.nodes[1:]:
            if not node.is_running:
                node.start()


def test_ranges_are_whole_after_a_split_and_known_without_their_node(tmp_path: Path) -> None:
    with ProcessCluster(tmp_path, nodes=2) as cluster:
        holder, other = cluster.nodes
        with dsdb.connect(f"dsdb://{holder.address}", autocommit=True) as first, dsdb.connect(f"dsdb://{other.address}") as second:
            first.execute("CREATE TABLE t (id INT PRIMARY KEY)")
            described = "SELECT start_key, end_key FROM system.ranges ORDER BY range_id"
            assert rows(second, described) == [("/min", "/table"), ("/table", "/max")]
            first.execute("ALTER TABLE t SPLIT AT VALUES (5)")
            # The other node has heard of the left side at most.
            whole = [("/min", "/table"), ("/table", "/table/t/1/5"), ("/table/t/1/5", "/max")]
            assert rows(second, described) == whole
            holder.kill()
            wait_until(lambda: rows(second, "SELECT node_id FROM system.nodes WHERE NOT is_live") == [(holder.node_id,)])
            led = "SELECT start_key, end_key, leaseholder, replicas FROM system.ranges ORDER BY range_id"
            assert rows(second, led) == [(start, end, None, f"{{{holder.node_id}}}") for start, end in whole]
            assert rows(second, "SELECT node_id, ranges FROM system.nodes ORDER BY 1") == [(holder.node_id, 3), (other.node_id, 0)]
