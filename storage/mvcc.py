"""Versions of keys: every value that a key had, by timestamp, and at most one provisional one, its intent.

All lie in the engine's family DELTA, a user key's together, the newest first:

    user key │ 00 00 00 00 00 00 00 00   ▸ 02 │ intent            provisional: no reader may pass it by
    user key │ 2⁶⁴ − 1 − ts              ▸ 00 │ value             the newest version
    user key │ 2⁶⁴ − 1 − ts              ▸ 01                     an older one, a tombstone: the key was deleted at ts
    └ any length, prefix-free   └ 8 bytes big-endian

Invariants:
- A read at ts sees, of each key, the newest version at or below ts; never one above, never a tombstone's key.
- A foreign intent at or below ts is passed by only if its attempt is *passable* at ts, which whoever calls must know; else
  `IntentsFoundError`.  The reader's own intent is read in place of any version, but for one of nothing, which is as if it were not there.
- A version never changes; only `collect_garbage` and `clear` remove any.  `MAX_TIMESTAMP` is no version's: the intent stands there.
- No stored key is a prefix of another (`keys`), and no bound of a span goes on behind a stored key, but for `key_after` of one.

Not here: who may write at which timestamp (`dsdb.store`); columnar blocks of older versions; what the values mean (`rowcodec`).
"""

from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from types import MappingProxyType

import msgspec

from dsdb.storage.engine.port import SCAN_CHUNK_ROWS, Family, Reader, WriteBatch
from dsdb.storage.errors import CorruptionError, StorageError
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp

_DELTA = Family.DELTA
_INTENT_SUFFIX = bytes(8)
_SUFFIX_BYTES = 8
_SUFFIXES_END = b"\xff" * 8 + b"\x00"
"""What follows a user key in the first engine key behind all of its versions."""
_NEVER = Timestamp(-1)
"""Below every timestamp."""
_NO_USER_KEY = b"\xff" * 16
"""Above `keys.KEY_MAX`, so never a stored key; stands for "none so far" where a comparison must stay cheap."""

_NEWEST_CHUNK_ROWS = 128
_NEWEST_BYTES_MAX = 1 << 20
"""Of values that `newest_of` reads in vain before it seeks each key."""

_INTENT_HEAD_BYTES = 64
"""Of a stored intent: the attempt's id lies in them."""

_VALUE, _TOMBSTONE, _INTENT = b"\x00", b"\x01", b"\x02"
_VALUE_FLAG, _TOMBSTONE_FLAG, _INTENT_FLAG, _EMPTY_FLAG = 0, 1, 2, -1

NONE_PASSABLE: Mapping[bytes, Timestamp] = MappingProxyType({})
"""Attempt id → readers at or below this timestamp pass by its intents, as it will never commit there: here of no attempt."""

_user_key_of = itemgetter(slice(None, -_SUFFIX_BYTES))
_suffix_of = itemgetter(slice(-_SUFFIX_BYTES, None))
_payload_of = itemgetter(slice(1, None))


class Version(msgspec.Struct, frozen=True, array_like=True):
    """A value that a key has from `ts` on, until its next version."""

    ts: Timestamp
    value: bytes | None
    """None: the key was deleted."""


class Intent(msgspec.Struct, frozen=True, array_like=True):
    """A provisional value: it becomes a version at the commit timestamp of its attempt, or nothing."""

    attempt_id: bytes
    anchor: bytes
    """The key beside which the attempt's txn record is."""
    first_ts: Timestamp
    """The attempt's first proposed commit timestamp; it never changes."""
    ts: Timestamp
    """Where the intent stands: no reader at or above it passes by."""
    sequence: int
    """Of the write within its txn; a later one replaces an earlier one."""
    value: bytes | None
    """None: the key is to be deleted."""
    start_ts: Timestamp = MIN_TIMESTAMP
    """The rank of its txn: the first timestamp of its first attempt; 0: first_ts."""
    is_nothing: bool = False
    """It stands in the place of a write that was rolled back: resolving it leaves no version."""
    older: tuple[tuple[int, bytes | None], ...] = ()
    """Sequences and values of earlier writes, ascending, to which the txn may still be rolled back."""


