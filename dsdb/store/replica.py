"""A replica: one copy of a range on this store, with its Raft core, its replicated state, its lease and what waits for it.

    lease:  leader of term t ─▶ own first entry applied (lease_term = t) ─▶ reads ─▶ low water known ─▶ writes
                                └── and a quorum of stores supports ours, asked at every request ──┘

Invariants:
- It serves only while it leads in `lease_term` and a quorum of voters' stores supports this store (`holds_lease`).
- The low water of a lease is a timestamp issued after the lease was won; the system range's is the mark, where the next oracle starts.
- A command is proposed once.  Its latches are held until it is applied, or known never to be, whoever waits for it.
- What was said of attempts without a record holds for as long as the lease, and its low water after (`verdicts`).
- A command whose waiter gave up may still be applied: AmbiguousResult.

Not here: what a request checks (`evaluate`); when the effects of the core are performed (`loop`).
"""

import logging
import math
from typing import TYPE_CHECKING

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.errors import (
    AmbiguousResult,
    DiskTrouble,
    KvError,
    KvErrorDetail,
    NotLeaseholder,
    RangeKeyMismatch,
    RangeNotFound,
    Refused,
    Unavailable,
)
from dsdb.kv.ids import SYSTEM_RANGE, AttemptId, RangeId, StoreId
from dsdb.kv.requests import CommitReply, Reply
from dsdb.raft.messages import NO_REPLICA, MembershipChange, ReplicaId
from dsdb.raft.node import RaftNode
from dsdb.raft.ready import Role
from dsdb.storage.columnar.rows import DeltaRows, FoldedRows, Rows
from dsdb.storage.engine.port import EngineSnapshot, Family
from dsdb.storage.errors import CorruptionError
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp, before
from dsdb.store.command import (
    ChangeReplicasCommand,
    Command,
    CommitCommand,
    EndTxnCommand,
    RefuseCommand,
    RemoveRecordsCommand,
    ResolveCommand,
    StageCommand,
    encode_command,
)
from dsdb.store.context import StoreContext
from dsdb.store.frame import ReplicaNotice
from dsdb.store.latches import Latch, Latches
from dsdb.store.locks import LockTable
from dsdb.store.log import ReplicaLog
from dsdb.store.state import (
    ReplicaKeys,
    ReplicatedState,
    log_prefix,
    read_applied,
    read_hard_state,
)
from dsdb.store.state_machine import Result, StateMachine, is_error
from dsdb.store.timestamp_cache import TimestampCache
from dsdb.store.verdicts import Verdicts
from dsdb.store.waiter import Waiter

if TYPE_CHECKING:
    from dsdb.store.key_sample import KeySample
    from dsdb.store.load import RangeLoad
    from dsdb.store.snapshot import Incoming

log = logging.getLogger("dsdb.store")


class Proposal:
    """A command on its way through the log."""

    __slots__ = ("command", "latch", "term", "waiter")

    def __init__(self, term: int, command: Command, latch: Latch | None, waiter: "Waiter[Reply]") -> None:
        self.term = term
        self.command = command
        self.latch = latch
        self.waiter = waiter


