"""What plans ask of the binders, in one place: names to tables, expressions to compiled functions, queries to plans and rows.

Invariants:
- One StatementBinder binds one statement: its parameters' types are decided once, by whichever context needs one first.
"""

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import trio
from sqlglot import exp

from dsdb.sql.bind.bound import type_of
from dsdb.sql.bind.scalar import BindContext, CastContext, ParameterTypes, Scope, bind_scalar, coerce, coerce_condition
from dsdb.sql.bind.type_names import type_from
from dsdb.sql.catalog import Catalog
from dsdb.sql.errors import DatatypeMismatchError, FeatureNotSupportedError, UndefinedTableError
from dsdb.sql.evaluate import compile_scalar, is_evaluable
from dsdb.sql.execute.result import rows_of_batch
from dsdb.sql.execute.select import run_select
from dsdb.sql.execute.services import Execution, current_database, find_table, split_name, table_parts
from dsdb.sql.execute.session import SessionState
from dsdb.sql.execute.slices import SLICE_ROWS_MAX
from dsdb.sql.execute.system_rows import system_rows
from dsdb.sql.given_tables import by_key
from dsdb.sql.parse import position_of
from dsdb.sql.plan.select import SelectPlan, plan_select
from dsdb.sql.rows import Row
from dsdb.sql.schema import ColumnDescriptor, DatabaseDescriptor, SequenceDescriptor, TableDescriptor
from dsdb.sql.types import TEXT, UNKNOWN, SqlType

if TYPE_CHECKING:
    from dsdb.sql.execute.target import Compiled, Target

PART_ROWS_MAX = 4_096
"""Rows of a query that are gathered, but for what streams them, given at a time."""
HIDDEN_NAME = "row id of {name}"
"""What a hidden key column is called in the queries that look for rows to change; no statement's own name has its blanks by chance."""


class NotEvaluableError(FeatureNotSupportedError):
    """An expression that only the engine can compute."""


