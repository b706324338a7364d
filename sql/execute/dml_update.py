"""UPDATE and DELETE: find the rows, compute the new ones, write them by key.

    WHERE pins the primary key        lock, get ▸ evaluator                              (the point path)
    WHERE and SET can be evaluated    leaf scan of spans ▸ locks (`queueing`) ▸ evaluator
    sub-queries, FROM, USING          a SELECT of the keys and of the new values ▸ locks ▸ get of these keys

Invariants:
- All reads see the state before the statement: all rows are read before the first is written, which may be flushed at once.
- A change of the primary key is a delete and an insert in one commit; the new keys are checked after all old ones are gone.
- A row that FROM joins with several others is changed once, by the first of them.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import pyarrow as pa
from sqlglot import exp

from dsdb.sql.bind.conjuncts import conjuncts_of
from dsdb.sql.bind.query_state import refuse_clauses
from dsdb.sql.errors import FeatureNotSupportedError, ProgramLimitError
from dsdb.sql.execute.binding import NotEvaluableError, StatementBinder
from dsdb.sql.execute.dml_insert import assigned_value, assignment, assignments, generated_always, is_default
from dsdb.sql.execute.queueing import FOUND_ROWS_LOCKED_MAX, found_to_change, moved_by_locks
from dsdb.sql.execute.result import Result, ResultColumn, rows_of_batch
from dsdb.sql.execute.services import Execution
from dsdb.sql.execute.slices import SLICE_ROWS_MAX, pause, slices
from dsdb.sql.execute.target import Compiled, Returning, RowRules, Target, compile_default, unique_violation
from dsdb.sql.parse import position_of
from dsdb.sql.plan.spans import KeyAccess, key_access
from dsdb.sql.ports import LeafStage, TableScan
from dsdb.sql.rows import Row
from dsdb.storage.datum import Datum
from dsdb.storage.rowarrow import field_name

SCANNED_BYTES_MAX = 1 << 30
"""Rows, as columns, that one UPDATE or DELETE may hold at its gateway: all that it looks at is read before it writes."""
ROWS_HELD_MAX = 1_000_000
"""Rows that it may hold as such: to give them back, or to see that no key is taken twice; about a kilobyte each."""


class RowFinder:
    """The rows of a table that a condition holds for, when both can be evaluated here."""

    def __init__(self, where: exp.Expr | None, target: Target, binder: StatementBinder) -> None:
        self._target = target
        conjuncts = conjuncts_of(where)
        self._access: KeyAccess = key_access(target.table, conjuncts, target.columns)
        self._is_narrowed = bool(self._access.equal or self._access.lower or self._access.upper)
        self._filters: list[Compiled] = [binder.compiled(residual, target.columns) for residual in self._access.residual]
        layout = target.rows.layout
        self._scan_columns = layout.columns
        self._names = tuple(field_name(column.column_id) for column in layout.columns)
        self._result_columns = [ResultColumn(column.name, column.type) for column in target.table.columns]

    async def rows(self, execution: Execution) -> list[Row]:
        """Read them."""
        if self.is_point:
            return self._passing(await self._get(execution), execution)
        found: list[Row] = []
        async for part in self.parts(execution):
            found += part
            if len(found) > ROWS_HELD_MAX:
                raise ProgramLimitError(
                    f"a statement that changes more than {ROWS_HELD_MAX} rows, and gives them back or moves them, is not supported",
                    hint="Change the rows in several statements.",
                )
        return found

    async def parts(self, execution: Execution) -> AsyncGenerator[list[Row], None]:
        """Read them all, then give them some at a time: whoever writes them between two parts never meets what it wrote.

        If they are few, they are locked (`queueing`).
        """
        with execution.txn.unrecorded() as reads:
            batches = await self._scan(execution)
        batches.reverse()
        first: list[Row] = []
        while batches and len(first) <= FOUND_ROWS_LOCKED_MAX:
            first += await self._passing_of(batches.pop(), execution)
        is_few = 0 < len(first) <= FOUND_ROWS_LOCKED_MAX and not batches
        if is_few and await moved_by_locks([self._target.rows.key(row) for row in first], execution):
            first, batches = [], await self._scan(execution)
            batches.reverse()
        else:
            reads.keep()
        if first:
            yield first
        while batches:
            # What was given is not kept.
            passed = await self._passing_of(batches.pop(), execution)
            if passed:
                yield passed

    async def _passing_of(self, batch: pa.RecordBatch, execution: Execution) -> list[Row]:
        passed: list[Row] = []
        for part in slices(rows_of_batch(batch, self._result_columns), len(self._result_columns)):
            passed += self._passing(part, execution)
            await pause(part)
        return passed

    @property
    def is_point(self) -> bool:
        """Say whether the condition names the keys."""
        return self._access.is_point

    def _passing(self, rows: list[Row], execution: Execution) -> list[Row]:
        for holds in self._filters:
            rows = [row for row in rows if holds(row, execution.parameters) is True]
        return rows

    def explain(self) -> list[str]:
        """Describe it for EXPLAIN."""
        how = "Point Get" if self._access.is_point else "Scan of a key span" if self._is_narrowed else "Full Scan"
        return [f"  -> {how} on {self._target.table.name}" + (", filtered at the gateway" if self._filters else "")]

    async def _get(self, execution: Execution) -> list[Row]:
        keys = [span.start for span in self._access.spans(execution.parameters)]
        decode = self._target.rows.decode
        return [decode(value) for value in await execution.get_to_change(keys) if value is not None]

    async def _scan(self, execution: Execution) -> list[pa.RecordBatch]:
        """Read the rows of the spans, as they come: columns take a tenth of what rows do."""
        access = self._access
        spans = access.spans(execution.parameters) if self._is_narrowed else (self._target.rows.span,)
        scan = TableScan(spans=spans, layouts=(self._target.rows.layout,), columns=self._scan_columns, names=self._names)
        batches: list[pa.RecordBatch] = []
        if not spans:
            return batches
        taken = 0
        async for batch in execution.services.runner.run(LeafStage(scan=scan, ordered=True), execution.txn):
            batches += [batch.slice(begin, SLICE_ROWS_MAX) for begin in range(0, batch.num_rows, SLICE_ROWS_MAX)]
            taken += batch.nbytes
            if taken > SCANNED_BYTES_MAX:
                raise ProgramLimitError(
                    f"a statement that looks at more than {SCANNED_BYTES_MAX // 2**20} MiB of rows to change them is not supported",
                    hint="Change the rows in several statements.",
                )
        return batches


class _QueriedRows:
    """The rows and values of a statement with sub-queries or FROM: read by a SELECT, then by key.

    outputs: what the SELECT gives after the key's columns.
    """

    def __init__(
        self,
        target: Target,
        others: Sequence[exp.Expr],
        where: exp.Expr | None,
        outputs: Sequence[exp.Expr],
        node: exp.Expr,
        binder: StatementBinder,
    ) -> None:
        self._target = target
        self._width = len(target.rows.key_positions)
        alias = exp.to_identifier(target.relation.alias, quoted=True)
        keys = [exp.column(exp.to_identifier(name, quoted=True), alias.copy()) for name in binder.key_names(target)]
        select = exp.Select(expressions=[*keys, *(output.copy() for output in outputs)])
        select.set("from_", exp.From(this=node.this.copy()))
        if others:
            select.set("joins", [exp.Join(this=other.copy()) for other in others])
        if where is not None:
            select.set("where", exp.Where(this=where.copy()))
        if node.args.get("with_"):
            select.set("with_", node.args["with_"].copy())
        self._query = binder.query(select, unhide=target.table)
        self.output_columns = self._query.columns[self._width :]

    async def rows(self, execution: Execution, binder: StatementBinder) -> list[tuple[Row, Row]]:
        """Give each row with the outputs computed for it."""
        rows = self._target.rows

        async def look() -> dict[bytes, Row]:
            outputs: dict[bytes, Row] = {}
            for given in await binder.query_rows(self._query, execution):
                outputs.setdefault(rows.key_of(given[: self._width]), given[self._width :])
            return outputs

        outputs = await found_to_change(look, list, execution)
        stored = await execution.txn.get(list(outputs))
        return [(rows.decode(value), output) for value, output in zip(stored, outputs.values()) if value is not None]


class UpdatePlan:
    """An UPDATE, bound."""

    is_writing = True
    is_reading = True

    def __init__(self, node: exp.Update, binder: StatementBinder) -> None:
        refuse_clauses(node, "this", "expressions", "from_", "where", "returning", "with_")
        self._binder = binder
        self.target = target = binder.target(node.this)
        self._rules = RowRules(target, binder)
        returning = node.args.get("returning")
        self._returning = Returning(returning, target, binder) if returning is not None else None
        pairs = assignments(node.expressions, target)
        where = node.args["where"].this if node.args.get("where") else None
        others = _sources(node.args["from_"].this) if node.args.get("from_") else []
        self._finder: RowFinder | None = None
        self._queried: _QueriedRows | None = None
        if not others and not node.args.get("with_") and not _has_query(where, *(value for _, value in pairs)):
            try:
                condition = binder.condition(where, target.scope, "WHERE") if where is not None else None
                self._sets = tuple(
                    (position, assigned_value(value, position, target, target.scope, target.columns, binder)) for position, value in pairs
                )
                self._finder = RowFinder(condition, target, binder)
                return
            except NotEvaluableError:
                # The engine computes what the evaluator cannot.
                pass
        self._queried = self._plan_query(pairs, others, where, node)

    def _plan_query(
        self, pairs: Sequence[tuple[int, exp.Expr]], others: Sequence[exp.Expr], where: exp.Expr | None, node: exp.Update
    ) -> _QueriedRows:
        target = self.target
        computed = [(position, value) for position, value in pairs if not is_default(value)]
        queried = _QueriedRows(target, others, where, [value for _, value in computed], node, self._binder)
        sets: list[tuple[int, Compiled]] = []
        width = len(target.table.columns)
        for index, ((position, _), given) in enumerate(zip(computed, queried.output_columns)):
            column = target.table.columns[position]
            if column.identity is not None and column.identity.always:
                raise generated_always(column, "update")
            sets.append((position, _cast_at(width + index, assignment(given.type, column))))
        for position, value in pairs:
            if is_default(value) and target.table.columns[position].identity is None:
                default = compile_default(target, target.table.columns[position], self._binder)
                sets.append((position, default or (lambda row, parameters: None)))
        self._sets = tuple(sets)
        return queried

    def explain(self) -> list[str]:
        """Describe it for EXPLAIN."""
        return [f"Update on {self.target.table.name}", *_explain_rows(self._finder)]

    async def run(self, execution: Execution) -> Result:
        """Change the rows."""
        parameters, sets = execution.parameters, self._sets
        if self._finder is not None and not self._finder.is_point and self._returning is None and not self._moves_keys:
            return await self._update_in_place(self._finder, execution)
        if self._finder is not None:
            found = [(row, row) for row in await self._finder.rows(execution)]
        else:
            assert self._queried is not None, "one of the two"
            found = [(row, row + outputs) for row, outputs in await self._queried.rows(execution, self._binder)]
        changes: list[tuple[Row, Row]] = []
        for part in slices(found, len(sets) + len(self.target.table.columns)):
            for old, context in part:
                row = list(old)
                for position, value in sets:
                    row[position] = value(context, parameters)
                self._rules.check(row, parameters)
                changes.append((old, tuple(row)))
            await pause(part)
        await self._write(changes, execution)
        tag = f"UPDATE {len(changes)}"
        if self._returning is None:
            return Result(tag, row_count=len(changes))
        returned = [self._returning.row(new, parameters) for _, new in changes]
        return Result(tag, columns=self._returning.columns, rows=returned, row_count=len(returned))

    @property
    def _moves_keys(self) -> bool:
        return any(position in self.target.rows.key_positions for position, _ in self._sets)

    async def _update_in_place(self, finder: RowFinder, execution: Execution) -> Result:
        """Change rows whose keys stay, part by part."""
        rows, txn, parameters = self.target.rows, execution.txn, execution.parameters
        count = 0
        async with aclosing(finder.parts(execution)) as parts:
            async for part in parts:
                for old in part:
                    row = list(old)
                    for position, value in self._sets:
                        row[position] = value(old, parameters)
                    self._rules.check(row, parameters)
                    txn.put(rows.key(old), rows.value(tuple(row)))
                    if txn.is_full:
                        await execution.flush()
                count += len(part)
        return Result(f"UPDATE {count}", row_count=count)

    async def _write(self, changes: Sequence[tuple[Row, Row]], execution: Execution) -> None:
        rows, txn = self.target.rows, execution.txn
        if not self._moves_keys:
            for part in slices(changes, len(self.target.table.columns)):
                for old, new in part:
                    txn.put(rows.key(old), rows.value(new))
                    if txn.is_full:
                        await execution.flush()
                await pause(part)
            return
        keyed: list[tuple[bytes, bytes, Row]] = []
        for part in slices(changes, len(self.target.table.columns)):
            keyed += [(rows.key(old), rows.key(new), new) for old, new in part]
            await pause(part)
        gone = {old_key for old_key, new_key, _ in keyed}
        arriving = [new_key for old_key, new_key, _ in keyed if new_key not in gone]
        there = dict(zip(arriving, await txn.get(arriving)))
        seen: set[bytes] = set()
        for _, new_key, new in keyed:
            if new_key in seen or there.get(new_key) is not None:
                raise unique_violation(rows, [new[position] for position in rows.key_positions])
            seen.add(new_key)
        for keyed_part in slices(keyed, len(self.target.table.columns)):
            for old_key, _, _ in keyed_part:
                txn.delete(old_key)
                if txn.is_full:
                    await execution.flush()
            await pause(keyed_part)
        for keyed_part in slices(keyed, len(self.target.table.columns)):
            for _, new_key, new in keyed_part:
                txn.put(new_key, rows.value(new))
                if txn.is_full:
                    await execution.flush()
            await pause(keyed_part)


class DeletePlan:
    """A DELETE, bound."""

    is_writing = True
    is_reading = True

    def __init__(self, node: exp.Delete, binder: StatementBinder) -> None:
        refuse_clauses(node, "this", "using", "where", "returning", "with_")
        self._binder = binder
        self.target = target = binder.target(node.this)
        returning = node.args.get("returning")
        self._returning = Returning(returning, target, binder) if returning is not None else None
        where = node.args["where"].this if node.args.get("where") else None
        others = [source for first in node.args.get("using") or () for source in _sources(first)]
        self._finder: RowFinder | None = None
        self._queried: _QueriedRows | None = None
        if not others and not node.args.get("with_") and not _has_query(where):
            try:
                condition = binder.condition(where, target.scope, "WHERE") if where is not None else None
                self._finder = RowFinder(condition, target, binder)
                return
            except NotEvaluableError:
                # The engine computes what the evaluator cannot.
                pass
        self._queried = _QueriedRows(target, others, where, (), node, binder)

    def explain(self) -> list[str]:
        """Describe it for EXPLAIN."""
        return [f"Delete on {self.target.table.name}", *_explain_rows(self._finder)]

    async def run(self, execution: Execution) -> Result:
        """Delete the rows."""
        if self._finder is not None and not self._finder.is_point and self._returning is None:
            count = 0
            async with aclosing(self._finder.parts(execution)) as parts:
                async for part in parts:
                    await self._delete(part, execution)
                    count += len(part)
            return Result(f"DELETE {count}", row_count=count)
        if self._finder is not None:
            rows = await self._finder.rows(execution)
        else:
            assert self._queried is not None, "one of the two"
            rows = [row for row, _ in await self._queried.rows(execution, self._binder)]
        for part in slices(rows, len(self.target.rows.key_positions)):
            await self._delete(part, execution)
            await pause(part)
        tag = f"DELETE {len(rows)}"
        if self._returning is None:
            return Result(tag, row_count=len(rows))
        returned = [self._returning.row(row, execution.parameters) for row in rows]
        return Result(tag, columns=self._returning.columns, rows=returned, row_count=len(returned))

    async def _delete(self, rows: Sequence[Row], execution: Execution) -> None:
        txn = execution.txn
        for row in rows:
            txn.delete(self.target.rows.key(row))
            if txn.is_full:
                await execution.flush()


def _explain_rows(finder: RowFinder | None) -> list[str]:
    return finder.explain() if finder is not None else ["  -> Keys and new values by a query, then Point Gets"]


def _sources(first: exp.Expr) -> list[exp.Expr]:
    """Give the comma-separated items of FROM or USING; joins inside an item stay with it."""
    commas = [join.this for join in first.args.get("joins") or () if not _is_explicit(join)]
    if not commas:
        return [first]
    if len(commas) < len(first.args["joins"]):
        raise FeatureNotSupportedError("commas and JOIN together in FROM or USING are not supported here", position=position_of(first))
    alone = first.copy()
    alone.set("joins", None)
    return [alone, *commas]


def _is_explicit(join: exp.Join) -> bool:
    return any(join.args.get(name) for name in ("side", "kind", "method", "on", "using"))


def _has_query(*nodes: exp.Expr | None) -> bool:
    return any(node is not None and node.find(exp.Query, exp.Exists) is not None for node in nodes)


def _cast_at(index: int, cast: Any) -> Compiled:
    def value(row: Sequence[Datum], parameters: Sequence[Datum]) -> Datum:
        given = row[index]
        result: Datum = None if given is None else cast(given)
        return result

    return value


__all__ = ["DeletePlan", "RowFinder", "UpdatePlan"]
