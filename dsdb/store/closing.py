"""Closing: a store's part in closed timestamps.  It promises for the ranges led here, tells its peers, and hears what they promise.

    every `closed_interval_s`: target ─▶ for each range with a lease here: cache.low raised, last index noted ─▶ an update for each peer
    a lease, a descriptor has changed: the same for this range only ─▶ what that changes for each peer
    a frame: newest issued timestamp, update ─▶ `closed.Promises`
    a replica that does not know its intents ─▶ a scan of its range, in steps

Invariants:
- A promise is made while the lease is held, for a timestamp that was issued before.  Evaluating a write and putting it into the log is
  one step without a wait, so the last index of the log covers every write that was evaluated.
- Where no timestamp is issued, no range is looked at and nothing sent, but for a repetition now and then, which names no range.
- However many ranges are led here, promising for them takes a small part of the store's time: it is done less often.

Not here: why a promise holds (`closed`); what a replica makes of it (`Replica.resolved_ts`).
"""

from collections.abc import Sequence
from itertools import islice
from typing import NoReturn

import trio

from dsdb.kv.ids import RangeId, StoreId
from dsdb.storage.engine.port import Family
from dsdb.storage.errors import CorruptionError
from dsdb.storage.keys import key_after
from dsdb.storage.mvcc import get_intent
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp, from_milliseconds
from dsdb.store.closed import RANGES_MAX, IssuedLine, Telling
from dsdb.store.context import StoreContext
from dsdb.store.frame import ClosedUpdate, StoreFrame
from dsdb.store.outbox import Outbox
from dsdb.store.replica import Replica
from dsdb.store.waiter import Waiter

PROMISED_MAX = 256
"""Ranges whose leases are looked at in one tick, some milliseconds; of more, some in each."""
PROMISE_PAUSE_S = 0.001
"""Least time between two promises for each range led here, a hundred times what one takes."""
ASKED_PAUSE_S = 0.000_2
"""How long what is resolved everywhere is not asked again, for each replica here: twenty times what it takes."""
BEHIND_MAX = from_milliseconds(10_000)
"""How much older than usual reads of followers are made for the sake of replicas that are behind."""
SCAN_ROWS = 4_096
"""Versions in one step of a scan for intents: some milliseconds."""
INTERVALS = 4
"""So many until all have heard what is closed: one until a timestamp is looked at, one until it is promised, and rounding to ticks."""
_SUFFIX_BYTES = 8
_INTENT_SUFFIX = bytes(_SUFFIX_BYTES)
"""Behind the user key of every entry in DELTA, and behind that of an intent."""


