"""What is wrong with where a range's replicas are, and the one move that makes it better.

    too few good voters ─▶ replace a lost one, or add │ enough ─▶ remove a lost one │ too many ─▶ remove one
    shared with a table that has a placement ─▶ cut │ left-over learner ─▶ remove │ replicas too near to each other ─▶ replace one
    no voter where the lease should be ─▶ replace one │ lease where it should not be ─▶ move it

A voter is good unless its store is dead, its node is being decommissioned, or it is misplaced: its table's placement does not allow it.

Invariants:
- The replacement comes first: a move never leaves fewer good voters than there were, nor a range without a live quorum.
- No constraint costs a replica: misplaced voters stay while too few stores are allowed.  And none is put where it is not allowed.
- A range that nobody leads, or whose quorum is lost, is left alone: nothing that could be done would be safe.
- While there is no place for a third replica, that of a dead store stays: it may come back, and two voters are no better.
"""

import enum
from collections.abc import Sequence

from dsdb.coordinator.placement import Locality, Placement
from dsdb.coordinator.scene import Scene, overlap_of
from dsdb.coordinator.view import NodeState, RangeView, StoreState, StoreView, is_joint, voters_of
from dsdb.kv.descriptor import ReplicaKind
from dsdb.kv.ids import StoreId


class Verdict(enum.Enum):
    """What became of a look at a range."""

    SOUND = "sound"
    MOVED = "moved"
    LATER = "later"
    """Something is wrong, and there may be a way soon."""
    HOPELESS = "hopeless"
    """Something is wrong, and there is no way before a store, or the range, changes."""


def judge(scene: Scene, view: RangeView) -> bool:
    """Say whether something may be wrong with a range; a look that must be quick, as every range has it."""
    keepers, placement = scene.keepers, scene.view.placements.of(view.desc)
    replicas = view.desc.replicas
    facts = scene.facts(placement)
    if not facts.factor <= len(replicas) <= max(placement.replicas, facts.factor):
        return True
    if scene.view.placements.cut_of(view.desc) is not None:
        return True
    found = []
    for member in replicas:
        store = keepers.get(member.store_id)
        if store is None or member.kind is not ReplicaKind.VOTER:
            return True
        found.append(store)
    if placement.constraints and not all(placement.allows(store.locality) for store in found):
        return True
    if facts.is_preferred_there and placement.lease_preference and not _has_preferred(placement, found):
        return True
    if scene.has_localities and overlap_of(found) > facts.least_overlap:
        return True
    leaseholder = None if view.leaseholder is None else scene.view.stores.get(view.leaseholder)
    if leaseholder is None or (leaseholder.takes_replicas and not placement.lease_preference):
        return False
    return _is_lease_misplaced(leaseholder, placement, found)


def repair(scene: Scene, view: RangeView) -> Verdict:
    """Plan the move that makes a range better."""
    if view.desc.range_id in scene.busy:
        return Verdict.LATER
    leaseholder = None if view.leaseholder is None else scene.view.stores.get(view.leaseholder)
    if leaseholder is None or view.is_changing or is_joint(view.desc) or leaseholder.state is not StoreState.LIVE:
        return Verdict.HOPELESS
    return _Repair(scene, view, leaseholder).run()


def drain(scene: Scene) -> None:
    """Plan to move leases away from where none should be."""
    view = scene.view
    for store_id, store in sorted(view.stores.items()):
        if store.takes_replicas or store.state is not StoreState.LIVE:
            continue
        for range_id in sorted(view.leases_on[store_id]):
            if scene.transfers >= scene.settings.transfers_max:
                return
            found = view.ranges[range_id]
            if range_id not in scene.busy and not found.is_changing and not is_joint(found.desc):
                _Repair(scene, found, store).fix_lease()


def _is_lease_misplaced(leaseholder: StoreView, placement: Placement, voters: Sequence[StoreView]) -> bool:
    if not leaseholder.takes_replicas:
        return any(store.takes_replicas for store in voters)
    if placement.prefers(leaseholder.locality):
        return False
    return any(store.takes_replicas and placement.prefers(store.locality) for store in voters)


