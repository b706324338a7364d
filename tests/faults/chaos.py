"""Real processes, real clients, and everything that may happen to machines: does the cluster keep its promises?

    clients (chaos_clients) ─ transactions ─▶ 3 or 5 nodes, each behind a door (proxy) ◀─ kill, pause, cut, clock jump, disk full ─ here
        └─ history ─▶ checkers ─▶ verdict                                          └─▶ timeline.svg: faults beside throughput

    python -m tests.faults.chaos --minutes 3 [--seed N] [--nodes 5] [--picture FILE]

A killed node loses any part of its log that was not synced.  Faults may overlap; a quorum of nodes is left alone at each moment but for
connections that break and, now and then, a kill of all.  Ends with 1 if a promise was broken; then stores, logs and histories are kept.
"""

import argparse
import contextlib
import itertools
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import dsdb
from dsdb.cli.processes import NodeProcess
from tests.checkers import bank, listappend, register, sets
from tests.checkers.history import Anomaly, History, explain
from tests.faults import chaos_clients
from tests.faults.chaos_clients import Banker, Client, Collector, ListAppender, RegisterUser, SharedRecorder
from tests.faults.node_main import Hurts, hurt, lose_unsynced
from tests.faults.proxy import CutNetwork
from tests.faults.timeline import FaultSpan, draw

LAUNCHER = (sys.executable, str(Path(__file__).parent / "node_main.py"))
PROGRESS_S = 60.0
"""How long a healed cluster may take until each kind of client has had a transaction committed."""
ERRORS_SHOWN = 4
HOUR_MS = 3_600_000
KINDS = ("kill", "kill all", "pause", "isolate", "one-way cut", "drop connections", "clock jump", "disk full", "split")
WEIGHTS = (5, 1, 3, 3, 3, 2, 2, 2, 1)
LOADS: tuple[tuple[str, type[Client], int], ...] = (
    ("lists", ListAppender, 4),
    ("bank", Banker, 3),
    ("registers", RegisterUser, 2),
    ("set", Collector, 1),
)

TOTAL = chaos_clients.ACCOUNTS * chaos_clients.BALANCE
CHECKS: dict[str, Callable[[History], list[Anomaly]]] = {
    "lists": listappend.check,
    "bank": lambda history: bank.check(history, range(chaos_clients.ACCOUNTS), TOTAL),
    "registers": register.check,
    "set": sets.check,
}
"""What each load promises: strict serializability, the sum, linearizability, nothing lost or made up."""


