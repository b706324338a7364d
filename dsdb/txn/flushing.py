"""What a transaction has flushed: intents laid before its commit, named by a PENDING record (rules 27 to 29).

    flush ─▶ begin at the anchor's range: PENDING, naming the spans that are about to be written
        └──▶ prewrite, range by range, a layer of the buffer after the other ─▶ all acknowledged, at or below `highest`
    roll_back ─▶ in the spans: what was rolled back is overwritten by what stood there, or by nothing

Invariants:
- first_ts and the anchor are fixed before anything is sent, and never change.
- The record names every key with an intent before the intent is laid: whoever cleans up behind a dead gateway finds all of them.
- Everything that was sent is acknowledged before anything else happens; if it is not, the transaction is lost: it can only be given up.
- What is remembered of all this is bounded: some spans, whatever was written.

Not here: the buffer (`buffer`), the commit (`flushed_commit`).
"""

from collections.abc import Iterable, Sequence

import trio

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.errors import KvError
from dsdb.kv.intents import (
    RECORD_SPANS_MAX,
    BeginTxnRequest,
    EndTxnRequest,
    PrewriteReply,
    PrewriteRequest,
    RecordReply,
    RollBackRequest,
    SpansReply,
    TxnMeta,
    TxnStatus,
    UnpackBlocksRequest,
)
from dsdb.oracle import OracleClient
from dsdb.ranges import Router
from dsdb.sql.errors import ProgramLimitError
from dsdb.sql.ports import TransactionRetryError
from dsdb.storage.keys import Span, key_after
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp
from dsdb.txn.buffer import Layer
from dsdb.txn.counters import TxnCounters
from dsdb.txn.finish import Finisher, FinishJob
from dsdb.txn.limits import TxnLimits
from dsdb.txn.locks import LockKeeper
from dsdb.txn.readspans import condensed, spans_of_keys
from dsdb.txn.sender import Sender

PREWRITE_KEYS_MAX = 1_024
PREWRITE_BYTES = 256 * 1024
"""Keys, and about how many bytes, of one prewrite: two commands of its leaseholder's."""
SPANS_AT_ONCE = 256
"""Spans of one request to roll back."""
MARKS_MAX = 1_000
"""Savepoints that a transaction which has flushed may have open."""
SORTED_AT_ONCE = 8_192
"""Keys that are sorted in one go: some milliseconds."""


