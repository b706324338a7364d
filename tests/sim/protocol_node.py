"""A node of the protocol simulator: the production classes below SQL, wired as `dsdb.node.parts` wires them, without RPC, SQL and jobs.

    Store, Issuer, OracleClient, Router, Settlement, Finisher, Janitor, LockKeeper, MetaWriter, TransactionFactory

A host lives on; each of its lives is a `SimNode`.  A dead one's tasks are cancelled, and end for good as soon as they look at their clock,
their disk or the network.
"""

import random
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import msgspec
import trio

from dsdb.coordinator import MetaWriter
from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor
from dsdb.kv.errors import KvError
from dsdb.kv.ids import FIRST_TABLE_RANGE, SYSTEM_RANGE, NodeId, RangeId, StoreId
from dsdb.kv.requests import CollectGarbageRequest
from dsdb.node import parts
from dsdb.oracle import ISSUE, Issuer, IssueReply, IssueRequest, OracleClient
from dsdb.raft.messages import HardState, Membership, ReplicaId
from dsdb.ranges import KV_CALL, Router
from dsdb.rpc import Peers
from dsdb.storage import mvcc
from dsdb.storage.datum import Kind
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.errors import StorageError
from dsdb.storage.keys import KEY_MAX, KEY_MIN, SYSTEM_END, meta_key
from dsdb.storage.rowarrow import LayoutColumn
from dsdb.storage.rowcodec import RowLayout
from dsdb.storage.timestamp import Timestamp, from_milliseconds
from dsdb.store import SnapshotHeader, Store, StoreConfig, StoreFrame, StoreIdentity
from dsdb.store.identity import write_identity
from dsdb.store.state import INITIAL_INDEX, INITIAL_TERM, Applied, ReplicatedState, encode_descriptor, put_new_replica
from dsdb.store.store import BOOTSTRAP_TS
from dsdb.txn import AttemptIds, Finisher, Janitor, LockKeeper, Settlement, TransactionFactory, TxnCounters
from tests.checkers.history import Violation
from tests.sim.protocol_loop import EventHeap, freezer
from tests.sim.protocol_network import HostDied, Network, Wire

T = TypeVar("T")
LAYOUT = RowLayout(layout_id=1, columns=(LayoutColumn(column_id=1, kind=Kind.BYTES),))
"""Of the rows that clients write."""
SYNC_S = (0.0005, 0.001, 0.002, 0.01)


class HostClock:
    """A host's clock: may run a little fast or slow, and starts anywhere; its wall clock may jump."""

    def __init__(self, heap: EventHeap, chance: random.Random) -> None:
        self._heap = heap
        self._base_s = chance.random() * 1000
        self._since = 0.0
        self._rate = 1.0
        self.wall_jump_ms = 0

    def now(self) -> float:
        return self._base_s + (self._heap.now - self._since) * self._rate

    def drift(self, rate: float) -> None:
        """Run so fast from now on."""
        self._base_s, self._since, self._rate = self.now(), self._heap.now, rate

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + int(self._heap.now * 1000) + self.wall_jump_ms


class _LifeClock:
    """A host's clock, in one life of its node."""

    def __init__(self, node: "SimNode", clock: HostClock) -> None:
        self._node = node
        self._clock = clock

    def now(self) -> float:
        if self._node.is_dead:
            raise HostDied
        return self._clock.now()

    def wall_ms(self) -> int:
        return self._clock.wall_ms()


