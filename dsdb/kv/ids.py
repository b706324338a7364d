"""Names of things: plain integers and bytes that the type checker keeps apart."""

from typing import NewType

NodeId = NewType("NodeId", int)
"""A node, from 1; never reused in a cluster."""
StoreId = NewType("StoreId", int)
"""A store (one disk of a node), from 1; never reused in a cluster."""
RangeId = NewType("RangeId", int)
"""A range, from 1; never reused."""
AttemptId = NewType("AttemptId", bytes)
"""One attempt of a transaction: 16 bytes, unique for all time (node id, start of the node, counter).  A restart takes a new one."""


def node_of_attempt(attempt: AttemptId) -> NodeId:
    """Give the node whose session began an attempt."""
    return NodeId(int.from_bytes(attempt[:3], "big"))


SYSTEM_RANGE = RangeId(1)
"""The range that holds meta and system keys; see `dsdb.storage.keys`."""
FIRST_TABLE_RANGE = RangeId(2)
"""The range that holds all tables until it is split."""
