import decimal
from typing import Any

import pyarrow as pa
import pytest
from datum_strategies import KEY_DATUMS, column_datums, order, unhurried
from hypothesis import given
from hypothesis import strategies as st

from dsdb.storage.datum import Datum, Kind
from dsdb.storage.errors import KeyFormatError, ValueRangeError
from dsdb.storage.keycodec import Bound, KeyCodec, KeyColumn, key_codec
from dsdb.storage.rowarrow import LayoutColumn, arrow_to_datums, arrow_type, datums_to_arrow

D = decimal.Decimal
COLUMNS = st.builds(KeyColumn, kind=st.sampled_from(list(Kind)), descending=st.booleans(), nulls_first=st.booleans())


@st.composite
def columns_and_rows(draw: st.DrawFn, rows: int = 2, most: int = 3) -> tuple[list[KeyColumn], list[tuple[Datum, ...]]]:
    columns = draw(st.lists(COLUMNS, min_size=1, max_size=most))
    row = st.tuples(*(st.none() | KEY_DATUMS[column.kind] for column in columns))
    drawn = [draw(row) for _ in range(rows)]
    # Rows that share their first columns, so that the later ones decide.
    shared = draw(st.integers(0, len(columns)))
    return columns, [drawn[0][:shared] + other[shared:] for other in drawn]


def compare(columns: list[KeyColumn], left: tuple[Datum, ...], right: tuple[Datum, ...]) -> int:
    for column, one, other in zip(columns, left, right):
        if one is None or other is None:
            if (one is None) != (other is None):
                return -1 if (one is None) == column.nulls_first else 1
            continue
        first, second = order(column.kind, one), order(column.kind, other)
        if first != second:
            return -1 if (first < second) != column.descending else 1
    return 0


def sign(left: bytes, right: bytes) -> int:
    return (left > right) - (left < right)


@unhurried
@given(columns_and_rows())
def test_bytes_order_as_sql_and_equal_values_have_the_same(given_: Any) -> None:
    columns, (left, right) = given_
    codec = KeyCodec(columns)
    one, other = codec.encode(left, b"p"), codec.encode(right, b"p")
    assert sign(one, other) == compare(columns, left, right)
    assert one == other or not (one.startswith(other) or other.startswith(one))


@pytest.mark.parametrize("kind", list(Kind))
@unhurried
@given(data=st.data(), descending=st.booleans(), nulls_first=st.booleans())
def test_each_kind_orders_and_comes_back(kind: Kind, data: st.DataObject, descending: bool, nulls_first: bool) -> None:
    columns = [KeyColumn(kind=kind, descending=descending, nulls_first=nulls_first)]
    codec = KeyCodec(columns)
    values = data.draw(st.lists(st.none() | KEY_DATUMS[kind], min_size=2, max_size=4))
    keys = [codec.encode((value,)) for value in values]
    for one, left in zip(keys, values):
        decoded = codec.decode(one)
        assert compare(columns, decoded, (left,)) == 0
        assert type(decoded[0]) is type(left)
        for other, right in zip(keys, values):
            assert sign(one, other) == compare(columns, (left,), (right,))


@unhurried
@given(columns_and_rows(rows=1), st.binary(max_size=3))
def test_a_tuple_comes_back_behind_its_prefix(given_: Any, prefix: bytes) -> None:
    columns, (row,) = given_
    codec = KeyCodec(columns)
    key = codec.encode(row, prefix)
    assert key.startswith(prefix)
    assert compare(columns, codec.decode(key, len(prefix)), row) == 0
    assert codec.decode_from(key + b"rest", len(prefix))[1] == len(key)
    assert codec.encode(codec.decode(key, len(prefix)), prefix) == key
    with pytest.raises(KeyFormatError):
        codec.decode(key + b"\x00", len(prefix))


