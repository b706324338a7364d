"""The session's transaction: BEGIN, COMMIT, savepoints, and the statements between.

    BEGIN ─▶ OpenTransaction ─▶ statement: same transaction, same catalogue ─┬─▶ COMMIT ─▶ below a lease of the catalogue of the day
                                                                             └─ error ─▶ failed: 25P02 until ROLLBACK, ROLLBACK TO

The catalogue is held only until the first statement has read: its lease covers the read timestamp, at which everything else is read.
COMMIT takes the catalogue of the day, and goes on only if the tables that the transaction used are the same in it: so an open
transaction keeps no change waiting, and is kept by none that does not concern it.  What the transaction itself changes of the catalogue
is a draft (`catalog_draft`) until its COMMIT.

Invariants:
- All statements of a transaction read at one timestamp, see what those before them wrote, and use one version of the catalogue, with the
  changes that those before them made.
- What a statement that failed had written is forgotten.
- Only the first statement is run again by itself: before it the client has seen nothing of the transaction.
- After a COMMIT that raised an error no transaction is open.

Not here: CREATE and DROP DATABASE, and the cut into ranges, which a transaction cannot hold.
"""

from collections.abc import Sequence

import trio

from dsdb.sql.catalog import Catalog
from dsdb.sql.catalog_draft import CatalogDraft, check_used
from dsdb.sql.errors import (
    ActiveTransactionError,
    FailedTransactionError,
    FeatureNotSupportedError,
    InvalidParameterError,
    NoActiveTransactionError,
    SerializationError,
    SqlError,
    UnknownOutcomeError,
)
from dsdb.sql.execute.failures import (
    AGAIN,
    OF_THE_CATALOG,
    FencedTableError,
    check_unfenced,
    fenced_table,
    guarded,
    in_sql,
)
from dsdb.sql.execute.historical import past_timestamp
from dsdb.sql.execute.open_transaction import OpenTransaction
from dsdb.sql.execute.planning import StatementPlanner
from dsdb.sql.execute.result import Notice, Parameter, Result
from dsdb.sql.execute.services import Execution, Services
from dsdb.sql.execute.session import SessionState
from dsdb.sql.execute.statement_kinds import catalog_change, check_reads_only, must_be_alone
from dsdb.sql.parse import ParsedStatement, SetStatement, ShowStatement
from dsdb.sql.parse_transaction import TransactionStatement, Verb
from dsdb.sql.ports import AmbiguousCommitError, DeadlineExceededError, PortError, TransactionRetryError
from dsdb.sql.ports_steering import ImportEnd
from dsdb.sql.transaction_status import Begin, TransactionStatus
from dsdb.storage.errors import CorruptionError

FIRST_ATTEMPTS_MAX = 20
"""Times that the first statement of a transaction is run before its conflicts become the client's."""
_PAUSE_SECONDS = 0.005
RENEW_AFTER_SECONDS = 3.0
"""After such a pause COMMIT renews the catalogue's lease first, which an idle node lets run out."""

_IN_PROGRESS = Notice("there is already a transaction in progress", ActiveTransactionError.sqlstate, "WARNING")
_NOT_IN_PROGRESS = Notice("there is no transaction in progress", NoActiveTransactionError.sqlstate, "WARNING")
_NOT_IN_BLOCK = Notice("SET TRANSACTION can only be used in transaction blocks", NoActiveTransactionError.sqlstate, "WARNING")


