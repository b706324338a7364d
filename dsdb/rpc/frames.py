"""Frames of node RPC: bytes on a connection, without I/O.

    8 bytes of magic and version, once, from the side that connects; then frames both ways:

    ┌───────────┬──────┬───────────┬───────────┬─────────┐
    │ u32 body  │ u8   │ u16       │ u32       │ payload │   integers little-endian; body counts what follows it
    │ length    │ kind │ method id │ call id   │         │
    └───────────┴──────┴───────────┴───────────┴─────────┘

Invariants:
- A body is at most FRAME_BYTES_MAX; anything longer, or of an unknown kind, is a FrameError and ends the connection.
"""

import enum
import struct
from typing import NamedTuple

from dsdb.rpc.errors import FrameError

RPC_MAGIC = b"DSDBRPC\x01"
"""First bytes of a connection between nodes; the last one is the version of this format."""

FRAME_BYTES_MAX = 64 * 1024 * 1024
"""Largest body: a chunk of a stream is about 1 MiB, a commit at most 8 MiB; the rest is room."""

_HEADER = struct.Struct("<IBHI")
_BODY_OVERHEAD = _HEADER.size - 4


class FrameKind(enum.IntEnum):
    """What a frame is."""

    HELLO = 1
    REQUEST = 2
    REPLY = 3
    ERROR = 4
    ONEWAY = 5
    CANCEL = 6
    CHUNK = 7
    END = 8
    PING = 9  # answered by a PONG at once
    PONG = 10


class Frame(NamedTuple):
    """A parsed frame."""

    kind: int
    method_id: int
    call_id: int
    payload: memoryview | bytes


def encode_frame(kind: FrameKind, method_id: int, call_id: int, payload: bytes) -> bytes:
    """Give the bytes of a frame.  Raises FrameError above the limit."""
    length = _BODY_OVERHEAD + len(payload)
    if length > FRAME_BYTES_MAX:
        raise FrameError(f"a frame of {length} bytes is above the limit of {FRAME_BYTES_MAX}")
    return _HEADER.pack(length, kind, method_id, call_id) + payload


def encode_header(kind: FrameKind, method_id: int, call_id: int, payload_bytes: int) -> bytes:
    """Give the bytes in front of a payload that is sent by itself."""
    return _HEADER.pack(_BODY_OVERHEAD + payload_bytes, kind, method_id, call_id)


class FrameReader:
    """Cuts received bytes into frames; a frame may come in any number of pieces."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> list[Frame]:
        """Take received bytes and give the frames they complete.  Payloads are copies, safe to keep.  Raises FrameError."""
        frames: list[Frame] = []
        if self._buffer:
            self._buffer += data
            source: bytes | bytearray = self._buffer
        else:
            source = data
        offset, size = 0, len(source)
        while size - offset >= _HEADER.size:
            length, kind, method_id, call_id = _HEADER.unpack_from(source, offset)
            if not _BODY_OVERHEAD <= length <= FRAME_BYTES_MAX or not FrameKind.HELLO <= kind <= FrameKind.PONG:
                raise FrameError(f"not a frame: length {length}, kind {kind}")
            end = offset + 4 + length
            if end > size:
                break
            payload = bytes(memoryview(source)[offset + _HEADER.size : end])
            offset = end
            frames.append(Frame(kind, method_id, call_id, payload))
        if source is self._buffer:
            del self._buffer[:offset]
        else:
            self._buffer += memoryview(source)[offset:]
        return frames
