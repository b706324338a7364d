"""Majorities of one or two sets of voters.

Invariants:
- A joint membership decides only what both of its halves decide; an empty outgoing half agrees to everything.
- Every majority of a set shares a member with every other majority of it.
"""

import enum
from collections.abc import Callable, Mapping, Sequence

from dsdb.raft.messages import Membership, ReplicaId


class Outcome(enum.Enum):
    """Where a vote stands."""

    WON = "won"
    LOST = "lost"
    PENDING = "pending"


def majority_value(values: Sequence[int]) -> int:
    """Give the highest value that a majority reaches or exceeds. `values` must not be empty."""
    return sorted(values)[(len(values) - 1) // 2]


def is_majority(voters: Sequence[ReplicaId], agrees: Callable[[ReplicaId], bool]) -> bool:
    """Whether more than half of the voters agree; true for no voters at all."""
    missing = len(voters) // 2 + 1 if voters else 0
    for voter in voters:
        if missing and agrees(voter):
            missing -= 1
    return not missing


def is_quorum(membership: Membership, agrees: Callable[[ReplicaId], bool]) -> bool:
    """Whether a majority of the voters, and of the outgoing ones if joint, agrees. Learners are never asked. No voters are no quorum."""
    return bool(membership.voters) and is_majority(membership.voters, agrees) and is_majority(membership.voters_outgoing, agrees)


def vote_outcome(membership: Membership, votes: Mapping[ReplicaId, bool]) -> Outcome:
    """Say where an election stands, given who granted (True) and who refused (False) so far."""
    if is_quorum(membership, lambda voter: votes.get(voter, False)):
        return Outcome.WON
    if is_quorum(membership, lambda voter: votes.get(voter, True)):
        return Outcome.PENDING
    return Outcome.LOST
