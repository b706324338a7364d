"""What lies over blocks is kept only as long as it is what a reader would settle itself."""

from collections.abc import Iterator

import pytest

from dsdb.storage import mvcc
from dsdb.storage.columnar import merge
from dsdb.storage.columnar.block import BlockCache, Blocks
from dsdb.storage.columnar.fold import fold
from dsdb.storage.columnar.merge import Columns, Request
from dsdb.storage.columnar.stretches import Settled, Stretches
from dsdb.storage.datum import Kind
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.keys import Span
from dsdb.storage.rowarrow import LayoutColumn
from dsdb.storage.rowcodec import RowLayout, codec_for
from dsdb.storage.timestamp import Timestamp
from dsdb.storage.versions import Intent, IntentsFoundError, View

NUMBER = LayoutColumn(column_id=1, kind=Kind.INT, width=4)
LAYOUT = RowLayout(layout_id=1, columns=(NUMBER,))
COLUMNS = Columns((NUMBER,), {1: LAYOUT})
SPAN = Span(b"a", b"z")
KEYS = [b"k%02d" % number for number in range(20)]


class World:
    """Twenty rows in blocks of five, and what was written since."""

    def __init__(self) -> None:
        self.engine = MemoryEngine()
        self.stretches = Stretches()
        self.engine.watch(self.stretches.noting)
        self.cache = BlockCache()
        self.ts = 10
        self.put(dict.fromkeys(KEYS, 0))
        batch = self.engine.new_batch()
        fold(Blocks(self.engine), batch, SPAN, Timestamp(self.ts), Timestamp(1), {1: LAYOUT}, blocks_max=10, rows_max=5, versions_max=100)
        self.engine.write(batch)

    def put(self, rows: dict[bytes, int | None]) -> None:
        self.ts += 1
        batch = self.engine.new_batch()
        for key, number in rows.items():
            mvcc.put(batch, key, Timestamp(self.ts), None if number is None else codec_for(LAYOUT).encode((number,)))
        self.engine.write(batch)

    def frozen(self) -> Blocks:
        number = self.stretches.number
        return Blocks(self.engine.snapshot(), self.cache, stretches=self.stretches, number=number)

    def numbers(self, blocks: Blocks | None = None, ts: int | None = None) -> list[int]:
        view = View(Timestamp(ts or self.ts))
        found = merge.scan(blocks or self.frozen(), Request(SPAN, view), COLUMNS)
        return [number for batch in found for number in batch.column(0).to_pylist()]


@pytest.fixture
def world() -> World:
    return World()


def seeks(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Give, again and again, how many stretches were settled since the last time."""
    settled = 0
    settle = merge._settle

    def counted(*args: object) -> object:
        nonlocal settled
        settled += 1
        return settle(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(merge, "_settle", counted)
    while True:
        count, settled = settled, 0
        yield count


def test_only_what_was_written_is_settled_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.put({KEYS[3]: 3, KEYS[9]: None})
    counts = seeks(world, monkeypatch)
    assert next(counts) == 0
    expected = [3 if at == 3 else 0 for at in range(20) if at != 9]
    assert world.numbers() == expected
    assert next(counts) == 4
    assert world.numbers() == expected
    assert next(counts) == 0, "all is kept"
    world.put({KEYS[4]: 4})
    expected[4] = 4
    assert world.numbers() == expected
    assert next(counts) == 1
    assert world.numbers(ts=world.ts - 1) == [3 if at == 3 else 0 for at in range(20) if at != 9]
    assert next(counts) == 1, "an older reader settles what is newer than it"


def test_a_reader_of_an_older_state_changes_nothing_for_a_later_one(world: World) -> None:
    old, ts = world.frozen(), world.ts
    world.numbers()
    world.put({KEYS[0]: 7})
    later = world.frozen()
    assert world.numbers(old, ts)[0] == 0
    assert world.numbers(later)[0] == 7
    assert world.numbers(old)[0] == 0, "it does not see what was written after it"
    assert world.numbers(later)[0] == 7


def test_a_write_that_goes_on_when_a_stretch_becomes_known_counts(world: World) -> None:
    """A folding thread may write at any moment."""
    entry = next(Blocks(world.engine).entries(SPAN))
    batch = world.engine.new_batch()
    mvcc.put(batch, KEYS[0], Timestamp(50), None)
    world.stretches.begin(batch)
    number = world.stretches.number
    stretch = world.stretches.stretch(SPAN.start, entry.last_key + b"\x00", entry)
    world.stretches.keep(stretch, number, Settled(Timestamp(1), [], 10))
    world.stretches.end()
    assert world.stretches.find(stretch, number, Timestamp(99)) is None
    assert world.stretches.find(stretch, world.stretches.number, Timestamp(99)) is None


def test_an_intent_is_met_each_time(world: World) -> None:
    world.numbers()
    batch = world.engine.new_batch()
    mvcc.put_intent(batch, KEYS[7], Intent(b"other", b"anchor", Timestamp(1), Timestamp(world.ts), 1, None))
    world.engine.write(batch)
    for _ in range(2):
        with pytest.raises(IntentsFoundError):
            world.numbers(ts=world.ts + 5)


def test_ranges_of_keys_that_are_removed_count(world: World) -> None:
    world.put({KEYS[1]: 5, b"k00a": 6})
    assert world.numbers() == [0, 6, 5, *[0] * 18]
    batch = world.engine.new_batch()
    mvcc.clear(batch, Span(b"k00", b"k02"))
    world.engine.write(batch)
    assert world.numbers() == [0] * 20


def test_memory_is_bounded(world: World) -> None:
    world.stretches = Stretches(400)
    world.engine.watch(world.stretches.noting)
    world.put(dict.fromkeys(KEYS[::5], 1))
    for _ in range(3):
        assert sum(world.numbers()) == 4
        assert world.stretches._size_bytes <= 400
