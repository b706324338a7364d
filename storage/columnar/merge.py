"""Scans of an index: its blocks, the delta over them, and the txn's own writes over both, as one state at a timestamp.

    entries of the directory   ──▶ a region each: a block and what lies over it, or rows between two blocks     (`Region`)
    DELTA, writes (`overlay`)  ──▶   which rows of the block are seen, what replaces or joins them
                                   ──▶ Arrow record batches of the asked columns

A region without anything over it is its block's chunks, widened.  Where what lies over it only replaces rows, their values are written into
the widened columns; else rows are gathered.  Blocks whose zones exclude the asked bounds are not read, but what lies over them is given.

Invariants:
- What `mvcc.scan` gives of a plain list of all versions, a merged scan gives, in the same order, however they are spread.
- Rows of blocks that bounds exclude are the only ones left out: a reader that gives bounds still applies its filter.
- A scan is complete or raises.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from dsdb.storage import mvcc
from dsdb.storage.columnar.block import Blocks
from dsdb.storage.columnar.entry import BlockEntry, Bounds, may_match
from dsdb.storage.columnar.overlay import Layer, LayerStream, Settler, cut_layer, layered
from dsdb.storage.columnar.stretches import Settled, size_of
from dsdb.storage.datum import Datum
from dsdb.storage.keys import Span, key_after
from dsdb.storage.rowarrow import LayoutColumn, arrow_type, as_narrow_type, batch_of, field_name, narrow_type
from dsdb.storage.rowcodec import RowLayout, decode_batches
from dsdb.storage.versions import IntentsFoundError, View

Places = npt.NDArray[np.int64]

DELTA_CHUNK_ROWS = 4096
REGIONS_AT_ONCE_MAX = 32
"""Regions whose rows from the delta are decoded together: decoding costs some 0.4 ms for any number of rows."""
OVERLAY_ROWS_MAX = 16_384
"""Rows from the delta that are decoded together, or those of one region more."""
KEPT_ROWS_MAX = 4 * DELTA_CHUNK_ROWS
"""Rows over a block of which all are kept; where there are more, the block will be folded soon."""
SELECTED = "selected"
"""Name of the column of a selection; no stored column has it."""
NO_WRITES: Layer = ([], [])


class Region(NamedTuple):
    """A stretch of keys: the rows of at most one block that a reader sees, and the rows over them."""

    entry: BlockEntry | None
    rows: Places | slice
    """Which current rows of the block are seen, ascending: those that nothing over them replaces or deletes; as a slice: all of a stretch,
    but for those that are replaced (`replaced`)."""
    over: Layer
    """Rows over the block, all of them values."""
    places: Places
    """For each row over the block, how many of its current rows are below it."""
    is_replacing: bool
    """Whether every row over the block stands in the place of one in `rows`, a slice."""
    end: bytes
    """The first key behind the stretch."""
    decoded: dict[Any, pa.Array] | None = None
    """Columns of the rows over the block that were decoded, of a region that is kept."""

    @property
    def block_row_count(self) -> int:
        """Count the rows of the block that are seen or replaced."""
        return self.rows.stop - self.rows.start if isinstance(self.rows, slice) else len(self.rows)

    @property
    def row_count(self) -> int:
        """Count the rows that are seen."""
        return self.block_row_count if self.is_replacing else self.block_row_count + len(self.over[0])

    def order(self) -> Places:
        """Give the order of keys, as places in: the rows of the block, then the rows over it."""
        assert not isinstance(self.rows, slice)
        # A row over the block stands before the row of the block that is not below it; both never are the same key.
        return np.argsort(np.concatenate([self.rows * 2 + 1, self.places * 2]), kind="stable")


NO_PLACES: Places = np.zeros(0, np.int64)
_EMPTY = slice(0, 0)


class Request(NamedTuple):
    """What a scan is asked for, without the columns."""

    span: Span
    view: View
    writes: Layer = NO_WRITES
    """Of the txn itself, not yet intents, ascending."""
    bounds: Sequence[Bounds] = ()
    delta_rows: int = DELTA_CHUNK_ROWS
    """Entries of the delta that are read at once, and rows of it over a block that one region has, about."""
    tally: "Tally | None" = None


class Tally:
    """Counts the blocks that a scan met."""

    def __init__(self) -> None:
        self.read = 0
        self.pruned = 0
        """Blocks whose current rows all lie outside of the bounds."""

    def count(self, *, is_asked: bool) -> None:
        """Count one block."""
        self.read += is_asked
        self.pruned += not is_asked


# ---- Regions ------------------------------------------------------------------------------------------------------------------------


def regions(blocks: Blocks, request: Request) -> Iterator[Region]:
    """Give a span in regions, in order, also those in which no row is seen.  Raises IntentsFoundError, CorruptionError."""
    span = request.span
    if span.is_empty:
        return
    at = span.start
    for entry in blocks.entries(span):
        end = min(key_after(entry.last_key), span.end)
        yield from _stretch(blocks, entry, request._replace(span=Span(at, end), writes=cut_layer(request.writes, at, end)))
        at = end
    rest = request._replace(span=Span(at, span.end))
    for over in LayerStream(_settled(blocks, rest, Settler(request.view)), cut_layer(request.writes, *rest.span)).below(None):
        yield _between(over, key_after(over[0][-1]))
    yield _between(NO_WRITES, span.end)


def _stretch(blocks: Blocks, entry: BlockEntry, request: Request) -> Iterator[Region]:
    """Give the regions of a stretch that ends with a block, or within it; as they are kept, or else settled, and kept if they may be."""
    stretches, (start, end), ts = blocks.stretches, request.span, request.view.ts
    is_asked = entry.rows > 0 and may_match(entry, request.bounds)
    if request.tally is not None and entry.rows:
        request.tally.count(is_asked=is_asked)
    if stretches is None or request.writes[0] or not (start <= entry.first_key and entry.last_key < end):
        yield from _settle(blocks, entry, request, Settler(request.view))
        return
    stretch = stretches.stretch(start, end, entry)
    kept: Sequence[Region] | None = stretches.find(stretch, blocks.number, ts)
    if kept is not None:
        yield from kept if is_asked else map(_without_block, kept)
        return
    may_keep, settler, rows, size_bytes = is_asked and entry.max_ts <= ts, Settler(request.view), 0, 0
    made: list[Region] = []
    for region in _settle(blocks, entry, request, settler):
        rows += len(region.over[0])
        may_keep = may_keep and rows <= KEPT_ROWS_MAX
        if may_keep:
            region = region._replace(decoded={})
            made.append(region)
            size_bytes += size_of(*region.over)
        yield region
    if may_keep and settler.is_plain:
        stretches.keep(stretch, blocks.number, Settled(settler.newest, made, size_bytes))


def _without_block(region: Region) -> Region:
    """Give what lies over a block that is not asked for."""
    return region._replace(rows=_EMPTY, places=np.zeros(len(region.over[0]), np.int64), is_replacing=False)


def _settle(blocks: Blocks, entry: BlockEntry, request: Request, settler: Settler) -> Iterator[Region]:
    stream = LayerStream(_settled(blocks, request, settler), request.writes)
    at, end = request.span
    for over in stream.below(entry.first_key):
        at = key_after(over[0][-1])
        yield _between(over, at)
    for over, is_last in _portions(stream, end, request.delta_rows):
        behind = end if is_last else key_after(over[0][-1])
        yield _of_block(blocks, entry, request, Span(at, behind), over)
        at = behind


def _portions(stream: LayerStream, bound: bytes, rows_max: int) -> Iterator[tuple[Layer, bool]]:
    """Take what is left below a key in portions of a bounded number of rows, nearly always one; say which is the last."""
    over: Layer = ([], [])
    for piece in stream.below(bound):
        if len(over[0]) >= rows_max:
            yield over, False
            over = ([], [])
        over = (over[0] + piece[0], over[1] + piece[1]) if over[0] else piece
    yield over, True


def _settled(blocks: Blocks, request: Request, settler: Settler) -> Iterator[Layer]:
    for keys, stored in mvcc.entries(blocks.reader, request.span, reverse=False, chunk_rows=request.delta_rows):
        yield settler.take(keys, stored)


def _between(over: Layer, end: bytes) -> Region:
    """Make a region of rows that no block has."""
    keys, values = _alive(over)
    return Region(None, _EMPTY, (keys, values), np.zeros(len(keys), np.int64), False, end)


def _alive(layer: Layer) -> Layer:
    keys, values = layer
    if None not in values:
        return layer
    return [key for key, value in zip(keys, values) if value is not None], [value for value in values if value is not None]


def _of_block(blocks: Blocks, entry: BlockEntry, request: Request, span: Span, over: Layer) -> Region:
    """Find which rows of a block are seen in a span, and what is over them."""
    is_past = request.view.ts < entry.max_ts
    is_asked = entry.rows > 0 and may_match(entry, request.bounds)
    is_whole = span.start <= entry.first_key and entry.last_key < span.end
    if not is_past and not (is_asked and (over[0] or not is_whole)):
        # Nothing of the block's keys is needed.
        keys, values = _alive(over)
        rows = slice(0, entry.rows) if is_asked else _EMPTY
        return Region(entry, rows, (keys, values), np.zeros(len(keys), np.int64), False, span.end)
    seen = np.zeros(entry.rows, np.bool_)
    low = high = 0
    if entry.rows:
        run = blocks.keys(entry)
        low = 0 if span.start <= entry.first_key else run.lower(span.start)
        high = entry.rows if is_whole else run.lower(span.end)
        seen[low:high] = True
    if is_past:
        if entry.rows:
            seen &= blocks.versions(entry) <= np.uint64(request.view.ts)
        over = layered(_older(blocks, entry, request.view, span, seen), over)
    places, found = run.find(over[0]) if entry.rows and over[0] else (np.zeros(len(over[0]), np.int64), np.zeros(len(over[0]), np.bool_))
    if not is_asked:
        seen[:] = False
    elif not is_past and bool(found.all()) and None not in over[1]:
        return Region(entry, slice(low, high), over, places, True, span.end)
    seen[places[found]] = False
    live = np.fromiter([value is not None for value in over[1]], np.bool_, len(over[1]))
    return Region(entry, np.flatnonzero(seen), _alive(over), places[live], False, span.end)


def _older(blocks: Blocks, entry: BlockEntry, view: View, span: Span, seen: npt.NDArray[np.bool_]) -> Layer:
    """Give what a reader of the past sees of a block's history: of keys whose current row it does not see."""
    settler = Settler(View(view.ts))
    keys, stored = blocks.history(entry)
    if not keys:
        return NO_WRITES
    layer = cut_layer(settler.take(keys, stored), *span)
    if not len(seen) or not layer[0]:
        return layer
    places, found = blocks.keys(entry).find(layer[0])
    hidden = found & seen[np.minimum(places, entry.rows - 1)]
    wanted = np.flatnonzero(~hidden).tolist()
    return [layer[0][at] for at in wanted], [layer[1][at] for at in wanted]


