"""Registers that are only incremented: they never go back, for anybody, and have what was acknowledged.

The workload is Jepsen's `monotonic` and `counter`.  Values stand for versions, so an order of versions is there without inference: a read
is at least what was acknowledged before it began, at most what was asked for before it ended, and never less than an earlier one.

    nonmonotonic-process    a process reads less than it read before
    nonmonotonic-realtime   a read that began after another one ended gives less
    lost-increment          a read gives less than was acknowledged before it began
    garbage-increment       a read gives more than was asked for before it ended
    lost-update             two transactions incremented the same value, by what they read or by the results
    fork                    two transactions read two registers, each the newer state of another one

Invariants:
- Registers begin at zero, or at what `initial` says, and are incremented by one.
- Only reads, and results of increments, of acknowledged transactions are judged.
- What a transaction reads behind its own increment of the same register is left out.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import NamedTuple

from tests.checkers.history import Anomaly, BadHistoryError, History, Increment, Key, Outcome, Read, Txn, anomaly, describe


class Seen(NamedTuple):
    """The value of a register before a transaction that was acknowledged, which incremented it or not."""

    txn: Txn
    value: int
    is_update: bool

    @property
    def ended(self) -> int:
        """Give when it was answered."""
        return self.txn.completed or 0


def check(history: History, *, initial: Mapping[Key, int] | None = None, realtime: bool = True) -> list[Anomaly]:
    """Give the anomalies; without real time, only those of one process, forks and lost updates."""
    seen: dict[Key, list[Seen]] = defaultdict(list)
    increments: dict[Key, list[Txn]] = defaultdict(list)
    for txn in history.txns:
        _index(txn, seen, increments)
    found: list[Anomaly] = []
    for key in sorted(seen, key=str):
        found += _check_processes(key, seen[key])
        found += _check_updates(key, seen[key])
        if realtime:
            found += _check_real_time(key, seen[key])
            found += _check_bounds(key, seen[key], increments[key], (initial or {}).get(key, 0))
    return found + list(_forks(seen))


def _index(txn: Txn, seen: dict[Key, list[Seen]], increments: dict[Key, list[Txn]]) -> None:
    values: dict[Key, int] = {}
    incremented: set[Key] = set()
    for op in txn.ops:
        if isinstance(op, Increment):
            increments[op.key].append(txn)
            if op.key not in incremented and op.result is not None:
                values.setdefault(op.key, op.result - 1)
            incremented.add(op.key)
        elif isinstance(op, Read) and isinstance(op.value, int):
            if op.key not in incremented:
                values.setdefault(op.key, op.value)
        else:
            raise BadHistoryError(f"{describe(op)!r} is neither an increment nor a read of a number, in {txn}")
    if txn.outcome is Outcome.OK:
        for key, value in values.items():
            seen[key].append(Seen(txn, value, key in incremented))


def _check_processes(key: Key, seen: list[Seen]) -> Iterator[Anomaly]:
    highest: dict[int, Seen] = {}
    for one in seen:
        before = highest.get(one.txn.process)
        if before is None or one.value >= before.value:
            highest[one.txn.process] = one
        else:
            yield anomaly("nonmonotonic-process", f"{key} went back from {before.value} to {one.value}", before.txn, one.txn)


def _check_real_time(key: Key, seen: list[Seen]) -> Iterator[Anomaly]:
    by_end = sorted(seen, key=lambda one: one.ended)
    highest: Seen | None = None
    position = 0
    for one in seen:  # by invocation
        while position < len(by_end) and by_end[position].ended < one.txn.invoked:
            if highest is None or by_end[position].value > highest.value:
                highest = by_end[position]
            position += 1
        if highest is not None and one.value < highest.value:
            yield anomaly("nonmonotonic-realtime", f"{key} was {highest.value}, and afterwards {one.value}", highest.txn, one.txn)


def _check_bounds(key: Key, seen: list[Seen], increments: list[Txn], initial: int) -> Iterator[Anomaly]:
    acknowledged = sorted(ended for txn in increments if (ended := txn.ended()) is not None)
    asked = sorted(txn.invoked for txn in increments if txn.outcome is not Outcome.FAIL)
    for one in seen:
        least = initial + bisect_left(acknowledged, one.txn.invoked)
        # Its own increments are invoked with it, and are not in what it saw; it may have several.
        own = sum(op.key == key for op in one.txn.ops if isinstance(op, Increment))
        most = initial + bisect_left(asked, one.ended + 1) - own
        if one.value < least:
            yield anomaly("lost-increment", f"{key} was {one.value}, when {least} had been acknowledged", one.txn)
        if one.value > most:
            yield anomaly("garbage-increment", f"{key} was {one.value}, when {most} had been asked for", one.txn)


def _check_updates(key: Key, seen: list[Seen]) -> Iterator[Anomaly]:
    first: dict[int, Seen] = {}
    for one in seen:
        if one.is_update and first.setdefault(one.value, one) is not one:
            yield anomaly("lost-update", f"each incremented {key} where it was {one.value}", first[one.value].txn, one.txn)


def _forks(seen: dict[Key, list[Seen]]) -> Iterator[Anomaly]:
    """Give a fork of each pair of registers that has one."""
    pairs: dict[tuple[Key, Key], list[tuple[int, int, Txn]]] = defaultdict(list)
    values: dict[Txn, dict[Key, int]] = defaultdict(dict)
    for key, all_seen in seen.items():
        for one in all_seen:
            values[one.txn][key] = one.value
    for txn, read in values.items():
        for one_key, other_key in combinations(sorted(read, key=str), 2):
            pairs[one_key, other_key].append((read[one_key], read[other_key], txn))
    for (one_key, other_key), read_pairs in pairs.items():
        highest: tuple[int, Txn] | None = None  # of the second register, among those whose first is lower
        for _, other, txn in sorted(read_pairs, key=lambda pair: pair[:2]):
            if highest is not None and other < highest[0]:
                yield anomaly("fork", f"one has the newer {one_key}, the other the newer {other_key}", txn, highest[1])
                break
            if highest is None or other > highest[0]:
                highest = (other, txn)
