"""The keeper: time's part in a store.  Ticks groups that are awake, keeps promises of support, lets orphaned replicas campaign.

Invariants:
- A quiet group costs nothing: it is neither ticked nor looked at, until a message, a request or the end of a promise wakes it.
- A replica whose store has promised support to its leader's store neither campaigns nor votes; its core is told every change of either.
- What a store sent in an earlier life, and comes behind what it sent in the present one, sets nobody free.
- Support is asked of the stores that hold replicas of groups led here, and of no others.
- What befalls very many replicas at once (their leader's store is lost, or is back) is done for a few at a time, and they are not ticked
  before: the store must stay able to answer for itself, or it would lose its leases by keeping them.  One that is asked for goes first.
  Still fewer are woken while the store is late with its ticks: then the machine has too much to do.
"""

import heapq
import logging
import math
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.ids import SYSTEM_RANGE, RangeId, StoreId
from dsdb.raft.messages import NO_REPLICA
from dsdb.raft.ready import Role, RoleChange
from dsdb.store.closing import Closing
from dsdb.store.context import StoreContext
from dsdb.store.frame import ReplicaNotice, StoreFrame
from dsdb.store.loop import RaftLoop, follows, is_quiet
from dsdb.store.replica import Replica

log = logging.getLogger("dsdb.store")

