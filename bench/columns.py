"""What columnar blocks give a user: `python -m bench.columns [--rows 600000] [--nodes 1] [--rounds 5]`.

Processes of their own with a table like TPC-H's lineitem, 16 columns and a key of two; first its rows lie in the delta, then folded.

    all columns to Arrow, to pandas     SELECT *, read to the end through the driver
    four columns, an aggregate          what the blocks of the other columns need not be read for
    point reads                         SELECT * of one row by its key, one client

Each figure is the median of some rounds, with the processor time of the nodes and of the client, and the load of the machine beside it.
Goals, for all columns of folded rows: 5 million rows a second to Arrow, 1.2 million to pandas.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pyarrow as pa

import dsdb
from bench.lag import read_metrics
from bench.machine import read_moment
from bench.sides.port import end_servers_on_sigterm
from dsdb.cli.processes import ProcessCluster
from dsdb.driver.connection import Connection

TABLE = """CREATE TABLE line (
    order_id BIGINT, number INT, part BIGINT, supplier BIGINT, quantity DECIMAL(15,2), price DECIMAL(15,2), discount DECIMAL(15,2),
    tax DECIMAL(15,2), returned VARCHAR(1), status VARCHAR(1), shipped DATE, committed DATE, received DATE, instruction VARCHAR(25),
    mode VARCHAR(10), comment VARCHAR(44), PRIMARY KEY (order_id, number))"""
AGGREGATE = """SELECT returned, count(*), sum(price), sum(price * (1 - discount)) FROM line
    WHERE shipped < DATE '1998-01-01' GROUP BY returned"""
PART_ROWS = 10_000
LINES = 4
"""Of an order."""
POINTS = 500
FOLDED_S = 300.0
FOLDED = "dsdb_store_versions_folded"
GOALS = {"all columns to Arrow": 5e6, "all columns to pandas": 1.2e6}

_INSTRUCTIONS = ("DELIVER IN PERSON", "COLLECT COD", "NONE", "TAKE BACK RETURN")
_MODES = ("AIR", "FOB", "MAIL", "RAIL", "REG AIR", "SHIP", "TRUCK")
_WORDS = ("quickly", "final", "deposits", "sleep", "ironic", "requests", "carefully", "packages", "above", "the", "bold")


def lines(rows: int) -> pa.Table:
    """Make rows; the same for every run."""
    chance = np.random.default_rng(5)

    def cents(most: int) -> pa.Array:
        return pa.array(chance.integers(0, most, rows)).cast(pa.decimal128(21, 2)).cast(pa.decimal128(15, 2))

    def days() -> pa.Array:
        return pa.array(chance.integers(8000, 10500, rows).astype("int32")).cast(pa.date32())

    def one_of(texts: tuple[str, ...]) -> pa.Array:
        return pa.DictionaryArray.from_arrays(pa.array(chance.integers(0, len(texts), rows).astype("int32")), list(texts)).cast(pa.string())

    words = chance.integers(0, len(_WORDS), (rows, 4)).tolist()
    columns = {
        "order_id": pa.array(np.arange(rows) // LINES),
        "number": pa.array((np.arange(rows) % LINES).astype("int32")),
        "part": pa.array(chance.integers(1, 200_000, rows)),
        "supplier": pa.array(chance.integers(1, 10_000, rows)),
        "quantity": cents(50),
        "price": cents(100_000),
        "discount": cents(10),
        "tax": cents(8),
        "returned": one_of(("A", "N", "R")),
        "status": one_of(("F", "O")),
        "shipped": days(),
        "committed": days(),
        "received": days(),
        "instruction": one_of(_INSTRUCTIONS),
        "mode": one_of(_MODES),
        "comment": pa.array([" ".join([_WORDS[at] for at in row])[:44] for row in words]),
    }
    return pa.table(columns)


class Bench:
    """A cluster, a client, and what was measured."""

    def __init__(self, cluster: ProcessCluster, connection: Connection, rows: int, rounds: int) -> None:
        self.cluster = cluster
        self.connection = connection
        self.rows = rows
        self.rounds = rounds
        self.rates: dict[tuple[str, str], float] = {}

    def measure(self, state: str) -> None:
        """Measure everything once, with the rows where they are."""
        self._timed(state, "all columns to Arrow", self.rows, lambda: self._fetch("SELECT * FROM line"))
        self._timed(state, "all columns to pandas", self.rows, lambda: self._fetch("SELECT * FROM line", pandas=True))
        self._timed(state, "four columns to Arrow", self.rows, lambda: self._fetch("SELECT order_id, price, discount, shipped FROM line"))
        self._timed(state, "an aggregate of all rows", self.rows, self._sum)
        self._timed(state, "point reads", POINTS, self._points)

    def _fetch(self, sql: str, *, pandas: bool = False) -> None:
        with self.connection.cursor() as cursor:
            cursor.execute(sql)
            found = cursor.fetch_df() if pandas else cursor.fetch_arrow_table()
        assert len(found) == self.rows, len(found)

    def _sum(self) -> None:
        assert len(self.connection.execute(AGGREGATE).fetchall()) >= 3

    def _points(self) -> None:
        orders = np.random.default_rng(11).integers(0, self.rows // LINES, POINTS).tolist()
        for order in orders:
            assert len(self.connection.execute("SELECT * FROM line WHERE order_id = ? AND number = 2", [order]).fetchall()) == 1

    def _timed(self, state: str, what: str, count: int, work: Callable[[], None]) -> None:
        work()  # untimed: plans, and caches
        roots, seconds, servers, clients = [node.pid for node in self.cluster.nodes], [], [], []
        for _ in range(self.rounds):
            before, begun, used = read_moment(), time.monotonic(), time.process_time()
            work()
            seconds.append(time.monotonic() - begun)
            clients.append(time.process_time() - used)
            servers.append(read_moment().tree_cpu_s(roots) - before.tree_cpu_s(roots))
        rate = self.rates[state, what] = count / statistics.median(seconds)
        goal = GOALS.get(what)
        click.echo(
            f"  {state:7} {what:26} {rate:12,.0f}/s   µs of CPU each: nodes {statistics.median(servers) / count * 1e6:8.2f}, "
            f"client {statistics.median(clients) / count * 1e6:8.2f}   load {os.getloadavg()[0]:.1f}"
            + (f"   goal {goal:,.0f}: {'met' if rate >= goal else 'missed'}" if goal and state == "folded" else "")
        )

    def wait_folded(self) -> None:
        """Wait until every replica has folded nearly all rows: a few at the end are not worth a block.  Raises TimeoutError."""
        until = time.monotonic() + FOLDED_S
        while any(read_metrics(node).get(FOLDED, 0) < self.rows * 0.95 for node in self.cluster.nodes):
            if time.monotonic() > until:
                raise TimeoutError(f"the rows were not folded within {FOLDED_S:.0f} s")
            time.sleep(1.0)


@click.command()
@click.option("--rows", type=click.IntRange(min=20_000), default=600_000, show_default=True)
@click.option("--nodes", type=click.IntRange(min=1, max=3), default=1, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True)
def main(rows: int, nodes: int, rounds: int) -> None:
    """Measure reads of rows and of columnar blocks through the driver."""
    end_servers_on_sigterm()
    click.echo(f"{rows:,} rows of 16 columns, {nodes} node{'s' if nodes > 1 else ''}, load {os.getloadavg()[0]:.1f}")
    with (
        tempfile.TemporaryDirectory(prefix="dsdb-columns-") as directory,
        ProcessCluster(Path(directory), nodes=nodes, http=True) as cluster,
        dsdb.connect(cluster.url, autocommit=True) as connection,
    ):
        connection.execute("SET CLUSTER SETTING fold_percent = 0")
        connection.execute(TABLE)
        begun = time.monotonic()
        found = lines(rows)
        for first in range(0, rows, PART_ROWS):
            # Where there is a row already, rows come as rows, and not as blocks at once.
            connection.execute(f"INSERT INTO line (order_id, number) VALUES ({(first + PART_ROWS // 2) // LINES}, {LINES})")
            with connection.cursor() as cursor:
                cursor.adbc_ingest("line", found.slice(first, PART_ROWS), mode="append")
        rows += len(range(0, rows, PART_ROWS))
        click.echo(f"  loaded in {time.monotonic() - begun:.1f} s")
        if nodes > 1:
            cluster.wait_replicated(nodes)
        bench = Bench(cluster, connection, rows, rounds)
        bench.measure("rows")
        connection.execute("SET CLUSTER SETTING fold_percent = 100")
        begun = time.monotonic()
        bench.wait_folded()
        click.echo(f"  folded in {time.monotonic() - begun:.1f} s")
        bench.measure("folded")
    for what in dict.fromkeys(name for _, name in bench.rates):
        click.echo(f"  {what:26} folded ÷ rows: {bench.rates['folded', what] / bench.rates['rows', what]:.2f}")


if __name__ == "__main__":
    main()
