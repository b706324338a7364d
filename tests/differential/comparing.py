"""What is compared, and the databases it is compared on: PostgreSQL, and one embedded node of dsdb that has each table whole and split.

python -m tests.differential.comparing --minutes 5 [--seed N]
"""

from __future__ import annotations

import argparse
import contextlib
import random
import time
from collections import Counter
from collections.abc import Iterator

from tests.differential.compare import difference
from tests.differential.expressions import Expressions
from tests.differential.peers import Dsdb, Outcome, Peer, Postgres
from tests.differential.postgres import run_postgres
from tests.differential.queries import Queries, Query
from tests.differential.tables import KEYS, ROWS, TABLES, statements

DATA_SEED = 1
REFUSED = "0A000"


class Differences:
    """Runs queries on both, and keeps what differs.  counts: same, refused, different."""

    def __init__(self, postgres: Peer, ours: Peer) -> None:
        self.postgres = postgres
        self.ours = ours
        self.found: list[str] = []
        self.counts: Counter[str] = Counter()

    def with_postgres(self, query: Query, label: str = "") -> None:
        """Compare with PostgreSQL.  What dsdb refuses (0A000) is counted only."""
        theirs, ours = self.postgres.run(query.over()), self.ours.run(query.over())
        if ours.sqlstate == REFUSED and theirs.sqlstate != REFUSED:
            self.counts["refused"] += 1
            return
        self._keep(difference(theirs, ours, query.order, is_quotient=True), query.over(), label)

    def split_and_whole(self, query: Query, label: str = "") -> None:
        """Compare one range with many."""
        whole, split = self.ours.run(query.over()), self.ours.run(query.over("_split"))
        self._keep(difference(whole, split, query.order), query.over("_split"), f"{label} split")

    def two_texts(self, first: str, second: str, label: str = "") -> None:
        """Compare two texts that mean the same, and the first with PostgreSQL."""
        outcomes: list[Outcome] = [self.ours.run(first), self.ours.run(second)]
        if any(outcome.sqlstate == REFUSED for outcome in outcomes):
            # The point path evaluates more than the engine can.
            self.counts["refused"] += 1
            return
        self._keep(difference(*outcomes, is_quotient=True), f"{first}\n{second}", f"{label} paths")

    def _keep(self, why: str, sql: str, label: str) -> None:
        self.counts["different" if why else "same"] += 1
        if why:
            self.found.append(f"{label}: {sql}\n    {why}")


@contextlib.contextmanager
def run_databases() -> Iterator[Differences]:
    """Run both, with the tables filled.  Raises NoPostgresError."""
    with run_postgres() as target, contextlib.closing(Postgres(target)) as postgres, contextlib.closing(Dsdb()) as ours:
        for peer, is_split in ((postgres, False), (ours, True)):
            for sql in statements(random.Random(DATA_SEED), is_split=is_split):
                outcome = peer.run(sql)
                assert not outcome.sqlstate, (sql[:200], outcome)
        yield Differences(postgres, ours)


def point_queries(seed: int) -> tuple[str, str]:
    """Give a query that pins the primary key, and one that means the same and does not."""
    rng = random.Random(seed)
    table = rng.choice(list(TABLES))
    columns = Expressions.columns_of("p", table)
    scope = Expressions(rng, columns)
    items = ", ".join(scope.any(3)[0] for _ in range(rng.randint(1, 4)))
    also = f" AND {scope.make('bool', 2)}" if rng.random() < 0.4 else ""
    number = rng.randrange(ROWS[table] + 3)
    if KEYS[table] == ("id",):
        pinned, loose = f"p.id = {number}", f"p.id + 0 = {number}"
        if rng.random() < 0.3:
            pinned, loose = f"p.id IN ({number}, 3, 500)", f"p.id + 0 IN ({number}, 3, 500)"
    else:
        first = rng.randint(-2, 3)
        pinned, loose = f"p.i = {first} AND p.id = {number}", f"p.i + 0 = {first} AND p.id + 0 = {number}"
        if rng.random() < 0.5:
            pinned, loose = f"p.i = {first}", f"p.i + 0 = {first}"
    head = f"SELECT {items} FROM {table} AS p WHERE"
    return f"{head} {pinned}{also}", f"{head} {loose}{also}"


def compare_generated(differences: Differences, seed: int) -> None:
    """Compare the query and the point query of a seed, each way."""
    query = Queries(seed).make()
    label = f"seed {seed}"
    differences.with_postgres(query, label)
    differences.split_and_whole(query, label)
    pinned, loose = point_queries(seed)
    differences.two_texts(pinned, loose, label)
    differences.with_postgres(Query(pinned), label)


def main() -> None:
    """Compare queries of ever new seeds for so long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    until = time.monotonic() + options.minutes * 60
    seed = options.seed
    with run_databases() as differences:
        while time.monotonic() < until:
            compare_generated(differences, seed)
            for text in differences.found:
                print(text, flush=True)
            differences.found.clear()
            seed += 1
        print(f"seeds {options.seed} to {seed - 1}: {dict(differences.counts)}")
        if differences.counts["different"]:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
