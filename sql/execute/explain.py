"""EXPLAIN: what a statement would do; EXPLAIN ANALYZE of a query also runs it, drops its rows, and says what was done.

Not here: the stages of a query (`dsdb.sql.plan.explain`).
"""

import time
from typing import Protocol, runtime_checkable

import msgspec
from sqlglot import exp

from dsdb.sql.errors import FeatureNotSupportedError
from dsdb.sql.execute.binding import StatementBinder
from dsdb.sql.execute.dml_insert import InsertPlan
from dsdb.sql.execute.dml_update import DeletePlan, UpdatePlan
from dsdb.sql.execute.locking import LockingJoinPlan, LockingSelectPlan
from dsdb.sql.execute.point import PointSelectPlan
from dsdb.sql.execute.result import Result, ResultColumn
from dsdb.sql.execute.select import QueryReport
from dsdb.sql.execute.services import Execution, Plan
from dsdb.sql.parse import ExplainStatement
from dsdb.sql.plan.explain import StageLines, explain_stages, gateway_counts, json_text, stage_counts, text_lines
from dsdb.sql.types import TEXT


@runtime_checkable
class ReportingPlan(Protocol):
    """The plan of a query by stages."""

    is_staged: bool

    async def run(self, execution: Execution, report: QueryReport | None = None) -> Result:
        """Run it.  report: is told what was done."""


class ExplainPlan:
    """EXPLAIN of a bound statement."""

    is_writing = False
    is_reading = True  # the catalogue, which must be under its lease

    def __init__(self, statement: ExplainStatement, inner: Plan, binder: StatementBinder) -> None:
        self._inner = inner
        self._is_json = statement.is_json
        self._is_analyzing = statement.analyze
        tree = statement.statement.tree
        is_query = isinstance(tree, exp.Query | exp.Values) and not isinstance(inner, PointSelectPlan | LockingSelectPlan | LockingJoinPlan)
        self._query = binder.query(tree) if isinstance(tree, exp.Expr) and is_query else None
        if statement.analyze and not isinstance(inner, PointSelectPlan) and (self._query is None or not isinstance(inner, ReportingPlan)):
            raise FeatureNotSupportedError(
                "EXPLAIN ANALYZE is supported of plain queries only", hint="EXPLAIN shows the plan without running it."
            )

    async def run(self, execution: Execution) -> Result:
        """Describe the plan."""
        if self._query is not None:
            stages = await explain_stages(self._query, execution.parameters, execution.services.runner)
            if self._is_analyzing:
                await self._run_query(stages, execution)
            return _result([json_text(stages)] if self._is_json else text_lines(stages))
        match self._inner:
            case PointSelectPlan() | LockingSelectPlan() | LockingJoinPlan() | UpdatePlan() | DeletePlan() | InsertPlan():
                lines = list(self._inner.explain())
            case _:
                lines = ["Utility Statement"]
        if self._is_analyzing:
            begun = time.perf_counter()
            rows = await _drained(await self._inner.run(execution))
            lines.append(f"actual: {rows} {'row' if rows == 1 else 'rows'} in {(time.perf_counter() - begun) * 1e3:.1f} ms")
        return _result([msgspec.json.encode([{"stage": "gateway", "lines": lines}]).decode()] if self._is_json else lines)

    async def _run_query(self, stages: list[StageLines], execution: Execution) -> None:
        assert isinstance(self._inner, ReportingPlan), "as checked"
        report, begun = QueryReport(), time.perf_counter()
        rows = await _drained(await self._inner.run(execution, report))
        seconds = time.perf_counter() - begun
        for stage in stages:
            if stage.name in report.stages:
                stage_counts(stage, report.stages[stage.name])
        gateway_counts(
            stages[0],
            rows=rows,
            seconds=seconds,
            engine_s=report.engine_s,
            gathered_rows=sum(report.gathered_rows.values()),
            gathered_bytes=report.gathered_bytes,
        )


async def _drained(result: Result) -> int:
    """Read a result to its end; count its rows."""
    if result.batches is None:
        return len(result.rows or ())
    rows = 0
    async for batch in result.batches:
        rows += batch.num_rows
    return rows


def _result(lines: list[str]) -> Result:
    return Result("EXPLAIN", columns=(ResultColumn("QUERY PLAN", TEXT),), rows=[(line,) for line in lines], row_count=len(lines))
