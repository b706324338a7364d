"""`python -m bench.ingest`: how many rows a second get into a table, durable on three nodes, and what that costs whom.

    tpchgen-cli's lineitem (or rows like it) ─▶ Parquet or Arrow files ─▶ a client process for each ingest ─▶ one node of three
                                                                          └▶ DuckDB, PostgreSQL (COPY), one copy each

Each ingest goes into a new table and is one transaction.  The client is a process of its own that was started and connected before:
the time is that of the ingest, with its commit.  Of a peer the same: with DuckDB's checkpoint, PostgreSQL's commit.

With --memory-limit the set must be three times that, and no node nor the client may have needed more at any time; exit code 1 if one did.
Goal: 500,000 rows a second.
"""

import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import dsdb
from bench.columns import TABLE, lines
from bench.ingest_clients import CLIENTS, Done, Given
from bench.lag import LAG_P99, LAG_WORST, WINDOW_S, read_metrics
from bench.machine import elsewhere, filesystem_of, peak_mib, read_moment
from bench.sides.port import SideMissing, end_servers_on_sigterm
from bench.sides.postgres import PostgresSide
from dsdb.cli.processes import ProcessCluster
from dsdb.driver.connection import Connection

GOAL = 500_000.0
PEERS = ("duckdb", "postgres")
FILE_ROWS = 1 << 20
GROUP_ROWS = 1 << 17
LIMITED_TIMES = 3
SCALE_ROWS = 6_001_215
"""Of lineitem at scale factor 1."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """What is ingested."""

    files: tuple[str, ...]
    rows: int
    arrow_bytes: int
    made_by: str


def make_source(directory: Path, *, rows: int, kind: str, shuffled: bool) -> Source:
    """Write files of rows."""
    made_by, batches = _generated(directory, rows)
    if shuffled:
        whole = pa.Table.from_batches(batches)
        batches = iter(whole.take(pa.array(np.random.default_rng(3).permutation(len(whole)))).to_batches(GROUP_ROWS))
    files: list[str] = []
    done = size = 0
    waiting: list[pa.RecordBatch] = []

    def write() -> None:
        path = directory / f"part-{len(files):04}.{kind}"
        table = pa.Table.from_batches(waiting).combine_chunks()
        if kind == "parquet":
            pq.write_table(table, path, row_group_size=GROUP_ROWS)
        else:
            with pa.ipc.new_file(str(path), table.schema) as file:
                file.write_table(table, GROUP_ROWS)
        files.append(str(path))
        waiting.clear()

    for batch in batches:
        part = batch.slice(0, rows - done)
        done += part.num_rows
        size += part.nbytes
        waiting.append(part)
        if sum(found.num_rows for found in waiting) >= FILE_ROWS:
            write()
        if done == rows:
            break
    if waiting:
        write()
    return Source(files=tuple(files), rows=done, arrow_bytes=size, made_by=made_by)


def _generated(directory: Path, rows: int) -> tuple[str, Iterator[pa.RecordBatch]]:
    program = shutil.which("tpchgen-cli") or shutil.which("tpchgen-cli", path=str(Path(sys.executable).parent))
    if program is None:
        return "bench.columns (tpchgen-cli is not installed)", iter(lines(rows).to_batches(GROUP_ROWS))
    made = directory / "tpch"
    scale = max(0.01, 1.02 * rows / SCALE_ROWS)
    subprocess.run([program, "parquet", "-s", str(scale), "--tables=lineitem", f"--output-dir={made}"], check=True, capture_output=True)
    return "tpchgen-cli", _renamed(made / "lineitem.parquet")


def _renamed(path: Path) -> Iterator[pa.RecordBatch]:
    names = lines(1).schema.names
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(GROUP_ROWS):
            plain = [array.cast(pa.string()) if pa.types.is_string_view(array.type) else array for array in batch.columns]
            order, part, supplier, number, *rest = plain
            yield pa.RecordBatch.from_arrays([order, number, part, supplier, *rest], names=names)
    path.unlink()


class Bench:
    """What ingests a source, and says what it cost."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.rates: dict[str, list[float]] = {}

    def ingest(self, label: str, given: Given, roots: dict[str, int]) -> Done:
        """Ingest all files once, by a process of its own.  roots: server processes, by what is said of them."""
        rows = self.source.rows
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            pool.submit(os.getpid).result()
            before, begun = read_moment(), time.monotonic()
            done = pool.submit(CLIENTS[given.client], given).result()
            after, elapsed = read_moment(), time.monotonic() - begun
        if done.rows != rows:
            raise click.ClickException(f"{label}: {done.rows} rows of {rows} were ingested")
        rate = rows / done.seconds
        self.rates.setdefault(label, []).append(rate)
        used = {name: after.tree_cpu_s([pid]) - before.tree_cpu_s([pid]) for name, pid in roots.items()}
        costs = ", ".join(f"{name} {seconds / rows * 1e6:.2f}" for name, seconds in [*used.items(), ("client", done.cpu_s)])
        other = elsewhere(before, after, elapsed)
        click.echo(
            f"  {label:24} {rate:9,.0f} rows/s   µs of CPU a row: {costs}   load {other.load_1m:.1f}, others {other.cores:.2f} cores"
        )
        return done


