"""The parts of a block: chunks of every type, keys of every shape, zones, and what happens when stored bytes are not what was written."""

import random
from bisect import bisect_left
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from datum_strategies import COLUMN_SHAPES, column_datums, same_rows
from hypothesis import HealthCheck, given, settings

from dsdb.storage import mvcc
from dsdb.storage.columnar import merge, points, upkeep
from dsdb.storage.columnar.block import BLOCK, INDEX, BlockCache, Blocks
from dsdb.storage.columnar.chunk import Chunk, Encoding, Patch, encode_chunk
from dsdb.storage.columnar.content import BLOCK_ROWS_MAX
from dsdb.storage.columnar.entry import FIRST_COLUMN_SLOT, BlockEntry, Bounds, chunk_key, decode_entry, may_match, zone_of
from dsdb.storage.columnar.fold import KEY_VERSIONS_MAX, fold
from dsdb.storage.columnar.keyrun import KeyRun, encode_keys
from dsdb.storage.columnar.merge import Columns, Request
from dsdb.storage.datum import Kind
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.errors import CorruptionError
from dsdb.storage.keys import Span
from dsdb.storage.rowarrow import LayoutColumn, array_to_datums, arrow_type, datums_to_arrow
from dsdb.storage.rowcodec import RowLayout, codec_for
from dsdb.storage.timestamp import Timestamp
from dsdb.storage.versions import View

few = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


# ---- Chunks -------------------------------------------------------------------------------------------------------------------------


@st.composite
def columns_and_values(draw: st.DrawFn) -> tuple[LayoutColumn, list[Any], list[int], list[Any]]:
    column = LayoutColumn(column_id=1, **draw(COLUMN_SHAPES))
    # Of few distinct values and of many: dictionaries, constants, and neither.
    pool = draw(st.lists(column_datums(column), min_size=1, max_size=draw(st.sampled_from([1, 3, 12]))))
    rows = draw(st.integers(1, 40))
    chance = random.Random(draw(st.integers(0, 1000)))
    places = sorted(chance.sample(range(rows), chance.randint(0, rows)))
    return column, [chance.choice(pool) for _ in range(rows)], places, draw(st.lists(column_datums(column), min_size=40, max_size=40))


@few
@given(columns_and_values())
def test_a_chunk_gives_back_its_values_patched_and_one_by_one(drawn: tuple[LayoutColumn, list[Any], list[int], list[Any]]) -> None:
    column, values, places, others = drawn
    array = datums_to_arrow(column, values)
    chunk = Chunk(encode_chunk(array.slice(0)), arrow_type(column))
    got = chunk.array()
    assert got.type == array.type
    assert same_rows(array_to_datums(column.kind, got), array_to_datums(column.kind, array))
    assert chunk.null_count == values.count(None)
    assert [chunk.stored_value(row) is None for row in range(len(values))] == [value is None for value in values]
    patched = list(values)
    for place, other in zip(places, others):
        patched[place] = other
    patch = Patch(np.array(places, np.int64), datums_to_arrow(column, others[: len(places)]))
    wanted = array_to_datums(column.kind, datums_to_arrow(column, patched))
    assert same_rows(array_to_datums(column.kind, chunk.array(patch)), wanted)
    if chunk.encoding is Encoding.DICTIONARY:
        coded = chunk.array(patch, as_dictionary=True)
        assert pa.types.is_dictionary(coded.type)
        assert same_rows(array_to_datums(column.kind, coded.dictionary_decode()), wanted)


def test_numbers_are_as_narrow_as_they_can_be() -> None:
    chance = random.Random(3)
    for least, most, width in ((5, 5, 0), (-3, 252, 1), (10**12, 10**12 + 256, 2), (-(2**31), 2**31 - 1, 4), (-(2**63), 2**63 - 1, 8)):
        values = [least, most, *(chance.randint(least, most) for _ in range(2000))]
        stored = encode_chunk(pa.array(values, pa.int64()))
        assert len(stored) <= 64 + width * len(values)
        assert Chunk(stored, pa.int64()).array().to_pylist() == values


def test_a_slice_of_an_array_is_encoded_as_that_slice() -> None:
    for array in (pa.array(["a", None, "ccc", "dd"]), pa.array([1, None, 3, 4], pa.decimal128(9, 2)), pa.array([True, False, None, True])):
        part = array.slice(1, 3)
        assert Chunk(encode_chunk(part), array.type).array().equals(part)


# ---- Keys ---------------------------------------------------------------------------------------------------------------------------