class Replica:
    """One replica of this store."""

    has_blocks: bool
    """The range may have columnar blocks: without, its rows are read alone.  False where there are some would lose rows."""

    def __init__(self, context: StoreContext, replica_id: ReplicaId, state: ReplicatedState) -> None:
        """Load it from the engine; `state` is its replicated state there, or, of one that waits for a Raft snapshot, a stand-in."""
        self.context = context
        self.range_id: RangeId = state.descriptor.range_id
        self.replica_id = replica_id
        self.keys = ReplicaKeys(self.range_id)
        engine, config = context.engine, context.config
        self.log = self._open_log(state)
        self.raft = RaftNode(replica_id, config.raft, self.log, context.chance)
        self.machine = StateMachine(engine, self.keys, state)
        self.latches = Latches()
        self.cache = TimestampCache(points_max=config.timestamp_cache_points_max, spans_max=config.timestamp_cache_spans_max)
        self.verdicts = Verdicts(verdicts_max=config.verdicts_max)
        self.locks = LockTable(silence_max_s=config.lock_silence_s, locks_max=config.locks_max)
        self.passable: dict[bytes, Timestamp] = {}
        """Attempt id → reads at or below this timestamp pass by its intents, as it never commits there."""
        self.committed: dict[bytes, Timestamp] = {}
        """Attempt → when it was committed, if many of its intents were met here before they were resolved."""
        self.pending: dict[int, Proposal] = {}
        """Log index → what this store proposed there, in its present or an earlier term."""
        self.stores: dict[ReplicaId, StoreId] = {}
        """Where the replicas of the range are, those included that sent us something and are not in our descriptor yet."""
        self.lease_term = 0
        """The term in which our first entry was applied; 0 or an old one: no lease."""
        self.low_term = 0
        """The lease term for which the low water is known: writes may be evaluated."""
        self._lease_until = 0.0
        """Up to when `holds_lease` need not ask again; 0 when something has changed."""
        self._low_waiters: list[Waiter[None]] = []
        self.promised: Timestamp = MIN_TIMESTAMP
        """What this leaseholder has closed: all that it evaluates later lies above."""
        self._logged: Timestamp = MIN_TIMESTAMP
        """The part of it that some command carries."""
        self._closed: Timestamp = MIN_TIMESTAMP
        """The highest promise that was seen to count."""
        self._resolved: Timestamp = MIN_TIMESTAMP
        self.campaign_at = math.inf
        """When to campaign, as the leader's store has lost our support."""
        self.wake_at = math.inf
        """When the keeper wakes this replica, which is one of very many that it has work for."""
        self.inquire_at = math.inf
        """When to ask the others whether this replica was removed: it has had no leader for a while."""
        self.split_from: tuple[RangeId, int] | None = None
        """The left side of the split that made it, and the split's place in its log; None of one that was loaded, or came otherwise."""
        self.snapshots_sent: dict[ReplicaId, int] = {}
        """Replicas that took a Raft snapshot from this one, and its index: they apply nothing of before."""
        self.is_changing = False
        """A change of replicas is under way."""
        self.requests = 0
        """Asked of it since it was last found idle (`load`)."""
        self.read_bytes = 0
        """Read by those requests."""
        self.load: RangeLoad | None = None
        """Averages, while it is in use."""
        self.sample: KeySample | None = None
        """Keys that are asked for, while it is busy."""
        self.incoming: Incoming | None = None
        """A Raft snapshot that the core is offered, or that is being installed."""
        self.is_installing = False
        """The data of a Raft snapshot is being copied: the core is left alone until it is there."""
        self.told_removed: dict[StoreId, tuple[StoreId, ...]] = {}
        """Stores that say that it was removed from its range, and the stores of all voters as each of them knows them."""
        self.is_destroyed = self.is_halted = False
        """Halted: the core found that a peer or the disk broke its word: it is not asked any more."""
        self.damage: str | None = None
        """Why the replica was taken out of service."""
        self.damaged_peers: dict[ReplicaId, str] = {}
        """Replicas on other stores that are out of service, as far as this leader has heard, and why."""
        self.look_for_blocks()
        self.learn_stores()

    def look_for_blocks(self) -> None:
        """Find out whether the range has columnar blocks: when it is loaded, and after its data was replaced as a whole."""
        start, end = self.descriptor.span
        try:
            self.has_blocks = self.context.engine.first(Family.INDEX, start, end) is not None
        except CorruptionError:
            # Whoever reads it finds that out, and takes this replica out of service: not the store.
            self.has_blocks = True

    @property
    def rows(self) -> Rows:
        """Give the rows as they are now, wherever their versions lie; not to be read across a wait."""
        return self.context.folded_rows if self.has_blocks else self.context.delta_rows

    def rows_of(self, snapshot: EngineSnapshot) -> Rows:
        """Give the rows of an engine snapshot that was taken just now."""
        return FoldedRows(self.context.blocks_of(snapshot)) if self.has_blocks else DeltaRows(snapshot)

    def _open_log(self, state: ReplicatedState) -> ReplicaLog:
        engine, keys = self.context.engine, self.keys
        initial = read_hard_state(engine, keys), state.membership, read_applied(engine, keys).index
        cache_bytes_max = self.context.config.log_cache_bytes_max
        return ReplicaLog(engine, log_prefix(self.range_id), keys, initial=initial, cache_bytes_max=cache_bytes_max)

    # ---- Where things are ----

    @property
    def descriptor(self) -> RangeDescriptor:
        """Give the applied descriptor."""
        return self.machine.state.descriptor

    def learn_stores(self) -> None:
        """Take over where the applied descriptor says the replicas are."""
        self.learn_stores_of(self.descriptor)

    def learn_stores_of(self, descriptor: RangeDescriptor) -> None:
        """Take over where a descriptor says the replicas are."""
        for replica in descriptor.replicas:
            self.stores[replica.replica_id] = replica.store_id

    @property
    def is_leaving(self) -> bool:
        """Say whether it was removed from its range, as it knows itself or was told."""
        return bool(self.told_removed) or self.has_removed(self.replica_id)

    @property
    def is_doomed(self) -> bool:
        """Say whether it is to go: it was removed from its range, and a majority of those who vote there now knows that.

        Before, those who do not know need its vote: they may have no quorum without it, or wait for it as long as its store lives.
        """
        told = self.told_removed
        return bool(told) and any(2 * sum(store in told for store in voters) > len(voters) for voters in told.values())

    def has_removed(self, replica_id: ReplicaId) -> bool:
        """Say whether the applied descriptor shows that a replica was removed: ids are given in order, and never again."""
        return replica_id < self.descriptor.next_replica_id and self.descriptor.replica(replica_id) is None

    def removal_of(self, replica_id: ReplicaId) -> ReplicaNotice:
        """Say that a replica was removed, as `has_removed` shows."""
        return ReplicaNotice(self.range_id, replica_id, tuple(member.store_id for member in self.descriptor.voters))

    @property
    def leader_store(self) -> StoreId | None:
        """Give the store of the leader, if it is known."""
        leader = self.raft.leader
        return None if leader == NO_REPLICA else self.stores.get(leader)

    def touch(self) -> None:
        """Have the loop look at the core, and tick it until it is quiet."""
        self.context.on_dirty(self.range_id)

    # ---- Lease ----

    @property
    def is_leader(self) -> bool:
        """Say whether the core leads."""
        return self.raft.role is Role.LEADER

    def holds_lease(self, now: float) -> bool:
        """Say whether this replica may serve at this moment."""
        raft = self.raft
        if raft.role is not Role.LEADER or raft.term != self.lease_term:
            return False
        return now < self._lease_until or self._renew_lease(now)

    def _renew_lease(self, now: float) -> bool:
        if self.damage is not None or self.is_destroyed or self.is_installing:
            return False
        until = math.inf
        liveness = self.context.liveness

        def is_active(replica_id: ReplicaId) -> bool:
            nonlocal until
            if replica_id == self.replica_id:
                return True
            store = self.stores.get(replica_id)
            supported_until = 0.0 if store is None else liveness.supported_until(store)
            if supported_until <= now:
                return False
            until = min(until, supported_until)
            return True

        if not self.raft.quorum_active(is_active):
            return False
        self._lease_until = until
        return True

    def doubt_lease(self) -> None:
        """Ask again at the next request: support, membership or role has changed."""
        self._lease_until = 0.0

    def require_lease(self) -> None:
        """Raise KvError unless this replica may serve at this moment."""
        if not self.holds_lease(self.context.clock.now()):
            if self.wake_at < math.inf:
                self.context.on_wanted(self.range_id)
            raise KvError(self.no_lease())

    def require_writable(self) -> None:
        """Raise KvError unless this replica may serve, and knows the low water of its lease."""
        self.require_lease()
        if self.low_term != self.lease_term:
            raise KvError(Unavailable(f"range {self.range_id} has a new leaseholder that waits for its first timestamp"))

    def no_lease(self) -> KvErrorDetail:
        """Say why this replica cannot serve, and who probably can."""
        if self.damage is not None:
            return DiskTrouble(self.damage, damaged=True)
        if self.is_destroyed:
            return RangeNotFound(self.range_id)
        leader = self.leader_store
        return NotLeaseholder(self.range_id, None if leader == self.context.store_id else leader, self.descriptor)

    def start_lease(self, term: int) -> bool:
        """Note that the first entry of our own term is applied.  Say whether a low water must be fetched."""
        self.lease_term = term
        self.context.asked.add(self.range_id)
        self.doubt_lease()
        self._give_up_older(term)
        if self.range_id == SYSTEM_RANGE:
            self.take_low_water(term, self.machine.state.mark)
            return False
        return True

    def _give_up_older(self, term: int) -> None:
        """Give up on what we proposed in earlier terms and is not in the log with which we lead.

        Another leader may still commit it, after us; while we lead nothing waits for it, and its place in the log will be another's.
        """
        for index in sorted(index for index, proposal in self.pending.items() if proposal.term < term):
            detail = AmbiguousResult(f"a command of range {self.range_id} is not in the log of its new leader")
            self.finish(self.pending.pop(index), detail)

    def take_low_water(self, term: int, low: Timestamp) -> None:
        """Let the writes of a lease begin above `low`."""
        if term != self.lease_term or term != self.raft.term:
            return
        self.cache.raise_low(low)
        if self.range_id != SYSTEM_RANGE:
            # It was issued, and lies above all that earlier leaseholders closed.
            self.promised = max(self.promised, low)
        self.verdicts.begin(low)
        self.low_term = term
        waiters, self._low_waiters = self._low_waiters, []
        for waiter in waiters:
            waiter.settle(None)

    async def wait_low_water(self) -> None:
        """Wait until writes may be evaluated.  Raises KvError when the lease is lost or it takes too long."""
        while self.low_term != self.lease_term:
            waiter: Waiter[None] = Waiter()
            self._low_waiters.append(waiter)
            context = self.context
            detail = Unavailable(f"range {self.range_id} has a new leaseholder that waits for its first timestamp")
            context.deadlines.add(waiter, context.clock.now(), context.config.low_water_wait_s, detail)
            await waiter.wait()
            self.require_lease()

    def end_lease(self) -> None:
        """Turn away everyone who waits to be served; what was proposed stays, as it may still be committed."""
        self.doubt_lease()
        waiters, self._low_waiters = self._low_waiters, []
        for waiter in waiters:
            waiter.fail(self.no_lease())
        self.verdicts.tell_all()
        self.locks.clear()
        for latch in self.latches.waiting_latches():
            # Whoever waits looks at the lease next.
            if latch.on_granted is not None:
                latch.on_granted()

    def stop_load(self) -> None:
        """Forget the load of a range that is idle."""
        self.load = self.sample = None
        self.requests = self.read_bytes = 0

    def let_pass(self, attempt: AttemptId, ts: Timestamp) -> None:
        """Have reads at or below `ts` pass by an attempt's intents: it will never commit there."""
        passable = self.passable
        if ts > passable.get(attempt, MIN_TIMESTAMP):
            passable[attempt] = ts
            if len(passable) > self.context.config.passable_max:
                for oldest in list(passable)[: len(passable) // 2]:
                    del passable[oldest]

    def learn_committed(self, attempt: AttemptId, ts: Timestamp) -> None:
        """Have reads see an attempt's intents as what they will be: its record says that it is committed at `ts`, and so for ever."""
        self.committed[attempt] = ts
        while len(self.committed) > self.context.config.passable_max:
            del self.committed[next(iter(self.committed))]

    # ---- Closed timestamps ----

    def promise(self) -> None:
        """Close what may be closed now.  The lease must be held.

        To close a timestamp is to count all keys as read there by nobody: so reads at or below it are recorded before they are made,
        wherever they will be.
        """
        if self.context.closing > self.promised:
            self.promised = self.context.closing
            self.cache.raise_low(self.promised)

    def promise_in_log(self) -> Timestamp:
        """Give what the next command shall say is closed; MIN_TIMESTAMP if an earlier one has said it.  The lease must be held."""
        self.promise()
        if self.promised <= self._logged:
            return MIN_TIMESTAMP
        self._logged = self.promised
        return self.promised

    def keep_closed(self) -> Timestamp:
        """Give what is closed here as of the applied log, and remember it."""
        applied = self.machine.applied
        found = self.context.promises.closed(self.range_id, applied.index)
        self._closed = max(self._closed, applied.closed, found)
        return self._closed

    @property
    def is_written(self) -> bool:
        """Say whether the engine shows what `machine` has applied; not so while a batch is refused, or a Raft snapshot is copied."""
        return self.machine.applied.index == self.raft.log.applied and not self.is_installing

    def resolved_ts(self) -> Timestamp:
        """Give the timestamp at and below which this replica's versions are final, and all there: it only ever grows (rule 23)."""
        if self.is_written:
            intents = self.machine.intents
            if not intents.is_complete:
                self.context.on_intents_wanted(self)
            oldest_ts = min(intents.oldest_ts(), self.machine.provisional.oldest_ts())
            self._resolved = max(self._resolved, min(self.keep_closed(), before(oldest_ts)))
        return self._resolved

    def reads_past(self, ts: Timestamp) -> bool:
        """Say whether this replica may answer a read of the past without a lease.

        The read is not recorded: whoever closed the timestamp has counted all keys as read up to there (`promise`), and later
        leaseholders begin above.  No write is on its way there either, so latches are not looked at.
        """
        is_whole = self.damage is None and not (self.is_destroyed or self.is_installing or self.is_halted)
        return is_whole and ts <= self.resolved_ts()

    def takes_past_read(self, ts: Timestamp) -> bool:
        """Say whether to answer a read of the past without the lease, and count it: with the lease it is read like any other."""
        if self.holds_lease(self.context.clock.now()) or not self.reads_past(ts):
            return False
        self.context.follower_reads += 1
        return True

    # ---- Requests' common checks ----

    def require_keys(self, first: bytes, last: bytes) -> None:
        """Raise RangeKeyMismatch unless both keys lie in the range."""
        descriptor = self.machine.state.descriptor
        if not (descriptor.start_key <= first and last < descriptor.end_key):
            raise KvError(RangeKeyMismatch((descriptor,)))

    def require_span(self, span: Span) -> None:
        """Raise RangeKeyMismatch unless the span lies in the range."""
        descriptor = self.machine.state.descriptor
        if not (descriptor.start_key <= span.start and span.end <= descriptor.end_key):
            raise KvError(RangeKeyMismatch((descriptor,)))

    async def wait_latch(self, latch: Latch) -> None:
        """Wait until a latch is granted; it is given back if that fails.  Raises KvError."""
        if latch.is_granted:
            return
        context = self.context
        if self.latches.waiting > context.config.latch_waiters_max:
            self.latches.release(latch)
            raise KvError(Unavailable(f"range {self.range_id} has too many requests waiting for its latches"))
        waiter: Waiter[None] = Waiter()
        latch.on_granted = lambda: waiter.settle(None)
        detail = Unavailable(f"waited {context.config.latch_wait_s:g} s for latches in range {self.range_id}")
        context.deadlines.add(waiter, context.clock.now(), context.config.latch_wait_s, detail)
        try:
            await waiter.wait()
            self.require_lease()
            if not latch.is_granted:
                # Woken because the lease ended; that it is back already does not help.
                raise KvError(self.no_lease())
        except BaseException:
            self.latches.release(latch)
            raise

    async def wait_blocking(self, latch: Latch) -> None:
        """Wait, as a read, until an evaluated write is applied.  Raises KvError."""
        waiter: Waiter[None] = Waiter()
        latch.waiters.append(lambda: waiter.settle(None))
        context = self.context
        detail = Unavailable(f"waited {context.config.latch_wait_s:g} s for a write in range {self.range_id}")
        context.deadlines.add(waiter, context.clock.now(), context.config.latch_wait_s, detail)
        await waiter.wait()

    # ---- Proposing ----

    def propose(self, command: Command, latch: Latch | None) -> "Waiter[Reply]":
        """Send a command into the log; the latch is given back when its fate is known.  Raises KvError when it was not proposed."""
        context = self.context
        if context.disk_trouble is not None:
            raise KvError(DiskTrouble(context.disk_trouble))
        if len(self.pending) >= context.config.proposals_max:
            raise KvError(Unavailable(f"range {self.range_id} has too many commands on their way"))
        placed = self.raft.propose(encode_command(command))
        return self._await(placed, command, latch)

    def propose_change(self, change: MembershipChange, command: ChangeReplicasCommand) -> "Waiter[Reply]":
        """Send a membership change into the log.  Raises KvError when it was not proposed."""
        try:
            placed = self.raft.propose_membership(change, encode_command(command))
        except ValueError as error:
            raise KvError(Unavailable(f"the change of replicas does not fit: {error}")) from None
        return self._await(placed, command, None)

    def _await(self, placed: tuple[int, int] | None, command: Command, latch: Latch | None) -> "Waiter[Reply]":
        if placed is None:
            if self.is_leader:
                raise KvError(Unavailable(f"range {self.range_id} takes no commands now"))
            raise KvError(self.no_lease())
        index, term = placed
        waiter: Waiter[Reply] = Waiter()
        self.pending[index] = Proposal(term, command, latch, waiter)
        context = self.context
        detail = AmbiguousResult(f"a command of range {self.range_id} was not applied within {context.config.proposal_timeout_s:g} s")
        context.deadlines.add(waiter, context.clock.now(), context.config.proposal_timeout_s, detail)
        self.touch()
        return waiter

    def finish(self, proposal: Proposal, result: Result) -> None:
        """Tell what became of a command, and let its keys go."""
        for key, ts in self.machine.voided:
            # No version stays there that would bump a late copy of what was rolled back (rule 29).
            self.cache.note_key(key, ts, None)
        if proposal.latch is not None:
            self.latches.release(proposal.latch)
        command = proposal.command
        if type(command) is not CommitCommand:
            if isinstance(command, (StageCommand, EndTxnCommand)):
                self.verdicts.tell(command.meta.attempt)
            elif isinstance(command, RemoveRecordsCommand):
                for attempt in command.attempts:
                    self.verdicts.tell(attempt)
        if len(self.locks):
            self._release_locks(command)
        if is_error(result):
            proposal.waiter.fail(result)  # type: ignore[arg-type]  # is_error has looked
        else:
            proposal.waiter.settle(result)  # type: ignore[arg-type]  # as above

    def _release_locks(self, command: Command) -> None:
        """Give back the locks of attempts of whose outcome a command has told this range."""
        attempts: tuple[AttemptId, ...] = ()
        if isinstance(command, (CommitCommand, RefuseCommand)):
            attempts = (command.attempt,)
        elif isinstance(command, ResolveCommand):
            attempts = tuple([item.attempt for item in command.items])
        elif isinstance(command, EndTxnCommand) and command.resolve:
            attempts = (command.meta.attempt,)
        for attempt in attempts:
            self.locks.release(attempt, self.context.clock.now())

    def take_proposal(self, index: int, term: int) -> Proposal | None:
        """Give what was proposed at a place of the log that is now committed in `term`.

        One of another term was replaced, and will never be applied: that is told here.
        """
        proposal = self.pending.pop(index, None)
        if proposal is None or proposal.term == term:
            return proposal
        self.finish(proposal, self.no_lease())
        return None

    def settle_by_snapshot(self, index: int) -> None:
        """Tell what became of commands that a Raft snapshot stands for, as far as outcomes and records say it."""
        for at in sorted(self.pending):
            if at <= index:
                proposal = self.pending.pop(at)
                result = self._recorded(proposal.command)
                self.finish(proposal, result or AmbiguousResult(f"a command of range {self.range_id} may be part of a Raft snapshot"))

    def _recorded(self, command: Command) -> Result | None:
        """Give the result of a command that was applied or not, as far as the applied state says it."""
        if isinstance(command, CommitCommand):
            outcome = self.machine.outcomes.get(command.attempt)
            if outcome is not None:
                return Refused() if outcome.ts is None else CommitReply(outcome.ts)
        elif isinstance(command, (StageCommand, EndTxnCommand)):
            record = self.machine.records.get(command.meta.attempt)
            if record is not None and record.is_final:
                return record.reply()
        return None

    def fail_pending(self, detail: KvErrorDetail) -> None:
        """Give up on all commands: their fate will not be learnt here."""
        for index in sorted(self.pending):
            self.finish(self.pending.pop(index), detail)
