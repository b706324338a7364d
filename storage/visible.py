"""Which rows a scan sees among the entries of its keys."""

from dsdb.storage.versions import (
    EMPTY_FLAG,
    INTENT,
    INTENT_FLAG,
    NO_USER_KEY,
    SUFFIX_BYTES,
    TOMBSTONE,
    TOMBSTONE_FLAG,
    VALUE_FLAG,
    Intent,
    IntentsFoundError,
    View,
    decode_intent,
    decode_version,
    is_in_the_way,
    is_visible,
    not_a_version,
    payload_of,
    suffix_of,
    user_key_of,
    version_suffix,
)


class VisibleRows:
    """Picks the visible rows from the entries of a scan, a chunk at a time.

    Forwards, the first visible entry of a key is its row; backwards, the last one.  Where a chunk has one entry for each key, all of
    them plain versions at or below the timestamp, it is taken whole by bulk operations: five times as fast as row by row.
    """

    def __init__(self, view: View, *, reverse: bool) -> None:
        self._ts, self._own, self._passable, self._committed = view
        self._oldest_visible = version_suffix(view.ts)
        """The least suffix of a version at or below the timestamp."""
        self._reverse = reverse
        self._key = NO_USER_KEY
        """Forwards: the last key that had a visible entry.  Backwards: the key of the candidate."""
        self._candidate: bytes | None = None
        """Backwards: the value of the newest visible entry of `_key` so far; None for a tombstone."""

    def take(self, engine_keys: list[bytes], stored: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Give the rows that a chunk of entries settles."""
        keys = list(map(user_key_of, engine_keys))
        if (
            # In this order: the first is the most often false, and each is one pass in C.
            len(set(keys)) == len(keys)
            and min(map(suffix_of, engine_keys)) >= self._oldest_visible
            and max(stored) < TOMBSTONE
            and keys[0] != self._key
        ):
            values = list(map(payload_of, stored))
            return self._take_backwards_whole(keys, values) if self._reverse else self._take_whole(keys, values)
        if self._reverse:
            return self._take_backwards(keys, engine_keys, stored)
        return self._take_forwards(keys, engine_keys, stored)

    def rest(self) -> tuple[list[bytes], list[bytes]]:
        """Give the row that is settled by the end of the scan."""
        if self._reverse and self._candidate is not None:
            return [self._key], [self._candidate]
        return [], []

    def _take_whole(self, keys: list[bytes], values: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        self._key = keys[-1]
        return keys, values

    def _take_backwards_whole(self, keys: list[bytes], values: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Take a chunk but for its last row, of which newer versions may follow."""
        last_key, last_value = keys.pop(), values.pop()
        if self._candidate is not None:
            keys.insert(0, self._key)
            values.insert(0, self._candidate)
        self._key, self._candidate = last_key, last_value
        return keys, values

    def _take_forwards(self, keys: list[bytes], engine_keys: list[bytes], stored: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        oldest_visible, settled = self._oldest_visible, self._key
        rows: list[bytes] = []
        values: list[bytes] = []
        in_the_way: list[tuple[bytes, Intent]] = []
        for key, engine_key, entry in zip(keys, engine_keys, stored):
            if key == settled:
                continue
            flag = entry[0] if entry else EMPTY_FLAG
            if flag == INTENT_FLAG:
                intent = self._visible_intent(key, entry, in_the_way)
                if intent is not None:
                    settled = key
                    if intent.value is not None:
                        rows.append(key)
                        values.append(intent.value)
            elif engine_key[-SUFFIX_BYTES:] >= oldest_visible:
                settled = key
                if flag == VALUE_FLAG:
                    rows.append(key)
                    values.append(entry[1:])
                elif flag != TOMBSTONE_FLAG:
                    raise not_a_version(engine_key, entry)
        self._key = settled
        if in_the_way:
            raise IntentsFoundError(in_the_way)
        return rows, values

    def _take_backwards(self, keys: list[bytes], engine_keys: list[bytes], stored: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        oldest_visible, candidate_key, candidate = self._oldest_visible, self._key, self._candidate
        rows: list[bytes] = []
        values: list[bytes] = []
        in_the_way: list[tuple[bytes, Intent]] = []
        for key, engine_key, entry in zip(keys, engine_keys, stored):
            if key != candidate_key:
                if candidate is not None:
                    rows.append(candidate_key)
                    values.append(candidate)
                candidate_key, candidate = key, None
            if entry[:1] == INTENT:
                intent = self._visible_intent(key, entry, in_the_way)
                if intent is not None:
                    candidate = intent.value
            elif engine_key[-SUFFIX_BYTES:] >= oldest_visible:
                candidate = decode_version(engine_key, entry).value
        self._key, self._candidate = candidate_key, candidate
        if in_the_way:
            raise IntentsFoundError(in_the_way)
        return rows, values

    def _visible_intent(self, key: bytes, entry: bytes, in_the_way: list[tuple[bytes, Intent]]) -> Intent | None:
        """Give an intent if it is the reader's own, or of a committed attempt, and of something; note it if it is in the way."""
        intent = decode_intent(entry)
        if intent.attempt_id == self._own:
            return None if intent.is_nothing else intent
        if (sees := is_visible(intent, self._ts, self._committed)) is not None:
            return intent if sees else None
        if is_in_the_way(intent, self._ts, self._passable):
            in_the_way.append((key, intent))
        return None