class IntentsFoundError(StorageError):
    """A read met intents of others at or below its timestamp: push or resolve them, then read again."""

    def __init__(self, intents: list[tuple[bytes, Intent]]) -> None:
        super().__init__(f"{len(intents)} intents in the way, the first at key {intents[0][0].hex()}")
        self.intents = intents
        """User keys and intents, in the order of the scan; not always all that the span holds."""


_encode_intent = msgspec.msgpack.Encoder().encode
_intent_decoder = msgspec.msgpack.Decoder(Intent)


def _decode_intent(stored: bytes) -> Intent:
    try:
        return _intent_decoder.decode(memoryview(stored)[1:])
    except msgspec.DecodeError as error:
        raise CorruptionError(f"not an intent: {stored.hex()}: {error}") from None


def _version_suffix(ts: Timestamp) -> bytes:
    return (MAX_TIMESTAMP - ts).to_bytes(8, "big")


def _suffix_ts(suffix: bytes) -> Timestamp:
    return Timestamp(MAX_TIMESTAMP - int.from_bytes(suffix, "big"))


def _decode_version(engine_key: bytes, stored: bytes) -> Version:
    flag = stored[:1]
    if flag == _VALUE:
        return Version(_suffix_ts(engine_key[-_SUFFIX_BYTES:]), stored[1:])
    if flag == _TOMBSTONE:
        return Version(_suffix_ts(engine_key[-_SUFFIX_BYTES:]), None)
    raise _not_a_version(engine_key, stored)


def _not_a_version(engine_key: bytes, stored: bytes) -> CorruptionError:
    return CorruptionError(f"no version under key {engine_key.hex()}: it begins with {stored[:1].hex() or 'nothing'}")


# ---- Point reads ----


def _first_from(reader: Reader, key: bytes, suffix: bytes) -> tuple[bytes, bytes] | None:
    """Read the first entry of a user key at or behind `suffix`."""
    found = reader.first(_DELTA, key + suffix, key + _SUFFIXES_END)
    # A longer key that starts with this one cannot be stored; but it must never be taken for a version of it.
    return found if found is not None and len(found[0]) == len(key) + _SUFFIX_BYTES else None


def _first_version(reader: Reader, key: bytes, ts: Timestamp) -> Version | None:
    found = _first_from(reader, key, _version_suffix(min(ts, Timestamp(MAX_TIMESTAMP - 1))))
    return None if found is None else _decode_version(*found)


def _is_in_the_way(intent: Intent, ts: Timestamp, passable: Mapping[bytes, Timestamp]) -> bool:
    return intent.ts <= ts and passable.get(intent.attempt_id, _NEVER) < ts


def get(
    reader: Reader, key: bytes, ts: Timestamp, *, own: bytes | None = None, passable: Mapping[bytes, Timestamp] = NONE_PASSABLE
) -> Version | None:
    """Read the newest version of a key at or below `ts`, or the intent of attempt `own`, at whatever timestamp it stands.

    Raises IntentsFoundError at another's intent at or below `ts` that is not passable there.
    """
    found = _first_from(reader, key, _INTENT_SUFFIX)
    if found is None:
        return None
    engine_key, stored = found
    if stored[:1] == _INTENT:
        intent = _decode_intent(stored)
        if intent.attempt_id == own:
            if not intent.is_nothing:
                return Version(intent.ts, intent.value)
        elif _is_in_the_way(intent, ts, passable):
            raise IntentsFoundError([(key, intent)])
    else:
        version = _decode_version(engine_key, stored)
        if version.ts <= ts:
            return version
    return _first_version(reader, key, ts)


