"""Rows that a statement finds by looking for them, and is about to change: locked before they count as read.

    find, unrecorded ─▶ lock what was found ─┬─ the read timestamp stands   what was found holds, and counts as read
                                             └─ locks have moved it on      find again, at the new timestamp

So statements that change the same rows wait for each other.  If they were read first, whoever waits for a lock would find what it has
read changed, and begin anew.

Invariants:
- What is given was read, and recorded, at the transaction's read timestamp.
- Locks are advice: rows that only the second look finds are not locked, nor is anything if there is much.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import TypeVar

from dsdb.sql.execute.services import Execution

FOUND_ROWS_LOCKED_MAX = 64
"""Statements that find more rows take no locks."""

Found = TypeVar("Found", bound=Collection[object])


async def found_to_change(find: Callable[[], Awaitable[Found]], keys_of: Callable[[Found], Sequence[bytes]], execution: Execution) -> Found:
    """Find what a statement is about to change, under its rows' locks."""
    txn = execution.txn
    with txn.unrecorded() as reads:
        found = await find()
    if 0 < len(found) <= FOUND_ROWS_LOCKED_MAX and await moved_by_locks(keys_of(found), execution):
        return await find()
    reads.keep()
    return found


async def moved_by_locks(keys: Sequence[bytes], execution: Execution) -> bool:
    """Lock rows; say whether that has moved the transaction's read timestamp on, so that what was found must be found again."""
    read_ts = await execution.txn.read_timestamp()
    await execution.lock(keys)
    return await execution.txn.read_timestamp() != read_ts


__all__ = ["FOUND_ROWS_LOCKED_MAX", "found_to_change", "moved_by_locks"]
