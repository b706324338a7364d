"""Real processes, real clients, and everything that may happen to machines: does the cluster keep its promises?

    clients (chaos_clients) ─ transactions ─▶ 3 or 5 nodes on a network that can be cut ◀─ kill, pause, cut, clock jump, disk full ─ here
        └─ history ─▶ checkers ─▶ verdict      (namespaces, or a proxy)             └─▶ timeline.svg: faults beside throughput

    python -m tests.faults.chaos --minutes 3 [--seed N] [--nodes 5] [--network namespaces|proxy] [--elastic] [--tls] [--picture FILE]

A killed node loses any part of its log that was not synced.  Faults may overlap; a quorum of nodes is left alone at each moment but for
connections that break and, now and then, a kill of all; and mostly one of every range.  With --elastic nodes also come and go for good
(`elastic`), with --tls everything is encrypted.  Ends with 1 if a promise was broken; then stores,
logs and histories are kept.
"""

import argparse
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import dsdb
from dsdb.cli.processes import NodeProcess
from tests.checkers import bank, listappend, register, sets
from tests.checkers.history import Anomaly, History, explain
from tests.faults import chaos_clients, namespaces
from tests.faults.chaos_clients import Banker, Client, Collector, ListAppender, RegisterUser, SharedRecorder
from tests.faults.chaos_cluster import START_S, ChaosCluster
from tests.faults.elastic import Administrator
from tests.faults.namespaces import NamespaceNetwork
from tests.faults.node_main import Hurts, hurt, lose_unsynced
from tests.faults.proxy import CutNetwork
from tests.faults.timeline import draw
from tests.faults.verdict import FaultSpan, Load, Told, pauses, report

