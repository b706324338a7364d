"""Leaders: who leads each of very many ranges, found out together; ranges that have no leader get one, a few at a time.

    ranges whose leaseholder is not known ─▶ what the replica here knows
                                          └▶ others by node: LEADERS(range ids) ─▶ leaseholders; those without one are woken there
                                             until all are known, or none became known for DEADLINE_S

After a restart of all nodes nobody leads anything.  A scan of everything would ask range after range, and give up on the way.

Invariants:
- One message a node and look, never one a range.
- What is found is a hint, like everything in the addressing cache; a range that stays unknown is left to the caller.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import msgspec
import trio

from dsdb.env import Clock
from dsdb.kv.ids import NodeId, RangeId, StoreId
from dsdb.ranges import CachedRange
from dsdb.rpc import Method, MethodKind, RpcError

log = logging.getLogger("dsdb.flow")

FEW = 8
"""So many are asked one by one: the range itself knows best, and its router waits for it."""
DEADLINE_S = 10.0
ANSWER_S = 2.0
"""How long a node may take to answer."""
PAUSE_MIN_S, PAUSE_MAX_S = 0.02, 0.25
"""Between two looks: longer for more ranges, as each costs some microseconds."""
PAUSE_EACH_S = 0.000_1


class LeadersRequest(msgspec.Struct, frozen=True, array_like=True):
    """Who leads these ranges?  Replicas of leaderless ones shall campaign."""

    range_ids: tuple[RangeId, ...]


class LeadersReply(msgspec.Struct, frozen=True, array_like=True):
    """Their leaseholders, in the same order; 0: not known here."""

    stores: tuple[StoreId, ...]


LEADERS: Method[LeadersRequest, LeadersReply] = Method(31, "leaders", MethodKind.CALL, LeadersRequest, LeadersReply)


class LeaderSource(Protocol):
    """What is asked of this node's store."""

    def live_leaseholder_hint(self, range_id: RangeId) -> StoreId | None:
        """Give the store that probably serves a range, if a replica here knows, and the store is heard of."""

    def wake(self, range_ids: Sequence[RangeId]) -> None:
        """Have replicas that wait to be woken woken before others, some of them."""


class Leaders:
    """One for each node."""

    def __init__(
        self, *, node_id: NodeId, store: LeaderSource, clock: Clock, ask: Callable[[NodeId, LeadersRequest], Awaitable[LeadersReply]]
    ) -> None:
        """ask: asks another node, within ANSWER_S; raises RpcError."""
        self._node_id = node_id
        self._store = store
        self._ask_node = ask
        self._clock = clock

    async def serve(self, request: LeadersRequest) -> LeadersReply:
        """Answer another node."""
        return LeadersReply(self._look(request.range_ids))

    async def find(self, entries: Sequence[CachedRange]) -> None:
        """Find out who leads ranges of which it is not known."""
        waiting = [entry for entry in entries if not _is_known(entry)]
        turn = 0
        news_at = self._clock.now()
        while waiting := [entry for entry in waiting if not self._is_known_here(entry)]:
            if len(waiting) <= FEW or self._clock.now() - news_at > DEADLINE_S:
                return
            by_node: dict[NodeId, list[CachedRange]] = {}
            for entry in waiting:
                voters = entry.desc.voters
                by_node.setdefault(voters[(entry.desc.range_id + turn) % len(voters)].node_id, []).append(entry)
            async with trio.open_nursery() as nursery:
                for node_id, some in sorted(by_node.items()):
                    nursery.start_soon(self._ask, node_id, some)
            before = len(waiting)
            waiting = [entry for entry in waiting if not _is_known(entry)]
            if len(waiting) < before:
                news_at = self._clock.now()
            else:
                turn += 1  # whoever was asked may be unable to lead
            if waiting:
                await trio.sleep(min(max(len(waiting) * PAUSE_EACH_S, PAUSE_MIN_S), PAUSE_MAX_S))

    def _is_known_here(self, entry: CachedRange) -> bool:
        """Say whether it is known who leads a range, also by this node's own replica."""
        if not _is_known(entry):
            entry.leaseholder = self._store.live_leaseholder_hint(entry.desc.range_id)
        return _is_known(entry)

    async def _ask(self, node_id: NodeId, entries: Sequence[CachedRange]) -> None:
        range_ids = tuple([entry.desc.range_id for entry in entries])
        if node_id == self._node_id:
            stores = self._look(range_ids)
        else:
            try:
                reply = await self._ask_node(node_id, LeadersRequest(range_ids))
            except RpcError as error:
                log.info("node %d does not say who leads %d ranges: %s", node_id, len(range_ids), error)
                return
            stores = reply.stores
        for entry, store_id in zip(entries, stores):
            if store_id:
                entry.leaseholder = store_id

    def _look(self, range_ids: Sequence[RangeId]) -> tuple[StoreId, ...]:
        found = tuple([self._store.live_leaseholder_hint(range_id) or StoreId(0) for range_id in range_ids])
        self._store.wake([range_id for range_id, store_id in zip(range_ids, found) if not store_id])
        return found


def _is_known(entry: CachedRange) -> bool:
    return entry.leaseholder is not None and entry.desc.replica_on(entry.leaseholder) is not None
