"""Placements of tables: what a book of them says, and that clusters obey them while they change, and stores come and go."""

import random

import msgspec
import pytest

from dsdb.coordinator import repair
from dsdb.coordinator.placement import Place, Placement, PlacementBook, doubts_about, refusal_of_placement
from dsdb.coordinator.status import refusal_of
from dsdb.coordinator.view import NodeState, RangeView, StoreState, voters_of
from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.ids import NodeId, RangeId
from dsdb.raft.messages import ReplicaId
from dsdb.sql.constraints import is_met, read_constraints, spelled
from dsdb.sql.errors import InvalidParameterError
from dsdb.storage.keys import KEY_MAX, KEY_MIN, SYSTEM_END, table_prefix
from dsdb.store.range_settings import StoredSettings
from tests.coordinator.clusters import locality, parse
from tests.coordinator.simulation import World

TABLES = range(250, 262)
"""About 256, where the encoding of ids grows by a byte."""
CONSTRAINTS = ("", "zone=z1", "-zone=z2", "zone=nowhere", "-zone=z0,-zone=z1")
PREFERENCES = ("", "zone=z0", "-zone=z1", "zone=nowhere")


def placed(replicas: int | None = None, constraints: str | None = None, prefer: str | None = None) -> StoredSettings:
    return StoredSettings(
        database_id=1,
        replicas=replicas,
        constraints=None if constraints is None else read_constraints("constraints", constraints),
        lease_preference=None if prefer is None else read_constraints("lease_preference", prefer),
    )


def a_range(start: bytes, end: bytes) -> RangeDescriptor:
    return RangeDescriptor(RangeId(7), start, end, 1, (), ReplicaId(1))


def test_a_range_is_governed_by_the_one_table_that_it_holds() -> None:
    book = PlacementBook({0: placed(constraints="region=eu"), 255: placed(replicas=5), 9: StoredSettings(database_id=1, max_bytes=1)})
    own, whole = a_range(table_prefix(1, 255) + b"\x01", table_prefix(1, 256)), a_range(table_prefix(1, 3), KEY_MAX)
    assert (book.of(own).replicas, spelled(book.of(own).constraints)) == (5, "region=eu")
    assert (book.of(whole).replicas, spelled(book.of(whole).constraints)) == (3, "region=eu")
    assert book.of(a_range(KEY_MIN, SYSTEM_END)).replicas == 5
    assert book.cut_of(own) is None
    assert book.cut_of(whole) in (table_prefix(1, 255), table_prefix(1, 256))
    assert book.cut_of(a_range(table_prefix(1, 9), table_prefix(1, 10))) is None, "settings of splits are no placement"


@pytest.mark.parametrize("seed", range(3))
def test_clusters_obey_placements_that_change_while_stores_die_and_come_back(seed: int) -> None:
    settle(storm(seed, failing=0.1))


def storm(seed: int, *, failing: float) -> World:
    """Let placements change, stores die and come back, and moves fail; then all stores are back."""
    world = World(seed, stores=9, ranges=6, zones=3, failing=failing)
    some = world.view.ranges[RangeId(1)]
    world.view.put_range(
        msgspec.structs.replace(some, desc=msgspec.structs.replace(some.desc, start_key=table_prefix(1, 1), end_key=KEY_MAX))
    )
    said: dict[int, StoredSettings] = {}
    chance = random.Random(seed)
    for _ in range(60):
        table = chance.choice([0, *TABLES])
        if chance.random() < 0.2:
            said.pop(table, None)
        else:
            said[table] = placed(chance.choice((None, 1, 3, 5)), chance.choice((None, *CONSTRAINTS)), chance.choice((None, *PREFERENCES)))
        world.view.set_placements(PlacementBook(said))
        world.set_store(
            chance.randrange(1, 10), state=chance.choice((StoreState.DEAD, StoreState.SUSPECT, StoreState.LIVE, StoreState.LIVE))
        )
        for _ in range(chance.randrange(4)):
            world.round()
    for number in range(1, 10):
        world.set_store(number, state=StoreState.LIVE)
    for found in list(world.view.ranges.values()):
        if found.leaseholder is None:
            world.view.put_range(msgspec.structs.replace(found, leaseholder=voters_of(found.desc)[0]))
    return world


def settle(world: World) -> None:
    world.run(5000)
    for found in world.view.ranges.values():
        check(world, found)


def check(world: World, found: RangeView) -> None:
    """Say that a range is where it should be, as far as nine live stores of three zones can give it."""
    placement = world.view.placements.of(found.desc)
    assert world.view.placements.cut_of(found.desc) is None, found.desc
    stores = [store for store in world.view.stores.values() if placement.allows(store.locality)]
    voters = [world.view.stores[store_id] for store_id in voters_of(found.desc)]
    allowed = [store for store in voters if placement.allows(store.locality)]
    assert len(voters) <= placement.replicas, (found.desc, placement)
    if len(stores) >= placement.replicas:
        assert len(allowed) == len(voters) == placement.replicas, (found.desc, placement)
    else:
        assert len(allowed) >= min(len(stores), len(voters)), (found.desc, placement)
    leaseholder = next(store for store in voters if store.store_id == found.leaseholder)
    if any(placement.prefers(store.locality) for store in allowed):
        assert placement.prefers(leaseholder.locality), (found.desc, placement)


