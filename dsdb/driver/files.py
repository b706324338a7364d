"""Files of rows at the client's side: where they are, what they are, and their rows as Arrow; a node never opens one.

    path, directory, glob (`part-*.parquet`), or a URL of a file system that pyarrow knows (s3://, gs://, hdfs://, file://)

    csv      pyarrow's reader, types inferred; for a table whose columns are known see `text_rows`
    parquet  several files are one set, read while it is sent
    arrow    IPC files and streams
    jsonl    an object a line

Invariants:
- A file is read from its begin to its end, in pieces; several files in the order of their names.
"""

import fnmatch
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from dsdb.driver.errors import DataError, NotSupportedError, OperationalError, ProgrammingError

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = ("csv", "parquet", "arrow", "jsonl")
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".arrows": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
_CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
_IS_URL = re.compile(r"[a-z][a-z0-9+]*://", re.IGNORECASE)
_BLOCK_BYTES = 1 << 20


class FileOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a file is to be read or written; of csv but for the format.  null: what an unquoted field says for NULL."""

    format: str
    header: bool = True
    delimiter: str = ","
    null: str = ""
    quote: str = '"'


class Location(msgspec.Struct, frozen=True):
    """A file: its file system, its path there, and what the user calls it."""

    system: Any
    path: str
    name: str

    def open(self) -> "pa.NativeFile":
        """Open it for reading; what its name says is compressed is expanded.  Raises OperationalError."""
        try:
            return self.system.open_input_stream(self.path)
        except OSError as error:
            raise unreachable(self.name, error) from None

    def create(self) -> "pa.NativeFile":
        """Open it for writing, compressed if the name says so; what is there is replaced.  Raises OperationalError."""
        codec = next((codec for suffix, codec in _CODECS.items() if self.name.lower().endswith(suffix)), None)
        try:
            return self.system.open_output_stream(self.path, compression=codec)
        except OSError as error:
            raise unreachable(self.name, error) from None


def unreachable(name: str, error: Exception) -> OperationalError:
    """Say that a file cannot be read or written."""
    return OperationalError(f"{name}: {error}", sqlstate="58030")


def format_of(name: str) -> str | None:
    """Give the format that a file's name tells, None if it tells none."""
    plain = name.lower()
    for suffix in _CODECS:
        plain = plain.removesuffix(suffix)
    return next((found for suffix, found in _SUFFIXES.items() if plain.endswith(suffix)), None)


def located(name: str) -> Location:
    """Find out where a file is, whether or not it is there.  Raises OperationalError, NotSupportedError."""
    import pyarrow as pa  # noqa: PLC0415, RUF100
    from pyarrow import fs  # noqa: PLC0415, RUF100

    try:
        if _IS_URL.match(name):
            system, path = fs.FileSystem.from_uri(name)
        else:
            system, path = fs.LocalFileSystem(), name
    except (pa.ArrowException, NotImplementedError) as error:
        raise NotSupportedError(f"{name}: {error}", sqlstate="0A000") from None
    except OSError as error:
        raise unreachable(name, error) from None
    return Location(system, path, name)


def files_of(name: str) -> list[Location]:
    """Give the files that a name means: itself, those of a directory, or those that fit a pattern.  Raises OperationalError."""
    from pyarrow import fs  # noqa: PLC0415, RUF100

    where = located(name)
    try:
        if any(sign in where.path for sign in "*?["):
            parent = re.split(r"[*?\[]", where.path)[0].rpartition("/")[0]
            infos = where.system.get_file_info(fs.FileSelector(parent or ".", recursive=True))
            paths = [info.path for info in infos if info.type is fs.FileType.File and _fits(info.path, where.path)]
        else:
            info = where.system.get_file_info(where.path)
            if info.type is not fs.FileType.Directory:
                return [where]
            infos = where.system.get_file_info(fs.FileSelector(where.path, recursive=True))
            paths = [found.path for found in infos if found.type is fs.FileType.File and not found.base_name.startswith((".", "_"))]
    except OSError as error:
        raise unreachable(name, error) from None
    if not paths:
        raise OperationalError(f"{name}: there are no files", sqlstate="58P01")
    prefix = name[: len(name) - len(where.path)] if name.endswith(where.path) else ""
    return [Location(where.system, path, prefix + path) for path in sorted(paths)]


def _fits(path: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, "./" + pattern)


