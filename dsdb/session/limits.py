"""The limits of a gateway's sessions."""

import msgspec

from dsdb.protocol.frames import REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX


class SessionLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How many, how large, how long."""

    sessions_max: int = 1_000
    """Sessions served at once; one more is refused with 53300."""
    request_bytes_max: int = REQUEST_BYTES_MAX
    """Of one message of a client."""
    input_window_bytes: int = 4 << 20
    """Of tables that a client gives a statement, on their way or waiting to be read."""
    given_bytes_max: int = 256 << 20
    """Of all tables given to one statement that are not streamed, as Arrow in the gateway's memory."""
    waiting_statements_max: int = 1_024
    """Statements sent ahead of their turn; beyond it the gateway reads no more, and a Cancel cannot overtake."""
    read_bytes: int = 64 << 10
    """Asked of the socket at a time."""
    batch_bytes: int = 1 << 20
    """Aimed at for one message of a streamed result; a batch whose rows are larger is one row at the least."""
    inline_bytes_max: int = 4 << 20
    """Of a result of few rows that goes as one message; a larger one is streamed, however few its rows are."""
    response_bytes_max: int = RESPONSE_BYTES_MAX - (1 << 10)
    """Of a record batch in a message to a client, less than a whole frame; so a single row cannot be larger."""
    output_bytes: int = 64 << 10
    """Of answers held back while further statements of a pipeline wait."""
    handshake_seconds: float = 10.0
    """For a new connection to say Hello."""
    send_seconds: float = 60.0
    """For a client to take bytes of a stream that it gave credit for; then it counts as gone."""
    linger_seconds: float = 1.0
    """For a client to hang up after the gateway's last word."""
    shown_statement_chars_max: int = 1_000
    """Of a statement's text, kept for those who ask what runs."""
    sweep_seconds: float = 0.02
    """Between looks at running statements: the resolution of timeouts, and how long a statement runs before its Cancel is listened to."""
