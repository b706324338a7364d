"""`python -m bench.folding`: what folding costs those who write meanwhile, and what it gains.

Three node processes, three replicas.  A table like TPC-H's lineitem is filled with folding off; then clients read and write single rows of
another table in slices, by turns without folding and while the first table is folded, as long as there is something to fold.

Given are the median rate with folding ÷ without (goal RATE_RATIO_MIN), what a replica takes on disk ÷ the size of its rows as Arrow when
all is folded (goal DISK_RATIO_MAX), the nodes' memory, and the lag of their loops over the last slices.  The exit code is 1 if a goal is
missed.
"""

import re
import shutil
import statistics
import sys
import tempfile
import time
from decimal import Decimal
from pathlib import Path

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import dsdb
from bench.clients import ClientPool
from bench.lag import LAG_P99, LAG_WORST, read_metrics
from bench.machine import elsewhere, memory_mib, read_moment
from bench.rows import BULK_ROWS
from bench.sides.dsdb_cluster import NODES, DsdbSide
from bench.sides.port import ClientSpec, Contender, end_servers_on_sigterm
from bench.workloads import Workload
from dsdb.driver.connection import Connection
from dsdb.sql.cluster_settings import CLUSTER_SETTINGS

RATE_RATIO_MIN = 0.7
FOLD_PERCENT = int(CLUSTER_SETTINGS["fold_percent"].default)
DISK_RATIO_MAX = 0.35
FOLDED = "dsdb_store_versions_folded"
SETTLE_S = 6.0
"""After the setting was changed: nodes read it every three seconds, and what is under way ends."""
FOLD_S_MAX = 600.0
ROWS_AT_ONCE = 20_000
FILL_ATTEMPTS = 5

TABLE = """
CREATE TABLE lineitem (
  l_orderkey bigint NOT NULL, l_partkey bigint, l_suppkey bigint, l_linenumber integer NOT NULL, l_quantity decimal(15,2),
  l_extendedprice decimal(15,2), l_discount decimal(15,2), l_tax decimal(15,2), l_returnflag text, l_linestatus text, l_shipdate date,
  l_commitdate date, l_receiptdate date, l_shipinstruct text, l_shipmode text, l_comment text, PRIMARY KEY (l_orderkey, l_linenumber))
"""
WORDS = """carefully final deposits sleep furiously quickly ironic requests above the blithely even accounts pending theodolites haggle
slyly regular packages express foxes nag among bold ideas unusual pinto beans cajole special instructions boost"""


