"""Spreading what is sound: a replica, or a lease, from a store that has too much to one that has too little.

    weight of a store = its count ÷ mean count + a part of (its bytes, or load ÷ the mean)

Invariants:
- A move makes the sum of the squares of all weights smaller, by a margin: so there is no circle of moves, and a view in which stores
  differ by less than the margin gives none, nor does small noise.
- A replica never moves nearer to the others of its range, never from its leaseholder's store, and never where a placement minds.
- A lease moves to a store only that has a voter of the range, and takes leases; at most one a plan from, or to, a store.
- The system range's lease counts for nothing and is not moved: where it is, few leases stay, which saves statements a message.
"""

from collections.abc import Iterator

import msgspec

from dsdb.coordinator.scene import Scene, overlap_of
from dsdb.coordinator.view import RangeView, StoreState, StoreView, is_joint, voters_of
from dsdb.kv.ids import SYSTEM_RANGE, RangeId, StoreId

BYTES_WEIGHT = 0.3
"""Of bytes, beside the count of replicas."""
LOAD_WEIGHT = 1.0
"""Of requests, beside the count of leases."""
TARGETS_MAX = 4
"""Emptiest stores that are tried for the replicas of a full one."""
LOOKS_MAX = 1000
"""Ranges of a store that are looked at for one that fits."""
SLICE = 256
"""Ranges looked at between two pauses."""


class Scale(msgspec.Struct, frozen=True):
    """How much one replica or lease, and one unit of the rest, weigh; and what must be gained beside."""

    one: float
    unit: float
    margin: float


def _scale(count: float, rest: float, rest_min: float, weight: float, stores: int, part: float, rest_part: float) -> Scale:
    mean_count, mean_rest = max(count / stores, 1e-9), rest / stores
    if mean_rest < rest_min:
        return Scale(1 / mean_count, 0.0, part)
    return Scale(1 / mean_count, weight / mean_rest, part + rest_part)


def balance_replicas(scene: Scene) -> Iterator[None]:
    """Plan moves of replicas from full stores to empty ones; yields between slices of work."""
    stores = [store for store in scene.takers if store.state is StoreState.LIVE]
    if len(stores) < 2:
        return
    figures, settings = scene.view.figures, scene.settings
    count = float(sum(scene.replicas[store.store_id] for store in stores))
    size = float(sum(figures[store.store_id].bytes for store in stores))
    scale = _scale(count, size, settings.bytes_min, BYTES_WEIGHT, len(stores), settings.replica_part, settings.replica_part)

    def weight(store: StoreView) -> float:
        return scene.replicas[store.store_id] * scale.one + figures[store.store_id].bytes * scale.unit

    ranked = sorted((weight(store), store.store_id) for store in stores)
    targets = [(fill, scene.view.stores[store_id]) for fill, store_id in ranked if store_id not in scene.receiving]
    for fill, store_id in reversed(ranked):
        if not targets or not scene.has_room or fill - targets[0][0] < scale.one + scale.margin:
            return
        for number, (low, target) in enumerate(targets[:TARGETS_MAX]):
            if fill - low < scale.one + scale.margin:
                break
            yield
            found = _replica_for(scene, scene.view.stores[store_id], target, fill - low, scale)
            if found is not None:
                have, want = scene.replicas[store_id], scene.replicas[target.store_id]
                reason = f"balance: store {store_id} has {have} replicas, store {target.store_id} {want}"
                scene.change(found, reason, add=(target,), remove=(store_id,))
                del targets[number]
                break


def _replica_for(scene: Scene, source: StoreView, target: StoreView, difference: float, scale: Scale) -> RangeView | None:
    """Find a range whose replica may go from one store to the other, and makes them more alike by it."""
    view = scene.view
    on_target = view.replicas_on[target.store_id]
    looked = 0
    for range_id in sorted(view.replicas_on[source.store_id]):
        if range_id in on_target or range_id in scene.busy or range_id in view.faulty:
            continue
        looked += 1
        if looked > LOOKS_MAX:
            return None
        found = view.ranges[range_id]
        is_free = found.leaseholder not in (None, source.store_id) and found.leaseholder not in scene.sending
        if not is_free or found.is_changing or is_joint(found.desc):
            continue
        if difference < scale.one + found.size_bytes * scale.unit + scale.margin:
            continue
        if _fits(scene, found, source, target):
            return found
    return None


