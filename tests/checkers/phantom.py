"""Rows that are inserted, and read by span, by group or by key: does an order explain who saw which?

Each row is inserted once and never removed, so it has two versions, absent and there, and every read that covers it says which of them it
saw.  This gives the dependencies (`cycles`): a read that has a row comes after its insert (wr), one that lacks it comes before (rw, of a
predicate where the read was by span or group).  Adya's predicate-based anti-dependencies ("Weak Consistency", MIT 1999) are thus seen
directly, where lists and registers can only show those of items.

    phantom         two reads of one transaction differ in a row that both cover, and that it did not insert
    internal        a transaction does not see its own insert, or sees it before it
    duplicate-row   a read gives a row twice
    outside-span    a scan gives a row that it did not ask for
    G1a             a row whose insert was refused
    garbage-read    a row that nobody inserted
    G1c … G2        see `cycles`; also -process and -realtime.  A torn scan (some of one transaction's rows) is G-single, a scan that
                    lacks a row that was acknowledged before is G-single-realtime

Invariants:
- Sound and, as all versions are known, complete for these rows: no anomaly is a proof of strict serializability.
- Reads of transactions of unknown outcome count as in `listappend`.

Speed: edges that real time has already are left out while nothing is wrong, so that a scan costs about the rows it read.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator

from tests.checkers.cycles import Dependencies, Kind
from tests.checkers.history import (
    Anomaly,
    BadHistoryError,
    History,
    Insert,
    Key,
    Outcome,
    Read,
    Scan,
    Select,
    Txn,
    anomaly,
    describe,
    took_effect,
)

RowRead = Scan | Select | Read


def check(history: History, *, process: bool = True, realtime: bool = True) -> list[Anomaly]:
    """Give the anomalies.  Raises BadHistoryError if a row is inserted twice, or something else than rows is used."""
    rows = Rows(history)
    found = rows.internal()
    quick = rows.dependencies(omits_known=realtime)
    tangled = quick.tangled(process=process, realtime=realtime)
    if tangled:
        found += rows.dependencies(among=tangled).anomalies(process=process, realtime=realtime)
    return found


class Rows:
    """The rows of a history, and who inserted them."""

    def __init__(self, history: History) -> None:
        self.inserts: dict[Key, Insert] = {}
        self.writers: dict[Key, Txn] = {}
        for txn in history.txns:
            for op in txn.ops:
                if isinstance(op, Insert):
                    self._add(op, txn)
                elif not isinstance(op, RowRead):
                    raise BadHistoryError(f"{describe(op)!r} is not of rows, in {txn}")
        self.committed = took_effect(history, self.writers, _keys)
        self._place = {txn.number: place for place, txn in enumerate(self.committed)}
        self._sorted = sorted(self.inserts, key=lambda key: (isinstance(key, str), key))
        self._ordered = [(isinstance(key, str), key) for key in self._sorted]
        self._groups: dict[Key, list[Key]] = defaultdict(list)
        for key in self._sorted:
            group = self.inserts[key].group
            if group is not None:
                self._groups[group].append(key)

    def _add(self, insert: Insert, txn: Txn) -> None:
        """Take an insert; those that were refused may be tried again with the same key."""
        before = self.writers.get(insert.key)
        if before is not None and before.outcome is not Outcome.FAIL:
            if txn.outcome is Outcome.FAIL:
                return
            raise BadHistoryError(f"row {insert.key!r} is inserted twice, by {before} and {txn}")
        self.inserts[insert.key], self.writers[insert.key] = insert, txn

    def covered(self, op: RowRead) -> Collection[Key]:
        """Give the rows that a read would have given, had they been there."""
        match op:
            case Scan():
                first = 0 if op.start is None else bisect_left(self._ordered, (isinstance(op.start, str), op.start))
                end = len(self._ordered) if op.end is None else bisect_left(self._ordered, (isinstance(op.end, str), op.end))
                return self._sorted[first:end]
            case Select():
                return self._groups.get(op.group, ())
            case Read():
                return (op.key,) if op.key in self.inserts else ()

    # ---- Within transactions ----

    def internal(self) -> list[Anomaly]:
        """Check each acknowledged transaction's reads against themselves, and what they gave against what was asked for."""
        return [each for txn in self.committed for each in self._check_txn(txn)]

    def _check_txn(self, txn: Txn) -> Iterator[Anomaly]:
        own: set[Key] = set()
        everything_own = {op.key for op in txn.ops if isinstance(op, Insert)}
        reads: list[tuple[set[Key], set[Key]]] = []  # covered and given, without its own
        for op in txn.ops:
            if isinstance(op, Insert):
                own.add(op.key)
                continue
            assert isinstance(op, RowRead)
            keys = _given(op)
            given, covered = set(keys), set(self.covered(op))
            yield from self._check_rows(txn, op, keys, given - covered)
            wrong = sorted((covered & own) - given, key=str) + sorted(given & (everything_own - own), key=str)
            if wrong:
                yield anomaly("internal", f"{describe(op)}, which is wrong in its own rows {wrong}", txn)
            covered, given = covered - everything_own, (given & covered) - everything_own
            for covered_before, given_before in reads:
                changed = sorted((given ^ given_before) & covered & covered_before, key=str)
                if changed:
                    yield anomaly("phantom", f"rows {changed} came or went between two reads", txn)
                    break
            reads.append((covered, given))

    def _check_rows(self, txn: Txn, op: RowRead, keys: tuple[Key, ...], strange: set[Key]) -> Iterator[Anomaly]:
        if len(set(keys)) != len(keys):
            yield anomaly("duplicate-row", f"{describe(op)} has a row twice", txn)
        for key in sorted(strange, key=str):
            if key in self.inserts:
                yield anomaly("outside-span", f"{describe(op)}, with row {key!r}, which it did not ask for", txn)
            else:
                yield anomaly("garbage-read", f"{describe(op)}, with row {key!r}, which nobody inserted", txn)
        for key in keys:
            if key in self.writers and self.writers[key].outcome is Outcome.FAIL:
                yield anomaly("G1a", f"row {key!r} was read, whose insert was refused", txn, self.writers[key])

    # ---- Between transactions ----

    def dependencies(self, *, omits_known: bool = False, among: Collection[int] | None = None) -> Dependencies:
        """Give the edges; those that real time has already may be left out, and all others than of some transactions."""
        edges = Dependencies(self.committed)
        chosen = range(len(self.committed)) if among is None else sorted(among)
        inside = None if among is None else set(among)
        for reader in chosen:
            txn = self.committed[reader]
            until = txn.ended() if omits_known else None
            for op in txn.ops:
                if isinstance(op, RowRead):
                    given = set(_given(op))
                    for key in self.covered(op):
                        writer = self._place.get(self.writers[key].number)
                        if writer is None or (inside is not None and writer not in inside):
                            continue
                        other = self.committed[writer]
                        if key in given:
                            ended = other.ended()
                            if not omits_known or ended is None or ended >= txn.invoked:
                                edges.add(Kind.WR, writer, reader, "inserted row {0!r}, which the other read", key)
                        elif until is None or other.invoked <= until:
                            kind = Kind.RW if isinstance(op, Read) else Kind.PREDICATE_RW
                            edges.add(kind, reader, writer, "did not find row {0!r}, which the other inserted", key)
        return edges


def _given(op: RowRead) -> tuple[Key, ...]:
    if isinstance(op, Read):
        return () if op.value is None else (op.key,)
    return op.keys


def _keys(txn: Txn) -> Iterator[Key]:
    return (key for op in txn.ops if isinstance(op, RowRead) for key in _given(op))
