"""One replica's Raft state machine: the public class `RaftNode`.

The store calls in (`step`, `tick`, `propose`, …), then, once a turn, takes the effects with `ready()` and performs them as `Ready` says.

Invariants:
- No call blocks, and none has an effect outside this object before `ready()` hands it out.
- Messages that are stale, unknown or not for now are ignored. An AssertionError means that a peer or a disk broke its word (two leaders
  in a term, a committed entry replaced, an acknowledged one lost): the store stops the replica.
- A quiet group needs no ticks: every call works without them; only elections, retries of lost messages and check-quorum wait for a tick.

Not here: the roles themselves (`following`, `leading`, `election`).
"""

import random
from collections.abc import Callable

from dsdb.raft.config import RaftConfig
from dsdb.raft.election import Election
from dsdb.raft.membership import check_change
from dsdb.raft.messages import (
    NO_REPLICA,
    Append,
    AppendReply,
    ConfigEntry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Membership,
    MembershipChange,
    Message,
    ReplicaId,
    TimeoutNow,
    Vote,
    VoteReply,
    encode_config_entry,
)
from dsdb.raft.ready import ReadState, Ready, Role, RoleChange
from dsdb.raft.status import ProgressState, ProgressStatus, Status
from dsdb.raft.storage import LogStorage


