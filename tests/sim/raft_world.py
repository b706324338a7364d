"""A Raft group on an event heap: hosts with disks that forget, a network that misbehaves, clocks that drift, and a checker that sees all.

Each host is one store with one replica. Hosts promise each other support for a duration, counted by each on its own clock, as stores do; a
leader believes in its lease while a quorum promises (`RaftNode.quorum_active`). Everything follows from one seed: same seed, same trace.

Not here: what clients and faults do (`raft_sim`), and what must hold (`raft_checker`).
"""

import heapq
import random
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from dsdb.raft.config import RaftConfig
from dsdb.raft.messages import (
    NO_REPLICA,
    Entry,
    EntryKind,
    InstallSnapshot,
    Membership,
    Message,
    ReplicaId,
    SnapshotMetadata,
    decode_config_entry,
)
from dsdb.raft.node import RaftNode
from dsdb.raft.ready import Ready, Role, StableMark
from tests.raft.disk import Disk
from tests.sim.raft_checker import Checker, require

TICK_MS = 20  # on the host's clock
SUPPORT_INTERVAL_MS = 50  # between requests for support
PROMISE_MS = 500  # how long a promise lasts, on the supporter's clock from receipt
DRIFT = 0.05  # clocks run between 1 - DRIFT and 1 + DRIFT of true time
LEASE_MS = PROMISE_MS * (1 - 2 * DRIFT)  # how long the supported relies on it, on its own clock from sending the request
BORN_AT = 3  # index of the state that the first replicas are born with; a later one has to take a snapshot, which tells it the membership
CONFIG = RaftConfig(election_ticks=10, heartbeat_ticks=2, inflight_messages_max=8, append_bytes_max=200, apply_bytes_max=300)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a run is made of. The defaults are right; a mutant breaks one of them."""

    node_class: type[RaftNode] = RaftNode
    sits_out: bool = True  # a host bars votes for the longest promise after its start
    acks_after_sync: bool = True  # messages_after_sync wait for the disk
    renews_support: bool = True  # a new period of support is told to the leader


@dataclass
class Promise:
    """Support that a host gives to another."""

    until: float = -1.0  # on the supporter's clock
    period: int = 0  # uninterrupted stretches so far


@dataclass
class Support:
    """Support that a host has from another."""

    until: float = -1.0  # on the supported one's clock
    period: tuple[int, int] = (0, 0)  # (incarnation of the supporter, its period)


@dataclass
class SyncJob:
    """A Ready that waits for the disk."""

    writes: int  # not yet durable when it was handed out
    mark: StableMark | None
    messages: tuple[Message, ...]


@dataclass
class Host:
    """A store with one replica. `node` is None while it is down."""

    replica: ReplicaId
    disk: Disk
    rate: float  # of its clock against true time
    applies_late: bool
    sync_ms_max: int
    node: RaftNode | None = None
    incarnation: int = 0
    barred_until: float = 0.0  # on its clock
    promises: dict[ReplicaId, Promise] = field(default_factory=dict)
    supports: dict[ReplicaId, Support] = field(default_factory=dict)
    sync_queue: deque[SyncJob] = field(default_factory=deque)
    is_syncing: bool = False
    apply_queue: deque[tuple[Entry, ...]] = field(default_factory=deque)
    inbox: dict[int, list[tuple[int, int, bytes]]] = field(default_factory=dict)  # snapshot data that has arrived, by index
    proposed: dict[int, int] = field(default_factory=dict)  # index → term of own proposals not yet decided
    reads: dict[bytes, int] = field(default_factory=dict)  # context → what was acknowledged when it was asked
    last_commit: int = 0
    was_leader_of: int = 0  # the last term it was seen to lead


_encoder = msgspec.msgpack.Encoder()


class World:
    """All of one run but what clients and faults do to it. `run()` raises Violation when a property breaks."""

    def __init__(self, seed: int, rules: Rules | None = None) -> None:
        self.rules = rules or Rules()
        self.chance = random.Random(seed)
        self.seed = seed
        self.now = 0.0  # true time in ms
        self.checker = Checker(BORN_AT)
        self.counts = self.checker.counts
        self.trace = 0
        self.events = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._sequence = 0
        self._cut: set[tuple[ReplicaId, ReplicaId]] = set()  # one-way; only asked about, never iterated
        self._mute: set[ReplicaId] = set()  # whose Raft messages are lost while support flows; only asked about
        self._drop = 0.0
        self._is_healed = False
        self._serial = 0  # of proposals and reads
        self._memberships: dict[int, Membership] = {}
        voters = tuple(ReplicaId(n) for n in range(1, self.chance.choice((1, 2, 3, 3, 4, 5)) + 1))
        self.hosts: dict[ReplicaId, Host] = {}
        # Without it hosts promise nothing, nobody holds a lease, and nobody sits out: elections are many more.
        self._uses_support = self.chance.random() < 0.7
        self._uses_quiescence = self._uses_support and self.chance.random() < 0.6
        for replica in voters:
            self._add_host(replica, Membership(voters=voters))

    # --- time -------------------------------------------------------------------------------------------------------------------------

    def _after(self, delay_ms: float, action: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (self.now + delay_ms, self._sequence, action))

    def run(self, seconds: float) -> None:
        """Let faults rage for a while, heal everything, and see that the group finds together."""
        self._until(seconds * 1000)
        self._heal()
        self._until(self.now + 6000)
        self._check_converged()

    def _until(self, end: float) -> None:
        while self._heap and self._heap[0][0] <= end:
            self.now, _, action = heapq.heappop(self._heap)
            self.events += 1
            action()
        self.now = end

    def _note(self, *what: object) -> None:
        self.trace = zlib.crc32(repr(what).encode(), self.trace)

    # --- hosts ------------------------------------------------------------------------------------------------------------------------

    def _add_host(self, replica: ReplicaId, membership: Membership) -> Host:
        rate = self.chance.choice((1 - DRIFT, 1.0, 1 + DRIFT))
        host = Host(
            replica=replica,
            disk=Disk(membership, born_at=BORN_AT if membership.voters else 0),
            rate=rate,
            applies_late=self.chance.random() < 0.4,
            sync_ms_max=self.chance.choice((4, 4, 60)),
        )
        self.hosts[replica] = host
        self._start(host, is_first=True)
        return host

    def _start(self, host: Host, *, is_first: bool = False) -> None:
        host.incarnation += 1
        host.node = self.rules.node_class(host.replica, CONFIG, host.disk, random.Random(self.chance.getrandbits(32)))
        host.promises, host.supports = {}, {}
        host.sync_queue, host.apply_queue = deque(), deque()
        host.is_syncing = False
        host.inbox, host.proposed, host.reads = {}, {}, {}
        host.last_commit = host.node.commit
        if self.rules.sits_out and self._uses_support and not is_first:
            host.barred_until = self._clock(host) + PROMISE_MS
        incarnation = host.incarnation
        self._after(self.chance.randrange(TICK_MS), lambda: self._tick(host, incarnation))
        if self._uses_support:
            self._after(self.chance.randrange(SUPPORT_INTERVAL_MS), lambda: self._ask_support(host, incarnation))

    def _crash(self, host: Host, restart_ms: int = 0) -> None:
        host.node = None
        survive = self.chance.randrange(host.disk.pending + 1)
        host.disk.crash(survive)
        self.counts["crash"] += 1
        self._note("crash", host.replica, survive)
        incarnation = host.incarnation
        delay = restart_ms or self.chance.choice((5, 50, 200, 1500))
        self._after(delay, lambda: self._start(host) if host.node is None and host.incarnation == incarnation else None)

    def _clock(self, host: Host) -> float:
        return self.now * host.rate

    def _is_current(self, host: Host, incarnation: int) -> bool:
        return host.node is not None and host.incarnation == incarnation

    def _tick(self, host: Host, incarnation: int) -> None:
        if not self._is_current(host, incarnation):
            return
        node = self._prepared(host)
        supported = node.followed != NO_REPLICA and self._promise_stands(host, node.followed)
        if self._uses_quiescence and node.is_quiet_but_for(lambda r: not self._has_support(host, r)) and (node.role is Role.LEADER or
        supported):
            self.counts["tick spared"] += 1
            self._check_lease(host, node)
        else:
            node.tick()
            self._pump(host)
        self._after(TICK_MS / host.rate, lambda: self._tick(host, incarnation))

    def _prepared(self, host: Host) -> RaftNode:
        """Tell the replica what its store knows of promises at this moment; give it."""
        node = host.node
        assert node is not None
        node.set_votes_barred(self._clock(host) < host.barred_until)
        node.set_leader_supported(node.followed != NO_REPLICA and self._promise_stands(host, node.followed))
        return node

    # --- what Ready asks for ----------------------------------------------------------------------------------------------------------

    def _pump(self, host: Host) -> None:
        """Obey every Ready, then check."""
        node = host.node
        assert node is not None
        while node.has_ready:
            if node.role is Role.LEADER and node.commit > host.last_commit:
                # Before anything is applied: the membership that counted is the one before.
                self.checker.on_commit(node, {replica: other.disk for replica, other in self.hosts.items()})
                host.last_commit = node.commit
            self._obey(host, node, node.ready())
            self._start_sync(host)
        if node.role is Role.LEADER:
            if host.was_leader_of != node.term:
                host.was_leader_of = node.term
                self.counts["leader elected"] += 1
                self._note("leader", host.replica, node.term)
                self.checker.on_leader(node, host.incarnation, host.disk)
            self._check_lease(host, node)
        host.last_commit = node.commit

    def _obey(self, host: Host, node: RaftNode, ready: Ready) -> None:
        disk = host.disk
        if (snapshot := ready.snapshot) is not None:
            machine, hard = host.inbox.pop(snapshot.index), ready.hard_state
            self.checker.on_install(host.replica, machine)
            disk.write(lambda image: image.install(snapshot, machine, hard))
            host.apply_queue.clear()
            node.applied(snapshot.index)
            self.counts["snapshot installed"] += 1
        if ready.hard_state is not None or ready.entries:
            hard, entries = ready.hard_state, ready.entries
            if entries and entries[0].index <= disk.last_index():
                self.counts["log truncated"] += 1
            disk.write(lambda image: image.write(hard, entries))
            self.checker.on_write(disk, entries)
        for message in ready.messages:
            self._send(message)
        for read in ready.read_states:
            acknowledged = host.reads.pop(read.context)
            if read.index is not None:
                self.checker.on_read(host.replica, read.index, acknowledged)
        if not self.rules.acks_after_sync or (ready.stable is None and not host.sync_queue and not host.is_syncing):
            for message in ready.messages_after_sync:
                self._send(message)
            after_sync: tuple[Message, ...] = ()
        else:
            after_sync = ready.messages_after_sync
        if ready.stable is not None or after_sync:
            host.sync_queue.append(SyncJob(writes=disk.pending, mark=ready.stable, messages=after_sync))
        if ready.committed:
            host.apply_queue.append(ready.committed)
            if host.applies_late:
                incarnation = host.incarnation
                self._after(self.chance.choice((1, 3, 40)), lambda: self._apply_next(host, incarnation))
            else:
                self._apply(host, node, host.apply_queue.popleft())

    def _apply_next(self, host: Host, incarnation: int) -> None:
        if self._is_current(host, incarnation) and host.apply_queue:
            self._apply(host, self._prepared(host), host.apply_queue.popleft())
            self._pump(host)

    def _apply(self, host: Host, node: RaftNode, entries: tuple[Entry, ...]) -> None:
        self.checker.on_apply(host.replica, entries)
        for entry in entries:
            if entry.kind is EntryKind.CONFIG:
                membership = node.apply_membership(decode_config_entry(entry.data).change)
                self.checker.on_membership(host.replica, entry.index, membership, self._memberships)
                self.counts["joint entered" if membership.is_joint else "membership applied"] += 1
            if host.proposed.pop(entry.index, 0) == entry.term:
                # Whoever proposed it is told: from now on it must never be lost, nor missed by a read.
                self.checker.acknowledged_index = max(self.checker.acknowledged_index, entry.index)
                self.counts["acknowledged"] += 1
        membership = node.membership
        host.disk.write(lambda image: image.apply(entries, membership))
        node.applied(entries[-1].index)

    def _start_sync(self, host: Host) -> None:
        if host.is_syncing or not host.sync_queue:
            return
        host.is_syncing = True
        jobs, host.sync_queue = host.sync_queue, deque()
        incarnation, writes = host.incarnation, host.disk.pending
        delay = 200 if self.chance.random() < 0.02 else self.chance.randrange(1, 2 + host.sync_ms_max)

        def done() -> None:
            if not self._is_current(host, incarnation):
                return
            host.disk.sync(writes)
            host.is_syncing = False
            node = self._prepared(host)
            for job in jobs:
                if job.mark is not None:
                    if job.mark[1] != node.log.generation:
                        self.counts["stale sync reported"] += 1
                    node.stabled(*job.mark)
                    self.checker.on_stabled(node, host.disk)
                for message in job.messages:
                    self._send(message)
            self._pump(host)
            self._start_sync(host)

        self._after(delay, done)

    # --- the network ------------------------------------------------------------------------------------------------------------------

    def _transmit(self, sender: ReplicaId, to: ReplicaId, deliver: Callable[[Host], None]) -> None:
        """Deliver to a host that is up on arrival; or late, twice, or never."""
        if to not in self.hosts or (sender, to) in self._cut or self.chance.random() < self._drop:
            self.counts["message lost"] += 1
            return
        copies = 1
        if not self._is_healed and self.chance.random() < 0.02:
            copies = 2
            self.counts["message doubled"] += 1
        for _ in range(copies):
            delay = self.chance.randrange(1, 6)
            if not self._is_healed and self.chance.random() < 0.01:
                delay = self.chance.choice((50, 300, 1000))
                self.counts["message late"] += 1
            self._after(delay, lambda: deliver(self.hosts[to]) if self.hosts[to].node is not None else None)

    def _send(self, message: Message) -> None:
        if isinstance(message, InstallSnapshot):
            self._stream_snapshot(message)
            return
        if message.sender in self._mute or message.to in self._mute:
            self.counts["message muted"] += 1
            return
        self._transmit(message.sender, message.to, lambda host: self._deliver(host, message))

    def _deliver(self, host: Host, message: Message) -> None:
        self.trace = zlib.crc32(_encoder.encode(message), self.trace)
        self._prepared(host).step(message)
        self._pump(host)

    def _stream_snapshot(self, message: InstallSnapshot) -> None:
        source = self.hosts[message.sender]
        image = source.disk.written
        machine, index = list(image.machine), image.applied
        metadata = SnapshotMetadata(index=index, term=source.disk.term(index), membership=image.membership)
        actual = msgspec.structs.replace(message, snapshot=metadata)
        incarnation = source.incarnation
        ok = self.chance.random() < 0.8 or self._is_healed

        def arrive(host: Host) -> None:
            host.inbox[index] = machine
            self._deliver(host, actual)

        def report() -> None:
            if self._is_current(source, incarnation):
                self._prepared(source).report_snapshot(message.to, ok)
                self._pump(source)

        if ok:
            self._after(self.chance.randrange(10, 60), lambda: self._transmit(message.sender, message.to, arrive))
        self._after(80, report)

    # --- support ----------------------------------------------------------------------------------------------------------------------

    def _promise_stands(self, host: Host, to: ReplicaId) -> bool:
        promise = host.promises.get(to)
        return promise is not None and self._clock(host) < promise.until

    def _ask_support(self, host: Host, incarnation: int) -> None:
        if not self._is_current(host, incarnation):
            return
        sent = self._clock(host)
        for to in self.hosts:
            if to != host.replica:
                self._transmit(host.replica, to, lambda other: self._grant_support(other, host, incarnation, sent))
        self._after(SUPPORT_INTERVAL_MS / host.rate, lambda: self._ask_support(host, incarnation))

    def _grant_support(self, host: Host, asker: Host, asker_incarnation: int, sent: float) -> None:
        """Promise support from now on. A promise that had lapsed begins a new period."""
        promise = host.promises.setdefault(asker.replica, Promise())
        if not self._promise_stands(host, asker.replica):
            promise.period += 1
        promise.until = self._clock(host) + PROMISE_MS
        period = (host.incarnation, promise.period)
        self._transmit(host.replica, asker.replica, lambda _: self._take_support(asker, asker_incarnation, host.replica, period, sent))

    def _take_support(self, host: Host, incarnation: int, supporter: ReplicaId, period: tuple[int, int], sent: float) -> None:
        if not self._is_current(host, incarnation):
            return
        support = host.supports.setdefault(supporter, Support())
        if period < support.period:
            return
        if period > support.period or not self._has_support(host, supporter):
            if support.period != (0, 0):
                self.counts["support renewed"] += 1
            support.period, support.until = period, sent + LEASE_MS
            if self.rules.renews_support:
                self._prepared(host).renew_support(supporter)
                self._pump(host)
        support.until = max(support.until, sent + LEASE_MS)

    def _has_support(self, host: Host, supporter: ReplicaId) -> bool:
        support = host.supports.get(supporter)
        return supporter == host.replica or (support is not None and self._clock(host) < support.until)

    def _believes_in_lease(self, host: Host) -> bool:
        node = host.node

        def active(replica: ReplicaId) -> bool:
            return self._has_support(host, replica)

        # A lease serves nothing before the leader's first own entry is applied.
        return node is not None and node.role is Role.LEADER and node.log.applied >= node._own_from and node.quorum_active(active)

    def _check_lease(self, host: Host, node: RaftNode) -> None:
        if self._believes_in_lease(host):
            others = [other for other in self.hosts.values() if other is not host and self._believes_in_lease(other)]
            self.checker.on_lease(node, [other.node for other in others if other.node is not None])

    # --- the end ----------------------------------------------------------------------------------------------------------------------

    def _leaders(self) -> list[Host]:
        return [host for host in self.hosts.values() if host.node is not None and host.node.role is Role.LEADER]

    def _heal(self) -> None:
        self._is_healed = True
        self._cut.clear()
        self._mute.clear()
        self._drop = 0.0
        for host in self.hosts.values():
            if host.node is None:
                self._start(host)

    def _check_converged(self) -> None:
        """Liveness: with all faults gone there is a leader, and all members have applied all there is."""
        leaders = [host.node for host in self._leaders() if host.node is not None]
        require(bool(leaders), "a leader is found after healing", self.seed, [h.node.status() for h in self.hosts.values() if h.node])
        leader = max(leaders, key=lambda node: node.term)
        require(leader.commit == leader.log.last_index, "everything commits after healing", leader.status())
        for replica in leader.membership.members():
            node = self.hosts[replica].node
            assert node is not None
            require(node.log.applied == leader.commit, "every member catches up after healing", leader.status(), node.status())
        require(self.checker.acknowledged_index <= leader.commit, "nothing acknowledged is lost", self.checker.acknowledged_index)
        self.counts["write lost in a crash"] = sum(host.disk.lost_writes for host in self.hosts.values())
