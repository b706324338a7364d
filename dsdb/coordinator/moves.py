"""Moves: what a plan asks of ranges, each with its reason in words, which the log of events keeps."""

from typing import TypeAlias, assert_never

import msgspec

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.ids import NodeId, RangeId, StoreId


class Target(msgspec.Struct, frozen=True, array_like=True):
    """A store that gets a replica."""

    store_id: StoreId
    node_id: NodeId


class ChangeReplicas(msgspec.Struct, frozen=True, kw_only=True):
    """Give a range replicas on some stores and then take those on others away, from exactly this generation of its descriptor."""

    desc: RangeDescriptor
    leaseholder: StoreId
    """Who sends the Raft snapshots."""
    add: tuple[Target, ...] = ()
    remove: tuple[StoreId, ...] = ()
    reason: str

    @property
    def range_id(self) -> RangeId:
        """Give the range."""
        return self.desc.range_id

    def __str__(self) -> str:
        parts = [f"add {', '.join(str(target.store_id) for target in self.add)}"] if self.add else []
        parts += [f"remove {', '.join(map(str, self.remove))}"] if self.remove else []
        return f"range {self.range_id}: {'; '.join(parts)}: {self.reason}"


class TransferLease(msgspec.Struct, frozen=True, kw_only=True):
    """Let another store lead a range."""

    desc: RangeDescriptor
    leaseholder: StoreId
    to: StoreId
    reason: str

    @property
    def range_id(self) -> RangeId:
        """Give the range."""
        return self.desc.range_id

    def __str__(self) -> str:
        return f"range {self.range_id}: lease {self.leaseholder} to {self.to}: {self.reason}"


class SplitRange(msgspec.Struct, frozen=True, kw_only=True):
    """Cut a range in two."""

    desc: RangeDescriptor
    leaseholder: StoreId
    key: bytes
    """Where the right side begins."""
    reason: str

    @property
    def range_id(self) -> RangeId:
        """Give the range."""
        return self.desc.range_id

    def __str__(self) -> str:
        return f"range {self.range_id}: split at {self.key.hex()}: {self.reason}"


Move: TypeAlias = ChangeReplicas | TransferLease | SplitRange


def kind_of(move: Move) -> str:
    """Give what a move is called in the log of events, and among jobs."""
    match move:
        case ChangeReplicas():
            return "replicas"
        case TransferLease():
            return "lease"
        case SplitRange():
            return "split"
        case never:
            assert_never(never)
