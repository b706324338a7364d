"""What all replicas of a store share: the ports, the settings, and how a replica makes itself heard.  Data, made by `store`."""

import random
from collections.abc import Callable

from dsdb.env.clock import Clock
from dsdb.kv.ids import StoreId
from dsdb.storage.engine.port import Engine
from dsdb.store.config import StoreConfig
from dsdb.store.frame import TimestampSource
from dsdb.store.liveness import Liveness
from dsdb.store.waiter import Deadlines


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
        self.deadlines = Deadlines()
        self.disk_trouble: str | None = None
        """Why writes are refused now: the disk is full."""
        self.on_dirty: Callable[[int], None] = _nobody
        """Told the range whose group has something to hand out; set by the loop."""


def _nobody(_range_id: int) -> None:
    raise AssertionError("the store's loop is not set up yet")
