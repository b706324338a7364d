"""The faults of the protocol simulator, and what each seed draws of them.

| fault | what happens |
| --- | --- |
| crash, power | a host loses what was not synced; its peers see resets, or nothing at all |
| blackout | all hosts at once |
| gateway | a process dies, is stopped or gets no answers, at the moment when a commit over several ranges has sent its first requests |
| partition, one-way, link | a host is cut off both ways, or one way; or a pair of hosts is |
| chain | a host and the second are cut off from each other; soon after it does not hear the third either, which may have restarted |
| ghost | a process dies, and what it has sent comes seconds later, when its next life leads again |
| usurp | a host is cut off, and meanwhile the replicas of the others campaign at moments of their own choice, which must do no harm |
| delays | messages of a pair of hosts take up to 0.4 s, and so come after what others sent later |
| loss, late, resets | frames, requests and replies are lost; requests come when nobody waits any more; connections break again and again |
| stop | a process takes no step for up to 4 s, while its clock goes on (SIGSTOP, a suspended machine) |
| clock | a wall clock jumps by an hour, a steady one runs a little faster or slower |
| slow disk | syncs take up to 0.5 s |
| transfer, storm, oracle | a lease moves; leases move again and again while messages take long; that of the system range does |
| split, splits | a range is cut; ranges are, while messages and syncs take long |

Those of replicas that come, go, are sent whole, and go bad are in `protocol_members`: they need a fourth host, and are asked for.
"""

import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from dsdb.kv.errors import KvError
from dsdb.kv.ids import SYSTEM_RANGE, RangeId, StoreId
from dsdb.kv.requests import SplitRequest, TransferLeaseRequest
from dsdb.sql.errors import DataCorruptedError
from dsdb.sql.ports import PortError
from dsdb.storage.keys import SYSTEM_END
from tests.sim.protocol_clients import KINDS, LIST_KEYS, RANGES, SPLIT_KEYS
from tests.sim.protocol_members import DEPARTURE, ELASTIC, Members

if TYPE_CHECKING:
    from tests.sim.protocol_node import Host, SimNode
    from tests.sim.protocol_sim import Simulation

SPLITS_MAX = 6
"""Splits of one run: each range costs its signs of life."""
GATEWAY_S = 3.0
"""How long a gateway is waited for that commits in several ranges."""
RATES = (0.997, 0.999, 1.0, 1.001, 1.003)
"""How fast clocks run; no two are further apart than stores take into account."""

FAULTS = (
    *("crash", "power", "blackout", "gateway", "stop", "partition", "one-way", "link", "chain", "delays", "loss", "late", "resets"),
    *("ghost", "usurp", "clock", "slow disk", "transfer", "storm", "oracle", "split", "splits"),
)


FOLDS = 0.4
"""Part of the seeds that fold."""


@dataclass(frozen=True)
class Mix:
    """What one seed runs."""

    faults: tuple[str, ...]
    clients: tuple[str, ...]
    delay_ms: tuple[int, int]
    staged_keys: int | None
    """How many keys a record may promise; None: as many as usual."""
    flush_keys: int | None
    """How many keys a transaction buffers before it flushes them; None: as many as usual."""
    closed_lag_s: float
    """After which time stores close a timestamp, so that followers serve reads at it."""
    folds: bool
    """Whether what is closed is folded, at once, into very small columnar blocks; and old versions are collected."""
    ingests: bool = False
    """Whether others lay rows as blocks meanwhile: by a chance of their own, so that all else is drawn as it would be without."""

    @property
    def is_elastic(self) -> bool:
        """Say whether replicas come, go, are sent whole, or go bad: on four hosts."""
        return any(fault in (*ELASTIC, DEPARTURE) for fault in self.faults)

    def __str__(self) -> str:
        keys = "" if self.staged_keys is None else f"; records of {self.staged_keys} keys"
        keys += "" if self.flush_keys is None else f"; buffers of {self.flush_keys} keys"
        return (
            f"faults {','.join(self.faults)}; clients {','.join(self.clients)}; {self.delay_ms[0]} to {self.delay_ms[1]} ms{keys}; "
            f"closed after {self.closed_lag_s:g} s{'; folds' if self.folds else ''}{'; ingests' if self.ingests else ''}"
        )


