"""What statements that steer the cluster ask of the node: states of nodes, scattering, settings, jobs."""

from enum import Enum
from typing import Protocol

import msgspec
import trio

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

    kind: replicas, lease, split, drain, decommission, drop or import; started_us: wall clock of the node that does it, None if that is
    not known; left: how much is to be done still, done: how much is, in `unit`.  Of imports alone, which stay some time after they
    ended: job_id; state: running, committing, succeeded, failed, cancelled, or unknown; why it is so; ended_us: None while it goes on.
    """

    kind: str
    range_id: int | None
    node_id: int | None
    what: str
    started_us: int | None
    left: int | None
    unit: str | None
    job_id: int | None = None
    state: str = "running"
    done: int | None = None
    why: str | None = None
    ended_us: int | None = None


class ImportEnd(Enum):
    """How an import ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class ImportJob(Protocol):
    """An import that runs, as who runs it sees it.  scope: what CANCEL JOB cancels."""

    scope: trio.CancelScope

    def note(self, rows: int) -> None:
        """Count rows that have come."""

    async def settle(self) -> None:
        """Say that what comes next is the commit, before it does.  Raises PortError."""

    def end(self, state: ImportEnd, why: str = "") -> None:
        """Say how it ended; only the first time counts."""


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

    def begin_import(self, what: str) -> ImportJob:
        """Begin an import at this node; `what` says into which table, for people."""

    async def cancel_job(self, job_id: int) -> None:
        """Ask for an import's end, which comes within seconds."""

    async def settings(self) -> dict[str, float]:
        """Give the cluster's settings that are set, by name."""

    async def change_setting(self, name: str, value: float | None) -> None:
        """Set a setting of the cluster, or (None) let its default hold again."""
