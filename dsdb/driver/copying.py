"""COPY with files of the client: read or written here, never by a node.

    COPY t [(a, b)] FROM 'rows.csv' (FORMAT csv, HEADER)     read here ─▶ COPY t (a, b) FROM STDIN, the rows behind it
    COPY t FROM STDIN (FORMAT csv)                           the same, from what `cursor.copy` is given
    COPY t TO 'rows.parquet', COPY (SELECT …) TO STDOUT      SELECT ─▶ written here as it comes

Invariants:
- All rows of a FROM are there, or none; a bad one is named by file, line and column.
- As many rows are written as the node says that it gave; else the file is not there.
"""

import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any, Protocol

import msgspec

from dsdb.driver.errors import DataError, IntegrityError, NotSupportedError, OperationalError, ProgrammingError
from dsdb.driver.files import FileOptions, Location, files_of, located, options_of, reader_of
from dsdb.driver.giving import Given
from dsdb.driver.ingest import copy_text, quoted
from dsdb.driver.results import Answer, Inline, Streamed, inline_batch
from dsdb.driver.tables import TableSource
from dsdb.driver.text_rows import Rejects, TextSource, WantedColumn, check_names, csv_names, json_names
from dsdb.driver.writing import Sink, created, writer_of
from dsdb.sql.types import UNKNOWN

if TYPE_CHECKING:
    import pyarrow as pa

_NAME = r'(?:"(?:[^"]|"")+"|[^\W\d][\w$]*)'
_TABLE = rf"(?P<table>{_NAME}(?:\s*\.\s*{_NAME}){{0,2}})\s*(?:\((?P<columns>\s*{_NAME}(?:\s*,\s*{_NAME})*)\s*\))?"
_COPY = re.compile(
    rf"\s*copy\s+(?:{_TABLE}|\((?P<query>.*)\))\s*\b(?P<way>from|to)\s+(?:'(?P<file>(?:[^']|'')*)'|(?P<pipe>stdin|stdout)\b)"
    r"\s*(?:with\b)?\s*(?P<options>.*?)\s*;?\s*",
    re.IGNORECASE | re.DOTALL,
)
_OPTION = re.compile(r"\s*(\w+)\s*(?:(?:as\b|=)\s*)?(?:'((?:[^']|'')*)'|([^\s,()']+))?\s*(?:,|$)", re.IGNORECASE)
_ROW = re.compile(r"\bRow (\d+) of what was given")


class CopyText(msgspec.Struct, frozen=True, kw_only=True):
    """A COPY, read.  table: as it is spelled; query: instead of it; file: None for STDIN and STDOUT; options: in lower case."""

    table: str
    columns: tuple[str, ...]
    query: str
    is_from: bool
    file: str | None
    options: dict[str, str]


class Copying(Protocol):
    """The connection, as COPY sees it."""

    def run_statement(self, sql: str, parameters: Sequence[Any], given: Sequence[Given] = ()) -> Answer:
        """Run a statement."""

    def transaction(self) -> contextlib.AbstractContextManager[object]:
        """Give a block: a transaction, or a savepoint of the open one."""


def is_copy(sql: str) -> bool:
    """Say whether a text is a COPY."""
    return re.match(r"\s*copy\b", sql, re.IGNORECASE) is not None


def read_copy(sql: str) -> CopyText:
    """Read a COPY.  Raises ProgrammingError."""
    match = _COPY.fullmatch(sql)
    if match is None:
        raise ProgrammingError(
            "this COPY cannot be read",
            sqlstate="42601",
            hint="COPY t [(a, b)] FROM 'file' (FORMAT csv, HEADER), COPY t TO 'file', COPY (SELECT …) TO STDOUT (FORMAT csv)",
        )
    is_from = match["way"].lower() == "from"
    if match["pipe"] and (match["pipe"].lower() == "stdin") != is_from:
        raise ProgrammingError("COPY is FROM STDIN and TO STDOUT", sqlstate="42601")
    if match["query"] is not None and is_from:
        raise ProgrammingError("rows are copied FROM a file into a table, not a query", sqlstate="42601")
    columns = re.findall(_NAME, match["columns"] or "")
    return CopyText(
        table=match["table"] or "",
        columns=tuple(name[1:-1].replace('""', '"') if name[0] == '"' else name.lower() for name in columns),
        query=match["query"] or "",
        is_from=is_from,
        file=None if match["file"] is None else match["file"].replace("''", "'"),
        options=_options(match["options"]),
    )


