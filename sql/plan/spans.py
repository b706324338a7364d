"""Key spans of a filter: which part of a primary index can hold rows that satisfy a conjunction of conditions.

    a = 1 AND b IN (2, 3) AND c > $1 AND d = 5     key (a, b, c, d)
    └ equal ┘ └── equal ─┘  └ range ┘  └ residual: behind a range a key column narrows nothing

Planning (once a text) and binding of values (once an execution) are apart: `key_access` reads the shape of the conditions, its
`KeyAccess.spans` computes the spans for the parameters at hand.

Invariants:
- Rows of a condition that was taken are exactly those in the spans; every other condition stays in the residual.
- Spans are disjoint and ascending.  A NULL value gives none.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import TypeAlias

import msgspec
from sqlglot import exp

from dsdb.sql.bind.bound import type_of
from dsdb.sql.errors import NumericOutOfRangeError
from dsdb.sql.evaluate import compile_scalar, is_evaluable
from dsdb.sql.ports import ColumnBound
from dsdb.sql.rows import TableRows, rows_of
from dsdb.sql.schema import TableDescriptor
from dsdb.sql.types import SqlType, TypeName
from dsdb.storage.datum import Datum
from dsdb.storage.errors import ValueRangeError
from dsdb.storage.keycodec import Bound
from dsdb.storage.keys import Span, point_span

SPANS_MAX = 4_096
"""Spans of one access: products of IN lists above it give up their last column."""

Value: TypeAlias = Callable[[Sequence[Datum], Sequence[Datum]], Datum]
"""A compiled scalar without columns: (no row, parameters) → datum."""


class _Limit(msgspec.Struct, frozen=True):
    value: Value
    inclusive: bool

    def bound(self, parameters: Sequence[Datum], column_type: SqlType) -> Bound:
        return Bound(_stored(self.value((), parameters), column_type), self.inclusive)


class KeyAccess(msgspec.Struct, frozen=True, kw_only=True):
    """How a conjunction narrows a primary index.

    equal: for each pinned key column, in key order, its possible values; lower, upper: of the next key column; is_point: all key
    columns are pinned, so that each combination is one row at most; residual: the conditions that remain; bounding: those of them
    that bound a column.
    """

    table: TableDescriptor
    equal: tuple[tuple[Value, ...], ...]
    lower: tuple[_Limit, ...]
    upper: tuple[_Limit, ...]
    residual: tuple[exp.Expr, ...]
    bounding: "tuple[_Condition, ...]" = ()

    @property
    def is_point(self) -> bool:
        """Say whether it pins whole keys."""
        return len(self.equal) == len(self.table.primary.columns)

    def prefixes(self, parameters: Sequence[Datum]) -> list[tuple[Datum, ...]]:
        """Give the combinations of the pinned columns' values, without those that hold a NULL; in no order, perhaps repeated."""
        choices = [[found for value in values if (found := value((), parameters)) is not None] for values in self.equal]
        return list(itertools.product(*choices))

    def bounds(self, parameters: Sequence[Datum]) -> tuple[ColumnBound, ...]:
        """Give bounds of columns beside the key's, which blocks of rows may be judged by; the conditions are tested all the same."""
        found = []
        for condition in self.bounding:
            column = self.table.columns[condition.position]
            values = [_boundable(value((), parameters), column.type) for value in condition.values]
            if any(value is None for value in values):
                continue
            least, most = min(values), max(values)  # type: ignore[type-var]  # all of the column's kind
            low = None if condition.operator.startswith("<") else least
            high = None if condition.operator.startswith(">") else most
            is_decimal = column.type.name is TypeName.DECIMAL
            sides = [str(side) if is_decimal and side is not None else side for side in (low, high)]
            found.append(ColumnBound(column.column_id, sides[0], sides[1], is_decimal))  # type: ignore[arg-type]  # int or str, as checked
        return tuple(found)

    def spans(self, parameters: Sequence[Datum]) -> tuple[Span, ...]:
        """Give the spans for these parameters.  Raises NumericOutOfRangeError on a value that no key can hold."""
        rows = rows_of(self.table)
        try:
            return tuple(sorted({span for prefix in self.prefixes(parameters) for span in self._below(rows, prefix, parameters)}))
        except ValueRangeError as error:
            raise NumericOutOfRangeError(f'a value compared with the primary key of table "{self.table.name}": {error}') from error

    def _below(self, rows: TableRows, prefix: tuple[Datum, ...], parameters: Sequence[Datum]) -> list[Span]:
        prefix = tuple(_stored(value, column.type) for value, column in zip(prefix, rows.key_columns()))
        if self.is_point:
            return [point_span(rows.key_codec.encode(prefix, rows.prefix))]
        if not self.lower and not self.upper:
            return [rows.key_codec.span_of_prefix(prefix, rows.prefix)]
        column_type = rows.key_columns()[len(prefix)].type
        spans = [rows.key_codec.span_between(prefix, limit.bound(parameters, column_type), None, rows.prefix) for limit in self.lower]
        spans += [rows.key_codec.span_between(prefix, None, limit.bound(parameters, column_type), rows.prefix) for limit in self.upper]
        narrowed = spans[0]
        for span in spans[1:]:
            narrowed = narrowed.clipped(span)
        return [] if narrowed.is_empty else [narrowed]


