"""Raft snapshots: how a replica that lacks the log gets a whole range, from an engine snapshot of the leaseholder's.

    sender                                  receiver
      │ header, chunks of a part ────────────▶ │ staged in META as they come
      │ ◀─ acknowledged ─────────────────────  │ … of a part that was cut short the sender begins again, from the same engine snapshot
      │ the next part … the last ────────────▶ │ complete: InstallSnapshot is stepped into the core
      │                                        │ switch, one batch: old keys and log gone, new state, "installing"
      │                                        │ copy: staged chunks into place, in small batches
      │ ◀─ done ─────────────────────────────  │ end, one batch: marker and stage gone; the replica goes on

A crash before the switch leaves the old replica as it was; one after it repeats the copy, which ends the same.

Invariants:
- The switch is atomic: a voter never loses what it acknowledged before it has something newer, whole.
- A Raft snapshot never overlaps another replica's keys, and never brings back a replica that was removed.
- What is sent is one state: keys, outcomes, txn records, descriptor and applied index come from one engine snapshot.
- What was acknowledged is not sent again while both stores live; what nobody goes on with is cleared after `snapshot_patience_s`.
- All that a store sends of Raft snapshots, and all that it takes, keeps within `snapshot_bytes_per_s` each.
- Nothing here holds the event loop longer than one chunk takes, or has more than half of its time, less where it is busy; nor does it
  make the next sync hold it: the loop knows what is to be synced.
"""

import hashlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import NoReturn

import msgspec
import trio

from dsdb.kv.ids import RangeId, StoreId
from dsdb.raft.messages import InstallSnapshot, Membership, ReplicaId, SnapshotMetadata
from dsdb.raft.ready import Ready
from dsdb.storage.engine.port import Engine, WriteBatch
from dsdb.storage.errors import CorruptionError, DiskFullError, WriteStallError
from dsdb.storage.keys import prefix_end
from dsdb.store.chunks import end_of, new_whole, put_chunk, range_chunks
from dsdb.store.context import StoreContext
from dsdb.store.frame import SnapshotHeader, Transport, TransportError
from dsdb.store.loop import RaftLoop
from dsdb.store.replica import Replica
from dsdb.store.state import (
    META,
    Applied,
    Installing,
    ReplicaKeys,
    ReplicatedState,
    encode,
    read_applied,
    read_installing,
    read_replicated,
    read_tombstone,
    staging_key,
    staging_prefix,
)
from dsdb.store.state_machine import StateMachine, clear_keys
from dsdb.store.throttle import Throttle, give_way
from dsdb.store.waiter import Waiter

log = logging.getLogger("dsdb.store")

PART_ATTEMPTS = 6
"""Times that a part of a Raft snapshot is sent before it is given up."""


class Incoming:
    """A Raft snapshot that is complete in the stage."""

    __slots__ = ("chunks", "header", "is_taken", "waiter")

    def __init__(self, header: SnapshotHeader, chunks: int) -> None:
        self.header = header
        self.chunks = chunks
        """How many are staged."""
        self.is_taken = False
        """The core has taken it: the switch is in a batch."""
        self.waiter: Waiter[None] = Waiter()
        """Settled when the replica goes on."""


class _Partial:
    """A Raft snapshot of which parts have come."""

    __slots__ = ("heard_at", "is_active", "next", "snapshot_id", "starts")

    def __init__(self, snapshot_id: int, now: float) -> None:
        self.snapshot_id = snapshot_id
        self.next = 0
        """The first chunk that was not acknowledged."""
        self.starts = {0: new_whole()}
        """The checksum of all chunks before one: of the first that is not acknowledged, and of the part before."""
        self.is_active = False
        """A stream is filling the stage."""
        self.heard_at = now

    def acknowledge(self, up_to: int, whole: "hashlib.blake2b") -> None:
        """Note that a part is staged."""
        before, self.next = self.next, up_to
        self.starts = {start: sum_ for start, sum_ in self.starts.items() if start == before}
        self.starts[up_to] = whole


