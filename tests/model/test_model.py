"""Random histories hold with all rules, and are caught without one; rare events really happen; the written scenarios go as they must."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from tests.model import early_intents
from tests.model.campaign import campaign, rules_of
from tests.model.history import history
from tests.model.rules import RULES
from tests.model.scenarios import SCENARIOS

SEEDS = range(2500)

AT_LEAST = {
    "collected": 40,
    "forgotten verdicts": 150,
    "flush": 2000,
    "flushed commit": 400,
    "lease moved": 6000,
    "one-range commit": 1200,
    "oracle moved": 3000,
    "parallel commit": 600,
    "recovery aborts": 250,
    "recovery commits": 150,
    "refresh met an intent": 80,
    "restart": 600,
    "split": 700,
    "split during a one-range commit": 30,
    "staged again": 250,
}

CAUGHT_WITHIN_HISTORIES = {
    "oracle_mark": 400,
    "read_cache": 200,
    "read_latch": 200,
    "lease_low_water": 400,
    "one_bump_local": 400,
    "refresh": 200,
    "stage_at_or_below": 200,
    "recover_staging": 200,
    "recover_prevent": 600,
    "resolve_after_record": 400,
    "remove_tombstone": 600,
    "split_latch+split_fits_at_apply": 600,
    "split_record_home": 1500,
    "flush_first_ts": 600,
    "flush_two_rounds": 400,
    "savepoint_undo": 200,
    "full_verdicts": 1000,
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
    off = rules_of(rule)
    assert any(history(seed, off)[0] for seed in range(histories))


def test_the_same_seed_gives_the_same_history() -> None:
    first, second = (history(7, frozenset({"refresh"})) for _ in range(2))
    assert first[0] == second[0]
    assert first[1].clock == second[1].clock
    assert [client.told for client in first[2]] == [client.told for client in second[2]]


def test_an_unknown_rule_is_an_error() -> None:
    with pytest.raises(ValueError, match="no such rule: refesh"):
        rules_of("read_cache+refesh")


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_a_scenario_goes_right_with_all_rules_and_wrong_without_one(scenario: Callable[[Iterable[str]], str | None]) -> None:
    assert scenario(()) is None
    for rule in SCENARIOS[scenario]:
        assert rule in RULES
        assert scenario({rule}) is not None, RULES[rule]


def test_intents_laid_early() -> None:
    assert early_intents.violations(frozenset(), 1500) == (0, None)
    for off in ({"refresh"}, {"refresh_intents"}, {"refresh_cache"}, {"push"}):
        assert early_intents.violations(frozenset(off), 1500, stop=1)[0] == 1, off


def test_every_rule_has_its_costs() -> None:
    costs = (Path(__file__).parent / "costs.md").read_text()
    assert not [rule for rule in RULES if f"| `{rule}` |" not in costs]
    assert RULES.keys() >= {rule for rules in SCENARIOS.values() for rule in rules}
