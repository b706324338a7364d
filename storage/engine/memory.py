"""The engine in memory: for the simulator, for tests, and for a node that keeps nothing.

A family is a dict of values beside a sorted list of its keys; new keys join the list when somebody next asks for order.
A snapshot copies nothing: it is the live state plus what has been overwritten since, which every write notes for the snapshots held.

    snapshot = live state, except where its overlay says what was there before

Invariants:
- Same calls, same answers: nothing depends on hashing order, time or chance but the `Random` given to `crash`.
- `crash` keeps a prefix of the batches written, and all of those that were synced: what a power loss leaves of a log.
"""

import contextlib
import random
import weakref
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

from dsdb.storage.engine.batch import Change, RecordedBatch
from dsdb.storage.engine.port import SCAN_CHUNK_ROWS, Family, Journal, KeysAndValues, WriteBatch
from dsdb.storage.errors import StorageError

_PUT, _DELETE = Change.PUT, Change.DELETE

INSERTED_SINGLY_MAX = 32
"""New keys up to this number are inserted one by one; more are appended and sorted, which is linear for two sorted runs."""


class _MemoryFamily:
    """The keys and values of one family."""

    __slots__ = ("_keys", "_unplaced", "values")

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        """The truth: every key that is there."""
        self._keys: list[bytes] = []
        """The same keys in order, but for the unplaced."""
        self._unplaced: list[bytes] = []
        """Keys of `values` that are not in `_keys` yet, in the order of their arrival."""

    def ordered_keys(self) -> list[bytes]:
        """Give all keys in order; read it only until the next change."""
        unplaced = self._unplaced
        if unplaced:
            if len(unplaced) <= INSERTED_SINGLY_MAX:
                for key in unplaced:
                    insort(self._keys, key)
            else:
                self._keys += sorted(unplaced)
                self._keys.sort()
            unplaced.clear()
        return self._keys

    def put(self, key: bytes, value: bytes) -> None:
        if key not in self.values:
            self._unplaced.append(key)
        self.values[key] = value

    def delete(self, key: bytes) -> None:
        if self.values.pop(key, None) is not None:
            keys = self.ordered_keys()
            del keys[bisect_left(keys, key)]

    def delete_between(self, start: bytes, end: bytes) -> list[tuple[bytes, bytes]]:
        """Remove the keys of [start, end); give them and their values."""
        keys = self.ordered_keys()
        doomed = slice(bisect_left(keys, start), bisect_left(keys, end))
        removed = [(key, self.values.pop(key)) for key in keys[doomed]]
        del keys[doomed]
        return removed

    def keys_between(self, start: bytes, end: bytes) -> list[bytes]:
        keys = self.ordered_keys()
        return keys[bisect_left(keys, start) : bisect_left(keys, end)]


class _Overlay:
    """What a snapshot must remember of one family: the values before they were changed; None where there was no key."""

    __slots__ = ("before",)

    def __init__(self) -> None:
        self.before: dict[bytes, bytes | None] = {}


