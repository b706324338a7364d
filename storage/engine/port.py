"""What the rest of dsdb may ask of a disk: a fixed set of key families that share one write-ahead log.

    new_batch() ─▶ put, delete, delete_range … ─▶ write(batch) ─▶ sync()
                                                   visible          durable

Invariants:
- A batch is atomic over all families, also across a crash; batches become durable in the order of their writes.
- `write` makes a batch visible and never waits for the disk; `sync` alone makes everything written before its call durable.
  `sync` blocks and releases the GIL: call it in the disk thread only.
- A scan is complete or raises: corruption is never a short result.

Raises: the errors of `dsdb.storage.errors`, nothing else.
"""

import enum
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias


class Family(enum.Enum):
    """A key family; the values are its names on disk."""

    META = "meta"
    """Of the store and its replicas: identity, hard state, applied state, descriptors."""
    RAFT = "raft"
    """Raft logs: range id | index → entry."""
    DELTA = "delta"
    """Versions and intents of rows: key | inverted timestamp → value (`mvcc`)."""
    BLOCK = "block"
    """Columnar blocks."""
    INDEX = "index"
    """Directory of columnar blocks."""

    # Members are single objects, so identity is a sound hash; the one of `Enum` is Python code and was a tenth of every point read.
    __hash__ = object.__hash__


KeysAndValues: TypeAlias = tuple[list[bytes], list[bytes]]
"""A chunk of a scan: keys in scan order, and their values, of equal length."""

SCAN_CHUNK_ROWS = 2048
"""Rows in a chunk of a scan: about 2 ms of work for the caller, well below the 20 ms for which anything may hold the GIL."""


Journal: TypeAlias = Callable[[Any], AbstractContextManager[object]]
"""Given a batch of the engine's before anybody can see it; what it gives is left when the batch can be seen, or was refused."""


class WriteBatch(Protocol):
    """Changes that will be written together.  Written once."""

    def put(self, family: Family, key: bytes, value: bytes) -> None:
        """Set a key."""

    def delete(self, family: Family, key: bytes) -> None:
        """Remove a key, if it is there."""

    def delete_range(self, family: Family, start: bytes, end: bytes) -> None:
        """Remove all keys from start up to, not including, end."""

    @property
    def size_bytes(self) -> int:
        """Give the bytes of keys and values put in so far."""

    def __len__(self) -> int: ...


class Reader(Protocol):
    """Something that can be read: the engine as it is now, or a snapshot of it."""

    def get(self, family: Family, key: bytes) -> bytes | None:
        """Read a key; None if it is not there."""

    def multi_get(self, family: Family, keys: Sequence[bytes]) -> list[bytes | None]:
        """Read many keys at once; releases the GIL while it waits for the disk."""

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False, chunk_rows: int = SCAN_CHUNK_ROWS
    ) -> Iterator[KeysAndValues]:
        """Read the keys of [start, end) in order, or from the highest down, in chunks of at most `chunk_rows`.

        On the engine itself a scan sees one state, that of its first chunk.  An iterator dropped early frees what it holds.
        """

    def first(self, family: Family, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Read the first key of [start, end), by one seek; None if the span is empty."""

    def last(self, family: Family, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Read the last key of [start, end), by one seek; None if the span is empty."""


class EngineSnapshot(Reader, Protocol):
    """A frozen state of the engine.  Release it soon: it keeps old data on disk."""

    def release(self) -> None:
        """Give it back; reading it afterwards is an error."""


class Engine(Reader, Protocol):
    """A store's disk."""

    def watch(self, journal: Journal) -> None:
        """Tell a journal of all writes from now on, one at a time, in the thread that writes; it takes the place of an earlier one."""

    def new_batch(self) -> WriteBatch:
        """Make an empty batch."""

    def write(self, batch: WriteBatch) -> None:
        """Make a batch visible, atomically, without waiting for the disk.

        Raises WriteStallError or DiskFullError when nothing was written (the same batch may then be written again), DiskError when
        the store must stop.
        """

    def sync(self) -> None:
        """Make all earlier writes durable.  Blocks without the GIL.  Raises DiskError: the store must stop."""

    def compact(self, family: Family, start: bytes, end: bytes) -> None:
        """Write what is there of [start, end) anew, so that what was deleted is in no reader's way.  Blocks without the GIL.

        Raises DiskFullError when nothing was changed, DiskError when the store must stop.
        """

    def snapshot(self) -> EngineSnapshot:
        """Freeze the current state for reading."""

    def statistics(self) -> dict[str, float]:
        """Give figures for metrics: sizes in bytes, files, stalls."""

    def close(self) -> None:
        """Close it; all readers and snapshots must be gone.  Does not sync."""
