"""Runs statements: plans them once, runs them by attempts, commits what they wrote, and says in SQL's words what went wrong.

    prepare(text) ─▶ ParsedStatement … ─▶ run(session, statement, parameters)
                                             plan (cached) ▸ attempt: fresh transaction ▸ plan.run ▸ commit below the lease
                                               ├ TransactionRetry          again, a bounded number of times, then 40001
                                               ├ DeadlineExceeded          renew the catalogue, again
                                               └ KeyExists, Ambiguous, …   23505, 40003, … (`_in_sql`)

Invariants:
- Each statement is its own transaction: nothing of it is visible before its commit, and `run` returns after it.
- A statement is only run again by itself while nothing of it has left: streamed rows are read at one timestamp and never again.
- An attempt's plan was made for the very catalogue whose lease bounds its commit (or its read timestamp).

Not here: time limits and cancellation, which are the session's; what each statement does (the other files of this folder).
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import msgspec
import pyarrow as pa
import trio
from sqlglot import exp

from dsdb.sql.catalog import Catalog
from dsdb.sql.errors import (
    CannotConnectNowError,
    DataCorruptedError,
    FeatureNotSupportedError,
    IndeterminateTypeError,
    SerializationError,
    SqlError,
    UndefinedParameterError,
    UniqueViolationError,
    UnknownOutcomeError,
)
from dsdb.sql.execute.binding import StatementBinder
from dsdb.sql.execute.ddl import plan_create, plan_create_database, plan_drop, plan_drop_database, plan_truncate
from dsdb.sql.execute.dml_insert import InsertPlan
from dsdb.sql.execute.dml_update import DeletePlan, UpdatePlan
from dsdb.sql.execute.explain import ExplainPlan
from dsdb.sql.execute.point import plan_point_select
from dsdb.sql.execute.result import Parameter, Result
from dsdb.sql.execute.select import run_select
from dsdb.sql.execute.sequence_calls import has_sequence_calls, with_calls_made
from dsdb.sql.execute.services import Execution, Plan, Services
from dsdb.sql.execute.session import SessionState
from dsdb.sql.execute.show import SetPlan, ShowPlan, SplitPlan
from dsdb.sql.execute.target import unique_violation
from dsdb.sql.parse import (
    CreateDatabaseStatement,
    DropDatabaseStatement,
    ExplainStatement,
    ParsedStatement,
    SetStatement,
    ShowStatement,
    SplitAtStatement,
    TransactionStatement,
    TruncateStatement,
    parse_statements,
)
from dsdb.sql.plan.select import SelectPlan
from dsdb.sql.ports import (
    AmbiguousCommitError,
    DeadlineExceededError,
    KeyExistsError,
    MultiRangeWriteError,
    PortError,
    RangeUnavailableError,
    TransactionRetryError,
)
from dsdb.sql.rows import rows_of
from dsdb.sql.text import parse_text
from dsdb.sql.types import TEXT, SqlType, TypeName
from dsdb.storage.datum import Datum
from dsdb.storage.errors import CorruptionError, KeyFormatError
from dsdb.storage.keys import decode_index_prefix

ATTEMPTS_MAX = 20
"""Times that a statement is run before its conflicts become the client's."""
_PAUSE_SECONDS = 0.001
"""Pause after the first conflict; it doubles up to the maximum."""
_PAUSE_SECONDS_MAX = 0.1
PLANS_MAX = 2_048
"""Plans, and parsed texts, that a node keeps."""
CACHED_TEXT_CHARS_MAX = 16_384
"""Longer texts are hardly ever sent twice."""
SYNCHRONOUS_CHARS_MAX = 32_768
"""Longer texts are read and planned by a thread: some milliseconds of work for the usual kinds."""
READERS_MAX = 2

_OF_THE_CATALOG = frozenset({"22", "23", "3D", "3F", "42"})
"""Classes of errors that an old catalogue can cause: unknown names, types and constraints that have changed since."""
_UNKNOWN = TypeName.UNKNOWN