integers = st.integers(0, 2**64 - 1) | st.integers(0, 300)
key_shapes: st.SearchStrategy[Callable[[tuple[int, int, bytes]], bytes]] = st.sampled_from(
    [
        lambda parts: b"p" + parts[0].to_bytes(8, "big"),
        lambda parts: b"p\x01" + (parts[0] % 1000).to_bytes(8, "big") + b"\x01" + (parts[1] % 7).to_bytes(8, "big"),
        lambda parts: b"p" + parts[0].to_bytes(8, "big") + parts[1].to_bytes(8, "big"),
        lambda parts: b"p" + parts[2].replace(b"\x00", b"\x01") + b"\x00",
        lambda parts: b"p" + parts[2].replace(b"\x00", b"\x01") + b"\x00" + (parts[1] % 5).to_bytes(8, "big"),
    ]
)
parts = st.tuples(integers, integers, st.binary(max_size=3) | st.binary(max_size=14))


@few
@given(key_shapes, st.lists(parts, min_size=1, max_size=60), st.lists(parts, min_size=1, max_size=20), st.lists(st.binary(max_size=12)))
def test_keys_are_given_back_and_found(
    shape: Callable[[tuple[int, int, bytes]], bytes],
    own: list[tuple[int, int, bytes]],
    others: list[tuple[int, int, bytes]],
    bounds: list[bytes],
) -> None:
    keys = sorted(set(map(shape, own)))
    run = KeyRun(encode_keys(keys))
    assert run.keys() == keys
    assert [run.key(row) for row in range(run.rows)] == keys
    assert run.keys(np.array([run.rows - 1])) == keys[-1:]
    assert list(run.words) == sorted(run.words)
    asked = sorted({*map(shape, others), *keys[::3]})
    places, found = run.find(asked)
    assert places.tolist() == [bisect_left(keys, key) for key in asked]
    assert found.tolist() == [key in keys for key in asked]
    assert [run.row_of(key) for key in asked] == [keys.index(key) if key in keys else None for key in asked]
    assert [run.lower(bound) for bound in bounds] == [bisect_left(keys, bound) for bound in bounds]


def test_words_of_a_composite_key_tell_all_rows_of_a_block_apart() -> None:
    keys = sorted(
        b"\x10\x01\x01\x01\x69\x01\x01\x81" + (order * 4).to_bytes(8, "big") + b"\x81" + line.to_bytes(8, "big")
        for order in range(10**9, 10**9 + 4000)
        for line in (1, 2, 3, 4)
    )
    run = KeyRun(encode_keys(keys))
    assert run.is_exact
    assert len(np.unique(run.words)) == len(keys)
    assert run.size_bytes < 10 * len(keys)


# ---- Rows of any types through a fold -------------------------------------------------------------------------------------------------

SPAN = Span(b"a", b"z")


def folded(rows: dict[bytes, bytes], layouts: dict[int, RowLayout], rows_max: int = BLOCK_ROWS_MAX) -> MemoryEngine:
    engine = MemoryEngine()
    batch = engine.new_batch()
    for key, value in rows.items():
        mvcc.put(batch, key, Timestamp(5), value)
    engine.write(batch)
    batch = engine.new_batch()
    assert fold(Blocks(engine), batch, SPAN, Timestamp(5), Timestamp(1), layouts, blocks_max=100, rows_max=rows_max).resume is None
    engine.write(batch)
    return engine


@st.composite
def rows_of_two_layouts(draw: st.DrawFn) -> tuple[dict[int, RowLayout], dict[bytes, bytes]]:
    shapes = draw(st.lists(COLUMN_SHAPES, min_size=1, max_size=5))
    columns = [LayoutColumn(column_id=number, **shape) for number, shape in enumerate(shapes)]
    layouts = {1: RowLayout(layout_id=1, columns=tuple(columns)), 2: RowLayout(layout_id=2, columns=tuple(columns[1:]))}
    rows = {}
    for number in range(draw(st.integers(1, 12))):
        layout = layouts[draw(st.sampled_from([1, 1, 2]))]
        values = draw(st.tuples(*map(column_datums, layout.columns)))
        rows[b"k%02d" % number] = codec_for(layout).encode(values)
    return layouts, rows


@settings(few, max_examples=100)
@given(rows_of_two_layouts())
def test_rows_of_any_type_and_layout_come_back_byte_by_byte(drawn: tuple[dict[int, RowLayout], dict[bytes, bytes]]) -> None:
    layouts, rows = drawn
    engine = folded(rows, layouts)
    blocks = Blocks(engine)
    assert upkeep.verify(blocks, SPAN) == 1
    assert points.get_many(blocks, list(rows), View(Timestamp(9))) == list(rows.values())
    [entry] = blocks.entries(SPAN)
    many = np.arange(len(rows)).repeat(70)
    assert blocks.row_values(entry, many)[::70] == list(rows.values())
    plain = MemoryEngine()
    batch = plain.new_batch()
    for key, value in rows.items():
        mvcc.put(batch, key, Timestamp(5), value)
    plain.write(batch)
    columns = Columns(layouts[1].columns, layouts)
    request = Request(SPAN, View(Timestamp(9)))
    [got] = merge.scan(blocks, request, columns)
    [wanted] = merge.scan(Blocks(plain), request, columns)
    for column, left, right in zip(columns.target, got.columns, wanted.columns):
        assert same_rows(array_to_datums(column.kind, left), array_to_datums(column.kind, right))


