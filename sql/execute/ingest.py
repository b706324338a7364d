"""Ingest: many rows, as Arrow, on their way into one table; all of them with their transaction, or none.

    CopyPlan ─▶ whole, checked rows of the table ─▶ BlockIngest ─▶ some ten thousand, in key order ─┬▶ blocks, several on their way
                                                                └▶ came in no order: `Runs` in a file, laid when all have come
                                                                                                   └▶ what a block has no room for:
                    RowIngest ◀──────────────────── where something is already, or too few ──────────  rows one by one
                        └─▶ keys and values in bulk ─▶ the transaction's buffer, flushed as intents

Invariants:
- A key that is there, of before or of this very ingest, is a 23505, found before `finish` returns.
- Memory is bounded by what is gathered, the blocks on their way and the transaction's buffer, however many rows come.
- A block holds a span of keys alone: rows in no order are laid in blocks only when all of them are known.

Whoever has rows speaks to `Ingest` alone: how they get into ranges is this file's affair.

Not here: what makes rows whole and checked (`copy_in`).
"""

from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from operator import lt
from typing import NamedTuple, Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import trio

from dsdb.sql.errors import DiskFullError, NumericOutOfRangeError, ProgramLimitError, SqlError
from dsdb.sql.execute.runs import Runs, Span
from dsdb.sql.execute.services import Execution
from dsdb.sql.execute.target import unique_violation
from dsdb.sql.ports import BlockLayer, PortError
from dsdb.sql.rows import KEY_BYTES_MAX, TableRows
from dsdb.storage.errors import ValueRangeError
from dsdb.storage.rowarrow import array_to_datums
from dsdb.storage.rowbatch import checked

T = TypeVar("T")

SLICE_ROWS = 2_048
"""Rows that are encoded and buffered before the event loop runs: some milliseconds."""
GATHER_ROWS = 65_536
GATHER_BYTES = 16 << 20
"""Rows, or bytes of Arrow data, that are brought into order at once: they become some blocks."""
BLOCK_ROWS_MAX = 16_384
BLOCK_BYTES_MAX = 8 << 20
"""Of one block, as folding writes them."""
BLOCK_ROWS_MIN = 2_048
BLOCK_BYTES_MIN = 1 << 20
"""Fewer rows are not worth a block of their own."""
SPAN_BYTES = 32 << 20
"""Of rows in no order that are brought into order at once, when all have come."""
RUNS_BYTES_MAX = 8 << 30
"""Rows in no order, as Arrow data, that wait in a file; what comes behind them goes one by one."""
BLOCKS_IN_FLIGHT_MAX = 4
"""Blocks that are encoded, sent, or being laid: some 30 MB with what they are made of."""
MISSES_MAX = 4
"""Blocks in a row that had no room, after which …"""
ROWS_AFTER_MISSES = 1 << 20
"""… so many rows go one by one: their keys are not in order, or lie among others."""


class Ingest(Protocol):
    """Rows on their way into a table."""

    async def write(self, rows: pa.RecordBatch) -> None:
        """Take rows: all columns of the table, in its order, of their Arrow types, NOT NULL and CHECK checked.

        Raises UniqueViolationError, NumericOutOfRangeError, ProgramLimitError, PortError.
        """

    async def finish(self) -> int:
        """Have all rows lie where they will be committed; give their number.  Raises as `write`."""


@asynccontextmanager
async def open_ingest(rows: TableRows, execution: Execution) -> AsyncIterator[Ingest]:
    """Begin to put rows into a table, as part of the execution's transaction; what is on its way ends with the block."""
    one_by_one = RowIngest(rows, execution, looks_first=_may_go_back(rows, execution))
    layer = execution.txn.block_layer(rows.layout)
    if layer is None or rows.has_padded_key:
        yield one_by_one
        return
    failed: Exception | None = None
    async with trio.open_nursery() as nursery:
        ingest = BlockIngest(rows, execution, layer, one_by_one, nursery)
        try:
            yield ingest
        except (SqlError, PortError) as error:
            # Out of the nursery's group.
            failed = error
            nursery.cancel_scope.cancel()
        finally:
            ingest.close()
    if failed is not None:
        raise failed


