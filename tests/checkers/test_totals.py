"""Banks, long forks and counters: by hand, at random, and with planted faults."""

from collections.abc import Callable
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checkers import bank, longfork, monotonic
from tests.checkers.history import Anomaly, BadHistoryError, History, Increment, Insert, Key, Op, Outcome, Read, Txn, Value, Write
from tests.checkers.serial import Execute, Mix, serial

FAIL, INFO = Outcome.FAIL, Outcome.INFO


def txn(number: int, *ops: Op, at: tuple[int, int] = (1, 9), process: int | None = None, outcome: Outcome = Outcome.OK) -> Txn:
    """One transaction; all overlap unless `at` says otherwise."""
    process = number if process is None else process
    return Txn(number=number, process=process, invoked=at[0], completed=at[1], outcome=outcome, ops=ops)


def reads(**values: Value) -> tuple[Read, ...]:
    return tuple(Read(key, value) for key, value in values.items())


def w(key: str, value: int) -> Write:
    return Write(key, value)


def inc(key: str, result: int | None = None) -> Increment:
    return Increment(key, result)


def check_bank(history: History) -> list[Anomaly]:
    return bank.check(history, ["a", "b"], 10)


Case = tuple[list[Txn], list[str], list[Txn]]
BANK: dict[str, Case] = {
    "money is made": ([txn(1, *reads(a=5, b=6))], ["wrong-total"], [txn(1, *reads(a=5, b=5))]),
    "a transfer reads a torn state": (
        [txn(1, *reads(a=5, b=6), w("a", 4), w("b", 7))],
        ["wrong-total"],
        [txn(1, *reads(a=5), w("a", 4), *reads(b=5, a=4), w("b", 6))],
    ),
    "what it wrote itself does not count": (
        [txn(1, *reads(a=4, b=7), w("a", 4))],
        ["wrong-total"],
        [txn(1, w("a", 4), *reads(a=4, b=7))],
    ),
    "an account is overdrawn": ([txn(1, *reads(a=-1, b=11))], ["negative-balance"], [txn(1, *reads(a=0, b=10))]),
    "an account is missing": ([txn(1, *reads(a=None, b=10))], ["wrong-balance"], [txn(1, *reads(a=3))]),
    "only what was acknowledged counts": ([txn(1, *reads(a=1, b=1))], ["wrong-total"], [txn(1, *reads(a=1, b=1), outcome=FAIL)]),
}
FORKS: dict[str, Case] = {
    "two readers disagree": (
        [txn(1, w("x", 1)), txn(2, w("y", 1)), txn(3, *reads(x=1, y=None)), txn(4, *reads(x=None, y=1))],
        ["long-fork"],
        [txn(1, w("x", 1)), txn(2, w("y", 1)), txn(3, *reads(x=1, y=None)), txn(4, *reads(x=1, y=1)), txn(5, *reads(x=None, y=None))],
    ),
    "a refused write is read": (
        [txn(1, w("x", 1), outcome=FAIL), txn(2, *reads(x=1))],
        ["G1a"],
        [txn(1, w("x", 1), outcome=INFO), txn(2, *reads(x=1))],
    ),
    "something else is read": ([txn(1, w("x", 1)), txn(2, *reads(x=2))], ["garbage-read"], [txn(1, w("x", 2)), txn(2, *reads(x=2))]),
}
COUNTERS: dict[str, Case] = {
    "a process reads less than before": (
        [txn(1, inc("x")), txn(2, *reads(x=1), at=(1, 2), process=2), txn(3, *reads(x=0), at=(2, 3), process=2)],
        ["nonmonotonic-process"],
        [txn(1, inc("x")), txn(2, *reads(x=1), at=(1, 2), process=2), txn(3, *reads(x=0), at=(2, 3), process=3)],
    ),
    "a later read gives less": (
        [txn(1, inc("x")), txn(2, *reads(x=1), at=(1, 2)), txn(3, *reads(x=0), at=(3, 4))],
        ["nonmonotonic-realtime"],
        [txn(1, inc("x")), txn(2, *reads(x=1), at=(1, 3)), txn(3, *reads(x=0), at=(3, 4))],
    ),
    "an acknowledged increment is not there": (
        [txn(1, inc("x"), at=(1, 2)), txn(2, *reads(x=0), at=(3, 4))],
        ["lost-increment"],
        [txn(1, inc("x"), at=(1, 2), outcome=INFO), txn(2, *reads(x=0), at=(3, 4))],
    ),
    "an increment counts twice": (
        [txn(1, inc("x")), txn(2, *reads(x=2))],
        ["garbage-increment"],
        [txn(1, inc("x")), txn(3, inc("x"), outcome=INFO), txn(2, *reads(x=2))],
    ),
    "a refused increment counts": (
        [txn(1, inc("x"), outcome=FAIL), txn(2, *reads(x=1))],
        ["garbage-increment"],
        [txn(1, inc("x"), outcome=INFO), txn(2, *reads(x=1))],
    ),
    "an increment counts before it is asked for": (
        [txn(1, *reads(x=1), at=(1, 2)), txn(2, inc("x"), at=(3, 4))],
        ["garbage-increment"],
        [txn(1, *reads(x=1), at=(1, 3)), txn(2, inc("x"), at=(3, 4))],
    ),
    "a transaction reads its own increment before it": (
        [txn(1, *reads(x=1), inc("x"))],
        ["garbage-increment"],
        [txn(1, *reads(x=0), inc("x", 1), inc("x", 2), *reads(x=2))],
    ),
    "two increments have one result": (
        [txn(1, inc("x", 1)), txn(2, inc("x", 1))],
        ["lost-update"],
        [txn(1, inc("x", 1)), txn(2, inc("x", 2))],
    ),
    "two transactions increment what they read": (
        [txn(1, *reads(x=0), inc("x")), txn(2, *reads(x=0), inc("x"))],
        ["lost-update"],
        [txn(1, *reads(x=0), inc("x")), txn(2, *reads(x=1), inc("x"))],
    ),
    "two readers disagree on two counters": (
        [txn(1, inc("x")), txn(2, inc("y")), txn(3, *reads(x=1, y=0)), txn(4, *reads(x=0, y=1))],
        ["fork"],
        [txn(1, inc("x")), txn(2, inc("y")), txn(3, *reads(x=1, y=0)), txn(4, *reads(x=1, y=1)), txn(5, *reads(x=0, y=0))],
    ),
}
Check = Callable[[History], list[Anomaly]]
CASES = [
    pytest.param(check, case, id=f"{name}: {claim}")
    for name, check, cases in (("bank", check_bank, BANK), ("longfork", longfork.check, FORKS), ("monotonic", monotonic.check, COUNTERS))
    for claim, case in cases.items()
]


