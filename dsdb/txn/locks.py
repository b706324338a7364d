"""The row locks of a transaction at its gateway: taken range by range, kept while it is open, given back when it has ended.

    get_locked ─▶ per range, in key order: LockedReadRequest ─┬─ values: read, at read_ts
                                                              ├─ NewerReply: fresh ts ▸ refresh what was read before ▸ ask again
                                                              └─ LockNotAvailable: again until the time is over, then RowLockedError
    LockKeeper ─▶ KeepLocksRequest, now and then, for what is open    ─▶ UnlockRequest, behind the client's back, for what has ended
                  and for the records of large transactions (rule 28): one request for each range, whatever it is about

Invariants:
- A transaction asks one range at a time, in key order: what it says of holding locks is true while it waits (`store.locks`).
- start_ts is the same for all attempts of a transaction, so that the oldest is served first and nobody starves; and it is no older than
  what this gateway was told of before, else its transactions would go before all that came through others.
- Losing a lock, or failing to give it back, harms nobody: commits are checked by refresh, and a silent holder's locks pass on.
"""

import logging
from collections.abc import Sequence

import trio

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.errors import KvError, LockNotAvailable, RangeKeyMismatch
from dsdb.kv.ids import AttemptId
from dsdb.kv.locks import LOCKED_KEYS_MAX, KeepLocksRequest, LockedReadReply, LockedReadRequest, LockWait, NewerReply, UnlockRequest
from dsdb.kv.requests import Reply
from dsdb.oracle import OracleClient
from dsdb.ranges import CachedRange, Router
from dsdb.sql.ports import RowLockedError
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp
from dsdb.txn.sender import CUTS_MAX, PATIENCE_S, Sender

log = logging.getLogger("dsdb.txn")

WAIT_S = 2.0
"""How long one request waits for a lock: well within what one call may take.  Its place in the queue is the same when it asks again."""
KEEP_INTERVAL_S = 1.5
"""Leaseholders hear of open transactions with locks so often: three times before they take a holder for dead."""
TELL_S = 2.0
"""How long a leaseholder is tried to be told; then it finds out by itself that an attempt is silent."""
UNLOCKING_MAX = 8
"""Rounds of giving back that run at a time: more would only wait for leaseholders that do not answer."""


