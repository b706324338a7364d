"""Changes of the catalogue: databases, tables, sequences; each by a transaction of its own, or as part of the open one (`catalog_draft`).

Invariants:
- A DDL, or the COMMIT of its transaction, returns when every node uses what it made (`catalog_lease`): the next statement, anywhere,
  sees it.
- Names are checked in the transaction that takes them.
- DROP and TRUNCATE name what may be removed (`system_key("garbage", …)`) in the commit after which nobody can read it.

Not here: what CREATE TABLE says (`ddl_table`).
"""

from collections.abc import Awaitable, Callable, Sequence

import msgspec
from sqlglot import exp

from dsdb.sql.bind.query_state import refuse_clauses
from dsdb.sql.catalog import Catalog, CatalogEditor
from dsdb.sql.errors import (
    DuplicateDatabaseError,
    DuplicateTableError,
    FeatureNotSupportedError,
    InvalidCatalogNameError,
    ObjectInUseError,
    SqlSyntaxError,
    UndefinedTableError,
    WrongObjectTypeError,
)
from dsdb.sql.execute.binding import StatementBinder
from dsdb.sql.execute.ddl_table import TablePlan, read_table, sequence_descriptor
from dsdb.sql.execute.dml_insert import QueryRows
from dsdb.sql.execute.result import Notice, Result
from dsdb.sql.execute.services import Execution, find_table, split_name, table_parts
from dsdb.sql.execute.target import Target
from dsdb.sql.parse import CreateDatabaseStatement, DropDatabaseStatement, TruncateStatement, position_of
from dsdb.sql.schema import DEFAULT_DATABASE, DatabaseDescriptor, SequenceDescriptor, TableDescriptor
from dsdb.sql.types import TEXT, TypeName

Edit = Callable[[CatalogEditor], Awaitable[tuple[Notice, ...]]]
"""Changes the catalogue, and gives notices."""


class DdlPlan:
    """A change of the catalogue, and its tag."""

    is_writing = False
    is_reading = False

    def __init__(self, tag: str, edit: Callable[[Execution], Edit]) -> None:
        self._tag = tag
        self._edit = edit

    async def run(self, execution: Execution) -> Result:
        """Make the change."""
        catalogs, edit = execution.services.catalogs, self._edit(execution)
        if execution.is_within:
            editor = CatalogEditor(execution.catalog, catalogs.take_id)
            notices = await edit(editor)
            execution.note_edited(editor)
        else:
            execution.release_catalog()
            notices = await catalogs.change(edit, committed=execution.session.note_commit)
        return Result(self._tag, notices=notices)


def plan_create(node: exp.Create, binder: StatementBinder) -> "DdlPlan | CreateTableAsPlan":
    """Bind CREATE TABLE or CREATE SEQUENCE.  Raises FeatureNotSupportedError for what else there is."""
    kind = str(node.args.get("kind"))
    if kind == "SEQUENCE":
        return _plan_create_sequence(node, binder)
    if kind != "TABLE":
        raise FeatureNotSupportedError(f"CREATE {kind} is not supported", position=position_of(node))
    if node.args.get("properties"):
        what = "options of CREATE TABLE (TEMP, WITH, PARTITION BY, …)"
        raise FeatureNotSupportedError(f"{what} are not supported", position=position_of(node))
    refuse_clauses(node, "this", "kind", "exists", "expression")
    schema = node.this
    table_node = schema.this if isinstance(schema, exp.Schema) else schema
    _, name = split_name(table_parts(table_node), binder.catalog, binder.session)
    if_not_exists = bool(node.args.get("exists"))
    if node.expression is not None and not isinstance(node.expression, exp.Schema):
        return CreateTableAsPlan(name, schema, node.expression, if_not_exists, binder)
    if not isinstance(schema, exp.Schema):
        raise SqlSyntaxError("CREATE TABLE takes a list of columns", position=position_of(node))
    plan = read_table(name, schema.expressions, binder)
    return DdlPlan("CREATE TABLE", lambda execution: _creating(plan, binder.database.database_id, if_not_exists))


