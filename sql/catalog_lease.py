"""Descriptor leases: which version of the catalogue this node's statements may use, and how a change waits for the others.

    lease row of a node:  system_key("catalog_lease", node id) = (version, expiration)
      the node may use `version` and any later one, for commits and reads up to `expiration`

    statement   acquire() ▸ run, commit with deadline = expiration ▸ release()
    DDL         change(): wait until no live lease is older than V ▸ commit V+1 ▸ ask all nodes to renew ▸ wait until none is older than V+1
    COMMIT      commit_draft(): [fences, by a change()] ▸ wait likewise ▸ lock the version, read the catalogue in the transaction
                ▸ write the draft onto it, commit with all else ▸ ask and wait likewise

A transaction that drops or truncates a table and has read or written other rows must come after all that was written to it, and nobody
may write to it any more afterwards, though he still uses the version before.  So a *fence* goes up first, by a version of its own, under
which nobody else uses the table; the transaction then finds all that was written before as its refreshes do.  A fence that was left
standing is taken down by whoever waits for it, when its time is over.

Invariants:
- At most two adjacent versions are in use in the cluster: V+1 is published only when no unexpired lease is older than V.
- A lease row never claims a version above the oldest that a statement of this node still uses.
- A lease is over when a timestamp above its expiration has been issued: no clock is compared.
- An idle node holds no lease for longer than one duration, and writes nothing.
- A draft commits at a timestamp above all that was committed under leases older than the version that it changes, and needs no lease of
  its own: the version is among what its transaction has read.

Not here: what the catalogue is (`catalog`), how other nodes are told (the notifier).
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
import trio

from dsdb.sql.catalog import VERSION_KEY, Catalog, CatalogEditor, Fence, bootstrap, load_catalog, read_version, take_id
from dsdb.sql.catalog_draft import CatalogDraft, changed_by_others
from dsdb.sql.errors import CannotConnectNowError, SerializationError, SqlError, UnknownOutcomeError
from dsdb.sql.ports import AmbiguousCommitError, DeadlineExceededError, PortError, RangeUnavailableError, Transaction, TransactionRetryError
from dsdb.sql.schema import TableDescriptor
from dsdb.storage.keys import prefix_span, system_key
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp, from_milliseconds

LEASE_DURATION_MS = 10_000
"""How long a lease lasts: also how long a DDL may wait for a node that died."""
NOTIFY_SECONDS = 1.0
"""How long a change waits for the nodes that it tells; their leases bound what it waits for after that."""
ATTEMPTS_MAX = 20
"""Times that a conflicting transaction on the catalogue is run again."""
UNKNOWN_LEASE = "the catalogue cannot be reached: it is not known whether this node's lease was renewed"
_RETRY_PAUSE_S = 0.005
_DRAIN_POLL_S = 0.05
"""Pause between looks at the other nodes' leases while a change waits for them."""

FENCE_MS = 30_000
"""How long a fence stands at most: its transaction commits before, or not at all."""
FENCE_WAIT_S = 15.0
"""How long a transaction waits until nobody uses a table any more that it drops or truncates: longer than a dead node's lease."""
_FENCE_POLL_S = 0.02
_FENCE_POLLS = 25
"""Looks at the catalogue in use, which the fence's owner has renewed everywhere, before it is renewed for the fence's sake."""
_LIFT_S = 5.0
"""How long a failed transaction tries to take its fences down."""

T = TypeVar("T")


class LeaseRow(msgspec.Struct, frozen=True, array_like=True):
    """What a node's lease says: the oldest version it may use, and until when."""

    version: int
    expiration: Timestamp


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(LeaseRow).decode


