"""The engine on a disk: RocksDB through rocksdict in raw mode.

One database a store, one column family for each `Family`, one write-ahead log for all of them.

    write ─▶ memtables + WAL in the page cache      (holds the GIL, microseconds)
    sync  ─▶ fdatasync of the WAL                   (releases it, milliseconds; disk thread)

Invariants:
- The families are fixed at creation and listed at every open: a write to a dropped or missing one would wedge the database.
- Every write goes through the WAL; recovery accepts a torn tail and nothing else.
- No write waits: where RocksDB would stall, `WriteStallError`.
- A scan ends only after its iterator's status was asked: rocksdict's fast iterators end silently at a corrupt block.
- `next` and `prev` are never called on an invalid iterator (they crash the process), and no iterator outlives `close`.
- `ReadOptions.set_iterate_lower_bound` is never used: in rocksdict it sets the *upper* bound.

Not here: versions of keys (`dsdb.storage.mvcc`); identity and format of a store directory (`dsdb.store`).
"""

import threading
import weakref
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, Protocol, cast

import rocksdict
from rocksdict import Rdict, ReadOptions

from dsdb.storage.engine.batch import Change, RecordedBatch
from dsdb.storage.engine.port import SCAN_CHUNK_ROWS, Family, KeysAndValues, WriteBatch
from dsdb.storage.engine.rocksdb_options import DELTA_PREFIX_BYTES, database_options, family_options
from dsdb.storage.errors import CorruptionError, DiskError, DiskFullError, StorageError, StoreFormatError, StoreLockedError, WriteStallError

CACHE_BYTES_DEFAULT = 64 << 20
WRITE_BUFFER_BYTES_DEFAULT = 32 << 20

_DELTA = Family.DELTA
_FAMILIES: Final = tuple(Family)

SINGLE_ROWS = 16
"""Rows of a scan that are read one by one: above that, the fast iterator and the check at its end are cheaper."""

_row_key, _row_value = itemgetter(0), itemgetter(1)

_STATISTICS = {
    "sst_bytes": "rocksdb.total-sst-files-size",
    "memtable_bytes": "rocksdb.cur-size-all-mem-tables",
    "estimated_keys": "rocksdb.estimate-num-keys",
    "level0_files": "rocksdb.num-files-at-level0",
    "pending_compaction_bytes": "rocksdb.estimate-pending-compaction-bytes",
    "write_stopped_families": "rocksdb.is-write-stopped",
}
"""Our name of a figure → RocksDB's property, summed over the families."""


def classify(error: Exception) -> StorageError:
    """Turn an exception of rocksdict, known only by RocksDB's status text, into one of ours."""
    text = str(error)
    if text.startswith("Corruption"):
        return CorruptionError(text)
    if "Write stall" in text:
        return WriteStallError(text)
    if "No space left on device" in text or text.startswith("IO error: No space"):
        return DiskFullError(text)
    if "lock hold by current process" in text or "While lock file" in text:
        return StoreLockedError(text)
    if text.startswith("Invalid argument"):
        return StoreFormatError(text)
    if isinstance(error, rocksdict.DbClosedError):
        return StorageError(text)
    return DiskError(text)


def newest_wal(directory: Path) -> Path:
    """Give the write-ahead log file that RocksDB appends to in a store's directory.

    What lies behind its size at the last sync is what a power loss may take: a test notes the size after each sync, kills the
    process, and truncates this file to any size from there on.
    """
    return max(directory.glob("*.log"), key=lambda path: int(path.stem))


class _Source(Protocol):
    """What `Rdict` and `rocksdict.Snapshot` have in common."""

    def iter(self, read_opt: ReadOptions | None = None) -> rocksdict.RdictIter: ...

    def items(
        self, backwards: bool = False, from_key: bytes | None = None, read_opt: ReadOptions | None = None
    ) -> Iterator[tuple[Any, Any]]: ...


def _total_order() -> ReadOptions:
    options = ReadOptions()
    options.set_total_order_seek(True)
    return options


_TOTAL_ORDER: Final = _total_order()
_SAME_PREFIX: Final = ReadOptions()
"""For a seek whose every possible answer has the seek key's first DELTA_PREFIX_BYTES: bloom filters may skip files."""


