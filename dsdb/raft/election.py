"""How a leader is found: pre-votes, votes, campaigns, and handing the lead over.

    FOLLOWER ──timeout──▶ PRE_CANDIDATE ──quorum──▶ CANDIDATE ──quorum──▶ LEADER
        ▲                       │                       │                   │
        └── a leader, a newer term, a lost vote ────────┴── transfer, no quorum, removed, newer term

Invariants:
- One vote a term, durable before it is told: the reply leaves after the fsync, and a candidate's own vote counts only after its own.
- A replica whose store's promise to the followed leader's store stands, or that may have forgotten such a promise, neither votes nor
  campaigns. Two things set it free: that leader asking for votes itself, and a transfer, as each proves that the lead is given up.
- A leader that told another to campaign has stepped down before: its lead cannot overlap the next one's.
- A replica votes whoever it believes to be a voter: it may have been made one without knowing yet. Who counts is the candidate's business.

Not here: what a leader does (`leading`).
"""

from dsdb.raft.leading import Leading
from dsdb.raft.messages import NO_REPLICA, EntryKind, ReplicaId, TimeoutNow, Vote, VoteReply
from dsdb.raft.quorum import Outcome, is_quorum, vote_outcome
from dsdb.raft.ready import Role


class Election(Leading):
    """Votes and campaigns."""

    def _is_bound(self) -> bool:
        """Whether a promise, known or perhaps forgotten, forbids to vote and to campaign."""
        return self._is_barred or (self._is_supported and self.followed != NO_REPLICA)

    def _may_campaign(self) -> bool:
        """Whether this replica could lead: it votes, and knows who else does."""
        return self.role is not Role.LEADER and self.membership.is_voter(self.replica) and not self._has_unapplied_membership()

    # --- campaigning --------------------------------------------------------------------------------------------------------------------

    def _pre_campaign(self) -> None:
        """Ask, without moving any term, whether a campaign would win."""
        self.role = Role.PRE_CANDIDATE
        self.leader = NO_REPLICA
        self._is_role_dirty = True
        self._votes = {self.replica: True}
        self._is_campaign_transfer = self._gave_up_term == self.term
        self._ask_votes(pre=True)
        self._count_votes()

    def _campaign_for_real(self, *, is_transfer: bool) -> None:
        """Stand in the next term. The own vote counts when it is durable (`_own_vote_stabled`)."""
        self._set_hard(self.term + 1, self.replica)
        self.role = Role.CANDIDATE
        self.leader = NO_REPLICA
        self._is_role_dirty = True
        self._votes = {}
        self._elapsed = 0
        self._draw_timeout()
        self._is_campaign_transfer = is_transfer
        self._ask_votes(pre=False)

    def _ask_votes(self, *, pre: bool) -> None:
        """Send vote requests. Real ones claim a log and a term that must be durable; a pre-vote claims nothing."""
        term = self.term + 1 if pre else self.term
        sink = self._messages if pre else self._after_sync
        membership = self.membership
        commit, commit_term = self.log.commit, self.log.term(self.log.commit)
        for voter in sorted({*membership.voters, *membership.voters_outgoing}):
            if voter != self.replica:
                sink.append(
                    Vote(
                        to=voter,
                        sender=self.replica,
                        term=term,
                        last_index=self.log.last_index,
                        last_term=self.log.last_term,
                        pre=pre,
                        transfer=self._is_campaign_transfer,
                        commit=commit,
                        commit_term=commit_term,
                    )
                )

    def _own_vote_stabled(self) -> None:
        """Count the candidate's own vote, now durable."""
        if self.replica not in self._votes:
            self._votes[self.replica] = True
            self._count_votes()

    def _count_votes(self) -> None:
        outcome = vote_outcome(self.membership, self._votes)
        if outcome is Outcome.WON:
            if self.role is Role.PRE_CANDIDATE:
                self._campaign_for_real(is_transfer=self._is_campaign_transfer)
            else:
                self._become_leader()
        elif outcome is Outcome.LOST:
            self._become_follower(self.term, NO_REPLICA)

    def _become_leader(self) -> None:
        """Lead: append the first entry of the term, which commits what is left of earlier terms."""
        assert self.role is Role.CANDIDATE, self.role
        self.role = Role.LEADER
        self.leader = self.replica
        self.followed = self.replica
        self.followed_term = self.term
        self._is_supported = False
        self._is_role_dirty = True
        self._votes = {}
        self._elapsed = 0
        self._heartbeat_elapsed = 0
        self._round = 0
        self._uncommitted_bytes = 0
        # A change that an earlier leader appended may still be unapplied.
        self._pending_membership = self.log.last_index
        self._track_members()
        for progress in self._peers:
            progress.is_recently_active = False
        self._own_from, _ = self._append_own(EntryKind.NORMAL, b"")

    # --- voting -------------------------------------------------------------------------------------------------------------------------

    def _on_vote(self, message: Vote) -> None:
        if message.term < self.term:
            self._refuse(message)
            return
        if message.sender == self.followed and message.sender != self.replica and message.term > self.followed_term:
            # It asks for votes: what it led is over.
            self._unfollow()
        elif message.transfer and message.term > self.followed_term and self.role is not Role.LEADER:
            # The leader of the term before gave up, and every earlier lead ended with that one's election.
            self._unfollow()
        is_ignored = self._must_ignore(message)
        if not is_ignored or self.role is not Role.LEADER:
            # Also where it is ignored: what is learnt may be that the leader who is protected was removed.  A leader counts for itself.
            self._learn_commit(message)
        if is_ignored:
            return
        if message.term > self.term and not message.pre:
            self._become_follower(message.term, NO_REPLICA)
        can_vote = self.vote == message.sender or (self.vote == NO_REPLICA and self.leader == NO_REPLICA) or message.term > self.term
        if not can_vote or not self.log.is_up_to_date(message.last_index, message.last_term):
            self._refuse(message)
            return
        if not message.pre:
            if self.vote == NO_REPLICA:
                self._set_hard(self.term, message.sender)
            self._elapsed = 0
        self._answer(message, message.term, granted=True)

    def _must_ignore(self, message: Vote) -> bool:
        """Whether a promise, or the presence of a leader, forbids to even consider the request."""
        if self.role is Role.LEADER:
            if message.transfer and message.term > self.term + 1:
                return False
            # It does not see its leader: show it. If its term is newer, its answer deposes this leader.
            progress = self._progress.get(message.sender)
            if progress is not None:
                progress.is_heartbeat_due = True
                self._heartbeats_due = True
            return True
        if message.transfer:
            return False
        if self._is_bound():
            return True
        return self.leader not in (NO_REPLICA, message.sender) and self._elapsed < self.config.election_ticks

    def _refuse(self, message: Vote) -> None:
        self._answer(message, self.term, granted=False)

    def _answer(self, message: Vote, term: int, *, granted: bool) -> None:
        """Answer, and tell how far this replica knows the log to be committed: that may be the news that a protected leader has left."""
        log = self.log
        self._after_sync.append(
            VoteReply(
                to=message.sender,
                sender=self.replica,
                term=term,
                pre=message.pre,
                granted=granted,
                commit=log.commit,
                commit_term=log.term(log.commit),
            )
        )

    def _learn_commit(self, message: Vote | VoteReply) -> None:
        """Take the news that an entry is committed, from whoever knows it, if this log has that very entry."""
        if message.commit > self.log.commit and self.log.matches(message.commit, message.commit_term):
            self.log.commit_to(message.commit)

    def _on_vote_reply(self, message: VoteReply) -> None:
        """Count an answer to the present campaign; those to an earlier one differ in kind or term."""
        if self.role is Role.PRE_CANDIDATE:
            is_mine = message.pre and message.term == (self.term + 1 if message.granted else self.term)
        else:
            is_mine = self.role is Role.CANDIDATE and not message.pre and message.term == self.term
        if is_mine and message.sender not in self._votes:
            self._votes[message.sender] = message.granted
            if message.pre or not message.granted:
                # Whoever leads by this vote commits by entries of its own term only, and tells of them.
                self._learn_commit(message)
            if self._has_unapplied_membership():
                # Those who were asked may have left: ask again when the change is applied.
                self._become_follower(self.term, NO_REPLICA)
            else:
                self._count_votes()

    # --- transfer -----------------------------------------------------------------------------------------------------------------------

    def _hand_over_when_due(self) -> None:
        """Step down and tell the transfer's target to campaign as soon as it has the whole log."""
        if self._is_departing:
            self._depart_when_due()
            return
        target = self._progress.get(self._transfer_to)
        if target is not None and target.match == self.log.last_index:
            self._hand_over(target.replica)

    def _hand_over(self, target: ReplicaId) -> None:
        """Step down for good in this term, and tell a voter to campaign at once."""
        if self._appends_due:
            self._send_appends()
        self._messages.append(TimeoutNow(to=target, sender=self.replica, term=self.term))
        self._become_follower(self.term, NO_REPLICA)

    def _depart_when_due(self) -> None:
        """Step down as a leader that is no voter any more, when a quorum of the voters knows it; name the most complete of them as the
        next.

        Until then it leads without counting itself: voters who do not know of the change could not elect anyone without it.
        """
        progress = self._progress
        if is_quorum(self.membership, lambda voter: progress[voter].known_commit >= self._pending_membership):
            best = max(self._incoming, key=lambda voter: (voter.match, -voter.replica))
            self._hand_over(best.replica)

    def _on_timeout_now(self, message: TimeoutNow) -> None:
        if message.sender == self.followed:
            self._unfollow()
        if self._may_campaign():
            self._campaign_for_real(is_transfer=True)
