"""A transaction at the gateway: reads at one timestamp from the oracle, writes buffered until commit, commit in one range.

    get, scan ──▶ read_ts (the oracle's, at first use) ──▶ leaseholders; the spans read are remembered
    put, insert, delete ──▶ buffer
    commit ──▶ one CommitRequest to the range of the writes
                 ├─ committed at ts
                 ├─ Bump: a fresh c, refresh the spans read in other ranges at c, send again (rule 6)
                 ├─ Conflict ──▶ TransactionRetryError: run it again, as another attempt
                 └─ no answer, Ambiguous ──▶ the same attempt again, until it is known or the time is over (rules 8 to 10)

Invariants:
- The attempt id is made here and never reused; a transaction that is run again takes a new one.
- read_ts and every commit timestamp were issued by the oracle after the transaction began.
- Nothing leaves before `commit`, so an error before it left no trace.

Not here: writes over several ranges, which raise MultiRangeWriteError.
"""

from collections.abc import Callable, Sequence

import trio

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.errors import (
    AmbiguousResult,
    BelowThreshold,
    Conflict,
    DeadlinePassed,
    DiskTrouble,
    Gone,
    KeyExists,
    KvError,
    RangeKeyMismatch,
    Refused,
)
from dsdb.kv.ids import AttemptId, NodeId
from dsdb.kv.requests import (
    BumpReply,
    CommitReply,
    CommitRequest,
    ReadReply,
    ReadRequest,
    RefreshReply,
    RefreshRequest,
    Reply,
    Request,
    ScanReply,
    ScanRequest,
    Write,
)
from dsdb.oracle import OracleClient
from dsdb.ranges import CachedRange, Router
from dsdb.sql.errors import DataCorruptedError, DiskFullError, InternalError, ProgramLimitError, SqlError
from dsdb.sql.ports import (
    AmbiguousCommitError,
    DeadlineExceededError,
    KeyExistsError,
    MultiRangeWriteError,
    PortError,
    RangeUnavailableError,
    TransactionRetryError,
)
from dsdb.storage.keys import Span, point_span
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp

BUFFER_BYTES_MAX = 8 * 1024 * 1024
"""Keys and values that a transaction may write: it commits as one Raft command."""
SCAN_BYTES_MAX = 4 * 1024 * 1024
"""Bytes of values in one reply of a scan."""
READ_KEYS_MAX = 512
"""Keys of one read: 3 to 5 ms for its leaseholder."""
SCAN_ROWS_MAX = 10_000
"""Rows in one reply of a scan."""
BUMPS_MAX = 20
"""Commits tried at ever later timestamps before the transaction is run again."""
PATIENCE_S = 10.0
"""How long a transaction waits, all in all, for ranges and the oracle that do not answer."""
PATIENCE_LEAST_S = 1.0
"""What each call may take besides: work, not waiting."""
FIRST_TS_AGE_MAX = 20_000 << 18
"""How old, in timestamps, a known timestamp may be to stand as `first_ts`: well inside the time for which outcomes are kept."""


class AttemptIds:
    """Makes attempt ids that no other start of any node makes: node id, start (milliseconds), counter."""

    def __init__(self, node_id: NodeId, started_ms: int) -> None:
        self._prefix = node_id.to_bytes(3, "big") + started_ms.to_bytes(7, "big")
        self._counter = 0

    def make(self) -> AttemptId:
        """Give a new id."""
        self._counter += 1
        return AttemptId(self._prefix + self._counter.to_bytes(6, "big"))


class TransactionFactory:
    """Begins transactions on this node."""

    def __init__(self, *, router: Router, oracle: OracleClient, attempts: AttemptIds) -> None:
        self._router = router
        self._oracle = oracle
        self._attempts = attempts

    def begin(self) -> "KvTransaction":
        """Begin a transaction; it costs nothing until it reads or commits."""
        return KvTransaction(self._router, self._oracle, self._attempts)


