"""The shell: its texts and formats by themselves, and the whole of it as a process."""

import csv
import decimal
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import Node

import dsdb
from dsdb.cli import formats, shell
from dsdb.cli.shell_text import StatementSplitter, describe_error
from dsdb.protocol.messages import Column
from dsdb.sql.types import BIGINT, BOOL, BYTEA, DATE, DOUBLE, INTERVAL, NUMERIC, TEXT, UUID, SqlType

PIECES = ["select 1", "'a;b'", "'it''s;'", "E'x\\';'", '"q;"', "-- c;\n", "/* ; /* ; */ */", "$$ ; $$", "$f$ ; $$ ; $f$", "$1", "\n"]


class Rows:
    """Rows as a result."""

    def __init__(self, columns: list[tuple[str, SqlType]], rows: list[tuple[Any, ...]]) -> None:
        self.columns = [Column(name, sql_type) for name, sql_type in columns]
        self._rows = rows

    def rows(self) -> Iterator[list[tuple[Any, ...]]]:
        for at in range(0, len(self._rows), 700):
            yield self._rows[at : at + 700]

    def batches(self) -> Iterator[pa.RecordBatch]:
        raise NotImplementedError


MIXED = Rows(
    [("n", BIGINT), ("t", TEXT), ("d", NUMERIC), ("b", BOOL), ("x", DOUBLE), ("day", DATE), ("y", BYTEA), ("i", INTERVAL), ("u", UUID)],
    [
        (1, 'a "b" | c', decimal.Decimal("1.50"), True, 0.1, 0, b"\x01", (1, 2, 3_000_000), bytes(16)),
        (None,) * 9,
        (-2, "", decimal.Decimal("NaN"), False, float("inf"), 19_000, b"", (0, 0, 0), bytes(range(16))),
    ],
)


def text_of(write: Any, result: Rows, **options: Any) -> str:
    out = io.StringIO()
    write(result, out, **options)
    return out.getvalue()


def test_formats_of_all_types() -> None:
    assert json.loads(text_of(formats.write_json, MIXED))[0] == {
        "n": 1,
        "t": 'a "b" | c',
        "d": 1.5,
        "b": True,
        "x": 0.1,
        "day": "1970-01-01",
        "y": "\\x01",
        "i": "1 mon 2 days 00:00:03",
        "u": "00000000-0000-0000-0000-000000000000",
    }
    assert json.loads(text_of(formats.write_json, MIXED))[2]["x"] == "Infinity"
    assert '"d": 1.50' in text_of(formats.write_json, MIXED)
    table = list(csv.reader(io.StringIO(text_of(formats.write_csv, MIXED))))
    assert table[0] == ["n", "t", "d", "b", "x", "day", "y", "i", "u"]
    assert table[1][:4] == ["1", 'a "b" | c', "1.50", "t"]
    assert table[2] == [""] * 9
    assert '| 1 | a "b" \\| c | 1.50 | t |' in text_of(formats.write_markdown, MIXED)
    assert text_of(formats.write_json, Rows([("n", BIGINT)], [])) == "[]\n"


def test_a_table_is_aligned() -> None:
    rows = Rows([("name", TEXT), ("n", BIGINT)], [("a", 1), ("two\nlines", 1234), (None, None)])
    assert text_of(formats.write_table, rows, is_terminal=False) == (
        " name  |  n\n-------+------\n a     |    1\n two   | 1234\n lines |\n       |\n(3 rows)\n\n"
    )
    assert "1234" in text_of(formats.write_table, rows, is_terminal=True)
    assert text_of(formats.write_expanded, rows).startswith("-[ RECORD 1 ]\nname | a\nn    | 1\n")


def test_a_long_table_comes_in_pages() -> None:
    text = text_of(formats.write_table, Rows([("n", BIGINT)], [(n,) for n in range(2_500)]), is_terminal=False)
    assert text.count("  n\n---") == 3
    assert text.endswith("(2500 rows)\n\n")
    assert [int(line) for line in text.split("\n") if line.strip().isdigit()] == list(range(2_500))


@given(st.lists(st.lists(st.sampled_from(PIECES), min_size=1).filter(lambda pieces: "select 1" in pieces), max_size=5))
def test_statements_are_cut_where_they_end(statements: list[list[str]]) -> None:
    texts = [" ".join([*pieces, "from t"]).strip() for pieces in statements]
    splitter = StatementSplitter()
    assert splitter.feed(";\n".join([*texts, ""])) == texts
    assert splitter.is_blank
    by_line = StatementSplitter()
    found = [statement for line in ";\n".join([*texts, ""]).splitlines(keepends=True) for statement in by_line.feed(line)]
    assert found == texts


