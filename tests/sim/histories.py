"""Strict serializability of transactions that append to lists, decided exactly, as every transaction has a timestamp.

Each transaction reads some lists and appends its own number to some.  A list's last state gives the order of its appends, so:

- the timestamps of a list's appends ascend, and no number is there twice;
- a transaction at `ts` read, of each list, exactly what was appended below `ts`;
- what was acknowledged is there, what was refused is not; what is unknown may be, and then it counts;
- a transaction that began after another one ended has the higher timestamp.
"""

from collections import Counter
from dataclasses import dataclass, field

Lists = dict[int, tuple[int, ...]]


class Violation(AssertionError):
    """Something that must hold did not."""


@dataclass
class Txn:
    """One transaction, as its client saw it.  began, ended: places in the order of all such events; ts None: the outcome is unknown."""

    number: int
    began: int
    reads: Lists = field(default_factory=dict)
    appends: tuple[int, ...] = ()
    ended: int | None = None
    ts: int | None = None
    has_failed: bool = False


class History:
    """What all clients did."""

    def __init__(self) -> None:
        self.txns: dict[int, Txn] = {}
        self._clock = 0

    def begin(self) -> Txn:
        self._clock += 1
        number = len(self.txns) + 1
        txn = self.txns[number] = Txn(number, self._clock)
        return txn

    def end(self, txn: Txn, ts: int) -> None:
        self._clock += 1
        txn.ended, txn.ts = self._clock, ts

    def check(self, last: Lists) -> None:
        """Raise Violation unless a strictly serial order explains everything; `last` are the lists at the end."""
        self._check_order()
        for key, numbers in sorted(last.items()):
            self._check_list(key, numbers)
        for txn in self.txns.values():
            for key, seen in txn.reads.items():
                self._check_read(txn, key, seen, last[key])

    def _check_order(self) -> None:
        done = [txn for txn in self.txns.values() if txn.ts is not None]
        by_end = sorted(done, key=lambda txn: txn.ended or 0)
        highest: Txn | None = None
        position = 0
        for txn in sorted(done, key=lambda txn: txn.began):
            while position < len(by_end) and (by_end[position].ended or 0) < txn.began:
                if highest is None or (by_end[position].ts or 0) > (highest.ts or 0):
                    highest = by_end[position]
                position += 1
            if highest is not None and (txn.ts or 0) <= (highest.ts or 0):
                raise Violation(f"{txn} began after {highest} ended, and is not above it")

    def _check_list(self, key: int, numbers: tuple[int, ...]) -> None:
        doubled = [number for number, count in Counter(numbers).items() if count > 1]
        if doubled:
            raise Violation(f"list {key} has {doubled} more than once: {numbers}")
        for number in numbers:
            if self.txns[number].has_failed:
                raise Violation(f"{self.txns[number]} was said to have failed, and is in list {key}")
        known = [ts for number in numbers if (ts := self.txns[number].ts) is not None]
        if known != sorted(known):
            raise Violation(f"list {key} is not in the order of its timestamps: {numbers}")
        there = set(numbers)
        for txn in self.txns.values():
            if txn.ts is not None and key in txn.appends and txn.number not in there:
                raise Violation(f"{txn} was acknowledged, and is not in list {key}")

    def _check_read(self, txn: Txn, key: int, seen: tuple[int, ...], last: tuple[int, ...]) -> None:
        if last[: len(seen)] != seen:
            raise Violation(f"{txn} read {seen} of list {key}, which became {last}")
        if txn.ts is None:
            return
        for position, number in enumerate(last):
            ts = self.txns[number].ts
            if ts is not None and number != txn.number and (ts < txn.ts) != (position < len(seen)):
                there = "read" if position < len(seen) else "did not read"
                raise Violation(f"{txn} {there} what {self.txns[number]} appended to list {key}")
