"""What commands do: the first outcome wins, the floor holds, nothing lands outside of the range."""

import random

import msgspec
import pytest

from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor
from dsdb.kv.errors import Gone, RangeKeyMismatch, Refused, Unavailable
from dsdb.kv.ids import AttemptId, NodeId, RangeId, StoreId
from dsdb.kv.requests import CollectGarbageReply, CommitReply, OutcomeReply, RaiseMarkReply, SplitReply
from dsdb.raft.messages import Membership, ReplicaId
from dsdb.storage import mvcc
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.engine.port import Family
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import Timestamp
from dsdb.storage.versions import View
from dsdb.store.command import (
    CollectGarbageCommand,
    Command,
    CommitCommand,
    RaiseMarkCommand,
    RefuseCommand,
    SplitCommand,
    decode_command,
    encode_command,
)
from dsdb.store.state import ReplicaKeys, ReplicatedState, read_replicated
from dsdb.store.state_machine import PART_WRITES, Result, StateMachine

TERM = 6
ONE, TWO = AttemptId(b"1" * 16), AttemptId(b"2" * 16)


class Bench:
    """A state machine on an engine of its own, applying one command at a time."""

    def __init__(self) -> None:
        self.engine = MemoryEngine()
        replica = ReplicaDescriptor(ReplicaId(1), NodeId(1), StoreId(1))
        self.desc = RangeDescriptor(RangeId(2), b"a", b"z", 1, (replica,), ReplicaId(2))
        self.keys = ReplicaKeys(RangeId(2))
        state = ReplicatedState(descriptor=self.desc, membership=Membership(voters=(ReplicaId(1),)))
        self.machine = StateMachine(self.engine, self.keys, state)
        self.index = 10

    def apply(self, command: Command, *, term: int = TERM) -> Result:
        self.index += 1
        batch = self.engine.new_batch()
        result = self.machine.apply(batch, self.index, term, decode_command(encode_command(command)))
        self.machine.put_applied(batch)
        self.engine.write(batch)
        return result

    def value(self, key: bytes) -> bytes | None:
        return mvcc.get_many(self.engine, [key], View(Timestamp(10**6)))[0]

    def reload(self) -> None:
        state = read_replicated(self.engine, self.keys) or self.machine.state
        self.machine = StateMachine(self.engine, self.keys, state)


def commit(attempt: AttemptId, ts: int, key: bytes = b"k", value: bytes = b"v", *, first_ts: int = 50, floor: int = 0) -> CommitCommand:
    return CommitCommand(1, TERM, Timestamp(floor), attempt, Timestamp(first_ts), Timestamp(ts), (key,), (value,))


@pytest.mark.parametrize("restarts", [False, True])
def test_a_commit_is_applied_once(restarts: bool) -> None:
    bench = Bench()
    assert bench.apply(commit(ONE, 60, value=b"first")) == CommitReply(Timestamp(60))
    if restarts:
        bench.reload()
    assert bench.apply(commit(ONE, 70, value=b"second")) == CommitReply(Timestamp(60))
    assert bench.value(b"k") == b"first"


def test_the_first_outcome_in_the_log_wins() -> None:
    bench = Bench()
    assert bench.apply(RefuseCommand(TERM, ONE, Timestamp(50))) == OutcomeReply(None)
    assert bench.apply(commit(ONE, 60)) == Refused()
    assert bench.value(b"k") is None
    assert bench.apply(commit(TWO, 60)) == CommitReply(Timestamp(60))
    assert bench.apply(RefuseCommand(TERM, TWO, Timestamp(50))) == OutcomeReply(Timestamp(60))


@pytest.mark.parametrize("restarts", [False, True])
def test_what_is_forgotten_is_never_accepted_again(restarts: bool) -> None:
    bench = Bench()
    bench.apply(commit(ONE, 60, first_ts=50))
    bench.apply(commit(TWO, 200, key=b"m", first_ts=190, floor=100))
    if restarts:
        bench.reload()
    assert list(bench.machine.outcomes) == [TWO]
    assert bench.apply(commit(ONE, 210, first_ts=50)) == Gone()
    assert bench.apply(RefuseCommand(TERM, ONE, Timestamp(50))) == Gone()


def test_a_command_of_another_term_does_nothing() -> None:
    bench = Bench()
    assert isinstance(bench.apply(commit(ONE, 60), term=TERM + 1), Unavailable)
    assert bench.value(b"k") is None


