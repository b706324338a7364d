"""Reads of a transaction over what it has buffered: as if it were stored, and as it was when the read began."""

import random
from itertools import pairwise

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

import dsdb
from dsdb.sql.errors import ProgramLimitError
from dsdb.storage.keys import Span, key_after
from dsdb.txn.buffer import BUFFER_BYTES_MAX, WriteBuffer
from dsdb.txn.readspans import merge, outside
from tests.txn.fake_ranges import FakeCluster, Gateway, Link

KEYS = [b"\x10" + bytes([letter]) for letter in b"abcdefghij"]
key_numbers = st.integers(0, len(KEYS) - 1)
writes = st.lists(st.tuples(key_numbers, st.sampled_from(["put", "insert", "delete", "mark", "back"])), max_size=30)
bounds = st.tuples(key_numbers, key_numbers)


@given(stored=st.sets(key_numbers), steps=writes, bounds=bounds, limit=st.none() | st.integers(1, 6), reverse=st.booleans())
def test_a_scan_over_the_buffer_is_one_over_what_would_be_stored(
    stored: set[int], steps: list[tuple[int, str]], bounds: tuple[int, int], limit: int | None, reverse: bool
) -> None:
    async def main() -> None:
        cluster = FakeCluster(random.Random(0), [KEYS[3], KEYS[6]])
        gateway = Gateway(cluster, Link(cluster, random.Random(0), is_calm=True), 1)
        setup = gateway.transactions.begin()
        for number in stored:
            setup.put(KEYS[number], b"stored")
        await setup.commit()
        model: dict[bytes, bytes] = {KEYS[number]: b"stored" for number in stored}
        txn = gateway.transactions.begin()
        marks = [(txn.savepoint(), dict(model))]
        for at, (number, step) in enumerate(steps):
            key, value = KEYS[number], b"%d" % at
            match step:
                case "put":
                    txn.put(key, value)
                    model[key] = value
                case "insert":
                    txn.insert(key, value)
                    model[key] = value
                case "delete":
                    txn.delete(key)
                    model.pop(key, None)
                case "mark":
                    marks.append((txn.savepoint(), dict(model)))
                case _:
                    mark, before = marks[-1]
                    txn.rollback_to(mark)
                    model = dict(before)
        span = Span(KEYS[min(bounds)], key_after(KEYS[max(bounds)]))
        expected = sorted(((key, value) for key, value in model.items() if span.contains(key)), reverse=reverse)[:limit]
        assert await txn.scan(span, limit=limit, reverse=reverse) == expected
        assert await txn.get(KEYS) == [model.get(key) for key in KEYS]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@given(spans=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=8), whole=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_spans_are_merged_and_cut_without_loss(spans: list[tuple[int, int]], whole: tuple[int, int]) -> None:
    def covered(some: list[Span]) -> set[int]:
        return {number for span in some for number in range(10) if span.contains(b"%d" % number)}

    given_spans = [Span(b"%d" % low, b"%d" % high) for low, high in spans if low < high]
    merged = merge(given_spans)
    assert covered(merged) == covered(given_spans)
    assert all(left.end < right.start for left, right in pairwise(merged))
    home = Span(b"%d" % min(whole), b"%d" % max(whole))
    parts = outside(merged, home)
    assert covered(parts) == covered(merged) - covered([home])
    assert not any(part.is_empty for part in parts)