def _may_go_back(rows: TableRows, execution: Execution) -> bool:
    """Say whether the transaction may go on without the rows.

    A key that is found there by a flush ends the transaction, as nobody knows what else was laid.  So where there is a savepoint to go
    back to, keys are looked at first; but not in a table that the transaction has made itself.
    """
    transaction = execution.session.transaction
    if transaction is None or not transaction.savepoints:
        return False
    return transaction.catalog is None or transaction.catalog.table_by_id(rows.table.table_id) is not None


class RowIngest:
    """Rows as writes of a transaction like any other's: buffered, flushed as intents, committed or given up with it."""

    def __init__(self, rows: TableRows, execution: Execution, *, looks_first: bool) -> None:
        self._rows = rows
        self._looks_first = looks_first
        self._execution = execution
        self._count = 0
        # Keys since the last flush: of those before it the ranges know.
        self._buffered: set[bytes] = set()
        self._is_begun = False

    async def write(self, rows: pa.RecordBatch) -> None:
        """Encode and buffer rows; flush when the buffer is full."""
        if not self._is_begun:
            # What the transaction wrote before is looked at where it lies: a buffered write would be replaced, not met.
            await self._execution.flush()
            self._is_begun = True
        for begin in range(0, rows.num_rows, SLICE_ROWS):
            await self._write_slice(rows.slice(begin, SLICE_ROWS))

    async def _write_slice(self, part: pa.RecordBatch) -> None:
        txn, buffered, is_padded = self._execution.txn, self._buffered, self._rows.has_padded_key
        keys, values = self._keys_one_by_one(part) if is_padded else self._keys(part), self._values(part)
        if self._looks_first:
            there = next((at for at, value in enumerate(await txn.get(keys)) if value is not None), None)
            if there is not None:
                raise self._duplicate(part, there)
        for at, (key, value) in enumerate(zip(keys, values)):
            if key in buffered:
                raise self._duplicate(part, at)
            buffered.add(key)
            txn.insert(key, value)
            if txn.is_full:
                await self._flush()
        self._count += part.num_rows
        await trio.lowlevel.checkpoint()

    async def finish(self) -> int:
        """Flush the rest: a key that is there is told of now, not at the commit."""
        await self._flush()
        return self._count

    async def _flush(self) -> None:
        await self._execution.flush()
        self._buffered.clear()

    def _keys(self, part: pa.RecordBatch) -> list[bytes]:
        return keys_of(self._rows, part.columns)

    def _keys_one_by_one(self, part: pa.RecordBatch) -> list[bytes]:
        return [self._rows.key_of(values) for values in zip(*self._key_values(part))]

    def _key_values(self, part: pa.RecordBatch) -> list[list[object]]:
        rows = self._rows
        return [array_to_datums(rows.table.columns[at].type.kind, part.column(at)) for at in rows.key_positions]  # type: ignore[misc]

    def _values(self, part: pa.RecordBatch) -> list[bytes]:
        try:
            return self._rows.encode_batch(part)
        except ValueRangeError as error:
            raise NumericOutOfRangeError(f'a value of table "{self._rows.table.name}" is out of range: {error}') from error

    def _duplicate(self, part: pa.RecordBatch, at: int) -> Exception:
        return duplicate(self._rows, part.columns, at)


def keys_of(rows: TableRows, columns: Sequence[pa.Array]) -> list[bytes]:
    """Give the keys of whole rows.  Raises NumericOutOfRangeError, ProgramLimitError."""
    try:
        keys = rows.key_codec.encode_batch([columns[position] for position in rows.key_positions], rows.prefix)
    except ValueRangeError as error:
        raise NumericOutOfRangeError(f'a value of the primary key of table "{rows.table.name}" is out of range: {error}') from error
    longest = max(map(len, keys), default=0)
    if longest > KEY_BYTES_MAX:
        raise ProgramLimitError(f'a primary key of {longest} bytes in table "{rows.table.name}": at most {KEY_BYTES_MAX} are possible')
    return keys


