"""Arrow tables and data frames as parameters: joined, inserted, refused with the name of what is wrong, and never half given."""

import datetime
import decimal
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import dsdb
from dsdb.driver.connection import Connection

ROWS = pa.table({"id": pa.array([1, 2, 4], pa.int32()), "word": ["one", None, "four"]})


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    with dsdb.connect(autocommit=True) as opened:
        opened.execute("CREATE TABLE t (id INT PRIMARY KEY, name TEXT)")
        opened.execute("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')")
        yield opened


TABLES: list[Any] = [
    ROWS,
    ROWS.to_batches()[0],
    pa.RecordBatchReader.from_batches(ROWS.schema, ROWS.to_batches()),
    ROWS.to_pandas(),
    pl.from_arrow(ROWS),
    ds.dataset(ROWS),
    ds.dataset(ROWS).scanner(),
]


@pytest.mark.parametrize("given", TABLES, ids=lambda value: type(value).__name__)
def test_a_table_of_any_kind_is_joined_with_stored_rows(connection: Connection, given: Any) -> None:
    cursor = connection.execute("SELECT t.id, name, word FROM ? AS f JOIN t ON t.id = f.id WHERE t.id > ? ORDER BY 1", [given, 0])
    assert cursor.fetchall() == [(1, "a", "one"), (2, "b", None)]


def test_a_parameter_is_used_twice_and_in_sub_queries(connection: Connection) -> None:
    counts = "(SELECT count(*) FROM $1), (SELECT max(id) FROM w), count(*)"
    sql = f"WITH w AS (SELECT id FROM $1) SELECT {counts} FROM t WHERE id IN (SELECT id FROM $1)"
    assert connection.execute(sql, [ROWS]).fetchall() == [(3, 4, 2)]


def test_each_arrow_type_comes_back_as_its_sql_type(connection: Connection) -> None:
    moment = datetime.datetime(2024, 2, 3, 4, 5, 6, 789)
    number = uuid.UUID(int=7)
    columns: list[tuple[str, Any, pa.DataType, Any]] = [
        ("small", -5, pa.int8(), -5),
        ("unsigned", 2**64 - 1, pa.uint64(), decimal.Decimal(2**64 - 1)),
        ("half", 1.5, pa.float16(), 1.5),
        ("exact", decimal.Decimal("1.50"), pa.decimal128(10, 2), decimal.Decimal("1.50")),
        ("wide", decimal.Decimal("2.5"), pa.decimal256(38, 1), decimal.Decimal("2.5")),
        ("view", "v", pa.string_view(), "v"),
        ("large", b"\0x", pa.large_binary(), b"\0x"),
        ("fixed", b"abc", pa.binary(3), b"abc"),
        ("uuid", number.bytes, pa.binary(16), number),
        ("word", "x", pa.dictionary(pa.int8(), pa.string()), "x"),
        ("day", moment.date(), pa.date64(), moment.date()),
        ("clock", moment.time(), pa.time64("ns"), moment.time()),
        ("plain", moment, pa.timestamp("ns"), moment),
        ("zoned", moment.replace(tzinfo=datetime.UTC), pa.timestamp("us", "Europe/Paris"), moment.replace(tzinfo=datetime.UTC)),
        ("span", datetime.timedelta(days=-1, hours=-1), pa.duration("ms"), datetime.timedelta(days=-1, hours=-1)),
        ("nothing", None, pa.null(), None),
    ]
    given = pa.table([pa.array([value], kind) for _, value, kind, _ in columns], [name for name, *_ in columns])
    cursor = connection.execute("SELECT * FROM $1", [given])
    assert cursor.fetchall() == [tuple(expected for *_, expected in columns)]


@pytest.mark.parametrize(
    ("given", "sql", "sqlstate", "words"),
    [
        (pa.table({"id": [1], "l": [[1]]}), "SELECT * FROM $1", "0A000", 'column "l" of parameter .1 has the Arrow type list'),
        (pa.table([[1], [2]], ["a", "a"]), "SELECT * FROM $1", "42701", 'more than one column "a"'),
        (pa.table({"n": pa.array([1000, 1001], pa.timestamp("ns"))}), "SELECT * FROM $1", "22000", 'row 2, column "n" of parameter .1'),
        (pa.table({"z": ["a", "b\0"]}), "SELECT * FROM $1", "22000", "row 2.*NUL"),
        (pa.table({"d": pa.array([decimal.Decimal(1)], pa.decimal256(76, 0))}), "SELECT * FROM $1", "0A000", "decimal256"),
        (ROWS, "SELECT $1", "42804", "is a table, not a value"),
        (ROWS, "INSERT INTO $1 VALUES (1)", "0A000", "only a table can be written to"),
        (5, "SELECT * FROM $1", "42804", "stands in FROM and is no table"),
        (ROWS, "SELECT nmae FROM $1", "42703", "nmae"),
        (ROWS, "SELECT 1; SELECT * FROM $1", "0A000", "several statements"),
        (pl.LazyFrame({"a": [1]}), "SELECT * FROM $1", None, "LazyFrame"),
        (pa.array([1]), "SELECT * FROM $1", None, "cannot be a parameter"),
    ],
    ids=range(12),
)
def test_what_cannot_be_is_refused_and_the_session_goes_on(
    connection: Connection, given: Any, sql: str, sqlstate: str | None, words: str
) -> None:
    with pytest.raises(dsdb.Error, match=words) as caught:
        connection.execute(sql, [given])
    assert caught.value.sqlstate == sqlstate
    assert connection.execute("SELECT count(*) FROM $1", [ROWS]).fetchall() == [(3,)]


