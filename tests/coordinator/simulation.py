"""A cluster that does what plans say: moves take some rounds, some fail, loads are noisy, stores die, join and leave.

    python -m tests.coordinator.simulation --stores 1000 --ranges 100000      times of plans, and what a dead store and new ones cost

Checked of every plan: no two replicas of a range on one host, no live voters fewer than there were or are wanted, none where its placement
does not allow it, one replica at a time received and sent by a store, one move a range, no more under way than allowed; and that a view
in which all moves are through gives none.
"""

import argparse
import random
import time
from collections import Counter

import msgspec

from dsdb.coordinator.moves import ChangeReplicas, Move, SplitRange, TransferLease
from dsdb.coordinator.placement import Locality
from dsdb.coordinator.plan import steps
from dsdb.coordinator.scene import Settings
from dsdb.coordinator.view import ClusterView, NodeState, RangeView, StoreState, StoreView
from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor
from dsdb.kv.ids import NodeId, RangeId, StoreId
from dsdb.raft.messages import ReplicaId

replace = msgspec.structs.replace


class World:
    """A simulated cluster, and the view of it."""

    def __init__(self, seed: int, *, stores: int, ranges: int, zones: int = 0, load: float = 0.0, failing: float = 0.0) -> None:
        self.chance = random.Random(seed)
        self.settings = Settings()
        self.view = ClusterView()
        self.failing = failing
        self.zones = zones
        self.underway: list[tuple[int, Move]] = []
        """With the rounds that they still take."""
        self.resting: dict[RangeId, int] = {}
        self.measuring: dict[RangeId, int] = {}
        """Ranges whose new leaseholders do not know their load yet, with the rounds that they need."""
        self.moves: Counter[str] = Counter()
        self.slowest_step_s = 0.0
        """Times are those of the processor."""
        self.slowest_plan_s = 0.0
        for number in range(1, stores + 1):
            self.add_store(number)
        for number in range(1, ranges + 1):
            self.view.put_range(self._range(number, stores, load))

    def add_store(self, number: int) -> None:
        zone: Locality = (("zone", f"z{number % self.zones}"),) if self.zones else ()
        self.view.put_store(StoreView(store_id=StoreId(number), node_id=NodeId(number), locality=zone))

    def _range(self, number: int, stores: int, load: float) -> RangeView:
        """Put a range on stores of different zones, all in turn, so that nothing is wrong with it."""
        offset = self.chance.choice((1, 2, 3)) if stores > 9 else 1
        first = number % stores
        members = [StoreId((first + step * offset) % stores + 1) for step in (0, 1, 2)]
        replicas = tuple(ReplicaDescriptor(ReplicaId(at), NodeId(store), store) for at, store in enumerate(members, 1))
        key = b"%08d" % number
        desc = RangeDescriptor(RangeId(number), key, b"%08d" % (number + 1), 1, replicas, ReplicaId(4))
        return RangeView(desc=desc, leaseholder=members[0], lease_term=6, size_bytes=32 << 20, requests_per_s=load)

    # ---- Faults ----

    def set_store(self, number: int, *, state: StoreState | None = None, node_state: NodeState | None = None) -> None:
        store = self.view.stores[StoreId(number)]
        self.view.put_store(replace(store, state=state or store.state, node_state=node_state or store.node_state))
        if state in (StoreState.DEAD, StoreState.SUSPECT):
            for range_id in sorted(self.view.leases_on[StoreId(number)]):
                found = self.view.ranges[range_id]
                live = [member.store_id for member in found.desc.voters if self._is_live(member.store_id)]
                self.view.put_range(replace(found, leaseholder=live[0] if live else None, lease_term=found.lease_term + 1))

    def _is_live(self, store_id: StoreId) -> bool:
        return self.view.stores[store_id].state is StoreState.LIVE

    def shake_load(self, loads: dict[RangeId, float], part: float) -> None:
        """Let every load be a little other than it is."""
        for range_id in sorted(self.view.ranges):
            load = loads[range_id] * self.chance.uniform(1 - part, 1 + part)
            self.view.put_range(replace(self.view.ranges[range_id], requests_per_s=load))

    # ---- Rounds ----

    def round(self) -> list[Move]:
        """Plan, check, begin, and let some of what is under way end."""
        found: list[Move] = []
        began = last = time.process_time()
        resting = {range_id for range_id, rounds in self.resting.items() if rounds > 0}
        for _ in steps(self.view, [move for _, move in self.underway], self.settings, found, resting):
            now = time.process_time()
            self.slowest_step_s, last = max(self.slowest_step_s, now - last), now
        self.slowest_plan_s = max(self.slowest_plan_s, time.process_time() - began)
        self.resting = {range_id: rounds - 1 for range_id, rounds in self.resting.items() if rounds > 0}
        self.underway += [(self.chance.choice((0, 0, 1, 3)), move) for move in found]
        self.check(found)
        ended = [move for rounds, move in self.underway if rounds == 0]
        self.underway = [(rounds - 1, move) for rounds, move in self.underway if rounds > 0]
        for move in ended:
            self._end(move)
        self._measure()
        return found

    def _measure(self) -> None:
        self.measuring = {range_id: rounds - 1 for range_id, rounds in self.measuring.items()}
        for range_id in [range_id for range_id, rounds in self.measuring.items() if rounds == 0]:
            del self.measuring[range_id]
            load, _ = self.view.unsettled.get(range_id, (0.0, 0.0))
            self.view.settle(range_id)
            self.view.put_range(replace(self.view.ranges[range_id], requests_per_s=load))

    def run(self, rounds_max: int = 100_000) -> int:
        """Go on until nothing is to be done; give the number of rounds."""
        for number in range(rounds_max):
            is_calm = not self.underway and not self.resting and not self.measuring
            if not self.round() and is_calm:
                return number
        raise AssertionError(f"it does not come to rest: {self.moves}")

    def _end(self, move: Move) -> None:
        found = self.view.ranges[move.range_id]
        if found.desc.generation != move.desc.generation or found.leaseholder != move.leaseholder or self.chance.random() < self.failing:
            self.moves["failed"] += 1
            self.resting[move.range_id] = 2
            return
        if isinstance(move, TransferLease):
            self.moves["lease"] += 1
            self.view.put_range(replace(found, leaseholder=move.to, lease_term=found.lease_term + 1, requests_per_s=0.0))
            self.measuring[move.range_id] = 3
            return
        if isinstance(move, SplitRange):
            self.moves["split"] += 1
            self._split(found, move.key)
            return
        self.moves["replica"] += max(len(move.add), 1)
        first = found.desc.next_replica_id
        added = tuple(ReplicaDescriptor(ReplicaId(first + at), to.node_id, to.store_id) for at, to in enumerate(move.add))
        kept = tuple(member for member in found.desc.replicas if member.store_id not in move.remove)
        desc = replace(
            found.desc,
            generation=found.desc.generation + 1,
            replicas=(*kept, *added),
            next_replica_id=ReplicaId(first + len(added)),
        )
        self.view.put_range(replace(found, desc=desc))

    def _split(self, found: RangeView, key: bytes) -> None:
        desc, right_id = found.desc, RangeId(max(self.view.ranges) + 1)
        assert desc.start_key < key < desc.end_key, (desc, key)
        generation = desc.generation + 1
        right = replace(desc, range_id=right_id, start_key=key, generation=generation)
        self.view.put_range(replace(found, desc=replace(desc, end_key=key, generation=generation)))
        self.view.put_range(replace(found, desc=right))

    # ---- Checks ----

    def check(self, planned: list[Move]) -> None:
        underway = [move for _, move in self.underway]
        ranges = Counter(move.range_id for move in underway)
        assert max(ranges.values(), default=0) <= 1, "two moves of one range"
        changes = [move for move in underway if isinstance(move, ChangeReplicas)]
        assert len(changes) <= self.settings.moves_max
        receiving = Counter(target.store_id for move in changes for target in move.add)
        assert max(receiving.values(), default=0) <= 1, "a store receives two replicas"
        sending = Counter(move.leaseholder for move in changes if move.add)
        assert max(sending.values(), default=0) <= 1, "a store sends two replicas"
        for move in planned:
            if isinstance(move, ChangeReplicas):
                self._check_change(move)

    def _check_change(self, move: ChangeReplicas) -> None:
        stores = self.view.stores
        before = [member.store_id for member in move.desc.voters]
        after = [store_id for store_id in before if store_id not in move.remove] + [target.store_id for target in move.add]
        assert move.leaseholder not in move.remove, f"the leaseholder goes: {move}"
        nodes = [stores[store_id].node_id for store_id in after]
        assert len(set(nodes)) == len(nodes), f"two replicas on one node: {move}"
        live_before, live_after = (sum(map(self._is_live, group)) for group in (before, after))
        assert 2 * live_after > len(after), f"no quorum: {move}"
        placement = self.view.placements.of(move.desc)
        # One of an even number is no loss: as many others may die as before.
        is_even = len(before) % 2 == 0 and bool(placement.constraints)
        assert live_after >= min(live_before - is_even, placement.replicas), f"fewer live replicas: {move}"
        for target in move.add:
            assert stores[target.store_id].takes_replicas, move
            assert placement.allows(stores[target.store_id].locality), f"not allowed there: {move}"

    def spread(self) -> tuple[int, int, int, int]:
        """Give the least and the greatest number of replicas, and of leases, of a store that takes them."""
        figures = [self.view.figures[store.store_id] for store in self.view.stores.values() if store.takes_replicas]
        replicas, leases = [one.replicas for one in figures], [one.leases for one in figures]
        return min(replicas), max(replicas), min(leases), max(leases)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stores", type=int, default=1000)
    parser.add_argument("--ranges", type=int, default=100_000)
    parser.add_argument("--joining", type=int, default=2)
    options = parser.parse_args()
    began = time.perf_counter()
    world = World(1, stores=options.stores, ranges=options.ranges, zones=5)
    print(f"built in {time.perf_counter() - began:.1f} s")

    def report(what: str) -> None:
        began, before = time.perf_counter(), dict(world.moves)
        rounds = world.run()
        moved = {name: count - before.get(name, 0) for name, count in world.moves.items()}
        print(
            f"{what}: {rounds} rounds in {time.perf_counter() - began:.1f} s, moves {moved}, slowest plan {world.slowest_plan_s:.2f} s, "
            f"slowest step {world.slowest_step_s * 1000:.0f} ms, replicas and leases {world.spread()}"
        )
        world.slowest_plan_s = world.slowest_step_s = 0.0

    report("at rest")
    world.set_store(7, state=StoreState.DEAD)
    report("a store died")
    for number in range(options.joining):
        world.add_store(options.stores + 1 + number)
    report(f"{options.joining} joined")
    world.set_store(9, node_state=NodeState.DECOMMISSIONING)
    report("one is decommissioned")


if __name__ == "__main__":
    main()
