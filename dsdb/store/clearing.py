"""Clearing: gets foreign intents out of the way of a request, which holds no latch meanwhile and looks again afterwards.

    IntentsMet ─▶ settle (`settling`: the port to the intents' records) ─┬─ COMMITTED, ABORTED, GONE ─▶ ResolveCommand here
                                                                         ├─ COMMITTED, and very many ─▶ read as what they will be
                                                                         ├─ PUSHED, COMMITTED above ─▶ passable up to the reader's ts
                                                                         └─ PENDING ─▶ it lives: the request meets it again

Invariants:
- Nobody waits here holding a latch, nor longer than `intent_wait_s` in one request.
- What is passable is so for ever: an attempt that was pushed above a timestamp never commits at or below it.
- An error says that the request had no effect: IntentInTheWay, or why this replica does not serve.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import trio

from dsdb.kv.errors import AmbiguousResult, IntentInTheWay, KvError
from dsdb.kv.ids import AttemptId
from dsdb.kv.intents import Pusher, ResolveItem, ResolveReply, TxnMeta, TxnStatus
from dsdb.kv.requests import Reply
from dsdb.storage.keys import Span
from dsdb.storage.mvcc import Intent
from dsdb.store import intents
from dsdb.store.command import INTENT_COMMANDS, IntentCommand
from dsdb.store.context import StoreContext
from dsdb.store.evaluate import IntentsMet
from dsdb.store.merged_pushes import MergedPushes
from dsdb.store.replica import Replica
from dsdb.store.settling import Settled
from dsdb.store.waiter import Waiter

READ_THROUGH_MIN = 256
"""Of more intents of one committed attempt a reader resolves none itself: there are very many, and somebody is at it."""
SETTLED_AT_ONCE = 32
"""Attempts that one request asks about at a time."""

R = TypeVar("R")


async def latched(
    replica: Replica, keys: Sequence[bytes], decide: Callable[[], IntentCommand | R], spans: Sequence[Span] = ()
) -> "Waiter[Reply] | R":
    """Evaluate under the latches of keys (ascending, distinct) and spans; propose what comes of it, if it is a command.  Raises KvError."""
    latch = replica.latches.acquire(keys, spans)
    if not latch.is_granted:
        await replica.wait_latch(latch)
    is_proposed = False
    try:
        decided = decide()
        if not isinstance(decided, INTENT_COMMANDS):
            return decided
        waiter = replica.propose(decided, latch)
        is_proposed = True
        latch.evaluated_ts = intents.evaluated_ts(decided)
        return waiter
    finally:
        if not is_proposed:
            replica.latches.release(latch)


class Clearing:
    """One for each store."""

    def __init__(self, context: StoreContext) -> None:
        self._context = context
        self._pushes = MergedPushes(context)

    def deadline(self) -> float:
        """Give the time at which a request that has met its first intent gives up."""
        return self._context.clock.now() + self._context.config.intent_wait_s

    async def clear(self, replica: Replica, met: IntentsMet, pusher: Pusher, until: float) -> None:
        """Get what a request met out of its way; it must look again then.  Raises KvError."""
        in_the_way = KvError(IntentInTheWay(met.intents[0][0]))
        is_cleared = False
        # The time may be over: it may have met intents before, and waited for latches since.
        with trio.move_on_after(max(until - self._context.clock.now(), 0.0)):
            try:
                await self._clear(replica, met, pusher)
            except KvError as error:
                if isinstance(error.detail, AmbiguousResult):
                    # What is not known is what became of the intent; the request itself did nothing.
                    raise in_the_way from error
                raise
            is_cleared = True
        if not is_cleared:
            raise in_the_way

    async def _clear(self, replica: Replica, met: IntentsMet, pusher: Pusher) -> None:
        attempts: dict[bytes, list[tuple[bytes, Intent]]] = {}
        for key, intent in met.intents:
            attempts.setdefault(intent.attempt_id, []).append((key, intent))
        chosen = list(attempts.values())[:SETTLED_AT_ONCE]
        items: list[ResolveItem] = []
        for found, settled in zip(chosen, await self._settle(chosen, met, pusher)):
            attempt = AttemptId(found[0][1].attempt_id)
            is_above = settled.status is TxnStatus.COMMITTED and settled.ts is not None and settled.ts > met.ts
            if settled.status is TxnStatus.PUSHED or (is_above and not met.is_write):
                replica.let_pass(attempt, met.ts)
            elif met.is_read and settled.status is TxnStatus.COMMITTED and settled.ts is not None and len(found) > READ_THROUGH_MIN:
                replica.learn_committed(attempt, settled.ts)
            elif settled.status is not TxnStatus.PENDING:
                # GONE: its record was removed after all of its intents were resolved, so one that still stands is a late copy.
                commit_ts = settled.ts if settled.status is TxnStatus.COMMITTED else None
                items.append(ResolveItem(attempt, tuple([key for key, _ in found]), commit_ts))
        if items:
            await self.resolve(replica, items, looks=True)

    async def _settle(self, chosen: list[list[tuple[bytes, Intent]]], met: IntentsMet, pusher: Pusher) -> list[Settled]:
        """Ask what becomes of some attempts, side by side.  Raises KvError IntentInTheWay."""
        results: dict[int, Settled | KvError] = {}

        async def ask(number: int, key: bytes, intent: Intent) -> None:
            meta = TxnMeta(AttemptId(intent.attempt_id), intent.anchor, intent.first_ts, intent.start_ts)
            try:
                results[number] = await self._pushes.settle(meta, met.ts, abort=met.is_write, pusher=pusher)
            except KvError as error:
                results[number] = KvError(IntentInTheWay(key))
                results[number].__cause__ = error  # type: ignore[union-attr]  # it is the error of the line before

        if len(chosen) == 1:
            await ask(0, *chosen[0][0])
        else:
            async with trio.open_nursery() as nursery:
                for number, found in enumerate(chosen):
                    nursery.start_soon(ask, number, *found[0])
        settled: list[Settled] = []
        for number in range(len(chosen)):
            result = results[number]
            if isinstance(result, KvError):
                raise result
            settled.append(result)
        return settled

    async def resolve(self, replica: Replica, items: Sequence[ResolveItem], *, looks: bool = False) -> ResolveReply:
        """Resolve intents, in commands of a bounded size; done when they are applied.  Raises KvError."""
        waiters: list[Waiter[Reply]] = []
        for part in sliced(items):
            keys = sorted({key for item in part for key in item.keys})

            def decide(part: list[ResolveItem] = part) -> "IntentCommand | ResolveReply":
                return intents.resolve(replica, part, looks=looks)

            # What reads find in the span of a block intent changes once it is resolved, written and not before.
            named = replica.machine.provisional.named
            blocks = [named(key, item.attempt) for item in part for key in item.keys] if replica.machine.provisional else []
            decided = await latched(replica, keys, decide, [block.span for block in blocks if block is not None])
            if isinstance(decided, Waiter):
                waiters.append(decided)
        for waiter in waiters:
            await waiter.wait()
        return ResolveReply()


def sliced(items: Sequence[ResolveItem]) -> list[list[ResolveItem]]:
    """Cut items into parts with at most `SLICE_KEYS` keys each."""
    parts: list[list[ResolveItem]] = []
    room = 0
    for item in items:
        done = 0
        while done < len(item.keys):
            if room == 0:
                parts.append([])
                room = intents.SLICE_KEYS
            keys = item.keys[done : done + room]
            parts[-1].append(ResolveItem(item.attempt, keys, item.commit_ts))
            done += len(keys)
            room -= len(keys)
    return parts
