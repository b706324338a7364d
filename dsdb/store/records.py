"""Txn records: the replicated state of transactions over many ranges, at the range of their anchors.

    (no record) ─▶ STAGING at ts ─▶ STAGING above ─▶ COMMITTED │ ABORTED ─▶ (removed)
          ├──────────────────────────────────────────▶ COMMITTED
          └─▶ PENDING ───────────────────────────────▶ COMMITTED │ ABORTED

Kept in META beside the outcomes, and in memory whole.  What a leaseholder says of attempts *without* a record is in `verdicts`.

Invariants:
- A record that is COMMITTED or ABORTED never changes, until it is removed.
- A STAGING record is never staged again lower (rule 14).
- A PENDING record is committed by its own gateway only, and aborted in the log (rule 28).
"""

import msgspec

from dsdb.kv.ids import AttemptId
from dsdb.kv.intents import RecordReply, TxnStatus
from dsdb.storage.engine.port import Family, Reader, WriteBatch
from dsdb.storage.errors import CorruptionError
from dsdb.storage.keys import Span, prefix_end
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp

META = Family.META


class TxnRecord(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The state of one attempt."""

    status: TxnStatus
    """PENDING, STAGING, COMMITTED or ABORTED."""
    ts: Timestamp
    """Where it is staged, or committed; 0 of a PENDING one."""
    first_ts: Timestamp
    anchor: bytes
    """Its range keeps the record."""
    keys: tuple[bytes, ...]
    """What STAGING promises, the anchor first."""
    spans: tuple[Span, ...] = ()
    """Where a large transaction has laid, or is about to lay, its intents."""
    start_ts: Timestamp = MIN_TIMESTAMP
    """The transaction's rank; 0: first_ts."""

    @property
    def is_final(self) -> bool:
        """Say whether it has an outcome."""
        return self.status is TxnStatus.COMMITTED or self.status is TxnStatus.ABORTED

    def reply(self, *, has_keys: bool = True) -> RecordReply:
        """Give it as an answer."""
        match self.status:
            case TxnStatus.STAGING:
                return RecordReply(TxnStatus.STAGING, self.ts, self.keys if has_keys else ())
            case TxnStatus.COMMITTED:
                return RecordReply(TxnStatus.COMMITTED, self.ts)
            case TxnStatus.PENDING:
                return RecordReply(TxnStatus.PENDING)
            case _:
                return RecordReply(TxnStatus.ABORTED)


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(TxnRecord)


def put_record(batch: WriteBatch, prefix: bytes, attempt: AttemptId, record: TxnRecord) -> None:
    """Write a record.  prefix: of the replica's records (`ReplicaKeys.records`)."""
    batch.put(META, prefix + attempt, _encode(record))


def remove_record(batch: WriteBatch, prefix: bytes, attempt: AttemptId) -> None:
    """Remove a record."""
    batch.delete(META, prefix + attempt)


def read_records(reader: Reader, prefix: bytes) -> dict[AttemptId, TxnRecord]:
    """Read all records of a replica.  Raises CorruptionError."""
    records: dict[AttemptId, TxnRecord] = {}
    for keys, values in reader.scan(META, prefix, prefix_end(prefix)):
        for key, value in zip(keys, values):
            try:
                records[AttemptId(key[len(prefix) :])] = _decoder.decode(value)
            except msgspec.DecodeError as error:
                raise CorruptionError(f"a stored txn record cannot be read: {error}") from None
    return records
