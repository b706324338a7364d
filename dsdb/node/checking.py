"""Checking: what is wrong with the ranges of the cluster, asked of every node, and of every range's leaseholder.

    structure ─▶ meta ▸ COPIES of every node ─▶ `look` twice, some seconds apart ─▶ what both saw
    range     ─▶ CHECK_RANGE at the node of its leaseholder ─▶ checksums of its replicas compared (`store.consistency`)

Invariants:
- What changes as it should while it is looked at is no problem: only what two looks see alike is told.
- It reads only; what a check of a range finds wrong goes out of service and is repaired, as if it had been found in the background.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import trio

from dsdb.coordinator.view import NodeState
from dsdb.coordinator.wanted import read_node_states
from dsdb.kv.descriptor import RangeDescriptor, ReplicaKind
from dsdb.kv.errors import InvalidRequest, KvError, KvErrorDetail, NotLeaseholder, Unavailable
from dsdb.kv.ids import NodeId, RangeId, StoreId
from dsdb.kv.requests import DescribeReply, DescribeRequest
from dsdb.node.directory import Directory
from dsdb.ranges import Router
from dsdb.rpc import Method, MethodKind, Peers, RpcError
from dsdb.sql.ports import ProblemInfo, RangeUnavailableError
from dsdb.storage.keys import EVERYTHING, KEY_MAX, KEY_MIN, META_PREFIX, Span, meta_key, prefix_end
from dsdb.store import Store
from dsdb.store.consistency import RangeCheck, ReplicaCopy
from dsdb.txn import TransactionFactory

log = logging.getLogger("dsdb.node")

PAGE = 1_000
"""Replicas in one answer: some 100 KiB."""
ANSWER_S = 2.0
"""How long a node may take for a page."""
SECOND_LOOK_S = 2.5
"""Between two looks: moves under way are over, or look different."""
CHECK_S = 600.0
"""How long one range may take: 64 MiB in many queues."""
TRIES = 20
"""To find a range's leaseholder."""
TRY_PAUSE_S = 0.2


class CopiesRequest(msgspec.Struct, frozen=True, array_like=True):
    """Ask a node for the replicas of its store whose range ids lie above one."""

    above: int


class CopiesReply(msgspec.Struct, frozen=True, array_like=True):
    """Its replicas, by range id; fewer than PAGE: these are all."""

    copies: tuple[ReplicaCopy, ...]


class CheckRangeRequest(msgspec.Struct, frozen=True, array_like=True):
    """Ask the leaseholder of a range to compare its replicas."""

    range_id: RangeId


COPIES: Method[CopiesRequest, CopiesReply] = Method(47, "copies", MethodKind.CALL, CopiesRequest, CopiesReply)
CHECK_RANGE: Method[CheckRangeRequest, RangeCheck] = Method(
    48, "check range", MethodKind.CALL, CheckRangeRequest, RangeCheck, error_type=KvErrorDetail, error_exception=KvError
)


