"""Event-loop lag: how much later than asked the loop wakes a sleeper, as a metric and for /health.

A loop that lags answers nobody, leads no range for long, and is the first thing to look at when a node is slow.
"""

from collections import deque

import trio

INTERVAL_S = 0.25
"""Between two samples."""
SAMPLES_MAX = 240
"""One minute of samples."""


class LoopLag:
    """Measures the lag of the loop that runs it."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=SAMPLES_MAX)
        self.worst_s = 0.0
        self.checked_at = trio.current_time()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take samples, for ever."""
        task_status.started()
        while True:
            asked = trio.current_time() + INTERVAL_S
            await trio.sleep_until(asked)
            self.checked_at = trio.current_time()
            lag = self.checked_at - asked
            self._samples.append(lag)
            self.worst_s = max(self.worst_s, lag)

    def quantile(self, share: float) -> float:
        """Give a quantile of the last minute's lags, in seconds; 0 before the first sample."""
        ordered = sorted(self._samples)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0