def ingest_dsdb(bench: Bench, directory: Path, *, nodes: int, rounds: int, limit_mib: int | None) -> list[str]:
    """Ingest into clusters of processes; say what was missed."""
    rows, missed, worst_client = bench.source.rows, list[str](), 0.0
    with (
        ProcessCluster(directory / "dsdb", nodes=nodes, http=True) as cluster,
        dsdb.connect(cluster.url, autocommit=True) as connection,
    ):
        cluster.wait_replicated(nodes)
        idle = [_directory_bytes(node.store) for node in cluster.nodes]
        for number in range(rounds):
            table = f"line{number}"
            connection.execute(TABLE.replace("TABLE line", f"TABLE {table}"))
            cluster.wait_replicated(nodes)
            names = {1: "gateway"} | {node.node_id: f"node {node.node_id}" for node in cluster.nodes[1:]}
            names = {node: f"{name} (leads)" if node in _leaders(connection, table) else name for node, name in names.items()}
            roots = {names[node.node_id]: node.pid for node in cluster.nodes}
            given = Given(client="dsdb", address=f"dsdb://{cluster.nodes[0].address}", table=table, files=bench.source.files)
            done = bench.ingest(f"dsdb, {nodes} nodes", given, roots)
            worst_client = max(worst_client, done.peak_mib)
            [(count,)] = connection.execute(f"SELECT count(*) FROM {table}").fetchall()
            if count != rows:
                raise click.ClickException(f"{count} rows of {rows} are there")
        for node in cluster.nodes:
            found = read_metrics(node)
            lag, worst = found[LAG_P99] * 1e3, found[LAG_WORST] * 1e3
            click.echo(f"    node {node.node_id}: loop lag p99 of the last minute {lag:.1f} ms, worst since its start {worst:.0f} ms")
        [(stored,)] = connection.execute("SELECT sum(bytes) FROM system.ranges WHERE table_name LIKE 'line%'").fetchall()
        on_disk = [_directory_bytes(node.store) - before for node, before in zip(cluster.nodes, idle)]
        arrow = bench.source.arrow_bytes * rounds
        shares = ", ".join(f"{size / arrow:.2f}" for size in on_disk)
        click.echo(f"    a replica's data ÷ Arrow {float(stored) / arrow:.3f}; files of each store, with its log, ÷ Arrow: {shares}")
        peaks = {f"node {node.node_id}": peak_mib(node.pid) for node in cluster.nodes} | {"client": worst_client}
    click.echo(f"    most memory: {', '.join(f'{name} {peak:.0f} MiB' for name, peak in peaks.items())}")
    if limit_mib is not None:
        missed += [f"{name} needed {peak:.0f} MiB, limit {limit_mib}" for name, peak in peaks.items() if peak > limit_mib]
    rate = statistics.median(bench.rates[f"dsdb, {nodes} nodes"])
    click.echo(f"    goal {GOAL:,.0f} rows/s: {'met' if rate >= GOAL else 'missed'} ({rate:,.0f})")
    return missed


