"""Blocks, delta and a txn's own writes against a plain list of versions, under any interleaving of writes, folds, collections and cuts."""

import random
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import hypothesis.strategies as st
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings

from dsdb.storage import mvcc
from dsdb.storage.columnar import measure, merge, points, rowscan, upkeep
from dsdb.storage.columnar.block import BlockCache, Blocks
from dsdb.storage.columnar.entry import Bounds
from dsdb.storage.columnar.fold import fold
from dsdb.storage.columnar.merge import Columns, Request
from dsdb.storage.columnar.overlay import cut_layer, layered
from dsdb.storage.columnar.plain import plain_entries
from dsdb.storage.columnar.stretches import Stretches
from dsdb.storage.datum import Datum, Kind
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.engine.port import Engine, WriteBatch
from dsdb.storage.engine.rocksdb import RocksEngine
from dsdb.storage.keys import KEY_MAX, Span, key_after, point_span
from dsdb.storage.rowarrow import LayoutColumn
from dsdb.storage.rowcodec import RowLayout, codec_for, decode_batches
from dsdb.storage.timestamp import Timestamp
from dsdb.storage.versions import Intent, IntentsFoundError, Standing, View
from dsdb.store.checksum import VersionFilter

NUMBER = LayoutColumn(column_id=1, kind=Kind.INT, width=4)
WIDE_NUMBER = LayoutColumn(column_id=1, kind=Kind.INT, width=8)
WORD = LayoutColumn(column_id=2, kind=Kind.TEXT)
PRICE = LayoutColumn(column_id=3, kind=Kind.DECIMAL, precision=9, scale=2)
OLD = RowLayout(layout_id=1, columns=(NUMBER, WORD))
NEW = RowLayout(layout_id=2, columns=(WIDE_NUMBER, PRICE, WORD))
UNKNOWN = RowLayout(layout_id=3, columns=(NUMBER,))
"""Known to readers, not to whoever folds."""
LAYOUTS = {layout.layout_id: layout for layout in (OLD, NEW, UNKNOWN)}
FOLDED_LAYOUTS = {1: OLD, 2: NEW}
DEFAULTS: dict[int, Datum] = {2: "missing"}
TARGET = (WIDE_NUMBER, WORD, PRICE)

FIXED = [b"i%c\x00\x00%c" % (high, low) for high in (1, 2) for low in (0, 1, 7)]
WIDE = [b"w%c--%s--%c" % (one, two, three) for one in b"ab" for two in (b"123456", b"654321") for three in b"xy"]
VARIOUS = [b"va\x00", b"vab\x00", b"vabcdefghij\x00", b"vabcdefghik\x00", b"vb\xff\x00"]
KEYS = sorted([*FIXED, *WIDE, *VARIOUS])
EDGES = [b"", *KEYS, *map(key_after, KEYS), b"i\x01", b"v", b"vab", b"vabcdefghij", b"w", KEY_MAX]
SPAN = Span(b"a", b"x")
OWN, OTHER = b"own", b"other"


def value_of(number: int) -> bytes | None:
    """Give one of many row values of all layouts, or a tombstone."""
    chance = random.Random(number)
    word = chance.choice([None, "", "a", "zebra", "x" * 40, f"w{number}"])
    match chance.randrange(12):
        case 0 | 1 | 2:
            return None
        case 3 | 4 | 5 | 6:
            return codec_for(OLD).encode((chance.choice([None, number - 500, 2**31 - 1]), word))
        case 7:
            return codec_for(UNKNOWN).encode((number,))
        case _:
            return codec_for(NEW).encode((chance.choice([None, number, -(2**63)]), None if number % 5 == 0 else number % 100, word))


