"""A node of PySyncObj with a door for clients: `python -m bench.sides.pysyncobj_node PORT DIRECTORY OWN OTHER…`.

    client process ── Request ─▶ thread of this connection ── replicated call ─▶ PySyncObj's own thread ─▶ the other nodes

PySyncObj is a library for programs that hold the data themselves; clients that are processes of their own need a server, and this is the
least one: a thread a connection, msgpack without a schema of its own.
"""

import sys
import threading
import time
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Literal

import msgspec
from pysyncobj import SyncObj, SyncObjConf, SyncObjException, replicated  # type: ignore[import-untyped]

from bench import rows

CALL_S = 10.0
"""How long a replicated call may take; then it has failed."""


TICK_S = 0.002
"""How often a node looks what there is to do.  PySyncObj's own 0.05 and 0.1 s make every call wait 0.1 s."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks.

    operation: `put` a value, `get` one through the log, so that the answer is current; `fill` `count` keys from `key` on; `leader`: give
    the leader's address.
    """

    operation: Literal["put", "get", "fill", "leader"]
    key: int = 0
    value: str = ""
    count: int = 0


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What the node answers.  error: empty if it was done."""

    value: str = ""
    error: str = ""


class RefusedError(Exception):
    """The node could not do it."""


class Store(SyncObj):  # type: ignore[misc]
    """Keys and values, the same on every node."""

    def __init__(self, own: str, others: list[str], directory: Path) -> None:
        conf = SyncObjConf(
            journalFile=str(directory / "journal"),
            fullDumpFile=str(directory / "dump"),
            commandsWaitLeader=True,
            autoTickPeriod=TICK_S,
            appendEntriesPeriod=TICK_S,
        )
        super().__init__(own, others, conf=conf)
        self._values: dict[int, str] = {}

    @replicated  # type: ignore[untyped-decorator]
    def put(self, key: int, value: str) -> None:
        """Set a value."""
        self._values[key] = value

    @replicated  # type: ignore[untyped-decorator]
    def get(self, key: int) -> str:
        """Give a value, after everything that was set before."""
        return self._values[key]

    @replicated  # type: ignore[untyped-decorator]
    def fill(self, first: int, count: int) -> None:
        """Set many keys."""
        self._values.update(dict.fromkeys(range(first, first + count), rows.VALUE))

    def serve(self, request: Request) -> str:
        """Do what is asked.  Raises SyncObjException."""
        match request.operation:
            case "put":
                self.put(request.key, request.value, sync=True, timeout=CALL_S)
                return ""
            case "get":
                return str(self.get(request.key, sync=True, timeout=CALL_S))
            case "fill":
                self.fill(request.key, request.count, sync=True, timeout=CALL_S)
                return ""
            case "leader":
                return str(self.getStatus()["leader"])


def ask(connection: Connection, request: Request) -> str:
    """Send a request and wait for its answer.  Raises RefusedError."""
    connection.send_bytes(msgspec.msgpack.encode(request))
    answer = msgspec.msgpack.decode(connection.recv_bytes(), type=Answer)
    if answer.error:
        raise RefusedError(answer.error)
    return answer.value


def connect(port: int) -> Connection:
    """Connect to a node.  Raises ConnectionRefusedError as long as it has no leader."""
    return Client(("127.0.0.1", port))


def _serve_client(store: Store, connection: Connection) -> None:
    while True:
        try:
            request = msgspec.msgpack.decode(connection.recv_bytes(), type=Request)
        except (EOFError, ConnectionResetError):
            return
        try:
            answer = Answer(value=store.serve(request))
        except SyncObjException as error:
            answer = Answer(error=str(error) or type(error).__name__)
        connection.send_bytes(msgspec.msgpack.encode(answer))


def main(port: int, directory: Path, own: str, others: list[str]) -> None:
    """Run a node until it is killed."""
    store = Store(own, others, directory)
    while not store.isReady():
        time.sleep(0.02)
    with Listener(("127.0.0.1", port), backlog=128) as listener:
        while True:
            threading.Thread(target=_serve_client, args=(store, listener.accept()), daemon=True).start()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4:])
