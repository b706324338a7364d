"""What the machine did: CPU time, memory and load of processes, read from /proc.

Invariants:
- A process's CPU time is counted once: its own, plus that of the children that it has waited for; what a child used moves to its parent
  when it ends, so sums over a tree never go back.

The kernel counts in ticks of 10 ms: figures over less than a second are coarse.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")
_NOTABLE_CORES = 0.05
"""Processes that used less are not named."""
_NAMED_MAX = 4


class ProcessTimes(msgspec.Struct, frozen=True, kw_only=True):
    """One process at one moment."""

    name: str
    parent: int
    cpu_s: float
    """Used by itself."""
    waited_cpu_s: float
    """Used by the children it has waited for."""


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """All processes and all CPUs at one moment."""

    processes: dict[int, ProcessTimes]
    busy_s: float
    """CPU time that anybody used since the machine started, over all cores."""
    steal_s: float
    """CPU time that the host gave to others."""

    def tree(self, roots: Iterable[int]) -> set[int]:
        """Give the processes below some, with themselves."""
        children: dict[int, list[int]] = {}
        for pid, process in self.processes.items():
            children.setdefault(process.parent, []).append(pid)
        found: set[int] = set()
        waiting = [pid for pid in roots if pid in self.processes]
        while waiting:
            pid = waiting.pop()
            if pid not in found:
                found.add(pid)
                waiting += children.get(pid, [])
        return found

    def tree_cpu_s(self, roots: Iterable[int]) -> float:
        """Give the CPU time of some processes and all below them."""
        return sum(process.cpu_s + process.waited_cpu_s for process in map(self.processes.__getitem__, self.tree(roots)))


class Elsewhere(msgspec.Struct, frozen=True, kw_only=True):
    """What the machine did beside the benchmark."""

    cores: float
    """CPU used by processes that are not the benchmark's."""
    steal_cores: float
    names: str
    """Those that used most, with their cores."""
    load_1m: float


def read_moment() -> Moment:
    """Read all processes and the machine's totals."""
    user, nice, system, _, _, irq, softirq, steal = (int(text) for text in _PROC.joinpath("stat").read_text().split(maxsplit=9)[1:9])
    processes = {}
    for entry in os.scandir(_PROC):
        if entry.name.isdecimal() and (found := _read_process(int(entry.name))) is not None:
            processes[int(entry.name)] = found
    return Moment(
        processes=processes,
        busy_s=(user + nice + system + irq + softirq) / _TICKS_PER_S,
        steal_s=steal / _TICKS_PER_S,
    )


def _read_process(pid: int) -> ProcessTimes | None:
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None  # it ended meanwhile
    # The name stands in parentheses and may hold any character, these too.
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    user, system, waited_user, waited_system = map(int, fields[11:15])
    return ProcessTimes(
        name=name,
        parent=int(fields[1]),
        cpu_s=(user + system) / _TICKS_PER_S,
        waited_cpu_s=(waited_user + waited_system) / _TICKS_PER_S,
    )


def elsewhere(before: Moment, after: Moment, elapsed_s: float) -> Elsewhere:
    """Say what others than this process and those below it did between two moments."""
    own = after.tree([os.getpid()]) | before.tree([os.getpid()])
    used = after.busy_s - before.busy_s
    ours = after.tree_cpu_s([os.getpid()]) - before.tree_cpu_s([os.getpid()])
    others = []
    for pid, process in after.processes.items():
        known = before.processes.get(pid)
        cores = (process.cpu_s - (known.cpu_s if known is not None else 0.0)) / elapsed_s
        if pid not in own and cores >= _NOTABLE_CORES:
            others.append((cores, process.name))
    others.sort(reverse=True)
    return Elsewhere(
        cores=round(max(0.0, used - ours) / elapsed_s, 2),
        steal_cores=round((after.steal_s - before.steal_s) / elapsed_s, 2),
        names=", ".join(f"{name} {cores:.2f}" for cores, name in others[:_NAMED_MAX]),
        load_1m=os.getloadavg()[0],
    )


def memory_mib(pids: Iterable[int]) -> tuple[float, float]:
    """Give resident and proportional memory of some processes: the second counts a shared page once, not once a process."""
    resident = proportional = 0
    for pid in pids:
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                resident += int(line.split()[1])
            elif line.startswith("Pss:"):
                proportional += int(line.split()[1])
    return resident / 1024, proportional / 1024


def peak_mib(pid: int) -> float:
    """Give the most resident memory that a process had.  (What `getrusage` says of it begins with that of the process it was made by.)"""
    [line] = [line for line in (_PROC / str(pid) / "status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def filesystem_of(path: Path) -> str:
    """Give the type of the file system that holds a path: on tmpfs nothing is durable."""
    best, kind = "", "unknown"
    for line in _PROC.joinpath("mounts").read_text().splitlines():
        _, mount, found, *_ = line.split()
        if path.is_relative_to(mount) and len(mount) >= len(best):
            best, kind = mount, found
    return kind
