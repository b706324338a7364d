"""Serving requests about locks: waits for them without a latch, then reads under them as any read does (rule 4).

    LockedRead ─▶ lock table: queue ─▶ granted ─▶ writes on their way, foreign intents: waited for ─▶ a version above ts? NewerReply
                     └─ wait_s is over: LockNotAvailable                                                   else read at ts, recorded
    a write without a lock ─▶ held by an older transaction? ─▶ queue, for a moment ─▶ as ever

Invariants:
- Nobody waits for a lock holding a latch, nor longer than it said.
- What is read is what a later commit finds, as long as nobody writes without the lock: no write of these keys is on its way.
- LockNotAvailable says that a living transaction has the lock.  That holders can do nothing, for want of a timestamp, is Unavailable:
  whoever waits for others waits on, and two who take turns at failing would each wait for the other for ever.
- A request that comes to nothing gives back what it took; its statement has failed, or asks again.
"""

from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import trio

from dsdb.kv.errors import BelowThreshold, InvalidRequest, KvError, LockNotAvailable, Unavailable
from dsdb.kv.intents import PrewriteRequest, Pusher, StageRequest
from dsdb.kv.locks import (
    LOCKED_KEYS_MAX,
    KeepLocksReply,
    KeepLocksRequest,
    LockedReadReply,
    LockedReadRequest,
    LockWait,
    NewerReply,
    UnlockReply,
    UnlockRequest,
)
from dsdb.kv.requests import CommitRequest, Reply, Request
from dsdb.storage.mvcc import Intent
from dsdb.storage.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp
from dsdb.store.clearing import Clearing
from dsdb.store.context import StoreContext
from dsdb.store.evaluate import Blocked, IntentsMet
from dsdb.store.locks import Ask, AskState
from dsdb.store.replica import Replica
from dsdb.store.waiter import Waiter

Serve: TypeAlias = Callable[[Replica, Any], Awaitable[Reply]]
"""What serves a kind of request."""

LOOK_S = 0.5
"""How often somebody who waits looks whether the holder has fallen silent."""


