"""Transactions that append unique values to lists and read them: does an order explain what they saw?

The method is Elle's (Kingsbury and Alvaro, "Elle: Inferring Isolation Anomalies from Experimental Observations", VLDB 2020).  A list keeps
its whole history, so the longest read of it gives the order of its versions, each with its writer, and every other read its place in that
order.  This gives the dependencies (`cycles`); an append that nobody has read comes after the longest version.

    internal            a transaction does not see its own appends, or sees them too early, or a list changes between two of its reads
    duplicate-elements  a value is there twice
    incompatible-order  two reads of a list, neither a prefix of the other
    G1a                 aborted read: a value whose append was refused
    garbage-read        a value that nobody appended
    G1b                 intermediate read: another's append to a list without that one's next append to it
    dirty-update        an append that took effect behind a refused one
    lost-update         two transactions appended to the same version of a list that both had read
    lost-write          an acknowledged append that the last read of the list, begun afterwards, does not have, nor any other read (with
                        real time only)
    G0 … G2-item        see `cycles`; also -process and -realtime

Invariants:
- Sound: a history that a strictly serializable system can produce has no anomaly.  Not complete: of versions that nobody read, nothing is
  known, so a workload reads what it writes, and reads all lists at its end.
- Reads of refused transactions say nothing, as nobody was told to rely on them.
- A transaction of unknown outcome counts as committed once somebody has read its append; its reads then count too.  A recorder leaves out
  reads of which it is not sure that they are of the attempt that was committed.

Speed: linear in the elements that were read; 20,000 transactions take about a second.
"""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise

from tests.checkers.cycles import Dependencies, Kind
from tests.checkers.history import (
    Anomaly,
    Append,
    BadHistoryError,
    History,
    Key,
    Outcome,
    ReadList,
    Txn,
    Value,
    anomaly,
    describe,
    took_effect,
)

Values = tuple[Value, ...]
Element = tuple[Key, Value]


def check(history: History, *, process: bool = True, realtime: bool = True) -> list[Anomaly]:
    """Give the anomalies.  Raises BadHistoryError if values are not unique, or something else than lists is used."""
    return _Check(history).run(process=process, realtime=realtime)


