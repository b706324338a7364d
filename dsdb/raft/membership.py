"""Steps from one membership to the next, as pure functions (joint consensus: Raft dissertation, section 4.3).

Invariants:
- A step that changes at most one voter is simple; any other makes the membership joint, with the former voters as the outgoing half.
- A replica is in exactly one of voters and learners; `learners_next` are outgoing voters that become learners when the joint membership
  is left.
- There is always at least one voter.
"""

from dsdb.raft.messages import Membership, MembershipChange, ReplicaId


def check_change(membership: Membership, change: MembershipChange) -> None:
    """Refuse a change that makes no sense now. Raises ValueError with the reason."""
    named = (*change.add_voters, *change.add_learners, *change.remove)
    if change.leave_joint:
        if named:
            raise ValueError("leave_joint must be alone in its change")
        if not membership.is_joint:
            raise ValueError("the membership is not joint: there is nothing to leave")
        return
    if membership.is_joint:
        raise ValueError("the membership is joint: it must be left before the next change")
    if not named:
        raise ValueError("the change is empty")
    if len(set(named)) != len(named) or min(named) < 1:
        raise ValueError(f"a change names each replica once, by a positive id, not {named}")
    members = membership.members()
    if absent := [replica for replica in change.remove if replica not in members]:
        raise ValueError(f"cannot remove {absent}: not among {list(members)}")
    if present := [replica for replica in change.add_voters if replica in membership.voters]:
        raise ValueError(f"cannot add {present} as voters: they are")
    if present := [replica for replica in change.add_learners if replica in membership.learners]:
        raise ValueError(f"cannot add {present} as learners: they are")
    if not _voters_after(membership, change):
        raise ValueError("a group cannot lose its last voter")


def apply_change(membership: Membership, change: MembershipChange) -> Membership:
    """Give the membership after a change; the same one for an empty change, or one that `check_change` would refuse.

    Applying is deterministic and total: whatever is in the log has the same effect on every replica.
    """
    try:
        check_change(membership, change)
    except ValueError:
        return membership
    if change.leave_joint:
        return Membership(voters=membership.voters, learners=_sorted({*membership.learners, *membership.learners_next}))
    voters = _voters_after(membership, change)
    learners = ({*membership.learners, *change.add_learners} - {*change.remove}) - {*voters}
    if len({*voters} ^ {*membership.voters}) <= 1:
        return Membership(voters=voters, learners=_sorted(learners))
    # An outgoing voter still votes, so it cannot be a learner before the joint membership is left.
    learners_next = learners & {*membership.voters}
    return Membership(
        voters=voters,
        voters_outgoing=membership.voters,
        learners=_sorted(learners - learners_next),
        learners_next=_sorted(learners_next),
    )


def _voters_after(membership: Membership, change: MembershipChange) -> tuple[ReplicaId, ...]:
    return _sorted(({*membership.voters, *change.add_voters} - {*change.remove}) - {*change.add_learners})


def _sorted(replicas: set[ReplicaId]) -> tuple[ReplicaId, ...]:
    return tuple(sorted(replicas))
