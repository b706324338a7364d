"""Dependencies between transactions, and what cycles in them are called.

An edge from A to B says that A comes before B in every order that explains the history:

    ww       B wrote the version after A's               process  one process ran A, then B
    wr       B read what A wrote                         realtime A was answered before B was invoked
    rw       A read the version before B's

A cycle leaves no order, and its edges say how bad it is (Adya, "Weak Consistency: A Generalized Theory", MIT 1999; Elle, VLDB 2020):

    G0          ww only: writes of two transactions are mixed
    G1c         ww and wr: information flows in a circle
    G-single    exactly one rw: a transaction missed something that it must have seen; snapshot isolation forbids it
    G2-item     two rw or more: each missed what the other wrote (write skew); "G2" if an rw is of a predicate read

Each is also there as "-process" (the circle closes only because a process sees itself in order) and "-realtime" (only because what was
answered stays true): plain ones break serializability, these break strong session and strict serializability.

Every component of transactions that no order explains gives one anomaly, its worst, by a shortest cycle: the plain ones first.  What hides
behind it is found when it is gone.

Real time has an edge for nearly each pair of transactions.  To find components, answers stand for them as a chain of nodes in the order of
time; to find a short cycle, the pairs are searched in the order of invocation, of which each step of the search takes off the end.

Invariants:
- A component is found if and only if there is a cycle; a cycle's name is that of the edges it is explained with.
- Everything is in ascending order: the same history gives the same anomalies.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from enum import IntFlag
from itertools import pairwise

from tests.checkers.graph import components, shortest_walk, topological
from tests.checkers.history import Anomaly, Txn

SEARCHES_MAX = 200
"""Searches of one component after which the shortest cycle that was found is short enough."""


class Kind(IntFlag):
    """Kinds of edges, the strongest first."""

    WW = 1
    WR = 2
    RW = 4
    PREDICATE_RW = 8
    PROCESS = 16
    REALTIME = 32


LABELS = {
    Kind.WW: "ww",
    Kind.WR: "wr",
    Kind.RW: "rw",
    Kind.PREDICATE_RW: "rw, predicate",
    Kind.PROCESS: "process",
    Kind.REALTIME: "realtime",
}
ANTI = Kind.RW | Kind.PREDICATE_RW
LEVELS = (("", Kind(0)), ("-process", Kind.PROCESS), ("-realtime", Kind.PROCESS | Kind.REALTIME))
Edge = tuple[int, Kind, int]
Reason = tuple[str, *tuple[object, ...]]
"""A format and its arguments: most edges are never explained."""


class Dependencies:
    """The edges between some transactions, which are named by their places."""

    def __init__(self, txns: Sequence[Txn]) -> None:
        self.txns = txns
        self._kinds: list[dict[int, int]] = [{} for _ in txns]  # by place: target -> its kinds
        self._reasons: dict[tuple[int, int, int], Reason] = {}
        self._invoked = [txn.invoked for txn in txns]
        self._ended = [txn.ended() for txn in txns]

    def add(self, kind: Kind, before: int, after: int, *reason: *Reason) -> None:
        """Add an edge; of several with the same ends and kind, the first one's reason is kept."""
        if before != after:
            kinds, flag = self._kinds[before], int(kind)
            known = kinds.get(after, 0)
            if not known & flag:
                kinds[after] = known | flag
                self._reasons[before, flag, after] = reason

    def tangled(self, *, process: bool = True, realtime: bool = True) -> list[int]:
        """Give the places of all transactions that are in some cycle."""
        if process:
            self._add_processes()
        order = Kind.REALTIME if realtime else Kind(0)
        return [place for component in self._components(order | Kind.PROCESS, range(len(self.txns))) for place in component]

    def anomalies(self, *, process: bool = True, realtime: bool = True) -> list[Anomaly]:
        """Find the cycles, with those orders of clients counted."""
        if process:
            self._add_processes()
        found: list[Anomaly] = []
        levels = [level for level, wanted in zip(LEVELS, (True, process, realtime)) if wanted]
        for component in self._components(levels[-1][1], range(len(self.txns))):
            explained: set[int] = set()
            for suffix, order in levels:
                for part in self._components(order, component):
                    if explained.isdisjoint(part):
                        explained.update(part)
                        found.append(self._anomaly(part, order, suffix))
        return found

    def _add_processes(self) -> None:
        last: dict[int, int] = {}
        for place in sorted(range(len(self.txns)), key=lambda place: self._invoked[place]):
            txn = self.txns[place]
            if txn.process in last:
                self.add(Kind.PROCESS, last[txn.process], place, "process {} ran it first", txn.process)
            if self._ended[place] is not None:
                last[txn.process] = place

    # ---- Components ----

    def _components(self, order: Kind, places: Sequence[int], data: Kind = Kind.WW | Kind.WR | ANTI) -> list[list[int]]:
        """Give the components of some transactions by edges of some kinds."""
        out, _ = self._subgraph(order, places, data)
        count = len(places)
        found = [[places[number] for number in component if number < count] for component in components(out)]
        return [component for component in found if len(component) > 1]

    def _subgraph(self, order: Kind, places: Sequence[int], data: Kind) -> tuple[list[list[int]], dict[int, int]]:
        """Give the edges of some kinds among some transactions, which are numbered anew, and these numbers; answers follow them."""
        mask = int(order | data)
        local = {place: number for number, place in enumerate(places)}
        out = [[local[to] for to, kinds in self._kinds[place].items() if kinds & mask and to in local] for place in places]
        if order & Kind.REALTIME:
            self._add_times(out, places)
        return out, local

    def _add_times(self, out: list[list[int]], places: Sequence[int]) -> None:
        """Add the chain of answers behind the transactions' nodes."""
        count = len(places)
        times = sorted(ended for place in places if (ended := self._ended[place]) is not None)
        out.extend([count + number + 1] if number + 1 < len(times) else [] for number in range(len(times)))
        for number, place in enumerate(places):
            ended = self._ended[place]
            if ended is not None:
                out[number].append(count + bisect_left(times, ended))
            before = bisect_left(times, self._invoked[place])
            if before:
                out[count + before - 1].append(number)

    # ---- Cycles ----

    def _anomaly(self, component: list[int], order: Kind, suffix: str) -> Anomaly:
        """Give the worst cycle of a component: each kind is looked for only where there is none of those before it."""
        for name, data in (("G0", Kind.WW), ("G1c", Kind.WW | Kind.WR)):
            for part in self._components(order, component, data):
                return self._explained(name + suffix, self._shortest(part, data | order))
        closing, positions = self._closing(component, order)
        single = self._shortest_by(closing, component, Kind.WW | Kind.WR | order, positions)
        if single is not None:
            return self._explained("G-single" + suffix, single)
        cycle = self._shortest_by(closing, component, Kind.WW | Kind.WR | ANTI | order)
        assert cycle is not None, f"no cycle among {component}"
        has_predicate = any(kind is Kind.PREDICATE_RW for _, kind, _ in cycle)
        return self._explained(("G2" if has_predicate else "G2-item") + suffix, cycle)

    def _closing(self, component: list[int], order: Kind) -> tuple[list[tuple[int, int]], dict[int, int]]:
        """Give an order which all other edges than rw follow, and the rw that go back in it: every cycle has one of them."""
        out, places = self._subgraph(order, component, Kind.WW | Kind.WR)
        times = sorted(ended for place in component if (ended := self._ended[place]) is not None) if order & Kind.REALTIME else []
        positions = dict(zip(component, topological(out, [*(self._invoked[place] for place in component), *times])))
        flags = int(ANTI)
        closing = [
            (positions[reader] - positions[writer], reader, writer)
            for reader in component
            for writer, kinds in self._kinds[reader].items()
            if kinds & flags and writer in places and positions[writer] < positions[reader]
        ]
        return [(reader, writer) for _, reader, writer in sorted(closing)], positions

    def _shortest(self, component: list[int], mask: Kind) -> list[Edge]:
        """Give a short cycle."""
        best: list[int] | None = None
        for start in component[:SEARCHES_MAX]:
            walk = shortest_walk(start, start, self._successors(component, mask), None if best is None else len(best) - 2)
            best = walk or best
            if best is not None and len(best) == 3:
                break
        assert best is not None, f"no cycle among {component}"
        return self._edges(best, mask)

    def _shortest_by(
        self, closing: list[tuple[int, int]], component: list[int], mask: Kind, positions: dict[int, int] | None = None
    ) -> list[Edge] | None:
        """Give a short cycle of one of some edges rw and a way back by some kinds, if there is one; `positions` ascend on that way."""
        best: list[Edge] | None = None
        for tried, (reader, writer) in enumerate(closing):
            if best is not None and (len(best) == 2 or tried > SEARCHES_MAX):
                break
            way = component
            if positions is not None:
                way = [place for place in component if positions[writer] <= positions[place] <= positions[reader]]
            walk = shortest_walk(writer, reader, self._successors(way, mask), None if best is None else len(best) - 2)
            if walk is not None:
                best = [*self._edges([reader, writer], ANTI), *self._edges(walk, mask)]
        return best

    def _successors(self, component: list[int], mask: Kind) -> Callable[[int], Iterator[int]]:
        """Give the steps of one search: a step by real time is given once, by the first that asks."""
        inside, flags = set(component), int(mask)
        by_invocation = sorted(component, key=lambda place: self._invoked[place]) if mask & Kind.REALTIME else []
        invocations = [self._invoked[place] for place in by_invocation]
        remaining = len(by_invocation)

        def successors(place: int) -> Iterator[int]:
            nonlocal remaining
            for target, kinds in self._kinds[place].items():
                if kinds & flags and target in inside:
                    yield target
            ended = self._ended[place]
            if ended is not None and remaining:
                first = bisect_right(invocations, ended)
                given, remaining = by_invocation[first:remaining], min(remaining, first)
                yield from given

        return successors

    def _edges(self, walk: list[int], mask: Kind) -> list[Edge]:
        return [(before, self._strongest(before, after, mask), after) for before, after in pairwise(walk)]

    def _strongest(self, before: int, after: int, mask: Kind) -> Kind:
        kinds = self._kinds[before].get(after, 0) & mask
        return next((kind for kind in Kind if kinds & kind), Kind.REALTIME)

    # ---- Explanations ----

    def _explained(self, name: str, cycle: list[Edge]) -> Anomaly:
        first = min(range(len(cycle)), key=lambda number: cycle[number][0])
        cycle = [*cycle[first:], *cycle[:first]]
        members = [self.txns[before] for before, _, _ in cycle]
        lines = [f"no order explains these {len(members)} transactions", *(f"  {txn}" for txn in members)]
        lines += [f"  T{self.txns[a].number} < T{self.txns[b].number} ({LABELS[kind]}): {self._reason(a, kind, b)}" for a, kind, b in cycle]
        return Anomaly(name=name, explanation="\n".join(lines), txns=tuple(txn.number for txn in members))

    def _reason(self, before: int, kind: Kind, after: int) -> str:
        if kind is Kind.REALTIME:
            return f"answered at {self._ended[before]}, before the other was invoked at {self._invoked[after]}"
        text, *arguments = self._reasons[before, int(kind), after]
        return text.format(*arguments)