class SnapshotSender:
    """Streams Raft snapshots to replicas that need one, a few at a time."""

    def __init__(self, context: StoreContext, replicas: dict[RangeId, Replica], loop: RaftLoop, transport: Transport) -> None:
        self._context = context
        self._replicas = replicas
        self._loop = loop
        self._transport = transport
        self._slots = trio.CapacityLimiter(context.config.snapshot_senders_max)
        self.throttle = Throttle(context.clock, context.config.snapshot_bytes_per_s)
        self.parts_repeated = 0
        """Parts that were sent again after a broken connection."""
        self._under_way: set[tuple[RangeId, ReplicaId]] = set()
        self._missing_since: dict[tuple[RangeId, ReplicaId], float] = {}
        """Members without a replica on their store, and since when they said so."""
        self._wanted: list[tuple[RangeId, ReplicaId]] = []
        self._waiter: Waiter[None] | None = None

    def want(self, range_id: RangeId, to: ReplicaId) -> None:
        """Have a Raft snapshot sent soon, unless one is on its way."""
        key = (range_id, to)
        if key in self._under_way or key in self._wanted:
            return
        self._wanted.append(key)
        if self._waiter is not None:
            self._waiter.settle(None)
            self._waiter = None

    def hear_missing(self, sender: StoreId, range_id: RangeId, replica_id: ReplicaId) -> None:
        """Hear that a member's replica is not on its store: after a while it cannot be a split that is late."""
        replica = self._replicas.get(range_id)
        if replica is None or not replica.is_leader or replica.is_changing:
            return
        member = replica.descriptor.replica(replica_id)
        if member is None or member.store_id != sender:
            return
        now = self._context.clock.now()
        since = self._missing_since.setdefault((range_id, replica_id), now)
        config = self._context.config
        if now - since >= (config.split_patience_s if self._is_split_awaited(replica, replica_id) else config.snapshot_retry_s):
            del self._missing_since[range_id, replica_id]
            self.want(range_id, replica_id)

    def _is_split_awaited(self, replica: Replica, missing: ReplicaId) -> bool:
        """Say whether a replica that is not there probably comes with a split.

        Sent too early its Raft snapshot would be refused; or, if just not, it would skip the next split of the range, whose right side
        then needs one as well, and so on for all that are made while the follower is behind.
        """
        if replica.split_from is None:
            return False
        left, index = replica.split_from
        parent = self._replicas.get(left)
        return parent is None or parent.snapshots_sent.get(missing, 0) < index

    def statistics(self, taken: Throttle) -> dict[str, float]:
        """Give figures for metrics; taken: what the store takes of Raft snapshots."""
        return {
            "snapshot_bytes_sent": float(self.throttle.passed),
            "snapshot_bytes_received": float(taken.passed),
            "snapshot_parts_repeated": float(self.parts_repeated),
        }

    async def run(self) -> None:
        """Send what is wanted, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                if not self._wanted:
                    self._waiter = Waiter()
                    await self._waiter.wait()
                wanted, self._wanted = self._wanted, []
                for range_id, to in wanted:
                    nursery.start_soon(self._send_wanted, range_id, to)

    async def _send_wanted(self, range_id: RangeId, to: ReplicaId) -> None:
        replica = self._replicas.get(range_id)
        if replica is None or not replica.is_leader:
            return
        try:
            await self.send(replica, to)
        except TransportError as error:
            log.info("range %d: no Raft snapshot to replica %d: %s", range_id, to, error)

    async def send(self, replica: Replica, to: ReplicaId) -> None:
        """Stream a Raft snapshot to a member, and tell the core how it went.  Raises TransportError."""
        key = (replica.range_id, to)
        store = replica.stores.get(to)
        if store is None or key in self._under_way:
            raise TransportError(f"replica {to} of range {replica.range_id} cannot be sent a Raft snapshot now")
        self._under_way.add(key)
        is_done = False
        try:
            async with self._slots:
                index = await self._stream(replica, to, store)
            is_done = True
            replica.snapshots_sent[to] = index
            replica.damaged_peers.pop(to, None)
        except CorruptionError as error:
            self._context.on_unreadable(replica.range_id, error)
            raise TransportError(f"the range cannot be read: {error}") from None
        finally:
            self._under_way.discard(key)
            replica.raft.report_snapshot(to, is_done)
            if not replica.is_destroyed:
                self._loop.mark(replica.range_id)

    async def _stream(self, replica: Replica, to: ReplicaId, store: StoreId) -> int:
        """Send what the engine shows now; give its index.  Raises TransportError."""
        snapshot = self._context.engine.snapshot()
        try:
            state = read_replicated(snapshot, replica.keys)
            if state is None or state.descriptor.replica(to) is None:
                raise TransportError(f"replica {to} is no member of range {replica.range_id}")
            applied = read_applied(snapshot, replica.keys)
            header = SnapshotHeader(
                sender=self._context.store_id,
                descriptor=state.descriptor,
                to=to,
                sender_replica=replica.replica_id,
                term=replica.raft.term,
                metadata=SnapshotMetadata(index=applied.index, term=applied.term, membership=state.membership),
                floor=state.floor,
                threshold=state.threshold,
                mark=state.mark,
                size_bytes=applied.size_bytes,
                closed=applied.closed,
                intents=applied.intents,
                snapshot_id=self._context.chance.getrandbits(62),
            )
            log.info("range %d: sending a Raft snapshot at %d to replica %d on store %d", replica.range_id, applied.index, to, store)
            first, size = 0, 0
            part: list[bytes] = []
            clock = self._context.clock
            began = clock.now()
            for chunk in range_chunks(snapshot, replica.keys, state.descriptor.span, self._context.config.snapshot_chunk_bytes):
                await give_way(clock, began)
                if size >= self._context.config.snapshot_part_bytes:
                    await self._send_part(replica, store, _part_of(header, first, part, is_last=False), part)
                    first, size, part = first + len(part), 0, []
                part.append(chunk)
                size += len(chunk)
                began = clock.now()
            await self._send_part(replica, store, _part_of(header, first, part, is_last=True), part)
            return applied.index
        finally:
            snapshot.release()

    async def _send_part(self, replica: Replica, store: StoreId, header: SnapshotHeader, chunks: list[bytes]) -> None:
        """Send a part until it is acknowledged.  Raises TransportError: of the first part at once, as nothing is lost then."""
        for attempt in range(PART_ATTEMPTS):
            try:
                async with aclosing(self._throttled(chunks)) as stream:
                    await self._transport.send_snapshot(store, header, stream)
                return
            except TransportError as error:
                if header.first_chunk == 0 or attempt == PART_ATTEMPTS - 1 or not replica.is_leader:
                    raise
                log.info("range %d: chunks from %d on are sent again: %s", replica.range_id, header.first_chunk, error)
                self.parts_repeated += 1
                await trio.sleep(self._context.config.snapshot_retry_s)

    async def _throttled(self, chunks: list[bytes]) -> AsyncGenerator[bytes, None]:
        for chunk in chunks:
            await self.throttle.wait_for(len(chunk))
            yield chunk


class SnapshotReceiver:
    """Takes Raft snapshots, and puts them in place."""

    def __init__(
        self, context: StoreContext, replicas: dict[RangeId, Replica], loop: RaftLoop, on_installed: Callable[[Replica], None]
    ) -> None:
        self._context = context
        self._replicas = replicas
        self._loop = loop
        self._on_installed = on_installed
        self._under_way: set[RangeId] = set()
        """Ranges whose stage is being filled, or copied."""
        self._switched: list[Replica] = []
        """Replicas whose stage is to be copied."""
        self._copy_waiter: Waiter[None] | None = None
        self._partials: dict[RangeId, _Partial] = {}
        self._expiry_waiter: Waiter[None] | None = None
        self.throttle = Throttle(context.clock, context.config.snapshot_bytes_per_s)

    # ---- Receiving ----

    async def receive(self, header: SnapshotHeader, chunks: AsyncIterator[bytes]) -> None:
        """Take a part of a Raft snapshot; of the last one it returns when its replica goes on.  Raises TransportError."""
        range_id = header.descriptor.range_id
        partial = self._begin(header)
        is_taken, is_kept = False, header.first_chunk > 0
        try:
            staged, whole = await self._stage(header, partial, chunks)
            is_kept = not header.is_last
            if is_kept:
                partial.acknowledge(staged, whole)
                return
            incoming = Incoming(header, staged)
            is_taken = self._offer(incoming)
            if is_taken:
                del self._partials[range_id]
                await incoming.waiter.wait()
        except CorruptionError as error:
            raise TransportError(str(error)) from None
        finally:
            partial.is_active = False
            partial.heard_at = self._context.clock.now()
            if not is_taken and not is_kept:
                self._drop(range_id)

    def _begin(self, header: SnapshotHeader) -> _Partial:
        """Find the place of a part, or make one for the first.  Raises TransportError."""
        range_id = header.descriptor.range_id
        partial = self._partials.get(range_id)
        if partial is not None and partial.is_active:
            raise TransportError(f"a Raft snapshot of range {range_id} is on its way")
        self._refuse_misfit(header)
        now = self._context.clock.now()
        if header.first_chunk == 0:
            if partial is not None:
                # Its sender has begun anew, or another one has.
                self._drop(range_id)
            if range_id in self._under_way or len(self._under_way) >= self._context.config.snapshot_receivers_max:
                raise TransportError(f"store {self._context.store_id} takes no Raft snapshot of range {range_id} now")
            partial = self._partials[range_id] = _Partial(header.snapshot_id, now)
            self._under_way.add(range_id)
            if self._expiry_waiter is not None:
                self._expiry_waiter.settle(None)
                self._expiry_waiter = None
        elif partial is None or partial.snapshot_id != header.snapshot_id or header.first_chunk not in partial.starts:
            raise TransportError(f"chunk {header.first_chunk} is not the next one of the Raft snapshot of range {range_id}")
        partial.is_active = True
        return partial

    def _drop(self, range_id: RangeId) -> None:
        """Forget what has come of a Raft snapshot."""
        self._partials.pop(range_id, None)
        self._under_way.discard(range_id)
        self._clear_stage(range_id)

    async def _run_expiry(self) -> NoReturn:
        """Clear what nobody goes on with."""
        while True:
            if not self._partials:
                self._expiry_waiter = Waiter()
                await self._expiry_waiter.wait()
            patience_s = self._context.config.snapshot_patience_s
            await trio.sleep(patience_s / 4)
            now = self._context.clock.now()
            for range_id, partial in sorted(self._partials.items()):
                if not partial.is_active and now - partial.heard_at > patience_s:
                    log.info("range %d: nobody goes on with its Raft snapshot", range_id)
                    self._drop(range_id)

    def _refuse_misfit(self, header: SnapshotHeader) -> None:
        """Refuse what has no place here.  Raises TransportError."""
        descriptor = header.descriptor
        member = descriptor.replica(header.to)
        is_member = header.to in header.metadata.membership.members()
        if member is None or member.store_id != self._context.store_id or not is_member:
            raise TransportError(f"replica {header.to} of range {descriptor.range_id} does not belong to store {self._context.store_id}")
        if read_tombstone(self._context.engine, descriptor.range_id) > header.to:
            raise TransportError(f"replica {header.to} of range {descriptor.range_id} was removed from store {self._context.store_id}")
        for range_id in sorted(self._replicas):
            replica = self._replicas[range_id]
            if range_id == descriptor.range_id:
                if replica.replica_id != header.to or replica.is_installing:
                    raise TransportError(f"range {range_id} has replica {replica.replica_id} here, not {header.to}, or it is busy")
            elif replica.descriptor.span.overlaps(descriptor.span):
                raise TransportError(f"range {descriptor.range_id} overlaps range {range_id}, whose split is not applied here")

    async def _stage(self, header: SnapshotHeader, partial: _Partial, chunks: AsyncIterator[bytes]) -> tuple[int, "hashlib.blake2b"]:
        """Write chunks into the stage as they come; give the number of all that are staged, and their checksum.

        Raises TransportError if the part is not whole, or behind the last one all of them are not.
        """
        range_id = header.descriptor.range_id
        number = header.first_chunk
        whole = partial.starts[number].copy()
        end: tuple[int, bytes] | None = None
        came = 0
        async for chunk in chunks:
            if end is not None:
                raise TransportError(f"the Raft snapshot of range {range_id} goes on behind its end")
            await self.throttle.wait_for(len(chunk))
            came += 1
            end = end_of(chunk)
            if end is not None:
                continue
            began = self._context.clock.now()
            batch = self._context.engine.new_batch()
            batch.put(META, staging_key(range_id, number), bytes(chunk))
            await self._write(batch)
            whole.update(chunk)
            number += 1
            await give_way(self._context.clock, began)
        if came != header.part_chunks or header.is_last != (end is not None):
            raise TransportError(f"{came} chunks of range {range_id} came, of {header.part_chunks}")
        if end is not None and end != (number, whole.digest()):
            raise TransportError(f"the {number} chunks of range {range_id} are not the {end[0]} that were sent")
        return number, whole

    async def _write(self, batch: WriteBatch, *, must_succeed: bool = False) -> None:
        config = self._context.config
        while True:
            try:
                self._context.engine.write(batch)
                self._loop.count_unsynced(batch.size_bytes)
                return
            except WriteStallError:
                await trio.sleep(config.stall_backoff_s)
            except DiskFullError as error:
                if not must_succeed:
                    raise TransportError(str(error)) from None
                await trio.sleep(config.disk_full_probe_s)

    def _clear_stage(self, range_id: RangeId) -> None:
        batch = self._context.engine.new_batch()
        prefix = staging_prefix(range_id)
        batch.delete_range(META, prefix, prefix_end(prefix))
        try:
            self._context.engine.write(batch)
        except (WriteStallError, DiskFullError):
            # What is left is overwritten by the next one, or cleared at the next start.
            log.warning("range %d: the stage of a Raft snapshot could not be cleared", range_id)

    # ---- Installing ----

    def _offer(self, incoming: Incoming) -> bool:
        """Step a staged Raft snapshot into the core; say whether it was taken.  Raises TransportError if it does not fit any more."""
        header = incoming.header
        self._refuse_misfit(header)
        if self._loop.is_stalled:
            raise TransportError("the disk is busy")
        replica = self._replicas.get(header.descriptor.range_id)
        is_new = replica is None
        if replica is None:
            stand_in = ReplicatedState(descriptor=header.descriptor, membership=Membership())
            replica = Replica(self._context, header.to, stand_in)
            self._replicas[replica.range_id] = replica
        replica.incoming = incoming
        replica.learn_stores_of(header.descriptor)
        replica.stores[header.sender_replica] = header.sender
        replica.raft.step(InstallSnapshot(to=header.to, sender=header.sender_replica, term=header.term, snapshot=header.metadata))
        self._loop.mark(replica.range_id)
        self._loop.turn()
        if not incoming.is_taken:
            replica.incoming = None
            if is_new:
                del self._replicas[replica.range_id]
                self._loop.forget(replica.range_id)
                raise TransportError(f"the Raft snapshot of range {replica.range_id} was not wanted")
        return incoming.is_taken

    def switch(self, replica: Replica, batch: WriteBatch, ready: Ready) -> Callable[[], None]:
        """Put the switch from what the replica was into the batch; give what follows its write."""
        incoming = replica.incoming
        assert incoming is not None, f"range {replica.range_id}: the core took a Raft snapshot that nobody brought"
        assert ready.snapshot == incoming.header.metadata, (ready.snapshot, incoming.header.metadata)
        incoming.is_taken = True
        header, keys = incoming.header, replica.keys
        clear_keys(batch, replica.descriptor.span)
        clear_keys(batch, header.descriptor.span)
        for prefix in (keys.outcomes, keys.records, keys.provisional):
            batch.delete_range(META, prefix, prefix_end(prefix))
        state = ReplicatedState(
            descriptor=header.descriptor,
            membership=header.metadata.membership,
            floor=header.floor,
            threshold=header.threshold,
            mark=header.mark,
        )
        batch.put(META, keys.replicated, encode(state))
        applied = Applied(header.metadata.index, header.metadata.term, header.size_bytes, header.closed, header.intents)
        batch.put(META, keys.applied, encode(applied))
        batch.put(META, keys.installing, encode(Installing(incoming.chunks)))
        # Nothing is left of what was damaged.
        batch.delete(META, keys.quarantined)
        replica.log.reset(batch, header.metadata.index, header.metadata.term)
        replica.is_installing = True
        replica.doubt_lease()

        def begin_copy() -> None:
            self._switched.append(replica)
            if self._copy_waiter is not None:
                self._copy_waiter.settle(None)
                self._copy_waiter = None

        return begin_copy

    async def run(self) -> None:
        """Copy the stages of switched replicas into place, and clear what is left over, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_expiry)
            nursery.start_soon(self._run_copies)

    async def _run_copies(self) -> NoReturn:
        while True:
            if not self._switched:
                self._copy_waiter = Waiter()
                await self._copy_waiter.wait()
            switched, self._switched = self._switched, []
            for replica in switched:
                await self._copy(replica)

    async def _copy(self, replica: Replica) -> None:
        context = self._context
        incoming = replica.incoming
        assert incoming is not None, replica.range_id
        for number in range(incoming.chunks):
            began = context.clock.now()
            batch = context.engine.new_batch()
            put_staged(context.engine, batch, replica.keys, replica.range_id, number)
            await self._write(batch, must_succeed=True)
            await give_way(context.clock, began)
        batch = context.engine.new_batch()
        put_end(batch, replica.keys, replica.range_id)
        await self._write(batch, must_succeed=True)
        self._finish(replica, incoming)

    def _finish(self, replica: Replica, incoming: Incoming) -> None:
        state = read_replicated(self._context.engine, replica.keys)
        assert state is not None, replica.range_id
        replica.machine = StateMachine(self._context.engine, replica.keys, state)
        replica.learn_stores()
        replica.look_for_blocks()
        replica.incoming = None
        replica.is_installing = False
        replica.damage = None
        index = incoming.header.metadata.index
        replica.settle_by_snapshot(index)
        replica.raft.applied(index)
        replica.raft.compacted()
        self._under_way.discard(replica.range_id)
        log.info("range %d: replica %d has a Raft snapshot at %d", replica.range_id, replica.replica_id, index)
        self._on_installed(replica)
        self._loop.mark(replica.range_id)
        incoming.waiter.settle(None)


