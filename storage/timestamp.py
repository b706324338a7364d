"""Timestamps: the 64-bit points on the oracle's line at which all reads and commits of the cluster lie.

    63                                   18 17                    0
    ┌──────────────────────────────────────┬───────────────────────┐
    │ milliseconds since the Unix epoch    │ counter               │
    └──────────────────────────────────────┴───────────────────────┘

Invariants:
- Only the oracle issues timestamps; everything else compares them or steps to a neighbour.
- 0 is before every issued timestamp, `MAX_TIMESTAMP` after.
"""

from typing import NewType

Timestamp = NewType("Timestamp", int)

COUNTER_BITS = 18
MIN_TIMESTAMP = Timestamp(0)
MAX_TIMESTAMP = Timestamp(2**64 - 1)


def from_milliseconds(milliseconds: int) -> Timestamp:
    """Give the first timestamp of a millisecond since the Unix epoch."""
    return Timestamp(milliseconds << COUNTER_BITS)


def to_milliseconds(ts: Timestamp) -> int:
    """Give the millisecond since the Unix epoch in which a timestamp lies."""
    return ts >> COUNTER_BITS


def after(ts: Timestamp) -> Timestamp:
    """Give the next timestamp."""
    return Timestamp(ts + 1)


def before(ts: Timestamp) -> Timestamp:
    """Give the timestamp just below; `ts` must be above 0."""
    return Timestamp(ts - 1)
