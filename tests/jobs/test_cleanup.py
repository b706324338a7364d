"""The rows of dropped tables go, those of others stay."""

import trio

from dsdb.env import Address
from dsdb.jobs import Cleanup
from dsdb.node.config import NodeConfig
from dsdb.node.node import Node
from dsdb.sql.execute.session import SessionState
from dsdb.storage.engine import Family
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.keys import TABLE_PREFIX, prefix_end


async def execute(node: Node, text: str) -> list[tuple[object, ...]]:
    assert node.parts is not None
    (statement,) = node.parts.executor.prepare(text)
    result = await node.parts.executor.run(SessionState(), statement, [])
    return result.rows or []


def stored_rows(engine: MemoryEngine) -> int:
    return sum(len(keys) for keys, _ in engine.scan(Family.DELTA, TABLE_PREFIX, prefix_end(TABLE_PREFIX)))


async def clean(node: Node, *, is_leader: bool = True) -> None:
    assert node.parts is not None
    parts = node.parts
    cleanup = Cleanup(
        router=parts.router,
        transactions=parts.transactions,
        clock=node._clock,
        is_leader=lambda: is_leader,
        age_s=0.02,
        interval_s=0.01,
    )
    with trio.move_on_after(0.5):
        await cleanup.run()


def test_rows_of_a_dropped_table_are_removed_over_all_its_ranges() -> None:
    async def main() -> None:
        engine = MemoryEngine()
        node = Node(NodeConfig(store=None, listen=Address("127.0.0.1", 0)), engine=engine)
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            for table in ("dropped", "kept"):
                await execute(node, f"CREATE TABLE {table} (id INT PRIMARY KEY)")
                await execute(node, f"INSERT INTO {table} VALUES (1), (2)")
            await execute(node, "ALTER TABLE dropped SPLIT AT VALUES (2)")
            await execute(node, "DROP TABLE dropped")
            await clean(node, is_leader=False)
            assert stored_rows(engine) == 4
            await clean(node)
            assert stored_rows(engine) == 2
            assert await execute(node, "SELECT id FROM kept WHERE id = 2") == [(2,)]
            nursery.cancel_scope.cancel()

    trio.run(main)