class Step(NamedTuple):
    """What a scan gives at a time."""

    batch: pa.RecordBatch | None
    """At least one row, if there are any."""
    end: bytes
    """All rows below this key were given."""


# ---- Arrow --------------------------------------------------------------------------------------------------------------------------


class Columns(NamedTuple):
    """Which columns a scan gives, and how rows are decoded."""

    target: Sequence[LayoutColumn]
    layouts: Mapping[int, RowLayout]
    """Of the rows in the delta and of the txn's own; blocks know theirs."""
    defaults: Mapping[int, Datum] = {}
    """By column id, for rows whose layout does not have the column."""
    dictionaries: bool = False
    """Give a text column as dictionary(int32, …), where all blocks that are read have it so; else as plain text, which costs more."""
    as_narrow: bool = False
    """Give decimals by `narrow_type`."""


def scan_steps(blocks: Blocks, request: Request, columns: Columns, *, at_once_max: int = REGIONS_AT_ONCE_MAX) -> Iterator[Step]:
    """Read columns, named by `field_name`, of the rows of a span, in order; each step says how far it goes, the last one to the end.

    at_once_max: regions that are looked at in one step, at most.  Raises IntentsFoundError, where those before it stand, CorruptionError.
    """
    dictionaries = _dictionaries(blocks, request, columns)
    for chosen in _groups(regions(blocks, request), at_once_max):
        for region, over in zip(chosen, _decoded(chosen, columns, dictionaries)):
            if region.row_count:
                yield Step(_rendered(blocks, region, over, columns, dictionaries), region.end)
        yield Step(None, chosen[-1].end)


