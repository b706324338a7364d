"""The faults of the simulation of whole nodes, and what each seed draws of them.

| fault | what happens |
| --- | --- |
| crash, power | a host loses what was not synced; its peers see resets, or nothing at all |
| gateway | the same, at the moment at which a commit over several ranges has sent its first requests |
| partition, one-way out, one-way in, link | a host, or one pair of hosts, is cut off; TCP holds the bytes until it is healed |
| delays | what one host sends to another, or both ways, takes up to 0.4 s |
| resets | connections between two hosts break, again and again: requests and replies are lost |
| chain | a host and the second are cut off from each other; soon after it does not hear the third either, which may have restarted |
| quorum | two of three hosts are down, for up to 25 s |
| slow disk, wall clock | syncs take up to 0.5 s; a wall clock jumps by an hour |
| transfer, split, join | a lease moves, a table that is written to is cut, a fourth node joins |
| members | of four nodes one is decommissioned, or stays away for so long that it is replaced, while another may die; it comes back |
| storm, splits | leases move, or tables are cut, again and again, while one host's messages take long |

Besides, of each seed: how long messages take, how many keys a record may promise and a buffer holds before it is flushed, and how often
a request whose connection broke arrives all the same, once more and later.
"""

import logging
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from dsdb.kv.errors import KvError
from dsdb.kv.intents import (
    BeginTxnRequest,
    EndTxnRequest,
    PrewriteRequest,
    PushRequest,
    QueryIntentsRequest,
    RemoveRecordsRequest,
    ResolveRequest,
    ResolveSpansRequest,
    RollBackRequest,
    StageRequest,
)
from dsdb.kv.requests import CommitRequest, RefuseRequest, TransferLeaseRequest
from dsdb.ranges.methods import KV_CALL
from dsdb.rpc import Peers, ReplyLost
from dsdb.sql.errors import SqlError
from dsdb.sql.ports import PortError
from dsdb.storage.errors import StorageError
from dsdb.txn.flushed_commit import FlushedCommit
from dsdb.txn.flushing import Flushed
from dsdb.txn.parallel_commit import ParallelCommit
from tests.sim.node_clients import KINDS, PAST, execute
from tests.sim.node_members import change_members
from tests.sim.sql_clients import SPLIT_AT

if TYPE_CHECKING:
    from tests.sim.node_sim import Host, Simulation

FAILOVER_S = 4.0
"""Simulated time into a fault of one host after which the others must serve every range."""
NO_QUORUM_S = 25.0
"""How long a quorum may be away: longer than a statement may take."""
SPLITS_MAX = 24
"""Splits of one run: each range costs its signs of life."""
GATEWAY_S = 2.0
"""How long a gateway is waited for that commits in several ranges."""

FAULTS = (
    "crash",
    "power",
    "gateway",
    "partition",
    "one-way out",
    "one-way in",
    "link",
    "delays",
    "resets",
    "chain",
    "quorum",
    "wall clock",
    "slow disk",
    "transfer",
    "split",
    "storm",
    "splits",
    "join",
)
MEMBERS = "members"
"""A fault of a third of the seeds, beside those."""
_COPIED = (
    BeginTxnRequest,
    RollBackRequest,
    ResolveSpansRequest,
    CommitRequest,
    RefuseRequest,
    PrewriteRequest,
    StageRequest,
    EndTxnRequest,
    ResolveRequest,
    QueryIntentsRequest,
    PushRequest,
    RemoveRecordsRequest,
)


