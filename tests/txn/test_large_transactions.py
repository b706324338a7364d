"""Transactions that are flushed before their commit, on whole nodes: atomic, undone to savepoints, cleaned up behind dead gateways."""

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from dsdb.kv.errors import KvError
from dsdb.kv.requests import SplitRequest, TransferLeaseRequest
from dsdb.node.parts import NodeParts
from dsdb.sql.errors import ProgramLimitError
from dsdb.sql.execute.engine import QueryEngine
from dsdb.sql.execute.session import SessionState
from dsdb.sql.ports import KeyExistsError, TransactionRetryError
from dsdb.storage import mvcc
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import Timestamp
from dsdb.txn import KvTransaction
from dsdb.txn.limits import TxnLimits
from tests.sim.rare_events import _in_the_loop
from tests.txn.test_transfers import KEYS, Bank, Host

ROWS = [key + b"%03d" % number for key in KEYS for number in range(20)]
"""In three ranges."""
SPAN = Span(min(KEYS), max(KEYS) + b"\xff")
LIMITS = TxnLimits(flush_keys=16)


@pytest.fixture(autouse=True)
def engine_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads know no simulated time."""
    monkeypatch.setattr(QueryEngine, "_on_thread", _in_the_loop)


class Cluster(Bank):
    """Three nodes, and rows in three ranges."""

    def __init__(self, body: Callable[["Cluster"], Awaitable[None]]) -> None:
        super().__init__(7)
        self._body = body

    async def run(self) -> None:
        async with trio.open_nursery() as self.nursery:
            for host in self.hosts:
                await self.start(host)
            await self.set_up()
            for host in self.hosts:
                self.of(host).transactions.limits = LIMITS
            await self._body(self)
            self.nursery.cancel_scope.cancel()

    def of(self, host: Host) -> NodeParts:
        parts = self.parts(host)
        assert parts is not None
        return parts

    def begin(self, number: int = 0) -> KvTransaction:
        return self.of(self.hosts[number]).transactions.begin()

    async def rows(self, number: int = 0) -> dict[bytes, bytes]:
        found = await self.begin(number).scan(SPAN)
        return {key: value for key, value in found if key not in KEYS}

    def intents(self) -> list[bytes]:
        """Give the keys with intents, on any node."""
        found = set()
        for host in self.hosts:
            if host.is_up:
                found.update(key for key, _ in mvcc.intents(host.engine, SPAN, at_or_below=Timestamp(2**64 - 2), limit=10_000))
        return sorted(found)

    def has_records(self) -> bool:
        return any(self.of(host).store.has_records() for host in self.hosts if host.is_up)

    async def is_clean(self, within_s: float) -> None:
        """Wait until nothing is left of any transaction."""
        with trio.fail_after(within_s):
            while self.intents() or self.has_records():  # noqa: ASYNC110 (nothing else tells it)
                await trio.sleep(0.1)


def on_nodes(body: Callable[[Cluster], Awaitable[None]]) -> None:
    trio.run(Cluster(body).run, clock=trio.testing.MockClock(autojump_threshold=0))


async def insert(txn: KvTransaction, rows: list[bytes]) -> None:
    for key in rows:
        txn.insert(key, b"1")
        if txn.is_full:
            await txn.flush()


async def write(txn: KvTransaction, rows: list[bytes], value: bytes | None) -> None:
    for key in rows:
        if value is None:
            txn.delete(key)
        else:
            txn.put(key, value)
        if txn.is_full:
            await txn.flush()


def test_what_is_flushed_is_seen_by_its_transaction_alone_until_all_of_it_is_seen_by_all() -> None:
    async def body(cluster: Cluster) -> None:
        txn = cluster.begin()
        await write(txn, ROWS, b"1")
        assert len(cluster.intents()) > 80
        assert txn.has_flushed
        assert {key: value for key, value in await txn.scan(SPAN) if key not in KEYS} == dict.fromkeys(ROWS, b"1")
        assert await txn.get([ROWS[0], ROWS[-1]]) == [b"1", b"1"]
        assert await cluster.rows(1) == {}
        await txn.commit()
        assert await cluster.rows(2) == dict.fromkeys(ROWS, b"1")
        await cluster.is_clean(5)
        txn = cluster.begin(1)
        await write(txn, ROWS, None)
        assert await cluster.begin(1).get(ROWS[:2]) == [b"1", b"1"]
        assert await txn.get(ROWS[:2]) == [None, None]
        await txn.commit()
        assert await cluster.rows(0) == {}
        await cluster.is_clean(5)
        assert cluster.of(cluster.hosts[0]).txn_counters.flushed_commits == 1

    on_nodes(body)


def test_rolled_back_it_leaves_nothing() -> None:
    async def body(cluster: Cluster) -> None:
        txn = cluster.begin()
        await write(txn, ROWS, b"1")
        await txn.rollback()
        await cluster.is_clean(5)
        assert await cluster.rows() == {}

    on_nodes(body)


def test_savepoints_undo_what_was_flushed() -> None:
    async def body(cluster: Cluster) -> None:
        txn = cluster.begin()
        await write(txn, ROWS[:60], b"1")
        first = txn.savepoint()
        await write(txn, ROWS[40:100], b"2")
        second = txn.savepoint()
        await write(txn, ROWS[:20], None)
        await write(txn, ROWS[90:], b"3")
        txn.rollback_to(second)
        expected = dict.fromkeys(ROWS[:40], b"1") | dict.fromkeys(ROWS[40:100], b"2")
        assert {key: value for key, value in await txn.scan(SPAN) if key not in KEYS} == expected
        await write(txn, ROWS[:50], b"4")
        txn.rollback_to(first)
        assert await txn.get(ROWS[:100:10]) == [b"1"] * 6 + [None] * 4
        txn.release(first)
        await write(txn, ROWS[30:32], b"5")
        await txn.commit()
        assert await cluster.rows(1) == dict.fromkeys(ROWS[:60], b"1") | dict.fromkeys(ROWS[30:32], b"5")
        await cluster.is_clean(5)

    on_nodes(body)


def test_many_random_writes_savepoints_and_flushes_give_what_a_dictionary_gives() -> None:
    async def body(cluster: Cluster) -> None:
        chance = random.Random(3)
        for _ in range(6):
            txn = cluster.begin()
            present: dict[bytes, bytes] = await cluster.rows()
            kept: list[tuple[int, dict[bytes, bytes]]] = []
            for step in range(300):
                act = chance.random()
                key = chance.choice(ROWS)
                if act < 0.6:
                    txn.put(key, b"%d" % step)
                    present[key] = b"%d" % step
                elif act < 0.75:
                    txn.delete(key)
                    present.pop(key, None)
                elif act < 0.8:
                    kept.append((txn.savepoint(), dict(present)))
                elif act < 0.83 and kept:
                    at = chance.randrange(len(kept))
                    txn.rollback_to(kept[at][0])
                    present = dict(kept[at][1])
                    del kept[at + 1 :]
                elif act < 0.85 and kept:
                    at = chance.randrange(len(kept))
                    txn.release(kept[at][0])
                    del kept[at:]
                elif act < 0.9:
                    assert await txn.get([key]) == [present.get(key)]
                elif act < 0.92:
                    found = {key: value for key, value in await txn.scan(SPAN) if key not in KEYS}
                    assert found == present
                elif act < 0.97 or txn.is_full:
                    await txn.flush()
            assert txn.has_flushed
            if chance.random() < 0.3:
                await txn.rollback()
            else:
                await txn.commit()
                assert await cluster.rows(1) == present
            await cluster.is_clean(5)

    on_nodes(body)


def test_keys_that_must_be_absent_are_told_of_at_a_flush() -> None:
    async def body(cluster: Cluster) -> None:
        txn = cluster.begin()
        txn.put(ROWS[50], b"there")
        await txn.commit()
        txn = cluster.begin()
        with pytest.raises(KeyExistsError) as caught:
            await insert(txn, ROWS)
        assert caught.value.key == ROWS[50]
        with pytest.raises(TransactionRetryError):
            await txn.flush()
        await txn.rollback()
        await cluster.is_clean(5)
        assert await cluster.rows() == {ROWS[50]: b"there"}

    on_nodes(body)


def test_leases_that_move_and_ranges_that_split_do_not_end_it() -> None:
    async def body(cluster: Cluster) -> None:
        txn = cluster.begin()
        router = cluster.of(cluster.hosts[0]).router
        for number, begin in enumerate(range(0, len(ROWS), 20)):
            await write(txn, ROWS[begin : begin + 20], b"1")
            await txn.flush()
            store = cluster.of(cluster.hosts[number % 3]).identity.store_id
            try:
                await router.send(ROWS[0], lambda desc, store=store: TransferLeaseRequest(desc.range_id, store))  # type: ignore[misc]
            except KvError:
                pass  # it was not in step
            key = ROWS[begin + 7]
            await router.send(key, lambda desc, key=key, number=number: SplitRequest(desc.range_id, key, 600 + number))  # type: ignore[misc]
            await trio.sleep(1)
        await txn.commit()
        assert await cluster.rows(1) == dict.fromkeys(ROWS, b"1")
        await cluster.is_clean(5)

    on_nodes(body)


def test_a_gateway_that_dies_leaves_nothing() -> None:
    async def body(cluster: Cluster) -> None:
        txn = cluster.begin(1)
        await write(txn, ROWS, b"1")
        cluster.kill(cluster.hosts[1])
        # Nobody need meet it.
        await cluster.is_clean(60)
        assert await cluster.rows() == {}
        assert sum(cluster.of(host).txn_counters.abandoned for host in cluster.hosts if host.is_up) >= 1

    on_nodes(body)


def test_a_gateway_that_dies_after_its_commit_leaves_all_of_it() -> None:
    async def body(cluster: Cluster) -> None:
        txn = cluster.begin(1)
        await write(txn, ROWS, b"1")
        cluster.of(cluster.hosts[1]).finisher._nursery = None  # it dies before it cleans up
        await txn.commit()
        cluster.kill(cluster.hosts[1])
        await cluster.is_clean(60)
        assert await cluster.rows() == dict.fromkeys(ROWS, b"1")

    on_nodes(body)


def test_a_gateway_that_lives_is_not_taken_for_dead() -> None:
    async def body(cluster: Cluster) -> None:
        txn = cluster.begin()
        await write(txn, ROWS, b"1")
        for _ in range(12):
            await trio.sleep(5)
            for host in cluster.hosts:
                await cluster.of(host).janitor.clean_up(age_s=0)
        await txn.commit()
        assert await cluster.rows(1) == dict.fromkeys(ROWS, b"1")

    on_nodes(body)


def test_an_older_transaction_that_writes_the_same_rows_goes_first() -> None:
    async def body(cluster: Cluster) -> None:
        older = cluster.begin(1)
        await older.get([ROWS[0], KEYS[0]])
        await trio.sleep(0.1)
        txn = cluster.begin()
        await write(txn, ROWS, b"1")
        await write(older, [ROWS[3], ROWS[-3]], b"2")
        await older.commit()
        with pytest.raises(TransactionRetryError):
            await txn.commit()
        await cluster.is_clean(5)
        assert await cluster.rows() == {ROWS[3]: b"2", ROWS[-3]: b"2"}
        # And a younger one waits, in vain as long as it may.
        txn = cluster.begin()
        await write(txn, ROWS, b"3")
        younger = cluster.begin(2)
        await write(younger, [ROWS[3], ROWS[-3]], b"4")
        with pytest.raises(TransactionRetryError):
            await younger.commit()
        await txn.commit()
        assert await cluster.rows() == dict.fromkeys(ROWS, b"3")

    on_nodes(body)


def test_more_than_a_transaction_may_write_is_refused() -> None:
    async def body(cluster: Cluster) -> None:
        cluster.of(cluster.hosts[0]).transactions.limits = TxnLimits(flush_keys=16, transaction_bytes_max=1_000)
        txn = cluster.begin()
        with pytest.raises(ProgramLimitError):
            await write(txn, ROWS, b"1" * 10)
        await txn.rollback()
        await cluster.is_clean(5)

    on_nodes(body)


def test_statements_of_many_rows() -> None:
    async def body(cluster: Cluster) -> None:
        executor = cluster.of(cluster.hosts[0]).executor
        other = cluster.of(cluster.hosts[1]).executor
        session, watcher = SessionState(), SessionState()

        async def run(text: str, by: Any = executor, of: SessionState = session) -> list[Any]:
            result = None
            async for result in by.execute(of, text):
                rows = list(result.rows or [])
                if result.batches is not None:
                    async for batch in result.batches:
                        rows += [tuple(row.values()) for row in batch.to_pylist()]
            assert result is not None
            return rows

        await run("CREATE TABLE big (a INT PRIMARY KEY, b INT)")
        await run("ALTER TABLE big SPLIT AT VALUES (100), (200)")
        await run("INSERT INTO big SELECT i, 0 FROM generate_series(1, 300) g(i)")
        assert await run("SELECT count(*), sum(b) FROM big", other, watcher) == [(300, 0)]
        # No statement meets what it writes itself.
        await run("UPDATE big SET a = a + 1000, b = b + 1")
        assert await run("SELECT count(*), min(a), max(a), sum(b) FROM big", other, watcher) == [(300, 1001, 1300, 300)]
        await run("BEGIN; INSERT INTO big SELECT a - 1000, 7 FROM big; SAVEPOINT s")
        assert await run("SELECT count(*), sum(b) FROM big") == [(600, 300 + 2100)]
        await run("UPDATE big SET b = b + 1; DELETE FROM big WHERE a % 2 = 0")
        assert await run("SELECT count(*), sum(b) FROM big") == [(300, 150 * 2 + 150 * 8)]
        assert await run("SELECT count(*), sum(b) FROM big", other, watcher) == [(300, 300)]
        await run("ROLLBACK TO s; DELETE FROM big WHERE a > 1150; COMMIT")
        assert await run("SELECT count(*), sum(b) FROM big", other, watcher) == [(450, 150 + 2100)]
        with pytest.raises(Exception, match="duplicate key"):
            await run("INSERT INTO big SELECT i, 0 FROM generate_series(-299, 1) g(i)")
        assert await run("SELECT count(*), sum(b) FROM big", other, watcher) == [(450, 150 + 2100)]
        await run("DELETE FROM big")
        assert await run("SELECT count(*) FROM big", other, watcher) == [(0,)]
        await trio.sleep(3)
        assert not any(cluster.of(host).store.has_records() for host in cluster.hosts)

    on_nodes(body)
