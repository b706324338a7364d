"""What a store does when its disk is busy, full, damaged, or loses what was not synced in the middle of an installation."""

import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

import pytest
import trio
from store_cluster import Cluster, simulate

from dsdb.kv.errors import DiskTrouble, InvalidRequest, KvError
from dsdb.kv.ids import NodeId, RangeId, StoreId
from dsdb.kv.requests import CommitRequest, ReadRequest, RefuseRequest, SplitRequest, Write
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.engine.port import Family, WriteBatch
from dsdb.storage.errors import CorruptionError, DiskError, DiskFullError, StoreFormatError, WriteStallError
from dsdb.store import Store, StoreConfig, StoreIdentity, read_identity

TABLES = RangeId(2)


class MoodyEngine(MemoryEngine):
    """Refuses writes, or reads, while told to."""

    trouble: Exception | None = None
    read_trouble: Exception | None = None

    def write(self, batch: WriteBatch) -> None:
        if self.trouble is not None:
            raise self.trouble
        super().write(batch)

    def first(self, family: Family, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        if self.read_trouble is not None and family is Family.DELTA:
            raise self.read_trouble
        return super().first(family, start, end)


def key(number: int) -> bytes:
    return b"\x10%08d" % number


async def start_moody(cluster: Cluster) -> MoodyEngine:
    """Put a moody engine under store 1, with what its own one held."""
    cluster.kill(StoreId(1))
    moody = MoodyEngine()
    Store.create(moody, cluster.identity(StoreId(1)), first=True)
    cluster.engines[StoreId(1)] = moody
    await cluster.restart(StoreId(1))
    await cluster.wait_leaseholder(TABLES)
    return moody


def test_a_stalled_disk_delays_and_loses_nothing() -> None:
    async def body(cluster: Cluster) -> None:
        moody = await start_moody(cluster)
        moody.trouble = WriteStallError("busy")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cluster.put, key(1), b"late")
            await trio.sleep(1)
            assert cluster.store(1).statistics()["proposals_pending"] == 1
            moody.trouble = None
        assert await cluster.get(key(1)) == b"late"

    simulate(1, body)


def test_a_full_disk_refuses_writes_and_serves_reads() -> None:
    async def body(cluster: Cluster) -> None:
        moody = await start_moody(cluster)
        await cluster.put(key(1), b"there")
        moody.trouble = DiskFullError("no space")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cluster.put, key(2), b"waits")
            await trio.sleep(0.5)
            with pytest.raises(KvError) as caught:
                await cluster.put(key(3), b"refused")
            assert isinstance(caught.value.detail, DiskTrouble)
            assert await cluster.get(key(1)) == b"there"
            moody.trouble = None
        assert await cluster.get(key(2)) == b"waits"
        await cluster.put(key(3), b"again")

    simulate(1, body)


def test_a_store_ends_with_the_error_of_a_turn_that_a_frame_brought() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.put(key(1), b"there")
        await cluster.replicate(TABLES, [2, 3])
        await trio.sleep(1)
        broken = DiskError("the disk is gone")
        follower = cluster.engines[StoreId(2)]

        def refuse(_: WriteBatch) -> None:
            raise broken

        follower.write = refuse  # type: ignore[method-assign]
        await cluster.put(key(2), b"by the others")
        await trio.sleep(5)
        raise AssertionError("store 2 goes on")

    with pytest.raises(ExceptionGroup) as caught:
        simulate(3, body)
    assert caught.group_contains(DiskError, match="the disk is gone")


def test_a_damaged_replica_is_quarantined_and_another_one_leads() -> None:
    async def body(cluster: Cluster) -> None:
        moody = await start_moody(cluster)
        await cluster.put(key(1), b"kept")
        await cluster.replicate(TABLES, [2, 3])
        await trio.sleep(0.5)
        moody.read_trouble = CorruptionError("a block is broken")
        with pytest.raises(KvError) as caught:
            await cluster.store(1).serve(ReadRequest(TABLES, (key(1),), None))
        assert caught.value.detail == DiskTrouble(caught.value.detail.reason, damaged=True)  # type: ignore[union-attr]
        store = await cluster.wait_leaseholder(TABLES, but=StoreId(1), timeout_s=1)
        assert store.identity.store_id != 1
        assert await cluster.get(key(1)) == b"kept"

    simulate(3, body)


