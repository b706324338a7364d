"""Whole nodes under trio's MockClock: the code that runs in production, on a simulated network, disk and clock.

Clients run SQL on the nodes' executors while hosts crash (losing what was not synced), are partitioned, and come back.  Everything
follows from the seed.

    python -m tests.sim.node_sim --seed N [--seconds S]

Checked: every acknowledged insert is there at the end, once; a counter that is only incremented reads, at any moment, at least what was
acknowledged before the read began, at most what was asked for before it ended, and never less than an earlier read (so no write is
lost, applied twice, or unread).
"""

import argparse
import logging
import random
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio
import trio.testing

from dsdb.env import Address
from dsdb.node.config import NodeConfig
from dsdb.node.node import Node
from dsdb.sql.errors import CannotConnectNowError, SerializationError, SqlError, UnknownOutcomeError
from dsdb.sql.execute.result import Parameter
from dsdb.sql.execute.session import SessionState
from dsdb.sql.types import INT
from dsdb.storage.engine.memory import MemoryEngine
from tests.sim.network import SimClock, SimNetwork

T = TypeVar("T")

HOSTS = 3
COUNTERS = 3
STATEMENT_S = 12.0
"""A statement must end within this: with rows, or with an error."""
SETTLE_S = 15.0
"""Simulated time without faults at the end, in which everything must come back."""


class Violation(AssertionError):
    """Something that must hold did not."""


@dataclass
class Host:
    """A machine: what survives its crash."""

    name: str
    address: Address
    engine: MemoryEngine
    clock: SimClock
    node: Node | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    is_up: bool = False


@dataclass
class Model:
    """What clients know."""

    inserted: dict[int, str] = field(default_factory=dict)  # id -> acknowledged | unknown | failed
    asked: Counter[int] = field(default_factory=Counter)  # increments asked for, by counter
    acknowledged: Counter[int] = field(default_factory=Counter)
    failed: Counter[int] = field(default_factory=Counter)  # known not to have taken effect
    read: Counter[int] = field(default_factory=Counter)  # highest value that a finished read gave
    events: Counter[str] = field(default_factory=Counter)
    trace: int = 0

    def note(self, *what: object) -> None:
        """Add to the trace, by which two runs of a seed are compared."""
        self.trace = zlib.crc32(repr((round(trio.current_time(), 6), what)).encode(), self.trace)


