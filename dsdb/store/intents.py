"""What a leaseholder checks of intents and txn records; the rules of docs/transactions.md by number.

    prewrite, query, resolve    intents, under the latches of their keys
    stage, push, end, remove    the record of one attempt, under a latch of its own (`record_latch`)

What is only asked of transactions that flush intents before their commit is in `flushes`.

Each function is a plain call without a wait, under the latches it needs: it answers, gives a command to be proposed, or says what to
wait for.

Invariants:
- Whatever decides over a record is seen at one moment, with every command about it applied: they all hold its latch until then.
- Nothing is said of an attempt without a record before the low water of the lease is known.
"""

import enum
from collections.abc import Sequence
from itertools import pairwise

import msgspec

from dsdb.kv.errors import Conflict, InvalidRequest, KeyExists, KvError
from dsdb.kv.ids import AttemptId
from dsdb.kv.intents import (
    RECORD_SPANS_MAX,
    STAGED_KEYS_MAX,
    STAGED_VALUES_MAX,
    EndTxnRequest,
    PrewriteReply,
    PrewriteRequest,
    PushRequest,
    QueryIntentsReply,
    QueryIntentsRequest,
    RecordReply,
    ResolveItem,
    ResolveReply,
    StageRequest,
    TxnMeta,
    TxnStatus,
)
from dsdb.kv.requests import BumpReply
from dsdb.storage.keys import Span
from dsdb.storage.mvcc import Intent, get_intent
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp, after
from dsdb.storage.versions import Standing
from dsdb.store.block_intents import refuse_own, rows_of_own
from dsdb.store.command import (
    EndTxnCommand,
    IntentCommand,
    LayBlockCommand,
    PrewriteCommand,
    RemoveRecordsCommand,
    ResolveCommand,
    StageCommand,
)
from dsdb.store.evaluate import IntentsMet
from dsdb.store.replica import Replica

SLICE_KEYS = 512
"""Keys of one command that lays or resolves intents: a millisecond or two to look up, and as long to apply."""

_NONE: frozenset[bytes] = frozenset()
_RECORD_LATCH = b"\xff\xff\xff"
"""Above every key."""
RECORD_LATCHES = Span(_RECORD_LATCH, b"\xff" * 32)
"""Where the latches of all records are: a split takes them all (rule 24)."""


def record_latch(attempt: AttemptId) -> bytes:
    """Give the key under which an attempt's record is latched: it is in no range."""
    return _RECORD_LATCH + attempt


# ---- Intents ----


def check_prewrite(request: PrewriteRequest) -> None:
    """Raise InvalidRequest if a prewrite makes no sense."""
    if not request.keys or not _are_writes(request.keys, request.values) or len(request.absent) not in (0, len(request.keys)):
        raise KvError(InvalidRequest("a prewrite needs keys, ascending, and a value for each"))


def _are_writes(keys: Sequence[bytes], values: Sequence[bytes | None]) -> bool:
    return len(keys) == len(values) and all(key < later for key, later in pairwise(keys))


class Writes(msgspec.Struct, frozen=True, gc=False):
    """Some writes of one request, keys ascending; the rest as in `PrewriteRequest`."""

    keys: Sequence[bytes]
    values: Sequence[bytes | None]
    sequence: int = 0
    marks: tuple[int, ...] = ()
    absent: bytes = b""
    read_ts: Timestamp | None = None


