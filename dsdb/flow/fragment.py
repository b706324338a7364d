"""A fragment: one leaf stage on one node, over the pieces of ranges that this node serves.

    for each piece: `scanning` ─▶ Arrow ─▶ the stage's SQL ─▶ batches, streamed

Invariants:
- Each batch says up to which key of which piece its rows go, so that a fragment that breaks off is taken up elsewhere at the same
  timestamp after the last key, without a row lost or given twice.
- What the transaction had buffered when the stage began is seen as if it were stored, also by limits and by keys to go on after.
- A query that is not row-wise sees all rows of all pieces at once, and gives nothing before it has.
- Between two chunks the event loop runs: nothing here holds it for longer than a chunk takes (some milliseconds).
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import NamedTuple

import msgspec
import pyarrow as pa

from dsdb.flow.scanning import Piece, Scanner, ScanSource, layouts_of
from dsdb.kv.errors import KvError, KvErrorDetail
from dsdb.kv.ids import AttemptId, RangeId
from dsdb.rpc import Method, MethodKind
from dsdb.sql.execute.engine import QueryEngine
from dsdb.sql.ports import FragmentCounts, LeafStage, TableScan
from dsdb.storage.rowcodec import decode_batches
from dsdb.storage.timestamp import Timestamp
from dsdb.txn import Overlay

FIRST_QUERY_ROWS = 16_384
"""Rows gathered before a row-wise query runs for the first time."""
QUERY_ROWS = 1_048_576
"""Rows gathered before a row-wise query runs again, after some steps: the engine takes half the time for one call as for four."""
QUERY_ROWS_STEP = 4
QUERY_BYTES = 64 << 20
ENGINE_INPUT = "input"
"""What a stage's query calls its scan."""


class FragmentRequest(msgspec.Struct, frozen=True, array_like=True):
    """Run a stage over these pieces, in their order, at a timestamp."""

    stage: LeafStage
    pieces: tuple[Piece, ...]
    ts: Timestamp
    attempt: AttemptId | None
    """In whose name it reads; nobody's if it reads the past."""
    overlay: Overlay = Overlay()
    """What the transaction has buffered in the pieces."""


class FragmentHeader(msgspec.Struct, frozen=True, array_like=True):
    """In front of each chunk on the wire: how far it goes.  resume: the key after its last row, None when the piece is done."""

    piece: int
    resume: bytes | None
    has_batch: bool
    counts: FragmentCounts | None = None


FRAGMENT: Method[FragmentRequest, None] = Method(
    30, "fragment", MethodKind.DOWNLOAD, FragmentRequest, None, error_type=KvErrorDetail, error_exception=KvError
)

_ENCODE_HEADER = msgspec.msgpack.Encoder().encode
_DECODE_HEADER = msgspec.msgpack.Decoder(FragmentHeader).decode


class FragmentOutput(NamedTuple):
    """A step of a fragment: rows (or None), and how far in which piece; with a key to go on after, all pieces before it are done."""

    batch: pa.RecordBatch | None
    piece: int
    resume: bytes | None
    counts: FragmentCounts | None = None
    """Of the whole fragment, with its last step."""


class Meter:
    """Counts what a fragment does."""

    def __init__(self, scanner: Scanner) -> None:
        self.scanner = scanner
        self.rows_given = 0
        self.engine_s = 0.0
        self._begun = time.perf_counter()

    def counts(self) -> FragmentCounts:
        """Give what was counted so far."""
        scanner = self.scanner
        return FragmentCounts(
            scanner.rows_read, self.rows_given, scanner.tally.read, scanner.tally.pruned, time.perf_counter() - self._begun, self.engine_s
        )


