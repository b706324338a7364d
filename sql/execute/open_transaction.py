"""A session's open transaction: what its statements share until COMMIT or ROLLBACK.

    ACTIVE ─ a statement fails ─▶ FAILED ─ ROLLBACK TO a savepoint ─▶ ACTIVE

Invariants:
- All its statements use one catalogue: that of the first one that read, whose lease covered the read timestamp.
- Failed, it writes no more: what was written behind a savepoint, or all of it, is forgotten before it goes on.
- Settings changed in it are as before if it, or the savepoint before them, is rolled back.

Not here: what the statements do (`transactions`).
"""

from collections.abc import Mapping

import msgspec

from dsdb.sql.catalog import Catalog
from dsdb.sql.errors import UndefinedSavepointError
from dsdb.sql.parse import ParsedStatement
from dsdb.sql.ports import Transaction
from dsdb.sql.transaction_status import TransactionStatus

STATEMENTS_KEPT_MAX = 32


class Savepoint(msgspec.Struct, frozen=True, kw_only=True):
    """A savepoint.  mark: of the buffered writes; settings: as they were."""

    name: str
    mark: int
    settings: Mapping[str, str]
    read_only: bool


class OpenTransaction:
    """A transaction between its begin and its end.

    is_implicit: begun by a client without autocommit, not by BEGIN; read_only: writes are refused; is_historical: it reads in the past;
    catalog: that its statements use, None before the first that needs one; now: of now(), the same for all; has_run: a statement has
    run in it; has_queried: one besides SET and SHOW; has_written: some of them has written rows; settings: the session's before it;
    statements: some of what it ran, to name its tables when it fails.
    """

    __slots__ = (
        "catalog",
        "has_queried",
        "has_run",
        "has_written",
        "is_historical",
        "is_implicit",
        "last_used",
        "now",
        "read_only",
        "savepoints",
        "settings",
        "statements",
        "status",
        "txn",
    )

    def __init__(
        self, txn: Transaction, *, now: int, settings: Mapping[str, str], is_implicit: bool, read_only: bool, is_historical: bool = False
    ) -> None:
        self.txn = txn
        self.now = now
        self.settings = settings
        self.is_implicit = is_implicit
        self.read_only = read_only
        self.is_historical = is_historical
        self.status = TransactionStatus.ACTIVE
        self.catalog: Catalog | None = None
        self.has_run = False
        self.has_queried = False
        self.has_written = False
        self.savepoints: list[Savepoint] = []
        self.last_used = 0.0
        self.statements: list[ParsedStatement] = []

    def fail(self) -> None:
        """Note that a statement has failed."""
        self.status = TransactionStatus.FAILED

    def note_statement(self, statement: ParsedStatement) -> None:
        """Remember a statement that runs."""
        if len(self.statements) < STATEMENTS_KEPT_MAX:
            self.statements.append(statement)

    def set_savepoint(self, name: str, settings: Mapping[str, str]) -> None:
        """Set a savepoint; one of the same name before it is hidden until this one is released."""
        self.savepoints.append(Savepoint(name=name, mark=self.txn.savepoint(), settings=settings, read_only=self.read_only))

    def release(self, name: str) -> None:
        """Forget a savepoint and those after it; what was written stays, READ ONLY said behind it does not.

        Raises UndefinedSavepointError.
        """
        position = self._position(name)
        self.read_only = self.savepoints[position].read_only
        del self.savepoints[position:]

    def rollback_to(self, name: str) -> Savepoint:
        """Undo what was written behind a savepoint, which stays.  Raises UndefinedSavepointError."""
        position = self._position(name)
        del self.savepoints[position + 1 :]
        savepoint = self.savepoints[position]
        self.txn.rollback_to(savepoint.mark)
        self.status = TransactionStatus.ACTIVE
        self.read_only = savepoint.read_only
        return savepoint

    def _position(self, name: str) -> int:
        for position in range(len(self.savepoints) - 1, -1, -1):
            if self.savepoints[position].name == name:
                return position
        raise UndefinedSavepointError(f'savepoint "{name}" does not exist')
