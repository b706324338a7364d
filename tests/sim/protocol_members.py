"""Replicas that come, go, are sent whole, and go bad: faults of the protocol simulator on four hosts, and what must hold at the end.

| fault | what happens |
| --- | --- |
| members | a range gets one replica more, or less, or one in the place of another; meanwhile a host may die, or a lease move |
| snapshots | a host is away until logs are truncated; what it is then sent is cut short, repeated, damaged; hosts die in the middle of it |
| departure | a host dies while a range's replicas change, and stays away: the others must serve every range soon |
| damage | a value goes bad at rest, so that reading it is an error; or reads as another one, in a key that nobody reads |

Only one replica is damaged at a time: of three that disagree nobody knows who is right.  What reads well and is wrong is where no client
looks, as only a comparison finds it, and until then nothing can know: it must be found, and never spread.

In the end every range has three voters, the replicas of a range hold the same, nothing is left of what was removed, and nothing is bad.
"""

from collections import Counter
from typing import TYPE_CHECKING, Any

import trio

from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor, ReplicaKind
from dsdb.kv.ids import SYSTEM_RANGE, NodeId, RangeId, StoreId
from dsdb.kv.requests import ChangeReplicasRequest, TransferLeaseRequest
from dsdb.raft.messages import ReplicaId
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.timestamp import MAX_TIMESTAMP
from dsdb.store.checksum import checksum
from dsdb.store.snapshot import SnapshotReceiver
from dsdb.store.state import ReplicaKeys
from tests.checkers.history import Violation
from tests.sim.protocol_clients import OTHER_KEYS
from tests.sim.rotting_engine import DELTA, Place, RottingEngine

if TYPE_CHECKING:
    from tests.sim.protocol_node import Host, SimNode
    from tests.sim.protocol_sim import Simulation

ELASTIC = ("members", "snapshots", "damage")
"""What seeds draw from."""
DEPARTURE = "departure"
"""This one only where it is asked for by name."""
REPLICAS = 3
SERVED_S = 8.0
"""Simulated time without one host in which the others must serve every range that has three voters."""
SETTLE_S = 90.0
"""Simulated time after the last fault in which all ranges must have their replicas again, and nothing be bad."""
FOUND_S = 25.0
"""Simulated time in which a replica that differs must be found, where nothing else is wrong."""
WRONG = b"\x00wrong"
"""A version of a value that nobody wrote."""
VOTERS = (ReplicaKind.VOTER, ReplicaKind.VOTER_INCOMING, ReplicaKind.VOTER_OUTGOING)


def newest(hosts: "list[Host]") -> dict[RangeId, RangeDescriptor]:
    """Give each range as the store knows it that knows most."""
    found: dict[RangeId, RangeDescriptor] = {}
    for host in hosts:
        for desc in () if host.node is None else host.node.store.descriptors():
            if desc.range_id not in found or found[desc.range_id].generation < desc.generation:
                found[desc.range_id] = desc
    return dict(sorted(found.items()))


class Damage:
    """What is bad on one host."""

    def __init__(self, host: "Host", desc: RangeDescriptor, place: Place, *, is_silent: bool) -> None:
        engine = host.engine
        assert isinstance(engine, RottingEngine)
        self.host = host
        self.range_id = desc.range_id
        self.replica_id = _replica_on(desc, host)
        self._place = place
        self._is_silent = is_silent
        if is_silent:
            engine.change(place[1], WRONG)
        else:
            engine.rot.places.add(place)

    @property
    def is_there(self) -> bool:
        engine = self.host.engine
        assert isinstance(engine, RottingEngine)
        return engine.reads_as(self._place[1]) == WRONG if self._is_silent else self._place in engine.rot.places

    @property
    def is_too_old(self) -> bool:
        """Say whether nobody may read it any more, nor compares it."""
        replica = None if self.host.node is None else self.host.node.store._replicas.get(self.range_id)
        ts = MAX_TIMESTAMP - int.from_bytes(self._place[1][-8:], "big")
        return replica is not None and ts < replica.machine.state.threshold

    @property
    def is_found(self) -> bool:
        """Say whether the replica is out of service, or was replaced."""
        node = self.host.node
        status = None if node is None else node.store.range_status(self.range_id)
        if node is None:
            return not self.is_there
        return status is None or status.damage is not None or _replica_on(status.descriptor, self.host) != self.replica_id


