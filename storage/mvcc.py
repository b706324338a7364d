"""Versions of keys: every value that a key had, by timestamp, and at most one provisional one, its intent.

All lie in the engine's family DELTA, a user key's together, the newest first:

    user key │ 00 00 00 00 00 00 00 00   ▸ 02 │ intent            provisional: no reader may pass it by
    user key │ 2⁶⁴ − 1 − ts              ▸ 00 │ value             the newest version
    user key │ 2⁶⁴ − 1 − ts              ▸ 01                     an older one, a tombstone: the key was deleted at ts
    └ any length, prefix-free   └ 8 bytes big-endian

Invariants:
- A read at ts sees, of each key, the newest version at or below ts; never one above, never a tombstone's key.
- A foreign intent at or below ts is passed by only if its attempt is *passable* at ts, which whoever calls must know; else
  `IntentsFoundError`.  One whose attempt is known to be *committed* is read as the version that it will be (rule 21), or passed by.
  The reader's own intent is read in place of any version, but for one of nothing, which is as if it were not there.
- A version never changes; only `collect_garbage` and `clear` remove any.  `MAX_TIMESTAMP` is no version's: the intent stands there.
- No stored key is a prefix of another (`keys`), and no bound of a span goes on behind a stored key, but for `key_after` of one.

Not here: who may write at which timestamp (`dsdb.store`); columnar blocks of older versions; what the values mean (`rowcodec`).
"""

from collections.abc import Callable, Iterator, Sequence

from dsdb.storage.engine.port import SCAN_CHUNK_ROWS, Reader, WriteBatch
from dsdb.storage.errors import CorruptionError
from dsdb.storage.keys import Span
from dsdb.storage.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp
from dsdb.storage.versions import (
    DELTA,
    INTENT,
    INTENT_HEAD_BYTES,
    INTENT_SUFFIX,
    NO_USER_KEY,
    SUFFIX_BYTES,
    SUFFIXES_END,
    TOMBSTONE,
    VALUE,
    Standing,
    View,
    decode_intent,
    decode_version,
    encode_intent,
    is_in_the_way,
    is_visible,
    not_a_version,
    suffix_of,
    suffix_ts,
    version_suffix,
)
from dsdb.storage.versions import Intent as Intent
from dsdb.storage.versions import IntentsFoundError as IntentsFoundError
from dsdb.storage.versions import Version as Version
from dsdb.storage.visible import VisibleRows

_STANDING_CHUNK_ROWS = 128
_STANDING_BYTES_MAX = 1 << 20
"""Of values that `standing_of` reads in vain before it seeks each key."""


# ---- Point reads ----


def _first_from(reader: Reader, key: bytes, suffix: bytes) -> tuple[bytes, bytes] | None:
    """Read the first entry of a user key at or behind `suffix`."""
    found = reader.first(DELTA, key + suffix, key + SUFFIXES_END)
    # A longer key that starts with this one cannot be stored; but it must never be taken for a version of it.
    return found if found is not None and len(found[0]) == len(key) + SUFFIX_BYTES else None


def _first_version(reader: Reader, key: bytes, ts: Timestamp) -> Version | None:
    found = _first_from(reader, key, version_suffix(min(ts, Timestamp(MAX_TIMESTAMP - 1))))
    return None if found is None else decode_version(*found)


def get(reader: Reader, key: bytes, view: View) -> Version | None:
    """Read the newest version of a key that is seen, or the intent of the reader's own attempt, at whatever timestamp it stands.

    Raises IntentsFoundError at another's intent at or below the view's timestamp that is not passable there.
    """
    ts, own, passable, committed = view
    found = _first_from(reader, key, INTENT_SUFFIX)
    if found is None:
        return None
    engine_key, stored = found
    if stored[:1] == INTENT:
        intent = decode_intent(stored)
        if intent.attempt_id == own:
            if not intent.is_nothing:
                return Version(intent.ts, intent.value)
        elif (sees := is_visible(intent, ts, committed)) is None:
            if is_in_the_way(intent, ts, passable):
                raise IntentsFoundError([(key, intent)])
        elif sees:
            return Version(committed[intent.attempt_id], intent.value)
    else:
        version = decode_version(engine_key, stored)
        if version.ts <= ts:
            return version
    return _first_version(reader, key, ts)