def _fits(scene: Scene, found: RangeView, source: StoreView, target: StoreView) -> bool:
    stores = scene.view.stores
    placement = scene.view.placements.of(found.desc)
    if not placement.allows(target.locality):
        return False
    voters = voters_of(found.desc)
    if source.store_id not in voters:
        return False
    rest = [stores[store_id] for store_id in voters if store_id != source.store_id and store_id in stores]
    if any(store.host == target.host for store in rest):
        return False
    if 2 * sum(store.state is StoreState.LIVE for store in [*rest, target]) <= len(voters):
        return False
    is_preferred = placement.prefers(source.locality) and placement.lease_preference
    if is_preferred and not any(placement.prefers(store.locality) for store in [*rest, target]):
        return False
    leaseholder = stores.get(found.leaseholder or StoreId(0))
    if leaseholder is None or leaseholder.state is not StoreState.LIVE:
        return False
    return not scene.has_localities or overlap_of([*rest, target]) <= overlap_of([*rest, source])


def balance_leases(scene: Scene) -> Iterator[None]:
    """Plan moves of leases from stores that lead, or serve, much to those that do little; yields between slices of work."""
    stores = [store for store in scene.view.stores.values() if store.takes_replicas]
    if len(stores) < 2:
        return
    figures, settings = scene.view.figures, scene.settings
    count = float(sum(scene.leases[store.store_id] for store in stores))
    load = sum(figures[store.store_id].requests_per_s for store in stores)
    scale = _scale(count, load, settings.load_min, LOAD_WEIGHT, len(stores), settings.lease_part, settings.load_part)
    weights = {
        store.store_id: scene.leases[store.store_id] * scale.one + figures[store.store_id].requests_per_s * scale.unit for store in stores
    }
    lowest = min(weights.values())
    for store_id in sorted(weights, key=lambda store_id: (-weights[store_id], store_id)):
        if scene.transfers >= settings.transfers_max or weights[store_id] - lowest < scale.one + scale.margin:
            return
        if store_id in scene.lease_movers:
            continue
        yield
        found = _lease_for(scene, store_id, weights, scale)
        if found is not None:
            view, to = found
            reason = f"balance: store {store_id} has {scene.leases[store_id]} leases, store {to} {scene.leases[to]}"
            if scale.unit:
                have, want = figures[store_id].requests_per_s, figures[to].requests_per_s
                reason += f", and {have:.0f} and {want:.0f} requests/s"
            scene.transfer(view, to, reason)


def _lease_for(scene: Scene, source: StoreId, weights: dict[StoreId, float], scale: Scale) -> tuple[RangeView, StoreId] | None:
    """Find the lease whose move to another of its voters makes the two stores most alike; the last range of equals."""
    view = scene.view
    led: list[RangeId] = sorted(view.leases_on[source], reverse=True)
    best: tuple[float, RangeView, StoreId] | None = None
    for range_id in led[:LOOKS_MAX]:
        found = view.ranges[range_id]
        if range_id == SYSTEM_RANGE or range_id in scene.busy or found.is_changing or is_joint(found.desc):
            continue
        weight = scale.one + found.requests_per_s * scale.unit
        placement = view.placements.of(found.desc)
        keeps_to = bool(placement.lease_preference) and placement.prefers(view.stores[source].locality)
        for to in voters_of(found.desc):
            if to == source or to not in weights or to in scene.lease_movers:
                continue
            if keeps_to and not placement.prefers(view.stores[to].locality):
                continue
            # What the sum of squares would lose.
            gain = 2 * weight * (weights[source] - weights[to] - weight)
            if weights[source] - weights[to] >= weight + scale.margin and (best is None or gain > best[0] + 1e-9):
                best = (gain, found, to)
    return None if best is None else (best[1], best[2])