def _leaders(connection: Connection, table: str) -> set[int]:
    return {node for (node,) in connection.execute("SELECT leaseholder FROM system.ranges WHERE table_name = ?", [table]).fetchall()}


def _directory_bytes(directory: Path) -> int:
    return sum(found.st_size for found in (_stat(path) for path in directory.rglob("*") if path.is_file()) if found is not None)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None  # compacted away meanwhile


def ingest_peers(bench: Bench, directory: Path, peers: Sequence[str], rounds: int) -> None:
    """Ingest the same files into others."""
    if "duckdb" in peers:
        for number in range(rounds):
            path = str(directory / f"peer{number}.duckdb")
            bench.ingest("duckdb, one copy", Given(client="duckdb", address=path, table="line", files=bench.source.files), {})
            Path(path).unlink()
    if "postgres" in peers:
        side = PostgresSide(directory, kv_rows=0, wide_rows=0)
        try:
            side.start()
            (root,) = side.servers()
            for number in range(rounds):
                given = Given(client="postgres", address=side.address, table=f"line{number}", files=bench.source.files)
                bench.ingest("postgres, one copy", given, {"server": root})
        except SideMissing as error:
            click.echo(f"  left out: postgres: {error}")
        finally:
            side.close()


def _names(_: click.Context, __: click.Parameter, value: str) -> tuple[str, ...]:
    names = tuple(name for name in value.split(",") if name and name != "none")
    if unknown := set(names) - set(PEERS):
        raise click.BadParameter(f"no peer {min(unknown)}: there are {', '.join(PEERS)}, or none")
    return names


@click.command()
@click.option(
    "--rows", type=click.IntRange(min=1000), default=SCALE_ROWS, show_default=True, help="That many of lineitem at scale factor 1."
)
@click.option("--source", "kind", type=click.Choice(["arrow", "parquet"]), default="parquet", show_default=True)
@click.option("--shuffled", is_flag=True, help="Rows in no order, instead of in that of their keys.")
@click.option("--nodes", type=click.IntRange(min=1, max=3), default=3, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--peers", callback=_names, default=",".join(PEERS), show_default=True, help="Or none.")
@click.option("--memory-limit", "limit_mib", type=click.IntRange(min=1), help="MiB that no node nor client may exceed; see above.")
@click.option(
    "--directory", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path(tempfile.gettempdir()), show_default=True
)
def main(
    rows: int, kind: str, shuffled: bool, nodes: int, rounds: int, peers: tuple[str, ...], limit_mib: int | None, directory: Path
) -> None:
    """Measure ingests of many rows."""
    end_servers_on_sigterm()
    scratch = Path(tempfile.mkdtemp(prefix="dsdb-ingest-", dir=directory.resolve()))
    scratch.chmod(0o755)  # PostgreSQL runs as another user
    try:
        (files := scratch / "files").mkdir()
        source = make_source(files, rows=rows, kind=kind, shuffled=shuffled)
        if limit_mib is not None and source.arrow_bytes < LIMITED_TIMES * limit_mib << 20:
            raise click.BadParameter(
                f"{source.arrow_bytes >> 20} MiB of Arrow data are less than three times the memory limit: more --rows"
            )
        on_disk = sum(Path(path).stat().st_size for path in source.files)
        click.echo(
            f"{source.rows:,} rows of 16 columns by {source.made_by}, {'in no order' if shuffled else 'in key order'}: "
            f"{source.arrow_bytes / 1e6:,.0f} MB as Arrow, {on_disk / 1e6:,.0f} MB in {len(source.files)} files ({kind}); "
            f"{filesystem_of(scratch)}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        bench = Bench(source)
        missed = ingest_dsdb(bench, scratch, nodes=nodes, rounds=rounds, limit_mib=limit_mib)
        ingest_peers(bench, scratch, peers, rounds)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for label, rates in bench.rates.items():
        click.echo(f"  {label:24} median {statistics.median(rates):9,.0f} rows/s of {len(rates)}")
    if source.rows * rounds / bench.rates[f"dsdb, {nodes} nodes"][0] < WINDOW_S:
        click.echo(f"  the lag's p99 is over {WINDOW_S:.0f} s, and the ingests took less: it has samples of before")
    for text in missed:
        click.echo(f"missed: {text}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
