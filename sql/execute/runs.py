"""Rows in no order, on the way to being in order: sorted pieces in a file, read back span by span of keys.

    some ten thousand rows, sorted ─▶ slices of SLICE_ROWS in a file ─▶ spans of about as many bytes ─▶ the slices that meet a span

Invariants:
- In memory is a key for each slice, and nothing of the rows.
- The spans lie one behind the other and hold every key; a slice at their bound is read for both.
- The file has no name: it goes with whoever holds it, also when the node dies.

Everything here blocks: it is called beside the event loop.
"""

import tempfile
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

SLICE_ROWS = 1_024


class _Slice(NamedTuple):
    """A piece of a run.  size: of its rows as Arrow; offset, length: where it lies in the file, plain_length: of what was compressed."""

    first: bytes
    size: int
    offset: int
    length: int
    plain_length: int


class Span(NamedTuple):
    """Keys from one on, up to another, if there is one."""

    begin: bytes
    end: bytes | None


class Runs:
    """Sorted runs of rows, all with the same columns."""

    def __init__(self, directory: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=directory, prefix="ingest-")  # noqa: SIM115  # it is closed by `close`
        self._codec = pa.Codec("lz4")
        self._runs: list[list[_Slice]] = []
        self._schema: pa.Schema | None = None
        self._end = 0
        self.size = 0
        """Bytes of Arrow data of all rows."""

    def add(self, keys: Sequence[bytes], columns: Sequence[pa.Array]) -> None:
        """Take a run: rows in the order of their keys, at least one."""
        whole = pa.RecordBatch.from_arrays(columns, names=[f"c{at}" for at in range(len(columns))])
        self._schema = whole.schema
        run = []
        for begin in range(0, whole.num_rows, SLICE_ROWS):
            part = whole.slice(begin, SLICE_ROWS)
            plain = part.serialize()
            data = self._codec.compress(plain, asbytes=True)
            self._file.write(data)
            run.append(_Slice(keys[begin], part.nbytes, self._end, len(data), plain.size))
            self._end += len(data)
            self.size += part.nbytes
        self._runs.append(run)

    def spans(self, bytes_wanted: int) -> list[Span]:
        """Cut all keys into spans of about so many bytes of rows each."""
        slices = sorted((piece.first, piece.size) for run in self._runs for piece in run)
        begins = [b""]
        gathered = 0
        for first, size in slices:
            if gathered >= bytes_wanted and first > begins[-1]:
                begins.append(first)
                gathered = 0
            gathered += size
        return [Span(begin, end) for begin, end in zip(begins, [*begins[1:], None])]

    def read(self, span: Span) -> list[pa.RecordBatch]:
        """Give all rows of a span, in no order, and some beside it."""
        found = []
        for run in self._runs:
            firsts = [piece.first for piece in run]
            begin = max(0, bisect_left(firsts, span.begin) - 1)
            end = len(run) if span.end is None else bisect_left(firsts, span.end)
            for piece in run[begin:end]:
                self._file.seek(piece.offset)
                plain = self._codec.decompress(self._file.read(piece.length), piece.plain_length)
                found.append(pa.ipc.read_record_batch(plain, self._schema))
        return found

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
