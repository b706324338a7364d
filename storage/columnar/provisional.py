"""A block whose rows have no timestamp yet: content that a transaction lays before its commit is known.

    columns of whole rows ─▶ encode_rows ─▶ entry, chunks ─▶ put_chunks: in their places, unseen ─┬─ put_entry at c: a block like any other
                                                                                                 └─ remove_chunks: it never was

Where its chunks lie is where a block's chunks lie (`entry`); without an entry in the directory nobody reads them.

Invariants:
- Entry and chunks fit together before anything is written: `decode_provisional` has compared sizes and checksums.
- Committing a block rewrites its entry and one chunk of some bytes, whatever its size.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import pyarrow as pa

from dsdb.storage.columnar.block import BLOCK, INDEX
from dsdb.storage.columnar.chunk import encode_numbers
from dsdb.storage.columnar.content import Content, encode_block
from dsdb.storage.columnar.entry import VERSIONS_SLOT, BlockEntry, chunk_key, decode_entry, encode_entry, mark_of, rows_crc_of
from dsdb.storage.engine.port import WriteBatch
from dsdb.storage.errors import CorruptionError
from dsdb.storage.rowcodec import RowLayout
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp


def encode_rows(keys: Sequence[bytes], layout: RowLayout, columns: Sequence[pa.Array]) -> tuple[bytes, tuple[bytes, ...]]:
    """Encode whole rows, their keys ascending and distinct, as one block: its entry, and its chunks in the order of their slots."""
    rows = len(keys)
    zeros = np.zeros(rows, np.uint64)
    content = Content(list(keys), zeros, (layout,), zeros, dict(zip(layout.columns, columns)), ([], []))
    entry, chunks = encode_block(content, 0)
    return encode_entry(entry), tuple([chunks[slot] for slot in sorted(chunks)])


def decode_provisional(last_key: bytes, stored: bytes, chunks: Sequence[bytes]) -> BlockEntry:
    """Read the entry of a block that is about to be laid.  Raises CorruptionError if it, or its chunks, are not as they were encoded."""
    entry = decode_entry(last_key, stored)
    marks = [entry.chunks[slot] for slot in sorted(entry.chunks)]
    is_plain = entry.rows > 0 and entry.history_rows == 0 and entry.max_ts == MIN_TIMESTAMP and VERSIONS_SLOT in entry.chunks
    if not is_plain or [mark_of(chunk) for chunk in chunks] != marks:
        raise CorruptionError("the chunks of a provisional block are not those that its entry names")
    return entry


def put_chunks(batch: WriteBatch, entry: BlockEntry, chunks: Sequence[bytes]) -> None:
    """Write the chunks to where the committed block will have them."""
    for slot, chunk in zip(sorted(entry.chunks), chunks):
        batch.put(BLOCK, chunk_key(entry.last_key, slot), chunk)


def remove_chunks(batch: WriteBatch, entry: BlockEntry) -> None:
    """Remove the chunks of a block that came to nothing."""
    for slot in sorted(entry.chunks):
        batch.delete(BLOCK, chunk_key(entry.last_key, slot))


def put_entry(batch: WriteBatch, entry: BlockEntry, ts: Timestamp) -> BlockEntry:
    """Make a block of it, all of whose rows are of `ts`."""
    versions = encode_numbers(np.full(entry.rows, ts, np.uint64))
    marks = {**entry.chunks, VERSIONS_SLOT: mark_of(versions)}
    committed = msgspec.structs.replace(entry, max_ts=ts, min_ts=ts, rows_crc=rows_crc_of(marks), chunks=marks)
    batch.put(BLOCK, chunk_key(entry.last_key, VERSIONS_SLOT), versions)
    batch.put(INDEX, entry.last_key, encode_entry(committed))
    return committed
