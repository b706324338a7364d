"""Each anomaly of lists in the smallest history that has it, and the nearest one that has not; random histories, and planted faults."""

import time
from collections import Counter
from collections.abc import Callable
from random import Random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.checkers import listappend
from tests.checkers.history import Append, BadHistoryError, History, Op, Outcome, ReadList, Txn, Write
from tests.checkers.replay import is_explained
from tests.checkers.serial import MOMENT, Execute, Mix, serial


def a(key: str, value: int) -> Append:
    return Append(key, value)


def r(key: str, *values: int) -> ReadList:
    return ReadList(key, values)


def txn(number: int, *ops: Op, at: tuple[int, int] = (1, 9), process: int | None = None, outcome: Outcome = Outcome.OK) -> Txn:
    """One transaction; all overlap unless `at` says otherwise."""
    invoked, completed = at
    process = number if process is None else process
    return Txn(number=number, process=process, invoked=invoked, completed=completed, outcome=outcome, ops=ops)


FAIL, INFO = Outcome.FAIL, Outcome.INFO
CASES: dict[str, tuple[list[Txn], list[str], list[Txn]]] = {
    # claim: (wrong, what it is called, right)
    "writes of two transactions are mixed": (
        [txn(1, a("x", 1), a("y", 1)), txn(2, a("x", 2), a("y", 2)), txn(3, r("x", 1, 2)), txn(4, r("y", 2, 1))],
        ["G0"],
        [txn(1, a("x", 1), a("y", 1)), txn(2, a("x", 2), a("y", 2)), txn(3, r("x", 1, 2)), txn(4, r("y", 1, 2))],
    ),
    "writes of a process take effect in another order": (
        [txn(1, a("x", 1), at=(1, 2), process=1), txn(2, a("x", 2), at=(2, 3), process=1), txn(3, r("x", 2, 1))],
        ["G0-process"],
        [txn(1, a("x", 1), at=(1, 2), process=1), txn(2, a("x", 2), at=(2, 3), process=1), txn(3, r("x", 1, 2))],
    ),
    "a later write takes effect earlier": (
        [txn(1, a("x", 1), at=(1, 2)), txn(2, a("x", 2), at=(3, 4)), txn(3, r("x", 2, 1))],
        ["G0-realtime"],
        [txn(1, a("x", 1), at=(1, 3)), txn(2, a("x", 2), at=(3, 4)), txn(3, r("x", 2, 1))],
    ),
    "an aborted read": (
        [txn(1, a("x", 1), outcome=FAIL), txn(2, r("x", 1))],
        ["G1a"],
        [txn(1, a("x", 1), outcome=INFO), txn(2, r("x", 1))],
    ),
    "a dirty update": (
        [txn(1, a("x", 1), outcome=FAIL), txn(2, a("x", 2)), txn(3, r("x", 1, 2))],
        ["G1a", "dirty-update"],
        [txn(1, a("x", 1), outcome=INFO), txn(2, a("x", 2)), txn(3, r("x", 1, 2))],
    ),
    "a read of what nobody appended": (
        [txn(1, a("x", 1)), txn(2, r("x", 1, 7))],
        ["garbage-read"],
        [txn(1, a("x", 1)), txn(2, r("x", 1)), txn(3, a("x", 7))],
    ),
    "an intermediate read": (
        [txn(1, a("x", 1), a("x", 2)), txn(2, r("x", 1)), txn(3, r("x", 1, 2))],
        ["G1b", "G-single"],
        [txn(1, a("x", 1), r("x", 1), a("x", 2)), txn(2, r("x")), txn(3, r("x", 1, 2))],
    ),
    "information flows in a circle": (
        [txn(1, a("x", 1), r("y", 1)), txn(2, a("y", 1), r("x", 1))],
        ["G1c"],
        [txn(1, a("x", 1), r("y", 1)), txn(2, a("y", 1), r("x"))],
    ),
    "a process sees what it does later": (
        [txn(1, r("x", 1), at=(1, 2), process=1), txn(2, a("x", 1), at=(2, 3), process=1)],
        ["G1c-process"],
        [txn(1, r("x"), at=(1, 2), process=1), txn(2, a("x", 1), at=(2, 3), process=1)],
    ),
    "a read from the future": (
        [txn(1, r("x", 1), at=(1, 2)), txn(2, a("x", 1), at=(3, 4))],
        ["G1c-realtime"],
        [txn(1, r("x", 1), at=(1, 3)), txn(2, a("x", 1), at=(3, 4))],
    ),
    "a torn read": (
        [txn(1, a("x", 1), a("y", 1)), txn(2, r("x", 1), r("y")), txn(3, r("y", 1))],
        ["G-single"],
        [txn(1, a("x", 1), a("y", 1)), txn(2, r("x"), r("y")), txn(3, r("y", 1))],
    ),
    "a torn read, of which only an unread append tells": (
        [txn(1, a("x", 1), a("y", 1)), txn(2, r("x", 1), r("y"))],
        ["G-single"],
        [txn(1, a("x", 1)), txn(2, r("x", 1), r("y")), txn(3, a("y", 1))],
    ),
    "a lost update": (
        [txn(1, r("x"), a("x", 1)), txn(2, r("x"), a("x", 2)), txn(3, r("x", 1, 2))],
        ["lost-update", "G-single"],
        [txn(1, r("x"), a("x", 1)), txn(2, r("x", 1), a("x", 2)), txn(3, r("x", 1, 2))],
    ),
    "a process does not see what it did": (
        [txn(1, a("x", 1), at=(1, 2), process=1), txn(2, r("x"), at=(2, 3), process=1), txn(3, r("x", 1))],
        ["G-single-process"],
        [txn(1, a("x", 1), at=(1, 2), process=1), txn(2, r("x"), at=(2, 3), process=2), txn(3, r("x", 1))],
    ),
    "a process does not see what it does not know": (
        [txn(1, a("x", 1), at=(1, 2), process=1), txn(2, r("x"), at=(3, 4), process=1), txn(3, r("x", 1), at=(5, 6))],
        ["G-single-process"],
        [txn(1, a("x", 1), at=(1, 2), process=1, outcome=INFO), txn(2, r("x"), at=(3, 4), process=1), txn(3, r("x", 1), at=(5, 6))],
    ),
    "a stale read": (
        [txn(1, a("x", 1), at=(1, 2)), txn(2, r("x"), at=(3, 4)), txn(3, r("x", 1), at=(5, 6))],
        ["G-single-realtime"],
        [txn(1, a("x", 1), at=(1, 3)), txn(2, r("x"), at=(3, 4)), txn(3, r("x", 1), at=(5, 6))],
    ),
    "write skew": (
        [txn(1, r("x"), a("y", 1)), txn(2, r("y"), a("x", 1)), txn(3, r("x", 1), r("y", 1))],
        ["G2-item"],
        [txn(1, r("x"), a("y", 1)), txn(2, r("y", 1), a("x", 1)), txn(3, r("x", 1), r("y", 1))],
    ),
    "two readers disagree on the order of two writers": (
        [txn(1, a("x", 1)), txn(2, a("y", 1)), txn(3, r("x", 1), r("y")), txn(4, r("y", 1), r("x"))],
        ["G2-item"],
        [txn(1, a("x", 1)), txn(2, a("y", 1)), txn(3, r("x", 1), r("y")), txn(4, r("y", 1), r("x", 1))],
    ),
    "two readers, one process, disagree": (
        [
            *(txn(1, a("x", 1)), txn(2, a("y", 1))),
            *(txn(3, r("x", 1), at=(1, 2), process=3), txn(4, r("y"), at=(2, 3), process=3)),
            *(txn(5, r("y", 1), at=(1, 2), process=4), txn(6, r("x"), at=(2, 3), process=4)),
        ],
        ["G2-item-process"],
        [
            *(txn(1, a("x", 1)), txn(2, a("y", 1))),
            *(txn(3, r("x", 1), at=(1, 2), process=3), txn(4, r("y"), at=(2, 3), process=3)),
            *(txn(5, r("y", 1), at=(1, 2), process=4), txn(6, r("x", 1), at=(2, 3), process=4)),
        ],
    ),
    "write skew, closed by real time": (
        [txn(1, a("y", 1), at=(1, 2)), txn(2, r("y"), a("x", 1), at=(1, 9)), txn(3, r("x"), at=(3, 4)), txn(4, r("x", 1), r("y", 1))],
        ["G2-item-realtime"],
        [txn(1, a("y", 1), at=(1, 3)), txn(2, r("y"), a("x", 1), at=(1, 9)), txn(3, r("x"), at=(3, 4)), txn(4, r("x", 1), r("y", 1))],
    ),
    "an append is applied twice": (
        [txn(1, a("x", 1)), txn(2, r("x", 1, 1))],
        ["duplicate-elements"],
        [txn(1, a("x", 1), a("x", 2)), txn(2, r("x", 1, 2))],
    ),
    "a list has two orders": (
        [txn(1, a("x", 1)), txn(2, a("x", 2)), txn(3, r("x", 1)), txn(4, r("x", 2, 1))],
        ["incompatible-order"],
        [txn(1, a("x", 1)), txn(2, a("x", 2)), txn(3, r("x", 2)), txn(4, r("x", 2, 1))],
    ),
    "an acknowledged append is lost": (
        [txn(1, a("x", 1), at=(1, 2)), txn(2, r("x"), at=(3, 4))],
        ["lost-write", "G-single-realtime"],
        [txn(1, a("x", 1), at=(1, 2), outcome=INFO), txn(2, r("x"), at=(3, 4))],
    ),
    "a transaction does not see its own append": (
        [txn(1, a("x", 1), r("x"))],
        ["internal"],
        [txn(1, a("x", 1), r("x", 1))],
    ),
    "a transaction sees its own append too early": (
        [txn(1, r("x", 1), a("x", 1))],
        ["internal"],
        [txn(1, r("x"), a("x", 1))],
    ),
    "a list changes within a transaction": (
        [txn(1, r("x"), r("x", 1)), txn(2, a("x", 1))],
        ["internal"],
        [txn(1, r("x"), r("x")), txn(2, a("x", 1))],
    ),
    "an unknown transaction that was seen has read what it should not": (
        [txn(1, r("x"), a("y", 1), outcome=INFO), txn(2, r("y"), a("x", 1)), txn(3, r("x", 1), r("y", 1))],
        ["G2-item"],
        [txn(1, r("x"), a("y", 1), outcome=INFO), txn(2, r("y"), a("x", 1)), txn(3, r("x", 1), r("y"))],
    ),
}


