"""A whole database below SQL in one process: transactions over the in-memory engine, leaf stages in place, a cluster of one node.

Timestamps come from a counter.  A commit checks what the transaction read, so that lost updates and phantoms show as retries.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

import duckdb
import pyarrow as pa

from dsdb.sql.constraints import Constraints
from dsdb.sql.ports import (
    DeadlineExceededError,
    EventInfo,
    KeyExistsError,
    LeafStage,
    LockInfo,
    NodeInfo,
    OpenTransactionInfo,
    ProblemInfo,
    RangeInfo,
    RangeSettingsInfo,
    RowLockedError,
    RowWait,
    TransactionRetryError,
    TransactionState,
)
from dsdb.storage import mvcc
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.keys import EVERYTHING, Span, point_span
from dsdb.storage.rowcodec import RowLayout, decode_batches
from dsdb.storage.timestamp import Timestamp, from_milliseconds
from dsdb.storage.versions import View

BATCH_ROWS = 16_384


class LocalStore:
    """The data, and the oracle: a counter."""

    def __init__(self) -> None:
        self.engine = MemoryEngine()
        self.clock = from_milliseconds(1_700_000_000_000)
        self.split_keys: list[bytes] = []
        self.rolled_back = 0
        self.locks: dict[bytes, LocalTransaction] = {}
        """Nobody waits here: what is locked counts as waited for in vain."""
        self.before_commit: Callable[[LocalTransaction], None] | None = None
        """A test's hook: may raise a PortError in the place of a commit."""

    def timestamp(self) -> Timestamp:
        self.clock = Timestamp(self.clock + 1)
        return self.clock

    async def fresh_timestamp(self) -> Timestamp:
        return self.timestamp()

    def begin(self, *, read_ts: Timestamp | None = None, start_ts: Timestamp | None = None) -> LocalTransaction:
        return LocalTransaction(self, read_ts, start_ts)


class LocalReads:
    """ports.UnrecordedReads."""

    def __init__(self, spans: list[Span], aside: list[Span]) -> None:
        self._spans = spans
        self._aside = aside

    def keep(self) -> None:
        self._spans += self._aside