class KvTransaction:
    """One attempt of one transaction; implements `dsdb.sql.ports.Transaction`."""

    def __init__(self, router: Router, oracle: OracleClient, attempts: AttemptIds) -> None:
        self.router = router
        self._oracle = oracle
        self._attempts = attempts
        self._attempt: AttemptId | None = None
        self._read_ts: Timestamp | None = None
        self._reads: list[Span] = []  # every span read, as asked for
        self._writes: dict[bytes, Write] = {}
        self._write_bytes = 0
        self._journal: list[tuple[bytes, Write | None]] = []
        """What each buffered write replaced, for going back to a savepoint."""
        self._patience_s = PATIENCE_S

    @property
    def attempt(self) -> AttemptId:
        """Give this attempt's id."""
        if self._attempt is None:
            self._attempt = self._attempts.make()
        return self._attempt

    async def read_timestamp(self) -> Timestamp:
        """Give the timestamp of all reads, taken from the oracle at first use.  Raises RangeUnavailableError."""
        if self._read_ts is None:
            try:
                self._read_ts = await self._fresh()
            except KvError as error:
                raise _port_error(error) from error
        return self._read_ts

    def note_read(self, span: Span) -> None:
        """Remember that this transaction reads a span by other means (a leaf stage)."""
        self._reads.append(span)

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Read values by key."""
        if not keys:
            return []
        if self._writes:
            return await self._get_over_buffer(keys)
        if len(keys) == 1:
            return [await self._get_one(keys[0])]
        ts = await self.read_timestamp()
        found: dict[bytes, bytes | None] = {}
        remaining = sorted(set(keys))
        while remaining:
            entry = await self._lookup(remaining[0])
            batch = tuple([key for key in remaining[:READ_KEYS_MAX] if entry.start_key <= key < entry.end_key])
            try:
                reply = await self._send(batch[0], lambda desc, batch=batch: ReadRequest(desc.range_id, batch, ts, self.attempt))  # type: ignore[misc]
            except KvError as error:
                if isinstance(error.detail, RangeKeyMismatch):
                    continue  # the range was split meanwhile, and the cache knows it now
                raise _port_error(error) from error
            assert isinstance(reply, ReadReply)
            found.update(zip(batch, reply.values))
            # Of the sorted keys those of a range, or the first of them, come first.
            remaining = remaining[len(batch) :]
            if remaining:
                await trio.lowlevel.checkpoint()
        self._reads.extend(point_span(key) for key in found)
        return [found[key] for key in keys]

    async def scan(self, span: Span, *, limit: int | None = None, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        """Read keys and values of a span, in key order or from the highest down."""
        if self._writes:
            raise InternalError("a scan after a buffered write of the same statement")
        ts = await self.read_timestamp()
        rows: list[tuple[bytes, bytes]] = []
        rest = span
        while not rest.is_empty and (limit is None or len(rows) < limit):
            reply, done = await self._scan_piece(rest, ts, SCAN_ROWS_MAX if limit is None else limit - len(rows), reverse)
            rows.extend(zip(reply.keys, reply.values))
            rest = Span(rest.start, done.start) if reverse else Span(done.end, rest.end)
        # The span that was asked for is what was read, also where nothing was found (rule 3).
        self._reads.append(span)
        return rows

    def put(self, key: bytes, value: bytes) -> None:
        """Buffer a write."""
        previous = self._writes.get(key)
        self._buffer(Write(key, value, previous is not None and previous.must_be_absent))

    def insert(self, key: bytes, value: bytes) -> None:
        """Buffer a write of a key that must be absent."""
        self._buffer(Write(key, value, key not in self._writes))

    def delete(self, key: bytes) -> None:
        """Buffer a removal."""
        self._buffer(Write(key, None))

    def savepoint(self) -> int:
        """Mark this place in the buffered writes."""
        return len(self._journal)

    def rollback_to(self, savepoint: int) -> None:
        """Forget the writes that were buffered behind a mark."""
        while len(self._journal) > savepoint:
            key, replaced = self._journal.pop()
            if replaced is None:
                del self._writes[key]
            else:
                self._writes[key] = replaced
        self._write_bytes = sum(len(write.key) + len(write.value or b"") for write in self._writes.values())

    async def rollback(self) -> None:
        """Give the transaction up: nothing has left yet."""
        self.rollback_to(0)

    async def commit(self, *, deadline: Timestamp | None = None) -> Timestamp:
        """Commit; see `dsdb.sql.ports.Transaction.commit`.

        Cancellation: waits for the outcome, which is bounded by the router's deadline; nobody is told "cancelled" of a commit that
        may have taken effect.
        """
        if not self._writes:
            ts = await self.read_timestamp()
            if deadline is not None and ts >= deadline:
                raise DeadlineExceededError("the catalogue lease ran out")
            return ts
        committed_at = MIN_TIMESTAMP
        with trio.CancelScope(shield=True):
            committed_at = await self._commit(deadline)
        return committed_at  # noqa: RET504  (a scope may swallow what ends its block, for all that mypy knows)

    async def _commit(self, deadline: Timestamp | None) -> Timestamp:
        writes = tuple(self._writes.values())
        key = writes[0].key
        ts: Timestamp | None = None
        try:
            if self._read_ts is None:
                ts = self._oracle.fresh_nowait()
            first_ts = await self._first_ts(ts)
            for _ in range(BUMPS_MAX):
                reply = await self._send_commit(key, writes, ts, first_ts, deadline)
                if isinstance(reply, CommitReply):
                    return reply.ts
                ts = await self._fresh()
                while ts <= reply.bound:
                    ts = await self._fresh()
        except KvError as error:
            raise _port_error(error) from error
        raise TransactionRetryError("the commit timestamp was bumped too often")

    async def _first_ts(self, ts: Timestamp | None) -> Timestamp:
        """Give a timestamp issued before anything of the commit was sent, and not too old (rule 11)."""
        if ts is not None:
            return ts
        known = self._read_ts or self._oracle.latest
        if known == MIN_TIMESTAMP or self._oracle.latest - known > FIRST_TS_AGE_MAX:
            return await self._fresh()
        return known

    async def _send_commit(
        self, key: bytes, writes: tuple[Write, ...], ts: Timestamp | None, first_ts: Timestamp, deadline: Timestamp | None
    ) -> CommitReply | BumpReply:
        for _ in range(3):
            entry = await self._lookup(key)
            if not all(entry.start_key <= write.key < entry.end_key for write in writes):
                raise MultiRangeWriteError(f"{len(writes)} writes lie in more than one range")
            whole = Span(entry.start_key, entry.end_key)
            local = tuple(span.clipped(whole) for span in self._reads if span.overlaps(whole))
            others = any(not whole.covers(span) for span in self._reads)
            if others:
                # The leaseholder cannot choose: only here is known up to which timestamp the reads elsewhere hold.
                ts = self._read_ts if ts is None else ts
                await self._refresh_others(entry, ts)
            request = CommitRequest(entry.desc.range_id, self.attempt, first_ts, ts, writes, self._read_ts, local, others, deadline)
            try:
                # Built for this descriptor: if the range is split on the way, it answers with a mismatch, and the cut is made again.
                reply = await self._send(key, lambda _, request=request: request)  # type: ignore[misc]
            except KvError as error:
                if isinstance(error.detail, RangeKeyMismatch):
                    continue
                raise
            assert isinstance(reply, CommitReply | BumpReply)
            return reply
        raise TransactionRetryError("the range was split too often during the commit")

    async def _refresh_others(self, home: CachedRange, high: Timestamp | None) -> None:
        """Check that what was read outside the range of the writes is unchanged up to `high`.

        Done again before each send, as a split since the last one moves reads out of that range.
        """
        if self._read_ts is None or high is None or high <= self._read_ts:
            return
        for entry, span in await self.router.cut(self._reads):
            if entry.desc.range_id == home.desc.range_id:
                continue
            request = RefreshRequest(entry.desc.range_id, self.attempt, (span,), self._read_ts, high)
            try:
                reply = await self._send(span.start, lambda _, request=request: request)  # type: ignore[misc]
            except KvError as error:
                if isinstance(error.detail, RangeKeyMismatch):
                    raise TransactionRetryError("a range was split during the refresh") from error
                raise
            assert isinstance(reply, RefreshReply)

    async def _get_one(self, key: bytes) -> bytes | None:
        """Read one key: at read_ts, or at the timestamp that its leaseholder takes, if it is the first read."""
        ts = self._read_ts
        if ts is None:
            ts = self._oracle.fresh_nowait()
        keys = (key,)
        attempt = self.attempt
        try:
            reply = None
            if ts is not None:
                reply = self.router.try_send(key, lambda desc: ReadRequest(desc.range_id, keys, ts, attempt))
            if reply is None:
                reply = await self._send(key, lambda desc: ReadRequest(desc.range_id, keys, ts, attempt))
        except KvError as error:
            raise _port_error(error) from error
        assert isinstance(reply, ReadReply)
        self._read_ts = reply.ts
        self._reads.append(point_span(key))
        return reply.values[0]

    async def _get_over_buffer(self, keys: Sequence[bytes]) -> list[bytes | None]:
        writes, self._writes = self._writes, {}
        try:
            below = await self.get([key for key in keys if key not in writes])
        finally:
            self._writes = writes
        rest = iter(below)
        return [writes[key].value if key in writes else next(rest) for key in keys]

    async def _scan_piece(self, rest: Span, ts: Timestamp, rows_max: int, reverse: bool) -> tuple[ScanReply, Span]:
        """Scan the part of `rest` in its first (or last) range; give the reply and the span that it covers."""
        key = rest.start
        if reverse:
            key = (await self._last_range(rest)).start_key
        for _ in range(10):
            entry = await self._lookup(key)
            piece = rest.clipped(Span(entry.start_key, entry.end_key))
            request = ScanRequest(entry.desc.range_id, piece, ts, min(rows_max, SCAN_ROWS_MAX), SCAN_BYTES_MAX, reverse, self.attempt)
            try:
                reply = await self._send(piece.start, lambda _, request=request: request)  # type: ignore[misc]
            except KvError as error:
                if isinstance(error.detail, RangeKeyMismatch):
                    if reverse:
                        key = (await self._last_range(rest)).start_key
                    continue
                raise _port_error(error) from error
            assert isinstance(reply, ScanReply)
            if reply.resume is None:
                return reply, piece
            return reply, Span(reply.resume.end, piece.end) if reverse else Span(piece.start, reply.resume.start)
        raise RangeUnavailableError("the range was split too often during a scan")

    async def _send(self, key: bytes, make: Callable[[RangeDescriptor], Request]) -> Reply:
        """Get an answer from the range that holds `key`, as far as this transaction's patience goes."""
        began = self.router.clock.now()
        try:
            return await self.router.send(key, make, deadline_s=self._patience_s)
        finally:
            self._lose_patience(began)

    async def _fresh(self) -> Timestamp:
        began = self.router.clock.now()
        try:
            return await self._oracle.fresh(timeout_s=self._patience_s)
        finally:
            self._lose_patience(began)

    def _lose_patience(self, began: float) -> None:
        """Count what a call took beyond what is usual, so that one transaction does not wait for each of its calls in full (B22)."""
        slow_s = self.router.clock.now() - began - PATIENCE_LEAST_S
        if slow_s > 0:
            self._patience_s = max(self._patience_s - slow_s, PATIENCE_LEAST_S)

    async def _last_range(self, span: Span) -> CachedRange:
        try:
            return (await self.router.ranges(span))[-1]
        except KvError as error:
            raise _port_error(error) from error

    async def _lookup(self, key: bytes) -> CachedRange:
        try:
            return self.router.cache.lookup(key) or await self.router.lookup(key)
        except KvError as error:
            raise _port_error(error) from error

    def _buffer(self, write: Write) -> None:
        self._journal.append((write.key, self._writes.get(write.key)))
        self._writes[write.key] = write
        self._write_bytes += len(write.key) + len(write.value or b"")
        if self._write_bytes > BUFFER_BYTES_MAX:
            raise ProgramLimitError(
                f"the statement writes more than {BUFFER_BYTES_MAX // 2**20} MiB",
                hint="Cut it into several statements, or load the rows in batches.",
            )


def _port_error(error: KvError) -> PortError | SqlError:
    """Translate what a range answered into what execution knows."""
    match error.detail:
        case KeyExists(key):
            return KeyExistsError(key)
        case Conflict(key):
            return TransactionRetryError(str(error), key)
        case Refused():
            return TransactionRetryError(str(error))
        case DeadlinePassed():
            return DeadlineExceededError("the catalogue lease ran out")
        case AmbiguousResult(reason):
            return AmbiguousCommitError(reason)
        case Gone():
            return AmbiguousCommitError("the outcome of this attempt is no longer recorded")
        case BelowThreshold():
            return RangeUnavailableError("the statement ran longer than old versions are kept")
        case DiskTrouble(reason, damaged):
            return DataCorruptedError(reason) if damaged else DiskFullError(reason)
        case detail:
            return RangeUnavailableError(getattr(detail, "reason", repr(detail)))
