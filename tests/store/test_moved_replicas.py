"""What a replica answers that does not lead any more, that is gone, or that is not a voter yet: an error, never half an answer."""

import pytest
import trio
from store_cluster import Cluster, simulate
from txn_desk import COMMITTED, LEFT, RIGHT, A, TxnDesk, X, on_two_ranges

from dsdb.kv.descriptor import ReplicaDescriptor
from dsdb.kv.errors import AmbiguousResult, KvError, KvErrorDetail, NotLeaseholder, RangeNotFound, Unavailable
from dsdb.kv.ids import NodeId, RangeId, StoreId
from dsdb.kv.intents import RecordReply, ResolveItem, ResolveReply, ResolveRequest
from dsdb.kv.requests import (
    ChangeReplicasRequest,
    CommitRequest,
    DescribeRequest,
    ReadRequest,
    Request,
    ScanRequest,
    TransferLeaseRequest,
    Write,
)
from dsdb.raft.messages import ReplicaId
from dsdb.storage import mvcc
from dsdb.storage.keys import Span
from dsdb.storage.mvcc import Intent
from dsdb.store import Store

TABLES = RangeId(2)
SPAN = Span(b"\x10", b"\x11")
ROWS = 50


def key(number: int) -> bytes:
    return b"\x10%08d" % number


async def refusal(store: Store, request: Request) -> KvErrorDetail:
    with pytest.raises(KvError) as caught:
        await store.serve(request)
    return caught.value.detail


async def transfer(cluster: Cluster, to: int) -> Store:
    with trio.fail_after(10):
        while (store := await cluster.wait_leaseholder(TABLES)).identity.store_id != to:
            await store.serve(TransferLeaseRequest(TABLES, StoreId(to)))
            await trio.sleep(0.5)
    return store


def test_a_scan_whose_replica_is_removed_midway_ends_with_an_error() -> None:
    """B7: a read on a removed replica finds nothing and says nothing."""

    async def body(cluster: Cluster) -> None:
        for number in range(ROWS):
            await cluster.put(key(number), b"x")
        await cluster.replicate(TABLES, [2, 3])
        old, ts = cluster.store(1), cluster.oracle.issue()
        first = await old.serve(ScanRequest(TABLES, SPAN, ts, 10, 10**6))
        rest = first.resume  # type: ignore[union-attr]
        frozen = await old.scan_snapshot(TABLES, SPAN, ts)
        parts = frozen.chunks(chunk_rows=20)
        found = next(parts)[0]

        store = await transfer(cluster, 2)
        assert isinstance(await refusal(old, ScanRequest(TABLES, rest, ts, 10, 10**6)), NotLeaseholder)
        desc = (await store.serve(DescribeRequest(TABLES))).descriptor  # type: ignore[union-attr]
        await store.serve(ChangeReplicasRequest(TABLES, desc.generation, remove=(StoreId(1),)))
        await cluster.eventually(lambda: all(one.range_id != TABLES for one in old.descriptors()))
        # Its rows are deleted here: what is still to be read must not look empty.
        for request in (ScanRequest(TABLES, rest, ts, 10, 10**6), ReadRequest(TABLES, (key(7),), ts), ReadRequest(TABLES, (key(7),), None)):
            assert await refusal(old, request) == RangeNotFound(TABLES)
            with pytest.raises(KvError):
                old.try_serve(request)
        with pytest.raises(KvError):
            await old.scan_snapshot(TABLES, SPAN, ts)
        with pytest.raises(KvError):
            await old.settle_intents(TABLES, list[tuple[bytes, Intent]](), ts)
        # What was frozen before is whole.
        for keys, _ in parts:
            found += keys
        frozen.close()
        assert found == [key(number) for number in range(ROWS)]
        whole = await store.serve(ScanRequest(TABLES, SPAN, ts, 1000, 10**6))
        assert len(whole.keys) == ROWS  # type: ignore[union-attr]

    simulate(3, body)


