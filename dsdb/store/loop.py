"""The Raft loop: performs the effects of all groups of a store, in turns.

    dirty groups ─▶ ready() ─▶ one batch: log, hard states, applied commands ─▶ write ─▶ send, answer   (a turn: nothing waits)
                                                                                  └─▶ sync ─▶ stabled, acknowledge

Two tasks run turns: the flusher, which goes on to sync what they wrote, and the stepper, while the flusher waits for the disk.  So a
command that comes alone costs one task switch before its sync and none after it, and what comes meanwhile shares the next sync.  A frame
of another store that finds neither at work has its turn at once (`turn_now`).  While the disk is fast, whoever had the turn syncs what is
little at once (`_sync_promptly`, docs/decisions/0011); what is much, or slow, goes through the disk thread.

Invariants:
- Messages leave only after their turn's batch is written; those of `messages_after_sync` only when all written before them is durable.
- A turn that a busy or full disk refuses is kept whole and written again; no other turn runs before.
- What an entry does is visible, and its latches are released, before whoever proposed it is answered.
- Groups are taken in the order of their range ids.
- A turn applies a few thousand writes at most; what is left is for the next, and all other tasks run in between.  A large commit is
  applied by several turns, and nothing behind it in its range before it is whole.
"""

import logging
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import NoReturn, TypeAlias

import trio

from dsdb.env.disk import Offload
from dsdb.kv.descriptor import ReplicaDescriptor, ReplicaKind
from dsdb.kv.errors import AmbiguousResult
from dsdb.kv.ids import SYSTEM_RANGE, RangeId, StoreId
from dsdb.raft.messages import (
    NO_REPLICA,
    Entry,
    EntryKind,
    InstallSnapshot,
    MembershipChange,
    Message,
    ReplicaId,
    decode_config_entry,
)
from dsdb.raft.ready import Ready, Role, RoleChange, StableMark
from dsdb.storage.engine.port import WriteBatch
from dsdb.storage.errors import CorruptionError, DiskFullError, StorageError, WriteStallError
from dsdb.store.command import ChangeReplicasCommand, ChecksumCommand, Command, CommitCommand, SplitCommand, decode_command
from dsdb.store.context import StoreContext
from dsdb.store.frame import RaftEnvelope, Transport
from dsdb.store.outbox import Outbox
from dsdb.store.replica import Replica
from dsdb.store.state import META, encode, put_departing
from dsdb.store.state_machine import PART_WRITES, Result, StateMachine

log = logging.getLogger("dsdb.store")

TURN_CHANGES = 2_048
"""Changes in a turn's batch above which no further command is applied: 4 to 8 ms to record and to write."""
TURN_RANGES = 256
"""Ranges whose effects go into one batch: about 10 ms if all elect leaders."""
PROMPT_BYTES_MAX = 128 * 1024
"""More than this is synced in the disk thread, however fast the disk was with less."""

_Unsynced: TypeAlias = tuple[dict[RangeId, StableMark], list[tuple[StoreId, RaftEnvelope]]]
"""What a sync makes durable, and the messages that leave after it."""


class LoopEvents:
    """What the loop tells the store; each is called between turns' writes, when the store's state is whole."""

    def on_split(self, replica: Replica, batch: WriteBatch, command: SplitCommand) -> Callable[[], None]:
        """Put the right side of a split into the batch; give what is to be done once it is written."""
        raise NotImplementedError

    def on_removed(self, replica: Replica, batch: WriteBatch) -> Callable[[], None]:
        """Put the end of a replica that was removed from its range into the batch; give what is to be done once it is written."""
        raise NotImplementedError

    def on_snapshot_switched(self, replica: Replica, batch: WriteBatch, ready: Ready) -> Callable[[], None]:
        """Put the switch to a received Raft snapshot into the batch; give what is to be done once it is written."""
        raise NotImplementedError

    def on_snapshot_wanted(self, replica: Replica, message: InstallSnapshot) -> None:
        """Begin to stream a Raft snapshot."""
        raise NotImplementedError

    def on_role(self, replica: Replica, change: RoleChange) -> None:
        """Hear of a new role, term or leader."""
        raise NotImplementedError

    def on_lease_started(self, replica: Replica, term: int) -> None:
        """Hear that the first entry of our own term is applied."""
        raise NotImplementedError

    def on_descriptor(self, replica: Replica) -> None:
        """Hear of a new applied descriptor."""
        raise NotImplementedError

    def on_checksum(self, replica: Replica, command: ChecksumCommand) -> None:
        """Hear that a replica is to be summed up as the engine shows it now."""
        raise NotImplementedError