class SimDisk:
    """Runs calls in the loop after a seeded delay, as a disk would."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    async def run(self, call: Callable[[], T]) -> T:
        with trio.CancelScope(shield=True):
            await trio.sleep(self._chance.choice((0.0005, 0.001, 0.002, 0.01)))
        return call()

    def close(self) -> None:
        pass


class Simulation:
    """One run."""

    def __init__(self, seed: int, seconds: float) -> None:
        self.chance = random.Random(seed)
        self.seconds = seconds
        self.network = SimNetwork(self.chance)
        self.hosts: list[Host] = []
        self.model = Model()
        self.is_over = False
        self.next_id = 1

    async def run(self) -> Model:
        async with trio.open_nursery() as nursery:
            for number in range(HOSTS):
                host = Host(
                    f"h{number + 1}",
                    Address(f"10.0.0.{number + 1}", 7432),
                    MemoryEngine(),
                    SimClock(drift=self.chance.choice((-0.002, 0, 0.002)), offset_s=self.chance.random() * 1000),
                )
                self.hosts.append(host)
                await nursery.start(self.live, host)
            await self.set_up()
            async with trio.open_nursery() as clients:
                for client in range(4):
                    clients.start_soon(self.insert_client, client)
                    clients.start_soon(self.counter_client, client)
                await self.faults(nursery)
                self.is_over = True
            await self.settle(nursery)
            nursery.cancel_scope.cancel()
        return self.model

    async def live(self, host: Host, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run a host's node until it is crashed."""
        join = () if host is self.hosts[0] else (self.hosts[0].address,)
        config = NodeConfig(store=None, listen=host.address, http=None, join=join)
        host.node = Node(
            config,
            clock=host.clock,
            network=self.network.host(host.name),
            disk=SimDisk(self.chance),
            chance=random.Random(self.chance.getrandbits(64)),
            engine=host.engine,
        )
        with trio.CancelScope() as host.scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(host.node.run)
                host.is_up = True
                task_status.started()
                await host.node.ended.wait()

    async def set_up(self) -> None:
        await self.patiently("CREATE TABLE sets (id INT PRIMARY KEY)")
        await self.patiently("CREATE TABLE counters (id INT PRIMARY KEY, n INT NOT NULL)")
        for counter in range(COUNTERS):
            await self.patiently("INSERT INTO counters VALUES ($1, 0)", counter)
        await self.patiently("ALTER TABLE counters SPLIT AT VALUES (1), (2)")
        with trio.fail_after(120):
            while not await self.is_replicated():
                await trio.sleep(0.5)  # noqa: ASYNC110 (nothing else tells it)

    async def is_replicated(self) -> bool:
        node = self.hosts[0].node
        assert node is not None
        assert node.parts is not None
        descriptors = node.parts.store.descriptors()
        return len(descriptors) >= 4 and all(len(desc.voters) == HOSTS for desc in descriptors)

    async def patiently(self, text: str, *values: int) -> list[tuple[Any, ...]]:
        """Run a statement until it succeeds."""
        with trio.fail_after(60):
            while True:
                try:
                    return await self.execute(self.hosts[0], text, *values)
                except SqlError as error:
                    self.model.events[f"patience: {error.sqlstate}"] += 1
                    if not isinstance(error, CannotConnectNowError | SerializationError | UnknownOutcomeError):
                        raise
                    await trio.sleep(0.2)

    async def execute(self, host: Host, text: str, *values: int) -> list[tuple[Any, ...]]:
        assert host.node is not None
        assert host.node.parts is not None
        executor = host.node.parts.executor
        began = trio.current_time()
        try:
            (statement,) = executor.prepare(text)
            result = await executor.run(SessionState(), statement, [Parameter(INT, value) for value in values])
            if result.rows is not None:
                return result.rows
            if result.batches is not None:
                return [tuple(row.values()) async for batch in result.batches for row in batch.to_pylist()]
            return []
        finally:
            if trio.current_time() - began > STATEMENT_S:
                raise Violation(f"{text!r} took {trio.current_time() - began:.1f} s")

    async def on_some_host(self, text: str, *values: int) -> list[tuple[Any, ...]] | None:
        """Run a statement on a host; None if its outcome is unknown.  Raises SqlError when it is known to have had no effect."""
        host = self.chance.choice(self.hosts)
        if not host.is_up:
            await trio.sleep(0.05)
            raise CannotConnectNowError("the host is down")
        outcome: list[tuple[Any, ...]] | None = None
        # A client of a host that crashes sees its connection break: the outcome is unknown.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_with, host, nursery.cancel_scope)
            try:
                outcome = await self.execute(host, text, *values)
            except UnknownOutcomeError:
                outcome = None
            finally:
                nursery.cancel_scope.cancel()
        return outcome

    async def insert_client(self, client: int) -> None:
        while not self.is_over:
            number, self.next_id = self.next_id, self.next_id + 1
            self.model.inserted[number] = "unknown"
            try:
                done = await self.on_some_host("INSERT INTO sets VALUES ($1)", number)
            except SqlError as error:
                self.expected(error)
                self.model.inserted[number] = "failed"
            else:
                if done is not None:
                    self.model.inserted[number] = "acknowledged"
                    self.model.events["insert acknowledged"] += 1
                else:
                    self.model.events["insert unknown"] += 1
            self.model.note("insert", client, number, self.model.inserted[number])
            await trio.sleep(self.chance.choice((0, 0.001, 0.01, 0.05)))

    async def counter_client(self, client: int) -> None:
        model = self.model
        while not self.is_over:
            counter = self.chance.randrange(COUNTERS)
            try:
                if self.chance.random() < 0.5:
                    model.asked[counter] += 1
                    try:
                        done = await self.on_some_host("UPDATE counters SET n = n + 1 WHERE id = $1", counter)
                    except SqlError:
                        model.failed[counter] += 1
                        raise
                    if done is not None:
                        model.acknowledged[counter] += 1
                    model.events["increment acknowledged" if done is not None else "increment unknown"] += 1
                    model.note("increment", client, counter, done is not None)
                else:
                    least = max(model.acknowledged[counter], model.read[counter])
                    rows = await self.on_some_host("SELECT n FROM counters WHERE id = $1", counter)
                    if rows is not None:
                        self.check_read(counter, least, rows)
                        model.note("read", client, counter, rows)
            except SqlError as error:
                self.expected(error)
            await trio.sleep(self.chance.choice((0, 0.001, 0.01, 0.05)))

    def check_read(self, counter: int, least: int, rows: list[tuple[Any, ...]]) -> None:
        ((value,),) = rows
        most = self.model.asked[counter] - self.model.failed[counter]
        if not least <= value <= most:
            raise Violation(f"counter {counter} reads {value}; at least {least} and at most {most} was possible")
        self.model.read[counter] = max(self.model.read[counter], value)
        self.model.events["read"] += 1

    def expected(self, error: SqlError) -> None:
        """Let an error of unavailability or contention pass."""
        if not isinstance(error, CannotConnectNowError | SerializationError):
            raise error
        self.model.events[f"error {error.sqlstate}"] += 1

    async def faults(self, nursery: trio.Nursery) -> None:
        end = trio.current_time() + self.seconds
        while trio.current_time() < end:
            await trio.sleep(self.chance.uniform(0.2, 3))
            kind = self.chance.choice(("crash", "partition", "one-way", "heal", "pause", "wall clock"))
            self.model.events[kind] += 1
            self.model.note(kind)
            if kind == "crash" and all(host.is_up for host in self.hosts):
                host = self.chance.choice(self.hosts)
                self.crash(host)
                await trio.sleep(self.chance.uniform(0.1, 4))
                await self.restart(host, nursery)
            elif kind in ("partition", "one-way"):
                host = self.chance.choice(self.hosts)
                for other in self.hosts:
                    if other is not host:
                        self.network.block(host.name, other.name)
                        if kind == "partition":
                            self.network.block(other.name, host.name)
                await trio.sleep(self.chance.uniform(0.1, 4))
                self.network.heal()
            elif kind == "wall clock":
                self.chance.choice(self.hosts).clock.wall_jump_ms = self.chance.choice((-3_600_000, 0, 3_600_000))

    def crash(self, host: Host) -> None:
        host.engine = host.engine.crash(self.chance)  # first: what the dying node still writes does not count
        host.is_up = False
        host.scope.cancel()
        self.network.cut(host.name)

    async def restart(self, host: Host, nursery: trio.Nursery) -> None:
        await trio.sleep(0.01)
        with trio.fail_after(30):
            await nursery.start(self.live, host)

    async def settle(self, nursery: trio.Nursery) -> None:
        self.network.heal()
        await trio.sleep(SETTLE_S)
        for number, state in sorted(self.model.inserted.items()):
            rows = await self.patiently("SELECT id FROM sets WHERE id = $1", number)
            if state == "acknowledged" and rows != [(number,)]:
                raise Violation(f"row {number} was acknowledged, and is not there")
            if state == "failed" and rows:
                raise Violation(f"row {number} was said to have failed, and is there")
        for counter in range(COUNTERS):
            least = self.model.acknowledged[counter]
            self.check_read(counter, least, await self.patiently("SELECT n FROM counters WHERE id = $1", counter))


async def _cancel_with(host: Host, scope: trio.CancelScope) -> None:
    assert host.node is not None
    await host.node.ended.wait()
    scope.cancel()


def simulate(seed: int, seconds: float) -> Model:
    """Run one seed.  Raises Violation, or whatever else went wrong."""
    _seed_trio(seed)
    simulation = Simulation(seed, seconds)
    try:
        return trio.run(simulation.run, clock=trio.testing.MockClock(autojump_threshold=0))
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from group


def _seed_trio(seed: int) -> None:
    """Make trio's scheduling follow the seed."""
    import trio._core._run as run

    run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    run._r.seed(seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    if options.verbose:
        logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s")
    began = time.perf_counter()
    model = simulate(options.seed, options.seconds)
    print(f"seed {options.seed}: {options.seconds:.0f} s simulated in {time.perf_counter() - began:.1f} s, trace {model.trace:08x}")
    for name, count in sorted(model.events.items()):
        print(f"  {name:28} {count}")


if __name__ == "__main__":
    main()