def get_many(
    reader: Reader,
    keys: Sequence[bytes],
    ts: Timestamp,
    *,
    own: bytes | None = None,
    passable: Mapping[bytes, Timestamp] = NONE_PASSABLE,
) -> list[bytes | None]:
    """Read the values of keys at `ts` as `get` does, in the order asked; None where there is none or a tombstone.

    Raises IntentsFoundError with all the intents of others that are in the way.
    """
    values: list[bytes | None] = []
    in_the_way: list[tuple[bytes, Intent]] = []
    oldest_visible = _version_suffix(ts)
    first = reader.first
    for key in keys:
        found = first(_DELTA, key + _INTENT_SUFFIX, key + _SUFFIXES_END)
        if found is None:
            values.append(None)
            continue
        engine_key, stored = found
        # Nearly always the first entry is the answer: one seek, no object built.
        if len(engine_key) == len(key) + _SUFFIX_BYTES and engine_key[-_SUFFIX_BYTES:] >= oldest_visible and stored[:1] == _VALUE:
            values.append(stored[1:])
            continue
        try:
            version = get(reader, key, ts, own=own, passable=passable)
        except IntentsFoundError as error:
            in_the_way += error.intents
            continue
        values.append(None if version is None else version.value)
    if in_the_way:
        raise IntentsFoundError(in_the_way)
    return values


def newest(reader: Reader, key: bytes) -> Version | None:
    """Read the newest version of a key, whatever its intent."""
    return _first_version(reader, key, MAX_TIMESTAMP)


def newest_and_intent(reader: Reader, key: bytes) -> tuple[Version | None, Intent | None]:
    """Read the newest version of a key and its intent: by one seek, where there is no intent."""
    found = _first_from(reader, key, _INTENT_SUFFIX)
    if found is None:
        return None, None
    if found[1][:1] == _INTENT:
        return _first_version(reader, key, MAX_TIMESTAMP), _decode_intent(found[1])
    return _decode_version(*found), None


def newest_of(reader: Reader, keys: Sequence[bytes]) -> list[tuple[Version | None, Intent | None]]:
    """Do what `newest_and_intent` does for keys (ascending): by one scan, where little else lies between them."""
    entries: dict[bytes, tuple[bytes, bytes]] = {}
    found: dict[bytes, bytes] = {}
    rows = taken = 0
    for engine_keys, stored in reader.scan(_DELTA, keys[0] + _INTENT_SUFFIX, keys[-1] + _SUFFIXES_END, chunk_rows=_NEWEST_CHUNK_ROWS):
        rows += len(engine_keys)
        taken += sum(map(len, stored))
        if rows > 2 * len(keys) or taken > _NEWEST_BYTES_MAX:
            return [newest_and_intent(reader, key) for key in keys]
        for engine_key, value in zip(engine_keys, stored):
            if engine_key[-_SUFFIX_BYTES:] != _INTENT_SUFFIX:
                entries.setdefault(engine_key[:-_SUFFIX_BYTES], (engine_key, value))
            else:
                found[engine_key[:-_SUFFIX_BYTES]] = value
    newest_entries = [entries.get(key) for key in keys]
    versions = [None if entry is None else _decode_version(*entry) for entry in newest_entries]
    return [(version, _decode_intent(found[key]) if key in found else None) for version, key in zip(versions, keys)]


def get_intent(reader: Reader, key: bytes) -> Intent | None:
    """Read the intent of a key."""
    stored = reader.get(_DELTA, key + _INTENT_SUFFIX)
    if stored is None:
        return None
    if stored[:1] != _INTENT:
        raise CorruptionError(f"no intent in the place of one, at key {key.hex()}")
    return _decode_intent(stored)


# ---- Writes ----


def put(batch: WriteBatch, key: bytes, ts: Timestamp, value: bytes | None) -> None:
    """Write a version; None deletes the key from `ts` on."""
    assert 0 <= ts < MAX_TIMESTAMP, ts
    batch.put(_DELTA, key + (MAX_TIMESTAMP - ts).to_bytes(8, "big"), _TOMBSTONE if value is None else _VALUE + value)


def put_intent(batch: WriteBatch, key: bytes, intent: Intent) -> None:
    """Write the intent of a key, in place of the one that is there."""
    batch.put(_DELTA, key + _INTENT_SUFFIX, _INTENT + _encode_intent(intent))


def remove_intent(batch: WriteBatch, key: bytes) -> None:
    """Remove the intent of a key."""
    batch.delete(_DELTA, key + _INTENT_SUFFIX)


