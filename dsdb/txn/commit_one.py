"""The commit of a transaction all of whose writes lie in one range: one request, one command (rules 8 to 11).

    CommitRequest ─┬─ committed at ts
                   ├─ Bump: a fresh c, refresh the spans read in other ranges at c, send again (rule 6)
                   ├─ Conflict ──▶ TransactionRetryError: run it again, as another attempt
                   ├─ KeyMismatch: the range was split ──▶ a commit over many ranges, if no copy may still be on its way
                   └─ no answer, Ambiguous ──▶ the same attempt again, until it is known or the time is over

Invariants:
- The client is told that nothing was written only if no copy of the commit can take effect any more: what can is refused first, in the
  log (rule 10).
"""

from dsdb.kv.errors import AmbiguousResult, Conflict, DeadlinePassed, Gone, KvError, RangeKeyMismatch, Refused, Unavailable
from dsdb.kv.requests import BumpReply, CommitReply, CommitRequest, OutcomeReply, RefuseRequest
from dsdb.ranges import Copies
from dsdb.sql.errors import SqlError
from dsdb.sql.ports import PortError, TransactionRetryError
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp
from dsdb.txn.counters import TxnCounters
from dsdb.txn.plan import CommitPlan, refresh
from dsdb.txn.port_errors import port_error
from dsdb.txn.readspans import outside
from dsdb.txn.sender import Sender

BUMPS_MAX = 20
"""Commits tried at ever later timestamps before the transaction is run again."""
BUMPS_S_MAX = 10.0
"""How long a commit goes on after bumps: where each look takes a second, twenty are too many."""
SPLITS_MAX = 3
"""Times that a commit is cut to a range that is split before it arrives."""
FIRST_TS_AGE_MAX = 20_000 << 18
"""How old, in timestamps, a known timestamp may be to stand as `first_ts`: well inside the time for which outcomes are kept."""
FIRST_TS_AGE_MAX_S = 20.0
"""The same by this node's clock, for a node that has not heard of the oracle since."""

_FINAL = Conflict | DeadlinePassed | Gone | Refused
"""What no copy of the attempt can turn into a commit, or nobody can find out any more."""


class OneRangeCommit:
    """The commit of one attempt in one range."""

    def __init__(self, sender: Sender, counters: TxnCounters, plan: CommitPlan) -> None:
        self._sender = sender
        self._counters = counters
        self._plan = plan
        self._first_ts = MIN_TIMESTAMP
        keys = [write.key for write in plan.writes]
        self._least, self._greatest = min(keys), max(keys)
        self._copies = Copies()
        self._has_sent = False

    async def run(self) -> Timestamp | None:
        """Commit, and give the timestamp; None: the writes lie in several ranges, and nothing of this commit is under way.

        Raises KvError (nothing was written, but for AmbiguousResult and Gone), PortError, SqlError (nothing was written).
        """
        entry = await self._sender.lookup(self._least)
        if self._greatest >= entry.end_key:
            return None
        ts = self._sender.oracle.fresh_nowait() if self._plan.read_ts is None else None
        self._first_ts = await self._choose_first_ts(ts)
        began = self._sender.now()
        try:
            for _ in range(BUMPS_MAX):
                if self._sender.now() - began > BUMPS_S_MAX:
                    break
                reply = await self._send(ts)
                if reply is None:
                    if not self._copies.in_doubt:
                        self._counters.became_many += self._has_sent
                        return None
                    return await self._give_up(TransactionRetryError("the range was split during the commit"))
                if isinstance(reply, CommitReply):
                    self._counters.one_range_commits += 1
                    return reply.ts
                self._counters.bumps += 1
                ts = await self._sender.fresh(above=reply.bound)
        except KvError as error:
            if not self._copies.in_doubt or isinstance(error.detail, _FINAL):
                raise
            return await self._give_up(_met(error))
        return await self._give_up(TransactionRetryError("the commit timestamp was bumped too often"))

    async def _choose_first_ts(self, ts: Timestamp | None) -> Timestamp:
        """Give a timestamp issued before anything of the commit was sent, and not too old (rule 11)."""
        if ts is not None:
            return ts
        latest = self._sender.oracle.latest
        known = self._plan.read_ts or latest
        is_old = known == MIN_TIMESTAMP or latest - known > FIRST_TS_AGE_MAX or self._plan.read_age_s > FIRST_TS_AGE_MAX_S
        return await self._sender.fresh() if is_old else known

    async def _send(self, ts: Timestamp | None) -> CommitReply | BumpReply | None:
        """Send the commit to the range that holds all writes; None if there is none."""
        plan = self._plan
        writes, key = plan.writes, plan.writes[0].key
        for _ in range(SPLITS_MAX):
            entry = await self._sender.lookup(key)
            whole = Span(entry.start_key, entry.end_key)
            if self._least < whole.start or self._greatest >= whole.end:
                return None
            local = tuple([span.clipped(whole) for span in plan.reads if span.overlaps(whole)])
            elsewhere = outside(plan.reads, whole)
            if elsewhere:
                # The leaseholder cannot choose: only here is known up to which timestamp the reads elsewhere hold.
                # Again before each send, as a split since the last one moves reads out of that range.
                ts = plan.read_ts if ts is None else ts
                assert ts is not None
                try:
                    await refresh(self._sender, self._counters, plan, elsewhere, ts)
                except KvError as error:
                    if self._copies.in_doubt:
                        # Nothing in the range of the writes knows of it: a copy may still take effect.
                        raise KvError(AmbiguousResult(str(error))) from error
                    raise
            request = CommitRequest(
                entry.desc.range_id,
                plan.attempt,
                self._first_ts,
                ts,
                writes,
                plan.read_ts,
                local,
                bool(elsewhere),
                plan.deadline,
                plan.start_ts,
                plan.holds_locks,
            )
            self._has_sent = True
            try:
                # Built for this descriptor: if the range is split on the way, it answers with a mismatch, and the cut is made again.
                reply = await self._sender.send(key, lambda _, request=request: request, self._copies)  # type: ignore[misc]
            except KvError as error:
                if isinstance(error.detail, RangeKeyMismatch):
                    continue
                raise
            assert isinstance(reply, CommitReply | BumpReply)
            return reply
        return None

    async def _give_up(self, why: PortError | SqlError) -> Timestamp:
        """End the attempt: raise `why` once no copy of it can take effect, or give the commit of one that did (rule 10).

        After a split the outcomes of before are on both sides, and copies that were sent before are refused for their keys.
        """
        if self._copies.in_doubt:
            plan = self._plan
            try:
                reply = await self._sender.send(
                    plan.writes[0].key, lambda desc: RefuseRequest(desc.range_id, plan.attempt, self._first_ts), Copies()
                )
            except KvError as error:
                raise KvError(AmbiguousResult(str(error))) from why
            assert isinstance(reply, OutcomeReply)
            if reply.ts is not None:
                self._counters.one_range_commits += 1
                return reply.ts
        raise why


def _met(error: KvError) -> PortError | SqlError:
    """Say what the last copy met, in an attempt of which an earlier one decides."""
    met = error.__cause__ if isinstance(error.__cause__, KvError) else error
    return port_error(KvError(Unavailable(met.detail.reason)) if isinstance(met.detail, AmbiguousResult) else met)
