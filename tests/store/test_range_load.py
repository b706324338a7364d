"""Sizes and loads of ranges: what they are after all that can happen to a range, and which ranges should be split, and where."""

import random

import pytest
import trio
from store_cluster import Cluster, simulate

from dsdb.kv.errors import KvError
from dsdb.kv.ids import RangeId
from dsdb.kv.requests import (
    ClearSpanRequest,
    CollectGarbageRequest,
    DescribeRequest,
    ReadRequest,
    ScanRequest,
    SplitRequest,
    TransferLeaseRequest,
)
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.engine.port import Family
from dsdb.storage.keys import Span, encode_id, index_prefix, key_after, table_prefix
from dsdb.storage.timestamp import Timestamp
from dsdb.store import Store
from dsdb.store.key_sample import SAMPLES, KeySample
from dsdb.store.load import LOAD_SUSTAINED_S, REST_S, SplitWish, WishKind
from dsdb.store.range_settings import CLUSTER_TABLE, RangeSettings, SettingsBook, StoredSettings
from dsdb.store.range_stats import find_middle, has_rows

TABLES = RangeId(2)
PREFIX = index_prefix(1, 7, 1)
HOT = SettingsBook({CLUSTER_TABLE: StoredSettings(load_requests=50)})


def key(number: int) -> bytes:
    return PREFIX + number.to_bytes(4, "big")


def sizes(store: Store) -> dict[RangeId, int]:
    return {desc.range_id: store.range_status(desc.range_id).size_bytes for desc in store.descriptors() if desc.range_id != 1}  # type: ignore[union-attr]


def stored_bytes(store: Store, cluster: Cluster, range_id: RangeId) -> int:
    span = next(desc.span for desc in store.descriptors() if desc.range_id == range_id)
    engine = cluster.engines[store.identity.store_id]
    return sum(len(k) + len(v) for keys, values in engine.scan(Family.DELTA, span.start, span.end) for k, v in zip(keys, values))


def test_sizes_are_exact_and_alike_on_all_replicas() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        store = await cluster.wait_leaseholder(TABLES)

        async def check() -> None:
            alike = [cluster.store(number) for number in (1, 2, 3)]
            await cluster.eventually(lambda: all(sizes(each) == sizes(store) for each in alike))
            for range_id, size in sizes(store).items():
                assert size == stored_bytes(store, cluster, range_id)

        for number in range(60):
            await cluster.put(key(number), b"v" * number)
        for number in range(0, 60, 3):
            await cluster.put(key(number), None if number % 2 else b"again")
        await check()
        await store.serve(CollectGarbageRequest(TABLES, cluster.oracle.issue()))
        await check()
        before = sizes(store)[TABLES]
        await store.serve(SplitRequest(TABLES, key(45), RangeId(9)))
        await check()
        assert sum(sizes(store).values()) == before
        await cluster.call(lambda range_id: ClearSpanRequest(range_id, Span(key(0), key(20))), key(0))
        await check()
        whole = next(desc.span for desc in store.descriptors() if desc.range_id == 9)
        await cluster.call(lambda range_id: ClearSpanRequest(range_id, whole), key(50))
        await check()
        assert sizes(store)[RangeId(9)] == 0

    simulate(3, body)


async def ask(cluster: Cluster, numbers: list[int], *, seconds: float, per_s: int, seed: int = 1) -> None:
    chance = random.Random(seed)
    for _ in range(int(seconds * per_s)):
        at = key(chance.choice(numbers))
        await cluster.call(lambda range_id, at=at: ReadRequest(range_id, (at,), None), at)  # type: ignore[misc]
        await trio.sleep(1 / per_s)


async def fill(cluster: Cluster, count: int) -> Store:
    for number in range(count):
        await cluster.put(key(number), b"value")
    store = await cluster.wait_leaseholder(TABLES)
    store.loads.use(HOT)
    return store


def test_a_hot_range_is_cut_where_its_load_parts_and_then_rests() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        store = await fill(cluster, 400)
        await ask(cluster, list(range(200, 400)), seconds=2.5, per_s=100)
        assert store.loads.wishes() == [], "not for so short a time"
        await ask(cluster, list(range(200, 400)), seconds=LOAD_SUSTAINED_S, per_s=100)
        (wish,) = store.loads.wishes()
        assert (wish.range_id, wish.kind) == (TABLES, WishKind.LOAD)
        cut = await store.loads.key_for(wish)
        assert cut is not None
        assert key(270) <= cut <= key(330)
        described = await store.serve(DescribeRequest(TABLES))
        assert described.requests_per_s == pytest.approx(120, rel=0.3)  # type: ignore[union-attr]
        await store.serve(SplitRequest(TABLES, cut, RangeId(9)))
        load = {report.descriptor.range_id: report.requests_per_s for report in reports(store)}
        assert load[TABLES] + load[RangeId(9)] == pytest.approx(120, rel=0.3)
        assert min(load[TABLES], load[RangeId(9)]) > 25, "either side has its part of the load at once"
        await ask(cluster, list(range(200, 400)), seconds=REST_S - 1.5, per_s=150)
        assert store.loads.wishes() == []

    simulate(3, body)


