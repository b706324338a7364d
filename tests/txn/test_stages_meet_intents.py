"""Aggregates over several ranges while statements change rows in all of them: each sees a statement whole, or not at all."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import dsdb

ROWS = 1_200
ROUNDS = 10


def test_sums_are_of_whole_statements(tmp_path: Path) -> None:
    done = Event()

    def add(number: int) -> None:
        with dsdb.connect(tmp_path, autocommit=True) as connection:
            for _ in range(ROUNDS):
                # More keys than a record may promise, and fewer.
                keys = "" if number else f"WHERE id % {ROWS // 4} = 0"
                connection.run(lambda it, keys=keys: it.execute(f"UPDATE t SET v = v + 4 {keys}"))  # type: ignore[misc]
        done.set()

    def look() -> list[int]:
        sums = []
        with dsdb.connect(tmp_path, autocommit=True) as connection:
            while not done.is_set():
                ((count, total),) = connection.execute("SELECT count(*), sum(v) FROM t").fetchall()
                assert count == ROWS
                # One kind of statement adds 16, the other one 4 to each row.
                assert total % 16 == 0, total
                sums.append(total)
        return sums

    with dsdb.connect(tmp_path, autocommit=True) as connection, ThreadPoolExecutor(3) as threads:
        connection.execute("CREATE TABLE t (id INT PRIMARY KEY, v INT NOT NULL)")
        connection.execute(f"INSERT INTO t SELECT n, 0 FROM generate_series(0, {ROWS - 1}) AS numbers(n)")
        connection.execute(f"ALTER TABLE t SPLIT AT VALUES ({ROWS // 4}), ({ROWS // 2}), ({3 * ROWS // 4})")
        writers = [threads.submit(add, 0), threads.submit(add, 1)]
        sums = threads.submit(look).result(60)
        for writer in writers:
            writer.result(60)
        ((total,),) = connection.execute("SELECT sum(v) FROM t").fetchall()
    assert sums == sorted(sums)
    assert total == ROUNDS * (16 + 4 * ROWS)
