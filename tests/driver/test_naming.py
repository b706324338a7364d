"""FROM df and FROM read_parquet('…'): what the client has, named in the text; tables win, and a node opens no file."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scripted import Node

import dsdb
from dsdb.driver.connection import Connection
from dsdb.driver.naming import mentioned, with_files

everywhere = pa.table({"n": [1, 2]})
stored = pa.table({"n": [99]})


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    with dsdb.connect(autocommit=True) as opened:
        opened.execute("CREATE TABLE stored (n BIGINT PRIMARY KEY, s TEXT)")
        opened.execute("INSERT INTO stored VALUES (1, 'one'), (2, 'two')")
        yield opened


def test_a_local_variable_is_a_table(connection: Connection) -> None:
    df = pd.DataFrame({"n": [2, 3], "x": ["b", "c"]})
    cursor = connection.cursor()
    assert cursor.execute("SELECT s, x FROM df JOIN stored USING (n)").fetchall() == [("two", "b")]
    assert connection.execute("SELECT count(*) FROM DF, everywhere").fetchall() == [(4,)]
    assert df is not None


def test_a_name_of_other_case_is_found_if_it_is_the_only_one(connection: Connection) -> None:
    myFrame = pl.DataFrame({"n": [7]})
    assert connection.execute("SELECT * FROM myFrame").fetchall() == [(7,)]
    assert connection.execute('SELECT * FROM "myFrame"').fetchall() == [(7,)]
    assert myFrame is not None


def test_a_table_hides_a_variable_and_a_common_table_expression_hides_both(connection: Connection) -> None:
    assert connection.execute("SELECT max(n) FROM stored").fetchall() == [(2,)]
    assert connection.execute("WITH everywhere AS (SELECT 5 AS n) SELECT n FROM everywhere").fetchall() == [(5,)]


def test_what_is_no_table_is_not_taken(connection: Connection) -> None:
    number = 5
    with pytest.raises(dsdb.ProgrammingError, match='relation "number" does not exist'):
        connection.execute("SELECT * FROM number")
    with pytest.raises(dsdb.ProgrammingError, match='relation "nowhere" does not exist'):
        connection.execute("SELECT * FROM nowhere")
    assert number == 5


def test_a_variable_is_inserted_and_explained(connection: Connection) -> None:
    new = pa.table({"n": [10, 11]})
    connection.execute("INSERT INTO stored SELECT n, 'new' FROM new")
    assert connection.execute("DELETE FROM stored USING new WHERE stored.n = new.n").rowcount == 2
    assert any("given with the statement as new" in line for (line,) in connection.execute("EXPLAIN SELECT * FROM new").fetchall())
    assert new.num_rows == 2


def test_with_a_cluster_variables_are_not_looked_at() -> None:
    with Node() as node, dsdb.connect(node.url, autocommit=True) as connection:
        # The scripted node would not answer SHOW TABLES.
        assert connection.execute("echo FROM everywhere").fetchall() == [()]


def test_files_are_read_here(connection: Connection, tmp_path: Path) -> None:
    rows = pa.table({"n": [1, 2, 3], "Name": ["a", None, "c"]})
    (tmp_path / "parts").mkdir()
    for number in range(2):
        pq.write_table(rows, tmp_path / "parts" / f"part-{number}.parquet")
    (tmp_path / "x.csv").write_text('n;word\n1;"a;b"\n2;\n')
    with gzip.open(tmp_path / "x.csv.gz", "wt") as file:
        file.write("n,word\n1,zipped\n")
    (tmp_path / "x.jsonl").write_text('{"n": 1, "word": "j"}\n{"n": 4, "word": null}\n')
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
        writer.write_table(rows)
    query = connection.cursor().execute
    assert query(f"SELECT count(*), sum(n) FROM read_parquet('{tmp_path}/parts/part-*.parquet')").fetchall() == [(6, 12)]
    assert query(f"SELECT n, \"Name\" FROM read_parquet('{tmp_path}/parts') ORDER BY 1 LIMIT 1").fetchall() == [(1, "a")]
    assert query(f"SELECT s, word FROM read_csv('{tmp_path}/x.csv', delim=';') c JOIN stored USING (n) ORDER BY 1").fetchall() == [
        ("one", "a;b"),
        ("two", None),
    ]
    assert query(f"SELECT * FROM read_csv('{tmp_path}/x.csv.gz')").fetchall() == [(1, "zipped")]
    assert query(f"SELECT * FROM read_json('{tmp_path}/x.jsonl')").fetchall() == [(1, "j"), (4, None)]
    assert query(f"SELECT \"Name\" FROM read_arrow('file://{tmp_path}/x.arrow') WHERE n = 3").fetchall() == [("c",)]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("read_parquet('/no/such.parquet')", "/no/such.parquet"),
        ("read_csv('/no/such.csv')", "/no/such.csv"),
        ("read_csv('/no/*.csv')", "/no"),
        ("read_csv('x.csv', wrong=1)", "no option WRONG"),
        ("read_csv('nosuch://x')", "nosuch"),
    ],
)
def test_what_cannot_be_read_is_named(connection: Connection, call: str, words: str) -> None:
    with pytest.raises(dsdb.Error, match=words):
        connection.execute(f"SELECT * FROM {call}")


def test_a_call_in_quotes_is_no_call() -> None:
    text = "SELECT 'read_csv(''/no/such'')' -- read_csv('/no/such')"
    assert with_files(text) == (text, [])


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("SELECT a * b FROM t", ["select", "a", "b", "from", "t"]),
        ("SELECT count(*), \"A b\" FROM t WHERE x = 'y z'", ["select", "count", "a b", "from", "t", "where", "x"]),
        ("SELECT * FROM t", None),
        ("SELECT t.* FROM t", None),
        ("SELECT a, * FROM t", None),
        ("SELECT DISTINCT ON (a) * FROM t", None),
        ("SELECT a FROM t NATURAL JOIN u", None),
    ],
)
def test_columns_are_left_out_only_where_no_star_asks_for_them(sql: str, expected: list[str] | None) -> None:
    assert mentioned(sql) == expected
