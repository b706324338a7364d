"""Networks that are cut, nodes that are frozen, quorums that are gone: no old data, no waiting for ever, and all is well after it."""

import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

import dsdb
from dsdb.cli.processes import NodeProcess
from tests.cluster.cut_cluster import PATIENCE_S, CutCluster, ask, end_all, wait_until
from tests.cluster.writer import Writer

LEAD_S = 10.0
"""Within this another node leads; it takes 1 to 2 seconds on a machine with nothing else to do."""


class Counter:
    """A row that is incremented through some nodes and read through another: a read sees at least what was acknowledged before it."""

    def __init__(self, cluster: CutCluster, table: str) -> None:
        self.table = table
        self.acknowledged = 0
        self.reads = self.refused = 0
        self.stale: list[str] = []
        self.longest_s = 0.0
        self._stop = threading.Event()
        ask_nothing(cluster.url(), f"CREATE TABLE {table} (k INT PRIMARY KEY, v INT)")
        ask_nothing(cluster.url(), f"INSERT INTO {table} VALUES (1, 0)")

    def increment(self, url: str) -> bool:
        """Add one, by a statement that sets what must come out, so that it may be sent again."""
        ask_nothing(url, f"UPDATE {self.table} SET v = {self.acknowledged + 1} WHERE k = 1")
        self.acknowledged += 1
        return True

    def read(self, url: str) -> None:
        """Read until `stop`; every answer is checked, and errors are counted."""
        while not self._stop.is_set():
            least, began = self.acknowledged, time.monotonic()
            try:
                ((value,),) = ask(url, f"SELECT v FROM {self.table} WHERE k = 1")
            except dsdb.OperationalError:
                self.refused += 1
            else:
                self.reads += 1
                assert isinstance(value, int)
                if value < least:
                    self.stale.append(f"{value} was read after {least} had been acknowledged")
            self.longest_s = max(self.longest_s, time.monotonic() - began)

    def stop(self) -> None:
        self._stop.set()


def ask_nothing(url: str, sql: str) -> None:
    with dsdb.connect(url, autocommit=True) as connection:
        connection.execute(sql)


def reading(counter: Counter, url: str) -> list[threading.Thread]:
    readers = [threading.Thread(target=counter.read, args=(url,), daemon=True) for _ in range(3)]
    for reader in readers:
        reader.start()
    return readers


@pytest.mark.parametrize("ways", ["both", "from"])
def test_a_leaseholder_that_is_cut_off_serves_nothing_old_and_another_leads_soon(cuttable: CutCluster, ways: str) -> None:
    counter = Counter(cuttable, f"cut_{ways}")
    old = cuttable.leader(counter.table)
    others = cuttable.others(old)
    readers = reading(counter, cuttable.url(old) + "?statement_timeout=1s")
    wait_until(lambda: counter.reads > 5)
    if ways != "to":
        cuttable.network.cut((old.node_id, other.node_id) for other in others)
    if ways != "from":
        cuttable.network.cut((other.node_id, old.node_id) for other in others)
    try:
        # Through a node that is not cut off: it must find who leads now.
        for _ in range(5):
            took = wait_until(lambda: counter.increment(cuttable.url(others[0]) + "?statement_timeout=5s"))
            assert took < LEAD_S
        refused = counter.refused
        wait_until(lambda: counter.refused >= refused + 3)
    finally:
        cuttable.network.heal()
    assert wait_until(lambda: ask(cuttable.url(old), f"SELECT v FROM {counter.table}") == [(counter.acknowledged,)]) < LEAD_S
    reads = counter.reads
    wait_until(lambda: counter.reads > reads)
    counter.stop()
    for reader in readers:
        reader.join(PATIENCE_S)
    assert not counter.stale
    assert counter.longest_s < PATIENCE_S


