"""Three real nodes whose links can be cut, and what the tests ask of them."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import dsdb
from dsdb.cli.processes import NodeProcess
from tests.faults.proxy import CutNetwork

Result = TypeVar("Result")

PATIENCE_S = 20.0
"""Longer than any statement may take by itself, on a machine with much else to do."""


class CutCluster:
    """Nodes 1, 2 and 3, each behind a door of `network`."""

    def __init__(self, directory: Path) -> None:
        self.network = CutNetwork()
        self.nodes: list[NodeProcess] = []
        try:
            for number in (1, 2, 3):
                door = self.network.open_door()
                join = [self.network.doors[0].address] if self.nodes else []
                node = NodeProcess(directory / f"node{number}", advertise=door.address, join=join, http=True)
                self.nodes.append(node.start())
                door.lead_to(node.node_id, node.address)
            self._wait_replicated()
        except BaseException:
            self.close()
            raise

    def url(self, *nodes: NodeProcess) -> str:
        """Give a URL of these nodes, without any: of all."""
        return f"dsdb://{','.join(node.address for node in nodes or self.nodes)}"

    def node(self, node_id: int) -> NodeProcess:
        return next(node for node in self.nodes if node.node_id == node_id)

    def others(self, node: NodeProcess) -> list[NodeProcess]:
        return [other for other in self.nodes if other is not node]

    def isolate(self, node: NodeProcess) -> None:
        self.network.isolate(node.node_id, [other.node_id for other in self.others(node)])

    def leader(self, table: str, via: NodeProcess | None = None) -> NodeProcess:
        """Wait until a table's range has a leaseholder, and give its node."""
        found: list[int] = []

        def has_leader() -> bool:
            rows = ask(self.url(*([via] if via else [])), f"SHOW RANGES FROM TABLE {table}", column=3)
            found[:] = [node_id for (node_id,) in rows if isinstance(node_id, int)]
            return bool(found)

        wait_until(has_leader)
        return self.node(found[0])

    def _wait_replicated(self) -> None:
        wait_until(lambda: all(replicas == "{1,2,3}" for (replicas,) in ask(self.url(), "SHOW RANGES", column=4)), timeout_s=60)

    def close(self) -> None:
        self.network.heal()
        for node in reversed(self.nodes):
            node.terminate()
        self.network.close()

    def __enter__(self) -> "CutCluster":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def ask(url: str, sql: str, *, column: int | None = None) -> list[tuple[object, ...]]:
    """Run a query on a connection of its own; give its rows, or one column of them."""
    with dsdb.connect(url, autocommit=True) as connection:
        rows = connection.execute(sql).fetchall()
    return rows if column is None else [(row[column],) for row in rows]


def end_all(calls: Mapping[str, Callable[[], Result]], *, timeout_s: float) -> dict[str, Result]:
    """Make calls at the same time, each in a thread that nobody waits for longer; give what they gave.  Raises TimeoutError: which hang."""
    given: dict[str, Result] = {}

    def make(name: str) -> None:
        given[name] = calls[name]()

    threads = {name: threading.Thread(target=make, args=(name,), daemon=True) for name in calls}
    for thread in threads.values():
        thread.start()
    deadline = time.monotonic() + timeout_s
    for thread in threads.values():
        thread.join(max(0.0, deadline - time.monotonic()))
    if hanging := [name for name, thread in threads.items() if thread.is_alive()]:
        raise TimeoutError(f"still not over after {timeout_s:.0f} s: {hanging}")
    assert given.keys() == calls.keys(), f"failed: {sorted(calls.keys() - given.keys())}"
    return given


def wait_until(condition: Callable[[], bool], *, timeout_s: float = PATIENCE_S) -> float:
    """Wait until something holds, a cluster that cannot serve now counting as no; give how long it took."""
    began = time.monotonic()
    while True:
        try:
            if condition():
                return time.monotonic() - began
        except dsdb.OperationalError:
            pass
        if time.monotonic() - began > timeout_s:
            raise TimeoutError(f"not so within {timeout_s:.0f} s")
        threading.Event().wait(0.05)
