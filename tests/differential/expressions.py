"""Generated scalar expressions: of a wanted type, over the columns in scope.

EXCLUDED says what is not generated, and why; everything else of these types and functions must give what PostgreSQL gives.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from tests.differential.tables import TABLES, literal, quoted

EXCLUDED = {
    "numeric / numeric": "a quotient has its own number of digits: compared with a tolerance (APPROXIMATE)",
    "numerics without a scale, computed": "the engine gives them 12 digits behind the point: compared by value",
    "avg, stddev, variance of numeric": "as quotients: compared with a tolerance",
    "sqrt, power, exp, ln of numeric": "give double precision; only float8 arguments are generated",
    "sum, avg of float8": "the order of addition is free: compared with a tolerance",
    "LIMIT without a total order": "either may give any of the tied rows; LIMIT comes with an order by every output column",
    "~ with classes and back references": "RE2 is not Tcl's engine; only plain patterns are generated",
    "upper, lower beyond ASCII": "PostgreSQL's C collation folds ASCII alone",
    "CASE, COALESCE, NULLIF of char(n)": "two lengths meet as text, in Postgres as char without a length",
    "SIMILAR TO, format, convert_to": "refused (0A000)",
    "values that overflow": "which row fails first is free; single-row queries of test_errors have them",
    "x / y with columns": "where zeros are filtered out too late or too early is free; divisors are non-zero constants",
}
"""What is left out or compared loosely: reason by case."""

APPROXIMATE = frozenset({"float8", "real"})

COLUMN_TYPES = {
    "boolean": "bool",
    "smallint": "int2",
    "int": "int4",
    "bigint": "int8",
    "numeric(10,3)": "numeric",
    "numeric(6,2)": "numeric",
    "numeric": "numeric",
    "float8": "float8",
    "real": "real",
    "text": "text",
    "char(4)": "char",
    "varchar(8)": "varchar",
    "date": "date",
    "time": "time",
    "timestamp": "timestamp",
    "timestamptz": "timestamptz",
    "interval": "interval",
    "uuid": "uuid",
    "bytea": "bytea",
}
"""Declared types by the family that the grammar speaks of."""
_DECLARED = {
    "bool": "boolean",
    "int2": "smallint",
    "int4": "int",
    "int8": "bigint",
    "numeric": "numeric(10,3)",
    "float8": "float8",
    "real": "real",
    "text": "text",
    "char": "char(4)",
    "varchar": "varchar(8)",
    "date": "date",
    "time": "time",
    "timestamp": "timestamp",
    "timestamptz": "timestamptz",
    "interval": "interval",
    "uuid": "uuid",
    "bytea": "bytea",
}
TYPES = tuple(_DECLARED)

# $type is an expression of that type; @type a literal of it; {a|b|c} one of the words.
GRAMMAR: dict[str, list[str]] = {
    "bool": [
        "$same {=|<>|<|<=|>|>=} $same",
        "$same {=|<>|<|<=|>|>=} $same",
        "$any IS NULL",
        "$any IS NOT NULL",
        "$same IS {DISTINCT|NOT DISTINCT} FROM $same",
        "($bool AND $bool)",
        "($bool OR $bool)",
        "NOT ($bool)",
        "$same BETWEEN $same AND $same",
        "$same NOT BETWEEN $same AND $same",
        "$same IN (@same, @same)",
        "$same NOT IN (@same, $same)",
        "$text LIKE {'%a%'|'a_%'|'_'|'%'|''|'x\\_y'}",
        "$text NOT LIKE '%b'",
        "$text ILIKE 'A%'",
        "$text ~ {'^a'|'b$'|'[a-c]+'|'a.*c'}",
        "($bool) IS {TRUE|NOT TRUE|FALSE|UNKNOWN|NOT UNKNOWN}",
        "starts_with($text, 'a')",
        "$int4::bool",
        "$int4 % 2 = 0",
        "($int4, $text) {=|<} ($int4, $text)",
        "$int4 = ANY (ARRAY[1, 2])",
        "$same BETWEEN SYMMETRIC $same AND $same",
        "$int4 < $numeric",
        "$int8 >= $float8",
        "$date < $timestamp",
        "$char = @char",
        "$varchar < $text",
        "$date = @date",
        "$timestamptz > $timestamp",
    ],
    "int2": ["-$int2", "abs($int2)", "coalesce($int2, @int2)", "(@int2)::smallint", "$bool::int::smallint"],
    "int4": [
        "$int4 + @int4",
        "$int4 - $int4",
        "$int4 * @int4",
        "$int4 / {2|3|-7}",
        "$int4 % {3|-2}",
        "-$int4",
        "abs($int4)",
        "length($text)",
        "ascii($text)",
        "strpos($text, 'b')",
        "position('b' in $text)",
        "char_length($text)",
        "octet_length($text)",
        "length($bytea)",
        "($date - $date)",
        "$int2 + $int4",
        "$int4 & 6",
        "$int4 | 9",
        "$int4 # 5",
        "~ $int4",
        "$int4 << 2",
        "$int4 >> 1",
        "$bool::int",
        "$numeric::int",
        "$float8::numeric(12,2)::int4",
        "mod($int4, 4)",
        "div($int4, 3)::int",
        "nullif($int4, @int4)",
        "greatest($int4, @int4, $int2)",
        "least($int4, $int4)",
        "(@int4)::int",
        "'7'::int",
        "sign($int4)::int",
        "bit_length($text)",
        "extract({year|month|day|dow|doy|quarter} from $date)::int",
        "width_bucket($float8, 0, 10, 5)",
    ],
    "int8": [
        "$int8 + $int4",
        "$int8 - @int4",
        "$int4::bigint * 1000",
        "$int8 / 7",
        "$int8 % 10",
        "abs($int8)",
        "-$int8",
        "$int8 & 255",
        "coalesce($int8, 0)",
        "$int4 + $int8",
        "$numeric::bigint",
        "gcd($int8, 12)",
    ],
    "numeric": [
        "$numeric + $numeric",
        "$numeric - @numeric",
        "$numeric * $numeric",
        "$numeric + $int4",
        "$int4 * @numeric",
        "-$numeric",
        "abs($numeric)",
        "round($numeric)",
        "round($numeric, {0|1|2|-1})",
        "trunc($numeric, 1)",
        "ceil($numeric)",
        "floor($numeric)",
        "$numeric % 3",
        "mod($numeric, 1.5)",
        "$int4::numeric",
        "$int8::numeric(20,2)",
        "$numeric::numeric(12,1)",
        "sign($numeric)",
        "coalesce($numeric, 0)",
        "$float8::numeric(15,4)",
        "1.50",
        "greatest($numeric, $int4)",
        "trunc($numeric)",
        "$int8 * 0.1",
        "extract({epoch|second|hour|minute} from $time)",
        "extract({epoch|hour|month|milliseconds} from $timestamp)",
        "extract({day|hour|epoch} from $interval)",
        "$text_number::numeric",
    ],
    "float8": [
        "$float8 + $float8",
        "$float8 * 2",
        "$float8 / 3",
        "-$float8",
        "abs($float8)",
        "sqrt(abs($float8))",
        "floor($float8)",
        "round($float8)",
        "$int4::float8",
        "$numeric::float8",
        "$float8 - $int4",
        "sign($float8)",
        "$real::float8",
        "ceil($float8)",
        "$int4 * 1.5::float8",
        "exp(least($float8, 3))",
        "ln(abs($float8) + 1)",
        "power($float8, 2)",
        "cbrt($float8)",
        "atan2($float8, 2)",
        "degrees($float8)",
        "trunc($float8)",
        "$numeric * $float8",
        "date_part('day', $timestamp)",
        "pi()",
    ],
    "real": ["$real + $real", "-$real", "$real * 2::real", "$int4::real", "abs($real)"],
    "text": [
        "$text || $text",
        "$text || $int4",
        "upper($ascii)",
        "lower($ascii)",
        "substr($text, {1|2|0|-1}, {2|3|0})",
        "substring($text from 2)",
        "substring($text from 1 for 2)",
        "left($text, {2|-1})",
        "right($text, {2|-1})",
        "replace($text, 'a', 'zz')",
        "lpad($text, 5, '*')",
        "rpad($text, 4)",
        "trim($text)",
        "ltrim($text, 'a ')",
        "btrim($text, ' a')",
        "trim(leading 'a' from $text)",
        "split_part($text, ',', {1|2|-1})",
        "repeat($text, {2|0|-1})",
        "reverse($text)",
        "concat($text, $int4, $bool)",
        "concat_ws('-', $text, $int4, $text)",
        "$any::text",
        "$any::text",
        "$any::text",
        "md5($text)",
        "initcap($ascii)",
        "translate($text, 'abc', 'xy')",
        "coalesce($text, 'none')",
        "nullif($text, '')",
        "to_hex($int4)",
        "$varchar || '!'",
        "chr(97)",
        "encode($bytea, 'hex')",
        "overlay($text placing 'ZZ' from 2 for 1)",
        "quote_literal($text)",
        "greatest($text, 'b')",
        "$char || 'x'",
        "regexp_replace($text, 'a', 'Q', 'g')",
        "cast($int4 as text)",
        "$text::varchar(3)::text",
        "'lit'::text",
    ],
    "ascii": ["'abc Def'", "$int4::text", "md5($text)", "'x'"],
    "text_number": ["'12'", "'-3.50'", "$int4::text", "$numeric::text"],
    "char": ["$text::char(4)", "$int4::char(3)"],
    "varchar": ["$text::varchar(8)", "$text::varchar(3)"],
    "bytea": ["$bytea || $bytea", "@bytea", "decode('6162', 'hex')", "substr($bytea, 1, 1)", "sha256($bytea)"],
    "date": [
        "$date + {1|-1|100}",
        "$date - 7",
        "$timestamp::date",
        "@date",
        "make_date(2020, 2, 3)",
        "coalesce($date, @date)",
        "greatest($date, @date)",
        "$timestamptz::date",
        "'2021-05-06'::date",
    ],
    "time": ["$timestamp::time", "$time + interval '90 minutes'", "@time", "$time - interval '1 hour'", "make_time(1, 2, 3.5)"],
    "timestamp": [
        "$date + $time",
        "$timestamp + $interval",
        "$timestamp - interval '1 day'",
        "$date + interval '1 mon'",
        "$date::timestamp",
        "@timestamp",
        "date_trunc({'day'|'month'|'year'|'hour'|'week'|'quarter'|'minute'}, $timestamp)",
        "$timestamptz at time zone 'UTC'",
        "date_trunc('month', $date)::timestamp",
        "make_timestamp(2020, 1, 2, 3, 4, 5.5)",
        "$date - interval '36 hours'",
    ],
    "timestamptz": [
        "$timestamptz + $interval",
        "$timestamp::timestamptz",
        "@timestamptz",
        "date_trunc('day', $timestamptz)",
        "$timestamp at time zone 'UTC'",
    ],
    "interval": [
        "$timestamp - $timestamp",
        "$interval + $interval",
        "$interval * 2",
        "-$interval",
        "$time - $time",
        "@interval",
        "$time::interval",
        "$interval / 2",
        "$interval * 1.5",
        "justify_hours($interval)",
        "age($timestamp, $timestamp)",
        "$timestamptz - $timestamptz",
        "$interval - interval '1 day'",
        "justify_days($interval)",
        "coalesce($interval, @interval)",
    ],
    "uuid": ["@uuid", "coalesce($uuid, @uuid)"],
}
"""Ways to make a value of each family."""
_ANY = [name for name in TYPES if name not in ("real",)]


class Expressions:
    """Makes expressions over columns: (text, family) each."""

    def __init__(self, rng: random.Random, columns: Sequence[tuple[str, str]]) -> None:
        self.rng = rng
        self.columns = columns

    @staticmethod
    def columns_of(alias: str, table: str, tables: Mapping[str, Mapping[str, str]] = TABLES) -> list[tuple[str, str]]:
        """Give a table's columns, each with its family."""
        return [(f"{alias}.{column}", COLUMN_TYPES[type_]) for column, type_ in tables[table].items()]

    def make(self, family: str, depth: int) -> str:
        """Make an expression of a family, at most so deep."""
        rng = self.rng
        mine = [text for text, of in self.columns if of == family]
        if depth <= 0 or (mine and rng.random() < 0.25):
            return rng.choice(mine) if mine and rng.random() < 0.8 else self.constant(family)
        if family in _DECLARED and family != "char" and rng.random() < 0.12:
            return self._choice(family, depth)
        return self._expand(rng.choice(GRAMMAR[family]), depth)

    def any(self, depth: int) -> tuple[str, str]:
        """Make an expression of some type; give its family too."""
        owned = [of for _, of in self.columns]
        family = self.rng.choice(owned) if owned and self.rng.random() < 0.6 else self.rng.choice(_ANY)
        return self.make(family, depth), family

    def constant(self, family: str) -> str:
        """Give a typed literal."""
        if family in ("ascii", "text_number"):
            return "'12'"
        text = literal(self.rng, _DECLARED[family])
        if family in ("int4", "numeric") and self.rng.random() < 0.7:
            return f"({text})" if text.startswith("-") else text
        if family in ("char", "varchar"):
            return f"{quoted(text)}::{_DECLARED[family]}"
        if family == "numeric":
            return f"{quoted(text)}::numeric"
        return f"{quoted(text)}::{_DECLARED[family]}"

    def _choice(self, family: str, depth: int) -> str:
        first, second, test = self.make(family, depth - 1), self.make(family, depth - 1), self.make("bool", depth - 1)
        return self.rng.choice(
            [
                f"CASE WHEN {test} THEN {first} ELSE {second} END",
                f"CASE WHEN {test} THEN {first} END",
                f"coalesce({first}, {second})",
                f"nullif({first}, {second})",
                f"CASE {self.make('int4', depth - 1)} WHEN 1 THEN {first} WHEN 2 THEN {second} END",
            ]
        )

    def _expand(self, template: str, depth: int) -> str:
        rng, out, at = self.rng, [], 0
        same = rng.choice(["int4", "text", "numeric", "date", "timestamp", "float8", "int8", "interval", "uuid", "bytea", "time", "bool"])
        while at < len(template):
            letter = template[at]
            if letter == "{":
                end = template.index("}", at)
                out.append(rng.choice(template[at + 1 : end].split("|")))
                at = end + 1
            elif letter in "$@":
                end = at + 1
                while end < len(template) and (template[end].isalnum() or template[end] == "_"):
                    end += 1
                name = template[at + 1 : end]
                family = {"same": same, "any": rng.choice(_ANY)}.get(name, name)
                out.append(self.constant(family) if letter == "@" else f"({self.make(family, depth - 1)})")
                at = end
            else:
                out.append(letter)
                at += 1
        return "".join(out)
