"""The addressing cache: which range holds a key, and which of its replicas leads, as far as this node has heard.

    start keys, sorted:   ""      03…     10 01 05…     10 01 09…
    entries:              r1      r2      r7            r2's right half …

Invariants:
- Entries never overlap; an entry is replaced only by one of the same range with a higher generation, or by ranges that overlap it and
  are newer than it. So the cache only moves forward.
- It may be wrong about everything: whoever is asked checks, and answers with what is true.
"""

from bisect import bisect_right, insort

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.ids import RangeId, StoreId

ENTRIES_MAX = 100_000
"""Descriptors kept; above it the cache is emptied, which costs look-ups and nothing else."""


class CachedRange:
    """A descriptor and the store that probably holds the lease (None: not known)."""

    __slots__ = ("desc", "end_key", "leaseholder", "start_key")

    def __init__(self, desc: RangeDescriptor, leaseholder: StoreId | None) -> None:
        self.desc = desc
        self.start_key = desc.start_key
        self.end_key = desc.end_key
        self.leaseholder = leaseholder


class RangeCache:
    """Descriptors by start key."""

    def __init__(self) -> None:
        self._starts: list[bytes] = []
        self._by_start: dict[bytes, CachedRange] = {}
        self._by_id: dict[RangeId, CachedRange] = {}

    def lookup(self, key: bytes) -> CachedRange | None:
        """Give the entry whose span holds `key`, if there is one."""
        position = bisect_right(self._starts, key) - 1
        if position < 0:
            return None
        entry = self._by_start[self._starts[position]]
        return entry if key < entry.end_key else None

    def by_id(self, range_id: RangeId) -> CachedRange | None:
        """Give the entry of a range, if there is one."""
        return self._by_id.get(range_id)

    def update(self, desc: RangeDescriptor, leaseholder: StoreId | None = None) -> CachedRange:
        """Take a descriptor if it is news, and a leaseholder if one is given; give the entry of its range, or what stands there."""
        known = self._by_id.get(desc.range_id)
        if known is not None and known.desc.generation >= desc.generation:
            if leaseholder is not None:
                known.leaseholder = leaseholder
            return known
        # The left side of a split is newer than the whole that it was cut from, and so is the right side, whose generation starts
        # at the left side's: an overlapping entry of another range is older unless its generation is higher.
        overlapping = [entry for entry in self._overlapping(desc) if entry.desc.range_id != desc.range_id]
        for entry in overlapping:
            if entry.desc.generation > desc.generation:
                return entry
        if known is not None and leaseholder is None:
            leaseholder = known.leaseholder if desc.replica_on(known.leaseholder or StoreId(0)) else None
        for entry in overlapping:
            self.evict(entry)
        if known is not None:
            self.evict(known)
        if len(self._starts) >= ENTRIES_MAX:
            self.clear()
        entry = CachedRange(desc, leaseholder)
        insort(self._starts, desc.start_key)
        self._by_start[desc.start_key] = entry
        self._by_id[desc.range_id] = entry
        return entry

    def evict(self, entry: CachedRange) -> None:
        """Forget an entry, if it is still there."""
        if self._by_id.get(entry.desc.range_id) is entry:
            del self._by_id[entry.desc.range_id]
            del self._by_start[entry.start_key]
            del self._starts[bisect_right(self._starts, entry.start_key) - 1]

    def clear(self) -> None:
        """Forget everything."""
        self._starts.clear()
        self._by_start.clear()
        self._by_id.clear()

    def entries(self) -> list[CachedRange]:
        """Give all entries in key order."""
        return [self._by_start[start] for start in self._starts]

    def _overlapping(self, desc: RangeDescriptor) -> list[CachedRange]:
        position = max(bisect_right(self._starts, desc.start_key) - 1, 0)
        found = []
        while position < len(self._starts) and self._starts[position] < desc.end_key:
            entry = self._by_start[self._starts[position]]
            if entry.end_key > desc.start_key:
                found.append(entry)
            position += 1
        return found
