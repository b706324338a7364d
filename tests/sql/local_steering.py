"""ports_steering.ClusterSteering of one node that does nothing by itself: it remembers what it was told."""

from dsdb.sql.ports_steering import JobInfo, RefusedError, Scattered, StoreInfo
from dsdb.storage.keys import Span


class LocalSteering:
    """One node, 1, with one store."""

    def __init__(self) -> None:
        self.states = {1: "active"}
        self.values: dict[str, float] = {}
        self.doing: list[JobInfo] = []

    async def set_node_state(self, node_id: int, state: str) -> None:
        if node_id not in self.states:
            raise RefusedError(f"there is no node {node_id}: the nodes are 1")
        self.states[node_id] = state

    async def scatter(self, span: Span | None, range_id: int | None) -> Scattered:
        if range_id is not None and range_id > 1:
            raise RefusedError(f"there is no range {range_id}")
        return Scattered(0, 0)

    async def stores(self) -> list[StoreInfo]:
        return [
            StoreInfo(
                store_id=1,
                node_id=1,
                liveness="live",
                silence_s=0.0,
                replicas=1,
                leases=1,
                used_bytes=1000,
                capacity_bytes=None,
                requests_per_s=0.5,
            )
        ]

    async def jobs(self) -> list[JobInfo]:
        return self.doing

    async def settings(self) -> dict[str, float]:
        return self.values

    async def change_setting(self, name: str, value: float | None) -> None:
        self.values.pop(name, None)
        if value is not None:
            self.values[name] = value
