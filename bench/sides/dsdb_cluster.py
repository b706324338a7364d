"""dsdb: three node processes on this machine, three replicas of every range, clients by the driver."""

import contextlib
import random
import time
from collections.abc import Callable
from pathlib import Path

import dsdb
from bench import bank, rows
from bench.sides.port import ClientSpec, Contender, SideMissing, timed_in_interpreter
from dsdb.cli.processes import NodeProcess, ProcessCluster
from dsdb.driver.connection import Connection

NODES = 3
SYSTEM_RANGE = 1
"""Its leaseholder is the oracle."""
SETTLED_S = 2.0
"""Leases that did not move for so long are taken to have found their places."""
SETTLE_S_MAX = 30.0

_TABLES = {
    "read": "kv",
    "insert": "ins",
    "bulk": "bulk",
    "fetch-arrow": "wide",
    "fetch-pandas": "wide",
    **{workload: bank.table_name(accounts) for workload, accounts in bank.ACCOUNTS.items()},
}


class DsdbSide:
    """A cluster below a directory."""

    name = "dsdb"

    def __init__(self, directory: Path, *, kv_rows: int, wide_rows: int, http: bool = False) -> None:
        self._directory = directory / "dsdb"
        self._kv_rows, self._wide_rows = kv_rows, wide_rows
        self._http = http
        self._cluster: ProcessCluster | None = None
        self._prepared: set[str] = set()
        self._founded = 0
        self.version = dsdb.__version__

    @property
    def nodes(self) -> list[NodeProcess]:
        """Give the node processes."""
        assert self._cluster is not None, "not started"
        return self._cluster.nodes

    @property
    def url(self) -> str:
        """Give the URL of all nodes."""
        assert self._cluster is not None, "not started"
        return self._cluster.url

    def start(self) -> None:
        """Found a cluster and wait until every range has all its replicas."""
        self._directory.mkdir(parents=True)
        self._cluster = ProcessCluster(self._directory, nodes=NODES, http=self._http)
        self._cluster.wait_replicated(NODES)

    def servers(self) -> list[int]:
        """Give the nodes' process ids."""
        return [node.pid for node in self.nodes]

    def prepare(self, workload: str) -> None:
        """Make and fill tables.  Raises SideMissing if transactions are needed and refused."""
        if (accounts := bank.ACCOUNTS.get(workload)) is not None:
            self._make_accounts(accounts)
        elif (table := _TABLES.get(workload)) is not None:
            self.make_table(table)

    def make_table(self, table: str) -> None:
        """Make and fill a table, if it is not there yet; its ranges have all replicas and their leases have settled afterwards."""
        if table in self._prepared:
            return
        assert self._cluster is not None, "not started"
        with dsdb.connect(self.url, autocommit=True) as connection:
            match table:
                case "kv":
                    connection.execute(rows.KV_TABLE)
                    for first in range(0, self._kv_rows, rows.BULK_ROWS):
                        connection.execute(rows.kv_insert(first, rows.BULK_ROWS))
                case "ins":
                    connection.execute(rows.INS_TABLE)
                case "bulk":
                    connection.execute(rows.BULK_TABLE)
                case "wide":
                    self._make_wide(connection)
                case "load":
                    connection.execute(rows.LOAD_TABLE)
                case "supplier":
                    connection.execute(rows.SUPPLIER_TABLE)
                    connection.execute(rows.supplier_insert())
        self._finish_table(table)

    def _finish_table(self, table: str) -> None:
        assert self._cluster is not None
        self._cluster.wait_replicated(NODES)
        self.wait_leases_settled()
        self._wait_known(table)
        self._prepared.add(table)

    def _wait_known(self, table: str) -> None:
        """Wait until every node answers for a table, and say so if one did not at once: it should."""
        for node in self.nodes:
            begun = time.monotonic()
            while True:
                try:
                    with dsdb.connect(f"dsdb://{node.address}", autocommit=True) as connection:
                        connection.execute(f"SELECT count(*) FROM {table}").fetchone()
                    break
                except dsdb.ProgrammingError as error:
                    print(f"node {node.node_id}, {time.monotonic() - begun:.1f} s after the last row of {table}: {error}")
                    if time.monotonic() > begun + SETTLE_S_MAX:
                        raise
                time.sleep(1.0)

    def _make_wide(self, connection: Connection) -> None:
        assert self._cluster is not None
        connection.execute(rows.WIDE_TABLE)
        bounds = ", ".join(f"({bound})" for bound in rows.wide_bounds(self._wide_rows))
        connection.execute(f"ALTER TABLE wide SPLIT AT VALUES {bounds}")
        self._cluster.wait_replicated(NODES)  # empty ranges are quicker to copy than full ones
        for first in range(0, self._wide_rows, rows.BULK_ROWS):
            connection.execute(rows.wide_insert("wide", first))

    def _make_accounts(self, accounts: int) -> None:
        table = bank.table_name(accounts)
        if table in self._prepared:
            return
        assert self._cluster is not None, "not started"
        with dsdb.connect(self.url, autocommit=True) as connection:
            _check_transactions(connection)
            connection.execute(bank.table(accounts))
            connection.execute(f"ALTER TABLE {table} SPLIT AT VALUES " + ", ".join(f"({bound})" for bound in bank.bounds(accounts)))
            self._cluster.wait_replicated(NODES)
            for statement in bank.fill(accounts):
                connection.execute(statement)
        self._finish_table(table)

    def check(self, workload: str) -> None:
        """Add up the balances."""
        if (accounts := bank.ACCOUNTS.get(workload)) is not None:
            with dsdb.connect(self.url, autocommit=True) as connection:
                found = connection.execute(bank.sum_query(accounts)).fetchone()
            assert found is not None
            bank.check(self.name, accounts, found)

    def leaseholders(self, table: str = "") -> dict[int, int]:
        """Give range → node that leads it, of a table or of the whole cluster."""
        with dsdb.connect(self.url, autocommit=True) as connection:
            return read_leaseholders(connection, table)

    def wait_leases_settled(self) -> None:
        """Wait until no lease has moved for SETTLED_S, at most SETTLE_S_MAX."""
        deadline = time.monotonic() + SETTLE_S_MAX
        last, since = self.leaseholders(), time.monotonic()
        while time.monotonic() < min(since + SETTLED_S, deadline):
            time.sleep(0.2)
            found = self.leaseholders()
            if found != last:
                last, since = found, time.monotonic()

    def contenders(self, workload: str, clients: int) -> list[Contender]:
        """Say who takes part: one client is measured at the oracle's node and at another, many are spread over all nodes."""
        if workload not in _TABLES:
            return []
        table = _TABLES[workload]
        oracle = self.leaseholders().get(SYSTEM_RANGE, 0)
        data = sorted(set(self.leaseholders(table).values()))
        placement = f"oracle at node {oracle}, {table} led by node {', '.join(map(str, data))}"
        here = [node for node in self.nodes if node.node_id == oracle] or self.nodes[:1]
        elsewhere = [node for node in self.nodes if node not in here]
        if clients > 1:
            return [self._contender("dsdb", [self.nodes[number % NODES] for number in range(clients)], placement)]
        if workload in ("read", "insert"):
            # Of the other nodes the one that does not lead the rows either: the farthest way.
            elsewhere.sort(key=lambda node: node.node_id in data)
            far = self._contender("dsdb, oracle elsewhere", elsewhere[:1], placement)
            return [self._contender("dsdb, oracle here", here, placement), far]
        return [self._contender("dsdb", here, placement)]

    def starts(self) -> dict[str, Callable[[], float]]:
        """Give the founding of a cluster of one node, its restart, and an embedded node."""
        return {
            "dsdb, founding": self._found,
            "dsdb, again": self._start_again,
            "dsdb, embedded": lambda: timed_in_interpreter("import dsdb; dsdb.connect().execute('SELECT 1').fetchone()"),
        }

    def _found(self) -> float:
        self._founded += 1
        return _timed_start(NodeProcess(self._directory / f"alone{self._founded}"))

    def _start_again(self) -> float:
        store = self._directory / "again"
        if not store.exists():
            _timed_start(NodeProcess(store))
        return _timed_start(NodeProcess(store))

    def close(self) -> None:
        """End all nodes."""
        if self._cluster is not None:
            self._cluster.close()
            self._cluster = None

    def _contender(self, label: str, nodes: list[NodeProcess], placement: str) -> Contender:
        specs = tuple(ClientSpec(module="dsdb_cluster", address=f"dsdb://{node.address}") for node in nodes)
        at = ", ".join(str(number) for number in sorted({node.node_id for node in nodes}))
        return Contender(
            label=label, is_dsdb=True, specs=specs, servers=tuple(self.servers()), placement=f"{placement}, clients at node {at}"
        )


