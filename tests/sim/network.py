"""A network inside the process, for whole nodes under trio's MockClock: streams with delay, partitions (also one-way) and cuts.

A stream keeps the order of its bytes, as TCP does; what is lost is the connection, never a piece of it.

    a ── send ─▶ queue (deliver at t + delay) ─▶ b.receive_some        blocked a→b: the bytes wait until it is healed or cut
"""

import math
import random
from collections import deque

import trio

from dsdb.env import Address, NodeStream

SYN_RETRIES_S = (1, 2, 4, 8, 16, 32)
"""Pauses between the tries of one connect, as Linux makes them."""


class SimNetwork:
    """Connects the hosts of one simulated cluster; each host has a port of its own and the name that `host` gave it."""

    def __init__(self, chance: random.Random, *, delay_ms: tuple[int, int] = (0, 3)) -> None:
        self._chance = chance
        self._delay_ms = delay_ms
        self._listeners: dict[Address, SimListener] = {}
        self._pipes: list[Pipe] = []
        self._blocked: set[tuple[str, str]] = set()
        self._slow: dict[tuple[str, str], tuple[int, int]] = {}
        self._silent: dict[Address, str] = {}
        """Addresses of hosts that lost their power: nobody says that nobody listens."""
        self._next_port = 10_000
        self.connections = 0
        self.cut_connections = 0

    def host(self, name: str) -> "SimHost":
        """Give a host's view of the network."""
        return SimHost(self, name)

    def block(self, source: str, target: str) -> None:
        """Hold everything from one host to another."""
        self._blocked.add((source, target))

    def slow(self, source: str, target: str, delay_ms: tuple[int, int]) -> None:
        """Let everything from one host to another take so long."""
        self._slow[source, target] = delay_ms

    def heal(self) -> None:
        """Let everything through again, at its usual pace."""
        self._blocked.clear()
        self._slow.clear()
        for pipe in self._pipes:
            pipe.wake()

    def cut(self, name: str) -> None:
        """Break all connections of a host and close its listeners, as the death of its process would."""
        for pipe in [pipe for pipe in self._pipes if name in (pipe.source, pipe.target)]:
            pipe.break_off()
            self.cut_connections += 1
        for address, listener in sorted(self._listeners.items()):
            if listener.owner == name:
                listener.close()
                self._listeners.pop(address, None)

    def silence(self, name: str) -> None:
        """Lose a host without a word, as the loss of its power would: its peers' connections stay, and nothing comes of them."""
        for pipe in [pipe for pipe in self._pipes if name in (pipe.source, pipe.target)]:
            pipe.lose(name)
        for address, listener in sorted(self._listeners.items()):
            if listener.owner == name:
                listener.close()
                self._listeners.pop(address, None)
                self._silent[address] = name

    def reset(self, name: str, other: str) -> None:
        """Break the connections between two hosts; new ones can be made at once."""
        for pipe in [pipe for pipe in self._pipes if {name, other} == {pipe.source, pipe.target}]:
            pipe.break_off()

    def is_blocked(self, source: str, target: str) -> bool:
        return (source, target) in self._blocked

    def delay_s(self, source: str = "", target: str = "") -> float:
        # Whole milliseconds, so that ties happen and order never hides behind the clock.
        return self._chance.randint(*self._slow.get((source, target), self._delay_ms)) / 1000

    async def listen(self, owner: str, address: Address) -> "SimListener":
        if address.port == 0:
            address = Address(address.host, self._next_port)
            self._next_port += 1
        if address in self._listeners:
            raise OSError(98, "Address already in use")
        listener = self._listeners[address] = SimListener(owner, address)
        if self._silent.pop(address, None) is not None:
            # It is back, and answers every packet of a connection that it knows nothing of with a reset.
            for pipe in [pipe for pipe in self._pipes if pipe.lost_host is not None and owner in (pipe.source, pipe.target)]:
                pipe.reset_soon()
        return listener

    async def connect(self, source: str, address: Address) -> "SimStream":
        await trio.sleep(self.delay_s())
        for wait_s in SYN_RETRIES_S:
            listener = self._listeners.get(address)
            if listener is None and address not in self._silent:
                raise ConnectionRefusedError(111, "Connection refused")
            if listener is not None and not self.is_blocked(source, listener.owner) and not self.is_blocked(listener.owner, source):
                break
            await trio.sleep(wait_s)
        else:
            raise TimeoutError(110, "Connection timed out")
        there, back = Pipe(self, source, listener.owner), Pipe(self, listener.owner, source)
        self._pipes += [there, back]
        self.connections += 1
        listener.offer(SimStream(back, there))
        return SimStream(there, back)

    def break_connections(self, source: str, target: str) -> None:
        """Break what is left of the connections between two hosts, one of which has forgotten them."""
        for pipe in [pipe for pipe in self._pipes if pipe.lost_host is not None and {source, target} == {pipe.source, pipe.target}]:
            pipe.break_off()

    def forget(self, pipe: "Pipe") -> None:
        if pipe in self._pipes:
            self._pipes.remove(pipe)


