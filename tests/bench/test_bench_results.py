"""The benchmark's own arithmetic: what a figure is, and what may not be counted twice."""

import array
import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

from bench import rows
from bench.clients import FAILURES_IN_A_ROW_MAX, SliceOrder, run_slice
from bench.lag import misses
from bench.machine import Elsewhere, Moment, ProcessTimes, elsewhere, filesystem_of, memory_mib, read_moment
from bench.report import BEGIN, END, markdown, write_page
from bench.results import LagLine, ResultFile, SliceLine, machine_line, ratios, read_results, summarise
from bench.workloads import Argument

FAILURE_S = 0.002
QUIET = Elsewhere(cores=0.0, steal_cores=0.0, names="", load_1m=0.0)


def line(contender: str, turn: int, rate: float) -> SliceLine:
    return SliceLine(
        workload="read",
        clients=1,
        turn=turn,
        contender=contender,
        is_dsdb=contender.startswith("dsdb"),
        unit="statements",
        rate=rate,
        statements=int(rate),
        seconds=1.0,
        p50_ms=1000 / rate,
        p99_ms=2000 / rate,
        server_cpu_us=100.0,
        client_cpu_us=20.0,
        elsewhere=QUIET,
    )


def test_a_ratio_is_taken_within_a_turn_so_that_a_slow_moment_hits_both_sides() -> None:
    lines = [
        line("dsdb", 0, 1000),
        line("etcd", 0, 500),
        line("dsdb", 1, 100),
        line("etcd", 1, 50),
        line("dsdb", 2, 900),
        line("etcd", 2, 300),
    ]
    (found,) = ratios(lines)
    assert (found.dsdb, found.peer, found.median, found.lowest, found.highest) == ("dsdb", "etcd", 2.0, 2.0, 3.0)
    assert [(entry.contender, entry.rate, entry.cpu_us) for entry in summarise(lines)] == [("dsdb", 900, 120.0), ("etcd", 300, 120.0)]


def test_a_turn_that_one_side_lacks_is_left_out() -> None:
    (found,) = ratios([line("dsdb", 0, 1000), line("etcd", 0, 500), line("dsdb", 1, 7000)])
    assert found.median == found.highest == 2.0


def test_results_read_back_and_fill_the_page(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "results")
    file.write(machine_line("ext4", {"dsdb": "1"}, "1 row", datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)))
    file.write(line("dsdb", 0, 1000))
    file.write(line("etcd", 0, 500))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_page(markdown(read_results(file.path)), page)
    text = page.read_text()
    assert "| read | 1 | dsdb ÷ etcd | 2 (2–2) |" in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    page.write_text("no marks")
    with pytest.raises(ValueError, match="lacks the marks"):
        write_page("", page)


def test_cpu_of_a_child_that_ended_counts_once_and_is_nobody_elses() -> None:
    def moment(*processes: tuple[int, int, float, float]) -> Moment:
        table = {pid: ProcessTimes(name=f"p{pid}", parent=parent, cpu_s=cpu, waited_cpu_s=waited) for pid, parent, cpu, waited in processes}
        return Moment(processes=table, busy_s=0.0, steal_s=0.0)

    before = moment((10, 1, 5.0, 0.0), (11, 10, 80.0, 0.0), (12, 11, 1.0, 0.0))
    after = moment((10, 1, 5.0, 80.5), (12, 10, 1.0, 0.0))
    assert before.tree([10]) == {10, 11, 12}
    assert after.tree_cpu_s([10]) - before.tree_cpu_s([10]) == pytest.approx(0.5)
    assert elsewhere(before, after, 1.0).names == "", "what a parent waited for is not work that it did"


def test_proc_tells_what_a_child_used() -> None:
    spin = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nprint('done', flush=True)\ninput()"
    before = read_moment()
    with subprocess.Popen([sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "done\n"
        running = read_moment()
        assert child.pid in running.tree([os.getpid()])
        used = running.tree_cpu_s([child.pid])
        resident, proportional = memory_mib([child.pid])
        child.communicate("\n")
    after = read_moment()
    assert 0.15 < used < 2.0
    assert resident >= proportional > 1.0
    assert after.tree_cpu_s([os.getpid()]) - before.tree_cpu_s([os.getpid()]) >= used - 0.02
    assert filesystem_of(Path("/proc/self")) == "proc"


class CountingClient:
    """A client some of whose operations fail, after FAILURE_S."""

    errors: tuple[type[Exception], ...] = (ConnectionError,)

    def __init__(self, fails_every: int) -> None:
        self.keys: list[int] = []
        self.fails_every = fails_every

    def operate(self, key: int) -> None:
        self.keys.append(key)
        if len(self.keys) % self.fails_every == 0:
            time.sleep(FAILURE_S)
            raise ConnectionError("lost")

    def close(self) -> None:
        pass


def order(argument: Argument, seconds: float) -> SliceOrder:
    return SliceOrder(operation="operate", argument=argument, rows=7, step=10, start_at=0.0, seconds=seconds)


def test_a_slice_counts_successes_by_latency_and_failures_apart() -> None:
    client = CountingClient(3)
    report, base = run_slice(client, order("counted", 0.01), 1000)
    latencies = array.array("d", report.latencies)
    assert len(latencies) + report.failures == len(client.keys)
    assert report.failures == len(client.keys) // 3
    assert client.keys == list(range(1000, base, 10))
    assert report.error == "ConnectionError: lost"
    assert sum(latencies) <= report.elapsed_s - report.failures * FAILURE_S, "the time of a failure is no success's"


def test_a_slice_of_no_time_runs_once_and_keys_are_what_was_asked() -> None:
    client = CountingClient(10**9)
    run_slice(client, order("rows", 0.0), 0)
    assert client.keys == [7]
    run_slice(client, order("drawn", 0.005), 0)
    assert set(client.keys[1:]) == set(range(7))


def test_a_client_that_only_fails_gives_up() -> None:
    client = CountingClient(1)
    with pytest.raises(ConnectionError):
        run_slice(client, order("counted", 60.0), 0)
    assert len(client.keys) == FAILURES_IN_A_ROW_MAX


def test_both_ways_to_fill_the_wide_table_give_the_same_rows() -> None:
    with duckdb.connect() as connection:
        connection.execute(rows.WIDE_TABLE)
        connection.execute(rows.BULK_TABLE)
        for statement in rows.wide_fill(300):
            connection.execute(statement)
        connection.execute(rows.wide_insert("bulk", 0, 300))
        assert connection.execute("SELECT count(*) FROM (FROM wide INTERSECT FROM bulk)").fetchone() == (300,)


def test_ranges_begin_where_a_bulk_insert_does() -> None:
    assert rows.wide_bounds(rows.WIDE_ROWS) == [200_000, 400_000]
    assert all(bound % rows.BULK_ROWS == 0 for bound in rows.wide_bounds(12_000))
    assert abs(len(rows.load_insert(2**60)) - 1_000_000) < 50_000


def test_lag_has_goals() -> None:
    good = LagLine(
        seconds=60.0,
        p99_ms={"node 1": 19.9},
        worst_ms={"node 1": 90.0},
        bare_p99_ms=0.1,
        lease_moves=0,
        statements={"query": 3},
        failures={},
        elsewhere=QUIET,
    )
    assert misses(good) == []
    bad = LagLine(
        seconds=60.0,
        p99_ms={"node 1": 20.0},
        worst_ms={},
        bare_p99_ms=0.1,
        lease_moves=1,
        statements={"query": 0, "fetch": 1},
        failures={"fetch": "1"},
        elsewhere=QUIET,
    )
    assert len(misses(bad)) == 4
