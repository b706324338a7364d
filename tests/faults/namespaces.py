"""Nodes on networks of their own: each in a network namespace, joined by a router whose links can be cut, slowed and pulled out.

    ┌ namespaces of the run: network, mounts, processes ────────────────────────────────────────────────┐
    │  the harness and its clients = the router      dsdb1 ═ veth ═ eth0 ┌ namespace node1: 10.77.1.2 ┐ │
    │     `ip rule … iif dsdb1 to 10.77.2.2 blackhole`: nothing goes from node 1 to node 2              │
    │                                                dsdb2 ═ veth ═ eth0 ┌ namespace node2: 10.77.2.2 ┐ │
    └───────────────────────────────────────────────────────────────────────────────────────────────────┘

Packets are lost here, not delayed as by the proxy: TCP sends them again after ever longer pauses, and a node whose power fails says no
word to its peers, no end of connections either.

Invariants:
- The run goes into namespaces of its own before it makes anything (`enter`): no interface, route or mount of the machine is touched, and
  everything, its processes too, ends with the run, whatever ended it.
- Nothing goes from a to b while (a, b) is cut; clients reach every node that has power and whose cable is in.

It needs `ip`, `unshare` and `nsenter`, and root, or a kernel that lets others make user namespaces; `refusal` says what is missing.
Delay and loss come from `slow`: a queue of 1 Mbit/s before a node.  `tc netem`, which could choose them freely, is not used.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence

from tests.faults.proxy import Site

INSIDE = "DSDB_CHAOS_INSIDE"
"""Set in the environment of a run that is in its namespaces."""
_PORT = 5400
_SLOW = "tbf rate 1mbit burst 8kb latency 300ms"
_PREPARE = "mount -t tmpfs tmpfs /run && ip link set lo up && echo 1 > /proc/sys/net/ipv4/ip_forward"
_TRY = (
    f"{_PREPARE} && ip netns add try && ip link add try0 type veth peer name eth0 netns try && ip -n try link set eth0 up"
    f" && ip rule add iif try0 to 10.77.2.2 blackhole && nsenter --net=/run/netns/try {shlex.quote(sys.executable)} -c pass"
    " && ip link del try0 && ip netns del try"
)
_TRY_SLOW = f"ip link add try0 type veth peer name try1 && tc qdisc add dev try0 root {_SLOW}"


def own_namespaces() -> list[str]:
    """Give what stands before a command that is to run in namespaces of its own, as root there."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *user, "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]


def refusal() -> str | None:
    """Say why there can be no network namespaces here, or give None; tried, not guessed."""
    for tool in ("unshare", "nsenter", "ip", "mount"):
        if shutil.which(tool) is None:
            return f"there is no `{tool}`"
    return _try(_TRY)


def _try(script: str) -> str | None:
    tried = subprocess.run([*own_namespaces(), "sh", "-c", script], capture_output=True, text=True, timeout=20)
    return None if tried.returncode == 0 else (tried.stderr.strip().splitlines() or ["it failed without a word"])[-1]


def is_inside() -> bool:
    """Say whether this process is the run in its namespaces."""
    return INSIDE in os.environ


def enter(module: str, arguments: Sequence[str]) -> None:
    """Begin this process again as a Python module in namespaces of its own; never returns."""
    can_slow = shutil.which("tc") is not None and _try(_TRY_SLOW) is None
    os.environ[INSIDE] = "slow" if can_slow else "plain"
    sys.stdout.flush()
    command = [*own_namespaces(), sys.executable, "-m", module, *arguments]
    os.execvp(command[0], command)


