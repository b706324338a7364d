"""Joining a cluster, and keeping the directory of nodes the same everywhere.

    new node ── JOIN(address) ─▶ any node ─ ids from the system range ─▶ cluster id, node id, store id, the directory
    any node ── MEET(what I know) ─▶ every other, at its start and when it hears of a new one ─▶ what it knows

Invariants:
- Node and store ids come from a counter in the system range and are never given twice.
- A node of another cluster is refused with a sentence.
"""

import logging
from collections.abc import Callable

import msgspec
import trio

from dsdb.env import Address, Network
from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.errors import KvError, KvErrorDetail, Unavailable
from dsdb.kv.ids import SYSTEM_RANGE, NodeId, StoreId
from dsdb.node.config import StartError
from dsdb.node.directory import Directory, NodeEntry
from dsdb.ranges import RangeCache
from dsdb.rpc import CallFailed, Method, MethodKind, NotSent, NotTrusted, Peers, Refused, ReplyLost, RpcError
from dsdb.sql.errors import SqlError
from dsdb.sql.ports import PortError, TransactionRetryError
from dsdb.storage.keys import system_key
from dsdb.txn import TransactionFactory

log = logging.getLogger("dsdb.node")

FORMAT = 1
"""Version of what nodes say to each other and write to their stores."""
MEET_INTERVAL_S = 1.0
"""Between two rounds of meeting the nodes that have not answered since this one started."""
JOIN_PAUSE_S = 0.3
"""Between two tries of the addresses to join."""


class JoinRequest(msgspec.Struct, frozen=True, array_like=True):
    """A new node asks for a place.  format: the newest it understands."""

    format: int


class JoinReply(msgspec.Struct, frozen=True, array_like=True):
    """Its ids, and how to reach the others."""

    cluster_id: str
    node_id: NodeId
    store_id: StoreId
    nodes: tuple[NodeEntry, ...]
    system_range: RangeDescriptor | None


class MeetRequest(msgspec.Struct, frozen=True, array_like=True):
    """What a node knows."""

    nodes: tuple[NodeEntry, ...]
    system_range: RangeDescriptor | None


class MeetReply(msgspec.Struct, frozen=True, array_like=True):
    """What the other knows."""

    nodes: tuple[NodeEntry, ...]
    system_range: RangeDescriptor | None


class CatalogRenewRequest(msgspec.Struct, frozen=True, array_like=True):
    """Renew the catalogue lease until no statement uses a version below this one."""

    version: int


class CatalogRenewReply(msgspec.Struct, frozen=True, array_like=True):
    """Done."""


JOIN: Method[JoinRequest, JoinReply] = Method(
    40, "join", MethodKind.CALL, JoinRequest, JoinReply, error_type=KvErrorDetail, error_exception=KvError
)
MEET: Method[MeetRequest, MeetReply] = Method(41, "meet", MethodKind.CALL, MeetRequest, MeetReply)
CATALOG_RENEW: Method[CatalogRenewRequest, CatalogRenewReply] = Method(
    42, "catalog renew", MethodKind.CALL, CatalogRenewRequest, CatalogRenewReply
)

_COUNTER = msgspec.msgpack.Decoder(int).decode
_ENCODE = msgspec.msgpack.Encoder().encode


async def take_id(transactions: TransactionFactory, name: str, *, first: int) -> int:
    """Take the next value of a counter in the system range, which starts at `first`.  Raises PortError, SqlError."""
    return await take_ids(transactions, name, 1, first=first)


async def take_ids(transactions: TransactionFactory, name: str, count: int, *, first: int) -> int:
    """Take the next `count` values of such a counter, and give the lowest.  Raises PortError, SqlError."""
    for _ in range(20):
        txn = transactions.begin()
        key = system_key("next_id", name)
        (stored,) = await txn.get([key])
        number = first if stored is None else _COUNTER(stored)
        txn.put(key, _ENCODE(number + count))
        try:
            await txn.commit()
        except TransactionRetryError:
            await trio.sleep(0.005)
            continue
        return number
    raise TransactionRetryError(f"the counter {name} is contended")


