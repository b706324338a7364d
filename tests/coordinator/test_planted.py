"""Faults planted in the planner: what the simulation of clusters would say if a rule were not obeyed."""

from collections.abc import Callable

import pytest

from dsdb.coordinator import balance, repair
from dsdb.coordinator.scene import Scene
from dsdb.coordinator.view import NodeState, StoreState, StoreView
from dsdb.kv.ids import NodeId, StoreId
from tests.coordinator.simulation import World


def the_old_one_goes_first(patch: pytest.MonkeyPatch) -> None:
    """A lost replica is removed, and then there is room for another."""
    change = Scene.change

    def remove_only(self: Scene, view: object, reason: str, *, add: object = (), remove: object = ()) -> None:
        change(self, view, reason, add=() if remove else add, remove=remove)  # type: ignore[arg-type]

    patch.setattr(Scene, "change", remove_only)


def two_replicas_on_one_node(patch: pytest.MonkeyPatch) -> None:
    """Stores are counted, not hosts."""
    patch.setattr(StoreView, "host", property(lambda self: (("store", str(self.store_id)),)))


def nobody_counts_what_is_under_way(patch: pytest.MonkeyPatch) -> None:
    """Every plan fills the same gap."""
    patch.setattr(Scene, "_take", lambda self, move: None)


def a_suspect_store_is_dead(patch: pytest.MonkeyPatch) -> None:
    """A store that is silent for a moment loses its replicas."""
    patch.setattr(repair._Repair, "_is_dead", lambda self, store_id: not self._is_live(store_id))
    patch.setattr(StoreView, "keeps_replicas", property(lambda self: self.state is StoreState.LIVE))


def balance_has_no_margin(patch: pytest.MonkeyPatch) -> None:
    """A move is made if it makes nothing worse."""
    scale = balance._scale

    def greedy(*arguments: float) -> balance.Scale:
        found = scale(*arguments)  # type: ignore[arg-type]
        return balance.Scale(found.one * 0.5, found.unit, 0.0)

    patch.setattr(balance, "_scale", greedy)


def storm() -> None:
    """Let stores die, return, leave and come back; several stores are of one node."""
    world = World(1, stores=12, ranges=120, failing=0.05)
    for number in range(13, 16):
        world.view.put_store(StoreView(store_id=StoreId(number), node_id=NodeId(number - 12)))
    world.run(500)
    moved = world.moves["replica"] + world.moves["lease"]
    assert moved < 300, f"{moved} moves for three new stores"
    world.moves.clear()
    world.set_store(5, state=StoreState.SUSPECT)
    for _ in range(10):
        world.round()
    assert not world.moves["replica"], "moves for a store that is silent for a moment"
    world.set_store(5, state=StoreState.LIVE)
    world.set_store(6, state=StoreState.DEAD)
    for _ in range(10):
        world.round()
    world.set_store(7, node_state=NodeState.DECOMMISSIONING)
    world.run(500)


def test_without_a_fault_all_is_well() -> None:
    storm()


@pytest.mark.parametrize(
    "plant",
    [
        the_old_one_goes_first,
        two_replicas_on_one_node,
        nobody_counts_what_is_under_way,
        a_suspect_store_is_dead,
        balance_has_no_margin,
    ],
)
def test_planted_fault_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    with pytest.raises(AssertionError):
        storm()