def lineitem(first: int, count: int) -> pa.Table:
    """Make rows as TPC-H's generator does, about: four lines an order, comments of some 27 characters."""
    chance = np.random.default_rng(first)
    vocabulary = np.array(WORDS.split())
    lines = np.arange(first, first + count)
    shipped = chance.integers(8036, 10_561, count)

    def choice(*texts: str) -> pa.Array:
        return pa.array(np.array(texts)[chance.integers(0, len(texts), count)])

    def cents(low: int, high: int) -> pa.Array:
        whole = pa.array(chance.integers(low, high, count)).cast(pa.decimal128(19, 0))
        return pc.multiply(whole, pa.scalar(Decimal("0.01"))).cast(pa.decimal128(15, 2))

    comments = [" ".join(vocabulary[words]) for words in chance.integers(0, len(vocabulary), (count, 4))]
    columns = [
        pa.array(lines // 4 * 4 + 1),
        pa.array(chance.integers(1, 200_000, count)),
        pa.array(chance.integers(1, 10_000, count)),
        pa.array((lines % 4 + 1).astype(np.int32)),
        cents(100, 5100),
        cents(90_000, 10_495_000),
        cents(0, 11),
        cents(0, 9),
        choice("A", "N", "R"),
        choice("F", "O"),
        *(pa.array((shipped + chance.integers(0, 60, count)).astype(np.int32)).cast(pa.date32()) for _ in range(3)),
        choice("DELIVER IN PERSON", "COLLECT COD", "NONE", "TAKE BACK RETURN"),
        choice("AIR", "FOB", "MAIL", "RAIL", "REG AIR", "SHIP", "TRUCK"),
        pa.array(comments),
    ]
    return pa.table(dict(zip(dict.fromkeys(re.findall(r"\bl_\w+", TABLE)), columns, strict=True)))


class Slices:
    """Rates of slices without folding, and of those in which each node folded something."""

    def __init__(self, side: DsdbSide, connection: Connection, seconds: float) -> None:
        self._side = side
        self._connection = connection
        self._seconds = seconds
        self.rates: dict[bool, list[float]] = {False: [], True: []}
        self._key = 0

    def folded(self) -> float:
        """Count the versions that all nodes have folded."""
        return sum(read_metrics(node)[FOLDED] for node in self._side.nodes)

    def run(self, pool: ClientPool, workload: Workload, *, folds: bool) -> bool:
        """Run one slice; say whether it was one of what was asked for."""
        self._connection.execute(f"SET CLUSTER SETTING fold_percent = {FOLD_PERCENT if folds else 0}")
        time.sleep(SETTLE_S)
        before = self.folded()
        reports = pool.run(workload, seconds=self._seconds)
        folded = self.folded() - before
        rate = sum(len(report.latencies) / 8 / report.elapsed_s for report in reports)
        if folds == (folded > 0):
            self.rates[folds].append(rate)
        click.echo(f"  {rate:,.0f}/s, {folded / self._seconds:,.0f} versions a second folded")
        return folds == (folded > 0)


def fill(connection: Connection, part: pa.Table) -> None:
    """Append rows; on a busy machine it may take several attempts."""
    for attempt in range(FILL_ATTEMPTS):
        try:
            connection.cursor().adbc_ingest("lineitem", part, mode="append")
            return
        except dsdb.SerializationFailure:
            if attempt == FILL_ATTEMPTS - 1:
                raise


def wait_folded(slices: Slices) -> None:
    """Wait until nothing is folded any more."""
    deadline, last = time.monotonic() + FOLD_S_MAX, -1.0
    while time.monotonic() < deadline and (now := slices.folded()) != last:
        last = now
        time.sleep(40.0)  # longer than a range must rest


@click.command()
@click.option("--rows", type=click.IntRange(min=BULK_ROWS), default=600_000, show_default=True, help="Of lineitem.")
@click.option("--clients", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=1), default=6.0, show_default=True, help="Of a slice.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option(
    "--directory", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path(tempfile.gettempdir()), show_default=True
)
def folding(rows: int, clients: int, seconds: float, rounds: int, directory: Path) -> None:
    """Measure what folding costs and gains."""
    end_servers_on_sigterm()
    scratch = Path(tempfile.mkdtemp(prefix="dsdb-folding-", dir=directory.resolve()))
    side = DsdbSide(scratch, kv_rows=BULK_ROWS, wide_rows=0, http=True)
    try:
        side.start()
        side.make_table("ins")
        with dsdb.connect(side.url, autocommit=True) as connection:
            missed = measure(side, connection, rows, clients, seconds, rounds)
    except (RuntimeError, TimeoutError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        side.close()
        shutil.rmtree(scratch, ignore_errors=True)
    for goal in missed:
        click.echo(f"missed: {goal}")
    sys.exit(1 if missed else 0)


def measure(side: DsdbSide, connection: Connection, rows: int, clients: int, seconds: float, rounds: int) -> list[str]:
    """Fill, run slices, wait; give the goals that were missed."""
    connection.execute("SET CLUSTER SETTING fold_percent = 0")
    connection.execute("SET CLUSTER SETTING version_age = '10s'")
    connection.execute(TABLE)
    time.sleep(SETTLE_S)
    arrow_bytes, begun = 0, time.monotonic()
    for first in range(0, rows, ROWS_AT_ONCE):
        part = lineitem(first, min(ROWS_AT_ONCE, rows - first))
        arrow_bytes += part.nbytes
        # Where there is a row already, rows come as rows, and not as blocks at once.
        connection.execute(f"INSERT INTO lineitem (l_orderkey, l_linenumber) VALUES ({(first + ROWS_AT_ONCE // 2) // 4 * 4 + 3}, 1)")
        fill(connection, part)
    click.echo(f"  {rows:,} rows, {arrow_bytes / 2**20:.0f} MiB as Arrow, in {time.monotonic() - begun:.0f} s")
    slices = Slices(side, connection, seconds)
    specs = tuple(ClientSpec(module="dsdb_cluster", address=f"dsdb://{side.nodes[number % NODES].address}") for number in range(clients))
    workload = Workload(name="insert", operation="insert", argument="counted")
    before, started = read_moment(), time.monotonic()
    with ClientPool(Contender(label="insert", is_dsdb=True, specs=specs, servers=())) as pool:
        for _ in range(rounds):
            slices.run(pool, workload, folds=False)
            if not slices.run(pool, workload, folds=True):
                break
        lags = [(read_metrics(node)[LAG_P99] * 1000, read_metrics(node)[LAG_WORST] * 1000) for node in side.nodes]
    other = elsewhere(before, read_moment(), time.monotonic() - started)
    connection.execute("SET CLUSTER SETTING fold_percent = 100")
    wait_folded(slices)
    disk = [sum(path.stat().st_size for path in Path(node.store).rglob("*.sst")) for node in side.nodes]
    (stored,) = connection.execute("SELECT sum(bytes) FROM system.ranges WHERE range_id > 1").fetchone() or (0,)
    memory = [memory_mib([node.pid])[0] for node in side.nodes]
    missed = []
    rate = statistics.median(slices.rates[True]) / statistics.median(slices.rates[False]) if all(slices.rates.values()) else 0.0
    ratio = max(disk) / arrow_bytes
    click.echo(f"  load {other.load_1m:.1f}; others used {other.cores:.2f} cores ({other.names})")
    click.echo(f"  inserts with folding ÷ without: {rate:.2f}")
    click.echo(
        f"  stored in ranges ÷ Arrow: {float(stored) / arrow_bytes:.2f}; tables of RocksDB, logs and deleted rows included: {ratio:.2f}"
    )
    click.echo(f"  memory {max(memory):.0f} MiB a node; loop lag p99 {max(lags)[0]:.1f} ms, worst {max(lag[1] for lag in lags):.1f} ms")
    if rate < RATE_RATIO_MIN:
        missed.append(f"{rate:.2f} of the rate is below {RATE_RATIO_MIN}")
    if ratio > DISK_RATIO_MAX:
        missed.append(f"{ratio:.2f} of Arrow's size is above {DISK_RATIO_MAX}")
    return missed


if __name__ == "__main__":
    folding()
