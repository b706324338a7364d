"""`python -m bench.lag_probe`: the longest pauses of a node's event loop while single statements run; one node in this process.

    statement ─▶ session's executor ─▶ store          while a task asks every millisecond whether the loop still comes round

For each statement: how long it took, the longest time between two of the loop's rounds, and the longest steps of single tasks, with
where each stood when it gave up the loop.  A step is timed on the wall clock: it has what threads took of the interpreter meanwhile.

Not here: goals, clusters and load from several sides (`lag`).
"""

import gc
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import trio

from bench.rows import AGGREGATE_JOIN, LOAD_ROWS, LOAD_TABLE, SUPPLIER_TABLE, VALUE, WIDE_TABLE, load_insert, supplier_insert, wide_insert
from dsdb.cli.start import SWITCH_INTERVAL_S
from dsdb.env import Address
from dsdb.node.config import NodeConfig
from dsdb.node.node import Node
from dsdb.sql.execute.result import Parameter
from dsdb.sql.execute.session import SessionState
from dsdb.sql.execute.statement import StatementExecutor

TICK_S = 0.001
STEPS_TOLD = 3
MEGABYTE_ROWS_WIDE = 14_000
"""Rows of the wide table, of about 75 bytes as text: one statement is 1 MB."""


class StepWatch(trio.abc.Instrument):
    """Times each step of each task."""

    def __init__(self) -> None:
        self._began = 0.0
        self.steps: list[tuple[float, str]] = []
        """Seconds, and whose step it was."""

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        """Begin a step."""
        self._began = time.monotonic()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """End it."""
        took = time.monotonic() - self._began
        if took > 2 * TICK_S:
            frames = [frame.f_code.co_qualname for frame, _ in task.iter_await_frames()]
            self.steps.append((took, f"{task.name} at {' '.join(frames[-4:]) or 'its end'}"))


class CollectorWatch:
    """Times Python's garbage collector, which holds all threads."""

    def __init__(self) -> None:
        self._began = 0.0
        self.worst_s = 0.0

    def hear(self, phase: str, _: dict[str, int]) -> None:
        """Be one of `gc.callbacks`."""
        if phase == "start":
            self._began = time.monotonic()
        else:
            self.worst_s = max(self.worst_s, time.monotonic() - self._began)


class Ticker:
    """Measures how late a task that sleeps is woken."""

    def __init__(self) -> None:
        self.worst_s = 0.0

    async def run(self) -> None:
        """Sleep on and on."""
        last = time.monotonic()
        while True:
            await trio.sleep(TICK_S)
            now = time.monotonic()
            self.worst_s = max(self.worst_s, now - last - TICK_S)
            last = now


class Probe:
    """Runs statements and says what each did to the loop."""

    def __init__(self, executor: StatementExecutor, ticker: Ticker, watch: StepWatch, collector: CollectorWatch) -> None:
        self._executor = executor
        self._session = SessionState()
        self._ticker = ticker
        self._watch = watch
        self._collector = collector

    async def run(self, text: str) -> None:
        """Run statements, and read what they give."""
        async for result in self._executor.execute(self._session, text, list[Parameter]()):
            if result.batches is not None:
                async for _ in result.batches:
                    pass

    async def measure(self, name: str, text: str) -> None:
        """Run statements and tell of them."""
        await trio.sleep(10 * TICK_S)
        self._ticker.worst_s = self._collector.worst_s = 0.0
        self._watch.steps.clear()
        began = time.monotonic()
        await self.run(text)
        took = time.monotonic() - began
        await trio.sleep(2 * TICK_S)
        pause_ms, collector_ms = self._ticker.worst_s * 1e3, self._collector.worst_s * 1e3
        click.echo(f"{name:32} {took * 1e3:8.0f} ms, longest pause {pause_ms:6.1f} ms, of the garbage collector {collector_ms:6.1f} ms")
        for step, where in sorted(self._watch.steps, reverse=True)[:STEPS_TOLD]:
            click.echo(f"    {step * 1e3:6.1f} ms  {where}")


@contextmanager
def _store(in_memory: bool) -> Iterator[Path | None]:
    if in_memory:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="dsdb-lag-probe-") as directory:
        yield Path(directory)


def _between_others() -> str:
    return "INSERT INTO load VALUES " + ",".join([f"({3_000_001 + 2 * number},'{VALUE}')" for number in range(LOAD_ROWS)])


async def _probe(store: Path | None, rows: int) -> None:
    watch, ticker, collector = StepWatch(), Ticker(), CollectorWatch()
    gc.callbacks.append(collector.hear)
    trio.lowlevel.add_instrument(watch)
    node = Node(NodeConfig(store=store, listen=Address("127.0.0.1", 0)))
    async with trio.open_nursery() as nursery:
        await nursery.start(node.run)
        nursery.start_soon(ticker.run)
        assert node.parts is not None
        gc.collect()
        gc.freeze()
        probe = Probe(node.parts.executor, ticker, watch, collector)
        for table in (LOAD_TABLE, WIDE_TABLE, SUPPLIER_TABLE):
            await probe.run(table)
        await probe.measure("INSERT of 1 MB, 2 columns", load_insert(0))
        await probe.measure("again, behind those rows", load_insert(1_000_000))
        await probe.run("INSERT INTO load SELECT 3000000 + 2 * id, v FROM load WHERE id < 8192")
        await probe.measure("again, each between two others", _between_others())
        await probe.measure("INSERT of 1 MB, 8 columns", wide_insert("wide", 0, MEGABYTE_ROWS_WIDE))
        for first in range(MEGABYTE_ROWS_WIDE, rows, MEGABYTE_ROWS_WIDE):
            await probe.run(wide_insert("wide", first, MEGABYTE_ROWS_WIDE))
        await probe.run(supplier_insert())
        await probe.measure(f"SELECT of {rows:,} rows", "SELECT * FROM wide")
        await probe.measure("aggregate of a join", AGGREGATE_JOIN)
        await probe.measure("the same in the engine", AGGREGATE_JOIN.replace("count(*)", "count(DISTINCT w.id)"))
        await probe.measure("ORDER BY of all", "SELECT * FROM wide ORDER BY price")
        await probe.measure("UPDATE of 8,192 rows", "UPDATE load SET v = 'y' WHERE id < 8192")
        await probe.measure("INSERT … SELECT of 8,192 rows", "INSERT INTO load SELECT id + 2000000, v FROM load WHERE id < 8192")
        await probe.measure("DELETE of 8,192 rows", "DELETE FROM load WHERE id < 8192")
        nursery.cancel_scope.cancel()


@click.command()
@click.option("--memory", is_flag=True, help="Keep the store in memory instead of on disk.")
@click.option("--rows", type=click.IntRange(min=1), default=100_000, show_default=True, help="Rows of the table that is read.")
def main(memory: bool, rows: int) -> None:
    """Tell the longest pauses of a node's event loop."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    with _store(memory) as store:
        trio.run(_probe, store, rows)


if __name__ == "__main__":
    main()
