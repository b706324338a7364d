"""What Raft replicas keep and what they say to each other: log entries, durable state, memberships and messages.

    leader                          follower
      │ ── Append(prev, entries, commit) ─▶ │   replicates, and tells the commit index
      │ ◀─ AppendReply(index | rejected) ── │
      │ ── Heartbeat(commit, round) ──────▶ │   asks "am I still your leader?" (ticks, read index, lease)
      │ ◀─ HeartbeatReply(round) ────────── │
      │ ── InstallSnapshot(metadata) ─────▶ │   the data travels beside it, streamed by the store
      │ ── TimeoutNow ────────────────────▶ │   leadership transfer: campaign at once
    candidate                       voter
      │ ── Vote(pre, last, transfer) ─────▶ │
      │ ◀─ VoteReply(pre, granted) ──────── │

Invariants:
- Every type is frozen, compares by value, and encodes as an array; fields are only ever added at the end.
- Indexes and terms start at 1; 0 means "before the log". A `ReplicaId` is positive; `NO_REPLICA` (0) means none.
- Tuples of replica ids are sorted and without duplicates.

Not here: which group a message belongs to (the store's frame says it), and who a replica id is (the range descriptor says it).
"""

import enum
from typing import NewType, TypeAlias

import msgspec

ReplicaId = NewType("ReplicaId", int)
"""The id of one replica within its group; never reused by the group, so a replica that comes back is a new one."""

NO_REPLICA = ReplicaId(0)
"""No replica: an unknown leader, or a vote not given."""


class EntryKind(enum.IntEnum):
    """What a log entry is for."""

    NORMAL = 0  # data is the store's command; empty data is the first entry of a new leader's term, to be skipped at apply
    CONFIG = 1  # data is an encoded `ConfigEntry`


