"""MariaDB Galera as a peer: three nodes, each with all rows, every commit certified by all; durable as it comes; clients by PyMySQL.

    commit at a node ─▶ its write set goes to all nodes in one total order ─▶ each certifies it alike: the first of two that conflict wins

Invariants:
- Every socket is on loopback, those of the group's messages and of state transfers too.

A commit is on the disk of the node that answers (`innodb_flush_log_at_trx_commit=1`), and received by the others, which write it later.
"""

import getpass
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
from bench.sides.port import ClientSpec, Contender, SideMissing, free_ports

NODES = 3
START_S, STOP_S = 60.0, 20.0
DATABASE = "bench"
_PROVIDERS = ("/usr/lib/galera/libgalera_smm.so", "/usr/lib64/galera-4/libgalera_smm.so", "/usr/lib/libgalera_smm.so")
_SETTINGS = (
    *("--bind-address=127.0.0.1", "--skip-name-resolve", "--max-connections=300", "--character-set-server=utf8mb4"),
    *("--innodb-buffer-pool-size=512M", "--innodb-log-file-size=128M", "--innodb-flush-log-at-trx-commit=1"),
    *("--binlog-format=ROW", "--default-storage-engine=InnoDB", "--innodb-autoinc-lock-mode=2"),
    *("--wsrep-on=ON", "--wsrep-cluster-name=bench", "--wsrep-sst-method=rsync", "--wsrep-slave-threads=2"),
)
_TABLES = {"read": "kv", "insert": "ins", "bulk": "bulk"}
_CONFLICTS = (1020, 1205, 1213)
"""MariaDB's error numbers: a row changed since it was read, a lock was not to be had, a deadlock.  A write set that fails its certification
is told as a deadlock."""


