"""What the engine's errors are in SQL: one class per SQLSTATE, in Postgres's words where it has them.

Invariants:
- An error about the user's data or query becomes a SqlError; one that shows a bug of ours (text that does not parse, a name that is
  not there, the engine broken inside) becomes EngineFaultError, which is none.
"""

import re
from collections.abc import Callable

import duckdb

from dsdb.sql import errors


class EngineFaultError(Exception):
    """The engine refused text that the binder made, or broke: a bug, with the text at fault."""


_TYPE_NAMES = {
    "BOOL": "boolean",
    "INT8": "smallint",
    "INT16": "smallint",
    "INT32": "integer",
    "INT64": "bigint",
    "INT128": "bigint",
    "FLOAT": "real",
    "DOUBLE": "double precision",
    "UUID": "uuid",
    "DATE": "date",
    "TIME": "time",
    "TIMESTAMP": "timestamp",
    "INTERVAL": "interval",
    "VARCHAR": "text",
}
_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d*)?\s*")


def _type_name(engine_name: str) -> str:
    base = engine_name.partition("(")[0]
    return "numeric" if base == "DECIMAL" else _TYPE_NAMES.get(base, engine_name.lower())


def _of_text(found: re.Match[str]) -> errors.SqlError:
    text, name = found["text"], _type_name(found["type"])
    if name in ("smallint", "integer", "bigint") and _NUMBER.fullmatch(text) and "." not in text:
        return errors.NumericOutOfRangeError(f'value "{text}" is out of range for type {name}')
    if name == "numeric" and _NUMBER.fullmatch(text):
        return errors.NumericOutOfRangeError("numeric field overflow")
    return errors.InvalidTextError(f'invalid input syntax for type {name}: "{text}"')


def _of_datetime(found: re.Match[str]) -> errors.SqlError:
    if found["problem"].startswith("out of range"):
        return errors.DatetimeOverflowError(f'date/time field value out of range: "{found["text"]}"')
    return errors.InvalidDatetimeError(f'invalid input syntax for type {found["type"]}: "{found["text"]}"')


def _classes_below(base: type[errors.SqlError]) -> dict[str, type[errors.SqlError]]:
    return {found.sqlstate: found for found in base.__subclasses__()}


_BY_SQLSTATE = _classes_below(errors.SqlError)


def _of_own(found: re.Match[str]) -> errors.SqlError:
    return _BY_SQLSTATE[found["sqlstate"]](found["message"])


_Make = Callable[["re.Match[str]"], errors.SqlError]

_RULES: tuple[tuple[re.Pattern[str], _Make], ...] = tuple(
    (re.compile(pattern), make)
    for pattern, make in (
        # What the binder has the engine raise: error('[22003] …').
        (r"(?s)^\[(?P<sqlstate>" + "|".join(sorted(_BY_SQLSTATE)) + r")\] (?P<message>.*)", _of_own),
        (r"Division by zero", lambda _: errors.DivisionByZeroError("division by zero")),
        (
            r"More than one row returned by a subquery",
            lambda _: errors.CardinalityViolationError("more than one row returned by a subquery used as an expression"),
        ),
        (r"(?s)Could not convert string ['\"](?P<text>.*)['\"] to (?P<type>[A-Z0-9(),]+)", _of_text),
        (
            r"Type \w+(\(.*\))? with value \S+ can't be cast .* out of range for the destination type (?P<type>\w+)",
            lambda found: errors.NumericOutOfRangeError(f"{_type_name(found['type'])} out of range"),
        ),
        (r"Could not cast value \S+ to DECIMAL", lambda _: errors.NumericOutOfRangeError("numeric field overflow")),
        (
            r"(Overflow|Underflow) in \w+ of (?P<type>\w+)",
            lambda found: errors.NumericOutOfRangeError(f"{_type_name(found['type'])} out of range"),
        ),
        (
            r"(?s)invalid (?P<type>date|time|timestamp) field format: \"(?P<text>.*?)\"(?P<problem>)",
            _of_datetime,
        ),
        (r"(?s)(?P<type>date|time|timestamp) field value (?P<problem>out of range): \"(?P<text>.*?)\"", _of_datetime),
        (r"(?i)(date|timestamp|time|epoch|interval).*out of range", lambda _: errors.DatetimeOverflowError("date/time value out of range")),
        (r"(?i)extract specifier .* not recognized", lambda found: errors.InvalidParameterError(found.string)),
        (r"cannot take logarithm", lambda found: errors.LogarithmError(found.string)),
        (r"(?i)is undefined outside", lambda _: errors.NumericOutOfRangeError("input is out of range")),
        (r"cannot take square root", lambda found: errors.PowerError(found.string)),
        (r"(?i)like pattern must not end with (?P<what>escape character)", lambda found: errors.InvalidEscapeError(found[0])),
        (
            r"Failed to cast decimal value \S+ to type (?P<type>\w+)",
            lambda found: errors.NumericOutOfRangeError(f"{_type_name(found['type'])} out of range"),
        ),
        (r"LIMIT/OFFSET cannot be negative", lambda _: errors.InvalidLimitError("LIMIT and OFFSET must not be negative")),
        (
            r"missing \)|missing \]|no argument for repetition|invalid escape sequence|invalid perl operator|bad repetition",
            lambda found: errors.InvalidRegularExpressionError(f"invalid regular expression: {found.string}"),
        ),
    )
)
"""The message, without the engine's own prefix, to an error; the first that is found counts."""

