"""How a call can fail: before it left, after it left, or with the answer of the other side."""


class RpcError(Exception):
    """Base of the errors of a call."""


class NotSent(RpcError):
    """The request never left this node: there is no connection, or the peer is not known.  It had no effect."""


class NotTrusted(NotSent):
    """This node and the other do not trust each other's certificate, or only one of them speaks TLS."""


class ReplyLost(RpcError):
    """The request may have arrived, its reply did not: the connection broke or the deadline passed.  Its effect is not known."""


class CallFailed(RpcError):
    """The other side answered with an error of the method's own type, in `detail`."""

    def __init__(self, detail: object) -> None:
        super().__init__(repr(detail))
        self.detail = detail


class Refused(CallFailed):
    """The other side does not talk to this node: it said why, in `detail`, when it closed the connection."""


class FrameError(RpcError):
    """Bytes that are not a frame of ours, or one above the limit: the connection is closed."""
