"""Expressions and queries at the edges: values that overflow, texts that are no values, names and types that do not fit.

Each is one row or none, so that which error comes first is not free.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

from tests.differential.queries import Query

_VALUES = {
    "smallint": ["32767", "-32768", "1", "0", "-1"],
    "int": ["2147483647", "-2147483648", "1", "0", "-1", "46341"],
    "bigint": ["9223372036854775807", "-9223372036854775808", "1", "0", "-1", "3037000500"],
    "numeric": ["99999999999999999999.5", "-0.000001", "0", "2.5", "-2.5", "NaN"],
    "float8": ["1e308", "-1e-308", "0", "2.5", "NaN", "Infinity", "-3.5"],
    "real": ["3e38", "0", "2.5", "-0.5"],
    "date": ["2020-02-29", "0001-01-01", "9999-12-31", "4713-01-01 BC", "5874897-12-31"],
    "timestamp": ["2020-02-29 23:59:59.999999", "0001-01-01 00:00:00", "9999-12-31 23:59:59", "1900-01-01"],
    "interval": ["1 mon", "-1 year 5 days", "178956970 years", "23:59:59.999999", "0.5 day", "1.5 mons"],
    "text": ["", "abc", "12", "-7", " 5 ", "1e3", "0x10", "true", "2020-01-31", "12:30", "1 day", "NaN", "99999999999"],
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
        "{} = 'NaN'",
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
        "exp({})",
        "{} * 10",
        "{}::real",
        "{}::text",
        "round({})",
        "power({}, 2)",
        "power({}, 0.5)",
        "log({})",
        "{}::smallint",
        "1 / {}",
        "{} / 0",
        "{} - {}",
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
        "extract(julian from {})",
        "date_trunc('millennium', {})",
        "extract(hour from {})",
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
        "{} / 3",
        "{} + interval '1 mon'",
        "extract(epoch from {})",
        "{}::text",
        "{} / 0",
        "extract(month from {})",
        "{}::time",
        "extract(century from {})",
        "{} * 1e10",
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
    """Give each operation over each edge value, computed as a constant and (the same) over a row."""
    for type_, values in _VALUES.items():
        for value in values:
            operand = f"'{value}'::{type_}"
            for template in _UNARY[type_]:
                yield Query(f"SELECT {template.replace('{}', f'({operand})')} AS v")
            for other in values:
                for operator in _OPERATORS.get(type_, "").split():
                    yield Query(f"SELECT {operand} {operator} '{other}'::{type_} AS v")


def over_a_row(query: Query) -> Query:
    """Write a constant query so that its operand is a column."""
    text = query.text
    _, _, tail = text.partition("'")
    value, _, rest = tail.partition("'::")
    end = 0
    while end < len(rest) and rest[end].isalnum():
        end += 1
    operand = f"'{value}'::{rest[:end]}"
    return Query(f"{text.replace(operand, 'q.o')} FROM (SELECT {operand} AS o FROM numbers@@ AS n WHERE n.id = 1) AS q")
