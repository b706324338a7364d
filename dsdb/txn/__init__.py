"""Transactions at the gateway: reads at one timestamp, buffered writes, and their commit (`transaction`)."""

from dsdb.txn.transaction import AttemptIds, KvTransaction, TransactionFactory

__all__ = ["AttemptIds", "KvTransaction", "TransactionFactory"]
