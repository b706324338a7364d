"""Requests about intents and txn records: the commit of a transaction over many ranges, and what anyone asks who meets an intent.

    gateway     prewrite (each range) ─┐
                stage (the anchor's)  ─┴▶ all intents at or below the staged timestamp: committed ─▶ end ▸ resolve ▸ remove
    passer-by   push (the anchor's) ─ staging? ─▶ query (each key) ▸ end ─▶ resolve
    large       begin (the anchor's: PENDING) ▸ prewrite, roll back, … ─▶ stage, final: committed ─▶ resolve, by spans ▸ remove
    ingest      the same, with lay block in the place of very many prewrites

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
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp

STAGED_KEYS_MAX = 1024
"""Keys that a STAGING record may promise; a larger transaction commits in two rounds (`StageRequest.is_final`)."""


STAGED_VALUES_MAX = 512
"""Writes that a StageRequest may lay itself: a millisecond or two of its leaseholder's."""
RECORD_SPANS_MAX = 1_024
"""Spans that a record names: some 60 KB of one command."""
Rank: TypeAlias = tuple[Timestamp, AttemptId]
"""Of a transaction: the lower is the older, and goes first (rule 30)."""


class TxnMeta(msgspec.Struct, frozen=True, array_like=True):
    """What every message of an attempt's commit carries, and every intent of it."""

    attempt: AttemptId
    anchor: bytes
    first_ts: Timestamp
    """Issued before anything of the commit was sent; never changes."""
    start_ts: Timestamp = MIN_TIMESTAMP
    """The first timestamp of the transaction's first attempt; 0: first_ts."""

    @property
    def rank(self) -> Rank:
        """Give the transaction's place among all, for locks and intents alike."""
        return (self.start_ts or self.first_ts, self.attempt)


class Pusher(msgspec.Struct, frozen=True, array_like=True):
    """Who pushes: the rank of its transaction, and whether it may wound a younger one, as it holds locks or lays intents itself."""

    start_ts: Timestamp
    attempt: AttemptId = AttemptId(b"")
    wounds: bool = False

    @property
    def rank(self) -> Rank:
        """Give its place among all transactions."""
        return (self.start_ts, self.attempt)


class TxnStatus(StrEnum):
    """What is known of an attempt where its record is, or would be."""

    PENDING = "pending"
    """It flushes intents before its commit, and only its gateway can commit it (rule 28)."""
    STAGING = "staging"
    """Committed if every promised write is there at or below `ts`."""
    COMMITTED = "committed"
    ABORTED = "aborted"
    PUSHED = "pushed"
    """No outcome yet, and it will not commit at or below the timestamp of the push."""
    GONE = "gone"
    """No record, and it may have had one here: nothing may be concluded but to look again."""


class RecordReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The state of an attempt: of STAGING and COMMITTED the timestamp, of STAGING the promised keys too.

    spans: for whoever cleans up, where a large transaction has laid its intents.
    """

    status: TxnStatus
    ts: Timestamp | None = None
    keys: tuple[bytes, ...] = ()
    spans: tuple[Span, ...] = ()


class PrewriteRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Lay intents at `ts`, or above it where something stands in the way (rule 13).  keys: ascending; values: None removes.

    The leaseholder gets foreign intents out of the way first, as a writer (`PushRequest.abort`).
    sequence: of these writes within the attempt: one that stands there with the same or a higher one stays.  marks: sequences, ascending,
    to which the attempt may be rolled back: an intent that is replaced keeps what they need.
    absent: a byte for each key, 1 if it must be absent, or nothing; then KeyExists if it was there at `read_ts`, Conflict if it came later.
    """

    range_id: RangeId
    meta: TxnMeta
    ts: Timestamp
    keys: tuple[bytes, ...]
    values: tuple[bytes | None, ...]
    sequence: int = 0
    marks: tuple[int, ...] = ()
    absent: bytes = b""
    read_ts: Timestamp | None = None


class PrewriteReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """All are there, applied on the leaseholder and durable on a quorum; ts: the highest at which one stands."""

    ts: Timestamp


class BeginTxnRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Create the txn record as PENDING, or have it name more spans (rule 28); for the anchor's range.

    Answered by a RecordReply: PENDING, and whatever else became of the attempt.
    """

    range_id: RangeId
    meta: TxnMeta
    spans: tuple[Span, ...]


class RollBackRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Overwrite the attempt's intents above `to_sequence` with what stood there before, or with nothing, under a new sequence (rule 29).

    spans: disjoint, ascending.  Answered by a SpansReply.
    """

    range_id: RangeId
    meta: TxnMeta
    spans: tuple[Span, ...]
    to_sequence: int
    sequence: int


class LayBlockRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Lay the rows of a columnar block as one block intent at `ts`, or above it, if nothing is in its span (rule 33).

    entry, chunks: as `storage.columnar.provisional` encodes them.  Answered by a LayBlockReply.
    """

    range_id: RangeId
    meta: TxnMeta
    ts: Timestamp
    sequence: int
    first_key: bytes
    last_key: bytes
    entry: bytes
    chunks: tuple[bytes, ...]


class LayBlockReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Where it stands; None: something is in its span, and nothing was laid."""

    ts: Timestamp | None = None


class UnpackBlocksRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Lay an intent for each row of the attempt's block intents that overlap spans, in their place.  Answered by a SpansReply."""

    range_id: RangeId
    meta: TxnMeta
    spans: tuple[Span, ...]


class SpansReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Done, but for `rest`, which is to be asked for again; ts: the highest at which an intent stands that was laid."""

    rest: tuple[Span, ...] = ()
    ts: Timestamp = MIN_TIMESTAMP


class StageRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Create the txn record as STAGING at `ts`, or raise it there (rules 12 and 15); for the anchor's range.

    keys: all keys that the transaction writes, the anchor first.  is_final: they are all known to be laid at or below `ts`, so the
    record is COMMITTED at once, a PENDING one too, and names `spans` in place of keys.
    laid, values: writes in the anchor's range, ascending, whose intents are laid at `ts` by the same command, as by a PrewriteRequest.
    Answered by a RecordReply (STAGING at `ts` or above, without the keys; COMMITTED; ABORTED; GONE) or a BumpReply (it must be staged
    above `bound`).
    """

    range_id: RangeId
    meta: TxnMeta
    ts: Timestamp
    keys: tuple[bytes, ...]
    is_final: bool = False
    laid: tuple[bytes, ...] = ()
    values: tuple[bytes | None, ...] = ()
    spans: tuple[Span, ...] = ()


class PushRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Ask for the outcome of an attempt whose intent stands in the way of somebody at `ts` (rule 16); for its anchor's range.

    abort False: a reader, who only needs it to commit above `ts`.  abort True: a writer; an attempt without a record is aborted, after
    a wait that is short if the pusher is older.  STAGING is waited for a moment, too.  PENDING is aborted if its gateway is silent, or by
    an older pusher that wounds; else it is waited for.
    Answered by a RecordReply.
    """

    range_id: RangeId
    meta: TxnMeta
    ts: Timestamp
    abort: bool
    pusher: Pusher


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
    Answered by a RecordReply.
    """

    range_id: RangeId
    meta: TxnMeta
    commit_ts: Timestamp | None
    expected: Timestamp | None = None
    resolve: tuple[bytes, ...] = ()


class ResolveItem(msgspec.Struct, frozen=True, array_like=True):
    """Intents of one attempt in one range, and its outcome: committed at `commit_ts`, or None: aborted."""

    attempt: AttemptId
    keys: tuple[bytes, ...]
    commit_ts: Timestamp | None


class ResolveRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Turn intents into versions, or remove them (rule 21); only after the outcome is in the record, applied."""

    range_id: RangeId
    items: tuple[ResolveItem, ...]


class ResolveSpansRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Resolve all intents of an attempt in spans (disjoint, ascending), as a ResolveRequest does.  Answered by a SpansReply."""

    range_id: RangeId
    attempt: AttemptId
    spans: tuple[Span, ...]
    commit_ts: Timestamp | None


class ResolveReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Done, applied on the leaseholder."""


class RemoveRecordsRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Remove finished records all of whose intents are resolved (rule 22); tombstones with the outcomes stay."""

    range_id: RangeId
    attempts: tuple[AttemptId, ...]


class RemoveRecordsReply(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """They are gone, or were not finished."""


IntentRequest: TypeAlias = (
    PrewriteRequest
    | StageRequest
    | PushRequest
    | QueryIntentsRequest
    | EndTxnRequest
    | ResolveRequest
    | RemoveRecordsRequest
    | BeginTxnRequest
    | RollBackRequest
    | ResolveSpansRequest
    | LayBlockRequest
    | UnpackBlocksRequest
)
IntentReply: TypeAlias = PrewriteReply | RecordReply | QueryIntentsReply | ResolveReply | RemoveRecordsReply | SpansReply | LayBlockReply
