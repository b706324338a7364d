"""`python -m bench.heal`: a node dies for good: how long do writes pause, which statements fail, when are all replicas back?

Some node processes and a table of several ranges; clients, whose connections name all hosts, insert rows at a pace and read back their
own.  Round by round a node gets SIGKILL and never comes back: in turns the one that leads the system range, and with it the oracle, and
the one that leads most of the others.  When all ranges have three replicas again, the dead node is taken off the list, as an
administrator would (`dsdb node decommission`), and a fresh one joins in its place.

    pause      the longest time from the kill on in which no write was acknowledged
    failed     statements that failed: those begun within PAUSE_S_MAX of the kill are of the fail-over, all others are misses
    healed     from the kill until every range has three replicas on living nodes; it begins `--dead-after` after the kill

Goals: the median pause at most PAUSE_MEDIAN_S_MAX, the longest at most PAUSE_S_MAX; no statement fails outside of the fail-over; every
round heals; every acknowledged row is there at the end.  The exit code is 1 if one is missed.
"""

import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import click
import msgspec

import dsdb
from bench.failover import PAUSE_MEDIAN_S_MAX, PAUSE_S_MAX
from bench.machine import elsewhere, read_moment
from bench.paced import Mix, PacedClients, Tally, spread
from bench.sides.dsdb_cluster import SYSTEM_RANGE, read_leaseholders
from bench.sides.port import end_servers_on_sigterm
from dsdb.cli.processes import NodeProcess, ProcessCluster

