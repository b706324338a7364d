"""The network of the protocol simulator: frames and calls as events, with what TCP and a lost connection do to them.

    a ── frame, request ─▶ heap (+ delay) ─▶ b        cut a→b: held, until it is healed
    a ◀───────── reply ── heap ◀──────────── b        reset: calls end as lost; what was on its way is lost, or comes later

Messages are handed over as they are, as all of them are frozen: encoding is tested elsewhere, and costs half of the time.

Invariants:
- What one process sends another on one connection arrives in order, once or never; a later connection may overtake it, also one of the
  sender's next life.
- Nothing sent to a process reaches the next one of its host.
- A call ends: with an answer, or as lost when its time is over, its connection broke, or its peer said nothing for long.
"""

import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Protocol

import outcome
import trio

from dsdb.kv.errors import KvError
from dsdb.kv.ids import NodeId, StoreId
from dsdb.rpc import Method, NotSent, ReplyLost
from dsdb.store.frame import SnapshotHeader, StoreFrame, TransportError
from tests.sim.protocol_loop import EventHeap

SILENCE_S = 2.0
"""A connection whose peer says nothing for so long is given up."""
CONNECT_S = 1.0
"""How long somebody is called who does not answer."""
LATE_S = (0.01, 0.1, 0.5, 2.0)
"""How much later what was on its way may come when its connection broke."""
Pair = tuple[int, int]


class HostDied(BaseException):
    """Ends what is left of a dead process: it can neither send nor look at its clock, whatever shields it from being cancelled."""


class Process(Protocol):
    """One life of a node, as the network sees it."""

    node_id: int
    is_dead: bool
    is_frozen: bool
    held: list[Callable[[], None]]
    """What arrived while it was frozen."""
    nursery: trio.Nursery
    handlers: dict[int, tuple[Callable[[Any], Any], Callable[[Any], Awaitable[Any]]]]
    """By method: what answers at once, or gives None, and what answers."""

    def receive(self, frame: StoreFrame) -> None:
        """Take a frame."""

    async def receive_snapshot(self, header: SnapshotHeader, chunks: AsyncIterator[bytes]) -> None:
        """Take a Raft snapshot."""


class _Call:
    __slots__ = ("pair", "scope", "server", "task")

    def __init__(self, pair: Pair, server: Process) -> None:
        self.pair = pair
        self.server = server
        self.task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        self.scope: trio.CancelScope | None = None

    def end(self, result: "outcome.Outcome[Any]") -> None:
        task, self.task = self.task, None
        if task is not None:
            trio.lowlevel.reschedule(task, result)

    def lose(self, why: str = "the connection broke") -> None:
        self.end(outcome.Error(ReplyLost(why)))


