"""The oracle: one line of timestamps for the whole cluster, handed out by the leaseholder of the system range.

`issuer` is that leaseholder's part, `client` every node's.
"""

from dsdb.oracle.client import ISSUE, IssueReply, IssueRequest, OracleClient
from dsdb.oracle.issuer import Issuer, SystemRange

__all__ = ["ISSUE", "IssueReply", "IssueRequest", "Issuer", "OracleClient", "SystemRange"]
