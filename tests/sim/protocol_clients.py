"""The clients of the protocol simulator: transactions below SQL, on all nodes, and the histories of what they saw.

| clients | what they do | what must hold |
| --- | --- | --- |
| lists | read lists of several ranges, one by one or by a scan, some under locks, and append to some of them | `listappend`, `timestamps` |
| bank | move money between accounts in several ranges; read all accounts, now or as they were | `bank` |
| registers | read, set, or compare and set a single key | `register`: linearizable, key by key |

They work in bursts, as what rests costs nothing, and what is rare happens when many are at it while something breaks.

A client of a process that dies, or does not answer for long, does not learn what became of its transaction.
"""

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import trio

from dsdb.sql.errors import DataCorruptedError, InvalidParameterError
from dsdb.sql.ports import AmbiguousCommitError, PortError, RangeUnavailableError, RowLockedError, TransactionRetryError
from dsdb.storage.keys import Span, index_prefix
from dsdb.storage.rowcodec import codec_for
from dsdb.storage.timestamp import COUNTER_BITS, Timestamp
from dsdb.txn.transaction import KvTransaction
from tests.checkers import bank, listappend, register, timestamps
from tests.checkers.history import Append, Cas, Pending, Read, ReadList, Recorder, Violation, Write, refuse
from tests.sim.protocol_loop import EventHeap
from tests.sim.protocol_node import LAYOUT, Host, SimNode

CLIENTS = 6
RANGES = 3
LISTS, ACCOUNTS, REGISTERS = 6, 4, 4
TOTAL = ACCOUNTS * 100
KINDS = ("lists", "bank", "registers")
ATTEMPTS_MAX = 4
LIMIT_S = 16.0
"""What a transaction may take, whatever is broken: its patience, and what its calls take besides."""
FLUSH_S = 10.0
"""What the last flush of one that flushes may take besides."""
HANGS_S = 90.0
IMPATIENT_S = 0.3
GARBAGE_S = 25.0
"""How old what is collected is: no transaction that runs as it should reads it any more."""


class TooOld(Exception):
    """A read of the past asked for what is rightly collected."""


EXPECTED = (DataCorruptedError, RangeUnavailableError, RowLockedError, TransactionRetryError, TooOld)

_row = codec_for(LAYOUT)


def index_of(number: int) -> bytes:
    """Give what the keys of a range begin with: an index each, as columnar blocks never span two."""
    return index_prefix(1, 0x61 + number % RANGES, 1)


def key_of(kind: int, number: int) -> bytes:
    """Give a key: one kind after the other in each of the ranges, in turn.  None is the beginning of another."""
    return index_of(number) + bytes([kind, number, 0])


BOUNDARIES = [index_of(number) for number in range(1, RANGES)]
LIST_KEYS = [key_of(1, number) for number in range(LISTS)]
ACCOUNT_KEYS = [key_of(2, number) for number in range(ACCOUNTS)]
REGISTER_KEYS = [key_of(3, number) for number in range(REGISTERS)]
SPLIT_KEYS = sorted(key for keys in (LIST_KEYS, ACCOUNT_KEYS, REGISTER_KEYS) for key in keys)
"""Where ranges may be split: before any key."""
OTHER_KEYS = [key[:-1] + b"\x01" for key in SPLIT_KEYS]
"""Keys that no client uses, one behind each place where ranges may be split."""


ROW = _row.encode((b"nobody reads it",))


class Asked:
    """A transaction at a process, and its answer."""

    __slots__ = ("answer", "done", "has_died")

    def __init__(self) -> None:
        self.done = trio.Event()
        self.has_died = False
        self.answer: int | Exception | None = None


