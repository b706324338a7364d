"""What a store keeps of a replica in META and RAFT, key by key.

    META  02 range id │ 01          hard state: term, vote
                      │ 02          applied: index, term, size estimate, closed timestamp, intents; written with every apply
                      │ 03          replicated state: descriptor, membership, floor, threshold, mark
                      │ 04          start of the log: index and term of the last truncated entry
                      │ 05          installing: a Raft snapshot was switched to and its data is still being copied
                      │ 06          quarantined: why the replica is out of service, text
                      │ 07          departing: the id of a voter that was removed, and is needed still
                      │ 10 first_ts │ attempt → commit timestamp, or empty for a refusal
                      │ 11 attempt    → txn record (`records`)
                      │ 12 last key   → block intent (`provisional`)
          03 range id               tombstone: the least replica id that may come to this store
          04 range id │ number      chunks of a Raft snapshot that is being received
    RAFT  range id │ index          log entry

Invariants:
- All keys of a replica start with `replica_prefix`, so that one range deletion removes it.
- Whatever an entry changes is written in one batch with the applied index.
"""

from typing import TypeVar

import msgspec

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.ids import AttemptId, RangeId, StoreId
from dsdb.raft.messages import HardState, Membership, ReplicaId
from dsdb.storage.engine.port import Family, Reader, WriteBatch
from dsdb.storage.errors import CorruptionError
from dsdb.storage.keys import prefix_end
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp
from dsdb.store.open_intents import UNKNOWN

INITIAL_INDEX = 10
INITIAL_TERM = 5
"""Where the log of a new range starts.  Not at 0: a replica with nothing cannot be caught up by the log, it takes a Raft snapshot."""

T = TypeVar("T")

_REPLICA = b"\x02"
_TOMBSTONE = b"\x03"
_STAGING = b"\x04"

META = Family.META
RAFT = Family.RAFT