class FragmentRunner:
    """Runs fragments on this node."""

    def __init__(self, source: ScanSource, engine: QueryEngine) -> None:
        self._source = source
        self._engine = engine

    def reads_past(self, range_id: RangeId, ts: Timestamp) -> bool:
        """Say whether this node can read a range at a past timestamp by itself."""
        return self._source.reads_past(range_id, ts)

    async def run(self, request: FragmentRequest) -> AsyncGenerator[FragmentOutput, None]:
        """Give the fragment's steps, the last one with its counts.  Raises KvError, SqlError."""
        sql = request.stage.sql
        scanner = Scanner(self._source, request.stage.scan, request.ts, request.attempt, request.overlay, for_engine=sql is not None)
        meter = Meter(scanner)
        if sql is None:
            steps = self._run_scan(request, meter)
        else:
            steps = (self._run_cuts if request.stage.is_rowwise else self._run_whole)(request, sql, meter)
        async with aclosing(steps):
            async for output in steps:
                if output.batch is not None:
                    meter.rows_given += output.batch.num_rows
                yield output
        yield FragmentOutput(None, len(request.pieces) - 1, None, meter.counts())

    async def _run_scan(self, request: FragmentRequest, meter: Meter) -> AsyncGenerator[FragmentOutput, None]:
        """Give the rows as they are, up to the limit."""
        limit, given = request.stage.scan.limit, 0
        for number, piece in enumerate(request.pieces):
            async with aclosing(meter.scanner.batches(piece)) as scanned:
                async for batch, resume in scanned:
                    if limit is not None and given + batch.num_rows >= limit:
                        yield FragmentOutput(batch.slice(0, limit - given), number, resume)
                        return
                    yield FragmentOutput(batch, number, resume)
                    given += batch.num_rows
            yield FragmentOutput(None, number, None)

    async def serve(self, request: FragmentRequest) -> AsyncIterator[bytes | pa.Buffer]:
        """Give the fragment's steps as chunks for the wire; the first batch's schema comes before it."""
        has_schema = False
        async for batch, piece, resume, counts in self.run(request):
            header = _ENCODE_HEADER(FragmentHeader(piece, resume, batch is not None, counts))
            parts = [len(header).to_bytes(4, "little"), header]
            if batch is not None:
                if not has_schema:
                    schema = batch.schema.serialize().to_pybytes()
                    parts += [len(schema).to_bytes(4, "little"), schema]
                    has_schema = True
                else:
                    parts.append(bytes(4))
                parts.append(batch.serialize().to_pybytes())
            yield b"".join(parts)

    async def _run_cuts(self, request: FragmentRequest, sql: str, meter: Meter) -> AsyncGenerator[FragmentOutput, None]:
        """Run a row-wise query over cuts of the rows, small ones first: whoever wants few rows gets them soon, but not parts of a whole."""
        batches: list[pa.RecordBatch] = []
        rows = size = 0
        enough, has_run = QUERY_ROWS if request.stage.is_partial else FIRST_QUERY_ROWS, False
        for number, piece in enumerate(request.pieces):
            async with aclosing(meter.scanner.chunks(piece)) as chunks:
                async for batch, size_bytes, end in chunks:
                    if batch is not None:
                        batches.append(batch)
                        rows += batch.num_rows
                        size += size_bytes
                    if rows < enough and size < QUERY_BYTES:
                        continue
                    for part in await self._query(sql, request, batches, meter):
                        yield FragmentOutput(part, number, None)
                    yield FragmentOutput(None, number, end)
                    batches, rows, size, has_run, enough = [], 0, 0, True, min(enough * QUERY_ROWS_STEP, QUERY_ROWS)
        if batches or not has_run:
            for part in await self._query(sql, request, batches, meter):
                yield FragmentOutput(part, len(request.pieces) - 1, None)
        yield FragmentOutput(None, len(request.pieces) - 1, None)

    async def _run_whole(self, request: FragmentRequest, sql: str, meter: Meter) -> AsyncGenerator[FragmentOutput, None]:
        batches = []
        for piece in request.pieces:
            async with aclosing(meter.scanner.chunks(piece)) as chunks:
                async for batch, _, _ in chunks:
                    if batch is not None:
                        batches.append(batch)
        for part in await self._query(sql, request, batches, meter):
            yield FragmentOutput(part, 0, request.pieces[0].span.start)
        for number in range(len(request.pieces)):
            yield FragmentOutput(None, number, None)

    async def _query(self, sql: str, request: FragmentRequest, batches: list[pa.RecordBatch], meter: Meter) -> list[pa.RecordBatch]:
        begun = time.perf_counter()
        inputs = {ENGINE_INPUT: _engine_input(batches, request.stage.scan)}
        inputs |= {keys.name: pa.ipc.open_stream(keys.data).read_all() for keys in request.stage.keys}
        table = await self._engine.run(sql, inputs)
        meter.engine_s += time.perf_counter() - begun
        found: list[pa.RecordBatch] = table.to_batches()
        return found or [pa.RecordBatch.from_pylist([], schema=table.schema)]


def _engine_input(batches: list[pa.RecordBatch], scan: TableScan) -> pa.Table:
    """Put batches together; a column that is a dictionary or narrow in some of them only is plain in all."""
    if not batches:
        batches = [decode_batches([], layouts_of(scan), scan.columns)]
    types = [{column.type for column in columns} for columns in zip(*(batch.columns for batch in batches))]
    columns = []
    for at, found in enumerate(types):
        arrays = [batch.column(at) for batch in batches]
        if len(found) > 1:
            arrays = [_plain(array) for array in arrays]
        columns.append(pa.chunked_array(arrays))
    return pa.Table.from_arrays(columns, list(scan.names))


def _plain(array: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        return array.dictionary_decode()
    return array.cast(pa.decimal128(array.type.precision, array.type.scale)) if pa.types.is_decimal64(array.type) else array


def decode_chunk(chunk: bytes, schema: pa.Schema | None) -> tuple[FragmentOutput, pa.Schema | None]:
    """Read a chunk of `FragmentRunner.serve`, given the schema seen so far; give its step and the schema."""
    buffer = pa.py_buffer(chunk)
    header_end = 4 + int.from_bytes(chunk[:4], "little")
    header = _DECODE_HEADER(chunk[4:header_end])
    if not header.has_batch:
        return FragmentOutput(None, header.piece, header.resume, header.counts), schema
    schema_end = header_end + 4 + int.from_bytes(chunk[header_end : header_end + 4], "little")
    if schema_end > header_end + 4:
        schema = pa.ipc.read_schema(buffer.slice(header_end + 4, schema_end - header_end - 4))
    assert schema is not None, "the first batch of a fragment comes with its schema"
    batch = pa.ipc.read_record_batch(buffer.slice(schema_end), schema)
    return FragmentOutput(batch, header.piece, header.resume), schema
