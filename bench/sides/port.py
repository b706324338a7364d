"""What a side of a comparison offers, and what its clients do."""

import importlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec


class SideMissing(Exception):
    """A side cannot take part here; the text says why and what to do."""


class ClientSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How a client process reaches its server.

    module: the one below bench.sides whose `open_client` makes the client; address: what that understands.
    """

    module: str
    address: str


class Contender(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a comparison: a side, and where its clients connect.

    label: `dsdb, oracle here`; specs: one a client; placement: what is where, for the record; servers: roots of the server processes.
    """

    label: str
    is_dsdb: bool
    specs: tuple[ClientSpec, ...]
    servers: tuple[int, ...]
    placement: str = ""


class Client(Protocol):
    """One client; it waits for each answer.  Beside these it has the operations, one argument each, of the workloads it takes part in:

    read(key)             read the value of a key of `kv`, which must be there
    insert(key)           insert one row into `ins`, durably
    insert_bulk(key)      insert BULK_ROWS rows into `bulk` from a key on, durably, all or none
    fetch_arrow(count)    fetch all of `wide` as an Arrow table, which must have so many rows
    fetch_pandas(count)   fetch all of `wide` as a pandas data frame, alike
    transfer(accounts)    make one transfer of `bench.bank` among so many accounts; give how many attempts were aborted before
    """

    errors: tuple[type[Exception], ...]
    """Exceptions that count as a failed statement; any other ends the run."""

    def close(self) -> None:
        """Disconnect."""


class Side(Protocol):
    """A database under test."""

    name: str

    def start(self) -> None:
        """Start the servers and wait until they answer.  Raises SideMissing."""

    def servers(self) -> Sequence[int]:
        """Give the ids of the server processes; what they start counts with them."""

    def prepare(self, workload: str) -> None:
        """Make and fill the tables of a workload, if they are not there yet.  Raises SideMissing if it cannot take part in this one."""

    def check(self, workload: str) -> None:
        """Look whether a workload left the tables as it must.  Raises bench.bank.Unsound."""

    def contenders(self, workload: str, clients: int) -> Sequence[Contender]:
        """Say who takes part with so many clients; nobody if the side has no such workload."""

    def starts(self) -> dict[str, Callable[[], float]]:
        """Give, by label, what starts a server (or an embedded database) and says how many seconds its first answer took."""

    def close(self) -> None:
        """End all servers."""


def open_client(spec: ClientSpec) -> Client:
    """Connect a client."""
    client: Client = importlib.import_module(f"bench.sides.{spec.module}").open_client(spec.address)
    return client


def end_servers_on_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does: by unwinding, so that no server outlives it."""

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # once is enough
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, end)


def free_ports(count: int) -> list[int]:
    """Give ports of 127.0.0.1 that nobody listens at now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(found.getsockname()[1]) for found in sockets]
    for found in sockets:
        found.close()
    return ports


def timed_in_interpreter(code: str) -> float:
    """Run code in a new interpreter; give the seconds that it took there, without the interpreter's own start."""
    timed = f"import time; begun = time.perf_counter()\n{code}\nprint(time.perf_counter() - begun)"
    done = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SideMissing(f"{code!r} failed: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}")
    return float(done.stdout.split()[-1])
