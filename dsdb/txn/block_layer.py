"""Laying very many rows at once: as columnar blocks that stay provisional until the transaction commits (rule 33).

    rows in key order ─▶ cut at range bounds ─▶ encoded beside the event loop ─▶ LayBlockRequest to the leaseholder ─▶ laid
                                                                                    └─▶ something is in its span: rows to be inserted

Invariants:
- The record names a span before a block is laid in it (`Flushed.name`).
- Rows are told to be laid only when they are; if it is not known whether they are, the transaction is lost.
- A block lies in one range.

Not here: who gathers rows, brings them into order and cuts them to blocks (`dsdb.sql.execute.ingest`).
"""

from bisect import bisect_left
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
import pyarrow as pa

from dsdb.env.disk import Offload
from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.errors import KvError, RangeKeyMismatch, Unavailable
from dsdb.kv.intents import LayBlockReply, LayBlockRequest
from dsdb.ranges import Copies
from dsdb.sql.errors import SqlError
from dsdb.sql.ports import PortError, TransactionRetryError
from dsdb.storage.columnar.provisional import encode_rows
from dsdb.storage.rowcodec import RowLayout
from dsdb.storage.timestamp import Timestamp
from dsdb.txn.flushing import Flushed
from dsdb.txn.sender import CUTS_MAX

T = TypeVar("T")


class BlockPlace(msgspec.Struct, frozen=True):
    """Where the blocks of a span are laid that the record names."""

    flushed: Flushed
    ts: Timestamp
    sequence: int


class BlockLayer:
    """Lays rows of one layout for one transaction; implements `dsdb.sql.ports.BlockLayer`."""

    def __init__(
        self,
        layout: RowLayout,
        begin: Callable[[bytes, bytes], Awaitable[BlockPlace]],
        port_error: Callable[[KvError], PortError | SqlError],
        worker: Offload | None,
    ) -> None:
        self._layout = layout
        self._name = begin
        self._port_error = port_error
        self._worker = worker
        self._place: BlockPlace | None = None

    async def aside(self, work: Callable[[], T]) -> T:
        """Do work beside the event loop, where there is a thread for it."""
        return work() if self._worker is None else await self._worker.run(work)

    async def begin(self, first_key: bytes, last_key: bytes) -> None:
        """Say that rows from one key to another are about to be laid.  Raises PortError, SqlError."""
        try:
            self._place = await self._name(first_key, last_key)
        except KvError as error:
            raise self._port_error(error) from error

    async def lay(self, keys: Sequence[bytes], columns: Sequence[pa.Array]) -> list[tuple[int, int]]:
        """Lay some of these rows as a block, or several where they lie in several ranges."""
        place = self._place
        assert place is not None, "`begin` comes first"
        is_known = False
        try:
            missed = await self._lay(place, keys, columns)
            is_known = True
        except KvError as error:
            raise self._port_error(error) from error
        finally:
            place.flushed.is_broken = place.flushed.is_broken or not is_known
        return missed

    async def _lay(self, place: BlockPlace, keys: Sequence[bytes], columns: Sequence[pa.Array]) -> list[tuple[int, int]]:
        missed: list[tuple[int, int]] = []
        rest = [(0, len(keys))]
        cuts = 0
        sender = place.flushed.sender()
        while rest:
            begin, end = rest.pop()
            entry = await sender.lookup(keys[begin])
            cut = bisect_left(keys, entry.desc.end_key, begin, end)
            if begin < cut < end:
                rest.append((cut, end))
                end = cut
            part = keys[begin:end]
            stored, chunks = await self.aside(
                lambda part=part, at=begin: encode_rows(part, self._layout, [column.slice(at, len(part)) for column in columns])  # type: ignore[misc]  # defaults
            )
            try:
                if not await self._send(place, part[0], part[-1], stored, chunks):
                    missed.append((begin, end))
                    continue
            except KvError as error:
                if not isinstance(error.detail, RangeKeyMismatch):
                    raise
                cuts += 1
                if cuts > CUTS_MAX:
                    raise KvError(Unavailable("ranges were split too often")) from error
                rest.append((begin, end))
                continue
            place.flushed.note_block(part[0], part[-1], len(part), len(stored) + sum(map(len, chunks)), place.sequence)
        return missed

    async def _send(self, place: BlockPlace, first: bytes, last: bytes, stored: bytes, chunks: tuple[bytes, ...]) -> bool:
        """Lay a block; say whether its span was void."""
        flushed = place.flushed

        def make(desc: RangeDescriptor) -> LayBlockRequest:
            if not desc.start_key <= first <= last < desc.end_key:
                raise KvError(RangeKeyMismatch((desc,)))  # it was split meanwhile: no need to hear it from the range
            return LayBlockRequest(desc.range_id, flushed.meta, place.ts, place.sequence, first, last, stored, chunks)

        copies = Copies()
        reply = await flushed.sender().send(first, make, copies)
        assert isinstance(reply, LayBlockReply)
        if reply.ts is not None:
            flushed.highest = max(flushed.highest, reply.ts)
        elif copies.in_doubt:
            raise TransactionRetryError("it is not known whether some of what the transaction wrote was stored")
        return reply.ts is not None
