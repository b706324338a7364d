"""Replicas that are not alike: found by their checksums, or by reading, taken out of service, and made anew from their peers."""

import pytest
import trio
from store_cluster import Cluster, simulate

from dsdb.kv.errors import DiskTrouble, KvError
from dsdb.kv.ids import RangeId, StoreId
from dsdb.kv.requests import ReadRequest, SplitRequest, TransferLeaseRequest
from dsdb.raft.messages import ReplicaId
from dsdb.storage.engine.port import Family
from dsdb.storage.errors import CorruptionError
from dsdb.storage.timestamp import MAX_TIMESTAMP, Timestamp
from dsdb.store import Store, StoreConfig
from dsdb.store.checksum import Judgement, VersionFilter, checksum, judge
from dsdb.store.consistency import RangeCheck
from dsdb.store.state import ReplicaKeys

TABLES = RangeId(2)
ROWS = 40


def key(number: int) -> bytes:
    return b"\x10%08d" % number


async def filled(cluster: Cluster) -> None:
    for number in range(ROWS):
        await cluster.put(key(number), b"value %d" % number)
    await cluster.replicate(TABLES, [2, 3])


async def lead(cluster: Cluster, to: int) -> Store:
    with trio.fail_after(10):
        while (store := await cluster.wait_leaseholder(TABLES)).identity.store_id != to:
            await store.serve(TransferLeaseRequest(TABLES, StoreId(to)))
            await trio.sleep(0.5)
    return store


def damage(cluster: Cluster, store_id: int, number: int, *, delete: bool = False) -> None:
    """Change what a store has of a key, behind its back."""
    engine = cluster.engines[StoreId(store_id)]
    stored = engine.first(Family.DELTA, key(number), key(number + 1))
    assert stored is not None
    batch = engine.new_batch()
    if delete:
        batch.delete(Family.DELTA, stored[0])
    else:
        batch.put(Family.DELTA, stored[0], stored[1][:-1] + bytes([stored[1][-1] ^ 0x40]))
    engine.write(batch)


def digests(cluster: Cluster) -> set[bytes]:
    found = set()
    for store in cluster.network.stores.values():
        if store.range_status(TABLES) is not None:
            snapshot = cluster.engines[store.identity.store_id].snapshot()
            found.add(checksum(snapshot, ReplicaKeys(TABLES)))
            snapshot.release()
    return found


def problems(check: RangeCheck) -> dict[int, str]:
    return {found.store_id: found.problem for found in check.replicas if found.problem}


async def wait_repaired(cluster: Cluster, old: ReplicaId, store_id: int) -> None:
    def is_repaired() -> bool:
        status = cluster.store(store_id).range_status(TABLES)
        if status is None or status.damage is not None:
            return False
        desc = status.descriptor
        member = desc.replica_on(StoreId(store_id))
        return member is not None and member.replica_id != old and len(desc.voters) == 3 and len(digests(cluster)) == 1

    await cluster.eventually(is_repaired, timeout_s=30.0)
    for number in range(ROWS):
        assert await cluster.get(key(number)) == b"value %d" % number


def replica_on(cluster: Cluster, store_id: int) -> ReplicaId:
    status = cluster.store(store_id).range_status(TABLES)
    assert status is not None
    member = status.descriptor.replica_on(StoreId(store_id))
    assert member is not None
    return member.replica_id


def test_replicas_that_are_alike_agree() -> None:
    async def body(cluster: Cluster) -> None:
        await filled(cluster)
        store = await lead(cluster, 1)
        await store.serve(SplitRequest(TABLES, key(20), RangeId(50)))
        await cluster.put(key(3), None)
        check = await store.consistency.check(TABLES, is_urgent=True)
        assert problems(check) == {}
        assert len(check.replicas) == 3
        assert not any(found.is_silent for found in check.replicas)
        right = await cluster.wait_leaseholder(RangeId(50))
        assert problems(await right.consistency.check(RangeId(50), is_urgent=True)) == {}

    simulate(3, body)


