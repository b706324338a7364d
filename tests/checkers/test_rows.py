"""Rows: phantoms, write skew by predicate, and sets; by hand, at random, and against every possible order."""

from collections import Counter
from collections.abc import Callable
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checkers import phantom, predicate, sets
from tests.checkers.history import Anomaly, BadHistoryError, History, Insert, Op, Outcome, Read, Scan, Select, Txn, Write
from tests.checkers.replay import is_explained
from tests.checkers.serial import MOMENT, Execute, Mix, serial

FAIL, INFO = Outcome.FAIL, Outcome.INFO
STRIDE = 1_000_000


def txn(number: int, *ops: Op, at: tuple[int, int] = (1, 9), process: int | None = None, outcome: Outcome = Outcome.OK) -> Txn:
    """One transaction; all overlap unless `at` says otherwise."""
    process = number if process is None else process
    return Txn(number=number, process=process, invoked=at[0], completed=at[1], outcome=outcome, ops=ops)


def i(key: int, group: str | None = None) -> Insert:
    return Insert(key, group)


def scan(*keys: int, start: int | None = None, end: int | None = None) -> Scan:
    return Scan(keys, start, end)


def of(group: str, *keys: int) -> Select:
    return Select(group, keys)


Case = tuple[list[Txn], list[str], list[Txn]]
PHANTOMS: dict[str, Case] = {
    # claim: (wrong, what it is called, right)
    "a row appears between two scans of a transaction": (
        [txn(1, scan(), scan(5)), txn(2, i(5))],
        ["phantom", "G-single"],
        [txn(1, scan(end=5), scan(5)), txn(2, i(5))],
    ),
    "a scan has some of a transaction's rows": (
        [txn(1, i(1), i(2)), txn(2, scan(1))],
        ["G-single"],
        [txn(1, i(1), i(2)), txn(2, scan(1, end=2))],
    ),
    "a scan lacks what was acknowledged": (
        [txn(1, i(1), at=(1, 2)), txn(2, scan(), at=(3, 4))],
        ["G-single-realtime"],
        [txn(1, i(1), at=(1, 3)), txn(2, scan(), at=(3, 4))],
    ),
    "a process does not find its own row": (
        [txn(1, i(1), at=(1, 2), process=1), txn(2, scan(), at=(2, 3), process=1)],
        ["G-single-process"],
        [txn(1, i(1), at=(1, 2), process=1), txn(2, scan(), at=(2, 3), process=2)],
    ),
    "a scan finds a row before it is inserted": (
        [txn(1, scan(1), at=(1, 2)), txn(2, i(1), at=(3, 4))],
        ["G1c-realtime"],
        [txn(1, scan(1), at=(1, 3)), txn(2, i(1), at=(3, 4))],
    ),
    "two transactions see each other's rows": (
        [txn(1, i(1), scan(1, 2)), txn(2, i(2), scan(1, 2))],
        ["G1c"],
        [txn(1, i(1), scan(1)), txn(2, i(2), scan(1, 2))],
    ),
    "two transactions insert where each found nothing": (
        [txn(1, scan(end=9), i(1)), txn(2, scan(end=9), i(2))],
        ["G2"],
        [txn(1, scan(end=9), i(1)), txn(2, scan(end=9), i(10))],
    ),
    "the same by key": (
        [txn(1, Read(2, None), i(1)), txn(2, Read(1, None), i(2))],
        ["G2-item"],
        [txn(1, Read(2, None), i(1)), txn(2, Read(1, 1), i(2))],
    ),
    "two scans disagree on the order of two inserts": (
        [txn(1, i(1)), txn(2, i(2)), txn(3, scan(1)), txn(4, scan(2))],
        ["G2"],
        [txn(1, i(1)), txn(2, i(2)), txn(3, scan(1)), txn(4, scan(1, 2))],
    ),
    "a row of a refused insert": ([txn(1, i(1), outcome=FAIL), txn(2, scan(1))], ["G1a"], [txn(1, i(1), outcome=INFO), txn(2, scan(1))]),
    "a row that nobody inserted": ([txn(1, scan(7))], ["garbage-read"], [txn(1, scan(7)), txn(2, i(7))]),
    "a row twice": ([txn(1, i(1)), txn(2, scan(1, 1))], ["duplicate-row"], [txn(1, i(1)), txn(2, scan(1), scan(1))]),
    "a row outside the span": (
        [txn(1, i(1)), txn(2, scan(1, start=2))],
        ["outside-span"],
        [txn(1, i(1)), txn(2, scan(1, start=1))],
    ),
    "a row of another group": (
        [txn(1, i(1, "a")), txn(2, of("b", 1))],
        ["outside-span"],
        [txn(1, i(1, "a")), txn(2, of("a", 1))],
    ),
    "a transaction does not see its own row": ([txn(1, i(1), scan())], ["internal"], [txn(1, i(1), scan(1))]),
    "a transaction sees its own row too early": ([txn(1, scan(1), i(1))], ["internal"], [txn(1, scan(), i(1))]),
}
PREDICATES: dict[str, Case] = {
    "both insert into what both found empty": (
        [txn(1, of("a"), i(1, "a")), txn(2, of("a"), i(2, "a"))],
        ["G2"],
        [txn(1, of("a"), i(1, "a")), txn(2, of("a"), i(2, "a"), outcome=INFO)],
    ),
    "each inserts into what the other found empty": (
        [txn(1, of("a"), i(1, "b")), txn(2, of("b"), i(2, "a"))],
        ["G2"],
        [txn(1, of("a"), i(1, "b")), txn(2, of("b", 1), i(2, "a"))],
    ),
    "one inserts although it found a row": (
        [txn(1, i(1, "a")), txn(2, of("a", 1), i(2, "a"))],
        ["not-guarded"],
        [txn(1, i(1, "a")), txn(2, of("a", 1), of("b"), i(2, "b"))],
    ),
}
SETS: dict[str, Case] = {
    "an acknowledged row is lost": (
        [txn(1, i(1), at=(1, 2)), txn(2, scan(), at=(3, 4))],
        ["lost"],
        [txn(1, i(1), at=(1, 3)), txn(2, scan(), at=(3, 4))],
    ),
    "a row that was seen is lost": (
        [txn(1, i(1), outcome=INFO), txn(2, scan(1), at=(2, 3)), txn(3, Read(1, None), at=(4, 5))],
        ["lost"],
        [txn(1, i(1), outcome=INFO), txn(2, Read(1, None), at=(2, 3)), txn(3, scan(1), at=(4, 5))],
    ),
    "a read is behind": (
        [txn(1, i(1), at=(1, 2)), txn(2, scan(), at=(3, 4)), txn(3, scan(1), at=(5, 6))],
        ["stale"],
        [txn(1, i(1), at=(1, 2)), txn(2, scan(start=2), at=(3, 4)), txn(3, scan(1), at=(5, 6))],
    ),
    "a refused row is there": (
        [txn(1, i(1), outcome=FAIL), txn(2, scan(1))],
        ["G1a"],
        [txn(1, i(1), outcome=FAIL), txn(3, i(1)), txn(2, scan(1))],
    ),
    "a row is there that nobody asked for yet": (
        [txn(1, scan(1), at=(1, 2)), txn(2, i(1), at=(3, 4))],
        ["garbage-read"],
        [txn(1, scan(1), at=(1, 3)), txn(2, i(1), at=(3, 4))],
    ),
    "a row is there twice": ([txn(1, i(1)), txn(2, scan(1, 1))], ["duplicate-row"], [txn(1, i(1)), txn(2, scan(1))]),
}
Check = Callable[[History], list[Anomaly]]
CASES = [
    pytest.param(check, case, id=f"{name}: {claim}")
    for name, check, cases in (("phantom", phantom.check, PHANTOMS), ("predicate", predicate.check, PREDICATES), ("sets", sets.check, SETS))
    for claim, case in cases.items()
]


