"""Replicas that fold, each for itself: what they hold stays alike, whatever happens to their range meanwhile."""

import random
from collections.abc import Callable, Mapping
from typing import TypeVar

import pytest
import trio
from store_cluster import Cluster, simulate

from dsdb.env import InlineDisk
from dsdb.kv.errors import KvError
from dsdb.kv.ids import RangeId, StoreId
from dsdb.kv.requests import ClearSpanRequest, CollectGarbageRequest, SplitRequest, TransferLeaseRequest
from dsdb.storage.columnar import upkeep
from dsdb.storage.columnar.block import Blocks
from dsdb.storage.columnar.foldable import FoldRegion
from dsdb.storage.columnar.plain import plain_entries
from dsdb.storage.datum import Kind
from dsdb.storage.engine.port import Family
from dsdb.storage.keys import Span, index_prefix, prefix_span
from dsdb.storage.rowarrow import LayoutColumn
from dsdb.storage.rowcodec import RowLayout, codec_for
from dsdb.store import Store, StoreConfig
from dsdb.store.checksum import checksum
from dsdb.store.folding import is_worth
from dsdb.store.state import ReplicaKeys

T = TypeVar("T")
TABLES = RangeId(2)
PREFIX = index_prefix(1, 7, 1)
TABLE = prefix_span(PREFIX)
LAYOUT = RowLayout(layout_id=1, columns=(LayoutColumn(column_id=1, kind=Kind.INT, width=8), LayoutColumn(column_id=2, kind=Kind.TEXT)))
CONFIG = StoreConfig(
    folds=True,
    fold_look_s=0.2,
    fold_quiet_s=0.5,
    fold_rest_s=4.0,
    fold_range_bytes_min=1,
    fold_versions_min=6,
    fold_rest_versions=1,
    fold_batch_versions=8,
    fold_block_rows=16,
    fold_share=1.0,
    fold_sweep_versions=20,
)
RESTED_S = 12.0
"""Until what was written is closed, at rest, and folded."""


class Known:
    """Knows one layout, of every index."""

    async def layouts_of(self, database_id: int, table_id: int, index_id: int) -> Mapping[int, RowLayout]:
        return {1: LAYOUT} if (database_id, table_id) == (1, 7) else {}


