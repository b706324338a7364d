"""A group's log in the engine, with its newest entries in memory; what the Raft core reads of it.

    │ truncated │ in the engine only │ in the engine and in memory │
                ^ first_index        ^ cached_from                 ^ last_index

Invariants:
- What was appended is in a batch that is written before the core is asked for anything again.
- An entry leaves memory only at a later append: so it is in the engine by then.
- A read of the engine starts at an entry that is there, never at the tombstones of a truncation before it.
"""

import msgspec

from dsdb.raft.messages import Entry, HardState, Membership
from dsdb.storage.engine.port import Reader, WriteBatch
from dsdb.storage.errors import CorruptionError
from dsdb.store.state import META, RAFT, LogStart, ReplicaKeys, encode, read_log_start

_entry_decoder = msgspec.msgpack.Decoder(Entry)
_ENTRY_OVERHEAD_BYTES = 64


class ReplicaLog:
    """Implements `raft.storage.LogStorage`."""

    def __init__(
        self, engine: Reader, prefix: bytes, keys: ReplicaKeys, *, initial: tuple[HardState, Membership, int], cache_bytes_max: int
    ) -> None:
        self._engine = engine
        self._prefix = prefix
        self._keys = keys
        self._initial = initial
        self._cache_bytes_max = cache_bytes_max
        self._start: LogStart = read_log_start(engine, keys)
        self._cache: list[Entry] = []
        """The newest entries, up to `last_index()`; may be empty while the log is not."""
        self._cache_bytes = 0
        last = engine.last(RAFT, self._key(self._start.index + 1), self._prefix + b"\xff" * 8)
        self._last = self._start.index if last is None else int.from_bytes(last[0][8:], "big")
        if last is not None:
            self._cache.append(self._decode(last[1], self._last))
            self._cache_bytes = self._bytes_of(self._cache[0])
        self.bytes = 0
        """Bytes of data appended since the start of the store or the last truncation, for deciding about the next."""

    def _key(self, index: int) -> bytes:
        return self._prefix + index.to_bytes(8, "big")

    @staticmethod
    def _bytes_of(entry: Entry) -> int:
        return len(entry.data) + _ENTRY_OVERHEAD_BYTES

    @staticmethod
    def _decode(stored: bytes, index: int) -> Entry:
        try:
            entry = _entry_decoder.decode(stored)
        except msgspec.DecodeError as error:
            raise CorruptionError(f"log entry {index} cannot be read: {error}") from None
        if entry.index != index:
            raise CorruptionError(f"in the place of log entry {index} stands entry {entry.index}")
        return entry

    # ---- What the core reads ----

    def initial_state(self) -> tuple[HardState, Membership, int]:
        """Give what was loaded at the start."""
        return self._initial

    def first_index(self) -> int:
        """Give the index of the first entry kept."""
        return self._start.index + 1

    def last_index(self) -> int:
        """Give the index of the last entry appended."""
        return self._last

    def term(self, index: int) -> int:
        """Give the term of an entry, or of the last truncated one."""
        cache = self._cache
        if cache and index >= cache[0].index:
            return cache[index - cache[0].index].term
        if index == self._start.index:
            return self._start.term
        return self._read(index, index + 1, 1)[0].term

    def entries(self, low: int, high: int, bytes_max: int) -> tuple[Entry, ...]:
        """Give entries [low, high) up to `bytes_max` bytes of data, but at least one."""
        cache = self._cache
        if not cache or low < cache[0].index:
            return tuple(self._read(low, min(high, cache[0].index) if cache else high, bytes_max))
        offset = cache[0].index
        taken = 0
        for position in range(low - offset, high - offset):
            taken += len(cache[position].data)
            if taken > bytes_max and position > low - offset:
                return tuple(cache[low - offset : position])
        return tuple(cache[low - offset : high - offset])

    def _read(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        found: list[Entry] = []
        taken = 0
        for _keys, values in self._engine.scan(RAFT, self._key(low), self._key(high), chunk_rows=256):
            for stored in values:
                entry = self._decode(stored, low + len(found))
                taken += len(entry.data)
                if found and taken > bytes_max:
                    return found
                found.append(entry)
        if len(found) != high - low:
            raise CorruptionError(f"log entries {low + len(found)} to {high - 1} are missing")
        return found

    # ---- What the loop writes ----

    def append(self, batch: WriteBatch, entries: tuple[Entry, ...]) -> None:
        """Put entries into a batch, in place of everything from the first one's index on."""
        first = entries[0].index
        cache = self._cache
        self._evict()
        if first <= self._last:
            batch.delete_range(RAFT, self._key(first), self._key(self._last + 1))
            if cache and first <= cache[0].index:
                cache.clear()
                self._cache_bytes = 0
            else:
                keep = first - cache[0].index if cache else 0
                self._cache_bytes -= sum(self._bytes_of(entry) for entry in cache[keep:])
                del cache[keep:]
        for entry in entries:
            batch.put(RAFT, self._key(entry.index), encode(entry))
            size = len(entry.data) + _ENTRY_OVERHEAD_BYTES
            self._cache_bytes += size
            self.bytes += size
        cache += entries
        self._last = entries[-1].index

    def _evict(self) -> None:
        if self._cache_bytes <= self._cache_bytes_max:
            return
        # Half at a time, so that the cost of moving the rest is paid rarely.
        drop = 0
        while self._cache_bytes > self._cache_bytes_max // 2 and drop < len(self._cache) - 1:
            self._cache_bytes -= self._bytes_of(self._cache[drop])
            drop += 1
        del self._cache[:drop]

    def truncate(self, batch: WriteBatch, index: int) -> None:
        """Forget the entries up to `index`, which are applied."""
        term = self.term(index)
        batch.delete_range(RAFT, self._key(self._start.index + 1), self._key(index + 1))
        self._start = LogStart(index, term)
        batch.put(META, self._keys.log_start, encode(self._start))
        if self._cache and self._cache[0].index <= index:
            drop = min(index + 1 - self._cache[0].index, len(self._cache))
            self._cache_bytes -= sum(self._bytes_of(entry) for entry in self._cache[:drop])
            del self._cache[:drop]
        self.bytes = 0

    def reset(self, batch: WriteBatch, index: int, term: int) -> None:
        """Begin again behind a Raft snapshot: nothing of the old log counts."""
        batch.delete_range(RAFT, self._key(0), self._key(max(self._last, index) + 1))
        self._start = LogStart(index, term)
        batch.put(META, self._keys.log_start, encode(self._start))
        self._cache.clear()
        self._cache_bytes = 0
        self._last = index
        self.bytes = 0
