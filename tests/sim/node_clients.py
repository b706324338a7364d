"""The clients of the simulated cluster, and what they know of it.

Statements run on the nodes' executors, as sessions would run them; the lists (`tests.checkers`) use the transactions below SQL, as these
can write in one range what they read in others.  Transactions of several statements are in `sql_clients`, those that change the
catalogue in `ddl_clients`.

A client of a host that dies sees its connection break: what it asked for is then unknown.
"""

import random
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
import trio

from dsdb.node.node import Node
from dsdb.sql.errors import CannotConnectNowError, LockNotAvailableError, SerializationError, SqlError, UnknownOutcomeError
from dsdb.sql.execute.result import Parameter
from dsdb.sql.execute.session import SessionState
from dsdb.sql.ports import AmbiguousCommitError, PortError, RangeUnavailableError, TransactionRetryError
from dsdb.sql.types import INT
from tests.checkers.history import Append, ReadList, Recorder, Violation
from tests.sim.ddl_clients import DdlClients
from tests.sim.past_clients import PastClients
from tests.sim.sql_clients import TABLES, SqlClients, only_row

T = TypeVar("T")

CLIENTS = 3
KINDS = ("insert", "count", "append", *TABLES)
"""Kinds of clients; there are so many of each."""
PAST = "past"
"""A kind that goes with others (`past_clients`)."""
COUNTERS = 3
LISTS = 6
EXPECTED = (CannotConnectNowError, SerializationError, LockNotAvailableError, RangeUnavailableError, TransactionRetryError)
"""What a client may be told while there are faults, or others."""
STATEMENT_S = 15.0
"""A statement must end within this, with rows or with an error: the patience of a transaction, and what its calls may take besides."""
HANGS_S = 120.0
"""What has not ended by then will never."""
IMPATIENT_S = 0.3
"""Some clients go away after this, whatever becomes of what they asked for; the others wait for hosts that cannot be reached."""

_encode = msgspec.msgpack.encode


class UnknownOutcome(Exception):
    """The client cannot tell what became of what it asked for."""


class ClientHost(Protocol):
    """A machine, as clients see it."""

    node: Node | None
    is_up: bool
    died: trio.Event


@dataclass
class Model:
    """What clients know."""

    inserted: dict[int, str] = field(default_factory=dict)  # id -> acknowledged | unknown | failed
    acknowledged_ids: list[int] = field(default_factory=list)
    asked: Counter[int] = field(default_factory=Counter)  # increments asked for, by counter
    acknowledged: Counter[int] = field(default_factory=Counter)
    failed: Counter[int] = field(default_factory=Counter)  # known not to have taken effect
    read: Counter[int] = field(default_factory=Counter)  # highest value that a finished read gave
    lists: Recorder = field(default_factory=Recorder)
    events: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0  # the longest statement
    slowest_back_s: float = 0.0  # from the last fault until every host served every range
    trace: int = 0

    def note(self, *what: object) -> None:
        """Add to the trace, by which two runs of a seed are compared."""
        self.trace = zlib.crc32(repr((round(trio.current_time(), 6), what)).encode(), self.trace)