def _part_of(header: SnapshotHeader, first: int, part: Sequence[bytes], *, is_last: bool) -> SnapshotHeader:
    return msgspec.structs.replace(header, first_chunk=first, part_chunks=len(part), is_last=is_last)


def put_staged(engine: Engine, batch: WriteBatch, keys: ReplicaKeys, range_id: RangeId, number: int) -> None:
    """Put a staged chunk into place.  Raises CorruptionError."""
    chunk = engine.get(META, staging_key(range_id, number))
    if chunk is None:
        raise CorruptionError(f"chunk {number} of the Raft snapshot of range {range_id} is missing from the stage")
    put_chunk(batch, keys, chunk)


def put_end(batch: WriteBatch, keys: ReplicaKeys, range_id: RangeId) -> None:
    """End an installation: the stage goes."""
    batch.delete(META, keys.installing)
    prefix = staging_prefix(range_id)
    batch.delete_range(META, prefix, prefix_end(prefix))


def finish_installations(engine: Engine, range_ids: list[RangeId]) -> None:
    """At a start: repeat the copies that a crash cut short, and clear stages that were never switched to."""
    for range_id in range_ids:
        keys = ReplicaKeys(range_id)
        installing = read_installing(engine, keys)
        if installing is None:
            continue
        for number in range(installing.chunks):
            batch = engine.new_batch()
            put_staged(engine, batch, keys, range_id, number)
            engine.write(batch)
        batch = engine.new_batch()
        put_end(batch, keys, range_id)
        engine.write(batch)
        log.info("range %d: finished the installation of a Raft snapshot", range_id)
    batch = engine.new_batch()
    batch.delete_range(META, staging_prefix(RangeId(0)), prefix_end(staging_prefix(RangeId(0))[:1]))
    engine.write(batch)
