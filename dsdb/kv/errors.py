"""What a range answers instead of a reply: where to ask again, and whether the outcome is known.

Each is a tagged struct on the wire, carried by the one exception class `KvError` inside a node.

Invariants:
- Nothing of the request took effect, unless the error is AmbiguousResult.
"""

from typing import TypeAlias

import msgspec

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.ids import RangeId, StoreId
from dsdb.storage.timestamp import Timestamp


class NotLeaseholder(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """This replica does not hold the lease.  leaseholder: who probably does; descriptor: what this replica knows, if it is a replica."""

    range_id: RangeId
    leaseholder: StoreId | None = None
    descriptor: RangeDescriptor | None = None


class RangeNotFound(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """This store has no replica of the range (or its replica is not initialised yet)."""

    range_id: RangeId


class RangeKeyMismatch(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The keys do not all lie in the range.  descriptors: the range as it is, and its right-hand neighbour where known."""

    descriptors: tuple[RangeDescriptor, ...]


class KeyExists(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A write that must be absent found a live version.  Final: the attempt's refusal is recorded only if it had been proposed."""

    key: bytes


class Conflict(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Something read by the attempt changed after its read timestamp.  Final for the attempt."""

    key: bytes
    ts: Timestamp


class Refused(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The attempt has a recorded refusal."""


class Gone(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The attempt is so old that its outcome may have been forgotten: unknown (rule 11)."""


class DeadlinePassed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The commit timestamp would not be below the request's deadline."""

    ts: Timestamp


class BelowThreshold(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A read below the garbage collection threshold."""

    threshold: Timestamp


class Unavailable(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The range cannot serve now (no quorum, no lease, no timestamp, overloaded, stopping).  Known not to have taken effect."""

    reason: str


class AmbiguousResult(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A command was proposed and its outcome is not known to whoever answers."""

    reason: str


class InvalidRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The request makes no sense for the range as it is (split at its start, change from another generation, …)."""

    reason: str


class DiskTrouble(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The store's disk cannot take writes, or its data is damaged.  damaged: the replica is quarantined."""

    reason: str
    damaged: bool = False


class IntentInTheWay(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Another transaction's intent stood on a key, and what becomes of it could not be found out in time."""

    key: bytes


class LockNotAvailable(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A key is locked by another transaction, and the request does not wait, or has waited long enough."""

    key: bytes


KvErrorDetail: TypeAlias = (
    NotLeaseholder
    | RangeNotFound
    | RangeKeyMismatch
    | KeyExists
    | Conflict
    | Refused
    | Gone
    | DeadlinePassed
    | BelowThreshold
    | Unavailable
    | AmbiguousResult
    | InvalidRequest
    | DiskTrouble
    | IntentInTheWay
    | LockNotAvailable
)


class KvError(Exception):
    """The exception form of a KvErrorDetail: `raise KvError(NotLeaseholder(range_id))`, `match error.detail: …`."""

    def __init__(self, detail: KvErrorDetail) -> None:
        super().__init__(repr(detail))
        self.detail = detail
