"""Store liveness: promises of support between pairs of stores, which leases and elections of all their ranges rest on.

    supported                              supporter
      │ sent_at ── SupportRequest ───────────▶ │ receipt
      │ ◀───────── SupportGrant(period) ────── │ promises until receipt + duration
      │ counts until sent_at + duration        │
      │            × (1 − drift)               │ lapses: its replicas may campaign and vote again; the next promise is a new period

As receipt is never before sending, the supported stops counting first, whatever the two clocks show.

Invariants:
- A promise only ever grows, and ends by its time alone.
- What a store promised before its start is forgotten; so nothing is voted for until the longest promise has passed (`is_barred`).
- A grant counts only for a request of this life of the store.

Sans-I/O: the time is an argument, frames are made and taken by the caller.
"""

import math

import msgspec

from dsdb.kv.ids import StoreId
from dsdb.store.frame import SupportGrant, SupportRequest


class _Support(msgspec.Struct, gc=False):
    """What another store promised to this one."""

    until: float
    """On our clock."""
    period: int


class Liveness:
    """The promises that a store gave and was given."""

    def __init__(self, *, now: float, incarnation: int, duration_s: float, drift_max: float) -> None:
        self._incarnation = incarnation
        self._duration_s = duration_s
        self._drift_max = drift_max
        self._barred_until = now + duration_s * (1 + 2 * drift_max)
        """The end of the longest promise that an earlier life may have given."""
        self._supports: dict[StoreId, _Support] = {}
        self._promises: dict[StoreId, float] = {}
        """Store → until when we promised it, on our clock; removed by `lapsed`."""
        self._periods: dict[StoreId, int] = {}
        """Store → the period of the promise that stands, or stood last."""

    # ---- As the supported ----

    def request(self, now: float, *, may_wait: bool = False) -> SupportRequest:
        """Make a request; it counts from now.  may_wait: its grant need not be sent alone."""
        return SupportRequest(incarnation=self._incarnation, sent_at=now, duration_s=self._duration_s, may_wait=may_wait)

    def take_grant(self, sender: StoreId, grant: SupportGrant) -> bool:
        """Count a promise.  Say whether it begins a new period, in which nothing was acknowledged yet."""
        if grant.incarnation != self._incarnation:
            return False
        until = grant.sent_at + grant.duration_s * (1 - self._drift_max)
        support = self._supports.get(sender)
        if support is None or support.period != grant.period:
            if support is not None and until <= support.until:
                # Late, from a period before the present one: frames keep their order, but connections may not.
                return False
            self._supports[sender] = _Support(until, grant.period)
            return True
        support.until = max(support.until, until)
        return False

    def supported_until(self, store: StoreId) -> float:
        """Give the time up to which a store supports this one; 0 if it never did."""
        support = self._supports.get(store)
        return 0.0 if support is None else support.until

    # ---- As the supporter ----

    def take_request(self, sender: StoreId, request: SupportRequest, now: float, new_period: int) -> tuple[SupportGrant, bool]:
        """Promise what was asked for.  Give the grant, and whether this is a new period, named `new_period`."""
        is_new = sender not in self._promises
        if is_new:
            self._periods[sender] = new_period
        duration_s = min(request.duration_s, self._duration_s)
        until = now + duration_s
        self._promises[sender] = max(self._promises.get(sender, until), until)
        return SupportGrant(request.incarnation, request.sent_at, duration_s, self._periods[sender]), is_new

    def promises(self, store: StoreId) -> bool:
        """Say whether a promise to a store stands (until `lapsed` has named it)."""
        return store in self._promises

    def lapsed(self, now: float) -> list[StoreId]:
        """Drop the promises that have passed, and give whom they were made to, ascending."""
        ended = sorted(store for store, until in self._promises.items() if until <= now)
        for store in ended:
            del self._promises[store]
        return ended

    def next_lapse(self) -> float:
        """Give the moment when the first promise passes unless it is renewed."""
        return min(self._promises.values(), default=math.inf)

    def is_barred(self, now: float) -> bool:
        """Say whether a promise of an earlier life of this store may still stand."""
        return now < self._barred_until