def names(history: History, **options: bool) -> list[str]:
    return [anomaly.name for anomaly in listappend.check(history, **options)]


@pytest.mark.parametrize("claim", CASES)
def test_anomaly_is_found_and_its_near_miss_is_not(claim: str) -> None:
    wrong, called, right = CASES[claim]
    assert names(History(wrong)) == called
    assert names(History(right)) == []


def test_cycle_is_explained_edge_by_edge() -> None:
    (anomaly,) = listappend.check(History(CASES["write skew"][0]))
    assert anomaly.txns == (1, 2)
    assert anomaly.explanation.splitlines()[1:] == [
        "  T1 (process 1, 1–9, ok): x is []; append 1 to y",
        "  T2 (process 2, 1–9, ok): y is []; append 1 to x",
        "  T1 < T2 (rw): read x as [], the other appended 1 behind that",
        "  T2 < T1 (rw): read y as [], the other appended 1 behind that",
    ]
    (anomaly,) = listappend.check(History(CASES["a stale read"][0]))
    assert "T1 < T2 (realtime): answered at 2, before the other was invoked at 3" in anomaly.explanation


def test_orders_of_clients_can_be_left_out() -> None:
    stale, own = History(CASES["a stale read"][0]), History(CASES["a process does not see what it did"][0])
    assert names(stale, realtime=False) == []
    assert names(own, realtime=False) == ["G-single-process"]
    assert names(own, realtime=False, process=False) == []


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(BadHistoryError, match="twice"):
        listappend.check(History([txn(1, a("x", 1)), txn(2, a("x", 1))]))
    with pytest.raises(BadHistoryError, match="not of a list"):
        listappend.check(History([txn(1, Write("x", 1))]))


