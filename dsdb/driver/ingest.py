"""`adbc_ingest`: many rows into one table, which may be made for them; all of them, or nothing.

    CREATE TABLE "t" (…) of the Arrow schema ▸ COPY "t" ("a", "b") FROM STDIN, the rows behind it          one transaction

Invariants:
- A call that fails has left neither rows nor table: in a transaction that was open it goes back to where that stood.
- Rows that can be read again are sent again when other transactions were in the way, if nobody else's work hangs on that.
"""

import contextlib
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dsdb.driver.errors import DatabaseError, NotSupportedError, ProgrammingError, SerializationFailure
from dsdb.driver.giving import Given
from dsdb.driver.tables import TableSource
from dsdb.sql.types import TypeName

if TYPE_CHECKING:
    from dsdb.driver.results import Answer

MODES = ("create", "append", "replace", "create_append")
PUBLIC_SCHEMA = "public"
ATTEMPTS_MAX = 5
_PAUSE_SECONDS = 0.05


class Ingesting(Protocol):
    """The connection, as an ingest sees it."""

    @property
    def autocommit(self) -> bool:
        """Whether every statement commits by itself."""

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""

    @property
    def database(self) -> str:
        """The database of the session."""

    def transaction(self) -> contextlib.AbstractContextManager[object]:
        """Give a block: a transaction, or a savepoint of the open one."""

    def end_transaction(self, *, commit: bool) -> None:
        """Commit or roll back what is open."""

    def run_statement(self, sql: str, parameters: Sequence[Any], given: Sequence[Given] = ()) -> "Answer":
        """Run a statement."""


def ingest(
    connection: Ingesting,
    table_name: str,
    data: Any,
    mode: str,
    *,
    catalog_name: str | None = None,
    db_schema_name: str | None = None,
    temporary: bool = False,
    primary_key: Sequence[str] = (),
    progress: Callable[[int], None] | None = None,
) -> int:
    """Put rows into a table; see `Cursor.adbc_ingest`.  progress: told how many rows have been sent."""
    if mode not in MODES:
        raise ProgrammingError(f"the mode of an ingest is {mode!r}", hint=f"It is one of {', '.join(MODES)}.")
    if temporary:
        raise NotSupportedError("there are no temporary tables", sqlstate="0A000", hint="Ingest into a table, and drop it.")
    if catalog_name not in (None, connection.database):
        raise NotSupportedError(
            f'the session is in database "{connection.database}", not in "{catalog_name}"', sqlstate="0A000", hint="Connect to that one."
        )
    if db_schema_name not in (None, PUBLIC_SCHEMA):
        raise NotSupportedError(f'there is no schema "{db_schema_name}" to write to', sqlstate="0A000", hint=f'"{PUBLIC_SCHEMA}" is it.')
    if primary_key and mode == "append":
        raise ProgrammingError("a table that is there has its primary key", hint="Leave primary_key out.")
    source = TableSource(data, what="what is ingested")
    texts = [*_making(table_name, source, mode, tuple(primary_key)), copy_text(table_name, [name for name, _ in source.columns])]
    attempt = 0
    while True:
        attempt += 1
        given = Given(source, progress=progress)
        is_own = not connection.in_transaction
        try:
            return _attempt(connection, texts, given)
        except SerializationFailure:
            if not is_own or given.is_spent or attempt == ATTEMPTS_MAX:
                raise
            time.sleep(random.uniform(0, _PAUSE_SECONDS * 2**attempt))


def _attempt(connection: Ingesting, texts: Sequence[str], given: Given) -> int:
    if connection.autocommit and not connection.in_transaction and len(texts) == 1:
        return _run(connection, texts, given)
    if connection.autocommit or connection.in_transaction:
        with connection.transaction():
            return _run(connection, texts, given)
    # The transaction that begins is to be committed by the caller; if it fails, nothing else was in it.
    try:
        return _run(connection, texts, given)
    except BaseException:
        with contextlib.suppress(DatabaseError):
            connection.end_transaction(commit=False)
        raise


def _run(connection: Ingesting, texts: Sequence[str], given: Given) -> int:
    for text in texts[:-1]:
        connection.run_statement(text, ())
    result = connection.run_statement(texts[-1], (), (given,)).next_result()
    assert result is not None, "a statement has a result"
    return result.row_count or 0


def _making(table_name: str, source: TableSource, mode: str, primary_key: tuple[str, ...]) -> list[str]:
    if mode == "append":
        return []
    names = [name for name, _ in source.columns]
    for name in primary_key:
        if name not in names:
            known = ", ".join(names)
            raise ProgrammingError(f'there is no column "{name}" for the primary key', sqlstate="42703", hint=f"There are {known}.")
    table = quoted(table_name)
    required = {field.name for field in source.arrow_schema if not field.nullable} | set(primary_key)
    columns = [
        f"{quoted(name)} {'text' if sql_type.name is TypeName.UNKNOWN else sql_type}{' NOT NULL' if name in required else ''}"
        for name, sql_type in source.columns
    ]
    if primary_key:
        columns.append(f"PRIMARY KEY ({', '.join(map(quoted, primary_key))})")
    condition = " IF NOT EXISTS" if mode == "create_append" else ""
    create = f"CREATE TABLE{condition} {table} ({', '.join(columns)})"
    return [f"DROP TABLE IF EXISTS {table}", create] if mode == "replace" else [create]


def copy_text(table_name: str, columns: Sequence[str], *, is_spelled: bool = False) -> str:
    """Give the statement that takes rows of these columns.  is_spelled: the table's name stands as in SQL already."""
    return f"COPY {table_name if is_spelled else quoted(table_name)} ({', '.join(map(quoted, columns))}) FROM STDIN"


def quoted(name: str) -> str:
    """Give a name as SQL takes it, whatever is in it."""
    doubled = name.replace('"', '""')
    return f'"{doubled}"'
