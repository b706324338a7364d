"""SIGTERM, twice, and everything at once."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import dsdb
from dsdb.cli.processes import NodeProcess, ProcessCluster
from tests.cluster.cut_cluster import ask, wait_until
from tests.cluster.test_driver_faults import LONG
from tests.cluster.writer import Writer

STATEMENT = "SELECT count(*) FROM generate_series(1, 4000000) AS a(x) WHERE x % 7 = 3"
"""Some tenths of a second."""


@pytest.fixture
def url(cluster: ProcessCluster) -> str:
    return cluster.url


def leader(cluster: ProcessCluster, url: str) -> NodeProcess | None:
    """Give the node that is known to lead the range, at this moment."""
    ((node_id,),) = ask(url, "SHOW RANGES FROM TABLE stopping", column=3)
    return next((node for node in cluster.nodes if node.node_id == node_id), None)


def test_a_stopping_node_ends_its_statements_and_hands_its_leases_over(cluster: ProcessCluster, url: str) -> None:
    with dsdb.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE stopping (n INT PRIMARY KEY)")
    leaving = leader(cluster, url)
    assert leaving is not None
    stayers = "dsdb://" + ",".join(node.address for node in cluster.nodes if node is not leaving)
    writer = Writer(stayers, "stopping")
    writer.start()
    writer.wait_acknowledged(20)
    with dsdb.connect(f"dsdb://{leaving.address}", autocommit=True) as connection, ThreadPoolExecutor(1) as pool:
        running = pool.submit(lambda: connection.execute(STATEMENT).fetchall())
        threading.Event().wait(0.1)
        before = time.monotonic()
        leaving.terminate()
        # It went when another led: without the hand-over the others would first have to notice that it is gone.
        assert leader(cluster, stayers) not in (None, leaving)
        assert running.result() == [(571_429,)]
        assert time.monotonic() - before < 12
    writer.wait_acknowledged(20)
    writer.stop()
    assert not writer.unknown
    leaving.start()
    writer.check(url)


def test_a_second_sigterm_stops_at_once(cluster: ProcessCluster, url: str) -> None:
    victim = cluster.nodes[2]
    connection = dsdb.connect(f"dsdb://{victim.address}", autocommit=True)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(connection.execute, LONG)
        threading.Event().wait(0.3)
        began = time.monotonic()
        os.kill(victim.pid, signal.SIGTERM)
        threading.Event().wait(0.3)
        assert victim.is_running
        victim.terminate()
        assert time.monotonic() - began < 4.5  # the grace for statements alone is 5 s
        with pytest.raises(dsdb.OperationalError):
            running.result()


def test_all_nodes_restarted_at_once_keep_everything(cluster: ProcessCluster, url: str) -> None:
    with dsdb.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept (n INT PRIMARY KEY)")
        connection.execute("INSERT INTO kept VALUES " + ", ".join(f"({n})" for n in range(500)))
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(NodeProcess.terminate, cluster.nodes))
        list(pool.map(NodeProcess.start, cluster.nodes))
    wait_until(lambda: ask(url, "SELECT count(*) FROM kept") == [(500,)], timeout_s=30)
