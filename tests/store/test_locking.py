"""Locking reads at a leaseholder: who waits for whom, what is read under a lock, and what becomes of locks with commits and leases."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from store_cluster import Cluster, simulate

from dsdb.kv.errors import InvalidRequest, KvError, KvErrorDetail, LockNotAvailable, NotLeaseholder, RangeKeyMismatch, Unavailable
from dsdb.kv.ids import AttemptId, RangeId
from dsdb.kv.locks import KeepLocksRequest, LockedReadReply, LockedReadRequest, LockWait, NewerReply, UnlockReply, UnlockRequest
from dsdb.kv.requests import CommitReply, CommitRequest, RefuseRequest, Reply, Request, SplitRequest, TransferLeaseRequest, Write
from dsdb.storage.keys import point_span
from dsdb.storage.timestamp import Timestamp
from dsdb.store import Store

TABLES = RangeId(2)
A, B, C = b"\x10a", b"\x10b", b"\x10c"


class Client:
    """A transaction that sends its requests itself."""

    def __init__(self, cluster: Cluster, store: Store) -> None:
        self.cluster = cluster
        self.store = store
        self.attempt: AttemptId = cluster.new_attempt()
        self.start_ts = cluster.oracle.issue()
        self.holds = False

    def request(self, *keys: bytes, ts: Timestamp | None = None, wait: LockWait = LockWait.WAIT, wait_s: float = 30.0) -> LockedReadRequest:
        return LockedReadRequest(TABLES, keys, ts, self.attempt, self.start_ts, wait, self.holds, wait_s)

    async def lock(self, *keys: bytes, **more: object) -> Reply:
        request = self.request(*keys, **more)  # type: ignore[arg-type]
        reply = self.store.try_serve(request) or await self.store.serve(request)
        self.holds = True
        return reply

    async def value(self, key: bytes) -> bytes | None:
        reply = await self.lock(key)
        assert isinstance(reply, LockedReadReply), reply
        return reply.values[0]

    async def commit(self, key: bytes, value: bytes, read_ts: Timestamp | None = None) -> Reply:
        reads = () if read_ts is None else (point_span(key),)
        first_ts = self.cluster.oracle.issue()
        return await self.store.serve(CommitRequest(TABLES, self.attempt, first_ts, None, (Write(key, value),), read_ts, reads))


async def refusal(awaited: Awaitable[Reply]) -> KvErrorDetail:
    with pytest.raises(KvError) as caught:
        await awaited
    return caught.value.detail


def on_one_store(body: Callable[[Callable[[], Client]], Awaitable[None]]) -> None:
    async def run(cluster: Cluster) -> None:
        store = await cluster.wait_leaseholder(TABLES)
        await body(lambda: Client(cluster, store))

    simulate(1, run)


def test_increments_of_one_row_under_its_lock_never_conflict() -> None:
    async def body(client: Callable[[], Client]) -> None:
        async def increment() -> None:
            one = client()
            reply = await one.lock(A)
            assert isinstance(reply, LockedReadReply)
            value = int(reply.values[0] or b"0") + 1
            assert isinstance(await one.commit(A, b"%d" % value, reply.ts), CommitReply)

        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(increment)
        last = client()
        assert await last.value(A) == b"16"
        assert [entry.attempt for _, entry in last.store.locks()] == [last.attempt], "a commit gives its locks back"

    on_one_store(body)


def test_nowait_and_skip_do_not_wait() -> None:
    async def body(client: Callable[[], Client]) -> None:
        holder, other = client(), client()
        await holder.lock(B)
        began = trio.current_time()
        assert await refusal(other.lock(A, B, wait=LockWait.NOWAIT)) == LockNotAvailable(B)
        reply = await other.lock(A, B, C, wait=LockWait.SKIP)
        assert isinstance(reply, LockedReadReply)
        assert reply.locked == (True, False, True)
        everything = await client().lock(A, B, wait=LockWait.SKIP)
        assert isinstance(everything, LockedReadReply)
        assert everything.locked == (False, False)
        assert trio.current_time() - began < 0.1
        assert [entry.attempt for _, entry in holder.store.locks()] == [other.attempt, holder.attempt, other.attempt]

    on_one_store(body)


def test_a_wait_ends_when_its_time_is_over_and_leaves_nothing() -> None:
    async def body(client: Callable[[], Client]) -> None:
        holder, other = client(), client()
        await holder.lock(B)
        assert await refusal(other.lock(A, B, wait_s=0.3)) == LockNotAvailable(B)
        with trio.move_on_after(0.2):
            await client().lock(A, B)
        assert [(entry.key, entry.waiters) for _, entry in holder.store.locks()] == [(B, 0)]
        assert holder.store.statistics()["lock_waiters"] == 0

    on_one_store(body)


@pytest.mark.parametrize("jump_ms", [-3_600_000, 3_600_000])
def test_a_wait_that_ends_while_the_clock_jumps_has_not_got_the_lock(jump_ms: int) -> None:
    """B16: a wait for a lock that is over is taken for one that was granted."""

    async def body(client: Callable[[], Client]) -> None:
        holder, other = client(), client()
        await holder.lock(B)
        clock = holder.cluster.clocks[holder.store.identity.store_id]
        began = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def jump() -> None:
                await trio.sleep(0.1)
                clock.wall_jump_ms = jump_ms

            nursery.start_soon(jump)
            assert await refusal(other.lock(B, wait_s=0.3)) == LockNotAvailable(B)
        assert trio.current_time() - began == pytest.approx(0.3, abs=0.05)
        assert [(entry.attempt, entry.waiters) for _, entry in holder.store.locks()] == [(holder.attempt, 0)]
        # Nor does it pass to one that has given up.
        await holder.store.serve(UnlockRequest(TABLES, (holder.attempt,)))
        assert holder.store.locks() == []

    on_one_store(body)


def test_what_is_newer_than_asked_for_is_told_and_the_lock_is_kept() -> None:
    async def body(client: Callable[[], Client]) -> None:
        one = client()
        old = one.cluster.oracle.issue()
        written = await one.cluster.put(A, b"new")
        assert await one.lock(A, ts=old) == NewerReply(written)
        assert await refusal(client().lock(A, wait=LockWait.NOWAIT)) == LockNotAvailable(A)
        reply = await one.lock(A, ts=one.cluster.oracle.issue())
        assert isinstance(reply, LockedReadReply)
        assert reply.values == (b"new",)

    on_one_store(body)


def test_a_read_under_a_lock_is_recorded_like_any() -> None:
    async def body(client: Callable[[], Client]) -> None:
        one = client()
        reply = await one.lock(A)
        assert isinstance(reply, LockedReadReply)
        blind = client()
        first_ts = Timestamp(reply.ts - 1)
        bumped = await blind.store.serve(CommitRequest(TABLES, blind.attempt, first_ts, first_ts, (Write(A, b"x"),)))
        assert isinstance(bumped, CommitReply), "a lock stops a write for a moment only"
        assert bumped.ts > reply.ts

    on_one_store(body)


def test_locks_end_with_a_refusal_a_conflict_and_an_unlock() -> None:
    async def body(client: Callable[[], Client]) -> None:
        async def is_free() -> bool:
            probe = client()
            try:
                await probe.lock(A, wait=LockWait.NOWAIT)
            except KvError:
                return False
            await probe.store.serve(UnlockRequest(TABLES, (probe.attempt,)))
            return True

        one = client()
        await one.lock(A)
        assert not await is_free()
        await one.store.serve(RefuseRequest(TABLES, one.attempt, one.cluster.oracle.issue()))
        assert await is_free()
        two = client()
        reply = await two.lock(A)
        assert isinstance(reply, LockedReadReply)
        await two.cluster.put(A, b"in between")
        await refusal(two.commit(A, b"late", reply.ts))
        assert await is_free()
        three = client()
        await three.lock(A)
        assert three.store.try_serve(UnlockRequest(TABLES, (three.attempt,))) == UnlockReply()
        assert await is_free()

    on_one_store(body)


def test_two_that_want_each_others_locks_both_end() -> None:
    async def body(client: Callable[[], Client]) -> None:
        older, younger = client(), client()
        await older.lock(A)
        await younger.lock(B)
        ended: list[AttemptId] = []

        async def finish(one: Client, key: bytes) -> None:
            await one.lock(key)
            ended.append(one.attempt)
            await one.store.serve(UnlockRequest(TABLES, (one.attempt,)))

        with trio.fail_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(finish, younger, A)
                nursery.start_soon(finish, older, B)
        assert ended == [older.attempt, younger.attempt]

    on_one_store(body)


def test_the_locks_of_one_that_is_never_heard_of_again_pass_on() -> None:
    async def body(client: Callable[[], Client]) -> None:
        silent, kept = client(), client()
        await silent.lock(A)
        await kept.lock(B)
        taken: list[bytes] = []

        async def take(key: bytes) -> None:
            one = client()
            await one.lock(key)
            taken.append(key)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take, A)
            nursery.start_soon(take, B)
            for _ in range(8):
                await trio.sleep(1)
                await kept.store.serve(KeepLocksRequest(TABLES, (kept.attempt,)))
            assert taken == [A]
            await kept.store.serve(UnlockRequest(TABLES, (kept.attempt,)))
        assert taken == [A, B]

    on_one_store(body)


def test_a_write_without_a_lock_gives_way_to_older_transactions_for_a_moment() -> None:
    async def body(client: Callable[[], Client]) -> None:
        older, holder, younger, scanner = client(), client(), client(), client()
        await holder.lock(A)
        began = trio.current_time()
        read_ts = Timestamp(older.start_ts)
        assert isinstance(await older.commit(B, b"elsewhere"), CommitReply)
        older.attempt = older.cluster.new_attempt()
        first_ts = older.cluster.oracle.issue()
        write = CommitRequest(TABLES, older.attempt, first_ts, None, (Write(A, b"older"),), read_ts, ())
        assert isinstance(await older.store.serve(write), CommitReply)
        assert trio.current_time() - began < 0.1, "neither another key nor an older transaction waits"
        done: list[bytes] = []

        async def write_without_lock(one: Client) -> None:
            await one.commit(A, b"younger")
            done.append(one.attempt)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_without_lock, younger)
            nursery.start_soon(write_without_lock, scanner)
            await trio.sleep(0.3)
            assert not done
            reply = await holder.lock(A)
            assert isinstance(reply, LockedReadReply)
            assert isinstance(await holder.commit(A, b"holder", reply.ts), CommitReply)
        assert trio.current_time() - began < 0.5
        assert sorted(done) == sorted([younger.attempt, scanner.attempt])
        last = client()
        await last.lock(A)
        began = trio.current_time()
        await write_without_lock(client())
        assert 0.9 < trio.current_time() - began < 1.2
        assert [entry.attempt for _, entry in last.store.locks()] == [last.attempt]

    on_one_store(body)


def test_nonsense_is_refused() -> None:
    async def body(client: Callable[[], Client]) -> None:
        for keys in ((), (B, A), (A, A)):
            assert isinstance(await refusal(client().lock(*keys)), InvalidRequest)
        assert isinstance(await refusal(client().lock(b"\x00")), RangeKeyMismatch)

    on_one_store(body)


def test_a_split_takes_the_locks_of_its_right_side_away() -> None:
    async def body(client: Callable[[], Client]) -> None:
        one = client()
        await one.lock(A, C)
        seen: list[KvErrorDetail] = []

        async def wait_for_c() -> None:
            seen.append(await refusal(client().lock(C)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_for_c)
            await trio.sleep(0.01)
            await one.store.serve(SplitRequest(TABLES, B, RangeId(9)))
        assert isinstance(seen[0], RangeKeyMismatch)
        assert [(range_id, entry.key) for range_id, entry in one.store.locks()] == [(TABLES, A)]

    on_one_store(body)


def test_a_lease_change_loses_locks_without_harm() -> None:
    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        await cluster.put(A, b"1")
        old = await cluster.wait_leaseholder(TABLES)
        holder, waiter = Client(cluster, old), Client(cluster, old)
        reply = await holder.lock(A)
        assert isinstance(reply, LockedReadReply)
        seen: list[KvErrorDetail] = []

        async def wait_in_vain() -> None:
            seen.append(await refusal(waiter.lock(A)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait_in_vain)
            await trio.sleep(0.01)
            target = next(store for store_id, store in sorted(cluster.network.stores.items()) if store is not old)
            await old.serve(TransferLeaseRequest(TABLES, target.identity.store_id))
        assert isinstance(seen[0], NotLeaseholder | Unavailable)
        new = await cluster.wait_leaseholder(TABLES, but=old.identity.store_id)
        assert (old.locks(), new.locks()) == ([], [])
        # Another takes the lock that was lost, and commits; the first one's commit finds out.
        thief = Client(cluster, new)
        taken = await thief.lock(A)
        assert isinstance(taken, LockedReadReply)

        def commit(one: Client, value: bytes, read_ts: Timestamp) -> Callable[[RangeId], Request]:
            first_ts = cluster.oracle.issue()
            return lambda range_id: CommitRequest(range_id, one.attempt, first_ts, None, (Write(A, value),), read_ts, (point_span(A),))

        await cluster.call(commit(thief, b"2", taken.ts), A)
        with pytest.raises(KvError):
            await cluster.call(commit(holder, b"lost", reply.ts), A)
        assert await cluster.get(A) == b"2"

    simulate(3, body)


def test_who_waits_for_those_who_get_no_timestamp_hears_of_that_and_not_of_a_lock() -> None:
    async def run(cluster: Cluster) -> None:
        store = await cluster.wait_leaseholder(TABLES)
        clients = [Client(cluster, store) for _ in range(3)]
        answers: list[KvErrorDetail] = []

        async def ask(client: Client) -> None:
            answers.append(await refusal(client.lock(A, wait_s=0.5)))

        async def in_vain() -> Timestamp:
            await trio.sleep(0.4)
            raise KvError(Unavailable("the oracle is down"))

        cluster.oracle.is_down, cluster.oracle.fresh = True, in_vain  # type: ignore[method-assign]  # down, and slow to say so
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(ask, client)
        # The last one's time is over while the second has the lock, and waits.
        assert all(isinstance(detail, Unavailable) for detail in answers), answers
        assert sum("in turn" in str(detail) for detail in answers) == 1
        cluster.oracle.is_down = False
        assert isinstance(await clients[0].lock(A), LockedReadReply)
        assert isinstance(await refusal(clients[1].lock(A, wait_s=0.5)), LockNotAvailable), "now it is the lock again"

    simulate(4, run)
