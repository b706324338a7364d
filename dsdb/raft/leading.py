"""What a leader does: replicate, count, commit, heartbeat, confirm reads, and judge its quorum.

Appends and heartbeats are only marked as due while calls come in; they are built when `ready()` is called, so everything of a turn
travels together.

Invariants:
- Only entries of the leader's own term commit by counting (Raft paper, section 5.4.2); what precedes them commits with them.
- The leader counts itself only up to what its own disk has confirmed, and only while it is a voter.
- Learners receive everything and count for nothing.
- A read is confirmed only by heartbeats that left after it was asked for, answered in this term.
"""

from collections.abc import Callable

from dsdb.raft.following import Following
from dsdb.raft.membership import apply_change
from dsdb.raft.messages import (
    NO_REPLICA,
    Append,
    AppendReply,
    ConfigEntry,
    Entry,
    EntryKind,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    MembershipChange,
    ReplicaId,
    SnapshotMetadata,
    encode_config_entry,
)
from dsdb.raft.progress import Progress
from dsdb.raft.quorum import is_quorum, majority_value
from dsdb.raft.ready import ReadState, Role
from dsdb.raft.status import ProgressState


class Leading(Following):
    """The leader's half of replication."""

    # --- the log ----------------------------------------------------------------------------------------------------------------------

    def _append_own(self, kind: EntryKind, data: bytes) -> tuple[int, int]:
        """Append an entry of this term to the leader's log, to be written and sent with the next Ready."""
        index = self.log.last_index + 1
        self.log.append((Entry(index=index, term=self.term, kind=kind, data=data),))
        self._uncommitted_bytes += len(data)
        self._appends_due = True
        return index, self.term

    def _track_members(self) -> None:
        """Keep a Progress for exactly the members; those that stay keep theirs."""
        membership = self.membership
        previous = self._progress
        self._progress = {}
        for replica in membership.members():
            progress = previous.get(replica)
            if progress is None:
                progress = Progress(replica, next_index=self.log.last_index + 1, is_learner=False)
                progress.is_recently_active = True  # one election timeout of grace before it can count against the quorum
                if replica == self.replica:
                    progress.match = self.log.stable
            progress.is_learner = not membership.is_voter(replica)
            self._progress[replica] = progress
        self._peers = [progress for replica, progress in self._progress.items() if replica != self.replica]
        self._incoming = [self._progress[replica] for replica in membership.voters]
        self._outgoing = [self._progress[replica] for replica in membership.voters_outgoing]

    def _own_stabled(self) -> None:
        """Count the leader's own log as far as its disk confirmed it."""
        own = self._progress.get(self.replica)
        if own is not None and self.log.stable > own.match:
            own.match = self.log.stable
            self._advance_commit()

    def _advance_commit(self) -> None:
        """Commit what a quorum has made durable, and let the followers know."""
        index = majority_value([progress.match for progress in self._incoming])
        if self._outgoing:
            index = min(index, majority_value([progress.match for progress in self._outgoing]))
        if index > self.log.commit and self._is_own_term(index):
            self.log.commit_to(index)
            self._appends_due = True
            if self._reads_waiting:
                waiting, self._reads_waiting = self._reads_waiting, []
                for context in waiting:
                    self._confirm_read(context)

    def _is_own_term(self, index: int) -> bool:
        """Whether the entry is of the leader's own term: the leader appends only such, so all from the first one on are."""
        return index >= self._own_from

    # --- to one follower ----------------------------------------------------------------------------------------------------------------

    def _send_appends(self) -> None:
        """Send each follower what it lacks and may be sent."""
        self._appends_due = False
        log = self.log
        for progress in self._peers:
            if progress.state is ProgressState.REPLICATE:
                while progress.next <= log.last_index and not self._is_full(progress):
                    if not self._send_append(progress):
                        break
                else:
                    usable = log.commit if log.commit < progress.next else progress.next - 1
                    if usable > progress.sent_commit and self.config.announces_commit:
                        self._send_append(progress, is_empty=True)
            elif progress.state is ProgressState.PROBE and not progress.is_paused:
                self._send_append(progress)
                progress.is_paused = True

    def _is_full(self, progress: Progress) -> bool:
        return len(progress.inflight) >= self.config.inflight_messages_max or progress.inflight_bytes >= self.config.inflight_bytes_max

    def _send_append(self, progress: Progress, *, is_empty: bool = False) -> bool:
        """Send one Append, or a snapshot when the log no longer reaches back far enough; False when no further Append may follow."""
        log = self.log
        prev_index = progress.next - 1
        if prev_index < log.base_index:
            self._send_snapshot(progress)
            return False
        entries: tuple[Entry, ...] = ()
        last = prev_index
        if not is_empty and last < log.last_index:
            entries = log.entries(progress.next, log.last_index + 1, self.config.append_bytes_max)
            last = entries[-1].index
        commit = log.commit
        self._messages.append(
            Append(
                to=progress.replica,
                sender=self.replica,
                term=self.term,
                prev_index=prev_index,
                prev_term=log.term(prev_index),
                entries=entries,
                commit=commit,
            )
        )
        if progress.state is ProgressState.REPLICATE:
            if entries:
                progress.sent(last, len(entries[0].data) if len(entries) == 1 else sum(len(entry.data) for entry in entries))
            progress.sent_commit = commit if commit < last else last
        return True

    def _send_snapshot(self, progress: Progress) -> None:
        """Ask the store to stream a snapshot; not to a member that has not been heard of, which could not take it."""
        if not progress.is_recently_active:
            return
        applied = self.log.applied
        progress.become_snapshot(applied)
        snapshot = SnapshotMetadata(index=applied, term=self.log.term(applied), membership=self.membership)
        self._messages.append(InstallSnapshot(to=progress.replica, sender=self.replica, term=self.term, snapshot=snapshot))

    def _on_append_reply(self, message: AppendReply) -> None:
        progress = self._progress.get(message.sender)
        if progress is None:
            return
        progress.answered()
        if message.commit > progress.known_commit:
            progress.known_commit = message.commit
        if message.rejected:
            hint_index = message.hint_index
            if message.hint_term and self.log.base_index <= hint_index:
                hint_index, _ = self.log.conflict_hint(hint_index, message.hint_term)
            if progress.rejected(message.index, hint_index):
                self._appends_due = True
            return
        is_news = progress.accepted(message.index)
        if progress.state is not ProgressState.REPLICATE:
            self._caught_up(progress, message.index)
        elif progress.next <= self.log.last_index:
            self._appends_due = True
        if is_news and message.index > self.log.commit:
            self._advance_commit()

    def _caught_up(self, progress: Progress, index: int) -> None:
        """Let a probed, or snapshotted, member that accepted something be replicated to."""
        if progress.state is ProgressState.PROBE and index >= progress.match:
            progress.become_replicate()
            self._appends_due = True
        elif progress.state is ProgressState.SNAPSHOT and progress.match >= self.log.base_index:
            # Whatever snapshot it took, the log reaches it again.
            progress.become_replicate()
            self._appends_due = True

    # --- heartbeats, reads, quorum ------------------------------------------------------------------------------------------------------

    def _heartbeat_all(self) -> None:
        """Let the next Ready carry a new round of heartbeats to every member."""
        for progress in self._peers:
            progress.is_heartbeat_due = True
        self._heartbeats_due = True

    def _send_heartbeats(self) -> None:
        self._heartbeats_due = False
        self._round += 1
        for progress in self._peers:
            if progress.is_heartbeat_due:
                progress.is_heartbeat_due = False
                commit = min(progress.match, self.log.commit)
                self._messages.append(
                    Heartbeat(to=progress.replica, sender=self.replica, term=self.term, commit=commit, round=self._round)
                )

    def _on_heartbeat_reply(self, message: HeartbeatReply) -> None:
        progress = self._progress.get(message.sender)
        if progress is None:
            return
        progress.answered_round(message.round)
        if message.commit > progress.known_commit:
            progress.known_commit = message.commit
        if self._reads:
            self._release_reads()
        # It is alive: whatever it still lacks was perhaps lost on the way. A refusal of this Append starts the probing.
        progress.is_paused = False
        if progress.match < self.log.last_index:
            if progress.state is ProgressState.REPLICATE and (progress.next > self.log.last_index or self._is_full(progress)):
                self._send_append(progress, is_empty=True)
            else:
                self._appends_due = True

    def _confirm_read(self, context: bytes) -> None:
        """Serve a read at the present commit index as soon as a quorum answers a heartbeat that leaves after now."""
        self._reads.append((self._round + 1, self.log.commit, context))
        self._heartbeat_all()
        self._release_reads()

    def _release_reads(self) -> None:
        """Answer the reads whose round a quorum has answered. The leader itself agrees to every round."""
        next_round = self._round + 1
        confirmed = majority_value([next_round if p.replica == self.replica else p.acked_round for p in self._incoming])
        if self._outgoing:
            outgoing = majority_value([next_round if p.replica == self.replica else p.acked_round for p in self._outgoing])
            confirmed = min(confirmed, outgoing)
        released = 0
        for round_number, index, context in self._reads:
            if round_number > confirmed:
                break
            self._read_states.append(ReadState(context=context, index=index))
            released += 1
        del self._reads[:released]

    def _has_active_quorum(self) -> bool:
        """Whether a quorum of voters has been heard of since the last check."""
        return is_quorum(self.membership, lambda voter: voter == self.replica or self._progress[voter].is_recently_active)

    def _is_changing(self) -> bool:
        """Whether a membership change is committed that this leader has not applied: others may already decide without it."""
        return self.log.applied < self._pending_membership <= self.log.commit

    def quorum_active(self, active: Callable[[ReplicaId], bool]) -> bool:
        """Whether this replica leads and a quorum of voters (of both, if joint) is active and has acknowledged it in this term.

        With `active(r)` = "the store of r presently supports mine" this is the lease. `active` is asked about this replica too.
        False during a transfer, while a committed membership change is not applied here, and when this replica is no voter.
        """
        if self.role is not Role.LEADER or self._transfer_to != NO_REPLICA or self._is_departing or self._is_changing():
            return False
        own = self.replica
        progress = self._progress
        return is_quorum(self.membership, lambda voter: (voter == own or progress[voter].is_acknowledged) and active(voter))

    def _is_leader_quiet(self, is_dead: Callable[[ReplicaId], bool]) -> bool:
        """Whether every member, but for dead ones, has and knows everything, and nothing waits."""
        log = self.log
        if (
            log.applied < log.last_index
            or self._reads
            or self._reads_waiting
            or self._transfer_to != NO_REPLICA
            or self._is_departing
            or self.membership.is_joint
        ):
            return False
        return all(
            (progress.match == log.last_index and progress.known_commit == log.commit and progress.is_acknowledged)
            or is_dead(progress.replica)
            for progress in self._peers
        )

    # --- membership ---------------------------------------------------------------------------------------------------------------------

    def _leave_joint_when_due(self) -> None:
        """Propose to leave a joint membership once it is applied here; never refused for want of room."""
        if self.membership.is_joint and self.log.applied >= self._pending_membership and self._transfer_to == NO_REPLICA:
            entry = ConfigEntry(change=MembershipChange(leave_joint=True))
            self._pending_membership, _ = self._append_own(EntryKind.CONFIG, encode_config_entry(entry))

    def _adopt_membership(self, change: MembershipChange) -> None:
        """Take the next membership; a leader tracks its members, and may find that fewer need to agree."""
        self.membership = apply_change(self.membership, change)
        if self.followed != self.replica and not self.membership.is_voter(self.followed):
            self._unfollow()
        if self.role is Role.LEADER:
            self._is_departing = not self.membership.is_voter(self.replica)
            self._track_members()
            self._appends_due = True
            self._advance_commit()
            if self._reads:
                self._release_reads()
