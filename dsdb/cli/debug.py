"""`dsdb debug`: for whoever looks after a cluster.

check [URL]    structure, then range by range: SHOW CONSISTENCY FROM STRUCTURE, … FROM RANGE n
"""

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from dsdb.cli.asking import EXIT_INTERRUPTED, EXIT_NO_ANSWER, check_url
from dsdb.cli.certs_option import certs_dir_option
from dsdb.cli.shell import DEFAULT_URL

if TYPE_CHECKING:
    from dsdb.driver.connection import Connection

EXIT_WRONG = 1

Finding = tuple[int | None, int | None, str]
"""Range, node, and what is wrong."""


@click.group("debug")
def debug_group() -> None:
    """Look into a cluster."""


@debug_group.command("check")
@click.argument("url", default=DEFAULT_URL, required=False, callback=check_url)
@click.option("--url", "url_option", default=None, callback=check_url, help="The same, as other commands have it.")
@click.option("--quiet", is_flag=True, help="No progress, only what is wrong.")
@certs_dir_option
def check_command(url: str, url_option: str | None, quiet: bool) -> None:
    """Compare all replicas of all ranges, and the ranges with the addressing index.

    URL is dsdb://user@host:7432/database.  The exit code is 0 if all is well, 1 if something is wrong, 2 if the cluster does not answer.
    A replica that most others contradict goes out of service and is repaired, as if it had been found in the background.
    """
    import dsdb  # noqa: PLC0415, RUF100
    from dsdb.cli.shell_text import describe_error  # noqa: PLC0415, RUF100
    from dsdb.driver.errors import Error  # noqa: PLC0415, RUF100

    try:
        with dsdb.connect(url_option or url) as connection:
            connection.autocommit = True
            ranges, found = _check(connection, quiet=quiet)
    except Error as error:
        click.echo(describe_error(error, ""), err=True)
        sys.exit(EXIT_NO_ANSWER)
    except KeyboardInterrupt:
        click.echo("\nInterrupted: not all was looked at.", err=True)
        sys.exit(EXIT_INTERRUPTED)
    if found:
        _print(found)
        click.echo(f"{len(found)} thing{'s are' if len(found) > 1 else ' is'} wrong with {ranges} ranges", err=True)
        sys.exit(EXIT_WRONG)
    click.echo(f"{ranges} ranges: all replicas agree")


def _check(connection: "Connection", *, quiet: bool) -> tuple[int, list[Finding]]:
    """Check everything; give the number of ranges and what is wrong."""
    found = _findings(connection, "SHOW CONSISTENCY FROM STRUCTURE")
    range_ids = [int(row[0]) for row in _rows(connection, "SHOW RANGES")]
    for range_id in _with_progress(range_ids, quiet=quiet):
        found += _findings(connection, f"SHOW CONSISTENCY FROM RANGE {range_id}")
    return len(range_ids), found


def _rows(connection: "Connection", statement: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def _findings(connection: "Connection", statement: str) -> list[Finding]:
    return [(row[0], row[1], row[2]) for row in _rows(connection, statement)]


def _with_progress(range_ids: list[int], *, quiet: bool) -> Iterator[int]:
    """Give the ranges one by one, and show how far that is."""
    if quiet or not sys.stderr.isatty():
        yield from range_ids
        return
    from rich.console import Console  # noqa: PLC0415, RUF100
    from rich.progress import track  # noqa: PLC0415, RUF100

    yield from track(range_ids, description="Comparing replicas", console=Console(stderr=True), transient=True)


def _print(found: list[Finding]) -> None:
    from rich import box  # noqa: PLC0415, RUF100
    from rich.console import Console  # noqa: PLC0415, RUF100
    from rich.table import Table  # noqa: PLC0415, RUF100

    table = Table("range", "node", "problem", box=box.SIMPLE)
    for range_id, node_id, problem in found:
        table.add_row("" if range_id is None else str(range_id), "" if node_id is None else str(node_id), problem)
    # A pipe is as wide as its longest line.
    Console(width=None if sys.stdout.isatty() else 10_000).print(table)
