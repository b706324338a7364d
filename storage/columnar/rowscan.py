"""Scans that give rows: keys and values, of blocks and of the delta over them, some hundred at a time and no more than are asked for.

    delta    │ a piece of the span and what is over it │ the next piece …        ascending, or from the highest down
    blocks   │ stretch │ stretch │ … of at most ROWS_AT_ONCE rows      ▶ a chunk each

Invariants:
- What `mvcc.scan` gives of a plain list of all versions, this gives, in the same order, however they are spread.
- Another's intent is met only when all rows before it were given: who stops before it does not wait for it.

`merge.scan` is for whole spans and a few columns: it gives Arrow, some ten times as fast.
"""

from collections.abc import Iterator

import numpy as np

from dsdb.storage import mvcc
from dsdb.storage.columnar.block import Blocks
from dsdb.storage.columnar.entry import BlockEntry
from dsdb.storage.columnar.overlay import Layer, Settler, cut_layer, layered
from dsdb.storage.engine.port import SCAN_CHUNK_ROWS, Reader
from dsdb.storage.keys import Span, key_after
from dsdb.storage.versions import IntentsFoundError, View, user_key_of

ROWS_AT_ONCE = 1024
"""Rows of a block that are put together at once: 2 to 4 ms where there are 16 columns."""

_Chunk = tuple[list[bytes], list[bytes]]
_Piece = tuple[Span, Layer]
"""A part of a scan's span, and all that the delta shows in it."""


def scan_rows(blocks: Blocks, span: Span, view: View, *, reverse: bool = False, chunk_rows: int = SCAN_CHUNK_ROWS) -> Iterator[_Chunk]:
    """Read keys and row values of a span, as `mvcc.scan` does, in chunks of about `chunk_rows`.

    Raises IntentsFoundError, CorruptionError.
    """
    if span.is_empty:
        return
    pieces = _pieces_backwards if reverse else _pieces
    merged = _merged_backwards if reverse else _merged
    for part, over in pieces(blocks.reader, span, view, chunk_rows):
        for keys, values in merged(blocks, part, over, view, min(chunk_rows, ROWS_AT_ONCE)):
            # What was deleted is not given.
            rows = [(key, value) for key, value in zip(keys, values) if value is not None] if None in values else zip(keys, values)
            chunk = list(rows)[::-1] if reverse else list(rows)
            if chunk:
                yield [key for key, _ in chunk], [value for _, value in chunk]  # type: ignore[misc]  # None was taken out


# ---- The delta ----


def _pieces(reader: Reader, span: Span, view: View, chunk_rows: int) -> Iterator[_Piece]:
    settler = Settler(view)
    done = span.start
    met: IntentsFoundError | None = None
    for engine_keys, stored in mvcc.entries(reader, span, reverse=False, chunk_rows=chunk_rows):
        try:
            layer = settler.take(engine_keys, stored)
        except IntentsFoundError as error:
            met = error
            break
        # Of the last key more versions may follow: it is done if one was taken.
        last = user_key_of(engine_keys[-1])
        end = max(done, key_after(last) if layer[0] and layer[0][-1] == last else last)
        yield Span(done, end), layer
        done = end
    if met is not None:
        yield from _pieces(reader, Span(done, met.intents[0][0]), view, chunk_rows)
        raise met
    yield Span(done, span.end), ([], [])


def _pieces_backwards(reader: Reader, span: Span, view: View, chunk_rows: int) -> Iterator[_Piece]:
    done = span.end
    held_keys: list[bytes] = []
    held: list[bytes] = []
    met: IntentsFoundError | None = None
    for engine_keys, stored in mvcc.entries(reader, span, reverse=True, chunk_rows=chunk_rows):
        held_keys += engine_keys
        held += stored
        # Newer versions of the last key may follow.
        last = user_key_of(held_keys[-1])
        whole = len(held_keys)
        while whole and user_key_of(held_keys[whole - 1]) == last:
            whole -= 1
        if not whole:
            continue
        try:
            layer = Settler(view).take(held_keys[whole - 1 :: -1], held[whole - 1 :: -1])
        except IntentsFoundError as error:
            met = error
            break
        yield Span(key_after(last), done), layer
        done = key_after(last)
        del held_keys[:whole], held[:whole]
    layer = ([], [])
    if met is None and held:
        try:
            layer = Settler(view).take(held_keys[::-1], held[::-1])
        except IntentsFoundError as error:
            met = error
    if met is not None:
        yield from _pieces_backwards(reader, Span(key_after(met.intents[-1][0]), done), view, chunk_rows)
        raise met
    yield Span(span.start, done), layer


# ---- Blocks ----


def _merged(blocks: Blocks, part: Span, over: Layer, view: View, rows_max: int) -> Iterator[Layer]:
    """Give what is seen in a part of the span in stretches, ascending; None where something was deleted."""
    at = part.start
    for entry in blocks.entries(part):
        low, high, history = _seen(blocks, entry, part, view)
        for first in range(low, max(high, low + 1), rows_max):
            last = min(first + rows_max, high)
            end = min(key_after(entry.last_key), part.end) if last == high else blocks.keys(entry).key(last)
            yield _stretch(blocks, entry, (first, last), view, history, cut_layer(over, at, end), Span(at, end))
            at = end
    yield cut_layer(over, at, part.end)


def _merged_backwards(blocks: Blocks, part: Span, over: Layer, view: View, rows_max: int) -> Iterator[Layer]:
    """Do what `_merged` does, the highest stretch first; each of them ascends."""
    at = part.end
    for entry in blocks.entries(part, reverse=True):
        low, high, history = _seen(blocks, entry, part, view)
        for last in range(high, min(low, high - 1), -rows_max):
            first = max(last - rows_max, low)
            start = max(entry.first_key, part.start) if first == low else blocks.keys(entry).key(first)
            yield _stretch(blocks, entry, (first, last), view, history, cut_layer(over, start, at), Span(start, at))
            at = start
    yield cut_layer(over, part.start, at)


def _seen(blocks: Blocks, entry: BlockEntry, part: Span, view: View) -> tuple[int, int, Layer]:
    """Give which current rows of a block lie in a part, from and to, and what a reader of the past sees of its history."""
    low, high = 0, entry.rows
    if entry.rows and not (part.start <= entry.first_key and entry.last_key < part.end):
        run = blocks.keys(entry)
        low, high = run.lower(part.start), run.lower(part.end)
    if view.ts >= entry.max_ts or not entry.history_rows:
        return low, high, ([], [])
    return low, high, Settler(View(view.ts)).take(*blocks.history(entry))


def _stretch(blocks: Blocks, entry: BlockEntry, bounds: tuple[int, int], view: View, history: Layer, over: Layer, stretch: Span) -> Layer:
    """Lay over each other what a reader sees of a block's history, of its current rows, and of the delta."""
    rows = np.arange(*bounds)
    if len(rows) and view.ts < entry.max_ts:
        rows = rows[blocks.versions(entry)[rows] <= np.uint64(view.ts)]
    keys = blocks.keys(entry).keys(rows) if len(rows) else []
    if over[0] and keys:
        hidden = set(over[0])
        kept = [place for place, key in enumerate(keys) if key not in hidden]
        keys, rows = [keys[place] for place in kept], rows[kept]
    values: list[bytes | None] = [*blocks.row_values(entry, rows)] if keys else []
    return layered(layered(cut_layer(history, *stretch), (keys, values)), over)
