"""Clients that keep a pace: statements are due at fixed moments, and a late answer makes the next one late, not rarer.

    due ─▶ statement ─▶ latency = its end − when it was due        (a client without a pace asks as fast as it is answered)

A client names all hosts, its own first; when a statement fails it connects anew, to whichever host takes it, and goes on with the next
one: nothing is repeated, so that every failure is counted.

Invariants:
- Latencies count from when a statement was due: a pause shows in all that should have run in it.
- A write is acknowledged only if its statement returned; its key is then in the tally.
- A client reads back what it wrote itself, among others: a row that is not there is a failure.
"""

import array
import multiprocessing
import random
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection as Pipe
from multiprocessing.process import BaseProcess

import msgspec

import dsdb
from bench.results import quantile
from dsdb.driver.connection import Connection
from dsdb.driver.cursor import Cursor

ANSWER_S = 60.0
"""How long a client may take to connect, and to tell what it did."""
AGAIN_S = 0.01
"""Between two tries to connect."""
VALUES = 16
"""Different values of rows; made once, as a client that makes texts while it is measured would be measured itself."""

_ODD = 0x9E3779B97F4A7C15
"""An odd number is invertible modulo 2**64."""

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["bench.paced", "dsdb.driver.connection"])


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """What clients do with a table of (id BIGINT, v TEXT).

    rows: keys from 0 up to here are there; value_bytes: of each; write_part: of statements that write; inserts: they write new rows, and
    read those of their own; else they update, and read, all over the table.
    """

    table: str
    rows: int = 0
    value_bytes: int = 100
    write_part: float = 0.25
    inserts: bool = False


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """A statement that failed: when it was begun, and when it ended, on the monotonic clock."""

    begun: float
    ended: float
    what: str


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """What clients did.

    due, latencies, answers: doubles, the last from when a statement was sent; written: keys that were acknowledged, and when: 64-bit
    integers and doubles.
    """

    due: bytes = b""
    latencies: bytes = b""
    answers: bytes = b""
    written: bytes = b""
    written_at: bytes = b""
    failures: list[Failure] = []
    cpu_s: float = 0.0

    def statements(self) -> list[tuple[float, float]]:
        """Give (when it was due, latency) of statements that succeeded."""
        return list(zip(array.array("d", self.due), array.array("d", self.latencies)))

    def keys(self) -> "array.array[int]":
        """Give the keys that were acknowledged."""
        return array.array("q", self.written)

    def slowest(self) -> list[tuple[float, float]]:
        """Give (when it was sent, how long it took) of statements that succeeded, the slowest first."""
        ends = map(sum, self.statements())
        return sorted(((end - took, took) for end, took in zip(ends, array.array("d", self.answers))), key=lambda found: -found[1])

    def moments(self) -> "array.array[float]":
        """Give when each of them was acknowledged."""
        return array.array("d", self.written_at)

    def latency_ms(self, part: float, since: float = 0.0, until: float = float("inf")) -> float:
        """Give a quantile of the latencies of what was due in a time; 0 if nothing was."""
        found = sorted(latency for due, latency in self.statements() if since <= due < until)
        return round(quantile(found, part) * 1e3, 2) if found else 0.0