PROGRESS_S = 60.0
"""How long a healed cluster may take until each kind of client has had a transaction committed."""
CLIENT_ENDS_S = 30.0
"""How long after the last fault a client may wait for an answer: longer than SILENCE_MAX_S of its driver."""
HOUR_MS = 3_600_000
KINDS = {"kill": 5, "kill all": 1, "pause": 3, "isolate": 3, "one-way cut": 3, "clock jump": 2, "disk full": 2, "split": 1}
"""How often each kind of fault is chosen, beside those that only one of the networks has."""
QUORUM_LOST = 0.2
"""Of the faults that would cost some range its quorum, so many are let through."""
RANGES_LOOK_S = 1.0
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

    def __init__(
        self,
        directory: Path,
        seed: int,
        nodes: int,
        network: CutNetwork | NamespaceNetwork,
        *,
        is_elastic: bool = False,
        has_tls: bool = False,
    ) -> None:
        self.chance = random.Random(seed)
        self.network = network
        self.kinds = KINDS | network.faults
        self.spans: list[FaultSpan] = []
        self.ranges: dict[float, list[frozenset[int]]] = {}
        """At some moments of the run, the nodes that had replicas of each range."""
        self.faults: list[str] = []
        """What went wrong that no history shows."""
        self.bytes_lost = 0
        self.began = self.ended = time.monotonic()
        self.recorders = {name: SharedRecorder(time.monotonic_ns) for name, _, _ in LOADS}
        self.clients: list[Client] = []
        self.broken: dict[str, History] = {}
        """Histories in which something is wrong."""
        self._stop = threading.Event()
        self._hurt: set[int] = set()
        """Places in `nodes` of those that something is being done to."""
        self._lock = threading.Lock()
        self._splits = 100
        self.cluster = ChaosCluster(directory, network, has_tls=has_tls)
        self.nodes = self.cluster.nodes
        self.administrator = (
            Administrator(self.cluster, random.Random(seed + 1), timed=self._timed, take=self._take, free=self._free)
            if is_elastic
            else None
        )
        try:
            for _ in range(nodes):
                self.cluster.add()
            wait_until(self.cluster.is_replicated, "all ranges to have three replicas")
            chaos_clients.make_tables(self.cluster.url)
            wait_until(self.cluster.is_replicated, "all ranges to have three replicas")
            if self.administrator is not None:
                self.administrator.prepare()
        except BaseException:
            self.close()
            raise

    def _watch_ranges(self) -> None:
        while not self._stop.wait(RANGES_LOOK_S):
            with contextlib.suppress(dsdb.Error):
                self.ranges[time.monotonic() - self.began] = self.cluster.replicas()

    def close(self) -> None:
        """Stop all."""
        self.cluster.close()

    # ---- Load ----

    def run(self, seconds: float) -> None:
        """Load and faults for a time; then heal everything, and wait until all kinds of clients go on."""
        self.began = time.monotonic()
        self.ranges = {0.0: self.cluster.replicas()}
        threading.Thread(target=self._watch_ranges, daemon=True).start()
        number = 0
        for name, kind, count in LOADS:
            for _ in range(count):
                number += 1
                client = kind(lambda: self.cluster.url, number, self.chance.getrandbits(32), self.recorders[name], self._stop)
                self.clients.append(client)
                client.start()
        until = self.began + seconds
        hurting = [threading.Thread(target=self._hurt_until, args=(until,), daemon=True) for _ in range(2)]
        if self.administrator is not None:
            hurting[1] = threading.Thread(target=self.administrator.run, args=(self._stop, until), daemon=True)
        for thread in hurting:
            thread.start()
        for thread in hurting:
            thread.join()
        self.network.heal()
        if self.administrator is not None:
            self.faults += self.administrator.settle()
        marks = {name: len(recorder.committed) for name, recorder in self.recorders.items()}
        wait_until(
            lambda: all(len(recorder.committed) > marks[name] + 5 for name, recorder in self.recorders.items()),
            "the clients to go on after the last fault",
        )
        self._stop.set()
        self.ended = time.monotonic()
        deadline = time.monotonic() + CLIENT_ENDS_S
        for client in self.clients:
            client.join(max(deadline - time.monotonic(), 0.0))
            if client.error is not None:
                raise client.error
            if client.is_alive():
                self.faults.append(f"a {type(client).__name__} waits for an answer, {CLIENT_ENDS_S:.0f} s after the last fault")

    # ---- Faults ----

    def _hurt_until(self, deadline: float) -> None:
        while (left := deadline - time.monotonic()) > 0:
            self._stop.wait(min(self.chance.uniform(0.2, 3.0), left))
            if time.monotonic() < deadline:
                self._fault(self.chance.choices(list(self.kinds), list(self.kinds.values()))[0])

    def _fault(self, kind: str) -> None:
        if kind == "drop connections":
            self._timed(kind, [], self.network.drop_connections)
            return
        if kind == "split":
            self._timed(kind, [], self._split)
            return
        victims = self._choose(len(self.cluster.present) if kind == "kill all" else 1)
        if not victims:
            return
        try:
            for_s = self.chance.choice((0.3, 1.0, 2.0, 4.0))
            act = self._acts()[kind]
            self._timed(kind, victims, lambda: act(victims, for_s))
        finally:
            for at in victims:
                self._free(at)

    def _take(self, at: int | None) -> int | None:
        """Keep a node from all faults, or (None) one whose loss leaves every range a quorum; give which one it is, None if it cannot be."""
        if at is None:
            chosen = self._choose(1, may_lose_quorum=False)
            return chosen[0] if chosen else None
        with self._lock:
            if at in self._hurt or at in self.cluster.gone:
                return None
            self._hurt.add(at)
            return at

    def _free(self, at: int) -> None:
        with self._lock:
            self._hurt.discard(at)

    def _acts(self) -> dict[str, Callable[[Sequence[int], float], None]]:
        """Give what does each kind of fault to nodes, for so many seconds."""
        acts: dict[str, Callable[[Sequence[int], float], None]] = {
            "kill": self._kill,
            "kill all": self._kill,
            "pause": self._pause,
            "isolate": self._isolate,
            "one-way cut": self._cut,
            "clock jump": self._jump,
            "disk full": self._fill,
        }
        network = self.network
        if isinstance(network, NamespaceNetwork):
            acts["power off"] = lambda victims, for_s: self._power_off(network, victims, for_s)
            acts["unplug"] = lambda victims, for_s: self._for_a_time(network.unplug, network.plug, victims, for_s)
            acts["slow"] = lambda victims, for_s: self._for_a_time(network.slow, network.speed_up, victims, for_s)
        return acts

    def _choose(self, count: int, *, may_lose_quorum: bool = True) -> list[int]:
        """Take nodes that nothing is done to; none if a quorum would not be left alone (or, of all, if any is hurt).

        Where that would leave some range without one, as ranges have fewer replicas than there may be nodes: mostly none.
        """
        with self._lock:
            present = self.cluster.present
            free = [at for at in present if at not in self._hurt]
            if count == 1 and len(self._hurt) >= (len(present) - 1) // 2:
                return []
            if count > len(free):
                return []
            if count == 1 and (not may_lose_quorum or self.chance.random() >= QUORUM_LOST):
                free = [at for at in free if self._leaves_quorums(self._hurt | {at})]
            if count > len(free):
                return []
            chosen = self.chance.sample(free, count)
            self._hurt.update(chosen)
            return sorted(chosen)

    def _leaves_quorums(self, hurt: set[int]) -> bool:
        ids = {self.nodes[at].node_id for at in hurt}
        return all(len(replicas & ids) * 2 < len(replicas) for replicas in max(self.ranges.items())[1])

    def _timed(self, kind: str, victims: Sequence[int], act: Callable[[], object]) -> None:
        began = time.monotonic() - self.began
        act()
        nodes = tuple(self.nodes[at].node_id for at in victims)
        self.spans.append(FaultSpan(kind, nodes, began, time.monotonic() - self.began))

    def _kill(self, victims: Sequence[int], for_s: float) -> None:
        self._end(victims)
        self._stop.wait(for_s)
        self._start(victims)

    def _end(self, victims: Sequence[int]) -> None:
        for at in victims:
            if not self.nodes[at].is_running:
                self.faults.append(f"node {self.nodes[at].node_id} had ended by itself")
            self.nodes[at].kill()
        for at in victims:
            self.bytes_lost += lose_unsynced(self.nodes[at].store, self.chance)

    def _start(self, victims: Sequence[int]) -> None:
        threads = [threading.Thread(target=self._start_one, args=(self.nodes[at],)) for at in victims]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _start_one(self, node: NodeProcess) -> None:
        try:
            node.start(patience_s=START_S)
        except RuntimeError as error:
            self.faults.append(str(error))

    def _power_off(self, network: NamespaceNetwork, victims: Sequence[int], for_s: float) -> None:
        ids = [self.nodes[at].node_id for at in victims]
        for node_id in ids:
            network.unplug(node_id)
        self._end(victims)
        for node_id in ids:
            network.vanish(node_id)
        self._stop.wait(for_s)
        for node_id in ids:
            network.come_back(node_id)
        self._start(victims)

    def _for_a_time(self, begin: Callable[[int], None], end: Callable[[int], None], victims: Sequence[int], for_s: float) -> None:
        ids = [self.nodes[at].node_id for at in victims]
        for node_id in ids:
            begin(node_id)
        self._stop.wait(for_s)
        for node_id in ids:
            end(node_id)

    def _pause(self, victims: Sequence[int], for_s: float) -> None:
        for at in victims:
            self.nodes[at].send_signal(signal.SIGSTOP)
        self._stop.wait(for_s)
        for at in victims:
            self.nodes[at].send_signal(signal.SIGCONT)

    def _isolate(self, victims: Sequence[int], for_s: float) -> None:
        own = [self.nodes[at].node_id for at in victims]
        others = [self.nodes[at].node_id for at in self.cluster.present if at not in victims]
        for node_id in own:
            self.network.isolate(node_id, others)
        self._stop.wait(for_s)
        self.network.mend([link for one in own for other in others for link in ((one, other), (other, one))])

    def _cut(self, victims: Sequence[int], for_s: float) -> None:
        own = self.nodes[victims[0]].node_id
        others = [self.nodes[at].node_id for at in self.cluster.present if at not in victims]
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
        with contextlib.suppress(dsdb.Error):
            self.cluster.ask(f"ALTER TABLE {table} SPLIT AT VALUES ({self.chance.randrange(1, key)})", timeout_s=8)

    # ---- Verdict ----

    def check(self) -> list[str]:
        """Read everything a last time, and look for what must not be."""
        with dsdb.connect(f"{self.cluster.url}autocommit=true") as connection:
            final_lists = [chaos_clients.read_list(connection, key) for key in range(chaos_clients.LISTS)]
            balances = chaos_clients.read_balances(connection)
            collected = chaos_clients.read_collected(connection)
        return [
            *self.faults,
            *(f"{name}: {told.error}" for name, recorder in self.recorders.items() for told in recorder.errors if "XX000" in told.error),
            *(f"node {self.nodes[at].node_id} has ended by itself" for at in self.cluster.present if not self.nodes[at].is_running),
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


def loads(chaos: Chaos) -> list[Load]:
    """Give what became of the clients' transactions."""
    began = chaos.began
    return [
        Load(
            name=name,
            commits=[moment - began for moment in recorder.committed],
            failed=recorder.failed,
            unknown=recorder.unknown,
            errors=[Told(told.moment - began, told.error) for told in recorder.errors],
        )
        for name, recorder in chaos.recorders.items()
    ]


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
    parser.add_argument("--network", choices=("auto", "namespaces", "proxy"), default="auto")
    parser.add_argument("--elastic", action="store_true", help="nodes join, are drained and decommissioned, and die for good")
    parser.add_argument("--tls", action="store_true", help="with certificates; only in namespaces, as the proxy reads who connects")
    parser.add_argument("--picture", type=Path, default=Path(tempfile.gettempdir()) / "dsdb-chaos.svg")
    arguments = parser.parse_args()
    if arguments.tls and arguments.network == "proxy":
        parser.error("--tls needs network namespaces: the proxy reads from a peer's first bytes who it is")
    if arguments.network != "proxy" and not namespaces.is_inside():
        refusal = namespaces.refusal()
        if refusal is None:
            namespaces.enter("tests.faults.chaos", sys.argv[1:])
        print(f"network namespaces cannot be used here: {refusal}", flush=True)
        if arguments.network == "namespaces" or arguments.tls:
            return 2
    # As after Ctrl-C, all that was started is ended; the first process of a process namespace would not even hear of it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    network = CutNetwork() if arguments.network == "proxy" or not namespaces.is_inside() else NamespaceNetwork()
    through = "network namespaces" if isinstance(network, NamespaceNetwork) else "a proxy"
    how = f"{', elastic' if arguments.elastic else ''}{', TLS' if arguments.tls else ''}"
    print(f"seed {seed}, {arguments.nodes} nodes through {through}{how}, {arguments.minutes:g} minutes", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="dsdb-chaos-"))
    try:
        faults = run(
            directory,
            seed,
            arguments.nodes,
            network,
            arguments.minutes * 60,
            arguments.picture,
            is_elastic=arguments.elastic,
            has_tls=arguments.tls,
        )
    except (KeyboardInterrupt, SystemExit):
        shutil.rmtree(directory)
        raise
    if faults:
        print("\n".join(["BROKEN:", *faults, f"stores, logs and histories are kept in {directory}"]))
        return 1
    print("no promise was broken")
    shutil.rmtree(directory)
    return 0


