"""The prompt, fed with keys."""

import io
from pathlib import Path

import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from scripted import Node

from dsdb.cli.shell_meta import MetaCommands
from dsdb.cli.shell_prompt import SqlCompleter, prompt_mark, run_prompt
from dsdb.cli.shell_run import Shell
from dsdb.driver.target import parse_target
from dsdb.sql.transaction_status import TransactionStatus


@pytest.fixture(autouse=True)
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DSDB_HISTORY", str(tmp_path / "history"))
    return tmp_path / "history"


def type_into_prompt(keys: str) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    with Node() as node:
        shell = Shell(parse_target(node.url), output_format="csv", out=out, err=err)
        with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
            pipe.send_text(keys)
            run_prompt(shell, MetaCommands(shell))
        shell.close()
    return out.getvalue(), err.getvalue()


def test_statements_over_several_lines(history: Path) -> None:
    out, err = type_into_prompt("rows\r2\r;\rnonsense;\rrows 1; rows 0;\r\\q\r")
    assert out == "n\n0\n1\nn\n0\nn\n"
    assert err.startswith("ERROR 42601")
    assert "+rows\n+2\n+;\n" in history.read_text()


def test_ctrl_c_drops_the_line_and_ctrl_d_ends() -> None:
    assert type_into_prompt("rows 7\x03rows 1;\r\x04") == ("n\n0\n", "")


def test_commands() -> None:
    out, err = type_into_prompt("\\?\r\\timing\r\\timing\r\\x\r\\c\r\\i /nowhere\r\\huh\r\\q\r")
    assert "\\d [TABLE]" in out
    assert "Timing is on.\nTiming is off.\nRows are shown as lists.\n" in out
    assert 'The database is "defaultdb", the user "root".' in out
    assert "cannot read '/nowhere'" in err
    assert "there is no command \\huh" in err


def test_completion_without_a_catalogue_gives_keywords() -> None:
    with Node() as node:
        shell = Shell(parse_target(node.url), output_format="csv", out=io.StringIO(), err=io.StringIO())
        completer = SqlCompleter(shell)
        found = [completion.text for completion in completer.get_completions(Document("SEL"), CompleteEvent())]
        assert found == ["SELECT"]
        assert [completion.text for completion in completer.get_completions(Document("\\d"), CompleteEvent())] == []
        shell.close()


@pytest.mark.parametrize("begun", ["SELECT * FROM system.no", "\\d system.no", "SELECT 1 FROM SYSTEM.NO"])
def test_virtual_tables_complete_behind_their_schema(begun: str) -> None:
    with Node() as node:
        shell = Shell(parse_target(node.url), output_format="csv", out=io.StringIO(), err=io.StringIO())
        completions = list(SqlCompleter(shell).get_completions(Document(begun), CompleteEvent()))
        assert [(completion.text, completion.start_position) for completion in completions] == [("nodes", -2)]
        every = SqlCompleter(shell).get_completions(Document("TABLE system."), CompleteEvent())
        names = [completion.text for completion in every]
        assert names == sorted(names)
        assert {"locks", "nodes", "ranges", "settings", "transactions"} <= set(names)
        shell.close()


def test_the_prompt_shows_the_transaction() -> None:
    assert [prompt_mark(status) for status in TransactionStatus] == ["", "*", "!"]