class LockKeeper:
    """One for each node."""

    def __init__(self, router: Router, oracle: OracleClient) -> None:
        self._router = router
        self._oracle = oracle
        self._open: dict[AttemptId, TxnLocks] = {}
        """Attempts that may hold locks."""
        self._records: dict[AttemptId, bytes] = {}
        """Attempts that have flushed intents, and their anchors: not to be taken for dead before all is cleaned up."""
        self._nursery: trio.Nursery | None = None
        self._ended: dict[bytes, list[AttemptId]] = {}
        """Key → attempts whose locks in its range are to be given back."""
        self._unlocking = 0
        """Tasks that do so."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the locks of what is open, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                while True:
                    await trio.sleep(KEEP_INTERVAL_S)
                    await self._keep()
            finally:
                self._nursery = None

    def admit(self, locks: "TxnLocks") -> None:
        """Keep the locks of an attempt from now on."""
        self._open[locks.attempt] = locks

    def keep_record(self, attempt: AttemptId, anchor: bytes) -> None:
        """Say of an attempt from now on that its gateway lives."""
        self._records[attempt] = anchor

    def forget_record(self, attempt: AttemptId) -> None:
        """Say it no longer."""
        self._records.pop(attempt, None)

    def end(self, locks: "TxnLocks", keys: list[bytes]) -> None:
        """Keep them no longer, and give back those in the ranges of some keys: at once where this node leads, else in the background."""
        attempt = locks.attempt
        self._open.pop(attempt, None)
        for key in keys:
            if not self._is_unlocked_here(attempt, key) and self._nursery is not None:
                self._ended.setdefault(key, []).append(attempt)
                if self._unlocking < UNLOCKING_MAX:
                    self._unlocking += 1
                    self._nursery.start_soon(self._unlock)

    def _is_unlocked_here(self, attempt: AttemptId, key: bytes) -> bool:
        try:
            return self._router.try_send(key, lambda desc: UnlockRequest(desc.range_id, (attempt,))) is not None
        except KvError:
            return False

    async def _unlock(self) -> None:
        """Give back what has ended, all that has come together at a time."""
        try:
            while self._ended:
                ended, self._ended = self._ended, {}
                await self._tell(UnlockRequest, ended)
        finally:
            self._unlocking -= 1

    async def _keep(self) -> None:
        """Tell every range of the attempts that are open and hold locks there."""
        attempts: dict[bytes, list[AttemptId]] = {}
        for attempt, locks in self._open.items():
            for key in locks.keys:
                attempts.setdefault(key, []).append(attempt)
        for attempt, anchor in self._records.items():
            attempts.setdefault(anchor, []).append(attempt)
        if attempts:
            await self._tell(KeepLocksRequest, attempts)

    async def _tell(self, kind: type[UnlockRequest] | type[KeepLocksRequest], attempts: dict[bytes, list[AttemptId]]) -> None:
        """Send the ranges of some keys a request about the attempts there."""

        def make(desc: RangeDescriptor, keys: tuple[bytes, ...]) -> UnlockRequest | KeepLocksRequest:
            return kind(desc.range_id, tuple(dict.fromkeys(attempt for key in keys for attempt in attempts[key])))

        try:
            sender = Sender(self._router, self._oracle, patience_s=TELL_S)
            await sender.round_over(sorted(attempts), self._router.cut_keys, make, items_max=LOCKED_KEYS_MAX)
        except KvError as error:
            log.info("some leaseholders could not be told about locks, which pass on: %s", error)


class TxnLocks:
    """The locks of one attempt."""

    def __init__(self, keeper: LockKeeper, sender: Sender, attempt: AttemptId, start_ts: Timestamp | None) -> None:
        self.attempt = attempt
        self._keeper = keeper
        self._sender = sender
        self.start_ts = start_ts
        """When the transaction began: set by its first lock, and handed to its later attempts."""
        self.keys: list[bytes] = []
        """One key of each range that was asked: there it may hold locks."""
        self.has_laid = False
        """It has laid intents: others may wait for it, as if it held locks (rule 30)."""

    @property
    def holds_any(self) -> bool:
        """Say whether others may wait for it."""
        return bool(self.keys) or self.has_laid

    async def read(
        self, keys: Sequence[bytes], ts: Timestamp | None, wait: LockWait, until: float | None
    ) -> tuple[int, LockedReadReply | NewerReply]:
        """Lock and read the first of some keys (ascending) at `ts`, or at a fresh timestamp; say how many they were.

        until: by this node's clock, when to stop waiting.  Raises RowLockedError, KvError.
        """
        if self.start_ts is None:
            latest = self._sender.oracle.latest
            self.start_ts = ts or (latest if latest > MIN_TIMESTAMP else await self._sender.fresh())
        for _ in range(CUTS_MAX):
            entry = await self._sender.lookup(keys[0])
            group = tuple([key for key in keys[:LOCKED_KEYS_MAX] if key < entry.end_key])
            try:
                reply = await self._ask(entry, group, ts, wait, until)
            except KvError as error:
                if isinstance(error.detail, RangeKeyMismatch):
                    continue
                raise
            assert isinstance(reply, LockedReadReply | NewerReply)
            return len(group), reply
        raise RowLockedError("the range was split too often", keys[0], is_late=True)

    async def _ask(self, entry: CachedRange, group: tuple[bytes, ...], ts: Timestamp | None, wait: LockWait, until: float | None) -> Reply:
        assert self.start_ts is not None, "set before"
        holds_locks = self.holds_any
        if not self.keys:
            self._keeper.admit(self)
        if not any(entry.start_key <= key < entry.end_key for key in self.keys):
            self.keys.append(group[0])
        attempt, start_ts, router = self.attempt, self.start_ts, self._sender.router
        while True:
            left_s = WAIT_S if until is None else min(WAIT_S, max(until - self._sender.now(), 0.0))

            def make(desc: RangeDescriptor, left_s: float = left_s) -> LockedReadRequest:
                return LockedReadRequest(desc.range_id, group, ts, attempt, start_ts, wait, holds_locks, left_s)

            try:
                reply = router.try_send(group[0], make)
                if reply is None:
                    # Not by the sender: waiting for others is not waiting for what does not answer.
                    reply = await router.send(group[0], make, deadline_s=PATIENCE_S)
                return reply
            except KvError as error:
                if not isinstance(error.detail, LockNotAvailable):
                    raise
                if wait is not LockWait.WAIT or (until is not None and self._sender.now() >= until):
                    raise RowLockedError("locked by another transaction", error.detail.key, is_late=wait is LockWait.WAIT) from error

    def end(self, told: Sequence[bytes] = ()) -> None:
        """Give back everything; told: ranges of these keys (ascending) hear of the attempt's outcome by other means."""
        if not self.keys:
            return
        lookup = self._sender.router.cache.lookup
        ended = {id(entry) for key in told if (entry := lookup(key)) is not None}
        kept = sorted({key for key in self.keys if id(lookup(key)) not in ended})
        self.keys = []
        self._keeper.end(self, kept)
