"""Leaves that wait for others' keys give the same answers."""

import pathlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest
import trio

from dsdb.sql.errors import SqlError
from dsdb.sql.execute import waiting
from dsdb.sql.execute.waiting import KEYS_MAX, join_keys, waiting_leaves
from dsdb.sql.plan.join_keys import KeyEdge
from tests.sql.select_session import SelectSession

SCRIPTS = sorted((pathlib.Path(__file__).parent / "testdata").glob("select_*.txt"))
QUERIES = [
    "SELECT name, amount FROM users, orders WHERE id = user_id AND city = 'paris'",
    "SELECT name FROM users WHERE EXISTS (SELECT * FROM orders WHERE user_id = id AND amount > 5) AND age > 1",
    "SELECT name FROM users WHERE NOT EXISTS (SELECT 1 FROM orders WHERE user_id = id) AND id > 1",
    "SELECT name, (SELECT sum(amount) FROM orders WHERE user_id = id) FROM users WHERE city = 'paris'",
    "SELECT name, amount FROM users LEFT JOIN orders ON id = user_id AND amount > 50 WHERE id > 1",
    "SELECT name, amount FROM users LEFT JOIN orders ON id = user_id WHERE user_id = id AND id < 3",
    "SELECT u.name, v.name FROM users u JOIN users v ON u.age = v.age WHERE u.id = 1",
    "SELECT count(*) FROM orders, users, kinds WHERE user_id = users.id AND users.city = 'nowhere'",
    "SELECT name FROM users WHERE id IN (SELECT user_id FROM orders WHERE amount > 1) AND id > 0",
]


class Known:
    """Says that all spans have so many rows."""

    def __init__(self, rows: int | None) -> None:
        self.rows = rows

    def __call__(self, spans: Sequence[Any]) -> int | None:
        return self.rows


async def _answers(queries: Sequence[str], known: int | None) -> list[list[str] | str]:
    found: list[list[str] | str] = []
    async with SelectSession() as session:
        session.runner.seen_rows = Known(known)  # type: ignore[method-assign]
        for sql in queries:
            try:
                found.append(sorted(map(repr, await session.query(sql))))
            except SqlError as error:
                found.append(str(error))
    return found


def test_answers_do_not_depend_on_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "WAITING_ROWS_MIN", 0)
    scripted = [
        block.split("\n---\n")[0].strip()
        for path in SCRIPTS
        for block in path.read_text().split("\n\n")
        if "\n---\n" in block and block.startswith("select") and "limit" not in block and "$" not in block
    ]
    queries = QUERIES + scripted
    assert len(queries) > 50
    assert trio.run(_answers, queries, 10) == trio.run(_answers, queries, None)


def test_a_leaf_reads_the_rows_that_it_joins_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "WAITING_ROWS_MIN", 0)

    async def stages() -> list[str]:
        async with SelectSession() as session:
            session.runner.seen_rows = Known(10)  # type: ignore[method-assign]
            plan = session.plan(QUERIES[0])
            assert list(waiting_leaves(plan, {"t1": 10, "t2": 10})) == ["t2"]
            assert not waiting_leaves(plan, {"t1": 10, "t2": None})
            assert list(waiting_leaves(plan, {"t1": 20, "t2": 10})) == ["t2"], "few of the users are expected"
            assert not waiting_leaves(plan, {"t1": 200, "t2": 10}), "fewer orders than users of one city"
            return await session.explain(QUERIES[0])

    lines = trio.run(stages)
    assert any(line.strip() == "perhaps only: c5 in t1.c1" for line in lines), lines


def test_many_keys_are_not_sent() -> None:
    edge = KeyEdge(source="t1", source_column="c1", target="t2", target_column="c2")
    other = KeyEdge(source="t3", source_column="c3", target="t2", target_column="c2")
    gathered = {"t1": pa.table({"c1": pa.array([1, None, 1, 2])}), "t3": pa.table({"c3": pa.array(range(KEYS_MAX + 1))})}
    assert join_keys([other], gathered) == {}
    assert join_keys([other, edge], gathered)["c2"].to_pylist() == [1, 2]