class Applied(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far the log was applied."""

    index: int
    term: int
    size_bytes: int = 0
    """An estimate of the keys and values in the range, and of its blocks, as this replica stores them."""
    closed: Timestamp = MIN_TIMESTAMP
    """The highest promise that came with a command (rule 23)."""
    intents: int = UNKNOWN
    """How many stand in the range, as far as this replica knows."""


class ReplicatedState(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What commands change beside versions and outcomes."""

    descriptor: RangeDescriptor
    membership: Membership
    floor: Timestamp = MIN_TIMESTAMP
    """Outcomes of attempts with first_ts at or below it are forgotten, and none is accepted any more."""
    threshold: Timestamp = MIN_TIMESTAMP
    """Reads below it are refused."""
    mark: Timestamp = MIN_TIMESTAMP
    """The oracle's high-water mark; of the system range."""


class LogStart(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The last entry that is not in the log any more."""

    index: int = 0
    term: int = 0


class Installing(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A Raft snapshot whose chunks are complete and durable, and are being copied."""

    chunks: int


class Outcome(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What became of an attempt: committed at `ts`, or refused (None)."""

    first_ts: Timestamp
    ts: Timestamp | None


encode = msgspec.msgpack.Encoder().encode
_hard_state_decoder = msgspec.msgpack.Decoder(HardState)
_applied_decoder = msgspec.msgpack.Decoder(Applied)
_replicated_decoder = msgspec.msgpack.Decoder(ReplicatedState)
_log_start_decoder = msgspec.msgpack.Decoder(LogStart)
_installing_decoder = msgspec.msgpack.Decoder(Installing)
_descriptor_decoder = msgspec.msgpack.Decoder(RangeDescriptor)


def encode_descriptor(descriptor: RangeDescriptor) -> bytes:
    """Encode a descriptor as the value of its meta key."""
    return encode(descriptor)


def decode_descriptor(stored: bytes) -> RangeDescriptor:
    """Decode the value of a meta key.  Raises CorruptionError."""
    return _decode(_descriptor_decoder, stored, "descriptor")


def _decode(decoder: "msgspec.msgpack.Decoder[T]", stored: bytes, what: str) -> T:
    try:
        return decoder.decode(stored)
    except msgspec.DecodeError as error:
        raise CorruptionError(f"a stored {what} cannot be read: {error}") from None


# ---- Keys ----


def replica_prefix(range_id: RangeId) -> bytes:
    """Give what all META keys of a replica start with."""
    return _REPLICA + range_id.to_bytes(8, "big")


class ReplicaKeys:
    """The META keys of one replica, made once."""

    __slots__ = (
        *("applied", "departing", "hard_state", "installing", "log_start"),
        *("outcomes", "prefix", "provisional", "quarantined", "records", "replicated"),
    )

    def __init__(self, range_id: RangeId) -> None:
        self.prefix = replica_prefix(range_id)
        self.hard_state = self.prefix + b"\x01"
        self.applied = self.prefix + b"\x02"
        self.replicated = self.prefix + b"\x03"
        self.log_start = self.prefix + b"\x04"
        self.installing = self.prefix + b"\x05"
        self.quarantined = self.prefix + b"\x06"
        self.departing = self.prefix + b"\x07"
        self.outcomes = self.prefix + b"\x10"
        self.records = self.prefix + b"\x11"
        self.provisional = self.prefix + b"\x12"

    def outcome(self, attempt: AttemptId, first_ts: Timestamp) -> bytes:
        """Give the key of an attempt's outcome."""
        return self.outcomes + first_ts.to_bytes(8, "big") + attempt


def log_prefix(range_id: RangeId) -> bytes:
    """Give what the RAFT keys of a range start with."""
    return range_id.to_bytes(8, "big")


def staging_prefix(range_id: RangeId) -> bytes:
    """Give what the keys of a Raft snapshot's received chunks start with."""
    return _STAGING + range_id.to_bytes(8, "big")


def staging_key(range_id: RangeId, number: int) -> bytes:
    """Give the key of a received chunk."""
    return staging_prefix(range_id) + number.to_bytes(8, "big")


# ---- Reading and writing ----


def read_hard_state(reader: Reader, keys: ReplicaKeys) -> HardState:
    """Read term and vote; those of a new replica if there are none."""
    stored = reader.get(META, keys.hard_state)
    return HardState() if stored is None else _decode(_hard_state_decoder, stored, "hard state")


def read_applied(reader: Reader, keys: ReplicaKeys) -> Applied:
    """Read how far the log was applied."""
    stored = reader.get(META, keys.applied)
    return Applied(0, 0, intents=0) if stored is None else _decode(_applied_decoder, stored, "applied index")


def read_replicated(reader: Reader, keys: ReplicaKeys) -> ReplicatedState | None:
    """Read the replicated state; None of a replica that has none yet."""
    stored = reader.get(META, keys.replicated)
    return None if stored is None else _decode(_replicated_decoder, stored, "replicated state")


def read_log_start(reader: Reader, keys: ReplicaKeys) -> LogStart:
    """Read where the log starts."""
    stored = reader.get(META, keys.log_start)
    return LogStart() if stored is None else _decode(_log_start_decoder, stored, "start of a log")


def read_installing(reader: Reader, keys: ReplicaKeys) -> Installing | None:
    """Read the mark of an unfinished installation."""
    stored = reader.get(META, keys.installing)
    return None if stored is None else _decode(_installing_decoder, stored, "mark of an installation")


def own_replica_id(reader: Reader, descriptor: RangeDescriptor, store_id: StoreId) -> ReplicaId:
    """Give the id of a store's replica: the descriptor names it, unless it was removed and is needed still.  Raises CorruptionError."""
    stored = reader.get(META, ReplicaKeys(descriptor.range_id).departing)
    if stored is not None:
        return ReplicaId(int.from_bytes(stored, "big"))
    own = descriptor.replica_on(store_id)
    if own is None:
        raise CorruptionError(f"range {descriptor.range_id} has a replica here that its descriptor does not name")
    return own.replica_id


def put_departing(batch: WriteBatch, keys: ReplicaKeys, replica_id: ReplicaId) -> None:
    """Note that a replica which its descriptor does not name any more is still needed."""
    batch.put(META, keys.departing, replica_id.to_bytes(8, "big"))


def read_quarantined(reader: Reader, keys: ReplicaKeys) -> str | None:
    """Read why a replica is out of service; None if it is not."""
    stored = reader.get(META, keys.quarantined)
    return None if stored is None else stored.decode("utf-8", "replace")


def read_outcomes(reader: Reader, keys: ReplicaKeys) -> dict[AttemptId, Outcome]:
    """Read all outcomes, ascending by first timestamp."""
    outcomes: dict[AttemptId, Outcome] = {}
    start = len(keys.outcomes)
    for chunk_keys, values in reader.scan(META, keys.outcomes, prefix_end(keys.outcomes)):
        for key, value in zip(chunk_keys, values):
            first_ts = Timestamp(int.from_bytes(key[start : start + 8], "big"))
            ts = Timestamp(int.from_bytes(value, "big")) if value else None
            outcomes[AttemptId(key[start + 8 :])] = Outcome(first_ts, ts)
    return outcomes


def put_outcome(batch: WriteBatch, keys: ReplicaKeys, attempt: AttemptId, outcome: Outcome) -> None:
    """Write an outcome."""
    batch.put(META, keys.outcome(attempt, outcome.first_ts), b"" if outcome.ts is None else outcome.ts.to_bytes(8, "big"))


def forget_outcomes(batch: WriteBatch, keys: ReplicaKeys, floor: Timestamp) -> None:
    """Remove the outcomes whose first timestamp is at or below a floor."""
    batch.delete_range(META, keys.outcomes, keys.outcomes + (floor + 1).to_bytes(8, "big"))


def range_ids(reader: Reader) -> list[RangeId]:
    """List the ranges that have a replica here, ascending."""
    found: list[RangeId] = []
    start = _REPLICA
    while (row := reader.first(META, start, _TOMBSTONE)) is not None:
        found.append(RangeId(int.from_bytes(row[0][1:9], "big")))
        start = prefix_end(row[0][:9])
    return found


def read_tombstone(reader: Reader, range_id: RangeId) -> ReplicaId:
    """Give the least replica id of a range that may come to this store."""
    stored = reader.get(META, _TOMBSTONE + range_id.to_bytes(8, "big"))
    return ReplicaId(0 if stored is None else int.from_bytes(stored, "big"))


def put_tombstone(batch: WriteBatch, range_id: RangeId, least: ReplicaId) -> None:
    """Bar all replica ids below `least` from this store."""
    batch.put(META, _TOMBSTONE + range_id.to_bytes(8, "big"), least.to_bytes(8, "big"))


def clear_replica(batch: WriteBatch, range_id: RangeId) -> None:
    """Remove the replica's own state and its log; its keys are the caller's to clear."""
    prefix = replica_prefix(range_id)
    batch.delete_range(META, prefix, prefix_end(prefix))
    log = log_prefix(range_id)
    batch.delete_range(RAFT, log, prefix_end(log))


def put_new_replica(batch: WriteBatch, state: ReplicatedState, applied: Applied, *, hard_state: HardState | None = None) -> None:
    """Write the state of a replica whose log starts, empty, behind `applied`; its hard state too, unless another one stands."""
    keys = ReplicaKeys(state.descriptor.range_id)
    if hard_state is not None:
        batch.put(META, keys.hard_state, encode(hard_state))
    batch.put(META, keys.applied, encode(applied))
    batch.put(META, keys.replicated, encode(state))
    batch.put(META, keys.log_start, encode(LogStart(applied.index, applied.term)))
