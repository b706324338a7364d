"""What a leaseholder checks of block intents: laying one, and laying its rows one by one in its place (rule 33).

    lay      under a latch over the span: it is void, and the timestamp lies above every read of it
    unpack   slice by slice under the latches of the keys; then the block intent is dropped, under a latch over its span

Each function is a plain call without a wait, as in `intents`.

Invariants:
- A block intent is laid only where nothing is: no version, tombstone, block, or intent of anybody, its own transaction's included.
- Between unpacking and dropping, a key has an intent of its own and lies in the block: both are the same attempt's, and the attempt does
  nothing else meanwhile.
"""

from collections.abc import Sequence

import numpy as np

from dsdb.kv.errors import InvalidRequest, KvError
from dsdb.kv.intents import LayBlockReply, LayBlockRequest, PrewriteReply, ResolveReply
from dsdb.storage.columnar.entry import BlockEntry
from dsdb.storage.columnar.provisional import decode_provisional
from dsdb.storage.engine.port import Family
from dsdb.storage.errors import CorruptionError
from dsdb.storage.keys import Span, key_after
from dsdb.storage.timestamp import MIN_TIMESTAMP, after
from dsdb.storage.versions import SUFFIXES_END
from dsdb.store.command import DropBlockCommand, LayBlockCommand, PrewriteCommand
from dsdb.store.provisional import OWN_BLOCK, ProvisionalBlock
from dsdb.store.replica import Replica

BLOCK_BYTES_MAX = 16 << 20
"""Of the chunks of one block: what one entry of a log may hold, and a half of what may be on its way to a quorum."""


def check_lay(request: LayBlockRequest) -> BlockEntry:
    """Give the entry of a block that is to be laid.  Raises InvalidRequest if it makes no sense, or did not come as it was sent."""
    try:
        entry = decode_provisional(request.last_key, request.entry, request.chunks)
    except CorruptionError as error:
        raise KvError(InvalidRequest(str(error))) from error
    if entry.first_key != request.first_key or entry.stored_bytes > BLOCK_BYTES_MAX:
        raise KvError(InvalidRequest(f"a block of {entry.stored_bytes} bytes from {entry.first_key.hex()} on cannot be laid"))
    return entry


def span_of(request: LayBlockRequest) -> Span:
    """Give what a block intent will hold."""
    return Span(request.first_key, key_after(request.last_key))


def lay(replica: Replica, request: LayBlockRequest) -> LayBlockCommand | LayBlockReply:
    """Lay a block intent, if its span is void.  Raises KvError."""
    replica.require_writable()
    replica.require_keys(request.first_key, request.last_key)
    meta, ts, span = request.meta, request.ts, span_of(request)
    standing = replica.machine.provisional.named(request.first_key, meta.attempt)
    if standing is not None and standing.last_key == request.last_key and standing.sequence == request.sequence:
        # The request was sent twice.
        return LayBlockReply(standing.ts)
    if not _is_void(replica, span, request.last_key):
        return LayBlockReply(None)
    threshold = replica.machine.state.threshold
    bound = max(threshold if ts <= threshold else MIN_TIMESTAMP, replica.cache.bound_of_span(span, ts, meta.attempt))
    return LayBlockCommand(
        generation=replica.descriptor.generation,
        lease_term=replica.lease_term,
        meta=meta,
        # Where no timestamp was issued: the commit's will be, and lies above.
        ts=after(bound) if bound else ts,
        sequence=request.sequence,
        first_key=request.first_key,
        last_key=request.last_key,
        entry=request.entry,
        chunks=request.chunks,
        closed=replica.promise_in_log(),
    )


def _is_void(replica: Replica, span: Span, last_key: bytes) -> bool:
    context = replica.context
    if replica.machine.provisional.overlapping(span) or context.engine.first(Family.DELTA, span.start, last_key + SUFFIXES_END) is not None:
        return False
    if not replica.has_blocks:
        return True
    # A block without a row of the span may go around it: rows of the span that came into one of their own would lie within that.
    entry = context.blocks.entry_at(span.start)
    return entry is None or entry.first_key > last_key


def rows_of_own(replica: Replica, attempt: bytes, keys: Sequence[bytes]) -> frozenset[bytes]:
    """Give those of some keys (ascending) that are rows of the attempt's own block intents."""
    provisional = replica.machine.provisional
    held: dict[bytes, list[bytes]] = {}
    for key in keys:
        block = provisional.at(key)
        if block is not None and block.meta.attempt == attempt:
            held.setdefault(block.first_key, []).append(key)
    found: list[bytes] = []
    for first_key, some in held.items():
        block = provisional.at(first_key)
        assert block is not None, first_key
        _, is_there = replica.context.blocks.keys(block.entry()).find(some)
        found += [key for key, is_row in zip(some, is_there.tolist()) if is_row]
    return frozenset(found)


def refuse_own(key: bytes) -> KvError:
    """Say that a write of a row of an own block intent was asked for, which its gateway should have had unpacked."""
    return KvError(InvalidRequest(f"{OWN_BLOCK}: key {key.hex()}"))


# ---- Unpacking ----


def row_values(replica: Replica, block: ProvisionalBlock, begin: int, end: int) -> list[bytes]:
    """Give the values of some rows of a block intent."""
    return list(replica.context.blocks.row_values(block.entry(), np.arange(begin, end)))


def unpack(replica: Replica, block: ProvisionalBlock, keys: Sequence[bytes], values: Sequence[bytes]) -> PrewriteCommand | PrewriteReply:
    """Lay intents of some rows of a block intent, at its timestamp and with its sequence, but where there are later ones.

    Raises KvError.
    """
    replica.require_writable()
    replica.require_keys(keys[0], keys[-1])
    if replica.machine.provisional.named(block.first_key, block.meta.attempt) is not block:
        # Somebody has aborted the transaction, or it was done by another copy of the request.
        return PrewriteReply(block.ts)
    standing = replica.rows.standing_of(keys)
    rows = [(key, value) for key, value, there_is in zip(keys, values, standing) if there_is.intent is None]
    if not rows:
        return PrewriteReply(block.ts)
    return PrewriteCommand(
        generation=replica.descriptor.generation,
        lease_term=replica.lease_term,
        meta=block.meta,
        # It holds the span since it was laid: nobody has read or written there at or above.
        ts=block.ts,
        keys=tuple([key for key, _ in rows]),
        values=tuple([value for _, value in rows]),
        sequence=block.sequence,
    )


def drop(replica: Replica, block: ProvisionalBlock) -> DropBlockCommand | ResolveReply:
    """Drop a block intent that was unpacked.  Raises KvError."""
    replica.require_writable()
    replica.require_keys(block.first_key, block.last_key)
    if replica.machine.provisional.named(block.first_key, block.meta.attempt) is not block:
        return ResolveReply()
    return DropBlockCommand(replica.descriptor.generation, replica.lease_term, block.meta.attempt, block.first_key)