class GaleraSide:
    """Three MariaDB servers below a directory."""

    name = "galera"

    def __init__(self, directory: Path, *, kv_rows: int, wide_rows: int) -> None:
        self._directory = directory / "galera"
        self._kv_rows = kv_rows
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ports: list[int] = []
        self._prepared: set[str] = set()
        self.version = ""

    def start(self) -> None:
        """Found a cluster.  Raises SideMissing."""
        self._programs = _find_programs()
        try:
            import pymysql  # type: ignore[import-untyped]  # noqa: F401, PLC0415, RUF100
        except ImportError:
            raise SideMissing("PyMySQL is not installed: `make bench` installs it") from None
        self._user = "mysql" if os.geteuid() == 0 else getpass.getuser()  # state transfers by rsync fail as root
        self._directory.mkdir(parents=True)
        if os.geteuid() == 0:
            shutil.chown(self._directory, self._user)
        self._call(["mariadb-install-db", "--no-defaults", f"--datadir={self._data(0)}", *_INSTALL])
        for number in range(1, NODES):
            self._call(["cp", "-a", str(self._data(0)), str(self._data(number))])
        ports = iter(free_ports(4 * NODES))
        nodes = [(next(ports), next(ports), next(ports), next(ports)) for _ in range(NODES)]
        self._ports = [sql for sql, *_ in nodes]
        members = "gcomm://" + ",".join(f"127.0.0.1:{group}" for _, group, *_ in nodes)
        for number, (sql, group, transfers, states) in enumerate(nodes):
            self._launch(number, sql, group, transfers, states, members)
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute("SELECT VERSION()")
            self.version = str(cursor.fetchone()[0])
            cursor.execute(f"CREATE DATABASE {DATABASE}")

    def servers(self) -> list[int]:
        """Give the servers' ids."""
        return [process.pid for process in self._processes]

    def prepare(self, workload: str) -> None:
        """Make and fill tables."""
        if workload in self._prepared:
            return
        statements: list[str] = []
        if workload in bank.ACCOUNTS:
            statements = [bank.table(bank.ACCOUNTS[workload]), *bank.fill(bank.ACCOUNTS[workload])]
        elif workload in _TABLES:
            statements = [{"kv": rows.KV_TABLE, "ins": rows.INS_TABLE, "bulk": rows.BULK_TABLE}[_TABLES[workload]]]
            if workload == "read":
                statements += [rows.kv_insert(first, rows.BULK_ROWS) for first in range(0, self._kv_rows, rows.BULK_ROWS)]
        with self._connect(DATABASE) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
        self._prepared.add(workload)

    def check(self, workload: str) -> None:
        """Add up the balances, at a node that has applied every commit."""
        if (accounts := bank.ACCOUNTS.get(workload)) is not None:
            with self._connect(DATABASE) as connection, connection.cursor() as cursor:
                cursor.execute("SET SESSION wsrep_sync_wait = 1")
                cursor.execute(bank.sum_query(accounts))
                bank.check(self.name, accounts, cursor.fetchone())

    def contenders(self, workload: str, clients: int) -> list[Contender]:
        """Say who takes part; clients are spread over all nodes."""
        if workload not in _TABLES and workload not in bank.ACCOUNTS:
            return []
        wait = "1" if workload == "read" else "0"  # elsewhere commits are certified, which finds what a read was too early for
        specs = tuple(ClientSpec(module="galera", address=f"{self._ports[number % NODES]}/{wait}") for number in range(clients))
        return [Contender(label="galera", is_dsdb=False, specs=specs, servers=tuple(self.servers()))]

    def starts(self) -> dict[str, Callable[[], float]]:
        """Give none: the whole group's restart needs somebody who says which node was last."""
        return {}

    def close(self) -> None:
        """End all servers, at once: their data goes with them."""
        for process in self._processes:
            process.send_signal(signal.SIGKILL)
            process.wait(STOP_S)
        self._processes = []

    def _data(self, number: int) -> Path:
        return self._directory / f"node{number + 1}"

    def _launch(self, number: int, sql: int, group: int, transfers: int, states: int, members: str) -> None:
        """Start a node and wait until it has joined: two cannot be given the state at once."""
        provider = (
            f"base_host=127.0.0.1;base_port={group};gmcast.listen_addr=tcp://127.0.0.1:{group};"
            f"ist.recv_addr=127.0.0.1:{transfers};ist.recv_bind=127.0.0.1:{transfers};gcache.size=128M"
        )
        data = self._data(number)
        command = [self._programs["mariadbd"], "--no-defaults", f"--user={self._user}", f"--datadir={data}", f"--port={sql}", *_SETTINGS]
        # In the data directory, as the path of a socket must be short.
        command += ["--socket=socket", "--pid-file=pid", f"--wsrep-provider={self._programs['galera']}"]
        command += [f"--wsrep-node-name=node{number + 1}", f"--wsrep-node-address=127.0.0.1:{group}"]
        command += [f"--wsrep-sst-receive-address=127.0.0.1:{states}", f"--wsrep-provider-options={provider}"]
        command += ["--wsrep-cluster-address=gcomm://", "--wsrep-new-cluster"] if number == 0 else [f"--wsrep-cluster-address={members}"]
        log = self._directory / f"node{number + 1}.log"
        with log.open("ab") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, stdin=subprocess.DEVNULL, cwd=self._directory)
        self._processes.append(process)
        deadline = time.monotonic() + START_S
        while not self._has_joined(number):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SideMissing(f"MariaDB's node {number + 1} did not join: {_last_error(log)}")
            threading.Event().wait(0.05)

    def _has_joined(self, number: int) -> bool:
        import pymysql  # noqa: PLC0415, RUF100

        try:
            with self._connect(node=number) as connection, connection.cursor() as cursor:
                cursor.execute("SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'wsrep_ready'")
                is_ready = cursor.fetchone() == ("ON",)
                cursor.execute("SELECT variable_value FROM information_schema.global_status WHERE variable_name = 'wsrep_cluster_size'")
                return bool(is_ready and cursor.fetchone() == (str(number + 1),))
        except pymysql.err.OperationalError:
            return False  # it does not listen yet, or does not answer before it has joined

    def _connect(self, database: str | None = None, node: int = 0) -> Any:
        import pymysql  # noqa: PLC0415, RUF100

        return pymysql.connect(host="127.0.0.1", port=self._ports[node], user="root", database=database, autocommit=True)

    def _call(self, command: list[str]) -> None:
        user = self._user if os.geteuid() == 0 else None
        program = [self._programs.get(command[0], command[0]), *command[1:]]
        done = subprocess.run(program, capture_output=True, text=True, user=user, cwd=self._directory, check=False)
        if done.returncode:
            raise SideMissing(f"{command[0]} failed: {done.stderr.strip() or done.stdout.strip()}")


