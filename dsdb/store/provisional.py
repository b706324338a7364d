"""Block intents: columnar blocks that a transaction has laid before its commit, each holding its span for itself (rule 33).

    LayBlockCommand ─▶ chunks in BLOCK, unseen; the intent in META and here ─┬─ resolved at c: an entry in INDEX, all rows of c
                                                                             └─ aborted, or above c: the chunks go

A block intent stands for an intent on every key of [first key, last key], also on those that it has no row of.  It is named by its first
key: whoever meets one settles, and resolves, "the intent at that key".

Invariants:
- Block intents of a range never overlap, and no version, tombstone, block or foreign intent lies in one's span: the leaseholder has looked
  under a latch over the span, and whoever wants to write there meets it.
- All that stand are in memory, from the moment a replica is loaded.

Sans-I/O.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from dsdb.kv.errors import InvalidRequest, KvError
from dsdb.kv.ids import AttemptId
from dsdb.kv.intents import TxnMeta
from dsdb.storage.columnar.block import Blocks
from dsdb.storage.columnar.entry import BlockEntry, decode_entry
from dsdb.storage.columnar.parting import Parting
from dsdb.storage.columnar.provisional import put_chunks, put_entry, remove_chunks
from dsdb.storage.engine.port import Family, Reader, WriteBatch
from dsdb.storage.errors import CorruptionError
from dsdb.storage.keys import Span, key_after, prefix_end
from dsdb.storage.mvcc import Intent, IntentsFoundError
from dsdb.storage.timestamp import MAX_TIMESTAMP, Timestamp
from dsdb.storage.versions import is_in_the_way
from dsdb.store.command import LayBlockCommand

META = Family.META
OWN_BLOCK = "a transaction reads what it has laid as blocks: they must be unpacked first"
BLOCKS_MET_MAX = 64
"""Block intents that one request is told of: the rest it meets the next time."""


class _Stored(msgspec.Struct, frozen=True, array_like=True):
    meta: TxnMeta
    ts: Timestamp
    sequence: int
    entry: bytes


class ProvisionalBlock(msgspec.Struct, frozen=True):
    """One block intent.  Its entry stays encoded: very many may stand for long."""

    meta: TxnMeta
    ts: Timestamp
    sequence: int
    first_key: bytes
    last_key: bytes
    size_bytes: int
    """Of its chunks."""
    stored_entry: bytes
    """Without timestamps."""

    @property
    def span(self) -> Span:
        """Give what it holds."""
        return Span(self.first_key, key_after(self.last_key))

    def entry(self) -> BlockEntry:
        """Give its entry, without timestamps.  Raises CorruptionError."""
        return decode_entry(self.last_key, self.stored_entry)

    def intent(self) -> Intent:
        """Give it as the intent that whoever meets it sees at its first key."""
        meta = self.meta
        return Intent(meta.attempt, meta.anchor, meta.first_ts, self.ts, self.sequence, b"", meta.start_ts)


def block_of(meta: TxnMeta, ts: Timestamp, sequence: int, entry: BlockEntry, stored_entry: bytes) -> ProvisionalBlock:
    """Make a block intent of what was laid."""
    return ProvisionalBlock(meta, ts, sequence, entry.first_key, entry.last_key, entry.stored_bytes, stored_entry)


class ProvisionalBlocks:
    """The block intents of one range."""

    def __init__(self, prefix: bytes, engine: Reader | None = None) -> None:
        """Load them, if there is an engine.  prefix: of their keys (`ReplicaKeys.provisional`).  Raises CorruptionError."""
        self._prefix = prefix
        self._engine = engine
        self._last_keys: list[bytes] = []
        """Ascending."""
        self._blocks: dict[bytes, ProvisionalBlock] = {}
        """By last key."""
        self._oldest: ProvisionalBlock | None = None
        """The one at the lowest timestamp, while that is known."""
        self.committed = 0
        """Those that became blocks since it was loaded."""
        self.partings = 0
        """How often what this replica has had to make room: folds that were begun before are void."""
        self._parting = Parting()
        for block in [] if engine is None else _stored(engine, prefix):
            self.lay(block)

    def __len__(self) -> int:
        return len(self._blocks)

    def lay(self, block: ProvisionalBlock) -> None:
        """Note one that was laid."""
        last_key = block.last_key
        if last_key not in self._blocks:
            self._last_keys.insert(bisect_left(self._last_keys, last_key), last_key)
        elif self._blocks[last_key] is self._oldest:
            self._oldest = None
        self._blocks[last_key] = block
        if len(self._blocks) == 1 or (self._oldest is not None and block.ts < self._oldest.ts):
            self._oldest = block

    def drop(self, block: ProvisionalBlock) -> None:
        """Note that one was resolved."""
        del self._blocks[block.last_key]
        del self._last_keys[bisect_left(self._last_keys, block.last_key)]
        if self._oldest is block:
            self._oldest = None

    def at(self, key: bytes) -> ProvisionalBlock | None:
        """Give the one whose span holds a key."""
        place = bisect_left(self._last_keys, key)
        if place == len(self._last_keys):
            return None
        block = self._blocks[self._last_keys[place]]
        return block if block.first_key <= key else None

    def overlapping(self, span: Span) -> list[ProvisionalBlock]:
        """Give those that hold keys of a span, in order."""
        found: list[ProvisionalBlock] = []
        for place in range(bisect_left(self._last_keys, span.start), len(self._last_keys)):
            block = self._blocks[self._last_keys[place]]
            if block.first_key >= span.end:
                break
            found.append(block)
        return found

    def named(self, first_key: bytes, attempt: AttemptId) -> ProvisionalBlock | None:
        """Give the one of an attempt that begins at a key."""
        block = self.at(first_key)
        return block if block is not None and block.first_key == first_key and block.meta.attempt == attempt else None

    def oldest(self) -> ProvisionalBlock | None:
        """Give the one that stands at the lowest timestamp."""
        if self._oldest is None and self._blocks:
            self._oldest = min(self._blocks.values(), key=lambda block: (block.ts, block.last_key))
        return self._oldest

    def oldest_ts(self) -> Timestamp:
        """Give the lowest timestamp at which one stands; MAX_TIMESTAMP if there is none."""
        oldest = self.oldest()
        return MAX_TIMESTAMP if oldest is None else oldest.ts

    # ---- Who meets them ----

    def foreign_at(self, keys: Sequence[bytes], attempt: bytes | None) -> list[tuple[bytes, Intent]]:
        """Give others' that hold some of the keys (ascending), each once, as intents at their first keys."""
        found: dict[bytes, ProvisionalBlock] = {}
        for key in keys:
            block = self.at(key)
            if block is not None and block.meta.attempt != attempt:
                found[block.first_key] = block
        return [(key, block.intent()) for key, block in found.items()]

    def foreign_in(self, span: Span, attempt: bytes | None) -> list[tuple[bytes, Intent]]:
        """Give others' that hold keys of a span, likewise."""
        return [(block.first_key, block.intent()) for block in self.overlapping(span) if block.meta.attempt != attempt]

    def own_in(self, span: Span, attempt: bytes | None) -> list[ProvisionalBlock]:
        """Give an attempt's own that hold keys of a span."""
        return [block for block in self.overlapping(span) if block.meta.attempt == attempt]

    def pass_at(self, keys: Sequence[bytes], ts: Timestamp, attempt: bytes | None, passable: Mapping[bytes, Timestamp]) -> None:
        """Pass by them as a read of keys (in any order) at `ts`.  Raises IntentsFoundError, KvError."""
        if self._blocks:
            _pass(self.foreign_at(keys, attempt), ts, passable)
            if attempt is not None and any((block := self.at(key)) is not None and block.meta.attempt == attempt for key in keys):
                raise KvError(InvalidRequest(OWN_BLOCK))

    def pass_in(self, span: Span, ts: Timestamp, attempt: bytes | None, passable: Mapping[bytes, Timestamp]) -> None:
        """Pass by them as a read of a span at `ts`.  Raises IntentsFoundError, KvError."""
        if self._blocks:
            self.refresh_in(span, ts, attempt, passable)
            if attempt is not None and self.own_in(span, attempt):
                raise KvError(InvalidRequest(OWN_BLOCK))

    def refresh_in(self, span: Span, high: Timestamp, attempt: bytes | None, passable: Mapping[bytes, Timestamp]) -> None:
        """Pass by them as a refresh of a span up to `high`.  Raises IntentsFoundError."""
        if self._blocks:
            _pass(self.foreign_in(span, attempt), high, passable)

    # ---- Commands ----

    def begin_batch(self) -> None:
        """Note that all that was applied before is written."""
        self._parting.begin_batch()

    def put(self, batch: WriteBatch, command: LayBlockCommand) -> int:
        """Lay one; give by how much the range has grown.  Raises CorruptionError."""
        entry = decode_entry(command.last_key, command.entry)
        # Where the leaseholder has nothing this replica may have what it has not collected yet: its chunks may even lie in the same places.
        self.partings += self._parting.make_room(self._blocks_there(), batch, entry.first_key, entry.last_key)
        block = block_of(command.meta, command.ts, command.sequence, entry, command.entry)
        put_chunks(batch, entry, command.chunks)
        _put_stored(batch, self._prefix, block)
        self.lay(block)
        return block.size_bytes

    def end(self, batch: WriteBatch, first_key: bytes, attempt: AttemptId, commit_ts: Timestamp | None) -> int:
        """Make a block of the one that an attempt has at a key, if there is one, or remove it; give by how much the range has grown.

        Raises CorruptionError.
        """
        block = self.named(first_key, attempt)
        if block is None:
            return 0
        self.drop(block)
        _remove_stored(batch, self._prefix, block)
        entry = block.entry()
        if commit_ts is None or block.ts > commit_ts:
            remove_chunks(batch, entry)
            return -block.size_bytes
        # Where this replica has folded rows of both sides into one block since, it has none of the span: it is parted there.
        self.partings += self._parting.part(self._blocks_there(), batch, first_key)
        put_entry(batch, entry, commit_ts)
        self.committed += 1
        return len(block.last_key) + len(block.stored_entry)

    def _blocks_there(self) -> Blocks:
        assert self._engine is not None, "those that a split hands over are loaded anew"
        return Blocks(self._engine)

    # ---- Spans ----

    def clear(self, batch: WriteBatch, span: Span) -> None:
        """Forget those of a span that is cleared of everything."""
        for block in self.overlapping(span):
            self.drop(block)
            _remove_stored(batch, self._prefix, block)

    def hand_over(self, batch: WriteBatch, start: bytes) -> list[ProvisionalBlock]:
        """Give up those at or above a key, in no one's span: they are the right side's of a split."""
        moved = [self._blocks[last_key] for last_key in self._last_keys[bisect_left(self._last_keys, start) :]]
        for block in moved:
            assert block.first_key >= start, "a split within a block intent"
            _remove_stored(batch, self._prefix, block)
            self.drop(block)
        return moved


