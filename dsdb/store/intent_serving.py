"""Serving requests about intents and txn records: prewrite, query and resolve; stage, push, end and remove; begin and roll back.

Invariants:
- Every wait is bounded, and none but for a latch in line or a command's end is made holding one.
- Every request may come twice: evaluation finds what the first copy did (`intents`, `flushes`).
- A command carries so many keys and bytes at most, and between two of them others have their turns.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from dsdb.kv.errors import InvalidRequest, KvError, Unavailable
from dsdb.kv.ids import AttemptId
from dsdb.kv.intents import (
    BeginTxnRequest,
    EndTxnRequest,
    LayBlockRequest,
    PrewriteReply,
    PrewriteRequest,
    Pusher,
    PushRequest,
    QueryIntentsRequest,
    RecordReply,
    RemoveRecordsReply,
    RemoveRecordsRequest,
    ResolveItem,
    ResolveRequest,
    ResolveSpansRequest,
    RollBackRequest,
    SpansReply,
    StageRequest,
    TxnMeta,
    UnpackBlocksRequest,
)
from dsdb.kv.requests import BumpReply, Reply
from dsdb.storage import mvcc
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import MIN_TIMESTAMP
from dsdb.store import block_intents, flushes, intents
from dsdb.store.clearing import Clearing, latched
from dsdb.store.command import IntentCommand, PrewriteCommand, StageCommand
from dsdb.store.context import StoreContext
from dsdb.store.evaluate import IntentsMet
from dsdb.store.intents import SLICE_KEYS, Awaited, Writes, record_latch
from dsdb.store.provisional import ProvisionalBlock
from dsdb.store.replica import Replica
from dsdb.store.waiter import Waiter

WAIT_MIN_S = 0.001
"""Least wait for news, so that rounding never makes a wait of no length."""
SLICE_BYTES = 512 * 1024
"""Values of one command that lays intents; a single larger one goes by itself."""
LOOKED_AT_ROWS = 2_048
"""Entries of a span that are looked at in one go for an attempt's intents: some milliseconds."""
UNPACKED_MAX = 2
"""Block intents after which a request to unpack more is answered with the rest: a second of work."""
BLOCKS_AT_ONCE = 16
"""Block intents of one command that resolves them: a millisecond or two to apply."""
SPANS_KEYS_MAX = 8_192
SPANS_ROWS_MAX = 200_000
"""Intents and entries after which a request about spans is answered with the rest: half a second of work."""


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
            BeginTxnRequest: self._begin,
            RollBackRequest: self._roll_back,
            ResolveSpansRequest: self._resolve_spans,
            LayBlockRequest: self._lay_block,
            UnpackBlocksRequest: self._unpack_blocks,
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
            writes = _slice(request, begin)

            def decide(writes: Writes = writes) -> IntentCommand | PrewriteReply:
                return intents.prewrite(replica, request.meta, request.ts, writes)

            try:
                answers.append(await latched(replica, writes.keys, decide))
            except IntentsMet as intents_met:
                met = intents_met
            else:
                begin += len(writes.keys)
                if begin < len(request.keys):
                    await trio.lowlevel.checkpoint()
                continue
            until = until or self._clearing.deadline()
            await self._clearing.clear(replica, met, pusher_of(request.meta), until)
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
            await self._clearing.clear(replica, met, pusher_of(request.meta), until)

    async def _push(self, replica: Replica, request: PushRequest) -> Reply:
        config, clock = self._context.config, self._context.clock
        is_brief = not request.abort or request.pusher.rank < request.meta.rank
        waits = {
            Awaited.RECORD: config.push_wait_short_s if is_brief else config.push_wait_s,
            Awaited.OUTCOME: config.staging_wait_s,
            Awaited.GATEWAY: config.gateway_wait_s,
        }
        until: dict[Awaited, float] = {}
        latch_keys = (record_latch(request.meta.attempt),)
        while True:
            await self._writable(replica)
            now = clock.now()
            patience = frozenset(awaited for awaited in Awaited if until.get(awaited, now + 1) > now)
            answer = await latched(replica, latch_keys, lambda patience=patience: intents.push(replica, request, patience))  # type: ignore[misc]  # a default
            if isinstance(answer, Waiter):
                answer = await answer.wait()
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

    # ---- Large transactions ----

    async def _begin(self, replica: Replica, request: BeginTxnRequest) -> Reply:
        await self._writable(replica)
        latch_keys = (record_latch(request.meta.attempt),)
        return await self._answer(await latched(replica, latch_keys, lambda: flushes.begin(replica, request)))

    async def _roll_back(self, replica: Replica, request: RollBackRequest) -> Reply:
        await self._writable(replica)
        highest = MIN_TIMESTAMP

        async def act(keys: list[bytes]) -> None:
            nonlocal highest
            reply = await self._answer(await latched(replica, keys, lambda: flushes.roll_back(replica, request, keys)))
            assert isinstance(reply, PrewriteReply), reply
            highest = max(highest, reply.ts)

        rest = await self._over_spans(replica, request.spans, request.meta.attempt, act)
        return SpansReply(rest, highest)

    async def _resolve_spans(self, replica: Replica, request: ResolveSpansRequest) -> Reply:
        replica.require_lease()

        async def act(keys: list[bytes]) -> None:
            await self._clearing.resolve(replica, (ResolveItem(request.attempt, tuple(keys), request.commit_ts),))

        for span in request.spans:
            replica.require_span(span)
            names = [block.first_key for block in replica.machine.provisional.own_in(span, request.attempt)]
            for begin in range(0, len(names), BLOCKS_AT_ONCE):
                await act(names[begin : begin + BLOCKS_AT_ONCE])
                replica.require_lease()
        return SpansReply(await self._over_spans(replica, request.spans, request.attempt, act))

    # ---- Block intents ----

    async def _lay_block(self, replica: Replica, request: LayBlockRequest) -> Reply:
        block_intents.check_lay(request)
        await self._writable(replica)
        span = block_intents.span_of(request)
        return await self._answer(await latched(replica, (), lambda: block_intents.lay(replica, request), (span,)))

    async def _unpack_blocks(self, replica: Replica, request: UnpackBlocksRequest) -> Reply:
        await self._writable(replica)
        done = 0
        for place, span in enumerate(request.spans):
            replica.require_span(span)
            for block in replica.machine.provisional.own_in(span, request.meta.attempt):
                if done == UNPACKED_MAX:
                    return SpansReply(request.spans[place:])
                await self._unpack(replica, block)
                done += 1
        return SpansReply()

    async def _unpack(self, replica: Replica, block: ProvisionalBlock) -> None:
        keys = self._context.blocks.keys(block.entry()).keys()
        answers: list[Waiter[Reply] | PrewriteReply] = []
        for begin in range(0, len(keys), SLICE_KEYS):
            part = keys[begin : begin + SLICE_KEYS]
            values = block_intents.row_values(replica, block, begin, begin + len(part))

            def decide(part: list[bytes] = part, values: list[bytes] = values) -> IntentCommand | PrewriteReply:
                return block_intents.unpack(replica, block, part, values)

            answers.append(await latched(replica, part, decide))
            await trio.lowlevel.checkpoint()
        for answer in answers:
            await self._answer(answer)
        await self._answer(await latched(replica, (), lambda: block_intents.drop(replica, block), (block.span,)))

    async def _over_spans(
        self, replica: Replica, spans: tuple[Span, ...], attempt: AttemptId, act: Callable[[list[bytes]], Awaitable[None]]
    ) -> tuple[Span, ...]:
        """Do something to the intents that an attempt has in spans, some at a time; give what is left when it was much.  Raises KvError."""
        for span in spans:
            replica.require_span(span)
        rest = list(reversed(spans))
        keys_done = rows_done = 0
        while rest and keys_done < SPANS_KEYS_MAX and rows_done < SPANS_ROWS_MAX:
            span = rest.pop()
            keys: list[bytes] = []
            while len(keys) < SLICE_KEYS:
                found, resume = mvcc.intents_of(self._context.engine, span, attempt, rows_max=LOOKED_AT_ROWS)
                keys += [key for key, _ in found]
                rows_done += LOOKED_AT_ROWS if resume is not None else max(len(found), 1)
                if resume is not None:
                    span = Span(resume, span.end)
                elif rest:
                    span = rest.pop()
                else:
                    break
                if rows_done >= SPANS_ROWS_MAX:
                    rest.append(span)
                    break
                await trio.lowlevel.checkpoint()
            else:
                rest.append(span)
            for begin in range(0, len(keys), SLICE_KEYS):
                await act(keys[begin : begin + SLICE_KEYS])
                replica.require_lease()
            keys_done += len(keys)
        return tuple([span for span in reversed(rest) if not span.is_empty])


def pusher_of(meta: TxnMeta) -> Pusher:
    """Give an attempt that lays intents as a pusher: others may wait for it."""
    return Pusher(meta.rank[0], meta.attempt, wounds=True)


def _slice(request: PrewriteRequest, begin: int) -> Writes:
    """Give the writes, from one on, that one command may carry."""
    end = min(begin + SLICE_KEYS, len(request.keys))
    values = request.values[begin:end]
    if sum([len(value) for value in values if value is not None]) > SLICE_BYTES:
        end, taken = begin, 0
        for value in values:
            taken += len(value or b"")
            if end > begin and taken > SLICE_BYTES:
                break
            end += 1
    keys, absent = request.keys[begin:end], request.absent[begin:end]
    return Writes(keys, request.values[begin:end], request.sequence, request.marks, absent, request.read_ts)
