"""Schemas made from seeds: some small tables of few distinct values and many NULLs, and what makes them under several names.

Every table has a unique `id` and an `int` column `k`, so that there is something to join; the primary key is `id`, or `id` with others
before it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from tests.differential.tables import literal, quoted

TYPES = ("int", "bigint", "smallint", "numeric(10,3)", "numeric", "text", "boolean", "date", "timestamp", "float8")
_KEY_TYPES = ("int", "smallint", "bigint", "text", "date")
FLOATS = ("0", "1", "-1.5", "100", "2.5", "0.5", "-0.25")
"""Their sums are exact, in whatever order they are added."""
STALE_CHANGED, STALE_MISSING, STALE_MORE = 0.3, 0.15, 0.15
"""Parts of the rows of a table that is not what it shall be."""
FIRST_OTHER_ID = 5_000

Row = tuple[str, ...]
"""Values as SQL's literals."""


class Table(msgspec.Struct, frozen=True):
    """A table.  columns: type by name; rows: what it holds; stale: what it may hold at first."""

    name: str
    columns: Mapping[str, str]
    key: tuple[str, ...]
    rows: tuple[Row, ...]
    stale: tuple[Row, ...]
    splits: tuple[Row, ...]
    """Keys, the first columns of them."""

    def create(self, suffix: str = "") -> str:
        """Give what makes it under its name with a suffix."""
        defined = ", ".join(f"{column} {type_}" for column, type_ in self.columns.items())
        return f"CREATE TABLE {self.name}{suffix} ({defined}, PRIMARY KEY ({', '.join(self.key)}))"

    def insert(self, rows: Sequence[Row], suffix: str = "") -> Iterator[str]:
        """Give what puts rows there."""
        if rows:
            yield f"INSERT INTO {self.name}{suffix} VALUES {', '.join('(' + ', '.join(row) + ')' for row in rows)}"

    def split(self, suffix: str = "") -> Iterator[str]:
        """Give what cuts it into ranges."""
        if self.splits:
            values = ", ".join("(" + ", ".join(row) + ")" for row in self.splits)
            yield f"ALTER TABLE {self.name}{suffix} SPLIT AT VALUES {values}"

    def corrections(self, suffix: str = "") -> Iterator[str]:
        """Give what makes the right rows of the stale ones: by key, by condition, of one row and of many."""
        names, at = list(self.columns), list(self.columns).index("id")
        right, stale = ({row[at]: row for row in rows} for rows in (self.rows, self.stale))
        yield f"DELETE FROM {self.name}{suffix} WHERE id >= {FIRST_OTHER_ID}"
        for key in sorted(right.keys() & stale.keys(), key=int):
            if right[key] != stale[key]:
                changed = [f"{name} = {value}" for name, value, old in zip(names, right[key], stale[key]) if value != old]
                yield f"UPDATE {self.name}{suffix} SET {', '.join(changed)} WHERE id = {key}"
        yield from self.insert([right[key] for key in sorted(right.keys() - stale.keys(), key=int)], suffix)


class Schemas:
    """Makes a schema of a seed."""

    def __init__(self, seed: str, rows_max: int = 60) -> None:
        self.rng = random.Random(seed)
        self._rows_max = rows_max

    def make(self) -> list[Table]:
        """Make some tables."""
        return [self._table(f"t{number}") for number in range(self.rng.randint(2, 4))]

    def _table(self, name: str) -> Table:
        rng = self.rng
        types = rng.sample(TYPES, rng.randint(3, 7))
        columns = {"id": "int", "k": "int", **{f"c{number}": type_ for number, type_ in enumerate(types)}}
        if rng.random() < 0.5:
            listed = list(columns.items())
            rng.shuffle(listed)
            columns = dict(listed)
        key = ("id",)
        if rng.random() < 0.4:
            others = [column for column, type_ in columns.items() if column != "id" and type_ in _KEY_TYPES]
            key = (*rng.sample(others, min(rng.randint(1, 2), len(others))), "id")
        count = rng.choice((0, 5, 20, self._rows_max, self._rows_max))
        rows = [self._row(columns, key, number) for number in range(count)]
        splits = sorted({self._key_of(columns, key, row) for row in rng.sample(rows, min(4, count))})
        return Table(name, columns, key, tuple(rows), tuple(self._stale(columns, key, rows)), tuple(splits))

    def _key_of(self, columns: Mapping[str, str], key: Sequence[str], row: Row) -> Row:
        names = list(columns)
        return tuple(row[names.index(column)] for column in key)

    def _row(self, columns: Mapping[str, str], key: Sequence[str], number: int) -> Row:
        values = []
        for column, type_ in columns.items():
            if column == "id":
                values.append(str(number))
            else:
                values.append(self._value(type_, may_be_null=column not in key))
        return tuple(values)

    def _value(self, type_: str, *, may_be_null: bool) -> str:
        rng = self.rng
        if may_be_null and rng.random() < 0.2:
            return "NULL"
        return f"'{rng.choice(FLOATS)}'" if type_ == "float8" else quoted(literal(rng, type_))

    def _stale(self, columns: Mapping[str, str], key: Sequence[str], rows: Sequence[Row]) -> Iterator[Row]:
        rng = self.rng
        for row in rows:
            chance = rng.random()
            if chance < STALE_MISSING:
                continue
            if chance < STALE_MISSING + STALE_CHANGED:
                other = self._row(columns, key, 0)
                yield tuple(old if column in key else new for column, old, new in zip(columns, row, other))
            else:
                yield row
        yield from (self._row(columns, key, FIRST_OTHER_ID + n) for n in range(int(len(rows) * STALE_MORE)))
