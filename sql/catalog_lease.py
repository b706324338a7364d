"""Descriptor leases: which version of the catalogue this node's statements may use, and how a change waits for the others.

    lease row of a node:  system_key("catalog_lease", node id) = (version, expiration)
      the node may use `version` and any later one, for commits and reads up to `expiration`

    statement   acquire() ▸ run, commit with deadline = expiration ▸ release()
    DDL         change(): wait until no live lease is older than V ▸ commit V+1 ▸ ask all nodes to renew ▸ wait until none is older than V+1

Invariants:
- At most two adjacent versions are in use in the cluster: V+1 is published only when no unexpired lease is older than V.
- A lease row never claims a version above the oldest that a statement of this node still uses.
- A lease is over when a timestamp above its expiration has been issued: no clock is compared.
- An idle node holds no lease for longer than one duration, and writes nothing.

Not here: what the catalogue is (`catalog`), how other nodes are told (the notifier).
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import trio

from dsdb.sql.catalog import Catalog, CatalogEditor, bootstrap, load_catalog, read_version
from dsdb.sql.errors import CannotConnectNowError, SerializationError, UnknownOutcomeError
from dsdb.sql.ports import AmbiguousCommitError, DeadlineExceededError, RangeUnavailableError, Transaction, TransactionRetryError
from dsdb.storage.keys import prefix_span, system_key
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp, from_milliseconds

LEASE_DURATION_MS = 10_000
"""How long a lease lasts: also how long a DDL may wait for a node that died."""
NOTIFY_SECONDS = 1.0
"""How long a change waits for the nodes that it tells; their leases bound what it waits for after that."""
ATTEMPTS_MAX = 20
"""Times that a conflicting transaction on the catalogue is run again."""
_RETRY_PAUSE_S = 0.005
_DRAIN_POLL_S = 0.05
"""Pause between looks at the other nodes' leases while a change waits for them."""

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
            except CannotConnectNowError as error:
                self._failures += 1
                self._unreachable = str(error)
                raise
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
        editor = CatalogEditor(txn, catalog)
        result = await edit(editor)
        next_version = editor.finish()
        if not editor.is_changed:
            return result, None
        await txn.commit()
        return result, next_version

    async def _publish(self, version: int) -> None:
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
