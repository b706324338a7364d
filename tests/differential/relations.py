"""Pairs of queries that must give the same, whatever the rows: no other database is needed to see that one of them is wrong.

    partition of rows      Q  =  Q WHERE p  ∪  Q WHERE NOT p  ∪  Q WHERE p IS NULL         (TLP, as bags; of DISTINCT rows as sets)
    partition of groups    the same of HAVING
    parts of aggregates    an aggregate of all rows  =  one over those of the three parts
    counts                 count(*) WHERE p  =  the sum of p IS TRUE over all rows         (NoREC)
    semi-joins             x IN (SELECT y …)  =  EXISTS (SELECT … WHERE y = x)

[Rigger & Su, "Finding bugs in database systems via query partitioning", OOPSLA 2020; "Detecting optimization bugs in database engines via
non-optimizing reference engine construction", ESEC/FSE 2020.]
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from tests.differential.aimed import AimedQueries, Simple

_AGAIN = {
    "count": "coalesce(sum({}), 0)::bigint",
    "sum_int": "sum({})::bigint",
    "sum": "sum({})",
    "min": "min({})",
    "max": "max({})",
    "bool_or": "bool_or({})",
    "bool_and": "bool_and({})",
}


class Pair(msgspec.Struct, frozen=True):
    """Two queries that give the same rows, in any order."""

    kind: str
    first: str
    second: str


class Relations:
    """Makes pairs of one seed over a schema."""

    def __init__(self, seed: int | str, tables: Mapping[str, Mapping[str, str]]) -> None:
        self._queries = AimedQueries(seed, tables)
        self.rng = self._queries.rng

    def make(self) -> Pair:
        """Make a pair."""
        make = self.rng.choice((self._rows, self._distinct, self._groups, self._aggregates, self._aggregates, self._counts, self._semi))
        return make()

    def _parts(self, scope: Simple) -> tuple[str, list[str]]:
        """Give a WHERE, and those of the three parts."""
        queries = self._queries
        test = queries.condition(scope)
        base = [queries.condition(scope)] if self.rng.random() < 0.3 else []
        return queries.where(scope, *base), [queries.where(scope, *base, part) for part in _three(test)]

    def _source(self) -> tuple[str, Simple]:
        while True:
            self._queries._withs.clear()
            self._queries._known.clear()
            source, scope = self._queries.source(self.rng.choice((1, 1, 2, 3)))
            if not self._queries._withs:
                return source, scope

    def _rows(self) -> Pair:
        source, scope = self._source()
        items, _ = self._queries._outputs(scope, self.rng.randint(1, 3))
        whole, parts = self._parts(scope)
        head = f"SELECT {_listed(items)} FROM {source}"
        return Pair("partition of rows", head + whole, " UNION ALL ".join(head + part for part in parts))

    def _distinct(self) -> Pair:
        source, scope = self._source()
        items, _ = self._queries._outputs(scope, self.rng.randint(1, 2))
        whole, parts = self._parts(scope)
        head = f"SELECT DISTINCT {_listed(items)} FROM {source}"
        return Pair("partition of distinct rows", head + whole, " UNION ".join(head + part for part in parts))

    def _groups(self) -> Pair:
        source, scope = self._source()
        rng = self.rng
        key = rng.choice(scope.columns)[0]
        value = self._queries.aggregate(scope)[0]
        test = f"{self._queries.aggregate(scope)[0]} {rng.choice(('IS NULL', 'IS NOT NULL'))}"
        if rng.random() < 0.7:
            test = rng.choice((f"count(*) > {rng.randint(1, 4)}", f"sum({self._queries._number(scope)}) > {rng.randint(-2, 9)}"))
        head = f"SELECT {key} AS v0, {value} AS v1 FROM {source}{self._queries.where(scope)} GROUP BY {key}"
        return Pair("partition of groups", head, " UNION ALL ".join(f"{head} HAVING {part}" for part in _three(test)))

    def _aggregates(self) -> Pair:
        source, scope = self._source()
        rng = self.rng
        column, family = rng.choice(scope.columns)
        ways = [("count(*)", "count"), (f"count({column})", "count"), (f"bool_or({scope.simple()})", "bool_or")]
        ways += [(f"bool_and({scope.simple()})", "bool_and"), (f"bool_and({column} IS NOT NULL)", "bool_and")]
        if family != "bool":
            ways += [(f"min({column})", "min"), (f"max({column})", "max")]
        ways += [(f"sum({text})", "sum_int" if of != "numeric" else "sum") for text, of in scope.of("int4", "int2", "numeric")]
        chosen = [rng.choice(ways) for _ in range(rng.randint(1, 3))]
        keys = [rng.choice(scope.columns)[0]] if rng.random() < 0.6 else []
        whole, parts = self._parts(scope)
        items = _listed([*keys, *(text for text, _ in chosen)])
        group = f" GROUP BY {keys[0]}" if keys else ""
        head = f"SELECT {items} FROM {source}"
        inner = " UNION ALL ".join(f"{head}{part}{group}" for part in parts)
        again = [*(["x.v0"] if keys else []), *(_AGAIN[how].format(f"x.v{number}") for number, (_, how) in enumerate(chosen, len(keys)))]
        second = f"SELECT {_listed(again)} FROM ({inner}) AS x{' GROUP BY x.v0' if keys else ''}"
        return Pair("parts of aggregates", f"{head}{whole}{group}", second)

    def _counts(self) -> Pair:
        source, scope = self._source()
        test = self._queries.condition(scope)
        first = f"SELECT count(*) AS v0 FROM {source}{self._queries.where(scope, test)}"
        second = f"SELECT coalesce(sum(CASE WHEN ({test}) IS TRUE THEN 1 ELSE 0 END), 0)::bigint AS v0 FROM {source}"
        return Pair("counts", first, second + self._queries.where(scope))

    def _semi(self) -> Pair:
        source, scope = self._source()
        queries, rng = self._queries, self.rng
        mine, inner = self._source()
        pairs = [(a, b) for a, of in scope.columns for b, family in inner.columns if of == family and of not in ("bool", "float8")]
        if not pairs:
            return self._counts()
        a, b = rng.choice(pairs)
        also = [queries.condition(inner)] if rng.random() < 0.6 else []
        head = f"SELECT {_listed(queries._outputs(scope, 2)[0])} FROM {source}"
        first = queries.where(scope, f"{a} IN (SELECT {b} FROM {mine}{queries.where(inner, *also)})")
        second = queries.where(scope, f"EXISTS (SELECT 1 FROM {mine}{queries.where(inner, *also, f'{b} = {a}')})")
        return Pair("semi-joins", head + first, head + second)


def _three(test: str) -> list[str]:
    return [f"({test})", f"NOT ({test})", f"({test}) IS NULL"]


def _listed(items: list[str]) -> str:
    return ", ".join(f"{item} AS v{number}" for number, item in enumerate(items))
