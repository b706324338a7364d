"""Rows whose versions all have a known timestamp: does every transaction read exactly what was written below it, and is nothing half there?

Where commit timestamps are known, also of those that no client was told of, there is nothing to search: each row is a list of versions, and
a transaction at a timestamp reads of each row the newest one below.  So many rows that were written by one transaction are there together
or not at all, in whatever ranges and in whatever form they were laid.

    order           a transaction that began after another one ended has no higher timestamp
    two-versions    a row has two versions at one timestamp
    duplicate-key   a row was inserted that was there
    internal        a transaction does not read what it has written itself
    torn            a read has some of the rows that a transaction wrote, and lacks others
    lost            a read lacks a version below it; or has one that was overwritten
    future          a read has a version above it
    G1a             a read has what was refused, or came to nothing
    garbage-read    a read has what nobody wrote

Transactions are of `Read`, `Write` (of None: a removal) and `Insert`, whose group is the value: the key must be absent.  Values are unique;
so are keys, over all tables.  `ts` is where a transaction took effect: all that did have one, an unknown outcome without one came to
nothing.

Invariants:
- Sound and complete for these rows and timestamps: no anomaly is a proof of strict serializability.
- At an equal timestamp a version may be read or not.
- Reads of those that were refused count only within themselves.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import NamedTuple

from tests.checkers import timestamps
from tests.checkers.history import Anomaly, BadHistoryError, History, Insert, Key, Outcome, Read, Txn, Value, Write, anomaly, describe


class Version(NamedTuple):
    """What a transaction has left in a row."""

    ts: int
    value: Value
    txn: Txn


def check(history: History, past: Collection[int] = ()) -> list[Anomaly]:
    """Give the anomalies.  past: numbers of transactions that read the past, which real time does not order.

    Raises BadHistoryError for anything but reads and writes of rows.
    """
    rows = Rows(history)
    ordered = History([txn for txn in history.txns if txn.number not in past], history.about)
    found = [*timestamps.check_order(ordered), *rows.check_versions()]
    for txn in rows.effective:
        found += rows.check_txn(txn)
    return found


class Rows:
    """The versions of the rows of a history."""

    def __init__(self, history: History) -> None:
        self.effective = [txn for txn in history.txns if txn.ts is not None and txn.outcome is not Outcome.FAIL]
        self.versions: dict[Key, list[Version]] = defaultdict(list)
        self._writers: dict[Value, Txn] = {}
        """By value, also of those that came to nothing."""
        for txn in history.txns:
            for _, value in _writes(txn):
                self._writers[value] = txn
        for txn in self.effective:
            assert txn.ts is not None
            for key, value in dict(_writes(txn)).items():
                self.versions[key].append(Version(txn.ts, value, txn))
        for versions in self.versions.values():
            versions.sort(key=lambda version: version.ts)

    def below(self, key: Key, ts: int) -> Version | None:
        """Give the newest version below a timestamp."""
        versions = self.versions.get(key, [])
        place = bisect_left(versions, ts, key=lambda version: version.ts)
        return versions[place - 1] if place else None

    def check_versions(self) -> Iterator[Anomaly]:
        """Check that no row has two versions at a timestamp."""
        for key, versions in self.versions.items():
            for one, other in pairwise(versions):
                if one.ts == other.ts:
                    yield anomaly("two-versions", f"row {key!r} was written twice at {one.ts}", one.txn, other.txn)

    def check_txn(self, txn: Txn) -> Iterator[Anomaly]:
        """Check what a transaction that took effect has read and inserted."""
        own: dict[Key, Value] = {}
        wrong: list[tuple[Read, Version | None]] = []
        seen: set[int] = set()
        assert txn.ts is not None
        for op in txn.ops:
            match op:
                case Write(key, value):
                    own[key] = value
                case Insert(key, value):
                    before = self.below(key, txn.ts)
                    is_there = own[key] is not None if key in own else before is not None and before.value is not None
                    if is_there:
                        yield anomaly("duplicate-key", f"row {key!r} was inserted, and was there", txn, *([before.txn] if before else []))
                    own[key] = value
                case Read(key, value) if key in own:
                    if value != own[key]:
                        yield anomaly("internal", f"{describe(op)}, and not what it wrote itself", txn)
                case Read(key, value):
                    expected = self.below(key, txn.ts)
                    if value is not None and value in self._writers:
                        seen.add(self._writers[value].number)
                    if value not in self._possible(key, txn, expected):
                        wrong.append((op, expected))
        for op, expected in wrong[:1]:
            name, others = self._judge(txn, op, expected, seen)
            newest = "nothing" if expected is None else f"{expected.value!r} of {expected.ts}"
            yield anomaly(name, f"{describe(op)} at {txn.ts}, where the newest below is {newest}", txn, *others)

    def _possible(self, key: Key, txn: Txn, expected: Version | None) -> list[Value]:
        equal = [version.value for version in self.versions.get(key, []) if version.ts == txn.ts and version.txn is not txn]
        return [None if expected is None else expected.value, *equal]

    def _judge(self, txn: Txn, op: Read, expected: Version | None, seen: set[int]) -> tuple[str, list[Txn]]:
        """Name what is wrong with a read, and give the writers concerned."""
        others = [] if expected is None else [expected.txn]
        if expected is not None and expected.txn.number in seen:
            return "torn", others
        if op.value is None:
            return "lost", others
        writer = self._writers.get(op.value)
        if writer is None:
            return "garbage-read", others
        if writer.outcome is Outcome.FAIL or writer.ts is None:
            return "G1a", [writer, *others]
        assert txn.ts is not None
        return "future" if writer.ts > txn.ts else "lost", [writer, *others]


def _writes(txn: Txn) -> Iterator[tuple[Key, Value]]:
    for op in txn.ops:
        match op:
            case Write(key, value) | Insert(key, value):
                yield key, value
            case Read():
                pass
            case _:
                raise BadHistoryError(f"{describe(op)!r} is neither a read nor a write of rows, in {txn}")
