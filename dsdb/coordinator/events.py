"""The log of what the coordinator did, and why: rows of the system range, the oldest of which go.

    03 "event" number ─▶ Event        number: grows; the newest EVENTS_MAX are kept

Invariants:
- An event is written after what it tells of; one that cannot be written for long, or whose writing has no known outcome, may be
  missing, and the node's log has it still.
- The log never grows beyond EVENTS_MAX and one batch.
"""

import logging
from collections import deque
from typing import Protocol

import msgspec
import trio

from dsdb.env import Clock
from dsdb.kv.ids import RangeId
from dsdb.sql.errors import SqlError
from dsdb.sql.ports import AmbiguousCommitError, PortError
from dsdb.storage.keys import decode_id, prefix_span, system_key
from dsdb.txn import TransactionFactory

log = logging.getLogger("dsdb.coordinator")

EVENTS_MAX = 10_000
"""Events kept: about 2 MB."""
WAITING_MAX = 1_000
"""Events that wait to be written; of more the oldest are dropped."""
BATCH_MAX = 100
"""Events written at once."""
TRIES = 20
"""How often a batch is tried to be written; then it is dropped."""
PAUSE_S = 0.5
"""Between two batches, so that many events are few commits."""


class Event(msgspec.Struct, frozen=True, array_like=True):
    """Something that was done to the cluster.  kind: replicas, lease, node, split; range_id: 0 if it concerns none."""

    at_ms: int
    kind: str
    range_id: RangeId
    what: str
    """With its reason, in words."""
    is_done: bool = True
    """False: it was tried, and failed."""


class EventSink(Protocol):
    """Takes events."""

    def record(self, kind: str, range_id: RangeId, what: str, *, is_done: bool = True) -> None:
        """Note that something was done, or tried."""


_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(Event).decode
_PREFIX = system_key("event")


class EventLog:
    """The sink that writes to the system range."""

    def __init__(self, transactions: TransactionFactory, clock: Clock) -> None:
        self._transactions = transactions
        self._clock = clock
        self._waiting: deque[Event] = deque(maxlen=WAITING_MAX)
        self._wakeup = trio.Event()

    def record(self, kind: str, range_id: RangeId, what: str, *, is_done: bool = True) -> None:
        """Note that something was done, or tried."""
        (log.info if is_done else log.warning)("%s%s", what, "" if is_done else " (failed)")
        self._waiting.append(Event(self._clock.wall_ms(), kind, range_id, what, is_done))
        self._wakeup.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what is recorded, for ever."""
        task_status.started()
        while True:
            await self._wakeup.wait()
            self._wakeup = trio.Event()
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(BATCH_MAX, len(self._waiting)))]
                await self._write_patiently(batch)
                await trio.sleep(PAUSE_S)

    async def _write_patiently(self, batch: list[Event]) -> None:
        """Write a batch, again if it did not take effect: what is recorded while leases move would else often be lost."""
        for _ in range(TRIES):
            try:
                await self._write(batch)
                return
            except AmbiguousCommitError as error:
                log.info("%d events were perhaps not written: %s", len(batch), error)
                return
            except (PortError, SqlError) as error:
                log.info("%d events were not written yet: %s", len(batch), error)
                await trio.sleep(PAUSE_S)

    async def _write(self, batch: list[Event]) -> None:
        txn = self._transactions.begin()
        span = prefix_span(_PREFIX)
        newest = await txn.scan(span, limit=1, reverse=True)
        number = _number(newest[0][0]) + 1 if newest else 1
        for at, event in enumerate(batch):
            txn.put(system_key("event", number + at), _ENCODE(event))
        for key, _ in await txn.scan(span, limit=len(batch)):
            if _number(key) <= number + len(batch) - 1 - EVENTS_MAX:
                txn.delete(key)
        await txn.commit()


async def read_events(transactions: TransactionFactory, *, limit: int = EVENTS_MAX) -> list[tuple[int, Event]]:
    """Give the newest events and their numbers, ascending.  Raises PortError."""
    rows = await transactions.begin().scan(prefix_span(_PREFIX), limit=limit, reverse=True)
    return [(_number(key), _DECODE(value)) for key, value in reversed(rows)]


def _number(key: bytes) -> int:
    return decode_id(key, len(_PREFIX))[0]
