"""A node inside this process: for `dsdb.connect()` and `dsdb.connect("directory")`.

The node runs in a thread of its own and listens on the loopback; one node per directory per process, counted, so that two connections
to one directory share it.

Invariants:
- A directory that another process has open is an error, never shared.
- At exit every node is stopped, within EXIT_S; nothing of this process's settings is changed.
"""

import atexit
import threading
from pathlib import Path

import trio

from dsdb.env import Address
from dsdb.node.config import NodeConfig, StartError
from dsdb.node.node import Node

START_S = 20.0
"""How long a node may take to start; recovery of a large store's log is the longest part."""
EXIT_S = 5.0
"""How long exit waits for a node to stop."""

_lock = threading.Lock()
_open: dict[Path, "EmbeddedNode"] = {}


class EmbeddedNode:
    """A running node; close it once for each time it was opened."""

    def __init__(self, directory: Path | None) -> None:
        self.address: tuple[str, int] = ("127.0.0.1", 0)
        self._directory = directory
        self._users = 1
        self._started = threading.Event()
        self._error: BaseException | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._node: Node | None = None
        self._thread = threading.Thread(target=self._run, name="dsdb-node", daemon=True)
        self._thread.start()
        if not self._started.wait(START_S):
            raise StartError("the embedded node did not start in time.")
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Give it back; the last one stops the node."""
        with _lock:
            self._users -= 1
            if self._users:
                return
            if self._directory is not None:
                _open.pop(self._directory, None)
        self.stop()

    def share(self) -> "EmbeddedNode":
        """Count one more user."""
        self._users += 1
        return self

    def stop(self) -> None:
        """Stop the node now, whoever uses it."""
        if self._token is not None and self._node is not None:
            try:
                self._token.run_sync_soon(self._node.stop)
            except trio.RunFinishedError:
                pass  # it has ended already
        self._thread.join(EXIT_S)
        atexit.unregister(self.stop)

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:  # a thread's root: the opener raises it
            self._error = _first(error)
        finally:
            self._started.set()

    async def _main(self) -> None:
        config = NodeConfig(store=self._directory, listen=Address("127.0.0.1", 0), http=None)
        self._token = trio.lowlevel.current_trio_token()
        self._node = node = Node(config)
        async with trio.open_nursery() as nursery:
            await nursery.start(node.run)
            self.address = (node.address.host, node.address.port)
            self._started.set()
            await node.ended.wait()


def open_embedded(path: str | None) -> EmbeddedNode:
    """Open the node of a directory (None: one in memory, of its own).  Raises StartError with a sentence."""
    if path is None:
        node = EmbeddedNode(None)
        atexit.register(node.stop)
        return node
    directory = Path(path).resolve()
    with _lock:
        known = _open.get(directory)
        if known is not None:
            return known.share()
        node = _open[directory] = EmbeddedNode(directory)
    atexit.register(node.stop)
    return node


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
