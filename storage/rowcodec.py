"""Row values: all columns of a row that are not in its key, in a fixed layout made for decoding in bulk.

    ┌───────────┬───────────────┬───────────────────────┬─────────────────────────┬────────────┐
    │ layout id │ null bitmap   │ fixed columns         │ end offsets of the      │ bytes of   │
    │ u32       │ 1 bit a column│ little-endian, packed │ variable columns, u32   │ these      │
    └───────────┴───────────────┴───────────────────────┴─────────────────────────┴────────────┘
      the head: of one length for all rows of a layout                              the tail

    kind                   fixed form                                    variable form
    BOOL                   1 byte
    INT, FLOAT             width bytes
    DECIMAL                i64 (≤ 18 digits) or i128, unscaled           unbounded: the plain spelling
    TEXT, BYTES                                                          UTF-8; bytes
    DATE | TIME, TIMESTAMP i32 | i64
    INTERVAL               i32 months, i32 days, i64 nanoseconds: Arrow's own form
    UUID                   16 bytes

Invariants:
- A layout id names one sequence of columns for ever; the columns of a NULL hold zeros, or no bytes, so a row has one encoding.
- Rows of one layout have heads of one length, so that a column is a strided view of them.
- What was encoded decodes to equal datums; a DECIMAL of fixed scale comes back at that scale.
- A value that is short, long, or of an unknown layout is a CorruptionError.

Not here: Arrow types and datums ⇄ Arrow (`rowarrow`), rows in bulk (`rowbatch`), which columns are in the key (`dsdb.sql.rows`).
"""

import decimal
import functools
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import msgspec
import pyarrow as pa

from dsdb.storage import rowbatch
from dsdb.storage.datum import DAY_MICROSECONDS, Datum, Kind
from dsdb.storage.errors import CorruptionError, ValueRangeError
from dsdb.storage.rowarrow import (
    DECIMAL_PRECISION_MAX,
    DECIMAL_UNITS,
    EXACT,
    INTERVAL_MICROSECONDS_MAX,
    LayoutColumn,
    arrow_type,
    check_kinds,
    field_name,
    plain_spelling,
    rows_to_batch,
)
from dsdb.storage.rowbatch import HeadShape

__all__ = ["LayoutColumn", "RowCodec", "RowLayout", "codec_for", "decode_batches"]


