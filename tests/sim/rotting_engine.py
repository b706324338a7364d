"""An engine in memory whose rows and blocks go bad at rest: reading one is an error, as its checksum is wrong, until it is overwritten.

    rot(key) ─▶ get, scan, first, last of that key: CorruptionError ─ put, delete, crash of the process or not ─▶ only a write mends it

Invariants:
- Engine snapshots, also those made before, see what the disk has: what is bad is bad for them too.
- `change` alters a value that then reads well: nothing but a comparison with other replicas finds that.
"""

import random
from collections.abc import Iterator
from typing import Any

from dsdb.storage.engine.batch import Change, RecordedBatch
from dsdb.storage.engine.memory import MemoryEngine, MemorySnapshot
from dsdb.storage.engine.port import Family, KeysAndValues, WriteBatch
from dsdb.storage.errors import CorruptionError

DELTA = Family.DELTA
ROTTING = (DELTA, Family.BLOCK, Family.INDEX)
"""What goes bad; damage to what a store keeps of itself ends it."""
Place = tuple[Family, bytes]


class _Rot:
    """The keys that are bad, and the checks of those who read."""

    def __init__(self) -> None:
        self.places: set[Place] = set()

    def check(self, family: Family, keys: list[bytes]) -> None:
        for place, key in self.places:
            if place is family and key in keys:
                raise CorruptionError(f"the checksum of {key.hex()} is wrong")

    def written(self, batch: RecordedBatch) -> None:
        for change, family, key, value in batch.changes if self.places else ():
            if change in (Change.PUT, Change.DELETE):
                self.places.discard((family, key))
            else:
                self.places -= {(place, bad) for place, bad in self.places if place is family and key <= bad < value}


class _RottingReader:
    """Reads that look at the rot."""

    rot: _Rot

    def get(self, family: Family, key: bytes) -> bytes | None:
        if self.rot.places:
            self.rot.check(family, [key])
        return super().get(family, key)  # type: ignore[misc,no-any-return]

    def _scan_chunks(self, family: Family, *args: Any) -> Iterator[KeysAndValues]:
        for keys, values in super()._scan_chunks(family, *args):  # type: ignore[misc]
            if self.rot.places:
                self.rot.check(family, keys)
            yield keys, values

    def _edge(self, family: Family, *args: Any) -> tuple[bytes, bytes] | None:
        found = super()._edge(family, *args)  # type: ignore[misc]
        if found is not None and self.rot.places:
            self.rot.check(family, [found[0]])
        return found  # type: ignore[no-any-return]


class _RottingSnapshot(_RottingReader, MemorySnapshot):
    """A frozen state, on the same disk."""


class RottingEngine(_RottingReader, MemoryEngine):
    """A `MemoryEngine` on a disk that may go bad."""

    def __init__(self) -> None:
        super().__init__()
        self.rot = _Rot()

    def write(self, batch: WriteBatch) -> None:
        super().write(batch)
        assert isinstance(batch, RecordedBatch)
        self.rot.written(batch)

    def snapshot(self) -> MemorySnapshot:
        self._require()
        snapshot = _RottingSnapshot(self._families)
        snapshot.rot = self.rot
        self._snapshots_made += 1
        self._snapshots[self._snapshots_made] = snapshot
        return snapshot

    def crash(self, random: random.Random) -> "RottingEngine":
        survivor = RottingEngine()
        survivor._families = super().crash(random)._families
        survivor.rot, self.rot = self.rot, _Rot()
        return survivor

    # ---- What goes wrong ----

    def keys(self, start: bytes, end: bytes) -> list[bytes]:
        """Give the engine keys of a span of DELTA."""
        return self._families[DELTA].keys_between(start, end)

    def places(self, start: bytes, end: bytes) -> list[Place]:
        """Give all that lies in a span and may go bad."""
        return [(family, key) for family in ROTTING for key in self._families[family].keys_between(start, end)]

    def change(self, key: bytes, value: bytes | None) -> None:
        """Have a key read as something else, or not be there."""
        data = self._families[DELTA]
        if value is None:
            data.delete(key)
        else:
            data.put(key, value)

    def reads_as(self, key: bytes) -> bytes | None:
        """Give what a key of DELTA reads as, whether it is bad or not."""
        return self._families[DELTA].values.get(key)