class SessionTransactions:
    """Runs what belongs to the transactions of a node's sessions."""

    def __init__(self, services: Services, planner: StatementPlanner) -> None:
        self._services = services
        self._planner = planner

    async def run(self, session: SessionState, statement: ParsedStatement, parameters: Sequence[Parameter], begin: Begin) -> Result | None:
        """Run a statement about the session's transaction, in it, or at its begin; None if it is to run by itself.

        Raises SqlError's: then the transaction, if one is open still, has failed.  So it has after a cancellation.
        """
        transaction = session.transaction
        try:
            if isinstance(statement.tree, TransactionStatement):
                return await self._control(session, statement.tree, begin)
            if session.transaction is None:
                # What cannot be part of a transaction commits by itself; and a statement AS OF is a transaction of its own.
                if begin is Begin.IMPLICIT and (statement.as_of is not None or _is_alone(statement)):
                    return None
                self._begin(session, is_implicit=begin is Begin.IMPLICIT)
            return await self._run_within(session, statement, parameters)
        except BaseException as error:
            transaction = transaction or session.transaction
            if isinstance(error, SerializationError) and transaction is not None:
                session.kept_age = transaction.txn.start_ts
            session.fail_transaction()
            raise

    async def run_alone(self, session: SessionState, statement: ParsedStatement, parameters: Sequence[Parameter]) -> Result:
        """Run a statement that both changes the catalogue and writes rows in a transaction of its own.  Raises SqlError's."""
        for attempt in range(1, FIRST_ATTEMPTS_MAX + 1):
            self._begin(session, is_implicit=False)
            try:
                result = await self._run_within(session, statement, parameters)
                assert result is not None, "nothing that must be alone"
                await self._commit(session)
                return result
            except SerializationError:
                stream = session.inputs.stream
                if attempt == FIRST_ATTEMPTS_MAX or (stream is not None and stream.is_begun):
                    raise
            finally:
                await self.end(session)
            await trio.sleep(_PAUSE_SECONDS * attempt)
        raise AssertionError("the last attempt raises or returns")

    async def end(self, session: SessionState) -> None:
        """Roll back what is open."""
        transaction, session.transaction = session.transaction, None
        if transaction is not None:
            transaction.end_imports(ImportEnd.FAILED, "rolled back")
            session.restore_settings(transaction.settings)
            with trio.CancelScope(shield=True):
                await transaction.txn.rollback()

    # Statements in a transaction.

    async def _run_within(self, session: SessionState, statement: ParsedStatement, parameters: Sequence[Parameter]) -> Result | None:
        transaction = session.transaction
        assert transaction is not None
        if transaction.status is TransactionStatus.FAILED:
            raise _failed()
        change = catalog_change(statement)
        if change is not None:
            if transaction.read_only:
                check_reads_only(statement)
            if must_be_alone(change):
                _refuse_change(change, transaction)
                await self._commit(session)
                return None
        if statement.as_of is not None:
            raise FeatureNotSupportedError(
                "AS OF SYSTEM TIME is not supported for one statement of a transaction", hint="Give it to BEGIN, or commit first."
            )
        if transaction.read_only:
            check_reads_only(statement)
        transaction.note_statement(statement)
        result = await self._attempts(session, transaction, statement, parameters)
        transaction.has_run = True
        transaction.has_queried |= not isinstance(statement.tree, SetStatement | ShowStatement)
        transaction.last_used = trio.current_time()
        return result

    async def _attempts(
        self, session: SessionState, transaction: OpenTransaction, statement: ParsedStatement, parameters: Sequence[Parameter]
    ) -> Result:
        attempt = 0
        fenced: int | None = None
        while True:
            mark = transaction.txn.savepoint(is_kept=False)
            catalog = transaction.shown_catalog or await self._acquired()
            try:
                return await self._attempt(session, transaction, catalog, statement, parameters)
            except (PortError, CorruptionError, FencedTableError) as error:
                attempt += not isinstance(error, FencedTableError)
                may_repeat = isinstance(error, TransactionRetryError | DeadlineExceededError | FencedTableError)
                may_repeat = may_repeat and attempt < FIRST_ATTEMPTS_MAX
                is_bound = transaction.has_run or transaction.savepoints or transaction.is_historical
                if may_repeat and is_bound and isinstance(error, DeadlineExceededError) and transaction.catalog is None:
                    # Those before it (DROP … IF EXISTS of what is not there, SET) used no rows: it is still the first that needs a lease.
                    transaction.txn.rollback_to(mark)
                    await self._services.catalogs.renew()
                    continue
                if not may_repeat or is_bound:
                    transaction.txn.rollback_to(mark)
                    if isinstance(error, FencedTableError):
                        raise _being_changed(error.table_id, catalog) from error
                    raise in_sql(error, catalog, transaction.statements) from error
                is_late = isinstance(error, DeadlineExceededError)
                fenced = error.table_id if isinstance(error, FencedTableError) else None
            except BaseException:
                transaction.txn.rollback_to(mark)
                raise
            await transaction.txn.rollback()
            transaction.txn = self._services.begin(start_ts=transaction.txn.start_ts)
            transaction.catalog = None
            transaction.used.clear()
            if fenced is not None:
                await self._services.catalogs.wait_unfenced(fenced)
            elif is_late:
                await self._services.catalogs.renew()
            else:
                await trio.sleep(_PAUSE_SECONDS * attempt)

    async def _attempt(
        self,
        session: SessionState,
        transaction: OpenTransaction,
        catalog: Catalog,
        statement: ParsedStatement,
        parameters: Sequence[Parameter],
    ) -> Result:
        """Run it; the first statement's catalogue is held by the caller until here, and let go at the end."""
        services = self._services
        is_first = transaction.catalog is None
        execution = Execution(
            services,
            session,
            catalog,
            transaction.txn,
            (),
            is_within=True,
            is_holding=is_first,
            draft=transaction.draft,
            own_sequences=transaction.own_sequences,
        )
        try:
            cached = await self._planner.planned(session, statement, parameters, catalog)
            plan = cached.plan
            check_unfenced(cached.tables, catalog)
            execution.parameters = cached.values(parameters, transaction.now)
            result = await plan.run(execution)
            if transaction.txn.is_full:
                await execution.flush()
            check_unfenced(cached.tables, catalog)
            uses_rows = plan.is_reading or plan.is_writing
            if is_first and (uses_rows or execution.draft is not None):
                # Held until here: the version was in force at the timestamp at which all of the transaction is read.
                if await transaction.txn.read_timestamp() > catalog.lease_expiration:
                    raise DeadlineExceededError("the statement read after the end of the catalogue's lease")
                transaction.catalog = catalog
        except SqlError as error:
            # An idle node's catalogue may be an old one: what it says of a missing table counts only under its lease.
            if is_first and error.sqlstate[:2] in OF_THE_CATALOG and await services.catalogs.is_over(catalog):
                raise DeadlineExceededError("the catalogue's lease has run out") from error
            raise
        finally:
            execution.release_catalog()
        transaction.used |= cached.tables
        transaction.draft = execution.draft
        if execution.has_locked and not is_first and transaction.catalog is not None:
            await self._follow(transaction, transaction.catalog)
        transaction.has_rows = transaction.has_rows or uses_rows
        transaction.has_written = transaction.has_written or plan.is_writing
        result.notices += tuple(execution.notices)
        if result.batches is not None:
            result.batches = guarded(result.batches, catalog)
        return result

    async def _follow(self, transaction: OpenTransaction, catalog: Catalog) -> None:
        """See that the catalogue still holds after locks have moved the read timestamp on.  Raises SerializationError."""
        present = await self._present_catalog()
        # Nobody holds an older version here any more: what its lease said then counts no longer.
        if present.version == catalog.version and await transaction.txn.read_timestamp() <= present.lease_expiration:
            return
        await self._services.catalogs.renew()
        newer = await self._present_catalog()
        if newer.version != catalog.version:
            check_used(transaction.used, catalog, newer)
            transaction.draft = None if transaction.draft is None else transaction.draft.onto(newer)
        transaction.catalog = newer

    async def _acquired(self) -> Catalog:
        catalogs = self._services.catalogs
        return catalogs.acquire_nowait() or await catalogs.acquire()

    # Statements about it.

    async def _control(self, session: SessionState, statement: TransactionStatement, begin: Begin) -> Result | None:
        transaction = session.transaction
        if transaction is not None and transaction.status is TransactionStatus.FAILED:
            if statement.verb not in (Verb.COMMIT, Verb.ROLLBACK, Verb.ROLLBACK_TO):
                raise _failed()
            if statement.verb is Verb.COMMIT:
                await self.end(session)
                return Result("ROLLBACK")
        match statement.verb:
            case Verb.BEGIN:
                notices = () if transaction is None else (_IN_PROGRESS,)
                if transaction is None:
                    self._begin(session, is_implicit=False)
                await self._set_modes(session, statement)
                return Result(statement.tag, notices=notices)
            case Verb.COMMIT:
                if transaction is None:
                    return Result("COMMIT", notices=(_NOT_IN_PROGRESS,))
                await self._commit(session)
                return Result("COMMIT")
            case Verb.ROLLBACK:
                await self.end(session)
                return Result("ROLLBACK", notices=() if transaction is not None else (_NOT_IN_PROGRESS,))
            case Verb.SET_CHARACTERISTICS:
                if statement.read_only is not None:
                    session.change_setting("default_transaction_read_only", "on" if statement.read_only else "off")
                return Result("SET")
            case Verb.SET_TRANSACTION:
                if transaction is None and not begin:
                    return Result("SET", notices=(_NOT_IN_BLOCK,))
                if transaction is None:
                    self._begin(session, is_implicit=begin is Begin.IMPLICIT)
                await self._set_modes(session, statement)
                return Result("SET")
        if transaction is None:
            if not begin or statement.verb is not Verb.SAVEPOINT:
                raise NoActiveTransactionError(f"{statement.verb.value.upper()} can only be used in transaction blocks")
            transaction = self._begin(session, is_implicit=begin is Begin.IMPLICIT)
        match statement.verb:
            case Verb.SAVEPOINT:
                transaction.set_savepoint(statement.name, session.settings)
            case Verb.RELEASE:
                transaction.release(statement.name)
            case Verb.ROLLBACK_TO:
                session.restore_settings(transaction.rollback_to(statement.name).settings)
        return Result(statement.tag)

    def _begin(self, session: SessionState, *, is_implicit: bool) -> OpenTransaction:
        services = self._services
        start_ts, session.kept_age = session.kept_age, None
        txn, settings = services.begin(start_ts=start_ts), session.settings
        transaction = session.transaction = OpenTransaction(
            txn, now=services.now(), settings=settings, is_implicit=is_implicit, read_only=session.read_only
        )
        transaction.last_used = trio.current_time()
        return transaction

    async def _set_modes(self, session: SessionState, statement: TransactionStatement) -> None:
        transaction = session.transaction
        assert transaction is not None
        if statement.as_of is not None:
            if transaction.has_queried:
                raise ActiveTransactionError("AS OF SYSTEM TIME must be set before any query")
            try:
                read_ts = await past_timestamp(statement.as_of, self._services)
            except PortError as error:
                raise in_sql(error, await self._present_catalog()) from error
            transaction.txn = self._services.begin(read_ts=read_ts)
            transaction.is_historical = transaction.read_only = True
        if statement.read_only is False and transaction.read_only:
            if transaction.is_historical:
                raise InvalidParameterError("a transaction AS OF SYSTEM TIME cannot be set to READ WRITE")
            if transaction.savepoints:
                raise ActiveTransactionError("cannot set transaction read-write mode inside a read-only transaction")
            if transaction.has_queried:
                raise ActiveTransactionError("transaction read-write mode must be set before any query")
        if statement.read_only is not None:
            transaction.read_only = statement.read_only

    async def _present_catalog(self) -> Catalog:
        catalog = await self._acquired()
        self._services.catalogs.release(catalog)
        return catalog

    async def _commit(self, session: SessionState) -> None:
        transaction = session.transaction
        assert transaction is not None
        draft = transaction.draft if transaction.draft is not None and not transaction.draft.is_empty else None
        if not transaction.has_written and draft is None:
            # What it read was there at its read timestamp, and nobody depends on more.
            session.transaction = None
            await transaction.txn.rollback()
            return
        try:
            if draft is not None:
                await self._commit_draft(session, transaction, draft)
                return
            await self._commit_writes(transaction)
        except (SqlError, PortError) as error:
            if session.transaction is None:
                raise  # it was committed
            session.transaction = None
            is_unknown = isinstance(error, UnknownOutcomeError | AmbiguousCommitError)
            transaction.end_imports(ImportEnd.UNKNOWN if is_unknown else ImportEnd.FAILED, str(error))
            session.restore_settings(transaction.settings)
            if isinstance(error, SqlError):
                await transaction.txn.rollback()
                raise
            assert transaction.shown_catalog is not None
            raise in_sql(error, transaction.shown_catalog, transaction.statements) from error
        session.transaction = None
        transaction.end_imports(ImportEnd.SUCCEEDED)
        session.note_commit()

    async def _commit_writes(self, transaction: OpenTransaction) -> None:
        catalogs = self._services.catalogs
        if transaction.txn.has_flushed or trio.current_time() - transaction.last_used > RENEW_AFTER_SECONDS:
            # What was flushed ran for long: the lease may have run out, as nobody else has used it, or soon will.
            await catalogs.renew()
        base = transaction.catalog
        assert base is not None, "it has written"
        fenced: int | None = None
        while True:
            if fenced is not None:
                await catalogs.wait_unfenced(fenced)
            catalog = await self._acquired()
            try:
                fenced = fenced_table(transaction.used, catalog)
                if fenced is None:
                    if catalog.version != base.version:
                        check_used(transaction.used, base, catalog)
                    await transaction.txn.commit(deadline=catalog.lease_expiration)
                    return
            finally:
                catalogs.release(catalog)

    async def _commit_draft(self, session: SessionState, transaction: OpenTransaction, draft: CatalogDraft) -> None:
        services, txn, base = self._services, transaction.txn, transaction.catalog
        assert base is not None, "a draft is one of something"
        owner = txn.describe().attempt
        own = [sequence for number in draft.own_sequences if (sequence := draft.catalog.sequence_by_id(number)) is not None]
        for sequence in own:
            transaction.own_sequences.store(sequence, txn)

        def check(present: Catalog) -> None:
            check_used(transaction.used, base, present, owner=owner)

        def committed() -> None:
            session.transaction = None
            transaction.end_imports(ImportEnd.SUCCEEDED)
            session.note_commit()
            for sequence in own:
                services.sequences.forget(sequence)

        await services.catalogs.commit_draft(txn, draft, check, is_alone=not transaction.has_rows, committed=committed)


def _being_changed(table_id: int, catalog: Catalog) -> SerializationError:
    table = catalog.table_by_id(table_id)
    assert table is not None, "its plan uses it"
    return SerializationError(f'could not serialize access: table "{table.name}" is being changed by another transaction', hint=AGAIN)


def _is_alone(statement: ParsedStatement) -> bool:
    change = catalog_change(statement)
    return change is not None and must_be_alone(change)


def _failed() -> FailedTransactionError:
    return FailedTransactionError("current transaction is aborted, commands ignored until end of transaction block", hint="Send ROLLBACK.")


def _refuse_change(change: str, transaction: OpenTransaction) -> None:
    """Refuse what cannot be part of a transaction, unless nothing of it is lost by committing before it."""
    if not transaction.is_implicit:
        raise ActiveTransactionError(f"{change} cannot run inside a transaction block", hint="Send it before BEGIN or after COMMIT.")
    if transaction.has_written or transaction.savepoints or transaction.draft is not None:
        raise ActiveTransactionError(
            f"{change} cannot run inside a transaction, and the open one has changed something",
            hint="Call commit() or rollback() before it, or connect with autocommit.",
        )