# ---- Chance ----


def lists(keys: int = 3, rotate_after: int = 1_000_000) -> Execute:
    """Transactions of one to four appends and reads; after so many, other lists are used."""
    state: dict[int, tuple[int, ...]] = {}

    def execute(chance: Random, number: int, takes_effect: bool) -> tuple[Op, ...]:
        mine = dict[int, tuple[int, ...]]()
        ops: list[Op] = []
        for position in range(chance.randint(1, 4)):
            key = number // rotate_after * keys + chance.randrange(keys)
            values = mine.get(key, state.get(key, ()))
            if chance.random() < 0.5:
                ops.append(ReadList(key, values))
            else:
                mine[key] = (*values, number * 10 + position)
                ops.append(Append(key, number * 10 + position))
        if takes_effect:
            state.update(mine)
        return tuple(ops)

    return execute


def random_lists(seed: int, mix: Mix = Mix()) -> History:  # noqa: B008 (immutable)
    chance = Random(seed)
    state: dict[int, tuple[int, ...]] = {}
    execute = lists()

    def noted(chance: Random, number: int, takes_effect: bool) -> tuple[Op, ...]:
        ops = execute(chance, number, takes_effect)
        for op in ops if takes_effect else ():
            if isinstance(op, Append):
                state[op.key] = (*state.get(op.key, ()), op.value)  # type: ignore[index, arg-type]
        return ops

    return serial(chance, noted, mix, last=lambda: tuple(ReadList(key, state.get(key, ())) for key in range(3)))


