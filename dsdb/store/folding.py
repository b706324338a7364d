"""Folding: old versions of this store's ranges go from the delta into columnar blocks, by each replica for itself.

    applied ─▶ context.changed ─▶ quiet for a while, or much was written ─▶ plan: versions counted by block ─▶ regions worth it
      region ─▶ engine snapshot ─▶ worker thread: `fold` fills a batch ─▶ loop: still the same replica? ─▶ one write
                     ▲                                                        └── else dropped, planned anew later
                     └───────────── the next batch, after a pause: `fold_share` of the time at most ─┘

The collection of blocks' histories goes the same way, whenever the threshold has risen.  Nothing here is replicated: replicas differ in
what is folded, and in their own sizes, never in what reads see (docs/decisions/0021).

Invariants:
- Only versions at or below the resolved timestamp are folded: nobody writes there any more, and no intent stands there.
- A batch is written only if nothing was removed, cleared, divided or installed in its range since its engine snapshot was made, and
  while the engine shows all that was applied.  New versions and intents do not matter: they lie above.
- The loop is held for one write of `fold_batch_versions` versions and a block at most.
- Rows of indexes whose layouts are not known stay where they are; so does the system range, and every range that is small.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple, NoReturn, Protocol, TypeVar

import trio

from dsdb.env.disk import Offload
from dsdb.kv.ids import SYSTEM_RANGE, RangeId
from dsdb.storage.columnar import upkeep
from dsdb.storage.columnar.block import BlockCache, Blocks
from dsdb.storage.columnar.fold import fold
from dsdb.storage.columnar.foldable import FoldRegion, foldable
from dsdb.storage.engine.port import Family, WriteBatch
from dsdb.storage.errors import CorruptionError, DiskFullError, KeyFormatError, WriteStallError
from dsdb.storage.keys import Span, decode_index_prefix, index_prefix, prefix_span
from dsdb.storage.rowcodec import RowLayout
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp
from dsdb.store.config import StoreConfig
from dsdb.store.context import StoreContext
from dsdb.store.loop import RaftLoop
from dsdb.store.replica import Replica
from dsdb.store.state_machine import StateMachine

log = logging.getLogger("dsdb.store")

SHARE_MIN = 0.01
"""While folding is being switched off."""
CACHE_BYTES = 8 << 20
"""Decompressed parts of the block that is folded."""
REST_PART = 256
"""At rest a block is written anew for one changed row in so many, but for `fold_rest_versions` at least."""
BUSY_PART = 8
"""While a range is written, for one in so many."""
REST_SWEEP_PART = 16
"""At rest so small a part of `fold_sweep_versions` is enough for the delta to be compacted."""
HISTORIES_AT_ONCE = 2
"""Blocks whose histories one batch collects."""

T = TypeVar("T")


class LayoutSource(Protocol):
    """Knows the layouts of rows; implemented by the node, which has the catalogue."""

    async def layouts_of(self, database_id: int, table_id: int, index_id: int) -> Mapping[int, RowLayout]:
        """Give the layouts of an index's rows by their ids; none if it is not known."""


class _NoLayouts:
    """Stands in before there is a catalogue."""

    async def layouts_of(self, database_id: int, table_id: int, index_id: int) -> Mapping[int, RowLayout]:
        """Know nothing."""
        return {}


class _Done(NamedTuple):
    """What a piece of work put into a batch."""

    versions: int
    grown_bytes: int
    resume: bytes | None


_Work = Callable[[Blocks, WriteBatch, Timestamp, Timestamp], _Done]
"""Blocks, batch, resolved timestamp, threshold ─▶ what was done; runs in the worker."""


class _Pending:
    """A range in which something may be to do."""

    __slots__ = ("changed_at", "collected", "is_looked_at", "left", "writes")

    def __init__(self, now: float) -> None:
        self.changed_at = now
        self.writes = 0
        """Of the replica's machine, when it was looked at last."""
        self.is_looked_at = False
        """Since it has been quiet."""
        self.collected: Timestamp = MIN_TIMESTAMP
        """The threshold for which its histories were collected."""
        self.left = 0
        """Versions folded since the delta was compacted."""


def is_worth(region: FoldRegion, config: StoreConfig, *, at_rest: bool) -> bool:
    """Say whether a region's versions are enough for what writing its block anew costs."""
    if not region.rows:
        return region.versions >= config.fold_versions_min
    part = region.rows // (REST_PART if at_rest else BUSY_PART)
    return region.versions >= min(max(part, config.fold_rest_versions), config.fold_versions_min)


