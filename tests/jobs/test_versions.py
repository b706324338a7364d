"""Old versions go once they are old enough, those that can still be read stay, and what was collected keeps bumping late writes."""

import pytest
import trio

import dsdb
from dsdb.env import Address
from dsdb.jobs import VersionCollector
from dsdb.kv.ids import AttemptId
from dsdb.kv.intents import PrewriteReply, PrewriteRequest, TxnMeta
from dsdb.node.config import NodeConfig
from dsdb.node.node import Node
from dsdb.sql.rows import rows_of
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.timestamp import Timestamp
from tests.jobs.test_cleanup import execute, stored_rows

WRITES = 20


async def collect(node: Node, *, seconds: float, age_s: float = 0.05, writes_min: int = 5, protected_s: float = 3600) -> None:
    assert node.parts is not None
    collector = VersionCollector(
        store=node.parts.store,
        oracle=node.parts.oracle,
        clock=node._clock,
        oldest_read=node.parts.activity.oldest_read,
        age_s=age_s,
        protected_s=protected_s,
        interval_s=0.01,
        writes_min=writes_min,
    )
    with trio.move_on_after(seconds):
        await collector.run()


def test_old_versions_are_collected_and_late_writes_stay_above() -> None:
    async def main() -> None:
        engine = MemoryEngine()
        node = Node(NodeConfig(store=None, listen=Address("127.0.0.1", 0)), engine=engine)
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            parts = node.parts
            assert parts is not None
            await execute(node, "CREATE TABLE t (id INT PRIMARY KEY, n INT)")
            await execute(node, "INSERT INTO t VALUES (1, 0), (2, 0)")
            early = await parts.oracle.fresh()
            for _ in range(WRITES):
                await execute(node, "UPDATE t SET n = n + 1 WHERE id = 1")
            await execute(node, "DELETE FROM t WHERE id = 2")
            assert stored_rows(engine) == WRITES + 3

            await collect(node, seconds=0.2, age_s=60)
            await collect(node, seconds=0.2, writes_min=1_000)
            assert stored_rows(engine) == WRITES + 3, "not old enough, or not worth a look"
            await collect(node, seconds=0.4)
            assert stored_rows(engine) == 1, "the newest version of one row, and nothing of the deleted one"
            assert await execute(node, "SELECT id, n FROM t WHERE id = 1") == [(1, WRITES)]

            # A late copy of a prewrite from before: nothing of its key remembers what came after (rule 31).
            catalog = await parts.leases.acquire()
            (database,) = [database for database in catalog.databases() if catalog.table(database.database_id, "t")]
            table = catalog.table(database.database_id, "t")
            assert table is not None
            key = rows_of(table).key_of([2])
            meta = TxnMeta(AttemptId(b"a" * 16), key, early)
            reply = await parts.router.send(key, lambda desc: PrewriteRequest(desc.range_id, meta, early, (key,), (b"late",)))
            assert isinstance(reply, PrewriteReply)
            assert reply.ts > threshold(node), "laid above the threshold, so never resolved at its old timestamp"
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_what_an_open_transaction_reads_is_kept_for_a_while() -> None:
    async def main() -> None:
        engine = MemoryEngine()
        node = Node(NodeConfig(store=None, listen=Address("127.0.0.1", 0)), engine=engine)
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            await execute(node, "CREATE TABLE t (id INT PRIMARY KEY, n INT)")
            await execute(node, "INSERT INTO t VALUES (1, 0)")
            connection = await trio.to_thread.run_sync(dsdb.connect, f"dsdb://{node.address}")

            async def query(text: str) -> list[tuple[object, ...]]:
                return await trio.to_thread.run_sync(lambda: connection.execute(text).fetchall())

            assert await query("SELECT n FROM t WHERE id = 1") == [(0,)]
            for _ in range(WRITES):
                await execute(node, "UPDATE t SET n = n + 1 WHERE id = 1")
            await collect(node, seconds=0.4)
            assert await query("SELECT sum(n) FROM t") == [(0,)], "it is open, and reads what was there when it began"
            await collect(node, seconds=0.4, protected_s=0.05)
            with pytest.raises(dsdb.Error):
                await query("SELECT max(n) FROM t")
            await trio.to_thread.run_sync(connection.close)
            nursery.cancel_scope.cancel()

    trio.run(main)


def threshold(node: Node) -> Timestamp:
    assert node.parts is not None
    return max(replica.machine.state.threshold for replica in node.parts.store._replicas.values())