class RowLayout(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The columns of a row value, in stored order."""

    layout_id: int
    columns: tuple[LayoutColumn, ...]


_REFUSALS = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, struct.error)
"""What an encoder's expressions raise on a value that is not of the column."""


class RowCodec:
    """Encodes and decodes the values of one layout; compiled once (`codec_for`)."""

    def __init__(self, layout: RowLayout) -> None:
        self.layout = layout
        self.shape = HeadShape(layout.layout_id, layout.columns)
        self._positions = {column.column_id: position for position, column in enumerate(layout.columns)}
        self._encode = _compile_encoder(self.shape)
        self._decode = _compile_decoder(self.shape, range(len(layout.columns)))
        self._decoders: dict[tuple[int, ...], Callable[[bytes], tuple[Datum, ...]]] = {}

    def encode(self, values: Sequence[Datum]) -> bytes:
        """Give the row value of one datum a column.  Raises ValueRangeError, which names the position and the value."""
        try:
            return self._encode(values)
        except _REFUSALS as error:
            raise self._refusal(values) from error

    def _refusal(self, values: Sequence[Datum]) -> ValueRangeError:
        """Find the value that was refused, by encoding each one alone."""
        if len(values) != len(self.layout.columns):
            return ValueRangeError(f"{len(values)} values for a row of {len(self.layout.columns)} columns")
        for position, (column, value) in enumerate(zip(self.layout.columns, values)):
            try:
                _compile_encoder(HeadShape(0, (column,)))([value])
            except _REFUSALS as error:
                return ValueRangeError(f"column {position + 1} cannot hold {value!r} as {_spelled(column)}: {error}")
        return ValueRangeError("a row above 4 GiB")

    def decode(self, value: bytes) -> tuple[Datum, ...]:
        """Give the datums of all columns.  Raises CorruptionError."""
        return _checked(self._decode, value, self.shape)

    def decode_columns(self, value: bytes, positions: Sequence[int]) -> tuple[Datum, ...]:
        """Give the datums of the columns at these positions of the layout.  Raises CorruptionError."""
        key = tuple(positions)
        decoder = self._decoders.get(key)
        if decoder is None:
            if len(self._decoders) >= _DECODERS_MAX:
                self._decoders.clear()
            decoder = self._decoders[key] = _compile_decoder(self.shape, key)
        return _checked(decoder, value, self.shape)

    def position_of(self, column: LayoutColumn) -> int | None:
        """Say where the layout has the column with this one's id, if it does.  Raises ValueRangeError if that is of another kind."""
        position = self._positions.get(column.column_id)
        if position is not None:
            check_kinds(self.layout.columns[position], column)
        return position

    def decode_batch(self, values: Sequence[bytes], columns: Sequence[int]) -> pa.RecordBatch:
        """Give the columns with these ids, named by `field_name`, a row a value.  Raises CorruptionError; KeyError on a foreign id."""
        wanted = [self.layout.columns[self._positions[column_id]] for column_id in columns]
        return decode_batches(values, {self.layout.layout_id: self.layout}, wanted)

    def encode_batch(self, batch: pa.RecordBatch) -> list[bytes]:
        """Give the row values of a batch whose columns are those of the layout, in order and of their exact Arrow types; names are ignored.

        Equal to `encode` of each row.  Raises ValueRangeError.
        """
        return rowbatch.encode_batch(self.shape, batch)


_DECODERS_MAX = 256
"""Compiled decoders a codec keeps, one for each set of columns asked for."""


@functools.lru_cache(maxsize=4096)
def codec_for(layout: RowLayout) -> RowCodec:
    """Give the codec of a layout."""
    return RowCodec(layout)


def decode_batches(
    values: Sequence[bytes],
    layouts: Mapping[int, RowLayout],
    target: Sequence[LayoutColumn],
    defaults: Mapping[int, Datum] | None = None,
) -> pa.RecordBatch:
    """Decode row values of one or several layouts to the columns of `target`, named by `field_name`.

    A column that a row's layout does not have is its default, by column id, or NULL; one that was widened since is converted.
    Raises CorruptionError on a malformed value or an unknown layout id.
    """
    if len(values) <= _ONE_BY_ONE_MAX:
        return _decode_one_by_one(values, layouts, target, defaults or {})
    shapes = {layout_id: codec_for(layout).shape for layout_id, layout in layouts.items()}
    return rowbatch.decode_batches(values, shapes, target, defaults or {})


_ONE_BY_ONE_MAX = 64
"""Rows up to which decoding each one is faster than the array operations, which cost some 0.4 ms for any number of rows."""


def _decode_one_by_one(
    values: Sequence[bytes], layouts: Mapping[int, RowLayout], target: Sequence[LayoutColumn], defaults: Mapping[int, Datum]
) -> pa.RecordBatch:
    readers: dict[bytes, Callable[[bytes], tuple[Datum, ...]]] = {}
    rows = []
    for value in values:
        head = value[: rowbatch.LAYOUT_ID_BYTES]
        reader = readers.get(head)
        if reader is None:
            layout_id = int.from_bytes(head, "little")
            if len(head) < rowbatch.LAYOUT_ID_BYTES or layout_id not in layouts:
                raise CorruptionError(f"a row of the unknown layout {layout_id}: {value[:64].hex()}")
            reader = readers[head] = _row_reader(codec_for(layouts[layout_id]), target, defaults)
        rows.append(reader(value))
    return rows_to_batch(target, [field_name(column.column_id) for column in target], rows)


def _row_reader(codec: RowCodec, target: Sequence[LayoutColumn], defaults: Mapping[int, Datum]) -> Callable[[bytes], tuple[Datum, ...]]:
    """Give the function that reads the columns of `target` from a row value."""
    positions = [codec.position_of(column) for column in target]
    present = [position for position in positions if position is not None]
    if len(present) == len(positions):
        return lambda value: codec.decode_columns(value, present)

    def read(value: bytes) -> tuple[Datum, ...]:
        decoded = iter(codec.decode_columns(value, present))
        return tuple(defaults.get(column.column_id) if position is None else next(decoded) for column, position in zip(target, positions))

    return read


def _checked(decoder: Callable[[bytes], tuple[Datum, ...]], value: bytes, shape: HeadShape) -> tuple[Datum, ...]:
    try:
        return decoder(value)
    except (struct.error, ValueError, ArithmeticError) as error:
        raise CorruptionError(f"not a row of layout {shape.layout_id}: {value[:64].hex()} ({len(value)} bytes): {error}") from error


def _spelled(column: LayoutColumn) -> str:
    return f"{column.kind.name} ({arrow_type(column)})"


# ---- Compiled encoders ------------------------------------------------------------------------------------------------------------


def _text_tail(value: str) -> bytes:
    raw = value.encode()
    if 0 in raw:
        raise ValueError("text with a NUL character")
    return raw


def _bytes_tail(value: bytes) -> bytes:
    if type(value) is not bytes:
        raise TypeError("not bytes")
    return value


def _uuid(value: bytes) -> bytes:
    if type(value) is not bytes or len(value) != 16:
        raise ValueError("a UUID has 16 bytes")
    return value


def _nanoseconds(microseconds: int) -> int:
    if not -INTERVAL_MICROSECONDS_MAX <= microseconds <= INTERVAL_MICROSECONDS_MAX:
        raise ValueError("an interval's microseconds are beyond 292 years")
    return microseconds * 1000


def _refuse() -> int:
    raise ValueError("out of range")


_ENCODER_SCOPE: dict[str, Any] = {
    **{f"factor{scale}": decimal.Decimal(10**scale) for scale in range(DECIMAL_PRECISION_MAX + 1)},
    "integral": EXACT.to_integral_exact,
    "multiply": EXACT.multiply,
    "bool_byte": {False: 0, True: 1},
    "spelling": lambda value: plain_spelling(value).encode(),
    "text": _text_tail,
    "raw": _bytes_tail,
    "uuid": _uuid,
    "nanoseconds": _nanoseconds,
    "refuse": _refuse,
}


def _fixed_terms(column: LayoutColumn, name: str) -> list[str]:
    """Give the expressions of the struct items of a fixed column."""
    match column.kind:
        case Kind.BOOL:
            return [f"bool_byte[{name}]"]
        case Kind.DECIMAL:
            limit = 10 ** (column.precision or 0)
            number = f"int(integral(multiply({name}, factor{column.scale})))"
            checked = f"(n if {-limit} < (n := {number}) < {limit} else refuse())"
            return [checked if (column.precision or 0) <= 18 else f"{checked}.to_bytes(16, 'little', signed=True)"]
        case Kind.TIME:
            return [f"({name} if 0 <= {name} <= {DAY_MICROSECONDS} else refuse())"]
        case Kind.INTERVAL:
            return [f"{name}[0]", f"{name}[1]", f"nanoseconds({name}[2])"]
        case Kind.UUID:
            return [f"uuid({name})"]
        case _:
            return [name]


def _tail_term(column: LayoutColumn, name: str) -> str:
    encoder = "spelling" if column.kind is Kind.DECIMAL else "text" if column.kind is Kind.TEXT else "raw"
    return f"{encoder}({name})"


def _compile_encoder(shape: HeadShape) -> Callable[[Sequence[Datum]], bytes]:
    """Make `encode(values)`: one struct pack of the head, and the tail.

    It has two bodies: one for rows without NULL, and one in which each expression stands behind `0 if v is None else`.
    """
    scope = {**_ENCODER_SCOPE, "pack": shape.struct.pack}
    plain, nullable = ("\n".join(_encoder_body(shape, nulls)) for nulls in (False, True))
    names = "".join(f"v{position}, " for position in range(len(shape.columns)))
    # Not `None not in values`: that would compare decimals.
    complete = " and ".join(f"v{position} is not None" for position in range(len(shape.columns))) or "True"
    source = f"def encode(values):\n    ({names}) = values\n    if {complete}:\n{plain}\n{nullable}\n"
    exec(source, scope)
    return cast(Callable[[Sequence[Datum]], bytes], scope["encode"])


def _encoder_body(shape: HeadShape, nullable: bool) -> list[str]:
    indent = "    " if nullable else "        "
    lines, fixed, ends, tail = [], list[str](), list[str](), list[str]()
    for position, column in enumerate(shape.columns):
        name = f"v{position}"
        if shape.is_fixed(position):
            zero = 'b""' if shape.letters[position].endswith("s") else "0"
            fixed += [f"{zero} if {name} is None else {term}" if nullable else term for term in _fixed_terms(column, name)]
            continue
        term = _tail_term(column, name)
        lines.append(f'{indent}t{position} = b"" if {name} is None else {term}' if nullable else f"{indent}t{position} = {term}")
        lines.append(f"{indent}e{position} = {ends[-1] + ' + ' if ends else ''}len(t{position})")
        ends.append(f"e{position}")
        tail.append(f"t{position}")
    if nullable:
        bits = " | ".join(f"({1 << position} if v{position} is None else 0)" for position in range(len(shape.columns))) or "0"
        nulls = f"({bits}).to_bytes({shape.bitmap_bytes}, 'little')"
    else:
        nulls = repr(bytes(shape.bitmap_bytes))
    head = f"pack({', '.join([str(shape.layout_id), nulls, *fixed, *ends])})"
    return [*lines, f"{indent}return {' + '.join([head, *tail])}"]


# ---- Compiled decoders ------------------------------------------------------------------------------------------------------------


def _fail(message: str) -> None:
    raise ValueError(message)


_DECODER_SCOPE: dict[str, Any] = {
    "Decimal": decimal.Decimal,
    "multiply": EXACT.multiply,
    **{f"unit{scale}": unit for scale, unit in enumerate(DECIMAL_UNITS)},
    "fail": _fail,
    "from_bytes": int.from_bytes,
}


def _compile_decoder(shape: HeadShape, positions: Sequence[int]) -> Callable[[bytes], tuple[Datum, ...]]:
    """Make `decode(value)`: one struct unpack of the head, a check of the tail's length, and one expression a column asked for."""
    names, ends = ["layout_id", "nulls"], []
    for position, column in enumerate(shape.columns):
        if not shape.is_fixed(position):
            ends.append(f"e{position}")
        elif column.kind is Kind.INTERVAL:
            names += [f"v{position}_months", f"v{position}_days", f"v{position}_nanoseconds"]
        else:
            names.append(f"v{position}")
    terms, previous = {}, "head"
    for position, column in enumerate(shape.columns):
        if shape.is_fixed(position):
            terms[position] = _fixed_value(column, f"v{position}")
        else:
            terms[position] = _tail_value(column, f"value[{previous}:head + e{position}]")
            previous = f"head + e{position}"
    plain = "".join(f"{terms[position]}, " for position in positions)
    nullable = "".join(f"None if bits & {1 << position} else {terms[position]}, " for position in positions)
    check = f"{' <= '.join(['0', *ends])} == len(value) - head" if ends else "len(value) == head"
    source = f"""
def decode(value):
    {", ".join(names + ends)} = unpack(value)
    if layout_id != {shape.layout_id} or not {check}:
        fail("layout or length")
    if nulls == no_nulls:
        return ({plain})
    bits = from_bytes(nulls, "little")
    return ({nullable})
"""
    scope = {**_DECODER_SCOPE, "unpack": shape.struct.unpack_from, "head": shape.head_bytes, "no_nulls": bytes(shape.bitmap_bytes)}
    exec(source, scope)
    return cast(Callable[[bytes], tuple[Datum, ...]], scope["decode"])


def _fixed_value(column: LayoutColumn, name: str) -> str:
    match column.kind:
        case Kind.BOOL:
            return f"{name} != 0"
        case Kind.DECIMAL if (column.precision or 0) <= 18:
            return f"multiply({name}, unit{column.scale})"
        case Kind.DECIMAL:
            return f"multiply(from_bytes({name}, 'little', signed=True), unit{column.scale})"
        case Kind.INTERVAL:
            return f"({name}_months, {name}_days, {name}_nanoseconds // 1000)"
        case _:
            return name


def _tail_value(column: LayoutColumn, raw: str) -> str:
    match column.kind:
        case Kind.DECIMAL:
            return f"Decimal({raw}.decode())"
        case Kind.TEXT:
            return f"{raw}.decode()"
        case _:
            return raw
