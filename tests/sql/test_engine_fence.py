"""The engine computes as Postgres does, sees nothing but its inputs, and stops when told."""

import contextlib
import time
import uuid
from collections.abc import Iterator

import pyarrow as pa
import pytest
import trio

from dsdb.sql import errors
from dsdb.sql.execute.engine import EngineLimits, QueryEngine
from dsdb.sql.execute.engine_errors import EngineFaultError

SMALL = EngineLimits(memory_bytes_max=64 << 20, spill_bytes_max=16 << 20, exchange_bytes_max=4 << 20, connections=2)


@pytest.fixture(scope="module")
def engine() -> Iterator[QueryEngine]:
    with contextlib.closing(QueryEngine(SMALL)) as engine:
        yield engine


def run(engine: QueryEngine, sql: str, **inputs: pa.Table) -> list[tuple[object, ...]]:
    table = trio.run(engine.run, sql, inputs)
    return list(zip(*(column.to_pylist() for column in table.columns)))


def test_integers_divide_as_integers(engine: QueryEngine) -> None:
    assert run(engine, "SELECT 7 / 2, -7 / 2, 7 / 2e0") == [(3, -3, 3.5)]


@pytest.mark.parametrize("division", ["1 / 0", "1 % 0", "1e0 / 0e0", "1.5 / 0"])
def test_division_by_zero_is_an_error(engine: QueryEngine, division: str) -> None:
    with pytest.raises(errors.DivisionByZeroError, match="division by zero"):
        run(engine, f"SELECT {division}")


def test_nulls_sort_as_in_postgres(engine: QueryEngine) -> None:
    numbers = pa.table({"x": pa.array([1, None, 2])})
    assert run(engine, "SELECT x FROM input ORDER BY x", input=numbers) == [(1,), (2,), (None,)]
    assert run(engine, "SELECT x FROM input ORDER BY x DESC", input=numbers) == [(None,), (2,), (1,)]


def test_time_is_in_utc_wherever_the_node_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        with contextlib.closing(QueryEngine(SMALL)) as engine:
            assert run(engine, "SELECT CAST(TIMESTAMPTZ '2024-01-01 12:00:00+02' AS VARCHAR), current_setting('TimeZone')") == [
                ("2024-01-01 10:00:00+00", "UTC")
            ]
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(("sql", "error"), [("SELECT ln(0)", errors.LogarithmError), ("SELECT sqrt(-1e0)", errors.PowerError)])
def test_floats_do_not_become_nan_silently(engine: QueryEngine, sql: str, error: type[errors.SqlError]) -> None:
    with pytest.raises(error):
        run(engine, sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM secret",
        "SELECT getenv('HOME')",
        "COPY (SELECT 1) TO '/tmp/out'",
        "ATTACH '/tmp/other.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET threads = 1",
        "CREATE TABLE t (x INT)",
        "SELECT 1; SELECT 2",
        "PRAGMA version",
        "SELEC 1",
    ],
)
def test_nothing_outside_its_inputs_is_in_reach(engine: QueryEngine, sql: str) -> None:
    secret = pa.table({"x": [1]})
    with pytest.raises(EngineFaultError):
        run(engine, sql)
    assert run(engine, "SELECT x FROM secret", secret=secret) == [(1,)]


def test_every_connection_is_locked(engine: QueryEngine) -> None:
    locked = "SELECT current_setting('lock_configuration'), current_setting('enable_external_access'), current_setting('integer_division')"

    async def main() -> list[tuple[object, ...]]:
        found: list[dict[str, object]] = []

        async def one() -> None:
            found.extend((await engine.run(locked, {})).to_pylist())

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one)
        return [tuple(row.values()) for row in found]

    assert trio.run(main) == [(True, False, True)] * 4


def test_inputs_do_not_outlive_their_query(engine: QueryEngine) -> None:
    run(engine, "SELECT * FROM input", input=pa.table({"x": [1]}))
    with pytest.raises(EngineFaultError, match="input"):
        run(engine, "SELECT * FROM input")


def test_uuids_are_uuids_inside_and_bytes_outside(engine: QueryEngine) -> None:
    low, high = uuid.UUID(int=5), uuid.UUID(int=2**127 + 5)
    table = pa.table({"u": pa.array([high.bytes, None, low.bytes], pa.binary(16))})
    assert run(engine, "SELECT u, CAST(u AS VARCHAR), typeof(u) FROM input ORDER BY u", input=table) == [
        (low.bytes, str(low), "UUID"),
        (high.bytes, str(high), "UUID"),
        (None, None, "UUID"),
    ]


def test_cancellation_interrupts_and_leaves_the_connection_usable() -> None:
    endless = "SELECT count(*) FROM range(1000000000) a, range(1000) b WHERE hash(a.range, b.range) = 8"

    async def main() -> None:
        limits = EngineLimits(memory_bytes_max=64 << 20, connections=1)
        with contextlib.closing(QueryEngine(limits)) as engine:
            for delay_seconds in (0, 0.002, 0.2):
                with trio.move_on_after(delay_seconds) as scope:
                    await engine.run(endless, {})
                assert scope.cancelled_caught
                with trio.fail_after(30):
                    assert (await engine.run("SELECT 1 AS x", {})).to_pylist() == [{"x": 1}]

    started = time.monotonic()
    trio.run(main)
    assert time.monotonic() - started < 60


