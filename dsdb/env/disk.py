"""The disk thread: the one place where a store's blocking calls (fsync, flush, compaction) leave the event loop.

    loop ── run(engine.sync) ─▶ queue ─▶ thread ── result ─▶ loop

A thread of its own instead of trio's pool: a hop costs 37 µs instead of 74 (measured), and calls run in the order of their making.
Where the system has event files, the task whose call is alone waits on one itself: trio's own way back from a thread takes a turn of the
loop and three system calls more.

A call for which even that is too much may run in the loop itself (`run_promptly`): as long as the disk answers within PROMPT_S, a switch
to the thread and back costs more than the call.

Invariants:
- The loop waits for at most one call that is slow: the next ones go to the thread, until the disk has been fast for some time.
- At most one task waits on the event file; it is read by that task, after its call has ended.
"""

import ctypes
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import outcome
import trio

T = TypeVar("T")

_HAS_EVENT_FILES = sys.platform == "linux"
if _HAS_EVENT_FILES:
    _EVENTFD_WRITE = ctypes.PyDLL(None).eventfd_write
    _EVENTFD_WRITE.argtypes = (ctypes.c_int, ctypes.c_uint64)


class Offload(Protocol):
    """Runs blocking calls out of the event loop's way."""

    async def run(self, call: Callable[[], T]) -> T:
        """Run a call and give its result.  Cancellation waits for the call: what it did is always known."""

    def run_promptly(self, call: Callable[[], object]) -> bool:
        """Run a call here and now, if such calls have been so fast that nobody is kept waiting; False: it was not run, use `run`."""

    def close(self) -> None:
        """Finish what is queued and end."""


class InlineDisk:
    """Runs calls at once in the event loop: for simulation, where time and order belong to the seed."""

    async def run(self, call: Callable[[], T]) -> T:
        """Run the call now, with a checkpoint before."""
        await trio.lowlevel.cancel_shielded_checkpoint()
        return call()

    def run_promptly(self, call: Callable[[], object]) -> bool:
        """Run the call now."""
        call()
        return True

    def close(self) -> None:
        """Nothing is queued."""


PROMPT_S = 0.002
"""A call that takes no longer may keep the event loop waiting."""
PROMPT_CALLS_MIN = 32
"""So many calls in a row must have been prompt before one is made in the loop, and after each that was not."""


class _Job:
    """A call on its way through the thread."""

    __slots__ = ("call", "result", "waiter")

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call = call
        self.result: outcome.Outcome[Any] | None = None
        self.waiter: tuple[trio.lowlevel.TrioToken, trio.lowlevel.Task] | None = None
        """Who is woken by way of its loop; None: whoever waits on the event file."""


class DiskThread:
    """One daemon thread that runs calls in order."""

    def __init__(self, name: str) -> None:
        self._queue: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._in_flight = 0
        self._prompt_calls = 0
        """Calls in a row that were prompt."""
        self._event_file = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if _HAS_EVENT_FILES else -1
        self._is_event_file_free = self._event_file >= 0
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def run(self, call: Callable[[], T]) -> T:
        """Run the call in the thread.  Not cancellable while it runs."""
        job = _Job(call)
        self._in_flight += 1
        try:
            await self._run(job)
        finally:
            self._in_flight -= 1
        assert job.result is not None
        result: T = job.result.unwrap()
        return result

    async def _run(self, job: _Job) -> None:
        if self._is_event_file_free:
            self._is_event_file_free = False
            self._queue.put(job)
            try:
                await self._wait_event_file()
            finally:
                self._is_event_file_free = True
        else:
            job.waiter = trio.lowlevel.current_trio_token(), trio.lowlevel.current_task()
            self._queue.put(job)
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)

    def run_promptly(self, call: Callable[[], object]) -> bool:
        """Run the call here and now, if the last ones were prompt and the thread has nothing to do.

        Through the thread it costs both sides some eight switches, 100 to 200 µs of CPU together, as much as the sync of a small write.
        """
        if self._in_flight or self._prompt_calls < PROMPT_CALLS_MIN:
            return False
        self._time(call)
        return True

    def _time(self, call: Callable[[], T]) -> T:
        began = time.perf_counter()
        try:
            return call()
        finally:
            self._prompt_calls = self._prompt_calls + 1 if time.perf_counter() - began <= PROMPT_S else 0

    async def _wait_event_file(self) -> None:
        try:
            await trio.lowlevel.wait_readable(self._event_file)
        except trio.Cancelled:
            # The call goes on; whoever cancelled is heard at the next checkpoint.
            with trio.CancelScope(shield=True):
                await trio.lowlevel.wait_readable(self._event_file)
        os.eventfd_read(self._event_file)

    def close(self) -> None:
        """End the thread once its queue is empty."""
        self._queue.put(None)
        self._thread.join()
        if self._event_file >= 0:
            os.close(self._event_file)
            self._event_file, self._is_event_file_free = -1, False

    def _signal(self) -> None:
        """Wake who waits on the event file, and keep the GIL.

        `os.eventfd_write` gives it up: the loop takes it, and this thread, which is about to wait for its next job, would first wait for
        it and take it from the loop.
        """
        if _EVENTFD_WRITE(self._event_file, 1) != 0:
            os.eventfd_write(self._event_file, 1)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            job.result = outcome.capture(self._time, job.call)
            if job.waiter is None:
                self._signal()
                continue
            token, task = job.waiter
            try:
                token.run_sync_soon(trio.lowlevel.reschedule, task)
            except trio.RunFinishedError:
                return
