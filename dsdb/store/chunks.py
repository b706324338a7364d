"""The chunks of a Raft snapshot: encoded keys and values with a checksum each, and a last one that counts them.

    chunk: crc32 of the rest, 4 bytes │ msgpack [family, keys, values]
    last:                             │ msgpack [END, [], [number of chunks before it, checksum of all of them]]

Invariants:
- A stream that ends early, or whose bytes or order changed, is an error, never a shorter range.
- Blocks go as they are, a chunk of theirs at a time: a column is some hundred kilobytes, and a few megabytes where texts are long.

Sans-I/O but for reading the engine snapshot.
"""

import hashlib
import zlib
from collections.abc import Iterator
from itertools import chain

import msgspec

from dsdb.storage.columnar.block import Blocks
from dsdb.storage.columnar.entry import check_chunk, chunk_key
from dsdb.storage.engine.port import EngineSnapshot, Family, KeysAndValues, WriteBatch
from dsdb.storage.errors import CorruptionError
from dsdb.storage.keys import Span, prefix_end
from dsdb.store.provisional import ProvisionalBlocks
from dsdb.store.state import META, ReplicaKeys

END = "end"
OUTCOMES = "outcomes"
RECORDS = "records"
PROVISIONAL = "provisional"
"""Keys of outcomes, txn records and block intents, without the replica's prefix."""

_FAMILIES = (Family.DELTA, Family.BLOCK, Family.INDEX)
_ROWS = 32
"""Rows read at a time: a chunk is at most that many above its limit of bytes."""


class _Chunk(msgspec.Struct, frozen=True, array_like=True):
    what: str
    keys: list[bytes]
    values: list[bytes]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Chunk)


def _seal(what: str, keys: list[bytes], values: list[bytes]) -> bytes:
    body = _encoder.encode(_Chunk(what, keys, values))
    return zlib.crc32(body).to_bytes(4, "big") + body


def open_chunk(chunk: bytes) -> tuple[str, list[bytes], list[bytes]]:
    """Check and decode a chunk.  Raises CorruptionError."""
    body = memoryview(chunk)[4:]
    if zlib.crc32(body) != int.from_bytes(chunk[:4], "big"):
        raise CorruptionError("a chunk of a Raft snapshot has a wrong checksum")
    try:
        decoded = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptionError(f"a chunk of a Raft snapshot cannot be read: {error}") from None
    return decoded.what, decoded.keys, decoded.values


def range_chunks(snapshot: EngineSnapshot, keys: ReplicaKeys, span: Span, bytes_max: int) -> Iterator[bytes]:
    """Give the chunks of a range's keys, outcomes and txn records, and the last one."""
    count = 0
    whole = new_whole()
    for chunk in _content_chunks(snapshot, keys, span, bytes_max):
        count += 1
        whole.update(chunk)
        yield chunk
    yield _seal(END, [], [count.to_bytes(8, "big"), whole.digest()])


def new_whole() -> "hashlib.blake2b":
    """Begin the checksum over all chunks but the last, in their order."""
    return hashlib.blake2b(digest_size=16)


def _content_chunks(snapshot: EngineSnapshot, keys: ReplicaKeys, span: Span, bytes_max: int) -> Iterator[bytes]:
    sources = [(family.value, family, span.start, span.end) for family in _FAMILIES]
    own = {OUTCOMES: keys.outcomes, RECORDS: keys.records, PROVISIONAL: keys.provisional}
    sources += [(what, META, prefix, prefix_end(prefix)) for what, prefix in own.items()]
    for what, family, start, end in sources:
        strip = len(own.get(what, b""))
        taken_keys: list[bytes] = []
        taken_values: list[bytes] = []
        taken = 0
        for some_keys, some_values in _rows_of(snapshot, keys, family, start, end):
            taken_keys += [key[strip:] for key in some_keys] if strip else some_keys
            taken_values += some_values
            taken += sum(map(len, some_keys)) + sum(map(len, some_values))
            if taken >= bytes_max:
                yield _seal(what, taken_keys, taken_values)
                taken_keys, taken_values, taken = [], [], 0
        if taken_keys:
            yield _seal(what, taken_keys, taken_values)


def _rows_of(snapshot: EngineSnapshot, keys: ReplicaKeys, family: Family, start: bytes, end: bytes) -> Iterator[KeysAndValues]:
    """Read a family a little at a time; of blocks only what their entries name, or block intents, with its checksum: nobody is sent a
    damaged one."""
    if family is not Family.BLOCK:
        yield from snapshot.scan(family, start, end, chunk_rows=_ROWS)
        return
    provisional = [block.entry() for block in ProvisionalBlocks(keys.provisional, snapshot).overlapping(Span(start, end))]
    for entry in chain(Blocks(snapshot).entries(Span(start, end)), provisional):
        for slot in sorted(entry.chunks):
            key = chunk_key(entry.last_key, slot)
            yield [key], [check_chunk(entry, slot, snapshot.get(Family.BLOCK, key), checks_sum=True)]


def end_of(chunk: bytes) -> tuple[int, bytes] | None:
    """Give the number and the checksum of the chunks that the last one says went before it; None of another chunk.

    Raises CorruptionError.
    """
    what, _keys, values = open_chunk(chunk)
    return (int.from_bytes(values[0], "big"), values[1]) if what == END else None


def put_chunk(batch: WriteBatch, keys: ReplicaKeys, chunk: bytes) -> None:
    """Put what a chunk holds into a batch.  Raises CorruptionError."""
    what, chunk_keys, values = open_chunk(chunk)
    own = {OUTCOMES: keys.outcomes, RECORDS: keys.records, PROVISIONAL: keys.provisional}
    if what in own:
        prefix = own[what]
        for key, value in zip(chunk_keys, values):
            batch.put(META, prefix + key, value)
    elif what != END:
        family = Family(what)
        for key, value in zip(chunk_keys, values):
            batch.put(family, key, value)