def _creating(plan: TablePlan, database_id: int, if_not_exists: bool) -> Edit:
    async def edit(editor: CatalogEditor) -> tuple[Notice, ...]:
        if _is_taken(editor.catalog, database_id, plan.name):
            if if_not_exists:
                return (_is_there(plan.name),)
            raise DuplicateTableError(f'relation "{plan.name}" already exists')
        table_id = await editor.new_id()
        own = [column.sequence for column in plan.columns if column.sequence is not None]
        ids = [await editor.new_id() for _ in own]
        taken: set[str] = {plan.name}
        for sequence_id, sequence in zip(ids, own):
            name = _free_name(editor.catalog, database_id, sequence.name, taken)
            taken.add(name)
            editor.add_sequence(
                msgspec.structs.replace(sequence, sequence_id=sequence_id, database_id=database_id, name=name, owner_table_id=table_id)
            )
        editor.add_table(plan.descriptor(table_id, database_id, ids))
        return ()

    return edit


def _is_there(name: str) -> Notice:
    return Notice(f'relation "{name}" already exists, skipping', DuplicateTableError.sqlstate)


def _is_taken(catalog: Catalog, database_id: int, name: str) -> bool:
    return catalog.table(database_id, name) is not None or catalog.sequence(database_id, name) is not None


def _free_name(catalog: Catalog, database_id: int, base: str, taken: set[str]) -> str:
    number, name = 0, base
    while name in taken or _is_taken(catalog, database_id, name):
        number += 1
        name = f"{base}{number}"
    return name


def _plan_create_sequence(node: exp.Create, binder: StatementBinder) -> DdlPlan:
    refuse_clauses(node, "this", "kind", "exists", "properties")
    _, name = split_name(table_parts(node.this), binder.catalog, binder.session)
    properties = node.args["properties"].expressions if node.args.get("properties") else []
    options = properties[0] if properties else None
    if len(properties) > 1 or (options is not None and not isinstance(options, exp.SequenceProperties)):
        raise FeatureNotSupportedError("these options of CREATE SEQUENCE are not supported", position=position_of(node))
    if options is not None:
        refuse_clauses(options, "start", "increment", "minvalue", "maxvalue", "cache", "options")
        for option in options.args.get("options") or ():
            if option.name.upper() not in ("NO CYCLE", "NO MINVALUE", "NO MAXVALUE"):
                raise FeatureNotSupportedError(f"{option.name} is not supported here", position=position_of(node))
    sequence = sequence_descriptor(name, options)
    database_id, if_not_exists = binder.database.database_id, bool(node.args.get("exists"))

    async def edit(editor: CatalogEditor) -> tuple[Notice, ...]:
        if _is_taken(editor.catalog, database_id, name):
            if if_not_exists:
                return (_is_there(name),)
            raise DuplicateTableError(f'relation "{name}" already exists')
        editor.add_sequence(msgspec.structs.replace(sequence, sequence_id=await editor.new_id(), database_id=database_id))
        return ()

    return DdlPlan("CREATE SEQUENCE", lambda execution: edit)