def scan(blocks: Blocks, request: Request, columns: Columns, *, limit: int | None = None) -> Iterator[pa.RecordBatch]:
    """Give the batches of `scan_steps`, each of at least one row, up to a limit of rows."""
    rest = limit
    for batch, _ in scan_steps(blocks, request, columns):
        if batch is None:
            continue
        if rest is not None:
            if batch.num_rows >= rest:
                yield batch.slice(0, rest)
                return
            rest -= batch.num_rows
        yield batch


def scan_selected(blocks: Blocks, request: Request, columns: Columns) -> Iterator[pa.RecordBatch]:
    """Read columns as `scan` does, but leave the blocks' rows where they are: a last column, `SELECTED`, says which rows are seen.

    What lies over the blocks comes in batches of its own, so rows are in no order.  For a consumer that filters anyway: on top of clean
    blocks it costs half of what `scan` does, and deleted or inserted rows cost no more than replaced ones.
    """
    dictionaries = _dictionaries(blocks, request, columns)
    names = [*(field_name(column.column_id) for column in columns.target), SELECTED]
    for chosen in _groups(regions(blocks, request), REGIONS_AT_ONCE_MAX):
        for region in chosen:
            if region.entry is not None and region.block_row_count:
                arrays = blocks.columns(region.entry, columns.target, columns.defaults, None, dictionaries, as_narrow=columns.as_narrow)
                yield pa.record_batch([*arrays, _selection(region, region.entry.rows)], names=names)
        over = _decoded_whole(chosen, columns, dictionaries)
        if over:
            yield pa.record_batch([*over, pa.repeat(pa.scalar(True), sum(len(region.over[0]) for region in chosen))], names=names)