def resolve_intent(reader: Reader, batch: WriteBatch, key: bytes, attempt_id: bytes, commit_ts: Timestamp | None) -> Intent | None:
    """Settle the intent of an attempt: a version at `commit_ts`, or with None (aborted) nothing.  Gives the intent, if there was one.

    An intent above `commit_ts` was never promised to the commit, and is dropped; one of nothing leaves nothing.
    """
    intent = get_intent(reader, key)
    if intent is None or intent.attempt_id != attempt_id:
        return None
    remove_intent(batch, key)
    if commit_ts is not None and intent.ts <= commit_ts and not intent.is_nothing:
        put(batch, key, commit_ts, intent.value)
    return intent


def clear(batch: WriteBatch, span: Span) -> None:
    """Remove all versions and intents of a span, whose bounds are those of ranges or prefixes, not `key_after` of a stored key."""
    batch.delete_range(_DELTA, span.start, span.end)


# ---- Scans ----


def _engine_bound(reader: Reader, bound: bytes) -> bytes:
    """Give the engine key that divides the versions of keys below a span's bound from the others.

    That is the bound itself, but where it is `key_after` of a stored key: all versions of that key lie above such a bound.
    """
    if bound[-1:] == b"\x00":
        key = bound[:-1]
        if _first_from(reader, key, _INTENT_SUFFIX) is not None:
            return key + _SUFFIXES_END
    return bound


def _entries(reader: Reader, span: Span, *, reverse: bool, chunk_rows: int) -> Iterator[tuple[list[bytes], list[bytes]]]:
    start, end = _engine_bound(reader, span.start), _engine_bound(reader, span.end)
    return reader.scan(_DELTA, start, end, reverse=reverse, chunk_rows=chunk_rows)


def scan(
    reader: Reader,
    span: Span,
    ts: Timestamp,
    *,
    own: bytes | None = None,
    passable: Mapping[bytes, Timestamp] = NONE_PASSABLE,
    reverse: bool = False,
    chunk_rows: int = SCAN_CHUNK_ROWS,
) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Read the user keys and values of a span that are live at `ts`, in key order or from the highest down, in chunks.

    A chunk has at most `chunk_rows` rows more than the one row that may be left over from the chunk before, and at least one.
    Raises IntentsFoundError at a chunk with intents of others in the way, with all of that chunk; earlier chunks stand.
    """
    visible = _VisibleRows(ts, own, passable, reverse=reverse)
    for engine_keys, stored in _entries(reader, span, reverse=reverse, chunk_rows=chunk_rows):
        keys, values = visible.take(engine_keys, stored)
        if keys:
            yield keys, values
    keys, values = visible.rest()
    if keys:
        yield keys, values


class _VisibleRows:
    """Picks the visible rows from the entries of a scan, a chunk at a time.

    Forwards, the first visible entry of a key is its row; backwards, the last one.  Where a chunk has one entry for each key, all of
    them plain versions at or below the timestamp, it is taken whole by bulk operations: five times as fast as row by row.
    """

    def __init__(self, ts: Timestamp, own: bytes | None, passable: Mapping[bytes, Timestamp], *, reverse: bool) -> None:
        self._ts = ts
        self._own = own
        self._passable = passable
        self._oldest_visible = _version_suffix(ts)
        """The least suffix of a version at or below the timestamp."""
        self._reverse = reverse
        self._key = _NO_USER_KEY
        """Forwards: the last key that had a visible entry.  Backwards: the key of the candidate."""
        self._candidate: bytes | None = None
        """Backwards: the value of the newest visible entry of `_key` so far; None for a tombstone."""

    def take(self, engine_keys: list[bytes], stored: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        """Give the rows that a chunk of entries settles."""
        keys = list(map(_user_key_of, engine_keys))
        if (
            # In this order: the first is the most often false, and each is one pass in C.
            len(set(keys)) == len(keys)
            and min(map(_suffix_of, engine_keys)) >= self._oldest_visible
            and max(stored) < _TOMBSTONE
            and keys[0] != self._key
        ):
            values = list(map(_payload_of, stored))
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
            flag = entry[0] if entry else _EMPTY_FLAG
            if flag == _INTENT_FLAG:
                intent = self._own_intent(key, entry, in_the_way)
                if intent is not None:
                    settled = key
                    if intent.value is not None:
                        rows.append(key)
                        values.append(intent.value)
            elif engine_key[-_SUFFIX_BYTES:] >= oldest_visible:
                settled = key
                if flag == _VALUE_FLAG:
                    rows.append(key)
                    values.append(entry[1:])
                elif flag != _TOMBSTONE_FLAG:
                    raise _not_a_version(engine_key, entry)
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
            if entry[:1] == _INTENT:
                intent = self._own_intent(key, entry, in_the_way)
                if intent is not None:
                    candidate = intent.value
            elif engine_key[-_SUFFIX_BYTES:] >= oldest_visible:
                candidate = _decode_version(engine_key, entry).value
        self._key, self._candidate = candidate_key, candidate
        if in_the_way:
            raise IntentsFoundError(in_the_way)
        return rows, values

    def _own_intent(self, key: bytes, entry: bytes, in_the_way: list[tuple[bytes, Intent]]) -> Intent | None:
        """Give an intent if it is the reader's own, and of something; note it if it is in the way."""
        intent = _decode_intent(entry)
        if intent.attempt_id == self._own:
            return None if intent.is_nothing else intent
        if _is_in_the_way(intent, self._ts, self._passable):
            in_the_way.append((key, intent))
        return None


