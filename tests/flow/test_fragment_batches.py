"""What a fragment gives at a time is bounded by bytes, too: rows may be wide, and some batches wait for their reader."""

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from dsdb.flow.fragment import FragmentRequest, FragmentRunner
from dsdb.flow.scanning import BATCH_BYTES, Piece
from dsdb.kv.ids import RangeId
from dsdb.sql.execute.engine import QueryEngine
from dsdb.sql.ports import LeafStage, TableScan
from dsdb.storage.datum import Kind
from dsdb.storage.keys import Span
from dsdb.storage.rowcodec import LayoutColumn, RowLayout, codec_for
from dsdb.storage.timestamp import Timestamp

LAYOUT = RowLayout(layout_id=1, columns=(LayoutColumn(column_id=1, kind=Kind.TEXT),))
CHUNK_ROWS = 8


class Rows:
    """Rows of one width, as a store's snapshot gives them."""

    def __init__(self, count: int, width: int) -> None:
        self._count = count
        self._value = codec_for(LAYOUT).encode(["x" * width])

    async def scan_snapshot(self, *_: Any, **__: Any) -> contextlib.AbstractContextManager["Rows"]:
        return contextlib.nullcontext(self)

    def reads_past(self, *_: Any) -> bool:
        return False

    async def settle_intents(self, *_: Any) -> None:
        raise AssertionError("there are no intents")

    has_blocks = False

    def batches(self, *_: Any) -> Any:
        raise AssertionError("there are no blocks")

    def chunks(self) -> Iterator[tuple[list[bytes], list[bytes]]]:
        for begin in range(0, self._count, CHUNK_ROWS):
            keys = [number.to_bytes(4, "big") for number in range(begin, min(begin + CHUNK_ROWS, self._count))]
            yield keys, [self._value] * len(keys)


@pytest.mark.parametrize(("count", "width"), [(300, 100_000), (1000, 10)])
def test_batches_of_wide_rows_are_small(count: int, width: int) -> None:
    async def run() -> list[Any]:
        engine = QueryEngine()
        try:
            scan = TableScan(spans=(Span(b"", b"\xff"),), layouts=(LAYOUT,), columns=LAYOUT.columns, names=("c",))
            request = FragmentRequest(LeafStage(scan=scan), (Piece(RangeId(1), Span(b"", b"\xff")),), Timestamp(1), None)
            return [output.batch async for output in FragmentRunner(Rows(count, width), engine).run(request)]
        finally:
            engine.close()

    batches = [batch for batch in trio.run(run) if batch is not None]
    assert sum(batch.num_rows for batch in batches) == count
    assert max(batch.nbytes for batch in batches) < BATCH_BYTES + (CHUNK_ROWS + 1) * (width + 100)