def _selection(region: Region, rows: int) -> pa.Array:
    seen = np.zeros(rows, np.bool_)
    seen[region.rows] = True
    if region.is_replacing:
        seen[region.places] = False
    return pa.array(seen)


def schema_of(blocks: Blocks, request: Request, columns: Columns) -> pa.Schema:
    """Give the schema that all batches of a scan have."""
    dictionaries = _dictionaries(blocks, request, columns)
    fields = []
    for column in columns.target:
        data_type = narrow_type(arrow_type(column)) if columns.as_narrow else arrow_type(column)
        fields.append(
            (field_name(column.column_id), pa.dictionary(pa.int32(), data_type) if column.column_id in dictionaries else data_type)
        )
    return pa.schema(fields)


def _dictionaries(blocks: Blocks, request: Request, columns: Columns) -> frozenset[int]:
    """Give the ids of the columns that are dictionaries in every block that is read."""
    if not columns.dictionaries:
        return frozenset()
    chosen, has_blocks = set(columns.target), False
    for entry in blocks.entries(request.span):
        if entry.rows and may_match(entry, request.bounds):
            has_blocks = True
            own = {zone.column for zone in entry.zones if zone.is_dictionary}
            chosen &= own if len(entry.layouts) == 1 else own.intersection(*(layout.columns for layout in entry.layouts))
            if not chosen:
                break
    return frozenset(column.column_id for column in chosen) if has_blocks else frozenset()


