"""The native client protocol without I/O: frames, messages, how values travel, and which message may follow which.

    magic (8 bytes, client to node)  then, both ways:  u32 little-endian length | msgpack message

`frames` cuts bytes into frames, `messages` says what is in them, `datums` how values are spelled, `states` what may come when.
"""

from dsdb.protocol.errors import ProtocolError
from dsdb.protocol.frames import MAGIC_BYTES, SQL_MAGIC, SQL_MAGIC_PREFIX

__all__ = ["MAGIC_BYTES", "SQL_MAGIC", "SQL_MAGIC_PREFIX", "ProtocolError"]
