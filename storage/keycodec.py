"""Keys of rows and index entries: tuples of datums as bytes that order as SQL orders the tuples.

    key = prefix (`keys.index_prefix`) | column 1 | column 2 | …         column = 01                  NULL that stands first
                                                                                  02 <value>         a value (`keypart`)
                                                                                  03                  NULL that stands last

Invariants:
- Bytes order as the columns say: ascending or descending, NULL first or last in the order of the *bytes*, whatever the direction.
- SQL-equal ⇔ same bytes, NULL being equal to NULL.
- Prefix-free: no tuple's bytes are a prefix of another's of the same columns, nor a column's of another value's.

Each codec compiles one expression for the tuples without NULL; `_encode_parts` is the definition, and serves the rest and the errors.

Not here: the bytes before the columns (`keys`), blanks of CHAR (stripped by who knows the type).
"""

import functools
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import msgspec
import pyarrow as pa

from dsdb.storage import keybatch, keypart
from dsdb.storage.datum import Datum, Kind
from dsdb.storage.errors import KeyFormatError, ValueRangeError
from dsdb.storage.keys import Span, prefix_end
from dsdb.storage.rowarrow import LayoutColumn, datums_to_arrow

NULL_FIRST, PRESENT, NULL_LAST = b"\x01", b"\x02", b"\x03"


