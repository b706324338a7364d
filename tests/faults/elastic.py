"""Changes of a cluster's shape while it is loaded and hurt, by an administrator who has nothing but the commands: one at a time.

    add                  a fresh node joins
    drain                dsdb node drain N … dsdb node recommission N
    decommission         dsdb node decommission N; then it is recommissioned, or its process ends for good
    kill for good        SIGKILL, the store is lost; a fresh node comes in its place, and the dead one is decommissioned
    scatter              dsdb range scatter TABLE

A command that takes too long is ended with Ctrl-C, as people do: what it began goes on.  What is refused, or not answered as too much is
broken at that moment, is counted, with what was said; any other end of a command is a fault of the cluster's.

Invariants:
- A node is killed for good only while every range has three replicas on nodes that are not gone: a second loss may come when the first
  is healed, and no earlier.
- At the end (`settle`) every wish is taken back or carried out, and nothing of who is gone is left.
"""

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import dsdb
from tests.faults.chaos_cluster import ChaosCluster, Said

NODES_LEAST, NODES_MOST = 4, 6
PATIENCE_S = 25.0
"""After this long the administrator presses Ctrl-C."""
SETTLE_S = 180.0
"""How long all ranges may take, after the last fault, until they are where they should be."""
DEAD_AFTER_S = 8
"""Longer than most faults last, shorter than what starts slowly on a busy machine: so it is put to the test, too."""
HEAL_S = 120.0
"""How long the administrator waits, after a loss, for all ranges to have three replicas again, before doing something else."""
KINDS = {"add": 3, "drain": 2, "decommission": 4, "kill for good": 4, "scatter": 2}
"""How often each change is chosen, where it is possible."""
TABLES = ("lists", "accounts")

Timed = Callable[[str, Sequence[int], Callable[[], object]], None]
"""Does something and notes it on the timeline: what, to which places, how."""


