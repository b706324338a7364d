"""COPY with the client's files: what goes out comes in again, equal; what is wrong is named by file, line and column, or rejected."""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dsdb
from dsdb.driver.connection import Connection
from dsdb.driver.copying import read_copy

COLUMNS = (
    "id BIGINT PRIMARY KEY, b BOOL, s SMALLINT, r REAL, d DOUBLE PRECISION, n NUMERIC(12,3), m NUMERIC, t TEXT, v VARCHAR(9), "
    "c CHAR(4), i INTERVAL, y BYTEA, da DATE, ti TIME, ts TIMESTAMP, tz TIMESTAMPTZ, u UUID"
)
ROWS = """
    (1, true, -7, 1.5, 'Infinity', 1234.5, 12345678901234567890.123456789, 'plain', 'v', 'ab', '1 month -2 days 3.5 s', '\\x00ff',
     '2024-02-29', '23:59:59.5', '2024-02-03 04:05:06.789', '2024-02-03 04:05:06+02', '00000000-0000-0000-0000-000000000007'),
    (2, false, 0, 'NaN', -0.0, 0, 'NaN', '', 'a,b;"c"', '', '0', '', '0001-01-01', '24:00', '1970-01-01', '9999-12-31 23:59:59.999999+00',
     'ffffffff-ffff-ffff-ffff-ffffffffffff'),
    (3, NULL, NULL, NULL, NULL, NULL, NULL, E'two\\nlines "quoted"', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL)
"""


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    with dsdb.connect(autocommit=True) as opened:
        opened.execute(f"CREATE TABLE source ({COLUMNS})")
        opened.execute(f"INSERT INTO source VALUES {ROWS.strip()}".replace("E'two\\nlines", "'two\nlines"))
        yield opened


@pytest.fixture
def target(connection: Connection) -> Iterator[str]:
    connection.execute("CREATE TABLE target (id INT PRIMARY KEY, word VARCHAR(5) NOT NULL, n NUMERIC(6,2), CHECK (id < 100))")
    yield "target"
    connection.execute("DROP TABLE target")


def everything(connection: Connection, table: str) -> str:
    # As text: what is no number is equal to itself then, and Python has no 24:00.
    columns = "id, b, s, r, d, n, m, t, v, c, i, y, da, ti::text, ts, tz, u"
    return repr(connection.execute(f"SELECT {columns} FROM {table} ORDER BY id").fetchall())


@pytest.mark.parametrize(
    ("file", "options"),
    [
        ("x.csv", "(HEADER)"),
        ("x.csv", ""),
        ("x.csv.gz", "(HEADER, DELIMITER ';', NULL 'nil')"),
        ("x.tsv", "WITH CSV HEADER"),
        ("x.parquet", ""),
        ("x.arrow", ""),
        ("x.jsonl", ""),
    ],
)
def test_what_goes_out_comes_in_again(connection: Connection, tmp_path: Path, file: str, options: str) -> None:
    cursor = connection.cursor()
    assert cursor.copy(f"COPY source TO '{tmp_path}/{file}' {options}") == 3
    connection.execute("DROP TABLE IF EXISTS again")
    connection.execute(f"CREATE TABLE again ({COLUMNS})")
    assert connection.execute(f"COPY again FROM '{tmp_path}/{file}' {options}").rowcount == 3
    assert everything(connection, "again") == everything(connection, "source")
    assert [path.name for path in tmp_path.iterdir()] == [file]


def test_pipes(connection: Connection, target: str) -> None:
    cursor = connection.cursor()
    assert cursor.copy("COPY target (word, id) FROM STDIN (FORMAT csv)", io.BytesIO(b"one,1\ntwo,2\n")) == 2
    out = io.BytesIO()
    assert cursor.copy("COPY (SELECT id, word FROM target WHERE word <> ')' ORDER BY id) TO STDOUT WITH (FORMAT csv, HEADER)", out) == 2
    assert out.getvalue() == b"id,word\n1,one\n2,two\n"


