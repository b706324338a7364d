"""Repair: a replica that cannot be trusted goes out of service, says so to the others, and is made anew from one that can.

    wrong, or unreadable ─▶ quarantined: mark in META, no lease, no reads ─▶ DamageNotice to the other members, again and again
                                                                                    │
    leaseholder ─▶ removes it from the range (tombstone, its data gone) ─▶ adds one on the same store: learner, Raft snapshot, voter

Invariants:
- A quarantined replica serves nothing until it is removed, or a Raft snapshot has replaced all it had; a restart does not change that.
- It goes on voting and keeping the log, which is not in doubt: so quarantine costs no quorum.  Where the damage was met while a command
  was applied, nothing more is.
- Nothing is removed by a leaseholder that is out of service itself, nor the range's only replica, nor where the rest has no live quorum.
- With nothing damaged nothing runs here.
"""

import logging
from typing import NoReturn

import trio

from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor, ReplicaKind
from dsdb.kv.errors import DiskTrouble, KvError
from dsdb.kv.ids import RangeId, StoreId
from dsdb.kv.requests import ChangeReplicasRequest
from dsdb.raft.messages import ReplicaId
from dsdb.storage.errors import CorruptionError, StorageError
from dsdb.store.context import StoreContext
from dsdb.store.frame import DamageNotice, StoreFrame
from dsdb.store.loop import RaftLoop
from dsdb.store.membership import MembershipChanges
from dsdb.store.replica import Replica
from dsdb.store.waiter import Waiter

log = logging.getLogger("dsdb.store")

NOTICE_S = 1.0
"""Time between two notices about one damaged replica: notices may be lost, and leases move."""
REASON_CHARS_MAX = 500


