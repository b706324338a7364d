"""PySyncObj as a peer: three processes, a replicated dictionary, a journal each.

Its journal is a mapped file that it never syncs: what it acknowledged can be lost with the machine, not with a process.  A call replicates
one command, so there are no transactions of several statements.
"""

import importlib.metadata
import importlib.util
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

from bench import rows
from bench.sides.port import ClientSpec, Contender, SideMissing, free_ports

if TYPE_CHECKING:
    from bench.sides.pysyncobj_node import Request

NODES = 3
START_S, STOP_S = 30.0, 10.0
_ROOT = Path(__file__).resolve().parent.parent.parent


class PysyncobjSide:
    """Three processes below a directory."""

    name = "pysyncobj"

    def __init__(self, directory: Path, *, kv_rows: int, wide_rows: int) -> None:
        self._directory = directory / "pysyncobj"
        self._kv_rows = kv_rows
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ports: list[int] = []
        self._addresses: list[str] = []
        self._is_filled = False
        self.version = ""

    def start(self) -> None:
        """Start all nodes and wait until each knows a leader.  Raises SideMissing."""
        if importlib.util.find_spec("pysyncobj") is None:
            raise SideMissing("pysyncobj is not installed: `make bench` installs it")
        self.version = importlib.metadata.version("pysyncobj")
        ports = free_ports(2 * NODES)
        self._ports = ports[:NODES]
        self._addresses = [f"127.0.0.1:{port}" for port in ports[NODES:]]
        for port, own in zip(self._ports, self._addresses):
            directory = self._directory / f"node{len(self._processes) + 1}"
            directory.mkdir(parents=True)
            others = [address for address in self._addresses if address != own]
            command = [sys.executable, "-m", "bench.sides.pysyncobj_node", str(port), str(directory), own, *others]
            with (directory / "log").open("ab") as log:
                self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=_ROOT))
        deadline = time.monotonic() + START_S
        for number in range(NODES):
            while not self._is_there(number):
                if time.monotonic() > deadline or self._processes[number].poll() is not None:
                    raise SideMissing(f"PySyncObj's node {number + 1} did not start")
                threading.Event().wait(0.05)

    def servers(self) -> list[int]:
        """Give the nodes' ids."""
        return [process.pid for process in self._processes]

    def prepare(self, workload: str) -> None:
        """Set the keys that are read."""
        if workload != "read" or self._is_filled:
            return
        client = PysyncobjClient(str(self._ports[0]))
        for first in range(0, self._kv_rows, rows.BULK_ROWS):
            client.fill(first, rows.BULK_ROWS)
        client.close()
        self._is_filled = True

    def check(self, workload: str) -> None:
        """Do nothing: it takes part in no workload that could break something."""

    def contenders(self, workload: str, clients: int) -> list[Contender]:
        """Say who takes part: one client is measured at the leader, many are spread over all nodes."""
        if workload not in ("read", "insert"):
            return []
        ports = self._ports if clients > 1 else [self._ports[self._leader()]]
        specs = tuple(ClientSpec(module="pysyncobj", address=str(ports[number % len(ports)])) for number in range(clients))
        return [Contender(label="pysyncobj, not synced", is_dsdb=False, specs=specs, servers=tuple(self.servers()))]

    def starts(self) -> dict[str, Callable[[], float]]:
        """Give none: an election is most of it."""
        return {}

    def close(self) -> None:
        """End all nodes, at once: their data goes with them."""
        for process in self._processes:
            process.kill()
            process.wait(STOP_S)
        self._processes = []

    def _is_there(self, number: int) -> bool:
        try:
            PysyncobjClient(str(self._ports[number])).close()
        except ConnectionRefusedError:
            return False
        return True

    def _leader(self) -> int:
        client = PysyncobjClient(str(self._ports[0]))
        leader = client.leader()
        client.close()
        return self._addresses.index(leader)


class PysyncobjClient:
    """A client of one node."""

    def __init__(self, address: str) -> None:
        from bench.sides.pysyncobj_node import RefusedError, Request, ask, connect  # noqa: PLC0415, RUF100

        self.errors: tuple[type[Exception], ...] = (RefusedError,)
        self._request, self._ask = Request, ask
        self._connection: Connection = connect(int(address))

    def read(self, key: int) -> None:
        """Read one value, through the log: what a node has in memory may be old."""
        assert self._call(self._request(operation="get", key=key)) == rows.VALUE, key

    def insert(self, key: int) -> None:
        """Set one value."""
        self._call(self._request(operation="put", key=key, value=rows.VALUE))

    def fill(self, first: int, count: int) -> None:
        """Set the values of many keys."""
        self._call(self._request(operation="fill", key=first, count=count))

    def leader(self) -> str:
        """Give the leader's address."""
        return self._call(self._request(operation="leader"))

    def _call(self, request: "Request") -> str:
        return self._ask(self._connection, request)

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()


def open_client(address: str) -> PysyncobjClient:
    """Connect."""
    return PysyncobjClient(address)
