"""SELECT … FOR UPDATE: the rows are locked until the transaction ends.

    WHERE pins whole keys     lock ▸ read                                              (`point`)
    else, inner joins         query of outputs and keys ▸ lock the keys
    SKIP LOCKED               query of keys, unrecorded ▸ lock some ▸ read them again ▸ WHERE once more ▸ until LIMIT is reached

Who waits for locks reads as of after the last one was granted; what was read before is refreshed then, so the query's answer still
holds, or the transaction is run again.  SKIP LOCKED cannot be serializable in what it leaves out: only rows that it gives count as read.

Invariants:
- Every row of the answer is locked, and WHERE holds for it at the transaction's read timestamp.
- With SKIP LOCKED no more rows are locked than LIMIT and OFFSET ask for, but for those that had changed.
"""

from collections.abc import Container, Sequence

from sqlglot import exp

from dsdb.sql.bind.conjuncts import conjuncts_of
from dsdb.sql.errors import FeatureNotSupportedError, GroupingError, ProgramLimitError, UndefinedTableError
from dsdb.sql.execute.binding import NotEvaluableError, StatementBinder
from dsdb.sql.execute.point import PointSelectPlan, plan_point_select
from dsdb.sql.execute.result import Result
from dsdb.sql.execute.services import Execution
from dsdb.sql.execute.statement_kinds import words_of
from dsdb.sql.execute.target import Compiled, Target
from dsdb.sql.parse import position_of
from dsdb.sql.plan.stages import row_count
from dsdb.sql.ports import RowWait
from dsdb.sql.rows import Row
from dsdb.storage.datum import Datum

LOCKED_ROWS_MAX = 100_000
"""Rows that one statement may lock."""
CANDIDATES = 256
"""Keys that SKIP LOCKED looks for first, when a LIMIT asks for fewer: most of the time some of them are free."""

_CLAUSES = frozenset({"expressions", "from_", "joins", "where", "order", "limit", "offset", "kind", "operation_modifiers", "locks"})
_REFUSED = {
    "distinct": "DISTINCT clause",
    "group": "GROUP BY clause",
    "having": "HAVING clause",
    "with_": "WITH clause",
    "windows": "window functions",
    "laterals": "LATERAL",
}


class LockingSelectPlan:
    """A SELECT that locks, by a query."""

    is_writing = False
    is_reading = True

    def __init__(self, node: exp.Select, target: Target, wait: RowWait, binder: StatementBinder) -> None:
        self._binder = binder
        self._target = target
        self._wait = wait
        self._outputs = _outputs(node, target)
        try:
            self._query = binder.query(self._with_keys(_without(node, "locks")), unhide=target.table)
        except GroupingError as error:
            words = words_of(node.args["locks"][0])
            raise FeatureNotSupportedError(f"{words} is not allowed with aggregate functions", position=position_of(node)) from error
        self.columns = self._query.columns[: len(self._outputs)]

    def _with_keys(self, query: exp.Expr) -> exp.Expr:
        """Have a query give the key's columns behind its own."""
        alias = exp.to_identifier(self._target.relation.alias, quoted=True)
        keys = [exp.column(exp.to_identifier(name, quoted=True), alias.copy()) for name in self._binder.key_names(self._target)]
        query.set("expressions", [*(output.copy() for output in self._outputs), *keys])
        return query

    async def run(self, execution: Execution) -> Result:
        """Find the rows, lock them, give them."""
        width = len(self._outputs)
        found = await self._binder.query_rows(self._query, execution)
        check_count(len(found))
        if found:
            await execution.lock([self._target.rows.key_of(row[width:]) for row in found], self._wait)
        rows = [row[:width] for row in found]
        return Result(f"SELECT {len(rows)}", columns=self.columns, rows=rows, row_count=len(rows))

    def explain(self) -> list[str]:
        """Describe it for EXPLAIN."""
        return [f"Lock Rows of {self._target.table.name}", "  -> Keys and values by a query"]