def _options(text: str) -> dict[str, str]:
    """Read `(FORMAT csv, HEADER)`, or the older `CSV HEADER DELIMITER ';'`.  Raises ProgrammingError."""
    inside = text.strip()
    is_listed = inside.startswith("(") and inside.endswith(")")
    if is_listed:
        inside = inside[1:-1].strip()
    else:
        inside = re.sub(r"^\s*(csv|binary)\b", r"format \1", inside, flags=re.IGNORECASE)
        inside = re.sub(r"""\s+(?=(?:header|delimiter|null|quote)\b)""", ", ", inside, flags=re.IGNORECASE)
    found: dict[str, str] = {}
    at = 0
    while at < len(inside):
        match = _OPTION.match(inside, at)
        if match is None:
            raise ProgrammingError(f"the options of COPY cannot be read at {inside[at : at + 20]!r}", sqlstate="42601")
        name = match[1].lower()
        if name in found:
            raise ProgrammingError(f"the option {name.upper()} is there twice", sqlstate="42601")
        value = match[2].replace("''", "'") if match[2] is not None else match[3]
        if value is None and name != "header":
            raise ProgrammingError(f"the option {name.upper()} has no value", sqlstate="42601")
        found[name] = "true" if value is None else value.lower() if name == "format" else value
        at = match.end()
    return found


def run_copy(connection: Copying, sql: str, pipe: IO[bytes] | None, progress: Callable[[int], None] | None = None) -> int:
    """Run a COPY; give the number of rows.  pipe: what STDIN and STDOUT are.  Raises DatabaseError."""
    copy = read_copy(sql)
    name = copy.file if copy.file is not None else "STDIN" if copy.is_from else "STDOUT"
    given = {"format": "csv", **copy.options} if copy.file is None else dict(copy.options)
    reject_file, rejects_max = given.pop("reject", None), given.pop("reject_max", "1000")
    if given.get("format", "").lower() in ("text", "binary"):
        raise NotSupportedError(f"COPY does not know PostgreSQL's format {given['format']}", sqlstate="0A000", hint="Use csv.")
    options = options_of(name, {"header": "false", **given})
    if copy.file is None and pipe is None:
        raise ProgrammingError(f"COPY … {name} needs a file object", hint="cursor.copy(sql, file)")
    if not copy.is_from:
        select = copy.query or f"SELECT {', '.join(map(quoted, copy.columns)) or '*'} FROM {copy.table}"
        return copy_out(connection, select, located(copy.file) if copy.file is not None else None, pipe, options, progress)
    if copy.file is not None:
        return copy_in(connection, copy.table, copy.columns, files_of(copy.file), options, reject_file, int(rejects_max), progress)[0]
    assert pipe is not None
    with _spooled(pipe) as file:
        return copy_in(connection, copy.table, copy.columns, [file], options, reject_file, int(rejects_max), progress)[0]


@contextlib.contextmanager
def _spooled(pipe: IO[bytes]) -> Iterator[Location]:
    """Keep what comes by a pipe on disk: its lines are looked for when something is wrong."""
    with tempfile.NamedTemporaryFile(prefix="dsdb-copy-") as file:
        shutil.copyfileobj(pipe, file)
        file.flush()
        where = located(file.name)
        yield Location(where.system, where.path, "STDIN")


def copy_in(
    connection: Copying,
    table: str,
    columns: Sequence[str],
    files: Sequence[Location],
    options: FileOptions,
    reject_file: str | None = None,
    rejects_max: int = 1_000,
    progress: Callable[[int], None] | None = None,
) -> tuple[int, int]:
    """Put the rows of files into a table, all or none; give how many, and how many were rejected.  table: as SQL spells it."""
    known = _columns_of(connection, table)
    if reject_file is not None and options.format not in ("csv", "jsonl"):
        raise ProgrammingError("only rows of text files can be rejected", hint="A Parquet file is right or wrong.")
    rejects = None if reject_file is None else Rejects(located(reject_file), rows_max=rejects_max)
    try:
        source: TextSource | TypedSource
        if options.format in ("csv", "jsonl"):
            source = TextSource(files, options, _wanted(files, options, columns, known, table), rejects)
        else:
            source = TypedSource(files, options, columns, known, table)
        text = copy_text(table, [name for name, _ in source.columns], is_spelled=True)
        try:
            result = connection.run_statement(text, (), (Given(source, progress=progress),)).next_result()
        except (DataError, IntegrityError) as error:
            _add_place(error, source)
            raise
        assert result is not None, "a statement has a result"
        return result.row_count or 0, 0 if rejects is None else rejects.count
    finally:
        if rejects is not None:
            rejects.close()