def _groups(found: Iterator[Region], at_once_max: int) -> Iterator[list[Region]]:
    """Put regions together, first few, then more: up to a number of them, or of rows from the delta."""
    at_once = 1
    while True:
        chosen: list[Region] = []
        rows = 0
        met: IntentsFoundError | None = None
        try:
            for region in islice(found, at_once):
                chosen.append(region)
                rows += len(region.over[0])
                if rows >= OVERLAY_ROWS_MAX:
                    break
        except IntentsFoundError as error:
            met = error
        if chosen:
            yield chosen
        if met is not None:
            raise met
        if not chosen:
            return
        at_once = min(2 * at_once, at_once_max)


def _decoded(chosen: Sequence[Region], columns: Columns, dictionaries: frozenset[int]) -> list[list[pa.Array]]:
    """Decode the rows over blocks of several regions at once, but for what was decoded before; give their columns, region by region."""
    wanted = [
        (column, column.column_id in dictionaries, columns.as_narrow, columns.defaults.get(column.column_id)) for column in columns.target
    ]
    fresh = [region for region in chosen if region.over[0] and not (region.decoded and all(key in region.decoded for key in wanted))]
    arrays, at = _decoded_whole(fresh, columns, dictionaries), 0
    found: dict[int, list[pa.Array]] = {}
    for region in fresh:
        rows = len(region.over[0])
        own = found[id(region)] = [array.slice(at, rows) for array in arrays]
        at += rows
        if region.decoded is not None:
            region.decoded.update(zip(wanted, own))
    return [
        found[id(region)] if id(region) in found else [region.decoded[key] for key in wanted] if region.over[0] and region.decoded else []
        for region in chosen
    ]


def _decoded_whole(chosen: Sequence[Region], columns: Columns, dictionaries: frozenset[int]) -> list[pa.Array]:
    values = [value for region in chosen for value in region.over[1] if value is not None]
    if not values:
        return []
    arrays = decode_batches(values, columns.layouts, columns.target, columns.defaults).columns
    if columns.as_narrow:
        arrays = [as_narrow_type(array) for array in arrays]
    return [array.dictionary_encode() if column.column_id in dictionaries else array for array, column in zip(arrays, columns.target)]


def _rendered(blocks: Blocks, region: Region, over: list[pa.Array], columns: Columns, dictionaries: frozenset[int]) -> pa.RecordBatch:
    names = [field_name(column.column_id) for column in columns.target]
    over_rows = len(region.over[0])
    if region.entry is None or region.block_row_count == 0:
        return batch_of(over, names, over_rows)
    patch = (region.places, over) if region.is_replacing and over_rows else None
    arrays = blocks.columns(region.entry, columns.target, columns.defaults, patch, dictionaries, as_narrow=columns.as_narrow)
    if isinstance(region.rows, slice) and (region.is_replacing or not over_rows):
        low, high = region.rows.start, region.rows.stop
        if high - low < region.entry.rows:
            arrays = [array.slice(low, high - low) for array in arrays]
        return batch_of(arrays, names, high - low)
    assert not isinstance(region.rows, slice)
    if not over_rows:
        chosen = pa.array(region.rows)
    else:
        order = region.order()
        at = np.concatenate([region.rows, region.entry.rows + np.arange(over_rows)])
        chosen = pa.array(at[order])
        arrays = [pa.concat_arrays([array, more]) for array, more in zip(arrays, over)]
    return batch_of([array.take(chosen) for array in arrays], names, len(chosen))
