"""CREATE TABLE: what its text says, as a descriptor that waits for ids.

Invariants:
- Every clause is read or refused.
- DEFAULT and CHECK are bound once here, so that a table with a broken one is never made.
"""

from collections.abc import Sequence

import msgspec
from sqlglot import exp

from dsdb.sql.bind.query_state import refuse_clauses
from dsdb.sql.errors import (
    DuplicateColumnError,
    FeatureNotSupportedError,
    InvalidParameterError,
    InvalidTableDefinitionError,
    ProgramLimitError,
    SqlSyntaxError,
    UndefinedColumnError,
    UndefinedObjectError,
)
from dsdb.sql.execute.binding import StatementBinder
from dsdb.sql.execute.sequence import OWNED_CACHE
from dsdb.sql.execute.target import RowRules, Target, compile_default
from dsdb.sql.parse import position_of
from dsdb.sql.parse_words import DESCENDING_MARK
from dsdb.sql.schema import (
    CheckDescriptor,
    ColumnDescriptor,
    IdentityKind,
    IndexColumn,
    IndexDescriptor,
    SequenceDescriptor,
    TableDescriptor,
)
from dsdb.sql.types import BIGINT, INT, SMALLINT, SqlType, TypeName

COLUMNS_MAX = 1_600
"""Columns of a table, as in Postgres."""
ROW_ID = "rowid"
"""Name of the hidden column that stands in for a missing primary key."""
_SERIAL = {"SERIAL": INT, "BIGSERIAL": BIGINT, "SMALLSERIAL": SMALLINT}
_NO_KINDS = "PRIMARY KEY, NOT NULL, NULL, DEFAULT, CHECK and GENERATED … AS IDENTITY"


class ColumnPlan(msgspec.Struct, kw_only=True):
    """A column as written.  sequence: its options, if it has one of its own."""

    descriptor: ColumnDescriptor
    is_always: bool = False
    sequence: SequenceDescriptor | None = None
    used_sequence: int | None = None


class TablePlan(msgspec.Struct, kw_only=True):
    """A table as written; ids of table and sequences are still 0."""

    name: str
    columns: list[ColumnPlan]
    key: list[tuple[str, bool]]
    key_name: str
    checks: list[CheckDescriptor]

    def descriptor(self, table_id: int, database_id: int, sequence_ids: Sequence[int]) -> TableDescriptor:
        """Give the descriptor, with the ids of the columns' own sequences in their order."""
        ids = iter(sequence_ids)
        columns = []
        for number, column in enumerate(self.columns, start=1):
            identity = IdentityKind(next(ids), column.is_always) if column.sequence is not None else None
            if column.used_sequence is not None:
                identity = IdentityKind(column.used_sequence)
            columns.append(msgspec.structs.replace(column.descriptor, column_id=number, identity=identity))
        by_name = {column.name: column.column_id for column in columns}
        return TableDescriptor(
            table_id=table_id,
            database_id=database_id,
            name=self.name,
            version=1,
            columns=tuple(columns),
            primary=IndexDescriptor(
                index_id=1, name=self.key_name, columns=tuple(IndexColumn(by_name[name], descending) for name, descending in self.key)
            ),
            checks=tuple(self.checks),
            next_column_id=len(columns) + 1,
            next_index_id=2,
        )


