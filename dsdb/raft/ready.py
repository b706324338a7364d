"""What a RaftNode asks of its shell: one frozen `Ready`, and on each field the order in which its duty falls due.

    ready() ─▶ write hard_state, snapshot, entries ──▶ fsync ──▶ stabled(*ready.stable) ─▶ send messages_after_sync
       │               │ (written, not yet synced)
       │               └──▶ apply committed ──▶ applied(index)
       └──▶ send messages (at once)

Invariants:
- Every effect is handed out exactly once. `ready()` may be called again while the fsync of earlier Readys is in flight; Readys are
  written in the order in which they were handed out, and `messages_after_sync` of one leave only when it and all earlier ones are durable.
- Log, hard state and applied state are written so that a crash loses a suffix of the writes, never one from the middle (one write-ahead
  log).
"""

import enum
from typing import TypeAlias

import msgspec

from dsdb.raft.messages import Entry, HardState, Message, ReplicaId, SnapshotMetadata


class Role(enum.Enum):
    """What a replica presently is in its group."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


class RoleChange(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The role, term and leaders after a change of any of them."""

    role: Role
    term: int
    leader: ReplicaId  # NO_REPLICA while unknown
    followed: ReplicaId  # see `RaftNode.followed`: on a change the store calls `set_leader_supported`


class ReadState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The answer to `read_index`: reads that arrived before the request are served once everything up to `index` is applied."""

    context: bytes  # as given to `read_index`
    index: int | None  # None: leadership was lost before it could be confirmed; try elsewhere


StableMark: TypeAlias = tuple[int, int]
"""(last index handed out for writing, generation of the log and hard state): opaque to the store, which gives it back to
`RaftNode.stabled`."""


class Ready(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The effects of the calls since the last Ready; all fields are values, nothing changes after it was handed out."""

    hard_state: HardState | None = None
    """Write it, with `entries`, in one batch. A commit index that moves alone gives no hard state: the applied index, which the store
    writes with what it applies, bounds it from below."""

    snapshot: SnapshotMetadata | None = None
    """Install the snapshot data that the store holds for this place, before everything else of this Ready, durably: it replaces the
    whole log and state (entries handed out before are void). Then call `applied(snapshot.index)`."""

    entries: tuple[Entry, ...] = ()
    """Write these to the log. When entries[0].index is not past the last one written, they replace everything from there on."""

    stable: StableMark | None = None
    """Set when this Ready must be fsynced (entries, a snapshot, a new term or vote). As soon as it and all earlier ones are durable, call
    `stabled(*ready.stable)`. A later Ready's mark covers those of earlier ones, so marks may be skipped, never reordered."""

    messages: tuple[Message, ...] = ()
    """Send at once, even before `entries` are durable: a leader's Appends leave while its own fsync runs."""

    messages_after_sync: tuple[Message, ...] = ()
    """Send only when this Ready and all earlier ones are durable: acknowledgements and votes, which claim that they are. If `stable` is
    None and no earlier Ready is in flight they may go at once."""

    committed: tuple[Entry, ...] = ()
    """Apply in order, after `entries` of this and earlier Readys are written (not necessarily synced), then call `applied`. Entries with
    empty data are skipped; the change of a CONFIG entry is given to `apply_membership`. A later Ready may carry more before these are
    applied."""

    read_states: tuple[ReadState, ...] = ()
    """Answers to `read_index`, to be served when applied."""

    role_change: RoleChange | None = None
    """Set when role, term, leader or followed leader changed. On ceasing to be the leader, stop serving and fail or re-route what was
    proposed before sending any message of this Ready."""
