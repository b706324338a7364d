"""What a store says of its replicas to whoever coordinates the cluster: only what has changed since the last report that was asked for.

    applied, served, moved ─▶ touched ─ collect ─▶ compared with what was told ─▶ versions ─ report(since) ─▶ pages

Invariants:
- A report reads what is in memory: it wakes no range, takes no latch, reads no disk, and costs nothing for ranges that nobody touched.
- Whoever asks again from the version up to which it was told misses nothing; after a restart of the store (another `life`) it begins anew.
- Small changes of size and load are not news: a range under a steady load is told once.
"""

import msgspec

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.ids import RangeId
from dsdb.store.context import StoreContext
from dsdb.store.replica import Replica

NEWS_PART = 0.2
"""By this part a load must have changed to be told, and at least …"""
NEWS_REQUESTS = 1.0
"""… by so many requests a second, a thousandth of what a range may have, …"""
NEWS_WRITTEN_BYTES = 1024.0
"""… or so many bytes."""
NEWS_BYTES = 64 * 1024
"""By so much, and by a twentieth, a size must have changed to be told."""


class ReplicaReport(msgspec.Struct, frozen=True, array_like=True):
    """A replica, as its store sees it."""

    descriptor: RangeDescriptor
    lease_term: int
    """The term in which it leads; 0: it does not."""
    is_changing: bool
    """A change of replicas is under way at this leaseholder."""
    size_bytes: int
    requests_per_s: float
    written_bytes_per_s: float


class StoreReport(msgspec.Struct, frozen=True, array_like=True):
    """What has changed.  up_to: from where to ask next; has_more: at once."""

    life: int
    up_to: int
    has_more: bool
    replicas: tuple[ReplicaReport, ...]
    gone: tuple[RangeId, ...]
    """Ranges that have no replica here any more."""


class Reporting:
    """One for each store."""

    def __init__(self, context: StoreContext, replicas: dict[RangeId, Replica]) -> None:
        self._context = context
        self._replicas = replicas
        self._version = 0
        self._changed: dict[RangeId, int] = {}
        """Range → version of its last news, ascending."""
        self._told: dict[RangeId, ReplicaReport] = {}
        self._is_first = True
        self.size_bytes = 0
        """Of all replicas here, as it was told."""

    def report(self, life: int, since: int, count_max: int) -> StoreReport:
        """Give what has changed since a version of a life of this store, `count_max` ranges at most."""
        self._collect()
        now = self._context.clock.now()
        own_life = self._context.liveness.request(now).incarnation
        if life != own_life or since > self._version:
            since = 0
        news = []
        for range_id, version in reversed(self._changed.items()):
            if version <= since:
                break
            news.append(range_id)
        news.reverse()
        page = news[:count_max]
        return StoreReport(
            life=own_life,
            up_to=self._changed[page[-1]] if page else self._version,
            has_more=len(news) > count_max,
            replicas=tuple([self._told[range_id] for range_id in page if range_id in self._told]),
            gone=tuple([range_id for range_id in page if range_id not in self._told]),
        )

    def told(self) -> list[ReplicaReport]:
        """Give what was told last of each replica."""
        return list(self._told.values())

    def _collect(self) -> None:
        """Look at what was touched: what is in use is, whenever its load was looked at."""
        context = self._context
        touched = context.touched
        context.touched = set()
        if self._is_first:
            touched.update(self._replicas)
            self._is_first = False
        for range_id in sorted(touched):
            replica = self._replicas.get(range_id)
            if replica is None or replica.is_destroyed:
                gone = self._told.pop(range_id, None)
                if gone is not None:
                    self.size_bytes -= gone.size_bytes
                    self._note(range_id)
                continue
            self._compare(replica)

    def _compare(self, replica: Replica) -> None:
        range_id = replica.range_id
        load = replica.load
        raft = replica.raft
        report = ReplicaReport(
            replica.descriptor,
            raft.term if replica.is_leader and raft.term == replica.lease_term else 0,
            replica.is_changing,
            replica.machine.applied.size_bytes,
            0.0 if load is None else load.requests_per_s,
            0.0 if load is None else load.written_bytes_per_s,
        )
        told = self._told.get(range_id)
        if told is None or _is_news(told, report):
            self._told[range_id] = report
            self.size_bytes += report.size_bytes - (0 if told is None else told.size_bytes)
            self._note(range_id)

    def _note(self, range_id: RangeId) -> None:
        self._version += 1
        self._changed.pop(range_id, None)
        self._changed[range_id] = self._version


def _is_news(told: ReplicaReport, now: ReplicaReport) -> bool:
    """Say whether a replica has changed by more than a little."""
    grown = abs(now.size_bytes - told.size_bytes)
    return (
        told.descriptor is not now.descriptor
        or told.lease_term != now.lease_term
        or told.is_changing != now.is_changing
        or (grown > NEWS_BYTES and grown * 20 > told.size_bytes)
        or _has_moved(told.requests_per_s, now.requests_per_s, NEWS_REQUESTS)
        or _has_moved(told.written_bytes_per_s, now.written_bytes_per_s, NEWS_WRITTEN_BYTES)
    )


def _has_moved(told: float, now: float, least: float) -> bool:
    return (told > 0 and not now) or abs(now - told) > max(NEWS_PART * told, least)
