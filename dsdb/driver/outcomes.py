"""A statement on its way, and what it means if the connection breaks there."""

from dsdb.driver.errors import DatabaseError, DataError, error_of
from dsdb.driver.text import is_read_only, may_commit
from dsdb.driver.wire import Wire, WireClosedError
from dsdb.protocol.messages import ErrorMessage, Execute, encode_request

UNDONE = "Nothing of the statement took effect; its rows are to be given anew."
LOST = "The transaction is lost: nothing of it took effect."


def encode_execute(wire: Wire, message: Execute) -> bytes:
    """Give a statement as a frame.  Raises DatabaseError if it cannot be sent: nothing of it was."""
    bytes_max = wire.welcome.request_bytes_max
    try:
        data = encode_request(message, bytes_max=bytes_max)
    except UnicodeEncodeError as error:
        raise DataError(f"text with lone surrogates has no UTF-8: {error.object[:40]!r}", sqlstate="22021") from None
    if data is None:
        # The node would hang up on it.
        raise error_of(
            "54000",
            f"the statement is too large: a node takes at most {bytes_max} bytes of text and parameters at once",
            hint="Send the rows in several statements, or a large value in parts.",
        )
    return data


def error_of_message(message: ErrorMessage) -> DatabaseError:
    """Give the exception for what a node says."""
    return error_of(message.sqlstate, message.message, detail=message.detail, hint=message.hint, position=message.position)


def lost_alone(sql: str, error: WireClosedError) -> DatabaseError:
    """Say what a broken connection means for a statement that commits by itself."""
    if is_read_only(sql):
        return error_of("08006", f"the connection broke before the answer came: {error}", hint="The statement may be run again.")
    return error_of(
        "40003",
        f"the connection broke before the answer came: {error}",
        detail="Whether the statement took effect is not known.",
        hint="Look before you run it again.",
    )


def lost_in_transaction(sql: str, error: WireClosedError) -> DatabaseError:
    """Say what a broken connection means for a statement of a transaction (empty: the node has not begun it)."""
    if sql and may_commit(sql):
        return error_of(
            "40003",
            f"the connection broke while the transaction may have been committed: {error}",
            detail="Whether it took effect is not known.",
            hint="Look before you run it again.",
        )
    return error_of("08006", f"the connection broke in a transaction: {error}", hint=LOST)
