"""The line of timestamps while the wall clock of its node jumps."""

import pytest
import trio
import trio.testing

from dsdb.kv.ids import StoreId
from dsdb.kv.requests import RaiseMarkReply, RaiseMarkRequest
from dsdb.oracle import Issuer
from dsdb.oracle.issuer import STEP_FACTOR
from dsdb.storage.timestamp import MIN_TIMESTAMP, Timestamp, to_milliseconds
from tests.sim.network import SimClock

SECONDS = 20


class Here:
    """A system range that this node leads."""

    def __init__(self) -> None:
        self.mark = MIN_TIMESTAMP
        self.term: int | None = 1
        self.raised = 0

    def lease_started(self, range_id: int) -> int | None:
        return self.term

    def leaseholder_hint(self, range_id: int) -> StoreId | None:
        return None

    def oracle_mark(self) -> Timestamp:
        return self.mark

    async def raise_mark(self, request: RaiseMarkRequest) -> RaiseMarkReply:
        await trio.sleep(0.005)
        self.mark = request.mark
        self.raised += 1
        return RaiseMarkReply(self.mark)


@pytest.mark.parametrize("jump_ms", [-3_600_000, 0, 3_600_000])
def test_timestamps_rise_and_go_with_the_time_that_passes_when_the_wall_clock_jumps_by_an_hour(jump_ms: int) -> None:
    """B24: with clock skew timestamps stand still or run away, and with them what is judged by its age."""
    issued: list[Timestamp] = []

    async def main() -> None:
        clock = SimClock()
        issuer = Issuer(Here(), clock)
        async with trio.open_nursery() as nursery:
            await nursery.start(issuer.run)
            for second in range(SECONDS + 2):
                if second == 2:
                    clock.wall_jump_ms = jump_ms
                for _ in range(10):
                    issued.append(await issuer.issue(1, timeout_s=1))
                    await trio.sleep(0.1)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert issued == sorted(set(issued))
    passed_ms = to_milliseconds(issued[-1]) - to_milliseconds(issued[20])
    assert SECONDS * 1000 / 2 - 200 <= passed_ms <= SECONDS * 1000 * STEP_FACTOR + 200


def test_the_newest_timestamp_is_at_or_above_all_that_were_issued_here_or_elsewhere_and_raises_no_mark() -> None:
    async def main() -> None:
        here = Here()
        issuer = Issuer(here, SimClock())
        async with trio.open_nursery() as nursery:
            await nursery.start(issuer.run)
            assert issuer.newest_nowait() is None
            issued = await issuer.issue(5, timeout_s=1)
            assert issuer.newest_nowait() == issued + 4
            await trio.sleep(1)
            raised = here.raised
            for _ in range(20):
                assert issuer.newest_nowait() == issued + 4
                await trio.sleep(1)
            assert here.raised == raised
            # Another node issued up to its mark meanwhile.
            here.term = None
            assert issuer.newest_nowait() is None
            here.mark = elsewhere = Timestamp(here.mark + 1_000_000_000)
            here.term = 3
            assert issuer.newest_nowait() is None
            await trio.sleep(1)
            newest = issuer.newest_nowait()
            assert newest is not None
            assert newest >= elsewhere - 1
            assert await issuer.issue(1, timeout_s=1) > newest
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
