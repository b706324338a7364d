"""Golden scripts: statements and what they give, from the executor over a local store.

A script is prose (`#`), a statement that ends with `;`, `---`, and its output up to an empty line.  DSDB_REWRITE=1 writes the output
anew; read it before it is committed.
"""

import os
from pathlib import Path

import pytest
import trio

from dsdb.sql.errors import SqlError
from dsdb.sql.execute.session import SessionState
from dsdb.sql.text import format_text
from tests.sql.conformance import LocalDatabase

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.sql"))


async def shown(database: LocalDatabase, session: SessionState, statement: str) -> str:
    try:
        gathered = await database.run(session, statement)
    except SqlError as error:
        lines = [f"{error.sqlstate} {error.message}"]
        lines += [f"detail: {error.detail}"] if error.detail else []
        lines += [f"hint: {error.hint}"] if error.hint else []
        return "\n".join(lines)
    lines = []
    for result, rows in gathered:
        if result.columns:
            lines.append(" | ".join(column.name for column in result.columns))
        for row in rows:
            values = ["NULL" if value is None else format_text(value, column.type) for value, column in zip(row, result.columns)]
            lines.append(" | ".join(values))
        lines += [f"{notice.severity.lower()}: {notice.sqlstate} {notice}" for notice in result.notices]
        lines.append(result.tag if result.batches is None else f"{result.tag} {len(rows)}")
    return "\n".join(lines)


async def replayed(text: str) -> str:
    """Run a script and give it with the output that came."""
    database, session, blocks = LocalDatabase(), SessionState(), []
    await database.found()
    for block in text.strip().split("\n\n"):
        statement = block.split("\n---\n")[0].removesuffix("\n---")
        code = "\n".join(line for line in statement.split("\n") if not line.startswith("#"))
        blocks.append(f"{statement}\n---\n{await shown(database, session, code)}" if code else statement)
    database.close()
    return "\n\n".join(blocks) + "\n"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path: Path) -> None:
    text = path.read_text()
    output = trio.run(replayed, text)
    if os.environ.get("DSDB_REWRITE"):
        path.write_text(output)
    assert output == text
