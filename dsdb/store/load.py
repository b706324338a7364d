"""Load: how much is asked of the ranges of a store, and which of them should be split, because of it or because of their size.

    request ─▶ replica.requests, read_bytes ─ once a second, or every CALM_S ─▶ RangeLoad: averages ─▶ reports, SHOW RANGES
                                                               ├─ half as hot as it may be ─▶ KeySample
                                                               └─ hot for LOAD_SUSTAINED_S, or too large ─▶ SplitWish

Only a leaseholder wishes, and it keeps nothing that another would miss: whoever has the lease next finds out by itself.

Invariants:
- An idle range costs nothing: only ranges that were asked since the last look, and those that are in use, are looked at.
- A range that is far from being hot costs little: it is looked at every CALM_S, so very many of them may be in use.
- A range whose load is sampled is in use, and led here.
- After a split both sides rest; so does a range in which no key was found: ranges are not split to dust.
- Load splits a range only if it has somewhere to go: to other replicas.
"""

import enum
import math

import msgspec
import trio

from dsdb.kv.ids import SYSTEM_RANGE, RangeId
from dsdb.storage.keys import Span
from dsdb.store.context import StoreContext
from dsdb.store.key_sample import KeySample
from dsdb.store.range_settings import RangeSettings, SettingsBook
from dsdb.store.range_stats import find_middle, has_rows, stored_key_from
from dsdb.store.replica import Replica

LOOK_S = 1.0
LOAD_AGE_S = 20.0
"""Over about this time requests and bytes are averaged, for balance and for people."""
RECENT_AGE_S = 2.0
"""The same to see whether a range is hot."""
LOAD_FORGOTTEN = 0.01
"""Requests a second below which a range counts as idle."""
LOAD_SUSTAINED_S = 5.0
"""A range must be hot for so long before it is split."""
CALM = 0.05
"""The part of its limit below which a range is calm."""
CALM_S = 5.0
"""Between two looks at a calm range; one that suddenly becomes hot is split so much later."""
COOLER = 0.75
"""The part of its limit below which a range is not hot any more."""
SAMPLED = 0.5
"""The part of its limit above which its keys are sampled."""
REST_S = 8.0
"""How long both sides of a split are left alone; long enough for a sample of their own."""
VAIN_REST_S = 60.0
"""How long a range is left alone in which no key was found."""
ROWS_LEAST = 64
"""Rows that each side of a split by load must have."""


class WishKind(enum.Enum):
    """Why a range should be split."""

    SIZE = "size"
    LOAD = "load"


class SplitWish(msgspec.Struct, frozen=True, kw_only=True):
    """A range led here that should be split."""

    range_id: RangeId
    kind: WishKind
    reason: str


class _Average:
    """An average over about `age_s`, right from the first value on."""

    __slots__ = ("_age_s", "_sum", "_weight")

    def __init__(self, age_s: float) -> None:
        self._age_s = age_s
        self._sum = 0.0
        self._weight = 0.0

    def take(self, value: float, seconds: float) -> None:
        keep = math.exp(-seconds / self._age_s)
        self._sum = keep * self._sum + (1 - keep) * value
        self._weight = keep * self._weight + 1 - keep

    def scaled(self, part: float) -> "_Average":
        found = _Average(self._age_s)
        found._sum, found._weight = self._sum * part, self._weight
        return found

    @property
    def value(self) -> float:
        return self._sum / self._weight if self._weight else 0.0