SETTLE_S = 2.0
"""Load before the kill."""
AFTER_S = 3.0
"""Load after the kill, at least, and after all replicas are back."""
PATIENCE_S = 120.0
LOOK_S = 0.2
REPLICAS = 3
TABLE = "healed"


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a kill.  Seconds are from it."""

    pause_s: float
    within: int
    """Statements that failed, of those begun within PAUSE_S_MAX."""
    last_s: float
    """When the last of them ended."""
    outside: list[str]
    """The others."""
    healed_s: float


def replicas(cluster: ProcessCluster) -> dict[int, set[int]]:
    """Give range → nodes that have a replica."""
    with dsdb.connect(cluster.url, autocommit=True) as connection:
        rows = connection.execute("SELECT range_id, replicas FROM system.ranges").fetchall()
    return {row[0]: {int(text) for text in str(row[1]).strip("{}").split(",")} for row in rows}


def wait_replicas(cluster: ProcessCluster, *, on_all: bool = False) -> None:
    """Wait until all ranges have three replicas on nodes that run; on_all: and every one of these has some.  Raises TimeoutError."""
    running = {node.node_id for node in cluster.nodes}
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            found = replicas(cluster)
        except dsdb.Error as error:
            found = {}
            click.echo(f"    the ranges were not shown: {error}")
        is_whole = bool(found) and all(len(nodes) == REPLICAS and nodes <= running for nodes in found.values())
        if is_whole and (not on_all or set().union(*found.values()) == running):
            return
        if time.monotonic() > until:
            raise TimeoutError(f"after {PATIENCE_S:.0f} s the ranges have replicas on {found}, nodes {sorted(running)} run")
        time.sleep(LOOK_S)


def victim_of(cluster: ProcessCluster, number: int) -> tuple[str, NodeProcess]:
    """Choose whom to kill.  Raises TimeoutError."""
    until = time.monotonic() + PATIENCE_S
    nodes = {node.node_id: node for node in cluster.nodes}
    while time.monotonic() < until:
        with dsdb.connect(cluster.url, autocommit=True) as connection:
            leaseholders = read_leaseholders(connection)
        if set(leaseholders.values()) <= set(nodes):
            if number % 2 == 0:
                return "the oracle's node", nodes[leaseholders[SYSTEM_RANGE]]
            led = list(leaseholders.values())
            return "a leaseholder", nodes[max(sorted(nodes), key=led.count)]
        time.sleep(LOOK_S)
    raise TimeoutError("a range stays without a leaseholder")


def judge(tally: Tally, killed: float, healed_s: float) -> Round:
    """Say what clients noticed of a kill.  Raises TimeoutError if nothing was written any more."""
    moments = sorted(at for at in tally.moments() if at >= killed)
    if not moments:
        raise TimeoutError("no write after the kill")
    within = [failure for failure in tally.failures if failure.ended - killed >= 0 and failure.begun - killed <= PAUSE_S_MAX]
    outside = [failure for failure in tally.failures if failure not in within]
    return Round(
        pause_s=max(later - earlier for earlier, later in zip([killed, *moments], moments)),
        within=len(within),
        last_s=max((failure.ended - killed for failure in within), default=0.0),
        outside=[f"begun {failure.begun - killed:.2f} s, ended {failure.ended - killed:.2f} s: {failure.what}" for failure in outside],
        healed_s=healed_s,
    )


def run_round(cluster: ProcessCluster, directory: Path, number: int, clients: int, rate: float, expected: list[int]) -> Round:
    """Kill a node for good, and replace it.  Raises TimeoutError."""
    what, victim = victim_of(cluster, number)
    dead = victim.node_id
    with PacedClients([node.address for node in cluster.nodes], clients, Mix(table=TABLE, write_part=0.5, inserts=True)) as pool:
        pool.begin(rate)
        time.sleep(SETTLE_S)
        killed = time.monotonic()
        victim.kill()
        cluster.nodes.remove(victim)
        time.sleep(PAUSE_S_MAX)
        wait_replicas(cluster)
        healed_s = time.monotonic() - killed
        time.sleep(AFTER_S)
        tally = pool.end()
    expected += tally.keys()
    found = judge(tally, killed, healed_s)
    click.echo(
        f"  {number + 1}: {what}, node {dead}: {found.pause_s:.2f} s without a write, {found.within} statements failed until "
        f"{found.last_s:.2f} s, {len(found.outside)} others; healed after {healed_s:.1f} s"
    )
    click.echo("      slowest answers: " + ", ".join(f"{took:.2f} s, sent at {at - killed:.2f} s" for at, took in tally.slowest()[:3]))
    for text in found.outside[:5]:
        click.echo(f"      {text}")
    shutil.rmtree(victim.store, ignore_errors=True)
    with dsdb.connect(cluster.url, autocommit=True) as connection:
        connection.execute(f"ALTER NODE {dead} SET STATE decommissioning")
    fresh = NodeProcess(directory / f"fresh{number}", join=[node.address for node in cluster.nodes])
    cluster.nodes.append(fresh)
    fresh.start()
    wait_replicas(cluster, on_all=True)
    return found


@click.command()
@click.option("--rounds", type=click.IntRange(min=1), default=20, show_default=True)
@click.option("--nodes", type=click.IntRange(min=4), default=4, show_default=True, help="With fewer nothing could be replaced.")
@click.option("--ranges", type=click.IntRange(min=1), default=12, show_default=True)
@click.option("--rows", type=click.IntRange(min=0), default=20_000, show_default=True, help="That are there at the begin, of 1,000 bytes.")
@click.option("--clients", type=click.IntRange(min=1), default=8, show_default=True)
@click.option("--rate", type=click.FloatRange(min=1), default=200.0, show_default=True, help="Statements a second, half of them writes.")
@click.option("--dead-after", type=click.FloatRange(min=2), default=3.0, show_default=True, help="The cluster setting, in seconds.")
@click.option(
    "--directory", type=click.Path(path_type=Path, exists=True, file_okay=False), default=Path(tempfile.gettempdir()), show_default=True
)
def heal(rounds: int, nodes: int, ranges: int, rows: int, clients: int, rate: float, dead_after: float, directory: Path) -> None:
    """Measure what clients notice of nodes that die for good."""
    end_servers_on_sigterm()
    scratch = Path(tempfile.mkdtemp(prefix="dsdb-heal-", dir=directory.resolve()))
    found: list[Round] = []
    expected: list[int] = []
    before, begun = read_moment(), time.monotonic()
    try:
        with ProcessCluster(scratch, nodes=nodes) as cluster:
            make_table(cluster, ranges, rows, dead_after)
            for number in range(rounds):
                found.append(run_round(cluster, scratch, number, clients, rate, expected))
            lost = missing(cluster, expected, rows)
    except (RuntimeError, TimeoutError) as error:
        raise click.ClickException(f"{error}; stores and logs are left in {scratch}") from error
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    shutil.rmtree(scratch, ignore_errors=True)
    other = elsewhere(before, read_moment(), time.monotonic() - begun)
    pauses, times = [one.pause_s for one in found], [one.healed_s for one in found]
    click.echo(f"{rounds} nodes died: pause {statistics.median(pauses):.2f} s in the median, {min(pauses):.2f} to {max(pauses):.2f} s")
    click.echo(
        f"  healed after {statistics.median(times):.1f} s in the median, {max(times):.1f} s at most; {dead_after} s of it until it was dead"
    )
    click.echo(f"  {len(expected):,} acknowledged rows, {lost} lost")
    click.echo(f"  load {other.load_1m:.1f}; others used {other.cores:.2f} cores ({other.names}); the host took {other.steal_cores:.2f}")
    missed = misses(found, lost)
    for text in missed:
        click.echo(f"missed: {text}")
    sys.exit(1 if missed else 0)


def make_table(cluster: ProcessCluster, ranges: int, rows: int, dead_after: float) -> None:
    """Make the table, in so many ranges that rows which are inserted later go to all of them."""
    with dsdb.connect(cluster.url, autocommit=True) as connection:
        connection.execute(f"SET CLUSTER SETTING dead_after = '{dead_after}s'")
        connection.execute(f"CREATE TABLE {TABLE} (id BIGINT PRIMARY KEY, v TEXT)")
        if ranges > 1:
            bounds = ", ".join(f"({(2 * number - ranges) * 2**62 // ranges * 2})" for number in range(1, ranges))
            connection.execute(f"ALTER TABLE {TABLE} SPLIT AT VALUES {bounds}")
        for first in range(0, rows, 500):
            values = ",".join(f"({spread(key)},'{'x' * 1000}')" for key in range(first, min(first + 500, rows)))
            connection.execute(f"INSERT INTO {TABLE} VALUES {values}")
    wait_replicas(cluster, on_all=True)


def missing(cluster: ProcessCluster, expected: list[int], rows: int) -> int:
    """Count acknowledged rows that are not there."""
    with dsdb.connect(cluster.url, autocommit=True) as connection:
        there = {row[0] for row in connection.execute(f"SELECT id FROM {TABLE}").fetchall()}
    return sum(key not in there for key in [*expected, *map(spread, range(rows))])


def misses(found: list[Round], lost: int) -> list[str]:
    """Say which goals were missed."""
    median, worst = statistics.median(one.pause_s for one in found), max(one.pause_s for one in found)
    missed = []
    if median > PAUSE_MEDIAN_S_MAX:
        missed.append(f"pause of {median:.2f} s in the median, goal {PAUSE_MEDIAN_S_MAX} s")
    if worst > PAUSE_S_MAX:
        missed.append(f"pause of {worst:.2f} s at worst, goal {PAUSE_S_MAX} s")
    if outside := sum(len(one.outside) for one in found):
        missed.append(f"{outside} statements failed outside of the fail-over")
    if lost:
        missed.append(f"{lost} acknowledged rows are not there")
    return missed


if __name__ == "__main__":
    heal()
