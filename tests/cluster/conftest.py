"""Clusters of real processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from dsdb.cli.processes import ProcessCluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessCluster]:
    """Three nodes, every range on all of them."""
    with ProcessCluster(tmp_path_factory.mktemp("cluster"), nodes=3, http=True) as found:
        found.wait_replicated(3)
        yield found


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"
