"""Descriptors: which keys a range has and where its replicas are.

Invariants:
- The descriptor that a replica has applied is the truth; copies in meta and in caches are older or equal, by `generation`.
- `generation` grows by one with every split and every change of replicas.
- A replica id is never reused within a range: a store that lost a replica comes back with a new one.
"""

import enum

import msgspec

from dsdb.kv.ids import NodeId, RangeId, StoreId
from dsdb.raft.messages import ReplicaId
from dsdb.storage.keys import Span


class ReplicaKind(enum.IntEnum):
    """What part a replica plays in its group."""

    VOTER = 1
    LEARNER = 2
    VOTER_INCOMING = 3
    """In the new half of a joint configuration only."""
    VOTER_OUTGOING = 4
    """In the old half of a joint configuration only; it will be removed."""


class ReplicaDescriptor(msgspec.Struct, frozen=True, array_like=True):
    """A copy of a range, on a store of a node."""

    replica_id: ReplicaId
    node_id: NodeId
    store_id: StoreId
    kind: ReplicaKind = ReplicaKind.VOTER


class RangeDescriptor(msgspec.Struct, frozen=True, array_like=True):
    """A span of keys and its replicas, ascending by replica id."""

    range_id: RangeId
    start_key: bytes
    end_key: bytes
    generation: int
    replicas: tuple[ReplicaDescriptor, ...]
    next_replica_id: ReplicaId

    @property
    def span(self) -> Span:
        """Give the keys of the range."""
        return Span(self.start_key, self.end_key)

    def replica_on(self, store_id: StoreId) -> ReplicaDescriptor | None:
        """Give the replica on a store, if there is one."""
        return next((replica for replica in self.replicas if replica.store_id == store_id), None)

    def replica(self, replica_id: ReplicaId) -> ReplicaDescriptor | None:
        """Give a replica by id."""
        return next((replica for replica in self.replicas if replica.replica_id == replica_id), None)

    @property
    def voters(self) -> tuple[ReplicaDescriptor, ...]:
        """Give the replicas that are voters outside or on either side of a joint configuration."""
        return tuple(replica for replica in self.replicas if replica.kind is not ReplicaKind.LEARNER)
