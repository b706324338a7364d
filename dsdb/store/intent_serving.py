"""Serving requests about intents and txn records: prewrite, query and resolve; stage, push, end and remove.

Invariants:
- Every wait is bounded, and none but for a latch in line or a command's end is made holding one.
- Every request may come twice: evaluation finds what the first copy did (`intents`).
"""

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from dsdb.kv.errors import InvalidRequest, KvError, Unavailable
from dsdb.kv.ids import AttemptId
from dsdb.kv.intents import (
    EndTxnRequest,
    PrewriteReply,
    PrewriteRequest,
    PushRequest,
    QueryIntentsRequest,
    RecordReply,
    RemoveRecordsReply,
    RemoveRecordsRequest,
    ResolveItem,
    ResolveRequest,
    StageRequest,
)
from dsdb.kv.requests import BumpReply, Reply
from dsdb.storage.timestamp import MIN_TIMESTAMP
from dsdb.store import intents
from dsdb.store.clearing import Clearing, latched
from dsdb.store.command import IntentCommand, PrewriteCommand, StageCommand
from dsdb.store.context import StoreContext
from dsdb.store.evaluate import IntentsMet
from dsdb.store.intents import SLICE_KEYS, Awaited, record_latch
from dsdb.store.replica import Replica
from dsdb.store.waiter import Waiter

WAIT_MIN_S = 0.001
"""Least wait for news, so that rounding never makes a wait of no length."""


class IntentServing:
    """One for each store."""

    def __init__(self, context: StoreContext, clearing: Clearing) -> None:
        self._context = context
        self._clearing = clearing
        self.handlers: dict[type, Callable[[Replica, Any], Awaitable[Reply]]] = {
            PrewriteRequest: self._prewrite,
            QueryIntentsRequest: self._query,
            ResolveRequest: self._resolve,
            StageRequest: self._stage,
            PushRequest: self._push,
            EndTxnRequest: self._end,
            RemoveRecordsRequest: self._remove,
        }
        """Request type → what serves it."""

    async def _writable(self, replica: Replica) -> None:
        replica.require_lease()
        if replica.low_term != replica.lease_term:
            await replica.wait_low_water()

    # ---- Intents ----

    async def _prewrite(self, replica: Replica, request: PrewriteRequest) -> Reply:
        intents.check_prewrite(request)
        await self._writable(replica)
        answers: list[Waiter[Reply] | PrewriteReply] = []
        until = 0.0
        begin = 0
        while begin < len(request.keys):
            keys = request.keys[begin : begin + SLICE_KEYS]
            values = request.values[begin : begin + SLICE_KEYS]

            def decide(keys: tuple[bytes, ...] = keys, values: tuple[bytes | None, ...] = values) -> IntentCommand | PrewriteReply:
                return intents.prewrite(replica, request.meta, request.ts, keys, values)

            try:
                answers.append(await latched(replica, keys, decide))
            except IntentsMet as intents_met:
                met = intents_met
            else:
                begin += SLICE_KEYS
                continue
            until = until or self._clearing.deadline()
            await self._clearing.clear(replica, met, request.meta.first_ts, until)
        highest = MIN_TIMESTAMP
        for answer in answers:
            reply = await answer.wait() if isinstance(answer, Waiter) else answer
            assert isinstance(reply, PrewriteReply), reply
            highest = max(highest, reply.ts)
        return PrewriteReply(highest)

    async def _query(self, replica: Replica, request: QueryIntentsRequest) -> Reply:
        if not request.keys:
            raise KvError(InvalidRequest("a query for intents needs keys"))
        await self._writable(replica)
        keys = sorted(set(request.keys))
        return await self._answer(await latched(replica, keys, lambda: intents.query(replica, request)))

    async def _resolve(self, replica: Replica, request: ResolveRequest) -> Reply:
        replica.require_lease()
        return await self._clearing.resolve(replica, request.items)

    # ---- Records ----

    async def _answer(self, decided: "Waiter[Reply] | Reply") -> Reply:
        return await decided.wait() if isinstance(decided, Waiter) else decided

    async def _stage(self, replica: Replica, request: StageRequest) -> Reply:
        intents.check_stage(request)
        latch_keys = (*request.laid, record_latch(request.meta.attempt))
        until = 0.0

        def decide() -> StageCommand | PrewriteCommand | RecordReply | BumpReply:
            return intents.stage(replica, request)

        while True:
            await self._writable(replica)
            try:
                decided: Waiter[Reply] | Reply = await latched(replica, latch_keys, decide)
            except IntentsMet as intents_met:
                met = intents_met
            else:
                reply = await self._answer(decided)
                return BumpReply(reply.ts) if isinstance(reply, PrewriteReply) else reply
            until = until or self._clearing.deadline()
            await self._clearing.clear(replica, met, request.meta.first_ts, until)

    async def _push(self, replica: Replica, request: PushRequest) -> Reply:
        config, clock = self._context.config, self._context.clock
        is_brief = not request.abort or request.pusher_ts < request.meta.first_ts
        waits = {Awaited.RECORD: config.push_wait_short_s if is_brief else config.push_wait_s, Awaited.OUTCOME: config.staging_wait_s}
        until: dict[Awaited, float] = {}
        latch_keys = (record_latch(request.meta.attempt),)
        while True:
            await self._writable(replica)
            now = clock.now()
            patience = frozenset(awaited for awaited in Awaited if until.get(awaited, now + 1) > now)
            answer = await latched(replica, latch_keys, lambda patience=patience: intents.push(replica, request, patience))  # type: ignore[misc]  # a default
            if isinstance(answer, Awaited):
                await self._wait_news(replica, request.meta.attempt, until.setdefault(answer, clock.now() + waits[answer]))
            else:
                assert isinstance(answer, RecordReply), answer
                return answer

    async def _wait_news(self, replica: Replica, attempt: AttemptId, until: float) -> None:
        """Wait until something becomes of an attempt, or the lease ends, but not for long."""
        verdicts = replica.verdicts
        if verdicts.listening >= self._context.config.latch_waiters_max:
            raise KvError(Unavailable(f"range {replica.range_id} has too many requests waiting for transactions"))
        waiter: Waiter[None] = Waiter()

        def hear() -> None:
            waiter.settle(None)

        verdicts.listen(attempt, hear)
        try:
            with trio.move_on_after(max(WAIT_MIN_S, until - self._context.clock.now())):
                await waiter.wait()
        finally:
            verdicts.unlisten(attempt, hear)

    async def _end(self, replica: Replica, request: EndTxnRequest) -> Reply:
        await self._writable(replica)
        attempt = request.meta.attempt
        resolved = tuple(sorted(set(request.resolve)))
        part, rest = resolved[:SLICE_KEYS], resolved[SLICE_KEYS:]
        decided = await latched(replica, (*part, record_latch(attempt)), lambda: intents.end(replica, request, part))
        if not isinstance(decided, Waiter):
            # It had ended before: whoever ended it may not have resolved these.
            rest = resolved
        reply = await self._answer(decided)
        assert isinstance(reply, RecordReply), reply
        if rest and intents.ended_as_asked(request, reply):
            await self._clearing.resolve(replica, (ResolveItem(attempt, rest, request.commit_ts),))
        return reply

    async def _remove(self, replica: Replica, request: RemoveRecordsRequest) -> Reply:
        await self._writable(replica)
        attempts = sorted(set(request.attempts))
        latch_keys = [record_latch(attempt) for attempt in attempts]
        decided = await latched(replica, latch_keys, lambda: intents.remove(replica, attempts))
        return RemoveRecordsReply() if decided is None else await self._answer(decided)
