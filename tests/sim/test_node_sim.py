"""Seeds of whole nodes hold every property; the same seed gives the same trace; planted faults are found."""

import logging
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from dsdb.oracle import OracleClient
from dsdb.raft.node import RaftNode
from dsdb.raft.ready import Role
from dsdb.sql.errors import SqlError
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.timestamp import Timestamp
from dsdb.store import evaluate, state_machine
from dsdb.store.replica import Replica
from dsdb.store.timestamp_cache import TimestampCache
from tests.sim.histories import History, Violation
from tests.sim.node_sim import simulate

SEEDS = (1, 2, 3)
SECONDS = 5.0
MUTANT_SECONDS = 8.0


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Nodes that die say so."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def test_properties_hold_under_faults() -> None:
    events: Counter[str] = Counter()
    for seed in SEEDS:
        events.update(simulate(seed, SECONDS).events)
    for kind in ("append", "increment", "insert"):
        assert events[f"{kind} acknowledged"] > 30, events


def test_without_a_quorum_statements_fail_in_time_and_all_comes_back() -> None:
    model = simulate(4, 4, ("quorum",))
    assert model.events["fault: quorum"] >= 1
    assert model.events["error: CannotConnectNowError"] >= 1


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


# ---- The checker of histories ----


def history(*txns: tuple[dict[int, tuple[int, ...]], tuple[int, ...], int | None]) -> History:
    """Make a history of transactions one after the other, of (reads, appends, timestamp)."""
    made = History()
    for reads, appends, ts in txns:
        txn = made.begin()
        txn.reads, txn.appends = reads, appends
        if ts is not None:
            made.end(txn, ts)
    return made


def test_histories_that_are_serial_pass() -> None:
    serial = history(({1: ()}, (1,), 10), ({1: (1,)}, (), 20), ({1: (1,)}, (1,), None), ({1: (1, 3)}, (1,), 40))
    serial.check({1: (1, 3, 4)})


@pytest.mark.parametrize(
    ("made", "last"),
    [
        (history(({1: ()}, (1,), 10), ({1: ()}, (), 20)), {1: (1,)}),  # a stale read
        (history(({1: ()}, (1,), 20), ({1: (1,)}, (), 10)), {1: (1,)}),  # against real time
        (history(({1: ()}, (1,), 10)), {1: ()}),  # a lost write
        (history(({1: ()}, (1,), 10)), {1: (1, 1)}),  # applied twice
        (history(({1: ()}, (1,), 10), ({1: ()}, (1,), 20)), {1: (1, 2)}),  # a lost update
        (history(({1: ()}, (1,), None), ({1: (1,)}, (), 20)), {1: ()}),  # read, and gone
    ],
)
def test_histories_that_are_not_serial_are_found(made: History, last: dict[int, tuple[int, ...]]) -> None:
    with pytest.raises(Violation):
        made.check(last)


# ---- Planted faults ----


class NoOutcomes(dict[Any, Any]):
    """Outcomes of attempts that nobody finds again."""

    def get(self, key: object, default: object = None) -> Any:
        return default


def oracle_serves_late_joiners(patch: pytest.MonkeyPatch) -> None:
    """A request is served by a round that was sent before it was made."""
    fresh = OracleClient.fresh
    spare: dict[int, list[Timestamp]] = {}

    async def late(self: OracleClient, **options: Any) -> Timestamp:
        kept = spare.setdefault(id(self), [])
        if kept:
            await trio.lowlevel.checkpoint()
            return kept.pop()
        kept.append(await fresh(self, **options))
        return await fresh(self, **options)

    patch.setattr(OracleClient, "fresh", late)


def leases_start_without_low_water(patch: pytest.MonkeyPatch) -> None:
    """A new leaseholder takes writes below the reads that the old one served."""
    patch.setattr(TimestampCache, "raise_low", lambda self, ts: None)


def outcomes_are_ignored(patch: pytest.MonkeyPatch) -> None:
    """A commit that is sent again is applied again."""
    patch.setattr(evaluate, "recorded_outcome", lambda replica, request: None)
    patch.setattr(state_machine, "read_outcomes", lambda engine, keys: NoOutcomes())


def leases_are_not_checked(patch: pytest.MonkeyPatch) -> None:
    """A replica serves until it hears of another leader."""
    patch.setattr(RaftNode, "_has_active_quorum", lambda self: True)
    patch.setattr(Replica, "holds_lease", lambda self, now: self.raft.role is Role.LEADER and self.raft.term == self.lease_term)


def reads_leave_no_trace(patch: pytest.MonkeyPatch) -> None:
    """Writes go below reads that were served."""
    patch.setattr(TimestampCache, "note_key", lambda self, key, ts, attempt: None)


def syncs_do_nothing(patch: pytest.MonkeyPatch) -> None:
    """What is acknowledged is not on any disk."""
    patch.setattr(MemoryEngine, "sync", lambda self: None)


@dataclass(frozen=True)
class Mutant:
    plant: Callable[[pytest.MonkeyPatch], None]
    faults: tuple[str, ...]
    seeds: int = 4
    """Within so many it must be found."""


MUTANTS = (
    Mutant(oracle_serves_late_joiners, ("transfer",)),
    Mutant(leases_start_without_low_water, ("transfer",), 8),
    Mutant(outcomes_are_ignored, ("crash", "one-way out"), 8),
    Mutant(leases_are_not_checked, ("partition",)),
    Mutant(reads_leave_no_trace, ("transfer",)),
    Mutant(syncs_do_nothing, ("quorum",)),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.plant.__name__)
def test_planted_fault_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.plant(monkeypatch)
    for seed in range(1, mutant.seeds + 1):
        try:
            simulate(seed, MUTANT_SECONDS, mutant.faults)
        except (Violation, SqlError):
            return
    pytest.fail(f"not found within {mutant.seeds} seeds")
