"""Latches against a plain model: a list in the order of coming, in which everyone waits for every earlier one that conflicts."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dsdb.storage.keys import Span
from dsdb.storage.timestamp import Timestamp
from dsdb.store.latches import Latch, Latches

keys = st.lists(st.sampled_from([b"%d" % n for n in range(6)]), max_size=3, unique=True).map(sorted)
spans = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 3)).map(lambda p: Span(b"%d" % p[0], b"%d" % min(p[0] + p[1], 9))), max_size=1)


class Model:
    """What is queued, as (latch, keys written, spans written, spans read)."""

    def __init__(self) -> None:
        self.queue: list[tuple[Latch, list[bytes], list[Span], list[Span]]] = []

    @staticmethod
    def conflict(one: tuple[Latch, list[bytes], list[Span], list[Span]], other: tuple[Latch, list[bytes], list[Span], list[Span]]) -> bool:
        def writes(entry: tuple[Latch, list[bytes], list[Span], list[Span]], key: bytes) -> bool:
            return key in entry[1] or any(span.contains(key) for span in entry[2])

        def touches(entry: tuple[Latch, list[bytes], list[Span], list[Span]], key: bytes) -> bool:
            return writes(entry, key) or any(span.contains(key) for span in entry[3])

        universe = [b"%d" % n for n in range(10)]
        return any((writes(one, k) and touches(other, k)) or (touches(one, k) and writes(other, k)) for k in universe)

    def granted(self) -> set[int]:
        queue = self.queue
        return {id(entry[0]) for number, entry in enumerate(queue) if not any(self.conflict(before, entry) for before in queue[:number])}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_latches_grant_exactly_what_the_model_grants(data: st.DataObject) -> None:
    latches, model = Latches(), Model()
    for _ in range(data.draw(st.integers(1, 25))):
        action = data.draw(st.sampled_from(["acquire", "acquire", "release", "end_reads"]))
        if action == "acquire":
            written, spans_written, spans_read = data.draw(keys), data.draw(spans), data.draw(spans)
            latch = latches.acquire(tuple(written), tuple(spans_written), tuple(spans_read))
            model.queue.append((latch, written, spans_written, spans_read))
        elif model.queue:
            entry = data.draw(st.sampled_from(model.queue))
            if action == "release":
                model.queue.remove(entry)
                latches.release(entry[0])
            elif entry[0].is_granted:
                model.queue[model.queue.index(entry)] = (entry[0], entry[1], entry[2], [])
                latches.end_reads(entry[0])
        granted = model.granted()
        for latch, *_ in model.queue:
            assert latch.is_granted == (id(latch) in granted)
        assert latches.waiting == len(model.queue) - len(granted)
    for entry in list(model.queue):
        latches.release(entry[0])
    assert len(latches) == 0
    assert latches.waiting == 0


def test_a_read_waits_for_evaluated_writes_at_or_below_it_only() -> None:
    latches = Latches()
    latch = latches.acquire((b"a", b"c"))
    queued = latches.acquire((b"a",))
    assert latches.blocking_key(b"a", Timestamp(10)) is None
    latch.evaluated_ts = Timestamp(5)
    assert latches.blocking_key(b"a", Timestamp(4)) is None
    assert latches.blocking_key(b"a", Timestamp(5)) is latch
    assert latches.blocking_key(b"b", Timestamp(5)) is None
    assert latches.blocking_span(Span(b"b", b"d"), Timestamp(9)) is latch
    assert latches.blocking_span(Span(b"d", b"e"), Timestamp(9)) is None
    woken: list[int] = []
    latch.waiters.append(lambda: woken.append(1))
    latches.release(latch)
    assert woken == [1]
    assert queued.is_granted
    assert latches.blocking_key(b"a", Timestamp(10)) is None


def test_a_span_write_blocks_reads_of_every_key_in_it() -> None:
    latches = Latches()
    latch = latches.acquire((), (Span(b"a", b"f"),))
    latch.evaluated_ts = Timestamp(0)
    assert latches.blocking_key(b"c", Timestamp(1)) is latch
    assert latches.blocking_key(b"f", Timestamp(1)) is None