def put_all(batch: WriteBatch, prefix: bytes, blocks: Sequence[ProvisionalBlock]) -> None:
    """Write block intents that were handed over under another replica's prefix."""
    for block in blocks:
        _put_stored(batch, prefix, block)


def _pass(found: list[tuple[bytes, Intent]], ts: Timestamp, passable: Mapping[bytes, Timestamp]) -> None:
    met = [(key, intent) for key, intent in found if is_in_the_way(intent, ts, passable)]
    if met:
        raise IntentsFoundError(met[:BLOCKS_MET_MAX])


# ---- In META ----

_encode = msgspec.msgpack.Encoder().encode
_decoder = msgspec.msgpack.Decoder(_Stored)


def _put_stored(batch: WriteBatch, prefix: bytes, block: ProvisionalBlock) -> None:
    batch.put(META, prefix + block.last_key, _encode(_Stored(block.meta, block.ts, block.sequence, block.stored_entry)))


def _remove_stored(batch: WriteBatch, prefix: bytes, block: ProvisionalBlock) -> None:
    batch.delete(META, prefix + block.last_key)


def _stored(reader: Reader, prefix: bytes) -> Iterator[ProvisionalBlock]:
    for keys, values in reader.scan(META, prefix, prefix_end(prefix)):
        for key, value in zip(keys, values):
            try:
                stored = _decoder.decode(value)
            except msgspec.DecodeError as error:
                raise CorruptionError(f"a stored block intent cannot be read: {error}") from None
            entry = decode_entry(key[len(prefix) :], stored.entry)
            yield block_of(stored.meta, stored.ts, stored.sequence, entry, stored.entry)
