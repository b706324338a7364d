"""Planted faults in folding, and in what must be right where there are columnar blocks: `make mutants`.

Not here, as `tests/storage/test_columnar_model.py` finds them, and seeds do not within minutes: tombstones over blocks that are collected
(what is old enough is folded before), and histories that are dropped (all replicas drop alike).  Nor blocks that
come by a Raft snapshot and are not noticed: the replica's next fold does, within a second.  Nor, as nothing is wrong then: versions
above the resolved timestamp that are folded.  Of one key they stand in order whatever is folded, readers of the past find them in the
history, and what a crash takes it takes from the end.
"""

from collections.abc import Iterator
from typing import Any

import pytest

from dsdb.storage import mvcc
from dsdb.storage.columnar import upkeep
from dsdb.storage.engine.port import Family
from dsdb.store import checksum, chunks, folding, snapshot, store
from tests.sim.protocol_mutants import Mutant


def splits_cut_no_block(patch: pytest.MonkeyPatch) -> None:
    """The block that straddles the key of a split stays whole."""
    patch.setattr(upkeep, "cut", lambda blocks, batch, bound: False)


def batches_outlive_splits(patch: pytest.MonkeyPatch) -> None:
    """What was folded is written although the range was split, cleared or collected meanwhile."""
    patch.setattr(folding, "_stamp", lambda replica: (0, 0))


def checksums_are_of_stored_bytes(patch: pytest.MonkeyPatch) -> None:
    """Replicas that are folded differently differ."""

    def stored(blocks: Any, span: Any, *, chunk_rows: int) -> Iterator[Any]:
        for family in (Family.DELTA, Family.BLOCK):
            yield from blocks.reader.scan(family, span.start, span.end, chunk_rows=chunk_rows)

    patch.setattr(checksum, "plain_entries", stored)


def raft_snapshots_are_of_rows_alone(patch: pytest.MonkeyPatch) -> None:
    """What is folded is not sent."""
    patch.setattr(chunks, "_FAMILIES", (Family.DELTA,))


def blocks_outlive_their_replica(patch: pytest.MonkeyPatch) -> None:
    """Where a replica is removed, or replaced by a Raft snapshot, only its rows go."""
    for module in (store, snapshot):
        patch.setattr(module, "clear_keys", mvcc.clear)


SPLITS = ("splits", "split", "transfer", "crash")
MUTANTS = (
    Mutant(splits_cut_no_block, SPLITS),
    Mutant(batches_outlive_splits, SPLITS, ("lists", "bank", "registers")),
    Mutant(checksums_are_of_stored_bytes, ("crash",)),
    Mutant(raft_snapshots_are_of_rows_alone, ("snapshots", "members"), seconds=40.0),
    Mutant(blocks_outlive_their_replica, ("snapshots", "members"), seconds=40.0),
)
