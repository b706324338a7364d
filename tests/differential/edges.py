"""Expressions and queries at the edges: values that overflow, texts that are no values, names and types that do not fit.

Each is one row or none, so that which error comes first is not free.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from tests.differential.queries import Query

LEFT_OUT = {
    "NaN among numerics": "the engine's DECIMAL has none: refused over rows (22P02)",
    "floats that underflow, NaN / 0, sums that overflow": "the engine gives zero, an error (22012), infinity",
    "numerics of more than 38 digits": "the engine's DECIMAL ends there: 22003",
    "dates beyond the year 294246": "the engine's timestamps end there: 22008",
    "intervals beyond 292 years of clock time": "Arrow counts nanoseconds",
    "extract(julian), date_trunc('millennium')": "refused",
    "extract(hour from date)": "22023 for Postgres's 0A000",
    "the least integer % -1": "22003; Postgres gives 0",
    "text to bytea, text to interval, interval to text, justify_… over rows": "refused (0A000)",
    "numerals in hexadecimal as floats": "22P02",
    "interval / 3": "a part of a second is not rounded off as Postgres does",
    "text to time over rows": "22008 for 22007, and a date before the time is read",
    "'' LIKE '\\\\'": "22025; Postgres looks at no pattern for an empty text",
}
"""What is not compared here: reason by case."""
_VALUES = {
    "smallint": ["32767", "-32768", "1", "0", "-3"],
    "int": ["2147483647", "-2147483648", "1", "0", "-3", "46341"],
    "bigint": ["9223372036854775807", "-9223372036854775808", "1", "0", "-3", "3037000500"],
    "numeric": ["9999999999999999.5", "-0.000001", "0", "2.5", "-2.5"],
    "float8": ["1e100", "-1e-30", "0", "2.5", "-3.5"],
    "real": ["3e10", "0", "2.5", "-0.5"],
    "date": ["2020-02-29", "0001-01-01", "9999-12-31", "4713-01-01 BC"],
    "timestamp": ["2020-02-29 23:59:59.999999", "0001-01-01 00:00:00", "9999-12-31 23:59:59", "1900-01-01"],
    "interval": ["1 mon", "-1 year 5 days", "23:59:59.999999", "0.5 day", "1.5 mons"],
    "text": ["abc", "12", "-7", " 5 ", "1e3", "true", "2020-01-31", "12:30", "1 day", "99999999999"],
    "time": ["00:00:00", "24:00:00", "23:59:59.999999"],
}
_UNARY = {
    "smallint": ["-{}", "abs({})", "{}::int", "{}::boolean", "~{}", "{}::real", "{}::text"],
    "int": [
        "-{}",
        "abs({})",
        "{}::smallint",
        "{}::boolean",
        "{} + 1",
        "{} * 2",
        "{} - 10",
        "chr({})",
        "to_hex({})",
        "{}::numeric(5,2)",
        "{}::char(3)",
    ],
    "bigint": ["-{}", "abs({})", "{}::int", "{}::float8", "{} * 2", "{} + 1", "{}::numeric", "{}::smallint"],
    "numeric": [
        "{}::int",
        "{}::bigint",
        "{}::numeric(4,2)",
        "round({})",
        "round({}, 1)",
        "trunc({})",
        "ceil({})",
        "floor({})",
        "-{}",
        "{}::float8",
        "{}::text",
        "{} % 2",
        "{}::smallint",
        "abs({})",
        "sign({})",
        "round({}, -1)",
    ],
    "float8": [
        "{}::int",
        "{}::bigint",
        "{}::numeric",
        "sqrt({})",
        "ln({})",
        "{} * 10",
        "{}::real",
        "{}::text",
        "round({})",
        "power({}, 0.5)",
        "log({})",
        "{}::smallint",
        "1 / {}",
        "{} / 0",
        "asin({})",
        "floor({})",
        "{}::numeric(5,1)",
        "sign({})",
    ],
    "real": ["{} * 10::real", "{}::int", "{}::float8", "{}::numeric", "{}::text", "-{}"],
    "date": [
        "{} + 1",
        "{} - 1",
        "{}::timestamp",
        "{} + interval '1 mon'",
        "extract(year from {})",
        "extract(century from {})",
        "{}::text",
        "extract(isoyear from {})",
        "extract(week from {})",
        "extract(epoch from {})",
    ],
    "timestamp": [
        "{}::date",
        "{} + interval '1 mon'",
        "{} - interval '1 year'",
        "{}::time",
        "extract(epoch from {})",
        "{}::text",
        "date_trunc('week', {})",
        "date_trunc('nonsense', {})",
        "extract(nonsense from {})",
        "extract(decade from {})",
        "extract(microseconds from {})",
    ],
    "interval": [
        "-{}",
        "{} * 2",
        "{} + interval '1 mon'",
        "extract(epoch from {})",
        "{}::text",
        "{} / 0",
        "extract(month from {})",
        "{}::time",
        "extract(century from {})",
        "justify_hours({})",
    ],
    "text": [
        "{}::int",
        "{}::bigint",
        "{}::smallint",
        "{}::numeric",
        "{}::float8",
        "{}::boolean",
        "{}::date",
        "{}::time",
        "{}::interval",
        "{}::uuid",
        "{}::bytea",
        "substr({}, 2, -1)",
        "repeat({}, -1)",
        "left({}, -1)",
        "{} LIKE '%' ESCAPE '!'",
        "{} LIKE '\\'",
        "ascii({})",
        "lpad({}, 3, '')",
        "{}::char(2)",
        "split_part({}, ',', 0)",
        "decode({}, 'hex')",
        "{}::varchar(2)",
        "{} ~ '('",
        "{}::timestamp",
        "{}::timestamptz",
        "{}::real",
    ],
    "time": ["{} + interval '1 hour'", "{}::interval", "{}::text", "{} - time '01:00'", "extract(hour from {})", "{}::timestamp"],
}
_NOT_OVER_ROWS = {
    "interval": ("{}::text", "justify_hours({})"),
    "text": ("{}::bytea", "{}::interval", "{}::time"),
}
_OPERATORS = {
    "smallint": "+ - * / %",
    "int": "+ - * / %",
    "bigint": "+ - * / %",
    "float8": "+ - * /",
    "numeric": "+ - * %",
    "interval": "+ -",
    "timestamp": "-",
    "date": "-",
}
STATEMENTS = tuple((pathlib.Path(__file__).parent / "statements.sql").read_text().splitlines())
"""Texts of their own, one a line; each that is no error orders what it gives, or is compared as a bag."""


def constant_queries() -> Iterator[Query]:
    """Give each operation over each edge value, as a constant."""
    for type_, values in _VALUES.items():
        for value in values:
            operand = f"'{value}'::{type_}"
            for template in _UNARY[type_]:
                if (value, template) not in _CONSTANTS_LEFT_OUT:
                    yield Query(f"SELECT {template.replace('{}', f'({operand})')} AS v")
            for operator in _OPERATORS.get(type_, "").split():
                yield from (Query(f"SELECT {operand} {operator} '{other}'::{type_} AS v") for other in values)


_CONSTANTS_LEFT_OUT = {("1e3", "{}::interval"), ("99999999999", "{}::interval")}


def row_queries() -> Iterator[Query]:
    """Give each operation over each edge value, as a column of a row."""
    for type_, values in _VALUES.items():
        for value in values:
            source = f"FROM (SELECT '{value}'::{type_} AS o FROM numbers@@ AS n WHERE n.id = 1) AS q"
            for template in _UNARY[type_]:
                if template not in _NOT_OVER_ROWS.get(type_, ()):
                    yield Query(f"SELECT {template.replace('{}', '(q.o)')} AS v {source}")
            for operator in _OPERATORS.get(type_, "").split():
                yield from (Query(f"SELECT q.o {operator} '{other}'::{type_} AS v {source}") for other in values)
