"""A dump: the schema and the rows of a database's tables as of one moment, as files that can be loaded again.

    DIR/schema.sql          CREATE SEQUENCE, CREATE TABLE: for people, and for other databases
    DIR/1.parquet …         the rows of each table
    DIR/manifest.json       what is there, and how many rows; written last

Invariants:
- All tables are read by one read-only transaction: whatever is written meanwhile is in the dump wholly or not at all.
- Without a manifest it is no dump: one that broke off is not taken for a small one.
- Loading is one transaction: all tables and rows of the manifest are there after it, or none.
- Sequences of columns go on behind the highest value that was dumped.

Not dumped: sequences that no column takes its default from, settings, splits and placement.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from dsdb.cli.row_bar import counted
from dsdb.driver.copying import copy_in, copy_out
from dsdb.driver.errors import DataError, OperationalError, ProgrammingError
from dsdb.driver.files import Location, located, options_of
from dsdb.driver.ingest import quoted

if TYPE_CHECKING:
    from dsdb.driver.connection import Connection

MANIFEST = "manifest.json"
SCHEMA = "schema.sql"
FORMAT_VERSION = 1
_NEXTVAL = re.compile(r"nextval\('(.*)'\)")


class DumpedSequence(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence that a column takes its values from.  is_own: made with the table."""

    column: str
    name: str
    is_own: bool


class DumpedTable(msgspec.Struct, frozen=True, kw_only=True):
    """A table: its definition, and its rows in a file of the dump."""

    name: str
    create: str
    file: str
    rows: int
    sequences: tuple[DumpedSequence, ...] = ()


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What is in a dump."""

    version: int
    database: str
    format: str
    tables: tuple[DumpedTable, ...]


def dump(connection: "Connection", directory: str, file_format: str) -> Iterator[tuple[str, int]]:
    """Write a dump; give each table's name and rows as it is done.  Raises DatabaseError: then nothing was written."""
    if _exists(_inside(directory, MANIFEST)):
        raise ProgrammingError(f"{directory} holds a dump already", hint="Give another directory, or remove it.")
    _make(located(directory))
    options = options_of("dump", {"format": file_format})
    written: list[str] = []
    tables: list[DumpedTable] = []
    try:
        connection.execute("BEGIN READ ONLY")
        names = [str(name) for _, name in connection.execute("SHOW TABLES").fetchall()]
        for number, name in enumerate(sorted(names), start=1):
            file = f"{number}.{file_format}"
            written.append(file)
            [[_, create]] = connection.execute(f"SHOW CREATE TABLE {quoted(name)}").fetchall()
            with counted(f"Dumping {name}") as progress:
                rows = copy_out(connection, f"SELECT * FROM {quoted(name)}", _inside(directory, file), None, options, progress)
            sequences = _sequences(connection, name, create)
            tables.append(DumpedTable(name=name, create=create, file=file, rows=rows, sequences=sequences))
            yield name, rows
        connection.execute("COMMIT")
        written.append(SCHEMA)
        _write(_inside(directory, SCHEMA), _schema_text(tables).encode())
        manifest = Manifest(version=FORMAT_VERSION, database=connection.database, format=file_format, tables=tuple(tables))
        _write(_inside(directory, MANIFEST), json.dumps(msgspec.to_builtins(manifest), indent=1, ensure_ascii=False).encode())
    except BaseException:
        for file in written:
            with contextlib.suppress(OSError):
                where = _inside(directory, file)
                where.system.delete_file(where.path)
        raise


def load(connection: "Connection", directory: str) -> Iterator[tuple[str, int]]:
    """Load a dump; give each table's name and rows when all are there.  Raises DatabaseError: then nothing is there."""
    manifest = _read_manifest(directory)
    options = options_of("dump", {"format": manifest.format})
    loaded: list[tuple[str, int]] = []
    with connection.transaction():
        made: set[str] = set()
        for table in manifest.tables:
            for sequence in table.sequences:
                if not sequence.is_own and sequence.name not in made:
                    made.add(sequence.name)
                    connection.execute(f"CREATE SEQUENCE {quoted(sequence.name)}")
            connection.execute(table.create)
            with counted(f"Loading {table.name}") as progress:
                rows, _ = copy_in(connection, quoted(table.name), (), [_inside(directory, table.file)], options, progress=progress)
            if rows != table.rows:
                raise DataError(f"{table.file} of the dump has {rows} rows, and the manifest says {table.rows}", sqlstate="22000")
            _advance(connection, table)
            loaded.append((table.name, rows))
    yield from loaded


def _advance(connection: "Connection", table: DumpedTable) -> None:
    """Have sequences go on behind what was loaded."""
    for sequence in table.sequences:
        [[highest]] = connection.execute(f"SELECT max({quoted(sequence.column)}) FROM {quoted(table.name)}").fetchall()
        if highest is not None and highest > 0:
            name = quoted(sequence.name).replace("'", "''")
            connection.execute(f"SELECT setval('{name}', {int(highest)})")


def _read_manifest(directory: str) -> Manifest:
    where = _inside(directory, MANIFEST)
    if not _exists(where):
        raise OperationalError(f"{directory} holds no whole dump: there is no {MANIFEST}", sqlstate="58P01")
    with where.open() as file:
        try:
            manifest = msgspec.json.decode(file.read(), type=Manifest)
        except msgspec.DecodeError as error:
            raise DataError(f"{where.name} is no manifest of a dump: {error}", sqlstate="22000") from None
    if manifest.version != FORMAT_VERSION:
        raise DataError(f"{where.name} is of version {manifest.version}: version {FORMAT_VERSION} can be loaded", sqlstate="22000")
    return manifest


def _sequences(connection: "Connection", name: str, create: str) -> tuple[DumpedSequence, ...]:
    found = []
    for column, _, _, default, *_ in connection.execute(f"SHOW COLUMNS FROM {quoted(name)}").fetchall():
        match = _NEXTVAL.fullmatch(str(default or ""))
        if match is not None:
            found.append(DumpedSequence(column=column, name=match[1], is_own=str(default) not in create))
    return tuple(found)


def _schema_text(tables: list[DumpedTable]) -> str:
    sequences = sorted({sequence.name for table in tables for sequence in table.sequences if not sequence.is_own})
    statements = [f"CREATE SEQUENCE {quoted(name)}" for name in sequences] + [table.create for table in tables]
    return "".join(f"{statement};\n\n" for statement in statements)


def _inside(directory: str, file: str) -> Location:
    return located(f"{directory.rstrip('/')}/{file}")


def _exists(where: Location) -> bool:
    from pyarrow import fs  # noqa: PLC0415, RUF100

    found: Any = where.system.get_file_info(where.path)
    return found.type is not fs.FileType.NotFound


def _make(where: Location) -> None:
    try:
        where.system.create_dir(where.path, recursive=True)
    except OSError as error:
        raise OperationalError(f"{where.name}: {error}", sqlstate="58030") from None


def _write(where: Location, data: bytes) -> None:
    from dsdb.driver.writing import created  # noqa: PLC0415, RUF100

    with created(where) as out:
        out.write(data)
