"""How a follower takes its leader's log: Appends, heartbeats and snapshots.

Invariants:
- Whatever claims durability (every reply) leaves after the fsync that makes it true: in `Ready.messages_after_sync`.
- A follower answers only a leader of its own term; an older leader is told the newer term, so that it steps down.
"""

from dsdb.raft.messages import Append, AppendReply, Heartbeat, HeartbeatReply, InstallSnapshot
from dsdb.raft.ready import Role
from dsdb.raft.state import RaftState


class Following(RaftState):
    """The follower's half of replication."""

    def _heed_leader(self, message: Append | Heartbeat | InstallSnapshot) -> bool:
        """Whether the message is of the leader of this term, or a newer one; such a leader is followed from now on."""
        if message.term == self.term and message.sender == self.leader:
            self._elapsed = 0
            return True
        if message.term < self.term:
            self._after_sync.append(
                AppendReply(to=message.sender, sender=self.replica, term=self.term, index=0, rejected=True, commit=self.log.commit)
            )
            return False
        assert message.term > self.term or self.role is not Role.LEADER, f"{message.sender} and {self.replica} both lead term {self.term}"
        self._become_follower(message.term, message.sender)
        return True

    def _on_append(self, message: Append) -> None:
        if not self._heed_leader(message):
            return
        log = self.log
        prev_index = message.prev_index
        if prev_index < log.commit:
            # Nothing below the commit index can differ: say how far this log surely agrees.
            index = log.commit
        elif log.merge(prev_index, message.prev_term, message.entries):
            index = prev_index + len(message.entries)
            if message.commit > log.commit:
                log.commit_to(message.commit if message.commit < index else index)
        else:
            hint_index, hint_term = log.conflict_hint(prev_index, message.prev_term)
            self._after_sync.append(
                AppendReply(
                    to=message.sender,
                    sender=self.replica,
                    term=self.term,
                    index=prev_index,
                    rejected=True,
                    hint_index=hint_index,
                    hint_term=hint_term,
                    commit=log.commit,
                )
            )
            return
        self._after_sync.append(AppendReply(to=message.sender, sender=self.replica, term=self.term, index=index, commit=log.commit))

    def _on_heartbeat(self, message: Heartbeat) -> None:
        if not self._heed_leader(message):
            return
        self.log.commit_to(message.commit)
        self._after_sync.append(
            HeartbeatReply(to=message.sender, sender=self.replica, term=self.term, round=message.round, commit=self.log.commit)
        )

    def _on_install_snapshot(self, message: InstallSnapshot) -> None:
        if not self._heed_leader(message):
            return
        snapshot = message.snapshot
        log = self.log
        if snapshot.index > log.commit and self.replica in snapshot.membership.members():
            if log.matches(snapshot.index, snapshot.term):
                # All of it is here already; only the commit index was unknown.
                log.commit_to(snapshot.index)
            else:
                log.restore(snapshot)
                self.membership = snapshot.membership
        self._after_sync.append(AppendReply(to=message.sender, sender=self.replica, term=self.term, index=log.commit, commit=log.commit))
