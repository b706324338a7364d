"""Postgres's text input and output of every type: what a quoted literal means, and how a value is spelled.

Invariants:
- `parse_text(format_text(x, t), t) == x` for every value x of type t (floats by value, decimals with their spelling).

Not here: casts between types (`dsdb.sql.functions.casts`), dates and intervals in detail (`dsdb.sql.text_time`).
"""

import math
import re
import struct
from collections.abc import Callable
from decimal import ROUND_HALF_UP, Context, Decimal, InvalidOperation

from dsdb.sql.errors import InvalidTextError, NumericOutOfRangeError, StringTruncationError
from dsdb.sql.text_time import (
    format_date,
    format_interval,
    format_time,
    format_timestamp,
    parse_date,
    parse_interval,
    parse_time,
    parse_timestamp,
)
from dsdb.sql.types import SqlType, TypeName
from dsdb.storage.datum import Datum

INTEGER_BOUNDS = {TypeName.SMALLINT: 2**15, TypeName.INT: 2**31, TypeName.BIGINT: 2**63}
DIGITS_MAX = 1_000
"""Digits of a DECIMAL, before and behind the point together."""
EXACT = Context(prec=DIGITS_MAX * 2 + 100, rounding=ROUND_HALF_UP, Emax=999_999, Emin=-999_999)
"""Wide enough that no sum or product of DECIMALs in bounds is rounded."""
REAL_MAX = 3.4028235677973366e38
"""The least double that rounds past the largest REAL."""

_INTEGER = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,6})?")
_BOOLEANS = dict.fromkeys(("t", "tr", "tru", "true", "y", "ye", "yes", "on", "1"), True)
_BOOLEANS |= dict.fromkeys(("f", "fa", "fal", "fals", "false", "n", "no", "of", "off", "0"), False)
_UUID = re.compile(r"[0-9a-fA-F]{4}(?:-?[0-9a-fA-F]{4}){7}")


def parse_text(text: str, type_: SqlType) -> Datum:
    """Read text as a value of a type.

    Raises: InvalidTextError, InvalidDatetimeError, NumericOutOfRangeError, StringTruncationError, DatetimeOverflowError,
    FeatureNotSupportedError (infinities and values relative to now).
    """
    return _PARSERS[type_.name](text, type_)


def format_text(value: Datum, type_: SqlType) -> str:
    """Spell a value, which must not be None, as Postgres prints its type."""
    return _FORMATTERS[type_.name](value)


def _invalid(text: str, type_: SqlType) -> InvalidTextError:
    return InvalidTextError(f'invalid input syntax for type {SqlType(type_.name)}: "{text}"')


def _parse_integer(text: str, type_: SqlType) -> int:
    word = text.strip()
    if not _INTEGER.fullmatch(word):
        raise _invalid(text, type_)
    # The length is checked first: int() of a very long text is slow, and refuses by an error of its own.
    bound = INTEGER_BOUNDS[type_.name]
    if len(word.lstrip("+-0")) > 20 or not -bound <= (value := int(word)) < bound:
        raise NumericOutOfRangeError(f'value "{text}" is out of range for type {type_}')
    return value


def _parse_float(text: str, type_: SqlType) -> float:
    word = text.strip()
    try:
        value = float(word)
    except ValueError:
        raise _invalid(text, type_) from None
    if "_" in word:
        raise _invalid(text, type_)
    if math.isinf(value) and "inf" not in word.lower():
        raise NumericOutOfRangeError(f'"{word}" is out of range for type {type_}')
    return round_real(value) if type_.name is TypeName.REAL else value


