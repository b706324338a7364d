"""One replica's Raft state machine: the public class `RaftNode`.

The store calls in (`step`, `tick`, `propose`, …), then, once a turn, takes the effects with `ready()` and performs them as `Ready` says.

Invariants:
- No call blocks, raises on peer input, or has an effect outside this object before `ready()` hands it out.
- A quiet group needs no ticks: every call works without them; only elections, retries of lost messages and check-quorum wait for a tick.
"""

import random
from collections.abc import Callable

from dsdb.raft.config import RaftConfig
from dsdb.raft.messages import Membership, MembershipChange, Message, ReplicaId
from dsdb.raft.ready import Ready, Role
from dsdb.raft.status import Status
from dsdb.raft.storage import LogStorage


class RaftNode:
    """The consensus of one group, as seen by one replica."""

    replica: ReplicaId
    role: Role
    term: int
    leader: ReplicaId  # NO_REPLICA while unknown
    membership: Membership  # as applied
    commit: int
    followed: ReplicaId
    """The last leader this replica acknowledged, kept when terms move on: the leader whom a standing promise of this replica's store protects.
    `set_leader_supported` speaks of it. NO_REPLICA after a start (then `set_votes_barred` must cover the promises given before)."""

    def __init__(self, replica: ReplicaId, config: RaftConfig, storage: LogStorage, chance: random.Random) -> None:
        """Start, or restart, from what `storage` shows, as a follower."""
        raise NotImplementedError

    # --- input -------------------------------------------------------------------------------------------------------------------------

    def step(self, message: Message) -> None:
        """Take a message addressed to this replica. Anything stale, unknown or not for now is ignored, never an error."""
        raise NotImplementedError

    def tick(self) -> None:
        """Let one interval pass: election timeout, heartbeats, check-quorum, giving up on a transfer."""
        raise NotImplementedError

    def propose(self, data: bytes) -> tuple[int, int] | None:
        """Append a command to the leader's log; give its (index, term).

        None when this replica is not the leader, hands over its lead, or has too much uncommitted. The command is committed when an entry of this
        index *and term* is handed out in `Ready.committed`; another term there means that it never will be.
        Raises ValueError on empty data, which is reserved for the leader's first entry.
        """
        raise NotImplementedError

    def propose_membership(self, change: MembershipChange, context: bytes = b"") -> tuple[int, int] | None:
        """Propose a membership change as a CONFIG entry; give its (index, term).

        None as for `propose`, and while an earlier change is not applied or a joint membership not left. A joint membership is left by the leader
        itself with one more CONFIG entry, of empty context. Raises ValueError on a change that makes no sense for the present membership.
        """
        raise NotImplementedError

    def apply_membership(self, change: MembershipChange) -> Membership:
        """Adopt a change at its place in the log; give the membership to be kept with the applied state, and in snapshots.

        Called for every CONFIG entry in the order of `Ready.committed`, before `applied` reaches it, with the change it carries, or with an empty
        `MembershipChange()` when the store's own command in its context was refused at apply (deterministically, on every replica).
        """
        raise NotImplementedError

    def campaign(self) -> None:
        """Campaign now, through a pre-vote, if this replica may: it is a voter, has no unapplied membership change, and is not barred."""
        raise NotImplementedError

    def transfer_leadership(self, to: ReplicaId) -> bool:
        """Begin to hand the lead to a voter: proposals are refused, the target is brought up to date, told to campaign, and this leader steps down.

        False when not the leader, or `to` is not another voter. From this call on `quorum_active` is False until the transfer is given up
        (after election_ticks, and only if TimeoutNow was not yet sent). Stop serving reads and writes before calling.
        """
        raise NotImplementedError

    def read_index(self, context: bytes) -> bool:
        """Ask for an index at which a read that arrives now is current; the answer comes as a `ReadState` with this context.

        False when this replica is not the leader, or too many requests wait. Needs one round of heartbeats to a quorum (none when alone).
        A request before the leader's first own entry is committed waits for that.
        """
        raise NotImplementedError

    # --- effects -----------------------------------------------------------------------------------------------------------------------

    @property
    def has_ready(self) -> bool:
        """Whether `ready()` would hand anything out."""
        raise NotImplementedError

    def ready(self) -> Ready:
        """Hand out the effects since the last Ready; see `Ready` for the duties. Earlier Readys may still be in flight."""
        raise NotImplementedError

    def advance(self, ready: Ready) -> None:
        """Report all duties of a Ready done at once: for shells that write, sync and apply in one go (`stabled`, `applied`, `compacted`)."""
        raise NotImplementedError

    def stabled(self, index: int, term: int) -> None:
        """Report a `Ready.stable` mark durable. A mark of an earlier term is ignored: the log may have been truncated since, and the Ready that
        carried the new term brings a mark that covers what still stands."""
        raise NotImplementedError

    def applied(self, index: int) -> None:
        """Report everything up to `index` applied."""
        raise NotImplementedError

    def compacted(self) -> None:
        """Report that the storage's first index moved up (at most to applied + 1): nothing before it will be asked for."""
        raise NotImplementedError

    # --- the network ---------------------------------------------------------------------------------------------------------------------

    def report_unreachable(self, replica: ReplicaId) -> None:
        """Report that messages to a replica were lost: stop pipelining to it until it answers."""
        raise NotImplementedError

    def report_snapshot(self, replica: ReplicaId, ok: bool) -> None:
        """Report the end of a snapshot stream that an InstallSnapshot asked for. Without success it is asked for again at a later tick."""
        raise NotImplementedError

    # --- store-level liveness --------------------------------------------------------------------------------------------------------------

    def set_leader_supported(self, supported: bool) -> None:
        """Say whether this store's promise to the store of `followed` stands. While it does this replica does not campaign and refuses votes and
        pre-votes, except a transfer's. Call it whenever either side changes: the promise, or `followed` (after `step`)."""
        raise NotImplementedError

    def set_votes_barred(self, barred: bool) -> None:
        """Bar this replica from voting and campaigning altogether, but for transfers: for the longest promise after a start that may have lost promises."""
        raise NotImplementedError

    def renew_support(self, replica: ReplicaId) -> None:
        """Say that the store of a follower has begun a *new* period of support for this store, after a lapse (or for the first time).

        What the follower acknowledged before does not count for `quorum_active` any more, as it may have voted during the lapse; a heartbeat goes
        out whose answer counts. Not needed for promises extended without a lapse.
        """
        raise NotImplementedError

    def quorum_active(self, active: Callable[[ReplicaId], bool]) -> bool:
        """Whether this replica leads and a quorum of voters (of both, if joint) is active and has acknowledged it in this term.

        With `active(r)` = "the store of r presently supports mine" this is the lease. `active` is asked about this replica too.
        """
        raise NotImplementedError

    # --- views -------------------------------------------------------------------------------------------------------------------------------

    @property
    def is_quiet(self) -> bool:
        """Whether ticks may stop. Leader: all recently active members match the whole log and know it is committed, nothing waits.
        Follower: a leader is known and nothing is unapplied."""
        raise NotImplementedError

    def status(self) -> Status:
        """Give a frozen view."""
        raise NotImplementedError
