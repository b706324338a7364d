"""Two of three hosts are gone, in simulated time: statements of every kind end with an error soon, and are served when a quorum is back."""

import logging
from collections.abc import Iterator

import pytest
import trio

from dsdb.sql.errors import SqlError
from tests.sim.node_clients import Model, execute
from tests.sim.node_sim import BACK_S, HOSTS, Simulation, simulate


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Nodes that die say so."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


STATEMENTS = (
    "SELECT id FROM sets WHERE id = 1",
    "SELECT count(*) FROM counters",
    "SELECT n FROM counters WHERE id = 1 FOR UPDATE",
    "INSERT INTO sets VALUES (1000)",
    "INSERT INTO sets SELECT n + 2000 FROM counters",
    "UPDATE counters SET n = n + 1 WHERE id = 0",
    "UPDATE counters SET n = n + 1",
    "DELETE FROM sets WHERE id = 1",
    "CREATE TABLE made_alone (id INT PRIMARY KEY)",
    "ALTER TABLE sets SPLIT AT VALUES (500)",
    "SELECT count(*) FROM system.ranges",
)
"""Of every kind that needs some range."""
ENDED_S = 12.0
"""A request's deadline, and what a statement does besides."""


def test_every_kind_of_statement_ends_in_time_without_a_quorum_and_is_served_after_it() -> None:
    """B22: statements hang while a range has no quorum."""
    told: list[tuple[str, str, float]] = []

    class Alone(Simulation):
        async def ask(self, text: str) -> None:
            node, began, what = self.hosts[0].node, trio.current_time(), "done"
            assert node is not None
            with trio.move_on_after(60) as patience:
                try:
                    await execute(node, text)
                except SqlError as error:
                    what = error.sqlstate
            told.append((text, "never" if patience.cancelled_caught else what, trio.current_time() - began))

        async def run(self) -> Model:
            async with trio.open_nursery() as self.nursery:
                for _ in range(HOSTS):
                    await self.add_host()
                await self.set_up()
                for host in self.hosts[1:]:
                    self.kill(host, is_silent=host is self.hosts[1])
                # What is asked at once still believes in its leases; what is asked later does not.
                for pause_s in (0.0, 20.0):
                    await trio.sleep(pause_s)
                    async with trio.open_nursery() as asking:
                        for text in STATEMENTS:
                            asking.start_soon(self.ask, text)
                for host in self.hosts[1:]:
                    await self.start(host)
                await self.try_all(0, BACK_S)
                self.nursery.cancel_scope.cancel()
            return self.model

    simulate(5, 0.0, ("quorum",), clients=("insert", "count"), kind=Alone)
    assert {what for _, what, _ in told} <= {"57P03", "40003", "done"}, told
    assert all(seconds <= ENDED_S for _, _, seconds in told), told
    # Nothing that writes was acknowledged.  As long as its leases last a host may serve reads, and later say what it remembers.
    early, late = told[: len(STATEMENTS)], told[len(STATEMENTS) :]
    assert all(text.startswith("SELECT") for text, what, _ in early if what == "done"), told
    assert {text for text, what, _ in late if what == "done"} <= {"SELECT count(*) FROM system.ranges"}, told
