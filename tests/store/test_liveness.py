"""Support between two stores whose clocks have nothing in common: the supported always stops first."""

import random

import pytest

from dsdb.kv.ids import StoreId
from dsdb.store.frame import SupportGrant
from dsdb.store.liveness import Liveness

A, B = StoreId(1), StoreId(2)


def make(now: float, incarnation: int = 7) -> Liveness:
    return Liveness(now=now, incarnation=incarnation, duration_s=0.8, drift_max=0.01)


@pytest.mark.parametrize("seed", range(20))
def test_the_supported_never_counts_on_a_promise_that_has_lapsed(seed: int) -> None:
    """B6: the end of a lease goes back, and there are two leaseholders."""
    chance = random.Random(seed)
    rates = {A: 1 + chance.uniform(-0.005, 0.005), B: 1 + chance.uniform(-0.005, 0.005)}
    offsets = {A: chance.uniform(0, 1e6), B: chance.uniform(0, 1e6)}

    def clock(store: StoreId, time: float) -> float:
        return offsets[store] + rates[store] * time

    supported, supporter = make(clock(A, 0)), make(clock(B, 0))
    grants: list[tuple[float, SupportGrant]] = []
    time, period, counted = 0.0, 0, 0
    for _ in range(300):
        time += chance.uniform(0, 0.3)
        supporter.lapsed(clock(B, time))
        action = chance.random()
        if action < 0.5:
            request = supported.request(clock(A, time))
            if chance.random() < 0.8:
                # The request is under way for a while; nothing else happens meanwhile.
                time += chance.uniform(0, 0.5)
                supporter.lapsed(clock(B, time))
                period += 1
                grant, _ = supporter.take_request(A, request, clock(B, time), period)
                grants.append((time, grant))
        elif grants:
            supported.take_grant(B, grants.pop(chance.randrange(len(grants)))[1])
        if supported.supported_until(B) > clock(A, time):
            counted += 1
            supporter.lapsed(clock(B, time))
            assert supporter.promises(A)
    assert counted > 10


def test_a_promise_after_a_lapse_is_a_new_period() -> None:
    supported, supporter = make(0.0), make(100.0)
    grant, is_new = supporter.take_request(A, supported.request(0.0), 100.0, 11)
    assert is_new
    assert supported.take_grant(B, grant)
    grant, is_new = supporter.take_request(A, supported.request(0.5), 100.5, 12)
    assert not is_new
    assert not supported.take_grant(B, grant)
    assert supporter.lapsed(101.2) == []
    assert supporter.lapsed(101.31) == [A]
    grant, is_new = supporter.take_request(A, supported.request(1.4), 101.4, 13)
    assert is_new
    assert supported.take_grant(B, grant)
    assert supported.supported_until(B) == pytest.approx(1.4 + 0.8 * 0.99)


def test_a_grant_to_an_earlier_life_does_not_count() -> None:
    before, after, supporter = make(0.0, 1), make(0.0, 2), make(0.0, 3)
    grant, _ = supporter.take_request(A, before.request(500.0), 0.0, 1)
    assert not after.take_grant(B, grant)
    assert after.supported_until(B) == 0.0


def test_a_store_votes_for_nobody_until_old_promises_are_over() -> None:
    store = make(50.0)
    assert store.is_barred(50.8)
    assert not store.is_barred(50.0 + 0.8 * 1.02 + 0.001)
