"""Time: a steady clock that runs through suspend, for durations, and the wall clock, for the oracle's physical part only."""

import time
from typing import Protocol


class Clock(Protocol):
    """What a node knows of time."""

    def now(self) -> float:
        """Give seconds from some fixed point; never goes back, runs while the machine sleeps, may drift a little."""

    def wall_ms(self) -> int:
        """Give milliseconds since the Unix epoch; may jump either way."""


class SystemClock:
    """The machine's clocks.  Where CLOCK_BOOTTIME is missing (not Linux), the monotonic clock stands in."""

    def __init__(self) -> None:
        self._clock_id: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)

    def now(self) -> float:
        """Give seconds since boot."""
        return time.clock_gettime(self._clock_id)

    def wall_ms(self) -> int:
        """Give the machine's time of day."""
        return time.time_ns() // 1_000_000
