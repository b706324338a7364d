"""Rows whose versions have known timestamps: for each anomaly the smallest history with it, and the nearest one without."""

import random

import msgspec
import pytest

from tests.checkers import versions
from tests.checkers.history import Append, BadHistoryError, History, Insert, Op, Outcome, Read, Txn, Write

FAIL, INFO = Outcome.FAIL, Outcome.INFO


def txn(number: int, ts: int | None, *ops: Op, at: tuple[int, int] = (1, 99), outcome: Outcome = Outcome.OK) -> Txn:
    return Txn(number=number, process=number, invoked=at[0], completed=at[1], outcome=outcome, ops=ops, ts=ts)


def r(key: int, value: int | None) -> Read:
    return Read(key, value)


INGEST = txn(1, 10, Insert(1, 100), Insert(2, 100))
UNKNOWN = txn(1, None, Insert(1, 100), Insert(2, 100), outcome=INFO)
Case = tuple[list[Txn], list[str], list[Txn]]
CASES: dict[str, Case] = {
    "half of an ingest": ([INGEST, txn(2, 20, r(1, 100), r(2, None))], ["torn"], [INGEST, txn(2, 20, r(1, 100), r(2, 100))]),
    "half of one that nobody knows of": (
        [msgspec.structs.replace(UNKNOWN, ts=10), txn(2, 20, r(1, None), r(2, 100))],
        ["torn"],
        [msgspec.structs.replace(UNKNOWN, ts=10), txn(2, 20, r(1, 100), r(2, 100))],
    ),
    "nothing of an acknowledged one": ([INGEST, txn(2, 20, r(1, None))], ["lost"], [INGEST, txn(2, 9, r(1, None))]),
    "what was overwritten": (
        [INGEST, txn(2, 15, Write(1, 7)), txn(3, 20, r(1, 100))],
        ["lost"],
        [INGEST, txn(2, 15, Write(1, 7)), txn(3, 14, r(1, 100))],
    ),
    "what was removed": (
        [INGEST, txn(2, 15, Write(1, None)), txn(3, 20, r(1, 100))],
        ["lost"],
        [INGEST, txn(2, 15, Write(1, None)), txn(3, 20, r(1, None), r(2, 100))],
    ),
    "what is committed later": ([INGEST, txn(2, 9, r(1, 100))], ["future"], [INGEST, txn(2, 11, r(1, 100))]),
    "what was refused": (
        [txn(1, None, Insert(1, 100), outcome=FAIL), txn(2, 20, r(1, 100))],
        ["G1a"],
        [txn(1, None, Insert(1, 100), outcome=FAIL), txn(2, 20, r(1, None))],
    ),
    "what came to nothing": ([UNKNOWN, txn(2, 20, r(1, 100))], ["G1a"], [UNKNOWN, txn(2, 20, r(1, None))]),
    "what nobody wrote": ([txn(2, 20, r(1, 5))], ["garbage-read"], [txn(1, 3, Write(1, 5)), txn(2, 20, r(1, 5))]),
    "a key twice": (
        [INGEST, txn(2, 15, Insert(2, 5))],
        ["duplicate-key"],
        [INGEST, txn(2, 12, Write(2, None)), txn(3, 15, Insert(2, 5))],
    ),
    "a key twice in one transaction": (
        [txn(1, 10, Insert(1, 100), Insert(1, 101))],
        ["duplicate-key"],
        [txn(1, 10, Insert(1, 100), Write(1, None), Insert(1, 101))],
    ),
    "not what it wrote itself": (
        [txn(1, 10, Insert(1, 100), r(1, None))],
        ["internal"],
        [txn(1, 10, r(1, None), Insert(1, 100), r(1, 100))],
    ),
    "two versions at a timestamp": ([INGEST, txn(2, 10, Write(1, 5))], ["two-versions"], [INGEST, txn(2, 11, Write(1, 5))]),
    "a write that did not see what it changes": (
        [INGEST, txn(2, 15, r(1, None), Write(1, 5))],
        ["lost"],
        [INGEST, txn(2, 15, r(1, 100), Write(1, 5))],
    ),
    "a read at its own timestamp": ([INGEST, txn(2, 10, r(1, 7))], ["garbage-read"], [INGEST, txn(2, 10, r(1, 100), r(2, None))]),
    "a later one with a lower timestamp": (
        [txn(1, 10, Write(1, 5), at=(1, 2)), txn(2, 9, r(1, None), at=(3, 4))],
        ["order"],
        [txn(1, 10, Write(1, 5), at=(1, 3)), txn(2, 9, r(1, None), at=(2, 4))],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_smallest_with_and_the_nearest_without(name: str) -> None:
    wrong, names, right = CASES[name]
    assert [each.name for each in versions.check(History(wrong))] == names
    assert versions.check(History(right)) == []


def test_reads_of_the_past_are_not_ordered_by_real_time() -> None:
    history = History([txn(1, 10, Write(1, 5), at=(1, 2)), txn(2, 9, r(1, None), at=(3, 4))])
    assert versions.check(history, past={2}) == []


def test_only_rows_can_be_judged() -> None:
    with pytest.raises(BadHistoryError):
        versions.check(History([txn(1, 10, Append(1, 2))]))


def serial(chance: random.Random) -> list[Txn]:
    """Give transactions that ran one after another."""
    state: dict[int, int | None] = {}
    txns = []
    for number in range(1, 60):
        keys = chance.sample(range(8), 3)
        ops: list[Op] = []
        for key in keys:
            match chance.choice(("read", "write", "ingest")):
                case "read":
                    ops.append(Read(key, state.get(key)))
                case "ingest" if state.get(key) is None:
                    ops.append(Insert(key, number * 10))
                    state[key] = number * 10
                case _:
                    value = chance.choice((None, number * 10))
                    ops.append(Write(key, value))
                    state[key] = value
        txns.append(txn(number, number * 2, *ops, at=(number * 2, number * 2 + chance.choice((1, 5)))))
    return txns


def test_serial_histories_are_right_and_any_other_value_in_a_read_is_found() -> None:
    for seed in range(20):
        chance = random.Random(seed)
        txns = serial(chance)
        assert versions.check(History(txns)) == []
        places = [(at, place) for at, each in enumerate(txns) for place, op in enumerate(each.ops) if isinstance(op, Read)]
        at, place = chance.choice(places)
        ops = list(txns[at].ops)
        op = ops[place]
        assert isinstance(op, Read)
        ops[place] = Read(op.key, chance.choice([value for value in (None, 10, 70, 20_000) if value != op.value]))
        txns[at] = msgspec.structs.replace(txns[at], ops=tuple(ops))
        assert len(versions.check(History(txns))) == 1