def run(
    directory: Path,
    seed: int,
    nodes: int,
    network: CutNetwork | NamespaceNetwork,
    seconds: float,
    picture: Path,
    *,
    is_elastic: bool = False,
    has_tls: bool = False,
) -> list[str]:
    """Run once; print what was done, draw it, and give what is wrong."""
    chaos = Chaos(directory, seed, nodes, network, is_elastic=is_elastic, has_tls=has_tls)
    try:
        faults: list[str] = []
        try:
            chaos.run(seconds)
            faults += chaos.check()
        except TimeoutError as error:
            chaos.ended = time.monotonic()
            faults += [*chaos.faults, str(error)]
        elapsed = chaos.ended - chaos.began
        found = loads(chaos)
        print(report(found, chaos.spans, elapsed, chaos.ranges))
        if chaos.administrator is not None:
            print(chaos.administrator.report())
        print(f"{chaos.bytes_lost} bytes of logs that were not synced were cut off")
        moments = [moment for load in found for moment in load.commits]
        longest = max(pauses(moments, elapsed), key=lambda pause: pause.seconds)
        title = f"chaos, seed {seed}, {nodes} nodes: " + (f"{len(faults)} promises broken" if faults else "no promise broken")
        draw(picture, title=title, seconds=elapsed, commits=moments, faults=chaos.spans, longest=longest)
        print(f"timeline: {picture}")
        for name, history in chaos.broken.items():
            history.save(directory / f"{name}.jsonl")
        return faults
    finally:
        chaos.close()
        for node in chaos.nodes:
            (directory / f"node{node.node_id}.log").write_text("".join(node.lines))


if __name__ == "__main__":
    sys.exit(main())
