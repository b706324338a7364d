"""Results and errors as messages.

few rows       Rows                      one frame
many rows      Schema, Batch …           cut into messages of about `batch_bytes`
SqlError       ErrorMessage              everything else is a bug: logged, and told as XX000 without details
"""

import logging
from collections.abc import Iterator, Sequence

import msgspec
import pyarrow as pa

from dsdb.protocol.messages import ErrorMessage, Rows, Schema, encode_columns
from dsdb.sql.errors import InternalError, SqlError
from dsdb.sql.execute.result import ResultColumn, arrow_schema
from dsdb.sql.rows import Row
from dsdb.sql.transaction_status import TransactionStatus

_LOG = logging.getLogger(__name__)

_NO_COLUMNS = encode_columns(())
_COLUMNS_CACHED_MAX = 1_024
# By identity: cached plans give the same tuple again and again, and hashing one costs more than encoding it.  The tuple is kept beside
# its encoding, so that its id cannot be another's.
_columns_cache: dict[int, tuple[tuple[ResultColumn, ...], msgspec.Raw]] = {}


def _encoded(columns: tuple[ResultColumn, ...]) -> msgspec.Raw:
    if not columns:
        return _NO_COLUMNS
    cached = _columns_cache.get(id(columns))
    if cached is not None and cached[0] is columns:
        return cached[1]
    if len(_columns_cache) >= _COLUMNS_CACHED_MAX:
        _columns_cache.clear()
    raw = encode_columns(columns)
    _columns_cache[id(columns)] = (columns, raw)
    return raw


def rows_message(
    stream: int,
    columns: tuple[ResultColumn, ...],
    rows: list[Row],
    *,
    tag: str,
    row_count: int | None,
    more: bool,
    transaction: TransactionStatus,
) -> Rows:
    """Give a complete small result."""
    return Rows(stream=stream, columns=_encoded(columns), rows=rows, tag=tag, row_count=row_count, more=more, transaction=transaction)


def schema_message(stream: int, columns: tuple[ResultColumn, ...]) -> Schema:
    """Give the begin of a streamed result."""
    return Schema(stream=stream, columns=_encoded(columns), arrow=memoryview(arrow_schema(columns).serialize()))


def pieces(batch: pa.RecordBatch, *, bytes_max: int) -> Iterator[memoryview]:
    """Cut a batch into Arrow IPC messages of about `bytes_max`, of one row at the least."""
    if not batch.num_rows:
        return
    count = min(batch.num_rows, -(-batch.nbytes // bytes_max) or 1)
    rows = -(-batch.num_rows // count)
    for start in range(0, batch.num_rows, rows):
        yield memoryview(batch.slice(start, rows).serialize())


def error_message(stream: int, error: SqlError, transaction: TransactionStatus = TransactionStatus.NONE) -> ErrorMessage:
    """Give an error of the user's."""
    return ErrorMessage(
        stream=stream,
        sqlstate=error.sqlstate,
        message=error.message,
        detail=error.detail,
        hint=error.hint,
        position=error.position,
        transaction=transaction,
    )


def bug_message(stream: int, error: Exception, *, session_id: int, texts: Sequence[str], transaction: TransactionStatus) -> ErrorMessage:
    """Log an error that is ours, and give what the user is told of it."""
    _LOG.error("internal error in session %d, statement %.200r", session_id, texts, exc_info=error)
    hint = f"The log of the node has more, under session {session_id}; please report it."
    return error_message(stream, InternalError("internal error", hint=hint), transaction)
