"""The port through which the core reads what the store has written of a group's log."""

from typing import Protocol

from dsdb.raft.messages import Entry, HardState, Membership


class LogStorage(Protocol):
    """Reads of one group's log and durable state. Everything written counts, synced or not.

    Right after a start it shows exactly what survived. Implementations answer from memory or the engine without waiting; they may assume
    that the core asks for a term or entries only within [first_index - 1, last_index] and [first_index, last_index] respectively.

    The first replicas of a group are born with a state at some index above 0 (its term is 0), so that first_index() is never 1: a
    replica that starts empty, without a membership, then always takes a snapshot, which tells it the membership, instead of a log from
    the beginning.
    """

    def initial_state(self) -> tuple[HardState, Membership, int]:
        """Give the hard state, the membership as applied, and the applied index. Asked once, at construction."""
        ...

    def first_index(self) -> int:
        """Give the index of the first entry kept; last_index() + 1 when there is none."""
        ...

    def last_index(self) -> int:
        """Give the index of the last entry written, or of the snapshot when nothing follows it."""
        ...

    def term(self, index: int) -> int:
        """Give the term of the entry at `index`; first_index() - 1 is allowed (the place of the snapshot or truncation; 0 for index 0)."""
        ...

    def entries(self, low: int, high: int, bytes_max: int) -> tuple[Entry, ...]:
        """Give entries [low, high) up to `bytes_max` bytes of data, but at least one."""
        ...