def options_of(name: str, given: dict[str, str]) -> FileOptions:
    """Give a file's options: as they are given, else as its name tells.  Raises ProgrammingError."""
    known = dict(given)
    found = known.pop("format", "").lower() or format_of(name)
    if found in ("json", "ndjson"):
        found = "jsonl"
    if found not in FORMATS:
        raise ProgrammingError(
            f"the format of {name} is {'not known' if found is None else found}", hint=f"Give FORMAT: {', '.join(FORMATS)}."
        )
    header = known.pop("header", "true").lower()
    if header not in ("true", "on", "1", "false", "off", "0"):
        raise ProgrammingError(f"HEADER is {header!r}", hint="It is true or false.")
    delimiter = known.pop("delimiter", "\t" if ".tsv" in name.lower() else ",")
    delimiter = {"\\t": "\t", "tab": "\t"}.get(delimiter, delimiter)
    quote = known.pop("quote", '"')
    if len(delimiter) != 1 or len(quote) != 1 or delimiter == quote or "\n" in (delimiter, quote):
        raise ProgrammingError("DELIMITER and QUOTE are one character each, different ones")
    options = FileOptions(
        format=found, header=header in ("true", "on", "1"), delimiter=delimiter, null=known.pop("null", ""), quote=quote
    )
    if known:
        raise ProgrammingError(f"there is no option {min(known).upper()}", hint="There are FORMAT, HEADER, DELIMITER, NULL and QUOTE.")
    return options


def reader_of(files: Sequence[Location], options: FileOptions, *, columns: Sequence[str] | None = None) -> "pa.RecordBatchReader":
    """Read files as one table, of the types that they have, or seem to have.  columns: those wanted.  Raises DatabaseError."""
    import pyarrow as pa  # noqa: PLC0415, RUF100

    batches = _batches(files, options, columns)
    first = next(batches)
    assert isinstance(first, pa.Schema)
    return pa.RecordBatchReader.from_batches(first, batches)


def _batches(files: Sequence[Location], options: FileOptions, columns: Sequence[str] | None) -> "Iterator[Any]":
    """Give the schema, then the batches."""
    import pyarrow as pa  # noqa: PLC0415, RUF100

    schema: pa.Schema | None = None
    for file in files:
        try:
            reader = _reader(file, options)
            wanted = reader.schema.names if columns is None else [n for n in reader.schema.names if n.lower() in columns]
            wanted = wanted or reader.schema.names[:1]
            found = pa.schema([reader.schema.field(name) for name in wanted])
            if schema is None:
                schema = found
                yield schema
            elif found.names != schema.names:
                raise DataError(f"{file.name} has columns {', '.join(found.names)}, the file before it {', '.join(schema.names)}")
            for batch in reader:
                part = batch.select(wanted)
                yield part if part.schema.equals(schema) else part.cast(schema)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file.name} cannot be read as {options.format}: {error}", sqlstate="22000") from None


def _reader(file: Location, options: FileOptions) -> "pa.RecordBatchReader":
    import pyarrow as pa  # noqa: PLC0415, RUF100

    if options.format == "parquet":
        import pyarrow.parquet as pq  # noqa: PLC0415, RUF100

        parquet = pq.ParquetFile(file.system.open_input_file(file.path))
        return pa.RecordBatchReader.from_batches(parquet.schema_arrow, parquet.iter_batches())
    if options.format == "arrow":
        source = file.system.open_input_file(file.path)
        if source.read(6) == b"ARROW1":
            whole = pa.ipc.open_file(source)
            return pa.RecordBatchReader.from_batches(whole.schema, (whole.get_batch(at) for at in range(whole.num_record_batches)))
        return pa.ipc.open_stream(file.open())
    if options.format == "jsonl":
        from pyarrow import json  # noqa: PLC0415, RUF100

        return json.open_json(file.open())
    from pyarrow import csv  # noqa: PLC0415, RUF100

    return csv.open_csv(
        file.open(),
        read_options=csv.ReadOptions(block_size=_BLOCK_BYTES, autogenerate_column_names=not options.header),
        parse_options=csv.ParseOptions(delimiter=options.delimiter, quote_char=options.quote, newlines_in_values=True),
        convert_options=csv.ConvertOptions(null_values=[options.null], strings_can_be_null=True, quoted_strings_can_be_null=False),
    )
