"""`python -m bench.join`: what does a loaded cluster notice of a fourth node that joins?

Three node processes with a table of `--gigabytes`; clients that read and update single rows all over it.

    capacity   as fast as they can, for a moment
    before     at half of that, for SLICE_S
    meanwhile  the same, from when the fourth node serves until it has its part of the replicas
    after      the same, for SLICE_S

Goals: at the end no store's number of replicas is more than SPREAD_PART off the mean; the pace is kept; p99 meanwhile is at most
P99_TIMES of that before; no statement fails; what a store takes of Raft snapshots keeps within `snapshot_bytes_per_s`.  The exit code is
1 if one is missed.

Latencies count from when a statement was due.  The nodes and the clients share the machine: the fourth node's work is taken from the
others' processors, which it would bring along elsewhere.
"""

import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import click
import msgspec

import dsdb
from bench.lag import LAG_P99, LEASE_CHANGES, read_metrics
from bench.machine import Moment, elsewhere, read_moment
from bench.paced import Mix, PacedClients, Tally, random_values
from bench.sides.port import end_servers_on_sigterm
from dsdb.cli.processes import NodeProcess, ProcessCluster
from dsdb.driver.connection import Connection
from dsdb.sql.cluster_settings import CLUSTER_SETTINGS

SPREAD_PART = 0.1
P99_TIMES = 2.0
KEPT_PART = 0.98
SLICE_S = 20.0
CAPACITY_S = 8.0
QUIET_S = 5.0
"""Replicas that did not move for so long are where they shall be."""
LOOK_S = 1.0
ROW_BYTES = 8192
ROWS_AT_ONCE = 64
LOADERS = 4
BURST_TIMES = 1.25
"""What a second may show above the rate: it begins and ends in the middle of chunks."""
SENT, TAKEN = "dsdb_store_snapshot_bytes_sent", "dsdb_store_snapshot_bytes_received"
TABLE = "loaded"


class Journey(msgspec.Struct, frozen=True, kw_only=True):
    """How the fourth node came to its part."""

    joined_s: float
    """From its start until it served."""
    spread_s: float | None
    """From then until the replicas were spread; None: never."""
    taken_bytes: float
    taken_per_s_max: float
    """Of Raft snapshots by the fourth node, in all, and in the busiest second."""
    sent_bytes: float
    replicas: dict[int, int]
    """By store, at the end."""
    leases: dict[int, int]


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """Where a phase ends and the next begins."""

    at: float
    machine: Moment

    @classmethod
    def now(cls) -> "Mark":
        """Look at the clock and at the machine."""
        return cls(at=time.monotonic(), machine=read_moment())


def insert_rows(url: str, first: int, last: int) -> None:
    """Fill a part of the table."""
    values = random_values(ROW_BYTES, 61)
    with dsdb.connect(url, autocommit=True) as connection:
        for start in range(first, last, ROWS_AT_ONCE):
            keys = range(start, min(start + ROWS_AT_ONCE, last))
            connection.execute(f"INSERT INTO {TABLE} VALUES " + ",".join(f"({key},'{values[key % len(values)]}')" for key in keys))


