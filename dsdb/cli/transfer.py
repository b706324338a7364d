"""`dsdb import`, `dsdb export`, `dsdb dump`: rows between a cluster and files, local or by any URL that pyarrow knows.

import TABLE FILE…     all rows of the files, or none
import --dump DIR      what `dump` wrote, into a database that has none of its tables
export TABLE FILE      a table, or --query
dump DIR               the schema and all tables, as of one moment
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from dsdb.cli.certs_option import certs_dir_option
from dsdb.cli.shell import DEFAULT_URL

if TYPE_CHECKING:
    from dsdb.driver.connection import Connection

_url_option = click.option("--url", default=DEFAULT_URL, show_default=True, help="Of a cluster, or the directory of an embedded node.")
_FORMATS = ("csv", "parquet", "arrow", "jsonl")
_format_option = click.option("--format", "file_format", type=click.Choice(_FORMATS), help="By itself, what the file's name says.")
_csv_options = (
    click.option("--no-header", is_flag=True, help="csv: the first line is a row already."),
    click.option("--delimiter", help="csv: between fields; by itself a comma, in .tsv a tab."),
    click.option("--null", "null", default="", help="csv: what an unquoted field says for NULL; by itself nothing."),
)


@contextlib.contextmanager
def _connected(url: str) -> "Iterator[Connection]":
    """Open a session; errors end the process with a sentence: 1 if it was refused, 2 if the cluster could not be reached."""
    import dsdb  # noqa: PLC0415, RUF100
    from dsdb.cli.asking import EXIT_INTERRUPTED, EXIT_NO_ANSWER, EXIT_REFUSED  # noqa: PLC0415, RUF100
    from dsdb.cli.shell_text import describe_error  # noqa: PLC0415, RUF100

    try:
        with dsdb.connect(url, autocommit=True) as connection:
            yield connection
    except KeyboardInterrupt:
        click.echo("\nInterrupted. Nothing was written.", err=True)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except dsdb.Error as error:
        click.echo(describe_error(error, ""), err=True)
        raise SystemExit(EXIT_NO_ANSWER if error.sqlstate is not None and error.sqlstate.startswith("08") else EXIT_REFUSED) from None


def _given(file_format: str | None, no_header: bool, delimiter: str | None, null: str) -> dict[str, str]:
    given = {"header": "false" if no_header else "true", "null": null}
    if file_format is not None:
        given["format"] = file_format
    if delimiter is not None:
        given["delimiter"] = delimiter
    return given


def _with_csv_options(command: click.decorators.FC) -> click.decorators.FC:
    for option in reversed(_csv_options):
        command = option(command)
    return command


@click.command("import")
@click.argument("table", required=False)
@click.argument("files", nargs=-1)
@_format_option
@_with_csv_options
@click.option("--columns", help="The table's columns as they come: a,b,c. By itself those that the files name, else all.")
@click.option("--create", is_flag=True, help="Make the table, of the types that the files have, or seem to have.")
@click.option("--primary-key", help="With --create: its columns, a,b.")
@click.option("--reject-file", help="Bad rows of csv and jsonl go here (file, line, column, reason, text), the others in.")
@click.option("--reject-max", default=1_000, show_default=True, help="With more bad rows nothing is imported.")
@click.option("--dump", "directory", help="Load what `dsdb dump` has written, instead of files.")
@_url_option
@certs_dir_option
def import_command(
    table: str | None,
    files: tuple[str, ...],
    file_format: str | None,
    no_header: bool,
    delimiter: str | None,
    null: str,
    columns: str | None,
    create: bool,
    primary_key: str | None,
    reject_file: str | None,
    reject_max: int,
    directory: str | None,
    url: str,
) -> None:
    """Put rows of files into TABLE: all of them, or none.

    FILES are paths, directories, patterns ('part-*.parquet') or URLs (s3://, gs://, hdfs://): csv, Parquet, Arrow, JSON lines.
    """
    if (directory is None) == (table is None) or (table is not None and not files):
        raise click.UsageError("give a TABLE and FILES, or --dump DIRECTORY")
    if primary_key is not None and not create:
        raise click.UsageError("--primary-key is for --create: a table that is there has its primary key")
    if create and (columns or reject_file):
        raise click.UsageError("--create takes all columns and rows as the files have them: no --columns, no --reject-file")
    with _connected(url) as connection:
        if directory is not None:
            from dsdb.cli.dumping import load  # noqa: PLC0415, RUF100

            for name, rows in load(connection, directory):
                click.echo(f"{name}: {rows} rows")
            return
        assert table is not None
        given = _given(file_format, no_header, delimiter, null)
        if create:
            _create(connection, table, files, given, primary_key)
        else:
            _append(connection, table, files, given, columns, reject_file, reject_max)


def _create(connection: "Connection", table: str, files: tuple[str, ...], given: dict[str, str], primary_key: str | None) -> None:
    from dsdb.cli.row_bar import counted  # noqa: PLC0415, RUF100
    from dsdb.driver.files import files_of, options_of, reader_of  # noqa: PLC0415, RUF100
    from dsdb.driver.ingest import ingest  # noqa: PLC0415, RUF100

    found = [location for name in files for location in files_of(name)]
    key = tuple(primary_key.split(",")) if primary_key else ()
    with counted(f"Importing {table}") as progress:
        reader = reader_of(found, options_of(found[0].name, given))
        rows = ingest(connection, table, reader, "create", primary_key=key, progress=progress)
    click.echo(f"{table}: {rows} rows imported")


def _append(
    connection: "Connection",
    table: str,
    files: tuple[str, ...],
    given: dict[str, str],
    columns: str | None,
    reject_file: str | None,
    reject_max: int,
) -> None:
    from dsdb.cli.row_bar import counted  # noqa: PLC0415, RUF100
    from dsdb.driver.copying import copy_in  # noqa: PLC0415, RUF100
    from dsdb.driver.files import files_of, options_of  # noqa: PLC0415, RUF100
    from dsdb.driver.ingest import quoted  # noqa: PLC0415, RUF100

    found = [location for name in files for location in files_of(name)]
    names = tuple(columns.split(",")) if columns else ()
    with counted(f"Importing {table}") as progress:
        options = options_of(found[0].name, given)
        rows, rejected = copy_in(connection, quoted(table), names, found, options, reject_file, reject_max, progress)
    click.echo(f"{table}: {rows} rows imported" + (f", {rejected} rejected to {reject_file}" if reject_file is not None else ""))


@click.command("export")
@click.argument("names", nargs=-1, required=True, metavar="[TABLE] FILE")
@_format_option
@_with_csv_options
@click.option("--query", help="Export what this gives, instead of a table.")
@_url_option
@certs_dir_option
def export_command(
    names: tuple[str, ...], file_format: str | None, no_header: bool, delimiter: str | None, null: str, query: str | None, url: str
) -> None:
    """Write TABLE, or what --query gives, to FILE: csv, Parquet, Arrow, JSON lines; it is there whole, or not at all.

    FILE is a path or a URL (s3://, gs://, hdfs://). Rows are written as they come, in bounded memory.
    """
    if len(names) != (1 if query is not None else 2):
        raise click.UsageError("give TABLE and FILE, or FILE and --query")
    from dsdb.cli.row_bar import counted  # noqa: PLC0415, RUF100
    from dsdb.driver.copying import copy_out  # noqa: PLC0415, RUF100
    from dsdb.driver.files import located, options_of  # noqa: PLC0415, RUF100
    from dsdb.driver.ingest import quoted  # noqa: PLC0415, RUF100

    file = names[-1]
    with _connected(url) as connection:
        options = options_of(file, _given(file_format, no_header, delimiter, null))
        select = query if query is not None else f"SELECT * FROM {quoted(names[0])}"
        with counted(f"Exporting to {file}") as progress:
            rows = copy_out(connection, select, located(file), None, options, progress)
    click.echo(f"{file}: {rows} rows exported")


@click.command("dump")
@click.argument("directory")
@click.option("--format", "file_format", type=click.Choice(_FORMATS), default="parquet", show_default=True, help="Of the tables' files.")
@_url_option
@certs_dir_option
def dump_command(directory: str, file_format: str, url: str) -> None:
    """Write the schema and the rows of all tables of a database to DIRECTORY, as of one moment.

    DIRECTORY, a path or a URL, must not hold a dump already. `dsdb import --dump DIRECTORY` loads it.
    """
    from dsdb.cli.dumping import dump  # noqa: PLC0415, RUF100

    with _connected(url) as connection:
        for name, rows in dump(connection, directory, file_format):
            click.echo(f"{name}: {rows} rows")
