"""Clients of the simulated cluster that use transactions of several statements, as sessions run them, over tables of several ranges.

    lists      UPDATE … SET v = v || … of some rows, reads before and between ─▶ `listappend`
    transfers  money between accounts; the total by a query, or account by account ─▶ `bank`
    pairs      two transactions, each of which inserts where a read of a group found nothing ─▶ `predicate`, `phantom`
    rows       inserts in several places, and scans of spans ─▶ `phantom`, `sets`

Now and then a transaction sets a savepoint and returns to it, rolls back, or is forgotten until its session ends.

Invariants:
- Within a process one transaction runs at a time, and what it was given is recorded before it goes on.
- What was written behind a savepoint that it returned to is no operation of the transaction: whoever sees it has seen too much.
"""

import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from dsdb.node.node import Node
from dsdb.sql.errors import SqlError
from dsdb.sql.execute.result import Parameter
from dsdb.sql.execute.session import SessionState
from dsdb.sql.ports import PortError
from dsdb.sql.transaction_status import TransactionStatus
from dsdb.sql.types import INT, TEXT
from tests.checkers import bank, listappend, phantom, predicate, sets
from tests.checkers.history import (
    Anomaly,
    Append,
    History,
    Insert,
    Pending,
    Read,
    ReadList,
    Recorder,
    Scan,
    Select,
    Violation,
    Write,
    refuse,
)

SQL_LISTS = 6
ACCOUNTS = 6
MONEY = 100
"""What each account begins with."""
GROUPS = 1_000
"""Groups of one side; its partner is so much higher."""
ROWS = 3_000
"""Rows are inserted below this."""
STATEMENT_S = 15.0
"""A statement must end within this."""
LOCK_TIMEOUT = "5s"
"""Whoever is left idle, or dies, keeps its locks for a while."""
IDLE_S = 2.0
"""A forgotten transaction ends with its session within this."""

TABLES: dict[str, tuple[str, ...]] = {
    "lists": (
        "CREATE TABLE sql_lists (k INT PRIMARY KEY, v TEXT NOT NULL)",
        f"INSERT INTO sql_lists VALUES {', '.join(f'({k}, chr(32))' for k in range(SQL_LISTS))}",
        "ALTER TABLE sql_lists SPLIT AT VALUES (2), (4)",
    ),
    "transfers": (
        "CREATE TABLE accounts (id INT PRIMARY KEY, balance INT NOT NULL)",
        f"INSERT INTO accounts VALUES {', '.join(f'({account}, {MONEY})' for account in range(ACCOUNTS))}",
        "ALTER TABLE accounts SPLIT AT VALUES (2), (4)",
    ),
    "pairs": (
        "CREATE TABLE pairs (grp INT, id INT, PRIMARY KEY (grp, id))",
        f"ALTER TABLE pairs SPLIT AT VALUES ({GROUPS}, 0)",
    ),
    "rows": (
        "CREATE TABLE inserted (id INT PRIMARY KEY, wide INT NOT NULL)",
        f"ALTER TABLE inserted SPLIT AT VALUES ({ROWS // 3}), ({2 * ROWS // 3})",
    ),
}
"""Kind of client → what makes its table."""
SPLITS = {"lists": 2, "transfers": 2, "pairs": 1, "rows": 2}
"""Kind of client → how often its table is cut at the beginning."""
SPLIT_AT: dict[str, Callable[[random.Random], str]] = {
    "lists": lambda chance: f"ALTER TABLE sql_lists SPLIT AT VALUES ({chance.randrange(1, SQL_LISTS)})",
    "transfers": lambda chance: f"ALTER TABLE accounts SPLIT AT VALUES ({chance.randrange(1, ACCOUNTS)})",
    "pairs": lambda chance: f"ALTER TABLE pairs SPLIT AT VALUES ({GROUPS * chance.randrange(2) + chance.randrange(1, 50)}, 0)",
    "rows": lambda chance: f"ALTER TABLE inserted SPLIT AT VALUES ({chance.randrange(1, ROWS)})",
}
"""Kind of client → a statement that cuts its table somewhere."""


class RolledBack(Exception):
    """The client has thought better of it, or forgotten it."""


class Session:
    """A session on one node, without its connection."""

    def __init__(self, node: Node, *, statement_s: float = STATEMENT_S) -> None:
        assert node.parts is not None
        self._statement_s = statement_s
        self._executor = node.parts.executor
        self.state = SessionState()
        self.state.change_setting("lock_timeout", LOCK_TIMEOUT)

    async def run(self, text: str, *values: int | str) -> list[tuple[Any, ...]]:
        """Run a statement, and give its rows."""
        (statement,) = self._executor.prepare(text)
        parameters = [Parameter(INT if isinstance(value, int) else TEXT, value) for value in values]
        began = trio.current_time()
        result = await self._executor.run(self.state, statement, parameters)
        if trio.current_time() - began > self._statement_s:
            raise Violation(f"{text!r} took {trio.current_time() - began:.1f} s")
        if result.batches is None:
            return result.rows or []
        return [tuple(row.values()) for batch in [batch async for batch in result.batches] for row in batch.to_pylist()]

    async def end(self) -> None:
        """Close it, as the end of its connection does."""
        await self._executor.end(self.state)