def names(found: list[Anomaly]) -> list[str]:
    return [anomaly.name for anomaly in found]


@pytest.mark.parametrize(("check", "case"), CASES)
def test_anomaly_is_found_and_its_near_miss_is_not(check: Check, case: Case) -> None:
    wrong, called, right = case
    assert names(check(History(wrong))) == called
    assert names(check(History(right))) == []


def test_cycles_of_rows_are_explained() -> None:
    (anomaly,) = phantom.check(History(PHANTOMS["two transactions insert where each found nothing"][0]))
    assert anomaly.explanation.splitlines()[3:] == [
        "  T1 < T2 (rw, predicate): did not find row 2, which the other inserted",
        "  T2 < T1 (rw, predicate): did not find row 1, which the other inserted",
    ]


def test_what_cannot_be_judged_is_refused() -> None:
    for check in (phantom.check, predicate.check, sets.check):
        with pytest.raises(BadHistoryError):
            check(History([txn(1, Write("x", 1))]))
    with pytest.raises(BadHistoryError, match="twice"):
        phantom.check(History([txn(1, i(1)), txn(2, i(1))]))


# ---- Chance ----


def rows(span: int) -> Execute:
    """Transactions that insert, scan and read rows of two groups."""
    state: dict[int, str] = {}

    def execute(chance: Random, number: int, takes_effect: bool) -> tuple[Op, ...]:
        mine: dict[int, str] = {}
        ops: list[Op] = []
        for position in range(chance.randint(1, 3)):
            there = sorted({**state, **mine})
            if chance.random() < 0.5:
                key, group = chance.randrange(span) * STRIDE + number * 10 + position, chance.choice("ab")
                mine[key] = group
                ops.append(Insert(key, group))
                continue
            kind, group = chance.choice(("scan", "select", "read")), chance.choice("ab")
            start, end = sorted(chance.randrange(span * STRIDE) for _ in range(2))
            found = {**state, **mine}
            if kind == "scan":
                ops.append(Scan(tuple(key for key in there if start <= key < end), start, end))
            elif kind == "select":
                ops.append(Select(group, tuple(key for key in there if found[key] == group)))
            elif there:
                ops.append(Read(chance.choice(there), 1))
        if takes_effect:
            state.update(mine)
        return tuple(ops)

    return execute


