"""The gateway's sessions: a client's connection on one side, the statement executor on the other.

`server` keeps the sessions of a node, `gateway` is one of them, `answer` turns results and errors into messages, `limits` bounds it all.
"""

from dsdb.session.limits import SessionLimits
from dsdb.session.port import StatementPort
from dsdb.session.server import SessionServer, SessionStatistics

__all__ = ["SessionLimits", "SessionServer", "SessionStatistics", "StatementPort"]
