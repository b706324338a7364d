"""What RocksDB and rocksdict do wrong by default, and the engine must not: silent corruption, hanging writes, locks kept."""

import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import rocksdict

from dsdb.storage.engine import rocksdb
from dsdb.storage.engine.port import Family
from dsdb.storage.engine.rocksdb import RocksEngine, newest_wal
from dsdb.storage.errors import CorruptionError, DiskFullError, StorageError, StoreFormatError, StoreLockedError, WriteStallError

EVERYTHING = (b"", b"\xff" * 32)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "store"


def key_of(number: int) -> bytes:
    return b"\x10 some table prefix " + number.to_bytes(4, "big")


def write(engine: RocksEngine, numbers: range, value: bytes = b"value", family: Family = Family.DELTA) -> None:
    batch = engine.new_batch()
    for number in numbers:
        batch.put(family, key_of(number), value)
    engine.write(batch)


def count(engine: RocksEngine, *, reverse: bool = False) -> int:
    return sum(len(keys) for keys, _ in engine.scan(Family.DELTA, *EVERYTHING, reverse=reverse))


def flip_byte(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0xFF
    path.write_bytes(content)


# ---- Opening ----


def test_open_says_what_is_wrong_with_the_directory(directory: Path) -> None:
    with pytest.raises(StoreFormatError, match="holds no store"):
        RocksEngine.open(directory, create=False)
    assert not directory.exists()
    RocksEngine.open(directory, create=True).close()
    with pytest.raises(StoreFormatError, match="already holds a store"):
        RocksEngine.open(directory, create=True)


def test_open_refuses_another_set_of_families(directory: Path) -> None:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    rocksdict.Rdict(str(directory), options, {"meta": rocksdict.Options(raw_mode=True)}).close()
    with pytest.raises(StoreFormatError, match="meta"):
        RocksEngine.open(directory, create=False)


def test_open_twice_is_refused(directory: Path) -> None:
    engine = RocksEngine.open(directory, create=True)
    with pytest.raises(StoreLockedError):
        RocksEngine.open(directory, create=False)
    engine.close()


def test_close_frees_the_directory_whatever_is_still_held(directory: Path) -> None:
    engine = RocksEngine.open(directory, create=True)
    write(engine, range(100))
    scan = engine.scan(Family.DELTA, *EVERYTHING, chunk_rows=10)
    next(scan)
    snapshot = engine.snapshot()
    snapshot_scan = snapshot.scan(Family.DELTA, *EVERYTHING, chunk_rows=10)
    next(snapshot_scan)
    assert engine.first(Family.DELTA, key_of(1), key_of(2)) is not None
    engine.close()
    engine.close()
    reopened = RocksEngine.open(directory, create=False)
    assert count(reopened) == 100
    for use in (
        lambda: engine.get(Family.DELTA, b"k"),
        lambda: engine.multi_get(Family.DELTA, [b"k"]),
        lambda: engine.first(Family.DELTA, b"a", b"b"),
        lambda: engine.scan(Family.DELTA, b"a", b"b"),
        lambda: snapshot.get(Family.DELTA, b"k"),
        lambda: engine.write(engine.new_batch()),
        engine.sync,
        engine.snapshot,
        engine.statistics,
    ):
        with pytest.raises(StorageError):
            use()
    assert list(scan) == list(snapshot_scan) == []
    reopened.close()


# ---- Corruption ----


@pytest.fixture
def corrupt(directory: Path) -> Iterator[RocksEngine]:
    """An engine whose one table file has a broken block in its middle."""
    engine = RocksEngine.open(directory, create=True)
    chance = random.Random(1)
    batch = engine.new_batch()
    for number in range(20_000):
        batch.put(Family.DELTA, key_of(number), chance.randbytes(50))
    engine.write(batch)
    engine.flush()
    engine.close()
    table = max(directory.glob("*.sst"), key=lambda path: path.stat().st_size)
    flip_byte(table, table.stat().st_size // 2)
    engine = RocksEngine.open(directory, create=False)
    yield engine
    engine.close()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("of_snapshot", [False, True])
def test_a_scan_over_a_corrupt_block_raises(corrupt: RocksEngine, reverse: bool, of_snapshot: bool) -> None:
    rows = 0
    reader = corrupt.snapshot() if of_snapshot else corrupt
    scan = reader.scan(Family.DELTA, *EVERYTHING, reverse=reverse)
    with pytest.raises(CorruptionError):  # noqa: PT012  # the rows before the error count
        for keys, _ in scan:
            rows += len(keys)
    assert 0 < rows < 20_000


def test_every_kind_of_read_of_a_corrupt_block_raises(corrupt: RocksEngine) -> None:
    """Reads elsewhere go on."""
    wrong = []
    for number in range(20_000):
        key = key_of(number)
        if corrupt.first(Family.DELTA, key, key + b"\x00") is None:
            wrong.append(number)
        if number > 9_000:
            break
    assert wrong == []
    broken = next(number for number in range(9_000, 11_000) if is_corrupt(corrupt, number))
    key, after = key_of(broken), key_of(broken + 1)
    for read in (
        lambda: corrupt.get(Family.DELTA, key),
        lambda: corrupt.multi_get(Family.DELTA, [key_of(1), key]),
        lambda: corrupt.first(Family.DELTA, key[:5], after) and corrupt.first(Family.DELTA, key, after),
        lambda: corrupt.last(Family.DELTA, key, after),
        lambda: list(corrupt.scan(Family.DELTA, key, after)),
        lambda: list(corrupt.scan(Family.DELTA, key, after, reverse=True)),
        lambda: corrupt.snapshot().get(Family.DELTA, key),
        lambda: corrupt.snapshot().multi_get(Family.DELTA, [key]),
    ):
        with pytest.raises(CorruptionError):
            read()
    assert corrupt.get(Family.DELTA, key_of(1)) is not None


def is_corrupt(engine: RocksEngine, number: int) -> bool:
    try:
        return engine.get(Family.DELTA, key_of(number)) is None
    except CorruptionError:
        return True


# ---- The log ----


def crashed_copy(directory: Path, copy: Path, log_bytes: int) -> Path:
    """Give the directory as a power loss leaves it that took the log's tail from `log_bytes` on."""
    shutil.copytree(directory, copy)
    os.truncate(newest_wal(copy), log_bytes)
    return copy


def test_a_torn_log_loses_only_what_was_not_synced(directory: Path, tmp_path: Path) -> None:
    engine = RocksEngine.open(directory, create=True)
    for first in range(0, 100, 10):
        write(engine, range(first, first + 10))
        write(engine, range(first, first + 10), family=Family.RAFT)
    engine.sync()
    synced_bytes = newest_wal(directory).stat().st_size
    for first in range(100, 200, 10):
        write(engine, range(first, first + 10))
    written_bytes = newest_wal(directory).stat().st_size
    counts = []
    for log_bytes in [*range(synced_bytes, written_bytes, (written_bytes - synced_bytes) // 12), written_bytes]:
        crashed = crashed_copy(directory, tmp_path / f"at-{log_bytes}", log_bytes)
        survivor = RocksEngine.open(crashed, create=False)
        keys = [key for chunk, _ in survivor.scan(Family.DELTA, *EVERYTHING) for key in chunk]
        # A prefix of whole batches, with all of the synced ones; and both families at the same point.
        assert keys == [key_of(number) for number in range(len(keys))]
        assert len(keys) % 10 == 0
        assert sum(len(chunk) for chunk, _ in survivor.scan(Family.RAFT, *EVERYTHING)) == 100
        counts.append(len(keys))
        survivor.close()
    engine.close()
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (100, 200)
    assert len(set(counts)) > 3


def test_a_flipped_byte_inside_the_log_is_corruption(directory: Path, tmp_path: Path) -> None:
    engine = RocksEngine.open(directory, create=True)
    for first in range(0, 1000, 10):
        write(engine, range(first, first + 10))
    engine.sync()
    log_bytes = newest_wal(directory).stat().st_size
    crashed = crashed_copy(directory, tmp_path / "crashed", log_bytes)
    engine.close()
    flip_byte(newest_wal(crashed), log_bytes // 2)
    with pytest.raises(CorruptionError):
        RocksEngine.open(crashed, create=False)


# ---- Writes that cannot be taken ----


def test_a_stall_is_an_error_and_the_batch_can_be_written_again(directory: Path) -> None:
    engine = RocksEngine.open(directory, create=True, write_buffer_bytes=64 << 10)
    chance = random.Random(2)
    written = 0
    stalled = None
    while stalled is None:
        assert written < 5_000, "never stalled"
        batch = engine.new_batch()
        for number in range(30):
            batch.put(Family.DELTA, key_of(written * 30 + number), chance.randbytes(3000))
        try:
            engine.write(batch)
        except WriteStallError:
            stalled = batch
        else:
            written += 1
    assert count(engine) == written * 30
    assert engine.statistics()["write_stalls"] == 1
    for _ in range(1000):
        try:
            engine.write(stalled)
            break
        except WriteStallError:
            engine.flush()
    assert count(engine) == written * 30 + 30
    engine.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_refuses_writes_and_goes_on_reading(tmp_path: Path) -> None:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(tmp_path)], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small disk: {mounted.stderr.strip()}")
    try:
        engine = RocksEngine.open(tmp_path / "store", create=True)
        chance = random.Random(3)
        written = 0
        with pytest.raises(DiskFullError):  # noqa: PT012  # the writes before the error count
            for first in range(0, 10_000, 100):
                write(engine, range(first, first + 100), chance.randbytes(1000))
                written = first + 100
        assert 0 < written < 10_000
        assert count(engine) == written
        with pytest.raises(DiskFullError):
            write(engine, range(1))
        with pytest.raises(DiskFullError):
            engine.close()
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)


# ---- Small things ----


def test_a_batch_is_written_once(directory: Path) -> None:
    engine = RocksEngine.open(directory, create=True)
    batch = engine.new_batch()
    batch.put(Family.META, b"key", b"value")
    assert (len(batch), batch.size_bytes) == (1, 8)
    engine.write(batch)
    with pytest.raises(AssertionError, match="once"):
        engine.write(batch)
    engine.close()


def test_a_fault_of_the_caller_is_not_taken_for_one_of_the_disk(directory: Path) -> None:
    engine = RocksEngine.open(directory, create=True)
    with pytest.raises(KeyError):
        engine.get(Family.META, "text")  # type: ignore[arg-type]
    engine.close()


def test_long_scans_may_overlap_with_writes_and_flushes(directory: Path) -> None:
    engine = RocksEngine.open(directory, create=True)
    write(engine, range(5_000), b"before")
    scan, reverse = engine.scan(Family.DELTA, *EVERYTHING, chunk_rows=700), engine.scan(Family.DELTA, *EVERYTHING, reverse=True)
    rows = list(next(scan)[1])
    write(engine, range(10_000), b"after")
    engine.flush()
    for _, values in scan:
        rows += values
    assert rows == [b"before"] * 5_000
    assert [value for _, values in reverse for value in values] == [b"after"] * 10_000
    engine.close()


def test_a_read_does_not_walk_over_what_was_deleted_behind_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = RocksEngine.open(directory, create=True)
    keys = [b"\x10" + bytes(7) + number.to_bytes(8, "big") + b" version" for number in range(500)]
    batch = engine.new_batch()
    for key in [*keys, b"\x20"]:
        batch.put(Family.DELTA, key, b"value")
    for key in keys:
        batch.delete(Family.DELTA, key)
    engine.write(batch)
    options = rocksdb._same_prefix()
    options.set_max_skippable_internal_keys(100)
    monkeypatch.setattr(rocksdb, "_SAME_PREFIX", options)
    for flushed in (False, True):
        if flushed:
            engine.flush()
        for key in keys[::100]:
            assert engine.first(Family.DELTA, key, key + b"\xff") is None
    # Nor does a scan, once the span is compacted.
    engine.compact(Family.DELTA, keys[0], keys[-1] + b"\xff")
    assert engine._families[Family.DELTA].property_int_value("rocksdb.estimate-num-keys") == 1
    assert engine._families[Family.DELTA].property_int_value("rocksdb.num-entries-active-mem-table") == 0
    assert count(engine) == 1
    engine.close()


@pytest.mark.parametrize("reverse", [False, True])
def test_snapshots_of_several_states_are_each_their_own(directory: Path, reverse: bool) -> None:
    """Whether they are read before the next write, after it, or on both sides of it, by several scans at once."""
    engine = RocksEngine.open(directory, create=True)
    write(engine, range(100), b"first")
    first = engine.snapshot()
    begun = first.scan(Family.DELTA, *EVERYTHING, reverse=reverse, chunk_rows=30)
    next(begun)
    write(engine, range(200), b"second")
    second, same = engine.snapshot(), engine.snapshot()
    write(engine, range(300), b"third")
    assert sum(len(keys) for keys, _ in begun) == 70
    scans = [reader.scan(Family.DELTA, *EVERYTHING, reverse=reverse, chunk_rows=7) for reader in (first, second, same, engine)]
    rows: list[list[bytes]] = [[], [], [], []]
    while any(chunks := [next(scan, ([], [])) for scan in scans]) and any(keys for keys, _ in chunks):
        for index, (_, values) in enumerate(chunks):
            rows[index] += values
    assert rows == [[b"first"] * 100, [b"second"] * 200, [b"second"] * 200, [b"third"] * 300]
    assert [reader.get(Family.DELTA, key_of(150)) for reader in (first, second, engine)] == [None, b"second", b"third"]
    second.release()
    assert same.last(Family.DELTA, *EVERYTHING) == (key_of(199), b"second")
    assert first.first(Family.DELTA, key_of(99), key_of(200)) == (key_of(99), b"first")
    engine.close()


def test_statistics_count_what_is_there(directory: Path) -> None:
    engine = RocksEngine.open(directory, create=True)
    write(engine, range(1000))
    before = engine.statistics()
    engine.flush()
    after = engine.statistics()
    engine.close()
    assert before["estimated_keys"] == after["estimated_keys"] == 1000
    assert before["sst_bytes"] == 0 < after["sst_bytes"]
    assert after["level0_files"] == 1


def bytes_read() -> int:
    """Give what this process has read from files so far, cached by the system or not."""
    return int(Path("/proc/self/io").read_text().split()[1])


def test_a_read_among_very_many_keys_does_not_fetch_the_filter_of_a_whole_file(directory: Path) -> None:
    def key(number: int) -> bytes:
        return b"\x10" + number.to_bytes(12, "big") + bytes(8)

    very_many = 500_000
    engine = RocksEngine.open(directory, create=True, cache_bytes=8 << 20)
    family = engine._families[Family.DELTA]
    # Two files that overlap become one of the last level: one that was of the first is pinned in the cache, also where it was moved.
    for first in range(2):
        batch = engine.new_batch()
        for number in range(first, very_many, 2):
            batch.put(Family.DELTA, key(number), b"value")
        engine.write(batch)
        family.flush()
    family.compact_range(None, None)
    engine.get(Family.DELTA, key(7))
    before = bytes_read()
    for _ in range(100):
        assert engine.get(Family.DELTA, key(7)) == b"value"
    # One filter of so many keys has 1.2 MB, which is more than a shard of the cache holds.
    assert bytes_read() - before < 1 << 20
    engine.close()
