"""Texts to statements, and statements to plans: each read, or planned for one version of the catalogue, once.

Invariants:
- A plan that is taken from the cache was made for the very version of the catalogue that it is asked for.
- Neither cache grows beyond `PLANS_MAX`; long texts are not kept.
"""

from collections.abc import Callable, Sequence, Set
from functools import partial
from typing import Any

import msgspec
import trio
from sqlglot import exp

from dsdb.sql.catalog import Catalog
from dsdb.sql.errors import FeatureNotSupportedError, IndeterminateTypeError, UndefinedParameterError
from dsdb.sql.execute.binding import StatementBinder
from dsdb.sql.execute.copy_in import CopyPlan
from dsdb.sql.execute.ddl import plan_create, plan_create_database, plan_drop, plan_drop_database, plan_truncate
from dsdb.sql.execute.dml_insert import InsertPlan
from dsdb.sql.execute.dml_update import DeletePlan, UpdatePlan
from dsdb.sql.execute.explain import ExplainPlan
from dsdb.sql.execute.locking import plan_locking_select
from dsdb.sql.execute.point import plan_point_select
from dsdb.sql.execute.range_settings import ConfigurePlan
from dsdb.sql.execute.result import Parameter, Result
from dsdb.sql.execute.select import QueryReport, run_select
from dsdb.sql.execute.sequence_calls import has_sequence_calls, with_calls_made
from dsdb.sql.execute.services import Execution, Plan
from dsdb.sql.execute.session import SessionState
from dsdb.sql.execute.show import SetPlan, ShowPlan, SplitPlan
from dsdb.sql.execute.statement_kinds import lock_words
from dsdb.sql.execute.steering import SteeringPlan
from dsdb.sql.execute.system_rows import system_rows
from dsdb.sql.parse import (
    CreateDatabaseStatement,
    DropDatabaseStatement,
    ExplainStatement,
    ParsedStatement,
    SetStatement,
    ShowStatement,
    SplitAtStatement,
    TruncateStatement,
    parse_statements,
)
from dsdb.sql.parse_cluster import AlterNodeStatement, CancelJobStatement, ScatterStatement, SetClusterStatement, ShowClusterStatement
from dsdb.sql.parse_copy import CopyStatement
from dsdb.sql.parse_ranges import ConfigureStatement
from dsdb.sql.parse_transaction import TransactionStatement
from dsdb.sql.plan.select import SelectPlan
from dsdb.sql.schema import TableDescriptor
from dsdb.sql.text import parse_text
from dsdb.sql.types import TEXT, SqlType, TypeName
from dsdb.storage.datum import Datum

PLANS_MAX = 2_048
"""Plans, and parsed texts, that a node keeps."""
CACHED_TEXT_CHARS_MAX = 16_384
"""Longer texts are hardly ever sent twice."""
SYNCHRONOUS_CHARS_MAX = 32_768
"""Longer texts are read and planned by a thread: some milliseconds of work for the usual kinds."""
READERS_MAX = 2

_UNKNOWN = TypeName.UNKNOWN


class CachedPlan(msgspec.Struct, frozen=True, kw_only=True):
    """A plan, the catalogue's version it is for, and how each parameter becomes what the plan takes (None: as it is).

    tables: ids of those that it uses; some are found only while it runs.
    """

    version: int
    plan: Plan
    tables: Set[int]
    converters: tuple[Callable[[Any], Datum] | None, ...]
    converts: bool

    def values(self, parameters: Sequence[Parameter], now: int) -> tuple[Datum, ...]:
        """Give what the plan takes: the parameters converted, and the statement values behind them."""
        if self.converts:
            return (*[p.value if f is None or p.value is None else f(p.value) for p, f in zip(parameters, self.converters)], now)
        return (*[parameter.value for parameter in parameters], now)