# ---- Zones --------------------------------------------------------------------------------------------------------------------------


@few
@given(columns_and_values(), st.data())
def test_a_zone_excludes_no_row_that_lies_within_the_bounds(
    drawn: tuple[LayoutColumn, list[Any], list[int], list[Any]], data: st.DataObject
) -> None:
    column, values, _, _ = drawn
    if column.kind is Kind.INTERVAL:
        return
    array = datums_to_arrow(column, values)
    layout = RowLayout(layout_id=1, columns=(column,))
    entry = BlockEntry(
        generation=0,
        first_key=b"a",
        last_key=b"b",
        rows=len(values),
        history_rows=0,
        max_ts=Timestamp(1),
        min_ts=Timestamp(1),
        layouts=(layout,),
        layout_slots=((FIRST_COLUMN_SLOT,),),
        zones=(zone_of(column, FIRST_COLUMN_SLOT, array, is_dictionary=False),),
        rows_crc=0,
        chunks={},
    )
    low, high = data.draw(column_datums(column)), data.draw(column_datums(column))
    stored = array_to_datums(column.kind, array)

    def order(value: Any) -> Any:
        value = value.encode() if isinstance(value, str) else value
        return (1, 0) if value != value else (0, value)

    inside = [
        value
        for value in stored
        if value is not None and (low is None or order(low) <= order(value)) and (high is None or order(value) <= order(high))
    ]
    if inside:
        assert may_match(entry, [Bounds(column_id=1, low=low, high=high)])


def test_nothing_is_concluded_of_a_column_that_was_widened_or_added() -> None:
    narrow, wide = LayoutColumn(column_id=1, kind=Kind.INT, width=4), LayoutColumn(column_id=1, kind=Kind.INT)
    other = LayoutColumn(column_id=2, kind=Kind.INT)
    layouts = {number: RowLayout(layout_id=number, columns=(column,)) for number, column in ((1, narrow), (2, wide), (3, other))}
    for ids, defaults in (((1, 2), {}), ((1, 3), {1: 900}), ((2, 3), {1: 900})):
        rows = {b"k1": codec_for(layouts[ids[0]]).encode((5,)), b"k2": codec_for(layouts[ids[1]]).encode((900,))}
        engine = folded(rows, layouts)
        asked = Request(SPAN, View(Timestamp(9)), bounds=[Bounds(column_id=1, low=500)])
        [got] = merge.scan(Blocks(engine), asked, Columns((wide,), layouts, defaults))
        assert 900 in got["c1"].to_pylist()


def test_blocks_outside_of_the_bounds_are_not_read() -> None:
    column = LayoutColumn(column_id=1, kind=Kind.INT)
    layout = RowLayout(layout_id=1, columns=(column,))
    engine = folded({b"k%04d" % number: codec_for(layout).encode((number,)) for number in range(1000)}, {1: layout}, rows_max=100)
    asked = Request(SPAN, View(Timestamp(9)), bounds=[Bounds(column_id=1, low=250, high=Decimal("349.5"))])
    got = pa.Table.from_batches(merge.scan(Blocks(engine), asked, Columns((column,), {1: layout})))["c1"].to_pylist()
    assert got == list(range(200, 400))


# ---- Limits and corruption --------------------------------------------------------------------------------------------------------------


def test_a_key_of_very_many_versions_stays_in_the_delta() -> None:
    layout = RowLayout(layout_id=1, columns=(LayoutColumn(column_id=1, kind=Kind.INT),))
    engine = MemoryEngine()
    batch = engine.new_batch()
    for ts in range(1, KEY_VERSIONS_MAX + 3):
        mvcc.put(batch, b"hot", Timestamp(ts), codec_for(layout).encode((ts,)))
    mvcc.put(batch, b"quiet", Timestamp(1), codec_for(layout).encode((1,)))
    engine.write(batch)
    batch = engine.new_batch()
    done = fold(Blocks(engine), batch, SPAN, Timestamp(10**6), Timestamp(0), {1: layout})
    engine.write(batch)
    assert (done.versions, done.kept_back, done.resume) == (1, 1, None)
    assert points.get(Blocks(engine), b"hot", View(Timestamp(7))) == mvcc.Version(Timestamp(7), codec_for(layout).encode((7,)))