class _CachedPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan, the catalogue's version it is for, and how each parameter becomes what the plan takes (None: as it is)."""

    version: int
    plan: Plan
    converters: tuple[Callable[[Any], Datum] | None, ...]
    converts: bool


class StatementExecutor:
    """Runs the statements of all sessions of a node."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._texts: dict[str, tuple[ParsedStatement, ...]] = {}
        self._plans: dict[tuple[object, ...], _CachedPlan] = {}
        self._readers = trio.CapacityLimiter(READERS_MAX)
        """Threads that read and plan long texts."""

    def prepare(self, text: str) -> tuple[ParsedStatement, ...]:
        """Cut a text into statements.  Raises SqlSyntaxError, ProgramLimitError, StatementTooComplexError, FeatureNotSupportedError."""
        found = self._texts.get(text)
        if found is None:
            found = tuple(parse_statements(text))
            if len(text) <= CACHED_TEXT_CHARS_MAX:
                _keep(self._texts, text, found)
        return found

    async def prepared(self, text: str) -> tuple[ParsedStatement, ...]:
        """Do what `prepare` does; a long text is read by a thread, so that the event loop runs on.

        Cancellation: the thread is left to itself; it ends with the text.
        """
        if len(text) <= SYNCHRONOUS_CHARS_MAX:
            return self.prepare(text)
        return await trio.to_thread.run_sync(self.prepare, text, limiter=self._readers, abandon_on_cancel=True)

    async def run(self, session: SessionState, statement: ParsedStatement, parameters: Sequence[Parameter]) -> Result:
        """Run one statement, and commit it.

        Its batches, if it has some, are read afterwards, before the session's next statement.
        Raises SqlError's.  *Cancellation*: before the commit is sent it leaves no trace; afterwards it waits for the outcome, and
        `session.has_committed` says whether something was committed before the cancellation was met.
        """
        for attempt in range(ATTEMPTS_MAX):
            try:
                return await self._attempt(session, statement, parameters)
            except TransactionRetryError:
                await trio.sleep(min(_PAUSE_SECONDS * 2**attempt, _PAUSE_SECONDS_MAX))
            except DeadlineExceededError:
                await self._services.catalogs.renew()
        raise SerializationError(
            f"could not serialize access: {_tables_in(statement)} changed by others each of the {ATTEMPTS_MAX} times this was tried",
            hint="Run the statement again.",
        )

    async def execute(self, session: SessionState, text: str, parameters: Sequence[Parameter] = ()) -> AsyncIterator[Result]:
        """Run the statements of a text, one after another, each when the one before was taken and its batches were read.

        The first error ends it; what ran before stays.
        """
        statements = await self.prepared(text)
        for statement in statements:
            # One statement must take all its parameters; of several, each takes those that it names.
            given = parameters if len(statements) == 1 else parameters[: statement.parameters]
            yield await self.run(session, statement, given)

    async def _attempt(self, session: SessionState, statement: ParsedStatement, parameters: Sequence[Parameter]) -> Result:
        services = self._services
        catalog = services.catalogs.acquire_nowait() or await services.catalogs.acquire()
        execution: Execution | None = None
        try:
            if statement.rows is not None or len(statement.text) <= SYNCHRONOUS_CHARS_MAX:
                cached = self._plan(session, statement, parameters, catalog)
            else:
                plan_it = partial(self._plan, session, statement, parameters, catalog)
                cached = await trio.to_thread.run_sync(plan_it, limiter=self._readers, abandon_on_cancel=True)
            plan = cached.plan
            now = services.now()
            values: tuple[Datum, ...]
            if cached.converts:
                pairs = zip(parameters, cached.converters)
                values = (*[p.value if f is None or p.value is None else f(p.value) for p, f in pairs], now)
            else:
                values = (*[parameter.value for parameter in parameters], now)
            execution = Execution(services, session, catalog, services.begin(), values)
            result = await plan.run(execution)
            if plan.is_writing:
                await execution.txn.commit(deadline=catalog.lease_expiration)
                session.note_commit()
            elif plan.is_reading and await execution.txn.read_timestamp() > catalog.lease_expiration:
                raise DeadlineExceededError("the statement read after the end of the catalogue's lease")
        except (TransactionRetryError, DeadlineExceededError):
            raise
        except (PortError, CorruptionError) as error:
            raise _in_sql(error, catalog) from error
        except SqlError as error:
            # An idle node's catalogue may be an old one: what it says of a missing table counts only under its lease.
            if error.sqlstate[:2] in _OF_THE_CATALOG and await services.catalogs.is_over(catalog):
                raise DeadlineExceededError("the catalogue's lease has run out") from error
            raise
        finally:
            # A change of the catalogue waits for the statements of older versions: it must not be one of them.
            if execution is None or execution.is_holding:
                services.catalogs.release(catalog)
        if result.batches is not None:
            result.batches = _guarded(result.batches, catalog)
        return result

    def _plan(
        self, session: SessionState, statement: ParsedStatement, parameters: Sequence[Parameter], catalog: Catalog
    ) -> _CachedPlan:
        types = tuple([parameter.type for parameter in parameters])
        key = (statement.text, types, session.database, session.user)
        cached = self._plans.get(key)
        if cached is not None and cached.version == catalog.version:
            return cached
        if len(parameters) != statement.parameters:
            raise UndefinedParameterError(f"the statement takes {statement.parameters} parameters, and {len(parameters)} were given")
        binder = StatementBinder(catalog, session, types, statement.parameters)
        plan = _plan_statement(statement, binder)
        converters = _converters(types, binder)
        cached = _CachedPlan(
            version=catalog.version, plan=plan, converters=converters, converts=any(convert is not None for convert in converters)
        )
        if statement.rows is None and len(statement.text) <= CACHED_TEXT_CHARS_MAX:
            _keep(self._plans, key, cached)
        return cached


def _keep(cache: dict[Any, Any], key: object, value: object) -> None:
    """Put into a cache of bounded size; the oldest entry goes."""
    if len(cache) >= PLANS_MAX:
        del cache[next(iter(cache))]
    cache[key] = value


def _converters(declared: Sequence[SqlType], binder: StatementBinder) -> tuple[Callable[[Any], Datum] | None, ...]:
    """Give how each parameter becomes what the plan takes: text whose type the context decided is read as that type."""
    converters: list[Callable[[Any], Datum] | None] = []
    for given, decided in zip(declared, binder.parameter_types.types(len(declared))):
        if given.name is not _UNKNOWN:
            converters.append(None)
        else:
            converters.append(_reader(TEXT if decided.name is _UNKNOWN else decided))
    return tuple(converters)


def _reader(type_: SqlType) -> Callable[[Any], Datum]:
    def read(value: Any) -> Datum:
        if not isinstance(value, str):
            raise IndeterminateTypeError(f"a parameter without a type must be text, not {type(value).__name__}")
        return parse_text(value, type_)

    return read


class QueryPlan:
    """A query by stages."""

    is_writing = False

    def __init__(self, plan: SelectPlan) -> None:
        self._plan = plan
        self.is_reading = bool(plan.leaves)

    async def run(self, execution: Execution) -> Result:
        """Run it; its rows stream."""
        services = execution.services
        return await run_select(self._plan, execution.parameters, execution.txn, services.runner, services.engine)


class SequencePlan:
    """A statement that calls nextval and its like: bound anew at each run, with the calls' values in it."""

    is_reading = False

    def __init__(self, statement: ParsedStatement, binder: StatementBinder) -> None:
        self._statement = statement
        self._binder = binder
        self.is_writing = isinstance(statement.tree, exp.Insert)

    async def run(self, execution: Execution) -> Result:
        """Make the calls, then run the rest."""
        statement = await with_calls_made(self._statement, self._binder, execution)
        return await _plan_statement(statement, self._binder).run(execution)


