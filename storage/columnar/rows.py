"""The rows of a store, or of a snapshot of it, wherever their versions lie: one set of questions, and two who answer them.

    Rows ─┬─ DeltaRows    all versions are in the delta                       (`mvcc`)
          └─ FoldedRows   blocks, and the delta over them                     (`points`, `rowscan`)

Invariants:
- Both give the same answers, however versions are spread.  Whoever asks DeltaRows knows that no block has a key of the span.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from dsdb.storage import mvcc
from dsdb.storage.columnar import points, rowscan
from dsdb.storage.columnar.block import Blocks
from dsdb.storage.engine.port import SCAN_CHUNK_ROWS, Reader
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import Timestamp
from dsdb.storage.versions import Intent, Standing, Version, View

RowChunk = tuple[list[bytes], list[bytes]]
"""User keys and row values."""
Change = tuple[bytes, Timestamp]
"""A key, and when it was changed."""


class Rows(Protocol):
    """Versions of keys, as `mvcc` says of a plain list of them all."""

    def get_many(self, keys: Sequence[bytes], view: View) -> list[bytes | None]:
        """Read the values of keys, in the order asked; None where there is none, or a tombstone.  Raises IntentsFoundError."""

    def newest_and_intent(self, key: bytes) -> tuple[Version | None, Intent | None]:
        """Read the newest version of a key, and its intent."""

    def standing(self, key: bytes) -> Standing:
        """Read what a writer must know of a key."""

    def standing_of(self, keys: Sequence[bytes]) -> list[Standing]:
        """Read what a writer must know of keys (ascending)."""

    def changed(self, span: Span, low: Timestamp, view: View) -> Change | None:
        """Find a version with low < ts ≤ `view.ts` in a span.  Raises IntentsFoundError."""

    def changes(self, span: Span, low: Timestamp, view: View) -> Iterator[Change | None]:
        """Do what `changed` does in steps: None after each in which there is nothing.  Raises IntentsFoundError."""

    def scan(self, span: Span, view: View, *, reverse: bool = False, chunk_rows: int = SCAN_CHUNK_ROWS) -> Iterator[RowChunk]:
        """Read the keys and values of a span that are live, in key order or from the highest down, in chunks.

        Raises IntentsFoundError in place of a chunk; those before it stand.
        """


class DeltaRows:
    """Of a reader without blocks, or of spans of it without any."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def get_many(self, keys: Sequence[bytes], view: View) -> list[bytes | None]:
        """Read the values of keys."""
        return mvcc.get_many(self._reader, keys, view)

    def newest_and_intent(self, key: bytes) -> tuple[Version | None, Intent | None]:
        """Read the newest version of a key, and its intent."""
        return mvcc.newest_and_intent(self._reader, key)

    def standing(self, key: bytes) -> Standing:
        """Read what a writer must know of a key."""
        return mvcc.standing(self._reader, key)

    def standing_of(self, keys: Sequence[bytes]) -> list[Standing]:
        """Read what a writer must know of keys."""
        return mvcc.standing_of(self._reader, keys)

    def changed(self, span: Span, low: Timestamp, view: View) -> Change | None:
        """Find a change in a span."""
        return mvcc.changed(self._reader, span, low, view)

    def changes(self, span: Span, low: Timestamp, view: View) -> Iterator[Change | None]:
        """Find a change in a span, in steps."""
        return mvcc.changes(self._reader, span, low, view)

    def scan(self, span: Span, view: View, *, reverse: bool = False, chunk_rows: int = SCAN_CHUNK_ROWS) -> Iterator[RowChunk]:
        """Read the rows of a span."""
        return mvcc.scan(self._reader, span, view, reverse=reverse, chunk_rows=chunk_rows)


class FoldedRows:
    """Of a reader with blocks."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks

    def get_many(self, keys: Sequence[bytes], view: View) -> list[bytes | None]:
        """Read the values of keys."""
        return points.get_many(self._blocks, keys, view)

    def newest_and_intent(self, key: bytes) -> tuple[Version | None, Intent | None]:
        """Read the newest version of a key, and its intent."""
        return points.newest_and_intent(self._blocks, key)

    def standing(self, key: bytes) -> Standing:
        """Read what a writer must know of a key."""
        return points.standing(self._blocks, key)

    def standing_of(self, keys: Sequence[bytes]) -> list[Standing]:
        """Read what a writer must know of keys."""
        return points.standing_of(self._blocks, keys)

    def changed(self, span: Span, low: Timestamp, view: View) -> Change | None:
        """Find a change in a span."""
        return points.changed(self._blocks, span, low, view)

    def changes(self, span: Span, low: Timestamp, view: View) -> Iterator[Change | None]:
        """Find a change in a span, in steps."""
        return points.changes(self._blocks, span, low, view)

    def scan(self, span: Span, view: View, *, reverse: bool = False, chunk_rows: int = SCAN_CHUNK_ROWS) -> Iterator[RowChunk]:
        """Read the rows of a span."""
        return rowscan.scan_rows(self._blocks, span, view, reverse=reverse, chunk_rows=chunk_rows)
