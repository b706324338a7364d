"""`python -m bench.lag`: do the nodes' event loops keep up while everything at once is asked of them?

Three node processes; at the same time and as fast as they can
    insert     1 MB by one multi-row INSERT, again and again        at the first node
    fetch      all of a 600,000-row table to Arrow                  at the second
    query      an aggregate over a join, in the engine              at the third
Then each node's own /metrics tell the loop's lag.  A loop that lags misses heartbeats: leases move for no reason.

Goals: p99 of every node's lag below LAG_P99_MS_MAX, no lease moved, every loop came round.  The exit code is 1 if one is missed.

The nodes give the quantile over their last minute, so a minute is the usual length: all samples were then taken under load.
"""

import math
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import click

import dsdb
from bench.clients import ClientFailed, ClientPool
from bench.machine import elsewhere, filesystem_of, read_moment
from bench.results import LagLine, ResultFile, machine_line, quantile
from bench.rows import BULK_ROWS, KV_ROWS, LOAD_ROWS, WIDE_ROWS
from bench.sides.dsdb_cluster import DsdbSide, read_leaseholders
from bench.sides.port import ClientSpec, Contender, end_servers_on_sigterm
from bench.workloads import Workload
from dsdb.cli.processes import NodeProcess

LAG_P99_MS_MAX = 20.0
SAMPLE_S = 0.1
"""Between two samples, as in the nodes."""
WINDOW_S = 60.0
"""Over which a node computes its quantiles."""
LAG_P99, LAG_WORST, LEASE_CHANGES = "dsdb_loop_lag_p99_seconds", "dsdb_loop_lag_worst_seconds", "dsdb_store_lease_changes_total"
"""What is read of /metrics."""
LOOPS = ("insert", "fetch", "query")
TABLES = ("wide", "supplier", "load")


def loops(wide_rows: int) -> list[Workload]:
    """Give what runs at the same time."""
    return [
        Workload(name="insert", operation="insert_megabyte", argument="counted", step=LOAD_ROWS),
        Workload(name="fetch", operation="fetch_arrow", argument="rows", rows=wide_rows),
        Workload(name="query", operation="aggregate_join", argument="rows", rows=wide_rows),
    ]


def measure_lag(side: DsdbSide, chosen: Sequence[Workload], *, seconds: float, say: Callable[[str], None]) -> LagLine:
    """Run loops at the same time on a started cluster, and read what its nodes say of themselves."""
    for table in TABLES:
        begun = time.monotonic()
        side.make_table(table)
        say(f"  {table} is there after {time.monotonic() - begun:.1f} s")
    with ExitStack() as stack:
        watcher = stack.enter_context(dsdb.connect(side.url, autocommit=True))
        pools = {}
        for node, loop in zip(side.nodes, chosen):
            spec = ClientSpec(module="dsdb_cluster", address=f"dsdb://{node.address}")
            contender = Contender(label=loop.name, is_dsdb=True, specs=(spec,), servers=())
            pools[loop.name] = (stack.enter_context(ClientPool(contender)), loop)
        holders, metrics = read_leaseholders(watcher), [read_metrics(node) for node in side.nodes]
        before, began = read_moment(), time.monotonic()
        for pool, loop in pools.values():
            pool.begin(loop, seconds=seconds)
        bare_p99_ms = _sleep_lag_p99_ms(seconds)
        statements, failures = {}, {}
        for name, (pool, _) in pools.items():
            try:
                (report,) = pool.reports(seconds=seconds)
            except ClientFailed as error:
                statements[name], failures[name] = 0, str(error)
                continue
            statements[name] = len(report.latencies) // 8
            if report.failures:
                failures[name] = f"{report.failures}, the first: {report.error}"
        after, elapsed = read_moment(), time.monotonic() - began
        metrics_after = [read_metrics(node) for node in side.nodes]
        return LagLine(
            seconds=round(elapsed, 1),
            p99_ms=_by_node(side, metrics_after, LAG_P99),
            worst_ms=_by_node(side, metrics_after, LAG_WORST),
            bare_p99_ms=bare_p99_ms,
            lease_moves=_lease_moves(holders, read_leaseholders(watcher), metrics, metrics_after),
            statements=statements,
            failures=failures,
            elsewhere=elsewhere(before, after, elapsed),
        )


def _sleep_lag_p99_ms(seconds: float) -> float:
    """Sleep in steps as the nodes' own measurement does, and give how late this process was woken: it has nothing else to do."""
    lags = []
    end = time.monotonic() + seconds
    while (asked := time.monotonic() + SAMPLE_S) < end:
        time.sleep(SAMPLE_S)
        lags.append(time.monotonic() - asked)
    return round(quantile(sorted(lags), 0.99) * 1e3, 2)


