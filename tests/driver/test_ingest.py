"""adbc_ingest: rows in are rows there, or a failure that names the row and has left nothing."""

import decimal
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import dsdb
from dsdb.driver.connection import Connection

ROWS = pa.table({"id": pa.array([1, 2, 3], pa.int32()), "word": ["one", None, "three"]})
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    with dsdb.connect(autocommit=True) as opened:
        yield opened


@pytest.fixture
def name() -> str:
    return f"t{next(_numbers)}"


def rows(connection: Connection, name: str) -> list[tuple[Any, ...]]:
    return connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall()


@pytest.mark.parametrize(
    "data",
    [
        ROWS,
        pa.RecordBatchReader.from_batches(ROWS.schema, ROWS.to_batches()),
        pd.DataFrame({"id": [1, 2, 3], "word": ["one", None, "three"]}, index=[7, 8, 9]),
        pl.from_arrow(ROWS),
        ds.dataset(ROWS),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_table_is_made_for_any_data(connection: Connection, name: str, data: Any) -> None:
    assert connection.cursor().adbc_ingest(name, data) == 3
    assert rows(connection, name) == [(1, "one"), (2, None), (3, "three")]


def test_modes_make_append_and_replace(connection: Connection, name: str) -> None:
    cursor = connection.cursor()
    assert cursor.adbc_ingest(name, ROWS, "create_append", primary_key=["id"]) == 3
    assert cursor.rowcount == 3
    more = pa.table({"word": ["four"], "id": pa.array([4], pa.int64())})
    assert cursor.adbc_ingest(name, more, "append") == 1
    assert cursor.adbc_ingest(name, pa.table({"id": [5], "word": ["five"]}), "create_append") == 1
    assert [row[0] for row in rows(connection, name)] == [1, 2, 3, 4, 5]
    assert cursor.adbc_ingest(name, pa.table({"x": [decimal.Decimal("1.5")]}), "replace") == 1
    assert rows(connection, name) == [(decimal.Decimal("1.5"),)]


def test_columns_that_do_not_come_take_their_defaults(connection: Connection, name: str) -> None:
    connection.execute(f"CREATE TABLE {name} (n SERIAL, id INT PRIMARY KEY, word VARCHAR(5), c INT DEFAULT 7, d DECIMAL(6,2) DEFAULT 1)")
    connection.cursor().adbc_ingest(name, ROWS, "append")
    assert [row[1:] for row in rows(connection, name)] == [
        (1, "one", 7, decimal.Decimal(1)),
        (2, None, 7, decimal.Decimal(1)),
        (3, "three", 7, decimal.Decimal(1)),
    ]
    assert len({row[0] for row in rows(connection, name)}) == 3


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"id": [9, 10], "b": ["x", None]}, "23502", 'Row 2 of what was given, column "b"'),
    ({"id": [9, 200], "b": ["x", "y"]}, "23514", "Row 2 of what was given"),
    ({"id": [9, 9], "b": ["x", "y"]}, "23505", r"Key \(id\)=\(9\)"),
    ({"id": [9, 1], "b": ["x", "y"]}, "23505", r"Key \(id\)=\(1\)"),
    ({"id": [9, 2**40], "b": ["x", "y"]}, "22003", 'Row 2 of what was given, column "id"'),
    ({"id": [9, 10], "b": ["x", "far too long"]}, "22001", 'Row 2 of what was given, column "b"'),
    ({"id": ["9"], "b": ["x"]}, "42804", 'column "id"'),
    ({"id": [9], "nope": ["x"]}, "42703", 'column "nope"'),
    ({"id": [9], "b": [["x"]]}, "0A000", 'column "b"'),
    ({"id": [9], "b": ["\0"]}, "22000", 'row 1, column "b"'),
    ({"b": ["x"]}, "23502", 'column "id"'),
]