def read_leaseholders(connection: Connection, table: str = "") -> dict[int, int]:
    """Give range → node that leads it, 0 where nobody does."""
    cursor = connection.execute(f"SHOW RANGES FROM TABLE {table}" if table else "SHOW RANGES")
    names = [column[0] for column in cursor.description or ()]
    at_range, at_holder = names.index("range_id"), names.index("leaseholder")
    return {row[at_range]: row[at_holder] or 0 for row in cursor.fetchall()}


def _check_transactions(connection: Connection) -> None:
    try:
        connection.autocommit = False
        connection.execute("SELECT 1").fetchone()
        connection.rollback()
        connection.autocommit = True
    except dsdb.NotSupportedError as error:
        raise SideMissing(f"transactions are refused ({error.sqlstate}): {error}") from error


def _timed_start(node: NodeProcess) -> float:
    begun = time.perf_counter()
    try:
        node.start()
        with dsdb.connect(f"dsdb://{node.address}", autocommit=True) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
        return time.perf_counter() - begun
    finally:
        node.terminate()


class DsdbClient:
    """A client by the driver."""

    errors: tuple[type[Exception], ...] = (dsdb.OperationalError, bank.Aborted)

    def __init__(self, url: str) -> None:
        self._connection = dsdb.connect(url, autocommit=True)
        self._cursor = self._connection.cursor()
        self._chance = random.Random()

    def read(self, key: int) -> None:
        """Read one value."""
        found = self._cursor.execute("SELECT v FROM kv WHERE id = ?", (key,)).fetchone()
        assert found is not None, key

    def insert(self, key: int) -> None:
        """Insert one row."""
        self._cursor.execute("INSERT INTO ins VALUES (?, ?)", (key, rows.VALUE))

    def insert_bulk(self, key: int) -> None:
        """Insert rows by one statement."""
        self._cursor.execute(rows.wide_insert("bulk", key))

    def transfer(self, accounts: int) -> int:
        """Make a transfer."""
        table = bank.table_name(accounts)
        if self._connection.autocommit:
            self._connection.autocommit = False

        def attempt(source: int, target: int, amount: int) -> bool:
            try:
                return self._try_transfer(table, source, target, amount)
            except dsdb.SerializationFailure as error:
                self._connection.rollback()
                raise bank.Aborted from error
            except dsdb.OperationalError:
                # The connection may be gone; the transaction went with it then.
                with contextlib.suppress(dsdb.Error):
                    self._connection.rollback()
                raise

        return bank.transfer(accounts, attempt, self._chance)

    def _try_transfer(self, table: str, source: int, target: int, amount: int) -> bool:
        found = self._cursor.execute(f"SELECT id, balance FROM {table} WHERE id IN (?, ?)", (source, target)).fetchall()
        balances = dict(found)
        if balances[source] < amount:
            self._connection.rollback()
            return False
        self._cursor.execute(f"UPDATE {table} SET balance = ? WHERE id = ?", (balances[source] - amount, source))
        self._cursor.execute(f"UPDATE {table} SET balance = ? WHERE id = ?", (balances[target] + amount, target))
        self._connection.commit()
        return True

    def fetch_arrow(self, count: int) -> None:
        """Fetch an Arrow table."""
        table = self._cursor.execute("SELECT * FROM wide").fetch_arrow_table()
        assert table.shape == (count, rows.WIDE_COLUMNS), table.shape

    def fetch_pandas(self, count: int) -> None:
        """Fetch a data frame."""
        frame = self._cursor.execute("SELECT * FROM wide").fetch_df()
        assert frame.shape == (count, rows.WIDE_COLUMNS), frame.shape

    def insert_megabyte(self, key: int) -> None:
        """Insert 1 MB by one statement."""
        self._cursor.execute(rows.load_insert(key))

    def aggregate_join(self, count: int) -> None:
        """Join all rows with their suppliers and aggregate them."""
        found = self._cursor.execute(rows.AGGREGATE_JOIN).fetchall()
        assert sum(row[1] for row in found) == count, found

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()


def open_client(address: str) -> DsdbClient:
    """Connect."""
    return DsdbClient(address)
