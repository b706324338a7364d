"""How `dsdb sql` writes results: tables for people, csv, json and markdown for pipes, Arrow and Parquet for programs.

Rows come in chunks and are written as they come: no format holds more than a chunk, so a result of any size passes in bounded memory.
Text formats spell values as Postgres does; json gives numbers and booleans as such, everything else as that text.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, Protocol

from dsdb.protocol.messages import Column
from dsdb.sql.text import format_text
from dsdb.sql.types import TypeName

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("table", "csv", "json", "arrow", "parquet", "markdown")
TABLE_ROWS = 1_000
"""Rows of one page of a table: its column widths are theirs."""


class Chunks(Protocol):
    """A result as the formats see it."""

    @property
    def columns(self) -> Sequence[Column]:
        """Its columns."""

    def rows(self) -> Iterator[list[tuple[Any, ...]]]:
        """Its rows, as datums, in chunks."""

    def batches(self) -> Iterator["pa.RecordBatch"]:
        """Its rows as record batches."""


class FormatError(Exception):
    """A result that a format cannot hold."""


def write_table(result: Chunks, out: IO[str], *, is_terminal: bool) -> int:
    """Write a table for people: pages of aligned columns.  Gives the rows written."""
    total = 0
    for page in _pages(result.rows()):
        total += len(page)
        texts = [_texts(row, result.columns, null="") for row in page]
        if is_terminal:
            _write_rich(result.columns, texts, out)
        else:
            _write_aligned(result.columns, texts, out)
    if not total:
        (_write_rich if is_terminal else _write_aligned)(result.columns, [], out)
    out.write(f"({total} row{'' if total == 1 else 's'})\n\n")
    return total


def write_expanded(result: Chunks, out: IO[str]) -> int:
    """Write each row as a list of its columns."""
    width = max((len(column.name) for column in result.columns), default=0)
    total = 0
    for chunk in result.rows():
        for row in chunk:
            total += 1
            out.write(f"-[ RECORD {total} ]\n")
            for column, text in zip(result.columns, _texts(row, result.columns, null="")):
                out.write(f"{column.name:<{width}} | {text}\n")
    out.write(f"({total} row{'' if total == 1 else 's'})\n\n")
    return total


def write_csv(result: Chunks, out: IO[str]) -> int:
    """Write CSV with a header; NULL is an empty field."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.name for column in result.columns])
    total = 0
    for chunk in result.rows():
        total += len(chunk)
        writer.writerows(_texts(row, result.columns, null="") for row in chunk)
    return total


def write_json(result: Chunks, out: IO[str]) -> int:
    """Write an array of objects, one a line."""
    names = [json.dumps(column.name, ensure_ascii=False) for column in result.columns]
    total = 0
    out.write("[")
    for chunk in result.rows():
        for row in chunk:
            out.write("\n" if not total else ",\n")
            total += 1
            fields = [f"{name}: {_json(value, column)}" for name, value, column in zip(names, row, result.columns)]
            out.write("{" + ", ".join(fields) + "}")
    out.write("\n]\n" if total else "]\n")
    return total


def write_markdown(result: Chunks, out: IO[str]) -> int:
    """Write a Markdown table."""
    out.write(_markdown_row([column.name for column in result.columns]))
    out.write(_markdown_row(["---:" if column.type.is_numeric else "---" for column in result.columns]))
    total = 0
    for chunk in result.rows():
        total += len(chunk)
        for row in chunk:
            out.write(_markdown_row(_texts(row, result.columns, null="")))
    return total


def write_arrow(result: Chunks, out: IO[bytes], schema: "pa.Schema") -> int:
    """Write an Arrow IPC stream."""
    import pyarrow as pa  # noqa: PLC0415, RUF100

    total = 0
    with pa.ipc.new_stream(_Sink(out), schema) as writer:
        for batch in result.batches():
            writer.write_batch(batch)
            total += batch.num_rows
    return total


