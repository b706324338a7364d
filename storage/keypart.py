"""One value as order-preserving bytes: the form a datum takes inside a key, per kind.

    kind                    bytes, ascending (descending: every byte complemented)
    BOOL                    00 | 01
    INT, TIMESTAMP, TIME    8 bytes big-endian: the value less the least value of the kind
    DATE                    4 bytes, likewise
    FLOAT                   8 bytes: IEEE bits, all flipped if negative, else only the sign; −0.0 is 0.0, every NaN is one
    DECIMAL                 class; then exponent and digits unless zero, infinite or NaN (see `decimal_bytes`)
    TEXT                    UTF-8, 00
    BYTES                   `keys.escape`: 00 as 00 ff, closed by 00 01
    INTERVAL                10 bytes: the microseconds it compares by, biased
    UUID                    16 bytes

Invariants:
- Bytes order as SQL compares: a < b ⇔ bytes(a) < bytes(b); SQL-equal ⇔ same bytes.
- Self-delimiting: no value's bytes are a prefix of another value's bytes of the same kind.
- `decode` accepts exactly what `encode` gives; anything else is a KeyFormatError.  The spelling of a value (1.50, `30 days`) is not kept.

Not here: NULL, descending columns and tuples (`keycodec`).
"""

import binascii
import decimal
import re
import struct
from collections.abc import Callable
from typing import Any, Final, TypeAlias

from dsdb.storage.datum import DAY_MICROSECONDS, INT64_MAX, INT64_MIN, MONTH_DAYS, Datum, Interval, Kind
from dsdb.storage.errors import KeyFormatError
from dsdb.storage.keys import escape

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
INTEGER_BOUNDS: Final[dict[Kind, tuple[int, int, int]]] = {
    Kind.BOOL: (1, 0, 1),
    Kind.INT: (8, INT64_MIN, INT64_MAX),
    Kind.DATE: (4, INT32_MIN, INT32_MAX),
    Kind.TIME: (8, 0, DAY_MICROSECONDS),
    Kind.TIMESTAMP: (8, INT64_MIN, INT64_MAX),
}
"""Kinds stored as one integer: its width in bytes, and the least and greatest value."""

COMPLEMENT = bytes(255 - byte for byte in range(256))
"""Translation table that turns ascending bytes into descending ones, and back."""

_DOUBLE = struct.Struct(">d")
_SIGN = 1 << 63
_ALL = (1 << 64) - 1
_NAN_BITS = 0x7FF8_0000_0000_0000 | _SIGN
_ZERO_FLIPPED = _ALL ^ _SIGN

Decoded: TypeAlias = tuple[Datum, int]
"""A value and the offset behind it."""


def float_bits(value: float) -> int:
    """Give the 64 bits by which doubles order: NaN above infinity, −0.0 as 0.0."""
    if value != value:
        return _NAN_BITS
    bits = int.from_bytes(_DOUBLE.pack(value + 0.0), "big")
    return bits ^ _ALL if bits & _SIGN else bits | _SIGN


def _decode_float(key: bytes, offset: int) -> Decoded:
    raw, end = _take(key, offset, 8)
    bits = int.from_bytes(raw, "big")
    (value,) = _DOUBLE.unpack((bits ^ _SIGN if bits & _SIGN else bits ^ _ALL).to_bytes(8, "big"))
    if bits == _ZERO_FLIPPED or (value != value and bits != _NAN_BITS):
        raise KeyFormatError(f"no canonical float at byte {offset} of key {key.hex()}")
    return value, end


def text_bytes(value: str) -> bytes:
    """Encode text.  Raises ValueError on a NUL or a lone surrogate."""
    raw = value.encode()
    if 0 in raw:
        raise ValueError("text with a NUL character")
    return raw + b"\x00"


def _decode_text(key: bytes, offset: int) -> Decoded:
    end = key.find(b"\x00", offset)
    if end < 0:
        raise KeyFormatError(f"no text at byte {offset} of key {key.hex()}")
    try:
        return key[offset:end].decode(), end + 1
    except UnicodeDecodeError as error:
        raise KeyFormatError(f"text that is not UTF-8 at byte {offset} of key {key.hex()}") from error


_ESCAPED = re.compile(rb"(?:[^\x00]|\x00\xff)*\x00\x01", re.DOTALL)


def _decode_bytes(key: bytes, offset: int) -> Decoded:
    match = _ESCAPED.match(key, offset)
    if match is None:
        raise KeyFormatError(f"no bytes at byte {offset} of key {key.hex()}")
    return key[offset : match.end() - 2].replace(b"\x00\xff", b"\x00"), match.end()


