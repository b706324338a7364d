"""A transaction at the gateway: reads at one timestamp from the oracle, writes buffered until commit.

    get, scan ──▶ read_ts (the oracle's, at first use) ──▶ leaseholders; what was buffered lies over it; the spans read are remembered
    put, insert, delete ──▶ buffer ── is full ──▶ `flushing`: intents, and a PENDING record
    commit ──▶ all writes in one range ──▶ `commit_one`: one request
          ├──▶ in several              ──▶ `parallel_commit`: one round, and cleaning up behind the client's back
          └──▶ something was flushed   ──▶ `flushed_commit`: the rest is flushed, then the record says so

Invariants:
- The attempt id is made here and never reused; a transaction that is run again takes a new one.
- read_ts and every commit timestamp were issued by the oracle after the transaction began; but for a read of the past, which writes
  nothing, is recorded as nobody's, and lies below an issued timestamp (rule 3).
- Nothing leaves before `commit` but what is flushed, which nobody sees unless the record says COMMITTED.
- A scan sees what was buffered when it began, and nothing that is buffered while it runs.  A flush is asked for by whoever writes, when no
  scan runs; so a statement never meets what it has flushed itself (rule 27).
- What was flushed and rolled back is overwritten before the next read, flush or commit (rule 29).
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import trio

from dsdb.env.disk import Offload
from dsdb.kv.errors import BelowThreshold, KvError, RangeKeyMismatch
from dsdb.kv.ids import AttemptId
from dsdb.kv.intents import TxnMeta
from dsdb.kv.locks import LockWait, NewerReply
from dsdb.kv.requests import ReadReply, ReadRequest, ScanReply, ScanRequest
from dsdb.ranges import CachedRange
from dsdb.sql.errors import InvalidParameterError, InvalidTransactionStateError, SqlError
from dsdb.sql.ports import PortError, RangeUnavailableError, RowWait, TransactionRetryError, TransactionState
from dsdb.storage.keys import Span, key_after, point_span
from dsdb.storage.rowcodec import RowLayout
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp
from dsdb.txn.block_layer import BlockLayer, BlockPlace
from dsdb.txn.buffer import Overlay, WriteBuffer
from dsdb.txn.commit_one import OneRangeCommit
from dsdb.txn.counters import TxnCounters
from dsdb.txn.finish import Finisher
from dsdb.txn.flushed_commit import FlushedCommit
from dsdb.txn.flushing import Flushed
from dsdb.txn.limits import TxnLimits
from dsdb.txn.locks import LockKeeper, TxnLocks
from dsdb.txn.parallel_commit import ParallelCommit
from dsdb.txn.plan import CommitPlan, refresh
from dsdb.txn.port_errors import deadline_exceeded, kept_since, port_error
from dsdb.txn.readspans import ReadsAside, ReadSpans
from dsdb.txn.sender import CUTS_MAX, Sender

SCAN_BYTES_MAX = 4 * 1024 * 1024
"""Bytes of values in one reply of a scan."""
MOVES_MAX = 20
"""Times that one locking read may move the read timestamp before the transaction is run again."""
READ_KEYS_MAX = 512
"""Keys of one read: 3 to 5 ms for its leaseholder."""
SEEN_KEYS_MAX = 256
"""Single keys whose values a transaction keeps: statements that read a row often change it next."""
SEEN_BYTES_MAX = 4096
"""Larger values are asked for again."""
FIRST_TS_AGE_MAX_S = 1.0
"""A transaction that read longer ago takes a fresh first_ts for its record: a lease that moved since would cost it a restart."""
READS_AT_ONCE = 8
"""Reads of one `get` that run side by side."""
SCAN_ROWS_MAX = 10_000
"""Rows in one reply of a scan."""


class KvTransaction:
    """One attempt of one transaction; implements `dsdb.sql.ports.Transaction`."""

    def __init__(
        self,
        sender: Sender,
        attempt: AttemptId,
        counters: TxnCounters,
        finisher: Finisher,
        keeper: LockKeeper,
        *,
        past: Timestamp | None = None,
        start_ts: Timestamp | None = None,
        limits: TxnLimits | None = None,
        worker: Offload | None = None,
    ) -> None:
        """past: read there, and only read; start_ts: of the attempt before: its rank."""
        self.attempt = attempt
        self._sender = sender
        self._counters = counters
        self._finisher = finisher
        self._past = past
        self._read_ts: Timestamp | None = None
        self._read_at_s = 0.0
        """When read_ts was taken, by this node's clock."""
        self._reads = ReadSpans()
        self._seen: dict[bytes, bytes | None] = {}
        """What single keys gave: it stays so, also when the read timestamp moves, as all that was read is then refreshed."""
        self._buffer = WriteBuffer()
        self._limits = limits or TxnLimits()
        self._worker = worker
        self._keeper = keeper
        self._flushed: Flushed | None = None
        """What was laid before the commit, if something was."""
        self._marks: list[int] = []
        """Savepoints that are kept, ascending: what is flushed must still know the way back to them."""
        self._undone_to: int | None = None
        """What was flushed behind this savepoint was rolled back, and still stands there; it was one that was kept, or …"""
        self._is_cut_off = False
        """… what stood there is not known any more."""
        self._is_committing = False
        self._locks = TxnLocks(keeper, sender, attempt, start_ts)

    @property
    def start_ts(self) -> Timestamp | None:
        """Give its rank for locks and intents: the first timestamp of its first attempt."""
        return self._locks.start_ts or self._read_ts

    @property
    def owner(self) -> AttemptId | None:
        """Give the attempt in whose name it reads: nobody's if it reads the past."""
        return self.attempt if self._past is None else None

    # ---- Reading ----

    async def read_timestamp(self) -> Timestamp:
        """Give the timestamp of all reads, taken from the oracle at first use.  Raises RangeUnavailableError."""
        if self._read_ts is None:
            if self._past is not None and self._past <= self._sender.oracle.latest:
                self._set_read_ts(self._past)
                return self._past
            try:
                ts = await self._sender.fresh()
            except KvError as error:
                raise self.port_error(error) from error
            if self._past is not None:
                if self._past > ts:
                    raise InvalidParameterError("the time to read at lies in the future", hint="Choose a time that has passed.")
                ts = self._past
            self._set_read_ts(ts)
            return ts
        return self._read_ts

    def note_read(self, span: Span) -> None:
        """Remember that this transaction reads a span by other means (a leaf stage)."""
        self._reads.add(span)

    def overlay(self, spans: Sequence[Span]) -> Overlay:
        """Give what is buffered now in disjoint, ascending spans, for whoever reads them by other means."""
        return self._buffer.overlay(spans)

    async def begin_read(self, spans: Sequence[Span]) -> Timestamp:
        """Give the timestamp of all reads to whoever is about to read spans by other means.  Raises PortError."""
        await self._undo_flushed()
        await self._unpack(spans)
        return await self.read_timestamp()

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Read values by key."""
        if self._undone_to is not None:
            await self._undo_flushed()
        await self._unpack_at(keys)
        if not self._buffer:
            return await self._get_below(keys)
        own = {key: write for key in keys if (write := self._buffer.get(key)) is not None}
        below = iter(await self._get_below([key for key in keys if key not in own]))
        return [own[key].value if key in own else next(below) for key in keys]

    async def get_locked(
        self, keys: Sequence[bytes], *, wait: RowWait = RowWait.WAIT, timeout_s: float | None = None
    ) -> list[tuple[bool, bytes | None]]:
        """Lock keys, then read them; those that this transaction has written need no lock."""
        if self._past is not None:
            raise InvalidTransactionStateError("a transaction that reads the past cannot lock rows")
        await self._undo_flushed()
        await self._unpack_at(keys)
        found: dict[bytes, tuple[bool, bytes | None]] = {}
        rest = sorted({key for key in keys if self._buffer.get(key) is None})
        until = None if timeout_s is None else self._sender.now() + timeout_s
        moves = 0
        try:
            while rest:
                count, reply = await self._locks.read(rest, self._read_ts, LockWait(wait.value), until)
                if isinstance(reply, NewerReply):
                    moves += 1
                    if moves > MOVES_MAX:
                        raise TransactionRetryError("rows were changed in spite of their locks too often", rest[0])
                    await self._move_read_ts(reply.ts)
                    continue
                if self._read_ts is None:
                    self._set_read_ts(reply.ts)
                group, rest = rest[:count], rest[count:]
                found.update(zip(group, zip(reply.locked, reply.values)))
                self._reads.add_keys(key for key, is_locked in zip(group, reply.locked) if is_locked)
        except KvError as error:
            raise self.port_error(error) from error
        return [found[key] if (own := self._buffer.get(key)) is None else (True, own.value) for key in keys]

    def has_read(self, keys: Sequence[bytes]) -> bool:
        """Say whether keys were read before, so that `get` gives them again without asking."""
        seen = self._seen
        return all(key in seen for key in keys)

    @contextlib.contextmanager
    def unrecorded(self) -> Iterator[ReadsAside]:
        """Read without remembering it."""
        reads = self._reads
        found = ReadsAside(reads)
        self._reads = found.aside
        seen, self._seen = self._seen, {}
        try:
            yield found
        finally:
            self._reads, self._seen = reads, seen

    async def _move_read_ts(self, above: Timestamp) -> None:
        """Read at a fresh timestamp from now on: what was read before must be unchanged up to it (rules 5 and 7).  Raises KvError."""
        ts = await self._sender.fresh(above=above)
        if self._read_ts is not None:
            await refresh(self._sender, self._counters, self._plan(None, has_writes=False), self._reads.merged(), ts)
        self._set_read_ts(ts)

    async def scan(self, span: Span, *, limit: int | None = None, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        """Read keys and values of a span, in key order or from the highest down."""
        if span.is_empty or limit == 0:
            return []
        ts = await self.begin_read([span])
        overlay = self._buffer.overlay([span])
        rows: list[tuple[bytes, bytes]] = []
        rest = span
        while not rest.is_empty and (limit is None or len(rows) < limit):
            reply, done = await self._scan_piece(rest, ts, SCAN_ROWS_MAX if limit is None else limit - len(rows), reverse)
            found = list(zip(reply.keys, reply.values))
            if overlay.keys:
                merged = overlay.clipped([done]).merged(found)
                found = merged[::-1] if reverse else merged
            rows.extend(found)
            rest = Span(rest.start, done.start) if reverse else Span(done.end, rest.end)
        # The span that was looked at is what was read, also where nothing was found (rule 3).
        self._reads.add(Span(rest.end, span.end) if reverse else Span(span.start, rest.start))
        return rows if limit is None else rows[:limit]

    # ---- Writing ----

    def put(self, key: bytes, value: bytes) -> None:
        """Buffer a write."""
        self._write(key, value)

    def insert(self, key: bytes, value: bytes) -> None:
        """Buffer a write of a key that must be absent."""
        self._write(key, value, must_be_absent=True)

    def delete(self, key: bytes) -> None:
        """Buffer a removal."""
        self._write(key, None)

    def _write(self, key: bytes, value: bytes | None, *, must_be_absent: bool = False) -> None:
        if self._past is not None:
            raise InvalidTransactionStateError("a transaction that reads the past cannot write")
        self._buffer.put(key, value, must_be_absent=must_be_absent)

    def savepoint(self, *, is_kept: bool = True) -> int:
        """Mark this place in the writes.

        is_kept: the transaction may go on after it was rolled back to it, until `release`; else only give up what came after it.
        """
        mark = self._buffer.savepoint()
        if is_kept:
            self._marks.append(mark)
        return mark

    def release(self, savepoint: int) -> None:
        """Forget a savepoint, and those behind it: what was written stays."""
        self._marks = [mark for mark in self._marks if mark < savepoint]

    def rollback_to(self, savepoint: int) -> None:
        """Forget the writes behind a mark, and the savepoints behind it."""
        self._marks = [mark for mark in self._marks if mark <= savepoint]
        self._buffer.rollback_to(savepoint)
        if self._flushed is not None and self._flushed.sequence > savepoint and (self._undone_to is None or savepoint < self._undone_to):
            self._undone_to, self._is_cut_off = savepoint, savepoint not in self._marks

    def describe(self) -> TransactionState:
        """Say what it has done so far."""
        flushed = self._flushed
        return TransactionState(
            attempt=self.attempt,
            read_timestamp=self._read_ts,
            writes=len(self._buffer) + (0 if flushed is None else flushed.writes),
            bytes=self._buffer.size_bytes + (0 if flushed is None else flushed.bytes),
            is_committing=self._is_committing,
        )

    async def rollback(self) -> None:
        """Give the transaction up: what has left, locks and flushed intents, is taken back behind the client's back."""
        self._buffer.clear()
        self._locks.end()
        if self._flushed is not None:
            self._flushed.abort_later()

    # ---- Flushing ----

    @property
    def is_full(self) -> bool:
        """Say whether so much is buffered that it should be flushed before more is written."""
        return self._buffer.size_bytes >= self._limits.flush_bytes or len(self._buffer) >= self._limits.flush_keys

    @property
    def has_flushed(self) -> bool:
        """Say whether intents were laid before the commit: then the transaction must be committed or rolled back."""
        return self._flushed is not None

    async def flush(self) -> None:
        """Lay what is buffered as intents (rule 27).  Raises PortError, SqlError: then the transaction can only be given up."""
        await self._undo_flushed()
        if not self._buffer:
            return
        # A key that must be absent is looked for in blocks, too.
        await self._unpack_at([write.key for write in self._buffer.writes() if not write.must_be_absent])
        ts = await self.read_timestamp()
        try:
            layers = self._buffer.layers(self._marks)
            if self._flushed is None:
                self._flushed = await self._first_flushed(next(iter(layers[0].writes)))
                self._locks.has_laid = True
            await self._flushed.flush(layers, self._marks, ts)
        except KvError as error:
            raise self.port_error(error) from error
        # Flushed, they are read where they lie.
        self._seen.clear()
        self._buffer.clear()

    async def _first_flushed(self, anchor: bytes) -> Flushed:
        sender = self._sender
        first_ts = await sender.fresh() if sender.now() - self._read_at_s > FIRST_TS_AGE_MAX_S else self._read_ts
        assert first_ts is not None
        meta = TxnMeta(self.attempt, anchor, first_ts, self.start_ts or first_ts)
        return Flushed(sender.router, sender.oracle, self._counters, self._finisher, self._keeper, self._limits, meta)

    async def _undo_flushed(self) -> None:
        """Overwrite what was flushed and rolled back.  Raises PortError."""
        to = self._undone_to
        if to is None or self._flushed is None:
            return
        if self._is_cut_off:
            # Nobody was to go on from there.
            self._flushed.is_lost = True
        try:
            if self._flushed.block_sequence > to:
                await self._flushed.unpack(self._flushed.block_spans)
            await self._flushed.roll_back(to, self._buffer.savepoint())
        except KvError as error:
            raise self.port_error(error) from error
        self._undone_to = None
        self._seen.clear()

    # ---- Blocks ----

    def block_layer(self, layout: RowLayout) -> BlockLayer:
        """Give a way to lay very many rows at once."""
        return BlockLayer(layout, self._begin_blocks, self.port_error, self._worker)

    async def _begin_blocks(self, first_key: bytes, last_key: bytes) -> BlockPlace:
        if self._past is not None:
            raise InvalidTransactionStateError("a transaction that reads the past cannot write")
        await self._undo_flushed()
        ts = await self.read_timestamp()
        if self._flushed is None:
            self._flushed = await self._first_flushed(first_key)
            self._locks.has_laid = True
        await self._flushed.name(Span(first_key, key_after(last_key)))
        self._seen.clear()
        return BlockPlace(self._flushed, ts, self._buffer.savepoint())

    async def _unpack_at(self, keys: Iterable[bytes]) -> None:
        if self._flushed is not None and self._flushed.block_spans:
            spans = self._flushed.block_spans
            await self._unpack([point_span(key) for key in keys if any(span.contains(key) for span in spans)])

    async def _unpack(self, spans: Sequence[Span]) -> None:
        """Have rows that were laid as blocks lie one by one, before they are read or changed.  Raises PortError, SqlError."""
        if self._flushed is not None and self._flushed.block_spans:
            try:
                await self._flushed.unpack(spans)
            except KvError as error:
                raise self.port_error(error) from error

    # ---- Committing ----

    async def commit(self, *, deadline: Timestamp | None = None) -> Timestamp:
        """Commit; see `dsdb.sql.ports.Transaction.commit`.

        Cancellation: waits for the outcome, which is bounded by the transaction's patience; nobody is told "cancelled" of a commit that
        may have taken effect.
        """
        if not self._buffer and self._flushed is None:
            self._locks.end()
            ts = await self.read_timestamp()
            if deadline is not None and ts >= deadline and self._past is None:
                raise deadline_exceeded()
            return ts
        self._is_committing = True
        committed_at = MIN_TIMESTAMP
        with trio.CancelScope(shield=True):
            try:
                committed_at = await self._commit(deadline)
            except BaseException:
                self._locks.end()
                raise
            # Where it wrote, its locks end with its outcome.
            self._locks.end([write.key for write in self._buffer.writes()])
        self._sender.oracle.note(committed_at)
        self._is_committing = False
        return committed_at

    def _plan(self, deadline: Timestamp | None, *, has_writes: bool = True) -> CommitPlan:
        return CommitPlan(
            attempt=self.attempt,
            writes=self._buffer.writes() if has_writes else (),
            read_ts=self._read_ts,
            read_age_s=0.0 if self._read_ts is None else self._sender.now() - self._read_at_s,
            reads=self._reads.merged(),
            deadline=deadline,
            start_ts=self.start_ts,
            holds_locks=self._locks.holds_any,
        )

    async def _commit_flushed(self, flushed: Flushed, deadline: Timestamp | None) -> Timestamp:
        try:
            await self.flush()
        except BaseException:
            flushed.abort_later()
            raise
        return await FlushedCommit(flushed, self._counters, self._plan(deadline, has_writes=False)).run()

    async def _commit(self, deadline: Timestamp | None) -> Timestamp:
        try:
            if self._flushed is not None:
                return await self._commit_flushed(self._flushed, deadline)
            plan = self._plan(deadline)
            ts = await OneRangeCommit(self._sender, self._counters, plan).run()
            if ts is None:
                # Under the same attempt id: nothing of the first try can take effect any more.
                ts = await ParallelCommit(self._sender, self._counters, self._finisher, plan).run()
        except KvError as error:
            found = self.port_error(error)
            self._counters.note_end(found)
            raise found from error
        except PortError as error:
            self._counters.note_end(error)
            raise
        return ts

    # ---- Reads, range by range ----

    async def _get_below(self, keys: Sequence[bytes]) -> list[bytes | None]:
        if not keys:
            return []
        if self._seen and self.has_read(keys):
            return [self._seen[key] for key in keys]
        if len(keys) == 1 and self._past is None:
            return [await self._get_one(keys[0])]
        ts = await self.read_timestamp()
        found: dict[bytes, bytes | None] = {}
        wanted = sorted(set(keys))
        for at in range(0, len(wanted), READ_KEYS_MAX * READS_AT_ONCE):
            try:
                replies = await self._sender.round_over(
                    wanted[at : at + READ_KEYS_MAX * READS_AT_ONCE],
                    self._sender.router.cut_keys,
                    lambda desc, group: ReadRequest(desc.range_id, group, ts, self.owner, any_replica=self._past is not None),
                    items_max=READ_KEYS_MAX,
                    is_reading=True,
                )
            except KvError as error:
                raise self.port_error(error) from error
            for group, reply in replies:
                assert isinstance(reply, ReadReply)
                found.update(zip(group, reply.values))
            await trio.lowlevel.checkpoint()
        self._reads.add_keys(found)
        if len(found) <= SEEN_KEYS_MAX:
            for key, value in found.items():
                self._keep_seen(key, value)
        return [found[key] for key in keys]

    async def _get_one(self, key: bytes) -> bytes | None:
        """Read one key: at read_ts, or at the timestamp that its leaseholder takes, if it is the first read."""
        ts = self._read_ts
        if ts is None:
            ts = self._sender.oracle.fresh_nowait()
        keys = (key,)
        attempt = self.attempt
        try:
            reply = None
            if ts is not None:
                reply = self._sender.router.try_send(key, lambda desc: ReadRequest(desc.range_id, keys, ts, attempt))
            if reply is None:
                reply = await self._sender.send(key, lambda desc: ReadRequest(desc.range_id, keys, ts, attempt))
        except KvError as error:
            raise self.port_error(error) from error
        assert isinstance(reply, ReadReply)
        if self._read_ts is None:
            self._set_read_ts(reply.ts)
        self._reads.add_keys(keys)
        self._keep_seen(key, reply.values[0])
        return reply.values[0]

    def _keep_seen(self, key: bytes, value: bytes | None) -> None:
        if len(self._seen) < SEEN_KEYS_MAX and (value is None or len(value) <= SEEN_BYTES_MAX):
            self._seen[key] = value

    async def _scan_piece(self, rest: Span, ts: Timestamp, rows_max: int, reverse: bool) -> tuple[ScanReply, Span]:
        """Scan the part of `rest` in its first (or last) range; give the reply and the span that it covers."""
        for _ in range(CUTS_MAX):
            try:
                entry = await self._end_range(rest, reverse)
                piece = rest.clipped(entry.desc.span)
                limits = (min(rows_max, SCAN_ROWS_MAX), SCAN_BYTES_MAX)
                request = ScanRequest(entry.desc.range_id, piece, ts, *limits, reverse, self.owner, any_replica=self._past is not None)
                reply = await self._sender.send(piece.start, lambda _, request=request: request)  # type: ignore[misc]
            except KvError as error:
                if isinstance(error.detail, RangeKeyMismatch):
                    continue
                raise self.port_error(error) from error
            assert isinstance(reply, ScanReply)
            if reply.resume is None:
                return reply, piece
            return reply, Span(reply.resume.end, piece.end) if reverse else Span(piece.start, reply.resume.start)
        raise RangeUnavailableError("the range was split too often during a scan")

    async def _end_range(self, span: Span, reverse: bool) -> CachedRange:
        """Give the first range of a span, or the last."""
        if reverse:
            return (await self._sender.router.ranges(span))[-1]
        return await self._sender.lookup(span.start)

    def _set_read_ts(self, ts: Timestamp) -> None:
        # Some other node may have taken it: the next transactions of this gateway are younger all the same (rule 30).
        self._sender.oracle.note(ts)
        self._read_ts = ts
        self._read_at_s = self._sender.now()

    def port_error(self, error: KvError) -> PortError | SqlError:
        """Translate what a range answered to this transaction, or to whoever reads for it, into what execution knows."""
        if self._past is not None and isinstance(error.detail, BelowThreshold):
            return kept_since(error.detail.threshold)
        return port_error(error)