# ---- Checks over spans ----


def changed(
    reader: Reader,
    span: Span,
    low: Timestamp,
    high: Timestamp,
    *,
    own: bytes | None = None,
    passable: Mapping[bytes, Timestamp] = NONE_PASSABLE,
) -> tuple[bytes, Timestamp] | None:
    """Find a version, value or tombstone, with low < ts ≤ high in a span, also under an intent.  None if there is none.

    Raises IntentsFoundError at intents at or below `high`, also below `low`, that are neither of attempt `own` nor passable at `high`.
    """
    for found in changes(reader, span, low, high, own=own, passable=passable):
        if found is not None:
            return found
    return None


def changes(
    reader: Reader,
    span: Span,
    low: Timestamp,
    high: Timestamp,
    *,
    own: bytes | None = None,
    passable: Mapping[bytes, Timestamp] = NONE_PASSABLE,
) -> Iterator[tuple[bytes, Timestamp] | None]:
    """Do what `changed` does in steps of a chunk each: None is given after each in which there is nothing; the first find is the last."""
    if low >= high:
        return
    # A suffix below the intent's does not exist, and the intent's own is not a version's.
    newest_suffix, oldest_suffix = _version_suffix(min(high, Timestamp(MAX_TIMESTAMP - 1))), _version_suffix(low)
    if span.end == span.start + b"\x00":
        found = _first_from(reader, span.start, _INTENT_SUFFIX)
        intent = None if found is None or found[1][:1] != _INTENT else _decode_intent(found[1])
        if found is not None and found[0][-_SUFFIX_BYTES:] < newest_suffix:
            # An intent, or a version above `high`: what lies under it decides.
            found = _first_from(reader, span.start, newest_suffix)
        if found is not None and found[0][-_SUFFIX_BYTES:] < oldest_suffix:
            yield span.start, _suffix_ts(found[0][-_SUFFIX_BYTES:])
        elif intent is not None and intent.attempt_id != own and _is_in_the_way(intent, high, passable):
            raise IntentsFoundError([(span.start, intent)])
        return
    for engine_keys, stored in _entries(reader, span, reverse=False, chunk_rows=SCAN_CHUNK_ROWS):
        # Nearly always all is old: one pass in C.
        if min(map(_suffix_of, engine_keys)) < oldest_suffix:
            in_the_way: list[tuple[bytes, Intent]] = []
            for engine_key, suffix, entry in zip(engine_keys, map(_suffix_of, engine_keys), stored):
                if newest_suffix <= suffix < oldest_suffix:
                    yield engine_key[:-_SUFFIX_BYTES], _suffix_ts(suffix)
                    return
                if suffix == _INTENT_SUFFIX and (own is None or own not in entry[:_INTENT_HEAD_BYTES]):
                    intent = _decode_intent(entry)
                    if intent.attempt_id != own and _is_in_the_way(intent, high, passable):
                        in_the_way.append((engine_key[:-_SUFFIX_BYTES], intent))
            if in_the_way:
                raise IntentsFoundError(in_the_way)
        yield None


