"""Log, quorum and membership against plain models."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from dsdb.raft.log import RaftLog
from dsdb.raft.membership import apply_change
from dsdb.raft.messages import Entry, Membership, MembershipChange, ReplicaId
from dsdb.raft.quorum import Outcome, is_quorum, majority_value, vote_outcome
from tests.raft.disk import Disk

REPLICAS = [ReplicaId(n) for n in range(1, 6)]
SOME = st.sets(st.sampled_from(REPLICAS)).map(lambda replicas: tuple(sorted(replicas)))
VOTERS = st.sets(st.sampled_from(REPLICAS), min_size=1).map(lambda replicas: tuple(sorted(replicas)))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=7))
def test_majority_value_is_the_highest_that_a_majority_reaches(values: list[int]) -> None:
    reached = [value for value in range(10) if 2 * sum(other >= value for other in values) > len(values)]
    assert majority_value(values) == max(reached)


@given(VOTERS, SOME, st.dictionaries(st.sampled_from(REPLICAS), st.booleans()))
def test_vote_is_pending_exactly_while_the_missing_votes_can_decide(
    voters: tuple[ReplicaId, ...], outgoing: tuple[ReplicaId, ...], votes: dict[ReplicaId, bool]
) -> None:
    membership = Membership(voters=voters, voters_outgoing=outgoing)
    missing = [replica for replica in REPLICAS if replica not in votes]
    ends = set()
    for answers in itertools.product((True, False), repeat=len(missing)):
        full = {**votes, **dict(zip(missing, answers))}
        ends.add(is_quorum(membership, full.__getitem__))
    expected = Outcome.PENDING if len(ends) == 2 else Outcome.WON if True in ends else Outcome.LOST
    outcome = vote_outcome(membership, votes)
    assert outcome is expected


CHANGES = st.builds(MembershipChange, add_voters=SOME, add_learners=SOME, remove=SOME, leave_joint=st.booleans())


@given(VOTERS, st.lists(CHANGES, max_size=8))
def test_successive_memberships_share_every_quorum(voters: tuple[ReplicaId, ...], changes: list[MembershipChange]) -> None:
    membership = Membership(voters=voters)
    for change in changes:
        following = apply_change(membership, change)
        learners = {*following.learners, *following.learners_next}
        assert following.voters
        assert not learners & {*following.voters}
        assert not {*following.learners} & {*following.voters_outgoing}
        for size in range(len(REPLICAS) + 1):
            for agreeing in itertools.combinations(REPLICAS, size):
                rest = [replica for replica in REPLICAS if replica not in agreeing]
                both = is_quorum(membership, agreeing.__contains__) and is_quorum(following, rest.__contains__)
                assert not both, (membership, following, agreeing)
        membership = following


@st.composite
def merges(draw: st.DrawFn) -> list[tuple[int, list[int]]]:
    """Appends of leaders of growing terms: (where they begin to differ, terms of their entries)."""
    term, steps = 1, []
    for _ in range(draw(st.integers(1, 12))):
        term += draw(st.integers(0, 1))
        steps.append((draw(st.integers(0, 12)), [term] * draw(st.integers(0, 4))))
    return steps


@settings(max_examples=150)
@given(merges(), st.data())
def test_log_follows_a_list_and_counts_only_reports_of_its_generation(steps: list[tuple[int, list[int]]], data: st.DataObject) -> None:
    disk = Disk(Membership())
    log = RaftLog(disk, commit=0, applied=0)
    model: list[Entry] = []
    pending: list[tuple[int, tuple[int, int]]] = []  # (writes until then, mark)
    for place, terms in steps:
        prev = min(max(place, log.commit), len(model))
        entries = [Entry(index=prev + 1 + k, term=term, data=bytes([term, k])) for k, term in enumerate(terms)]
        keeps = all(e.index <= len(model) and model[e.index - 1].term == e.term for e in entries)
        if keeps:
            entries = model[prev : prev + len(entries)]
        else:
            while entries and entries[0].index <= len(model) and model[entries[0].index - 1].term == entries[0].term:
                entries = entries[1:]
            prev = entries[0].index - 1
            model[prev:] = entries
        assert log.merge(prev, model[prev - 1].term if prev else 0, entries)
        assert not log.merge(len(model) + 1, 1, [])
        unwritten = log.take_unwritten()
        disk.write(lambda image, unwritten=unwritten: image.write(None, unwritten))  # type: ignore[misc]
        pending.append((len(unwritten), (log.last_index, log.generation)))
        if data.draw(st.booleans()):
            _, mark = pending.pop(0)
            disk.sync(1)
            log.stabled(*mark)
        if data.draw(st.booleans()):
            log.commit_to(data.draw(st.integers(log.commit, len(model))))
            committed = log.take_committed(data.draw(st.integers(1, 5)))
            if committed:
                assert list(committed) == model[committed[0].index - 1 : committed[-1].index]
                log.applied_to(committed[-1].index)
        assert [log.term(index) for index in range(1, log.last_index + 1)] == [entry.term for entry in model]
        assert disk.durable.log[: log.stable] == model[: log.stable]
        if model:
            low = data.draw(st.integers(1, len(model)))
            found = log.entries(low, len(model) + 1, 1000)
            assert found
            assert list(found) == model[low - 1 : low - 1 + len(found)]
