"""The coordinator's loop: while this node leads the system range, look at the cluster, plan, and carry out.

    view (stores, meta, leaseholders) ─▶ plan ─▶ ChangeReplicas, TransferLease ─▶ look again

Invariants:
- Only the system range's leaseholder acts; one that has lost the lease can at most send a move that names an old generation, which
  the range refuses.
- Moves are made one at a time.
"""

import logging
from collections.abc import Callable, Sequence
from typing import assert_never

import msgspec
import trio

from dsdb.coordinator.plan import AddReplicas, Move, RangeView, StoreView, TransferLease, plan
from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor
from dsdb.kv.errors import KvError
from dsdb.kv.ids import SYSTEM_RANGE
from dsdb.kv.requests import ChangeReplicasRequest, DescribeReply, DescribeRequest, ScanReply, ScanRequest, TransferLeaseRequest
from dsdb.raft.messages import ReplicaId
from dsdb.ranges import Router
from dsdb.storage.keys import KEY_MIN, META_PREFIX, prefix_span

log = logging.getLogger("dsdb.coordinator")

INTERVAL_S = 5.0
"""Time between looks at a cluster in which nothing needed to be done."""
BUSY_INTERVAL_S = 0.1
"""Time between looks while there is something to do, and after a change; then it doubles, up to the longer one."""
MOVE_TIMEOUT_S = 90.0
"""A change of replicas copies the range: it may take this long before it is asked for again."""

_DECODE = msgspec.msgpack.Decoder(RangeDescriptor).decode


class Coordinator:
    """Runs on every node, acts on one."""

    def __init__(self, *, router: Router, is_leader: Callable[[], bool], stores: Callable[[], Sequence[StoreView]]) -> None:
        self._router = router
        self._is_leader = is_leader
        self._stores = stores
        self._wakeup = trio.Event()
        self._has_warned = False

    def wake(self) -> None:
        """Look at the cluster now: something has changed."""
        self._wakeup.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look, plan and act, for ever.

        What wakes it may come before its consequences: of a node that joins, the entry is here before it is connected.
        So it looks several times after a change, more and more seldom.
        """
        task_status.started()
        pause_s = INTERVAL_S
        is_woken = False
        while True:
            moved = False
            if self._is_leader():
                try:
                    moved = await self._step()
                except KvError as error:
                    log.info("the coordinator pauses: %s", error)
            pause_s = BUSY_INTERVAL_S if moved or is_woken else min(2 * pause_s, INTERVAL_S)
            with trio.move_on_after(pause_s) as waiting:
                await self._wakeup.wait()
            is_woken = not waiting.cancelled_caught
            self._wakeup = trio.Event()

    async def _step(self) -> bool:
        stores = self._stores()
        self._warn(stores)
        for move in plan(stores, await self._ranges()):
            if not self._is_leader():
                return False
            await self._carry_out(move)
            return True
        return False

    async def _ranges(self) -> list[RangeView]:
        """Read all descriptors and ask each range who leads it; the system range comes first."""
        views: list[RangeView] = []
        rest = prefix_span(META_PREFIX)
        while not rest.is_empty:
            span = rest
            reply = await self._router.send(KEY_MIN, lambda _, span=span: ScanRequest(SYSTEM_RANGE, span, None, 1000, 1 << 20))  # type: ignore[misc]
            assert isinstance(reply, ScanReply)
            for value in reply.values:
                key = _DECODE(value).start_key
                described = await self._router.send(key, lambda desc: DescribeRequest(desc.range_id))
                assert isinstance(described, DescribeReply)
                views.append(RangeView(desc=described.descriptor, leaseholder=described.leaseholder))
            if reply.resume is None:
                break
            rest = reply.resume
        return views

    async def _carry_out(self, move: Move) -> None:
        match move:
            case AddReplicas(desc=desc, stores=stores):
                added = tuple(
                    ReplicaDescriptor(ReplicaId(desc.next_replica_id + number), store.node_id, store.store_id)
                    for number, store in enumerate(stores)
                )
                log.info("range %d: adding replicas on nodes %s", desc.range_id, ", ".join(str(store.node_id) for store in stores))
                await self._router.send(
                    desc.start_key,
                    lambda _: ChangeReplicasRequest(desc.range_id, desc.generation, add=added),
                    deadline_s=MOVE_TIMEOUT_S,
                )
            case TransferLease(range_id=range_id, to=to):
                entry = self._router.cache.by_id(range_id)
                if entry is not None:
                    log.info("range %d: transferring the lease to store %d", range_id, to)
                    await self._router.send(entry.start_key, lambda _: TransferLeaseRequest(range_id, to))
                    # The transfer has only begun; a look before it is through would ask for it again.
                    await trio.sleep(1.0)
            case never:
                assert_never(never)

    def _warn(self, stores: Sequence[StoreView]) -> None:
        if len(stores) == 2 and not self._has_warned:
            self._has_warned = True
            log.warning("a cluster of two nodes keeps one replica of each range: add a third node, then all have three")
