"""The addressing index: descriptors by end key in the system range, written after the ranges themselves changed.

Invariants:
- A range's applied descriptor is the truth; an entry here is replaced only by one of a higher generation, so that a late writer
  changes nothing and writing twice is writing once.
- The leaseholder of a range writes its entry: after each change, and when it takes the lease.
"""

import logging
from collections.abc import Callable

import msgspec
import trio

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.ids import RangeId
from dsdb.sql.ports import PortError
from dsdb.storage.keys import meta_key
from dsdb.txn import TransactionFactory

log = logging.getLogger("dsdb.coordinator")

RETRY_S = 0.2
"""Pause after an entry that could not be written."""

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
            while self._waiting:
                range_id = min(self._waiting)
                desc = self._waiting.pop(range_id)
                if not self._is_leaseholder(range_id):
                    continue
                try:
                    await self.write(desc)
                except PortError as error:
                    log.info("range %d: the addressing entry was not written yet: %s", range_id, error)
                    self._waiting.setdefault(range_id, desc)
                    await trio.sleep(RETRY_S)

    async def write(self, desc: RangeDescriptor) -> None:
        """Write a range's entry unless a newer one is there.  Raises PortError."""
        key = meta_key(desc.end_key)
        txn = self._transactions.begin()
        (stored,) = await txn.get([key])
        if stored is not None:
            known = _DECODE(stored)
            if known.generation > desc.generation or known == desc:
                return
        txn.put(key, _ENCODE(desc))
        await txn.commit()
