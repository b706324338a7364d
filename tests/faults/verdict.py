"""What a chaos run says in the end: how much was done, how much went through meanwhile, and why at times nothing did.

    commits  ─┬────┬──┬─┬───────────────────┬─┬─┬      a pause: the time between two commits, of whatever client
    faults        ████ kill 2   ███████ isolate 3       those that overlap it, or ended less than AFTER_S before it, are blamed for it

Everything is in seconds from the start of the run.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

AFTER_S = 2.0
"""A fault is blamed for pauses that begin so soon after its end."""
ERRORS_SHOWN = 4
DOWN = ("kill", "kill all", "kill for good", "power off", "pause", "isolate", "unplug", "disk full")
"""Faults whose node does nothing for its ranges."""


class FaultSpan(msgspec.Struct, frozen=True):
    """A fault: its kind, the nodes that it was done to (none: to all), and from when to when."""

    kind: str
    nodes: tuple[int, ...]
    began: float
    ended: float

    def __str__(self) -> str:
        of = f" of {','.join(map(str, self.nodes))}" if self.nodes else ""
        return f"{self.kind}{of} ({self.began:.1f}–{self.ended:.1f})"


class Pause(msgspec.Struct, frozen=True):
    """A time without a commit."""

    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """Give its length."""
        return self.ended - self.began

    def blamed(self, faults: Iterable[FaultSpan]) -> list[FaultSpan]:
        """Give the faults that may have caused it, in the order in which they began."""
        found = [fault for fault in faults if fault.began < self.ended and fault.ended > self.began - AFTER_S]
        return sorted(found, key=lambda fault: fault.began)


class Told(msgspec.Struct, frozen=True):
    """An error that a client was told."""

    moment: float
    error: str


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the transactions of one kind of client."""

    name: str
    commits: Sequence[float]
    failed: int
    unknown: int
    errors: Sequence[Told]


def pauses(commits: Iterable[float], until: float) -> list[Pause]:
    """Give the times between commits, from the start of the run to its end."""
    return [Pause(*pair) for pair in itertools.pairwise([0.0, *sorted(commits), until])]


def quorumless(pause: Pause, faults: Sequence[FaultSpan], ranges: Sequence[frozenset[int]]) -> float:
    """Give the seconds of a pause for which some range had no majority of its replicas on nodes that nothing was done to."""
    inside = [(max(f.began, pause.began), min(f.ended, pause.ended), f.nodes) for f in faults if f.kind in DOWN]
    inside = [found for found in inside if found[0] < found[1]]
    edges = sorted({moment for began, ended, _ in inside for moment in (began, ended)})
    total = 0.0
    for began, ended in itertools.pairwise(edges):
        down = {node for first, last, nodes in inside if first <= began and ended <= last for node in nodes}
        if any(len(replicas & down) * 2 >= len(replicas) for replicas in ranges):
            total += ended - began
    return total


def worst_by_kind(found: Iterable[Pause], faults: Sequence[FaultSpan]) -> dict[str, tuple[float, float]]:
    """Give, for each kind of fault, the longest pause that it may have caused, and the longest that nothing else can have caused."""
    worst: dict[str, tuple[float, float]] = {fault.kind: (0.0, 0.0) for fault in faults}
    for pause in found:
        blamed = pause.blamed(faults)
        for fault in blamed:
            longest, alone = worst[fault.kind]
            worst[fault.kind] = (max(longest, pause.seconds), max(alone, pause.seconds) if len(blamed) == 1 else alone)
    return worst


def report(loads: Sequence[Load], faults: Sequence[FaultSpan], seconds: float, ranges: Mapping[float, Sequence[frozenset[int]]]) -> str:
    """Put it into words.  ranges: at some moments, the nodes that have replicas of each range."""
    kinds = Counter(fault.kind for fault in faults)
    everyone = [moment for load in loads for moment in load.commits]
    found = pauses(everyone, seconds)
    lines = [
        f"in {seconds:.0f} s: {len(everyone)} transactions committed ({len(everyone) / seconds:.0f}/s), "
        f"{sum(load.failed for load in loads)} aborted, {sum(load.unknown for load in loads)} of unknown outcome; {len(faults)} faults",
    ]
    for load in loads:
        gap = max(pause.seconds for pause in pauses(load.commits, seconds))
        lines.append(
            f"  {load.name:10}{len(load.commits):7} committed, {load.failed:5} aborted, {load.unknown:3} unknown; "
            f"longest time without a commit {gap:.1f} s"
        )
        lines += [f"      {count:5} × {text}" for text, count in _common(load.errors)]
    lines.append(f"  {'fault':18}{'times':>6}{'longest pause':>16}{'by it alone':>14}")
    for kind, (longest, alone) in sorted(worst_by_kind(found, faults).items()):
        lines.append(f"  {kind:18}{kinds[kind]:6}{longest:14.1f} s{f'{alone:.1f} s' if alone else '':>14}")
    return "\n".join(lines + _longest(found, loads, faults, ranges))


def _common(errors: Iterable[Told]) -> list[tuple[str, int]]:
    return Counter(" ".join(told.error.split())[:170] for told in errors).most_common(ERRORS_SHOWN)


def _longest(
    found: Sequence[Pause], loads: Sequence[Load], faults: Sequence[FaultSpan], ranges: Mapping[float, Sequence[frozenset[int]]]
) -> list[str]:
    """Say of the longest pauses what was going on."""
    lines = []
    for pause in sorted(found, key=lambda pause: -pause.seconds)[:3]:
        blamed = pause.blamed(faults)
        seen = [moment for moment in ranges if moment <= pause.began]
        lost_s = quorumless(pause, faults, ranges[max(seen)]) if seen else 0.0
        why = ", ".join(map(str, blamed)) or "no fault"
        lines.append(
            f"  no commit for {pause.seconds:.1f} s ({pause.began:.1f}–{pause.ended:.1f}): {why}"
            + (f"; for {lost_s:.1f} s of it some range had no quorum" if lost_s else "")
        )
        told = [told for load in loads for told in load.errors if pause.began < told.moment <= pause.ended + 0.1]
        lines += [f"      {count:5} × {text}" for text, count in _common(told)]
    return lines
