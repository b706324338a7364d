"""Nodes come, die for good and are decommissioned, as processes: ranges follow, and nothing that was acknowledged is lost."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio

import dsdb
from dsdb.cli.processes import NodeProcess
from dsdb.coordinator.view import NodeState
from dsdb.env import SystemClock, TcpNetwork, parse_address
from dsdb.kv.errors import InvalidRequest, KvError
from dsdb.kv.ids import NodeId
from dsdb.node.administration import NodesReply, NodesRequest, SetNodeStateRequest, administer
from tests.cluster.cut_cluster import ask, wait_until
from tests.cluster.writer import Writer

DEAD_AFTER_S = 3
PATIENCE_S = 90.0


class Nodes:
    """A cluster that nodes are added to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.nodes: list[NodeProcess] = []

    def add(self, *options: str) -> NodeProcess:
        return self._make(*options).start()

    def add_several(self, count: int) -> None:
        """Start so many at the same time, where one is there to join: their ids are in any order."""
        made = [self._make() for _ in range(count)]
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(NodeProcess.start, made))

    def _make(self, *options: str) -> NodeProcess:
        join = [self.nodes[0].address] if self.nodes else []
        store = self.directory / f"node{len(self.nodes) + 1}"
        node = NodeProcess(store, join=join, options=("--dead-after", str(DEAD_AFTER_S), *options))
        self.nodes.append(node)
        return node

    @property
    def url(self) -> str:
        return f"dsdb://{','.join(node.address for node in self.nodes if node.is_running)}"

    def replicas(self) -> list[set[int]]:
        texts = ask(self.url, "SELECT replicas FROM system.ranges", column=0)
        return [{int(number) for number in str(text).strip("{}").split(",")} for (text,) in texts]

    def have(self, *nodes: int, count: int = 3) -> Callable[[], bool]:
        return lambda: all(len(found) == count and found <= set(nodes) for found in self.replicas())

    def states(self) -> dict[int, tuple[object, ...]]:
        with dsdb.connect(self.url, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT node_id, state, ranges, leases FROM system.nodes")
            return {row[0]: row[1:] for row in cursor.fetchall()}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Nodes]:
    found = Nodes(tmp_path)
    try:
        for _ in range(3):
            found.add("--locality", f"region=eu,zone=z{len(found.nodes)}")
        wait_until(found.have(1, 2, 3), timeout_s=PATIENCE_S)
        yield found
    finally:
        for node in reversed(found.nodes):
            node.terminate()


def call(node: NodeProcess, request: NodesRequest | SetNodeStateRequest) -> NodesReply:
    async def run() -> NodesReply:
        return await administer(TcpNetwork(), SystemClock(), parse_address(node.address, default_port=0), request)

    return trio.run(run)


def problems(cluster: Nodes) -> list[tuple[object, ...]]:
    return [(node_id, what) for _, node_id, what in ask(cluster.url, "SHOW CONSISTENCY FROM STRUCTURE")]


def test_ranges_follow_nodes_that_come_die_and_are_decommissioned(cluster: Nodes) -> None:
    with dsdb.connect(cluster.url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE t (id INT PRIMARY KEY, v TEXT)")
        cursor.execute("ALTER TABLE t SPLIT AT VALUES (10), (20), (30), (40)")
        cursor.execute("CREATE TABLE kept (n INT PRIMARY KEY)")
    writer = Writer(cluster.url, table="kept")
    writer.start()
    try:
        cluster.add("--locality", "region=eu,zone=z1")
        wait_until(lambda: any(4 in found for found in cluster.replicas()), timeout_s=PATIENCE_S)
        cluster.nodes[1].kill()
        wait_until(cluster.have(1, 3, 4), timeout_s=PATIENCE_S)
        assert cluster.states()[2][1] == 0
        with pytest.raises(KvError) as refused:
            call(cluster.nodes[2], SetNodeStateRequest(NodeId(3), NodeState.DECOMMISSIONING))
        assert isinstance(refused.value.detail, InvalidRequest)
        assert "add a node first" in refused.value.detail.reason
        cluster.add("--locality", "region=eu,zone=z2")
        wait_until(lambda: any(5 in found for found in cluster.replicas()), timeout_s=PATIENCE_S)
        call(cluster.nodes[3], SetNodeStateRequest(NodeId(3), NodeState.DECOMMISSIONING))
        wait_until(cluster.have(1, 4, 5), timeout_s=PATIENCE_S)
        wait_until(lambda: cluster.states()[3] == ("decommissioned", 0, 0), timeout_s=PATIENCE_S)
        cluster.nodes[2].terminate()
        writer.wait_acknowledged(20)
        for what in ("store 2 is dead", "node 3 is to be decommissioning", "node 3 is decommissioned: it has no replica left"):
            query = f"SELECT what FROM system.events WHERE what LIKE '%{what}'"
            wait_until(lambda query=query: bool(ask(cluster.url, query)), timeout_s=PATIENCE_S)  # type: ignore[misc]
        # Who was decommissioned, and is stopped, is missed by nobody; who died is, until it is decommissioned as well.
        assert problems(cluster) == [(2, "it does not answer")]
        call(cluster.nodes[3], SetNodeStateRequest(NodeId(2), NodeState.DECOMMISSIONING))
        wait_until(lambda: problems(cluster) == [], timeout_s=PATIENCE_S)
    finally:
        writer.stop()
    writer.check(cluster.url)


def test_a_draining_node_gives_its_leases_away_and_takes_no_sessions(cluster: Nodes) -> None:
    leader = next(number for number, row in cluster.states().items() if row[2])
    node, other = cluster.nodes[leader - 1], cluster.nodes[leader % 3]
    call(other, SetNodeStateRequest(NodeId(leader), NodeState.DRAINING))

    def leases() -> int:
        return next(status.leases for status in call(other, NodesRequest()).nodes if status.node_id == leader)

    wait_until(lambda: leases() == 0, timeout_s=PATIENCE_S)
    with pytest.raises(dsdb.Error, match="draining"):
        dsdb.connect(f"dsdb://{node.address}")
    assert cluster.have(1, 2, 3)()
    call(other, SetNodeStateRequest(NodeId(leader), NodeState.ACTIVE))
    wait_until(lambda: ask(f"dsdb://{node.address}", "SELECT 1") == [(1,)], timeout_s=PATIENCE_S)
