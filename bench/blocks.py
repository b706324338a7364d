"""What columnar blocks cost: `python -m bench.blocks lineitem.parquet [--rows N] [--block-rows N]` (`tpchgen-cli parquet` makes the file).

Prints sizes, and CPU seconds of one process: loading, scans of clean blocks and with 1 % of the rows updated, point reads beside those of
rows alone, folding.  Each figure is the best of some rounds; CPU time still grows with what else the machine does, so its load is printed.
"""

import argparse
import os
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dsdb.storage import mvcc
from dsdb.storage.columnar import merge, points
from dsdb.storage.columnar.block import BlockCache, Blocks
from dsdb.storage.columnar.content import BLOCK_ROWS_MAX, Content, write_contents
from dsdb.storage.columnar.entry import Bounds
from dsdb.storage.columnar.fold import fold
from dsdb.storage.datum import Kind
from dsdb.storage.engine.rocksdb import RocksEngine
from dsdb.storage.keycodec import KeyColumn, key_codec
from dsdb.storage.keys import index_prefix, prefix_span
from dsdb.storage.rowarrow import LayoutColumn, arrow_type, field_name
from dsdb.storage.rowcodec import RowLayout, codec_for
from dsdb.storage.timestamp import Timestamp, from_milliseconds
from dsdb.storage.versions import View

LOADED, UPDATED, NOW = from_milliseconds(1000), from_milliseconds(2000), from_milliseconds(3000)
ORDER, LINE, Q6_COLUMNS = 0, 3, (4, 5, 6, 10)
PREFIX = index_prefix(1, 100, 1)
SPAN = prefix_span(PREFIX)
KEYS = key_codec((KeyColumn(kind=Kind.INT), KeyColumn(kind=Kind.INT)))
CACHE_BYTES = 2 << 30
POINTS, ROUNDS, WRITTEN_ROWS = 2000, 3, 10_000