class Flushed:
    """What one attempt has flushed."""

    def __init__(
        self,
        router: Router,
        oracle: OracleClient,
        counters: TxnCounters,
        finisher: Finisher,
        keeper: LockKeeper,
        limits: TxnLimits,
        meta: TxnMeta,
    ) -> None:
        self.meta = meta
        self.spans: tuple[Span, ...] = ()
        """Where it may have intents, disjoint, ascending; the record names them."""
        self.highest: Timestamp = MIN_TIMESTAMP
        """All intents stand at or below."""
        self.sequence = 0
        """The highest that was laid."""
        self.bytes = 0
        """Keys and values that were laid."""
        self.writes = 0
        self.is_lost = False
        """Something was sent and is not known to be there: it must be given up."""
        self.is_broken = False
        """The same of a block."""
        self.block_spans: tuple[Span, ...] = ()
        """Where it has block intents, disjoint, ascending; and …"""
        self.block_sequence = 0
        """… the highest sequence of one."""
        self._naming = trio.Lock()
        """One at a time has the record name more: it must not come to name less."""
        self._router = router
        self._oracle = oracle
        self._counters = counters
        self._finisher = finisher
        self._keeper = keeper
        self._limits = limits
        self._has_ended = False

    def sender(self) -> Sender:
        """Give a way to ranges for one piece of work, with patience of its own."""
        return Sender(self._router, self._oracle)

    async def flush(self, layers: Sequence[Layer], marks: Sequence[int], ts: Timestamp) -> None:
        """Lay the layers of a buffer, at `ts` or above.  marks: live ones, ascending.

        Raises KvError, ProgramLimitError, TransactionRetryError: then the transaction is lost.
        """
        self.check_alive()
        self._check_limits(layers, marks)
        # Until all is acknowledged, also if this is cancelled.
        self.is_lost = True
        keys = [await _sorted_keys(layer.writes) for layer in layers]
        # Before the first message, so that nobody takes the gateway for dead meanwhile.
        self._keeper.keep_record(self.meta.attempt, self.meta.anchor)
        async with self._naming:
            for each in keys:
                self.spans = condensed([*self.spans, *spans_of_keys(each, RECORD_SPANS_MAX)], RECORD_SPANS_MAX)
                await trio.lowlevel.checkpoint()
            await self._begin()
        laid: set[bytes] = set()
        for layer, each in zip(layers, keys):
            if each:
                await self._lay(layer, each, tuple([mark for mark in marks if mark < layer.sequence]), ts, laid)
        self._counters.flushes += 1
        self.is_lost = False

    def check_alive(self) -> None:
        """Raise TransactionRetryError if the transaction is lost."""
        if self.is_lost or self.is_broken:
            raise TransactionRetryError("some of what the transaction wrote could not be stored")

    def _check_limits(self, layers: Sequence[Layer], marks: Sequence[int]) -> None:
        if len(marks) > MARKS_MAX:
            raise ProgramLimitError(f"the transaction is large, and has more than {MARKS_MAX} savepoints", hint="Release some of them.")
        size = sum([len(write.key) + len(write.value or b"") for layer in layers for write in layer.writes.values()])
        self._count(sum([len(layer.writes) for layer in layers]), size)

    def _count(self, writes: int, size_bytes: int) -> None:
        if self.bytes + size_bytes > self._limits.transaction_bytes_max:
            raise ProgramLimitError(
                f"the transaction writes more than {self._limits.transaction_bytes_max // 2**20} MiB",
                hint="Cut it into several transactions.",
            )
        self.bytes += size_bytes
        self.writes += writes

    async def _begin(self) -> None:
        """Have the record made, or name what is about to be written."""
        meta, spans = self.meta, self.spans
        reply = await self.sender().send(meta.anchor, lambda desc: BeginTxnRequest(desc.range_id, meta, spans))
        assert isinstance(reply, RecordReply)
        if reply.status is not TxnStatus.PENDING:
            raise TransactionRetryError(LOST[reply.status])

    async def _lay(self, layer: Layer, keys: list[bytes], marks: tuple[int, ...], ts: Timestamp, laid: set[bytes]) -> None:
        meta, writes, sequence = self.meta, layer.writes, layer.sequence
        read_ts = ts
        # Where an earlier layer wrote a key that must be absent, it has looked.
        absent = {key for key, write in writes.items() if write.must_be_absent and key not in laid}
        laid |= absent

        def make(desc: RangeDescriptor, group: tuple[bytes, ...]) -> PrewriteRequest:
            values = tuple([writes[key].value for key in group])
            flags = bytes([key in absent for key in group]) if absent else b""
            return PrewriteRequest(desc.range_id, meta, ts, group, values, sequence, marks, flags, read_ts)

        size = sum([len(key) + len(writes[key].value or b"") for key in keys])
        items_max = max(1, min(PREWRITE_KEYS_MAX, PREWRITE_BYTES * len(keys) // max(size, 1)))
        for _, reply in await self.sender().round_over(keys, self._router.cut_keys, make, items_max=items_max):
            assert isinstance(reply, PrewriteReply)
            self.highest = max(self.highest, reply.ts)
        self.sequence = max(self.sequence, sequence)

    # ---- Blocks ----

    async def name(self, span: Span) -> None:
        """Have the record name a span in which blocks are about to be laid.  Raises KvError, TransactionRetryError."""
        self.check_alive()
        self._keeper.keep_record(self.meta.attempt, self.meta.anchor)
        async with self._naming:
            if not any(named.covers(span) for named in self.spans):
                self.spans = condensed([*self.spans, span], RECORD_SPANS_MAX)
                await self._begin()

    def note_block(self, first_key: bytes, last_key: bytes, rows: int, size_bytes: int, sequence: int) -> None:
        """Note a block that was laid.  Raises ProgramLimitError."""
        self.block_spans = condensed([*self.block_spans, Span(first_key, key_after(last_key))], RECORD_SPANS_MAX)
        self.sequence = max(self.sequence, sequence)
        self.block_sequence = max(self.block_sequence, sequence)
        self._counters.blocks += 1
        self._count(rows, size_bytes)

    async def unpack(self, spans: Sequence[Span]) -> None:
        """Have an intent for each row of the block intents that overlap spans, in their place.  Raises KvError, TransactionRetryError."""
        chosen = [held for held in self.block_spans if any(held.overlaps(span) for span in spans)]
        if not chosen:
            return
        self.check_alive()
        self.is_broken = True
        meta, rest = self.meta, list(chosen)
        while rest:
            replies = await self.sender().round_over(
                rest, self._router.cut_spans, lambda desc, group: UnpackBlocksRequest(desc.range_id, meta, group), items_max=SPANS_AT_ONCE
            )
            rest = []
            for _, reply in replies:
                assert isinstance(reply, SpansReply)
                rest += reply.rest
            rest.sort()
        self.block_spans = tuple([held for held in self.block_spans if held not in chosen])
        self._counters.unpackings += 1
        self.is_broken = False

    async def roll_back(self, to_sequence: int, sequence: int) -> None:
        """Overwrite what was laid above a sequence (rule 29).  Raises KvError, TransactionRetryError: then the transaction is lost."""
        self.check_alive()
        self.is_lost = True
        meta, spans = self.meta, list(self.spans)
        while spans:
            replies = await self.sender().round_over(
                spans,
                self._router.cut_spans,
                lambda desc, group: RollBackRequest(desc.range_id, meta, group, to_sequence, sequence),
                items_max=SPANS_AT_ONCE,
            )
            spans = []
            for _, reply in replies:
                assert isinstance(reply, SpansReply)
                self.highest = max(self.highest, reply.ts)
                spans += reply.rest
            spans.sort()
        self._counters.flushes_rolled_back += 1
        self.sequence = max(self.sequence, sequence)
        self.is_lost = False

    # ---- The end ----

    async def finish(self, commit_ts: Timestamp | None) -> None:
        """Have the intents resolved, and the record removed, behind the client's back: it says what became of the transaction."""
        if not self._has_ended:
            self._has_ended = True
            job = FinishJob(self.meta, (), commit_ts, is_recorded=True, spans=self.spans, ended=self._forget)
            await self._finisher.finish(job)

    async def leave(self) -> None:
        """Leave it to others: what became of it is not known here."""
        self._has_ended = True
        self._forget()

    def abort_later(self) -> None:
        """Give the transaction up, behind the client's back."""
        if not self._has_ended:
            self._finisher.start(self._abort)

    async def _abort(self) -> None:
        try:
            reply = await self.abort()
        except KvError:
            await self.leave()
            raise
        if reply.status in (TxnStatus.ABORTED, TxnStatus.GONE):
            await self.finish(None)
        else:
            await self.leave()

    async def abort(self, sender: Sender | None = None) -> RecordReply:
        """Have the record say ABORTED, if it does not say anything else (rule 17).  Raises KvError."""
        meta = self.meta
        reply = await (sender or self.sender()).send(meta.anchor, lambda desc: EndTxnRequest(desc.range_id, meta, None))
        assert isinstance(reply, RecordReply)
        return reply

    def _forget(self) -> None:
        self._keeper.forget_record(self.meta.attempt)


LOST = {
    TxnStatus.ABORTED: "another transaction aborted this one, which it met, or took its gateway for dead",
    TxnStatus.GONE: "the lease of the range that keeps the record moved",
    TxnStatus.COMMITTED: "the transaction has ended already",
    TxnStatus.STAGING: "the transaction has ended already",
}


async def _sorted_keys(writes: Iterable[bytes]) -> list[bytes]:
    """Sort keys, while others have their turns: runs first, which are merged in no time."""
    keys = list(writes)
    if len(keys) <= SORTED_AT_ONCE:
        return sorted(keys)
    runs: list[bytes] = []
    for at in range(0, len(keys), SORTED_AT_ONCE):
        runs += sorted(keys[at : at + SORTED_AT_ONCE])
        await trio.lowlevel.checkpoint()
    return sorted(runs)