def _by_node(side: DsdbSide, metrics: list[dict[str, float]], name: str) -> dict[str, float]:
    return {f"node {node.node_id}": round(found[name] * 1e3, 2) for node, found in zip(side.nodes, metrics)}


def _lease_moves(
    before: dict[int, int], after: dict[int, int], metrics: list[dict[str, float]], metrics_after: list[dict[str, float]]
) -> int:
    """Count moves.  Nodes count begins and ends, also of moves there and back; a move has one of each, a new range one begin."""
    changes = sum(found[LEASE_CHANGES] for found in metrics_after) - sum(found[LEASE_CHANGES] for found in metrics)
    moved = sum(after.get(range_id, holder) != holder for range_id, holder in before.items())
    return max(moved, math.ceil((changes - len(after.keys() - before.keys())) / 2))


def read_metrics(node: NodeProcess) -> dict[str, float]:
    """Read a node's metrics: name → value."""
    with urllib.request.urlopen(f"http://{node.http_address}/metrics", timeout=30.0) as answer:
        text = answer.read().decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def misses(line: LagLine) -> list[str]:
    """Say which goals were missed."""
    missed = [
        f"{node}: p99 lag {p99:.1f} ms, goal below {LAG_P99_MS_MAX:.0f} ms" for node, p99 in line.p99_ms.items() if p99 >= LAG_P99_MS_MAX
    ]
    if line.lease_moves:
        missed.append(f"{line.lease_moves} leases moved, goal 0")
    missed += [f"{name}: failed {text}" for name, text in line.failures.items()]
    missed += [f"{name}: no statement ended" for name, count in line.statements.items() if not count and name not in line.failures]
    return missed


@click.command()
@click.option("--seconds", type=click.FloatRange(min=1), default=WINDOW_S, show_default=True, help="How long the loops run.")
@click.option("--loop", "names", type=click.Choice(LOOPS), multiple=True, help="Run this loop alone, to find who is to blame; repeatable.")
@click.option("--scale", type=click.FloatRange(min=0.001, max=10), default=1.0, show_default=True, help="Share of the usual rows.")
@click.option(
    "--directory", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path(tempfile.gettempdir()), show_default=True
)
def lag(seconds: float, names: tuple[str, ...], scale: float, directory: Path) -> None:
    """Measure event-loop lag under an insert, a fetch and a query loop."""
    end_servers_on_sigterm()
    wide_rows = max(3 * BULK_ROWS, int(WIDE_ROWS * scale) // BULK_ROWS * BULK_ROWS)
    chosen = [loop for loop in loops(wide_rows) if not names or loop.name in names]
    results = ResultFile()
    scratch = Path(tempfile.mkdtemp(prefix="dsdb-lag-", dir=directory.resolve()))
    side = DsdbSide(scratch, kv_rows=KV_ROWS, wide_rows=wide_rows, http=True)
    try:
        side.start()
        results.write(machine_line(filesystem_of(scratch), {"dsdb": dsdb.__version__}, f"wide {wide_rows:,} rows", results.begun))
        line = measure_lag(side, chosen, seconds=seconds, say=click.echo)
    except (RuntimeError, TimeoutError) as error:
        raise click.ClickException(str(error)) from error  # the nodes did not start
    finally:
        side.close()
        shutil.rmtree(scratch, ignore_errors=True)
    results.write(line)
    _say(line, seconds)
    click.echo(f"results: {results.path}")
    missed = misses(line)
    for text in missed:
        click.echo(f"missed: {text}")
    sys.exit(1 if missed else 0)


def _say(line: LagLine, seconds: float) -> None:
    for node, p99 in line.p99_ms.items():
        click.echo(f"  {node}: p99 lag {p99:.1f} ms, worst since its start {line.worst_ms[node]:.1f} ms")
    click.echo(f"  a process that only sleeps: p99 lag {line.bare_p99_ms:.1f} ms")
    done = ", ".join(f"{count} × {name}" for name, count in line.statements.items())
    click.echo(f"  {done} in {line.seconds:.0f} s; {line.lease_moves} leases moved")
    other = line.elsewhere
    click.echo(
        f"  meanwhile: load {other.load_1m:.1f}; others used {other.cores:.2f} cores ({other.names}); the host took {other.steal_cores:.2f}"
    )
    if seconds < WINDOW_S:
        click.echo(f"  the nodes' quantiles are over {WINDOW_S:.0f} s: they have samples from before the {seconds:.0f} s of load")


if __name__ == "__main__":
    lag()