class _Check:
    """One check; places are those of `committed`."""

    def __init__(self, history: History) -> None:
        self.found: list[Anomaly] = []
        self.writers: dict[Element, Txn] = {}
        self.successors: dict[Element, Value] = {}  # the next value that the same transaction appended to the same list
        self.appended: dict[Key, list[Value]] = defaultdict(list)
        for txn in history.txns:
            self._index(txn)
        self.committed = took_effect(history, self.writers, _elements)
        self.place = {txn.number: place for place, txn in enumerate(self.committed)}
        self.reads: dict[Key, dict[Values, list[int]]] = defaultdict(dict)  # by list and version: who read it, without his own appends
        self.updates: dict[Key, dict[Values, list[int]]] = defaultdict(dict)  # those of them who then appended to it
        self.last_read: dict[Key, int] = {}  # when the last acknowledged read of the list was invoked
        self.dependencies = Dependencies(self.committed)

    def run(self, *, process: bool, realtime: bool) -> list[Anomaly]:
        """Go through transactions, then lists, then cycles."""
        for place, txn in enumerate(self.committed):
            self._replay(place, txn)
        for key in sorted(self.reads, key=str):
            order = max(self.reads[key], key=len)
            self._check_versions(key, order)
            self._check_updates(key)
            if realtime:
                self._check_lost(key)
            self._depend(key, tuple(dict.fromkeys(order)))
        return [*self.found, *self.dependencies.anomalies(process=process, realtime=realtime)]

    def _note(self, name: str, explanation: str, *txns: Txn) -> None:
        self.found.append(anomaly(name, explanation, *txns))

    def _reader(self, key: Key, version: Values) -> Txn:
        return self.committed[self.reads[key][version][0]]

    # ---- Transactions ----

    def _index(self, txn: Txn) -> None:
        last: dict[Key, Value] = {}
        for op in txn.ops:
            if isinstance(op, Append):
                element = (op.key, op.value)
                if element in self.writers:
                    raise BadHistoryError(f"{op.value!r} is appended to {op.key} twice, by {self.writers[element]} and {txn}")
                self.writers[element] = txn
                self.appended[op.key].append(op.value)
                if op.key in last:
                    self.successors[op.key, last[op.key]] = op.value
                last[op.key] = op.value
            elif not isinstance(op, ReadList):
                raise BadHistoryError(f"{describe(op)!r} is not of a list, in {txn}")

    def _replay(self, place: int, txn: Txn) -> None:
        """Check a transaction against itself, and note what it saw of others."""
        own: dict[Key, Values] = {}  # what it appended
        seen: dict[Key, Values] = {}  # what it read of others
        updated: set[Key] = set()
        elements = [(op.key, op.value) for op in txn.ops if isinstance(op, Append)]
        for op in txn.ops:
            if isinstance(op, Append):
                own[op.key] = (*own.get(op.key, ()), op.value)
                if op.key in seen and op.key not in updated:
                    updated.add(op.key)
                    self.updates[op.key].setdefault(seen[op.key], []).append(place)
            elif isinstance(op, ReadList):
                key, mine = op.key, own.get(op.key, ())
                others = op.values[: max(len(op.values) - len(mine), 0)]
                if op.values[len(others) :] != mine or seen.get(key, others) != others:
                    expected = str([*seen[key], *mine]) if key in seen else f"something that ends in {list(mine)}"
                    self._note("internal", f"{describe(op)}, where its own earlier reads and appends make it {expected}", txn)
                elif any(key == one and value in others for one, value in elements):
                    self._note("internal", f"{describe(op)}, with what it appends itself only later", txn)
                elif key not in seen:
                    seen[key] = others
                    self.reads[key].setdefault(others, []).append(place)
                    if txn.outcome is Outcome.OK:
                        self.last_read[key] = max(self.last_read.get(key, txn.invoked), txn.invoked)

    # ---- Lists ----

    def _check_versions(self, key: Key, order: Values) -> None:
        """Check every version that was read against the longest one."""
        self._check_elements(key, order)
        for version, readers in self.reads[key].items():
            if order[: len(version)] != version:
                text = f"{key} was read as {list(version)} and as {list(order)}"
                self._note("incompatible-order", text, self._reader(key, version), self._reader(key, order))
                self._check_elements(key, version)
            if version and (key, version[-1]) in self.successors:
                self._check_intermediate(key, version[-1], [self.committed[reader] for reader in readers])

    def _check_elements(self, key: Key, version: Values) -> None:
        """Check that each value is there once, and was appended by somebody who may have committed."""
        reader = self._reader(key, version)
        if len(set(version)) != len(version):
            doubled = sorted({value for value in version if version.count(value) > 1}, key=str)
            self._note("duplicate-elements", f"{key} has {doubled} more than once: {list(version)}", reader)
        refused: Txn | None = None
        for position, value in enumerate(version):
            writer = self.writers.get((key, value))
            if writer is None:
                self._note("garbage-read", f"{key} was read with {value!r}, which nobody appended", reader)
            elif writer.outcome is Outcome.FAIL:
                first = min((other for other in self.reads[key] if other[position : position + 1] == (value,)), key=len)
                self._note("G1a", f"{key} was read with {value!r}, whose append was refused", self._reader(key, first), writer)
                refused = writer
            elif refused is not None:
                self._note("dirty-update", f"{value!r} took effect in {key} behind what was refused", writer, refused)
                refused = None

    def _check_intermediate(self, key: Key, value: Value, readers: list[Txn]) -> None:
        writer, after = self.writers[key, value], self.successors[key, value]
        for reader in readers:
            if writer.outcome is not Outcome.FAIL:
                self._note("G1b", f"{key} was read up to {value!r}, behind which the same transaction put {after!r}", reader, writer)

    def _check_updates(self, key: Key) -> None:
        for version, places in self.updates[key].items():
            if len(places) > 1:
                writers = [self.committed[place] for place in places]
                self._note("lost-update", f"each appended to {key}, which it had read as {list(version)}", *writers)

    def _check_lost(self, key: Key) -> None:
        seen = set().union(*self.reads[key])
        last = self.last_read.get(key, 0)
        for value in self.appended[key]:
            writer = self.writers[key, value]
            ended = writer.ended()
            if ended is not None and ended < last and value not in seen:
                text = f"{value!r} was appended to {key} and acknowledged; no read has it, not even that at {last}"
                self._note("lost-write", text, writer)

    # ---- Dependencies ----

    def _depend(self, key: Key, order: Values) -> None:
        """Add the edges of one list, of which `order` is known."""
        writers = [self._committed_writer(key, value) for value in order]
        known = [(place, value) for place, value in zip(writers, order) if place is not None]
        for (before, value), (after, next_value) in pairwise(known):
            self.dependencies.add(Kind.WW, before, after, "appended {1!r} to {0}, the other {2!r} right behind it", key, value, next_value)
        seen = set(order)
        missing = [(self._committed_writer(key, value), value) for value in self.appended[key] if value not in seen]
        unseen = [(place, value) for place, value in missing if place is not None]
        if known:
            for place, value in unseen:
                text = "appended {1!r} to {0}, the last that anybody read, the other {2!r}"
                self.dependencies.add(Kind.WW, known[-1][0], place, text, key, known[-1][1], value)
        for version, readers in self.reads[key].items():
            after_it = self._after(writers, order, version, unseen)
            writer = self._committed_writer(key, version[-1]) if version else None
            for reader in readers:
                if writer is not None:
                    text = "appended {1!r} to {0}, which the other read at its end"
                    self.dependencies.add(Kind.WR, writer, reader, text, key, version[-1])
                for place, value in after_it:
                    text = "read {0} as {2}, the other appended {1!r} behind that"
                    self.dependencies.add(Kind.RW, reader, place, text, key, value, _Tail(version))

    @staticmethod
    def _after(writers: list[int | None], order: Values, version: Values, unseen: list[tuple[int, Value]]) -> list[tuple[int, Value]]:
        """Give who wrote the next version: all of whom nobody read anything, behind the last one that was read."""
        if order[: len(version)] != version:
            return []
        for place, value in zip(writers[len(version) :], order[len(version) :]):
            if place is not None:
                return [(place, value)]
        return unseen

    def _committed_writer(self, key: Key, value: Value) -> int | None:
        writer = self.writers.get((key, value))
        return None if writer is None else self.place.get(writer.number)


class _Tail:
    """The end of a version, made text only when it is shown."""

    def __init__(self, version: Values) -> None:
        self._version = version

    def __str__(self) -> str:
        shown = ", ".join(map(repr, self._version[-8:]))
        return f"[{shown}]" if len(self._version) <= 8 else f"[… {shown}]"


def _elements(txn: Txn) -> Iterator[Element]:
    return ((op.key, value) for op in txn.ops if isinstance(op, ReadList) for value in op.values)
