"""Scattering: some ranges end spread evenly, whatever else there is, after a bounded number of moves that keep what placements ask for."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsdb.coordinator import scatter as scatter_module
from dsdb.coordinator.moves import ChangeReplicas, Move, SplitRange, Target, TransferLease
from dsdb.coordinator.placement import PlacementBook
from dsdb.coordinator.scatter import scatter
from dsdb.coordinator.scene import Scene, Settings
from dsdb.coordinator.view import ClusterView, NodeState, RangeView, StoreView, voters_of
from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor
from dsdb.kv.ids import NodeId, RangeId, StoreId
from dsdb.raft.messages import ReplicaId
from dsdb.sql.constraints import read_constraints
from dsdb.storage.keys import table_prefix
from dsdb.store.range_settings import StoredSettings


def cluster(stores: int, ranges: int, *, zones: int = 0) -> ClusterView:
    """Put all ranges on the first three stores, led by the first."""
    view = ClusterView()
    for number in range(1, stores + 1):
        locality = (("zone", f"z{number % zones}"),) if zones else ()
        view.put_store(StoreView(store_id=StoreId(number), node_id=NodeId(number), locality=locality))
    for number in range(1, ranges + 1):
        view.put_range(range_on(number, [1, 2, 3], leaseholder=1))
    return view


def range_on(number: int, stores: list[int], *, leaseholder: int, generation: int = 1) -> RangeView:
    replicas = tuple(ReplicaDescriptor(ReplicaId(at), NodeId(store), StoreId(store)) for at, store in enumerate(stores, 1))
    key = table_prefix(1, 100) + b"%04d"
    desc = RangeDescriptor(RangeId(number), key % number, key % (number + 1), generation, replicas, ReplicaId(9))
    return RangeView(desc=desc, leaseholder=StoreId(leaseholder), lease_term=generation + 1)


def carry_out(view: ClusterView, move: Move) -> None:
    now = view.ranges[move.range_id]
    voters = [int(store_id) for store_id in voters_of(now.desc)]
    leaseholder = now.leaseholder
    assert not isinstance(move, SplitRange), "scattering cuts nothing"
    if isinstance(move, TransferLease):
        assert leaseholder == move.leaseholder
        leaseholder = move.to
    else:
        assert len(move.add) == len(move.remove) == 1
        voters = [int(target.store_id) for target in move.add] + [store for store in voters if store not in move.remove]
        if leaseholder in move.remove:
            leaseholder = StoreId(voters[-1])
    assert leaseholder is not None
    assert len(set(voters)) == 3
    assert leaseholder in voters
    view.put_range(range_on(move.range_id, voters, leaseholder=leaseholder, generation=now.desc.generation + 1))


def spread(view: ClusterView, ids: list[RangeId], moves_max: int) -> int:
    """Scatter until nothing is left; give the number of moves."""
    moves = 0
    while True:
        scene = Scene(view, (), Settings())
        left = scatter(scene, ids)
        if not scene.moves:
            assert not left
            return moves
        receiving = [target.store_id for move in scene.moves if isinstance(move, ChangeReplicas) for target in move.add]
        assert len(set(receiving)) == len(receiving), "a store gets one replica at a time"
        for move in scene.moves:
            carry_out(view, move)
        moves += len(scene.moves)
        assert moves <= moves_max, "it does not end"


def counts(view: ClusterView, ids: list[RangeId]) -> tuple[Counter[StoreId], Counter[StoreId | None]]:
    replicas = Counter(store_id for range_id in ids for store_id in voters_of(view.ranges[range_id].desc))
    return replicas, Counter(view.ranges[range_id].leaseholder for range_id in ids)


def check_even(view: ClusterView, ids: list[RangeId]) -> None:
    replicas, leases = counts(view, ids)
    stores = sorted(view.stores)
    assert max(replicas[store] for store in stores) - min(replicas[store] for store in stores) <= 1, replicas
    assert max(leases[store] for store in stores) - min(leases[store] for store in stores) <= 2, leases


@given(stores=st.integers(3, 9), ranges=st.integers(1, 40), part=st.integers(1, 3))
def test_ranges_end_spread_evenly(stores: int, ranges: int, part: int) -> None:
    view = cluster(stores, ranges)
    ids = [RangeId(number) for number in range(1, ranges + 1, part)]
    others = {range_id: found for range_id, found in view.ranges.items() if range_id not in ids}
    spread(view, ids, moves_max=6 * len(ids))
    check_even(view, ids)
    assert all(view.ranges[range_id] == found for range_id, found in others.items())


def test_it_stays_in_zones_and_where_placements_allow() -> None:
    view = cluster(9, 30, zones=3)
    ids = sorted(view.ranges)
    spread(view, ids, moves_max=200)
    for found in view.ranges.values():
        assert len({view.stores[store_id].locality for store_id in voters_of(found.desc)}) == 3
    view.set_placements(PlacementBook({100: StoredSettings(database_id=1, constraints=read_constraints("", "zone=z0"))}))
    replicas, _ = counts(view, ids)
    spread(view, ids, moves_max=200)
    after, _ = counts(view, ids)
    assert all(after[store_id] <= replicas[store_id] for store_id, store in view.stores.items() if store.locality != (("zone", "z0"),))


def test_nodes_that_take_nothing_get_nothing_and_busy_ranges_wait() -> None:
    view = cluster(4, 8)
    view.put_store(StoreView(store_id=StoreId(4), node_id=NodeId(4), node_state=NodeState.DRAINING))
    ids = sorted(view.ranges)
    spread(view, ids, moves_max=50)
    replicas, leases = counts(view, ids)
    assert replicas[StoreId(4)] == leases[StoreId(4)] == 0
    view = cluster(4, 8)
    underway = TransferLease(desc=view.ranges[RangeId(1)].desc, leaseholder=StoreId(1), to=StoreId(2), reason="")
    scene = Scene(view, (underway,), Settings())
    assert scatter(scene, ids) >= 1
    assert all(move.range_id != 1 for move in scene.moves)


def test_without_a_gap_it_would_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scatter_module, "_GAP", 1)
    with pytest.raises(AssertionError, match="does not end"):
        spread(cluster(5, 7), [RangeId(number) for number in range(1, 8)], moves_max=42)


def test_what_is_under_way_counts_where_it_goes_to_and_once() -> None:
    """The view may not show it yet, or show its end already: neither begins moves that would have to be taken back."""
    view = cluster(4, 0)
    for number, stores in enumerate([[1, 2, 3], [1, 2, 3], [2, 3, 4], [2, 3, 4], [3, 4, 1], [3, 4, 1], [4, 1, 2], [4, 1, 2]], 1):
        view.put_range(range_on(number, stores, leaseholder=stores[0]))
    even = view.ranges[RangeId(3)]
    crowded = range_on(3, [2, 3, 1], leaseholder=2)
    move = ChangeReplicas(
        desc=crowded.desc, leaseholder=StoreId(2), add=(Target(StoreId(4), NodeId(4)),), remove=(StoreId(1),), reason="planned before"
    )
    for seen in (crowded, even):
        view.put_range(seen)
        scene = Scene(view, (move,), Settings())
        assert set(scene.replicas.values()) == {6}
        scatter(scene, list(view.ranges))
        assert scene.moves == []
