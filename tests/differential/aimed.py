"""Generated queries, aimed at what plans do with conditions, keys, groups and limits: simple expressions in manifold blocks.

    relation   table │ (block) AS q │ with q
    block      rows │ first rows │ distinct │ groups │ groups of sets │ windows │ blocks put together, over joined relations
    condition  columns beside constants, ORs of ANDs that share parts, IN, EXISTS, NOT IN, NOT EXISTS, values of correlated blocks

Now and then a condition or an output is one of the whole grammar of `expressions`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

from tests.differential.expressions import Expressions
from tests.differential.queries import Queries, Query
from tests.differential.schemas import FLOATS

_JOINABLE = ("int4", "int4", "int8", "int2", "text", "date", "numeric")
_ORDERED = ("int4", "int8", "int2", "numeric", "float8", "text", "date", "timestamp")
_WHOLE_GRAMMAR = 0.12
"""Part of the expressions that are of the whole grammar."""
_DIRECTIONS = ("", "", " DESC", " NULLS FIRST", " DESC NULLS LAST")

Columns = list[tuple[str, str]]


class Simple(Expressions):
    """Makes mostly simple expressions.  conditions: of joins by commas, for WHERE."""

    def __init__(self, rng: random.Random, columns: Sequence[tuple[str, str]]) -> None:
        super().__init__(rng, columns)
        self.conditions: list[str] = []

    def make(self, family: str, depth: int) -> str:
        if depth > 0 and self.rng.random() < _WHOLE_GRAMMAR:
            return super().make(family, depth)
        if family == "bool":
            return self.condition(depth)
        return self.value(family)

    def constant(self, family: str) -> str:
        return f"'{self.rng.choice(FLOATS)}'::float8" if family == "float8" else super().constant(family)

    def of(self, *families: str) -> Columns:
        """Give the columns of some families."""
        return [(text, family) for text, family in self.columns if family in families]

    def value(self, family: str) -> str:
        """Give a column of a family, or a constant, or little more."""
        rng = self.rng
        mine = [text for text, _ in self.of(family)]
        if not mine:
            return self.constant(family)
        text, chance = rng.choice(mine), rng.random()
        if chance < 0.75:
            return text
        if chance < 0.85:
            return f"CASE WHEN {self.simple()} THEN {text} ELSE {self.constant(family)} END"
        if chance < 0.92:
            return f"coalesce({text}, {rng.choice(mine)})"
        return f"({text} + {rng.choice((1, 2, -1))})" if family in ("int4", "int8", "numeric", "float8") else text

    def simple(self) -> str:
        """Give a condition on a column, or two."""
        rng = self.rng
        text, family = rng.choice(self.columns)
        if family not in _ORDERED:
            return rng.choice((text, f"NOT {text}", f"{text} IS NULL", f"{text} = true")) if family == "bool" else f"{text} IS NOT NULL"
        others = [other for other, of in self.columns if of == family and other != text]
        constant, operator = self.constant(family), rng.choice(("=", "<", ">", "<=", ">=", "<>", "="))
        ways = [
            f"{text} {operator} {constant}",
            f"{text} {operator} {constant}",
            f"{constant} {operator} {text}",
            f"{text} BETWEEN {constant} AND {self.constant(family)}",
            f"{text} IN ({constant}, {self.constant(family)}, {self.constant(family)})",
            f"{text} NOT IN ({constant}, {self.constant(family)})",
            f"{text} IN ({constant}, NULL)",
            f"{text} IS NULL",
            f"{text} IS NOT NULL",
            f"{text} IS DISTINCT FROM {constant}",
        ]
        if others:
            ways += [f"{text} {operator} {rng.choice(others)}"] * 2
        if family == "text":
            ways += [f"{text} LIKE {rng.choice(('a%', '%b%', '_b%', '%'))!r}".replace('"', "'"), f"starts_with({text}, 'a')"]
        if family in ("int4", "int8", "int2", "numeric"):
            numbers = [other for other, of in self.of("int4", "int8", "int2", "numeric", "float8") if other != text]
            ways.append(f"{text} {operator} {rng.choice(('2.5', '1', '7.0', '-1', '3000000000'))}")
            if numbers:
                ways.append(f"{text} {operator} {rng.choice(numbers)}")
        return rng.choice(ways)

    def condition(self, depth: int) -> str:
        """Give a condition: simple, or put together, often so that parts are shared."""
        rng = self.rng
        chance = rng.random()
        if depth <= 0 or chance < 0.4:
            return self.simple()
        if chance < 0.5:
            return f"NOT ({self.condition(depth - 1)})"
        if chance < 0.6:
            return f"({self.condition(depth - 1)}) {rng.choice(('IS TRUE', 'IS NOT TRUE', 'IS FALSE', 'IS UNKNOWN', 'IS NOT NULL'))}"
        if chance < 0.72:
            return " AND ".join(f"({self.condition(depth - 1)})" for _ in range(rng.randint(2, 3)))
        shared = [self.simple() for _ in range(rng.randint(0, 2))]
        branches = []
        for _ in range(rng.randint(2, 3)):
            parts = [*shared, *(self.simple() for _ in range(rng.randint(0 if shared else 1, 2)))]
            rng.shuffle(parts)
            branches.append("(" + " AND ".join(parts) + ")")
        return "(" + " OR ".join(branches) + ")"


class AimedQueries(Queries):
    """Makes queries of one seed over a schema."""

    def __init__(self, seed: int | str, tables: Mapping[str, Mapping[str, str]]) -> None:
        super().__init__(seed, tables)
        self._withs: list[str] = []
        self._known: list[tuple[str, list[str]]] = []
        """Names of WITH, each with the families of its columns."""
        self._deep = 0

    def make(self) -> Query:
        """Make a query."""
        self._aliases, self._withs, self._known, self._deep = 0, [], [], 0
        body, columns = self._block(2)
        # A block in parentheses is whole.
        found = Query(body) if body.startswith("(") else self._tail(body, len(columns))
        head = f"WITH {', '.join(self._withs)} " if self._withs else ""
        return Query(head + found.text, found.order)

    def condition(self, scope: Simple) -> str:
        """Make a condition of a WHERE, sub-queries included."""
        rng = self.rng
        parts = []
        if rng.random() < 0.7:
            parts.append(scope.make("bool", 2))
        while rng.random() < (0.35 if self._deep < 2 else 0.1):
            parts.append(self._subquery_test(scope))
        if not parts:
            return scope.make("bool", 1)
        return f" {rng.choice(('AND', 'OR'))} ".join(f"({part})" for part in parts)

    def source(self, tables_max: int = 3) -> tuple[str, Simple]:
        """Make a FROM, without its word."""
        text, scope = self._source(tables_max)
        assert isinstance(scope, Simple)
        return text, scope

    def where(self, scope: Simple, *also: str) -> str:
        """Give the WHERE that a source needs, and more conditions."""
        parts = [*scope.conditions, *also]
        return f" WHERE {' AND '.join(f'({part})' for part in parts)}" if parts else ""

    # ---- Relations ----

    def _over(self, columns: Columns) -> Simple:
        return Simple(self.rng, columns)

    def _alias(self, letter: str) -> str:
        self._aliases += 1
        return f"{letter}{self._aliases}"

    def _relation(self, depth: int) -> tuple[str, Columns]:
        """Give an operand of FROM and its columns."""
        rng = self.rng
        if depth <= 0 or self._deep > 2 or rng.random() < 0.75:
            table, alias = rng.choice(list(self._tables)), self._alias("r")
            return f"{table}@@ AS {alias}", Expressions.columns_of(alias, table, self._tables)
        alias = self._alias("q")
        if self._known and rng.random() < 0.5:
            name, columns = rng.choice(self._known)
            return f"{name} AS {alias}", [(f"{alias}.o{number}", family) for number, family in enumerate(columns)]
        body, columns = self._nested_block(depth - 1)
        named = [(f"{alias}.o{number}", family) for number, family in enumerate(columns)]
        names = ", ".join(f"o{number}" for number in range(len(columns)))
        if self._deep == 0 and rng.random() < 0.3:
            name = self._alias("w")
            self._withs.append(f"{name} ({names}) AS ({body})")
            self._known.append((name, columns))
            return f"{name} AS {alias}", named
        return f"({body}) AS {alias} ({names})", named

    def _source(self, tables_max: int = 3) -> tuple[str, Expressions]:
        rng = self.rng
        text, columns = self._relation(1)
        conditions: list[str] = []
        count = min(tables_max, rng.choice((1, 1, 1, 2, 2, 2, 3)))
        for _ in range(count - 1):
            other, theirs = self._relation(1)
            pairs = [(a, b) for a, of in columns for b, family in theirs if of == family and of in _JOINABLE]
            if not pairs:
                continue
            equal = " AND ".join(f"{a} = {b}" for a, b in rng.sample(pairs, min(rng.choice((1, 1, 2)), len(pairs))))
            kind = rng.choice((",", ",", "JOIN", "JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"))
            if kind == ",":
                conditions.append(equal if rng.random() < 0.8 else f"({equal} AND {theirs[0][0]} IS NOT NULL) OR ({equal})")
                text = f"{text}, {other}" if count == 2 else f"{text} CROSS JOIN {other}"
            else:
                also = f" AND {self._over(columns + theirs).condition(1)}" if rng.random() < 0.3 and kind != "FULL JOIN" else ""
                text = f"{text} {kind} {other} ON {equal}{also}"
            columns = columns + theirs
        scope = self._over(columns)
        scope.conditions = conditions
        return text, scope

    # ---- Blocks ----

    def _nested_block(self, depth: int) -> tuple[str, list[str]]:
        self._deep += 1
        try:
            return self._block(depth)
        finally:
            self._deep -= 1

    def _block(self, depth: int) -> tuple[str, list[str]]:
        """Give a block, and the families of its outputs."""
        shapes: list[Callable[[], tuple[str, list[str]]]] = [
            *(self._rows, self._rows, self._first_rows, self._distinct, self._groups, self._groups, self._groups, self._whole),
            *(self._windows, self._correlated),
        ]
        if depth > 0:
            shapes.append(self._together)
        return self.rng.choice(shapes)()

    def _where_of(self, scope: Simple, chance: float = 0.5) -> str:
        return self.where(scope, *([self.condition(scope)] if self.rng.random() < chance else []))

    def _outputs(self, scope: Simple, count: int) -> tuple[list[str], list[str]]:
        families = [self.rng.choice(scope.columns)[1] for _ in range(count)]
        return [scope.make(family, 1) for family in families], families

    def _rows(self) -> tuple[str, list[str]]:
        source, scope = self.source()
        items, families = self._outputs(scope, self.rng.randint(1, 4))
        if self.rng.random() < 0.15:
            items[0], families[0] = f"({self._subquery_test(scope)})", "bool"
        return f"SELECT {', '.join(items)} FROM {source}{self._where_of(scope)}", families

    def _first_rows(self) -> tuple[str, list[str]]:
        """Give first rows by all outputs, so that ties do not matter, in parentheses."""
        rng = self.rng
        source, scope = self.source(tables_max=rng.choice((1, 1, 2)))
        items, families = self._outputs(scope, rng.randint(1, 3))
        items = [f"{item} AS v{number}" for number, item in enumerate(items)]
        order = [f"{rng.choice((f'v{number}', str(number + 1)))}{rng.choice(_DIRECTIONS)}" for number in range(len(items))]
        rng.shuffle(order)
        if rng.random() < 0.4 and (plain := scope.of("int4", "text", "date", "numeric")):
            # What is ordered by first may not be an output, nor be one of one row alone: then ids decide.
            order[:0] = [f"{rng.choice(plain)[0]}{rng.choice(_DIRECTIONS)}"]
        limit = f"LIMIT {rng.choice((0, 1, 3, 7))}" + (f" OFFSET {rng.choice((0, 1, 4))}" if rng.random() < 0.4 else "")
        return f"(SELECT {', '.join(items)} FROM {source}{self._where_of(scope)} ORDER BY {', '.join(order)} {limit})", families

    def _distinct(self) -> tuple[str, list[str]]:
        source, scope = self.source(tables_max=self.rng.choice((1, 1, 2)))
        items, families = self._outputs(scope, self.rng.randint(1, 3))
        return f"SELECT DISTINCT {', '.join(items)} FROM {source}{self._where_of(scope)}", families

    def _whole(self) -> tuple[str, list[str]]:
        rng = self.rng
        source, scope = self.source(tables_max=rng.choice((1, 1, 2)))
        values = [self.aggregate(scope) for _ in range(rng.randint(1, 4))]
        having = f" HAVING count(*) > {rng.randint(0, 3)}" if rng.random() < 0.2 else ""
        return f"SELECT {', '.join(text for text, _ in values)} FROM {source}{self._where_of(scope)}{having}", [of for _, of in values]

    def _groups(self) -> tuple[str, list[str]]:
        rng = self.rng
        source, scope = self.source(tables_max=rng.choice((1, 1, 1, 2, 3)))
        keys = rng.sample(scope.columns, min(rng.randint(1, 3), len(scope.columns)))
        if rng.random() < 0.3:
            family = rng.choice(("int4", "text", "bool", "date"))
            keys[0] = (f"({scope.make(family, 1)})", family)
        keys = [(text, family) for text, family in keys if any(text.find(column) >= 0 for column, _ in scope.columns)] or scope.columns[:1]
        values = [self.aggregate(scope) for _ in range(rng.randint(0, 3))]
        listed = ", ".join(text for text, _ in keys)
        form = rng.choice(("{}", "{}", "{}", "{}", "ROLLUP ({})", "CUBE ({})", "GROUPING SETS (({}), ())"))
        having = ""
        if rng.random() < 0.3:
            having = " HAVING " + rng.choice(
                (
                    f"count(*) > {rng.randint(0, 3)}",
                    f"{self.aggregate(scope)[0]} IS NOT NULL",
                    f"sum({self._number(scope)}) > {rng.randint(-3, 6)}",
                    f"{keys[0][0]} IS NOT NULL AND count(*) >= 1",
                )
            )
        if rng.random() < 0.12:
            values.append((f"rank() OVER (ORDER BY {self.aggregate(scope)[0]}{rng.choice(_DIRECTIONS)})", "int8"))
        outputs = [*keys, *values]
        if form == "{}" and rng.random() < 0.2 and len(outputs) > 1:
            outputs = outputs[1:]
        order = ""
        if rng.random() < 0.15:
            order = f" ORDER BY {self.aggregate(scope)[0]}{rng.choice(_DIRECTIONS)}, {listed}"
        items = ", ".join(text for text, _ in outputs)
        group = form.format(listed)
        body = f"SELECT {items} FROM {source}{self._where_of(scope)} GROUP BY {group}{having}{order}"
        return (f"({body})" if order else body), [of for _, of in outputs]

    def _windows(self) -> tuple[str, list[str]]:
        rng = self.rng
        source, scope = self.source(tables_max=1)
        names = ", ".join(text for text, _ in scope.columns)
        part = f"PARTITION BY {rng.choice(scope.columns)[0]} " if rng.random() < 0.6 else ""
        call, family = rng.choice(
            (("row_number()", "int8"), ("rank()", "int8"), (f"sum({self._int(scope)})", "int8"), ("count(*)", "int8"), ("ntile(3)", "int4"))
        )
        key, of = rng.choice(scope.columns)
        return f"SELECT {key}, {call} OVER ({part}ORDER BY {names}) FROM {source}{self._where_of(scope)}", [of, family]

    def _correlated(self) -> tuple[str, list[str]]:
        """Give a value of a block for each row, or rows of one (LATERAL)."""
        rng = self.rng
        source, scope = self.source(tables_max=1)
        key, family = rng.choice(scope.columns)
        if rng.random() < 0.35:
            alias = self._alias("l")
            mine, inner, test = self._matching(scope)
            value, of = rng.choice(inner.columns)
            body = f"SELECT {value} AS v FROM {mine} WHERE {test} ORDER BY 1{rng.choice(_DIRECTIONS)} LIMIT {rng.choice((1, 2))}"
            if rng.random() < 0.3:
                value, of = self.aggregate(inner)
                body = f"SELECT {value} AS v FROM {mine} WHERE {test}"
            return f"SELECT {key}, {alias}.v FROM {source} LEFT JOIN LATERAL ({body}) AS {alias} ON true{self._where_of(scope)}", [
                family,
                of,
            ]
        value, of = self._correlated_value(scope)
        return f"SELECT {key}, {value} FROM {source}{self._where_of(scope)}", [family, of]

    def _together(self) -> tuple[str, list[str]]:
        rng = self.rng
        families = [rng.choice(("int4", "text", "numeric", "date", "int8")) for _ in range(rng.randint(1, 2))]
        sides = []
        for _ in range(rng.choice((2, 2, 3))):
            source, scope = self.source(tables_max=rng.choice((1, 1, 2)))
            items = [scope.value(family) for family in families]
            group = ""
            if rng.random() < 0.25:
                items = [f"max({item})" for item in items]
                texts = [text for text, _ in scope.columns]
                group = f" GROUP BY {rng.choice(texts)}" if rng.random() < 0.7 else ""
            sides.append(f"SELECT {', '.join(items)} FROM {source}{self._where_of(scope)}{group}")
        text = sides[0]
        for side in sides[1:]:
            text += f" {rng.choice(('UNION', 'UNION ALL', 'INTERSECT', 'EXCEPT', 'EXCEPT ALL', 'INTERSECT ALL'))} {side}"
        return text, families

    # ---- Values and tests ----

    def _number(self, scope: Simple) -> str:
        return scope.value(self.rng.choice([of for _, of in scope.of("int4", "int8", "int2", "numeric", "float8")] or ["int4"]))

    def _int(self, scope: Simple) -> str:
        return f"({scope.value('int4')})"

    def aggregate(self, scope: Simple) -> tuple[str, str]:
        """Give an aggregate, or little more, and its family."""
        rng = self.rng
        text, family = self._plain_aggregate(scope)
        if not text.startswith("string_agg") and rng.random() < 0.2:
            text += f" FILTER (WHERE {scope.condition(1)})"
        if rng.random() < 0.12 and family in ("int8", "numeric"):
            text = rng.choice((f"{text} + count(*)", f"CASE WHEN count(*) > 2 THEN {text} END", f"coalesce({text}, -1)"))
        return text, family

    def _plain_aggregate(self, scope: Simple) -> tuple[str, str]:
        rng = self.rng
        column, family = rng.choice(scope.columns)
        ways: list[tuple[str, str]] = [("count(*)", "int8"), (f"count({column})", "int8"), (f"count(DISTINCT {column})", "int8")]
        if family not in ("bool", "uuid", "bytea"):
            ways += [(f"min({column})", family), (f"max({column})", family), (f"max(DISTINCT {column})", family)]
        number = rng.choice(scope.of("int4", "int2", "int8", "numeric", "float8") or [("1", "int4")])
        total = {"int4": "int8", "int2": "int8", "int8": "numeric", "numeric": "numeric", "float8": "float8"}[number[1]]
        ways += [(f"sum({number[0]})", total), (f"avg({number[0]})", "float8" if total == "float8" else "numeric")]
        ways += [(f"sum({number[0]})", total), (f"sum(DISTINCT {number[0]})", total)]
        ways += [(f"bool_or({scope.simple()})", "bool"), (f"bool_and({scope.simple()})", "bool"), (f"count({scope.value(family)})", "int8")]
        ways.append((f"bit_or({self._int(scope)})", "int4"))
        if texts := scope.of("text"):
            text = rng.choice(texts)[0]
            ways.append((f"string_agg({text}, ',' ORDER BY {text})", "text"))
        return rng.choice(ways)

    def _matching(self, outer: Simple) -> tuple[str, Simple, str]:
        """Give a source, its scope, and a condition that matches its rows with outer ones."""
        rng = self.rng
        mine, inner = self.source(tables_max=rng.choice((1, 1, 1, 2)))
        pairs = [(a, b) for a, of in inner.columns for b, family in outer.columns if of == family and of in _JOINABLE]
        if not pairs:
            return mine, inner, " AND ".join(f"({part})" for part in (*inner.conditions, inner.simple()))
        chosen = rng.sample(pairs, min(rng.choice((1, 1, 1, 2)), len(pairs)))
        parts = [*inner.conditions, *(f"{a} = {b}" if rng.random() < 0.9 else f"{b} {rng.choice('<>')} {a}" for a, b in chosen)]
        if rng.random() < 0.5:
            parts.append(inner.condition(1))
        if rng.random() < 0.12:
            parts.append(self._over(inner.columns + list(outer.columns)).simple())
        rng.shuffle(parts)
        return mine, inner, " AND ".join(f"({part})" for part in parts)

    def _correlated_value(self, outer: Simple) -> tuple[str, str]:
        mine, inner, test = self._matching(outer)
        value, family = self.aggregate(inner)
        return f"(SELECT {value} FROM {mine} WHERE {test})", family

    def _subquery_test(self, outer: Expressions) -> str:
        assert isinstance(outer, Simple)
        self._deep += 1
        try:
            return self._test(outer)
        finally:
            self._deep -= 1

    def _test(self, outer: Simple) -> str:
        rng = self.rng
        chance = rng.random()
        if chance < 0.4:
            mine, inner, test = self._matching(outer)
            if self._deep < 2 and rng.random() < 0.2:
                test += f" AND {self._test(inner)}"
            outputs = rng.choice(("1", "*", f"{rng.choice(inner.columns)[0]}, 2", f"DISTINCT {rng.choice(inner.columns)[0]}"))
            tail = ""
            if rng.random() < 0.2:
                outputs, tail = "count(*)", rng.choice(("", f" GROUP BY {rng.choice(inner.columns)[0]}", " HAVING count(*) > 1"))
            elif rng.random() < 0.15:
                tail = rng.choice((" LIMIT 1", " LIMIT 0", " OFFSET 1"))
            return f"{rng.choice(('EXISTS', 'EXISTS', 'NOT EXISTS'))} (SELECT {outputs} FROM {mine} WHERE {test}{tail})"
        if chance < 0.55:
            value, family = self._correlated_value(outer)
            return f"{value} {rng.choice(('=', '<', '>', 'IS DISTINCT FROM'))} {outer.value(family)}"
        mine, inner = self.source(tables_max=rng.choice((1, 1, 2)))
        families = [of for _, of in inner.columns if of in _JOINABLE and outer.of(of)]
        if not families:
            return outer.simple()
        family = rng.choice(families)
        theirs, value = rng.choice(outer.of(family))[0], rng.choice(inner.of(family))[0]
        test = self._where_of(inner, 0.5)
        group = f" GROUP BY {value}" + (" HAVING count(*) > 1" if rng.random() < 0.5 else "") if rng.random() < 0.2 else ""
        body = f"SELECT {value} FROM {mine}{test}{group}"
        forms = (
            *("{a} IN ({b})", "{a} IN ({b})", "{a} NOT IN ({b})", "{a} = ANY ({b})", "{a} >= ALL ({b})"),
            "{a} < (SELECT max(m.x) FROM ({b}) AS m (x))",
        )
        return rng.choice(forms).format(a=theirs, b=body)