def _plan_statement(statement: ParsedStatement, binder: StatementBinder) -> Plan:
    tree = statement.tree
    if isinstance(tree, exp.Expr):
        if has_sequence_calls(tree) and not isinstance(tree, exp.Create):
            return SequencePlan(statement, binder)
        match tree:
            case exp.Insert():
                return InsertPlan(statement, binder)
            case exp.Update():
                return UpdatePlan(tree, binder)
            case exp.Delete():
                return DeletePlan(tree, binder)
            case exp.Create():
                return plan_create(tree, binder)
            case exp.Drop():
                return plan_drop(tree, binder)
            case exp.Alter():
                raise FeatureNotSupportedError("ALTER TABLE is only supported with SPLIT AT")
            case exp.Query() | exp.Values():
                return plan_point_select(tree, binder) or QueryPlan(binder.query(tree))
        raise FeatureNotSupportedError(f"{tree.key.upper()} is not supported")
    match tree:
        case ShowStatement():
            return ShowPlan(tree, binder)
        case SetStatement():
            return SetPlan(tree)
        case SplitAtStatement():
            return SplitPlan(tree, binder)
        case TruncateStatement():
            return plan_truncate(tree, binder)
        case CreateDatabaseStatement():
            return plan_create_database(tree)
        case DropDatabaseStatement():
            return plan_drop_database(tree)
        case ExplainStatement():
            return ExplainPlan(tree, _plan_statement(tree.statement, binder), binder)
        case TransactionStatement():
            raise FeatureNotSupportedError(
                f"{tree.verb.upper()} is not supported: each statement is a transaction of its own",
                hint="Leave out BEGIN and COMMIT; connect with autocommit.",
            )