class Entry(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """One entry of the log."""

    index: int
    term: int
    kind: EntryKind = EntryKind.NORMAL
    data: bytes = b""


class HardState(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """What must survive a crash beside the log: forgetting term or vote would allow two votes in one term."""

    term: int = 0
    vote: ReplicaId = NO_REPLICA
    commit: int = 0  # a lower bound of the commit index


class Membership(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """Who belongs to the group. While `voters_outgoing` is not empty the membership is joint: every decision needs a majority of both."""

    voters: tuple[ReplicaId, ...] = ()
    voters_outgoing: tuple[ReplicaId, ...] = ()  # the voters before a joint change; empty when not joint
    learners: tuple[ReplicaId, ...] = ()  # receive the log, never vote and never count
    learners_next: tuple[ReplicaId, ...] = ()  # outgoing voters that become learners when the joint membership is left

    @property
    def is_joint(self) -> bool:
        """Whether decisions need both the incoming and the outgoing majority."""
        return bool(self.voters_outgoing)

    def is_voter(self, replica: ReplicaId) -> bool:
        """Whether the replica votes, in either half of a joint membership."""
        return replica in self.voters or replica in self.voters_outgoing

    def members(self) -> tuple[ReplicaId, ...]:
        """Every replica that receives the log, sorted."""
        return tuple(sorted({*self.voters, *self.voters_outgoing, *self.learners, *self.learners_next}))


class MembershipChange(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """A step from one membership to the next. It goes through a joint membership when it touches more than one voter.

    A replica named in `add_voters` may be new or a learner (promotion); one in `add_learners` may be new or a voter (demotion).
    """

    add_voters: tuple[ReplicaId, ...] = ()
    add_learners: tuple[ReplicaId, ...] = ()
    remove: tuple[ReplicaId, ...] = ()
    leave_joint: bool = False  # leave the joint membership; proposed by the leader itself, alone in its change


class ConfigEntry(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """What the data of a `CONFIG` entry encodes."""

    change: MembershipChange
    context: bytes = b""  # the store's own command, opaque here; empty when the leader proposes to leave a joint membership


class SnapshotMetadata(msgspec.Struct, frozen=True, kw_only=True, array_like=True, gc=False):
    """The place in the log that a state snapshot stands for."""

    index: int
    term: int
    membership: Membership


class Vote(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=1, gc=False):
    """Asks for a vote. With `pre` nothing is promised and no term moves: it asks whether a real campaign could win."""

    to: ReplicaId
    sender: ReplicaId
    term: int  # the term to be led; for `pre`, the sender's term + 1
    last_index: int
    last_term: int
    pre: bool = False
    transfer: bool = False  # the leader of term − 1 has given up its lead for good: its support need not be respected
    commit: int = 0  # what the sender knows to be committed …
    commit_term: int = 0  # … and the term of that entry


class VoteReply(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=2, gc=False):
    """Answers a `Vote`. A granted `pre` echoes the asked term; a refusal carries the voter's own.

    Both sides tell what is committed: a candidate may lack only the news that a membership change is, and then ask voters who have left.
    """

    to: ReplicaId
    sender: ReplicaId
    term: int
    pre: bool
    granted: bool
    commit: int = 0  # what the voter knows to be committed …
    commit_term: int = 0  # … and the term of that entry


class Append(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=3, gc=False):
    """Appends entries after (prev_index, prev_term), and tells the leader's commit index. Empty `entries` probe, or tell only that."""

    to: ReplicaId
    sender: ReplicaId
    term: int
    prev_index: int
    prev_term: int
    entries: tuple[Entry, ...]
    commit: int


class AppendReply(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=4, gc=False):
    """Accepts everything up to `index`, durably; or rejects the Append after `index`, with a hint where the logs may agree."""

    to: ReplicaId
    sender: ReplicaId
    term: int
    index: int
    rejected: bool = False
    hint_index: int = 0  # the logs can agree at most up to here …
    hint_term: int = 0  # … where the follower's log has this term
    commit: int = 0  # what the follower knows to be committed


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=5, gc=False):
    """Claims the leadership of a term; the commit index is never above what the receiver is known to match."""

    to: ReplicaId
    sender: ReplicaId
    term: int
    commit: int
    round: int = 0  # the leader's count of heartbeat rounds in its term


class HeartbeatReply(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=6, gc=False):
    """Confirms that at the time of answering round `round` the sender still followed the leader of `term`."""

    to: ReplicaId
    sender: ReplicaId
    term: int
    round: int = 0
    commit: int = 0  # what the follower knows to be committed


class InstallSnapshot(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=7, gc=False):
    """Tells a follower that is behind the leader's log to take a snapshot.

    The leader's store, seeing this message among those to send, takes an engine snapshot at or above `snapshot.index`, streams it, and
    delivers the message to the follower's core with the metadata of what it really sent, only when all data has arrived. The follower's
    core answers by `Ready.snapshot`, or, when it has caught up meanwhile, by leaving that None: then the data is dropped.
    """

    to: ReplicaId
    sender: ReplicaId
    term: int
    snapshot: SnapshotMetadata


class TimeoutNow(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag=8, gc=False):
    """Tells the most suitable voter to campaign at once; its sender has stepped down for good in `term`."""

    to: ReplicaId
    sender: ReplicaId
    term: int


Message: TypeAlias = Vote | VoteReply | Append | AppendReply | Heartbeat | HeartbeatReply | InstallSnapshot | TimeoutNow

_config_entry_encoder = msgspec.msgpack.Encoder()
_config_entry_decoder = msgspec.msgpack.Decoder(ConfigEntry)


def encode_config_entry(entry: ConfigEntry) -> bytes:
    """Encode what a `CONFIG` entry carries as its data."""
    return _config_entry_encoder.encode(entry)


def decode_config_entry(data: bytes) -> ConfigEntry:
    """Decode the data of a `CONFIG` entry. Raises msgspec.DecodeError when it is not one."""
    return _config_entry_decoder.decode(data)