class CreateTableAsPlan:
    """CREATE TABLE … AS: the table and its rows, in the open transaction: a statement alone gets one of its own."""

    is_writing = True
    is_reading = True

    def __init__(self, name: str, schema: exp.Expr, query: exp.Expr, if_not_exists: bool, binder: StatementBinder) -> None:
        self._binder = binder
        self._if_not_exists = if_not_exists
        self._query = binder.query(query)
        names = [part.name for part in schema.expressions] if isinstance(schema, exp.Schema) else []
        if len(names) > len(self._query.columns):
            raise SqlSyntaxError("too many column names were specified", position=position_of(schema))
        names += [column.name for column in self._query.columns[len(names) :]]
        elements: list[exp.Expr] = [
            exp.ColumnDef(this=exp.to_identifier(name, quoted=True), kind=exp.DataType(this=exp.DType.TEXT)) for name in names
        ]
        self._plan = read_table(name, elements, binder)
        for column, given in zip(self._plan.columns, self._query.columns):
            type_ = TEXT if given.type.name is TypeName.UNKNOWN else given.type
            column.descriptor = msgspec.structs.replace(column.descriptor, type=type_)

    async def run(self, execution: Execution) -> Result:
        """Run the query, make the table, write the rows."""
        database_id, name = self._binder.database.database_id, self._plan.name
        if execution.catalog.table(database_id, name) is not None and self._if_not_exists:
            return Result("CREATE TABLE AS", notices=(_is_there(name),))
        visible = [column.descriptor for column in self._plan.columns if not column.descriptor.hidden]
        rows = await QueryRows(self._query, visible, self._binder).rows(execution)
        editor = CatalogEditor(execution.catalog, execution.services.catalogs.take_id)
        await _creating(self._plan, database_id, False)(editor)
        execution.note_edited(editor)
        await _write_rows(find_table((name,), execution.catalog, execution.session), rows, execution)
        return Result(f"SELECT {len(rows)}", row_count=len(rows))


async def _write_rows(table: TableDescriptor, rows: Sequence[Sequence[object]], execution: Execution) -> None:
    target = Target(table, execution.session.database)
    identity = next(column.identity for column in table.columns if column.identity is not None)
    sequence = execution.catalog.sequence_by_id(identity.sequence_id)
    assert sequence is not None, identity
    numbers = await execution.next_values(sequence, len(rows))
    for row, number in zip(rows, numbers):
        whole = (*row, number)
        execution.txn.put(target.rows.key(whole), target.rows.value(whole))  # type: ignore[arg-type]
        if execution.txn.is_full:
            await execution.flush()


def plan_drop(node: exp.Drop, binder: StatementBinder) -> DdlPlan:
    """Bind DROP TABLE or DROP SEQUENCE."""
    kind = str(node.args.get("kind"))
    if kind not in ("TABLE", "SEQUENCE"):
        raise FeatureNotSupportedError(f"DROP {kind} is not supported", position=position_of(node))
    # Nothing depends on a table yet, so that CASCADE has nothing more to drop.
    refuse_clauses(node, "this", "tables", "kind", "exists", "cascade", "restrict")
    nodes = node.args.get("tables") or [node.this]
    parts = [table_parts(each) for each in nodes]
    if_exists = bool(node.args.get("exists"))
    for each in parts:
        split_name(each, binder.catalog, binder.session)
    names = [each[-1] for each in parts]
    drop = _dropping_tables if kind == "TABLE" else _dropping_sequences
    return DdlPlan(f"DROP {kind}", lambda execution: drop(binder.database.database_id, names, if_exists))


def _dropping_tables(database_id: int, names: Sequence[str], if_exists: bool) -> Edit:
    async def edit(editor: CatalogEditor) -> tuple[Notice, ...]:
        notices: list[Notice] = []
        tables: list[TableDescriptor] = []
        for name in dict.fromkeys(names):
            table = editor.catalog.table(database_id, name)
            if table is not None:
                tables.append(table)
            elif editor.catalog.sequence(database_id, name) is not None:
                raise WrongObjectTypeError(f'"{name}" is not a table', hint="Use DROP SEQUENCE to remove a sequence.")
            elif if_exists:
                notices.append(Notice(f'table "{name}" does not exist, skipping'))
            else:
                raise UndefinedTableError(f'table "{name}" does not exist')
        return await _dropping(tables, tuple(notices))(editor)

    return edit


def _dropping(tables: Sequence[TableDescriptor], notices: tuple[Notice, ...]) -> Edit:
    async def edit(editor: CatalogEditor) -> tuple[Notice, ...]:
        for table in tables:
            editor.remove_table(table)
        return notices

    return edit


