"""Row locks over real nodes: gateways that do not lead the range queue at the one that does, and a dead gateway's locks pass on."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import dsdb
from tests.cluster.cut_cluster import PATIENCE_S, CutCluster


def test_locks_are_one_queue_for_all_gateways_and_do_not_outlive_theirs(cuttable: CutCluster) -> None:
    with dsdb.connect(cuttable.url(), autocommit=True) as connection:
        connection.execute("CREATE TABLE queued (id INT PRIMARY KEY, n INT NOT NULL)")
        connection.execute("INSERT INTO queued VALUES (1, 0), (2, 0)")

    def increment(number: int) -> None:
        with dsdb.connect(cuttable.url(cuttable.nodes[number % 3]), autocommit=True) as own:
            for _ in range(3):
                own.execute("BEGIN")
                [(n,)] = own.execute("SELECT n FROM queued WHERE id = 1 FOR UPDATE").fetchall()
                own.execute("UPDATE queued SET n = ? WHERE id = 1", (n + 1,))
                own.execute("COMMIT")

    with ThreadPoolExecutor(6) as threads:
        for done in [threads.submit(increment, number) for number in range(6)]:
            done.result(PATIENCE_S)
    leader = cuttable.leader("queued")
    doomed, other = cuttable.others(leader)
    holder = dsdb.connect(cuttable.url(doomed), autocommit=True)
    holder.execute("BEGIN")
    holder.execute("UPDATE queued SET n = 100 WHERE id = 2")
    with dsdb.connect(cuttable.url(other), autocommit=True) as waiter:
        assert waiter.execute("SELECT n FROM queued WHERE id = 1").fetchall() == [(18,)]
        waiter.execute("SET lock_timeout = '300ms'")
        with pytest.raises(dsdb.Error, match="lock timeout"):
            waiter.execute("UPDATE queued SET n = 5 WHERE id = 2")
        waiter.execute(f"SET lock_timeout = '{PATIENCE_S}s'".replace(".0s", "s"))
        doomed.kill()
        began = time.monotonic()
        assert waiter.execute("UPDATE queued SET n = n + 5 WHERE id = 2").rowcount == 1
        assert time.monotonic() - began < PATIENCE_S
        assert waiter.execute("SELECT n FROM queued WHERE id = 2").fetchall() == [(5,)]
