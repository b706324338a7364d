"""Scattering: moves that spread some ranges, those of a table perhaps, evenly over the stores, whatever else those stores have.

Invariants:
- Each move makes the fullest store of these ranges less full, and leaves none fuller than it was: scattering again and again ends.
- A range that is being moved or must be repaired is left for later, as is one whose new store receives another one.
- What placements and localities ask for is kept.
"""

from collections.abc import Sequence

from dsdb.coordinator.scene import Scene, overlap_of
from dsdb.coordinator.view import RangeView, is_joint, voters_of
from dsdb.kv.ids import RangeId, StoreId

REASON = "scattered"
_GAP = 2
"""Two stores differ by so many of the ranges before one is moved."""


def scatter(scene: Scene, range_ids: Sequence[RangeId]) -> int:
    """Plan the next moves; give how many ranges wait for a later step."""
    view = scene.view
    chosen = [view.ranges[range_id] for range_id in sorted(range_ids) if range_id in view.ranges]
    replicas = {store.store_id: 0 for store in scene.takers}
    leases = dict(replicas)
    for found in chosen:
        for store_id in scene.stores_of(found.desc.range_id):
            replicas[store_id] = replicas.get(store_id, 0) + 1
        if found.leaseholder is not None:
            leases[found.leaseholder] = leases.get(found.leaseholder, 0) + 1
    left = 0
    for found in chosen:
        is_settled = found.leaseholder is not None and not found.is_changing and not is_joint(found.desc)
        if not is_settled or found.desc.range_id in scene.busy or found.desc.range_id in view.faulty:
            left += 1
        elif _move_replica(scene, found, replicas):
            left += found.desc.range_id not in scene.busy
        else:
            _move_lease(scene, found, leases)
    return left


def _move_replica(scene: Scene, found: RangeView, counts: dict[StoreId, int]) -> bool:
    """Plan to move a replica from the store with most of these ranges to that with fewest; say whether one should be moved."""
    view = scene.view
    members = voters_of(found.desc)
    placement = view.placements.of(found.desc)
    stores = {store_id: view.stores[store_id] for store_id in members if store_id in view.stores}
    fullest = sorted(stores, key=lambda store_id: (-counts.get(store_id, 0), store_id == found.leaseholder, store_id))
    takers = [store for store in scene.takers if store.store_id not in members and placement.allows(store.locality)]
    takers.sort(key=lambda store: (counts[store.store_id], scene.replicas[store.store_id], store.store_id))
    for taker in takers:
        for source in fullest:
            if counts[source] - counts[taker.store_id] < _GAP:
                break
            kept = [store for store_id, store in sorted(stores.items()) if store_id != source]
            if taker.host in {store.host for store in kept}:
                continue
            if placement.lease_preference and not any(placement.prefers(store.locality) for store in [*kept, taker]):
                continue
            if overlap_of([*kept, taker]) > overlap_of([*kept, stores[source]]):
                continue
            if scene.has_room and taker.store_id not in scene.receiving:
                scene.change(found, REASON, add=[taker], remove=[source])
                counts[source] -= 1
                counts[taker.store_id] += 1
            return True
    return False


def _move_lease(scene: Scene, found: RangeView, counts: dict[StoreId, int]) -> None:
    """Plan to move the lease to the voter that leads fewest of these ranges."""
    view, holder = scene.view, found.leaseholder
    assert holder is not None, found
    placement = view.placements.of(found.desc)
    stores = [view.stores[store_id] for store_id in voters_of(found.desc) if store_id in view.stores]
    is_preferred = placement.prefers(view.stores[holder].locality)
    takers = [store for store in stores if store.takes_replicas and (placement.prefers(store.locality) or not is_preferred)]
    if not takers:
        return
    best = min(takers, key=lambda store: (counts.get(store.store_id, 0), scene.leases.get(store.store_id, 0), store.store_id)).store_id
    if counts[holder] - counts.get(best, 0) >= _GAP:
        scene.transfer(found, best, REASON)
        counts[holder] -= 1
        counts[best] = counts.get(best, 0) + 1