@pytest.mark.parametrize("seed", range(8))
def test_a_crash_while_a_snapshot_is_received_leaves_nothing_half(seed: int) -> None:
    async def body(cluster: Cluster) -> None:
        for number in range(200):
            await cluster.put(key(number), b"%d" % number * 50)
        chance = random.Random(seed)

        async def crash() -> None:
            await trio.sleep(0.005 + chance.random() * 0.06)
            cluster.kill(StoreId(2))
            await cluster.restart(StoreId(2))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(crash)
            await cluster.replicate(TABLES, [2])
        status = cluster.store(1).range_status(TABLES)
        assert status is not None
        await cluster.eventually(lambda: cluster.store(2).range_status(TABLES).applied >= status.applied)
        contents = []
        for store_id in (StoreId(1), StoreId(2)):
            rows: list[tuple[bytes, bytes]] = []
            for keys, values in cluster.engines[store_id].scan(Family.DELTA, b"\x10", b"\xff"):
                rows += zip(keys, values)
            contents.append(rows)
        assert contents[0] == contents[1]
        assert len(contents[0]) == 200
        # The stage is empty again.
        assert not list(cluster.engines[StoreId(2)].scan(Family.META, b"\x04", b"\x05"))

    simulate(2, body, seed=seed, config=StoreConfig(snapshot_chunk_bytes=2000))


def test_a_snapshot_that_ends_early_is_refused() -> None:
    async def body(cluster: Cluster) -> None:
        for number in range(200):
            await cluster.put(key(number), b"x" * 100)
        cluster.wires[StoreId(1)].chunks_max = 3
        with pytest.raises(KvError):
            await cluster.replicate(TABLES, [2])
        assert not cluster.store(2).descriptors()
        assert [replica.store_id for replica in cluster.store(1).descriptors()[1].replicas] == [1]
        cluster.wires[StoreId(1)].chunks_max = 10**6
        await cluster.replicate(TABLES, [2])
        assert cluster.store(2).descriptors()

    simulate(2, body, config=StoreConfig(snapshot_chunk_bytes=2000))


def test_a_changed_byte_in_a_snapshot_is_noticed() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.put(key(1), b"x" * 100)
        wire = cluster.wires[StoreId(1)]
        plain = wire.send_snapshot

        async def send(to: StoreId, header: object, chunks: AsyncIterator[bytes]) -> None:
            async def spoilt() -> AsyncGenerator[bytes, None]:
                async for chunk in chunks:
                    yield chunk[:-1] + bytes((chunk[-1] ^ 1,))

            async with aclosing(spoilt()) as stream:
                await plain(to, header, stream)  # type: ignore[arg-type]

        wire.send_snapshot = send  # type: ignore[method-assign,assignment]
        with pytest.raises(KvError):
            await cluster.replicate(TABLES, [2])
        assert not cluster.store(2).descriptors()

    simulate(2, body)


def test_outcomes_survive_a_restart_and_a_split() -> None:
    async def body(cluster: Cluster) -> None:
        store = await cluster.wait_leaseholder(TABLES)
        attempt, first_ts = cluster.new_attempt(), cluster.oracle.issue()
        request = CommitRequest(TABLES, attempt, first_ts, None, (Write(key(7), b"v", must_be_absent=True),))
        reply = await store.serve(request)
        cluster.kill(StoreId(1))
        store = await cluster.restart(StoreId(1))
        await cluster.wait_leaseholder(TABLES)
        assert await store.serve(request) == reply
        await store.serve(SplitRequest(TABLES, key(5), RangeId(5)))
        await cluster.wait_leaseholder(RangeId(5))
        again = CommitRequest(RangeId(5), attempt, first_ts, None, request.writes)
        assert await cluster.call(lambda _: again, key(7)) == reply
        refused = await cluster.call(lambda rid: RefuseRequest(rid, attempt, first_ts), key(7))
        assert refused.ts == reply.ts  # type: ignore[union-attr]
        with pytest.raises(KvError) as caught:
            await store.serve(SplitRequest(RangeId(1), b"\x03abc", RangeId(9)))
        assert isinstance(caught.value.detail, InvalidRequest)

    simulate(1, body)


def test_a_store_knows_its_own_directory() -> None:
    engine = MemoryEngine()
    assert read_identity(engine) is None
    identity = StoreIdentity(cluster_id="c", node_id=NodeId(1), store_id=StoreId(1))
    Store.create(engine, identity, first=False)
    assert read_identity(engine) == identity
    with pytest.raises(StoreFormatError, match="already"):
        Store.create(engine, identity, first=False)
    newer = MemoryEngine()
    Store.create(newer, StoreIdentity(cluster_id="c", node_id=NodeId(1), store_id=StoreId(1), format=99), first=False)
    with pytest.raises(StoreFormatError, match="format 99"):
        read_identity(newer)
