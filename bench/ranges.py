"""`python -m bench.ranges`: what do very many ranges cost, beside few of them, when nobody asks, when somebody does, and after a restart?

Two clusters of three node processes, with the same rows in one table: one of ten ranges, one of RANGES.

    split     the table is cut, BATCH points a statement
    routing   turns: single-row SELECTs by key on one cluster, then on the other, then UPDATEs: CPU of the nodes for a statement.
              Every node is the gateway of a third of them, so it does not matter who leads how many ranges
    idle      nobody asks: CPU of each node, and its memory
    restart   all nodes of a cluster are killed and started: seconds until the first answer, and until every row was read;
              the smaller cluster is cut into a hundred ranges before

Goals: an idle node below 1 % of a core and 1.5 GB; reads within 10 % of what they cost with ten ranges; a restart within 30 s, with a
hundred ranges within 2 s.  The exit code is 1 if one is missed.
"""

import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

import click

import dsdb
from bench.machine import elsewhere, memory_mib, read_moment
from bench.sides.port import end_servers_on_sigterm
from dsdb.cli.processes import ProcessCluster
from dsdb.driver.connection import Connection

T = TypeVar("T")

FEW, RESTARTED_FEW = 10, 100
BATCH = 500
SETTLE_S = 20.0
"""From the last statement until nodes count as idle: closed timestamps and coordinator have come to rest."""
IDLE_PERCENT_MAX, IDLE_MIB_MAX = 1.0, 1536.0
ROUTING_MAX = 1.10
RESTART_S_MAX, RESTART_FEW_S_MAX = 30.0, 2.0
PATIENCE_S = 120.0
"""How long a cluster is asked that does not answer: it was restarted, or the machine has too much to do."""


