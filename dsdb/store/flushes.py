"""What a leaseholder checks for transactions that flush intents before their commit (rules 27 to 29 of docs/transactions.md).

    begin       the PENDING record, under its latch; `intents.stage` commits it, `intents.push` and `intents.end` abort it
    roll_back   intents whose writes were rolled back to a savepoint, under the latches of their keys

Each function is a plain call without a wait, as in `intents`.

Invariants:
- An intent is never just taken away before the outcome: a late copy of its prewrite would be laid again.
- A PENDING record is not made for an attempt that somebody may have aborted.
"""

from collections.abc import Sequence

from dsdb.kv.errors import InvalidRequest, KvError
from dsdb.kv.intents import RECORD_SPANS_MAX, BeginTxnRequest, PrewriteReply, RecordReply, RollBackRequest, TxnStatus
from dsdb.storage import mvcc
from dsdb.storage.timestamp import MIN_TIMESTAMP
from dsdb.store.command import BeginTxnCommand, PrewriteCommand
from dsdb.store.replica import Replica


def begin(replica: Replica, request: BeginTxnRequest) -> BeginTxnCommand | RecordReply:
    """Create a record as PENDING, or have it name more spans (rule 28).  Raises KvError."""
    replica.require_writable()
    meta = request.meta
    replica.require_keys(meta.anchor, meta.anchor)
    if len(request.spans) > RECORD_SPANS_MAX:
        raise KvError(InvalidRequest(f"a record names {RECORD_SPANS_MAX} spans at most, not {len(request.spans)}"))
    verdicts = replica.verdicts
    record = replica.machine.records.get(meta.attempt)
    if record is not None:
        if record.status is not TxnStatus.PENDING or record.spans == request.spans:
            return record.reply()
    else:
        outcome = verdicts.outcome(meta.attempt)
        if outcome is not None:
            return outcome
        if meta.first_ts <= verdicts.low:
            return RecordReply(TxnStatus.GONE)
    verdicts.hear(meta.attempt, replica.context.clock.now())
    return BeginTxnCommand(replica.descriptor.generation, replica.lease_term, meta, request.spans)


def roll_back(replica: Replica, request: RollBackRequest, keys: Sequence[bytes]) -> PrewriteCommand | PrewriteReply:
    """Overwrite some intents of rolled back writes (rule 29): with the write that stands again, or with nothing.  Raises KvError.

    They stay where they stand, or go higher: all that could bump them stands below, or was pushed above.
    """
    replica.require_writable()
    replica.require_keys(keys[0], keys[-1])
    attempt, to = request.meta.attempt, request.to_sequence
    ts = MIN_TIMESTAMP
    found: list[bytes] = []
    values: list[bytes | None] = []
    older: list[tuple[int, tuple[tuple[int, bytes | None], ...]]] = []
    nothing: list[int] = []
    for key in keys:
        intent = mvcc.get_intent(replica.context.engine, key)
        if intent is None or intent.attempt_id != attempt or not to < intent.sequence < request.sequence:
            continue
        kept = tuple([write for write in intent.older if write[0] <= to])
        if kept:
            older.append((len(found), kept))
        else:
            nothing.append(len(found))
        found.append(key)
        values.append(kept[-1][1] if kept else None)
        ts = max(ts, intent.ts)
    if not found:
        return PrewriteReply(MIN_TIMESTAMP)
    return PrewriteCommand(
        generation=replica.descriptor.generation,
        lease_term=replica.lease_term,
        meta=request.meta,
        ts=ts,
        keys=tuple(found),
        values=tuple(values),
        sequence=request.sequence,
        older=tuple(older),
        nothing=tuple(nothing),
    )