class RangeLoad:
    """Of a range that is in use."""

    __slots__ = (
        "_read_bytes",
        "_recent",
        "_recent_bytes",
        "_requests",
        "_seen",
        "_size_bytes",
        "_written",
        "hot_s",
        "is_elsewhere",
        "looked_at",
    )

    def __init__(self, size_bytes: int, now: float) -> None:
        self.looked_at = now
        """When it was aged last."""
        self._seen = 0
        """Of the replica's requests; the others are news."""
        self._size_bytes = size_bytes
        self._read_bytes = 0
        self._requests, self._written = _Average(LOAD_AGE_S), _Average(LOAD_AGE_S)
        self._recent, self._recent_bytes = _Average(RECENT_AGE_S), _Average(RECENT_AGE_S)
        self.hot_s = 0.0
        """For how long it has been hot."""
        self.is_elsewhere = False
        """Another store led it when it was looked at last: what is asked of followers says little of what a leaseholder serves."""

    @property
    def requests_per_s(self) -> float:
        """Give the average of requests."""
        return self._requests.value

    @property
    def written_bytes_per_s(self) -> float:
        """Give the average of bytes written."""
        return self._written.value

    @property
    def recent(self) -> tuple[float, float]:
        """Give the requests, and the bytes read and written, of a second just now."""
        return self._recent.value, self._recent_bytes.value

    def age(self, replica: Replica, now: float) -> bool:
        """Take what has happened since the last time; say whether the range is still in use."""
        seconds, self.looked_at = now - self.looked_at, now
        size_bytes = replica.machine.applied.size_bytes
        requests = (replica.requests - self._seen) / seconds
        written = max(size_bytes - self._size_bytes, 0) / seconds
        read = (replica.read_bytes - self._read_bytes) / seconds
        self._requests.take(requests, seconds)
        self._written.take(written, seconds)
        self._recent.take(requests, seconds)
        self._recent_bytes.take(written + read, seconds)
        self._seen, self._read_bytes, self._size_bytes = replica.requests, replica.read_bytes, size_bytes
        return self.requests_per_s > LOAD_FORGOTTEN

    def restart(self, replica: Replica, now: float) -> None:
        """Measure anew from here on."""
        self.looked_at = now
        self._seen, self._read_bytes, self._size_bytes = replica.requests, replica.read_bytes, replica.machine.applied.size_bytes
        self._requests, self._written = _Average(LOAD_AGE_S), _Average(LOAD_AGE_S)
        self._recent, self._recent_bytes = _Average(RECENT_AGE_S), _Average(RECENT_AGE_S)
        self.hot_s = 0.0

    def divide(self, left_part: float, left_bytes: int, right_bytes: int) -> "RangeLoad":
        """Keep a part of the averages; give the rest to the right side of a split."""
        right = RangeLoad(right_bytes, self.looked_at)
        right._requests, right._written = self._requests.scaled(1 - left_part), self._written.scaled(1 - left_part)
        self._requests, self._written = self._requests.scaled(left_part), self._written.scaled(left_part)
        self._recent, self._recent_bytes = _Average(RECENT_AGE_S), _Average(RECENT_AGE_S)
        self._size_bytes = left_bytes
        self.hot_s = 0.0
        return right

    def note_heat(self, settings: RangeSettings, seconds: float) -> None:
        """Count for how long the range has been hotter than it may be."""
        heat = self.heat(settings)
        if heat >= 1.0:
            self.hot_s += seconds
        elif heat < COOLER:
            self.hot_s = 0.0

    def heat(self, settings: RangeSettings) -> float:
        """Give the load as a part of what it may be."""
        requests, taken = self.recent
        found = 0.0
        if settings.load_requests:
            found = requests / settings.load_requests
        if settings.load_bytes:
            found = max(found, taken / settings.load_bytes)
        return found


