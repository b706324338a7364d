"""The store's Transport over node RPC: frames on control connections, Raft snapshots on bulk ones."""

from collections.abc import AsyncIterator, Callable

import msgspec

from dsdb.kv.ids import NodeId, StoreId
from dsdb.rpc import Method, MethodKind, Peers, RpcError
from dsdb.store.frame import SnapshotHeader, StoreFrame, TransportError


class SnapshotInstalled(msgspec.Struct, frozen=True, array_like=True):
    """The Raft snapshot is in place."""


FRAME: Method[StoreFrame, None] = Method(50, "store frame", MethodKind.ONEWAY, StoreFrame, None)
SNAPSHOT: Method[SnapshotHeader, SnapshotInstalled] = Method(51, "raft snapshot", MethodKind.UPLOAD, SnapshotHeader, SnapshotInstalled)


class RpcTransport:
    """Carries what this store says to others."""

    def __init__(self, peers: Peers, node_of: Callable[[StoreId], NodeId | None]) -> None:
        self._peers = peers
        self._node_of = node_of

    def send(self, to: StoreId, frame: StoreFrame) -> None:
        """Send a frame if the store's node is known and connected; else it is lost, and Raft sends again."""
        node_id = self._node_of(to)
        if node_id is not None:
            self._peers.send(node_id, FRAME, frame)

    async def send_snapshot(self, to: StoreId, header: SnapshotHeader, chunks: AsyncIterator[bytes]) -> None:
        """Stream a Raft snapshot; returns when it is installed."""
        node_id = self._node_of(to)
        if node_id is None:
            raise TransportError(f"the node of store {to} is not known")
        try:
            await self._peers.upload(node_id, SNAPSHOT, header, chunks)
        except RpcError as error:
            raise TransportError(str(error)) from error
