"""Steering the cluster from a statement: states of nodes, scattering, settings; and what the cluster is doing.

    statement at any node ─▶ here ─ UNDERWAY, SCATTER ─▶ the node that coordinates ─▶ its coordinator

Invariants:
- A request is passed on once at most, to the node that this one believes to coordinate; while nobody does it is tried again for PATIENCE_S.
- What makes no sense is refused with a sentence (RefusedError).
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import trio

from dsdb.coordinator import Coordinator
from dsdb.coordinator.moves import kind_of
from dsdb.coordinator.status import NodeStatus
from dsdb.coordinator.view import NodeState, RangeView
from dsdb.env import Clock
from dsdb.jobs import Imports
from dsdb.kv.errors import InvalidRequest, KvError, KvErrorDetail, Unavailable
from dsdb.kv.ids import NodeId, RangeId
from dsdb.node.administration import Administration, SetNodeStateRequest
from dsdb.node.cluster_settings import ClusterSettings
from dsdb.rpc import Method, MethodKind, Peers, RpcError
from dsdb.sql.catalog import IndexGarbage
from dsdb.sql.ports import RangeUnavailableError
from dsdb.sql.ports_steering import JobInfo, RefusedError, Scattered, StoreInfo
from dsdb.storage.keys import Span, prefix_span, system_key
from dsdb.txn import TransactionFactory

PATIENCE_S = 8.0
"""How long somebody who coordinates is looked for."""
PAUSE_S = 0.2
CALL_S = 4.0
"""How long that node may take to answer."""
DROPS_MAX = 1000
"""Dropped tables that are described."""

T = TypeVar("T")
AskedT = TypeVar("AskedT", bound=msgspec.Struct)

_GARBAGE = msgspec.msgpack.Decoder(IndexGarbage).decode


class UnderwayRequest(msgspec.Struct, frozen=True, array_like=True):
    """Ask the node that coordinates for the moves under way."""


class MoveUnderway(msgspec.Struct, frozen=True, array_like=True):
    """A move.  kind: replicas, lease or split; node_id: of the leaseholder's store, which carries it out."""

    kind: str
    range_id: RangeId
    what: str
    began_ms: int


class UnderwayReply(msgspec.Struct, frozen=True, array_like=True):
    """The moves, by range."""

    moves: tuple[MoveUnderway, ...]


class ScatterRequest(msgspec.Struct, frozen=True, array_like=True):
    """Ask the node that coordinates to spread the ranges that overlap a span, or one range."""

    start: bytes = b""
    end: bytes = b""
    range_id: int | None = None


UNDERWAY: Method[UnderwayRequest, UnderwayReply] = Method(
    52, "underway", MethodKind.CALL, UnderwayRequest, UnderwayReply, error_type=KvErrorDetail, error_exception=KvError
)
SCATTER: Method[ScatterRequest, Scattered] = Method(
    53, "scatter", MethodKind.CALL, ScatterRequest, Scattered, error_type=KvErrorDetail, error_exception=KvError
)


