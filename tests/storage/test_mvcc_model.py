"""MVCC against a dict of versions, on both engines."""

import random
from collections.abc import Iterator, Mapping

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from dsdb.storage import mvcc
from dsdb.storage.engine.memory import MemoryEngine
from dsdb.storage.engine.port import Engine, Family
from dsdb.storage.engine.rocksdb import RocksEngine
from dsdb.storage.keys import KEY_MAX, Span, key_after, point_span
from dsdb.storage.mvcc import Intent, IntentsFoundError, Version
from dsdb.storage.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp
from dsdb.storage.versions import Standing, View

TS_MAX = 12
# No key is a prefix of another; some end in 00, some differ in length, some are longer than DELTA's filter prefix.
LONG = b"long key of many bytes "
KEYS = [b"a\x00", b"a\x01\x00", b"b", b"c\x00\x00", b"c\x00\x01", b"d\xff", LONG + b"\x00", LONG + b"\x01", b"z"]
EDGES = [b"", *KEYS, *map(key_after, KEYS), b"c", b"c\x00", b"long", KEY_MAX]
OWN, OTHER = b"own", b"other"

keys = st.sampled_from(KEYS)
timestamps = st.integers(1, TS_MAX).map(Timestamp)
values = st.one_of(st.none(), st.binary(max_size=3))


def dense_versions(seed: int) -> dict[tuple[bytes, Timestamp], bytes | None]:
    """Give many versions of few keys, a third of them tombstones: what small examples seldom have."""
    chance = random.Random(seed)
    chosen = chance.sample(KEYS, chance.randint(1, 4))
    written = [(key, Timestamp(ts)) for key in chosen for ts in range(1, TS_MAX + 1) if chance.random() < 0.6]
    return {at: chance.choice([None, b"", b"%d" % at[1]]) for at in written}


versions = st.one_of(st.dictionaries(st.tuples(keys, timestamps), values, max_size=40), st.integers(0, 10**6).map(dense_versions))
intents = st.dictionaries(keys, st.tuples(st.sampled_from([OWN, OTHER]), timestamps, values), max_size=4)
spans = st.one_of(
    st.just(Span(b"", KEY_MAX)),
    keys.map(point_span),
    st.tuples(st.sampled_from(EDGES), st.sampled_from(EDGES)).map(lambda edges: Span(*sorted(edges))),
    st.just(Span(b"z", b"a")),
)

Versions = dict[tuple[bytes, Timestamp], bytes | None]
Intents = dict[bytes, tuple[bytes, Timestamp, bytes | None]]


@pytest.fixture(params=["memory", "rocksdb"], scope="module")
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    made: Engine = MemoryEngine()
    if request.param == "rocksdb":
        made = RocksEngine.open(tmp_path_factory.mktemp("mvcc") / "store", create=True)
    yield made
    made.close()


def intent_of(attempt_id: bytes, ts: Timestamp, value: bytes | None) -> Intent:
    return Intent(attempt_id, b"anchor", Timestamp(1), ts, 7, value)


def fill(engine: Engine, versions: Mapping[tuple[bytes, Timestamp], bytes | None], intents: Intents) -> None:
    batch = engine.new_batch()
    batch.delete_range(Family.DELTA, b"", KEY_MAX * 8)
    for (key, ts), value in versions.items():
        mvcc.put(batch, key, ts, value)
    for key, (attempt_id, ts, value) in intents.items():
        mvcc.put_intent(batch, key, intent_of(attempt_id, ts, value))
    engine.write(batch)


def model_get(versions: Versions, key: bytes, ts: Timestamp) -> Version | None:
    at = max((at for of, at in versions if of == key and at <= ts), default=None)
    return None if at is None else Version(at, versions[key, at])


def model_read(versions: Versions, intents: Intents, key: bytes, ts: Timestamp, own: bytes | None, passable: int = 0) -> Version | None:
    """As model_get, but through intents; raises KeyError at one in the way.  passable: where those of OTHER may be passed."""
    if key in intents:
        attempt_id, at, value = intents[key]
        if attempt_id == own:
            return Version(at, value)
        if at <= ts and (attempt_id != OTHER or passable < ts):
            raise KeyError(key)
    return model_get(versions, key, ts)


def is_in_the_way(intent: tuple[bytes, Timestamp, bytes | None], ts: Timestamp, own: bytes | None, passed: Timestamp) -> bool:
    attempt_id, at, _ = intent
    return attempt_id != own and at <= ts and (attempt_id != OTHER or passed < ts)


