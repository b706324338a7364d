"""What lies over the blocks: of each key in the delta the newest version that a reader sees, deletions included, and the txn's own writes.

    DELTA entries ─▶ Settler ─▶ (keys, values or None) ─▶ layered(…, writes of the txn) ─▶ LayerStream: as far as a block goes

Invariants:
- Each key is given once, in order; None says that it was deleted: what blocks have of it is not seen.
- Intents are treated as `mvcc` treats them: another's in the way raises IntentsFoundError with all of its chunk.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from dsdb.storage.timestamp import Timestamp
from dsdb.storage.versions import (
    INTENT,
    NO_USER_KEY,
    SUFFIX_BYTES,
    Intent,
    IntentsFoundError,
    View,
    decode_intent,
    decode_version,
    is_in_the_way,
    is_visible,
    suffix_of,
    suffix_ts,
    user_key_of,
    version_suffix,
)

_SUFFIX_END = b"\xff" * (SUFFIX_BYTES + 1)
"""Behind all suffixes."""

Layer: TypeAlias = tuple[list[bytes], list[bytes | None]]
"""Keys, ascending, and of each its stored row value, or None: deleted."""


class Settler:
    """Picks from the entries of a scan, a chunk at a time, the one of each key that a reader sees."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._oldest_visible = version_suffix(view.ts)
        """The least suffix of a version at or below the timestamp."""
        self._settled = NO_USER_KEY
        """The last key that was given."""
        self.is_plain = True
        """Whether no intent was met, and no version above the timestamp: whoever reads later sees the same."""
        self._least_suffix = _SUFFIX_END

    @property
    def newest(self) -> Timestamp:
        """Give the timestamp of the newest version that was met; 0 if there was none."""
        return Timestamp(0) if self._least_suffix == _SUFFIX_END else Timestamp(suffix_ts(self._least_suffix))

    def take(self, engine_keys: Sequence[bytes], stored: Sequence[bytes]) -> Layer:
        """Give what a chunk of entries, newest first, settles."""
        keys = list(map(user_key_of, engine_keys))
        if (
            # In this order: the first is the most often false, and each is one pass in C.
            len(set(keys)) == len(keys)
            and max(stored) < INTENT
            and min(stored)[:1] == b"\x00"
            and (least := min(map(suffix_of, engine_keys))) >= self._oldest_visible
            and keys[0] != self._settled
        ):
            self._settled = keys[-1]
            self._least_suffix = min(self._least_suffix, least)
            return keys, [value[1:] if value[0] == 0 else None for value in stored]
        return self._take_singly(keys, engine_keys, stored)

    def _take_singly(self, keys: Sequence[bytes], engine_keys: Sequence[bytes], stored: Sequence[bytes]) -> Layer:
        rows: list[bytes] = []
        values: list[bytes | None] = []
        in_the_way: list[tuple[bytes, Intent]] = []
        for key, engine_key, entry in zip(keys, engine_keys, stored):
            suffix = engine_key[-SUFFIX_BYTES:]
            if entry[:1] == INTENT or suffix < self._oldest_visible:
                self.is_plain = False
            elif suffix < self._least_suffix:
                self._least_suffix = suffix
            if key == self._settled:
                continue
            if entry[:1] == INTENT:
                intent = self._visible_intent(key, entry, in_the_way)
                if intent is None:
                    continue
                value = intent.value
            elif suffix >= self._oldest_visible:
                value = decode_version(engine_key, entry).value
            else:
                continue
            self._settled = key
            rows.append(key)
            values.append(value)
        if in_the_way:
            raise IntentsFoundError(in_the_way)
        return rows, values

    def _visible_intent(self, key: bytes, entry: bytes, in_the_way: list[tuple[bytes, Intent]]) -> Intent | None:
        """Give an intent if it is the reader's own, or of a committed attempt, and of something; note it if it is in the way."""
        intent = decode_intent(entry)
        if intent.attempt_id == self._view.own:
            return None if intent.is_nothing else intent
        if (sees := is_visible(intent, self._view.ts, self._view.committed)) is not None:
            return intent if sees else None
        if is_in_the_way(intent, self._view.ts, self._view.passable):
            in_the_way.append((key, intent))
        return None


def layered(lower: Layer, upper: Layer) -> Layer:
    """Lay one layer over another: of a key in both the upper one's value stands."""
    if not upper[0]:
        return lower
    if not lower[0]:
        return upper
    merged = dict(zip(*lower))
    merged.update(zip(*upper))
    keys = sorted(merged)
    return keys, [merged[key] for key in keys]


def cut_layer(layer: Layer, start: bytes, end: bytes) -> Layer:
    """Give the part of a layer in [start, end)."""
    keys, values = layer
    low, high = bisect_left(keys, start), bisect_left(keys, end)
    return keys[low:high], values[low:high]


class LayerStream:
    """A layer that comes in chunks, ascending, taken a stretch of keys at a time; with the txn's writes over it."""

    def __init__(self, chunks: Iterator[Layer], writes: Layer) -> None:
        self._chunks = chunks
        self._keys: list[bytes] = []
        self._values: list[bytes | None] = []
        self._at = 0
        """How much of `_keys` was taken."""
        self._is_over = False
        self._writes = writes
        self._writes_at = 0

    def below(self, bound: bytes | None) -> Iterator[Layer]:
        """Take what is left below a key, in pieces; None: all that is left."""
        while True:
            if self._at == len(self._keys) and not self._is_over:
                self._fetch()
            keys, at = self._keys, self._at
            stop = len(keys) if bound is None else bisect_left(keys, bound, at)
            is_last = self._is_over if stop == len(keys) else True
            # Writes up to the end of the piece, or, with the last piece, up to the bound.
            writes_bound = bound if is_last else keys[-1]
            piece = layered((keys[at:stop], self._values[at:stop]), self._take_writes(writes_bound, inclusive=not is_last))
            self._at = stop
            if piece[0]:
                yield piece
            if is_last:
                return

    def _take_writes(self, bound: bytes | None, *, inclusive: bool) -> Layer:
        keys, values = self._writes
        at = self._writes_at
        stop = len(keys) if bound is None else (bisect_right if inclusive else bisect_left)(keys, bound, at)
        self._writes_at = stop
        return keys[at:stop], values[at:stop]

    def _fetch(self) -> None:
        self._at = 0
        self._keys, self._values = [], []
        for keys, values in self._chunks:
            if keys:
                self._keys, self._values = keys, values
                return
        self._is_over = True