def round_real(value: float) -> float:
    """Round a double to the nearest REAL.

    Raises: NumericOutOfRangeError.
    """
    if abs(value) >= REAL_MAX and not math.isinf(value):
        raise NumericOutOfRangeError("value out of range: overflow")
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def _parse_decimal(text: str, type_: SqlType) -> Decimal:
    word = text.strip()
    if word.lower() == "nan":
        return Decimal("NaN")
    if word.lower().lstrip("+-") in ("inf", "infinity"):
        raise NumericOutOfRangeError("numeric infinities are not supported")
    if not _DECIMAL.fullmatch(word):
        raise _invalid(text, type_)
    return fit_decimal(Decimal(word), type_)


def fit_decimal(value: Decimal, type_: SqlType) -> Decimal:
    """Round a DECIMAL to its type's scale, half away from zero.

    Raises: NumericOutOfRangeError.
    """
    if not value.is_finite():
        if value.is_nan():
            return Decimal("NaN")
        raise NumericOutOfRangeError("numeric infinities are not supported")
    if type_.precision is None:
        exponent = value.as_tuple().exponent
        assert isinstance(exponent, int)
        if value.adjusted() >= DIGITS_MAX or -exponent > DIGITS_MAX:
            raise NumericOutOfRangeError("value overflows numeric format")
        return value.quantize(_ONE, context=EXACT) if exponent > 0 else value
    scale = type_.scale or 0
    try:
        rounded = value.quantize(Decimal((0, (1,), -scale)), context=EXACT)
    except InvalidOperation:
        raise _overflow(type_) from None
    if rounded and rounded.adjusted() >= type_.precision - scale:
        raise _overflow(type_)
    return rounded if rounded else abs(rounded)


_ONE = Decimal(1)


def _overflow(type_: SqlType) -> NumericOutOfRangeError:
    assert type_.precision is not None
    whole = type_.precision - (type_.scale or 0)
    limit = f"10^{whole}" if whole else "1"
    return NumericOutOfRangeError(
        "numeric field overflow",
        detail=f"A field with precision {type_.precision}, scale {type_.scale or 0} must round to an absolute value less than {limit}.",
    )


def fit_string(text: str, type_: SqlType, *, explicit: bool = False) -> str:
    """Make text fit VARCHAR(n) or CHAR(n): CHAR is padded with blanks; what is too long is cut by an explicit cast, else only blanks are.

    Raises: StringTruncationError.
    """
    length = type_.length
    if length is None:
        return text
    if len(text) > length:
        if not explicit and text[length:].strip(" "):
            raise StringTruncationError(f"value too long for type {type_}")
        text = text[:length]
    return text.ljust(length) if type_.name is TypeName.CHAR else text


def _parse_string(text: str, type_: SqlType) -> str:
    if "\x00" in text:
        raise InvalidTextError("text must not hold the character NUL")
    return fit_string(text, type_)


def _parse_bool(text: str, type_: SqlType) -> bool:
    value = _BOOLEANS.get(text.strip().lower())
    if value is None:
        raise _invalid(text, type_)
    return value


def _parse_bytes(text: str, type_: SqlType) -> bytes:
    if text.startswith("\\x"):
        try:
            return bytes.fromhex(text[2:])
        except ValueError:
            raise InvalidTextError(f'invalid hexadecimal data: "{text}"') from None
    if "\\" not in text:
        return text.encode()
    data = bytearray()
    position = 0
    while position < len(text):
        if text[position] != "\\":
            data += text[position].encode()
            position += 1
        elif text[position + 1 : position + 2] == "\\":
            data.append(0x5C)
            position += 2
        elif re.fullmatch(r"[0-3][0-7]{2}", text[position + 1 : position + 4]):
            data.append(int(text[position + 1 : position + 4], 8))
            position += 4
        else:
            raise _invalid(text, type_)
    return bytes(data)


def _parse_uuid(text: str, type_: SqlType) -> bytes:
    word = text.strip()
    if word.startswith("{") and word.endswith("}"):
        word = word[1:-1]
    if not _UUID.fullmatch(word):
        raise _invalid(text, type_)
    return bytes.fromhex(word.replace("-", ""))


