"""What statements about the cluster itself ask of the node: SPLIT AT, SHOW RANGES, who is there, and what they all do (`activity`)."""

import logging
from collections.abc import Callable, Mapping

import trio

from dsdb.coordinator.events import read_events
from dsdb.coordinator.placement import Locality, Place, Placement, doubts_about, placement_over, refusal_of_placement
from dsdb.coordinator.view import NodeState, StoreState, StoreView
from dsdb.coordinator.wanted import change_range_settings, read_node_states, read_range_settings
from dsdb.flow import Gatherer
from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.errors import KvError
from dsdb.kv.requests import DescribeReply, DescribeRequest
from dsdb.node.activity import Activity
from dsdb.node.administration import Administration
from dsdb.node.checking import Checking
from dsdb.node.directory import Directory, NodeEntry
from dsdb.node.splitting import RangeSplits
from dsdb.ranges import Router
from dsdb.rpc import RpcError
from dsdb.sql.constraints import Constraints
from dsdb.sql.ports import EventInfo, NodeInfo, RangeInfo, RangeSettingsInfo, RangeUnavailableError
from dsdb.sql.ports_steering import RefusedError
from dsdb.storage.keys import EVERYTHING, Span
from dsdb.store.range_settings import CLUSTER_TABLE, RangeSettings, StoredSettings
from dsdb.txn import TransactionFactory

log = logging.getLogger("dsdb.node")

ANSWER_S = 1.0
"""How long a range may take to describe itself."""
IN_VAIN_MAX_S = 3.0
"""After so much waiting for ranges that did not answer, the others get HURRIED_ANSWER_S each."""
HURRIED_ANSWER_S = 0.1
PLACEMENT_FIELDS = {"replicas", "constraints", "lease_preference"}
COUNT_S = 5.0
"""How long ranges are counted for a list of nodes."""


