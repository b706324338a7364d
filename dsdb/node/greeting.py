"""Who connects, and what for: the first bytes of a connection on the node's port.

    8 bytes ─┬─ TLS ─▶ handshake ─▶ 8 bytes ─┬─ node RPC, by a node's certificate ──▶ rpc
             │                               └─ a session, by a user's ─────────────▶ sessions
             └─ plain (a node without certificates) ─▶ rpc, sessions

Invariants:
- A node with certificates serves nobody without TLS, no session but that of the user whom the certificate names, and no call between
  nodes but a node's.
- Who is refused is told why in its own protocol, and the log has it.
- At most OPENINGS_MAX connections are between their accept and the end of their first bytes; one more ends the oldest of them, so that
  those who say nothing never keep others out.
"""

import logging

import trio

from dsdb.env import NodeStream
from dsdb.env.network import TcpStream
from dsdb.env.tls import UntrustedError, accept_tls, linger
from dsdb.protocol.frames import SQL_MAGIC_PREFIX
from dsdb.rpc import RpcServer
from dsdb.rpc.frames import RPC_MAGIC
from dsdb.session.server import SessionServer
from dsdb.sql.errors import InvalidAuthorizationError
from dsdb.tls.credentials import NodeCredentials
from dsdb.tls.identity import Identity

log = logging.getLogger("dsdb.node")

OPENING_S = 10.0
"""How long a connection may take to say what it is for, its handshake included."""
OPENINGS_MAX = 256
"""Connections that have not said it yet.  A handshake takes some milliseconds: only those who stall are ever so many."""
_MAGIC_BYTES = len(RPC_MAGIC)
_TLS_HANDSHAKE = 0x16
_PLAIN_TO_TLS = "this node speaks TLS only"
_TLS_TO_PLAIN = "this node has no certificates and does not speak TLS\n"
_STRANGER = "this port speaks dsdb's own protocols: use `dsdb sql` or a driver; metrics and health are on the HTTP port\n"


class Greeter:
    """Hands each connection on to whom it is for."""

    def __init__(self, rpc: RpcServer, sessions: SessionServer, credentials: NodeCredentials | None) -> None:
        self._rpc = rpc
        self._sessions = sessions
        self._credentials = credentials
        # Those who have not said what they are for, the oldest first.
        self._openings: dict[trio.CancelScope, None] = {}
        self.refused = 0
        """Connections refused for their certificates, or for the want of them."""

    async def greet(self, stream: NodeStream) -> None:
        """Serve a connection to its end."""
        raw = stream
        try:
            with trio.move_on_after(OPENING_S) as scope:
                data, stream = await self._open(raw, scope)
            if scope.cancelled_caught:
                return
            await self._hand_on(stream, data)
        except UntrustedError as error:
            self._log_refusal(raw, str(error))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # it went away before it said anything
        finally:
            with trio.CancelScope(shield=True):
                await stream.aclose()

    async def _open(self, stream: NodeStream, scope: trio.CancelScope) -> tuple[bytes, NodeStream]:
        """Give the first bytes, and the stream that they came on."""
        if len(self._openings) >= OPENINGS_MAX:
            oldest = next(iter(self._openings))
            del self._openings[oldest]
            oldest.cancel()
        self._openings[scope] = None
        try:
            data = await _read_magic(stream)
            if self._credentials is not None and data[:1] == bytes([_TLS_HANDSHAKE]):
                assert isinstance(stream, TcpStream), stream
                stream = await accept_tls(stream, self._credentials, data)
                data = await _read_magic(stream)
            return data, stream
        finally:
            self._openings.pop(scope, None)

    async def _hand_on(self, stream: NodeStream, data: bytes) -> None:
        who = stream.identity
        if data == RPC_MAGIC:
            refusal = self._refusal_of_node(who)
            if refusal is None:
                await self._rpc.serve(stream)
            else:
                self._log_refusal(stream, refusal)
                await self._rpc.refuse(stream, refusal)
                await linger(stream)
        elif data.startswith(SQL_MAGIC_PREFIX):
            refused = self._refusal_of_client(who)
            if refused is None:
                await self._sessions.serve(stream, data, user=None if who is None else who.user)
            else:
                self._log_refusal(stream, refused.message)
                await self._sessions.refuse(stream, refused)
        else:
            await self._send_away(stream, data)

    def _refusal_of_node(self, who: Identity | None) -> str | None:
        if self._credentials is None or (who is not None and who.is_node):
            return None
        if who is None:
            return f"{_PLAIN_TO_TLS}: start yours with --certs-dir"
        return f"calls between nodes need a node's certificate, and this one is of {who}"

    def _refusal_of_client(self, who: Identity | None) -> InvalidAuthorizationError | None:
        if self._credentials is None or (who is not None and who.user is not None):
            return None
        if who is None:
            return InvalidAuthorizationError(
                _PLAIN_TO_TLS,
                hint="Name a directory of certificates (--certs-dir, DSDB_CERTS_DIR), or sslrootcert, sslcert and sslkey in the URL.",
            )
        return InvalidAuthorizationError(
            f"a session needs a user's certificate, and this one is of {who}", hint="`dsdb cert create-client USER` makes one."
        )

    async def _send_away(self, stream: NodeStream, data: bytes) -> None:
        text = _STRANGER
        if data[:1] == bytes([_TLS_HANDSHAKE]):
            self._log_refusal(stream, "it speaks TLS, and this node was started without certificates")
            text = _TLS_TO_PLAIN
        elif data[:4] in (b"GET ", b"POST", b"HEAD", b"PUT "):
            text = f"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n{text}"
        if data:
            await stream.send_all(text.encode())
            await linger(stream)

    def _log_refusal(self, stream: NodeStream, reason: str) -> None:
        self.refused += 1
        log.warning("a connection from %s is refused: %s", _peer_of(stream), reason)


async def _read_magic(stream: NodeStream) -> bytes:
    data = b""
    while len(data) < _MAGIC_BYTES:
        more = await stream.receive_some(_MAGIC_BYTES - len(data))
        if not more:
            break
        data += bytes(more)
    return data


def _peer_of(stream: NodeStream) -> str:
    return str(getattr(stream, "peer", "somebody"))
