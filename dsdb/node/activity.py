"""What every node does now: its sessions' transactions and its leaseholders' row locks, for the tables of schema `system`.

    system.locks ─▶ gather ─┬─ this node's ─────────────────────────────────▶ rows
                            └─ ACTIVITY to every other node, all at once ───▶ rows, or a sentence about those that are missing

Invariants:
- It takes ANSWER_S at most, whoever is out of reach; no range, oracle or lease is asked.
- A node answers for itself alone, and with `ROWS_MAX` rows of a kind at most.
"""

from collections.abc import Callable

import msgspec
import trio

from dsdb.env import Clock
from dsdb.kv.ids import NodeId, node_of_attempt
from dsdb.node.directory import Directory
from dsdb.rpc import Method, MethodKind, Peers, RpcError
from dsdb.sql.ports import LockInfo, OpenTransactionInfo
from dsdb.storage.timestamp import MAX_TIMESTAMP, Timestamp
from dsdb.store import Store

ANSWER_S = 1.0
"""How long a node may take to answer."""
ROWS_MAX = 10_000
"""Rows of a kind in one answer: some megabytes."""


class ActivityRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Which rows are wanted."""

    transactions: bool = False
    locks: bool = False


class ActivityReply(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one node.  is_cut: there are more."""

    transactions: tuple[OpenTransactionInfo, ...] = ()
    locks: tuple[LockInfo, ...] = ()
    is_cut: bool = False


ACTIVITY: Method[ActivityRequest, ActivityReply] = Method(43, "activity", MethodKind.CALL, ActivityRequest, ActivityReply)


class Activity:
    """Answers for this node, and asks all.

    transactions: gives those of this node's sessions, for its wall clock in microseconds.
    """

    def __init__(
        self,
        *,
        node_id: NodeId,
        transactions: Callable[[int], list[OpenTransactionInfo]],
        store: Store,
        clock: Clock,
        directory: Directory,
        peers: Peers,
    ) -> None:
        self._node_id = node_id
        self._transactions = transactions
        self._store = store
        self._clock = clock
        self._directory = directory
        self._peers = peers

    async def serve(self, request: ActivityRequest) -> ActivityReply:
        """Answer for this node."""
        now_us = self._clock.wall_ms() * 1000
        transactions = self._transactions(now_us) if request.transactions else []
        locks = self._locks(now_us) if request.locks else []
        return ActivityReply(
            transactions=tuple(transactions[:ROWS_MAX]),
            locks=tuple(locks[:ROWS_MAX]),
            is_cut=max(len(transactions), len(locks)) > ROWS_MAX,
        )

    def _locks(self, now_us: int) -> list[LockInfo]:
        now = self._clock.now()
        return [
            LockInfo(
                range_id=range_id,
                key=entry.key,
                holder=entry.attempt,
                holder_node=node_of_attempt(entry.attempt),
                since_us=now_us - int((now - entry.since) * 1_000_000),
                waiters=entry.waiters,
            )
            for range_id, entry in self._store.locks()
        ]

    async def transactions(self) -> tuple[list[OpenTransactionInfo], list[str]]:
        """Give the transactions of all nodes, by node and session, and sentences about what is missing."""
        replies, missing = await self._gather(ActivityRequest(transactions=True))
        return [row for reply in replies for row in reply.transactions], missing

    async def oldest_read(self) -> Timestamp:
        """Give the lowest timestamp at which a transaction of the nodes that answer reads; MAX_TIMESTAMP if there is none."""
        rows, _ = await self.transactions()
        return min([row.read_timestamp for row in rows if row.read_timestamp is not None], default=MAX_TIMESTAMP)

    async def locks(self) -> tuple[list[LockInfo], list[str]]:
        """Give the row locks of all ranges, by key, and sentences about what is missing."""
        replies, missing = await self._gather(ActivityRequest(locks=True))
        return sorted((row for reply in replies for row in reply.locks), key=lambda row: row.key), missing

    async def _gather(self, request: ActivityRequest) -> tuple[list[ActivityReply], list[str]]:
        """Ask all nodes; give the replies, by node, and sentences about what is missing."""
        replies: dict[NodeId, ActivityReply] = {}

        async def ask(node_id: NodeId) -> None:
            try:
                replies[node_id] = await self._peers.call(node_id, ACTIVITY, request, timeout_s=ANSWER_S)
            except RpcError:
                return  # said below, as of those that are late

        nodes = [entry.node_id for entry in self._directory.entries()]
        with trio.move_on_after(ANSWER_S):
            async with trio.open_nursery() as nursery:
                for node_id in nodes:
                    if node_id == self._node_id:
                        replies[node_id] = await self.serve(request)
                    else:
                        nursery.start_soon(ask, node_id)
        missing = [f"node {node_id} did not answer: its rows are missing" for node_id in nodes if node_id not in replies]
        missing += [f"node {node_id} gave its first {ROWS_MAX} rows only" for node_id in sorted(replies) if replies[node_id].is_cut]
        return [replies[node_id] for node_id in nodes if node_id in replies], missing
