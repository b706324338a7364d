"""What Python holds as tables: Arrow, pandas, Polars, data sets, readers of record batches; as columns and batches for a node.

    anything with __arrow_c_stream__ or __arrow_c_array__     pyarrow, Polars, DuckDB, …
    pandas.DataFrame                                          without its index
    pyarrow.dataset.Dataset, Scanner                          read while it is sent
    pyarrow.RecordBatchReader                                 read while it is sent, once

Invariants:
- No more than a few batches of a source that streams are in memory.
- What has no SQL type, or does not fit it, is refused with the name of its column (`dsdb.sql.arrow_intake`).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from dsdb.driver.errors import DatabaseError, DataError, ProgrammingError, error_of

if TYPE_CHECKING:
    import pyarrow as pa

    from dsdb.sql.errors import SqlError
    from dsdb.sql.given_tables import Columns

PIECE_BYTES = 1 << 20
"""Aimed at for one message of rows."""
_CAPSULES = ("__arrow_c_stream__", "__arrow_c_array__")


def is_table(value: object) -> bool:
    """Say whether a value is a table, as far as its type tells; loads nothing."""
    kind = type(value)
    if kind.__module__.startswith(("pandas.", "polars.")) and kind.__name__ == "Series":
        return False
    if kind.__module__.startswith("pyarrow") and kind.__name__.endswith(("Array", "Scalar")):
        return False
    if any(hasattr(kind, name) for name in _CAPSULES):
        return True
    return (kind.__module__.split(".")[0], kind.__name__) in (("pandas", "DataFrame"), ("polars", "LazyFrame")) or _is_dataset(value)


def _is_dataset(value: object) -> bool:
    return any(base.__module__ == "pyarrow._dataset" and base.__name__ in ("Dataset", "Scanner") for base in type(value).__mro__)


class TableSource:
    """A table to be sent.  columns: names and SQL types; rows_sent: of the batches given out; what: it is, for messages."""

    def __init__(self, value: Any, *, what: str = "the table") -> None:
        """Read what kind of table it is, but no rows of one that streams.  Raises DatabaseError."""
        import pyarrow as pa  # noqa: PLC0415, RUF100

        from dsdb.sql.arrow_intake import columns_of  # noqa: PLC0415, RUF100
        from dsdb.sql.errors import SqlError  # noqa: PLC0415, RUF100
        from dsdb.sql.execute.result import ResultColumn, arrow_schema  # noqa: PLC0415, RUF100

        self.what = what
        self.rows_sent = 0
        self._table, self._reader = _opened(value, pa)
        schema = self._reader.schema if self._table is None else self._table.schema
        try:
            self.columns: Columns = columns_of(schema, what=what)
        except SqlError as error:
            raise driver_error(error) from None
        self.arrow_schema: pa.Schema = schema
        self._schema = arrow_schema([ResultColumn(name, sql_type) for name, sql_type in self.columns])

    @property
    def is_whole(self) -> bool:
        """Say whether it can be read again."""
        return self._table is not None

    def only(self, names: "frozenset[str]") -> None:
        """Leave out the columns whose names, in lower case, are not among these; one stays, as rows are counted by some column."""
        kept = [name for name, _ in self.columns if name.lower() in names] or [self.columns[0][0]]
        if self._table is None or len(kept) == len(self.columns):
            return
        self._table = self._table.select(kept)
        self.columns = tuple(column for column in self.columns if column[0] in kept)
        self._schema = _selected(self._schema, kept)

    def pieces(self) -> "Iterator[pa.RecordBatch]":
        """Give the rows as batches of about PIECE_BYTES, of exactly the Arrow types that belong to the columns.  Raises DatabaseError."""
        import pyarrow as pa  # noqa: PLC0415, RUF100

        from dsdb.sql.arrow_intake import taken  # noqa: PLC0415, RUF100
        from dsdb.sql.errors import SqlError  # noqa: PLC0415, RUF100

        self.rows_sent = 0
        batches = self._reader if self._table is None else self._table.to_batches()
        try:
            for batch in batches:
                for part in cut(batch):
                    try:
                        plain = taken(part, self.columns, self._schema, first_row=self.rows_sent + 1, what=self.what)
                    except SqlError as error:
                        raise driver_error(error) from None
                    # Dictionaries may have grown by that.
                    yield from cut(plain)
                    self.rows_sent += part.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.what} cannot be read behind row {self.rows_sent}: {error}", sqlstate="22000") from error


def _selected(schema: "pa.Schema", names: list[str]) -> "pa.Schema":
    import pyarrow as pa  # noqa: PLC0415, RUF100

    return pa.schema([schema.field(name) for name in names])


def _opened(value: Any, pa: Any) -> "tuple[pa.Table | None, Any]":
    """Give a table, or a reader of what streams.  Raises DatabaseError."""
    module = type(value).__module__.split(".")[0]
    try:
        if isinstance(value, pa.Table):
            return value, None
        if isinstance(value, pa.RecordBatch):
            return pa.Table.from_batches([value]), None
        if isinstance(value, pa.RecordBatchReader):
            return None, value
        if module == "pandas":
            return pa.Table.from_pandas(value, preserve_index=False), None
        if module == "polars" and type(value).__name__ == "LazyFrame":
            raise ProgrammingError("a LazyFrame has no rows yet", hint="Call .collect() on it.")
        if _is_dataset(value):
            scanner = value.scanner() if hasattr(value, "scanner") else value
            return None, scanner.to_reader()
        if hasattr(value, "__arrow_c_stream__"):
            # A frame can be read again, a reader cannot; who is both says so by a length.
            reader = pa.RecordBatchReader.from_stream(value)
            return (reader.read_all(), None) if hasattr(value, "__len__") else (None, reader)
        if hasattr(value, "__arrow_c_array__"):
            return pa.Table.from_batches([pa.record_batch(value)]), None
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"a {type(value).__name__} cannot be read as a table: {error}", sqlstate="22000") from error
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise ProgrammingError(
        f"a value of type {kind} is no table", hint="Give an Arrow table or reader, a data frame of pandas or Polars, or a data set."
    )


def cut(batch: "pa.RecordBatch") -> "Iterator[pa.RecordBatch]":
    """Cut a batch into some of about PIECE_BYTES, of one row at the least."""
    if not batch.num_rows:
        return
    count = min(batch.num_rows, -(-batch.nbytes // PIECE_BYTES) or 1)
    if count == 1:
        yield batch
        return
    rows = -(-batch.num_rows // count)
    for start in range(0, batch.num_rows, rows):
        yield batch.slice(start, rows)


def driver_error(error: "SqlError") -> DatabaseError:
    """Give the exception for an error that was found on this side."""
    return error_of(error.sqlstate, error.message, detail=error.detail, hint=error.hint, position=error.position)
