"""Splits by size and load: each node has those ranges split that it leads and that have become too large, or too busy.

    store: wishes ─▶ where to cut? (`LoadWatch.key_for`) ─▶ split, as ALTER TABLE … SPLIT AT does ─▶ event ─▶ leases and replicas: balance

It is the leaseholder that knows sizes, loads and keys, so nothing has to be told to a coordinator first, and a new leaseholder begins anew
(docs/decisions/0015).

Invariants:
- A node has SPLITS_MAX splits under way at most, and one a range.
- A split that fails leaves the range as it is, and at rest.
- Settings are read now and then, by each node for itself: they hold some SETTINGS_S later, and stay as they were while they cannot be read.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from dsdb.coordinator.events import EventSink
from dsdb.coordinator.wanted import read_range_settings
from dsdb.env import Clock
from dsdb.kv.errors import KvError
from dsdb.kv.ids import RangeId
from dsdb.ranges import Router
from dsdb.sql.errors import SqlError
from dsdb.sql.ports import PortError
from dsdb.store.load import LoadWatch, SplitWish
from dsdb.store.range_settings import SettingsBook, StoredSettings

log = logging.getLogger("dsdb.coordinator")

LOOK_S = 1.0
SETTINGS_S = 5.0
"""Between two readings of the settings."""
SPLITS_MAX = 2
"""Splits under way at a node: each reads its range, and stops its writes for a moment."""
FAILED_REST_S = 5.0
"""How long a range is left alone whose split has failed."""


class Splitter:
    """One for each node."""

    def __init__(
        self, *, loads: LoadWatch, split: Callable[[Sequence[bytes]], Awaitable[None]], router: Router, clock: Clock, events: EventSink
    ) -> None:
        """split: makes keys the starts of ranges; raises PortError, SqlError."""
        self._loads = loads
        self._split = split
        self._router = router
        self._clock = clock
        self._events = events
        self._underway: set[RangeId] = set()
        self._stored: dict[int, StoredSettings] = {}
        self._read_at = clock.now() - SETTINGS_S

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look, and have ranges split, for ever."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                await trio.sleep(LOOK_S)
                await self._read_settings()
                for wish in self._loads.wishes():
                    if len(self._underway) >= SPLITS_MAX:
                        break
                    if wish.range_id not in self._underway:
                        self._underway.add(wish.range_id)
                        nursery.start_soon(self._carry_out, wish)

    def hurry(self) -> None:
        """Read the settings with the next look: they have changed."""
        self._read_at = self._clock.now() - SETTINGS_S

    async def _read_settings(self) -> None:
        now = self._clock.now()
        if now - self._read_at < SETTINGS_S:
            return
        self._read_at = now
        try:
            stored = await read_range_settings(self._router)
        except KvError as error:
            log.info("the settings of ranges were not read: %s", error)
            return
        if stored != self._stored:
            self._stored = stored
            self._loads.use(SettingsBook(stored))

    async def _carry_out(self, wish: SplitWish) -> None:
        try:
            key = await self._loads.key_for(wish)
            if key is None:
                log.info("range %d: no key to split it at, though %s", wish.range_id, wish.reason)
                return
            what = f"range {wish.range_id}: split by {wish.kind.value} at {key.hex()}: {wish.reason}"
            try:
                await self._split((key,))
            except (PortError, SqlError) as error:
                self._loads.let_rest(wish.range_id, FAILED_REST_S)
                log.warning("%s (failed: %s)", what, error)
            else:
                self._events.record("split", wish.range_id, what)
        finally:
            self._underway.discard(wish.range_id)