def _add_place(error: DataError | IntegrityError, source: "TextSource | TypedSource") -> None:
    """Say where the row stands that the node did not take."""
    match = _ROW.search(error.detail or "")
    if match is None or not isinstance(source, TextSource):
        return
    place = source.place_of(int(match[1]))
    if place is not None:
        error.message = f"{place.file}, line {place.line}: {error.message}"


def _columns_of(connection: Copying, table: str) -> list[WantedColumn]:
    described = connection.run_statement(f"SELECT * FROM {table} LIMIT 0", ()).next_result()
    assert described is not None, "a query has a result"
    shown = connection.run_statement(f"SHOW COLUMNS FROM {table}", ()).next_result()
    assert isinstance(shown, Inline | Streamed)
    rows = shown.rows if isinstance(shown, Inline) else [row for batch in _batches(shown) for row in batch.to_pylist()]
    nullable = {(row["column_name"], row["is_nullable"]) if isinstance(row, dict) else (row[0], row[2]) for row in rows}
    return [WantedColumn(column.name, column.type, (column.name, True) in nullable) for column in described.shape.columns]


def _wanted(
    files: Sequence[Location], options: FileOptions, columns: Sequence[str], known: Sequence[WantedColumn], table: str
) -> list[WantedColumn]:
    """Give the columns that text files have, in their order.  Raises ProgrammingError."""
    first = files[0]
    if options.format == "jsonl":
        return check_names(columns or json_names(first) or [column.name for column in known], known, first.name, table)
    header = csv_names(first, options) if options.header else []
    names = columns or header or [column.name for column in known]
    wanted = check_names(names, known, first.name, table)
    for file in files if options.header else ():
        found = csv_names(file, options)
        if len(found) != len(wanted) or (not columns and [n.lower() for n in found] != [column.name.lower() for column in wanted]):
            raise DataError(f"{file.name}, line 1: the header is {', '.join(found)}, and not {', '.join(names)}", sqlstate="22P04")
    return wanted


class TypedSource(TableSource):
    """Rows of files that have types of their own; text in them is read as what its column is."""

    def __init__(
        self, files: Sequence[Location], options: FileOptions, columns: Sequence[str], known: Sequence[WantedColumn], table: str
    ) -> None:
        super().__init__(reader_of(files, options), what=files[0].name if len(files) == 1 else "the files")
        names = [name for name, _ in self.columns]
        wanted = check_names(columns or names, known, self.what, table)
        if len(wanted) != len(names):
            raise ProgrammingError(f"{self.what} has {len(names)} columns, and {len(wanted)} are named", sqlstate="42601")
        self.columns = tuple(
            (column.name, UNKNOWN if found.is_text and not column.type.is_text else found)
            for column, (_, found) in zip(wanted, self.columns)
        )


def copy_out(
    connection: Copying,
    select: str,
    file: Location | None,
    pipe: Sink | None,
    options: FileOptions,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write what a query gives to a file, or to a pipe; give the number of rows."""
    if file is None and options.format == "parquet":
        raise NotSupportedError("Parquet cannot be written to STDOUT", sqlstate="0A000", hint="Use a file, or Arrow.")
    result = connection.run_statement(select, ()).next_result()
    if result is None or not result.shape.columns:
        raise ProgrammingError("COPY … TO takes a query that gives rows", sqlstate="42601")
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(created(file)) if file is not None else pipe
        assert out is not None
        schema = result.schema if isinstance(result, Streamed) else inline_batch(result).schema
        writer = writer_of(out, options, result.shape.columns, schema)
        rows = 0
        for batch in _batches(result):
            writer.write(batch)
            rows += batch.num_rows
            if progress is not None:
                progress(rows)
        writer.finish()
        if result.row_count is not None and rows != result.row_count:
            raise OperationalError(f"{rows} rows came of the {result.row_count} that were sent", sqlstate="58030")
    return rows


def _batches(result: Inline | Streamed) -> "Iterator[pa.RecordBatch]":
    if isinstance(result, Inline):
        yield inline_batch(result)
        return
    while (batch := result.next_batch()) is not None:
        yield batch
