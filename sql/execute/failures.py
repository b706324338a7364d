"""What goes wrong below, in SQL's words: which row is already there, which one another transaction has changed, what cannot be reached."""

from collections.abc import AsyncIterator, Sequence, Set
from contextlib import aclosing

import pyarrow as pa
from sqlglot import exp

from dsdb.sql.catalog import Catalog
from dsdb.sql.errors import (
    CannotConnectNowError,
    DataCorruptedError,
    FeatureNotSupportedError,
    LockNotAvailableError,
    SerializationError,
    SqlError,
    UniqueViolationError,
    UnknownOutcomeError,
)
from dsdb.sql.execute.target import unique_violation
from dsdb.sql.parse import ParsedStatement
from dsdb.sql.parse_copy import CopyStatement
from dsdb.sql.ports import (
    AmbiguousCommitError,
    DeadlineExceededError,
    KeyExistsError,
    MultiRangeWriteError,
    PortError,
    RangeUnavailableError,
    RowLockedError,
    TransactionRetryError,
)
from dsdb.sql.rows import TableRows, rows_of
from dsdb.sql.text import format_text
from dsdb.storage.datum import Datum
from dsdb.storage.errors import CorruptionError, KeyFormatError
from dsdb.storage.keys import decode_index_prefix

OF_THE_CATALOG = frozenset({"22", "23", "3D", "3F", "42"})
"""Classes of errors that an old catalogue can cause: unknown names, types and constraints that have changed since."""
AGAIN = "Run the transaction again."


class FencedTableError(Exception):
    """A transaction that drops or truncates a table keeps the others from it, for a moment."""

    def __init__(self, table_id: int) -> None:
        super().__init__(f"table {table_id} is fenced")
        self.table_id = table_id


def fenced_table(tables: Set[int], catalog: Catalog) -> int | None:
    """Give one of some tables from which a transaction keeps the others."""
    return next(iter(catalog.fences.keys() & tables), None) if catalog.fences else None


def check_unfenced(tables: Set[int], catalog: Catalog) -> None:
    """See that nobody keeps us from tables.  Raises FencedTableError."""
    fenced = fenced_table(tables, catalog)
    if fenced is not None:
        raise FencedTableError(fenced)


async def guarded(batches: AsyncIterator[pa.RecordBatch], catalog: Catalog) -> AsyncIterator[pa.RecordBatch]:
    """Pass batches on, with the errors of what lies below in SQL's words."""
    try:
        async with aclosing(batches) as stream:  # type: ignore[type-var]
            async for batch in stream:
                yield batch
    except (PortError, CorruptionError) as error:
        raise in_sql(error, catalog) from error


def in_sql(error: PortError | CorruptionError, catalog: Catalog, statements: Sequence[ParsedStatement] = ()) -> SqlError:
    """Give the SQL error for an error from below.  statements: that ran, to name their tables where nothing more is known."""
    match error:
        case KeyExistsError():
            return _key_exists(error.key, catalog)
        case AmbiguousCommitError():
            return UnknownOutcomeError(
                "whether the statement took effect is not known: the connection to its range was lost while it committed",
                hint="Look at the rows before you run it again.",
            )
        case MultiRangeWriteError():
            return FeatureNotSupportedError(
                "a statement that writes rows of several ranges is not supported", hint="Write the rows in several statements."
            )
        case RangeUnavailableError():
            return CannotConnectNowError(f"the rows cannot be reached now: {error}", hint="Run the statement again later.")
        case TransactionRetryError():
            return _changed_by_others(error, catalog, statements)
        case RowLockedError():
            return _locked(error, catalog)
        case DeadlineExceededError():
            return SerializationError(f"could not serialize access: {error}", hint=AGAIN)
        case CorruptionError():
            return DataCorruptedError(f"stored data is damaged: {error}")
    return CannotConnectNowError(str(error))


def _key_exists(key: bytes, catalog: Catalog) -> SqlError:
    """Say which row is already there."""
    row = _row_of(key, catalog)
    if row is None:
        return UniqueViolationError("duplicate key value violates unique constraint", detail=f"Key {key.hex()} already exists.")
    return unique_violation(*row)


def _changed_by_others(error: TransactionRetryError, catalog: Catalog, statements: Sequence[ParsedStatement]) -> SerializationError:
    """Say which row, or rows of which tables, another transaction has changed."""
    named = None if error.key is None else _named_row(error.key, catalog)
    what = tables_in(statements) if named is None else f"{named} was"
    return SerializationError(f"could not serialize access: {what} changed by another transaction", detail=f"{error}.", hint=AGAIN)


def _locked(error: RowLockedError, catalog: Catalog) -> LockNotAvailableError:
    """Say which row another transaction has locked."""
    named = _named_row(error.key, catalog) or "a row"
    if error.is_late:
        return LockNotAvailableError("canceling statement due to lock timeout", detail=f"Another transaction has locked {named}.")
    row = _row_of(error.key, catalog)
    relation = f'row in relation "{row[0].table.name}"' if row is not None else "a row"
    return LockNotAvailableError(f"could not obtain lock on {relation}", detail=f"Another transaction has locked {named}.")


def _named_row(key: bytes, catalog: Catalog) -> str | None:
    """Name a row by its key."""
    row = _row_of(key, catalog)
    if row is None:
        return None
    rows, values = row
    if any(column.hidden for column in rows.key_columns()):
        return f'a row of "{rows.table.name}"'
    shown = ", ".join("null" if v is None else format_text(v, c.type) for v, c in zip(values, rows.key_columns()))
    return f'row ({shown}) of "{rows.table.name}"'


def _row_of(key: bytes, catalog: Catalog) -> tuple[TableRows, Sequence[Datum]] | None:
    """Give the table and the values of a row's key, None if it is no row's of this catalogue."""
    try:
        database_id, table_id, _, offset = decode_index_prefix(key)
        for table in catalog.tables(database_id):
            if table.table_id == table_id:
                rows = rows_of(table)
                return rows, rows.key_codec.decode(key, offset)
    except KeyFormatError:
        pass
    return None


def tables_in(statements: Sequence[ParsedStatement]) -> str:
    """Name the tables of some statements, as what was changed."""
    trees = [statement.tree for statement in statements if isinstance(statement.tree, exp.Expr)]
    found = {table.name for tree in trees for table in tree.find_all(exp.Table) if table.name}
    found |= {statement.tree.table[-1] for statement in statements if isinstance(statement.tree, CopyStatement)}
    names = sorted(found)
    if not names:
        return "the catalogue was"
    return "rows of " + ", ".join(f'"{name}"' for name in names) + " were"
