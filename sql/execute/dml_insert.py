"""INSERT: rows from VALUES or a query, completed by defaults and sequences, written by key.

    source (VALUES, literals, SELECT) ─▶ assign ─▶ defaults, identity ─▶ NOT NULL, CHECK ─▶ keys ─▶ insert │ ON CONFLICT ─▶ RETURNING

Invariants:
- Without ON CONFLICT no row is read: that a key is new is a condition of the commit.  In a transaction that goes on, keys are read.
- Two rows of one statement never have one key: 23505, or 21000 under DO UPDATE, or the second is skipped under DO NOTHING.

Not here: reading and rewriting rows that are there (`dml_update`).
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Protocol, TypeAlias

import trio
from sqlglot import exp

from dsdb.sql.bind.bound import datum_type
from dsdb.sql.bind.query_scope import QueryScope
from dsdb.sql.bind.query_state import refuse_clauses
from dsdb.sql.errors import (
    CardinalityViolationError,
    DatatypeMismatchError,
    FeatureNotSupportedError,
    GeneratedAlwaysError,
    InvalidColumnReferenceError,
    SqlSyntaxError,
    UndefinedObjectError,
)
from dsdb.sql.execute.binding import StatementBinder
from dsdb.sql.execute.result import Result
from dsdb.sql.execute.services import Execution
from dsdb.sql.execute.slices import SLICE_ROWS_MAX, pause, slices
from dsdb.sql.execute.target import Compiled, Returning, RowRules, Target, compile_default, unique_violation
from dsdb.sql.functions.casts import CastContext, cast_context, cast_function
from dsdb.sql.parse import ParsedStatement, position_of
from dsdb.sql.rows import Row
from dsdb.sql.schema import ColumnDescriptor, SequenceDescriptor
from dsdb.sql.text import parse_text
from dsdb.sql.types import TEXT, UNKNOWN, SqlType
from dsdb.storage.datum import Datum

DEFAULT = object()
"""In a source's row: the column's default."""

UPSERTED_ROWS_LOCKED_MAX = 64
"""ON CONFLICT DO UPDATE of so many rows locks them: a counter, not a load, for which queueing row by row would cost more than it saves."""

CHECKED_ROWS_MAX = 4_096
"""Keys that are looked at together before rows are inserted."""

SourceRow: TypeAlias = Sequence[Any]


class RowSource(Protocol):
    """Where the rows of an INSERT come from; values are of their columns' types already, or DEFAULT."""

    def parts(self, execution: Execution) -> AsyncGenerator[Sequence[SourceRow], None]:
        """Give all rows, some at a time; nothing is read once the first is given."""


class ValueRows:
    """VALUES: compiled expressions; None stands for DEFAULT."""

    def __init__(self, rows: Sequence[Sequence[Compiled | None]]) -> None:
        self._rows = rows

    async def parts(self, execution: Execution) -> AsyncGenerator[Sequence[SourceRow], None]:
        """Evaluate each expression."""
        parameters = execution.parameters
        rows: list[SourceRow] = []
        for part in slices(self._rows, len(self._rows[0])):
            rows += [[DEFAULT if value is None else value((), parameters) for value in row] for row in part]
            await pause(part)
        yield rows


class LiteralRows:
    """Rows of plain literals, as the bulk reader gives them."""

    def __init__(self, rows: Sequence[Row], columns: Sequence[ColumnDescriptor]) -> None:
        self._rows = rows
        self._columns = columns

    async def parts(self, execution: Execution) -> AsyncGenerator[Sequence[SourceRow], None]:
        """Convert each literal to its column's type, a column of a slice at a time."""
        width = len(self._columns)
        for row in self._rows:
            if len(row) != width:
                raise _wrong_width(len(row), width)
        rows: list[SourceRow] = []
        for part in slices(self._rows, width):
            rows += zip(*[_literals(column, values) for column, values in zip(self._columns, zip(*part))])
            await pause(part)
        yield rows


def _literals(column: ColumnDescriptor, values: Sequence[Datum]) -> list[Datum]:
    converters: dict[type, Callable[[Any], Datum]] = {type(None): lambda value: None}
    converted: list[Datum] = []
    for value in values:
        convert = converters.get(type(value))
        if convert is None:
            convert = converters[type(value)] = assignment(_literal_type(value), column)
        converted.append(convert(value))
    return converted


