"""A node's own certificate, read again when its files change: an expiring one is replaced without a restart.

Invariants:
- What is used has passed a handshake with itself: the key fits, the authority has signed it, it is a node's, and it is valid now.
- Files that do not pass leave what was used before as it is, are logged once, and are looked at again when they change.

Connections that stand are not asked again: they live on with the certificate that opened them.
"""

import logging
import ssl
import time
from pathlib import Path
from typing import NamedTuple

from dsdb.tls.channel import TlsChannel
from dsdb.tls.contexts import client_context, http_context, server_context
from dsdb.tls.errors import CertificateError, HandshakeError
from dsdb.tls.files import node_files
from dsdb.tls.identity import Identity

log = logging.getLogger("dsdb.tls")

EXPIRES_SOON_S = 14 * 24 * 3600
"""A certificate that ends sooner than this is warned of when it is read."""
_HANDSHAKE_ROUNDS_MAX = 6


class _Contexts(NamedTuple):
    server: ssl.SSLContext
    client: ssl.SSLContext
    http: ssl.SSLContext
    identity: Identity


class NodeCredentials:
    """What a node shows, and whom it believes."""

    def __init__(self, directory: Path) -> None:
        """Read a directory of certificates.  Raises CertificateError."""
        self._files = node_files(directory)
        self._signature = self._look()
        self._contexts = self._read()

    @property
    def expires(self) -> float:
        """Give when the node's certificate does, in seconds since the epoch."""
        return self._contexts.identity.expires

    def server(self) -> ssl.SSLContext:
        """Give what the next connection to this node is accepted by."""
        self.refresh()
        return self._contexts.server

    def client(self) -> ssl.SSLContext:
        """Give what the next connection to another node is made by."""
        self.refresh()
        return self._contexts.client

    def http(self) -> ssl.SSLContext:
        """Give what the next connection to the HTTP port is accepted by."""
        self.refresh()
        return self._contexts.http

    def refresh(self) -> None:
        """Read the files again if they have changed."""
        signature = self._look()
        if signature == self._signature:
            return
        self._signature = signature
        try:
            self._contexts = self._read()
        except CertificateError as error:
            log.error("the changed certificates are not used, those from before are: %s", error)
        else:
            log.info("the certificates were read again")

    def check_host(self, host: str) -> None:
        """Raise CertificateError if the node's certificate does not name a host."""
        try:
            _meet(self._contexts.server, self._contexts.client, host)
        except HandshakeError:
            raise CertificateError(
                f"the certificate {self._files.certificate} does not name {host}, by which others reach this node: "
                f"make one with `dsdb cert create-node {host} …`, or say --advertise HOST"
            ) from None

    def _look(self) -> tuple[tuple[int, int, int], ...]:
        found = []
        for path in self._files:
            try:
                status = path.stat()
            except OSError:
                found.append((0, 0, 0))
            else:
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return tuple(found)

    def _read(self) -> _Contexts:
        server, client = server_context(self._files), client_context(self._files)
        anybody = client_context(self._files, checks_host=False)
        try:
            identity = _meet(server, anybody, None)
        except HandshakeError as error:
            said = str(error).replace("the other side's certificate", "it")
            raise CertificateError(f"the certificate {self._files.certificate} cannot be used: {said}") from None
        if not identity.is_node:
            path = self._files.certificate
            raise CertificateError(f"the certificate {path} is of {identity}: a node needs one from `dsdb cert create-node`")
        if identity.expires - time.time() < EXPIRES_SOON_S:
            log.warning("the certificate %s expires at %s UTC", self._files.certificate, time.asctime(time.gmtime(identity.expires)))
        return _Contexts(server, client, http_context(self._files), identity)


def _meet(server: ssl.SSLContext, client: ssl.SSLContext, host: str | None) -> Identity:
    """Let a node connect to itself in memory; give whom it met.  Raises HandshakeError."""
    theirs = TlsChannel(server, is_server=True)
    ours = TlsChannel(client, is_server=False, host=host)
    is_done = [False, False]
    for _ in range(_HANDSHAKE_ROUNDS_MAX):
        is_done[0] = is_done[0] or ours.shake_hands()
        theirs.feed(ours.outgoing())
        is_done[1] = is_done[1] or theirs.shake_hands()
        if all(is_done):
            return ours.identity()
        ours.feed(theirs.outgoing())
    raise HandshakeError("the handshake does not end")
