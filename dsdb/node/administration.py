"""What the administrator asks of nodes: who is there, and drain, decommission, recommission one of them; any node can be asked.

    any node ── NODES, SET_NODE_STATE ─▶ the node that coordinates ─▶ state in the system range ─▶ told to the node with its next report

Invariants:
- A request is passed on once at most: to the node that this one believes to coordinate.
- A state that makes no sense is refused with a sentence (InvalidRequest); nobody coordinating is Unavailable, and worth another try.
"""

from collections.abc import Callable

import msgspec
import trio

from dsdb.coordinator import Coordinator
from dsdb.coordinator.status import NodeStatus
from dsdb.coordinator.view import NodeState
from dsdb.env import Address, Clock, Network
from dsdb.kv.errors import KvError, KvErrorDetail, Unavailable
from dsdb.kv.ids import NodeId
from dsdb.rpc import Method, MethodKind, Peers, RpcError
from dsdb.rpc.server import Hello
from dsdb.sql.errors import SqlError
from dsdb.sql.ports import PortError

TRIES_S = 8.0
"""How long a request looks for the node that coordinates."""
PAUSE_S = 0.2
"""Between two tries."""
CALL_S = 4.0
"""How long that node may take to answer."""


class NodesRequest(msgspec.Struct, frozen=True, array_like=True):
    """Ask for all nodes.  is_forwarded: by a node, which is not to be sent on."""

    is_forwarded: bool = False


class SetNodeStateRequest(msgspec.Struct, frozen=True, array_like=True):
    """Say what is wanted of a node; answered when that is written, long before it is done."""

    node_id: NodeId
    state: NodeState
    is_forwarded: bool = False


class NodesReply(msgspec.Struct, frozen=True, array_like=True):
    """The nodes, by id."""

    nodes: tuple[NodeStatus, ...]


NODES: Method[NodesRequest, NodesReply] = Method(
    45, "nodes", MethodKind.CALL, NodesRequest, NodesReply, error_type=KvErrorDetail, error_exception=KvError
)
SET_NODE_STATE: Method[SetNodeStateRequest, NodesReply] = Method(
    46, "set node state", MethodKind.CALL, SetNodeStateRequest, NodesReply, error_type=KvErrorDetail, error_exception=KvError
)


class Administration:
    """One for each node."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        coordinator: Coordinator,
        peers: Peers,
        coordinating_node: Callable[[], NodeId | None],
        on_state: Callable[[NodeState], None],
    ) -> None:
        self._node_id = node_id
        self._coordinator = coordinator
        self._peers = peers
        self._coordinating_node = coordinating_node
        self._on_state = on_state
        self.state = NodeState.ACTIVE
        """What is wanted of this node, as it was told last."""

    def told(self, state: NodeState) -> None:
        """Hear what is wanted of this node."""
        if state is not self.state:
            self.state = state
            self._on_state(state)

    async def nodes(self) -> list[NodeStatus]:
        """Describe all nodes.  Raises KvError, RpcError."""
        return list((await self.serve_nodes(NodesRequest())).nodes)

    async def serve_nodes(self, request: NodesRequest) -> NodesReply:
        """Describe all nodes.  Raises KvError, RpcError."""
        if request.is_forwarded or self._coordinates:
            return NodesReply(tuple(await self._coordinator.status()))
        return await self._peers.call(self._other(), NODES, NodesRequest(is_forwarded=True), timeout_s=CALL_S)

    async def serve_set_node_state(self, request: SetNodeStateRequest) -> NodesReply:
        """Say what is wanted of a node.  Raises KvError."""
        if request.is_forwarded or self._coordinates:
            try:
                return NodesReply(tuple(await self._coordinator.set_node_state(request.node_id, request.state)))
            except (PortError, SqlError) as error:
                raise KvError(Unavailable(str(error))) from error
        forwarded = SetNodeStateRequest(request.node_id, request.state, is_forwarded=True)
        try:
            return await self._peers.call(self._other(), SET_NODE_STATE, forwarded, timeout_s=CALL_S)
        except RpcError as error:
            raise KvError(Unavailable(str(error))) from error

    @property
    def _coordinates(self) -> bool:
        return self._coordinating_node() == self._node_id

    def _other(self) -> NodeId:
        node_id = self._coordinating_node()
        if node_id is None or node_id == self._node_id:
            raise KvError(Unavailable("no node is known to coordinate the cluster now"))
        return node_id


async def administer(
    network: Network, clock: Clock, address: Address, request: NodesRequest | SetNodeStateRequest, *, timeout_s: float = TRIES_S
) -> NodesReply:
    """Send a request to the node at an address, from a process that is no node, until it is answered or refused.

    Raises KvError with a sentence, RpcError.
    """
    peers = Peers(network, clock, address_of=lambda _: address)
    peers.hello = Hello("", NodeId(0))
    async with trio.open_nursery() as nursery:
        await nursery.start(peers.run)
        answer = await _patiently(peers, clock, request, clock.now() + timeout_s, timeout_s)
        nursery.cancel_scope.cancel()
    if isinstance(answer, NodesReply):
        return answer
    raise answer


async def _patiently(
    peers: Peers, clock: Clock, request: NodesRequest | SetNodeStateRequest, end: float, timeout_s: float
) -> NodesReply | KvError | RpcError:
    """Ask until there is an answer, a refusal, or no time; give it, as an error that leaves a nursery is one of a group."""
    while True:
        try:
            if isinstance(request, NodesRequest):
                return await peers.call(NodeId(0), NODES, request, timeout_s=timeout_s)
            return await peers.call(NodeId(0), SET_NODE_STATE, request, timeout_s=timeout_s)
        except KvError as error:
            if not isinstance(error.detail, Unavailable) or clock.now() > end:
                return error
        except RpcError as error:
            if clock.now() > end:
                return error
        await trio.sleep(PAUSE_S)
