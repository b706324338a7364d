"""Requests about row locks: reads that lock what they read, giving locks back, and keeping them for long.

    gateway ── LockedRead ──▶ leaseholder: queue ▸ granted ▸ read ─▶ LockedReadReply
                                                     └─ newer than ts ─▶ NewerReply: fresh ts, refresh the earlier reads, ask again
            ── KeepLocks (now and then) ──▶
            ── Unlock, or the outcome of the attempt applied ──▶ the next one is granted

Invariants:
- A lock is advice: it is not replicated, and whoever loses one (lease change, split, wound, silence) is told so by its refresh at
  commit at the latest.  No transaction is correct because it holds a lock.
- All of these requests may come twice: asking again for a lock that is held gives it at once.
"""

from enum import StrEnum
from typing import TypeAlias

import msgspec

from dsdb.kv.ids import AttemptId, RangeId
from dsdb.storage.timestamp import Timestamp

LOCKED_KEYS_MAX = 512
"""Keys of one request: what one read may carry."""


class LockWait(StrEnum):
    """What becomes of a key that another transaction has locked."""

    WAIT = "wait"
    NOWAIT = "nowait"
    """The request is answered LockNotAvailable."""
    SKIP = "skip"
    """The key is left out."""


class LockedReadRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Lock keys (ascending), then read them at `ts`; None: at a fresh timestamp, taken when all are locked.

    start_ts: when the transaction began, the same through all its attempts: the older goes first.  holds_locks: the attempt holds others,
    so waiting for a younger transaction might never end.  wait_s: how long it may wait.
    Answered by a LockedReadReply or a NewerReply; LockNotAvailable when a key stays locked.
    """

    range_id: RangeId
    keys: tuple[bytes, ...]
    ts: Timestamp | None
    attempt: AttemptId
    start_ts: Timestamp
    wait: LockWait = LockWait.WAIT
    holds_locks: bool = False
    wait_s: float = 1.0


class LockedReadReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Values in the order of the keys, and which of them are locked; of one that was left out the value is None, and was not read."""

    ts: Timestamp
    values: tuple[bytes | None, ...]
    locked: tuple[bool, ...]


class NewerReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The locks are held, but a version at `ts` is newer than the timestamp that was asked for: read again above it."""

    ts: Timestamp


class UnlockRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Give back all locks of some attempts in this range, and their places in queues."""

    range_id: RangeId
    attempts: tuple[AttemptId, ...]


class UnlockReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """They are free."""


class KeepLocksRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Say that these attempts are alive, so that nobody takes their locks for abandoned."""

    range_id: RangeId
    attempts: tuple[AttemptId, ...]


class KeepLocksReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Heard."""


LockRequest: TypeAlias = LockedReadRequest | UnlockRequest | KeepLocksRequest
LockReply: TypeAlias = LockedReadReply | NewerReply | UnlockReply | KeepLocksReply
