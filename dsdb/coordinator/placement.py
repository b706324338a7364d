"""Where replicas are to be: how many, where they may be, and where leases should be; what a table says, else what the cluster says.

    product (three replicas, anywhere) ◂ cluster ◂ table            ALTER TABLE t CONFIGURE PLACEMENT (…)

    … ────── shared ranges ──────┃ table with a placement ┃────── shared ranges ── …        ┃ bounds: ranges are cut there

Invariants:
- A placement governs ranges that hold nothing else than its table's keys; until a range is cut at the table's bounds it is the cluster's.
- What is not of one table (the system range, the ranges that tables share) is where the cluster says; and the system range has as many
  replicas as the placement that asks for most, as a table cannot outlive it.
- A store meets constraints by its node's locality alone.

Not here: what becomes of a range that is not where it should be (`repair`); how constraints are spelled (`dsdb.sql.constraints`).
"""

import difflib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.sql.constraints import Constraints, is_met, spelled
from dsdb.storage.keys import SYSTEM_END
from dsdb.store.range_settings import CLUSTER_TABLE, StoredSettings, table_span

REPLICAS = 3
"""Voters of a range whose placement says nothing else."""
Locality = tuple[tuple[str, str], ...]
"""Where a node is, from the widest tier to the narrowest: ((region, eu), (zone, a), (machine, m1))."""


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where the replicas of a table are to be.

    constraints: that every replica's locality meets; lease_preference: that the leaseholder's should meet.
    """

    replicas: int = REPLICAS
    constraints: Constraints = ()
    lease_preference: Constraints = ()

    def allows(self, locality: Locality) -> bool:
        """Say whether a replica may be at a locality."""
        return not self.constraints or is_met(self.constraints, locality)

    def prefers(self, locality: Locality) -> bool:
        """Say whether the lease should rather be at a locality than elsewhere."""
        return is_met(self.lease_preference, locality)


def placement_over(placement: Placement, said: StoredSettings) -> Placement:
    """Give a placement with what is set in its place."""
    return Placement(
        replicas=placement.replicas if said.replicas is None else said.replicas,
        constraints=placement.constraints if said.constraints is None else said.constraints,
        lease_preference=placement.lease_preference if said.lease_preference is None else said.lease_preference,
    )


class PlacementBook:
    """All placements, as a plan looks at them."""

    def __init__(self, stored: Mapping[int, StoredSettings]) -> None:
        self._said = {table_id: said for table_id, said in sorted(stored.items()) if said.says_where_to_be}
        self.default = placement_over(Placement(), self._said.get(CLUSTER_TABLE, StoredSettings()))
        own = sorted(
            (table_span(said.database_id, table_id), table_id, placement_over(self.default, said))
            for table_id, said in self._said.items()
            if table_id != CLUSTER_TABLE
        )
        self._starts = [span.start for span, _, _ in own]
        self._ends = [span.end for span, _, _ in own]
        self._own = [placement for _, _, placement in own]
        self._bounds = sorted({*self._starts, *self._ends})
        most = max([self.default.replicas, *[placement.replicas for placement in self._own]])
        self._system = msgspec.structs.replace(self.default, replicas=most)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementBook) and self._said == other._said

    __hash__ = None  # type: ignore[assignment]

    def of(self, desc: RangeDescriptor) -> Placement:
        """Give what holds for a range."""
        if desc.start_key < SYSTEM_END:
            return self._system
        if not self._own:
            return self.default
        at = bisect_right(self._starts, desc.start_key) - 1
        return self._own[at] if at >= 0 and desc.end_key <= self._ends[at] else self.default

    @property
    def constrained(self) -> list[Placement]:
        """Give the placements that allow some places only."""
        return [placement for placement in (self.default, *self._own) if placement.constraints]

    def cut_of(self, desc: RangeDescriptor) -> bytes | None:
        """Give where a range must be cut, so that no table with a placement shares it; the middle of several such keys."""
        begin, end = bisect_right(self._bounds, desc.start_key), bisect_left(self._bounds, desc.end_key)
        return self._bounds[(begin + end) // 2] if begin < end else None


def factor_of(placement: Placement, hosts: int) -> int:
    """Give the voters that a range gets on so many hosts: of fewer than are wanted an odd number, as two are worse than one."""
    return placement.replicas if hosts >= placement.replicas else max(hosts - 1 + hosts % 2, 1)


class Place(msgspec.Struct, frozen=True):
    """Where a store is.  host: what fails as one with it."""

    locality: Locality
    host: Locality


def refusal_of_placement(placement: Placement, places: Sequence[Place]) -> str | None:
    """Say why a placement makes no sense at all: it speaks of tiers that no node has."""
    known = sorted({key for place in places for key, _ in place.locality})
    for constraint in (*placement.constraints, *placement.lease_preference):
        key = constraint.tier[0]
        if key in known:
            continue
        close = difflib.get_close_matches(key, known, 1)
        if close:
            return f'no node has a locality with "{key}": did you mean "{close[0]}"?'
        there = f"there are {', '.join(known)}" if known else "nodes are given one with --locality when they are started"
        return f'no node has a locality with "{key}": {there}'
    return None


def doubts_about(placement: Placement, places: Sequence[Place]) -> list[str]:
    """Say in sentences what a placement cannot come to with the stores there are."""
    values = {tier for place in places for tier in place.locality}
    found = [
        f"no node has {'='.join(constraint.tier)}"
        for constraint in dict.fromkeys((*placement.constraints, *placement.lease_preference))
        if constraint.tier not in values
    ]
    allowed = [place for place in places if placement.allows(place.locality)]
    hosts = _hosts(allowed)
    if not allowed:
        found.append(f"no node meets {spelled(placement.constraints)}: replicas stay where they are until there is one")
    elif hosts < placement.replicas:
        which = f"that meet {spelled(placement.constraints)}" if placement.constraints else "in the cluster"
        rest = "; what is elsewhere stays there until there are more" if placement.constraints else ""
        found.append(f"{placement.replicas} replicas are wanted, on as many nodes, or machines, and there are {hosts} {which}{rest}")
    if allowed and placement.lease_preference and not any(placement.prefers(place.locality) for place in allowed):
        found.append(f"no node that may have replicas meets {spelled(placement.lease_preference)}: leases go where they would without it")
    return found


def _hosts(places: Iterable[Place]) -> int:
    return len({place.host for place in places})
