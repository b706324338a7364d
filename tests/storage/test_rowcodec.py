import decimal
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from datum_strategies import COLUMN_SHAPES, column_datums, same_rows, unhurried
from hypothesis import given
from hypothesis import strategies as st

from dsdb.storage import rowbatch
from dsdb.storage.datum import Datum, Kind
from dsdb.storage.errors import CorruptionError, ValueRangeError
from dsdb.storage.keycodec import KeyCodec, KeyColumn
from dsdb.storage.rowarrow import LayoutColumn, arrow_to_datums, arrow_type, datums_to_arrow, field_name, has_nul, rows_to_batch
from dsdb.storage.rowcodec import RowLayout, codec_for, decode_batches

D = decimal.Decimal
Rows = list[tuple[Datum, ...]]


@st.composite
def layouts(draw: st.DrawFn, layout_id: int = 7, first_column_id: int = 1, most: int = 10) -> RowLayout:
    shapes = draw(st.lists(COLUMN_SHAPES, max_size=most))
    columns = tuple(LayoutColumn(column_id=first_column_id + position, **shape) for position, shape in enumerate(shapes))
    return RowLayout(layout_id=layout_id, columns=columns)


def rows_of(layout: RowLayout, most: int = 4) -> st.SearchStrategy[Rows]:
    row = st.tuples(*map(column_datums, layout.columns))
    full = st.tuples(*(column_datums(column).filter(lambda value: value is not None) for column in layout.columns))
    return st.lists(row, max_size=most) | st.lists(full, max_size=most)


def validate(array: pa.Array) -> None:
    # Arrow's full validation refuses the time 24:00, which SQL has.
    array.validate(full=not pa.types.is_time(array.type))


def columns_of(batch: pa.RecordBatch, target: Any) -> Rows:
    """Give the rows of a batch as datums, after checking its schema and its buffers."""
    for array in batch.columns:
        validate(array)
    assert batch.schema == pa.schema([(field_name(column.column_id), arrow_type(column)) for column in target])
    by_column = [arrow_to_datums(column, array) for column, array in zip(target, batch.columns)]
    return list(zip(*by_column)) if by_column else [()] * batch.num_rows


def decode_both_ways(values: list[bytes], layouts: Any, target: Any, defaults: Any = None) -> Rows:
    """Decode few rows as such, and as if they were many."""
    few = columns_of(decode_batches(values, layouts, target, defaults), target)
    shapes = {layout_id: codec_for(layout).shape for layout_id, layout in layouts.items()}
    many = columns_of(rowbatch.decode_batches(values, shapes, target, defaults or {}), target)
    assert same_tables(few, many)
    return many


def same_tables(left: Any, right: Any) -> bool:
    return len(left) == len(right) and all(same_rows(one, other) for one, other in zip(left, right))


@unhurried
@given(st.data())
def test_a_row_comes_back_whole_and_in_part(data: st.DataObject) -> None:
    layout = data.draw(layouts())
    codec = codec_for(layout)
    for row in data.draw(rows_of(layout)):
        value = codec.encode(row)
        assert same_rows(codec.decode(value), row)
        assert codec.encode(codec.decode(value)) == value
        if layout.columns:
            positions = data.draw(st.lists(st.integers(0, len(row) - 1), max_size=4))
            assert same_rows(codec.decode_columns(value, positions), [row[position] for position in positions])


@unhurried
@given(st.data())
def test_a_batch_of_rows_is_that_of_its_rows(data: st.DataObject) -> None:
    layout = data.draw(layouts())
    codec = codec_for(layout)
    rows = data.draw(rows_of(layout))
    values = [codec.encode(row) for row in rows]
    wanted = data.draw(st.lists(st.sampled_from(layout.columns), unique=True)) if layout.columns else []
    positions = [layout.columns.index(column) for column in wanted]
    decoded = decode_both_ways(values, {7: layout}, wanted)
    assert same_tables(decoded, [[row[position] for position in positions] for row in rows])
    assert same_tables(columns_of(codec.decode_batch(values, [column.column_id for column in wanted]), wanted), decoded)
    names = [field_name(column.column_id) for column in layout.columns]
    whole = rows_to_batch(layout.columns, names, rows)
    assert same_tables(columns_of(whole, layout.columns), rows)
    assert codec.encode_batch(whole) == values
    assert codec.encode_batch(whole.slice(1)) == values[1:]


