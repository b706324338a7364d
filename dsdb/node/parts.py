"""What a node is made of, wired: each part is given what it needs, and finds nothing by itself.

    accept ─┬─ first 8 bytes say a client ─▶ sessions ▸ executor ▸ transactions ▸ router ▸ (rpc) ▸ store
            └─ … or a node ────────────────▶ rpc ▸ store, issuer, fragments, membership

Read `NodeParts.__init__` and the three `_wire_…` below it from the bottom of the house to its top.
"""

import logging
import random
import shutil
from typing import Any

import trio

from dsdb import __version__
from dsdb.coordinator import Coordinator, MetaWriter
from dsdb.coordinator.events import EventLog
from dsdb.coordinator.gathering import REPORT, Member, ReportReply, ReportRequest
from dsdb.coordinator.splitter import Splitter
from dsdb.coordinator.view import NodeState
from dsdb.env import Address, Clock, Network, NodeListener, Offload
from dsdb.flow import FRAGMENT, LEADERS, FragmentRunner, Gatherer, Leaders
from dsdb.flow.leaders import ANSWER_S as LEADERS_ANSWER_S
from dsdb.jobs import Cleanup, Imports, VersionCollector
from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.errors import KvError
from dsdb.kv.ids import SYSTEM_RANGE, NodeId, RangeId, StoreId
from dsdb.kv.requests import RaiseMarkReply, RaiseMarkRequest, TransferLeaseRequest
from dsdb.node.activity import ACTIVITY, Activity
from dsdb.node.administration import NODES, SET_NODE_STATE, Administration
from dsdb.node.checking import CHECK_RANGE, COPIES, Checking
from dsdb.node.cluster_settings import ClusterSettings
from dsdb.node.cluster_view import NodeClusterView
from dsdb.node.config import NodeConfig
from dsdb.node.directory import Directory, NodeEntry
from dsdb.node.greeting import Greeter
from dsdb.node.lag import LoopLag
from dsdb.node.layouts import CatalogLayouts
from dsdb.node.membership import (
    CATALOG_RENEW,
    JOIN,
    MEET,
    CatalogRenewReply,
    CatalogRenewRequest,
    Membership,
)
from dsdb.node.opening import OpenStore
from dsdb.node.readiness import Readiness
from dsdb.node.splitting import RangeSplits
from dsdb.node.steering import SCATTER, UNDERWAY, Steering
from dsdb.node.transport import FRAME, SNAPSHOT, RpcTransport, SnapshotInstalled
from dsdb.oracle import ISSUE, Issuer, IssueReply, IssueRequest, OracleClient
from dsdb.ranges import KV_CALL, Router
from dsdb.rpc import Peers, Registry, RpcError, RpcServer
from dsdb.rpc.server import Hello
from dsdb.session.server import SessionServer
from dsdb.sql.catalog_lease import CatalogLeases
from dsdb.sql.errors import SqlError
from dsdb.sql.execute.engine import QueryEngine
from dsdb.sql.execute.services import Services
from dsdb.sql.execute.statement import StatementExecutor
from dsdb.sql.ports import PortError
from dsdb.storage.timestamp import Timestamp
from dsdb.store.config import StoreConfig
from dsdb.store.frame import SnapshotHeader, StoreFrame
from dsdb.store.store import Store
from dsdb.tls.credentials import NodeCredentials
from dsdb.txn import AttemptIds, Finisher, Janitor, LockKeeper, Settlement, TransactionFactory, TxnCounters

log = logging.getLogger("dsdb.node")

HANDOVER_LOOK_S = 0.01
"""Time between looks at whether another store leads what was handed over."""