@unhurried
@given(columns_and_rows(rows=1), st.data())
def test_malformed_bytes_are_key_format_errors(given_: Any, data: st.DataObject) -> None:
    columns, (row,) = given_
    codec = KeyCodec(columns)
    key = codec.encode(row)
    position = data.draw(st.integers(0, len(key) - 1))
    changed = key[:position] + bytes((data.draw(st.integers(0, 255)),)) + key[position + 1 :]
    for mangled in (key[:position], changed, data.draw(st.binary(max_size=20)), changed[:position] + data.draw(st.binary(max_size=12))):
        try:
            decoded = codec.decode(mangled)
        except KeyFormatError:
            continue
        # What decodes is what such a value is written as.
        assert codec.encode(decoded) == mangled


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (
            Kind.DECIMAL,
            [
                "-Infinity",
                "-1E+500",
                "-101",
                "-100",
                "-99.5",
                "-1E-200",
                "0",
                "1E-200",
                "0.01",
                "1",
                "1.01",
                "10",
                "1E+500",
                "Infinity",
                "NaN",
            ],
        ),
        (Kind.FLOAT, [float("-inf"), -1.5, -5e-324, 0.0, 5e-324, 1.5, float("inf"), float("nan")]),
        (Kind.TEXT, ["", "a", "a\x01", "aa", "b", "é", "\uffff", "\U00010000"]),
        (Kind.BYTES, [b"", b"\x00", b"\x00\x00", b"\x00\x01", b"\x00\xff", b"\x01", b"\xff", b"\xff\xff"]),
        (Kind.INTERVAL, [(-1, 0, 0), (0, -29, 0), (0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 29, 0), (1, 0, 0), (0, 31, 0), (12, 0, 0)]),
    ],
)
def test_known_orders(kind: Kind, values: list[Any], descending: bool) -> None:
    codec = KeyCodec([KeyColumn(kind=kind, descending=descending)])
    keys = [codec.encode((D(value) if kind is Kind.DECIMAL else value,)) for value in values]
    assert sorted(keys, reverse=descending) == keys
    assert len(set(keys)) == len(keys)


def test_equal_values_of_different_spelling_have_one_key() -> None:
    def key(kind: Kind, value: Datum) -> bytes:
        return KeyCodec([KeyColumn(kind=kind)]).encode((value,))

    assert key(Kind.DECIMAL, D("1.0")) == key(Kind.DECIMAL, D("1.00"))
    assert key(Kind.DECIMAL, D("100")) == key(Kind.DECIMAL, D("1E2"))
    assert key(Kind.DECIMAL, D("-0.0")) == key(Kind.DECIMAL, D("0"))
    assert key(Kind.DECIMAL, D("sNaN")) == key(Kind.DECIMAL, D("-NaN"))
    assert key(Kind.FLOAT, -0.0) == key(Kind.FLOAT, 0.0)
    assert key(Kind.INTERVAL, (1, 0, 0)) == key(Kind.INTERVAL, (0, 30, 0)) == key(Kind.INTERVAL, (0, 0, 720 * 3_600_000_000))
    assert str(KeyCodec([KeyColumn(kind=Kind.DECIMAL)]).decode(key(Kind.DECIMAL, D("1.2E4")))[0]) == "12000"


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Kind.INT, 2**63),
        (Kind.INT, -(2**63) - 1),
        (Kind.INT, 1.5),
        (Kind.INT, "1"),
        (Kind.INT, D(1)),
        (Kind.DATE, 2**31),
        (Kind.TIME, -1),
        (Kind.TIME, 86_400_000_001),
        (Kind.TIME, D("NaN")),
        (Kind.TIME, 1.0),
        (Kind.BOOL, 2),
        (Kind.FLOAT, "x"),
        (Kind.FLOAT, 10**400),
        (Kind.DECIMAL, 1),
        (Kind.TEXT, "a\x00b"),
        (Kind.TEXT, "\ud800"),
        (Kind.TEXT, b"a"),
        (Kind.BYTES, "a"),
        (Kind.UUID, b"short"),
        (Kind.INTERVAL, (2**31, 0, 0)),
        (Kind.INTERVAL, (0, 0)),
    ],
)
def test_what_a_kind_cannot_hold_is_refused_with_its_position(kind: Kind, value: Any, descending: bool) -> None:
    codec = KeyCodec([KeyColumn(kind=Kind.INT), KeyColumn(kind=kind, descending=descending)])
    with pytest.raises(ValueRangeError, match=r"key column 2 cannot hold"):
        codec.encode((1, value))


