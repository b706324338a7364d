"""Transfers between accounts in two ranges, under crashes of gateways and stores, moves of leases and splits: no money is made or lost."""

import contextlib
import random
from collections.abc import Awaitable, Callable, Mapping

import pytest
import trio
from txn_desk import ABORTED, BORDER, COMMITTED, GONE, LEFT, RIGHT, STAGING, TxnDesk, on_two_ranges

from dsdb.kv.errors import Conflict, IntentInTheWay, KvError
from dsdb.kv.ids import RangeId, StoreId
from dsdb.kv.intents import RecordReply, TxnMeta
from dsdb.kv.requests import BumpReply, CommitReply, CommitRequest, ReadRequest, RefreshRequest, SplitRequest, TransferLeaseRequest, Write
from dsdb.storage.keys import point_span
from dsdb.storage.timestamp import Timestamp
from dsdb.store import StoreConfig

ACCOUNTS = [b"\x10b%d" % number for number in range(3)] + [b"\x10x%d" % number for number in range(3)]
BALANCE = 100


class Unknown(Exception):
    """Nobody knows what became of a transfer."""


class Gateway:
    """Makes transfers as a gateway would, and may be cut off at any moment."""

    def __init__(self, desk: TxnDesk, chance: random.Random) -> None:
        self.desk = desk
        self.chance = chance
        self.told: dict[bytes, bool] = {}
        """Log keys of transfers whose client was told, and what."""
        self.sent: dict[bytes, tuple[bytes, bytes, int]] = {}
        """Log key → from, to, amount: of all transfers that may have been committed."""

    async def read(self, key: bytes, ts: Timestamp, attempt: object = None) -> int:
        while True:
            try:
                reply = await self.desk.call(key, lambda range_id: ReadRequest(range_id, (key,), ts, attempt))  # type: ignore[arg-type]
                return int(reply.values[0])
            except KvError as error:
                if not isinstance(error.detail, IntentInTheWay):
                    raise

    async def transfer(self, number: int) -> None:
        desk, chance = self.desk, self.chance
        log_key = b"\x10%s%04d" % (chance.choice([b"l", b"z"]), number)
        source, target = chance.sample(ACCOUNTS, 2)
        amount = chance.randint(1, 5)
        read_ts = desk.now()
        anchor = chance.choice([source, target, log_key])
        meta = TxnMeta(desk.cluster.new_attempt(), anchor, read_ts)
        balances = [await self.read(key, read_ts, meta.attempt) for key in (source, target)]
        if chance.random() < 0.3:
            await trio.sleep(chance.random() * 0.01)
        writes = {source: b"%d" % (balances[0] - amount), target: b"%d" % (balances[1] + amount), log_key: b"1"}
        self.sent[log_key] = source, target, amount
        one_range = len({key < BORDER for key in writes}) == 1
        commit = self.commit_one if one_range and chance.random() < 0.7 else self.commit_many
        try:
            self.told[log_key] = await commit(meta, read_ts, (source, target), writes)
        except Unknown:
            pass

    async def commit_one(self, meta: TxnMeta, read_ts: Timestamp, read: tuple[bytes, ...], writes: Mapping[bytes, bytes]) -> bool:
        ts = read_ts if self.chance.random() < 0.5 else None
        rows = tuple([Write(key, value) for key, value in writes.items()])
        spans = tuple([point_span(key) for key in read])
        first_ts = self.desk.now()

        def make(range_id: RangeId) -> CommitRequest:
            return CommitRequest(range_id, meta.attempt, first_ts, ts, rows, read_ts, spans)

        try:
            reply = await self.desk.call(min(writes), make)
        except KvError as error:
            if isinstance(error.detail, Conflict | IntentInTheWay):
                return False
            raise Unknown from error
        return isinstance(reply, CommitReply)

    async def commit_many(self, meta: TxnMeta, read_ts: Timestamp, read: tuple[bytes, ...], writes: Mapping[bytes, bytes]) -> bool:
        desk = self.desk
        ts = read_ts if self.chance.random() < 0.7 else desk.now()
        missing = dict(writes)
        keys = (meta.anchor, *[key for key in writes if key != meta.anchor])
        may_be_staged = False
        for _ in range(4):
            if ts > read_ts and not await self.refresh(meta, read, read_ts, ts):
                break
            answers: dict[bytes, RecordReply | BumpReply | Timestamp | None] = {}

            async def prewrite(key: bytes, answers: dict[bytes, object] = answers, ts: Timestamp = ts) -> None:  # type: ignore[assignment]
                if self.chance.random() < 0.1:
                    desk.cluster.nursery.start_soon(self.late, desk.prewrite, meta, ts, {key: writes[key]})
                try:
                    answers[key] = await desk.prewrite(meta, ts, {key: writes[key]})
                except KvError:
                    answers[key] = None

            async def stage(answers: dict[bytes, object] = answers, ts: Timestamp = ts) -> None:  # type: ignore[assignment]
                if self.chance.random() < 0.1:
                    desk.cluster.nursery.start_soon(self.late, desk.stage, meta, ts, *keys)
                try:
                    answers[b""] = await desk.stage(meta, ts, *keys)
                except KvError:
                    answers[b""] = None

            async with trio.open_nursery() as nursery:
                nursery.start_soon(stage)
                for key in missing:
                    nursery.start_soon(prewrite, key)
            staged = answers.pop(b"")
            may_be_staged = may_be_staged or staged is None or (isinstance(staged, RecordReply) and staged.status is STAGING)
            if isinstance(staged, RecordReply) and staged.status is COMMITTED:
                return await self.finish(meta, staged.ts, writes)
            if staged is None or (isinstance(staged, RecordReply) and staged.status in (ABORTED, GONE)) or None in answers.values():
                break
            is_bumped = isinstance(staged, BumpReply) or any(p > ts for p in answers.values())  # type: ignore[operator]
            missing = {}
            if not is_bumped:
                return await self.finish(meta, ts, writes)
            ts = desk.now()
        ended = await self.once(desk.end(meta, None))
        if ended.status is COMMITTED:
            return await self.finish(meta, ended.ts, writes)
        if ended.status is GONE and may_be_staged:
            raise Unknown
        desk.cluster.nursery.start_soon(self.drop, meta, tuple(writes))
        return False

    async def late(self, send: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Send a copy that comes late."""
        await trio.sleep(self.chance.random() * self.chance.choice([0.01, 0.1, 1.0]))
        with contextlib.suppress(KvError):
            await send(*arguments)

    async def once(self, work: object) -> RecordReply:
        try:
            return await work  # type: ignore[misc]
        except KvError as error:
            raise Unknown from error

    async def refresh(self, meta: TxnMeta, read: tuple[bytes, ...], low: Timestamp, high: Timestamp) -> bool:
        try:
            for key in read:
                spans = (point_span(key),)
                await self.desk.call(key, lambda range_id, spans=spans: RefreshRequest(range_id, meta.attempt, spans, low, high))  # type: ignore[misc]
        except KvError:
            return False
        return True

    async def finish(self, meta: TxnMeta, ts: Timestamp | None, writes: Mapping[bytes, bytes]) -> bool:
        """The client has its answer; the rest may be lost."""
        assert ts is not None

        async def rest() -> None:
            with trio.move_on_after(self.chance.choice([0.0, 0.004, 10.0, 10.0])):
                try:
                    ended = await self.desk.end(meta, ts, expected=ts)
                    assert (ended.status, ended.ts) == (COMMITTED, ts), ended
                    await self.resolve(meta, ts, tuple(writes))
                    await self.desk.remove(meta)
                except KvError:
                    pass

        self.desk.cluster.nursery.start_soon(rest)
        return True

    async def resolve(self, meta: TxnMeta, ts: Timestamp | None, keys: tuple[bytes, ...]) -> None:
        for key in keys:
            await self.desk.resolve(meta, ts, key)

    async def drop(self, meta: TxnMeta, keys: tuple[bytes, ...]) -> None:
        with contextlib.suppress(KvError):
            await self.resolve(meta, None, keys)


async def total(desk: TxnDesk, gateway: Gateway) -> None:
    ts = desk.now()
    balances = [await gateway.read(key, ts) for key in ACCOUNTS]
    assert sum(balances) == BALANCE * len(ACCOUNTS), balances


@pytest.mark.parametrize("seed", range(6))
def test_no_money_is_made_or_lost(seed: int) -> None:
    chance = random.Random(seed)

    async def body(desk: TxnDesk) -> None:
        cluster = desk.cluster
        for key in ACCOUNTS:
            await desk.write(key, b"%d" % BALANCE)
        gateway = Gateway(desk, chance)
        numbers = iter(range(10_000))

        async def client() -> None:
            for _ in range(25):
                with trio.move_on_after(10.0 if chance.random() < 0.8 else chance.random() * 0.02):
                    await gateway.transfer(next(numbers))

        async def reader() -> None:
            for _ in range(15):
                await total(desk, gateway)
                await trio.sleep(chance.random() * 0.05)

        async def mover() -> None:
            for step in range(6):
                await trio.sleep(chance.random() * 0.5)
                range_id = chance.choice([LEFT, RIGHT])
                store = await cluster.wait_leaseholder(range_id)
                await store.serve(TransferLeaseRequest(range_id, StoreId(chance.randint(1, 3))))
                if step == 1:
                    victim = StoreId(chance.randint(2, 3))
                    cluster.kill(victim)
                    await trio.sleep(chance.random())
                    await cluster.restart(victim)
                if step == 3:
                    await cluster.call(lambda range_id: SplitRequest(range_id, ACCOUNTS[1], RangeId(9)), ACCOUNTS[1])

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(client)
            nursery.start_soon(reader)
            nursery.start_soon(mover)
        await total(desk, gateway)
        # Whatever a client was told is so, and the balances are those of what was committed.
        ts = desk.now()
        expected = dict.fromkeys(ACCOUNTS, BALANCE)
        for log_key, (source, target, amount) in gateway.sent.items():
            is_there = await desk.read(log_key, ts) is not None
            assert gateway.told.get(log_key, is_there) == is_there, log_key
            if is_there:
                expected[source] -= amount
                expected[target] += amount
        assert {key: await gateway.read(key, ts) for key in ACCOUNTS} == expected
        assert sum(gateway.told.values()) > 20

    on_two_ranges(body, stores=3, config=StoreConfig(verdicts_max=16, passable_max=8, timestamp_cache_points_max=32))
