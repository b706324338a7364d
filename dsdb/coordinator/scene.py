"""The scene of one plan: the view, what is under way in it, and the facts that all its decisions rest on, each found out once.

Invariants:
- A store gets one replica at a time, and sends one at a time; a range has one move at a time.
- Moves that are planned or under way count as if they were through, so that no two plans fill the same gap.
- A store without room gets nothing: above FULL_PART of its disk.
"""

from collections.abc import Collection, Iterable, Sequence

import msgspec

from dsdb.coordinator.moves import ChangeReplicas, Move, SplitRange, Target, TransferLease
from dsdb.coordinator.placement import Locality, Placement, factor_of
from dsdb.coordinator.view import ClusterView, RangeView, StoreView
from dsdb.kv.ids import RangeId, StoreId

FULL_PART = 0.9


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How eager a plan is."""

    moves_max: int = 64
    """Moves of replicas under way in the cluster."""
    transfers_max: int = 64
    """Leases that one plan moves."""
    replica_part: float = 0.05
    """By this part of the mean two stores may differ in replicas before one is moved, and by two of them."""
    lease_part: float = 0.05
    """The same of leases."""
    splits_max: int = 16
    """Ranges that are cut at a time because a table is to have its own."""
    load_part: float = 0.15
    """What is allowed beside where load counts: it never stands still."""
    load_min: float = 100.0
    """Requests a second and store below which load does not count."""
    bytes_min: int = 64 << 20
    """Bytes of a store below which bytes do not count."""


class Facts(msgspec.Struct, frozen=True):
    """What a placement comes to with the stores there are.

    factor: voters that a range gets; hosts: that they may be on; factor_anywhere: the factor if there were no constraints;
    least_overlap: how little the localities of voters need to have in common; is_preferred_there: some store that it allows it prefers.
    """

    factor: int
    hosts: int
    factor_anywhere: int
    least_overlap: int
    is_preferred_there: bool


class Scene:
    """One plan's."""

    def __init__(self, view: ClusterView, underway: Sequence[Move], settings: Settings, resting: Collection[RangeId] = ()) -> None:
        self.view = view
        self.settings = settings
        self.moves: list[Move] = []
        self.busy: set[RangeId] = set(resting)
        """Ranges with a move, and those whose last one has just failed."""
        self.receiving: set[StoreId] = set()
        self.sending: set[StoreId] = set()
        self.lease_movers: set[StoreId] = set()
        """Stores that a lease is moved from or to."""
        self.replicas: dict[StoreId, int] = {}
        """By store, with all moves through: what the view shows of a move already is not counted again."""
        self.leases: dict[StoreId, int] = {}
        self._through: dict[RangeId, set[StoreId]] = {}
        """Of ranges whose replicas are moved: the stores that will have them."""
        self.changes = 0
        self.transfers = 0
        self.splits = 0
        self._facts: dict[int, Facts] = {}
        """By identity of a placement: the view keeps each as long as the plan lasts."""
        for store_id in view.stores:
            figures = view.figures[store_id]
            self.replicas[store_id] = figures.replicas
            self.leases[store_id] = figures.leases
        stores = [store for _, store in sorted(view.stores.items())]
        takers = [store for store in stores if store.takes_replicas and not self._is_full(store)]
        self.takers = sorted(takers, key=lambda store: (self.replicas[store.store_id], store.store_id))
        """Who may get replicas, the emptiest first."""
        self.keepers = {store.store_id: store for store in stores if store.keeps_replicas}
        """Whose replicas may stay."""
        self.has_localities = any(store.locality for store in stores)
        for move in underway:
            self._take(move)

    def _is_full(self, store: StoreView) -> bool:
        return store.capacity_bytes > 0 and self.view.figures[store.store_id].bytes > FULL_PART * store.capacity_bytes

    # ---- Moves ----

    def plan(self, move: Move) -> None:
        """Plan a move."""
        self.moves.append(move)
        self._take(move)

    def _take(self, move: Move) -> None:
        self.busy.add(move.range_id)
        if isinstance(move, TransferLease):
            self.transfers += 1
            self.lease_movers |= {move.leaseholder, move.to}
            if self._leaseholder(move.range_id) == move.leaseholder:
                self.leases[move.leaseholder] = self.leases.get(move.leaseholder, 0) - 1
                self.leases[move.to] = self.leases.get(move.to, 0) + 1
            return
        if isinstance(move, SplitRange):
            self.splits += 1
            return
        self.changes += 1
        on = self.stores_of(move.range_id)
        for target in move.add:
            self.receiving.add(target.store_id)
            if target.store_id not in on:
                self.replicas[target.store_id] = self.replicas.get(target.store_id, 0) + 1
        if move.add:
            self.sending.add(move.leaseholder)
        for store_id in move.remove:
            if store_id in on:
                self.replicas[store_id] = self.replicas.get(store_id, 0) - 1
        self._through[move.range_id] = (on | {target.store_id for target in move.add}).difference(move.remove)

    def _leaseholder(self, range_id: RangeId) -> StoreId | None:
        found = self.view.ranges.get(range_id)
        return None if found is None else found.leaseholder

    def stores_of(self, range_id: RangeId) -> set[StoreId]:
        """Give the stores that have replicas of a range, or will have when its move is through."""
        if range_id in self._through:
            return self._through[range_id]
        found = self.view.ranges.get(range_id)
        return set() if found is None else {member.store_id for member in found.desc.replicas}

    def change(self, view: RangeView, reason: str, *, add: Iterable[StoreView] = (), remove: Iterable[StoreId] = ()) -> None:
        """Plan a change of replicas."""
        assert view.leaseholder is not None, view
        targets = tuple(Target(store.store_id, store.node_id) for store in add)
        self.plan(ChangeReplicas(desc=view.desc, leaseholder=view.leaseholder, add=targets, remove=tuple(remove), reason=reason))

    def transfer(self, view: RangeView, to: StoreId, reason: str) -> None:
        """Plan to move a lease."""
        assert view.leaseholder is not None, view
        self.plan(TransferLease(desc=view.desc, leaseholder=view.leaseholder, to=to, reason=reason))

    def split(self, view: RangeView, key: bytes, reason: str) -> None:
        """Plan to cut a range."""
        assert view.leaseholder is not None, view
        self.plan(SplitRange(desc=view.desc, leaseholder=view.leaseholder, key=key, reason=reason))

    @property
    def has_room(self) -> bool:
        """Say whether another change of replicas may begin."""
        return self.changes < self.settings.moves_max

    # ---- Facts ----

    def facts(self, placement: Placement) -> Facts:
        """Give what a placement comes to with the stores there are."""
        found = self._facts.get(id(placement))
        if found is None:
            keepers = list(self.keepers.values())
            stores = [store for store in keepers if placement.allows(store.locality)]
            hosts = len({store.host for store in stores})
            factor = factor_of(placement, hosts)
            found = self._facts[id(placement)] = Facts(
                factor=factor,
                hosts=hosts,
                factor_anywhere=factor_of(placement, len({store.host for store in keepers})),
                least_overlap=_least_overlap(stores, factor),
                is_preferred_there=any(store.takes_replicas and placement.prefers(store.locality) for store in stores),
            )
        return found

    def best_store(
        self, view: RangeView, kept: Sequence[StoreView], placement: Placement, *, must_lead: bool = False
    ) -> tuple[StoreView | None, bool]:
        """Give the store that should get a replica beside those that stay, None if there is none now; and whether there would be later.

        The farthest from the others; of equals one with a learner of the range; of equals the emptiest.  must_lead: one that the
        placement prefers for the lease.
        """
        hosts = {store.host for store in kept}
        members = {member.store_id for member in view.desc.voters}
        learners = {member.store_id for member in view.desc.replicas} - members
        best: StoreView | None = None
        best_key = (0, False)
        is_possible = False
        for store in self.takers:
            store_id = store.store_id
            if store_id in members or store.host in hosts or not placement.allows(store.locality):
                continue
            if must_lead and not placement.prefers(store.locality):
                continue
            is_possible = True
            if store_id in self.receiving:
                continue
            key = (overlap_with(store, kept) if self.has_localities else 0, store_id not in learners)
            if best is None or key < best_key:
                best, best_key = store, key
                if key == (0, not learners):
                    break
        return best, is_possible


def _least_overlap(stores: Sequence[StoreView], count: int) -> int:
    """Give how little the localities of so many stores on different hosts need to have in common."""
    chosen: list[StoreView] = []
    for _ in range(count):
        hosts = {store.host for store in chosen}
        free = [store for store in stores if store.host not in hosts]
        if not free:
            break
        chosen.append(min(free, key=lambda store: (overlap_with(store, chosen), store.store_id)))
    return overlap_of(chosen)


def overlap(one: Locality, other: Locality) -> int:
    """Count the tiers that two localities have in common, from the widest."""
    common = 0
    for tier, other_tier in zip(one, other):
        if tier != other_tier:
            break
        common += 1
    return common


def overlap_with(store: StoreView, others: Iterable[StoreView]) -> int:
    """Count what a store's locality has in common with those of others."""
    return sum([overlap(store.locality, other.locality) for other in others])


def overlap_of(stores: Sequence[StoreView]) -> int:
    """Count what the localities of stores have in common, pair by pair."""
    return sum([overlap_with(store, stores[:number]) for number, store in enumerate(stores)])