def test_a_replica_that_is_not_a_voter_yet_counts_for_nothing() -> None:
    """B15: a commit is acknowledged by the leader and a replica that is only being added, and lost."""

    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2])
        for number in range(ROWS):
            await cluster.put(key(number), b"x" * 1000)
        store = cluster.store(1)
        desc = (await store.serve(DescribeRequest(TABLES))).descriptor  # type: ignore[union-attr]
        added = ReplicaDescriptor(ReplicaId(0), NodeId(3), StoreId(3))

        def is_learner() -> bool:
            desc = store.descriptor_for(key(0))
            assert desc is not None
            replica = desc.replica_on(StoreId(3))
            return replica is not None and replica not in desc.voters

        async with trio.open_nursery() as nursery:

            async def add() -> None:
                try:
                    await store.serve(ChangeReplicasRequest(TABLES, desc.generation, add=(added,)))
                except KvError:
                    pass  # it may have taken too long

            nursery.start_soon(add)
            with trio.fail_after(5):
                while not is_learner():  # noqa: ASYNC110  # what is waited for has no event
                    await trio.sleep(0.0001)
            cluster.network.isolate(StoreId(2), cluster.ids)
            # The replica on store 3 gets all of it, the other voter nothing.
            request = CommitRequest(TABLES, cluster.new_attempt(), cluster.oracle.issue(), None, (Write(key(1), b"new"),))
            assert isinstance(await refusal(store, request), AmbiguousResult | NotLeaseholder | Unavailable)
            assert is_learner()
            assert cluster.leaseholder(TABLES) is None
            cluster.network.heal()
        await cluster.put(key(2), b"new")
        assert await cluster.get(key(1)) in (b"x" * 1000, b"new")

    simulate(3, body)


@pytest.mark.parametrize("is_cut_off", [True, False])
def test_a_resolve_that_meets_the_end_of_a_lease_is_done_or_refused(is_cut_off: bool) -> None:
    """B6: of two leaseholders the old one resolves nothing and says that it did; the record is removed, and the write lost."""

    async def body(desk: TxnDesk) -> None:
        cluster = desk.cluster
        await trio.sleep(1)
        txn = desk.meta()
        ts = txn.first_ts
        await desk.lay(txn, ts, {A: b"1", X: b"1"})
        await desk.stage(txn, ts, A, X)
        assert await desk.end(txn, ts, A, expected=ts) == RecordReply(COMMITTED, ts)
        old = await desk.store(RIGHT)
        others = [store_id for store_id in cluster.ids if store_id != old.identity.store_id]
        told: list[object] = []

        async def resolve() -> None:
            try:
                told.append(await old.serve(ResolveRequest(RIGHT, (ResolveItem(txn.attempt, (X,), ts),))))
            except KvError as error:
                told.append(error.detail)

        async with trio.open_nursery() as nursery:
            if is_cut_off:
                cluster.network.isolate(old.identity.store_id, cluster.ids)
                nursery.start_soon(resolve)
            else:
                # The disks of a quorum are slow while the lease moves.
                disks = [cluster.disks[store_id] for store_id in others]
                for disk in disks:
                    disk.hold()
                nursery.start_soon(resolve)
                await trio.sleep(0.05)
                assert told == []
                await old.serve(TransferLeaseRequest(RIGHT, others[0]))
                for disk in disks:
                    disk.let_go()
            with trio.fail_after(10):
                # Never two of them: `leaseholder` looks.
                while (new := cluster.leaseholder(RIGHT)) is None or new is old:  # noqa: ASYNC110
                    await trio.sleep(0.005)
        cluster.network.heal()
        await cluster.wait_leaseholder(LEFT)
        (answer,) = told
        if is_cut_off:
            # Who is not told that it is done keeps the record, and asks again.
            assert isinstance(answer, AmbiguousResult | NotLeaseholder | Unavailable), answer
        else:
            # It was in the log before the lease moved.
            assert answer == ResolveReply()
            assert mvcc.get_intent(cluster.engines[new.identity.store_id], X) is None
        assert await desk.read(X) == b"1"
        await desk.resolve(txn, ts, X)
        await desk.remove(txn)
        assert await desk.read(X) == b"1"

    on_two_ranges(body, stores=3)