class LocalTransaction:
    """ports.Transaction over the store."""

    def __init__(self, store: LocalStore, read_ts: Timestamp | None = None, start_ts: Timestamp | None = None) -> None:
        self.store = store
        self._read_ts = read_ts
        self._log: list[tuple[bytes, bytes | None, bool]] = []
        self._read_spans: list[Span] = []
        self._start_ts = start_ts

    @property
    def writes(self) -> dict[bytes, bytes | None]:
        return {key: value for key, value, _ in self._log}

    async def read_timestamp(self) -> Timestamp:
        if self._read_ts is None:
            self._read_ts = self.store.timestamp()
        return self._read_ts

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        ts = await self.read_timestamp()
        self._read_spans += map(point_span, keys)
        stored = mvcc.get_many(self.store.engine, keys, View(ts))
        writes = self.writes
        return [writes.get(key, value) for key, value in zip(keys, stored)]

    @property
    def start_ts(self) -> Timestamp | None:
        return self._start_ts or self._read_ts

    async def get_locked(
        self, keys: Sequence[bytes], *, wait: RowWait = RowWait.WAIT, timeout_s: float | None = None
    ) -> list[tuple[bool, bytes | None]]:
        locks = self.store.locks
        locked = [locks.get(key, self) is self for key in keys]
        if wait is not RowWait.SKIP and not all(locked):
            raise RowLockedError("locked", keys[locked.index(False)], is_late=wait is RowWait.WAIT)
        locks.update({key: self for key, is_locked in zip(keys, locked) if is_locked})
        ts = await self.read_timestamp()
        if any(version is not None and version.ts > ts for version in (mvcc.newest(self.store.engine, key) for key in keys)):
            self._read_ts = self.store.timestamp()
            for span in self._read_spans:
                changed = None if span.is_empty else mvcc.changed(self.store.engine, span, ts, View(self._read_ts))
                if changed is not None:
                    raise TransactionRetryError("a row that was read has changed", changed[0])
        return [(is_locked, value if is_locked else None) for is_locked, value in zip(locked, await self.get(keys))]

    is_full = False
    has_flushed = False

    async def flush(self) -> None:
        raise AssertionError("it is never full")

    def release(self, savepoint: int) -> None:
        """Nothing is kept for one."""

    def has_read(self, keys: Sequence[bytes]) -> bool:
        return False

    @contextlib.contextmanager
    def unrecorded(self) -> Iterator[LocalReads]:
        spans, self._read_spans = self._read_spans, []
        try:
            yield LocalReads(spans, self._read_spans)
        finally:
            self._read_spans = spans

    def _unlock(self) -> None:
        self.store.locks = {key: txn for key, txn in self.store.locks.items() if txn is not self}

    async def scan(self, span: Span, *, limit: int | None = None, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        rows = self.read_span(await self.read_timestamp(), span)
        if reverse:
            rows.reverse()
        return rows[:limit]

    def read_span(self, ts: Timestamp, span: Span) -> list[tuple[bytes, bytes]]:
        self._read_spans.append(span)
        found: dict[bytes, bytes | None] = {}
        if not span.is_empty:
            for keys, values in mvcc.scan(self.store.engine, span, View(ts)):
                found.update(zip(keys, values))
        found.update((key, value) for key, value in self.writes.items() if span.contains(key))
        return [(key, value) for key, value in sorted(found.items()) if value is not None]

    def put(self, key: bytes, value: bytes) -> None:
        self._log.append((key, value, False))

    def insert(self, key: bytes, value: bytes) -> None:
        self._log.append((key, value, key not in self.writes))

    def block_layer(self, layout: RowLayout) -> None:
        return None

    def delete(self, key: bytes) -> None:
        self._log.append((key, None, False))

    def savepoint(self, *, is_kept: bool = True) -> int:
        return len(self._log)

    def rollback_to(self, savepoint: int) -> None:
        del self._log[savepoint:]

    def describe(self) -> TransactionState:
        size = sum(len(key) + len(value or b"") for key, value in self.writes.items())
        return TransactionState(attempt=bytes(16), read_timestamp=self._read_ts, writes=len(self.writes), bytes=size, is_committing=False)

    async def rollback(self) -> None:
        self._log.clear()
        self._unlock()
        self.store.rolled_back += 1

    async def commit(self, *, deadline: Timestamp | None = None) -> Timestamp:
        self._unlock()
        if not self.writes:
            return await self.read_timestamp()
        if self.store.before_commit is not None:
            self.store.before_commit(self)
        commit_ts = self.store.timestamp()
        engine = self.store.engine
        if self._read_ts is not None:
            for span in self._read_spans:
                changed = None if span.is_empty else mvcc.changed(engine, span, self._read_ts, View(commit_ts))
                if changed is not None:
                    raise TransactionRetryError("a row that was read has changed", changed[0])
        for key in sorted({key for key, _, must_be_absent in self._log if must_be_absent}):
            [stored] = mvcc.get_many(engine, [key], View(commit_ts))
            if stored is not None:
                raise KeyExistsError(key)
        if deadline is not None and commit_ts > deadline:
            raise DeadlineExceededError(f"{commit_ts} is above {deadline}")
        batch = engine.new_batch()
        for key, value in self.writes.items():
            mvcc.put(batch, key, commit_ts, value)
        engine.write(batch)
        return commit_ts


class LocalRunner:
    """ports.StageRunner: scans in place, and an engine of its own for the stage's SQL."""

    def __init__(self) -> None:
        self.stages: list[LeafStage] = []
        self.connection = duckdb.connect(config={"threads": 1})
        for setting in (
            "SET integer_division=true",
            "SET default_null_order='nulls_last_on_asc_first_on_desc'",
            "SET ieee_floating_point_ops=false",
            "SET TimeZone='UTC'",
        ):
            self.connection.execute(setting)

    async def run(self, stage: LeafStage, txn: LocalTransaction, report: object = None) -> AsyncIterator[pa.RecordBatch]:
        self.stages.append(stage)
        scan = stage.scan
        ts = await txn.read_timestamp()
        values = [value for span in scan.spans for _, value in txn.read_span(ts, span)][: scan.limit]
        layouts = {layout.layout_id: layout for layout in scan.layouts}
        batches = []
        for start in range(0, len(values), BATCH_ROWS) or (0,):
            decoded = decode_batches(values[start : start + BATCH_ROWS], layouts, scan.columns)
            batches.append(decoded.rename_columns(list(scan.names)) if scan.names else decoded)
        if stage.sql is None:
            for batch in batches:
                yield batch
            return
        cursor = self.connection.cursor()
        cursor.register("input", pa.Table.from_batches(batches))
        table = cursor.sql(stage.sql).to_arrow_table()
        cursor.close()
        for batch in table.to_batches():
            yield batch

    def seen_rows(self, spans: Sequence[Span]) -> int | None:
        return None

    async def placement(self, spans: Sequence[Span]) -> list[tuple[int, int]]:
        return [(1, len(spans))]


class LocalCluster:
    """ports.ClusterView of one node."""

    def __init__(self, store: LocalStore) -> None:
        self._store = store
        self.open_transactions: list[OpenTransactionInfo] = []
        self.held_locks: list[LockInfo] = []
        self.happened: list[EventInfo] = []
        self.missing: list[str] = []
        self.configured: dict[int, dict[str, int | Constraints]] = {0: {}}

    async def split(self, keys: Sequence[bytes]) -> None:
        self._store.split_keys[:] = sorted({*self._store.split_keys, *keys})

    async def ranges(self, span: Span) -> list[RangeInfo]:
        bounds = [EVERYTHING.start, *self._store.split_keys, EVERYTHING.end]
        found = [
            RangeInfo(range_id=number, start_key=start, end_key=end, leaseholder=1, replicas=(1,))
            for number, (start, end) in enumerate(itertools.pairwise(bounds), start=1)
        ]
        return [info for info in found if span.overlaps(Span(info.start_key, info.end_key))]

    async def configure_ranges(self, database_id: int, table_id: int, changes: Mapping[str, int | Constraints | None]) -> list[str]:
        defaults = {"max_bytes": 67108864, "load_requests": 1000, "load_bytes": 16777216, "replicas": 3}
        settings = {name: value for name, value in {**self.configured.get(table_id, {}), **changes}.items() if value is not None}
        self.configured[table_id] = settings
        return ["there is one node"] if {**defaults, **settings}["replicas"] != 3 else []

    async def range_settings(self) -> list[RangeSettingsInfo]:
        defaults = {"max_bytes": 67108864, "load_requests": 1000, "load_bytes": 16777216, **self.configured[0]}
        return [
            RangeSettingsInfo(table_id=table_id, **{**defaults, **settings})  # type: ignore[arg-type]
            for table_id, settings in sorted(self.configured.items())
            if settings or not table_id
        ]

    async def check_structure(self) -> list[ProblemInfo]:
        return []

    async def check_range(self, range_id: int) -> list[ProblemInfo]:
        return []

    async def nodes(self) -> list[NodeInfo]:
        ranges = len(self._store.split_keys) + 1
        return [NodeInfo(node_id=1, address="127.0.0.1:7432", is_live=True, ranges=ranges, leases=ranges)]

    async def transactions(self) -> tuple[list[OpenTransactionInfo], list[str]]:
        return self.open_transactions, self.missing

    async def events(self) -> list[EventInfo]:
        return self.happened

    async def locks(self) -> tuple[list[LockInfo], list[str]]:
        return self.held_locks, self.missing
