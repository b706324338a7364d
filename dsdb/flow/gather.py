"""Gathering a leaf stage: one fragment per node over all the ranges it leads, their batches in one stream at the gateway.

    spans ─ cut by ranges ─ grouped by leaseholder ─▶ fragment on n1 ─┐
                                                   ─▶ fragment on n2 ─┼─▶ channel ─▶ batches
                                                   ─▶ fragment here  ─┘

Invariants:
- Every row of the spans is given exactly once, at one timestamp: what a fragment had not given when it broke off is cut up again
  and taken from where the ranges are now.
- A slow reader holds the fragments up (a bounded channel, then TCP), not the gateway's memory.
- Closing the stream ends every fragment.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing

import msgspec
import pyarrow as pa
import trio

from dsdb.env import Clock
from dsdb.flow.fragment import FRAGMENT, FragmentOutput, FragmentRequest, FragmentRunner, decode_chunk
from dsdb.flow.leaders import Leaders
from dsdb.flow.scanning import Piece
from dsdb.kv.errors import InvalidRequest, KvError, NotLeaseholder, RangeKeyMismatch, RangeNotFound, Unavailable
from dsdb.kv.ids import NodeId
from dsdb.kv.requests import DescribeReply, DescribeRequest
from dsdb.ranges import CachedRange, Router
from dsdb.rpc import CallFailed, NotSent, Peers, ReplyLost
from dsdb.sql.errors import InternalError
from dsdb.sql.ports import LeafStage, RangeUnavailableError, StageReport, Transaction
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import Timestamp
from dsdb.txn import KvTransaction, Overlay

log = logging.getLogger("dsdb.flow")

CHANNEL_BATCHES = 4
"""Batches that wait for the reader; a fragment with more to give waits."""
DEADLINE_S = 10.0
"""A stage whose ranges gave no step forward for this long fails."""
SEEN_MAX = 1_024
"""Lists of spans whose numbers of rows are remembered, each of at most SEEN_SPANS_MAX."""
SEEN_SPANS_MAX = 16
PAUSE_S = 0.02
"""Pause before what broke off is asked for again."""

_ADDRESSING = (NotLeaseholder, RangeNotFound, RangeKeyMismatch, Unavailable, InvalidRequest)


class Gatherer:
    """Runs leaf stages for this node's sessions; implements `dsdb.sql.ports.StageRunner`."""

    def __init__(self, *, router: Router, peers: Peers, runner: FragmentRunner, clock: Clock, leaders: Leaders) -> None:
        self._leaders = leaders
        self._router = router
        self._peers = peers
        self._runner = runner
        self._clock = clock
        self._nursery: trio.Nursery | None = None
        self._seen_rows: dict[tuple[Span, ...], int] = {}
        """Rows that stages read of their spans, the newest last."""

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the tasks of running stages."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def run(self, stage: LeafStage, txn: Transaction, report: StageReport | None = None) -> AsyncIterator[pa.RecordBatch]:
        """Give a stage's batches; see `dsdb.sql.ports.StageRunner.run`."""
        assert isinstance(txn, KvTransaction)
        assert self._nursery is not None
        ts = await txn.begin_read(stage.scan.spans)
        for span in stage.scan.spans:
            txn.note_read(span)
        # As it is now: what is buffered while the stage runs is not seen by it.
        overlay = txn.overlay(stage.scan.spans)
        send, receive = trio.open_memory_channel[pa.RecordBatch](CHANNEL_BATCHES)
        report = report or StageReport()
        job = _Job(self, stage, ts, txn, overlay, send, report)
        self._nursery.start_soon(job.run)
        left = stage.scan.limit if stage.sql is None else None
        try:
            async for batch in receive:
                if left is not None:
                    batch = batch.slice(0, left)
                    left -= batch.num_rows
                yield batch
                if left == 0:
                    return
            if job.error is not None:
                raise job.error
            if stage.scan.limit is None:
                self._note_rows(stage.scan.spans, sum(counts.rows_read for counts in report.nodes.values()))
        finally:
            job.scope.cancel()
            receive.close()

    def seen_rows(self, spans: Sequence[Span]) -> int | None:
        """Give how many rows an earlier stage read of these spans."""
        return self._seen_rows.get(tuple(spans))

    def _note_rows(self, spans: tuple[Span, ...], rows: int) -> None:
        if len(spans) > SEEN_SPANS_MAX:
            return
        self._seen_rows.pop(spans, None)
        self._seen_rows[spans] = rows
        if len(self._seen_rows) > SEEN_MAX:
            del self._seen_rows[next(iter(self._seen_rows))]

    async def placement(self, spans: Sequence[Span]) -> list[tuple[int, int]]:
        """Count, by node, the ranges that would serve these spans."""
        counts: dict[int, int] = {}
        for entry, _ in await self._router.cut(spans):
            node = await self.serving_node(entry)
            counts[node] = counts.get(node, 0) + 1
        return sorted(counts.items())

    async def serving_node(self, entry: CachedRange) -> NodeId:
        """Give the node that leads a range, asking the range if it is not known.  Raises KvError."""
        if entry.leaseholder is None or entry.desc.replica_on(entry.leaseholder) is None:
            reply = await self._router.send(entry.start_key, lambda desc: DescribeRequest(desc.range_id))
            assert isinstance(reply, DescribeReply)
            entry = self._router.cache.update(reply.descriptor, reply.leaseholder)
        replica = entry.desc.replica_on(entry.leaseholder) if entry.leaseholder is not None else None
        return (replica or entry.desc.voters[0]).node_id

    async def steps(self, node: NodeId, request: FragmentRequest) -> AsyncIterator[FragmentOutput]:
        """Run a fragment on a node, this one included, and give its steps."""
        if node == self._router.node_id:
            async with aclosing(self._runner.run(request)) as steps:
                async for output in steps:
                    yield output
            return
        schema: pa.Schema | None = None
        moved = 0
        async for chunk in self._peers.download(node, FRAGMENT, request):
            output, schema = decode_chunk(chunk, schema)
            moved += len(chunk)
            if output.counts is not None:
                output = output._replace(counts=msgspec.structs.replace(output.counts, moved_bytes=moved))
            yield output

    async def cut(self, spans: Sequence[Span], past: Timestamp | None) -> list[tuple[NodeId, Piece]]:
        """Cut spans by ranges and say which node leads each piece, in key order.

        past: read there, so this node does what is resolved on it (rule 23).
        """
        pieces = []
        cut = await self._router.cut(spans)
        if past is None:
            await self._leaders.find([entry for entry, _ in cut])
        for entry, span in cut:
            is_here = past is not None and self._runner.reads_past(entry.desc.range_id, past)
            node = self._router.node_id if is_here else await self.serving_node(entry)
            pieces.append((node, Piece(entry.desc.range_id, span)))
        return pieces

    def forget(self, piece: Piece, error: Exception) -> None:
        """Drop what the cache believes of a range that did not serve."""
        entry = self._router.cache.by_id(piece.range_id)
        if entry is None:
            return
        entry.leaseholder = None
        detail = error.detail if isinstance(error, KvError) else None
        if isinstance(detail, NotLeaseholder):
            if detail.descriptor is not None:
                entry = self._router.cache.update(detail.descriptor)
            entry.leaseholder = detail.leaseholder
        elif isinstance(detail, RangeKeyMismatch):
            self._router.cache.evict(entry)
            for desc in detail.descriptors:
                self._router.cache.update(desc)

    def now(self) -> float:
        """Give the clock's time."""
        return self._clock.now()