_INSTALL = ("--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve")


def _find_programs() -> dict[str, str]:
    # Debian keeps the server out of an ordinary user's PATH.
    path = os.environ.get("PATH", "") + ":/usr/sbin"
    found = {name: shutil.which(name, path=path) for name in ("mariadbd", "mariadb-install-db", "rsync")}
    found["galera"] = next((provider for provider in _PROVIDERS if Path(provider).exists()), None)
    missing = [name for name, program in found.items() if program is None]
    if missing:
        packages = "mariadb-server galera-4 rsync"
        raise SideMissing(f"{', '.join(missing)} not installed: apt-get install {packages}, or `python -m bench --install` as root")
    return {name: program for name, program in found.items() if program is not None}


def _last_error(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if "[ERROR]" in line]
    return lines[-1] if lines else f"{log.name} says nothing"


class GaleraClient:
    """A client by PyMySQL, at one node."""

    def __init__(self, address: str) -> None:
        import pymysql  # noqa: PLC0415, RUF100

        port, _, wait = address.partition("/")
        self._error: type[Exception] = pymysql.err.OperationalError
        self.errors: tuple[type[Exception], ...] = (self._error, bank.Aborted)
        self._connection = pymysql.connect(host="127.0.0.1", port=int(port), user="root", database=DATABASE, autocommit=True)
        self._cursor = self._connection.cursor()
        self._cursor.execute(f"SET SESSION wsrep_sync_wait = {int(wait)}")
        self._chance = random.Random()

    def read(self, key: int) -> None:
        """Read one value, after all commits of the group up to now are applied at this node."""
        self._cursor.execute("SELECT v FROM kv WHERE id = %s", (key,))
        assert self._cursor.fetchone() is not None, key

    def insert(self, key: int) -> None:
        """Insert one row."""
        self._cursor.execute("INSERT INTO ins VALUES (%s, %s)", (key, rows.VALUE))

    def insert_bulk(self, key: int) -> None:
        """Insert rows by one statement."""
        self._cursor.execute(rows.wide_insert("bulk", key))

    def transfer(self, accounts: int) -> int:
        """Make a transfer: the rows are locked at this node, and certified against the others'."""
        table = bank.table_name(accounts)
        self._connection.autocommit(False)  # asks the server only the first time

        def attempt(source: int, target: int, amount: int) -> bool:
            try:
                return self._try_transfer(table, source, target, amount)
            except self._error as error:
                self._connection.rollback()
                if error.args[0] in _CONFLICTS:
                    raise bank.Aborted from error
                raise

        return bank.transfer(accounts, attempt, self._chance)

    def _try_transfer(self, table: str, source: int, target: int, amount: int) -> bool:
        self._cursor.execute(f"SELECT id, balance FROM {table} WHERE id IN (%s, %s) FOR UPDATE", (source, target))
        balances = dict(self._cursor.fetchall())
        if balances[source] < amount:
            self._connection.rollback()
            return False
        self._cursor.execute(f"UPDATE {table} SET balance = %s WHERE id = %s", (balances[source] - amount, source))
        self._cursor.execute(f"UPDATE {table} SET balance = %s WHERE id = %s", (balances[target] + amount, target))
        self._connection.commit()
        return True

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()


def open_client(address: str) -> GaleraClient:
    """Connect."""
    return GaleraClient(address)
