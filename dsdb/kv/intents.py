"""Requests about intents and txn records: the commit of a transaction over many ranges, and what anyone asks who meets an intent.

    gateway     prewrite (each range) ─┐
                stage (the anchor's)  ─┴▶ all intents at or below the staged timestamp: committed ─▶ end ▸ resolve ▸ remove
    passer-by   push (the anchor's) ─ staging? ─▶ query (each key) ▸ end ─▶ resolve

The *anchor* is the first key that the transaction writes; its range keeps the txn record.  Rules by number are those of
docs/transactions.md.

Invariants:
- All of them may come twice, late, and in any order: the attempt's record and its intents decide, not the order of requests.
- A record is never created for an attempt whose first_ts is not above the low water of the record's range (rule 15).
"""

from enum import StrEnum
from typing import TypeAlias

import msgspec

from dsdb.kv.ids import AttemptId, RangeId
from dsdb.storage.timestamp import Timestamp

STAGED_KEYS_MAX = 1024
"""Keys that a STAGING record may promise; a larger transaction commits in two rounds (`StageRequest.is_final`)."""


STAGED_VALUES_MAX = 512
"""Writes that a StageRequest may lay itself: a millisecond or two of its leaseholder's."""


class TxnMeta(msgspec.Struct, frozen=True, array_like=True):
    """What every message of an attempt's commit carries, and every intent of it."""

    attempt: AttemptId
    anchor: bytes
    first_ts: Timestamp
    """Issued before anything of the commit was sent; never changes."""


class TxnStatus(StrEnum):
    """What is known of an attempt where its record is, or would be."""

    STAGING = "staging"
    """Committed if every promised write is there at or below `ts`."""
    COMMITTED = "committed"
    ABORTED = "aborted"
    PUSHED = "pushed"
    """No outcome yet, and it will not commit at or below the timestamp of the push."""
    GONE = "gone"
    """No record, and it may have had one here: nothing may be concluded but to look again."""


class RecordReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The state of an attempt: of STAGING and COMMITTED the timestamp, of STAGING the promised keys too."""

    status: TxnStatus
    ts: Timestamp | None = None
    keys: tuple[bytes, ...] = ()


class PrewriteRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Lay intents at `ts`, or above it where something stands in the way (rule 13).  keys: ascending; values: None removes.

    The leaseholder gets foreign intents out of the way first, as a writer (`PushRequest.abort`).
    """

    range_id: RangeId
    meta: TxnMeta
    ts: Timestamp
    keys: tuple[bytes, ...]
    values: tuple[bytes | None, ...]


class PrewriteReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """All are there, applied on the leaseholder and durable on a quorum; ts: the highest at which one stands."""

    ts: Timestamp


class StageRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Create the txn record as STAGING at `ts`, or raise it there (rules 12 and 15); for the anchor's range.

    keys: all keys that the transaction writes, the anchor first.  is_final: they are all known to be laid at or below `ts`, so the
    record is COMMITTED at once, and `keys` may be empty.
    was_one_range: a commit of the attempt in one range was sent before, and may have an outcome (rule 26).
    laid, values: writes in the anchor's range, ascending, whose intents are laid at `ts` by the same command, as by a PrewriteRequest.
    Answered by a RecordReply (STAGING at `ts` or above, without the keys; COMMITTED; ABORTED; GONE) or a BumpReply (it must be staged
    above `bound`).
    """

    range_id: RangeId
    meta: TxnMeta
    ts: Timestamp
    keys: tuple[bytes, ...]
    is_final: bool = False
    was_one_range: bool = False
    laid: tuple[bytes, ...] = ()
    values: tuple[bytes | None, ...] = ()


class PushRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Ask for the outcome of an attempt whose intent stands in the way of somebody at `ts` (rule 16); for its anchor's range.

    abort False: a reader, who only needs it to commit above `ts`.  abort True: a writer; an attempt without a record is aborted, after
    a wait that is short if `pusher_ts`, the pusher's own first_ts, is below the attempt's.  STAGING is waited for a moment, too.
    Answered by a RecordReply.
    """

    range_id: RangeId
    meta: TxnMeta
    ts: Timestamp
    abort: bool
    pusher_ts: Timestamp


class QueryIntentsRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Look for promised writes at or below `ts`, and prevent those that are not there from ever being (rule 19)."""

    range_id: RangeId
    attempt: AttemptId
    keys: tuple[bytes, ...]
    ts: Timestamp


class QueryIntentsReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Whether all were found."""

    found: bool


class EndTxnRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Finish a record (rules 17 to 20); for the anchor's range.

    commit_ts: COMMITTED at it, or None: ABORTED.  expected: the staged timestamp that recovery examined; None: from the coordinator
    itself.  resolve: keys of the anchor's range whose intents are resolved in the same command, if the record ends as asked.
    was_one_range: as of `StageRequest`.
    Answered by a RecordReply.
    """

    range_id: RangeId
    meta: TxnMeta
    commit_ts: Timestamp | None
    expected: Timestamp | None = None
    resolve: tuple[bytes, ...] = ()
    was_one_range: bool = False


class ResolveItem(msgspec.Struct, frozen=True, array_like=True):
    """Intents of one attempt in one range, and its outcome: committed at `commit_ts`, or None: aborted."""

    attempt: AttemptId
    keys: tuple[bytes, ...]
    commit_ts: Timestamp | None


class ResolveRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Turn intents into versions, or remove them (rule 21); only after the outcome is in the record, applied."""

    range_id: RangeId
    items: tuple[ResolveItem, ...]


class ResolveReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Done, applied on the leaseholder."""


class RemoveRecordsRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Remove finished records all of whose intents are resolved (rule 22); tombstones with the outcomes stay."""

    range_id: RangeId
    attempts: tuple[AttemptId, ...]


class RemoveRecordsReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """They are gone, or were not finished."""


IntentRequest: TypeAlias = (
    PrewriteRequest | StageRequest | PushRequest | QueryIntentsRequest | EndTxnRequest | ResolveRequest | RemoveRecordsRequest
)
IntentReply: TypeAlias = PrewriteReply | RecordReply | QueryIntentsReply | ResolveReply | RemoveRecordsReply
