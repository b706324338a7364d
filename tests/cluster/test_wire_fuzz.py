"""Attacks on a node's port, shortly: `make fuzz-wire` has all of them."""

import pytest

from dsdb.cli.processes import ProcessCluster
from tests.wire.fuzz import WireFuzz

SHORT = (
    "sub-queries 100,000 deep",
    "a sum of 50,000 terms",
    "50,000 conditions",
    "nested comments",
    "a 100 MB text",
    "60 MB of spaces",
    "NUL in a text",
    "a lone surrogate",
    "an integer of 1,000,000 digits",
    "a decimal with a tiny exponent",
    "a huge exponent to store",
    "too few parameters",
    "parameter 1,000,000,000",
)

ATTEMPTS = 3
"""On a busy machine a lease may move, or a ping take long, without any attack; what an attack does, it does each time."""


@pytest.mark.slow
def test_attacks_on_a_port_are_noticed_by_nobody_else(cluster: ProcessCluster) -> None:
    for _ in range(ATTEMPTS):
        fuzz = WireFuzz(cluster, seed=4)
        fuzz.attack(seconds=0, rounds_min=1)
        fuzz.loris(300)
        fuzz.say(list(SHORT))
        fuzz.finish()
        if not fuzz.faults:
            break
    assert not fuzz.faults, fuzz.report()