# Classes of decimals, in order.  The class is the first byte; only negative and positive numbers have more.
_MINUS_INFINITY, _NEGATIVE, _ZERO, _POSITIVE, _INFINITY, _NAN = (bytes((number,)) for number in range(1, 7))
_CLASS_VALUES: Final[dict[bytes, decimal.Decimal]] = {
    _MINUS_INFINITY: decimal.Decimal("-Infinity"),
    _ZERO: decimal.Decimal(0),
    _INFINITY: decimal.Decimal("Infinity"),
    _NAN: decimal.Decimal("NaN"),
}
_SHORT_EXPONENT_MAX = 100
"""Exponents up to here, in either sign, take one byte; others a byte 00 or ff and eight more."""
_DIGIT_TO_NIBBLE = bytes.maketrans(bytes(range(10)), b"123456789a")
_NIBBLE_TO_DIGIT = bytes.maketrans(b"123456789a", b"0123456789")
_DIGITS = re.compile(
    b"(?:%s)*(?:\\x00|[\\x10\\x20\\x30\\x40\\x50\\x60\\x70\\x80\\x90\\xa0])"
    % b"|".join(b"[\\x%02x-\\x%02x]" % (high * 16 + 1, high * 16 + 10) for high in range(1, 11))
)
"""Bytes of two digits each, then the closing nibble: alone in a byte 00, or behind a last digit."""
_PLAIN_ZEROS_MAX = 40


def decimal_bytes(value: decimal.Decimal) -> bytes:
    """Encode a number of any precision as class, exponent and digits.

    A number is ±0.d₁d₂… × 10^e without leading or trailing zero digits.  The exponent comes first, then one nibble d + 1 a digit, closed
    by a nibble 0 and filled up to a whole byte.  Of a negative number all bytes behind the class are complemented.
    """
    negative, digits, exponent = value.as_tuple()
    if isinstance(exponent, str):
        return _NAN if exponent != "F" else _MINUS_INFINITY if negative else _INFINITY
    # Python keeps no leading zeros; a zero is the one digit 0.
    adjusted = exponent + len(digits)
    stripped = bytes(digits).rstrip(b"\x00")
    if not stripped:
        return _ZERO
    nibbles = stripped.translate(_DIGIT_TO_NIBBLE)
    body = _exponent_bytes(adjusted) + binascii.unhexlify(nibbles + (b"0" if len(nibbles) & 1 else b"00"))
    return _NEGATIVE + body.translate(COMPLEMENT) if negative else _POSITIVE + body


def _exponent_bytes(exponent: int) -> bytes:
    if -_SHORT_EXPONENT_MAX <= exponent <= _SHORT_EXPONENT_MAX:
        return bytes((exponent + 128,))
    return (b"\xff" if exponent > 0 else b"\x00") + (exponent + _SIGN).to_bytes(8, "big")


def _decode_exponent(key: bytes, offset: int) -> tuple[int, int]:
    raw, end = _take(key, offset, 1)
    exponent = raw[0] - 128
    if raw[0] in (0, 255):
        raw, end = _take(key, end, 8)
        exponent = int.from_bytes(raw, "big") - _SIGN
    if _exponent_bytes(exponent) != key[offset:end]:
        raise KeyFormatError(f"no decimal exponent at byte {offset} of key {key.hex()}")
    return exponent, end


def _decode_decimal(key: bytes, offset: int) -> Decoded:
    kind, body = _take(key, offset, 1)
    if kind in _CLASS_VALUES:
        return _CLASS_VALUES[kind], body
    if kind == _NEGATIVE:
        value, end = _decode_magnitude(key[body:].translate(COMPLEMENT), 0)
        return value.copy_negate(), body + end
    if kind != _POSITIVE:
        raise KeyFormatError(f"no decimal at byte {offset} of key {key.hex()}")
    return _decode_magnitude(key, body)


def _decode_magnitude(key: bytes, offset: int) -> tuple[decimal.Decimal, int]:
    adjusted, start = _decode_exponent(key, offset)
    match = _DIGITS.match(key, start)
    digits = b"" if match is None else binascii.hexlify(match[0]).rstrip(b"0").translate(_NIBBLE_TO_DIGIT)
    if match is None or not digits or digits.startswith(b"0") or digits.endswith(b"0"):
        raise KeyFormatError(f"no decimal digits at byte {start} of key {key.hex()}")
    exponent = adjusted - len(digits)
    # Whole numbers of common size come back as 100, not as 1E+2.
    if 0 < exponent <= _PLAIN_ZEROS_MAX:
        digits, exponent = digits + b"0" * exponent, 0
    try:
        value = decimal.Decimal(f"{digits.decode()}E{exponent}")
    except decimal.DecimalException as error:
        raise KeyFormatError(f"a decimal exponent beyond all limits at byte {offset} of key {key.hex()}") from error
    if not value.is_finite() or value.adjusted() + 1 != adjusted:
        raise KeyFormatError(f"a decimal exponent beyond all limits at byte {offset} of key {key.hex()}")
    return value, match.end()