@pytest.mark.parametrize(("wrong", "sqlstate", "words"), WRONG, ids=range(len(WRONG)))
def test_what_breaks_a_rule_is_named_and_leaves_nothing(
    connection: Connection, name: str, wrong: dict[str, Any], sqlstate: str, words: str
) -> None:
    connection.execute(f"CREATE TABLE {name} (id INT PRIMARY KEY, b VARCHAR(5) NOT NULL, CHECK (id < 100))")
    connection.execute(f"INSERT INTO {name} VALUES (1, 'there')")
    with pytest.raises(dsdb.Error, match=words) as caught:
        connection.cursor().adbc_ingest(name, pa.table(wrong), "append")
    assert caught.value.sqlstate == sqlstate
    assert rows(connection, name) == [(1, "there")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "upsert"}, "create, append, replace, create_append"),
        ({"temporary": True}, "no temporary tables"),
        ({"catalog_name": "other"}, "other"),
        ({"db_schema_name": "other"}, "other"),
        ({"primary_key": ["nope"]}, "nope"),
        ({"mode": "append", "primary_key": ["id"]}, "has its primary key"),
        ({"mode": "append"}, "does not exist"),
    ],
    ids=range(7),
)
def test_what_an_ingest_cannot_do_is_refused(connection: Connection, name: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(dsdb.Error, match=words):
        connection.cursor().adbc_ingest(name, ROWS, **arguments)


def test_a_failed_ingest_leaves_no_table_either(connection: Connection, name: str) -> None:
    with pytest.raises(dsdb.IntegrityError, match=r"Key \(word\)"):
        connection.cursor().adbc_ingest(name, pa.table({"word": ["a", "b", "a"]}), primary_key=["word"])
    with pytest.raises(dsdb.ProgrammingError, match="does not exist"):
        connection.execute(f"SELECT * FROM {name}")


def test_a_replaced_table_is_as_before_when_the_new_rows_fail(connection: Connection, name: str) -> None:
    connection.cursor().adbc_ingest(name, ROWS)
    with pytest.raises(dsdb.IntegrityError):
        connection.cursor().adbc_ingest(name, pa.table({"id": [1, 1]}), "replace", primary_key=["id"])
    assert len(rows(connection, name)) == 3


def test_a_key_that_was_flushed_before_is_found_again(connection: Connection, name: str) -> None:
    # More keys than a transaction buffers: the first of them lie at their range when the last comes.
    twice = pa.table({"id": pa.array([*range(33_000), 5], pa.int32())})
    with pytest.raises(dsdb.IntegrityError, match=r"Key \(id\)=\(5\)"):
        connection.cursor().adbc_ingest(name, twice, primary_key=["id"])


def test_without_autocommit_rows_wait_for_the_commit(name: str, tmp_path: Path) -> None:
    with dsdb.connect(tmp_path, autocommit=True) as watching, dsdb.connect(tmp_path) as connection:
        cursor = connection.cursor()
        cursor.adbc_ingest(name, ROWS, primary_key=["id"])
        with pytest.raises(dsdb.ProgrammingError, match="does not exist"):
            watching.execute(f"SELECT * FROM {name}")
        connection.commit()
        assert len(rows(watching, name)) == 3
        cursor.adbc_ingest(name, pa.table({"id": [4]}), "append")
        with pytest.raises(dsdb.IntegrityError):
            cursor.adbc_ingest(name, pa.table({"id": [5, 1]}), "append")
        # Back to the savepoint: what was ingested before stands.
        connection.commit()
        assert [row[0] for row in rows(watching, name)] == [1, 2, 3, 4]


def test_a_source_that_breaks_off_leaves_nothing(connection: Connection, name: str) -> None:
    def broken() -> Iterator[pa.RecordBatch]:
        yield from ROWS.to_batches()
        raise OSError("the share is gone")

    with pytest.raises((OSError, dsdb.Error), match="the share is gone"):
        connection.cursor().adbc_ingest(name, pa.RecordBatchReader.from_batches(ROWS.schema, broken()))
    with pytest.raises(dsdb.ProgrammingError, match="does not exist"):
        connection.execute(f"SELECT * FROM {name}")


def test_a_data_set_of_many_files_goes_in_as_it_is_read(connection: Connection, name: str, tmp_path: Path) -> None:
    for number in range(3):
        pq.write_table(pa.table({"id": range(number * 1000, number * 1000 + 1000)}), tmp_path / f"{number}.parquet")
    assert connection.cursor().adbc_ingest(name, ds.dataset(tmp_path), primary_key=["id"]) == 3000
    assert connection.execute(f"SELECT count(*), sum(id) FROM {name}").fetchall() == [(3000, decimal.Decimal(4_498_500))]


@pytest.mark.parametrize(
    ("sql", "sqlstate"),
    [
        ("COPY t FROM '/etc/passwd'", "0A000"),
        ("COPY t TO '/tmp/x'", "0A000"),
        ("COPY (SELECT 1) TO STDOUT", "0A000"),
        ("COPY t FROM STDIN (FORMAT csv)", "0A000"),
        ("COPY t FROM STDIN", "42601"),
        ("COPY t FROM PROGRAM 'x'", "0A000"),
        ("COPY t (a FROM STDIN", "42601"),
    ],
    ids=str,
)
def test_a_node_neither_opens_files_nor_copies_without_rows(connection: Connection, sql: str, sqlstate: str) -> None:
    with pytest.raises(dsdb.Error) as caught:
        connection.run_statement(sql, ())
    assert caught.value.sqlstate == sqlstate
