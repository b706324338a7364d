"""ports_steering.ClusterSteering of one node that does nothing by itself: it remembers what it was told."""

import trio

from dsdb.sql.ports_steering import ImportEnd, JobInfo, RefusedError, Scattered, StoreInfo
from dsdb.storage.keys import Span


class LocalImport:
    """An import that tells nobody, but of its end."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.scope = trio.CancelScope()
        self.rows = 0
        self.ended: ImportEnd | None = None

    def note(self, rows: int) -> None:
        self.rows += rows

    async def settle(self) -> None:
        assert self.ended is None

    def end(self, state: ImportEnd, why: str = "") -> None:
        self.ended = self.ended or state


class LocalSteering:
    """One node, 1, with one store."""

    def __init__(self) -> None:
        self.states = {1: "active"}
        self.values: dict[str, float] = {}
        self.doing: list[JobInfo] = []
        self.imports: list[LocalImport] = []

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

    def begin_import(self, what: str) -> LocalImport:
        self.imports.append(LocalImport(what))
        return self.imports[-1]

    async def cancel_job(self, job_id: int) -> None:
        raise RefusedError(f"there is no import with the job id {job_id}: SHOW JOBS has them")

    async def settings(self) -> dict[str, float]:
        return self.values

    async def change_setting(self, name: str, value: float | None) -> None:
        self.values.pop(name, None)
        if value is not None:
            self.values[name] = value