class SimDisk:
    """Runs calls in the loop after a seeded delay, as a disk would."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.slowness = 1

    async def run(self, call: Callable[[], T]) -> T:
        with trio.CancelScope(shield=True):
            await trio.sleep(self._chance.choice(SYNC_S) * self.slowness)
        return call()

    def run_promptly(self, call: Callable[[], object]) -> bool:
        is_prompt = self.slowness == 1 and self._chance.random() < 0.5
        if is_prompt:
            call()
        return is_prompt

    def close(self) -> None:
        pass


@dataclass
class Host:
    """A machine: what survives its crash."""

    node_id: int
    engine: MemoryEngine
    clock: HostClock
    disk: SimDisk
    worker: SimDisk
    """Where rows are folded, and blocks encoded: with its own chance, so that a run is the same without."""
    node: "SimNode | None" = None
    """Its present life; None while it is down."""
    founded: tuple[RangeDescriptor, ...] = ()
    """How ranges were in the beginning, for a host that has none of them."""
    starts: int = 0
    died: trio.Event = field(default_factory=trio.Event)


class _Layouts:
    """The layout of all rows that clients write; what the simulation itself writes is none."""

    async def layouts_of(self, database_id: int, table_id: int, index_id: int) -> Mapping[int, RowLayout]:
        return {LAYOUT.layout_id: LAYOUT}


class SimNode:
    """One life of a node."""

    nursery: trio.Nursery

    def __init__(self, host: Host, network: Network, config: StoreConfig, chance: random.Random) -> None:
        self.host = host
        self.node_id = host.node_id
        self.is_dead = False
        self.is_frozen = False
        self.thaws = 0
        self.held: list[Callable[[], None]] = []
        self._root: Any = None
        self._clock = clock = _LifeClock(self, host.clock)
        wire = Wire(network, self)
        peers = cast(Peers, wire)
        node_id = NodeId(host.node_id)
        timestamps = parts._LateTimestamps()
        self.store = store = Store(
            engine=host.engine,
            identity=identity(host.node_id),
            config=config,
            clock=clock,
            random=chance,
            disk=host.disk,
            transport=wire,
            timestamps=timestamps,
            worker=host.worker,
        )
        store.folding.layouts = _Layouts()
        self.issuer = Issuer(parts._SystemRange(store), clock)
        self.router = router = Router(node_id=node_id, local=store, peers=peers, clock=clock)
        for desc in (*host.founded, *store.descriptors()):
            router.cache.update(desc)
        self.oracle = OracleClient(node_id=node_id, issuer=self.issuer, cache=router.cache, peers=peers, clock=clock)
        timestamps.source = self.oracle
        self.counters = TxnCounters()
        self.finisher = Finisher(router, self.oracle, self.counters)
        self.keeper = LockKeeper(router, self.oracle)
        settlement = Settlement(router, self.oracle, self.counters)
        store.use_settler(settlement)
        self.janitor = Janitor(store, router, self.oracle, settlement, self.finisher, self.counters)
        self.transactions = TransactionFactory(
            router=router,
            oracle=self.oracle,
            attempts=AttemptIds(node_id, host.starts),
            finisher=self.finisher,
            keeper=self.keeper,
            counters=self.counters,
            worker=host.worker,
        )
        self.meta = MetaWriter(
            self.transactions, is_leaseholder=lambda range_id: store.leaseholder_hint(range_id) == StoreId(host.node_id)
        )
        store.on_descriptor_applied(self._descriptor_applied)
        store.on_lease_changed(self._lease_changed)
        self.handlers = {KV_CALL.number: (store.try_serve, store.serve), ISSUE.number: (self._issue_fast, self._issue)}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Live until killed."""
        self._root = trio.lowlevel.current_task()
        was_killed = False
        try:
            async with trio.open_nursery() as self.nursery:
                await self.nursery.start(self.store.run)
                await self.nursery.start(self.issuer.run)
                await self.nursery.start(self.finisher.run)
                await self.nursery.start(self.keeper.run)
                await self.nursery.start(self.meta.run)
                self.nursery.start_soon(self.janitor.run)
                task_status.started()
        except* (HostDied, StorageError):
            # What a dying process meets; a living one must not.
            if not self.is_dead:
                raise
        finally:
            # Whatever ended it: nothing more is handed to it.
            was_killed, self.is_dead = self.is_dead, True
        if not was_killed:
            raise Violation(f"node {self.node_id} ended by itself")

    def kill(self) -> None:
        """End this life: from now on it does nothing that anybody could notice."""
        self.thaw()
        self.is_dead = True
        self.held.clear()
        self.nursery.cancel_scope.cancel()

    # ---- A process that is stopped, and goes on ----

    def freeze(self) -> None:
        """Let it take no step; its clock goes on."""
        self.is_frozen = True
        freezer().freeze(self._root)

    def thaw(self) -> None:
        """Let it go on, with all that came meanwhile."""
        if self.is_frozen:
            self.is_frozen = False
            self.thaws += 1
            freezer().thaw(self._root)
            held, self.held = self.held, []
            for deliver in held:
                deliver()

    async def collect_garbage(self, key: bytes, age_s: float) -> None:
        """Have old versions collected in the range of a key, if it is led here."""
        desc = self.store.descriptor_for(key)
        if desc is None or not self.store.holds_lease(desc.range_id):
            return
        try:
            threshold = Timestamp(await self.oracle.fresh() - from_milliseconds(int(age_s * 1000)))
            await self.store.serve(CollectGarbageRequest(desc.range_id, max(threshold, Timestamp(1))))
        except (KvError, HostDied):
            pass

    def campaign(self) -> None:
        """Have all replicas campaign, as far as they may."""
        for range_id, replica in sorted(self.store._replicas.items()):
            if not replica.is_installing:
                replica.raft.campaign()
                self.store._loop.mark(range_id)

    # ---- What the network brings ----

    def receive(self, frame: StoreFrame) -> None:
        self.store.receive(frame)

    async def receive_snapshot(self, header: SnapshotHeader, chunks: AsyncIterator[bytes]) -> None:
        await self.store.receive_snapshot(header, chunks)

    def _issue_fast(self, request: IssueRequest) -> IssueReply | None:
        first = self.issuer.issue_nowait(request.count)
        return None if first is None else IssueReply(first)

    async def _issue(self, request: IssueRequest) -> IssueReply:
        return IssueReply(await self.issuer.issue(request.count, timeout_s=1.0))

    # ---- What the store tells ----

    def _descriptor_applied(self, desc: RangeDescriptor, is_leaseholder: bool) -> None:
        self.router.cache.update(desc, StoreId(self.node_id) if is_leaseholder else None)
        if is_leaseholder:
            self.meta.changed(desc)

    def _lease_changed(self, range_id: RangeId, is_leaseholder: bool) -> None:
        if is_leaseholder:
            for desc in self.store.descriptors():
                if desc.range_id == range_id:
                    self.router.cache.update(desc, StoreId(self.node_id))
                    self.meta.changed(desc)


