"""Many histories: count violations with all rules, or with some taken away."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from tests.model.history import history
from tests.model.rules import RULES

BATCH_HISTORIES = 500

Run = Callable[..., Iterable["Tally"]]
"""`map`, or a pool's."""


class Tally(NamedTuple):
    """What some histories came to."""

    done: int
    violations: Counter[str]
    """By kind."""
    told: Counter[str]
    """What clients were told."""
    seen: Counter[str]
    """What happened at all."""
    first_seed: int | None
    """The first one with a violation."""

    @property
    def bad(self) -> int:
        return sum(self.violations.values())

    def plus(self, other: "Tally") -> "Tally":
        first = self.first_seed if self.first_seed is not None else other.first_seed
        counters = (mine + theirs for mine, theirs in zip(self[1:4], other[1:4]))
        return Tally(self.done + other.done, *counters, first)

    def line(self, name: str, seconds: float) -> str:
        told = ", ".join(f"{what} {self.told[what]}" for what in ("committed", "aborted", "unknown"))
        kinds = ", ".join(f"{kind} {n}" for kind, n in self.violations.most_common())
        found = f"{name:24s} violations {self.bad:5d} / {self.done:7d}  first seed {self.first_seed!s:>7s}"
        return f"{found}  {kinds}  [{told}; {seconds:.0f} s]"


NOTHING = Tally(0, Counter(), Counter(), Counter(), None)


def rules_of(name: str) -> frozenset[str]:
    """Give the rules that a name takes away: names joined by +, or `all` for none.  Raises ValueError for a name that is no rule."""
    off = frozenset(() if name == "all" else name.split("+"))
    if unknown := sorted(off - RULES.keys()):
        raise ValueError(f"no such rule: {', '.join(unknown)}")
    return off


def batch(args: tuple[frozenset[str], int, int, int]) -> Tally:
    """Run histories (rules taken away, first seed, how many, violations after which to stop or 0)."""
    off, first, count, stop = args
    violations, told, seen = Counter[str](), Counter[str](), Counter[str]()
    first_seed, done = None, 0
    for seed in range(first, first + count):
        kind, world, clients = history(seed, off)
        done += 1
        seen.update(world.seen)
        told.update(client.told for client in clients)
        if kind:
            violations[kind] += 1
            first_seed = seed if first_seed is None else first_seed
            if stop and sum(violations.values()) >= stop:
                break
    return Tally(done, violations, told, seen, first_seed)


def campaign(off: frozenset[str], seeds: range, stop: int = 0, until: float | None = None, run: Run = map, jobs: int = 1) -> Tally:
    """Run the histories of `seeds`, until `stop` violations (0: all of them) or `until` on the monotonic clock."""
    total = NOTHING
    starts = range(seeds.start, seeds.stop, BATCH_HISTORIES)
    todo = ((off, first, min(BATCH_HISTORIES, seeds.stop - first), stop) for first in starts)
    for part in parts(todo, 2 * jobs):
        for tally in run(batch, part):
            total = total.plus(tally)
        if (stop and total.bad >= stop) or (until is not None and time.monotonic() > until):
            break
    return total


def parts(todo: Iterator, size: int) -> Iterator[list]:
    """Cut into lists of `size`."""
    while part := list(itertools.islice(todo, size)):
        yield part
