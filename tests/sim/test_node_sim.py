"""Seeds of whole nodes hold every property; the same seed gives the same trace; planted faults are found in `node_mutants`."""

import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.sim.node_sim import simulate

SECONDS = 5.0
FAULTS = ("crash", "resets", "transfer", "split", "storm")
CLIENTS = (("insert", "count", "append"), ("append", "lists", "transfers"), ("pairs", "rows"))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Nodes that die say so."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_properties_hold_under_faults() -> None:
    events: Counter[str] = Counter()
    for number, clients in enumerate(CLIENTS):
        simulate(60 + number, SECONDS, FAULTS, clients=clients, events=events)
    for kind in ("append acknowledged", "increment acknowledged", "insert acknowledged", "txn: parallel_commits"):
        assert events[kind] > 20, events
    for kind in ("lists changed", "money moved", "pairs", "rows inserted", "rows scanned"):
        assert events[kind] > 10, events


def test_hosts_that_leave_and_come_back_lose_nothing_and_leave_nothing_behind() -> None:
    events: Counter[str] = Counter()
    for seed in (1, 2, 3, 4):
        events.update(simulate(seed, 8, ("members",), clients=("insert", "count")).events)
    assert events["rare: host was to be decommissioned"] >= 1, events
    assert events["rare: host was away for long"] >= 1, events
    assert events["insert acknowledged"] > 100, events


def test_without_a_quorum_statements_fail_in_time_and_all_comes_back() -> None:
    """B22: statements hang while a range has no quorum."""
    model = simulate(4, 4, ("quorum",), clients=("insert", "count"))
    assert model.events["fault: quorum"] >= 1
    assert model.events["error: CannotConnectNowError"] >= 1


def test_a_wall_clock_that_jumps_by_an_hour_stops_and_breaks_nothing() -> None:
    """B24: nodes end, or reads break, when clocks are apart."""
    model = simulate(3, 4, ("wall clock", "transfer"), clients=("count", "append", "transfers"))
    assert model.events["fault: wall clock"] >= 1, model.events
    for kind in ("append acknowledged", "increment acknowledged", "money moved"):
        assert model.events[kind] > 10, model.events


def test_same_seed_same_trace_whatever_the_hash_seed() -> None:
    script = "from tests.sim.node_sim import simulate; m = simulate(6, 2); print(m.trace, sorted(m.events.items()))"
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    traces = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": root},
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("0", "77")
    }
    assert len(traces) == 1, traces


def test_changes_of_the_catalogue_in_transactions() -> None:
    model = simulate(12, 3, ("transfer", "crash"), clients=("ddl",))
    assert model.events["jobs drained"] >= 1, model.events
    assert model.events["table made: there"] >= 2, model.events
