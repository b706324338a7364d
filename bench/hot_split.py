"""`python -m bench.hot_split`: does a busy table that has one range spread over the nodes by itself, and what does it gain?

Three node processes, a table in one range, clients that read (or insert) rows all over it, spread over the nodes, as fast as they can.

    before     a short slice, too short for a split
    meanwhile  a slice of WITHIN_S; every half second the ranges of the table and their leaseholders are looked at
    after      a slice as long as the first one

Rates, and the nodes' CPU for one statement, are given for each: where all nodes share a few processors it is the CPU that says what a
spread costs, and the rates cannot say what more nodes would add.

Goal: within WITHIN_S of the begin the table has ranges that every node leads some of.  The exit code is 1 if it is missed.
"""

import shutil
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import click
import msgspec

import dsdb
from bench.clients import ClientPool, SliceReport
from bench.machine import elsewhere, read_moment
from bench.rows import BULK_ROWS, KV_ROWS
from bench.sides.dsdb_cluster import NODES, DsdbSide, read_leaseholders
from bench.sides.port import ClientSpec, Contender, end_servers_on_sigterm
from bench.workloads import Workload
from dsdb.driver.connection import Connection

WITHIN_S = 30.0
LOOK_S = 0.5
TABLES = {"read": "kv", "insert": "ins"}


class Spread(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the table under load.  Seconds are from the begin of the load; None: never."""

    split_s: float | None
    spread_s: float | None
    """When every node led a range of the table."""
    leases: dict[int, int]
    """Node → ranges that it leads in the end."""


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """What all clients did in a slice."""

    rate: float
    """Statements a second."""
    cpu_us: float
    """CPU of all nodes, a statement."""
    failures: int

    @classmethod
    def of(cls, reports: list[SliceReport], cpu_s: float) -> "Slice":
        """Sum up."""
        statements = sum(len(report.latencies) // 8 for report in reports)
        return cls(
            rate=sum(len(report.latencies) / 8 / report.elapsed_s for report in reports),
            cpu_us=cpu_s * 1e6 / max(statements, 1),
            failures=sum(report.failures for report in reports),
        )

    def __str__(self) -> str:
        return f"{self.rate:,.0f}/s, {self.cpu_us:,.0f} µs"


def watch(connection: Connection, table: str, begun: float, until: float) -> Spread:
    """Look at the ranges of a table until a moment."""
    split_s = spread_s = None
    leases: Counter[int] = Counter()
    while time.monotonic() < until:
        time.sleep(LOOK_S)
        leases = Counter(read_leaseholders(connection, table).values())
        now_s = round(time.monotonic() - begun, 1)
        if split_s is None and leases.total() > 1:
            split_s = now_s
        if spread_s is None and len(set(leases) - {0}) == NODES:
            spread_s = now_s
    return Spread(split_s=split_s, spread_s=spread_s, leases=dict(sorted(leases.items())))


@click.command()
@click.option("--work", type=click.Choice(tuple(TABLES)), default="read", show_default=True, help="What the clients do.")
@click.option("--clients", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--limit", type=click.IntRange(min=10), default=None, help="Requests a second above which a range is split; default: dsdb's.")
@click.option("--seconds", type=click.FloatRange(min=1, max=4), default=3.0, show_default=True, help="Slices before and after.")
@click.option(
    "--directory", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path(tempfile.gettempdir()), show_default=True
)
def hot_split(work: str, clients: int, limit: int | None, seconds: float, directory: Path) -> None:
    """Measure how a hot table of one range is split and spread."""
    end_servers_on_sigterm()
    scratch = Path(tempfile.mkdtemp(prefix="dsdb-hot-", dir=directory.resolve()))
    side = DsdbSide(scratch, kv_rows=min(KV_ROWS, 2 * BULK_ROWS), wide_rows=0)
    try:
        side.start()
        side.make_table(TABLES[work])
        spread, slices = measure(side, work, clients, limit, seconds)
    except (RuntimeError, TimeoutError) as error:
        raise click.ClickException(str(error)) from error  # the nodes did not start
    finally:
        side.close()
        shutil.rmtree(scratch, ignore_errors=True)
    click.echo(f"  first split after {spread.split_s} s, a lease at every node after {spread.spread_s} s; ranges led: {spread.leases}")
    failures = sum(found.failures for found in slices.values())
    click.echo(
        "  " + "; ".join(f"{name} {found}" for name, found in slices.items()) + f" of the nodes' CPU each; {failures} statements failed"
    )
    is_missed = spread.spread_s is None or spread.spread_s > WITHIN_S
    if is_missed:
        click.echo(f"missed: not spread within {WITHIN_S:.0f} s")
    sys.exit(1 if is_missed else 0)


def measure(side: DsdbSide, work: str, clients: int, limit: int | None, seconds: float) -> tuple[Spread, dict[str, Slice]]:
    """Run the three slices."""

    def used_s() -> float:
        return read_moment().tree_cpu_s(side.servers())

    table = TABLES[work]
    specs = tuple(ClientSpec(module="dsdb_cluster", address=f"dsdb://{side.nodes[number % NODES].address}") for number in range(clients))
    contender = Contender(label=work, is_dsdb=True, specs=specs, servers=())
    argument = "drawn" if work == "read" else "counted"
    workload = Workload(name=work, operation=work, argument=argument, rows=2 * BULK_ROWS)  # type: ignore[arg-type]  # one of the two
    with dsdb.connect(side.url, autocommit=True) as connection:
        if limit is not None:
            connection.execute(f"ALTER TABLE {table} CONFIGURE RANGES (load_requests = {limit})")
        click.echo(f"  {len(read_leaseholders(connection, table))} range of {table}, {clients} clients")
        with ClientPool(contender) as pool:
            before, begun = read_moment(), time.monotonic()
            marks = [used_s()]
            first = pool.run(workload, seconds=seconds)
            marks.append(used_s())
            pool.begin(workload, seconds=WITHIN_S - seconds)
            spread = watch(connection, table, begun, begun + WITHIN_S)
            meanwhile = pool.reports(seconds=WITHIN_S)
            marks.append(used_s())
            last = pool.run(workload, seconds=seconds)
            marks.append(used_s())
            other = elsewhere(before, read_moment(), time.monotonic() - begun)
    click.echo(f"  load {other.load_1m:.1f}; others used {other.cores:.2f} cores ({other.names}); the host took {other.steal_cores:.2f}")
    reports = {"before": first, "meanwhile": meanwhile, "after": last}
    used = [later - earlier for earlier, later in pairwise(marks)]
    return spread, {name: Slice.of(found, cpu_s) for (name, found), cpu_s in zip(reports.items(), used)}


if __name__ == "__main__":
    hot_split()
