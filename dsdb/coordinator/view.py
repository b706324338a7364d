"""The cluster as the coordinator sees it: stores, ranges, placements, and the sums over them that a plan looks at.

    reports ─▶ put_range, drop_range ─┐
    nodes   ─▶ put_store ─────────────┴▶ ClusterView ─ figures, ranges by store, what is not judged yet ─▶ plan

Stores, ranges and placements are frozen; the view keeps them with what can be counted as they come, so that a change costs what it
touches and no plan has to look at every range.

Invariants:
- The figures are those of the ranges that are there, however the view came to have them.
- A lease that moves takes its load along: what the new leaseholder has measured counts when that is more, or when it has settled.
- Of a range's descriptors the one of the highest generation is kept, of its leaseholders the one of the highest term.
- A host is what fails as one: a machine if the locality names one, else a node.

Not here: what is wrong with a range, and what to do about it (`repair`, `balance`, `plan`).
"""

import enum

import msgspec

from dsdb.coordinator.placement import Locality, PlacementBook
from dsdb.kv.descriptor import RangeDescriptor, ReplicaKind
from dsdb.kv.ids import SYSTEM_RANGE, NodeId, RangeId, StoreId

MACHINE = "machine"
"""The key of a locality tier whose value names what fails as one."""


class StoreState(enum.Enum):
    """Whether a store is heard of."""

    LIVE = "live"
    SUSPECT = "suspect"
    """It does not answer: it gets nothing new, and loses nothing yet."""
    DEAD = "dead"
    """It has not answered for so long that its replicas are replaced."""


class NodeState(enum.Enum):
    """What the administrator wants of a node."""

    ACTIVE = "active"
    DRAINING = "draining"
    """It gives its leases away, and gets neither leases nor replicas."""
    DECOMMISSIONING = "decommissioning"
    """It gives its replicas away as well."""
    DECOMMISSIONED = "decommissioned"
    """It had no replica left."""


class StoreView(msgspec.Struct, frozen=True, kw_only=True):
    """A store.  capacity_bytes: of its disk, 0 if that is not known."""

    store_id: StoreId
    node_id: NodeId
    locality: Locality = ()
    state: StoreState = StoreState.LIVE
    node_state: NodeState = NodeState.ACTIVE
    capacity_bytes: int = 0

    @property
    def host(self) -> Locality:
        """Give the name of what fails as one with this store."""
        for number, (key, _) in enumerate(self.locality):
            if key == MACHINE:
                return self.locality[: number + 1]
        return (*self.locality, ("node", str(self.node_id)))

    @property
    def takes_replicas(self) -> bool:
        """Say whether it may get replicas, and leases."""
        return self.state is StoreState.LIVE and self.node_state is NodeState.ACTIVE

    @property
    def keeps_replicas(self) -> bool:
        """Say whether its replicas may stay where they are."""
        return self.state is not StoreState.DEAD and self.node_state in (NodeState.ACTIVE, NodeState.DRAINING)


class RangeView(msgspec.Struct, frozen=True, kw_only=True):
    """A range; leaseholder None: nobody is known to lead it.  is_changing: its leaseholder changes its replicas now."""

    desc: RangeDescriptor
    leaseholder: StoreId | None
    lease_term: int = 0
    is_changing: bool = False
    size_bytes: int = 0
    requests_per_s: float = 0.0
    written_bytes_per_s: float = 0.0


class Figures:
    """Sums over the replicas, and the leases, of a store."""

    __slots__ = ("bytes", "leases", "replicas", "requests_per_s")

    def __init__(self) -> None:
        self.replicas = 0
        self.leases = 0
        """But for the system range's."""
        self.bytes = 0
        self.requests_per_s = 0.0
        """Of the ranges led there."""