def draw(
    seed: int,
    faults: tuple[str, ...] | None = None,
    clients: tuple[str, ...] | None = None,
    *,
    elastic: bool = False,
    ingests: bool = False,
) -> Mix:
    """Give a seed's mix; faults and clients may be said instead, and nothing else changes by it.  elastic: with some of ELASTIC."""
    chance = random.Random(seed)
    own_faults = tuple(chance.sample(FAULTS, chance.randint(3, len(FAULTS))))
    own_clients = chance.choice((KINDS, KINDS, ("lists",), ("lists", "bank"), ("lists", "registers")))
    delay_ms = chance.choice(((0, 3), (0, 3), (0, 10), (1, 30)))
    staged_keys = chance.choice((None, None, None, 1))
    flush_keys = chance.choice((None, None, None, 1, 2))
    closed_lag_s = chance.choice((0.05, 0.3, 3.0))
    # The last draws: what others are drawn from is as it would be without them.
    own_elastic = tuple(chance.sample(ELASTIC, chance.randint(1, len(ELASTIC)))) * 3 if elastic else ()
    return Mix(
        faults=faults or own_faults + own_elastic,
        clients=clients or own_clients,
        delay_ms=delay_ms,
        staged_keys=staged_keys,
        flush_keys=flush_keys,
        closed_lag_s=closed_lag_s,
        # By a chance of its own, so that all else is as it would be without.
        folds=random.Random(f"folds {seed}").random() < FOLDS,
        ingests=ingests,
    )