def _literal_type(value: Datum) -> SqlType:
    # The widest type of a Python type: the cast then checks each value.
    return datum_type(2**40) if type(value) is int and abs(value) < 2**62 else datum_type(value)


def assignment(source: SqlType, column: ColumnDescriptor) -> Callable[[Any], Any]:
    """Give the function that makes a (non-NULL) value of a type one of a column's.  Raises DatatypeMismatchError if there is none."""
    target = column.type
    if source.name is UNKNOWN.name:
        return lambda text: parse_text(text, target)
    context = cast_context(source, target)
    if context is None or context > CastContext.ASSIGNMENT:
        raise DatatypeMismatchError(
            f'column "{column.name}" is of type {SqlType(target.name)} but expression is of type {SqlType(source.name)}',
            hint="You will need to rewrite or cast the expression.",
        )
    return cast_function(source, target, explicit=False) or _same


def _same(value: Any) -> Any:
    return value


def _wrong_width(values: int, columns: int, node: exp.Expr | None = None) -> SqlSyntaxError:
    more = "expressions than target columns" if values > columns else "target columns than expressions"
    return SqlSyntaxError(f"INSERT has more {more}", position=position_of(node))


class QueryRows:
    """INSERT … SELECT: the query's rows, cast for assignment."""

    def __init__(self, query: Any, columns: Sequence[ColumnDescriptor], binder: StatementBinder) -> None:
        self._query = query
        self._binder = binder
        if len(query.columns) > len(columns):
            raise _wrong_width(len(query.columns), len(columns))
        self._casts = [assignment(given.type, column) for given, column in zip(query.columns, columns)]

    async def parts(self, execution: Execution) -> AsyncGenerator[Sequence[SourceRow], None]:
        """Run the query, then cast its rows."""
        casts = self._casts
        async with aclosing(self._binder.query_parts(self._query, execution)) as parts:
            async for found in parts:
                rows: list[SourceRow] = []
                for part in slices(found, len(casts)):
                    rows += [[None if value is None else cast(value) for cast, value in zip(casts, row)] for row in part]
                    await pause(part)
                yield rows

    async def rows(self, execution: Execution) -> list[SourceRow]:
        """Run the query and give all its rows."""
        return [row async for part in self.parts(execution) for row in part]


class _Identity:
    """A column that takes its value from a sequence."""

    def __init__(self, position: int, sequence: SequenceDescriptor, convert: Callable[[Any], Any]) -> None:
        self.position = position
        self.sequence = sequence
        self.convert = convert


