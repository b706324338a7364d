"""Block intents in the protocol simulator: what failed once holds."""

import logging
from collections.abc import Iterator

import pytest

from tests.sim.protocol_sim import simulate


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Nodes that die say so."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


FAILED_ONCE: tuple[tuple[int, float, tuple[str, ...], bool], ...] = (
    # A Raft snapshot left the block intents that stood in the replica that it replaced.
    (38, 5.0, ("partition", "ghost"), False),
)


@pytest.mark.parametrize(("seed", "seconds", "faults", "elastic"), FAILED_ONCE)
def test_what_failed_once_holds(seed: int, seconds: float, faults: tuple[str, ...], elastic: bool) -> None:
    simulate(seed, seconds, faults, clients=("registers",), elastic=elastic, ingests=True)
