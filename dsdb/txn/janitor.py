"""The janitor: ends what gateways that died have left behind, in the ranges that this node leads.

    every few seconds: records older than AGE_S ─▶ STAGING? recover ─▶ resolve the keys and spans that they name ─▶ remove
                                                └▶ PENDING, its gateway silent? abort; the finished record is for the next look

    intents three times as old ─▶ push, resolve: their attempts left no record

Whoever meets an intent settles it by itself; what nobody meets would stay for ever, hold its record, and hold back what is resolved in
its range (rule 23).

Invariants:
- A record goes only after everything that it may have promised is resolved (rule 22).
- What is resolved are the keys and spans that the *finished* record names: a PENDING one may come to name more (rule 28).
- It may take a live gateway for dead, as anyone may (`settle`).
"""

import logging
from typing import NoReturn, Protocol

import trio

from dsdb.kv.errors import KvError
from dsdb.kv.intents import Pusher, RecordReply, TxnMeta, TxnStatus
from dsdb.oracle import OracleClient
from dsdb.ranges import Router
from dsdb.storage.timestamp import COUNTER_BITS, MAX_TIMESTAMP, Timestamp
from dsdb.txn.counters import TxnCounters
from dsdb.txn.finish import Finisher, FinishJob
from dsdb.txn.sender import Sender
from dsdb.txn.settle import Settlement

log = logging.getLogger("dsdb.txn")

INTERVAL_S = 5.0
"""Between two looks."""
AGE_S = 10.0
"""By its first_ts, a record is a dead gateway's: a live one is done with it in a fraction of this."""
INTENT_AGES = 3
"""After so many times that age, intents are asked about by themselves."""
RECORDS_MAX = 1_000
"""Records cleaned up at one look."""


class RecordSource(Protocol):
    """What the janitor asks of this node's store."""

    def has_records(self) -> bool:
        """Say whether any range led here keeps a record."""

    def has_intents(self) -> bool:
        """Say whether any range led here has intents that are not resolved."""

    async def settle_oldest_intents(self, below: Timestamp) -> int:
        """Settle intents of ranges led here that stand below a timestamp, but those of transactions that go on; give how many were."""

    def stale_records(self, below: Timestamp, count_max: int) -> list[tuple[TxnMeta, RecordReply]]:
        """Give the records of ranges led here whose first_ts lies below a timestamp, but large ones whose gateways live."""


class Janitor:
    """One for each node."""

    def __init__(
        self, store: RecordSource, router: Router, oracle: OracleClient, settlement: Settlement, finisher: Finisher, counters: TxnCounters
    ) -> None:
        self._store = store
        self._router = router
        self._oracle = oracle
        self._settlement = settlement
        self._finisher = finisher
        self._counters = counters

    async def run(self) -> NoReturn:
        """Look again and again, until cancelled."""
        while True:
            await trio.sleep(INTERVAL_S)
            try:
                await self.clean_up()
            except KvError as error:
                log.info("records of dead gateways are left for later: %s", error)

    async def clean_up(self, age_s: float = AGE_S) -> None:
        """Look once.  Raises KvError: no timestamp."""
        if not (self._store.has_records() or self._store.has_intents()):
            return
        now = await self._oracle.fresh()
        for meta, record in self._store.stale_records(Timestamp(now - (int(age_s * 1000) << COUNTER_BITS)), RECORDS_MAX):
            try:
                await self._end(meta, record)
            except KvError as error:
                log.info("the record of attempt %s is left for later: %s", meta.attempt.hex(), error)
        # Most go with their records, at whatever node those are; what is left so long has none.
        await self._store.settle_oldest_intents(Timestamp(now - (int(INTENT_AGES * age_s * 1000) << COUNTER_BITS)))

    async def _end(self, meta: TxnMeta, record: RecordReply) -> None:
        if record.status is TxnStatus.PENDING:
            settled = await self._settlement.settle(meta, MAX_TIMESTAMP, abort=True, pusher=Pusher(MAX_TIMESTAMP))
            self._counters.abandoned += settled.status is TxnStatus.ABORTED
            return
        outcome = await self._settlement.recover(Sender(self._router, self._oracle), meta, record)
        if outcome.status not in (TxnStatus.COMMITTED, TxnStatus.ABORTED):
            return
        commit_ts = outcome.ts if outcome.status is TxnStatus.COMMITTED else None
        job = FinishJob(meta, tuple(sorted(record.keys)), commit_ts, is_recorded=True, spans=record.spans)
        if await self._finisher.settle_intents(job):
            self._finisher.remove_later(meta)
            self._counters.stale_records += 1
