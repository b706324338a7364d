"""A disk for one replica in memory: what is written can be read at once, what is not synced can be lost from any point on."""

from collections.abc import Callable

from dsdb.raft.messages import Entry, HardState, Membership, SnapshotMetadata


class Image:
    """The content of a disk."""

    def __init__(self, membership: Membership, born_at: int = 0) -> None:
        self.hard = HardState()
        self.membership = membership
        self.applied = born_at
        self.machine: list[tuple[int, int, bytes]] = []  # (index, term, data) of all that was applied, in order
        self.base = (born_at, 0)  # (index, term) before the first entry
        self.log: list[Entry] = []

    def copy(self) -> "Image":
        other = Image(self.membership)
        other.hard, other.applied, other.base = self.hard, self.applied, self.base
        other.machine, other.log = list(self.machine), list(self.log)
        return other

    def write(self, hard: HardState | None, entries: tuple[Entry, ...]) -> None:
        if hard is not None:
            self.hard = hard
        if entries:
            keep = entries[0].index - 1 - self.base[0]
            assert 0 <= keep <= len(self.log), (entries[0].index, self.base, len(self.log))
            del self.log[keep:]
            self.log.extend(entries)

    def apply(self, entries: tuple[Entry, ...], membership: Membership) -> None:
        for entry in entries:
            assert entry.index == self.applied + 1, (entry.index, self.applied)
            self.applied = entry.index
            self.machine.append((entry.index, entry.term, entry.data))
        self.membership = membership

    def install(self, snapshot: SnapshotMetadata, machine: list[tuple[int, int, bytes]], hard: HardState | None) -> None:
        self.write(hard, ())
        self.log.clear()
        self.base = (snapshot.index, snapshot.term)
        self.applied = snapshot.index
        self.membership = snapshot.membership
        self.machine = list(machine)

    def compact(self, index: int) -> None:
        assert self.base[0] <= index <= self.applied, (self.base, index, self.applied)
        if index > self.base[0]:
            term = self.log[index - self.base[0] - 1].term
            del self.log[: index - self.base[0]]
            self.base = (index, term)


class Disk:
    """A `LogStorage` with a durable image and the writes since; every write is one atomic step of one write-ahead log."""

    def __init__(self, membership: Membership, born_at: int = 0) -> None:
        self.written = Image(membership, born_at)
        self.durable = Image(membership, born_at)
        self._pending: list[Callable[[Image], None]] = []
        self.lost_writes = 0

    def write(self, step: Callable[[Image], None]) -> None:
        step(self.written)
        self._pending.append(step)

    @property
    def pending(self) -> int:
        """How many writes are not synced."""
        return len(self._pending)

    def sync(self, count: int | None = None) -> None:
        """Make the first `count` writes durable, or all."""
        count = len(self._pending) if count is None else min(count, len(self._pending))
        for step in self._pending[:count]:
            step(self.durable)
        del self._pending[:count]

    def crash(self, survive: int) -> None:
        """Lose all but the first `survive` of the writes that were not synced."""
        self.lost_writes += max(0, len(self._pending) - survive)
        self.sync(survive)
        self._pending.clear()
        self.written = self.durable.copy()

    # --- LogStorage ---

    def initial_state(self) -> tuple[HardState, Membership, int]:
        return self.written.hard, self.written.membership, self.written.applied

    def first_index(self) -> int:
        return self.written.base[0] + 1

    def last_index(self) -> int:
        return self.written.base[0] + len(self.written.log)

    def term(self, index: int) -> int:
        base_index, base_term = self.written.base
        return base_term if index == base_index else self.written.log[index - base_index - 1].term

    def entries(self, low: int, high: int, bytes_max: int) -> tuple[Entry, ...]:
        base_index = self.written.base[0]
        assert base_index < low < high <= self.last_index() + 1, (base_index, low, high, self.last_index())
        chosen: list[Entry] = []
        size = 0
        for entry in self.written.log[low - base_index - 1 : high - base_index - 1]:
            size += len(entry.data)
            if chosen and size > bytes_max:
                break
            chosen.append(entry)
        return tuple(chosen)
