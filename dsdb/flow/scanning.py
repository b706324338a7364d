"""A scan of the pieces of ranges that this node serves: rows, or columnar blocks with the rows over them, as Arrow.

    for each piece: engine snapshot under the read latch ─▶ rows, or columnar blocks ─▶ Arrow
                      ▲               what the transaction has buffered lies over them ┘
                      └── a foreign intent in the way: settle it, and freeze the rest of the piece anew

Invariants:
- Each chunk says up to which key of its piece its rows go: what is given is complete up to there, at one timestamp.
- What the transaction had buffered when the scan began is seen as if it were stored.
- Between two chunks the event loop runs: nothing here holds it for longer than a chunk takes (some milliseconds).
"""

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing
from decimal import Decimal
from typing import NamedTuple, Protocol

import msgspec
import pyarrow as pa
import trio

from dsdb.kv.ids import AttemptId, RangeId
from dsdb.sql.ports import ColumnBound, TableScan
from dsdb.storage.columnar.entry import Bounds
from dsdb.storage.columnar.merge import Columns, Step, Tally
from dsdb.storage.columnar.overlay import Layer
from dsdb.storage.keys import Span, key_after
from dsdb.storage.mvcc import Intent, IntentsFoundError
from dsdb.storage.rowcodec import RowLayout, decode_batches
from dsdb.storage.timestamp import Timestamp
from dsdb.txn import Overlay

BATCH_ROWS = 16_384
"""Rows gathered before a batch leaves."""
ALONE_ROWS = BATCH_ROWS // 4
"""A chunk of so many rows is not copied together with others."""
BATCH_BYTES = 2 << 20
"""The same in bytes of row values: some batches wait at the gateway, and rows may be wide."""


class Piece(msgspec.Struct, frozen=True, array_like=True):
    """The part of a stage's spans that lies in one range."""

    range_id: RangeId
    span: Span


class Chunk(NamedTuple):
    """Some rows of a piece, decoded."""

    batch: pa.RecordBatch | None
    size_bytes: int
    end: bytes
    """All rows below this key were given."""


class PieceSnapshot(Protocol):
    """The rows of a span at a timestamp, pinned."""

    @property
    def has_blocks(self) -> bool:
        """Say whether to ask for batches: some rows may lie in columnar blocks."""

    def chunks(self) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """Give keys and values, in key order.  Raises IntentsFoundError in place of a chunk; those before it stand."""

    def batches(self, columns: Columns, writes: Layer, bounds: Sequence[Bounds], tally: Tally) -> Iterator[Step]:
        """Give Arrow, in key order, of the rows with `writes` over them.  Raises IntentsFoundError, as `chunks` does.

        bounds: rows outside of them may be left out.
        """


class ScanSource(Protocol):
    """What a fragment asks of this node's store."""

    async def scan_snapshot(
        self, range_id: RangeId, span: Span, ts: Timestamp, attempt: AttemptId | None = None, *, any_replica: bool = False
    ) -> AbstractContextManager[PieceSnapshot]:
        """Pin a span of a range that this store leads, after the latches that matter; any_replica: or that is resolved here.

        Raises KvError.
        """

    def reads_past(self, range_id: RangeId, ts: Timestamp) -> bool:
        """Say whether the replica here, whoever leads, answers reads of the past at `ts`."""

    async def settle_intents(self, range_id: RangeId, intents: list[tuple[bytes, Intent]], ts: Timestamp) -> None:
        """Get foreign intents that a pinned span met out of the way of reads at `ts`.  Raises KvError."""