@pytest.mark.parametrize("delete", [False, True])
@pytest.mark.parametrize("store_id", [1, 2])
def test_a_replica_that_most_contradict_is_made_anew(store_id: int, delete: bool) -> None:
    """Of a follower, and of the leaseholder itself."""

    async def body(cluster: Cluster) -> None:
        await filled(cluster)
        store = await lead(cluster, 1)
        damage(cluster, store_id, 7, delete=delete)
        old = replica_on(cluster, store_id)
        check = await store.consistency.check(TABLES, is_urgent=True)
        assert list(problems(check)) == [store_id]
        await wait_repaired(cluster, old, store_id)
        store = await cluster.wait_leaseholder(TABLES)
        assert problems(await store.consistency.check(TABLES, is_urgent=True)) == {}

    simulate(3, body)


def test_a_pass_finds_it_without_being_asked_and_then_rests() -> None:
    async def body(cluster: Cluster) -> None:
        await filled(cluster)
        store = await lead(cluster, 1)
        damage(cluster, 3, 11)
        old = replica_on(cluster, 3)
        await trio.sleep(70)
        await wait_repaired(cluster, old, 3)
        await trio.sleep(200)
        statistics = store.statistics()
        assert statistics["check_mismatches"] == 1
        assert statistics["replicas_repaired"] == 1
        checks, frames = statistics["checks"], cluster.network.frames
        await trio.sleep(600)
        assert store.statistics()["checks"] == checks
        assert store.statistics()["groups_awake"] == 0
        assert cluster.network.frames - frames < 600 / 0.15 * 6 * 1.5
        await cluster.put(key(1), b"value 1")
        await trio.sleep(130)
        assert store.statistics()["checks"] == checks + 1

    simulate(3, body, config=StoreConfig(check_interval_s=60.0))


