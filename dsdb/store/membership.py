"""Changes of replicas: learner, Raft snapshot, caught up, then one (joint) step to the final configuration.

    descriptor g ── add learners ─▶ g+1 ── snapshots, catch up ── promote and remove ─▶ g+2 [joint] ── left by the leader ─▶ g+3

Invariants:
- A replica counts for a quorum only after it has the data; an old one goes only when the replacement is in.
- Every step is a command that fits one generation; the leaseholder of the range runs one change at a time.
- A change that fails leaves voters as they were; its learners are removed again, or taken up by the next try.
- Once it has begun it goes on without whoever asked for it, as long as this store leads the range.
- No node has two voters of a range, and what is left of the voters is a quorum that lives.
- A voter that is removed stays, also over a restart, until a quorum of the others knows it (`Replica.is_doomed`): those who do not know
  may have no quorum without its vote, or wait for it as long as its store lives.
- A change ends soon after the store of a replica that it adds has died.
"""

import logging

import msgspec
import trio

from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor, ReplicaKind
from dsdb.kv.errors import AmbiguousResult, InvalidRequest, KvError, Unavailable
from dsdb.kv.ids import StoreId
from dsdb.kv.requests import ChangeReplicasReply, ChangeReplicasRequest, Reply
from dsdb.raft.messages import MembershipChange, ReplicaId
from dsdb.store.command import ChangeReplicasCommand
from dsdb.store.context import StoreContext
from dsdb.store.frame import TransportError
from dsdb.store.replica import Replica
from dsdb.store.snapshot import SnapshotSender
from dsdb.store.waiter import Waiter

log = logging.getLogger("dsdb.store")

CHANGES_MAX = 64
"""Changes of replicas under way at a store; its Raft snapshots have limits of their own."""
SNAPSHOT_ATTEMPTS = 5
"""Raft snapshots sent to a learner before a change is given up."""
CATCH_UP_S = 20.0
"""How long a learner with its Raft snapshot may take to follow the log."""


