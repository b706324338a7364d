"""What must hold of a Raft group at every moment: one method a property, fed by the simulated hosts as things happen."""

from collections import Counter

from dsdb.raft.messages import Entry, Membership, ReplicaId
from dsdb.raft.node import RaftNode
from dsdb.raft.quorum import is_quorum
from tests.raft.disk import Disk


class Violation(AssertionError):
    """A property of Raft, or of the lease, did not hold."""


def require(condition: bool, claim: str, *values: object) -> None:
    if not condition:
        raise Violation(f"{claim}: {values}")


class Checker:
    """Remembers everything that was ever led, written, committed and acknowledged in one run."""

    def __init__(self, born_at: int) -> None:
        self.counts: Counter[str] = Counter()
        self._leaders: dict[int, tuple[ReplicaId, int]] = {}  # term → (replica, its incarnation)
        self._entries: dict[tuple[int, int], tuple[Entry, int]] = {}  # (index, term) → (entry, term of the one before)
        self.committed: list[tuple[int, int, bytes]] = []  # (index, term, data), from `born_at` + 1 on
        self._born_at = born_at  # index of the state before the first entry
        self.acknowledged_index = 0  # of the highest proposal that a client was told to be committed

    def on_leader(self, node: RaftNode, incarnation: int, disk: Disk) -> None:
        """Election safety: one leader a term, which it cannot forget. Leader completeness: it has everything that was committed."""
        require(disk.durable.hard.term == node.term, "a leader's own vote is durable", node.replica, node.term, disk.durable.hard)
        who = (node.replica, incarnation)
        require(self._leaders.setdefault(node.term, who) == who, "one leader a term", node.term, who, self._leaders[node.term])
        if self.committed:
            index, term, _ = self.committed[-1]
            require(node.log.matches(index, term), "a leader has every committed entry", node.replica, node.term, index, term)

    def on_write(self, disk: Disk, entries: tuple[Entry, ...]) -> None:
        """Log matching: an index and term name one entry, with one entry before it."""
        for entry in entries:
            link = (entry, disk.term(entry.index - 1))
            known = self._entries.setdefault((entry.index, entry.term), link)
            require(known == link, "index and term name one entry and its past", known, link)

    def on_commit(self, node: RaftNode, disks: dict[ReplicaId, Disk]) -> None:
        """Durability: what a leader newly counts as committed is on the disks of a quorum, whoever crashes now. And it is of its own
        term."""
        index, term = node.commit, node.log.term(node.commit)
        require(term == node.term, "a leader commits by entries of its own term", node.replica, node.term, index, term)

        def has(replica: ReplicaId) -> bool:
            image = disks[replica].durable
            if image.base[0] >= index:
                return True
            position = index - image.base[0] - 1
            return position < len(image.log) and image.log[position].term == term

        is_safe = is_quorum(node.membership, has)
        require(is_safe, "a committed entry is durable on a quorum", node.replica, node.term, index, node.membership)

    def on_stabled(self, node: RaftNode, disk: Disk) -> None:
        """What a replica counts as durable in its own log is on its own disk."""
        image, index = disk.durable, node.log.stable
        if index < node.log.base_index:
            return  # a snapshot that is not durable yet has voided it
        position = index - image.base[0] - 1
        is_there = position < 0 or (position < len(image.log) and image.log[position].term == node.log.term(index))
        require(is_there, "what counts as durable is on the disk", node.replica, node.term, index, node.log.term(index))

    def on_apply(self, replica: ReplicaId, entries: tuple[Entry, ...]) -> None:
        """State machine safety: every replica applies the same entry at an index."""
        for entry in entries:
            applied = (entry.index, entry.term, entry.data)
            position = entry.index - self._born_at - 1
            if position == len(self.committed):
                self.committed.append(applied)
            require(self.committed[position] == applied, "all apply the same", replica, applied, self.committed[position])

    def on_install(self, replica: ReplicaId, machine: list[tuple[int, int, bytes]]) -> None:
        """State machine safety, for a state that came as a snapshot."""
        require(machine == self.committed[: len(machine)], "a snapshot holds what was committed", replica, len(machine))

    def on_lease(self, node: RaftNode, others: list[RaftNode]) -> None:
        """The lease: no two at the same true time, and its holder knows whatever was acknowledged."""
        self.counts["lease checked"] += 1
        require(not others, "one lease at a time", (node.replica, node.term), [(other.replica, other.term) for other in others])
        require(node.commit >= self.acknowledged_index, "a lease holder is current", node.replica, node.commit, self.acknowledged_index)

    def on_read(self, replica: ReplicaId, index: int, acknowledged_before: int) -> None:
        """Read index: not older than what was acknowledged when the read was asked for."""
        self.counts["read confirmed"] += 1
        require(index >= acknowledged_before, "a read is current", replica, index, acknowledged_before)

    def on_membership(self, replica: ReplicaId, index: int, membership: Membership, known: dict[int, Membership]) -> None:
        """Every replica has the same membership at an index."""
        require(known.setdefault(index, membership) == membership, "one membership at an index", replica, index, membership, known[index])