class LockingJoinPlan:
    """A SELECT from tables that are joined, or from nothing, that locks the rows of some of them."""

    is_writing = False
    is_reading = True

    def __init__(self, node: exp.Select, targets: Sequence[Target], wait: RowWait, binder: StatementBinder) -> None:
        self._binder = binder
        self._targets = targets
        self._wait = wait
        keys = [
            exp.column(exp.to_identifier(name, quoted=True), exp.to_identifier(target.relation.alias, quoted=True))
            for target in targets
            for name in binder.key_names(target)
        ]
        query = _without(node, "locks")
        query.set("expressions", [*(item.copy() for item in node.expressions), *keys])
        words = words_of(node.args["locks"][0])
        try:
            self._query = binder.query(query)
        except GroupingError as error:
            raise FeatureNotSupportedError(f"{words} is not allowed with aggregate functions", position=position_of(node)) from error
        self.columns = self._query.columns[: len(self._query.columns) - len(keys)]

    async def run(self, execution: Execution) -> Result:
        """Find the rows, lock them, give them."""
        found = await self._binder.query_rows(self._query, execution)
        begin = width = len(self.columns)
        keys: dict[bytes, None] = {}
        for target in self._targets:
            end = begin + len(target.rows.key_positions)
            keys.update(dict.fromkeys(target.rows.key_of(row[begin:end]) for row in found))
            begin = end
        check_count(len(keys))
        if keys:
            await execution.lock(list(keys), self._wait)
        rows = [row[:width] for row in found]
        return Result(f"SELECT {len(rows)}", columns=self.columns, rows=rows, row_count=len(rows))

    def explain(self) -> list[str]:
        """Describe it for EXPLAIN."""
        names = ", ".join(target.table.name for target in self._targets)
        return [f"Lock Rows of {names}", "  -> Keys and values by a query"]


class SkipLockedPlan(LockingSelectPlan):
    """A SELECT that locks what nobody else has."""

    def __init__(self, node: exp.Select, target: Target, binder: StatementBinder) -> None:
        super().__init__(node, target, RowWait.SKIP, binder)
        where = node.args["where"].this if node.args.get("where") else None
        if any(inner is not node for inner in node.find_all(exp.Query)):
            raise FeatureNotSupportedError("SKIP LOCKED with sub-queries is not supported", position=position_of(node))
        try:
            condition = None if where is None else binder.condition(where, target.scope, "WHERE")
            self._filters = [binder.compiled(one, target.columns) for one in conjuncts_of(condition)]
            self._values = [_compiled(output, target, binder) for output in self._outputs]
        except NotEvaluableError as error:
            raise FeatureNotSupportedError(
                "SKIP LOCKED with functions that only the engine has is not supported", position=position_of(node)
            ) from error
        bounds = self._with_keys(_without(node, "locks", "where", "order"))
        bounds.set("expressions", bounds.expressions[len(self._outputs) :])
        self._bounds = binder.query(bounds, unhide=target.table)
        """LIMIT and OFFSET, bound."""
        assert self._bounds.gateway is None, "there is nothing to compute but its select list"
        whole = self._with_keys(_without(node, "locks", "limit", "offset"))
        self._all = binder.query(whole, unhide=target.table)
        some = whole.copy()
        some.set("limit", exp.Limit(expression=exp.Literal.number(CANDIDATES)))
        self._some = binder.query(some, unhide=target.table)

    async def run(self, execution: Execution) -> Result:
        """Find rows, lock those that are free, look at them again; go on until there are enough."""
        parameters = execution.parameters
        limit = row_count(self._bounds.limit, parameters, "LIMIT")
        offset = row_count(self._bounds.offset, parameters, "OFFSET") or 0
        wanted = None if limit is None else limit + offset
        rows: list[Row] = []
        tried: set[bytes] = set()
        for query in (self._some, self._all) if wanted is not None and wanted < CANDIDATES else (self._all,):
            with execution.txn.unrecorded():
                found = await self._binder.query_rows(query, execution)
            keys = [key for row in found if (key := self._target.rows.key_of(row[len(self._outputs) :])) not in tried]
            tried.update(keys)
            while keys and (wanted is None or len(rows) < wanted):
                count = len(keys) if wanted is None else wanted - len(rows)
                check_count(len(rows) + min(count, len(keys)))
                rows += await self._free(keys[:count], execution)
                keys = keys[count:]
            if len(found) < CANDIDATES or (wanted is not None and len(rows) >= wanted):
                break
        rows = [tuple([value(row, parameters) for value in self._values]) for row in rows[offset:]]
        return Result(f"SELECT {len(rows)}", columns=self.columns, rows=rows, row_count=len(rows))

    async def _free(self, keys: Sequence[bytes], execution: Execution) -> list[Row]:
        """Lock those of some keys that are free; give the rows there for which the condition still holds, in the keys' order."""
        rows: list[Row] = []
        for is_locked, stored in await execution.lock(keys, RowWait.SKIP):
            if is_locked and stored is not None:
                row = self._target.rows.decode(stored)
                if all(holds(row, execution.parameters) is True for holds in self._filters):
                    rows.append(row)
        return rows


def _without(node: exp.Expr, *clauses: str) -> exp.Expr:
    plain = node.copy()
    for clause in clauses:
        plain.set(clause, None)
    return plain


def check_count(rows: int) -> None:
    """Refuse to lock too many rows.  Raises ProgramLimitError."""
    if rows > LOCKED_ROWS_MAX:
        raise ProgramLimitError(f"a statement that locks more than {LOCKED_ROWS_MAX} rows", hint="Lock the rows in several statements.")


