"""A cursor: runs statements of its connection and gives their rows, as tuples or as Arrow."""

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Protocol

from dsdb.driver.copying import is_copy, run_copy
from dsdb.driver.errors import InterfaceError, NotSupportedError, ProgrammingError
from dsdb.driver.giving import Given
from dsdb.driver.ingest import Ingesting, ingest
from dsdb.driver.many import run_many
from dsdb.driver.naming import with_variables
from dsdb.driver.results import Answer, Inline, Streamed, inline_batch, loaded_rows
from dsdb.driver.values import Description
from dsdb.sql.transaction_status import TransactionStatus

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl
    import pyarrow as pa


class Statements(Ingesting, Protocol):
    """The connection, as a cursor sees it."""

    @property
    def transaction_status(self) -> TransactionStatus:
        """How the session stands to transactions."""

    @property
    def is_embedded(self) -> bool:
        """Whether the node is in this process."""

    def run_statement(self, sql: str, parameters: Sequence[Any], given: Sequence[Given] = ()) -> Answer:
        """Send a statement, and what it is given besides its parameters, and read its answer up to what streams."""

    def run_pipeline(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """Run one statement with many lists of parameters; give the rows touched."""


class Cursor:
    """A PEP 249 cursor.

    arraysize: rows that `fetchmany` gives by itself.  A result is read either as rows or as Arrow: what one has taken the other lacks.
    """

    def __init__(self, connection: Statements) -> None:
        self.arraysize = 1
        self._connection = connection
        self._is_closed = False
        self._answer: Answer | None = None
        self._result: Inline | Streamed | None = None
        # Rows of Python values, of the result or of its current batch, and the next one to give.
        self._rows: list[tuple[Any, ...]] = []
        self._at = 0
        self._row_count = -1

    # PEP 249

    @property
    def connection(self) -> Statements:
        """The cursor's connection."""
        return self._connection

    @property
    def description(self) -> Description | None:
        """Name and type of each column, None if the last statement gave no rows."""
        result = self._result
        return result.shape.description or None if result is not None else None

    @property
    def rowcount(self) -> int:
        """Rows given or touched by the last statement; −1 if that is not known (yet)."""
        result = self._result
        if type(result) is Streamed:
            return -1 if result.row_count is None else result.row_count
        return self._row_count

    @property
    def statusmessage(self) -> str | None:
        """The command tag of the last statement (`INSERT 0 3`)."""
        return self._result.tag if self._result is not None else None

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> "Cursor":
        """Run a statement with parameters for its `?` or `$1`; give the cursor itself."""
        self._forget()
        if is_copy(sql):
            self._row_count = run_copy(self._connection, sql, None)
            return self
        given = with_variables(sql, self._table_names) if self._connection.is_embedded else ()
        answer = self._answer = self._connection.run_statement(sql, parameters, given)
        self._take(answer.next_result())
        return self

    def executemany(self, sql: str, parameters: Iterable[Sequence[Any]]) -> "Cursor":
        """Run a statement once for each list of parameters, in as few round trips as mean the same (`dsdb.driver.many`)."""
        self._forget()
        self._row_count = run_many(self, sql, parameters)
        return self

    def fetchone(self) -> tuple[Any, ...] | None:
        """Give the next row, None after the last."""
        at = self._at
        if at < len(self._rows):
            self._at = at + 1
            return self._rows[at]
        if not self._load_batch():
            return None
        self._at = 1
        return self._rows[0]

    def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        """Give the next rows, at most `size` (else `arraysize`)."""
        wanted = self.arraysize if size is None else size
        rows: list[tuple[Any, ...]] = []
        while len(rows) < wanted:
            if self._at >= len(self._rows) and not self._load_batch():
                break
            taken = self._rows[self._at : self._at + wanted - len(rows)]
            self._at += len(taken)
            rows += taken
        if not rows:
            self._check_has_rows()
        return rows

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Give all rows that are left."""
        rows = self._rows[self._at :]
        self._at = len(self._rows)
        while self._load_batch():
            rows += self._rows
            self._at = len(self._rows)
        return rows

    def nextset(self) -> bool | None:
        """Go on to the result of the text's next statement; None if there is none."""
        self._check_open()
        result = self._answer.next_result() if self._answer is not None else None
        if result is None:
            self._forget()
            return None
        self._take(result)
        return True

    def close(self) -> None:
        """Give up the cursor; a result that still streams is cancelled by the connection's next statement."""
        self._forget()
        self._is_closed = True

    def setinputsizes(self, sizes: object) -> None:
        """Do nothing: PEP 249 wants it to be there."""

    def setoutputsize(self, size: object, column: object = None) -> None:
        """Do nothing: PEP 249 wants it to be there."""

    def callproc(self, name: str, parameters: Sequence[Any] = ()) -> None:
        """Refuse: there are no procedures.  Raises NotSupportedError."""
        raise NotSupportedError("there are no stored procedures", sqlstate="0A000")

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        while (row := self.fetchone()) is not None:
            yield row

    def __enter__(self) -> "Cursor":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    # Arrow

    def fetch_record_batch(self) -> "pa.RecordBatchReader":
        """Give the rows that are left as a reader of Arrow record batches, which come while they are read."""
        import pyarrow as pa  # noqa: PLC0415, RUF100

        result = self._check_has_rows()
        if type(result) is Streamed:
            if self._at < len(self._rows):
                raise InterfaceError(
                    "rows of this result were fetched as tuples already", hint="Fetch a result either as rows or as Arrow."
                )
            return pa.RecordBatchReader.from_batches(result.schema, _batches(result))
        assert type(result) is Inline
        batch = inline_batch(result, self._at)
        self._at = len(self._rows)
        return pa.RecordBatchReader.from_batches(batch.schema, [batch])

    def fetch_arrow_table(self) -> "pa.Table":
        """Give the rows that are left as an Arrow table."""
        return self.fetch_record_batch().read_all()

    def fetch_df(self) -> "pd.DataFrame":
        """Give the rows that are left as a pandas data frame.

        DECIMAL columns are of pandas' Arrow type: as exact as objects, and some twenty times as fast to make and to add up.
        """
        import pandas  # noqa: PLC0415, RUF100
        import pyarrow.types  # noqa: PLC0415, RUF100

        table = self.fetch_arrow_table()
        decimals = {field.type: pandas.ArrowDtype(field.type) for field in table.schema if pyarrow.types.is_decimal(field.type)}
        frame: pd.DataFrame = table.to_pandas(types_mapper=decimals.get)
        return frame

    def fetch_polars(self) -> "pl.DataFrame":
        """Give the rows that are left as a Polars data frame."""
        import polars  # noqa: PLC0415, RUF100

        frame = polars.from_arrow(self.fetch_arrow_table())
        assert isinstance(frame, polars.DataFrame)
        return frame

    def adbc_ingest(
        self,
        table_name: str,
        data: Any,
        mode: str = "create",
        *,
        catalog_name: str | None = None,
        db_schema_name: str | None = None,
        temporary: bool = False,
        primary_key: Sequence[str] = (),
    ) -> int:
        """Put rows into a table, all of them or none; give their number.

        data: an Arrow table, reader or data set, or a data frame of pandas or Polars; what streams is sent as it is read.
        mode: "create" the table, "append" to it, "replace" it, or "create_append": make it if it is not there.
        primary_key: of a table that is made; without one it gets a hidden key.
        Columns go by their names.  Raises IntegrityError, DataError, …; without autocommit the rows wait for `commit`.
        """
        self._forget()
        self._row_count = ingest(
            self._connection,
            table_name,
            data,
            mode,
            catalog_name=catalog_name,
            db_schema_name=db_schema_name,
            temporary=temporary,
            primary_key=primary_key,
        )
        return self._row_count

    def copy(self, sql: str, file: IO[bytes] | None = None) -> int:
        """Run a COPY, whose files are read and written here; give the number of rows.  file: what STDIN or STDOUT is.

        `COPY t FROM 'rows.csv' (FORMAT csv, HEADER)`, `COPY (SELECT …) TO STDOUT (FORMAT jsonl)`, …: see docs/sql.md.
        """
        self._forget()
        self._row_count = run_copy(self._connection, sql, file)
        return self._row_count

    # What `run_many` calls.

    @property
    def has_failed(self) -> bool:
        """Say whether an open transaction has failed."""
        return self._connection.transaction_status is TransactionStatus.FAILED

    def run_rows(self, sql: str, parameters: Sequence[Any]) -> int:
        """Run one statement that gives no rows; give the rows touched."""
        result = self._connection.run_statement(sql, parameters).next_result()
        if result is None or result.shape.columns:
            raise ProgrammingError("executemany is for statements that give no rows", hint="Use execute.")
        return result.row_count or 0

    def run_pipeline(self, sql: str, rows: Sequence[Sequence[Any]]) -> int:
        """Run one statement with many lists of parameters; give the rows touched."""
        return self._connection.run_pipeline(sql, rows)

    # Within.

    def _table_names(self) -> list[str]:
        result = self._connection.run_statement("SHOW TABLES", ()).next_result()
        assert result is not None, "SHOW gives rows"
        at = [column.name for column in result.shape.columns].index("table_name")
        if isinstance(result, Inline):
            return [row[at] for row in result.rows]
        return [row[at] for batch in _batches(result) for row in loaded_rows(result.shape, batch)]

    def _check_open(self) -> None:
        if self._is_closed:
            raise InterfaceError("the cursor is closed")

    def _check_has_rows(self) -> Inline | Streamed:
        self._check_open()
        result = self._result
        if result is None or (not result.shape.columns and not result.tag.startswith("SELECT")):
            raise ProgrammingError("there is no result to fetch from: the last statement gave none, or none was executed")
        return result

    def _forget(self) -> None:
        self._check_open()
        self._answer = self._result = None
        self._rows = []
        self._at = 0
        self._row_count = -1

    def _take(self, result: Inline | Streamed | None) -> None:
        self._result = result
        self._at = 0
        if type(result) is Inline:
            self._rows = result.shape.load(result.rows)
            self._row_count = -1 if result.row_count is None else result.row_count
        else:
            self._rows = []

    def _load_batch(self) -> bool:
        """Load the next rows of a result that streams; False if there are none."""
        result = self._result
        if type(result) is not Streamed:
            self._check_has_rows()
            return False
        while (batch := result.next_batch()) is not None:
            if batch.num_rows:
                self._rows = loaded_rows(result.shape, batch)
                self._at = 0
                return True
        self._rows = []
        self._at = 0
        return False


def _batches(result: Streamed) -> "Iterator[pa.RecordBatch]":
    while (batch := result.next_batch()) is not None:
        yield batch
