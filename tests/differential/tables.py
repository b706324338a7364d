"""The tables that the generated queries read: every type, many NULLs, few distinct values, some at the edges.

    numbers   id │ b s i l n d f          keyed by id
    moments   id │ i x c v dt tm ts tz iv  keyed by (i, id): a composite key
    blobs     id │ i n x y u              keyed by id

Each table is there twice: under its name, and, for dsdb alone, as NAME_split, cut into many ranges.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

TABLES: dict[str, dict[str, str]] = {
    "numbers": {
        "id": "int",
        "b": "boolean",
        "s": "smallint",
        "i": "int",
        "l": "bigint",
        "n": "numeric(10,3)",
        "d": "numeric",
        "f": "float8",
        "x": "text",
    },
    "moments": {
        "id": "int",
        "i": "int",
        "x": "text",
        "c": "char(4)",
        "v": "varchar(8)",
        "dt": "date",
        "tm": "time",
        "ts": "timestamp",
        "tz": "timestamptz",
        "iv": "interval",
    },
    "blobs": {"id": "int", "i": "int", "n": "numeric(6,2)", "x": "text", "y": "bytea", "u": "uuid", "r": "real", "dt": "date"},
}
KEYS = {"numbers": ("id",), "moments": ("i", "id"), "blobs": ("id",)}
ROWS = {"numbers": 60, "moments": 45, "blobs": 30}
SPLITS = {"numbers": range(5, 60, 5), "moments": range(-2, 4), "blobs": range(3, 30, 4)}

WORDS = ["", "a", "b", "ab", "Abc", "abc def", "a,b,c", "%", "x_y", "été", "Zoë", "  pad ", "'q'", "12", "-3", "null", "日本"]
_LITERALS = {
    "boolean": ["true", "false"],
    "smallint": ["0", "1", "-1", "2", "7", "-30"],
    "int": ["0", "1", "2", "3", "-1", "-2", "10", "25"],
    "bigint": ["0", "1", "-5", "1000", "123456789012", "-99999999999"],
    "numeric(10,3)": ["0", "1", "1.5", "-2.25", "10.000", "0.001", "99.999", "-7.5"],
    "numeric(6,2)": ["0", "1.00", "-0.01", "12.5", "999.99", "-7.5"],
    "numeric": ["0", "1", "1.50", "-2.2500", "0.00001", "123456789.123", "-1000", "3"],
    "float8": ["0", "1", "-1.5", "0.1", "1e10", "-2.5e-3", "3.14159", "100", "2.5", "0.5"],
    "real": ["0", "1", "-1.5", "0.25", "1024.5", "0.1"],
    "date": ["2020-01-01", "2020-02-29", "1999-12-31", "2024-07-14", "1969-07-20", "2021-03-31"],
    "time": ["00:00:00", "12:34:56", "23:59:59.999999", "06:30:00", "01:02:03.5"],
    "timestamp": [
        "2020-01-01 00:00:00",
        "2020-02-29 12:34:56.789",
        "1999-12-31 23:59:59.999999",
        "1969-07-20 20:17:40",
        "2021-03-31 06:00:00",
    ],
    "timestamptz": ["2020-01-01 00:00:00+00", "2020-02-29 12:34:56.789+02", "1999-12-31 23:59:59-05", "2021-03-28 01:30:00+00"],
    "interval": ["1 day", "-1 day", "2 hours", "1 mon", "1 year 2 mons 3 days", "00:00:01.5", "-1 mon 3 days", "29 days", "36:00:00", "0"],
    "uuid": ["00000000-0000-0000-0000-000000000000", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "ffffffff-ffff-ffff-ffff-ffffffffffff"],
    "bytea": [r"\x", r"\x00", r"\x6162", r"\xdeadbeef", r"\xff00"],
}
_LENGTHS = {"char(4)": 4, "varchar(8)": 8}


def literal(rng: random.Random, type_: str) -> str:
    """Give a literal's spelling, without quotes."""
    if type_ == "text" or type_ in _LENGTHS:
        return rng.choice(WORDS)[: _LENGTHS.get(type_, 99)]
    return rng.choice(_LITERALS[type_])


def quoted(text: str) -> str:
    """Quote a text."""
    return "'" + text.replace("'", "''") + "'"


def statements(rng: random.Random, *, is_split: bool) -> Iterator[str]:
    """Give what makes and fills the tables; with `is_split` those of many ranges too."""
    for table, columns in TABLES.items():
        rows = []
        for number in range(ROWS[table]):
            values = [str(number)]
            for column, type_ in list(columns.items())[1:]:
                is_null = column not in KEYS[table] and rng.random() < 0.22
                values.append("NULL" if is_null else quoted(literal(rng, type_)))
            rows.append(f"({', '.join(values)})")
        for name in (table, f"{table}_split") if is_split else (table,):
            defined = ", ".join(f"{column} {type_}" for column, type_ in columns.items())
            yield f"CREATE TABLE {name} ({defined}, PRIMARY KEY ({', '.join(KEYS[table])}))"
            yield f"INSERT INTO {name} VALUES {', '.join(rows)}"
        if is_split:
            yield f"ALTER TABLE {table}_split SPLIT AT VALUES {', '.join(f'({key})' for key in SPLITS[table])}"
