"""Clients of a chaos run: each a thread that runs transactions through the driver and records what it was told.

    ListAppender    transactions of reads of lists and appends to them, over several ranges     for the check of cycles
    Banker          transfers between accounts, and reads of all balances                       for the check of the sum
    RegisterUser    single reads and writes of registers                                        for the check of linearizability
    Collector       single inserts                                                              for the check that nothing is lost

What a client is told decides the outcome: an error of class 40003, or a connection lost at the commit, is "nobody knows"; any other
error says that there was no effect.
"""

import contextlib
import random
import re
import threading
import time
from collections.abc import Callable

import dsdb
from dsdb.driver.connection import Connection
from tests.checkers.history import Append, Insert, Op, Pending, Read, ReadList, Recorder, Scan, Write
from tests.faults.verdict import Told

LISTS, ACCOUNTS, REGISTERS = 12, 24, 8
BALANCE = 100
_PARTICULARS = re.compile(r"b'(?:[^'\\]|\\.)*'|b\"(?:[^\"\\]|\\.)*\"|[0-9a-f]{8,}|\d{2,}|\(\d+\)")
PATIENCE_S = 8
"""After this long a statement is given up by its server."""
RECONNECTS = 0.1
"""Of the transactions that failed, after so many the client connects anew; after the others it is the driver's to find another node."""


