"""Rows of text files (csv, jsonl) for a table whose columns are known: each field read as SQL reads a quoted literal.

    file ─▶ fields as text, in bulk ─▶ a column at a time: Arrow's cast where it means the same, else `parse_text` ─▶ batches
                                          └▶ bad fields ─▶ the place in the file ─▶ an error, or the reject file

Invariants:
- A bad row is named by file, line and column; or it is in the reject file and in no batch, never lost.
- Lines are looked for only when something is wrong: the file is then read once more, up to there.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

from dsdb.driver.errors import DataError, ProgrammingError
from dsdb.driver.files import FileOptions, Location, unreachable
from dsdb.sql.types import SqlType, TypeName

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK_BYTES = 1 << 20
_CHUNK_ROWS = 8_192
_FIELD_BYTES_MAX = 64 << 20


class WantedColumn(NamedTuple):
    """A column of the table that is written."""

    name: str
    type: SqlType
    nullable: bool


class BadRow(NamedTuple):
    """A row that cannot be one of the table.  line: where it begins; column: None if it has too few or too many."""

    file: str
    line: int
    column: str | None
    reason: str
    text: str

    def error(self) -> DataError:
        """Give the exception for it."""
        where = f"{self.file}, line {self.line}" + ("" if self.column is None else f', column "{self.column}"')
        return DataError(f"{where}: {self.reason}", sqlstate="22P04")


class Rejects:
    """Where bad rows go, if not into an error: a csv of file, line, column, reason and the row's text."""

    def __init__(self, file: Location, *, rows_max: int) -> None:
        self._out = io.TextIOWrapper(file.create(), encoding="utf-8", newline="")
        self._writer = csv.writer(self._out, lineterminator="\n")
        self._writer.writerow(BadRow._fields)
        self._rows_max = rows_max
        self.count = 0

    def put(self, bad: BadRow) -> None:
        """Write a row.  Raises DataError if there are too many."""
        if self.count == self._rows_max:
            raise DataError(f"more than {self._rows_max} rows are bad; the last is: {bad.error().args[0]}", sqlstate="22P04")
        self.count += 1
        self._writer.writerow(bad)

    def close(self) -> None:
        """Write what is left."""
        self._out.close()