def test_a_split_between_evaluation_and_apply_refuses_what_is_outside() -> None:
    bench = Bench()
    left = RangeDescriptor(RangeId(2), b"a", b"k", 2, bench.desc.replicas, ReplicaId(2))
    right = RangeDescriptor(RangeId(3), b"k", b"z", 2, bench.desc.replicas, ReplicaId(2))
    assert bench.apply(SplitCommand(1, TERM, left, right, 0)) == SplitReply(left, right)
    assert bench.apply(commit(ONE, 60, key=b"k")) == RangeKeyMismatch((left,))
    assert bench.apply(commit(ONE, 60, key=b"b")) == CommitReply(Timestamp(60))


def test_the_mark_only_rises() -> None:
    bench = Bench()
    assert bench.apply(RaiseMarkCommand(TERM, Timestamp(9))) == RaiseMarkReply(Timestamp(9))
    assert bench.apply(RaiseMarkCommand(TERM, Timestamp(5))) == RaiseMarkReply(Timestamp(9))
    bench.reload()
    assert bench.machine.state.mark == 9


def test_garbage_goes_and_the_threshold_stays() -> None:
    bench = Bench()
    for number in range(5):
        bench.apply(commit(AttemptId(b"%016d" % number), 60 + number, value=b"%d" % number))
    command = CollectGarbageCommand(1, TERM, Span(b"a", b"z"), Timestamp(63))
    assert bench.apply(command) == CollectGarbageReply(Timestamp(63), 3)
    assert bench.value(b"k") == b"4"
    bench.reload()
    assert bench.machine.state.threshold == 63


def test_replicas_that_apply_in_different_batches_hold_the_same() -> None:
    chance = random.Random(3)
    benches = [Bench(), Bench()]
    for number in range(200):
        attempt = AttemptId(b"%016d" % chance.randrange(60))
        first_ts = chance.randrange(1, 100)
        command: Command = commit(attempt, 200 + number, key=b"%c" % chance.choice(b"bcd"), first_ts=first_ts, floor=number // 4)
        if chance.random() < 0.2:
            command = RefuseCommand(TERM, attempt, Timestamp(first_ts))
        assert benches[0].apply(command) == benches[1].apply(command)
        if chance.random() < 0.1:
            benches[1].reload()
    assert benches[0].machine.outcomes == benches[1].machine.outcomes
    assert benches[0].machine.state == benches[1].machine.state


def large_commit(attempt: AttemptId, ts: int) -> CommitCommand:
    keys = tuple(b"k%05d" % number for number in range(3 * PART_WRITES + 7))
    values = tuple(None if number % 5 == 0 else b"%d" % ts for number in range(len(keys)))
    return CommitCommand(1, TERM, Timestamp(0), attempt, Timestamp(50), Timestamp(ts), keys, values)


def parts_put(bench: Bench, command: CommitCommand) -> int:
    """Put the parts that go before the apply of the next entry, each in a batch of its own; give their number."""
    parts = 0
    while True:
        batch = bench.engine.new_batch()
        if not bench.machine.put_part(batch, bench.index + 1, TERM, command):
            assert not len(batch)
            return parts
        assert len(batch) == PART_WRITES
        bench.engine.write(batch)
        parts += 1


@pytest.mark.parametrize("restarts", [False, True])
def test_a_large_commit_in_parts_is_the_same_as_in_one(restarts: bool) -> None:
    whole, parted = Bench(), Bench()
    command = large_commit(ONE, 60)
    assert whole.apply(command) == CommitReply(Timestamp(60))
    assert parts_put(parted, command) == 3
    assert parted.machine.command_in_parts(parted.index + 1) is command
    assert parted.machine.applied.index == 0, "before its last part it is not applied"
    if restarts:
        parted.reload()
        assert parted.machine.command_in_parts(parted.index + 1) is None
    assert parted.apply(command) == CommitReply(Timestamp(60))
    assert parted.machine.applied == whole.machine.applied
    for family in Family:
        assert list(parted.engine.scan(family, b"", b"\xff" * 32)) == list(whole.engine.scan(family, b"", b"\xff" * 32))


def test_a_large_commit_that_takes_no_effect_leaves_no_part() -> None:
    bench = Bench()
    bench.apply(RefuseCommand(TERM, ONE, Timestamp(50)))
    assert parts_put(bench, large_commit(ONE, 60)) == 0
    assert bench.apply(large_commit(ONE, 60)) == Refused()
    assert parts_put(bench, msgspec.structs.replace(large_commit(TWO, 60), lease_term=TERM - 1)) == 0
    assert parts_put(bench, msgspec.structs.replace(large_commit(TWO, 60), floor=Timestamp(50))) == 0
    assert bench.value(b"k00001") is None
