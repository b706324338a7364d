"""One run: start the sides, let them take turns at each workload, leave the results, end everything."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from bench import bank
from bench.machine import filesystem_of
from bench.report import idle_text, screen_text
from bench.results import ResultFile, machine_line
from bench.rows import BULK_ROWS, KV_ROWS, WIDE_ROWS
from bench.sides.dsdb_cluster import DsdbSide
from bench.sides.duckdb_file import DuckdbSide
from bench.sides.etcd import EtcdSide
from bench.sides.galera import GaleraSide
from bench.sides.port import Side, SideMissing
from bench.sides.postgres import PostgresSide
from bench.sides.pysyncobj import PysyncobjSide
from bench.sides.sqlite_file import SqliteSide
from bench.starting import measure_idle, measure_imports, measure_starts
from bench.turns import take_turns
from bench.workloads import workloads

SIDES: dict[str, Callable[..., Side]] = {
    "dsdb": DsdbSide,
    "etcd": EtcdSide,
    "postgres": PostgresSide,
    "galera": GaleraSide,
    "sqlite": SqliteSide,
    "duckdb": DuckdbSide,
    "pysyncobj": PysyncobjSide,
}
OTHER_WORK = ("start", "import", "idle")
WORK = ("read", "insert", "bulk", "fetch-arrow", "fetch-pandas", *bank.ACCOUNTS, *OTHER_WORK)
WORK_GROUPS = {"bank": tuple(bank.ACCOUNTS)}
"""Names for several workloads."""
PACKAGES = {
    "etcd": ("etcd", ("etcd-server",)),
    "postgres": ("psql", ("postgresql",)),
    "galera": ("mariadbd", ("mariadb-server", "galera-4", "rsync")),
}
"""Peer → program that shows that it is there, and Debian's packages."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What to run.

    clients: empty leaves their numbers to the workloads; seconds: of a slice; turns: slices of each contender; scale: share of the usual
    rows; idle_s: length of the idle measurement.
    """

    sides: tuple[str, ...]
    work: tuple[str, ...]
    clients: tuple[int, ...]
    seconds: float
    turns: int
    scale: float
    idle_s: float
    directory: Path


def install_peers(names: Sequence[str], say: Callable[[str], None]) -> None:
    """Install the peers' Debian packages; what cannot be installed is said, and left out of the run."""
    needed = [PACKAGES[name] for name in names if name in PACKAGES]
    missing = [package for program, packages in needed if shutil.which(program) is None for package in packages]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        say(f"not installed: {', '.join(missing)}, as there is no apt-get here")
        return
    say(f"apt-get install {' '.join(missing)}")
    for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]):
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            say(f"not installed: {(done.stderr.strip().splitlines() or ['apt-get said nothing'])[-1]}")
            return


def run_benchmarks(options: Options, say: Callable[[str], None] = print) -> Path:
    """Run, and give the file of the results."""
    results = ResultFile()
    directory = Path(tempfile.mkdtemp(prefix="dsdb-bench-", dir=options.directory))
    directory.chmod(0o755)  # PostgreSQL runs as another user
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        sides, versions = _start_sides(options, directory, stack, say)
        filesystem = filesystem_of(directory)
        kv_rows, wide_rows = _scaled(options)
        setting = f"kv {kv_rows:,} rows, wide {wide_rows:,} rows, {options.turns} turns of {options.seconds:g} s"
        results.write(machine_line(filesystem, versions, setting, results.begun))
        if filesystem in ("tmpfs", "ramfs"):
            say(f"{directory} is on {filesystem}: writes there say little about a disk; choose another with --directory")
        _run_turns(options, sides, results, say)
        _run_others(options, sides, results, say)
    say(f"results: {results.path}")
    return results.path


def _start_sides(options: Options, directory: Path, stack: ExitStack, say: Callable[[str], None]) -> tuple[list[Side], dict[str, str]]:
    sides: list[Side] = []
    versions: dict[str, str] = {}
    kv_rows, wide_rows = _scaled(options)
    for name in options.sides:
        side = SIDES[name](directory, kv_rows=kv_rows, wide_rows=wide_rows)
        stack.callback(side.close)
        begun = time.monotonic()
        try:
            side.start()
        except SideMissing as error:
            say(f"{name} is left out: {error}")
            versions[name] = f"left out: {error}"
            continue
        versions[name] = str(getattr(side, "version", ""))
        say(f"{name} {versions[name]} is there after {time.monotonic() - begun:.1f} s")
        sides.append(side)
    return sides, versions


def _scaled(options: Options) -> tuple[int, int]:
    return tuple(max(BULK_ROWS, int(rows * options.scale) // BULK_ROWS * BULK_ROWS) for rows in (KV_ROWS, WIDE_ROWS))  # type: ignore[return-value]


def _run_turns(options: Options, sides: Sequence[Side], results: ResultFile, say: Callable[[str], None]) -> None:
    kv_rows, wide_rows = _scaled(options)
    for name, workload in workloads(kv_rows=kv_rows, wide_rows=wide_rows).items():
        if name not in options.work:
            continue
        say(f"\n{name}")
        there = _prepare(sides, name, say)
        for clients in workload.client_counts(options.clients):
            contenders = [contender for side in there for contender in side.contenders(name, clients)]
            if not contenders:
                say(f"  nobody takes part in {name}")
                continue
            say(f"  {name}, {clients} {'client' if clients == 1 else 'clients'}, {options.turns} turns of {options.seconds:g} s")
            lines = take_turns(workload, contenders, turns=options.turns, seconds=options.seconds, say=say)
            for line in lines:
                results.write(line)
            if lines:
                say(screen_text(lines))
            for side in there:
                side.check(name)


def _prepare(sides: Sequence[Side], workload: str, say: Callable[[str], None]) -> list[Side]:
    there, took = [], []
    for side in sides:
        begun = time.monotonic()
        try:
            side.prepare(workload)
        except SideMissing as error:
            say(f"  {side.name} is left out: {error}")
            continue
        there.append(side)
        took.append(f"{side.name} in {time.monotonic() - begun:.1f} s")
    say(f"  prepared: {', '.join(took)}")
    return there


def _run_others(options: Options, sides: Sequence[Side], results: ResultFile, say: Callable[[str], None]) -> None:
    if "idle" in options.work:
        say(f"\nidle, {options.idle_s:g} s")
        for idle in measure_idle(sides, seconds=options.idle_s):
            results.write(idle)
            say(idle_text(idle))
    for name, measure in (("import", measure_imports), ("start", measure_starts)):
        if name in options.work:
            say(f"\n{name}, {options.turns} turns")
            lines = measure(sides, turns=options.turns, say=say)
            for line in lines:
                results.write(line)
            if lines:
                say(screen_text(lines))