@unhurried
@given(st.data())
def test_rows_of_several_layouts_decode_together(data: st.DataObject) -> None:
    old = data.draw(layouts(layout_id=1, most=5))
    added = data.draw(layouts(layout_id=2, first_column_id=6, most=3))
    # The newer layout has lost the first column of the older one.
    new = RowLayout(layout_id=2, columns=old.columns[1:] + added.columns)
    target = data.draw(st.permutations(old.columns + added.columns))
    defaults = {column.column_id: data.draw(column_datums(column)) for column in added.columns[1:]}
    values, expected = [], []
    for layout, row in data.draw(
        st.lists(
            st.sampled_from([old, new]).flatmap(lambda layout: st.tuples(st.just(layout), st.tuples(*map(column_datums, layout.columns))))
        )
    ):
        values.append(codec_for(layout).encode(row))
        by_id = dict(defaults) if layout is old else {}
        by_id |= {column.column_id: value for column, value in zip(layout.columns, row)}
        expected.append([by_id.get(column.column_id) for column in target])
    assert same_tables(decode_both_ways(values, {1: old, 2: new}, target, defaults), expected)


@unhurried
@given(COLUMN_SHAPES, st.data())
def test_datums_and_arrow_convert_both_ways(shape: Any, data: st.DataObject) -> None:
    column = LayoutColumn(column_id=1, **shape)
    values = data.draw(st.lists(column_datums(column), max_size=5))
    array = datums_to_arrow(column, values)
    validate(array)
    assert array.type == arrow_type(column)
    assert same_rows(arrow_to_datums(column, array), values)
    assert same_rows(arrow_to_datums(column, array.slice(1)), values[1:])


@unhurried
@given(st.data())
def test_malformed_values_are_corruption_row_by_row_and_in_bulk(data: st.DataObject) -> None:
    layout = data.draw(layouts(most=4))
    codec = codec_for(layout)
    good = codec.encode(data.draw(st.tuples(*map(column_datums, layout.columns))))
    ids = [column.column_id for column in layout.columns]
    for bad in (good[: data.draw(st.integers(0, len(good) - 1))], good + b"\x00", b"\xff" + good[1:]):
        with pytest.raises(CorruptionError):
            codec.decode(bad)
        with pytest.raises(CorruptionError):
            codec.decode_columns(bad, ())
        for values in ([bad], [good, bad], [bad, good]):
            with pytest.raises(CorruptionError):
                codec.decode_batch(values, ids)
            with pytest.raises(CorruptionError):
                rowbatch.decode_batches(values, {7: codec.shape}, layout.columns, {})


TWO_TEXTS = RowLayout(layout_id=9, columns=(LayoutColumn(column_id=1, kind=Kind.TEXT), LayoutColumn(column_id=2, kind=Kind.TEXT)))


@pytest.mark.parametrize(
    "tail",
    [
        b"\x03\0\0\0\x02\0\0\0ab",  # the first column ends behind the second
        b"\x01\0\0\0\x03\0\0\0ab",  # the second ends behind the value
        b"\x01\0\0\0\x01\0\0\0ab",  # bytes are left over
        b"\xff\xff\xff\xff\x02\0\0\0ab",
        b"\x01\0\0\0\x02\0\0\0a\xff",  # not UTF-8
    ],
)
def test_end_offsets_that_do_not_fit_are_corruption(tail: bytes) -> None:
    codec = codec_for(TWO_TEXTS)
    good = codec.encode(("a", "b"))
    bad = good[:5] + tail
    with pytest.raises(CorruptionError):
        codec.decode(bad)
    with pytest.raises(CorruptionError):
        codec.decode_batch([good, bad], [1, 2])
    with pytest.raises(CorruptionError):
        rowbatch.decode_batches([good, bad], {9: codec.shape}, TWO_TEXTS.columns, {})


def test_an_unknown_layout_is_corruption() -> None:
    value = codec_for(TWO_TEXTS).encode(("a", "b"))
    for many in (1, 100):
        with pytest.raises(CorruptionError, match="layout 9"):
            decode_batches([value] * many, {}, TWO_TEXTS.columns)


def column(kind: Kind, **fields: Any) -> LayoutColumn:
    return LayoutColumn(column_id=1, kind=kind, **fields)