class Closing:
    """One for each store."""

    def __init__(self, context: StoreContext, replicas: dict[RangeId, Replica], outbox: Outbox, life: int) -> None:
        self._context = context
        self._replicas = replicas
        self._outbox = outbox
        self._line = IssuedLine(context.config.closed_lag_s)
        self._old_line = IssuedLine(context.config.closed_lag_s + INTERVALS * context.config.closed_interval_s)
        self._everywhere: Timestamp = MIN_TIMESTAMP
        """What all replicas should have heard by now to be closed."""
        self._follower_read: tuple[float, Timestamp] = (0.0, MIN_TIMESTAMP)
        """The answer of `follower_read_ts`, and until when it is given again."""
        self._telling = Telling(life)
        """For this store too: it hears its own promises as those of others."""
        self._next = 0.0
        self._repeat_at = 0.0
        self._must_tell = False
        """Somebody must be told everything though no timestamp was issued."""
        self._changed: dict[RangeId, None] = {}
        """Ranges whose lease or descriptor has changed since they were looked at, those first that have waited longest."""
        self._walk: list[Replica] = []
        """Replicas still to be looked at for the present promise, and …"""
        self._indexes: dict[StoreId, dict[RangeId, int]] = {}
        """… what was found: store that has replicas → ranges and indexes to tell it."""
        self._unscanned: list[Replica] = []
        self._scan_waiter: Waiter[None] | None = None
        context.on_intents_wanted = self._want_intents

    # ---- Promising ----

    def use_lag(self, lag_s: float | None) -> None:
        """Close timestamps so long after they were issued, from now on; None: as configured.  What is closed stays so."""
        lag_s = self._context.config.closed_lag_s if lag_s is None else lag_s
        self._line.lag_s = lag_s
        self._old_line.lag_s = lag_s + INTERVALS * self._context.config.closed_interval_s

    def note_change(self, range_id: RangeId) -> None:
        """Look at a range the next time: its lease, its descriptor or its replicas have changed."""
        self._changed[range_id] = None

    def tick(self, now: float) -> None:
        """Promise what is due, and tell the peers with the next frames."""
        context = self._context
        self._outbox.issued = context.timestamps.latest
        if self._walk:
            self._promise(now)
            return
        if now < self._next:
            return
        self._next = now + max(context.config.closed_interval_s, len(context.led) * PROMISE_PAUSE_S)
        target = max(self._line.target(now, self._outbox.issued), context.closing)
        self._everywhere = max(self._everywhere, self._old_line.target(now, self._outbox.issued))
        if target == MIN_TIMESTAMP:
            return
        if target == context.closing and not self._must_tell:
            if self._changed:
                self._amend(now)
            elif now >= self._repeat_at:
                self._repeat_at = now + context.config.closed_repeat_s
                self._tell({}, ())
            return
        self._must_tell = False
        self._repeat_at = now + context.config.closed_repeat_s
        context.closing = target
        self._changed = {}
        self._walk, self._indexes = list(reversed(context.led.values())), {context.store_id: {}}
        self._promise(now)

    def _promise(self, now: float) -> None:
        """Promise for some more of the ranges led here; tell of it once all are through.

        What is told late is as true: whatever a range has evaluated since it promised lies above.
        """
        for _ in range(min(PROMISED_MAX, len(self._walk))):
            self._look_at(self._walk.pop(), now, self._indexes)
        if not self._walk:
            self._tell(self._indexes, None)

    def _look_at(self, replica: Replica, now: float, indexes: dict[StoreId, dict[RangeId, int]]) -> None:
        """Promise for a range if its lease is held, and note what its replicas are to be told."""
        if replica.is_destroyed:
            return
        if replica.low_term != replica.lease_term or not replica.holds_lease(now):
            self._changed[replica.range_id] = None  # which it is not for long
            return
        replica.promise()
        last = replica.raft.log.last_index
        for member in replica.descriptor.replicas:
            of_store = indexes.setdefault(member.store_id, {})
            if len(of_store) < RANGES_MAX:
                of_store[replica.range_id] = last

    def _amend(self, now: float) -> None:
        """Promise what all others have promised for ranges that have changed; what they had promised is as true as before."""
        changed = sorted(islice(self._changed, PROMISED_MAX))
        for range_id in changed:
            del self._changed[range_id]
        indexes: dict[StoreId, dict[RangeId, int]] = {}
        for range_id in changed:
            replica = self._context.led.get(range_id)
            if replica is not None:
                self._look_at(replica, now, indexes)
        self._tell(indexes, changed)

    def _tell(self, indexes: dict[StoreId, dict[RangeId, int]], looked_at: Sequence[RangeId] | None) -> None:
        """Tell the peers; looked_at: the only ranges that were looked at, None if all."""
        context, telling = self._context, self._telling
        for store in sorted({*indexes, *telling.peers()}):
            found = indexes.get(store, {})
            if looked_at is None:
                update: ClosedUpdate | None = telling.update(store, context.closing, found)
            else:
                update = telling.amend(store, context.closing, found, looked_at)
            if update is None:
                continue
            if store == context.store_id:
                context.promises.take(store, update)
            else:
                self._outbox.tell_closed(store, update)

    def follower_read_ts(self) -> Timestamp:
        """Give a past timestamp at which replicas everywhere should be resolved; MIN_TIMESTAMP soon after a start.

        If replicas here are behind, as where this store is cut off, it is theirs; but not for the sake of one that is far behind.
        """
        now = self._context.clock.now()
        until, answer = self._follower_read
        if now >= until:
            here = min([replica.resolved_ts() for replica in self._replicas.values()], default=MIN_TIMESTAMP)
            answer = Timestamp(min(self._everywhere, max(here, self._everywhere - BEHIND_MAX, MIN_TIMESTAMP)))
            pause_s = max(self._context.config.closed_interval_s, len(self._replicas) * ASKED_PAUSE_S)
            self._follower_read = (now + pause_s, answer)
        return answer

    # ---- Hearing ----

    def receive(self, frame: StoreFrame) -> None:
        """Take what a frame says about timestamps."""
        self._context.timestamps.hear(frame.issued)
        if frame.wants_closed:
            self._telling.begin_again(frame.sender)
            self._must_tell = True
        if frame.closed is not None and not self._context.promises.take(frame.sender, frame.closed):
            self._outbox.want_closed(frame.sender)

    # ---- Intents that are not known ----

    def _want_intents(self, replica: Replica) -> None:
        if replica not in self._unscanned:
            self._unscanned.append(replica)
            if self._scan_waiter is not None:
                self._scan_waiter.settle(None)
                self._scan_waiter = None

    async def run_scans(self) -> NoReturn:
        """Find the intents of ranges whose replicas were asked what is resolved and do not know them, for ever."""
        while True:
            if not self._unscanned:
                self._scan_waiter = Waiter()
                await self._scan_waiter.wait()
            try:
                await self._scan(self._unscanned[0])
            except CorruptionError as error:
                self._context.on_unreadable(self._unscanned[0].range_id, error)
            del self._unscanned[0]

    async def _scan(self, replica: Replica) -> None:
        """Find the intents of a range in the engine, step by step: what is laid or resolved meanwhile is noted as it is applied."""
        engine = self._context.engine
        machine = replica.machine
        start = replica.descriptor.start_key
        while not machine.intents.is_complete and not replica.is_destroyed and replica.machine is machine:
            if not replica.is_written:
                await trio.sleep(self._context.config.tick_interval_s)
                continue
            end = replica.descriptor.end_key
            # Each step looks at the engine anew: an older view would show intents that have been resolved since.
            keys: list[bytes] = next((keys for keys, _ in engine.scan(Family.DELTA, start, end, chunk_rows=SCAN_ROWS)), [])
            for key in keys:
                if key[-_SUFFIX_BYTES:] == _INTENT_SUFFIX:
                    intent = get_intent(engine, key[:-_SUFFIX_BYTES])
                    assert intent is not None, key
                    machine.intents.lay(key[:-_SUFFIX_BYTES], intent.ts)
            if len(keys) < SCAN_ROWS:
                machine.intents.is_complete = True
                return
            start = key_after(keys[-1][:-_SUFFIX_BYTES])
            await trio.lowlevel.checkpoint()