class Checking:
    """One for each node."""

    def __init__(
        self,
        *,
        node_id: NodeId,
        store: Store,
        router: Router,
        peers: Peers,
        transactions: TransactionFactory,
        directory: Directory,
    ) -> None:
        self._node_id = node_id
        self._store = store
        self._router = router
        self._peers = peers
        self._transactions = transactions
        self._directory = directory

    # ---- Served ----

    async def serve_copies(self, request: CopiesRequest) -> CopiesReply:
        """Describe the replicas here."""
        return CopiesReply(tuple(self._store.consistency.copies(request.above, PAGE)))

    async def serve_check(self, request: CheckRangeRequest) -> RangeCheck:
        """Compare the replicas of a range led here.  Raises KvError."""
        return await self._store.consistency.check(request.range_id, is_urgent=True)

    # ---- Asked by statements ----

    async def structure(self) -> list[ProblemInfo]:
        """Say what is wrong with ranges and replicas but for their content.  Raises PortError."""
        first = await self._look()
        if not first:
            return []
        await trio.sleep(SECOND_LOOK_S)
        return sorted(first & await self._look(), key=lambda found: (found.range_id or 0, found.node_id or 0, found.problem))

    async def _look(self) -> set[ProblemInfo]:
        # Meta first: it is written after what it tells of, so that it can only be behind.
        txn = self._transactions.begin()
        rows = await txn.scan(Span(META_PREFIX, prefix_end(META_PREFIX)))
        copies: dict[NodeId, list[ReplicaCopy] | None] = {}

        async def ask(node_id: NodeId) -> None:
            copies[node_id] = await self._copies_of(node_id)

        async with trio.open_nursery() as nursery:
            for entry in self._directory.entries():
                nursery.start_soon(ask, entry.node_id)
        for node_id, state in (await self._states()).items():
            # It has no replica, and may have been stopped for good.
            if state is NodeState.DECOMMISSIONED and copies.get(node_id) is None:
                copies.pop(node_id, None)
        stores = {entry.node_id: entry.store_id for entry in self._directory.entries()}
        return look(rows, copies, stores)

    async def _states(self) -> dict[NodeId, NodeState]:
        """Give what is wanted of nodes.  Raises PortError."""
        try:
            return await read_node_states(self._router)
        except KvError as error:
            raise RangeUnavailableError(getattr(error.detail, "reason", repr(error.detail))) from error

    async def _copies_of(self, node_id: NodeId) -> list[ReplicaCopy] | None:
        """Give all replicas of a node; None if it does not answer."""
        found: list[ReplicaCopy] = []
        while True:
            request = CopiesRequest(found[-1].descriptor.range_id if found else 0)
            try:
                if node_id == self._node_id:
                    reply = await self.serve_copies(request)
                else:
                    reply = await self._peers.call(node_id, COPIES, request, timeout_s=ANSWER_S)
            except RpcError as error:
                log.info("node %d does not tell of its replicas: %s", node_id, error)
                return None
            found += reply.copies
            if len(reply.copies) < PAGE:
                return found

    async def range(self, range_id: int) -> list[ProblemInfo]:
        """Compare the replicas of a range, and say what is wrong.  Raises PortError."""
        try:
            check = await self._check(RangeId(range_id))
        except (KvError, RpcError) as error:
            reason = getattr(error.detail, "reason", repr(error.detail)) if isinstance(error, KvError) else str(error)
            return [ProblemInfo(range_id=range_id, node_id=None, problem=f"it could not be checked: {reason}")]
        found = []
        for replica in check.replicas:
            problem = "its replica did not answer" if replica.is_silent else replica.problem
            if problem:
                found.append(ProblemInfo(range_id=range_id, node_id=replica.node_id, problem=problem))
        return found

    async def _check(self, range_id: RangeId) -> RangeCheck:
        """Find the leaseholder, and have it compare.  Raises KvError, RpcError."""
        key = await self._key_of(range_id)
        failure: KvError | RpcError = KvError(Unavailable("no leaseholder was found"))
        for _ in range(TRIES):
            reply = await self._router.send(key, lambda desc: DescribeRequest(desc.range_id))
            assert isinstance(reply, DescribeReply)
            leader = None if reply.leaseholder is None else reply.descriptor.replica_on(reply.leaseholder)
            if leader is not None and reply.descriptor.range_id == range_id:
                try:
                    if leader.node_id == self._node_id:
                        return await self.serve_check(CheckRangeRequest(range_id))
                    return await self._peers.call(leader.node_id, CHECK_RANGE, CheckRangeRequest(range_id), timeout_s=CHECK_S)
                except KvError as error:
                    if not isinstance(error.detail, NotLeaseholder | Unavailable):
                        raise
                    failure = error
                except RpcError as error:
                    failure = error
            await trio.sleep(TRY_PAUSE_S)
        raise failure

    async def _key_of(self, range_id: RangeId) -> bytes:
        """Give a key of a range.  Raises KvError."""
        entry = self._router.cache.by_id(range_id)
        if entry is not None:
            return entry.desc.start_key
        for known in await self._router.ranges(EVERYTHING):
            if known.desc.range_id == range_id:
                return known.desc.start_key
        raise KvError(InvalidRequest(f"there is no range {range_id}"))


# ---- What a look sees ----

_decode_descriptor = msgspec.msgpack.Decoder(RangeDescriptor).decode


