"""A session's open transaction: what its statements share until COMMIT or ROLLBACK.

    ACTIVE ─ a statement fails ─▶ FAILED ─ ROLLBACK TO a savepoint ─▶ ACTIVE

Invariants:
- All its statements use one catalogue, whose lease covered the read timestamp, with its own changes.
- Failed, it writes no more: what was written behind a savepoint, or all of it, is forgotten before it goes on.
- What it changes of the catalogue is a draft, which goes back with its writes.
- Settings changed in it are as before if it, or the savepoint before them, is rolled back.

Not here: what the statements do (`transactions`).
"""

from collections.abc import Mapping

import msgspec

from dsdb.sql.catalog import Catalog
from dsdb.sql.catalog_draft import CatalogDraft
from dsdb.sql.errors import UndefinedSavepointError
from dsdb.sql.execute.sequence import OwnSequences
from dsdb.sql.parse import ParsedStatement
from dsdb.sql.ports import Transaction
from dsdb.sql.ports_steering import ImportEnd, ImportJob
from dsdb.sql.transaction_status import TransactionStatus

STATEMENTS_KEPT_MAX = 32


class Savepoint(msgspec.Struct, frozen=True, kw_only=True):
    """A savepoint.  mark: of the buffered writes; settings, draft: as they were."""

    name: str
    mark: int
    settings: Mapping[str, str]
    read_only: bool
    draft: CatalogDraft | None
    imports: int
    """Imports before it."""


class OpenTransaction:
    """A transaction between its begin and its end.

    is_implicit: begun by a client without autocommit, not by BEGIN; read_only: writes are refused; is_historical: it reads in the past;
    catalog: that its statements use, None before the first that needs one; draft: what it has changed of it, None before the first
    change; used: ids of the tables that its statements named; own_sequences: values of those that it has made; has_rows: it has read or
    written rows; now: of now(), the same for all; has_run: a statement has
    run in it; has_queried: one besides SET and SHOW; has_written: some of them has written rows; settings: the session's before it;
    statements: some of what it ran, to name its tables when it fails; imports: jobs that end with it.
    """

    __slots__ = (
        "catalog",
        "draft",
        "has_queried",
        "has_rows",
        "has_run",
        "has_written",
        "imports",
        "is_historical",
        "is_implicit",
        "last_used",
        "now",
        "own_sequences",
        "read_only",
        "savepoints",
        "settings",
        "statements",
        "status",
        "txn",
        "used",
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
        self.draft: CatalogDraft | None = None
        self.used: set[int] = set()
        self.own_sequences = OwnSequences()
        self.has_rows = False
        self.has_run = False
        self.has_queried = False
        self.has_written = False
        self.savepoints: list[Savepoint] = []
        self.last_used = 0.0
        self.statements: list[ParsedStatement] = []
        self.imports: list[ImportJob] = []

    @property
    def shown_catalog(self) -> Catalog | None:
        """Give the catalogue as its next statement sees it."""
        return self.catalog if self.draft is None else self.draft.catalog

    def fail(self) -> None:
        """Note that a statement has failed."""
        self.status = TransactionStatus.FAILED

    def end_imports(self, state: ImportEnd, why: str = "", *, begin: int = 0) -> None:
        """Say how what was imported ended, but for what is known to have failed."""
        for job in self.imports[begin:]:
            job.end(state, why)
        del self.imports[begin:]

    def note_statement(self, statement: ParsedStatement) -> None:
        """Remember a statement that runs."""
        if len(self.statements) < STATEMENTS_KEPT_MAX:
            self.statements.append(statement)

    def set_savepoint(self, name: str, settings: Mapping[str, str]) -> None:
        """Set a savepoint; one of the same name before it is hidden until this one is released."""
        savepoint = Savepoint(
            name=name, mark=self.txn.savepoint(), settings=settings, read_only=self.read_only, draft=self.draft, imports=len(self.imports)
        )
        self.savepoints.append(savepoint)

    def release(self, name: str) -> None:
        """Forget a savepoint and those after it; what was written stays, READ ONLY said behind it does not.

        Raises UndefinedSavepointError.
        """
        position = self._position(name)
        self.read_only = self.savepoints[position].read_only
        self.txn.release(self.savepoints[position].mark)
        del self.savepoints[position:]

    def rollback_to(self, name: str) -> Savepoint:
        """Undo what was written behind a savepoint, which stays.  Raises UndefinedSavepointError, SerializationError."""
        position = self._position(name)
        savepoint = self.savepoints[position]
        draft = savepoint.draft
        if draft is not None and draft is not self.draft and self.catalog is not None:
            # Locks may have moved the transaction to a newer catalogue since.
            draft = draft.onto(self.catalog)
        del self.savepoints[position + 1 :]
        self.txn.rollback_to(savepoint.mark)
        self.end_imports(ImportEnd.FAILED, "rolled back", begin=savepoint.imports)
        self.status = TransactionStatus.ACTIVE
        self.read_only = savepoint.read_only
        self.draft = draft
        return savepoint

    def _position(self, name: str) -> int:
        for position in range(len(self.savepoints) - 1, -1, -1):
            if self.savepoints[position].name == name:
                return position
        raise UndefinedSavepointError(f'savepoint "{name}" does not exist')
