"""Finding out what became of the transaction of a foreign intent, and deciding it if its gateway does not (rules 16 and 19).

    push ─▶ its record, or its absence ─┬─ COMMITTED, ABORTED, PUSHED, GONE: settled; PENDING: it goes on
                                        └─ STAGING at c, and it does not end ─▶ recover:
         query every promised key at c, side by side ─▶ all found? end(COMMITTED at c) : end(ABORTED)
         both only if it is still STAGING at c; else again with what it is now

Invariants:
- Asked in vain, a query prevents: a promised write that was not there will never be at or below c.
- A live gateway may be taken for dead; it is told by its record what became of its commit.

Not here: what a leaseholder then does with the intent (`dsdb.store`).
"""

from dsdb.kv.errors import KvError, Unavailable
from dsdb.kv.intents import (
    EndTxnRequest,
    Pusher,
    PushRequest,
    QueryIntentsReply,
    QueryIntentsRequest,
    RecordReply,
    TxnMeta,
    TxnStatus,
)
from dsdb.oracle import OracleClient
from dsdb.ranges import Router
from dsdb.storage.timestamp import Timestamp
from dsdb.store.settling import Settled
from dsdb.txn.counters import TxnCounters
from dsdb.txn.sender import Sender

SETTLE_S = 3.5
"""All that a settling may take: the store that asked has a request waiting, which is sent again after some seconds."""
RECOVERIES_MAX = 10
"""Times that a record is examined anew because it was staged higher meanwhile."""
QUERY_KEYS_MAX = 1_024
"""Keys of one query."""


class Settlement:
    """Settles foreign intents; implements `dsdb.store.settling.IntentSettler`.  One for each node."""

    def __init__(self, router: Router, oracle: OracleClient, counters: TxnCounters) -> None:
        self._router = router
        self._oracle = oracle
        self._counters = counters

    async def settle(self, meta: TxnMeta, ts: Timestamp, *, abort: bool, pusher: Pusher) -> Settled:
        """Push the transaction of an intent, and recover it if it is STAGING; see `IntentSettler.settle`."""
        self._counters.pushes += 1
        sender = Sender(self._router, self._oracle, patience_s=SETTLE_S)
        reply = await sender.send(meta.anchor, lambda desc: PushRequest(desc.range_id, meta, ts, abort, pusher))
        assert isinstance(reply, RecordReply)
        if reply.status is TxnStatus.STAGING:
            reply = await self.recover(sender, meta, reply)
        return Settled(reply.status, reply.ts)

    async def recover(self, sender: Sender, meta: TxnMeta, reply: RecordReply) -> RecordReply:
        """Decide a STAGING transaction (rule 19); gives COMMITTED, ABORTED, or GONE (look again).  Raises KvError."""
        for _ in range(RECOVERIES_MAX):
            if reply.status is not TxnStatus.STAGING:
                return reply
            ts = reply.ts
            assert ts is not None
            is_complete = await self._query(sender, meta, reply.keys, ts)
            commit_ts = ts if is_complete else None
            ended = await sender.send(meta.anchor, lambda desc: EndTxnRequest(desc.range_id, meta, commit_ts, ts))  # noqa: B023 (done before the next)
            assert isinstance(ended, RecordReply)
            reply = ended
            if reply.status is TxnStatus.COMMITTED:
                self._counters.recoveries_committed += 1
            elif reply.status is TxnStatus.ABORTED:
                self._counters.recoveries_aborted += 1
        raise KvError(Unavailable("a record was staged again and again while it was examined"))

    async def _query(self, sender: Sender, meta: TxnMeta, keys: tuple[bytes, ...], ts: Timestamp) -> bool:
        """Look for all promised writes."""
        replies = await sender.round_over(
            sorted(keys),
            self._router.cut_keys,
            lambda desc, group: QueryIntentsRequest(desc.range_id, meta.attempt, group, ts),
            items_max=QUERY_KEYS_MAX,
        )
        found = []
        for _, reply in replies:
            assert isinstance(reply, QueryIntentsReply)
            found.append(reply.found)
        return all(found)