class Locking:
    """One for each store.  fresh: takes a timestamp from the oracle."""

    def __init__(self, context: StoreContext, clearing: Clearing, fresh: Callable[[], Awaitable[Timestamp]]) -> None:
        self._context = context
        self._clearing = clearing
        self._fresh = fresh
        self._unstamped_at: float | None = None
        """When the oracle last gave nobody here a timestamp, if nobody got one since."""
        self.handlers: dict[type, Serve] = {
            LockedReadRequest: self._read,
            UnlockRequest: self._at_once,
            KeepLocksRequest: self._at_once,
        }
        """Request type → what serves it."""

    def try_serve(self, replica: Replica, request: Request) -> Reply | None:
        """Serve a request if nothing has to be waited for; None if it must wait, or is not about locks.  Raises Blocked, KvError."""
        now = self._context.clock.now()
        if isinstance(request, LockedReadRequest):
            check(replica, request)
            ts = self._context.timestamps.fresh_nowait() if request.ts is None else request.ts
            if ts is None or not replica.locks.is_free_for(request.attempt, request.keys):
                return None
            if request.ts is None:
                self._unstamped_at = None
            ask = self._ask(replica, request)
            reply = read_locked(replica, request, ask.locked, ts)
            # A timestamp of this node's own is the newest there is, but for other nodes'.
            return None if request.ts is None and isinstance(reply, NewerReply) else reply
        if isinstance(request, UnlockRequest):
            for attempt in request.attempts:
                replica.locks.release(attempt, now)
            return UnlockReply()
        if isinstance(request, KeepLocksRequest):
            for attempt in request.attempts:
                replica.locks.touch(attempt, now)
                if attempt in replica.machine.records:
                    replica.verdicts.hear(attempt, now)
            return KeepLocksReply()
        return None

    async def _at_once(self, replica: Replica, request: UnlockRequest | KeepLocksRequest) -> Reply:
        reply = self.try_serve(replica, request)
        assert reply is not None, request
        return reply

    def _ask(self, replica: Replica, request: LockedReadRequest) -> Ask:
        now = self._context.clock.now()
        return replica.locks.ask(request.attempt, request.start_ts, request.keys, request.wait, holds_locks=request.holds_locks, now=now)

    async def _read(self, replica: Replica, request: LockedReadRequest) -> Reply:
        check(replica, request)
        if replica.locks.waiting >= self._context.config.lock_waiters_max:
            raise KvError(Unavailable(f"range {replica.range_id} has too many requests waiting for its locks"))
        ask = self._ask(replica, request)
        is_read = False
        try:
            await self._wait(replica, ask, request.wait_s)
            reply = await self._read_locked(replica, request, ask.locked)
            is_read = True
        finally:
            if not is_read:
                replica.locks.withdraw(ask, self._context.clock.now())
        return reply

    async def _wait(self, replica: Replica, ask: Ask, wait_s: float) -> None:
        """Wait until all keys are locked, or left out.  Raises KvError."""
        clock = self._context.clock
        until = clock.now() + wait_s
        while ask.state is AskState.WAITING:
            left_s = until - clock.now()
            if left_s <= 0:
                if self._unstamped_at is not None and self._unstamped_at >= until - wait_s - self._context.config.timestamp_wait_s:
                    raise KvError(Unavailable("no timestamp from the oracle, which those who hold the lock in turn wait for"))
                raise KvError(LockNotAvailable(ask.keys[ask.at]))
            waiter: Waiter[None] = Waiter()

            def hear(waiter: Waiter[None] = waiter) -> None:
                waiter.settle(None)

            ask.on_settled = hear
            with trio.move_on_after(min(left_s, LOOK_S)):
                await waiter.wait()
            replica.locks.expire(clock.now())
        if ask.state is AskState.REFUSED:
            assert ask.refused is not None, "a refused ask names its key"
            raise KvError(LockNotAvailable(ask.refused))
        if ask.state is AskState.DROPPED:
            check_place(replica, ask.keys)
            raise KvError(Unavailable(f"range {replica.range_id} has lost its locks"))

    # ---- Writes ----

    def after_older(self, serve: Serve, wait_s: float) -> Serve:
        """Have writes wait for the locks of older transactions before they are served (rule 30), but only so long: a lock is advice.

        Without it a stream of writes that take no locks starves whoever reads under one, as each makes its refresh fail.
        """

        async def serve_after(replica: Replica, request: CommitRequest | PrewriteRequest | StageRequest) -> Reply:
            if not len(replica.locks):
                return await serve(replica, request)
            ask = await self._give_way(replica, request, wait_s)
            try:
                return await serve(replica, request)
            finally:
                if ask is not None:
                    replica.locks.withdraw(ask, self._context.clock.now())

        return serve_after

    async def _give_way(self, replica: Replica, request: CommitRequest | PrewriteRequest | StageRequest, wait_s: float) -> Ask | None:
        if isinstance(request, CommitRequest):
            keys = [write.key for write in request.writes]
            attempt, start_ts = request.attempt, request.start_ts or request.read_ts or request.first_ts
        else:
            keys = list(request.keys if isinstance(request, PrewriteRequest) else request.laid)
            attempt, start_ts = request.meta.attempt, request.meta.rank[0]
        locks, clock = replica.locks, self._context.clock
        held = locks.held_by_older(attempt, start_ts, keys) if len(keys) <= LOCKED_KEYS_MAX else []
        if not held or locks.waiting >= self._context.config.lock_waiters_max:
            return None
        ask = locks.ask(attempt, start_ts, held, LockWait.WAIT, holds_locks=False, now=clock.now())
        is_granted = False
        try:
            await self._wait(replica, ask, wait_s)
            is_granted = True
        except KvError as error:
            if not isinstance(error.detail, LockNotAvailable):
                raise
        finally:
            if not is_granted:
                locks.withdraw(ask, clock.now())
        return ask if is_granted else None

    # ---- Reads ----

    async def _read_locked(self, replica: Replica, request: LockedReadRequest, locked: Sequence[bool]) -> Reply:
        reply: Reply = NewerReply(MIN_TIMESTAMP)
        for _ in range(self._context.config.fresh_timestamps_max):
            reply = await self._unblocked(replica, request, locked)
            if request.ts is not None or not isinstance(reply, NewerReply):
                break
        return reply

    async def _unblocked(self, replica: Replica, request: LockedReadRequest, locked: Sequence[bool]) -> Reply:
        until = 0.0
        while True:
            ts = await self._stamp() if request.ts is None else request.ts
            met = None
            try:
                return read_locked(replica, request, locked, ts)
            except Blocked as blocked:
                await replica.wait_blocking(blocked.latch)
            except IntentsMet as error:
                met = error
            if met is not None:
                until = until or self._clearing.deadline()
                # Who holds no lock has time: nobody waits for it.
                holds_locks = request.holds_locks
                pusher = Pusher(request.start_ts if holds_locks else MAX_TIMESTAMP, request.attempt, wounds=holds_locks)
                await self._clearing.clear(replica, met, pusher, until)

    async def _stamp(self) -> Timestamp:
        """Take a fresh timestamp.  Raises KvError."""
        try:
            ts = await self._fresh()
        except KvError:
            self._unstamped_at = self._context.clock.now()
            raise
        self._unstamped_at = None
        return ts


