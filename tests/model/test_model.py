"""Random histories hold with all rules, and are caught without one; rare events really happen; the written scenarios go as they must."""

import pytest

from tests.model import early_intents, scenarios
from tests.model.campaign import campaign, rules_of
from tests.model.history import history
from tests.model.rules import RULES

SEEDS = range(3000)

AT_LEAST = {
    "lease moved": 8000,
    "one-range commit": 2000,
    "oracle moved": 4000,
    "parallel commit": 1500,
    "recovery aborts": 700,
    "recovery commits": 500,
    "refresh met an intent": 100,
    "restart": 1000,
    "staged again": 500,
}

CAUGHT_WITHIN_HISTORIES = {
    "oracle_mark": 100,
    "read_cache": 100,
    "read_latch": 100,
    "lease_low_water": 200,
    "one_bump_local": 100,
    "bump_oracle": 200,
    "refresh": 100,
    "stage_at_or_below": 100,
    "recover_staging": 100,
    "recover_prevent": 200,
    "resolve_after_record": 200,
    "remove_tombstone": 400,
}
"""Rule taken away → how many histories, from seed 0, are enough to notice."""


def test_histories_hold_and_rare_events_happen() -> None:
    tally = campaign(frozenset(), SEEDS)
    assert not tally.bad, f"{tally.violations}, first with seed {tally.first_seed}"
    assert tally.done == len(SEEDS)
    too_few = {what: tally.seen[what] for what, least in AT_LEAST.items() if tally.seen[what] < least}
    assert not too_few, too_few


@pytest.mark.parametrize(("rule", "histories"), CAUGHT_WITHIN_HISTORIES.items())
def test_a_rule_taken_away_is_noticed(rule: str, histories: int) -> None:
    assert campaign(rules_of(rule), range(histories), stop=1).bad == 1, RULES[rule]


def test_the_same_seed_gives_the_same_history() -> None:
    first, second = (history(7, frozenset({"refresh"})) for _ in range(2))
    assert first[0] == second[0]
    assert first[1].clock == second[1].clock
    assert [client.told for client in first[2]] == [client.told for client in second[2]]


def test_an_unknown_rule_is_an_error() -> None:
    with pytest.raises(ValueError, match="no such rule: refesh"):
        rules_of("read_cache+refesh")


def test_a_gateway_hears_what_became_of_its_record() -> None:
    assert "aborted" not in scenarios.told_behind_its_back()


@pytest.mark.parametrize("rule", scenarios.BEHIND_ITS_BACK)
def test_a_gateway_would_not_hear_without(rule: str) -> None:
    assert "aborted" in scenarios.told_behind_its_back({rule})


def test_intents_laid_early() -> None:
    assert early_intents.violations(frozenset(), 1500) == (0, None)
    for off in ({"refresh"}, {"refresh_intents"}, {"refresh_cache"}, {"push"}):
        assert early_intents.violations(frozenset(off), 1500, stop=1)[0] == 1, off
