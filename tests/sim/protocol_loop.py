"""The event heap under the protocol simulator: trio's tasks, run by a loop that has no clock, no sockets and no threads.

    runnable tasks ─▶ run        none ─▶ the next event of the heap, or the next deadline of a task ─▶ time jumps there

Production code waits by trio's primitives (sleeps, events, scopes, nurseries); the network and the faults are plain calls in the heap.
In place of epoll stands the heap: a wait for I/O is where time passes.  A turn of the loop costs a few microseconds, so a cluster that
rests costs nothing, and one at work what its own code costs.

Invariants:
- Time moves only when nothing is runnable, and only to the next thing that was asked for.
- Same seed, same order: ties in the heap go by the order of their making, tasks are shuffled by the seed.
- A frozen host's tasks take no step, whatever their time says; nobody else notices.
"""

import atexit
import gc
import heapq
import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio._core._run as trio_run

FOREVER_S = 10_000.0
"""Nothing waits so long: a run whose next event is further away hangs."""
RUNS_KEPT = 4
"""What so many runs leave is freed at a time: looking for it takes a while."""


class EventHeap:
    """Calls to be made, by time; and the time itself."""

    def __init__(self) -> None:
        self.now = 0.0
        """Seconds since the start of the run."""
        self._calls: list[tuple[float, int, Callable[[], object]]] = []
        self._made = 0
        self.events = 0
        self.failure: BaseException | None = None
        """What a call has raised, which ends the run."""
        self.scope: trio.CancelScope | None = None
        """Around the program."""

    def after(self, delay_s: float, call: Callable[[], object]) -> None:
        """Have a call made so much later; it must not wait."""
        self._made += 1
        # Whole microseconds, so that ties happen.
        heapq.heappush(self._calls, (round(self.now + delay_s, 6), self._made, call))

    def next_at(self) -> float:
        """Give the time of the first call."""
        return self._calls[0][0] if self._calls else math.inf

    def run_due(self) -> None:
        """Make the calls whose time has come."""
        calls, now = self._calls, self.now
        while calls and calls[0][0] <= now:
            self.events += 1
            call = heapq.heappop(calls)[2]
            try:
                call()
            except BaseException as error:  # the root of calls: it is raised again by `run`
                self.failure = self.failure or error
                assert self.scope is not None, "calls are made while the program runs"
                self.scope.cancel()
                return


class _HeapClock(trio.abc.Clock):
    def __init__(self, heap: EventHeap) -> None:
        self._heap = heap
        self.next_deadline = math.inf

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._heap.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        # The loop hands on the difference only, which rounding would keep from ever reaching the deadline.
        self.next_deadline = deadline
        return deadline - self._heap.now


class _HeapIO:
    """Stands where trio has epoll."""

    def __init__(self, heap: EventHeap, clock: _HeapClock) -> None:
        self._heap = heap
        self._clock = clock
        self._reader: trio.lowlevel.Task | None = None
        """Trio's own task that hands on what came from outside of tasks."""

    def get_events(self, timeout: float) -> tuple[()]:
        heap, runner = self._heap, trio_run.GLOBAL_RUN_CONTEXT.runner
        if timeout <= 0 or runner.waiting_for_idle:
            return ()
        if runner.entry_queue.queue and self._reader is not None:
            task, self._reader = self._reader, None
            trio.lowlevel.reschedule(task)
            return ()
        deadline = self._clock.next_deadline
        while not runner.runq:
            at = heap.next_at()
            if at > deadline:
                break
            if at - heap.now > FOREVER_S:
                raise AssertionError(f"nothing happens any more at {heap.now:.3f} s")
            heap.now = max(at, heap.now)
            heap.run_due()
            # What the calls did may have brought a nearer deadline, of a task that runs already.
            deadline = min(deadline, runner.deadlines.next_deadline())
        else:
            return ()
        if deadline - heap.now > FOREVER_S:
            raise AssertionError(f"nothing happens any more at {heap.now:.3f} s")
        heap.now = max(deadline, heap.now)
        return ()

    def process_events(self, _: tuple[()]) -> None:
        pass

    def force_wakeup(self) -> None:
        pass

    def statistics(self) -> None:
        pass

    def close(self) -> None:
        pass

    async def wait_readable(self, _: object) -> None:
        """Wait until something has come from outside of tasks: the end of the run does, and of asynchronous generators."""
        self._reader = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._reader = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)


class Freezer(deque[Any]):
    """The queue of runnable tasks, of which those of frozen hosts are kept aside; hosts are known by the tasks at their roots."""

    def __init__(self) -> None:
        super().__init__()
        self._frozen: dict[int, tuple[Any, list[Any]]] = {}
        """By `id`, which decides no order: a host's root task, and its tasks that would run."""

    def append(self, task: Any) -> None:
        if self._frozen and (kept := self._kept_aside(task)) is not None:
            kept.append(task)
        else:
            super().append(task)

    def _kept_aside(self, task: Any) -> list[Any] | None:
        while task is not None:
            if id(task) in self._frozen:
                return self._frozen[id(task)][1]
            task = None if task.parent_nursery is None else task.parent_nursery.parent_task
        return None

    def freeze(self, root: Any) -> None:
        """Let no task of a host take a step until it is thawed."""
        self._frozen[id(root)] = (root, [])
        tasks = list(self)
        self.clear()
        for task in tasks:
            self.append(task)

    def thaw(self, root: Any) -> None:
        """Let a host go on; nothing if it is not frozen."""
        _, tasks = self._frozen.pop(id(root), (None, []))
        for task in tasks:
            self.append(task)


def freezer() -> Freezer:
    """Give the queue of the run."""
    runner = trio_run.GLOBAL_RUN_CONTEXT.runner
    if not isinstance(runner.runq, Freezer):
        queue = Freezer()
        queue.extend(runner.runq)
        runner.runq = queue
    return runner.runq


def run(heap: EventHeap, main: Callable[[], Awaitable[object]], seed: int) -> None:
    """Run a program on a heap.  Raises what it raises, or what a call has raised."""

    async def program() -> None:
        with trio.CancelScope() as heap.scope:
            await main()

    clock = _HeapClock(heap)
    before = trio_run.TheIOManager, trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    trio_run.TheIOManager = lambda: _HeapIO(heap, clock)  # type: ignore[assignment,misc]
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    trio_run._r.seed(seed)
    # Modules are looked at once, and what a run leaves is freed after it: collecting meanwhile would take a tenth of the time.
    if not gc.get_freeze_count():
        gc.collect()
        gc.freeze()
        atexit.register(gc.unfreeze)
    gc.disable()
    try:
        trio.run(program, clock=clock)
    finally:
        gc.enable()
        if seed % RUNS_KEPT == 0:
            gc.collect()
        trio_run.TheIOManager, trio_run._ALLOW_DETERMINISTIC_SCHEDULING = before  # type: ignore[misc]
    if heap.failure is not None:
        raise heap.failure
