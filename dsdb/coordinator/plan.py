"""What the coordinator would change about a cluster as it is: a pure function from a view to a list of moves.

Invariants:
- The same view gives the same moves; a view in which nothing is wrong gives none (bias to no action).
- A range is replicated to REPLICAS stores of different nodes once so many are live, and to one before: two replicas cannot outvote
  each other, so a second one alone would only make the range less available.
- At most one move per range, and at most one lease per plan moves away from a store.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TypeAlias

import msgspec

from dsdb.kv.descriptor import RangeDescriptor, ReplicaKind
from dsdb.kv.ids import SYSTEM_RANGE, NodeId, RangeId, StoreId

REPLICAS = 3
"""Voters of a range in a cluster of three nodes or more."""


class StoreView(msgspec.Struct, frozen=True, kw_only=True):
    """A store as the coordinator sees it."""

    store_id: StoreId
    node_id: NodeId
    is_live: bool


class RangeView(msgspec.Struct, frozen=True, kw_only=True):
    """A range as the coordinator sees it; leaseholder None: nobody is known to lead it."""

    desc: RangeDescriptor
    leaseholder: StoreId | None


class AddReplicas(msgspec.Struct, frozen=True, kw_only=True):
    """Give a range replicas on these stores, from exactly this generation of its descriptor."""

    desc: RangeDescriptor
    stores: tuple[StoreView, ...]


class TransferLease(msgspec.Struct, frozen=True, kw_only=True):
    """Let another store lead a range."""

    range_id: RangeId
    to: StoreId


Move: TypeAlias = AddReplicas | TransferLease


def plan(stores: Sequence[StoreView], ranges: Sequence[RangeView]) -> list[Move]:
    """Give the moves that would bring the cluster nearer to what it should be; ranges in key order, the system range first."""
    missing = [move for view in ranges if (move := _missing_replicas(stores, ranges, view)) is not None]
    return missing or _lease_moves(stores, ranges)


def _missing_replicas(stores: Sequence[StoreView], ranges: Sequence[RangeView], view: RangeView) -> Move | None:
    live = [store for store in stores if store.is_live]
    target = REPLICAS if len({store.node_id for store in live}) >= REPLICAS else 1
    wanted = target - len(view.desc.voters)
    if wanted <= 0 or any(replica.kind in (ReplicaKind.VOTER_INCOMING, ReplicaKind.VOTER_OUTGOING) for replica in view.desc.replicas):
        return None  # enough of them, or a change is under way
    load = Counter(replica.store_id for other in ranges for replica in other.desc.replicas)
    taken = {replica.node_id for replica in view.desc.voters}
    chosen: list[StoreView] = []
    for store in sorted(live, key=lambda store: (load[store.store_id], store.store_id)):
        if store.node_id not in taken and len(chosen) < wanted:
            chosen.append(store)
            taken.add(store.node_id)
    return AddReplicas(desc=view.desc, stores=tuple(chosen)) if chosen else None


def _lease_moves(stores: Sequence[StoreView], ranges: Sequence[RangeView]) -> list[Move]:
    """Move a lease from the store with most to the one with least, if they differ by two or more and it has a replica there.

    The system range, and with it the oracle, does not count: a lease beside the oracle saves each statement a message.
    """
    live = [store.store_id for store in stores if store.is_live]
    count = Counter(dict.fromkeys(live, 0))
    others = [view for view in ranges if view.desc.range_id != SYSTEM_RANGE]
    count.update(view.leaseholder for view in others if view.leaseholder is not None and view.leaseholder in count)
    for most in sorted(live, key=lambda store_id: (-count[store_id], store_id)):
        for least in sorted(live, key=lambda store_id: (count[store_id], store_id)):
            if count[most] - count[least] < 2:
                break
            for view in reversed(others):
                replica = view.desc.replica_on(least)
                if view.leaseholder == most and replica is not None and replica.kind is ReplicaKind.VOTER:
                    return [TransferLease(range_id=view.desc.range_id, to=least)]
    return []