def test_columns_go_by_the_names_of_a_header(connection: Connection, target: str, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("word,ID\none,1\n")
    assert connection.cursor().copy(f"COPY target FROM '{tmp_path}/x.csv' (HEADER)") == 1
    assert connection.execute("SELECT id, word, n FROM target").fetchall() == [(1, "one", None)]


BAD_CSV = [
    ("id,word\n1,one\nx,two\n", 'line 3, column "id": invalid input syntax for type integer: "x"'),
    ('id,word\n1,"a\nb"\n2,two\n3,too long\n', 'line 5, column "word"'),
    ("id,word\n1,one\n2\n", "line 3: 1 fields where 2 are expected"),
    ("id,word\n\n1,one\n2,a,b\n", "line 4: 3 fields where 2 are expected"),
    ("id,word\n1,one\n2,\n", 'line 3, column "word": NULL in a column that is NOT NULL'),
    ("id,word\n1,one\n0x10,two\n", 'line 3, column "id"'),
    ("id,word,n\n1,one,1.5\n2,two,99999999\n", 'line 3, column "n"'),
    ("id,word\n1,one\n\n200,two\n", "line 4: new row for relation"),
    ("id,wrod\n1,one\n", 'column "wrod"'),
    ("id,id\n1,1\n", 'column "id" twice'),
    ("id,word\n1,one\n1,two\n", r"Key \(id\)=\(1\)"),
]


@pytest.mark.parametrize(("text", "words"), BAD_CSV, ids=range(len(BAD_CSV)))
def test_a_bad_line_is_named_and_nothing_is_loaded(connection: Connection, target: str, tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(dsdb.DatabaseError) as caught:
        connection.cursor().copy(f"COPY target FROM '{tmp_path}/bad.csv' (HEADER)")
    assert re.search(words, str(caught.value)) is not None, caught.value
    assert connection.execute("SELECT count(*) FROM target").fetchall() == [(0,)]


def test_a_line_that_is_no_utf8_is_named(connection: Connection, target: str, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_bytes(b"1,one\n2,\xff\n")
    with pytest.raises(dsdb.DataError, match=r"bad\.csv, line 2: no UTF-8"):
        connection.cursor().copy(f"COPY target (id, word) FROM '{tmp_path}/bad.csv'")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": "x", "word": "w"}', 'line 2, column "id"'),
        ('{"id": 1, "other": "w"}', 'line 2, column "other"'),
        ("[1]", "line 2: no JSON object"),
        ("{", "line 2: no JSON"),
    ],
)
def test_a_bad_object_is_named(connection: Connection, target: str, tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "bad.jsonl").write_text('{"id": 1, "word": "one"}\n' + line + "\n")
    with pytest.raises(dsdb.DataError, match=words):
        connection.cursor().copy(f"COPY target FROM '{tmp_path}/bad.jsonl'")
    assert connection.execute("SELECT count(*) FROM target").fetchall() == [(0,)]


def test_bad_rows_go_to_the_reject_file_and_the_others_in(connection: Connection, target: str, tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text('id,word\n1,one\nx,"t\nwo"\n3\n4,four\n5,\n6,six,6\n7,seven\n')
    count = connection.cursor().copy(f"COPY target FROM '{tmp_path}/some.csv' (HEADER, REJECT '{tmp_path}/rejected.csv')")
    assert count == 3
    assert connection.execute("SELECT id FROM target ORDER BY 1").fetchall() == [(1,), (4,), (7,)]
    with (tmp_path / "rejected.csv").open(newline="") as file:
        rejected = list(csv.DictReader(file))
    assert [(row["line"], row["column"], row["text"]) for row in rejected] == [
        ("3", "id", 'x,"t\nwo"'),
        ("5", "", "3"),
        ("7", "word", "5,"),
        ("8", "", "6,six,6"),
    ]
    with pytest.raises(dsdb.DataError, match="more than 1 rows are bad"):
        connection.cursor().copy(f"COPY target FROM '{tmp_path}/some.csv' (HEADER, REJECT '{tmp_path}/r.csv', REJECT_MAX 1)")


def test_several_files_are_one(connection: Connection, target: str, tmp_path: Path) -> None:
    for number in range(3):
        pq.write_table(pa.table({"id": [number], "word": ["w"], "n": ["1.50"]}), tmp_path / f"{number}.parquet")
    assert connection.cursor().copy(f"COPY target FROM '{tmp_path}' (FORMAT parquet)") == 3
    assert connection.execute("SELECT sum(n)::text FROM target").fetchall() == [("4.50",)]


def test_a_sink_that_fails_leaves_no_file(connection: Connection, tmp_path: Path) -> None:
    # An export never succeeds with rows missing, nor leaves a part of a file that looks like one.
    with pytest.raises(dsdb.DataError, match="division by zero"):
        connection.cursor().copy(f"COPY (SELECT 1 / (id - 1) FROM source) TO '{tmp_path}/x.csv'")
    with pytest.raises(dsdb.OperationalError, match="no/such"):
        connection.cursor().copy(f"COPY source TO '{tmp_path}/no/such/x.csv'")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("COPY t FROM 'x.unknown'", "format of x.unknown"),
        ("COPY t FROM 'x.csv' (FORMAT text)", "format text"),
        ("COPY t FROM 'x.csv' (WRONG 1)", "no option WRONG"),
        ("COPY t FROM 'x.csv' (DELIMITER 'ab')", "DELIMITER"),
        ("COPY t FROM STDIN (FORMAT csv)", "file object"),
        ("COPY (SELECT 1) FROM 'x.csv'", "not a query"),
        ("COPY t TO STDIN", "TO STDOUT"),
        ("COPY t", "cannot be read"),
        ("COPY nope FROM '/no/such.csv'", "nope"),
        ("COPY source FROM '/no/such.csv'", "/no/such.csv"),
    ],
)
def test_what_copy_cannot_do_is_said(connection: Connection, sql: str, words: str) -> None:
    with pytest.raises(dsdb.Error, match=words):
        connection.cursor().copy(sql)


def test_options_are_read_in_both_spellings() -> None:
    listed = read_copy("COPY a.b (\"X y\", z) FROM 'it''s.csv' WITH (FORMAT csv, HEADER true, DELIMITER ';', NULL 'n,l');")
    older = read_copy("copy a.b(\"X y\",Z) from 'it''s.csv' CSV HEADER DELIMITER AS ';' NULL AS 'n,l'")
    assert listed == older == read_copy("COPY a.b (\"X y\", z) FROM 'it''s.csv' (format csv, header, delimiter ';', null 'n,l')")
    assert (listed.file, listed.columns, listed.options["null"]) == ("it's.csv", ("X y", "z"), "n,l")