_CLASSES: tuple[tuple[type[Exception], type[errors.SqlError]], ...] = (
    (duckdb.OutOfMemoryException, errors.OutOfMemoryError),
    (duckdb.OutOfRangeException, errors.NumericOutOfRangeError),
    (duckdb.ConversionException, errors.InvalidTextError),
    (duckdb.InvalidInputException, errors.InvalidParameterError),
    (duckdb.BinderException, errors.FeatureNotSupportedError),
    (duckdb.NotImplementedException, errors.FeatureNotSupportedError),
    (duckdb.SyntaxException, errors.InvalidParameterError),
)
"""What is left, by class.  BinderException: queries that the engine cannot plan, such as some correlated sub-queries."""


_KINDS: dict[str, type[duckdb.Error]] = {
    "Binder Error": duckdb.BinderException,
    "Conversion Error": duckdb.ConversionException,
    "FATAL Error": duckdb.FatalException,
    "INTERNAL Error": duckdb.InternalException,
    "INTERRUPT Error": duckdb.InterruptException,
    "IO Error": duckdb.IOException,
    "Invalid Input Error": duckdb.InvalidInputException,
    "Not implemented Error": duckdb.NotImplementedException,
    "Out of Memory Error": duckdb.OutOfMemoryException,
    "Out of Range Error": duckdb.OutOfRangeException,
}


def streamed_error(error: OSError) -> duckdb.Error:
    """Give the engine's error behind the one that a stream of rows ended with: Arrow hands on its text alone."""
    text = str(error)
    return _KINDS.get(text.partition(": ")[0], duckdb.Error)(text)


def sql_error(error: duckdb.Error, sql: str) -> Exception:
    """Give what to raise for an error of the engine's that `sql` ended with."""
    first_line = str(error).split("\n", 1)[0]
    message = first_line.partition(": ")[2] or first_line
    if isinstance(error, duckdb.InterruptException):
        return errors.QueryCanceledError("canceling statement due to user request")
    if isinstance(error, duckdb.OutOfMemoryException):
        if "max_temp_directory_size" in str(error):
            return errors.OutOfMemoryError("the query needs more memory and spill space than its node allows")
        return errors.OutOfMemoryError("the query needs more memory than its node allows")
    if isinstance(error, duckdb.IOException):
        return errors.DiskFullError(f"the query could not spill to disk: {message}")
    for pattern, make in _RULES:
        found = pattern.search(str(error).partition(": ")[2] or str(error))
        if found is not None:
            return make(found)
    for engine_class, sql_class in _CLASSES:
        if isinstance(error, engine_class):
            return sql_class(message)
    return EngineFaultError(f"{message}; in: {sql}")