def check_place(replica: Replica, keys: Sequence[bytes]) -> None:
    """Raise KvError unless this replica serves these keys (ascending) now."""
    replica.require_lease()
    replica.require_keys(keys[0], keys[-1])


def check(replica: Replica, request: LockedReadRequest) -> None:
    """Raise KvError unless a request makes sense here."""
    keys = request.keys
    if not 0 < len(keys) <= LOCKED_KEYS_MAX or any(one >= other for one, other in pairwise(keys)):
        raise KvError(InvalidRequest(f"a locking read needs ascending keys, at most {LOCKED_KEYS_MAX}"))
    check_place(replica, keys)


def read_locked(replica: Replica, request: LockedReadRequest, locked: Sequence[bool], ts: Timestamp) -> LockedReadReply | NewerReply:
    """Read keys at `ts`, under their locks, unless there is something newer.  Raises Blocked, IntentsMet, KvError."""
    keys = tuple([key for key, is_locked in zip(request.keys, locked) if is_locked])
    if not keys:
        return LockedReadReply(ts, (None,) * len(request.keys), tuple(locked))
    check_place(replica, keys)
    latches, rows, attempt = replica.latches, replica.rows, request.attempt
    newest = MIN_TIMESTAMP
    met: list[tuple[bytes, Intent]] = replica.machine.provisional.foreign_at(keys, attempt)
    if not met:
        replica.machine.provisional.pass_at(keys, ts, attempt, replica.passable)
    values: dict[bytes, bytes | None] = {}
    for key in keys:
        # Also one that was evaluated above `ts`: after it this read would only be repeated.
        latch = latches.blocking_key(key, MAX_TIMESTAMP)
        if latch is not None:
            raise Blocked(latch)
        version, intent = rows.newest_and_intent(key)
        if intent is not None and intent.attempt_id != attempt:
            met.append((key, intent))
        if version is not None:
            newest = max(newest, version.ts)
            values[key] = version.value
        if intent is not None and intent.attempt_id == attempt and not intent.is_nothing:
            # What a large transaction has flushed is not in its gateway's buffer any more.
            values[key] = intent.value
    if met:
        raise IntentsMet(met, ts, is_write=True)
    if newest > ts:
        return NewerReply(newest)
    threshold = replica.machine.state.threshold
    if ts < threshold:
        raise KvError(BelowThreshold(threshold))
    # Of every key the newest version is the one at `ts`.
    for key in keys:
        replica.cache.note_key(key, ts, attempt)
    return LockedReadReply(
        ts, tuple([values.get(key) if is_locked else None for key, is_locked in zip(request.keys, locked)]), tuple(locked)
    )
