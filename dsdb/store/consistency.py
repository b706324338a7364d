"""Consistency: the replicas of a range are summed up at one place of its log, and compared; whoever most others contradict is found out.

    leaseholder: ChecksumCommand ─▶ log ─▶ each replica, once it has applied it: engine snapshot ─▶ summed up in slices, throttled
                     ▲                                                                                   │ ChecksumReport, in a frame
                     └── `judge`: wrong ones are told to go out of service (`repairing`); no majority: an alarm ◀──┘

A pass looks at all ranges led here that have changed since they were checked, spread over `check_interval_s`.

Invariants:
- What is compared is of one applied index; a report that does not come says nothing about its replica.
- Nothing is taken out of service by this but what a majority of all voters contradicts, or what cannot be read.
- A range in which nothing was applied since its last whole check costs nothing.
- No engine snapshot outlives the check that it was made for, or the store.
"""

import logging
from collections import deque
from typing import NoReturn

import msgspec
import trio

from dsdb.kv.descriptor import RangeDescriptor
from dsdb.kv.errors import KvError, KvErrorDetail, RangeNotFound
from dsdb.kv.ids import NodeId, RangeId, StoreId
from dsdb.raft.messages import ReplicaId
from dsdb.storage.engine.port import EngineSnapshot
from dsdb.storage.errors import StorageError
from dsdb.store.checksum import RangeSum, judge
from dsdb.store.command import ChecksumCommand
from dsdb.store.context import StoreContext
from dsdb.store.frame import ChecksumReport
from dsdb.store.loop import RaftLoop
from dsdb.store.repairing import Repairing
from dsdb.store.replica import Replica
from dsdb.store.throttle import Throttle
from dsdb.store.waiter import Waiter

log = logging.getLogger("dsdb.store")

JOBS_MAX = 8
"""Replicas that wait to be summed up at a store, each with an engine snapshot; more are not looked at this time."""
PATIENCE_S = 15.0
"""How long reports are waited for, besides the time that reading takes at the rate of `check_bytes_per_s`."""
QUEUE_FACTOR = 4.0
"""By so much reading may take longer, as other ranges' checks are before it."""
URGENT_TIMES = 8.0
"""An urgent check reads so many times faster than the rate allows."""
PAUSE_MAX_S = 5.0
"""A change of the interval is seen so soon."""
LOOKS = 24
"""Looks for changed ranges in one interval, if there are none."""


class ReplicaCheck(msgspec.Struct, frozen=True, array_like=True):
    """What a check found of one replica."""

    node_id: NodeId
    store_id: StoreId
    problem: str = ""
    """Empty: it agrees, or nothing is known against it."""
    is_silent: bool = False
    """It did not answer: nothing is known of it."""


class RangeCheck(msgspec.Struct, frozen=True, array_like=True):
    """What a check found of a range."""

    range_id: RangeId
    index: int
    """Of the log, at which the replicas were compared."""
    replicas: tuple[ReplicaCheck, ...]
    is_undecided: bool = False
    """Replicas differ, and no majority says who is right."""


class ReplicaCopy(msgspec.Struct, frozen=True, array_like=True):
    """A replica that is on a store, as it describes itself."""

    descriptor: RangeDescriptor
    replica_id: ReplicaId
    leads: bool
    damage: str | None = None


class _Collection:
    """The reports of a check that is under way."""

    def __init__(self, expected: set[ReplicaId]) -> None:
        self.expected = expected
        self.reports: dict[ReplicaId, ChecksumReport] = {}
        self.waiter: Waiter[None] = Waiter()

    def take(self, report: ChecksumReport) -> None:
        self.reports[report.replica_id] = report
        if self.expected <= self.reports.keys():
            self.waiter.settle(None)


class _Job:
    """A replica that is to be summed up."""

    __slots__ = ("command", "replica", "snapshot")

    def __init__(self, replica: Replica, command: ChecksumCommand, snapshot: EngineSnapshot) -> None:
        self.replica = replica
        self.command = command
        self.snapshot = snapshot


