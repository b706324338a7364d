"""EXPLAIN ANALYZE, pruned blocks and leaves that wait for keys, over an embedded node with columnar blocks."""

import json
import re
from collections.abc import Iterator

import pyarrow as pa
import pytest

import dsdb
from dsdb.driver.connection import Connection

ROWS = 60_000


@pytest.fixture(scope="module")
def connection() -> Iterator[Connection]:
    """Table t of many rows in blocks, v ascends with the key; and the small one s."""
    with dsdb.connect(autocommit=True) as opened:
        opened.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, v BIGINT, k BIGINT, name TEXT)")
        opened.execute("CREATE TABLE s (k BIGINT PRIMARY KEY, kind TEXT)")
        numbers = list(range(ROWS))
        columns = {"id": numbers, "v": numbers, "k": [number % 100 for number in numbers], "name": [f"n{number % 7}" for number in numbers]}
        with opened.cursor() as cursor:
            cursor.adbc_ingest("t", pa.table(columns), mode="append")
        opened.execute("INSERT INTO s SELECT DISTINCT k, 'kind ' || (k % 10)::text FROM t")
        yield opened


def text(connection: Connection, sql: str) -> str:
    return "\n".join(line for (line,) in connection.execute(sql).fetchall())


def test_what_was_done_is_told(connection: Connection) -> None:
    told = text(connection, "EXPLAIN ANALYZE SELECT name, count(*), avg(v) FROM t GROUP BY name")
    assert re.search(r"actual: 7 rows in [0-9.]+ ms, [0-9.]+ ms of them in the engine; [0-9]+ rows, [0-9]+ bytes gathered", told), told
    assert re.search(rf"node 1: read {ROWS} rows, gave [0-9]+, in .* blocks: [1-9][0-9]* read, 0 pruned; moved 0 bytes", told), told
    told = text(connection, "EXPLAIN ANALYZE SELECT * FROM t WHERE id = 7")
    assert re.search("actual: 1 row in [0-9.]+ ms", told), told
    told = text(connection, "EXPLAIN (ANALYZE, FORMAT JSON) SELECT count(*) FROM t WHERE v >= 0")
    gateway, leaf = json.loads(told)
    assert gateway["stage"] == "gateway"
    assert leaf["actual"][0]["rows_read"] == ROWS
    assert leaf["table"] == "t"
    told = text(connection, "EXPLAIN (FORMAT JSON) SELECT count(*) FROM t")
    assert "actual" not in told


@pytest.mark.parametrize("statement", ["DELETE FROM t", "UPDATE t SET v = 1", "SHOW TABLES"])
def test_only_queries_are_run(connection: Connection, statement: str) -> None:
    with pytest.raises(dsdb.NotSupportedError):
        connection.execute(f"EXPLAIN ANALYZE {statement}")
    assert connection.execute("SELECT count(*) FROM t").fetchall() == [(ROWS,)]


def test_blocks_outside_of_a_condition_are_not_read(connection: Connection) -> None:
    told = text(connection, "EXPLAIN ANALYZE SELECT count(*) FROM t WHERE v < 10 AND name = 'n1'")
    assert re.search("blocks: 1 read, [1-9][0-9]* pruned", told), told
    # A row of a block that is left out comes in by an update; one of the block that is read goes out.
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(f"UPDATE t SET v = 5 WHERE id = {ROWS - 1}")
        cursor.execute("DELETE FROM t WHERE id = 3")
        cursor.execute("UPDATE t SET v = 1000000 WHERE id = 4")
        cursor.execute("SELECT id FROM t WHERE v < 10 ORDER BY id")
        assert cursor.fetchall() == [(0,), (1,), (2,), (5,), (6,), (7,), (8,), (9,), (ROWS - 1,)]
        cursor.execute("SELECT id FROM t WHERE v > 999999")
        assert cursor.fetchall() == [(4,)]
        cursor.execute("ROLLBACK")
    assert connection.execute("SELECT count(*) FROM t WHERE v < 10").fetchall() == [(10,)]
    assert connection.execute("SELECT count(*) FROM t WHERE v BETWEEN 100 AND 50").fetchall() == [(0,)]
    assert connection.execute("SELECT count(*) FROM t WHERE v IN (5, 59999)").fetchall() == [(2,)]


def test_a_second_query_waits_for_the_keys_that_it_joins_with(connection: Connection) -> None:
    sql = "SELECT sum(v), count(*) FROM t, s WHERE t.k = s.k AND kind = 'kind 3'"
    expected = [number for number in range(ROWS) if number % 10 == 3]
    connection.execute("SELECT count(*), sum(v), max(kind) FROM t, s WHERE t.k = s.k").fetchall()
    told = text(connection, f"EXPLAIN ANALYZE {sql}")
    assert f"gave {len(expected)}, in" in told, told
    assert [(int(total), count) for total, count in connection.execute(sql).fetchall()] == [(sum(expected), len(expected))]
    inner = "SELECT count(*) FROM s WHERE kind = 'kind 3' AND NOT EXISTS (SELECT * FROM t WHERE t.k = s.k AND v > 59000)"
    assert connection.execute(inner).fetchall() == [(0,)]