class InsertPlan:
    """An INSERT, bound."""

    is_writing = True
    is_reading = True

    def __init__(self, statement: ParsedStatement, binder: StatementBinder) -> None:
        node = statement.tree
        assert isinstance(node, exp.Insert), node
        refuse_clauses(node, "this", "expression", "conflict", "returning", "default", "with_", "overriding")
        self.target, names = insert_target(node, binder)
        target, columns = self.target, self.target.table.columns
        source_positions = target.positions(names) if names else target.visible_positions()
        self._source, width = _source(statement, node, target, source_positions, binder)
        if names and width < len(source_positions):
            raise _wrong_width(width, len(source_positions), node.expression)
        self._source_positions = source_positions[:width]
        _refuse_generated(node, [columns[position] for position in self._source_positions], statement)
        given = set(self._source_positions)
        self._defaults = [
            (position, compile_default(target, column, binder)) for position, column in enumerate(columns) if column.identity is None
        ]
        self._absent = [(position, value) for position, value in self._defaults if position not in given and value is not None]
        self._default_by_position = dict(self._defaults)
        self._identities = [
            _Identity(position, binder.sequence(column.identity.sequence_id), assignment(_BIGINT, column))
            for position, column in enumerate(columns)
            if column.identity is not None
        ]
        self._absent_identities = [identity for identity in self._identities if identity.position not in given]
        self._rules = RowRules(target, binder)
        conflict = node.args.get("conflict")
        self._conflict = OnConflict(conflict, target, binder) if conflict is not None else None
        returning = node.args.get("returning")
        self._returning = Returning(returning, target, binder) if returning is not None else None
        self._width = len(columns)

    async def run(self, execution: Execution) -> Result:
        """Insert the rows."""
        parameters = execution.parameters
        count, written, seen = 0, list[Row](), set[bytes]()
        async with aclosing(self._source.parts(execution)) as parts:
            async for source in parts:
                rows = await self._complete(source, execution)
                for part in slices(rows, self._width):
                    for row in part:
                        self._rules.check(row, parameters)
                    await pause(part)
                if self._conflict is None:
                    inserted = await self._insert(rows, seen, execution)
                else:
                    inserted = await self._insert_or_update(self._conflict, rows, seen, execution)
                count += len(inserted)
                if self._returning is not None:
                    written += inserted
        tag = f"INSERT 0 {count}"
        if self._returning is None:
            return Result(tag, row_count=count)
        returned: list[Row] = []
        for written_part in slices(written, self._width):
            returned += [self._returning.row(row, parameters) for row in written_part]
            await pause(written_part)
        return Result(tag, columns=self._returning.columns, rows=returned, row_count=len(returned))

    def explain(self) -> list[str]:
        """Describe it for EXPLAIN."""
        how = {None: "a key that is there is an error", True: "a key that is there is skipped"}.get(
            None if self._conflict is None else self._conflict.updates is None, "a key that is there is updated"
        )
        return [f"Insert on {self.target.table.name}: {how}"]

    async def _complete(self, source: Sequence[SourceRow], execution: Execution) -> list[Row]:
        """Give whole rows: source values in their places, defaults and sequence values in the others."""
        rows: list[list[Any]] = []
        positions = self._source_positions
        for part in slices(source, self._width):
            for values in part:
                row: list[Any] = [None] * self._width
                for position, value in zip(positions, values):
                    row[position] = value
                for position, default in self._absent:
                    row[position] = default((), execution.parameters)
                rows.append(row)
            await pause(part)
        for identity in self._identities:
            wanted = rows
            if identity not in self._absent_identities:
                wanted = [row for row in rows if row[identity.position] is DEFAULT]
            if wanted:
                await self._number(identity, wanted, execution)
        for position, value_of in self._default_by_position.items():
            for row in rows:
                if row[position] is DEFAULT:
                    row[position] = None if value_of is None else value_of((), execution.parameters)
        return [tuple(row) for row in rows]

    async def _number(self, identity: _Identity, rows: Sequence[list[Any]], execution: Execution) -> None:
        """Give each row the next value of a sequence."""
        sequence = identity.sequence
        values = await execution.next_values(sequence, len(rows))
        for row, value in zip(rows, values):
            row[identity.position] = identity.convert(value)
        execution.session.sequence_values[sequence.sequence_id] = values[-1]
        execution.session.last_sequence = sequence.sequence_id

    async def _insert(self, rows: Sequence[Row], seen: set[bytes], execution: Execution) -> Sequence[Row]:
        """Insert rows.  seen: the keys of the statement's rows so far."""
        table_rows, txn = self.target.rows, execution.txn
        insert = txn.insert
        if execution.is_within:
            return await self._insert_absent(rows, execution)
        if len(rows) == 1 and not seen:
            key = table_rows.key(rows[0])
            seen.add(key)
            insert(key, table_rows.value(rows[0]))
            return rows
        for part in slices(rows, self._width):
            for row in part:
                key = table_rows.key(row)
                if key in seen:
                    raise unique_violation(table_rows, [row[position] for position in table_rows.key_positions])
                seen.add(key)
                insert(key, table_rows.value(row))
                if txn.is_full:
                    await execution.flush()
            await pause(part)
        return rows

    async def _insert_absent(self, rows: Sequence[Row], execution: Execution) -> Sequence[Row]:
        """Insert where the transaction goes on: a key that is there is told of now.  The keys count as read: who adds one conflicts."""
        table_rows, txn = self.target.rows, execution.txn
        written: dict[bytes, Row] = {}
        for part in slices(rows, self._width):
            for row in part:
                key = table_rows.key(row)
                if key in written:
                    raise unique_violation(table_rows, [row[position] for position in table_rows.key_positions])
                written[key] = row
            await pause(part)
        # All are looked at before the first is written: what is flushed would be found.
        keys = list(written)
        for begin in range(0, len(keys), CHECKED_ROWS_MAX):
            checked = keys[begin : begin + CHECKED_ROWS_MAX]
            for key, stored in zip(checked, await txn.get(checked)):
                if stored is not None:
                    raise unique_violation(table_rows, [written[key][position] for position in table_rows.key_positions])
        for part in slices(rows, self._width):
            for row in part:
                txn.put(table_rows.key(row), table_rows.value(row))
                if txn.is_full:
                    await execution.flush()
            await pause(part)
        return rows

    async def _insert_or_update(self, conflict: "OnConflict", rows: Sequence[Row], touched: set[bytes], execution: Execution) -> list[Row]:
        """Insert rows, or update those that are there.  touched: the keys of the statement's rows so far."""
        table_rows, txn = self.target.rows, execution.txn
        keys: list[bytes] = []
        for part in slices(rows, self._width):
            keys += [table_rows.key(row) for row in part]
            await pause(part)
        locks = conflict.updates is not None and len(keys) <= UPSERTED_ROWS_LOCKED_MAX
        there = dict(zip(keys, await (execution.get_to_change(keys) if locks else txn.get(keys))))
        written: list[Row] = []
        for number, (key, row) in enumerate(zip(keys, rows)):
            if number % SLICE_ROWS_MAX == SLICE_ROWS_MAX - 1:
                await trio.lowlevel.checkpoint()
            stored = there[key]
            if key in touched or stored is not None:
                if conflict.updates is None:
                    continue
                if key in touched:
                    raise CardinalityViolationError(
                        "ON CONFLICT DO UPDATE command cannot affect row a second time",
                        hint="Ensure that no rows proposed for insertion within the same command have duplicate constrained values.",
                    )
                assert stored is not None, key
                touched.add(key)
                changed = conflict.changed(table_rows.decode(stored), row, execution.parameters)
                if changed is None:
                    continue
                self._rules.check(changed, execution.parameters)
                await self._put_changed(key, changed, execution)
                written.append(changed)
                if txn.is_full:
                    await execution.flush()
                continue
            touched.add(key)
            # The key was read as absent: should it be there at the commit, the statement runs again and updates it.
            txn.put(key, table_rows.value(row))
            written.append(row)
            if txn.is_full:
                await execution.flush()
        return written

    async def _put_changed(self, key: bytes, row: Row, execution: Execution) -> None:
        table_rows, txn = self.target.rows, execution.txn
        new_key = table_rows.key(row)
        if new_key != key:
            [other] = await txn.get([new_key])
            if other is not None:
                raise unique_violation(table_rows, [row[position] for position in table_rows.key_positions])
            txn.delete(key)
        txn.put(new_key, table_rows.value(row))


