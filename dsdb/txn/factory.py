"""Where transactions of a node begin."""

from dsdb.env.disk import Offload
from dsdb.kv.ids import AttemptId, NodeId
from dsdb.oracle import OracleClient
from dsdb.ranges import Router
from dsdb.storage.timestamp import Timestamp
from dsdb.txn.counters import TxnCounters
from dsdb.txn.finish import Finisher
from dsdb.txn.limits import TxnLimits
from dsdb.txn.locks import LockKeeper
from dsdb.txn.sender import Sender
from dsdb.txn.transaction import KvTransaction


class AttemptIds:
    """Makes attempt ids that no other start of any node makes: node id, start (milliseconds), counter."""

    def __init__(self, node_id: NodeId, started_ms: int) -> None:
        self._prefix = node_id.to_bytes(3, "big") + started_ms.to_bytes(7, "big")
        self._counter = 0

    def make(self) -> AttemptId:
        """Give a new id."""
        self._counter += 1
        return AttemptId(self._prefix + self._counter.to_bytes(6, "big"))


class TransactionFactory:
    """Begins transactions on this node."""

    def __init__(
        self,
        *,
        router: Router,
        oracle: OracleClient,
        attempts: AttemptIds,
        finisher: Finisher,
        keeper: LockKeeper,
        counters: TxnCounters,
        limits: TxnLimits | None = None,
        worker: Offload | None = None,
    ) -> None:
        """worker: does what takes long beside the event loop; None: nobody does."""
        self._router = router
        self._oracle = oracle
        self._attempts = attempts
        self._finisher = finisher
        self._keeper = keeper
        self.counters = counters
        self.limits = limits or TxnLimits()
        self._worker = worker

    def begin(self, *, read_ts: Timestamp | None = None, start_ts: Timestamp | None = None) -> KvTransaction:
        """Begin a transaction; it costs nothing until it reads or commits.

        read_ts: one that reads the past there, and writes nothing; start_ts: of the attempt before, if it is run again.
        """
        sender = Sender(self._router, self._oracle)
        attempt = self._attempts.make()
        return KvTransaction(
            sender,
            attempt,
            self.counters,
            self._finisher,
            self._keeper,
            past=read_ts,
            start_ts=start_ts,
            limits=self.limits,
            worker=self._worker,
        )
