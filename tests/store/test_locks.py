"""The lock table: against a plain model, and under random transactions, which must all end."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsdb.kv.ids import AttemptId
from dsdb.kv.locks import LockWait
from dsdb.storage.timestamp import Timestamp
from dsdb.store.locks import Ask, AskState, LockTable

KEYS = [b"%d" % number for number in range(6)]
SILENCE_S = 5.0


def attempt(number: int) -> AttemptId:
    return AttemptId(b"%016d" % number)


def table(locks_max: int = 1000) -> LockTable:
    return LockTable(silence_max_s=SILENCE_S, locks_max=locks_max)


def ask(
    locks: LockTable,
    number: int,
    *keys: bytes,
    wait: LockWait = LockWait.WAIT,
    start: int | None = None,
    holds: bool = False,
    now: float = 0,
) -> Ask:
    began = Timestamp(number if start is None else start)
    return locks.ask(attempt(number), began, keys, wait, holds_locks=holds, now=now)


def holders(locks: LockTable) -> dict[bytes, int]:
    return {entry.key: int(entry.attempt) for entry in locks.entries()}


def test_a_key_goes_from_one_to_the_next_in_the_order_in_which_transactions_began() -> None:
    locks = table()
    first, third, second = ask(locks, 1, b"a"), ask(locks, 3, b"a"), ask(locks, 2, b"a")
    assert first.state is AskState.GRANTED
    assert (second.state, third.state, locks.waiting) == (AskState.WAITING, AskState.WAITING, 2)
    heard: list[int] = []
    second.on_settled, third.on_settled = (lambda: heard.append(2)), (lambda: heard.append(3))
    assert locks.entries()[0].waiters == 2
    locks.release(attempt(1), 0)
    assert heard == [2]
    locks.release(attempt(2), 0)
    assert heard == [2, 3]
    assert third.locked == [True]
    locks.release(attempt(3), 0)
    assert (len(locks), locks.waiting) == (0, 0)


def test_nowait_is_refused_with_the_key_and_keeps_nothing() -> None:
    locks = table()
    ask(locks, 1, b"b")
    refused = ask(locks, 2, b"a", b"b", wait=LockWait.NOWAIT)
    assert (refused.state, refused.refused) == (AskState.REFUSED, b"b")
    assert holders(locks) == {b"b": 1}


def test_skip_leaves_out_what_others_hold() -> None:
    locks = table()
    ask(locks, 1, b"b")
    skipped = ask(locks, 2, b"a", b"b", b"c", wait=LockWait.SKIP)
    assert (skipped.state, skipped.locked) == (AskState.GRANTED, [True, False, True])
    assert holders(locks) == {b"a": 2, b"b": 1, b"c": 2}


def test_only_a_waiter_that_holds_locks_wounds_and_only_the_younger() -> None:
    locks = table()
    ask(locks, 5, b"a")
    assert ask(locks, 3, b"a").state is AskState.WAITING, "it holds nothing, so nobody can be waiting for it"
    assert ask(locks, 7, b"a", holds=True).state is AskState.WAITING, "it is the younger"
    assert locks.wounds == 0
    older = ask(locks, 4, b"a", holds=True)
    assert (locks.wounds, holders(locks)) == (1, {b"a": 3}), "the first in the queue is older still"
    locks.release(attempt(3), 0)
    assert older.state is AskState.GRANTED


def test_two_transactions_that_want_each_others_keys_do_not_stop_each_other() -> None:
    locks = table()
    ask(locks, 1, b"a")
    ask(locks, 2, b"b")
    younger = ask(locks, 2, b"a")
    assert younger.state is AskState.WAITING
    assert ask(locks, 1, b"b").state is AskState.GRANTED
    locks.release(attempt(1), 0)
    assert younger.state is AskState.GRANTED


def test_a_silent_holder_loses_its_locks_to_the_first_in_the_queue() -> None:
    locks = table()
    ask(locks, 1, b"a", b"b")
    waiting, later = ask(locks, 2, b"a", now=1), ask(locks, 3, b"a", now=1)
    locks.expire(SILENCE_S - 0.1)
    assert waiting.state is AskState.WAITING
    locks.touch(attempt(1), SILENCE_S - 0.1)
    locks.expire(SILENCE_S)
    assert waiting.state is AskState.WAITING, "it was heard of meanwhile"
    locks.expire(2 * SILENCE_S)
    assert (waiting.state, later.state, locks.abandoned) == (AskState.GRANTED, AskState.WAITING, 1)
    # Of the other key it is found out by whoever comes.
    assert ask(locks, 4, b"b", wait=LockWait.NOWAIT, now=2 * SILENCE_S).state is AskState.GRANTED


def test_a_newcomer_does_not_pass_the_queue_of_a_silent_holder() -> None:
    locks = table()
    ask(locks, 1, b"a")
    waiting = ask(locks, 2, b"a", now=1)
    assert ask(locks, 3, b"a", wait=LockWait.NOWAIT, now=9).state is AskState.REFUSED
    assert waiting.state is AskState.GRANTED


def test_what_a_silent_holder_has_is_forgotten_when_others_lock_other_keys() -> None:
    locks = table()
    ask(locks, 1, b"a", b"b")
    ask(locks, 2, b"c", now=SILENCE_S - 1)
    ask(locks, 3, b"d", now=SILENCE_S)
    assert holders(locks) == {b"c": 2, b"d": 3}


def test_too_many_locks_drop_the_oldest_ones() -> None:
    locks = table(locks_max=2)
    ask(locks, 1, b"a", b"b")
    waiting = ask(locks, 2, b"a")
    ask(locks, 3, b"c")
    assert len(locks) == 2
    assert waiting.state is AskState.GRANTED


def test_nothing_is_left_when_the_lease_ends() -> None:
    locks = table()
    ask(locks, 1, b"a")
    waiting = ask(locks, 2, b"a")
    locks.clear()
    assert (waiting.state, len(locks), locks.waiting) == (AskState.DROPPED, 0, 0)
    locks.withdraw(waiting, 0)
    assert ask(locks, 3, b"a").state is AskState.GRANTED


def test_a_split_takes_the_right_side_away() -> None:
    locks = table()
    ask(locks, 1, b"a", b"c")
    left, right, both = ask(locks, 2, b"a"), ask(locks, 3, b"c"), ask(locks, 4, b"a", b"c")
    locks.clip(b"b", 0)
    assert [one.state for one in (left, right, both)] == [AskState.WAITING, AskState.DROPPED, AskState.DROPPED]
    assert holders(locks) == {b"a": 1}


def test_a_withdrawn_ask_gives_back_what_it_took_on_the_way() -> None:
    locks = table()
    ask(locks, 1, b"b")
    ask(locks, 2, b"a0")
    waiting = ask(locks, 2, b"a", b"b", holds=True)
    locks.withdraw(waiting, 0)
    assert holders(locks) == {b"a0": 2, b"b": 1}
    assert locks.waiting == 0


class Txn:
    """A transaction that locks keys in some order, one ask after the other, and then ends."""

    def __init__(self, number: int, asks: list[list[bytes]]) -> None:
        self.number = number
        self.asks = asks
        self.done = 0
        self.waiting: Ask | None = None

    def step(self, locks: LockTable) -> bool:
        """Do something; False if it waits."""
        if self.waiting is not None:
            if self.waiting.state is AskState.WAITING:
                return False
            assert self.waiting.state is AskState.GRANTED
            self.waiting = None
        if self.done == len(self.asks):
            locks.release(attempt(self.number), 0)
            return True
        self.waiting = ask(locks, self.number, *self.asks[self.done])
        self.done += 1
        return True


programs = st.lists(
    st.lists(st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True).map(sorted), min_size=1, max_size=4), max_size=9
)


@settings(max_examples=400, deadline=None)
@given(programs, st.integers(0, 2**32))
def test_random_transactions_all_end_whatever_their_order(asks: list[list[list[bytes]]], seed: int) -> None:
    locks, chance = table(), random.Random(seed)
    running = [Txn(number, one) for number, one in enumerate(asks, 1)]
    ended: set[int] = set()
    while running:
        chance.shuffle(running)
        moved = False
        for txn in running:
            is_last = txn.done == len(txn.asks)
            if txn.step(locks):
                moved = True
                if is_last and txn.waiting is None:
                    ended.add(txn.number)
                break
        assert moved, f"deadlock of {[txn.number for txn in running]}"
        running = [txn for txn in running if txn.number not in ended]
        check(locks, running)
    assert (len(locks), locks.waiting) == (0, 0)


def check(locks: LockTable, running: list[Txn]) -> None:
    """Nobody who waits is passed by a younger one, except by a holder that was there before; ends hold nothing."""
    held = holders(locks)
    assert set(held.values()) <= {txn.number for txn in running}
    waiting = [txn for txn in running if txn.waiting is not None and txn.waiting.state is AskState.WAITING]
    assert locks.waiting == len(waiting)
    for txn in waiting:
        assert txn.waiting is not None
        key = txn.waiting.keys[txn.waiting.at]
        assert key in held, "somebody waits for a free key"
        assert held[key] != txn.number
        if txn.waiting.holds_locks:
            assert held[key] < txn.number, "a transaction with locks waits for a younger one"


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_the_table_does_what_a_plain_model_does(data: st.DataObject) -> None:
    """One key an ask: then a holder and a sorted list are the whole truth."""
    locks = table()
    held: dict[bytes, int] = {}
    queues: dict[bytes, list[int]] = {key: [] for key in KEYS}
    asks: dict[int, Ask] = {}
    number = 0
    for _ in range(data.draw(st.integers(1, 30))):
        if data.draw(st.booleans()) or not asks:
            number += 1
            key, wait = data.draw(st.sampled_from(KEYS[:2])), data.draw(st.sampled_from(list(LockWait)))
            # Started earlier than it comes, as one that is run again.
            rank = data.draw(st.integers(0, 5)) * 1000 + number
            is_free = key not in held
            made = locks.ask(AttemptId(b"%016d" % rank), Timestamp(rank), [key], wait, holds_locks=False, now=0)
            if is_free:
                held[key] = rank
            elif wait is LockWait.WAIT:
                queues[key] = sorted([*queues[key], rank])
            expected = AskState.GRANTED if is_free or wait is LockWait.SKIP else AskState.WAITING
            assert made.state is (AskState.REFUSED if expected is AskState.WAITING and wait is LockWait.NOWAIT else expected)
            asks[rank] = made
        else:
            rank = data.draw(st.sampled_from(sorted(asks)))
            del asks[rank]
            locks.release(AttemptId(b"%016d" % rank), 0)
            for key in KEYS:
                queues[key] = [other for other in queues[key] if other != rank]
                if held.get(key) == rank:
                    del held[key]
                    if queues[key]:
                        held[key] = queues[key].pop(0)
        assert holders(locks) == held
        assert locks.waiting == sum(map(len, queues.values()))


def test_nobody_starves_among_ever_new_transactions() -> None:
    locks = table()
    ask(locks, 100, b"a")
    old = ask(locks, 1, b"a")
    for number in range(101, 120):
        ask(locks, number, b"a")
        locks.release(attempt(number - 1), 0)
        if old.state is AskState.GRANTED:
            break
    assert number == 101, "the oldest is next, however many come"


@pytest.mark.parametrize("wait", list(LockWait))
def test_asking_again_for_ones_own_key_gives_it_at_once(wait: LockWait) -> None:
    locks = table()
    ask(locks, 1, b"a")
    ask(locks, 2, b"a")
    again = ask(locks, 1, b"a", wait=wait)
    assert (again.state, again.locked, again.taken) == (AskState.GRANTED, [True], [])