def intents(reader: Reader, span: Span, *, at_or_below: Timestamp, limit: int) -> list[tuple[bytes, Intent]]:
    """List the intents of a span that stand at or below a timestamp, in key order, up to `limit`."""
    found: list[tuple[bytes, Intent]] = []
    if span.end == span.start + b"\x00":
        intent = get_intent(reader, span.start)
        return [(span.start, intent)] if intent is not None and intent.ts <= at_or_below and limit > 0 else []
    for engine_keys, stored in _entries(reader, span, reverse=False, chunk_rows=SCAN_CHUNK_ROWS):
        for index, suffix in enumerate(map(_suffix_of, engine_keys)):
            if suffix == _INTENT_SUFFIX:
                intent = _decode_intent(stored[index])
                if intent.ts <= at_or_below:
                    if len(found) >= limit:
                        return found
                    found.append((engine_keys[index][:-_SUFFIX_BYTES], intent))
    return found


def intents_of(
    reader: Reader, span: Span, attempt_id: bytes, *, rows_max: int
) -> tuple[list[tuple[bytes, Intent]], bytes | None]:
    """List the intents of an attempt in a span, as far as `rows_max` entries go; give the key to go on from, None at the end."""
    found: list[tuple[bytes, Intent]] = []
    if span.end == span.start + b"\x00":
        intent = get_intent(reader, span.start)
        return ([(span.start, intent)] if intent is not None and intent.attempt_id == attempt_id else []), None
    for engine_keys, stored in _entries(reader, span, reverse=False, chunk_rows=rows_max):
        for engine_key, entry in zip(engine_keys, stored):
            if entry[:1] == _INTENT and attempt_id in entry[:_INTENT_HEAD_BYTES]:
                intent = _decode_intent(entry)
                if intent.attempt_id == attempt_id:
                    found.append((engine_key[:-_SUFFIX_BYTES], intent))
        return found, engine_keys[-1][:-_SUFFIX_BYTES] + b"\x00" if len(engine_keys) >= rows_max else None
    return found, None


# ---- Garbage ----


def collect_garbage(
    reader: Reader, batch: WriteBatch, span: Span, threshold: Timestamp, *, versions_max: int
) -> tuple[int, int, bytes | None]:
    """Remove the versions of a span that no read at or above `threshold` sees; intents stay.

    Of each key the newest version at or below the threshold stays, unless it is a tombstone; all older ones go.
    Gives how many were removed, their bytes, and, when `versions_max` ended it early, the user key to go on from once the batch is written.
    """
    assert versions_max > 0, versions_max
    highest_old = _version_suffix(threshold)
    removed = removed_bytes = 0
    key = _NO_USER_KEY
    doomed: list[tuple[bytes, int]] = []
    has_old = False
    for engine_keys, stored in _entries(reader, span, reverse=False, chunk_rows=SCAN_CHUNK_ROWS):
        for engine_key, entry in zip(engine_keys, stored):
            if engine_key[:-_SUFFIX_BYTES] != key:
                count, size = _delete_oldest(batch, doomed, versions_max - removed)
                removed, removed_bytes = removed + count, removed_bytes + size
                if removed == versions_max:
                    return removed, removed_bytes, key
                key, doomed, has_old = engine_key[:-_SUFFIX_BYTES], [], False
            if entry[:1] != _INTENT and engine_key[-_SUFFIX_BYTES:] >= highest_old:
                if has_old or entry[:1] == _TOMBSTONE:
                    doomed.append((engine_key, len(entry)))
                has_old = True
    count, size = _delete_oldest(batch, doomed, versions_max - removed)
    removed, removed_bytes = removed + count, removed_bytes + size
    return removed, removed_bytes, key if removed == versions_max else None


def _delete_oldest(batch: WriteBatch, doomed: list[tuple[bytes, int]], limit: int) -> tuple[int, int]:
    """Delete up to `limit` versions of one key, the oldest first: a tombstone must not go before what it hides.

    Gives how many, and their bytes.
    """
    chosen = doomed[-limit:]
    for engine_key, _ in chosen:
        batch.delete(_DELTA, engine_key)
    return len(chosen), sum([len(engine_key) + size for engine_key, size in chosen])