class NodeParts:
    """What a node is made of, wired."""

    def __init__(
        self,
        config: NodeConfig,
        opened: OpenStore,
        address: Address,
        clock: Clock,
        network: Network,
        disk: Offload,
        worker: Offload,
        chance: random.Random,
        credentials: NodeCredentials | None = None,
    ) -> None:
        self.identity = opened.identity
        self._config = config
        self._opened = opened
        self._clock = clock
        self._credentials = credentials
        node_id = self.identity.node_id
        self.probe_addresses: dict[NodeId, Address] = {}
        self.directory = Directory(opened.engine)
        self.directory.merge(opened.nodes)
        own = self._own_entry(config, address)
        self.directory.merge([own])

        self.peers = Peers(network, clock, address_of=self._address_of)
        self.peers.hello = Hello(self.identity.cluster_id, node_id)
        transport = RpcTransport(self.peers, self._node_of)
        self._timestamps = _LateTimestamps()
        self.store = Store(
            engine=opened.engine,
            identity=self.identity,
            config=StoreConfig(),
            clock=clock,
            random=chance,
            disk=disk,
            transport=transport,
            timestamps=self._timestamps,
            worker=worker,
        )
        self._wire_transactions(own, worker)
        self._wire_cluster(own)
        self._wire_steering()
        self._wire_sql()
        self.lag = LoopLag()
        self.readiness = Readiness(self.oracle, clock)
        self.lease_changes = 0
        self.rpc = RpcServer(self._registry())
        self.rpc.cluster_id = self.identity.cluster_id
        self.greeter = Greeter(self.rpc, self.sessions, credentials)
        self.store.on_descriptor_applied(self._descriptor_applied)
        self.store.on_lease_changed(self._lease_changed)

    def _wire_transactions(self, own: NodeEntry, worker: Offload) -> None:
        """From the store up to transactions: the oracle, addressing, attempts."""
        opened, clock, node_id = self._opened, self._clock, self.identity.node_id
        self.issuer = Issuer(_SystemRange(self.store), clock)
        self.router = Router(node_id=node_id, local=self.store, peers=self.peers, clock=clock)
        if opened.system_range is not None:
            self.router.cache.update(opened.system_range)
        for desc in self.store.descriptors():
            self.router.cache.update(desc)
        self.oracle = OracleClient(node_id=node_id, issuer=self.issuer, cache=self.router.cache, peers=self.peers, clock=clock)
        self._timestamps.source = self.oracle
        self.txn_counters = TxnCounters()
        self.finisher = Finisher(self.router, self.oracle, self.txn_counters)
        self.lock_keeper = LockKeeper(self.router, self.oracle)
        settlement = Settlement(self.router, self.oracle, self.txn_counters)
        self.store.use_settler(settlement)
        self.janitor = Janitor(self.store, self.router, self.oracle, settlement, self.finisher, self.txn_counters)
        self.transactions = TransactionFactory(
            router=self.router,
            oracle=self.oracle,
            attempts=AttemptIds(node_id, own.started_ms),
            finisher=self.finisher,
            keeper=self.lock_keeper,
            counters=self.txn_counters,
            limits=self._config.transactions,
            worker=worker,
        )

    def _wire_cluster(self, own: NodeEntry) -> None:
        """What keeps the cluster together: the addressing index, the coordinator, the directory."""
        self.meta = MetaWriter(self.transactions, is_leaseholder=self._leads)
        self.events = EventLog(self.transactions, self._clock)
        self.coordinator = Coordinator(
            router=self.router,
            transactions=self.transactions,
            clock=self._clock,
            is_leader=lambda: self.store.holds_lease(SYSTEM_RANGE),
            members=self.members,
            ask=self._ask_for_report,
            split=lambda key: self.cluster.split((key,)),
            events=self.events,
            dead_after_s=self._config.dead_after_s,
        )
        self.cleanup = Cleanup(
            router=self.router,
            transactions=self.transactions,
            clock=self._clock,
            is_leader=lambda: self.store.holds_lease(SYSTEM_RANGE),
        )
        self.imports = Imports(node_id=self.identity.node_id, transactions=self.transactions, clock=self._clock)
        self.version_collector = VersionCollector(
            store=self.store, oracle=self.oracle, clock=self._clock, oldest_read=lambda: self.activity.oldest_read()
        )
        self.membership = Membership(
            cluster_id=self.identity.cluster_id,
            directory=self.directory,
            own=own,
            peers=self.peers,
            cache=self.router.cache,
            transactions=self.transactions,
            on_node=lambda _: self.coordinator.wake(),
        )
        self.administration = Administration(
            node_id=self.identity.node_id,
            coordinator=self.coordinator,
            peers=self.peers,
            coordinating_node=self._coordinating_node,
            on_state=self._node_state_told,
        )

    def _wire_steering(self) -> None:
        """What statements steer the cluster with."""
        self.cluster_settings = ClusterSettings(
            router=self.router,
            transactions=self.transactions,
            store=self.store,
            coordinator=self.coordinator,
            cleanup=self.cleanup,
            version_collector=self.version_collector,
        )
        self.steering = Steering(
            node_id=self.identity.node_id,
            administration=self.administration,
            settings=self.cluster_settings,
            coordinator=self.coordinator,
            peers=self.peers,
            coordinating_node=self._coordinating_node,
            transactions=self.transactions,
            imports=self.imports,
            clock=self._clock,
        )

    def _wire_sql(self) -> None:
        """From stages up to sessions."""
        self.engine = QueryEngine(spill_directory=self._spill_directory())
        self.fragments = FragmentRunner(self.store, self.engine)
        self.leaders = Leaders(
            node_id=self.identity.node_id,
            store=self.store,
            clock=self._clock,
            ask=lambda node_id, request: self.peers.call(node_id, LEADERS, request, timeout_s=LEADERS_ANSWER_S),
        )
        self.gatherer = Gatherer(router=self.router, peers=self.peers, runner=self.fragments, clock=self._clock, leaders=self.leaders)
        self.leases = CatalogLeases(
            node_id=self.identity.node_id,
            transactions=self.transactions.begin,
            fresh_timestamp=self._fresh_timestamp,
            notify=self._ask_to_renew,
        )
        self.store.folding.layouts = CatalogLayouts(self.leases, self._clock)
        self.activity = Activity(
            node_id=self.identity.node_id,
            transactions=lambda now_us: self.sessions.open_transactions(now_us),
            store=self.store,
            clock=self._clock,
            directory=self.directory,
            peers=self.peers,
        )
        self.checking = Checking(
            node_id=self.identity.node_id,
            store=self.store,
            router=self.router,
            peers=self.peers,
            transactions=self.transactions,
            directory=self.directory,
        )
        splits = RangeSplits(router=self.router, transactions=self.transactions, meta=self.meta, wake_coordinator=self.coordinator.wake)
        self.cluster = NodeClusterView(
            router=self.router,
            gatherer=self.gatherer,
            transactions=self.transactions,
            splits=splits,
            wake_coordinator=self.coordinator.wake,
            directory=self.directory,
            is_live=self.is_live,
            administration=self.administration,
            hurry_splitter=lambda: self.splitter.hurry(),
            activity=self.activity,
            checking=self.checking,
        )
        self.splitter = Splitter(loads=self.store.loads, split=splits.split, router=self.router, clock=self._clock, events=self.events)
        self.executor = StatementExecutor(
            Services(
                catalogs=self.leases,
                begin=self.transactions.begin,
                runner=self.gatherer,
                engine=self.engine,
                cluster=self.cluster,
                steering=self.steering,
                now=lambda: self._clock.wall_ms() * 1000,
                issued=lambda: self.oracle.latest,
                resolved=self.store.follower_read_ts,
            )
        )
        self.sessions = SessionServer(self.executor, node_id=self.identity.node_id, server_version=f"dsdb {__version__}")

    async def start(self, nursery: trio.Nursery) -> None:
        """Start every part, from the lowest up."""
        await nursery.start(self.lag.run)
        await nursery.start(self.peers.run)
        await nursery.start(self.store.run)
        await nursery.start(self.issuer.run)
        await nursery.start(self.finisher.run)
        await nursery.start(self.lock_keeper.run)
        await nursery.start(self.gatherer.serve)
        await nursery.start(self.meta.run)
        await nursery.start(self.membership.run)
        await nursery.start(self.events.run)
        await nursery.start(self.coordinator.run)
        await nursery.start(self.cluster_settings.run)
        await nursery.start(self.splitter.run)
        await nursery.start(self.cleanup.run)
        await nursery.start(self.imports.run)
        await nursery.start(self.version_collector.run)
        await nursery.start(self.sessions.run)
        nursery.start_soon(self.janitor.run)
        nursery.start_soon(self._run_leases)
        if self._config.http is not None:
            await nursery.start(self.readiness.run)

    async def found(self) -> None:
        """Write the first catalogue if there is none: a founder that died before it had is made good by whoever starts next."""
        await self.leases.found()

    async def accept(self, listener: NodeListener, nursery: trio.Nursery) -> None:
        """Take connections, for ever."""
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                log.warning("a connection was not accepted: %s", error)  # out of file descriptors: those in use go on
                await trio.sleep(0.1)
                continue
            nursery.start_soon(self.greeter.greet, stream)

    async def hand_over_leases(self) -> None:
        """Ask another replica of each range led here to lead it, so that nobody waits for this store's silence to be noticed.

        Returns when the others lead: what is still to be sent to them would go under with the node.
        """
        handed: list[RangeId] = []
        for desc in self.store.descriptors():
            if not self.store.holds_lease(desc.range_id):
                continue
            for replica in desc.voters:
                if replica.store_id != self.identity.store_id and self.store.is_live(replica.store_id):
                    try:
                        await self.store.serve(TransferLeaseRequest(desc.range_id, replica.store_id))
                    except KvError as error:
                        log.info("range %d: the lease was not handed over: %s", desc.range_id, error)
                    else:
                        handed.append(desc.range_id)
                    break
        own = (None, self.identity.store_id)
        while any(self.store.leaseholder_hint(range_id) in own for range_id in handed):  # noqa: ASYNC110 (once, at the end of a node)
            await trio.sleep(HANDOVER_LOOK_S)

    def members(self) -> list[Member]:
        """Give all stores that this node has heard of."""
        return [Member(store_id=entry.store_id, node_id=entry.node_id, locality=entry.locality) for entry in self.directory.entries()]

    def is_live(self, entry: NodeEntry) -> bool:
        """Say whether a node lives, as far as this one sees.

        Stores that share no range exchange no signs of life: then a connection is the sign.
        """
        is_own = entry.node_id == self.identity.node_id
        return is_own or self.store.is_live(entry.store_id) or self.peers.is_connected(entry.node_id)

    async def _ask_for_report(self, node_id: NodeId, request: ReportRequest, timeout_s: float) -> ReportReply:
        if node_id == self.identity.node_id:
            return await self._report(request)
        return await self.peers.call(node_id, REPORT, request, timeout_s=timeout_s)

    async def _report(self, request: ReportRequest) -> ReportReply:
        self.administration.told(request.node_state)
        for descriptor in request.strays:
            self.store.hear_of_range(descriptor)
        report = self.store.reports.report(request.life, request.since, request.count_max)
        return ReportReply(report, self._capacity_bytes())

    def _capacity_bytes(self) -> int:
        """Give what of its disk the store may have: its own bytes, and what is free."""
        if self._config.store is None:
            return 0
        return self.store.reports.size_bytes + shutil.disk_usage(self._config.store).free

    def _coordinating_node(self) -> NodeId | None:
        store_id = self.store.leaseholder_hint(SYSTEM_RANGE)
        if store_id is None:
            entry = self.router.cache.by_id(SYSTEM_RANGE)
            store_id = None if entry is None else entry.leaseholder
        return None if store_id is None else self._node_of(store_id)

    def _node_state_told(self, state: NodeState) -> None:
        """Obey what the administrator wants of this node; its leases are moved by the coordinator."""
        serves = state in (NodeState.ACTIVE, NodeState.DECOMMISSIONING)
        self.sessions.refuse_new(None if serves else f"the node is {state.value}")
        self.readiness.refuse(None if serves else f"the node is {state.value}")

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Say whether the node can serve statements, and how it is.  Called from the HTTP thread."""
        p99 = self.lag.quantile(0.99)
        problem = self.readiness.problem()
        return problem is None, {
            "status": "ok" if problem is None else "unavailable",
            "reason": problem,
            "cluster": self.identity.cluster_id,
            "node": self.identity.node_id,
            "version": __version__,
            "loop_lag_p99_ms": round(p99 * 1000, 2),
            "ranges": len(self.store.descriptors()),
        }

    def metrics(self) -> dict[str, tuple[str, float, bool]]:
        """Give figures for Prometheus.  Called from the HTTP thread."""
        sessions = self.sessions.statistics()
        found = {
            "loop_lag_p50_seconds": ("Median lag of the event loop over the last minute", self.lag.quantile(0.5), False),
            "loop_lag_p99_seconds": ("99th percentile of the event loop's lag over the last minute", self.lag.quantile(0.99), False),
            "loop_lag_worst_seconds": ("Largest lag of the event loop since the start", self.lag.worst_s, False),
            "sessions": ("Open sessions", float(sessions.sessions), False),
            "statements_running": ("Statements running now", float(sessions.running), False),
            "statements": ("Statements since the start", float(sessions.statements), True),
            "nodes_known": ("Nodes in the directory", float(len(self.directory.entries())), False),
        }
        found["connections_refused"] = ("Connections refused for their certificates", float(self.greeter.refused), True)
        if self._credentials is not None:
            expires = self._credentials.expires
            found["certificate_expires_seconds"] = ("When the node's certificate expires, since the epoch", expires, False)
        found["store_lease_changes"] = ("Leases begun or ended on this store", float(self.lease_changes), True)
        for name, description, count in self.txn_counters.entries():
            found[f"txn_{name}"] = (description, float(count), True)
        for name, value in self.store.statistics().items():
            found[f"store_{name}"] = (f"Store: {name.replace('_', ' ')}", value, False)
        return found

    def _own_entry(self, config: NodeConfig, address: Address) -> NodeEntry:
        advertised = config.advertise or address
        if advertised.port == 0:
            advertised = Address(advertised.host, address.port)
        known = self.directory.get(self.identity.node_id)
        started_ms = max(self._clock.wall_ms(), known.started_ms + 1 if known is not None else 0)
        return NodeEntry(self.identity.node_id, self.identity.store_id, advertised.host, advertised.port, started_ms, config.locality)

    def _spill_directory(self) -> str | None:
        """Give an empty directory below the store, where a node that was killed leaves nothing behind; in memory, the engine's own."""
        if self._config.store is None:
            return None
        directory = self._config.store / "spill"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
        return str(directory)

    def _registry(self) -> Registry:
        registry = Registry()
        registry.serve_calls(KV_CALL, self.store.serve, self.store.try_serve)
        registry.serve_calls(ISSUE, self._issue, self._issue_fast)
        registry.serve_downloads(FRAGMENT, self.fragments.serve)
        registry.serve_calls(LEADERS, self.leaders.serve)
        registry.serve_calls(JOIN, self.membership.serve_join)
        registry.serve_calls(MEET, self.membership.serve_meet)
        registry.serve_calls(CATALOG_RENEW, self._renew_catalog)
        registry.serve_calls(ACTIVITY, self.activity.serve)
        registry.serve_calls(COPIES, self.checking.serve_copies)
        registry.serve_calls(CHECK_RANGE, self.checking.serve_check)
        registry.serve_calls(REPORT, self._report)
        registry.serve_calls(UNDERWAY, self.steering.serve_underway)
        registry.serve_calls(SCATTER, self.steering.serve_scatter)
        registry.serve_calls(NODES, self.administration.serve_nodes)
        registry.serve_calls(SET_NODE_STATE, self.administration.serve_set_node_state)
        registry.serve_oneway(FRAME, self._receive_frame)
        registry.serve_uploads(SNAPSHOT, self._receive_snapshot)
        return registry

    def _receive_frame(self, _: NodeId, frame: StoreFrame) -> None:
        self.store.receive(frame)

    async def _receive_snapshot(self, header: SnapshotHeader, chunks: Any) -> SnapshotInstalled:
        await self.store.receive_snapshot(header, chunks)
        return SnapshotInstalled()

    def _issue_fast(self, request: IssueRequest) -> IssueReply | None:
        first = self.issuer.issue_nowait(request.count)
        return None if first is None else IssueReply(first)

    async def _issue(self, request: IssueRequest) -> IssueReply:
        return IssueReply(await self.issuer.issue(request.count, timeout_s=1.0))

    async def _renew_catalog(self, request: CatalogRenewRequest) -> CatalogRenewReply:
        await self.leases.renew_to(request.version)
        return CatalogRenewReply()

    async def _ask_to_renew(self, version: int) -> None:
        async def ask(node_id: NodeId) -> None:
            try:
                await self.peers.call(node_id, CATALOG_RENEW, CatalogRenewRequest(version))
            except RpcError as error:
                log.info("node %d was not told of a change of the catalogue: %s", node_id, error)

        async with trio.open_nursery() as nursery:
            for entry in self.directory.entries():
                if entry.node_id != self.identity.node_id and self.peers.is_connected(entry.node_id):
                    nursery.start_soon(ask, entry.node_id)

    async def _fresh_timestamp(self) -> Timestamp:
        return await self.transactions.begin().read_timestamp()

    async def _run_leases(self) -> None:
        """Keep the catalogue lease; a cluster that cannot serve now is asked again, for ever."""
        while True:
            try:
                await self.found()
                await self.leases.run()
            except (SqlError, PortError) as error:
                log.info("the catalogue is not there yet: %s", error)
                await trio.sleep(0.2)

    def _descriptor_applied(self, desc: RangeDescriptor, is_leaseholder: bool) -> None:
        self.router.cache.update(desc, self.identity.store_id if is_leaseholder else None)
        if is_leaseholder:
            self.meta.changed(desc)

    def _leads(self, range_id: RangeId) -> bool:
        """Say whether the replica here leads, also while the support of a new member is still on its way: nobody else writes its entry."""
        return self.store.leaseholder_hint(range_id) == self.identity.store_id

    def _lease_changed(self, range_id: RangeId, is_leaseholder: bool) -> None:
        self.lease_changes += 1
        if is_leaseholder:
            desc = self.store.descriptor(range_id)
            if desc is not None:
                self.router.cache.update(desc, self.identity.store_id)
                self.meta.changed(desc)
        if range_id == SYSTEM_RANGE:
            self.coordinator.wake()

    def _address_of(self, node_id: NodeId) -> Address | None:
        return self.directory.address_of(node_id) or self.probe_addresses.get(node_id)

    def _node_of(self, store_id: StoreId) -> NodeId | None:
        entry = self.directory.of_store(store_id)
        return None if entry is None else entry.node_id


class _LateTimestamps:
    """The oracle's client, for the store, which is made before it."""

    source: OracleClient

    def fresh_nowait(self) -> Timestamp | None:
        return self.source.fresh_nowait()

    def newest_nowait(self) -> Timestamp | None:
        return self.source.newest_nowait()

    @property
    def latest(self) -> Timestamp:
        return self.source.latest

    def hear(self, ts: Timestamp) -> None:
        self.source.hear(ts)

    async def fresh(self) -> Timestamp:
        return await self.source.fresh()


class _SystemRange:
    """The store, as the oracle's issuer wants it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def lease_started(self, range_id: int) -> int | None:
        return self._store.lease_started(RangeId(range_id))

    def leaseholder_hint(self, range_id: int) -> StoreId | None:
        return self._store.leaseholder_hint(RangeId(range_id))

    def oracle_mark(self) -> Timestamp:
        return self._store.oracle_mark()

    async def raise_mark(self, request: RaiseMarkRequest) -> RaiseMarkReply:
        reply = await self._store.serve(request)
        assert isinstance(reply, RaiseMarkReply)
        return reply
