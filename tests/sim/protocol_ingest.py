"""Clients of the protocol simulator that lay block intents (rule 33), and those who read, write and clear the same rows meanwhile.

| what they do | how |
| --- | --- |
| ingest | rows of several ranges as blocks, some side by side, by the production's `BlockLayer`; where there is no room, one by one |
| … | then commit, or roll back, return to a savepoint, read or change own rows, insert one twice, rest; a gateway may die at any moment |
| read | an area in all ranges: by scans, by keys, under locks; now, or as it was |
| write | a row or two, read before or not; clear an area, so that in time there is room for blocks again |
| split | a range at any of these rows; have old versions collected |

Rows lie in areas that every range has a part of; most clients are at the newest areas, and old ones come again.

Invariants, of what they are told and see (`tests.checkers.versions`, exact, as all commit timestamps are known: see `IngestEvents`):
- An ingest is visible whole or not at all, on all ranges, from its commit timestamp on, in whatever way it is read.
- What was acknowledged is committed at the timestamp that was told, and stays; what was refused (a key that is there, a conflict, rolled
  back) has no commit, and nothing of it is ever read; what nobody knows is either, and whole.
- Transactions on these rows, ingests among them, are strictly serializable: each reads what was written below its timestamp, and a row is
  inserted only where there is none.

Of what is left behind:
- Once all is at rest, no block intent stands, and no chunk of a block that no directory names; every block is sound, and none overlaps
  another; replicas have the same logical checksum.
"""

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import msgspec
import pyarrow as pa
import trio

from dsdb.kv.errors import KvError
from dsdb.kv.ids import RangeId
from dsdb.kv.requests import SplitRequest
from dsdb.sql.errors import DataCorruptedError, InvalidParameterError
from dsdb.sql.ports import KeyExistsError, PortError, TransactionRetryError
from dsdb.storage.columnar.block import Blocks
from dsdb.storage.columnar.entry import chunk_key
from dsdb.storage.columnar.upkeep import verify
from dsdb.storage.engine.port import Family
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import COUNTER_BITS, Timestamp
from dsdb.store.replica import Replica
from dsdb.txn.block_layer import BlockLayer
from dsdb.txn.transaction import KvTransaction
from tests.checkers import versions
from tests.checkers.history import History, Insert, Outcome, Pending, Read, Txn, Violation, Write, refuse
from tests.sim.ingest_events import IngestEvents
from tests.sim.protocol_clients import EXPECTED, GARBAGE_S, RANGES, Asked, Clients, TooOld, encode, index_of, stored
from tests.sim.protocol_loop import EventHeap
from tests.sim.protocol_node import LAYOUT, Host, SimNode

WORKERS = 6
AREAS = 16
ROWS = 8
"""Of one area in one range."""
ATTEMPTS_MAX = 3
SPLITS_MAX = 4
RIGHT_RANGES = 200
"""Ids of ranges that are split off here begin above."""
REST_S = 50.0
"""Simulated time after which nothing is left of what was never committed: late copies are settled when they are half a minute old."""
PATIENCE_S = 30.0
"""What an ingest may take besides: each of its steps has a patience of its own."""
ENDS = ("commit",) * 8 + ("rollback", "rollback", "undo", "undo", "read", "change", "twice", "rest", "rest")
KINDS = ("ingest",) * 7 + ("read",) * 6 + ("write",) * 5 + ("clear",) * 2 + ("split", "collect")


class GivenUp(Exception):
    """A client rolled its transaction back."""


def key_of(letter: int, area: int, row: int) -> bytes:
    """Give the key of a row: behind those of all other clients."""
    return index_of(letter) + bytes([4, area, row])


def number_of(key: bytes) -> int:
    """Give the key of a row as histories have it."""
    letter = next(letter for letter in range(RANGES) if key.startswith(index_of(letter)))
    area, row = key[-2:]
    return (area * RANGES + letter) * ROWS + row


def span_of(letter: int, area: int) -> Span:
    """Give the part of a range that belongs to an area."""
    return Span(key_of(letter, area, 0), key_of(letter, area, ROWS))


AREA_KEYS = [[key_of(letter, area, row) for letter in range(RANGES) for row in range(ROWS)] for area in range(AREAS)]


