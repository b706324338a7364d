"""One connection's TLS, without its socket: bytes of the one go in, bytes of the other come out.

    received ─▶ feed ─▶ read ─▶ what the peer said
    data ─▶ write ─▶ outgoing ─▶ to be sent, in this order

Invariants:
- What `outgoing` gives is given once; everything of it must be sent, and before anything later.
- A peer that hangs up without saying so by TLS is at its end: frames have lengths, so what was cut is noticed above.
"""

import ssl

from dsdb.tls.errors import HandshakeError
from dsdb.tls.identity import Identity, read_identity
from dsdb.tls.sentences import describe

RECORD_BYTES = 16 * 1024
"""The most that one record of TLS holds, and one read of it gives."""


class TlsChannel:
    """TLS between two buffers."""

    def __init__(self, context: ssl.SSLContext, *, is_server: bool, host: str | None = None) -> None:
        """host: by whose name the node was asked for, if this is the side that connects."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=is_server, server_hostname=host)
        self._host = host

    def feed(self, received: bytes) -> None:
        """Take bytes of the peer's; none means that it has hung up."""
        if received:
            self._incoming.write(received)
        else:
            self._incoming.write_eof()

    def outgoing(self) -> bytes:
        """Give what is to be sent."""
        return self._outgoing.read()

    def shake_hands(self) -> bool:
        """Go on with the handshake; give whether it is done.  Raises HandshakeError; then `outgoing` may still say why to the peer."""
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as error:
            raise HandshakeError(describe(error, host=self._host)) from None
        return True

    def identity(self) -> Identity:
        """Say who the peer is."""
        return read_identity(self._tls.getpeercert())

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt: `outgoing` has it.  Raises HandshakeError."""
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise HandshakeError(describe(error)) from None

    @property
    def is_drained(self) -> bool:
        """Say whether a read is sure to find nothing."""
        return not self._incoming.pending and not self._tls.pending()

    def read(self, bytes_max: int) -> bytes | None:
        """Give what the peer said: b"" at its end, None if more must be fed first.

        Raises HandshakeError: with TLS 1.3 the one that connects hears only now that its certificate is refused.
        """
        parts: list[bytes] = []
        size = 0
        while size < bytes_max:
            try:
                part = self._tls.read(min(bytes_max - size, RECORD_BYTES))
            except ssl.SSLWantReadError:
                break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                # What came before the end is given first; the next read finds the end again.
                return b"".join(parts)
            except ssl.SSLError as error:
                raise HandshakeError(describe(error)) from None
            if not part:
                return b"".join(parts)
            if not parts and self.is_drained:
                return part
            parts.append(part)
            size += len(part)
            if self.is_drained:
                break
        return b"".join(parts) or None

    def close(self) -> None:
        """Say that this is the end: `outgoing` has it."""
        try:
            self._tls.unwrap()
        except (ssl.SSLError, ValueError):
            pass  # it waits for the peer's own last word, which nobody needs; or the handshake has not been done
