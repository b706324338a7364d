"""What statements that steer the cluster ask of the node: states of nodes, scattering, settings, jobs."""

from typing import Protocol

import msgspec

from dsdb.sql.ports import PortError
from dsdb.storage.keys import Span


class RefusedError(PortError):
    """What was asked for makes no sense; the message is a sentence."""


class StoreInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A store, for people.  liveness: live, suspect or dead; capacity_bytes: that it may fill, None if it is in memory."""

    store_id: int
    node_id: int
    liveness: str
    silence_s: float
    replicas: int
    leases: int
    used_bytes: int
    capacity_bytes: int | None
    requests_per_s: float


class JobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Something that the cluster is doing, for people.

    kind: replicas, lease, split, drain, decommission or drop; started_us: wall clock of the node that does it, None if that is not known;
    left: how much is to be done still, in `unit`.
    """

    kind: str
    range_id: int | None
    node_id: int | None
    what: str
    started_us: int | None
    left: int | None
    unit: str | None


class Scattered(msgspec.Struct, frozen=True, array_like=True):
    """A step of scattering.  begun: moves that it began; left: ranges that wait for a later step."""

    begun: int
    left: int


class ClusterSteering(Protocol):
    """Steers the cluster.  Raises PortError; RefusedError with a sentence."""

    async def set_node_state(self, node_id: int, state: str) -> None:
        """Say what is wanted of a node; it is done later."""

    async def scatter(self, span: Span | None, range_id: int | None) -> Scattered:
        """Begin to spread the ranges of a span, or one range, evenly over the nodes."""

    async def stores(self) -> list[StoreInfo]:
        """Describe the stores, by id."""

    async def jobs(self) -> list[JobInfo]:
        """Describe what is being done."""

    async def settings(self) -> dict[str, float]:
        """Give the cluster's settings that are set, by name."""

    async def change_setting(self, name: str, value: float | None) -> None:
        """Set a setting of the cluster, or (None) let its default hold again."""
