"""The protocol on an event heap: Raft, leases, the oracle and transactions as they run in production, without RPC, SQL and threads.

    clients ─▶ TransactionFactory ▸ Router ▸ Store ▸ RaftNode      one loop, one heap of events, one seed for all chance
    faults ──▶ processes, network, disks, clocks, leases, ranges

It is faster than the simulation of whole nodes, so that it sees what is rare more often: the parts are in `protocol_loop` (time),
`protocol_network`, `protocol_node`, `protocol_clients`, `protocol_faults`, and `protocol_search` (the command).

    python -m tests.sim.protocol_sim --seed N [--seconds S] [--verbose]
    python -m tests.sim.protocol_sim --search MINUTES [--seed N] [--seconds S] [--elastic] [--ingests]

Checked while it runs: the oracle issues nothing twice or out of order; a range has one leaseholder; no core finds its peers' word broken;
every transaction ends in time.  At the end: all comes back within BACK_S of the last fault; what clients saw is strictly serializable
(`tests.checkers`); replicas are equal; now and then, that nothing is left of the transactions of dead gateways.
"""

import random
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.sql.errors import DataCorruptedError
from dsdb.sql.ports import PortError
from dsdb.storage.engine.memory import MemoryEngine
from tests.checkers.history import Violation
from tests.sim.ingest_events import IngestEvents
from tests.sim.protocol_clients import BOUNDARIES, GARBAGE_S, OTHER_KEYS, ROW, SPLIT_KEYS, Clients
from tests.sim.protocol_faults import Faults, Mix, draw
from tests.sim.protocol_ingest import IngestClients
from tests.sim.protocol_loop import EventHeap, run
from tests.sim.protocol_members import differing
from tests.sim.protocol_network import Network
from tests.sim.protocol_node import Host, HostClock, SimDisk, SimNode, elastic, folding, found, found_empty, store_config
from tests.sim.protocol_watch import Watch
from tests.sim.rare_events import Hooks
from tests.sim.rotting_engine import RottingEngine

HOSTS = 3
BACK_S = 6.0
"""Simulated time after the last fault in which every host must serve every range again."""
LATE_S = 3.0
"""Simulated time at the end in which what is late still comes."""
SETTLED_S = 40.0
"""Simulated time after which nothing is left of a dead gateway's transactions."""
EQUAL_S = 10.0
"""Simulated time after which all replicas have applied the same."""
ENDS_S = 300.0
"""Simulated time besides the faults, in which a run must end."""
BURSTS_S = (0.03, 0.1, 0.2, 0.3)
"""How long clients work at a time: they are at rest for most of a run."""