def test_folding_refuses_a_version_that_is_not_newer_than_its_block() -> None:
    layout = RowLayout(layout_id=1, columns=(LayoutColumn(column_id=1, kind=Kind.INT),))
    engine = folded({b"k": codec_for(layout).encode((1,))}, {1: layout})
    batch = engine.new_batch()
    mvcc.put(batch, b"k", Timestamp(4), codec_for(layout).encode((2,)))
    engine.write(batch)
    with pytest.raises(CorruptionError, match="not newer than its block's"):
        fold(Blocks(engine), engine.new_batch(), SPAN, Timestamp(9), Timestamp(0), {1: layout})


LAYOUT = RowLayout(
    layout_id=1,
    columns=(
        LayoutColumn(column_id=1, kind=Kind.INT),
        LayoutColumn(column_id=2, kind=Kind.TEXT),
        LayoutColumn(column_id=3, kind=Kind.FLOAT),
        LayoutColumn(column_id=4, kind=Kind.TEXT),
    ),
)


def test_every_flipped_bit_and_every_missing_chunk_is_found() -> None:
    encode = codec_for(LAYOUT).encode
    rows = {b"k%03d" % number: encode((number * 7, f"text {number}", number / 7, "ab"[number % 2])) for number in range(90)}
    engine = folded(rows, {1: LAYOUT})
    batch = engine.new_batch()
    mvcc.put(batch, b"k005", Timestamp(7), None)
    engine.write(batch)
    batch = engine.new_batch()
    fold(Blocks(engine), batch, SPAN, Timestamp(7), Timestamp(1), {1: LAYOUT})
    engine.write(batch)
    assert upkeep.verify(Blocks(engine), SPAN) == 1
    [entry] = Blocks(engine).entries(SPAN)
    assert (entry.rows, entry.history_rows) == (89, 2)
    chance = random.Random(1)
    places = [(INDEX, entry.last_key), *((BLOCK, chunk_key(entry.last_key, slot)) for slot in entry.chunks)]
    for family, key in places:
        whole = engine.get(family, key)
        assert whole is not None
        for broken in [None, whole[:-1], *(_flipped(whole, chance) for _ in range(12))]:
            batch = engine.new_batch()
            batch.delete(family, key) if broken is None else batch.put(family, key, broken)
            engine.write(batch)
            if family is INDEX and broken is None:
                continue  # a block that nobody knows of: its range's checksum tells
            with pytest.raises(CorruptionError):
                upkeep.verify(Blocks(engine), SPAN)
        batch = engine.new_batch()
        batch.put(family, key, whole)
        engine.write(batch)
    assert upkeep.verify(Blocks(engine), SPAN) == 1


def _flipped(whole: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(whole))
    return whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :]


def test_a_scan_of_a_broken_chunk_raises_or_gives_as_many_rows() -> None:
    """Readers do not compare checksums: what they find out is what does not fit together."""
    encode = codec_for(LAYOUT).encode
    rows = {b"k%03d" % number: encode((number * 7, f"text {number}", number / 7, "ab"[number % 2])) for number in range(90)}
    engine = folded(rows, {1: LAYOUT})
    [entry] = Blocks(engine).entries(SPAN)
    chance = random.Random(2)
    for slot in entry.chunks:
        key = chunk_key(entry.last_key, slot)
        whole = engine.get(BLOCK, key)
        assert whole is not None
        for broken in [b"", whole[:-1], *(_flipped(whole, chance) for _ in range(40))]:
            batch = engine.new_batch()
            batch.put(BLOCK, key, broken)
            engine.write(batch)
            try:
                batches = list(merge.scan(Blocks(engine), Request(SPAN, View(Timestamp(9))), Columns(LAYOUT.columns, {1: LAYOUT})))
            except CorruptionError:
                continue
            assert sum(batch.num_rows for batch in batches) == 90
        batch = engine.new_batch()
        batch.put(BLOCK, key, whole)
        engine.write(batch)


def test_a_cache_of_few_bytes_forgets_and_one_of_many_keeps() -> None:
    engine = folded({b"k%03d" % n: codec_for(LAYOUT).encode((n, "t", 1.0, None)) for n in range(50)}, {1: LAYOUT}, rows_max=10)
    for bytes_max, is_kept in ((100, False), (1 << 20, True)):
        cache = BlockCache(bytes_max)
        for _ in range(2):
            assert points.get(Blocks(engine, cache), b"k007", View(Timestamp(9))) is not None
        assert cache.size_bytes <= bytes_max
        assert (cache.size_bytes > 0) is is_kept


def test_an_entry_of_another_place_is_refused() -> None:
    engine = folded({b"k": codec_for(LAYOUT).encode((1, None, None, None))}, {1: LAYOUT})
    stored = engine.get(INDEX, b"k")
    assert stored is not None
    with pytest.raises(CorruptionError, match="of another place"):
        decode_entry(b"l", stored)
