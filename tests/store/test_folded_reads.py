"""A range whose rows lie in columnar blocks, and over them, answers every request as one of rows alone does."""

import random
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any

import pytest
import trio
from store_cluster import Cluster, simulate
from test_folding import CONFIG, LAYOUT, RESTED_S, TABLES, Known, blocks_on

from dsdb.kv.errors import Conflict, KeyExists, KvError
from dsdb.kv.ids import AttemptId, RangeId
from dsdb.kv.intents import PrewriteRequest, TxnMeta
from dsdb.kv.locks import LockedReadRequest
from dsdb.kv.requests import BumpReply, CommitReply, CommitRequest, ReadRequest, RefreshRequest, ScanRequest, SplitRequest, Write
from dsdb.storage.columnar.merge import Columns
from dsdb.storage.engine.port import Family
from dsdb.storage.keys import KEY_MAX, Span, index_prefix, key_after, prefix_span
from dsdb.storage.rowcodec import codec_for, decode_batches
from dsdb.storage.timestamp import Timestamp
from dsdb.store import Store

FOLDED, PLAIN = 7, 8
"""Tables; the layouts of the second are not known, so it stays rows."""
PLAIN_RANGE = RangeId(11)
RANGES = {FOLDED: TABLES, PLAIN: PLAIN_RANGE}
ROWS = 48


def key(table: int, number: int) -> bytes:
    return index_prefix(1, table, 1) + b"\x88" + number.to_bytes(4, "big")


def row(number: int) -> bytes:
    return codec_for(LAYOUT).encode((number, f"text {number % 3}"))


class Twins:
    """Asks the same of both tables, in turn, and compares what they say."""

    def __init__(self, cluster: Cluster, store: Store) -> None:
        self.cluster = cluster
        self.store = store
        self.chance = random.Random(7)
        self.moments: list[Timestamp] = []
        self.own = {table: TxnMeta(cluster.new_attempt(), key(table, 0), self.now()) for table in RANGES}

    def now(self) -> Timestamp:
        return self.cluster.oracle.issue()

    async def ask(self, make: Callable[[int], Awaitable[Any]]) -> Any:
        """Give what both say, written as if the table was one."""
        said = []
        for table in (FOLDED, PLAIN):
            try:
                found = await make(table)
            except KvError as error:
                found = error.detail
            said.append(self._told(found))
        assert said[0] == said[1]
        return said[0]

    def _told(self, found: Any) -> Any:
        match found:
            case bytes():
                return found.replace(index_prefix(1, PLAIN, 1), index_prefix(1, FOLDED, 1))
            case CommitReply() | BumpReply():
                return type(found).__name__
            case Conflict():
                # Which of several changes is found first is open.
                return (type(found).__name__,)
            case KeyExists():
                return type(found).__name__, self._told(found.key)
            case _ if hasattr(found, "__struct_fields__"):
                told = [self._told(getattr(found, name)) for name in found.__struct_fields__ if name != "ts" and not name.endswith("_ts")]
                return type(found).__name__, told
            case tuple() | list():
                return [self._told(each) for each in found]
            case _:
                return found

    async def commit(self, writes: Iterable[tuple[int, int | None]], *, absent: bool = False, **more: Any) -> Any:
        rows = list(writes)

        def request(table: int) -> Awaitable[Any]:
            sent = tuple([Write(key(table, at), None if value is None else row(value), must_be_absent=absent) for at, value in rows])
            spans = tuple([self.span(table, *bounds) for bounds in more.get("reads", ())])
            options = {"ts": None, **more, "reads": spans}
            return self.store.serve(CommitRequest(RANGES[table], self.cluster.new_attempt(), self.now(), writes=sent, **options))

        return await self.ask(request)

    @staticmethod
    def span(table: int, first: int, end: int) -> Span:
        return Span(key(table, first), key(table, end))

    def some_ts(self) -> Timestamp:
        return self.chance.choice([*self.moments, self.moments[-1], self.now()])


async def history(cluster: Cluster) -> Twins:
    """Give a table in blocks with a delta over them, and its twin."""
    for store in cluster.network.stores.values():
        store.folding.layouts = Known()
    store = await cluster.wait_leaseholder(TABLES)
    await store.serve(SplitRequest(TABLES, index_prefix(1, PLAIN, 1), PLAIN_RANGE))
    await cluster.wait_leaseholder(PLAIN_RANGE)
    twins = Twins(cluster, store)
    for step in (1, 3, 5):
        twins.moments.append(twins.now())
        await twins.commit([(at, at * 10 + step) for at in range(0, ROWS, step)])
        await twins.commit([(at, None) for at in range(step, ROWS, 11)])
    twins.moments.append(twins.now())
    await trio.sleep(RESTED_S)
    assert blocks_on(cluster, 1, prefix_span(index_prefix(1, FOLDED, 1))) > 1
    assert not list(cluster.engines[store.identity.store_id].scan(Family.DELTA, *prefix_span(index_prefix(1, FOLDED, 1))))
    assert not blocks_on(cluster, 1, prefix_span(index_prefix(1, PLAIN, 1)))
    return twins


