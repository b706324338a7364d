"""A leader that is heard and does not hear."""

import trio
from store_cluster import Cluster, simulate

from dsdb.kv.ids import RangeId

TABLES = RangeId(2)


def test_a_quiet_leader_that_hears_nobody_is_replaced() -> None:
    """Its requests for support arrive: it must stop making them, or the others keep their promises for ever."""

    async def body(cluster: Cluster) -> None:
        await cluster.replicate(TABLES, [2, 3])
        leader = (await cluster.wait_leaseholder(TABLES)).identity.store_id
        await trio.sleep(3)  # by now the group sleeps
        cluster.network.cut |= {(other, leader) for other in cluster.ids if other != leader}
        await cluster.wait_leaseholder(TABLES, timeout_s=4, but=leader)
        assert not cluster.store(leader).holds_lease(TABLES)

    simulate(3, body)
