"""The store: all replicas on one disk, the Raft loop that drives them, and the leaseholders that evaluate requests.

    serve(request) ─▶ lease ─▶ latches ─▶ evaluate ─▶ propose ─▶ Raft loop: write ▸ sync ▸ apply ─▶ reply
    receive(frame) ─────────────────────────────────▶ step ────▶     "

Where to begin: `store` (the public class), `loop` (the order of write, sync, send and apply), `evaluate` (what a leaseholder checks),
`intents` (the same, for commits over many ranges).

Invariants:
- All state of a replica that decides anything is in the engine, or is lost without harm (latches, timestamp cache, promises).
- One loop, one disk thread and one frame for each peer and turn serve all ranges: no task, timer or socket per range.
- Nothing here reads a clock but the `Clock` port, draws chance but from the `Random` given in, or depends on the order of a set.
"""

from dsdb.store.config import StoreConfig
from dsdb.store.frame import SnapshotHeader, StoreFrame, TimestampSource, Transport, TransportError
from dsdb.store.identity import StoreIdentity, read_identity
from dsdb.store.scan import SnapshotScan
from dsdb.store.store import Store

__all__ = [
    "SnapshotHeader",
    "SnapshotScan",
    "Store",
    "StoreConfig",
    "StoreFrame",
    "StoreIdentity",
    "TimestampSource",
    "Transport",
    "TransportError",
    "read_identity",
]
