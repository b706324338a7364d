"""One socket to one node: messages out, messages in.

Invariants:
- A Wire that failed, or was left in the middle of a message, is closed for good.
- `send` of a whole frame that raises has not delivered it: the node cannot have acted on it.
- Who waits for a node whose power or network has failed, and who sends to it, hears of it within SILENCE_MAX_S and a probe (on Linux).
"""

import socket
import threading
from collections import deque
from typing import TYPE_CHECKING

from dsdb.driver.errors import OperationalError, error_of
from dsdb.driver.target import Target
from dsdb.protocol.errors import ProtocolError
from dsdb.protocol.frames import RESPONSE_BYTES_MAX, SQL_MAGIC, FrameReader
from dsdb.protocol.messages import (
    SESSION_STREAM,
    Bye,
    Complete,
    ErrorMessage,
    Hello,
    Notice,
    Rows,
    ServerMessage,
    Welcome,
    decode_server_message,
    encode_message,
)
from dsdb.protocol.states import ClientSide
from dsdb.sql.transaction_status import TransactionStatus

if TYPE_CHECKING:
    import ssl

    from dsdb.driver.encrypted import EncryptedSocket

_READ_BYTES = 64 << 10
_READ_BYTES_INSIDE_FRAME = 1 << 20
_NOTICES_KEPT_MAX = 100
SILENCE_MAX_S = 15
"""A node whose kernel answers nothing for this long is gone; one that is busy, or stopped, still answers."""
_PROBE_AFTER_S, _PROBE_EVERY_S = 5, 2
# As an int: combining the enum's members takes longer than the system call that they are for.
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)


class WireClosedError(Exception):
    """The connection is gone.  last_word: what the node said before it hung up, if anything."""

    def __init__(self, reason: str, last_word: ErrorMessage | None = None) -> None:
        super().__init__(reason)
        self.last_word = last_word


