"""Generated queries over the tables: joins, filters, groups, windows, sub-queries, set operations.

Tables are written `@name`, so that one query can be run over the whole tables and over the split ones.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import msgspec

from tests.differential.expressions import Expressions
from tests.differential.tables import TABLES

_AGGREGATES = [
    ("count(*)", "int8"),
    ("count($any)", "int8"),
    ("sum($int4)", "int8"),
    ("sum($int8)", "numeric"),
    ("sum($numeric)", "numeric"),
    ("sum($float8)", "float8"),
    ("min($any)", ""),
    ("max($any)", ""),
    ("avg($int4)", "numeric"),
    ("avg($float8)", "float8"),
    ("avg($numeric)", "numeric"),
    ("bool_and($bool)", "bool"),
    ("bool_or($bool)", "bool"),
    ("count(DISTINCT $any)", "int8"),
    ("sum(DISTINCT $int4)", "int8"),
    ("string_agg($text, ',' ORDER BY $order)", "text"),
    ("stddev($float8)", "float8"),
    ("count(*) FILTER (WHERE $bool)", "int8"),
    ("sum($int4) FILTER (WHERE $bool)", "int8"),
    ("bit_and($int4)", "int4"),
    ("bit_or($int4)", "int4"),
    ("every($bool)", "bool"),
    ("variance($float8)", "float8"),
    ("var_pop($float8)", "float8"),
]
_WINDOWS = [
    "row_number()",
    "rank()",
    "dense_rank()",
    "ntile(3)",
    "lag($int4)",
    "lead($text)",
    "lag($int4, 2, 0)",
    "first_value($int4)",
    "last_value($text)",
    "sum($int4)",
    "count(*)",
    "max($date)",
    "min($text)",
    "percent_rank()",
    "cume_dist()",
    "nth_value($int4, 2)",
    "avg($int4)",
]
_FRAMES = [
    "",
    "",
    "",
    " ROWS BETWEEN 1 PRECEDING AND CURRENT ROW",
    " ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING",
    " ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING",
    " RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW",
]
_EXTREMES = ("min(", "max(")
_NO_EXTREME = ("bool", "uuid", "bytea")
"""PostgreSQL 15 has no min or max of these."""


class Query(msgspec.Struct, frozen=True):
    """A query.  order: ordinals (from 0) of the columns that its rows are ordered by, empty if their order is free."""

    text: str
    order: tuple[int, ...] = ()

    def over(self, suffix: str = "") -> str:
        """Give the text over the tables whose names end so."""
        return self.text.replace("@@", suffix)


class Queries:
    """Makes queries from one seed."""

    def __init__(self, seed: int | str, tables: Mapping[str, Mapping[str, str]] = TABLES) -> None:
        self.rng = random.Random(seed)
        self._tables = tables
        self._aliases = 0

    def _over(self, columns: list[tuple[str, str]]) -> Expressions:
        """Give what makes expressions over columns."""
        return Expressions(self.rng, columns)

    def make(self) -> Query:
        """Make a query."""
        self._aliases = 0
        shapes = (self._plain, self._plain, self._grouped, self._windowed, self._set_operation, self._nested)
        return self.rng.choice(shapes)()

    # Shapes

    def _plain(self) -> Query:
        source, scope = self._source()
        rng = self.rng
        items = self._items(scope, rng.randint(1, 4))
        distinct = "DISTINCT " if rng.random() < 0.15 else ""
        return self._tail(f"SELECT {distinct}{', '.join(items)} FROM {source}{self._where(scope)}", len(items))

    def _grouped(self) -> Query:
        rng = self.rng
        source, scope = self._source()
        names = [text for text, _ in scope.columns]
        keys = rng.sample(names, min(rng.randint(0, 2), len(names)))
        if keys and rng.random() < 0.3:
            keys[0] = f"({scope.any(2)[0]})"
        values = [self._aggregate(scope, names) for _ in range(rng.randint(1, 3))]
        items = keys + values
        group = ""
        if keys:
            style = rng.random()
            listed = ", ".join(keys)
            ordinals = ", ".join(str(number + 1) for number in range(len(keys)))
            group = f" GROUP BY {ordinals}" if style < 0.3 else f" GROUP BY ROLLUP ({listed})" if style < 0.38 else f" GROUP BY {listed}"
        having = f" HAVING {self._aggregate(scope, names, wanted='int8')} > {rng.randint(0, 3)}" if rng.random() < 0.25 else ""
        return self._tail(f"SELECT {', '.join(items)} FROM {source}{self._where(scope)}{group}{having}", len(items))

    def _windowed(self) -> Query:
        rng = self.rng
        source, scope = self._source(tables_max=1)
        alias = scope.columns[0][0].split(".")[0]
        items = [f"{alias}.id"]
        for _ in range(rng.randint(1, 2)):
            call = self._fill(rng.choice(_WINDOWS), scope, 1)
            names = [text for text, _ in scope.columns]
            parts = f"PARTITION BY {rng.choice(names)} " if rng.random() < 0.5 else ""
            frame = (
                rng.choice(_FRAMES)
                if "(" in call and not call.startswith(("row_number", "rank", "dense", "ntile", "lag", "lead", "perc", "cume"))
                else ""
            )
            down = rng.choice(["", " DESC", " NULLS FIRST", " DESC NULLS LAST"])
            items.append(f"{call} OVER ({parts}ORDER BY {rng.choice(names)}{down}, {alias}.id{frame})")
        return self._tail(f"SELECT {', '.join(items)} FROM {source}{self._where(scope)}", len(items))

    def _set_operation(self) -> Query:
        rng = self.rng
        families = [
            rng.choice(["int4", "text", "numeric", "date", "timestamp", "float8", "bool", "int8", "interval"])
            for _ in range(rng.randint(1, 3))
        ]
        sides = []
        for _ in range(rng.choice([2, 2, 3])):
            source, scope = self._source(tables_max=1)
            listed = ", ".join(scope.make(family, 2) for family in families)
            sides.append(f"SELECT {listed} FROM {source}{self._where(scope)}")
        text = sides[0]
        for side in sides[1:]:
            text += f" {rng.choice(['UNION', 'UNION ALL', 'INTERSECT', 'EXCEPT', 'EXCEPT ALL', 'INTERSECT ALL'])} {side}"
        return self._tail(text, len(families))

    def _nested(self) -> Query:
        rng = self.rng
        inner, inner_scope = self._source(tables_max=2)
        wanted = [rng.choice(["int4", "text", "numeric", "date", "float8"]) for _ in range(2)]
        listed = ", ".join(f"{inner_scope.make(family, 2)} AS k{number}" for number, family in enumerate(wanted))
        body = f"SELECT {listed} FROM {inner}{self._where(inner_scope)}"
        scope = self._over([(f"q.k{number}", family) for number, family in enumerate(wanted)])
        items = self._items(scope, rng.randint(1, 3))
        source = "q" if rng.random() < 0.5 else f"({body}) AS q"
        head = f"WITH q AS ({body}) " if source == "q" else ""
        return self._tail(f"{head}SELECT {', '.join(items)} FROM {source}{self._where(scope)}", len(items))

    # Parts

    def _source(self, tables_max: int = 3) -> tuple[str, Expressions]:
        rng = self.rng
        count = min(tables_max, rng.choice([1, 1, 1, 2, 2, 3]))
        text, columns = "", list[tuple[str, str]]()
        for number in range(count):
            table = rng.choice(list(self._tables))
            alias = f"{table[0]}{self._aliases}"
            self._aliases += 1
            mine = Expressions.columns_of(alias, table, self._tables)
            item = f"{table}@@ AS {alias}"
            text = f"{text} {self._join(columns, mine)}".replace("@table", item) if number else item
            columns += mine
        return text, self._over(columns)

    def _join(self, left: list[tuple[str, str]], right: list[tuple[str, str]]) -> str:
        rng = self.rng
        kind = rng.choice(["JOIN", "JOIN", "LEFT JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN", "CROSS JOIN"])
        if kind == "CROSS JOIN" and len(left) < 12:
            return "CROSS JOIN @table"
        if kind == "CROSS JOIN":
            kind = "JOIN"
        pairs = [(a, b) for a, of in left for b, other in right if of == other and of in ("int4", "text", "date", "numeric")]
        first, second = rng.choice(pairs)
        extra = ""
        if rng.random() < 0.3 and kind != "FULL JOIN":
            extra = f" AND {self._over(left + right).make('bool', 1)}"
        return f"{kind} @table ON {first} = {second}{extra}"

    def _where(self, scope: Expressions) -> str:
        rng = self.rng
        chance = rng.random()
        if chance < 0.3:
            return ""
        test = scope.make("bool", 2)
        if chance < 0.5:
            test = (
                f"{self._subquery_test(scope)} {rng.choice(['AND', 'OR'])} ({test})" if rng.random() < 0.5 else self._subquery_test(scope)
            )
        return f" WHERE {test}"

    def _subquery_test(self, outer: Expressions) -> str:
        rng = self.rng
        inner, scope = self._source(tables_max=1)
        family = rng.choice(["int4", "text", "date", "numeric"])
        mine = scope.make(family, 0)
        theirs = outer.make(family, 1)
        return rng.choice(
            [
                f"EXISTS (SELECT 1 FROM {inner} WHERE {mine} = {theirs})",
                f"NOT EXISTS (SELECT 1 FROM {inner} WHERE {mine} = {theirs})",
                f"{theirs} IN (SELECT {mine} FROM {inner})",
                f"{theirs} NOT IN (SELECT {mine} FROM {inner} WHERE {scope.make('bool', 1)})",
                f"{theirs} > (SELECT max({mine}) FROM {inner}{' WHERE ' + scope.make('bool', 1) if rng.random() < 0.5 else ''})",
                f"(SELECT count(*) FROM {inner} WHERE {mine} = {theirs}) > 1",
                f"{theirs} = ANY (SELECT {mine} FROM {inner})",
                f"{theirs} < ALL (SELECT {mine} FROM {inner} WHERE {mine} IS NOT NULL)",
            ]
        )

    def _items(self, scope: Expressions, count: int) -> list[str]:
        rng = self.rng
        items = []
        for number in range(count):
            text = scope.any(rng.choice([0, 1, 2, 2, 3]))[0]
            items.append(f"{text} AS a{number}" if rng.random() < 0.3 else text)
        return items

    def _aggregate(self, scope: Expressions, names: list[str], wanted: str = "") -> str:
        rng = self.rng
        while True:
            template, family = rng.choice(_AGGREGATES)
            if wanted and family != wanted:
                continue
            if "$order" in template:
                order = f"{rng.choice(names)}, " + ", ".join(name for name in names if name.endswith(".id"))
                key = scope.make("text", 1)
                return template.replace("$text", f"{key}::text").replace("$order", order)
            return self._fill(template, scope, 1)

    def _fill(self, template: str, scope: Expressions, depth: int) -> str:
        while "$" in template:
            head, _, tail = template.partition("$")
            word = ""
            while tail and (tail[0].isalnum()):
                word, tail = word + tail[0], tail[1:]
            if word == "any":
                text, family = scope.any(depth)
                while template.startswith(_EXTREMES) and family in _NO_EXTREME:
                    text, family = scope.any(depth)
            else:
                text = scope.make(word, depth)
            template = f"{head}{text}{tail}"
        return template

    def _tail(self, text: str, width: int) -> Query:
        rng = self.rng
        chance = rng.random()
        if chance < 0.5:
            return Query(text)
        keys = list(range(width))
        rng.shuffle(keys)
        directions = {key: rng.choice(["", " DESC", " NULLS FIRST", " ASC NULLS LAST", " DESC NULLS LAST"]) for key in keys}
        if chance < 0.75:
            keys = keys[: rng.randint(1, width)]
        limit = ""
        if chance >= 0.75:
            limit = f" LIMIT {rng.choice([0, 1, 5, 10])}" + (f" OFFSET {rng.choice([0, 1, 3])}" if rng.random() < 0.3 else "")
        return Query(f"{text} ORDER BY {', '.join(f'{key + 1}{directions[key]}' for key in keys)}{limit}", tuple(keys))
