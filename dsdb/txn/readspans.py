"""The spans that a transaction has read: what a refresh must cover (rule 7).

Invariants:
- They cover every key that was read, and every key that was asked for and not found; they may cover more, never less.
- They are bounded: too many are made fewer by filling the gaps between neighbours, which costs at worst a needless restart.

Sans-I/O.
"""

from collections.abc import Iterable, Sequence

from dsdb.storage.keys import Span, key_after, point_span

SPANS_MAX = 10_000
"""Spans remembered: about 2 MB at a gateway, 10 refreshes of 1,000, and some 20 ms to make twice as many fewer."""
CONDENSED_FROM = 4
"""Spans looked at for each that is to be left: some milliseconds for 1,000."""


class ReadSpans:
    """What one transaction has read."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        self._is_merged = True

    def add(self, span: Span) -> None:
        """Remember a span."""
        if span.is_empty:
            return
        self._spans.append(span)
        self._is_merged = False
        if len(self._spans) >= 2 * SPANS_MAX:
            self._merge()

    def add_keys(self, keys: Iterable[bytes]) -> None:
        """Remember keys."""
        for key in keys:
            self.add(point_span(key))

    def merged(self) -> tuple[Span, ...]:
        """Give them disjoint and ascending."""
        if not self._is_merged:
            self._merge()
        return tuple(self._spans)

    def _merge(self) -> None:
        spans = merge(self._spans)
        while len(spans) > SPANS_MAX:
            spans = [Span(spans[at].start, spans[min(at + 1, len(spans) - 1)].end) for at in range(0, len(spans), 2)]
        self._spans, self._is_merged = spans, True


class ReadsAside:
    """What was read apart from the rest (`dsdb.sql.ports.UnrecordedReads`)."""

    def __init__(self, spans: ReadSpans) -> None:
        self._spans = spans
        self.aside = ReadSpans()

    def keep(self) -> None:
        """Put it to the rest."""
        for span in self.aside.merged():
            self._spans.add(span)


def merge(spans: Iterable[Span]) -> list[Span]:
    """Give the same keys as disjoint spans that do not touch, ascending."""
    found: list[Span] = []
    for span in sorted(spans):
        if found and span.start <= found[-1].end:
            if span.end > found[-1].end:
                found[-1] = Span(found[-1].start, span.end)
        else:
            found.append(span)
    return found


def condensed(spans: Iterable[Span], count_max: int) -> tuple[Span, ...]:
    """Give disjoint spans, ascending, `count_max` at most, that cover some others: where these lie closest the gaps are filled."""
    found = merge(spans)
    if len(found) > count_max:
        gaps = [_distance(found[at - 1].end, found[at].start) for at in range(1, len(found))]
        kept = sorted(sorted(range(1, len(found)), key=lambda at: gaps[at - 1], reverse=True)[: count_max - 1])
        found = [Span(found[first].start, found[last - 1].end) for first, last in zip([0, *kept], [*kept, len(found)])]
    return tuple(found)


def spans_of_keys(keys: Sequence[bytes], count_max: int) -> tuple[Span, ...]:
    """Give disjoint spans, `count_max` at most, that cover keys (ascending): neighbours in a table share one."""
    step = -(-len(keys) // (CONDENSED_FROM * count_max))
    spans: list[Span] = []
    for at in range(0, len(keys), step):
        part = keys[at : at + step]
        if part[0][:_TABLE_BYTES] == part[-1][:_TABLE_BYTES]:
            spans.append(Span(part[0], key_after(part[-1])))
        else:
            spans += map(point_span, part)
    return condensed(spans, count_max)


_DISTANCE_BYTES = 24
_TABLE_BYTES = 5
"""Keys of one table begin with the same bytes, if ids are small: no more than a matter of cost."""


def _distance(low: bytes, high: bytes) -> int:
    """Say how far two keys lie apart, as numbers: enough to tell neighbours in a table from different tables."""
    return _number(high) - _number(low)


def _number(key: bytes) -> int:
    return int.from_bytes(key[:_DISTANCE_BYTES].ljust(_DISTANCE_BYTES, b"\x00"), "big")


def outside(spans: Iterable[Span], whole: Span) -> list[Span]:
    """Give the parts of spans that lie outside of another one, in their order."""
    found = []
    for span in spans:
        left, right = Span(span.start, min(span.end, whole.start)), Span(max(span.start, whole.end), span.end)
        found += [part for part in (left, right) if not part.is_empty]
    return found
