"""The leader's view of one member's log, and the flow control towards it.

    PROBE ──accepted──▶ REPLICATE ──rejected, unreachable──▶ PROBE
      └──────── behind the log ────────▶ SNAPSHOT ──reported, or caught up──▶ PROBE

Invariants:
- 0 ≤ match < next; entries in (match, next) are on their way while replicating.
- Probing sends one Append and waits for an answer (or a heartbeat's); replicating keeps within the limits of messages and bytes in flight.
- `is_acknowledged` is true only after an answer of this term that was given within the present period of support: see `renew`.
"""

from collections import deque

from dsdb.raft.messages import ReplicaId
from dsdb.raft.status import ProgressState


class Progress:
    """One member, as its leader sees it. Made anew for every term."""

    __slots__ = (
        "acked_round",
        "inflight",
        "inflight_bytes",
        "is_acknowledged",
        "is_heartbeat_due",
        "is_learner",
        "is_paused",
        "is_recently_active",
        "known_commit",
        "match",
        "next",
        "pending_snapshot",
        "renewed_round",
        "replica",
        "sent_commit",
        "state",
    )

    def __init__(self, replica: ReplicaId, *, next_index: int, is_learner: bool) -> None:
        self.replica = replica
        self.is_learner = is_learner
        self.match = 0  # durable there, and equal to the leader's log, up to here
        self.next = next_index  # the next index to send
        self.state = ProgressState.PROBE
        self.is_paused = False  # probing, and an Append is on its way
        self.pending_snapshot = 0  # index of the snapshot on its way, or 0
        self.inflight: deque[tuple[int, int]] = deque()  # (last index, bytes) of Appends on their way while replicating, in order
        self.inflight_bytes = 0
        self.sent_commit = 0  # the highest commit index sent that it can use
        self.known_commit = 0  # the commit index it last told
        self.acked_round = 0  # the last heartbeat round it answered
        self.renewed_round = 0  # only answers from this round on acknowledge the leader; 0: every answer does
        self.is_acknowledged = False
        self.is_recently_active = False  # answered since the last check of the quorum
        self.is_heartbeat_due = False

    def become_probe(self) -> None:
        """Find out where the logs agree, one Append at a time."""
        self.next = max(self.match, self.pending_snapshot) + 1
        self._reset(ProgressState.PROBE)
        self.sent_commit = min(self.sent_commit, self.match)

    def become_replicate(self) -> None:
        """Pipeline from the known match on."""
        self.next = self.match + 1
        self._reset(ProgressState.REPLICATE)
        self.sent_commit = min(self.sent_commit, self.match)

    def become_snapshot(self, index: int) -> None:
        """Wait for a snapshot to be reported."""
        self._reset(ProgressState.SNAPSHOT)
        self.pending_snapshot = index

    def _reset(self, state: ProgressState) -> None:
        self.state = state
        self.is_paused = False
        self.pending_snapshot = 0
        self.inflight.clear()
        self.inflight_bytes = 0

    def sent(self, last: int, size: int) -> None:
        """Note an Append with entries up to `last` that leaves while replicating."""
        self.next = last + 1
        self.inflight.append((last, size))
        self.inflight_bytes += size

    def accepted(self, index: int) -> bool:
        """Note that everything up to `index` is durable there; False when that is no news."""
        inflight = self.inflight
        while inflight and inflight[0][0] <= index:
            self.inflight_bytes -= inflight.popleft()[1]
        if index <= self.match:
            return False
        self.match = index
        if self.next <= index:
            self.next = index + 1
        return True

    def rejected(self, prev_index: int, hint: int) -> bool:
        """Note that an Append after `prev_index` was refused; the logs agree at most up to `hint`. False when the refusal is stale."""
        if self.state is ProgressState.REPLICATE:
            if prev_index <= self.match:
                return False
            self.become_probe()
            return True
        # Probing sends one Append at a time: a refusal of any other place answers an older one.
        if self.state is not ProgressState.PROBE or prev_index != self.next - 1:
            return False
        self.next = max(min(prev_index, hint + 1), self.match + 1)
        self.is_paused = False
        return True

    def answered(self) -> None:
        """Note an answer of this term other than a heartbeat's."""
        self.is_recently_active = True
        if not self.renewed_round:
            self.is_acknowledged = True

    def answered_round(self, round_number: int) -> None:
        """Note the answer to a heartbeat round of this term."""
        self.is_recently_active = True
        self.acked_round = max(self.acked_round, round_number)
        if round_number >= self.renewed_round:
            self.is_acknowledged = True

    def renew(self, next_round: int) -> None:
        """Count only answers to heartbeats sent from now on: the member was free to vote for another leader until now."""
        self.is_acknowledged = False
        self.renewed_round = next_round
        self.is_recently_active = True
        self.is_heartbeat_due = True