class KeyColumn(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """How a column orders in a key."""

    kind: Kind
    descending: bool = False
    nulls_first: bool = False
    """Whether NULL stands before all values in the order of the bytes."""


class Bound(NamedTuple):
    """One end of a comparison: `> value`, `>= value`, `< value` or `<= value`."""

    value: Datum
    inclusive: bool


class KeyCodec:
    """Encodes and decodes the keys of one sequence of columns."""

    def __init__(self, columns: Sequence[KeyColumn]) -> None:
        self.columns = tuple(columns)
        self._nulls = [NULL_FIRST if column.nulls_first else NULL_LAST for column in self.columns]
        self._decoders = [keypart.DECODERS[column.kind] for column in self.columns]
        self._shapes = [keybatch.ColumnShape(column.kind, column.descending, PRESENT, null) for column, null in zip(columns, self._nulls)]
        self._is_decoded_at_once = keybatch.DECODED_AT_ONCE.issuperset(column.kind for column in self.columns)
        self._directions = [column.descending for column in self.columns]
        self.encode: Callable[..., bytes] = _compile_encoder(self.columns, self._encode_all)
        """encode(values, prefix=b"") gives `prefix` and the bytes of all columns.

        Raises ValueRangeError on a value that is not of its column's kind, or outside of its range, or on a wrong number of values.
        """

    def _encode_all(self, values: Sequence[Datum], prefix: bytes) -> bytes:
        if len(values) != len(self.columns):
            raise ValueRangeError(f"{len(values)} values for a key of {len(self.columns)} columns")
        return self._encode_parts(values, prefix)

    def encode_prefix(self, values: Sequence[Datum], prefix: bytes = b"") -> bytes:
        """Encode the first columns, as many as there are values.  Raises ValueRangeError as `encode` does."""
        if len(values) == len(self.columns):
            return self.encode(values, prefix)
        if len(values) > len(self.columns):
            raise ValueRangeError(f"{len(values)} values for a key of {len(self.columns)} columns")
        return self._encode_parts(values, prefix)

    def _encode_parts(self, values: Sequence[Datum], prefix: bytes) -> bytes:
        parts = [prefix]
        for position, value in enumerate(values):
            if value is None:
                parts.append(self._nulls[position])
                continue
            column = self.columns[position]
            try:
                body = keypart.ENCODERS[column.kind](value)
            except keypart.REFUSALS as error:
                raise ValueRangeError(f"key column {position + 1} cannot hold {value!r} as {column.kind.name}") from error
            parts.append(PRESENT)
            parts.append(body.translate(keypart.COMPLEMENT) if column.descending else body)
        return b"".join(parts)

    def decode(self, key: bytes, offset: int = 0) -> tuple[Datum, ...]:
        """Give the values of a key whose columns begin at `offset` and end with the key.  Raises KeyFormatError."""
        values, end = self.decode_from(key, offset)
        if end != len(key):
            raise KeyFormatError(f"{len(key) - end} bytes too many in key {key.hex()}")
        return values

    def decode_from(self, key: bytes, offset: int = 0) -> tuple[tuple[Datum, ...], int]:
        """Give the values of the columns that begin at `offset`, and the offset behind them.  Raises KeyFormatError."""
        values: list[Datum] = []
        for null, descending, decode in zip(self._nulls, self._directions, self._decoders):
            tag = key[offset : offset + 1]
            value: Datum = None
            if tag == null:
                offset += 1
            elif tag != PRESENT:
                raise KeyFormatError(f"no column {len(values) + 1} at byte {offset} of key {key.hex()}")
            elif descending:
                value, length = decode(key[offset + 1 :].translate(keypart.COMPLEMENT), 0)
                offset += 1 + length
            else:
                value, offset = decode(key, offset + 1)
            values.append(value)
        return tuple(values), offset

    def encode_batch(self, columns: Sequence[pa.Array], prefix: bytes = b"") -> list[bytes]:
        """Encode many keys at once: one Arrow array a column, of a type of the column's kind (`rowarrow`).

        Equal to `encode` of each row.  Raises ValueRangeError.
        """
        if len(columns) != len(self.columns):
            raise ValueRangeError(f"{len(columns)} arrays for a key of {len(self.columns)} columns")
        return keybatch.encode_batch(self._shapes, columns, prefix)

    def decode_batch(self, keys: Sequence[bytes], offset: int, columns: Sequence[LayoutColumn]) -> list[pa.Array]:
        """Decode many keys at once: give one Arrow array a column, of the types of `columns`, whose kinds are those of the key.

        Equal to `decode` of each key.  Raises KeyFormatError, also for a value that does not fit the type asked for.
        """
        if [column.kind for column in columns] != [column.kind for column in self.columns]:
            raise ValueRangeError(f"columns {list(columns)} for a key of {self.columns}")
        if self._is_decoded_at_once:
            return keybatch.decode_batch(self._shapes, keys, offset, columns)
        rows = [self.decode(key, offset) for key in keys]
        try:
            return [datums_to_arrow(column, [row[position] for row in rows]) for position, column in enumerate(columns)]
        except ValueRangeError as error:
            raise KeyFormatError(f"a key's value is none of its column: {error}") from error

    def span_of_prefix(self, values: Sequence[Datum], prefix: bytes = b"") -> Span:
        """Give the span of all keys whose first columns equal `values`."""
        start = self.encode_prefix(values, prefix)
        return Span(start, prefix_end(start))

    def lower_bound(self, values: Sequence[Datum], inclusive: bool, prefix: bytes = b"") -> bytes:
        """Give the start of the keys whose first columns stand, in the order of the bytes, at (`inclusive`) or behind `values`."""
        key = self.encode_prefix(values, prefix)
        return key if inclusive else prefix_end(key)

    def upper_bound(self, values: Sequence[Datum], inclusive: bool, prefix: bytes = b"") -> bytes:
        """Give the end of the keys whose first columns stand, in the order of the bytes, before or at (`inclusive`) `values`."""
        key = self.encode_prefix(values, prefix)
        return prefix_end(key) if inclusive else key

    def span_between(self, equal: Sequence[Datum], lower: Bound | None, upper: Bound | None, prefix: bytes = b"") -> Span:
        """Give the span of `first columns = equal AND next column > lower AND next column < upper`.

        Bounds are in SQL's order, whatever the column's direction; NULL is outside, also without bounds, and a bound that is NULL
        gives an empty span.  Raises ValueRangeError on a bound that the column's kind cannot hold.
        """
        present = self.encode_prefix(equal, prefix) + PRESENT
        if (lower is not None and lower.value is None) or (upper is not None and upper.value is None):
            return Span(present, present)
        first, last = (upper, lower) if self.columns[len(equal)].descending else (lower, upper)
        start = present if first is None else self.lower_bound((*equal, first.value), first.inclusive, prefix)
        end = prefix_end(present) if last is None else self.upper_bound((*equal, last.value), last.inclusive, prefix)
        return Span(start, max(start, end))


@functools.lru_cache(maxsize=4096)
def key_codec(columns: tuple[KeyColumn, ...]) -> KeyCodec:
    """Give the codec of these columns; compiled once."""
    return KeyCodec(columns)


_STRUCT_LETTERS = {1: "B", 4: "I", 8: "Q"}
_BOOL_BYTES = {False: 0, True: 1}


def _compile_encoder(columns: tuple[KeyColumn, ...], define: Callable[[Sequence[Datum], bytes], bytes]) -> Callable[..., bytes]:
    """Make `encode(values, prefix)`: one expression without branches, and `define` for what it does not take.

    For (INT, DATE descending, TEXT) the expression is
    `prefix + pack0(2, v0 + 9223372036854775808, 2, 2147483647 - v1) + PRESENT + text(v2)`.
    It refuses NULLs and all that `define` refuses by one of the errors of `keypart.REFUSALS`.
    """
    scope: dict[str, Any] = {"define": define, "refusals": keypart.REFUSALS, "PRESENT": PRESENT, "COMPLEMENT": keypart.COMPLEMENT}
    terms: list[str] = []
    letters, arguments = "", list[str]()

    def close_pack() -> None:
        nonlocal letters, arguments
        if letters:
            scope[f"pack{len(terms)}"] = struct.Struct(">" + letters).pack
            terms.append(f"pack{len(terms)}({', '.join(arguments)})")
            letters, arguments = "", []

    for position, column in enumerate(columns):
        if column.kind in keypart.INTEGER_BOUNDS or column.kind is Kind.FLOAT:
            letter, argument = _packed(column, f"v{position}", scope)
            letters += "B" + letter
            arguments += ["2", argument]
        else:
            close_pack()
            scope[f"body{position}"] = keypart.ENCODERS[column.kind]
            terms.append(f"PRESENT + body{position}(v{position})" + (".translate(COMPLEMENT)" if column.descending else ""))
    close_pack()
    names = "".join(f"v{position}, " for position in range(len(columns)))
    source = f"""
def encode(values, prefix=b""):
    try:
        ({names}) = values
        return prefix + {" + ".join(terms) or 'b""'}
    except refusals:
        return define(values, prefix)
"""
    exec(source, scope)
    return cast(Callable[..., bytes], scope["encode"])


def _packed(column: KeyColumn, name: str, scope: dict[str, Any]) -> tuple[str, str]:
    """Give the struct letter of a column of fixed width, and the expression of its unsigned integer."""
    if column.kind is Kind.FLOAT:
        scope["float_bits"] = keypart.float_bits
        return "Q", f"{2**64 - 1} - float_bits({name})" if column.descending else f"float_bits({name})"
    width, low, high = keypart.INTEGER_BOUNDS[column.kind]
    value = name
    if column.kind is Kind.BOOL:
        scope["bool_bytes"] = _BOOL_BYTES
        value = f"bool_bytes[{name}]"
    elif high - low != 256**width - 1:
        # The struct would take more here than the kind.
        scope["refuse"] = _refuse
        value = f"({name} if {low} <= {name} <= {high} else refuse())"
    return _STRUCT_LETTERS[width], f"{256**width - 1 + low} - {value}" if column.descending else f"{value} + {-low}"


def _refuse() -> int:
    raise ValueError("out of range")