def get_many(reader: Reader, keys: Sequence[bytes], view: View) -> list[bytes | None]:
    """Read the values of keys as `get` does, in the order asked; None where there is none or a tombstone.

    Raises IntentsFoundError with all the intents of others that are in the way.
    """
    values: list[bytes | None] = []
    in_the_way: list[tuple[bytes, Intent]] = []
    oldest_visible = version_suffix(view.ts)
    first = reader.first
    for key in keys:
        found = first(DELTA, key + INTENT_SUFFIX, key + SUFFIXES_END)
        if found is None:
            values.append(None)
            continue
        engine_key, stored = found
        # Nearly always the first entry is the answer: one seek, no object built.
        if len(engine_key) == len(key) + SUFFIX_BYTES and engine_key[-SUFFIX_BYTES:] >= oldest_visible and stored[:1] == VALUE:
            values.append(stored[1:])
            continue
        try:
            version = get(reader, key, view)
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
    found = _first_from(reader, key, INTENT_SUFFIX)
    if found is None:
        return None, None
    if found[1][:1] == INTENT:
        return _first_version(reader, key, MAX_TIMESTAMP), decode_intent(found[1])
    return decode_version(*found), None


def standing(reader: Reader, key: bytes) -> Standing:
    """Read what a writer must know of a key: by one seek, where there is no intent."""
    found = _first_from(reader, key, INTENT_SUFFIX)
    if found is None:
        return Standing(MIN_TIMESTAMP, False, None)
    intent = None
    if found[1][:1] == INTENT:
        intent = decode_intent(found[1])
        found = _first_from(reader, key, version_suffix(Timestamp(MAX_TIMESTAMP - 1)))
        if found is None:
            return Standing(MIN_TIMESTAMP, False, intent)
    return Standing(*_head(*found), intent)


def standing_of(reader: Reader, keys: Sequence[bytes]) -> list[Standing]:
    """Do what `standing` does for keys (ascending): by one scan, where little else lies between them."""
    if len(keys) == 1:
        return [standing(reader, keys[0])]
    entries: dict[bytes, tuple[bytes, bytes]] = {}
    found: dict[bytes, bytes] = {}
    rows = taken = 0
    for engine_keys, stored in reader.scan(DELTA, keys[0] + INTENT_SUFFIX, keys[-1] + SUFFIXES_END, chunk_rows=_STANDING_CHUNK_ROWS):
        rows += len(engine_keys)
        taken += sum(map(len, stored))
        if rows > 2 * len(keys) or taken > _STANDING_BYTES_MAX:
            return [standing(reader, key) for key in keys]
        for engine_key, value in zip(engine_keys, stored):
            if engine_key[-SUFFIX_BYTES:] != INTENT_SUFFIX:
                entries.setdefault(engine_key[:-SUFFIX_BYTES], (engine_key, value))
            else:
                found[engine_key[:-SUFFIX_BYTES]] = value
    heads = [_head(*entries[key]) if key in entries else (MIN_TIMESTAMP, False) for key in keys]
    return [Standing(*head, decode_intent(found[key]) if key in found else None) for head, key in zip(heads, keys)]


def _head(engine_key: bytes, stored: bytes) -> tuple[Timestamp, bool]:
    """Give the timestamp of a version, and whether it is a value."""
    flag = stored[:1]
    if flag != VALUE and flag != TOMBSTONE:
        raise not_a_version(engine_key, stored)
    return suffix_ts(engine_key[-SUFFIX_BYTES:]), flag == VALUE


def get_intent(reader: Reader, key: bytes) -> Intent | None:
    """Read the intent of a key."""
    stored = reader.get(DELTA, key + INTENT_SUFFIX)
    if stored is None:
        return None
    if stored[:1] != INTENT:
        raise CorruptionError(f"no intent in the place of one, at key {key.hex()}")
    return decode_intent(stored)


def stored_within(reader: Reader, key: bytes) -> bytes | None:
    """Give the stored key that goes on as `key`, if there is one: a range that began at `key` would part it from its versions."""
    for length in range(1, len(key)):
        if _first_from(reader, key[:length], INTENT_SUFFIX) is not None:
            return key[:length]
    return None


# ---- Writes ----


def put(batch: WriteBatch, key: bytes, ts: Timestamp, value: bytes | None) -> None:
    """Write a version; None deletes the key from `ts` on."""
    assert 0 <= ts < MAX_TIMESTAMP, ts
    batch.put(DELTA, key + (MAX_TIMESTAMP - ts).to_bytes(8, "big"), TOMBSTONE if value is None else VALUE + value)


