"""The settings of the cluster, as this node has read them: it reads them now and then, and has its parts obey.

    SET CLUSTER SETTING ─▶ 03 "settings" ─▶ values by name ─▶ every node, at its next reading ─▶ coordinator, store, jobs

Invariants:
- A setting holds at every node that reaches the system range some READ_S later; until it is read, what was there before holds.
- A name that this version does not know is left alone: a newer node may have written it.
"""

import logging

import msgspec
import trio

from dsdb.coordinator import Coordinator
from dsdb.jobs import Cleanup, VersionCollector
from dsdb.kv.errors import KvError
from dsdb.kv.ids import SYSTEM_RANGE
from dsdb.kv.requests import ScanReply, ScanRequest
from dsdb.ranges import Router
from dsdb.sql.cluster_settings import CLUSTER_SETTINGS
from dsdb.sql.ports import RangeUnavailableError, TransactionRetryError
from dsdb.storage.keys import KEY_MIN, point_span, system_key
from dsdb.store.store import Store
from dsdb.txn import TransactionFactory

log = logging.getLogger("dsdb.node")

READ_S = 3.0
"""Between two readings."""
CHANGE_TRIES = 20

_KEY = system_key("settings")
_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(dict[str, float]).decode


class ClusterSettings:
    """One for each node."""

    def __init__(
        self,
        *,
        router: Router,
        transactions: TransactionFactory,
        store: Store,
        coordinator: Coordinator,
        cleanup: Cleanup,
        version_collector: VersionCollector,
    ) -> None:
        self._router = router
        self._transactions = transactions
        self._store = store
        self._coordinator = coordinator
        self._cleanup = cleanup
        self._version_collector = version_collector
        self._obeyed: dict[str, float] = {}
        self._wakeup = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read and obey, for ever."""
        task_status.started()
        while True:
            with trio.move_on_after(READ_S):
                await self._wakeup.wait()
            self._wakeup = trio.Event()
            try:
                values = await self._read()
            except KvError as error:
                log.info("the cluster's settings were not read: %s", error)
                continue
            if values != self._obeyed:
                self._obeyed = values
                self._obey()

    async def read(self) -> dict[str, float]:
        """Give what is set.  Raises RangeUnavailableError."""
        try:
            return await self._read()
        except KvError as error:
            raise RangeUnavailableError(getattr(error.detail, "reason", repr(error.detail))) from error

    async def change(self, name: str, value: float | None) -> None:
        """Set a setting, or (None) let its default hold again.  Raises PortError."""
        for attempt in range(1, CHANGE_TRIES + 1):
            txn = self._transactions.begin()
            (stored,) = await txn.get([_KEY])
            values = {} if stored is None else _DECODE(stored)
            values.pop(name, None)
            if value is not None:
                values[name] = value
            txn.put(_KEY, _ENCODE(values))
            try:
                await txn.commit()
            except TransactionRetryError:
                if attempt == CHANGE_TRIES:
                    raise
                continue
            break
        log.info("cluster setting %s is %s", name, "its default" if value is None else value)
        self._wakeup.set()

    async def _read(self) -> dict[str, float]:
        reply = await self._router.send(KEY_MIN, lambda _: ScanRequest(SYSTEM_RANGE, point_span(_KEY), None, 1, 1 << 20))
        assert isinstance(reply, ScanReply), reply
        return _DECODE(reply.values[0]) if reply.values else {}

    def _obey(self) -> None:
        values = self._obeyed
        moves = values.get("rebalance_moves_max")
        self._coordinator.use(dead_after_s=values.get("dead_after"), moves_max=None if moves is None else int(moves))
        self._store.closing.use_lag(values.get("closed_lag"))
        self._store.consistency.throttle.bytes_per_s = values.get("check_bytes_per_s", CLUSTER_SETTINGS["check_bytes_per_s"].default)
        self._store.consistency.interval_s = values.get("check_interval", CLUSTER_SETTINGS["check_interval"].default)
        for throttle in self._store.snapshot_rates:
            throttle.bytes_per_s = values.get("snapshot_bytes_per_s", CLUSTER_SETTINGS["snapshot_bytes_per_s"].default)
        self._store.folding.share = values.get("fold_percent", CLUSTER_SETTINGS["fold_percent"].default) / 100
        self._cleanup.use_age(values.get("version_age"))
        self._version_collector.use_age(values.get("version_age"))
