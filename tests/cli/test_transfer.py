"""dsdb import, export and dump, and COPY in the shell: rows in are rows out, and what fails has left nothing."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

import dsdb
from dsdb.cli.main import main
from dsdb.cli.shell_meta import MetaCommands
from dsdb.cli.shell_run import Shell
from dsdb.driver.connection import Connection
from dsdb.driver.target import parse_target


@pytest.fixture
def database(tmp_path: Path) -> Iterator[tuple[Connection, str]]:
    # Kept open, so that commands share its node.
    with dsdb.connect(tmp_path / "db", autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id INT PRIMARY KEY, word TEXT)")
        yield connection, str(tmp_path / "db")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_import_and_export(database: tuple[Connection, str], tmp_path: Path) -> None:
    connection, url = database
    (tmp_path / "a.csv").write_text('word;id\n"one;1";1\nnil;2\n')
    result = run("import", "t", tmp_path / "a.csv", "--delimiter", ";", "--null", "nil", "--url", url)
    assert (result.exit_code, result.stdout) == (0, "t: 2 rows imported\n"), result.output
    assert connection.execute("SELECT * FROM t ORDER BY 1").fetchall() == [(1, "one;1"), (2, None)]
    assert run("export", "t", tmp_path / "a.parquet", "--url", url).exit_code == 0
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 2
    made = run("import", "u", tmp_path / "a.parquet", "--create", "--primary-key", "id", "--url", url)
    assert made.stdout == "u: 2 rows imported\n", made.output
    out = run("export", "--query", "SELECT id + 1 AS n FROM u ORDER BY 1", tmp_path / "q.jsonl", "--url", url)
    assert out.exit_code == 0
    assert (tmp_path / "q.jsonl").read_text() == '{"n": 2}\n{"n": 3}\n'


def test_a_bad_row_is_named_or_rejected(database: tuple[Connection, str], tmp_path: Path) -> None:
    connection, url = database
    (tmp_path / "a.csv").write_text("id,word\n1,one\nx,two\n")
    result = run("import", "t", tmp_path / "a.csv", "--url", url)
    assert result.exit_code == 1
    assert 'a.csv, line 3, column "id"' in result.stderr
    assert connection.execute("SELECT count(*) FROM t").fetchall() == [(0,)]
    result = run("import", "t", tmp_path / "a.csv", "--reject-file", tmp_path / "r.csv", "--url", url)
    assert "1 rows imported, 1 rejected" in result.stdout
    assert "x,two" in (tmp_path / "r.csv").read_text()


def test_a_dump_is_loaded_again(database: tuple[Connection, str], tmp_path: Path) -> None:
    connection, url = database
    connection.execute("CREATE SEQUENCE numbers")
    connection.execute('CREATE TABLE "Odd ""name" (n SERIAL, k INT DEFAULT nextval(\'numbers\') PRIMARY KEY, i INTERVAL, CHECK (k > 0))')
    connection.execute('INSERT INTO "Odd ""name" (i) VALUES (\'1 month\'), (NULL)')
    connection.execute("INSERT INTO t VALUES (1, 'one')")
    result = run("dump", tmp_path / "dump", "--url", url)
    assert result.exit_code == 0, result.output
    assert run("dump", tmp_path / "dump", "--url", url).exit_code == 1
    with dsdb.connect(tmp_path / "other", autocommit=True) as other:
        result = run("import", "--dump", tmp_path / "dump", "--url", tmp_path / "other")
        assert result.exit_code == 0, result.output
        for table in ("t", '"Odd ""name"'):
            texts = [one.execute(f"SHOW CREATE TABLE {table}").fetchall() for one in (connection, other)]
            assert texts[0] == texts[1]
            rows = [one.execute(f"SELECT * FROM {table} ORDER BY 1").fetch_arrow_table() for one in (connection, other)]
            assert rows[0].equals(rows[1])
        other.execute('INSERT INTO "Odd ""name" (i) VALUES (NULL)')
        assert other.execute('SELECT max(n), max(k) FROM "Odd ""name"').fetchall() == [(3, 3)]


def test_a_dump_with_rows_missing_is_not_loaded(database: tuple[Connection, str], tmp_path: Path) -> None:
    # A restore never succeeds with rows missing.
    connection, url = database
    connection.execute("INSERT INTO t VALUES (1, 'one'), (2, 'two')")
    assert run("dump", tmp_path / "dump", "--url", url).exit_code == 0
    manifest = json.loads((tmp_path / "dump" / "manifest.json").read_text())
    file = tmp_path / "dump" / manifest["tables"][0]["file"]
    pq.write_table(pq.read_table(file).slice(0, 1), file)
    connection.execute("DROP TABLE t")
    result = run("import", "--dump", tmp_path / "dump", "--url", url)
    assert result.exit_code == 1
    assert "has 1 rows, and the manifest says 2" in result.stderr
    with pytest.raises(dsdb.ProgrammingError, match="does not exist"):
        connection.execute("SELECT * FROM t")
    (tmp_path / "dump" / "manifest.json").unlink()
    assert "no whole dump" in run("import", "--dump", tmp_path / "dump", "--url", url).stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["import"],
        ["import", "t"],
        ["export", "t"],
        ["import", "t", "x.csv", "--dump", "d"],
        ["import", "t", "x.csv", "--primary-key", "id"],
    ],
    ids=range(5),
)
def test_what_makes_no_sense_is_refused_before_anything_is_asked(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_the_shell_copies(database: tuple[Connection, str], tmp_path: Path) -> None:
    _, url = database
    raw = io.BytesIO()
    out, err = io.TextIOWrapper(raw, encoding="utf-8", write_through=True), io.StringIO()
    shell = Shell(parse_target(url), output_format="table", out=out, err=err)
    try:
        script = [
            "COPY t FROM STDIN (FORMAT csv);\n",
            "1,one\n",
            '2,"two\n',
            'lines"\n',
            "\\.\n",
            f"COPY t TO '{tmp_path}/t.arrow';\n",
            f"\\copy (SELECT id + 10 AS id, word FROM t) to '{tmp_path}/u.csv' csv header\n",
            f"COPY t FROM '{tmp_path}/u.csv' (HEADER);\n",
            "COPY (SELECT count(*) FROM t) TO STDOUT (FORMAT csv);\n",
        ]
        assert shell.run_lines(iter(script), MetaCommands(shell).run), err.getvalue()
        assert raw.getvalue() == b"COPY 2\nCOPY 2\nCOPY 2\nCOPY 2\n4\n"
        assert pa.ipc.open_stream(str(tmp_path / "t.arrow")).read_all().num_rows == 2
        assert not shell.run(f"COPY t FROM '{tmp_path}/u.csv' (HEADER)")
        assert "Key (id)=(11) already exists" in err.getvalue()
    finally:
        shell.close()
