"""Random faults under writers whose every commit is checked: nothing acknowledged is lost, nothing is applied twice, no read is stale."""

import random

import pytest
import trio
from store_cluster import Cluster, simulate

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.errors import AmbiguousResult, Conflict, KvError, Refused
from dsdb.kv.ids import SYSTEM_RANGE, RangeId, StoreId
from dsdb.kv.requests import CommitRequest, OutcomeReply, RefuseRequest, SplitRequest, TransferLeaseRequest, Write
from dsdb.raft.config import RaftConfig
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.engine.port import Family
from dsdb.storage.keys import point_span
from dsdb.store import Store, StoreConfig, StoreFrame

TABLES = RangeId(2)
KEYS = [b"\x10key%d" % number for number in range(6)]


class Counters:
    """Each client adds one to a counter by read and commit; the sum tells what was lost or applied twice."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.added = dict.fromkeys(KEYS, 0)
        self.maybe = dict.fromkeys(KEYS, 0)
        """Increments of unknown outcome."""
        self.seen = dict.fromkeys(KEYS, 0)
        """The highest value that a finished read or commit showed: later reads must not fall behind."""

    async def increment(self, key: bytes) -> None:
        cluster = self.cluster
        least = self.seen[key]
        read_ts = cluster.oracle.issue()
        value = int(await cluster.get(key, read_ts) or b"0")
        assert value >= least, f"stale read of {key!r}: {value} after {least}"
        attempt, first_ts = cluster.new_attempt(), cluster.oracle.issue()
        write = (Write(key, b"%d" % (value + 1)),)

        def make(range_id: RangeId) -> CommitRequest:
            return CommitRequest(range_id, attempt, first_ts, read_ts, write, read_ts=read_ts, reads=(point_span(key),))

        try:
            while True:
                try:
                    await cluster.call(make, key)
                    break
                except KvError as error:
                    if not isinstance(error.detail, AmbiguousResult):
                        raise
                    if cluster.chance.random() < 0.5:
                        # Give up, on the record.
                        reply = await cluster.call(lambda range_id: RefuseRequest(range_id, attempt, first_ts), key)
                        assert isinstance(reply, OutcomeReply)
                        if reply.ts is None:
                            return
                        break
        except KvError as error:
            if isinstance(error.detail, AmbiguousResult):
                self.maybe[key] += 1
                return
            if not isinstance(error.detail, Conflict | Refused):
                raise
            return
        self.added[key] += 1
        self.seen[key] = max(self.seen[key], value + 1)

    async def check(self) -> None:
        for key in KEYS:
            value = int(await self.cluster.get(key) or b"0")
            assert self.added[key] <= value <= self.added[key] + self.maybe[key], (key, value, self.added[key], self.maybe[key])


async def trouble(cluster: Cluster, chance: random.Random, until: float) -> None:
    """Kill, restart, cut off, heal, split and transfer, leaving a majority most of the time."""
    down: list[StoreId] = []
    next_range = 10
    while trio.current_time() < until:
        await trio.sleep(chance.random() * 1.5)
        what = chance.random()
        victim = chance.choice(cluster.ids)
        if what < 0.25 and not down:
            cluster.kill(victim)
            down.append(victim)
        elif what < 0.5 and down:
            await cluster.restart(down.pop())
        elif what < 0.65:
            cluster.network.isolate(victim, cluster.ids)
        elif what < 0.8:
            cluster.network.heal()
        elif what < 0.9:
            for store in list(cluster.network.stores.values()):
                for desc in store.descriptors():
                    if desc.range_id != 1 and store.holds_lease(desc.range_id):
                        try:
                            await store.serve(TransferLeaseRequest(desc.range_id, chance.choice(desc.replicas).store_id))
                        except KvError:
                            continue
        elif next_range < 13:
            key = chance.choice(KEYS)
            next_range += 1
            for store in list(cluster.network.stores.values()):
                desc = store.descriptor_for(key)
                if desc is not None and store.holds_lease(desc.range_id) and desc.start_key != key:
                    try:
                        await store.serve(SplitRequest(desc.range_id, key, RangeId(next_range)))
                    except KvError:
                        continue
    cluster.network.heal()
    for store_id in down:
        await cluster.restart(store_id)


# 319: a store leads again without what it had proposed; the latches of that must not stay.
@pytest.mark.parametrize("seed", [*range(8), 319])
def test_counters_survive_faults(seed: int) -> None:
    async def body(cluster: Cluster) -> None:
        chance = random.Random(seed)
        for store_id in cluster.ids:
            cluster.clocks[store_id].rate = 1 + chance.choice((-0.005, 0.0, 0.005))
        await cluster.replicate(TABLES, [2, 3])
        cluster.has_prompt_disks = seed % 4 >= 2
        cluster.network.spread_s = 0.01 if seed % 2 else 0.0
        cluster.network.drop = 0.02 if seed % 3 == 0 else 0.0
        counters = Counters(cluster)
        until = trio.current_time() + 15

        async def client() -> None:
            while trio.current_time() < until:
                await counters.increment(chance.choice(KEYS))
                await trio.sleep(chance.random() * 0.1)

        async def watch() -> None:
            while True:
                for range_id in range(1, 14):
                    cluster.leaseholder(RangeId(range_id))
                await trio.sleep(0.02)

        async with trio.open_nursery() as watching:
            watching.start_soon(watch)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trouble, cluster, chance, until)
                for _ in range(4):
                    nursery.start_soon(client)
            watching.cancel_scope.cancel()
        cluster.network.drop = 0.0
        await counters.check()
        assert sum(counters.added.values()) > 20
        # All replicas come to hold the same.
        stores = [cluster.store(number) for number in (1, 2, 3)]

        def is_level() -> bool:
            states = [[(desc, store.range_status(desc.range_id).applied) for desc in tables_of(store)] for store in stores]
            return states[0] == states[1] == states[2]

        await cluster.eventually(is_level)
        for desc in tables_of(stores[0]):
            contents = [content(cluster.engines[store_id], desc) for store_id in cluster.ids]
            assert contents[0] == contents[1] == contents[2], desc

    # Half of them without the core's own check of its quorum in time, so that the lease alone must do.
    raft = RaftConfig(election_ticks=60 if seed % 2 else 10)
    simulate(3, body, seed=seed, config=StoreConfig(raft=raft, log_keep_entries=20, proposal_timeout_s=2.0))


def content(engine: MemoryEngine, desc: RangeDescriptor) -> tuple[tuple[bytes, bytes], ...]:
    rows: list[tuple[bytes, bytes]] = []
    for keys, values in engine.scan(Family.DELTA, desc.start_key, desc.end_key):
        rows += zip(keys, values)
    return tuple(rows)


def tables_of(store: Store) -> list[RangeDescriptor]:
    return [desc for desc in store.descriptors() if desc.range_id != SYSTEM_RANGE]


def test_a_frame_of_an_earlier_life_that_comes_late_sets_nobody_free() -> None:
    """The connection of a process that has died may be read behind that of the next one, whose leases rest on the promise to it."""

    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        holder = await cluster.wait_leaseholder(TABLES)
        first = StoreId(1)
        assert holder.identity.store_id == first
        late = StoreFrame(sender=first, request=holder._context.liveness.request(holder._context.clock.now()))
        await trio.sleep(1)
        cluster.kill(first)
        await cluster.wait_leaseholder(TABLES, but=first)
        await cluster.restart(first)
        with trio.fail_after(20):
            while not cluster.store(1).holds_lease(TABLES):
                other = await cluster.wait_leaseholder(TABLES)
                await other.serve(TransferLeaseRequest(TABLES, first))
                await trio.sleep(0.5)
        await trio.sleep(1)
        for number in (2, 3):
            store = cluster.store(number)
            store.receive(late)
            assert store._replicas[TABLES].raft.status().is_supported, f"store {number} may vote against a leaseholder"

    simulate(3, body)
