"""Imports as jobs: what rows are on their way into tables, at which node, how far they are, and how they ended.

    COPY at a node ─▶ LiveImport ─ every BEAT_S ─▶ 03 "import" job id ─▶ ImportRow        the newest KEPT_MAX are kept
    CANCEL JOB     ─▶ 03 "import_cancel" job id ─▶ seen with the next beat ─▶ its scope is cancelled

Invariants:
- What a row says is no part of the import: its transaction alone decides whether its rows are there.
- Before an import may commit its row says so (`settle`): one whose beats end while it says `running` has left nothing, for good.
- An import that ends before its first beat writes nothing; a node without imports neither.

Beats are timestamps of the oracle: nobody's clock is compared with another's.
"""

import logging

import msgspec
import trio

from dsdb.env import Clock
from dsdb.kv.ids import NodeId
from dsdb.sql.errors import SqlError
from dsdb.sql.ports import AmbiguousCommitError, PortError, RangeUnavailableError
from dsdb.sql.ports_steering import ImportEnd, JobInfo, RefusedError
from dsdb.storage.keys import decode_id, prefix_span, system_key
from dsdb.storage.timestamp import Timestamp, from_milliseconds
from dsdb.txn import TransactionFactory

log = logging.getLogger("dsdb.jobs")

BEAT_S = 2.0
"""Between two looks of a node at its imports: for so long a cancellation may wait."""
SILENT_S = 15.0
"""After so long without a beat an import is taken to have ended with its node."""
KEPT_MAX = 100
"""Imports that are remembered."""
TRIES = 10
PAUSE_S = 0.2
_NODES = 1000
"""Job ids are milliseconds since the epoch times this, and the node's id: later ones are greater, and nobody has to be asked."""

RUNNING, COMMITTING, UNKNOWN = "running", "committing", "unknown"
_PREFIX, _WISH_PREFIX = system_key("import"), system_key("import_cancel")


class ImportRow(msgspec.Struct, frozen=True, array_like=True):
    """An import, as its node last said.  ended_ms: 0 while it goes on."""

    node_id: int
    what: str
    state: str
    rows: int
    began_ms: int
    ended_ms: int
    beat: Timestamp
    why: str


_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(ImportRow).decode


class LiveImport:
    """An import of this node; implements `dsdb.sql.ports_steering.ImportJob`."""

    def __init__(self, owner: "Imports", job_id: int, what: str, began_ms: int) -> None:
        self._owner = owner
        self.job_id = job_id
        self.what = what
        self.began_ms = began_ms
        self.ended_ms = 0
        self.state = RUNNING
        self.why = ""
        self.rows = 0
        self.scope = trio.CancelScope()
        self.has_row = False

    def note(self, rows: int) -> None:
        """Count rows that have come."""
        self.rows += rows

    async def settle(self) -> None:
        """Say that what comes next is the commit.  Raises RangeUnavailableError."""
        self.state = COMMITTING
        if self.has_row:
            await self._owner.say_now()

    def end(self, state: ImportEnd, why: str = "") -> None:
        """Say how it ended; only the first time counts."""
        if not self.ended_ms:
            self.state, self.why = state.value, why
            self.ended_ms = self._owner.now_ms()
            self._owner.note_end(self)