def put_intent(batch: WriteBatch, key: bytes, intent: Intent) -> None:
    """Write the intent of a key, in place of the one that is there."""
    batch.put(DELTA, key + INTENT_SUFFIX, INTENT + encode_intent(intent))


def remove_intent(batch: WriteBatch, key: bytes) -> None:
    """Remove the intent of a key."""
    batch.delete(DELTA, key + INTENT_SUFFIX)


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
    batch.delete_range(DELTA, span.start, span.end)


# ---- Scans ----


def _engine_bound(reader: Reader, bound: bytes) -> bytes:
    """Give the engine key that divides the versions of keys below a span's bound from the others.

    That is the bound itself, but where it is `key_after` of a stored key: all versions of that key lie above such a bound.
    """
    if bound[-1:] == b"\x00":
        key = bound[:-1]
        if _first_from(reader, key, INTENT_SUFFIX) is not None:
            return key + SUFFIXES_END
    return bound


def entries(reader: Reader, span: Span, *, reverse: bool, chunk_rows: int) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Read all entries of a span's keys, as they are stored, in chunks."""
    start, end = _engine_bound(reader, span.start), _engine_bound(reader, span.end)
    return reader.scan(DELTA, start, end, reverse=reverse, chunk_rows=chunk_rows)


def scan(
    reader: Reader, span: Span, view: View, *, reverse: bool = False, chunk_rows: int = SCAN_CHUNK_ROWS
) -> Iterator[tuple[list[bytes], list[bytes]]]:
    """Read the user keys and values of a span that are live, in key order or from the highest down, in chunks.

    A chunk has at most `chunk_rows` rows more than the one row that may be left over from the chunk before, and at least one.
    Raises IntentsFoundError at a chunk with intents of others in the way, with all of that chunk; earlier chunks stand.
    """
    visible = VisibleRows(view, reverse=reverse)
    for engine_keys, stored in entries(reader, span, reverse=reverse, chunk_rows=chunk_rows):
        keys, values = visible.take(engine_keys, stored)
        if keys:
            yield keys, values
    keys, values = visible.rest()
    if keys:
        yield keys, values


# ---- Checks over spans ----


def changed(reader: Reader, span: Span, low: Timestamp, view: View) -> tuple[bytes, Timestamp] | None:
    """Find a version, value or tombstone, with low < ts ≤ `view.ts` in a span, also under an intent.  None if there is none.

    Raises IntentsFoundError at intents at or below `view.ts`, also below `low`, that are neither the reader's own nor passable there.
    """
    return next((found for found in changes(reader, span, low, view) if found is not None), None)


def changes(reader: Reader, span: Span, low: Timestamp, view: View) -> Iterator[tuple[bytes, Timestamp] | None]:
    """Do what `changed` does in steps of a chunk each: None is given after each in which there is nothing; the first find is the last."""
    high, own, passable, _ = view
    if low >= high:
        return
    # A suffix below the intent's does not exist, and the intent's own is not a version's.
    newest_suffix, oldest_suffix = version_suffix(min(high, Timestamp(MAX_TIMESTAMP - 1))), version_suffix(low)
    if span.end == span.start + b"\x00":
        found = _first_from(reader, span.start, INTENT_SUFFIX)
        intent = None if found is None or found[1][:1] != INTENT else decode_intent(found[1])
        if found is not None and found[0][-SUFFIX_BYTES:] < newest_suffix:
            # An intent, or a version above `high`: what lies under it decides.
            found = _first_from(reader, span.start, newest_suffix)
        if found is not None and found[0][-SUFFIX_BYTES:] < oldest_suffix:
            yield span.start, suffix_ts(found[0][-SUFFIX_BYTES:])
        elif intent is not None and intent.attempt_id != own and is_in_the_way(intent, high, passable):
            raise IntentsFoundError([(span.start, intent)])
        return
    for engine_keys, stored in entries(reader, span, reverse=False, chunk_rows=SCAN_CHUNK_ROWS):
        # Nearly always all is old: one pass in C.
        if min(map(suffix_of, engine_keys)) < oldest_suffix:
            in_the_way: list[tuple[bytes, Intent]] = []
            for engine_key, suffix, entry in zip(engine_keys, map(suffix_of, engine_keys), stored):
                if newest_suffix <= suffix < oldest_suffix:
                    yield engine_key[:-SUFFIX_BYTES], suffix_ts(suffix)
                    return
                if suffix == INTENT_SUFFIX and (own is None or own not in entry[:INTENT_HEAD_BYTES]):
                    intent = decode_intent(entry)
                    if intent.attempt_id != own and is_in_the_way(intent, high, passable):
                        in_the_way.append((engine_key[:-SUFFIX_BYTES], intent))
            if in_the_way:
                raise IntentsFoundError(in_the_way)
        yield None


