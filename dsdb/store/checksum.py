"""The checksum of a range: of what reads can see in it, not of how a store keeps it; and who is wrong when replicas' checksums differ.

    engine snapshot ─▶ replicated state ▸ versions and intents, of the delta and of blocks in one order ▸ outcomes ▸ txn records
                       ▸ block intents, with the checksums of their chunks ─▶ 16 bytes

Invariants:
- Replicas that applied the same log up to the same index have the same checksum, whatever their engines, logs and caches are like, and
  however much of it each has folded into blocks.
- What no read at or above the garbage collection threshold sees is left out; so are a replica's own estimates.
- A slice reads `SLICE_ROWS` rows, or one row above `SLICE_BYTES`, so that nobody waits long for the event loop.

Sans-I/O but for reading the engine snapshot.
"""

import hashlib
import struct
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from dsdb.raft.messages import ReplicaId
from dsdb.storage.columnar.block import BlockCache, Blocks
from dsdb.storage.columnar.plain import plain_entries
from dsdb.storage.engine.port import EngineSnapshot, Reader
from dsdb.storage.errors import CorruptionError
from dsdb.storage.keys import prefix_end
from dsdb.storage.timestamp import MAX_TIMESTAMP, Timestamp
from dsdb.store.state import META, ReplicaKeys, ReplicatedState, encode, read_replicated

DIGEST_BYTES = 16
SLICE_ROWS = 256
"""Less than a millisecond of work."""
SLICE_BYTES = 1 << 20
"""Of keys and values hashed without a pause, about a millisecond too."""
CACHE_BYTES = 8 << 20
"""Of the block that is being read, about twice."""

_SUFFIX_BYTES = 8
_INTENT_SUFFIX = bytes(_SUFFIX_BYTES)
_TOMBSTONE = b"\x01"
_lengths = struct.Struct(">BII").pack


class RangeSum:
    """The checksum of a range in the making."""

    def __init__(self, reader: Reader, keys: ReplicaKeys) -> None:
        """Begin.  Raises CorruptionError."""
        state = read_replicated(reader, keys)
        if state is None:
            raise CorruptionError("a replica has no replicated state")
        self._reader = reader
        self._keys = keys
        self._state = state
        self._hash = hashlib.blake2b(digest_size=DIGEST_BYTES)

    def slices(self) -> Iterator[int]:
        """Read on; give after each slice how many bytes it had.  Raises CorruptionError."""
        self._hash.update(encode(_ordered(self._state)))
        span = self._state.descriptor.span
        seen = VersionFilter(self._state.threshold)
        # What is kept here of a block is used while it is the one being read, and its bytes are compared with their checksums.
        blocks = Blocks(self._reader, BlockCache(CACHE_BYTES), checks_sums=True)
        for keys, values in plain_entries(blocks, span, chunk_rows=SLICE_ROWS):
            size = sum(map(len, keys)) + sum(map(len, values))
            yield from self._add(1, *seen.visible(keys, values))
            yield size
        for what, prefix in ((2, self._keys.outcomes), (3, self._keys.records), (4, self._keys.provisional)):
            for keys, values in self._reader.scan(META, prefix, prefix_end(prefix), chunk_rows=SLICE_ROWS):
                yield from self._add(what, [key[len(prefix) :] for key in keys], values)
                yield sum(map(len, keys)) + sum(map(len, values))

    def _add(self, what: int, keys: Sequence[bytes], values: Sequence[bytes]) -> Iterator[int]:
        """Hash rows; large ones with pauses, which are given as slices of nothing."""
        parts: list[bytes] = []
        size = 0
        for key, value in zip(keys, values):
            parts += (_lengths(what, len(key), len(value)), key, value)
            size += len(value)
            if size > SLICE_BYTES:
                self._hash.update(b"".join(parts))
                parts, size = [], 0
                yield 0
        self._hash.update(b"".join(parts))

    def digest(self) -> bytes:
        """Give the checksum once `slices` has ended."""
        return self._hash.digest()


class VersionFilter:
    """Leaves out what no read at or above a threshold sees: it may be collected already, or not yet."""

    def __init__(self, threshold: Timestamp) -> None:
        self._oldest = (MAX_TIMESTAMP - threshold).to_bytes(_SUFFIX_BYTES, "big")
        """Suffix of a version at the threshold; older ones are above it."""
        self._settled = b""
        """The user key whose newest version at or below the threshold was met."""

    def visible(self, keys: Sequence[bytes], values: Sequence[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Give what counts of the next rows of a scan."""
        kept_keys: list[bytes] = []
        kept_values: list[bytes] = []
        oldest = self._oldest
        for key, value in zip(keys, values):
            suffix = key[-_SUFFIX_BYTES:]
            if suffix >= oldest and suffix != _INTENT_SUFFIX:
                user_key = key[:-_SUFFIX_BYTES]
                is_hidden = user_key == self._settled
                self._settled = user_key
                if is_hidden or value[:1] == _TOMBSTONE:
                    continue
            kept_keys.append(key)
            kept_values.append(value)
        return kept_keys, kept_values


def _ordered(state: ReplicatedState) -> ReplicatedState:
    """Give a replicated state with its membership in one order."""
    membership = state.membership
    changed = {name: tuple(sorted(value)) for name in membership.__struct_fields__ if isinstance(value := getattr(membership, name), tuple)}
    return msgspec.structs.replace(state, membership=msgspec.structs.replace(membership, **changed))


def checksum(snapshot: EngineSnapshot, keys: ReplicaKeys) -> bytes:
    """Give the checksum of a range at once.  Raises CorruptionError."""
    made = RangeSum(snapshot, keys)
    for _ in made.slices():
        pass
    return made.digest()


class Judgement(NamedTuple):
    """Whom the others contradict; is_undecided: they differ, and no majority says who is right."""

    wrong: tuple[ReplicaId, ...]
    is_undecided: bool


def judge(voters: int, digests: Mapping[ReplicaId, bytes]) -> Judgement:
    """Say which replicas are wrong: those that differ from what more than half of all voters have."""
    if len(set(digests.values())) <= 1:
        return Judgement((), is_undecided=False)
    most, count = Counter(digests[replica] for replica in sorted(digests)).most_common(1)[0]
    if 2 * count <= voters:
        return Judgement((), is_undecided=True)
    return Judgement(tuple(replica for replica in sorted(digests) if digests[replica] != most), is_undecided=False)
