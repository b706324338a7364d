"""Whole nodes under trio's MockClock: the code that runs in production, on a simulated network, disk and clock.

Clients (`node_clients`) work on the nodes while hosts crash, losing what was not synced, are partitioned, stall and come back, ranges are
split and leases move.  Everything follows from the seed; each seed draws its own mix of faults.

    python -m tests.sim.node_sim --seed N [--seconds S] [--verbose]
    python -m tests.sim.node_sim --search MINUTES [--seed N] [--seconds S]

The faults are in `node_faults`, the counts of what is rare in `rare_events`, the command in `node_search`.

Checked: every acknowledged insert is there from then on, once; a counter that is only incremented reads, at any moment, at least what was
acknowledged before the read began, at most what was asked for before it ended, and never less than an earlier read; transactions over
lists, accounts and rows are strictly serializable (`tests.checkers`); every statement ends in time; when the faults are over, everything
is back in BACK_S.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import trio
import trio.testing

from dsdb.env import Address
from dsdb.kv.descriptor import RangeDescriptor
from dsdb.node.config import NodeConfig
from dsdb.node.node import Node
from dsdb.sql.errors import CannotConnectNowError, SerializationError, UnknownOutcomeError
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.errors import StorageError
from tests.checkers import listappend, timestamps
from tests.checkers.history import Violation, refuse
from tests.sim.ddl_clients import DDL_TABLES
from tests.sim.network import SimClock, SimNetwork
from tests.sim.node_clients import COUNTERS, LISTS, Clients, Model, check_counter, execute
from tests.sim.node_faults import Faults, Mix, draw
from tests.sim.node_members import check_members
from tests.sim.rare_events import Hooks
from tests.sim.sql_clients import SPLITS, TABLES

T = TypeVar("T")

HOSTS = 3
BACK_S = 4.0
"""Simulated time after the last fault in which every host must serve every range again."""
DEAD_AFTER_S = 3.0
"""A host that was silent for so long loses its replicas, if there is a fourth one."""
LATE_S = 3.0
"""Simulated time at the end in which what dead hosts' clients sent may still take effect, once more than it should."""


@dataclass
class Host:
    """A machine: what survives its crash."""

    name: str
    address: Address
    engine: MemoryEngine
    clock: SimClock
    disk: "SimDisk"
    worker: "SimDisk"
    """Where rows are folded."""
    node: Node | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    died: trio.Event = field(default_factory=trio.Event)
    is_up: bool = False


FOLDS = 0.6
"""Part of the seeds in which rows are folded soon, a few at a time."""