class Steering:
    """Implements `dsdb.sql.ports_steering.ClusterSteering`; one for each node."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        administration: Administration,
        settings: ClusterSettings,
        coordinator: Coordinator,
        peers: Peers,
        coordinating_node: Callable[[], NodeId | None],
        transactions: TransactionFactory,
        imports: Imports,
        clock: Clock,
    ) -> None:
        self._node_id = node_id
        self._administration = administration
        self._coordinator = coordinator
        self._peers = peers
        self._coordinating_node = coordinating_node
        self._transactions = transactions
        self._clock = clock
        self.settings = settings.read
        self.change_setting = settings.change
        self._imports = imports
        self.begin_import = imports.begin
        self.cancel_job = imports.cancel

    # ---- What statements ask ----

    async def set_node_state(self, node_id: int, state: str) -> None:
        """Say what is wanted of a node.  Raises RefusedError, RangeUnavailableError."""
        request = SetNodeStateRequest(NodeId(node_id), NodeState(state))
        await self._patiently(lambda: self._administration.serve_set_node_state(request))

    async def scatter(self, span: Span | None, range_id: int | None) -> Scattered:
        """Begin to spread ranges.  Raises RefusedError, RangeUnavailableError."""
        request = ScatterRequest(range_id=range_id) if span is None else ScatterRequest(span.start, span.end)
        return await self._patiently(lambda: self._coordinated(SCATTER, request, self.serve_scatter))

    async def stores(self) -> list[StoreInfo]:
        """Describe the stores.  Raises RangeUnavailableError."""
        statuses = await self._patiently(self._administration.nodes)
        return [
            StoreInfo(
                store_id=status.store_id,
                node_id=status.node_id,
                liveness=status.liveness.value,
                silence_s=round(status.silence_s, 3),
                replicas=status.replicas,
                leases=status.leases,
                used_bytes=status.bytes,
                capacity_bytes=status.capacity_bytes or None,
                requests_per_s=round(status.requests_per_s, 1),
            )
            for status in sorted(statuses, key=lambda status: status.store_id)
        ]

    async def jobs(self) -> list[JobInfo]:
        """Describe what is being done: nodes that become empty, moves, imports, tables that are removed.  Raises PortError."""
        statuses = await self._patiently(self._administration.nodes)
        underway = await self._patiently(lambda: self._coordinated(UNDERWAY, UnderwayRequest(), self.serve_underway))
        found = [job for status in statuses if (job := _node_job(status)) is not None]
        found += [
            JobInfo(
                kind=move.kind,
                range_id=move.range_id,
                node_id=None,
                what=move.what,
                started_us=move.began_ms * 1000,
                left=None,
                unit=None,
            )
            for move in underway.moves
        ]
        return found + await self._imports.jobs() + await self._drops()

    async def _drops(self) -> list[JobInfo]:
        rows = await self._transactions.begin().scan(prefix_span(system_key("garbage")), limit=DROPS_MAX)
        return [
            JobInfo(
                kind="drop",
                range_id=None,
                node_id=None,
                what=f"remove the rows of table {garbage.table_id}, index {garbage.index_id}, when nobody can be reading them any more",
                started_us=None,
                left=None,
                unit=None,
            )
            for garbage in (_GARBAGE(value) for _, value in rows)
        ]

    # ---- What the node that coordinates answers ----

    async def serve_underway(self, _: UnderwayRequest) -> UnderwayReply:
        """Give the moves under way.  Raises KvError."""
        return UnderwayReply(
            tuple(MoveUnderway(kind_of(move), move.range_id, str(move), began_ms) for move, began_ms in await self._coordinator.underway())
        )

    async def serve_scatter(self, request: ScatterRequest) -> Scattered:
        """Begin to spread ranges.  Raises KvError."""

        def wanted(found: RangeView) -> bool:
            if request.range_id is not None:
                return found.desc.range_id == request.range_id
            return found.desc.span.overlaps(Span(request.start, request.end))

        view = self._coordinator.view
        if request.range_id is not None and view is not None and request.range_id not in view.ranges:
            raise KvError(InvalidRequest(f"there is no range {request.range_id}"))
        return Scattered(*await self._coordinator.scatter(wanted))

    # ---- Reaching it ----

    async def _coordinated(self, method: Method[AskedT, T], request: AskedT, serve: Callable[[AskedT], Awaitable[T]]) -> T:
        node_id = self._coordinating_node()
        if node_id is None:
            raise KvError(Unavailable("no node is known to coordinate the cluster now"))
        if node_id == self._node_id:
            return await serve(request)
        return await self._peers.call(node_id, method, request, timeout_s=CALL_S)

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        end = self._clock.now() + PATIENCE_S
        while True:
            try:
                return await ask()
            except KvError as error:
                reason = getattr(error.detail, "reason", repr(error.detail))
                if isinstance(error.detail, InvalidRequest):
                    raise RefusedError(reason) from error
                if not isinstance(error.detail, Unavailable) or self._clock.now() > end:
                    raise RangeUnavailableError(reason) from error
            except RpcError as error:
                if self._clock.now() > end:
                    raise RangeUnavailableError(str(error)) from error
            await trio.sleep(PAUSE_S)


def _node_job(status: NodeStatus) -> JobInfo | None:
    """Describe a node that gives away what it has; None if it does not."""
    if status.state is NodeState.DRAINING and status.leases:
        kind, left, unit = "drain", status.leases, "leases"
    elif status.state is NodeState.DECOMMISSIONING:
        kind, left, unit = "decommission", status.replicas, "replicas"
    else:
        return None
    what = f"node {status.node_id} gives its {unit} to others"
    return JobInfo(kind=kind, range_id=None, node_id=status.node_id, what=what, started_us=None, left=left, unit=unit)