async def _guarded(batches: AsyncIterator[pa.RecordBatch], catalog: Catalog) -> AsyncIterator[pa.RecordBatch]:
    """Pass batches on, with the errors of what lies below in SQL's words."""
    try:
        async with aclosing(batches) as stream:  # type: ignore[type-var]
            async for batch in stream:
                yield batch
    except (PortError, CorruptionError) as error:
        raise _in_sql(error, catalog) from error


def _in_sql(error: PortError | CorruptionError, catalog: Catalog) -> SqlError:
    """Give the SQL error for an error from below."""
    match error:
        case KeyExistsError():
            return _key_exists(error.key, catalog)
        case AmbiguousCommitError():
            return UnknownOutcomeError(
                "whether the statement took effect is not known: the connection to its range was lost while it committed",
                hint="Look at the rows before you run it again.",
            )
        case MultiRangeWriteError():
            return FeatureNotSupportedError(
                "a statement that writes rows of several ranges is not supported", hint="Write the rows in several statements."
            )
        case RangeUnavailableError():
            return CannotConnectNowError(f"the rows cannot be reached now: {error}", hint="Run the statement again later.")
        case TransactionRetryError() | DeadlineExceededError():
            return SerializationError(f"could not serialize access: {error}", hint="Run the statement again.")
        case CorruptionError():
            return DataCorruptedError(f"stored data is damaged: {error}")
    return CannotConnectNowError(str(error))


def _key_exists(key: bytes, catalog: Catalog) -> SqlError:
    """Say which row is already there."""
    try:
        database_id, table_id, _, offset = decode_index_prefix(key)
        tables = [table for table in catalog.tables(database_id) if table.table_id == table_id]
        if tables:
            rows = rows_of(tables[0])
            return unique_violation(rows, rows.key_codec.decode(key, offset))
    except KeyFormatError:
        pass
    return UniqueViolationError("duplicate key value violates unique constraint", detail=f"Key {key.hex()} already exists.")


def _tables_in(statement: ParsedStatement) -> str:
    if not isinstance(statement.tree, exp.Expr):
        return "the catalogue was"
    names = sorted({table.name for table in statement.tree.find_all(exp.Table) if table.name})
    return "rows of " + ", ".join(f'"{name}"' for name in names) + " were"


__all__ = ["QueryPlan", "StatementExecutor"]
