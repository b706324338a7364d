"""What all replicas of a store share: the ports, the settings, and how a replica makes itself heard.  Data, made by `store`."""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from dsdb.env.clock import Clock
from dsdb.kv.errors import KvError, Unavailable
from dsdb.kv.ids import RangeId, StoreId
from dsdb.kv.intents import Pusher, TxnMeta
from dsdb.storage.columnar.block import BlockCache, Blocks
from dsdb.storage.columnar.rows import DeltaRows, FoldedRows
from dsdb.storage.columnar.stretches import Stretches
from dsdb.storage.engine.port import Engine, EngineSnapshot
from dsdb.storage.errors import StorageError
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp
from dsdb.store.closed import Promises
from dsdb.store.config import StoreConfig
from dsdb.store.frame import TimestampSource
from dsdb.store.liveness import Liveness
from dsdb.store.settling import IntentSettler
from dsdb.store.waiter import Deadlines

if TYPE_CHECKING:
    from dsdb.store.replica import Replica


class StoreContext:
    """One for each store."""

    def __init__(
        self,
        *,
        engine: Engine,
        store_id: StoreId,
        config: StoreConfig,
        clock: Clock,
        chance: random.Random,
        timestamps: TimestampSource,
        liveness: Liveness,
    ) -> None:
        self.engine = engine
        self.store_id = store_id
        self.config = config
        self.clock = clock
        self.chance = chance
        self.timestamps = timestamps
        self.liveness = liveness
        self._block_cache = BlockCache(config.block_cache_bytes)
        self.stretches = Stretches(config.stretches_bytes)
        """What lies over blocks, where nothing is written."""
        engine.watch(self.stretches.noting)
        self.blocks = Blocks(engine, self._block_cache)
        """The columnar blocks of the engine as it is; for the event loop alone, and not across a wait."""
        self.delta_rows, self.folded_rows = DeltaRows(engine), FoldedRows(self.blocks)
        """The rows of the engine as it is; a replica chooses (`Replica.rows`)."""
        self.deadlines = Deadlines()
        self.disk_trouble: str | None = None
        """Why writes are refused now: the disk is full."""
        self.touched: set[RangeId] = set()
        """Ranges that were asked, changed or moved since the last report (`reporting`)."""
        self.changed: set[RangeId] = set()
        """Ranges in which something was applied, or installed, since the last look (`folding`)."""
        self.asked: set[RangeId] = set()
        """Ranges without a load that were asked, or led, since the last look (`load`)."""
        self.led: dict[RangeId, Replica] = {}
        """Replicas here whose lease has begun and not ended by what this store knows; whoever acts for one asks it (`holds_lease`)."""
        self.on_dirty: Callable[[int], None] = _nobody
        """Told the range whose group has something to hand out; set by the loop."""
        self.closing: Timestamp = MIN_TIMESTAMP
        """What the leaseholders of this store may close now (rule 23)."""
        self.promises: Promises = Promises(lambda _range_id: None)
        """What is closed beside the logs; the store makes them."""
        self.on_intents_wanted: Callable[[Any], None] = _nobody
        """Told a replica whose intents somebody wants to know."""
        self.follower_reads = 0
        """Reads of the past that were answered without a lease."""
        self.on_unreadable: Callable[[RangeId, StorageError], KvError] = _nobody_reads
        """Told a range that could not be read; gives what to answer, and takes it out of service if its data is damaged."""
        self.on_wanted: Callable[[int], None] = _nobody
        """Told a range whose replica was asked for and waits to be woken; set by the keeper."""
        self.intents: IntentSettler = _Nobody()
        """Finds out what becomes of foreign intents; set by the node."""

    def blocks_of(self, snapshot: EngineSnapshot, number: int | None = None) -> Blocks:
        """Give the columnar blocks of an engine snapshot, read through the store's cache: for the event loop alone.

        number: of `stretches`, taken before the snapshot was, for a reader of many rows.
        """
        if number is None:
            return Blocks(snapshot, self._block_cache)
        return Blocks(snapshot, self._block_cache, stretches=self.stretches, number=number)


class _Nobody:
    """Stands in for an `IntentSettler` before there is one."""

    async def settle(self, meta: TxnMeta, ts: Timestamp, *, abort: bool, pusher: Pusher) -> NoReturn:
        """Refuse."""
        raise KvError(Unavailable("the store cannot ask about other transactions yet"))


def _nobody_reads(_range_id: RangeId, error: StorageError) -> NoReturn:
    raise error


def _nobody(_told: Any) -> None:
    raise AssertionError("the store's loop is not set up yet")
