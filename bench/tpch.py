"""TPC-H beside DuckDB and PostgreSQL: `python -m bench.tpch [--sf 1] [--nodes 3] [--rounds 3] [--queries 1,5] [--peers duckdb,postgres]`.

    tpchgen-cli ─▶ Parquet ─▶ three nodes, three replicas, until all is folded ─▶ 1 % of lineitem and orders updated before each pass
                          └─▶ the same rows, updates included, read back from dsdb ─▶ DuckDB, PostgreSQL; DataFusion checks too

Every result of every pass is compared with what DuckDB gives for the very rows, all values and their order; the first pass's with
DataFusion's too.  A figure is the median of the passes, with the load of the machine beside it.
"""

import contextlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq

import dsdb
from bench.lag import read_metrics
from bench.sides.port import end_servers_on_sigterm
from bench.sides.postgres import PostgresSide
from bench.tpch_queries import TABLES, queries
from dsdb.cli.processes import ProcessCluster
from dsdb.driver.connection import Connection

FOLDED_S = 900.0
FOLDED = "dsdb_store_versions_folded"
UPDATED = {
    "lineitem": "UPDATE lineitem SET l_tax = 0.08 - l_tax WHERE l_orderkey IN ({keys})",
    "orders": "UPDATE orders SET o_shippriority = 1 - o_shippriority WHERE o_orderkey IN ({keys})",
}
UPDATED_AT_ONCE = 500
TOLERANCE = 1e-9
"""Of floating-point values, relative: sums are made in another order."""


def generated(scale: float, cache: Path) -> Path:
    """Give the directory of the data's Parquet files, made once."""
    directory = cache / f"sf{scale:g}"
    if not all((directory / f"{table}.parquet").exists() for table in TABLES):
        directory.mkdir(parents=True, exist_ok=True)
        tool = Path(sys.executable).with_name("tpchgen-cli")
        subprocess.run([tool, "parquet", "-s", f"{scale:g}", "--output-dir", directory], check=True, stdout=subprocess.DEVNULL)
    return directory


def rows_of(path: Path) -> Iterator[pa.RecordBatch]:
    """Give a file's rows with the types that tables take: plain strings."""
    for batch in pq.ParquetFile(path).iter_batches(65_536):
        plain = [pa.field(field.name, pa.string() if pa.types.is_string_view(field.type) else field.type) for field in batch.schema]
        yield batch.cast(pa.schema(plain))


class Peer:
    """Another system with the same rows.  run: gives a query's rows."""

    def __init__(self, name: str, run: Callable[[str], list[tuple[Any, ...]]]) -> None:
        self.name = name
        self.run = run


