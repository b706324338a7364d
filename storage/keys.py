"""The whole keyspace, in one drawing.

    ┌ b""           KEY_MIN
    │ 01 …          (nothing: what is local to a replica lives in families of its own, not in the keyspace)
    │ 02 <end key>  meta: range descriptors by end key      ┐ range 1, the *system range*: its replicas are where a
    │ 03 <tag> …    system: nodes, catalogue, oracle, jobs  ┘ router starts, and it is never split
    │ 10 <database id> <table id> <index id> <columns …>    tables: one key a row and index entry
    └ ff ff         KEY_MAX

Invariants:
- No stored key is a prefix of another one: ids and text are self-delimiting, and all keys under a tag have the same shape.
  So the versions of a key, which carry a timestamp behind it, stand together (`mvcc`).
- A span is half-open: start ≤ key < end.
- Ids of databases, tables and indexes are never reused.
"""

from typing import NamedTuple

from dsdb.storage.errors import KeyFormatError

KEY_MIN = b""
META_PREFIX = b"\x02"
SYSTEM_PREFIX = b"\x03"
TABLE_PREFIX = b"\x10"
KEY_MAX = b"\xff\xff"
SYSTEM_END = TABLE_PREFIX
"""End of the system range: meta and system lie below, tables from here on."""


class Span(NamedTuple):
    """The keys from `start` up to, not including, `end`."""

    start: bytes
    end: bytes

    def contains(self, key: bytes) -> bool:
        """Say whether a key lies in the span."""
        return self.start <= key < self.end

    def covers(self, other: "Span") -> bool:
        """Say whether every key of `other` lies in the span."""
        return self.start <= other.start and other.end <= self.end

    def overlaps(self, other: "Span") -> bool:
        """Say whether some key lies in both."""
        return self.start < other.end and other.start < self.end

    def clipped(self, other: "Span") -> "Span":
        """Give the part that lies in both; empty (start ≥ end) if there is none."""
        return Span(max(self.start, other.start), min(self.end, other.end))

    @property
    def is_empty(self) -> bool:
        """Say whether no key can lie in it."""
        return self.start >= self.end


EVERYTHING = Span(KEY_MIN, KEY_MAX)


def prefix_end(prefix: bytes) -> bytes:
    """Give the first key behind all that start with `prefix`."""
    stripped = prefix.rstrip(b"\xff")
    if not stripped:
        return KEY_MAX
    return stripped[:-1] + bytes((stripped[-1] + 1,))


def key_after(key: bytes) -> bytes:
    """Give the least byte string above `key` (the end of the span that holds `key` alone)."""
    return key + b"\x00"


def point_span(key: bytes) -> Span:
    """Give the span that holds one key."""
    return Span(key, key + b"\x00")


def prefix_span(prefix: bytes) -> Span:
    """Give the span of all keys that start with `prefix`."""
    return Span(prefix, prefix_end(prefix))


def encode_id(number: int) -> bytes:
    """Encode an id (≥ 0) so that bytes order as numbers do: one byte of length, then big-endian bytes without leading zeros."""
    length = (number.bit_length() + 7) // 8
    return bytes((length,)) + number.to_bytes(length, "big")


def decode_id(key: bytes, offset: int) -> tuple[int, int]:
    """Read an id at `offset`; give it and the offset behind it.  Raises KeyFormatError on a short or malformed key."""
    end = offset + 1 + key[offset] if offset < len(key) else len(key) + 1
    if end > len(key) or key[offset] > 8:
        raise KeyFormatError(f"no id at byte {offset} of key {key.hex()}")
    return int.from_bytes(key[offset + 1 : end], "big"), end


def escape(raw: bytes) -> bytes:
    """Make bytes self-delimiting and keep their order: 00 is written as 00 ff, and 00 01 closes."""
    return raw.replace(b"\x00", b"\x00\xff") + b"\x00\x01"


def meta_key(end_key: bytes) -> bytes:
    """Give the meta key of the range that ends at `end_key`."""
    return META_PREFIX + escape(end_key)


def system_key(tag: str, *parts: int | str) -> bytes:
    """Give a system key, e.g. system_key("node", 3).  All keys of a tag must have parts of the same types.

    A text part is written as `escape` does, an id as `encode_id` does.
    """
    out = bytearray(SYSTEM_PREFIX)
    for part in (tag, *parts):
        if isinstance(part, int):
            out += encode_id(part)
        else:
            out += escape(part.encode())
    return bytes(out)


def table_prefix(database_id: int, table_id: int) -> bytes:
    """Give the prefix of all keys of a table."""
    return TABLE_PREFIX + encode_id(database_id) + encode_id(table_id)


def index_prefix(database_id: int, table_id: int, index_id: int) -> bytes:
    """Give the prefix of all keys of an index; index 1 is the first primary index of a table."""
    return TABLE_PREFIX + encode_id(database_id) + encode_id(table_id) + encode_id(index_id)


def decode_index_prefix(key: bytes) -> tuple[int, int, int, int]:
    """Give (database id, table id, index id, offset of the columns) of a table key.  Raises KeyFormatError on another key."""
    if not key.startswith(TABLE_PREFIX):
        raise KeyFormatError(f"not a table key: {key.hex()}")
    database_id, offset = decode_id(key, 1)
    table_id, offset = decode_id(key, offset)
    index_id, offset = decode_id(key, offset)
    return database_id, table_id, index_id, offset