model_test = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@model_test
@given(
    versions=versions,
    intents=intents,
    ts=timestamps,
    own=st.sampled_from([None, OWN]),
    passed=timestamps,
    asked=st.lists(keys, max_size=4),
)
def test_point_reads(
    engine: Engine, versions: Versions, intents: Intents, ts: Timestamp, own: bytes | None, passed: Timestamp, asked: list[bytes]
) -> None:
    passable = {OTHER: passed}
    fill(engine, versions, intents)
    several = sorted([*KEYS, b"absent"])
    newest = [(model_get(versions, key, MAX_TIMESTAMP), intent_of(*intents[key]) if key in intents else None) for key in several]
    assert [mvcc.newest_and_intent(engine, key) for key in several] == newest
    standing = [
        Standing(MIN_TIMESTAMP, False, intent) if version is None else Standing(version.ts, version.value is not None, intent)
        for version, intent in newest
    ]
    assert mvcc.standing_of(engine, several) == standing
    assert mvcc.standing_of(engine, several[:1]) == standing[:1]
    assert [mvcc.standing(engine, key) for key in several] == standing
    in_the_way = []
    for key in [*KEYS, b"absent"]:
        assert mvcc.newest(engine, key) == model_get(versions, key, MAX_TIMESTAMP)
        assert mvcc.get_intent(engine, key) == (intent_of(*intents[key]) if key in intents else None)
        try:
            expected = model_read(versions, intents, key, ts, own, passed)
        except KeyError:
            in_the_way.append(key)
            with pytest.raises(IntentsFoundError) as caught:
                mvcc.get(engine, key, View(ts, own, passable))
            assert caught.value.intents == [(key, intent_of(*intents[key]))]
        else:
            assert mvcc.get(engine, key, View(ts, own, passable)) == expected
    if met := [key for key in asked if key in in_the_way]:
        with pytest.raises(IntentsFoundError) as caught:
            mvcc.get_many(engine, asked, View(ts, own, passable))
        assert [key for key, _ in caught.value.intents] == met
    else:
        found = [model_read(versions, intents, key, ts, own, passed) for key in asked]
        values = [None if version is None else version.value for version in found]
        assert mvcc.get_many(engine, asked, View(ts, own, passable)) == values


@model_test
@given(versions=versions, intents=intents, nothing=st.sets(keys), ts=timestamps, commit_ts=timestamps, reverse=st.booleans())
def test_intents_of_a_committed_attempt_are_read_as_what_resolving_them_gives(
    engine: Engine, versions: Versions, intents: Intents, nothing: set[bytes], ts: Timestamp, commit_ts: Timestamp, reverse: bool
) -> None:
    theirs = {key: intent for key, intent in intents.items() if intent[0] == OTHER}
    # Whoever writes a key above an intent's commit resolves the intent first.
    fill(engine, {at: value for at, value in versions.items() if at[0] not in theirs or at[1] < commit_ts}, theirs)
    batch = engine.new_batch()
    for key in nothing.intersection(theirs):
        mvcc.put_intent(batch, key, msgspec.structs.replace(intent_of(*theirs[key]), is_nothing=True))
    engine.write(batch)

    def found(committed: Mapping[bytes, Timestamp]) -> tuple[list[bytes | None], list[tuple[bytes, bytes]]]:
        chunks = mvcc.scan(engine, Span(b"", KEY_MAX), View(ts, committed=committed), reverse=reverse, chunk_rows=3)
        rows = [row for chunk in chunks for row in zip(*chunk, strict=True)]
        return mvcc.get_many(engine, KEYS, View(ts, committed=committed)), rows

    before = found({OTHER: commit_ts})
    batch = engine.new_batch()
    for key in theirs:
        mvcc.resolve_intent(engine, batch, key, OTHER, commit_ts)
    engine.write(batch)
    assert before == found({})


@model_test
@given(
    versions=versions,
    intents=intents,
    span=spans,
    ts=timestamps,
    own=st.sampled_from([None, OWN]),
    passed=timestamps,
    reverse=st.booleans(),
    chunk_rows=st.integers(1, 9),
)
def test_scan(
    engine: Engine,
    versions: Versions,
    intents: Intents,
    span: Span,
    ts: Timestamp,
    own: bytes | None,
    passed: Timestamp,
    reverse: bool,
    chunk_rows: int,
) -> None:
    fill(engine, versions, intents)
    rows: list[tuple[bytes, bytes]] = []
    expected: list[tuple[bytes, bytes]] = []
    in_the_way = [key for key in intents if span.contains(key) and is_in_the_way(intents[key], ts, own, passed)]
    chunks = mvcc.scan(engine, span, View(ts, own, {OTHER: passed}), reverse=reverse, chunk_rows=chunk_rows)
    try:
        for found_keys, found_values in chunks:
            assert 0 < len(found_keys) <= chunk_rows + 1
            rows += list(zip(found_keys, found_values, strict=True))
    except IntentsFoundError as error:
        met = [key for key, _ in error.intents]
        assert met
        # The intents met are the first ones of the scan's order.
        assert met == sorted(in_the_way, reverse=reverse)[: len(met)]
        in_the_way = []
        span = Span(met[0] + b"\x00", span.end) if reverse else Span(span.start, met[0])
        rows = [row for row in rows if span.contains(row[0])]
        expected_is_prefix = True
    else:
        expected_is_prefix = False
    assert not in_the_way
    for key in sorted(KEYS, reverse=reverse):
        if span.contains(key):
            version = model_read(versions, intents, key, ts, own, passed)
            if version is not None and version.value is not None:
                expected.append((key, version.value))
    assert rows == (expected[: len(rows)] if expected_is_prefix else expected)


