"""The commit of a transaction that writes in several ranges (rules 12 to 18).

    refresh at c ─▶ ┌ stage(c, keys), and intents, at the anchor's range ┐ ─▶ all there at or below c: committed, the client is told
                    └ prewrite(c) at each other range                    ┘ ─▶ bumped: a fresh c, refresh, stage again; intents stay

    more keys than a record may promise:  refresh at c ─▶ prewrites ─▶ stage as final: committed

    given up ─▶ end(aborted) at the anchor's range: the record decides, as somebody may have found the commit complete

Invariants:
- Everything read is refreshed up to c before the record says c (rule 12), and the record is never staged lower (rule 14).
- The client is told what the record says, or its absence for good; else that the outcome is not known.

Not here: what comes after the client is told (`finish`).
"""

import msgspec

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.errors import AmbiguousResult, KvError, Unavailable
from dsdb.kv.intents import (
    RECORD_SPANS_MAX,
    STAGED_KEYS_MAX,
    STAGED_VALUES_MAX,
    EndTxnRequest,
    PrewriteReply,
    PrewriteRequest,
    RecordReply,
    StageRequest,
    TxnMeta,
    TxnStatus,
)
from dsdb.kv.requests import BumpReply, ReadReply, ReadRequest
from dsdb.ranges import Copies
from dsdb.sql.errors import SqlError
from dsdb.sql.ports import AmbiguousCommitError, KeyExistsError, PortError, TransactionRetryError
from dsdb.storage.keys import Span, point_span
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp
from dsdb.txn.counters import TxnCounters
from dsdb.txn.finish import Finisher, FinishJob
from dsdb.txn.plan import CommitPlan, refresh
from dsdb.txn.port_errors import deadline_exceeded, port_error
from dsdb.txn.readspans import merge, spans_of_keys
from dsdb.txn.sender import Sender

STAGES_MAX = 8
"""Timestamps at which a commit is tried before the transaction is run again."""
READ_AGE_MAX_S = 1.0
"""A transaction that read longer ago takes a fresh timestamp first: a lease that moved since first_ts would cost it a restart."""
READ_KEYS_MAX = 512
"""Keys of one read: 3 to 5 ms for its leaseholder."""
PREWRITE_KEYS_MAX = 100_000
"""Keys of one prewrite: one for each range, whatever is in the buffer."""

_LOST = {
    TxnStatus.ABORTED: "another transaction that met its intents aborted this one",
    TxnStatus.GONE: "the lease of the range that keeps the record moved during the commit",
}