@pytest.mark.parametrize(
    ("stored", "value"),
    [
        (column(Kind.BOOL), 2),
        (column(Kind.INT, width=2), 32768),
        (column(Kind.INT, width=4), -(2**31) - 1),
        (column(Kind.INT), 2**63),
        (column(Kind.INT), 1.0),
        (column(Kind.FLOAT, width=4), 1e39),
        (column(Kind.FLOAT), "1"),
        (column(Kind.DECIMAL, precision=4, scale=2), D("100")),
        (column(Kind.DECIMAL, precision=4, scale=2), D("1.001")),
        (column(Kind.DECIMAL, precision=4, scale=2), D("NaN")),
        (column(Kind.DECIMAL, precision=38, scale=0), D(10) ** 38),
        (column(Kind.DECIMAL, precision=38, scale=38), D("Infinity")),
        (column(Kind.DECIMAL, precision=38, scale=2), D("1E+999999999")),
        (column(Kind.DECIMAL, precision=9, scale=2), D("1E-999999999")),
        (column(Kind.DECIMAL), D("1E+131072")),
        (column(Kind.DECIMAL), D("1E-16384")),
        (column(Kind.DECIMAL), 1),
        (column(Kind.TEXT), "a\x00"),
        (column(Kind.TEXT), "\ud800"),
        (column(Kind.TEXT), b"a"),
        (column(Kind.BYTES), "a"),
        (column(Kind.DATE), 2**31),
        (column(Kind.TIME), -1),
        (column(Kind.TIME), 86_400_000_001),
        (column(Kind.TIMESTAMP), 2**63),
        (column(Kind.INTERVAL), (2**31, 0, 0)),
        (column(Kind.INTERVAL), (0, 0, 2**63 // 1000 + 1)),
        (column(Kind.INTERVAL), (0, 0)),
        (column(Kind.UUID), b"x" * 15),
    ],
)
def test_what_a_column_cannot_hold_is_refused_with_position_and_value(stored: LayoutColumn, value: Any) -> None:
    layout = RowLayout(layout_id=1, columns=(column(Kind.INT), stored, column(Kind.TEXT)))
    for others in ((1, "a"), (None, None)):
        with pytest.raises(ValueRangeError) as error:
            codec_for(layout).encode((others[0], value, others[1]))
        assert f"column 2 cannot hold {value!r}" in str(error.value)
    with pytest.raises(ValueRangeError):
        datums_to_arrow(stored, [value])


def test_a_wrong_number_of_values_is_refused() -> None:
    for row in ((), ("a",), ("a", "b", "c")):
        with pytest.raises(ValueRangeError, match=f"{len(row)} values for a row of 2 columns"):
            codec_for(TWO_TEXTS).encode(row)


@pytest.mark.parametrize(
    ("stored", "array"),
    [
        (column(Kind.INT), pa.array([1], pa.int32())),
        (column(Kind.TIME), pa.array([-1]).view(pa.time64("us"))),
        (column(Kind.TIME), pa.array([86_400_000_001]).view(pa.time64("us"))),
        (column(Kind.TEXT), pa.array(["a\x00"])),
        (column(Kind.TEXT), pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())),
        (column(Kind.INTERVAL), pa.array([pa.MonthDayNano((0, 0, 1))])),
        (column(Kind.DECIMAL), pa.array(["one"])),
        (
            column(Kind.DECIMAL, precision=2, scale=0),
            pa.Array.from_buffers(pa.decimal128(2, 0), 1, [None, pa.py_buffer(np.array([100, 0], "<i8"))]),
        ),
    ],
)
def test_a_batch_refuses_what_a_column_cannot_hold(stored: LayoutColumn, array: pa.Array) -> None:
    codec = codec_for(RowLayout(layout_id=1, columns=(stored,)))
    with pytest.raises(ValueRangeError):
        codec.encode_batch(pa.record_batch([array], names=["a"]))


@pytest.mark.parametrize(
    "stored",
    [
        column(Kind.INT, width=3),
        column(Kind.FLOAT, width=2),
        column(Kind.DECIMAL, precision=0),
        column(Kind.DECIMAL, precision=5, scale=6),
    ],
)
def test_a_column_that_does_not_exist_has_no_codec(stored: LayoutColumn) -> None:
    with pytest.raises(ValueRangeError, match="no such column"):
        codec_for(RowLayout(layout_id=1, columns=(stored,)))


@pytest.mark.parametrize(
    ("old", "new", "value", "expected"),
    [
        (column(Kind.INT, width=2), column(Kind.INT), -5, -5),
        (column(Kind.FLOAT, width=4), column(Kind.FLOAT), 1.5, 1.5),
        (column(Kind.DECIMAL, precision=5, scale=2), column(Kind.DECIMAL, precision=12, scale=4), D("1.25"), D("1.2500")),
        (column(Kind.DECIMAL, precision=12, scale=10), column(Kind.DECIMAL), D("0.0000000001"), D("0.0000000001")),
        (column(Kind.DECIMAL), column(Kind.DECIMAL, precision=5, scale=1), D("10.50"), D("10.5")),
    ],
)
def test_a_column_that_was_widened_is_converted(old: LayoutColumn, new: LayoutColumn, value: Datum, expected: Datum) -> None:
    layout = RowLayout(layout_id=1, columns=(old,))
    values = [codec_for(layout).encode((value,)), codec_for(layout).encode((None,))]
    assert decode_both_ways(values, {1: layout}, [new]) == [(expected,), (None,)]


def test_a_column_that_changed_its_kind_or_does_not_fit_is_refused() -> None:
    layout = RowLayout(layout_id=1, columns=(column(Kind.INT),))
    values = [codec_for(layout).encode((40_000,))]
    for target in (column(Kind.TEXT), column(Kind.INT, width=2)):
        for many in (1, 100):
            with pytest.raises(ValueRangeError):
                decode_batches(values * many, {1: layout}, [target])


def test_spellings_of_decimals() -> None:
    codec = codec_for(RowLayout(layout_id=1, columns=(column(Kind.DECIMAL, precision=9, scale=3), column(Kind.DECIMAL))))
    decoded = codec.decode(codec.encode((D("1.5"), D("1.50"))))
    assert [str(value) for value in decoded] == ["1.500", "1.50"]
    assert [str(value) for value in codec.decode(codec.encode((D("-0"), D("2E+3"))))] == ["0.000", "2000"]


@pytest.mark.parametrize(
    "stored",
    [
        column(Kind.BOOL),
        column(Kind.INT),
        column(Kind.DECIMAL, precision=9, scale=2),
        column(Kind.DECIMAL, precision=30, scale=2),
        column(Kind.TIME),
        column(Kind.INTERVAL),
        column(Kind.UUID),
        column(Kind.TEXT),
        column(Kind.BYTES),
    ],
)
def test_what_lies_under_a_null_does_not_reach_the_bytes(stored: LayoutColumn) -> None:
    garbage: dict[Kind, Datum] = {
        Kind.BOOL: True,
        Kind.DECIMAL: D("-1.25"),
        Kind.INTERVAL: (1, 2, 3),
        Kind.UUID: b"u" * 16,
        Kind.TEXT: "x",
        Kind.BYTES: b"x",
    }
    full = datums_to_arrow(stored, [garbage.get(stored.kind, 7)] * 3)
    array = pa.Array.from_buffers(full.type, 3, [pa.py_buffer(b"\x05"), *full.buffers()[1:]])
    codec = codec_for(RowLayout(layout_id=1, columns=(stored,)))
    assert codec.encode_batch(pa.record_batch([array], names=["a"])) == [codec.encode((value,)) for value in arrow_to_datums(stored, array)]
    keys = KeyCodec([KeyColumn(kind=stored.kind)])
    assert keys.encode_batch([array]) == [keys.encode((value,)) for value in arrow_to_datums(stored, array)]


def test_rows_without_columns_are_counted() -> None:
    codec = codec_for(RowLayout(layout_id=4, columns=()))
    assert codec.encode(()) == b"\x04\0\0\0"
    for many in (3, 300):
        assert codec.decode_batch([codec.encode(())] * many, []).num_rows == many
    assert codec_for(TWO_TEXTS).decode_batch([codec_for(TWO_TEXTS).encode(("a", None))] * 2, []).num_rows == 2
    assert rows_to_batch([], [], [(), ()]).num_rows == 2


def test_a_layout_is_hashable_and_travels() -> None:
    wire = msgspec.msgpack.encode(TWO_TEXTS)
    assert msgspec.msgpack.decode(wire, type=RowLayout) == TWO_TEXTS
    assert codec_for(msgspec.msgpack.decode(wire, type=RowLayout)) is codec_for(TWO_TEXTS)


def test_a_row_value_looks_like_this() -> None:
    layout = RowLayout(
        layout_id=258,
        columns=(
            column(Kind.INT, width=4),
            column(Kind.TEXT),
            column(Kind.DECIMAL, precision=10, scale=2),
            column(Kind.BOOL),
            column(Kind.BYTES),
        ),
    )
    value = codec_for(layout).encode((-2, "héy", None, True, b"\x00"))
    assert value.hex(" ") == (
        "02 01 00 00 "  # layout 258
        "04 "  # the third column is NULL
        "fe ff ff ff 00 00 00 00 00 00 00 00 01 "  # fixed columns
        "04 00 00 00 05 00 00 00 "  # ends of the variable ones
        "68 c3 a9 79 00"
    )


def test_a_nul_is_found_in_the_texts_of_a_slice_and_nowhere_else() -> None:
    texts = pa.array(["x", "a\0b", "ä", None, ""])
    for found in (texts, texts.cast(pa.large_string())):
        assert [has_nul(found), has_nul(found.slice(1, 1)), has_nul(found.slice(0, 2))] == [True] * 3
        assert not any(has_nul(found.slice(at, count)) for at, count in ((0, 1), (2, 3), (3, 1), (4, 1), (1, 0)))
    # What lies under a NULL is nobody's text.
    bounds = pa.array([0, 1, 2], pa.int32()).buffers()[1]
    assert not has_nul(pa.Array.from_buffers(pa.string(), 2, [pa.py_buffer(b"\x02"), bounds, pa.py_buffer(b"\0b")]))
    assert not has_nul(pa.array([None, None], pa.string()))
