"""Kill nodes of a real cluster again and again, with what was not synced lost, and look for rows that were acknowledged.

    writers ─ INSERT ─▶ three nodes, RocksDB ◀─ SIGKILL, cut the log's unsynced tail, restart ─ the loop
                                             ◀─ SELECT everything, compare with what the writers were told ─

    python -m tests.faults.crash_loop --minutes 5 [--seed N]

One node, two, or all three go at a time.  Ends with 1 if an acknowledged row is gone or a refused one is there.
"""

import argparse
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dsdb
from dsdb.cli.processes import NodeProcess, ProcessCluster
from dsdb.driver.connection import Connection
from tests.cluster.writer import Writer
from tests.faults.node_main import lose_unsynced

LAUNCHER = (sys.executable, str(Path(__file__).parent / "node_main.py"))
WRITERS = 3
PROGRESS_S = 90.0
"""How long a cluster may take to acknowledge writes again after all its nodes were killed, on a machine with much else to do."""


class CrashLoop:
    """The cluster, its writers, and what was done to it."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.chance = random.Random(seed)
        self.rounds = self.kills = self.bytes_lost = 0
        self.starts_s: list[float] = []
        """Of each round: from the start of its nodes' processes until all of them serve."""
        self.recoveries_s: list[float] = []
        """And from then until every writer has had five rows acknowledged."""
        self.faults: list[str] = []
        self.cluster = ProcessCluster(directory, nodes=3, launcher=LAUNCHER)
        self.writers: list[Writer] = []

    def run(self, *, seconds: float, rounds_min: int = 1) -> None:
        """Write, kill and check until the time is over, and check a last time when nothing is written any more."""
        deadline = time.monotonic() + seconds
        try:
            self._begin()
            while time.monotonic() < deadline or self.rounds < rounds_min:
                self._round()
            for writer in self.writers:
                writer.stop()
            self._check(is_final=True)
        finally:
            self.cluster.close()

    def _begin(self) -> None:
        self.cluster.wait_replicated(3)
        with dsdb.connect(self.cluster.url, autocommit=True) as connection:
            for number in range(WRITERS):
                connection.execute(f"CREATE TABLE written{number} (n INT PRIMARY KEY)")
        for number in range(WRITERS):
            self.writers.append(Writer(f"{self.cluster.url}?load_balance=random&statement_timeout=8s", f"written{number}"))
        for writer in self.writers:
            writer.start()
        self._wait_progress(20)

    def _round(self) -> None:
        victims = self.chance.sample(self.cluster.nodes, self.chance.choice((1, 1, 2, 3, 3)))
        threading.Event().wait(self.chance.uniform(0, 0.5))
        for victim in victims:
            victim.kill()
        for victim in victims:
            self.bytes_lost += lose_unsynced(victim.store, self.chance)
        # Some stay away while the others go on.
        threading.Event().wait(self.chance.choice((0, 0, self.chance.uniform(0, 3))))
        began = time.monotonic()
        with ThreadPoolExecutor(len(victims)) as pool:
            list(pool.map(NodeProcess.start, victims))
        self.starts_s.append(time.monotonic() - began)
        self.kills += len(victims)
        self.rounds += 1
        began = time.monotonic()
        self._wait_progress(5)
        self.recoveries_s.append(time.monotonic() - began)
        self._check(is_final=False)

    def _wait_progress(self, rows: int) -> None:
        goals = [(writer, len(writer.acknowledged) + rows) for writer in self.writers]
        for writer, goal in goals:
            writer.wait_for(lambda writer=writer, goal=goal: len(writer.acknowledged) >= goal, timeout_s=PROGRESS_S)  # type: ignore[misc]

    def _check(self, *, is_final: bool) -> None:
        """Read all rows; while rows are written, only what was known before the read can be missed or be too much."""
        with dsdb.connect(f"{self.cluster.url}?load_balance=random", autocommit=True) as connection:
            for number, writer in enumerate(self.writers):
                acknowledged, refused = set(writer.acknowledged), set(writer.refused)
                found = read_with_patience(connection, f"SELECT n FROM written{number}")
                if lost := sorted(acknowledged - found):
                    self.faults.append(f"round {self.rounds}: written{number} lost {len(lost)} acknowledged rows: {lost[:10]}")
                if ghosts := sorted(refused & found):
                    self.faults.append(f"round {self.rounds}: written{number} has {len(ghosts)} refused rows: {ghosts[:10]}")
                if is_final and (strangers := sorted(found - acknowledged - set(writer.unknown))):
                    self.faults.append(f"written{number} has {len(strangers)} rows that nobody wrote: {strangers[:10]}")

    def report(self) -> str:
        """Say what was done and found."""
        counts = [sum(len(getattr(writer, name)) for writer in self.writers) for name in ("acknowledged", "unknown", "refused")]
        pause = max(writer.longest_pause_s for writer in self.writers)
        spent = [
            f"{what} {statistics.median(times):.1f} s in the median, {max(times):.1f} s at most"
            for what, times in (("until the nodes serve", self.starts_s), ("from then until all write", self.recoveries_s))
            if times
        ]
        lines = [
            f"{self.rounds} rounds, {self.kills} kills, {self.bytes_lost} unsynced bytes cut off",
            "rows: {} acknowledged, {} of unknown outcome, {} refused".format(*counts) + f"; longest pause of a writer {pause:.1f} s",
            "; ".join(spent),
            *self.faults,
            "FAULTS WERE FOUND" if self.faults else "nothing acknowledged was lost",
        ]
        return "\n".join(lines)


def read_with_patience(connection: Connection, query: str) -> set[int]:
    """Read numbers, again while the cluster says that it cannot serve now."""
    deadline = time.monotonic() + PROGRESS_S
    while True:
        try:
            return {n for (n,) in connection.execute(query).fetchall()}
        except dsdb.OperationalError:
            if time.monotonic() > deadline:
                raise
            threading.Event().wait(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}, {arguments.minutes:g} minutes", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="dsdb-crash-"))
    loop = CrashLoop(directory, seed)
    try:
        loop.run(seconds=arguments.minutes * 60)
    except TimeoutError as error:
        loop.faults.append(f"round {loop.rounds}: the cluster did not go on within {PROGRESS_S:.0f} s: {error}")
    print(loop.report())
    if loop.faults:
        print(f"stores and logs are kept in {directory}")
        return 1
    shutil.rmtree(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
