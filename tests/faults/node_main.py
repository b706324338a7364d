"""A node whose store notes after each sync how far its write-ahead log is safe; its arguments are those of `dsdb`.

Whoever kills it may then take away what a power loss may take: any suffix of the newest log behind that size (`lose_unsynced`).
The engine and all else are the production code: the subclass only writes the note.
"""

import os
import random
from pathlib import Path

import dsdb.node.opening
from dsdb.cli.main import main
from dsdb.storage.engine.rocksdb import RocksEngine, newest_wal

NOTE = "synced"
_NOTE_BYTES = 64


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
        return engine

    def sync(self) -> None:
        # The size before the sync: writes that come while it runs are not promised by it.
        wal = newest_wal(self.directory)
        size = wal.stat().st_size
        super().sync()
        # In one piece of a page, so that a kill leaves the old note or the new one.
        os.pwrite(self.note, f"{wal.name} {size}".ljust(_NOTE_BYTES).encode(), 0)


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
    main(prog_name="dsdb")