class _Reader:
    """Reads the elements of CREATE TABLE."""

    def __init__(self, name: str, binder: StatementBinder) -> None:
        self._binder = binder
        self.plan = TablePlan(name=name, columns=[], key=[], key_name=f"{name}_pkey", checks=[])
        self._unnamed_checks: list[tuple[str, exp.Expr]] = []
        self._has_key = False

    def read(self, elements: Sequence[exp.Expr]) -> TablePlan:
        """Give the table."""
        constraints: list[tuple[str | None, exp.Expr]] = []
        for element in elements:
            match element:
                case exp.ColumnDef():
                    constraints += self._column(element)
                case exp.Constraint():
                    constraints += [(element.this.name, part) for part in element.expressions]
                case _:
                    constraints.append((None, element))
        for name, constraint in constraints:
            self._constraint(name, constraint)
        if not self._has_key:
            self._add_row_id()
        if len(self.plan.columns) > COLUMNS_MAX:
            raise ProgramLimitError(f"tables can have at most {COLUMNS_MAX} columns")
        self._check_expressions()
        return self.plan

    def _column(self, node: exp.ColumnDef) -> list[tuple[str | None, exp.Expr]]:
        refuse_clauses(node, "this", "kind", "constraints")
        name = node.name
        if any(column.descriptor.name == name for column in self.plan.columns):
            raise DuplicateColumnError(f'column "{name}" specified more than once', position=position_of(node))
        if node.kind is None:
            raise SqlSyntaxError(f'column "{name}" has no type', position=position_of(node))
        serial = _SERIAL.get(node.kind.this.name if isinstance(node.kind.this, exp.DType) else "")
        column_type = serial or self._binder.type_named(node.kind)
        column = ColumnPlan(descriptor=ColumnDescriptor(column_id=0, name=name, type=column_type, nullable=serial is None))
        if serial is not None:
            column.sequence = self._own_sequence(name, column_type, None)
        self.plan.columns.append(column)
        later: list[tuple[str | None, exp.Expr]] = []
        for constraint in node.args.get("constraints") or ():
            constraint_name = constraint.this.name if constraint.args.get("this") else None
            self._column_constraint(column, constraint.kind, constraint_name, later)
        return later

    def _column_constraint(self, column: ColumnPlan, kind: exp.Expr, name: str | None, later: list[tuple[str | None, exp.Expr]]) -> None:
        column_name = column.descriptor.name
        match kind:
            case exp.NotNullColumnConstraint():
                is_null = bool(kind.args.get("allow_null"))
                if is_null and column.sequence is not None:
                    raise SqlSyntaxError(f'conflicting NULL/NOT NULL declarations for column "{column_name}" of table "{self.plan.name}"')
                column.descriptor = msgspec.structs.replace(column.descriptor, nullable=is_null)
            case exp.PrimaryKeyColumnConstraint():
                _refuse_index_options(kind, "desc", "options")
                later.append((name, exp.PrimaryKey(expressions=[exp.to_identifier(column_name, quoted=True)])))
            case exp.DefaultColumnConstraint():
                self._default(column, kind.this)
            case exp.CheckColumnConstraint():
                refuse_clauses(kind, "this")
                self._unnamed_checks.append((column_name, kind.this)) if name is None else self._add_check(name, kind.this)
            case exp.GeneratedAsIdentityColumnConstraint():
                self._identity(column, kind)
            case exp.UniqueColumnConstraint():
                raise _no_unique(kind)
            case exp.Reference():
                raise _no_reference(kind)
            case exp.CollateColumnConstraint() if kind.name.upper() in ("C", "POSIX", "DEFAULT"):
                pass
            case _:
                what = kind.sql(dialect="postgres")
                raise FeatureNotSupportedError(f'column constraint "{what}" is not supported', hint=f"Supported are {_NO_KINDS}.")

    def _default(self, column: ColumnPlan, node: exp.Expr) -> None:
        if column.sequence is not None or column.descriptor.default is not None or column.used_sequence is not None:
            raise SqlSyntaxError(f'multiple default values specified for column "{column.descriptor.name}" of table "{self.plan.name}"')
        sequence = self._binder.sequence_call(node)
        if sequence is not None:
            column.used_sequence = sequence.sequence_id
            return
        if not isinstance(node, exp.Null):
            column.descriptor = msgspec.structs.replace(column.descriptor, default=node.sql(dialect="postgres"))

    def _identity(self, column: ColumnPlan, kind: exp.Expr) -> None:
        refuse_clauses(kind, "this", "start", "increment", "minvalue", "maxvalue", "expression", "cycle")
        if kind.args.get("expression") is not None:
            raise FeatureNotSupportedError("generated columns are not supported", position=position_of(kind))
        if kind.args.get("cycle"):
            raise FeatureNotSupportedError("CYCLE is not supported", position=position_of(kind))
        if column.sequence is not None or column.descriptor.default is not None:
            raise SqlSyntaxError(f'both default and identity specified for column "{column.descriptor.name}" of table "{self.plan.name}"')
        if not column.descriptor.type.is_integer:
            raise InvalidParameterError("identity column type must be smallint, integer, or bigint")
        column.is_always = bool(kind.args.get("this"))
        column.descriptor = msgspec.structs.replace(column.descriptor, nullable=False)
        column.sequence = self._own_sequence(column.descriptor.name, column.descriptor.type, kind)

    def _own_sequence(self, column: str, column_type: SqlType, options: exp.Expr | None) -> SequenceDescriptor:
        limit = {TypeName.SMALLINT: 2**15 - 1, TypeName.INT: 2**31 - 1}.get(column_type.name, 2**63 - 1)
        name = f"{self.plan.name}_{column}_seq"
        return sequence_descriptor(name, options, maximum=limit, cache=OWNED_CACHE)

    def _constraint(self, name: str | None, node: exp.Expr) -> None:
        match node:
            case exp.PrimaryKey():
                _refuse_index_options(node, "expressions", "this", "options")
                self._primary_key(name, node)
            case exp.CheckColumnConstraint():
                refuse_clauses(node, "this")
                self._unnamed_checks.append(("", node.this)) if name is None else self._add_check(name, node.this)
            case exp.UniqueColumnConstraint():
                raise _no_unique(node)
            case exp.ForeignKey() | exp.Reference():
                raise _no_reference(node)
            case _:
                what = node.sql(dialect="postgres")
                raise FeatureNotSupportedError(f'"{what}" in CREATE TABLE is not supported', position=position_of(node))

    def _primary_key(self, name: str | None, node: exp.PrimaryKey) -> None:
        if self._has_key:
            raise InvalidTableDefinitionError(f'multiple primary keys for table "{self.plan.name}" are not allowed')
        self._has_key = True
        if name is not None:
            self.plan.key_name = name
        for part in node.expressions:
            descending = part.name.startswith(DESCENDING_MARK)
            column_name = part.name.removeprefix(DESCENDING_MARK)
            column = next((column for column in self.plan.columns if column.descriptor.name == column_name), None)
            if column is None:
                raise UndefinedColumnError(f'column "{column_name}" named in key does not exist', position=position_of(part))
            if any(column_name == other for other, _ in self.plan.key):
                raise DuplicateColumnError(f'column "{column_name}" appears twice in primary key constraint', position=position_of(part))
            column.descriptor = msgspec.structs.replace(column.descriptor, nullable=False)
            self.plan.key.append((column_name, descending))

    def _add_row_id(self) -> None:
        name = ROW_ID
        while any(column.descriptor.name == name for column in self.plan.columns):
            name += "_"
        hidden = ColumnDescriptor(column_id=0, name=name, type=BIGINT, nullable=False, hidden=True)
        self.plan.columns.append(ColumnPlan(descriptor=hidden, sequence=self._own_sequence(name, BIGINT, None)))
        self.plan.key.append((name, False))

    def _add_check(self, name: str, node: exp.Expr) -> None:
        if any(check.name == name for check in self.plan.checks):
            raise UndefinedObjectError(f'constraint "{name}" for relation "{self.plan.name}" already exists')
        self.plan.checks.append(CheckDescriptor(name=name, expression=node.sql(dialect="postgres")))

    def _check_expressions(self) -> None:
        """Name the unnamed CHECKs as Postgres does, and bind all stored expressions once."""
        for column_name, node in self._unnamed_checks:
            named = {part.name for part in node.find_all(exp.Column)}
            column = column_name or (named.pop() if len(named) == 1 else "")
            base = f"{self.plan.name}_{column}_check" if column else f"{self.plan.name}_check"
            taken = {check.name for check in self.plan.checks}
            name = next(name for number in range(len(taken) + 1) if (name := f"{base}{number or ''}") not in taken)
            self._add_check(name, node)
        sequences = [1] * sum(column.sequence is not None for column in self.plan.columns)
        target = Target(self.plan.descriptor(0, 0, sequences), self._binder.database.name)
        RowRules(target, self._binder)
        for described in target.table.columns:
            compile_default(target, described, self._binder)


