"""A node's way to the oracle while nobody answers there."""

import random

import pytest
import trio
import trio.testing

from dsdb.env import Address
from dsdb.kv.descriptor import RangeDescriptor, ReplicaDescriptor
from dsdb.kv.errors import KvError, Unavailable
from dsdb.kv.ids import SYSTEM_RANGE, NodeId, StoreId
from dsdb.kv.requests import RaiseMarkReply, RaiseMarkRequest
from dsdb.oracle import Issuer, OracleClient
from dsdb.raft.messages import ReplicaId
from dsdb.ranges import RangeCache
from dsdb.rpc import Peers
from dsdb.storage.keys import KEY_MIN, SYSTEM_END
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp
from tests.sim.network import SimClock, SimNetwork


class Elsewhere:
    """A system range that is led by another store."""

    def lease_started(self, range_id: int) -> int | None:
        return None

    def leaseholder_hint(self, range_id: int) -> StoreId | None:
        return None

    def oracle_mark(self) -> Timestamp:
        return MIN_TIMESTAMP

    async def raise_mark(self, request: RaiseMarkRequest) -> RaiseMarkReply:
        raise AssertionError


def test_each_request_fails_at_its_own_deadline_whoever_asks_for_it() -> None:
    """Rounds are shared: a request must not wait for the rounds of others first, and then for its own."""
    took: list[tuple[float, float]] = []

    async def main() -> None:
        clock, network, there = SimClock(), SimNetwork(random.Random(1)), Address("10.0.0.2", 1)
        listener = await network.host("there").listen(there)
        peers = Peers(network.host("here"), clock, address_of=lambda _: there)
        cache = RangeCache()
        replica = ReplicaDescriptor(ReplicaId(1), NodeId(2), StoreId(2))
        cache.update(RangeDescriptor(SYSTEM_RANGE, KEY_MIN, SYSTEM_END, 1, (replica,), ReplicaId(2)), StoreId(2))
        oracle = OracleClient(node_id=NodeId(1), issuer=Issuer(Elsewhere(), clock), cache=cache, peers=peers, clock=clock)

        async def ask(after_s: float, timeout_s: float) -> None:
            await trio.sleep(after_s)
            began = trio.current_time()
            with pytest.raises(KvError) as caught:
                await oracle.fresh(timeout_s=timeout_s)
            assert isinstance(caught.value.detail, Unavailable)
            took.append((timeout_s, trio.current_time() - began))

        async with trio.open_nursery() as nursery:
            await nursery.start(peers.run)
            async with trio.open_nursery() as requests:
                for number in range(8):
                    requests.start_soon(ask, number * 0.9, 2.0 if number % 3 == 2 else 8.0)
            nursery.cancel_scope.cancel()
        await listener.aclose()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert len(took) == 8
    # A try that had begun may end 1.5 s later, and is swept a moment after.
    assert all(timeout_s - 0.01 <= seconds <= timeout_s + 2 for timeout_s, seconds in took), took
