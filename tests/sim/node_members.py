"""Hosts that leave and come back: decommissioned, or silent for so long that they are replaced; and what must hold when all is over.

In the end every range has three voters on different hosts, no learner and no joint configuration, the replicas of a range hold the same,
and what was removed from a host is not there any more.
"""

from collections import Counter
from typing import TYPE_CHECKING

import trio

from dsdb.coordinator.view import NodeState
from dsdb.kv.descriptor import RangeDescriptor, ReplicaKind
from dsdb.kv.errors import KvError
from dsdb.kv.ids import NodeId, RangeId
from dsdb.node.administration import SetNodeStateRequest
from dsdb.storage.columnar.block import BlockCache, Blocks
from dsdb.storage.columnar.plain import plain_entries
from dsdb.store.checksum import VersionFilter
from dsdb.store.state import ReplicaKeys, read_replicated
from tests.checkers.history import Violation

if TYPE_CHECKING:
    from tests.sim.node_sim import Host, Simulation

SETTLE_S = 60.0
"""Simulated time after the last fault in which all ranges must have their replicas again."""
REPLICAS = 3
LAG_MAX = 5
"""Entries that a follower may not have heard to be committed: it is told with the next one."""


async def change_members(simulation: "Simulation", events: Counter[str]) -> None:
    """Let a host's replicas go elsewhere and come back."""
    chance = simulation.chance
    if len(simulation.hosts) == REPLICAS:
        await simulation.add_host()
        await trio.sleep(chance.uniform(0, 2))
    host = chance.choice(simulation.hosts)
    if chance.random() < 0.4:
        await _stay_away(simulation, host)
        events["rare: host was away for long"] += 1
        return
    if not await _wish(simulation, host, NodeState.DECOMMISSIONING, events):
        return
    events["rare: host was to be decommissioned"] += 1
    await trio.sleep(chance.choice((0.0, 0.1, 0.3, 1.0, 3.0)) * chance.random())
    if chance.random() < 0.5:
        victim = chance.choice(simulation.hosts)
        simulation.kill(victim, is_silent=chance.random() < 0.5)
        await trio.sleep(chance.uniform(0.01, 2.0))
        await simulation.start(victim)
    await trio.sleep(chance.uniform(0, 1.5))
    if not is_anywhere(simulation, host):
        events["rare: host was empty"] += 1
    for _ in range(20):
        if await _wish(simulation, host, NodeState.ACTIVE, events):
            return
        await trio.sleep(0.2)


async def _stay_away(simulation: "Simulation", host: "Host") -> None:
    """Be dead for longer than a store may be silent; what it has when it comes back was perhaps removed."""
    from tests.sim.node_sim import DEAD_AFTER_S

    chance = simulation.chance
    simulation.kill(host, is_silent=chance.random() < 0.3)
    await trio.sleep(DEAD_AFTER_S + chance.uniform(0.5, 4.0))
    await simulation.start(host)


async def _wish(simulation: "Simulation", host: "Host", state: NodeState, events: Counter[str]) -> bool:
    """Ask some host to have another's state set; say whether it is."""
    asked = simulation.chance.choice(simulation.hosts)
    assert asked.node is not None
    assert host.node is not None
    if asked.node.parts is None:
        return False
    node_id = NodeId(host.node.node_id)
    with trio.move_on_after(5):
        try:
            await asked.node.parts.administration.serve_set_node_state(SetNodeStateRequest(node_id, state))
        except KvError as error:
            events[f"not {state.value}: {type(error.detail).__name__}"] += 1
            return False
        events[f"made {state.value}"] += 1
        return True
    return False


def descriptors_of(host: "Host") -> list[RangeDescriptor]:
    assert host.node is not None
    return [] if host.node.parts is None else host.node.parts.store.descriptors()


def is_anywhere(simulation: "Simulation", host: "Host") -> bool:
    """Say whether a descriptor, as the newest one of its range has it, names a host."""
    assert host.node is not None
    return any(desc.replica_on(host.node.node_id) is not None for desc in _newest(simulation).values())  # type: ignore[arg-type]


def _newest(simulation: "Simulation") -> dict[RangeId, RangeDescriptor]:
    newest: dict[RangeId, RangeDescriptor] = {}
    for host in simulation.hosts:
        for desc in descriptors_of(host):
            if desc.range_id not in newest or newest[desc.range_id].generation < desc.generation:
                newest[desc.range_id] = desc
    return newest


async def check_members(simulation: "Simulation") -> None:
    """Wait until every range has its replicas; then compare what they hold.  Raises Violation."""
    end = trio.current_time() + SETTLE_S
    while (wrong := _what_is_wrong(simulation)) is not None:
        if trio.current_time() > end:
            raise Violation(f"{SETTLE_S:g} s after the last fault: {wrong}")
        await trio.sleep(0.5)


def _what_is_wrong(simulation: "Simulation") -> str | None:
    for range_id, desc in sorted(_newest(simulation).items()):
        if len({member.node_id for member in desc.voters}) < len(desc.voters):
            raise Violation(f"range {range_id} has two replicas on one node: {desc}")
        if len(desc.replicas) != REPLICAS or any(member.kind is not ReplicaKind.VOTER for member in desc.replicas):
            return f"range {range_id} has replicas {desc.replicas}"
        for host in simulation.hosts:
            assert host.node is not None
            is_member = any(member.node_id == host.node.node_id for member in desc.replicas)
            has = {found.range_id: found for found in descriptors_of(host)}
            if is_member and has.get(range_id) != desc:
                return f"range {range_id} is not, or not as it should be, on {host.name}"
            if not is_member and range_id in has:
                return f"range {range_id} is still on {host.name}"
        if (difference := _difference(simulation, desc)) is not None:
            return difference
    return None


def _difference(simulation: "Simulation", desc: RangeDescriptor) -> str | None:
    """Compare the replicas of a range that have applied the same; say which are far behind.  Raises Violation."""
    seen: dict[int, list[tuple[bytes, bytes]]] = {}
    """Applied index → versions, wherever they lie, with what no reader may see left out: that depends on folding."""
    for host in simulation.hosts:
        assert host.node is not None
        if not any(member.node_id == host.node.node_id for member in desc.replicas):
            continue
        assert host.node.parts is not None
        status = host.node.parts.store.range_status(desc.range_id)
        assert status is not None
        state = read_replicated(host.engine, ReplicaKeys(desc.range_id))
        assert state is not None
        seeing = VersionFilter(state.threshold)
        parts = plain_entries(Blocks(host.engine, BlockCache()), desc.span, chunk_rows=256)
        rows = [row for part in parts for row in zip(*seeing.visible(*part))]
        if seen.setdefault(status.applied, rows) != rows:
            counts = len(seen[status.applied]), len(rows)
            raise Violation(f"replicas of range {desc.range_id} differ at {status.applied}: they have {counts} versions")
    if max(seen) - min(seen) > LAG_MAX:
        return f"range {desc.range_id} has applied {sorted(seen)}"
    return None
