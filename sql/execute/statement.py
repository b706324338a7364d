"""Runs statements: plans them once, runs them by attempts, commits what they wrote, and says in SQL's words what went wrong.

    prepare(text) ─▶ ParsedStatement … ─▶ run(session, statement, parameters)
                       ├ no transaction is open    a transaction of its own:
                       │     plan (cached) ▸ attempt: fresh transaction ▸ plan.run ▸ commit below the lease
                       │       ├ TransactionRetry          again, a bounded number of times, then 40001
                       │       ├ DeadlineExceeded          renew the catalogue, again
                       │       └ KeyExists, Ambiguous, …   23505, 40003, … (`failures`)
                       └ one is open, or begins    `transactions`

Invariants:
- A statement outside a transaction is one of its own: nothing of it is visible before its commit, and `run` returns after it.
- A statement is only run again by itself while nothing of it has left: streamed rows are read at one timestamp and never again.
- An attempt's plan was made for the very catalogue whose lease bounds its commit (or its read timestamp).

Not here: time limits and cancellation, which are the session's; what each statement does (the other files of this folder).
"""

from collections.abc import AsyncIterator, Sequence

import trio

from dsdb.sql.errors import SerializationError, SqlError
from dsdb.sql.execute.failures import OF_THE_CATALOG, FencedTableError, check_unfenced, guarded, in_sql, tables_in
from dsdb.sql.execute.historical import past_timestamp
from dsdb.sql.execute.planning import StatementPlanner
from dsdb.sql.execute.result import Parameter, Result
from dsdb.sql.execute.services import Execution, Services
from dsdb.sql.execute.session import SessionState
from dsdb.sql.execute.statement_kinds import check_reads_only, runs_in_block
from dsdb.sql.execute.transactions import SessionTransactions
from dsdb.sql.parse import ParsedStatement
from dsdb.sql.parse_transaction import TransactionStatement
from dsdb.sql.ports import DeadlineExceededError, PortError, Transaction, TransactionRetryError
from dsdb.sql.transaction_status import Begin
from dsdb.storage.errors import CorruptionError
from dsdb.storage.timestamp import Timestamp

ATTEMPTS_MAX = 20
"""Times that a statement is run before its conflicts become the client's."""
_PAUSE_SECONDS = 0.001
"""Pause after the first conflict; it doubles up to the maximum."""
_PAUSE_SECONDS_MAX = 0.1


class StatementExecutor:
    """Runs the statements of all sessions of a node."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._planner = StatementPlanner()
        self._transactions = SessionTransactions(services, self._planner)
        self.prepare = self._planner.prepare
        self.prepared = self._planner.prepared

    async def run(
        self, session: SessionState, statement: ParsedStatement, parameters: Sequence[Parameter], *, begin: Begin = Begin.NO
    ) -> Result:
        """Run one statement: in the session's transaction, else in one of its own, which is committed; or begin one (`Begin`).

        Its batches, if it has some, are read afterwards, before the session's next statement.
        Raises SqlError's; an open transaction has then failed, or, if its COMMIT did not succeed, ended.  *Cancellation*: before a commit
        is sent it leaves no trace but a failed transaction; afterwards it waits for the outcome, and `session.has_committed` says
        whether something was committed before the cancellation was met.
        """
        if session.transaction is not None or begin or type(statement.tree) is TransactionStatement:
            result = await self._transactions.run(session, statement, parameters, begin)
            if result is not None:
                return result
        if runs_in_block(statement):
            return await self._transactions.run_alone(session, statement, parameters)
        past: Timestamp | None = None
        if session.read_only:
            check_reads_only(statement)
        if statement.as_of is not None:
            past = await self._past(statement.as_of)
        start_ts: Timestamp | None = None
        attempt = 0
        while attempt < ATTEMPTS_MAX:
            # An attempt keeps the age of the first one, and with it its place in the queues for locks.
            txn = self._services.begin(read_ts=past, start_ts=start_ts)
            try:
                return await self._attempt(session, statement, parameters, txn)
            except TransactionRetryError:
                await trio.sleep(min(_PAUSE_SECONDS * 2**attempt, _PAUSE_SECONDS_MAX))
            except DeadlineExceededError:
                await self._services.catalogs.renew()
            except FencedTableError as error:
                await self._services.catalogs.wait_unfenced(error.table_id)
                attempt -= 1
            attempt += 1
            start_ts = txn.start_ts
        raise SerializationError(
            f"could not serialize access: {tables_in([statement])} changed by others each of the {ATTEMPTS_MAX} times this was tried",
            hint="Run the statement again.",
        )

    async def execute(self, session: SessionState, text: str, parameters: Sequence[Parameter] = ()) -> AsyncIterator[Result]:
        """Run the statements of a text, one after another, each when the one before was taken and its batches were read.

        The first error ends it; what ran before stays.
        """
        try:
            statements = await self.prepared(text)
        except SqlError:
            session.fail_transaction()
            raise
        for statement in statements:
            # One statement must take all its parameters; of several, each takes those that it names.
            given = parameters if len(statements) == 1 else parameters[: statement.parameters]
            yield await self.run(session, statement, given)

    async def end(self, session: SessionState) -> None:
        """Roll back what a session that ends has open.  Never raises; cancellation does not cut it."""
        await self._transactions.end(session)

    async def _past(self, text: str) -> Timestamp:
        try:
            return await past_timestamp(text, self._services)
        except PortError as error:
            catalog = await self._services.catalogs.acquire()
            self._services.catalogs.release(catalog)
            raise in_sql(error, catalog) from error

    async def _attempt(
        self, session: SessionState, statement: ParsedStatement, parameters: Sequence[Parameter], txn: Transaction
    ) -> Result:
        services = self._services
        catalog = services.catalogs.acquire_nowait() or await services.catalogs.acquire()
        execution: Execution | None = None
        try:
            cached = await self._planner.planned(session, statement, parameters, catalog)
            plan = cached.plan
            check_unfenced(cached.tables, catalog)
            session.statement_txn = txn
            execution = Execution(services, session, catalog, txn, cached.values(parameters, services.now()))
            result = await plan.run(execution)
            check_unfenced(cached.tables, catalog)
            if plan.is_writing:
                if txn.has_flushed:
                    # It ran for long: the lease may have run out, or soon will.
                    await services.catalogs.renew()
                await execution.txn.commit(deadline=catalog.lease_expiration)
                session.note_commit()
            elif plan.is_reading and await execution.txn.read_timestamp() > catalog.lease_expiration:
                raise DeadlineExceededError("the statement read after the end of the catalogue's lease")
        except (TransactionRetryError, DeadlineExceededError):
            raise
        except (PortError, CorruptionError) as error:
            raise in_sql(error, catalog) from error
        except SqlError as error:
            # An idle node's catalogue may be an old one: what it says of a missing table counts only under its lease.
            if error.sqlstate[:2] in OF_THE_CATALOG and await services.catalogs.is_over(catalog):
                raise DeadlineExceededError("the catalogue's lease has run out") from error
            raise
        finally:
            if txn.has_flushed or (execution is not None and execution.has_locked):
                await txn.rollback()
            # A change of the catalogue waits for the statements of older versions: it must not be one of them.
            if execution is None or execution.is_holding:
                services.catalogs.release(catalog)
        result.notices += tuple(execution.notices)
        if result.batches is not None:
            result.batches = guarded(result.batches, catalog)
        return result


__all__ = ["ATTEMPTS_MAX", "StatementExecutor"]
