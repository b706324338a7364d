"""Waiting for what the cluster does by itself: a bar on a terminal, lines elsewhere; Ctrl-C ends the waiting, and nothing else."""

import sys
import time
from collections.abc import Callable, Iterator

import click

LOOK_S = 0.5
"""Between two looks at how far it is."""
LINE_S = 5.0
"""Without a terminal, a line at least so often while something is left."""


def wait(description: str, left: Callable[[], int], *, unit: str) -> None:
    """Look, again and again, until nothing is left, and show it.

    left: says how much is left; it may grow.  Raises KeyboardInterrupt at Ctrl-C, and what `left` raises.
    """
    show = _bar if sys.stderr.isatty() else _lines
    show(description, _looks(left), unit)


def _looks(left: Callable[[], int]) -> Iterator[int]:
    while True:
        count = left()
        yield count
        if not count:
            return
        time.sleep(LOOK_S)


def _bar(description: str, looks: Iterator[int], unit: str) -> None:
    from rich.console import Console  # noqa: PLC0415, RUF100
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415, RUF100

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[left]} left"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(description, total=None, left="")
        most = 0
        for count in looks:
            most = max(most, count)
            progress.update(task, total=max(most, 1), completed=most - count, left=f"{count} {unit}")


def _lines(description: str, looks: Iterator[int], unit: str) -> None:
    said, said_at = -1, 0.0
    for count in looks:
        now = time.monotonic()
        if count and (said < 0 or (count != said and now - said_at >= LOOK_S) or now - said_at >= LINE_S):
            click.echo(f"{description}: {count} {unit} left", err=True)
            said, said_at = count, now
