"""Commits over many ranges, one request at a time: what a gateway sends, written short, so that tests can choose the order."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from store_cluster import Cluster, simulate

from dsdb.kv.ids import RangeId
from dsdb.kv.intents import (
    EndTxnRequest,
    PrewriteReply,
    PrewriteRequest,
    Pusher,
    PushRequest,
    QueryIntentsReply,
    QueryIntentsRequest,
    RecordReply,
    RemoveRecordsReply,
    RemoveRecordsRequest,
    ResolveItem,
    ResolveReply,
    ResolveRequest,
    StageRequest,
    TxnMeta,
    TxnStatus,
)
from dsdb.kv.requests import BumpReply, Reply, Request, SplitRequest
from dsdb.storage import mvcc
from dsdb.storage.mvcc import Intent
from dsdb.storage.timestamp import Timestamp
from dsdb.storage.versions import View
from dsdb.store import Store, StoreConfig

LEFT, RIGHT = RangeId(2), RangeId(3)
BORDER = b"\x10m"
A, B, C = b"\x10a", b"\x10b", b"\x10c"
X, Y = b"\x10x", b"\x10y"

COMMITTED, ABORTED, STAGING, PUSHED, GONE = (
    TxnStatus.COMMITTED,
    TxnStatus.ABORTED,
    TxnStatus.STAGING,
    TxnStatus.PUSHED,
    TxnStatus.GONE,
)


class TxnDesk:
    """Two ranges, LEFT and RIGHT, which meet at BORDER."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def now(self) -> Timestamp:
        return self.cluster.oracle.issue()

    def meta(self, anchor: bytes = A) -> TxnMeta:
        return TxnMeta(self.cluster.new_attempt(), anchor, self.now())

    async def store(self, range_id: RangeId = LEFT) -> Store:
        return await self.cluster.wait_leaseholder(range_id)

    async def call(self, key: bytes, make: Callable[[RangeId], Request]) -> Any:
        return await self.cluster.call(make, key)

    async def prewrite(self, meta: TxnMeta, ts: Timestamp, writes: Mapping[bytes, bytes | None]) -> Timestamp:
        keys = tuple(sorted(writes))
        values = tuple(writes[key] for key in keys)
        reply = await self.call(keys[0], lambda range_id: PrewriteRequest(range_id, meta, ts, keys, values))
        assert isinstance(reply, PrewriteReply)
        return reply.ts

    async def stage(
        self,
        meta: TxnMeta,
        ts: Timestamp,
        *keys: bytes,
        is_final: bool = False,
        laid: Mapping[bytes, bytes | None] | None = None,
    ) -> RecordReply | BumpReply:
        writes = sorted((laid or {}).items())
        reply: Reply = await self.call(
            meta.anchor,
            lambda range_id: StageRequest(
                range_id, meta, ts, keys, is_final, tuple([key for key, _ in writes]), tuple([value for _, value in writes])
            ),
        )
        assert isinstance(reply, RecordReply | BumpReply)
        return reply

    async def push(self, meta: TxnMeta, ts: Timestamp, *, abort: bool = False, pusher_ts: int = 1) -> RecordReply:
        reply = await self.call(meta.anchor, lambda range_id: PushRequest(range_id, meta, ts, abort, Pusher(Timestamp(pusher_ts))))
        assert isinstance(reply, RecordReply)
        return reply

    async def query(self, meta: TxnMeta, ts: Timestamp, *keys: bytes) -> bool:
        reply = await self.call(keys[0], lambda range_id: QueryIntentsRequest(range_id, meta.attempt, keys, ts))
        assert isinstance(reply, QueryIntentsReply)
        return reply.found

    async def end(self, meta: TxnMeta, commit_ts: Timestamp | None, *resolve: bytes, expected: Timestamp | None = None) -> RecordReply:
        reply = await self.call(meta.anchor, lambda range_id: EndTxnRequest(range_id, meta, commit_ts, expected, resolve))
        assert isinstance(reply, RecordReply)
        return reply

    async def resolve(self, meta: TxnMeta, commit_ts: Timestamp | None, *keys: bytes) -> None:
        reply = await self.call(keys[0], lambda range_id: ResolveRequest(range_id, (ResolveItem(meta.attempt, keys, commit_ts),)))
        assert isinstance(reply, ResolveReply)

    async def remove(self, meta: TxnMeta) -> None:
        reply = await self.call(meta.anchor, lambda range_id: RemoveRecordsRequest(range_id, (meta.attempt,)))
        assert isinstance(reply, RemoveRecordsReply)

    async def write(self, key: bytes, value: bytes | None) -> Timestamp:
        return await self.cluster.put(key, value)

    async def read(self, key: bytes, ts: Timestamp | None = None) -> bytes | None:
        return await self.cluster.get(key, ts)

    def intent(self, key: bytes) -> Intent | None:
        """Give the intent that the first store has of a key."""
        return mvcc.get_intent(self.cluster.engines[self.cluster.ids[0]], key)

    def versions(self, key: bytes) -> bytes | None:
        return mvcc.get_many(self.cluster.engines[self.cluster.ids[0]], (key,), View(self.now(), b""))[0]

    async def lay(self, meta: TxnMeta, ts: Timestamp, writes: Mapping[bytes, bytes | None]) -> Timestamp:
        """Prewrite in both ranges."""
        sides = [{key: value for key, value in writes.items() if (key < BORDER) is left} for left in (True, False)]
        return max([await self.prewrite(meta, ts, side) for side in sides if side])


def on_two_ranges(body: Callable[[TxnDesk], Awaitable[None]], *, stores: int = 1, config: StoreConfig | None = None) -> None:
    async def run(cluster: Cluster) -> None:
        await cluster.wait_leaseholder(LEFT)
        if stores > 1:
            await cluster.replicate(LEFT, list(range(2, stores + 1)))
        await cluster.call(lambda range_id: SplitRequest(range_id, BORDER, RIGHT), A)
        await cluster.wait_leaseholder(RIGHT)
        await body(TxnDesk(cluster))

    simulate(stores, run, config=config)