@dataclass(frozen=True)
class Mix:
    """What one seed runs."""

    faults: tuple[str, ...]
    clients: tuple[str, ...]
    delay_ms: tuple[int, int]
    late_copies: float
    """The part of the requests that arrive once more after their connection broke."""
    staged_keys: int | None
    """How many keys a record may promise; None: as many as usual."""
    closed_lag_s: float
    """After which time a timestamp is closed."""
    flush_keys: int | None = None
    """How many keys a transaction buffers before it flushes them; None: as many as usual."""
    splits_soon: bool = False
    """Ranges are split by little load, and at little size."""

    def __str__(self) -> str:
        keys = "" if self.staged_keys is None else f"; records of {self.staged_keys} keys"
        keys += "" if self.flush_keys is None else f"; buffers of {self.flush_keys} keys"
        keys += "; ranges split soon" if self.splits_soon else ""
        return (
            f"faults {','.join(self.faults)}; clients {','.join(self.clients)}; {self.delay_ms[0]} to {self.delay_ms[1]} ms; "
            f"late copies {self.late_copies:g}{keys}; closed after {self.closed_lag_s:g} s"
        )


def draw(
    seed: int, faults: tuple[str, ...] | None = None, clients: tuple[str, ...] | None = None, closed_lag_s: float | None = None
) -> Mix:
    """Give a seed's mix; some of it may be said instead, and nothing else changes by it."""
    chance = random.Random(seed)
    own_faults = tuple(chance.sample(FAULTS, chance.randint(2, len(FAULTS))))
    own_clients = chance.sample(KINDS, chance.randint(2, 5))
    delay_ms = chance.choice(((0, 3), (0, 3), (0, 10), (1, 30)))
    late_copies = chance.choice((0.0, 0.3, 1.0))
    staged_keys = chance.choice((None, None, None, 2))
    # The last draws: what others are drawn from is as it would be without them.
    flush_keys = chance.choice((None, None, 1, 2))
    own_past = (PAST,) if chance.random() < 0.4 else ()
    own_closed_lag_s = chance.choice((0.02, 0.3, 3.0))
    own_members = (MEMBERS,) if chance.random() < 0.33 else ()
    splits_soon = chance.random() < 0.4
    return Mix(
        faults=faults or own_faults + own_members,
        clients=clients or (*(kind for kind in KINDS if kind in own_clients), *own_past),
        delay_ms=delay_ms,
        late_copies=late_copies,
        staged_keys=staged_keys,
        flush_keys=flush_keys,
        closed_lag_s=closed_lag_s or own_closed_lag_s,
        splits_soon=splits_soon,
    )