class SimDisk:
    """Runs calls in the loop after a seeded delay, as a disk would."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.slowness = 1

    async def run(self, call: Callable[[], T]) -> T:
        with trio.CancelScope(shield=True):
            await trio.sleep(self._chance.choice((0.0005, 0.001, 0.002, 0.01)) * self.slowness)
        return call()

    def run_promptly(self, call: Callable[[], object]) -> bool:
        is_prompt = self.slowness == 1 and self._chance.random() < 0.5
        if is_prompt:
            call()
        return is_prompt

    def close(self) -> None:
        pass


class Simulation:
    """One run."""

    def __init__(self, seed: int, seconds: float, mix: Mix, hooks: Hooks, model: Model, keep: Path | None = None) -> None:
        self.seed = seed
        self.keep = keep
        self.chance = random.Random(seed)
        self.fold_chance = random.Random(f"folding {seed}")
        """Of its own, so that a run is about the same without."""
        self.seconds = seconds
        self.mix = mix
        self.hooks = hooks
        self.model = model
        self.network = SimNetwork(self.chance, delay_ms=mix.delay_ms)
        self.hosts: list[Host] = []
        self.ranges = 2 + COUNTERS + sum(SPLITS[kind] for kind in mix.clients if kind in SPLITS)
        """The system's, that of all tables, and what was cut off from it."""
        self.nursery: trio.Nursery

    async def run(self) -> Model:
        async with trio.open_nursery() as self.nursery:
            for _ in range(HOSTS):
                await self.add_host()
            await self.set_up()
            kinds, keys = self.mix.clients, await self.list_keys()
            clients = Clients(self.hosts, self.model, self.chance, self.nursery, keys, kinds, self.seed)
            await clients.run(Faults(self).run)
            await self.check_end(clients)
            self.nursery.cancel_scope.cancel()
        return self.model

    # ---- Hosts ----

    @property
    def founders(self) -> list[Host]:
        """Give the hosts that were there from the beginning: faults are theirs."""
        return self.hosts[:HOSTS]

    async def add_host(self) -> None:
        number = len(self.hosts) + 1
        clock = SimClock(drift=self.chance.choice((-0.002, 0, 0.002)), offset_s=self.chance.random() * 1000)
        host = Host(f"h{number}", Address(f"10.0.0.{number}", 7432), MemoryEngine(), clock, SimDisk(self.chance), SimDisk(self.fold_chance))
        self.hosts.append(host)
        await self.start(host)

    async def start(self, host: Host) -> None:
        with trio.fail_after(60):
            await self.nursery.start(self.live, host)

    async def live(self, host: Host, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run a host's node until it dies."""
        # A node that has been a member needs nobody to join; if it is given somebody, it asks first.
        is_told = host.node is None or self.chance.random() < 0.5
        join = (self.hosts[0].address,) if is_told and host is not self.hosts[0] else ()
        host.node = node = Node(
            NodeConfig(store=None, listen=host.address, http=None, join=join, dead_after_s=DEAD_AFTER_S),
            clock=host.clock,
            network=self.network.host(host.name),
            disk=host.disk,
            worker=host.worker,
            chance=random.Random(self.chance.getrandbits(64)),
            engine=host.engine,
        )
        died = host.died = trio.Event()
        with trio.CancelScope() as host.scope:
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(node.run)
                    host.is_up = True
                    task_status.started()
                    await node.ended.wait()
            except* StorageError:
                # What a dying node meets on the disk that was taken from it; a living one must not.
                if not died.is_set():
                    raise
        if not died.is_set() and not self.nursery.cancel_scope.cancel_called:
            raise Violation(f"the node of {host.name} ended by itself")

    def kill(self, host: Host, *, is_silent: bool = False) -> None:
        """Let a host die: its process, whose connections break at once, or its power, of which nobody is told."""
        self.count(host)
        host.engine = host.engine.crash(self.chance)  # first: what the dying node still writes does not count
        host.is_up = False
        host.died.set()
        host.scope.cancel()
        if is_silent:
            self.network.silence(host.name)
        else:
            self.network.cut(host.name)

    def count(self, host: Host) -> None:
        """Add what a node has counted to the run's events."""
        if host.is_up and host.node is not None and host.node.parts is not None:
            self.model.events["store: follower reads"] += int(host.node.parts.store.statistics()["follower_reads"])
            for name, _, count in host.node.parts.txn_counters.entries():
                self.model.events[f"txn: {name}"] += count

    # ---- Before and after ----

    async def set_up(self) -> None:
        for kind in self.mix.clients:
            for text in (*TABLES.get(kind, ()), *DDL_TABLES.get(kind, ())):
                await self.patiently(0, text)
        await self.patiently(0, "CREATE TABLE sets (id INT PRIMARY KEY)")
        await self.patiently(0, "CREATE TABLE counters (id INT PRIMARY KEY, n INT NOT NULL)")
        for counter in range(COUNTERS):
            await self.patiently(0, "INSERT INTO counters VALUES ($1, 0)", counter)
        await self.patiently(0, "ALTER TABLE counters SPLIT AT VALUES (0), (1), (2)")
        with trio.fail_after(120):
            while not self.is_replicated():  # noqa: ASYNC110 (nothing else tells it)
                await trio.sleep(0.5)

    def is_replicated(self) -> bool:
        descriptors = self.descriptors()
        return len(descriptors) >= self.ranges and all(len(desc.voters) == HOSTS for desc in descriptors)

    def descriptors(self) -> list[RangeDescriptor]:
        """Give the ranges of the first host."""
        node = self.hosts[0].node
        assert node is not None
        assert node.parts is not None
        return sorted(node.parts.store.descriptors(), key=lambda desc: desc.start_key)

    async def list_keys(self) -> list[bytes]:
        """Give keys for the lists: two in each of the ranges of `counters`, which are the last ones, behind its first row."""
        starts = [desc.start_key for desc in self.descriptors()[-COUNTERS:]]
        return [start + b"\xff" + bytes([number]) for number in range(LISTS // COUNTERS) for start in starts]

    async def patiently(self, host: int, text: str, *values: int, limit_s: float = 60) -> list[tuple[Any, ...]]:
        """Run a statement until it succeeds."""
        end = trio.current_time() + limit_s
        while True:
            node = self.hosts[host].node
            assert node is not None
            try:
                return await execute(node, text, *values)
            except (CannotConnectNowError, SerializationError, UnknownOutcomeError) as error:
                self.model.events[f"patience: {error.sqlstate}"] += 1
                if trio.current_time() > end:
                    raise Violation(f"{text!r} on host {host + 1} still fails after {limit_s} s: {error}") from error
                await trio.sleep(0.1)

    async def check_end(self, clients: Clients) -> None:
        """With all faults over: everything is back soon, and everything acknowledged is there."""
        self.heal()
        if len(self.hosts) > HOSTS:
            await check_members(self)
        began = trio.current_time()
        for host in range(len(self.hosts)):
            await self.try_all(host, BACK_S)
        self.model.slowest_back_s = trio.current_time() - began
        await trio.sleep(LATE_S)
        for number, state in sorted(self.model.inserted.items()):
            rows = await self.patiently(number % len(self.hosts), "SELECT id FROM sets WHERE id = $1", number)
            if state == "acknowledged" and rows != [(number,)]:
                raise Violation(f"row {number} was acknowledged, and is not there")
            if state == "failed" and rows:
                raise Violation(f"row {number} was said to have failed, and is there")
        for counter in range(COUNTERS):
            rows = await self.patiently(0, "SELECT n FROM counters WHERE id = $1", counter)
            check_counter(self.model, counter, self.model.acknowledged[counter], rows)
        node = self.hosts[0].node
        assert node is not None
        await clients.read_lists(node)
        await clients.past.check_end([host.node for host in self.hosts if host.node is not None])
        await clients.sql.check([kind for kind in self.mix.clients if kind in TABLES], node, self.keep)
        if "ddl" in self.mix.clients:
            await clients.ddl.check([host.node for host in self.hosts if host.node is not None])
        for host in self.hosts:
            self.count(host)
        history = self.model.lists.history(f"lists of seed {self.seed}")
        refuse(listappend.check(history) + timestamps.check(history), history, self.keep)

    def heal(self) -> None:
        self.network.heal()
        for host in self.hosts:
            host.disk.slowness = 1

    async def try_all(self, host: int, limit_s: float) -> None:
        """Write to each range from a host."""
        for counter in range(COUNTERS):
            await self.patiently(host, "UPDATE counters SET n = n WHERE id = $1", counter, limit_s=limit_s)


def simulate(
    seed: int,
    seconds: float,
    faults: tuple[str, ...] | None = None,
    keep: Path | None = None,
    clients: tuple[str, ...] | None = None,
    events: Counter[str] | None = None,
    closed_lag_s: float | None = None,
    kind: type[Simulation] = Simulation,
) -> Model:
    """Run one seed.  Raises Violation, or whatever else went wrong; a history that is wrong is kept.

    faults, clients, closed_lag_s: instead of the seed's own; events: counts what happens, also in a run that fails; kind: what runs.
    """
    _seed_trio(seed)
    mix = draw(seed, faults, clients, closed_lag_s)
    model = Model(events=Counter() if events is None else events)
    hooks = Hooks(model.events)
    folds = random.Random(f"folds {seed}").random() < FOLDS
    hooks.install(mix.staged_keys, mix.closed_lag_s, mix.flush_keys, splits_soon=mix.splits_soon, folds=folds)
    try:
        simulation = kind(seed, seconds, mix, hooks, model, keep)
        return trio.run(simulation.run, clock=trio.testing.MockClock(autojump_threshold=0))
    except BaseExceptionGroup as group:
        raise _first(group) from group
    finally:
        hooks.undo()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Give the violation in a group, or else its first error."""
    leaves: list[BaseException] = []
    waiting: list[BaseException] = [group]
    while waiting:
        error = waiting.pop(0)
        if isinstance(error, BaseExceptionGroup):
            waiting += error.exceptions
        else:
            leaves.append(error)
    return next((error for error in leaves if isinstance(error, Violation)), leaves[0])


def _seed_trio(seed: int) -> None:
    """Make trio's scheduling follow the seed."""
    import trio._core._run as run

    run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    run._r.seed(seed)


if __name__ == "__main__":
    from tests.sim.node_search import main

    main()
