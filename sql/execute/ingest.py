"""Ingest: many rows, as Arrow, on their way into one table; all of them with their transaction, or none.

    CopyPlan ─▶ whole, checked rows of the table ─▶ Ingest ─▶ keys and values in bulk ─▶ the transaction's buffer, flushed as intents

Invariants:
- A key that is there, of before or of this very ingest, is a 23505, found before `finish` returns.
- Memory is bounded by a batch and the transaction's buffer, however many rows come.

Whoever has rows speaks to `Ingest` alone: how they get into ranges is this file's affair.

Not here: what makes rows whole and checked (`copy_in`).
"""

from typing import Protocol

import pyarrow as pa
import trio

from dsdb.sql.errors import NumericOutOfRangeError, ProgramLimitError
from dsdb.sql.execute.services import Execution
from dsdb.sql.execute.target import unique_violation
from dsdb.sql.rows import KEY_BYTES_MAX, TableRows
from dsdb.storage.errors import ValueRangeError
from dsdb.storage.rowarrow import array_to_datums

SLICE_ROWS = 2_048
"""Rows that are encoded and buffered before the event loop runs: some milliseconds."""


class Ingest(Protocol):
    """Rows on their way into a table."""

    async def write(self, rows: pa.RecordBatch) -> None:
        """Take rows: all columns of the table, in its order, of their Arrow types, NOT NULL and CHECK checked.

        Raises UniqueViolationError, NumericOutOfRangeError, ProgramLimitError, PortError.
        """

    async def finish(self) -> int:
        """Have all rows lie where they will be committed; give their number.  Raises as `write`."""


def open_ingest(rows: TableRows, execution: Execution) -> Ingest:
    """Begin to put rows into a table, as part of the execution's transaction."""
    return TransactionalIngest(rows, execution, looks_first=_may_go_back(rows, execution))


def _may_go_back(rows: TableRows, execution: Execution) -> bool:
    """Say whether the transaction may go on without the rows.

    A key that is found there by a flush ends the transaction, as nobody knows what else was laid.  So where there is a savepoint to go
    back to, keys are looked at first; but not in a table that the transaction has made itself.
    """
    transaction = execution.session.transaction
    if transaction is None or not transaction.savepoints:
        return False
    return transaction.catalog is None or transaction.catalog.table_by_id(rows.table.table_id) is not None


class TransactionalIngest:
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
        rows = self._rows
        try:
            keys = rows.key_codec.encode_batch([part.column(position) for position in rows.key_positions], rows.prefix)
        except ValueRangeError as error:
            raise NumericOutOfRangeError(f'a value of the primary key of table "{rows.table.name}" is out of range: {error}') from error
        longest = max(map(len, keys), default=0)
        if longest > KEY_BYTES_MAX:
            raise ProgramLimitError(f'a primary key of {longest} bytes in table "{rows.table.name}": at most {KEY_BYTES_MAX} are possible')
        return keys

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
        values = [column[0] for column in self._key_values(part.slice(at, 1))]
        return unique_violation(self._rows, values)  # type: ignore[arg-type]
