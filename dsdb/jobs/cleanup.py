"""Removing the rows of dropped and truncated tables, once nobody can be reading them any more.

    DROP, TRUNCATE ─▶ garbage row in the catalogue ─ AGE_S ─▶ every range it touches: forget old reads, clear ─▶ the row goes

Invariants:
- A range is cleared only after its garbage collection threshold has passed the drop: a statement that still read the table at an older
  timestamp gets an error, never a short result.
- Clearing twice is clearing once: whoever leads the system range next starts over with what rows are left.
"""

import logging
from collections.abc import Callable

import msgspec
import trio

from dsdb.env import Clock
from dsdb.kv.errors import KvError
from dsdb.kv.requests import ClearSpanReply, ClearSpanRequest, CollectGarbageReply, CollectGarbageRequest
from dsdb.ranges import Router
from dsdb.sql.catalog import IndexGarbage
from dsdb.sql.errors import SqlError
from dsdb.sql.ports import PortError
from dsdb.storage.keys import Span, index_prefix, prefix_span, system_key
from dsdb.storage.timestamp import Timestamp, from_milliseconds
from dsdb.txn import TransactionFactory

log = logging.getLogger("dsdb.jobs")

AGE_S = 600.0
"""How long the rows of a dropped table stay, for statements that began before the drop."""
INTERVAL_S = 30.0
"""Between two looks for garbage."""

_DECODE = msgspec.msgpack.Decoder(IndexGarbage).decode


class Cleanup:
    """Runs on every node, acts on the one that leads the system range."""

    def __init__(
        self,
        *,
        router: Router,
        transactions: TransactionFactory,
        clock: Clock,
        is_leader: Callable[[], bool],
        age_s: float = AGE_S,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._router = router
        self._transactions = transactions
        self._clock = clock
        self._is_leader = is_leader
        self._default_age_s = self._age_s = age_s
        self._interval_s = interval_s
        self._seen: dict[bytes, float] = {}  # garbage row → when this node first saw it, by its clock

    def use_age(self, age_s: float | None) -> None:
        """Keep dropped rows for so long, from the next look on; None: as it was made."""
        self._age_s = self._default_age_s if age_s is None else age_s

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look and clear, for ever."""
        task_status.started()
        while True:
            await trio.sleep(self._interval_s)
            if not self._is_leader():
                self._seen.clear()
                continue
            try:
                await self._step()
            except (KvError, PortError, SqlError) as error:
                log.info("dropped rows are not removed yet: %s", error)

    async def _step(self) -> None:
        rows = await self._transactions.begin().scan(prefix_span(system_key("garbage")))
        now = self._clock.now()
        self._seen = {key: self._seen.get(key, now) for key, _ in rows}
        for key, value in rows:
            if now - self._seen[key] >= self._age_s:
                await self._clear(_DECODE(value))
                txn = self._transactions.begin()
                txn.delete(key)
                await txn.commit()

    async def _clear(self, garbage: IndexGarbage) -> None:
        span = prefix_span(index_prefix(garbage.database_id, garbage.table_id, garbage.index_id))
        now = await self._transactions.begin().read_timestamp()
        threshold = Timestamp(max(now - from_milliseconds(int(self._age_s * 1000)), 1))
        for entry, piece in await self._router.cut([span]):
            range_id = entry.desc.range_id
            collected = await self._router.send(piece.start, lambda _, r=range_id: CollectGarbageRequest(r, threshold))  # type: ignore[misc]
            assert isinstance(collected, CollectGarbageReply)
            cleared = await self._router.send(piece.start, lambda _, r=range_id, p=piece: ClearSpanRequest(r, Span(*p)))  # type: ignore[misc]
            assert isinstance(cleared, ClearSpanReply)
        log.info("removed the rows of a dropped index (table %d, index %d)", garbage.table_id, garbage.index_id)
