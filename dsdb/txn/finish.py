"""What comes after the client was told: the record says so, intents become versions, the record goes (rules 20 to 22).

    committed ─▶ end(c) with the intents beside the record ─▶ resolve, each other range ─┐
    aborted ───▶ resolve, each range ────────────────────────────────────────────────────┴▶ remove records, some at a time

Invariants:
- Intents are resolved only after the record is finished, applied; it is removed only after all of them are, applied (rule 22).
- It is nobody's duty: what fails here is done by whoever meets an intent, or by the janitor.
- Bounded: when too many are at it, a commit waits for its own.
"""

import logging
from collections.abc import Awaitable, Callable

import msgspec
import trio

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.errors import KvError
from dsdb.kv.ids import AttemptId
from dsdb.kv.intents import (
    EndTxnRequest,
    RecordReply,
    RemoveRecordsRequest,
    ResolveItem,
    ResolveRequest,
    TxnMeta,
    TxnStatus,
)
from dsdb.oracle import OracleClient
from dsdb.ranges import Router
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import Timestamp
from dsdb.txn.counters import TxnCounters
from dsdb.txn.resolve_spans import resolve_spans
from dsdb.txn.sender import Sender

log = logging.getLogger("dsdb.txn")

FINISHING_MAX = 256
"""Commits that are cleaned up after at a time."""
REMOVE_INTERVAL_S = 0.075
"""Records are removed together: one command for all of a range that were finished in this time."""
RESOLVE_KEYS_MAX = 1_024
"""Keys of one resolve."""


class FinishJob(msgspec.Struct, frozen=True):
    """A commit whose client has its answer."""

    meta: TxnMeta
    keys: tuple[bytes, ...]
    """All that it writes, ascending."""
    commit_ts: Timestamp | None
    """None if it was aborted."""
    is_recorded: bool = False
    """The record says so already, or there is none."""
    has_record: bool = True
    """A record may be there to be removed."""
    spans: tuple[Span, ...] = ()
    """Of a large transaction, in place of keys: where it may have intents."""
    ended: Callable[[], None] | None = None
    """Called when nobody is at it any more."""


class Finisher:
    """One for each node."""

    def __init__(self, router: Router, oracle: OracleClient, counters: TxnCounters) -> None:
        self._router = router
        self._oracle = oracle
        self._counters = counters
        self._nursery: trio.Nursery | None = None
        self._running = 0
        self._removable: list[tuple[bytes, AttemptId]] = []
        """Anchors and attempts of records that nobody needs any more."""
        self._is_removing = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the tasks, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def drain(self, timeout_s: float) -> None:
        """Wait until everything is cleaned up, for a moment."""
        with trio.move_on_after(timeout_s):
            while self._running or self._removable or self._is_removing:  # noqa: ASYNC110 (once, at the end of a node)
                await trio.sleep(0.01)

    async def finish(self, job: FinishJob) -> None:
        """Clean up after a commit: in the background, or, if too many are at it, now.  Does nothing while `run` does not run."""
        if self._nursery is None:
            return
        if self._running < FINISHING_MAX:
            self._running += 1
            self._nursery.start_soon(self._run_in_background, job)
            return
        self._counters.finishes_waited += 1
        await self._run(job)

    async def _run_in_background(self, job: FinishJob) -> None:
        try:
            await self._run(job)
        finally:
            self._running -= 1

    async def _run(self, job: FinishJob) -> None:
        try:
            if await self.settle_intents(job) and job.has_record:
                self.remove_later(job.meta)
        except KvError as error:
            self._counters.finishes_failed += 1
            log.info("a commit is left for others to clean up after: %s", error)
        finally:
            if job.ended is not None:
                job.ended()

    def start(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do something in the background that nobody waits for.  Does nothing while `run` does not run."""
        if self._nursery is not None:
            self._running += 1
            self._nursery.start_soon(self._work, work)

    async def _work(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except KvError as error:
            log.info("a transaction that was given up is left for others to clean up after: %s", error)
        finally:
            self._running -= 1

    async def settle_intents(self, job: FinishJob) -> bool:
        """Bring an outcome into the record and to the intents; say whether all are resolved.  Raises KvError."""
        sender = Sender(self._router, self._oracle)
        keys = job.keys
        if job.commit_ts is not None and not job.is_recorded:
            resolved = await self._end(sender, job, job.commit_ts)
            if resolved is None:
                return False
            keys = tuple([key for key in keys if key not in resolved])
        await resolve(sender, job.meta.attempt, keys, job.commit_ts)
        if job.spans:
            await resolve_spans(self._router, self._oracle, job.meta.attempt, job.spans, job.commit_ts)
        return True

    async def _end(self, sender: Sender, job: FinishJob, commit_ts: Timestamp) -> frozenset[bytes] | None:
        """Have the record say COMMITTED, and the intents beside it resolved; give their keys, or None if others have done it all."""
        meta = job.meta
        groups = await self._router.cut_keys(job.keys)
        here = next(group for entry, group in groups if entry.start_key <= meta.anchor < entry.end_key)[:RESOLVE_KEYS_MAX]
        beside: tuple[bytes, ...] = ()

        def make(desc: RangeDescriptor) -> EndTxnRequest:
            nonlocal beside
            beside = tuple([key for key in here if desc.start_key <= key < desc.end_key])
            return EndTxnRequest(desc.range_id, meta, commit_ts, commit_ts, beside)

        reply = await sender.send(meta.anchor, make)
        assert isinstance(reply, RecordReply)
        if reply.status is TxnStatus.COMMITTED and reply.ts == commit_ts:
            return frozenset(beside)
        if reply.status is not TxnStatus.GONE:
            log.critical("attempt %s was committed at %d, and its record says %s", meta.attempt.hex(), commit_ts, reply)
        return None

    # ---- Removal ----

    def remove_later(self, meta: TxnMeta) -> None:
        """Have a finished record removed, all of whose intents are resolved."""
        self._removable.append((meta.anchor, meta.attempt))
        if not self._is_removing and self._nursery is not None:
            self._is_removing = True
            self._nursery.start_soon(self._remove)

    async def _remove(self) -> None:
        try:
            while self._removable:
                await trio.sleep(REMOVE_INTERVAL_S)
                records, self._removable = sorted(self._removable), []
                await self._remove_now(records)
        finally:
            self._is_removing = False

    async def _remove_now(self, records: list[tuple[bytes, AttemptId]]) -> None:
        attempts: dict[bytes, list[AttemptId]] = {}
        for anchor, attempt in records:
            attempts.setdefault(anchor, []).append(attempt)
        sender = Sender(self._router, self._oracle)
        try:
            await sender.round_over(
                sorted(attempts),
                self._router.cut_keys,
                lambda desc, anchors: RemoveRecordsRequest(
                    desc.range_id, tuple([attempt for anchor in anchors for attempt in attempts[anchor]])
                ),
                items_max=RESOLVE_KEYS_MAX,
            )
        except KvError as error:
            log.info("%d txn records are left to the janitor: %s", len(records), error)


async def resolve(sender: Sender, attempt: AttemptId, keys: tuple[bytes, ...], commit_ts: Timestamp | None) -> None:
    """Turn an attempt's intents into versions, or remove them, in all ranges side by side (rule 21).  Raises KvError."""
    if keys:
        await sender.round_over(
            keys,
            sender.router.cut_keys,
            lambda desc, group: ResolveRequest(desc.range_id, (ResolveItem(attempt, group, commit_ts),)),
            items_max=RESOLVE_KEYS_MAX,
        )