def _seek(iterator: rocksdict.RdictIter, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
    """Give the first row of [start, end).  Raises what rocksdict raises."""
    iterator.seek(start)
    if not iterator.valid():
        iterator.status()
        return None
    key: bytes = iterator.key()
    return (key, iterator.value()) if key < end else None


class _Seeker:
    """Reads first keys of spans, keeping the iterator of the last point read in DELTA for the next one.

    To make an iterator costs more than to seek with it, so this halves a point read; it is of use as long as nobody has written.
    """

    def __init__(self) -> None:
        self._idle: list[tuple[int, rocksdict.RdictIter]] = []
        """Iterators that nobody uses, with the number of the write that they saw last.  Few: one a thread that reads."""

    def first(self, source: _Source, family: Family, start: bytes, end: bytes, writes: int) -> tuple[bytes, bytes] | None:
        """Read the first row of [start, end) in the state after `writes` writes, or a later one."""
        is_point = family is _DELTA and len(start) >= DELTA_PREFIX_BYTES and start[:DELTA_PREFIX_BYTES] == end[:DELTA_PREFIX_BYTES]
        writes_seen, iterator = -1, None
        if is_point:
            try:
                # Taken away while in use, in one step under the GIL: another thread makes its own.
                writes_seen, iterator = self._idle.pop()
            except IndexError:
                pass
        try:
            if iterator is None or writes_seen != writes:
                iterator = source.iter(_SAME_PREFIX if is_point else _TOTAL_ORDER)
            found = _seek(iterator, start, end)
        except Exception as error:  # rocksdict raises bare Exception
            raise classify(error) from None
        if is_point:
            self._idle.append((writes, iterator))
        return found

    def drop(self) -> None:
        """Let go of the iterators: they keep old files on disk, and the database open."""
        self._idle.clear()


def _last(source: _Source, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
    try:
        iterator = source.iter(_TOTAL_ORDER)
        iterator.seek_for_prev(end)
        if iterator.valid() and iterator.key() == end:
            iterator.prev()
        if not iterator.valid():
            iterator.status()
            return None
        key: bytes = iterator.key()
        return (key, iterator.value()) if key >= start else None
    except Exception as error:  # rocksdict raises bare Exception
        raise classify(error) from None


def _require_complete(source: _Source, options: ReadOptions, last_key: bytes | None, seek_key: bytes, reverse: bool, start: bytes) -> None:
    """Check that nothing follows the last row that a fast iterator gave.

    It walks over the place where the other one ended, on the same snapshot, with an iterator that can be asked for its status.
    """
    iterator = source.iter(options)
    if last_key is None:
        (iterator.seek_for_prev if reverse else iterator.seek)(seek_key)
    else:
        iterator.seek(last_key)
        if iterator.valid():
            (iterator.prev if reverse else iterator.next)()
    if not iterator.valid():
        iterator.status()
    elif not reverse or iterator.key() >= start:
        raise CorruptionError(f"a scan ended early, before key {iterator.key().hex()}")


def _read_singly(iterator: rocksdict.RdictIter, start: bytes, reverse: bool, rows_max: int) -> tuple[list[bytes], list[bytes], bool]:
    """Read up to `rows_max` rows from where an iterator stands; give them, and whether the span ended there."""
    move = iterator.prev if reverse else iterator.next
    keys: list[bytes] = []
    values: list[bytes] = []
    while iterator.valid():
        key: bytes = iterator.key()
        if reverse and key < start:
            return keys, values, True
        if len(keys) == rows_max:
            return keys, values, False
        keys.append(key)
        values.append(iterator.value())
        move()
    iterator.status()
    return keys, values, True


def _scan(source: _Source, start: bytes, end: bytes, reverse: bool, chunk_rows: int) -> Iterator[KeysAndValues]:
    """Read a span: its first rows by an iterator that has a status, the rest by the fast one that must be checked at its end."""
    options = _total_order()
    options.set_iterate_upper_bound(end)
    try:
        iterator = source.iter(options)
        (iterator.seek_for_prev if reverse else iterator.seek)(end if reverse else start)
        keys, values, is_over = _read_singly(iterator, start, reverse, min(chunk_rows, SINGLE_ROWS))
        next_key = None if is_over else iterator.key()
        del iterator
        if is_over or len(keys) == chunk_rows:
            if keys:
                yield keys, values
            keys, values = [], []
        if next_key is not None:
            yield from _scan_fast(source, options, next_key, start, reverse, chunk_rows, (keys, values))
    except StorageError:
        raise
    except Exception as error:  # rocksdict raises bare Exception
        raise classify(error) from None


def _scan_fast(
    source: _Source, options: ReadOptions, next_key: bytes, start: bytes, reverse: bool, chunk_rows: int, first_rows: KeysAndValues
) -> Iterator[KeysAndValues]:
    """Read on from `next_key`; `first_rows` are those already read of the first chunk."""
    rows = source.items(backwards=reverse, from_key=next_key, read_opt=options)
    keys, values = first_rows
    last_key: bytes | None = None
    is_over = False
    while not is_over:
        wanted = chunk_rows - len(keys)
        chunk = list(islice(rows, wanted))
        is_over = len(chunk) < wanted
        if chunk:
            last_key = chunk[-1][0]
        if reverse and chunk and chunk[-1][0] < start:
            # A row below the span proves that the span was read whole.
            del chunk[bisect_left(chunk, True, key=lambda row: row[0] < start) :]
            is_over = True
        elif is_over:
            _require_complete(source, options, last_key, next_key, reverse, start)
        keys += map(_row_key, chunk)
        values += map(_row_value, chunk)
        # Not to be held while the caller works: the tuples are as large as a small chunk itself.
        del chunk
        if keys:
            yield keys, values
        keys, values = [], []


class _OpenScans:
    """Scans that were begun and not ended: they hold iterators, which must not outlive the database."""

    def __init__(self) -> None:
        self._scans: weakref.WeakSet[Iterator[KeysAndValues]] = weakref.WeakSet()

    def add(self, scan: Iterator[KeysAndValues]) -> Iterator[KeysAndValues]:
        self._scans.add(scan)
        return scan

    def close(self) -> None:
        for scan in list(self._scans):
            scan.close()  # type: ignore[attr-defined]  # they are all generators of `_scan`


class RocksSnapshot:
    """A frozen state of a `RocksEngine`; implements `port.EngineSnapshot`."""

    def __init__(self, snapshots: dict[Family, rocksdict.Snapshot]) -> None:
        self._snapshots = snapshots
        """One a family, all of one sequence number; empty once released."""
        self._scans = _OpenScans()
        self._seeker = _Seeker()

    def _source(self, family: Family) -> rocksdict.Snapshot:
        source = self._snapshots.get(family)
        if source is None:
            raise StorageError("this engine snapshot was released")
        return source

    def get(self, family: Family, key: bytes) -> bytes | None:
        """Read a key; None if it is not there."""
        found = self.first(family, key, key + b"\x00")
        return None if found is None else found[1]

    def multi_get(self, family: Family, keys: Sequence[bytes]) -> list[bytes | None]:
        """Read many keys.  Holds the GIL: rocksdict has no multi-get on a snapshot."""
        return [self.get(family, key) for key in keys]

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False, chunk_rows: int = SCAN_CHUNK_ROWS
    ) -> Iterator[KeysAndValues]:
        """Read a span in chunks."""
        source = self._source(family)
        return self._scans.add(_scan(source, start, end, reverse, chunk_rows)) if start < end else iter(())

    def first(self, family: Family, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Read the first key of [start, end)."""
        return self._seeker.first(self._source(family), family, start, end, 0)

    def last(self, family: Family, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Read the last key of [start, end)."""
        return _last(self._source(family), start, end)

    def release(self) -> None:
        """Give it back, and end its scans."""
        self._scans.close()
        self._seeker.drop()
        self._snapshots = {}


class RocksEngine:
    """A store's disk; implements `port.Engine`.  Opened by `RocksEngine.open`."""

    def __init__(self, database: Rdict) -> None:
        self._database: Rdict | None = database
        """None once closed."""
        self._families = {family: database.get_column_family(family.value) for family in _FAMILIES}
        self._handles = {family: database.get_column_family_handle(family.value) for family in _FAMILIES}
        self._write_options = rocksdict.WriteOptions()
        self._write_options.no_slowdown = True
        self._write_lock = threading.Lock()
        """Held by writes, and by `snapshot` so that no write falls between two families."""
        self._snapshots: weakref.WeakSet[RocksSnapshot] = weakref.WeakSet()
        self._scans = _OpenScans()
        self._seeker = _Seeker()
        self._writes = 0
        """Batches given to RocksDB, whatever it said: a reader that saw fewer sees an old state."""
        self._stalls = 0
        """Batches refused because RocksDB would have waited."""

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        create: bool,
        cache_bytes: int = CACHE_BYTES_DEFAULT,
        write_buffer_bytes: int = WRITE_BUFFER_BYTES_DEFAULT,
    ) -> "RocksEngine":
        """Open the store in a directory, or with `create` make one where there is none.

        Raises StoreFormatError if `create` says wrong or the directory holds something else, StoreLockedError, CorruptionError.
        """
        is_there = (directory / "CURRENT").exists()
        if create and is_there:
            raise StoreFormatError(f"{directory} already holds a store")
        if not create and not is_there:
            raise StoreFormatError(f"{directory} holds no store")
        if create:
            directory.mkdir(parents=True, exist_ok=True)
        cache = rocksdict.Cache(cache_bytes)
        try:
            if not create:
                found = set(Rdict.list_cf(str(directory)))
                expected = {"default", *(family.value for family in _FAMILIES)}
                if found != expected:
                    raise StoreFormatError(f"{directory} holds the families {sorted(found)}, expected {sorted(expected)}")
            database = Rdict(
                str(directory),
                database_options(create=create, write_buffer_bytes=write_buffer_bytes),
                {family.value: family_options(family, cache, write_buffer_bytes) for family in _FAMILIES},
            )
            return cls(database)
        except StorageError:
            raise
        except Exception as error:  # rocksdict raises bare Exception
            raise classify(error) from None

    def _open_database(self) -> Rdict:
        if self._database is None:
            raise StorageError("this engine was closed")
        return self._database

    def _source(self, family: Family) -> Rdict:
        source = self._families.get(family)
        if source is None:
            raise StorageError("this engine was closed")
        return source

    def get(self, family: Family, key: bytes) -> bytes | None:
        """Read a key; None if it is not there."""
        try:
            return cast(bytes | None, self._source(family).get(key))
        except StorageError:
            raise
        except Exception as error:  # rocksdict raises bare Exception
            raise classify(error) from None

    def multi_get(self, family: Family, keys: Sequence[bytes]) -> list[bytes | None]:
        """Read many keys at once; releases the GIL."""
        if not keys:
            return []
        try:
            return cast(list[bytes | None], self._source(family).get(list(keys)))
        except StorageError:
            raise
        except Exception as error:  # rocksdict raises bare Exception
            raise classify(error) from None

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False, chunk_rows: int = SCAN_CHUNK_ROWS
    ) -> Iterator[KeysAndValues]:
        """Read a span in chunks, as it is now."""
        source = self._source(family)
        # A snapshot of its own: the check at the scan's end must see what the scan saw.
        return self._scans.add(_scan(source.snapshot(), start, end, reverse, chunk_rows)) if start < end else iter(())

    def first(self, family: Family, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Read the first key of [start, end)."""
        return self._seeker.first(self._source(family), family, start, end, self._writes)

    def last(self, family: Family, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Read the last key of [start, end)."""
        return _last(self._source(family), start, end)

    def new_batch(self) -> RecordedBatch:
        """Make an empty batch."""
        return RecordedBatch()

    def write(self, batch: WriteBatch) -> None:
        """Make a batch visible, without waiting for the disk."""
        assert isinstance(batch, RecordedBatch), type(batch)
        assert not batch.is_written, "a batch is written once"
        database = self._open_database()
        handles = self._handles
        rocks_batch = rocksdict.WriteBatch(raw_mode=True)
        for change, family, key, value in batch.changes:
            if change is Change.PUT:
                rocks_batch.put(key, value, handles[family])
            elif change is Change.DELETE:
                rocks_batch.delete(key, handles[family])
            else:
                rocks_batch.delete_range(key, value, handles[family])
        try:
            with self._write_lock:
                database.write(rocks_batch, self._write_options)
        except Exception as error:  # rocksdict raises bare Exception
            failure = classify(error)
            if isinstance(failure, WriteStallError):
                self._stalls += 1
            raise failure from None
        finally:
            self._writes += 1
        batch.is_written = True

    def sync(self) -> None:
        """Make all earlier writes durable.  Blocks without the GIL."""
        try:
            self._open_database().flush_wal(True)
        except StorageError:
            raise
        except Exception as error:  # rocksdict raises bare Exception
            # After a failed sync nobody knows what is on the disk, whatever the reason was.
            raise DiskError(str(error)) from None

    def flush(self) -> None:
        """Write all memtables to table files and wait for it, without the GIL."""
        self._open_database()
        self._seeker.drop()
        try:
            for source in self._families.values():
                source.flush(True)
        except Exception as error:  # rocksdict raises bare Exception
            raise classify(error) from None

    def snapshot(self) -> RocksSnapshot:
        """Freeze the current state for reading."""
        self._open_database()
        with self._write_lock:
            snapshot = RocksSnapshot({family: source.snapshot() for family, source in self._families.items()})
        self._snapshots.add(snapshot)
        return snapshot

    def statistics(self) -> dict[str, float]:
        """Give figures for metrics; the names are the keys of `_STATISTICS`, `cache_bytes` and `write_stalls`."""
        self._open_database()
        figures = {
            name: float(sum(source.property_int_value(rocks_name) or 0 for source in self._families.values()))
            for name, rocks_name in _STATISTICS.items()
        }
        figures["cache_bytes"] = float(self._families[_DELTA].property_int_value("rocksdb.block-cache-usage") or 0)
        figures["write_stalls"] = float(self._stalls)
        return figures

    def close(self) -> None:
        """Close it, after ending the scans and snapshots that are left: they would keep the directory locked.

        RocksDB flushes its memtables, which may fail as a write may: it is closed all the same, and what was synced is safe in the log.
        """
        if self._database is None:
            return
        for snapshot in list(self._snapshots):
            snapshot.release()
        self._scans.close()
        self._seeker.drop()
        self._families = {}
        self._handles = {}
        database, self._database = self._database, None
        try:
            database.close()
        except Exception as error:  # rocksdict raises bare Exception
            raise classify(error) from None