_BIGINT = SqlType(datum_type(2**40).name)


class OnConflict:
    """ON CONFLICT on the primary key.  updates: what DO UPDATE sets, by position; None for DO NOTHING."""

    def __init__(self, node: exp.OnConflict, target: Target, binder: StatementBinder) -> None:
        refuse_clauses(node, "expressions", "action", "conflict_keys", "constraint", "where")
        self._check_target(node, target)
        self.updates: tuple[tuple[int, Compiled], ...] | None = None
        self._where: Compiled | None = None
        if node.args["action"].name.upper() == "DO NOTHING":
            return
        if not node.args.get("conflict_keys") and not node.args.get("constraint"):
            raise SqlSyntaxError(
                "ON CONFLICT DO UPDATE requires inference specification or constraint name",
                hint="For example, ON CONFLICT (column_name).",
                position=position_of(node),
            )
        scope, columns = target.with_excluded()
        pairs = assignments(node.expressions, target)
        self.updates = tuple((position, assigned_value(value, position, target, scope, columns, binder)) for position, value in pairs)
        where = node.args.get("where")
        if where is not None:
            self._where = binder.compiled(binder.condition(where.this, scope, "WHERE"), columns)

    @staticmethod
    def _check_target(node: exp.OnConflict, target: Target) -> None:
        constraint = node.args.get("constraint")
        if constraint is not None and constraint.name != target.table.primary.name:
            raise UndefinedObjectError(f'constraint "{constraint.name}" for table "{target.table.name}" does not exist')
        keys = [key.this if isinstance(key, exp.Ordered) else key for key in node.args.get("conflict_keys") or ()]
        if keys and {target.position(key.name, node=key) for key in keys} != set(target.rows.key_positions):
            raise InvalidColumnReferenceError("there is no unique or exclusion constraint matching the ON CONFLICT specification")

    def changed(self, old: Row, proposed: Row, parameters: Sequence[Datum]) -> Row | None:
        """Give the row that DO UPDATE makes, or None if its WHERE does not hold."""
        both = old + proposed
        if self._where is not None and self._where(both, parameters) is not True:
            return None
        row = list(old)
        for position, value in self.updates or ():
            row[position] = value(both, parameters)
        return tuple(row)


