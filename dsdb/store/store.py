"""The store: the public class, which puts the parts together and tells them of each other.

    Store ─┬─ Serving   requests            (`serving`, `evaluate`)
           ├─ RaftLoop  write, sync, apply  (`loop`, `state_machine`)
           ├─ Keeper    ticks and support   (`keeper`, `liveness`)
           ├─ Splitting, Membership, Snapshots: ranges change and move
           └─ Replica × n

Invariants:
- One store, one engine: its identity is checked before anything is read.
- The replicas of a store never overlap.
- `serve` never hangs: it answers or raises KvError within the limits of `StoreConfig`.
"""

import logging
import random
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NoReturn

import msgspec
import trio

from dsdb.env.clock import Clock
from dsdb.env.disk import Offload
from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor
from dsdb.kv.errors import AmbiguousResult, KvError
from dsdb.kv.ids import FIRST_TABLE_RANGE, SYSTEM_RANGE, AttemptId, RangeId, StoreId
from dsdb.kv.requests import ChangeReplicasRequest, Reply, Request, SplitRequest
from dsdb.raft.messages import HardState, InstallSnapshot, Membership, ReplicaId, TimeoutNow, Vote
from dsdb.raft.ready import Ready, Role, RoleChange
from dsdb.raft.status import Status
from dsdb.storage import mvcc
from dsdb.storage.engine.port import Engine, WriteBatch
from dsdb.storage.errors import CorruptionError, StorageError, StoreFormatError
from dsdb.storage.keys import KEY_MAX, KEY_MIN, SYSTEM_END, Span, meta_key
from dsdb.storage.mvcc import Intent
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp
from dsdb.store.closed import Promises
from dsdb.store.closing import Closing
from dsdb.store.command import ChecksumCommand, SplitCommand
from dsdb.store.config import StoreConfig
from dsdb.store.consistency import Consistency
from dsdb.store.context import StoreContext
from dsdb.store.folding import Folding
from dsdb.store.frame import ReplicaNotice, SnapshotHeader, StoreFrame, TimestampSource, Transport
from dsdb.store.identity import StoreIdentity, read_identity, write_identity
from dsdb.store.keeper import PERIOD_BITS, Keeper
from dsdb.store.liveness import Liveness
from dsdb.store.load import LoadWatch
from dsdb.store.locks import LockEntry
from dsdb.store.loop import LoopEvents, RaftLoop
from dsdb.store.membership import MembershipChanges
from dsdb.store.repairing import Repairing
from dsdb.store.replica import Replica
from dsdb.store.reporting import Reporting
from dsdb.store.scan import SnapshotScan
from dsdb.store.serving import Serving
from dsdb.store.settling import IntentSettler
from dsdb.store.snapshot import SnapshotReceiver, SnapshotSender, finish_installations
from dsdb.store.split import Splitting
from dsdb.store.state import (
    INITIAL_INDEX,
    INITIAL_TERM,
    Applied,
    ReplicaKeys,
    ReplicatedState,
    clear_replica,
    encode_descriptor,
    own_replica_id,
    put_new_replica,
    put_tombstone,
    range_ids,
    read_quarantined,
    read_replicated,
    read_tombstone,
)
from dsdb.store.state_machine import clear_keys
from dsdb.store.waiter import Waiter

log = logging.getLogger("dsdb.store")

BOOTSTRAP_TS = Timestamp(1)
"""The timestamp of what a new cluster begins with: below every issued one."""


class RangeStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A replica at one moment."""

    descriptor: RangeDescriptor
    holds_lease: bool
    size_bytes: int
    """An estimate."""
    applied: int
    raft: Status
    damage: str | None


class Store(LoopEvents):
    """All replicas on one disk."""

    def __init__(
        self,
        *,
        engine: Engine,
        identity: StoreIdentity,
        config: StoreConfig,
        clock: Clock,
        random: random.Random,
        disk: Offload,
        transport: Transport,
        timestamps: TimestampSource,
        worker: Offload | None = None,
    ) -> None:
        """Load what the engine holds.  Raises StoreFormatError if it is another store's, CorruptionError."""
        if read_identity(engine) != identity:
            raise StoreFormatError(f"the engine does not belong to store {identity.store_id} of cluster {identity.cluster_id}")
        self.identity = identity
        self.config = config
        life = random.getrandbits(PERIOD_BITS)
        liveness = Liveness(
            now=clock.now(),
            incarnation=life,
            duration_s=config.support_duration_s,
            drift_max=config.clock_drift_max,
        )
        self._context = StoreContext(
            engine=engine,
            store_id=identity.store_id,
            config=config,
            clock=clock,
            chance=random,
            timestamps=timestamps,
            liveness=liveness,
        )
        self._replicas: dict[RangeId, Replica] = {}
        self._by_start: list[tuple[bytes, RangeId]] | None = None
        """Starts of the replicas' spans, ascending; None when it must be made again."""
        self._loop = RaftLoop(self._context, self._replicas, disk, transport, self)
        self._context.promises = Promises(self._keep_closed)
        self.closing = Closing(self._context, self._replicas, self._loop.outbox, life)
        self._keeper = Keeper(self._context, self._replicas, self._loop, self.closing)
        self._serving = Serving(self._context, self._replicas)
        self.has_intents, self.settle_oldest_intents = self._serving.has_intents, self._serving.settle_oldest_intents
        self.has_records, self.stale_records = self._serving.has_records, self._serving.stale_records
        self._splitting = Splitting(self._context, self._replicas, self._serving)
        self._sender = SnapshotSender(self._context, self._replicas, self._loop, transport)
        self._receiver = SnapshotReceiver(self._context, self._replicas, self._loop, self._on_installed)
        self.snapshot_rates = (self._sender.throttle, self._receiver.throttle)
        self._changes = MembershipChanges(self._context, self._sender)
        self._repairing = Repairing(self._context, self._replicas, self._loop, self._changes)
        self.consistency = Consistency(self._context, self._replicas, self._loop, self._repairing)
        self.folding = Folding(self._context, self._replicas, self._loop, disk if worker is None else worker)
        self.loads = LoadWatch(self._context, self._replicas)
        self.reports = Reporting(self._context, self._replicas)
        self._serving.handlers[SplitRequest] = self._splitting.serve
        self._serving.handlers[ChangeReplicasRequest] = self._changes.serve
        self._low_wanted: list[tuple[Replica, int]] = []
        """New leases that wait for their low water, with their terms."""
        self._low_waiter: Waiter[None] | None = None
        self._fatal: StorageError | None = None
        """Why the store must stop."""
        self._descriptor_callbacks: list[Callable[[RangeDescriptor, bool], None]] = []
        self._lease_callbacks: list[Callable[[RangeId, bool], None]] = []
        self._load()

    # ---- Making and loading ----

    @classmethod
    def create(cls, engine: Engine, identity: StoreIdentity, *, first: bool) -> None:
        """Found a store in an empty engine, durably; the first one of a cluster gets the ranges that everything grows from."""
        batch = engine.new_batch()
        write_identity(engine, batch, identity)
        if first:
            replica = ReplicaDescriptor(ReplicaId(1), identity.node_id, identity.store_id)
            spans = {SYSTEM_RANGE: Span(KEY_MIN, SYSTEM_END), FIRST_TABLE_RANGE: Span(SYSTEM_END, KEY_MAX)}
            for range_id, span in spans.items():
                descriptor = RangeDescriptor(range_id, span.start, span.end, 1, (replica,), ReplicaId(2))
                state = ReplicatedState(descriptor=descriptor, membership=Membership(voters=(ReplicaId(1),)), mark=BOOTSTRAP_TS)
                start = HardState(term=INITIAL_TERM, commit=INITIAL_INDEX)
                put_new_replica(batch, state, Applied(INITIAL_INDEX, INITIAL_TERM, intents=0), hard_state=start)
                mvcc.put(batch, meta_key(span.end), BOOTSTRAP_TS, encode_descriptor(descriptor))
        engine.write(batch)
        engine.sync()

    def _load(self) -> None:
        engine = self._context.engine
        finish_installations(engine, range_ids(engine))
        for range_id in range_ids(engine):
            state = read_replicated(engine, ReplicaKeys(range_id))
            if state is None:
                raise CorruptionError(f"range {range_id} has a replica without a descriptor")
            replica = Replica(self._context, own_replica_id(engine, state.descriptor, self.identity.store_id), state)
            replica.damage = read_quarantined(engine, replica.keys)
            if replica.damage is not None:
                self._repairing.announce(replica)
            self._add(replica)

    def _add(self, replica: Replica) -> None:
        self._replicas[replica.range_id] = replica
        self._by_start = None

    # ---- Running ----

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled.  Raises DiskError, CorruptionError when the store must stop."""
        self._keeper.begin(self._context.clock.now())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._loop.run_flusher)
                nursery.start_soon(self._loop.run_stepper)
                nursery.start_soon(self._run_ticks)
                nursery.start_soon(self._run_low_water)
                nursery.start_soon(self._sender.run)
                nursery.start_soon(self._receiver.run)
                nursery.start_soon(self.closing.run_scans)
                nursery.start_soon(self._changes.run)
                nursery.start_soon(self.loads.run)
                nursery.start_soon(self.folding.run)
                nursery.start_soon(self.consistency.run)
                nursery.start_soon(self._repairing.run)
                task_status.started()
        except* StorageError as group:
            log.critical("store %d stops: %s", self.identity.store_id, group.exceptions[0])
            raise
        finally:
            self._loop.abandon()

    async def _run_ticks(self) -> NoReturn:
        while True:
            await trio.sleep(self._keeper.pause_s(self._context.clock.now()))
            if self._fatal is not None:
                raise self._fatal
            self._keeper.tick()

    async def _run_low_water(self) -> NoReturn:
        """Fetch one timestamp for all leases that began since the last one was asked for."""
        while True:
            if not self._low_wanted:
                self._low_waiter = Waiter()
                await self._low_waiter.wait()
            wanted, self._low_wanted = self._low_wanted, []
            try:
                low = await self._serving.fresh()
            except KvError as error:
                log.info("store %d: no low water for %d new leases yet: %s", self.identity.store_id, len(wanted), error)
                self._low_wanted += [(replica, term) for replica, term in wanted if replica.raft.term == term and replica.is_leader]
                await trio.sleep(self.config.tick_interval_s)
                continue
            for replica, term in wanted:
                replica.take_low_water(term, low)

    # ---- From other stores ----

    def receive(self, frame: StoreFrame) -> None:
        """Take a frame of another store."""
        self._keeper.receive(frame)
        self.closing.receive(frame)
        for envelope in frame.messages:
            range_id, message = envelope.range_id, envelope.message
            replica = self._replicas.get(range_id)
            if replica is None:
                self._receive_stray(frame.sender, range_id, message)
                continue
            is_busy = replica.is_installing or replica.is_halted
            if message.to != replica.replica_id or is_busy or isinstance(message, InstallSnapshot):
                # A Raft snapshot comes with its data, by `receive_snapshot`, or not at all.
                continue
            if replica.has_removed(message.sender) and not isinstance(message, TimeoutNow):
                self._loop.outbox.tell_removed(frame.sender, replica.removal_of(message.sender))
                self._loop.schedule()
                continue
            replica.stores[message.sender] = frame.sender
            try:
                replica.raft.step(message)
            except AssertionError as error:
                self._halt(replica, error)
            self._loop.note(range_id)
        for notice in frame.missing:
            self._sender.hear_missing(frame.sender, notice.range_id, notice.replica_id)
        for notice in frame.inquiries:
            self._keeper.answer_inquiry(frame.sender, notice)
        for notice in frame.removed:
            replica = self._replicas.get(notice.range_id)
            if replica is not None and replica.replica_id == notice.replica_id:
                replica.told_removed[frame.sender] = notice.voters or (frame.sender,)
                self._loop.note(notice.range_id)
        self.consistency.receive(frame.checksums)
        self._repairing.receive(frame)
        self._loop.turn_now()

    def _receive_stray(self, sender: StoreId, range_id: RangeId, message: Any) -> None:
        """Take a message to a replica that is not here: a split not applied yet, a removed replica, or one that needs a snapshot."""
        if read_tombstone(self._context.engine, range_id) > message.to:
            return
        if isinstance(message, Vote):
            self._splitting.keep_vote(range_id, message)
        self._loop.outbox.tell_missing(sender, ReplicaNotice(range_id, message.to))
        self._loop.schedule()

    async def receive_snapshot(self, header: SnapshotHeader, chunks: AsyncIterator[bytes]) -> None:
        """Take a Raft snapshot; returns when it is installed.  Raises TransportError when it cannot be taken."""
        await self._receiver.receive(header, chunks)

    def _on_installed(self, replica: Replica) -> None:
        self._context.touched.add(replica.range_id)
        self._keeper.forget_peers()
        self.on_descriptor(replica)

    # ---- Requests ----

    def try_serve(self, request: Request) -> Reply | None:
        """Serve a read at once, if nothing has to be waited for; None: use `serve`.  Raises KvError."""
        try:
            return self._serving.try_serve(request)
        except StorageError as error:
            raise self._repairing.unreadable(request.range_id, error) from error

    async def serve(self, request: Request) -> Reply:
        """Serve any request.  Raises KvError.  Cancelling it does not undo what was proposed."""
        try:
            return await self._serving.serve(request)
        except StorageError as error:
            raise self._repairing.unreadable(request.range_id, error) from error

    async def scan_snapshot(
        self, range_id: RangeId, span: Span, ts: Timestamp, attempt: AttemptId | None = None, *, any_replica: bool = False
    ) -> SnapshotScan:
        """Freeze a span at `ts` for bulk reading, once no write stands in the way; a context manager.  Raises KvError.

        any_replica: also without the lease, if what is read is resolved.
        """
        try:
            return await self._serving.scan_snapshot(range_id, span, ts, attempt, any_replica=any_replica)
        except StorageError as error:
            raise self._repairing.unreadable(range_id, error) from error

    async def settle_intents(self, range_id: RangeId, intents: list[tuple[bytes, Intent]], ts: Timestamp) -> None:
        """Get intents that a `SnapshotScan` met out of the way of reads at `ts`; freeze the rest of its span then.  Raises KvError."""
        try:
            await self._serving.settle_intents(range_id, intents, ts)
        except StorageError as error:
            raise self._repairing.unreadable(range_id, error) from error

    def use_settler(self, settler: IntentSettler) -> None:
        """Set who finds out what becomes of foreign intents; before, they cannot be got out of the way."""
        self._context.intents = settler

    def write_counts(self) -> dict[RangeId, int]:
        """Give, for each range led here, how many writes it has applied since this store was opened, or the range made."""
        return {range_id: replica.machine.writes for range_id, replica in sorted(self._context.led.items()) if replica.is_leader}

    def _halt(self, replica: Replica, error: AssertionError) -> None:
        """Stop a replica whose core met what must not be: two leaders in a term, an acknowledged entry lost."""
        log.critical("range %d: replica %d is halted: %s", replica.range_id, replica.replica_id, error)
        replica.damage = f"the replica of range {replica.range_id} on store {self.identity.store_id} is halted: {error}"
        replica.is_halted = True
        replica.end_lease()
        self._repairing.announce(replica)
        if replica.is_leader:
            # Its followers would wait for it as long as this store lives.
            self._fatal = CorruptionError(replica.damage)

    # ---- What the loop tells ----

    def on_role(self, replica: Replica, change: RoleChange) -> None:
        """Take note of a new role, term or leader."""
        self._keeper.on_role(replica, change)
        if change.role is Role.LEADER:
            log.info("range %d: replica %d leads in term %d", replica.range_id, replica.replica_id, change.term)
            if replica.damage is not None:
                self._repairing.give_lead_away(replica)
        elif replica.lease_term:
            log.info("range %d: replica %d leads no more; term %d", replica.range_id, replica.replica_id, change.term)
            replica.lease_term = 0
            replica.end_lease()
            self._tell_lease(replica, held=False)

    def on_lease_started(self, replica: Replica, term: int) -> None:
        """Have the low water of a new lease fetched."""
        if not replica.is_leader or replica.raft.term != term:
            return
        if replica.start_lease(term):
            self._low_wanted.append((replica, term))
            if self._low_waiter is not None:
                self._low_waiter.settle(None)
                self._low_waiter = None
        self._tell_lease(replica, held=True)

    def on_checksum(self, replica: Replica, command: ChecksumCommand) -> None:
        """Have a replica summed up as it is now."""
        self.consistency.on_checksum(replica, command)

    def on_descriptor(self, replica: Replica) -> None:
        """Tell of a new applied descriptor."""
        self._by_start = None
        self._context.touched.add(replica.range_id)
        self._context.changed.add(replica.range_id)
        self._keeper.forget_peers()
        self.closing.note_change(replica.range_id)
        replica.locks.clip(replica.descriptor.end_key, self._context.clock.now())
        for callback in self._descriptor_callbacks:
            callback(replica.descriptor, replica.is_leader)

    def on_split(self, replica: Replica, batch: WriteBatch, command: SplitCommand) -> Callable[[], None]:
        """Make the right side."""
        right = self._splitting.put_right(replica, batch, command)
        was_leader, split_at = replica.is_leader, replica.machine.applied.index

        def begin() -> None:
            if right is None:
                return
            state, intents = right
            made = Replica(self._context, replica.replica_id, state)
            made.split_from = (replica.range_id, split_at)
            made.machine.intents = intents
            self._add(made)
            self._keeper.admit(made, self._context.clock.now())
            if was_leader:
                # A round of heartbeats tells the followers at once that the split is committed: they have no right side before.
                replica.raft.read_index(b"split")
                self._loop.mark(replica.range_id)
                made.raft.campaign()
            self.loads.on_split(replica, made, command.right.start_key)
            for vote in self._splitting.take_votes(made.range_id):
                made.raft.step(vote)
            self.on_descriptor(made)

        return begin

    def on_removed(self, replica: Replica, batch: WriteBatch) -> Callable[[], None]:
        """Remove a replica from this store for good."""
        replica.is_destroyed = True
        replica.doubt_lease()
        clear_keys(batch, replica.descriptor.span)
        clear_replica(batch, replica.range_id)
        put_tombstone(batch, replica.range_id, ReplicaId(replica.replica_id + 1))

        def end() -> None:
            log.info("range %d: replica %d was removed from store %d", replica.range_id, replica.replica_id, self.identity.store_id)
            self._replicas.pop(replica.range_id, None)
            self._by_start = None
            self._context.touched.add(replica.range_id)
            self._loop.forget(replica.range_id)
            self._keeper.forget_peers()
            replica.end_lease()
            replica.fail_pending(AmbiguousResult(f"the replica of range {replica.range_id} was removed"))
            if replica.lease_term:
                self._tell_lease(replica, held=False)

        return end

    def on_snapshot_switched(self, replica: Replica, batch: WriteBatch, ready: Ready) -> Callable[[], None]:
        """Put the switch to a received Raft snapshot into the batch."""
        self._by_start = None
        return self._receiver.switch(replica, batch, ready)

    def on_snapshot_wanted(self, replica: Replica, message: InstallSnapshot) -> None:
        """Begin to stream a Raft snapshot."""
        self._sender.want(replica.range_id, message.to)

    def _keep_closed(self, range_id: RangeId) -> None:
        replica = self._replicas.get(range_id)
        if replica is not None:
            replica.keep_closed()

    def _tell_lease(self, replica: Replica, *, held: bool) -> None:
        range_id = replica.range_id
        if held:
            self._context.led[range_id] = replica
        else:
            self._context.led.pop(range_id, None)
        self.closing.note_change(range_id)
        self._context.touched.add(range_id)
        for callback in self._lease_callbacks:
            callback(range_id, held)

    def live_leaseholder_hint(self, range_id: RangeId) -> StoreId | None:
        """Give the store that probably serves a range, unless nothing was heard of it for as long as a promise stands."""
        store_id = self.leaseholder_hint(range_id)
        is_live = store_id == self.identity.store_id or (store_id is not None and self._context.liveness.promises(store_id))
        return store_id if is_live else None

    def wake(self, range_ids: Sequence[RangeId]) -> None:
        """Have replicas that wait to be woken woken before others: some of them, ask again for the rest."""
        self._keeper.want_some(range_ids)

    def hear_of_range(self, descriptor: RangeDescriptor) -> None:
        """Hear how a range is elsewhere: a replica here that it does not name finds out whether it was removed."""
        self._keeper.inquire(descriptor)

    # ---- Views and hooks ----

    def on_descriptor_applied(self, callback: Callable[[RangeDescriptor, bool], None]) -> None:
        """Have a function called with every newly applied descriptor, and whether the replica here leads.  It must not block or raise."""
        self._descriptor_callbacks.append(callback)

    def on_lease_changed(self, callback: Callable[[RangeId, bool], None]) -> None:
        """Have a function called with a range whose lease began (True) or ended here.  It must not block or raise."""
        self._lease_callbacks.append(callback)

    def holds_lease(self, range_id: RangeId) -> bool:
        """Say whether this store may serve a range at this moment."""
        replica = self._replicas.get(range_id)
        return replica is not None and replica.holds_lease(self._context.clock.now())

    def lease_started(self, range_id: RangeId) -> int | None:
        """Give the term of the lease in force here, or None."""
        replica = self._replicas.get(range_id)
        return replica.lease_term if replica is not None and replica.holds_lease(self._context.clock.now()) else None

    def resolved_ts(self, range_id: RangeId) -> Timestamp:
        """Give the timestamp at and below which the replica here is final; it only grows (rule 23).  MIN_TIMESTAMP without a replica."""
        replica = self._replicas.get(range_id)
        return MIN_TIMESTAMP if replica is None else replica.resolved_ts()

    def reads_past(self, range_id: RangeId, ts: Timestamp) -> bool:
        """Say whether the replica here, whoever leads, answers reads of the past at `ts`."""
        replica = self._replicas.get(range_id)
        return replica is not None and replica.reads_past(ts)

    def follower_read_ts(self) -> Timestamp:
        """Give a past timestamp, a few seconds old, at which replicas should be resolved everywhere; MIN_TIMESTAMP soon after a start."""
        return self.closing.follower_read_ts()

    def leaseholder_hint(self, range_id: RangeId) -> StoreId | None:
        """Give the store that probably serves a range, if a replica here knows."""
        replica = self._replicas.get(range_id)
        return None if replica is None else replica.leader_store

    def descriptor(self, range_id: RangeId) -> RangeDescriptor | None:
        """Give the applied descriptor of a replica here."""
        replica = self._replicas.get(range_id)
        return None if replica is None else replica.descriptor

    def descriptors(self) -> list[RangeDescriptor]:
        """Give the applied descriptors of all replicas here, by range id."""
        return [self._replicas[range_id].descriptor for range_id in sorted(self._replicas)]

    def descriptor_for(self, key: bytes) -> RangeDescriptor | None:
        """Give the descriptor of the replica here that holds a key."""
        if self._by_start is None:
            self._by_start = sorted((replica.descriptor.start_key, range_id) for range_id, replica in self._replicas.items())
        index = bisect_right(self._by_start, key, key=lambda entry: entry[0]) - 1
        if index < 0:
            return None
        descriptor = self._replicas[self._by_start[index][1]].descriptor
        return descriptor if key < descriptor.end_key else None

    def oracle_mark(self) -> Timestamp:
        """Give the applied high-water mark of the oracle.  Raises RangeNotFound where the system range has no replica."""
        return self._serving.replica(SYSTEM_RANGE).machine.state.mark

    def is_live(self, store_id: StoreId) -> bool:
        """Say whether a store gave a sign of life within the last promise: it supports this one, or asked for support."""
        liveness = self._context.liveness
        return liveness.promises(store_id) or liveness.supported_until(store_id) > self._context.clock.now()

    def statistics(self) -> dict[str, float]:
        """Give the store's figures for metrics, the engine's among them.  May be called from another thread."""
        now = self._context.clock.now()
        replicas = list(self._replicas.values())
        return {
            "replicas": float(len(replicas)),
            "leases": float(sum(replica.holds_lease(now) for replica in replicas)),
            "groups_awake": float(len(self._loop.awake)),
            "proposals_pending": float(sum(len(replica.pending) for replica in replicas)),
            "replicas_quarantined": float(self._repairing.quarantined),
            "replicas_repaired": float(self._repairing.repaired),
            "checks": float(self.consistency.checks),
            "check_mismatches": float(self.consistency.mismatches),
            "check_alarms": float(self.consistency.alarms),
            **self.folding.statistics(),
            **self._sender.statistics(self._receiver.throttle),
            "follower_reads": float(self._context.follower_reads),
            "latches": float(sum(len(replica.latches) for replica in replicas)),
            "locks": float(sum(len(replica.locks) for replica in replicas)),
            "lock_waiters": float(sum(replica.locks.waiting for replica in replicas)),
            "turns": float(self._loop.turns),
            "syncs": float(self._loop.syncs),
            **self._context.engine.statistics(),
        }

    def locks(self) -> list[tuple[RangeId, LockEntry]]:
        """Give the row locks that this store's leaseholders have granted, by range and key; times are those of the store's clock."""
        return [(range_id, entry) for range_id in sorted(self._replicas) for entry in self._replicas[range_id].locks.entries()]

    def range_status(self, range_id: RangeId) -> RangeStatistics | None:
        """Give the state of a replica here."""
        replica = self._replicas.get(range_id)
        if replica is None:
            return None
        return RangeStatistics(
            descriptor=replica.descriptor,
            holds_lease=replica.holds_lease(self._context.clock.now()),
            size_bytes=replica.machine.applied.size_bytes,
            applied=replica.machine.applied.index,
            raft=replica.raft.status(),
            damage=replica.damage,
        )