class RaftLoop:
    """One for each store."""

    def __init__(
        self, context: StoreContext, replicas: dict[RangeId, Replica], disk: Offload, transport: Transport, events: LoopEvents
    ) -> None:
        self._context = context
        self._replicas = replicas
        self._disk = disk
        self._events = events
        self.outbox = Outbox(context.store_id, transport)
        self._dirty: set[RangeId] = set()
        """Ranges whose core may have something to hand out, or that have something to apply."""
        self.awake: set[RangeId] = set()
        """Ranges that are ticked."""
        self._to_apply: dict[RangeId, deque[Entry]] = {}
        """Committed entries that were handed out and not applied."""
        self._batch: WriteBatch = context.engine.new_batch()
        self._after_write: list[Callable[[], None]] = []
        """What follows the write of `_batch`."""
        self._staged: list[tuple[StoreId, RaftEnvelope]] = []
        """Messages that leave once `_batch` is written."""
        self.is_stalled = False
        """`_batch` was refused and must be written before anything else."""
        self._has_more = False
        """This turn has left commands, or ranges, to the next."""
        self._turned_last = RangeId(0)
        self._pause_s = 0.0
        self._marks: dict[RangeId, StableMark] = {}
        """What the next sync makes durable."""
        self._held: list[tuple[StoreId, RaftEnvelope]] = []
        """Messages that leave after the next sync."""
        self._unsynced_bytes = 0
        self._needs_sync = False
        self._is_syncing = False
        self._flusher: trio.lowlevel.Task | None = None
        """The flusher, while it is parked."""
        self._stepper: trio.lowlevel.Task | None = None
        """The stepper, while it is parked."""
        self._failure: StorageError | None = None
        """What ended a turn of another task: the flusher ends the store with it."""
        self.syncs = 0
        self.turns = 0
        context.on_dirty = self.mark

    # ---- Tasks ----

    def mark(self, range_id: int) -> None:
        """Look at a range in the next turn, and tick it until it is quiet."""
        self.note(RangeId(range_id))
        self.schedule()

    def note(self, range_id: RangeId) -> None:
        """As `mark`, for somebody who will call `turn_now`."""
        self._dirty.add(range_id)
        self.awake.add(range_id)

    def rest(self, range_id: RangeId) -> None:
        """Look at a range in the next turn, and do not tick it before something else wakes it."""
        self._dirty.add(range_id)
        self.awake.discard(range_id)

    def schedule(self) -> None:
        """Have a turn run soon, or what is in the outbox sent."""
        if self._flusher is not None:
            task, self._flusher = self._flusher, None
            trio.lowlevel.reschedule(task)
        elif self._is_syncing and not self.is_stalled:
            self._wake_stepper()
        # Otherwise the flusher is about to run: it takes what is there.

    def turn_now(self) -> None:
        """Have a turn in the task that calls, if no task is about to have one: it saves a switch to whoever brings a lone message."""
        is_idle = self._flusher is not None or (self._is_syncing and self._stepper is not None)
        if is_idle and not self.is_stalled:
            try:
                self.turn()
                if self._sync_promptly():
                    self.turn()
            except StorageError as error:
                self._failure = error
            else:
                if not self._dirty and (self._is_syncing or not self._needs_sync) and not self.is_stalled:
                    return
        self.schedule()

    def _wake_stepper(self) -> None:
        if self._stepper is not None:
            task, self._stepper = self._stepper, None
            trio.lowlevel.reschedule(task)

    async def run_flusher(self) -> NoReturn:
        """Run turns, and make what they wrote durable."""
        while True:
            if self._failure is not None:
                raise self._failure
            self.turn(retry=True)
            if self._sync_promptly():
                self.turn()
            if self.is_stalled:
                await trio.sleep(self._pause_s)
            elif self._needs_sync:
                if self._dirty:
                    self._wake_stepper()
                await self._sync()
            elif self._dirty:
                await trio.lowlevel.checkpoint()
            else:
                await self._park("_flusher")

    async def run_stepper(self) -> NoReturn:
        """Run turns while the flusher waits for the disk."""
        while True:
            if self._dirty and self._is_syncing and not self.is_stalled:
                await trio.lowlevel.checkpoint()
            else:
                await self._park("_stepper")
            self.turn()

    async def _park(self, slot: str) -> None:
        setattr(self, slot, trio.lowlevel.current_task())

        def abort(_: object) -> trio.lowlevel.Abort:
            setattr(self, slot, None)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    async def _sync(self) -> None:
        unsynced = self._take_unsynced()
        self._is_syncing = True
        try:
            await self._disk.run(self._context.engine.sync)
        finally:
            self._is_syncing = False
        self._synced(unsynced)

    def _sync_promptly(self) -> bool:
        """Sync here and now, if there is little to sync and the disk has been fast: it spares two tasks and a thread their switches."""
        if not self._needs_sync or self._is_syncing or self.is_stalled or self._unsynced_bytes > PROMPT_BYTES_MAX:
            return False
        if not self._disk.run_promptly(self._context.engine.sync):
            return False
        self._synced(self._take_unsynced())
        return True

    def count_unsynced(self, size_bytes: int) -> None:
        """Learn of bytes that another writer has put into the engine: the next sync has them to write, too."""
        self._unsynced_bytes += size_bytes

    def _take_unsynced(self) -> _Unsynced:
        unsynced = self._marks, self._held
        self._marks, self._held = {}, []
        self._unsynced_bytes = 0
        self._needs_sync = False
        return unsynced

    def _synced(self, unsynced: _Unsynced) -> None:
        marks, held = unsynced
        self.syncs += 1
        for range_id in sorted(marks):
            replica = self._replicas.get(range_id)
            if replica is not None:
                replica.raft.stabled(*marks[range_id])
                self._dirty.add(range_id)
        for to, envelope in held:
            self.outbox.add(to, envelope)

    def put_soon(self, replica: Replica, key: bytes, value: bytes) -> None:
        """Write a META key of a replica with the next turn, durably."""
        self._batch.put(META, key, value)
        self._needs_sync = True
        self.mark(replica.range_id)

    # ---- Turns ----

    def turn(self, *, retry: bool = False) -> None:
        """Perform what all dirty groups have to do, until none has anything, or it is much; nothing waits here."""
        if self.is_stalled and not (retry and self._write()):
            self.outbox.flush()
            return
        self._has_more = False
        while self._dirty and not self._has_more:
            self.turns += 1
            range_ids = self._dirty_now()
            for range_id in range_ids:
                replica = self._replicas.get(range_id)
                if replica is not None and not replica.is_installing and (not replica.is_halted or replica.is_doomed):
                    self._perform(replica)
            if not self._write():
                break
        self.outbox.flush()

    def _dirty_now(self) -> list[RangeId]:
        """Take the dirty ranges; of very many some, in turn, the system range always: the rest is left to the next turn."""
        range_ids = sorted(self._dirty)
        if len(range_ids) <= TURN_RANGES:
            self._dirty.clear()
            return range_ids
        begin = bisect_right(range_ids, self._turned_last)
        some = [*range_ids[begin:], *range_ids[:begin]][:TURN_RANGES]
        self._turned_last = some[-1]
        if range_ids[0] == SYSTEM_RANGE and SYSTEM_RANGE not in some:
            some.insert(0, SYSTEM_RANGE)
        self._dirty.difference_update(some)
        self._has_more = True
        return some

    def _write(self) -> bool:
        """Write the turn's batch and do what follows it.  Say whether that succeeded."""
        context = self._context
        if len(self._batch):
            try:
                context.engine.write(self._batch)
            except WriteStallError:
                self.is_stalled, self._pause_s = True, context.config.stall_backoff_s
                return False
            except DiskFullError as error:
                if context.disk_trouble is None:
                    log.error("the disk is full: writes are refused until it has room (%s)", error)
                context.disk_trouble = f"the disk is full: {error}"
                self.is_stalled, self._pause_s = True, context.config.disk_full_probe_s
                return False
            self._unsynced_bytes += self._batch.size_bytes
            self._batch = context.engine.new_batch()
        if context.disk_trouble is not None:
            log.warning("the disk takes writes again")
            context.disk_trouble = None
        self.is_stalled = False
        staged, self._staged = self._staged, []
        for to, envelope in staged:
            self.outbox.add(to, envelope)
        after_write, self._after_write = self._after_write, []
        for act in after_write:
            act()
        return True

    def _perform(self, replica: Replica) -> None:
        """Put a group's effects into the batch."""
        if replica.is_doomed:
            self._after_write.append(self._events.on_removed(replica, self._batch))
            return
        raft = replica.raft
        range_id = replica.range_id
        queue = self._to_apply.get(range_id)
        if raft.has_ready:
            ready = raft.ready()
            if ready.role_change is not None:
                self._events.on_role(replica, ready.role_change)
            if ready.snapshot is not None:
                # It stands for everything that was to be applied.
                self._to_apply.pop(range_id, None)
                queue = None
                self._after_write.append(self._events.on_snapshot_switched(replica, self._batch, ready))
            if ready.hard_state is not None:
                self._batch.put(META, replica.keys.hard_state, encode(ready.hard_state))
            if ready.entries:
                replica.log.append(self._batch, ready.entries)
            self._post(replica, ready)
            if ready.stable is not None:
                self._marks[range_id] = ready.stable
                self._needs_sync = True
            if ready.committed and not replica.machine.is_damaged:
                if queue is None:
                    queue = self._to_apply[range_id] = deque()
                queue.extend(ready.committed)
        if queue and not replica.is_installing:
            self._apply(replica, queue)
        if raft.has_ready:
            self._dirty.add(range_id)

    def _post(self, replica: Replica, ready: Ready) -> None:
        for message in ready.messages:
            self._stage(replica, message, self._staged)
        if ready.messages_after_sync:
            # Of an earlier turn, or of this one: something may be written and not durable.
            is_durable = not (self._needs_sync or self._is_syncing or ready.stable is not None)
            target = self._staged if is_durable else self._held
            for message in ready.messages_after_sync:
                self._stage(replica, message, target)

    def _stage(self, replica: Replica, message: Message, target: list[tuple[StoreId, RaftEnvelope]]) -> None:
        if isinstance(message, InstallSnapshot):
            self._after_write.append(lambda: self._events.on_snapshot_wanted(replica, message))
            return
        to = replica.stores.get(message.to)
        if to is not None:
            target.append((to, RaftEnvelope(replica.range_id, message)))

    # ---- Apply ----

    def _apply(self, replica: Replica, queue: deque[Entry]) -> None:
        """Apply what is committed, as far as it needs nothing that this batch has yet to write."""
        machine, batch = replica.machine, self._batch
        machine.begin_batch()
        has_changed = False
        last = 0
        while queue:
            if len(batch) > TURN_CHANGES:
                self._has_more = True
                break
            entry = queue[0]
            asked: ChecksumCommand | None = None
            if entry.kind is EntryKind.CONFIG:
                self._apply_config(replica, entry)
            elif not entry.data:
                machine.advance(batch, entry.index, entry.term)
                replica.take_proposal(entry.index, entry.term)
                if entry.term == replica.raft.term and replica.is_leader:
                    self._after_write.append(lambda term=entry.term: self._events.on_lease_started(replica, term))  # type: ignore[misc]
            else:
                proposal = replica.take_proposal(entry.index, entry.term)
                if proposal is not None:
                    command = proposal.command
                else:
                    command = machine.command_in_parts(entry.index) or decode_command(entry.data)
                if (has_changed and machine.needs_written_state(command)) or self._applied_part(machine, entry, command):
                    if proposal is not None:
                        replica.pending[entry.index] = proposal
                    break
                try:
                    result = machine.apply(batch, entry.index, entry.term, command)
                except CorruptionError as error:
                    machine.is_damaged = True
                    if proposal is not None:
                        replica.pending[entry.index] = proposal
                    self._context.on_unreadable(replica.range_id, error)
                    queue.clear()
                    break
                if isinstance(command, SplitCommand):
                    self._apply_split(replica, command, result)
                if proposal is not None:
                    self._after_write.append(lambda done=proposal, told=result: replica.finish(done, told))  # type: ignore[misc]
                asked = command if type(command) is ChecksumCommand else None
            queue.popleft()
            has_changed = True
            last = entry.index
            if asked is not None:
                # What follows it in the log must not be in what it sums up: this batch is written without.
                self._after_write.append(lambda command=asked: self._events.on_checksum(replica, command))  # type: ignore[misc]
                break
            if replica.is_destroyed:
                queue.clear()
                return
        if queue:
            self._dirty.add(replica.range_id)
        if not has_changed:
            return
        machine.put_applied(batch)
        if machine.provisional.committed:
            replica.has_blocks = True
        self._after_write.append(lambda: self._applied(replica, last))

    def _applied_part(self, machine: StateMachine, entry: Entry, command: Command) -> bool:
        """Apply a part of a command if it is a large one that is not to be finished in this turn."""
        if type(command) is not CommitCommand or len(command.keys) <= PART_WRITES:
            return False
        if not machine.put_part(self._batch, entry.index, entry.term, command):
            return False
        self._has_more = True
        return True

    def _applied(self, replica: Replica, index: int) -> None:
        if replica.is_destroyed:
            return
        self._context.touched.add(replica.range_id)
        self._context.changed.add(replica.range_id)
        replica.raft.applied(index)
        self._truncate(replica)
        if replica.raft.has_ready:
            self._dirty.add(replica.range_id)

    def _apply_split(self, replica: Replica, command: SplitCommand, result: Result) -> None:
        if replica.machine.descriptor is not command.left:
            return
        self._after_write.append(self._events.on_split(replica, self._batch, command))
        self._after_write.append(lambda: self._events.on_descriptor(replica))

    def _apply_config(self, replica: Replica, entry: Entry) -> None:
        machine = replica.machine
        config = decode_config_entry(entry.data)
        command: Command | None = decode_command(config.context) if config.context else None
        change = config.change
        if command is not None:
            assert isinstance(command, ChangeReplicasCommand), command
            if not machine.is_change_valid(command):
                command, change = None, MembershipChange()
        before = machine.descriptor.replicas
        membership = replica.raft.apply_membership(change)
        result = machine.apply_change(self._batch, entry.index, entry.term, membership, command)
        replica.learn_stores()
        replica.doubt_lease()
        proposal = replica.take_proposal(entry.index, entry.term)
        if proposal is not None:
            self._after_write.append(lambda: replica.finish(proposal, result))
        own = replica.replica_id
        if replica.has_removed(own) and any(member.replica_id == own and member.kind is ReplicaKind.LEARNER for member in before):
            # Nobody needs it any more: those who do not know either think so too.
            self._after_write.append(self._events.on_removed(replica, self._batch))
        else:
            if replica.has_removed(own):
                put_departing(self._batch, replica.keys, replica.replica_id)
            self._after_write.append(lambda: self._events.on_descriptor(replica))
            self._after_write.append(lambda: self._tell_removed(replica, before))

    def _tell_removed(self, replica: Replica, before: tuple[ReplicaDescriptor, ...]) -> None:
        """Tell those whom a change removed, once: the leader speaks to them no more, and they stay until enough of us know."""
        if not replica.has_removed(replica.replica_id):
            for member in before:
                if replica.has_removed(member.replica_id):
                    self.outbox.tell_removed(member.store_id, replica.removal_of(member.replica_id))

    def _truncate(self, replica: Replica) -> None:
        """Forget the applied part of a log that has grown long; goes into the next turn's batch."""
        config = self._context.config
        raft_log = replica.log
        applied = replica.machine.applied.index
        length = applied - raft_log.first_index() + 1
        if length < 2 * config.log_keep_entries and raft_log.bytes < config.log_bytes_max:
            return
        keep = config.log_keep_entries if raft_log.bytes < config.log_bytes_max else 0
        up_to = applied - keep
        if replica.is_leader and raft_log.bytes < 2 * config.log_bytes_max:
            for progress in replica.raft.status().progress:
                if progress.is_recently_active and progress.replica != replica.replica_id:
                    up_to = min(up_to, progress.match)
        if up_to >= raft_log.first_index():
            raft_log.truncate(self._batch, up_to)
            self._after_write.append(replica.raft.compacted)
            self._dirty.add(replica.range_id)

    # ---- Ending ----

    def forget(self, range_id: RangeId) -> None:
        """Drop what is kept of a replica that is gone."""
        self._to_apply.pop(range_id, None)
        self._marks.pop(range_id, None)
        self.awake.discard(range_id)
        self._dirty.discard(range_id)

    def abandon(self) -> None:
        """Tell everyone who waits that the store has stopped."""
        for range_id in sorted(self._replicas):
            replica = self._replicas[range_id]
            replica.is_destroyed = True
            replica.end_lease()
            replica.fail_pending(AmbiguousResult("the store has stopped"))


def follows(replica: Replica) -> StoreId | None:
    """Give the store of the leader whom our promise protects from this replica's vote."""
    followed = replica.raft.followed
    return None if followed == NO_REPLICA else replica.stores.get(followed)


def is_quiet(replica: Replica, promises: Callable[[StoreId], bool]) -> bool:
    """Say whether a replica needs no ticks: it hears of a dead leader by the end of its store's promise.

    A leader without a quorum's support does need them, to step down: it may be heard and not hear, and would be supported for ever.
    It does not wait for followers on stores that support it no more: with their next support they are thought of again.
    """
    raft, context = replica.raft, replica.context
    if replica.is_leaving:
        return False
    if raft.role is Role.LEADER:
        now = context.clock.now()

        def is_dead(replica_id: ReplicaId) -> bool:
            store = replica.stores.get(replica_id)
            return store is not None and context.liveness.supported_until(store) <= now

        return raft.is_quiet_but_for(is_dead) and replica.holds_lease(now)
    if not raft.is_quiet:
        return False
    store = follows(replica)
    return store is not None and promises(store)
