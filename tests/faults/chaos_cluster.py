"""The nodes of a chaos run: as many as there are at the moment, on a network that can be cut; and the commands of `dsdb` against them.

    add ─▶ node 6 joins       retire ─▶ its process is ended, its store removed, for good; its place in `nodes` stays empty

Invariants:
- A place in `nodes` is one node's for the whole run: who is gone stays in the list, and never runs again.
- With certificates everything is encrypted, the run's own sessions and commands too (`dsdb cert` makes them).
"""

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import dsdb
from dsdb.cli.processes import NodeProcess
from tests.faults.namespaces import NamespaceNetwork
from tests.faults.proxy import CutNetwork

LAUNCHER = (sys.executable, str(Path(__file__).parent / "node_main.py"))
START_S = 120.0
"""How long a node may take to serve: several that start at once share a machine that has much else to do."""
COMMAND_ENDS_S = 15.0
"""How long a command may take to end after Ctrl-C."""
DSDB = (sys.executable, "-m", "dsdb.cli")
JOINED_MAX = 3
"""Of the nodes that there are, so many are named to one that joins."""


class Said(NamedTuple):
    """What a command said, and its exit code."""

    code: int
    output: str
    errors: str

    def __str__(self) -> str:
        return f"exit code {self.code}: {' '.join((self.errors or self.output).split())[-300:]}"


class ChaosCluster:
    """Starts no node by itself."""

    def __init__(self, directory: Path, network: CutNetwork | NamespaceNetwork, *, has_tls: bool = False) -> None:
        self.directory = directory
        self.network = network
        self.certs_dir = directory / "certs" if has_tls else None
        self.nodes: list[NodeProcess] = []
        self.gone: set[int] = set()
        """Places in `nodes` of those that are gone for good."""
        self._added = 0
        """Nodes that were started, or were to be."""
        self._reached: list[str] = []
        """For each place in `nodes`, the address by which other nodes reach it."""
        if has_tls:
            self._certify("create-ca")
            self._certify("create-client", "root", "--certs-dir", str(self.certs_dir))

    def _certify(self, *words: str) -> None:
        authority = ("--ca-dir", str(self.directory / "ca"))
        subprocess.run([*DSDB, "cert", *words, *authority], check=True, capture_output=True, text=True)

    # ---- Nodes ----

    @property
    def present(self) -> list[int]:
        """Give the places of the nodes that are not gone; some may be killed at the moment."""
        return [at for at in range(len(self.nodes)) if at not in self.gone]

    def add(self) -> int:
        """Start one more node, and give its place.  Raises RuntimeError if it does not serve in time."""
        site = self.network.add_node()
        self._added += 1
        number = self._added
        options = list(site.options)
        if self.certs_dir is not None:
            own = self.directory / f"certs{number}"
            host = (site.advertise or site.listen).rpartition(":")[0]
            self._certify("create-node", host, "--certs-dir", str(own))
            options = ["--certs-dir", str(own)]
        node = NodeProcess(
            self.directory / f"node{number}",
            listen=site.listen,
            advertise=site.advertise,
            join=[self._reached[at] for at in self.present[-JOINED_MAX:]],
            launcher=(*site.launcher, *LAUNCHER),
            options=options,
        )
        node.start(patience_s=START_S)
        self.network.name(number, node.node_id, node.address)
        self._reached.append(site.advertise or node.address)
        self.nodes.append(node)
        return len(self.nodes) - 1

    def retire(self, at: int, *, is_killed: bool) -> None:
        """End a node for good: its process, and its store."""
        self.gone.add(at)
        node = self.nodes[at]
        (node.kill if is_killed else node.terminate)()
        shutil.rmtree(node.store / "db")

    def close(self) -> None:
        """Stop all nodes and the network."""
        self.network.heal()
        for node in self.nodes:
            node.terminate()
        self.network.close()

    # ---- Asking it ----

    @property
    def url(self) -> str:
        """Give a URL of all nodes that are not gone, which ends with what options may be added to."""
        options = "" if self.certs_dir is None else f"certs_dir={self.certs_dir}&"
        return f"dsdb://{','.join(self.nodes[at].address for at in self.present)}/?{options}"

    def ask(self, query: str, *, timeout_s: int = 2) -> list[tuple[object, ...]]:
        """Run a statement by itself.  Raises dsdb.Error."""
        with dsdb.connect(f"{self.url}autocommit=true&statement_timeout={timeout_s}s") as connection:
            cursor = connection.execute(query)
            return cursor.fetchall() if cursor.description else []

    def replicas(self) -> list[frozenset[int]]:
        """Give the nodes that have replicas of each range.  Raises dsdb.Error."""
        texts = [str(row[4]) for row in self.ask("SHOW RANGES")]
        return [frozenset(int(node_id) for node_id in text.strip("{}").split(",") if node_id) for text in texts]

    def is_replicated(self) -> bool:
        """Say whether every range has three replicas, all on nodes that are not gone.  Raises dsdb.Error."""
        gone = {self.nodes[at].node_id for at in self.gone}
        return all(len(replicas) >= 3 and not replicas & gone for replicas in self.replicas())

    def command(self, *words: str, patience_s: float) -> Said:
        """Run `dsdb`, as an administrator does at a terminal; who waits for too long presses Ctrl-C."""
        process = subprocess.Popen([*DSDB, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            said = process.communicate(timeout=patience_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                said = process.communicate(timeout=COMMAND_ENDS_S)
            finally:
                process.kill()
        return Said(process.returncode, *said)

    def steer(self, *words: str, patience_s: float) -> Said:
        """Run one of the commands that take --url."""
        return self.command(*words, "--url", self.url, patience_s=patience_s)
