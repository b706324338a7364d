"""Runs planned queries: leaf stages where the rows lie, then the gateway's query over what they gave.

    streaming     leaf ══ batches ══▶ result                         the leaf's query is the whole query
    gathering     leaves ══▶ tables t1, t2, … ─▶ engine ─▶ result    leaves at once, or behind others' keys; bounded in bytes
                  virtual tables ─┤                                  before them
                  given tables ───┘                                  there already

Invariants:
- A result's batches have exactly the schema of its columns.
- Closing a result's batches early stops its leaves.
- A query that gathers has read everything before `run_select` returns: its transaction's reads are then known.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import trio

from dsdb.sql.errors import OutOfMemoryError
from dsdb.sql.execute.engine import QueryEngine
from dsdb.sql.execute.result import Result, ResultColumn, arrow_schema, batch_of_rows
from dsdb.sql.execute.waiting import join_keys, waiting_leaves
from dsdb.sql.given_tables import GivenTable
from dsdb.sql.plan.select import GivenInput, LeafPlan, SelectPlan
from dsdb.sql.plan.stages import gateway_sql, leaf_schema, leaf_stage, row_count
from dsdb.sql.ports import LeafStage, StageReport, StageRunner, Transaction
from dsdb.sql.rows import Row
from dsdb.sql.types import NUMERIC
from dsdb.storage.datum import Datum

STREAMED_BATCH_ROWS = 16_384
"""Rows of a batch of a result that the gateway computed."""

class QueryReport:
    """What became known of a query while it ran, for EXPLAIN ANALYZE: its stages by input name, and the gateway's own query."""

    def __init__(self) -> None:
        self.stages: dict[str, StageReport] = {}
        self.gathered_rows: dict[str, int] = {}
        self.gathered_bytes = 0
        self.engine_s = 0.0

    def stage(self, name: str) -> StageReport:
        """Give a stage's report, to be filled."""
        return self.stages.setdefault(name, StageReport())


VirtualRows: TypeAlias = Callable[[str], Awaitable[Sequence[Row]]]
"""Gives all rows of a virtual table, by its name."""


async def run_select(
    plan: SelectPlan,
    parameters: Sequence[Datum],
    txn: Transaction,
    runner: StageRunner,
    engine: QueryEngine,
    virtual_rows: VirtualRows | None = None,
    given: Sequence[GivenTable] = (),
    report: QueryReport | None = None,
) -> Result:
    """Run a planned query.

    parameters: the statement's, and the statement values behind them (`STATEMENT_VALUES`); virtual_rows: gives the rows of the virtual
    tables, if the plan reads some; given: the tables that came with the statement; report: is told what was done.

    Raises SqlError's; of a streaming plan those of its leaf come from the batches.
    """
    if plan.gateway is None:
        return _streamed(plan, parameters, txn, runner, report)
    table = await run_table(plan, parameters, txn, runner, engine, virtual_rows, given, report)
    return Result("SELECT", columns=plan.columns, batches=_batches_of(table), row_count=table.num_rows)


async def run_table(
    plan: SelectPlan,
    parameters: Sequence[Datum],
    txn: Transaction,
    runner: StageRunner,
    engine: QueryEngine,
    virtual_rows: VirtualRows | None = None,
    given: Sequence[GivenTable] = (),
    report: QueryReport | None = None,
) -> pa.Table:
    """Run a planned query to its end; give all rows as a table of `arrow_schema(plan.columns)`."""
    if plan.gateway is None:
        result = _streamed(plan, parameters, txn, runner, report)
        assert result.batches is not None, "a streaming plan gives batches"
        return pa.Table.from_batches([batch async for batch in result.batches], arrow_schema(plan.columns))
    sql = gateway_sql(plan, parameters)
    inputs = await _virtual_inputs(plan, virtual_rows)
    inputs |= {use.input_name: _given_rows(use, given[use.place]) for use in plan.given}
    inputs |= await _gather(plan, parameters, txn, runner, engine.exchange_bytes_max, report)
    begun = time.perf_counter()
    table = await engine.run(sql, inputs)
    if report is not None:
        report.engine_s = time.perf_counter() - begun
        report.gathered_rows = {name: given_rows.num_rows for name, given_rows in inputs.items()}
        report.gathered_bytes = sum(given_rows.nbytes for given_rows in inputs.values())
    schema = arrow_schema(plan.columns)
    return pa.Table.from_arrays(
        [_as_result(array, column, field.type) for array, column, field in zip(table.columns, plan.columns, schema)], schema=schema
    )


async def _virtual_inputs(plan: SelectPlan, virtual_rows: VirtualRows | None) -> dict[str, pa.Table]:
    """Gather the virtual tables, each once, however often the query uses it."""
    rows: dict[str, Sequence[Row]] = {}
    inputs = {}
    for virtual in plan.virtual:
        assert virtual_rows is not None, "who runs a query over virtual tables gives their rows"
        name = virtual.table.name
        if name not in rows:
            rows[name] = await virtual_rows(name)
        columns = [ResultColumn(engine_name, virtual.table.columns[position].type) for engine_name, position in virtual.columns]
        taken = [tuple([row[position] for _, position in virtual.columns]) for row in rows[name]]
        inputs[virtual.input_name] = pa.Table.from_batches([batch_of_rows(taken, columns)])
    return inputs


