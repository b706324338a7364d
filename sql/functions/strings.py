"""Functions of text and bytea, and pattern matching.

Text is a sequence of code points; collation is "C".  Regular expressions are those that Python's `re` and the engine's RE2 read alike: the
common part of Postgres's advanced expressions.

Invariants:
- `.` in a regular expression matches a newline, as in Postgres.
"""

import base64
import binascii
import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import re2

from dsdb.sql.errors import (
    FeatureNotSupportedError,
    InvalidEscapeError,
    InvalidParameterError,
    InvalidRegularExpressionError,
    ProgramLimitError,
    SubstringError,
)
from dsdb.sql.functions.registry import define
from dsdb.sql.types import SqlType

RESULT_CHARS_MAX = 64 * 1024 * 1024
"""Characters of one text that a function gives."""


def _lower(text: str) -> str:
    return text.lower() if text.isascii() else "".join(char.lower() if len(char.lower()) == 1 else char for char in text)


def _upper(text: str) -> str:
    return text.upper() if text.isascii() else "".join(char.upper() if len(char.upper()) == 1 else char for char in text)


def _initcap(text: str) -> str:
    return re.sub(r"[^\W_]+", lambda word: _upper(word[0][:1]) + _lower(word[0][1:]), text)


def _pad(text: str, length: int, fill: str, *, left: bool) -> str:
    length = max(length, 0)
    _check_length(length)
    if len(text) >= length or not fill:
        return text[:length]
    missing = length - len(text)
    padding = (fill * (missing // len(fill) + 1))[:missing]
    return padding + text if left else text + padding


def _check_length(length: int) -> None:
    if length > RESULT_CHARS_MAX:
        raise ProgramLimitError("requested length too large")


def _repeat(text: str, count: int) -> str:
    _check_length(len(text) * max(count, 0))
    return text * max(count, 0)


def _substring(text: str, start: int, length: int | None = None) -> str:
    if length is None:
        return text[max(start - 1, 0) :]
    if length < 0:
        raise SubstringError("negative substring length not allowed")
    return text[max(start - 1, 0) : max(start - 1 + length, 0)]


def _split_part(text: str, delimiter: str, field: int) -> str:
    if field == 0:
        raise InvalidParameterError("field position must not be zero")
    parts = text.split(delimiter) if delimiter else [text]
    index = field - 1 if field > 0 else field
    return parts[index] if -len(parts) <= index < len(parts) else ""


def _overlay(text: str, new: str, start: int, count: int | None = None) -> str:
    if start <= 0:
        raise SubstringError("negative substring length not allowed")
    count = len(new) if count is None else count
    return text[: start - 1] + new + text[max(start - 1 + count, 0) :]


def _translate(text: str, source: str, target: str) -> str:
    table: dict[int, str | None] = {}
    for index, char in enumerate(source):
        table.setdefault(ord(char), target[index] if index < len(target) else None)
    return text.translate(table)


def _chr(code: int) -> str:
    if code == 0:
        raise ProgramLimitError("null character not permitted")
    if code < 0:
        raise InvalidParameterError("character number must be positive")
    if not 0 < code < 0x110000 or 0xD800 <= code < 0xE000:
        raise ProgramLimitError(f"requested character not valid for encoding: {code}")
    return chr(code)


def _concat(*values: str | None) -> str:
    return "".join(value for value in values if value is not None)


def _concat_ws(separator: str | None, *values: str | None) -> str | None:
    return None if separator is None else separator.join(value for value in values if value is not None)


def _encode(data: bytes, form: str) -> str:
    if form == "hex":
        return data.hex()
    if form == "base64":
        text = base64.b64encode(data).decode()
        return "\n".join(text[start : start + 76] for start in range(0, len(text), 76))
    if form == "escape":
        return "".join("\\\\" if byte == 92 else f"\\{byte:03o}" if byte == 0 or byte >= 128 else chr(byte) for byte in data)
    raise InvalidParameterError(f'unrecognized encoding: "{form}"')


def _decode(text: str, form: str) -> bytes:
    try:
        if form == "hex":
            return bytes.fromhex(text)
        if form == "base64":
            return base64.b64decode("".join(text.split()), validate=True)
    except (ValueError, binascii.Error):
        raise InvalidParameterError(f"invalid {form} text") from None
    raise InvalidParameterError(f'unrecognized encoding: "{form}"')


def _engine_encode(arguments: Sequence[str], _: Sequence[SqlType], __: SqlType) -> str:
    data, form = arguments
    problem = f"error('[22023] unrecognized encoding: \"' || {form} || '\"')"
    wrapped = f"rtrim(regexp_replace(to_base64({data}), '(.{{76}})', '\\1' || chr(10), 'g'), chr(10))"
    return f"(CASE {form} WHEN 'hex' THEN lower(hex({data})) WHEN 'base64' THEN {wrapped} ELSE {problem} END)"


@functools.lru_cache(maxsize=256)
def like_pattern(pattern: str, escape: str, ignore_case: bool) -> re.Pattern[str]:
    """Compile a LIKE pattern.

    Raises: InvalidEscapeError.
    """
    # What stands between two % is best taken where it comes first, and never looked for again: else 50 of them take for ever.
    pieces: list[list[str]] = [[]]
    index = 0
    while index < len(pattern):
        parts = pieces[-1]
        char = pattern[index]
        if escape and char == escape:
            index += 1
            if index == len(pattern):
                raise InvalidEscapeError("LIKE pattern must not end with escape character")
            parts.append(re.escape(pattern[index]))
        elif char == "%":
            pieces.append([])
        else:
            parts.append("." if char == "_" else re.escape(char))
        index += 1
    first, *between = ("".join(parts) for parts in pieces)
    last = f".*{between.pop()}" if between else ""
    return re.compile(
        first + "".join(f"(?>.*?{piece})" for piece in between if piece) + last, re.DOTALL | (re.IGNORECASE if ignore_case else 0)
    )


def _like(ignore_case: bool) -> Callable[..., bool]:
    def evaluate(text: str, pattern: str, escape: str = "\\") -> bool:
        return like_pattern(pattern, escape, ignore_case).fullmatch(text) is not None

    return evaluate


@functools.lru_cache(maxsize=256)
def regex_pattern(pattern: str, flags: int) -> Any:
    """Compile a regular expression with RE2, as the engine does: its time is linear, where Python's own can take for ever (`(a+)+$`).

    Raises: InvalidRegularExpressionError.
    """
    options = re2.Options()
    options.dot_nl = True
    options.case_sensitive = not flags & re.IGNORECASE
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        reason = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
        raise InvalidRegularExpressionError(f"invalid regular expression: {reason}") from None


def _matches(flags: int) -> Callable[[str, str], bool]:
    return lambda text, pattern: regex_pattern(pattern, flags).search(text) is not None


def _regexp_replace(text: str, pattern: str, replacement: str, options: str = "") -> str:
    unknown = set(options) - set("gis")
    if unknown:
        raise InvalidParameterError(f'invalid regular expression option: "{min(unknown)}"')
    compiled = regex_pattern(pattern, re.IGNORECASE if "i" in options else 0)

    def expand(match: Any) -> str:
        def group(reference: re.Match[str]) -> str:
            name = reference[1]
            if name == "&":
                return str(match[0])
            if name.isdigit():
                return (match[int(name)] or "") if int(name) <= compiled.groups else ""
            return name

        return re.sub(r"\\(.)", group, replacement, flags=re.DOTALL)

    replaced: str = compiled.sub(expand, text, 0 if "g" in options else 1)
    return replaced


def _engine_replace(arguments: Sequence[str], _: Sequence[SqlType], __: SqlType) -> str:
    options = "'s'"
    if len(arguments) > 3:
        if not arguments[3].startswith("'"):
            raise FeatureNotSupportedError("the flags of regexp_replace must be a literal over the rows of a query")
        options = f"({arguments[3]} || 's')"
    return f"regexp_replace({arguments[0]}, {arguments[1]}, replace({arguments[2]}, '\\&', '\\0'), {options})"


def _regexp_substring(text: str, pattern: str) -> str | None:
    match = regex_pattern(pattern, 0).search(text)
    if match is None:
        return None
    found: str | None = match[1] if match.re.groups else match[0]
    return found


_START = "(CASE WHEN {1} < 1 THEN 1 ELSE {1} END)"
_NEGATIVE = "WHEN {0} IS NOT NULL AND {1} IS NOT NULL AND {2} < 0 THEN error('[22011] negative substring length not allowed')"
_SUBSTRING = (
    f"(CASE {_NEGATIVE} WHEN CAST({{1}} AS BIGINT) + {{2}} <= 1 THEN substr({{0}}, 1, {{2}} * 0 + {{1}} * 0) "
    f"ELSE substr({{0}}, {_START}, CAST({{1}} AS BIGINT) + {{2}} - {_START}) END)"
)


_ENGINE_CHR = (
    "(CASE WHEN {0} = 0 THEN error('[54000] null character not permitted') "
    "WHEN {0} < 0 THEN error('[22023] character number must be positive') WHEN {0} > 1114111 OR {0} BETWEEN 55296 AND 57343 "
    "THEN error('[54000] requested character not valid for encoding: ' || {0}) ELSE chr({0}) END)"
)
_OVERLAY = (
    "(CASE WHEN {0} IS NOT NULL AND {1} IS NOT NULL AND {2} <= 0 THEN error('[22011] negative substring length not allowed') "
    "ELSE left({0}, {2} - 1) || {1} || substr({0}, (CASE WHEN {2} + %s < 1 THEN 1 ELSE CAST({2} AS BIGINT) + %s END)) END)"
)
_BYTES_FROM = f"unhex(substr(hex({{0}}), CAST({_START} AS BIGINT) * 2 - 1))"
_BYTES_PART = (
    f"(CASE {_NEGATIVE} WHEN CAST({{1}} AS BIGINT) + {{2}} <= 1 THEN unhex(substr(hex({{0}}), 1, 0)) "
    f"ELSE unhex(substr(hex({{0}}), CAST({_START} AS BIGINT) * 2 - 1, (CAST({{1}} AS BIGINT) + {{2}} - {_START}) * 2)) END)"
)


def _define_measures() -> None:
    for name in ("length", "char_length", "character_length"):
        define(f"{name}(text) -> int4", engine="CAST(length({0}) AS INTEGER)", evaluate=len)
    define("length(bytea) -> int4", engine="CAST(octet_length({0}) AS INTEGER)", evaluate=len)
    define("octet_length(text) -> int4", engine="CAST(strlen({0}) AS INTEGER)", evaluate=lambda text: len(text.encode()))
    define("octet_length(bytea) -> int4", engine="CAST(octet_length({0}) AS INTEGER)", evaluate=len)
    define("bit_length(text) -> int4", engine="CAST(bit_length({0}) AS INTEGER)", evaluate=lambda text: len(text.encode()) * 8)
    define(
        "ascii(text) -> int4", engine="(CASE WHEN {0} = '' THEN 0 ELSE unicode({0}) END)", evaluate=lambda text: ord(text[0]) if text else 0
    )
    define("chr(int4) -> text", engine=_ENGINE_CHR, evaluate=_chr)
    define("strpos(text, text) -> int4", engine="CAST(strpos({0}, {1}) AS INTEGER)", evaluate=lambda text, part: text.find(part) + 1)
    define("starts_with(text, text) -> bool", engine="starts_with({0}, {1})", evaluate=str.startswith)
    define("^@(text, text) -> bool", engine="starts_with({0}, {1})", evaluate=str.startswith)


def _define_changes() -> None:
    define("lower(text) -> text", engine="lower({0})", evaluate=_lower)
    define("upper(text) -> text", engine="upper({0})", evaluate=_upper)
    define("initcap(text) -> text", evaluate=_initcap)
    define("reverse(text) -> text", engine="reverse({0})", evaluate=lambda text: text[::-1])
    define("replace(text, text, text) -> text", engine=_REPLACE, evaluate=lambda text, old, new: text.replace(old, new) if old else text)
    define("translate(text, text, text) -> text", engine="translate({0}, {1}, {2})", evaluate=_translate)
    define("repeat(text, int4) -> text", engine="repeat({0}, {1})", evaluate=_repeat)
    for name, engine, strip in (("btrim", "trim", str.strip), ("ltrim", "ltrim", str.lstrip), ("rtrim", "rtrim", str.rstrip)):
        define(f"{name}(text) -> text", engine=f"{engine}({{0}}, ' ')", evaluate=lambda text, strip=strip: strip(text, " "))
        define(
            f"{name}(text, text) -> text",
            engine=f"(CASE WHEN {{1}} = '' THEN {{0}} ELSE {engine}({{0}}, {{1}}) END)",
            evaluate=lambda text, chars, strip=strip: strip(text, chars) if chars else text,
        )
    define("trim(text) -> text", engine="trim({0}, ' ')", evaluate=lambda text: text.strip(" "))
    for name, left in (("lpad", True), ("rpad", False)):
        length = "(CASE WHEN {1} < 0 THEN 0 ELSE {1} END)"
        define(
            f"{name}(text, int4) -> text",
            engine=f"{name}({{0}}, {length}, ' ')",
            evaluate=lambda text, length, left=left: _pad(text, length, " ", left=left),
        )
        define(
            f"{name}(text, int4, text) -> text",
            engine=f"(CASE WHEN {{2}} = '' THEN left({{0}}, {length}) ELSE {name}({{0}}, {length}, {{2}}) END)",
            evaluate=lambda text, length, fill, left=left: _pad(text, length, fill, left=left),
        )


_REPLACE = "(CASE WHEN {1} = '' AND {2} IS NOT NULL THEN {0} ELSE replace({0}, {1}, {2}) END)"


def _define_parts() -> None:
    define("left(text, int4) -> text", engine="left({0}, {1})", evaluate=lambda text, count: text[:count])
    define(
        "right(text, int4) -> text",
        engine="right({0}, {1})",
        evaluate=lambda text, count: text[-count:] if count > 0 else text[min(-count, len(text)) :] if count else "",
    )
    for name in ("substring", "substr"):
        define(f"{name}(text, int4) -> text", engine=f"substr({{0}}, {_START})", evaluate=_substring)
        define(f"{name}(text, int4, int4) -> text", engine=_SUBSTRING, evaluate=_substring)
        define(f"{name}(bytea, int4) -> bytea", engine=_BYTES_FROM, evaluate=_substring)
        define(f"{name}(bytea, int4, int4) -> bytea", engine=_BYTES_PART, evaluate=_substring)
    define("substring(text, text) -> text", evaluate=_regexp_substring)
    define(
        "split_part(text, text, int4) -> text",
        engine="(CASE WHEN {0} IS NOT NULL AND {1} IS NOT NULL AND {2} = 0 THEN error('[22023] field position must not be zero') "
        "WHEN {1} = '' THEN CASE WHEN abs({2}) = 1 THEN {0} ELSE left({0}, 0) END ELSE split_part({0}, {1}, {2}) END)",
        evaluate=_split_part,
    )
    define("overlay(text, text, int4) -> text", engine=_OVERLAY.replace("%s", "length({1})"), evaluate=_overlay)
    define("overlay(text, text, int4, int4) -> text", engine=_OVERLAY.replace("%s", "CAST({3} AS BIGINT)"), evaluate=_overlay)


def _define_joins() -> None:
    define("concat(text...) -> text", engine="concat({all})", evaluate=_concat, strict=False, never_null=True)
    define("concat_ws(text, text...) -> text", engine="concat_ws({all})", evaluate=_concat_ws, strict=False)


def _define_patterns() -> None:
    for name, engine, ignore in (("~~", "LIKE", False), ("~~*", "ILIKE", True)):
        define(f"{name}(text, text) -> bool", engine=f"({{0}} {engine} {{1}} ESCAPE '\\')", evaluate=_like(ignore))
        define(f"{name}(text, text, text) -> bool", engine=f"({{0}} {engine} {{1}} ESCAPE {{2}})", evaluate=_like(ignore))
    for name in ("~", "regexp_like"):
        define(f"{name}(text, text) -> bool", engine="regexp_matches({0}, {1}, 's')", evaluate=_matches(0))
    define("~*(text, text) -> bool", engine="regexp_matches({0}, {1}, 'si')", evaluate=_matches(re.IGNORECASE))
    define("regexp_replace(text, text, text) -> text", engine=_engine_replace, evaluate=_regexp_replace)
    define("regexp_replace(text, text, text, text) -> text", engine=_engine_replace, evaluate=_regexp_replace)


def _define_digests() -> None:
    define("md5(text) -> text", engine="md5({0})", evaluate=lambda text: hashlib.md5(text.encode(), usedforsecurity=False).hexdigest())
    define("md5(bytea) -> text", engine="md5({0})", evaluate=lambda data: hashlib.md5(data, usedforsecurity=False).hexdigest())
    define("sha256(bytea) -> bytea", engine="unhex(sha256({0}))", evaluate=lambda data: hashlib.sha256(data).digest())
    define("encode(bytea, text) -> text", engine=_engine_encode, evaluate=_encode)
    define("decode(text, text) -> bytea", engine=_ENGINE_DECODE, evaluate=_decode)
    define(
        "quote_literal(text) -> text",
        engine="('''' || replace({0}, '''', '''''') || '''')",
        evaluate=lambda text: "'" + text.replace("'", "''") + "'",
    )


_ENGINE_DECODE = (
    "(CASE {1} WHEN 'hex' THEN CASE WHEN length({0}) % 2 = 1 THEN error('[22023] invalid hexadecimal data: odd number of digits') "
    "ELSE unhex({0}) END WHEN 'base64' THEN from_base64({0}) "
    "ELSE error('[22023] unrecognized encoding: \"' || {1} || '\"') END)"
)

_define_measures()
_define_changes()
_define_parts()
_define_joins()
_define_patterns()
_define_digests()