def _dropping_sequences(database_id: int, names: Sequence[str], if_exists: bool) -> Edit:
    async def edit(editor: CatalogEditor) -> tuple[Notice, ...]:
        notices: list[Notice] = []
        for name in dict.fromkeys(names):
            sequence = editor.catalog.sequence(database_id, name)
            if sequence is None:
                if editor.catalog.table(database_id, name) is not None:
                    raise WrongObjectTypeError(f'"{name}" is not a sequence', hint="Use DROP TABLE to remove a table.")
                if not if_exists:
                    raise UndefinedTableError(f'sequence "{name}" does not exist')
                notices.append(Notice(f'sequence "{name}" does not exist, skipping'))
                continue
            _refuse_used(editor.catalog, sequence)
            editor.remove_sequence(sequence)
        return tuple(notices)

    return edit


class DependentObjectsError(ObjectInUseError):
    """Something else needs the object."""

    sqlstate = "2BP01"


def _refuse_used(catalog: Catalog, sequence: SequenceDescriptor) -> None:
    for table in catalog.tables(sequence.database_id):
        for column in table.columns:
            if column.identity is not None and column.identity.sequence_id == sequence.sequence_id:
                raise DependentObjectsError(
                    f"cannot drop sequence {sequence.name} because other objects depend on it",
                    detail=f"default value for column {column.name} of table {table.name} depends on sequence {sequence.name}",
                    hint="Drop the table first.",
                )


def plan_truncate(statement: TruncateStatement, binder: StatementBinder) -> DdlPlan:
    """Bind TRUNCATE: each table takes a new primary index, and the old one is garbage."""
    names = [find_table(parts, binder.catalog, binder.session).name for parts in statement.tables]
    database_id = binder.database.database_id

    def start(execution: Execution) -> Edit:
        async def edit(editor: CatalogEditor) -> tuple[Notice, ...]:
            for name in dict.fromkeys(names):
                table = editor.catalog.table(database_id, name)
                if table is None:
                    raise UndefinedTableError(f'relation "{name}" does not exist')
                primary = msgspec.structs.replace(table.primary, index_id=table.next_index_id)
                new = msgspec.structs.replace(table, version=table.version + 1, primary=primary, next_index_id=table.next_index_id + 1)
                editor.replace_table(table, new)
                if statement.restart_identity:
                    for column in table.columns:
                        sequence = editor.catalog.sequence_by_id(column.identity.sequence_id) if column.identity is not None else None
                        if sequence is not None and not column.hidden:
                            editor.restart_sequence(sequence)
                            execution.services.sequences.forget(sequence)
            return ()

        return edit

    return DdlPlan("TRUNCATE TABLE", start)


def plan_create_database(statement: CreateDatabaseStatement) -> DdlPlan:
    """Bind CREATE DATABASE."""
    name = statement.name

    async def edit(editor: CatalogEditor) -> tuple[Notice, ...]:
        if editor.catalog.database(name) is not None:
            if statement.if_not_exists:
                return (Notice(f'database "{name}" already exists, skipping', DuplicateDatabaseError.sqlstate),)
            raise DuplicateDatabaseError(f'database "{name}" already exists')
        editor.add_database(DatabaseDescriptor(database_id=await editor.new_id(), name=name))
        return ()

    return DdlPlan("CREATE DATABASE", lambda execution: edit)


def plan_drop_database(statement: DropDatabaseStatement) -> DdlPlan:
    """Bind DROP DATABASE, with all that is in it.  The session's own, and the default one, stay."""
    name = statement.name

    def start(execution: Execution) -> Edit:
        async def edit(editor: CatalogEditor) -> tuple[Notice, ...]:
            database = editor.catalog.database(name)
            if database is None:
                if statement.if_exists:
                    return (Notice(f'database "{name}" does not exist, skipping'),)
                raise InvalidCatalogNameError(f'database "{name}" does not exist')
            if name in (execution.session.database, DEFAULT_DATABASE):
                why = "the session's database" if name == execution.session.database else "the default database"
                raise ObjectInUseError(f'cannot drop "{name}": it is {why}')
            editor.remove_database(database)
            return ()

        return edit

    return DdlPlan("DROP DATABASE", start)