class PacedClients:
    """Client processes, connected from `__enter__` to `__exit__`."""

    def __init__(self, hosts: Sequence[str], count: int, mix: Mix) -> None:
        """hosts: each client's first is another one."""
        self._hosts, self._count, self._mix = list(hosts), count, mix
        self._pipes: list[Pipe] = []
        self._processes: list[BaseProcess] = []

    def __enter__(self) -> "PacedClients":
        try:
            for number in range(self._count):
                ours, theirs = _CONTEXT.Pipe()
                first = number % len(self._hosts)
                url = f"dsdb://{','.join(self._hosts[first:] + self._hosts[:first])}/?load_balance=first"
                process = _CONTEXT.Process(target=_client_main, args=(url, self._mix, number, theirs), daemon=True)
                process.start()
                theirs.close()
                self._pipes.append(ours)
                self._processes.append(process)
            for pipe in self._pipes:
                self._receive(pipe)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def begin(self, rate: float = 0.0) -> None:
        """Have all clients begin, together at so many statements a second; 0: as fast as they are answered."""
        start_at = time.monotonic() + 0.1
        for number, pipe in enumerate(self._pipes):
            phase = number / rate if rate else 0.0
            pipe.send((self._count / rate if rate else 0.0, start_at + phase))

    def end(self) -> Tally:
        """Have all clients end, and give what they did.  Raises TimeoutError."""
        for pipe in self._pipes:
            pipe.send(None)
        found = [msgspec.msgpack.decode(self._receive(pipe), type=Tally) for pipe in self._pipes]
        return Tally(
            due=b"".join(tally.due for tally in found),
            latencies=b"".join(tally.latencies for tally in found),
            answers=b"".join(tally.answers for tally in found),
            written=b"".join(tally.written for tally in found),
            written_at=b"".join(tally.written_at for tally in found),
            failures=sorted((failure for tally in found for failure in tally.failures), key=lambda failure: failure.ended),
            cpu_s=sum(tally.cpu_s for tally in found),
        )

    def run(self, seconds: float, rate: float = 0.0) -> Tally:
        """Run for some seconds.  Raises TimeoutError."""
        self.begin(rate)
        time.sleep(0.1 + seconds)
        return self.end()

    @staticmethod
    def _receive(pipe: Pipe) -> bytes:
        if not pipe.poll(ANSWER_S):
            raise TimeoutError(f"a client did not answer for {ANSWER_S:.0f} s")
        try:
            return pipe.recv_bytes()
        except EOFError:
            raise TimeoutError("a client process ended") from None

    def _end(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(5.0)
            if process.is_alive():
                process.kill()
                process.join()


class _Client:
    """One client."""

    def __init__(self, url: str, mix: Mix, number: int) -> None:
        self.mix = mix
        self._url = url
        self._connection: Connection | None = None
        self._cursor: Cursor | None = None
        self._chance = random.Random()
        self._values = random_values(mix.value_bytes, VALUES)
        self._next = (time.time_ns() // 1_000_000_000 << 28) + (number << 20)
        self._own: list[int] = []
        self.cursor()

    def cursor(self) -> Cursor:
        if self._cursor is None:
            self._connection = dsdb.connect(self._url, autocommit=True)
            self._cursor = self._connection.cursor()
        return self._cursor

    def forget(self) -> None:
        """Take another connection for the next statement."""
        connection, self._connection, self._cursor = self._connection, None, None
        if connection is not None:
            connection.close()

    def statement(self) -> tuple[Callable[[Cursor], None], int | None]:
        """Draw the next statement, and the key that it writes."""
        chance, mix = self._chance, self.mix
        if chance.random() >= mix.write_part and (self._own or not mix.inserts):
            return self._read(chance.choice(self._own) if mix.inserts else chance.randrange(mix.rows)), None
        value = chance.choice(self._values)
        if not mix.inserts:
            key = chance.randrange(mix.rows)
            return lambda cursor: void(cursor.execute(f"UPDATE {mix.table} SET v = ? WHERE id = ?", (value, key))), key
        key = spread(self._next)
        self._next += 1
        return lambda cursor: void(cursor.execute(f"INSERT INTO {mix.table} VALUES (?, ?)", (key, value))), key

    def _read(self, key: int) -> Callable[[Cursor], None]:
        def read(cursor: Cursor) -> None:
            if cursor.execute(f"SELECT v FROM {self.mix.table} WHERE id = ?", (key,)).fetchone() is None:
                raise dsdb.InternalError(f"row {key} is not there")

        return read

    def run(self, pipe: Pipe, interval_s: float, start_at: float) -> Tally:
        """Run until something comes through the pipe."""
        due_at, latencies, answers, written_at = array.array("d"), array.array("d"), array.array("d"), array.array("d")
        written = array.array("q")
        failures: list[Failure] = []
        clock = time.monotonic
        due = start_at
        cpu_s = time.process_time()
        while not pipe.poll(max(0.0, due - clock())):
            statement, key = self.statement()
            begun = clock()
            if not interval_s:
                due = begun
            try:
                statement(self.cursor())
            except dsdb.Error as error:
                failures.append(Failure(begun, clock(), f"{getattr(error, 'sqlstate', '')} {error}"))
                self.forget()
                time.sleep(AGAIN_S)
            else:
                ended = clock()
                due_at.append(due)
                latencies.append(ended - due)
                answers.append(ended - begun)
                if key is not None:
                    written.append(key)
                    written_at.append(ended)
                    if self.mix.inserts:
                        self._own.append(key)
            due += interval_s
        return Tally(
            due=due_at.tobytes(),
            latencies=latencies.tobytes(),
            answers=answers.tobytes(),
            written=written.tobytes(),
            written_at=written_at.tobytes(),
            failures=failures,
            cpu_s=time.process_time() - cpu_s,
        )


def void(_: object) -> None:
    """Give nothing."""


def spread(number: int) -> int:
    """Give a key for a number: neighbours lie far from each other, in the whole BIGINT, and no two are the same."""
    return (number * _ODD & (1 << 64) - 1) - (1 << 63)


def random_values(size: int, count: int) -> list[str]:
    """Make texts of so many characters that compress to half."""
    return [random.randbytes((size + 1) // 2).hex()[:size] for _ in range(count)]


def _client_main(url: str, mix: Mix, number: int, pipe: Pipe) -> None:
    try:
        client = _Client(url, mix, number)
        pipe.send_bytes(b"connected")
        while True:
            interval_s, start_at = pipe.recv()
            tally = client.run(pipe, interval_s, start_at)
            pipe.recv()  # the order to end
            pipe.send_bytes(msgspec.msgpack.encode(tally))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass  # the pool is gone, and wants no tally