def look(
    meta: Iterable[tuple[bytes, bytes]], copies: Mapping[NodeId, Sequence[ReplicaCopy] | None], stores: Mapping[NodeId, StoreId]
) -> set[ProblemInfo]:
    """Compare the addressing index with what the nodes have: None of those that did not answer."""
    found = set(_silent(copies))
    truth: dict[RangeId, RangeDescriptor] = {}
    for replicas in copies.values():
        for copy in replicas or ():
            known = truth.get(copy.descriptor.range_id)
            if known is None or copy.descriptor.generation > known.generation:
                truth[copy.descriptor.range_id] = copy.descriptor
    found.update(_of_meta(meta, truth))
    found.update(_of_spans(truth, is_whole=None not in copies.values()))
    by_range = {
        node_id: None if replicas is None else {copy.descriptor.range_id: copy for copy in replicas} for node_id, replicas in copies.items()
    }
    for desc in truth.values():
        found.update(_of_replicas(desc, by_range, stores))
    return found


def _problem(text: str, range_id: int | None = None, node_id: int | None = None) -> ProblemInfo:
    return ProblemInfo(range_id=range_id, node_id=node_id, problem=text)


def _silent(copies: Mapping[NodeId, Sequence[ReplicaCopy] | None]) -> Iterable[ProblemInfo]:
    return [_problem("it does not answer", node_id=node_id) for node_id, replicas in copies.items() if replicas is None]


def _of_meta(meta: Iterable[tuple[bytes, bytes]], truth: Mapping[RangeId, RangeDescriptor]) -> Iterable[ProblemInfo]:
    """Compare what the index says with the ranges' own descriptors."""
    end = KEY_MIN
    named: set[RangeId] = set()
    for key, value in meta:
        desc = _decode_descriptor(value)
        if key != meta_key(desc.end_key):
            yield _problem("its addressing entry stands under the end of another range", desc.range_id)
        if desc.start_key != end:
            between = "a hole before" if desc.start_key > end else "an overlap with"
            yield _problem(f"the addressing index has {between} this range", desc.range_id)
        end = desc.end_key
        named.add(desc.range_id)
        actual = truth.get(desc.range_id)
        if actual is not None and actual != desc:
            text = f"the addressing index knows its generation {desc.generation}, and it is at {actual.generation}"
            yield _problem(text, desc.range_id)
        elif actual is None:
            yield _problem("it is in the addressing index, and no node that answers has a replica of it", desc.range_id)
    if end != KEY_MAX:
        yield _problem("the addressing index ends before the end of all keys")
    for range_id in sorted(truth.keys() - named):
        yield _problem("it is missing from the addressing index", range_id)


def _of_spans(truth: Mapping[RangeId, RangeDescriptor], *, is_whole: bool) -> Iterable[ProblemInfo]:
    """Look for keys that two ranges have; and, if all nodes have answered, for keys that none has."""
    end = KEY_MIN
    for desc in sorted(truth.values(), key=lambda desc: (desc.start_key, desc.end_key)):
        if desc.start_key < end:
            yield _problem("it has keys that another range has", desc.range_id)
        elif desc.start_key > end and is_whole:
            yield _problem("no range has the keys before it", desc.range_id)
        end = max(end, desc.end_key)
    if end < KEY_MAX and is_whole:
        yield _problem("no range has the last keys")


def _of_replicas(
    desc: RangeDescriptor, copies: Mapping[NodeId, Mapping[RangeId, ReplicaCopy] | None], stores: Mapping[NodeId, StoreId]
) -> Iterable[ProblemInfo]:
    """Compare a range's descriptor with where its replicas are."""
    if any(replica.kind in (ReplicaKind.VOTER_INCOMING, ReplicaKind.VOTER_OUTGOING) for replica in desc.replicas):
        yield _problem("it is left in a joint configuration", desc.range_id)
    for replica in desc.replicas:
        if replica.kind is ReplicaKind.LEARNER:
            yield _problem("its replica is left as a learner", desc.range_id, replica.node_id)
    for node_id, replicas in copies.items():
        own = desc.replica_on(stores[node_id])
        copy = None if replicas is None else replicas.get(desc.range_id)
        if copy is not None and (own is None or own.replica_id != copy.replica_id):
            yield _problem(f"an orphan: replica {copy.replica_id} is on its store, and not in the range", desc.range_id, node_id)
        elif copy is None and own is not None and replicas is not None:
            yield _problem(f"replica {own.replica_id} is not on its store", desc.range_id, node_id)
        if copy is not None and copy.damage is not None:
            yield _problem(f"its replica is out of service: {copy.damage}", desc.range_id, node_id)