async def write_over(twins: Twins) -> None:
    await twins.commit([(at, at + 5000) for at in range(0, ROWS, 7)])
    twins.moments.append(twins.now())
    await twins.commit([(at, None) for at in range(4, ROWS, 9)])
    await twins.commit([(at, at) for at in range(ROWS, ROWS + 4)])
    twins.moments.append(twins.now())

    def prewrite(table: int) -> Awaitable[Any]:
        keys, values = (key(table, 3), key(table, 20), key(table, ROWS + 9)), (row(3), None, row(9))
        return twins.store.serve(PrewriteRequest(RANGES[table], twins.own[table], twins.now(), keys, values))

    await twins.ask(prewrite)


def on_one_store(body: Callable[[Twins], Awaitable[None]]) -> None:
    async def run(cluster: Cluster) -> None:
        await body(await history(cluster))

    simulate(1, run, config=CONFIG)


def test_reads_and_scans() -> None:
    async def body(twins: Twins) -> None:
        chance = twins.chance
        for is_written_over in (False, True):
            if is_written_over:
                await write_over(twins)
            for _ in range(120):
                ts, owns = twins.some_ts(), chance.random() < 0.3 or is_written_over
                numbers = tuple(chance.sample(range(ROWS + 12), 5))
                first, end = sorted(chance.sample(range(ROWS + 13), 2))
                rows_max, reverse = chance.choice([1, 3, 1000]), chance.random() < 0.5

                def own(table: int, owns: bool = owns) -> AttemptId | None:
                    return twins.own[table].attempt if owns else None

                def read(table: int, ts: Timestamp = ts, numbers: tuple[int, ...] = numbers) -> Awaitable[Any]:
                    return twins.store.serve(ReadRequest(RANGES[table], tuple([key(table, at) for at in numbers]), ts, own(table)))

                def scan(
                    table: int, ts: Timestamp = ts, asked: tuple[int, int, int] = (first, end, rows_max), reverse: bool = reverse
                ) -> Awaitable[Any]:
                    span = Span(key(table, asked[0]), key_after(key(table, asked[1])))
                    return twins.store.serve(
                        ScanRequest(RANGES[table], span, ts, rows_max=asked[2], bytes_max=200, reverse=reverse, attempt=own(table))
                    )

                assert (await twins.ask(read))[0] == "ReadReply"
                assert (await twins.ask(scan))[0] == "ScanReply"

    on_one_store(body)


def test_frozen_spans_give_arrow() -> None:
    async def body(twins: Twins) -> None:
        await write_over(twins)
        writes = {5: 77, 6: None, ROWS + 20: 78}
        columns = Columns(LAYOUT.columns, {1: LAYOUT})

        async def rows_of(table: int, ts: Timestamp, first: int, end: int) -> Any:
            layer = [key(table, at) for at in writes], [None if value is None else row(value) for value in writes.values()]
            span = twins.span(table, first, end)
            with await twins.store.scan_snapshot(RANGES[table], span, ts, twins.own[table].attempt) as frozen:
                assert frozen.has_blocks == (table == FOLDED)
                if frozen.has_blocks:
                    steps = list(frozen.batches(columns, layer))
                    assert steps[-1].end == span.end
                    return [found for batch, _ in steps if batch is not None for found in batch.to_pylist()]
                found = {key: value for chunk in frozen.chunks() for key, value in zip(*chunk)}
                found |= {key: value for key, value in zip(*layer) if span.contains(key)}  # type: ignore[misc]  # None goes next
                values = [found[key] for key in sorted(found) if found[key] is not None]
                return decode_batches(values, columns.layouts, columns.target).to_pylist()

        for ts in [*twins.moments, twins.now()]:
            for first, end in [(0, ROWS + 30), (5, 7), (17, 30)]:
                assert await twins.ask(partial(rows_of, ts=ts, first=first, end=end)) is not None

    on_one_store(body)


