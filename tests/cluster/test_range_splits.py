"""Ranges of a cluster of processes are split by size and by load, and spread, while clients go on and notice nothing."""

import random
import threading

import dsdb
from dsdb.cli.processes import ProcessCluster
from tests.cluster.cut_cluster import ask, wait_until

PATIENCE_S = 60.0


def count_of(cluster: ProcessCluster, table: str) -> int:
    return len(ask(cluster.url, f"SHOW RANGES FROM TABLE {table}"))


def test_a_table_that_grows_is_split_by_size(cluster: ProcessCluster) -> None:
    with dsdb.connect(cluster.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE grown (id INT PRIMARY KEY, v TEXT)")
        connection.execute("ALTER TABLE grown CONFIGURE RANGES (max_bytes = '128 KiB')")
        for first in range(0, 4000, 500):
            connection.execute("INSERT INTO grown VALUES " + ", ".join(f"({id}, '{'v' * 100}')" for id in range(first, first + 500)))
        wait_until(lambda: count_of(cluster, "grown") >= 4, timeout_s=PATIENCE_S)
        sizes = connection.execute("SELECT bytes FROM system.ranges WHERE table_name = 'grown'").fetchall()
        # The first range may have rows of other tables, too.
        assert 300_000 < sum(size for (size,) in sizes) < 700_000
        assert connection.execute("SELECT count(*), sum(id) FROM grown").fetchone() == (4000, 3999 * 2000)
        connection.execute("ALTER TABLE grown CONFIGURE RANGES (max_bytes = DEFAULT)")
        found = connection.execute("SELECT table_name FROM system.range_settings").fetchall()
        assert ("grown",) not in found


class Reader(threading.Thread):
    """Reads, and now and then writes, rows at random until it is told to stop."""

    def __init__(self, url: str, rows: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.rows = rows
        self.chance = random.Random(seed)
        self.is_stopped = threading.Event()
        self.written = 0
        self.error: dsdb.Error | None = None

    def run(self) -> None:
        try:
            with dsdb.connect(self.url, autocommit=True) as connection:
                while not self.is_stopped.is_set():
                    row = self.chance.randrange(self.rows)
                    if self.chance.random() < 0.1:
                        connection.execute("UPDATE hot SET n = n + 1 WHERE id = ?", (row,))
                        self.written += 1
                    else:
                        connection.execute("SELECT n FROM hot WHERE id = ?", (row,)).fetchone()
        except dsdb.Error as error:
            self.error = error


def test_a_hot_table_is_split_by_load_and_its_leases_spread(cluster: ProcessCluster) -> None:
    rows = 2000
    with dsdb.connect(cluster.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE hot (id INT PRIMARY KEY, n INT)")
        connection.execute("INSERT INTO hot VALUES " + ", ".join(f"({id}, 0)" for id in range(rows)))
        connection.execute("ALTER TABLE hot SPLIT AT VALUES (0)")
        connection.execute("ALTER TABLE hot CONFIGURE RANGES (load_requests = 50)")
        readers = [Reader(f"dsdb://{node.address}", rows, seed) for seed, node in enumerate(cluster.nodes)]
        for reader in readers:
            reader.start()

        def is_spread() -> bool:
            leaseholders = {holder for (holder,) in ask(cluster.url, "SHOW RANGES FROM TABLE hot", column=3)}
            return len(leaseholders - {None}) == len(cluster.nodes)

        try:
            wait_until(is_spread, timeout_s=PATIENCE_S)
        finally:
            for reader in readers:
                reader.is_stopped.set()
            for reader in readers:
                reader.join(PATIENCE_S)
        assert [reader.error for reader in readers] == [None] * len(readers)
        assert connection.execute("SELECT count(*), sum(n) FROM hot").fetchone() == (rows, sum(reader.written for reader in readers))
        assert connection.execute("SELECT count(*) > 0 FROM system.events WHERE kind = 'split'").fetchone() == (True,)
        connection.execute("ALTER TABLE hot CONFIGURE RANGES (load_requests = DEFAULT)")