def test_a_constraint_that_takes_what_is_misplaced_away_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repair._Repair, "_is_spare", lambda self, store_id: True)
    with pytest.raises(AssertionError, match="fewer live replicas"):
        storm(1, failing=0.0)


def test_a_shared_range_that_is_governed_by_its_first_table_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PlacementBook, "cut_of", lambda self, desc: None)
    world = storm(1, failing=0.0)
    monkeypatch.undo()
    with pytest.raises(AssertionError):
        check(world, world.view.ranges[RangeId(1)])


def test_a_node_that_a_constraint_needs_is_not_decommissioned() -> None:
    stores = [f"store {number} region={'eu' if number < 4 else 'us'}" for number in range(1, 8)]

    def refused(node: int, *placements: str) -> str | None:
        view, _ = parse([*stores, *placements])
        return refusal_of(view, NodeId(node), NodeState.DECOMMISSIONING)

    assert refused(3) is None
    reason = refused(3, "placement 5 constraints=region=eu")
    assert reason is not None
    assert reason.startswith("without node 3 2 nodes meet region=eu, too few for 3 replicas: add a node there")
    assert refused(7, "placement 5 constraints=region=eu") is None
    assert refused(7, "placement 5 constraints=region=us") is None, "three others are left"
    assert refused(7, "placement 5 replicas=5 constraints=region=us") is not None
    assert refused(3, "placement 5 replicas=1 constraints=region=eu") is None
    assert refused(3, "placement 5 constraints=region=mars") is None, "nothing is there because of it"


def test_what_no_node_can_be_is_refused_and_what_too_few_are_is_doubted() -> None:
    places = [
        Place(locality(f"region={region},machine=m{number}"), locality(f"machine=m{number}"))
        for number, region in ((1, "eu"), (1, "eu"), (2, "us"))
    ]

    def asked(replicas: int = 1, constraints: str = "", prefer: str = "") -> Placement:
        return Placement(
            replicas=replicas, constraints=read_constraints("constraints", constraints), lease_preference=read_constraints("prefer", prefer)
        )

    assert refusal_of_placement(asked(constraints="regoin=eu"), places) == 'no node has a locality with "regoin": did you mean "region"?'
    assert refusal_of_placement(asked(prefer="rack=7"), places) == 'no node has a locality with "rack": there are machine, region'
    assert "with --locality" in (refusal_of_placement(asked(constraints="rack=7"), [Place((), (("node", "1"),))]) or "")
    assert refusal_of_placement(asked(constraints="region=mars"), places) is None
    assert doubts_about(asked(), places) == []
    assert doubts_about(asked(replicas=3), places) == [
        "3 replicas are wanted, on as many nodes, or machines, and there are 2 in the cluster"
    ]
    assert doubts_about(asked(constraints="region=mars"), places) == [
        "no node has region=mars",
        "no node meets region=mars: replicas stay where they are until there is one",
    ]
    (doubt,) = doubts_about(asked(constraints="region=eu", prefer="region=us"), places)
    assert doubt == "no node that may have replicas meets region=us: leases go where they would without it"


@pytest.mark.parametrize(
    ("text", "spelled_as"),
    [
        ("", ""),
        ("  ", ""),
        ("+region=eu", "region=eu"),
        (" region = eu , - machine = m-3 ", "region=eu,-machine=m-3"),
        ("-zone=a,-zone=b,-zone=a", "-zone=a,-zone=b"),
    ],
)
def test_constraints_are_read_and_spelled(text: str, spelled_as: str) -> None:
    found = read_constraints("constraints", text)
    assert spelled(found) == spelled_as
    assert read_constraints("constraints", spelled_as) == found


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("region", "takes key=value"),
        ("region=", "takes key=value"),
        ("=eu", "takes key=value"),
        ("region=eu,,zone=a", "takes key=value"),
        ("region=eu=us", "takes key=value"),
        ("+-region=eu", "takes key=value"),
        ('{"+region=eu": 2}', "for all replicas alike"),
        ("[+region=eu]", "for all replicas alike"),
        ("region=eu,region=us", "can never hold: a node has one region, not both eu and us"),
        ("region=eu,-region=eu", "is both wanted and forbidden"),
        (",".join(f"-zone=z{number}" for number in range(17)), "more than 16"),
    ],
)
def test_constraints_that_say_nothing_clear_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(InvalidParameterError, match=complaint):
        read_constraints("constraints", text)


def test_constraints_are_met_by_tiers_that_are_there_or_are_not() -> None:
    here = locality("region=eu,zone=a")
    met = [
        text
        for text in ("", "region=eu", "region=us", "-region=us", "zone=a,-machine=m1", "-zone=a")
        if is_met(read_constraints("c", text), here)
    ]
    assert met == ["", "region=eu", "-region=us", "zone=a,-machine=m1"]
