"""What stores say to each other, and the ports through which they do.

Invariants:
- A frame may be lost, and is not repeated; frames between two stores that arrive do so in order.
- Fields are added at the end only.
"""

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.ids import RangeId, StoreId
from dsdb.raft.messages import Message, ReplicaId, SnapshotMetadata
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp
from dsdb.store.open_intents import UNKNOWN


class RaftEnvelope(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A Raft message and the group it belongs to."""

    range_id: RangeId
    message: Message


class SupportRequest(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Asks for a promise of support from the moment of receipt."""

    incarnation: int
    """Of the asking store: drawn at its start, so that answers to an earlier life are not taken for one of this."""
    sent_at: float
    """On the asking store's clock; comes back in the grant."""
    duration_s: float
    """How long the promise shall stand."""
    may_wait: bool = False
    """The grant may come with the next frame to the asking store: what it has will stand for a while."""


class SupportGrant(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A promise, given to one request."""

    incarnation: int
    sent_at: float
    """Both as in the request."""
    duration_s: float
    period: int
    """Drawn anew whenever the promise had lapsed: what was acknowledged in an earlier period may have been voted away."""


class ReplicaNotice(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Something about a replica of the receiving store (removed) or of the sending one (missing)."""

    range_id: RangeId
    replica_id: ReplicaId
    voters: tuple[StoreId, ...] = ()
    """Of removed ones: the stores of the sender's voters, a majority of whom must say so (`Replica.is_doomed`)."""


class ClosedUpdate(msgspec.Struct, frozen=True, array_like=True, gc=False, kw_only=True):
    """What the sender promises of the ranges that it leads and the receiver has replicas of (`closed`)."""

    session: int
    number: int
    """Of the update in its session, from 1: none may be missing."""
    ts: Timestamp
    """Closed in every range that the session has named and not dropped."""
    changed: tuple[tuple[RangeId, int], ...] = ()
    """Ranges, and the indexes of their logs up to which everything at or below `ts` stands."""
    dropped: tuple[RangeId, ...] = ()


class ChecksumReport(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a replica of the sender found when it summed up its range for a check of the receiver's (`consistency`)."""

    check: int
    range_id: RangeId
    replica_id: ReplicaId
    digest: bytes
    """Empty: there is none."""
    problem: str = ""
    """Why not."""


class DamageNotice(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A replica that is, or is to be, out of service, and why."""

    range_id: RangeId
    replica_id: ReplicaId
    reason: str


class StoreFrame(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """All that one store has for another at the end of a turn."""

    sender: StoreId
    messages: tuple[RaftEnvelope, ...] = ()
    """In the order of their making."""
    request: SupportRequest | None = None
    grant: SupportGrant | None = None
    removed: tuple[ReplicaNotice, ...] = ()
    """Replicas of the receiver that the sender's applied descriptor says were removed."""
    missing: tuple[ReplicaNotice, ...] = ()
    """Replicas of the sender, as the receiver believes, that are not there: they need a Raft snapshot."""
    inquiries: tuple[ReplicaNotice, ...] = ()
    """Replicas of the sender that hear of no leader: were they removed?"""
    gossip: bytes = b""
    """Whatever the node attached; opaque here."""
    issued: Timestamp = MIN_TIMESTAMP
    """The highest issued timestamp that the sender knows of; in frames about support."""
    closed: ClosedUpdate | None = None
    wants_closed: bool = False
    """An update of the receiver's was missed: it must begin a new session."""
    checksums: tuple[ChecksumReport, ...] = ()
    damaged: tuple[DamageNotice, ...] = ()
    """Replicas of the sender that are out of service."""
    wrong: tuple[DamageNotice, ...] = ()
    """Replicas of the receiver that most others of their ranges contradict."""


class SnapshotHeader(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What goes before the chunks of a Raft snapshot."""

    sender: StoreId
    descriptor: RangeDescriptor
    to: ReplicaId
    sender_replica: ReplicaId
    term: int
    """The leader's term."""
    metadata: SnapshotMetadata
    floor: Timestamp
    threshold: Timestamp
    mark: Timestamp
    size_bytes: int
    """The replicated estimate of the range's size."""
    closed: Timestamp = MIN_TIMESTAMP
    intents: int = UNKNOWN
    """How many stand in it."""
    snapshot_id: int = 0
    """Drawn for this Raft snapshot: it may come in several parts, each on a stream of its own and acknowledged by itself."""
    first_chunk: int = 0
    """Number of the first chunk of this part."""
    part_chunks: int = 0
    """How many this part has."""
    is_last: bool = True
    """No part follows: when this one is acknowledged the Raft snapshot is installed."""


class TransportError(OSError):
    """A bulk connection failed, or the receiver refused what was sent."""


class Transport(Protocol):
    """The way to the other stores."""

    def send(self, to: StoreId, frame: StoreFrame) -> None:
        """Send a frame: best effort, in order, never blocks."""

    async def send_snapshot(self, to: StoreId, header: SnapshotHeader, chunks: AsyncIterator[bytes]) -> None:
        """Stream a Raft snapshot on a connection of its own; returns when the receiver has installed it.  Raises TransportError."""


class TimestampSource(Protocol):
    """The oracle, as seen from below."""

    def fresh_nowait(self) -> Timestamp | None:
        """Give a timestamp issued after this call, if the oracle is on this node and serves; else None."""

    def newest_nowait(self) -> Timestamp | None:
        """Give one at which a read sees all that was acknowledged before this call, if the oracle is on this node and serves; else None.

        It may have been issued before, to a write that is still to come and is bumped by the read then (rule 6).
        """

    @property
    def latest(self) -> Timestamp:
        """Give the highest issued timestamp that is known here."""

    def hear(self, ts: Timestamp) -> None:
        """Note a timestamp that was issued, of which another store knows."""

    async def fresh(self) -> Timestamp:
        """Give a timestamp issued after this call.  Raises KvError(Unavailable)."""
