"""/health says whether a node can serve: with a quorum, without, with one again, and while it stops."""

import json
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

import dsdb
from dsdb.cli.processes import NodeProcess, ProcessCluster
from tests.cluster.cut_cluster import wait_until
from tests.cluster.test_driver_faults import LONG


def health(node: NodeProcess) -> tuple[int, str | None]:
    try:
        with urllib.request.urlopen(f"http://{node.http_address}/health", timeout=5) as response:
            status, body = response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            status, body = error.code, json.load(error)
    assert body["status"] == ("ok" if status == 200 else "unavailable")
    return status, body["reason"]


def test_a_node_without_a_quorum_says_that_it_cannot_serve(cluster: ProcessCluster) -> None:
    first, *others = cluster.nodes
    assert health(first) == (200, None)
    for node in others:
        node.kill()
    wait_until(lambda: health(first)[0] == 503, timeout_s=15)
    assert "the oracle cannot be reached" in str(health(first)[1])
    for node in others:
        node.start()
    wait_until(lambda: [health(node)[0] for node in cluster.nodes] == [200, 200, 200], timeout_s=15)


def test_a_node_that_stops_says_so(cluster: ProcessCluster) -> None:
    leaving = cluster.nodes[2]
    with dsdb.connect(f"dsdb://{leaving.address}", autocommit=True) as connection, ThreadPoolExecutor(2) as pool:
        running = pool.submit(connection.execute, LONG)
        threading.Event().wait(0.3)
        assert health(leaving) == (200, None)
        stopping = pool.submit(leaving.terminate)
        # It waits for the statement.
        wait_until(lambda: health(leaving) == (503, "the node is stopping"), timeout_s=4)
        with pytest.raises(dsdb.OperationalError):
            running.result()
        stopping.result()
    leaving.start()
