"""All transactions end with all rules of waiting; without most of them some never do."""

import pytest

from tests.model.lock_waits import RULES, starved

STARVES_WITHIN_HISTORIES = {"wound": 1, "wound_intents_count": 2, "wound_silent": 10, "wound_queue_by_rank": 10, "wound_writes_wait": 80}
"""Rule taken away → how many histories, from seed 0, are enough to find a transaction that does not end."""


def test_every_transaction_ends() -> None:
    bad, first, seen = starved(frozenset(), range(40))
    assert not bad, f"first with seed {first}"
    too_few = {
        what: seen[what] for what in ("aborted", "crash", "lease moved", "recovered", "restart", "wounded a lock") if seen[what] < 30
    }
    assert not too_few, too_few
    assert seen["ended"] > 5000


@pytest.mark.parametrize(("rule", "histories"), STARVES_WITHIN_HISTORIES.items())
def test_some_never_end_without(rule: str, histories: int) -> None:
    assert starved(frozenset({rule}), range(histories), stop=1)[0] == 1, RULES[rule]
