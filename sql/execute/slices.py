"""Slices of many rows: what is done row by row lets the event loop run between two of them.

    for part in slices(rows, width):
        …
        await pause(part)

Invariants:
- A slice is some milliseconds of work at a few microseconds a value; a single row never pauses.
"""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import trio

SLICE_VALUES = 1_024
SLICE_ROWS_MAX = 256

RowsT = TypeVar("RowsT", bound=Sequence[object])


def slices(rows: RowsT, width: int) -> Iterator[RowsT]:
    """Cut rows of `width` values, in their order."""
    size = max(1, min(SLICE_ROWS_MAX, SLICE_VALUES // max(width, 1)))
    if len(rows) <= size:
        yield rows
        return
    for begin in range(0, len(rows), size):
        yield rows[begin : begin + size]  # type: ignore[misc]  # a slice of a list is a list, of a tuple a tuple


async def pause(part: Sequence[object]) -> None:
    """Let the event loop run, unless a single row was all."""
    if len(part) > 1:
        await trio.lowlevel.checkpoint()