def names(found: list[Anomaly]) -> list[str]:
    return [anomaly.name for anomaly in found]


@pytest.mark.parametrize(("check", "case"), CASES)
def test_anomaly_is_found_and_its_near_miss_is_not(check: Check, case: Case) -> None:
    wrong, called, right = case
    assert names(check(History(wrong))) == called
    assert names(check(History(right))) == []


def test_options_say_what_a_workload_allows() -> None:
    overdrawn = History(BANK["an account is overdrawn"][0])
    assert bank.check(overdrawn, ["a", "b"], 10, may_be_negative=True) == []
    started = History([txn(1, *reads(x=5))])
    assert names(monotonic.check(started)) == ["garbage-increment"]
    assert monotonic.check(started, initial={"x": 5}) == []
    assert monotonic.check(History(COUNTERS["a later read gives less"][0]), realtime=False) == []


@pytest.mark.parametrize("check", [check_bank, longfork.check, monotonic.check])
def test_what_cannot_be_judged_is_refused(check: Check) -> None:
    with pytest.raises(BadHistoryError):
        check(History([txn(1, Insert(1))]))


def test_keys_of_long_forks_are_written_once() -> None:
    with pytest.raises(BadHistoryError):
        longfork.check(History([txn(1, w("x", 1)), txn(2, w("x", 2))]))


# ---- Chance ----


def transfers(accounts: str = "abcd") -> Execute:
    state: dict[Key, int] = dict.fromkeys(accounts, 10)

    def execute(chance: Random, number: int, takes_effect: bool) -> tuple[Op, ...]:
        if chance.random() < 0.4:
            return tuple(Read(key, state[key]) for key in accounts)
        source, target = chance.sample(accounts, 2)
        amount = chance.randint(0, state[source])
        moved = {source: state[source] - amount, target: state[target] + amount}
        ops: tuple[Op, ...] = (
            Read(source, state[source]),
            Read(target, state[target]),
            *(Write(key, value) for key, value in moved.items()),
        )
        if takes_effect:
            state.update(moved)
        return ops

    return execute


def single_writes() -> Execute:
    """Each odd transaction writes a key of its own; each even one reads four neighbours."""
    state: dict[Key, Value] = {}

    def execute(chance: Random, number: int, takes_effect: bool) -> tuple[Op, ...]:
        if number % 2:
            if takes_effect:
                state[number] = number
            return (Write(number, number),)
        return tuple(Read(key, state.get(key)) for key in range(max(number - 8, 1), number, 2))

    return execute


def increments() -> Execute:
    state: dict[Key, int] = dict.fromkeys("xyz", 0)

    def execute(chance: Random, number: int, takes_effect: bool) -> tuple[Op, ...]:
        keys = chance.sample("xyz", chance.randint(1, 3))
        if chance.random() < 0.5:
            return tuple(Read(key, state[key]) for key in keys)
        mine = {key: state[key] + 1 for key in keys}
        if takes_effect:
            state.update(mine)
        return tuple(Increment(key, chance.choice((None, value))) for key, value in mine.items())

    return execute


def check_four(history: History) -> list[Anomaly]:
    return bank.check(history, "abcd", 40)


@pytest.mark.parametrize(
    ("make", "check"),
    [(transfers, check_four), (single_writes, longfork.check), (increments, monotonic.check)],
    ids=lambda each: each.__name__,
)
def test_serial_executions_have_no_anomaly_and_changed_reads_are_found(make: Callable[[], Execute], check: Check) -> None:
    @given(st.integers(0, 2**32))
    def run(seed: int) -> None:
        chance = Random(seed)
        history = serial(chance, make(), Mix(chance.randint(10, 60), chance.randint(1, 8), chance.random() * 0.3, chance.random() * 0.3))
        assert check(history) == []
        readers = [each for each in history.with_outcome(Outcome.OK) if all(isinstance(op, Read) for op in each.ops) and len(each.ops) > 1]
        readers = [each for each in readers if make is not transfers or len(each.ops) == 4]
        if not readers:
            return
        # One read gives what was never there.
        chosen = chance.choice(readers)
        ops = (Read(chosen.ops[0].key, 1_000), *chosen.ops[1:])  # type: ignore[union-attr]
        wrong = [msgspec.structs.replace(each, ops=ops) if each is chosen else each for each in history.txns]
        assert check(History(wrong)) != []

    run()
