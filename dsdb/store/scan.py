"""A span frozen for bulk reading: what a leaseholder checked once, read from an engine snapshot at leisure."""

from collections.abc import Iterator, Mapping
from types import TracebackType

from dsdb.kv.ids import AttemptId
from dsdb.storage import mvcc
from dsdb.storage.engine.port import SCAN_CHUNK_ROWS, EngineSnapshot
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import Timestamp


class SnapshotScan:
    """A context manager; leaving it gives the engine snapshot back.

    What it reads stays right whatever happens to lease and range: the span is in the timestamp cache, and the state is frozen.
    Where an intent of another attempt is in the way it goes no further: `Store.settle_intents`, then freeze the rest of the span anew.
    """

    def __init__(
        self,
        snapshot: EngineSnapshot,
        span: Span,
        ts: Timestamp,
        *,
        own: AttemptId | None,
        passable: Mapping[bytes, Timestamp],
        committed: Mapping[bytes, Timestamp],
    ) -> None:
        self.snapshot = snapshot
        self.span = span
        self.ts = ts
        self._own = own
        self._passable = passable
        self._committed = committed
        """As they were when the span was frozen."""

    def chunks(self, *, reverse: bool = False, chunk_rows: int = SCAN_CHUNK_ROWS) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """Give the keys and values that are live at the timestamp, in order, some thousand at a time.

        Raises IntentsFoundError in place of a chunk; those before it stand.
        """
        return mvcc.scan(
            self.snapshot,
            self.span,
            self.ts,
            own=self._own,
            passable=self._passable,
            committed=self._committed,
            reverse=reverse,
            chunk_rows=chunk_rows,
        )

    def __enter__(self) -> "SnapshotScan":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the engine snapshot back."""
        self.snapshot.release()
