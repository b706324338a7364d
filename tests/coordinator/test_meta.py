"""Addressing entries are looked at together, and those that are older than what is applied are written."""

import msgspec
import trio

from dsdb.coordinator import MetaWriter
from dsdb.env import Address
from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor
from dsdb.kv.ids import NodeId, RangeId, StoreId
from dsdb.node.config import NodeConfig
from dsdb.node.node import Node
from dsdb.raft.messages import ReplicaId
from dsdb.storage.keys import meta_key
from dsdb.txn import TransactionFactory

RANGES = 200


def descriptor(number: int, generation: int) -> RangeDescriptor:
    replica = ReplicaDescriptor(ReplicaId(1), NodeId(1), StoreId(1))
    return RangeDescriptor(RangeId(900 + number), b"\x10y%04d" % number, b"\x10z%04d" % number, generation, (replica,), ReplicaId(2))


async def stored(transactions: TransactionFactory) -> list[int | None]:
    """Give the generation of each range's entry."""
    values = await transactions.begin().get([meta_key(descriptor(number, 1).end_key) for number in range(RANGES)])
    return [None if value is None else msgspec.msgpack.decode(value, type=RangeDescriptor).generation for value in values]


def test_entries_that_are_missing_or_old_are_written_and_newer_ones_stay() -> None:
    async def main() -> None:
        node = Node(NodeConfig(store=None, listen=Address("127.0.0.1", 0)))
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            assert node.parts is not None
            transactions = node.parts.transactions
            writer = MetaWriter(transactions, is_leaseholder=lambda range_id: range_id != RangeId(906))
            for number, generation in ((1, 4), (2, 5), (3, 9)):
                await writer.write([descriptor(number, generation)])
            await nursery.start(writer.run)
            for number in range(RANGES):
                writer.changed(descriptor(number, 5))
            expected: list[int | None] = [5] * RANGES
            expected[3], expected[6] = 9, None
            with trio.fail_after(30):
                while await stored(transactions) != expected:  # noqa: ASYNC110  # what is waited for has no event
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()

    trio.run(main)