def test_a_replica_that_cannot_be_read_is_made_anew() -> None:
    async def body(cluster: Cluster) -> None:
        await filled(cluster)
        store = await lead(cluster, 1)
        engine = cluster.engines[StoreId(1)]
        old = replica_on(cluster, 1)
        real = engine.first

        def first(family: Family, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
            if family is Family.DELTA and start.startswith(key(5)):
                raise CorruptionError("a block has a wrong checksum")
            return real(family, start, end)

        engine.first = first  # type: ignore[method-assign]  # a disk that has gone bad
        with pytest.raises(KvError) as caught:
            await store.serve(ReadRequest(TABLES, (key(5),), None))
        assert isinstance(caught.value.detail, DiskTrouble)
        assert caught.value.detail.damaged
        engine.first = real  # type: ignore[method-assign]
        await wait_repaired(cluster, old, 1)

    simulate(3, body)


def test_quarantine_outlasts_a_restart() -> None:
    async def body(cluster: Cluster) -> None:
        await filled(cluster)
        store = await lead(cluster, 1)
        # Two of three: nobody may be removed while the third is gone, as there would be no quorum.
        damage(cluster, 2, 3)
        old = replica_on(cluster, 2)
        cluster.network.cut |= {(StoreId(2), StoreId(3)), (StoreId(3), StoreId(2))}
        await store.consistency.check(TABLES, is_urgent=True)
        await cluster.eventually(lambda: cluster.store(2).statistics()["replicas_quarantined"] == 1)
        cluster.network.isolate(StoreId(2), cluster.ids)
        await trio.sleep(0.2)
        cluster.kill(StoreId(2))
        await cluster.restart(StoreId(2))
        status = cluster.store(2).range_status(TABLES)
        assert status is not None
        assert "differs" in (status.damage or "")
        assert cluster.store(2).statistics()["replicas_quarantined"] == 1
        cluster.network.heal()
        await wait_repaired(cluster, old, 2)

    simulate(3, body)


def test_without_a_majority_there_is_an_alarm_only() -> None:
    async def body(cluster: Cluster) -> None:
        for number in range(ROWS):
            await cluster.put(key(number), b"value %d" % number)
        await cluster.replicate(TABLES, [2])
        store = await lead(cluster, 1)
        damage(cluster, 2, 3)
        check = await store.consistency.check(TABLES, is_urgent=True)
        assert check.is_undecided
        assert sorted(problems(check)) == [1, 2]
        await trio.sleep(10)
        assert store.statistics()["check_alarms"] == 1
        assert [one.statistics()["replicas_quarantined"] for one in cluster.network.stores.values()] == [0, 0]

    simulate(2, body)


def test_a_silent_replica_is_not_accused() -> None:
    async def body(cluster: Cluster) -> None:
        await filled(cluster)
        store = await lead(cluster, 1)
        cluster.kill(StoreId(3))
        await trio.sleep(2)
        check = await store.consistency.check(TABLES, is_urgent=True)
        assert problems(check) == {}
        assert [found.store_id for found in check.replicas if found.is_silent] == [3]

    simulate(3, body)


def test_writes_go_on_while_ranges_are_checked_and_repaired() -> None:
    async def body(cluster: Cluster) -> None:
        await filled(cluster)
        store = await lead(cluster, 1)
        old = replica_on(cluster, 2)
        written: dict[int, bytes] = {}
        is_over = False

        async def write(first: int) -> None:
            number = 0
            while not is_over:
                number += 1
                at = first + number % 10
                value = b"%d" % number
                await cluster.put(key(at), value)
                written[at] = value
                await trio.sleep(0.003)

        async with trio.open_nursery() as nursery:
            for writer in range(3):
                nursery.start_soon(write, 1000 + 10 * writer)
            for _ in range(5):
                assert problems(await store.consistency.check(TABLES, is_urgent=True)) == {}
            damage(cluster, 2, 9, delete=True)
            await store.consistency.check(TABLES, is_urgent=True)
            await trio.sleep(10)
            is_over = True
        await wait_repaired(cluster, old, 2)
        for at, value in written.items():
            assert await cluster.get(key(at)) == value
        leader = await cluster.wait_leaseholder(TABLES)
        assert problems(await leader.consistency.check(TABLES, is_urgent=True)) == {}

    simulate(3, body)


def test_all_replicas_are_summed_up_at_one_place_of_the_log() -> None:
    """Also one that learns of that place together with what follows it."""

    async def body(cluster: Cluster) -> None:
        await filled(cluster)
        store = await lead(cluster, 1)
        await trio.sleep(1)
        for number in range(5):
            found: list[RangeCheck] = []

            async def check(found: list[RangeCheck] = found) -> None:
                found.append(await store.consistency.check(TABLES, is_urgent=True))

            async with trio.open_nursery() as nursery:
                cluster.network.cut.add((StoreId(1), StoreId(3)))
                nursery.start_soon(check)
                await trio.sleep(0.0005)
                for at in range(5):
                    await cluster.put(key(100 + at), b"%d" % number)
                cluster.network.heal()
            assert problems(found[0]) == {}
            assert not any(one.is_silent for one in found[0].replicas)

    simulate(3, body)


def test_who_is_wrong() -> None:
    one, two, three = ReplicaId(1), ReplicaId(2), ReplicaId(3)
    assert judge(3, {one: b"a", two: b"a", three: b"a"}) == Judgement((), is_undecided=False)
    assert judge(3, {one: b"a", two: b"b", three: b"a"}) == Judgement((two,), is_undecided=False)
    assert judge(3, {one: b"a", two: b"b", three: b"c"}) == Judgement((), is_undecided=True)
    assert judge(3, {one: b"a", two: b"b"}) == Judgement((), is_undecided=True)
    assert judge(5, {one: b"a", two: b"a", three: b"b"}) == Judgement((), is_undecided=True)
    assert judge(3, {one: b"a"}) == Judgement((), is_undecided=False)


def test_what_nobody_can_read_any_more_does_not_count() -> None:
    def version(number: int, ts: int) -> bytes:
        return key(number) + (MAX_TIMESTAMP - ts).to_bytes(8, "big")

    rows = [
        (key(1) + bytes(8), b"\x02intent"),
        (version(1, 30), b"\x00new"),
        (version(1, 20), b"\x00at the threshold"),
        (version(1, 10), b"\x00hidden"),
        (version(2, 19), b"\x01"),
        (version(2, 10), b"\x00hidden by a tombstone"),
        (version(3, 21), b"\x01"),
        (version(3, 5), b"\x00still seen"),
    ]
    seen = VersionFilter(Timestamp(20))
    kept: list[bytes] = []
    for row in rows:
        kept += seen.visible([row[0]], [row[1]])[1]
    assert kept == [b"\x02intent", b"\x00new", b"\x00at the threshold", b"\x01", b"\x00still seen"]