class Administrator:
    """Changes the shape of a cluster, until it is told to stop."""

    def __init__(
        self,
        cluster: ChaosCluster,
        chance: random.Random,
        *,
        timed: Timed,
        take: Callable[[int | None], int | None],
        free: Callable[[int], None],
    ) -> None:
        """take: keeps a node from all other faults, or (None) one whose loss leaves every range a quorum; free: gives it back."""
        self._cluster = cluster
        self._chance = chance
        self._timed = timed
        self._take = take
        self._free = free
        self.faults: list[str] = []
        self.ends: Counter[str] = Counter()
        """How commands ended."""
        self.healed_s: list[float] = []
        """After each node that was killed for good, how long it took until all ranges had three replicas again."""

    def prepare(self) -> None:
        """Let the cluster call nodes dead soon."""
        self._cluster.ask(f"SET CLUSTER SETTING dead_after = '{DEAD_AFTER_S}s'", timeout_s=8)

    def run(self, stop: threading.Event, deadline: float) -> None:
        """Make one change after another, until a time by the monotonic clock."""
        # Each once, and then by chance.
        first = self._chance.sample(list(KINDS), len(KINDS))
        while time.monotonic() < deadline and not stop.wait(self._chance.uniform(0.5, 3.0)):
            kind = first.pop() if first else self._chance.choices(list(KINDS), list(KINDS.values()))[0]
            {
                "add": self._add,
                "drain": self._drain,
                "decommission": self._decommission,
                "kill for good": lambda: self._kill_for_good(stop),
                "scatter": self._scatter,
            }[kind]()

    # ---- Changes ----

    def _add(self) -> None:
        if len(self._cluster.present) < NODES_MOST:
            self._timed("add", [], self._start_fresh)

    def _start_fresh(self) -> None:
        try:
            self._cluster.add()
        except RuntimeError as error:
            self.faults.append(f"a fresh node did not join: {error}")

    def _drain(self) -> None:
        at = self._chance.choice(self._cluster.present)
        self._timed("drain", [at], lambda: self._tell(at, "drain"))
        self._tell(at, "recommission")

    def _decommission(self) -> None:
        if len(self._cluster.present) <= NODES_LEAST:
            return
        at = self._chance.choice(self._cluster.present)
        said: list[Said] = []
        self._timed("decommission", [at], lambda: said.append(self._tell(at, "decommission")))
        if said[0].code == 0 and self._chance.random() < 0.5 and self._take(at) is not None:
            self._timed("leave", [at], lambda: self._cluster.retire(at, is_killed=False))
            self._free(at)
        else:
            self._tell(at, "recommission")

    def _kill_for_good(self, stop: threading.Event) -> None:
        if len(self._cluster.present) <= NODES_LEAST or not self._is_whole():
            return
        at = self._take(None)
        if at is None:
            return
        # Looked at again: since then nothing has taken the node, and what was whole before has three replicas still, or more.
        if not self._is_whole():
            self._free(at)
            return
        began = time.monotonic()
        self._timed("kill for good", [at], lambda: self._cluster.retire(at, is_killed=True))
        self._free(at)
        self._timed("add", [], self._start_fresh)
        while not self._is_whole():
            if stop.wait(0.5) or time.monotonic() > began + HEAL_S:
                return  # in the end it must be
        self.healed_s.append(time.monotonic() - began)
        self._tell(at, "decommission")

    def _is_whole(self) -> bool:
        is_whole = False
        with contextlib.suppress(dsdb.Error):
            is_whole = self._cluster.is_replicated()
        return is_whole

    def _scatter(self) -> None:
        table = self._chance.choice(TABLES)
        self._timed(
            "scatter", [], lambda: self._note("range scatter", self._cluster.steer("range", "scatter", table, patience_s=PATIENCE_S))
        )

    # ---- Commands ----

    def _tell(self, at: int, what: str) -> Said:
        node_id = self._cluster.nodes[at].node_id
        said = self._cluster.steer("node", what, str(node_id), patience_s=PATIENCE_S)
        self._note(f"node {what}", said)
        return said

    def _note(self, command: str, said: Said) -> None:
        match said.code:
            case 0:
                self.ends[f"{command}: done"] += 1
            case 130:  # Ctrl-C
                self.ends[f"{command}: Ctrl-C"] += 1
                if "Interrupted." not in said.errors:
                    self.faults.append(f"dsdb {command} did not say what goes on after Ctrl-C: {said}")
            case 1 | 2 if said.errors and "Traceback" not in said.errors and "XX000" not in said.errors:
                told = next(
                    (line for line in said.errors.splitlines() if line.startswith(("ERROR", "Error", "dsdb:"))), said.errors.strip()
                )
                self.ends[f"{command}: {told[:160]}"] += 1
            case _:
                self.faults.append(f"dsdb {command} ended with {said}")

    # ---- The end ----

    def settle(self) -> list[str]:
        """After all faults are over: let every node be active or gone, wait until all is at its place, and look; give what is wrong."""
        deadline = time.monotonic() + SETTLE_S
        wrong = ["nothing was looked at"]
        while wrong and time.monotonic() < deadline:
            try:
                wrong = self._settle_once() or self._check()
            except dsdb.Error as error:
                wrong = [f"the cluster does not say where its ranges are: {error}"]
            if wrong:
                time.sleep(0.5)
        return [*self.faults, *(f"{SETTLE_S:.0f} s after the last fault {what}" for what in wrong)]

    def _settle_once(self) -> list[str]:
        """Take back what was wanted of nodes, have those that are gone decommissioned; give what is not so yet."""
        cluster = self._cluster
        gone = {cluster.nodes[at].node_id for at in cluster.gone}
        states = {node_id: (state, is_live) for node_id, state, is_live in cluster.ask("SELECT node_id, state, is_live FROM system.nodes")}
        for node_id, (state, _) in states.items():
            if node_id in gone and state != "decommissioned":
                return self._until_done("decommission", node_id)
            if node_id not in gone and state != "active":
                return self._until_done("recommission", node_id)
        dead = [node_id for node_id, (_, is_live) in states.items() if node_id not in gone and not is_live]
        if dead:
            return [f"nodes {dead} are not live"]
        present = {cluster.nodes[at].node_id for at in cluster.present}
        misplaced = [sorted(replicas) for replicas in cluster.replicas() if len(replicas) != 3 or not replicas <= present]
        return [f"{len(misplaced)} ranges have replicas on {misplaced[:5]}, the nodes being {sorted(present)}"] if misplaced else []

    def _until_done(self, what: str, node_id: object) -> list[str]:
        said = self._cluster.steer("node", what, str(node_id), patience_s=PATIENCE_S)
        return [] if said.code == 0 else [f"dsdb node {what} {node_id} ends with {said}"]

    def _check(self) -> list[str]:
        said = self._cluster.command("debug", "check", self._cluster.url, "--quiet", patience_s=PATIENCE_S * 2)
        return [] if said.code == 0 else [f"dsdb debug check ends with exit code {said.code}:\n{said.output}{said.errors}"]

    def report(self) -> str:
        """Say what was done."""
        lines = [f"  {count:5} × dsdb {end}" for end, count in sorted(self.ends.items())]
        if self.healed_s:
            longest = max(self.healed_s)
            lines.append(f"  {len(self.healed_s)} nodes died for good; all ranges had three replicas again after {longest:.1f} s at most")
        return "\n".join(lines)
