"""Turns: the contenders of a workload run one slice each, again and again, so that what the machine does meanwhile hits all alike.

    turn 1: A B C   turn 2: A B C   turn 3: A B C      all are connected all the time; those whose turn it is not are idle

Ratios are taken within a turn; the median over turns is the figure.
"""

import array
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from bench.clients import ClientFailed, ClientPool, SliceReport
from bench.machine import elsewhere, read_moment
from bench.results import SliceLine, quantile
from bench.sides.port import Contender
from bench.workloads import Workload

SETTLE_S = 0.3
"""Between two slices, for what the last one left running."""


def take_turns(
    workload: Workload, contenders: Sequence[Contender], *, turns: int, seconds: float, say: Callable[[str], None]
) -> list[SliceLine]:
    """Measure a workload on all contenders.  A contender whose clients fail is left out from then on, and that is said."""
    lines: list[SliceLine] = []
    with ExitStack() as stack:
        pools = []
        for contender in contenders:
            try:
                pool = stack.enter_context(ClientPool(contender))
                pool.run(workload, seconds=0.0)  # untimed: what is opened or cached at first use
            except ClientFailed as error:
                say(f"    left out: {error}")
            else:
                pools.append(pool)
        for turn in range(turns):
            for pool in list(pools):
                time.sleep(SETTLE_S)
                try:
                    lines.append(_slice(workload, pool, turn=turn, seconds=seconds))
                except ClientFailed as error:
                    say(f"    left out from turn {turn + 1} on: {error}")
                    pools.remove(pool)
    return lines


def _slice(workload: Workload, pool: ClientPool, *, turn: int, seconds: float) -> SliceLine:
    contender = pool.contender
    before, begun = read_moment(), time.monotonic()
    reports = pool.run(workload, seconds=seconds)
    after, elapsed = read_moment(), time.monotonic() - begun
    latencies = sorted(value for report in reports for value in _latencies(report))
    statements = len(latencies)
    longest = max(report.elapsed_s for report in reports)
    server_cpu = after.tree_cpu_s(contender.servers) - before.tree_cpu_s(contender.servers)
    client_cpu = sum(report.cpu_s for report in reports)
    each = 1e6 / max(1, statements)
    return SliceLine(
        workload=workload.name,
        clients=len(reports),
        turn=turn,
        contender=contender.label,
        is_dsdb=contender.is_dsdb,
        unit=workload.unit,
        rate=round(statements * workload.units / longest, 2),
        statements=statements,
        seconds=round(longest, 3),
        p50_ms=round(quantile(latencies, 0.5) * 1e3, 3),
        p99_ms=round(quantile(latencies, 0.99) * 1e3, 3),
        server_cpu_us=round(server_cpu * each, 1),
        client_cpu_us=round(client_cpu * each, 1),
        failures=sum(report.failures for report in reports),
        aborts=sum(report.aborts for report in reports),
        error=next((report.error for report in reports if report.error), ""),
        placement=contender.placement,
        elsewhere=elsewhere(before, after, elapsed),
    )


def _latencies(report: SliceReport) -> "array.array[float]":
    values = array.array("d")
    values.frombytes(report.latencies)
    return values
