"""Clients of the simulated cluster that change the catalogue in transactions, while others use the tables.

    make    CREATE TABLE made_N, rows into it, N into a list, in one transaction     both, or neither, are there for whoever looks later
    put     a row into `jobs`, by a statement alone
    drain   all rows of `jobs` into `done`, and `jobs` truncated, or dropped and made again, in one transaction
                                                                                    each row that was put is in one of the two

Invariants:
- What was answered is there, and what was refused is not; of what nobody knows, all or nothing.
"""

import random

from dsdb.node.node import Node
from dsdb.sql.errors import SqlError, UndefinedTableError
from dsdb.sql.ports import PortError
from tests.checkers.history import Violation
from tests.sim.sql_clients import OnSomeHost, RolledBack, Session

DDL_TABLES: dict[str, tuple[str, ...]] = {
    "ddl": (
        "CREATE TABLE made (n INT PRIMARY KEY)",
        "CREATE TABLE jobs (id INT PRIMARY KEY)",
        "CREATE TABLE done (id INT PRIMARY KEY)",
    ),
}
"""Kind of client → what makes its tables."""
DRAIN = (
    ("TRUNCATE jobs",),
    ("DROP TABLE jobs", "CREATE TABLE jobs (id INT PRIMARY KEY)"),
)
CHANGE_S = 100.0
"""A statement must end within this: it may wait for a fence of a host that has died, and its own change for the leases of others."""


class DdlClients:
    """The workload, and what became of each thing: unknown, there, or failed."""

    def __init__(self, chance: random.Random, on_some_host: OnSomeHost) -> None:
        self._chance = chance
        self._on_some_host = on_some_host
        self._made: dict[int, str] = {}
        self._put: dict[int, str] = {}
        self._next = 1

    async def act(self) -> str:
        """Do one of the four things; give what it was.  Raises what the host raises."""
        dice = self._chance.random()
        if dice < 0.15:
            return await self._make()
        if dice < 0.3:
            return await self._drain()
        if dice < 0.6:
            return await self._look()
        return await self._put_one()

    async def _transact(self, outcomes: dict[int, str], number: int, *texts: str) -> None:
        """Run statements on some host, and note what became of them."""
        outcomes[number] = "unknown"
        ends_well = self._chance.random() < 0.9

        async def transact(node: Node) -> None:
            session = Session(node, statement_s=CHANGE_S)
            try:
                for text in texts:
                    if text == "COMMIT" and not ends_well:
                        raise RolledBack
                    await session.run(text)
            finally:
                await session.end()

        try:
            await self._on_some_host(transact, None, f"{texts}")
        except (SqlError, PortError, RolledBack) as error:
            outcomes[number] = "failed"
            if not isinstance(error, RolledBack):
                raise
        else:
            outcomes[number] = "there"

    def _number(self) -> int:
        self._next += 1
        return self._next

    async def _make(self) -> str:
        number = self._number()
        rows = f"INSERT INTO made_{number} VALUES (1), (2)"
        await self._transact(
            self._made,
            number,
            "BEGIN",
            f"CREATE TABLE made_{number} (id INT PRIMARY KEY)",
            rows,
            f"INSERT INTO made VALUES ({number})",
            "COMMIT",
        )
        return f"table made: {self._made[number]}"

    async def _put_one(self) -> str:
        number = self._number()
        await self._transact(self._put, number, f"INSERT INTO jobs VALUES ({number})")
        return "job put"

    async def _drain(self) -> str:
        await self._transact({}, 0, "BEGIN", "INSERT INTO done SELECT id FROM jobs", *self._chance.choice(DRAIN), "COMMIT")
        return "jobs drained"

    async def _look(self) -> str:
        if not self._made:
            return "nothing to look at"
        number = self._chance.choice(sorted(self._made))
        before = self._made[number]

        async def look(node: Node) -> None:
            await self._compare(node, number, before)

        await self._on_some_host(look, None, "a look")
        return "table looked at"

    async def _compare(self, node: Node, number: int, state: str) -> None:
        """Look at a table first, then at the list: who finds the table has a catalogue, and so a timestamp, behind its commit."""
        session = Session(node, statement_s=CHANGE_S)
        try:
            rows = len(await session.run(f"SELECT id FROM made_{number}"))
        except UndefinedTableError:
            rows = 0
        is_listed = bool(await session.run(f"SELECT n FROM made WHERE n = {number}"))
        if (rows and (rows != 2 or not is_listed or state == "failed")) or (state == "there" and not rows):
            raise Violation(f"table {number} ({state}) has {rows} rows, and is {'' if is_listed else 'not '}listed")

    async def check(self, nodes: list[Node]) -> None:
        """Look at everything, when nobody changes anything any more.  Raises Violation."""
        for at, (number, state) in enumerate(sorted(self._made.items())):
            await self._compare(nodes[at % len(nodes)], number, state)
        session = Session(nodes[0], statement_s=CHANGE_S)
        listed = {number for (number,) in await session.run("SELECT n FROM made")}
        tables = {name for _, name in await session.run("SHOW TABLES")}
        for number, state in self._made.items():
            if (number in listed) != (f"made_{number}" in tables) or (state == "failed" and number in listed):
                raise Violation(f"table {number} ({state}) is one of {sorted(tables)}, and {listed} are listed")
        await session.run("BEGIN")
        found = [number for table in ("jobs", "done") for (number,) in await session.run(f"SELECT id FROM {table}")]
        await session.end()
        for number, state in self._put.items():
            times = found.count(number)
            if times > 1 or (state == "there" and not times) or (state == "failed" and times):
                raise Violation(f"job {number} ({state}) is there {times} times")