_INTERVAL_BYTES = 10
_INTERVAL_BIAS = 1 << (8 * _INTERVAL_BYTES - 1)
_MONTH_MICROSECONDS = MONTH_DAYS * DAY_MICROSECONDS


def interval_microseconds(value: Interval) -> int:
    """Give the microseconds by which an interval compares: 1 month = 30 days, 1 day = 24 h."""
    months, days, microseconds = value
    return (months * MONTH_DAYS + days) * DAY_MICROSECONDS + microseconds


def interval_bytes(value: Interval) -> bytes:
    """Encode an interval by its comparison value.  Raises ValueError if a part is out of range."""
    months, days, microseconds = value
    if not (INT32_MIN <= months <= INT32_MAX and INT32_MIN <= days <= INT32_MAX and INT64_MIN <= microseconds <= INT64_MAX):
        raise ValueError("an interval's months and days have 32 bits, its microseconds 64")
    return (interval_microseconds(value) + _INTERVAL_BIAS).to_bytes(_INTERVAL_BYTES, "big")


def _decode_interval(key: bytes, offset: int) -> Decoded:
    raw, end = _take(key, offset, _INTERVAL_BYTES)
    rest = int.from_bytes(raw, "big") - _INTERVAL_BIAS
    sign, most = (-1, -INT32_MIN) if rest < 0 else (1, INT32_MAX)
    # As many months as fit, then as many days: parts of one sign, within their bits whenever some spelling is.
    months = min(abs(rest) // _MONTH_MICROSECONDS, most) * sign
    rest -= months * _MONTH_MICROSECONDS
    days = min(abs(rest) // DAY_MICROSECONDS, most) * sign
    rest -= days * DAY_MICROSECONDS
    if not INT64_MIN <= rest <= INT64_MAX:
        raise KeyFormatError(f"an interval out of range at byte {offset} of key {key.hex()}")
    return (months, days, rest), end


def uuid_bytes(value: bytes) -> bytes:
    """Encode a UUID.  Raises ValueError if it has not 16 bytes."""
    if not isinstance(value, bytes) or len(value) != 16:
        raise ValueError("a UUID has 16 bytes")
    return value


def _take(key: bytes, offset: int, length: int) -> tuple[bytes, int]:
    end = offset + length
    if end > len(key):
        raise KeyFormatError(f"{length} bytes wanted at byte {offset} of key {key.hex()}")
    return key[offset:end], end


def _integer_encoder(kind: Kind) -> Callable[[Any], bytes]:
    width, low, high = INTEGER_BOUNDS[kind]

    def encode(value: Any) -> bytes:
        if not isinstance(value, int) or not low <= value <= high:
            raise ValueError(f"not an integer of {low} … {high}")
        return (value - low).to_bytes(width, "big")

    return encode


def _integer_decoder(kind: Kind) -> Callable[[bytes, int], Decoded]:
    width, low, high = INTEGER_BOUNDS[kind]
    name, is_bool = kind.name, kind is Kind.BOOL

    def decode(key: bytes, offset: int) -> Decoded:
        end = offset + width
        value = int.from_bytes(key[offset:end], "big") + low
        if value > high or end > len(key):
            raise KeyFormatError(f"no {name} at byte {offset} of key {key.hex()}")
        return (value == 1 if is_bool else value), end

    return decode


ENCODERS: Final[dict[Kind, Callable[[Any], bytes]]] = {
    **{kind: _integer_encoder(kind) for kind in INTEGER_BOUNDS},
    Kind.FLOAT: lambda value: float_bits(value).to_bytes(8, "big"),
    Kind.DECIMAL: decimal_bytes,
    Kind.TEXT: text_bytes,
    Kind.BYTES: escape,
    Kind.INTERVAL: interval_bytes,
    Kind.UUID: uuid_bytes,
}
"""Value → ascending bytes.  A value that is not of the kind raises one of `REFUSALS`."""

DECODERS: Final[dict[Kind, Callable[[bytes, int], Decoded]]] = {
    **{kind: _integer_decoder(kind) for kind in INTEGER_BOUNDS},
    Kind.FLOAT: _decode_float,
    Kind.DECIMAL: _decode_decimal,
    Kind.TEXT: _decode_text,
    Kind.BYTES: _decode_bytes,
    Kind.INTERVAL: _decode_interval,
    Kind.UUID: lambda key, offset: _take(key, offset, 16),
}
"""(key, offset) of ascending bytes → value and the offset behind it."""

REFUSALS = (TypeError, ValueError, AttributeError, KeyError, ArithmeticError, struct.error)
"""What an encoder raises on a value that is not of its kind."""