def _replica_on(desc: RangeDescriptor, host: "Host") -> ReplicaId | None:
    member = desc.replica_on(StoreId(host.node_id))
    return None if member is None else member.replica_id


class Members:
    """The faults of one run that change, send or damage replicas."""

    def __init__(self, simulation: "Simulation", ask: Any) -> None:
        self._simulation = simulation
        self._hosts = simulation.hosts
        self._chance = simulation.chance
        self._events: Counter[str] = simulation.events
        self._ask = ask
        self._damages: list[Damage] = []
        self._switched: trio.Event | None = None
        """Set when a store switches to a Raft snapshot …"""
        self._receiver: object = None
        """… and whose receiver that is."""
        simulation.hooks.wrap(SnapshotReceiver, "switch", self._switch)
        self.faults = {"members": self._change, "snapshots": self._send, "damage": self._damage, DEPARTURE: self._depart}

    def _gateway(self) -> "SimNode | None":
        nodes = [host.node for host in self._hosts if host.node is not None and not host.node.is_frozen]
        return self._chance.choice(nodes) if nodes else None

    # ---- Membership ----

    async def _change(self, host: "Host") -> None:
        """Change the replicas of some range, and be in the way meanwhile, perhaps."""
        chance = self._chance
        ranges = newest(self._hosts)
        gateway = self._gateway()
        if not ranges or gateway is None:
            return
        desc = chance.choice(list(ranges.values()))
        request = self._some_change(desc)
        if request is None:
            return
        self._simulation.clients.burst(0.3)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ask, gateway, desc.start_key, lambda _: request, "replicas changed")
            await trio.sleep(chance.choice((0.0, 0.01, 0.03, 0.1)) * chance.random())
            match chance.choice(("nothing", "nothing", "lease", "death", "death of the new", "death of the leader")):
                case "lease":
                    to = StoreId(host.node_id)
                    await self._ask(gateway, desc.start_key, lambda desc: TransferLeaseRequest(desc.range_id, to), "transferred")
                case "death":
                    await self._die(host)
                case "death of the new" if request.add:
                    await self._die(self._hosts[request.add[0].store_id - 1])
                case "death of the leader":
                    await self._die(next((each for each in self._hosts if _leads(each, desc.range_id)), host))

    def _some_change(self, desc: RangeDescriptor) -> ChangeReplicasRequest | None:
        chance = self._chance
        inside = [member.store_id for member in desc.replicas]
        outside = [host.node_id for host in self._hosts if host.node_id not in inside]
        learners = [member.store_id for member in desc.replicas if member.kind is ReplicaKind.LEARNER]
        kinds = (["replace"] * 4 + ["add"] if outside and len(inside) <= REPLICAS else []) + (["remove"] if len(inside) >= REPLICAS else [])
        kinds += ["drop"] * 2 if learners else []
        if not kinds:
            return None
        kind = chance.choice(kinds)
        gone = chance.choice(learners if kind == "drop" else inside)
        add = tuple(_new(store) for store in outside[:1]) if kind in ("replace", "add") else ()
        remove = () if kind == "add" else (StoreId(gone),)
        self._events[f"change: {kind}"] += 1
        return ChangeReplicasRequest(desc.range_id, desc.generation, add=add, remove=remove)

    async def _die(self, host: "Host") -> None:
        if host.node is None:
            return
        self._simulation.kill(host, is_silent=self._chance.random() < 0.3)
        await trio.sleep(self._chance.choice((0.02, 0.3, 2.5)))
        await self._simulation.start(host)

    async def _depart(self, _: "Host") -> None:
        """Let a host die in the middle of a change that concerns it, and stay away; see that all ranges have leaders without it."""
        simulation, chance = self._simulation, self._chance
        simulation.network.heal()
        await self.settle(restarts=True)
        desc = chance.choice(list(newest(self._hosts).values()))
        gateway = next(host.node for host in self._hosts if _leads(host, desc.range_id) and host.node is not None)
        spare = next(host for host in self._hosts if desc.replica_on(StoreId(host.node_id)) is None)
        leaves = chance.choice(desc.replicas).store_id
        request = ChangeReplicasRequest(desc.range_id, desc.generation, add=(_new(spare.node_id),), remove=(leaves,))
        async with trio.open_nursery() as asking:
            asking.start_soon(self._ask, gateway, desc.start_key, lambda _: request, "replicas changed")
            await self._wait_for(desc, chance.choice((ReplicaKind.LEARNER, ReplicaKind.VOTER_INCOMING, ReplicaKind.VOTER)), spare)
            await trio.sleep(chance.choice((0.0, 0.0, 0.002, 0.01)))
            leader = next((host for host in self._hosts if _leads(host, desc.range_id)), spare)
            victim = chance.choice((leader, leader, spare, self._hosts[leaves - 1]))
            simulation.kill(victim, is_silent=chance.random() < 0.3)
            asking.cancel_scope.cancel()
        self._events["rare: host departed in a change"] += 1
        witness = next(host for host in self._hosts if host.node is not None)
        await simulation.patiently(simulation.write_everywhere, SERVED_S, witness)
        await simulation.start(victim)

    async def _wait_for(self, desc: RangeDescriptor, kind: ReplicaKind, host: "Host") -> None:
        """Wait until the newest descriptor of a range has a replica of a kind on a host, for a while."""
        with trio.move_on_after(2.0):
            while True:
                member = newest(self._hosts)[desc.range_id].replica_on(StoreId(host.node_id))
                if member is not None and member.kind is kind:
                    return
                await trio.sleep(0.0005)

    # ---- Raft snapshots ----

    async def _send(self, host: "Host") -> None:
        """Let a host miss so much that it is sent whole ranges, by a network that hurts them."""
        simulation, chance, network = self._simulation, self._chance, self._simulation.network
        for other in self._hosts:
            if other is not host:
                network.cut(host.node_id, other.node_id)
                network.cut(other.node_id, host.node_id)
        simulation.clients.burst(1.5)
        await trio.sleep(chance.choice((1.0, 2.0, 4.0)))
        network.heal(is_patient=chance.random() < 0.3)
        network.snapshot_trouble = chance.choice((0.02, 0.1, 0.2))
        simulation.clients.burst(0.3)
        match chance.choice(("nothing", "on its way", "put into place", "put into place")):
            case "on its way":
                await self._kill_on_the_way()
            case "put into place":
                await self._kill_at_the_switch()
        await trio.sleep(chance.choice((0.5, 2.0)))
        network.snapshot_trouble = 0.0

    async def _kill_on_the_way(self) -> None:
        network, chance = self._simulation.network, self._chance
        watched = network.snapshot_watch = trio.Event()
        with trio.move_on_after(3.0):
            await watched.wait()
        network.snapshot_watch = None
        if watched.is_set():
            await trio.sleep(chance.choice((0.0, 0.003, 0.01, 0.05)))
            source, target = (self._hosts[number - 1] for number in network.snapshot_pair)
            victim = chance.choice((source, target))
            self._events[f"rare: {'sender' if victim is source else 'receiver'} of a Raft snapshot died"] += 1
            await self._die(victim)

    async def _kill_at_the_switch(self) -> None:
        """Let a host die that has switched to what it was sent; not all of it is in its place, or synced."""
        watched = self._switched = trio.Event()
        with trio.move_on_after(4.0):
            await watched.wait()
        self._switched = None
        if watched.is_set():
            await trio.sleep(self._chance.choice((0.0, 0.0005, 0.001, 0.002)))
            victim = next((host for host in self._hosts if host.node is not None and host.node.store._receiver is self._receiver), None)
            if victim is not None:
                self._events["rare: receiver of a Raft snapshot died"] += 1
                await self._die(victim)

    def _switch(self, original: Any) -> Any:
        def wrapped(receiver: Any, *args: Any) -> Any:
            if self._switched is not None:
                self._receiver = receiver
                self._switched.set()
            return original(receiver, *args)

        return wrapped

    # ---- Damage ----

    async def _damage(self, host: "Host") -> None:
        """Let something go bad on a host, unless something is already."""
        self._damages = [damage for damage in self._damages if damage.is_there]
        if self._damages or host.node is None:
            return
        is_silent = self._chance.random() < 0.4
        if is_silent:
            await self._damage_silently(host)
            return
        chosen = self._whole(host)
        if chosen is not None:
            desc = self._chance.choice(chosen)
            assert isinstance(host.engine, RottingEngine)
            places = host.engine.places(desc.start_key, desc.end_key)
            if places:
                place = self._chance.choice(places)
                self._damages.append(Damage(host, desc, place, is_silent=False))
                self._events["rare: value went bad at rest"] += 1
                self._events["rare: part of a block went bad at rest"] += place[0] is not DELTA
                self._simulation.clients.burst(0.5)

    async def _damage_silently(self, host: "Host") -> None:
        """Change what no client reads, where nothing else is wrong, and wait until it is found."""
        simulation = self._simulation
        simulation.network.heal()
        for other in self._hosts:
            other.disk.slowness = 1
        await self.settle(restarts=True)
        engine = host.engine
        assert isinstance(engine, RottingEngine)
        desc = self._chance.choice(self._whole(host) or [None])
        others = [] if desc is None else [key for key in OTHER_KEYS if desc.span.contains(key)]
        keys = [found for key in others for found in engine.keys(key, key + b"\xff") if engine.reads_as(found) == b"\x00"]
        if desc is None or not keys:
            return
        damage = Damage(host, desc, (DELTA, self._chance.choice(keys)), is_silent=True)
        self._damages.append(damage)
        self._events["rare: value was changed at rest"] += 1
        # Where nothing is written there is nothing to compare.
        end = simulation.heap.now + FOUND_S
        while not damage.is_found:
            if not damage.is_there or damage.is_too_old:
                # A Raft snapshot has come, as the replica was far behind; or it may be collected.
                self._events["value changed at rest was gone before it was found"] += 1
                self._damages.remove(damage)
                return
            if simulation.heap.now > end:
                raise Violation(f"what was changed in range {desc.range_id} on node {host.node_id} is not found after {FOUND_S:g} s")
            simulation.clients.burst(0.1)
            gateway = self._gateway()
            if gateway is not None:
                await simulation.try_to_write(gateway)
            await trio.sleep(0.5)
        self._events["rare: value changed at rest was found"] += 1

    def _whole(self, host: "Host") -> list[RangeDescriptor] | None:
        """Give the ranges of tables, with all their voters and no other, that are on a host."""
        store = StoreId(host.node_id)
        found = [
            desc
            for desc in newest(self._hosts).values()
            if desc.range_id != SYSTEM_RANGE
            and len(desc.replicas) == REPLICAS
            and all(member.kind is ReplicaKind.VOTER for member in desc.replicas)
            and desc.replica_on(store) is not None
        ]
        return found or None

    # ---- The end ----

    async def settle(self, *, restarts: bool = False) -> None:
        """Give every range three voters again, and wait until nothing is bad.  Raises Violation."""
        if restarts:
            for host in self._hosts:
                if host.node is None:
                    await self._simulation.start(host)
        end = self._simulation.heap.now + SETTLE_S
        while (wrong := self._what_is_wrong()) is not None:
            if self._simulation.heap.now > end:
                raise Violation(f"{SETTLE_S:g} s after the last fault: {wrong}")
            for desc in newest(self._hosts).values():
                request = self._mended(desc)
                gateway = self._gateway()
                if request is not None and gateway is not None:
                    await self._ask(gateway, desc.start_key, lambda _, request=request: request, "replicas mended")
            gateway = self._gateway()
            if gateway is not None:
                # A range in which nothing was written is not looked at.
                await self._simulation.try_to_write(gateway)
            await trio.sleep(0.5)

    def _mended(self, desc: RangeDescriptor) -> ChangeReplicasRequest | None:
        """Give the change that brings a range nearer to what it should be."""
        voters = [member for member in desc.replicas if member.kind is not ReplicaKind.LEARNER]
        learners = [member for member in desc.replicas if member.kind is ReplicaKind.LEARNER]
        if any(member.kind is not ReplicaKind.VOTER for member in voters):
            return None
        inside = [member.store_id for member in desc.replicas]
        outside = [host.node_id for host in self._hosts if host.node_id not in inside]
        if len(voters) > REPLICAS:
            bad = [damage.host.node_id for damage in self._damages if damage.is_there]
            gone = next((member.store_id for member in voters if member.store_id in bad), voters[-1].store_id)
            return ChangeReplicasRequest(desc.range_id, desc.generation, remove=(gone,))
        if len(voters) < REPLICAS:
            wanted = learners[0].store_id if learners else outside[0]
            return ChangeReplicasRequest(desc.range_id, desc.generation, add=(_new(wanted),))
        if learners:
            return ChangeReplicasRequest(desc.range_id, desc.generation, remove=(learners[0].store_id,))
        return None

    def _what_is_wrong(self) -> str | None:
        for damage in self._damages:
            if damage.is_there:
                return f"range {damage.range_id} is bad on node {damage.host.node_id}"
        for range_id, desc in newest(self._hosts).items():
            if len(desc.replicas) != REPLICAS or any(member.kind is not ReplicaKind.VOTER for member in desc.replicas):
                return f"range {range_id} has replicas {desc.replicas}"
            for host in self._hosts:
                status = None if host.node is None else host.node.store.range_status(range_id)
                is_member = desc.replica_on(StoreId(host.node_id)) is not None
                if is_member != (status is not None):
                    return f"range {range_id} is {'not' if is_member else 'still'} on node {host.node_id}"
                if status is not None and status.damage is not None:
                    return f"range {range_id} on node {host.node_id} is out of service: {status.damage}"
        return None


def differing(hosts: "list[Host]") -> str:
    """Say which range's replicas have not applied the same, or do not hold the same; nothing if there is none."""
    for range_id, desc in newest(hosts).items():
        members = [host for host in hosts if desc.replica_on(StoreId(host.node_id)) is not None]
        states = [None if host.node is None else host.node.store.range_status(range_id) for host in members]
        applied = {None if status is None else (status.applied, status.descriptor) for status in states}
        if len(applied) > 1:
            return f"range {range_id} has applied {sorted(map(str, applied))}"
        contents = {_content(host.engine, desc) for host in members}
        if len(contents) > 1:
            return f"contents of range {range_id}: {sorted(contents)}"
    return ""


def _content(engine: MemoryEngine, desc: RangeDescriptor) -> bytes:
    """Give what stands for all that replicas of a range must have alike."""
    snapshot = engine.snapshot()
    try:
        return checksum(snapshot, ReplicaKeys(desc.range_id))
    finally:
        snapshot.release()


def _leads(host: "Host", range_id: RangeId) -> bool:
    return host.node is not None and host.node.store.holds_lease(range_id)


def _new(store: int) -> ReplicaDescriptor:
    return ReplicaDescriptor(ReplicaId(0), NodeId(store), StoreId(store))