def key_access(table: TableDescriptor, conjuncts: Sequence[exp.Expr], columns: Mapping[str, int]) -> KeyAccess:
    """Read which bound conjuncts pin or bound a prefix of the primary key.

    columns: the position in `table.columns` of each engine name in the conjuncts that is a column of the table.
    """
    conditions = [_condition(conjunct, table, columns) for conjunct in conjuncts]
    taken: set[int] = set()
    equal: list[tuple[Value, ...]] = []
    lower: list[_Limit] = []
    upper: list[_Limit] = []
    combinations = 1
    for position in rows_of(table).key_positions:
        pinned = next((i for i, found in enumerate(conditions) if found and found.position == position and found.operator == "="), None)
        found = conditions[pinned] if pinned is not None else None
        if pinned is not None and found is not None and combinations * len(found.values) <= SPANS_MAX:
            taken.add(pinned)
            combinations *= len(found.values)
            equal.append(found.values)
            continue
        for index, bounding in enumerate(conditions):
            if bounding is not None and bounding.position == position and bounding.operator != "=":
                taken.add(index)
                limits = lower if bounding.operator.startswith(">") else upper
                limits.append(_Limit(bounding.values[0], bounding.operator.endswith("=")))
        break
    residual = tuple(conjunct for index, conjunct in enumerate(conjuncts) if index not in taken)
    rest = tuple(condition for index, condition in enumerate(conditions) if index not in taken and condition is not None)
    return KeyAccess(table=table, equal=tuple(equal), lower=tuple(lower), upper=tuple(upper), residual=residual, bounding=rest)


def spans_of(
    table: TableDescriptor, conjuncts: Sequence[exp.Expr], parameters: Sequence[Datum], columns: Mapping[str, int]
) -> tuple[tuple[Span, ...], tuple[exp.Expr, ...]]:
    """Give the spans of a conjunction for these parameters, and the conjuncts that the spans do not decide."""
    access = key_access(table, conjuncts, columns)
    return access.spans(parameters), access.residual


class _Condition(msgspec.Struct, frozen=True):
    """`column operator value`; `=` with several values is IN."""

    position: int
    operator: str
    values: tuple[Value, ...]


_OPERATORS: dict[type[exp.Expr], str] = {exp.EQ: "=", exp.LT: "<", exp.LTE: "<=", exp.GT: ">", exp.GTE: ">="}
_MIRRORED = {"=": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}


def _condition(conjunct: exp.Expr, table: TableDescriptor, columns: Mapping[str, int]) -> _Condition | None:
    if isinstance(conjunct, exp.Paren):
        return _condition(conjunct.this, table, columns)
    operator = _OPERATORS.get(type(conjunct))
    if operator is not None:
        sides = ((conjunct.this, operator, conjunct.expression), (conjunct.expression, _MIRRORED[operator], conjunct.this))
        for column, seen_from_it, value in sides:
            position = _column_position(column, columns)
            if position is not None and _is_comparable(value, table.columns[position].type):
                return _Condition(position, seen_from_it, (compile_scalar(value, {}),))
        return None
    if isinstance(conjunct, exp.In) and conjunct.expressions:
        position = _column_position(conjunct.this, columns)
        values = conjunct.expressions
        if position is not None and all(_is_comparable(value, table.columns[position].type) for value in values):
            return _Condition(position, "=", tuple(compile_scalar(value, {}) for value in values))
        return None
    if isinstance(conjunct, exp.Or):
        left, right = (_condition(side, table, columns) for side in (conjunct.this, conjunct.expression))
        if left and right and left.position == right.position and left.operator == right.operator == "=":
            return _Condition(left.position, "=", left.values + right.values)
    return None


def _column_position(node: exp.Expr, columns: Mapping[str, int]) -> int | None:
    """Give the table's column that a side is, seen through casts that keep value and order."""
    while isinstance(node, exp.Paren) or (isinstance(node, exp.Cast) and _keeps_order(type_of(node.this), type_of(node))):
        node = node.this
    return columns.get(node.name) if isinstance(node, exp.Column) else None


def _keeps_order(source: SqlType, target: SqlType) -> bool:
    if source.is_integer and target.is_integer:
        return target.name >= source.name
    if source.name is TypeName.REAL and target.name is TypeName.DOUBLE:
        return True
    if source.name is TypeName.DECIMAL and target.name is TypeName.DECIMAL:
        return target.precision is None
    texts = (TypeName.TEXT, TypeName.VARCHAR)
    return source == target or (source.name in texts and target.name in texts and target.length is None)


def _is_comparable(value: exp.Expr, column_type: SqlType) -> bool:
    """Say whether a side has no columns, can be computed here, and gives datums of the column's kind."""
    return value.find(exp.Column) is None and type_of(value).kind is column_type.kind and is_evaluable(value)


def _boundable(value: Datum, column_type: SqlType) -> Datum:
    """Give a value that blocks know bounds of, None for others: their order must be the one of SQL."""
    name = column_type.name
    if isinstance(value, bool) or (name is TypeName.DECIMAL and column_type.precision is None):
        return None
    if isinstance(value, Decimal):
        return value if value.is_finite() else None
    if isinstance(value, int):
        return value if column_type.is_integer or name in (TypeName.DATE, TypeName.TIMESTAMP, TypeName.TIMESTAMPTZ) else None
    return value if isinstance(value, str) and name in (TypeName.TEXT, TypeName.VARCHAR) else None


def _stored(value: Datum, column_type: SqlType) -> Datum:
    """Give a value as a key holds it: CHAR without the blanks that pad it."""
    return value.rstrip(" ") if column_type.name is TypeName.CHAR and isinstance(value, str) else value
