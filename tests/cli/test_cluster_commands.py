"""`dsdb node`, `dsdb range` and `dsdb debug`, where there is no cluster: what they refuse, and how rows are written."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from dsdb.cli.asking import print_rows
from dsdb.cli.main import main


@pytest.mark.parametrize("words", [("node", "ls"), ("node", "drain", "1"), ("range", "ls"), ("range", "scatter", "t"), ("debug", "check")])
def test_a_url_that_is_none_makes_no_directory(words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, [*words, "--url", "localhost:7432"])
    assert done.exit_code == 2
    assert "'localhost:7432' is no URL of a cluster: expected dsdb://HOST:PORT" in done.output
    assert list(tmp_path.iterdir()) == []


def test_nobody_there_is_said_with_its_own_exit_code() -> None:
    done = CliRunner().invoke(main, ["node", "ls", "--url", "dsdb://127.0.0.1:1"])
    assert done.exit_code == 2
    assert "cannot connect to 127.0.0.1:1" in done.output


def test_rows_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    columns, rows = ("node", "live", "state"), [(1, True, "active"), (2, False, None)]
    print_rows(columns, rows, "csv")
    assert capsys.readouterr().out == "node,live,state\n1,yes,active\n2,no,\n"
    print_rows(columns, rows, "json")
    found = json.loads(capsys.readouterr().out)
    assert found == [{"node": 1, "live": True, "state": "active"}, {"node": 2, "live": False, "state": None}]
    print_rows(columns, rows, "table")
    assert "active" in capsys.readouterr().out