def prewrite(replica: Replica, meta: TxnMeta, ts: Timestamp, writes: Writes) -> PrewriteCommand | PrewriteReply:
    """Lay the intents of some keys (rule 13): where an own one stands, it stays, unless this write is a later one (rule 27).

    Raises IntentsMet, KvError.
    """
    replica.require_writable()
    keys, sequence = writes.keys, writes.sequence
    replica.require_keys(keys[0], keys[-1])
    cache = replica.cache
    # Versions that were collected cannot bump any more, so the threshold does (rule 31).
    threshold = replica.machine.state.threshold
    bound, standing = threshold if ts <= threshold else MIN_TIMESTAMP, MIN_TIMESTAMP
    missing: list[bytes] = []
    missing_values: list[bytes | None] = []
    older: list[tuple[int, tuple[tuple[int, bytes | None], ...]]] = []
    there: tuple[bytes, Timestamp] | None = None
    blocks = replica.machine.provisional
    met = blocks.foreign_at(keys, meta.attempt)
    in_blocks = rows_of_own(replica, meta.attempt, keys) if blocks else _NONE
    for at, (key, value, there_is) in enumerate(zip(keys, writes.values, replica.rows.standing_of(keys))):
        intent = there_is.intent
        if intent is not None:
            if intent.attempt_id != meta.attempt:
                met.append((key, intent))
                continue
            standing = max(standing, intent.ts)
            if intent.sequence >= sequence:
                continue
            kept = kept_writes(intent, writes.marks)
            if kept:
                older.append((len(missing), kept))
        if key in in_blocks:
            if not (writes.absent and writes.absent[at]):
                raise refuse_own(key)
            there = there or (key, MIN_TIMESTAMP)
        if writes.absent and writes.absent[at] and there is None:
            there = _there(key, there_is)
        missing.append(key)
        missing_values.append(value)
        bound = max(bound, cache.bound(key, ts, meta.attempt))
        if there_is.ts >= ts:
            bound = max(bound, there_is.ts)
    if met:
        raise IntentsMet(met, ts, is_write=True)
    if there is not None:
        raise _exists(replica, meta, writes.read_ts, *there)
    if not missing:
        return PrewriteReply(standing)
    return PrewriteCommand(
        generation=replica.descriptor.generation,
        lease_term=replica.lease_term,
        meta=meta,
        # Where no timestamp was issued: the commit's will be, and lies above.
        ts=max(after(bound) if bound else ts, standing),
        keys=tuple(missing),
        values=tuple(missing_values),
        closed=replica.promise_in_log(),
        sequence=sequence,
        older=tuple(older),
    )


def kept_writes(intent: Intent, marks: Sequence[int]) -> tuple[tuple[int, bytes | None], ...]:
    """Give the writes that an intent must keep when another takes its place: for each mark the last one at or before it (rule 29)."""
    if not marks:
        return ()
    # An intent of nothing stands for what no earlier write does.
    writes = intent.older if intent.is_nothing else (*intent.older, (intent.sequence, intent.value))
    kept = {max((at for at, _ in writes if at <= mark), default=0) for mark in marks}
    return tuple([write for write in writes if write[0] in kept])


def _there(key: bytes, standing: Standing) -> tuple[bytes, Timestamp] | None:
    """Give a key and since when it is there, if it is; its intent is the writer's own."""
    own = standing.intent
    if own is not None and not own.is_nothing:
        return None if own.value is None else (key, MIN_TIMESTAMP)
    return (key, standing.ts) if standing.is_there else None


def _exists(replica: Replica, meta: TxnMeta, read_ts: Timestamp | None, key: bytes, since: Timestamp) -> KvError:
    """Say that a key is there that must be absent: told to the client only if it was there where the transaction reads."""
    if read_ts is None or since > read_ts:
        return KvError(Conflict(key, since))
    replica.cache.note_key(key, read_ts, meta.attempt)
    return KvError(KeyExists(key))


def query(replica: Replica, request: QueryIntentsRequest) -> QueryIntentsReply:
    """Look for promised writes, and prevent those that are not there (rule 19).  Raises KvError."""
    replica.require_writable()
    keys, ts = request.keys, request.ts
    replica.require_keys(min(keys), max(keys))
    is_found = True
    for key in keys:
        intent = get_intent(replica.context.engine, key)
        if intent is None or intent.attempt_id != request.attempt or intent.ts > ts:
            replica.cache.note_key(key, ts, None)
            is_found = False
    return QueryIntentsReply(is_found)


def resolve(replica: Replica, items: Sequence[ResolveItem], *, looks: bool) -> ResolveCommand | ResolveReply:
    """Settle intents whose outcome is known (rule 21).  looks: only those that still stand.  Raises KvError."""
    replica.require_lease()
    for item in items:
        replica.require_keys(min(item.keys), max(item.keys))
    if looks:
        items = [_standing(replica, item) for item in items]
        items = [item for item in items if item.keys]
        if not items:
            return ResolveReply()
    return ResolveCommand(replica.descriptor.generation, replica.lease_term, tuple(items))


def _standing(replica: Replica, item: ResolveItem) -> ResolveItem:
    found = [(key, get_intent(replica.context.engine, key)) for key in item.keys]
    named = replica.machine.provisional.named
    keys = tuple(
        [key for key, intent in found if (intent is not None and intent.attempt_id == item.attempt) or named(key, item.attempt) is not None]
    )
    return ResolveItem(item.attempt, keys, item.commit_ts)


# ---- Records ----


