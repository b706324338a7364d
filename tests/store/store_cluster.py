"""Stores in one process under a mock clock: in-memory engines that can crash, a network that can drop, delay and partition."""

import heapq
import random
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

import trio
import trio.testing

from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor
from dsdb.kv.errors import AmbiguousResult, KvError, NotLeaseholder, RangeKeyMismatch, RangeNotFound, Unavailable
from dsdb.kv.ids import AttemptId, NodeId, RangeId, StoreId
from dsdb.kv.intents import EndTxnRequest, Pusher, PushRequest, QueryIntentsReply, QueryIntentsRequest, RecordReply, TxnMeta, TxnStatus
from dsdb.kv.requests import (
    ChangeReplicasRequest,
    CommitRequest,
    DescribeRequest,
    ReadRequest,
    Reply,
    Request,
    Write,
)
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.errors import StorageError
from dsdb.storage.timestamp import Timestamp, from_milliseconds
from dsdb.store import SnapshotHeader, Store, StoreConfig, StoreFrame, StoreIdentity, TransportError
from dsdb.store.settling import Settled

T = TypeVar("T")
NEVER = 1e9


class MockedClock:
    """The mock clock of trio, as a store's."""

    def __init__(self, offset_s: float = 0.0, rate: float = 1.0) -> None:
        self.offset_s = offset_s
        self.rate = rate
        self.wall_jump_ms = 0

    def now(self) -> float:
        return self.offset_s + self.rate * trio.current_time()

    def wall_ms(self) -> int:
        return int(self.now() * 1000) + self.wall_jump_ms


class Oracle:
    """Timestamps that only grow, with the time."""

    def __init__(self) -> None:
        self.last = from_milliseconds(1_000_000)
        self.is_down = False

    def issue(self) -> Timestamp:
        self.last = Timestamp(max(self.last + 1, from_milliseconds(1_000_000 + int(trio.current_time() * 1000))))
        return self.last

    @property
    def latest(self) -> Timestamp:
        return self.last

    def hear(self, ts: Timestamp) -> None:
        assert ts <= self.last

    def fresh_nowait(self) -> Timestamp | None:
        return None if self.is_down else self.issue()

    def newest_nowait(self) -> Timestamp | None:
        return None if self.is_down else self.last

    async def fresh(self) -> Timestamp:
        await trio.lowlevel.checkpoint()
        if self.is_down:
            raise KvError(Unavailable("the oracle is down"))
        return self.issue()


