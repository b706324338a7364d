"""Transactions at the gateway: reads at one timestamp, buffered writes, and their commit in one range or in many.

`transaction` is what execution sees; `settle` and `janitor` end the transactions of others.
"""

from dsdb.txn.buffer import Overlay
from dsdb.txn.counters import TxnCounters
from dsdb.txn.factory import AttemptIds, TransactionFactory
from dsdb.txn.finish import Finisher
from dsdb.txn.janitor import Janitor
from dsdb.txn.locks import LockKeeper
from dsdb.txn.settle import Settlement
from dsdb.txn.transaction import KvTransaction

__all__ = ["AttemptIds", "Finisher", "Janitor", "KvTransaction", "LockKeeper", "Overlay", "Settlement", "TransactionFactory", "TxnCounters"]