def identity(node_id: int) -> StoreIdentity:
    return StoreIdentity(cluster_id="sim", node_id=NodeId(node_id), store_id=StoreId(node_id))


def found_empty(engine: MemoryEngine, node_id: int) -> None:
    """Put a store into an engine that has no replica."""
    batch = engine.new_batch()
    write_identity(engine, batch, identity(node_id))
    engine.write(batch)
    engine.sync()


def found(engine: MemoryEngine, node_id: int, nodes: int, boundaries: list[bytes]) -> tuple[RangeDescriptor, ...]:
    """Put a store into an engine whose cluster has its ranges already, each with a replica on every store; give them."""
    replicas = tuple(ReplicaDescriptor(ReplicaId(number), NodeId(number), StoreId(number)) for number in range(1, nodes + 1))
    membership = Membership(voters=tuple(replica.replica_id for replica in replicas))
    starts = [SYSTEM_END, *boundaries]
    spans = {SYSTEM_RANGE: (KEY_MIN, SYSTEM_END)}
    for number, start in enumerate(starts):
        spans[RangeId(FIRST_TABLE_RANGE + number)] = start, (*starts, KEY_MAX)[number + 1]
    batch = engine.new_batch()
    write_identity(engine, batch, identity(node_id))
    founded = []
    for range_id, (start, end) in spans.items():
        desc = RangeDescriptor(range_id, start, end, 1, replicas, ReplicaId(nodes + 1))
        founded.append(desc)
        state = ReplicatedState(descriptor=desc, membership=membership, mark=BOOTSTRAP_TS)
        put_new_replica(
            batch, state, Applied(INITIAL_INDEX, INITIAL_TERM), hard_state=HardState(term=INITIAL_TERM, commit=INITIAL_INDEX)
        )
        mvcc.put(batch, meta_key(end), BOOTSTRAP_TS, encode_descriptor(desc))
    engine.write(batch)
    engine.sync()
    return tuple(founded)


def elastic(config: StoreConfig, faults: tuple[str, ...]) -> StoreConfig:
    """Give a configuration with which ranges so small are sent in parts, and looked at often, as the faults want it."""
    config = msgspec.structs.replace(
        config, snapshot_chunk_bytes=60, snapshot_part_bytes=200, snapshot_retry_s=0.3, snapshot_patience_s=5.0, change_timeout_s=30.0
    )
    if "snapshots" in faults:
        config = msgspec.structs.replace(config, log_keep_entries=4)
    if "damage" in faults:
        config = msgspec.structs.replace(config, check_interval_s=4.0)
    return config


def folding(config: StoreConfig, chance: random.Random) -> StoreConfig:
    """Give a configuration with which a few rows are folded, and soon."""
    return msgspec.structs.replace(
        config,
        folds=True,
        fold_look_s=chance.choice((0.05, 0.2)),
        fold_quiet_s=chance.choice((0.02, 0.2)),
        fold_rest_s=chance.choice((0.3, 1.0)),
        fold_busy_writes=16,
        fold_range_bytes_min=1,
        fold_versions_min=chance.choice((1, 3)),
        fold_rest_versions=1,
        fold_batch_versions=chance.choice((2, 8)),
        fold_block_rows=chance.choice((2, 3, 8)),
        fold_share=1.0,
        garbage_chunk_rows=chance.choice((3, 8192)),
    )


def store_config(chance: random.Random) -> StoreConfig:
    """Draw the limits of stores: those that cost memory are small now and then, so that what is beyond them happens."""
    is_tight = chance.random() < 0.3
    forgets_soon = chance.random() < 0.2
    config = msgspec.structs.replace(
        parts.StoreConfig(),
        # Half as often as usual: signs of life are most of what a cluster at rest does.
        support_interval_s=0.3,
        support_duration_s=1.5,
        closed_interval_s=0.6,
        log_keep_entries=chance.choice((4, 16, 2048)),
    )
    if is_tight:
        config = msgspec.structs.replace(
            config, timestamp_cache_points_max=4, timestamp_cache_spans_max=4, verdicts_max=4, passable_max=4, locks_max=4
        )
    if forgets_soon:
        config = msgspec.structs.replace(config, outcome_keep_ms=2_000, outcome_floor_step_ms=200)
    return config