class Scanner:
    """One scan at one timestamp, over any number of pieces, and the counts of what it met."""

    def __init__(
        self,
        source: ScanSource,
        scan: TableScan,
        ts: Timestamp,
        attempt: AttemptId | None,
        overlay: Overlay,
        *,
        for_engine: bool = False,
    ) -> None:
        """attempt: in whose name it reads; overlay: what the transaction has buffered.

        for_engine: columns may be of the types that cost least (dictionaries, decimals of 64 bits), not the same in all batches.
        """
        self._source = source
        self._scan = scan
        self._layouts = layouts_of(scan)
        self._ts = ts
        self._attempt = attempt
        self._overlay = overlay
        self._for_engine = for_engine
        self.tally = Tally()
        """The blocks that were met."""
        self.rows_read = 0

    async def batches(self, piece: Piece) -> AsyncGenerator[tuple[pa.RecordBatch, bytes], None]:
        """Give a piece's rows as batches, each with the key after its last row; at least one batch, that may be empty."""
        scan = self._scan
        waiting: list[pa.RecordBatch] = []
        rows = size = 0
        resume = piece.span.start
        async with aclosing(self.chunks(piece)) as chunks:
            async for batch, size_bytes, end in chunks:
                if batch is not None:
                    if waiting and batch.num_rows >= ALONE_ROWS:
                        yield _joined(waiting, scan.names), resume
                        waiting, rows, size = [], 0, 0
                    waiting.append(batch)
                    rows += batch.num_rows
                    size += size_bytes
                resume = end
                if rows >= BATCH_ROWS or size >= BATCH_BYTES or (scan.limit is not None and rows >= scan.limit):
                    yield _joined(waiting, scan.names), resume
                    waiting, rows, size = [], 0, 0
        if not waiting:
            waiting.append(decode_batches([], self._layouts, scan.columns))
        yield _joined(waiting, scan.names), piece.span.end

    async def chunks(self, piece: Piece) -> AsyncGenerator[Chunk, None]:
        """Give a piece's rows, with what is buffered over them, in chunks."""
        rest = piece.span
        while not rest.is_empty:
            in_the_way: list[tuple[bytes, Intent]] = []
            any_replica = self._attempt is None
            pinned = await self._source.scan_snapshot(piece.range_id, rest, self._ts, self._attempt, any_replica=any_replica)
            with pinned as snapshot:
                chunks = (self._of_blocks if snapshot.has_blocks else self._of_rows)(snapshot, rest)
                while True:
                    try:
                        chunk = next(chunks, None)
                    except IntentsFoundError as error:
                        in_the_way = error.intents
                        break
                    if chunk is None:
                        return
                    if chunk.batch is not None:
                        self.rows_read += chunk.batch.num_rows
                    yield chunk
                    rest = Span(chunk.end, rest.end)
                    await trio.lowlevel.checkpoint()
            await self._source.settle_intents(piece.range_id, in_the_way, self._ts)

    def _of_rows(self, snapshot: PieceSnapshot, span: Span) -> Iterator[Chunk]:
        scan, layouts = self._scan, self._layouts
        start = span.start
        for found in snapshot.chunks():
            end = key_after(found[0][-1])
            yield _decoded(*_merged(self._overlay, Span(start, end), *found), layouts, scan, end)
            start = end
        yield _decoded(*_merged(self._overlay, Span(start, span.end), [], []), layouts, scan, span.end)

    def _of_blocks(self, snapshot: PieceSnapshot, span: Span) -> Iterator[Chunk]:
        scan = self._scan
        writes = self._overlay.clipped([span])
        columns = Columns(scan.columns, self._layouts, dictionaries=self._for_engine, as_narrow=self._for_engine)
        bounds = [_stored_bounds(bound) for bound in scan.bounds]
        for batch, end in snapshot.batches(columns, (list(writes.keys), list(writes.values)), bounds, self.tally):
            yield Chunk(batch, 0 if batch is None else batch.nbytes, end)


def _stored_bounds(bound: ColumnBound) -> Bounds:
    low, high = ((Decimal(side) if bound.is_decimal and side is not None else side) for side in (bound.low, bound.high))
    return Bounds(column_id=bound.column_id, low=low, high=high)


def layouts_of(scan: TableScan) -> dict[int, RowLayout]:
    """Give a scan's layouts by their ids."""
    return {layout.layout_id: layout for layout in scan.layouts}


def _decoded(keys: list[bytes], values: list[bytes], layouts: dict[int, RowLayout], scan: TableScan, end: bytes) -> Chunk:
    return Chunk(decode_batches(values, layouts, scan.columns), sum(map(len, values)), end) if keys else Chunk(None, 0, end)


def _merged(overlay: Overlay, span: Span, keys: list[bytes], values: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """Put what is buffered in a span over its rows."""
    buffered = overlay.clipped([span])
    if not buffered.keys:
        return keys, values
    rows = buffered.merged(list(zip(keys, values)))
    return [key for key, _ in rows], [value for _, value in rows]


def _joined(batches: list[pa.RecordBatch], names: tuple[str, ...]) -> pa.RecordBatch:
    joined = batches[0] if len(batches) == 1 else pa.concat_batches(batches)
    return joined.rename_columns(list(names))
