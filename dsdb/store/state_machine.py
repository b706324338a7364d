"""The replicated state machine of a range: what a command does, on every replica alike.

    entry ─▶ header: proposer's term ▸ descriptor still fits ▸ outcome not recorded, above the floor ─▶ effects in the batch ─▶ reply

Invariants:
- Applying depends on the command, the replicated state and the range's keys alone; never on the lease, the clock or the store.
- The first outcome of an attempt in the log wins, a refusal included (rule 9).
- A txn record changes only as `records` draws it, whatever is asked for (rules 14 to 20).
- An outcome is forgotten only at or below the floor, under which nothing is accepted (rule 11).
- All that an entry changes goes into one batch, with the applied index; but for the writes of a large commit, which go before it in
  parts.  Until that entry is applied nothing else of the range is, its keys' latches are held, and applying it again puts the same.
"""

import heapq
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias, assert_never, get_args

import msgspec

from dsdb.kv.descriptor import RangeDescriptor, ReplicaKind
from dsdb.kv.errors import Gone, InvalidRequest, KvErrorDetail, RangeKeyMismatch, Refused, Unavailable
from dsdb.kv.ids import AttemptId
from dsdb.kv.intents import LayBlockReply, PrewriteReply, RecordReply, RemoveRecordsReply, ResolveReply, TxnMeta, TxnStatus
from dsdb.kv.requests import (
    ChangeReplicasReply,
    ChecksumReply,
    ClearSpanReply,
    CollectGarbageReply,
    CommitReply,
    OutcomeReply,
    RaiseMarkReply,
    Reply,
    SplitReply,
)
from dsdb.raft.messages import Membership
from dsdb.storage import mvcc
from dsdb.storage.columnar import upkeep
from dsdb.storage.columnar.block import BlockCache, Blocks
from dsdb.storage.engine.port import Engine, Family, Reader, WriteBatch
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp
from dsdb.store.command import (
    INTENT_COMMANDS,
    BeginTxnCommand,
    ChangeReplicasCommand,
    ChecksumCommand,
    ClearSpanCommand,
    CollectGarbageCommand,
    Command,
    CommitCommand,
    DropBlockCommand,
    EndTxnCommand,
    IntentCommand,
    LayBlockCommand,
    PrewriteCommand,
    RaiseMarkCommand,
    RefuseCommand,
    RemoveRecordsCommand,
    ResolveCommand,
    SplitCommand,
    StageCommand,
    keys_of,
)
from dsdb.store.open_intents import OpenIntents
from dsdb.store.provisional import ProvisionalBlocks
from dsdb.store.records import TxnRecord, put_record, read_records, remove_record
from dsdb.store.state import (
    META,
    Applied,
    Outcome,
    ReplicaKeys,
    ReplicatedState,
    encode,
    forget_outcomes,
    put_outcome,
    read_applied,
    read_outcomes,
)

Result: TypeAlias = Reply | KvErrorDetail
"""What whoever proposed a command is told."""

PART_WRITES = 512
"""Writes of one commit that go into a batch at once: a millisecond or two to record and to write."""

VERSIONS_MAX = 1 << 30
"""Versions removed by one garbage collection command: no limit, as its span is small."""


class _Parts:
    """A large commit whose writes are put in parts."""

    __slots__ = ("command", "done", "index")

    def __init__(self, index: int, command: CommitCommand) -> None:
        self.index = index
        self.command = command
        self.done = 0
        """Writes that are put."""


