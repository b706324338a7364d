"""The write batch of both engines: changes recorded in Python, given to the engine when they are written.

rocksdict consumes its own batch even when the write is refused; a recorded one can be written again after a stall.

Invariants:
- The order of the changes is the order of the calls; a later change of a key wins.
- A batch that was written is never written again.
"""

import enum
from typing import TypeAlias

from dsdb.storage.engine.port import Family


class Change(enum.Enum):
    """What a change does; the two byte strings beside it are said here."""

    PUT = "put"
    """key, value"""
    DELETE = "delete"
    """key, empty"""
    DELETE_RANGE = "delete_range"
    """start, end"""


ChangeRecord: TypeAlias = tuple[Change, Family, bytes, bytes]

# Hoisted: looking up a member on its class costs as much as the append beside it.
_PUT, _DELETE, _DELETE_RANGE = Change.PUT, Change.DELETE, Change.DELETE_RANGE


class RecordedBatch:
    """Implements `port.WriteBatch`."""

    __slots__ = ("changes", "is_written", "size_bytes")

    def __init__(self) -> None:
        self.changes: list[ChangeRecord] = []
        """In the order of the calls."""
        self.is_written = False
        """Set by the engine once the batch is visible."""
        self.size_bytes = 0
        """Bytes of keys and values recorded."""

    def put(self, family: Family, key: bytes, value: bytes) -> None:
        """Set a key."""
        self.changes.append((_PUT, family, key, value))
        self.size_bytes += len(key) + len(value)

    def delete(self, family: Family, key: bytes) -> None:
        """Remove a key, if it is there."""
        self.changes.append((_DELETE, family, key, b""))
        self.size_bytes += len(key)

    def delete_range(self, family: Family, start: bytes, end: bytes) -> None:
        """Remove all keys from start up to, not including, end."""
        if start < end:
            self.changes.append((_DELETE_RANGE, family, start, end))
            self.size_bytes += len(start) + len(end)

    def __len__(self) -> int:
        return len(self.changes)
