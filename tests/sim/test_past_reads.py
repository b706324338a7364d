"""Reads of the past on whole nodes: whoever has a replica answers, also a node that is cut off from all others (rule 23)."""

import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio
import trio.testing

from dsdb.sql.errors import InvalidParameterError
from tests.sim.node_clients import Model
from tests.sim.node_faults import draw
from tests.sim.node_sim import Simulation, _seed_trio, simulate
from tests.sim.past_clients import read_past
from tests.sim.rare_events import Hooks
from tests.sim.sql_clients import Session

LAG_S = 6.0
"""After so long everything is closed everywhere."""
TEXT = "SELECT id, n FROM counters"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Nodes that are cut off say so."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Scene(Simulation):
    """Three nodes with `counters` in several ranges, and a story instead of clients."""

    story: Callable[["Scene"], Awaitable[None]]

    async def run(self) -> Model:
        async with trio.open_nursery() as self.nursery:
            for _ in range(3):
                await self.add_host()
            await self.set_up()
            await type(self).story(self)
            self.nursery.cancel_scope.cancel()
        return self.model

    async def ask(self, host: int, text: str) -> list[tuple[object, ...]]:
        node = self.hosts[host].node
        assert node is not None
        return await Session(node).run(text)

    def follower_reads(self, host: int) -> float:
        node = self.hosts[host].node
        assert node is not None
        assert node.parts is not None
        return node.parts.store.statistics()["follower_reads"]

    async def now(self, host: int = 0) -> int:
        node = self.hosts[host].node
        assert node is not None
        assert node.parts is not None
        return await node.parts.transactions.begin().read_timestamp()

    async def at(self, host: int, ts: int, text: str = TEXT) -> list[tuple[object, ...]]:
        node = self.hosts[host].node
        assert node is not None
        return sorted(await read_past(node, text, ts))  # type: ignore[arg-type]  # a timestamp, as a number


def play(story: Callable[[Scene], Awaitable[None]]) -> None:
    class Played(Scene):
        pass

    Played.story = story  # type: ignore[assignment]
    _seed_trio(1)
    model = Model()
    hooks = Hooks(model.events)
    hooks.install(None, 3.0)
    try:
        scene = Played(1, 0.0, draw(1, (), ("count",)), hooks, model)
        scene.chance = random.Random(1)
        trio.run(scene.run, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        hooks.undo()


def test_every_node_reads_the_past_from_its_own_replicas() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask(0, "UPDATE counters SET n = 1")
        ts = await scene.now()
        await scene.ask(1, "UPDATE counters SET n = 2")
        await trio.sleep(LAG_S)
        for host in range(3):
            assert await scene.at(host, ts) == [(0, 1), (1, 1), (2, 1)]
            assert await scene.at(host, ts, "SELECT n FROM counters WHERE id = 2") == [(1,)]
        # Three ranges led by somebody: whoever does not lead one has read it all the same.
        assert sum(scene.follower_reads(host) for host in range(3)) >= 6

    play(story)


def test_a_node_that_is_cut_off_reads_what_is_resolved() -> None:
    async def story(scene: Scene) -> None:
        await scene.ask(0, "UPDATE counters SET n = 1")
        ts = await scene.now()
        await trio.sleep(LAG_S)
        await scene.ask(1, "UPDATE counters SET n = 2")
        young = await scene.now(1)
        names = [host.name for host in scene.hosts]
        for one, other in itertools.permutations(names, 2):
            scene.network.block(one, other)
        await trio.sleep(3.0)
        for host in range(3):
            began = trio.current_time()
            assert await scene.at(host, ts) == [(0, 1), (1, 1), (2, 1)]
            assert await scene.at(host, ts, "SELECT n FROM counters WHERE id = 2") == [(1,)]
            rows = await scene.ask(host, "SELECT n FROM counters AS OF SYSTEM TIME follower_read_timestamp() WHERE id = 1")
            assert rows in ([(0,)], [(1,)])
            assert trio.current_time() - began < 0.5
        scene.network.heal()
        await trio.sleep(LAG_S)
        for host in range(3):
            assert await scene.at(host, young) == [(0, 2), (1, 2), (2, 2)]

    play(story)


def test_the_future_is_refused_also_where_the_present_is_not_known() -> None:
    async def story(scene: Scene) -> None:
        with pytest.raises(InvalidParameterError):
            await scene.at(2, await scene.now() + (3_600_000 << 18))

    play(story)


def test_reads_of_the_past_are_final_under_faults() -> None:
    clients = ("insert", "count", "transfers", "past")
    model = simulate(5, 4.0, ("crash", "transfer", "split", "delays", "link"), clients=clients, closed_lag_s=0.3)
    assert model.events["reads of the past"] > 50, model.events
    assert model.events["store: follower reads"] > 20, model.events