Body = Callable[[Session, Pending], Awaitable[None]]
OnSomeHost = Callable[[Callable[[Node], Awaitable[None]], float | None, str], Awaitable[None]]


class SqlClients:
    """The four workloads, and what was seen of them."""

    def __init__(self, chance: random.Random, on_some_host: OnSomeHost, seed: int) -> None:
        self._chance = chance
        self._on_some_host = on_some_host
        self._about = f"seed {seed}"
        self.recorders = {kind: Recorder() for kind in TABLES}
        self._unused = chance.sample(range(ROWS), ROWS)
        """Keys of rows that nobody has inserted."""
        self._next_pair = 1
        self._open_pairs: list[int] = []

    # ---- What they do ----

    async def act(self, kind: str, client: int) -> str:
        """Run one transaction of a kind; give what it was.  Raises what the host raises."""
        match kind:
            case "lists":
                return await self._change_lists(client)
            case "transfers":
                return await self._move_money(client) if self._chance.random() < 0.6 else await self._add_up(client)
            case "pairs":
                return await self._insert_pair(client)
            case _:
                return await self._insert_rows(client) if self._chance.random() < 0.6 else await self._scan_rows(client)

    async def _change_lists(self, client: int) -> str:
        chance = self._chance
        keys = chance.sample(range(SQL_LISTS), chance.choice((1, 2, 2, 3, 3, 6)))
        appended = [key for key in keys if chance.random() < 0.6]
        lock = " FOR UPDATE" if chance.random() < 0.1 else ""
        undone = chance.choice(range(SQL_LISTS)) if chance.random() < 0.15 else None

        async def body(session: Session, record: Pending) -> None:
            for key in keys:
                if key not in appended or chance.random() < 0.5:
                    await self._read_list(session, record, key, lock)
                if key in appended:
                    await session.run("UPDATE sql_lists SET v = v || $1 WHERE k = $2", f"{record.number} ", key)
                    record.ops.append(Append(key, record.number))
            if undone is not None:
                await self._undo(session, "UPDATE sql_lists SET v = v || $1 WHERE k = $2", f"-{record.number} ", undone)
                await self._read_list(session, record, undone, "")

        await self._transact("lists", client, body)
        return "lists changed" if appended else "sql lists read"

    async def _read_list(self, session: Session, record: Pending, key: int, lock: str) -> None:
        (text,) = only_row(await session.run(f"SELECT v FROM sql_lists WHERE k = $1{lock}", key))
        record.ops.append(ReadList(key, tuple(int(number) for number in text.split())))

    async def _move_money(self, client: int) -> str:
        chance = self._chance
        source, *targets = chance.sample(range(ACCOUNTS), chance.choice((2, 2, 3, 5)))

        async def body(session: Session, record: Pending) -> None:
            balances = {}
            for account in (source, *targets):
                (balances[account],) = only_row(await session.run("SELECT balance FROM accounts WHERE id = $1", account))
                record.ops.append(Read(account, balances[account]))
            amount = chance.randint(0, max(0, balances[source]) // len(targets))
            for account in targets:
                await self._pay(session, record, balances, account, amount)
            if chance.random() < 0.15:
                await self._undo(session, "UPDATE accounts SET balance = balance + $1 WHERE id = $2", 1_000, source)
            await self._pay(session, record, balances, source, -amount * len(targets))

        await self._transact("transfers", client, body)
        return "money moved"

    async def _pay(self, session: Session, record: Pending, balances: dict[int, int], account: int, amount: int) -> None:
        await session.run("UPDATE accounts SET balance = balance + $1 WHERE id = $2", amount, account)
        record.ops.append(Write(account, balances[account] + amount))

    async def _add_up(self, client: int) -> str:
        is_query = self._chance.random() < 0.5

        async def body(session: Session, record: Pending) -> None:
            if is_query:
                total, count = only_row(await session.run("SELECT sum(balance), count(*) FROM accounts"))
                if (int(total), count) != (ACCOUNTS * MONEY, ACCOUNTS):
                    raise Violation(f"{count} accounts add up to {total}, not {ACCOUNTS} to {ACCOUNTS * MONEY}")
            else:
                for account in range(ACCOUNTS):
                    (balance,) = only_row(await session.run("SELECT balance FROM accounts WHERE id = $1", account))
                    record.ops.append(Read(account, balance))

        await self._transact("transfers", client, body)
        return "total by a query" if is_query else "total by reads"

    async def _insert_pair(self, client: int) -> str:
        chance = self._chance
        if not self._open_pairs:
            self._open_pairs = [self._next_pair] * chance.choice((2, 2, 3))
            self._next_pair += 1
        group = self._open_pairs.pop()
        groups = [group, group + GROUPS]
        chance.shuffle(groups)
        targets = groups if chance.random() < 0.3 else groups[:1]

        async def body(session: Session, record: Pending) -> None:
            found = False
            for each in groups:
                rows = await session.run("SELECT id FROM pairs WHERE grp = $1", each)
                record.ops.append(Select(each, tuple(number for (number,) in rows)))
                found = found or bool(rows)
            if found:
                return
            for place, target in enumerate(targets):
                number = record.number * 2 + place
                await session.run("INSERT INTO pairs VALUES ($1, $2)", target, number)
                record.ops.append(Insert(number, target))

        await self._transact("pairs", client, body)
        return "pairs"

    async def _insert_rows(self, client: int) -> str:
        chance = self._chance
        if len(self._unused) < 20:
            return await self._scan_rows(client)
        count = chance.choice((1, 2, 3, 12))
        keys, self._unused = self._unused[:count], self._unused[count:]
        at_once = chance.random() < 0.5

        async def body(session: Session, record: Pending) -> None:
            if chance.random() < 0.5:
                await self._scan(session, record)
            if at_once:
                await session.run(f"INSERT INTO inserted VALUES {', '.join(f'({key}, 0)' for key in keys)}")
            else:
                for key in keys:
                    await session.run("INSERT INTO inserted VALUES ($1, 0)", key)
            record.ops += [Insert(key) for key in keys]
            if chance.random() < 0.15:
                await self._undo(session, "INSERT INTO inserted VALUES ($1 + $2, 0)", ROWS, keys[0])

        await self._transact("rows", client, body)
        return "rows inserted"

    async def _scan_rows(self, client: int) -> str:
        times = self._chance.choice((1, 1, 2))

        async def body(session: Session, record: Pending) -> None:
            for _ in range(times):
                await self._scan(session, record)

        await self._transact("rows", client, body)
        return "rows scanned"

    async def _scan(self, session: Session, record: Pending) -> None:
        start, end = sorted(self._chance.sample(range(ROWS + 1), 2))
        rows = await session.run("SELECT id FROM inserted WHERE id >= $1 AND id < $2", start, end)
        record.ops.append(Scan(tuple(sorted(key for (key,) in rows)), start, end))

    async def _undo(self, session: Session, text: str, *values: int | str) -> None:
        """Do something behind a savepoint, and return to it."""
        if session.state.status is TransactionStatus.NONE:
            return
        await session.run("SAVEPOINT here")
        await session.run(text, *values)
        await session.run("ROLLBACK TO here")

    # ---- How they do it ----

    async def _transact(self, kind: str, client: int, body: Body) -> None:
        """Run a transaction on some host, and record how it ended."""
        recorder, chance = self.recorders[kind], self._chance
        record = recorder.begin(client)
        pause_s = chance.choice((0, 0, 0, 0.01, 0.5))
        end = chance.choice(("COMMIT",) * 12 + ("ROLLBACK", "nothing"))

        async def transact(node: Node) -> None:
            session = Session(node)
            try:
                await session.run("BEGIN")
                await body(session, record)
                await trio.sleep(pause_s)
                if end == "nothing":
                    await trio.sleep(chance.uniform(0, IDLE_S))
                    raise RolledBack
                await session.run(end)
            except BaseException:
                await session.end()
                raise
            if end == "ROLLBACK":
                raise RolledBack

        try:
            await self._on_some_host(transact, None, f"a transaction of {kind}")
        except RolledBack:
            recorder.fail(record, "rolled back")
            return
        except (SqlError, PortError) as error:
            recorder.fail(record, str(error))
            raise
        recorder.ok(record)

    # ---- At the end ----

    async def check(self, kinds: list[str], node: Node, keep: Path | None) -> None:
        """Read everything, when nobody writes any more, and judge what was seen.  Raises Violation."""
        session = Session(node)
        for kind in kinds:
            record = self.recorders[kind].begin(-1)
            match kind:
                case "lists":
                    for key in range(SQL_LISTS):
                        await self._read_list(session, record, key, "")
                case "transfers":
                    rows = await session.run("SELECT id, balance FROM accounts")
                    record.ops += [Read(account, balance) for account, balance in rows]
                case "pairs":
                    rows = await session.run("SELECT grp, id FROM pairs")
                    groups = sorted({group for group, _ in rows})
                    record.ops += [Select(group, tuple(number for other, number in rows if other == group)) for group in groups]
                case _:
                    rows = await session.run("SELECT id FROM inserted")
                    record.ops.append(Scan(tuple(sorted(key for (key,) in rows))))
            self.recorders[kind].ok(record)
            history = self.recorders[kind].history(f"{kind} of {self._about}")
            refuse(judge(kind, history), history, keep)


def only_row(rows: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """Give the row, of which there is always one.  Raises Violation."""
    if len(rows) != 1:
        raise Violation(f"a query that has one row gave {rows}")
    return rows[0]


def judge(kind: str, history: History) -> list[Anomaly]:
    """Give the anomalies of a workload's history."""
    match kind:
        case "lists":
            return listappend.check(history)
        case "transfers":
            return bank.check(history, range(ACCOUNTS), ACCOUNTS * MONEY)
        case "pairs":
            return predicate.check(history) + phantom.check(history)
        case _:
            return sets.check(history) + phantom.check(history)
