"""Making room among blocks for one that is laid whole."""

import pyarrow as pa
import pytest

from dsdb.storage import mvcc
from dsdb.storage.columnar.block import Blocks
from dsdb.storage.columnar.entry import chunk_key, decode_entry
from dsdb.storage.columnar.parting import Parting
from dsdb.storage.columnar.provisional import encode_rows, put_chunks, put_entry
from dsdb.storage.columnar.upkeep import verify
from dsdb.storage.datum import Kind
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.engine.port import Family
from dsdb.storage.keys import Span, key_after
from dsdb.storage.rowcodec import LayoutColumn, RowLayout
from dsdb.storage.timestamp import Timestamp

LAYOUT = RowLayout(layout_id=1, columns=(LayoutColumn(column_id=1, kind=Kind.INT, width=8),))
SPAN = Span(b"a", b"z")


def engine_with(*blocks: str) -> MemoryEngine:
    """Give an engine that has a block of each string's letters as keys."""
    engine = MemoryEngine()
    batch = engine.new_batch()
    for letters in blocks:
        keys = [letter.encode() for letter in letters]
        stored, chunks = encode_rows(keys, LAYOUT, [pa.array(range(len(keys)), pa.int64())])
        entry = decode_entry(keys[-1], stored)
        put_chunks(batch, entry, chunks)
        put_entry(batch, entry, Timestamp(5))
    engine.write(batch)
    return engine


def blocks_of(engine: MemoryEngine) -> list[str]:
    """Give the keys of its blocks, which are sound and leave no chunk beside theirs."""
    blocks = Blocks(engine)
    verify(blocks, SPAN)
    entries = list(blocks.entries(SPAN))
    named = [chunk_key(entry.last_key, slot) for entry in entries for slot in sorted(entry.chunks)]
    assert [key for keys, _ in engine.scan(Family.BLOCK, b"", b"\xff") for key in keys] == named
    return [b"".join(blocks.keys(entry).keys()).decode() for entry in entries]


@pytest.mark.parametrize(
    ("bounds", "left"),
    [
        ("c", ["ab", "ce", "gi"]),
        ("cd", ["ab", "c", "e", "gi"]),
        ("dc", ["ab", "c", "e", "gi"]),
        ("bcdeh", ["a", "b", "c", "e", "g", "i"]),
        ("afg", ["abce", "gi"]),
    ],
)
def test_what_is_parted_again_in_one_batch_is_parted_as_it_was_left(bounds: str, left: list[str]) -> None:
    engine, parting = engine_with("abce", "gi"), Parting()
    batch = engine.new_batch()
    for bound in bounds:
        parting.part(Blocks(engine), batch, bound.encode())
    engine.write(batch)
    assert blocks_of(engine) == left


@pytest.mark.parametrize(
    ("first", "last", "left"),
    [("b", "c", ["a", "e", "gi"]), ("c", "h", ["ab", "i"]), ("a", "i", []), ("d", "d", ["abc", "e", "gi"]), ("f", "f", ["abce", "gi"])],
)
def test_room_is_made_in_blocks(first: str, last: str, left: list[str]) -> None:
    engine, parting = engine_with("abce", "gi"), Parting()
    batch = engine.new_batch()
    has_changed = parting.make_room(Blocks(engine), batch, first.encode(), last.encode())
    # Once more in the same batch: there is nothing to do.
    assert not parting.make_room(Blocks(engine), batch, first.encode(), last.encode())
    engine.write(batch)
    assert blocks_of(engine) == left
    assert has_changed == (left != ["abce", "gi"])


def test_room_is_made_beside_blocks() -> None:
    engine = engine_with()
    batch = engine.new_batch()
    for key in (b"b", b"c", b"d"):
        mvcc.put(batch, key, Timestamp(3), None)
    engine.write(batch)
    batch = engine.new_batch()
    assert Parting().make_room(Blocks(engine), batch, b"c", b"c")
    engine.write(batch)
    assert [key[:1] for keys, _ in engine.scan(Family.DELTA, b"a", b"z") for key in keys] == [b"b", b"d"]
    assert not Parting().make_room(Blocks(engine), engine.new_batch(), b"c", key_after(b"c"))
