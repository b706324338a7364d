"""Sorted runs in a file: spans of keys give back all rows, each in one span."""

from bisect import bisect_left
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dsdb.sql.execute.runs import SLICE_ROWS, Runs, Span


@pytest.mark.parametrize("order", ["random", "jitter", "ascending"])
def test_every_row_is_in_one_span(tmp_path: Path, order: str) -> None:
    chance = np.random.default_rng(7)
    count, run = 40_000, 3 * SLICE_ROWS + 100
    numbers = np.arange(count)
    if order == "random":
        numbers = chance.permutation(count)
    elif order == "jitter":
        numbers = np.argsort(numbers + chance.integers(0, 2_000, count))
    runs = Runs(tmp_path)
    for begin in range(0, count, run):
        part = np.sort(numbers[begin : begin + run])
        runs.add([b"%08d" % number for number in part], [pa.array(part), pa.array([f"word {number}" for number in part])])
    wanted = runs.size // 8
    spans = runs.spans(wanted)
    assert (spans[0].begin, spans[-1].end) == (b"", None)
    assert all(one.end == other.begin for one, other in pairwise(spans))
    assert 6 <= len(spans) <= 9
    found: list[int] = []
    for span in spans:
        read = pa.Table.from_batches(runs.read(span))
        # A slice of each run at either bound is all that comes beside the span.
        assert read.nbytes <= 2 * wanted + 2 * (count // run + 1) * (runs.size // count * SLICE_ROWS)
        assert read.column(1).to_pylist() == [f"word {number}" for number in read.column(0).to_pylist()]
        ids = sorted(read.column(0).to_pylist())
        keys = [b"%08d" % number for number in ids]
        found += ids[bisect_left(keys, span.begin) : len(keys) if span.end is None else bisect_left(keys, span.end)]
    assert found == list(range(count))
    assert list(tmp_path.iterdir()) == []
    runs.close()


def test_one_run_is_one_span(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.add([b"a", b"b"], [pa.array([1, 2])])
    assert runs.spans(1 << 20) == [Span(b"", None)]
    assert [batch.to_pydict() for batch in runs.read(Span(b"", None))] == [{"c0": [1, 2]}]
    runs.close()
