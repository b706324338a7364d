"""What every role of a replica shares: its durable and volatile state, whom it follows, and the effects not yet handed out.

The class ladder of the core, each floor using only those below it:

    node         public calls, dispatch, Ready
    election     votes, campaigns, transfer
    leading      replication, heartbeats, reads, quorum, as the leader does them
    following    log and snapshots, as a follower takes them
    state        this file

Invariants:
- Every change of term or vote marks the hard state as to be written and starts a new generation of durability reports.
- `followed` outlives terms: it changes only when another leader is acknowledged, or when the followed one is known to lead no more.
"""

import random

from dsdb.raft.config import RaftConfig
from dsdb.raft.log import RaftLog
from dsdb.raft.messages import NO_REPLICA, HardState, Message, ReplicaId
from dsdb.raft.progress import Progress
from dsdb.raft.ready import ReadState, Role
from dsdb.raft.storage import LogStorage


class RaftState:
    """The fields of a replica, and the transitions that any role can make."""

    def __init__(self, replica: ReplicaId, config: RaftConfig, storage: LogStorage, chance: random.Random) -> None:
        hard, membership, applied = storage.initial_state()
        self.replica = replica
        self.config = config
        self.membership = membership  # as applied
        self.term = hard.term
        self.vote = hard.vote  # in this term
        self.role = Role.FOLLOWER
        self.leader = NO_REPLICA  # of this term, while known
        self.followed = NO_REPLICA  # the last leader acknowledged, whom a promise of this replica's store may protect
        self.followed_term = 0  # in which `followed` was last acknowledged as leader
        self.log = RaftLog(storage, commit=hard.commit, applied=applied)
        self._chance = chance

        # Elections.
        self._is_supported = False  # the promise to `followed` stands
        self._is_barred = False  # a forgotten promise may stand
        self._gave_up_term = -1  # the last term this replica led and gave up
        self._votes: dict[ReplicaId, bool] = {}  # answers to the present campaign
        self._is_campaign_transfer = False  # the present campaign was asked for by the former leader, or is by it
        self._elapsed = 0  # ticks since the leader was heard (follower), the campaign began (candidate), the quorum was checked (leader)
        self._timeout = 0  # ticks until the next campaign
        self._draw_timeout()

        # Leading. Empty for other roles.
        self._progress: dict[ReplicaId, Progress] = {}  # of every member, this replica included
        self._peers: list[Progress] = []  # the same without this replica, sorted
        self._incoming: list[Progress] = []  # of the voters
        self._outgoing: list[Progress] = []  # of the outgoing voters
        self._own_from = 0  # index of the first entry of the leader's own term
        self._pending_membership = 0  # no change is proposed before this index is applied
        self._uncommitted_bytes = 0  # of own proposals
        self._transfer_to = NO_REPLICA
        self._is_departing = False  # no voter any more, but not all who are know it
        self._heartbeat_elapsed = 0  # ticks
        self._round = 0  # of heartbeats in this term
        self._reads: list[tuple[int, int, bytes]] = []  # (round that confirms it, index, context), in order
        self._reads_waiting: list[bytes] = []  # contexts that wait for the first own entry to commit

        # Effects not yet handed out.
        self._messages: list[Message] = []
        self._after_sync: list[Message] = []
        self._read_states: list[ReadState] = []
        self._is_hard_dirty = False
        self._hard_commit = hard.commit  # the commit index last handed out to be written
        self._is_role_dirty = False
        self._appends_due = False
        self._heartbeats_due = False

    @property
    def commit(self) -> int:
        """The highest index known to be committed."""
        return self.log.commit

    def _draw_timeout(self) -> None:
        """Draw the election timeout anew, so that two campaigns seldom collide twice."""
        ticks = self.config.election_ticks
        self._timeout = ticks + self._chance.randrange(ticks)

    def _set_hard(self, term: int, vote: ReplicaId) -> None:
        """Adopt a term or vote that must be durable before anything that depends on it leaves."""
        self.term = term
        self.vote = vote
        self._is_hard_dirty = True
        self.log.generation += 1

    def _become_follower(self, term: int, leader: ReplicaId) -> None:
        """Follow, in this term or a higher one; give up whatever role there was."""
        assert term >= self.term, f"term {self.term} cannot go back to {term}"
        if self.role is Role.LEADER:
            self._resign()
        if term > self.term:
            self._set_hard(term, NO_REPLICA)
        self.role = Role.FOLLOWER
        self.leader = leader
        self._votes = {}
        self._elapsed = 0
        self._draw_timeout()
        self._is_role_dirty = True
        if leader != NO_REPLICA:
            self._follow(leader)

    def _follow(self, leader: ReplicaId) -> None:
        """Acknowledge a leader. Until the store says otherwise its promise to that leader's store is taken to stand."""
        if self._has_left(leader):
            self._unfollow()
        elif self.followed != leader:
            self.followed = leader
            self._is_supported = True
            self._is_role_dirty = True
        self.followed_term = self.term

    def _has_left(self, leader: ReplicaId) -> bool:
        """Whether the leader of this term is known to be no voter any more, so that it holds no lease, and steps down before long.

        It was a voter where it was elected; what is applied of its own term lies behind that.
        """
        return not self.membership.is_voter(leader) and self.log.term(self.log.applied) == self.term

    def _unfollow(self) -> None:
        """Forget the followed leader, which is known to lead no more: a promise to its store protects nothing here."""
        if self.followed != NO_REPLICA:
            self.followed = NO_REPLICA
            self._is_supported = False
            self._is_role_dirty = True

    def _resign(self) -> None:
        """Drop all that only a leader has. The lead of this term is over for good: nobody becomes leader twice in one term."""
        self._gave_up_term = self.term
        for _, _, context in self._reads:
            self._read_states.append(ReadState(context=context, index=None))
        for context in self._reads_waiting:
            self._read_states.append(ReadState(context=context, index=None))
        self._reads.clear()
        self._reads_waiting.clear()
        self._progress = {}
        self._peers = []
        self._incoming = []
        self._outgoing = []
        self._transfer_to = NO_REPLICA
        self._is_departing = False
        self._appends_due = False
        self._heartbeats_due = False
        self._unfollow()

    def _has_unapplied_membership(self) -> bool:
        """Whether a committed membership change waits to be applied: who campaigned now would ask the wrong voters."""
        index = self.log.applied + 1
        while index <= self.log.commit:
            entries = self.log.entries(index, self.log.commit + 1, self.config.apply_bytes_max)
            if any(entry.kind != 0 for entry in entries):
                return True
            index = entries[-1].index + 1
        return False

    def _hard_state(self) -> HardState:
        self._is_hard_dirty = False
        self._hard_commit = self.log.commit
        return HardState(term=self.term, vote=self.vote, commit=self.log.commit)
