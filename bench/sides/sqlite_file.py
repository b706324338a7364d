"""SQLite as a peer: no server and no network, one writer at a time; WAL, and every commit synced (`synchronous=FULL`)."""

import random
import re
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import bank, rows
from bench.sides.port import ClientSpec, Contender, timed_in_interpreter

BUSY_S = 30.0
"""How long a writer waits for another; then its statement has failed."""
_TABLES = {"read": rows.KV_TABLE, "insert": rows.INS_TABLE, "bulk": rows.BULK_TABLE}


class SqliteSide:
    """A database file that all clients open."""

    name = "sqlite"

    def __init__(self, directory: Path, *, kv_rows: int, wide_rows: int) -> None:
        self._file = directory / "peer.sqlite"
        self._kv_rows = kv_rows
        self._prepared: set[str] = set()
        self.version = sqlite3.sqlite_version

    def start(self) -> None:
        """Do nothing: there is no server."""

    def servers(self) -> Sequence[int]:
        """Give none."""
        return ()

    def prepare(self, workload: str) -> None:
        """Make and fill tables."""
        if workload in self._prepared:
            return
        statements: list[str] = []
        if workload in bank.ACCOUNTS:
            statements = [bank.table(bank.ACCOUNTS[workload]), *bank.fill(bank.ACCOUNTS[workload])]
        elif workload in _TABLES:
            statements = [_TABLES[workload]]
            if workload == "read":
                statements += [rows.kv_insert(first, rows.BULK_ROWS) for first in range(0, self._kv_rows, rows.BULK_ROWS)]
        connection = _connect(self._file)
        connection.execute("BEGIN")
        for statement in statements:
            # Only a key called INTEGER is the row's own number; any other is an index beside it.
            connection.execute(re.sub(r"\b(BIG)?INT PRIMARY KEY", "INTEGER PRIMARY KEY", statement, count=1))
        connection.execute("COMMIT")
        connection.close()
        self._prepared.add(workload)

    def check(self, workload: str) -> None:
        """Add up the balances."""
        if (accounts := bank.ACCOUNTS.get(workload)) is not None:
            connection = _connect(self._file)
            bank.check(self.name, accounts, connection.execute(bank.sum_query(accounts)).fetchone())
            connection.close()

    def contenders(self, workload: str, clients: int) -> list[Contender]:
        """Say who takes part."""
        if workload not in _TABLES and workload not in bank.ACCOUNTS:
            return []
        spec = ClientSpec(module="sqlite_file", address=str(self._file))
        return [Contender(label="sqlite, in process", is_dsdb=False, specs=(spec,) * clients, servers=())]

    def starts(self) -> dict[str, Callable[[], float]]:
        """Give the opening of a database in memory, in a new interpreter."""
        code = "import sqlite3; sqlite3.connect(':memory:').execute('SELECT 1').fetchone()"
        return {"sqlite, embedded": lambda: timed_in_interpreter(code)}

    def close(self) -> None:
        """Do nothing."""


def _connect(file: str | Path) -> sqlite3.Connection:
    connection = sqlite3.connect(file, timeout=BUSY_S, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection


class SqliteClient:
    """A client in its own process, with a connection of its own."""

    errors: tuple[type[Exception], ...] = (sqlite3.OperationalError, bank.Aborted)

    def __init__(self, path: str) -> None:
        self._connection = _connect(path)
        self._chance = random.Random()

    def read(self, key: int) -> None:
        """Read one value."""
        assert self._connection.execute("SELECT v FROM kv WHERE id = ?", (key,)).fetchone() is not None, key

    def insert(self, key: int) -> None:
        """Insert one row."""
        self._connection.execute("INSERT INTO ins VALUES (?, ?)", (key, rows.VALUE))

    def insert_bulk(self, key: int) -> None:
        """Insert rows by one statement."""
        self._connection.execute(rows.wide_insert("bulk", key))

    def transfer(self, accounts: int) -> int:
        """Make a transfer; it is alone from its begin on, so nothing aborts it."""
        table = bank.table_name(accounts)
        execute = self._connection.execute

        def attempt(source: int, target: int, amount: int) -> bool:
            execute("BEGIN IMMEDIATE")  # a transaction that only becomes a writer later fails if another wrote meanwhile
            try:
                balances: dict[int, int] = dict(execute(f"SELECT id, balance FROM {table} WHERE id IN (?, ?)", (source, target)).fetchall())
                if has_funds := balances[source] >= amount:
                    execute(f"UPDATE {table} SET balance = ? WHERE id = ?", (balances[source] - amount, source))
                    execute(f"UPDATE {table} SET balance = ? WHERE id = ?", (balances[target] + amount, target))
                execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    execute("ROLLBACK")
            return has_funds

        return bank.transfer(accounts, attempt, self._chance)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def open_client(path: str) -> SqliteClient:
    """Open the file."""
    return SqliteClient(path)
