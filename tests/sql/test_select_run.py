"""Running plans: what streams, what is bounded, and how errors and early ends come out."""

import time
from collections.abc import AsyncIterator
from typing import Any

import pyarrow as pa
import pytest
import trio

from dsdb.sql.errors import DivisionByZeroError, OutOfMemoryError
from dsdb.sql.execute.engine import EngineLimits
from dsdb.sql.execute.result import arrow_schema
from dsdb.sql.execute.select import run_select, run_table
from dsdb.sql.ports import LeafStage, RangeUnavailableError
from dsdb.sql.types import INT
from tests.sql.select_session import NOW, SelectSession


def test_batches_have_the_schema_of_the_columns() -> None:
    async def main() -> None:
        async with SelectSession() as session:
            for sql in ("SELECT * FROM kinds", "SELECT * FROM kinds ORDER BY id", "SELECT n + 1, u FROM kinds", "SELECT * FROM empty"):
                plan = session.plan(sql)
                table = await run_table(plan, [NOW], session.store.begin(), session.runner, session.engine)
                assert table.schema == arrow_schema(plan.columns), sql

    trio.run(main)


def test_closing_a_result_early_stops_its_leaf() -> None:
    async def main() -> None:
        async with SelectSession() as session:
            plan = session.plan("SELECT id FROM users")
            result = await run_select(plan, [NOW], session.store.begin(), session.runner, session.engine)
            batches: Any = result.batches
            assert (await anext(batches)).num_rows == 3
            assert session.runner.closed == 0
            await batches.aclose()
            assert session.runner.closed == 1

    trio.run(main)


def test_a_limit_stops_the_leaf_when_it_is_reached() -> None:
    async def main() -> None:
        async with SelectSession() as session:
            assert len(await session.query("SELECT id FROM users LIMIT 2")) == 2
            [stage] = session.runner.stages
            assert (stage.sql, stage.scan.limit, session.runner.closed) == (None, 2, 1)

    trio.run(main)


def test_a_limit_stays_above_a_filter() -> None:
    async def main() -> None:
        async with SelectSession() as session:
            assert len(await session.query("SELECT id FROM users WHERE age = 25 LIMIT 2")) == 2
            [stage] = session.runner.stages
            assert stage.scan.limit is None
            assert str(stage.sql).endswith("LIMIT 2")

    trio.run(main)


def test_each_column_is_read_once_and_only_if_needed() -> None:
    async def main() -> None:
        async with SelectSession() as session:
            await session.query("SELECT count(*) FROM users WHERE city = 'paris'")
            [stage] = session.runner.stages
            assert len(stage.scan.columns) == 1
            await session.query("SELECT max(age) FROM users WHERE id > 1")
            assert [column.column_id for column in session.runner.stages[1].scan.columns] == [4]

    trio.run(main)


def test_what_a_query_gathers_is_bounded() -> None:
    async def main() -> None:
        limits = EngineLimits(memory_bytes_max=64 << 20, exchange_bytes_max=64, connections=1)
        async with SelectSession(limits) as session:
            with pytest.raises(OutOfMemoryError, match="gathers"):
                await session.query("SELECT * FROM users ORDER BY id")

    trio.run(main)


class FailingRunner:
    """ports.StageRunner whose second leaf fails while the others wait for ever."""

    def seen_rows(self, spans: object) -> int | None:
        return None

    async def run(self, stage: LeafStage, txn: object, report: object = None) -> AsyncIterator[pa.RecordBatch]:
        if "c5" in stage.scan.names:
            raise RangeUnavailableError("range 7 has no leaseholder")
        await trio.sleep_forever()
        yield pa.RecordBatch.from_pydict({})


def test_a_leaf_that_fails_ends_the_others_and_comes_out_as_itself() -> None:
    async def main() -> None:
        async with SelectSession() as session:
            plan = session.plan("SELECT name, amount FROM users JOIN orders ON id = user_id")
            with trio.fail_after(60), pytest.raises(RangeUnavailableError):
                await run_select(plan, [NOW], session.store.begin(), FailingRunner(), session.engine)  # type: ignore[arg-type]

    trio.run(main)


def test_errors_of_a_streaming_leaf_come_from_the_batches() -> None:
    async def main() -> None:
        async with SelectSession() as session:
            plan = session.plan("SELECT 1 / (id - 3) FROM users")
            result = await run_select(plan, [NOW], session.store.begin(), session.runner, session.engine)
            batches: Any = result.batches
            with pytest.raises(DivisionByZeroError):
                [batch async for batch in batches]

    trio.run(main)


def test_a_statement_that_is_cancelled_stops_in_the_engine() -> None:
    async def main() -> None:
        async with SelectSession() as session:
            endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i % 1000 + 1 FROM n) SELECT count(*) FROM n"
            started = time.monotonic()
            with trio.move_on_after(0.2):
                await session.query(endless)
            assert time.monotonic() - started < 20
            assert await session.query("SELECT 1") == [(1,)]

    trio.run(main)


def test_one_plan_serves_all_values_of_its_parameters() -> None:
    async def main() -> None:
        async with SelectSession() as session:
            plan = session.plan("SELECT name FROM users WHERE id = $1", [(INT, None)])
            names = []
            for number in (1, 5, 9):
                table = await run_table(plan, [number, NOW], session.store.begin(), session.runner, session.engine)
                names.append(table.column("name").to_pylist())
            assert names == [["ann"], ["eve"], []]

    trio.run(main)
