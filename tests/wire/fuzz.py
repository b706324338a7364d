"""Attack a node of a real cluster through its port, and look whether anybody but the attacker notices.

    python -m tests.wire.fuzz --seconds 60 [--seed N] [--verbose]

After each attack the node must live, and a client that was there before must be answered; at the end the process is the same one, no
lease has moved on any node, memory is what it was, and every hostile statement has ended with a result or an error of the user's.
"""

import argparse
import collections
import random
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import dsdb
from dsdb.cli.processes import NodeProcess, ProcessCluster
from tests.wire.attacks import ATTACKS, SlowLoris
from tests.wire.texts import TEXTS

LAG_MAX_S = 5.0
"""How long another client's ping may take, on a machine with much else to do.  What the lease survives is checked by itself."""
STATEMENT_TIMEOUT_S = 3.0
STATEMENT_S = 30.0
"""How long a hostile statement may go on in spite of its timeout: some functions of the engine cannot be interrupted at once."""


class WireFuzz:
    """A cluster under attack; `faults` tells what should not have been."""

    def __init__(self, cluster: ProcessCluster, seed: int) -> None:
        self.chance = random.Random(seed)
        self.cluster = cluster
        self.target: NodeProcess = cluster.nodes[0]
        host, _, port = self.target.address.rpartition(":")
        self.port = (host, int(port))
        self.counts: collections.Counter[str] = collections.Counter()
        self.faults: list[str] = []
        self.worst_lag_s = 0.0
        self.worst_by = ""
        self.is_verbose = False
        self._pid = self.target.pid
        self._bystander = dsdb.connect(f"dsdb://{self.target.address}", autocommit=True)
        self._bystander.execute("CREATE TABLE IF NOT EXISTS wire_rows (id BIGINT PRIMARY KEY, v TEXT)")
        self._wait_balanced()
        self._lease_changes = self._count_lease_changes()

    def attack(self, *, seconds: float, rounds_min: int = 0) -> None:
        """Attack by bytes for some time, each attack at least so often."""
        deadline = time.monotonic() + seconds
        plan = list(ATTACKS) * rounds_min
        self.chance.shuffle(plan)
        while plan or time.monotonic() < deadline:
            attack = plan.pop() if plan else self.chance.choice(ATTACKS)
            with self.watched(attack.__name__):
                outcome = attack(self.port, self.chance)
            self.counts[f"{attack.__name__}: {outcome}"] += 1

    def loris(self, connections: int) -> None:
        """Hold many connections that never finish their opening, while others connect."""
        with self.watched("slow loris"):
            loris = SlowLoris(self.port, connections)
            for _ in range(5):
                loris.say_more()
                dsdb.connect(f"dsdb://{self.target.address}", autocommit=True).close()
            loris.close()
        self.counts["slow loris: others connected"] += 1

    def say(self, names: list[str], *, seconds: float = float("inf")) -> None:
        """Run hostile statements, as many as the time allows; each ends in time, and none as a bug of ours."""
        deadline = time.monotonic() + seconds
        url = f"dsdb://{self.target.address}?statement_timeout={int(STATEMENT_TIMEOUT_S * 1000)}"
        for name in names:
            if time.monotonic() > deadline:
                self.counts["statements for which no time was left"] += 1
                continue
            sql, parameters = TEXTS[name]()
            began = time.monotonic()
            with self.watched(name):
                try:
                    with dsdb.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
                        cursor.execute(sql, parameters)
                        state = "a result"
                except dsdb.Error as error:
                    state = error.sqlstate or type(error).__name__
                    if state.startswith("XX"):
                        self.faults.append(f"{name}: {state} {error}")
            self.counts[f"statements that ended with {state}"] += 1
            took = time.monotonic() - began
            if took > STATEMENT_S:
                self.faults.append(f"{name}: took {took:.0f} s")
            if self.is_verbose:
                print(f"{took:6.2f} s  {name}: {state}", flush=True)

    def watched(self, name: str) -> "_Watch":
        """Ping as another client while something goes on, and look after it whether the node lives."""
        return _Watch(self, name)

    def ping(self, name: str) -> None:
        """Ask for a sign of life."""
        began = time.monotonic()
        try:
            self._bystander.ping()
        except dsdb.OperationalError as error:
            raise NodeDiedError(f"{name} took the node, or a client's session, down: {error}") from error
        lag = time.monotonic() - began
        if lag > self.worst_lag_s:
            self.worst_lag_s, self.worst_by = lag, name

    def check_leases(self, name: str) -> None:
        """Look whether a lease has moved since this was asked last."""
        before, self._lease_changes = self._lease_changes, self._count_lease_changes()
        if before != self._lease_changes:
            self.faults.append(f"leases moved during {name}: changes were {before}, are {self._lease_changes}")

    def _wait_balanced(self) -> None:
        """Wait until the coordinator has no reason to move a lease."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            leads = collections.Counter({node.node_id: 0 for node in self.cluster.nodes})
            rows = self._bystander.execute("SHOW RANGES").fetchall()
            # The first is the system range, whose lease does not count.
            leads.update(row[3] for row in rows[1:])
            if max(leads.values()) - min(leads.values()) < 2 and None not in leads:
                return
            threading.Event().wait(0.2)
        raise TimeoutError(f"the leases are not balanced: {leads}")

    def _count_lease_changes(self) -> list[float]:
        return [metric(node, "dsdb_store_lease_changes_total") for node in self.cluster.nodes]

    def finish(self) -> None:
        """Look at what must not have changed."""
        if not self.target.is_running or self.target.pid != self._pid:
            self.faults.append("the node's process ended")
            return
        with urllib.request.urlopen(f"http://{self.target.http_address}/health", timeout=10) as response:
            if response.status != 200:
                self.faults.append(f"the node is not healthy: {response.status}")
        self.check_leases("the end")
        if self.worst_lag_s > LAG_MAX_S:
            self.faults.append(f"a ping took {self.worst_lag_s:.1f} s during {self.worst_by}")
        self._bystander.close()

    def report(self) -> str:
        """Say what was done and found."""
        lines = [f"{count:6} × {what}" for what, count in sorted(self.counts.items())]
        lines.append(f"slowest ping of another client: {self.worst_lag_s:.2f} s, during {self.worst_by}")
        lines += [f"FAULT: {fault}" for fault in self.faults]
        return "\n".join([*lines, "FAULTS WERE FOUND" if self.faults else "nobody else noticed"])


class NodeDiedError(Exception):
    """A client that did nothing was cut off."""


class _Watch:
    def __init__(self, fuzz: WireFuzz, name: str) -> None:
        self._fuzz, self._name = fuzz, name
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._ping, daemon=True)
        self._error: NodeDiedError | None = None

    def _ping(self) -> None:
        try:
            while not self._is_over.wait(0.02):
                self._fuzz.ping(self._name)
            self._fuzz.ping(self._name)
        except NodeDiedError as error:
            self._error = error

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        self._fuzz.check_leases(self._name)


def metric(node: NodeProcess, name: str) -> float:
    """Read a figure of a node."""
    with urllib.request.urlopen(f"http://{node.http_address}/metrics", timeout=10) as response:
        for line in response.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    raise KeyError(name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=45.0, help="for all attacks; the cluster's start comes before")
    parser.add_argument("--verbose", action="store_true", help="print each hostile statement's name and end")
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="dsdb-wire-") as directory, ProcessCluster(Path(directory), nodes=3, http=True) as cluster:
        cluster.wait_replicated(3)
        fuzz = WireFuzz(cluster, seed)
        try:
            fuzz.is_verbose = arguments.verbose
            fuzz.attack(seconds=arguments.seconds / 3)
            fuzz.loris(1_000)
            names = list(TEXTS)
            fuzz.chance.shuffle(names)
            fuzz.say(names, seconds=arguments.seconds * 2 / 3)
        except (NodeDiedError, OSError, dsdb.OperationalError) as error:
            fuzz.faults.append(str(error))
        fuzz.finish()
        print(fuzz.report())
    return 1 if fuzz.faults else 0


if __name__ == "__main__":
    sys.exit(main())