def intents(reader: Reader, span: Span, *, at_or_below: Timestamp, limit: int) -> list[tuple[bytes, Intent]]:
    """List the intents of a span that stand at or below a timestamp, in key order, up to `limit`."""
    found: list[tuple[bytes, Intent]] = []
    if span.end == span.start + b"\x00":
        intent = get_intent(reader, span.start)
        return [(span.start, intent)] if intent is not None and intent.ts <= at_or_below and limit > 0 else []
    for engine_keys, stored in entries(reader, span, reverse=False, chunk_rows=SCAN_CHUNK_ROWS):
        for index, suffix in enumerate(map(suffix_of, engine_keys)):
            if suffix == INTENT_SUFFIX:
                intent = decode_intent(stored[index])
                if intent.ts <= at_or_below:
                    if len(found) >= limit:
                        return found
                    found.append((engine_keys[index][:-SUFFIX_BYTES], intent))
    return found


def intents_of(reader: Reader, span: Span, attempt_id: bytes, *, rows_max: int) -> tuple[list[tuple[bytes, Intent]], bytes | None]:
    """List the intents of an attempt in a span, as far as `rows_max` entries go; give the key to go on from, None at the end."""
    found: list[tuple[bytes, Intent]] = []
    if span.end == span.start + b"\x00":
        intent = get_intent(reader, span.start)
        return ([(span.start, intent)] if intent is not None and intent.attempt_id == attempt_id else []), None
    for engine_keys, stored in entries(reader, span, reverse=False, chunk_rows=rows_max):
        for engine_key, entry in zip(engine_keys, stored):
            if entry[:1] == INTENT and attempt_id in entry[:INTENT_HEAD_BYTES]:
                intent = decode_intent(entry)
                if intent.attempt_id == attempt_id:
                    found.append((engine_key[:-SUFFIX_BYTES], intent))
        return found, engine_keys[-1][:-SUFFIX_BYTES] + b"\x00" if len(engine_keys) >= rows_max else None
    return found, None


# ---- Garbage ----


def collect_garbage(
    reader: Reader,
    batch: WriteBatch,
    span: Span,
    threshold: Timestamp,
    *,
    versions_max: int,
    hides_older: Callable[[bytes], bool] | None = None,
) -> tuple[int, int, bytes | None]:
    """Remove the versions of a span that no read at or above `threshold` sees; intents stay.

    Of each key the newest version at or below the threshold stays, unless it is a tombstone; all older ones go.  hides_older: says of a
    key whether blocks may have older versions of it, which its tombstone must go on to hide.
    Gives how many were removed, their bytes, and, when `versions_max` ended it early, the user key to go on from once the batch is written.
    """
    assert versions_max > 0, versions_max
    highest_old = version_suffix(threshold)
    removed = removed_bytes = 0
    key = NO_USER_KEY
    doomed: list[tuple[bytes, int]] = []
    has_old = False
    for engine_keys, stored in entries(reader, span, reverse=False, chunk_rows=SCAN_CHUNK_ROWS):
        for engine_key, entry in zip(engine_keys, stored):
            if engine_key[:-SUFFIX_BYTES] != key:
                count, size = _delete_oldest(batch, doomed, versions_max - removed)
                removed, removed_bytes = removed + count, removed_bytes + size
                if removed == versions_max:
                    return removed, removed_bytes, key
                key, doomed, has_old = engine_key[:-SUFFIX_BYTES], [], False
            if entry[:1] != INTENT and engine_key[-SUFFIX_BYTES:] >= highest_old:
                if has_old or (entry[:1] == TOMBSTONE and not (hides_older is not None and hides_older(key))):
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
        batch.delete(DELTA, engine_key)
    return len(chosen), sum([len(engine_key) + size for engine_key, size in chosen])
