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
- `rocksdict.Snapshot` is never used: its iterators read the live state.  An iterator keeps the state in which it was made; so an
  engine snapshot is a `_State` for which iterators are made before the next write, if it is still held then.

Not here: versions of keys (`dsdb.storage.mvcc`); identity and format of a store directory (`dsdb.store`).
"""

import contextlib
import threading
import weakref
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Final, cast

import rocksdict
from rocksdict import Rdict, ReadOptions

from dsdb.storage.engine.batch import Change, RecordedBatch
from dsdb.storage.engine.port import SCAN_CHUNK_ROWS, Family, Journal, KeysAndValues, WriteBatch
from dsdb.storage.engine.rocksdb_options import DELTA_PREFIX_BYTES, database_options, family_options
from dsdb.storage.errors import CorruptionError, DiskError, DiskFullError, StorageError, StoreFormatError, StoreLockedError, WriteStallError

CACHE_BYTES_DEFAULT = 64 << 20
WRITE_BUFFER_BYTES_DEFAULT = 32 << 20

_DELTA = Family.DELTA
_PUT, _DELETE = Change.PUT, Change.DELETE
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
    """Turn an exception of rocksdict, known only by RocksDB's status text, into one of ours.

    Raises the exception itself if it is not one of RocksDB's but a fault of the caller, such as a key that is no bytes.
    """
    text = str(error)
    if isinstance(error, rocksdict.DbClosedError):
        return StorageError(text)
    if type(error) is not Exception:
        raise error
    if text.startswith("Corruption"):
        return CorruptionError(text)
    if "Write stall" in text:
        return WriteStallError(text)
    if "No space left on device" in text or text.startswith("IO error: No space"):
        return DiskFullError(text)
    if "lock hold by current process" in text or "While lock file" in text:
        return StoreLockedError(text)
    if "create_if_missing is false" in text or "Column famil" in text:
        return StoreFormatError(text)
    # An unknown failure is taken for the worst one: the store must stop.
    return DiskError(text)


def newest_wal(directory: Path) -> Path:
    """Give the write-ahead log file that RocksDB appends to in a store's directory.

    What lies behind its size at the last sync is what a power loss may take: a test notes the size after each sync, kills the
    process, and truncates this file to any size from there on.
    """
    return max(directory.glob("*.log"), key=lambda path: int(path.stem))


def _total_order() -> ReadOptions:
    options = ReadOptions()
    options.set_total_order_seek(True)
    return options


_TOTAL_ORDER: Final = _total_order()


def _rewrite() -> rocksdict.CompactOptions:
    options = rocksdict.CompactOptions()
    # Else a file is moved to the bottom as it is, with what says that its keys are deleted.
    options.set_bottommost_level_compaction(rocksdict.BottommostLevelCompaction.force_optimized())
    return options


_REWRITE: Final = _rewrite()


def _same_prefix() -> ReadOptions:
    options = ReadOptions()
    options.set_prefix_same_as_start(True)
    return options


_SAME_PREFIX: Final = _same_prefix()
"""For a seek whose every possible answer has the seek key's first DELTA_PREFIX_BYTES: bloom filters may skip files, and the seek ends
where the prefix does, instead of walking over all that was deleted behind it."""


def _seek(iterator: rocksdict.RdictIter, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
    """Give the first row of [start, end).  Raises what rocksdict raises."""
    iterator.seek(start)
    if not iterator.valid():
        iterator.status()
        return None
    key: bytes = iterator.key()
    return (key, iterator.value()) if key < end else None


def _seek_back(iterator: rocksdict.RdictIter, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
    """Give the last row of [start, end).  Raises what rocksdict raises."""
    iterator.seek_for_prev(end)
    if iterator.valid() and iterator.key() == end:
        iterator.prev()
    if not iterator.valid():
        iterator.status()
        return None
    key: bytes = iterator.key()
    return (key, iterator.value()) if key >= start else None


def _read_singly(
    iterator: rocksdict.RdictIter, start: bytes, end: bytes, reverse: bool, rows_max: int
) -> tuple[list[bytes], list[bytes], bool]:
    """Read up to `rows_max` rows of [start, end) from where an iterator stands; give them, and whether the span ended there."""
    move = iterator.prev if reverse else iterator.next
    keys: list[bytes] = []
    values: list[bytes] = []
    while iterator.valid():
        key: bytes = iterator.key()
        if key < start if reverse else key >= end:
            return keys, values, True
        if len(keys) == rows_max:
            return keys, values, False
        keys.append(key)
        values.append(iterator.value())
        move()
    iterator.status()
    return keys, values, True


class _LiveScan:
    """A scan of the live state: its first rows by an iterator that has a status, the rest by the fast one that must be checked.

    Both are made here, together, so that the check at the end sees what the scan saw.  The maker holds the write lock.
    """

    def __init__(self, source: Rdict, start: bytes, end: bytes, reverse: bool, chunk_rows: int) -> None:
        self._start, self._reverse, self._chunk_rows = start, reverse, chunk_rows
        options = _total_order()
        options.set_iterate_upper_bound(end)
        self._checker = source.iter(options)
        (self._checker.seek_for_prev if reverse else self._checker.seek)(end if reverse else start)
        self._keys, self._values, is_over = _read_singly(self._checker, start, end, reverse, min(chunk_rows, SINGLE_ROWS))
        self._next_key: bytes | None = None if is_over else self._checker.key()
        """The first key that the fast iterator gives; None if there is none."""
        self._rows: Iterator[tuple[bytes, bytes]] = iter(())
        if not is_over:
            self._rows = cast(Iterator[tuple[bytes, bytes]], source.items(backwards=reverse, from_key=self._next_key, read_opt=options))

    def chunks(self) -> Iterator[KeysAndValues]:
        """Give the rows.  Raises what rocksdict raises, and CorruptionError."""
        keys, values = self._keys, self._values
        if self._next_key is None or len(keys) == self._chunk_rows:
            if keys:
                yield keys, values
            keys, values = [], []
        last_key = self._next_key
        is_over = last_key is None
        while not is_over:
            wanted = self._chunk_rows - len(keys)
            chunk = list(islice(self._rows, wanted))
            is_over = len(chunk) < wanted
            if chunk:
                last_key = chunk[-1][0]
            if self._reverse and chunk and chunk[-1][0] < self._start:
                # A row below the span proves that the span was read whole.
                del chunk[bisect_left(chunk, True, key=lambda row: row[0] < self._start) :]
                is_over = True
            elif is_over:
                assert last_key is not None
                self._require_complete(last_key)
            keys += map(_row_key, chunk)
            values += map(_row_value, chunk)
            # Not to be held while the caller works: the tuples are as large as a small chunk itself.
            del chunk
            if keys:
                yield keys, values
            keys, values = [], []

    def _require_complete(self, last_key: bytes) -> None:
        """Check that nothing follows the last row: walk over the place where the fast iterator ended, and ask for the status."""
        self._checker.seek(last_key)
        if self._checker.valid():
            (self._checker.prev if self._reverse else self._checker.next)()
        if not self._checker.valid():
            self._checker.status()
        elif not self._reverse or self._checker.key() >= self._start:
            raise CorruptionError(f"a scan ended early, before key {self._checker.key().hex()}")


class _State:
    """What the database holds between two writes: readable live until the next write, and by frozen iterators from then on.

        write n ──▶ _State: live, iterators pooled ──▶ write n + 1: frozen, if snapshots hold it; forgotten otherwise
    """

    def __init__(self, families: dict[Family, Rdict], write_lock: threading.Lock) -> None:
        self._families = families
        self._write_lock = write_lock
        """Held while live iterators are made for a state: no write may come between the question and the making."""
        self.holders = 0
        """Snapshots of this state that were not released."""
        self._frozen: dict[Family, rocksdict.RdictIter] | None = None
        """One iterator a family, made before the write that ended this state; None while it is live."""
        self._frozen_lock = threading.Lock()
        """Held by whoever moves a frozen iterator."""
        self._idle: list[rocksdict.RdictIter] = []
        """Iterators of earlier point reads in DELTA that nobody uses: making one costs more than seeking with it."""

    def freeze(self) -> None:
        """Make the iterators that will read this state; the caller holds the write lock, and writes next."""
        if self._frozen is None:
            self._frozen = {family: source.iter(_TOTAL_ORDER) for family, source in self._families.items()}

    def drop_idle(self) -> None:
        """Let go of pooled iterators: they keep old files on disk, and the database open."""
        self._idle.clear()

    def first(self, family: Family, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Read the first row of [start, end)."""
        is_point = family is _DELTA and len(start) >= DELTA_PREFIX_BYTES and start[:DELTA_PREFIX_BYTES] == end[:DELTA_PREFIX_BYTES]
        iterator = None
        if is_point:
            try:
                # Taken away while in use, in one step under the GIL: another thread makes its own.
                iterator = self._idle.pop()
            except IndexError:
                pass
        try:
            if iterator is None:
                iterator = self._live_iterator(family, _SAME_PREFIX if is_point else _TOTAL_ORDER)
            if iterator is None:
                with self._frozen_lock:
                    return _seek(self._frozen_iterator(family), start, end)
            found = _seek(iterator, start, end)
        except Exception as error:  # rocksdict raises bare Exception
            raise classify(error) from None
        if is_point:
            self._idle.append(iterator)
        return found

    def last(self, family: Family, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Read the last row of [start, end)."""
        try:
            iterator = self._live_iterator(family, _TOTAL_ORDER)
            if iterator is not None:
                return _seek_back(iterator, start, end)
            with self._frozen_lock:
                return _seek_back(self._frozen_iterator(family), start, end)
        except Exception as error:  # rocksdict raises bare Exception
            raise classify(error) from None

    def scan(self, family: Family, start: bytes, end: bytes, reverse: bool, chunk_rows: int) -> Iterator[KeysAndValues]:
        """Read a span in chunks."""
        try:
            with self._write_lock:
                live = None if self._frozen is not None else _LiveScan(self._families[family], start, end, reverse, chunk_rows)
            if live is not None:
                yield from live.chunks()
            else:
                yield from self._scan_frozen(family, start, end, reverse, chunk_rows)
        except StorageError:
            raise
        except Exception as error:  # rocksdict raises bare Exception
            raise classify(error) from None

    def _scan_frozen(self, family: Family, start: bytes, end: bytes, reverse: bool, chunk_rows: int) -> Iterator[KeysAndValues]:
        """Read a span row by row, seeking anew for each chunk: others may move the iterator between two of them."""
        iterator = self._frozen_iterator(family)
        is_over = False
        while not is_over:
            with self._frozen_lock:
                if reverse:
                    iterator.seek_for_prev(end)
                    if iterator.valid() and iterator.key() == end:
                        iterator.prev()
                else:
                    iterator.seek(start)
                keys, values, is_over = _read_singly(iterator, start, end, reverse, chunk_rows)
            if keys:
                start, end = (start, keys[-1]) if reverse else (keys[-1] + b"\x00", end)
                yield keys, values

    def _live_iterator(self, family: Family, options: ReadOptions) -> rocksdict.RdictIter | None:
        """Make an iterator of this state; None once it is frozen."""
        with self._write_lock:
            return self._families[family].iter(options) if self._frozen is None else None

    def _frozen_iterator(self, family: Family) -> rocksdict.RdictIter:
        assert self._frozen is not None, "not frozen"
        return self._frozen[family]


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

    def __init__(self, state: _State, write_lock: threading.Lock) -> None:
        self._held: _State | None = state
        """None once released."""
        self._write_lock = write_lock
        self._scans = _OpenScans()

    def _state(self) -> _State:
        if self._held is None:
            raise StorageError("this engine snapshot was released")
        return self._held

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
        state = self._state()
        return self._scans.add(state.scan(family, start, end, reverse, chunk_rows)) if start < end else iter(())

    def first(self, family: Family, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Read the first key of [start, end)."""
        return self._state().first(family, start, end)

    def last(self, family: Family, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Read the last key of [start, end)."""
        return self._state().last(family, start, end)

    def release(self) -> None:
        """Give it back, and end its scans."""
        self._scans.close()
        state, self._held = self._held, None
        if state is not None:
            with self._write_lock:
                state.holders -= 1


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
        """Held by writes, and by whoever needs that none comes in between."""
        self._current = _State(self._families, self._write_lock)
        """The state since the last write."""
        self._snapshots: weakref.WeakSet[RocksSnapshot] = weakref.WeakSet()
        self._scans = _OpenScans()
        self._journal: Journal = contextlib.nullcontext
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
        source = self._source(family)
        try:
            return cast(bytes | None, source.get(key))
        except Exception as error:  # rocksdict raises bare Exception
            raise classify(error) from None

    def multi_get(self, family: Family, keys: Sequence[bytes]) -> list[bytes | None]:
        """Read many keys at once; releases the GIL."""
        if not keys:
            return []
        source = self._source(family)
        try:
            return cast(list[bytes | None], source.get(list(keys)))
        except Exception as error:  # rocksdict raises bare Exception
            raise classify(error) from None

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False, chunk_rows: int = SCAN_CHUNK_ROWS
    ) -> Iterator[KeysAndValues]:
        """Read a span in chunks, as it is now."""
        self._open_database()
        return self._scans.add(self._current.scan(family, start, end, reverse, chunk_rows)) if start < end else iter(())

    def first(self, family: Family, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Read the first key of [start, end)."""
        self._open_database()
        return self._current.first(family, start, end)

    def last(self, family: Family, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Read the last key of [start, end)."""
        self._open_database()
        return self._current.last(family, start, end)

    def watch(self, journal: Journal) -> None:
        """Tell a journal of all writes from now on."""
        self._journal = journal

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
        put = rocks_batch.put
        for change, family, key, value in batch.changes:
            if change is _PUT:
                put(key, value, handles[family])
            elif change is _DELETE:
                rocks_batch.delete(key, handles[family])
            else:
                rocks_batch.delete_range(key, value, handles[family])
        try:
            with self._write_lock, self._journal(batch):
                if self._current.holders:
                    self._current.freeze()
                database.write(rocks_batch, self._write_options)
        except Exception as error:  # rocksdict raises bare Exception
            failure = classify(error)
            if isinstance(failure, WriteStallError):
                self._stalls += 1
            raise failure from None
        finally:
            # Also after a refusal: a frozen state is not the live one any more, and pooled iterators are cheap to lose.
            self._current = _State(self._families, self._write_lock)
        batch.is_written = True

    def sync(self) -> None:
        """Make all earlier writes durable.  Blocks without the GIL."""
        database = self._open_database()
        try:
            database.flush_wal(True)
        except Exception as error:  # rocksdict raises bare Exception
            # After a failed sync nobody knows what is on the disk, whatever the reason was.
            raise DiskError(str(error)) from None

    def flush(self) -> None:
        """Write all memtables to table files and wait for it, without the GIL."""
        self._open_database()
        self._current.drop_idle()
        try:
            for source in self._families.values():
                source.flush(True)
        except Exception as error:  # rocksdict raises bare Exception
            raise classify(error) from None

    def compact(self, family: Family, start: bytes, end: bytes) -> None:
        """Write what is there of [start, end) anew, without what was deleted and without the GIL."""
        self._open_database()
        self._current.drop_idle()
        try:
            self._families[family].compact_range(start, end, _REWRITE)
        except Exception as error:  # rocksdict raises bare Exception
            raise classify(error) from None

    def snapshot(self) -> RocksSnapshot:
        """Freeze the current state for reading."""
        self._open_database()
        with self._write_lock:
            self._current.holders += 1
            snapshot = RocksSnapshot(self._current, self._write_lock)
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
        # Emptied in place: states share the dict, and a scan begun too late must not find a family.
        self._families.clear()
        self._handles.clear()
        self._current = _State(self._families, self._write_lock)
        database, self._database = self._database, None
        try:
            database.close()
        except Exception as error:  # rocksdict raises bare Exception
            raise classify(error) from None