_PARSERS: dict[TypeName, Callable[[str, SqlType], Datum]] = {
    TypeName.BOOL: _parse_bool,
    TypeName.SMALLINT: _parse_integer,
    TypeName.INT: _parse_integer,
    TypeName.BIGINT: _parse_integer,
    TypeName.REAL: _parse_float,
    TypeName.DOUBLE: _parse_float,
    TypeName.DECIMAL: _parse_decimal,
    TypeName.TEXT: _parse_string,
    TypeName.VARCHAR: _parse_string,
    TypeName.CHAR: _parse_string,
    TypeName.BYTEA: _parse_bytes,
    TypeName.DATE: lambda text, _: parse_date(text),
    TypeName.TIME: lambda text, _: parse_time(text),
    TypeName.TIMESTAMP: lambda text, _: parse_timestamp(text, with_zone=False),
    TypeName.TIMESTAMPTZ: lambda text, _: parse_timestamp(text, with_zone=True),
    TypeName.INTERVAL: lambda text, _: parse_interval(text),
    TypeName.UUID: _parse_uuid,
    TypeName.UNKNOWN: _parse_string,
}


def _format_float(value: float, digits: str, exponent_max: int) -> str:
    """Lay out the shortest digits that give `value` back, with an exponent from 10^exponent_max on and below 10^-4."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    sign, numerals, power = Decimal(digits).as_tuple()
    assert isinstance(power, int)
    text = "".join(map(str, numerals)).rstrip("0")
    lead = "-" if sign else ""
    if not text:
        return lead + "0"
    exponent = len(numerals) + power - 1
    if exponent < -4 or exponent >= exponent_max:
        mantissa = text[0] + ("." + text[1:] if len(text) > 1 else "")
        return f"{lead}{mantissa}e{'-' if exponent < 0 else '+'}{abs(exponent):02d}"
    if exponent < 0:
        return lead + "0." + "0" * (-exponent - 1) + text
    if len(text) <= exponent + 1:
        return lead + text.ljust(exponent + 1, "0")
    return lead + text[: exponent + 1] + "." + text[exponent + 1 :]


def _format_double(value: Datum) -> str:
    assert isinstance(value, float | int)
    return _format_float(value, repr(float(value)), 15) if math.isfinite(value) else _format_float(value, "", 15)


def _format_real(value: Datum) -> str:
    assert isinstance(value, float | int)
    if not math.isfinite(value):
        return _format_float(value, "", 6)
    for digits in range(1, 10):
        text = f"{value:.{digits - 1}e}"
        if abs(float(text)) < REAL_MAX and round_real(float(text)) == value:
            break
    return _format_float(value, text, 6)


def _format_decimal(value: Datum) -> str:
    assert isinstance(value, Decimal)
    return "NaN" if value.is_nan() else format(value, "f")


def _format_uuid(value: Datum) -> str:
    assert isinstance(value, bytes)
    digits = value.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


_FORMATTERS: dict[TypeName, Callable[..., str]] = {
    TypeName.BOOL: lambda value: "t" if value else "f",
    TypeName.SMALLINT: str,
    TypeName.INT: str,
    TypeName.BIGINT: str,
    TypeName.REAL: _format_real,
    TypeName.DOUBLE: _format_double,
    TypeName.DECIMAL: _format_decimal,
    TypeName.TEXT: str,
    TypeName.VARCHAR: str,
    TypeName.CHAR: str,
    TypeName.BYTEA: lambda value: "\\x" + value.hex(),
    TypeName.DATE: format_date,
    TypeName.TIME: format_time,
    TypeName.TIMESTAMP: lambda value: format_timestamp(value, with_zone=False),
    TypeName.TIMESTAMPTZ: lambda value: format_timestamp(value, with_zone=True),
    TypeName.INTERVAL: format_interval,
    TypeName.UUID: _format_uuid,
    TypeName.UNKNOWN: str,
}