def layout_of(schema: pa.Schema) -> RowLayout:
    columns = []
    for number, field in enumerate(schema, 1):
        if pa.types.is_decimal(field.type):
            column = LayoutColumn(column_id=number, kind=Kind.DECIMAL, precision=15, scale=2)
        elif pa.types.is_integer(field.type):
            column = LayoutColumn(column_id=number, kind=Kind.INT, width=field.type.bit_width // 8)
        else:
            column = LayoutColumn(column_id=number, kind=Kind.DATE if pa.types.is_date(field.type) else Kind.TEXT)
        columns.append(column)
    return RowLayout(layout_id=1, columns=tuple(columns))


class Bench:
    """A store with one index, and its figures."""

    def __init__(self, directory: Path, source: pa.Table, block_rows: int) -> None:
        self.layout = layout_of(source.schema)
        columns = self.layout.columns
        arrays = [array.cast(arrow_type(column)) for array, column in zip(source.columns, columns)]
        self.rows = pa.table(arrays, names=[field_name(column.column_id) for column in columns]).combine_chunks()
        self.directory = directory
        self.block_rows = block_rows
        self.engine = RocksEngine.open(directory / "blocks", create=True)
        self.keys = KEYS.encode_batch([self.rows.column(at).combine_chunks() for at in (ORDER, LINE)], PREFIX)

    def timed(self, what: str, count: int, work: Callable[[], object], rounds: int = ROUNDS) -> float:
        seconds = []
        for _ in range(rounds):
            began = time.process_time()
            work()
            seconds.append(time.process_time() - began)
        best = min(seconds)
        print(f"{what:50} {count / best / 1e6:7.2f} M/s  {best / count * 1e6:8.2f} µs each  load {os.getloadavg()[0]:.1f}", flush=True)
        return best

    def load(self) -> None:
        stored = 0
        for start in range(0, len(self.keys), self.block_rows):
            part = self.rows.slice(start, self.block_rows).combine_chunks().to_batches()[0]
            keys = self.keys[start : start + self.block_rows]
            versions, places = np.full(len(keys), LOADED, np.uint64), np.zeros(len(keys), np.uint64)
            content = Content(keys, versions, (self.layout,), places, dict(zip(self.layout.columns, part.columns)), ([], []))
            batch = self.engine.new_batch()
            stored += sum(entry.stored_bytes for entry in write_contents(batch, content, 0, rows_max=self.block_rows))
            self.engine.write(batch)
        self.engine.flush()
        print(f"{len(self.keys)} rows, {self.rows.nbytes / 1e6:.0f} MB as Arrow; blocks are {stored / self.rows.nbytes:.3f} of that")

    def update(self, share: float) -> None:
        chosen = np.sort(np.random.default_rng(1).choice(len(self.keys), int(len(self.keys) * share), replace=False))
        part = self.rows.take(pa.array(chosen)).combine_chunks().to_batches()[0]
        batch = self.engine.new_batch()
        for at, value in zip(chosen.tolist(), codec_for(self.layout).encode_batch(part)):
            mvcc.put(batch, self.keys[at], UPDATED, value)
        self.engine.write(batch)
        self.engine.flush()

    def scan(self, positions: range | tuple[int, ...], *, selected: bool = False, dictionaries: bool = True, low: int = 0) -> None:
        snapshot = self.engine.snapshot()
        bounds = [Bounds(column_id=1, low=low)]
        request = merge.Request(SPAN, View(NOW), bounds=bounds)
        columns = merge.Columns([self.layout.columns[at] for at in positions], {1: self.layout}, {}, dictionaries)
        read = merge.scan_selected if selected else merge.scan
        for _ in read(Blocks(snapshot), request, columns):
            pass
        snapshot.release()

    def point_reads(self) -> None:
        keys = random.Random(1).sample(self.keys, min(POINTS, len(self.keys)))
        alone = RocksEngine.open(self.directory / "rows", create=True)
        for start in range(0, len(self.keys), WRITTEN_ROWS):
            part = self.rows.slice(start, WRITTEN_ROWS).combine_chunks().to_batches()[0]
            batch = alone.new_batch()
            for key, value in zip(self.keys[start:], codec_for(self.layout).encode_batch(part)):
                mvcc.put(batch, key, LOADED, value)
            alone.write(batch)
            alone.flush()
        self.timed("point reads of rows alone", len(keys), lambda: [mvcc.get(alone, key, View(NOW)) for key in keys])
        alone.close()
        cold, warm = Blocks(self.engine), Blocks(self.engine, BlockCache(CACHE_BYTES))
        self.timed("point reads of blocks, nothing cached", 200, lambda: [points.get(cold, key, View(NOW)) for key in keys[:200]])
        self.timed("point reads of blocks, all cached", len(keys), lambda: [points.get(warm, key, View(NOW)) for key in keys])

    def fold(self) -> None:
        start: bytes | None = None
        while True:
            batch = self.engine.new_batch()
            blocks = Blocks(self.engine)
            done = fold(blocks, batch, SPAN, UPDATED, Timestamp(0), {1: self.layout}, start=start, rows_max=self.block_rows)
            self.engine.write(batch)
            start = done.resume
            if start is None:
                return

    def run(self) -> None:
        count, whole = len(self.keys), range(len(self.layout.columns))
        self.timed("load", count, self.load, 1)
        clean = self.timed("scan, all columns", count, lambda: self.scan(whole))
        self.timed("scan, all columns, dictionaries as plain text", count, lambda: self.scan(whole, dictionaries=False))
        self.timed("scan, 4 columns", count, lambda: self.scan(Q6_COLUMNS))
        last = self.rows.column(ORDER)[-1].as_py()
        self.timed("scan, all columns, all blocks but one pruned", count, lambda: self.scan(whole, low=last))
        self.point_reads()
        self.update(0.01)
        merged = self.timed("scan, all columns, 1 % updated", count, lambda: self.scan(whole))
        selected = self.timed("scan with a selection, all columns, 1 % updated", count, lambda: self.scan(whole, selected=True))
        print(f"of the clean rate: {clean / merged:.2f} merged, {clean / selected:.2f} with a selection")
        self.timed("fold 1 % into all blocks (rows of blocks)", count, self.fold, 1)
        self.timed("scan, all columns, after folding", count, lambda: self.scan(whole))
        self.engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--block-rows", type=int, default=BLOCK_ROWS_MAX)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        Bench(Path(directory), pq.read_table(asked.file).slice(0, asked.rows), asked.block_rows).run()


if __name__ == "__main__":
    main()