def sequence_descriptor(name: str, options: exp.Expr | None, *, maximum: int = 2**63 - 1, cache: int = 1) -> SequenceDescriptor:
    """Give a sequence of these options (`START`, `INCREMENT`, `MINVALUE`, `MAXVALUE`, `CACHE`); ids are still 0."""

    def option(key: str) -> int | None:
        node = options.args.get(key) if options is not None else None
        if node is None or isinstance(node, bool):
            return None
        text = node.sql(dialect="postgres").replace(" ", "")
        if not text.lstrip("-").isdigit():
            raise SqlSyntaxError(f"{key.upper()} takes an integer", position=position_of(node))
        return int(text)

    increment = option("increment")
    increment = 1 if increment is None else increment
    if increment == 0:
        raise InvalidParameterError("INCREMENT must not be zero")
    least, most = option("minvalue"), option("maxvalue")
    least = least if least is not None else 1 if increment > 0 else -maximum - 1
    most = most if most is not None else maximum if increment > 0 else -1
    if least >= most:
        raise InvalidParameterError(f"MINVALUE ({least}) must be less than MAXVALUE ({most})")
    start = option("start")
    start = start if start is not None else least if increment > 0 else most
    if start < least:
        raise InvalidParameterError(f"START value ({start}) cannot be less than MINVALUE ({least})")
    if start > most:
        raise InvalidParameterError(f"START value ({start}) cannot be greater than MAXVALUE ({most})")
    taken = option("cache")
    if taken is not None and taken < 1:
        raise InvalidParameterError(f"CACHE ({taken}) must be greater than zero")
    return SequenceDescriptor(
        sequence_id=0, database_id=0, name=name, increment=increment, start=start, minimum=least, maximum=most, cache=taken or cache
    )


def _refuse_index_options(node: exp.Expr, *known: str) -> None:
    """Refuse what may follow PRIMARY KEY; the parser leaves empty marks of it."""
    for value in (node.args.get("include"), node.args.get("options")):
        if value and not (isinstance(value, exp.IndexParameters) and not any(value.args.values())):
            raise FeatureNotSupportedError("options of PRIMARY KEY are not supported", position=position_of(node))
    refuse_clauses(node, "include", *known)


def _no_unique(node: exp.Expr) -> FeatureNotSupportedError:
    return FeatureNotSupportedError(
        "UNIQUE constraints are not supported", hint="The primary key is the one unique constraint of a table.", position=position_of(node)
    )


def _no_reference(node: exp.Expr) -> FeatureNotSupportedError:
    return FeatureNotSupportedError("foreign keys are not supported", position=position_of(node))


def read_table(name: str, elements: Sequence[exp.Expr], binder: StatementBinder) -> TablePlan:
    """Read the elements of CREATE TABLE.  Raises what is wrong with them."""
    return _Reader(name, binder).read(elements)


__all__ = ["TablePlan", "read_table", "sequence_descriptor"]
