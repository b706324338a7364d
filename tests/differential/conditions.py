"""The tables of a schema in other physical conditions, under other names: what they answer must be the same.

    t           rows, one range
    t_split     rows, several ranges
    t_folded    columnar blocks, one range
    t_over      columnar blocks of what was there before, split, and behind them the changes that make it what it is
    t_buffered  the same blocks, and the changes in a transaction that stays open: only its own session sees them

Later the tables of blocks are split too, and folding goes on while queries run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from tests.differential.peers import Dsdb, Outcome
from tests.differential.schemas import Table

FOLDED_S = 30.0
QUIET_S = 0.7
"""Without new blocks: more than what folding waits for."""
PASSING = ("40001", "40003", "08006", "08001", "08003", "57P01", "57014", "58000", "55000", "25P02", "25P03", "XX000")
"""SQLSTATEs of what may pass while a node is down: such a statement is run again."""
_RIGHT = ("_folded",)
_STALE = ("_over", "_buffered")


class Condition(msgspec.Struct, frozen=True):
    """A name's end, and the session that sees these tables."""

    suffix: str
    session: str


class BrokenError(Exception):
    """A statement that prepares something failed; its text and what was said."""


class Conditions:
    """All of them, on one node or cluster.  plain, open: two sessions."""

    ALL = (Condition("", "plain"), *(Condition(end, "plain") for end in ("_split", "_folded", "_over")), Condition("_buffered", "open"))

    def __init__(self, plain: Dsdb, other: Dsdb, tables: Sequence[Table]) -> None:
        self.sessions = {"plain": plain, "open": other}
        self.tables = tables
        self._changes: list[str] = []

    def prepare(self) -> None:
        """Make all tables.  Raises BrokenError."""
        self._do("SET CLUSTER SETTING fold_percent = 100")
        for table in self.tables:
            for suffix in (*_RIGHT, *_STALE):
                rows = table.rows if suffix in _RIGHT else table.stale
                self._do(table.create(suffix), *table.insert(rows, suffix))
        self._wait_folded()
        self._do("SET CLUSTER SETTING fold_percent = 0")
        for table in self.tables:
            for suffix in ("", "_split"):
                self._do(table.create(suffix), *table.insert(table.rows, suffix))
            self._do(*table.split("_split"), *table.split("_over"), *table.corrections("_over"))
        self.open()

    def open(self) -> None:
        """Begin the transaction, and make its changes.  Raises BrokenError."""
        self.run("ROLLBACK", "open")
        self._do("BEGIN", *(sql for table in self.tables for sql in table.corrections("_buffered")), session="open")
        self._do(*(text.replace("@@", "_buffered") for text in self._changes), session="open")

    def split(self) -> None:
        """Split the tables of blocks, and let folding go on.  Raises BrokenError."""
        for table in self.tables:
            self._do(*table.split("_folded"))
        self._do("SET CLUSTER SETTING fold_percent = 100")

    def change(self, text: str) -> dict[str, str]:
        """Run a change everywhere, and give SQLSTATEs by name's end.  Raises BrokenError."""
        found = {}
        for condition in self.ALL:
            if condition.session == "open":
                self.run("SAVEPOINT s", "open")
            outcome = self.run(text.replace("@@", condition.suffix), condition.session)
            found[condition.suffix] = outcome.sqlstate
            if condition.session == "open" and outcome.sqlstate:
                self.run("ROLLBACK TO s", "open")
        if not any(found.values()):
            self._changes.append(text)
        return found

    def ask(self, query: str, condition: Condition, *, patience_s: float = 30.0) -> Outcome:
        """Run a query in a condition; again, for so long, after errors that pass."""
        deadline = time.monotonic() + patience_s
        while True:
            if condition.session == "open":
                self.run("SAVEPOINT s", "open")
            outcome = self.run(query.replace("@@", condition.suffix), condition.session)
            if condition.session == "open" and outcome.sqlstate:
                self.run("ROLLBACK TO s", "open")
            if outcome.sqlstate not in PASSING or time.monotonic() > deadline:
                return outcome
            time.sleep(0.2)
            if condition.session == "open":
                self.open()

    def drop(self) -> None:
        """Drop all tables, as far as there are such."""
        self.run("ROLLBACK", "open")
        for table in self.tables:
            for condition in self.ALL:
                self.run(f"DROP TABLE IF EXISTS {table.name}{condition.suffix}")

    def run(self, sql: str, session: str = "plain") -> Outcome:
        return self.sessions[session].run(sql)

    def _do(self, *texts: str, session: str = "plain") -> None:
        for text in texts:
            outcome = self._tried(text, session)
            if outcome.sqlstate:
                raise BrokenError(f"{text}: {outcome.sqlstate} {outcome.message}")

    def _tried(self, text: str, session: str) -> Outcome:
        outcome = self.run(text, session)
        for _ in range(20):
            if session == "open" or outcome.sqlstate not in PASSING:
                break
            time.sleep(0.5)
            outcome = self.run(text, session)
        return outcome

    def _wait_folded(self) -> None:
        """Wait until there are blocks and, for a while, no more of them."""
        wanted = sum(1 for table in self.tables if table.rows) * len((*_RIGHT, *_STALE))
        deadline, found, since = time.monotonic() + FOLDED_S, -1, time.monotonic()
        while time.monotonic() < deadline:
            blocks = int(self._tried("SELECT coalesce(sum(blocks), 0) FROM system.ranges", "plain").rows[0][0] or 0)
            if blocks != found:
                found, since = blocks, time.monotonic()
            elif blocks >= wanted and time.monotonic() - since > QUIET_S:
                return
            time.sleep(0.1)
        raise BrokenError(f"{wanted} tables have {found} blocks after {FOLDED_S:.0f} s")
