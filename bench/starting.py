"""What is not a loop of statements: starting, importing, and doing nothing."""

import importlib.util
import time
from collections.abc import Callable, Sequence

from bench.machine import elsewhere, memory_mib, read_moment
from bench.results import IdleLine, SliceLine
from bench.sides.port import Side, SideMissing, timed_in_interpreter

IMPORTS = ("dsdb", "psycopg", "pymysql", "duckdb", "grpc")


def measure_starts(sides: Sequence[Side], *, turns: int, say: Callable[[str], None]) -> list[SliceLine]:
    """Start each side's servers in turns, up to the first answer."""
    starts = {label: (start, side.name == "dsdb") for side in sides for label, start in side.starts().items()}
    return _take_turns("start", starts, turns, say)


def measure_imports(sides: Sequence[Side], *, turns: int, say: Callable[[str], None]) -> list[SliceLine]:
    """Import the drivers in turns, each time in a new interpreter."""
    starts: dict[str, tuple[Callable[[], float], bool]] = {}
    for module in IMPORTS:
        if importlib.util.find_spec(module) is not None:
            starts[f"import {module}"] = (lambda code=f"import {module}": timed_in_interpreter(code), module == "dsdb")  # type: ignore[misc]
    for start, _ in starts.values():
        start()  # untimed: files come from the disk at first
    return _take_turns("import", starts, turns, say)


def _take_turns(
    workload: str, starts: dict[str, tuple[Callable[[], float], bool]], turns: int, say: Callable[[str], None]
) -> list[SliceLine]:
    lines = []
    for turn in range(turns):
        for label, (start, is_dsdb) in list(starts.items()):
            before, begun = read_moment(), time.monotonic()
            try:
                seconds = start()
            except (SideMissing, RuntimeError) as error:
                say(f"    left out: {label}: {error}")
                del starts[label]
                continue
            after, elapsed = read_moment(), time.monotonic() - begun
            lines.append(
                SliceLine(
                    workload=workload,
                    clients=1,
                    turn=turn,
                    contender=label,
                    is_dsdb=is_dsdb,
                    unit="times",
                    rate=1 / seconds,
                    statements=1,
                    seconds=round(seconds, 4),
                    p50_ms=round(seconds * 1e3, 2),
                    p99_ms=round(seconds * 1e3, 2),
                    server_cpu_us=0.0,
                    client_cpu_us=0.0,
                    elsewhere=elsewhere(before, after, elapsed),
                )
            )
    return lines


def measure_idle(sides: Sequence[Side], *, seconds: float) -> list[IdleLine]:
    """Leave all servers alone for some seconds, all in the same time, and see what they used."""
    before, begun = read_moment(), time.monotonic()
    time.sleep(seconds)
    after, elapsed = read_moment(), time.monotonic() - begun
    lines = []
    for side in sides:
        roots = side.servers()
        if not roots:
            continue
        processes = after.tree(roots)
        resident, proportional = memory_mib(processes)
        lines.append(
            IdleLine(
                contender=side.name,
                is_dsdb=side.name == "dsdb",
                processes=len(processes),
                seconds=round(elapsed, 2),
                cpu_percent=round((after.tree_cpu_s(roots) - before.tree_cpu_s(roots)) / elapsed * 100, 2),
                resident_mib=round(resident, 1),
                proportional_mib=round(proportional, 1),
                elsewhere=elsewhere(before, after, elapsed),
            )
        )
    return lines
