"""A network between real nodes that can be cut: each node advertises a door of ours, and its peers come in through that.

    node 1 ── connects to node 2's door ──▶ Door 2 ──▶ node 2      who connects is read from its Hello
                                              └─ bytes of a cut link wait, as TCP would keep sending them again

Invariants:
- A link is directed, from a node to a node: bytes from a to b wait while (a, b) is cut, on whichever connection they are.
- Nothing is lost but by `drop_connections`; order is kept.
"""

import contextlib
import socket
import threading
from collections.abc import Iterable
from types import TracebackType

import msgspec

from dsdb.rpc.frames import RPC_MAGIC, FrameReader
from dsdb.rpc.server import Hello

_READ_BYTES = 256 << 10
UNKNOWN = 0
"""The node id of a peer that has none yet."""


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """Where a node is to be: how it is started there, and how others come to it."""

    listen: str = "127.0.0.1:0"
    advertise: str | None = None
    """If it is another one."""
    launcher: tuple[str, ...] = ()
    """What stands before its command."""
    options: tuple[str, ...] = ()
    """What stands behind it."""


class CutNetwork:
    """The doors of a cluster's nodes, and which links are cut."""

    def __init__(self) -> None:
        self.doors: list[Door] = []
        self.faults = {"drop connections": 2}
        """What can be done to this network besides cutting links, and how often it shall be done."""
        self.delay_s = 0.0
        """Added to each piece of bytes, each way."""
        self._cut: set[tuple[int, int]] = set()
        self._changed = threading.Condition()
        self._is_closed = False

    def open_door(self) -> "Door":
        """Make a door for a node that is not started yet."""
        door = Door(self)
        self.doors.append(door)
        return door

    def add_node(self) -> Site:
        """Make a door for the next node, and say how it is to be started."""
        return Site(advertise=self.open_door().address)

    def name(self, number: int, node_id: int, address: str) -> None:
        """Learn which node is behind the `number`th door."""
        self.doors[number - 1].lead_to(node_id, address)

    def cut(self, links: Iterable[tuple[int, int]]) -> None:
        """Let nothing through from the first node of each pair to the second."""
        with self._changed:
            self._cut.update(links)

    def isolate(self, node_id: int, others: Iterable[int]) -> None:
        """Cut a node off, both ways."""
        for other in others:
            self.cut([(node_id, other), (other, node_id)])

    def heal(self) -> None:
        """Let everything through, what waited first."""
        with self._changed:
            self._cut.clear()
            self._changed.notify_all()

    def mend(self, links: Iterable[tuple[int, int]]) -> None:
        """Let through again what `cut` stopped on these links, what waited first."""
        with self._changed:
            self._cut.difference_update(links)
            self._changed.notify_all()

    def drop_connections(self) -> None:
        """Break all connections between nodes; new ones can be made."""
        for door in self.doors:
            door.drop_connections()

    def wait_open(self, link: tuple[int, int]) -> None:
        """Wait while a link is cut."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or link not in self._cut)
        if self.delay_s:
            threading.Event().wait(self.delay_s)

    def close(self) -> None:
        """Close all doors."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for door in self.doors:
            door.close()

    def __enter__(self) -> "CutNetwork":
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


class Door:
    """Where the peers of one node connect."""

    def __init__(self, network: CutNetwork) -> None:
        self._network = network
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self._node_id = UNKNOWN
        self._target: tuple[str, int] | None = None
        self._has_target = threading.Event()
        self._sockets: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def lead_to(self, node_id: int, address: str) -> None:
        """Say which node is behind it, once it is started."""
        host, _, port = address.rpartition(":")
        self._node_id, self._target = node_id, (host, int(port))
        self._has_target.set()

    def drop_connections(self) -> None:
        """Break the connections through this door."""
        for sock in list(self._sockets):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the door and its connections."""
        # A thread that accepts keeps the socket listening until it is woken.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._has_target.set()
        self.drop_connections()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(peer,), daemon=True).start()

    def _carry(self, peer: socket.socket) -> None:
        self._has_target.wait()
        with peer, contextlib.suppress(OSError):
            if self._target is None:
                return
            first, from_id = _read_hello(peer)
            with socket.create_connection(self._target) as node:
                ends = {peer, node}
                self._sockets |= ends
                back = threading.Thread(target=self._pump, args=(node, peer, (self._node_id, from_id)), daemon=True)
                back.start()
                self._network.wait_open((from_id, self._node_id))
                node.sendall(first)
                self._pump(peer, node, (from_id, self._node_id))
                back.join()
                self._sockets -= ends

    def _pump(self, source: socket.socket, sink: socket.socket, link: tuple[int, int]) -> None:
        try:
            while data := source.recv(_READ_BYTES):
                self._network.wait_open(link)
                sink.sendall(data)
            self._network.wait_open(link)
        except OSError:
            pass
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


def _read_hello(peer: socket.socket) -> tuple[bytes, int]:
    """Read up to a peer's Hello; give what was read, and the node id in it."""
    data = b""
    while more := peer.recv(_READ_BYTES):
        data += more
        if len(data) >= len(RPC_MAGIC):
            frames = FrameReader().feed(data[len(RPC_MAGIC) :])
            if frames:
                return data, msgspec.msgpack.decode(frames[0].payload, type=Hello).node_id
    return data, UNKNOWN
