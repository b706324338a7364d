"""A sample of the keys that are asked for in a busy range, and the key at which they part best.

    requests ─ every gap-th, at random ─▶ the last SAMPLES of them ─ candidates: where one begins ─▶ the key with as many left as right

A request counts as left of a key, right of it, or across it.  A key that would leave too little on a side is no help: so load on one row
never splits.  Nor is one that only looks balanced over time: where rows are appended, what was asked for first lies left, what was asked
for last lies right, and the load would go on with the right side; so the older and the newer half of the sample must both be balanced.

Invariants:
- A request that is not sampled costs a subtraction; the sample has a fixed size.
"""

import random
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from dsdb.kv.intents import PrewriteRequest, StageRequest
from dsdb.kv.locks import LockedReadRequest
from dsdb.kv.requests import CommitRequest, ReadRequest, ScanRequest
from dsdb.storage.keys import Span, key_after

SAMPLES = 256
SAMPLES_LEAST = 64
"""Fewer say too little."""
WINDOW_S = 5.0
"""Over about this time the sample reaches back."""
SIDE_LEAST = 0.2
"""The part of the sampled requests that either side must get."""
HALF_SIDE_LEAST = 0.1
"""The same of the older, and of the newer half of the sample."""
ACROSS_MOST = 0.3
"""The part that may lie across: each costs more after a split."""
SHORT_ROWS = 100
"""A scan for so few rows stays where it begins."""

Parts: TypeAlias = Sequence[Span]


class KeySample:
    """Of one range, at its leaseholder, while there is load."""

    __slots__ = ("_chance", "_gap", "_parts", "_wait")

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._gap = 1
        self._wait = 1
        self._parts: deque[Span] = deque(maxlen=SAMPLES)

    def __len__(self) -> int:
        return len(self._parts)

    def pace(self, requests_per_s: float) -> None:
        """Reach back over about WINDOW_S at this load."""
        self._gap = max(int(requests_per_s * WINDOW_S / SAMPLES), 1)

    def note(self, request: object) -> None:
        """Take a request into the sample, by chance."""
        self._wait -= 1
        if self._wait > 0:
            return
        self._wait = self._chance.randrange(2 * self._gap) + 1
        part_of = _PARTS.get(type(request))
        if part_of is not None:
            self._parts.append(part_of(request))

    def note_span(self, span: Span) -> None:
        """Take the reading of a whole span into the sample, by chance."""
        self._wait -= 1
        if self._wait <= 0:
            self._wait = self._chance.randrange(2 * self._gap) + 1
            self._parts.append(span)

    def left_part(self, key: bytes) -> float:
        """Give the part of the load that lies left of a key; what lies across counts half."""
        if not self._parts:
            return 0.5
        left, right = sides(self._parts, key)
        return (left + (len(self._parts) - left - right) / 2) / len(self._parts)

    def split_key(self, span: Span, stored_from: Callable[[bytes], bytes | None]) -> bytes | None:
        """Give the stored key at which the load on a range parts best; None if there is none that helps.

        stored_from: gives the first stored key of the range at or above a key.
        """
        parts = [part for part in self._parts if span.covers(part)]
        if len(parts) < SAMPLES_LEAST:
            return None
        firsts, ends = sorted([part.start for part in parts]), sorted([part.end for part in parts])
        best: tuple[int, bytes] | None = None
        for key in sorted(set(firsts)):
            if key > span.start:
                left, right = bisect_right(ends, key), len(parts) - bisect_left(firsts, key)
                cost = abs(left - right) + (len(parts) - left - right)
                if best is None or cost < best[0]:
                    best = cost, key
        if best is None:
            return None
        # Requests may ask for what is not there: only between two rows, or in front of one, may a range be cut.
        found = stored_from(best[1])
        if found is None or found <= span.start or not _helps(parts, found):
            return None
        return found


def sides(parts: Parts, key: bytes) -> tuple[int, int]:
    """Count what lies left of a key, and right of it."""
    return sum([part.end <= key for part in parts]), sum([part.start >= key for part in parts])


def _helps(parts: list[Span], key: bytes) -> bool:
    left, right = sides(parts, key)
    if min(left, right) < SIDE_LEAST * len(parts) or len(parts) - left - right > ACROSS_MOST * len(parts):
        return False
    middle = len(parts) // 2
    return all(min(sides(half, key)) >= HALF_SIDE_LEAST * len(half) for half in (parts[:middle], parts[middle:]))


def _of_keys(keys: Sequence[bytes]) -> Span:
    return Span(keys[0], key_after(keys[0])) if len(keys) == 1 else Span(min(keys), key_after(max(keys)))


def _of_read(request: ReadRequest | LockedReadRequest | PrewriteRequest) -> Span:
    return _of_keys(request.keys)


def _of_commit(request: CommitRequest) -> Span:
    written = _of_keys([write.key for write in request.writes])
    if not request.reads:
        return written
    return Span(min(written.start, *[span.start for span in request.reads]), max(written.end, *[span.end for span in request.reads]))


def _of_stage(request: StageRequest) -> Span:
    return _of_keys((request.meta.anchor, *request.laid))


def _of_scan(request: ScanRequest) -> Span:
    if request.rows_max > SHORT_ROWS:
        return request.span
    # The last key is not known: just below the end is near enough.
    return Span(request.span.end, request.span.end) if request.reverse else Span(request.span.start, key_after(request.span.start))


_PARTS: dict[type, Callable[[Any], Span]] = {
    ReadRequest: _of_read,
    LockedReadRequest: _of_read,
    PrewriteRequest: _of_read,
    CommitRequest: _of_commit,
    StageRequest: _of_stage,
    ScanRequest: _of_scan,
}
"""What of a range a request concerns; what the database does by itself is left out."""
