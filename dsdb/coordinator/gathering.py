"""Gathering: the view is filled from reports, of which every store is asked for one at a time, and which tell only what is news.

    coordinator ── ReportRequest(life, since) ─▶ store ─ what changed ─▶ trackers ─▶ ranges merged ─▶ ClusterView

Invariants:
- One message a store and round, and more only while there is more news than a page holds; never one a range.
- What a store said stays said until it says otherwise: a range whose stores are all silent is still known.
- A store that does not answer is suspect at once, and dead after `dead_after_s`, counted from when it last answered this coordinator.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec
import trio

from dsdb.coordinator.placement import Locality
from dsdb.coordinator.view import ClusterView, NodeState, RangeView, StoreState, StoreView
from dsdb.env import Clock
from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.ids import NodeId, RangeId, StoreId
from dsdb.rpc import Method, MethodKind, RpcError
from dsdb.store.reporting import ReplicaReport, StoreReport

log = logging.getLogger("dsdb.coordinator")

PAGE_RANGES = 500
"""Ranges in one report: some 50 KiB, and about 3 ms to take in."""
CAPACITY_STEP_BYTES = 256 << 20
"""Capacities are taken in such steps: what is free on a disk changes all the time, and is no reason for another plan."""
STRAYS_MAX = 100
"""Ranges of which a store is told at once that it has a replica too many."""
ANSWER_S = 1.0
"""How long a store may take to answer before it is suspect."""
SETTLED_S = 4.0
"""A leaseholder has measured the load of a range so long after the lease came to it: it looks once a second, from the second look on."""
RETRY_S = 1.0
"""Between two questions to a store that did not answer."""


class ReportRequest(msgspec.Struct, frozen=True, array_like=True):
    """Ask a store for its news since a version of its life; tell its node what is wanted of it.

    strays: ranges of which it has a replica that the newest descriptor does not name; it finds out by itself whether that was removed.
    """

    life: int
    since: int
    count_max: int
    node_state: NodeState
    strays: tuple[RangeDescriptor, ...] = ()


class ReportReply(msgspec.Struct, frozen=True, array_like=True):
    """What changed; and how large the store's disk is (0: not known)."""

    report: StoreReport
    capacity_bytes: int


REPORT: Method[ReportRequest, ReportReply] = Method(44, "report", MethodKind.CALL, ReportRequest, ReportReply)