class World(NamedTuple):
    """The same history twice."""

    plain: Engine
    """All versions as rows."""
    tiers: Engine
    cache: BlockCache
    stretches: Stretches

    @classmethod
    def made(cls, plain: Engine, tiers: Engine, *, cache_bytes: int, kept_bytes: int = 30_000) -> "World":
        stretches = Stretches(kept_bytes)
        tiers.watch(stretches.noting)
        return cls(plain, tiers, BlockCache(cache_bytes), stretches)

    def blocks(self) -> Blocks:
        return Blocks(self.tiers, self.cache, stretches=self.stretches, number=self.stretches.number)


keys = st.sampled_from(KEYS)
numbers = st.integers(0, 1000)
spans = st.one_of(
    st.just(SPAN),
    keys.map(point_span),
    st.tuples(st.sampled_from(EDGES), st.sampled_from(EDGES)).map(lambda edges: Span(*sorted(edges))),
)
steps = st.one_of(
    st.tuples(st.just("write"), st.lists(st.tuples(keys, numbers), min_size=1, max_size=12)),
    st.tuples(st.just("write all"), numbers),
    st.tuples(st.just("intent"), keys, st.sampled_from([OWN, OTHER]), numbers),
    st.tuples(st.just("resolve"), keys, st.booleans()),
    st.tuples(st.just("fold"), st.integers(0, 5), st.integers(1, 4), st.sampled_from([2, 3, 8]), st.sampled_from([2, 1000])),
    st.tuples(st.just("fold all"), st.sampled_from([2, 3, 8]), st.sampled_from([2, 1000])),
    st.tuples(st.just("collect"), st.integers(0, 6)),
    st.tuples(st.just("cut"), st.sampled_from(EDGES)),
)


