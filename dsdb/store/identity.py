"""Who a store is: written once into its directory, checked at every open.

Invariants:
- An identity never changes; a directory of a newer format is refused rather than misread.
"""

import msgspec

from dsdb.kv.ids import NodeId, StoreId
from dsdb.storage.engine.port import Engine, Family, Reader, WriteBatch
from dsdb.storage.errors import StoreFormatError

FORMAT = 1
"""The layout of META and RAFT that this code writes."""

_IDENTITY_KEY = b"\x01identity"


class StoreIdentity(msgspec.Struct, frozen=True, kw_only=True):
    """The cluster, node and store that a directory belongs to, and the format of what is in it."""

    cluster_id: str
    node_id: NodeId
    store_id: StoreId
    format: int = FORMAT


_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(StoreIdentity)


def read_identity(engine: Reader) -> StoreIdentity | None:
    """Read the identity; None in an empty store.  Raises StoreFormatError on a newer or unreadable one."""
    stored = engine.get(Family.META, _IDENTITY_KEY)
    if stored is None:
        return None
    try:
        identity = _decoder.decode(stored)
    except msgspec.DecodeError as error:
        raise StoreFormatError(f"the store's identity cannot be read: {error}") from None
    if identity.format > FORMAT:
        raise StoreFormatError(f"the store has format {identity.format}; this version reads up to {FORMAT}")
    return identity


def write_identity(engine: Engine, batch: WriteBatch, identity: StoreIdentity) -> None:
    """Put the identity into the batch that founds the store.  Raises StoreFormatError if the store has one already."""
    found = read_identity(engine)
    if found is not None:
        raise StoreFormatError(f"the store belongs to cluster {found.cluster_id} as store {found.store_id} already")
    batch.put(Family.META, _IDENTITY_KEY, _encode(identity))