class Side:
    """One of the two clusters."""

    def __init__(self, directory: Path, ranges: int, rows: int) -> None:
        self.name = f"{ranges:,} ranges"
        self._rows = rows
        self.cluster = ProcessCluster(directory)
        try:
            self.cluster.wait_replicated(3)
            self.connection: Connection = dsdb.connect(self.cluster.url, autocommit=True)
            self.connection.execute("CREATE TABLE kv (id INT PRIMARY KEY, v INT NOT NULL)")
            for begin in range(0, rows, BATCH):
                values = ",".join(f"({number}, 0)" for number in range(begin, min(begin + BATCH, rows)))
                self.connection.execute(f"INSERT INTO kv VALUES {values}")
            self.split_s = self.split(ranges)
        except BaseException:
            self.cluster.close()
            raise

    def split(self, ranges: int) -> float:
        """Cut the table into so many ranges, some of which may be there; give how long it took."""
        began = time.monotonic()
        points = [number * self._rows // ranges for number in range(1, ranges)]
        for begin in range(0, len(points), BATCH):
            values = ",".join(f"({point})" for point in points[begin : begin + BATCH])
            until_it_works(lambda values=values: self.connection.execute(f"ALTER TABLE kv SPLIT AT VALUES {values}"))  # type: ignore[misc]
        return time.monotonic() - began

    @property
    def pids(self) -> list[int]:
        """Give the nodes' process ids."""
        return [node.pid for node in self.cluster.nodes]

    def cpu_s(self) -> list[float]:
        """Give what each node has used."""
        processes = read_moment().processes
        return [processes[pid].cpu_s for pid in self.pids]

    def run(self, statement: str, count: int, seed: int) -> float:
        """Run a statement for rows drawn by a seed, one after another; give the nodes' CPU for one, in µs."""
        chance = random.Random(seed)
        gateways = [dsdb.connect(f"dsdb://{node.address}", autocommit=True) for node in self.cluster.nodes]
        cursors = [gateway.cursor() for gateway in gateways]
        before = sum(self.cpu_s())
        for number in range(count):
            cursor = cursors[number % len(cursors)]
            row = (chance.randrange(self._rows),)
            until_it_works(lambda cursor=cursor, row=row: cursor.execute(statement, row))  # type: ignore[misc]
            if cursor.description is not None:
                cursor.fetchall()
        used_s = sum(self.cpu_s()) - before
        for gateway in gateways:
            gateway.close()
        return used_s / count * 1e6

    def wait_spread(self) -> None:
        """Wait until the coordinator has spread the leases: every node leads a quarter of the ranges at least."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            led = [int(count) for (count,) in self.connection.execute("SELECT leases FROM system.nodes").fetchall()]
            if min(led) * 4 >= sum(led) or time.monotonic() > deadline:
                click.echo(f"  leases with {self.name}: {', '.join(map(str, led))}")
                return
            time.sleep(1.0)

    def restart(self) -> tuple[float, float]:
        """Kill all nodes and start them; give the seconds until a row was read, and until all were."""
        self.connection.close()
        for node in self.cluster.nodes:
            node.kill()
        began = time.monotonic()
        threads = [threading.Thread(target=node.start) for node in self.cluster.nodes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.connection = until_it_works(lambda: dsdb.connect(self.cluster.url, autocommit=True))
        until_it_works(lambda: self.connection.execute("SELECT v FROM kv WHERE id = ?", (self._rows // 2,)).fetchall())
        first_s = time.monotonic() - began
        found = until_it_works(lambda: self.connection.execute("SELECT count(*) FROM kv").fetchall())
        if found != [(self._rows,)]:
            raise RuntimeError(f"after the restart {found} rows were found, not {self._rows}")
        return first_s, time.monotonic() - began

    def close(self) -> None:
        """End the nodes: at once, as handing over very many leases takes its time and nothing is kept."""
        self.connection.close()
        for node in self.cluster.nodes:
            node.kill()


def until_it_works(call: Callable[[], T]) -> T:
    """Try again after errors that may pass, for PATIENCE_S at most."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except dsdb.OperationalError as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"nothing works for {PATIENCE_S:.0f} s: {error}") from error
            click.echo(f"  (asked again: {error})")


def compare(few: Side, many: Side, statement: str, *, count: int, turns: int) -> float:
    """Run a statement on both sides in turns; give the median ratio of the nodes' CPU for one."""
    costs = [(few.run(statement, count, turn), many.run(statement, count, turn)) for turn in range(turns + 1)][1:]
    ratio = median(more / less for less, more in costs)
    verb = statement.split(" ", maxsplit=1)[0]
    less, more = (median(cost[side] for cost in costs) for side in (0, 1))
    click.echo(f"  {verb}: {less:,.0f} µs of the nodes' CPU with {few.name}, {more:,.0f} with {many.name}; median ratio {ratio:.3f}")
    return ratio


def idle(sides: Sequence[Side], seconds: float) -> dict[str, tuple[float, float]]:
    """Leave the nodes alone; give, for each side, its busiest node's percentage of a core, and its largest one's MiB."""
    time.sleep(SETTLE_S)
    before = [side.cpu_s() for side in sides]
    time.sleep(seconds)
    found = {}
    for side, then in zip(sides, before):
        used = [(after - ago) / seconds * 100 for ago, after in zip(then, side.cpu_s())]
        memory = [memory_mib([pid])[0] for pid in side.pids]
        found[side.name] = max(used), max(memory)
        shown = ", ".join(f"{percent:.2f}" for percent in used)
        click.echo(f"  idle with {side.name}: {shown} % of a core, {', '.join(f'{mib:.0f}' for mib in memory)} MiB")
    return found


def measure(few: Side, many: Side, *, statements: int, turns: int, idle_s: float) -> list[str]:
    """Measure everything but the splits; give the goals that were missed."""
    missed = []
    for side in (few, many):
        side.wait_spread()
    ratio = compare(few, many, "SELECT v FROM kv WHERE id = ?", count=statements, turns=turns)
    compare(few, many, "UPDATE kv SET v = v + 1 WHERE id = ?", count=statements // 4, turns=turns)
    if ratio > ROUTING_MAX:
        missed.append(f"reads cost {ratio:.2f} times what they cost with {few.name}; at most {ROUTING_MAX}")
    percent, mib = idle([few, many], idle_s)[many.name]
    if percent > IDLE_PERCENT_MAX or mib > IDLE_MIB_MAX:
        missed.append(f"an idle node takes {percent:.2f} % of a core and {mib:.0f} MiB; at most {IDLE_PERCENT_MAX} and {IDLE_MIB_MAX:.0f}")
    few.split(RESTARTED_FEW)
    few.name = f"{RESTARTED_FEW} ranges"
    for side, limit_s in ((few, RESTART_FEW_S_MAX), (many, RESTART_S_MAX)):
        first_s, all_s = side.restart()
        click.echo(f"  restart with {side.name}: first answer after {first_s:.1f} s, all rows read after {all_s:.1f} s")
        if first_s > limit_s:
            missed.append(f"the first answer of {side.name} came after {first_s:.1f} s; at most {limit_s:.0f}")
    return missed


@click.command()
@click.option("--ranges", "count", type=click.IntRange(min=RESTARTED_FEW), default=10_000, show_default=True)
@click.option("--statements", type=click.IntRange(min=100), default=3_000, show_default=True, help="SELECTs of a turn; UPDATEs: a quarter.")
@click.option("--turns", type=click.IntRange(min=1), default=5, show_default=True, help="After one that is not counted.")
@click.option("--idle", "idle_s", type=click.FloatRange(min=1), default=30.0, show_default=True, help="Seconds in which nobody asks.")
@click.option(
    "--directory", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path(tempfile.gettempdir()), show_default=True
)
def ranges(count: int, statements: int, turns: int, idle_s: float, directory: Path) -> None:
    """Measure what very many ranges cost."""
    end_servers_on_sigterm()
    scratch = Path(tempfile.mkdtemp(prefix="dsdb-ranges-", dir=directory.resolve()))
    sides: list[Side] = []
    before, began = read_moment(), time.monotonic()
    try:
        for number in (FEW, count):
            sides.append(Side(scratch / str(number), number, rows=count))
        click.echo(f"  {count - 1:,} splits in {sides[1].split_s:.0f} s: {(count - 1) / sides[1].split_s:.0f}/s")
        missed = measure(sides[0], sides[1], statements=statements, turns=turns, idle_s=idle_s)
    except (RuntimeError, TimeoutError) as error:
        raise click.ClickException(str(error)) from error  # nodes that did not start, or do not answer
    finally:
        for side in sides:
            side.close()
        shutil.rmtree(scratch, ignore_errors=True)
    other = elsewhere(before, read_moment(), time.monotonic() - began)
    click.echo(f"  load {other.load_1m:.1f}; others used {other.cores:.2f} cores ({other.names}); the host took {other.steal_cores:.2f}")
    for sentence in missed:
        click.echo(f"missed: {sentence}")
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    ranges()