@model_test
@given(
    versions=versions,
    intents=intents,
    span=spans,
    low=timestamps,
    high=timestamps,
    own=st.sampled_from([None, OWN]),
    passed=timestamps,
    limit=st.integers(0, 3),
)
def test_changed_and_intents(
    engine: Engine,
    versions: Versions,
    intents: Intents,
    span: Span,
    low: Timestamp,
    high: Timestamp,
    own: bytes | None,
    passed: Timestamp,
    limit: int,
) -> None:
    fill(engine, versions, intents)
    changes = sorted((key, -at) for key, at in versions if span.contains(key) and low < at <= high)
    met = sorted(key for key in intents if span.contains(key) and is_in_the_way(intents[key], high, own, passed))
    if not changes and met and low < high:
        with pytest.raises(IntentsFoundError) as caught:
            mvcc.changed(engine, span, low, View(high, own, {OTHER: passed}))
        assert caught.value.intents == [(key, intent_of(*intents[key])) for key in met]
    else:
        found = mvcc.changed(engine, span, low, View(high, own, {OTHER: passed}))
        assert found == ((changes[0][0], -changes[0][1]) if changes else None)
    standing = [(key, intent_of(*intents[key])) for key in sorted(intents) if span.contains(key) and intents[key][1] <= high]
    assert mvcc.intents(engine, span, at_or_below=high, limit=limit) == standing[:limit]


@model_test
@given(versions=versions, intents=intents, key=keys, commit_ts=st.one_of(st.none(), timestamps))
def test_resolve_intent(engine: Engine, versions: Versions, intents: Intents, key: bytes, commit_ts: Timestamp | None) -> None:
    # A commit lies above all versions of its key.
    versions = {at: value for at, value in versions.items() if commit_ts is None or at[1] < commit_ts}
    fill(engine, versions, intents)
    batch = engine.new_batch()
    is_own = key in intents and intents[key][0] == OWN
    assert (mvcc.resolve_intent(engine, batch, key, OWN, commit_ts) is not None) is is_own
    engine.write(batch)
    if is_own:
        _, at, value = intents[key]
        assert mvcc.get_intent(engine, key) is None
        if commit_ts is not None and at <= commit_ts:
            versions[key, commit_ts] = value
        assert mvcc.newest(engine, key) == model_get(versions, key, MAX_TIMESTAMP)
    else:
        assert len(batch) == 0


@model_test
@given(versions=versions, intents=intents, span=spans, threshold=timestamps, versions_max=st.integers(1, 5), seed=st.integers(0, 9))
def test_garbage(
    engine: Engine, versions: Versions, intents: Intents, span: Span, threshold: Timestamp, versions_max: int, seed: int
) -> None:
    fill(engine, versions, intents)
    resume: bytes | None = span.start
    removed = 0
    while resume is not None:
        batch = engine.new_batch()
        count, _, resume = mvcc.collect_garbage(engine, batch, Span(resume, span.end), threshold, versions_max=versions_max)
        assert count == len(batch) <= versions_max
        engine.write(batch)
        removed += count
        # After every step, not only the last: reads at or above the threshold are what they were.
        for key in KEYS:
            for ts in range(threshold, TS_MAX + 1):
                expected, found = model_get(versions, key, Timestamp(ts)), mvcc_get_under(engine, key, Timestamp(ts))
                assert (expected and expected.value) == (found and found.value)
    kept = 0
    for key in KEYS:
        ages = sorted((at for of, at in versions if of == key), reverse=True)
        old = [at for at in ages if at <= threshold]
        if span.contains(key):
            kept += len(ages) - len(old) + (1 if old and versions[key, old[0]] is not None else 0)
        else:
            kept += len(ages)
        assert (mvcc.get_intent(engine, key) is not None) == (key in intents)
    assert removed == len(versions) - kept


