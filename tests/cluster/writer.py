"""Clients that write to a cluster while it is hurt, and remember what they were told."""

import threading
import time
from collections.abc import Callable

import dsdb

PAUSE_S = 0.02
"""After a refusal."""


class Writer(threading.Thread):
    """Inserts 1, 2, 3 … into a table (n INT PRIMARY KEY) until stopped.

    acknowledged: numbers that the cluster said are in; unknown: those whose fate it did not tell; refused: those it said are not.
    """

    def __init__(self, url: str, table: str) -> None:
        super().__init__(daemon=True)
        self.acknowledged: list[int] = []
        self.unknown: list[int] = []
        self.refused: list[int] = []
        self.longest_pause_s = 0.0
        self.error: BaseException | None = None
        self._url, self._table = url, table
        self._is_stopping = threading.Event()

    def run(self) -> None:
        try:
            self._write()
        except BaseException as error:  # the thread's root: raised by `stop`
            self.error = error

    def _write(self) -> None:
        number = 0
        last = time.monotonic()
        with dsdb.connect(self._url, autocommit=True) as connection, connection.cursor() as cursor:
            while not self._is_stopping.is_set():
                number += 1
                try:
                    cursor.execute(f"INSERT INTO {self._table} VALUES (?)", (number,))
                except dsdb.UnknownOutcome:
                    self.unknown.append(number)
                    continue
                except dsdb.OperationalError:
                    self.refused.append(number)
                    # Asking again at once would take the processor from nodes that are starting.
                    self._is_stopping.wait(PAUSE_S)
                    continue
                now = time.monotonic()
                self.longest_pause_s = max(self.longest_pause_s, now - last)
                last = now
                self.acknowledged.append(number)

    def wait_acknowledged(self, more: int, *, timeout_s: float = 30.0) -> None:
        """Wait until so many more writes were acknowledged."""
        goal = len(self.acknowledged) + more
        self.wait_for(lambda: len(self.acknowledged) >= goal, timeout_s=timeout_s)

    def wait_for(self, condition: Callable[[], bool], *, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if self.error is not None:
                raise self.error
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(self.acknowledged)} acknowledged, {len(self.unknown)} unknown, {len(self.refused)} refused")
            self._is_stopping.wait(0.02)

    def stop(self) -> None:
        self._is_stopping.set()
        self.join(30)
        if self.error is not None:
            raise self.error

    def check(self, url: str) -> None:
        """Read everything back: what was acknowledged is there, what was refused is not."""
        with dsdb.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT n FROM {self._table}")
            found = {n for (n,) in cursor.fetchall()}
        missing = sorted(set(self.acknowledged) - found)
        ghosts = sorted(set(self.refused) & found)
        assert not missing, f"acknowledged and lost: {missing[:10]} of {len(missing)}"
        assert not ghosts, f"refused and there: {ghosts[:10]} of {len(ghosts)}"
        assert found <= set(self.acknowledged) | set(self.unknown)