def duplicate(rows: TableRows, columns: Sequence[pa.Array], at: int) -> Exception:
    """Say that the key of a row is there."""
    kinds = [rows.table.columns[position].type.kind for position in rows.key_positions]
    values = [array_to_datums(kind, columns[position].slice(at, 1))[0] for kind, position in zip(kinds, rows.key_positions)]
    return unique_violation(rows, values)


class _Ordered(NamedTuple):
    """Rows in key order.  was: they came so."""

    keys: list[bytes]
    columns: list[pa.Array]
    was: bool

    def part(self, begin: int, end: int) -> "_Ordered":
        return _Ordered(self.keys[begin:end], [column.slice(begin, end - begin) for column in self.columns], self.was)

    def batch(self) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays(self.columns, names=[f"c{at}" for at in range(len(self.columns))])


class BlockIngest:
    """Rows as columnar blocks, several at a time on their way; where there is no room for one, one by one."""

    def __init__(self, rows: TableRows, execution: Execution, layer: BlockLayer, one_by_one: RowIngest, nursery: trio.Nursery) -> None:
        self._rows = rows
        self._execution = execution
        self._layer = layer
        self._one_by_one = one_by_one
        self._nursery = nursery
        self._room = trio.Semaphore(BLOCKS_IN_FLIGHT_MAX)
        self._gathered: list[pa.RecordBatch] = []
        self._gathered_rows = self._gathered_bytes = 0
        self._left: list[pa.RecordBatch] = []
        """Rows for which there was no room in a block."""
        self._failure: Exception | None = None
        """What became of a block that could not be laid."""
        self._laid = 0
        self._misses = 0
        self._rows_to_go = 0
        """Rows that go one by one before blocks are tried again."""
        self._is_begun = False
        self._runs: Runs | None = None
        self._may_wait = True
        """Whether rows in no order may wait for the others."""

    async def write(self, rows: pa.RecordBatch) -> None:
        """Gather rows; lay what was gathered when it is enough."""
        begin = 0
        while begin < rows.num_rows:
            part = rows.slice(begin, GATHER_ROWS - self._gathered_rows)
            self._gathered.append(part)
            self._gathered_rows += part.num_rows
            self._gathered_bytes += part.nbytes
            begin += part.num_rows
            if self._gathered_rows >= GATHER_ROWS or self._gathered_bytes >= GATHER_BYTES:
                await self._lay_gathered()

    async def finish(self) -> int:
        """Have everything laid."""
        self._may_wait = self._runs is not None
        await self._lay_gathered()
        await self._lay_runs()
        await self._all_laid()
        await self._write_left()
        return self._laid + await self._one_by_one.finish()

    async def _lay_gathered(self) -> None:
        gathered, rows, size = self._gathered, self._gathered_rows, self._gathered_bytes
        self._gathered, self._gathered_rows, self._gathered_bytes = [], 0, 0
        if not rows:
            return
        if self._runs is None and (self._rows_to_go > 0 or (rows < BLOCK_ROWS_MIN and size < BLOCK_BYTES_MIN)):
            self._rows_to_go -= rows
            self._left += gathered
            await self._write_left()
            return
        if not self._is_begun:
            # What the transaction wrote before is looked at where it lies: a buffered write would be replaced, not met.
            await self._execution.flush()
            self._is_begun = True
        ordered = await self._layer.aside(lambda: _in_order(self._rows, gathered))
        if self._may_wait and (self._runs is not None or not ordered.was):
            if self._runs is None:
                self._runs = await self._aside(partial(Runs, self._execution.services.engine.spill_directory))
            await self._aside(partial(self._runs.add, ordered.keys, ordered.columns))
            if self._runs.size > RUNS_BYTES_MAX:
                self._may_wait = False
                await self._lay_runs()
            return
        await self._lay_ordered(ordered, size)

    async def _lay_runs(self) -> None:
        """Lay what waited, now that it can be brought into order."""
        if self._runs is None:
            return
        for span in self._runs.spans(SPAN_BYTES):
            ordered = await self._aside(partial(_of_span, self._rows, self._runs, span))
            if self._rows_to_go > 0:
                self._rows_to_go -= len(ordered.keys)
                self._left.append(ordered.batch())
                await self._write_left()
            else:
                await self._lay_ordered(ordered, SPAN_BYTES)
        self.close()

    async def _aside(self, work: Callable[[], T]) -> T:
        """Do work with the file of runs."""
        try:
            return await self._layer.aside(work)
        except OSError as error:
            raise DiskFullError(f"rows in no order could not wait in a file until all have come: {error}") from error

    def close(self) -> None:
        """Let go of rows that wait."""
        runs, self._runs = self._runs, None
        if runs is not None:
            runs.close()

    async def _lay_ordered(self, ordered: _Ordered, size: int) -> None:
        rows = len(ordered.keys)
        await self._layer.begin(ordered.keys[0], ordered.keys[-1])
        blocks = min(max(-(-rows // BLOCK_ROWS_MAX), -(-size // BLOCK_BYTES_MAX)), rows)
        for number in range(blocks):
            part = ordered.part(number * rows // blocks, (number + 1) * rows // blocks)
            await self._room.acquire()
            self._check()
            self._nursery.start_soon(self._lay, part)
        await self._write_left()

    async def _lay(self, part: _Ordered) -> None:
        try:
            missed = await self._layer.lay(part.keys, part.columns)
        except (SqlError, PortError) as error:
            self._failure = self._failure or error
            return
        finally:
            self._room.release()
        self._misses = self._misses + 1 if missed else 0
        if self._misses >= MISSES_MAX:
            self._misses, self._rows_to_go = 0, ROWS_AFTER_MISSES
        self._laid += len(part.keys)
        for begin, end in missed:
            self._laid -= end - begin
            self._left.append(part.part(begin, end).batch())

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _all_laid(self) -> None:
        """Wait until nothing is on its way."""
        for _ in range(BLOCKS_IN_FLIGHT_MAX):
            await self._room.acquire()
        for _ in range(BLOCKS_IN_FLIGHT_MAX):
            self._room.release()
        self._check()

    async def _write_left(self) -> None:
        """Put rows one by one, once nothing else is on its way: what they may meet is there then."""
        if self._left:
            await self._all_laid()
            left, self._left = self._left, []
            for batch in left:
                await self._one_by_one.write(batch)


def _in_order(rows: TableRows, gathered: list[pa.RecordBatch]) -> _Ordered:
    """Put rows into key order, all of whose values can be stored.  Raises SqlError."""
    chunks = [batch.columns for batch in gathered]
    columns = [pa.concat_arrays(arrays) if len(arrays) > 1 else arrays[0] for arrays in map(list, zip(*chunks))]
    try:
        columns = [checked(column, array, at) for at, (column, array) in enumerate(zip(rows.layout.columns, columns))]
    except ValueRangeError as error:
        raise NumericOutOfRangeError(f'a value of table "{rows.table.name}" is out of range: {error}') from error
    keys = keys_of(rows, columns)
    was = all(map(lt, keys, keys[1:]))
    if not was:
        order = sorted(range(len(keys)), key=keys.__getitem__)
        keys = [keys[at] for at in order]
        chosen = pa.array(order, pa.int64())
        columns = [pc.take(array, chosen) for array in columns]
        for at, (one, other) in enumerate(pairwise(keys)):
            if one == other:
                raise duplicate(rows, columns, at)
    return _Ordered(keys, columns, was)


def _of_span(rows: TableRows, runs: Runs, span: Span) -> _Ordered:
    """Give the rows of a span.  Raises SqlError."""
    ordered = _in_order(rows, runs.read(span))
    end = len(ordered.keys) if span.end is None else bisect_left(ordered.keys, span.end)
    return ordered.part(bisect_left(ordered.keys, span.begin), end)