class StatementBinder:
    """Binds the parts of one statement."""

    def __init__(self, catalog: Catalog, session: SessionState, declared: Sequence[SqlType], parameter_count: int) -> None:
        self.catalog = catalog
        self.session = session
        self.database: DatabaseDescriptor = current_database(catalog, session)
        self.parameter_types = ParameterTypes(declared)
        self.parameter_count = parameter_count
        self.context = BindContext(
            parameters=self.parameter_types,
            parameter_count=parameter_count,
            given=by_key(session.inputs.tables),
            settings={
                "current_database": session.database,
                "current_catalog": session.database,
                "current_schema": "public",
                "current_user": session.user,
                "session_user": session.user,
                "user": session.user,
            },
        )

    def target(self, node: exp.Expr) -> "Target":
        """Give the table that a statement writes.  Raises UndefinedTableError, FeatureNotSupportedError."""
        from dsdb.sql.execute.target import Target

        if type(node) is not exp.Table or isinstance(node.this, exp.Func | exp.Parameter):
            raise FeatureNotSupportedError("only a table can be written to", position=position_of(node))
        alias = node.args.get("alias")
        table = find_table(table_parts(node), self.catalog, self.session, position=position_of(node))
        return Target(table, self.database.name, alias=alias.name if alias is not None else None)

    def sequence(self, sequence_id: int) -> SequenceDescriptor:
        """Give a sequence by id.  Raises UndefinedTableError."""
        found = self.catalog.sequence_by_id(sequence_id)
        if found is None:
            raise UndefinedTableError(f"sequence {sequence_id} does not exist")
        return found

    def sequence_named(self, parts: Sequence[str]) -> SequenceDescriptor:
        """Give a sequence by its dotted name.  Raises UndefinedTableError."""
        database, name = split_name(parts, self.catalog, self.session)
        found = self.catalog.sequence(database.database_id, name)
        if found is None:
            raise UndefinedTableError(f'relation "{".".join(parts)}" does not exist')
        return found

    def sequence_call(self, node: exp.Expr) -> SequenceDescriptor | None:
        """Give the sequence of `nextval('name')`, or None for any other expression."""
        while isinstance(node, exp.Paren):
            node = node.this
        if not isinstance(node, exp.Anonymous) or node.name != "nextval" or len(node.expressions) != 1:
            return None
        argument = node.expressions[0]
        if isinstance(argument, exp.Cast):
            argument = argument.this
        if not isinstance(argument, exp.Literal) or not argument.is_string:
            raise FeatureNotSupportedError("nextval takes a sequence's name in quotes", position=position_of(node))
        return self.sequence_named(name_parts(argument.this))

    def type_named(self, node: exp.DataType) -> SqlType:
        """Give the type that a column's declaration names.  Raises UndefinedObjectError, FeatureNotSupportedError."""
        return type_from(node)

    def scalar(self, node: exp.Expr, scope: Scope, clause: str) -> exp.Expr:
        """Bind an expression whose type nothing else decides."""
        bound = bind_scalar(node, scope, self.context.within(clause))
        return coerce(bound, TEXT) if type_of(bound).name is UNKNOWN.name else bound

    def condition(self, node: exp.Expr, scope: Scope, clause: str) -> exp.Expr:
        """Bind a condition."""
        return coerce_condition(bind_scalar(node, scope, self.context.within(clause)), clause)

    def assigned(self, node: exp.Expr, scope: Scope, column: ColumnDescriptor, clause: str) -> exp.Expr:
        """Bind what a column is given.  Raises DatatypeMismatchError if it cannot be."""
        bound = bind_scalar(node, scope, self.context.within(clause))
        try:
            return coerce(bound, column.type, CastContext.ASSIGNMENT)
        except DatatypeMismatchError:
            raise DatatypeMismatchError(
                f'column "{column.name}" is of type {SqlType(column.type.name)} but expression is of type {SqlType(type_of(bound).name)}',
                hint="You will need to rewrite or cast the expression.",
                position=position_of(node),
            ) from None

    def compiled(self, bound: exp.Expr, columns: Mapping[str, int]) -> "Compiled":
        """Compile a bound expression."""
        if not is_evaluable(bound):
            raise NotEvaluableError("this expression is only supported in queries", position=position_of(bound))
        return compile_scalar(bound, columns)

    def is_evaluable(self, bound: exp.Expr) -> bool:
        """Say whether a bound expression can be computed here, without the engine."""
        return is_evaluable(bound)

    def type_of(self, bound: exp.Expr) -> SqlType:
        """Give the type of a bound expression."""
        return type_of(bound)

    def query(self, node: exp.Expr, *, unhide: TableDescriptor | None = None) -> SelectPlan:
        """Plan a query; `unhide` is a table whose row id the query names (`key_names`)."""
        catalog = self.catalog if unhide is None or not _has_hidden(unhide) else _Unhidden(self.catalog, unhide)
        return plan_select(node, catalog, self.database.database_id, self.context)

    def key_names(self, target: "Target") -> list[str]:
        """Give the names by which a query with `unhide` calls the primary key's columns."""
        return [_shown(column).name for column in target.rows.key_columns()]

    async def query_rows(self, plan: SelectPlan, execution: Execution) -> list[Row]:
        """Run a query and gather its rows."""
        rows: list[Row] = []
        async for part in self.query_parts(plan, execution):
            rows += part
        return rows

    async def query_parts(self, plan: SelectPlan, execution: Execution) -> AsyncGenerator[list[Row], None]:
        """Run a query to its end, as columns, then give its rows some at a time: who writes between two parts is not read."""
        services = execution.services
        virtual_rows = partial(system_rows, execution)
        given = execution.session.inputs.tables
        result = await run_select(plan, execution.parameters, execution.txn, services.runner, services.engine, virtual_rows, given)
        if result.rows is not None:
            yield result.rows
            return
        batches = [] if result.batches is None else [batch async for batch in result.batches]
        batches.reverse()
        while batches:
            # What was given is not kept.
            batch = batches.pop()
            for begin in range(0, batch.num_rows, PART_ROWS_MAX):
                part: list[Row] = []
                for at in range(begin, min(begin + PART_ROWS_MAX, batch.num_rows), SLICE_ROWS_MAX):
                    size = min(SLICE_ROWS_MAX, begin + PART_ROWS_MAX - at)
                    part += rows_of_batch(batch.slice(at, size), result.columns)
                    await trio.lowlevel.checkpoint()
                yield part


def name_parts(text: str) -> tuple[str, ...]:
    """Cut the text of a dotted name, as regclass reads it: parts are folded unless they are quoted."""
    parts: list[str] = []
    for quoted, plain in re.findall(r'"((?:[^"]|"")*)"|([^."]+)', text.strip()):
        parts.append(quoted.replace('""', '"') if quoted else plain.strip().lower())
    return tuple(parts) or ("",)


def _has_hidden(table: TableDescriptor) -> bool:
    return any(column.hidden for column in table.columns)


def _shown(column: ColumnDescriptor) -> ColumnDescriptor:
    return msgspec.structs.replace(column, hidden=False, name=HIDDEN_NAME.format(name=column.name)) if column.hidden else column


class _Unhidden(Catalog):
    """A catalogue in which one table's row id can be named."""

    def __init__(self, catalog: Catalog, table: TableDescriptor) -> None:
        self.__dict__.update(catalog.__dict__)
        self._catalog = catalog
        self._table = msgspec.structs.replace(table, columns=tuple(map(_shown, table.columns)))

    def table(self, database_id: int, name: str) -> TableDescriptor | None:
        """Give a table by its exact name."""
        found = self._catalog.table(database_id, name)
        return self._table if found is not None and found.table_id == self._table.table_id else found