def _outputs(node: exp.Select, target: Target) -> list[exp.Expr]:
    """Give the select list with every `*` written out."""
    outputs: list[exp.Expr] = []
    alias = exp.to_identifier(target.relation.alias, quoted=True)
    for item in node.expressions:
        if isinstance(item, exp.Star) or (isinstance(item, exp.Column) and isinstance(item.this, exp.Star)):
            qualifiers = () if isinstance(item, exp.Star) else tuple(part.name for part in item.parts[:-1])
            for column in target.scope.expand_star(qualifiers, position_of(item)):
                outputs.append(exp.column(exp.to_identifier(column.name, quoted=True), alias.copy()))
        else:
            outputs.append(item)
    return outputs


def _compiled(output: exp.Expr, target: Target, binder: StatementBinder) -> Compiled:
    bound = binder.scalar(output.this if isinstance(output, exp.Alias) else output, target.scope, "SELECT")
    if isinstance(bound, exp.Column) and bound.name in target.columns:
        position = target.columns[bound.name]

        def pick(row: Sequence[Datum], parameters: Sequence[Datum]) -> Datum:
            return row[position]

        return pick
    return binder.compiled(bound, target.columns)


def _plan_join(node: exp.Select, sources: Sequence[exp.Expr], wait: RowWait, binder: StatementBinder) -> LockingJoinPlan:
    """Bind one that locks rows of joined tables."""
    locks: list[exp.Expr] = node.args["locks"]
    words, position = words_of(locks[0]), position_of(node)
    if wait is RowWait.SKIP and sources:
        raise FeatureNotSupportedError("SKIP LOCKED is only supported for the rows of one table", position=position)
    for join in node.args.get("joins") or ():
        if join.args.get("side"):
            raise FeatureNotSupportedError(f"{words} cannot be applied to the nullable side of an outer join", position=position)
    targets: dict[str, Target] = {}
    for source in sources:
        if type(source) is not exp.Table or source.args.get("joins") or source.args.get("sample") or isinstance(source.this, exp.Func):
            raise FeatureNotSupportedError(f"{words} is only supported for the rows of tables", position=position)
        target = binder.target(source)
        targets[target.relation.alias] = target
    everything = any(not lock.expressions for lock in locks)
    names = {of.name for lock in locks for of in lock.expressions}
    _check_named(locks, targets)
    chosen = [target for alias, target in targets.items() if everything or alias in names]
    if any(column.hidden for target in chosen for column in target.rows.key_columns()):
        raise FeatureNotSupportedError(f"{words} of joined tables without a primary key is not supported", position=position)
    return LockingJoinPlan(node, chosen, wait, binder)


def _check_named(locks: Sequence[exp.Expr], aliases: Container[str]) -> None:
    for lock in locks:
        for of in lock.expressions:
            if of.name not in aliases:
                raise UndefinedTableError(
                    f'relation "{of.name}" in {words_of(lock)} clause not found in FROM clause', position=position_of(of)
                )


def plan_locking_select(node: exp.Select, binder: StatementBinder) -> LockingSelectPlan | LockingJoinPlan | PointSelectPlan:
    """Bind a SELECT with FOR UPDATE or its like.  Raises FeatureNotSupportedError for what cannot be locked."""
    locks: list[exp.Expr] = node.args["locks"]
    words, position = words_of(locks[0]), position_of(node)
    for name, value in node.args.items():
        if value and name not in _CLAUSES:
            raise FeatureNotSupportedError(f"{words} is not allowed with {_REFUSED.get(name, name.upper())}", position=position)
    selected = [*node.expressions, *([node.args["order"]] if node.args.get("order") else [])]
    if any(item.find(exp.Window) is not None for item in selected):
        raise FeatureNotSupportedError(f"{words} is not allowed with window functions", position=position)
    source = node.args["from_"].this if node.args.get("from_") else None
    waits = [lock.args.get("wait") for lock in locks]
    wait = RowWait.NOWAIT if True in waits else RowWait.SKIP if False in waits else RowWait.WAIT
    joins = node.args.get("joins") or []
    if source is None or joins:
        return _plan_join(node, [*([source] if source is not None else []), *(join.this for join in joins)], wait, binder)
    if type(source) is not exp.Table or source.args.get("joins") or source.args.get("sample"):
        raise FeatureNotSupportedError(f"{words} is only supported for the rows of one table", position=position)
    target = binder.target(source)
    _check_named(locks, (target.relation.alias,))
    point = plan_point_select(_without(node, "locks"), binder, wait)
    if point is not None:
        return point
    return SkipLockedPlan(node, target, binder) if wait is RowWait.SKIP else LockingSelectPlan(node, target, wait, binder)


__all__ = ["LockingJoinPlan", "LockingSelectPlan", "plan_locking_select"]
