"""What statements are run with: the node's services, and the things of one attempt at one statement.

Invariants:
- An Execution is one attempt: the catalogue its plan was made for, one reading of the clock, and a fresh transaction or the session's.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol, TypeVar

from dsdb.sql.catalog import Catalog, CatalogEditor
from dsdb.sql.catalog_draft import CatalogDraft, draft_of
from dsdb.sql.errors import FeatureNotSupportedError, InvalidCatalogNameError, UndefinedTableError
from dsdb.sql.execute.engine import QueryEngine
from dsdb.sql.execute.result import Notice, Result
from dsdb.sql.execute.sequence import OwnSequences, SequenceCache
from dsdb.sql.execute.session import SessionState
from dsdb.sql.ports import ClusterView, DeadlineExceededError, RowWait, StageRunner, Transaction
from dsdb.sql.ports_steering import ClusterSteering
from dsdb.sql.schema import DatabaseDescriptor, SequenceDescriptor, TableDescriptor
from dsdb.sql.system_tables import SYSTEM_SCHEMA, only_readable
from dsdb.storage.datum import Datum
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp

PUBLIC_SCHEMA = "public"
"""The one schema of every database in which something can be made."""

T = TypeVar("T")


class CatalogSource(Protocol):
    """Where the catalogue comes from and is changed (`catalog_lease.CatalogLeases`)."""

    def acquire_nowait(self) -> Catalog | None:
        """Give the catalogue in use, held until `release`; None before the first lease."""

    async def acquire(self) -> Catalog:
        """Give the catalogue in use, held until `release`."""

    def release(self, catalog: Catalog) -> None:
        """End a statement's use of it."""

    def resume(self, catalog: Catalog) -> bool:
        """Use a catalogue again that was released for a while; say whether it is still the one in use.  If not, it must not be used."""

    async def is_over(self, catalog: Catalog) -> bool:
        """Say whether a catalogue's lease has run out."""

    async def renew(self) -> None:
        """Take the newest catalogue under a new lease."""

    async def change(self, edit: Callable[[CatalogEditor], Awaitable[T]], *, committed: Callable[[], None]) -> T:
        """Change the catalogue by one transaction; `edit` may run several times, `committed` is called when the change is made."""

    async def take_id(self) -> int:
        """Take an id for something that a transaction makes, for good."""

    async def commit_draft(
        self, txn: Transaction, draft: CatalogDraft, check: Callable[[Catalog], None], *, is_alone: bool, committed: Callable[[], None]
    ) -> None:
        """Commit a transaction with its changes of the catalogue; `committed` is called when that is done."""

    async def wait_unfenced(self, table_id: int) -> None:
        """Wait until no transaction keeps the others from a table."""


class TransactionStart(Protocol):
    """Starts transactions."""

    def __call__(self, *, read_ts: Timestamp | None = None, start_ts: Timestamp | None = None) -> Transaction:
        """Start one; with `read_ts`, an issued timestamp, it reads there and cannot write.  start_ts: of its attempt before this one."""


class Services:
    """What the statements of a node share.

    begin: starts a transaction; now: the wall clock in microseconds since the epoch, for now() alone; issued: the highest timestamp that
    this node knows to be issued; resolved: a past one at which replicas are read wherever they are, MIN_TIMESTAMP if none is known.
    """

    def __init__(
        self,
        *,
        catalogs: CatalogSource,
        begin: TransactionStart,
        runner: StageRunner,
        engine: QueryEngine,
        cluster: ClusterView,
        steering: ClusterSteering,
        now: Callable[[], int],
        issued: Callable[[], Timestamp] = lambda: MIN_TIMESTAMP,
        resolved: Callable[[], Timestamp] = lambda: MIN_TIMESTAMP,
    ) -> None:
        self.catalogs = catalogs
        self.begin = begin
        self.runner = runner
        self.engine = engine
        self.cluster = cluster
        self.steering = steering
        self.now = now
        self.issued = issued
        self.resolved = resolved
        self.sequences = SequenceCache(begin)