def test_a_leaseholder_that_was_frozen_wakes_without_its_lease(cuttable: CutCluster) -> None:
    counter = Counter(cuttable, "frozen")
    old = cuttable.leader(counter.table)
    others = cuttable.others(old)
    with dsdb.connect(cuttable.url(old), autocommit=True) as connection, ThreadPoolExecutor(1) as pool:
        connection.execute("SELECT v FROM frozen WHERE k = 1").fetchall()
        old.send_signal(signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert wait_until(lambda: counter.increment(cuttable.url(*others) + "?statement_timeout=5s")) < LEAD_S
            # Asked while it sleeps, answered when it wakes and may still believe that it leads.
            asked = pool.submit(lambda: connection.execute("SELECT v FROM frozen WHERE k = 1").fetchall())
            threading.Event().wait(max(0.0, 5.0 - (time.monotonic() - began)))
        finally:
            old.send_signal(signal.SIGCONT)
        try:
            assert asked.result(PATIENCE_S) == [(counter.acknowledged,)]
        except dsdb.OperationalError:
            pass  # nothing is better than something old
    readers = reading(counter, cuttable.url(old))
    wait_until(lambda: counter.reads > 3)
    wait_until(lambda: counter.increment(cuttable.url(old)))
    counter.stop()
    for reader in readers:
        reader.join(PATIENCE_S)
    assert not counter.stale


def test_writers_get_over_connections_that_break_and_a_slow_network(cuttable: CutCluster) -> None:
    ask_nothing(cuttable.url(), "CREATE TABLE broken (n INT PRIMARY KEY)")
    writer = Writer(cuttable.url(), "broken")
    writer.start()
    writer.wait_acknowledged(5)
    for _ in range(5):
        cuttable.network.drop_connections()
        writer.wait_acknowledged(5)
    cuttable.network.delay_s = 0.03
    writer.wait_acknowledged(5)
    cuttable.network.delay_s = 0.0
    writer.stop()
    writer.check(cuttable.url())


def is_refused(url: str, sql: str) -> bool:
    try:
        ask_nothing(url, sql)
    except dsdb.OperationalError:
        return True
    return False


def ended(url: str, sql: str) -> tuple[str, float]:
    """Run a statement that cannot succeed; give its SQLSTATE, or that it did, and how long it took."""
    began = time.monotonic()
    try:
        ask_nothing(url, sql)
    except dsdb.OperationalError as error:
        return error.sqlstate or "", time.monotonic() - began
    return "it succeeded", time.monotonic() - began


def test_statements_end_with_an_error_when_two_of_three_nodes_are_gone(cuttable: CutCluster) -> None:
    """B22: they hang while a range has no quorum."""
    ask_nothing(cuttable.url(), "CREATE TABLE quorum (k INT PRIMARY KEY, v INT)")
    ask_nothing(cuttable.url(), "INSERT INTO quorum VALUES (1, 1)")
    left = cuttable.leader("quorum")
    killed: list[NodeProcess] = cuttable.others(left)
    for node in killed:
        node.kill()
    statements = [
        "SELECT v FROM quorum WHERE k = 1",
        "SELECT count(*) FROM quorum",
        "INSERT INTO quorum VALUES (2, 2)",
        "UPDATE quorum SET v = 3 WHERE k = 1",
        "CREATE TABLE quorum2 (k INT PRIMARY KEY)",
    ]
    url = cuttable.url(left)
    try:
        # The lease that still stands may be served from: wait it out.  It lasts less than this statement waits.
        refused = {"the first": lambda: wait_until(lambda: is_refused(url + "?statement_timeout=4s", statements[0]))}
        end_all(refused, timeout_s=2 * PATIENCE_S)
        ends = end_all({sql: partial(ended, url, sql) for sql in statements}, timeout_s=PATIENCE_S)
        # Who looks for the reason must not need what is gone.
        assert end_all({"SHOW RANGES": lambda: ask(url, "SHOW RANGES")}, timeout_s=PATIENCE_S)["SHOW RANGES"]
    finally:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(NodeProcess.start, killed))
    for sql, (state, _) in ends.items():
        assert state in (("57P03",) if sql.startswith("SELECT") else ("57P03", "40003")), (sql, ends)
    wait_until(lambda: ask(url, "SELECT v FROM quorum WHERE k = 1") in ([(1,)], [(3,)]))
    wait_until(lambda: ask_nothing(url, "INSERT INTO quorum VALUES (4, 4)") is None)
