"""Commits over many ranges while messages are lost, late and doubled, gateways die at every step, leases move and ranges are split.

Transactions append to lists and read others; `tests.checkers` decide whether some strictly serial order explains what they saw.
"""

import random
from collections import Counter

import msgspec
import pytest
import trio
import trio.testing

from dsdb.sql.ports import AmbiguousCommitError, PortError
from dsdb.storage.keys import Span
from tests.checkers import listappend, timestamps
from tests.checkers.history import Append, ReadList, Recorder, refuse
from tests.txn.fake_ranges import FakeCluster, Gateway, Link

SEEDS = 90
CLIENTS = 4
TXNS = 8
KEYS = [b"\x10" + bytes([letter]) for letter in b"abcdefgh"]
SPLITS = [b"\x10c", b"\x10e"]
LATER_SPLITS = [b"\x10b", b"\x10d", b"\x10g"]


def decode(stored: bytes | None) -> tuple[int, ...]:
    return () if stored is None else msgspec.msgpack.decode(stored, type=tuple[int, ...])


class Run:
    """One seed."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.cluster = FakeCluster(self.chance, SPLITS)
        self.recorder = Recorder()
        self.seen: Counter[str] = Counter()
        self.gateways: list[Gateway] = []
        self.running = CLIENTS

    async def run(self) -> None:
        async with trio.open_nursery() as self.nursery:
            for process in range(CLIENTS):
                self.nursery.start_soon(self.client, process)
            self.nursery.start_soon(self.trouble)
            while self.running:  # noqa: ASYNC110 (nothing else tells it)
                await trio.sleep(0.1)
            await trio.sleep(20)  # late copies, and the deadlines of the dead
            await self.check()
            self.nursery.cancel_scope.cancel()

    async def gateway(self, *, is_calm: bool = False) -> Gateway:
        link = Link(self.cluster, random.Random(self.chance.getrandbits(64)), is_calm=is_calm)
        link.nursery = self.nursery
        if not is_calm and self.chance.random() < 0.6:
            link.messages_left = self.chance.randint(1, 60)
        gateway = Gateway(self.cluster, link, len(self.gateways) + 1)
        self.gateways.append(gateway)
        await self.nursery.start(gateway.finisher.run)
        return gateway

    async def client(self, process: int) -> None:
        gateway = await self.gateway()
        for _ in range(TXNS):
            if gateway.link.is_dead:
                gateway = await self.gateway()
            done = trio.Event()
            self.nursery.start_soon(self.transact, gateway, process, done)
            with trio.move_on_after(25):
                await done.wait()
            await trio.sleep(self.chance.choice((0, 0, 0.01, 0.3)))
        self.running -= 1

    async def transact(self, gateway: Gateway, process: int, done: trio.Event) -> None:
        chance = self.chance
        keys = chance.sample(range(len(KEYS)), chance.choice((1, 2, 3, 4)))
        appended = keys[: chance.choice((0, 1, 2, 2, 3))]
        record = self.recorder.begin(process)
        txn = gateway.transactions.begin()
        lists: dict[int, tuple[int, ...]] = {}
        try:
            for key in keys:
                if chance.random() < 0.2:
                    lists[key] = decode(dict(await txn.scan(Span(KEYS[key], KEYS[key] + b"\xff"))).get(KEYS[key]))
                else:
                    lists[key] = decode((await txn.get([KEYS[key]]))[0])
                record.ops.append(ReadList(key, lists[key]))
            await trio.sleep(chance.choice((0, 0, 0.01, 1.5)))
            for key in appended:
                record.ops.append(Append(key, record.number))
                txn.put(KEYS[key], msgspec.msgpack.encode((*lists[key], record.number)))
            ts = await txn.commit()
            if not gateway.link.is_dead:
                self.recorder.ok(record, ts)
                self.seen["commits"] += 1
        except AmbiguousCommitError:
            self.seen["unknown"] += 1
        except PortError as error:
            self.seen[type(error).__name__] += 1
            if not gateway.link.is_dead:
                self.recorder.fail(record, str(error))
        done.set()

    async def trouble(self) -> None:
        splits = list(LATER_SPLITS)
        while True:
            await trio.sleep(self.chance.choice((0.01, 0.05, 0.3)))
            if splits and self.chance.random() < 0.2:
                self.cluster.split(splits.pop(self.chance.randrange(len(splits))))
            elif self.chance.random() < 0.4:
                ranges = [one for _, one in sorted(self.cluster.ranges.items())]
                self.chance.choice(ranges[1:]).move_lease()

    async def check(self) -> None:
        gateway = await self.gateway(is_calm=True)
        txn = gateway.transactions.begin()
        last = {key: decode((await txn.get([stored]))[0]) for key, stored in enumerate(KEYS)}
        record = self.recorder.begin(CLIENTS)
        record.ops += [ReadList(key, values) for key, values in last.items()]
        self.recorder.ok(record, await txn.commit())
        history = self.recorder.history()
        assert {each.ts for each in history.txns if each.ts is not None} <= self.cluster.oracle.issued
        for one in self.cluster.ranges.values():
            assert {ts for versions in one.versions.values() for ts, _ in versions} <= self.cluster.oracle.issued
        refuse([*listappend.check(history, process=False), *timestamps.check(history)], history)
        await gateway.janitor.clean_up(age_s=0)
        await gateway.finisher.drain(5)
        assert not self.cluster.has_records()
        assert [one.intents for one in self.cluster.ranges.values() if one.intents] == []
        for one in self.gateways:
            for name, _, count in one.counters.entries():
                self.seen[name] += count
        for name, _, count in self.cluster.settlement._counters.entries():
            self.seen[name] += count
        self.seen += self.cluster.seen


def run(seed: int) -> Counter[str]:
    one = Run(seed)
    trio.run(one.run, clock=trio.testing.MockClock(autojump_threshold=0))
    return one.seen


@pytest.mark.parametrize("batch", range(3))
def test_every_history_is_strictly_serial(batch: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(batch, SEEDS, 3):
        seen += run(seed)
    missing = {"parallel_commits", "one_range_commits", "bumps", "recoveries_committed", "recoveries_aborted"} - set(seen)
    assert not missing, seen
