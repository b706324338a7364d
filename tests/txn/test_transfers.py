"""Transfers between accounts in several ranges, on whole nodes that crash, and whose leases move: no money comes or goes, at any moment."""

import random

import pytest
import trio
import trio.testing

from dsdb.kv.errors import KvError
from dsdb.kv.requests import TransferLeaseRequest
from dsdb.node.node import Node
from dsdb.node.parts import NodeParts
from dsdb.sql.errors import SqlError
from dsdb.sql.ports import PortError
from dsdb.storage.keys import Span
from tests.sim.node_sim import Host, Simulation

ACCOUNTS = 6
EACH = 100
SECONDS = 8.0


class Bank(Simulation):
    """Three nodes, and accounts in the three ranges of a table."""

    transferred = 0
    audited = 0

    async def run(self) -> None:  # type: ignore[override]  # what it gives is counted here
        async with trio.open_nursery() as self.nursery:
            for _ in range(3):
                await self.add_host()
            await self.set_up()
            self.keys = await self.list_keys()
            await self.patiently_fill()
            async with trio.open_nursery() as clients:
                for _ in range(4):
                    clients.start_soon(self.client)
                clients.start_soon(self.auditor)
                await self.trouble()
                clients.cancel_scope.cancel()
            await self.check_clean()
            self.nursery.cancel_scope.cancel()

    def parts(self, host: Host) -> NodeParts | None:
        node: Node | None = host.node
        return node.parts if host.is_up and node is not None else None

    async def patiently_fill(self) -> None:
        parts = self.parts(self.hosts[0])
        assert parts is not None
        txn = parts.transactions.begin()
        for key in self.keys:
            txn.insert(key, b"%d" % EACH)
        await txn.commit()

    async def client(self) -> None:
        while True:
            await trio.sleep(self.chance.choice((0, 0.005, 0.05)))
            parts = self.parts(self.chance.choice(self.hosts))
            if parts is None:
                continue
            source, target = self.chance.sample(self.keys, 2)
            done = trio.Event()
            self.nursery.start_soon(self.transfer_money, parts, source, target, done)  # its node may die under it
            with trio.move_on_after(5):
                await done.wait()

    async def transfer_money(self, parts: NodeParts, source: bytes, target: bytes, done: trio.Event) -> None:
        txn = parts.transactions.begin()
        try:
            there = [int(value or b"") for value in await txn.get([source, target])]
            txn.put(source, b"%d" % (there[0] - 1))
            txn.put(target, b"%d" % (there[1] + 1))
            await txn.commit()
            self.transferred += 1
        except (PortError, SqlError):
            pass  # it is tried again, as another one
        done.set()

    async def auditor(self) -> None:
        while True:
            await trio.sleep(0.1)
            parts = self.parts(self.chance.choice(self.hosts))
            if parts is not None:
                self.nursery.start_soon(self.audit, parts)

    async def audit(self, parts: NodeParts) -> None:
        try:
            found = await parts.transactions.begin().scan(Span(min(self.keys), max(self.keys) + b"\xff"))
        except (PortError, SqlError):
            return
        sums = [int(value) for key, value in found if key in self.keys]
        assert (len(sums), sum(sums)) == (ACCOUNTS, ACCOUNTS * EACH), found
        self.audited += 1

    async def trouble(self) -> None:
        until = trio.current_time() + SECONDS
        while trio.current_time() < until:
            await trio.sleep(self.chance.uniform(0.2, 0.8))
            host = self.chance.choice(self.hosts)
            if self.chance.random() < 0.25:
                self.kill(host)
                await trio.sleep(self.chance.uniform(0.1, 2))
                await self.start(host)
            elif (parts := self.parts(host)) is not None:
                key = self.chance.choice(self.keys)
                store = parts.identity.store_id
                try:
                    await parts.router.send(key, lambda desc, store=store: TransferLeaseRequest(desc.range_id, store))  # type: ignore[misc]
                except KvError:
                    pass  # it was not a voter in step

    async def check_clean(self) -> None:
        """The janitors leave nothing of what died."""
        await trio.sleep(4)
        for host in self.hosts:
            parts = self.parts(host)
            assert parts is not None
            await parts.janitor.clean_up(age_s=0)
            await parts.finisher.drain(2)
        assert not any(host.node.parts.store.has_records() for host in self.hosts)  # type: ignore[union-attr]
        await self.audit(self.parts(self.hosts[0]))  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [1, 2])
def test_no_money_comes_or_goes(seed: int) -> None:
    bank = Bank(seed, SECONDS)
    bank.chance = random.Random(seed)
    trio.run(bank.run, clock=trio.testing.MockClock(autojump_threshold=0))
    assert bank.transferred > 50
    assert bank.audited > 20