class NodeClusterView:
    """Implements `dsdb.sql.ports.ClusterView`."""

    def __init__(
        self,
        *,
        router: Router,
        gatherer: Gatherer,
        transactions: TransactionFactory,
        splits: RangeSplits,
        wake_coordinator: Callable[[], None],
        directory: Directory,
        is_live: Callable[[NodeEntry], bool],
        administration: Administration,
        hurry_splitter: Callable[[], None],
        activity: Activity,
        checking: Checking,
    ) -> None:
        self._router = router
        self._gatherer = gatherer
        self._transactions = transactions
        self._directory = directory
        self._is_live = is_live
        self._administration = administration
        self._hurry_splitter = hurry_splitter
        self._wake_coordinator = wake_coordinator
        self.transactions = activity.transactions
        self.locks = activity.locks
        self.split = splits.split
        self.check_structure = checking.structure
        self.check_range = checking.range

    async def configure_ranges(self, database_id: int, table_id: int, changes: Mapping[str, int | Constraints | None]) -> list[str]:
        """Set when the ranges of a table, or with 0 of all tables, are split, and where they are to be; give doubts in sentences.

        Raises PortError, RefusedError.
        """
        places = await self._places()
        asked = placement_over(Placement(), StoredSettings(**{name: value for name, value in changes.items() if name in PLACEMENT_FIELDS}))  # type: ignore[arg-type]
        if (reason := refusal_of_placement(asked, places)) is not None:
            raise RefusedError(reason)
        if not await change_range_settings(self._transactions, database_id, table_id, changes):
            raise RefusedError("the table was dropped meanwhile")
        self._hurry_splitter()
        self._wake_coordinator()
        if not PLACEMENT_FIELDS & changes.keys():
            return []
        stored = await self._range_settings()
        placement = placement_over(Placement(), stored.get(CLUSTER_TABLE, StoredSettings()))
        return doubts_about(placement_over(placement, stored.get(table_id, StoredSettings())), places)

    async def _range_settings(self) -> dict[int, StoredSettings]:
        """Read what is set.  Raises PortError."""
        try:
            return await read_range_settings(self._router)
        except KvError as error:
            raise RangeUnavailableError(getattr(error.detail, "reason", repr(error.detail))) from error

    async def _places(self) -> list[Place]:
        """Give where stores are that keep what they have.  Raises PortError."""
        try:
            states = await read_node_states(self._router)
        except KvError as error:
            raise RangeUnavailableError(getattr(error.detail, "reason", repr(error.detail))) from error
        stores = [
            StoreView(store_id=entry.store_id, node_id=entry.node_id, locality=entry.locality)
            for entry in self._directory.entries()
            if states.get(entry.node_id, NodeState.ACTIVE) in (NodeState.ACTIVE, NodeState.DRAINING)
        ]
        return [Place(store.locality, store.host) for store in stores]

    async def range_settings(self) -> list[RangeSettingsInfo]:
        """Describe what is set, the cluster's defaults first.  Raises PortError."""
        stored = await self._range_settings()
        cluster = stored.pop(CLUSTER_TABLE, StoredSettings())
        default, anywhere = cluster.over(RangeSettings()), placement_over(Placement(), cluster)
        return [
            _settings_info(CLUSTER_TABLE, default, anywhere),
            *[_settings_info(table_id, said.over(default), placement_over(anywhere, said)) for table_id, said in sorted(stored.items())],
        ]

    async def ranges(self, span: Span) -> list[RangeInfo]:
        """Describe the ranges that overlap a span, asking each; of one that does not answer, what was known last.  Raises PortError."""
        found = []
        key = span.start
        in_vain_s = 0.0
        asked_again: bytes | None = None
        while key < span.end:
            try:
                desc = (await self._router.lookup(key)).desc
            except KvError as error:
                raise RangeUnavailableError(getattr(error.detail, "reason", repr(error.detail))) from error
            said: DescribeReply | None = None
            began = self._router.clock.now()
            try:
                deadline_s = ANSWER_S if in_vain_s < IN_VAIN_MAX_S else HURRIED_ANSWER_S
                reply = await self._router.send(key, lambda desc: DescribeRequest(desc.range_id), deadline_s=deadline_s)
            except KvError:
                in_vain_s += self._router.clock.now() - began
            else:
                assert isinstance(reply, DescribeReply)
                desc, said = reply.descriptor, reply
                self._router.cache.update(desc, said.leaseholder)
                if not desc.span.contains(key):
                    continue  # it was split: the next look-up finds the other side
                if said.requests_per_s is None and said.leaseholder is not None and asked_again != key:
                    asked_again = key
                    continue  # a follower has answered: its leaseholder knows more
            found.append(_range_info(desc, said))
            key = desc.end_key
        return found

    async def nodes(self) -> list[NodeInfo]:
        """Describe the nodes as the coordinator sees them; without one, as far as the ranges can be found in some seconds."""
        with trio.move_on_after(COUNT_S):
            try:
                return await self._coordinated()
            except (KvError, RpcError) as error:
                log.info("the coordinator does not describe the nodes: %s", error)
        ranges: list[RangeInfo] | None = None
        with trio.move_on_after(COUNT_S):
            try:
                ranges = await self.ranges(EVERYTHING)
            except RangeUnavailableError as error:
                log.info("ranges are not counted: %s", error)
        return [
            NodeInfo(
                node_id=entry.node_id,
                address=str(entry.address),
                is_live=self._is_live(entry),
                ranges=None if ranges is None else sum(entry.node_id in info.replicas for info in ranges),
                leases=None if ranges is None else sum(entry.node_id == info.leaseholder for info in ranges),
                locality=_locality_text(entry.locality),
                state=None,
            )
            for entry in self._directory.entries()
        ]

    async def events(self) -> list[EventInfo]:
        """Give the newest events of the cluster.  Raises PortError."""
        return [
            EventInfo(
                event_id=number,
                at_us=event.at_ms * 1000,
                kind=event.kind,
                range_id=event.range_id or None,
                what=event.what,
                is_done=event.is_done,
            )
            for number, event in await read_events(self._transactions)
        ]

    async def _coordinated(self) -> list[NodeInfo]:
        """Ask the coordinator.  Raises KvError, RpcError."""
        found = []
        for status in await self._administration.nodes():
            entry = self._directory.get(status.node_id)
            found.append(
                NodeInfo(
                    node_id=status.node_id,
                    address="" if entry is None else str(entry.address),
                    is_live=status.liveness is StoreState.LIVE,
                    ranges=status.replicas,
                    leases=status.leases,
                    locality=_locality_text(status.locality),
                    state=status.state.value,
                )
            )
        return found


def _locality_text(locality: Locality) -> str:
    return ",".join(f"{key}={value}" for key, value in locality)


def _settings_info(table_id: int, settings: RangeSettings, placement: Placement) -> RangeSettingsInfo:
    return RangeSettingsInfo(
        table_id=table_id,
        max_bytes=settings.max_bytes,
        load_requests=settings.load_requests,
        load_bytes=settings.load_bytes,
        replicas=placement.replicas,
        constraints=placement.constraints,
        lease_preference=placement.lease_preference,
    )


def _range_info(desc: RangeDescriptor, said: DescribeReply | None) -> RangeInfo:
    leaseholder, quarantined = (None, ()) if said is None else (said.leaseholder, said.quarantined)
    leader = None if leaseholder is None else desc.replica_on(leaseholder)
    return RangeInfo(
        range_id=desc.range_id,
        start_key=desc.start_key,
        end_key=desc.end_key,
        leaseholder=None if leader is None else leader.node_id,
        replicas=tuple(replica.node_id for replica in desc.voters),
        quarantined=tuple(replica.node_id for replica in desc.replicas if replica.store_id in quarantined),
        size_bytes=None if said is None else said.size_bytes,
        requests_per_s=None if said is None else said.requests_per_s,
        blocks=None if said is None else said.blocks,
    )
