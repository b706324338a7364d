"""A socket with TLS, as far as `Wire` uses a socket; and which certificates a target names.

`ssl`'s own sockets would not do: a Cancel is sent from one thread while another waits for an answer, and OpenSSL must not be entered by
two threads at once.  Here the lock is held while bytes are encrypted, and never while the network is waited for.

Invariants:
- Bytes leave in the order in which they were encrypted: only `sendall` encrypts, and `Wire` sends from one thread at a time.
"""

import socket
import ssl
import threading
from pathlib import Path

from dsdb.driver.errors import InterfaceError
from dsdb.driver.target import Target
from dsdb.tls.channel import TlsChannel
from dsdb.tls.contexts import client_context
from dsdb.tls.errors import CertificateError, HandshakeError
from dsdb.tls.files import KeyPair, client_files

_READ_BYTES = 64 << 10
_READ_BYTES_MORE = 256 << 10
"""Asked of the socket when the read before was filled: a large buffer costs more than the read of a small answer."""


class EncryptedSocket:
    """A connected socket whose handshake is done."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, host: str) -> None:
        """Shake hands.  Raises OSError; the caller closes the socket."""
        self._socket = sock
        self._lock = threading.Lock()
        self._read_bytes = _READ_BYTES
        self._channel = TlsChannel(context, is_server=False, host=host)
        try:
            while not self._channel.shake_hands():
                self._send_outgoing()
                self._channel.feed(sock.recv(_READ_BYTES))
        except HandshakeError as error:
            self._send_outgoing()
            raise ConnectionError(str(error)) from None
        self._send_outgoing()

    def _send_outgoing(self) -> None:
        if data := self._channel.outgoing():
            self._socket.sendall(data)

    def sendall(self, data: bytes) -> None:
        """Send all of it.  Raises OSError."""
        try:
            with self._lock:
                self._channel.write(data)
                encrypted = self._channel.outgoing()
        except HandshakeError as error:
            raise ConnectionError(str(error)) from None
        self._socket.sendall(encrypted)

    def recv(self, bytes_max: int, flags: int = 0) -> bytes:
        """Receive at least one byte, or b"" at the end.  Raises OSError.

        With flags, which are for peeking: encrypted bytes, that say no more than that there are some.
        """
        if flags:
            return self._socket.recv(bytes_max, flags)
        try:
            while True:
                with self._lock:
                    data = None if self._channel.is_drained else self._channel.read(bytes_max)
                if data is not None:
                    return data
                received = self._socket.recv(self._read_bytes)
                self._read_bytes = _READ_BYTES_MORE if len(received) == self._read_bytes else _READ_BYTES
                with self._lock:
                    self._channel.feed(received)
                    data = self._channel.read(bytes_max)
                if data is not None:
                    return data
        except HandshakeError as error:
            raise ConnectionError(str(error)) from None

    def settimeout(self, seconds: float | None) -> None:
        """Let waits end with TimeoutError after so long."""
        self._socket.settimeout(seconds)

    def close(self) -> None:
        """Close it at once."""
        self._socket.close()


def context_of(target: Target) -> ssl.SSLContext | None:
    """Give what a target's nodes must show, None if it wants no TLS.  Raises InterfaceError with a sentence.

    The files are read for each connection: those that were replaced are used at the next one.
    """
    if target.sslmode == "disable":
        return None
    try:
        return client_context(_files_of(target), checks_host=target.sslmode == "verify-full")
    except CertificateError as error:
        raise InterfaceError(str(error)) from None


def _files_of(target: Target) -> KeyPair:
    if target.certs_dir is not None:
        found = client_files(Path(target.certs_dir), target.user)
    else:
        found = KeyPair(Path(target.sslrootcert), Path(target.sslcert), Path(target.sslkey))
    return KeyPair(
        Path(target.sslrootcert) if target.sslrootcert else found.authority,
        Path(target.sslcert) if target.sslcert else found.certificate,
        Path(target.sslkey) if target.sslkey else found.key,
    )
