"""What commands that look after a cluster have in common: a session, rows, tables, and errors as sentences."""

import csv
import json
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dsdb.cli.certs_option import certs_dir_option
from dsdb.cli.shell import DEFAULT_URL

if TYPE_CHECKING:
    from dsdb.driver.connection import Connection

CommandT = TypeVar("CommandT", bound=Callable[..., object])

EXIT_REFUSED, EXIT_NO_ANSWER, EXIT_INTERRUPTED = 1, 2, 130
FORMATS = ("table", "csv", "json")
TRIES = 40
"""Looks in vain, one after another, before a command gives up: nodes come back, and another one takes the session over."""


def check_url(_: click.Context, __: click.Parameter, url: str | None) -> str | None:
    """Refuse what would be an embedded node's directory: it would be made, and have a cluster of its own."""
    if url is not None and "://" not in url:
        raise click.BadParameter(f"{url!r} is no URL of a cluster: expected dsdb://HOST:PORT[,HOST:PORT …]")
    return url


def url_options(command: CommandT) -> CommandT:
    """Add --url and --certs-dir."""
    text = "dsdb://user@host:7432[,host:7432 …]: a node that stays."
    option = click.option("--url", default=DEFAULT_URL, show_default=True, callback=check_url, help=text)
    return option(certs_dir_option(command))


def format_option(command: CommandT) -> CommandT:
    """Add --format."""
    text = "For people, or for programs."
    return click.option("--format", "output_format", type=click.Choice(FORMATS), default="table", show_default=True, help=text)(command)


class Asking:
    """A session with the cluster; as a context manager it ends the process with a sentence when the cluster says no, or nothing.

    go_on: what to tell after Ctrl-C; it may be set while the command runs.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Connection | None = None
        self.go_on = "Nothing was changed."

    def __enter__(self) -> "Asking":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        from dsdb.cli.shell_text import describe_error  # noqa: PLC0415, RUF100
        from dsdb.driver.errors import Error, OperationalError  # noqa: PLC0415, RUF100

        if isinstance(error, KeyboardInterrupt):
            click.echo(f"\nInterrupted. {self.go_on}", err=True)
            sys.exit(EXIT_INTERRUPTED)
        if isinstance(error, Error):
            click.echo(describe_error(error, ""), err=True)
            sys.exit(EXIT_NO_ANSWER if isinstance(error, OperationalError) else EXIT_REFUSED)
        if self._connection is not None:
            self._connection.close()

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a statement and give its rows, none if it has none.  Raises the driver's errors."""
        import dsdb  # noqa: PLC0415, RUF100

        if self._connection is None:
            self._connection = dsdb.connect(self._url, autocommit=True)
        with self._connection.cursor() as cursor:
            cursor.execute(statement, parameters)
            return cursor.fetchall() if cursor.description else []

    def looked(self, look: Callable[[], int]) -> Callable[[], int]:
        """Let a look fail some times in a row before its error counts: whoever waits for minutes sees nodes go and come."""
        from dsdb.driver.errors import OperationalError  # noqa: PLC0415, RUF100

        failed = 0
        last = 1

        def patient() -> int:
            nonlocal failed, last
            try:
                last = look()
            except OperationalError:
                failed += 1
                if failed >= TRIES:
                    raise
            else:
                failed = 0
            return last

        return patient


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[object]], output_format: str) -> None:
    """Print rows under their columns, or as CSV with a header, or as a JSON array of objects; empty values are empty there, or null."""
    if output_format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([["" if value is None else _spelled(value) for value in row] for row in rows])
    elif output_format == "json":
        click.echo(json.dumps([dict(zip(columns, row)) for row in rows], indent=1, default=str, ensure_ascii=False))
    else:
        print_table(columns, rows)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their columns."""
    from rich import box  # noqa: PLC0415, RUF100
    from rich.console import Console  # noqa: PLC0415, RUF100
    from rich.table import Table  # noqa: PLC0415, RUF100
    from rich.text import Text  # noqa: PLC0415, RUF100

    table = Table(box=box.SIMPLE)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*[Text("" if value is None else _spelled(value)) for value in row])
    # A pipe is as wide as its longest line.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)


def _spelled(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