def check_stage(request: StageRequest) -> None:
    """Raise InvalidRequest if a stage makes no sense."""
    if len(request.keys) > STAGED_KEYS_MAX and not request.is_final:
        raise KvError(InvalidRequest(f"a record promises {STAGED_KEYS_MAX} keys at most, not {len(request.keys)}"))
    if len(request.spans) > RECORD_SPANS_MAX or (request.spans and not request.is_final):
        raise KvError(InvalidRequest(f"a record names {RECORD_SPANS_MAX} spans at most, and only of a transaction that is over"))
    if len(request.laid) > STAGED_VALUES_MAX or not _are_writes(request.laid, request.values):
        raise KvError(InvalidRequest(f"a stage may write {STAGED_VALUES_MAX} keys at most, ascending, with a value for each"))


def stage(replica: Replica, request: StageRequest) -> StageCommand | PrewriteCommand | RecordReply | BumpReply:
    """Create a record as STAGING, or raise it (rules 14 and 15), and lay some of its intents (rule 13).

    A PrewriteCommand lays these only, above `ts`: a BumpReply is to follow.  Raises IntentsMet, KvError.
    """
    replica.require_writable()
    meta, ts = request.meta, request.ts
    replica.require_keys(meta.anchor, meta.anchor)
    keys = request.keys if len(request.keys) <= STAGED_KEYS_MAX else ()
    verdicts = replica.verdicts
    record = replica.machine.records.get(meta.attempt)
    if record is None:
        outcome = _one_range_outcome(replica, meta.attempt) or verdicts.outcome(meta.attempt)
        if outcome is not None:
            return outcome
        if meta.first_ts <= verdicts.low:
            return RecordReply(TxnStatus.GONE)
        pushed = verdicts.pushed(meta.attempt)
        if pushed >= ts:
            return BumpReply(pushed)
    elif record.status is TxnStatus.PENDING:
        if not request.is_final:
            raise KvError(InvalidRequest("a transaction that flushed intents is committed in two rounds"))
        # The record is there already: what pushes were forgotten says its low water (rule 28).
        pushed = max(verdicts.pushed(meta.attempt), verdicts.push_low)
        if pushed >= ts:
            verdicts.note_commit(meta.attempt, replica.context.clock.now())
            return BumpReply(pushed)
    elif record.is_final or record.ts > ts or (record.ts == ts and not request.is_final):
        return record.reply(has_keys=False)
    laid: PrewriteCommand | None = None
    if request.laid:
        decided = prewrite(replica, meta, ts, Writes(request.laid, request.values))
        if decided.ts > ts:
            return decided if isinstance(decided, PrewriteCommand) else BumpReply(decided.ts)
        laid = decided if isinstance(decided, PrewriteCommand) else None
    return StageCommand(
        generation=replica.descriptor.generation,
        lease_term=replica.lease_term,
        meta=meta,
        ts=ts,
        keys=keys,
        is_final=request.is_final,
        laid=() if laid is None else laid.keys,
        values=() if laid is None else laid.values,
        closed=replica.promise_in_log() if laid is None else laid.closed,
        spans=request.spans,
    )


def _one_range_outcome(replica: Replica, attempt: AttemptId) -> RecordReply | None:
    """Give what became of a commit in one range that the attempt sent before a split parted its keys (rule 26); None: nothing did."""
    outcome = replica.machine.outcomes.get(attempt)
    if outcome is None:
        return None
    return RecordReply(TxnStatus.ABORTED) if outcome.ts is None else RecordReply(TxnStatus.COMMITTED, outcome.ts)


class Awaited(enum.Enum):
    """What a push may wait for before it is answered."""

    RECORD = enum.auto()
    """There is no record: its coordinator may be about to stage, or to give up."""
    OUTCOME = enum.auto()
    """It is STAGING: its coordinator is about to finish it, if it lives."""
    GATEWAY = enum.auto()
    """It is PENDING: its gateway lives, and may go on for long."""


