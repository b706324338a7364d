"""What execution needs from below at run time, as Protocols: transactions, leaf stages, the catalogue, the cluster.

    execute ──▶ Transaction ─ get, scan, put, delete ─▶ commit            (rows by key: the point path and DML)
            └─▶ StageRunner ─ run(leaf stage) ─▶ Arrow record batches      (many rows: the stage path)

Invariants:
- All reads of a transaction are at one timestamp, and see its own buffered writes.
- Nothing is written before `commit`; a transaction that is dropped left no trace.

Raises: a Transaction and a StageRunner raise the errors at the end of this file, SqlError's of `dsdb.sql.errors`, or Cancelled.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import StrEnum
from typing import Protocol, TypeVar

import msgspec
import pyarrow as pa

from dsdb.sql.constraints import Constraints
from dsdb.sql.schema import DatabaseDescriptor, SequenceDescriptor, TableDescriptor
from dsdb.storage.keys import Span
from dsdb.storage.rowcodec import LayoutColumn, RowLayout
from dsdb.storage.timestamp import Timestamp

T = TypeVar("T")


class ColumnBound(msgspec.Struct, frozen=True, array_like=True):
    """Of the rows that a scan is for, a column's values lie within: others may be left out, where that saves reading.

    low, high: the value as it is stored, None for no bound; of a DECIMAL its text.
    """

    column_id: int
    low: int | str | None
    high: int | str | None
    is_decimal: bool = False


class TableScan(msgspec.Struct, frozen=True, kw_only=True):
    """A read of rows of one primary index.

    spans: disjoint, ascending; layouts: all layouts that its rows may have; columns: the columns wanted, in output order (a column
    missing from a row's layout gives NULL); limit: stop after this many rows of the concatenation, or None.
    """

    spans: tuple[Span, ...]
    layouts: tuple[RowLayout, ...]
    columns: tuple[LayoutColumn, ...]
    names: tuple[str, ...]
    limit: int | None = None
    bounds: tuple[ColumnBound, ...] = ()
    """Conditions that the stage's query has too."""


class FragmentCounts(msgspec.Struct, frozen=True, array_like=True):
    """What a node did for a stage.  moved_bytes: that came to the gateway from another node; engine_s: of seconds, in the query engine."""

    rows_read: int = 0
    rows_given: int = 0
    blocks_read: int = 0
    blocks_pruned: int = 0
    seconds: float = 0.0
    engine_s: float = 0.0
    moved_bytes: int = 0

    def plus(self, more: "FragmentCounts") -> "FragmentCounts":
        """Add what another fragment did, one after the other."""
        return FragmentCounts(*(ours + theirs for ours, theirs in zip(msgspec.structs.astuple(self), msgspec.structs.astuple(more))))


class StageReport:
    """What became known of a stage while it ran, for EXPLAIN ANALYZE."""

    def __init__(self) -> None:
        self.nodes: dict[int, FragmentCounts] = {}
        """By node."""
        self.fragments = 0
        """More than nodes, if some broke off."""

    def add(self, node_id: int, counts: FragmentCounts) -> None:
        """Note that a fragment is done."""
        self.nodes[node_id] = self.nodes.get(node_id, FragmentCounts()).plus(counts)
        self.fragments += 1


class KeySet(msgspec.Struct, frozen=True, array_like=True):
    """Values that a stage's query compares a column with.  name: of the table, of one column `k`; data: an Arrow stream."""

    name: str
    data: bytes


class LeafStage(msgspec.Struct, frozen=True, kw_only=True):
    """A stage that runs where the rows lie: a scan, then one query of the engine's dialect over it, named `input`.

    sql: e.g. `SELECT c1, sum(c2) FROM input WHERE c3 > 5 GROUP BY 1`; None gives the scan's batches as they are.
    is_rowwise: the query may run over any cut of the rows, piece by piece, and stream.
    is_partial: what it gives of a cut is put together with what it gives of others, so that large cuts are better.
    ordered: batches must come in key order (else in any order).
    """

    scan: TableScan
    sql: str | None = None
    is_rowwise: bool = True
    is_partial: bool = False
    ordered: bool = False
    keys: tuple[KeySet, ...] = ()
    """More tables that the query reads."""


class RowWait(StrEnum):
    """What becomes of rows that another transaction has locked."""

    WAIT = "wait"
    NOWAIT = "nowait"
    """An error."""
    SKIP = "skip"
    """They are left out."""


class Transaction(Protocol):
    """The reads and writes of one statement (or, for the catalogue, of one change)."""

    @property
    def start_ts(self) -> Timestamp | None:
        """When it began, as far as locks need to know: for its next attempt, so that it keeps its age."""

    async def read_timestamp(self) -> Timestamp:
        """Give the timestamp of its reads, fetched from the oracle at first use."""

    async def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Read row values by key, None where there is none."""

    async def get_locked(
        self, keys: Sequence[bytes], *, wait: RowWait = RowWait.WAIT, timeout_s: float | None = None
    ) -> list[tuple[bool, bytes | None]]:
        """Lock rows until the transaction ends, then read them: for each key whether it is locked, and the value.

        The timestamp of all its reads may move forward: what it read before is then known to be unchanged.
        Raises RowLockedError; TransactionRetryError if something that it read before has changed.
        """

    def has_read(self, keys: Sequence[bytes]) -> bool:
        """Say whether keys were read before, so that `get` gives them again without asking."""

    def unrecorded(self) -> AbstractContextManager["UnrecordedReads"]:
        """Read without depending on it: what is read within may be changed by others before the commit, and be stale at once."""

    async def scan(self, span: Span, *, limit: int | None = None, reverse: bool = False) -> list[tuple[bytes, bytes]]:
        """Read keys and values of a short span, in key order (or from the highest down)."""

    def put(self, key: bytes, value: bytes) -> None:
        """Buffer a write."""

    def insert(self, key: bytes, value: bytes) -> None:
        """Buffer a write of a key that must not be there when the transaction commits; else commit raises KeyExistsError."""

    def delete(self, key: bytes) -> None:
        """Buffer the removal of a key."""

    @property
    def is_full(self) -> bool:
        """Say whether so much is buffered that `flush` is due: to be asked after each write of many."""

    @property
    def has_flushed(self) -> bool:
        """Say whether something has left before the commit: then `rollback` is needed."""

    async def flush(self) -> None:
        """Store what is buffered where nobody else sees it before the commit; not while something of the transaction is being read.

        Raises KeyExistsError, TransactionRetryError, RangeUnavailableError, ProgramLimitError: the transaction can only be rolled back.
        """

    def block_layer(self, layout: RowLayout) -> "BlockLayer | None":
        """Give a way to lay very many rows of a layout at once; None: there is none, they are to be inserted."""

    def savepoint(self, *, is_kept: bool = True) -> int:
        """Mark this place in the writes.  is_kept: until `release` or a rollback to an earlier one; else until the next of them is set."""

    def release(self, savepoint: int) -> None:
        """Forget a savepoint, and those behind it; what was written stays."""

    def rollback_to(self, savepoint: int) -> None:
        """Forget the writes, and the savepoints, behind a mark; what was read stays read."""

    def describe(self) -> "TransactionState":
        """Say what it has done so far."""

    async def rollback(self) -> None:
        """Give the transaction up; not needed of one that neither flushed nor locked anything.  Never raises."""

    async def commit(self, *, deadline: Timestamp | None = None) -> Timestamp:
        """Commit all buffered writes atomically at one timestamp, at most `deadline`; without writes do nothing.

        Raises KeyExistsError, TransactionRetryError, DeadlineExceededError (nothing was written); AmbiguousCommitError;
        MultiRangeWriteError if the writes lie in several ranges.
        """


class BlockLayer(Protocol):
    """Lays very many rows at once, where nobody else sees them before the commit; not while something of the transaction is being read."""

    async def aside(self, work: Callable[[], T]) -> T:
        """Do work beside the event loop, where there is a thread for it."""

    async def begin(self, first_key: bytes, last_key: bytes) -> None:
        """Say that rows from one key to another are about to be laid: before each `lay` of them.

        Raises TransactionRetryError, RangeUnavailableError.
        """

    async def lay(self, keys: Sequence[bytes], columns: Sequence[pa.Array]) -> list[tuple[int, int]]:
        """Lay rows whose keys ascend and must not be there; give the runs of them that were not, as something is there: insert those.

        Several calls may run side by side.  Raises TransactionRetryError, RangeUnavailableError, ProgramLimitError: the transaction can
        only be rolled back.
        """


class UnrecordedReads(Protocol):
    """What a transaction has read without depending on it."""

    def keep(self) -> None:
        """Depend on it after all: only while the read timestamp is the one at which it was read."""


class StageRunner(Protocol):
    """Runs leaf stages on the nodes that hold their ranges and gathers what they give."""

    def run(self, stage: LeafStage, txn: Transaction, report: StageReport | None = None) -> AsyncIterator[pa.RecordBatch]:
        """Give the stage's batches, streamed; closing the iterator early stops the stage on every node.

        report: is told what the stage's fragments did.
        """

    def seen_rows(self, spans: Sequence[Span]) -> int | None:
        """Give how many rows an earlier stage read of just these spans, about; None if that is not known."""

    async def placement(self, spans: Sequence[Span]) -> list[tuple[int, int]]:
        """Give, for EXPLAIN, (node id, number of ranges) that would serve these spans, by node."""


class CatalogSnapshot(Protocol):
    """The catalogue at one version, held under this node's descriptor lease."""

    version: int
    lease_expiration: Timestamp
    """Commits and reads that rely on this snapshot must be below it."""

    def database(self, name: str) -> DatabaseDescriptor | None:
        """Give a database by name."""

    def databases(self) -> Sequence[DatabaseDescriptor]:
        """Give all databases, by name."""

    def table(self, database_id: int, name: str) -> TableDescriptor | None:
        """Give a table by its exact name."""

    def tables(self, database_id: int) -> Sequence[TableDescriptor]:
        """Give the tables of a database, by name."""

    def sequence(self, database_id: int, name: str) -> SequenceDescriptor | None:
        """Give a sequence by its exact name."""

    def sequence_by_id(self, sequence_id: int) -> SequenceDescriptor | None:
        """Give a sequence by id."""


class ClusterView(Protocol):
    """What statements about the cluster itself (SHOW RANGES, SPLIT AT, the tables of schema `system`) ask of the node."""

    async def split(self, keys: Sequence[bytes]) -> None:
        """Make each key the start of a range of its own; nothing if it is one."""

    async def ranges(self, span: Span) -> list["RangeInfo"]:
        """Describe the ranges that overlap a span, in key order."""

    async def configure_ranges(self, database_id: int, table_id: int, changes: Mapping[str, int | Constraints | None]) -> list[str]:
        """Set some of what holds for the ranges of a table (fields of RangeSettingsInfo), None: as the cluster; ids of 0: of all tables.

        Give sentences about what cannot come true with the nodes there are.  Raises RefusedError: it speaks of what no node has.
        """

    async def range_settings(self) -> list["RangeSettingsInfo"]:
        """Describe what holds for ranges: first the cluster's defaults, under table id 0, then the tables that say something, by id."""

    async def nodes(self) -> list["NodeInfo"]:
        """Describe the nodes of the cluster, by id."""

    async def check_structure(self) -> list["ProblemInfo"]:
        """Say what is wrong with ranges and their replicas, but for their content; takes some seconds."""

    async def check_range(self, range_id: int) -> list["ProblemInfo"]:
        """Compare the contents of a range's replicas, and say what is wrong with them."""

    async def transactions(self) -> tuple[list["OpenTransactionInfo"], list[str]]:
        """Describe open transactions and running statements of all nodes; and give sentences about what is missing."""

    async def events(self) -> list["EventInfo"]:
        """Give the newest events of the cluster, by number."""

    async def locks(self) -> tuple[list["LockInfo"], list[str]]:
        """Describe the row locks of all ranges, by key; and give sentences about what is missing."""


class RangeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A range, for people."""

    range_id: int
    start_key: bytes
    end_key: bytes
    leaseholder: int | None
    replicas: tuple[int, ...]
    """Node ids of its voters."""
    quarantined: tuple[int, ...] = ()
    """Nodes whose replicas are out of service until they are repaired."""
    size_bytes: int | None = None
    """Of all versions, keys and values; None if the range does not answer, like the next one."""
    requests_per_s: float | None = None
    blocks: int | None = None
    """Columnar blocks, at the replica that answered."""


class RangeSettingsInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for ranges: when they are split (above max_bytes, or above so many requests, or bytes, a second; 0: never for that
    reason), and where they are (replicas; constraints of all of them; what the leaseholder should meet)."""

    table_id: int
    max_bytes: int
    load_requests: int
    load_bytes: int
    replicas: int = 3
    constraints: Constraints = ()
    lease_preference: Constraints = ()


class ProblemInfo(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """Something that is wrong with a range, or with its replica on a node, for people."""

    range_id: int | None
    node_id: int | None
    problem: str


class NodeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A node, for people.  ranges, leases: how many it has, None if the ranges could not be found.

    locality: key=value,… from the widest tier; state: active, draining, decommissioning, decommissioned, None if that is not known now.
    """

    node_id: int
    address: str
    is_live: bool
    ranges: int | None
    leases: int | None
    locality: str = ""
    state: str | None = None


class EventInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Something that was done to ranges or nodes, for people.

    at_us: wall clock of the node that coordinated; kind: replicas, lease, split or node; range_id: None if it concerns none; what: and why;
    is_done: False if it was tried and failed.
    """

    event_id: int
    at_us: int
    kind: str
    range_id: int | None
    what: str
    is_done: bool


class TransactionState(msgspec.Struct, frozen=True, kw_only=True):
    """What a transaction has done so far.  writes: keys that it has written; bytes: that these writes take in memory."""

    attempt: bytes
    read_timestamp: Timestamp | None
    writes: int
    bytes: int
    is_committing: bool


class OpenTransactionInfo(msgspec.Struct, frozen=True, kw_only=True):
    """An open transaction, or a statement that runs outside one, for people.

    attempt: None if it has none yet; started_us: wall clock of its node, in microseconds since the epoch; state: running, committing,
    idle, or failed (until ROLLBACK); statement: that runs or ran last, cut if it is long; writes, bytes: as in `TransactionState`.
    """

    node_id: int
    session_id: int
    attempt: bytes | None
    started_us: int
    state: str
    statement: str
    read_timestamp: Timestamp | None
    writes: int
    bytes: int


class LockInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A row lock, for people.  since_us: wall clock of its leaseholder's node; waiters: statements that wait for it."""

    range_id: int
    key: bytes
    holder: bytes
    """Attempt id of the transaction that holds it."""
    holder_node: int
    since_us: int
    waiters: int


class PortError(Exception):
    """Base of what a Transaction or StageRunner raises; nothing of the transaction is visible unless said otherwise."""


class KeyExistsError(PortError):
    """A key that was to be inserted is already there.  Final for this attempt."""

    def __init__(self, key: bytes) -> None:
        super().__init__(f"key {key.hex()} exists")
        self.key = key


class TransactionRetryError(PortError):
    """What the transaction read has changed since: run it again from the start.  key: of the row that was changed, if that is known."""

    def __init__(self, message: str, key: bytes | None = None) -> None:
        super().__init__(message)
        self.key = key


class RowLockedError(PortError):
    """A row that was to be locked is locked by another transaction, which is not, or was long enough, waited for (`is_late`)."""

    def __init__(self, message: str, key: bytes, *, is_late: bool) -> None:
        super().__init__(message)
        self.key = key
        self.is_late = is_late


class DeadlineExceededError(PortError):
    """The commit timestamp would pass the deadline (the catalogue lease ran out): refresh the catalogue and run again."""


class AmbiguousCommitError(PortError):
    """Whether the commit took effect is not known."""


class MultiRangeWriteError(PortError):
    """The writes lie in more than one range."""


class RangeUnavailableError(PortError):
    """A range could not be reached, or has no leaseholder, within the time allowed; nothing was written."""
