"""Clusters of real processes, started once: each test finds all nodes running and every range led, whatever the one before it did."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dsdb.cli.processes import NodeProcess, ProcessCluster
from tests.cluster.cut_cluster import CutCluster, ask, wait_until


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessCluster]:
    with ProcessCluster(tmp_path_factory.mktemp("cluster"), nodes=3, http=True) as found:
        found.wait_replicated(3)
        yield found


@pytest.fixture
def cluster(shared_cluster: ProcessCluster) -> Iterator[ProcessCluster]:
    """Three nodes, every range on all of them; tables of other tests are there too."""
    yield shared_cluster
    restore(shared_cluster.nodes)


@pytest.fixture(scope="session")
def shared_cuttable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CutCluster]:
    with CutCluster(tmp_path_factory.mktemp("cut")) as found:
        yield found


@pytest.fixture
def cuttable(shared_cuttable: CutCluster) -> Iterator[CutCluster]:
    """The same, with links that can be cut; in the end they are healed."""
    yield shared_cuttable
    shared_cuttable.network.heal()
    shared_cuttable.network.delay_s = 0.0
    restore(shared_cuttable.nodes)


def restore(nodes: Sequence[NodeProcess]) -> None:
    """Start what does not run, and wait until each node knows who leads every range."""
    with ThreadPoolExecutor(len(nodes)) as pool:
        list(pool.map(NodeProcess.start, [node for node in nodes if not node.is_running]))
    for node in nodes:
        wait_until(knows_all_leaders(node))


def knows_all_leaders(node: NodeProcess) -> Callable[[], bool]:
    return lambda: all(isinstance(leader, int) for (leader,) in ask(f"dsdb://{node.address}", "SHOW RANGES", column=3))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"