def _given_rows(use: GivenInput, given: GivenTable) -> pa.Table:
    table = given.table
    return pa.Table.from_arrays([table.column(at) for _, at in use.columns], [name for name, _ in use.columns])


async def _batches_of(table: pa.Table) -> AsyncIterator[pa.RecordBatch]:
    for batch in table.to_batches(max_chunksize=STREAMED_BATCH_ROWS):
        yield batch


async def _gather(
    plan: SelectPlan,
    parameters: Sequence[Datum],
    txn: Transaction,
    runner: StageRunner,
    bytes_max: int,
    report: QueryReport | None,
) -> dict[str, pa.Table]:
    """Run the leaves, all at once but for those that wait for others' keys, and collect what they give.

    Raises OutOfMemoryError beyond `bytes_max`.
    """
    stages = {leaf.input_name: leaf_stage(leaf, parameters) for leaf in plan.leaves}
    waits = waiting_leaves(plan, {name: runner.seen_rows(stage.scan.spans) for name, stage in stages.items()})
    done = {leaf.input_name: trio.Event() for leaf in plan.leaves}
    gathered: dict[str, pa.Table] = {}
    failures: list[Exception] = []
    size = 0

    async def gather_one(leaf: LeafPlan) -> None:
        nonlocal size
        schema = leaf_schema(leaf)
        batches: list[pa.RecordBatch] = []
        told = None if report is None else report.stage(leaf.input_name)
        stage = stages[leaf.input_name]
        try:
            for edge in waits.get(leaf.input_name, ()):
                await done[edge.source].wait()
            keys = join_keys(waits.get(leaf.input_name, ()), gathered)
            if keys:
                stage = leaf_stage(leaf, parameters, keys=keys)
            async with contextlib.aclosing(runner.run(stage, txn, told)) as stream:  # type: ignore[type-var]
                async for batch in stream:
                    size += batch.nbytes
                    if size > bytes_max:
                        raise OutOfMemoryError("the query gathers more rows at its gateway than fit the memory allowed for them")
                    batches.append(batch.cast(schema) if batch.schema != schema else batch)
        except Exception as error:  # the root of a task: handed to whoever waits, unwrapped
            failures.append(error)
            nursery.cancel_scope.cancel()
            return
        gathered[leaf.input_name] = pa.Table.from_batches(batches, schema)
        done[leaf.input_name].set()

    async with trio.open_nursery() as nursery:
        for leaf in plan.leaves:
            if not stages[leaf.input_name].scan.spans:
                gathered[leaf.input_name] = leaf_schema(leaf).empty_table()
                done[leaf.input_name].set()
                continue
            nursery.start_soon(gather_one, leaf)
    if failures:
        raise failures[0]
    return gathered


def _streamed(plan: SelectPlan, parameters: Sequence[Datum], txn: Transaction, runner: StageRunner, report: QueryReport | None) -> Result:
    limit = row_count(plan.limit, parameters, "LIMIT")
    offset = row_count(plan.offset, parameters, "OFFSET") or 0
    leaf = plan.leaves[0]
    stage = leaf_stage(leaf, parameters, limit=None if limit is None else limit + offset)
    told = None if report is None else report.stage(leaf.input_name)
    return Result("SELECT", columns=plan.columns, batches=_stream(plan, stage, txn, runner, limit, offset, told))


async def _stream(
    plan: SelectPlan, stage: LeafStage, txn: Transaction, runner: StageRunner, limit: int | None, offset: int, report: StageReport | None
) -> AsyncIterator[pa.RecordBatch]:
    """Give the leaf's batches with the columns and rows of the result."""
    schema = arrow_schema(plan.columns)
    if limit == 0 or not stage.scan.spans:
        return
    async with contextlib.aclosing(runner.run(stage, txn, report)) as stream:  # type: ignore[type-var]
        async for batch in stream:
            rows = batch.slice(offset)
            offset -= batch.num_rows - rows.num_rows
            if limit is not None:
                rows = rows.slice(0, limit)
                limit -= rows.num_rows
            if rows.num_rows:
                yield _result_batch(rows, plan, stage, schema)
            if limit == 0:
                return


def _result_batch(batch: pa.RecordBatch, plan: SelectPlan, stage: LeafStage, schema: pa.Schema) -> pa.RecordBatch:
    arrays = batch.columns
    if stage.sql is None:
        # The scan gives its columns in its own order, each once.
        arrays = [batch.column(output.this.name) for output in plan.leaves[0].outputs or ()]
    return pa.RecordBatch.from_arrays(
        [_as_result(array, column, field.type) for array, column, field in zip(arrays, plan.columns, schema)], schema=schema
    )


def _as_result(array: pa.Array | pa.ChunkedArray, column: ResultColumn, wanted: pa.DataType) -> pa.Array | pa.ChunkedArray:
    """Give an array of the engine's as one of the result's type.  The engine's type is the bound one, up to its width."""
    if array.type == wanted:
        return array
    if column.type == NUMERIC and pa.types.is_decimal(array.type):
        return _plain_spelling(array)
    return array.cast(wanted)


def _plain_spelling(array: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Spell decimals out, without zeros at the end: the engine knows one scale for all."""
    spelled = pa.array([None if value is None else format(value, "f") for value in array.to_pylist()], pa.string())
    has_point = pc.match_substring(spelled, ".")
    return pc.if_else(has_point, pc.utf8_rtrim(pc.utf8_rtrim(spelled, "0"), "."), spelled)