class History:
    """Applies steps to both engines, and knows the clock."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.clock = 10
        self.resolved = 0
        self.threshold = 0
        self.intents: dict[bytes, Intent] = {}
        self.folds = 0

    def both(self, write: Callable[[Engine, WriteBatch], object]) -> None:
        for engine in (self.world.plain, self.world.tiers):
            batch = engine.new_batch()
            write(engine, batch)
            engine.write(batch)

    def apply(self, step: tuple) -> None:  # type: ignore[type-arg]
        match step:
            case "write", rows:
                self.clock += 1
                self._put({key: value_of(number) for key, number in rows if key not in self.intents})
            case "write all", number:
                self.clock += 1
                self._put({key: value_of(number + at) for at, key in enumerate(KEYS) if key not in self.intents})
            case "intent", key, attempt, number:
                if key not in self.intents:
                    self.clock += 1
                    intent = Intent(attempt, b"anchor", Timestamp(1), Timestamp(self.clock), 1, value_of(number))
                    self.intents[key] = intent
                    self.both(lambda _, batch: mvcc.put_intent(batch, key, intent))
            case "resolve", key, is_commit:
                if key in self.intents:
                    self.clock += 1
                    attempt = self.intents.pop(key).attempt_id
                    ts = Timestamp(self.clock) if is_commit else None
                    self.both(lambda engine, batch: mvcc.resolve_intent(engine, batch, key, attempt, ts))
            case "fold", back, blocks_max, rows_max, versions_max:
                self._fold(back, blocks_max, rows_max, versions_max)
            case "fold all", rows_max, versions_max:
                self._fold(0, 10**6, rows_max, versions_max)
            case "collect", back:
                self._collect(back)
            case "cut", bound:
                tiers = self.world.tiers
                batch = tiers.new_batch()
                upkeep.cut(self.world.blocks(), batch, bound)
                tiers.write(batch)
                entry = self.world.blocks().entry_at(bound)
                assert entry is None or entry.first_key >= bound

    def _put(self, rows: Mapping[bytes, bytes | None]) -> None:
        def write(_: Engine, batch: WriteBatch) -> None:
            for key, value in rows.items():
                mvcc.put(batch, key, Timestamp(self.clock), value)

        self.both(write)

    def _fold(self, back: int, blocks_max: int, rows_max: int, versions_max: int) -> None:
        limit = min([intent.ts - 1 for intent in self.intents.values()], default=self.clock)
        self.resolved = max(self.resolved, min(self.clock - back, limit))
        start: bytes | None = None
        # All of it, or two calls of it.
        for _ in range(100 if blocks_max > 4 else 2):
            batch = self.world.tiers.new_batch()
            done = fold(
                self.world.blocks(),
                batch,
                SPAN,
                Timestamp(self.resolved),
                Timestamp(self.threshold),
                FOLDED_LAYOUTS,
                start=start,
                blocks_max=blocks_max,
                rows_max=rows_max,
                versions_max=versions_max,
            )
            self.world.tiers.write(batch)
            self.folds += done.blocks_written
            start = done.resume
            if start is None:
                break

    def _collect(self, back: int) -> None:
        self.threshold = max(self.threshold, min(self.resolved - back, self.clock))
        tiers, threshold = self.world.tiers, Timestamp(self.threshold)
        start: bytes | None = None
        for _ in range(100):
            batch = tiers.new_batch()
            _, _, start = upkeep.collect_garbage(self.world.blocks(), batch, SPAN, threshold, start=start, blocks_max=2)
            tiers.write(batch)
            if start is None:
                break
        batch = tiers.new_batch()
        upkeep.collect_delta_garbage(self.world.blocks(), batch, SPAN, threshold, versions_max=1000)
        tiers.write(batch)


class Question(NamedTuple):
    """What is asked of both."""

    span: Span
    back: int
    own: bytes | None
    passed: int
    reverse: bool
    limit: int | None
    writes: Mapping[bytes, int]
    dictionaries: bool
    low: int | None
    chunk_rows: int = 3


questions = st.builds(
    Question,
    span=spans,
    back=st.integers(0, 8),
    own=st.sampled_from([None, OWN, OTHER]),
    passed=st.integers(0, 40),
    reverse=st.booleans(),
    limit=st.sampled_from([None, None, 1, 3]),
    writes=st.dictionaries(keys, numbers, max_size=4),
    dictionaries=st.booleans(),
    low=st.sampled_from([None, None, -400, 0, 400]),
    chunk_rows=st.sampled_from([1, 3]),
)


def ask(history: History, question: Question) -> None:
    """Compare every way to read."""
    world = history.world
    ts = Timestamp(max(history.clock - question.back, history.threshold))
    passable = {OTHER: Timestamp(question.passed)}
    writes = {key: value_of(number) for key, number in question.writes.items()}
    layer = (sorted(writes), [writes[key] for key in sorted(writes)])
    view = View(ts, question.own, passable)
    request = Request(question.span, view, layer, delta_rows=question.chunk_rows)
    try:
        plain: dict[bytes, bytes] = {}
        for chunk in mvcc.scan(world.plain, question.span, view):
            plain.update(zip(*chunk))
    except IntentsFoundError:
        _ask_up_to_intents(world, question, view)
        return
    for chunk_rows in (question.chunk_rows, 1000):
        chunks = rowscan.scan_rows(world.blocks(), question.span, view, reverse=question.reverse, chunk_rows=chunk_rows)
        rows = [row for chunk in chunks for row in zip(*chunk)]
        assert rows == (list(plain.items())[::-1] if question.reverse else list(plain.items()))
    whole = layered((list(plain), list(plain.values())), cut_layer(layer, *question.span))
    expected = [(key, value) for key, value in zip(*whole) if value is not None]
    _ask_arrow(world, question, request, expected)
    for key in KEYS[::3]:
        got = points.get(world.blocks(), key, View(ts, question.own, {OTHER: ts, OWN: ts}))
        wanted = mvcc.get(world.plain, key, View(ts, question.own, {OTHER: ts, OWN: ts}))
        assert _unless_collected(got, history.threshold) == _unless_collected(wanted, history.threshold)


def _go_on_after_each_step(world: World, request: Request, columns: Columns, expected: list[tuple[bytes, bytes]]) -> None:
    """What a step gives is exactly the rows up to its end, so that a scan may begin anew there."""
    at, steps = request.span.start, merge.scan_steps(world.blocks(), request, columns, at_once_max=2)
    given = 0
    for batch, end in steps:
        assert at <= end
        at = end
        given += 0 if batch is None else batch.num_rows
        assert given == sum(key < end for key, _ in expected)
    assert at == request.span.end or request.span.is_empty


def _ask_up_to_intents(world: World, question: Question, view: View) -> None:
    """All rows before the first intent in the way are given, and then it is met."""
    with pytest.raises(IntentsFoundError) as plain:
        list(mvcc.scan(world.plain, question.span, view, reverse=question.reverse, chunk_rows=1000))
    keys = [key for key, _ in plain.value.intents]
    first = max(keys) if question.reverse else min(keys)
    before = Span(key_after(first), question.span.end) if question.reverse else Span(question.span.start, first)
    wanted = [row for chunk in mvcc.scan(world.plain, before, view, reverse=question.reverse) for row in zip(*chunk)]
    for chunk_rows in (question.chunk_rows, 1000):
        found: list[tuple[bytes, bytes]] = []
        chunks = rowscan.scan_rows(world.blocks(), question.span, view, reverse=question.reverse, chunk_rows=chunk_rows)
        with pytest.raises(IntentsFoundError) as met:
            _gather(chunks, found)
        assert found == wanted
        assert first in [key for key, _ in met.value.intents]


def _gather(chunks: Iterator[tuple[list[bytes], list[bytes]]], found: list[tuple[bytes, bytes]]) -> None:
    for chunk in chunks:
        found += zip(*chunk)


def _unless_collected(version: mvcc.Version | None, threshold: int) -> mvcc.Version | None:
    """A tombstone at or below the threshold may be gone: then there is nothing."""
    return version if version is None or version.value is not None or version.ts > threshold else None


def _ask_arrow(world: World, question: Question, request: Request, expected: list[tuple[bytes, bytes]]) -> None:
    columns = Columns(TARGET, LAYOUTS, DEFAULTS, question.dictionaries, as_narrow=question.dictionaries)
    batches = list(merge.scan(world.blocks(), request, columns, limit=question.limit))
    schema = merge.schema_of(world.blocks(), request, columns)
    assert all(batch.num_rows and batch.schema == schema for batch in batches)
    got = pa.Table.from_batches(batches, schema).to_pylist()
    wanted = decode_batches([value for _, value in expected], LAYOUTS, TARGET, DEFAULTS).to_pylist()
    assert got == (wanted if question.limit is None else wanted[: question.limit])
    marked = list(merge.scan_selected(world.blocks(), request, columns))
    rows = [row for batch in marked for row in batch.to_pylist() if row.pop(merge.SELECTED)]
    assert sorted(map(repr, rows)) == sorted(map(repr, wanted))
    _go_on_after_each_step(world, request, columns, expected)
    if question.low is not None:
        bounded = request._replace(bounds=[Bounds(column_id=1, low=question.low)])
        got = pa.Table.from_batches(
            list(merge.scan(world.blocks(), bounded, columns)), merge.schema_of(world.blocks(), bounded, columns)
        ).to_pylist()
        # No row within the bounds is left out, none comes that is not there, and the order holds.
        assert [row for row in got if row["c1"] is not None and row["c1"] >= question.low] == [
            row for row in wanted if row["c1"] is not None and row["c1"] >= question.low
        ]
        rest = iter(wanted)
        assert all(row in rest for row in got)


model_test = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@model_test
@given(st.lists(steps, min_size=1, max_size=14), st.lists(questions, min_size=1, max_size=6))
def test_tiers_answer_as_a_plain_list_does(program: list[tuple], asked: list[Question]) -> None:  # type: ignore[type-arg]
    history = History(World.made(MemoryEngine(), MemoryEngine(), cache_bytes=20_000))
    for at, step in enumerate([("write all", 17), *program]):
        history.apply(step)
        upkeep.verify(history.world.blocks(), SPAN)
        ask(history, asked[at % len(asked)])
    for question in asked:
        ask(history, question)
        _ask_for_changes(history, question)
    _compare_plain_lists(history)


def _compare_plain_lists(history: History) -> None:
    """What a list of all versions shows at or above the threshold does not depend on folding; nor does what is measured of it."""
    found = []
    for blocks in (history.world.blocks(), Blocks(history.world.plain)):
        seen = VersionFilter(Timestamp(history.threshold))
        found.append([row for chunk in plain_entries(blocks, SPAN, chunk_rows=3) for row in zip(*seen.visible(*chunk))])
    assert found[0] == found[1]
    blocks = history.world.blocks()
    entries = list(blocks.entries(SPAN))
    assert sum(measure.sizes(blocks, SPAN)) == sum(entry.stored_bytes for entry in entries)
    assert sum(measure.row_counts(blocks, SPAN)) == sum(entry.rows for entry in entries)
    for edge in EDGES[1:-1]:
        left, right = Span(b"a", edge), Span(edge, b"x")
        both = sum(measure.row_counts(blocks, left)) + sum(measure.row_counts(blocks, right))
        assert both == sum(entry.rows for entry in entries if edge > b"a")
        first = measure.first_key(blocks, right)
        assert first is None or first >= edge


def _ask_for_changes(history: History, question: Question) -> None:
    """Readers ask about what is above the threshold; which of several changes is found first, and whether before an intent, is open."""
    low, high = Timestamp(max(history.threshold, history.clock - question.passed)), Timestamp(history.clock)
    found = points.changed(history.world.blocks(), question.span, low, View(high, OWN, {OTHER: high, OWN: high}))
    wanted = mvcc.changed(history.world.plain, question.span, low, View(high, OWN, {OTHER: high, OWN: high}))
    assert (found is None) == (wanted is None)
    if found is not None:
        key, ts = found
        assert low < ts <= high
        assert question.span.contains(key)
        version = mvcc.get(history.world.plain, key, View(ts, passable={OTHER: ts, OWN: ts}))
        assert version is not None
        assert version.ts == ts
    for key in KEYS:
        version, intent = points.newest_and_intent(history.world.blocks(), key)
        plain_version, plain_intent = mvcc.newest_and_intent(history.world.plain, key)
        assert intent == plain_intent
        assert _unless_collected(version, history.threshold) == _unless_collected(plain_version, history.threshold)
    standing = points.standing_of(history.world.blocks(), [*KEYS, b"zz"])
    assert [points.standing(history.world.blocks(), key) for key in [*KEYS, b"zz"]] == standing
    for one, other in zip(standing, mvcc.standing_of(history.world.plain, [*KEYS, b"zz"])):
        assert one == other or (not other.is_there and other.ts <= history.threshold and one == Standing(Timestamp(0), False, other.intent))


def test_a_long_history_on_rocksdb(tmp_path_factory: pytest.TempPathFactory) -> None:
    chance = random.Random(5)
    engine = RocksEngine.open(tmp_path_factory.mktemp("columnar") / "store", create=True)
    history = History(World.made(MemoryEngine(), engine, cache_bytes=50_000))
    for number in range(60):
        history.apply(("write all", number) if number % 7 == 0 else ("write", [(chance.choice(KEYS), number)]))
        history.apply(("fold", number % 5, 1 + number % 3, 3, 2 + number % 4))
        if number % 9 == 8:
            history.apply(("collect", 4))
            history.apply(("cut", chance.choice(EDGES)))
        ask(history, Question(SPAN, number % 7, None, 40, number % 2 == 1, None, {}, number % 3 == 0, None))
    assert upkeep.verify(history.world.blocks(), SPAN) > 3
    assert history.folds > 20
    engine.close()
