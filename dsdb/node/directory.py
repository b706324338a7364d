"""The directory: which nodes the cluster has, and where they listen.

Each node keeps all entries, writes them to its store, and passes them on; the entry of a node's latest start wins.

Invariants:
- Entries only move forward: by the time of the node's start.
- It is a way to reach nodes, never a decision: who is live, and who holds what, is asked of Raft and of store liveness.
"""

from collections.abc import Iterable

import msgspec

from dsdb.env import Address
from dsdb.kv.ids import NodeId, StoreId
from dsdb.storage.engine import Engine, Family

_KEY = b"\xf0node-directory"


class NodeEntry(msgspec.Struct, frozen=True, array_like=True):
    """A node.  started_ms: when it last started, by its own clock, made to grow with each start."""

    node_id: NodeId
    store_id: StoreId
    host: str
    port: int
    started_ms: int
    locality: tuple[tuple[str, str], ...] = ()

    @property
    def address(self) -> Address:
        """Give where it listens."""
        return Address(self.host, self.port)


_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(tuple[NodeEntry, ...]).decode


class Directory:
    """All nodes that this one has heard of."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        stored = engine.get(Family.META, _KEY)
        self._nodes = {entry.node_id: entry for entry in (_DECODE(stored) if stored else ())}
        self._by_store = {entry.store_id: entry for entry in self._nodes.values()}

    def entries(self) -> tuple[NodeEntry, ...]:
        """Give all nodes, by id."""
        return tuple(self._nodes[node_id] for node_id in sorted(self._nodes))

    def get(self, node_id: NodeId) -> NodeEntry | None:
        """Give a node's entry."""
        return self._nodes.get(node_id)

    def of_store(self, store_id: StoreId) -> NodeEntry | None:
        """Give the entry of the node that has a store."""
        return self._by_store.get(store_id)

    def address_of(self, node_id: NodeId) -> Address | None:
        """Give where a node listens."""
        entry = self._nodes.get(node_id)
        return None if entry is None else entry.address

    def merge(self, entries: Iterable[NodeEntry]) -> list[NodeEntry]:
        """Take what is news; give those entries.  They are written, and become durable with the store's next sync."""
        news = []
        for entry in entries:
            known = self._nodes.get(entry.node_id)
            if known is None or entry.started_ms > known.started_ms:
                self._nodes[entry.node_id] = entry
                self._by_store[entry.store_id] = entry
                news.append(entry)
        if news:
            batch = self._engine.new_batch()
            batch.put(Family.META, _KEY, _ENCODE(self.entries()))
            self._engine.write(batch)
        return news
