"""Where a range is cut: never inside a row, and never under background work that was planned for the whole of it."""

import random

import pytest
import trio
from store_cluster import Cluster, simulate

from dsdb.kv.errors import InvalidRequest, KvError, RangeKeyMismatch
from dsdb.kv.ids import RangeId, StoreId
from dsdb.kv.requests import ClearSpanRequest, CollectGarbageRequest, ReadRequest, ScanRequest, SplitRequest
from dsdb.storage.keys import Span, key_after
from dsdb.storage.timestamp import Timestamp
from dsdb.store import Store, StoreConfig

TABLES = RangeId(2)
SPAN = Span(b"\x10", b"\x11")
ROWS = 40
SPLITS = 120


def key(number: int) -> bytes:
    return b"\x10%04d" % number


async def value(store: Store, range_id: RangeId, at: bytes, ts: Timestamp) -> bytes | None:
    return (await store.serve(ReadRequest(range_id, (at,), ts))).values[0]  # type: ignore[union-attr]


# ---- Background work ----


async def with_a_split_in_front(
    cluster: Cluster, store: Store, act: trio.Nursery, work: ClearSpanRequest | CollectGarbageRequest
) -> list[object]:
    """Let a split be on its way when background work is planned, and write to its right side before the work goes on; give its answer."""
    told: list[object] = []
    for number in (1, 2):
        cluster.disks[StoreId(number)].hold()

    async def split() -> None:
        await store.serve(SplitRequest(TABLES, key(20), RangeId(50)))

    async def run() -> None:
        try:
            told.append(await store.serve(work))
        except KvError as error:
            told.append(error.detail)

    act.start_soon(split)
    await trio.sleep(0.05)
    assert store.descriptor_for(key(30)).range_id == TABLES  # type: ignore[union-attr]
    act.start_soon(run)
    await trio.sleep(0.05)
    assert not told
    for number in (1, 2):
        cluster.disks[StoreId(number)].let_go()
    await cluster.eventually(lambda: bool(told))
    assert store.descriptor_for(key(30)).range_id == RangeId(50)  # type: ignore[union-attr]
    return told


def test_a_clearing_that_meets_a_split_clears_nothing_of_the_other_range() -> None:
    """B8: range-wide background deletion crosses a split."""

    async def body(cluster: Cluster) -> None:
        for number in range(ROWS):
            await cluster.put(key(number), b"x")
        await cluster.replicate(TABLES, [2])
        store = await cluster.wait_leaseholder(TABLES)
        async with trio.open_nursery() as nursery:
            told = await with_a_split_in_front(cluster, store, nursery, ClearSpanRequest(TABLES, SPAN))
        assert isinstance(told[0], RangeKeyMismatch)
        for number in range(ROWS):
            assert await cluster.get(key(number)) == b"x"
        # What asks again, for what each range is now, clears that and no more.
        await cluster.call(lambda range_id: ClearSpanRequest(range_id, Span(SPAN.start, key(20))), key(0))
        found = [await cluster.get(key(number)) for number in range(ROWS)]
        assert found == [None] * 20 + [b"x"] * 20

    simulate(2, body)


def test_a_collection_that_meets_a_split_leaves_the_versions_of_the_other_range() -> None:
    """B8: the same of versions: the right side's threshold was not raised, so that its old versions can be read."""

    async def body(cluster: Cluster) -> None:
        for number in range(ROWS):
            await cluster.put(key(number), b"old")
        await cluster.replicate(TABLES, [2])
        before = cluster.oracle.issue()
        for number in range(ROWS):
            await cluster.put(key(number), b"new")
        store = await cluster.wait_leaseholder(TABLES)
        after = cluster.oracle.issue()
        async with trio.open_nursery() as nursery:
            await with_a_split_in_front(cluster, store, nursery, CollectGarbageRequest(TABLES, after))
        right = await cluster.wait_leaseholder(RangeId(50))
        for number in range(20, ROWS):
            assert await value(right, RangeId(50), key(number), before) == b"old"
        for number in range(ROWS):
            assert await cluster.get(key(number)) == b"new"

    # Steps of a few versions, so that there are some behind the split.
    simulate(2, body, config=StoreConfig(garbage_chunk_rows=8))


# ---- Rows ----


def wanted(chance: random.Random) -> bytes:
    """Give bytes at which somebody may want to cut: a row, bytes of its versions, or any."""
    row = key(chance.randrange(ROWS))
    match chance.randrange(5):
        case 0:
            return row
        case 1:
            return key_after(row)
        case 2:
            return row + bytes(chance.randrange(256) for _ in range(chance.randint(1, 9)))
        case 3:
            return row[: chance.randint(1, len(row))] + bytes(chance.randrange(256) for _ in range(chance.randrange(3)))
        case _:
            return b"\x10" + bytes(chance.randrange(256) for _ in range(chance.randint(1, 8)))


@pytest.mark.parametrize("seed", range(3))
def test_a_split_at_any_bytes_leaves_every_row_and_its_versions_in_one_range(seed: int) -> None:
    """B9: a split inside a row."""

    async def body(cluster: Cluster) -> None:
        chance = random.Random(seed)
        for number in range(ROWS):
            await cluster.put(key(number), b"old")
        before = cluster.oracle.issue()
        for number in range(ROWS):
            await cluster.put(key(number), b"new")
        after = cluster.oracle.issue()
        store = await cluster.wait_leaseholder(TABLES)
        done, refused = 0, 0
        for number in range(SPLITS):
            at = wanted(chance)
            desc = store.descriptor_for(at)
            if desc is None or desc.range_id == RangeId(1):
                continue
            try:
                await store.serve(SplitRequest(desc.range_id, at, RangeId(100 + number)))
                done += 1
            except KvError as error:
                if not isinstance(error.detail, InvalidRequest):
                    raise
                refused += 1
            await trio.sleep(0.01)
        assert done > 20
        assert refused > 10
        await trio.sleep(2)
        for number in range(ROWS):
            desc = store.descriptor_for(key(number))
            assert desc is not None
            for ts, expected in ((before, b"old"), (after, b"new")):
                assert await value(store, desc.range_id, key(number), ts) == expected
        for ts, expected in ((before, b"old"), (after, b"new")):
            rows: list[tuple[bytes, bytes]] = []
            for desc in sorted(store.descriptors(), key=lambda desc: desc.start_key):
                if desc.range_id != RangeId(1):
                    reply = await store.serve(ScanRequest(desc.range_id, desc.span, ts, 1000, 10**6))
                    rows += zip(reply.keys, reply.values)  # type: ignore[union-attr]
            assert rows == [(key(number), expected) for number in range(ROWS)]

    simulate(1, body)
