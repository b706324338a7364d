"""`python -m bench.tls`: what does TLS cost?

Two clusters of three nodes on this machine, one plain and one with certificates, take the same work in turns: point reads and single
inserts, by one client and by several (a process each, through the node that leads, and through all).  A figure is the median over the
turns of TLS ÷ plain of the same turn; beside it how long a connection takes to open.
"""

import contextlib
import random
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import click

import dsdb
from bench import rows
from bench.machine import elsewhere, read_moment
from bench.sides.port import end_servers_on_sigterm
from dsdb.cli.processes import ProcessCluster
from dsdb.driver.connection import Connection
from dsdb.tls.authority import Authority, Validity

READ_ROWS = 10_000
LEAD_S = 0.2
"""Between the order and the begin of a slice."""
OPENED = 30
"""Connections opened for their figure."""
WORK = ("read", "insert")

_connections: dict[str, Connection] = {}
"""Of a client process, by URL."""


class Slice(NamedTuple):
    """What one client does: operations until the time is over; start_at: on the monotonic clock."""

    url: str
    work: str
    client: int
    start_at: float
    seconds: float


def connect(url: str) -> None:
    """Connect, for the slices that follow."""
    _connections[url] = dsdb.connect(url, autocommit=True)


def run_slice(order: Slice) -> list[float]:
    """Work; give the latency of each operation in seconds."""
    connection = _connections[order.url]
    chance = random.Random(order.client)
    key = time.monotonic_ns() // 1_000 * 64 + order.client
    latencies = []
    time.sleep(max(0.0, order.start_at - time.monotonic()))
    while (begun := time.monotonic()) < order.start_at + order.seconds:
        if order.work == "read":
            connection.execute("SELECT v FROM kv WHERE id = ?", (chance.randrange(READ_ROWS),)).fetchone()
        else:
            key += 64
            connection.execute("INSERT INTO ins VALUES (?, ?)", (key, rows.VALUE))
        latencies.append(time.monotonic() - begun)
    return latencies


def prepare(cluster: ProcessCluster) -> None:
    """Make the tables, with all replicas."""
    cluster.wait_replicated(3)
    with dsdb.connect(cluster.url, autocommit=True) as connection:
        connection.execute(rows.KV_TABLE)
        connection.execute(rows.INS_TABLE)
        for first in range(0, READ_ROWS, rows.BULK_ROWS):
            connection.execute(rows.kv_insert(first, rows.BULK_ROWS))
    cluster.wait_replicated(3)


def opening_s(cluster: ProcessCluster) -> float:
    """Give the median time that a connection takes to open."""
    taken = []
    for _ in range(OPENED):
        begun = time.monotonic()
        dsdb.connect(cluster.url).close()
        taken.append(time.monotonic() - begun)
    return statistics.median(taken)


class Measured(NamedTuple):
    """One slice of one cluster: operations a second, the median latency, and the nodes' CPU of an operation, in seconds."""

    rate: float
    median_s: float
    cpu_s: float


Clients = list[ProcessPoolExecutor]
"""A process each."""


def urls_of(cluster: ProcessCluster, clients: Clients) -> list[str]:
    """Give each client its node."""
    return [cluster.url_of([cluster.nodes[number % len(cluster.nodes)]]) for number in range(len(clients))]


def measure(cluster: ProcessCluster, work: str, clients: Clients, seconds: float) -> Measured:
    """Let the clients work for so long."""
    pids = [node.pid for node in cluster.nodes]
    start_at = time.monotonic() + LEAD_S
    before = read_moment().tree_cpu_s(pids)
    orders = [Slice(url, work, number, start_at, seconds) for number, url in enumerate(urls_of(cluster, clients))]
    running = [client.submit(run_slice, order) for client, order in zip(clients, orders)]
    latencies = [latency for future in running for latency in future.result()]
    cpu = read_moment().tree_cpu_s(pids) - before
    return Measured(len(latencies) / seconds, statistics.median(latencies), cpu / len(latencies))


def compare(plain: ProcessCluster, secure: ProcessCluster, work: str, clients: Clients, seconds: float, turns: int) -> None:
    """Run one kind of work in turns, and print it."""
    found: list[tuple[Measured, Measured]] = []
    for turn in range(turns):
        order = (plain, secure) if turn % 2 == 0 else (secure, plain)
        pair = [measure(cluster, work, clients, seconds) for cluster in order]
        found.append((pair[0], pair[1]) if turn % 2 == 0 else (pair[1], pair[0]))
    ratios = {name: statistics.median(getattr(tls, name) / getattr(bare, name) for bare, tls in found) for name in Measured._fields}
    rates = [statistics.median(pair[side].rate for pair in found) for side in (0, 1)]
    cpu_us = [statistics.median(pair[side].cpu_s for pair in found) * 1e6 for side in (0, 1)]
    click.echo(
        f"{work:6} {len(clients):2} clients: plain {rates[0]:6,.0f}/s, TLS {rates[1]:6,.0f}/s, ratio {ratios['rate']:.2f}; "
        f"median latency × {ratios['median_s']:.2f}; CPU of the nodes {cpu_us[0]:,.0f} and {cpu_us[1]:,.0f} µs, × {ratios['cpu_s']:.2f}"
    )


@click.command()
@click.option("--clients", type=click.IntRange(1, 64), multiple=True, default=(1, 16), show_default=True)
@click.option("--seconds", type=click.FloatRange(min=0.1), default=3.0, show_default=True, help="Length of a slice.")
@click.option("--turns", type=click.IntRange(min=1), default=5, show_default=True, help="Slices of each cluster.")
def tls(clients: tuple[int, ...], seconds: float, turns: int) -> None:
    """Compare a cluster with certificates with one without."""
    end_servers_on_sigterm()
    scratch = Path(tempfile.mkdtemp(prefix="dsdb-tls-"))
    try:
        certs = scratch / "certs"
        authority = Authority.create(scratch / "ca", Validity(1))
        authority.create_node(certs, ["127.0.0.1"], Validity(1))
        authority.create_client(certs, "root", Validity(1))
        with contextlib.ExitStack() as stack:
            plain = stack.enter_context(ProcessCluster(scratch / "plain"))
            secure = stack.enter_context(ProcessCluster(scratch / "secure", certs_dir=certs))
            prepare(plain)
            prepare(secure)
            before, began = read_moment(), time.monotonic()
            processes = [stack.enter_context(ProcessPoolExecutor(1, mp_context=get_context("spawn"))) for _ in range(max(clients))]
            for cluster in (plain, secure):
                connected = [client.submit(connect, url) for client, url in zip(processes, urls_of(cluster, processes))]
                for future in connected:
                    future.result()
                for work in WORK:
                    measure(cluster, work, processes, seconds)  # fills the nodes' caches
            for work in WORK:
                for count in clients:
                    compare(plain, secure, work, processes[:count], seconds, turns)
            click.echo(f"opening a connection: plain {opening_s(plain) * 1000:.1f} ms, TLS {opening_s(secure) * 1000:.1f} ms")
            other = elsewhere(before, read_moment(), time.monotonic() - began)
            click.echo(f"meanwhile: load {other.load_1m:.1f}; others used {other.cores:.2f} cores; the host took {other.steal_cores:.2f}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    tls()
