"""A node that can be hurt from outside; its arguments are those of `dsdb`.

Its store notes after each sync how far its write-ahead log is safe: whoever kills it may then take away what a power loss may take, any
suffix of the newest log behind that size (`lose_unsynced`).  And it looks at the file `hurts` in its store's directory whenever it gets
SIGUSR1: its wall clock is off by so much, its disk is full (`hurt`).
The engine, the clock and all else are the production code: the subclasses only add this.
"""

import os
import random
import signal
from pathlib import Path

import msgspec

import dsdb.node.node
import dsdb.node.opening
from dsdb.cli.main import main
from dsdb.env import SystemClock
from dsdb.storage.engine.port import WriteBatch
from dsdb.storage.engine.rocksdb import RocksEngine, newest_wal
from dsdb.storage.errors import DiskFullError

NOTE = "synced"
HURTS = "hurts"
_NOTE_BYTES = 64


class Hurts(msgspec.Struct):
    """What is wrong with a node's surroundings."""

    wall_offset_ms: int = 0
    is_disk_full: bool = False


hurts = Hurts()
"""Of this process."""


class HurtClock(SystemClock):
    """The machine's clocks, the time of day off by so much."""

    def wall_ms(self) -> int:
        return super().wall_ms() + hurts.wall_offset_ms


class NotingEngine(RocksEngine):
    """RocksDB, and a note beside its directory after each sync."""

    directory: Path
    note: int

    @classmethod
    def open(cls, directory: Path, *, create: bool, **sizes: int) -> "NotingEngine":
        engine = super().open(directory, create=create, **sizes)
        assert isinstance(engine, cls)
        engine.directory = directory
        engine.note = os.open(directory.parent / NOTE, os.O_WRONLY | os.O_CREAT)
        signal.signal(signal.SIGUSR1, lambda *_: engine.look())
        engine.look()
        return engine

    def look(self) -> None:
        """Read what is wrong now."""
        global hurts
        path = self.directory.parent / HURTS
        hurts = msgspec.json.decode(path.read_bytes(), type=Hurts) if path.exists() else Hurts()

    def write(self, batch: WriteBatch) -> None:
        if hurts.is_disk_full:
            raise DiskFullError("no space left on device")
        super().write(batch)

    def sync(self) -> None:
        # The size before the sync: writes that come while it runs are not promised by it.
        wal = newest_wal(self.directory)
        size = wal.stat().st_size
        super().sync()
        # In one piece of a page, so that a kill leaves the old note or the new one.
        os.pwrite(self.note, f"{wal.name} {size}".ljust(_NOTE_BYTES).encode(), 0)


def hurt(store: Path, wrong: Hurts) -> None:
    """Say what is wrong with the node of a store; it looks at SIGUSR1, and at its start."""
    written = store / f"{HURTS}.new"
    written.write_bytes(msgspec.json.encode(wrong))
    written.replace(store / HURTS)


def lose_unsynced(store: Path, chance: random.Random) -> int:
    """Cut the log of a killed node's store to a random size that its syncs allow; give the bytes lost."""
    wal = newest_wal(store / "db")
    name, size = (store / NOTE).read_text().split()
    safe = int(size) if name == wal.name else 0
    now = wal.stat().st_size
    assert safe <= now, f"{wal}: {safe} bytes were synced, and {now} are there"
    kept = safe if chance.random() < 0.5 else chance.randint(safe, now)
    os.truncate(wal, kept)
    return now - kept


if __name__ == "__main__":
    dsdb.node.opening.RocksEngine = NotingEngine  # type: ignore[misc]
    dsdb.node.node.SystemClock = HurtClock  # type: ignore[misc]
    main(prog_name="dsdb")
