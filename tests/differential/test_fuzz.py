"""One round of generated queries on an embedded node whose sizes are small: every condition beside the others, and pairs that are equal.

Longer, on three nodes and beside PostgreSQL: `make fuzz MINUTES=10`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.differential.conditions import Condition, Conditions
from tests.differential.fuzz import CLOSED_LAG, Round, run_round
from tests.differential.peers import Dsdb, Outcome
from tests.differential.schemas import Table
from tests.differential.shrink import shrunk
from tests.differential.small_sizes import small_sizes

QUERIES = 6
"""Of each of three parts of the round."""


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Dsdb, Dsdb]]:
    directory: Path = tmp_path_factory.mktemp("fuzz")
    with small_sizes(), contextlib.closing(Dsdb(str(directory))) as plain, contextlib.closing(Dsdb(str(directory))) as other:
        plain.run(CLOSED_LAG)
        yield plain, other


def test_a_round(sessions: tuple[Dsdb, Dsdb]) -> None:
    round_ = Round("made.3", lambda tables: Conditions(*sessions, tables), None)
    run_round(round_, queries=QUERIES)
    assert not round_.found, "\n".join([*round_.found, round_.script()])
    assert round_.counts["answered"] > round_.counts.total() / 20
    assert not round_.counts["refused"]


class _Forgetful(Conditions):
    """Loses a row of what is read of blocks."""

    def ask(self, query: str, condition: Condition, *, patience_s: float = 30.0) -> Outcome:
        outcome = super().ask(query, condition, patience_s=patience_s)
        is_wrong = condition.suffix == "_folded" and "count" not in query
        return Outcome(outcome.names, outcome.types, outcome.rows[1:]) if is_wrong and not outcome.sqlstate else outcome


def test_a_wrong_answer_is_found_and_made_smaller(sessions: tuple[Dsdb, Dsdb]) -> None:
    def conditions(tables: Sequence[Table]) -> Conditions:
        return _Forgetful(*sessions, tables)

    round_ = Round("made.3", conditions, None)
    try:
        round_.prepare()
        round_.ask(6)
    finally:
        round_.conditions.drop()
    assert round_.counts["different"]
    assert any("_folded" in text and "smaller: SELECT" in text for text in round_.found)


def test_a_query_is_made_smaller() -> None:
    text = "SELECT a.x, count(*) FROM a JOIN b ON a.k = b.k WHERE a.x > 1 AND (b.y IS NULL OR a.z = 3) GROUP BY a.x ORDER BY 1"
    asked: Counter[str] = Counter()

    def differs(smaller: str) -> bool:
        asked[smaller] += 1
        return "IS NULL" in smaller and "JOIN" in smaller

    assert shrunk(text, differs) == "SELECT a.x FROM a JOIN b ON a.k = b.k WHERE b.y IS NULL GROUP BY a.x"
    assert max(asked.values()) < 10
