"""The commit of a transaction that has flushed intents: in two rounds, without STAGING (rule 27).

    everything acknowledged ─▶ refresh at c ─▶ the record becomes COMMITTED at c ─▶ the client is told
                                                └─ bumped, by readers' pushes or a lease's low water: a fresh c, refresh, again

Invariants:
- The record is asked for COMMITTED at c only when every intent is acknowledged at p ≤ c, and everything read is refreshed up to c.
- The client is told what the record says; else that the outcome is not known.
"""

import msgspec

from dsdb.kv.errors import AmbiguousResult, KvError, Unavailable
from dsdb.kv.intents import RecordReply, StageRequest, TxnStatus
from dsdb.kv.requests import BumpReply
from dsdb.ranges import Copies
from dsdb.sql.errors import SqlError
from dsdb.sql.ports import AmbiguousCommitError, PortError, TransactionRetryError
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp
from dsdb.txn.counters import TxnCounters
from dsdb.txn.flushing import LOST, Flushed
from dsdb.txn.plan import CommitPlan, refresh
from dsdb.txn.port_errors import deadline_exceeded, port_error

ROUNDS_MAX = 20
"""Timestamps at which a commit is tried before the transaction is run again: readers that pass by push it above each of them."""


class FlushedCommit:
    """The commit of one attempt.  plan: its reads, without writes."""

    def __init__(self, flushed: Flushed, counters: TxnCounters, plan: CommitPlan) -> None:
        self._flushed = flushed
        self._counters = counters
        self._plan = plan
        self._sender = flushed.sender()
        """One for all of the commit: what a refresh has waited for in vain, its abort does not wait for as long again."""
        self._may_be_committed = False
        """A request to commit was not answered."""

    async def run(self) -> Timestamp:
        """Commit, and give the timestamp.

        Raises PortError, SqlError: nothing was written, but for AmbiguousCommitError.
        """
        flushed = self._flushed
        try:
            flushed.check_alive()
            for _ in range(ROUNDS_MAX):
                ts = await self._next_c()
                if self._plan.deadline is not None and ts >= self._plan.deadline:
                    return await self._abort(deadline_exceeded())
                await refresh(self._sender, self._counters, self._plan, self._plan.reads, ts)
                # What is unchanged up to c need not be looked at again.
                self._plan = msgspec.structs.replace(self._plan, read_ts=max(ts, self._plan.read_ts or MIN_TIMESTAMP))
                reply = await self._commit_record(ts)
                if isinstance(reply, BumpReply):
                    self._counters.bumps += 1
                    flushed.highest = max(flushed.highest, reply.bound)
                    continue
                if reply.status is TxnStatus.COMMITTED:
                    assert reply.ts is not None
                    return await self._committed(reply.ts)
                return await self._abort(TransactionRetryError(LOST[reply.status]))
        except KvError as error:
            return await self._abort(_nothing_written(error))
        except PortError as error:
            return await self._abort(error)
        return await self._abort(TransactionRetryError("the commit timestamp was bumped too often"))

    async def _next_c(self) -> Timestamp:
        """Give a timestamp at or above all intents: where it read, if that will do."""
        read_ts, highest = self._plan.read_ts, self._flushed.highest
        if read_ts is not None and read_ts >= highest:
            return read_ts
        return await self._sender.fresh(above=highest)

    async def _commit_record(self, ts: Timestamp) -> RecordReply | BumpReply:
        meta, spans = self._flushed.meta, self._flushed.spans
        copies = Copies()
        try:
            reply = await self._sender.send(
                meta.anchor, lambda desc: StageRequest(desc.range_id, meta, ts, (), is_final=True, spans=spans), copies
            )
        finally:
            self._may_be_committed = self._may_be_committed or copies.in_doubt
        assert isinstance(reply, RecordReply | BumpReply)
        return reply

    async def _committed(self, ts: Timestamp) -> Timestamp:
        self._counters.flushed_commits += 1
        await self._flushed.finish(ts)
        return ts

    async def _abort(self, why: PortError | SqlError) -> Timestamp:
        """Give up: raise `why` once the record says so, or its absence for good; or give the timestamp if it is committed after all."""
        try:
            reply = await self._flushed.abort(self._sender)
        except KvError as error:
            await self._flushed.leave()
            if not self._may_be_committed:
                # Nothing but its record can commit it, and that was not asked for.
                raise why from error
            raise AmbiguousCommitError(f"it is not known whether the transaction was committed: {error}") from why
        if reply.status is TxnStatus.COMMITTED:
            assert reply.ts is not None
            return await self._committed(reply.ts)
        if reply.status is not TxnStatus.ABORTED and self._may_be_committed:
            await self._flushed.leave()
            raise AmbiguousCommitError(f"the record of the commit is {reply.status}") from why
        await self._flushed.finish(None)
        raise why


def _nothing_written(error: KvError) -> PortError | SqlError:
    """Say why a commit was given up that did not take effect."""
    if isinstance(error.detail, AmbiguousResult):
        return port_error(KvError(Unavailable(error.detail.reason)))
    return port_error(error)