def test_more_queries_than_connections_wait_their_turn(engine: QueryEngine) -> None:
    async def main() -> list[int]:
        answers: list[int] = []

        async def one(number: int) -> None:
            answers.append((await engine.run(f"SELECT {number} AS x", {})).column("x")[0].as_py())

        async with trio.open_nursery() as nursery:
            for number in range(9):
                nursery.start_soon(one, number)
        return sorted(answers)

    assert trio.run(main) == list(range(9))


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT repeat('x', 1000) || range FROM range(1000000) ORDER BY 1 DESC LIMIT 900000",
        "SELECT repeat('x', 1000) || range FROM range(100000)",
    ],
)
def test_memory_is_bounded(engine: QueryEngine, sql: str) -> None:
    with pytest.raises(errors.OutOfMemoryError):
        run(engine, sql)
    assert run(engine, "SELECT 1") == [(1,)]


def test_inputs_are_bounded(engine: QueryEngine) -> None:
    with pytest.raises(errors.OutOfMemoryError, match="gateway"):
        run(engine, "SELECT count(*) FROM input", input=pa.table({"x": pa.array(range(1_000_000), pa.int64())}))


@pytest.mark.parametrize(
    ("sql", "error", "message"),
    [
        ("SELECT CAST(2147483647 AS INT) + CAST(1 AS INT)", errors.NumericOutOfRangeError, "integer out of range"),
        ("SELECT CAST(300000 AS SMALLINT)", errors.NumericOutOfRangeError, "smallint out of range"),
        ("SELECT 9223372036854775807 + 1", errors.NumericOutOfRangeError, "bigint out of range"),
        ("SELECT CAST('99999999999' AS INT)", errors.NumericOutOfRangeError, 'value "99999999999" is out of range for type integer'),
        ("SELECT CAST('x' AS INT)", errors.InvalidTextError, 'invalid input syntax for type integer: "x"'),
        ("SELECT CAST('x' AS UUID)", errors.InvalidTextError, 'invalid input syntax for type uuid: "x"'),
        ("SELECT CAST(12345 AS DECIMAL(4,2))", errors.NumericOutOfRangeError, "numeric field overflow"),
        ("SELECT CAST('x' AS DATE)", errors.InvalidDatetimeError, 'invalid input syntax for type date: "x"'),
        ("SELECT CAST('2020-13-01' AS DATE)", errors.DatetimeOverflowError, 'date/time field value out of range: "2020-13-01"'),
        ("SELECT (SELECT range FROM range(2))", errors.CardinalityViolationError, "more than one row returned by a subquery"),
        ("SELECT regexp_matches('a', '(')", errors.InvalidRegularExpressionError, "invalid regular expression"),
        ("SELECT error('[22001] value too long')", errors.StringTruncationError, "^value too long$"),
        ("SELECT 1 LIMIT -1", errors.InvalidLimitError, "must not be negative"),
    ],
)
def test_errors_are_those_of_sql(engine: QueryEngine, sql: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(engine, sql)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        ("1 / (range - 150000)", errors.DivisionByZeroError, "^division by zero$"),
        ("CAST(range - 117233 AS SMALLINT)", errors.NumericOutOfRangeError, "smallint out of range"),
        ("CAST(CASE WHEN range = 150000 THEN 'x' ELSE '1' END AS INT)", errors.InvalidTextError, 'type integer: "x"'),
        ("CASE WHEN range = 150000 THEN error('[22001] value too long') ELSE '' END", errors.StringTruncationError, "^value too long$"),
    ],
)
def test_errors_behind_many_rows_are_the_same(engine: QueryEngine, value: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(engine, f"SELECT {value} FROM range(84466, 160000)")
    assert run(engine, "SELECT 1") == [(1,)]


def test_an_empty_result_keeps_its_types(engine: QueryEngine) -> None:
    table = trio.run(engine.run, "SELECT x, CAST(x AS DOUBLE) AS y FROM input WHERE false", {"input": pa.table({"x": [1]})})
    assert table.num_rows == 0
    assert table.schema.types == [pa.int64(), pa.float64()]


def test_a_query_that_cannot_be_interrupted_is_left_to_itself_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsdb.sql.execute.engine.ABANDON_SECONDS", 0.1)
    # A good part of a second of one call, which the engine does not look up from.
    stubborn = "SELECT length(repeat('x', 100000000))"

    async def main(engine: QueryEngine) -> None:
        began = trio.current_time()
        with trio.move_on_after(0.1) as scope:
            await engine.run(stubborn, {})
        assert scope.cancelled_caught
        assert trio.current_time() - began < 5
        assert len(engine._abandoned) == 1
        assert (await engine.run("SELECT 1 AS a", {})).to_pylist() == [{"a": 1}]
        for _ in range(600):
            await trio.sleep(0.05)
            if not engine._abandoned:
                return
        raise AssertionError("the threads do not come back")

    with contextlib.closing(QueryEngine(SMALL)) as engine:
        trio.run(main, engine)
