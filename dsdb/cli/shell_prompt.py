"""The shell on a terminal: a prompt with history, highlighting, completion, and statements over several lines."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.lexers import PygmentsLexer
from pygments.lexers.sql import PostgresLexer  # type: ignore[import-untyped]

from dsdb.cli.shell_meta import MetaCommands, QuitShell
from dsdb.cli.shell_run import Shell
from dsdb.cli.shell_text import StatementSplitter
from dsdb.driver.errors import Error
from dsdb.sql.system_tables import SYSTEM_SCHEMA, SYSTEM_TABLES
from dsdb.sql.transaction_status import TransactionStatus

HISTORY_FILE = "~/.dsdb_history"
COMPLETED_TABLES_MAX = 200
"""Tables whose columns are looked up for completion."""

_KEYWORD_TEXT = """
ALTER TABLE,AND,AS,ASC,BEGIN,BETWEEN,BY,CASE,CAST,CHECK,COALESCE,COMMIT,CREATE DATABASE,CREATE TABLE,CROSS JOIN,DEFAULT,DELETE FROM,DESC,
DISTINCT,DROP DATABASE,DROP TABLE,ELSE,END,EXISTS,EXPLAIN,EXPLAIN ANALYZE,FROM,FULL JOIN,GROUP BY,HAVING,IF EXISTS,IF NOT EXISTS,IN,
INNER JOIN,INSERT INTO,INTERVAL,IS NOT NULL,IS NULL,JOIN,LEFT JOIN,LIKE,LIMIT,NOT,NOT NULL,NULL,OFFSET,ON,ON CONFLICT,OR,ORDER BY,OVER,
PARTITION BY,PRIMARY KEY,RETURNING,RIGHT JOIN,ROLLBACK,SAVEPOINT,SELECT,SET,SHOW COLUMNS FROM,SHOW CREATE TABLE,SHOW DATABASES,
SHOW CONSISTENCY,SHOW RANGES,SHOW TABLES,SPLIT AT,THEN,TRUNCATE TABLE,UNION,UNION ALL,UPDATE,USING,VALUES,WHEN,WHERE,WITH
"""
_KEYWORDS = [keyword.strip() for keyword in _KEYWORD_TEXT.split(",")]


_BEHIND_SYSTEM = re.compile(rf"\b{SYSTEM_SCHEMA}\.(\w*)$", re.IGNORECASE)
"""What has been typed of a virtual table's name."""


class SqlCompleter(Completer):
    """Completes keywords, and the tables and columns of the current database, asked for when first needed."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._names: list[str] = []
        self._names_as_of = -1

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        """Give what may stand here."""
        qualified = _BEHIND_SYSTEM.search(document.text_before_cursor)
        if qualified is not None:
            begun = qualified[1]
            for name in SYSTEM_TABLES:
                if name.startswith(begun.lower()):
                    yield Completion(name, start_position=-len(begun))
            return
        word = document.get_word_before_cursor(WORD=False)
        if not word or document.text_before_cursor.lstrip().startswith("\\"):
            return
        lowered, is_upper = word.lower(), word.isupper()
        for name in self._catalog_names():
            if name.lower().startswith(lowered):
                yield Completion(name, start_position=-len(word))
        for keyword in _KEYWORDS:
            if keyword.lower().startswith(lowered):
                yield Completion(keyword if is_upper else keyword.lower(), start_position=-len(word))

    def _catalog_names(self) -> list[str]:
        if self._names_as_of != self._shell.catalog_changes:
            self._names_as_of = self._shell.catalog_changes
            try:
                tables = [str(row[0]) for row in self._shell.rows("SHOW TABLES")]
                names = {SYSTEM_SCHEMA, *tables}
                for table in tables[:COMPLETED_TABLES_MAX]:
                    quoted = table.replace('"', '""')
                    names.update(str(row[0]) for row in self._shell.rows(f'SHOW COLUMNS FROM "{quoted}"'))
                self._names = sorted(names)
            except Error:
                # Completion is a favour: without an answer there are keywords only.
                self._names = []
        return self._names


def prompt_mark(status: TransactionStatus) -> str:
    """Give the prompt's sign of an open transaction (`*`), or one that has failed (`!`), as psql has it."""
    return {TransactionStatus.ACTIVE: "*", TransactionStatus.FAILED: "!"}.get(status, "")


def _is_complete(text: str) -> bool:
    """Say whether Enter runs the text: a command, or statements that all have their `;`."""
    if not text.strip() or text.lstrip().startswith("\\"):
        return True
    splitter = StatementSplitter()
    splitter.feed(text + "\n")
    return splitter.is_blank


def _history() -> History:
    path = Path(os.environ.get("DSDB_HISTORY", HISTORY_FILE)).expanduser()
    try:
        with path.open("a"):
            pass
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(path))


def run_prompt(shell: Shell, meta: MetaCommands) -> None:
    """Read and run until the user ends it."""
    session: PromptSession[str] = PromptSession(
        history=_history(),
        lexer=PygmentsLexer(PostgresLexer),
        completer=SqlCompleter(shell),
        complete_while_typing=False,
        auto_suggest=AutoSuggestFromHistory(),
        prompt_continuation=lambda width, line, wrapped: "> ".rjust(width),
    )
    session.multiline = Condition(lambda: not _is_complete(_buffer(session).text))
    while True:
        try:
            text = session.prompt(f"{shell.target.database}={prompt_mark(shell.connection.transaction_status)}> ")
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        try:
            shell.run_lines(iter([text + "\n"]), meta.run)
        except QuitShell:
            return
        except KeyboardInterrupt:
            shell.err.write("interrupted\n")


def _buffer(session: PromptSession[str]) -> Buffer:
    return session.default_buffer
