"""Block intents in the protocol simulator: seeds hold every property, what is rare happens, and what failed once holds.

These are few and short.  A search (`python -m tests.sim.protocol_sim --search MINUTES --ingests [--elastic]`) says what of `RARE_INGESTS`
it has never seen.
"""

import logging
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.sim.ingest_events import RARE_INGESTS
from tests.sim.protocol_sim import simulate

SEEDS: tuple[tuple[int, float, tuple[str, ...]], ...] = (
    (2, 25.0, ("gateway", "transfer")),
    (4, 25.0, ("gateway", "power")),
    (5, 15.0, ("storm", "late")),
    (6, 25.0, ("crash", "split")),
)
AT_LEAST = 3
"""Of everything that is rare, over all seeds."""
SELDOM = {
    "rare: gateway died while it laid blocks": 2,
    "rare: block intent laid after its transaction was aborted": 0,
    "rare: block intent settled as it was old": 0,
    "rare: block intent laid where a replica had something": 0,
    "rare: block intent met by a split": 0,
    "rare: block of a fold parted again in one batch": 0,
    "rare: range split under rows that were being laid": 0,
}
"""But of these, which need a moment, or more time, than these seeds have."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Nodes that die say so."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_ingests_are_whole_or_not_there_and_rare_events_happen() -> None:
    events: Counter[str] = Counter()
    for seed, seconds, faults in SEEDS:
        simulate(seed, seconds, faults, clients=("registers",), events=events, ingests=True)
    too_few = {name: events[name] for name in RARE_INGESTS if events[name] < SELDOM.get(name, AT_LEAST)}
    assert not too_few, too_few


FAILED_ONCE: tuple[tuple[int, float, tuple[str, ...]], ...] = (
    # A Raft snapshot left the block intents that stood in the replica that it replaced.
    (38, 5.0, ("partition", "ghost")),
)


@pytest.mark.parametrize(("seed", "seconds", "faults"), FAILED_ONCE)
def test_what_failed_once_holds(seed: int, seconds: float, faults: tuple[str, ...]) -> None:
    simulate(seed, seconds, faults, clients=("registers",), ingests=True)