@given(st.integers(0, 2**32))
def test_serial_executions_have_no_anomaly(seed: int) -> None:
    chance = Random(seed)
    mix = Mix(chance.randint(1, 60), chance.randint(1, 8), chance.random() * 0.3, chance.random() * 0.3)
    assert listappend.check(random_lists(seed, mix)) == []


def replaced(history: History, old: Txn, position: int, op: Op | None) -> History:
    """Change one micro-operation, or take it out."""
    ops = (*old.ops[:position], *(() if op is None else (op,)), *old.ops[position + 1 :])
    return History([msgspec.structs.replace(each, ops=ops) if each is old else each for each in history.txns])


def first_reads(history: History) -> list[tuple[Txn, int, ReadList]]:
    """Every acknowledged read of a list that its transaction has not touched before, and does not touch again."""
    found = []
    for each in history.with_outcome(Outcome.OK):
        for position, op in enumerate(each.ops):
            if isinstance(op, ReadList) and sum(other.key == op.key for other in each.ops) == 1:  # type: ignore[union-attr]
                found.append((each, position, op))
    return found


def swap_two_reads(history: History, chance: Random) -> History | None:
    """Exchange what two transactions, one after the other, read of a list."""
    reads = first_reads(history)
    pairs = [
        (one, other)
        for one in reads
        for other in reads
        if one[2].key == other[2].key and len(one[2].values) < len(other[2].values) and (one[0].completed or 0) < other[0].invoked
    ]
    if not pairs:
        return None
    (first, at_first, early), (second, at_second, late) = chance.choice(pairs)
    changed = replaced(history, first, at_first, late)
    return replaced(changed, second, at_second, early)


def drop_a_write(history: History, chance: Random) -> History | None:
    """Let nobody have read an acknowledged append."""
    seen = {(op.key, value) for *_, op in first_reads(history) for value in op.values}
    elements = [(op.key, op.value) for each in history.with_outcome(Outcome.OK) for op in each.ops if isinstance(op, Append)]
    candidates = [element for element in elements if element in seen]
    if not candidates:
        return None
    key, dropped = chance.choice(candidates)

    def without(op: Op) -> Op:
        if isinstance(op, ReadList) and op.key == key:
            return ReadList(key, tuple(value for value in op.values if value != dropped))
        return op

    return History([msgspec.structs.replace(each, ops=tuple(map(without, each.ops))) for each in history.txns])


def read_an_aborted_value(history: History, chance: Random) -> History | None:
    refused = [(op.key, op.value) for each in history.with_outcome(Outcome.FAIL) for op in each.ops if isinstance(op, Append)]
    reads = first_reads(history)
    candidates = [(each, position, op, value) for each, position, op in reads for key, value in refused if key == op.key]
    if not candidates:
        return None
    each, position, op, value = chance.choice(candidates)
    return replaced(history, each, position, ReadList(op.key, (*op.values, value)))


