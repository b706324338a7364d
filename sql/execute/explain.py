"""EXPLAIN: what a statement would do, as lines of text; nothing is read or written.

Not here: the stages of a query (`dsdb.sql.plan.explain`).
"""

from sqlglot import exp

from dsdb.sql.errors import FeatureNotSupportedError
from dsdb.sql.execute.binding import StatementBinder
from dsdb.sql.execute.dml_insert import InsertPlan
from dsdb.sql.execute.dml_update import DeletePlan, UpdatePlan
from dsdb.sql.execute.locking import LockingJoinPlan, LockingSelectPlan
from dsdb.sql.execute.point import PointSelectPlan
from dsdb.sql.execute.result import Result, ResultColumn
from dsdb.sql.execute.services import Execution, Plan
from dsdb.sql.parse import ExplainStatement
from dsdb.sql.plan.explain import explain_select
from dsdb.sql.types import TEXT


class ExplainPlan:
    """EXPLAIN of a bound statement."""

    is_writing = False
    is_reading = True  # the catalogue, which must be under its lease

    def __init__(self, statement: ExplainStatement, inner: Plan, binder: StatementBinder) -> None:
        if statement.analyze:
            raise FeatureNotSupportedError("EXPLAIN ANALYZE is not supported", hint="EXPLAIN shows the plan without running it.")
        self._inner = inner
        tree = statement.statement.tree
        is_query = isinstance(tree, exp.Query | exp.Values) and not isinstance(inner, PointSelectPlan | LockingSelectPlan | LockingJoinPlan)
        self._query = binder.query(tree) if isinstance(tree, exp.Expr) and is_query else None

    async def run(self, execution: Execution) -> Result:
        """Describe the plan."""
        match self._inner:
            case PointSelectPlan() | LockingSelectPlan() | LockingJoinPlan() | UpdatePlan() | DeletePlan() | InsertPlan():
                lines = self._inner.explain()
            case _ if self._query is not None:
                lines = await explain_select(self._query, execution.parameters, execution.services.runner)
            case _:
                lines = ["Utility Statement"]
        return Result("EXPLAIN", columns=(ResultColumn("QUERY PLAN", TEXT),), rows=[(line,) for line in lines], row_count=len(lines))
