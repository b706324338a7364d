"""Serving: takes each kind of request through lease, latches, evaluation and proposal to its reply.

    serve ─▶ replica ─▶ lease ─▶ [low water] ─▶ latches ─▶ evaluate (`evaluate`) ─▶ propose ─▶ applied ─▶ reply
                                                  ▲           └─▶ intents met ─▶ latches released ─▶ cleared (`clearing`) ─┐
                                                  └─────────────────────────────────────────────────────────────────────┘
    try_serve ─▶ reads only, and only if nothing has to be waited for

Invariants:
- Every wait is bounded: latches, low water, timestamps, foreign intents and proposals each have their limit.
- After every wait the lease and the keys are looked at again: evaluation does it.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import trio

from dsdb.kv.errors import Conflict, InvalidRequest, KvError, RangeNotFound, Unavailable
from dsdb.kv.ids import SYSTEM_RANGE, AttemptId, RangeId
from dsdb.kv.intents import PrewriteRequest, Pusher, RecordReply, StageRequest, TxnMeta
from dsdb.kv.locks import LockRequest
from dsdb.kv.requests import (
    BumpReply,
    ClearSpanRequest,
    CollectGarbageReply,
    CollectGarbageRequest,
    CommitReply,
    CommitRequest,
    DescribeReply,
    DescribeRequest,
    OutcomeReply,
    RaiseMarkReply,
    RaiseMarkRequest,
    ReadRequest,
    RefreshReply,
    RefreshRequest,
    RefuseRequest,
    Reply,
    Request,
    ScanRequest,
    TransferLeaseReply,
    TransferLeaseRequest,
)
from dsdb.storage.columnar import measure
from dsdb.storage.columnar.block import Blocks
from dsdb.storage.engine.port import Family
from dsdb.storage.keys import Span, key_after
from dsdb.storage.mvcc import Intent, IntentsFoundError, get_intent
from dsdb.storage.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp
from dsdb.storage.versions import View
from dsdb.store import evaluate
from dsdb.store.clearing import Clearing
from dsdb.store.command import ClearSpanCommand, CollectGarbageCommand, CommitCommand, RaiseMarkCommand, RefuseCommand
from dsdb.store.context import StoreContext
from dsdb.store.evaluate import Blocked, IntentsMet
from dsdb.store.intent_serving import IntentServing
from dsdb.store.locking import Locking
from dsdb.store.range_stats import VERSION_SUFFIX_BYTES, count_bytes
from dsdb.store.replica import Replica
from dsdb.store.scan import SnapshotScan

log = logging.getLogger("dsdb.store")

OLD_INTENTS_MAX = 1_000
"""Intents of dead gateways that are settled at one look."""
COUNT_S = 2.0
"""How long the bytes of a part of a range may be counted before a request goes on without."""


class Serving:
    """One for each store."""

    def __init__(self, context: StoreContext, replicas: dict[RangeId, Replica]) -> None:
        self._context = context
        self._replicas = replicas
        self._clearing = Clearing(context)
        self._locking = Locking(context, self._clearing, self.fresh)
        intents = IntentServing(context, self._clearing).handlers
        self.handlers: dict[type, Callable[[Replica, Any], Awaitable[Reply]]] = {
            ReadRequest: self._read,
            ScanRequest: self._scan,
            CommitRequest: self._locking.after_older(self._commit, context.config.lock_give_way_s),
            RefreshRequest: self._refresh,
            RefuseRequest: self._refuse,
            RaiseMarkRequest: self._raise_mark,
            TransferLeaseRequest: self._transfer,
            DescribeRequest: self._describe,
            ClearSpanRequest: self._clear,
            CollectGarbageRequest: self._collect_garbage,
            **intents,
            PrewriteRequest: self._locking.after_older(intents[PrewriteRequest], context.config.staging_wait_s / 2),
            StageRequest: self._locking.after_older(intents[StageRequest], context.config.staging_wait_s / 2),
            **self._locking.handlers,
        }
        """Request type → what serves it; `store` adds those that change ranges."""

    def replica(self, range_id: RangeId) -> Replica:
        """Give the replica of a range.  Raises RangeNotFound."""
        replica = self._replicas.get(range_id)
        if replica is None:
            raise KvError(RangeNotFound(range_id))
        replica.requests += 1
        if replica.load is None:
            self._context.asked.add(range_id)
        self._context.touched.add(range_id)
        return replica

    def _asked(self, request: Request) -> Replica:
        """Give the replica that a request is for, and take it into its sample.  Raises RangeNotFound."""
        replica = self.replica(request.range_id)
        if replica.sample is not None:
            replica.sample.note(request)
        return replica

    def try_serve(self, request: Request) -> Reply | None:
        """Serve a read if nothing has to be waited for; None if it must go through `serve`.  Raises KvError."""
        try:
            if isinstance(request, ReadRequest):
                replica = self._asked(request)
                ts = self._context.timestamps.fresh_nowait() if request.ts is None else request.ts
                return None if ts is None else evaluate.read(replica, request, ts)
            if isinstance(request, ScanRequest):
                replica = self._asked(request)
                ts = self._scan_ts(request)
                return None if ts is None else evaluate.scan(replica, request, ts)
            if isinstance(request, LockRequest):
                return self._locking.try_serve(self._asked(request), request)
        except (Blocked, IntentsMet):
            return None
        return None

    async def serve(self, request: Request) -> Reply:
        """Serve any request.  Raises KvError."""
        return await self.handlers[type(request)](self._asked(request), request)

    def _scan_ts(self, request: ScanRequest) -> Timestamp | None:
        """Give the timestamp at which to scan, if that needs no waiting.

        In nobody's name nothing is ever written at the timestamp of a scan, so none has to be issued for it: a cluster at rest, whose
        nodes look at its settings every few seconds, writes nothing and closes nothing.
        """
        if request.ts is not None:
            return request.ts
        timestamps = self._context.timestamps
        return timestamps.newest_nowait() if request.attempt is None else timestamps.fresh_nowait()

    async def fresh(self) -> Timestamp:
        """Take a timestamp from the oracle.  Raises KvError."""
        timestamps = self._context.timestamps
        ts = timestamps.fresh_nowait()
        if ts is not None:
            return ts
        with trio.move_on_after(self._context.config.timestamp_wait_s):
            return await timestamps.fresh()
        raise KvError(Unavailable("no timestamp from the oracle"))

    # ---- Reads ----

    async def _unblocked(self, replica: Replica, attempt: Callable[[], Reply]) -> Reply:
        until = 0.0
        while True:
            met = None
            try:
                return attempt()
            except Blocked as blocked:
                await replica.wait_blocking(blocked.latch)
            except IntentsMet as error:
                met = error
            if met is not None:
                until = until or self._clearing.deadline()
                await self._clearing.clear(replica, met, Pusher(met.ts), until)

    async def _read(self, replica: Replica, request: ReadRequest) -> Reply:
        ts = await self.fresh() if request.ts is None else request.ts
        return await self._unblocked(replica, lambda: evaluate.read(replica, request, ts))

    async def _scan(self, replica: Replica, request: ScanRequest) -> Reply:
        ts = self._scan_ts(request)
        if ts is None:
            ts = await self.fresh()
        return await self._unblocked(replica, lambda: evaluate.scan(replica, request, ts))

    async def scan_snapshot(
        self, range_id: RangeId, span: Span, ts: Timestamp, attempt: AttemptId | None, *, any_replica: bool = False
    ) -> SnapshotScan:
        """Freeze a span at `ts` for reading at leisure, once no write stands in the way.  Raises KvError."""
        until = 0.0
        while True:
            replica = self.replica(range_id)
            if replica.sample is not None:
                replica.sample.note_span(span)
            if any_replica and replica.takes_past_read(ts):
                evaluate.check_span_read(replica, span, ts, is_past=True)
                return self._freeze(replica, span, View(ts))
            try:
                return self.scan_snapshot_nowait(replica, span, ts, attempt)
            except Blocked as blocked:
                await replica.wait_blocking(blocked.latch)
                continue
            except IntentsMet as error:
                met = error
            until = until or self._clearing.deadline()
            await self._clearing.clear(replica, met, Pusher(met.ts), until)

    def scan_snapshot_nowait(self, replica: Replica, span: Span, ts: Timestamp, attempt: AttemptId | None) -> SnapshotScan:
        """Freeze a span at `ts` now.  Raises Blocked, IntentsMet, KvError."""
        evaluate.check_span_read(replica, span, ts)
        try:
            replica.machine.provisional.pass_in(span, ts, attempt, replica.passable)
        except IntentsFoundError as error:
            raise IntentsMet(error.intents, ts, is_write=False, is_read=True) from None
        replica.cache.note_span(span, ts, attempt)
        return self._freeze(replica, span, View(ts, attempt, dict(replica.passable), dict(replica.committed)))

    def _freeze(self, replica: Replica, span: Span, view: View) -> SnapshotScan:
        number = self._context.stretches.number
        snapshot = self._context.engine.snapshot()
        return SnapshotScan(snapshot, span, view, self._context.blocks_of(snapshot, number) if replica.has_blocks else None)

    async def settle_intents(self, range_id: RangeId, intents: list[tuple[bytes, Intent]], ts: Timestamp) -> None:
        """Get intents that a frozen span met at `ts` out of the way of its next part.  Raises KvError."""
        replica = self.replica(range_id)
        replica.require_lease()
        await self._clearing.clear(replica, IntentsMet(intents, ts, is_write=False, is_read=True), Pusher(ts), self._clearing.deadline())

    def has_records(self) -> bool:
        """Say whether any range led here keeps a txn record."""
        now = self._context.clock.now()
        return any(replica.machine.records and replica.holds_lease(now) for replica in self._context.led.values())

    def stale_records(self, below: Timestamp, count_max: int) -> list[tuple[TxnMeta, RecordReply]]:
        """Give the txn records of ranges led here whose first_ts lies below a timestamp.

        Those of large transactions are left out while their gateways are heard of: they may run, and be cleaned up after, for long.
        """
        now = self._context.clock.now()
        silence_s = self._context.config.lock_silence_s
        return [
            (
                TxnMeta(attempt, record.anchor, record.first_ts, record.start_ts),
                RecordReply(record.status, record.ts, record.keys, record.spans),
            )
            for _, replica in sorted(self._context.led.items())
            if replica.machine.records and replica.holds_lease(now)
            for attempt, record in replica.machine.records.items()
            if record.first_ts < below and not (record.spans and not replica.verdicts.is_silent(attempt, now, silence_s))
        ][:count_max]

    def has_intents(self) -> bool:
        """Say whether any range led here has intents that are not resolved, or may have."""
        now = self._context.clock.now()
        return any(
            (replica.machine.intents.count or replica.machine.provisional) and replica.holds_lease(now)
            for replica in self._context.led.values()
        )

    async def settle_oldest_intents(self, below: Timestamp) -> int:
        """Settle intents of ranges led here that stand below a timestamp, the oldest first; give how many were.

        They hold back what is resolved (rule 23), and nobody may ever meet them.  Those of transactions that go on are left.
        """
        settled = 0
        for replica in [each for _, each in sorted(self._context.led.items()) if each.machine.intents.count or each.machine.provisional]:
            replica.resolved_ts()  # which has intents looked for that are not known
            settled += await self._settle_oldest_blocks(replica, below)
            tried: tuple[Timestamp, bytes] | None = None
            while settled < OLD_INTENTS_MAX and replica.holds_lease(self._context.clock.now()):
                oldest = replica.machine.intents.oldest()
                intent = None if oldest is None or oldest[0] >= below else get_intent(self._context.engine, oldest[1])
                if oldest is None or intent is None or oldest == tried:
                    break
                tried = oldest
                met = IntentsMet([(oldest[1], intent)], oldest[0], is_write=True)
                try:
                    await self._clearing.clear(replica, met, Pusher(MAX_TIMESTAMP), self._clearing.deadline())
                except KvError as error:
                    log.info("range %d: an old intent is left for later: %s", replica.range_id, error)
                    break
                settled += oldest != replica.machine.intents.oldest()
        return settled

    async def _settle_oldest_blocks(self, replica: Replica, below: Timestamp) -> int:
        """Do the same for block intents of a range."""
        blocks, settled = replica.machine.provisional, 0
        while (block := blocks.oldest()) is not None and block.ts < below and replica.holds_lease(self._context.clock.now()):
            met = IntentsMet([(block.first_key, block.intent())], block.ts, is_write=True)
            try:
                await self._clearing.clear(replica, met, Pusher(MAX_TIMESTAMP), self._clearing.deadline())
            except KvError as error:
                log.info("range %d: an old block intent is left for later: %s", replica.range_id, error)
                break
            if blocks.oldest() is block:
                break
            settled += 1
        return settled

    async def _refresh(self, replica: Replica, request: RefreshRequest) -> Reply:
        def attempt() -> Reply:
            evaluate.refresh(replica, request)
            return RefreshReply()

        if all(span.end == span.start + b"\x00" for span in request.spans):
            return await self._unblocked(replica, attempt)
        return await self._refresh_at_leisure(replica, request)

    async def _refresh_at_leisure(self, replica: Replica, request: RefreshRequest) -> Reply:
        """Refresh spans that may be long: recorded as read first, so that a frozen state can be looked at while others have their turns."""
        rest = list(request.spans)
        until = 0.0
        while rest:
            try:
                evaluate.record_refresh(replica, request, rest)
            except Blocked as blocked:
                await replica.wait_blocking(blocked.latch)
                continue
            view = View(request.high, request.attempt, dict(replica.passable))
            snapshot = self._context.engine.snapshot()
            rows = replica.rows_of(snapshot)
            met: list[tuple[bytes, Intent]] = []
            try:
                for span in rest:
                    replica.machine.provisional.refresh_in(span, request.high, request.attempt, replica.passable)
                while rest:
                    for found in rows.changes(rest[0], request.low, view):
                        if found is not None:
                            raise KvError(Conflict(*found))
                        await trio.lowlevel.checkpoint()
                    del rest[0]
            except IntentsFoundError as error:
                met = error.intents
            finally:
                snapshot.release()
            if met:
                until = until or self._clearing.deadline()
                intents_met = IntentsMet(met, request.high, is_write=False)
                await self._clearing.clear(replica, intents_met, Pusher(request.high), until)
        return RefreshReply()

    # ---- Commits ----

    async def _commit(self, replica: Replica, request: CommitRequest) -> Reply:
        keys, writes = evaluate.check_commit(request)
        ts = request.ts
        until = 0.0
        while True:
            try:
                return await self._commit_at(replica, request, keys, writes, ts)
            except IntentsMet as error:
                met = error
            except KvError as error:
                if isinstance(error.detail, Conflict):
                    replica.locks.release(request.attempt, self._context.clock.now())
                raise
            # Intents that its reads met were pushed above that very timestamp; what it writes may have a newer version now.
            ts = request.ts if met.is_write else met.ts
            until = until or self._clearing.deadline()
            pusher = Pusher(request.start_ts or request.first_ts, request.attempt, wounds=request.holds_locks)
            await self._clearing.clear(replica, met, pusher, until)

    async def _commit_at(
        self, replica: Replica, request: CommitRequest, keys: tuple[bytes, ...], writes: tuple[Any, ...], ts: Timestamp | None
    ) -> Reply:
        """Commit at a timestamp, or one of the leaseholder's choice.  Raises IntentsMet, KvError."""
        replica.require_lease()
        if replica.low_term != replica.lease_term:
            await replica.wait_low_water()
        recorded = evaluate.recorded_outcome(replica, request)
        if recorded is not None:
            return recorded
        latch = replica.latches.acquire(keys, (), request.reads)
        if not latch.is_granted:
            await replica.wait_latch(latch)
        is_proposed = False
        try:
            decided = await self._evaluate_commit(replica, request, keys, writes, ts)
            if not isinstance(decided, CommitCommand):
                return decided
            waiter = replica.propose(decided, latch)
            is_proposed = True
            latch.evaluated_ts = decided.ts
            if request.reads:
                replica.latches.end_reads(latch)
        finally:
            if not is_proposed:
                replica.latches.release(latch)
        return await waiter.wait()

    async def _evaluate_commit(
        self, replica: Replica, request: CommitRequest, keys: tuple[bytes, ...], writes: tuple[Any, ...], ts: Timestamp | None
    ) -> CommitCommand | CommitReply | BumpReply:
        """Evaluate at the timestamp asked for, and at fresh ones as long as it is bumped and may choose (rule 8c)."""
        seen = None
        if len(writes) > evaluate.SLICE_WRITES:
            recorded = evaluate.recorded_outcome(replica, request)
            if recorded is not None:
                return recorded
            seen = await self._look_up(replica, keys, writes)
        if request.reads and evaluate.spans_to_refresh(request):
            seen = await self._look_for_changes(replica, request, ts, seen or evaluate.Seen(replica.lease_term))
        if ts is None:
            ts = self._context.timestamps.fresh_nowait()
            if ts is None:
                ts = await self.fresh()
        for _ in range(self._context.config.fresh_timestamps_max):
            decided = evaluate.evaluate_commit(replica, request, keys, writes, ts, seen)
            if request.has_other_reads or not isinstance(decided, BumpReply):
                return decided
            ts = await self.fresh()
        return decided

    async def _look_up(self, replica: Replica, keys: tuple[bytes, ...], writes: tuple[Any, ...]) -> evaluate.Seen:
        """Look up what stands under the keys of a large commit, while others have their turns."""
        seen = evaluate.Seen(replica.lease_term)
        for begin in range(0, len(keys), evaluate.SLICE_WRITES):
            end = begin + evaluate.SLICE_WRITES
            seen = evaluate.look_up(replica, keys[begin:end], writes[begin:end], seen)
            await trio.lowlevel.checkpoint()
        return seen

    async def _look_for_changes(self, replica: Replica, request: CommitRequest, ts: Timestamp | None, seen: evaluate.Seen) -> evaluate.Seen:
        """Look for changes in the spans that a commit read, while others have their turns.  What is found is left to the evaluation.

        Without a timestamp everything is looked at; where that finds intents one is taken, as they must be pushed above some.
        Raises IntentsMet.
        """
        assert request.read_ts is not None
        high = MAX_TIMESTAMP if ts is None else ts
        view = View(high, request.attempt, replica.passable)
        for span in request.reads:
            evaluate.require_seen(replica, seen)
            # A block that is folded meanwhile must not be gone.
            snapshot = self._context.engine.snapshot()
            try:
                replica.machine.provisional.refresh_in(span, high, request.attempt, replica.passable)
                for number, found in enumerate(replica.rows_of(snapshot).changes(span, request.read_ts, view)):
                    if found is not None:
                        return seen
                    if number:
                        await trio.lowlevel.checkpoint()
                        evaluate.require_seen(replica, seen)
            except IntentsFoundError as error:
                met = error.intents
            else:
                continue
            finally:
                snapshot.release()
            raise IntentsMet(met, await self.fresh() if ts is None else ts, is_write=False)
        return msgspec.structs.replace(seen, unchanged_to=high)

    async def _refuse(self, replica: Replica, request: RefuseRequest) -> Reply:
        replica.require_lease()
        outcome = replica.machine.outcomes.get(request.attempt)
        if outcome is not None:
            return OutcomeReply(outcome.ts)
        return await replica.propose(RefuseCommand(replica.lease_term, request.attempt, request.first_ts), None).wait()

    # ---- The rest ----

    async def _raise_mark(self, replica: Replica, request: RaiseMarkRequest) -> Reply:
        replica.require_lease()
        if replica.range_id != SYSTEM_RANGE:
            raise KvError(InvalidRequest(f"range {replica.range_id} has no oracle mark"))
        if request.mark <= replica.machine.state.mark:
            return RaiseMarkReply(replica.machine.state.mark)
        return await replica.propose(RaiseMarkCommand(replica.lease_term, request.mark), None).wait()

    async def _transfer(self, replica: Replica, request: TransferLeaseRequest) -> Reply:
        replica.require_lease()
        target = replica.descriptor.replica_on(request.to)
        if target is None:
            raise KvError(InvalidRequest(f"range {replica.range_id} has no replica on store {request.to}"))
        if target.replica_id != replica.replica_id:
            # From here on the core says that there is no lease.
            replica.doubt_lease()
            if not replica.raft.transfer_leadership(target.replica_id):
                raise KvError(InvalidRequest(f"replica {target.replica_id} of range {replica.range_id} cannot lead"))
            replica.touch()
        return TransferLeaseReply()

    async def _describe(self, replica: Replica, request: DescribeRequest) -> Reply:
        load = replica.load
        requests_per_s = None if not replica.is_leader else 0.0 if load is None else load.requests_per_s
        quarantined = tuple([member.store_id for member in replica.descriptor.replicas if member.replica_id in replica.damaged_peers])
        size_bytes = replica.machine.applied.size_bytes
        blocks = sum(1 for _ in self._context.blocks.entries(replica.descriptor.span)) if replica.has_blocks else 0
        return DescribeReply(replica.descriptor, replica.leader_store, size_bytes, requests_per_s, quarantined, blocks)

    async def _clear(self, replica: Replica, request: ClearSpanRequest) -> Reply:
        replica.require_lease()
        replica.require_span(request.span)
        latch = replica.latches.acquire((), (request.span,))
        await replica.wait_latch(latch)
        is_proposed = False
        try:
            replica.require_lease()
            replica.require_span(request.span)
            # Nobody writes it under the latch, nor should anybody want to: what it has is counted at leisure.
            until = self._context.clock.now() + COUNT_S
            counted = await count_bytes(self._context.engine, request.span, is_over=lambda: self._context.clock.now() > until)
            replica.require_lease()
            replica.require_span(request.span)
            command = ClearSpanCommand(replica.descriptor.generation, replica.lease_term, request.span, counted or 0)
            waiter = replica.propose(command, latch)
            is_proposed = True
            latch.evaluated_ts = MIN_TIMESTAMP
        finally:
            if not is_proposed:
                replica.latches.release(latch)
        return await waiter.wait()

    async def _collect_garbage(self, replica: Replica, request: CollectGarbageRequest) -> Reply:
        """Collect in steps, each one command over as many versions as may be looked at without a pause."""
        removed = 0
        start: bytes | None = replica.descriptor.start_key
        while start is not None:
            replica.require_lease()
            descriptor = replica.descriptor
            if not descriptor.start_key <= start < descriptor.end_key:
                break
            end = self._garbage_end(start, descriptor.end_key)
            span = Span(start, descriptor.end_key if end is None else end)
            reply = await self._collect_span(replica, span, request.threshold)
            assert isinstance(reply, CollectGarbageReply), reply
            removed += reply.removed
            start = end
        return CollectGarbageReply(replica.machine.state.threshold, removed)

    async def _collect_span(self, replica: Replica, span: Span, threshold: Timestamp) -> Reply:
        """Collect in one span, with no write evaluated and not applied in it: it may stand at or below the threshold (rule 31)."""
        latch = replica.latches.acquire((), (span,))
        await replica.wait_latch(latch)
        is_proposed = False
        try:
            replica.require_lease()
            replica.require_span(span)
            command = CollectGarbageCommand(replica.descriptor.generation, replica.lease_term, span, threshold)
            waiter = replica.propose(command, latch)
            is_proposed = True
        finally:
            if not is_proposed:
                replica.latches.release(latch)
        return await waiter.wait()

    def _garbage_end(self, start: bytes, end: bytes) -> bytes | None:
        """Give the end of the part, from `start`, that one command may look at; None for all the rest."""
        rows_max = self._context.config.garbage_chunk_rows
        # What is in blocks here may be in the delta of other replicas.
        behind = measure.key_behind(Blocks(self._context.engine), Span(start, end), rows_max)
        for keys, _values in self._context.engine.scan(Family.DELTA, start, end, chunk_rows=rows_max):
            last = keys[-1][:-VERSION_SUFFIX_BYTES]
            if len(keys) == rows_max and last >= start:
                return key_after(last) if behind is None else min(key_after(last), behind)
            break
        return behind
