"""dsdb against PostgreSQL 15, tables of many ranges against whole ones, the point path against the stage path; on generated queries.

Longer, with other seeds: `make differential MINUTES=10`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from tests.differential.comparing import Differences, compare_generated, run_databases
from tests.differential.edges import STATEMENTS, constant_queries, row_queries
from tests.differential.postgres import NoPostgresError
from tests.differential.queries import Query

GENERATED = 100
EDGES = 200
REFUSED_SHARE_MAX = 0.12


@pytest.fixture(scope="module")
def databases() -> Iterator[Differences]:
    try:
        running = run_databases()
        differences = running.__enter__()
    except NoPostgresError as error:
        pytest.skip(str(error))
    yield differences
    running.__exit__(None, None, None)


@pytest.fixture
def differences(databases: Differences) -> Differences:
    return Differences(databases.postgres, databases.ours)


def test_generated_queries(differences: Differences) -> None:
    for seed in range(GENERATED):
        compare_generated(differences, seed)
    assert not differences.found, "\n".join(differences.found)
    assert differences.counts["refused"] < REFUSED_SHARE_MAX * differences.counts.total()


def test_statements(differences: Differences) -> None:
    for text in STATEMENTS:
        differences.with_postgres(Query(text))
    assert not differences.found, "\n".join(differences.found)
    assert not differences.counts["refused"]


@pytest.mark.parametrize("queries", [constant_queries, row_queries], ids=["constants", "rows"])
def test_edges(differences: Differences, queries: type[Iterator[Query]]) -> None:
    for query in random.Random(7).sample(list(queries()), EDGES):
        differences.with_postgres(query)
    assert not differences.found, "\n".join(differences.found)


def test_a_wrong_answer_is_seen(differences: Differences) -> None:
    for ours in ("SELECT 1.50", "SELECT 1 AS a", "SELECT 2", "SELECT 1 WHERE false", "SELECT 1/0", "SELECT 1::bigint"):
        differences.two_texts("SELECT 1", ours)
    differences.two_texts("SELECT id FROM blobs", "SELECT id FROM blobs ORDER BY id DESC")
    assert (differences.counts["different"], differences.counts["same"]) == (6, 1)
