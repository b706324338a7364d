"""A frozen view of a RaftNode, for serving decisions, metrics and people."""

import enum

import msgspec

from dsdb.raft.messages import Membership, ReplicaId
from dsdb.raft.ready import Role


class ProgressState(enum.Enum):
    """How the leader sends to one follower."""

    PROBE = "probe"  # one Append at a time, until it is known where the logs agree
    REPLICATE = "replicate"  # pipelined
    SNAPSHOT = "snapshot"  # nothing, until the snapshot is reported


class ProgressStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The leader's view of one member."""

    replica: ReplicaId
    match: int  # the last index known to be durable there and equal to the leader's
    next: int  # the next index to send
    state: ProgressState
    is_learner: bool
    is_recently_active: bool  # heard from within the last election_ticks
    is_acknowledged: bool  # has answered this leader, in this term and since its last renewed support


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """What a RaftNode knows at this moment."""

    replica: ReplicaId
    role: Role
    term: int
    vote: ReplicaId
    leader: ReplicaId
    followed: ReplicaId  # whom a promise of this replica protects: see RaftNode.followed
    commit: int
    applied: int
    first_index: int
    last_index: int
    stable_index: int  # own log durable up to here
    membership: Membership
    transfer_to: ReplicaId  # the target of a leadership transfer in progress
    is_supported: bool
    is_barred: bool
    progress: tuple[ProgressStatus, ...]  # sorted by replica; empty unless leader
