"""Waiting for something that another task will bring: one slot, one task, one wake-up; and the sweep of those that waited too long.

Invariants:
- A waiter is settled once; later attempts are ignored.  So it may be both answered and swept.
- Cancelling the task that waits changes nothing for whoever settles.
"""

from collections import deque
from typing import Generic, TypeVar

import outcome
import trio

from dsdb.kv.errors import KvError, KvErrorDetail

T = TypeVar("T")


class Waiter(Generic[T]):
    """A value to come."""

    __slots__ = ("_outcome", "_task")

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        """The task that is parked in `wait`."""
        self._outcome: outcome.Value[T] | outcome.Error | None = None

    @property
    def is_settled(self) -> bool:
        """Say whether the value, or the error, is there."""
        return self._outcome is not None

    def settle(self, value: T) -> None:
        """Give the value."""
        self._finish(outcome.Value(value))

    def fail(self, detail: KvErrorDetail) -> None:
        """Give an error instead."""
        self._finish(outcome.Error(KvError(detail)))

    def _finish(self, result: "outcome.Value[T] | outcome.Error") -> None:
        if self._outcome is not None:
            return
        self._outcome = result
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    async def wait(self) -> T:
        """Give the value once it is there; raise the error.  Called once."""
        if self._outcome is None:
            self._task = trio.lowlevel.current_task()

            def abort(_: object) -> trio.lowlevel.Abort:
                # A task whose park was cancelled must never be rescheduled.
                self._task = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        assert self._outcome is not None
        return self._outcome.unwrap()


class Deadlines:
    """Waiters that are failed when they waited as long as their kind may."""

    def __init__(self) -> None:
        self._queues: dict[float, deque[tuple[float, Waiter[object], KvErrorDetail]]] = {}
        """By length of the wait, as all of one length end in the order in which they began."""

    def add(self, waiter: "Waiter[T]", now: float, wait_s: float, detail: KvErrorDetail) -> None:
        """Fail a waiter with `detail` unless it is settled within `wait_s`."""
        queue = self._queues.get(wait_s)
        if queue is None:
            queue = self._queues[wait_s] = deque()
        while queue and queue[0][1].is_settled:
            queue.popleft()
        queue.append((now + wait_s, waiter, detail))  # type: ignore[arg-type]  # only its failing is used

    @property
    def is_waited_for(self) -> bool:
        """Say whether somebody may still be waiting."""
        return any(self._queues.values())

    def sweep(self, now: float) -> None:
        """Fail those whose time is over."""
        for queue in self._queues.values():
            while queue and (queue[0][0] <= now or queue[0][1].is_settled):
                _, waiter, detail = queue.popleft()
                waiter.fail(detail)
