"""SELECT by whole keys, without an engine: the cached plan is a list of compiled functions over `Transaction.get`.

    SELECT a, b + 1 FROM t WHERE id = $1            one get
    SELECT * FROM t WHERE id IN (1, 2) AND b > 0    one get of several keys, in key order, and a filter

Invariants:
- It gives what the stage path gives; what it cannot do (joins, aggregates, sorts, sub-queries) is not planned here at all.
"""

from collections.abc import Sequence

from sqlglot import exp

from dsdb.sql.bind.conjuncts import conjuncts_of
from dsdb.sql.bind.query_names import output_name
from dsdb.sql.errors import SqlError
from dsdb.sql.execute.binding import StatementBinder
from dsdb.sql.execute.result import Result, ResultColumn
from dsdb.sql.execute.services import Execution
from dsdb.sql.execute.target import Compiled, Target
from dsdb.sql.parse import position_of
from dsdb.sql.plan.spans import key_access
from dsdb.sql.ports import RowWait

_CLAUSES = frozenset({"expressions", "from_", "where", "limit", "kind", "operation_modifiers"})


class PointSelectPlan:
    """A SELECT of rows by whole keys, bound."""

    is_writing = False
    is_reading = True

    def __init__(self, node: exp.Select, target: Target, condition: exp.Expr, binder: StatementBinder, wait: RowWait | None = None) -> None:
        """wait: lock the rows first."""
        access = key_access(target.table, conjuncts_of(condition), target.columns)
        self.is_point = access.is_point
        if not access.is_point:
            return
        self._access = access
        self._wait = wait
        self._filters = tuple(binder.compiled(residual, target.columns) for residual in access.residual)
        self._decode = target.rows.decode
        columns: list[ResultColumn] = []
        values: list[Compiled | int] = []
        for item in node.expressions:
            if isinstance(item, exp.Star) or (isinstance(item, exp.Column) and isinstance(item.this, exp.Star)):
                qualifiers = () if isinstance(item, exp.Star) else tuple(part.name for part in item.parts[:-1])
                for column in target.scope.expand_star(qualifiers, position_of(item)):
                    columns.append(ResultColumn(column.name, column.type))
                    values.append(column.ordinal)
                continue
            bound = binder.scalar(item.this if isinstance(item, exp.Alias) else item, target.scope, "SELECT")
            columns.append(ResultColumn(output_name(item, binder.type_of(bound).name), binder.type_of(bound)))
            is_column = isinstance(bound, exp.Column) and bound.name in target.columns
            values.append(target.columns[bound.name] if is_column else binder.compiled(bound, target.columns))
        self.columns = tuple(columns)
        self._positions = tuple(value for value in values if isinstance(value, int)) if all(isinstance(v, int) for v in values) else None
        self._is_whole_row = self._positions == tuple(range(len(target.table.columns)))
        self._values: Sequence[Compiled] = tuple(_picker(value) if isinstance(value, int) else value for value in values)

    async def run(self, execution: Execution) -> Result:
        """Read the rows."""
        parameters = execution.parameters
        keys = [span.start for span in self._access.spans(parameters)]
        if self._wait is None:
            stored = await execution.txn.get(keys)
        else:
            # What is left out, as others have locked it, has no value.
            stored = [value for _, value in await execution.lock(keys, self._wait)]
        rows = [self._decode(value) for value in stored if value is not None]
        for holds in self._filters:
            rows = [row for row in rows if holds(row, parameters) is True]
        if self._positions is None:
            rows = [tuple([value(row, parameters) for value in self._values]) for row in rows]
        elif not self._is_whole_row:
            positions = self._positions
            rows = [tuple([row[position] for position in positions]) for row in rows]
        return Result(f"SELECT {len(rows)}", columns=self.columns, rows=rows, row_count=len(rows))

    def explain(self) -> list[str]:
        """Describe it for EXPLAIN."""
        how = "Point Get" if self._wait is None else "Locking Point Get"
        return [f"{how} on {self._access.table.name}", *(["  with a filter at the gateway"] if self._filters else [])]


def _picker(position: int) -> Compiled:
    return lambda row, parameters: row[position]


def plan_point_select(node: exp.Expr, binder: StatementBinder, wait: RowWait | None = None) -> PointSelectPlan | None:
    """Bind a SELECT that pins whole keys, and locks its rows if `wait` is given.

    None for every other query, wrong ones included: the general binder says what is wrong.
    """
    if not isinstance(node, exp.Select) or any(value and name not in _CLAUSES for name, value in node.args.items()):
        return None
    source = node.args.get("from_")
    where = node.args.get("where")
    if source is None or where is None or node.args.get("limit") or type(source.this) is not exp.Table:
        return None
    if any(value and name not in ("this", "db", "catalog", "alias") for name, value in source.this.args.items()):
        return None
    alias = source.this.args.get("alias")
    if isinstance(source.this.this, exp.Func) or (alias is not None and alias.args.get("columns")):
        return None
    if node.find(exp.Subquery, exp.Exists, exp.Window, exp.AggFunc) is not None:
        return None
    try:
        target = binder.target(source.this)
        condition = binder.condition(where.this, target.scope, "WHERE")
        if not binder.is_evaluable(condition):
            return None
        plan = PointSelectPlan(node, target, condition, binder, wait)
    except SqlError:
        return None
    return plan if plan.is_point else None
