"""PostgreSQL as a peer: one node, durable as it comes (fsync and synchronous_commit are on), psycopg 3 and ADBC as its drivers."""

import glob
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import bank, rows
from bench.sides.port import Client, ClientSpec, Contender, SideMissing, free_ports

START_S, STOP_S = 30.0, 20.0
_SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
shared_buffers = 1GB
effective_cache_size = 4GB
work_mem = 64MB
max_wal_size = 4GB
"""


class PostgresSide:
    """One PostgreSQL server below a directory."""

    name = "postgres"

    def __init__(self, directory: Path, *, kv_rows: int, wide_rows: int) -> None:
        self._directory = directory / "postgres"
        self._kv_rows, self._wide_rows = kv_rows, wide_rows
        self._process: subprocess.Popen[bytes] | None = None
        self._prepared: set[str] = set()
        self.version = ""

    def start(self) -> None:
        """Make a database directory and start the server.  Raises SideMissing."""
        self._programs = _find_programs()
        try:
            import psycopg  # noqa: F401, PLC0415, RUF100
        except ImportError:
            raise SideMissing("psycopg is not installed: `make bench` installs it") from None
        self._user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
        self._directory.mkdir(parents=True)
        if self._user is not None:
            shutil.chown(self._directory, self._user)
        self._call(["initdb", "-D", str(self._directory), "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-instructions"])
        self._port = free_ports(1)[0]
        with (self._directory / "postgresql.conf").open("a") as file:
            file.write(f"{_SETTINGS}port = {self._port}\n")
        self._launch()
        with self.connect() as connection:
            self.version = str(connection.execute("SHOW server_version").fetchone()[0])

    def servers(self) -> list[int]:
        """Give the postmaster's id; its backends are below it."""
        return [self._process.pid] if self._process is not None else []

    @property
    def address(self) -> str:
        """Give the URL of the server."""
        return f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    def prepare(self, workload: str) -> None:
        """Make and fill tables."""
        if workload in bank.ACCOUNTS:
            self._make_accounts(bank.ACCOUNTS[workload])
            return
        table = {"read": "kv", "insert": "ins", "bulk": "bulk", "fetch-arrow": "wide", "fetch-pandas": "wide"}.get(workload)
        if table is None or table in self._prepared:
            return
        with self.connect() as connection:
            connection.execute({"kv": rows.KV_TABLE, "ins": rows.INS_TABLE, "bulk": rows.BULK_TABLE, "wide": rows.WIDE_TABLE}[table])
            with connection.transaction():
                if table == "kv":
                    for first in range(0, self._kv_rows, rows.BULK_ROWS):
                        connection.execute(rows.kv_insert(first, rows.BULK_ROWS))
                elif table == "wide":
                    for statement in rows.wide_fill(self._wide_rows):
                        connection.execute(statement)
            connection.execute(f"VACUUM ANALYZE {table}")
            connection.execute("CHECKPOINT")
        self._prepared.add(table)

    def _make_accounts(self, accounts: int) -> None:
        table = bank.table_name(accounts)
        if table in self._prepared:
            return
        with self.connect() as connection:
            for statement in (bank.table(accounts), *bank.fill(accounts), f"VACUUM ANALYZE {table}", "CHECKPOINT"):
                connection.execute(statement)
        self._prepared.add(table)

    def check(self, workload: str) -> None:
        """Add up the balances."""
        if (accounts := bank.ACCOUNTS.get(workload)) is not None:
            with self.connect() as connection:
                bank.check(self.name, accounts, connection.execute(bank.sum_query(accounts)).fetchone())

    def contenders(self, workload: str, clients: int) -> list[Contender]:
        """Say who takes part."""
        if workload in ("read", "insert", "bulk", *bank.ACCOUNTS):
            return [self._contender("postgres", "postgres", clients)]
        if workload in ("fetch-arrow", "fetch-pandas"):
            found = [self._contender("postgres, psycopg", "postgres", clients)]
            try:
                import adbc_driver_postgresql  # type: ignore[import-untyped]  # noqa: F401, PLC0415, RUF100
            except ImportError:
                return found
            return [self._contender("postgres, ADBC", "postgres_adbc", clients), *found]
        return []

    def starts(self) -> dict[str, Callable[[], float]]:
        """Give the restart of the server."""
        return {"postgres, again": self._start_again}

    def _start_again(self) -> float:
        self._stop()
        begun = time.perf_counter()
        self._launch()
        return time.perf_counter() - begun

    def close(self) -> None:
        """End the server."""
        self._stop()

    def _contender(self, label: str, module: str, clients: int) -> Contender:
        spec = ClientSpec(module=module, address=self.address)
        return Contender(label=label, is_dsdb=False, specs=(spec,) * clients, servers=tuple(self.servers()))

    def _launch(self) -> None:
        command = [str(self._programs / "postgres"), "-D", str(self._directory)]
        log = (self._directory / "server.log").open("ab")
        self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self._directory, user=self._user)
        log.close()
        import psycopg  # noqa: PLC0415, RUF100

        deadline = time.monotonic() + START_S
        while True:
            try:
                with self.connect() as connection:
                    connection.execute("SELECT 1").fetchone()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise SideMissing(f"PostgreSQL did not start: {error}; {_tail(self._directory / 'server.log')}") from error
            threading.Event().wait(0.005)

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)  # its fast shutdown
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait()
        self._process = None

    def connect(self) -> Any:
        import psycopg  # noqa: PLC0415, RUF100

        return psycopg.connect(f"host=127.0.0.1 port={self._port} user=postgres dbname=postgres", autocommit=True)

    def _call(self, command: list[str]) -> None:
        program = [str(self._programs / command[0]), *command[1:]]
        done = subprocess.run(program, capture_output=True, text=True, user=self._user, cwd=self._directory, check=False)
        if done.returncode:
            raise SideMissing(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")


def _find_programs() -> Path:
    # Debian keeps them out of PATH, by version.
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"), key=lambda path: int(path.split("/")[4]))
    path = found[-1] if found else shutil.which("initdb")
    if path is None:
        raise SideMissing("PostgreSQL is not installed: apt-get install postgresql, or `python -m bench --install` as root")
    return Path(path).parent


def _tail(path: Path) -> str:
    return " / ".join(path.read_text(errors="replace").splitlines()[-3:])


class PostgresClient:
    """A client by psycopg 3: prepared statements, autocommit."""

    def __init__(self, address: str) -> None:
        import psycopg  # noqa: PLC0415, RUF100

        self.errors: tuple[type[Exception], ...] = (psycopg.OperationalError, bank.Aborted)
        # Both are OperationalErrors too.
        self._conflicts = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)
        self._connection = psycopg.connect(address, autocommit=True)
        self._connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE  # of BEGIN, which only transfers send
        self._cursor = self._connection.cursor()
        self._chance = random.Random()

    def read(self, key: int) -> None:
        """Read one value."""
        found = self._cursor.execute("SELECT v FROM kv WHERE id = %s", (key,), prepare=True).fetchone()
        assert found is not None, key

    def insert(self, key: int) -> None:
        """Insert one row."""
        self._cursor.execute("INSERT INTO ins VALUES (%s, %s)", (key, rows.VALUE), prepare=True)

    def insert_bulk(self, key: int) -> None:
        """Insert rows by one statement."""
        self._cursor.execute(rows.wide_insert("bulk", key))

    def transfer(self, accounts: int) -> int:
        """Make a transfer."""
        table = bank.table_name(accounts)
        read = f"SELECT id, balance FROM {table} WHERE id IN (%s, %s)"
        write = f"UPDATE {table} SET balance = %s WHERE id = %s"

        def attempt(source: int, target: int, amount: int) -> bool:
            try:
                with self._connection.transaction():
                    balances: dict[int, int] = dict(self._cursor.execute(read, (source, target), prepare=True).fetchall())
                    if balances[source] < amount:
                        return False
                    self._cursor.execute(write, (balances[source] - amount, source), prepare=True)
                    self._cursor.execute(write, (balances[target] + amount, target), prepare=True)
            except self._conflicts as error:
                raise bank.Aborted from error
            return True

        return bank.transfer(accounts, attempt, self._chance)

    def fetch_arrow(self, count: int) -> None:
        """Fetch rows and make an Arrow table of them."""
        import pyarrow as pa  # noqa: PLC0415, RUF100

        cursor = self._connection.cursor(binary=True)
        cursor.execute("SELECT * FROM wide")
        names = [column.name for column in cursor.description or ()]
        table = pa.table(dict(zip(names, zip(*cursor.fetchall()))))
        assert table.shape == (count, rows.WIDE_COLUMNS), table.shape

    def fetch_pandas(self, count: int) -> None:
        """Fetch rows and make a data frame of them."""
        import pandas as pd  # noqa: PLC0415, RUF100

        cursor = self._connection.cursor(binary=True)
        cursor.execute("SELECT * FROM wide")
        names = [column.name for column in cursor.description or ()]
        frame = pd.DataFrame(cursor.fetchall(), columns=names)
        assert frame.shape == (count, rows.WIDE_COLUMNS), frame.shape

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()


def open_client(address: str) -> Client:
    """Connect."""
    return PostgresClient(address)