class Chaos:
    """The cluster, its clients, and what was done to it."""

    def __init__(self, directory: Path, seed: int, nodes: int) -> None:
        self.chance = random.Random(seed)
        self.network = CutNetwork()
        self.nodes: list[NodeProcess] = []
        self.spans: list[FaultSpan] = []
        self.bytes_lost = 0
        self.began = time.monotonic()
        self.recorders = {name: SharedRecorder(time.monotonic_ns) for name, _, _ in LOADS}
        self.clients: list[Client] = []
        self.broken: dict[str, History] = {}
        """Histories in which something is wrong."""
        self._stop = threading.Event()
        self._hurt: set[int] = set()
        """Places in `nodes` of those that something is being done to."""
        self._lock = threading.Lock()
        self._splits = 100
        try:
            for number in range(1, nodes + 1):
                door = self.network.open_door()
                join = [self.network.doors[0].address] if self.nodes else []
                node = NodeProcess(directory / f"node{number}", advertise=door.address, join=join, launcher=LAUNCHER)
                self.nodes.append(node.start())
                door.lead_to(node.node_id, node.address)
            wait_until(self._is_replicated, "all ranges to have three replicas")
            chaos_clients.make_tables(self.url)
            wait_until(self._is_replicated, "all ranges to have three replicas")
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """Give a URL of all nodes."""
        return f"dsdb://{','.join(node.address for node in self.nodes)}/"

    def _is_replicated(self) -> bool:
        with dsdb.connect(f"{self.url}?autocommit=true") as connection:
            return all(str(row[4]).count(",") >= 2 for row in connection.execute("SHOW RANGES").fetchall())

    def close(self) -> None:
        """Stop all."""
        self.network.heal()
        for node in self.nodes:
            node.terminate()
        self.network.close()

    # ---- Load ----

    def run(self, seconds: float) -> None:
        """Load and faults for a time; then heal everything, and wait until all kinds of clients go on."""
        self.began = time.monotonic()
        number = 0
        for name, kind, count in LOADS:
            for _ in range(count):
                number += 1
                client = kind(self.url, number, self.chance.getrandbits(32), self.recorders[name], self._stop)
                self.clients.append(client)
                client.start()
        hurting = [threading.Thread(target=self._hurt_until, args=(self.began + seconds,), daemon=True) for _ in range(2)]
        for thread in hurting:
            thread.start()
        for thread in hurting:
            thread.join()
        self.network.heal()
        marks = {name: len(recorder.committed) for name, recorder in self.recorders.items()}
        wait_until(
            lambda: all(len(recorder.committed) > marks[name] + 5 for name, recorder in self.recorders.items()),
            "the clients to go on after the last fault",
        )
        self._stop.set()
        for client in self.clients:
            client.join(30)
            if client.error is not None:
                raise client.error

    # ---- Faults ----

    def _hurt_until(self, deadline: float) -> None:
        while (left := deadline - time.monotonic()) > 0:
            self._stop.wait(min(self.chance.uniform(0.2, 3.0), left))
            if time.monotonic() < deadline:
                self._fault(self.chance.choices(KINDS, WEIGHTS)[0])

    def _fault(self, kind: str) -> None:
        if kind in ("drop connections", "split"):
            self._timed(kind, "all" if kind == "split" else "", self.network.drop_connections if kind != "split" else self._split)
            return
        victims = self._choose(len(self.nodes) if kind == "kill all" else 1)
        if not victims:
            return
        try:
            for_s = self.chance.choice((0.3, 1.0, 2.0, 4.0))
            name = ",".join(str(self.nodes[at].node_id) for at in victims)
            act = {
                "kill": self._kill,
                "kill all": self._kill,
                "pause": self._pause,
                "isolate": self._isolate,
                "one-way cut": self._cut,
                "clock jump": self._jump,
                "disk full": self._fill,
            }[kind]
            self._timed("kill" if kind == "kill all" else kind, name, lambda: act(victims, for_s))
        finally:
            with self._lock:
                self._hurt.difference_update(victims)

    def _choose(self, count: int) -> list[int]:
        """Take nodes that nothing is done to; none if a quorum would not be left alone (or, of all, if any is hurt)."""
        with self._lock:
            free = [at for at in range(len(self.nodes)) if at not in self._hurt]
            if count == 1 and len(self._hurt) >= (len(self.nodes) - 1) // 2:
                return []
            if count > len(free):
                return []
            chosen = self.chance.sample(free, count)
            self._hurt.update(chosen)
            return sorted(chosen)

    def _timed(self, kind: str, target: str, act: Callable[[], object]) -> None:
        began = time.monotonic() - self.began
        act()
        self.spans.append(FaultSpan(kind, target, began, time.monotonic() - self.began))

    def _kill(self, victims: Sequence[int], for_s: float) -> None:
        for at in victims:
            self.nodes[at].kill()
        for at in victims:
            self.bytes_lost += lose_unsynced(self.nodes[at].store, self.chance)
        self._stop.wait(for_s)
        threads = [threading.Thread(target=self.nodes[at].start) for at in victims]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _pause(self, victims: Sequence[int], for_s: float) -> None:
        for at in victims:
            self.nodes[at].send_signal(signal.SIGSTOP)
        self._stop.wait(for_s)
        for at in victims:
            self.nodes[at].send_signal(signal.SIGCONT)

    def _isolate(self, victims: Sequence[int], for_s: float) -> None:
        own = [self.nodes[at].node_id for at in victims]
        others = [node.node_id for node in self.nodes if node.node_id not in own]
        for node_id in own:
            self.network.isolate(node_id, others)
        self._stop.wait(for_s)
        self.network.mend([link for one in own for other in others for link in ((one, other), (other, one))])

    def _cut(self, victims: Sequence[int], for_s: float) -> None:
        own = self.nodes[victims[0]].node_id
        others = [node.node_id for node in self.nodes if node.node_id != own]
        chosen = self.chance.sample(others, self.chance.randint(1, len(others)))
        links = [(own, other) if self.chance.random() < 0.5 else (other, own) for other in chosen]
        self.network.cut(links)
        self._stop.wait(for_s)
        self.network.mend(links)

    def _jump(self, victims: Sequence[int], for_s: float) -> None:
        self._change(victims, Hurts(wall_offset_ms=self.chance.choice((-HOUR_MS, HOUR_MS, -5000, 5000))), for_s)

    def _fill(self, victims: Sequence[int], for_s: float) -> None:
        self._change(victims, Hurts(is_disk_full=True), for_s)

    def _change(self, victims: Sequence[int], wrong: Hurts, for_s: float) -> None:
        for state in (wrong, Hurts()):
            for at in victims:
                hurt(self.nodes[at].store, state)
                self.nodes[at].send_signal(signal.SIGUSR1)
            if state is wrong:
                self._stop.wait(for_s)

    def _split(self) -> None:
        self._splits += 1
        table, key = self.chance.choice((("lists", chaos_clients.LISTS), ("accounts", chaos_clients.ACCOUNTS)))
        with contextlib.suppress(dsdb.Error), dsdb.connect(f"{self.url}?autocommit=true&statement_timeout=8s") as connection:
            connection.execute(f"ALTER TABLE {table} SPLIT AT VALUES ({self.chance.randrange(1, key)})")

    # ---- Verdict ----

    def check(self) -> list[str]:
        """Read everything a last time, and look for what must not be."""
        with dsdb.connect(f"{self.url}?autocommit=true") as connection:
            final_lists = [chaos_clients.read_list(connection, key) for key in range(chaos_clients.LISTS)]
            balances = chaos_clients.read_balances(connection)
            collected = chaos_clients.read_collected(connection)
        return [
            *self._verdict("lists", final_lists),
            *self._verdict("bank", balances),
            *self._verdict("registers", []),
            *self._verdict("set", [collected]),
        ]

    def _verdict(self, name: str, final: Sequence[object]) -> list[str]:
        recorder = self.recorders[name]
        if final:
            pending = recorder.begin(999)
            pending.ops.extend(final)  # type: ignore[arg-type]
            recorder.ok(pending)
        history = recorder.recorder.history(name)
        found: list[Anomaly] = CHECKS[name](history)
        if not found:
            return []
        self.broken[name] = history
        return [f"{name}: {explain(found)}"]