class Folding:
    """One for each store."""

    def __init__(self, context: StoreContext, replicas: dict[RangeId, Replica], loop: RaftLoop, worker: Offload) -> None:
        self._context = context
        self._replicas = replicas
        self._loop = loop
        self.worker = worker
        self.is_on = context.config.folds
        self.share = context.config.fold_share
        """Of the time, at most; 0: nothing is folded.  Both may be changed at any time."""
        self.layouts: LayoutSource = _NoLayouts()
        """Set by the node."""
        self._pending: dict[RangeId, _Pending] = {}
        self._has_more = False
        """The range that is looked at has something that can be folded later only."""
        self.batches = 0
        self.dropped = 0
        """Batches that were not written, as their range had changed."""
        self.versions_folded = 0
        self.sweeps = 0
        """Compactions of a range's delta."""
        self.versions_collected = 0
        """Of blocks' histories."""

    def statistics(self) -> dict[str, float]:
        """Give figures for metrics."""
        return {
            "fold_batches": float(self.batches),
            "fold_batches_dropped": float(self.dropped),
            "versions_folded": float(self.versions_folded),
            "fold_sweeps": float(self.sweeps),
            "block_versions_collected": float(self.versions_collected),
        }

    async def run(self) -> NoReturn:
        """Fold, until cancelled."""
        self._context.changed.update(self._replicas)
        while True:
            await trio.sleep(self._context.config.fold_look_s)
            self._note_changed()
            if self.is_on and self.share > 0:
                for range_id, at_rest in self._due():
                    await self._look_at(range_id, at_rest=at_rest)

    # ---- What is to be looked at ----

    def _note_changed(self) -> None:
        changed, self._context.changed = self._context.changed, set()
        now = self._context.clock.now()
        for range_id in sorted(changed):
            pending = self._pending.get(range_id)
            if pending is None:
                self._pending[range_id] = _Pending(now)
            else:
                pending.changed_at = now
                pending.is_looked_at = False

    def _due(self) -> list[tuple[RangeId, bool]]:
        """Give the ranges to look at now, and which are at rest."""
        config, now = self._context.config, self._context.clock.now()
        found = []
        for range_id, pending in sorted(self._pending.items()):
            replica = self._replicas.get(range_id)
            if replica is None or not self._is_large(replica):
                del self._pending[range_id]
                continue
            quiet_s = now - pending.changed_at
            written = replica.machine.writes - pending.writes
            if quiet_s >= config.fold_rest_s:
                found.append((range_id, True))
            elif (quiet_s >= config.fold_quiet_s and not pending.is_looked_at) or not 0 <= written < config.fold_busy_writes:
                found.append((range_id, False))
        return found

    def _is_large(self, replica: Replica) -> bool:
        if replica.range_id == SYSTEM_RANGE or replica.is_destroyed:
            return False
        return replica.has_blocks or replica.machine.applied.size_bytes >= self._context.config.fold_range_bytes_min

    async def _look_at(self, range_id: RangeId, *, at_rest: bool) -> None:
        """Fold in a range what is worth it."""
        replica, pending = self._replicas.get(range_id), self._pending[range_id]
        if replica is None:
            return
        pending.is_looked_at = True
        pending.writes = replica.machine.writes
        changed_at = pending.changed_at
        self._has_more = False
        try:
            folded = self.versions_folded
            await self._fold_range(replica, at_rest=at_rest)
            pending.left += self.versions_folded - folded
            await self._sweep(replica, pending, at_rest=at_rest)
            await self._collect(replica, pending)
        except CorruptionError as error:
            self._context.on_unreadable(range_id, error)
        if at_rest and self._has_more:
            pending.changed_at = self._context.clock.now()
        elif at_rest and pending.changed_at == changed_at and range_id not in self._context.changed:
            del self._pending[range_id]

    # ---- Folding ----

    async def _fold_range(self, replica: Replica, *, at_rest: bool) -> None:
        start: bytes | None = replica.descriptor.start_key
        while start is not None and (found := self._next_index(replica, start)) is not None:
            ids, span = found
            layouts = await self.layouts.layouts_of(*ids)
            if layouts:
                await self._fold_index(replica, span, layouts, at_rest=at_rest)
            start = span.end

    def _next_index(self, replica: Replica, start: bytes) -> tuple[tuple[int, int, int], Span] | None:
        """Find the next index with rows in the delta of a range, from a key on; give its ids and its part of the range."""
        found = self._context.engine.first(Family.DELTA, start, replica.descriptor.end_key)
        if found is None:
            return None
        try:
            *ids, _ = decode_index_prefix(found[0])
        except KeyFormatError:
            return None
        database_id, table_id, index_id = ids
        return (database_id, table_id, index_id), prefix_span(index_prefix(*ids)).clipped(replica.descriptor.span)

    async def _fold_index(self, replica: Replica, span: Span, layouts: Mapping[int, RowLayout], *, at_rest: bool) -> None:
        regions: list[FoldRegion] = []

        def count(blocks: Blocks, _: WriteBatch, resolved: Timestamp, __: Timestamp) -> _Done:
            found, above = foldable(blocks, span, resolved)
            regions.extend(found)
            return _Done(above, 0, None)

        counted = await self._step(replica, count)
        if counted is None:
            return
        # As long as something is written or not resolved there, it is looked at again.
        self._has_more = self._has_more or counted.versions > 0
        for region in self._chosen(regions, at_rest=at_rest):
            start: bytes | None = region.start
            while start is not None and start < region.end and span.covers(Span(start, span.end)):
                if not replica.descriptor.span.covers(span):
                    # It was split: both sides are looked at again.
                    return
                done = await self._step(replica, partial(self._fold_some, span=span, layouts=layouts, start=start))
                if done is None:
                    return
                self.versions_folded += done.versions
                start = done.resume

    def _chosen(self, regions: list[FoldRegion], *, at_rest: bool) -> Iterator[FoldRegion]:
        config = self._context.config
        return (region for region in regions if is_worth(region, config, at_rest=at_rest))

    def _fold_some(
        self,
        blocks: Blocks,
        batch: WriteBatch,
        resolved: Timestamp,
        threshold: Timestamp,
        *,
        span: Span,
        layouts: Mapping[int, RowLayout],
        start: bytes,
    ) -> _Done:
        config = self._context.config
        done = fold(
            *(blocks, batch, span, resolved, threshold, layouts),
            start=start,
            rows_max=config.fold_block_rows,
            versions_max=config.fold_batch_versions,
        )
        return _Done(done.versions, done.grown_bytes, done.resume)

    async def _collect(self, replica: Replica, pending: _Pending) -> None:
        """Collect the histories of a range's blocks, once for each threshold."""
        threshold = replica.machine.state.threshold
        if not replica.has_blocks or threshold <= pending.collected:
            return
        start: bytes | None = replica.descriptor.start_key
        while start is not None:
            span = Span(start, replica.descriptor.end_key)
            done = await self._step(replica, partial(_collect_some, span=span))
            if done is None:
                return
            self.versions_collected += done.versions
            start = done.resume
        pending.collected = threshold

    async def _sweep(self, replica: Replica, pending: _Pending, *, at_rest: bool) -> None:
        """Free the delta of what many folded versions have left there."""
        engine, span = self._context.engine, replica.descriptor.span
        enough = self._context.config.fold_sweep_versions
        if pending.left < (enough // REST_SWEEP_PART if at_rest else enough) or not self._may_fold(replica):
            return
        try:
            await self.worker.run(lambda: engine.compact(Family.DELTA, span.start, span.end))
        except DiskFullError:
            return
        pending.left = 0
        self.sweeps += 1

    # ---- Steps ----

    def _may_fold(self, replica: Replica) -> bool:
        """Say whether a replica is whole, and the engine shows all that it has applied."""
        is_there = self._replicas.get(replica.range_id) is replica and not replica.is_destroyed
        return is_there and replica.is_written and replica.damage is None and not replica.is_halted

    async def _step(self, replica: Replica, work: _Work) -> _Done | None:
        """Have a piece of work done by the worker, and write what it gives; None if that must be later.  Raises CorruptionError."""
        done = await self._try_step(replica, work)
        self._has_more = self._has_more or done is None
        return done

    async def _try_step(self, replica: Replica, work: _Work) -> _Done | None:
        context = self._context
        if not self._may_fold(replica):
            return None
        machine, stamp = replica.machine, _stamp(replica)
        resolved, threshold = replica.resolved_ts(), machine.state.threshold
        if resolved < threshold or resolved <= MIN_TIMESTAMP:
            return None
        batch, snapshot, began = context.engine.new_batch(), context.engine.snapshot(), context.clock.now()
        try:
            done = await self.worker.run(lambda: work(Blocks(snapshot, BlockCache(CACHE_BYTES)), batch, resolved, threshold))
        finally:
            snapshot.release()
        if len(batch) and not await self._write(replica, machine, stamp, batch, done.grown_bytes):
            self.dropped += 1
            return None
        spent_s = context.clock.now() - began
        await trio.sleep(spent_s * (1 / max(self.share, SHARE_MIN) - 1))
        return done

    async def _write(self, replica: Replica, machine: StateMachine, stamp: tuple[int, int], batch: WriteBatch, grown: int) -> bool:
        """Write a batch, unless its range has changed."""
        context = self._context
        while self._may_fold(replica) and replica.machine is machine and _stamp(replica) == stamp:
            try:
                machine.write_folded(context.engine, batch, grown)
            except WriteStallError:
                await trio.sleep(context.config.stall_backoff_s)
                continue
            except DiskFullError:
                return False
            replica.has_blocks = True
            self._loop.count_unsynced(batch.size_bytes)
            self.batches += 1
            return True
        return False


def _stamp(replica: Replica) -> tuple[int, int]:
    """Give what changes with whatever makes a fold of a range void."""
    return replica.machine.upheavals, replica.descriptor.generation


def _collect_some(blocks: Blocks, batch: WriteBatch, _: Timestamp, threshold: Timestamp, *, span: Span) -> _Done:
    removed, size, resume = upkeep.collect_garbage(blocks, batch, span, threshold, blocks_max=HISTORIES_AT_ONCE)
    return _Done(removed, -size, resume)
