"""What stands in the family DELTA: versions and intents, and how they are stored (`mvcc` has the drawing).

Invariants:
- Entries of a user key lie together, the newest version first, its intent before all of them.
"""

from collections.abc import Mapping
from operator import itemgetter
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from dsdb.storage.engine.port import Family
from dsdb.storage.errors import CorruptionError, StorageError
from dsdb.storage.timestamp import MAX_TIMESTAMP, MIN_TIMESTAMP, Timestamp

DELTA = Family.DELTA
INTENT_SUFFIX = bytes(8)
SUFFIX_BYTES = 8
SUFFIXES_END = b"\xff" * 8 + b"\x00"
"""What follows a user key in the first engine key behind all of its versions."""
NEVER = Timestamp(-1)
"""Below every timestamp."""
NO_USER_KEY = b"\xff" * 16
"""Above `keys.KEY_MAX`, so never a stored key; stands for "none so far" where a comparison must stay cheap."""

INTENT_HEAD_BYTES = 64
"""Of a stored intent: the attempt's id lies in them."""

VALUE, TOMBSTONE, INTENT = b"\x00", b"\x01", b"\x02"
VALUE_FLAG, TOMBSTONE_FLAG, INTENT_FLAG, EMPTY_FLAG = 0, 1, 2, -1

NONE_PASSABLE: Mapping[bytes, Timestamp] = MappingProxyType({})
"""Attempt id → readers at or below this timestamp pass by its intents, as it will never commit there: here of no attempt."""
NONE_COMMITTED: Mapping[bytes, Timestamp] = MappingProxyType({})
"""Attempt id → when it was committed, as its record says: here of no attempt."""

user_key_of = itemgetter(slice(None, -SUFFIX_BYTES))
suffix_of = itemgetter(slice(-SUFFIX_BYTES, None))
payload_of = itemgetter(slice(1, None))


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


class View(NamedTuple):
    """Who reads, and what is known of others' intents."""

    ts: Timestamp
    own: bytes | None = None
    """The attempt in whose name is read: its intents are seen."""
    passable: Mapping[bytes, Timestamp] = NONE_PASSABLE
    committed: Mapping[bytes, Timestamp] = NONE_COMMITTED


class Standing(NamedTuple):
    """What a writer must know of a key."""

    ts: Timestamp
    """Of its newest version; MIN_TIMESTAMP: it has none."""
    is_there: bool
    """Its newest version is a value."""
    intent: Intent | None


class IntentsFoundError(StorageError):
    """A read met intents of others at or below its timestamp: push or resolve them, then read again."""

    def __init__(self, intents: list[tuple[bytes, Intent]]) -> None:
        super().__init__(f"{len(intents)} intents in the way, the first at key {intents[0][0].hex()}")
        self.intents = intents
        """User keys and intents, in the order of the scan; not always all that the span holds."""


encode_intent = msgspec.msgpack.Encoder().encode
_intent_decoder = msgspec.msgpack.Decoder(Intent)


def decode_intent(stored: bytes) -> Intent:
    """Read a stored intent.  Raises CorruptionError."""
    try:
        return _intent_decoder.decode(memoryview(stored)[1:])
    except msgspec.DecodeError as error:
        raise CorruptionError(f"not an intent: {stored.hex()}: {error}") from None


def version_suffix(ts: Timestamp) -> bytes:
    """Give what stands behind the user key of a version."""
    return (MAX_TIMESTAMP - ts).to_bytes(8, "big")


def suffix_ts(suffix: bytes) -> Timestamp:
    """Give the timestamp of a version by its suffix."""
    return Timestamp(MAX_TIMESTAMP - int.from_bytes(suffix, "big"))


def decode_version(engine_key: bytes, stored: bytes) -> Version:
    """Read a stored version.  Raises CorruptionError."""
    flag = stored[:1]
    if flag == VALUE:
        return Version(suffix_ts(engine_key[-SUFFIX_BYTES:]), stored[1:])
    if flag == TOMBSTONE:
        return Version(suffix_ts(engine_key[-SUFFIX_BYTES:]), None)
    raise not_a_version(engine_key, stored)


def not_a_version(engine_key: bytes, stored: bytes) -> CorruptionError:
    """Make the error about an entry that is neither version nor intent."""
    return CorruptionError(f"no version under key {engine_key.hex()}: it begins with {stored[:1].hex() or 'nothing'}")


def is_visible(intent: Intent, ts: Timestamp, committed: Mapping[bytes, Timestamp]) -> bool | None:
    """Say whether a read at `ts` sees what an intent will be, or passes it by; None: nothing is known of its attempt.

    No version is newer than an intent of a committed attempt: whoever writes the key resolves it first.
    """
    commit_ts = committed.get(intent.attempt_id)
    return None if commit_ts is None else intent.ts <= commit_ts <= ts and not intent.is_nothing


def is_in_the_way(intent: Intent, ts: Timestamp, passable: Mapping[bytes, Timestamp]) -> bool:
    """Say whether a read at `ts` may neither see nor pass by an intent of somebody else, who is not known to be committed."""
    return intent.ts <= ts and passable.get(intent.attempt_id, NEVER) < ts
