"""A set that only grows: what was acknowledged is there from then on, and nothing else.

The workload is Jepsen's `set-full`: rows are inserted one by one, and read by their keys or by scans, also while inserts go on; a scan of
everything ends the run.  A row is known from the moment at which its insert was acknowledged or somebody who read it was answered.

    lost            a row that was known, missing in a read begun afterwards, and never seen again
    stale           the same, but a later read has it: the reader was behind
    G1a             a row whose insert was refused
    garbage-read    a row that nobody inserted
    duplicate-row   a read gives a row twice

Invariants:
- Sound for every system that is linearizable row by row; nothing is said of several rows at once, which `phantom` judges.
- A row of unknown outcome may be there or not, until somebody has seen it.
- A key is inserted again only where its insert was refused, or is unknown: such a row is there once, whoever inserted it.
- A row that no read covers after its acknowledgement is not judged: hence the scan at the end.
"""

from collections.abc import Iterator
from typing import NamedTuple

from tests.checkers.history import Anomaly, BadHistoryError, History, Insert, Key, Outcome, Read, Scan, Txn, anomaly, describe


class RowRead(NamedTuple):
    """A read of an acknowledged transaction; what this one inserts itself is not judged."""

    txn: Txn
    op: Scan | Read
    own: frozenset[Key]

    @property
    def keys(self) -> tuple[Key, ...]:
        """Give the rows that it found."""
        if isinstance(self.op, Scan):
            return self.op.keys
        return () if self.op.value is None else (self.op.key,)

    @property
    def ended(self) -> int:
        """Give when it was answered."""
        return self.txn.completed or 0


def check(history: History) -> list[Anomaly]:
    """Give the anomalies; one at most of each row and name.  Raises BadHistoryError for anything but inserts and reads of rows."""
    inserts: dict[Key, list[Txn]] = {}
    reads: list[RowRead] = []
    for txn in history.txns:
        for op in txn.ops:
            if isinstance(op, Insert):
                inserts.setdefault(op.key, []).append(txn)
            elif not isinstance(op, Scan | Read):
                raise BadHistoryError(f"{describe(op)!r} is neither an insert nor a read of rows, in {txn}")
            elif txn.outcome is Outcome.OK:
                reads.append(RowRead(txn, op, frozenset(other.key for other in txn.ops if isinstance(other, Insert))))
    return [*_check_seen(inserts, reads), *_check_missing(inserts, reads)]


def _check_seen(inserts: dict[Key, list[Txn]], reads: list[RowRead]) -> Iterator[Anomaly]:
    """Check that what was read may be there."""
    reported: set[Key] = set()
    for read in reads:
        if len(set(read.keys)) != len(read.keys):
            yield anomaly("duplicate-row", f"{describe(read.op)} has a row twice", read.txn)
        for key in read.keys:
            if key in reported or key in read.own:
                continue
            asked = [txn for txn in inserts.get(key, ()) if txn.invoked <= read.ended]
            if not asked:
                reported.add(key)
                yield anomaly("garbage-read", f"row {key!r} was read, which nobody had inserted", read.txn)
            elif all(txn.outcome is Outcome.FAIL for txn in asked):
                reported.add(key)
                yield anomaly("G1a", f"row {key!r} was read, whose insert was refused", read.txn, asked[0])


def _check_missing(inserts: dict[Key, list[Txn]], reads: list[RowRead]) -> Iterator[Anomaly]:
    """Check that what was known is there."""
    known: dict[Key, int] = {}  # row -> from when on
    last_seen: dict[Key, int] = {}  # row -> when the last read that has it was invoked
    for key, txns in inserts.items():
        ends = [ended for txn in txns if (ended := txn.ended()) is not None]
        if ends:
            known[key] = min(ends)
    for read in reads:
        for key in read.keys:
            known[key] = min(known.get(key, read.ended), read.ended)
            last_seen[key] = max(last_seen.get(key, 0), read.txn.invoked)
    reported: set[tuple[str, Key]] = set()
    for read in reads:
        given = set(read.keys)
        candidates = known.items() if isinstance(read.op, Scan) else [(read.op.key, known.get(read.op.key, read.ended))]
        for key, since in candidates:
            if since < read.txn.invoked and key not in given and key not in read.own and _covers(read.op, key):
                name = "stale" if last_seen.get(key, 0) > read.ended else "lost"
                if (name, key) not in reported:
                    reported.add((name, key))
                    yield anomaly(name, f"row {key!r} was known at {since}, and missing in a read that began afterwards", read.txn)


def _covers(op: Scan | Read, key: Key) -> bool:
    return op.covers(key) if isinstance(op, Scan) else op.key == key