class StateMachine:
    """The replicated state of one replica, in memory as in the engine."""

    def __init__(self, engine: Reader, keys: ReplicaKeys, state: ReplicatedState) -> None:
        self._engine = engine
        self.keys = keys
        self.state = state
        self.applied: Applied = read_applied(engine, keys)
        self.intents = OpenIntents(is_complete=self.applied.intents == 0)
        self.provisional = ProvisionalBlocks(keys.provisional, engine)
        self.outcomes: dict[AttemptId, Outcome] = read_outcomes(engine, keys)
        self.writes = 0
        """Writes since it was loaded: each may have made an older version garbage."""
        self.records: dict[AttemptId, TxnRecord] = read_records(engine, keys.records)
        self._by_first_ts: list[tuple[Timestamp, AttemptId]] = [(outcome.first_ts, attempt) for attempt, outcome in self.outcomes.items()]
        """A heap of what `outcomes` holds, for forgetting it in order."""
        heapq.heapify(self._by_first_ts)
        self._parts: _Parts | None = None
        """The large commit that is under way."""
        self._unwritten: set[bytes] = set()
        """Keys whose intents the present batch lays or settles: the engine does not know of it yet."""
        self._has_cleared = False
        """The present batch clears a span, or divides the range."""
        self.upheavals = 0
        """Commands that removed, cleared, divided or parted what a fold may have read: what was begun before them is not written."""
        self.split_off_bytes = 0
        """Size of the right side of the last split."""
        self.is_damaged = False
        """A command could not be applied, as what it needs cannot be read: nothing after it is."""
        self.is_checked = False
        """Nothing was applied since the replicas' checksums were compared (`consistency`)."""
        self.voided: list[tuple[bytes, Timestamp]] = []
        """Keys, and commit timestamps, where the present batch resolves an intent of nothing (rule 29)."""

    @property
    def descriptor(self) -> RangeDescriptor:
        """Give the applied descriptor."""
        return self.state.descriptor

    def oldest_first_ts(self) -> Timestamp:
        """Give the first timestamp of the oldest attempt whose outcome is kept, or the floor."""
        return self._by_first_ts[0][0] if self._by_first_ts else self.state.floor

    def begin_batch(self) -> None:
        """Note that all that was applied before is written."""
        self._unwritten.clear()
        self._has_cleared = False
        self.provisional.begin_batch()
        self.voided.clear()

    def needs_written_state(self, command: Command) -> bool:
        """Say whether applying reads from the engine what may have changed since `begin_batch`, and must be written first."""
        if isinstance(command, LayBlockCommand):
            return self._has_cleared
        if isinstance(command, (ResolveCommand, EndTxnCommand)):
            return self._has_cleared or (bool(self._unwritten) and not self._unwritten.isdisjoint(keys_of(command)))
        return isinstance(command, (CollectGarbageCommand, SplitCommand))

    def advance(self, batch: WriteBatch, index: int, term: int, *, size_delta: int = 0, closed: Timestamp = MIN_TIMESTAMP) -> None:
        """Note an entry as applied; the last call for a batch must be followed by `put_applied`."""
        before = self.applied
        closed = max(before.closed, closed)
        self.applied = Applied(index, term, max(0, before.size_bytes + size_delta), closed, self.intents.count)

    def put_applied(self, batch: WriteBatch) -> None:
        """Write the applied index into the batch of what was applied."""
        batch.put(META, self.keys.applied, encode(self.applied))

    def command_in_parts(self, index: int) -> CommitCommand | None:
        """Give the commit at a place in the log if parts of it are put already: decoding it took long enough."""
        return self._parts.command if self._parts is not None and self._parts.index == index else None

    def put_part(self, batch: WriteBatch, index: int, term: int, command: CommitCommand) -> bool:
        """Put the next part of a large commit into the batch.  False: what is left, with all else that it does, is for `apply`."""
        parts = self._parts
        if parts is None or parts.index != index:
            if not self._takes_effect(term, command):
                return False
            parts = self._parts = _Parts(index, command)
        end = parts.done + PART_WRITES
        if end >= len(command.keys):
            return False
        ts, put = command.ts, mvcc.put
        for key, value in zip(command.keys[parts.done : end], command.values[parts.done : end]):
            put(batch, key, ts, value)
        parts.done = end
        return True

    def _takes_effect(self, term: int, command: CommitCommand) -> bool:
        """Say whether `apply` will write what a commit writes."""
        descriptor = self.state.descriptor
        return (
            command.lease_term == term
            and command.attempt not in self.outcomes
            and command.first_ts > max(command.floor, self.state.floor)
            and descriptor.start_key <= command.keys[0]
            and command.keys[-1] < descriptor.end_key
        )

    def apply(self, batch: WriteBatch, index: int, term: int, command: Command) -> Result:
        """Apply a command at its place in the log.  Membership changes come through `apply_change`.

        Raises CorruptionError: what it needs is damaged.  How much of it was done is not known, so nothing can be applied after it.
        """
        delta = 0
        closed = MIN_TIMESTAMP
        result: Result
        self.is_checked = False
        if isinstance(command, CommitCommand):
            done = 0
            if self._parts is not None:
                done = self._parts.done if self._parts.index == index else 0
                self._parts = None
            result, delta = self._apply_commit(batch, term, command, done)
            closed = command.closed if command.lease_term == term else closed
        elif isinstance(command, ChangeReplicasCommand):
            raise AssertionError(f"a membership change outside of a CONFIG entry, at {index}")
        elif command.lease_term != term:
            result = _other_term(command.lease_term, term)
        elif isinstance(command, INTENT_COMMANDS):
            result, delta = self._apply_intents(batch, command)
            if isinstance(command, (PrewriteCommand, StageCommand, LayBlockCommand)):
                closed = command.closed
        else:
            result = self._apply_other(batch, index, command)
        self.advance(batch, index, term, size_delta=delta, closed=closed)
        return result

    def _apply_other(
        self,
        batch: WriteBatch,
        index: int,
        command: RefuseCommand | RaiseMarkCommand | SplitCommand | ClearSpanCommand | CollectGarbageCommand | ChecksumCommand,
    ) -> Result:
        match command:
            case RefuseCommand():
                return self._apply_refuse(batch, command)
            case RaiseMarkCommand():
                if command.mark > self.state.mark:
                    self._put_state(batch, mark=command.mark)
                return RaiseMarkReply(self.state.mark)
            case SplitCommand():
                return self._apply_split(batch, command)
            case ClearSpanCommand():
                if not self.descriptor.span.covers(command.span):
                    return RangeKeyMismatch((self.descriptor,))
                self._has_cleared = True
                self.upheavals += 1
                clear_keys(batch, command.span)
                self.intents.clear(command.span)
                self.provisional.clear(batch, command.span)
                is_all = command.span.covers(self.descriptor.span)
                self._shrink(self.applied.size_bytes if is_all else command.size_bytes)
                return ClearSpanReply()
            case CollectGarbageCommand():
                return self._apply_collect_garbage(batch, command)
            case ChecksumCommand():
                self.is_checked = True
                return ChecksumReply(index)
            case _:
                assert_never(command)

    # ---- Outcomes ----

    def _apply_commit(self, batch: WriteBatch, term: int, command: CommitCommand, done: int) -> tuple[Result, int]:
        """Apply a commit whose first `done` writes are put already."""
        if command.lease_term != term:
            return _other_term(command.lease_term, term), 0
        if command.floor > self.state.floor:
            self._raise_floor(batch, command.floor)
        recorded = self.outcomes.get(command.attempt)
        if recorded is not None:
            return (Refused() if recorded.ts is None else CommitReply(recorded.ts)), 0
        if command.first_ts <= self.state.floor:
            return Gone(), 0
        keys, ts = command.keys, command.ts
        descriptor = self.state.descriptor
        if command.generation != descriptor.generation and not (descriptor.start_key <= keys[0] and keys[-1] < descriptor.end_key):
            return RangeKeyMismatch((descriptor,)), 0
        size = 0
        put = mvcc.put
        values = command.values
        if done:
            size = sum(map(len, keys[:done])) + 9 * done + sum([len(value) for value in values[:done] if value is not None])
            keys, values = keys[done:], values[done:]
        for key, value in zip(keys, values):
            put(batch, key, ts, value)
            size += len(key) + 9
            if value is not None:
                size += len(value)
        self._record(batch, command.attempt, Outcome(command.first_ts, ts))
        self.writes += len(command.keys)
        return CommitReply(ts), size

    def _apply_refuse(self, batch: WriteBatch, command: RefuseCommand) -> Result:
        recorded = self.outcomes.get(command.attempt)
        if recorded is None:
            if command.first_ts <= self.state.floor:
                return Gone()
            recorded = Outcome(command.first_ts, None)
            self._record(batch, command.attempt, recorded)
        return OutcomeReply(recorded.ts)

    def _record(self, batch: WriteBatch, attempt: AttemptId, outcome: Outcome) -> None:
        self.outcomes[attempt] = outcome
        heapq.heappush(self._by_first_ts, (outcome.first_ts, attempt))
        put_outcome(batch, self.keys, attempt, outcome)

    def _raise_floor(self, batch: WriteBatch, floor: Timestamp) -> None:
        forget_outcomes(batch, self.keys, floor)
        heap = self._by_first_ts
        while heap and heap[0][0] <= floor:
            del self.outcomes[heapq.heappop(heap)[1]]
        self._put_state(batch, floor=floor)

    # ---- Intents and txn records ----

    def _apply_intents(self, batch: WriteBatch, command: IntentCommand) -> tuple[Result, int]:
        """Apply a command of a commit over many ranges; give its result, and by how much the range has grown."""
        if not isinstance(command, RemoveRecordsCommand) and command.generation != self.descriptor.generation:
            keys = keys_of(command)
            if keys and not (self.descriptor.start_key <= min(keys) and max(keys) < self.descriptor.end_key):
                return RangeKeyMismatch((self.descriptor,)), 0
        match command:
            case PrewriteCommand():
                return self._apply_prewrite(batch, command)
            case StageCommand():
                return self._apply_stage(batch, command)
            case EndTxnCommand():
                return self._apply_end(batch, command)
            case ResolveCommand():
                size = sum([self._resolve(batch, item.attempt, item.keys, item.commit_ts) for item in command.items])
                return ResolveReply(), size
            case BeginTxnCommand():
                return self._apply_begin(batch, command), 0
            case LayBlockCommand():
                partings = self.provisional.partings
                size = self.provisional.put(batch, command)
                self.upheavals += self.provisional.partings - partings
                return LayBlockReply(command.ts), size
            case DropBlockCommand():
                return ResolveReply(), self.provisional.end(batch, command.first_key, command.attempt, None)
            case RemoveRecordsCommand():
                for attempt in command.attempts:
                    record = self.records.get(attempt)
                    if record is not None and record.is_final:
                        del self.records[attempt]
                        remove_record(batch, self.keys.records, attempt)
                return RemoveRecordsReply(), 0
            case _:
                assert_never(command)

    def _apply_prewrite(self, batch: WriteBatch, command: PrewriteCommand) -> tuple[Result, int]:
        meta, ts, older = command.meta, command.ts, dict(command.older)
        return PrewriteReply(ts), self._lay(batch, meta, ts, command.keys, command.values, command.sequence, older, command.nothing)

    def _lay(
        self,
        batch: WriteBatch,
        meta: TxnMeta,
        ts: Timestamp,
        keys: Sequence[bytes],
        values: Sequence[bytes | None],
        sequence: int = 0,
        older: Mapping[int, tuple[tuple[int, bytes | None], ...]] = MappingProxyType({}),
        nothing: Sequence[int] = (),
    ) -> int:
        """Put intents; give by how much the range has grown."""
        size = 0
        self._unwritten.update(keys)
        attempt, anchor, first_ts, start_ts = meta.attempt, meta.anchor, meta.first_ts, meta.start_ts
        for at, (key, value) in enumerate(zip(keys, values)):
            is_nothing = bool(nothing) and at in nothing
            kept = older.get(at, ()) if older else ()
            intent = mvcc.Intent(attempt, anchor, first_ts, ts, sequence, value, start_ts, is_nothing, kept)
            mvcc.put_intent(batch, key, intent)
            self.intents.lay(key, ts)
            size += _version_bytes(key, value)
        return size

    def _apply_begin(self, batch: WriteBatch, command: BeginTxnCommand) -> RecordReply:
        meta = command.meta
        record = self.records.get(meta.attempt)
        if record is None or record.status is TxnStatus.PENDING:
            pending = TxnRecord(TxnStatus.PENDING, MIN_TIMESTAMP, meta.first_ts, meta.anchor, (), command.spans, meta.start_ts)
            record = self._put_record(batch, meta.attempt, pending)
        return record.reply()

    def _apply_stage(self, batch: WriteBatch, command: StageCommand) -> tuple[Result, int]:
        meta, ts, size = command.meta, command.ts, 0
        record = self.records.get(meta.attempt)
        is_higher = record is not None and (record.ts < ts or (record.ts == ts and command.is_final))
        if record is None or (not record.is_final and is_higher):
            status = TxnStatus.COMMITTED if command.is_final else TxnStatus.STAGING
            keys = command.keys if record is None else command.keys or record.keys
            spans = command.spans if record is None else command.spans or record.spans
            record = self._put_record(batch, meta.attempt, TxnRecord(status, ts, meta.first_ts, meta.anchor, keys, spans, meta.start_ts))
            size = self._lay(batch, meta, ts, command.laid, command.values)
        return record.reply(has_keys=False), size

    def _apply_end(self, batch: WriteBatch, command: EndTxnCommand) -> tuple[Result, int]:
        attempt, commit_ts = command.meta.attempt, command.commit_ts
        record = self.records.get(attempt)
        if record is None:
            return RecordReply(TxnStatus.GONE), 0
        if record.is_final or command.expected not in (None, record.ts):
            return record.reply(), 0
        ended = TxnRecord(
            TxnStatus.ABORTED if commit_ts is None else TxnStatus.COMMITTED,
            record.ts if commit_ts is None else commit_ts,
            record.first_ts,
            record.anchor,
            record.keys,
            record.spans,
            record.start_ts,
        )
        self._put_record(batch, attempt, ended)
        return ended.reply(), self._resolve(batch, attempt, command.resolve, commit_ts)

    def _resolve(self, batch: WriteBatch, attempt: AttemptId, keys: tuple[bytes, ...], commit_ts: Timestamp | None) -> int:
        """Settle intents; give by how much the range has grown: what comes to nothing has been counted."""
        size = 0
        self._unwritten.update(keys)
        for key in keys:
            if self.provisional and self.provisional.named(key, attempt) is not None:
                self.upheavals += 1
                size += self.provisional.end(batch, key, attempt, commit_ts)
            intent = mvcc.resolve_intent(self._engine, batch, key, attempt, commit_ts)
            self.writes += 1
            if intent is not None:
                self.intents.drop(key)
            if intent is not None and (commit_ts is None or intent.ts > commit_ts or intent.is_nothing):
                size -= _version_bytes(key, intent.value)
            if intent is not None and intent.is_nothing and commit_ts is not None:
                self.voided.append((key, commit_ts))
        return size

    def _put_record(self, batch: WriteBatch, attempt: AttemptId, record: TxnRecord) -> TxnRecord:
        self.records[attempt] = record
        put_record(batch, self.keys.records, attempt, record)
        return record

    def hand_over_records(self, batch: WriteBatch, start: bytes) -> dict[AttemptId, TxnRecord]:
        """Give up the records whose anchors lie at or above `start`: they are the right side's of a split."""
        moved = {attempt: record for attempt, record in self.records.items() if record.anchor >= start}
        for attempt in moved:
            del self.records[attempt]
            remove_record(batch, self.keys.records, attempt)
        return moved

    def hand_over_intents(self, start: bytes) -> OpenIntents:
        """Give up the intents at or above `start`, likewise."""
        moved = self.intents.hand_over(start)
        self.applied = msgspec.structs.replace(self.applied, intents=self.intents.count)
        return moved

    # ---- The rest of the state ----

    def _put_state(
        self,
        batch: WriteBatch,
        *,
        descriptor: RangeDescriptor | None = None,
        membership: Membership | None = None,
        floor: Timestamp | None = None,
        threshold: Timestamp | None = None,
        mark: Timestamp | None = None,
    ) -> None:
        state = self.state
        self.state = ReplicatedState(
            descriptor=state.descriptor if descriptor is None else descriptor,
            membership=state.membership if membership is None else membership,
            floor=state.floor if floor is None else floor,
            threshold=state.threshold if threshold is None else threshold,
            mark=state.mark if mark is None else mark,
        )
        batch.put(META, self.keys.replicated, encode(self.state))

    def _apply_collect_garbage(self, batch: WriteBatch, command: CollectGarbageCommand) -> Result:
        span = command.span.clipped(self.descriptor.span)
        if command.threshold > self.state.threshold:
            self._put_state(batch, threshold=command.threshold)
        if span.is_empty:
            return RangeKeyMismatch((self.descriptor,))
        self.upheavals += 1
        blocks = Blocks(self._engine, BlockCache())
        removed, removed_bytes, _ = upkeep.collect_delta_garbage(blocks, batch, span, self.state.threshold, versions_max=VERSIONS_MAX)
        self._shrink(removed_bytes)
        return CollectGarbageReply(self.state.threshold, removed)

    def _shrink(self, size_bytes: int) -> None:
        self.applied = msgspec.structs.replace(self.applied, size_bytes=max(0, self.applied.size_bytes - size_bytes))

    def write_folded(self, engine: Engine, batch: WriteBatch, grown_bytes: int) -> None:
        """Write a batch of folding, with by how much it makes the range grow; all that was applied must be written.  Raises as `write`."""
        applied = msgspec.structs.replace(self.applied, size_bytes=max(0, self.applied.size_bytes + grown_bytes))
        batch.put(META, self.keys.applied, encode(applied))
        engine.write(batch)
        self.applied = applied

    def _apply_split(self, batch: WriteBatch, command: SplitCommand) -> Result:
        """Shrink to the left side.  The right side is made by the store, which knows whether it may have it (`split`)."""
        descriptor = self.descriptor
        if command.generation != descriptor.generation:
            return InvalidRequest(f"range {descriptor.range_id} has changed to generation {descriptor.generation} before its split")
        # What is damaged is found before anything is changed.
        upkeep.cut(Blocks(self._engine), batch, command.right.start_key)
        self._has_cleared = True
        self.upheavals += 1
        self._put_state(batch, descriptor=command.left)
        size_bytes, self.split_off_bytes = self._divided(command)
        self.applied = msgspec.structs.replace(self.applied, size_bytes=size_bytes, closed=max(self.applied.closed, command.closed))
        return SplitReply(command.left, command.right)

    def _divided(self, command: SplitCommand) -> tuple[int, int]:
        """Divide this replica's own size as the leaseholder found that its own is divided."""
        own, left = self.applied.size_bytes, command.left_size_bytes
        if command.right_size_bytes is None:
            return min(left, own), left
        total = left + command.right_size_bytes
        part = left if own == total else own * left // total if total else 0
        return part, own - part

    def right_state(self, command: SplitCommand) -> ReplicatedState:
        """Give what the right side of a split starts with beside its `Applied`: outcomes' floor and threshold are the left side's."""
        state = self.state
        return ReplicatedState(descriptor=command.right, membership=state.membership, floor=state.floor, threshold=state.threshold)

    # ---- Membership ----

    def is_change_valid(self, command: ChangeReplicasCommand) -> bool:
        """Say whether a membership change still fits; if not it is refused, on every replica."""
        return command.generation == self.descriptor.generation

    def apply_change(
        self, batch: WriteBatch, index: int, term: int, membership: Membership, command: ChangeReplicasCommand | None
    ) -> Result:
        """Adopt the membership that the core gave, with the command's descriptor.

        Without a command either the change was refused, or the leader has left a joint membership: then the incoming voters are voters
        and the outgoing ones are gone.
        """
        descriptor = self.descriptor
        if command is not None:
            descriptor = command.descriptor
        elif self.state.membership.is_joint and not membership.is_joint:
            descriptor = settled(descriptor)
        self._put_state(batch, descriptor=descriptor, membership=membership)
        self.advance(batch, index, term)
        return ChangeReplicasReply(descriptor)


