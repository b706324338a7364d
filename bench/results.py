"""What a run leaves: JSON lines below bench/results/, one a slice, and what is computed from them.

A file begins with the machine; every line says what it is by `kind`.  Medians and ratios are computed from the lines, by the same
functions for the screen and for the report: nothing is stored twice.
"""

import datetime
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from bench.machine import Elsewhere

RESULTS = Path(__file__).parent / "results"


class MachineLine(msgspec.Struct, frozen=True, kw_only=True, tag="machine", tag_field="kind"):
    """Where and on what a run was made."""

    begun: str
    commit: str
    cores: int
    cpu: str
    memory_gib: float
    kernel: str
    python: str
    filesystem: str
    sides: dict[str, str]
    """Name → version, or why it did not take part."""
    setting: str
    """Rows loaded and lengths of slices, for people."""


class SliceLine(msgspec.Struct, frozen=True, kw_only=True, tag="slice", tag_field="kind"):
    """One slice of one contender.

    rate: `unit`s a second; CPU in µs a statement, of the server processes and of the client processes.
    """

    workload: str
    clients: int
    turn: int
    contender: str
    is_dsdb: bool
    unit: str
    rate: float
    statements: int
    seconds: float
    p50_ms: float
    p99_ms: float
    server_cpu_us: float
    client_cpu_us: float
    failures: int = 0
    aborts: int = 0
    """Attempts that were undone and made again, within the statements that succeeded."""
    error: str = ""
    placement: str = ""
    elsewhere: Elsewhere


class IdleLine(msgspec.Struct, frozen=True, kw_only=True, tag="idle", tag_field="kind"):
    """A server process tree that nobody used for some seconds."""

    contender: str
    is_dsdb: bool
    processes: int
    seconds: float
    cpu_percent: float
    """Of one core, all processes together."""
    resident_mib: float
    proportional_mib: float
    elsewhere: Elsewhere


class LagLine(msgspec.Struct, frozen=True, kw_only=True, tag="lag", tag_field="kind"):
    """What `make lag` saw: lag by node, in ms."""

    seconds: float
    p99_ms: dict[str, float]
    worst_ms: dict[str, float]
    bare_p99_ms: float
    """Of a process that only sleeps, in the same time: what the machine alone adds."""
    lease_moves: int
    statements: dict[str, int]
    failures: dict[str, str]
    """Loop → how many of its statements failed, and the first one's error."""
    elsewhere: Elsewhere


Line = MachineLine | SliceLine | IdleLine | LagLine


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """A contender's turns in one workload, as medians."""

    contender: str
    is_dsdb: bool
    unit: str
    rate: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    client_cpu_us: float
    failures: int
    aborts: int
    attempts: float
    """Of each statement that succeeded, over all turns; 1 if none was aborted."""
    elsewhere_cores: float


class Ratio(msgspec.Struct, frozen=True, kw_only=True):
    """dsdb's rate ÷ a peer's in the same turn: the median over turns, the lowest and the highest."""

    dsdb: str
    peer: str
    median: float
    lowest: float
    highest: float


class ResultFile:
    """A file that grows by lines."""

    def __init__(self, directory: Path = RESULTS) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.begun = datetime.datetime.now(datetime.UTC)
        self.path = directory / f"{self.begun:%Y%m%dT%H%M%S}-{os.getpid()}.jsonl"

    def write(self, line: Line) -> None:
        """Add a line."""
        with self.path.open("ab") as file:
            file.write(msgspec.json.encode(line) + b"\n")


def read_results(path: Path) -> list[Line]:
    """Read all lines of a file."""
    return [msgspec.json.decode(text, type=Line) for text in path.read_bytes().splitlines()]


def newest_result() -> Path | None:
    """Give the file of the last run."""
    found = sorted(RESULTS.glob("*.jsonl"))
    return found[-1] if found else None


def summarise(lines: Sequence[SliceLine]) -> list[Summary]:
    """Give the medians of each contender of one workload, in the order in which they took turns."""
    by_contender: dict[str, list[SliceLine]] = {}
    for line in lines:
        by_contender.setdefault(line.contender, []).append(line)
    return [
        Summary(
            contender=name,
            is_dsdb=turns[0].is_dsdb,
            unit=turns[0].unit,
            rate=statistics.median(line.rate for line in turns),
            p50_ms=statistics.median(line.p50_ms for line in turns),
            p99_ms=statistics.median(line.p99_ms for line in turns),
            cpu_us=statistics.median(line.server_cpu_us + line.client_cpu_us for line in turns),
            client_cpu_us=statistics.median(line.client_cpu_us for line in turns),
            failures=sum(line.failures for line in turns),
            aborts=sum(line.aborts for line in turns),
            attempts=1 + sum(line.aborts for line in turns) / max(1, sum(line.statements for line in turns)),
            elsewhere_cores=statistics.median(line.elsewhere.cores + line.elsewhere.steal_cores for line in turns),
        )
        for name, turns in by_contender.items()
    ]


def ratios(lines: Sequence[SliceLine]) -> list[Ratio]:
    """Compare each of dsdb's contenders of one workload with each of the peers', turn by turn."""
    rates: dict[str, dict[int, float]] = {}
    dsdb_names: dict[str, None] = {}
    for line in lines:
        rates.setdefault(line.contender, {})[line.turn] = line.rate
        if line.is_dsdb:
            dsdb_names[line.contender] = None
    found = []
    for ours in dsdb_names:
        for peer in (name for name in rates if name not in dsdb_names):
            values = [rate / rates[peer][turn] for turn, rate in rates[ours].items() if rates[peer].get(turn)]
            if values:
                found.append(Ratio(dsdb=ours, peer=peer, median=statistics.median(values), lowest=min(values), highest=max(values)))
    return found


def quantile(ordered: Sequence[float], share: float) -> float:
    """Give a quantile of sorted values; 0 of none."""
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


def machine_line(filesystem: str, sides: dict[str, str], setting: str, begun: datetime.datetime) -> MachineLine:
    """Describe this machine."""
    cpus = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return MachineLine(
        begun=f"{begun:%Y-%m-%d %H:%M:%S} UTC",
        commit=_commit(),
        cores=os.cpu_count() or 0,
        cpu=cpus[0] if cpus else platform.machine(),
        memory_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        kernel=platform.release(),
        python=platform.python_version(),
        filesystem=filesystem,
        sides=sides,
        setting=setting,
    )


def _commit() -> str:
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"  # not a checkout
    return found.stdout.strip()


def slices(lines: Iterable[Line]) -> dict[tuple[str, int], list[SliceLine]]:
    """Group slices by workload and clients, in the order in which they were measured."""
    grouped: dict[tuple[str, int], list[SliceLine]] = {}
    for line in lines:
        if isinstance(line, SliceLine):
            grouped.setdefault((line.workload, line.clients), []).append(line)
    return grouped
