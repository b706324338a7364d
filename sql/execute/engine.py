"""The query engine: DuckDB behind a port of one SELECT and Arrow inputs → Arrow table, fenced off from everything else.

    run(sql, inputs) ─▶ one idle connection, in a worker thread ─▶ inputs become views ─▶ SELECT ─▶ Arrow batches, counted
                        └ cancelled: interrupt until the thread is back, or for ABANDON_SECONDS

Invariants:
- The engine sees its inputs and nothing else: no file, no network, no extension, no Python variable, no setting to change; and it
  keeps nothing: a statement that is not one SELECT is refused.
- Integers divide as integers, a division by zero is an error, NULLs sort as Postgres sorts them, time is in UTC: on every connection.
- A connection runs one query at a time; it is idle again only when its thread is back.  After a cancellation some functions of the
  engine go on, for hours at worst: after a while the caller goes, and the connection is replaced; at most `ABANDONED_MAX` threads run so.
- Memory is bounded: the engine's own by `memory_bytes_max` (it spills up to `spill_bytes_max`), inputs and a result by
  `exchange_bytes_max` each; beyond that OutOfMemoryError.

Not here: the dialect's functions (`dsdb.sql.functions`), what the engine's errors mean (`engine_errors`).
"""

import contextlib
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import outcome
import pyarrow as pa
import trio

from dsdb.sql.errors import OutOfMemoryError
from dsdb.sql.execute.engine_errors import EngineFaultError, sql_error, streamed_error

INTERRUPT_INTERVAL_SECONDS = 0.005
"""An interrupt that comes before the query has begun is lost: hence again and again, as often as this."""

ABANDON_SECONDS = 2.0
"""A query that is interrupted for so long in vain is left to itself."""
ABANDONED_MAX = 8
"""Threads left to themselves; with more of them, cancellation waits for the engine."""

RESULT_BATCH_ROWS = 65_536

_SETTINGS: tuple[tuple[str, bool | str], ...] = (
    # Postgres's semantics.
    ("integer_division", True),
    ("ieee_floating_point_ops", False),
    ("default_null_order", "nulls_last_on_asc_first_on_desc"),
    ("TimeZone", "UTC"),
    # It loses rows: LEFT JOIN … ON a.id = b.id AND b.id IS NULL, joined on and filtered by b.id IS NULL, gives nothing (DuckDB 2.0.0).
    ("disabled_optimizers", "outer_join_simplification"),
    # UUIDs stay UUIDs on their way out (`arrow.uuid`).
    ("arrow_lossless_conversion", True),
    # The fence.  External access is shut after the spill directory is set, and the configuration after everything.
    ("python_enable_replacements", False),
    ("autoinstall_known_extensions", False),
    ("autoload_known_extensions", False),
    ("allow_community_extensions", False),
    ("enable_external_access", False),
    ("lock_configuration", True),
)


class EngineLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much the engine of one node may take.

    connections: queries at a time, the others wait; threads: of the engine, for all of them.
    """

    memory_bytes_max: int = 1 << 30
    spill_bytes_max: int = 8 << 30
    exchange_bytes_max: int = 1 << 30
    connections: int = 4
    threads: int = 2


class QueryEngine:
    """Runs SELECTs of the engine's dialect over Arrow inputs.  One a node; closed by whoever made it."""

    def __init__(self, limits: EngineLimits | None = None, *, spill_directory: str | None = None) -> None:
        # At the first conversion pyarrow imports pandas, where it is installed: half a second that must not fall into a query.
        pa.array([None])
        self._limits = limits or EngineLimits()
        self._own_directory = tempfile.TemporaryDirectory(prefix="dsdb-spill-") if spill_directory is None else None
        self._spill_directory = spill_directory or (self._own_directory.name if self._own_directory else "")
        self.spill_directory = Path(self._spill_directory)
        """Where others may put what does not fit into memory, too."""
        self._root = _open(self._limits, self._spill_directory)
        """The engine's database, which holds nothing; connections are its cursors."""
        self._idle = [self._root.cursor() for _ in range(self._limits.connections)]
        self._slots = trio.CapacityLimiter(self._limits.connections)
        """Permits to take from `_idle`, first come, first served."""
        self._threads = trio.CapacityLimiter(self._limits.connections + ABANDONED_MAX)
        self._abandoned: list[duckdb.DuckDBPyConnection] = []
        """Connections whose thread runs a query that nobody waits for."""

    @property
    def exchange_bytes_max(self) -> int:
        """Give how many bytes the inputs of a query may have together, and its result."""
        return self._limits.exchange_bytes_max

    def close(self) -> None:
        """Close all connections and remove what was spilled.  No query may run."""
        for connection in self._idle:
            connection.close()
        self._root.close()
        if self._own_directory is not None:
            self._own_directory.cleanup()

    async def run(self, sql: str, inputs: Mapping[str, pa.Table]) -> pa.Table:
        """Run one SELECT over `inputs`, each a table by the name that the SELECT calls it, of at least one column.

        A fixed_size_binary(16) column goes in, and comes out, as UUID.
        Raises SqlError; EngineFaultError for what is a bug of ours.  Cancellation interrupts the query.
        """
        if sum(table.nbytes for table in inputs.values()) > self._limits.exchange_bytes_max:
            raise OutOfMemoryError("the query gathers more rows at its gateway than fit the memory allowed for them")
        async with self._slots:
            connection = self._idle.pop()
            try:
                return await self._on_thread(connection, lambda: _select(connection, sql, inputs, self._limits.exchange_bytes_max))
            except (duckdb.FatalException, duckdb.InternalException) as error:
                # The database is invalid from here on; it holds nothing, so that a new one is as good.
                connection.close()
                self._root = _open(self._limits, self._spill_directory)
                connection = self._root.cursor()
                raise EngineFaultError(f"{error}; in: {sql}") from error
            except duckdb.Error as error:
                raise sql_error(error, sql) from error
            finally:
                self._idle.append(self._root.cursor() if connection in self._abandoned else connection)

    async def _on_thread(self, connection: duckdb.DuckDBPyConnection, work: Callable[[], pa.Table]) -> pa.Table:
        """Do `work` in a thread; when cancelled, interrupt the connection until the thread is back, or for ABANDON_SECONDS."""
        is_done = is_cancelled = False
        token = trio.lowlevel.current_trio_token()
        waiting = trio.CancelScope(shield=True)

        def work_and_tell() -> "outcome.Outcome[pa.Table]":
            ended: outcome.Outcome[pa.Table] = outcome.capture(work)
            if is_cancelled:
                with contextlib.suppress(trio.RunFinishedError):
                    token.run_sync_soon(self._forget, connection)
            return ended

        async def interrupt_when_cancelled() -> None:
            nonlocal is_cancelled
            try:
                await trio.sleep_forever()
            finally:
                is_cancelled = True
                with trio.CancelScope(shield=True):
                    patience_ends = trio.current_time() + ABANDON_SECONDS
                    while not is_done and not waiting.cancel_called:
                        connection.interrupt()
                        await trio.sleep(INTERRUPT_INTERVAL_SECONDS)
                        if trio.current_time() > patience_ends and len(self._abandoned) < ABANDONED_MAX and not is_done:
                            self._abandoned.append(connection)
                            waiting.cancel()

        await trio.lowlevel.checkpoint_if_cancelled()
        ended: outcome.Outcome[pa.Table] | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(interrupt_when_cancelled)
            with waiting:
                ended = await trio.to_thread.run_sync(work_and_tell, limiter=self._threads, abandon_on_cancel=True)
                is_done = True
            nursery.cancel_scope.cancel()
        # The thread may come back just when it is given up; then its connection is as good as any.
        self._forget(connection)
        # Only after a cancellation is there no outcome, and then the nursery has raised it.
        assert ended is not None
        return ended.unwrap()

    def _forget(self, connection: duckdb.DuckDBPyConnection) -> None:
        with contextlib.suppress(ValueError):
            self._abandoned.remove(connection)


def _open(limits: EngineLimits, spill_directory: str) -> duckdb.DuckDBPyConnection:
    root = duckdb.connect(":memory:")
    sized = (
        ("threads", str(limits.threads)),
        ("memory_limit", _size(limits.memory_bytes_max)),
        ("temp_directory", spill_directory),
        ("max_temp_directory_size", _size(limits.spill_bytes_max)),
    )
    for name, value in (*sized, *_SETTINGS):
        quoted = "'" + str(value).replace("'", "''") + "'"
        root.execute(f"SET GLOBAL {name} = {quoted}")
    return root


def _size(size_bytes: int) -> str:
    return f"{math.ceil(size_bytes / 1024)}KiB"


def _select(connection: duckdb.DuckDBPyConnection, sql: str, inputs: Mapping[str, pa.Table], bytes_max: int) -> pa.Table:
    statements = connection.extract_statements(sql)
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise EngineFaultError(f"not one SELECT: {sql}")
    registered: list[str] = []
    try:
        for name, table in inputs.items():
            connection.register(name, _with_uuids(table))
            registered.append(name)
        relation = connection.sql(statements[0])
        with relation.to_arrow_reader(RESULT_BATCH_ROWS) as reader:
            return _without_uuids(_read_all(reader, bytes_max))
    finally:
        for name in registered:
            connection.unregister(name)


def _read_all(reader: pa.RecordBatchReader, bytes_max: int) -> pa.Table:
    batches: list[pa.RecordBatch] = []
    size = 0
    try:
        for batch in reader:
            size += batch.nbytes
            if size > bytes_max:
                raise OutOfMemoryError("the query's result is larger than the memory allowed for it")
            batches.append(batch)
    except OSError as error:
        raise streamed_error(error) from error
    return pa.Table.from_batches(batches, reader.schema)


def _with_uuids(table: pa.Table) -> pa.Table:
    """Give 16-byte columns the Arrow type that the engine takes as UUID."""
    for index, field in enumerate(table.schema):
        if field.type == pa.binary(16):
            chunks = [pa.ExtensionArray.from_storage(pa.uuid(), chunk) for chunk in table.column(index).chunks]
            table = table.set_column(index, field.name, pa.chunked_array(chunks, pa.uuid()))
    return table


def _without_uuids(table: pa.Table) -> pa.Table:
    for index, field in enumerate(table.schema):
        if isinstance(field.type, pa.UuidType):
            column: Any = table.column(index)
            table = table.set_column(index, field.name, pa.chunked_array([chunk.storage for chunk in column.chunks], pa.binary(16)))
    return table
