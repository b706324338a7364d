"""Planted faults that the simulation of whole nodes must find: `make mutants`.

Each is what one rule is there for; a simulation that does not find it is blind to that rule.
"""

import logging
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
from tests.checkers.history import Violation
from tests.sim.node_sim import simulate

SECONDS = 8.0


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Nodes that die say so."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


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
            taken = kept.pop()
            await trio.lowlevel.checkpoint()
            return taken
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
    Mutant(outcomes_are_ignored, ("resets",)),
    Mutant(leases_are_not_checked, ("partition",)),
    Mutant(reads_leave_no_trace, ("transfer",)),
    Mutant(syncs_do_nothing, ("quorum",)),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.plant.__name__)
def test_planted_fault_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant.plant(monkeypatch)
    for seed in range(1, mutant.seeds + 1):
        try:
            simulate(seed, SECONDS, mutant.faults)
        except (Violation, SqlError):
            return
    pytest.fail(f"not found within {mutant.seeds} seeds")
