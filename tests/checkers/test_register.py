"""Registers: histories by hand, and the search against every possible order."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checkers import register
from tests.checkers.history import BadHistoryError, Cas, History, Op, Outcome, Read, Txn, Write
from tests.checkers.replay import is_explained
from tests.checkers.serial import Execute, Mix, serial


def call(number: int, invoked: int, completed: int, op: Op, outcome: Outcome = Outcome.OK) -> Txn:
    return Txn(number=number, process=number, invoked=invoked, completed=completed, outcome=outcome, ops=(op,))


def w(value: int) -> Write:
    return Write("x", value)


def r(value: int | None) -> Read:
    return Read("x", value)


INFO, FAIL = Outcome.INFO, Outcome.FAIL
CASES: dict[str, tuple[list[Txn], list[Txn]]] = {
    # claim: (not linearizable, linearizable)
    "a stale read": (
        [call(1, 1, 2, w(1)), call(2, 3, 4, r(None))],
        [call(1, 1, 3, w(1)), call(2, 3, 4, r(None))],
    ),
    "a value that nobody wrote": ([call(1, 1, 2, w(1)), call(2, 3, 4, r(2))], [call(1, 1, 2, w(1)), call(2, 3, 4, r(1))]),
    "a refused write": ([call(1, 1, 2, w(1), FAIL), call(2, 3, 4, r(1))], [call(1, 1, 2, w(1), INFO), call(2, 3, 4, r(1))]),
    "an unknown write that comes and goes": (
        [call(1, 1, 2, w(1), INFO), call(2, 3, 4, r(1)), call(3, 5, 6, r(None))],
        [call(1, 1, 2, w(1), INFO), call(2, 3, 4, r(None)), call(3, 5, 6, r(1))],
    ),
    "an unknown write before it was asked for": (
        [call(2, 3, 4, r(1)), call(1, 5, 6, w(1), INFO)],
        [call(2, 3, 5, r(1)), call(1, 5, 6, w(1), INFO)],
    ),
    "two readers see two writes in two orders": (
        [call(1, 1, 9, w(1)), call(2, 1, 9, w(2)), call(3, 1, 2, r(1)), call(4, 3, 4, r(2)), call(5, 5, 6, r(1))],
        [call(1, 1, 9, w(1)), call(2, 1, 9, w(2)), call(3, 1, 2, r(1)), call(4, 3, 5, r(2)), call(5, 5, 6, r(1)), call(6, 7, 8, r(2))],
    ),
    "two compare-and-set of one value": (
        [call(1, 1, 2, w(1)), call(2, 3, 9, Cas("x", 1, 2)), call(3, 3, 9, Cas("x", 1, 3))],
        [call(1, 1, 2, w(1)), call(2, 3, 9, Cas("x", 1, 2)), call(3, 3, 9, Cas("x", 2, 3))],
    ),
}


@pytest.mark.parametrize("claim", CASES)
def test_anomaly_is_found_and_its_near_miss_is_not(claim: str) -> None:
    wrong, right = CASES[claim]
    assert [anomaly.name for anomaly in register.check(History(wrong))] == ["nonlinearizable"]
    assert register.check(History(right)) == []


def test_explanation_shows_what_could_have_been() -> None:
    (anomaly,) = register.check(History([call(1, 1, 2, w(1)), call(2, 1, 9, w(2)), call(3, 3, 4, r(3))]))
    assert anomaly.explanation.splitlines() == [
        "x: no order explains T3 (process 3, 3–4, ok): x is 3",
        "  the value was 1, unless what is under way has taken effect",
        "  under way: T2 (process 2, 1–9, ok): x := 2",
    ]
    assert anomaly.txns == (3, 2)


def test_keys_are_judged_apart() -> None:
    history = History([call(1, 1, 2, w(1)), call(2, 3, 4, Read("y", None)), call(3, 5, 6, Read("y", 7))])
    assert [anomaly.txns for anomaly in register.check(history)] == [(3,)]


def test_what_cannot_be_judged_is_refused() -> None:
    both = Txn(number=1, process=1, invoked=1, completed=2, outcome=Outcome.OK, ops=(w(1), r(1)))
    with pytest.raises(BadHistoryError):
        register.check(History([both]))


def test_too_many_orders_are_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(register, "CONFIGURATIONS_MAX", 1000)
    writes = [call(number, 1, 99, w(number)) for number in range(1, 15)]
    with pytest.raises(register.UndecidedError):
        register.check(History([*writes, call(15, 2, 3, r(99))]))


@st.composite
def small_histories(draw: st.DrawFn) -> History:
    """Histories that may be right or wrong: few values, times that overlap much."""
    txns = []
    for number in range(1, draw(st.integers(1, 7)) + 1):
        invoked = draw(st.integers(1, 12))
        value = st.integers(1, 3)
        op: Op = draw(st.one_of(st.builds(Write, st.just("x"), value), st.builds(Read, st.just("x"), value | st.none())))
        if draw(st.integers(0, 4)) == 0:
            op = Cas("x", draw(value | st.none()), draw(value))
        txns.append(call(number, invoked, invoked + draw(st.integers(0, 6)), op, draw(st.sampled_from((Outcome.OK, *Outcome)))))
    return History(txns)


@given(small_histories())
def test_search_agrees_with_every_order(history: History) -> None:
    assert (register.check(history) == []) == is_explained(history)


def registers() -> Execute:
    state: dict[str, int | None] = {}

    def execute(chance: Random, number: int, takes_effect: bool) -> tuple[Op, ...]:
        key = chance.choice("xyz")
        old = state.get(key)
        kind = chance.choice(("read", "read", "write", "cas"))
        if kind == "read":
            return (Read(key, old),)
        if takes_effect:
            state[key] = number
        return (Write(key, number) if kind == "write" else Cas(key, old, number),)

    return execute


@given(st.integers(0, 2**32))
def test_serial_executions_are_linearizable_and_planted_values_are_not(seed: int) -> None:
    history = serial(Random(seed), registers(), Mix(80, 6, 0.1, 0.1))
    assert register.check(history) == []
    reads = [txn for txn in history.with_outcome(Outcome.OK) if isinstance(txn.ops[0], Read) and txn.ops[0].value is not None]
    if not reads:
        return
    chosen = Random(seed).choice(reads)
    wrong = [txn for txn in history.txns if txn is not chosen]
    wrong.append(call(chosen.number, 100_000, 100_001, Read(chosen.ops[0].key, -1)))  # type: ignore[union-attr]
    assert len(register.check(History(wrong))) == 1


def test_long_histories_with_unknown_outcomes_are_judged() -> None:
    history = serial(Random(1), registers(), Mix(5_000, 8, 0.05, 0.05))
    assert register.check(history) == []