class TextSource:
    """Rows of text files as a statement takes them (`dsdb.driver.giving.Source`)."""

    def __init__(
        self, files: Sequence[Location], options: FileOptions, columns: Sequence[WantedColumn], rejects: Rejects | None = None
    ) -> None:
        self.what = files[0].name if len(files) == 1 else "the files"
        self.rows_sent = 0
        self.columns = tuple((column.name, column.type) for column in columns)
        self._files = files
        self._options = options
        self._wanted = columns
        self._rejects = rejects
        # For `place_of`: rows given of each file that was begun.
        self._begins: list[tuple[int, Location]] = []

    @property
    def is_whole(self) -> bool:
        """Say no: places of rows are kept for the first time that they are read."""
        return False

    def pieces(self) -> "Iterator[pa.RecordBatch]":
        """Give the rows.  Raises DataError, OperationalError."""
        from dsdb.driver.tables import cut  # noqa: PLC0415, RUF100

        self.rows_sent = 0
        for file in self._files:
            self._begins.append((self.rows_sent, file))
            for batch in self._of_file(file):
                yield from cut(batch)
                self.rows_sent += batch.num_rows

    def place_of(self, row: int) -> BadRow | None:
        """Give where a row that was sent, counted from 1, stands; None if some were left out, so that it cannot be told."""
        if self._rejects is not None and self._rejects.count:
            return None
        begin, file = max((entry for entry in self._begins if entry[0] < row), key=lambda entry: entry[0])
        found = next((record for record in records_of(file, self._options, len(self._wanted)) if record.number == row - begin - 1), None)
        return None if found is None else BadRow(file.name, found.line, None, "", found.text)

    def _of_file(self, file: Location) -> "Iterator[pa.RecordBatch]":
        import pyarrow as pa  # noqa: PLC0415, RUF100

        first = 0
        bad_rows: dict[int, tuple[str, str]] = {}
        reading = _Csv(file, self._options, self.columns) if self._options.format == "csv" else _JsonLines(file, self.columns)
        for texts in reading.chunks():
            count = len(texts[0])
            bad: dict[int, tuple[str, str]] = {}
            arrays = []
            for column, array in zip(self._wanted, texts):
                converted, found = in_type(array, column)
                arrays.append(converted)
                for at, reason in found:
                    bad.setdefault(first + at, (column.name, reason))
            if bad and self._rejects is None:
                self._locate(file, bad, width_faults=None)
            batch = pa.RecordBatch.from_arrays(arrays, [name for name, _ in self.columns])
            if bad:
                batch = batch.take(pa.array([at for at in range(count) if first + at not in bad], pa.int64()))
                bad_rows |= bad
            yield batch
            first += count
            if reading.width_faults and self._rejects is None:
                break
        if bad_rows or reading.width_faults:
            self._locate(file, bad_rows, width_faults=reading.width_faults)

    def _locate(self, file: Location, bad: dict[int, tuple[str, str]], *, width_faults: int | None) -> None:
        """Find the lines of bad rows, and reject them.  Raises DataError for the first if there is no reject file."""
        width, left = len(self._wanted), len(bad)
        last = max(bad, default=-1)
        for record in records_of(file, self._options, width):
            fault: tuple[str | None, str] | None = bad.get(record.number)
            if record.width != width and width_faults is not None:
                fault = (None, f"{record.width} fields where {width} are expected")
            if fault is not None:
                left -= 1
                row = BadRow(file.name, record.line, *fault, record.text)
                if self._rejects is None:
                    raise row.error()
                self._rejects.put(row)
            elif width_faults is None and record.number > last:
                return
        if left + (width_faults or 0):
            raise DataError(f"{file.name} has bad rows that were not found again: was it changed meanwhile?", sqlstate="22P04")


class Record(NamedTuple):
    """A row as it stands in a file.  number: among those of the right width, from 0, else −1; line: where it begins, from 1."""

    number: int
    line: int
    width: int
    text: str


def records_of(file: Location, options: FileOptions, width: int) -> Iterator[Record]:
    """Read a file record by record, as the reader in bulk counts them."""
    taken: list[str] = []

    def lines() -> Iterator[str]:
        for line in io.TextIOWrapper(file.open(), encoding="utf-8", errors="replace", newline=""):
            taken.append(line)
            yield line

    number, line = 0, 1
    if options.format == "jsonl":
        for text in lines():
            if text.strip():
                yield Record(number, line, width, text.rstrip("\r\n"))
                number += 1
            line += 1
        return
    csv.field_size_limit(_FIELD_BYTES_MAX)
    is_header = options.header
    for fields in csv.reader(lines(), delimiter=options.delimiter, quotechar=options.quote):
        text = "".join(taken)
        begin, line = line, line + len(taken)
        taken.clear()
        if is_header:
            is_header = False
        elif fields or width == 1:
            fits = len(fields) == width or (width == 1 and not fields)
            yield Record(number if fits else -1, begin, width if fits else len(fields), text.rstrip("\r\n"))
            number += fits


