"""Planted faults that the protocol simulator must find: `make mutants`.

Those of `node_mutants` that it finds sooner than the simulation of whole nodes does, and those that whole nodes do not show at all.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from dsdb.raft.node import RaftNode
from dsdb.sql.errors import SqlError
from dsdb.storage.errors import StorageError
from dsdb.store import keeper
from dsdb.store.liveness import Liveness
from tests.sim import node_mutants
from tests.sim.node_mutants import _bounded, _TooLong
from tests.sim.protocol_sim import simulate

SEED_S = 60.0
"""Time of the processor after which a seed is given up."""


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Nodes that die say so."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def votes_in_spite_of_a_promise(patch: pytest.MonkeyPatch) -> None:
    """A replica campaigns and votes while its store's promise to the leader stands."""
    patch.setattr(RaftNode, "_is_bound", lambda self: self._is_barred)


def promises_are_forgotten_at_a_start(patch: pytest.MonkeyPatch) -> None:
    """A store votes at once after its start, though it may have promised not to."""
    patch.setattr(Liveness, "is_barred", lambda self, now: False)


def earlier_lives_are_heard(patch: pytest.MonkeyPatch) -> None:
    """What a dead process has sent, and comes late, sets the followers of its next life free."""
    patch.setattr(keeper, "ENDED_LIVES_MAX", 0)


@dataclass(frozen=True)
class Mutant:
    plant: Callable[[pytest.MonkeyPatch], None]
    faults: tuple[str, ...]
    clients: tuple[str, ...] = ("lists",)
    seeds: int = 200
    """Within so many it must be found."""
    seconds: float = 60.0
    ingests: bool = False


MUTANTS = (
    Mutant(votes_in_spite_of_a_promise, ("usurp",)),
    Mutant(promises_are_forgotten_at_a_start, ("blackout", "chain"), ("lists", "bank")),
    Mutant(earlier_lives_are_heard, ("ghost",), ("lists", "bank")),
    Mutant(node_mutants.late_intents_become_versions, ("late",)),
    Mutant(node_mutants.oracle_starts_at_its_clock, ("clock", "oracle", "crash")),
)


def find(mutant: Mutant, limit_s: float = math.inf) -> tuple[int, BaseException] | None:
    """Give the seed that finds a planted fault within so many seconds of CPU, and what it found."""
    end = time.process_time() + limit_s
    with pytest.MonkeyPatch.context() as patch:
        mutant.plant(patch)
        for seed in range(1, mutant.seeds + 1):
            if time.process_time() > end:
                return None
            try:
                with _bounded(SEED_S):
                    simulate(seed, mutant.seconds, mutant.faults, clients=mutant.clients, ingests=mutant.ingests)
            except (AssertionError, SqlError, StorageError) as error:
                return seed, error
            except _TooLong:
                continue
    return None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.plant.__name__)
def test_planted_fault_is_found(mutant: Mutant) -> None:
    assert find(mutant) is not None, f"not found within {mutant.seeds} seeds"
