"""PEP 249's exceptions, and the one table from SQLSTATE to them.

Exception ─┬─ Warning
           └─ Error ─┬─ InterfaceError                        the driver was used wrongly
                     └─ DatabaseError ─┬─ DataError            a value
                                       ├─ OperationalError     the connection, a node, a limit
                                       │    ├─ SerializationFailure      40001: run it again
                                       │    └─ UnknownOutcome            40003: look before you run it again
                                       ├─ IntegrityError       a constraint
                                       ├─ InternalError        a bug
                                       ├─ ProgrammingError     the statement
                                       └─ NotSupportedError
"""


class Warning(Exception):  # noqa: A001, N818, RUF100
    """PEP 249's Warning; dsdb raises none (notices are kept in `Connection.notices`)."""


class Error(Exception):
    """Base of all errors of the driver.

    sqlstate: five characters; position: 1-based, in characters of the statement's text, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        sqlstate: str | None = None,
        detail: str | None = None,
        hint: str | None = None,
        position: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.sqlstate = sqlstate
        self.detail = detail
        self.hint = hint
        self.position = position

    def __str__(self) -> str:
        parts = [self.message]
        if self.detail:
            parts.append(f"DETAIL: {self.detail}")
        if self.hint:
            parts.append(f"HINT: {self.hint}")
        return "\n".join(parts)


class InterfaceError(Error):
    """The driver was used wrongly: a closed cursor, an unknown option."""


class DatabaseError(Error):
    """Base of what comes from the database."""


class DataError(DatabaseError):
    """A value does not fit, on either side."""


class OperationalError(DatabaseError):
    """Not the statement's fault: the connection, a node, a limit."""


class IntegrityError(DatabaseError):
    """A constraint was violated."""


class InternalError(DatabaseError):
    """A bug of dsdb's, or damaged data."""


class ProgrammingError(DatabaseError):
    """The statement is wrong, or not allowed now."""


class NotSupportedError(DatabaseError):
    """A feature that dsdb does not have."""


class SerializationFailure(OperationalError):
    """The statement had no effect and may be run again: `Connection.run` does."""


class UnknownOutcome(OperationalError):
    """Whether the statement took effect is not known: look before you run it again."""


_BY_SQLSTATE: dict[str, type[DatabaseError]] = {
    "40001": SerializationFailure,
    "40003": UnknownOutcome,
    "22": DataError,
    "23": IntegrityError,
    "0A": NotSupportedError,
    "08": OperationalError,
    "40": OperationalError,
    "53": OperationalError,
    "54": OperationalError,
    "55": OperationalError,
    "57": OperationalError,
    "58": OperationalError,
    "21": ProgrammingError,
    "25": ProgrammingError,
    "28": OperationalError,
    "3B": ProgrammingError,
    "3D": ProgrammingError,
    "3F": ProgrammingError,
    "42": ProgrammingError,
    "XX": InternalError,
}
"""By the whole SQLSTATE, else by its class, its first two characters; any other is a DatabaseError."""


def error_of(
    sqlstate: str, message: str, *, detail: str | None = None, hint: str | None = None, position: int | None = None
) -> DatabaseError:
    """Make the exception of a SQLSTATE."""
    kind = _BY_SQLSTATE.get(sqlstate) or _BY_SQLSTATE.get(sqlstate[:2]) or DatabaseError
    return kind(message, sqlstate=sqlstate, detail=detail, hint=hint, position=position)
