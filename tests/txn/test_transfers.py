"""Transfers between accounts in several ranges, on whole nodes that crash, and whose leases move: no money comes or goes, at any moment."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
import trio
import trio.testing

from dsdb.env import Address
from dsdb.kv.errors import KvError
from dsdb.kv.ids import RangeId
from dsdb.kv.requests import SplitRequest, TransferLeaseRequest
from dsdb.node.config import NodeConfig
from dsdb.node.node import Node
from dsdb.node.parts import NodeParts
from dsdb.sql.errors import SqlError
from dsdb.sql.ports import PortError
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.errors import StorageError
from dsdb.storage.keys import TABLE_PREFIX, Span
from tests.sim.network import SimClock, SimNetwork

T = TypeVar("T")
ACCOUNTS = 6
EACH = 100
SECONDS = 5.0
KEYS = [TABLE_PREFIX + bytes([200 + number // 2, number]) for number in range(ACCOUNTS)]
"""Two in each of three ranges."""


class PromptDisk:
    """Syncs at once, or after a moment."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance

    async def run(self, call: Callable[[], T]) -> T:
        with trio.CancelScope(shield=True):
            await trio.sleep(self._chance.choice((0.0005, 0.002)))
        return call()

    def run_promptly(self, call: Callable[[], object]) -> bool:
        return False

    def close(self) -> None:
        pass


@dataclass
class Host:
    """A machine: what survives its crash."""

    name: str
    address: Address
    engine: MemoryEngine = field(default_factory=MemoryEngine)
    node: Node | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    is_up: bool = False


class Bank:
    """Three nodes, and accounts in three ranges."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.network = SimNetwork(self.chance)
        self.hosts = [Host(f"h{number}", Address(f"10.0.0.{number}", 7432)) for number in (1, 2, 3)]
        self.transferred = 0
        self.audited = 0

    async def run(self) -> None:
        async with trio.open_nursery() as self.nursery:
            for host in self.hosts:
                await self.start(host)
            await self.set_up()
            async with trio.open_nursery() as clients:
                for _ in range(4):
                    clients.start_soon(self.client)
                clients.start_soon(self.auditor)
                await self.trouble()
                clients.cancel_scope.cancel()
            await self.check_clean()
            self.nursery.cancel_scope.cancel()

    async def start(self, host: Host) -> None:
        with trio.fail_after(60):
            await self.nursery.start(self.live, host)

    async def live(self, host: Host, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        host.node = Node(
            NodeConfig(store=None, listen=host.address, http=None, join=() if host is self.hosts[0] else (self.hosts[0].address,)),
            clock=SimClock(drift=0, offset_s=0),
            network=self.network.host(host.name),
            disk=PromptDisk(self.chance),
            chance=random.Random(self.chance.getrandbits(64)),
            engine=host.engine,
        )
        with trio.CancelScope() as host.scope:
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(host.node.run)
                    host.is_up = True
                    task_status.started()
                    await host.node.ended.wait()
            except* StorageError:
                pass  # its disk was taken from it

    def kill(self, host: Host) -> None:
        host.engine = host.engine.crash(self.chance)  # first: what the dying node still writes does not count
        host.is_up = False
        host.scope.cancel()
        self.network.cut(host.name)

    async def set_up(self) -> None:
        parts = self.parts(self.hosts[0])
        assert parts is not None
        for number, key in enumerate(KEYS[2::2]):
            range_id = RangeId(500 + number)
            await parts.router.send(key, lambda desc, key=key, right=range_id: SplitRequest(desc.range_id, key, right))  # type: ignore[misc]
        with trio.fail_after(120):
            while not all(len(desc.voters) == 3 for desc in parts.store.descriptors()):  # noqa: ASYNC110 (nothing else tells it)
                await trio.sleep(0.2)
        txn = parts.transactions.begin()
        for key in KEYS:
            txn.insert(key, b"%d" % EACH)
        await txn.commit()

    def parts(self, host: Host) -> NodeParts | None:
        return host.node.parts if host.is_up and host.node is not None else None

    async def client(self) -> None:
        while True:
            await trio.sleep(self.chance.choice((0, 0.005, 0.05)))
            parts = self.parts(self.chance.choice(self.hosts))
            if parts is None:
                continue
            source, target = self.chance.sample(KEYS, 2)
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
            found = await parts.transactions.begin().scan(Span(min(KEYS), max(KEYS) + b"\xff"))
        except (PortError, SqlError):
            return
        sums = [int(value) for key, value in found if key in KEYS]
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
                key = self.chance.choice(KEYS)
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
    bank = Bank(seed)
    trio.run(bank.run, clock=trio.testing.MockClock(autojump_threshold=0))
    assert bank.transferred > 50
    assert bank.audited > 20