class ParallelCommit:
    """The commit of one attempt over many ranges."""

    def __init__(self, sender: Sender, counters: TxnCounters, finisher: Finisher, plan: CommitPlan) -> None:
        self._sender = sender
        self._counters = counters
        self._finisher = finisher
        self._plan = plan
        self._values = {write.key: write.value for write in plan.writes}
        self._keys = tuple(sorted(self._values))
        self._is_two_round = len(self._keys) > STAGED_KEYS_MAX
        self._meta = TxnMeta(plan.attempt, plan.writes[0].key, MIN_TIMESTAMP, plan.start_ts or MIN_TIMESTAMP)
        self._missing = set(self._keys)
        """Keys whose intents are not known to be there."""
        self._has_sent = False
        """Something of the commit has left, and …"""
        self._has_staged = False
        """… its staging, …"""
        self._may_be_staged = False
        """… which was acknowledged, or not answered."""

    async def run(self) -> Timestamp:
        """Commit, and give the timestamp.

        Raises PortError, SqlError: nothing was written, but for AmbiguousCommitError.
        """
        try:
            await self._check_absent()
            ts = await self._first_c()
        except KvError as error:
            raise port_error(error) from error
        self._meta = msgspec.structs.replace(self._meta, first_ts=ts)
        for _ in range(STAGES_MAX):
            if self._plan.deadline is not None and ts >= self._plan.deadline:
                return await self._abort(deadline_exceeded())
            try:
                await refresh(self._sender, self._counters, self._plan, self._plan.reads, ts)
                self._has_sent = True
                reply = await (self._try_two_rounds(ts) if self._is_two_round else self._try_parallel(ts))
                if isinstance(reply, BumpReply):
                    self._counters.bumps += 1
                    ts = await self._sender.fresh(above=reply.bound)
                    continue
            except KvError as error:
                return await self._abort(_nothing_written(error))
            if reply.status is TxnStatus.COMMITTED:
                assert reply.ts is not None
                return await self._committed(reply.ts, is_recorded=self._is_two_round)
            return await self._abort(TransactionRetryError(_LOST[reply.status]), reply.status)
        return await self._abort(TransactionRetryError("the commit timestamp was bumped too often"))

    # ---- Before ----

    async def _check_absent(self) -> None:
        """Look at the keys that must be absent: they are read, and refreshed like any read."""
        keys = sorted(write.key for write in self._plan.writes if write.must_be_absent)
        if not keys:
            return
        read_ts = self._plan.read_ts
        if read_ts is None:
            read_ts = await self._sender.fresh()
            self._plan = msgspec.structs.replace(self._plan, read_ts=read_ts, read_age_s=0.0)
        ts = read_ts
        replies = await self._sender.round_over(
            keys,
            self._sender.router.cut_keys,
            lambda desc, group: ReadRequest(desc.range_id, group, ts, self._plan.attempt),
            items_max=READ_KEYS_MAX,
            is_reading=True,
        )
        for group, reply in replies:
            assert isinstance(reply, ReadReply)
            for key, value in zip(group, reply.values):
                if value is not None:
                    raise KeyExistsError(key)
        self._plan = msgspec.structs.replace(self._plan, reads=tuple(merge([*self._plan.reads, *map(point_span, keys)])))

    async def _first_c(self) -> Timestamp:
        if self._plan.read_ts is None or self._plan.read_age_s > READ_AGE_MAX_S:
            return await self._sender.fresh()
        return self._plan.read_ts

    # ---- One try at one timestamp ----

    async def _try_parallel(self, ts: Timestamp) -> RecordReply | BumpReply:
        """Stage and prewrite side by side; give COMMITTED, ABORTED or GONE, or what c must be above.  Raises KvError."""
        beside = await self._missing_beside_record()
        others = tuple(sorted(self._missing.difference(beside)))
        asks = [lambda: self._stage(ts, beside)]
        if others:
            asks.append(lambda: self._prewrite(ts, others))
        staged, *laid = await self._sender.round(asks)
        if isinstance(staged, KvError):
            raise staged
        if isinstance(staged, RecordReply) and staged.status is not TxnStatus.STAGING:
            self._counters.recovered_commits += staged.status is TxnStatus.COMMITTED
            return staged
        bound = staged.bound if isinstance(staged, BumpReply) else MIN_TIMESTAMP
        for reply in laid:
            if isinstance(reply, KvError):
                raise reply
            assert isinstance(reply, BumpReply)
            bound = max(bound, reply.bound)
        if self._missing and not bound:
            # The range of the record was split just now.
            bound = (await self._prewrite(ts, tuple(sorted(self._missing)))).bound
        if bound:
            return BumpReply(bound)
        assert isinstance(staged, RecordReply)
        assert staged.ts == ts, (staged, ts)
        self._counters.parallel_commits += 1
        return RecordReply(TxnStatus.COMMITTED, ts)

    async def _try_two_rounds(self, ts: Timestamp) -> RecordReply | BumpReply:
        """Lay all intents, then let the record be created as committed.  Raises KvError."""
        if self._missing:
            laid = await self._prewrite(ts, self._keys)
            if laid.bound:
                return laid
        reply = await self._stage(ts, is_final=True)
        assert isinstance(reply, BumpReply) or reply.status in (TxnStatus.COMMITTED, *_LOST), reply
        self._counters.two_round_commits += isinstance(reply, RecordReply) and reply.status is TxnStatus.COMMITTED
        return reply

    async def _missing_beside_record(self) -> tuple[bytes, ...]:
        """Give the keys, ascending, whose intents the stage may lay itself: one command less."""
        span = (await self._sender.lookup(self._meta.anchor)).desc.span
        beside = tuple(sorted([key for key in self._missing if span.contains(key)]))
        return beside if len(beside) <= STAGED_VALUES_MAX else ()

    async def _stage(self, ts: Timestamp, beside: tuple[bytes, ...] = (), *, is_final: bool = False) -> RecordReply | BumpReply:
        """Stage, and lay those of some intents that still lie beside the record.  Raises KvError."""
        meta, values = self._meta, self._values
        laid: tuple[bytes, ...] = ()
        keys = (meta.anchor, *[key for key in self._keys if key != meta.anchor])
        spans: tuple[Span, ...] = ()
        if is_final:
            keys, spans = (), spans_of_keys(self._keys, RECORD_SPANS_MAX)
        copies = Copies()

        def make(desc: RangeDescriptor) -> StageRequest:
            nonlocal laid
            laid = tuple([key for key in beside if desc.span.contains(key)])
            return StageRequest(desc.range_id, meta, ts, keys, is_final, laid, tuple([values[key] for key in laid]), spans)

        self._has_staged = True
        try:
            reply = await self._sender.send(meta.anchor, make, copies)
        finally:
            self._may_be_staged = self._may_be_staged or copies.in_doubt
        assert isinstance(reply, RecordReply | BumpReply)
        if isinstance(reply, RecordReply) and reply.status in (TxnStatus.STAGING, TxnStatus.COMMITTED):
            self._may_be_staged = True
            self._missing.difference_update(laid)
        return reply

    async def _prewrite(self, ts: Timestamp, keys: tuple[bytes, ...]) -> BumpReply:
        """Lay intents; give what c must be above, 0 if `ts` will do.  Raises KvError."""
        meta, values = self._meta, self._values
        replies = await self._sender.round_over(
            keys,
            self._sender.router.cut_keys,
            lambda desc, group: PrewriteRequest(desc.range_id, meta, ts, group, tuple([values[key] for key in group])),
            items_max=PREWRITE_KEYS_MAX,
        )
        highest = ts
        for _, reply in replies:
            assert isinstance(reply, PrewriteReply)
            highest = max(highest, reply.ts)
        self._missing.difference_update(keys)
        return BumpReply(highest if highest > ts else MIN_TIMESTAMP)

    # ---- After ----

    async def _committed(self, ts: Timestamp, *, is_recorded: bool) -> Timestamp:
        await self._finisher.finish(FinishJob(self._meta, self._keys, ts, is_recorded))
        return ts

    async def _abort(self, why: PortError | SqlError, known: TxnStatus | None = None) -> Timestamp:
        """Give up: raise `why` once the commit cannot take effect any more (rule 17), or give its timestamp if it has.

        known: what the record, or its absence, said already: it stays so.
        """
        if not self._has_sent:
            raise why
        meta, status = self._meta, known
        if self._has_staged and (known is None or (known is TxnStatus.GONE and self._may_be_staged)):
            try:
                reply = await self._sender.send(meta.anchor, lambda desc: EndTxnRequest(desc.range_id, meta, None))
            except KvError as error:
                raise AmbiguousCommitError(f"it is not known whether the commit was complete: {error}") from why
            assert isinstance(reply, RecordReply)
            status = reply.status
            if status is TxnStatus.COMMITTED:
                assert reply.ts is not None
                self._counters.recovered_commits += 1
                return await self._committed(reply.ts, is_recorded=True)
            if status is not TxnStatus.ABORTED and (status is not TxnStatus.GONE or self._may_be_staged):
                raise AmbiguousCommitError(f"the record of the commit is {status}") from why
        await self._finisher.finish(FinishJob(meta, self._keys, None, has_record=self._may_be_staged))
        raise why


def _nothing_written(error: KvError) -> PortError | SqlError:
    """Say why a commit was given up that did not take effect."""
    if isinstance(error.detail, AmbiguousResult):
        return port_error(KvError(Unavailable(error.detail.reason)))
    return port_error(error)