class Simulation:
    """One run."""

    def __init__(self, seed: int, seconds: float, mix: Mix, hooks: Hooks, events: Counter[str], keep: Path | None) -> None:
        self.seed = seed
        self.seconds = seconds
        self.mix = mix
        self.hooks = hooks
        self.events = events
        self.keep = keep
        self.chance = random.Random(seed)
        self.bursts_s = BURSTS_S
        self.heap = EventHeap()
        self.network = Network(self.heap, random.Random(self.chance.getrandbits(64)), events, mix.delay_ms)
        self.config = store_config(self.chance)
        self.fold_chance = random.Random(f"folding {seed}")
        if mix.folds:
            self.config = folding(self.config, self.fold_chance)
        self.hosts = [self._host(number) for number in range(1, HOSTS + 1)]
        if mix.is_elastic:
            self.config = elastic(self.config, mix.faults)
            spare = self._host(HOSTS + 1)
            spare.founded = self.hosts[0].founded
            self.hosts.append(spare)
        clients_chance = random.Random(self.chance.getrandbits(64))
        self.clients = Clients(self.heap, self.hosts, clients_chance, events, mix.clients)
        self.clients.flushes = mix.flush_keys is not None
        self.watch = Watch(hooks, self.hosts, events)
        self.ingest_chance = random.Random(f"ingests {seed}")
        self.ingests: IngestClients | None = None
        if mix.ingests:
            facts = IngestEvents(hooks, events)
            self.ingests = IngestClients(self.heap, self.hosts, self.ingest_chance, events, self.clients, facts)
        self.trace = 0
        self.back_s = 0.0
        self._nursery: trio.Nursery

    def _host(self, number: int) -> Host:
        engine = RottingEngine() if "damage" in self.mix.faults else MemoryEngine()
        founded: tuple[RangeDescriptor, ...] = ()
        if number <= HOSTS:
            founded = found(engine, number, HOSTS, BOUNDARIES)
        else:
            found_empty(engine, number)
        disk = SimDisk(random.Random(self.chance.getrandbits(64)))
        worker = SimDisk(random.Random(self.fold_chance.getrandbits(64)))
        # Much may happen to a range while it is folded.
        worker.slowness = self.fold_chance.choice((1, 50))
        return Host(number, engine, HostClock(self.heap, self.chance), disk, worker, founded=founded)

    async def run(self) -> None:
        with trio.fail_after(self.seconds + ENDS_S):
            await self._run()

    async def _run(self) -> None:
        async with trio.open_nursery() as self._nursery:
            for host in self.hosts:
                await self.start(host)
            await self.patiently(self.clients.set_up, 10.0)
            if "damage" in self.mix.faults:
                await self.patiently(self.write_everywhere, 10.0)
            async with trio.open_nursery() as working:
                working.start_soon(self.clients.run)
                if self.ingests is not None:
                    working.start_soon(self.ingests.run)
                if self.mix.folds:
                    working.start_soon(self._collect_garbage, self.heap.now + self.seconds)
                faults = Faults(self)
                await faults.run(self.seconds)
                self.clients.end()
            if faults.members is not None:
                await faults.members.settle()
            await self._check_end()
            for host in self.hosts:
                self.kill(host, is_crash=False)
        ingests = [] if self.ingests is None else self.ingests.trace
        self.trace = zlib.crc32(repr(self.clients.trace + ingests).encode())

    async def _collect_garbage(self, until: float) -> None:
        """Have old versions collected, now here, now there: those that no transaction reads any more."""
        chance = self.fold_chance
        while self.heap.now < until:
            await trio.sleep(chance.choice((0.5, 3.0, 8.0)))
            nodes = [host.node for host in self.hosts if host.node is not None and not host.node.is_frozen]
            if nodes:
                gateway = chance.choice(nodes)
                gateway.nursery.start_soon(self._come_and_go, gateway)
                # In its own nursery, as it may die meanwhile: then nobody answers.
                gateway.nursery.start_soon(gateway.collect_garbage, chance.choice(OTHER_KEYS), GARBAGE_S)

    async def _come_and_go(self, node: SimNode) -> None:
        """Write rows that nobody reads, and delete some: only the comparison of replicas looks at them."""
        txn = node.transactions.begin()
        for key in self.fold_chance.sample(SPLIT_KEYS, 4):
            txn.put(key[:-1] + b"\x02", self.fold_chance.choice((None, ROW)))
        try:
            await txn.commit()
        except (PortError, DataCorruptedError) as error:
            self.events[f"row: {type(error).__name__}"] += 1

    # ---- Hosts ----

    async def start(self, host: Host) -> None:
        host.starts += 1
        node = SimNode(host, self.network, self.config, random.Random(self.chance.getrandbits(64)))
        with trio.fail_after(60):
            await self._nursery.start(node.run)
        host.node = node
        self.network.joined(node)

    def kill(self, host: Host, *, is_silent: bool = False, is_crash: bool = True) -> None:
        """End a process, and lose what was not synced."""
        node = host.node
        assert node is not None
        for name, _, count in node.counters.entries():
            self.events[f"txn: {name}"] += count
        told = node.store.statistics()
        self.events["store: follower reads"] += int(told["follower_reads"])
        self.events["rare: versions folded"] += int(told["versions_folded"])
        self.events["rare: versions collected in blocks"] += int(told["block_versions_collected"])
        if self.mix.is_elastic:
            self.events["rare: Raft snapshot part sent again"] += int(told["snapshot_parts_repeated"])
            self.events["rare: replica made anew"] += int(told["replicas_repaired"])
        if is_crash:
            self.events["rare: crash with writes not synced"] += bool(host.engine._unsynced)
            host.engine = host.engine.crash(self.chance)
        host.node = None
        node.kill()
        self.network.died(node, is_silent=is_silent)
        self.clients.died(node)
        if self.ingests is not None:
            self.ingests.died(node)

    # ---- The end ----

    async def _check_end(self) -> None:
        began = self.heap.now
        for host in self.hosts:
            await self.patiently(self.write_everywhere, BACK_S, host)
        self.back_s = self.heap.now - began
        await trio.sleep(LATE_S)
        await self.patiently(self.clients.read_all, 5.0)
        self.clients.check(f"seed {self.seed}", self.keep)
        if self.ingests is not None:
            await self._check_ingests(self.ingests)
        if self.chance.random() < 0.2:
            await self._check_settled()
        await self._check_equal()

    async def _check_ingests(self, ingests: IngestClients) -> None:
        is_rest_checked, is_read_first = self.ingest_chance.random() < 0.6, self.ingest_chance.random() < 0.5
        if is_rest_checked and not is_read_first:
            # What nobody has met goes too.
            await ingests.check_rest()
        await self.patiently(ingests.read_all, 5.0)
        ingests.check(f"seed {self.seed}", self.keep)
        if is_rest_checked and is_read_first:
            await ingests.check_rest()

    async def patiently(self, act: Callable[[SimNode], Awaitable[None]], limit_s: float, host: Host | None = None) -> None:
        """Do something at a node until it succeeds."""
        end = self.heap.now + limit_s
        while True:
            node = (host or self.hosts[0]).node
            assert node is not None
            try:
                await act(node)
                return
            except (PortError, DataCorruptedError) as error:
                if self.heap.now > end:
                    raise Violation(f"node {node.node_id} still fails after {limit_s} s: {error}") from error
                await trio.sleep(0.05)

    async def write_everywhere(self, node: SimNode) -> None:
        """Write in every range, wherever they are cut now."""
        txn = node.transactions.begin()
        for key in OTHER_KEYS:
            txn.put(key, b"")
        await txn.commit()

    async def try_to_write(self, node: SimNode) -> None:
        """Write in every range, if that can be."""
        try:
            await self.write_everywhere(node)
        except (PortError, DataCorruptedError) as error:
            self.events[f"write: {type(error).__name__}"] += 1

    async def _check_settled(self) -> None:
        """See that nothing is left of transactions whose gateways are dead: no record, and no intent that somebody would meet."""
        node = self.hosts[0].node
        assert node is not None
        end = self.heap.now + SETTLED_S
        while any(host.node is not None and host.node.store.has_records() for host in self.hosts):
            if self.heap.now > end:
                raise Violation(f"records are left after {SETTLED_S} s")
            await trio.sleep(0.5)
        self.events["settled"] += 1

    async def _check_equal(self) -> None:
        """See that all replicas of a range hold the same."""
        end = self.heap.now + EQUAL_S
        while difference := differing(self.hosts):
            if self.heap.now > end:
                raise Violation(f"replicas differ: {difference}")
            await trio.sleep(0.2)


def simulate(
    seed: int,
    seconds: float,
    faults: tuple[str, ...] | None = None,
    keep: Path | None = None,
    clients: tuple[str, ...] | None = None,
    events: Counter[str] | None = None,
    *,
    elastic: bool = False,
    ingests: bool = False,
) -> Simulation:
    """Run one seed.  Raises Violation, or whatever else went wrong; a history that is wrong is kept.

    faults, clients: instead of the seed's own; events: counts what happens, also in a run that fails; elastic: see `protocol_members`.
    ingests: with the clients of `protocol_ingest` besides.
    """
    mix = draw(seed, faults, clients, elastic=elastic, ingests=ingests)
    counts = Counter[str]() if events is None else events
    hooks = Hooks(counts)
    hooks.install(mix.staged_keys, mix.closed_lag_s, mix.flush_keys)
    try:
        simulation = Simulation(seed, seconds, mix, hooks, counts, keep)
        run(simulation.heap, simulation.run, seed)
    except BaseExceptionGroup as group:
        raise _first(group) from group
    finally:
        hooks.undo()
    counts["simulated seconds"] += int(simulation.heap.now)
    return simulation


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


if __name__ == "__main__":
    from tests.sim.protocol_search import main

    main()
