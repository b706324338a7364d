"""A throttle: what goes through it, goes at so many bytes a second at most, and in the order of asking.

Invariants:
- Over any time t no more than rate × t + one burst is let through.
- Nobody is refused; whoever comes too fast waits.
"""

import trio

from dsdb.env.clock import Clock

BURST_S = 0.1
"""For so long the rate may have been saved up."""
LATE_S = 0.001
"""A loop at rest is back from a pause sooner."""
LATE_TIMES = 4.0
"""So, of the time that requests need, work in the background takes a fifth at most."""
AWAY_S = 0.01
"""For a chunk of 64 KiB: 6 MB/s at most are left on a busy machine."""


class Throttle:
    """One for each kind of traffic of a store."""

    def __init__(self, clock: Clock, bytes_per_s: float) -> None:
        self._clock = clock
        self._free_at = 0.0
        """When all that was let through is paid for."""
        self.bytes_per_s = bytes_per_s
        """May be changed at any time."""
        self.passed = 0
        """Bytes let through so far."""

    async def wait_for(self, size_bytes: int, *, times: float = 1.0) -> None:
        """Wait until so many bytes may pass, at `times` the rate; a checkpoint in any case."""
        now = self._clock.now()
        self._free_at = max(self._free_at, now - BURST_S) + size_bytes / (self.bytes_per_s * times)
        self.passed += size_bytes
        if self._free_at > now:
            await trio.sleep(self._free_at - now)
        else:
            await trio.lowlevel.checkpoint()


async def give_way(clock: Clock, began: float) -> None:
    """Pause for as long as the work took that began then, and longer where others wait; a checkpoint in any case.

    Work in slices would else have every other turn of the loop: a request that takes five turns would wait for five slices.  So it has at
    most half of the loop.  A loop that comes back late from the pause has other work, or no processor to do it with: then the pause is
    LATE_TIMES as long as it was late, but AWAY_S at most, as the work must come to an end on a busy machine, too.
    """
    now = clock.now()
    until = max(now, 2 * now - began)
    await trio.sleep(until - now)
    late_s = clock.now() - until
    if late_s > LATE_S:
        await trio.sleep(min(late_s * LATE_TIMES, AWAY_S))