class _MemoryReader:
    """Reads of a family under an overlay; the engine's own overlays stay empty."""

    def __init__(self, families: dict[Family, _MemoryFamily]) -> None:
        self._families = families
        self._overlays = {family: _Overlay() for family in families}
        self._is_gone = ""
        """Why reading is an error; empty while it is none."""

    def _require(self) -> None:
        if self._is_gone:
            raise StorageError(self._is_gone)

    def get(self, family: Family, key: bytes) -> bytes | None:
        """Read a key; None if it is not there."""
        self._require()
        before = self._overlays[family].before
        if key in before:
            return before[key]
        return self._families[family].values.get(key)

    def multi_get(self, family: Family, keys: Sequence[bytes]) -> list[bytes | None]:
        """Read many keys at once."""
        return [self.get(family, key) for key in keys]

    def _visible_keys(self, family: Family, start: bytes, end: bytes) -> list[bytes]:
        """Give the keys of [start, end) in order, as the overlay says they were."""
        self._require()
        keys = self._families[family].keys_between(start, end)
        before = {key: value for key, value in self._overlays[family].before.items() if start <= key < end}
        if not before:
            return keys
        return sorted([key for key in keys if key not in before] + [key for key, value in before.items() if value is not None])

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False, chunk_rows: int = SCAN_CHUNK_ROWS
    ) -> Iterator[KeysAndValues]:
        """Read a span in chunks."""
        # Keys are few and shared, so they are listed at once; a scan of the engine itself sees its first chunk's state by a snapshot.
        self._require()
        return self._scan_chunks(family, start, end, reverse, chunk_rows)

    def _scan_chunks(self, family: Family, start: bytes, end: bytes, reverse: bool, chunk_rows: int) -> Iterator[KeysAndValues]:
        keys = self._visible_keys(family, start, end)
        if reverse:
            keys.reverse()
        for position in range(0, len(keys), chunk_rows):
            self._require()
            chunk = keys[position : position + chunk_rows]
            before, values = self._overlays[family].before, self._families[family].values
            if before:
                yield chunk, [before[key] if key in before else values[key] for key in chunk]  # type: ignore[misc]  # none of them is None
            else:
                yield chunk, [values[key] for key in chunk]

    def first(self, family: Family, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Read the first key of [start, end)."""
        return self._edge(family, start, end, 0)

    def last(self, family: Family, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Read the last key of [start, end)."""
        return self._edge(family, start, end, -1)

    def _edge(self, family: Family, start: bytes, end: bytes, index: int) -> tuple[bytes, bytes] | None:
        self._require()
        if self._overlays[family].before:
            visible = self._visible_keys(family, start, end)
            if not visible:
                return None
            value = self.get(family, visible[index])
            assert value is not None, visible[index]
            return visible[index], value
        keys = self._families[family].ordered_keys()
        position = bisect_left(keys, end) - 1 if index else bisect_left(keys, start)
        if not 0 <= position < len(keys) or not start <= keys[position] < end:
            return None
        return keys[position], self._families[family].values[keys[position]]


class MemorySnapshot(_MemoryReader):
    """A frozen state of a `MemoryEngine`; implements `port.EngineSnapshot`."""

    def note(self, family: Family, key: bytes, value: bytes | None) -> None:
        """Remember what was there before the first change of a key since this snapshot."""
        self._overlays[family].before.setdefault(key, value)

    def release(self) -> None:
        """Give it back; reading it afterwards is an error."""
        self._is_gone = "this engine snapshot was released"

    @property
    def is_released(self) -> bool:
        """Say whether it was given back."""
        return bool(self._is_gone)


class MemoryEngine(_MemoryReader):
    """A store's disk that is none; implements `port.Engine`."""

    def __init__(self) -> None:
        super().__init__({family: _MemoryFamily() for family in Family})
        self._snapshots: weakref.WeakValueDictionary[int, MemorySnapshot] = weakref.WeakValueDictionary()
        """Snapshots that may be held, by number, so that their order is that of their making."""
        self._snapshots_made = 0
        self._journal: Journal = contextlib.nullcontext
        self._unsynced: list[list[tuple[Family, bytes, bytes | None]]] = []
        """For each batch since the last sync, oldest first: what its changes overwrote, in their order."""

    def watch(self, journal: Journal) -> None:
        """Tell a journal of all writes from now on."""
        self._journal = journal

    def new_batch(self) -> RecordedBatch:
        """Make an empty batch."""
        return RecordedBatch()

    def write(self, batch: WriteBatch) -> None:
        """Make a batch visible."""
        assert isinstance(batch, RecordedBatch), type(batch)
        assert not batch.is_written, "a batch is written once"
        self._require()
        with self._journal(batch):
            overwritten = self._apply(batch)
        for snapshot in self._held_snapshots():
            for family, key, before in overwritten:
                snapshot.note(family, key, before)
        self._unsynced.append(overwritten)
        batch.is_written = True

    def _apply(self, batch: RecordedBatch) -> list[tuple[Family, bytes, bytes | None]]:
        """Change what a batch changes; give what was there before, in the order of the changes."""
        overwritten: list[tuple[Family, bytes, bytes | None]] = []
        for change, family, key, value in batch.changes:
            data = self._families[family]
            if change is _PUT:
                overwritten.append((family, key, data.values.get(key)))
                data.put(key, value)
            elif change is _DELETE:
                overwritten.append((family, key, data.values.get(key)))
                data.delete(key)
            else:
                overwritten += [(family, doomed, before) for doomed, before in data.delete_between(key, value)]
        return overwritten

    def sync(self) -> None:
        """Make all earlier writes survive `crash`."""
        self._require()
        self._unsynced.clear()

    def compact(self, family: Family, start: bytes, end: bytes) -> None:
        """Do nothing: what was deleted is gone."""
        self._require()

    def snapshot(self) -> MemorySnapshot:
        """Freeze the current state for reading."""
        self._require()
        snapshot = MemorySnapshot(self._families)
        self._snapshots_made += 1
        self._snapshots[self._snapshots_made] = snapshot
        return snapshot

    def _held_snapshots(self) -> list[MemorySnapshot]:
        """List the snapshots that are held, and forget the released ones."""
        if not self._snapshots:
            return []
        for number, snapshot in list(self._snapshots.items()):
            if snapshot.is_released:
                del self._snapshots[number]
        return list(self._snapshots.values())

    def scan(
        self, family: Family, start: bytes, end: bytes, *, reverse: bool = False, chunk_rows: int = SCAN_CHUNK_ROWS
    ) -> Iterator[KeysAndValues]:
        """Read a span in chunks, as it is at the first of them."""
        self._require()
        return self._scan_frozen(family, start, end, reverse, chunk_rows)

    def _scan_frozen(self, family: Family, start: bytes, end: bytes, reverse: bool, chunk_rows: int) -> Iterator[KeysAndValues]:
        snapshot = self.snapshot()
        try:
            yield from snapshot.scan(family, start, end, reverse=reverse, chunk_rows=chunk_rows)
        finally:
            snapshot.release()

    def statistics(self) -> dict[str, float]:
        """Give figures for metrics."""
        self._require()
        return {
            "keys": float(sum(len(data.values) for data in self._families.values())),
            "unsynced_batches": float(len(self._unsynced)),
            "snapshots": float(len(self._held_snapshots())),
        }

    def close(self) -> None:
        """End the snapshots that are left.  Its content can still be had by `crash`."""
        self._end("this engine was closed")

    def _end(self, reason: str) -> None:
        for snapshot in list(self._snapshots.values()):
            snapshot.release()
        self._is_gone = reason

    def crash(self, random: random.Random) -> "MemoryEngine":
        """Give the engine as the next process finds it after a power loss: without a suffix of the batches not synced.

        This one is of no use afterwards.
        """
        batches_kept = random.randint(0, len(self._unsynced))
        for overwritten in reversed(self._unsynced[batches_kept:]):
            for family, key, before in reversed(overwritten):
                if before is None:
                    self._families[family].delete(key)
                else:
                    self._families[family].put(key, before)
        survivor = MemoryEngine()
        survivor._families = self._families
        # It holds its own content now; what reached the disk before the loss is durable.
        self._end("this engine has crashed")
        self._families = {family: _MemoryFamily() for family in Family}
        self._unsynced = []
        return survivor
