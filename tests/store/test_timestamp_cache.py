"""The timestamp cache against a model that remembers every read: never lower, and exact while nothing overflows."""

from hypothesis import given
from hypothesis import strategies as st

from dsdb.kv.ids import AttemptId
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import Timestamp
from dsdb.store.timestamp_cache import Reading, TimestampCache

KEYS = [b"%c" % letter for letter in b"abcdefghij"]
attempts = st.sampled_from([AttemptId(b"x"), AttemptId(b"y"), None])
reads = st.lists(
    st.tuples(st.integers(0, 8), st.integers(0, 4), st.integers(1, 12).map(Timestamp), attempts),
    max_size=40,
)


class Model:
    def __init__(self) -> None:
        self.reads: dict[bytes, Reading] = {}

    def note(self, key: bytes, ts: Timestamp, attempt: AttemptId | None) -> None:
        current = self.reads.get(key, (Timestamp(0), None))
        if ts > current[0]:
            self.reads[key] = (ts, attempt)
        elif ts == current[0] and attempt != current[1]:
            self.reads[key] = (ts, None)


def play(cache: TimestampCache, steps: list[tuple[int, int, Timestamp, AttemptId | None]]) -> Model:
    model = Model()
    for start, length, ts, attempt in steps:
        if length == 0:
            cache.note_key(KEYS[start], ts, attempt)
            model.note(KEYS[start], ts, attempt)
        else:
            end = min(start + length, 9)
            cache.note_span(Span(KEYS[start], KEYS[end]), ts, attempt)
            for key in KEYS[start:end]:
                model.note(key, ts, attempt)
    return model


@given(reads)
def test_it_remembers_exactly(steps: list[tuple[int, int, Timestamp, AttemptId | None]]) -> None:
    cache = TimestampCache(points_max=1000, spans_max=1000)
    model = play(cache, steps)
    for key in KEYS:
        assert cache.reading(key) == model.reads.get(key, (0, None))


@given(reads)
def test_it_never_forgets_when_it_overflows(steps: list[tuple[int, int, Timestamp, AttemptId | None]]) -> None:
    cache = TimestampCache(points_max=2, spans_max=3)
    model = play(cache, steps)
    assert len(cache) <= 2 * 2 + 1 + 3 + 2
    for key in KEYS:
        expected = model.reads.get(key, (Timestamp(0), None))
        found = cache.reading(key)
        assert found[0] >= expected[0]
        if found[0] == expected[0]:
            assert found[1] is None or found[1] == expected[1]


def test_only_the_reader_may_write_at_its_timestamp() -> None:
    cache = TimestampCache(points_max=10, spans_max=10)
    mine, other = AttemptId(b"m"), AttemptId(b"o")
    cache.raise_low(Timestamp(3))
    cache.note_key(b"k", Timestamp(5), mine)
    assert cache.bound(b"k", Timestamp(5), mine) == 0
    assert cache.bound(b"k", Timestamp(5), other) == 5
    assert cache.bound(b"k", Timestamp(4), mine) == 5
    assert cache.bound(b"j", Timestamp(3), mine) == 3
    assert cache.bound(b"j", Timestamp(4), mine) == 0
    cache.note_key(b"k", Timestamp(5), other)
    assert cache.bound(b"k", Timestamp(5), mine) == 5


@given(reads, st.sets(st.sampled_from(KEYS), min_size=1), st.integers(0, 13), st.booleans())
def test_the_bound_of_many_keys_is_the_highest_of_theirs(
    steps: list[tuple[int, int, Timestamp, AttemptId | None]], keys: set[bytes], ts: int, overflows: bool
) -> None:
    cache = TimestampCache(points_max=2, spans_max=3) if overflows else TimestampCache(points_max=1000, spans_max=1000)
    play(cache, steps)
    ordered = sorted(keys)
    for attempt in (AttemptId(b"x"), AttemptId(b"z")):
        expected = max(cache.bound(key, Timestamp(ts), attempt) for key in ordered)
        assert cache.bound_of_all(ordered, Timestamp(ts), attempt) == expected