class MembershipChanges:
    """One for each store."""

    def __init__(self, context: StoreContext, sender: SnapshotSender) -> None:
        self._context = context
        self._sender = sender
        self._wanted: list[tuple[Replica, ChangeReplicasRequest, Waiter[Reply]]] = []
        self._waiter: Waiter[None] | None = None
        self._under_way = 0

    async def run(self) -> None:
        """Carry out what is asked for, until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                if not self._wanted:
                    self._waiter = Waiter()
                    await self._waiter.wait()
                wanted, self._wanted = self._wanted, []
                for replica, request, waiter in wanted:
                    nursery.start_soon(self._carry_out, replica, request, waiter)

    async def serve(self, replica: Replica, request: ChangeReplicasRequest) -> Reply:
        """Change the replicas of a range; answered when the final configuration is applied here.  Cancelling it changes nothing."""
        replica.require_lease()
        self._check(replica, request)
        if self._under_way >= CHANGES_MAX:
            raise KvError(Unavailable(f"store {self._context.store_id} changes the replicas of {CHANGES_MAX} ranges already"))
        self._under_way += 1
        replica.is_changing = True
        self._context.touched.add(replica.range_id)
        waiter: Waiter[Reply] = Waiter()
        self._wanted.append((replica, request, waiter))
        if self._waiter is not None:
            self._waiter.settle(None)
            self._waiter = None
        return await waiter.wait()

    async def _carry_out(self, replica: Replica, request: ChangeReplicasRequest, waiter: "Waiter[Reply]") -> None:
        range_id = replica.range_id
        try:
            with trio.move_on_after(self._context.config.change_timeout_s):
                waiter.settle(ChangeReplicasReply(await self._change(replica, request)))
        except KvError as error:
            log.info("range %d: the change of replicas was not made: %s", range_id, error)
            waiter.fail(error.detail)
        finally:
            replica.is_changing = False
            self._under_way -= 1
            self._context.touched.add(range_id)
            waiter.fail(AmbiguousResult(f"the change of replicas of range {range_id} is not through; ask for its descriptor"))

    def _check(self, replica: Replica, request: ChangeReplicasRequest) -> None:
        descriptor = replica.descriptor
        if descriptor.generation != request.expected_generation:
            raise KvError(InvalidRequest(f"range {replica.range_id} is at generation {descriptor.generation}"))
        if replica.is_changing or replica.raft.membership.is_joint:
            raise KvError(InvalidRequest(f"the replicas of range {replica.range_id} are being changed"))
        adding = [added.store_id for added in request.add]
        if not adding and not request.remove:
            raise KvError(InvalidRequest("the change is empty"))
        if len({*adding, *request.remove}) != len(adding) + len(request.remove):
            raise KvError(InvalidRequest("a change names each store once"))
        for store in adding:
            present = descriptor.replica_on(store)
            if present is not None and present.kind is not ReplicaKind.LEARNER:
                raise KvError(InvalidRequest(f"range {replica.range_id} has a replica on store {store} already"))
        for store in request.remove:
            if descriptor.replica_on(store) is None:
                raise KvError(InvalidRequest(f"range {replica.range_id} has no replica on store {store}"))
        self._check_outcome(replica, request)

    def _check_outcome(self, replica: Replica, request: ChangeReplicasRequest) -> None:
        """Refuse a change after which the range would be worse off than it may be.  Raises KvError."""
        kept = [member for member in replica.descriptor.voters if member.store_id not in request.remove]
        nodes = [member.node_id for member in kept] + [added.node_id for added in request.add]
        if len(set(nodes)) < len(nodes):
            raise KvError(InvalidRequest(f"range {replica.range_id} would have two replicas on one node"))
        if not nodes:
            raise KvError(InvalidRequest(f"range {replica.range_id} would have no replica"))
        context = self._context
        now = context.clock.now()
        alive = sum(member.store_id == context.store_id or context.liveness.supported_until(member.store_id) > now for member in kept)
        if request.remove and 2 * (alive + len(request.add)) <= len(nodes):
            raise KvError(InvalidRequest(f"range {replica.range_id} would have no quorum: {alive} of its other replicas live"))

    async def _change(self, replica: Replica, request: ChangeReplicasRequest) -> RangeDescriptor:
        new = [added for added in request.add if replica.descriptor.replica_on(added.store_id) is None]
        if new:
            await self._add_learners(replica, new)
        learners = [added.store_id for added in request.add]
        try:
            for store in learners:
                await self._bring_up(replica, store)
        except KvError:
            await self._drop_learners(replica, [added.store_id for added in new])
            raise
        return await self._settle(replica, learners, list(request.remove))

    async def _propose(self, replica: Replica, change: MembershipChange, descriptor: RangeDescriptor) -> None:
        """Take one step; returns when it is applied.  Raises KvError."""
        replica.require_lease()
        command = ChangeReplicasCommand(replica.descriptor.generation, descriptor)
        reply = await replica.propose_change(change, command).wait()
        assert isinstance(reply, ChangeReplicasReply), reply
        if reply.descriptor != descriptor:
            raise KvError(InvalidRequest(f"range {replica.range_id} has changed to generation {reply.descriptor.generation} meanwhile"))

    async def _add_learners(self, replica: Replica, new: list[ReplicaDescriptor]) -> None:
        descriptor = replica.descriptor
        first = descriptor.next_replica_id
        learners = tuple(
            ReplicaDescriptor(ReplicaId(first + number), added.node_id, added.store_id, ReplicaKind.LEARNER)
            for number, added in enumerate(new)
        )
        after = msgspec.structs.replace(
            descriptor,
            generation=descriptor.generation + 1,
            replicas=(*descriptor.replicas, *learners),
            next_replica_id=ReplicaId(first + len(new)),
        )
        await self._propose(replica, MembershipChange(add_learners=tuple(learner.replica_id for learner in learners)), after)

    async def _bring_up(self, replica: Replica, store: StoreId) -> None:
        """Send a learner the range, and wait until it follows the log.  Raises KvError."""
        config = self._context.config
        learner = replica.descriptor.replica_on(store)
        if learner is None:
            raise KvError(InvalidRequest(f"the learner on store {store} is gone"))
        error: TransportError | None = None
        for attempt in range(SNAPSHOT_ATTEMPTS):
            if attempt:
                await trio.sleep(config.snapshot_retry_s)
            replica.require_lease()
            if self._match(replica, learner.replica_id) >= replica.raft.status().first_index:
                break
            if attempt and not self._is_live(store):
                raise KvError(Unavailable(f"store {store}, which was to have a replica of range {replica.range_id}, is gone: {error}"))
            try:
                await self._sender.send(replica, learner.replica_id)
                break
            except TransportError as failure:
                error = failure
        else:
            raise KvError(Unavailable(f"store {store} did not take a replica of range {replica.range_id}: {error}"))
        await self._wait_caught_up(replica, learner)

    async def _wait_caught_up(self, replica: Replica, learner: ReplicaDescriptor) -> None:
        """Wait until a learner has what is applied now.  Raises KvError."""
        config, clock, store = self._context.config, self._context.clock, learner.store_id
        target = replica.machine.applied.index
        heard_at = clock.now()
        deadline = heard_at + CATCH_UP_S
        while self._match(replica, learner.replica_id) < target:
            now = clock.now()
            if self._is_live(store):
                heard_at = now
            if now > deadline or now - heard_at > config.support_duration_s:
                raise KvError(Unavailable(f"the replica of range {replica.range_id} on store {store} does not catch up"))
            await trio.sleep(config.tick_interval_s)
            replica.require_lease()

    def _is_live(self, store: StoreId) -> bool:
        """Say whether a store gave a sign of life within the last promise; soon after it got a learner it should have."""
        liveness = self._context.liveness
        return liveness.supported_until(store) > self._context.clock.now() or liveness.promises(store)

    @staticmethod
    def _match(replica: Replica, replica_id: ReplicaId) -> int:
        return next((progress.match for progress in replica.raft.status().progress if progress.replica == replica_id), 0)

    async def _drop_learners(self, replica: Replica, stores: list[StoreId]) -> None:
        """Undo what a failed change began, as far as that is possible; the next try takes up what is left."""
        try:
            await self._settle(replica, [], [store for store in stores if replica.descriptor.replica_on(store) is not None])
        except KvError as error:
            log.warning("range %d: learners stay behind after a failed change: %s", replica.range_id, error)

    async def _settle(self, replica: Replica, promote: list[StoreId], remove: list[StoreId]) -> RangeDescriptor:
        """Take the step to the final configuration, and wait until a joint one is left."""
        descriptor = replica.descriptor
        promoted = [member.replica_id for member in descriptor.replicas if member.store_id in promote]
        removed = [member for member in descriptor.replicas if member.store_id in remove]
        if not promoted and not removed:
            return descriptor
        voters = [member for member in removed if member.kind is not ReplicaKind.LEARNER]
        is_joint = len(promoted) + len(voters) > 1
        replicas = []
        for member in descriptor.replicas:
            kind = member.kind
            if member.replica_id in promoted:
                kind = ReplicaKind.VOTER_INCOMING if is_joint else ReplicaKind.VOTER
            elif member in removed:
                if not is_joint or kind is ReplicaKind.LEARNER:
                    continue
                kind = ReplicaKind.VOTER_OUTGOING
            replicas.append(msgspec.structs.replace(member, kind=kind))
        after = msgspec.structs.replace(descriptor, generation=descriptor.generation + 1, replicas=tuple(replicas))
        change = MembershipChange(add_voters=tuple(promoted), remove=tuple(member.replica_id for member in removed))
        await self._propose(replica, change, after)
        deadline = self._context.clock.now() + self._context.config.proposal_timeout_s
        while not replica.is_destroyed and replica.raft.membership.is_joint:
            if self._context.clock.now() > deadline:
                raise KvError(AmbiguousResult(f"range {replica.range_id} is on its way to the new replicas"))
            await trio.sleep(self._context.config.tick_interval_s)
        return replica.descriptor