class Membership:
    """This node's part in joining and meeting."""

    def __init__(
        self,
        *,
        cluster_id: str,
        directory: Directory,
        own: NodeEntry,
        peers: Peers,
        cache: RangeCache,
        transactions: TransactionFactory,
        on_node: Callable[[NodeEntry], None],
    ) -> None:
        self._cluster_id = cluster_id
        self._directory = directory
        self._own = own
        self._peers = peers
        self._cache = cache
        self._transactions = transactions
        self._on_node = on_node
        self._unmet = {entry.node_id for entry in directory.entries()} - {own.node_id}
        self._wakeup = trio.Event()

    async def serve_join(self, request: JoinRequest) -> JoinReply:
        """Give a new node its ids.  Raises KvError."""
        if request.format < FORMAT:
            raise KvError(Unavailable(f"the joining node understands format {request.format}, this cluster uses {FORMAT}: upgrade it"))
        try:
            number = await take_id(self._transactions, "node", first=2)
        except (PortError, SqlError) as error:
            raise KvError(Unavailable(str(error))) from error
        log.info("node %d joins the cluster", number)
        return JoinReply(self._cluster_id, NodeId(number), StoreId(number), self._directory.entries(), self._system_range())

    async def serve_meet(self, request: MeetRequest) -> MeetReply:
        """Exchange what is known."""
        self.take(request.nodes, request.system_range)
        return MeetReply(self._directory.entries(), self._system_range())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Meet every node at least once after this start, and each new one."""
        task_status.started()
        while True:
            for node_id in sorted(self._unmet):
                try:
                    reply = await self._peers.call(node_id, MEET, self.request(), timeout_s=2.0)
                except (NotSent, ReplyLost, CallFailed) as error:
                    log.debug("node %d has not been met: %s", node_id, error)
                    continue
                self._unmet.discard(node_id)
                self.take(reply.nodes, reply.system_range)
            with trio.move_on_after(MEET_INTERVAL_S if self._unmet else float("inf")):
                await self._wakeup.wait()
            self._wakeup = trio.Event()

    def request(self) -> MeetRequest:
        """Give what this node knows, to exchange."""
        return MeetRequest(self._directory.entries(), self._system_range())

    def take(self, nodes: tuple[NodeEntry, ...], system_range: RangeDescriptor | None) -> None:
        """Take what another node knows."""
        if system_range is not None:
            self._cache.update(system_range)
        for entry in self._directory.merge(nodes):
            if entry.node_id == self._own.node_id:
                continue
            log.info("node %d is at %s", entry.node_id, entry.address)
            self._peers.forget_address(entry.node_id)
            self._unmet.add(entry.node_id)
            self._wakeup.set()
            self._on_node(entry)

    def _system_range(self) -> RangeDescriptor | None:
        entry = self._cache.by_id(SYSTEM_RANGE)
        return None if entry is None else entry.desc


async def ask_to_join(
    network: Network, peers_of: Callable[[Address], Peers], addresses: tuple[Address, ...], timeout_s: float
) -> JoinReply:
    """Ask the addresses in turn for a place in their cluster.  Raises StartError with a sentence."""
    reasons: dict[Address, str] = {}
    refused: set[Address] = set()
    with trio.move_on_after(timeout_s):
        while True:
            for address in addresses:
                peers = peers_of(address)
                async with trio.open_nursery() as nursery:
                    await nursery.start(peers.run)
                    try:
                        return await peers.call(NodeId(0), JOIN, JoinRequest(FORMAT), timeout_s=5.0)
                    except KvError as error:
                        reasons[address] = getattr(error.detail, "reason", str(error.detail))
                    except (NotTrusted, Refused) as error:
                        said = str(error.detail) if isinstance(error, Refused) else str(error)
                        reasons[address] = said.removeprefix("node 0 cannot be reached: ")
                        refused.add(address)
                    except RpcError as error:
                        reasons[address] = str(error).removeprefix("node 0 cannot be reached: ")
                    finally:
                        nursery.cancel_scope.cancel()
            if refused.issuperset(addresses):
                # Certificates do not change by waiting.
                raise StartError(f"no node lets this one join ({_tried(reasons)}).")
            await trio.sleep(JOIN_PAUSE_S)
    raise StartError(f"no node to join answered within {timeout_s:.0f} s ({_tried(reasons) or 'nobody was asked'}).")


def _tried(reasons: dict[Address, str]) -> str:
    return "; ".join(f"{address}: {reason}" for address, reason in sorted(reasons.items()))