PEERS_PAUSE_S = 0.0001
"""Least time, for each replica, between two looks at all of them for the stores whose support is needed."""
TICKED_MAX = 512
"""Groups ticked at a time: about 10 ms."""
WOKEN_AT_ONCE = 64
"""Groups that are woken together without waiting in line."""
WAKE_PAUSE_S = 0.001
"""Least time between two looks at the line."""
WAKE_REFILL_S = 0.02
"""The same when more are due than may be woken now."""
WANTED_AHEAD_S = 0.5
"""For so long those are woken that were wanted together; longer than it takes until the rest is wanted again."""
LATE_S = 0.1
"""Whoever is woken so much later than it asked for shares its processors with too many."""
LATE_WAKES_PER_S = 10.0
"""So many are woken in a second then."""
PATIENT_PART = 0.5
"""The part of a promise that must be left, for its renewal to wait for a frame that goes anyway: at most an interval."""
ENDED_LIVES_MAX = 16
"""Of a store: what it sent in still earlier ones does not come any more."""
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
        self._peers: list[StoreId] = []
        """Stores with replicas of groups led here, ascending; for a moment also some that have none any more."""
        self._are_peers_doubted = True
        self._peers_at = 0.0
        """When to look again, if they are doubted: it takes a look at all replicas."""
        self._unsupporting: set[StoreId] = set()
        """Of those stores the ones whose support of ours was over when it was last looked at."""
        self._incarnations: dict[StoreId, int] = {}
        """Store → the life in which it asked for support last."""
        self._ended_lives: dict[StoreId, deque[int]] = {}
        """Store → its latest lives before that one."""
        self._line: list[tuple[float, RangeId]] = []
        """When resting replicas are woken: a heap; an entry counts if its replica's `wake_at` still says so."""
        self._asked_line: list[tuple[float, RangeId]] = []
        """The same for those that are asked for: they go first."""
        self._wakes = float(WOKEN_AT_ONCE)
        """So many may be woken now."""
        self._woken_at = 0.0
        """When they were counted."""
        self._ticked_last = RangeId(0)
        self._barred_until = 0.0
        self._wanted_at = 0.0
        """Before then enough replicas are woken because they were asked for."""
        self._due_at = math.inf
        """When `tick` is to be called next."""
        self._tick_at = 0.0
        """When groups are ticked next; in between only those in line are woken, as replicas that campaign in one moment split the votes."""
        context.on_wanted = self.want

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
        self._barred_until = now + config.support_duration_s * (1 + 2 * config.clock_drift_max)
        orphans = []
        for range_id in sorted(self._replicas):
            replica = self._replicas[range_id]
            self.admit(replica, now)
            if replica.raft.membership.voters == (replica.replica_id,):
                replica.raft.campaign()
            else:
                orphans.append(replica)
        self._line_up(orphans, self._barred_until, least_s=config.campaign_jitter_s)

    def _line_up(self, replicas: Sequence[Replica], begin: float, *, least_s: float = 0.0) -> None:
        """Have replicas woken from a moment on: within `least_s`, or, if they are many, a few at a time.  Orphans campaign then."""
        most_s = least_s if len(replicas) <= WOKEN_AT_ONCE else max(least_s, len(replicas) / self._context.config.wakes_per_s)
        for replica in replicas:
            if not most_s:
                self._loop.mark(replica.range_id)
                continue
            spread_s = least_s if replica.range_id == SYSTEM_RANGE else most_s
            self._wake_at(replica, begin + self._context.chance.random() * spread_s)
            self._loop.rest(replica.range_id)

    def _wake_at(self, replica: Replica, when: float, *, is_asked: bool = False) -> None:
        replica.wake_at = when
        if not replica.is_leader:
            replica.campaign_at = when
        heapq.heappush(self._asked_line if is_asked else self._line, (when, replica.range_id))

    def want(self, range_id: int) -> None:
        """Have a replica that was asked for, and waits to be woken, woken next."""
        replica = self._replicas.get(RangeId(range_id))
        now = self._context.clock.now()
        if replica is None or replica.wake_at <= max(now, self._wanted_at):
            return
        when = max(now, self._barred_until) + self._jitter()
        if when < replica.wake_at:
            # A scan asks for all of very many: they too come a few at a time.
            self._wanted_at = max(now, self._wanted_at) + 1 / self._context.config.wakes_wanted_per_s
            self._wake_at(replica, min(max(when, self._wanted_at), replica.wake_at), is_asked=True)

    def want_some(self, range_ids: Sequence[RangeId]) -> None:
        """Have replicas that were asked for, and wait to be woken, woken soon: as many as can be within WANTED_AHEAD_S.

        Whoever wants very many asks again; a single one that is wanted meanwhile does not wait for all of them.
        """
        until = self._context.clock.now() + WANTED_AHEAD_S
        for range_id in range_ids:
            if self._wanted_at > until:
                return
            replica = self._replicas.get(range_id)
            if replica is not None and replica.wake_at < math.inf:
                self.want(range_id)

    def forget_peers(self) -> None:
        """Find out again whose support is needed, before long: leadership or membership has changed."""
        self._are_peers_doubted = True

    def _jitter(self) -> float:
        return self._context.chance.random() * self._context.config.campaign_jitter_s

    def on_role(self, replica: Replica, change: RoleChange) -> None:
        """Take note of a new role, term or leader."""
        context = self._context
        replica.doubt_lease()
        followed = follows(replica)
        replica.raft.set_leader_supported(followed is not None and context.liveness.promises(followed))
        if change.leader != NO_REPLICA:
            replica.campaign_at = replica.wake_at = math.inf
        if change.role is Role.LEADER:
            self._ask_support_for(replica, context.clock.now())
        else:
            self.forget_peers()

    # ---- Time ----

    def pause_s(self, now: float) -> float:
        """Give the time until `tick` has something to do.

        Where no group is awake and nobody waits, only support has to be asked for, or ends: a group that is woken in between is ticked
        a little later for once; it has a tick to lose.
        """
        context = self._context
        tick_s = context.config.tick_interval_s
        if not (self._loop.awake or self._is_barred or context.deadlines.is_waited_for):
            due_s = min(self._next_request, context.liveness.next_lapse()) - now
            tick_s = min(max(due_s, tick_s / 10), context.config.support_interval_s)
        if self._tick_at <= now or now + tick_s < self._tick_at:
            self._tick_at = now + tick_s
        next_at = min([self._tick_at, *[line[0][0] for line in (self._asked_line, self._line) if line]])
        self._due_at = max(next_at, now + (WAKE_PAUSE_S if self._wakes >= 1 else WAKE_REFILL_S))
        return self._due_at - now

    def tick(self) -> None:
        """Do what is due."""
        context = self._context
        now = context.clock.now()
        self._wake_due(now)
        if now < self._tick_at:
            self._loop.outbox.flush()
            return
        self._tick_at = now
        context.deadlines.sweep(now)
        if self._is_barred and not context.liveness.is_barred(now):
            self._is_barred = False
            for range_id in sorted(self._replicas):
                self._replicas[range_id].raft.set_votes_barred(False)
        for store in context.liveness.lapsed(now):
            self._on_lapsed(store, now)
        if now >= self._next_request:
            self._next_request = now + context.config.support_interval_s
            self._ask_support(now)
            self._wake_unsupported(now)
            self._closing.tick(now)
        self._tick_groups(now)
        self._loop.outbox.flush()

    def _wake_due(self, now: float) -> None:
        """Wake those whose time has come, those first that are asked for; as many as the store can take."""
        config = self._context.config
        per_s = LATE_WAKES_PER_S if now - self._due_at > LATE_S else config.wakes_per_s + config.wakes_wanted_per_s
        self._wakes = min(self._wakes + (now - self._woken_at) * per_s, WOKEN_AT_ONCE)
        self._woken_at = now
        for line in (self._asked_line, self._line):
            while line and line[0][0] <= now:
                when, range_id = line[0]
                replica = self._replicas.get(range_id)
                if replica is not None and replica.wake_at == when:
                    if self._wakes < 1:
                        break
                    self._wakes -= 1
                    replica.wake_at = math.inf
                    if not replica.is_leader:
                        self._campaign(replica, now)
                    self._loop.mark(range_id)
                heapq.heappop(line)

    def _campaign(self, replica: Replica, now: float) -> None:
        replica.campaign_at = now + 2 * self._context.config.campaign_jitter_s + self._jitter()
        replica.raft.campaign()

    def _ticked_now(self) -> list[RangeId]:
        """Give the groups that are awake; of very many some at a time, in turn: their time then passes more slowly."""
        awake = sorted(self._loop.awake)
        if len(awake) > TICKED_MAX:
            begin = bisect_right(awake, self._ticked_last)
            awake = [*awake[begin:], *awake[:begin]][:TICKED_MAX]
            self._ticked_last = awake[-1]
        return awake

    def _tick_groups(self, now: float) -> None:
        awake = self._loop.awake
        promises = self._context.liveness.promises
        for range_id in self._ticked_now():
            replica = self._replicas.get(range_id)
            if replica is None or replica.is_halted:
                awake.discard(range_id)
                continue
            if replica.is_installing:
                continue
            if replica.campaign_at <= now:
                self._campaign(replica, now)
            elif is_quiet(replica, promises):
                awake.discard(range_id)
                continue
            self._inquire_when_orphaned(replica, now)
            replica.raft.tick()
            if replica.raft.has_ready:
                self._loop.mark(range_id)

    def _inquire_when_orphaned(self, replica: Replica, now: float) -> None:
        """Ask, once in a while, whether a replica that hears of no leader was removed, or enough others know that it was."""
        store = follows(replica)
        is_led = replica.is_leader or (store is not None and self._context.liveness.promises(store))
        if is_led and not replica.is_leaving:
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

    def inquire(self, descriptor: RangeDescriptor) -> None:
        """Ask the replicas that a descriptor names whether ours, which it does not name, was removed: nobody may have told it."""
        replica = self._replicas.get(descriptor.range_id)
        if replica is None or replica.descriptor.generation >= descriptor.generation or descriptor.replica(replica.replica_id) is not None:
            return
        for member in descriptor.replicas:
            self._loop.outbox.inquire(member.store_id, ReplicaNotice(replica.range_id, replica.replica_id))
        self._loop.schedule()

    def answer_inquiry(self, sender: StoreId, notice: ReplicaNotice) -> None:
        """Tell a replica that it was removed, or, if we lead it, that it is led."""
        replica = self._replicas.get(notice.range_id)
        if replica is None or replica.is_installing:
            return
        if replica.has_removed(notice.replica_id):
            self._loop.outbox.tell_removed(sender, replica.removal_of(notice.replica_id))
            self._loop.schedule()
        elif replica.is_leader:
            replica.raft.renew_support(notice.replica_id)
            replica.doubt_lease()
            self._loop.mark(notice.range_id)

    def _on_lapsed(self, store: StoreId, now: float) -> None:
        """Set free the replicas that follow a store whose promise has passed."""
        freed = []
        for range_id in sorted(self._replicas):
            replica = self._replicas[range_id]
            if follows(replica) == store:
                replica.raft.set_leader_supported(False)
                self._loop.mark(range_id)
                freed.append(replica)
        if freed:
            self._line_up(freed, now, least_s=self._context.config.campaign_jitter_s)
            log.info("store %d: no word from store %d; %d replicas may elect another leader", self._context.store_id, store, len(freed))

    # ---- Support ----

    def _needed_peers(self, now: float) -> list[StoreId]:
        if self._are_peers_doubted and now >= self._peers_at:
            self._are_peers_doubted = False
            self._peers_at = now + len(self._replicas) * PEERS_PAUSE_S
            needed: set[StoreId] = set()
            for replica in self._replicas.values():
                if replica.is_leader:
                    needed.update([member.store_id for member in replica.descriptor.replicas])
            needed.discard(self._context.store_id)
            self._peers = sorted(needed)
        return self._peers

    def _ask_support(self, now: float) -> None:
        """Ask all whose support is needed; what was promised to them meanwhile goes along."""
        liveness = self._context.liveness
        enough_until = now + self._context.config.support_duration_s * PATIENT_PART
        for store in self._needed_peers(now):
            may_wait = liveness.supported_until(store) > enough_until
            self._loop.outbox.request(store, liveness.request(now, may_wait=may_wait))
        self._loop.outbox.send_owed()

    def _ask_support_for(self, replica: Replica, now: float) -> None:
        """Ask for what a leader of now, or of other members, lacks."""
        liveness = self._context.liveness
        stores = {member.store_id for member in replica.descriptor.replicas} - {self._context.store_id}
        self._peers = sorted(stores.union(self._peers))
        for store in sorted(stores):
            if liveness.supported_until(store) <= now:
                self._loop.outbox.request(store, liveness.request(now))

    def _wake_unsupported(self, now: float) -> None:
        """Wake the groups led here that have just lost a store's support: those without a quorum's are ticked until they step down."""
        over = {store for store in self._needed_peers(now) if self._context.liveness.supported_until(store) <= now}
        lost, self._unsupporting = over - self._unsupporting, over
        if not lost:
            return
        lonely = []
        for range_id in sorted(self._replicas):
            replica = self._replicas[range_id]
            if replica.is_leader and any(member.store_id in lost for member in replica.descriptor.replicas):
                lonely.append(replica)
        self._line_up(lonely, now)

    def receive(self, frame: StoreFrame) -> None:
        """Take what a frame says about support."""
        context = self._context
        now = context.clock.now()
        if frame.grant is not None:
            was_over = context.liveness.supported_until(frame.sender) <= now
            if context.liveness.take_grant(frame.sender, frame.grant) or was_over:
                self._on_new_support(frame.sender, now)
        if frame.request is None:
            return
        life = frame.request.incarnation
        ended_lives = self._ended_lives.setdefault(frame.sender, deque(maxlen=ENDED_LIVES_MAX))
        if life in ended_lives:
            # A connection of an earlier life was read last: it says nothing of the present one, whose leases rest on our promise.
            return
        before = self._incarnations.get(frame.sender, life)
        is_same_life = before == life
        if not is_same_life:
            ended_lives.append(before)
        self._incarnations[frame.sender] = life
        period = context.chance.getrandbits(PERIOD_BITS)
        grant, is_new = context.liveness.take_request(frame.sender, frame.request, now, period)
        if frame.request.may_wait and is_same_life and not is_new and frame.sender in self._peers:
            # Our next request to it is due soon: an idle pair of stores so exchanges two frames in an interval, and not four.
            self._loop.outbox.grant_later(frame.sender, grant)
        else:
            self._loop.outbox.grant(frame.sender, grant)
        if not is_same_life:
            # Its leases ended with its earlier life, and none of this life is acknowledged yet.
            self._on_lapsed(frame.sender, now)
        elif is_new:
            for replica in self._replicas.values():
                if follows(replica) == frame.sender:
                    replica.raft.set_leader_supported(True)
                    replica.campaign_at = replica.wake_at = math.inf

    def _on_new_support(self, store: StoreId, now: float) -> None:
        """Have what a store acknowledged before its present promise acknowledged again; at once it counts no more."""
        renewed = []
        for range_id in sorted(self._replicas):
            replica = self._replicas[range_id]
            if not replica.is_leader:
                continue
            member = replica.descriptor.replica_on(store)
            if member is not None:
                replica.raft.renew_support(member.replica_id)
                replica.doubt_lease()
                renewed.append(replica)
        self._line_up(renewed, now)