def test_what_was_replaced_counts_until_it_is_rolled_back() -> None:
    buffer = WriteBuffer()
    value = bytes(BUFFER_BYTES_MAX // 4)
    mark = buffer.savepoint()
    for _ in range(3):
        buffer.put(b"k", value)
    with pytest.raises(ProgramLimitError):
        buffer.put(b"k", value)
    buffer.rollback_to(mark)
    buffer.put(b"k", value)
    assert [write.value for write in buffer.writes()] == [value]


def test_leaf_stages_see_what_is_buffered_in_all_ranges() -> None:
    with dsdb.connect(autocommit=True) as connection:
        connection.execute("CREATE TABLE t (id INT PRIMARY KEY, v INT NOT NULL)")
        connection.execute("INSERT INTO t SELECT n, n FROM generate_series(1, 100) AS numbers(n)")
        connection.execute("ALTER TABLE t SPLIT AT VALUES (30), (60)")
        connection.execute("BEGIN")
        connection.execute("INSERT INTO t VALUES (0, 1000), (45, 1), (101, 1000) ON CONFLICT (id) DO UPDATE SET v = 2000")
        connection.execute("DELETE FROM t WHERE id > 90 AND id < 101 OR id = 1")
        connection.execute("UPDATE t SET v = v + 1 WHERE id = 60")
        want = {n: n for n in range(2, 91)} | {0: 1000, 45: 2000, 101: 1000, 60: 61}
        everything = "SELECT count(*), sum(v), min(id), max(v) FROM t"
        expected = (len(want), sum(want.values()), 0, 2000)
        assert connection.execute(everything).fetchall() == [expected]
        assert connection.execute("SELECT id, v FROM t ORDER BY id").fetchall() == sorted(want.items())
        assert connection.execute("SELECT id FROM t ORDER BY id LIMIT 2").fetchall() == [(0,), (2,)]
        assert connection.execute("SELECT id FROM t ORDER BY id DESC LIMIT 2").fetchall() == [(101,), (90,)]
        assert len(connection.execute("SELECT id FROM t WHERE v >= 0 LIMIT 91").fetchall()) == 91
        connection.execute("UPDATE t SET v = v + 1")  # reads what it writes, each row once
        assert connection.execute(everything).fetchall()[0][1] == sum(want.values()) + len(want)
        connection.execute("COMMIT")
        assert connection.execute("SELECT id, v FROM t ORDER BY id").fetchall() == [(n, v + 1) for n, v in sorted(want.items())]


@pytest.mark.parametrize("has_ranges", [False, True])
def test_what_a_failed_statement_wrote_is_gone_when_its_savepoint_is_gone_back_to(has_ranges: bool) -> None:
    failures = [
        "INSERT INTO t SELECT n, 1000 / (n - 140) FROM generate_series(101, 140) AS numbers(n)",
        "INSERT INTO t VALUES (101, 1000), (45, 1), (1, 1)",
        "UPDATE t SET v = v + 1000 / (id - 99)",
        "INSERT INTO t VALUES (3, 1), (101, 1), (99, 1) ON CONFLICT (id) DO UPDATE SET v = 1000 / (99 - t.id)",
        "DELETE FROM t WHERE id > 50 RETURNING 1 / (id - 99)",
    ]
    with dsdb.connect(autocommit=True) as connection:

        def rows(sql: str) -> list[tuple[object, ...]]:
            return connection.execute(sql).fetchall()

        connection.execute("CREATE TABLE t (id INT PRIMARY KEY, v INT NOT NULL)")
        connection.execute("INSERT INTO t SELECT n, n FROM generate_series(1, 100) AS numbers(n)")
        if has_ranges:
            connection.execute("ALTER TABLE t SPLIT AT VALUES (30), (60)")
        connection.execute("BEGIN")
        connection.execute("UPDATE t SET v = -45 WHERE id = 45")
        connection.execute("DELETE FROM t WHERE id = 46")
        connection.execute("INSERT INTO t VALUES (0, 0)")
        want = {n: n for n in range(101)} | {45: -45}
        del want[46]
        for statement in failures:
            connection.execute("SAVEPOINT s")
            connection.execute("UPDATE t SET v = 7 WHERE id IN (0, 7, 45)")
            with pytest.raises(dsdb.Error):
                rows(statement)
            connection.execute("ROLLBACK TO s")
            assert rows("SELECT count(*), sum(v), max(id) FROM t") == [(len(want), sum(want.values()), 100)]
            assert rows("SELECT id, v FROM t ORDER BY id") == sorted(want.items())
            for key in (1, 3, 7, 45, 46, 99, 101, 139):
                assert rows(f"SELECT v FROM t WHERE id = {key}") == ([(want[key],)] if key in want else [])
        assert rows("SELECT v FROM t WHERE id = 45 FOR UPDATE") == [(-45,)]
        connection.execute("COMMIT")
        assert rows("SELECT id, v FROM t ORDER BY id") == sorted(want.items())