def random_rows(seed: int, mix: Mix) -> History:
    return serial(Random(seed), rows(span=5), mix)


def only_sets(history: History) -> History:
    """Take the groups out."""
    return History(
        msgspec.structs.replace(each, ops=tuple(op for op in each.ops if isinstance(op, Insert | Scan | Read))) for each in history.txns
    )


def only_groups(history: History) -> History:
    return History(
        msgspec.structs.replace(each, ops=tuple(op for op in each.ops if isinstance(op, Insert | Select))) for each in history.txns
    )


@given(st.integers(0, 2**32))
def test_serial_executions_have_no_anomaly(seed: int) -> None:
    chance = Random(seed)
    history = random_rows(seed, Mix(chance.randint(1, 60), chance.randint(1, 8), chance.random() * 0.3, chance.random() * 0.3))
    assert phantom.check(history) == []
    assert sets.check(only_sets(history)) == []
    assert predicate.check(only_groups(history), is_guarded=False) == []


def disturbed(history: History, chance: Random) -> History:
    """Let some reads lose a row, and move some transactions in time: what comes of it may be right or wrong."""
    txns = list(history.txns)
    for _ in range(chance.randint(0, 4)):
        place = chance.randrange(len(txns))
        old = txns[place]
        ops = list(old.ops)
        position = chance.randrange(len(ops)) if ops else 0
        if not ops or chance.random() < 0.5:
            invoked = chance.randint(0, len(txns) * MOMENT)
            moved = {"invoked": invoked, "completed": invoked + chance.randint(0, 3 * MOMENT), "process": 100 + old.number}
            txns[place] = msgspec.structs.replace(old, **moved)
            continue
        op = ops[position]
        if isinstance(op, Scan | Select) and op.keys:
            lost = chance.choice(op.keys)
            ops[position] = msgspec.structs.replace(op, keys=tuple(key for key in op.keys if key != lost))
        elif isinstance(op, Read):
            ops[position] = Read(op.key, None)
        txns[place] = msgspec.structs.replace(old, ops=tuple(ops))
    return History(txns)


@pytest.mark.parametrize("realtime", [True, False])
def test_cycles_of_rows_agree_with_every_order(realtime: bool) -> None:
    verdicts: Counter[tuple[bool, bool]] = Counter()

    @given(st.integers(0, 2**32))
    def run(seed: int) -> None:
        chance = Random(seed)
        history = disturbed(random_rows(seed, Mix(chance.randint(2, 7), chance.randint(2, 4), 0.1, 0.2)), chance)
        right = is_explained(history, realtime=realtime)
        found = phantom.check(history, realtime=realtime)
        assert right == (found == []), found
        if right:
            assert predicate.check(only_groups(history), is_guarded=False) == []
            assert not realtime or sets.check(only_sets(history)) == []
        verdicts[right, bool(found)] += 1

    run()
    assert all(verdicts[verdict] > 5 for verdict in ((True, False), (False, True))), verdicts


@given(st.integers(0, 2**32))
def test_lost_rows_are_found(seed: int) -> None:
    """An acknowledged row that a last scan lacks, or has though it was refused."""
    chance = Random(seed)
    history = only_sets(random_rows(seed, Mix(40, 5, 0.2, 0.2)))
    there = {op.key for each in history.with_outcome(Outcome.OK) for op in each.ops if isinstance(op, Insert)}
    refused = {op.key for each in history.with_outcome(FAIL) for op in each.ops if isinstance(op, Insert)}
    # What is unknown and was seen is there too; what was not seen, may as well not.
    there |= {key for each in history.with_outcome(Outcome.OK) for op in each.ops if isinstance(op, Scan) for key in op.keys}
    there |= {op.key for each in history.with_outcome(Outcome.OK) for op in each.ops if isinstance(op, Read)}

    def ending(*keys: int | str) -> History:
        return History([*history.txns, txn(1000, Scan(tuple(keys)), at=(50 * MOMENT, 51 * MOMENT))])

    assert sets.check(ending(*there)) == []
    if there:
        lost = chance.choice(sorted(there, key=str))
        assert names(sets.check(ending(*there - {lost}))) == ["lost"]
        assert phantom.check(ending(*there - {lost})) != []
    if refused:
        assert names(sets.check(ending(*there, min(refused, key=str)))) == ["G1a"]