class IngestClients(Clients):
    """Those of one run.  others: who say when to work; facts: what really became of transactions."""

    def __init__(
        self, heap: EventHeap, hosts: list[Host], chance: random.Random, events: Counter[str], others: Clients, facts: IngestEvents
    ) -> None:
        super().__init__(heap, hosts, chance, events, ("ingests",))
        self._others = others
        self._facts = facts
        self._attempts: dict[int, list[bytes]] = {}
        """Of a transaction, by its number in the history."""
        self._past: set[int] = set()
        """Transactions that read the past."""
        self._newest = 0
        self._splits = 0
        self._at: dict[int, SimNode] = {}
        """Where a transaction was asked for."""
        self._open: dict[int, int] = {}
        """Areas that transactions, by their numbers, are laying rows in."""
        self._laying: dict[int, SimNode] = {}
        """Transactions that lay blocks at this moment."""
        self._acts: dict[str, Callable[[int], Awaitable[None]]] = {
            "ingest": self._ingest,
            "read": self._read,
            "write": self._write,
            "clear": self._clear,
            "split": self._split,
            "collect": self._collect,
        }

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for client in range(WORKERS):
                nursery.start_soon(self._work, client)

    async def _work(self, client: int) -> None:
        while not self._others.is_over:
            if await self._others.wait_busy():
                await trio.sleep(self._chance.random() * 0.05)
                continue
            for _ in range(self._chance.choice((1, 2, 4))):
                await self._acts[self._chance.choice(KINDS)](client)
                await trio.sleep(self._chance.choice((0, 0.001, 0.01, 0.05, 0.2)))

    def died(self, node: SimNode) -> None:
        self._events["rare: gateway died while it laid blocks"] += any(at is node for at in self._laying.values())
        self._laying = {number: at for number, at in self._laying.items() if at is not node}
        super().died(node)

    def _area(self) -> int:
        """Choose an area: one that rows are laid in, or mostly a new one."""
        if self._open and self._chance.random() < 0.6:
            return self._chance.choice(list(self._open.values()))
        return (self._newest - self._chance.choice((0, 0, 0, 1, 1, 2, 5))) % AREAS

    # ---- Ingests ----

    async def _ingest(self, client: int) -> None:
        chance = self._chance
        is_new = chance.random() < 0.6
        self._newest += is_new
        area = self._newest % AREAS if is_new else self._area()
        keys = self._some_rows(area)
        if chance.random() < 0.2:
            keys = sorted({*keys, *self._some_rows(self._area())})
        end = chance.choice(ENDS)
        rest_s = chance.choice((0.0, 0.0, 0.01, 0.03, 0.3)) if end != "rest" else chance.choice((0.5, 1.0, 4.0, 8.0))
        is_quiet = end == "rest" and chance.random() < 0.7
        record = self.records["ingests"].begin(client)

        async def act(txn: KvTransaction) -> None:
            value = self._value(record)
            savepoint = txn.savepoint() if end == "undo" else 0
            if not is_quiet:
                self._open[record.number] = area
            await self._lay_all(txn, record, keys, value)
            if not is_quiet:
                # Others meet what is laid.
                self._others.burst(min(rest_s, 0.2))
            await trio.sleep(rest_s)
            if is_quiet:
                await self._peek(self._at[record.number], WORKERS + 1 + client, area)
            await self._end_ingest(txn, record, keys, end, savepoint)

        await self._transact("ingests", client, record, act, PATIENCE_S + rest_s)
        self._open.pop(record.number, None)

    def _some_rows(self, area: int) -> list[bytes]:
        """Choose rows that lie together, of some or all ranges."""
        chance = self._chance
        keys: list[bytes] = []
        for letter in sorted(chance.sample(range(RANGES), chance.choice((1, 2, 3, 3)))):
            first, last = sorted(chance.sample(range(ROWS), 2))
            wanted = range(first, last + 1)
            keys += [key_of(letter, area, row) for row in wanted if row in (first, last) or chance.random() < 0.7]
        return sorted(keys)

    async def _lay_all(self, txn: KvTransaction, record: Pending, keys: list[bytes], value: int) -> None:
        """Lay rows as blocks, as `dsdb.sql.execute.ingest` does; where there is no room, one by one."""
        chance = self._chance
        record.ops += [Insert(number_of(key), value) for key in keys]
        if chance.random() < 0.1:
            await txn.get([keys[0][:-2] + bytes([keys[0][-2], ROWS])])  # what is read before must be refreshed
        self._laying[record.number] = self._at[record.number]
        layer, row = txn.block_layer(LAYOUT), encode(value)
        await layer.begin(keys[0], keys[-1])
        places = sorted({0, len(keys), *(chance.randrange(len(keys)) for _ in range(chance.choice((0, 1, 2, 4))))})
        parts = [keys[begin:end] for begin, end in pairwise(places)]
        missed = await self._lay_parts(layer, parts, row)
        for key in missed:
            txn.insert(key, row)
            if txn.is_full:
                await txn.flush()
        await txn.flush()
        self._laying.pop(record.number, None)
        self._events["rare: ingest with rows in blocks and one by one"] += 0 < len(missed) < len(keys)
        self._events["rare: ingest in blocks of several ranges"] += len({key[:-3] for key in keys if key not in missed}) > 1

    async def _lay_parts(self, layer: BlockLayer, parts: list[list[bytes]], row: bytes) -> list[bytes]:
        chance, missed = self._chance, list[bytes]()
        errors: list[Exception] = []

        async def lay(part: list[bytes]) -> None:
            try:
                found = await layer.lay(part, [pa.array([stored(row)] * len(part), pa.binary())])
            except Exception as error:  # a task's root: it is raised where all are waited for
                errors.append(error)
                return
            missed.extend([key for begin, end in found for key in part[begin:end]])

        if chance.random() < 0.5:
            async with trio.open_nursery() as nursery:
                for part in parts:
                    nursery.start_soon(lay, part)
        else:
            for part in parts:
                await lay(part)
                if errors:
                    break
                await trio.sleep(chance.choice((0, 0, 0.01, 0.1)))
        if errors:
            raise errors[0]
        return sorted(missed)

    async def _end_ingest(self, txn: KvTransaction, record: Pending, keys: list[bytes], end: str, savepoint: int) -> None:
        """Do what comes before the commit, if it comes to that."""
        key = self._chance.choice(keys)
        if end == "rollback":
            raise GivenUp
        if end == "undo":
            txn.rollback_to(savepoint)
            record.ops.clear()
            if self._chance.random() < 0.5:
                # One in the place of many.
                self._put(txn, record, key, self._value(record) + 1)
        elif end == "read":
            for key in self._chance.sample(keys, min(2, len(keys))):
                self._note_read(record, key, (await txn.get([key]))[0])
        elif end == "change":
            self._put(txn, record, key, self._chance.choice((None, self._value(record) + 1)))
        elif end == "twice":
            txn.insert(key, encode(self._value(record) + 1))
            await txn.flush()
            raise Violation(f"key {key.hex()} was inserted twice by one transaction")

    async def _peek(self, node: SimNode, client: int, area: int) -> None:
        """Read what is just being laid as it was a moment ago: a read that any replica may answer, and then pushes nobody."""
        ago = Timestamp(self._chance.choice((60, 200, 700)) << COUNTER_BITS)
        record = self.records["ingests"].begin(client)
        self._past.add(record.number)
        txn = node.transactions.begin(read_ts=Timestamp(max(node.oracle.latest - ago, 1)))
        try:
            await self._read_area(txn, record, area, self._chance.choice(("scan", "keys")))
            self.records["ingests"].ok(record, await txn.commit())
        except (*EXPECTED, InvalidParameterError) as error:
            self.records["ingests"].fail(record, str(error))

    # ---- The others ----

    async def _read(self, client: int) -> None:
        chance = self._chance
        record = self.records["ingests"].begin(client)
        area, how = self._area(), chance.choice(("scan", "scan", "keys", "key by key", "locks"))
        past_ms = chance.choice((0, 0, 100, 500, 4_000)) if how != "locks" else 0

        async def act(txn: KvTransaction) -> None:
            await self._read_area(txn, record, area, how)

        if past_ms:
            self._past.add(record.number)
        await self._transact("ingests", client, record, act, PATIENCE_S, past_ms=past_ms)

    async def _read_area(self, txn: KvTransaction, record: Pending, area: int, how: str) -> None:
        keys = AREA_KEYS[area]
        if how == "scan":
            for letter in self._chance.sample(range(RANGES), RANGES):
                found = dict(await txn.scan(span_of(letter, area), reverse=self._chance.random() < 0.2))
                for key in keys:
                    if span_of(letter, area).contains(key):
                        self._note_read(record, key, found.get(key))
        elif how == "keys":
            for key, value in zip(keys, await txn.get(keys)):
                self._note_read(record, key, value)
        elif how == "key by key":
            for key in self._chance.sample(keys, 6):
                self._note_read(record, key, (await txn.get([key]))[0])
        else:
            some = sorted(self._chance.sample(keys, 4))
            for key, (_, value) in zip(some, await txn.get_locked(some)):
                self._note_read(record, key, value)

    async def _write(self, client: int) -> None:
        chance = self._chance
        record = self.records["ingests"].begin(client)
        keys = chance.sample(AREA_KEYS[self._area()], chance.choice((1, 1, 2, 3)))
        how = chance.choice(("blindly", "blindly", "insert", "read", "locks", "scan"))
        is_removal = chance.random() < 0.2
        read_area, pause_s = self._area(), chance.choice((0.01, 0.03, 0.1, 0.3))
        if how == "scan":
            # Where nobody is in the way.
            keys = chance.sample(AREA_KEYS[(self._newest + AREAS // 2) % AREAS], 2)

        async def act(txn: KvTransaction) -> None:
            if how == "locks":
                for key, (_, found) in zip(sorted(keys), await txn.get_locked(sorted(keys))):
                    self._note_read(record, key, found)
            elif how == "read":
                for key in keys:
                    self._note_read(record, key, (await txn.get([key]))[0])
            elif how == "scan":
                # What comes meanwhile is found when this is refreshed.
                await self._read_area(txn, record, read_area, "scan")
                await trio.sleep(pause_s)
                await self._at[record.number].transactions.begin().get(keys)  # so that it cannot commit where it has read
            for key in keys:
                value = None if is_removal and how != "insert" else self._value(record)
                if how == "insert":
                    record.ops.append(Insert(number_of(key), value))
                    txn.insert(key, encode(value))
                else:
                    self._put(txn, record, key, value)
                if txn.is_full:
                    await txn.flush()

        await self._transact("ingests", client, record, act, PATIENCE_S)

    async def _clear(self, client: int) -> None:
        """Remove all rows of an area: mostly of one that comes next."""
        record = self.records["ingests"].begin(client)
        area = (self._newest + self._chance.choice((-1, 1, 2, 3, 4))) % AREAS

        async def act(txn: KvTransaction) -> None:
            await self._read_area(txn, record, area, "scan")
            for op in record.ops[:]:
                if isinstance(op, Read) and op.value is not None:
                    key = next(key for key in AREA_KEYS[area] if number_of(key) == op.key)
                    self._put(txn, record, key, None)

        await self._transact("ingests", client, record, act, PATIENCE_S)

    async def _split(self, _: int) -> None:
        chance, node = self._chance, self._some_node()
        if node is None or self._splits >= SPLITS_MAX or chance.random() < 0.5:
            return
        key = key_of(chance.randrange(RANGES), self._area(), chance.choice((0, *range(ROWS))))
        self._splits += 1
        right = RangeId(RIGHT_RANGES + self._splits)
        node.nursery.start_soon(self._ask_split, node, key, right)

    async def _ask_split(self, node: SimNode, key: bytes, right: RangeId) -> None:
        for _ in range(3):  # where a block intent was in the way, it is gone soon
            try:
                await node.router.send(key, lambda desc: SplitRequest(desc.range_id, key, right), deadline_s=2.0)
            except KvError as error:
                self._events[f"not split among rows of ingests: {type(error.detail).__name__}"] += 1
                await trio.sleep(0.2)
            else:
                self._events["split among rows of ingests"] += 1
                return

    async def _collect(self, _: int) -> None:
        key = key_of(self._chance.randrange(RANGES), self._area(), 0)
        for host in self._hosts:
            if host.node is not None and not host.node.is_frozen:
                host.node.nursery.start_soon(host.node.collect_garbage, key, GARBAGE_S)

    def _some_node(self) -> SimNode | None:
        nodes = [host.node for host in self._hosts if host.node is not None and not host.node.is_frozen]
        return self._chance.choice(nodes) if nodes else None

    # ---- How they do it ----

    def _value(self, record: Pending) -> int:
        """Give a value that no other attempt writes; nor this one the next."""
        return (record.number * (ATTEMPTS_MAX + 1) + len(self._attempts.get(record.number, ()))) * 2

    def _put(self, txn: KvTransaction, record: Pending, key: bytes, value: int | None) -> None:
        record.ops.append(Write(number_of(key), value))
        if value is None:
            txn.delete(key)
        else:
            txn.put(key, encode(value))

    @staticmethod
    def _note_read(record: Pending, key: bytes, value: bytes | None) -> None:
        record.ops.append(Read(number_of(key), None if value is None else msgspec.msgpack.decode(stored(value), type=int)))

    async def _run(
        self,
        node: SimNode,
        asked: Asked,
        record: Pending,
        act: Callable[[KvTransaction], Awaitable[None]],
        attempts: int,
        past_ms: int,
    ) -> None:
        start_ts = read_ts = None
        answer: int | Exception = 0
        self._at[record.number] = node
        tried = self._attempts[record.number] = []
        if past_ms and node.oracle.latest > past_ms << COUNTER_BITS:
            read_ts = Timestamp(node.oracle.latest - (past_ms << COUNTER_BITS))
        for attempt in range(min(attempts, ATTEMPTS_MAX)):
            record.restart()
            txn = node.transactions.begin(read_ts=read_ts, start_ts=start_ts)
            tried.append(txn.attempt)
            try:
                await act(txn)
                answer = await txn.commit()
            except TransactionRetryError as error:
                answer, start_ts = error, txn.start_ts
                await txn.rollback()
                if attempt + 1 < attempts:
                    continue
            except (PortError, DataCorruptedError, GivenUp) as error:
                answer = error
                await txn.rollback()
            except InvalidParameterError as error:
                answer = TooOld(str(error)) if read_ts is not None and self._is_collectable(read_ts) else error
                await txn.rollback()
            except Exception as error:  # a task's root: it is raised again where it is waited for
                answer = error
            break
        self._laying.pop(record.number, None)
        asked.answer = answer
        asked.done.set()

    def _note(self, kind: str, record: Pending, answer: int | Exception) -> None:
        if isinstance(answer, (KeyExistsError, GivenUp)):
            self.records[kind].fail(record, str(answer))
            self._events[f"{kind}: {type(answer).__name__}"] += 1
        else:
            super()._note(kind, record, answer)

    # ---- The end ----

    async def read_all(self, node: SimNode) -> None:
        for area in range(AREAS):
            record = self.records["ingests"].begin(WORKERS)
            txn = node.transactions.begin()
            await self._read_area(txn, record, area, "scan")
            self.records["ingests"].ok(record, await txn.commit())
            self.trace.append(record.ops[:])

    def check(self, about: str, keep: Path | None) -> None:
        """Judge what they saw by what really became of each transaction.  Raises Violation."""
        history = self.records["ingests"].history(f"ingests of {about}")
        history = History([self._known(txn) for txn in history.txns], history.about)
        refuse(versions.check(history, self._past), history, keep)

    def _known(self, txn: Txn) -> Txn:
        """Give a transaction with the timestamp at which it was committed."""
        *earlier, last = [self._facts.committed.get(attempt) for attempt in self._attempts.get(txn.number, [b""])] or [None]
        if any(ts is not None for ts in earlier):
            raise Violation(f"{txn} was run again, though an attempt was committed: {earlier}")
        if txn.outcome is Outcome.FAIL and last is not None:
            raise Violation(f"{txn} was refused ({txn.error}), and is committed at {last}")
        if txn.outcome is Outcome.OK and last is not None and last != txn.ts:
            raise Violation(f"{txn} is committed at {last}")
        return msgspec.structs.replace(txn, ts=last) if txn.outcome is Outcome.INFO else txn

    async def check_rest(self) -> None:
        """See that nothing is left of what was not committed, and that all blocks are sound."""
        end = self._heap.now + REST_S
        while any(replica.machine.provisional for host in self._hosts for replica in _replicas(host)):
            if self._heap.now > end:
                raise Violation(f"block intents are left after {REST_S} s")
            await trio.sleep(0.5)
        for host in self._hosts:
            _check_blocks(host)
        self._events["at rest"] += 1


def _replicas(host: Host) -> list[Replica]:
    return [] if host.node is None else list(host.node.store._replicas.values())


def _check_blocks(host: Host) -> None:
    """See that the blocks of a host are sound, and that there is no chunk beside theirs."""
    blocks, named = Blocks(host.engine), set[bytes]()
    for replica in _replicas(host):
        if replica.is_written and replica.damage is None:
            verify(blocks, replica.descriptor.span)
        entries = list(blocks.entries(replica.descriptor.span))
        named |= {chunk_key(entry.last_key, slot) for entry in entries for slot in entry.chunks}
    for keys, _ in host.engine.scan(Family.BLOCK, b"", b"\xff" * 64):
        for key in keys:
            if key not in named:
                raise Violation(f"node {host.node_id} has a chunk that belongs to no block: {key.hex()}")
