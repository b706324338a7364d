"""What the coordinator would change: a pure function of what it sees."""

import pytest

from dsdb.coordinator.plan import AddReplicas, Move, RangeView, StoreView, TransferLease, plan
from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor
from dsdb.kv.ids import NodeId, RangeId, StoreId
from dsdb.raft.messages import ReplicaId


def stores(count: int, *, dead: int = 0) -> list[StoreView]:
    return [StoreView(store_id=StoreId(n), node_id=NodeId(n), is_live=n != dead) for n in range(1, count + 1)]


def a_range(number: int, leaseholder: int | None, *on: int) -> RangeView:
    replicas = tuple(ReplicaDescriptor(ReplicaId(n), NodeId(store), StoreId(store)) for n, store in enumerate(on, 1))
    desc = RangeDescriptor(RangeId(number), b"%03d" % number, b"%03d" % (number + 1), 1, replicas, ReplicaId(len(on) + 1))
    return RangeView(desc=desc, leaseholder=None if leaseholder is None else StoreId(leaseholder))


def lease_moves(leaseholders: list[int | None], *, count: int = 3, dead: int = 0) -> list[Move]:
    """Plan for ranges 1 (the system range), 2, …, all on all stores."""
    everywhere = range(1, count + 1)
    return plan(stores(count, dead=dead), [a_range(n, holder, *everywhere) for n, holder in enumerate(leaseholders, 1)])


@pytest.mark.parametrize(("count", "added"), [(1, []), (2, []), (3, [2, 3])])
def test_ranges_get_three_replicas_as_soon_as_three_nodes_are_there(count: int, added: list[int]) -> None:
    moves = plan(stores(count), [a_range(1, 1, 1)])
    assert [store.store_id for move in moves if isinstance(move, AddReplicas) for store in move.stores] == added


def test_replicas_come_before_leases() -> None:
    views = [a_range(1, 1, 1, 2, 3), a_range(2, 1, 1, 2, 3), a_range(3, 1, 1, 2, 3), a_range(4, 1, 1)]
    assert [type(move) for move in plan(stores(3), views)] == [AddReplicas]


def test_a_lone_lease_stays_beside_the_oracle() -> None:
    assert lease_moves([1, 1]) == []


def test_leases_spread_one_at_a_time_and_the_oracle_stays() -> None:
    assert lease_moves([1, 1, 1]) == [TransferLease(range_id=RangeId(3), to=StoreId(2))]
    assert lease_moves([1, 1, 2, 1]) == [TransferLease(range_id=RangeId(4), to=StoreId(3))]
    assert lease_moves([1, 1, 2, 3]) == []
    assert lease_moves([1, 2, 3, 2, 3, 2]) == [TransferLease(range_id=RangeId(6), to=StoreId(1))]


def test_nothing_is_given_to_a_dead_store_or_taken_from_nobody() -> None:
    assert lease_moves([1, 1, 1, 1], dead=2) == [TransferLease(range_id=RangeId(4), to=StoreId(3))]
    assert lease_moves([1, None, None, None]) == []


def test_moves_come_to_an_end() -> None:
    holders: list[int | None] = [1] * 20
    for _ in range(40):
        moves = lease_moves(holders)
        if not moves:
            break
        (move,) = moves
        assert isinstance(move, TransferLease)
        holders[move.range_id - 1] = move.to
    assert lease_moves(holders) == []
    counts = [holders[1:].count(store) for store in (1, 2, 3)]
    assert max(counts) - min(counts) <= 1
    assert holders[0] == 1