def reports(store: Store) -> list:  # type: ignore[type-arg]
    store.reports.report(0, 0, 100)
    return store.reports.told()


def test_load_on_one_row_or_few_rows_or_one_replica_cuts_nothing() -> None:
    async def body(cluster: Cluster) -> None:
        store = await fill(cluster, 300)
        seconds = LOAD_SUSTAINED_S + 2.5
        await ask(cluster, list(range(300)), seconds=seconds, per_s=100)
        assert store.loads.wishes() == [], "the load has nowhere to go"
        await cluster.replicate(TABLES, [2, 3])
        await ask(cluster, [150], seconds=seconds, per_s=100)
        (wish,) = store.loads.wishes()
        assert await store.loads.key_for(wish) is None
        assert store.loads.wishes() == [], "it rests"
        await trio.sleep(70)
        await ask(cluster, list(range(20)), seconds=seconds, per_s=100)
        (wish,) = store.loads.wishes()
        assert await store.loads.key_for(wish) is None, "the left side would have too few rows"

    simulate(3, body)


def test_a_lease_takes_nothing_along_and_an_idle_range_has_nothing() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        store = await fill(cluster, 200)
        await ask(cluster, list(range(200)), seconds=LOAD_SUSTAINED_S + 2.5, per_s=100)
        (wish,) = store.loads.wishes()
        other = next(number for number in (1, 2, 3) if number != store.identity.store_id)
        await store.serve(TransferLeaseRequest(TABLES, cluster.ids[other - 1]))
        await cluster.eventually(lambda: cluster.store(other).holds_lease(TABLES))
        assert store.loads.wishes() == []
        taker = cluster.store(other)
        taker.loads.use(HOT)
        await ask(cluster, list(range(200)), seconds=LOAD_SUSTAINED_S + 2.5, per_s=100)
        assert [found.range_id for found in taker.loads.wishes()] == [wish.range_id]
        await trio.sleep(400)
        assert store.loads.in_use() == taker.loads.in_use() == []
        assert (await taker.serve(DescribeRequest(TABLES))).requests_per_s == 0  # type: ignore[union-attr]

    simulate(3, body)


def test_a_new_leaseholder_measures_anew_whatever_it_was_asked_before() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        store = await fill(cluster, 100)
        other = next(cluster.store(number) for number in (1, 2, 3) if cluster.store(number) is not store)
        for _ in range(30):
            with pytest.raises(KvError):
                await other.serve(ReadRequest(TABLES, (key(1),), None))
            await trio.sleep(1.0)
        await store.serve(TransferLeaseRequest(TABLES, other.identity.store_id))
        assert await cluster.wait_leaseholder(TABLES) is other
        await ask(cluster, list(range(100)), seconds=4.0, per_s=100)
        described = await other.serve(DescribeRequest(TABLES))
        assert described.requests_per_s == pytest.approx(100, rel=0.3)  # type: ignore[union-attr]

    simulate(3, body)


def test_a_large_range_is_cut_in_the_middle_of_its_bytes() -> None:
    async def body(cluster: Cluster) -> None:
        for number in range(200):
            await cluster.put(key(number), b"v" * (10 if number < 150 else 2000))
        store = await cluster.wait_leaseholder(TABLES)
        store.loads.use(SettingsBook({CLUSTER_TABLE: StoredSettings(max_bytes=80_000)}))
        await trio.sleep(2)
        (wish,) = store.loads.wishes()
        assert wish.kind is WishKind.SIZE
        cut = await store.loads.key_for(wish)
        assert cut is not None
        await store.serve(SplitRequest(TABLES, cut, RangeId(9)))
        assert 0.4 < sizes(store)[TABLES] / sum(sizes(store).values()) < 0.6
        await trio.sleep(2)
        assert store.loads.wishes() == []
        # The limit of a table that shares the range counts; what has only one row is not cut.
        store.loads.use(SettingsBook({7: StoredSettings(database_id=1, max_bytes=20_000)}))
        await trio.sleep(10)
        assert {found.range_id for found in store.loads.wishes()} == {TABLES, RangeId(9)}
        (stands,) = [found for found in store.loads.wishes() if found.range_id == 9]
        assert await store.loads.key_for(stands) is not None
        assert await store.loads.key_for(SplitWish(range_id=RangeId(77), kind=WishKind.SIZE, reason="")) is None

    simulate(1, body)


