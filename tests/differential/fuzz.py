"""Generated queries over generated schemas, on all physical conditions of dsdb, beside PostgreSQL, and beside what they must be equal to.

python -m tests.differential.fuzz --minutes 5 [--seed N] [--round NAME]

    round    schema of a seed ─▶ `conditions` ─▶ queries ─▶ changes ─▶ queries ─▶ splits, folding ─▶ queries ─▶ a node down ─▶ queries

A round is made of `SEED.NUMBER` alone; what differs is printed with it, with the tables and their rows, and with the query made smaller.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dsdb.cli.processes import ProcessCluster
from tests.differential.aimed import AimedQueries, Simple
from tests.differential.compare import difference
from tests.differential.conditions import PASSING, BrokenError, Condition, Conditions
from tests.differential.expressions import Expressions
from tests.differential.peers import Dsdb, Outcome, Peer, Postgres
from tests.differential.postgres import NoPostgresError, run_postgres
from tests.differential.queries import Query
from tests.differential.relations import Relations
from tests.differential.schemas import Schemas, Table
from tests.differential.shrink import shrunk

LAUNCHER = (sys.executable, "-m", "tests.differential.small_sizes")
CLOSED_LAG = "SET CLUSTER SETTING closed_lag = '0.5s'"
"""So that rows are folded soon."""
QUERIES = 25
"""Of each part of a round; as many pairs of `relations`."""
CHANGES = 8
REFUSED = "0A000"


class Round:
    """One schema, and what is asked over it.  found: what differs, as texts; counts: of comparisons."""

    def __init__(self, name: str, conditions: Callable[[Sequence[Table]], Conditions], postgres: Peer | None) -> None:
        self.name = name
        self.tables = Schemas(name).make()
        self.conditions = conditions(self.tables)
        self.found: list[str] = []
        self.counts: Counter[str] = Counter()
        self._postgres = postgres
        self._columns = {table.name: table.columns for table in self.tables}
        self._done: list[str] = []
        self._number = 0

    def prepare(self) -> None:
        """Make all tables.  Raises BrokenError."""
        self.conditions.prepare()
        if self._postgres is not None:
            for table in self.tables:
                for sql in (f"DROP TABLE IF EXISTS {table.name}", table.create(), *table.insert(table.rows)):
                    outcome = self._postgres.run(sql)
                    assert not outcome.sqlstate, (sql, outcome)

    def ask(self, queries: int = QUERIES) -> None:
        """Compare some queries, and some pairs."""
        for _ in range(queries):
            self._number += 1
            seed = f"{self.name}.{self._number}"
            self.compare(AimedQueries(seed, self._columns).make(), seed)
            self.relate(seed)

    def compare(self, query: Query, label: str) -> None:
        """Compare a query's answers in all conditions, and PostgreSQL's."""
        asked = self.conditions.ask(query.text, Conditions.ALL[0])
        if asked.sqlstate == REFUSED:
            self.counts["refused"] += 1
            return
        for condition in Conditions.ALL[1:]:
            self._check(asked, self.conditions.ask(query.text, condition), query, f"{label} {condition.suffix}", condition)
        if self._postgres is not None:
            theirs = self._postgres.run(query.over())
            self._keep(difference(theirs, asked, query.order, is_quotient=True), query.text, f"{label} PostgreSQL", self._unlike_postgres)
        self.counts["failed" if asked.sqlstate else "empty" if not asked.rows else "answered"] += 1

    def relate(self, seed: str) -> None:
        """Compare the two texts of a pair in one condition."""
        pair = Relations(seed, self._columns).make()
        condition = random.Random(f"{seed} condition").choice(Conditions.ALL)
        first, second = (self.conditions.ask(text, condition) for text in (pair.first, pair.second))
        if first.sqlstate or second.sqlstate:
            self.counts["pairs that fail"] += 1
            return
        texts = f"{pair.first.replace('@@', condition.suffix)}\n    {pair.second.replace('@@', condition.suffix)}"
        self._keep(difference(first, second, is_quotient=True), texts, f"{seed} {pair.kind}")

    def change(self, changes: int = CHANGES) -> None:
        """Change rows by conditions, everywhere."""
        for _ in range(changes):
            self._number += 1
            seed = f"{self.name}.{self._number}"
            text = _change(random.Random(seed), self.tables)
            states = self.conditions.change(text)
            if self._postgres is not None:
                theirs = self._postgres.run(text.replace("@@", ""))
                states["PostgreSQL"] = theirs.sqlstate
            if set(states.values()) & set(PASSING):
                raise BrokenError(f"{text}: {states}")
            self._keep(f"SQLSTATEs {states}" if len(set(states.values())) > 1 else "", text, seed)
            if not any(states.values()):
                self._done.append(text.replace("@@", ""))
        for table in self.tables:
            self.compare(Query(f"SELECT * FROM {table.name}@@"), f"{self.name}.{self._number} rows of {table.name}")

    def _check(self, asked: Outcome, other: Outcome, query: Query, label: str, condition: Condition) -> None:
        def differs(text: str) -> bool:
            first, second = self.conditions.ask(text, Conditions.ALL[0]), self.conditions.ask(text, condition)
            return not first.sqlstate and bool(difference(first, second))

        self._keep(difference(asked, other, query.order), query.text, label, differs)

    def _unlike_postgres(self, text: str) -> bool:
        assert self._postgres is not None
        theirs, ours = self._postgres.run(text.replace("@@", "")), self.conditions.ask(text, Conditions.ALL[0])
        return not theirs.sqlstate and not ours.sqlstate and bool(difference(theirs, ours, is_quotient=True))

    def _keep(self, why: str, text: str, label: str, differs: Callable[[str], bool] | None = None) -> None:
        self.counts["different" if why else "same"] += 1
        if not why:
            return
        lines = [f"{label}: {why}", f"    {text}"]
        if differs is not None:
            small = shrunk(text.replace("@@", ""), lambda smaller: differs(self._suffixed(smaller)))
            lines.append(f"    smaller: {small}")
        self.found.append("\n".join(lines))

    def _suffixed(self, text: str) -> str:
        for table in self.tables:
            text = text.replace(f"{table.name} AS", f"{table.name}@@ AS")
        return text

    def script(self) -> str:
        """Give the tables and what was done to them."""
        made = [sql for table in self.tables for sql in (table.create(), *table.insert(table.rows))]
        return ";\n".join((*made, *self._done)) + ";"


def _change(rng: random.Random, tables: Sequence[Table]) -> str:
    """Make an UPDATE, DELETE or INSERT by conditions."""
    table = rng.choice(tables)
    columns = {table.name: table.columns}
    scope = Simple(rng, [(column, family) for column, family in Expressions.columns_of(table.name, table.name, columns)])
    scope = Simple(rng, [(text.partition(".")[2], family) for text, family in scope.columns])
    test = scope.condition(1)
    chance = rng.random()
    if chance < 0.2:
        return f"DELETE FROM {table.name}@@ WHERE ({test}) AND id % 3 = {rng.randint(0, 2)}"
    if chance < 0.35:
        at = list(table.columns).index("id")
        names = list(table.columns)
        picked = [f"id + {rng.randint(1, 9)}000" if name == "id" else name for name in names]
        assert at >= 0
        return f"INSERT INTO {table.name}@@ ({', '.join(names)}) SELECT {', '.join(picked)} FROM {table.name}@@ WHERE ({test}) AND id < 20"
    families = dict(scope.columns)
    targets = [column for column in table.columns if column not in table.key]
    chosen = rng.sample(targets, min(rng.randint(1, 2), len(targets)))
    if not chosen:
        return f"DELETE FROM {table.name}@@ WHERE ({test}) AND id % 5 = 0"
    values = []
    for column in chosen:
        family = families[column]
        values.append(f"{column} = {rng.choice((scope.constant(family), 'NULL', scope.value(family), scope.value(family)))}")
    return f"UPDATE {table.name}@@ SET {', '.join(values)} WHERE {test}"


def run_round(round_: Round, during: Callable[[], contextlib.AbstractContextManager[object]] | None = None, queries: int = QUERIES) -> None:
    """Do a whole round.  during: within which the last queries are asked.  Raises BrokenError."""
    try:
        round_.prepare()
        round_.ask(queries)
        round_.change()
        round_.ask(queries)
        round_.conditions.split()
        round_.ask(queries)
        if during is not None:
            with during():
                round_.ask(queries)
    finally:
        round_.conditions.drop()


@contextlib.contextmanager
def run_peers() -> Iterator[tuple[ProcessCluster, Postgres | None]]:
    """Run three nodes, and PostgreSQL if it is there."""
    with contextlib.ExitStack() as stack:
        postgres: Postgres | None = None
        try:
            postgres = stack.enter_context(contextlib.closing(Postgres(stack.enter_context(run_postgres()))))
        except NoPostgresError as error:
            print(f"without PostgreSQL: {error}", flush=True)
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="dsdb-fuzz-"))
        yield stack.enter_context(ProcessCluster(Path(directory), nodes=3, launcher=LAUNCHER)), postgres


@contextlib.contextmanager
def one_down(cluster: ProcessCluster) -> Iterator[None]:
    """Kill the third node, and start it again."""
    cluster.nodes[2].kill()
    try:
        yield
    finally:
        cluster.nodes[2].start()


def main() -> None:
    """Do rounds for so long."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--round", type=int, default=0, help="the first round's number")
    options = parser.parse_args()
    until = time.monotonic() + options.minutes * 60
    counts: Counter[str] = Counter()
    number = options.round
    with run_peers() as (cluster, postgres):
        cluster.wait_replicated(3)
        first, second = (Dsdb(cluster.url_of([node])) for node in cluster.nodes[:2])
        with contextlib.closing(first), contextlib.closing(second):
            first.run(CLOSED_LAG)
            while time.monotonic() < until:
                round_ = Round(f"{options.seed}.{number}", lambda tables: Conditions(first, second, tables), postgres)
                try:
                    run_round(round_, lambda: one_down(cluster))
                except BrokenError as error:
                    round_.counts["broken off"] += 1
                    print(f"round {round_.name} was broken off: {error}", flush=True)
                counts += round_.counts
                if round_.found:
                    print("\n".join([*round_.found, "", round_.script(), ""]), flush=True)
                number += 1
        print(f"rounds {options.seed}.{options.round} to {options.seed}.{number - 1}: {dict(counts)}")
    if counts["different"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