def read_stale(history: History, chance: Random) -> History | None:
    """Take from a read what was acknowledged before it began."""
    writers = {(op.key, op.value): each for each in history.with_outcome(Outcome.OK) for op in each.ops if isinstance(op, Append)}
    candidates = []
    for each, position, op in first_reads(history)[:-1]:
        writer = writers.get((op.key, op.values[-1])) if op.values else None
        if writer is not None and (writer.completed or 0) < each.invoked:
            candidates.append((each, position, ReadList(op.key, op.values[:-1])))
    return replaced(history, *chance.choice(candidates)) if candidates else None


@pytest.mark.parametrize("plant", [swap_two_reads, drop_a_write, read_an_aborted_value, read_stale], ids=lambda plant: plant.__name__)
def test_planted_fault_is_found(plant: Callable[[History, Random], History | None]) -> None:
    expected = {"read_an_aborted_value": {"G1a"}, "drop_a_write": {"lost-write", "internal"}}.get(plant.__name__, set())
    planted = 0

    @given(st.integers(0, 2**32))
    def run(seed: int) -> None:
        nonlocal planted
        wrong = plant(random_lists(seed, Mix(txns=40)), Random(seed))
        if wrong is not None:
            planted += 1
            found = set(names(wrong))
            assert found & expected if expected else found

    run()
    assert planted > 50


def disturbed(history: History, chance: Random) -> History:
    """Cut some reads short, exchange some, and move some transactions in time: what comes of it may be right or wrong."""
    txns = list(history.txns[:-1])
    for _ in range(chance.randint(0, 2)):
        place = chance.randrange(len(txns))
        old = txns[place]
        ops = list(old.ops)
        position = chance.randrange(len(ops))
        op = ops[position]
        if chance.random() < 0.4:
            invoked = chance.randint(0, len(txns) * MOMENT)
            moved = {"invoked": invoked, "completed": invoked + chance.randint(0, 3 * MOMENT), "process": 100 + old.number}
            txns[place] = msgspec.structs.replace(old, **moved)
        elif isinstance(op, ReadList):
            elsewhere = [other.values for each in txns for other in each.ops if isinstance(other, ReadList) and other.key == op.key]
            ops[position] = ReadList(op.key, chance.choice([op.values[:-1], *elsewhere]))
            txns[place] = msgspec.structs.replace(old, ops=tuple(ops))
    return History([*txns, history.txns[-1]])


@pytest.mark.parametrize(("process", "realtime"), [(True, True), (True, False), (False, False)])
def test_cycles_agree_with_every_order(process: bool, realtime: bool) -> None:
    verdicts: Counter[tuple[bool, bool]] = Counter()

    @given(st.integers(0, 2**32))
    def run(seed: int) -> None:
        chance = Random(seed)
        mix = Mix(chance.randint(2, 6), chance.randint(2, 4), 0.1, 0.2)
        history = disturbed(random_lists(seed, mix), chance)
        right = is_explained(history, process=process, realtime=realtime)
        found = names(history, process=process, realtime=realtime)
        assert right == (found == []), found
        # Without the last read, less is known: then only what is right must pass.
        blind = History(history.txns[:-1])
        if is_explained(blind, process=process, realtime=realtime):
            assert names(blind, process=process, realtime=realtime) == []
        verdicts[right, bool(found)] += 1

    run()
    assert all(verdicts[verdict] > 1 for verdict in ((True, False), (False, True))), verdicts


def test_twenty_thousand_transactions_are_judged_in_seconds() -> None:
    history = serial(Random(1), lists(keys=10, rotate_after=500), Mix(20_000, 20, 0.05, 0.02))
    assert sum(isinstance(op, ReadList) for each in history.txns for op in each.ops) > 20_000
    began = time.process_time()
    assert listappend.check(history) == []
    each, position, op = next(read for read in first_reads(history)[10_000:] if len(read[2].values) > 20)
    (anomaly,) = listappend.check(replaced(history, each, position, ReadList(op.key, op.values[:-20])))
    assert anomaly.name.startswith("G-single")
    assert time.process_time() - began < 10  # two checks; the figure on an idle core is 2 s
