"""Making keys the starts of ranges, for statements and for splits by size and load: one of them, or thousands.

    keys ─▶ those that start no range ─▶ an id each, taken together ─▶ the middle one of a range first, then both sides of it at once
                                                                       └─ every BATCH keys ─▶ addressing entries, in one transaction

Invariants:
- A key that starts a range already is left alone, also if somebody else has just made it so.
- What was split stays split, whatever becomes of the rest; its leaseholders write the entries that are missing then.
"""

import logging
from collections.abc import Callable, Sequence

import trio

from dsdb.coordinator import MetaWriter
from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.errors import InvalidRequest, KvError, RangeKeyMismatch
from dsdb.kv.ids import RangeId
from dsdb.kv.requests import SplitReply, SplitRequest
from dsdb.node.membership import take_ids
from dsdb.ranges import Router
from dsdb.sql.errors import SqlError
from dsdb.sql.ports import PortError, RangeUnavailableError, TransactionRetryError
from dsdb.txn import TransactionFactory

log = logging.getLogger("dsdb.node")

BATCH = 64
"""Keys between two writings of addressing entries: a transaction of at most twice as many rows."""
AT_ONCE = 8
"""Splits under way for one statement: each waits for a command of its range, and for the election of a new one."""
TRIES = 20
"""For one key: whoever is in the way has split the range, or changes its replicas, or lays blocks, which takes a while."""
PAUSE_MIN_S, PAUSE_MAX_S = 0.01, 1.0
"""Before the second try, and at most: 20 tries take 14 s."""
META_TRIES = 5
"""An entry that another writes at the same time is there after the second."""


class RangeSplits:
    """One for each node."""

    def __init__(self, *, router: Router, transactions: TransactionFactory, meta: MetaWriter, wake_coordinator: Callable[[], None]) -> None:
        self._router = router
        self._transactions = transactions
        self._meta = meta
        self._wake_coordinator = wake_coordinator

    async def split(self, keys: Sequence[bytes]) -> None:
        """Make each key the start of a range.  Raises PortError, SqlError."""
        wanted = [key for key in sorted(set(keys)) if await self._is_inside(key)]
        try:
            for begin in range(0, len(wanted), BATCH):
                await self._split_some(wanted[begin : begin + BATCH])
        finally:
            self._wake_coordinator()

    async def _is_inside(self, key: bytes) -> bool:
        """Say whether a key is not known to start a range."""
        try:
            return (await self._router.lookup(key)).start_key != key
        except KvError as error:
            raise _unavailable(error) from error

    async def _split_some(self, keys: Sequence[bytes]) -> None:
        """Split at some keys, several at once, and write their entries."""
        first_id = await take_ids(self._transactions, "range", len(keys), first=100)
        made: dict[RangeId, RangeDescriptor] = {}
        failures: list[PortError | SqlError] = []
        limiter = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as nursery:

            async def split_between(low: int, high: int) -> None:
                """Split at the middle one of some neighbours, then at those on either side."""
                middle = (low + high) // 2
                try:
                    async with limiter:
                        for desc in await self._split_at(keys[middle], RangeId(first_id + middle)):
                            known = made.get(desc.range_id)
                            if known is None or known.generation < desc.generation:
                                made[desc.range_id] = desc
                except (PortError, SqlError) as error:
                    failures.append(error)
                    nursery.cancel_scope.cancel()
                    return
                for begin, end in ((low, middle), (middle + 1, high)):
                    if begin < end:
                        nursery.start_soon(split_between, begin, end)

            nursery.start_soon(split_between, 0, len(keys))
        if failures:
            raise failures[0]
        await self._write_meta([made[range_id] for range_id in sorted(made)])

    async def _split_at(self, key: bytes, right: RangeId) -> tuple[RangeDescriptor, ...]:
        """Make a key the start of a range, and give what was made; nothing if it is one.  Raises PortError, SqlError."""
        pause_s = PAUSE_MIN_S
        for _ in range(TRIES):
            try:
                if (await self._router.lookup(key)).start_key == key:
                    return ()
                reply = await self._router.send(key, lambda desc: SplitRequest(desc.range_id, key, right))
            except KvError as error:
                if isinstance(error.detail, InvalidRequest | RangeKeyMismatch):
                    await trio.sleep(pause_s)
                    pause_s = min(2 * pause_s, PAUSE_MAX_S)
                    continue  # somebody else has split it there, as the next look-up will say; or it is being changed
                raise _unavailable(error) from error
            assert isinstance(reply, SplitReply)
            for desc in (reply.left, reply.right):
                self._router.cache.update(desc)
            return (reply.left, reply.right)
        raise RangeUnavailableError("the range changed too often while it was being split")

    async def _write_meta(self, descs: Sequence[RangeDescriptor]) -> None:
        """Write the entries of ranges that were split.  Raises PortError, SqlError.

        Their leaseholders do so, too: either may be in the other's way, and then finds that they are written.
        """
        for _ in range(META_TRIES):
            try:
                await self._meta.write(descs)
            except TransactionRetryError as error:
                log.info("addressing entries of %d ranges are being written by another: %s", len(descs), error)
            else:
                return


def _unavailable(error: KvError) -> RangeUnavailableError:
    return RangeUnavailableError(getattr(error.detail, "reason", repr(error.detail)))
