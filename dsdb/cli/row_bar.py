"""How far rows have come: a line on a terminal that moves, lines elsewhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import click

LINE_S = 5.0
"""Without a terminal, a line at least so often."""


@contextlib.contextmanager
def counted(description: str) -> Iterator[Callable[[int], None]]:
    """Show, on standard error, the number that is told again and again."""
    if sys.stderr.isatty():
        from rich.console import Console  # noqa: PLC0415, RUF100
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415, RUF100

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]} rows"), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(description, total=None, rows="0")
            yield lambda rows: progress.update(task, rows=f"{rows:,}")
        return
    said_at = time.monotonic()

    def say(rows: int) -> None:
        nonlocal said_at
        now = time.monotonic()
        if now - said_at >= LINE_S:
            click.echo(f"{description}: {rows} rows", err=True)
            said_at = now

    yield say