class Imports:
    """The imports of one node, and what it knows of those of others."""

    def __init__(self, *, node_id: NodeId, transactions: TransactionFactory, clock: Clock) -> None:
        self._node_id = node_id
        self._transactions = transactions
        self._clock = clock
        self._live: dict[int, LiveImport] = {}
        self._wakeup = trio.Event()
        self._ended = trio.Event()
        self._saying = trio.Lock()
        self._last_id = 0
        self.now_ms = clock.wall_ms

    def begin(self, what: str) -> LiveImport:
        """Begin an import at this node."""
        now_ms = self.now_ms()
        self._last_id = max(now_ms * _NODES + self._node_id % _NODES, self._last_id + _NODES)
        job = self._live[self._last_id] = LiveImport(self, self._last_id, what, now_ms)
        self._wakeup.set()
        return job

    def note_end(self, job: LiveImport) -> None:
        """Have an ended import told of, if it ever was."""
        if job.has_row:
            self._ended.set()
        else:
            del self._live[job.job_id]

    # ---- Saying how they are ----

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Say so with every beat, for ever."""
        task_status.started()
        while True:
            if not self._live:
                self._wakeup = trio.Event()
                await self._wakeup.wait()
            with trio.move_on_after(BEAT_S):
                await self._ended.wait()
            self._ended = trio.Event()
            try:
                await self._say()
            except (PortError, SqlError) as error:
                log.info("imports could not be told of: %s", error)
                await trio.sleep(PAUSE_S)
                self._ended.set()

    async def say_now(self) -> None:
        """Have what this node's imports are known to be.  Raises RangeUnavailableError."""
        for _ in range(TRIES):
            try:
                await self._say()
                return
            except (PortError, SqlError) as error:
                failure = str(error)
            await trio.sleep(PAUSE_S)
        raise RangeUnavailableError(f"the job cannot be told of: {failure}")

    async def _say(self) -> None:
        async with self._saying:
            jobs = list(self._live.values())
            if not jobs:
                return
            is_new = not all(job.has_row for job in jobs)
            for job in jobs:
                job.has_row = True
            txn = self._transactions.begin()
            beat = await txn.read_timestamp()
            wished = {_number(key) for key, _ in await txn.scan(prefix_span(_WISH_PREFIX), limit=KEPT_MAX)}
            said = [(job, job.ended_ms) for job in jobs]
            for job, ended_ms in said:
                row = ImportRow(self._node_id, job.what, job.state, job.rows, job.began_ms, ended_ms, beat, job.why)
                txn.put(system_key("import", job.job_id), _ENCODE(row))
                if ended_ms and job.job_id in wished:
                    txn.delete(system_key("import_cancel", job.job_id))
            if is_new:
                found = [_number(key) for key, _ in await txn.scan(prefix_span(_PREFIX), limit=2 * KEPT_MAX)]
                for number in found[: max(0, len(found) - KEPT_MAX)]:
                    txn.delete(system_key("import", number))
                    txn.delete(system_key("import_cancel", number))
            await txn.commit()
            for job, ended_ms in said:
                if ended_ms:
                    del self._live[job.job_id]
                elif job.job_id in wished and job.state == RUNNING:
                    job.scope.cancel()

    # ---- What statements ask ----

    async def jobs(self) -> list[JobInfo]:
        """Describe the imports of all nodes, the oldest first.  Raises PortError."""
        txn = self._transactions.begin()
        now = await txn.read_timestamp()
        return [_info(_number(key), _DECODE(value), now) for key, value in await txn.scan(prefix_span(_PREFIX), limit=2 * KEPT_MAX)]

    async def cancel(self, job_id: int) -> None:
        """Ask for an import's end.  Raises RefusedError, PortError."""
        for left in reversed(range(TRIES)):
            txn = self._transactions.begin()
            now = await txn.read_timestamp()
            (value,) = await txn.get([system_key("import", job_id)])
            if value is None:
                raise RefusedError(f"there is no import with the job id {job_id}: SHOW JOBS has them")
            info = _info(job_id, _DECODE(value), now)
            if info.state != RUNNING:
                raise RefusedError(f"job {job_id} is {info.state}: only one that is running can be cancelled")
            txn.put(system_key("import_cancel", job_id), b"")
            try:
                await txn.commit()
                return
            except AmbiguousCommitError:
                return  # it may be asked for again
            except PortError:
                # Mostly a beat that came between.
                if not left:
                    raise
            await trio.sleep(PAUSE_S)


def _number(key: bytes) -> int:
    return decode_id(key, len(_PREFIX) if key.startswith(_PREFIX) else len(_WISH_PREFIX))[0]


def _info(job_id: int, row: ImportRow, now: Timestamp) -> JobInfo:
    state, why = row.state, row.why
    if not row.ended_ms and now - row.beat > from_milliseconds(int(SILENT_S * 1000)):
        if state == RUNNING:
            state, why = ImportEnd.FAILED.value, f"node {row.node_id} has stopped, or is cut off: nothing of it stays, begin it again"
        else:
            state, why = UNKNOWN, f"node {row.node_id} stopped, or was cut off, at the commit: all of its rows are there, or none; look"
    return JobInfo(
        kind="import",
        range_id=None,
        node_id=row.node_id,
        what=row.what,
        started_us=row.began_ms * 1000,
        left=None,
        unit="rows",
        job_id=job_id,
        state=state,
        done=row.rows,
        why=why or None,
        ended_us=row.ended_ms * 1000 or None,
    )