class Network:
    """All hosts' connections."""

    def __init__(self, heap: EventHeap, chance: random.Random, events: Counter[str], delay_ms: tuple[int, int]) -> None:
        self.heap = heap
        self._chance = chance
        self._events = events
        self._delay_ms = delay_ms
        self.processes: dict[int, Process] = {}
        """Who runs, by node."""
        self._cut: set[Pair] = set()
        self._slow: dict[Pair, tuple[int, int]] = {}
        self._held: dict[Pair, list[Callable[[], None]]] = {}
        self._given_up: set[Pair] = set()
        """Connections that were closed as nobody answered, and cannot be made again yet."""
        self.silent: set[int] = set()
        """Nodes that are gone without a word."""
        self._connections: dict[Pair, int] = {}
        """Numbers of connections: those of before were reset."""
        self._last: dict[tuple[int, int, int], float] = {}
        """When the last message of a connection arrives: by its two processes' `id`, which decides no order, and its number."""
        self._calls: dict[_Call, None] = {}
        self.loss = 0.0
        """The part of the frames, and calls, that are lost."""
        self.lateness = 0.0
        """The part of the calls that are lost to their callers, and come later."""
        self.snapshot_trouble = 0.0
        """How probable it is that a chunk of a Raft snapshot, or the answer to a part, is lost, doubled or damaged."""
        self.snapshot_watch: trio.Event | None = None
        """Set when a Raft snapshot is on its way …"""
        self.snapshot_pair: Pair = (0, 0)
        """… from one node to another."""

    # ---- Faults ----

    def cut(self, source: int, target: int) -> None:
        """Let nothing through from one node to another."""
        self._cut.add((source, target))

    def slow(self, source: int, target: int, delay_ms: tuple[int, int]) -> None:
        """Let everything from one node to another take so long."""
        self._slow[source, target] = delay_ms

    def heal(self, *, is_patient: bool = True, late_s: float = 0.0) -> None:
        """Let everything through again; what was held comes, `late_s` later, or, unless one is patient, some of it does not."""
        self._cut.clear()
        self._slow.clear()
        self._given_up.clear()
        self.loss = self.lateness = self.snapshot_trouble = 0.0
        held, self._held = self._held, {}
        for calls in held.values():
            if is_patient or self._chance.random() < 0.5:
                delay_s = late_s or self._chance.choice((0.0, 0.0, *LATE_S))
                for call in calls:
                    self.heap.after(delay_s, call)

    def reset(self, one: int, other: int) -> None:
        """Break the connections between two nodes: nobody knows what of it arrived."""
        for pair in ((one, other), (other, one)):
            self._connections[pair] = self._connections.get(pair, 0) + 1
        self._lose([call for call in self._calls if call.pair in ((one, other), (other, one))])

    def died(self, process: Process, *, is_silent: bool) -> None:
        """Tell who waits for a process, unless it lost its power."""
        node_id = process.node_id
        self.processes.pop(node_id, None)
        if is_silent:
            self.silent.add(node_id)
        else:
            waiting = [call for call in self._calls if call.server is process]
            self.heap.after(self._delay_s((node_id, node_id)), lambda: self._lose(waiting))

    def joined(self, process: Process) -> None:
        """Connect a new process."""
        node_id = process.node_id
        self.processes[node_id] = process
        if node_id in self.silent:
            self.silent.discard(node_id)
            self._lose([call for call in self._calls if call.server.node_id == node_id and call.server.is_dead])
        self._given_up = {pair for pair in self._given_up if node_id not in pair}

    def _lose(self, calls: list[_Call]) -> None:
        for call in calls:
            call.lose()

    # ---- Messages ----

    def _delay_s(self, pair: Pair) -> float:
        # Whole milliseconds, so that ties happen.
        least, most = self._slow.get(pair, self._delay_ms) if self._slow else self._delay_ms
        return int(least + self._chance.random() * (most - least + 1)) / 1000

    def _transmit(self, source: Process, target: Process, deliver: Callable[[], None], *, late_s: float = 0.0) -> None:
        """Have something arrive at a process, behind what was sent to it before."""
        pair = source.node_id, target.node_id
        number = self._connections.get(pair, 0)
        place = id(source), id(target), number
        heap = self.heap
        at = max(heap.now + self._delay_s(pair), self._last.get(place, 0.0))
        if not late_s:
            self._last[place] = at

        def arrive() -> None:
            if target.is_dead:
                return
            if pair in self._cut:
                self._held.setdefault(pair, []).append(arrive)
            elif target.is_frozen:
                target.held.append(arrive)
            elif number == self._connections.get(pair, 0) or late_s:
                deliver()
            elif self._chance.random() < 0.5:
                self._events["network: lost with its connection"] += 1
            else:
                self._events["network: came after its connection broke"] += 1
                deliver()

        heap.after(at - heap.now + late_s, arrive)

    def send_frame(self, source: Process, to: StoreId, frame: StoreFrame) -> None:
        """Send a frame; it may be lost."""
        if source.is_dead:
            raise HostDied
        target = self.processes.get(int(to))
        if target is None or (self.loss and self._chance.random() < self.loss):
            self._events["network: frame lost"] += 1
            return
        self._transmit(source, target, lambda: target.receive(frame))

    async def call(self, source: Process, node_id: NodeId, method: Method[Any, Any], request: Any, timeout_s: float) -> Any:
        """Call a method of a node.  Raises NotSent, ReplyLost, KvError."""
        if source.is_dead:
            raise HostDied
        pair = source.node_id, int(node_id)
        target = self.processes.get(int(node_id))
        if target is None or pair in self._given_up:
            is_refused = target is None and int(node_id) not in self.silent
            await trio.sleep(self._delay_s(pair) if is_refused else min(CONNECT_S, timeout_s))
            raise NotSent(f"no connection to node {node_id}")
        call = _Call(pair, target)
        self._send_call(source, call, method, request)
        self.heap.after(min(timeout_s, SILENCE_S), lambda: self._look_at(call, timeout_s - SILENCE_S))
        self._calls[call] = None

        def abort(_: object) -> trio.lowlevel.Abort:
            call.task = None
            if not source.is_dead:
                self._transmit(source, target, lambda: None if call.scope is None else call.scope.cancel())
            return trio.lowlevel.Abort.SUCCEEDED

        try:
            return await trio.lowlevel.wait_task_rescheduled(abort)
        finally:
            self._calls.pop(call, None)

    def _send_call(self, source: Process, call: _Call, method: Method[Any, Any], request: Any) -> None:
        target, late_s = call.server, 0.0
        if self.loss or self.lateness:
            # Its connection breaks: the request or its answer is lost, or the request comes when nobody waits for it any more.
            at = self._chance.random()
            what = "late" if at < self.lateness else self._chance.choice(("request", "reply")) if at < self.lateness + self.loss else ""
        else:
            what = ""
        if what:
            self._events[f"network: {what}" + (" request" if what == "late" else " lost")] += 1
            self.heap.after(self._delay_s(call.pair) * self._chance.randint(1, 4), call.lose)
            if what == "request":
                return
            late_s = self._chance.choice(LATE_S) * self._chance.random() if what == "late" else 0.0
        self._transmit(source, target, lambda: self._serve(source, target, call, method, request), late_s=late_s)

    def _look_at(self, call: _Call, left_s: float) -> None:
        """End a call that is out of time, or whose peer has said nothing."""
        if call.task is None:
            return
        is_silent = call.server.is_dead or call.server.is_frozen or call.pair in self._cut or call.pair[::-1] in self._cut
        if is_silent:
            self._given_up.add(call.pair)
        if is_silent or left_s <= 0:
            call.lose("the deadline passed")
        else:
            self.heap.after(left_s, lambda: call.lose("the deadline passed"))

    def _serve(self, source: Process, target: Process, call: _Call, method: Method[Any, Any], request: Any) -> None:
        try_fast, handle = target.handlers[method.number]
        if call.task is None:
            self._events["rare: late copy"] += 1
        try:
            reply = try_fast(request)
        except KvError as error:
            self._reply(source, target, call, outcome.Error(KvError(error.detail)))
            return
        if reply is not None:
            self._reply(source, target, call, outcome.Value(reply))
            return

        async def serve() -> None:
            with trio.CancelScope() as call.scope:
                try:
                    result = outcome.Value(await handle(request))
                except KvError as error:
                    result = outcome.Error(KvError(error.detail))
                self._reply(source, target, call, result)

        target.nursery.start_soon(serve)

    def _reply(self, source: Process, target: Process, call: _Call, result: "outcome.Outcome[Any]") -> None:
        if not target.is_dead:
            self._transmit(target, source, lambda: call.end(result))

    # ---- Raft snapshots ----

    async def send_snapshot(self, source: Process, to: StoreId, header: SnapshotHeader, chunks: AsyncIterator[bytes]) -> None:
        """Stream a Raft snapshot.  Raises TransportError."""
        target = self.processes.get(int(to))
        pair = source.node_id, int(to)
        if target is None or pair in self._cut or pair[::-1] in self._cut:
            raise TransportError("unreachable")
        send, receive = trio.open_memory_channel[bytes](2)
        done = trio.Event()
        failed: list[TransportError] = []
        taking = trio.CancelScope()

        async def take() -> None:
            try:
                with taking:
                    async with receive:
                        await target.receive_snapshot(header, receive)
                    self._events["rare: Raft snapshot installed"] += header.is_last
                    self._events["rare: Raft snapshot of several parts installed"] += header.is_last and header.first_chunk > 0
            except TransportError as error:
                failed.append(error)
            finally:
                done.set()

        target.nursery.start_soon(take)
        try:
            async for chunk in chunks:
                await trio.sleep(self._delay_s(pair))
                if pair in self._cut or target.is_dead:
                    raise TransportError("the connection broke")
                if self.snapshot_watch is not None:
                    self.snapshot_pair = pair
                    self.snapshot_watch.set()
                for piece in self._troubled(chunk) if self.snapshot_trouble else (chunk,):
                    await send.send(piece)
            send.close()
            with trio.move_on_after(SILENCE_S * 5):
                await done.wait()
            if self.snapshot_trouble and not failed and done.is_set() and self._chance.random() < self.snapshot_trouble * 2:
                self._events["rare: answer to a part of a Raft snapshot lost"] += 1
                raise TransportError("the connection broke")
        except trio.BrokenResourceError:
            raise TransportError("refused") from None
        finally:
            # A stream that breaks off is not one that has ended: its receiver hears of it.
            taking.cancel()
        if failed or not done.is_set():
            raise TransportError("not installed") from (failed[0] if failed else None)


    def _troubled(self, chunk: bytes) -> tuple[bytes, ...]:
        """Give what becomes of a chunk.  Raises TransportError: the connection breaks."""
        if self._chance.random() >= self.snapshot_trouble:
            return (chunk,)
        kind = self._chance.choice(("broken off", "lost", "doubled", "damaged"))
        self._events[f"rare: chunk of a Raft snapshot {kind}"] += 1
        match kind:
            case "broken off":
                raise TransportError("the connection broke")
            case "lost":
                return ()
            case "doubled":
                return chunk, chunk
            case _:
                at = self._chance.randrange(len(chunk))
                return (chunk[:at] + bytes([chunk[at] ^ 1 << self._chance.randrange(8)]) + chunk[at + 1 :],)


class Wire:
    """The network as one process sees it: the store's Transport, and what stands for `rpc.Peers`."""

    def __init__(self, network: Network, process: Process) -> None:
        self._network = network
        self._process = process

    def send(self, to: StoreId, frame: StoreFrame) -> None:
        self._network.send_frame(self._process, to, frame)

    async def send_snapshot(self, to: StoreId, header: SnapshotHeader, chunks: AsyncIterator[bytes]) -> None:
        await self._network.send_snapshot(self._process, to, header, chunks)

    async def call(self, node_id: NodeId, method: Method[Any, Any], request: Any, *, timeout_s: float = 10.0) -> Any:
        return await self._network.call(self._process, node_id, method, request, timeout_s)
