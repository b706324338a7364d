"""What the coordinator would change about a cluster as it is: a pure function from a view, and what is under way, to a list of moves.

    ranges that changed ─ judge ─▶ faulty ones ─ repair ─▶ moves; if nothing had to be repaired: balance replicas, then leases

Invariants:
- The same view and the same moves under way give the same moves; a view in which nothing is wrong gives none (bias to no action).
- One move per range; a store receives one replica, and sends one, at a time; so many in the cluster (`Settings`).
- What must be repaired goes before what could be nicer.
- No step between two pauses takes longer than some milliseconds: `steps` yields, and whoever runs it lets others have their turns.

Time: what changed since the last plan is judged (3 µs a range), what is faulty is repaired (a look at all stores each), and balance looks
at stores, and at the ranges of those that are out of line: a view of 100,000 ranges in which nothing happens costs nothing.
"""

import heapq
from collections.abc import Collection, Iterator, Sequence

from dsdb.coordinator.balance import balance_leases, balance_replicas
from dsdb.coordinator.moves import Move
from dsdb.coordinator.repair import Verdict, drain, judge, repair
from dsdb.coordinator.scene import Scene, Settings
from dsdb.coordinator.view import ClusterView
from dsdb.kv.ids import RangeId

JUDGED_AT_ONCE = 500
"""Ranges judged between two pauses."""
REPAIRED_MAX = 500
"""Faulty ranges of which one plan tries to repair some: those with fewest good voters, in the order of their ids."""


def plan(
    view: ClusterView, underway: Sequence[Move] = (), settings: Settings | None = None, resting: Collection[RangeId] = ()
) -> list[Move]:
    """Give the moves that bring the cluster nearer to what it should be."""
    found: list[Move] = []
    for _ in steps(view, underway, settings or Settings(), found, resting):
        pass
    return found


def steps(
    view: ClusterView, underway: Sequence[Move], settings: Settings, found: list[Move], resting: Collection[RangeId] = ()
) -> Iterator[None]:
    """Plan into `found`, in steps of some milliseconds; the view must not change between them.  resting: ranges to leave alone."""
    scene = Scene(view, underway, settings, resting)
    yield from _judge(scene)
    yield
    drain(scene)
    yield
    yield from _repair(scene)
    if not scene.moves:
        yield
        yield from balance_replicas(scene)
        yield
        yield from balance_leases(scene)
    found += scene.moves


def _judge(scene: Scene) -> Iterator[None]:
    view = scene.view
    for number, range_id in enumerate(sorted(view.unjudged)):
        if judge(scene, view.ranges[range_id]):
            view.faulty.add(range_id)
        else:
            view.faulty.discard(range_id)
        if number % JUDGED_AT_ONCE == JUDGED_AT_ONCE - 1:
            yield
    view.unjudged.clear()


def _repair(scene: Scene) -> Iterator[None]:
    view = scene.view

    waiting: list[tuple[int, RangeId]] = []
    for number, range_id in enumerate(view.faulty):
        good = sum(member.store_id in scene.keepers for member in view.ranges[range_id].desc.voters)
        waiting.append((good, range_id))
        if number % JUDGED_AT_ONCE == JUDGED_AT_ONCE - 1:
            yield
    for _, range_id in heapq.nsmallest(REPAIRED_MAX, waiting):
        if not scene.has_room:
            return
        if repair(scene, view.ranges[range_id]) in (Verdict.SOUND, Verdict.HOPELESS):
            view.faulty.discard(range_id)
        yield