class Faults:
    """Lets faults happen to the hosts of a simulation, one after another."""

    def __init__(self, simulation: "Simulation") -> None:
        self._simulation = simulation
        self._chance = simulation.chance
        self._mix = simulation.mix
        self._events = simulation.model.events
        self._pace_s = self._chance.choice((0.5, 1.5, 3.0))
        self._next_split = 1
        self._splits = 0
        self._watched: trio.Event | None = None
        self._gateway: Host | None = None
        simulation.hooks.on_commit = self._on_commit
        if self._mix.late_copies:
            simulation.hooks.wrap(Peers, "call", self._with_late_copies)

    async def run(self) -> None:
        """Let them happen until the time is over."""
        simulation, chance = self._simulation, self._chance
        end = trio.current_time() + simulation.seconds
        while trio.current_time() < end:
            await trio.sleep(chance.uniform(0.1, self._pace_s))
            kind = chance.choice(self._mix.faults)
            host = chance.choice(simulation.founders)
            self._events[f"fault: {kind}"] += 1
            simulation.model.note(kind, host.name)
            logging.getLogger("sim").info("%s %s", kind, host.name)
            await self._fault(kind, host)
            simulation.heal()

    async def _fault(self, kind: str, host: "Host") -> None:
        chance, simulation = self._chance, self._simulation
        match kind:
            case "crash" | "power":
                await self._die(host, is_silent=kind == "power")
            case "gateway":
                await self._kill_gateway()
            case "quorum":
                down = [other for other in simulation.founders if other is not host]
                for other in down:
                    simulation.kill(other, is_silent=chance.random() < 0.5)
                await trio.sleep(chance.choice((1.0, 5.0, NO_QUORUM_S)))
                for other in down:
                    await simulation.start(other)
            case "chain":
                second, third = chance.sample([other for other in simulation.founders if other is not host], 2)
                simulation.network.block(host.name, second.name)
                simulation.network.block(second.name, host.name)
                is_restarted = chance.random() < 0.5
                await trio.sleep(chance.uniform(0.6, 0.75) if is_restarted else chance.uniform(0.3, 0.7))
                simulation.network.block(third.name, host.name)
                if is_restarted:
                    # What it promised to the host it may not forget, though the host cannot remind it.
                    simulation.network.block(host.name, third.name)
                    simulation.kill(third)
                    await simulation.start(third)
                await trio.sleep(chance.uniform(0.3, 1.5))
            case "partition" | "one-way out" | "one-way in" | "link":
                await self._cut_off(kind, host)
            case "delays":
                other = chance.choice(self._others(host))
                delay_ms = chance.choice(((50, 100), (0, 400)))
                simulation.network.slow(host.name, other.name, delay_ms)
                if chance.random() < 0.5:
                    simulation.network.slow(other.name, host.name, delay_ms)
                await trio.sleep(chance.uniform(0.2, 4))
            case "resets":
                for _ in range(10):
                    simulation.network.reset(host.name, chance.choice(self._others(host)).name)
                    await trio.sleep(chance.uniform(0, 0.1))
            case "wall clock":
                host.clock.wall_jump_ms = chance.choice((-3_600_000, 0, 3_600_000))
            case "slow disk":
                host.disk.slowness = chance.choice((10, 50))
                await trio.sleep(chance.uniform(0.1, 4))
            case "transfer":
                await self._transfer(host)
            case "storm":
                self._be_slow(host)
                end = trio.current_time() + chance.uniform(0.5, 3)
                while trio.current_time() < end:
                    await self._transfer(chance.choice(simulation.founders))
                    await trio.sleep(chance.uniform(0, 0.15))
            case "split":
                await self._split(host)
            case "splits":
                self._be_slow(host)
                for _ in range(chance.randint(2, 5)):
                    await self._split(chance.choice(simulation.founders))
                    await trio.sleep(chance.uniform(0, 0.2))
            case "join":
                if len(simulation.hosts) == len(simulation.founders):
                    await simulation.add_host()
            case _ if kind == MEMBERS:
                await change_members(simulation, self._events)

    def _others(self, host: "Host") -> "list[Host]":
        return [other for other in self._simulation.hosts if other is not host]

    def _be_slow(self, host: "Host") -> None:
        """Let a host's messages take long, perhaps: they arrive when what they were sent to has moved, or was cut."""
        for other in self._others(host) if self._chance.random() < 0.7 else ():
            self._simulation.network.slow(host.name, other.name, self._chance.choice(((20, 60), (50, 150), (0, 400))))

    async def _die(self, host: "Host", *, is_silent: bool) -> None:
        self._simulation.kill(host, is_silent=is_silent)
        await self._last(self._chance.uniform(0.01, 8), host)
        await self._simulation.start(host)

    async def _cut_off(self, kind: str, host: "Host") -> None:
        network, others = self._simulation.network, self._others(host)
        for other in others[:1] if kind == "link" else others:
            if kind != "one-way in":
                network.block(host.name, other.name)
            if kind != "one-way out":
                network.block(other.name, host.name)
        if kind == "link":
            # A leaseholder that cannot reach the oracle serves nothing, and keeps its lease.
            await trio.sleep(self._chance.uniform(0.1, 4))
        else:
            await self._last(self._chance.uniform(0.1, 8), host)

    async def _last(self, seconds: float, *concerned: "Host") -> None:
        """Let a fault last; meanwhile a host whose connections are whole must serve every range again after FAILOVER_S."""
        simulation = self._simulation
        await trio.sleep(min(seconds, FAILOVER_S))
        if seconds > FAILOVER_S:
            healthy = max(number for number, host in enumerate(simulation.founders) if host not in concerned)
            began = trio.current_time()
            await simulation.try_all(healthy, 2.0)
            self._events["failover seen"] += 1
            await trio.sleep(max(seconds - FAILOVER_S - trio.current_time() + began, 0))

    # ---- A gateway in the middle of a commit ----

    async def _kill_gateway(self) -> None:
        watched = self._watched = trio.Event()
        with trio.move_on_after(GATEWAY_S):
            await watched.wait()
        self._watched = None
        if not watched.is_set():
            return
        # Messages take about as long: some of the requests arrive.
        await trio.sleep(self._chance.choice((0, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01)))
        host = self._gateway
        if host is not None and host.is_up:
            self._events["rare: gateway died in a commit"] += 1
            await self._die(host, is_silent=self._chance.random() < 0.3)

    def _on_commit(self, commit: ParallelCommit | FlushedCommit | Flushed) -> None:
        if self._watched is None or self._watched.is_set() or self._chance.random() < 0.5:
            return
        for host in self._simulation.founders:
            if host.is_up and host.node is not None and host.node.parts is not None and host.node.parts.txn_counters is commit._counters:
                self._gateway = host
                self._watched.set()

    # ---- Requests that come once more ----

    def _with_late_copies(self, original: Any) -> Any:
        async def call(peers: Any, node_id: Any, method: Any, request: Any, **options: Any) -> Any:
            target = self._host_of(node_id) if method is KV_CALL and isinstance(request, _COPIED) else None
            if target is None:
                return await original(peers, node_id, method, request, **options)
            node, died = target.node, target.died
            try:
                return await original(peers, node_id, method, request, **options)
            except ReplyLost:
                if not died.is_set() and self._chance.random() < self._mix.late_copies:
                    self._simulation.nursery.start_soon(self._deliver_late, node, died, request)
                raise

        return call

    def _host_of(self, node_id: Any) -> "Host | None":
        for host in self._simulation.hosts:
            if host.is_up and host.node is not None and host.node.parts is not None and host.node.parts.identity.node_id == node_id:
                return host
        return None

    async def _deliver_late(self, node: Any, died: trio.Event, request: Any) -> None:
        """Do what a node would that had received a request whose connection broke, and was slow to take it up."""
        await trio.sleep(self._chance.choice((0, 0.01, 0.1, 0.5, 2.0)) * self._chance.random())
        if died.is_set():
            return
        self._events["rare: late copy"] += 1
        try:
            await node.parts.store.serve(request)
        except KvError as error:
            self._events[f"late copy: {type(error.detail).__name__}"] += 1
        except StorageError:
            if not died.is_set():
                raise

    # ---- Leases and ranges ----

    async def _transfer(self, host: "Host") -> None:
        """Move the lease of some range to a host."""
        assert host.node is not None
        parts = host.node.parts
        assert parts is not None
        descriptors = sorted(parts.store.descriptors(), key=lambda desc: desc.start_key)
        if not descriptors:
            # All of its replicas were moved away.
            return
        descriptor = self._chance.choice(descriptors)
        try:
            await parts.router.send(descriptor.start_key, lambda desc: TransferLeaseRequest(desc.range_id, parts.identity.store_id))
            self._events["transferred"] += 1
        except KvError as error:
            self._events[f"not transferred: {type(error.detail).__name__}"] += 1

    async def _split(self, host: "Host") -> None:
        """Cut a table that clients write to."""
        assert host.node is not None
        if self._splits >= SPLITS_MAX:
            return
        kinds = [kind for kind in self._mix.clients if kind in SPLIT_AT]
        if not kinds or self._chance.random() < 0.2:
            at, self._next_split = self._next_split, self._next_split + self._chance.randint(1, 100)
            text = f"ALTER TABLE sets SPLIT AT VALUES ({at})"
        else:
            text = SPLIT_AT[self._chance.choice(kinds)](self._chance)
        try:
            await execute(host.node, text)
            self._splits += 1
            self._events["split done"] += 1
        except (SqlError, PortError) as error:
            self._events[f"not split: {type(error).__name__}"] += 1
