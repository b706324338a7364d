"""Whole nodes under trio's MockClock: the code that runs in production, on a simulated network, disk and clock.

Clients (`node_clients`) work on the nodes while hosts crash, losing what was not synced, are partitioned, stall and come back, ranges are
split and leases move.  Everything follows from the seed; each seed draws its own mix of faults.

    python -m tests.sim.node_sim --seed N [--seconds S] [--verbose]
    python -m tests.sim.node_sim --search MINUTES [--seed N] [--seconds S]

Checked: every acknowledged insert is there from then on, once; a counter that is only incremented reads, at any moment, at least what was
acknowledged before the read began, at most what was asked for before it ended, and never less than an earlier read; transactions over
lists are strictly serializable (`tests.checkers`); every statement ends in time; when the faults are over, everything is back in BACK_S.
"""

import argparse
import logging
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import trio
import trio.testing

from dsdb.env import Address
from dsdb.kv.errors import KvError
from dsdb.kv.requests import TransferLeaseRequest
from dsdb.node.config import NodeConfig
from dsdb.node.node import Node
from dsdb.sql.errors import CannotConnectNowError, SerializationError, SqlError, UnknownOutcomeError
from dsdb.sql.ports import PortError
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.errors import StorageError
from tests.checkers import listappend, timestamps
from tests.checkers.history import Violation, refuse
from tests.sim.network import SimClock, SimNetwork
from tests.sim.node_clients import COUNTERS, LISTS, Clients, Model, check_counter, execute

T = TypeVar("T")

HOSTS = 3
BACK_S = 4.0
"""Simulated time after the last fault in which every host must serve every range again."""
FAILOVER_S = 4.0
"""Simulated time into a fault of one host after which the others must serve every range."""
LATE_S = 3.0
"""Simulated time at the end in which what dead hosts' clients sent may still take effect, once more than it should."""

FAULTS = (
    "crash",
    "power",
    "partition",
    "one-way out",
    "one-way in",
    "link",
    "resets",
    "quorum",
    "wall clock",
    "slow disk",
    "transfer",
    "split",
    "join",
)
NO_QUORUM_S = 25.0
"""How long a quorum may be away: longer than a statement may take."""