class StatementPlanner:
    """Reads and plans the statements of all sessions of a node."""

    def __init__(self) -> None:
        self._texts: dict[str, tuple[ParsedStatement, ...]] = {}
        self._plans: dict[tuple[object, ...], CachedPlan] = {}
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

    async def planned(
        self, session: SessionState, statement: ParsedStatement, parameters: Sequence[Parameter], catalog: Catalog
    ) -> CachedPlan:
        """Do what `plan` does; a long text is planned by a thread, so that the event loop runs on."""
        if statement.rows is not None or len(statement.text) <= SYNCHRONOUS_CHARS_MAX:
            return self.plan(session, statement, parameters, catalog)
        plan_it = partial(self.plan, session, statement, parameters, catalog)
        return await trio.to_thread.run_sync(plan_it, limiter=self._readers, abandon_on_cancel=True)

    def plan(self, session: SessionState, statement: ParsedStatement, parameters: Sequence[Parameter], catalog: Catalog) -> CachedPlan:
        """Give the plan of a statement for a catalogue.  Raises SqlError's about the statement."""
        types = tuple([parameter.type for parameter in parameters])
        key = (statement.text, types, session.database, session.user, session.inputs.shape)
        cached = self._plans.get(key)
        if cached is not None and cached.version == catalog.version:
            return cached
        if len(parameters) != statement.parameters:
            raise UndefinedParameterError(f"the statement takes {statement.parameters} parameters, and {len(parameters)} were given")
        noting = NotingCatalog(catalog)
        binder = StatementBinder(noting, session, types, statement.parameters)
        plan = _plan_statement(statement, binder)
        converters = _converters(types, binder)
        cached = CachedPlan(
            version=catalog.version,
            plan=plan,
            tables=noting.noted,
            converters=converters,
            converts=any(convert is not None for convert in converters),
        )
        # A draft's plans are of no use to others, and would take the places of theirs.
        if catalog.version >= 0 and statement.rows is None and len(statement.text) <= CACHED_TEXT_CHARS_MAX:
            _keep(self._plans, key, cached)
        return cached


class NotingCatalog(Catalog):
    """A catalogue that notes which of its tables are asked for."""

    def __init__(self, catalog: Catalog) -> None:
        self.__dict__.update(catalog.__dict__)
        self.noted: set[int] = set()

    def table(self, database_id: int, name: str) -> TableDescriptor | None:
        """Give a table by its exact name."""
        found = super().table(database_id, name)
        if found is not None:
            self.noted.add(found.table_id)
        return found


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
    """A query by stages.  Over virtual tables alone it reads no rows of the store, and needs neither oracle nor lease."""

    is_writing = False
    is_staged = True

    def __init__(self, plan: SelectPlan, *, as_of: str | None) -> None:
        if plan.virtual and as_of is not None:
            raise FeatureNotSupportedError("virtual tables have no past: AS OF SYSTEM TIME is not supported for them")
        self._plan = plan
        self.is_reading = bool(plan.leaves)

    async def run(self, execution: Execution, report: QueryReport | None = None) -> Result:
        """Run it; its rows stream.  report: is told what was done."""
        services = execution.services
        if self.is_reading:
            await execution.settle_catalog()
        virtual_rows = partial(system_rows, execution)
        given = execution.session.inputs.tables
        runner, engine = services.runner, services.engine
        return await run_select(self._plan, execution.parameters, execution.txn, runner, engine, virtual_rows, given, report)


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
                raise FeatureNotSupportedError("ALTER TABLE is only supported with SPLIT AT, SCATTER and CONFIGURE")
            case exp.Select() if lock_words(tree) is not None:
                return plan_locking_select(tree, binder)
            case exp.Query() | exp.Values():
                return plan_point_select(tree, binder) or QueryPlan(binder.query(tree), as_of=statement.as_of)
        raise FeatureNotSupportedError(f"{tree.key.upper()} is not supported")
    match tree:
        case ShowStatement():
            return ShowPlan(tree, binder)
        case SetStatement():
            return SetPlan(tree)
        case AlterNodeStatement() | CancelJobStatement() | ScatterStatement() | SetClusterStatement() | ShowClusterStatement():
            return SteeringPlan(tree, binder)
        case CopyStatement():
            return CopyPlan(tree, binder)
        case SplitAtStatement():
            return SplitPlan(tree, binder)
        case ConfigureStatement():
            return ConfigurePlan(tree, binder)
        case TruncateStatement():
            return plan_truncate(tree, binder)
        case CreateDatabaseStatement():
            return plan_create_database(tree)
        case DropDatabaseStatement():
            return plan_drop_database(tree)
        case ExplainStatement():
            return ExplainPlan(tree, _plan_statement(tree.statement, binder), binder)
        case TransactionStatement():
            raise FeatureNotSupportedError(f"{tree.tag} cannot be explained")
