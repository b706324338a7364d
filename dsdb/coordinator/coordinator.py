"""The coordinator's loop: while this node leads the system range, gather, plan, and have moves carried out.

    gather (a report a store) ─▶ view ─▶ plan ─▶ moves, several at once ─▶ ranges' leaseholders ─▶ seen in the next reports

Invariants:
- Only the system range's leaseholder acts; one that has lost the lease can at most send a move that names an old generation, which
  the range refuses.
- It keeps nothing: what moves were under way is seen in the reports, and what is left of those that failed is wrong, and planned away.
- It plans only what every store has told about, and a move stays under way until the reports show what came of it.
- It holds the loop for a page of reports, or a step of a plan, at most: some milliseconds.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import assert_never

import msgspec
import trio

from dsdb.coordinator.events import EventSink
from dsdb.coordinator.gathering import AskForReport, Gathering, Member
from dsdb.coordinator.moves import ChangeReplicas, Move, SplitRange, TransferLease, kind_of
from dsdb.coordinator.placement import PlacementBook
from dsdb.coordinator.plan import steps
from dsdb.coordinator.scatter import scatter
from dsdb.coordinator.scene import Scene, Settings
from dsdb.coordinator.status import NodeStatus, node_statuses, refusal_of
from dsdb.coordinator.view import ClusterView, NodeState, RangeView
from dsdb.coordinator.wanted import read_node_states, read_range_settings, write_node_state
from dsdb.env import Clock
from dsdb.kv.descriptor import ReplicaDescriptor
from dsdb.kv.errors import InvalidRequest, KvError, Unavailable
from dsdb.kv.ids import NodeId, RangeId
from dsdb.kv.requests import ChangeReplicasRequest, TransferLeaseRequest
from dsdb.raft.messages import ReplicaId
from dsdb.ranges import Router
from dsdb.sql.errors import SqlError
from dsdb.sql.ports import PortError
from dsdb.txn import TransactionFactory

log = logging.getLogger("dsdb.coordinator")

INTERVAL_S = 5.0
"""Time between looks at a cluster in which nothing needed to be done."""
BUSY_INTERVAL_S = 0.1
"""Time between looks while there is something to do, and after a change; then it doubles, up to the longer one."""
UNDERWAY_INTERVAL_S = 0.5
"""The longest time between looks while moves are under way."""
MOVE_TIMEOUT_S = 330.0
"""A change of replicas copies the range: it may take this long before it is given up."""
SEEN_S = 3.0
"""How long a move that is through is waited for in the reports."""
REST_S, REST_MAX_S = 1.0, 60.0
"""How long a range is left alone after a move that failed, doubling."""
DEAD_AFTER_S = 300.0
"""A store that does not answer for this long is dead: its replicas are replaced."""


class Coordinator:
    """Runs on every node, acts on one."""

    def __init__(
        self,
        *,
        router: Router,
        transactions: TransactionFactory,
        clock: Clock,
        is_leader: Callable[[], bool],
        members: Callable[[], Sequence[Member]],
        ask: AskForReport,
        split: Callable[[bytes], Awaitable[None]],
        events: EventSink,
        dead_after_s: float = DEAD_AFTER_S,
        settings: Settings | None = None,
    ) -> None:
        """split: makes a key the start of a range; raises PortError."""
        self._split = split
        self._router = router
        self._transactions = transactions
        self._clock = clock
        self._is_leader = is_leader
        self._members = members
        self._ask = ask
        self._events = events
        self._default_dead_after_s = self._dead_after_s = dead_after_s
        self._default_settings = self._settings = settings or Settings()
        self._nursery: trio.Nursery | None = None
        """That moves run in."""
        self._gathering: Gathering | None = None
        """Of this term; None while another node coordinates."""
        self._underway: dict[RangeId, Move] = {}
        self._began_ms: dict[RangeId, int] = {}
        """Of moves under way, by the wall clock."""
        self._resting: dict[RangeId, tuple[float, float]] = {}
        """Ranges whose last move failed → until when they rest, and how long that is."""
        self._planned_version = -1
        self._planned_at = 0.0
        self._is_replanned = True
        """Something besides the view has changed since the last plan."""
        self._wakeup = trio.Event()
        self._rounds_begun = 0
        self._round_ended = trio.Event()
        self._has_warned = False

    @property
    def view(self) -> ClusterView | None:
        """Give what is known of the cluster; None while another node coordinates."""
        return None if self._gathering is None else self._gathering.view

    def wake(self) -> None:
        """Look at the cluster now: something has changed."""
        self._wakeup.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Gather, plan and act, for ever.

        What wakes it may come before its consequences: of a node that joins, the entry is here before it is connected.
        So it looks several times after a change, more and more seldom.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            pause_s = INTERVAL_S
            while True:
                pause_max_s = INTERVAL_S
                self._rounds_begun += 1
                if self._is_leader():
                    try:
                        pause_max_s = await self._round()
                    except (KvError, PortError, SqlError) as error:
                        log.info("the coordinator pauses: %s", error)
                else:
                    self._gathering = None
                ended, self._round_ended = self._round_ended, trio.Event()
                ended.set()
                pause_s = min(2 * pause_s, pause_max_s)
                with trio.move_on_after(pause_s):
                    await self._wakeup.wait()
                if self._wakeup.is_set():
                    self._wakeup = trio.Event()
                    pause_s = BUSY_INTERVAL_S / 2

    async def _round(self) -> float:
        """Gather, plan, and begin what was planned; give the longest pause before the next round."""
        if self._gathering is None:
            self._gathering = Gathering(self._clock, self._ask, dead_after_s=self._dead_after_s)
            self._planned_version = -1
            self._resting.clear()
        gathering = self._gathering
        gathering.dead_after_s = self._dead_after_s
        view = gathering.view
        states = await read_node_states(self._router)
        view.set_placements(PlacementBook(await read_range_settings(self._router)))
        members = self._members()
        await gathering.gather(members, states)
        if not gathering.is_complete or not self._is_leader():
            return BUSY_INTERVAL_S
        self._warn(view)
        now = self._clock.now()
        has_rested = any(self._planned_at < until <= now for until, _ in self._resting.values())
        if view.version == self._planned_version and not self._is_replanned and not has_rested:
            return UNDERWAY_INTERVAL_S if self._underway else INTERVAL_S
        self._is_replanned = False
        self._planned_version, self._planned_at = view.version, now
        self._resting = {range_id: rest for range_id, rest in self._resting.items() if now < rest[0] + REST_MAX_S}
        resting = {range_id for range_id, (until, _) in self._resting.items() if until > now}
        found: list[Move] = []
        for _ in steps(view, tuple(self._underway.values()), self._settings, found, resting):
            await trio.lowlevel.checkpoint()
        self._begin(found)
        await self._finish_decommissions(states)
        if found:
            return BUSY_INTERVAL_S
        return UNDERWAY_INTERVAL_S if self._underway else INTERVAL_S

    # ---- Moves ----

    def _begin(self, moves: Sequence[Move]) -> None:
        assert self._nursery is not None, "only while it runs"
        for move in moves:
            self._underway[move.range_id] = move
            self._began_ms[move.range_id] = self._clock.wall_ms()
            self._nursery.start_soon(self._carry_out, move)

    async def _carry_out(self, move: Move) -> None:
        """Have a range make a move, and wait until it is seen."""
        range_id = move.range_id
        kind = kind_of(move)
        reason = None
        try:
            try:
                await self._send(move)
            except KvError as error:
                reason = str(getattr(error.detail, "reason", error))
            except PortError as error:
                reason = str(error)
            if reason is not None and isinstance(move, ChangeReplicas) and await self._goes_on(move):
                reason = None
            if reason is not None:
                self._events.record(kind, range_id, f"{move}: {reason}", is_done=False)
                self._let_rest(range_id)
                return
            with trio.move_on_after(SEEN_S):
                while not self._is_seen(move):
                    self.wake()
                    await trio.sleep(BUSY_INTERVAL_S)
            self._resting.pop(range_id, None)
            self._events.record(kind, range_id, str(move))
        finally:
            self._underway.pop(range_id, None)
            self._began_ms.pop(range_id, None)
            self._is_replanned = True
            self.wake()

    async def _send(self, move: Move) -> None:
        desc = move.desc
        match move:
            case ChangeReplicas():
                added = tuple(
                    ReplicaDescriptor(ReplicaId(desc.next_replica_id + number), target.node_id, target.store_id)
                    for number, target in enumerate(move.add)
                )
                request = ChangeReplicasRequest(desc.range_id, desc.generation, add=added, remove=move.remove)
                await self._router.send(desc.start_key, lambda _: request, deadline_s=MOVE_TIMEOUT_S)
            case TransferLease():
                transfer = TransferLeaseRequest(desc.range_id, move.to)
                await self._router.send(desc.start_key, lambda _: transfer)
            case SplitRange():
                await self._split(move.key)
            case never:
                assert_never(never)

    async def _goes_on(self, move: ChangeReplicas) -> bool:
        """Say whether a change came to its end though its answer did not: a large range takes longer than a call may."""
        await self._next_round()
        with trio.move_on_after(MOVE_TIMEOUT_S):
            while (now := self._range(move.range_id)) is not None and now.is_changing:
                await self._round_ended.wait()
        now = self._range(move.range_id)
        if now is None:
            return False
        stores = {member.store_id for member in now.desc.voters}
        return stores.issuperset(target.store_id for target in move.add) and stores.isdisjoint(move.remove)

    def _range(self, range_id: RangeId) -> RangeView | None:
        view = self.view
        return None if view is None else view.ranges.get(range_id)

    def _is_seen(self, move: Move) -> bool:
        """Say whether the reports show that a move is through, or something else has happened."""
        now = self._range(move.range_id)
        if now is None:
            return True
        if isinstance(move, TransferLease):
            return now.leaseholder not in (None, move.leaseholder)
        if isinstance(move, SplitRange):
            return now.desc.end_key <= move.key
        return now.desc.generation > move.desc.generation and not now.is_changing

    def _let_rest(self, range_id: RangeId) -> None:
        _, rest_s = self._resting.get(range_id, (0.0, REST_S / 2))
        rest_s = min(2 * rest_s, REST_MAX_S)
        self._resting[range_id] = (self._clock.now() + rest_s, rest_s)

    # ---- Nodes ----

    async def _finish_decommissions(self, states: dict[NodeId, NodeState]) -> None:
        """Note that nodes being decommissioned have no replica left."""
        assert self._gathering is not None
        view = self._gathering.view
        for node_id, state in sorted(states.items()):
            if state is not NodeState.DECOMMISSIONING:
                continue
            stores = [store for store in view.stores.values() if store.node_id == node_id]
            if stores and not any(view.figures[store.store_id].replicas for store in stores):
                await write_node_state(self._transactions, node_id, NodeState.DECOMMISSIONED)
                self._events.record("node", RangeId(0), f"node {node_id} is decommissioned: it has no replica left")
                self.wake()

    async def set_node_state(self, node_id: NodeId, state: NodeState) -> list[NodeStatus]:
        """Set what is wanted of a node, where this node coordinates.  Raises KvError with a sentence, PortError, SqlError."""
        view = (await self._fresh()).view
        reason = refusal_of(view, node_id, state)
        if reason is not None:
            raise KvError(InvalidRequest(reason))
        await write_node_state(self._transactions, node_id, state)
        self._events.record("node", RangeId(0), f"node {node_id} is to be {state.value}")
        return await self.status()

    async def status(self) -> list[NodeStatus]:
        """Describe all nodes, where this node coordinates.  Raises KvError."""
        gathering = await self._fresh()
        return node_statuses(gathering.view, gathering.silence_s)

    async def underway(self) -> list[tuple[Move, int]]:
        """Give the moves under way where this node coordinates, and when each began by its wall clock.  Raises KvError."""
        await self._fresh()
        return [(move, self._began_ms[range_id]) for range_id, move in sorted(self._underway.items())]

    async def scatter(self, wanted: Callable[[RangeView], bool]) -> tuple[int, int]:
        """Begin to spread some ranges evenly; give how many moves began, and how many ranges wait.  Raises KvError."""
        view = (await self._fresh()).view
        chosen = [range_id for range_id, found in view.ranges.items() if wanted(found)]
        scene = Scene(view, tuple(self._underway.values()), self._settings)
        left = scatter(scene, chosen)
        self._begin(scene.moves)
        return len(scene.moves), left

    # ---- Settings ----

    def use(self, *, dead_after_s: float | None, moves_max: int | None) -> None:
        """Obey settings from the next look on; None: as it was made."""
        self._dead_after_s = self._default_dead_after_s if dead_after_s is None else dead_after_s
        moves = self._default_settings.moves_max if moves_max is None else moves_max
        self._settings = msgspec.structs.replace(self._default_settings, moves_max=moves)
        self._is_replanned = True

    async def _fresh(self) -> Gathering:
        """Wait for a round that begins after now.  Raises KvError where this node does not coordinate."""
        await self._next_round()
        if self._gathering is not None and self._gathering.is_complete and self._is_leader():
            return self._gathering
        raise KvError(Unavailable("this node does not coordinate the cluster, or has just begun to"))

    async def _next_round(self) -> None:
        begun = self._rounds_begun
        while self._rounds_begun == begun:
            self.wake()
            await self._round_ended.wait()

    def _warn(self, view: ClusterView) -> None:
        hosts = len({store.host for store in view.stores.values() if store.keeps_replicas})
        nodes = len(view.stores)
        if nodes < 2 or hosts > 2 or self._has_warned:
            return
        self._has_warned = True
        if hosts == nodes:
            log.warning("a cluster of two nodes keeps one replica of each range: add a third node, then all have three")
        else:
            log.warning("%d nodes on %d machines keep one replica of each range: add a node on another machine", nodes, hosts)
