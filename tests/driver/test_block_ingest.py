"""Many rows at once through the driver: enough of them to go as columnar blocks, and what their transaction may do besides."""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest

import dsdb
from dsdb.driver.cursor import Cursor
from dsdb.sql.execute import ingest
from dsdb.sql.execute.ingest import BLOCK_ROWS_MIN, GATHER_ROWS

ROWS = 2 * BLOCK_ROWS_MIN


@pytest.fixture(scope="module")
def cursor() -> Iterator[Cursor]:
    with dsdb.connect(autocommit=True) as connection:
        yield connection.cursor()


def numbers(begin: int, end: int, step: int = 1) -> pa.Table:
    ids = np.arange(begin, end, step)
    return pa.table({"id": ids, "rest": ids % 7, "word": [f"word {number % 50}" for number in ids]})


def counted(cursor: Cursor, table: str) -> tuple[int, int]:
    [(count, distinct)] = cursor.execute(f'SELECT count(*), count(DISTINCT id) FROM "{table}"').fetchall()
    return count, distinct


def stored(cursor: Cursor) -> int:
    [(size,)] = cursor.execute("SELECT sum(bytes) FROM system.ranges").fetchall()
    return int(size)


def test_rows_in_are_rows_out_whatever_their_order(cursor: Cursor) -> None:
    rows = numbers(0, ROWS)
    shuffled = rows.take(pa.array(np.random.default_rng(1).permutation(ROWS)))
    assert cursor.adbc_ingest("shuffled", shuffled, "create", primary_key=["id"]) == ROWS
    assert cursor.execute("SELECT * FROM shuffled ORDER BY id").fetch_arrow_table().to_pylist() == rows.to_pylist()
    assert cursor.execute("SELECT word FROM shuffled WHERE id = 77").fetchall() == [("word 27",)]


def test_rows_in_no_order_wait_for_each_other_and_are_laid_in_blocks(cursor: Cursor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "GATHER_ROWS", 4 * BLOCK_ROWS_MIN)
    monkeypatch.setattr(ingest, "SPAN_BYTES", 512 << 10)
    count = 12 * BLOCK_ROWS_MIN
    rows = numbers(0, count)
    shuffled = rows.take(pa.array(np.random.default_rng(1).permutation(count)))
    sizes = [stored(cursor)]
    cursor.adbc_ingest("ordered", rows, "create", primary_key=["id"])
    sizes.append(stored(cursor))
    assert cursor.adbc_ingest("unordered", shuffled, "create", primary_key=["id"]) == count
    sizes.append(stored(cursor))
    assert cursor.execute("SELECT * FROM unordered ORDER BY id").fetch_arrow_table().to_pydict() == rows.to_pydict()
    assert int(cursor.execute("SELECT sum(blocks) FROM system.ranges").fetchall()[0][0]) >= 4
    # One by one they would be several times as large.
    assert sizes[2] - sizes[1] < 1.2 * (sizes[1] - sizes[0])
    again = rows.slice(count - 7, 1)
    with pytest.raises(dsdb.IntegrityError, match=rf"Key \(id\)=\({count - 7}\) already exists"):
        cursor.adbc_ingest("unordered2", pa.concat_tables([shuffled, again]), "create", primary_key=["id"])
    # Among others they go one by one, and a key that is there is found.
    more = numbers(0, 2 * count, 2).take(pa.array(np.random.default_rng(2).permutation(count)))
    cursor.adbc_ingest("gaps", numbers(1, 2 * count, 2), "create", primary_key=["id"])
    assert cursor.adbc_ingest("gaps", more, "append") == count
    assert counted(cursor, "gaps") == (2 * count, 2 * count)
    with pytest.raises(dsdb.IntegrityError, match="already exists"):
        cursor.adbc_ingest("gaps", more, "append")
    assert counted(cursor, "gaps") == (2 * count, 2 * count)


def test_a_key_twice_is_refused_with_all_of_its_ingest(cursor: Cursor) -> None:
    cursor.adbc_ingest("twice", numbers(0, ROWS), "create", primary_key=["id"])
    again = numbers(ROWS + 5, ROWS + 6)
    # In one batch; behind a block that is laid; in a table that has it.
    for more in (numbers(ROWS, 2 * ROWS), numbers(ROWS, ROWS + GATHER_ROWS)):
        with pytest.raises(dsdb.IntegrityError, match=rf"Key \(id\)=\({ROWS + 5}\) already exists"):
            cursor.adbc_ingest("twice", pa.concat_tables([more, again]), "append")
    with pytest.raises(dsdb.IntegrityError, match=rf"Key \(id\)=\({ROWS - 1}\) already exists"):
        cursor.adbc_ingest("twice", numbers(ROWS - 1, 2 * ROWS), "append")
    assert counted(cursor, "twice") == (ROWS, ROWS)


def test_rows_between_those_of_earlier_blocks_go_one_by_one(cursor: Cursor) -> None:
    rows = pa.concat_tables([numbers(0, 2 * ROWS, 2), numbers(1, 2 * ROWS, 2)])
    cursor.adbc_ingest("odd", numbers(0, 2 * ROWS, 2), "create", primary_key=["id"])
    assert cursor.adbc_ingest("odd", numbers(1, 2 * ROWS, 2), "append") == ROWS
    assert counted(cursor, "odd") == (2 * ROWS, 2 * ROWS)
    cursor.adbc_ingest("even", rows, "create", primary_key=["id"])
    assert counted(cursor, "even") == (2 * ROWS, 2 * ROWS)


def test_a_transaction_reads_changes_and_rolls_back_what_it_has_laid(cursor: Cursor) -> None:
    cursor.execute("CREATE TABLE own (id BIGINT PRIMARY KEY, rest BIGINT, word TEXT)")
    cursor.execute("BEGIN")
    cursor.adbc_ingest("own", numbers(0, ROWS), "append")
    assert counted(cursor, "own") == (ROWS, ROWS)
    cursor.execute("UPDATE own SET rest = 100 WHERE id = 5")
    cursor.execute("SAVEPOINT s")
    cursor.adbc_ingest("own", numbers(ROWS, 2 * ROWS), "append")
    cursor.execute("DELETE FROM own WHERE id = 6")
    cursor.execute("ROLLBACK TO s")
    cursor.execute("COMMIT")
    assert counted(cursor, "own") == (ROWS, ROWS)
    assert cursor.execute("SELECT id, rest FROM own WHERE id IN (5, 6)").fetchall() == [(5, 100), (6, 6)]
    cursor.execute("BEGIN")
    cursor.adbc_ingest("own", numbers(ROWS, 2 * ROWS), "append")
    cursor.execute("ROLLBACK")
    assert counted(cursor, "own") == (ROWS, ROWS)
    assert cursor.adbc_ingest("own", numbers(ROWS, 2 * ROWS), "append") == ROWS
    assert counted(cursor, "own") == (2 * ROWS, 2 * ROWS)
