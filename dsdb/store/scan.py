"""A span frozen for bulk reading: what a leaseholder checked once, read from an engine snapshot at leisure."""

from collections.abc import Iterator, Sequence
from types import TracebackType

from dsdb.storage.columnar.block import Blocks
from dsdb.storage.columnar.entry import Bounds
from dsdb.storage.columnar.merge import Columns, Request, Step, Tally, scan_steps
from dsdb.storage.columnar.overlay import Layer
from dsdb.storage.columnar.rows import DeltaRows, FoldedRows, Rows
from dsdb.storage.engine.port import SCAN_CHUNK_ROWS, EngineSnapshot
from dsdb.storage.keys import Span
from dsdb.storage.versions import View

BLOCKS_AT_ONCE = 8
"""Blocks in which a step looks for what lies over them: some 0.3 ms each, while the event loop waits."""


class SnapshotScan:
    """A context manager; leaving it gives the engine snapshot back.

    What it reads stays right whatever happens to lease and range: the span is in the timestamp cache, and the state is frozen.
    Where an intent of another attempt is in the way it goes no further: `Store.settle_intents`, then freeze the rest of the span anew.
    """

    def __init__(self, snapshot: EngineSnapshot, span: Span, view: View, blocks: Blocks | None) -> None:
        """blocks: the snapshot's, if the range has any."""
        self.snapshot = snapshot
        self.span = span
        self.view = view
        """Who reads, and what was known of others' intents when the span was frozen."""
        self.blocks = blocks
        self.rows: Rows = DeltaRows(snapshot) if blocks is None else FoldedRows(blocks)

    def chunks(self, *, reverse: bool = False, chunk_rows: int = SCAN_CHUNK_ROWS) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """Give the keys and values that are live at the timestamp, in order, some thousand at a time.

        Raises IntentsFoundError in place of a chunk; those before it stand.
        """
        return self.rows.scan(self.span, self.view, reverse=reverse, chunk_rows=chunk_rows)

    @property
    def has_blocks(self) -> bool:
        """Say whether some rows may lie in columnar blocks, so that `batches` is the faster way."""
        return self.blocks is not None

    def batches(self, columns: Columns, writes: Layer, bounds: Sequence[Bounds] = (), tally: Tally | None = None) -> Iterator[Step]:
        """Give the rows that are live at the timestamp as Arrow, in order, with a transaction's own writes over them.

        bounds: rows outside of them may be left out; tally: counts blocks.
        Raises IntentsFoundError in place of a step; those before it stand.
        """
        assert self.blocks is not None
        return scan_steps(self.blocks, Request(self.span, self.view, writes, bounds, tally=tally), columns, at_once_max=BLOCKS_AT_ONCE)

    def __enter__(self) -> "SnapshotScan":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the engine snapshot back."""
        self.snapshot.release()