def test_insert_takes_a_table_and_a_failure_leaves_nothing(connection: Connection) -> None:
    connection.execute("CREATE TABLE into_it (id BIGINT PRIMARY KEY, word TEXT NOT NULL)")
    with pytest.raises(dsdb.IntegrityError, match="word"):
        connection.execute("INSERT INTO into_it SELECT id, word FROM $1", [ROWS])
    assert connection.execute("SELECT * FROM into_it").fetchall() == []
    assert connection.execute("INSERT INTO into_it SELECT id, coalesce(word, '-') FROM $1", [ROWS]).rowcount == 3
    assert connection.execute("SELECT * FROM into_it ORDER BY id").fetchall() == [(1, "one"), (2, "-"), (4, "four")]


def test_a_plan_is_not_used_for_a_table_of_other_columns(connection: Connection) -> None:
    assert connection.execute("SELECT * FROM $1", [pa.table({"a": [1]})]).fetchall() == [(1,)]
    assert connection.execute("SELECT * FROM $1", [pa.table({"a": ["x"], "b": [None]})]).fetchall() == [("x", None)]


def test_more_than_may_come_unasked_is_given_while_the_node_allows(connection: Connection) -> None:
    many = pa.table({"n": pa.array(range(1_000_000), pa.int64()), "s": pa.array(["some text"] * 1_000_000)})
    assert connection.execute("SELECT count(*), sum(n) FROM $1", [many]).fetchall() == [(1_000_000, decimal.Decimal(499_999_500_000))]


def test_a_source_that_breaks_off_fails_its_statement_alone(connection: Connection) -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield ROWS.to_batches()[0]
        raise ValueError("the disk is gone")

    reader = pa.RecordBatchReader.from_batches(ROWS.schema, broken())
    with pytest.raises((ValueError, dsdb.Error), match="the disk is gone"):
        connection.execute("INSERT INTO t SELECT id + 100, word FROM $1", [reader])
    assert connection.execute("SELECT count(*) FROM t WHERE id > 100").fetchall() == [(0,)]


def test_a_table_fails_the_transaction_that_its_statement_fails(connection: Connection) -> None:
    connection.execute("BEGIN")
    connection.execute("INSERT INTO t SELECT id + 200, word FROM $1", [ROWS])
    with pytest.raises(dsdb.ProgrammingError, match="nmae"):
        connection.execute("SELECT nmae FROM $1", [ROWS])
    with pytest.raises(dsdb.ProgrammingError) as caught:
        connection.execute("SELECT 1 FROM $1", [ROWS])
    assert caught.value.sqlstate == "25P02"
    connection.execute("ROLLBACK")
    assert connection.execute("SELECT count(*) FROM t WHERE id > 200").fetchall() == [(0,)]


def test_a_file_of_parquet_is_read_while_it_is_sent(connection: Connection, tmp_path: Any) -> None:
    pq.write_table(ROWS, tmp_path / "rows.parquet")
    assert connection.execute("SELECT count(*) FROM $1", [ds.dataset(tmp_path)]).fetchall() == [(3,)]


def test_pandas_gives_its_columns_without_the_index(connection: Connection) -> None:
    frame = pd.DataFrame({"id": [1, 2]}, index=["x", "y"])
    cursor = connection.execute("SELECT * FROM $1", [frame])
    assert [name for name, *_ in cursor.description or ()] == ["id"]
    assert cursor.fetch_df().equals(pd.DataFrame({"id": [1, 2]}))


def test_pandas_gets_decimals_that_are_exact_and_come_back_so(connection: Connection) -> None:
    sql = "SELECT 0.10::DECIMAL(15,2) AS price UNION ALL SELECT 0.20::DECIMAL(15,2) UNION ALL SELECT NULL"
    frame = connection.execute(sql).fetch_df()
    assert frame["price"].dropna().tolist() == [Decimal("0.10"), Decimal("0.20")]
    assert (frame["price"].sum(), frame["price"].isna().sum()) == (Decimal("0.30"), 1)
    assert connection.execute("SELECT sum(price), count(*) FROM $1", [frame]).fetchall() == [(Decimal("0.30"), 3)]


def test_explain_shows_what_is_given(connection: Connection) -> None:
    lines = [line for (line,) in connection.execute("EXPLAIN SELECT count(*) FROM $1 f JOIN t USING (id)", [ROWS]).fetchall()]
    assert any("rows given with the statement as $1" in line for line in lines)


def test_midnight_at_the_end_of_the_day_comes_back(connection: Connection) -> None:
    given = pa.table({"t": pa.array([86_400_000_000], pa.int64()).view(pa.time64("us"))})
    assert connection.execute("SELECT t::text FROM $1", [given]).fetchall() == [("24:00:00",)]