def in_engine(keys: list[tuple[bytes, int]]) -> MemoryEngine:
    engine = MemoryEngine()
    batch = engine.new_batch()
    for user_key, size in keys:
        batch.put(Family.DELTA, user_key + bytes(8), b"\x00" * size)
    engine.write(batch)
    return engine


def test_tables_that_share_a_range_are_parted_where_one_begins() -> None:
    keys = [(table_prefix(1, table) + encode_id(1) + row.to_bytes(2, "big"), 50) for table in (1, 2, 3) for row in range(100)]
    engine, span = in_engine(keys), Span(b"\x10", b"\xff\xff")
    middle = trio.run(lambda: find_middle(engine, span, size_bytes=300 * 64))
    assert middle is not None
    assert middle.key in (table_prefix(1, 2), table_prefix(1, 3))
    alone = Span(table_prefix(1, 2), table_prefix(1, 3))
    middle = trio.run(lambda: find_middle(engine, alone, size_bytes=100 * 64))
    assert middle is not None
    assert keys[140][0] < middle.key < keys[160][0]
    assert trio.run(lambda: find_middle(engine, Span(keys[5][0], keys[6][0]), size_bytes=64)) is None
    assert has_rows(engine, alone, 100)
    assert not has_rows(engine, alone, 101)


def sampled(numbers: list[int]) -> KeySample:
    sample = KeySample(random.Random(3))
    for number in numbers:
        sample.note(ReadRequest(TABLES, (key(number),), Timestamp(1)))
    return sample


WHOLE = Span(b"\x10", b"\xff\xff")


def test_the_sample_parts_load_and_knows_when_it_cannot() -> None:
    chance = random.Random(5)
    even = [chance.randrange(1000) for _ in range(4 * SAMPLES)]
    cut = sampled(even).split_key(WHOLE, lambda at: at)
    assert cut is not None
    assert key(400) < cut < key(600)
    assert 0.4 < sampled(even).left_part(cut) < 0.6
    assert sampled([7] * 4 * SAMPLES).split_key(WHOLE, lambda at: at) is None
    assert sampled([7] * 3 * SAMPLES + [8] * 10).split_key(WHOLE, lambda at: at) is None
    assert sampled([7, 8] * 2 * SAMPLES).split_key(WHOLE, lambda at: at) == key(8)
    assert sampled(even[:20]).split_key(WHOLE, lambda at: at) is None, "too few"
    assert sampled(even).split_key(WHOLE, lambda _: None) is None, "nothing is stored there"
    assert sampled(even).split_key(WHOLE, lambda _: key(990)) is None, "all that is stored lies at an end"


def test_rows_that_are_appended_part_nothing() -> None:
    """The right side would get all of the load, and be cut again: ranges of dust."""
    assert sampled(list(range(4 * SAMPLES))).split_key(WHOLE, lambda at: at) is None


def test_scans_of_everything_part_nothing() -> None:
    sample = KeySample(random.Random(3))
    chance = random.Random(5)
    for _ in range(4 * SAMPLES):
        begin = chance.randrange(500)
        sample.note(ScanRequest(TABLES, Span(key(begin), key(begin + 500)), None, 10_000, 1 << 20))
        sample.note_span(Span(key(0), key(1000)))
    assert sample.split_key(WHOLE, lambda at: at) is None
    short = KeySample(random.Random(3))
    for _ in range(4 * SAMPLES):
        short.note(ScanRequest(TABLES, Span(key(chance.randrange(1000)), key_after(key(1000))), None, 10, 1 << 20))
    assert short.split_key(WHOLE, lambda at: at) is not None


def test_a_table_obeys_itself_and_a_shared_range_the_strictest() -> None:
    book = SettingsBook(
        {
            CLUSTER_TABLE: StoredSettings(load_requests=500),
            7: StoredSettings(database_id=1, max_bytes=1 << 30),
            8: StoredSettings(database_id=1, max_bytes=0, load_requests=100),
        }
    )
    assert SettingsBook({}).of(WHOLE) == RangeSettings()
    assert book.of(Span(PREFIX, key(5))) == RangeSettings(max_bytes=1 << 30, load_requests=500)
    assert book.of(Span(table_prefix(1, 8), table_prefix(1, 9))) == RangeSettings(max_bytes=0, load_requests=100)
    assert book.of(Span(table_prefix(1, 7), table_prefix(1, 9))) == RangeSettings(load_requests=100)
    assert book.of(Span(table_prefix(2, 7), table_prefix(2, 8))) == RangeSettings(load_requests=500)