def report(chaos: Chaos, seconds: float) -> str:
    """Say what was done, and how much was done meanwhile."""
    kinds = Counter(span.kind for span in chaos.spans)
    lines = [", ".join(f"{count} × {kind}" for kind, count in sorted(kinds.items())) + f"; {chaos.bytes_lost} unsynced bytes cut off"]
    for name, recorder in chaos.recorders.items():
        moments = sorted(recorder.committed)
        gap = max((later - earlier for earlier, later in itertools.pairwise(moments)), default=0.0)
        lines.append(
            f"{name}: {len(moments)} committed ({len(moments) / seconds:.0f}/s), {recorder.failed} without effect, "
            f"{recorder.unknown} unknown; longest time without a commit {gap:.1f} s"
        )
        lines += [f"    {count:6} × {error[:160]}" for error, count in recorder.errors.most_common(ERRORS_SHOWN)]
    return "\n".join(lines)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until something holds; a cluster that cannot serve now counts as no.  Raises TimeoutError."""
    deadline = time.monotonic() + PROGRESS_S
    while True:
        try:
            if condition():
                return
        except dsdb.Error:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PROGRESS_S:.0f} s for {what}")
        threading.Event().wait(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--nodes", type=int, choices=(3, 5), default=3)
    parser.add_argument("--picture", type=Path, default=Path(tempfile.gettempdir()) / "dsdb-chaos.svg")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    print(f"seed {seed}, {arguments.nodes} nodes, {arguments.minutes:g} minutes", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="dsdb-chaos-"))
    faults = run(directory, seed, arguments.nodes, arguments.minutes * 60, arguments.picture)
    if faults:
        print("\n".join(["BROKEN:", *faults, f"stores, logs and histories are kept in {directory}"]))
        return 1
    print("no promise was broken")
    shutil.rmtree(directory)
    return 0


def run(directory: Path, seed: int, nodes: int, seconds: float, picture: Path) -> list[str]:
    """Run once; print what was done, draw it, and give what is wrong."""
    chaos = Chaos(directory, seed, nodes)
    try:
        faults: list[str] = []
        try:
            chaos.run(seconds)
            faults += chaos.check()
        except TimeoutError as error:
            faults.append(str(error))
        elapsed = time.monotonic() - chaos.began
        print(report(chaos, elapsed))
        moments = [moment - chaos.began for recorder in chaos.recorders.values() for moment in recorder.committed]
        title = f"chaos, seed {seed}, {nodes} nodes: " + (f"{len(faults)} promises broken" if faults else "no promise broken")
        draw(picture, title=title, seconds=elapsed, commits=moments, faults=chaos.spans)
        print(f"timeline: {picture}")
        for name, history in chaos.broken.items():
            history.save(directory / f"{name}.jsonl")
        return faults
    finally:
        chaos.close()


if __name__ == "__main__":
    sys.exit(main())