class LoadWatch:
    """One for each store."""

    def __init__(self, context: StoreContext, replicas: dict[RangeId, Replica]) -> None:
        self._context = context
        self._replicas = replicas
        self._book = SettingsBook({})
        self._busy: set[RangeId] = set()
        """Ranges in use that are looked at every time."""
        self._calm: dict[RangeId, float] = {}
        """Those that are not, and when they are looked at next, ascending."""
        self._large: set[RangeId] = set()
        """Ranges that were seen to be too large."""
        self._resting: dict[RangeId, float] = {}
        """Ranges that are left alone, until when."""
        self._looked_at = context.clock.now()
        self._looks_at_all = True

    async def run(self) -> None:
        """Look, for ever."""
        while True:
            await trio.sleep(LOOK_S)
            self.look()

    def use(self, book: SettingsBook) -> None:
        """Take what is set; all ranges may be too large by it."""
        self._book = book
        self._looks_at_all = True

    def in_use(self) -> list[RangeId]:
        """Give the ranges that have a load."""
        return sorted({*self._busy, *self._calm})

    # ---- Looking ----

    def look(self) -> None:
        """Look at what was asked since the last time, and at what is in use."""
        context = self._context
        now = context.clock.now()
        seconds = now - self._looked_at
        if seconds < LOOK_S / 2:
            return
        self._looked_at = now
        asked, context.asked = context.asked, set()
        asked.update(self._busy)
        for range_id, due in self._calm.items():
            if due > now:
                break
            asked.add(range_id)
        if self._looks_at_all:
            self._looks_at_all = False
            asked.update(self._replicas)
        for range_id in sorted(asked):
            replica = self._replicas.get(range_id)
            if replica is None or replica.is_destroyed:
                self._forget(range_id)
            else:
                self._look_at(replica, seconds, now)

    def _look_at(self, replica: Replica, seconds: float, now: float) -> None:
        range_id = replica.range_id
        settings = self._book.of(replica.descriptor.span)
        is_led = range_id != SYSTEM_RANGE and replica.holds_lease(now)
        if is_led and settings.max_bytes and replica.machine.applied.size_bytes > settings.max_bytes:
            self._large.add(range_id)
        else:
            self._large.discard(range_id)
        load = replica.load
        if load is None:
            if not replica.requests:
                return
            load = replica.load = RangeLoad(replica.machine.applied.size_bytes, now - seconds)
        self._context.touched.add(range_id)
        was_elsewhere, load.is_elsewhere = load.is_elsewhere, replica.leader_store not in (None, self._context.store_id)
        if was_elsewhere and not load.is_elsewhere:
            load.restart(replica, now)
            self._be_busy(range_id)
            return
        if not load.age(replica, now):
            self._forget_load(range_id)
            replica.stop_load()
            return
        is_shared = is_led and len(replica.descriptor.voters) > 1
        if is_shared:
            load.note_heat(settings, seconds)
            self._keep_sample(replica, load, settings)
        else:
            load.hot_s = 0.0
            replica.sample = None
        if load.heat(settings) >= CALM:
            self._be_busy(range_id)
        else:
            self._forget_load(range_id)
            self._calm[range_id] = now + CALM_S

    def _keep_sample(self, replica: Replica, load: RangeLoad, settings: RangeSettings) -> None:
        if load.heat(settings) < SAMPLED:
            replica.sample = None
            return
        if replica.sample is None:
            replica.sample = KeySample(self._context.chance)
        replica.sample.pace(load.recent[0])

    def _be_busy(self, range_id: RangeId) -> None:
        self._calm.pop(range_id, None)
        self._busy.add(range_id)

    def _forget_load(self, range_id: RangeId) -> None:
        self._busy.discard(range_id)
        self._calm.pop(range_id, None)

    def _forget(self, range_id: RangeId) -> None:
        self._forget_load(range_id)
        self._large.discard(range_id)
        self._resting.pop(range_id, None)

    # ---- Wishing ----

    def wishes(self) -> list[SplitWish]:
        """Give the ranges led here that should be split now, those that are too large first."""
        now = self._context.clock.now()
        self._resting = {range_id: until for range_id, until in self._resting.items() if until > now}
        found = []
        for range_id in sorted(self._large):
            replica = self._ready(range_id, now)
            if replica is not None:
                size, limit = replica.machine.applied.size_bytes, self._book.of(replica.descriptor.span).max_bytes
                found.append(SplitWish(range_id=range_id, kind=WishKind.SIZE, reason=f"it has {size} bytes, more than {limit}"))
        for range_id in sorted(self._busy):
            replica = self._ready(range_id, now)
            if replica is None or replica.load is None or replica.load.hot_s < LOAD_SUSTAINED_S or range_id in self._large:
                continue
            requests, taken = replica.load.recent
            reason = f"it serves {requests:.0f} requests and {taken:.0f} bytes a second"
            found.append(SplitWish(range_id=range_id, kind=WishKind.LOAD, reason=reason))
        return found

    def _ready(self, range_id: RangeId, now: float) -> Replica | None:
        """Give a replica that may split now."""
        replica = self._replicas.get(range_id)
        if replica is None or range_id in self._resting or not replica.holds_lease(now):
            return None
        if replica.is_changing or replica.raft.membership.is_joint or replica.low_term != replica.lease_term:
            return None
        return replica

    async def key_for(self, wish: SplitWish) -> bytes | None:
        """Give where to split a range: the start of a row, or of a table; None, and a rest, if no key is of use."""
        replica = self._replicas.get(wish.range_id)
        if replica is None:
            return None
        span, engine = replica.descriptor.span, self._context.engine
        key = None
        if wish.kind is WishKind.SIZE:
            size_bytes, limit = replica.machine.applied.size_bytes, self._book.of(span).max_bytes
            laid = [(block.span, block.size_bytes) for block in replica.machine.provisional.overlapping(span)]
            middle = await find_middle(engine, span, size_bytes=size_bytes, laid=laid)
            # What was counted is the truth.
            if middle is not None and middle.total_bytes > limit:
                key = middle.key
        elif replica.sample is not None:
            key = replica.sample.split_key(span, lambda from_key: stored_key_from(engine, Span(from_key, span.end)))
            if key is not None and not (
                has_rows(engine, Span(span.start, key), ROWS_LEAST) and has_rows(engine, Span(key, span.end), ROWS_LEAST)
            ):
                key = None
        block = None if key is None else replica.machine.provisional.at(key)
        if block is not None and key != block.first_key:
            # It was laid since, or is where somebody asks: a block intent is never cut.
            key = block.first_key if block.first_key > span.start else None
        if key is None:
            self.let_rest(wish.range_id, VAIN_REST_S)
        return key

    def let_rest(self, range_id: RangeId, seconds: float) -> None:
        """Leave a range alone for a while."""
        self._resting[range_id] = self._context.clock.now() + seconds

    def on_split(self, replica: Replica, made: Replica, key: bytes) -> None:
        """Divide the load of a range that was split, and let both sides rest."""
        if replica.load is not None:
            left_part = 0.5 if replica.sample is None else replica.sample.left_part(key)
            left_bytes, right_bytes = replica.machine.applied.size_bytes, made.machine.applied.size_bytes
            made.load = replica.load.divide(left_part, left_bytes, right_bytes)
            self._be_busy(made.range_id)
            replica.sample = None
        for side in (replica, made):
            self._context.asked.add(side.range_id)
            # What is still far too large goes on being cut.
            if side.range_id not in self._large:
                self.let_rest(side.range_id, REST_S)
