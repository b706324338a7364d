"""The keeper: time's part in a store.  Ticks groups that are awake, keeps promises of support, lets orphaned replicas campaign.

Invariants:
- A quiet group costs nothing: it is neither ticked nor looked at, until a message, a request or the end of a promise wakes it.
- A replica whose store has promised support to its leader's store neither campaigns nor votes; its core is told every change of either.
- Support is asked of the stores that hold replicas of groups led here, and of no others.
"""

import logging
import math

from dsdb.kv.ids import RangeId, StoreId
from dsdb.raft.messages import NO_REPLICA
from dsdb.raft.ready import Role, RoleChange
from dsdb.store.closing import Closing
from dsdb.store.context import StoreContext
from dsdb.store.frame import ReplicaNotice, StoreFrame
from dsdb.store.loop import RaftLoop, follows, is_quiet
from dsdb.store.replica import Replica

log = logging.getLogger("dsdb.store")

PERIOD_BITS = 62
"""Of the random names of promises' periods: none is ever drawn twice."""


class Keeper:
    """One for each store."""

    def __init__(self, context: StoreContext, replicas: dict[RangeId, Replica], loop: RaftLoop, closing: Closing) -> None:
        self._context = context
        self._replicas = replicas
        self._loop = loop
        self._closing = closing
        self._is_barred = True
        self._next_request = 0.0
        self._peers: list[StoreId] | None = None
        """Stores with replicas of groups led here, ascending; None when it must be found out again."""
        self._unsupporting: set[StoreId] = set()
        """Of those stores the ones whose support of ours was over when it was last looked at."""
        self._incarnations: dict[StoreId, int] = {}
        """Store → the life in which it asked for support last."""

    # ---- Replicas come and change ----

    def admit(self, replica: Replica, now: float) -> None:
        """Take a replica that was loaded or made."""
        self.forget_peers()
        membership = replica.raft.membership
        is_alone = membership.voters == (replica.replica_id,) and not membership.is_joint
        if self._is_barred and not is_alone:
            replica.raft.set_votes_barred(True)
        self._loop.mark(replica.range_id)

    def begin(self, now: float) -> None:
        """Start: those who are alone campaign at once, the others when the promises of an earlier life are over."""
        config = self._context.config
        for range_id in sorted(self._replicas):
            replica = self._replicas[range_id]
            self.admit(replica, now)
            if replica.raft.membership.voters == (replica.replica_id,):
                replica.raft.campaign()
            else:
                wait_s = config.support_duration_s * (1 + 2 * config.clock_drift_max)
                replica.campaign_at = now + wait_s + self._jitter()

    def forget_peers(self) -> None:
        """Find out again whose support is needed: leadership or membership has changed."""
        self._peers = None

    def _jitter(self) -> float:
        return self._context.chance.random() * self._context.config.campaign_jitter_s

    def on_role(self, replica: Replica, change: RoleChange) -> None:
        """Take note of a new role, term or leader."""
        context = self._context
        self.forget_peers()
        replica.doubt_lease()
        followed = follows(replica)
        replica.raft.set_leader_supported(followed is not None and context.liveness.promises(followed))
        if change.leader != NO_REPLICA:
            replica.campaign_at = math.inf
        if change.role is Role.LEADER:
            self._ask_support(context.clock.now(), missing_only=True)

    # ---- Time ----

    def pause_s(self, now: float) -> float:
        """Give the time until the next tick: where no group is awake and nobody waits, only support has to be asked for, or ends.

        A group that is woken in between is ticked a little later for once; it has a tick to lose.
        """
        context = self._context
        if self._loop.awake or self._is_barred or context.deadlines.is_waited_for:
            return context.config.tick_interval_s
        due = min(self._next_request, context.liveness.next_lapse())
        return min(max(due - now, context.config.tick_interval_s / 10), context.config.support_interval_s)

    def tick(self) -> None:
        """Do what is due: called every tick interval."""
        context = self._context
        now = context.clock.now()
        context.deadlines.sweep(now)
        if self._is_barred and not context.liveness.is_barred(now):
            self._is_barred = False
            for range_id in sorted(self._replicas):
                self._replicas[range_id].raft.set_votes_barred(False)
        for store in context.liveness.lapsed(now):
            self._on_lapsed(store, now)
        if now >= self._next_request:
            self._next_request = now + context.config.support_interval_s
            self._ask_support(now, missing_only=False)
            self._wake_unsupported(now)
            self._closing.tick(now)
        self._tick_groups(now)
        self._loop.outbox.flush()

    def _tick_groups(self, now: float) -> None:
        awake = self._loop.awake
        promises = self._context.liveness.promises
        for range_id in sorted(awake):
            replica = self._replicas.get(range_id)
            if replica is None or replica.is_halted:
                awake.discard(range_id)
                continue
            if replica.is_installing:
                continue
            if replica.campaign_at <= now:
                replica.campaign_at = now + 2 * self._context.config.campaign_jitter_s + self._jitter()
                replica.raft.campaign()
            elif is_quiet(replica, promises):
                awake.discard(range_id)
                continue
            self._inquire_when_orphaned(replica, now)
            replica.raft.tick()
            if replica.raft.has_ready:
                self._loop.mark(range_id)

    def _inquire_when_orphaned(self, replica: Replica, now: float) -> None:
        """Ask, once in a while, whether a replica that hears of no leader was removed: nobody would speak to it any more."""
        store = follows(replica)
        if replica.is_leader or (store is not None and self._context.liveness.promises(store)):
            replica.inquire_at = math.inf
            return
        interval_s = self._context.config.inquiry_interval_s
        if replica.inquire_at <= now:
            notice = ReplicaNotice(replica.range_id, replica.replica_id)
            for member in replica.descriptor.replicas:
                if member.replica_id != replica.replica_id:
                    self._loop.outbox.inquire(member.store_id, notice)
            replica.inquire_at = now + interval_s
        replica.inquire_at = min(replica.inquire_at, now + interval_s)

    def answer_inquiry(self, sender: StoreId, notice: ReplicaNotice) -> None:
        """Tell a replica that it was removed, or, if we lead it, that it is led."""
        replica = self._replicas.get(notice.range_id)
        if replica is None or replica.is_installing:
            return
        if replica.has_removed(notice.replica_id):
            self._loop.outbox.tell_removed(sender, notice)
            self._loop.schedule()
        elif replica.is_leader:
            replica.raft.renew_support(notice.replica_id)
            replica.doubt_lease()
            self._loop.mark(notice.range_id)

    def _on_lapsed(self, store: StoreId, now: float) -> None:
        """Set free the replicas that follow a store whose promise has passed."""
        freed = 0
        for range_id in sorted(self._replicas):
            replica = self._replicas[range_id]
            if follows(replica) == store:
                replica.raft.set_leader_supported(False)
                replica.campaign_at = now + self._jitter()
                self._loop.mark(range_id)
                freed += 1
        if freed:
            log.info("store %d: no word from store %d; %d replicas may elect another leader", self._context.store_id, store, freed)

    # ---- Support ----

    def _needed_peers(self) -> list[StoreId]:
        if self._peers is None:
            own = self._context.store_id
            needed: set[StoreId] = set()
            for replica in self._replicas.values():
                if replica.is_leader:
                    needed.update(member.store_id for member in replica.descriptor.replicas)
            needed.discard(own)
            self._peers = sorted(needed)
        return self._peers

    def _ask_support(self, now: float, *, missing_only: bool) -> None:
        liveness = self._context.liveness
        request = liveness.request(now)
        for store in self._needed_peers():
            if not missing_only or liveness.supported_until(store) <= now:
                self._loop.outbox.request(store, request)

    def _wake_unsupported(self, now: float) -> None:
        """Wake the groups led here that have just lost a store's support: those without a quorum's are ticked until they step down."""
        over = {store for store in self._needed_peers() if self._context.liveness.supported_until(store) <= now}
        lost, self._unsupporting = over - self._unsupporting, over
        if not lost:
            return
        for range_id in sorted(self._replicas):
            replica = self._replicas[range_id]
            if replica.is_leader and any(member.store_id in lost for member in replica.descriptor.replicas):
                self._loop.mark(range_id)

    def receive(self, frame: StoreFrame) -> None:
        """Take what a frame says about support."""
        context = self._context
        now = context.clock.now()
        if frame.grant is not None and context.liveness.take_grant(frame.sender, frame.grant):
            self._on_new_support(frame.sender)
        if frame.request is None:
            return
        is_same_life = self._incarnations.get(frame.sender, frame.request.incarnation) == frame.request.incarnation
        self._incarnations[frame.sender] = frame.request.incarnation
        period = context.chance.getrandbits(PERIOD_BITS)
        grant, is_new = context.liveness.take_request(frame.sender, frame.request, now, period)
        self._loop.outbox.grant(frame.sender, grant)
        if not is_same_life:
            # Its leases ended with its earlier life, and none of this life is acknowledged yet.
            self._on_lapsed(frame.sender, now)
        elif is_new:
            for replica in self._replicas.values():
                if follows(replica) == frame.sender:
                    replica.raft.set_leader_supported(True)
                    replica.campaign_at = math.inf

    def _on_new_support(self, store: StoreId) -> None:
        """Have what a store acknowledged before its present promise acknowledged again."""
        for range_id in sorted(self._replicas):
            replica = self._replicas[range_id]
            if not replica.is_leader:
                continue
            member = replica.descriptor.replica_on(store)
            if member is not None:
                replica.raft.renew_support(member.replica_id)
                replica.doubt_lease()
                self._loop.mark(range_id)
