"""`dsdb node`, `dsdb range` and settings of the cluster, from processes to processes: what they say, and what comes of it."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import dsdb
from tests.cluster.cut_cluster import ask, wait_until
from tests.cluster.test_elastic import DEAD_AFTER_S, PATIENCE_S, Nodes

RANGES = 12
LAG_LEAST_S = 4.8
"""By default a timestamp is closed after 3 s, and read after four intervals of 0.45 s more."""


@pytest.fixture(scope="module")
def steered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """Four nodes, and table t in many ranges."""
    found = Nodes(tmp_path_factory.mktemp("steered"))
    try:
        found.add()
        found.add_several(3)
        wait_until(found.have(1, 2, 3, 4), timeout_s=PATIENCE_S)
        execute(found, "CREATE TABLE t (id INT PRIMARY KEY, v TEXT)")
        execute(found, f"ALTER TABLE t SPLIT AT VALUES {', '.join(f'({number}0)' for number in range(1, RANGES))}")
        yield found
    finally:
        for node in reversed(found.nodes):
            node.terminate()


def execute(cluster: Nodes, *statements: str) -> None:
    with dsdb.connect(cluster.url, autocommit=True) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def command(cluster: Nodes, *words: str) -> list[str]:
    return [sys.executable, "-m", "dsdb.cli", *words, "--url", cluster.url]


def run(cluster: Nodes, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(cluster, *words), capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def said(cluster: Nodes, *words: str) -> str:
    done = run(cluster, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_node_is_drained_and_comes_back(steered: Nodes) -> None:
    assert "node 2 is drained" in said(steered, "node", "drain", "2")
    assert steered.states()[2][0::2] == ("draining", 0)
    assert "draining" in said(steered, "node", "ls")
    assert "node 2 is active" in said(steered, "node", "recommission", "2")
    wait_until(lambda: bool(steered.states()[2][2]), timeout_s=PATIENCE_S)


def test_waiting_is_interrupted_and_the_node_is_emptied_all_the_same(steered: Nodes) -> None:
    process = subprocess.Popen(command(steered, "node", "decommission", "3"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "replicas left" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    told, rest = process.communicate(timeout=30)
    if process.returncode == 0:
        assert "node 3 is decommissioned" in told, "the last replica went before the signal came"
    else:
        assert process.returncode == 130
        assert "Interrupted. Node 3 goes on giving its replicas away. To wait again: dsdb node decommission 3" in rest
    assert steered.states()[3][0] in ("decommissioning", "decommissioned")
    (job,) = ask(steered.url, "SELECT node_id, unit FROM system.jobs WHERE kind = 'decommission'") or [(3, "replicas")]
    assert job == (3, "replicas")
    assert "node 3 is decommissioned" in said(steered, "node", "decommission", "3")
    assert steered.states()[3] == ("decommissioned", 0, 0)
    refused = run(steered, "node", "decommission", "2")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "too few for 3 replicas" in refused.stderr
    assert "node 3 is active" in said(steered, "node", "recommission", "3")
    wait_until(lambda: bool(steered.states()[3][1]), timeout_s=PATIENCE_S)
    reasons = ask(steered.url, "SELECT what FROM system.events WHERE kind = 'replicas' AND is_done")
    assert any("node 3 is decommissioned" in str(what) or "node 3 is being decommissioned" in str(what) for (what,) in reasons)


def test_ranges_are_listed_shown_and_scattered(steered: Nodes) -> None:
    assert "spread evenly" in said(steered, "range", "scatter", "t")
    leases = [row[0] for row in ask(steered.url, "SELECT count(*) FROM system.leases WHERE table_name = 't' GROUP BY node_id")]
    assert sum(map(int, map(str, leases))) >= RANGES - 1
    listed = said(steered, "range", "ls", "t")
    assert len([line for line in listed.splitlines() if "{" in line]) == RANGES
    shown = said(steered, "range", "show", "1")
    assert "range_id" in shown
    assert "what was tried" in shown
    for words, error in ((("show", "999"), "no range 999"), (("scatter", "999"), "no range 999"), (("ls", "nope"), "does not exist")):
        refused = run(steered, "range", *words)
        assert refused.returncode == 1
        assert error in refused.stderr


def test_settings_hold_at_all_nodes_within_seconds(steered: Nodes) -> None:
    """The lag of reads of the past shrinks at each node; the node that coordinates calls a silent one dead."""
    execute(steered, "CREATE TABLE past (n SERIAL PRIMARY KEY)")
    execute(steered, "SET CLUSTER SETTING dead_after = '1h'", "SET CLUSTER SETTING closed_lag = '0.5s'")
    victim = steered.nodes[3]
    try:
        with ThreadPoolExecutor(len(steered.nodes)) as pool:
            assert all(pool.map(lambda node: has_short_lag(steered, node.address), steered.nodes)), "as if nothing had been set"
        victim.kill()
        wait_until(lambda: silence_s(steered, victim.node_id) > DEAD_AFTER_S + 0.2, timeout_s=20)
        assert liveness(steered, victim.node_id) == "suspect", "as if the setting before this one had not been taken with it"
        execute(steered, f"SET CLUSTER SETTING dead_after = '{DEAD_AFTER_S}s'")
        wait_until(lambda: liveness(steered, victim.node_id) == "dead", timeout_s=20)
    finally:
        execute(steered, "RESET CLUSTER SETTING closed_lag", "RESET CLUSTER SETTING dead_after")
        victim.start()


def has_short_lag(cluster: Nodes, address: str) -> bool:
    """Measure at a node until it obeys the setting: it may take some seconds, and a busy machine more than one try."""
    return any(lag_s(cluster, f"dsdb://{address}") < LAG_LEAST_S for _ in range(4))


def lag_s(cluster: Nodes, url: str) -> float:
    """Measure how long a row is not seen by reads of the past at a node."""
    ((number,),) = ask(cluster.url, "INSERT INTO past DEFAULT VALUES RETURNING n")
    began = time.monotonic()
    query = f"SELECT n FROM past AS OF SYSTEM TIME follower_read_timestamp() WHERE n = {number}"
    wait_until(lambda: has_row(url, query), timeout_s=PATIENCE_S)
    return time.monotonic() - began


def has_row(url: str, query: str) -> bool:
    try:
        return bool(ask(url, query))
    except dsdb.Error:
        return False


def silence_s(cluster: Nodes, node_id: int) -> float:
    ((found,),) = ask(cluster.url, f"SELECT silence_s FROM system.stores WHERE node_id = {node_id}")
    return float(str(found))


def liveness(cluster: Nodes, node_id: int) -> object:
    ((found,),) = ask(cluster.url, f"SELECT liveness FROM system.stores WHERE node_id = {node_id}")
    return found