class Network:
    """Carries frames with a delay; `cut` pairs (from, to) lose everything."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.stores: dict[StoreId, Store] = {}
        self.cut: set[tuple[StoreId, StoreId]] = set()
        self.drop = 0.0
        self.delay_s = 0.001
        self.spread_s = 0.0
        self.frames = 0
        self._queue: list[tuple[float, int, StoreId, StoreId, StoreFrame]] = []
        self._last: dict[tuple[StoreId, StoreId], float] = {}
        self._wake = trio.Event()

    def send(self, sender: StoreId, to: StoreId, frame: StoreFrame) -> None:
        self.frames += 1
        if (sender, to) in self.cut or (self.drop and self.chance.random() < self.drop):
            return
        due = trio.current_time() + self.delay_s + self.chance.random() * self.spread_s
        # Frames keep their order.
        due = self._last[sender, to] = max(due, self._last.get((sender, to), 0.0))
        heapq.heappush(self._queue, (due, self.frames, sender, to, frame))
        self._wake.set()

    async def run(self) -> None:
        while True:
            if not self._queue:
                self._wake = trio.Event()
                await self._wake.wait()
            due = self._queue[0][0]
            if due > trio.current_time():
                self._wake = trio.Event()
                with trio.move_on_at(due):
                    await self._wake.wait()
                continue
            _, _, sender, to, frame = heapq.heappop(self._queue)
            store = self.stores.get(to)
            if store is not None and (sender, to) not in self.cut:
                store.receive(frame)

    def isolate(self, store: StoreId, others: list[StoreId]) -> None:
        for other in others:
            if other != store:
                self.cut |= {(store, other), (other, store)}

    def heal(self) -> None:
        self.cut.clear()


class Wire:
    """The transport of one store."""

    def __init__(self, network: Network, sender: StoreId) -> None:
        self.network = network
        self.sender = sender
        self.snapshots = 0
        self.chunks_max = NEVER

    def send(self, to: StoreId, frame: StoreFrame) -> None:
        self.network.send(self.sender, to, frame)

    async def send_snapshot(self, to: StoreId, header: SnapshotHeader, chunks: AsyncIterator[bytes]) -> None:
        target = self.network.stores.get(to)
        if target is None or (self.sender, to) in self.network.cut:
            raise TransportError("unreachable")
        self.snapshots += 1

        async def carried() -> AsyncGenerator[bytes, None]:
            number = 0
            async for chunk in chunks:
                number += 1
                if number > self.chunks_max:
                    return
                await trio.sleep(0.001)
                yield chunk

        async with aclosing(carried()) as stream:
            await target.receive_snapshot(header, stream)


class HoldableDisk:
    """A disk whose syncs take no time, or do not end while it is held."""

    def __init__(self, *, is_prompt: bool = False) -> None:
        self.is_prompt = is_prompt
        self.is_in_loop = False
        """A call is being made in the loop."""
        self._free = trio.Event()
        self._free.set()

    def hold(self) -> None:
        self._free = trio.Event()

    def let_go(self) -> None:
        self._free.set()

    async def run(self, call: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        await self._free.wait()
        return call()

    def run_promptly(self, call: Callable[[], object]) -> bool:
        if not self.is_prompt or not self._free.is_set():
            return False
        self.is_in_loop = True
        call()
        self.is_in_loop = False
        return True

    def close(self) -> None:
        pass


class Settler:
    """Asks the ranges of the cluster what becomes of a transaction, as a gateway would."""

    def __init__(self, cluster: "Cluster") -> None:
        self.cluster = cluster
        self.asked: list[tuple[AttemptId, bool]] = []
        """Attempts, and whether they were to be aborted."""

    async def settle(self, meta: TxnMeta, ts: Timestamp, *, abort: bool, pusher: Pusher) -> Settled:
        self.asked.append((meta.attempt, abort))
        call = self.cluster.call
        reply = await call(lambda range_id: PushRequest(range_id, meta, ts, abort, pusher), meta.anchor)
        assert isinstance(reply, RecordReply)
        while reply.status is TxnStatus.STAGING:
            staged = reply.ts
            assert staged is not None
            found = True
            for key in reply.keys:
                answer = await call(lambda range_id, key=key: QueryIntentsRequest(range_id, meta.attempt, (key,), staged), key)  # type: ignore[misc]  # noqa: B023
                assert isinstance(answer, QueryIntentsReply)
                found = found and answer.found
            commit_ts = staged if found else None
            reply = await call(lambda range_id: EndTxnRequest(range_id, meta, commit_ts, staged), meta.anchor)  # noqa: B023
            assert isinstance(reply, RecordReply)
        return Settled(reply.status, reply.ts)


class Cluster:
    """Some stores, and a client that looks for leaseholders."""

    def __init__(self, nursery: trio.Nursery, count: int, *, seed: int = 1, config: StoreConfig | None = None) -> None:
        self.nursery = nursery
        self.chance = random.Random(seed)
        self.network = Network(self.chance)
        self.oracle = Oracle()
        self.config = config or StoreConfig()
        self.has_prompt_disks = False
        """Stores that are opened from now on sync in their loops."""
        self.ids = [StoreId(number) for number in range(1, count + 1)]
        self.engines: dict[StoreId, MemoryEngine] = {}
        self.wires: dict[StoreId, Wire] = {}
        self.disks: dict[StoreId, HoldableDisk] = {}
        self.clocks: dict[StoreId, MockedClock] = {}
        self._scopes: dict[StoreId, trio.CancelScope] = {}
        self.attempts = 0
        self.settler = Settler(self)

    async def start(self) -> None:
        self.nursery.start_soon(self.network.run)
        for store_id in self.ids:
            self.engines[store_id] = MemoryEngine()
            self.clocks[store_id] = MockedClock(offset_s=1000.0 * store_id)
            Store.create(self.engines[store_id], self.identity(store_id), first=store_id == self.ids[0])
            await self.open(store_id)

    @staticmethod
    def identity(store_id: StoreId) -> StoreIdentity:
        return StoreIdentity(cluster_id="test", node_id=NodeId(store_id), store_id=store_id)

    async def open(self, store_id: StoreId) -> Store:
        wire = self.wires[store_id] = Wire(self.network, store_id)
        self.disks[store_id] = HoldableDisk(is_prompt=self.has_prompt_disks)
        store = Store(
            engine=self.engines[store_id],
            identity=self.identity(store_id),
            config=self.config,
            clock=self.clocks[store_id],
            random=random.Random(self.chance.getrandbits(64)),
            disk=self.disks[store_id],
            transport=wire,
            timestamps=self.oracle,
        )
        store.use_settler(self.settler)
        scope = self._scopes[store_id] = trio.CancelScope()

        async def run(task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            try:
                with scope:
                    await store.run(task_status=task_status)
            except* StorageError:
                # A killed store may still have been waiting for its disk.
                if not scope.cancel_called:
                    raise

        await self.nursery.start(run)
        self.network.stores[store_id] = store
        return store

    def kill(self, store_id: StoreId) -> None:
        """Power loss: some unsynced suffix is gone."""
        self._scopes[store_id].cancel()
        del self.network.stores[store_id]
        self.engines[store_id] = self.engines[store_id].crash(self.chance)

    async def restart(self, store_id: StoreId) -> Store:
        # The cancelled store must have ended before its engine is used again.
        await trio.sleep(0.001)
        return await self.open(store_id)

    def store(self, store_id: int) -> Store:
        return self.network.stores[StoreId(store_id)]

    def leaseholder(self, range_id: RangeId) -> Store | None:
        holders = [store for _, store in sorted(self.network.stores.items()) if store.holds_lease(range_id)]
        assert len(holders) <= 1, f"{len(holders)} leaseholders of range {range_id}"
        return holders[0] if holders else None

    async def wait_leaseholder(self, range_id: RangeId, *, timeout_s: float = 5.0, but: StoreId | None = None) -> Store:
        with trio.fail_after(timeout_s):
            while True:
                for store_id, store in sorted(self.network.stores.items()):
                    if store_id != but and store.holds_lease(range_id):
                        return store
                await trio.sleep(0.01)

    async def eventually(self, check: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
        with trio.fail_after(timeout_s):
            while not check():  # noqa: ASYNC110  # what is waited for has no event
                await trio.sleep(0.02)

    async def call(self, make: Callable[[RangeId], Request], key: bytes, *, timeout_s: float = 20.0) -> Reply:
        """Send a request to whoever serves its key, again after errors that say it took no effect."""
        with trio.fail_after(timeout_s):
            while True:
                for store_id in sorted(self.network.stores):
                    store = self.network.stores.get(store_id)
                    desc = store.descriptor_for(key) if store is not None else None
                    if store is None or desc is None or not store.holds_lease(desc.range_id):
                        continue
                    try:
                        return await store.serve(make(desc.range_id))
                    except KvError as error:
                        if not isinstance(error.detail, NotLeaseholder | RangeKeyMismatch | RangeNotFound | Unavailable):
                            raise
                await trio.sleep(0.02)

    def new_attempt(self) -> AttemptId:
        self.attempts += 1
        return AttemptId(self.attempts.to_bytes(16, "big"))

    async def put(self, key: bytes, value: bytes | None, **more: object) -> Timestamp:
        """Commit a value, and again under the same attempt while its outcome is unknown."""
        attempt, first_ts = self.new_attempt(), self.oracle.issue()

        def make(range_id: RangeId) -> Request:
            return CommitRequest(range_id, attempt, first_ts, None, (Write(key, value),), **more)  # type: ignore[arg-type]

        while True:
            try:
                return (await self.call(make, key)).ts  # type: ignore[union-attr,return-value]
            except KvError as error:
                if not isinstance(error.detail, AmbiguousResult):
                    raise

    async def get(self, key: bytes, ts: Timestamp | None = None) -> bytes | None:
        reply = await self.call(lambda range_id: ReadRequest(range_id, (key,), ts), key)
        return reply.values[0]  # type: ignore[union-attr]

    async def replicate(self, range_id: RangeId, stores: list[int]) -> RangeDescriptor:
        """Bring a range onto more stores, one at a time."""
        for number in stores:
            store = await self.wait_leaseholder(range_id)
            desc = (await store.serve(DescribeRequest(range_id))).descriptor  # type: ignore[union-attr]
            added = ReplicaDescriptor(0, NodeId(number), StoreId(number))  # type: ignore[arg-type]
            await store.serve(ChangeReplicasRequest(range_id, desc.generation, add=(added,)))
        return desc


def simulate(count: int, body: Callable[[Cluster], Awaitable[None]], *, seed: int = 1, config: StoreConfig | None = None) -> None:
    """Run a body against a cluster, in simulated time."""

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            cluster = Cluster(nursery, count, seed=seed, config=config)
            await cluster.start()
            await body(cluster)
            nursery.cancel_scope.cancel()

    # Same seed, same run: trio shuffles its tasks by chance of its own otherwise.
    from trio._core import _run

    before, _run._ALLOW_DETERMINISTIC_SCHEDULING = _run._ALLOW_DETERMINISTIC_SCHEDULING, True
    _run._r.seed(seed)
    try:
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = before
