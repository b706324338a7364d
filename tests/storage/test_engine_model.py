"""Both engines against a dict: random changes, reads, scans, snapshots, reopening."""

import random
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.engine.port import Engine, EngineSnapshot, Family, Reader
from dsdb.storage.engine.rocksdb import RocksEngine

Model = dict[tuple[Family, bytes], bytes]

# Short keys of few bytes, so that they collide; some are prefixes of others, some longer than DELTA's filter prefix.
KEYS = st.one_of(
    st.lists(st.sampled_from([0, 1, 0x7F, 0xFF]), max_size=3).map(bytes),
    st.lists(st.sampled_from([0, 1, 0xFF]), max_size=3).map(lambda tail: b"\x10sixteen bytes: " + bytes(tail)),
)
FAMILIES = st.sampled_from([Family.DELTA, Family.META, Family.BLOCK])
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("put"), FAMILIES, KEYS, st.binary(max_size=4)),
        st.tuples(st.just("delete"), FAMILIES, KEYS, st.just(b"")),
        st.tuples(st.just("delete_range"), FAMILIES, KEYS, KEYS),
    ),
    max_size=8,
)


def span_of(model: Model, family: Family, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
    return sorted((key, value) for (of, key), value in model.items() if of is family and start <= key < end)


class EngineMachine(RuleBasedStateMachine):
    engine: Engine

    def __init__(self) -> None:
        super().__init__()
        self.model: Model = {}
        self.snapshots: list[tuple[EngineSnapshot, Model]] = []

    @rule(changes=CHANGES)
    def write(self, changes: list[tuple[str, Family, bytes, bytes]]) -> None:
        batch = self.engine.new_batch()
        for change, family, key, value in changes:
            if change == "put":
                batch.put(family, key, value)
                self.model[family, key] = value
            elif change == "delete":
                batch.delete(family, key)
                self.model.pop((family, key), None)
            else:
                batch.delete_range(family, key, value)
                self.model = {at: kept for at, kept in self.model.items() if not (at[0] is family and key <= at[1] < value)}
        self.engine.write(batch)

    @rule()
    def sync(self) -> None:
        self.engine.sync()

    @precondition(lambda self: len(self.snapshots) < 3)
    @rule()
    def snapshot(self) -> None:
        self.snapshots.append((self.engine.snapshot(), dict(self.model)))

    @precondition(lambda self: self.snapshots)
    @rule()
    def release(self) -> None:
        self.snapshots.pop(0)[0].release()

    @rule(which=st.integers(0, 3), family=FAMILIES, key=KEYS, other=KEYS)
    def read_point(self, which: int, family: Family, key: bytes, other: bytes) -> None:
        reader, model = self.reader(which)
        assert reader.get(family, key) == model.get((family, key))
        assert reader.multi_get(family, [other, key]) == [model.get((family, other)), model.get((family, key))]
        expected = span_of(model, family, key, other)
        assert reader.first(family, key, other) == (expected[0] if expected else None)
        assert reader.last(family, key, other) == (expected[-1] if expected else None)

    @rule(which=st.integers(0, 3), family=FAMILIES, start=KEYS, end=KEYS, reverse=st.booleans(), chunk_rows=st.integers(1, 4))
    def read_span(self, which: int, family: Family, start: bytes, end: bytes, reverse: bool, chunk_rows: int) -> None:
        reader, model = self.reader(which)
        rows = []
        for keys, values in reader.scan(family, start, end, reverse=reverse, chunk_rows=chunk_rows):
            assert 0 < len(keys) <= chunk_rows
            rows += list(zip(keys, values, strict=True))
        assert rows == span_of(model, family, start, end)[:: -1 if reverse else 1]

    @rule(family=FAMILIES, key=KEYS)
    def scan_sees_its_first_chunk(self, family: Family, key: bytes) -> None:
        scan = self.engine.scan(family, b"", b"\xff" * 8, chunk_rows=1)
        rows = [(keys[0], values[0]) for keys, values in [next(scan, ([], []))] if keys]
        expected = span_of(self.model, family, b"", b"\xff" * 8)
        # A row more where there was none, which a check of the scan's end on a later state would find.
        self.write([("put", family, key, b"later"), ("put", family, b"\xfe", b"later")] if expected else [])
        rows += [(keys[0], values[0]) for keys, values in scan]
        assert rows == expected

    def reader(self, which: int) -> tuple[Reader, Model]:
        return self.snapshots[which] if which < len(self.snapshots) else (self.engine, self.model)

    @invariant()
    def whole_content(self) -> None:
        readers: list[tuple[Reader, Model]] = [(self.engine, self.model), *self.snapshots]
        for reader, model in readers:
            for family in (Family.DELTA, Family.META, Family.BLOCK):
                rows = [row for keys, values in reader.scan(family, b"", b"\xff" * 32) for row in zip(keys, values)]
                assert rows == span_of(model, family, b"", b"\xff" * 32)


class RocksMachine(EngineMachine):
    @initialize()
    def create(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="dsdb-engine-"))
        self.engine = RocksEngine.open(self.directory / "store", create=True)

    @rule()
    def reopen(self) -> None:
        self.snapshots.clear()
        self.engine.close()
        self.engine = RocksEngine.open(self.directory / "store", create=False)

    @rule()
    def flush(self) -> None:
        """Move everything from memtables into table files, where the filters are."""
        assert isinstance(self.engine, RocksEngine)
        self.engine.flush()

    @rule(family=FAMILIES, start=KEYS, end=KEYS)
    def compact(self, family: Family, start: bytes, end: bytes) -> None:
        """Change nothing that can be seen."""
        self.engine.compact(family, start, end)

    def teardown(self) -> None:
        if hasattr(self, "directory"):
            self.engine.close()
            shutil.rmtree(self.directory)


class MemoryMachine(EngineMachine):
    def __init__(self) -> None:
        super().__init__()
        self.engine = MemoryEngine()

    @rule(seed=st.integers(0, 99))
    def crash_after_sync(self, seed: int) -> None:
        assert isinstance(self.engine, MemoryEngine)
        self.engine.sync()
        self.snapshots.clear()
        self.engine = self.engine.crash(random.Random(seed))


TestRocksEngine = RocksMachine.TestCase
TestRocksEngine.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
TestMemoryEngine = MemoryMachine.TestCase
TestMemoryEngine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