class Faults:
    """What strikes in one run."""

    def __init__(self, simulation: "Simulation") -> None:
        self._simulation = simulation
        self._chance = random.Random(simulation.chance.getrandbits(64))
        self._mix = simulation.mix
        self._network = simulation.network
        self._hosts = simulation.hosts
        self._events: Counter[str] = simulation.events
        self._splits = 0
        self._watched: trio.Event | None = None
        self._gateway: Host | None = None
        simulation.hooks.on_commit = self._on_commit
        self._strike: dict[str, Callable[[Host], Awaitable[None]]] = {
            "crash": self._crash,
            "power": self._power,
            "blackout": self._blackout,
            "gateway": self._strike_gateway,
            "partition": self._partition,
            "one-way": self._cut_one_way,
            "link": self._cut_link,
            "chain": self._chain,
            "ghost": self._haunt,
            "usurp": self._usurp,
            "delays": self._delay,
            "loss": self._lose,
            "late": self._come_late,
            "resets": self._reset,
            "stop": self._stop,
            "clock": self._turn_clock,
            "slow disk": self._slow_disk,
            "transfer": self._transfer,
            "storm": self._storm,
            "oracle": self._move_oracle,
            "split": self._split,
            "splits": self._split_often,
        }
        self.members: Members | None = None
        if self._mix.is_elastic:
            self.members = Members(simulation, self._ask)
            self._strike |= self.members.faults

    async def run(self, seconds: float) -> None:
        """Strike for so long."""
        chance, simulation = self._chance, self._simulation
        until = simulation.heap.now + seconds
        while (left_s := until - simulation.heap.now) > 0:
            if chance.random() < 0.8:
                simulation.clients.burst(chance.choice(simulation.bursts_s))
            await trio.sleep(min(chance.choice((0.02, 0.1, 0.3)), left_s))
            kind, host = chance.choice(self._mix.faults), chance.choice(self._hosts)
            self._events[f"fault: {kind}"] += 1
            await self._strike[kind](host)
            if chance.random() < 0.7:
                # Otherwise the next one strikes while this one lasts.
                await self._heal()
            left_s = until - simulation.heap.now
            await trio.sleep(max(min(chance.choice((0.1, 1.0, 4.0, 10.0, 20.0)), left_s), 0.0))
        await self._heal()

    async def _heal(self) -> None:
        self._network.heal(is_patient=self._chance.random() < 0.5)
        for host in self._hosts:
            host.disk.slowness = 1
            if host.node is None:
                await self._simulation.start(host)

    def _others(self, host: "Host") -> list["Host"]:
        others = [other for other in self._hosts if other is not host]
        self._chance.shuffle(others)
        return others

    # ---- Processes ----

    async def _crash(self, host: "Host", *, is_silent: bool = False) -> None:
        if host.node is None:
            return
        self._simulation.kill(host, is_silent=is_silent)
        await trio.sleep(self._chance.choice((0.02, 0.3, 1.0, 3.0)))
        await self._simulation.start(host)

    async def _power(self, host: "Host") -> None:
        await self._crash(host, is_silent=True)

    async def _blackout(self, _: "Host") -> None:
        hosts = self._hosts if self._chance.random() < 0.5 else self._hosts[1:]
        for host in hosts:
            if host.node is not None:
                self._simulation.kill(host)
        await trio.sleep(self._chance.choice((0.02, 0.5, 12.0)))
        for host in hosts:
            if host.node is None:
                await self._simulation.start(host)

    async def _stop(self, host: "Host") -> None:
        node = host.node
        if node is not None:
            node.freeze()
            await trio.sleep(self._chance.choice((0.1, 0.5, 1.0, 2.0, 4.0)))
            node.thaw()

    # ---- A gateway in the middle of a commit ----

    async def _strike_gateway(self, _: "Host") -> None:
        watched = self._watched = trio.Event()
        self._simulation.clients.burst(0.5)
        with trio.move_on_after(GATEWAY_S):
            await watched.wait()
        self._watched = None
        if not watched.is_set():
            return
        kind = self._chance.choice(("died", "stopped", "cut off", "cut off"))
        if kind != "cut off":
            # Messages take about as long: some of the requests arrive.
            await trio.sleep(self._chance.choice((0, 0.001, 0.002, 0.003, 0.005, 0.01, 0.03)))
        host, node = self._gateway, None if self._gateway is None else self._gateway.node
        if host is None or node is None:
            return
        self._events[f"rare: gateway {kind} in a commit"] += 1
        # Others meet what it has left.
        self._simulation.clients.burst(0.8 if kind == "cut off" else 0.4)
        if kind == "died":
            await self._crash(host, is_silent=self._chance.random() < 0.3)
        elif kind == "stopped":
            await self._stop(host)
        else:
            await self._keep_answers_from(host)

    async def _keep_answers_from(self, host: "Host") -> None:
        """Let nothing come to a host for a while; then it is told that its connections broke, and sends again."""
        others = self._others(host)
        for other in others:
            self._network.cut(other.node_id, host.node_id)
        await trio.sleep(self._chance.choice((0.4, 0.8, 1.2)))
        for other in others:
            self._network.reset(host.node_id, other.node_id)
        self._network.heal()

    def _on_commit(self, commit: Any) -> None:
        if self._watched is None or self._watched.is_set() or self._chance.random() < 0.5:
            return
        for host in self._hosts:
            if host.node is not None and host.node.counters is commit._counters:
                self._gateway = host
                self._watched.set()

    # ---- Network, disk, clock ----

    async def _last(self) -> None:
        self._simulation.clients.burst(0.2)
        await trio.sleep(self._chance.choice((0.2, 0.7, 1.5, 2.0, 3.0, 8.0)))

    async def _partition(self, host: "Host") -> None:
        for other in self._others(host):
            self._network.cut(host.node_id, other.node_id)
            self._network.cut(other.node_id, host.node_id)
        await self._last()

    async def _cut_one_way(self, host: "Host") -> None:
        is_out = self._chance.random() < 0.5
        for other in self._others(host):
            pair = (host.node_id, other.node_id) if is_out else (other.node_id, host.node_id)
            self._network.cut(*pair)
        await self._last()

    async def _cut_link(self, host: "Host") -> None:
        other = self._others(host)[0]
        self._network.cut(host.node_id, other.node_id)
        if self._chance.random() < 0.6:
            self._network.cut(other.node_id, host.node_id)
        await self._last()

    async def _chain(self, host: "Host") -> None:
        second, third, *_ = self._others(host)
        self._network.cut(host.node_id, second.node_id)
        self._network.cut(second.node_id, host.node_id)
        await trio.sleep(self._chance.choice((0.1, 0.5, 1.0)))
        if self._chance.random() < 0.5:
            await self._crash(third)
        self._network.cut(third.node_id, host.node_id)
        await self._last()

    async def _haunt(self, host: "Host") -> None:
        if host.node is None:
            return
        for other in self._others(host):
            self._network.cut(host.node_id, other.node_id)
        await trio.sleep(self._chance.choice((0.3, 0.5, 0.7)))
        self._simulation.kill(host)
        self._network.heal(late_s=self._chance.choice((3.0, 4.0, 6.0)))
        await self._simulation.start(host)
        await trio.sleep(self._chance.choice((2.0, 3.0)))
        await self._storm(host)
        await trio.sleep(1.0)

    async def _usurp(self, host: "Host") -> None:
        is_one_way = self._chance.random() < 0.5
        for other in self._others(host):
            self._network.cut(host.node_id, other.node_id)
            if not is_one_way:
                self._network.cut(other.node_id, host.node_id)
        for _ in range(6):
            await trio.sleep(self._chance.choice((0.01, 0.03, 0.1, 0.3)))
            node = self._others(host)[0].node
            if node is not None and not node.is_frozen:
                node.campaign()

    async def _delay(self, host: "Host") -> None:
        self._slow(host)
        await self._last()

    def _slow(self, host: "Host") -> None:
        other = self._others(host)[0]
        delay_ms = self._chance.choice(((10, 60), (50, 400)))
        self._network.slow(host.node_id, other.node_id, delay_ms)
        if self._chance.random() < 0.5:
            self._network.slow(other.node_id, host.node_id, delay_ms)

    async def _lose(self, _: "Host") -> None:
        self._network.loss = self._chance.choice((0.02, 0.1, 0.3))
        await self._last()
        self._network.loss = 0.0

    async def _come_late(self, host: "Host") -> None:
        self._network.lateness = self._chance.choice((0.1, 0.3))
        if self._chance.random() < 0.3:
            self._slow(host)
        self._simulation.clients.burst(0.4)
        await self._last()
        self._network.lateness = 0.0

    async def _reset(self, host: "Host") -> None:
        for _ in range(self._chance.randint(1, 12)):
            self._network.reset(host.node_id, self._others(host)[0].node_id)
            await trio.sleep(self._chance.choice((0.005, 0.02, 0.1, 0.3)))

    async def _turn_clock(self, host: "Host") -> None:
        if self._chance.random() < 0.5:
            host.clock.wall_jump_ms += self._chance.choice((-3_600_000, 3_600_000))
        else:
            host.clock.drift(self._chance.choice(RATES))

    async def _slow_disk(self, host: "Host") -> None:
        host.disk.slowness = self._chance.choice((10, 50))
        await self._last()

    # ---- Leases and ranges ----

    async def _transfer(self, host: "Host", range_id: RangeId | None = None) -> None:
        """Move the lease of some range to a host."""
        gateway = self._chance.choice(self._hosts).node
        if gateway is None or gateway.is_frozen:
            return
        descriptors = sorted(gateway.store.descriptors(), key=lambda desc: desc.start_key)
        known = [each for each in descriptors if range_id in (None, each.range_id)]
        if not known:
            return
        desc = self._chance.choice(known)
        await self._ask(gateway, desc.start_key, lambda desc: TransferLeaseRequest(desc.range_id, StoreId(host.node_id)), "transferred")

    async def _ask(self, gateway: Any, key: bytes, make: Callable[[Any], Any], name: str) -> None:
        """Ask a range for something, at one of the nodes; whatever becomes of it."""
        done = trio.Event()

        async def ask() -> None:
            try:
                await gateway.router.send(key, make, deadline_s=2.0)
                self._events[name] += 1
            except KvError as error:
                self._events[f"not {name}: {type(error.detail).__name__}"] += 1
            done.set()

        gateway.nursery.start_soon(ask)
        with trio.move_on_after(3.0):
            await done.wait()

    async def _move_oracle(self, host: "Host") -> None:
        await self._transfer(host, SYSTEM_RANGE)

    async def _storm(self, host: "Host") -> None:
        self._slow(host)
        for _ in range(self._chance.randint(3, 10)):
            await self._transfer(self._chance.choice(self._hosts))
            await trio.sleep(self._chance.choice((0.01, 0.05, 0.2)))
            self._simulation.clients.burst(0.1)

    async def _split(self, _: "Host", wanted: Sequence[bytes] = SPLIT_KEYS) -> None:
        """Cut a range that clients write to."""
        gateway = self._chance.choice(self._hosts).node
        if gateway is None or gateway.is_frozen or self._splits >= SPLITS_MAX:
            return
        starts = {desc.start_key for desc in gateway.store.descriptors()}
        keys = [key for key in SPLIT_KEYS if key not in starts and key > SYSTEM_END]
        key = self._chance.choice([key for key in keys if key in wanted] or keys)
        self._splits += 1
        right = RangeId(100 + self._splits)
        await self._ask(gateway, key, lambda desc: SplitRequest(desc.range_id, key, right), "split")

    def _write_pairs(self) -> None:
        """Have every node write two keys of one range that may be parted, again and again for a moment."""
        for host in self._hosts:
            if host.node is not None and not host.node.is_frozen:
                host.node.nursery.start_soon(self._write_some_pairs, host.node)

    async def _write_some_pairs(self, node: "SimNode") -> None:
        for _ in range(4):
            number = self._chance.randrange(RANGES, len(LIST_KEYS))
            txn = node.transactions.begin()
            for key in (LIST_KEYS[number - RANGES], LIST_KEYS[number]):
                txn.put(key[:-1] + b"\x01", b"")
            try:
                await txn.commit()
            except (PortError, DataCorruptedError) as error:
                self._events[f"pair: {type(error).__name__}"] += 1
            await trio.sleep(0.003)

    async def _split_often(self, host: "Host") -> None:
        self._slow(host)
        if self._chance.random() < 0.5:
            # What is evaluated takes long to be applied.
            for each in self._hosts:
                each.disk.slowness = 20
        self._simulation.clients.is_narrow = True
        for _ in range(self._chance.randint(1, 3)):
            self._simulation.clients.burst(0.2)
            await trio.sleep(self._chance.choice((0.01, 0.05, 0.1)))
            # Between two lists that are written together.
            self._write_pairs()
            await self._split(host, LIST_KEYS[RANGES:])
        self._simulation.clients.is_narrow = False