class Clients:
    """All clients of one cluster."""

    def __init__(
        self,
        hosts: list[Any],
        model: Model,
        chance: random.Random,
        nursery: trio.Nursery,
        list_keys: list[bytes],
        kinds: tuple[str, ...] = KINDS,
        seed: int = 0,
    ) -> None:
        self._hosts = hosts
        self._model = model
        self._chance = chance
        self._nursery = nursery
        self._list_keys = list_keys
        self._kinds = kinds
        self._next_id = 1
        self.sql = SqlClients(chance, self._on_some_host, seed)
        self.ddl = DdlClients(chance, self._on_some_host)
        self.past = PastClients(chance, model, self._on_some_host, has_accounts="transfers" in kinds)
        self.is_over = False

    async def run(self, stop: Callable[[], Awaitable[None]]) -> None:
        """Let clients work until `stop` returns."""
        acts = {"insert": self._insert, "count": self._count, "append": self._append}
        async with trio.open_nursery() as nursery:
            for client in range(CLIENTS):
                for kind in self._kinds:
                    nursery.start_soon(self._loop, client, acts.get(kind) or partial(self._transact, kind))
            await stop()
            self.is_over = True

    async def _loop(self, client: int, act: Callable[[int], Awaitable[None]]) -> None:
        while not self.is_over:
            try:
                await act(client)
            except EXPECTED as error:
                self._model.events[f"error: {type(error).__name__}"] += 1
            except UnknownOutcome:
                self._model.events["unknown outcome"] += 1
            await trio.sleep(self._chance.choice((0, 0.001, 0.01, 0.05)))

    # ---- What clients do ----

    async def _insert(self, client: int) -> None:
        model = self._model
        if model.acknowledged_ids and self._chance.random() < 0.3:
            number = self._chance.choice(model.acknowledged_ids)
            if await self._sql("SELECT id FROM sets WHERE id = $1", number) != [(number,)]:
                raise Violation(f"row {number} was acknowledged, and a later read did not find it")
            return
        number, self._next_id = self._next_id, self._next_id + 1
        model.inserted[number] = "unknown"
        try:
            await self._sql("INSERT INTO sets VALUES ($1)", number)
            model.inserted[number] = "acknowledged"
            model.acknowledged_ids.append(number)
            model.events["insert acknowledged"] += 1
        except SqlError:
            model.inserted[number] = "failed"
            raise
        finally:
            model.note("insert", client, number, model.inserted[number])

    async def _count(self, client: int) -> None:
        model, counter = self._model, self._chance.randrange(COUNTERS)
        if self._chance.random() < 0.5:
            model.asked[counter] += 1
            try:
                await self._sql("UPDATE counters SET n = n + 1 WHERE id = $1", counter)
            except SqlError:
                model.failed[counter] += 1
                raise
            model.acknowledged[counter] += 1
            model.events["increment acknowledged"] += 1
            model.note("increment", client, counter)
            return
        least = max(model.acknowledged[counter], model.read[counter])
        rows = await self._sql("SELECT n FROM counters WHERE id = $1", counter)
        check_counter(model, counter, least, rows)
        model.events["counter read"] += 1
        model.note("read", client, counter, rows)

    async def _append(self, client: int) -> None:
        model, chance = self._model, self._chance
        read = chance.sample(range(LISTS), chance.choice((1, 2, 2, 3)))
        appended = tuple(read[: chance.choice((0, 1, 1, 2, 3))])
        pause_s = chance.choice((0, 0, 0, 0.01, 0.5))
        record = model.lists.begin(client)

        async def transact(node: Node) -> int:
            assert node.parts is not None
            txn = node.parts.transactions.begin()
            values = []
            for key in read:  # one after the other, so that the second read is at the timestamp that the first one took
                values += await txn.get([self._list_keys[key]])
            lists = {key: _decode_list(value) for key, value in zip(read, values)}
            record.ops += [ReadList(key, seen) for key, seen in lists.items()]
            await trio.sleep(pause_s)
            for key in appended:
                record.ops.append(Append(key, record.number))
                txn.put(self._list_keys[key], _encode((*lists[key], record.number)))
                if txn.is_full:
                    await txn.flush()
            return await txn.commit()

        try:
            ts = await self._on_some_host(transact, STATEMENT_S + pause_s)
        except PortError as error:
            model.lists.fail(record, str(error))
            raise
        # What is unknown is not ended: a dead host's task may still append, and its operations then count.
        model.lists.ok(record, ts)
        model.events["append acknowledged" if appended else "lists read"] += 1
        model.note("lists", client, record.number, record.ops, ts)

    async def _transact(self, kind: str, client: int) -> None:
        others = {"ddl": self.ddl.act, PAST: self.past.act}
        what = await (others[kind]() if kind in others else self.sql.act(kind, client))
        self._model.events[what] += 1
        self._model.note(what, client)

    async def read_lists(self, node: Node) -> None:
        """Read all lists, at one timestamp, when nobody is at them any more."""
        assert node.parts is not None
        record = self._model.lists.begin(CLIENTS)
        txn = node.parts.transactions.begin()
        for key, stored in enumerate(self._list_keys):
            record.ops.append(ReadList(key, _decode_list((await txn.get([stored]))[0])))
        self._model.lists.ok(record)
        self._model.note(record.ops)

    # ---- How they do it ----

    async def _sql(self, text: str, *values: int) -> list[tuple[Any, ...]]:
        return await self._on_some_host(lambda node: execute(node, text, *values), STATEMENT_S, text)

    async def _on_some_host(self, act: Callable[[Node], Awaitable[T]], limit_s: float | None, name: str = "a transaction") -> T:
        """Do something on a host.  Raises what it raises if that is known to have had no effect, else UnknownOutcome.

        limit_s: how long it may take; None: it sees to that itself.
        """
        host = self._chance.choice(self._hosts)
        if not host.is_up:
            await trio.sleep(0.05)
            raise CannotConnectNowError("the host is down")
        assert host.node is not None
        died, done = host.died, trio.Event()
        patience_s = self._chance.choice((HANGS_S, HANGS_S, HANGS_S, IMPATIENT_S))
        result: list[Any] = []

        async def run(node: Node) -> None:
            began = trio.current_time()
            try:
                result.append(await act(node))
            except Exception as error:  # a task's root: it is raised again where it is waited for
                result.append(error)
            seconds = trio.current_time() - began
            if not died.is_set() and limit_s is not None:
                self._model.slowest_s = max(self._model.slowest_s, seconds)
                if seconds > limit_s:
                    result[:] = [Violation(f"{name!r} took {seconds:.1f} s: {result}")]
            done.set()

        # Not in this task: a host that dies leaves its tasks where they are, and its clients go on.
        self._nursery.start_soon(run, host.node)
        async with trio.open_nursery() as waits:
            waits.start_soon(_cancel_after, died, waits.cancel_scope)
            with trio.move_on_after(patience_s):
                await done.wait()
            waits.cancel_scope.cancel()
        if died.is_set():
            raise UnknownOutcome
        if not done.is_set() and patience_s == HANGS_S:
            raise Violation(f"{name!r} has not ended after {HANGS_S:g} s")
        if not done.is_set():
            raise UnknownOutcome
        (value,) = result
        if isinstance(value, UnknownOutcomeError | AmbiguousCommitError):
            raise UnknownOutcome
        if isinstance(value, Exception):
            raise value
        return value  # type: ignore[no-any-return]


async def execute(node: Node, text: str, *values: int) -> list[tuple[Any, ...]]:
    """Run a statement with INT parameters, and give its rows."""
    assert node.parts is not None
    executor = node.parts.executor
    (statement,) = executor.prepare(text)
    result = await executor.run(SessionState(), statement, [Parameter(INT, value) for value in values])
    return result.rows or []


def check_counter(model: Model, counter: int, least: int, rows: list[tuple[Any, ...]]) -> None:
    """Raise Violation unless a counter's value is possible."""
    (value,) = only_row(rows)
    most = model.asked[counter] - model.failed[counter]
    if not least <= value <= most:
        raise Violation(f"counter {counter} reads {value}; at least {least} and at most {most} was possible")
    model.read[counter] = max(model.read[counter], value)


def _decode_list(stored: bytes | None) -> tuple[int, ...]:
    return () if stored is None else msgspec.msgpack.decode(stored, type=tuple[int, ...])


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