class Pipe:
    """One direction of a connection."""

    def __init__(self, network: SimNetwork, source: str, target: str) -> None:
        self._network, self.source, self.target = network, source, target
        self._queue: deque[tuple[float, bytes]] = deque()
        self._last_at = 0.0
        self._is_ended = False
        self._is_broken = False
        self.lost_host: str | None = None
        """Of its two hosts the one that lost its power: nothing arrives any more."""
        self._is_reset_next = False
        self._changed = trio.Event()

    def put(self, data: bytes) -> None:
        if self._is_reset_next:
            self._network.break_connections(self.source, self.target)
        if self._is_broken or self._is_ended:
            raise trio.BrokenResourceError("connection broken")
        if self.lost_host is not None:
            return
        self._last_at = max(self._last_at, trio.current_time() + self._network.delay_s(self.source, self.target))
        self._queue.append((self._last_at, data))
        self.wake()

    def end(self) -> None:
        self._is_ended = True
        self.wake()

    def break_off(self) -> None:
        self._is_broken = True
        self._queue.clear()
        self._network.forget(self)
        self.wake()

    def lose(self, host: str) -> None:
        self.lost_host = host
        self._queue.clear()

    def reset_soon(self) -> None:
        self._is_reset_next = True

    def wake(self) -> None:
        self._changed.set()

    async def get(self, max_bytes: int) -> bytes:
        while True:
            if self._is_broken:
                raise trio.BrokenResourceError("connection broken")
            wait_s = math.inf
            if self._queue and not self._network.is_blocked(self.source, self.target):
                wait_s = self._queue[0][0] - trio.current_time()
                if wait_s <= 0:
                    at, data = self._queue.popleft()
                    if len(data) > max_bytes:
                        self._queue.appendleft((at, data[max_bytes:]))
                    return data[:max_bytes]
            elif self._is_ended and not self._queue:
                return b""
            self._changed = trio.Event()
            with trio.move_on_after(wait_s):
                await self._changed.wait()


class SimStream(NodeStream):
    """One end of a connection; a NodeStream."""

    def __init__(self, out: Pipe, into: Pipe) -> None:
        self._out, self._into = out, into
        self._is_closed = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._is_closed:
            raise trio.ClosedResourceError
        return await self._into.get(max_bytes or 65536)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        self.send_nowait(data)

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        if self._is_closed:
            raise trio.ClosedResourceError
        if len(data):
            self._out.put(bytes(data))
        return len(data)

    async def aclose(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            if self._out.lost_host != self._out.source:  # a host without power says nothing
                self._out.end()
                self._into.break_off()
        await trio.lowlevel.checkpoint()


class SimListener:
    """Accepts connections to one address; a NodeListener."""

    def __init__(self, owner: str, address: Address) -> None:
        self.owner = owner
        self.address = address
        self._send, self._receive = trio.open_memory_channel[SimStream](math.inf)

    def offer(self, stream: SimStream) -> None:
        self._send.send_nowait(stream)

    def close(self) -> None:
        self._send.close()

    async def accept(self) -> SimStream:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None

    async def aclose(self) -> None:
        self._send.close()
        self._receive.close()


class SimHost:
    """The network as one host sees it; a Network."""

    def __init__(self, network: SimNetwork, name: str) -> None:
        self.network, self.name = network, name

    async def listen(self, address: Address) -> SimListener:
        return await self.network.listen(self.name, address)

    async def connect(self, address: Address) -> SimStream:
        return await self.network.connect(self.name, address)


class SimClock:
    """A host's clock over trio's: may drift by a factor and start anywhere; its wall clock may jump."""

    def __init__(self, *, drift: float = 0.0, offset_s: float = 0.0) -> None:
        self._drift = drift
        self._offset_s = offset_s
        self.wall_jump_ms = 0

    def now(self) -> float:
        return trio.current_time() * (1 + self._drift) + self._offset_s

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + int(trio.current_time() * 1000) + self.wall_jump_ms