class Consistency:
    """One for each store."""

    def __init__(
        self,
        context: StoreContext,
        replicas: dict[RangeId, Replica],
        loop: RaftLoop,
        repairing: Repairing,
    ) -> None:
        self._context = context
        self._replicas = replicas
        self._loop = loop
        self._repairing = repairing
        self.throttle = Throttle(context.clock, context.config.check_bytes_per_s)
        self.interval_s = context.config.check_interval_s
        """May be changed at any time, like the throttle's rate."""
        self._jobs: deque[_Job] = deque()
        self._job_waiter: Waiter[None] | None = None
        self._collections: dict[int, _Collection] = {}
        self.checks = 0
        """Finished, of ranges led here."""
        self.mismatches = 0
        """Of them with a replica that differs."""
        self.alarms = 0
        """Of those without a majority."""

    # ---- Every replica: summing up ----

    def on_checksum(self, replica: Replica, command: ChecksumCommand) -> None:
        """Freeze a replica that has just applied the command, to be summed up; called between turns' writes."""
        problem = replica.damage or ("" if len(self._jobs) < JOBS_MAX else "it has too many ranges to check")
        if problem:
            self._report(replica, command, b"", problem)
            return
        self._jobs.append(_Job(replica, command, self._context.engine.snapshot()))
        if self._job_waiter is not None:
            self._job_waiter.settle(None)
            self._job_waiter = None

    async def run(self) -> None:
        """Sum up, and have passes, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_jobs)
                nursery.start_soon(self._run_passes)
        finally:
            for job in self._jobs:
                job.snapshot.release()
            self._jobs.clear()

    async def _run_jobs(self) -> NoReturn:
        while True:
            if not self._jobs:
                self._job_waiter = Waiter()
                await self._job_waiter.wait()
                continue
            job = self._jobs.popleft()
            try:
                digest = await self._sum_up(job)
            except StorageError as error:
                self._repairing.unreadable(job.replica.range_id, error)
                self._report(job.replica, job.command, b"", f"it cannot be read: {error}")
            else:
                self._report(job.replica, job.command, digest, "")
            finally:
                job.snapshot.release()

    async def _sum_up(self, job: _Job) -> bytes:
        times = URGENT_TIMES if job.command.is_urgent else 1.0
        made = RangeSum(job.snapshot, job.replica.keys)
        for size in made.slices():
            await self.throttle.wait_for(size, times=times)
        return made.digest()

    def _report(self, replica: Replica, command: ChecksumCommand, digest: bytes, problem: str) -> None:
        report = ChecksumReport(command.check, replica.range_id, replica.replica_id, digest, problem)
        if command.collector == self._context.store_id:
            self.receive((report,))
        else:
            self._loop.outbox.report_checksum(command.collector, report)
            self._loop.schedule()

    # ---- The leaseholder: comparing ----

    def receive(self, reports: tuple[ChecksumReport, ...]) -> None:
        """Take what replicas found."""
        for report in reports:
            collection = self._collections.get(report.check)
            if collection is not None:
                collection.take(report)

    async def check(self, range_id: RangeId, *, is_urgent: bool = False) -> RangeCheck:
        """Compare the replicas of a range led here, and have wrong ones taken out of service.  Raises KvError."""
        replica = self._replicas.get(range_id)
        if replica is None:
            raise KvError(RangeNotFound(range_id))
        replica.require_lease()
        context = self._context
        voters = replica.descriptor.voters
        now = context.clock.now()
        expected = {
            voter.replica_id
            for voter in voters
            if voter.store_id == context.store_id or context.liveness.supported_until(voter.store_id) > now
        }
        number = context.chance.getrandbits(62)
        collection = self._collections[number] = _Collection(expected)
        reading_s = replica.machine.applied.size_bytes / self.throttle.bytes_per_s
        try:
            command = ChecksumCommand(replica.lease_term, number, context.store_id, is_urgent)
            reply = await replica.propose(command, None).wait()
            with trio.move_on_after(PATIENCE_S + QUEUE_FACTOR * reading_s):
                await collection.waiter.wait()
        finally:
            del self._collections[number]
        return self._conclude(replica, reply.index, collection.reports)  # type: ignore[union-attr]  # it is a ChecksumReply

    def _conclude(self, replica: Replica, index: int, reports: dict[ReplicaId, ChecksumReport]) -> RangeCheck:
        """Say what the reports show, and act upon it."""
        voters = replica.descriptor.voters
        ids = {voter.replica_id for voter in voters}
        digests = {report.replica_id: report.digest for report in reports.values() if report.digest and report.replica_id in ids}
        wrong, is_undecided = judge(len(voters), digests)
        found = []
        for voter in voters:
            report = reports.get(voter.replica_id)
            problem = "" if report is None else report.problem
            if voter.replica_id in wrong:
                agreeing = len(digests) - len(wrong)
                problem = f"its content differs from that of {agreeing} of {len(voters)} replicas at index {index}"
                self._repairing.accuse(replica, voter.replica_id, problem)
            elif is_undecided and voter.replica_id in digests:
                problem = f"replicas differ at index {index}, and no majority says who is right"
            found.append(ReplicaCheck(voter.node_id, voter.store_id, problem, report is None))
        self.checks += 1
        self.mismatches += bool(wrong) or is_undecided
        if is_undecided:
            self.alarms += 1
            sums = ", ".join(f"store {voter.store_id}: {digests.get(voter.replica_id, b'').hex() or 'unknown'}" for voter in voters)
            log.error("range %d: its replicas differ at index %d, and no majority says who is right (%s)", replica.range_id, index, sums)
        if len(digests) < len(voters) or wrong or is_undecided:
            replica.machine.is_checked = False
        return RangeCheck(replica.range_id, index, tuple(found), is_undecided)

    def copies(self, above: int, count_max: int) -> list[ReplicaCopy]:
        """Describe the replicas here whose range ids lie above one, ascending; so many at most."""
        ids = sorted(range_id for range_id in self._replicas if range_id > above)[:count_max]
        return [ReplicaCopy(one.descriptor, one.replica_id, one.is_leader, one.damage) for one in map(self._replicas.__getitem__, ids)]

    # ---- Passes ----

    def _unchecked(self) -> list[RangeId]:
        """Give the ranges led here in which something was applied since their last check, and all that are led here."""
        now = self._context.clock.now()
        return [
            range_id
            for range_id, replica in sorted(self._context.led.items())
            if not replica.machine.is_checked and replica.holds_lease(now)
        ]

    async def _run_passes(self) -> NoReturn:
        """Check what has changed, with pauses of one length, so that a pass takes the interval."""
        while True:
            waiting = self._unchecked()
            if not waiting:
                await self._pause(1 / LOOKS)
                continue
            for range_id in waiting:
                await self._pause(1 / len(waiting))
                try:
                    await self.check(range_id)
                except KvError as error:
                    log.info("range %d: not checked: %s", range_id, _said(error.detail))


    async def _pause(self, part: float) -> None:
        """Wait for a part of the interval, which may be set anew meanwhile."""
        clock = self._context.clock
        began = clock.now()
        while (left_s := began + self.interval_s * part - clock.now()) > 0:  # noqa: ASYNC110 (nothing says that time has passed)
            await trio.sleep(min(left_s, PAUSE_MAX_S))


def _said(detail: KvErrorDetail) -> str:
    return str(getattr(detail, "reason", detail))
