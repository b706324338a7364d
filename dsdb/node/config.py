"""Settings of a node: each layer's own limits, assembled, and what the command line says."""

from pathlib import Path

import msgspec

from dsdb.coordinator.coordinator import DEAD_AFTER_S
from dsdb.env import Address
from dsdb.txn.limits import TxnLimits

DEFAULT_PORT = 7432
"""Of the one port for nodes and clients."""
DEFAULT_HTTP_PORT = 7480
"""Of metrics and health."""

DRAIN_S = 5.0
"""How long running statements may go on after SIGTERM."""
JOIN_TIMEOUT_S = 30.0
"""How long a node asks the addresses of --join before it gives up."""


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What `dsdb start` was asked for.

    store: its directory, None keeps everything in memory; join: nodes to ask, none: found a cluster or restart the store's own;
    http: None serves no metrics; certs_dir: of the node's certificate, None speaks no TLS; locality: of this node, key=value in order from
    the widest; transactions: how large they may be; dead_after_s: where this node
    coordinates, a store that does not answer for so long is dead.
    """

    listen: Address = Address("127.0.0.1", DEFAULT_PORT)
    advertise: Address | None = None
    http: Address | None = None
    certs_dir: Path | None = None
    store: Path | None = None
    join: tuple[Address, ...] = ()
    locality: tuple[tuple[str, str], ...] = ()
    dead_after_s: float = DEAD_AFTER_S
    join_timeout_s: float = JOIN_TIMEOUT_S
    transactions: TxnLimits = TxnLimits()


class StartError(Exception):
    """The node cannot start; the message is a sentence for whoever started it."""
