"""A node whose disk is full waits for room: what it writes by itself, about events, ranges and nodes, fails without ending it."""

import trio

from dsdb.coordinator.events import read_events
from dsdb.coordinator.view import NodeState
from dsdb.env import Address
from dsdb.kv.errors import KvError
from dsdb.kv.ids import NodeId, RangeId
from dsdb.node.administration import SetNodeStateRequest
from dsdb.node.config import NodeConfig
from dsdb.node.node import Node
from dsdb.node.parts import NodeParts
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.engine.port import WriteBatch
from dsdb.storage.errors import DiskFullError

TOLD = "what happened while the disk was full"


class SmallEngine(MemoryEngine):
    """Refuses writes while it is full."""

    is_full = False

    def write(self, batch: WriteBatch) -> None:
        if self.is_full:
            raise DiskFullError("no space left on device")
        super().write(batch)


async def refused(parts: NodeParts) -> bool:
    """Try to write what is wanted of the node; say whether the range had no room for it."""
    try:
        await parts.administration.serve_set_node_state(SetNodeStateRequest(NodeId(1), NodeState.ACTIVE))
    except KvError as error:
        return "the disk is full" in str(error)
    return False


async def is_told(parts: NodeParts) -> bool:
    return any(event.what == TOLD for _, event in await read_events(parts.transactions))


def test_events_addresses_and_states_that_find_no_room_are_written_later() -> None:
    async def main() -> None:
        engine = SmallEngine()
        node = Node(NodeConfig(store=None, listen=Address("127.0.0.1", 0)), engine=engine)
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            parts = node.parts
            assert parts is not None
            engine.is_full = True
            with trio.fail_after(20):
                while not await refused(parts):
                    pass
            parts.events.record("split", RangeId(2), TOLD)
            (desc,) = [desc for desc in parts.store.descriptors() if desc.range_id == RangeId(2)]
            parts.meta.changed(desc)
            parts.coordinator.wake()
            await trio.sleep(0.3)  # all of them have tried, and were refused
            engine.is_full = False
            with trio.fail_after(20):
                while not await is_told(parts):  # noqa: ASYNC110  # what is waited for has no event
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()

    trio.run(main)
