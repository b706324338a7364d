"""Clients of the simulated cluster that read the past, on any host, while faults go on: what is final must be all there, and stay.

    mark   a fresh timestamp, with the inserts that were acknowledged before it and those that were begun before it came
    read   AS OF SYSTEM TIME of a mark: a query over ranges, or one key; whoever has a replica that is resolved answers
    end    every read once more, on every host, when the faults are over

Invariants:
- A read at a mark shows every insert that was acknowledged before, and none that was begun after it.
- All money is in the accounts at any timestamp.
- What one read gave at a timestamp all others give there, on whatever host, then and later: the leaseholder's own included.
"""

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import msgspec
import trio

from dsdb.node.node import Node
from dsdb.sql.errors import SqlError
from dsdb.sql.ports import PortError
from dsdb.storage.timestamp import Timestamp
from tests.checkers.history import Violation
from tests.sim.sql_clients import ACCOUNTS, MONEY, Session

MARKS_MAX = 400
READ_AGAIN_MAX = 60
"""Reads that are made again, on every host, at the end."""
STATEMENT_S = 15.0
READS = ("SELECT id FROM sets", "SELECT n FROM counters WHERE id = 2", "SELECT n FROM counters WHERE id = 1")
# Not all of `counters`: other clients keep lists among its keys, which are no rows.
MONEY_READ = "SELECT id, balance FROM accounts"


class Inserts(Protocol):
    """What is known of the table `sets`."""

    inserted: dict[int, str]
    acknowledged_ids: list[int]
    events: Counter[str]


class Mark(msgspec.Struct, frozen=True):
    """A moment."""

    ts: Timestamp
    acknowledged: int
    """So many of `acknowledged_ids` were acknowledged before."""
    below: int
    """Only inserts of lower numbers had been begun."""
    at: float


class PastClients:
    """All clients of this kind, and what they saw."""

    def __init__(
        self,
        chance: random.Random,
        model: Inserts,
        on_some_host: Callable[[Callable[[Node], Awaitable[Any]], float | None, str], Awaitable[Any]],
        *,
        has_accounts: bool,
    ) -> None:
        self._chance = chance
        self._model = model
        self._on_some_host = on_some_host
        self._reads = (*READS, MONEY_READ) if has_accounts else READS
        self._marks: list[Mark] = []
        self.seen: dict[tuple[Timestamp, str], list[tuple[Any, ...]]] = {}
        """Timestamp and query → rows, sorted."""

    async def act(self) -> str:
        """Do one thing, and say what.  Raises what the host raises."""
        if len(self._marks) < MARKS_MAX and (not self._marks or self._chance.random() < 0.3):
            await self._mark()
            return "marks of the past"
        # Mostly of a moment ago: what is resolved in some places, and not in others.
        mark = self._marks[-min(len(self._marks), int(self._chance.expovariate(0.4)) + 1)]
        text = self._chance.choice(self._reads)
        rows = await self._on_some_host(lambda node: read_past(node, text, mark.ts), STATEMENT_S, text)
        self._check(mark, text, rows)
        return "reads of the past"

    async def _mark(self) -> None:
        acknowledged = len(self._model.acknowledged_ids)

        async def take(node: Node) -> Timestamp:
            assert node.parts is not None
            return await node.parts.transactions.begin().read_timestamp()

        ts = await self._on_some_host(take, STATEMENT_S, "a mark")
        self._marks.append(Mark(ts, acknowledged, max(self._model.inserted, default=0) + 1, trio.current_time()))

    def _check(self, mark: Mark, text: str, rows: list[tuple[Any, ...]]) -> None:
        rows = sorted(rows)
        if text == READS[0]:
            found = {number for (number,) in rows}
            missing = set(self._model.acknowledged_ids[: mark.acknowledged]) - found
            if missing:
                raise Violation(f"rows {sorted(missing)} were acknowledged before {mark.ts}, and a read there lacks them")
            if found and max(found) >= mark.below:
                raise Violation(f"row {max(found)} was inserted after {mark.ts}, and a read there shows it")
        if text == MONEY_READ and sum(balance for _, balance in rows) != ACCOUNTS * MONEY:
            raise Violation(f"the accounts at {mark.ts} hold {rows}, not {ACCOUNTS * MONEY} in all")
        before = self.seen.setdefault((mark.ts, text), rows)
        if before != rows:
            raise Violation(f"{text} at {mark.ts} gave {before}, and then {rows}")

    async def check_end(self, nodes: list[Node]) -> None:
        """Read all again, everywhere: some host leads the range, and others follow."""
        marks = {mark.ts: mark for mark in self._marks}
        seen = sorted(self.seen)
        for ts, text in self._chance.sample(seen, min(len(seen), READ_AGAIN_MAX)):
            for node in nodes:
                self._check(marks[ts], text, await _patiently(node, text, ts))


async def read_past(node: Node, text: str, ts: Timestamp) -> list[tuple[Any, ...]]:
    """Run a query at a past timestamp."""
    # All its tables: the clause stands behind the only one.
    table, _, condition = text.partition(" WHERE")
    suffix = f" WHERE{condition}" if condition else ""
    return await Session(node).run(f"{table} AS OF SYSTEM TIME '{ts}'{suffix}")


async def _patiently(node: Node, text: str, ts: Timestamp) -> list[tuple[Any, ...]]:
    for _ in range(100):
        try:
            return await read_past(node, text, ts)
        except (SqlError, PortError):
            await trio.sleep(0.1)
    raise Violation(f"{text} at {ts} still fails when the faults are over")