def test_commits_see_what_is_in_blocks() -> None:
    async def body(twins: Twins) -> None:
        assert await twins.commit([(10, 1)], absent=True) == ("KeyExists", key(FOLDED, 10))
        # Deleted rows are tombstones in a block's history: they bump, and nothing is there.
        assert await twins.commit([(14, 1)], absent=True) == "CommitReply"
        assert await twins.commit([(ROWS + 1, 1)], absent=True) == "CommitReply"
        # Many writes are looked up together.
        assert await twins.commit([(at, at) for at in range(6, 20)], absent=True) == ("KeyExists", key(FOLDED, 6))
        for at, ts in ((10, twins.moments[0]), (23, twins.moments[0])):
            assert await twins.commit([(at, 1)], ts=ts, has_other_reads=True) == "BumpReply"
        conflict = await twins.commit([(ROWS + 5, 1)], reads=[(30, 40)], read_ts=twins.moments[1])
        assert conflict[0] == "Conflict"
        assert await twins.commit([(ROWS + 5, 1)], reads=[(30, 40)], read_ts=twins.moments[-1]) == "CommitReply"
        kinds = set()
        for low in twins.moments:
            for first, end in ((0, ROWS), (14, 15), (41, 44)):

                def refresh(table: int, low: Timestamp = low, first: int = first, end: int = end) -> Awaitable[Any]:
                    spans = (twins.span(table, first, end),)
                    return twins.store.serve(RefreshRequest(RANGES[table], twins.cluster.new_attempt(), spans, low, twins.now()))

                kinds.add((await twins.ask(refresh))[0])
        assert kinds == {"Conflict", "RefreshReply"}

    on_one_store(body)


def test_prewrites_and_locks_see_what_is_in_blocks() -> None:
    async def body(twins: Twins) -> None:
        def prewrite(table: int, number: int, ts: Timestamp) -> Awaitable[Any]:
            meta = TxnMeta(twins.cluster.new_attempt(), key(table, 0), twins.now())
            request = PrewriteRequest(RANGES[table], meta, ts, (key(table, number),), (row(1),), absent=b"\x01", read_ts=twins.now())
            return twins.store.serve(request)

        assert (await twins.ask(lambda table: prewrite(table, 10, twins.now())))[0] == "KeyExists"
        assert (await twins.ask(lambda table: prewrite(table, 16, twins.now())))[0] == "PrewriteReply"
        old = {table: await prewrite(table, 23, twins.moments[0]) for table in RANGES}
        assert all(reply.ts > twins.moments[0] for reply in old.values())

        def lock(table: int, ts: Timestamp | None) -> Awaitable[Any]:
            keys = tuple([key(table, at) for at in (10, 14, 34)])
            return twins.store.serve(LockedReadRequest(RANGES[table], keys, ts, twins.own[table].attempt, twins.own[table].first_ts))

        assert (await twins.ask(lambda table: lock(table, None)))[0] == "LockedReadReply"
        assert (await twins.ask(lambda table: lock(table, twins.moments[0])))[0] == "NewerReply"

    on_one_store(body)


def test_followers_read_the_past_from_their_own_blocks() -> None:
    async def run(cluster: Cluster) -> None:
        twins = await history(cluster)
        old = twins.moments[1]
        for range_id in RANGES.values():
            await cluster.replicate(range_id, [2, 3])
        cluster.store(2).folding.is_on = False
        await trio.sleep(RESTED_S)
        for store in cluster.network.stores.values():
            twins.store = store

            def scan(table: int) -> Awaitable[Any]:
                span = twins.span(table, 3, 40)
                return twins.store.serve(ScanRequest(RANGES[table], span, old, rows_max=1000, bytes_max=1 << 20, any_replica=True))

            assert (await twins.ask(scan))[0] == "ScanReply"

    simulate(3, run, config=CONFIG)


def test_a_foreign_intent_over_a_block_is_waited_for() -> None:
    async def body(twins: Twins) -> None:
        meta = TxnMeta(twins.cluster.new_attempt(), key(FOLDED, 0), twins.now())
        await twins.store.serve(PrewriteRequest(TABLES, meta, twins.now(), (key(FOLDED, 30),), (row(1),)))
        ts = twins.now()
        span = twins.span(FOLDED, 0, ROWS)
        given = []
        with await twins.store.scan_snapshot(TABLES, span, ts, None) as frozen:
            steps = frozen.batches(Columns(LAYOUT.columns, {1: LAYOUT}), ([], []))
            with pytest.raises(Exception, match="intents in the way"):
                given += [next(steps).end for _ in range(100)]
        # A reader that stops before it does not meet it.
        reply = await twins.store.serve(ScanRequest(TABLES, Span(span.start, KEY_MAX).clipped(span), ts, rows_max=5, bytes_max=1 << 20))
        assert len(reply.keys) == 5  # type: ignore[union-attr]

    on_one_store(body)