class _Csv:
    """Fields of a csv file.  width_faults: rows met so far that have too few or too many; they are in no chunk."""

    def __init__(self, file: Location, options: FileOptions, columns: Sequence[tuple[str, SqlType]]) -> None:
        self._file = file
        self._options = options
        self._names = [name for name, _ in columns]
        self.width_faults = 0

    def chunks(self) -> "Iterator[list[pa.Array]]":
        """Give the fields of the wanted columns, in their order.  Raises DataError."""
        import pyarrow as pa  # noqa: PLC0415, RUF100
        from pyarrow import csv as arrow_csv  # noqa: PLC0415, RUF100

        options = self._options

        def skip(row: Any) -> str:
            self.width_faults += 1
            return "skip"

        try:
            reader = arrow_csv.open_csv(
                self._file.open(),
                read_options=arrow_csv.ReadOptions(
                    use_threads=False, block_size=_BLOCK_BYTES, column_names=self._names, skip_rows_after_names=0, skip_rows=0
                ),
                parse_options=arrow_csv.ParseOptions(
                    delimiter=options.delimiter,
                    quote_char=options.quote,
                    newlines_in_values=True,
                    ignore_empty_lines=len(self._names) > 1,
                    invalid_row_handler=skip,
                ),
                convert_options=arrow_csv.ConvertOptions(
                    column_types=dict.fromkeys(self._names, pa.string()),
                    null_values=[options.null],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                    check_utf8=True,
                ),
            )
            is_header = options.header
            for batch in reader:
                rows = batch.slice(1) if is_header and batch.num_rows else batch
                is_header = is_header and not batch.num_rows
                yield [rows.column(name) for name in self._names]
        except pa.ArrowException as error:
            if "Empty CSV file" in str(error):
                return
            self._find_undecodable()
            raise DataError(f"{self._file.name}: {str(error).splitlines()[0]}", sqlstate="22P04") from None
        except OSError as error:
            raise unreachable(self._file.name, error) from None

    def _find_undecodable(self) -> None:
        for number, line in enumerate(io.BufferedReader(self._file.open()), start=1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise DataError(f"{self._file.name}, line {number}: no UTF-8 ({error.reason})", sqlstate="22021") from None


class _JsonLines:
    """Fields of a file of JSON objects, one a line; a key that a line lacks is NULL."""

    width_faults = 0

    def __init__(self, file: Location, columns: Sequence[tuple[str, SqlType]]) -> None:
        self._file = file
        self._names = [name for name, _ in columns]

    def chunks(self) -> "Iterator[list[pa.Array]]":
        """Give the fields of the wanted columns as text.  Raises DataError."""
        import pyarrow as pa  # noqa: PLC0415, RUF100

        rows: list[list[str | None]] = []
        for number, line in enumerate(io.BufferedReader(self._file.open()), start=1):
            if not line.strip():
                continue
            rows.append(self._row(line, number))
            if len(rows) == _CHUNK_ROWS:
                yield [pa.array(values, pa.string()) for values in zip(*rows)]
                rows = []
        if rows:
            yield [pa.array(values, pa.string()) for values in zip(*rows)]

    def _row(self, line: bytes, number: int) -> list[str | None]:
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        try:
            found = json.loads(line, parse_float=Decimal)
        except ValueError as error:
            raise BadRow(self._file.name, number, None, f"no JSON: {error}", text).error() from None
        if not isinstance(found, dict):
            raise BadRow(self._file.name, number, None, "no JSON object", text).error()
        unknown = found.keys() - set(self._names)
        if unknown:
            raise BadRow(self._file.name, number, min(unknown), "there is no such column", text).error()
        return [_json_text(found.get(name)) for name in self._names]


def _json_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict | list):
        return json.dumps(value, default=str)
    return str(value)


def json_names(file: Location) -> list[str]:
    """Give the keys of a file's first object.  Raises DataError."""
    for line in io.BufferedReader(file.open()):
        if line.strip():
            try:
                found = json.loads(line)
            except ValueError:
                found = None
            if not isinstance(found, dict):
                raise BadRow(file.name, 1, None, "no JSON object", "").error()
            return list(found)
    return []


def csv_names(file: Location, options: FileOptions) -> list[str]:
    """Give the names in a file's header."""
    lines = io.TextIOWrapper(file.open(), encoding="utf-8-sig", errors="replace", newline="")
    return next(csv.reader(lines, delimiter=options.delimiter, quotechar=options.quote), [])


