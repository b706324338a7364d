"""The in-memory engine: what a crash leaves, that it replays, and that it stays fast."""

import random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.engine.port import Family
from dsdb.storage.errors import StorageError

EVERYTHING = (b"", b"\xff" * 8)
Content = list[tuple[bytes, bytes]]
Changes = list[tuple[str, bytes, bytes]]

changes = st.lists(
    st.tuples(st.sampled_from(["put", "delete", "delete_range"]), st.binary(max_size=1), st.binary(max_size=2)), min_size=1, max_size=4
)
steps = st.lists(st.one_of(st.none(), changes), max_size=12)
"""Batches, and None where all is synced."""


def content(engine: MemoryEngine) -> Content:
    return [row for family in (Family.RAFT, Family.DELTA) for keys, values in engine.scan(family, *EVERYTHING) for row in zip(keys, values)]


@given(steps=steps, seed=st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_a_crash_keeps_a_prefix_of_the_batches_with_all_synced_ones(steps: list[Changes | None], seed: int) -> None:
    engine = MemoryEngine()
    possible = [content(engine)]
    for step in steps:
        if step is None:
            engine.sync()
            possible = possible[-1:]
            continue
        batch = engine.new_batch()
        for change, key, value in step:
            family = Family.RAFT if value[:1] > b"\x80" else Family.DELTA
            if change == "put":
                batch.put(family, key, value)
            elif change == "delete":
                batch.delete(family, key)
            else:
                batch.delete_range(family, key, value)
        engine.write(batch)
        possible.append(content(engine))
    survivor = engine.crash(random.Random(seed))
    left = content(survivor)
    assert left in possible
    # What the first crash left was on the disk: a second one takes nothing.
    assert content(survivor.crash(random.Random(seed))) == left


def test_crashes_lose_each_possible_suffix_and_replay() -> None:
    def left(seed: int) -> int:
        engine = MemoryEngine()
        for number in range(5):
            batch = engine.new_batch()
            batch.put(Family.META, bytes([number]), b"")
            engine.write(batch)
            if number == 1:
                engine.sync()
        survivor = engine.crash(random.Random(seed))
        return sum(len(keys) for keys, _ in survivor.scan(Family.META, *EVERYTHING))

    counts = [left(seed) for seed in range(40)]
    assert set(counts) == {2, 3, 4, 5}
    assert counts == [left(seed) for seed in range(40)]


def test_a_crashed_or_closed_engine_and_its_snapshots_are_of_no_use() -> None:
    engine = MemoryEngine()
    snapshot = engine.snapshot()
    engine.close()
    survivor = engine.crash(random.Random(0))
    for reader in (engine, snapshot):
        with pytest.raises(StorageError):
            reader.get(Family.META, b"key")
        with pytest.raises(StorageError):
            reader.first(Family.META, b"a", b"b")
        with pytest.raises(StorageError):
            reader.scan(Family.META, b"a", b"b")
    with pytest.raises(StorageError):
        engine.write(engine.new_batch())
    assert survivor.get(Family.META, b"key") is None


def test_released_snapshots_are_forgotten() -> None:
    engine = MemoryEngine()
    for number in range(1000):
        snapshot = engine.snapshot()
        batch = engine.new_batch()
        batch.put(Family.DELTA, number.to_bytes(2, "big"), b"value")
        engine.write(batch)
        assert snapshot.get(Family.DELTA, number.to_bytes(2, "big")) is None
        snapshot.release()
    assert engine.statistics()["snapshots"] == 0
    assert engine.statistics()["keys"] == 1000
