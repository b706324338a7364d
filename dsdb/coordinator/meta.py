"""The addressing index: descriptors by end key in the system range, written after the ranges themselves changed.

Invariants:
- A range's applied descriptor is the truth; an entry here is replaced only by one of a higher generation, so that a late writer
  changes nothing and writing twice is writing once.
- The leaseholder of a range writes its entry: after each change, and when it takes the lease.
"""

import logging
from collections.abc import Callable, Sequence

import msgspec
import trio

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.ids import RangeId
from dsdb.sql.errors import SqlError
from dsdb.sql.ports import PortError
from dsdb.storage.keys import meta_key
from dsdb.txn import TransactionFactory

log = logging.getLogger("dsdb.coordinator")

RETRY_S = 0.2
"""Pause after an entry that could not be written."""
LINGER_S = 0.05
"""How long a change waits for others."""
WRITTEN_AT_ONCE = 64
"""Entries that are looked at, and written, together."""

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(RangeDescriptor).decode


class MetaWriter:
    """Writes the entries of the ranges that this node leads."""

    def __init__(self, transactions: TransactionFactory, *, is_leaseholder: Callable[[RangeId], bool]) -> None:
        self._transactions = transactions
        self._is_leaseholder = is_leaseholder
        self._waiting: dict[RangeId, RangeDescriptor] = {}
        self._wakeup = trio.Event()

    def changed(self, desc: RangeDescriptor) -> None:
        """Take note of a descriptor that was applied here, or whose lease was taken here."""
        self._waiting[desc.range_id] = desc
        self._wakeup.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what changed, for ever."""
        task_status.started()
        while True:
            await self._wakeup.wait()
            self._wakeup = trio.Event()
            # Who splits a range writes its entries by itself, and many change at a time or none.
            await trio.sleep(LINGER_S)
            while self._waiting:
                some = [self._waiting.pop(range_id) for range_id in sorted(self._waiting)[:WRITTEN_AT_ONCE]]
                try:
                    await self.write([desc for desc in some if self._is_leaseholder(desc.range_id)])
                except (PortError, SqlError) as error:
                    log.info("%d addressing entries were not written yet: %s", len(some), error)
                    for desc in some:
                        self._waiting.setdefault(desc.range_id, desc)
                    await trio.sleep(RETRY_S)

    async def write(self, descs: Sequence[RangeDescriptor]) -> None:
        """Write the entries of ranges that are not as they should be, but newer ones: after a restart nearly all are right.

        Raises PortError, SqlError.
        """
        if not descs:
            return
        txn = self._transactions.begin()
        stored = await txn.get([meta_key(desc.end_key) for desc in descs])
        news = []
        for desc, value in zip(descs, stored):
            known = None if value is None else _DECODE(value)
            if known is None or (known.generation <= desc.generation and known != desc):
                news.append(desc)
        for desc in news:
            txn.put(meta_key(desc.end_key), _ENCODE(desc))
        if news:
            await txn.commit()
