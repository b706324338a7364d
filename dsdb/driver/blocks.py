"""`with connection.transaction():` a transaction as a block, and a savepoint for each block inside.

    with connection.transaction():        begins with the first statement; COMMIT at the end, ROLLBACK on an exception
        with connection.transaction():    SAVEPOINT; RELEASE at the end, ROLLBACK TO on an exception

Where a transaction is open already, the outermost block is a savepoint of it, too.
"""

import contextlib
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol

from dsdb.driver.errors import Error
from dsdb.driver.results import Answer


class BlockHost(Protocol):
    """The connection, as a block sees it."""

    def enter_block(self) -> str | None:
        """Begin a block; give the name of its savepoint, None for one that is the transaction."""

    def leave_block(self) -> None:
        """End a block, before its transaction or savepoint is ended."""

    def end_transaction(self, *, commit: bool) -> None:
        """Commit or roll back."""

    def run_statement(self, sql: str, parameters: Sequence[Any]) -> Answer:
        """Run a statement."""


class TransactionBlock:
    """One block."""

    def __init__(self, host: BlockHost) -> None:
        self._host = host
        self._savepoint: str | None = None

    def __enter__(self) -> "TransactionBlock":
        self._savepoint = self._host.enter_block()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        host, savepoint = self._host, self._savepoint
        if kind is None:
            try:
                if savepoint is not None:
                    host.run_statement(f"RELEASE SAVEPOINT {savepoint}", ())
            finally:
                host.leave_block()
            if savepoint is None:
                host.end_transaction(commit=True)
            return
        # What the block raised is what counts; a transaction that cannot be rolled back here is gone with its connection.
        with contextlib.suppress(Error):
            if savepoint is not None:
                host.run_statement(f"ROLLBACK TO SAVEPOINT {savepoint}", ())
                host.run_statement(f"RELEASE SAVEPOINT {savepoint}", ())
        host.leave_block()
        if savepoint is None:
            with contextlib.suppress(Error):
                host.end_transaction(commit=False)