def settled(descriptor: RangeDescriptor) -> RangeDescriptor:
    """Give a descriptor after its joint configuration was left."""
    replicas = tuple(
        msgspec.structs.replace(replica, kind=ReplicaKind.VOTER) if replica.kind is ReplicaKind.VOTER_INCOMING else replica
        for replica in descriptor.replicas
        if replica.kind is not ReplicaKind.VOTER_OUTGOING
    )
    return msgspec.structs.replace(descriptor, generation=descriptor.generation + 1, replicas=replicas)


def clear_keys(batch: WriteBatch, span: Span) -> None:
    """Remove what a span holds in every family of the keyspace."""
    mvcc.clear(batch, span)
    batch.delete_range(Family.BLOCK, span.start, span.end)
    batch.delete_range(Family.INDEX, span.start, span.end)


def _version_bytes(key: bytes, value: bytes | None) -> int:
    return len(key) + 9 + (0 if value is None else len(value))


def _other_term(lease_term: int, term: int) -> KvErrorDetail:
    # The core appends proposals in its own term only; so this is a defect of a peer, refused by all replicas alike.
    return Unavailable(f"the command of lease term {lease_term} was logged in term {term}")


_ERRORS = get_args(KvErrorDetail)


def is_error(result: Result) -> bool:
    """Say whether the result of a command is an error."""
    return isinstance(result, _ERRORS)
