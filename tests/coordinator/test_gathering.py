"""The view is what the stores say: the newest descriptor, the leaseholder of the highest term, and silence that becomes death."""

from collections.abc import Awaitable, Callable

import trio
import trio.testing

from dsdb.coordinator.gathering import Gathering, Member, ReportReply, ReportRequest
from dsdb.coordinator.view import StoreState
from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor
from dsdb.kv.ids import NodeId, RangeId, StoreId
from dsdb.raft.messages import ReplicaId
from dsdb.rpc import NotSent
from dsdb.store.reporting import ReplicaReport, StoreReport

MEMBERS = [Member(store_id=StoreId(number), node_id=NodeId(number), locality=()) for number in (1, 2, 3)]
SEVEN = RangeId(7)


def a_range(generation: int, *stores: int) -> RangeDescriptor:
    replicas = tuple(ReplicaDescriptor(ReplicaId(number), NodeId(number), StoreId(number)) for number in stores)
    return RangeDescriptor(SEVEN, b"a", b"b", generation, replicas, ReplicaId(9))


def said(desc: RangeDescriptor, *, term: int = 0, load: float = 0.0) -> ReplicaReport:
    return ReplicaReport(desc, term, False, 0, load, 0.0)


class Stores:
    """What each store answers."""

    def __init__(self) -> None:
        self.reports: dict[int, StoreReport] = {}
        self.asked: list[tuple[int, ReportRequest]] = []

    def say(self, store: int, *replicas: ReplicaReport, life: int = 1, up_to: int = 1, gone: tuple[RangeId, ...] = ()) -> None:
        self.reports[store] = StoreReport(life=life, up_to=up_to, has_more=False, replicas=replicas, gone=gone)

    async def ask(self, node_id: NodeId, request: ReportRequest, timeout_s: float) -> ReportReply:
        await trio.lowlevel.checkpoint()
        self.asked.append((node_id, request))
        if node_id not in self.reports:
            raise NotSent(node_id, "gone")
        return ReportReply(self.reports[node_id], 0)


class Clock:
    def now(self) -> float:
        return trio.current_time()

    def wall_ms(self) -> int:
        return 0


def run(body: Callable[[Stores, Gathering], Awaitable[None]]) -> None:
    async def main() -> None:
        stores = Stores()
        await body(stores, Gathering(Clock(), stores.ask, dead_after_s=10.0))

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_newest_descriptor_and_the_highest_term_count() -> None:
    async def body(stores: Stores, gathering: Gathering) -> None:
        stores.say(1, said(a_range(4, 1, 2), term=6))
        stores.say(2, said(a_range(5, 2, 3), term=7))
        stores.say(3, said(a_range(5, 2, 3)))
        await gathering.gather(MEMBERS, {})
        found = gathering.view.ranges[SEVEN]
        assert (found.desc.generation, found.leaseholder, found.lease_term) == (5, 2, 7)
        assert gathering.is_complete
        stores.asked.clear()
        for number in (1, 2, 3):
            stores.say(number)
        await gathering.gather(MEMBERS, {})
        assert {node_id: (request.life, request.since) for node_id, request in stores.asked} == {1: (1, 1), 2: (1, 1), 3: (1, 1)}
        strays = {node_id: [desc.generation for desc in request.strays] for node_id, request in stores.asked}
        assert strays == {1: [5], 2: [], 3: []}, "the first store has a replica that the newest descriptor does not name"

    run(body)


def test_a_silent_store_is_suspect_and_then_dead_and_what_it_said_stays() -> None:
    async def body(stores: Stores, gathering: Gathering) -> None:
        for number in (1, 2, 3):
            stores.say(number, said(a_range(4, 1, 2, 3), term=6 if number == 3 else 0))
        await gathering.gather(MEMBERS, {})
        del stores.reports[3]
        states = []
        for _ in range(4):
            await trio.sleep(4)
            await gathering.gather(MEMBERS, {})
            states.append(gathering.view.stores[StoreId(3)].state)
        assert states == [StoreState.SUSPECT, StoreState.SUSPECT, StoreState.DEAD, StoreState.DEAD]
        assert len(gathering.view.ranges[SEVEN].desc.replicas) == 3
        stores.say(3, said(a_range(4, 1, 2, 3)), life=2)
        await trio.sleep(2)
        await gathering.gather(MEMBERS, {})
        assert gathering.view.stores[StoreId(3)].state is StoreState.LIVE

    run(body)


def test_what_a_new_life_of_a_store_does_not_confirm_is_gone() -> None:
    async def body(stores: Stores, gathering: Gathering) -> None:
        stores.say(1, said(a_range(4, 1), term=6))
        stores.say(2)
        stores.say(3)
        await gathering.gather(MEMBERS, {})
        assert SEVEN in gathering.view.ranges
        stores.say(1, life=2)
        await gathering.gather(MEMBERS, {})
        assert SEVEN not in gathering.view.ranges

    run(body)


def test_a_lease_that_moves_takes_its_load_along_until_the_new_leaseholder_has_measured_it() -> None:
    async def body(stores: Stores, gathering: Gathering) -> None:
        async def load(*replicas: ReplicaReport) -> tuple[int | None, float]:
            for number, replica in enumerate(replicas, 1):
                stores.say(number, replica)
            stores.say(3)
            await gathering.gather(MEMBERS, {})
            found = gathering.view.ranges[SEVEN]
            return found.leaseholder, found.requests_per_s

        desc = a_range(4, 1, 2)
        assert await load(said(desc, term=6, load=500.0), said(desc, load=3.0)) == (1, 500.0)
        assert await load(said(desc), said(desc)) == (None, 500.0), "nobody leads"
        assert await load(said(desc), said(desc, term=7)) == (2, 500.0)
        await trio.sleep(2)
        assert await load(said(desc), said(desc, term=7, load=800.0)) == (2, 800.0)
        assert await load(said(desc), said(desc, term=7, load=20.0)) == (2, 500.0)
        await trio.sleep(2.1)
        stores.say(1)
        stores.say(2)
        await gathering.gather(MEMBERS, {})
        assert gathering.view.ranges[SEVEN].requests_per_s == 20.0, "without news, too"
        assert await load(said(desc), said(desc, term=7, load=0.0)) == (2, 0.0)

    run(body)