def in_type(array: "pa.Array", column: WantedColumn) -> "tuple[pa.Array, list[tuple[int, str]]]":
    """Read text as values of a column; give them, with NULLs in the place of bad ones, and where and why these are bad."""
    from dsdb.sql.errors import SqlError  # noqa: PLC0415, RUF100
    from dsdb.sql.rows import layout_column  # noqa: PLC0415, RUF100
    from dsdb.sql.text import parse_text  # noqa: PLC0415, RUF100
    from dsdb.storage.errors import ValueRangeError  # noqa: PLC0415, RUF100
    from dsdb.storage.rowarrow import datums_to_arrow  # noqa: PLC0415, RUF100

    bad: list[tuple[int, str]] = []
    if not column.nullable and array.null_count:
        bad += [(at, "NULL in a column that is NOT NULL") for at, value in enumerate(array.to_pylist()) if value is None]
    found = _in_bulk(array, column.type)
    if found is not None:
        return found, bad
    layout = layout_column(0, column.type)
    values: list[Any] = []
    for at, text in enumerate(array.to_pylist()):
        value = None
        if text is not None:
            try:
                value = parse_text(text, column.type)
                datums_to_arrow(layout, [value])
            except (SqlError, ValueRangeError) as error:
                bad.append((at, error.message if isinstance(error, SqlError) else str(error)))
                value = None
        values.append(value)
    return datums_to_arrow(layout, values), bad


_PLAIN_CASTS = frozenset(
    {TypeName.SMALLINT, TypeName.INT, TypeName.BIGINT, TypeName.DOUBLE, TypeName.BOOL, TypeName.DATE, TypeName.TIMESTAMP}
    | {TypeName.TIMESTAMPTZ}
)


def _in_bulk(array: "pa.Array", sql_type: SqlType) -> "pa.Array | None":
    """Cast where Arrow reads what SQL reads; None if some field needs a closer look."""
    import pyarrow as pa  # noqa: PLC0415, RUF100
    import pyarrow.compute as pc  # noqa: PLC0415, RUF100

    from dsdb.sql.rows import layout_column  # noqa: PLC0415, RUF100
    from dsdb.storage.rowarrow import arrow_type  # noqa: PLC0415, RUF100

    wanted = arrow_type(layout_column(0, sql_type))
    if array.null_count == len(array):
        return pa.nulls(len(array), wanted)
    if sql_type.name in (TypeName.TEXT, TypeName.VARCHAR):
        is_long = sql_type.length is not None and pc.max(pc.utf8_length(array)).as_py() > sql_type.length
        return None if is_long or pc.any(pc.match_substring(array, "\0")).as_py() else array
    if sql_type.name not in _PLAIN_CASTS and (sql_type.name is not TypeName.DECIMAL or sql_type.precision is None):
        return None
    try:
        found = array.cast(wanted)
    except pa.ArrowException:
        return None
    # Arrow takes 0x10 for 16, and 1e400 for infinity.
    if sql_type.is_integer and pc.any(pc.match_substring_regex(array, "[xX]")).as_py():
        return None
    if sql_type.name is TypeName.DOUBLE and pc.any(pc.is_inf(found)).as_py():
        return None
    return found


def check_names(found: Sequence[str], known: Sequence[WantedColumn], file: str, table: str) -> list[WantedColumn]:
    """Give the columns that a file names, in its order.  Raises ProgrammingError."""
    by_name = {column.name: column for column in known}
    wanted = []
    for name in found:
        column = by_name.get(name) or by_name.get(name.lower())
        if column is None:
            raise ProgrammingError(
                f'{file} has a column "{name}", which table "{table}" does not have',
                sqlstate="42703",
                hint=f"The table has {', '.join(by_name)}. Say what comes: COPY {table} (a, b) …, dsdb import --columns a,b.",
            )
        if column in wanted:
            raise ProgrammingError(f'{file} has the column "{name}" twice', sqlstate="42701")
        wanted.append(column)
    return wanted
