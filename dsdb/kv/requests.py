"""Requests to a range, and their replies.

All carry the range they are meant for; the leaseholder checks their keys against its applied descriptor under the latch and answers
RangeKeyMismatch or NotLeaseholder (`errors`) if it is the wrong one.  Rules by number are those of docs/transactions.md.

Invariants:
- `ts` None means: the leaseholder takes a fresh oracle timestamp after the request arrived, and says which.
- A commit is one command of one range: it is there completely, at one timestamp, or not at all.
- Requests and replies are tagged by their class names; fields are added at the end only.
- A commit may be sent again under the same attempt id; it is applied once and answered alike (rules 8 to 11).
"""

from typing import TypeAlias

import msgspec

from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor
from dsdb.kv.ids import AttemptId, RangeId, StoreId
from dsdb.kv.intents import IntentReply, IntentRequest
from dsdb.kv.locks import LockReply, LockRequest
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import Timestamp


class ReadRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Read keys at a timestamp (rules 3 to 5)."""

    range_id: RangeId
    keys: tuple[bytes, ...]
    ts: Timestamp | None
    attempt: AttemptId | None = None
    any_replica: bool = False
    """It reads the past, at `ts`: also a replica without the lease may answer, if that is resolved there (rule 23)."""


class ReadReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Values in the order of the keys; None where there is nothing."""

    ts: Timestamp
    values: tuple[bytes | None, ...]


class ScanRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Read the live rows of a span, clipped to nothing: the whole span must lie in the range.

    It stops after rows_max rows or bytes_max bytes of values, whichever comes first; the reply says where to go on.
    """

    range_id: RangeId
    span: Span
    ts: Timestamp | None
    rows_max: int
    bytes_max: int
    reverse: bool = False
    attempt: AttemptId | None = None
    any_replica: bool = False
    """As in ReadRequest."""


class ScanReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Keys and values in scan order.  resume: what is left of the span, or None when it is done."""

    ts: Timestamp
    keys: tuple[bytes, ...]
    values: tuple[bytes, ...]
    resume: Span | None = None


class Write(msgspec.Struct, frozen=True, array_like=True):
    """A write of a commit: value None removes; must_be_absent refuses the commit with KeyExists if the key has a live version."""

    key: bytes
    value: bytes | None
    must_be_absent: bool = False


class CommitRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Commit a transaction all of whose writes lie in this range (rules 8 to 10).

    ts: the proposed commit timestamp, or None for a fresh one of the leaseholder's.
    first_ts: a timestamp issued before anything of the attempt's commit was sent.
    read_ts: where the transaction read, or None if it read nothing; reads: the spans that it read in this range.
    has_other_reads: it also read in other ranges, so a bump goes back to the gateway, which must refresh those.
    deadline: the commit timestamp must be below it.
    start_ts: the first timestamp of the transaction's first attempt, None: of this one; holds_locks: others may wait for it (rule 30).
    """

    range_id: RangeId
    attempt: AttemptId
    first_ts: Timestamp
    ts: Timestamp | None
    writes: tuple[Write, ...]
    read_ts: Timestamp | None = None
    reads: tuple[Span, ...] = ()
    has_other_reads: bool = False
    deadline: Timestamp | None = None
    start_ts: Timestamp | None = None
    holds_locks: bool = False


class CommitReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Committed, applied on the leaseholder, durable on a quorum."""

    ts: Timestamp


class BumpReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Not committed: the timestamp must be above `bound`.  Take a fresh one, refresh the other ranges, send again (rule 6)."""

    bound: Timestamp


class RefreshRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Check that nothing in the spans changed in (low, high], and record them as read at high (rule 7)."""

    range_id: RangeId
    attempt: AttemptId
    spans: tuple[Span, ...]
    low: Timestamp
    high: Timestamp


class RefreshReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The spans are unchanged."""


class RefuseRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Give an attempt up for good: record its refusal unless an outcome is there already (rule 10)."""

    range_id: RangeId
    attempt: AttemptId
    first_ts: Timestamp


class OutcomeReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What became of an attempt: committed at ts, or refused (ts None)."""

    ts: Timestamp | None


class RaiseMarkRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Raise the oracle's high-water mark; for the system range, by its own leaseholder only."""

    range_id: RangeId
    mark: Timestamp


class RaiseMarkReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The mark that is now committed."""

    mark: Timestamp


class SplitRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Cut a range in two at a key; the right side gets `right_range_id`, new replica ids equal to the left side's, and the same stores."""

    range_id: RangeId
    key: bytes
    right_range_id: RangeId


class SplitReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The two ranges after the split."""

    left: RangeDescriptor
    right: RangeDescriptor


class ChangeReplicasRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Change the replicas of a range from exactly `expected_generation`.

    add: stores that get a replica (learner, Raft snapshot, then voter); remove: stores that lose theirs.  Answered when the final
    configuration is applied on the leaseholder.
    """

    range_id: RangeId
    expected_generation: int
    add: tuple[ReplicaDescriptor, ...] = ()
    remove: tuple[StoreId, ...] = ()


class ChangeReplicasReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The descriptor with the change applied."""

    descriptor: RangeDescriptor


class TransferLeaseRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Hand leadership, and with it the lease, to the replica on another store."""

    range_id: RangeId
    to: StoreId


class TransferLeaseReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The transfer was started; the new leaseholder is found by asking."""


class DescribeRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Ask a replica (any, not only the leaseholder) for its descriptor."""

    range_id: RangeId


class DescribeReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The applied descriptor and, if known, the store whose replica leads; and how large and busy the range is."""

    descriptor: RangeDescriptor
    leaseholder: StoreId | None
    size_bytes: int = 0
    """Of all versions, keys and values."""
    requests_per_s: float | None = None
    """Over some seconds; None: another replica leads."""
    quarantined: tuple[StoreId, ...] = ()
    """Stores whose replicas are out of service, as far as the leaseholder has heard."""
    blocks: int = 0
    """Columnar blocks of the replica that answers: others may have folded their rows into more, or fewer."""


class ClearSpanRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Remove everything in a span that nothing reads any more (a dropped table's); whole span within the range."""

    range_id: RangeId
    span: Span


class ClearSpanReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Removed."""


class CollectGarbageRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Forget versions that no read at or above `threshold` can see; reads below it are refused from then on."""

    range_id: RangeId
    threshold: Timestamp


class CollectGarbageReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The threshold in force, and how many versions were removed."""

    threshold: Timestamp
    removed: int


class ChecksumReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The replicas sum up the range as of this index of its log.  Within a store only: nothing on the wire asks for it."""

    index: int


Request: TypeAlias = (
    ReadRequest
    | ScanRequest
    | CommitRequest
    | RefreshRequest
    | RefuseRequest
    | RaiseMarkRequest
    | SplitRequest
    | ChangeReplicasRequest
    | TransferLeaseRequest
    | DescribeRequest
    | ClearSpanRequest
    | CollectGarbageRequest
    | IntentRequest
    | LockRequest
)
Reply: TypeAlias = (
    ReadReply
    | ScanReply
    | CommitReply
    | BumpReply
    | RefreshReply
    | OutcomeReply
    | RaiseMarkReply
    | SplitReply
    | ChangeReplicasReply
    | TransferLeaseReply
    | DescribeReply
    | ClearSpanReply
    | CollectGarbageReply
    | IntentReply
    | LockReply
    | ChecksumReply
)