class ClusterView:
    """All stores and ranges."""

    def __init__(self) -> None:
        self.stores: dict[StoreId, StoreView] = {}
        self.ranges: dict[RangeId, RangeView] = {}
        self.placements = PlacementBook({})
        self.figures: dict[StoreId, Figures] = {}
        self.replicas_on: dict[StoreId, set[RangeId]] = {}
        self.leases_on: dict[StoreId, set[RangeId]] = {}
        self.unjudged: set[RangeId] = set()
        """Ranges that have changed, or whose stores have, since a plan looked at them."""
        self.unsettled: dict[RangeId, tuple[float, float]] = {}
        """Ranges whose lease has just moved, with the load (requests, bytes written) that they had before: they have that at least."""
        self.faulty: set[RangeId] = set()
        """Ranges in which a plan has found something wrong."""
        self.version = 0
        """Grows with every change."""

    # ---- What is put in ----

    def put_store(self, store: StoreView) -> None:
        """Take a store as it is now."""
        known = self.stores.get(store.store_id)
        if known == store:
            return
        self.stores[store.store_id] = store
        self._rows_of(store.store_id)
        self.version += 1
        is_other = known is None or _standing(known) != _standing(store)
        if is_other:
            # What can be wrong with a range, or put right, depends on all stores there are.
            self.unjudged.update(self.ranges)

    def drop_store(self, store_id: StoreId) -> None:
        """Forget a store on which nothing is."""
        if self.stores.pop(store_id, None) is not None:
            self.version += 1
            self.unjudged.update(self.ranges)

    def set_placements(self, placements: PlacementBook) -> None:
        """Take what the tables ask for."""
        if placements != self.placements:
            self.placements = placements
            self.version += 1
            self.unjudged.update(self.ranges)

    def put_range(self, view: RangeView) -> None:
        """Take a range as it is now."""
        range_id = view.desc.range_id
        known = self.ranges.get(range_id)
        if known is not None and view.lease_term > known.lease_term and known.requests_per_s + known.written_bytes_per_s > 0:
            self.unsettled[range_id] = known.requests_per_s, known.written_bytes_per_s
        if range_id in self.unsettled:
            requests, written = self.unsettled[range_id]
            view = msgspec.structs.replace(
                view, requests_per_s=max(view.requests_per_s, requests), written_bytes_per_s=max(view.written_bytes_per_s, written)
            )
        if known == view:
            return
        if known is not None:
            self._count(known, -1)
        self.ranges[view.desc.range_id] = view
        self._count(view, 1)
        self.version += 1
        self.unjudged.add(view.desc.range_id)

    def settle(self, range_id: RangeId) -> None:
        """Believe what is said of a range's load from now on: its new leaseholder has had time to measure it."""
        self.unsettled.pop(range_id, None)

    def drop_range(self, range_id: RangeId) -> None:
        """Forget a range that no store has any more."""
        self.unsettled.pop(range_id, None)
        known = self.ranges.pop(range_id, None)
        if known is not None:
            self._count(known, -1)
            self.version += 1
            self.unjudged.discard(range_id)
            self.faulty.discard(range_id)

    def _count(self, view: RangeView, sign: int) -> None:
        range_id = view.desc.range_id
        for member in view.desc.replicas:
            figures, on, _ = self._rows_of(member.store_id)
            figures.replicas += sign
            figures.bytes += sign * view.size_bytes
            (on.add if sign > 0 else on.discard)(range_id)
        if view.leaseholder is not None and range_id != SYSTEM_RANGE:
            figures, _, led = self._rows_of(view.leaseholder)
            figures.leases += sign
            figures.requests_per_s += sign * view.requests_per_s
            (led.add if sign > 0 else led.discard)(range_id)

    def _rows_of(self, store_id: StoreId) -> tuple[Figures, set[RangeId], set[RangeId]]:
        figures = self.figures.get(store_id)
        if figures is None:
            figures = self.figures[store_id] = Figures()
            self.replicas_on[store_id] = set()
            self.leases_on[store_id] = set()
        return figures, self.replicas_on[store_id], self.leases_on[store_id]


def voters_of(desc: RangeDescriptor) -> list[StoreId]:
    """Give the stores of the voters, of a range whose replicas are not being changed."""
    return [member.store_id for member in desc.replicas if member.kind is ReplicaKind.VOTER]


def is_joint(desc: RangeDescriptor) -> bool:
    """Say whether a change of replicas is half done: the leader always goes on with it."""
    return any(member.kind in (ReplicaKind.VOTER_INCOMING, ReplicaKind.VOTER_OUTGOING) for member in desc.replicas)


def _standing(store: StoreView) -> tuple[object, ...]:
    """Give what of a store bears on where replicas and leases may be."""
    return store.node_id, store.locality, store.state, store.node_state
