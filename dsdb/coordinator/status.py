"""The nodes of a cluster, as whoever administers it sees them; and which wishes are refused."""

from collections.abc import Callable

import msgspec

from dsdb.coordinator.placement import REPLICAS, Locality, factor_of
from dsdb.coordinator.view import ClusterView, NodeState, StoreState
from dsdb.kv.ids import SYSTEM_RANGE, NodeId, StoreId
from dsdb.sql.constraints import spelled


class NodeStatus(msgspec.Struct, frozen=True, array_like=True):
    """A node.  silence_s: for how long it has not answered; leases: with the system range's; bytes: of its replicas, an estimate."""

    node_id: NodeId
    locality: Locality
    state: NodeState
    liveness: StoreState
    silence_s: float
    replicas: int
    leases: int
    bytes: int
    requests_per_s: float
    store_id: StoreId = StoreId(0)
    capacity_bytes: int = 0
    """Of the store's disk: what it has, and what is free; 0 if that is not known."""


def node_statuses(view: ClusterView, silence_s: Callable[[StoreId], float]) -> list[NodeStatus]:
    """Describe the nodes, by id."""
    found = []
    system = view.ranges.get(SYSTEM_RANGE)
    for store_id, store in sorted(view.stores.items(), key=lambda item: item[1].node_id):
        figures = view.figures[store_id]
        leads_system = system is not None and system.leaseholder == store_id
        found.append(
            NodeStatus(
                node_id=store.node_id,
                locality=store.locality,
                state=store.node_state,
                liveness=store.state,
                silence_s=silence_s(store_id),
                replicas=figures.replicas,
                leases=figures.leases + leads_system,
                bytes=figures.bytes,
                requests_per_s=figures.requests_per_s,
                store_id=store_id,
                capacity_bytes=store.capacity_bytes,
            )
        )
    return found


def refusal_of(view: ClusterView, node_id: NodeId, state: NodeState) -> str | None:
    """Give the sentence with which a wish is refused; None: it can be granted."""
    stores = [store for store in view.stores.values() if store.node_id == node_id]
    if not stores:
        return f"there is no node {node_id}: the nodes are {', '.join(map(str, sorted({store.node_id for store in view.stores.values()})))}"
    known = stores[0].node_state
    if state is NodeState.DECOMMISSIONED:
        return "a node is decommissioned when it has no replica left, not by being told so: decommission it, and wait"
    if state is NodeState.ACTIVE or state is known:
        return None
    if known is NodeState.DECOMMISSIONED and state is NodeState.DECOMMISSIONING:
        return None  # as it may have become so just now; it becomes so again at once
    if known is NodeState.DECOMMISSIONED:
        return f"node {node_id} is decommissioned already: recommission it first"
    others = [store for store in view.stores.values() if store.node_id != node_id]
    if not any(store.takes_replicas for store in others):
        return f"node {node_id} is the last one that takes leases: nobody could serve what it serves"
    if state is NodeState.DRAINING and (stuck := _nobody_else_leads(view, node_id)) is not None:
        return stuck
    if state is NodeState.DECOMMISSIONING:
        hosts = {store.host for store in others if store.keeps_replicas}
        before = {store.host for store in [*others, *stores] if store.keeps_replicas}
        if len(hosts) < REPLICAS <= len(before):
            return (
                f"without node {node_id} the cluster has {len(hosts)} nodes, too few for {REPLICAS} replicas of each range: "
                "add a node first"
            )
        needed = max((len(range_view.desc.voters) for range_view in view.ranges.values()), default=1)
        if len(hosts) < needed and len(hosts) < REPLICAS:
            return f"without node {node_id} there are {len(hosts)} nodes for ranges of {needed} replicas: add a node first"
        return _refusal_by_placements(view, node_id, hosts)
    return None


def _refusal_by_placements(view: ClusterView, node_id: NodeId, hosts: set[Locality]) -> str | None:
    """Say which constraints would keep replicas on a node for ever, as nowhere else is room for them."""
    keepers = [store for store in view.stores.values() if store.keeps_replicas]
    for placement in view.placements.constrained:
        allowed = [store for store in keepers if placement.allows(store.locality)]
        before = len({store.host for store in allowed})
        after = len({store.host for store in allowed if store.node_id != node_id})
        factor = factor_of(placement, len(hosts))
        if after < min(before, factor):
            return (
                f"without node {node_id} {after} nodes meet {spelled(placement.constraints)}, too few for {factor} replicas: "
                "add a node there, or change the placement, first"
            )
    return None


def _nobody_else_leads(view: ClusterView, node_id: NodeId) -> str | None:
    """Say which range would have replicas on nodes only that take no leases, if this one took none: draining moves no replica."""
    for range_id, found in sorted(view.ranges.items()):
        on = [view.stores[voter.store_id] for voter in found.desc.voters if voter.store_id in view.stores]
        if any(store.node_id == node_id for store in on) and not any(store.takes_replicas for store in on if store.node_id != node_id):
            nodes = ", ".join(map(str, sorted(store.node_id for store in on if store.node_id != node_id)))
            if not nodes:
                return f"node {node_id} cannot be drained: range {range_id} has no other replica; decommission it instead"
            return (
                f"node {node_id} cannot be drained: range {range_id} has its other replicas on nodes that take no leases now ({nodes}): "
                "recommission one of them, wait until it is back, or decommission this one"
            )
    return None