class NamespaceNetwork:
    """The router, and what is wrong with its links.  Only inside (`enter`)."""

    def __init__(self) -> None:
        self._count = 0
        self._places: dict[int, int] = {}
        """Node id → the number in its namespace's name."""
        self._cut: set[tuple[int, int]] = set()
        self.faults = {"drop connections": 2, "unplug": 3, "power off": 4}
        """What can be done here, and how often it shall be done."""
        if os.environ[INSIDE] == "slow":
            self.faults["slow"] = 2
        _run(["sh", "-c", _PREPARE])

    # ---- Nodes ----

    def add_node(self) -> Site:
        """Make the network of the next node."""
        self._count += 1
        self._plug_new(self._count)
        return Site(
            listen=f"10.77.{self._count}.2:{_PORT}",
            launcher=("nsenter", f"--net=/run/netns/node{self._count}"),
            options=("--insecure",),
        )

    def name(self, number: int, node_id: int, address: str) -> None:
        """Learn the id of the node that was added as the `number`th."""
        assert address == f"10.77.{number}.2:{_PORT}", f"node {node_id} listens at {address}"
        self._places[node_id] = number

    def _plug_new(self, number: int) -> None:
        inside = f"node{number}"
        _run(["ip", "netns", "add", inside])
        _ip(f"link add dsdb{number} type veth peer name eth0 netns {inside}", *_router_end(number))
        _ip(
            "link set lo up",
            f"addr add 10.77.{number}.2/30 dev eth0",
            "link set eth0 up",
            f"route add default via 10.77.{number}.1",
            at=inside,
        )

    # ---- Links between nodes ----

    def cut(self, links: Iterable[tuple[int, int]]) -> None:
        """Let nothing through from the first node of each pair to the second."""
        new = sorted(set(links) - self._cut)
        self._cut.update(new)
        _ip(*(f"rule add {self._rule(link)}" for link in new))

    def mend(self, links: Iterable[tuple[int, int]]) -> None:
        """Let through again what `cut` stopped on these links."""
        old = sorted(set(links) & self._cut)
        self._cut.difference_update(old)
        _ip(*(f"rule del {self._rule(link)}" for link in old))

    def isolate(self, node_id: int, others: Iterable[int]) -> None:
        """Cut a node off from others, both ways."""
        self.cut([link for other in others for link in ((node_id, other), (other, node_id))])

    def _rule(self, link: tuple[int, int]) -> str:
        source, target = (self._places[node_id] for node_id in link)
        return f"iif dsdb{source} to 10.77.{target}.2 blackhole"

    def heal(self) -> None:
        """Mend all links; cables and queues are their faults' own."""
        self.mend(set(self._cut))

    def drop_connections(self) -> None:
        """Break all connections of all nodes, those to clients too; new ones can be made."""
        for number in self._places.values():
            # Where nothing is to be killed, or a connection ended first, it complains.
            subprocess.run(["ip", "netns", "exec", f"node{number}", "ss", "--tcp", "--kill", "state", "connected"], capture_output=True)

    # ---- Everything at one node ----

    def unplug(self, node_id: int) -> None:
        """Pull a node's cable: neither nodes nor clients reach it."""
        _ip(f"link set dsdb{self._places[node_id]} down")

    def plug(self, node_id: int) -> None:
        """Put a node's cable back."""
        _ip(f"link set dsdb{self._places[node_id]} up")

    def slow(self, node_id: int) -> None:
        """Have what comes to a node wait for up to 300 ms in a short queue, which drops what does not fit."""
        _run(["tc", "qdisc", "add", "dev", f"dsdb{self._places[node_id]}", "root", *_SLOW.split()])

    def speed_up(self, node_id: int) -> None:
        """Take the queue away."""
        _run(["tc", "qdisc", "del", "dev", f"dsdb{self._places[node_id]}", "root"])

    def vanish(self, node_id: int) -> None:
        """Forget everything that a node's kernel knew of its connections; its cable is out, so nobody hears of it.

        Its process must be killed between `unplug` and this.
        """
        number = self._places[node_id]
        _ip(f"link del dsdb{number}")
        _run(["ip", "netns", "del", f"node{number}"])

    def come_back(self, node_id: int) -> None:
        """Give a node that vanished its network back."""
        self._plug_new(self._places[node_id])

    def close(self) -> None:
        """End; the kernel takes everything away when the run ends."""


def _router_end(number: int) -> list[str]:
    return [f"addr add 10.77.{number}.1/30 dev dsdb{number}", f"link set dsdb{number} up"]


def _ip(*commands: str, at: str | None = None) -> None:
    """Run `ip` commands as one process."""
    if commands:
        _run(["ip", *(["-n", at] if at else []), "-batch", "-"], "\n".join(commands) + "\n")


def _run(command: Sequence[str], said: str = "") -> None:
    done = subprocess.run(command, input=said, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}\n{said}")
