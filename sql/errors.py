"""One class per SQLSTATE: what a statement can end with instead of a result.

A message says what is wrong with which value; a hint is the next step.  Raises here are always about the user's statement or data;
a bug of ours is never one of these, it is InternalError, made at the session's root only.
"""

from typing import ClassVar


class SqlError(Exception):
    """Base of all SQL errors.

    position: 1-based offset, in characters, of the token in the statement's text at fault, or None.
    """

    sqlstate: ClassVar[str] = "XX000"

    def __init__(self, message: str, *, detail: str | None = None, hint: str | None = None, position: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint
        self.position = position


class SqlConnectionError(SqlError):
    """The connection, or a node behind it, is gone."""

    sqlstate = "08006"


class ProtocolViolationError(SqlError):
    """A message does not fit the protocol."""

    sqlstate = "08P01"


class FeatureNotSupportedError(SqlError):
    """A feature that dsdb does not have."""

    sqlstate = "0A000"


class CardinalityViolationError(SqlError):
    """A row is touched twice by one statement, or a scalar sub-query gives more than one row."""

    sqlstate = "21000"


class StringTruncationError(SqlError):
    """A string is longer than its column allows."""

    sqlstate = "22001"


class NumericOutOfRangeError(SqlError):
    """A number does not fit its type."""

    sqlstate = "22003"


class InvalidDatetimeError(SqlError):
    """Text is not a date, time or interval."""

    sqlstate = "22007"


class DatetimeOverflowError(SqlError):
    """A date or time lies outside what its type can hold."""

    sqlstate = "22008"


class DivisionByZeroError(SqlError):
    """A division by zero."""

    sqlstate = "22012"


class InvalidParameterError(SqlError):
    """A parameter's value is not allowed."""

    sqlstate = "22023"


class SubstringError(SqlError):
    """A length or a place in a text or a bytea that cannot be."""

    sqlstate = "22011"


class InvalidEscapeError(SqlError):
    """An escape that escapes nothing in a pattern."""

    sqlstate = "22025"


class InvalidRegularExpressionError(SqlError):
    """A regular expression that cannot be read."""

    sqlstate = "2201B"


class LogarithmError(SqlError):
    """A logarithm of zero or less."""

    sqlstate = "2201E"


class PowerError(SqlError):
    """A root or a power that no real number is."""

    sqlstate = "2201F"


class InvalidLimitError(SqlError):
    """A negative LIMIT."""

    sqlstate = "2201W"


class InvalidOffsetError(SqlError):
    """A negative OFFSET."""

    sqlstate = "2201X"


class InvalidDataError(SqlError):
    """Data that comes with a statement holds what its type does not."""

    sqlstate = "22000"


class InvalidTextError(SqlError):
    """Text is not a value of the wanted type."""

    sqlstate = "22P02"


class NotNullViolationError(SqlError):
    """NULL in a column that does not take it."""

    sqlstate = "23502"


class ForeignKeyViolationError(SqlError):
    """A reference without its row."""

    sqlstate = "23503"


class UniqueViolationError(SqlError):
    """A key that is already there."""

    sqlstate = "23505"


class CheckViolationError(SqlError):
    """A row that fails a CHECK."""

    sqlstate = "23514"


class InvalidTransactionStateError(SqlError):
    """Not possible in the transaction's state."""

    sqlstate = "25000"


class ActiveTransactionError(InvalidTransactionStateError):
    """Not possible in a transaction, or only at its begin."""

    sqlstate = "25001"


class ReadOnlyTransactionError(InvalidTransactionStateError):
    """A statement that writes, in a transaction that only reads."""

    sqlstate = "25006"


class NoActiveTransactionError(InvalidTransactionStateError):
    """Only possible in a transaction."""

    sqlstate = "25P01"


class FailedTransactionError(InvalidTransactionStateError):
    """The transaction has failed: it can only be rolled back."""

    sqlstate = "25P02"


class IdleInTransactionError(InvalidTransactionStateError):
    """The session left its transaction open for too long."""

    sqlstate = "25P03"


class InvalidAuthorizationError(SqlError):
    """The connection does not prove that it may open this session."""

    sqlstate = "28000"


class UndefinedSavepointError(SqlError):
    """No such savepoint."""

    sqlstate = "3B001"


class InvalidCatalogNameError(SqlError):
    """No such database."""

    sqlstate = "3D000"


class InvalidSchemaNameError(SqlError):
    """No such schema."""

    sqlstate = "3F000"


class SerializationError(SqlError):
    """The transaction could not be placed in a serial order; run it again."""

    sqlstate = "40001"


class LockNotAvailableError(SqlError):
    """A row stays locked by another transaction."""

    sqlstate = "55P03"


class UnknownOutcomeError(SqlError):
    """Whether the statement took effect is not known: look before you run it again."""

    sqlstate = "40003"


class SqlSyntaxError(SqlError):
    """The text is not SQL."""

    sqlstate = "42601"


class UndefinedColumnError(SqlError):
    """No such column."""

    sqlstate = "42703"


class UndefinedTableError(SqlError):
    """No such table."""

    sqlstate = "42P01"


class UndefinedFunctionError(SqlError):
    """No such function or operator for these types."""

    sqlstate = "42883"


class UndefinedParameterError(SqlError):
    """A parameter that was not given, or one that nobody asked for."""

    sqlstate = "42P02"


class UndefinedObjectError(SqlError):
    """No such type, constraint or setting."""

    sqlstate = "42704"


class DuplicateColumnError(SqlError):
    """A column named twice."""

    sqlstate = "42701"


class DuplicateTableError(SqlError):
    """A table or sequence of that name is already there."""

    sqlstate = "42P07"


class DuplicateDatabaseError(SqlError):
    """A database of that name is already there."""

    sqlstate = "42P04"


class DuplicateAliasError(SqlError):
    """A table name or alias used twice in one FROM."""

    sqlstate = "42712"


class AmbiguousColumnError(SqlError):
    """A column name that more than one table has."""

    sqlstate = "42702"


class GroupingError(SqlError):
    """A column neither grouped nor aggregated, or an aggregate where none may stand."""

    sqlstate = "42803"


class WindowingError(SqlError):
    """A window function where none may stand."""

    sqlstate = "42P20"


class DatatypeMismatchError(SqlError):
    """An expression of the wrong type."""

    sqlstate = "42804"


class CannotCoerceError(SqlError):
    """No cast between these types."""

    sqlstate = "42846"


class IndeterminateTypeError(SqlError):
    """A parameter or NULL whose type nothing decides."""

    sqlstate = "42P18"


class InvalidColumnReferenceError(SqlError):
    """A position or column that may not be referred to here."""

    sqlstate = "42P10"


class InvalidTableDefinitionError(SqlError):
    """A table that cannot be made like this."""

    sqlstate = "42P16"


class InsufficientPrivilegeError(SqlError):
    """What nobody may do."""

    sqlstate = "42501"


class WrongObjectTypeError(SqlError):
    """An object of another kind than the statement needs."""

    sqlstate = "42809"


class GeneratedAlwaysError(SqlError):
    """A value given for a column that is always generated."""

    sqlstate = "428C9"


class OutOfMemoryError(SqlError):
    """The statement needs more memory than its limit."""

    sqlstate = "53200"


class DiskFullError(SqlError):
    """A node's disk has no room for this."""

    sqlstate = "53100"


class TooManyConnectionsError(SqlError):
    """The node serves as many sessions as it may."""

    sqlstate = "53300"


class ProgramLimitError(SqlError):
    """A limit of dsdb itself: the text's size or depth, columns, parameters."""

    sqlstate = "54000"


class StatementTooComplexError(SqlError):
    """A statement nested or chained deeper than dsdb reads."""

    sqlstate = "54001"


class ObjectInUseError(SqlError):
    """Something that another session uses."""

    sqlstate = "55006"


class QueryCanceledError(SqlError):
    """Cancelled by its user, or out of time."""

    sqlstate = "57014"


class ShutdownError(SqlError):
    """The node is stopping."""

    sqlstate = "57P01"


class CannotConnectNowError(SqlError):
    """The node, or the ranges that the statement needs, cannot serve now: too few replicas answer."""

    sqlstate = "57P03"


class DataCorruptedError(SqlError):
    """Stored data is damaged; the range is not served."""

    sqlstate = "XX001"


class InternalError(SqlError):
    """A bug of dsdb's; the log has more."""

    sqlstate = "XX000"
