"""Real processes: start, join, kill -9, restart, and what is said when something cannot be done."""

import json
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import dsdb
from dsdb.cli.processes import NodeProcess, ProcessCluster
from tests.cluster.writer import Writer


def run_start(*arguments: str) -> tuple[int, str]:
    """Run `dsdb start` that is expected to end by itself; give its exit code and what it said."""
    command = [sys.executable, "-m", "dsdb.cli", "start", "--http", "off", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    return done.returncode, said


def test_every_range_is_on_three_nodes_and_sql_works_through_each(cluster: ProcessCluster) -> None:
    with dsdb.connect(cluster.url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE each_node (id INT PRIMARY KEY, node INT)")
    for number, node in enumerate(cluster.nodes):
        with dsdb.connect(f"dsdb://{node.address}", autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute("INSERT INTO each_node VALUES (?, ?)", (number, node.node_id))
    for node in cluster.nodes:
        with dsdb.connect(f"dsdb://{node.address}", autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT id, node FROM each_node ORDER BY id")
            assert cursor.fetchall() == [(0, 1), (1, 2), (2, 3)]
            cursor.execute("SHOW RANGES")
            names = [column[0] for column in cursor.description or ()]
            assert all(row[names.index("replicas")] == "{1,2,3}" for row in cursor.fetchall())


def test_a_table_made_through_one_node_is_there_at_once_through_the_others(cluster: ProcessCluster) -> None:
    """B17: a default that is NULL, or a table that is not there, right after CREATE."""
    connections = [dsdb.connect(f"dsdb://{node.address}", autocommit=True) for node in cluster.nodes]
    try:
        for number in range(3):
            with connections[number % 3].cursor() as cursor:
                cursor.execute(f"CREATE TABLE fresh{number} (id INT PRIMARY KEY, v INT NOT NULL DEFAULT 7)")
            with connections[(number + 1) % 3].cursor() as cursor:
                cursor.execute(f"INSERT INTO fresh{number} (id) VALUES (1)")
            with connections[(number + 2) % 3].cursor() as cursor:
                cursor.execute(f"SELECT v FROM fresh{number} WHERE id = 1")
                assert cursor.fetchall() == [(7,)]
                cursor.execute(f"DROP TABLE fresh{number}")
            with connections[number % 3].cursor() as cursor, pytest.raises(dsdb.ProgrammingError, match="does not exist"):
                cursor.execute(f"SELECT * FROM fresh{number}")
    finally:
        for connection in connections:
            connection.close()


def test_statements_run_over_several_ranges_on_several_leaseholders(cluster: ProcessCluster) -> None:
    with dsdb.connect(cluster.url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE spread (id INT PRIMARY KEY, grp INT, v TEXT)")
        cursor.execute("ALTER TABLE spread SPLIT AT VALUES (100), (200), (300)")
        for start in range(0, 400, 100):
            values = ", ".join(f"({number}, {number % 7}, 'v{number}')" for number in range(start, start + 100))
            cursor.execute(f"INSERT INTO spread VALUES {values}")
        cursor.execute("SELECT count(*), sum(id), min(v) FROM spread")
        assert cursor.fetchall() == [(400, 79800, "v0")]
        cursor.execute("SELECT id FROM spread WHERE id BETWEEN 95 AND 105 ORDER BY id")
        assert cursor.fetchall() == [(number,) for number in range(95, 106)]
        cursor.execute("UPDATE spread SET v = 'x' WHERE id IN (1, 399)")
        assert cursor.rowcount == 2
        cursor.execute("SELECT count(*) FROM spread WHERE v = 'x'")
        assert cursor.fetchall() == [(2,)]
        with connection.transaction():
            cursor.execute("UPDATE spread SET v = 'y' WHERE id = 1")
            cursor.execute("UPDATE spread SET v = 'y' WHERE id = 399")
            # A stage on other nodes sees what is only buffered here.
            cursor.execute("SELECT count(*) FROM spread WHERE v = 'y'")
            assert cursor.fetchall() == [(2,)]
        with dsdb.connect(cluster.url) as elsewhere:
            assert elsewhere.execute("SELECT count(*) FROM spread WHERE v = 'y'").fetchall() == [(2,)]
        cursor.execute("DELETE FROM spread WHERE id BETWEEN 100 AND 150")
        cursor.execute("SELECT count(*) FROM spread")
        assert cursor.fetchall() == [(349,)]


@pytest.mark.parametrize("position", [0, 1, 2])
def test_nothing_acknowledged_is_lost_when_a_node_is_killed(cluster: ProcessCluster, position: int) -> None:
    table = f"kill{position}"
    with dsdb.connect(cluster.url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {table} (n INT PRIMARY KEY)")
    victim = cluster.nodes[position]
    others = ",".join(node.address for node in cluster.nodes if node is not victim)
    writer = Writer(f"dsdb://{others}", table)
    writer.start()
    writer.wait_acknowledged(30)
    victim.kill()
    writer.wait_acknowledged(100)
    victim.start()
    writer.wait_acknowledged(30)
    writer.stop()
    writer.check(f"dsdb://{victim.address}")
    assert writer.longest_pause_s < 10


def test_health_and_metrics(cluster: ProcessCluster) -> None:
    for node in cluster.nodes:
        with urllib.request.urlopen(f"http://{node.http_address}/health", timeout=5) as response:
            health = json.load(response)
        assert health["status"] == "ok"
        assert health["node"] == node.node_id
        with urllib.request.urlopen(f"http://{node.http_address}/metrics", timeout=5) as response:
            text = response.read().decode()
        assert "dsdb_loop_lag_p99_seconds" in text
        assert "dsdb_store_leases" in text


def test_a_client_fails_over_to_another_host_of_its_url(cluster: ProcessCluster) -> None:
    with dsdb.connect(f"dsdb://127.0.0.1:1,{cluster.nodes[0].address}", autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        assert cursor.fetchall() == [(1,)]


def test_a_node_restarts_with_what_it_had(store: Path) -> None:
    node = NodeProcess(store).start()
    try:
        with dsdb.connect(f"dsdb://{node.address}", autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute("CREATE TABLE t (id INT PRIMARY KEY, v TEXT)")
            cursor.execute("INSERT INTO t VALUES (1, 'kept')")
        for end in (node.terminate, node.kill):
            end()
            node.start()
            with dsdb.connect(f"dsdb://{node.address}", autocommit=True) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT v FROM t WHERE id = 1")
                assert cursor.fetchall() == [("kept",)]
    finally:
        node.terminate()


def test_what_cannot_start_says_why_and_ends(cluster: ProcessCluster, store: Path) -> None:
    taken = cluster.nodes[0].address
    expected = (
        (("--store", str(store), "--listen", taken), 1, f"cannot listen at {taken}"),
        (("--store", str(cluster.nodes[0].store), "--listen", "127.0.0.1:0"), 1, "in use by another process"),
        (("--store", str(store.with_name("open")), "--listen", "0.0.0.0:0"), 2, "--insecure"),
        (("--store", str(store.with_name("bad")), "--listen", "127.0.0.1:x"), 2, "is not an address"),
    )
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda case: run_start(*case[0]), expected))
    for (_, code, reason), (ended, said) in zip(expected, ends):
        assert (ended, reason in said) == (code, True), said


def test_a_store_of_another_cluster_does_not_join(cluster: ProcessCluster, store: Path) -> None:
    node = NodeProcess(store).start()
    node.terminate()
    code, said = run_start("--store", str(store), "--listen", "127.0.0.1:0", "--join", cluster.nodes[0].address)
    assert code == 1
    assert "another cluster" in said
