"""Calls between nodes: framed msgspec messages over one control connection per peer, and bulk connections beside it.

A reader starts at `method` (what can be called), then `peer` (the calling side) and `server` (the serving side); `frames` has the bytes.
"""

from dsdb.rpc.errors import CallFailed, NotSent, NotTrusted, Refused, ReplyLost, RpcError
from dsdb.rpc.method import Method, MethodKind, Registry
from dsdb.rpc.peer import Peers
from dsdb.rpc.server import RpcServer

__all__ = [
    "CallFailed",
    "Method",
    "MethodKind",
    "NotSent",
    "NotTrusted",
    "Peers",
    "Refused",
    "Registry",
    "ReplyLost",
    "RpcError",
    "RpcServer",
]