def test_a_wrong_number_of_values_is_refused() -> None:
    codec = key_codec((KeyColumn(kind=Kind.INT), KeyColumn(kind=Kind.TEXT)))
    assert codec is key_codec((KeyColumn(kind=Kind.INT), KeyColumn(kind=Kind.TEXT)))
    for values in ((), (1,), (1, "a", 2)):
        with pytest.raises(ValueRangeError):
            codec.encode(values)
    with pytest.raises(ValueRangeError):
        codec.encode_prefix((1, "a", 2))
    assert codec.encode((1, "a")).startswith(codec.encode_prefix((1,)))


BOUNDS = st.none() | st.tuples(st.integers(-3, 3), st.booleans()).map(lambda pair: Bound(*pair))


@unhurried
@given(
    COLUMNS,
    st.builds(KeyColumn, kind=st.just(Kind.INT), descending=st.booleans(), nulls_first=st.booleans()),
    BOUNDS,
    BOUNDS,
    st.data(),
)
def test_a_span_between_bounds_holds_exactly_the_rows_a_filter_takes(
    leading: KeyColumn, column: KeyColumn, lower: Bound | None, upper: Bound | None, data: st.DataObject
) -> None:
    codec = KeyCodec([leading, column, KeyColumn(kind=Kind.TEXT)])
    equal, other = (data.draw(st.none() | KEY_DATUMS[leading.kind]) for _ in range(2))
    span = codec.span_between((equal,), lower, upper, b"p")
    for first in (equal, other):
        for value in (None, *range(-4, 5)):
            matches = (
                compare([leading], (first,), (equal,)) == 0
                and value is not None
                and (lower is None or value > lower.value or (lower.inclusive and value == lower.value))
                and (upper is None or value < upper.value or (upper.inclusive and value == upper.value))
            )
            for text in ("", "\U0010ffff", None):
                assert span.contains(codec.encode((first, value, text), b"p")) == matches


@unhurried
@given(columns_and_rows(rows=2))
def test_bounds_and_prefix_spans_follow_the_order_of_the_bytes(given_: Any) -> None:
    columns, (row, other) = given_
    codec = KeyCodec(columns)
    key = codec.encode(row)
    for length in range(1, len(columns) + 1):
        found = compare(columns[:length], row[:length], other[:length])
        first = other[:length]
        assert (key >= codec.lower_bound(first, True)) == (found >= 0)
        assert (key >= codec.lower_bound(first, False)) == (found > 0)
        assert (key < codec.upper_bound(first, True)) == (found <= 0)
        assert (key < codec.upper_bound(first, False)) == (found < 0)
        assert codec.span_of_prefix(first).contains(key) == (found == 0)


def test_a_bound_that_is_null_takes_nothing() -> None:
    codec = KeyCodec([KeyColumn(kind=Kind.INT)])
    assert codec.span_between((), Bound(None, True), None).is_empty
    assert codec.span_between((), Bound(7, False), Bound(7, True)).is_empty


@st.composite
def key_batches(draw: st.DrawFn) -> tuple[list[KeyColumn], list[LayoutColumn], list[tuple[Datum, ...]]]:
    columns = draw(st.lists(COLUMNS, min_size=1, max_size=4))
    stored = [
        LayoutColumn(
            column_id=1,
            kind=column.kind,
            width=draw(st.sampled_from([2, 4, 8])) if column.kind is Kind.INT else draw(st.sampled_from([4, 8])),
            precision=draw(st.sampled_from([None, 9, 30])),
            scale=3,
            utc=draw(st.booleans()),
        )
        for column in columns
    ]
    nullable = draw(st.booleans())
    values = [column_datums(column) if nullable else column_datums(column).filter(lambda value: value is not None) for column in stored]
    return columns, stored, draw(st.lists(st.tuples(*values), max_size=6))