def mvcc_get_under(engine: Engine, key: bytes, ts: Timestamp) -> Version | None:
    """Read the versions of a key under whatever intent it has."""
    own = mvcc.get_intent(engine, key)
    if own is None:
        return mvcc.get(engine, key, View(ts))
    batch = engine.new_batch()
    mvcc.remove_intent(batch, key)
    engine.write(batch)
    version = mvcc.get(engine, key, View(ts))
    batch = engine.new_batch()
    mvcc.put_intent(batch, key, own)
    engine.write(batch)
    return version


@model_test
@given(versions=versions, intents=intents, span=spans, rows_max=st.integers(1, 4))
def test_intents_of_an_attempt(engine: Engine, versions: Versions, intents: Intents, span: Span, rows_max: int) -> None:
    fill(engine, versions, intents)
    found: list[tuple[bytes, Intent]] = []
    rest: Span | None = span
    while rest is not None:
        part, resume = mvcc.intents_of(engine, rest, OWN, rows_max=rows_max)
        assert len(part) <= rows_max
        found += part
        rest = None if resume is None else Span(resume, span.end)
    assert found == [(key, intent_of(*intents[key])) for key in sorted(intents) if span.contains(key) and intents[key][0] == OWN]


@model_test
@given(versions=versions, keys=st.sets(st.sampled_from(KEYS)), ts=timestamps, reverse=st.booleans())
def test_an_own_intent_of_nothing_is_as_if_it_were_not_there(
    engine: Engine, versions: Versions, keys: set[bytes], ts: Timestamp, reverse: bool
) -> None:
    fill(engine, versions, {})
    plain = mvcc.get_many(engine, KEYS, View(ts))
    rows = list(mvcc.scan(engine, Span(b"", KEY_MAX), View(ts), reverse=reverse))
    batch = engine.new_batch()
    for key in keys:
        mvcc.put_intent(batch, key, Intent(OWN, b"anchor", Timestamp(1), ts, 7, None, is_nothing=True))
    engine.write(batch)
    assert mvcc.get_many(engine, KEYS, View(ts, OWN)) == plain
    found = list(mvcc.scan(engine, Span(b"", KEY_MAX), View(ts, OWN), reverse=reverse))
    assert [pair for chunk in found for pair in zip(*chunk)] == [pair for chunk in rows for pair in zip(*chunk)]
    batch = engine.new_batch()
    for key in keys:
        intent = mvcc.resolve_intent(engine, batch, key, OWN, Timestamp(ts + 1))
        assert intent is not None
    engine.write(batch)
    assert mvcc.get_many(engine, KEYS, View(ts)) == plain


@model_test
@given(versions=versions, intents=intents, edges=st.tuples(st.sampled_from(KEYS), st.sampled_from(KEYS)))
def test_clear(engine: Engine, versions: Versions, intents: Intents, edges: tuple[bytes, bytes]) -> None:
    fill(engine, versions, intents)
    span = Span(*edges)
    batch = engine.new_batch()
    mvcc.clear(batch, span)
    engine.write(batch)
    for key in KEYS:
        kept = not span.contains(key)
        assert mvcc.newest(engine, key) == (model_get(versions, key, MAX_TIMESTAMP) if kept else None)
        assert (mvcc.get_intent(engine, key) is not None) == (kept and key in intents)


def test_a_large_scan_is_the_model(engine: Engine) -> None:
    """Chunks of all kinds: whole ones, some with old versions, tombstones, later versions, own intents."""
    chance = random.Random(4)
    versions: Versions = {}
    intents: Intents = {}
    for number in range(9_000):
        key = number.to_bytes(4, "big")
        versions[key, Timestamp(5)] = key
        if 3_000 < number < 5_000 and chance.random() < 0.3:
            versions[key, Timestamp(chance.randint(1, 9))] = chance.choice([None, b"another"])
            if chance.random() < 0.1:
                intents[key] = (OWN, Timestamp(3), chance.choice([None, b"own"]))
    fill(engine, versions, intents)
    of_key: dict[bytes, Versions] = {}
    for (key, at), value in versions.items():
        of_key.setdefault(key, {})[key, at] = value
    for reverse in (False, True):
        expected = [
            (key, version.value)
            for key in sorted(of_key, reverse=reverse)
            for version in [model_read(of_key[key], intents, key, Timestamp(6), OWN)]
            if version is not None and version.value is not None
        ]
        rows = [
            row
            for chunk_keys, chunk_values in mvcc.scan(engine, Span(b"", KEY_MAX), View(Timestamp(6), OWN), reverse=reverse, chunk_rows=512)
            for row in zip(chunk_keys, chunk_values)
        ]
        assert rows == expected