class Held(InlineDisk):
    """Lets what counts pass, and ends calls that fold only when it is let go."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.is_reached = trio.Event()

    async def run(self, call: Callable[[], T]) -> T:
        done = call()
        if getattr(done, "grown_bytes", 0):
            self.is_reached.set()
            await self.gate.wait()
        return done


def key(number: int, index_id: int = 1) -> bytes:
    return index_prefix(1, 7, index_id) + b"\x88" + number.to_bytes(4, "big")


def row(number: int) -> bytes:
    return codec_for(LAYOUT).encode((number, f"text {number % 3}"))


async def filled(cluster: Cluster, *, rows: int = 40) -> Store:
    for store in cluster.network.stores.values():
        store.folding.layouts = Known()
    await cluster.replicate(TABLES, [2, 3])
    for number in range(rows):
        await cluster.put(key(number), row(number))
    return await cluster.wait_leaseholder(TABLES)


def blocks_on(cluster: Cluster, store_id: int, span: Span = TABLE) -> int:
    """Check the blocks of a store, and count those of a span."""
    return upkeep.verify(Blocks(cluster.engines[StoreId(store_id)]), span)


def versions_on(cluster: Cluster, store_id: int, span: Span = TABLE) -> list[tuple[bytes, bytes]]:
    blocks = Blocks(cluster.engines[StoreId(store_id)])
    return [entry for chunk in plain_entries(blocks, span, chunk_rows=7) for entry in zip(*chunk)]


def require_alike(cluster: Cluster, range_id: RangeId = TABLES) -> None:
    digests = set()
    for store in cluster.network.stores.values():
        if store.descriptor(range_id) is not None:
            snapshot = cluster.engines[store.identity.store_id].snapshot()
            digests.add(checksum(snapshot, ReplicaKeys(range_id)))
            snapshot.release()
    assert len(digests) == 1


def measured_size(cluster: Cluster, store: Store, range_id: RangeId) -> int:
    desc = store.descriptor(range_id)
    assert desc is not None
    engine = cluster.engines[store.identity.store_id]
    rows = sum(len(k) + len(v) for keys, values in engine.scan(Family.DELTA, *desc.span) for k, v in zip(keys, values))
    return rows + sum(entry.stored_bytes for entry in Blocks(engine).entries(desc.span))


def size_of(store: Store, range_id: RangeId) -> int:
    status = store.range_status(range_id)
    assert status is not None
    return status.size_bytes


def test_each_replica_folds_for_itself_and_all_stay_alike() -> None:
    async def body(cluster: Cluster) -> None:
        await filled(cluster)
        cluster.store(2).folding.is_on = False
        await trio.sleep(RESTED_S)
        assert [blocks_on(cluster, number) > 0 for number in (1, 2, 3)] == [True, False, True]
        assert versions_on(cluster, 1) == versions_on(cluster, 2) == versions_on(cluster, 3)
        assert [cluster.store(number).folding.sweeps > 0 for number in (1, 2, 3)] == [True, False, True]
        require_alike(cluster)
        assert not list(cluster.engines[StoreId(1)].scan(Family.DELTA, *TABLE))
        for number in (1, 2, 3):
            assert size_of(cluster.store(number), TABLES) == measured_size(cluster, cluster.store(number), TABLES)
        leader = await cluster.wait_leaseholder(TABLES)
        check = await leader.consistency.check(TABLES)
        assert not any(found.problem for found in check.replicas)
        # Changed and deleted rows join their blocks; the system range is never folded.
        for number in range(0, 40, 2):
            await cluster.put(key(number), None if number % 4 else row(number + 1000))
        await trio.sleep(RESTED_S)
        assert not list(cluster.engines[StoreId(1)].scan(Family.DELTA, *TABLE))
        assert versions_on(cluster, 1) == versions_on(cluster, 2)
        require_alike(cluster)
        assert not blocks_on(cluster, 1, Span(b"", PREFIX))

    simulate(3, body, config=CONFIG)


def test_a_split_cuts_the_block_that_straddles_its_key() -> None:
    async def body(cluster: Cluster) -> None:
        leader = await filled(cluster)
        cluster.store(2).folding.is_on = False
        await trio.sleep(RESTED_S)
        straddling = Blocks(cluster.engines[StoreId(1)]).entry_at(key(21))
        assert straddling is not None
        assert straddling.first_key < key(21)
        before = versions_on(cluster, 1)
        # Two at once: the second finds what the first has cut.
        await leader.serve(SplitRequest(TABLES, key(21), RangeId(11)))
        await leader.serve(SplitRequest(TABLES, key(19), RangeId(12)))
        await trio.sleep(1.0)
        for range_id in (TABLES, RangeId(11), RangeId(12)):
            require_alike(cluster, range_id)
            for number in (1, 3):
                desc = cluster.store(number).descriptor(range_id)
                assert desc is not None
                assert blocks_on(cluster, number, desc.span.clipped(TABLE)) > 0
        assert versions_on(cluster, 1) == versions_on(cluster, 2) == before
        whole = size_of(cluster.store(1), TABLES) + size_of(cluster.store(1), RangeId(11)) + size_of(cluster.store(1), RangeId(12))
        assert whole < size_of(cluster.store(2), TABLES) + size_of(cluster.store(2), RangeId(11)) + size_of(cluster.store(2), RangeId(12))

    simulate(3, body, config=CONFIG)


@pytest.mark.parametrize("event", ["split", "clear", "collect", "write"])
def test_a_batch_is_dropped_if_its_range_has_changed_meanwhile(event: str) -> None:
    async def body(cluster: Cluster) -> None:
        leader = await filled(cluster)
        held = leader.folding.worker = Held()
        await held.is_reached.wait()
        number = leader.identity.store_id
        if event == "split":
            await leader.serve(SplitRequest(TABLES, key(5), RangeId(11)))
        elif event == "clear":
            await leader.serve(ClearSpanRequest(TABLES, Span(key(0), key(10))))
        elif event == "collect":
            await leader.serve(CollectGarbageRequest(TABLES, leader.resolved_ts(TABLES)))
        else:
            await cluster.put(key(3), row(3000))
        assert not leader.folding.batches
        before = versions_on(cluster, number)
        held.gate.set()
        await cluster.eventually(lambda: leader.folding.dropped > 0 or leader.folding.batches > 0)
        assert (leader.folding.dropped == 0) == (event == "write")
        assert versions_on(cluster, number) == before
        await trio.sleep(RESTED_S)
        assert blocks_on(cluster, number) > 0
        require_alike(cluster)

    simulate(3, body, config=CONFIG)


def test_raft_snapshots_bring_blocks_as_they_are() -> None:
    async def body(cluster: Cluster) -> None:
        await filled(cluster)
        await trio.sleep(RESTED_S)
        await cluster.replicate(TABLES, [4])
        cluster.store(4).folding.is_on = False
        await trio.sleep(1.0)
        leader = await cluster.wait_leaseholder(TABLES)
        assert blocks_on(cluster, 4) == blocks_on(cluster, leader.identity.store_id) > 0
        assert versions_on(cluster, 4) == versions_on(cluster, 1)
        require_alike(cluster)
        assert size_of(cluster.store(4), TABLES) == measured_size(cluster, cluster.store(4), TABLES)

    simulate(4, body, config=CONFIG)


def test_old_versions_are_collected_in_blocks_too() -> None:
    async def body(cluster: Cluster) -> None:
        leader = await filled(cluster, rows=20)
        cluster.store(2).folding.is_on = False
        for number in range(10):
            await cluster.put(key(number), row(number + 100))
            await cluster.put(key(number + 10), None)
        await trio.sleep(RESTED_S)
        assert len(versions_on(cluster, 1)) == 40
        await leader.serve(CollectGarbageRequest(TABLES, leader.resolved_ts(TABLES)))
        await trio.sleep(RESTED_S)
        require_alike(cluster)
        assert len(versions_on(cluster, 1)) == len(versions_on(cluster, 2)) == 10
        assert cluster.store(3).folding.versions_collected == 30

    simulate(3, body, config=CONFIG)


def test_a_damaged_block_takes_its_replica_out_of_service() -> None:
    async def body(cluster: Cluster) -> None:
        await filled(cluster)
        await trio.sleep(RESTED_S)
        engine = cluster.engines[StoreId(3)]
        entry = Blocks(engine).entry_at(key(3))
        assert entry is not None
        found = engine.first(Family.BLOCK, entry.last_key, entry.last_key + b"\xff")
        assert found is not None
        batch = engine.new_batch()
        batch.put(Family.BLOCK, found[0], found[1][:-1] + bytes([found[1][-1] ^ 1]))
        engine.write(batch)
        with trio.fail_after(10):
            while (leader := await cluster.wait_leaseholder(TABLES)).identity.store_id == 3:
                await leader.serve(TransferLeaseRequest(TABLES, StoreId(1)))
                await trio.sleep(0.5)
        old = leader.descriptor(TABLES).replica_on(StoreId(3))  # type: ignore[union-attr]  # it leads it
        check = await leader.consistency.check(TABLES)
        assert "cannot be read" in next(found.problem for found in check.replicas if found.store_id == 3)

        def is_made_anew() -> bool:
            status = cluster.store(3).range_status(TABLES)
            member = None if status is None else status.descriptor.replica_on(StoreId(3))
            return status is not None and status.damage is None and member is not None and member != old

        await cluster.eventually(is_made_anew, timeout_s=30.0)
        await trio.sleep(1.0)
        assert versions_on(cluster, 3) == versions_on(cluster, 1)

    simulate(3, body, config=CONFIG)


def test_power_losses_while_folding_lose_nothing() -> None:
    async def body(cluster: Cluster) -> None:
        await filled(cluster, rows=30)
        chance = random.Random(4)
        for turn in range(6):
            for number in range(8):
                await cluster.put(key(turn * 5 + number), row(turn * 100 + number))
            await trio.sleep(chance.uniform(3.0, 6.0))
            victim = StoreId(chance.randrange(1, 4))
            cluster.kill(victim)
            (await cluster.restart(victim)).folding.layouts = Known()
        await trio.sleep(RESTED_S)
        assert versions_on(cluster, 1) == versions_on(cluster, 2) == versions_on(cluster, 3)
        require_alike(cluster)
        assert min(blocks_on(cluster, number) for number in (1, 2, 3)) > 1

    simulate(3, body, config=CONFIG)


def test_what_is_worth_a_block() -> None:
    config = StoreConfig()
    assert not is_worth(FoldRegion(b"", b"z", 0, 4095), config, at_rest=True)
    assert is_worth(FoldRegion(b"", b"z", 0, 4096), config, at_rest=False)
    assert not is_worth(FoldRegion(b"", b"z", 16_384, 2047), config, at_rest=False)
    assert is_worth(FoldRegion(b"", b"z", 16_384, 2048), config, at_rest=False)
    assert not is_worth(FoldRegion(b"", b"z", 16_384, 63), config, at_rest=True)
    assert is_worth(FoldRegion(b"", b"z", 16_384, 64), config, at_rest=True)


def test_a_range_is_not_split_inside_of_a_row_in_a_block() -> None:
    async def body(cluster: Cluster) -> None:
        leader = await filled(cluster)
        await trio.sleep(RESTED_S)
        with pytest.raises(KvError, match="inside the row"):
            await leader.serve(SplitRequest(TABLES, key(3) + b"more", RangeId(11)))

    simulate(3, body, config=CONFIG)
