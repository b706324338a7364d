"""Rows on their way into and out of a cluster of processes, while nodes die and others write."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import dsdb
from dsdb.cli.main import main
from dsdb.cli.processes import ProcessCluster

ROWS = 3_000


def numbers(count: int, *, at_half: threading.Event | None = None, go_on: threading.Event | None = None) -> pa.RecordBatchReader:
    """Give rows, some at a time; in the middle say so, and wait."""
    schema = pa.schema([("id", pa.int64()), ("word", pa.string())])

    def batches() -> Iterator[pa.RecordBatch]:
        for begin in range(0, count, 500):
            if begin == count // 2 and at_half is not None and go_on is not None:
                at_half.set()
                assert go_on.wait(60)
            rows = range(begin, min(begin + 500, count))
            # Wide enough that what was given is on its way, and not in a buffer here.
            yield pa.record_batch([pa.array(rows, pa.int64()), pa.array([f"{number:x<2000}" for number in rows])], schema=schema)

    return pa.RecordBatchReader.from_batches(schema, batches())


def test_a_frame_is_joined_with_rows_of_all_nodes(cluster: ProcessCluster) -> None:
    with dsdb.connect(f"dsdb://{cluster.nodes[0].address}", autocommit=True) as connection:
        cursor = connection.cursor()
        assert cursor.adbc_ingest("joined", numbers(ROWS), "replace", primary_key=["id"]) == ROWS
        connection.execute("ALTER TABLE joined SPLIT AT VALUES (1000), (2000)")
        frame = pa.table({"id": [5, 1500, 2999, 5000], "extra": ["a", "b", "c", "d"]})
        rows = cursor.execute("SELECT id, extra FROM joined JOIN $1 f USING (id) ORDER BY id", [frame]).fetchall()
        assert rows == [(5, "a"), (1500, "b"), (2999, "c")]
        # Over several ranges it is all or nothing as well.
        more = pa.table({"id": [*range(-1000, 0), 2500], "word": ["new"] * 1001})
        with pytest.raises(dsdb.IntegrityError, match=r"Key \(id\)=\(2500\)"):
            cursor.adbc_ingest("joined", more, "append")
        assert cursor.execute("SELECT count(*), min(id) FROM joined").fetchall() == [(ROWS, 0)]


def test_an_ingest_whose_gateway_dies_leaves_nothing(cluster: ProcessCluster) -> None:
    # Rows in are rows out, or a failure that left nothing.
    gateway, other = cluster.nodes[1], cluster.nodes[2]
    with dsdb.connect(f"dsdb://{other.address}", autocommit=True) as watching:
        watching.execute("DROP TABLE IF EXISTS dying")
        watching.execute("CREATE TABLE dying (id BIGINT PRIMARY KEY, word TEXT)")
        at_half, go_on = threading.Event(), threading.Event()
        failures: list[dsdb.Error] = []

        def ingest() -> None:
            try:
                with dsdb.connect(f"dsdb://{gateway.address}", autocommit=True) as connection:
                    # Beyond what is gathered, so that blocks lie at their range when the gateway dies.
                    connection.cursor().adbc_ingest("dying", numbers(20_000, at_half=at_half, go_on=go_on), "append")
            except dsdb.Error as error:
                failures.append(error)

        thread = threading.Thread(target=ingest)
        thread.start()
        assert at_half.wait(60)
        gateway.kill()
        go_on.set()
        thread.join(60)
        assert [error.sqlstate for error in failures] == ["08006"]
        assert "Nothing of the statement took effect" in str(failures[0])
        assert watching.execute("SELECT count(*) FROM dying").fetchall() == [(0,)]
        # Whoever takes the rows' place is not held up by what lies there.
        assert watching.cursor().adbc_ingest("dying", numbers(1_000), "append") == 1_000


def test_an_ingest_outlives_the_leaseholder_or_leaves_nothing(cluster: ProcessCluster) -> None:
    gateway = cluster.nodes[0]
    with dsdb.connect(f"dsdb://{gateway.address}", autocommit=True) as watching:
        watching.execute("DROP TABLE IF EXISTS moved")
        watching.execute("CREATE TABLE moved (id BIGINT PRIMARY KEY, word TEXT)")
        watching.execute("ALTER TABLE moved SPLIT AT VALUES (5000), (15000)")
        at_half, go_on = threading.Event(), threading.Event()
        found: list[int | str | None] = []

        def ingest() -> None:
            try:
                with dsdb.connect(f"dsdb://{gateway.address}", autocommit=True) as connection:
                    found.append(connection.cursor().adbc_ingest("moved", numbers(20_000, at_half=at_half, go_on=go_on), "append"))
            except dsdb.Error as error:
                found.append(error.sqlstate)

        thread = threading.Thread(target=ingest)
        thread.start()
        assert at_half.wait(60)
        # Of three ranges with spread leases it leads some; blocks lie at two of them.
        cluster.nodes[1].kill()
        go_on.set()
        thread.join(90)
        [(count,)] = watching.execute("SELECT count(*) FROM moved").fetchall()
        assert (found, count) == ([20_000], 20_000) or (found[0] != 20_000 and count == 0)
        if not count:
            assert watching.cursor().adbc_ingest("moved", numbers(1_000), "append") == 1_000


def test_an_ingest_is_a_job_that_any_node_sees_and_cancels(cluster: ProcessCluster) -> None:
    gateway, other = cluster.nodes[0], cluster.nodes[2]
    with dsdb.connect(f"dsdb://{other.address}", autocommit=True) as watching:
        watching.execute("CREATE TABLE called_off (id BIGINT PRIMARY KEY, word TEXT)")
        at_half, go_on = threading.Event(), threading.Event()
        failures: list[dsdb.Error] = []

        def ingest() -> None:
            try:
                with dsdb.connect(f"dsdb://{gateway.address}", autocommit=True) as connection:
                    connection.cursor().adbc_ingest("called_off", numbers(20_000, at_half=at_half, go_on=go_on), "append")
            except dsdb.Error as error:
                failures.append(error)

        def told() -> list[tuple[object, ...]]:
            return watching.execute("SELECT job_id, node_id, state FROM system.jobs WHERE what LIKE 'COPY into called_off %'").fetchall()

        thread = threading.Thread(target=ingest)
        thread.start()
        assert at_half.wait(60)
        until = time.monotonic() + 60
        while not (found := told()) and time.monotonic() < until:
            time.sleep(0.1)
        [(job_id, node_id, state)] = found
        assert (node_id, state) == (gateway.node_id, "running")
        watching.execute(f"CANCEL JOB {job_id}")
        while told() != [(job_id, node_id, "cancelled")] and time.monotonic() < until:
            time.sleep(0.1)
        go_on.set()
        thread.join(60)
        assert [error.sqlstate for error in failures] == ["57014"]
        assert told() == [(job_id, node_id, "cancelled")]
        with pytest.raises(dsdb.Error, match="is cancelled: only one that is running can be cancelled"):
            watching.execute(f"CANCEL JOB {job_id}")
        assert watching.execute("SELECT count(*) FROM called_off").fetchall() == [(0,)]


def test_a_dump_during_an_ingest_has_all_of_it_or_nothing(cluster: ProcessCluster, tmp_path: Path) -> None:
    # A backup does not miss rows that come in bulk meanwhile, nor takes some of them.
    url = f"dsdb://{cluster.nodes[0].address}"
    with dsdb.connect(url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE dumped")
    url += "/dumped"
    with dsdb.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE bulk (id BIGINT PRIMARY KEY, word TEXT)")
        at_half, go_on = threading.Event(), threading.Event()

        def ingest() -> None:
            with dsdb.connect(url, autocommit=True) as writing:
                writing.cursor().adbc_ingest("bulk", numbers(6_000, at_half=at_half, go_on=go_on), "append")

        thread = threading.Thread(target=ingest)
        thread.start()
        assert at_half.wait(60)
        during = CliRunner().invoke(main, ["dump", str(tmp_path / "during"), "--url", url])
        go_on.set()
        thread.join(120)
        after = CliRunner().invoke(main, ["dump", str(tmp_path / "after"), "--url", url])
    assert (during.exit_code, after.exit_code) == (0, 0), during.output + after.output
    assert [pq.read_table(tmp_path / name / "1.parquet").num_rows for name in ("during", "after")] == [0, 6_000]