AskForReport = Callable[[NodeId, ReportRequest, float], Awaitable[ReportReply]]
"""Ask a node for a report, within so many seconds.  Raises RpcError."""


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A store that the directory knows."""

    store_id: StoreId
    node_id: NodeId
    locality: Locality


class _Tracker:
    """What one store has said."""

    def __init__(self, now: float) -> None:
        self.life = 0
        self.up_to = 0
        self.replicas: dict[RangeId, ReplicaReport] = {}
        self.strays: set[RangeId] = set()
        """Of which it has a replica that was probably removed."""
        self.unconfirmed: set[RangeId] = set()
        """Of an earlier life: dropped unless this one has them too."""
        self.heard_at = now
        self.asked_at = now - RETRY_S
        self.is_silent = False
        self.is_complete = False
        """All that it has was told once, or it did not answer."""
        self.capacity_bytes = 0


class Gathering:
    """One for each term of a coordinator."""

    def __init__(self, clock: Clock, ask: AskForReport, *, dead_after_s: float) -> None:
        self.view = ClusterView()
        self._clock = clock
        self._ask = ask
        self.dead_after_s = dead_after_s
        """May be changed at any time."""
        self._trackers: dict[StoreId, _Tracker] = {}
        self._holders: dict[RangeId, set[StoreId]] = {}
        self._settled_at: dict[RangeId, float] = {}
        """Of ranges whose load is not believed yet."""
        self.has_news = False
        """The last round brought some."""

    @property
    def is_complete(self) -> bool:
        """Say whether every store has told all that it has, or does not answer."""
        return all(tracker.is_complete for tracker in self._trackers.values())

    def silence_s(self, store_id: StoreId) -> float:
        """Give for how long a store has not answered; 0 if it does."""
        tracker = self._trackers.get(store_id)
        return 0.0 if tracker is None or not tracker.is_silent else self._clock.now() - tracker.heard_at

    async def gather(self, members: Sequence[Member], node_states: dict[NodeId, NodeState]) -> None:
        """Ask every store for its news, and put it into the view."""
        self.has_news = False
        async with trio.open_nursery() as nursery:
            for member in members:
                now = self._clock.now()
                tracker = self._trackers.setdefault(member.store_id, _Tracker(now))
                if not tracker.is_silent or now - tracker.asked_at >= RETRY_S:
                    tracker.asked_at = now
                    node_state = node_states.get(member.node_id, NodeState.ACTIVE)
                    nursery.start_soon(self._hear, member, tracker, node_state)
        version = self.view.version
        now = self._clock.now()
        settled = sorted(range_id for range_id, at in self._settled_at.items() if at <= now)
        for range_id in settled[:PAGE_RANGES]:
            del self._settled_at[range_id]
            self.view.settle(range_id)
            self._merge(range_id)
        for member in members:
            self._put_store(member, node_states.get(member.node_id, NodeState.ACTIVE))
        self.has_news = self.has_news or self.view.version != version

    async def _hear(self, member: Member, tracker: _Tracker, node_state: NodeState) -> None:
        try:
            while True:
                strays = tuple([self.view.ranges[range_id].desc for range_id in sorted(tracker.strays)[:STRAYS_MAX]])
                request = ReportRequest(tracker.life, tracker.up_to, PAGE_RANGES, node_state, strays)
                reply = await self._ask(member.node_id, request, ANSWER_S)
                tracker.capacity_bytes = reply.capacity_bytes // CAPACITY_STEP_BYTES * CAPACITY_STEP_BYTES
                self._take(member.store_id, tracker, reply.report)
                if not reply.report.has_more:
                    break
        except RpcError as error:
            if not tracker.is_silent:
                log.info("store %d does not answer: %s", member.store_id, error)
            tracker.is_silent = tracker.is_complete = True
            return
        tracker.heard_at = self._clock.now()
        tracker.is_silent = False
        tracker.is_complete = True

    def _put_store(self, member: Member, node_state: NodeState) -> None:
        tracker = self._trackers[member.store_id]
        state = StoreState.LIVE
        if tracker.is_silent:
            state = StoreState.DEAD if self._clock.now() - tracker.heard_at >= self.dead_after_s else StoreState.SUSPECT
        known = self.view.stores.get(member.store_id)
        if known is not None and known.state is not state:
            log.info("store %d is %s", member.store_id, state.value)
        self.view.put_store(
            StoreView(
                store_id=member.store_id,
                node_id=member.node_id,
                locality=member.locality,
                state=state,
                node_state=node_state,
                capacity_bytes=tracker.capacity_bytes,
            )
        )

    # ---- Ranges ----

    def _take(self, store_id: StoreId, tracker: _Tracker, report: StoreReport) -> None:
        if report.life != tracker.life:
            tracker.life = report.life
            tracker.unconfirmed = set(tracker.replicas)
        tracker.up_to = report.up_to
        changed = []
        for replica in report.replicas:
            range_id = replica.descriptor.range_id
            tracker.replicas[range_id] = replica
            tracker.unconfirmed.discard(range_id)
            self._holders.setdefault(range_id, set()).add(store_id)
            changed.append(range_id)
        gone = list(report.gone)
        if not report.has_more and tracker.unconfirmed:
            gone += sorted(tracker.unconfirmed)
            tracker.unconfirmed = set()
        for range_id in gone:
            tracker.replicas.pop(range_id, None)
            self._holders.get(range_id, set()).discard(store_id)
            tracker.strays.discard(range_id)
            changed.append(range_id)
        self.has_news = self.has_news or bool(changed)
        for range_id in changed:
            self._merge(range_id)

    def _merge(self, range_id: RangeId) -> None:
        """Put together what the stores of a range say: the newest descriptor, and who leads in the highest term."""
        holders = self._holders.get(range_id)
        if not holders:
            self._holders.pop(range_id, None)
            self.view.drop_range(range_id)
            return
        said = [(store_id, self._trackers[store_id].replicas[range_id]) for store_id in sorted(holders)]
        newest = max(said, key=lambda pair: pair[1].descriptor.generation)[1]
        for store_id, _ in said:
            strays = self._trackers[store_id].strays
            (strays.add if newest.descriptor.replica_on(store_id) is None else strays.discard)(range_id)
        leader, leading = max(said, key=lambda pair: pair[1].lease_term)
        known = self.view.ranges.get(range_id)
        term = 0 if known is None else known.lease_term
        is_led = leading.lease_term >= max(term, 1) and newest.descriptor.replica_on(leader) is not None
        figures = leading if is_led else newest
        # Without a leader it has the load that it had: so has its next leaseholder, before it has measured anything.
        load = (0.0, 0.0) if known is None else (known.requests_per_s, known.written_bytes_per_s)
        self.view.put_range(
            RangeView(
                desc=newest.descriptor,
                leaseholder=leader if is_led else None,
                lease_term=max(term, leading.lease_term),
                is_changing=is_led and leading.is_changing,
                size_bytes=figures.size_bytes,
                requests_per_s=figures.requests_per_s if is_led else load[0],
                written_bytes_per_s=figures.written_bytes_per_s if is_led else load[1],
            )
        )
        if leading.lease_term > term and range_id in self.view.unsettled:
            self._settled_at[range_id] = self._clock.now() + SETTLED_S