class RaftNode(Election):
    """The consensus of one group, as seen by one replica.

    Attributes to read: `replica`, `role`, `term`, `leader` (NO_REPLICA while unknown), `membership` (as applied), `commit`, and
    `followed`: the last leader this replica acknowledged, kept when terms move on. It is the leader whom a standing promise of this
    replica's store protects, and of whom `set_leader_supported` speaks; NO_REPLICA after a start (then `set_votes_barred` covers the
    promises given before).
    """

    def __init__(self, replica: ReplicaId, config: RaftConfig, storage: LogStorage, chance: random.Random) -> None:
        """Start, or restart, from what `storage` shows, as a follower. `chance` spreads the election timeouts."""
        super().__init__(replica, config, storage, chance)
        self._handlers: dict[type, Callable[..., None]] = {
            Append: self._on_append,
            AppendReply: self._on_append_reply,
            Heartbeat: self._on_heartbeat,
            HeartbeatReply: self._on_heartbeat_reply,
            InstallSnapshot: self._on_install_snapshot,
            TimeoutNow: self._on_timeout_now,
            Vote: self._on_vote,
            VoteReply: self._on_vote_reply,
        }

    # --- input ------------------------------------------------------------------------------------------------------------------------

    def step(self, message: Message) -> None:
        """Take a message addressed to this replica. Anything stale, unknown or not for now is ignored."""
        if message.to != self.replica:
            return
        kind = type(message)
        if message.term != self.term and kind in _ANSWERS:
            if message.term < self.term:
                return
            # A granted pre-vote echoes the term that was asked for; any other answer of a newer term deposes.
            if not (isinstance(message, VoteReply) and message.pre and message.granted):
                self._become_follower(message.term, NO_REPLICA)
                if kind is not TimeoutNow:
                    return
        self._handlers[kind](message)
        if self.role is Role.LEADER and (self._transfer_to != NO_REPLICA or self._is_departing):
            self._hand_over_when_due()

    def tick(self) -> None:
        """Let one interval pass: election timeout, heartbeats, check-quorum, giving up on a transfer."""
        self._elapsed += 1
        if self.role is Role.LEADER:
            self._tick_leader()
        elif self._elapsed >= self._timeout:
            self._elapsed = 0
            self._draw_timeout()
            if self._is_bound() or not self._may_campaign():
                self._seek_leader()
            else:
                self._pre_campaign()

    def _tick_leader(self) -> None:
        self._heartbeat_elapsed += 1
        if self._elapsed >= self.config.election_ticks:
            self._elapsed = 0
            self._transfer_to = NO_REPLICA
            if not self._has_active_quorum():
                self._become_follower(self.term, NO_REPLICA)
                return
            for progress in self._peers:
                progress.is_recently_active = False
            self._leave_joint_when_due()
        if self._heartbeat_elapsed >= self.config.heartbeat_ticks:
            self._heartbeat_elapsed = 0
            self._heartbeat_all()

    def _seek_leader(self) -> None:
        """Make an existing leader show itself to a member that knows none and may not campaign: a pre-vote request makes it send a
        heartbeat."""
        if self.leader == NO_REPLICA and self.role is Role.FOLLOWER and self.replica in self.membership.members():
            self._is_campaign_transfer = False
            self._ask_votes(pre=True)

    def propose(self, data: bytes) -> tuple[int, int] | None:
        """Append a command to the leader's log; give its (index, term).

        None when this replica is not the leader, hands over its lead, or has too much uncommitted. The command is committed when an
        entry of this index *and term* is handed out in `Ready.committed`; another term there means that it never will be.
        Raises ValueError on empty data, which is reserved for the leader's first entry.
        """
        if not data:
            raise ValueError("a proposal needs data: empty entries are the leader's own")
        if self.role is not Role.LEADER or self._transfer_to != NO_REPLICA or self._is_departing:
            return None
        if self._uncommitted_bytes and self._uncommitted_bytes + len(data) > self.config.uncommitted_bytes_max:
            return None
        return self._append_own(EntryKind.NORMAL, data)

    def propose_membership(self, change: MembershipChange, context: bytes = b"") -> tuple[int, int] | None:
        """Propose a membership change as a CONFIG entry; give its (index, term).

        None when not the leader or while handing over, and while an earlier change is not applied or a joint membership not left: one at
        a time. A joint membership is left by the leader itself with one more CONFIG entry, of empty context.
        Raises ValueError on a change that makes no sense for the present membership.
        """
        if self.role is not Role.LEADER or self._transfer_to != NO_REPLICA or self._is_departing:
            return None
        if self.log.applied < self._pending_membership or (self.membership.is_joint and not change.leave_joint):
            return None
        check_change(self.membership, change)
        entry = ConfigEntry(change=change, context=context)
        self._pending_membership, term = self._append_own(EntryKind.CONFIG, encode_config_entry(entry))
        return self._pending_membership, term

    def apply_membership(self, change: MembershipChange) -> Membership:
        """Adopt a change at its place in the log; give the membership to be kept with the applied state, and in snapshots.

        Called for every CONFIG entry in the order of `Ready.committed`, before `applied` reaches it, with the change it carries, or with an
        empty `MembershipChange()` when the store's own command in its context was refused at apply (deterministically, on every replica).
        A leader that is no voter any more takes no proposals, and steps down as soon as a quorum of the voters knows of the change: keep it
        running until then.
        """
        self._adopt_membership(change)
        return self.membership

    def campaign(self) -> None:
        """Campaign now, through a pre-vote, if this replica may: it is a voter, has no unapplied membership change, and is not bound or
        barred."""
        if self._may_campaign() and not self._is_bound():
            self._elapsed = 0
            self._draw_timeout()
            self._pre_campaign()

    def transfer_leadership(self, to: ReplicaId) -> bool:
        """Begin to hand the lead to a voter: proposals are refused, the target is brought up to date, this leader steps down and tells
        it to campaign.

        False when not the leader, or `to` is not another voter. From this call on `quorum_active` is False until the transfer is given
        up, which happens after at most election_ticks ticks, and only while the target is not yet up to date: once told to campaign it
        may do so any time. Stop serving reads and writes before calling.
        """
        if self.role is not Role.LEADER or to == self.replica or to not in self.membership.voters:
            return False
        self._transfer_to = to
        self._elapsed = 0
        self._hand_over_when_due()
        return True

    def read_index(self, context: bytes) -> bool:
        """Ask for an index at which a read that arrives now is current; the answer comes as a `ReadState` with this context.

        False when this replica is not the leader, or too many requests wait. Needs one round of heartbeats to a quorum (none when alone).
        A request before the leader's first own entry is committed waits for that: until then the leader may not know what is committed.
        """
        if self.role is not Role.LEADER or len(self._reads) + len(self._reads_waiting) >= self.config.reads_pending_max:
            return False
        if self.log.commit < self._own_from:
            self._reads_waiting.append(context)
        else:
            self._confirm_read(context)
        return True

    # --- effects ----------------------------------------------------------------------------------------------------------------------

    @property
    def has_ready(self) -> bool:
        """Whether `ready()` may have anything to hand out."""
        log = self.log
        return bool(
            log.handed != log.last_index
            or log.applying < log.commit
            or self._appends_due
            or self._after_sync
            or self._messages
            or self._heartbeats_due
            or self._is_hard_dirty
            or self._is_role_dirty
            or self._read_states
            or log.snapshot is not None
        )

    def ready(self) -> Ready:
        """Hand out the effects since the last Ready; see `Ready` for the duties. Earlier Readys may still be in flight."""
        log = self.log
        if self._appends_due:
            self._send_appends()
        if self._heartbeats_due:
            self._send_heartbeats()
        snapshot, log.snapshot = log.snapshot, None
        entries = log.take_unwritten() if log.handed != log.last_index else ()
        hard_state = None
        stable = None
        if entries or self._is_hard_dirty or snapshot is not None:
            # The commit index goes with every write of entries: a replica that holds an entry then knows, after a crash too, every
            # membership change that was committed before that entry was proposed, and cannot campaign before applying it.
            if self._is_hard_dirty or log.commit != self._hard_commit:
                hard_state = self._hard_state()
            stable = (log.last_index, log.generation)
        committed = log.take_committed(self.config.apply_bytes_max) if log.applying < log.commit else ()
        if committed and self._uncommitted_bytes:
            self._uncommitted_bytes = max(0, self._uncommitted_bytes - sum([len(entry.data) for entry in committed]))
        messages: tuple[Message, ...] = ()
        if self._messages:
            messages = tuple(self._messages)
            self._messages.clear()
        after_sync: tuple[Message, ...] = ()
        if self._after_sync:
            after_sync = tuple(self._after_sync)
            self._after_sync.clear()
        return Ready(
            hard_state=hard_state,
            snapshot=snapshot,
            entries=entries,
            stable=stable,
            messages=messages,
            messages_after_sync=after_sync,
            committed=committed,
            read_states=self._take_read_states() if self._read_states else (),
            role_change=self._take_role_change() if self._is_role_dirty else None,
        )

    def _take_read_states(self) -> tuple[ReadState, ...]:
        read_states = tuple(self._read_states)
        self._read_states.clear()
        return read_states

    def _take_role_change(self) -> RoleChange:
        self._is_role_dirty = False
        return RoleChange(role=self.role, term=self.term, leader=self.leader, followed=self.followed)

    def advance(self, ready: Ready) -> None:
        """Report all duties of a Ready done at once: for shells that write, sync and apply in one go."""
        if ready.stable is not None:
            self.stabled(*ready.stable)
        if ready.snapshot is not None:
            self.applied(ready.snapshot.index)
        if ready.committed:
            self.applied(ready.committed[-1].index)

    def stabled(self, index: int, generation: int) -> None:
        """Report a `Ready.stable` mark durable.

        A mark of an earlier generation is ignored: the log was truncated, or the term or vote changed, since it was handed out. A later
        Ready's mark covers what still stands.
        """
        if not self.log.stabled(index, generation):
            return
        if self.role is Role.LEADER:
            self._own_stabled()
        elif self.role is Role.CANDIDATE:
            self._own_vote_stabled()

    def applied(self, index: int) -> None:
        """Report everything up to `index` applied."""
        self.log.applied_to(index)
        if self.role is Role.LEADER and self.membership.is_joint:
            self._leave_joint_when_due()

    def compacted(self) -> None:
        """Report that the storage's first index moved up (at most to applied + 1): nothing before it will be asked for."""
        self.log.compacted()

    # --- the network ------------------------------------------------------------------------------------------------------------------

    def report_unreachable(self, replica: ReplicaId) -> None:
        """Report that messages to a replica were lost: stop pipelining to it until it answers."""
        progress = self._progress.get(replica)
        if progress is not None and replica != self.replica and progress.state is ProgressState.REPLICATE:
            progress.become_probe()

    def report_snapshot(self, replica: ReplicaId, ok: bool) -> None:
        """Report the end of a snapshot stream that an InstallSnapshot asked for. Without success it is asked for again at a later tick."""
        progress = self._progress.get(replica)
        if progress is None or progress.state is not ProgressState.SNAPSHOT:
            return
        if not ok:
            progress.pending_snapshot = 0
        progress.become_probe()
        # Its own answer, or a heartbeat's, sets it going.
        progress.is_paused = True

    # --- store-level liveness ---------------------------------------------------------------------------------------------------------

    def set_leader_supported(self, supported: bool) -> None:
        """Say whether this store's promise to the store of `followed` stands.

        While it does this replica does not campaign, and ignores votes and pre-votes, except a transfer's or those of `followed` itself.
        Call it whenever either side changes: the promise, or `followed` (as `Ready.role_change` tells); until then a newly followed
        leader counts as supported. When support ends, the replica takes the leader for silent at once instead of waiting another
        election_ticks.
        """
        if self._is_supported and not supported:
            self._elapsed = max(self._elapsed, self.config.election_ticks)
        self._is_supported = supported and self.followed != NO_REPLICA and self.followed != self.replica

    def set_votes_barred(self, barred: bool) -> None:
        """Bar this replica from voting and campaigning, except in a transfer: for the longest promise after a start that may have lost
        promises."""
        self._is_barred = barred

    def renew_support(self, replica: ReplicaId) -> None:
        """Say that the store of a follower has begun a *new* period of support for this store: for the first time, after a lapse
        as either side counts it, or after its restart.

        What the follower acknowledged before does not count for `quorum_active` any more, as it may have voted during the lapse; a
        heartbeat goes out whose answer counts. Not needed for promises extended without a lapse. Also wakes a quiet leader for a
        follower that is back.
        """
        progress = self._progress.get(replica)
        if progress is not None and replica != self.replica:
            progress.renew(self._round + 1)
            self._heartbeats_due = True

    # --- views ------------------------------------------------------------------------------------------------------------------------

    @property
    def is_quiet(self) -> bool:
        """Whether ticks may stop. Leader: every member has and knows the whole log, nothing waits. Follower: a leader is known and nothing
        is unapplied. Others: never, except a replica that is no member."""
        return self.is_quiet_but_for(lambda replica: False)

    def is_quiet_but_for(self, is_dead: Callable[[ReplicaId], bool]) -> bool:
        """Whether ticks may stop, if a leader need not wait for members on dead stores.

        When such a store supports this one again, even if its promise never lapsed on its side, `renew_support` wakes the leader for it.
        """
        if self.has_ready:
            return False
        if self.role is Role.LEADER:
            return self._is_leader_quiet(is_dead)
        if self.leader == NO_REPLICA:
            return self.replica not in self.membership.members()
        return self.log.applied == self.log.commit

    def status(self) -> Status:
        """Give a frozen view."""
        log = self.log
        return Status(
            replica=self.replica,
            role=self.role,
            term=self.term,
            vote=self.vote,
            leader=self.leader,
            followed=self.followed,
            commit=log.commit,
            applied=log.applied,
            first_index=log.base_index + 1,
            last_index=log.last_index,
            stable_index=log.stable,
            membership=self.membership,
            transfer_to=self._transfer_to,
            is_supported=self._is_supported,
            is_barred=self._is_barred,
            progress=tuple(
                ProgressStatus(
                    replica=progress.replica,
                    match=progress.match,
                    next=progress.next,
                    state=progress.state,
                    is_learner=progress.is_learner,
                    is_recently_active=progress.is_recently_active,
                    is_acknowledged=progress.is_acknowledged or progress.replica == self.replica,
                )
                for progress in self._progress.values()
            ),
        )


_ANSWERS = frozenset({AppendReply, HeartbeatReply, VoteReply, TimeoutNow})
"""Messages that mean nothing in another term than their own."""