@pytest.mark.parametrize("text", ["select 1", "select 'a;", "select /* ;", "select $$ ;", 'select "a;', "select E'\\';"])
def test_an_open_statement_waits(text: str) -> None:
    splitter = StatementSplitter()
    assert splitter.feed(text + "\n") == []
    assert not splitter.is_blank
    assert splitter.take_rest() == text


def test_an_error_shows_its_place() -> None:
    error = dsdb.ProgrammingError('column "nmae" does not exist', sqlstate="42703", hint='did you mean "name"?', position=10)
    assert describe_error(error, "SELECT\n  nmae\nFROM t") == (
        'ERROR 42703: column "nmae" does not exist\nLINE 2:   nmae\n          ^\nHINT: did you mean "name"?'
    )


def test_the_formats_are_the_same_everywhere() -> None:
    assert shell.FORMATS == formats.FORMATS


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with Node() as running:
        yield running


def run_shell(node: Node, *args: str, text: str = "") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "dsdb.cli", "sql", node.url, *args]
    return subprocess.run(command, input=text.encode(), capture_output=True, timeout=30, check=False)


def test_execute_and_stop_at_the_first_error(node: Node) -> None:
    done = run_shell(node, "--format", "csv", "-e", "rows 2; rows 1", "-e", "fail 42703; rows 3", "-e", "rows 4")
    assert done.stdout == b"n\n0\n1\nn\n0\n"
    assert done.stderr.decode() == "ERROR 42703: it failed\nLINE 1: fail 42703\n          ^\nDETAIL: detail\nHINT: hint\n"
    assert done.returncode == 1


def test_a_pipe_and_a_file(node: Node, tmp_path: Path) -> None:
    script = tmp_path / "script.sql"
    script.write_text("-- a comment\n\\x\nrows\n2;\n\\timing\nsleep 0;\n")
    piped = run_shell(node, text=f"\\i {script}\nrows 1")
    assert piped.returncode == 0
    assert b"-[ RECORD 2 ]\nn | 1\n(2 rows)" in piped.stdout
    assert b"Time: " in piped.stdout
    assert b"WARNING: slept" in piped.stderr
    assert run_shell(node, "-f", str(script)).returncode == 0
    assert run_shell(node, text="\\nonsense\nrows 1").returncode == 1
    assert run_shell(node, text="\\q\nnonsense").returncode == 0


def test_large_results_in_every_format(node: Node) -> None:
    sql = "batches 30 1000"
    assert len(run_shell(node, "--format", "csv", "-e", sql).stdout.splitlines()) == 30_001
    assert len(json.loads(run_shell(node, "--format", "json", "-e", sql).stdout)) == 30_000
    arrow = pa.ipc.open_stream(run_shell(node, "--format", "arrow", "-e", sql).stdout).read_all()
    assert arrow.column("n").to_pylist() == list(range(30_000))
    parquet = pq.read_table(io.BytesIO(run_shell(node, "--format", "parquet", "-e", "rows 10").stdout))
    assert parquet.column("n").to_pylist() == list(range(10))
    twice = run_shell(node, "--format", "parquet", "-e", "rows 1; rows 1")
    assert twice.returncode == 1
    assert b"one result only" in twice.stderr


def test_ctrl_c_cancels_at_the_node(node: Node) -> None:
    before = len(node.executor.cancelled)
    command = [sys.executable, "-m", "dsdb.cli", "sql", node.url, "-e", "sleep 60", "-e", "rows 1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 20
    while not node.server.statistics().running and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert b"ERROR 57014" in err
    assert process.returncode == 1
    assert len(node.executor.cancelled) == before + 1


def test_a_reader_that_has_had_enough(node: Node) -> None:
    command = [sys.executable, "-m", "dsdb.cli", "sql", node.url, "--format", "csv", "-e", "batches 1000 1000"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": ""})
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"n\n"
    process.stdout.close()
    assert process.wait(20) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


def test_no_node() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dsdb.cli", "sql", "dsdb://127.0.0.1:1/d", "-e", "x"], capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert b"cannot connect to 127.0.0.1:1" in done.stderr