def write_parquet(result: Chunks, out: IO[bytes], schema: "pa.Schema") -> int:
    """Write a Parquet file.  Raises FormatError for columns of intervals, which Parquet has not."""
    import pyarrow as pa  # noqa: PLC0415, RUF100
    import pyarrow.parquet as pq  # noqa: PLC0415, RUF100

    for field in schema:
        if field.type == pa.month_day_nano_interval():
            raise FormatError(f'column "{field.name}" is an interval, which Parquet has not: cast it to text')
    total = 0
    with pq.ParquetWriter(_Sink(out), schema) as writer:
        for batch in result.batches():
            writer.write_batch(batch)
            total += batch.num_rows
    return total


TEXT_WRITERS = {"csv": write_csv, "json": write_json, "markdown": write_markdown}
BINARY_WRITERS = {"arrow": write_arrow, "parquet": write_parquet}


class _Sink(io.RawIOBase):
    """Counts what passes: pipes do not know their position, and Parquet asks for it."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._at = 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self._out.write(data)
        self._at += size
        return size

    def flush(self) -> None:
        self._out.flush()


def _pages(chunks: Iterable[list[tuple[Any, ...]]]) -> Iterator[list[tuple[Any, ...]]]:
    page: list[tuple[Any, ...]] = []
    for chunk in chunks:
        page += chunk
        while len(page) > TABLE_ROWS:
            yield page[:TABLE_ROWS]
            page = page[TABLE_ROWS:]
    if page:
        yield page


def _texts(row: tuple[Any, ...], columns: Sequence[Column], *, null: str) -> list[str]:
    return [null if value is None else format_text(value, column.type) for value, column in zip(row, columns)]


def _json(value: Any, column: Column) -> str:
    if value is None:
        return "null"
    if column.type.name is TypeName.BOOL:
        return "true" if value else "false"
    text = format_text(value, column.type)
    if column.type.is_numeric and not (isinstance(value, float) and not math.isfinite(value)) and text != "NaN":
        return text
    return json.dumps(text, ensure_ascii=False)


def _markdown_row(cells: Sequence[str]) -> str:
    escaped = [cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>") for cell in cells]
    return "| " + " | ".join(escaped) + " |\n"


def _write_aligned(columns: Sequence[Column], rows: Sequence[Sequence[str]], out: IO[str]) -> None:
    from rich.cells import cell_len  # noqa: PLC0415, RUF100

    lines = [[cell.split("\n") for cell in row] for row in rows]
    widths = [cell_len(column.name) for column in columns]
    for row in lines:
        for at, cell in enumerate(row):
            widths[at] = max(widths[at], *(cell_len(part) for part in cell))

    def padded(text: str, at: int) -> str:
        space = " " * (widths[at] - cell_len(text))
        return space + text if columns[at].type.is_numeric else text + space

    def centred(text: str, at: int) -> str:
        space = widths[at] - cell_len(text)
        return " " * (space // 2) + text + " " * (space - space // 2)

    out.write((" " + " | ".join(centred(column.name, at) for at, column in enumerate(columns))).rstrip() + "\n")
    out.write("-" + "-+-".join("-" * width for width in widths) + "-\n")
    for row in lines:
        for line in range(max((len(cell) for cell in row), default=1)):
            cells = [padded(cell[line] if line < len(cell) else "", at) for at, cell in enumerate(row)]
            out.write((" " + " | ".join(cells)).rstrip() + "\n")


def _write_rich(columns: Sequence[Column], rows: Sequence[Sequence[str]], out: IO[str]) -> None:
    from rich import box  # noqa: PLC0415, RUF100
    from rich.console import Console  # noqa: PLC0415, RUF100
    from rich.table import Table  # noqa: PLC0415, RUF100
    from rich.text import Text  # noqa: PLC0415, RUF100

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(Text(column.name), justify="right" if column.type.is_numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(file=out).print(table)