class Bench:
    """A loaded cluster, and what was measured."""

    def __init__(self, cluster: ProcessCluster, connection: Connection, scale: float) -> None:
        self.cluster = cluster
        self.connection = connection
        self.scale = scale
        self.seconds: dict[tuple[str, int], list[float]] = {}
        self.wrong: dict[int, str] = {}

    def load(self, directory: Path) -> None:
        """Load all tables, and wait until every node has folded nearly all of their rows."""
        rows, begun = 0, time.monotonic()
        for table, columns in TABLES.items():
            self.connection.execute(f"CREATE TABLE {table} ({columns})")
            batches = rows_of(directory / f"{table}.parquet")
            first = next(batches)
            reader = pa.RecordBatchReader.from_batches(first.schema, _chained(first, batches))
            with self.connection.cursor() as cursor:
                rows += cursor.adbc_ingest(table, reader, mode="append")
        seconds = time.monotonic() - begun
        click.echo(f"loaded {rows:,} rows in {seconds:.1f} s ({rows / seconds:,.0f}/s), load {os.getloadavg()[0]:.1f}")
        self.cluster.wait_replicated(len(self.cluster.nodes))

    def update(self, seed: int) -> None:
        """Change 1 % of the rows of the two largest tables, spread over all keys."""
        orders = int(1_500_000 * self.scale)
        numbers = range(seed % 100, orders, 100)
        keys = [number // 8 * 32 + number % 8 + 1 for number in numbers]
        begun = time.monotonic()
        for statement in UPDATED.values():
            for at in range(0, len(keys), UPDATED_AT_ONCE):
                self.connection.execute(statement.format(keys=", ".join(map(str, keys[at : at + UPDATED_AT_ONCE]))))
        click.echo(f"updated the rows of {len(keys):,} orders in {time.monotonic() - begun:.1f} s")

    def table(self, name: str) -> pa.Table:
        """Read a table back."""
        with self.connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {name}")
            return cursor.fetch_arrow_table()

    def run(self, query: str) -> list[tuple[Any, ...]]:
        """Give the rows of a query, read as Arrow."""
        with self.connection.cursor() as cursor:
            cursor.execute(query)
            return rows_of_table(cursor.fetch_arrow_table())

    def timed(self, who: str, number: int, run: Callable[[str], list[tuple[Any, ...]]], query: str) -> list[tuple[Any, ...]]:
        """Run a query, and keep how long it took."""
        begun = time.monotonic()
        found = run(query)
        self.seconds.setdefault((who, number), []).append(time.monotonic() - begun)
        return found

    def check(self, number: int, found: Sequence[tuple[Any, ...]], expected: Sequence[tuple[Any, ...]], oracle: str) -> None:
        """Compare a result with an oracle's, and keep the first difference."""
        difference = differ(found, expected)
        if difference is not None:
            self.wrong.setdefault(number, f"unlike {oracle}: {difference}")


def _chained(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def rows_of_table(table: pa.Table) -> list[tuple[Any, ...]]:
    """Give rows as Python values."""
    return list(zip(*(column.to_pylist() for column in table.columns))) if table.num_columns else []


def differ(found: Sequence[tuple[Any, ...]], expected: Sequence[tuple[Any, ...]]) -> str | None:
    """Say how two results differ, or give None.  All queries order their rows, but for ones that tie wholly."""
    if len(found) != len(expected):
        return f"{len(found)} rows, expected {len(expected)}"
    for at, (ours, theirs) in enumerate(zip(found, expected)):
        if len(ours) != len(theirs) or not all(map(_is_same, ours, theirs)):
            return f"row {at + 1} is {ours}, expected {theirs}"
    return None


def _is_same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, str) and isinstance(theirs, str):
        return ours.rstrip() == theirs.rstrip()
    if isinstance(ours, int | float | Decimal) and isinstance(theirs, int | float | Decimal):
        allowed = max(TOLERANCE * max(abs(float(ours)), abs(float(theirs))), _last_digit(ours), _last_digit(theirs))
        return ours == theirs or abs(float(ours) - float(theirs)) <= allowed
    return bool(ours == theirs)


def _last_digit(value: float | Decimal) -> float:
    """Give what the last digit of a quotient of decimals counts: each engine ends them elsewhere, and rounds or cuts."""
    exponent = value.as_tuple().exponent if isinstance(value, Decimal) else 0
    return 10.0**exponent if isinstance(exponent, int) and exponent <= -6 else 0.0


@contextlib.contextmanager
def duckdb_with(tables: dict[str, pa.Table], directory: Path) -> Iterator[Peer]:
    """Put the rows into a database file of DuckDB's own."""
    import duckdb  # noqa: PLC0415, RUF100

    with duckdb.connect(str(directory / "tpch.duckdb")) as connection:
        for name, table in tables.items():
            connection.register("given", table)
            connection.execute(f"CREATE OR REPLACE TABLE {name} AS SELECT * FROM given")
            connection.unregister("given")
        connection.execute("CHECKPOINT")
        yield Peer("duckdb", lambda query: rows_of_table(connection.sql(query).to_arrow_table()))


@contextlib.contextmanager
def postgres_with(tables: dict[str, pa.Table], directory: Path) -> Iterator[Peer]:
    """Put the rows into a PostgreSQL of its own, with the same keys."""
    side = PostgresSide(directory, kv_rows=1, wide_rows=1)
    side.start()
    try:
        with side.connect() as connection, connection.cursor() as cursor:
            for name, columns in TABLES.items():
                cursor.execute(f"DROP TABLE IF EXISTS {name}; CREATE TABLE {name} ({columns})".encode())
                with cursor.copy(f"COPY {name} FROM STDIN".encode()) as copy:
                    for batch in tables[name].to_batches():
                        for row in zip(*(column.to_pylist() for column in batch.columns)):
                            copy.write_row(row)
            cursor.execute("VACUUM ANALYZE")
            yield Peer("postgres", lambda query: cursor.execute(query.encode()).fetchall())
    finally:
        side.close()


def datafusion_with(tables: dict[str, pa.Table]) -> Peer:
    """Give the rows to DataFusion, as an oracle."""
    import datafusion  # noqa: PLC0415, RUF100

    context = datafusion.SessionContext()
    for name, table in tables.items():
        context.register_record_batches(name, [table.to_batches()])
    return Peer("datafusion", lambda query: rows_of_table(context.sql(query).to_arrow_table()))


def measure(bench: Bench, wanted: Sequence[int], *, rounds: int, peers: Sequence[str], directory: Path, updates: bool) -> None:
    """Run passes: update, dsdb, then each peer over the same rows."""
    texts = queries(bench.scale)
    for turn in range(rounds):
        if updates:
            bench.update(turn)
        found: dict[int, list[tuple[Any, ...]]] = {}
        for number in wanted:
            try:
                found[number] = bench.timed("dsdb", number, bench.run, texts[number])
            except dsdb.Error as error:
                bench.wrong.setdefault(number, str(error))
            click.echo(f"  pass {turn + 1}, query {number}: {bench.seconds.get(('dsdb', number), [0.0])[-1]:.3f} s", err=True)
        tables = {name: bench.table(name) for name in TABLES}
        with duckdb_with(tables, directory) as duckdb:
            for number in wanted:
                expected = bench.timed("duckdb", number, duckdb.run, texts[number])
                if number in found:
                    bench.check(number, found[number], expected, "duckdb")
        if turn == 0:
            datafusion = datafusion_with(tables)
            for number in wanted:
                if number in found:
                    bench.check(number, found[number], datafusion.run(texts[number]), "datafusion")
            if "postgres" in peers:
                with postgres_with(tables, directory) as postgres:
                    for number in wanted:
                        bench.timed("postgres", number, postgres.run, texts[number])


def report(bench: Bench, wanted: Sequence[int], peers: Sequence[str]) -> None:
    """Print the figures."""

    def median(who: str, number: int) -> float:
        return statistics.median(bench.seconds.get((who, number), [float("nan")]))

    others = ["duckdb", *(["postgres"] if "postgres" in peers else [])]
    click.echo(f"query {'dsdb s':>10} " + " ".join(f"{peer + ' s':>12} {'ratio':>6}" for peer in others))
    sums = dict.fromkeys(["dsdb", *others], 0.0)
    for number in wanted:
        ours = median("dsdb", number)
        sums["dsdb"] += ours
        line = f"{number:5} {ours:10.3f} "
        for peer in others:
            theirs = median(peer, number)
            sums[peer] += theirs
            line += f"{theirs:12.3f} {ours / theirs:6.2f} "
        click.echo(line + ("  " + bench.wrong[number] if number in bench.wrong else "  right"))
    line = " ".join(f"{sums[peer]:12.3f} {sums['dsdb'] / sums[peer]:6.2f}" for peer in others)
    click.echo(f"  sum {sums['dsdb']:10.3f} {line}  load {os.getloadavg()[0]:.1f}")
    click.echo(f"{len(wanted) - len(bench.wrong)} of {len(wanted)} right")


def wait_folded(cluster: ProcessCluster) -> None:
    """Wait until folding stands still on all nodes: for some seconds nothing more was folded."""
    until, before, still = time.monotonic() + FOLDED_S, -1.0, 0
    while still < 3 and time.monotonic() < until:
        now = sum(read_metrics(node).get(FOLDED, 0) for node in cluster.nodes)
        still, before = (still + 1 if now == before else 0), now
        time.sleep(2.0)


@click.command()
@click.option("--sf", "scale", default=1.0, show_default=True, help="Scale factor: 1 is 8.7 million rows.")
@click.option("--nodes", default=3, show_default=True)
@click.option("--rounds", default=3, show_default=True, help="Passes over all queries.")
@click.option("--queries", "chosen", default="", help="Numbers of queries, separated by commas; all of them if left out.")
@click.option("--peers", default="duckdb", show_default=True, help="duckdb (always), postgres.")
@click.option("--updates/--no-updates", default=True, help="Change 1 % of the rows before each pass.")
@click.option("--cache", type=click.Path(path_type=Path), default=Path.home() / ".cache" / "dsdb-tpch", help="Where data is kept.")
def main(scale: float, nodes: int, rounds: int, chosen: str, peers: str, updates: bool, cache: Path) -> None:
    """Measure TPC-H."""
    end_servers_on_sigterm()
    wanted = [int(number) for number in chosen.split(",")] if chosen else list(range(1, 23))
    data = generated(scale, cache)
    directory = Path(tempfile.mkdtemp(prefix="dsdb-tpch-"))
    try:
        with (
            ProcessCluster(directory / "dsdb", nodes=nodes, http=True) as cluster,
            dsdb.connect(cluster.url, autocommit=True) as connection,
        ):
            cluster.wait_replicated(nodes)
            bench = Bench(cluster, connection, scale)
            bench.load(data)
            wait_folded(cluster)
            measure(bench, wanted, rounds=rounds, peers=peers.split(","), directory=directory, updates=updates)
            report(bench, wanted, peers.split(","))
            if bench.wrong:
                raise click.ClickException(f"{len(bench.wrong)} queries are wrong")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
