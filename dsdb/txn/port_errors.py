"""What ranges answer, in the words that execution knows."""

from datetime import UTC, datetime

from dsdb.kv.errors import (
    AmbiguousResult,
    BelowThreshold,
    Conflict,
    DeadlinePassed,
    DiskTrouble,
    Gone,
    IntentInTheWay,
    KeyExists,
    KvError,
    Refused,
)
from dsdb.sql.errors import DataCorruptedError, DiskFullError, InvalidParameterError, SqlError
from dsdb.sql.ports import (
    AmbiguousCommitError,
    DeadlineExceededError,
    KeyExistsError,
    PortError,
    RangeUnavailableError,
    TransactionRetryError,
)
from dsdb.storage.timestamp import Timestamp, to_milliseconds


def port_error(error: KvError) -> PortError | SqlError:
    """Translate what a range answered into what execution knows."""
    match error.detail:
        case KeyExists(key):
            return KeyExistsError(key)
        case Conflict(key):
            return TransactionRetryError(str(error), key)
        case IntentInTheWay(key):
            return TransactionRetryError("another transaction that writes the key did not end in time", key)
        case Refused():
            return TransactionRetryError(str(error))
        case DeadlinePassed():
            return deadline_exceeded()
        case AmbiguousResult(reason):
            return AmbiguousCommitError(reason)
        case Gone():
            return AmbiguousCommitError("the outcome of this attempt is no longer recorded")
        case BelowThreshold():
            return RangeUnavailableError("the statement ran longer than old versions are kept")
        case DiskTrouble(reason, damaged):
            return DataCorruptedError(reason) if damaged else DiskFullError(reason)
        case detail:
            return RangeUnavailableError(getattr(detail, "reason", repr(detail)))


def deadline_exceeded() -> DeadlineExceededError:
    """Say that the commit timestamp would not lie below the deadline."""
    return DeadlineExceededError("the catalogue lease ran out")


def kept_since(threshold: Timestamp) -> InvalidParameterError:
    """Say that a read of the past lies before what is kept."""
    since = datetime.fromtimestamp(to_milliseconds(threshold) / 1000, UTC)
    return InvalidParameterError(
        f"what was at that time is not kept any more: the oldest that can be read is of {since:%Y-%m-%d %H:%M:%S}+00",
        hint="Choose a later time.",
    )