class CatalogLeases:
    """This node's lease on the catalogue, and the changes that this node makes.

    transactions: begins a transaction; fresh_timestamp: a timestamp issued after the call; notify(version): asks every other live node
    to renew until it uses `version` (it may fail to reach some: their leases run out).
    """

    def __init__(
        self,
        *,
        node_id: int,
        transactions: Callable[[], Transaction],
        fresh_timestamp: Callable[[], Awaitable[Timestamp]],
        notify: Callable[[int], Awaitable[None]],
        duration_ms: int = LEASE_DURATION_MS,
    ) -> None:
        self._node_id = node_id
        self._begin = transactions
        self._fresh_timestamp = fresh_timestamp
        self._notify = notify
        self._duration = from_milliseconds(duration_ms)
        self._current: Catalog | None = None
        """The newest catalogue that this node holds; None before the first lease."""
        self._users: dict[int, int] = {}
        """Running statements by the version they use."""
        self._row: LeaseRow | None = None
        """Our row as last written."""
        self._renewing = trio.Lock()
        self._renewals = 0
        """Renewals begun; whether the last one came to its end is in the next."""
        self._has_renewed = False
        self._failures = 0
        """Renewals that found the cluster out of reach; why the last one did is in the next."""
        self._unreachable = ""
        self._is_used = False
        """Whether a statement came since the last renewal: else the lease may run out."""

    @property
    def newest(self) -> Catalog | None:
        """Give the newest catalogue that this node has seen, for whoever commits nothing by it; None before the first lease."""
        return self._current

    def acquire_nowait(self) -> Catalog | None:
        """Give the catalogue that statements use now, held until `release`; None before the first lease.

        Its lease may have run out: then the statement's commit is refused by its deadline, and `renew` helps.
        """
        catalog = self._current
        if catalog is not None:
            self._is_used = True
            self._users[catalog.version] = self._users.get(catalog.version, 0) + 1
        return catalog

    async def acquire(self) -> Catalog:
        """Give the catalogue that statements use now, held until `release`."""
        while (catalog := self.acquire_nowait()) is None:
            await self.renew()
        return catalog

    def release(self, catalog: Catalog) -> None:
        """End a statement's use of a catalogue that `acquire` gave."""
        left = self._users[catalog.version] - 1
        if left:
            self._users[catalog.version] = left
        else:
            del self._users[catalog.version]

    def resume(self, catalog: Catalog) -> bool:
        """Use a catalogue again that was released for a while; say whether it is still the one in use.  If not, it must not be used."""
        self._users[catalog.version] = self._users.get(catalog.version, 0) + 1
        return self._current is not None and self._current.version == catalog.version

    async def is_over(self, catalog: Catalog) -> bool:
        """Say whether a catalogue's lease has run out: then what it does not have may be there, and what it has may be gone."""
        try:
            return await self._fresh_timestamp() > catalog.lease_expiration
        except RangeUnavailableError:
            return False  # nobody can say; what the statement met stands

    async def renew(self) -> None:
        """Take the newest catalogue under a new lease: one renewal for all who asked before it began; if it fails, for all before it ended.

        Raises CannotConnectNowError, SerializationError.
        """
        asked, failures = self._renewals, self._failures
        async with self._renewing:
            if self._renewals > asked and self._has_renewed:
                return
            if self._failures > failures:
                raise CannotConnectNowError(self._unreachable)
            self._renewals += 1
            self._has_renewed = False
            try:
                await _retried(self._renew)
            except (CannotConnectNowError, UnknownOutcomeError) as error:
                # A lease that was written, and nobody knows of, binds nobody: the statement has done nothing yet.
                self._failures += 1
                self._unreachable = str(error) if isinstance(error, CannotConnectNowError) else UNKNOWN_LEASE
                raise CannotConnectNowError(self._unreachable) from error
            self._has_renewed = True

    async def _renew(self) -> None:
        now = await self._fresh_timestamp()
        txn = self._begin()
        catalog = self._current
        # Reading the version makes the lease row and a new version conflict: one of the two commits first.
        if catalog is None or await read_version(txn) != catalog.version:
            catalog = await load_catalog(txn)
            catalog.lease_expiration = MIN_TIMESTAMP if self._row is None else self._row.expiration
            # Before the row is written, so that no statement takes the old version after its users were counted.  Until then the old
            # row, which allows later versions too, is what the new statements rely on.
            self._current = catalog
        expiration = Timestamp(now + self._duration)
        row = LeaseRow(min(self._users, default=catalog.version), expiration)
        txn.put(self._key(), _encode(row))
        await txn.commit(deadline=expiration)
        self._row = row
        catalog.lease_expiration = expiration
        self._is_used = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the lease fresh while statements come; ends by cancellation."""
        await self.renew()
        task_status.started()
        pause_s = self._duration / from_milliseconds(1000) / 3
        while True:
            await trio.sleep(pause_s)
            lags = self._row is not None and self._current is not None and self._row.version < self._current.version
            if not self._is_used and not lags:
                continue
            try:
                await self.renew()
            except (CannotConnectNowError, SerializationError, UnknownOutcomeError):
                # Statements meet the deadline and say so themselves; the next round tries again.
                continue

    async def renew_to(self, version: int) -> None:
        """Renew, on another node's request, until no statement here uses a version below `version`."""
        while True:
            if self._current is None:
                return
            if self._row is None or self._row.version < version:
                await self.renew()
            if self._row is not None and self._row.version >= version:
                return
            await trio.sleep(_RETRY_PAUSE_S)

    async def change(self, edit: Callable[[CatalogEditor], Awaitable[T]], *, committed: Callable[[], None]) -> T:
        """Change the catalogue by one transaction, and return when every node uses the new version (or lost its lease).

        `edit` may run several times.  Raises what it raises, CannotConnectNowError, SerializationError, UnknownOutcomeError.
        *Durability*: committed when it calls `committed`; a cancellation before that leaves no trace, one after it the change made.
        """
        result, version = await _retried(lambda: self._try_change(edit))
        if version is not None:
            # No await since the commit: what was committed is never taken for cancelled.
            committed()
            await self._publish(version)
        return result

    async def _try_change(self, edit: Callable[[CatalogEditor], Awaitable[T]]) -> tuple[T, int | None]:
        version = await read_version(self._begin())
        # Holds from here on for as long as this is the version: leases are only given at the current one.  And the change, which begins
        # after the wait, has a timestamp above all that was committed under the leases that are gone.
        await self._wait_older_gone(version)
        txn = self._begin()
        catalog = await load_catalog(txn)
        if catalog.version != version:
            raise TransactionRetryError("the catalogue was changed meanwhile")
        editor = CatalogEditor(catalog, lambda: take_id(txn))
        result = await edit(editor)
        if not editor.is_changed:
            return result, None
        next_version = editor.write(txn)
        await txn.commit()
        return result, next_version

    # Changes that are part of a transaction.

    async def take_id(self) -> int:
        """Take an id for something that a transaction makes, for good."""

        async def take() -> int:
            txn = self._begin()
            taken = await take_id(txn)
            await txn.commit()
            return taken

        while True:
            try:
                return await _retried(take)
            except UnknownOutcomeError:
                continue  # perhaps taken, perhaps not: a gap at worst

    async def commit_draft(
        self, txn: Transaction, draft: CatalogDraft, check: Callable[[Catalog], None], *, is_alone: bool, committed: Callable[[], None]
    ) -> None:
        """Commit a transaction with the changes of its draft, and return when every node uses them (or lost its lease).

        check: looks at the catalogue of the day, and raises SerializationError's; is_alone: the transaction has read and written no
        rows.  Raises PortError's of the commit, CannotConnectNowError, SerializationError, UnknownOutcomeError.
        *Durability*: committed when it calls `committed`; what happens before that, cancellation too, leaves no trace but fences, which
        are taken down.
        """
        owner = txn.describe().attempt
        emptied = [] if is_alone else draft.emptied
        until: Timestamp | None = None
        is_committing = False
        try:
            if emptied:
                until = await self._put_fences(emptied, owner)
            await self._lock_version(txn)
            catalog = await load_catalog(txn)
            check(catalog)
            draft.onto(catalog)
            version = draft.write(txn, catalog)
            is_committing = True
            await txn.commit(deadline=until)
        except BaseException:
            with trio.CancelScope(shield=True), trio.move_on_after(_LIFT_S):
                if not is_committing:
                    # Others wait for its lock of the version.
                    await txn.rollback()
                if emptied:
                    await self._lift_fences(owner)
            raise
        committed()
        await self._publish(version)

    async def _lock_version(self, txn: Transaction) -> None:
        """Read the version in a transaction, under a lock, when no lease is older any more."""
        await self._wait_older_gone(await read_version(self._begin()))
        await txn.get_locked([VERSION_KEY])
        version = await read_version(txn)
        await self._wait_older_gone(version)
        # That somebody else has read the version now keeps our commit above all that was committed under the leases that are gone.
        if await read_version(self._begin()) != version:
            raise TransactionRetryError("the catalogue was changed meanwhile")

    async def _put_fences(self, tables: Sequence[TableDescriptor], owner: bytes) -> Timestamp:
        """Keep everybody but the owner from tables; give until when."""
        until = Timestamp(await self._fresh_timestamp() + from_milliseconds(FENCE_MS))

        async def edit(editor: CatalogEditor) -> None:
            for table in tables:
                if editor.catalog.table_by_id(table.table_id) != table or table.table_id in editor.catalog.fences:
                    raise changed_by_others(table, editor.catalog)
                editor.set_fence(Fence(table.table_id, owner, until))

        with trio.move_on_after(FENCE_WAIT_S):
            await self.change(edit, committed=_nothing)
            return until
        raise SerializationError(
            f'could not serialize access: statements still use table "{tables[0].name}", which the transaction drops or truncates',
            hint="Run the transaction again.",
        )

    async def _lift_fences(self, owner: bytes) -> None:
        async def edit(editor: CatalogEditor) -> None:
            for table_id, fence in editor.catalog.fences.items():
                if fence.owner == owner:
                    editor.remove_fence(table_id)

        try:
            # Perhaps nobody was told yet of the version that put them up.
            with trio.move_on_after(NOTIFY_SECONDS):
                await self._notify(await read_version(self._begin()))
            await self.change(edit, committed=_nothing)
        except (PortError, SqlError):
            pass  # who waits for them takes them down when their time is over

    async def wait_unfenced(self, table_id: int) -> None:
        """Wait until nothing keeps this node's statements from a table.  Raises CannotConnectNowError, SerializationError."""
        while True:
            for _ in range(_FENCE_POLLS):
                fence = None if self._current is None else self._current.fences.get(table_id)
                if fence is None:
                    return
                await trio.sleep(_FENCE_POLL_S)
            if fence is not None and await self._fresh_timestamp() > fence.until:
                await self._lift_fences(fence.owner)
            await self.renew()

    async def _publish(self, version: int) -> None:
        """Wait until every node uses a version that was committed.  Raises UnknownOutcomeError if that cannot be found out."""
        try:
            await self._spread(version)
        except (PortError, CannotConnectNowError, SerializationError) as error:
            raise UnknownOutcomeError(
                "the change of the catalogue was committed, but whether every node uses it is not known", detail=f"{error}."
            ) from error

    async def _spread(self, version: int) -> None:
        await self.renew()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.renew_to, version)
            with trio.move_on_after(NOTIFY_SECONDS):
                # Also those whose lease has run out are told, so that their next statement need not find out.
                await self._notify(version)
            await self._wait_older_gone(version)
            nursery.cancel_scope.cancel()

    async def _wait_older_gone(self, version: int) -> None:
        """Wait until no unexpired lease is older than `version`."""
        while await self._has_older(version):
            if self._row is not None and self._row.version < version:
                await self.renew()
            await trio.sleep(_DRAIN_POLL_S if self._row is None or self._row.version >= version else _RETRY_PAUSE_S)

    async def _has_older(self, version: int) -> bool:
        now = await self._fresh_timestamp()
        rows = await self._begin().scan(prefix_span(system_key("catalog_lease")))
        leases = [_decode(value) for _, value in rows]
        return any(lease.version < version and lease.expiration >= now for lease in leases)

    async def found(self) -> None:
        """Write the first catalogue of a new cluster; nothing if there is one."""

        async def write() -> None:
            txn = self._begin()
            if await bootstrap(txn):
                await txn.commit()

        await _retried(write)

    def _key(self) -> bytes:
        return system_key("catalog_lease", self._node_id)


def _nothing() -> None:
    """Nobody is told of a fence."""


async def _retried(attempt: Callable[[], Awaitable[T]]) -> T:
    """Run a transaction on the catalogue until it commits, a bounded number of times."""
    for number in range(1, ATTEMPTS_MAX + 1):
        try:
            return await attempt()
        except (TransactionRetryError, DeadlineExceededError):
            await trio.sleep(_RETRY_PAUSE_S * number)
        except RangeUnavailableError as error:
            raise CannotConnectNowError(f"the catalogue cannot be reached: {error}") from error
        except AmbiguousCommitError as error:
            raise UnknownOutcomeError("whether the change of the catalogue took effect is not known") from error
    raise SerializationError("the catalogue was changed by others at the same time, too often", hint="Run the statement again.")
