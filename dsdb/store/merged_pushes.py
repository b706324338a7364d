"""Pushes of one attempt, merged: what many requests meet at once costs one push at a time.

    push of an attempt ─▶ one like it is on its way? ─ yes ─▶ wait for its answer ─▶ an outcome, or pushed above us too: ours as well
                                     └─ no ─▶ ask (`settling`)                        else ask, for all that wait

Invariants:
- An answer counts for others only if it would be the same for them: an outcome is final; a push counts up to its timestamp.
- Who is cancelled while asking leaves the others to ask again.
"""

from typing import TypeAlias

from dsdb.kv.errors import KvError
from dsdb.kv.ids import AttemptId
from dsdb.kv.intents import Pusher, TxnMeta, TxnStatus
from dsdb.storage.timestamp import Timestamp
from dsdb.store.context import StoreContext
from dsdb.store.settling import Settled
from dsdb.store.waiter import Waiter

_Lane: TypeAlias = tuple[AttemptId, bool, bool]
"""The attempt; whether it is to be aborted; whether the pusher may wound it.  Others are not held up by what they need not wait for."""


class _Push:
    """A push on its way."""

    __slots__ = ("error", "settled", "ts", "waiters", "wanted")

    def __init__(self, ts: Timestamp) -> None:
        self.ts = ts
        self.wanted = ts
        """The highest timestamp of those who wait, too: the next push is for all of them."""
        self.waiters: list[Waiter[None]] = []
        self.settled: Settled | None = None
        self.error: KvError | None = None


class MergedPushes:
    """One for each store."""

    def __init__(self, context: StoreContext) -> None:
        self._context = context
        self._under_way: dict[_Lane, _Push] = {}
        self.merged = 0
        """Pushes that another one's answer has saved."""

    async def settle(self, meta: TxnMeta, ts: Timestamp, *, abort: bool, pusher: Pusher) -> Settled:
        """Find out what becomes of an attempt; see `IntentSettler.settle`."""
        lane = (meta.attempt, abort, abort and pusher.wounds and pusher.rank < meta.rank)
        asked = ts
        while (push := self._under_way.get(lane)) is not None:
            waiter: Waiter[None] = Waiter()
            push.waiters.append(waiter)
            push.wanted = max(push.wanted, ts)
            await waiter.wait()
            if push.error is not None:
                self.merged += 1
                raise KvError(push.error.detail) from push.error
            if push.settled is not None and _holds_for(push.settled, push.ts, ts):
                self.merged += 1
                return push.settled
            asked = max(asked, push.wanted)
        push = self._under_way[lane] = _Push(asked)
        try:
            push.settled = await self._context.intents.settle(meta, asked, abort=abort, pusher=pusher)
        except KvError as error:
            push.error = error
            raise
        finally:
            del self._under_way[lane]
            for waiter in push.waiters:
                waiter.settle(None)
        return push.settled


def _holds_for(settled: Settled, pushed_ts: Timestamp, ts: Timestamp) -> bool:
    """Say whether an answer to a push at one timestamp is one to a push at another."""
    return settled.status is not TxnStatus.PUSHED or ts <= pushed_ts