class Repairing:
    """One for each store."""

    def __init__(self, context: StoreContext, replicas: dict[RangeId, Replica], loop: RaftLoop, changes: MembershipChanges) -> None:
        self._context = context
        self._replicas = replicas
        self._loop = loop
        self._changes = changes
        self._damaged: dict[RangeId, Replica] = {}
        """Replicas here that are out of service."""
        self._to_repair: dict[tuple[RangeId, ReplicaId], str] = {}
        """Of ranges led here: replicas on other stores that are to be made anew, and why."""
        self._damage_waiter: Waiter[None] | None = None
        self._repair_waiter: Waiter[None] | None = None
        context.on_unreadable = self.unreadable
        self.repaired = 0
        """Replicas made anew by leaseholders here."""

    @property
    def quarantined(self) -> int:
        """Give the number of replicas here that are out of service."""
        return sum(1 for replica in self._damaged.values() if replica.damage is not None and not replica.is_destroyed)

    # ---- The store with the damaged replica ----

    def unreadable(self, range_id: RangeId, error: StorageError) -> KvError:
        """Take a replica out of service if its data is damaged; give what whoever wanted to read it is told: others serve it."""
        reason = f"range {range_id} cannot be read on store {self._context.store_id}: {error}"
        replica = self._replicas.get(range_id)
        is_damaged = isinstance(error, CorruptionError)
        if is_damaged and replica is not None:
            self.quarantine(replica, reason)
        return KvError(DiskTrouble(reason, damaged=is_damaged))

    def quarantine(self, replica: Replica, reason: str) -> None:
        """Take a replica out of service, durably."""
        if replica.damage is not None or replica.is_destroyed:
            return
        reason = reason[:REASON_CHARS_MAX]
        log.error("range %d: replica %d is quarantined: %s", replica.range_id, replica.replica_id, reason)
        replica.damage = reason
        replica.end_lease()
        self._context.touched.add(replica.range_id)
        self._loop.put_soon(replica, replica.keys.quarantined, reason.encode())
        self.announce(replica)
        self.give_lead_away(replica)

    def give_lead_away(self, replica: Replica) -> None:
        """Have another replica lead a range whose copy here is damaged; this one goes on voting."""
        if not replica.is_leader:
            return
        for progress in sorted(replica.raft.status().progress, key=lambda progress: (-progress.match, progress.replica)):
            if progress.is_recently_active and replica.raft.transfer_leadership(progress.replica):
                self._loop.mark(replica.range_id)
                return

    def announce(self, replica: Replica) -> None:
        """Have the other members told of a damaged replica, until it is repaired."""
        self._damaged[replica.range_id] = replica
        if self._damage_waiter is not None:
            self._damage_waiter.settle(None)
            self._damage_waiter = None

    async def run(self) -> None:
        """Announce and repair, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_notices)
            nursery.start_soon(self._run_repairs)

    async def _run_notices(self) -> NoReturn:
        while True:
            if not self._damaged:
                self._damage_waiter = Waiter()
                await self._damage_waiter.wait()
            for range_id, replica in sorted(self._damaged.items()):
                if replica.is_destroyed or replica.damage is None or self._replicas.get(range_id) is not replica:
                    del self._damaged[range_id]
                    continue
                notice = DamageNotice(range_id, replica.replica_id, replica.damage)
                for store in sorted(set(replica.stores.values()) - {self._context.store_id}):
                    self._loop.outbox.tell_damaged(store, notice)
            self._loop.schedule()
            await trio.sleep(NOTICE_S)

    # ---- The leaseholder ----

    def receive(self, frame: StoreFrame) -> None:
        """Take what a frame says of damage."""
        for notice in frame.damaged:
            self._hear_damaged(frame.sender, notice)
        for notice in frame.wrong:
            replica = self._replicas.get(notice.range_id)
            if replica is not None and replica.replica_id == notice.replica_id and not replica.is_installing:
                self.quarantine(replica, notice.reason)

    def _hear_damaged(self, sender: StoreId, notice: DamageNotice) -> None:
        """Hear of a replica on another store that is out of service."""
        replica = self._replicas.get(notice.range_id)
        if replica is None:
            return
        if replica.has_removed(notice.replica_id):
            self._loop.outbox.tell_removed(sender, replica.removal_of(notice.replica_id))
            self._loop.schedule()
            return
        member = replica.descriptor.replica(notice.replica_id)
        if member is not None and member.store_id == sender and replica.is_leader:
            replica.damaged_peers[notice.replica_id] = notice.reason
            self._to_repair.setdefault((notice.range_id, notice.replica_id), notice.reason)
            if self._repair_waiter is not None:
                self._repair_waiter.settle(None)
                self._repair_waiter = None

    def accuse(self, replica: Replica, wrong: ReplicaId, reason: str) -> None:
        """Have a replica of a range led here taken out of service, as most others contradict it."""
        if wrong == replica.replica_id:
            self.quarantine(replica, reason)
            return
        member = replica.descriptor.replica(wrong)
        if member is not None:
            log.error("range %d: replica %d on store %d is wrong: %s", replica.range_id, wrong, member.store_id, reason)
            self._loop.outbox.tell_wrong(member.store_id, DamageNotice(replica.range_id, wrong, reason))
            self._loop.schedule()

    async def _run_repairs(self) -> NoReturn:
        """Make replicas anew, one at a time; what fails is asked for again by the next notice."""
        while True:
            if not self._to_repair:
                self._repair_waiter = Waiter()
                await self._repair_waiter.wait()
            range_id, replica_id = min(self._to_repair)
            reason = self._to_repair.pop((range_id, replica_id))
            replica = self._replicas.get(range_id)
            if replica is None or not replica.is_leader:
                continue
            try:
                await self._repair(replica, replica_id, reason)
            except KvError as error:
                log.info("range %d: replica %d is not repaired yet: %s", range_id, replica_id, error)

    async def _repair(self, replica: Replica, replica_id: ReplicaId, reason: str) -> None:
        """Remove a replica, and add another one on its store.  Raises KvError."""
        replica.require_lease()
        descriptor = replica.descriptor
        member = descriptor.replica(replica_id)
        if member is None or not self._may_remove(replica, descriptor, member):
            return
        log.warning("range %d: replica %d on store %d is made anew: %s", replica.range_id, replica_id, member.store_id, reason)
        await self._changes.serve(replica, ChangeReplicasRequest(replica.range_id, descriptor.generation, remove=(member.store_id,)))
        replica.damaged_peers.pop(replica_id, None)
        self._loop.outbox.tell_removed(member.store_id, replica.removal_of(replica_id))
        self._loop.schedule()
        after = replica.descriptor
        if after.replica_on(member.store_id) is None and len(after.voters) < len(descriptor.voters):
            # Another one may have been added elsewhere meanwhile: then the generation, or the number, says so.
            added = ReplicaDescriptor(ReplicaId(0), member.node_id, member.store_id)
            await self._changes.serve(replica, ChangeReplicasRequest(replica.range_id, after.generation, add=(added,)))
        self.repaired += 1
        log.warning("range %d: replica %d on store %d was made anew", replica.range_id, replica_id, member.store_id)

    def _may_remove(self, replica: Replica, descriptor: RangeDescriptor, member: ReplicaDescriptor) -> bool:
        """Say whether the range is not worse off without a member; `MembershipChanges` looks at the live quorum."""
        if replica.damage is not None or member.replica_id == replica.replica_id:
            return False
        return member.kind is ReplicaKind.LEARNER or len(descriptor.voters) > 1