@dataclass
class Host:
    """A machine: what survives its crash."""

    name: str
    address: Address
    engine: MemoryEngine
    clock: SimClock
    disk: "SimDisk"
    node: Node | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    died: trio.Event = field(default_factory=trio.Event)
    is_up: bool = False


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

    def __init__(self, seed: int, seconds: float, faults: tuple[str, ...] | None = None, keep: Path | None = None) -> None:
        self.seed = seed
        self.keep = keep
        self.chance = random.Random(seed)
        self.seconds = seconds
        self.fault_kinds = faults or tuple(self.chance.sample(FAULTS, self.chance.randint(2, len(FAULTS))))
        self.network = SimNetwork(self.chance)
        self.hosts: list[Host] = []
        self.model = Model()
        self.nursery: trio.Nursery
        self.next_split = 1
        self.pace_s = self.chance.choice((0.5, 1.5, 3.0))

    async def run(self) -> Model:
        async with trio.open_nursery() as self.nursery:
            for _ in range(HOSTS):
                await self.add_host()
            await self.set_up()
            clients = Clients(self.hosts, self.model, self.chance, self.nursery, await self.list_keys())
            await clients.run(self.faults)
            await self.check_end(clients)
            self.nursery.cancel_scope.cancel()
        return self.model

    # ---- Hosts ----

    async def add_host(self) -> None:
        number = len(self.hosts) + 1
        clock = SimClock(drift=self.chance.choice((-0.002, 0, 0.002)), offset_s=self.chance.random() * 1000)
        host = Host(f"h{number}", Address(f"10.0.0.{number}", 7432), MemoryEngine(), clock, SimDisk(self.chance))
        self.hosts.append(host)
        await self.start(host)

    async def start(self, host: Host) -> None:
        with trio.fail_after(60):
            await self.nursery.start(self.live, host)

    async def live(self, host: Host, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run a host's node until it dies."""
        join = () if host is self.hosts[0] else (self.hosts[0].address,)
        host.node = node = Node(
            NodeConfig(store=None, listen=host.address, http=None, join=join),
            clock=host.clock,
            network=self.network.host(host.name),
            disk=host.disk,
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
        host.engine = host.engine.crash(self.chance)  # first: what the dying node still writes does not count
        host.is_up = False
        host.died.set()
        host.scope.cancel()
        if is_silent:
            self.network.silence(host.name)
        else:
            self.network.cut(host.name)

    # ---- Before and after ----

    async def set_up(self) -> None:
        await self.patiently(0, "CREATE TABLE sets (id INT PRIMARY KEY)")
        await self.patiently(0, "CREATE TABLE counters (id INT PRIMARY KEY, n INT NOT NULL)")
        for counter in range(COUNTERS):
            await self.patiently(0, "INSERT INTO counters VALUES ($1, 0)", counter)
        await self.patiently(0, "ALTER TABLE counters SPLIT AT VALUES (1), (2)")
        with trio.fail_after(120):
            while not self.is_replicated():  # noqa: ASYNC110 (nothing else tells it)
                await trio.sleep(0.5)

    def is_replicated(self) -> bool:
        node = self.hosts[0].node
        assert node is not None
        assert node.parts is not None
        descriptors = node.parts.store.descriptors()
        return len(descriptors) >= 4 and all(len(desc.voters) == HOSTS for desc in descriptors)

    async def list_keys(self) -> list[bytes]:
        """Give keys for the lists: two in each of the ranges of `counters`, behind its first row."""
        node = self.hosts[0].node
        assert node is not None
        assert node.parts is not None
        starts = sorted(desc.start_key for desc in node.parts.store.descriptors())[-3:]
        return [start + b"\xff" + bytes([number]) for number in range(LISTS // 3) for start in starts]

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
        for host in self.hosts:
            if host.is_up and host.node is not None and host.node.parts is not None:
                for name, _, count in host.node.parts.txn_counters.entries():
                    self.model.events[f"txn: {name}"] += count
        history = self.model.lists.history(f"lists of seed {self.seed}")
        refuse(listappend.check(history) + timestamps.check(history), history, self.keep)

    # ---- Faults ----

    def heal(self) -> None:
        self.network.heal()
        for host in self.hosts:
            host.disk.slowness = 1

    async def faults(self) -> None:
        end = trio.current_time() + self.seconds
        while trio.current_time() < end:
            await trio.sleep(self.chance.uniform(0.1, self.pace_s))
            kind = self.chance.choice(self.fault_kinds)
            host = self.chance.choice(self.hosts[:HOSTS])
            self.model.events[f"fault: {kind}"] += 1
            self.model.note(kind, host.name)
            logging.getLogger("sim").info("%s %s", kind, host.name)
            await self.fault(kind, host)
            self.heal()

    async def fault(self, kind: str, host: Host) -> None:
        chance = self.chance
        match kind:
            case "crash" | "power":
                self.kill(host, is_silent=kind == "power")
                await self.last(chance.uniform(0.01, 8), host)
                await self.start(host)
            case "quorum":
                down = [other for other in self.hosts[:HOSTS] if other is not host]
                for other in down:
                    self.kill(other, is_silent=chance.random() < 0.5)
                await trio.sleep(chance.choice((1.0, 5.0, NO_QUORUM_S)))
                for other in down:
                    await self.start(other)
            case "partition" | "one-way out" | "one-way in" | "link":
                others = [other for other in self.hosts if other is not host]
                for other in others[:1] if kind == "link" else others:
                    if kind != "one-way in":
                        self.network.block(host.name, other.name)
                    if kind != "one-way out":
                        self.network.block(other.name, host.name)
                if kind == "link":
                    # A leaseholder that cannot reach the oracle serves nothing, and keeps its lease.
                    await trio.sleep(chance.uniform(0.1, 4))
                else:
                    await self.last(chance.uniform(0.1, 8), host)
            case "resets":
                for _ in range(10):
                    self.network.reset(host.name, chance.choice([other.name for other in self.hosts if other is not host]))
                    await trio.sleep(chance.uniform(0, 0.1))
            case "wall clock":
                host.clock.wall_jump_ms = chance.choice((-3_600_000, 0, 3_600_000))
            case "slow disk":
                host.disk.slowness = chance.choice((10, 50))
                await trio.sleep(chance.uniform(0.1, 4))
            case "transfer":
                await self.transfer(host)
            case "split":
                await self.split(host)
            case "join":
                if len(self.hosts) == HOSTS:
                    await self.add_host()

    async def last(self, seconds: float, *concerned: Host) -> None:
        """Let a fault last; meanwhile a host whose connections are whole must serve every range again after FAILOVER_S."""
        await trio.sleep(min(seconds, FAILOVER_S))
        if seconds > FAILOVER_S:
            healthy = max(number for number in range(HOSTS) if self.hosts[number] not in concerned)
            began = trio.current_time()
            await self.try_all(healthy, 2.0)
            self.model.events["failover seen"] += 1
            await trio.sleep(max(seconds - FAILOVER_S - trio.current_time() + began, 0))

    async def try_all(self, host: int, limit_s: float) -> None:
        """Write to each range from a host."""
        for counter in range(COUNTERS):
            await self.patiently(host, "UPDATE counters SET n = n WHERE id = $1", counter, limit_s=limit_s)

    async def transfer(self, host: Host) -> None:
        """Move the lease of some range to a host."""
        assert host.node is not None
        parts = host.node.parts
        assert parts is not None
        descriptor = self.chance.choice(sorted(parts.store.descriptors(), key=lambda desc: desc.start_key))
        try:
            await parts.router.send(descriptor.start_key, lambda desc: TransferLeaseRequest(desc.range_id, parts.identity.store_id))
            self.model.events["transferred"] += 1
        except KvError as error:
            self.model.events[f"not transferred: {type(error.detail).__name__}"] += 1

    async def split(self, host: Host) -> None:
        """Cut the table that clients insert into."""
        assert host.node is not None
        at, self.next_split = self.next_split, self.next_split + self.chance.randint(1, 100)
        try:
            await execute(host.node, f"ALTER TABLE sets SPLIT AT VALUES ({at})")
            self.model.events["split done"] += 1
        except (SqlError, PortError) as error:
            self.model.events[f"not split: {type(error).__name__}"] += 1


def simulate(seed: int, seconds: float, faults: tuple[str, ...] | None = None, keep: Path | None = None) -> Model:
    """Run one seed.  Raises Violation, or whatever else went wrong; a history of lists that is wrong is kept."""
    _seed_trio(seed)
    simulation = Simulation(seed, seconds, faults, keep)
    try:
        return trio.run(simulation.run, clock=trio.testing.MockClock(autojump_threshold=0))
    except BaseExceptionGroup as group:
        raise _first(group) from group


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


def search(minutes: float, first_seed: int, seconds: float, faults: tuple[str, ...] | None) -> bool:
    """Run seed after seed, and print the failing ones.  Say whether there was none."""
    end = time.perf_counter() + minutes * 60
    began, seed, failing = time.perf_counter(), first_seed, []
    events: Counter[str] = Counter()
    while time.perf_counter() < end:
        try:
            events.update(simulate(seed, seconds, faults).events)
        except Exception as error:  # a search's root: whatever went wrong is a finding
            failing.append(seed)
            print(f"seed {seed}: {type(error).__name__}: {str(error)[:400]}", flush=True)
        seed += 1
    runs = seed - first_seed
    print(f"{runs} seeds of {seconds:g} s, {runs / (time.perf_counter() - began):.2f} seeds/s; failing: {failing or 'none'}")
    _print_events(events)
    return not failing


def _print_events(events: Counter[str]) -> None:
    for name, count in sorted(events.items()):
        print(f"  {name:34} {count}")


class _SimulatedTime(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        try:
            now = trio.current_time()
        except RuntimeError:
            now = 0.0
        return f"{now:9.3f} {record.name:16} {super().format(record)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=1, help="the first one, of a search")
    parser.add_argument("--search", type=float, metavar="MINUTES", help="run seed after seed for so long, and print the failing ones")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--faults", help="comma-separated, instead of the seed's own mix")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="where the history of lists goes that is wrong, of one seed")
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    faults = tuple(options.faults.split(",")) if options.faults else None
    if options.verbose:
        handler = logging.StreamHandler()
        handler.setFormatter(_SimulatedTime())
        logging.basicConfig(level=logging.INFO, handlers=[handler])
    else:
        logging.disable(logging.CRITICAL)
    if options.search is not None:
        raise SystemExit(0 if search(options.search, options.seed, options.seconds, faults) else 1)
    began = time.perf_counter()
    try:
        model = simulate(options.seed, options.seconds, faults, options.keep)
    except Exception as error:
        if options.verbose:
            traceback.print_exc()
        raise SystemExit(f"seed {options.seed}: {type(error).__name__}: {error}") from None
    took = time.perf_counter() - began
    print(f"seed {options.seed}: {options.seconds:g} s simulated in {took:.1f} s, trace {model.trace:08x}")
    print(f"  slowest statement {model.slowest_s:.1f} s; back {model.slowest_back_s:.1f} s after the last fault")
    _print_events(model.events)


if __name__ == "__main__":
    main()