def insert_target(node: exp.Insert, binder: StatementBinder) -> tuple[Target, list[exp.Expr]]:
    """Give the table of an INSERT and its column list."""
    schema = node.this
    table_node = schema.this if isinstance(schema, exp.Schema) else schema
    return binder.target(table_node), list(schema.expressions) if isinstance(schema, exp.Schema) else []


def _source(
    statement: ParsedStatement, node: exp.Insert, target: Target, positions: Sequence[int], binder: StatementBinder
) -> tuple[RowSource, int]:
    """Give where the rows come from, and how many columns they have."""
    columns = [target.table.columns[position] for position in positions]
    if node.args.get("default"):
        return ValueRows([[]]), 0
    if statement.rows is not None:
        width = len(statement.rows[0])
        if width > len(columns):
            raise _wrong_width(width, len(columns))
        return LiteralRows(statement.rows, columns[:width]), width
    if isinstance(node.expression, exp.Values) and not node.args.get("with_") and _is_plain(node.expression):
        rows = [list(row.expressions) if isinstance(row, exp.Tuple) else [row] for row in node.expression.expressions]
        width = len(rows[0])
        for row in rows:
            if len(row) > len(columns):
                raise _wrong_width(len(row), len(columns), row[len(columns)])
            if len(row) != width:
                raise SqlSyntaxError("VALUES lists must all be the same length", position=position_of(row[0]))
        bound = [[_value(value, column, binder) for value, column in zip(row, columns)] for row in rows]
        if all(value is None or binder.is_evaluable(value) for row in bound for value in row):
            return ValueRows([[None if value is None else binder.compiled(value, {}) for value in row] for row in bound]), width
    query = binder.query(_typed(_with_ctes(node), columns))
    return QueryRows(query, columns, binder), len(query.columns)


def _is_plain(values: exp.Values) -> bool:
    return values.find(exp.Subquery, exp.Exists) is None


def _with_ctes(node: exp.Insert) -> exp.Expr:
    query: exp.Expr = node.expression
    if node.args.get("with_"):
        if query.args.get("with_"):
            raise SqlSyntaxError("WITH stands both before INSERT and in its query", position=position_of(node))
        query = query.copy()
        query.set("with_", node.args["with_"])
    return query


def _typed(query: exp.Expr, columns: Sequence[ColumnDescriptor]) -> exp.Expr:
    """Give quoted literals, NULLs and parameters that stand alone the types of their columns, as Postgres does for INSERT alone."""
    query = query.copy()
    rows = [row.expressions for row in query.expressions if isinstance(row, exp.Tuple)] if isinstance(query, exp.Values) else []
    if isinstance(query, exp.Select) and not any(item.find(exp.Star) for item in query.expressions):
        rows = [query.expressions]
    for row in rows:
        for item, column in zip(row, columns):
            value = item.this if isinstance(item, exp.Alias) else item
            is_open = isinstance(value, exp.Null | exp.Parameter) or (isinstance(value, exp.Literal) and value.is_string)
            if is_open:
                # Without a length or precision: the assignment that follows rounds or refuses.
                plain = TEXT if column.type.is_text else SqlType(column.type.name)
                to = exp.DataType.build(str(plain), dialect="postgres")
                value.replace(exp.Cast(this=value.copy(), to=to))
    return query


def is_default(node: exp.Expr) -> bool:
    """Say whether an expression is the word DEFAULT."""
    if isinstance(node, exp.Var):
        return node.name.upper() == "DEFAULT"
    return isinstance(node, exp.Column) and len(node.parts) == 1 and node.name == "default" and not node.this.args.get("quoted")