class _Job:
    """One run of one stage."""

    def __init__(
        self,
        gatherer: Gatherer,
        stage: LeafStage,
        ts: Timestamp,
        txn: KvTransaction,
        overlay: Overlay,
        send: trio.MemorySendChannel[pa.RecordBatch],
        report: StageReport,
    ) -> None:
        self._gatherer = gatherer
        self._stage = stage
        self._ts = ts
        self._txn = txn
        self._overlay = overlay
        self._send = send
        self._report = report
        self._left: list[Span] = []  # spans that broke off and must be asked for again
        self._progress_at = gatherer.now()
        self._reason = ""
        self._has_given = False
        self.scope = trio.CancelScope()
        self.error: Exception | None = None

    async def run(self) -> None:
        with self.scope, self._send:
            try:
                await self._drive()
            except KvError as error:
                self.error = self._txn.port_error(error)
            except Exception as error:  # a task's root: the error is raised where the stream is read
                self.error = error

    async def _drive(self) -> None:
        spans = list(self._stage.scan.spans)
        while spans:
            groups = self._grouped(await self._gatherer.cut(spans, self._ts if self._txn.owner is None else None))
            self._left = []
            if self._stage.ordered:
                for position, (node, pieces) in enumerate(groups):
                    await self._fragment(node, pieces)
                    if self._left:
                        self._left += [piece.span for _, later in groups[position + 1 :] for piece in later]
                        break
            else:
                async with trio.open_nursery() as nursery:
                    for node, pieces in groups:
                        nursery.start_soon(self._fragment_caught, node, pieces)
                if self.error is not None:
                    raise self.error
            spans = sorted(self._left)
            if spans:
                if self._gatherer.now() - self._progress_at > DEADLINE_S:
                    raise RangeUnavailableError(f"a range does not answer: {self._reason}")
                await trio.sleep(PAUSE_S)

    def _grouped(self, pieces: list[tuple[NodeId, Piece]]) -> list[tuple[NodeId, tuple[Piece, ...]]]:
        """Put the pieces of a node together; in an ordered stage only neighbours."""
        groups: list[tuple[NodeId, list[Piece]]] = []
        for node, piece in pieces:
            group = next((group for group in groups if group[0] == node), None)
            if self._stage.ordered:
                group = groups[-1] if groups and groups[-1][0] == node else None
            if group is None:
                groups.append((node, [piece]))
            else:
                group[1].append(piece)
        return [(node, tuple(found)) for node, found in groups]

    async def _fragment_caught(self, node: NodeId, pieces: tuple[Piece, ...]) -> None:
        """Run a fragment beside others: the first error ends all, and is kept."""
        try:
            await self._fragment(node, pieces)
        except Exception as error:  # the root of a fragment: kept, and raised by _drive once the siblings are through
            self.error = self.error or error

    async def _fragment(self, node: NodeId, pieces: tuple[Piece, ...]) -> None:
        """Run one fragment; what it leaves undone because of where ranges are goes to `_left`."""
        overlay = self._overlay.clipped(sorted(piece.span for piece in pieces))
        request = FragmentRequest(self._stage, pieces, self._ts, self._txn.owner, overlay)
        rest = {number: piece.span for number, piece in enumerate(pieces)}
        held: list[pa.RecordBatch] = []  # given by the fragment, but not yet followed by a key to go on after
        current = 0
        try:
            steps = self._gatherer.steps(node, request)
            try:
                async for batch, number, resume, counts in steps:
                    if counts is not None:
                        self._report.add(node, counts)
                        continue
                    current = number
                    self._progress_at = self._gatherer.now()
                    if batch is not None:
                        held.append(batch)
                    if not self._stage.is_rowwise and self._stage.sql is not None:
                        if batch is None:
                            rest.pop(number)
                        continue
                    if batch is not None and resume is None:
                        continue
                    await self._flush(held)
                    for earlier in [piece for piece in rest if piece < number]:
                        rest.pop(earlier)
                    if resume is None:
                        rest.pop(number, None)
                    else:
                        rest[number] = Span(resume, pieces[number].span.end)
                if not rest or self._stage.scan.limit is not None:
                    await self._flush(held)
                    return
                raise InternalError("a fragment ended before its last piece")
            finally:
                await _close(steps)
        except (KvError, NotSent, ReplyLost, CallFailed) as error:
            if isinstance(error, KvError) and not isinstance(error.detail, _ADDRESSING):
                raise
            if isinstance(error, CallFailed):
                raise InternalError(str(error)) from error
            self._reason = str(error)
            self._gatherer.forget(pieces[current], error)
            if not isinstance(error, KvError):
                for piece in pieces:  # the node is out of reach: it leads none of them
                    self._gatherer.forget(piece, error)
            whole = not self._stage.is_rowwise and self._stage.sql is not None
            self._left += [piece.span for piece in pieces] if whole else [span for span in rest.values() if not span.is_empty]

    async def _flush(self, held: list[pa.RecordBatch]) -> None:
        for batch in held:
            # An empty batch matters once: it tells the reader the columns of an empty answer.
            if batch.num_rows or not self._has_given:
                self._has_given = True
                await self._send.send(batch)
        held.clear()


async def _close(steps: AsyncIterator[FragmentOutput]) -> None:
    with trio.CancelScope(shield=True):
        await steps.aclose()  # type: ignore[attr-defined]  # an async generator, always
