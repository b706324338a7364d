"""Every planted fault can still be planted: what it replaces is where it was.  Whether it is found is `make mutants`' affair."""

from collections.abc import Callable

import pytest

from tests.sim import elastic_mutants, fold_mutants, ingest_mutants, node_mutants, protocol_mutants

PLANTED = (*protocol_mutants.MUTANTS, *elastic_mutants.MUTANTS, *fold_mutants.MUTANTS, *ingest_mutants.MUTANTS, *node_mutants.MUTANTS)
PLANTS = [mutant.plant for mutant in PLANTED]


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: f"{plant.__module__.rpartition('.')[2]}-{plant.__name__}")
def test_a_fault_can_be_planted(plant: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