def push(replica: Replica, request: PushRequest, patience: frozenset[Awaited]) -> EndTxnCommand | RecordReply | Awaited:
    """Find out, or decide, what an attempt cannot become any more (rules 16, 28).  patience: what is still waited for.  Raises KvError."""
    replica.require_writable()
    meta = request.meta
    replica.require_keys(meta.anchor, meta.anchor)
    verdicts = replica.verdicts
    record = replica.machine.records.get(meta.attempt)
    if record is not None:
        if record.is_final:
            return record.reply()
        if record.status is TxnStatus.PENDING:
            return _push_pending(replica, request, patience)
        if not request.abort and record.ts > request.ts:
            # It can only be staged higher from here.
            return RecordReply(TxnStatus.PUSHED)
        return Awaited.OUTCOME if Awaited.OUTCOME in patience else record.reply()
    outcome = verdicts.outcome(meta.attempt)
    if outcome is not None:
        return outcome
    if meta.first_ts <= verdicts.low:
        # If it committed, the intent is a late copy; if not, it never will.  But it may have: no tombstone.
        return RecordReply(TxnStatus.ABORTED)
    if Awaited.RECORD in patience:
        return Awaited.RECORD
    if not request.abort:
        verdicts.push(meta.attempt, meta.first_ts, request.ts)
        return RecordReply(TxnStatus.PUSHED)
    aborted = RecordReply(TxnStatus.ABORTED)
    verdicts.bury(meta.attempt, meta.first_ts, aborted)
    return aborted


def _push_pending(replica: Replica, request: PushRequest, patience: frozenset[Awaited]) -> EndTxnCommand | RecordReply | Awaited:
    """Push an attempt above a reader, or abort it: if its gateway is silent, or for an older transaction that others may wait for."""
    meta, context = request.meta, replica.context
    now, verdicts = context.clock.now(), replica.verdicts
    if not request.abort:
        is_committing = verdicts.is_committing(meta.attempt, now, context.config.commit_patience_s)
        if is_committing and Awaited.GATEWAY in patience:
            return Awaited.GATEWAY
        verdicts.push(meta.attempt, meta.first_ts, request.ts)
        return RecordReply(TxnStatus.PUSHED)
    is_silent = verdicts.is_silent(meta.attempt, now, context.config.lock_silence_s)
    if is_silent or (request.pusher.wounds and request.pusher.rank < meta.rank):
        return EndTxnCommand(replica.descriptor.generation, replica.lease_term, meta, None, None, ())
    return Awaited.GATEWAY if Awaited.GATEWAY in patience else RecordReply(TxnStatus.PENDING)


def end(replica: Replica, request: EndTxnRequest, resolved: tuple[bytes, ...]) -> EndTxnCommand | RecordReply:
    """Finish a record (rules 17 to 20), and resolve some keys with it.  Raises KvError."""
    replica.require_writable()
    meta, expected = request.meta, request.expected
    touched = (meta.anchor, *request.resolve)
    replica.require_keys(min(touched), max(touched))
    verdicts = replica.verdicts
    record = replica.machine.records.get(meta.attempt)
    if record is None:
        outcome = _one_range_outcome(replica, meta.attempt) or verdicts.outcome(meta.attempt)
        if outcome is not None:
            return outcome
        if expected is not None or meta.first_ts <= verdicts.low:
            return RecordReply(TxnStatus.GONE)
        aborted = RecordReply(TxnStatus.ABORTED)
        verdicts.bury(meta.attempt, meta.first_ts, aborted)
        return aborted
    if record.is_final or expected not in (None, record.ts):
        return record.reply()
    return EndTxnCommand(replica.descriptor.generation, replica.lease_term, meta, request.commit_ts, expected, resolved)


def ended_as_asked(request: EndTxnRequest, reply: RecordReply) -> bool:
    """Say whether a record ended as was asked, so that the intents may be resolved."""
    if request.commit_ts is None:
        return reply.status is TxnStatus.ABORTED
    return reply.status is TxnStatus.COMMITTED and reply.ts == request.commit_ts


def remove(replica: Replica, attempts: Sequence[AttemptId]) -> RemoveRecordsCommand | None:
    """Remove the records that are finished, and leave tombstones with the outcomes (rule 22).  Raises KvError."""
    replica.require_writable()
    finished: list[AttemptId] = []
    for attempt in attempts:
        record = replica.machine.records.get(attempt)
        if record is not None and record.is_final:
            # Before the command: as long as the record is there it says the same.
            replica.verdicts.bury(attempt, record.first_ts, record.reply())
            replica.verdicts.forget_gateway(attempt)
            finished.append(attempt)
    return RemoveRecordsCommand(replica.lease_term, tuple(finished)) if finished else None


# ---- Latches ----


def evaluated_ts(command: IntentCommand) -> Timestamp | None:
    """Give the timestamp at and above which reads wait until a command is applied; None: they need not."""
    match command:
        case PrewriteCommand() | LayBlockCommand():
            return command.ts
        case StageCommand() if command.laid:
            return command.ts
        case EndTxnCommand():
            return command.commit_ts
        case ResolveCommand():
            return min([item.commit_ts for item in command.items if item.commit_ts is not None], default=None)
        case _:
            return None