class Execution:
    """One attempt at a statement.  is_within: its transaction goes on after it.

    parameters: the statement's, and behind them the statement values (`bind.binder.STATEMENT_VALUES`); is_holding: it still
    holds its catalogue, which then no change may make older than the last but one; notices: what the client is told beside the result;
    draft: the open transaction's changes of the catalogue, those of this statement included.
    """

    __slots__ = (
        "_held",
        "catalog",
        "draft",
        "has_locked",
        "is_holding",
        "is_within",
        "notices",
        "own_sequences",
        "parameters",
        "services",
        "session",
        "txn",
    )

    def __init__(
        self,
        services: Services,
        session: SessionState,
        catalog: Catalog,
        txn: Transaction,
        parameters: Sequence[Datum],
        *,
        is_within: bool = False,
        is_holding: bool = True,
        draft: CatalogDraft | None = None,
        own_sequences: OwnSequences | None = None,
    ) -> None:
        self.services = services
        self.session = session
        self.catalog = catalog
        self.txn = txn
        self.parameters = parameters
        self.is_within = is_within
        self.has_locked = False
        self._held = catalog
        self.is_holding = is_holding
        self.draft = draft
        self.own_sequences = own_sequences
        self.notices: list[Notice] = []

    async def lock(self, keys: Sequence[bytes], wait: RowWait = RowWait.WAIT) -> list[tuple[bool, bytes | None]]:
        """Lock and read rows; a wait ends with the session's lock_timeout, if it has one."""
        self.has_locked = True
        timeout_s = self.session.lock_timeout_ms / 1000 or None
        return await self._not_holding(self.txn.get_locked(keys, wait=wait, timeout_s=timeout_s))

    async def flush(self) -> None:
        """Lay down what is buffered, which may wait for others."""
        await self._not_holding(self.txn.flush())

    async def _not_holding(self, waiting: Awaitable[T]) -> T:
        """Wait for other transactions, while no change of the catalogue waits for this statement: it may be theirs."""
        if not self.is_holding:
            return await waiting
        catalogs, catalog = self.services.catalogs, self._held
        catalogs.release(catalog)
        is_present = False
        try:
            found = await waiting
        finally:
            is_present = catalogs.resume(catalog)
        if not is_present:
            raise DeadlineExceededError("the catalogue was changed while the statement waited for another transaction")
        return found

    async def get_to_change(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Read rows that the statement is about to change, under their locks: it queues behind others instead of running again.

        Rows that the transaction has read before are not locked: had others changed them since, a lock would not help any more.
        """
        if self.is_within and self.txn.has_read(keys):
            return await self.txn.get(keys)
        return [value for _, value in await self.lock(keys)]

    async def next_values(self, sequence: SequenceDescriptor, count: int) -> list[int]:
        """Take values of a sequence."""
        own = self._own(sequence)
        return own.take(sequence, count) if own is not None else await self.services.sequences.take(sequence, count)

    async def set_sequence(self, sequence: SequenceDescriptor, value: int, *, is_called: bool) -> None:
        """Set a sequence's last value, or its next one."""
        own = self._own(sequence)
        if own is not None:
            own.set(sequence, value, is_called=is_called)
        else:
            await self.services.sequences.set(sequence, value, is_called=is_called)

    def _own(self, sequence: SequenceDescriptor) -> OwnSequences | None:
        if self.draft is not None and sequence.sequence_id in self.draft.own_sequences:
            return self.own_sequences
        return None

    def note_edited(self, editor: CatalogEditor) -> None:
        """Make what a statement has edited part of the open transaction's draft."""
        if not editor.is_changed:
            return
        assert self.own_sequences is not None, "only within a transaction"
        self.draft = (self.draft or draft_of(self.catalog)).edited(editor)
        self.catalog = self.draft.catalog
        for old, new in editor.changes.values():
            if old is None and isinstance(new, SequenceDescriptor):
                self.own_sequences.begin(new)
        for sequence in editor.restarted:
            self.own_sequences.begin(sequence)

    async def settle_catalog(self) -> None:
        """Let go of the catalogue as soon as it covers the timestamp at which all is read: no change of it waits for a long query.

        Raises DeadlineExceededError.
        """
        if self.is_holding:
            if await self.txn.read_timestamp() > self.catalog.lease_expiration:
                raise DeadlineExceededError("the statement would read after the end of the catalogue's lease")
            self.release_catalog()

    def release_catalog(self) -> None:
        """Let go of the catalogue: before a change of it that would wait for this statement, or at its end."""
        if self.is_holding:
            self.is_holding = False
            self.services.catalogs.release(self._held)


class Plan(Protocol):
    """A statement, bound to one version of the catalogue; run any number of times.

    is_writing: it buffers writes, to be committed below the catalogue's lease; is_reading: it reads rows, at a timestamp below the lease.
    """

    is_writing: bool
    is_reading: bool

    async def run(self, execution: Execution) -> Result:
        """Run it in the attempt's transaction."""


def current_database(catalog: Catalog, session: SessionState) -> DatabaseDescriptor:
    """Give the session's database.  Raises InvalidCatalogNameError if it is gone."""
    database = catalog.database(session.database)
    if database is None:
        raise InvalidCatalogNameError(f'database "{session.database}" does not exist')
    return database


def split_name(parts: Sequence[str], catalog: Catalog, session: SessionState) -> tuple[DatabaseDescriptor, str]:
    """Give the database and the name of a dotted name: [[database.]public.]name.

    Raises InvalidCatalogNameError, UndefinedTableError, FeatureNotSupportedError (another database than the session's); of schema
    `system`, which only queries read, WrongObjectTypeError, InsufficientPrivilegeError.
    """
    database = current_database(catalog, session)
    if len(parts) == 3 and parts[0] != database.name:
        raise FeatureNotSupportedError(f'cross-database references are not supported: "{".".join(parts)}"')
    if len(parts) > 1 and parts[-2] == SYSTEM_SCHEMA:
        raise only_readable(parts[-1])
    if len(parts) > 1 and parts[-2] != PUBLIC_SCHEMA:
        raise UndefinedTableError(f'relation "{".".join(parts)}" does not exist', hint=f'The only schema is "{PUBLIC_SCHEMA}".')
    return database, parts[-1]


def find_table(parts: Sequence[str], catalog: Catalog, session: SessionState, *, position: int | None = None) -> TableDescriptor:
    """Give the table of a dotted name.  Raises UndefinedTableError."""
    database, name = split_name(parts, catalog, session)
    table = catalog.table(database.database_id, name)
    if table is None:
        raise UndefinedTableError(f'relation "{".".join(parts)}" does not exist', position=position)
    return table


def table_parts(node: Any) -> tuple[str, ...]:
    """Give the dotted name of a parsed table node."""
    return tuple(part.name for part in node.parts)
