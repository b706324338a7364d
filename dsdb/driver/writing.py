"""Writes a result to a file as its rows come: csv, parquet, arrow, jsonl.

Invariants:
- A file is there whole or not at all: a local one is written under another name first, elsewhere what was begun is removed on failure.
- Memory is bounded by a row group of Parquet, whatever the size of the result.
- NULL and the empty text are told apart: in csv the empty text is quoted, as PostgreSQL does.
"""

import contextlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from dsdb.driver.files import FileOptions, Location, unreachable
from dsdb.protocol.messages import Column
from dsdb.sql.types import TypeName

if TYPE_CHECKING:
    import pyarrow as pa

_GROUP_ROWS = 131_072
_GROUP_BYTES = 64 << 20
_PARTIAL = ".partial"


class Sink(Protocol):
    """Where bytes go."""

    def write(self, data: Any) -> Any:
        """Take bytes."""


class RowWriter(Protocol):
    """Writes rows in a format."""

    def write(self, batch: "pa.RecordBatch") -> None:
        """Write rows."""

    def finish(self) -> None:
        """Write what stands at the end."""


@contextlib.contextmanager
def created(file: Location) -> Iterator[Sink]:
    """Create a file that is there when the block ends, and was never there if it fails.  Raises OperationalError."""
    is_local = type(file.system).__name__ == "LocalFileSystem"
    part = Location(file.system, file.path + _PARTIAL, file.name) if is_local else file
    out = part.create()
    try:
        yield out
        out.close()
        if is_local:
            file.system.move(part.path, file.path)
    except BaseException as error:
        with contextlib.suppress(OSError, ValueError):
            out.close()
        with contextlib.suppress(OSError):
            file.system.delete_file(part.path)
        if isinstance(error, OSError):
            raise unreachable(file.name, error) from None
        raise


def _spelled(intervals: "pa.Array") -> "pa.Array":
    import pyarrow as pa  # noqa: PLC0415, RUF100

    from dsdb.sql.text import format_text  # noqa: PLC0415, RUF100
    from dsdb.sql.types import INTERVAL  # noqa: PLC0415, RUF100
    from dsdb.storage.datum import Kind  # noqa: PLC0415, RUF100
    from dsdb.storage.rowarrow import array_to_datums  # noqa: PLC0415, RUF100

    datums = array_to_datums(Kind.INTERVAL, intervals)
    return pa.array([None if value is None else format_text(value, INTERVAL) for value in datums], pa.string())


def writer_of(out: Sink, options: FileOptions, columns: Sequence[Column], schema: "pa.Schema") -> RowWriter:
    """Give the writer of a format."""
    match options.format:
        case "csv":
            return CsvWriter(out, options, columns)
        case "jsonl":
            return JsonLinesWriter(out, columns)
        case "parquet":
            return ParquetFileWriter(out, schema)
        case _:
            return ArrowWriter(out, schema)


class _TextWriter:
    def __init__(self, out: Sink, columns: Sequence[Column]) -> None:
        from dsdb.sql.execute.result import ResultColumn  # noqa: PLC0415, RUF100

        self._out = out
        self._columns = [ResultColumn(column.name, column.type) for column in columns]

    def write(self, batch: "pa.RecordBatch") -> None:
        """Write rows."""
        from dsdb.sql.execute.result import rows_of_batch  # noqa: PLC0415, RUF100

        lines = [self._line(row) for row in rows_of_batch(batch, self._columns)]
        if lines:
            self._out.write("".join(lines).encode())

    def _line(self, row: tuple[Any, ...]) -> str:
        raise NotImplementedError

    def finish(self) -> None:
        """Do nothing: every line is whole."""


class CsvWriter(_TextWriter):
    """csv, with or without a header."""

    def __init__(self, out: Sink, options: FileOptions, columns: Sequence[Column]) -> None:
        super().__init__(out, columns)
        self._options = options
        special = re.escape(options.delimiter + options.quote) + "\r\n"
        self._has_special = re.compile(f"[{special}]").search
        if options.header:
            out.write((options.delimiter.join(self._quoted(column.name) for column in columns) + "\n").encode())

    def _line(self, row: tuple[Any, ...]) -> str:
        from dsdb.sql.text import format_text  # noqa: PLC0415, RUF100

        null = self._options.null
        fields = [null if v is None else self._quoted(format_text(v, c.type)) for v, c in zip(row, self._columns)]
        # A line of one empty field would be an empty line.
        return self._options.delimiter.join(fields) + "\n"

    def _quoted(self, text: str) -> str:
        quote = self._options.quote
        if text and text != self._options.null and not self._has_special(text):
            return text
        return f"{quote}{text.replace(quote, quote * 2)}{quote}"


class JsonLinesWriter(_TextWriter):
    """An object a line: numbers and booleans as such, everything else as SQL spells it."""

    def __init__(self, out: Sink, columns: Sequence[Column]) -> None:
        super().__init__(out, columns)
        self._names = [json.dumps(column.name, ensure_ascii=False) for column in columns]

    def _line(self, row: tuple[Any, ...]) -> str:
        fields = [f"{name}: {_json(v, c.type)}" for name, v, c in zip(self._names, row, self._columns)]
        return "{" + ", ".join(fields) + "}\n"


def _json(value: Any, sql_type: Any) -> str:
    from dsdb.sql.text import format_text  # noqa: PLC0415, RUF100

    if value is None:
        return "null"
    if sql_type.name is TypeName.BOOL:
        return "true" if value else "false"
    text: str = format_text(value, sql_type)
    if sql_type.is_numeric and not (isinstance(value, float) and not math.isfinite(value)) and text != "NaN":
        return text
    return json.dumps(text, ensure_ascii=False)


class ArrowWriter:
    """An Arrow IPC stream."""

    def __init__(self, out: Sink, schema: "pa.Schema") -> None:
        import pyarrow as pa  # noqa: PLC0415, RUF100

        self._writer = pa.ipc.new_stream(out, schema)

    def write(self, batch: "pa.RecordBatch") -> None:
        """Write rows."""
        self._writer.write_batch(batch)

    def finish(self) -> None:
        """Write the end of the stream."""
        self._writer.close()


class ParquetFileWriter:
    """A Parquet file of large row groups.  It has no intervals: they are text there, as SQL spells them."""

    def __init__(self, out: Sink, schema: "pa.Schema") -> None:
        import pyarrow as pa  # noqa: PLC0415, RUF100
        import pyarrow.parquet as pq  # noqa: PLC0415, RUF100

        self._intervals = [at for at, field in enumerate(schema) if field.type == pa.month_day_nano_interval()]
        for at in self._intervals:
            schema = schema.set(at, schema.field(at).with_type(pa.string()))
        self._schema = schema
        self._writer = pq.ParquetWriter(out, schema, compression="zstd")
        self._waiting: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def write(self, batch: "pa.RecordBatch") -> None:
        """Write rows, when there are enough of them for a group."""
        if self._intervals:
            arrays = [_spelled(array) if at in self._intervals else array for at, array in enumerate(batch.columns)]
            batch = type(batch).from_arrays(arrays, schema=self._schema)
        self._waiting.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        import pyarrow as pa  # noqa: PLC0415, RUF100

        if self._waiting:
            self._writer.write_table(pa.Table.from_batches(self._waiting), row_group_size=_GROUP_ROWS)
            self._waiting, self._rows, self._bytes = [], 0, 0

    def finish(self) -> None:
        """Write the rest, and the footer."""
        self._write_group()
        self._writer.close()