def _has_preferred(placement: Placement, voters: Sequence[StoreView]) -> bool:
    return any(placement.prefers(store.locality) for store in voters)


class _Repair:
    """The look at one range."""

    def __init__(self, scene: Scene, view: RangeView, leaseholder: StoreView) -> None:
        self.scene = scene
        self.view = view
        self.leaseholder = leaseholder
        self.placement = scene.view.placements.of(view.desc)
        self.voters = voters_of(view.desc)
        known = scene.view.stores
        self.good = [known[store_id] for store_id in self.voters if store_id in known and self._is_good(known[store_id])]
        good_ids = {store.store_id for store in self.good}
        self.lost = sorted((store_id for store_id in self.voters if store_id not in good_ids), key=self._lost_rank)
        self.misplaced = [known[store_id] for store_id in self.lost if store_id in scene.keepers]
        self.facts = scene.facts(self.placement)
        self.factor = self.facts.factor
        # What is beyond the factor is there because it was there before the placement: as much of it as possible goes where it should be.
        self.goal = min(self.facts.hosts, self.placement.replicas, max(self.factor, len(self.voters)))
        self.is_possible = False

    def _is_good(self, store: StoreView) -> bool:
        return store.keeps_replicas and self.placement.allows(store.locality)

    def _is_dead(self, store_id: StoreId) -> bool:
        store = self.scene.view.stores.get(store_id)
        return store is None or store.state is StoreState.DEAD

    def _lost_rank(self, store_id: StoreId) -> tuple[bool, bool, bool, StoreId]:
        """Give the order in which lost voters go: dead ones first, then those whose nodes go, the leaseholder last."""
        return not self._is_dead(store_id), store_id in self.scene.keepers, store_id == self.leaseholder.store_id, store_id

    def run(self) -> Verdict:
        live = sum(map(self._is_live, self.voters))
        if 2 * live <= len(self.voters):
            return Verdict.HOPELESS
        is_wrong = self._fix_voters()
        # What waits for a store to be free, or for good, is cut meanwhile.
        is_wrong = (self._is_settled and self._cut()) or is_wrong
        is_wrong = is_wrong or self._fix_learners() or self._fix_spread() or self._fix_preference()
        if not self._is_settled:
            return Verdict.MOVED
        if self.fix_lease():
            return Verdict.MOVED
        if not is_wrong and not self.is_possible:
            return Verdict.SOUND if not self.lost else Verdict.HOPELESS
        return Verdict.LATER if self.is_possible else Verdict.HOPELESS

    @property
    def _is_settled(self) -> bool:
        return self.view.desc.range_id not in self.scene.busy

    def _is_live(self, store_id: StoreId) -> bool:
        store = self.scene.view.stores.get(store_id)
        return store is not None and store.state is StoreState.LIVE

    # ---- Voters ----

    def _fix_voters(self) -> bool:
        """Say whether the number, or the places, of voters are wrong; plan what can be done."""
        if len(self.good) < self.goal:
            self._add_or_replace()
            return True
        for store_id in self.lost:
            if self._is_spare(store_id) and self._has_quorum_without(store_id):
                self._remove(store_id, self._why_lost(store_id))
                return True
        if len(self.good) > max(self.placement.replicas, self.factor):
            self._remove_surplus()
            return True
        return False

    def _has_quorum_without(self, victim: StoreId) -> bool:
        rest = [store_id for store_id in self.voters if store_id != victim]
        return 2 * sum(map(self._is_live, rest)) > len(rest)

    def _is_spare(self, store_id: StoreId) -> bool:
        """Say whether a lost voter may go without a replacement."""
        kept = [store for store in self.good + self.misplaced if store.store_id != store_id]
        if self._is_dead(store_id):
            # It stays until the replacement is in: with fewer hosts than replicas it has no replacement.
            return len(kept) >= self.placement.replicas
        if sum(store.state is StoreState.LIVE for store in kept) >= self.facts.factor_anywhere:
            return True
        # One of an even number costs no quorum; but a node that goes is asked for again when there is a replacement.
        return store_id in self.scene.keepers and len(self.voters) % 2 == 0

    def _add_or_replace(self) -> None:
        scene = self.scene
        missing = self.goal - len(self.good)
        is_replacing = bool(self.lost) and len(self.voters) >= self.factor
        added: list[StoreView] = []
        for _ in range(1 if is_replacing else missing):
            store, is_possible = scene.best_store(self.view, self.good + added, self.placement)
            self.is_possible = self.is_possible or is_possible
            if store is None:
                break
            added.append(store)
            scene.receiving.add(store.store_id)  # so that the next one is another; given back if nothing comes of it
        can_move = scene.has_room and self.leaseholder.store_id not in scene.sending
        if not added or not can_move:
            scene.receiving.difference_update(store.store_id for store in added)
            return
        victim = self._victim(added[0].host) if is_replacing else None
        if victim is None:
            scene.change(self.view, f"it has {len(self.good)} of {self.placement.replicas} replicas", add=added)
        elif victim == self.leaseholder.store_id:
            self._replace_leaseholder(victim, added)
        else:
            scene.change(self.view, self._why_lost(victim), add=added, remove=(victim,))

    def _victim(self, host: Locality) -> StoreId:
        """Give the lost voter that goes for a new one on a host: one that is there already, or the first."""
        known = self.scene.view.stores
        return next((store_id for store_id in self.lost if store_id in known and known[store_id].host == host), self.lost[0])

    def _replace_leaseholder(self, victim: StoreId, added: list[StoreView]) -> None:
        """Move the lease first; a leaseholder that is alone gets company first."""
        scene = self.scene
        scene_receives = [store.store_id for store in added]
        others = [store for store in self.good if store.takes_replicas]
        if others:
            scene.receiving.difference_update(scene_receives)
            scene.transfer(self.view, self._best_leaseholder(others).store_id, self._why_lost(victim))
        else:
            scene.change(self.view, self._why_lost(victim), add=added)

    def _remove(self, store_id: StoreId, reason: str) -> None:
        scene = self.scene
        if store_id != self.leaseholder.store_id:
            self.is_possible = True
            if scene.has_room:
                scene.change(self.view, reason, remove=(store_id,))
            return
        others = [store for store in self.good if store.takes_replicas and store.store_id != store_id]
        if others:
            scene.transfer(self.view, self._best_leaseholder(others).store_id, reason)

    def _remove_surplus(self) -> None:
        """Remove a voter that does not answer, or without which the others are farthest apart; of equals that on the fullest store."""

        def key(victim: StoreView) -> tuple[bool, bool, int, int, StoreId]:
            rest = [store for store in self.good if store is not victim]
            is_needed = victim.state is StoreState.LIVE, not _has_preferred(self.placement, rest)
            return *is_needed, overlap_of(rest), -self.scene.replicas[victim.store_id], victim.store_id

        victims = [store for store in self.good if store is not self.leaseholder and self._has_quorum_without(store.store_id)]
        if victims:
            reason = f"it has {len(self.good)} replicas, and should have {self.placement.replicas}"
            self._remove(min(victims, key=key).store_id, reason)

    def _why_lost(self, store_id: StoreId) -> str:
        store = self.scene.view.stores.get(store_id)
        if store is None:
            return f"store {store_id} is gone"
        if store.state is StoreState.DEAD:
            return f"store {store_id} is dead"
        if store.node_state in (NodeState.DECOMMISSIONING, NodeState.DECOMMISSIONED):
            return f"node {store.node_id} is decommissioned"
        return f"its placement does not allow store {store_id}"

    # ---- Bounds, learners, spread, lease ----

    def _cut(self) -> bool:
        """Cut the range where a table with a placement begins or ends."""
        key = self.scene.view.placements.cut_of(self.view.desc)
        if key is None:
            return False
        self.is_possible = True
        if self.scene.splits < self.scene.settings.splits_max:
            self.scene.split(self.view, key, "a table with a placement has ranges of its own")
        return True

    def _fix_learners(self) -> bool:
        learners = [member.store_id for member in self.view.desc.replicas if member.store_id not in self.voters]
        if not learners:
            return False
        self.is_possible = True
        if self.scene.has_room:
            self.scene.change(self.view, "a learner was left behind by a change that failed", remove=learners)
        return True

    def _fix_spread(self) -> bool:
        """Replace the voter that is too near to the others by one that is not."""
        scene = self.scene
        if not scene.has_localities or self.lost:
            return False
        before = overlap_of(self.good)
        if before <= scene.facts(self.placement).least_overlap:
            return False
        best: tuple[int, bool, StoreId, StoreView] | None = None
        for victim in self.good:
            rest = [store for store in self.good if store is not victim]
            store, is_possible = scene.best_store(self.view, rest, self.placement)
            if store is None:
                self.is_possible = self.is_possible or is_possible
                continue
            after = (overlap_of([*rest, store]), victim is self.leaseholder, victim.store_id, store)
            if after[0] < before and (best is None or after[:3] < best[:3]):
                best = after
        if best is None:
            return True
        self.is_possible = True
        if scene.has_room and self.leaseholder.store_id not in scene.sending:
            _, is_leaseholder, victim_id, store = best
            if is_leaseholder:
                others = [other for other in self.good if other.store_id != victim_id and other.takes_replicas]
                if others:
                    scene.transfer(self.view, self._best_leaseholder(others).store_id, "its replica goes to another place")
            else:
                reason = f"replicas on distinct places: store {store.store_id} instead of {victim_id}"
                scene.change(self.view, reason, add=(store,), remove=(victim_id,))
        return True

    def _fix_preference(self) -> bool:
        """Replace a voter by one that the lease may go to, if none of them is and replicas come no nearer to each other by it."""
        scene, placement = self.scene, self.placement
        if self.lost or not self.facts.is_preferred_there or not placement.lease_preference or _has_preferred(placement, self.good):
            return False
        before = overlap_of(self.good)
        best: tuple[int, int, StoreId, StoreView] | None = None
        for victim in self.good:
            rest = [store for store in self.good if store is not victim]
            store, is_possible = scene.best_store(self.view, rest, placement, must_lead=True)
            self.is_possible = self.is_possible or (is_possible and store is None)
            if store is None or victim is self.leaseholder:
                continue
            after = (overlap_of([*rest, store]), -scene.replicas[victim.store_id], victim.store_id, store)
            if after[0] <= before and (best is None or after[:3] < best[:3]):
                best = after
        if best is None:
            return self.is_possible
        self.is_possible = True
        if scene.has_room and self.leaseholder.store_id not in scene.sending:
            scene.change(self.view, "its placement prefers a leaseholder there", add=(best[3],), remove=(best[2],))
        return True

    def fix_lease(self) -> bool:
        """Plan to move the lease if it should be elsewhere."""
        scene = self.scene
        if not _is_lease_misplaced(self.leaseholder, self.placement, self.good):
            return False
        if scene.transfers >= scene.settings.transfers_max:
            self.is_possible = True
            return False
        others = [store for store in self.good if store.takes_replicas and store is not self.leaseholder]
        if not others:
            return False
        if not self.leaseholder.takes_replicas:
            reason = f"node {self.leaseholder.node_id} is {self.leaseholder.node_state.value}"
        else:
            reason = "its placement prefers another leaseholder"
        scene.transfer(self.view, self._best_leaseholder(others).store_id, reason)
        return True

    def _best_leaseholder(self, stores: Sequence[StoreView]) -> StoreView:
        leases = self.scene.leases
        return min(stores, key=lambda store: (not self.placement.prefers(store.locality), leases.get(store.store_id, 0), store.store_id))