def expect_signs_of_life(sock: socket.socket) -> None:
    """Have the kernel break the connection when the other end is silent: it may be gone without a word.  Elsewhere than on Linux: later."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_KEEPIDLE"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _PROBE_AFTER_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY_S)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # Probes alone would not do: none are sent while bytes are on their way, which the kernel sends again for a quarter of an hour.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MAX_S * 1000)


class NoticeText(str):
    """What a notice says, with its SQLSTATE and its severity: NOTICE or WARNING."""

    sqlstate: str
    severity: str


def _context_of(target: Target) -> "ssl.SSLContext | None":
    """As `encrypted.context_of`: without TLS nothing of it is loaded."""
    if target.sslmode == "disable":
        return None
    from dsdb.driver.encrypted import context_of  # noqa: PLC0415, RUF100

    return context_of(target)


class Wire:
    """A socket that speaks the protocol."""

    def __init__(self, sock: "socket.socket | EncryptedSocket") -> None:
        self._socket = sock
        self._reader = FrameReader(frame_bytes_max=RESPONSE_BYTES_MAX)
        self._send_lock = threading.Lock()
        self._waiting: deque[ServerMessage] = deque()
        self.side = ClientSide()
        self.notices: list[NoticeText] = []
        self.is_closed = False
        # What the node said last of the session's transaction; if the socket breaks meanwhile, that is what is lost with it.
        self.transaction = TransactionStatus.NONE
        self.last_word: ErrorMessage | None = None
        self.welcome = Welcome(session_id=0, node_id=0, server_version="")

    @classmethod
    def open(cls, host: str, port: int, target: Target) -> "Wire":
        """Connect to a node and open a session.  Raises OperationalError, InterfaceError, or what the node answers."""
        context = _context_of(target)
        try:
            sock = socket.create_connection((host, port), timeout=target.connect_timeout)
        except OSError as error:
            raise OperationalError(f"cannot connect to {host}:{port}: {error}", sqlstate="08001") from None
        wire = cls(sock)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            expect_signs_of_life(sock)
            if context is not None:
                wire._encrypt(sock, context, host)
            wire._shake_hands(target)
            sock.settimeout(None)
        except (OSError, WireClosedError) as error:
            wire.close()
            said = getattr(error, "last_word", None)
            if said is not None:
                raise error_of(said.sqlstate, said.message, detail=said.detail, hint=said.hint) from None
            raise OperationalError(f"cannot open a session at {host}:{port}: {error}", sqlstate="08001") from None
        except BaseException:
            wire.close()
            raise
        return wire

    def _encrypt(self, sock: socket.socket, context: "ssl.SSLContext", host: str) -> None:
        from dsdb.driver.encrypted import EncryptedSocket  # noqa: PLC0415, RUF100

        self._socket = EncryptedSocket(sock, context, host)

    def _shake_hands(self, target: Target) -> None:
        self._socket.sendall(SQL_MAGIC + encode_message(Hello(user=target.user, database=target.database, options=dict(target.options))))
        message = self.receive()
        if not isinstance(message, Welcome):
            raise WireClosedError(f"the node answered {type(message).__name__} to a Hello")
        self.welcome = message

    def send(self, data: bytes) -> None:
        """Send whole frames.  Raises WireClosedError: then the last of them did not arrive."""
        try:
            # A Cancel comes from another thread, and must not get between the bytes of a frame.
            with self._send_lock:
                self._socket.sendall(data)
        except OSError as error:
            self.close()
            raise WireClosedError(f"the connection broke while sending: {error}") from None
        except BaseException:
            # Interrupted midway: nobody knows where in a frame.
            self.close()
            raise

    def receive(self) -> ServerMessage:
        """Give the next message that is no notice.  Raises WireClosedError."""
        try:
            while True:
                while not self._waiting:
                    self._read()
                message = self._waiting.popleft()
                self.side.heard(message)
                if type(message) is Rows or type(message) is Complete:
                    self.transaction = message.transaction
                    return message
                if type(message) is Notice:
                    self._keep_notice(message)
                    continue
                if type(message) is ErrorMessage:
                    if message.stream == SESSION_STREAM:
                        self.close()
                        self.last_word = message
                        raise WireClosedError(message.message, message)
                    self.transaction = message.transaction
                return message
        except ProtocolError as error:
            self.close()
            raise WireClosedError(f"the peer does not speak dsdb's protocol: {error}") from None
        except OSError as error:
            self.close()
            raise WireClosedError(f"the connection broke: {error}") from None
        except WireClosedError:
            raise
        except BaseException:
            # Interrupted (Ctrl-C): bytes may be lost between the socket and the reader.  The node cancels what it was doing for us.
            self.close()
            raise

    def _read(self) -> None:
        data = self._socket.recv(_READ_BYTES_INSIDE_FRAME if self._reader.is_inside_frame else _READ_BYTES)
        if not data:
            self.close()
            raise WireClosedError("the node closed the connection")
        for frame in self._reader.receive(data):
            self._waiting.append(decode_server_message(frame))

    def _keep_notice(self, message: Notice) -> None:
        text = NoticeText(message.message)
        text.sqlstate, text.severity = message.sqlstate, message.severity
        self.notices.append(text)
        if len(self.notices) > _NOTICES_KEPT_MAX:
            del self.notices[0]

    def is_usable(self) -> bool:
        """Say whether the connection still stands, as far as this side can know without asking: between statements only."""
        if self.is_closed or self._waiting:
            return False
        try:
            # Between statements a node says nothing but its last word.
            if self._socket.recv(1, _PEEK):
                self.receive()
        except BlockingIOError:
            return True
        except (OSError, WireClosedError):
            pass
        self.close()
        return False

    def close(self, *, politely: bool = False) -> None:
        """Close the socket; politely: say so first."""
        if self.is_closed:
            return
        self.is_closed = True
        if politely:
            try:
                self._socket.settimeout(1.0)
                self._socket.sendall(encode_message(Bye()))
            except OSError:
                pass
        self._socket.close()