def _value(node: exp.Expr, column: ColumnDescriptor, binder: StatementBinder) -> exp.Expr | None:
    return None if is_default(node) else binder.assigned(node, QueryScope((), ()), column, "VALUES")


def _refuse_generated(node: exp.Insert, columns: Sequence[ColumnDescriptor], statement: ParsedStatement) -> None:
    """Refuse explicit values for GENERATED ALWAYS columns; DEFAULT alone may stand there."""
    for index, column in enumerate(columns):
        if column.identity is None or not column.identity.always:
            continue
        values = node.expression
        rows = values.expressions if isinstance(values, exp.Values) and statement.rows is None else ()
        cells = [row.expressions[index] if isinstance(row, exp.Tuple) else row for row in rows]
        if not cells or not all(is_default(cell) for cell in cells):
            raise generated_always(column, "insert a non-DEFAULT value into")


def generated_always(column: ColumnDescriptor, what: str) -> GeneratedAlwaysError:
    """Say that a column's value cannot be given."""
    return GeneratedAlwaysError(
        f'cannot {what} column "{column.name}"', detail=f'Column "{column.name}" is an identity column defined as GENERATED ALWAYS.'
    )


def assignments(nodes: Sequence[exp.Expr], target: Target) -> list[tuple[int, exp.Expr]]:
    """Give (position, expression) of each column that SET changes.  Raises UndefinedColumnError, SqlSyntaxError (a column twice)."""
    pairs: list[tuple[int, exp.Expr]] = []
    for node in nodes:
        if not isinstance(node, exp.EQ):
            raise SqlSyntaxError("SET takes column = expression", position=position_of(node))
        names: list[exp.Expr] = [node.this]
        values: list[exp.Expr] = [node.expression]
        if isinstance(node.this, exp.Tuple | exp.Paren):
            names = list(node.this.expressions) or [node.this.this]
            row = node.expression
            values = _values_of(row, len(names))
            if len(names) != len(values):
                raise SqlSyntaxError("number of columns does not match number of values", position=position_of(node))
        pairs += [(target.position(name.name, node=name), value) for name, value in zip(names, values)]
    positions = [position for position, _ in pairs]
    for position in positions:
        if positions.count(position) > 1:
            raise SqlSyntaxError(f'multiple assignments to same column "{target.table.columns[position].name}"')
    return pairs


def _values_of(row: exp.Expr, count: int) -> list[exp.Expr]:
    if isinstance(row, exp.Tuple):
        return list(row.expressions)
    return [row.this] if isinstance(row, exp.Paren) else _columns_of(row, count)


def _columns_of(row: exp.Expr, count: int) -> list[exp.Expr]:
    """Give one scalar sub-query for each of the `count` output columns of a sub-query."""
    if not isinstance(row, exp.Subquery):
        raise SqlSyntaxError("a row of expressions or a sub-query is wanted", position=position_of(row))
    outputs = row.this.expressions if isinstance(row.this, exp.Select) else []
    if outputs and len(outputs) != count and row.this.find(exp.Star) is None:
        raise SqlSyntaxError("number of columns does not match number of values", position=position_of(row))
    names = [f"column{number}" for number in range(1, count + 1)]
    parts: list[exp.Expr] = []
    for name in names:
        alias = exp.TableAlias(this=exp.to_identifier("row"), columns=[exp.to_identifier(each) for each in names])
        source = exp.Subquery(this=row.this.copy(), alias=alias)
        query = exp.Select(expressions=[exp.column(name, "row")], from_=exp.From(this=source))
        parts.append(exp.Subquery(this=query))
    return parts


def assigned_value(node: exp.Expr, position: int, target: Target, scope: QueryScope, columns: Any, binder: StatementBinder) -> Compiled:
    """Compile what SET gives a column."""
    column = target.table.columns[position]
    if column.identity is not None and column.identity.always and not is_default(node):
        raise generated_always(column, "update")
    if is_default(node) and column.identity is not None:
        raise FeatureNotSupportedError(
            f'SET "{column.name}" = DEFAULT is not supported: the column takes its values from a sequence', position=position_of(node)
        )
    if is_default(node):
        return compile_default(target, column, binder) or (lambda row, parameters: None)
    return binder.compiled(binder.assigned(node, scope, column, "UPDATE"), columns)
