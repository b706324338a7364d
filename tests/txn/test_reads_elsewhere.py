"""A transaction that writes in one range may have read in others: its commit holds those reads up to its timestamp (rules 6 to 8)."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import dsdb

ROUNDS = 40


def test_rows_read_in_other_ranges_are_written() -> None:
    with dsdb.connect(autocommit=True) as connection:
        connection.execute("CREATE TABLE source (id INT PRIMARY KEY, v INT NOT NULL)")
        connection.execute("CREATE TABLE target (id INT PRIMARY KEY, v INT NOT NULL)")
        connection.execute("INSERT INTO source VALUES (1, 10), (2, 20), (3, 30)")
        connection.execute("ALTER TABLE source SPLIT AT VALUES (2)")
        connection.execute("ALTER TABLE target SPLIT AT VALUES (0)")
        connection.execute("INSERT INTO target SELECT id, v FROM source")
        assert connection.execute("SELECT id, v FROM target ORDER BY id").fetchall() == [(1, 10), (2, 20), (3, 30)]


def test_two_that_each_leave_if_the_other_stays_never_both_leave(tmp_path: Path) -> None:
    """Write skew across two ranges: under mere snapshot reads both would see the other on duty."""
    start = Barrier(2)

    def leave(own: str, other: str) -> list[bool]:
        left = []
        with dsdb.connect(tmp_path, autocommit=True) as connection:
            for number in range(ROUNDS):
                text = f"UPDATE {own} SET duty = false WHERE id = {number} AND (SELECT duty FROM {other} WHERE id = {number})"
                start.wait(20)
                left.append(connection.run(lambda it, text=text: it.execute(text).rowcount) == 1)  # type: ignore[misc]
        return left

    with dsdb.connect(tmp_path, autocommit=True) as connection, ThreadPoolExecutor(2) as threads:
        for name in ("ada", "grace"):
            connection.execute(f"CREATE TABLE {name} (id INT PRIMARY KEY, duty BOOL NOT NULL)")
            connection.execute(f"INSERT INTO {name} SELECT n, true FROM generate_series(0, {ROUNDS - 1}) AS rounds(n)")
        connection.execute("ALTER TABLE grace SPLIT AT VALUES (0)")
        ada, grace = threads.submit(leave, "ada", "grace"), threads.submit(leave, "grace", "ada")
        assert [one + other for one, other in zip(ada.result(60), grace.result(60))] == [1] * ROUNDS
