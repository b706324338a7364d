"""Frames: how a byte stream is cut into messages, and the magic that it starts with.

    DSDBSQL\\x01 │ length │ message │ length │ message …          client to node
                  length │ message │ length │ message …          node to client
                  u32 LE   msgpack

Invariants:
- No more than one frame and one chunk of what was fed is held, and a frame is refused by its length before its bytes are kept.
- Frames given out are never written to again: messages may refer to their bytes.
"""

from dsdb.protocol.errors import ProtocolError

SQL_MAGIC_PREFIX = b"DSDBSQL"
"""What tells a client of any version; the byte after it is the version."""
SQL_MAGIC = SQL_MAGIC_PREFIX + b"\x01"
MAGIC_BYTES = 8

LENGTH_BYTES = 4
REQUEST_BYTES_MAX = 64 << 20
"""Of a client's frame: a statement's text with its parameters."""
RESPONSE_BYTES_MAX = 256 << 20
"""Of a node's frame: an inline result, or a record batch whose single rows are large."""


def frame(message: bytes) -> bytes:
    """Put the length before an encoded message."""
    return len(message).to_bytes(LENGTH_BYTES, "little") + message


class FrameReader:
    """Cuts a byte stream into frames."""

    __slots__ = ("_frame_bytes_max", "_partial", "_total")

    def __init__(self, *, frame_bytes_max: int) -> None:
        self._frame_bytes_max = frame_bytes_max
        # The beginning of a frame whose end has not come yet, with its length prefix.
        self._partial = bytearray()
        # Bytes of that frame with its prefix; 0 while the prefix itself is incomplete.
        self._total = 0

    @property
    def is_inside_frame(self) -> bool:
        """Say whether the stream would end in the middle of a frame."""
        return bool(self._partial)

    def receive(self, data: bytes) -> list[memoryview]:
        """Take bytes as they came, give the frames that they complete.  Raises ProtocolError for a frame that is too large."""
        frames: list[memoryview] = []
        view = memoryview(data)
        at = self._continue_partial(view, frames) if self._partial else 0
        size = len(data)
        while size - at >= LENGTH_BYTES:
            end = at + LENGTH_BYTES + self._checked_length(data[at : at + LENGTH_BYTES])
            if end > size:
                self._total = end - at
                break
            frames.append(view[at + LENGTH_BYTES : end])
            at = end
        if at < size:
            self._partial = bytearray(view[at:])
        return frames

    def _continue_partial(self, view: memoryview, frames: list[memoryview]) -> int:
        """Feed the begun frame first; give where the next one begins."""
        partial, at = self._partial, 0
        if not self._total:
            at = min(LENGTH_BYTES - len(partial), len(view))
            partial += view[:at]
            if len(partial) < LENGTH_BYTES:
                return at
            self._total = LENGTH_BYTES + self._checked_length(bytes(partial))
        taken = min(self._total - len(partial), len(view) - at)
        partial += view[at : at + taken]
        if len(partial) == self._total:
            frames.append(memoryview(partial)[LENGTH_BYTES:])
            # A new one, for the message may refer to the bytes of the old.
            self._partial, self._total = bytearray(), 0
        return at + taken

    def _checked_length(self, prefix: bytes) -> int:
        length = int.from_bytes(prefix, "little")
        if length > self._frame_bytes_max:
            raise ProtocolError(f"a frame of {length} bytes is announced, at most {self._frame_bytes_max} are allowed")
        return length
