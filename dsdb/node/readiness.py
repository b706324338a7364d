"""Whether the node can serve statements now, for /health: it can if it gets timestamps, without which there is neither read nor commit.

    HTTP thread   problem() ─ known for a second at most? ─▶ answer
                              else ask the loop, wait a moment ─▶ answer with what is known then
    event loop    run ─ asked ─▶ one timestamp from the oracle ─▶ None, or why not

The oracle answers only where the system range has a quorum and a lease, so its answer speaks for both.

Invariants:
- However many probes come, one check runs at a time, and at most one in `CHECK_AGE_MAX_S`; while all is well and nobody asks, none does.
- A fail-over, which takes less than `UNREACHABLE_S`, is no problem.
"""

import threading

import trio

from dsdb.env import Clock
from dsdb.kv.errors import KvError
from dsdb.oracle import OracleClient

CHECK_AGE_MAX_S = 1.0
"""What was found out this long ago at most is still told."""
UNREACHABLE_S = 3.0
"""An oracle that gives no timestamp for this long is a problem."""
PROBE_WAIT_S = 0.5
"""How long a probe waits for a check: well below a second, after which the usual probes give up."""


class Readiness:
    """Finds out whether the node can serve, when somebody asks."""

    def __init__(self, oracle: OracleClient, clock: Clock) -> None:
        self._oracle = oracle
        self._clock = clock
        self._token: trio.lowlevel.TrioToken | None = None
        """Of the loop that runs the checks; None before it does."""
        self._wanted = trio.Event()
        self._problem: str | None = "the node is starting"
        self._is_checking = False
        self._ended_at = float("-inf")
        """When the last check ended, by the clock."""
        self._next_end = threading.Event()
        """Set when the check ends that runs, or else the next one."""
        self._is_stopping = False
        self._refusal: str | None = None
        """Why the node takes no new sessions, though it goes on."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Check until the first success, and then whenever it is asked for; for ever."""
        self._token = trio.lowlevel.current_trio_token()
        task_status.started()
        while True:
            self._wanted = trio.Event()
            await self._check()
            if self._problem is None:
                await self._wanted.wait()
            else:
                await trio.sleep(CHECK_AGE_MAX_S)

    def stop(self) -> None:
        """Note that the node takes no new sessions any more."""
        self._is_stopping = True

    def refuse(self, reason: str | None) -> None:
        """Note why the node takes no new sessions; None: it does."""
        self._refusal = reason

    def problem(self) -> str | None:
        """Give why the node cannot serve, None if it can.  Called from the HTTP thread, which waits a moment if it must."""
        token, asked_at, end = self._token, self._clock.now(), self._next_end
        if token is not None and not self._is_stopping and asked_at - self._ended_at > CHECK_AGE_MAX_S:
            try:
                token.run_sync_soon(self._want)
            except trio.RunFinishedError:
                return "the node has stopped"
            if not end.wait(PROBE_WAIT_S) and not self._is_checking and self._ended_at < asked_at:
                return "the node's event loop does not answer"
        return "the node is stopping" if self._is_stopping else self._refusal or self._problem

    def _want(self) -> None:
        if not self._is_checking:
            self._wanted.set()

    async def _check(self) -> None:
        self._is_checking = True
        try:
            await self._oracle.fresh(timeout_s=UNREACHABLE_S)
            self._problem = None
        except KvError as error:
            self._problem = f"the oracle cannot be reached: {error}"
        finally:
            self._ended_at, self._is_checking = self._clock.now(), False
            end, self._next_end = self._next_end, threading.Event()
            end.set()
