"""Queries and what they give, as scripts: testdata/select_*.txt; rewritten with DSDB_REWRITE=1 and read before they are committed.

A script is a sequence of blocks: lines of SQL (or of prose, from `#`), `---`, the expected lines, and an empty line.
`explain SQL` prints the stages; `param TYPE TEXT` before the SQL gives a parameter.
"""

import os
import pathlib

import pytest
import trio

from dsdb.sql import types
from dsdb.sql.errors import SqlError
from dsdb.sql.text import parse_text
from tests.sql.select_session import SelectSession, shown

SCRIPTS = sorted((pathlib.Path(__file__).parent / "testdata").glob("select_*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path: pathlib.Path) -> None:
    text = path.read_text()
    found = trio.run(_replay, text)
    if os.environ.get("DSDB_REWRITE"):
        path.write_text(found)
    assert found == text


async def _replay(text: str) -> str:
    out = []
    async with SelectSession() as session:
        for block in text.strip("\n").split("\n\n"):
            command = block.partition("\n---")[0]
            out.append("\n".join([command, "---", *await _run(session, command)]) if _sql(command)[0] else command)
    return "\n\n".join(out) + "\n"


def _sql(command: str) -> tuple[str, list[tuple[types.SqlType, object]]]:
    parameters: list[tuple[types.SqlType, object]] = []
    lines = []
    for line in command.split("\n"):
        if line.startswith("param "):
            _, name, value = line.split(" ", 2)
            type_: types.SqlType = getattr(types, name)
            parameters.append((type_, None if value == "NULL" else parse_text(value, type_)))
        elif not line.startswith("#"):
            lines.append(line)
    return "\n".join(lines), parameters


async def _run(session: SelectSession, command: str) -> list[str]:
    sql, parameters = _sql(command)
    try:
        if sql.startswith("explain "):
            return await session.explain(sql.removeprefix("explain "), *parameters)  # type: ignore[arg-type]
        plan, rows = await session.result(sql, *parameters)  # type: ignore[arg-type]
    except SqlError as error:
        hint = "" if error.hint is None else f" ({error.hint})"
        place = "" if error.position is None else f" at {error.position}"
        return [f"ERROR {error.sqlstate}{place}: {error.message}{hint}"]
    lines = shown(plan, rows)
    # Rows of a query without an order come in any order.
    return lines if "order by" in sql.lower() else [lines[0], *sorted(lines[1:])]
