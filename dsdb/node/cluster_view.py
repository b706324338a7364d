"""What statements about the cluster itself ask of the node: SPLIT AT, SHOW RANGES, who is there, and what they all do (`activity`)."""

from collections.abc import Callable, Sequence

from dsdb.coordinator import MetaWriter, StoreView
from dsdb.flow import Gatherer
from dsdb.kv.errors import InvalidRequest, KvError, RangeKeyMismatch
from dsdb.kv.ids import RangeId, StoreId
from dsdb.kv.requests import DescribeReply, DescribeRequest, SplitReply, SplitRequest
from dsdb.node.activity import Activity
from dsdb.node.directory import Directory
from dsdb.node.membership import take_id
from dsdb.ranges import Router
from dsdb.sql.ports import NodeInfo, RangeInfo, RangeUnavailableError
from dsdb.storage.keys import EVERYTHING, Span
from dsdb.txn import TransactionFactory


class NodeClusterView:
    """Implements `dsdb.sql.ports.ClusterView`."""

    def __init__(
        self,
        *,
        router: Router,
        gatherer: Gatherer,
        transactions: TransactionFactory,
        meta: MetaWriter,
        directory: Directory,
        stores: Callable[[], Sequence[StoreView]],
        wake_coordinator: Callable[[], None],
        activity: Activity,
    ) -> None:
        self._router = router
        self._gatherer = gatherer
        self._transactions = transactions
        self._meta = meta
        self._directory = directory
        self._stores = stores
        self._wake_coordinator = wake_coordinator
        self.transactions = activity.transactions
        self.locks = activity.locks

    async def split(self, key: bytes) -> None:
        """Make `key` the start of a range.  Raises PortError."""
        for _ in range(5):
            try:
                entry = await self._router.lookup(key)
                if entry.start_key == key:
                    return
                right = RangeId(await take_id(self._transactions, "range", first=100))
                reply = await self._router.send(key, lambda desc, right=right: SplitRequest(desc.range_id, key, right))  # type: ignore[misc]
            except KvError as error:
                if isinstance(error.detail, InvalidRequest | RangeKeyMismatch):
                    continue  # somebody else has split it there; the next look-up will say so
                raise RangeUnavailableError(getattr(error.detail, "reason", repr(error.detail))) from error
            assert isinstance(reply, SplitReply)
            for desc in (reply.left, reply.right):
                self._router.cache.update(desc)
                await self._meta.write(desc)
            self._wake_coordinator()
            return
        raise RangeUnavailableError("the range changed too often while it was being split")

    async def ranges(self, span: Span) -> list[RangeInfo]:
        """Describe the ranges that overlap a span, asking each."""
        found = []
        try:
            for entry in await self._router.ranges(span):
                reply = await self._router.send(entry.start_key, lambda desc: DescribeRequest(desc.range_id))
                assert isinstance(reply, DescribeReply)
                leader = None if reply.leaseholder is None else reply.descriptor.replica_on(reply.leaseholder)
                found.append(
                    RangeInfo(
                        range_id=reply.descriptor.range_id,
                        start_key=reply.descriptor.start_key,
                        end_key=reply.descriptor.end_key,
                        leaseholder=None if leader is None else leader.node_id,
                        replicas=tuple(replica.node_id for replica in reply.descriptor.voters),
                    )
                )
        except KvError as error:
            raise RangeUnavailableError(getattr(error.detail, "reason", repr(error.detail))) from error
        return found

    async def nodes(self) -> list[NodeInfo]:
        """Describe the nodes, with how many replicas and leases each has."""
        ranges = await self.ranges(EVERYTHING)
        live: dict[StoreId, bool] = {view.store_id: view.is_live for view in self._stores()}
        return [
            NodeInfo(
                node_id=entry.node_id,
                address=str(entry.address),
                is_live=live.get(entry.store_id, False),
                ranges=sum(entry.node_id in info.replicas for info in ranges),
                leases=sum(entry.node_id == info.leaseholder for info in ranges),
            )
            for entry in self._directory.entries()
        ]