class SharedRecorder:
    """A recorder for threads of one process, and when each transaction was acknowledged."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._recorder = Recorder(clock)
        self._lock = threading.Lock()
        self.committed: list[float] = []
        self.failed = self.unknown = 0
        self.errors: list[Told] = []
        """What clients were told and when; keys and numbers left out."""

    def begin(self, process: int) -> Pending:
        with self._lock:
            return self._recorder.begin(process)

    def ok(self, pending: Pending) -> None:
        with self._lock:
            self._recorder.ok(pending)
            self.committed.append(time.monotonic())

    def fail(self, pending: Pending, error: str) -> None:
        with self._lock:
            self._recorder.fail(pending, error)
            self.failed += 1
            self._note(error)

    def info(self, pending: Pending, error: str) -> None:
        with self._lock:
            self._recorder.info(pending, error)
            self.unknown += 1
            self._note(error)

    def _note(self, error: str) -> None:
        self.errors.append(Told(time.monotonic(), _PARTICULARS.sub("…", error)))

    @property
    def recorder(self) -> Recorder:
        """Give the recorder, for when all clients have ended."""
        return self._recorder


class Client(threading.Thread):
    """One client; a process of the history has one transaction at a time, and a new number after each unknown outcome."""

    def __init__(self, url: Callable[[], str], number: int, seed: int, recorder: SharedRecorder, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.chance = random.Random(seed)
        self._url, self._process, self._recorder, self._stop_asked = url, number, recorder, stop
        self.error: BaseException | None = None

    def run(self) -> None:
        connection: Connection | None = None
        try:
            while not self._stop_asked.is_set():
                try:
                    if connection is None:
                        connection = self.connect()
                except dsdb.Error:
                    self._stop_asked.wait(0.1)
                    continue
                if not self._one(connection):
                    with contextlib.suppress(dsdb.Error):
                        connection.rollback()
                    if self.chance.random() < RECONNECTS:
                        # The nodes may be others by now.
                        connection.close()
                        connection = None
        except BaseException as error:  # the thread's root: the run looks at it
            self.error = error

    def connect(self) -> Connection:
        """Connect to some node."""
        return dsdb.connect(f"{self._url()}load_balance=random&statement_timeout={PATIENCE_S}s")

    def _one(self, connection: Connection) -> bool:
        pending = self._recorder.begin(self._process)
        try:
            self.work(connection, pending.ops)
        except dsdb.UnknownOutcome as error:
            self._recorder.info(pending, str(error))
            self._process += 1000
            return False
        except dsdb.Error as error:
            self._recorder.fail(pending, f"{getattr(error, 'sqlstate', '')} {error}")
            # Clients that ask again at once would take the processor from nodes that are starting.
            self._stop_asked.wait(0.002 if isinstance(error, dsdb.SerializationFailure) else 0.1)
            return False
        self._recorder.ok(pending)
        return True

    def work(self, connection: Connection, ops: list[Op]) -> None:
        """Run one transaction to its commit, and note what it did.  Raises dsdb.Error."""
        raise NotImplementedError


class ListAppender(Client):
    """Appends unique numbers to lists, and reads lists."""

    _appended = 0

    def work(self, connection: Connection, ops: list[Op]) -> None:
        for _ in range(self.chance.randint(1, 4)):
            key = self.chance.randrange(LISTS)
            if self.chance.random() < 0.5:
                self._appended += 1
                value = self._process % 1000 * 10_000_000 + self._appended
                connection.execute("UPDATE lists SET v = v || ? WHERE k = ?", (f",{value}", key))
                ops.append(Append(key, value))
            else:
                ops.append(read_list(connection, key))
        connection.commit()


def read_list(connection: Connection, key: int) -> ReadList:
    """Read a list."""
    ((text,),) = connection.execute("SELECT v FROM lists WHERE k = ?", (key,)).fetchall()
    return ReadList(key, tuple(int(part) for part in text.split(",") if part))


class Banker(Client):
    """Moves money between accounts; reads all balances now and then."""

    def work(self, connection: Connection, ops: list[Op]) -> None:
        if self.chance.random() < 0.2:
            ops.extend(read_balances(connection))
            connection.commit()
            return
        source, target = self.chance.sample(range(ACCOUNTS), 2)
        amount = self.chance.randint(1, 20)
        rows = connection.execute("SELECT id, balance FROM accounts WHERE id IN (?, ?)", (source, target)).fetchall()
        balances = dict(rows)
        ops.extend(Read(key, balance) for key, balance in sorted(balances.items()))
        if balances[source] >= amount:
            connection.execute("UPDATE accounts SET balance = balance - ? WHERE id = ?", (amount, source))
            connection.execute("UPDATE accounts SET balance = balance + ? WHERE id = ?", (amount, target))
            ops.append(Write(source, balances[source] - amount))
            ops.append(Write(target, balances[target] + amount))
        connection.commit()


def read_balances(connection: Connection) -> list[Op]:
    """Read all accounts."""
    return [Read(key, balance) for key, balance in connection.execute("SELECT id, balance FROM accounts ORDER BY id").fetchall()]


class RegisterUser(Client):
    """Reads and writes single registers, each statement by itself."""

    _written = 0

    def connect(self) -> Connection:
        connection = super().connect()
        connection.autocommit = True
        return connection

    def work(self, connection: Connection, ops: list[Op]) -> None:
        key = self.chance.randrange(REGISTERS)
        if self.chance.random() < 0.5:
            self._written += 1
            value = self._process % 1000 * 10_000_000 + self._written
            ops.append(Write(key, value))
            connection.execute("UPDATE registers SET v = ? WHERE k = ?", (value, key))
        else:
            ((value,),) = connection.execute("SELECT v FROM registers WHERE k = ?", (key,)).fetchall()
            ops.append(Read(key, value))


class Collector(Client):
    """Inserts numbers, one a statement."""

    _inserted = 0

    def connect(self) -> Connection:
        connection = super().connect()
        connection.autocommit = True
        return connection

    def work(self, connection: Connection, ops: list[Op]) -> None:
        self._inserted += 1
        key = self._process % 1000 * 10_000_000 + self._inserted
        ops.append(Insert(key))
        connection.execute("INSERT INTO collected VALUES (?)", (key,))


def read_collected(connection: Connection) -> Scan:
    """Read all that was inserted."""
    return Scan(tuple(key for (key,) in connection.execute("SELECT n FROM collected ORDER BY n").fetchall()))


def make_tables(url: str) -> None:
    """Make the tables, each over several ranges.  url: ends with what options may be added to."""
    with dsdb.connect(f"{url}autocommit=true") as connection:
        for text in (
            "CREATE TABLE lists (k INT PRIMARY KEY, v TEXT NOT NULL)",
            "CREATE TABLE accounts (id INT PRIMARY KEY, balance INT NOT NULL)",
            "CREATE TABLE registers (k INT PRIMARY KEY, v BIGINT)",
            "CREATE TABLE collected (n BIGINT PRIMARY KEY)",
            f"INSERT INTO lists SELECT k, '' FROM generate_series(0, {LISTS - 1}) AS g(k)",
            f"INSERT INTO accounts SELECT k, {BALANCE} FROM generate_series(0, {ACCOUNTS - 1}) AS g(k)",
            f"INSERT INTO registers SELECT k, NULL FROM generate_series(0, {REGISTERS - 1}) AS g(k)",
            "ALTER TABLE lists SPLIT AT VALUES (3), (6), (9)",
            "ALTER TABLE accounts SPLIT AT VALUES (4), (8), (12), (16), (20)",
        ):
            connection.execute(text)
