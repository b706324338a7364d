"""The older transaction goes first (rule 30), through whichever gateways the two came: a gateway may not hand out ranks of the past."""

import trio
import trio.testing

from dsdb.storage.timestamp import Timestamp
from dsdb.txn.transaction import KvTransaction
from tests.txn.test_transfers import KEYS, Bank


class Writers(Bank):
    """One hot row, written through each node."""

    async def run(self) -> None:
        async with trio.open_nursery() as self.nursery:
            for host in self.hosts:
                await self.start(host)
            await self.set_up()
            # So that every node has heard of timestamps, and two of three hear of no further ones by themselves.
            for host in self.hosts:
                parts = self.parts(host)
                assert parts is not None
                await parts.transactions.begin().read_timestamp()
            for host in self.hosts:
                await self.write_twice(host.name)
            self.nursery.cancel_scope.cancel()

    async def write_twice(self, name: str) -> None:
        """Whoever waited when the first commit was answered is older than the second transaction."""
        (parts,) = [self.parts(host) for host in self.hosts if host.name == name]
        assert parts is not None
        first = parts.transactions.begin()
        await first.get_locked([KEYS[0]])
        first.put(KEYS[0], b"1")
        committed_at = await first.commit()
        second = parts.transactions.begin()
        await second.get_locked([KEYS[0]])
        await second.rollback()
        third = parts.transactions.begin()
        await third.get_locked([KEYS[0]])
        await third.rollback()
        assert younger_than(committed_at, second), f"through {name}, behind a commit"
        assert younger_than(second._read_ts, third), f"through {name}, behind a read"


def younger_than(ts: Timestamp | None, txn: KvTransaction) -> bool:
    return ts is not None and txn.start_ts is not None and txn.start_ts >= ts


def test_a_transaction_is_younger_than_all_that_its_gateway_was_told_of() -> None:
    trio.run(Writers(1).run, clock=trio.testing.MockClock(autojump_threshold=0))
