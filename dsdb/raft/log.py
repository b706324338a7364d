"""One replica's view of its log: the written part in the storage, and a tail in memory of what is not durable or not yet handed out to
apply.

       base_index      applied ≤ applying ≤ commit          last_index
    ───────┤───────────────┼─────────┼─────────┼─────────────────┤
    snapshot│  in storage            │ ◀──── tail in memory ────▶ │
                                     stable ≤ handed ────────────┘

Invariants:
- base_index ≤ applied ≤ applying ≤ commit ≤ last_index, and stable ≤ handed ≤ last_index.
- Nothing at or below `commit` is ever truncated.
- `generation` grows with every truncation, restore, and change of term or vote. A report that something became durable counts only in
  the generation in which it was handed out: an entry may be cut off and come back equal while an old fsync still runs.
- The tail holds every entry above min(stable, applying), so the entries of the usual path are never read back from the storage.

Not here: who may append what (`replication`), and the bytes on disk (the store, behind `LogStorage`).
"""

from collections.abc import Sequence

from dsdb.raft.messages import Entry, SnapshotMetadata
from dsdb.raft.storage import LogStorage


class RaftLog:
    """Entries by index, and the marks that move along them."""

    __slots__ = (
        "_storage",
        "_tail",
        "_tail_from",
        "applied",
        "applying",
        "base_index",
        "base_term",
        "commit",
        "generation",
        "handed",
        "last_index",
        "last_term",
        "snapshot",
        "stable",
    )

    def __init__(self, storage: LogStorage, *, commit: int, applied: int) -> None:
        self._storage = storage
        self.base_index = storage.first_index() - 1  # the entry before the first; its place is known, its data is not
        self.base_term = storage.term(self.base_index)
        self.last_index = storage.last_index()
        self.last_term = storage.term(self.last_index)
        self.commit = max(commit, applied)  # known to be committed
        self.applied = applied  # reported as applied
        self.applying = applied  # handed out to be applied
        self.handed = self.last_index  # handed out to be written
        self.stable = self.last_index  # durable here
        self.generation = 0  # of durability reports
        self.snapshot: SnapshotMetadata | None = None  # restored, not yet handed out
        self._tail: list[Entry] = []
        self._tail_from = self.last_index + 1  # index of _tail[0]
        assert self.base_index <= applied <= self.commit <= self.last_index, (self.base_index, applied, self.commit, self.last_index)

    def term(self, index: int) -> int:
        """Give the term at an index within [base_index, last_index]."""
        if index == self.last_index:
            return self.last_term
        if index >= self._tail_from:
            return self._tail[index - self._tail_from].term
        if index == self.base_index:
            return self.base_term
        return self._storage.term(index)

    def matches(self, index: int, term: int) -> bool:
        """Whether this log has an entry (or its snapshot's place) of that index and term."""
        return self.base_index <= index <= self.last_index and self.term(index) == term

    def is_up_to_date(self, last_index: int, last_term: int) -> bool:
        """Whether a log that ends there is at least as complete as this one (Raft paper, section 5.4.1)."""
        return last_term > self.last_term or (last_term == self.last_term and last_index >= self.last_index)

    def conflict_hint(self, index: int, term: int) -> tuple[int, int]:
        """Give the last (index, term) at or before `index` whose term is not above `term`: where two logs may at best agree.

        Skips a whole term that the other side cannot have, rather than one entry per round trip.
        """
        index = min(index, self.last_index)
        while index > self.base_index and self.term(index) > term:
            index -= 1
        return (index, self.term(index)) if index >= self.base_index else (index, 0)

    def entries(self, low: int, high: int, bytes_max: int) -> tuple[Entry, ...]:
        """Give entries from `low`, at least one, up to `high` (exclusive) or `bytes_max` of data; possibly fewer where memory and storage
        meet."""
        if low < self._tail_from:
            return self._storage.entries(low, min(high, self._tail_from), bytes_max)
        chosen = self._tail[low - self._tail_from : high - self._tail_from]
        if len(chosen) > 1:
            size = 0
            for count, entry in enumerate(chosen):
                size += len(entry.data)
                if size > bytes_max and count:
                    return tuple(chosen[:count])
        return tuple(chosen)

    # --- growing -----------------------------------------------------------------------------------------------------------------------

    def append(self, entries: Sequence[Entry]) -> None:
        """Append entries that follow the last one directly."""
        assert entries[0].index == self.last_index + 1, (entries[0].index, self.last_index)
        self._tail.extend(entries)
        last = entries[-1]
        self.last_index = last.index
        self.last_term = last.term

    def merge(self, prev_index: int, prev_term: int, entries: Sequence[Entry]) -> bool:
        """Make this log agree with a leader's entries after (prev_index, prev_term); False when it does not have that place.

        Entries already there are kept: a late, shorter Append must not cut off what a newer one brought.
        """
        if prev_index != self.last_index:
            if not self.matches(prev_index, prev_term):
                return False
            for position, entry in enumerate(entries):
                if entry.index > self.last_index or self.term(entry.index) != entry.term:
                    entries = entries[position:]
                    break
            else:
                return True
            if entries[0].index <= self.last_index:
                self._truncate(entries[0].index)
        elif prev_term != self.last_term:
            return False
        if entries:
            self.append(entries)
        return True

    def _truncate(self, index: int) -> None:
        """Cut off everything from `index` on."""
        assert index > self.commit, f"a leader replaces entry {index}, but {self.commit} are committed"
        if index > self._tail_from:
            del self._tail[index - self._tail_from :]
        else:
            self._tail.clear()
            self._tail_from = index
        self.last_index = index - 1
        self.last_term = self._tail[-1].term if self._tail else self.term_below(index)
        self.handed = min(self.handed, index - 1)
        self.stable = min(self.stable, index - 1)
        self.generation += 1

    def term_below(self, index: int) -> int:
        """Give the term of the entry before `index` when no tail lies below it."""
        return self.base_term if index - 1 == self.base_index else self._storage.term(index - 1)

    def restore(self, snapshot: SnapshotMetadata) -> None:
        """Start anew from a snapshot: everything before and after it is void."""
        self._tail.clear()
        self._tail_from = snapshot.index + 1
        self.base_index = self.last_index = self.commit = self.applying = self.handed = snapshot.index
        self.base_term = self.last_term = snapshot.term
        self.stable = min(self.stable, self.applied)
        self.applied = snapshot.index
        self.snapshot = snapshot
        self.generation += 1

    # --- the marks ---------------------------------------------------------------------------------------------------------------------

    def commit_to(self, index: int) -> bool:
        """Move the commit index up; False when it is already there."""
        if index <= self.commit:
            return False
        assert index <= self.last_index, f"entry {index} is committed, but this log ends at {self.last_index}: it lost what it acknowledged"
        self.commit = index
        return True

    def take_unwritten(self) -> tuple[Entry, ...]:
        """Hand out, once, the entries that are to be written."""
        if self.handed == self.last_index:
            return ()
        low = self.handed + 1 - self._tail_from
        self.handed = self.last_index
        return tuple(self._tail[low:] if low else self._tail)

    def take_committed(self, bytes_max: int) -> tuple[Entry, ...]:
        """Hand out, once, committed entries that are to be applied; not all at once if they are large."""
        if self.applying >= self.commit:
            return ()
        entries = self.entries(self.applying + 1, self.commit + 1, bytes_max)
        self.applying = entries[-1].index
        self._trim()
        return entries

    def stabled(self, index: int, generation: int) -> bool:
        """Take a report of durability; False, and without effect, when it is of an earlier generation."""
        if generation != self.generation:
            return False
        if index > self.stable:
            self.stable = index
            self._trim()
        return True

    def applied_to(self, index: int) -> None:
        """Take a report that everything up to `index` was applied."""
        assert index <= self.applying, f"entry {index} reported as applied, but only {self.applying} were handed out"
        self.applied = max(self.applied, index)

    def compacted(self) -> None:
        """Follow the storage, whose first index moved up."""
        base = self._storage.first_index() - 1
        if base > self.base_index:
            assert base <= self.applied, f"log compacted to {base}, but only {self.applied} are applied"
            self.base_term = self.term(base)
            self.base_index = base

    def _trim(self) -> None:
        """Forget the part of the tail that is durable and was handed out to apply."""
        keep_from = (self.stable if self.stable < self.applying else self.applying) + 1
        if keep_from > self._tail_from:
            del self._tail[: keep_from - self._tail_from]
            self._tail_from = keep_from
