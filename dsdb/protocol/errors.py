"""What the protocol answers instead of a message."""


class ProtocolError(Exception):
    """The peer's bytes do not fit the protocol.  The connection cannot go on: say so once, and close it."""