def load(cluster: ProcessCluster, rows: int) -> None:
    """Fill the table from several processes.  Raises RuntimeError."""
    context = multiprocessing.get_context("spawn")
    processes = []
    for number in range(LOADERS):
        url = f"dsdb://{cluster.nodes[number % len(cluster.nodes)].address}"
        span = (rows * number // LOADERS, rows * (number + 1) // LOADERS)
        processes.append(context.Process(target=insert_rows, args=(url, *span), daemon=True))
        processes[-1].start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError("the rows were not all inserted")


def read_stores(connection: Connection) -> tuple[dict[int, int], dict[int, int]]:
    """Give the replicas and the leases of each store."""
    found = connection.execute("SELECT store_id, replicas, leases FROM system.stores ORDER BY store_id").fetchall()
    return {row[0]: row[1] for row in found}, {row[0]: row[2] for row in found}


def is_spread(replicas: dict[int, int], stores: int) -> bool:
    """Say whether all stores have about as many replicas."""
    mean = sum(replicas.values()) / stores
    return len(replicas) == stores and all(abs(count - mean) <= SPREAD_PART * mean for count in replicas.values())


def wait_still(connection: Connection, patience_s: float) -> None:
    """Wait until replicas and leases have stayed where they are for QUIET_S.  Raises TimeoutError."""
    last, since, until = read_stores(connection), time.monotonic(), time.monotonic() + patience_s
    while time.monotonic() < since + QUIET_S:
        if time.monotonic() > until:
            raise TimeoutError(f"replicas and leases still move after {patience_s:.0f} s: {last}")
        time.sleep(LOOK_S)
        found = read_stores(connection)
        if found != last:
            last, since = found, time.monotonic()


def join(cluster: ProcessCluster, directory: Path, connection: Connection, patience_s: float) -> tuple[Journey, Mark]:
    """Start the fourth node and wait until the replicas are spread; give what came of it, and when it served."""
    sent_before = sum(read_metrics(node)[SENT] for node in cluster.nodes)
    started = time.monotonic()
    node = NodeProcess(directory / "node4", join=[cluster.nodes[0].address], http=True)
    cluster.nodes.append(node)
    node.start()
    mark = Mark.now()
    served = mark.at
    replicas, leases = read_stores(connection)
    spread_at, still_since, looked, taken, busiest = None, served, served, 0.0, 0.0
    while time.monotonic() < served + patience_s:
        time.sleep(LOOK_S)
        now, total = time.monotonic(), read_metrics(node)[TAKEN]
        busiest = max(busiest, (total - taken) / (now - looked))
        taken, looked = total, now
        found, leases = read_stores(connection)
        if found != replicas:
            replicas, still_since = found, now
        if not is_spread(replicas, len(cluster.nodes)):
            spread_at = None
        elif spread_at is None:
            spread_at = now
        if spread_at is not None and now - still_since >= QUIET_S:
            break
    journey = Journey(
        joined_s=round(served - started, 1),
        spread_s=None if spread_at is None else round(spread_at - served, 1),
        taken_bytes=taken,
        taken_per_s_max=busiest,
        sent_bytes=sum(read_metrics(node)[SENT] for node in cluster.nodes) - sent_before,
        replicas=replicas,
        leases=leases,
    )
    return journey, mark


def phase(name: str, tally: Tally, since: Mark, until: Mark, rate: float, nodes: list[int]) -> tuple[float, float]:
    """Print a phase; give the part of the pace that was kept, and p99 in ms."""
    seconds = until.at - since.at
    done = sum(ended < until.at for due, latency in tally.statements() if since.at <= due and (ended := due + latency))
    p50, p99 = tally.latency_ms(0.5, since.at, until.at), tally.latency_ms(0.99, since.at, until.at)
    used = (until.machine.tree_cpu_s(nodes) - since.machine.tree_cpu_s(nodes)) / seconds
    other = elsewhere(since.machine, until.machine, seconds)
    click.echo(
        f"  {name}: {seconds:.0f} s, {done / seconds:,.0f}/s of {rate:,.0f}/s, p50 {p50} ms, p99 {p99} ms; "
        f"the nodes used {used:.2f} cores, others {other.cores:.2f}, the host took {other.steal_cores:.2f}"
    )
    return done / max(rate * seconds, 1), p99


@click.command()
@click.option("--gigabytes", type=click.FloatRange(min=0.01, max=64), default=2.0, show_default=True, help="Of rows, before replication.")
@click.option("--clients", type=click.IntRange(min=1), default=12, show_default=True)
@click.option("--pace", type=click.FloatRange(min=0.05, max=1), default=0.5, show_default=True, help="Part of the capacity.")
@click.option("--writes", type=click.FloatRange(min=0, max=1), default=0.25, show_default=True, help="Part of statements that update.")
@click.option("--range-mib", type=click.IntRange(min=1), default=64, show_default=True, help="Size at which ranges are split.")
@click.option("--snapshot-mib", type=click.IntRange(min=1), default=None, help="snapshot_bytes_per_s; default: dsdb's.")
@click.option("--patience", type=click.FloatRange(min=10), default=900.0, show_default=True, help="Seconds until the join is given up.")
@click.option(
    "--directory", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path(tempfile.gettempdir()), show_default=True
)
def main(
    gigabytes: float, clients: int, pace: float, writes: float, range_mib: int, snapshot_mib: int | None, patience: float, directory: Path
) -> None:
    """Measure what a paced load notices of a node that joins."""
    end_servers_on_sigterm()
    scratch = Path(tempfile.mkdtemp(prefix="dsdb-join-", dir=directory.resolve()))
    rows = int(gigabytes * 1e9 / ROW_BYTES)
    try:
        with ProcessCluster(scratch, http=True) as cluster, dsdb.connect(cluster.url, autocommit=True) as connection:
            cluster.wait_replicated(3)
            connection.execute(f"CREATE TABLE {TABLE} (id BIGINT PRIMARY KEY, v TEXT)")
            connection.execute(f"ALTER TABLE {TABLE} CONFIGURE RANGES (max_bytes = {range_mib << 20}, load_requests = 0, load_bytes = 0)")
            if snapshot_mib is not None:
                connection.execute(f"SET CLUSTER SETTING snapshot_bytes_per_s = '{snapshot_mib}MiB'")
            begun = time.monotonic()
            load(cluster, rows)
            seconds = time.monotonic() - begun
            wait_still(connection, patience)
            click.echo(f"  {rows:,} rows of {ROW_BYTES} bytes in {seconds:.0f} s, {rows * ROW_BYTES / seconds / 1e6:.1f} MB/s")
            mix = Mix(table=TABLE, rows=rows, value_bytes=ROW_BYTES, write_part=writes)
            missed = measure(cluster, scratch, connection, mix, clients, pace, patience)
    except (RuntimeError, TimeoutError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for text in missed:
        click.echo(f"missed: {text}")
    sys.exit(1 if missed else 0)


def measure(
    cluster: ProcessCluster, scratch: Path, connection: Connection, mix: Mix, clients: int, pace: float, patience_s: float
) -> list[str]:
    """Run the phases; give what was missed."""
    changes_before = sum(read_metrics(node)[LEASE_CHANGES] for node in cluster.nodes)
    with PacedClients([node.address for node in cluster.nodes], clients, mix) as pool:
        pool.run(2.0)
        found = pool.run(CAPACITY_S)
        capacity = len(found.statements()) / CAPACITY_S
        click.echo(f"  capacity {capacity:,.0f}/s, p50 {found.latency_ms(0.5)} ms, p99 {found.latency_ms(0.99)} ms")
        rate = capacity * pace
        pool.begin(rate)
        time.sleep(1.0)
        paced = Mark.now()
        time.sleep(SLICE_S)
        joining = Mark.now()
        journey, served = join(cluster, scratch, connection, patience_s)
        ended = Mark.now()
        lags = {f"node {node.node_id}": round(read_metrics(node)[LAG_P99] * 1e3, 1) for node in cluster.nodes}
        time.sleep(SLICE_S)
        last = Mark.now()
        tally = pool.end()
    moved = sum(read_metrics(node)[LEASE_CHANGES] for node in cluster.nodes) - changes_before
    pids = [node.pid for node in cluster.nodes]
    _, p99_before = phase("before", tally, paced, joining, rate, pids)
    kept, p99_meanwhile = phase("meanwhile", tally, served, ended, rate, pids)
    phase("after", tally, ended, last, rate, pids)
    limit = setting(connection)
    click.echo(
        f"  the node served after {journey.joined_s} s; replicas spread {journey.spread_s} s later: {journey.replicas}, "
        f"leases {journey.leases}\n"
        f"  it took {journey.taken_bytes / 1e6:,.0f} MB, {journey.taken_per_s_max / 1e6:.1f} MB/s in the busiest second "
        f"(limit {limit / 1e6:.1f}); all nodes sent {journey.sent_bytes / 1e6:,.0f} MB\n"
        f"  p99 lag of the loops in ms {lags}; {moved:.0f} begins and ends of leases; {len(tally.failures)} statements failed; "
        f"load {os.getloadavg()[0]:.1f}"
    )
    for failure in tally.failures[:5]:
        click.echo(f"    {failure.ended - served.at:.1f} s: {failure.what}")
    missed = []
    if journey.spread_s is None:
        missed.append(f"replicas are not within {SPREAD_PART:.0%} of their mean: {journey.replicas}")
    if kept < KEPT_PART:
        missed.append(f"{kept:.1%} of the pace was kept")
    if p99_meanwhile > P99_TIMES * p99_before:
        missed.append(f"p99 {p99_meanwhile} ms is {p99_meanwhile / p99_before:.1f} times that before, {p99_before} ms")
    if journey.taken_per_s_max > BURST_TIMES * limit:
        missed.append(f"{journey.taken_per_s_max / 1e6:.1f} MB/s of Raft snapshots")
    if tally.failures:
        missed.append(f"{len(tally.failures)} statements failed")
    return missed


def setting(connection: Connection) -> float:
    """Give `snapshot_bytes_per_s`."""
    row = connection.execute("SHOW CLUSTER SETTING snapshot_bytes_per_s").fetchone()
    assert row is not None
    return CLUSTER_SETTINGS["snapshot_bytes_per_s"].read(str(row[0]))


if __name__ == "__main__":
    main()
