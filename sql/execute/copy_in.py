"""COPY t FROM STDIN: rows that come with the statement, made whole and checked, then handed to `ingest`.

    batches ─▶ cast for assignment, a column at a time ─▶ defaults, sequences ─▶ NOT NULL, CHECK ─▶ Ingest

Invariants:
- An error names the row (counted from 1 as they came) and the column.
- The rows are read once: should others' changes make the statement start again, it is answered with 40001.
- It holds the catalogue only until its read timestamp is known: no change of another table waits for it, or disturbs it.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import trio
from sqlglot import exp

from dsdb.sql.errors import (
    DuplicateColumnError,
    InvalidDataError,
    NotNullViolationError,
    QueryCanceledError,
    SerializationError,
    SqlError,
    SqlSyntaxError,
)
from dsdb.sql.execute.binding import StatementBinder
from dsdb.sql.execute.dml_insert import assignment
from dsdb.sql.execute.ingest import open_ingest
from dsdb.sql.execute.inputs import InputStream
from dsdb.sql.execute.result import Result
from dsdb.sql.execute.services import Execution, find_table
from dsdb.sql.execute.slices import SLICE_ROWS_MAX
from dsdb.sql.execute.target import Compiled, RowRules, Target, compile_default
from dsdb.sql.given_tables import Columns
from dsdb.sql.parse_copy import CopyStatement
from dsdb.sql.ports import PortError
from dsdb.sql.ports_steering import ImportEnd, ImportJob
from dsdb.sql.rows import layout_column
from dsdb.sql.schema import ColumnDescriptor, SequenceDescriptor
from dsdb.sql.types import BIGINT, SqlType, TypeName
from dsdb.storage import rowarrow
from dsdb.storage.datum import Datum
from dsdb.storage.errors import ValueRangeError


class ColumnIntake:
    """Makes values of one column of what comes those of a column of the table."""

    def __init__(self, given: SqlType, column: ColumnDescriptor) -> None:
        self._given = given
        self._column = column
        self._layout = layout_column(0, column.type)
        self._arrow_type = rowarrow.arrow_type(self._layout)
        self._convert: Callable[[Any], Any] = assignment(given, column)

    def taken(self, array: pa.Array, first_row: int) -> pa.Array:
        """Give the array as the column has it.  Raises SqlError, with the row."""
        if array.null_count == len(array):
            return pa.nulls(len(array), self._arrow_type)
        found = self._in_bulk(array)
        return self._one_by_one(array, first_row) if found is None else found

    def _in_bulk(self, array: pa.Array) -> pa.Array | None:
        """Give the array, None if some value may need a closer look."""
        given, wanted = self._given, self._column.type
        is_text = (given.is_text and given.name is not TypeName.CHAR) or given.name is TypeName.UNKNOWN
        try:
            if is_text and wanted.name in (TypeName.TEXT, TypeName.VARCHAR):
                length = wanted.length
                # Of so few bytes it has no more characters.
                fits = length is None or any(pc.max(count(array)).as_py() <= length for count in (pc.binary_length, pc.utf8_length))
                return array if fits else None
            if given == wanted and wanted.name is not TypeName.CHAR:
                return array
            if (given.is_integer and wanted.is_integer) or (given.name is TypeName.REAL and wanted.name is TypeName.DOUBLE):
                return array.cast(self._arrow_type)
            is_exact = given.is_integer or (given.name is TypeName.DECIMAL and given.precision is not None)
            if wanted.precision is not None and is_exact and (given.scale or 0) <= (wanted.scale or 0):
                return array.cast(pa.decimal128(rowarrow.DECIMAL_PRECISION_MAX, wanted.scale or 0)).cast(self._arrow_type)
        except pa.ArrowInvalid:
            pass
        return None

    def _one_by_one(self, array: pa.Array, first_row: int) -> pa.Array:
        datums = rowarrow.array_to_datums(self._given.kind, array)
        converted: list[Datum] = []
        try:
            converted += (None if value is None else self._convert(value) for value in datums)
            return rowarrow.datums_to_arrow(self._layout, converted)
        except SqlError as error:
            raise _of_row(error, first_row + len(converted), self._column.name) from None
        except ValueRangeError as error:
            raise InvalidDataError(f'column "{self._column.name}": {error}') from None


def _of_row(error: SqlError, row: int, column: str | None) -> SqlError:
    """Say of an error which row, and column, it is about."""
    place = f"Row {row} of what was given" + (f', column "{column}".' if column is not None else ".")
    error.detail = place if error.detail is None else f"{place} {error.detail}"
    return error


class _Numbered:
    """A column that takes its value from a sequence."""

    def __init__(self, position: int, sequence: SequenceDescriptor, intake: ColumnIntake) -> None:
        self.position = position
        self.sequence = sequence
        self.intake = intake


class CopyPlan:
    """A COPY FROM STDIN, bound to the columns of what comes with it."""

    is_writing = True
    is_reading = True

    def __init__(self, statement: CopyStatement, binder: StatementBinder) -> None:
        stream = binder.session.inputs.stream
        if stream is None:
            raise SqlSyntaxError(
                "COPY … FROM STDIN came without rows", hint="Use cursor.copy, cursor.adbc_ingest, dsdb sql or dsdb import, which send them."
            )
        table = find_table(statement.table, binder.catalog, binder.session)
        self._target = Target(table, binder.database.name)
        self._database = binder.database.name
        self._positions = _positions(self._target, statement.columns, stream.columns)
        columns = table.columns
        self._intakes = [ColumnIntake(given, columns[at]) for at, (_, given) in zip(self._positions, stream.columns)]
        absent = [(at, column) for at, column in enumerate(columns) if at not in self._positions]
        self._defaults: list[tuple[int, Compiled | None]] = [
            (at, compile_default(self._target, column, binder)) for at, column in absent if column.identity is None
        ]
        self._numbered = [
            _Numbered(at, binder.sequence(column.identity.sequence_id), ColumnIntake(BIGINT, column))
            for at, column in absent
            if column.identity is not None
        ]
        self._rules = RowRules(self._target, binder) if table.checks else None
        self._required = [at for at, column in enumerate(columns) if not column.nullable]
        self._layouts = [layout_column(0, column.type) for column in columns]
        self._schema = pa.schema([pa.field(f"c{at}", rowarrow.arrow_type(layout)) for at, layout in enumerate(self._layouts)])

    def explain(self) -> list[str]:
        """Describe it for EXPLAIN."""
        return [f"Copy into {self._target.table.name}: a key that is there is an error"]

    async def run(self, execution: Execution) -> Result:
        """Read all rows, and write them."""
        stream = execution.session.inputs.stream
        assert stream is not None, "planned with it"
        if stream.is_begun:
            raise SerializationError(
                f'could not serialize access: rows of "{self._target.table.name}", or the table, were changed by another transaction',
                detail="The rows that came with the statement have been read.",
                hint="Give them again.",
            )
        transaction = execution.session.transaction
        assert transaction is not None, "it runs in a block"
        job = execution.services.steering.begin_import(f"COPY into {self._target.table.name} of database {self._database}")
        transaction.imports.append(job)
        try:
            with job.scope:
                count = await self._copied(stream, execution, job)
                return Result(f"COPY {count}", row_count=count)
        except (SqlError, PortError) as error:
            job.end(ImportEnd.FAILED, str(error))
            raise
        job.end(ImportEnd.CANCELLED, "CANCEL JOB")
        raise QueryCanceledError("canceling statement due to CANCEL JOB")

    async def _copied(self, stream: InputStream, execution: Execution, job: ImportJob) -> int:
        await execution.settle_catalog()
        row = 1
        batches: AsyncIterator[pa.RecordBatch] = stream.batches()
        async with aclosing(batches), open_ingest(self._target.rows, execution) as ingest:  # type: ignore[type-var]
            async for batch in batches:
                whole = await self._whole(batch, row, execution)
                self._check_required(whole, row)
                if self._rules is not None:
                    await self._check_rules(self._rules, whole, row, execution)
                await ingest.write(whole)
                row += batch.num_rows
                job.note(batch.num_rows)
            count = await ingest.finish()
        await job.settle()
        return count

    async def _whole(self, batch: pa.RecordBatch, first_row: int, execution: Execution) -> pa.RecordBatch:
        """Give whole rows of the table."""
        arrays: list[pa.Array | None] = [None] * len(self._layouts)
        for position, intake, array in zip(self._positions, self._intakes, batch.columns):
            arrays[position] = intake.taken(array, first_row)
            await trio.lowlevel.checkpoint()
        for position, default in self._defaults:
            arrays[position] = self._defaulted(position, default, batch.num_rows, execution)
        for numbered in self._numbered:
            values = await execution.next_values(numbered.sequence, batch.num_rows)
            arrays[numbered.position] = numbered.intake.taken(pa.array(values, pa.int64()), first_row)
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _defaulted(self, position: int, default: Compiled | None, rows: int, execution: Execution) -> pa.Array:
        if default is None:
            return pa.nulls(rows, self._schema.field(position).type)
        values = [default((), execution.parameters) for _ in range(rows)]
        return rowarrow.datums_to_arrow(self._layouts[position], values)

    def _check_required(self, rows: pa.RecordBatch, first_row: int) -> None:
        """Refuse NULLs where there must be none.  Raises NotNullViolationError."""
        for position in self._required:
            array = rows.column(position)
            if array.null_count:
                table, at = self._target.table, pc.index(array.is_null(), True).as_py()
                name = table.columns[position].name
                error = NotNullViolationError(
                    f'null value in column "{name}" of relation "{table.name}" violates not-null constraint',
                )
                raise _of_row(error, first_row + at, name)

    async def _check_rules(self, rules: RowRules, rows: pa.RecordBatch, first_row: int, execution: Execution) -> None:
        """Check each row.  Raises CheckViolationError."""
        for begin in range(0, rows.num_rows, SLICE_ROWS_MAX):
            part = rows.slice(begin, SLICE_ROWS_MAX)
            datums = [rowarrow.array_to_datums(layout.kind, array) for layout, array in zip(self._layouts, part.columns)]
            for at, row in enumerate(zip(*datums)):
                try:
                    rules.check(row, execution.parameters)
                except SqlError as error:
                    raise _of_row(error, first_row + begin + at, None) from None
            await trio.lowlevel.checkpoint()


def _positions(target: Target, names: Sequence[str], given: Columns) -> list[int]:
    """Give where each column of what comes stands in a row.  Raises UndefinedColumnError, DuplicateColumnError, SqlSyntaxError."""
    nodes = [exp.column(exp.to_identifier(name, quoted=True)) for name in names]
    positions = target.positions(nodes) if names else target.visible_positions()
    if len(positions) != len(given):
        what = "named" if names else f'that table "{target.table.name}" has'
        raise SqlSyntaxError(
            f"{len(given)} columns were given for the {len(positions)} {what}", hint="Name those that come: COPY t (a, b) …"
        )
    if len(set(positions)) < len(positions):
        raise DuplicateColumnError("a column is named twice")
    return positions