class Clients:
    """All clients of one run."""

    def __init__(self, heap: EventHeap, hosts: list[Host], chance: random.Random, events: Counter[str], kinds: tuple[str, ...]) -> None:
        self._heap = heap
        self._hosts = hosts
        self._chance = chance
        self._events = events
        self._kinds = kinds
        self.records = {kind: Recorder() for kind in (*KINDS, *kinds)}
        self._asked: dict[Asked, SimNode] = {}
        self._busy_until = 0.0
        self._busy = trio.Event()
        self._filled_at = Timestamp(0)
        """When the accounts were filled: there is nothing to see before."""
        self.is_over = False
        self.flushes = False
        """Transactions are of several statements, as they flush what they write."""
        self.is_narrow = False
        """Ranges are being split: transactions over keys of one range are wanted."""
        self.trace: list[object] = []
        """What clients were told, by which two runs of a seed are compared."""
        self.slowest_s = 0.0

    # ---- Bursts ----

    def burst(self, seconds: float) -> None:
        """Have clients work for so long."""
        self._busy_until = max(self._busy_until, self._heap.now + seconds)
        self._busy.set()

    async def wait_busy(self) -> bool:
        """Wait until there is work; say whether there was none."""
        if self._heap.now < self._busy_until:
            return False
        if self._busy.is_set():
            self._busy = trio.Event()
        await self._busy.wait()
        return True

    def end(self) -> None:
        """Have them end."""
        self.is_over = True
        self._busy.set()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for client in range(CLIENTS):
                nursery.start_soon(self._loop, client)

    async def _loop(self, client: int) -> None:
        acts = {"lists": self._append, "bank": self._transfer, "registers": self._use_register}
        while not self.is_over:
            if await self.wait_busy():
                await trio.sleep(self._chance.random() * 0.05)
                continue
            kind = self._kinds[client % len(self._kinds)] if client < len(self._kinds) else self._chance.choice(self._kinds)
            await acts[kind](client)
            await trio.sleep(self._chance.choice((0, 0.001, 0.01, 0.05, 0.2)))

    def died(self, node: SimNode) -> None:
        """Tell the clients of a process that it is dead."""
        for asked, at in list(self._asked.items()):
            if at is node:
                asked.has_died = True
                asked.done.set()

    # ---- What clients do ----

    async def _append(self, client: int) -> None:
        chance = self._chance
        read = chance.sample(range(LISTS), chance.choice((1, 2, 2, 3)))
        appended = read[: chance.choice((0, 1, 1, 2, 3))]
        if chance.random() < (0.8 if self.is_narrow else 0.2):
            # All those of one range, which may be cut in two meanwhile.
            read = appended = list(range(chance.randrange(RANGES), LISTS, RANGES))
        locked = set(appended) if chance.random() < 0.25 else set[int]()
        is_scan, is_undone = chance.random() < 0.2, chance.random() < 0.25
        undo_pause_s = chance.choice((0, 0.1, 0.5))
        pause_s = chance.choice((0, 0, 0, 0.01, 0.5))
        record = self.records["lists"].begin(client)

        async def act(txn: KvTransaction) -> None:
            lists: dict[int, tuple[Any, ...]] = {}
            if is_scan:
                lists = await self._scan_lists(txn, read[0] % RANGES, record)
            for number in read:  # one after the other, so that the second read is at the timestamp that the first one took
                key = LIST_KEYS[number]
                if number in locked:
                    lists[number] = _decode((await txn.get_locked([key]))[0][1])
                else:
                    lists[number] = _decode((await txn.get([key]))[0])
                record.ops.append(ReadList(number, lists[number]))
            await trio.sleep(pause_s)
            if is_undone:
                await self._undo(txn, appended)
                await trio.sleep(undo_pause_s)
            for number in appended:
                record.ops.append(Append(number, record.number))
                txn.put(LIST_KEYS[number], encode((*lists[number], record.number)))
                if txn.is_full:
                    await txn.flush()
            if is_undone:
                await trio.sleep(undo_pause_s)

        await self._transact("lists", client, record, act, pause_s + 2 * undo_pause_s)

    @staticmethod
    async def _undo(txn: KvTransaction, lists: list[int]) -> None:
        """Write what nobody may ever see, and return to a savepoint."""
        savepoint = txn.savepoint()
        for number in lists:
            txn.put(LIST_KEYS[number], encode((-1,)))
            if txn.is_full:
                await txn.flush()
        txn.rollback_to(savepoint)

    @staticmethod
    async def _scan_lists(txn: KvTransaction, letter: int, record: Pending) -> dict[int, tuple[Any, ...]]:
        """Read all lists of a part of the keys by one scan."""
        numbers = range(letter, LISTS, RANGES)
        start = index_of(letter) + b"\x01"
        found = dict(await txn.scan(Span(start, start + b"\xff")))
        lists = {number: _decode(found.get(LIST_KEYS[number])) for number in numbers}
        record.ops += [ReadList(number, values) for number, values in lists.items()]
        return lists

    async def _transfer(self, client: int) -> None:
        chance = self._chance
        record = self.records["bank"].begin(client)
        is_total, is_locking = chance.random() < 0.3, chance.random() < 0.3
        source, target = chance.sample(range(ACCOUNTS), 2)
        amount = chance.randint(1, 20)
        past_ms = chance.choice((0, 100, 500, 4_000)) if is_total else 0

        async def total(txn: KvTransaction) -> None:
            keys = ACCOUNT_KEYS[:]
            chance.shuffle(keys)
            groups = [[key] for key in keys] if chance.random() < 0.5 else [keys]
            for group in groups:
                values = await txn.get(group)
                record.ops += [Read(ACCOUNT_KEYS.index(key), _decode_number(value)) for key, value in zip(group, values)]

        async def move(txn: KvTransaction) -> None:
            keys = [ACCOUNT_KEYS[source], ACCOUNT_KEYS[target]]
            if is_locking:
                found = [value for _, value in await txn.get_locked(keys)]
            else:
                found = [(await txn.get([key]))[0] for key in keys]
            balances = [_decode_number(value) for value in found]
            record.ops += [Read(source, balances[0]), Read(target, balances[1])]
            if balances[0] is None or balances[1] is None or balances[0] < amount:
                return
            for number, balance in ((source, balances[0] - amount), (target, balances[1] + amount)):
                record.ops.append(Write(number, balance))
                txn.put(ACCOUNT_KEYS[number], encode(balance))
                if txn.is_full:
                    await txn.flush()

        await self._transact("bank", client, record, total if is_total else move, 0.0, past_ms=past_ms)

    async def _use_register(self, client: int) -> None:
        chance = self._chance
        record = self.records["registers"].begin(client)
        number = chance.randrange(REGISTERS)
        key = REGISTER_KEYS[number]
        what = chance.choice(("read", "read", "write", "cas"))

        async def act(txn: KvTransaction) -> None:
            if what == "write":
                record.ops.append(Write(number, record.number))
                txn.put(key, encode(record.number))
                return
            value = _decode_number((await txn.get([key]))[0])
            if what == "read":
                record.ops.append(Read(number, value))
            else:
                record.ops.append(Cas(number, value, record.number))
                txn.put(key, encode(record.number))

        await self._transact("registers", client, record, act, 0.0)

    # ---- How they do it ----

    async def _transact(
        self, kind: str, client: int, record: Pending, act: Callable[[KvTransaction], Awaitable[None]], pause_s: float, *, past_ms: int = 0
    ) -> None:
        """Run a transaction on some host, again if it must be, and note what became of it."""
        records = self.records[kind]
        node = self._chance.choice(self._hosts).node
        if node is None:
            records.fail(record, "the host is down")
            await trio.sleep(0.05)
            return
        asked = Asked()
        self._asked[asked] = node
        attempts = self._chance.randint(1, ATTEMPTS_MAX)
        patience_s = self._chance.choice((HANGS_S, HANGS_S, HANGS_S, IMPATIENT_S))
        node.nursery.start_soon(self._run, node, asked, record, act, attempts, past_ms)
        began, thaws = self._heap.now, node.thaws
        with trio.move_on_after(patience_s):
            await asked.done.wait()
        self._asked.pop(asked, None)
        answer, seconds = asked.answer, self._heap.now - began
        self.trace.append((round(self._heap.now, 6), kind, client, record.number, str(answer), len(record.ops)))
        if asked.has_died or answer is None:
            if patience_s == HANGS_S and not asked.has_died:
                raise Violation(f"a transaction of {kind} has not ended after {HANGS_S:g} s")
            self._events[f"{kind}: nobody knows"] += 1
            return  # it is not ended: its process may go on with it, and its operations then count
        if node.thaws == thaws:
            self.slowest_s = max(self.slowest_s, seconds)
            limit_s = LIMIT_S + pause_s + (FLUSH_S if self.flushes else 0)
            if seconds > limit_s * attempts:
                raise Violation(f"a transaction of {kind} took {seconds:.1f} s")
        self._note(kind, record, answer)

    def _note(self, kind: str, record: Pending, answer: int | Exception) -> None:
        records = self.records[kind]
        if isinstance(answer, AmbiguousCommitError):
            records.info(record)
            self._events[f"{kind}: unknown outcome"] += 1
        elif isinstance(answer, EXPECTED):
            records.fail(record, str(answer))
            self._events[f"{kind}: {type(answer).__name__}"] += 1
        elif isinstance(answer, Exception):
            raise answer
        else:
            records.ok(record, answer)
            self._events[f"{kind}: done"] += 1

    async def _run(
        self, node: SimNode, asked: Asked, record: Pending, act: Callable[[KvTransaction], Awaitable[None]], attempts: int, past_ms: int
    ) -> None:
        start_ts = read_ts = None
        answer: int | Exception = 0
        if past_ms and node.oracle.latest > self._filled_at + (past_ms << COUNTER_BITS):
            read_ts = Timestamp(node.oracle.latest - (past_ms << COUNTER_BITS))
        for attempt in range(1, attempts + 1):
            record.restart()
            txn = node.transactions.begin(read_ts=read_ts, start_ts=start_ts)
            try:
                await act(txn)
                answer = await txn.commit()
            except TransactionRetryError as error:
                answer = error
                start_ts = txn.start_ts
                await txn.rollback()
                if attempt < attempts:
                    continue
            except (PortError, DataCorruptedError) as error:
                answer = error
                await txn.rollback()
            except InvalidParameterError as error:
                # A host that has long heard nothing of the oracle asks for what is older than it knows.
                answer = TooOld(str(error)) if read_ts is not None and self._is_collectable(read_ts) else error
                await txn.rollback()
            except Exception as error:  # a task's root: it is raised again where it is waited for
                answer = error
            break
        # Not before: who has lost patience meanwhile does not know.
        asked.answer = answer
        asked.done.set()

    def _is_collectable(self, read_ts: Timestamp) -> bool:
        """Say whether what is of a time may have been collected since, by the newest time that any host knows."""
        newest = max(host.node.oracle.latest for host in self._hosts if host.node is not None)
        return newest - read_ts >= round(GARBAGE_S * 1000) << COUNTER_BITS

    # ---- Before and after ----

    async def set_up(self, node: SimNode) -> None:
        """Fill the accounts."""
        record = self.records["bank"].begin(CLIENTS)
        txn = node.transactions.begin()
        for number, key in enumerate(ACCOUNT_KEYS):
            record.ops.append(Write(number, TOTAL // ACCOUNTS))
            txn.put(key, encode(TOTAL // ACCOUNTS))
        self._filled_at = await txn.commit()
        self.records["bank"].ok(record, self._filled_at)

    async def read_all(self, node: SimNode) -> None:
        """Read everything once more, when nobody is at it any more."""
        record = self.records["lists"].begin(CLIENTS)
        txn = node.transactions.begin()
        for number, value in enumerate(await txn.get(LIST_KEYS)):
            record.ops.append(ReadList(number, _decode(value)))
        self.records["lists"].ok(record)
        self.trace.append(record.ops[:])
        record = self.records["bank"].begin(CLIENTS)
        txn = node.transactions.begin()
        for number, value in enumerate(await txn.get(ACCOUNT_KEYS)):
            record.ops.append(Read(number, _decode_number(value)))
        self.records["bank"].ok(record)
        self.trace.append(record.ops[:])
        for number, key in enumerate(REGISTER_KEYS):
            record = self.records["registers"].begin(CLIENTS)
            value = (await node.transactions.begin().get([key]))[0]
            record.ops.append(Read(number, _decode_number(value)))
            self.records["registers"].ok(record)

    def check(self, about: str, keep: Path | None) -> None:
        """Judge what clients saw.  Raises Violation."""
        histories = {kind: recorder.history(f"{kind} of {about}") for kind, recorder in self.records.items()}
        lists = histories["lists"]
        refuse(listappend.check(lists) + timestamps.check(lists), lists, keep)
        refuse(bank.check(histories["bank"], range(ACCOUNTS), TOTAL), histories["bank"], keep)
        refuse(register.check(histories["registers"]), histories["registers"], keep)


def encode(value: Any) -> bytes:
    """Make a row of a value, so that it can be folded."""
    return _row.encode((msgspec.msgpack.encode(value),))


def stored(value: bytes) -> bytes:
    """Give what is in a row."""
    (column,) = _row.decode(value)
    assert isinstance(column, bytes), column
    return column


def _decode(value: bytes | None) -> tuple[Any, ...]:
    return () if value is None else tuple(msgspec.msgpack.decode(stored(value)))


def _decode_number(value: bytes | None) -> int | None:
    return None if value is None else msgspec.msgpack.decode(stored(value), type=int)
