"""What the benches of joining and dying nodes make of what their clients say."""

import array

import pytest

from bench.heal import Round, judge, misses
from bench.join import is_spread
from bench.paced import Failure, Tally, spread

KILLED = 100.0


def doubles(*values: float) -> bytes:
    return array.array("d", values).tobytes()


def test_keys_lie_all_over_bigint_and_differ() -> None:
    found = [spread(number) for number in range(1000)]
    assert len(set(found)) == 1000
    assert -(1 << 63) <= min(found) < -(1 << 62)
    assert (1 << 62) < max(found) < 1 << 63


def test_latencies_count_what_was_due_in_a_time() -> None:
    tally = Tally(due=doubles(1, 2, 3), latencies=doubles(0.5, 0.001, 0.7), answers=doubles(0.1, 0.001, 0.2))
    assert tally.latency_ms(0.99, 2, 3) == 1.0
    assert tally.latency_ms(0.99, 4) == 0.0
    sent_at, took = tally.slowest()[0]
    assert (sent_at, took) == pytest.approx((3.5, 0.2))


@pytest.mark.parametrize(
    ("begun", "ended", "is_within"),
    [(99.9, 100.1, True), (101.4, 104.0, True), (101.6, 101.7, False), (99.0, 99.5, False)],
    ids=["in flight", "begun in time, ended late", "begun late", "over before the kill"],
)
def test_a_failure_is_of_the_fail_over_if_it_was_begun_in_time(begun: float, ended: float, is_within: bool) -> None:
    tally = Tally(written_at=doubles(99.0, 100.8, 101.0, 101.1), failures=[Failure(begun, ended, "gone")])
    found = judge(tally, KILLED, healed_s=9.0)
    assert (found.within, len(found.outside)) == ((1, 0) if is_within else (0, 1))
    assert found.pause_s == pytest.approx(0.8)


def test_each_goal_can_be_missed() -> None:
    good = Round(pause_s=0.8, within=3, last_s=0.2, outside=[], healed_s=9.0)
    assert misses([good, good], 0) == []
    bad = Round(pause_s=1.6, within=0, last_s=0.0, outside=["late"], healed_s=9.0)
    assert len(misses([bad, bad], 1)) == 4


def test_replicas_are_spread_within_a_tenth_of_the_mean() -> None:
    assert is_spread({1: 26, 2: 24, 3: 24, 4: 22}, 4)
    assert not is_spread({1: 27, 2: 25, 3: 25, 4: 20}, 4)
    assert not is_spread({1: 24, 2: 24, 3: 24}, 4)
