"""Joins cut into leaves and a gateway's query give what the same text gives over whole tables: checked against the engine itself."""

import contextlib

import duckdb
import pyarrow as pa
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from dsdb.sql.execute.engine import EngineLimits
from tests.sql.select_session import ORDERS, ROWS, USERS, SelectSession

TABLES = {"u": ("users", ("id", "age")), "v": ("users", ("id", "age")), "o": ("orders", ("user_id", "number"))}
numbers = st.integers(min_value=0, max_value=5)


@st.composite
def conditions(draw: st.DrawFn, aliases: list[str]) -> str:
    def column() -> str:
        alias = draw(st.sampled_from(aliases))
        return f"{alias}.{draw(st.sampled_from(TABLES[alias][1]))}"

    match draw(st.integers(min_value=0, max_value=3)):
        case 0:
            return f"{column()} IS {draw(st.sampled_from(['', 'NOT ']))}NULL"
        case 1:
            return f"{column()} {draw(st.sampled_from(['=', '<', '>=']))} {draw(numbers)}"
        case 2:
            return f"({column()} = {draw(numbers)} OR {column()} IS NULL)"
        case _:
            return f"{column()} {draw(st.sampled_from(['=', '<']))} {column()}"


@st.composite
def queries(draw: st.DrawFn) -> str:
    aliases = draw(st.permutations(list(TABLES)))
    sql = f"FROM {TABLES[aliases[0]][0]} {aliases[0]}"
    for index in (1, 2):
        side = draw(st.sampled_from(["", "LEFT ", "RIGHT ", "FULL "]))
        # A FULL JOIN needs an equality; the keys give it.
        keys = f"{aliases[0]}.{TABLES[aliases[0]][1][0]} = {aliases[index]}.{TABLES[aliases[index]][1][0]}"
        on = [keys, *draw(st.lists(conditions(aliases[: index + 1]), max_size=2))]
        sql += f" {side}JOIN {TABLES[aliases[index]][0]} {aliases[index]} ON {' AND '.join(on)}"
    where = draw(st.lists(conditions(aliases), max_size=2))
    sql += f" WHERE {' AND '.join(where)}" if where else ""
    return f"SELECT u.id, u.age, v.id, o.user_id, o.number {sql}"


def whole_tables() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET disabled_optimizers = 'outer_join_simplification'")  # wrong, see dsdb.sql.execute.engine
    for table in (USERS, ORDERS):
        rows = [[None if text == "NULL" else text for text in line.split("|")] for line in ROWS[table.name]]
        columns = {
            column.name: pa.array([None if row[i] is None else int(row[i]) for row in rows], pa.int32())
            for i, column in enumerate(table.columns)
            if column.name in ("id", "age", "user_id", "number")
        }
        connection.register(table.name, pa.table(columns))
    return connection


def test_joins_are_those_of_whole_tables() -> None:
    with contextlib.closing(whole_tables()) as oracle:

        async def check(session: SelectSession, sql: str) -> None:
            wanted = oracle.sql(sql).fetchall()
            assert sorted(map(repr, await session.query(sql))) == sorted(map(repr, wanted)), sql

        async def main(sql: str) -> None:
            async with SelectSession(EngineLimits(connections=1, threads=1)) as session:
                await check(session, sql)

        @given(queries())
        @settings(max_examples=60, deadline=None)
        def run(sql: str) -> None:
            trio.run(main, sql)

        run()