@unhurried
@given(key_batches(), st.binary(max_size=3))
def test_a_batch_of_keys_is_that_of_its_rows(given_: Any, prefix: bytes) -> None:
    columns, stored, rows = given_
    codec = KeyCodec(columns)
    arrays = [datums_to_arrow(column, [row[position] for row in rows]) for position, column in enumerate(stored)]
    assert codec.encode_batch(arrays, prefix) == [codec.encode(row, prefix) for row in rows]
    assert codec.encode_batch([array.slice(1) for array in arrays], prefix) == [codec.encode(row, prefix) for row in rows[1:]]


@unhurried
@given(key_batches(), st.binary(max_size=3))
def test_a_batch_of_keys_decodes_to_their_rows(given_: Any, prefix: bytes) -> None:
    columns, stored, rows = given_
    codec = KeyCodec(columns)
    keys = [codec.encode(row, prefix) for row in rows]
    arrays = codec.decode_batch(keys, len(prefix), stored)
    for array in arrays:
        array.validate(full=not pa.types.is_time(array.type))
    decoded = [arrow_to_datums(column, array) for column, array in zip(stored, arrays)]
    expected = [codec.decode(key, len(prefix)) for key in keys]
    assert all(len(values) == len(rows) for values in decoded)
    for row, other in zip(zip(*decoded), expected):
        assert compare(columns, row, other) == 0


@unhurried
@given(st.lists(COLUMNS, min_size=1, max_size=3), st.data())
def test_malformed_keys_are_refused_in_bulk_as_one_by_one(columns: list[KeyColumn], data: st.DataObject) -> None:
    codec = KeyCodec(columns)
    stored = [LayoutColumn(column_id=1, kind=column.kind) for column in columns]
    rows = st.tuples(*(column_datums(column) for column in stored))
    good, key = codec.encode(data.draw(rows)), codec.encode(data.draw(rows))
    position = data.draw(st.integers(0, len(key) - 1))
    changed = key[:position] + bytes((data.draw(st.integers(0, 255)),)) + key[position + 1 :]
    for mangled in (key[:position], changed, key + b"\x00", key + key, b""):
        try:
            codec.decode(mangled)
        except KeyFormatError:
            with pytest.raises(KeyFormatError):
                codec.decode_batch([good, mangled, good], 0, stored)


def test_a_key_that_does_not_fit_the_type_asked_for_is_refused() -> None:
    codec = KeyCodec([KeyColumn(kind=Kind.INT)])
    with pytest.raises(ValueRangeError):
        codec.decode_batch([codec.encode((1,))], 0, [LayoutColumn(column_id=1, kind=Kind.DATE)])
    with pytest.raises(KeyFormatError):
        codec.decode_batch([codec.encode((40_000,))], 0, [LayoutColumn(column_id=1, kind=Kind.INT, width=2)])


def test_a_batch_refuses_what_its_rows_would_be_refused_for() -> None:
    times = pa.array([1, -1], pa.int64()).view(pa.time64("us"))
    with pytest.raises(ValueRangeError):
        KeyCodec([KeyColumn(kind=Kind.TIME)]).encode_batch([times])
    with pytest.raises(ValueRangeError):
        KeyCodec([KeyColumn(kind=Kind.TEXT)]).encode_batch([pa.array(["a\x00"])])
    with pytest.raises(ValueRangeError):
        KeyCodec([KeyColumn(kind=Kind.INT)]).encode_batch([])
    with pytest.raises(ValueRangeError):
        KeyCodec([KeyColumn(kind=Kind.INT)]).encode_batch([pa.array(["a"])])
    assert arrow_type(LayoutColumn(column_id=1, kind=Kind.TIME)) == times.type
